"""Messages to PDUs and back: bytes laid out by hand from PS3.8 §9.3.5 and Annex E, and rules that hold for any size."""

import asyncio
import struct
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harmony.dimse.message import (
    BURST_BYTES,
    COMMAND_ROOM,
    WHOLE_BYTES,
    MessageAssembly,
    MessageWriter,
    encode_message,
)
from harmony.dimse.source import BytesSource, FileSource, StreamSource
from harmony.ul.errors import AssociationReleased, ConnectionLost, LocalProtocolError, RemoteProtocolError

COMMAND = b"<command set>!"  # 14 bytes


def pdus_of(data):
    """Every P-DATA-TF as a list of (context ID, control header, fragment), read by the letter of PS3.8 §9.3.5."""
    pdus, position = [], 0
    while position < len(data):
        pdu_type, reserved, length = struct.unpack_from(">BBI", data, position)
        assert (pdu_type, reserved) == (4, 0)
        position += 6
        end = position + length
        values = []
        while position < end:
            size, context_id, control = struct.unpack_from(">IBB", data, position)
            values.append((context_id, control, bytes(data[position + 6 : position + 4 + size])))
            position += 4 + size
        assert position == end
        pdus.append(values)
    return pdus


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def check(encoded, *, command, data, maximum_length, context_id=7):
    """The rules of PS3.8 Annex E for one message, and that its bytes are those that were sent."""
    position = 0
    while position < len(encoded):
        length = int.from_bytes(encoded[position + 2 : position + 6], "big")
        assert length <= maximum_length
        position += 6 + length
    fragments = [value for values in pdus_of(encoded) for value in values]
    assert all(identifier == context_id for identifier, _, _ in fragments)
    assert all(len(fragment) % 2 == 0 for _, _, fragment in fragments)
    controls = [control for _, control, _ in fragments]
    commands = controls.count(1) + controls.count(3)
    data_set_controls = [] if data is None else [0] * (len(controls) - commands - 1) + [2]
    assert controls == [1] * (commands - 1) + [3] + data_set_controls
    assert b"".join(fragment for _, control, fragment in fragments if control & 1) == command
    if data is not None:
        padded = data + b"\0" * (len(data) % 2)
        assert b"".join(fragment for _, control, fragment in fragments if not control & 1) == padded


# encode_message against bytes by hand


def test_a_command_alone():
    assert encode_message(1, b"abcd", maximum_length=16384) == bytes.fromhex(
        "04 00 0000000a  00000006 01 03  61626364"
    )


def test_command_and_data_set_in_one_pdu():
    assert encode_message(3, b"abcd", b"wxyz12", maximum_length=22) == bytes.fromhex(
        "04 00 00000016  00000006 03 03  61626364  00000008 03 02  7778797a3132"
    )


def test_two_pdus_when_one_would_be_a_byte_longer_than_the_maximum():
    assert encode_message(3, b"abcd", b"wxyz12", maximum_length=21) == bytes.fromhex(
        "04 00 0000000a  00000006 03 03  61626364  04 00 0000000c  00000008 03 02  7778797a3132"
    )


def test_two_pdus_when_packing_is_not_wanted():
    assert encode_message(3, b"abcd", b"wx", maximum_length=4096, pack=False) == bytes.fromhex(
        "04 00 0000000a  00000006 03 03  61626364  04 00 00000008  00000004 03 02  7778"
    )


def test_an_odd_data_set_is_padded():
    assert encode_message(3, b"ab", b"wxy", maximum_length=4096).endswith(bytes.fromhex("78 79 00"))


def test_an_empty_data_set_is_one_empty_last_fragment():
    assert encode_message(3, b"ab", b"", maximum_length=4096) == bytes.fromhex(
        "04 00 0000000e  00000004 03 03  6162  00000002 03 02"
    )


@pytest.mark.parametrize("maximum_length", [10, 11])
def test_split_exactly_at_multiples_of_the_maximum(maximum_length):
    """Fragments of four bytes, the last one full: no empty fragment follows it."""
    assert encode_message(1, b"abcdefgh", b"12345678", maximum_length=maximum_length) == bytes.fromhex(
        "04 00 0000000a  00000006 01 01  61626364"
        "04 00 0000000a  00000006 01 03  65666768"
        "04 00 0000000a  00000006 01 00  31323334"
        "04 00 0000000a  00000006 01 02  35363738"
    )


