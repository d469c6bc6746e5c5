"""Both sides of DIMSE on real associations: order, failure, cancellation, pace. Numbers R.. are robustness cases.

The service under test is the acceptor; the peer is a `RawPeer`, which sends anything, or our own SCU.
"""

import asyncio
import socket
import struct

import pytest

from harmony.dimse import (
    CCancelRQ,
    CEchoRQ,
    CFindRQ,
    CFindRSP,
    CGetRQ,
    CGetRSP,
    CStoreRQ,
    DimseError,
    Instance,
    Outcome,
    Services,
    Status,
)
from harmony.dimse.command import NActionRQ, NActionRSP, NEventReportRQ, NGetRQ
from harmony.ul import (
    AssociationAborted,
    AssociationReleased,
    ConnectionLost,
    DeadlineExceeded,
    RoleSelection,
    propose_contexts,
)
from harmony.ul.transport import RECEIVE_BUFFER_BYTES

pytestmark = pytest.mark.usefixtures("no_leaks")

COMMIT = "1.2.840.10008.1.20.1"


# C-ECHO and C-STORE


async def test_echo(serving, raw_peer):
    async with serving(Services()) as server:
        peer = await raw_peer(server.port)
        peer.send_message(1, CEchoRQ(7))
        answer = await peer.next()
    assert answer.context_id == 1
    assert answer.data_set is None
    assert answer.message.status == 0
    assert answer.message.message_id_being_responded_to == 7
    assert answer.message.affected_sop_class_uid == "1.2.840.10008.1.1"


async def test_store(serving, raw_peer, store, uids):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(7, uids.CT, "1.2.3", 0, "MOVER", 9), b"data set")
        answer = await peer.next()
    (sink,) = store.sinks
    assert sink.data == b"data set"
    assert (sink.finished, sink.aborted) == (1, 0)
    assert sink.request.affected_sop_class_uid == uids.CT
    assert sink.request.affected_sop_instance_uid == "1.2.3"
    assert sink.request.transfer_syntax_uid == uids.EXPLICIT
    assert sink.request.calling_ae_title == "RAW"
    assert sink.request.called_ae_title == "ANY-SCP"
    assert sink.request.command.move_originator_ae_title == "MOVER"
    assert answer.context_id == 3
    assert answer.message.status == 0
    assert answer.message.message_id_being_responded_to == 7
    assert answer.message.affected_sop_class_uid == uids.CT
    assert answer.message.affected_sop_instance_uid == "1.2.3"


async def test_r12_r13_r14_r16_any_fragments(serving, raw_peer, store, uids):
    """Empty and odd fragments, a command in three, reserved bits of the control header set."""
    command = CStoreRQ(1, uids.CT, "1.2.3").encode()
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        for control, fragment in [
            (1, command[:1]),
            (0xF9, command[1:2]),
            (1, b""),
            (3, command[2:]),
            (0, b"a"),
            (0, b""),
            (0xF8, b"bc"),
            (2, b""),
        ]:
            peer.send(3, control, fragment)
        assert (await peer.next()).message.status == 0
        await peer.echo()
    assert store.sinks[0].data == b"abc"


async def test_a_store_on_a_context_for_another_storage_class_is_taken(serving, raw_peer, store, uids):
    mr = "1.2.840.10008.5.1.4.1.1.4"
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, mr, "1.2.3"), b"data")
        assert (await peer.next()).message.status == 0
    assert store.sinks[0].request.affected_sop_class_uid == mr


@pytest.mark.parametrize("context_id", [1, 5], ids=["verification", "find"])
async def test_a_store_on_a_context_that_is_not_for_storage_is_refused(
    serving, raw_peer, store, uids, context_id
):
    store.services.operation(CFindRQ, [uids.FIND], lambda operation: None)
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_store(context_id=context_id)
        assert (await peer.next()).message.status == Status.SOP_CLASS_NOT_SUPPORTED
        await peer.echo()
    assert store.sinks == []


# Handlers that fail (R28)


@pytest.mark.parametrize("where", ["open", "write", "finish"])
@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (DimseError(0xA701, "disk full", (0x00080018,)), 0xA701, "disk full"),
        (RuntimeError("Doe^John"), 0xC000, "processing error"),
        (ConnectionLost("upstream"), 0xC000, "processing error"),
    ],
    ids=["DimseError", "defect", "association of its own"],
)
async def test_r28_a_failing_sink_is_an_answer_and_the_association_lives_on(
    serving, raw_peer, store, recording_sink, quiet_errors, where, error, status, comment
):
    def make(request):
        if len(store.sinks) == 1 or (where == "open" and not failed):
            failed.append(request)
            if where == "open":
                raise error
            return recording_sink(request, fails=where, error=error)
        return recording_sink(request)

    failed = []
    store.sinks.append(None) if where != "open" else None
    store.make = make
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, "1.2.840.10008.5.1.4.1.1.2", "1.2.3"))
        for _ in range(3):
            peer.send(3, 0, b"fragment")
        assert peer.messages == []
        peer.send(3, 2, b"")
        answer = (await peer.next()).message
        peer.send_store(2)
        assert (await peer.next()).message.status == 0
    assert (answer.status, answer.error_comment) == (status, comment)
    assert answer.affected_sop_instance_uid == "1.2.3"
    sinks = [sink for sink in store.sinks if sink is not None]
    assert bytes(sinks[-1].data) == b"\0" * 16
    if where != "open":
        assert (sinks[0].aborted, sinks[0].finished) == (1, int(where == "finish"))
    if isinstance(error, DimseError):
        assert answer.offending_elements == (0x00080018,)
    assert len(quiet_errors()) == isinstance(error, RuntimeError)


