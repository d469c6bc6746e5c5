"""What the gateway counts, in the text format of Prometheus and OpenMetrics.

Each gateway has a `Metrics` of its own. Hot paths only touch the plain numbers of `tallies`; families of samples are
made of them when somebody asks. What has to be looked up, in a database or a file system, is a `Source`
(`metric_sources`): a blocking function that is called in a thread, and left out of the answer when it fails. Anything
else may register a metric or a collector of prometheus_client in `registry`.

docs/CONFIGURATION.md lists the metrics ("Management and metrics"); a test compares.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from harmony import __version__
from harmony.archive.index import ArchiveIndexError
from harmony.dimse import command as messages
from harmony.dimse.command import Message
from harmony.dimse.status import Status, classify
from harmony.gateway.tallies import AssociationTally, Durations, HTTPTally, LoopLag, OperationTally
from harmony.ul.acceptor import Acceptor
from harmony.ul.pdu import describe_rejection_reason

__all__ = ["Metrics", "Source", "Watched"]

logger = logging.getLogger("harmony.gateway")

Source = Callable[[], Iterable[Metric]]
"""Asks and returns samples. Blocking; OSError, sqlite3.Error and ArchiveIndexError mean that there are none now."""

OPERATIONS: Mapping[type[Message], str] = {
    messages.CEchoRQ: "C-ECHO",
    messages.CStoreRQ: "C-STORE",
    messages.CFindRQ: "C-FIND",
    messages.CGetRQ: "C-GET",
    messages.CMoveRQ: "C-MOVE",
    messages.NEventReportRQ: "N-EVENT-REPORT",
    messages.NGetRQ: "N-GET",
    messages.NSetRQ: "N-SET",
    messages.NActionRQ: "N-ACTION",
    messages.NCreateRQ: "N-CREATE",
    messages.NDeleteRQ: "N-DELETE",
}

KNOWN_STATUSES = frozenset(int(status) for status in Status)


@dataclass(slots=True)
class Watched:
    """What is asked at a scrape, as the configuration has it."""

    acceptors: dict[str, Acceptor] = field(default_factory=dict)
    """By the address listened on; their rejections are reported."""
    sources: list[Source] = field(default_factory=list)
    refresh: Callable[[], Awaitable[None]] | None = None
    """Has counts brought that are kept elsewhere."""


class Metrics:
    """Everything that one gateway counts, for as long as it runs. `watched` changes with the configuration."""

    def __init__(self) -> None:
        self.http = HTTPTally()
        self.loop_lag = LoopLag()
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.watched = Watched()
        self._associations: dict[tuple[str, str], AssociationTally] = {}
        self._source_errors = 0

    def endpoint(self, name: str) -> AssociationTally:
        """What observes the associations with a DICOM endpoint."""
        return self._associations.setdefault(("endpoint", name), AssociationTally())

    def backend(self, name: str) -> AssociationTally:
        """What observes the associations that a backend requests."""
        return self._associations.setdefault(("backend", name), AssociationTally())

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """The answer to a scrape, and its media type. accept: the Accept field of the request, "" for the plain text
        format."""
        if self.watched.refresh is not None:
            await self.watched.refresh()
        asked = await asyncio.to_thread(self._ask_sources)
        families = [*self._families(), *asked]  # in this thread, where the tallies are written
        encoder, media_type = choose_encoder(accept)
        return await asyncio.to_thread(encoder, _Joined(families, self.registry)), media_type

    def _ask_sources(self) -> list[Metric]:
        found: list[Metric] = []
        for source in self.watched.sources:
            try:
                found += source()
            except (OSError, sqlite3.Error, ArchiveIndexError) as error:
                self._source_errors += 1
                logger.warning("metrics: a source could not be asked: %s", error)
        return list(_merged(found))

    def _families(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("harmony_info", "The running version; always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield from self._association_families()
        yield from self._operation_families()
        yield from self._http_families()
        lag = HistogramMetricFamily(
            "harmony_event_loop_lag_seconds",
            "How late the event loop does what is due, measured four times a second.",
            labels=[],
        )
        _add_histogram(lag, [], self.loop_lag.durations)
        yield lag
        errors = CounterMetricFamily(
            "harmony_metrics_source_errors", "Sources of metrics that could not be asked.", labels=[]
        )
        errors.add_metric([], self._source_errors)
        yield errors

    def _association_families(self) -> Iterator[Metric]:
        who = ["component", "name"]
        established = CounterMetricFamily(
            "harmony_associations_established",
            "Associations accepted by an endpoint, or made by it or a backend.",
            labels=who,
        )
        open_now = GaugeMetricFamily("harmony_associations_open", "Associations open now.", labels=who)
        ended = CounterMetricFamily(
            "harmony_associations_ended",
            "Associations that are over, by what ended them.",
            labels=[*who, "reason"],
        )
        failed = CounterMetricFamily(
            "harmony_associations_failed",
            "Associations requested in vain.",
            labels=[*who, "reason"],
        )
        received = CounterMetricFamily(
            "harmony_association_received_bytes",
            "Bytes of all PDUs received on established associations.",
            labels=who,
        )
        sent = CounterMetricFamily(
            "harmony_association_sent_bytes",
            "Bytes of all PDUs sent on established associations.",
            labels=who,
        )
        rejected = CounterMetricFamily(
            "harmony_associations_rejected",
            "Associations rejected by a listener (PS3.8 Table 9-21).",
            labels=["listener", "reason"],
        )
        for key, tally in self._associations.items():
            established.add_metric(key, tally.established_count)
            open_now.add_metric(key, len(tally.open))
            received.add_metric(key, tally.received_bytes)
            sent.add_metric(key, tally.sent_bytes)
            for reason, count in tally.ends.items():
                ended.add_metric([*key, reason], count)
            for reason, count in tally.failures.items():
                failed.add_metric([*key, reason], count)
        for listener, acceptor in self.watched.acceptors.items():
            for (_, source, code), count in acceptor.rejections.items():
                rejected.add_metric([listener, describe_rejection_reason(source, code)], count)
        return iter((established, open_now, ended, failed, rejected, received, sent))

    def _operation_families(self) -> Iterator[Metric]:
        labels = ["component", "name", "role", "operation"]
        operations = CounterMetricFamily(
            "harmony_operations",
            "DIMSE operations answered, by us (role scp) or by the peer (scu), with their final status.",
            labels=[*labels, "status_class", "status"],
        )
        durations = HistogramMetricFamily(
            "harmony_operation_duration_seconds",
            "From the request to its final response; a C-STORE includes the transfer of its data set.",
            labels=labels,
        )
        for key, tally in self._associations.items():
            for role, table in (("scp", tally.as_scp), ("scu", tally.as_scu)):
                for request_type, operation in table.items():
                    values = [*key, role, OPERATIONS.get(request_type, "other")]
                    for (status_class, status), count in _by_status(operation).items():
                        operations.add_metric([*values, status_class, status], count)
                    _add_histogram(durations, values, operation.durations)
        return iter((operations, durations))

    def _http_families(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "harmony_http_requests",
            "HTTP requests answered; status_class none: the client left before.",
            labels=["endpoint", "method", "status_class"],
        )
        durations = HistogramMetricFamily(
            "harmony_http_request_duration_seconds",
            "From the head of the request to the last byte of the answer, at the pace of the client.",
            labels=["endpoint"],
        )
        received = CounterMetricFamily(
            "harmony_http_received_bytes", "Bytes of request bodies.", labels=["endpoint"]
        )
        sent = CounterMetricFamily(
            "harmony_http_sent_bytes", "Bytes of response bodies.", labels=["endpoint"]
        )
        for key, count in self.http.requests.items():
            requests.add_metric(key, count)
        for endpoint, tally in self.http.durations.items():
            _add_histogram(durations, [endpoint], tally)
            received.add_metric([endpoint], self.http.received_bytes[endpoint])
            sent.add_metric([endpoint], self.http.sent_bytes[endpoint])
        return iter((requests, durations, received, sent))


class _Joined:
    """What an encoder takes: families that were made already, and a registry."""

    def __init__(self, families: Iterable[Metric], registry: CollectorRegistry) -> None:
        self._families = families
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        yield from self._families
        yield from self._registry.collect()


def _add_histogram(family: HistogramMetricFamily, labels: Iterable[str], durations: Durations) -> None:
    total, buckets = 0, []
    for bound, count in zip((*map(str, durations.bounds), "+Inf"), durations.counts, strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric(list(labels), buckets, durations.sum_s)


def _by_status(operation: OperationTally) -> dict[tuple[str, str], int]:
    """Counts by class and code. What another program answered may be any of 65536 numbers: those without a meaning of
    their own are put together by their first digit."""
    counts: dict[tuple[str, str], int] = {}
    for status, count in operation.statuses.items():
        if status is None:
            key = ("none", "none")
        else:
            code = f"{status:04X}" if status in KNOWN_STATUSES else f"{status >> 12:X}xxx"
            key = (classify(status).name.lower(), code)
        counts[key] = counts.get(key, 0) + count
    return counts


def _merged(families: Iterable[Metric]) -> Iterable[Metric]:
    """Sources may tell of the same family, each of its own part: a family must appear once."""
    merged: dict[str, Metric] = {}
    for family in families:
        known = merged.get(family.name)
        if known is None:
            merged[family.name] = family
        else:
            known.samples += family.samples
    return merged.values()
