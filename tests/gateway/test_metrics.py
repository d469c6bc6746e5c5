"""What /metrics says after real associations, objects and requests, read with Prometheus' own parser."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from harmony.archive.files import FileStore
from harmony.dicom.json_model import encode_data_set
from harmony.dimse import BytesSink, Services, serve
from harmony.dimse.command import CFindRQ, CStoreRQ
from harmony.dimse.information_model import STUDY_ROOT, propose_query
from harmony.dimse.query import find
from harmony.dimse.retrieve import move
from harmony.dimse.status import SUCCESS_OUTCOME, DimseError, Status
from harmony.gateway.metric_sources import storage_source
from harmony.gateway.metrics import Metrics
from harmony.http.client import HTTPClient
from harmony.ul.errors import AssociationRejected, ConnectFailed

DOCUMENT = (Path(__file__).parents[2] / "docs" / "CONFIGURATION.md").read_text()
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

STUDY = "1.2.3.4.5"
SCP = {"component": "endpoint", "name": "scp"}
STORE = {**SCP, "role": "scp", "operation": "C-STORE"}


class Samples:
    """Of one scrape, by name and labels."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, metric: str, /, **labels: str) -> float | None:
        return self.values.get((metric, frozenset(labels.items())))


@pytest.fixture
def managed(bench):
    bench.more = """
        [management]
        enabled = true
        network = "n"
    """
    return bench


@pytest.fixture
def get(bench):
    async def get(path: str, headers=()):
        async with HTTPClient(f"http://127.0.0.1:{bench.http_port}", timeout_s=10.0) as client:
            return await client.request("GET", path, headers=headers)

    return get


@pytest.fixture
def scrape(get):
    async def scrape() -> Samples:
        answer = await get("/metrics")
        assert (answer.status, answer.headers.get("content-type")) == (200, TEXT_FORMAT)
        return Samples(answer.body.decode())

    return scrape


# DICOM


async def test_objects_are_counted_by_status_and_timed(managed, make_instance, scrape):
    await managed.start()
    assert await managed.send(make_instance("1.1"), make_instance("1.2")) == [0, 0]
    assert await managed.send(make_instance("1.1", pixels=b"\7\7")) == [0xB000]
    async with managed.associate() as scu:
        await scu.echo()
        mr = make_instance("1.3", sop_class="1.2.840.10008.5.1.4.1.1.4")
        with pytest.raises(DimseError):
            await scu.store(replace(mr, sop_class_uid="1.2.840.10008.5.1.4.1.1.2"))
        samples = await scrape()
    count = "harmony_operations_total"
    assert samples(count, **STORE, status_class="success", status="0000") == 2
    assert samples(count, **STORE, status_class="warning", status="B000") == 1
    assert samples(count, **STORE, status_class="failure", status="A900") == 1
    echo = {**STORE, "operation": "C-ECHO"}
    assert samples(count, **echo, status_class="success", status="0000") == 1
    duration = "harmony_operation_duration_seconds"
    assert samples(f"{duration}_bucket", **STORE, le="+Inf") == samples(f"{duration}_count", **STORE) == 4
    assert samples(f"{duration}_sum", **STORE) > 0


async def test_associations_and_their_bytes(managed, make_instance, scrape, until):
    gateway = await managed.start()
    (listener,) = gateway.assembly.dicom
    async with managed.associate() as scu:
        await scu.store(make_instance("1.1", pixels=b"\1" * 100_000))
        during = await scrape()
    async with managed.associate() as scu:
        scu.association.abort()
    for title in ("NOBODY", "NOBODY", "NOONE"):
        with pytest.raises(AssociationRejected):
            async with managed.associate(called_ae_title=title):
                pass
    await until(lambda: not listener.server.acceptor.associations)
    after = await scrape()
    assert during("harmony_associations_open", **SCP) == 1
    assert during("harmony_associations_established_total", **SCP) == 1
    assert after("harmony_associations_open", **SCP) == 0
    assert after("harmony_associations_established_total", **SCP) == 2
    assert after("harmony_associations_ended_total", **SCP, reason="released") == 1
    assert after("harmony_associations_ended_total", **SCP, reason="aborted_by_peer") == 1
    assert (
        after(
            "harmony_associations_rejected_total",
            listener=f"127.0.0.1:{managed.dicom_port}",
            reason="called-AE-title-not-recognized",
        )
        == 3
    )
    received = "harmony_association_received_bytes_total"
    assert 100_000 < during(received, **SCP) < 110_000
    assert after(received, **SCP) > during(received, **SCP)
    assert 0 < during("harmony_association_sent_bytes_total", **SCP) < 2_000


