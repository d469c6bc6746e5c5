"""Metrics that must be looked up: what waits in an outbox, what is free on a disk, what an archive holds.

Each function makes a `metrics.Source`. All of them block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from harmony.archive.files import FileStore
from harmony.archive.indexing import ArchiveIndex
from harmony.audit.trail import AuditTrail
from harmony.gateway.metrics import Source
from harmony.gateway.tls import Certificates
from harmony.gateway.workers import WorkerPool
from harmony.jmix.outbox import Outbox
from harmony.ul.held import HELD

__all__ = [
    "archive_source",
    "audit_source",
    "certificate_source",
    "envelope_source",
    "memory_source",
    "outbox_source",
    "storage_source",
    "worker_source",
]


def memory_source() -> Iterator[Metric]:
    """What is held for peers, of all that runs in this process."""
    held = GaugeMetricFamily(
        "harmony_held_bytes", "Bytes held for peers: what waits to be taken or sent, or is being collected."
    )
    held.add_metric([], HELD.held_bytes)
    yield held
    limit = GaugeMetricFamily("harmony_held_limit_bytes", "How many may be (max_held_bytes).")
    limit.add_metric([], HELD.limit_bytes or 0)
    yield limit


def certificate_source(certificates: Certificates) -> Source:
    """Our certificates, of all listeners and of all that we connect to."""

    def ask() -> Iterator[Metric]:
        left = GaugeMetricFamily(
            "harmony_tls_certificate_expires_in_seconds",
            "Until a certificate of ours expires, negative afterwards.",
            labels=["path"],
        )
        for path, left_s in certificates.seconds_left():
            left.add_metric([str(path)], left_s)
        yield left

    return ask


def audit_source(trail: AuditTrail) -> Source:
    """The audit trail, and whether its collector has everything."""

    def ask() -> Iterator[Metric]:
        records = CounterMetricFamily("harmony_audit_records", "Messages of the audit trail.", labels=[])
        records.add_metric([], trail.recorded_count)
        yield records
        lost = CounterMetricFamily(
            "harmony_audit_lost", "Messages that neither disk nor memory could take.", labels=[]
        )
        lost.add_metric([], trail.lost_count)
        yield lost
        undelivered = GaugeMetricFamily(
            "harmony_audit_undelivered", "1 while the collector does not have all messages.", labels=[]
        )
        undelivered.add_metric([], int(trail.undelivered))
        yield undelivered

    return ask


def worker_source(workers: WorkerPool) -> Source:
    """Processes that receive; what they receive is counted with the endpoints."""

    def ask() -> Iterator[Metric]:
        open_now = GaugeMetricFamily(
            "harmony_worker_associations", "Associations that a worker has now.", labels=["worker"]
        )
        objects = CounterMetricFamily(
            "harmony_worker_objects", "C-STORE requests that a worker has answered.", labels=["worker"]
        )
        restarts = CounterMetricFamily(
            "harmony_worker_restarts", "How often a worker was replaced, having died.", labels=["worker"]
        )
        for number, associations, stored, restarted in workers.counts():
            open_now.add_metric([str(number)], associations)
            objects.add_metric([str(number)], stored)
            restarts.add_metric([str(number)], restarted)
        yield from (open_now, objects, restarts)

    return ask


def outbox_source(pipeline: str, outbox: Callable[[], Outbox | None]) -> Source:
    """outbox: the outbox while it is open."""

    def ask() -> Iterator[Metric]:
        opened = outbox()
        if opened is None:
            return
        deliveries = GaugeMetricFamily(
            "harmony_outbox_deliveries",
            "Envelopes by state; delivered ones are forgotten after 30 days.",
            labels=["pipeline", "state"],
        )
        for state, count in opened.counts().items():
            deliveries.add_metric([pipeline, state.value], count)
        yield deliveries
        since = opened.waiting_since()
        age = GaugeMetricFamily(
            "harmony_outbox_oldest_waiting_seconds",
            "Age of the oldest envelope that is pending or in progress, 0 when there is none.",
            labels=["pipeline"],
        )
        age.add_metric([pipeline], 0.0 if since is None else max(0.0, time.time() - since))
        yield age

    return ask


def envelope_source(pipeline: str, component: str, built_count: Callable[[], int]) -> Source:
    """component: the name of the middleware, or of the endpoint whose `prime` makes envelopes."""

    def ask() -> Iterator[Metric]:
        built = CounterMetricFamily(
            "harmony_envelopes_built",
            "JMIX envelopes built, by a jmix_builder or by a jmix endpoint (prime).",
            labels=["pipeline", "component"],
        )
        built.add_metric([pipeline, component], built_count())
        yield built

    return ask


def storage_source(pipeline: str, files: FileStore) -> Source:
    """The file system under the storage folder of a pipeline's DICOM endpoints."""

    def ask() -> Iterator[Metric]:
        free_bytes, size_bytes = files.folder.free_space()
        free = GaugeMetricFamily(
            "harmony_storage_free_bytes", "Free in the file system of received objects.", labels=["pipeline"]
        )
        free.add_metric([pipeline], free_bytes)
        yield free
        size = GaugeMetricFamily(
            "harmony_storage_size_bytes", "Size of that file system.", labels=["pipeline"]
        )
        size.add_metric([pipeline], size_bytes)
        yield size

    return ask


def archive_source(pipeline: str, index: ArchiveIndex) -> Source:
    """The index over the received objects."""

    def ask() -> Iterator[Metric]:
        progress = index.progress()
        if progress is None:
            return
        found, waiting = progress
        entities = GaugeMetricFamily(
            "harmony_archive_entities", "What the archive's index holds.", labels=["pipeline", "level"]
        )
        entities.add_metric([pipeline, "patient"], found.patients)
        entities.add_metric([pipeline, "study"], found.studies)
        entities.add_metric([pipeline, "series"], found.series)
        entities.add_metric([pipeline, "instance"], found.instances)
        yield entities
        backlog = GaugeMetricFamily(
            "harmony_archive_index_backlog",
            "Objects received that are not in the index yet.",
            labels=["pipeline"],
        )
        backlog.add_metric([pipeline], waiting)
        yield backlog
        torn = GaugeMetricFamily(
            "harmony_archive_torn_files",
            "Files that were cut off by a power cut, and set aside at the last start.",
            labels=["pipeline"],
        )
        torn.add_metric([pipeline], index.torn_count)
        yield torn

    return ask
