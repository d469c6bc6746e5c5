"""C-FIND, both roles: matches as they come, C-CANCEL at each point, failures by whose fault they are."""

import asyncio
import contextlib
from contextlib import aclosing

import pytest

from harmony.dimse import CCancelRQ, CFindRQ, CFindRSP, DimseError, NoPresentationContext, Outcome, Services
from harmony.dimse.cancellation import OperationInterrupted
from harmony.dimse.information_model import PATIENT_ROOT, STUDY_ROOT, accepted_context, propose_query
from harmony.dimse.query import Match, find, find_handler
from harmony.ul import AssociationAborted, ConnectionLost, DeadlineExceeded

pytestmark = pytest.mark.usefixtures("no_leaks")

IDENTIFIER = b"\x08\x00\x52\x00CS\x06\x00STUDY "


def offering(query):
    services = Services()
    services.operation(CFindRQ, [STUDY_ROOT.find], find_handler(query))
    return services


def scripted(perform):
    services = Services()
    services.operation(CFindRQ, [STUDY_ROOT.find], perform)
    return services


async def three(operation):
    for number in range(3):
        yield b"match %d " % number


async def collect(matches):
    return [match async for match in matches]


async def into(collected, matches):
    async for match in matches:
        collected.append(match)
        yield match


def pending(operation, data_set=b"match!", status=0xFF00):
    return operation.respond(CFindRSP(operation.request.message_id, status, data_set_present=True), data_set)


# Both roles


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
async def test_every_match_arrives_in_order(serving, connect, uids, count):
    asked = []

    async def query(operation):
        asked.append((operation.data_set, operation.context.transfer_syntax))
        for number in range(count):
            yield b"%08d" % number

    async with serving(offering(query)) as server, connect(server) as scu:
        matches = await collect(find(scu, STUDY_ROOT.find, IDENTIFIER))
    assert asked == [(IDENTIFIER, uids.EXPLICIT)]
    assert matches == [Match(b"%08d" % number, 0xFF00, uids.EXPLICIT) for number in range(count)]


async def test_a_match_is_there_before_the_next_is_sought(serving, connect, patience):
    go_on = asyncio.Event()

    async def query(operation):
        yield b"first "
        await go_on.wait()
        yield b"second"

    async with serving(offering(query)) as server, connect(server) as scu, patience():
        matches = find(scu, STUDY_ROOT.find, IDENTIFIER)
        assert (await anext(matches)).identifier == b"first "
        go_on.set()
        assert (await anext(matches)).identifier == b"second"
        with pytest.raises(StopAsyncIteration):
            await anext(matches)


async def test_optional_keys_that_are_not_supported(serving, connect):
    async def query(operation):
        yield Match(b"match ", 0xFF01)

    async with serving(offering(query)) as server, connect(server) as scu:
        (match,) = await collect(find(scu, STUDY_ROOT.find, IDENTIFIER))
    assert (match.identifier, match.status) == (b"match ", 0xFF01)


async def test_models_in_order_of_preference(serving, uids):
    """The peer has Study Root only; the Identifier is made for what was accepted."""
    seen = []

    def encode(context):
        seen.append((context.abstract_syntax, context.transfer_syntax))
        return IDENTIFIER

    from harmony.dimse import associate

    async with serving(offering(three)) as server:
        proposal = propose_query([PATIENT_ROOT.find, STUDY_ROOT.find])
        async with associate("127.0.0.1", server.port, contexts=proposal.contexts) as scu:
            found = await collect(find(scu, [PATIENT_ROOT.find, STUDY_ROOT.find], encode))
            assert accepted_context(scu, STUDY_ROOT.find).abstract_syntax == STUDY_ROOT.find
            with pytest.raises(NoPresentationContext, match=r"1\.2\.840\.10008\.5\.1\.4\.1\.2\.1\.1"):
                await collect(find(scu, PATIENT_ROOT.find, IDENTIFIER))
            await scu.echo()
    assert len(found) == 3
    assert seen == [("1.2.840.10008.5.1.4.1.2.2.1", uids.EXPLICIT)]