async def test_queries_and_retrieves_in_both_roles(managed, make_instance, scrape, free_port):
    destination = Services()
    destination.store(lambda request: BytesSink(lambda data: SUCCESS_OUTCOME))
    managed.scp = f'aet_table = {{ DEST = {{ host = "127.0.0.1", port = {free_port} }} }}'
    await managed.start()
    await managed.send(make_instance("1.1"), make_instance("1.2"))

    def study(context):
        model = {"00080052": {"vr": "CS", "Value": ["STUDY"]}, "0020000D": {"vr": "UI", "Value": [STUDY]}}
        return encode_data_set(model, context.transfer_syntax)

    async with managed.associate(contexts=propose_query([STUDY_ROOT.find, STUDY_ROOT.move]).contexts) as scu:
        async with contextlib.aclosing(find(scu, STUDY_ROOT.find, study)) as matches:
            assert len([match async for match in matches]) == 1
        with pytest.raises(DimseError):  # nobody is there yet
            await _all(move(scu, STUDY_ROOT.move, study, "DEST"))
        async with serve(destination, ae_title="DEST", port=free_port):
            await _all(move(scu, STUDY_ROOT.move, study, "DEST"))
    samples = await scrape()
    count = "harmony_operations_total"
    find_ = {**STORE, "operation": "C-FIND"}
    move_ = {**STORE, "operation": "C-MOVE"}
    sub_operation = {**STORE, "role": "scu"}
    assert samples(count, **find_, status_class="success", status="0000") == 1
    assert samples(count, **move_, status_class="success", status="0000") == 1
    assert samples(count, **move_, status_class="failure", status="A702") == 1
    assert samples(count, **sub_operation, status_class="success", status="0000") == 2
    assert samples("harmony_associations_failed_total", **SCP, reason="no_connection") == 1


async def _all(retrieving):
    async with retrieving as retrieval:
        async for _ in retrieval:
            pass


async def test_pacs_behind_an_endpoint(managed, make_instance, scrape):
    services = Services()
    services.store(lambda request: BytesSink(lambda data: SUCCESS_OUTCOME))
    async with serve(services, ae_title="PACS", port=0) as pacs:
        managed.more += f"""
            [pipelines.forward]
            networks = ["n"]
            endpoints = ["through"]
            backends = ["pacs"]
            [endpoints.through]
            service = "dicom_scp"
            options.local_aet = "THROUGH"
            [backends.pacs]
            service = "dicom_scu"
            options = {{ aet = "PACS", host = "127.0.0.1", port = {pacs.port} }}
        """
        await managed.start()
        async with managed.associate(called_ae_title="THROUGH") as scu:
            await scu.store(make_instance("1.1"))
            samples = await scrape()
    store = {"component": "backend", "name": "pacs", "role": "scu", "operation": "C-STORE"}
    assert samples("harmony_operations_total", **store, status_class="success", status="0000") == 1
    assert samples("harmony_associations_open", component="backend", name="pacs") == 1
    through = {**STORE, "name": "through"}
    assert samples("harmony_operations_total", **through, status_class="success", status="0000") == 1


async def test_what_peers_write_is_no_label(managed, make_instance, scrape):
    managed.scp = "accept_any_called_ae = true"
    await managed.start()
    before = await scrape()
    for number in range(5):
        async with managed.associate(calling_ae_title=f"PEER{number}", called_ae_title=f"US{number}") as scu:
            await scu.store(make_instance(f"1.{number}", study=f"2.{number}"))
    first = await scrape()
    for number in range(5, 10):
        async with managed.associate(calling_ae_title=f"PEER{number}", called_ae_title=f"US{number}") as scu:
            await scu.store(make_instance(f"1.{number}", study=f"2.{number}"))
    second = await scrape()
    assert len(before.values) < len(first.values) == len(second.values)
    assert not [labels for _, labels in second.values if "PEER" in str(labels) or "US5" in str(labels)]


