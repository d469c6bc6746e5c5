"""Sinks by themselves, and AsyncSink on a real association whose sender is faster than the consumer."""

import asyncio
import gc

import pytest

from harmony.dimse import AsyncSink, BytesSink, CStoreRQ, DimseError, Instance, Outcome, Services
from harmony.dimse.sink import CHUNK_OVERHEAD, COLLECTED_DATA_LIMIT, Collector, DataStream
from harmony.ul import AssociationAborted
from harmony.ul.held import HELD

pytestmark = pytest.mark.usefixtures("no_leaks")


class Sender:
    """Flow control that counts."""

    def __init__(self):
        self.holds = 0

    def hold_reading(self):
        assert self.holds == 0
        self.holds += 1

    def continue_reading(self):
        assert self.holds == 1
        self.holds -= 1


def write(sink, data):
    """As the exchange does: the view is not valid afterwards."""
    buffer = bytearray(data)
    view = memoryview(buffer)
    sink.write(view)
    view.release()
    buffer[:] = b"?" * len(buffer)


# BytesSink and Collector


def test_bytes_sink_passes_on_what_came():
    got = []
    sink = BytesSink(lambda data: got.append(data) or Outcome(0xB000))
    for piece in (b"ab", b"", b"cd"):
        write(sink, piece)
    assert sink.finish() == Outcome(0xB000)
    assert got == [b"abcd"]


def test_bytes_sink_refuses_what_is_too_much():
    sink = BytesSink(lambda data: Outcome(0), maximum_bytes=4)
    write(sink, b"1234")
    with pytest.raises(DimseError, match="larger than 4 bytes") as caught:
        write(sink, b"5")
    assert caught.value.status == 0xA700
    sink.abort()


@pytest.mark.parametrize(("extra", "expected"), [(0, COLLECTED_DATA_LIMIT), (1, None)])
def test_collector_gives_up_beyond_its_limit_and_forgets(extra, expected):
    got = []
    collector = Collector(got.append)
    for size in (COLLECTED_DATA_LIMIT - 1, 1, extra, 0):
        write(collector, bytes(size))
    collector.complete()
    assert [data and len(data) for data in got] == [expected]


# AsyncSink


async def test_the_consumer_gets_the_bytes_and_its_result_is_the_answer():
    got = []

    async def consume(stream):
        async for chunk in stream:
            got.append(chunk)
        return Outcome(0xB006)

    sink = AsyncSink(Sender(), consume)
    write(sink, b"ab")
    await asyncio.sleep(0)
    write(sink, b"cd")
    assert await sink.finish() == Outcome(0xB006)
    assert b"".join(got) == b"abcd"


async def test_a_consumer_that_returns_nothing_means_success():
    async def consume(stream):
        async for _ in stream:
            pass

    sink = AsyncSink(Sender(), consume)
    assert (await sink.finish()).status == 0


async def test_the_sender_is_held_above_the_limit_and_let_go_at_half_of_it():
    sender, step = Sender(), asyncio.Semaphore(0)

    async def consume(stream):
        async for _ in stream:
            await step.acquire()

    sink = AsyncSink(sender, consume, maximum_buffered_bytes=10 * (100 + CHUNK_OVERHEAD))
    held = []
    for _ in range(12):
        write(sink, bytes(100))
        held.append(sender.holds)
    assert held == [0] * 10 + [1, 1]
    for _ in range(12):
        step.release()
        for _ in range(3):
            await asyncio.sleep(0)
        held.append(sender.holds)
    assert held[12:] == [1] * 5 + [0] * 7
    assert (await sink.finish()).status == 0


async def test_fragments_of_two_bytes_are_bounded_as_well():
    sender = Sender()
    sink = AsyncSink(sender, lambda stream: asyncio.Event().wait(), maximum_buffered_bytes=1 << 16)
    count = 0
    while not sender.holds:
        write(sink, b"xx")
        count += 1
    assert count <= (1 << 16) // CHUNK_OVERHEAD + 1
    sink.abort()


@pytest.mark.parametrize("end", ["returns", "raises"])
async def test_a_consumer_that_stops_early_drops_the_rest_and_lets_go(end):
    sender, stop = Sender(), asyncio.Event()

    async def consume(stream):
        await stop.wait()
        if end == "raises":
            raise DimseError(0xA900, "wrong class")
        return Outcome(0xB000)

    sink = AsyncSink(sender, consume, maximum_buffered_bytes=1)
    write(sink, b"abc")
    assert sender.holds == 1
    stop.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert sender.holds == 0
    write(sink, b"dropped")
    assert sender.holds == 0
    if end == "raises":
        with pytest.raises(DimseError, match="wrong class"):
            await sink.finish()
    else:
        assert await sink.finish() == Outcome(0xB000)


@pytest.mark.parametrize("begun", [False, True])
async def test_abort_cancels_the_consumer_and_lets_go(begun):
    sender, cancelled = Sender(), []

    async def consume(stream):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(stream)
            raise

    sink = AsyncSink(sender, consume, maximum_buffered_bytes=1)
    if begun:
        await asyncio.sleep(0)
    write(sink, b"abc")
    sink.abort()
    for _ in range(3):
        await asyncio.sleep(0)
    assert sender.holds == 0
    assert len(cancelled) == begun


async def test_a_failure_that_nobody_asks_for_is_not_reported_by_the_loop(caplog):
    """The association ended before finish(): the consumer's own error has no one to go to."""

    async def consume(stream):
        raise RuntimeError("upstream")

    sink = AsyncSink(Sender(), consume)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sink.abort()
    del sink
    gc.collect()
    assert caplog.records == []