@pytest.mark.parametrize("answer", [None, 0, "done", Outcome(0x12345)], ids=repr)
async def test_an_answer_that_is_none_is_a_defect(
    serving, raw_peer, store, recording_sink, quiet_errors, answer
):
    store.make = lambda request: recording_sink(request, answer=answer)
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_store()
        assert (await peer.next()).message.status == 0xC000
        await peer.echo()
    assert quiet_errors()


async def test_a_sink_that_fails_in_abort_harms_nobody(
    serving, raw_peer, store, recording_sink, quiet_errors
):
    store.make = lambda request: recording_sink(request, fails="abort")
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, "1.2.840.10008.5.1.4.1.1.2", "1.2.3"))
        peer.send(3, 0, b"data")
        await store.until(lambda: store.sinks and store.sinks[0].data)
        peer.association.abort()
        await store.until(lambda: store.ends)
    assert store.sinks[0].aborted == 1
    assert quiet_errors()


# finish() that answers later


@pytest.fixture
def later(store, recording_sink):
    """Sinks whose finish() returns futures; hands them out."""
    futures = []

    def answer():
        futures.append(asyncio.get_running_loop().create_future())
        return futures[-1]

    store.make = lambda request: recording_sink(request, answer=answer)
    return futures


@pytest.mark.parametrize(
    ("settle", "status", "aborted"),
    [
        (lambda future: future.set_result(Outcome(0)), 0, 0),
        (lambda future: future.set_result(Outcome(0xB000, "coerced")), 0xB000, 0),
        (lambda future: future.set_exception(DimseError(0xA700)), 0xA700, 1),
        (lambda future: future.set_exception(OSError("disk")), 0xC000, 1),
        (lambda future: future.cancel(), 0xC000, 1),
        (lambda future: future.set_result(None), 0xC000, 0),
    ],
    ids=["success", "warning", "DimseError", "defect", "cancelled", "nothing"],
)
async def test_the_answer_may_come_later(
    serving, raw_peer, store, later, quiet_errors, settle, status, aborted
):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_store()
        await store.until(lambda: later)
        await peer.echo()  # an operation is no reason not to answer another
        settle(later[0])
        assert (await peer.next()).message.status == status
        await peer.echo()
    assert store.sinks[0].aborted == aborted


async def test_a_coroutine_may_be_the_answer(serving, raw_peer, store, recording_sink):
    async def answer():
        await asyncio.sleep(0)
        return Outcome(0xB006)

    store.make = lambda request: recording_sink(request, answer=answer)
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_store()
        assert (await peer.next()).message.status == 0xB006


def heard_release(server):
    """An event that is set when the only association of a server has heard A-RELEASE-RQ."""
    (association,) = server.acceptor.associations
    exchange, heard = association.user, asyncio.Event()
    hear = exchange.release_requested
    exchange.release_requested = lambda: (hear(), heard.set())
    return heard


async def test_a_release_waits_for_the_answer(serving, raw_peer, store, later, patience):
    """P-DATA may still be sent in Sta8: the response comes first, then A-RELEASE-RP."""
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_store()
        await store.until(lambda: later)
        heard = heard_release(server)
        release = asyncio.create_task(peer.association.release())
        async with patience():
            await heard.wait()
        later[0].set_result(Outcome(0))
        assert (await peer.next()).message.status == 0
        await release
        await store.until(lambda: store.ends)
    assert store.ends == [None]


@pytest.mark.parametrize("fate", ["result", "error", "cancel"])
async def test_a_peer_that_vanishes_before_the_answer_aborts_the_sink_once(
    serving, raw_peer, store, later, fate
):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_store()
        await store.until(lambda: later)
        peer.association.abort()
        await store.until(lambda: store.ends)
        assert store.sinks[0].aborted == 1
        if fate == "result":
            later[0].set_result(Outcome(0))
        elif fate == "error":
            later[0].set_exception(RuntimeError("late"))
        else:
            later[0].cancel()
        await asyncio.sleep(0)
    assert store.sinks[0].aborted == 1
    assert isinstance(store.ends[0], AssociationAborted)