def test_one_pair_of_bytes_beyond_a_multiple():
    assert encode_message(1, b"ab", b"123456", maximum_length=10) == bytes.fromhex(
        "04 00 00000008  00000004 01 03  6162"
        "04 00 0000000a  00000006 01 00  31323334"
        "04 00 00000008  00000004 01 02  3536"
    )


@given(
    size=st.integers(0, 3000),
    command_size=st.integers(1, 400).map(lambda half: 2 * half),
    maximum_length=st.integers(8, 4000),
    pack=st.booleans(),
)
@example(size=1, command_size=2, maximum_length=8, pack=True)
@settings(deadline=None)
def test_pdus_obey_the_rules_for_any_size(size, command_size, maximum_length, pack):
    command, data = b"c" * command_size, pattern(size)
    encoded = encode_message(7, command, data, maximum_length=maximum_length, pack=pack)
    check(encoded, command=command, data=data, maximum_length=maximum_length)


# MessageAssembly


def assemble(encoded, cuts=()):
    """What an exchange does with p_data, fed with pieces of fragments: cuts says after how many bytes each."""
    assembly, command, data = MessageAssembly(), None, bytearray()
    cuts = iter(cuts)
    for values in pdus_of(encoded):
        for context_id, control, fragment in values:
            view = memoryview(fragment)
            while True:
                piece = view[: next(cuts, len(view))]
                view = view[len(piece) :]
                complete = not view
                if control & 1:
                    whole = assembly.command(context_id, piece, last=bool(control & 2), complete=complete)
                    if whole is not None:
                        assert command is None
                        command = whole
                        assembly.expects_data = True
                else:
                    assembly.check_data(context_id)
                    data += piece
                if complete:
                    break
    return command, bytes(data), assembly


@given(
    size=st.integers(0, 600).map(lambda half: 2 * half),
    maximum_length=st.integers(8, 700),
    cuts=st.lists(st.integers(1, 300), max_size=12),
)
@settings(deadline=None)
def test_what_was_split_is_put_together_again(size, maximum_length, cuts):
    data = pattern(size)
    command, assembled, _ = assemble(
        encode_message(7, COMMAND, data, maximum_length=maximum_length), cuts=cuts
    )
    assert (command, assembled) == (COMMAND, data)


def take(assembly, context_id, fragment, *, last=True, complete=True):
    return assembly.command(context_id, memoryview(fragment), last=last, complete=complete)


def test_r13_a_command_may_end_in_an_empty_fragment():
    assembly = MessageAssembly()
    assert take(assembly, 1, b"ab", last=False) is None
    assert not assembly.idle
    assert take(assembly, 1, b"") == b"ab"


def test_an_assembly_is_idle_again_after_the_end():
    assembly = MessageAssembly()
    assert assembly.idle
    take(assembly, 1, b"ab")
    assembly.expects_data = True
    assert not assembly.idle
    assembly.end()
    assert assembly.idle
    assert take(assembly, 3, b"cd") == b"cd"


def refusal_of(call):
    with pytest.raises(RemoteProtocolError) as caught:
        call()
    return caught.value.source, caught.value.reason


def test_r15_data_before_a_command_is_an_unexpected_parameter():
    assert refusal_of(lambda: MessageAssembly().check_data(1)) == (2, 5)


def test_r15_a_command_while_data_is_expected_is_an_unexpected_parameter():
    assembly = MessageAssembly()
    take(assembly, 1, b"ab")
    assembly.expects_data = True
    assert refusal_of(lambda: take(assembly, 1, b"cd")) == (2, 5)


def test_r15_another_context_inside_a_message_is_an_unexpected_parameter():
    assembly = MessageAssembly()
    take(assembly, 1, b"ab", last=False)
    assert refusal_of(lambda: take(assembly, 3, b"cd")) == (2, 5)
    assembly = MessageAssembly()
    take(assembly, 1, b"ab")
    assembly.expects_data = True
    assert refusal_of(lambda: assembly.check_data(3)) == (2, 5)