# SCU


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
async def test_a_limit_cancels_the_rest(serving, connect, limit):
    cancelled = []

    async def perform(operation):
        for _ in range(3):
            await pending(operation)
        if limit > 3:
            return None
        await operation.cancelled.wait()
        cancelled.append(operation.association.is_open)
        return Outcome(0xFE00)

    async with serving(scripted(perform)) as server, connect(server) as scu:
        matches = await collect(find(scu, STUDY_ROOT.find, IDENTIFIER, limit=limit))
        await scu.echo()
    assert len(matches) == min(limit, 3)
    assert cancelled == ([True] if limit <= 3 else [])


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_that_is_none(serving, connect, limit):
    async with serving(offering(three)) as server, connect(server) as scu:
        with pytest.raises(ValueError, match="expected at least 1"):
            await collect(find(scu, STUDY_ROOT.find, IDENTIFIER, limit=limit))


async def test_leaving_early_cancels_and_the_association_lives_on(serving, connect, patience):
    ended = []

    async def query(operation):
        try:
            yield b"first "
            await asyncio.Event().wait()
        finally:
            ended.append(operation.cancelled.is_set())

    async with serving(offering(query)) as server, connect(server) as scu, patience():
        async with aclosing(find(scu, STUDY_ROOT.find, IDENTIFIER)) as matches:
            async for _ in matches:
                break
        assert ended == [True]
        await scu.echo()


async def test_cancellation_reaches_the_wire(serving, connect, patience):
    begun, ended = asyncio.Event(), []

    async def query(operation):
        begun.set()
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            ended.append(operation.cancelled.is_set())

    async with serving(offering(query)) as server, connect(server) as scu, patience():
        task = asyncio.create_task(collect(find(scu, STUDY_ROOT.find, IDENTIFIER)))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]
        await scu.echo()