async def test_a_peer_that_vanishes_in_mid_object_aborts_the_sink_once(serving, raw_peer, store, uids):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, uids.CT, "1.2.3"))
        peer.send(3, 0, b"half")
        await store.until(lambda: store.sinks and store.sinks[0].data)
        peer.association.cut_after_writing()
        await store.until(lambda: store.ends)
    (sink,) = store.sinks
    assert (bytes(sink.data), sink.finished, sink.aborted) == (b"half", 0, 1)
    assert isinstance(store.ends[0], ConnectionLost)


@pytest.mark.parametrize("where", ["open", "write", "finish"])
async def test_a_handler_may_abort_the_association(serving, raw_peer, store, recording_sink, caplog, where):
    def abort(request):
        request.association.abort()

    def make(request):
        sink = recording_sink(request)
        if where == "open":
            abort(request)
        elif where == "write":
            sink.on_write = lambda fragment: abort(request)
        else:
            sink.answer = lambda: abort(request) or Outcome(0)
        return sink

    store.make = make
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_store()
        await peer.ended()
        await store.until(lambda: store.ends)
    assert peer.messages == []
    assert store.sinks[0].aborted == (where != "finish")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


# What a peer may not send


async def aborted(peer):
    """Source and reason of the A-ABORT that ended the association."""
    error = await peer.ended()
    assert isinstance(error, AssociationAborted)
    return error.source, error.reason


async def test_r15_data_before_a_command_aborts(serving, raw_peer, store):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send(3, 2, b"data")
        assert await aborted(peer) == (2, 5)


async def test_r15_a_command_while_data_is_expected_aborts(serving, raw_peer, store, uids):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, uids.CT, "1.2.3"))
        peer.send_message(1, CEchoRQ(2))
        assert await aborted(peer) == (2, 5)
    assert store.sinks[0].aborted == 1


async def test_r15_another_context_inside_a_message_aborts(serving, raw_peer, store, uids):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, uids.CT, "1.2.3"))
        peer.send(5, 2, b"data")
        assert await aborted(peer) == (2, 5)
    assert store.sinks[0].aborted == 1


async def test_a_context_that_was_not_accepted_aborts(serving, raw_peer, store):
    """GET was proposed as context 7 and refused; 9 was never proposed."""
    async with serving(store.services) as server:
        for context_id in (7, 9):
            peer = await raw_peer(server.port)
            peer.send_message(context_id, CEchoRQ(1))
            assert await aborted(peer) == (2, 5)


async def test_r19_a_data_set_that_never_comes_before_a_release_aborts(serving, raw_peer, store, uids):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CStoreRQ(1, uids.CT, "1.2.3"))
        releasing = asyncio.create_task(peer.association.release())
        assert await aborted(peer) == (0, 0)
        await releasing
        await store.until(lambda: store.ends)
    assert store.sinks[0].aborted == 1
    assert "in the middle of a message" in str(store.ends[0])


async def test_r20_a_data_set_that_was_not_announced_aborts(serving, raw_peer, store):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(1, CEchoRQ(1), b"data")
        assert (await peer.next()).message.status == 0
        assert await aborted(peer) == (2, 5)


async def test_a_store_without_data_set_is_answered(serving, raw_peer, store, uids):
    command = CStoreRQ(1, uids.CT, "1.2.3").encode()
    command = command.replace(
        bytes.fromhex("0000 0008 02000000 0100"), bytes.fromhex("0000 0008 02000000 0101")
    )
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send(3, 3, command)
        assert (await peer.next()).message.status == 0xC000
        await peer.echo()
    assert store.sinks == []


async def test_a_command_that_is_none_aborts(serving, raw_peer, store):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send(1, 3, b"\x08\x00\x16\x00\x00\x00\x00\x00")
        assert (await aborted(peer))[0] == 2


@pytest.mark.parametrize("with_data", [False, True])
async def test_an_unknown_command_field_is_answered(serving, raw_peer, store, with_data):
    """0211, unrecognized operation, and the association lives on."""
    command = bytes.fromhex(
        "0000 0000 04000000 1e000000  0000 0001 02000000 7700  0000 1001 02000000 0500  0000 0008 02000000"
    ) + (b"\x01\x00" if with_data else b"\x01\x01")
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send(1, 3, command)
        if with_data:
            peer.send(1, 2, b"data")
        answer = (await peer.next()).message
        await peer.echo()
    assert bytes.fromhex("0000 0001 02000000 7780") in answer
    assert bytes.fromhex("0000 2001 02000000 0500") in answer
    assert bytes.fromhex("0000 0009 02000000 1102") in answer


