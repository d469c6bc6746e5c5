"""Between sub-operations and a consumer: order, answers, back-pressure, and what is left when either side goes."""

import asyncio

import pytest

from harmony.dimse import CStoreRQ, DimseError, Outcome
from harmony.dimse.operation import StoreRequest
from harmony.gateway.arrivals import Arrivals
from harmony.ul import AssociationAborted
from harmony.ul.negotiation import PresentationContext

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"


class Sender:
    """As much of an association as is looked at."""

    def __init__(self):
        self.holds = 0
        self.error = None

    def hold_reading(self):
        self.holds += 1

    def continue_reading(self):
        self.holds -= 1


def request(uid, sender=None):
    context = PresentationContext(1, CT, EXPLICIT, False, True)
    return StoreRequest(CStoreRQ(1, CT, uid), context, sender or Sender())


def send(arrivals, uid, *pieces, sender=None, complete=True):
    """The sink, and the answer when the data set is complete."""
    sink = arrivals.open_sink(request(uid, sender))
    for piece in pieces:
        sink.write(memoryview(piece))
    return sink, sink.finish() if complete else None


async def read(instance):
    return [piece async for piece in instance.data]


@pytest.fixture
async def arrivals():
    return Arrivals(maximum_buffered_bytes=1000)


async def test_one_after_the_other(arrivals):
    _, first = send(arrivals, "1", b"ab", b"c")
    _, second = send(arrivals, "2", b"de")
    instance = await anext(arrivals)
    assert (instance.sop_class_uid, instance.sop_instance_uid) == (CT, "1")
    assert instance.transfer_syntax_uid == EXPLICIT
    assert await read(instance) == [b"ab", b"c"]
    assert first.result() == Outcome(0)  # its data is read: the next may come
    assert not second.done()
    assert await read(await anext(arrivals)) == [b"de"]
    assert second.result() == Outcome(0)
    arrivals.end()
    with pytest.raises(StopAsyncIteration):
        await anext(arrivals)
    assert arrivals.handed_over == 2


async def test_data_comes_while_it_is_read(arrivals):
    waiting = asyncio.ensure_future(anext(arrivals))
    await asyncio.sleep(0)
    sink, _ = send(arrivals, "1", complete=False)
    instance = await waiting
    reading = asyncio.ensure_future(read(instance))
    await asyncio.sleep(0)
    sink.write(memoryview(b"ab"))
    await asyncio.sleep(0)
    sink.write(memoryview(b"cd"))
    answer = sink.finish()
    assert await reading == [b"ab", b"cd"]
    assert answer.result() == Outcome(0)


async def test_the_sender_waits_when_the_buffer_is_full(arrivals):
    sender, other = Sender(), Sender()
    sink, _ = send(arrivals, "1", b"a" * 600, sender=sender, complete=False)
    send(arrivals, "2", b"b" * 2000, sender=other)
    assert (sender.holds, other.holds) == (0, 1)
    sink.write(memoryview(b"a" * 600))
    assert sender.holds == 1
    instance = await anext(arrivals)
    await anext(instance.data)
    await anext(instance.data)
    assert (sender.holds, other.holds) == (0, 1)
    await read(await anext(arrivals))
    assert other.holds == 0


async def test_what_is_not_read_is_dropped_and_answered(arrivals):
    sender = Sender()
    sink, _ = send(arrivals, "1", b"a" * 2000, sender=sender, complete=False)
    send(arrivals, "2", b"b")
    first = await anext(arrivals)
    second = await anext(arrivals)
    assert second.sop_instance_uid == "2"
    assert sender.holds == 0
    sink.write(memoryview(b"a" * 5000))
    assert sender.holds == 0
    assert sink.finish().result() == Outcome(0)
    with pytest.raises(ValueError, match="left behind"):
        await read(first)


async def test_closing_refuses_everything(arrivals):
    sender = Sender()
    first, _ = send(arrivals, "1", b"a" * 2000, sender=sender, complete=False)
    _, second = send(arrivals, "2", b"b")
    await anext(arrivals)
    arrivals.close()
    assert sender.holds == 0
    assert first.finish().result().status == second.result().status == 0xA700
    with pytest.raises(DimseError, match="cancelled"):
        arrivals.open_sink(request("3"))
    with pytest.raises(StopAsyncIteration):
        await anext(arrivals)


async def test_an_association_that_ends_fails_its_instance_at_once(arrivals):
    sender = Sender()
    sink, _ = send(arrivals, "1", b"a", sender=sender, complete=False)
    instance = await anext(arrivals)
    assert await anext(instance.data) == b"a"
    reading = asyncio.ensure_future(read(instance))
    await asyncio.sleep(0)
    sender.error = AssociationAborted("gone")
    sink.abort()
    with pytest.raises(AssociationAborted, match="gone"):
        await reading


async def test_an_instance_that_is_lost_before_its_turn_never_gets_it(arrivals):
    first, _ = send(arrivals, "1", b"a", complete=False)
    send(arrivals, "2", b"b")
    first.abort()
    assert (await anext(arrivals)).sop_instance_uid == "2"
    arrivals.end()
    with pytest.raises(StopAsyncIteration):
        await anext(arrivals)