# DataStream without an AsyncSink


async def test_a_stream_that_fails_ends_with_the_error_at_once():
    sender = Sender()
    stream = DataStream(sender, 10)
    stream.put(memoryview(b"0123456789"))
    assert sender.holds == 1
    stream.fail(AssociationAborted("gone"))
    assert sender.holds == 0
    for _ in range(2):
        with pytest.raises(AssociationAborted, match="gone"):
            await anext(stream)


async def test_a_stream_fails_while_it_is_waited_for(patience):
    stream = DataStream(Sender(), 10)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    stream.fail(AssociationAborted("gone"))
    async with patience():
        with pytest.raises(AssociationAborted, match="gone"):
            await waiting


# On an association


async def test_r26_a_slow_consumer_stalls_the_sender_and_memory_stays_bounded(
    serving, connect, uids, patience
):
    services, go_on, got, sinks = Services(), asyncio.Event(), [], []
    size, limit = 30_000_000, 500_000

    async def consume(stream):
        async for chunk in stream:
            got.append(len(chunk))
            if len(got) == 1:
                await go_on.wait()

    class Watched(AsyncSink):
        stored = 0

        def write(self, fragment):
            self.stored += len(fragment)
            super().write(fragment)

    def open_sink(request):
        sinks.append(Watched(request.association, consume, maximum_buffered_bytes=limit))
        return sinks[-1]

    services.store(open_sink)
    async with serving(services) as server, connect(server) as scu:
        (association,) = server.acceptor.associations
        held = asyncio.Event()
        hold = association.hold_reading
        association.hold_reading = lambda: (hold(), held.set())
        blocked = asyncio.Event()
        pause = scu.association.pause_writing
        scu.association.pause_writing = lambda: (pause(), held.is_set() and blocked.set())
        storing = asyncio.create_task(scu.store(Instance(uids.CT, "1.2.3", uids.EXPLICIT, bytes(size))))
        async with patience():
            await held.wait()
            # The sender stops as well, once the socket buffers are full.
            if not scu.association.write_blocked:
                await blocked.wait()
        assert sinks[0].stored <= limit + 262144 + got[0]
        assert not storing.done()
        go_on.set()
        async with patience():
            assert (await storing).status == 0
        await scu.echo()
    assert sum(got) == size


async def test_a_peer_that_vanishes_cancels_the_consumer(serving, raw_peer, store, uids, patience):
    cancelled, started = asyncio.Event(), asyncio.Event()

    async def consume(stream):
        try:
            async for _ in stream:
                started.set()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    services, ends = Services(), []
    services.store(lambda request: AsyncSink(request.association, consume))
    services.on_association(ended=lambda _, error: ends.append(error))
    async with serving(services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, uids.CT, "1.2.3"))
        peer.send(3, 0, b"half")
        async with patience():
            await started.wait()
            peer.association.abort()
            await cancelled.wait()
    assert isinstance(ends[0], AssociationAborted)


async def test_a_consumer_that_fails_early_is_the_answer_after_the_last_byte(serving, raw_peer, uids):
    async def consume(stream):
        raise DimseError(0xA700, "upstream is full")

    services = Services()
    services.store(lambda request: AsyncSink(request.association, consume))
    async with serving(services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, uids.CT, "1.2.3"))
        peer.send(3, 0, b"half")
        assert peer.messages == []
        peer.send(3, 2, b"rest")
        answer = (await peer.next()).message
        assert (answer.status, answer.error_comment) == (0xA700, "upstream is full")
        await peer.echo()


# What all of them hold together


@pytest.fixture
def account(monkeypatch):
    """That of the process, with room for ten bytes and the overhead of chunks; empty again at the end."""
    monkeypatch.setattr(HELD, "limit_bytes", HELD.held_bytes + 10)
    before = HELD.held_bytes
    yield HELD
    gc.collect()
    assert HELD.held_bytes == before


def test_a_bytes_sink_is_refused_at_the_limit_of_all(account):
    first, second = BytesSink(lambda data: Outcome(0)), BytesSink(lambda data: Outcome(0))
    write(first, b"12345678")
    with pytest.raises(DimseError, match="too much memory") as caught:
        write(second, b"abc")
    assert caught.value.status == 0xA700
    assert first.finish() == Outcome(0)
    third = BytesSink(lambda data: Outcome(0))
    write(third, b"abc")
    third.abort()


def test_a_request_is_not_collected_at_the_limit_of_all_and_a_response_is(account):
    got = []
    request, response = Collector(got.append, room=account), Collector(got.append)
    write(response, b"123456789 and more")
    write(request, b"abc")
    request.complete()
    response.complete()
    assert got == [None, b"123456789 and more"]
    left = Collector(got.append, room=account)
    write(left, b"abc")
    left.abort()


async def test_a_stream_holds_its_sender_at_the_limit_of_all_and_goes_on(account):
    sender = Sender()
    stream = DataStream(sender, 1 << 20)
    for piece in (b"0123456789", b"abc"):
        stream.put(memoryview(piece))
        assert sender.holds == 1
        assert await anext(stream) == piece
        assert sender.holds == 0  # nothing of its own waits: it may bring more, whatever the others do
    stream.put(memoryview(b"left"))
    stream.fail(ValueError("nobody wants it"))
    assert sender.holds == 0


async def test_what_a_consumer_leaves_is_not_held(account):
    async def consume(stream):
        await anext(stream)
        return Outcome(0xC000)

    sink = AsyncSink(Sender(), consume)
    for piece in (b"one", b"two"):
        write(sink, piece)
    assert (await sink.finish()).status == 0xC000
