"""Peers that hold on to what they have been given: a byte now and then, silence, a handshake that does not go on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
from collections.abc import Iterator

from harmony.dimse import Instance
from tests.faults.peers import Peer, crowd, gather
from tests.faults.program import make_instance
from tests.faults.trial import DICOM_DEADLINES, Trial, fault
from tests.faults.wire import associate_rq, c_find_rq, c_get_rq, c_store_rq
from tests.faults.witness import Sender, instance_of

EVERY_S = 0.1
HEAD = b"GET /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 5000 + b"\r\n\r\n"
BODY_BEGINS = (
    b"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
    b'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n\r\n--b\r\n'
)
CLIENT_HELLO = bytes.fromhex("16 0301 0200 01 0001fc 0303") + bytes(100)
"""The beginning of a record that says it is 512 bytes long (RFC 8446 §5.1)."""


@fault()
async def slow_loris_dicom(trial: Trial) -> None:
    """A-ASSOCIATE-RQ, and PDUs of an association, a byte at a time: ended by ARTIM and by pdu_timeout_secs."""
    port, count = trial.gateway.port, trial.many(200, 20)
    store = c_store_rq("2.25.1", bytes(instance_of(1).data))

    async def dribble(number: int) -> None:
        if number % 2:
            peer = await Peer.connect(port)
            await peer.dribble(associate_rq(), every_s=EVERY_S)
        else:
            peer = await Peer.associated(port)
            peer.send(store[: 50 + number])
            await peer.dribble(store[50 + number : 2000], every_s=EVERY_S)
        trial.injected += 1
        peer.close()

    await crowd(count, dribble, at_once=count)


@fault()
async def slow_loris_http(trial: Trial) -> None:
    """Heads of requests a byte at a time, ended after ten seconds; bodies that do the same."""
    port, count = trial.gateway.http_port, trial.many(200, 20)

    async def dribble(number: int) -> None:
        peer = await Peer.connect(port)
        data = HEAD if number % 2 else BODY_BEGINS + bytes(5000)
        dribbling = asyncio.create_task(peer.dribble(data, every_s=EVERY_S))
        await asyncio.wait([dribbling], timeout=trial.many(15, 3))
        trial.injected += 1
        if number % 2 and not trial.short:
            assert dribbling.done(), "a head that takes 15 s"
        peer.close()
        await dribbling

    await crowd(count, dribble, at_once=count)


@fault(scp=DICOM_DEADLINES + "idle_timeout_secs = 3")
async def half_open(trial: Trial) -> None:
    """Peers whose host is gone, without a FIN: before, during and after their request, on both ports."""
    dicom, web = trial.gateway.port, trial.gateway.http_port
    store = c_store_rq("2.25.1", bytes(instance_of(1).data))
    search = c_find_rq("1.2.9.1")

    async def leave(peer: Peer, said: bytes) -> None:
        peer.send(said)
        await peer.writer.drain()
        try:
            peer.vanish()
        except PermissionError:
            peer.close()  # it takes root to leave without a word
        trial.injected += 1

    for _ in range(trial.many(40, 4)):
        await leave(await Peer.connect(dicom), b"")
        await leave(await Peer.connect(dicom), associate_rq()[:40])
        for said in (b"", store[:-100], search):
            await leave(await Peer.associated(dicom), said)
        if trial.short:
            continue  # the deadlines of HTTP are fixed, and longer
        for said in (b"", HEAD[:100], BODY_BEGINS + b"abc"):
            await leave(await Peer.connect(web), said)


@fault(tls=True, rss_growth_bytes=256 << 20)
async def frozen_handshake(trial: Trial) -> None:
    """TLS connections to both ports, beside a flood, half of them silent, half stuck within their first record; twice.

    Each costs 60 KB while it is there. The allocator keeps some of that, less each time.
    """
    count = trial.many(1000, 40)
    with _descriptors():
        await _freeze(trial, count)
        rss = trial.gateway.rss_bytes
        await _freeze(trial, count)
    grown = trial.gateway.rss_bytes - rss
    assert grown < 96 << 20, f"{grown >> 20} MiB more with each {2 * count} handshakes"


async def _freeze(trial: Trial, count: int) -> None:
    peers = await gather(Peer.connect(trial.tls_port) for _ in range(count))
    peers += await gather(Peer.connect(trial.tls_http_port) for _ in range(count))
    for peer in peers[::2]:
        peer.send(CLIENT_HELLO)
    trial.injected += len(peers)
    await _flood(trial, trial.many(1000, 100))
    if not trial.short:
        await asyncio.gather(*(peer.until_cut() for peer in peers))
    for peer in peers:
        peer.close()


@fault(scp=DICOM_DEADLINES + "max_associations = 1200\nidle_timeout_secs = 600")
async def idle_crowd(trial: Trial) -> None:
    """A thousand associations on which nothing happens, beside a flood of four senders without a pause."""
    count = trial.many(1000, 150)
    peers: list[Peer] = []

    async def join(_: int) -> None:
        peers.append(await Peer.associated(trial.gateway.port))

    with _descriptors():
        try:
            await crowd(count, join)
            trial.injected = len(peers)
            await _flood(trial, trial.many(4000, 300))
            assert all(not peer.reader.at_eof() for peer in peers), "an idle association was ended"
        finally:
            for peer in peers:
                peer.close()


@contextlib.contextmanager
def _descriptors() -> Iterator[None]:
    """As many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _flood(trial: Trial, objects: int) -> None:
    """So many objects, from four senders without a pause."""
    numbers = itertools.count(1_000_000)
    flood = [Sender(trial.gateway.port, numbers, pace_s=0.0) for _ in range(4)]
    trial.senders += flood
    async with asyncio.TaskGroup() as group:
        for sender in flood:
            group.create_task(sender.run())
        await trial.served(objects)
        for sender in flood:
            sender.stopping.set()