@pytest.mark.parametrize("with_data", [False, True])
async def test_a_mandatory_element_that_is_missing_is_answered(serving, raw_peer, store, uids, with_data):
    """0212, mistyped argument, for a C-STORE-RQ without Affected SOP Class UID."""
    command = CStoreRQ(5, uids.CT, "1.2.3").encode()
    command = command[:12] + command[12 + 8 + 26 :]
    if not with_data:
        command = command.replace(
            bytes.fromhex("0000 0008 02000000 0100"), bytes.fromhex("0000 0008 02000000 0101")
        )
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send(3, 3, command)
        if with_data:
            peer.send(3, 2, b"data")
        answer = (await peer.next()).message
        await peer.echo()
    assert (answer.status, answer.message_id_being_responded_to) == (0x0212, 5)
    assert store.sinks == []


async def test_a_service_that_nobody_performs_is_refused(serving, raw_peer, store, uids):
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CFindRQ(1, uids.FIND), b"identifier")
        peer.send_message(3, NGetRQ(2, "1.2.4", "1.2.5"))
        find, get = (await peer.next()).message, (await peer.next()).message
    assert (find.command_field, find.status, find.affected_sop_class_uid) == (0x8020, 0x0122, uids.FIND)
    assert (get.command_field, get.status, get.affected_sop_class_uid) == (0x8110, 0x0122, "1.2.4")
    assert get.affected_sop_instance_uid == "1.2.5"


async def test_without_services_everything_is_refused(serving, connect, raw_peer, uids):
    """A requestor that performs nothing says so to an acceptor that asks."""
    services, told = Services(), []

    async def ask(operation):
        invocation = await operation.exchange.invoke(CEchoRQ, operation.context)
        told.append((await invocation.final()).status)

    services.operation(CFindRQ, [uids.FIND], ask)
    async with serving(services) as server, connect(server) as scu:
        invocation = await scu.invoke(
            lambda number: CFindRQ(number, uids.FIND), scu.context_for(uids.FIND), b""
        )
        assert (await invocation.final()).status == 0
    assert told == [0x0122]


async def test_verification_can_be_switched_off(serving, raw_peer, store):
    store.services.no_echo()
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(3, CEchoRQ(1))
        assert (await peer.next()).message.status == 0x0122
        peer.send_message(1, CEchoRQ(1))
        assert await aborted(peer) == (2, 5)


# Operations and their handlers


@pytest.fixture
def finder(serving, uids):
    """async with finder(handler) as server: C-FIND by a handler."""

    def start(handler, **options):
        services = Services()
        services.operation(CFindRQ, [uids.FIND], handler)
        return serving(services, **options)

    return start


def pending(operation):
    request = operation.request
    return CFindRSP(request.message_id, 0xFF00, request.affected_sop_class_uid, data_set_present=True)


async def test_a_handler_responds_and_returns(finder, raw_peer, uids):
    async def handler(operation):
        await operation.respond(pending(operation), operation.data_set + b"1 ")
        await operation.respond(pending(operation), operation.data_set + b"2 ")
        return Outcome(0xB001, "more", (0x00100010,))

    async with finder(handler) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, uids.FIND), b"who")
        answers = [await peer.next() for _ in range(3)]
    assert [answer.context_id for answer in answers] == [5, 5, 5]
    assert [answer.data_set for answer in answers] == [b"who1 \0", b"who2 \0", None]
    assert [answer.message.status for answer in answers] == [0xFF00, 0xFF00, 0xB001]
    final = answers[-1].message
    assert (final.error_comment, final.offending_elements) == ("more", (0x00100010,))
    assert final.affected_sop_class_uid == uids.FIND