def test_a_command_set_has_a_limit():
    assembly = MessageAssembly()
    for _ in range(64):
        assert take(assembly, 1, bytes(1024), last=False) is None
    assert refusal_of(lambda: take(assembly, 1, b"x", last=False)) == (2, 6)


# MessageWriter


class Line:
    """An association that keeps what is written, and lets nothing leave before `flushed`.

    Like a transport that does not copy: it holds the buffers themselves and reads them when they leave.
    """

    def __init__(self, maximum_length, *, at_once=False):
        self.agreed = SimpleNamespace(peer_maximum_length=maximum_length)
        self.sent = bytearray()
        self.is_open = True
        self.writes = 0
        self.largest_write = 0
        self.error = None
        self._at_once = at_once
        self._waiting = []

    def write_p_data(self, pdus):
        if self.error is not None:
            raise self.error
        self.writes += 1
        self.largest_write = max(self.largest_write, len(pdus))
        self._waiting.append(pdus)
        if self._at_once:
            self._leave()
        return self._at_once

    def _leave(self):
        for pdus in self._waiting:
            self.sent += pdus
        self._waiting.clear()

    async def flushed(self):
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self._leave()

    def abort(self):
        self.is_open = False
        self.error = ConnectionLost("aborted")


def source_of(kind, data, path):
    if kind == "bytes":
        return data
    if kind == "BytesSource":
        return BytesSource(data)
    if kind == "FileSource":
        path.write_bytes(b"head" + data)
        return FileSource(path, offset=4)

    async def chunks():
        view, size = memoryview(data), 1
        while view:
            yield view[:size]
            view, size = view[size:], size * 3 + 1
            if kind == "StreamSource that pauses":
                await asyncio.sleep(0)

    return StreamSource(chunks())


KINDS = ["bytes", "BytesSource", "FileSource", "StreamSource", "StreamSource that pauses"]


