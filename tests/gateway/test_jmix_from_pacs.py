"""The jmix endpoint in front of a PACS: a study comes over DIMSE, whole, or the answer says why it did not.

The PACS is the DICOM endpoint of the same gateway; where it has to misbehave, its archive does.
"""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from harmony.dimse import Instance
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.http.client import HTTPClient

STUDY = "1.2.3.4.5"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
WAIT_S = 30.0


@pytest.fixture
def pacs(bench):
    """The bench, not started: its archive is the PACS behind a second jmix endpoint. bench.pacs: options of the
    backend."""
    bench.builder = None

    def behind(port: int, options: str = "") -> str:
        return f"""
            [pipelines.r]
            networks = ["n"]
            endpoints = ["other"]
            backends = ["pacs"]
            [backends.pacs]
            service = "dicom_scu"
            connection.host = "127.0.0.1"
            connection.port = {port}
            [backends.pacs.options]
            aet = "GATEWAY"
            {options}
            [endpoints.other]
            service = "jmix"
            options.path_prefix = "/other"
            options.store_dir = "{bench.folder}/other"
        """

    bench.more = behind(bench.dicom_port)
    bench.behind = behind
    return bench


async def ask(bench, path: str = f"?studyInstanceUid={STUDY}"):
    client = HTTPClient(f"http://127.0.0.1:{bench.http_port}/other/api/jmix", timeout_s=WAIT_S)
    try:
        return await client.request("GET", path)
    finally:
        await client.aclose()


@pytest.fixture
def left(bench) -> Callable[[], list[str]]:
    """left(): everything in the endpoint's store but its index."""

    def left() -> list[str]:
        return sorted(
            path.name
            for path in (bench.folder / "other").rglob("*")
            if path.name != "incoming" and not path.name.startswith("jmix-index")
        )

    return left


def answering(bench, monkeypatch, instances: Callable[[], AsyncIterator[Any]]) -> None:
    """Let the archive of the PACS answer a retrieve with these."""
    archive, _ = bench.gateway.assembly.backends

    async def retrieve(_: object) -> Selection:
        return Selection(instances())

    monkeypatch.setattr(archive, "retrieve", retrieve)


async def test_study_comes_from_the_pacs(pacs, make_instance, read_envelope):
    sent = [make_instance(f"1.{size}", pixels=bytes(size)) for size in (2, 1000, 100_000, 1_300_000)]
    await pacs.start()
    await pacs.send(*sent, make_instance("9.1", study="1.2.9"))
    answer = await ask(pacs)
    assert (answer.status, answer.headers.get("content-type")) == (200, "application/zip")
    assert read_envelope(answer.body).data == {each.sop_instance_uid: each.data for each in sent}
    assert (await ask(pacs)).body == answer.body
    prime = await ask(pacs, "/prime/1.2.9")
    assert (prime.status, json.loads(prime.body)["status"]) == (201, "created")


async def test_study_that_the_pacs_does_not_have(pacs, left):
    await pacs.start()
    for path in ("?studyInstanceUid=1.2.99", "/prime/1.2.99"):
        answer = await ask(pacs, path)
        assert (answer.status, list(json.loads(answer.body))) == (404, ["error"])
    assert left() == []


async def test_envelope_by_id_does_not_ask_the_pacs(pacs, free_port):
    pacs.more = pacs.behind(free_port)
    await pacs.start()
    assert (await ask(pacs, "/00000000-0000-4000-8000-000000000000")).status == 404
    assert (await ask(pacs, "/00000000-0000-4000-8000-000000000000/manifest")).status == 404


async def test_pacs_that_is_down(pacs, free_port, left):
    pacs.more = pacs.behind(free_port)
    await pacs.start()
    answer = await ask(pacs)
    assert (answer.status, list(json.loads(answer.body))) == (502, ["error"])
    assert left() == []


async def test_pacs_that_rejects_us(pacs, left):
    pacs.scp = 'calling_aets = ["SENDER"]'
    await pacs.start()
    assert (await ask(pacs)).status == 502
    assert left() == []


async def test_pacs_that_is_silent(pacs, left):
    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent.append(writer)

    silent: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    pacs.more = pacs.behind(server.sockets[0].getsockname()[1], "timeout_secs = 1")
    await pacs.start()
    assert (await ask(pacs)).status == 504
    assert left() == []
    for writer in silent:
        writer.close()
    server.close()