@pytest.mark.parametrize(
    ("handler", "status"),
    [
        (lambda operation: None, 0),
        (lambda operation: Outcome(0xA900), 0xA900),
        (lambda operation: "matches", 0x0110),
    ],
    ids=["nothing", "an outcome", "nonsense"],
)
async def test_a_handler_need_not_be_a_coroutine(finder, raw_peer, uids, quiet_errors, handler, status):
    async with finder(handler) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        assert (await peer.next()).message.status == status
        await peer.echo()


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (DimseError(0xA700, "busy"), 0xA700, "busy"),
        (KeyError("Doe^John"), 0x0110, "processing error"),
        (ConnectionLost("upstream"), 0x0110, "processing error"),
        (asyncio.CancelledError(), 0x0110, "processing was cancelled"),
        (TimeoutError(), 0x0110, "processing error"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_r28_a_handler_that_raises_is_answered(
    finder, raw_peer, uids, quiet_errors, error, status, comment
):
    """An association of the handler's own that broke is not this one's end."""

    async def handler(operation):
        await operation.respond(pending(operation), b"")
        raise error

    async with finder(handler) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        await peer.next()
        answer = (await peer.next()).message
        await peer.echo()
    assert (answer.status, answer.error_comment) == (status, comment)


async def test_a_handler_may_answer_by_itself_and_take_its_time_afterwards(finder, raw_peer, uids, patience):
    """The Message ID is free again with the final response; many SCUs use one ID for everything."""
    go_on, done = asyncio.Event(), []

    async def handler(operation):
        await operation.respond(CFindRSP(operation.request.message_id, 0, uids.FIND))
        with pytest.raises(RuntimeError, match="final response"):
            await operation.respond(CFindRSP(operation.request.message_id, 0, uids.FIND))
        await go_on.wait()
        done.append(operation)
        return Outcome(0xA700)

    async with finder(handler, maximum_operations=2) as server:
        peer = await raw_peer(server.port, window=(2, 1))
        for _ in range(2):
            peer.send_message(5, CFindRQ(1, uids.FIND), b"")
            assert (await peer.next()).message.status == 0
        assert done == []
        go_on.set()
        await peer.echo()
        async with patience():
            await peer.association.release()
    assert len(done) == 2
    assert len(peer.messages) == 3


async def test_a_message_id_in_use_is_a_duplicate_invocation(finder, raw_peer, uids):
    go_on = asyncio.Event()
    async with finder(lambda operation: _wait(go_on), maximum_operations=2) as server:
        peer = await raw_peer(server.port, window=(2, 1))
        peer.send_message(5, CFindRQ(1, uids.FIND), b"")
        peer.send_message(5, CFindRQ(1, uids.FIND), b"")
        assert (await peer.next()).message.status == 0x0210
        go_on.set()
        assert (await peer.next()).message.status == 0
        await peer.echo(1)


async def _wait(event):
    await event.wait()


async def test_an_announced_data_set_must_be_given(finder, raw_peer, uids):
    async def handler(operation):
        with pytest.raises(ValueError, match="data_set"):
            await operation.respond(pending(operation))
        with pytest.raises(ValueError, match="data_set"):
            await operation.respond(CFindRSP(1, 0xFF00, uids.FIND), b"data")

    async with finder(handler) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(1, uids.FIND), b"")
        assert (await peer.next()).message.status == 0


async def test_an_identifier_beyond_the_limit_is_refused(finder, raw_peer, uids):
    async with finder(lambda operation: None) as server:
        peer = await raw_peer(server.port)
        for size, status in [(1 << 20, 0), ((1 << 20) + 2, 0xA700)]:
            peer.send(5, 3, CFindRQ(1, uids.FIND).encode())
            peer.send(5, 0, bytes(size - 2))
            peer.send(5, 2, bytes(2))
            assert (await peer.next()).message.status == status
        await peer.echo()


# C-CANCEL (R22)


async def test_r22_a_cancel_is_seen_in_the_turn_in_which_it_arrives(finder, raw_peer, uids, patience):
    operations, started = [], asyncio.Event()

    async def handler(operation):
        operations.append(operation)
        started.set()
        await operation.cancelled.wait()
        return Outcome(Status.CANCEL)

    async with finder(handler) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        async with patience():
            await started.wait()
        exchange, seen = operations[0].exchange, []
        receive = exchange.association.p_data

        def p_data(*piece):
            receive(*piece)
            seen.append(operations[0].cancelled.is_set())

        exchange.association.p_data = p_data
        peer.send_message(1, CCancelRQ(7))  # any context will do
        assert (await peer.next()).message.status == 0xFE00
        await peer.echo()
    assert seen[0] is True


async def test_r22_a_cancel_for_nothing_is_ignored(finder, raw_peer, uids):
    async with finder(lambda operation: None) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CCancelRQ(7))
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        assert (await peer.next()).message.status == 0
        peer.send_message(5, CCancelRQ(7))
        await peer.echo(7)


async def test_an_abort_cancels_handlers(finder, raw_peer, uids, patience):
    started, ended, operations = asyncio.Event(), asyncio.Event(), []

    async def handler(operation):
        operations.append(operation)
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with finder(handler) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        async with patience():
            await started.wait()
            peer.association.abort()
            await ended.wait()
    assert operations[0].cancelled.is_set()


async def test_a_handler_that_had_not_begun_is_cancelled_as_well(finder, raw_peer, uids, patience):
    called = []
    async with finder(called.append) as server:
        peer = await raw_peer(server.port)
        (association,) = server.acceptor.associations
        receive = association.p_data

        def p_data(*piece):
            receive(*piece)
            if piece[1] == 2:
                association.abort()

        association.p_data = p_data
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        await peer.ended()
    assert called == []


async def test_closing_the_server_cancels_handlers(finder, raw_peer, uids, patience):
    started, ended = asyncio.Event(), asyncio.Event()

    async def handler(operation):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with finder(handler) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        async with patience():
            await started.wait()
    async with patience():
        await ended.wait()


# Pace


def held(server):
    """An event for each time that the only association of a server holds its reading, and a list of balance."""
    (association,) = server.acceptor.associations
    holds, event = [], asyncio.Event()
    hold, go_on = association.hold_reading, association.continue_reading
    association.hold_reading = lambda: (hold(), holds.append(1), event.set())
    association.continue_reading = lambda: (go_on(), holds.append(-1))
    return holds, event