def sizes(maximum_length):
    fragment = min((maximum_length - 6) & ~1, BURST_BYTES - 12)
    burst = -(-BURST_BYTES // (fragment + 12)) * fragment
    around = {fragment, burst, 2 * burst, WHOLE_BYTES}
    return sorted({0, 1, 2} | {size + step for size in around for step in (-2, -1, 0, 1, 2)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maximum_length", [4096, 16384, 131072, 262144, 1 << 20])
@pytest.mark.parametrize("at_once", [False, True], ids=["slow", "fast"])
async def test_any_source_gives_the_pdus_of_its_bytes(kind, maximum_length, at_once, tmp_path):
    line = Line(maximum_length, at_once=at_once)
    writer = MessageWriter(line)
    for size in sizes(maximum_length):
        data = pattern(size)
        await writer.send(7, COMMAND, source_of(kind, data, tmp_path / "data"))
        check(bytes(line.sent), command=COMMAND, data=data, maximum_length=maximum_length)
        line.sent.clear()


@pytest.mark.parametrize("at_once", [False, True], ids=["slow", "fast"])
@pytest.mark.parametrize("size", [1, 16378, 16379, 100_000, BURST_BYTES, 1_000_000])
async def test_no_more_than_a_fragment_is_kept_back_while_a_stream_stalls(size, at_once):
    """What it waits for may be the answer to what was sent."""
    line = Line(16384, at_once=at_once)
    stalled, going_on = asyncio.Event(), asyncio.Event()

    async def chunks():
        yield pattern(size)
        stalled.set()
        await going_on.wait()
        yield b"end."

    sending = asyncio.create_task(MessageWriter(line).send(7, COMMAND, StreamSource(chunks())))
    await stalled.wait()
    sent = sum(len(pdus) for pdus in (line.sent, *line._waiting))
    assert size - 16378 <= sent <= size + len(COMMAND) + 12 * (size // 16378 + 2)
    going_on.set()
    await sending
    check(bytes(line.sent), command=COMMAND, data=pattern(size) + b"end.", maximum_length=16384)


@pytest.mark.parametrize("how", ["cancelled", "the association ends"])
async def test_a_stream_left_while_it_stalls(how):
    line = Line(16384)
    stalled = asyncio.Event()

    async def chunks():
        yield bytes(20_000)
        if how != "cancelled":
            line.error = ConnectionLost("gone")
        stalled.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(MessageWriter(line).send(7, COMMAND, StreamSource(chunks())))
    await stalled.wait()
    if how == "cancelled":
        sending.cancel()
    with pytest.raises(asyncio.CancelledError if how == "cancelled" else ConnectionLost):
        await sending
    assert not line.is_open


@pytest.mark.parametrize("kind", ["BytesSource", "FileSource", "StreamSource"])
async def test_no_write_is_larger_than_a_burst(kind, tmp_path):
    line = Line(16384)
    await MessageWriter(line).send(7, COMMAND, source_of(kind, bytes(3 * BURST_BYTES), tmp_path / "data"))
    assert line.largest_write <= BURST_BYTES + 6 + 16384


@pytest.mark.parametrize("maximum_length", [16384, 65536, 131072, 262144, 1 << 20])
async def test_a_ct_image_goes_out_in_one_write_with_its_command(maximum_length):
    line, data = Line(maximum_length), pattern(512 * 512 * 2 + 400)
    await MessageWriter(line).send(7, COMMAND, BytesSource(data))
    assert line.writes == 1
    check(bytes(line.sent), command=COMMAND, data=data, maximum_length=maximum_length)


async def test_a_small_data_set_goes_out_in_one_write_with_its_command():
    line = Line(262144)
    await MessageWriter(line).send(7, COMMAND, BytesSource(pattern(WHOLE_BYTES)))
    assert line.writes == 1
    assert len(pdus_of(line.sent)) == 1


async def test_the_first_burst_goes_out_in_one_write_with_the_command():
    line = Line(131072)
    await MessageWriter(line).send(7, COMMAND, BytesSource(pattern(2 * 131066)))
    assert line.writes == 1
    check(bytes(line.sent), command=COMMAND, data=pattern(2 * 131066), maximum_length=131072)


@pytest.mark.parametrize("length", [COMMAND_ROOM - 12, COMMAND_ROOM - 10, 3 * COMMAND_ROOM])
async def test_a_command_too_long_for_the_room_before_a_burst_goes_first(length):
    line, command = Line(131072), pattern(length)
    await MessageWriter(line).send(7, command, BytesSource(pattern(100_000)))
    assert line.writes == (1 if length == COMMAND_ROOM - 12 else 2)
    check(bytes(line.sent), command=command, data=pattern(100_000), maximum_length=131072)


@given(
    size=st.integers(0, 2 * BURST_BYTES),
    maximum_length=st.sampled_from([4096, 16384, 65537, 131072, 1 << 24]),
    kind=st.sampled_from(KINDS[:2] + KINDS[3:]),
)
@settings(max_examples=40, deadline=None)
def test_any_size_by_any_source(size, maximum_length, kind):
    line, data = Line(maximum_length), pattern(size)
    asyncio.run(MessageWriter(line).send(7, COMMAND, source_of(kind, data, None)))
    check(bytes(line.sent), command=COMMAND, data=data, maximum_length=maximum_length)


async def test_contexts_and_last_fragments_leave_no_trace_in_the_next_message():
    line = Line(16384)
    writer = MessageWriter(line)
    for context_id, size in [(7, 600_001), (7, 700_000), (9, 300_000), (7, 1_000_000)]:
        await writer.send(context_id, COMMAND, BytesSource(pattern(size)))
        check(
            bytes(line.sent),
            command=COMMAND,
            data=pattern(size),
            maximum_length=16384,
            context_id=context_id,
        )
        line.sent.clear()


async def test_messages_of_concurrent_callers_are_not_mixed():
    line = Line(16384)
    writer = MessageWriter(line)
    data = [pattern(300_000 + 2 * index) for index in range(5)]
    async with asyncio.TaskGroup() as tasks:
        for index, each in enumerate(data):
            tasks.create_task(writer.send(2 * index + 1, COMMAND, BytesSource(each)))
    fragments = [value for values in pdus_of(bytes(line.sent)) for value in values]
    order = list(dict.fromkeys(context_id for context_id, _, _ in fragments))
    assert order == [1, 3, 5, 7, 9]
    assert [context_id for context_id, _, _ in fragments] == sorted(value[0] for value in fragments)


async def test_a_file_that_shrinks_in_mid_message_aborts(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(3 * BURST_BYTES))
    source = FileSource(path)
    path.write_bytes(bytes(BURST_BYTES + 4))
    line = Line(16384)
    with pytest.raises(EOFError, match="shorter"):
        await MessageWriter(line).send(7, COMMAND, source)
    source.close()
    assert not line.is_open


@pytest.mark.parametrize("size", [100, 3 * BURST_BYTES])
async def test_a_file_that_shrinks_before_the_first_byte_harms_nobody(size, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(size))
    source = FileSource(path)
    path.write_bytes(b"")
    line = Line(16384)
    writer = MessageWriter(line)
    with pytest.raises(EOFError):
        await writer.send(7, COMMAND, source)
    source.close()
    assert line.is_open
    assert not line.sent
    await writer.send(7, COMMAND)
    assert line.sent


async def test_a_stream_that_raises_aborts():
    async def chunks():
        yield bytes(BURST_BYTES)
        raise OSError("upstream is gone")

    line = Line(16384)
    with pytest.raises(OSError, match="upstream is gone"):
        await MessageWriter(line).send(7, COMMAND, StreamSource(chunks()))
    assert not line.is_open


async def test_what_ended_the_association_is_raised():
    line = Line(16384)
    line.error = ConnectionLost("gone")
    with pytest.raises(ConnectionLost, match="gone"):
        await MessageWriter(line).send(7, COMMAND, b"data")


async def test_nothing_can_be_sent_while_releasing():
    line = Line(16384)
    line.error = LocalProtocolError("P-DATA cannot be sent in STA7")
    with pytest.raises(AssociationReleased):
        await MessageWriter(line).send(7, COMMAND, b"data")


class Stuck(Line):
    """A line that takes what is written and lets it leave only when it is told to."""

    def __init__(self, maximum_length):
        super().__init__(maximum_length)
        self.may_leave = asyncio.Event()
        self.waiting = asyncio.Event()

    async def flushed(self):
        self.waiting.set()
        await self.may_leave.wait()
        self._leave()


@pytest.mark.parametrize("size", [1000, BURST_BYTES - 14], ids=["with its command", "in the burst buffer"])
async def test_cancelled_while_the_last_bytes_leave_harms_nobody(size):
    line = Stuck(1 << 20)
    writer = MessageWriter(line)
    sending = asyncio.create_task(writer.send(7, COMMAND, BytesSource(pattern(size))))
    await line.waiting.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert line.is_open
    # The next message does not touch what is still waiting to leave.
    line.may_leave.set()
    await writer.send(9, COMMAND, BytesSource(bytes(BURST_BYTES - 14)))
    fragments = [value for values in pdus_of(bytes(line.sent)) for value in values]
    data = {identifier: b"" for identifier, _, _ in fragments}
    for identifier, control, fragment in fragments:
        data[identifier] += fragment if not control & 1 else b""
    assert data == {7: pattern(size), 9: bytes(BURST_BYTES - 14)}


async def test_cancelled_in_mid_message_aborts():
    line = Stuck(16384)
    sending = asyncio.create_task(MessageWriter(line).send(7, COMMAND, BytesSource(bytes(3 * BURST_BYTES))))
    await line.waiting.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not line.is_open


async def test_cancelled_while_waiting_for_the_turn_harms_nobody():
    line = Stuck(16384)
    writer = MessageWriter(line)
    first = asyncio.create_task(writer.send(7, COMMAND))
    await line.waiting.wait()
    second = asyncio.create_task(writer.send(9, COMMAND))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    line.may_leave.set()
    await first
    assert line.is_open
    assert [values[0][0] for values in pdus_of(bytes(line.sent))] == [7]