async def test_backends_are_counted_by_what_the_peer_answered():
    metrics = Metrics()
    tally = metrics.backend("pacs")
    for status in (0x0000, 0x0000, 0xA700, 0xC123, 0xC456, None):
        tally.invoked(CFindRQ, status, 0.002)
    tally.invoked(CStoreRQ, 0, 0.0)
    tally.not_established(ConnectFailed("refused"))
    text, _ = await metrics.render()
    samples = Samples(text.decode())
    found = {"component": "backend", "name": "pacs", "role": "scu", "operation": "C-FIND"}
    count = "harmony_operations_total"
    assert samples(count, **found, status_class="success", status="0000") == 2
    assert samples(count, **found, status_class="failure", status="A700") == 1
    assert samples(count, **found, status_class="failure", status="Cxxx") == 2
    assert samples(count, **found, status_class="none", status="none") == 1
    failed = {"component": "backend", "name": "pacs", "reason": "no_connection"}
    assert samples("harmony_associations_failed_total", **failed) == 1


async def test_hostile_statuses_make_few_samples():
    metrics = Metrics()
    tally = metrics.backend("pacs")
    for status in range(0x10000):
        tally.invoked(CStoreRQ, status, 0.0)
    text, _ = await metrics.render()
    families = {family.name: family for family in Samples(text.decode()).families}
    counts = families["harmony_operations"].samples
    assert len(counts) < len(Status) + 2 * 16
    assert sum(sample.value for sample in counts) == 0x10000


# HTTP


async def test_requests_by_endpoint_method_and_class(managed, get, scrape):
    await managed.start()
    assert (await get("/jmix/api/jmix?studyInstanceUid=1.2")).status == 404
    assert (await get("/jmix/api/jmix")).status == 400
    assert (await get("/nowhere/1.2.3")).status == 404
    assert (await get("/health")).status == 200
    async with HTTPClient(f"http://127.0.0.1:{managed.http_port}", timeout_s=10.0) as client:
        answer = await client.request("POST", "/jmix/api/jmix", body=b"12345")
        assert answer.status == 415
        answer = await client.request("BREW", "/jmix/api/jmix")
        assert answer.status == 405
    samples = await scrape()
    count = "harmony_http_requests_total"
    assert samples(count, endpoint="jmix", method="GET", status_class="4xx") == 2
    assert samples(count, endpoint="jmix", method="POST", status_class="4xx") == 1
    assert samples(count, endpoint="", method="GET", status_class="4xx") == 1
    assert samples(count, endpoint="", method="other", status_class="4xx") == 1
    assert samples(count, endpoint="management", method="GET", status_class="2xx") == 1
    assert samples("harmony_http_request_duration_seconds_count", endpoint="jmix") == 3
    assert samples("harmony_http_sent_bytes_total", endpoint="management") > 0