async def test_r26_many_pending_responses_wait_for_a_slow_reader(finder, raw_peer, uids, patience):
    """What is written for a reader that does not read is bounded by the socket buffers and one message."""
    sent, total = [], 400

    async def handler(operation):
        for number in range(total):
            await operation.respond(pending(operation), bytes(65536))
            sent.append(number)

    async with finder(handler) as server:
        peer = await raw_peer(server.port, maximum_length=70000)
        peer.association.hold_reading()
        (association,) = server.acceptor.associations
        blocked = asyncio.Event()
        pause = association.pause_writing
        association.pause_writing = lambda: (pause(), blocked.set())
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        async with patience():
            await blocked.wait()
        assert len(sent) < total
        assert association._transport.get_write_buffer_size() <= 66_000
        peer.send_message(5, CCancelRQ(7))  # is read all the same, see below
        (operation,) = association.user._operations.values()
        async with patience():
            await operation.cancelled.wait()
        peer.association.continue_reading()
        answers = [await peer.next() for _ in range(total + 1)]
    assert [answer.message.status for answer in answers] == [0xFF00] * total + [0]


async def test_r27_requests_without_a_negotiated_window_are_served_a_few_at_a_time(
    serving, raw_peer, store, later, patience
):
    """The peer pipelines although nothing was negotiated; reading stops until it may go on."""
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        holds, event = held(server)
        for number in range(1, 51):
            peer.send_store(number, bytes(100_000), instance=f"1.2.{number}")
        async with patience():
            await event.wait()
        # One operation more than agreed, and what the one receive buffer held that had been read.
        assert len(store.sinks) <= 2 + RECEIVE_BUFFER_BYTES // 100_000 + 1
        for number in range(1, 51):
            await store.until(lambda number=number: len(later) >= number)
            later[number - 1].set_result(Outcome(0))
            assert (await peer.next()).message.message_id_being_responded_to == number
        await peer.echo()
    assert sum(holds) == 0


async def test_r27_echoes_of_a_peer_that_does_not_read_are_bounded(serving, raw_peer, patience):
    """Requests stop being read when their responses are left unread."""
    async with serving(Services()) as server:
        peer = await raw_peer(server.port)
        (association,) = server.acceptor.associations
        _, event = held(server)
        peer.association.hold_reading()
        for side, option in [(association, socket.SO_SNDBUF), (peer.association, socket.SO_RCVBUF)]:
            side._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, 4096)
        command = CEchoRQ(1).encode()
        thousand = struct.pack(">BxIIBB", 4, len(command) + 6, len(command) + 2, 1, 3) + command
        thousand *= 1000
        sent = 0
        async with patience():
            while not event.is_set():
                peer.association.write_p_data(thousand)
                sent += 1000
                await asyncio.sleep(0)
        exchange = association.user
        assert len(exchange._tasks) <= RECEIVE_BUFFER_BYTES // 70
        peer.association.continue_reading()
        for _ in range(sent):
            await peer.next()
        await peer.echo()


async def test_a_window_as_scp_lets_operations_overlap(serving, raw_peer, store, later):
    async with serving(store.services, maximum_operations=4) as server:
        peer = await raw_peer(server.port, window=(8, 1))
        for number in range(1, 5):
            peer.send_store(number)
        await store.until(lambda: len(later) == 4)
        for number in (4, 2, 3, 1):
            later[number - 1].set_result(Outcome(0))
            assert (await peer.next()).message.message_id_being_responded_to == number


# Event reports, and other requests at odd moments (R37)


async def test_r37_an_event_report_is_delivered_to_a_requestor(serving, connect, uids, patience):
    """On the association on which storage commitment was asked for: the SCP invokes, the SCU performs."""
    scp, scu, reports, told = Services(), Services(), [], asyncio.Event()

    async def commit(operation):
        await operation.respond(_action_response(operation))
        invocation = await operation.exchange.invoke(
            lambda number: NEventReportRQ(number, COMMIT, "1.2.840.10008.1.20.1.1", 1, True),
            operation.context,
            b"event",
        )
        reports.append((await invocation.final()).message)
        told.set()

    def report(operation):
        reports.append((operation.request.event_type_id, operation.data_set))

    scp.operation(NActionRQ, [COMMIT], commit)
    scu.operation(NEventReportRQ, [COMMIT], report)
    contexts = propose_contexts([(COMMIT, [uids.IMPLICIT])])
    async with serving(scp) as server, connect(server, contexts=contexts, services=scu) as requestor:
        invocation = await requestor.invoke(
            lambda number: NActionRQ(number, COMMIT, "1.2.840.10008.1.20.1.1", 1, True),
            requestor.context_for(COMMIT),
            b"action",
        )
        assert (await invocation.final()).status == 0
        async with patience():
            await told.wait()
    assert reports[0] == (1, b"event\0")
    assert reports[1].status == 0
    assert reports[1].affected_sop_instance_uid == "1.2.840.10008.1.20.1.1"


def _action_response(operation):
    request = operation.request
    return NActionRSP(
        request.message_id, 0, request.requested_sop_class_uid, request.requested_sop_instance_uid
    )