async def test_a_query_cancelled_at_any_step_leaves_a_usable_association(serving, connect, patience):
    async with serving(offering(three)) as server, connect(server) as scu, patience():
        for steps in range(60):
            task = asyncio.create_task(collect(find(scu, STUDY_ROOT.find, IDENTIFIER)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await scu.echo()
        assert len(await collect(find(scu, STUDY_ROOT.find, IDENTIFIER))) == 3


async def test_matches_that_come_after_the_cancel_are_dropped(serving, connect, patience):
    async def perform(operation):
        await pending(operation)
        await operation.cancelled.wait()
        for _ in range(50):
            await pending(operation, b"x" * 100_000)
        return Outcome(0x0000)  # too late to be cancelled

    async with serving(scripted(perform)) as server, connect(server) as scu, patience():
        matches = await collect(find(scu, STUDY_ROOT.find, IDENTIFIER, limit=1))
        assert len(matches) == 1
        await scu.echo()


async def test_a_peer_that_ignores_the_cancel_is_aborted(serving, connect, patience):
    async def perform(operation):
        await pending(operation)
        await asyncio.Event().wait()

    async with serving(scripted(perform)) as server, connect(server) as scu, patience():
        matches = await collect(find(scu, STUDY_ROOT.find, IDENTIFIER, limit=1, cancel_s=0.01))
        assert len(matches) == 1
        assert isinstance(scu.association.error, DeadlineExceeded)
        assert "C-CANCEL" in str(scu.association.error)


@pytest.mark.parametrize(
    ("status", "comment", "elements"),
    [
        (0xA700, "out of space", ()),
        (0xA900, "level", (0x00080052,)),
        (0xC001, "", ()),
        (0x0122, "", ()),
        (0x1234, "", ()),
        (0xFE00, "", ()),
    ],
)
@pytest.mark.parametrize("matches", [0, 2])
async def test_failure_statuses_raise(serving, connect, status, comment, elements, matches):
    async def perform(operation):
        for _ in range(matches):
            await pending(operation)
        raise DimseError(status, comment, elements)

    got = []
    async with serving(scripted(perform)) as server, connect(server) as scu:
        with pytest.raises(DimseError) as caught:
            await collect(into(got, find(scu, STUDY_ROOT.find, IDENTIFIER)))
        await scu.echo()
    assert caught.value.outcome == Outcome(status, comment, elements)
    assert len(got) == matches


async def test_a_final_warning_ends_the_query(serving, connect):
    async def perform(operation):
        await pending(operation)
        return Outcome(0xB001)

    async with serving(scripted(perform)) as server, connect(server) as scu:
        assert len(await collect(find(scu, STUDY_ROOT.find, IDENTIFIER))) == 1


async def test_what_peers_send_besides(serving, connect):
    """A Pending without Identifier, an Identifier with the final response."""

    async def perform(operation):
        await operation.respond(CFindRSP(operation.request.message_id, 0xFF00))
        await pending(operation, b"real  ")
        await pending(operation, b"final ", 0x0000)

    async with serving(scripted(perform)) as server, connect(server) as scu:
        matches = await collect(find(scu, STUDY_ROOT.find, IDENTIFIER))
    assert [match.identifier for match in matches] == [b"real  "]


@pytest.mark.parametrize("matches", [0, 1])
async def test_an_association_lost_is_an_error_that_tells_whether_something_came(
    serving, raw_peer, connect, matches
):
    async def perform(operation):
        for _ in range(matches):
            await pending(operation)
        await operation.exchange.writer.turn.acquire()
        operation.association.abort()

    async with serving(scripted(perform)) as server:
        with contextlib.suppress(AssociationAborted, OperationInterrupted):
            async with connect(server) as scu:
                with pytest.raises(OperationInterrupted if matches else AssociationAborted) as caught:
                    await collect(find(scu, STUDY_ROOT.find, IDENTIFIER))
    if matches:
        assert isinstance(caught.value.__cause__, AssociationAborted)


# SCP


async def test_responses_on_the_wire(serving, raw_peer):
    async with serving(offering(three)) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        for number in range(3):
            received = await peer.next()
            assert received.message == CFindRSP(7, 0xFF00, STUDY_ROOT.find, data_set_present=True)
            assert (received.context_id, received.data_set) == (5, b"match %d " % number)
        received = await peer.next()
        assert received.message == CFindRSP(7, 0x0000, STUDY_ROOT.find)
        assert received.data_set is None


@pytest.mark.parametrize("matches", [0, 1, 3])
@pytest.mark.parametrize(
    ("error", "status", "comment", "logged"),
    [
        (DimseError(0xA900, "no level"), 0xA900, "no level", 0),
        (DimseError(0xA700), 0xA700, "", 0),
        (RuntimeError("defect"), 0xC000, "unable to process", 1),
        (ConnectionLost("the archive is gone"), 0xC000, "unable to process", 0),
        (OSError("disk"), 0xC000, "unable to process", 0),
    ],
    ids=str,
)
async def test_a_query_that_fails(serving, raw_peer, quiet_errors, matches, error, status, comment, logged):
    async def query(operation):
        for _ in range(matches):
            yield b"match "
        raise error

    async with serving(offering(query)) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        for _ in range(matches):
            assert (await peer.next()).message.status == 0xFF00
        final = await peer.next()
        assert final.message == CFindRSP(7, status, STUDY_ROOT.find, comment)
        assert final.data_set is None
        await peer.echo()
    assert len(quiet_errors()) == logged


async def test_a_query_that_fails_before_it_is_a_generator(serving, raw_peer):
    def query(operation):
        raise DimseError(0xA900)

    async with serving(offering(query)) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        assert (await peer.next()).message.status == 0xA900


async def test_a_request_without_identifier(serving, raw_peer):
    async with serving(offering(three)) as server:
        peer = await raw_peer(server.port)
        bare = (
            CFindRQ(7, STUDY_ROOT.find)
            .encode()
            .replace(b"\x00\x08\x02\x00\x00\x00\x01\x00", b"\x00\x08\x02\x00\x00\x00\x01\x01")
        )
        peer.send(5, 3, bare)
        assert (await peer.next()).message.status == 0xA900
        await peer.echo()


async def test_a_match_in_another_transfer_syntax_is_never_mislabelled(serving, raw_peer, quiet_errors, uids):
    async def query(operation):
        yield Match(b"match ", transfer_syntax_uid=uids.IMPLICIT)

    async with serving(offering(query)) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        assert (await peer.next()).message.status == 0xC000
    assert len(quiet_errors()) == 1


@pytest.mark.parametrize("before", [0, 1, 5])
async def test_a_cancel_interrupts_a_query_that_waits(serving, raw_peer, patience, before):
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def query(operation):
        try:
            for _ in range(before):
                yield b"match "
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with serving(offering(query)) as server, patience():
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        for _ in range(before):
            assert (await peer.next()).message.status == 0xFF00
        await waiting.wait()
        peer.send_message(5, CCancelRQ(7))
        assert (await peer.next()).message == CFindRSP(7, 0xFE00, STUDY_ROOT.find)
        await closed.wait()
        await peer.echo()


async def test_a_cancel_together_with_the_request_comes_before_any_match(serving, raw_peer):
    """Both are read in one turn; the handler begins afterwards."""
    async with serving(offering(three)) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        peer.send_message(5, CCancelRQ(7))
        statuses = []
        while not statuses or statuses[-1] == 0xFF00:
            statuses.append((await peer.next()).message.status)
    assert statuses[-1] == 0xFE00
    assert len(statuses) <= 2


async def test_a_cancel_stops_a_query_that_never_waits(serving, raw_peer, patience):
    """Within one response of the moment in which it was read: the source is asked no more afterwards."""
    seen = []

    async def query(operation):
        while True:
            seen.append(operation.cancelled.is_set())
            yield b"match "

    async with serving(offering(query)) as server, patience():
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        await peer.next()
        peer.send_message(5, CCancelRQ(7))
        while (received := await peer.next()).message.status == 0xFF00:
            pass
        assert received.message.status == 0xFE00
    assert not any(seen)


async def test_a_source_that_will_not_be_interrupted_is_cancelled_afterwards(serving, raw_peer, patience):
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def query(operation):
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await go_on.wait()
        yield b"match "
        yield b"never "

    async with serving(offering(query)) as server, patience():
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        await waiting.wait()
        peer.send_message(5, CCancelRQ(7))
        go_on.set()
        assert (await peer.next()).message.status == 0xFF00
        assert (await peer.next()).message.status == 0xFE00


@pytest.mark.parametrize("before", [0, 1])
async def test_an_abort_closes_the_query(serving, raw_peer, patience, before):
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def query(operation):
        try:
            for _ in range(before):
                yield b"match "
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with serving(offering(query)) as server, patience():
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        await waiting.wait()
        peer.association.abort()
        await closed.wait()


async def test_a_slow_reader_holds_the_query(serving, raw_peer, patience):
    """Back-pressure: the source is not asked for what nobody takes."""
    asked = []

    async def query(operation):
        for _ in range(200):
            asked.append(operation.association)
            yield b"x" * 1_000_000

    async with serving(offering(query)) as server, patience():
        peer = await raw_peer(server.port)
        peer.association.hold_reading()
        peer.send_message(5, CFindRQ(7, STUDY_ROOT.find), IDENTIFIER)
        while not (asked and asked[0].write_blocked):  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)
        before = len(asked)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(asked) == before < 200
        peer.association.continue_reading()
        for _ in range(200):
            assert (await peer.next()).message.status == 0xFF00
        assert (await peer.next()).message.status == 0x0000


async def test_a_query_through_a_query(serving, connect, patience):
    """A proxy: C-CANCEL and abort pass through to the archive behind it."""
    begun, ended = asyncio.Event(), []

    async def behind(operation):
        try:
            yield b"first "
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.append(operation.cancelled.is_set())

    async with serving(offering(behind)) as archive, connect(archive) as inner:

        def query(operation):
            return find(inner, STUDY_ROOT.find, operation.data_set)

        async with serving(offering(query)) as proxy, connect(proxy) as scu, patience():
            assert len(await collect(find(scu, STUDY_ROOT.find, IDENTIFIER, limit=1))) == 1
            await scu.echo()
            await inner.echo()
    assert ended == [True]