async def test_pacs_that_cannot_send_all(pacs, make_instance, left, monkeypatch):
    await pacs.start()
    instances = [make_instance(f"1.{number}") for number in range(3)]
    await pacs.send(*instances)

    async def some():
        yield instances[0]
        yield Unavailable("1.1")
        yield instances[2]

    answering(pacs, monkeypatch, some)
    answer = await ask(pacs)
    assert answer.status == 502
    assert json.loads(answer.body) == {"error": "1 of 3 instances of the study could not be retrieved"}
    assert left() == []


async def test_pacs_that_has_fewer_than_it_said(pacs, make_instance, left, monkeypatch):
    await pacs.start()
    instances = [make_instance(f"1.{number}") for number in range(3)]
    await pacs.send(*instances)

    async def some():
        yield instances[0]

    answering(pacs, monkeypatch, some)
    answer = await ask(pacs)
    assert answer.status == 502
    assert json.loads(answer.body) == {"error": "2 of 3 instances of the study could not be retrieved"}
    assert left() == []


@pytest.mark.parametrize("within", [True, False])
async def test_pacs_that_dies(pacs, make_instance, left, monkeypatch, within):
    """Between two instances, or within one."""
    await pacs.start()
    instances = [make_instance("1.1"), make_instance("1.2", pixels=bytes(2_000_000))]
    await pacs.send(*instances)
    (listener,) = pacs.gateway.assembly.dicom
    dying: list[asyncio.Task[None]] = []

    async def die() -> None:
        dying.append(asyncio.create_task(listener.stop(0.0)))
        await asyncio.Event().wait()

    async def half():
        yield instances[1].data[:1_000_000]
        await die()

    async def some():
        yield instances[0]
        if within:
            yield replace(instances[1], data=half())
        else:
            await die()

    answering(pacs, monkeypatch, some)
    assert (await ask(pacs)).status == 502
    await asyncio.gather(*dying)
    assert left() == []


async def test_client_that_leaves_cancels_at_the_pacs(pacs, make_instance, left, monkeypatch, until):
    await pacs.start()
    await pacs.send(make_instance("1.1"), make_instance("1.2"))
    sent_one, cancelled = asyncio.Event(), asyncio.Event()

    async def some():
        try:
            yield make_instance("1.1")
            sent_one.set()
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    answering(pacs, monkeypatch, some)
    _, writer = await asyncio.open_connection("127.0.0.1", pacs.http_port)
    writer.write(f"GET /other/api/jmix?studyInstanceUid={STUDY} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    async with asyncio.timeout(WAIT_S):
        await sent_one.wait()
        writer.close()
        await cancelled.wait()
    await until(lambda: left() == [])
    monkeypatch.undo()
    assert (await ask(pacs)).status == 200


async def test_simultaneous_requests_retrieve_once(pacs, make_instance, monkeypatch):
    await pacs.start()
    await pacs.send(make_instance("1.1"))
    retrieves = []

    async def some():
        retrieves.append(1)
        yield make_instance("1.1")

    answering(pacs, monkeypatch, some)
    answers = await asyncio.gather(*(ask(pacs) for _ in range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    assert len({answer.body for answer in answers}) == 1
    assert len(retrieves) == 1


async def test_instance_of_300_mb_needs_no_memory(pacs, make_instance, monkeypatch):
    """On all the way: archive, C-GET on both sides, envelope. Its header is in the index, so that it is announced."""
    await pacs.start()
    await pacs.send(make_instance("1.1"))
    header, piece, count = make_instance("1.1").data[:-4], bytes(128 * 1024), 2400

    async def pixels():
        yield header
        for _ in range(count):
            yield piece

    async def some():
        yield Instance(CT, "1.1", IMPLICIT, pixels())

    answering(pacs, monkeypatch, some)
    tracemalloc.start()
    try:
        answer = await ask(pacs, f"/prime/{STUDY}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status == 201
    assert peak < 16 << 20
    (envelope,) = (pacs.folder / "other").glob("*/*.zip")
    assert envelope.stat().st_size > count * len(piece)
