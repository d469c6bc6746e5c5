"""Asking for services: contexts, the operations window, strange responses, deadlines, cancelling, ends of all kinds."""

import asyncio
import contextlib
import gc
import re
import threading
import warnings
from types import SimpleNamespace

import pytest

from harmony.dimse import (
    CEchoRSP,
    CFindRQ,
    CFindRSP,
    CStoreRSP,
    DimseError,
    Instance,
    NoPresentationContext,
    Outcome,
    Part10Error,
    Services,
    associate,
    contexts_for,
    encode_file_meta,
    read_file_meta,
    serve,
)
from harmony.dimse.command import decode
from harmony.dimse.message import BURST_BYTES, WHOLE_BYTES, encode_message
from harmony.dimse.scu import HEAD_BYTES
from harmony.ul import (
    Acceptor,
    AcceptorPolicy,
    AssociationAborted,
    AssociationRejected,
    AssociationReleased,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    LocalProtocolError,
    SupportedAbstractSyntax,
    Timeouts,
    propose_contexts,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

CT = "1.2.840.10008.5.1.4.1.1.2"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
EXPLICIT = "1.2.840.10008.1.2.1"
DATA = b"\x08\x00\x16\x00UI\x1a\x00" + CT.encode() + b"\0"


def part10(*, sop_class=CT, instance="1.2.3", syntax=EXPLICIT, data=DATA):
    meta = encode_file_meta(
        transfer_syntax_uid=syntax,
        media_storage_sop_class_uid=sop_class,
        media_storage_sop_instance_uid=instance,
    )
    return bytes(meta) + data


class StrangeSCP:
    """An acceptor that answers with whatever `answer(scp, context_id, message)` writes; it accepts everything."""

    def __init__(self, answer):
        self.answer = answer
        self.requests = []
        self.ends = []
        self.changed = asyncio.Event()

    def user(self):
        scp, command, state = self, bytearray(), SimpleNamespace(association=None, message=None)

        class User:
            receiving = False

            def established(self, association):
                state.association = association

            def p_data(self, context_id, control, fragment, complete):
                if control & 1:
                    command.extend(fragment)
                    if not (complete and control & 2):
                        return
                    state.message, has_data = decode(bytes(command))
                    command.clear()
                    if has_data:
                        return
                elif not (complete and control & 2):
                    return
                scp.requests.append(state.message)
                scp.changed.set()

                def send(message, data=None):
                    state.association.write_p_data(
                        encode_message(context_id, message.encode(), data, maximum_length=16384)
                    )

                scp.answer(scp, send, state.message)

            def release_requested(self):
                state.association.respond_release()

            def busy(self):
                return True

            def p_data_paused(self):
                pass

            def writable(self):
                pass

            def ended(self, error):
                scp.ends.append(error)
                scp.changed.set()

        self.state = state
        return User()


@pytest.fixture
async def strange(uids):
    """await strange(answer): a StrangeSCP that listens; it has a `port`."""
    acceptors = []

    async def listen(answer, *, operations=1):
        scp = StrangeSCP(answer)
        policy = AcceptorPolicy(
            other_abstract_syntaxes=lambda uid: SupportedAbstractSyntax(),
            maximum_operations_performed=operations,
        )
        acceptor = Acceptor(policy, scp.user)
        await acceptor.listen("127.0.0.1", 0)
        acceptors.append(acceptor)
        scp.port = acceptor.addresses[0][1]
        return scp

    yield listen
    for acceptor in acceptors:
        await acceptor.close()


# What can be stored


@pytest.mark.parametrize("form", ["path", "str", "bytes", "bytearray", "memoryview", "Instance", "stream"])
async def test_any_form_of_an_instance(serving, connect, store, tmp_path, form):
    path = tmp_path / "ct.dcm"
    path.write_bytes(part10())

    async def chunks():
        yield DATA[:5]
        yield DATA[5:]

    what = {
        "path": path,
        "str": str(path),
        "bytes": part10(),
        "bytearray": bytearray(part10()),
        "memoryview": memoryview(part10()),
        "Instance": Instance(CT, "1.2.3", EXPLICIT, DATA),
        "stream": Instance(CT, "1.2.3", EXPLICIT, chunks()),
    }[form]
    async with serving(store.services) as server, connect(server) as scu:
        outcome = await scu.store(
            what, priority=1, move_originator_ae_title="MOVER", move_originator_message_id=5
        )
    assert outcome == Outcome(0)
    (sink,) = store.sinks
    assert bytes(sink.data) == DATA
    command = sink.request.command
    assert (command.affected_sop_class_uid, command.affected_sop_instance_uid) == (CT, "1.2.3")
    assert (command.priority, command.move_originator_ae_title, command.move_originator_message_id) == (
        1,
        "MOVER",
        5,
    )


@pytest.mark.parametrize("maximum_length", [8, 9, 4096, 16385, 131072, 0])
async def test_any_maximum_length_of_the_receiver(serving, connect, store, maximum_length):
    sizes = [0, 1, 2, 4090, 4091, 16378, 16380, 1_000_001 if maximum_length not in (8, 9) else 70_001]
    data = [bytes([number]) * size for number, size in enumerate(sizes)]
    async with (
        serving(store.services, maximum_length=maximum_length) as server,
        connect(server) as scu,
    ):
        for each in data:
            assert (await scu.store(Instance(CT, "1.2.3", EXPLICIT, each))).status == 0
    assert [bytes(sink.data) for sink in store.sinks] == [each + b"\0" * (len(each) % 2) for each in data]


@pytest.mark.parametrize(
    "around", [0, HEAD_BYTES, HEAD_BYTES + len(part10(data=b"")), WHOLE_BYTES, BURST_BYTES]
)
async def test_files_of_any_size_arrive_as_they_are(serving, connect, store, tmp_path, around):
    """Around what is read at a time: small ones with their file meta, others by fragments."""
    sizes = [around + step for step in (-4, -2, -1, 0, 1, 2, 4) if around + step >= 0]
    data = [bytes(number % 251 for number in range(size)) for size in sizes]
    async with serving(store.services) as server, connect(server) as scu:
        for number, each in enumerate(data):
            (tmp_path / str(number)).write_bytes(part10(data=each))
            assert (await scu.store(tmp_path / str(number))).status == 0
    assert [bytes(sink.data) for sink in store.sinks] == [each + b"\0" * (len(each) % 2) for each in data]


@pytest.mark.parametrize("size", [HEAD_BYTES - 2, HEAD_BYTES, HEAD_BYTES + 2, 3 * HEAD_BYTES])
async def test_file_meta_longer_than_what_is_read_first(serving, connect, store, tmp_path, size):
    whole = part10()
    private = size - len(whole) + len(DATA) - 12
    element = b"\x02\x00\x02\x01OB\x00\x00" + private.to_bytes(4, "little") + bytes(private)
    (tmp_path / "file").write_bytes(whole[: -len(DATA)] + element + DATA)
    async with serving(store.services) as server, connect(server) as scu:
        assert (await scu.store(tmp_path / "file")).status == 0
    assert bytes(store.sinks[0].data) == DATA


async def test_a_file_that_is_none_or_missing(serving, connect, store, tmp_path):
    (tmp_path / "text").write_text("not DICOM")
    async with serving(store.services) as server, connect(server) as scu:
        with pytest.raises(Part10Error):
            await scu.store(tmp_path / "text")
        with pytest.raises(FileNotFoundError):
            await scu.store(tmp_path / "missing")
        await scu.echo()


async def test_warnings_are_returned_and_failures_raised(serving, connect, store, recording_sink):
    answers = iter([Outcome(0xB007, "odd", (0x00080016,)), Outcome(0xA900, "wrong", (0x00080016,))])
    store.make = lambda request: recording_sink(request, answer=next(answers))
    async with serving(store.services) as server, connect(server) as scu:
        assert await scu.store(part10()) == Outcome(0xB007, "odd", (0x00080016,))
        with pytest.raises(DimseError, match="wrong") as caught:
            await scu.store(part10())
        await scu.echo()
    assert caught.value.outcome == Outcome(0xA900, "wrong", (0x00080016,))


# Contexts


def test_contexts_for_files_are_one_per_class_and_syntax(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(part10())
    metas = [read_file_meta(part10(syntax=syntax)) for syntax in (EXPLICIT, "1.2.840.10008.1.2", EXPLICIT)]
    contexts = contexts_for([path, *metas])
    assert [(one.abstract_syntax, one.transfer_syntaxes) for one in contexts] == [
        (CT, (EXPLICIT,)),
        (CT, ("1.2.840.10008.1.2",)),
        ("1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),
    ]


@pytest.mark.parametrize(("count", "fits"), [(127, True), (128, False)])
def test_an_association_has_128_contexts(count, fits):
    metas = [read_file_meta(part10(sop_class=f"1.2.{number}")) for number in range(count)]
    if fits:
        assert len(contexts_for(metas)) == 128
    else:
        with pytest.raises(LocalProtocolError, match="129 presentation contexts"):
            contexts_for(metas)


async def test_the_exact_transfer_syntax_or_an_error_that_says_what_there_is(serving, store, uids):
    """Nothing is ever sent under another syntax than its own."""
    store.services = Services()
    store.services.store(store.open, transfer_syntaxes=[EXPLICIT])
    contexts = propose_contexts([(CT, [EXPLICIT]), (CT, ["1.2.840.10008.1.2.4.50"]), ("1.2.99", ["1.2.7"])])
    async with (
        serving(store.services) as server,
        associate("127.0.0.1", server.port, contexts=contexts) as scu,
    ):
        with pytest.raises(NoPresentationContext) as caught:
            await scu.store(part10(syntax="1.2.840.10008.1.2.4.50"))
        assert str(caught.value) == (
            f"no presentation context for {CT} in 1.2.840.10008.1.2.4.50 (JPEG Baseline (Process 1)): "
            f"accepted are {EXPLICIT} (Explicit VR Little Endian)"
        )
        with pytest.raises(NoPresentationContext, match="was not accepted at all") as caught:
            await scu.store(part10(sop_class="1.2.99", syntax="1.2.7"))
        assert "1.2.99: transfer-syntaxes-not-supported" in str(caught.value)
        with pytest.raises(NoPresentationContext, match=r"1\.2\.840\.10008\.1\.1 was accepted"):
            await scu.echo()
        assert (await scu.store(part10())).status == 0
    assert len(store.sinks) == 1


# The operations window


async def test_without_negotiation_one_operation_at_a_time(strange):
    outstanding, most = [], []

    def answer(scp, send, request):
        outstanding.append(request)
        most.append(len(outstanding))
        asyncio.get_running_loop().call_soon(respond, send, request)

    def respond(send, request):
        outstanding.remove(request)
        send(CStoreRSP(request.message_id, 0, CT, request.affected_sop_instance_uid))

    scp = await strange(answer, operations=8)
    async with (
        associate("127.0.0.1", scp.port, contexts=propose_contexts([(CT, [EXPLICIT])])) as scu,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(10):
            tasks.create_task(scu.store(part10(instance=f"1.2.{number}")))
    assert most == [1] * 10
    assert [request.message_id for request in scp.requests] == list(range(1, 11))


async def test_a_window_of_eight_is_used_and_never_exceeded(strange, patience):
    waiting = []
    scp = await strange(lambda scp, send, request: waiting.append((send, request)), operations=8)
    async with (
        patience(),
        associate(
            "127.0.0.1", scp.port, contexts=propose_contexts([(CT, [EXPLICIT])]), maximum_operations=20
        ) as scu,
        asyncio.TaskGroup() as tasks,
    ):
        stores = [tasks.create_task(scu.store(part10(instance=f"1.2.{number}"))) for number in range(20)]
        for answered in range(20):
            while len(waiting) < min(8, 20 - answered):
                scp.changed.clear()
                await scp.changed.wait()
            assert len(waiting) == min(8, 20 - answered)
            send, request = waiting.pop(len(waiting) // 2)  # in any order
            send(CStoreRSP(request.message_id, 0, CT, request.affected_sop_instance_uid))
            if answered == 19:
                break
            # Wait for the effect of the answer: another request, or one store fewer.
            await asyncio.wait(stores, return_when=asyncio.FIRST_COMPLETED)
            stores = [each for each in stores if not each.done()]
    assert len({request.message_id for request in scp.requests}) == 20


async def test_a_find_and_stores_at_the_same_time(strange, patience):
    """Responses go to the operation whose Message ID they name."""
    later = []

    def answer(scp, send, request):
        if isinstance(request, CFindRQ):
            send(CFindRSP(request.message_id, 0xFF00, FIND, data_set_present=True), b"one ")
            later.append(lambda: send(CFindRSP(request.message_id, 0, FIND)))
        else:
            send(CStoreRSP(request.message_id, 0xB000, CT, request.affected_sop_instance_uid))

    scp = await strange(answer, operations=2)
    contexts = propose_contexts([(CT, [EXPLICIT]), (FIND, [EXPLICIT])])
    async with associate("127.0.0.1", scp.port, contexts=contexts, maximum_operations=2) as scu:
        invocation = await scu.invoke(lambda number: CFindRQ(number, FIND), scu.context_for(FIND), b"")
        assert (await scu.store(part10())).status == 0xB000
        later[0]()
        assert [response.data_set for response in [each async for each in invocation]] == [b"one ", None]
        assert (await invocation.final()).status == 0
        with pytest.raises(StopAsyncIteration):
            await anext(invocation)


# Strange responses (R21)


def store_response(**changes):
    def answer(scp, send, request):
        values = {
            "message_id_being_responded_to": request.message_id,
            "status": 0,
            "affected_sop_class_uid": CT,
            "affected_sop_instance_uid": request.affected_sop_instance_uid,
        }
        send(CStoreRSP(**(values | changes)))

    return answer


async def storing(scp, **options):
    async with associate(
        "127.0.0.1", scp.port, contexts=propose_contexts([(CT, [EXPLICIT])]), **options
    ) as scu:
        return await scu.store(part10())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"affected_sop_class_uid": "", "affected_sop_instance_uid": ""},
        {"message_id_being_responded_to": 4711},
        {"message_id_being_responded_to": 0, "affected_sop_instance_uid": ""},
    ],
    ids=["as it should be", "without UIDs", "another Message ID", "no Message ID and no UID"],
)
async def test_r21_responses_that_are_taken(strange, changes):
    scp = await strange(store_response(**changes))
    assert (await storing(scp)).status == 0


@pytest.mark.parametrize("status", [0xFFFF, 0x0001 << 4, 0xFE00, 0xFF00 + 2])
async def test_an_unknown_status_is_a_failure(strange, status):
    scp = await strange(store_response(status=status))
    with pytest.raises(DimseError, match=f"0x{status:04X}"):
        await storing(scp)


async def test_r21_a_response_for_another_instance_is_not_taken(strange):
    scp = await strange(store_response(message_id_being_responded_to=4711, affected_sop_instance_uid="9.9"))
    with pytest.raises(DeadlineExceeded, match="DIMSE response"):
        await storing(scp, response_s=0.02)


async def test_r21_a_response_of_another_type_is_not_taken(strange):
    def answer(scp, send, request):
        send(CEchoRSP(request.message_id, 0, CT))
        store_response(status=0xB006)(scp, send, request)

    assert (await storing(await strange(answer))).status == 0xB006


async def test_r21_a_second_response_is_not_taken_for_the_answer_to_the_next_request(strange):
    """Two final responses to the first C-STORE; the second must not call the other object stored."""

    def answer(scp, send, request):
        if len(scp.requests) == 1:
            for _ in range(2):
                send(CStoreRSP(request.message_id, 0))
        else:
            send(CStoreRSP(request.message_id, 0xA700))

    scp = await strange(answer)
    async with associate("127.0.0.1", scp.port, contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
        assert (await scu.store(part10())).status == 0
        with pytest.raises(DimseError):
            await scu.store(part10(instance="1.2.4"))


async def test_an_early_failure_does_not_disturb_the_rest_of_the_data_set(serving, connect, store, uids):
    """PS3.7 §9.1.1: an SCP may refuse before it has everything."""
    refused = []

    def early(request):
        refused.append(request)
        request.association.write_p_data(
            encode_message(
                3,
                CStoreRSP(request.command.message_id, 0xA700, CT, "1.2.3").encode(),
                maximum_length=16384,
            )
        )
        raise DimseError(0xA700)

    store.services.store(early, sop_classes=[CT])
    async with serving(store.services) as server, connect(server) as scu:
        for _ in range(2):
            with pytest.raises(DimseError):
                await scu.store(Instance(CT, "1.2.3", EXPLICIT, bytes(2_000_000)))
        await scu.echo()
    assert len(refused) == 2


async def test_a_response_beyond_the_limit_ends_the_association(strange):
    def answer(scp, send, request):
        send(CFindRSP(request.message_id, 0xFF00, FIND, data_set_present=True), bytes((1 << 20) + 2))

    scp = await strange(answer)
    async with associate("127.0.0.1", scp.port, contexts=propose_contexts([(FIND, [EXPLICIT])])) as scu:
        invocation = await scu.invoke(lambda number: CFindRQ(number, FIND), scu.context_for(FIND), b"")
        with pytest.raises(AssociationAborted, match="larger than 1048576"):
            await invocation.final()


# Deadlines


async def test_silence_has_a_deadline(strange):
    scp = await strange(lambda scp, send, request: None)
    with pytest.raises(DeadlineExceeded) as caught:
        await storing(scp, response_s=0.02)
    assert (caught.value.phase, caught.value.timeout_s) == ("the DIMSE response", 0.02)


async def test_a_response_that_nobody_waits_for_has_its_deadline_all_the_same(strange, patience):
    """A cancelled store keeps its place in the window: without a deadline the next one would wait for ever."""
    scp = await strange(lambda scp, send, request: None)
    contexts = propose_contexts([(CT, [EXPLICIT])])
    async with patience(), associate("127.0.0.1", scp.port, contexts=contexts, response_s=0.05) as scu:
        first = asyncio.create_task(scu.store(part10()))
        await scp.changed.wait()
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        with pytest.raises(DeadlineExceeded):
            await scu.store(part10())


async def test_a_slow_consumer_is_not_the_peers_silence(strange, patience):
    """The deadline does not run out while reading is held because responses wait for us."""

    def answer(scp, send, request):
        for _ in range(6):
            send(CFindRSP(request.message_id, 0xFF00, FIND, data_set_present=True), bytes(1 << 20))
        send(CFindRSP(request.message_id, 0, FIND))

    scp = await strange(answer)
    contexts = propose_contexts([(FIND, [EXPLICIT])])
    async with (
        patience(),
        associate("127.0.0.1", scp.port, contexts=contexts, response_s=0.3) as scu,
    ):
        held = asyncio.Event()
        hold = scu.association.hold_reading
        scu.association.hold_reading = lambda: (hold(), held.set())
        invocation = await scu.invoke(lambda number: CFindRQ(number, FIND), scu.context_for(FIND), b"")
        await held.wait()
        silence, turns = invocation._silence, []

        def watched():
            turns.append(1)
            silence()
            enough.set()

        enough = asyncio.Event()
        invocation._silence = watched
        invocation._restart_timer()
        await enough.wait()
        assert scu.association.is_open
        assert [len(each.data_set or b"") async for each in invocation] == [1 << 20] * 6 + [0]


# Cancelling


async def test_cancelled_while_waiting_leaves_the_association_usable(strange):
    held = []

    def answer(scp, send, request):
        held.append((send, request))
        if len(held) == 2:
            for send_one, one in held:
                store_response()(scp, send_one, one)

    scp = await strange(answer, operations=2)
    async with associate(
        "127.0.0.1", scp.port, contexts=propose_contexts([(CT, [EXPLICIT])]), maximum_operations=2
    ) as scu:
        first = asyncio.create_task(scu.store(part10()))
        await scp.changed.wait()
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        # The response to the first comes now, to nobody; the second one gets its own.
        assert (await scu.store(part10(instance="1.2.4"))).status == 0
        assert not scu.exchange.busy()


async def test_cancelled_while_waiting_for_a_place_in_the_window_leaves_it_to_the_next(strange):
    held = []
    scp = await strange(lambda scp, send, request: held.append((send, request)))
    async with associate("127.0.0.1", scp.port, contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
        stores = [asyncio.create_task(scu.store(part10(instance=f"1.2.{n}"))) for n in range(4)]
        while not held:
            scp.changed.clear()
            await scp.changed.wait()
        stores[1].cancel()
        stores[2].cancel()
        await asyncio.wait(stores[1:3])
        for expected in ("1.2.0", "1.2.3"):
            while not held:
                scp.changed.clear()
                await scp.changed.wait()
            send, request = held.pop()
            assert request.affected_sop_instance_uid == expected
            store_response()(scp, send, request)
            await stores[0 if expected == "1.2.0" else 3]


async def test_cancelled_in_mid_message_aborts(serving, connect, store, raw_peer, uids, patience):
    began, closed = asyncio.Event(), asyncio.Event()

    async def chunks():
        try:
            yield bytes(600_000)
            began.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with serving(store.services) as server:
        async with connect(server) as scu:
            sending = asyncio.create_task(scu.store(Instance(CT, "1.2.3", EXPLICIT, chunks())))
            async with patience():
                await began.wait()
            sending.cancel()
            await asyncio.wait({sending})
            assert sending.cancelled()
            assert closed.is_set()
            assert not scu.association.is_open
            with pytest.raises(AssociationAborted):
                await scu.echo()
        await store.until(lambda: store.ends)
    assert (store.sinks[0].finished, store.sinks[0].aborted) == (0, 1)


async def test_a_stream_that_raises_aborts_and_says_why(serving, connect, store):
    async def chunks():
        yield bytes(600_000)
        raise OSError("upstream is gone")

    async with serving(store.services) as server:
        with pytest.raises(OSError, match="upstream is gone"):
            async with connect(server) as scu:
                await scu.store(Instance(CT, "1.2.3", EXPLICIT, chunks()))
        await store.until(lambda: store.ends)
    assert isinstance(store.ends[0], AssociationAborted)
    assert store.sinks[0].aborted == 1


async def test_an_abandoned_find_takes_no_memory_and_holds_nobody(strange, patience):
    def answer(scp, send, request):
        for _ in range(20):
            send(CFindRSP(request.message_id, 0xFF00, FIND, data_set_present=True), bytes(1 << 20))
        send(CFindRSP(request.message_id, 0, FIND))

    scp = await strange(answer)
    contexts = propose_contexts([(FIND, [EXPLICIT]), (CT, [EXPLICIT])])
    async with patience(), associate("127.0.0.1", scp.port, contexts=contexts) as scu:
        invocation = await scu.invoke(lambda number: CFindRQ(number, FIND), scu.context_for(FIND), b"")
        assert (await anext(invocation)).status == 0xFF00
        invocation.abandon()
        scp.answer = store_response()
        assert (await scu.store(part10())).status == 0  # the window has one place
        assert not invocation._responses
        with pytest.raises(RuntimeError, match="abandoned"):
            await anext(invocation)


async def test_responses_for_a_slow_consumer_hold_the_peer(strange, patience):
    total = 40

    def answer(scp, send, request):
        for _ in range(total):
            send(CFindRSP(request.message_id, 0xFF00, FIND, data_set_present=True), bytes(1 << 20))
        send(CFindRSP(request.message_id, 0, FIND))

    scp = await strange(answer)
    async with (
        patience(),
        associate("127.0.0.1", scp.port, contexts=propose_contexts([(FIND, [EXPLICIT])])) as scu,
    ):
        held = asyncio.Event()
        hold = scu.association.hold_reading
        scu.association.hold_reading = lambda: (hold(), held.set())
        invocation = await scu.invoke(lambda number: CFindRQ(number, FIND), scu.context_for(FIND), b"")
        await held.wait()
        assert len(invocation._responses) <= 5
        assert len([each async for each in invocation]) == total + 1


async def test_cancelling_a_find(serving, connect):
    async def handler(operation):
        number = 0
        while not operation.cancelled.is_set():
            number += 1
            await operation.respond(
                CFindRSP(operation.request.message_id, 0xFF00, FIND, data_set_present=True), b"match "
            )
            await asyncio.sleep(0)
        return Outcome(0xFE00)

    services = Services()
    services.operation(CFindRQ, [FIND], handler)
    async with serving(services) as server, connect(server) as scu:
        invocation = await scu.invoke(lambda number: CFindRQ(number, FIND), scu.context_for(FIND), b"")
        async for response in invocation:
            if not invocation.done and response.status == 0xFF00:
                await invocation.cancel()
        assert response.status == 0xFE00
        await invocation.cancel()  # nothing is sent any more
        await scu.echo()


# The end of the block, and of the peer


async def test_the_block_ends_in_a_release(serving, connect, store):
    async with serving(store.services) as server, connect(server) as scu:
        await scu.echo()
    assert store.ends == [None]
    with pytest.raises(AssociationReleased):
        await scu.echo()


@pytest.mark.parametrize(
    "error", [ValueError("the caller's"), asyncio.CancelledError()], ids=["error", "cancelled"]
)
async def test_a_block_that_raises_aborts(serving, connect, store, error):
    async with serving(store.services) as server:
        with pytest.raises(type(error)):
            async with connect(server):
                raise error
        await store.until(lambda: store.ends)
    assert isinstance(store.ends[0], AssociationAborted)
    assert store.ends[0].by_peer


@pytest.fixture
def port_of_another_loop():
    """A server in a thread: its end is not waited for by the loop under test."""
    ready, port, stop = threading.Event(), [], []

    async def main():
        stop.append((asyncio.get_running_loop(), asyncio.Event()))
        async with serve(Services(), port=0) as server:
            port.append(server.port)
            ready.set()
            await stop[0][1].wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(5)
    yield port[0]
    stop[0][0].call_soon_threadsafe(stop[0][1].set)
    thread.join(5)


@pytest.mark.parametrize("fails", [False, True], ids=["released", "aborted"])
def test_nothing_is_left_open_when_the_loop_ends_with_the_block(port_of_another_loop, fails):
    """A program that runs one association in asyncio.run; an open socket would be a ResourceWarning."""

    async def main():
        async with associate("127.0.0.1", port_of_another_loop) as scu:
            await scu.echo()
            if fails:
                raise ValueError("the caller's")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(ValueError):
            asyncio.run(main())
        gc.collect()
    assert [str(each.message) for each in caught] == []


async def test_a_peer_that_releases_ends_what_is_outstanding(strange):
    scp = await strange(lambda scp, send, request: None)

    def release(scp, send, request):
        asyncio.get_running_loop().create_task(scp.state.association.release())

    scp.answer = release
    with pytest.raises(AssociationReleased):
        await storing(scp)


async def test_a_peer_that_vanishes_ends_what_is_outstanding_and_what_waits(strange):
    scp = await strange(lambda scp, send, request: scp.state.association.cut_after_writing())
    failures = []
    with contextlib.suppress(ConnectionLost):
        async with associate("127.0.0.1", scp.port, contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
            results = await asyncio.gather(
                *(scu.store(part10(instance=f"1.2.{n}")) for n in range(5)), return_exceptions=True
            )
            failures += results
    assert [type(each) for each in failures] == [ConnectionLost] * 5
    assert len(scp.requests) == 1


async def test_asking_while_the_association_is_being_released(serving, connect, store):
    async with serving(store.services) as server, connect(server) as scu:
        releasing = asyncio.create_task(scu.association.release())
        await asyncio.sleep(0)
        with pytest.raises(AssociationReleased):
            await scu.echo()
        await releasing


async def test_nobody_listens(free_port):
    with pytest.raises(ConnectFailed, match=re.escape(f"127.0.0.1:{free_port}")):
        async with associate("127.0.0.1", free_port):
            pass


async def test_a_wrong_called_ae_title(serving):
    async with serving(Services(), ae_title="RIGHT") as server:
        with pytest.raises(AssociationRejected, match="called-AE-title"):
            async with associate("127.0.0.1", server.port, called_ae_title="WRONG"):
                pass


async def test_a_peer_that_does_not_answer_the_release_costs_no_error(strange):
    """What was asked was answered; the association is aborted after release_s."""
    scp = await strange(store_response())
    user = scp.user
    quiet = lambda: setattr(made := user(), "release_requested", lambda: None) or made  # noqa: E731
    scp.user = quiet
    acceptor = Acceptor(AcceptorPolicy(other_abstract_syntaxes=lambda uid: SupportedAbstractSyntax()), quiet)
    await acceptor.listen("127.0.0.1", 0)
    try:
        scp.port = acceptor.addresses[0][1]
        assert (await storing(scp, timeouts=Timeouts(release_s=0.02))).status == 0
    finally:
        await acceptor.close()
    assert isinstance(scp.ends[0], AssociationAborted)


async def test_repr_says_with_whom(serving, connect):
    async with serving(Services()) as server, connect(server, called_ae_title="THEM") as scu:
        assert "HARMONY_SCU->THEM requestor 127.0.0.1" in repr(scu)