async def test_openmetrics_by_accept(managed, make_instance, get):
    await managed.start()
    await managed.send(make_instance("1.1"))
    answer = await get("/metrics", {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert (answer.headers.get("content-type") or "").startswith(
        "application/openmetrics-text; version=1.0.0"
    )
    assert answer.headers.get("cache-control") == "no-store"
    names = {family.name for family in parse_openmetrics(answer.body.decode())}
    assert {"harmony_operations", "harmony_event_loop_lag_seconds", "process_cpu_seconds"} <= names


# Envelopes, outbox, storage


async def test_envelopes_and_the_outbox_by_state(forward, managed, upstream, make_instance, scrape, until):
    upstream.answers.extend([201, 400, 503, "hang"])
    forward.upstream = "retry_backoff_secs = 60\nretry_backoff_max_secs = 60"
    await forward.start()
    for number, state in enumerate(("delivered", "parked", "pending", "in_progress")):
        await forward.send(make_instance(f"1.{number}", study=f"2.{number}"))
        await upstream.next()
        await until(lambda state=state: state in [each.value for each in forward.states()])
    samples = await scrape()
    for state in ("pending", "in_progress", "delivered", "parked"):
        assert samples("harmony_outbox_deliveries", pipeline="p", state=state) == 1, state
    assert 0 <= samples("harmony_outbox_oldest_waiting_seconds", pipeline="p") < 60
    assert samples("harmony_envelopes_built_total", pipeline="p", component="jmix_builder") == 4
    free, size = (samples(f"harmony_storage_{what}_bytes", pipeline="p") for what in ("free", "size"))
    assert 0 < free <= size


async def test_envelopes_made_by_prime_are_counted(managed, make_instance, get, scrape):
    managed.builder = None
    await managed.start()
    await managed.send(make_instance("1.1"))
    assert (await get("/jmix/api/jmix/prime/1.2.3.4.5")).status == 201
    assert (await get("/jmix/api/jmix/prime/1.2.3.4.5")).status == 200
    samples = await scrape()
    assert samples("harmony_envelopes_built_total", pipeline="q", component="jmix") == 1
    assert samples("harmony_outbox_deliveries", pipeline="p", state="pending") is None


async def test_source_that_fails_is_left_out_and_counted(caplog, tmp_path):
    metrics = Metrics()

    def fails():
        raise sqlite3.OperationalError("database is locked")

    metrics.watched.sources.append(fails)
    metrics.watched.sources.append(storage_source("a", FileStore(tmp_path)))
    metrics.watched.sources.append(storage_source("b", FileStore(tmp_path)))
    metrics.watched.sources.append(storage_source("c", FileStore(tmp_path / "missing")))
    text, _ = await metrics.render()
    samples = Samples(text.decode())
    assert samples("harmony_metrics_source_errors_total") == 2
    assert [samples("harmony_storage_free_bytes", pipeline=each) is None for each in "abc"] == [
        False,
        False,
        True,
    ]
    assert text.count(b"# TYPE harmony_storage_free_bytes ") == 1
    assert "database is locked" in caplog.text


async def test_what_is_in_the_archive(managed, make_instance, scrape, until):
    gateway = await managed.start()
    (index,) = gateway.assembly.indexes.values()
    await managed.send(make_instance("1.1"), make_instance("1.2"), make_instance("2.1", study="2"))
    await until(lambda: index.progress()[1] == 0)
    samples = await scrape()
    levels = ("patient", "study", "series", "instance")
    found = [samples("harmony_archive_entities", pipeline="p", level=level) for level in levels]
    assert found[1:] == [2, 2, 3]
    assert samples("harmony_archive_index_backlog", pipeline="p") == 0


# The process


async def test_lag_of_the_event_loop(managed, scrape, until):
    gateway = await managed.start()
    durations = gateway.assembly.management.metrics.loop_lag.durations
    await until(lambda: sum(durations.counts) >= 2)
    samples = await scrape()
    assert samples("harmony_event_loop_lag_seconds_count") >= 2
    assert samples("harmony_event_loop_lag_seconds_sum") >= 0


async def test_process_metrics(managed, scrape):
    await managed.start()
    samples = await scrape()
    assert samples("process_open_fds") > 0
    assert any(name == "python_info" for name, _ in samples.values)


# Which there are


async def test_two_gateways_do_not_count_for_each_other(
    managed, tmp_path, free_ports, load_config, make_instance, scrape
):
    (tmp_path / "other").mkdir()
    dicom_port, http_port = free_ports(2)
    other = type(managed)(tmp_path / "other", dicom_port, http_port, load_config, more=managed.more)
    await managed.start()
    await other.start()
    try:
        await other.send(make_instance("1.1"))
    finally:
        await other.stop()
    samples = await scrape()
    assert samples("harmony_associations_established_total", **SCP) == 0


async def test_every_metric_is_documented(forward, managed, make_instance, get, scrape):
    managed.top = "workers = 2"
    managed.more += """
        [audit]
        enabled = true
    """
    await forward.start()
    await forward.send(make_instance("1.1"))
    await get("/health")
    told = {family.name for family in (await scrape()).families if family.name.startswith("harmony_")}
    listed = re.findall(r"^\| `(harmony_\w+?)(?:_total)?` \|", DOCUMENT, re.MULTILINE)
    assert sorted(listed) == sorted(told)


async def test_nothing_is_observed_when_nobody_can_ask(bench, make_instance):
    gateway = await bench.start()
    assert gateway.assembly.management is None
    assert [scp.observer for listener in gateway.assembly.dicom for scp in listener.scps] == [None]
    assert await bench.send(make_instance("1.1")) == [0]