@pytest.mark.parametrize(
    "roles", [(), (RoleSelection(COMMIT, False, True),)], ids=["no roles", "reversed roles"]
)
async def test_r37_an_event_report_on_an_association_of_its_own(serving, connect, uids, roles):
    """Storage commitment hours later: the SCP requests the association, with or without role selection."""
    services, reports = Services(), []
    services.operation(NEventReportRQ, [COMMIT], lambda operation: reports.append(operation.data_set))
    contexts = propose_contexts([(COMMIT, [uids.IMPLICIT])])
    async with serving(services) as server, connect(server, contexts=contexts, roles=roles) as scp:
        (context,) = scp.association.agreed.contexts.values()
        invocation = await scp.invoke(
            lambda number: NEventReportRQ(number, COMMIT, "1.2.3", 2, True), context, b"late"
        )
        assert (await invocation.final()).status == 0
    assert reports == [b"late"]


async def test_r37_a_request_that_crosses_our_release_is_not_answered(serving, raw_peer, store):
    """Sta7: data still comes, none may be sent; the release then goes on."""
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        (association,) = server.acceptor.associations
        releasing = asyncio.create_task(association.release())
        await asyncio.sleep(0)  # A-RELEASE-RQ has been written, and not been read yet
        peer.send_message(1, CEchoRQ(1))
        peer.send_store(2)
        await releasing
        assert await peer.ended() is None
    assert peer.messages == []
    assert store.sinks[0].finished == 1
    assert store.ends == [None]


async def test_a_release_cuts_off_the_responses_that_a_handler_waits_for(finder, raw_peer, uids, patience):
    """After A-RELEASE-RQ the peer sends no P-DATA: the handler hears it at once and may still answer."""
    failures, started = [], asyncio.Event()

    async def handler(operation):
        invocation = await operation.exchange.invoke(CEchoRQ, operation.context)
        started.set()
        try:
            await invocation.final()
        except AssociationReleased as error:
            failures.append(error)
        with pytest.raises(AssociationReleased):
            await operation.exchange.invoke(CEchoRQ, operation.context)
        return Outcome(Status.CANCEL)

    async with finder(handler) as server:
        peer = await raw_peer(server.port)
        peer.send_message(5, CFindRQ(7, uids.FIND), b"")
        async with patience():
            await started.wait()
            await peer.next()
            await peer.association.release()
    assert (await peer.next()).message.status == 0xFE00
    assert len(failures) == 1


# Both roles at once


async def test_a_get_stores_back_on_the_same_association(serving, connect, store, uids):
    services, outcomes = Services(), []

    async def get(operation):
        (context,) = (
            context
            for context in operation.association.agreed.contexts.values()
            if context.abstract_syntax == uids.CT
        )
        assert context.as_scu
        for number in range(5):
            instance = Instance(uids.CT, f"1.2.{number}", uids.EXPLICIT, bytes([number, 0]) * 100_000)
            invocation = await operation.exchange.invoke(
                lambda message_id, uid=instance.sop_instance_uid: CStoreRQ(message_id, uids.CT, uid),
                context,
                instance.data,
            )
            outcomes.append((await invocation.final()).status)
            await operation.respond(
                CGetRSP(operation.request.message_id, 0xFF00, uids.GET, 4 - number, number + 1, 0, 0)
            )

    services.operation(CGetRQ, [uids.GET], get)
    services.store_as_scu()
    async with (
        serving(services) as server,
        connect(server, services=store.services, roles=[RoleSelection(uids.CT, True, True)]) as scu,
    ):
        invocation = await scu.invoke(lambda number: CGetRQ(number, uids.GET), scu.context_for(uids.GET), b"")
        responses = [response async for response in invocation]
    assert [response.status for response in responses] == [0xFF00] * 5 + [0]
    assert outcomes == [0] * 5
    assert [bytes(sink.data) for sink in store.sinks] == [bytes([n, 0]) * 100_000 for n in range(5)]


async def test_instances_come_even_when_roles_were_not_negotiated(serving, connect, store, uids):
    """Archives exist that ignore the role items of a C-GET."""
    services = Services()

    async def get(operation):
        (context,) = (
            context
            for context in operation.association.agreed.contexts.values()
            if context.abstract_syntax == uids.CT
        )
        invocation = await operation.exchange.invoke(
            lambda message_id: CStoreRQ(message_id, uids.CT, "1.2.3"), context, b"data"
        )
        return Outcome((await invocation.final()).status)

    services.operation(CGetRQ, [uids.GET], get)
    services.store(lambda request: None)
    async with serving(services) as server, connect(server, services=store.services) as scu:
        invocation = await scu.invoke(lambda number: CGetRQ(number, uids.GET), scu.context_for(uids.GET), b"")
        assert (await invocation.final()).status == 0
    assert bytes(store.sinks[0].data) == b"data"


# Everything cancels cleanly