@fault(rss_growth_bytes=256 << 20)
async def stops_reading(trial: Trial) -> None:
    """Peers that ask for much and read nothing of it, over C-GET and WADO-RS, and a second time as many.

    Each costs up to 3 MiB while it is there. The allocator keeps what that took, and does not take it twice.
    """
    study, objects = "1.2.8.1", 24
    await _store_all(
        trial, [make_instance(900_000 + n, study=study, size_bytes=1_000_000) for n in range(objects)]
    )
    count = trial.many(40, 6)
    await _ask_and_not_read(trial, study, count)
    rss = trial.gateway.rss_bytes
    await _ask_and_not_read(trial, study, count)
    grown = trial.gateway.rss_bytes - rss
    assert grown < 64 << 20, f"{grown >> 20} MiB more with each {2 * count} peers that do not read"


async def _ask_and_not_read(trial: Trial, study: str, count: int) -> None:
    descriptors = trial.gateway.descriptors
    dicom = await gather(Peer.associated(trial.gateway.port, receive_buffer_bytes=4096) for _ in range(count))
    web = await gather(Peer.connect(trial.gateway.http_port, receive_buffer_bytes=4096) for _ in range(count))
    for peer in [*dicom, *web]:
        peer.writer.transport.pause_reading()
    for peer in dicom:
        peer.send(c_get_rq(study))
    for peer in web:
        peer.send(
            f"GET /dicom-web/studies/{study} HTTP/1.1\r\nHost: localhost\r\n"
            'Accept: multipart/related; type="application/dicom"; transfer-syntax=*\r\n\r\n'.encode()
        )
    trial.injected += 2 * count
    await trial.served(trial.many(200, 30))
    for peer in web:
        peer.close()  # a minute would have to pass without a byte
    await trial.until(  # pdu_timeout_secs
        lambda: trial.gateway.descriptors < descriptors + count, "associations ended that take nothing"
    )
    for peer in dicom:
        peer.close()


async def _store_all(trial: Trial, instances: list[Instance]) -> None:
    sender = Sender(trial.gateway.port, itertools.count())
    async with sender.association() as scu:
        for instance in instances:
            assert (await scu.store(instance)).status == 0x0000