async def test_a_store_cancelled_at_any_step_leaves_no_trace(serving, connect, store, uids):
    """Step by step: cancelled after one turn of the loop, after two, ... until a store is over before that."""
    async with serving(store.services, maximum_operations=2) as server:
        for steps in range(200):
            async with connect(server, maximum_operations=2) as scu:
                instance = Instance(uids.CT, "1.2.3", uids.EXPLICIT, bytes(700_000))
                storing = asyncio.create_task(scu.store(instance))
                for _ in range(steps):
                    await asyncio.sleep(0)
                storing.cancel()
                await asyncio.wait({storing})
                if scu.association.is_open:
                    await scu.echo()
                elif not storing.cancelled():
                    assert isinstance(storing.exception(), AssociationAborted)
            if not storing.cancelled():
                break
        else:
            pytest.fail("a store takes more than 200 turns of the loop")
        await store.until(lambda: len(store.ends) == steps + 1)
    assert all(sink.finished + sink.aborted == 1 for sink in store.sinks)
    assert storing.result().status == 0


async def test_a_session_cancelled_at_any_step_leaves_no_trace(serving, connect, store, uids):
    """Connecting, C-ECHO, C-FIND with a C-CANCEL, C-STORE, release: cancelled after every number of turns."""

    async def find(operation):
        while not operation.cancelled.is_set():
            await operation.respond(pending(operation), b"")
            await asyncio.sleep(0)
        return Outcome(Status.CANCEL)

    async def session(server):
        async with connect(server) as scu:
            await scu.echo()
            invocation = await scu.invoke(
                lambda number: CFindRQ(number, uids.FIND), scu.context_for(uids.FIND), b""
            )
            await anext(invocation)
            await invocation.cancel()
            assert (await invocation.final()).status == 0xFE00
            assert (await scu.store(Instance(uids.CT, "1.2.3", uids.EXPLICIT, bytes(300_000)))).status == 0

    store.services.operation(CFindRQ, [uids.FIND], find)
    async with serving(store.services) as server:
        for steps in range(300):
            running = asyncio.create_task(session(server))
            for _ in range(steps):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait({running})
            if not running.cancelled():
                break
        else:
            pytest.fail("a session takes more than 300 turns of the loop")
        running.result()
        # What was cancelled has ended at the server too, whether as an association or before there was one.
        await store.until(lambda: all(sink.finished + sink.aborted == 1 for sink in store.sinks))


async def test_instances_that_come_are_not_the_peers_silence(
    serving, connect, recording_sink, uids, patience
):
    """Between the responses of a C-GET the deadline does not run out while an instance is being stored."""
    services, receiver, stored = Services(), Services(), asyncio.Event()
    answer = asyncio.get_running_loop().create_future()

    def open_sink(request):
        sink = recording_sink(request, answer=answer)
        sink.changed = lambda: sink.finished and stored.set()
        return sink

    async def get(operation):
        context = next(
            c for c in operation.association.agreed.contexts.values() if c.abstract_syntax == uids.CT
        )
        invocation = await operation.exchange.invoke(
            lambda message_id: CStoreRQ(message_id, uids.CT, "1.2.3"), context, b"data"
        )
        await invocation.final()

    receiver.store(open_sink)
    services.operation(CGetRQ, [uids.GET], get)
    services.store_as_scu()
    async with (
        patience(),
        serving(services) as server,
        connect(server, services=receiver, roles=[RoleSelection(uids.CT, True, True)], response_s=600) as scu,
    ):
        invocation = await scu.invoke(lambda number: CGetRQ(number, uids.GET), scu.context_for(uids.GET), b"")
        await stored.wait()
        invocation._silence()  # as the timer does: data is being stored
        assert scu.association.is_open
        answer.set_result(Outcome(0))
        assert (await invocation.final()).status == 0


async def test_silence_after_an_instance_counts_anew(serving, connect, store, uids, patience):
    services, silent = Services(), asyncio.Event()

    async def get(operation):
        context = next(
            c for c in operation.association.agreed.contexts.values() if c.abstract_syntax == uids.CT
        )
        invocation = await operation.exchange.invoke(
            lambda message_id: CStoreRQ(message_id, uids.CT, "1.2.3"), context, b"data"
        )
        await invocation.final()
        silent.set()
        await asyncio.Event().wait()

    services.operation(CGetRQ, [uids.GET], get)
    services.store_as_scu()
    async with (
        patience(),
        serving(services) as server,
        connect(
            server, services=store.services, roles=[RoleSelection(uids.CT, True, True)], response_s=600
        ) as scu,
    ):
        invocation = await scu.invoke(lambda number: CGetRQ(number, uids.GET), scu.context_for(uids.GET), b"")
        await silent.wait()
        invocation._silence()  # an instance came since the last response
        assert scu.association.is_open
        invocation._silence()  # and none since then
        with pytest.raises(DeadlineExceeded):
            await invocation.final()
