"""Messages to P-DATA-TF PDUs and back (PS3.7 §6.3, PS3.8 §9.3.5 and Annex E).

Sending: `encode_message` makes the PDUs of a message that is at hand, command and data set in one PDU when
they fit; `MessageWriter` sends one whose data set comes from a source, in bursts of PDUs laid out in one
reusable buffer.

Receiving: `MessageAssembly` is the order in which fragments may come. It collects the command set and says
where data set fragments belong; it never holds a data set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from struct import Struct
from typing import Any, Generic, TypeVar, cast

from harmony.dimse.source import DataSource, StreamSource
from harmony.ul.association import Association
from harmony.ul.errors import AssociationReleased, LocalProtocolError, RemoteProtocolError

__all__ = ["MessageAssembly", "MessageWriter", "encode_message"]

T = TypeVar("T")

COMMAND, DATA, LAST = 1, 0, 2
"""Message control header, PS3.8 Table E.2-1: bit 0 command, bit 1 last fragment."""

PDV_OVERHEAD = 6  # item length, presentation context ID, message control header
BURST_BYTES = 528 * 1024
"""One write takes so much and what is left of its last PDU: a CT image of 512 x 512 with its header, whatever the
length of the PDUs. Enough to make the system call cheap, small enough to stay in the CPU's cache."""

WHOLE_BYTES = 32 * 1024
"""Data sets up to this size are joined with their command. Larger buffers come from the system and go back to it each
time, and every page of them costs a fault."""

COMMAND_ROOM = 1024
"""In front of the PDUs of a burst. Two UIDs and an AE title need 300 bytes; a longer command is written on its own."""

COMMAND_SET_LIMIT = 64 * 1024
"""Longest command set that is collected. Real ones have a few hundred bytes; AT lists are the only unbounded
part."""

_PDU_AND_PDV = Struct(">BxIIBB")
_PDV = Struct(">IBB")
_PDU = Struct(">BxI")
PDU_AND_PDV_HEADERS = _HEADERS = _PDU_AND_PDV.size
"""Bytes in front of the fragment in a P-DATA-TF of one."""


def fragment_limit(maximum_length: int) -> int:
    """Bytes of the longest fragment in a P-DATA-TF of at most maximum_length: even, as PS3.8 Annex E.2 wants
    it."""
    return max(2, (maximum_length - PDV_OVERHEAD) & ~1)


def encode_message(
    presentation_context_id: int,
    command: bytes,
    data: bytes | bytearray | None = None,
    *,
    maximum_length: int,
    pack: bool = True,
) -> bytes:
    """The P-DATA-TF PDUs of a whole message, joined.

    command, data: encoded command set and data set; data None when there is none, b"" makes one empty last
    fragment. maximum_length: of the PDU's variable field, as the peer announced it. pack: command and data
    PDVs may share a PDU. A data set of odd length, which no sender should have (PS3.5 §7.1.1), is padded with
    one NUL.
    """
    if data is not None and len(data) & 1:
        data = data + b"\0"
    limit = fragment_limit(maximum_length)
    if len(command) <= limit:
        if data is None:
            return (
                _PDU_AND_PDV.pack(
                    4, len(command) + 6, len(command) + 2, presentation_context_id, COMMAND | LAST
                )
                + command
            )
        length = 2 * PDV_OVERHEAD + len(command) + len(data)
        if pack and length <= maximum_length:
            return b"".join(
                (
                    _PDU_AND_PDV.pack(4, length, len(command) + 2, presentation_context_id, COMMAND | LAST),
                    command,
                    _PDV.pack(len(data) + 2, presentation_context_id, DATA | LAST),
                    data,
                )
            )
    pieces: list[bytes | bytearray] = []
    _split(pieces, presentation_context_id, COMMAND, command, limit)
    if data is not None:
        _split(pieces, presentation_context_id, DATA, data, limit)
    return b"".join(pieces)


def _split(
    pieces: list[bytes | bytearray],
    presentation_context_id: int,
    kind: int,
    value: bytes | bytearray,
    limit: int,
) -> None:
    for start in range(0, len(value) or 1, limit):
        fragment = value[start : start + limit]
        control = kind | (LAST if start + limit >= len(value) else 0)
        size = len(fragment)
        pieces.append(_PDU_AND_PDV.pack(4, size + 6, size + 2, presentation_context_id, control))
        pieces.append(fragment)


class MessageWriter:
    """Sends messages on one association, each as a whole: callers take `turn`s.

    Data sets pass through one buffer that is laid out once as `header, fragment, header, fragment, ...`; a
    source fills the fragments in place, and one write sends the burst, with the command in front of the first.
    """

    def __init__(self, association: Association, *, pack: bool = True) -> None:
        self.turn = asyncio.Lock()
        """Held while a message is being sent."""
        self._association = association
        self._maximum_length = association.agreed.peer_maximum_length
        self._pack = pack
        self._fragment_size = min(fragment_limit(self._maximum_length), fragment_limit(BURST_BYTES - 6))
        self._burst: _Burst | None = None

    def write_now(self, presentation_context_id: int, command: bytes) -> None:
        """Write a message without data set and without waiting. Only while nobody has the turn."""
        assert not self.turn.locked()
        self._write(encode_message(presentation_context_id, command, maximum_length=self._maximum_length))

    async def send(
        self,
        presentation_context_id: int,
        command: bytes,
        data: bytes | DataSource | StreamSource | None = None,
    ) -> None:
        """Take the turn and `write`."""
        async with self.turn:
            await self.write(presentation_context_id, command, data)

    async def write(
        self,
        presentation_context_id: int,
        command: bytes,
        data: bytes | DataSource | StreamSource | None = None,
    ) -> None:
        """Send one message and wait until it has left; the caller has the turn.

        Raises what ended the association, AssociationReleased when it may not send any more. When a source fails
        or the caller is cancelled in mid-message, the peer has half of one: the association is aborted. Before
        the first byte, or after the last was handed to the transport, it is not.
        """
        association = self._association
        if data is None or isinstance(data, bytes):
            has_left = self._write_whole(presentation_context_id, command, data)
        elif isinstance(data, StreamSource):
            self._write_whole(presentation_context_id, command, None)
            try:
                has_left = await self._write_stream(presentation_context_id, data)
            except BaseException:
                if association.is_open:
                    association.abort()
                raise
        elif data.size_bytes <= WHOLE_BYTES:
            # One copy into one PDU (or a few) is cheaper than a burst.
            whole = bytearray(data.size_bytes + (data.size_bytes & 1))
            if whole:
                data.read_into([memoryview(whole)[: data.size_bytes]])
            has_left = self._write_whole(presentation_context_id, command, whole)
        else:
            has_left = await self._write_source(presentation_context_id, command, data)
        if not has_left:
            await association.flushed()
        if self._burst is not None:
            self._burst.is_free = True

    def _write_whole(
        self, presentation_context_id: int, command: bytes, data: bytes | bytearray | None
    ) -> bool:
        return self._write(
            encode_message(
                presentation_context_id,
                command,
                data,
                maximum_length=self._maximum_length,
                pack=self._pack,
            )
        )

    def _write(self, pdus: bytes | memoryview) -> bool:
        try:
            return self._association.write_p_data(pdus)
        except LocalProtocolError as error:
            raise AssociationReleased("the association is being released") from error

    async def _write_source(self, presentation_context_id: int, command: bytes, source: DataSource) -> bool:
        """Command and data set in bursts, the command in the first one's write; False when the last one has not left
        yet."""
        burst = self._take_burst(presentation_context_id)
        pdus = encode_message(presentation_context_id, command, maximum_length=self._maximum_length)
        begun = False
        try:
            start = burst.put_before(pdus)
            if start is None:
                begun = True
                self._write(pdus)
                start = COMMAND_ROOM
            left = source.size_bytes
            while left > burst.capacity:
                source.read_into(burst.fragments)
                left -= burst.capacity
                begun = True
                await self._write_burst(burst, start)
                start = COMMAND_ROOM
            odd = left & 1
            end, ending = burst.prepare_last(left + odd)
            if odd:
                burst.buffer[end - 1] = 0
                ending[-1] = ending[-1][:-1]
            source.read_into(ending)
            return self._write(burst.buffer[start:end])
        except BaseException:
            if begun and self._association.is_open:
                self._association.abort()
            burst.is_free = not begun
            raise

    async def _write_stream(self, presentation_context_id: int, source: StreamSource) -> bool:
        """As _write_source, for a length that shows only at the end: something is kept back until more has come.

        A full burst that is when chunks follow each other, a fragment when the source takes its time: what it waits
        for may be the answer to what has not been sent.
        """
        burst = self._take_burst(presentation_context_id)
        size = self._fragment_size
        filled = sent = 0  # bytes in the burst, fragments of it that are written already
        has_left = True

        def stalled() -> None:
            nonlocal sent, has_left
            sent = max(0, filled - 1) // size
            if sent:
                has_left = self._write(burst.buffer[COMMAND_ROOM : burst.end_of(sent)])

        chunks = aiter(source.chunks)
        chunk: bytes | memoryview | None
        while True:
            try:
                chunk = await _Noticed(anext(chunks), stalled)
            except StopAsyncIteration:
                chunk = None
            if sent:
                filled = await self._keep_rest(burst, filled, sent, has_left=has_left)
                sent = 0
            if chunk is None:
                break
            view = memoryview(chunk).cast("B")
            while view:
                if filled == burst.capacity:
                    await self._write_burst(burst)
                    filled = 0
                index, start = divmod(filled, size)
                place = burst.fragments[index][start : start + len(view)]
                place[:] = view[: len(place)]
                filled += len(place)
                view = view[len(place) :]
        odd = filled & 1
        end, _ = burst.prepare_last(filled + odd)
        if odd:
            burst.buffer[end - 1] = 0
        return self._write(burst.buffer[COMMAND_ROOM:end])

    async def _keep_rest(self, burst: _Burst, filled: int, sent: int, *, has_left: bool) -> int:
        """After the first `sent` fragments were written: move the rest to the front; its length."""
        if not has_left:
            await self._association.flushed()
        rest = filled - sent * self._fragment_size
        burst.fragments[0][:rest] = burst.fragments[sent][:rest]
        return rest

    async def _write_burst(self, burst: _Burst, start: int = COMMAND_ROOM) -> None:
        if not self._write(burst.buffer[start:]):
            await self._association.flushed()
        else:
            await asyncio.sleep(0)  # a peer that takes everything at once must not starve the others

    def _take_burst(self, presentation_context_id: int) -> _Burst:
        burst = self._burst
        if burst is None or not burst.is_free:  # one that a cancelled call left may still be in the transport
            burst = self._burst = _Burst(self._fragment_size)
        burst.is_free = False
        burst.address(presentation_context_id)
        return burst


class _Burst:
    """A buffer of full P-DATA-TF PDUs, one data fragment each, whose headers are written once; in front of them there
    is room for the command."""

    def __init__(self, fragment_size: int) -> None:
        pdu_size = _HEADERS + fragment_size
        self.count = -(-BURST_BYTES // pdu_size)
        self.fragment_size = fragment_size
        self.capacity = self.count * fragment_size
        self.buffer = memoryview(bytearray(COMMAND_ROOM + self.count * pdu_size))
        starts = [COMMAND_ROOM + index * pdu_size for index in range(self.count)]
        self._starts = starts
        self.fragments = [self.buffer[start + _HEADERS : start + pdu_size] for start in starts]
        self._presentation_context_id = -1
        self._changed: int | None = None
        self.is_free = True
        """False while its bytes may not have left."""

    def address(self, presentation_context_id: int) -> None:
        """Make the headers those of full fragments, not the last, on this context."""
        changed = self._starts
        if presentation_context_id == self._presentation_context_id:
            changed = [] if self._changed is None else [self._changed]
        self._presentation_context_id = presentation_context_id
        for start in changed:
            self._header(start, self.fragment_size, DATA)
        self._changed = None

    def end_of(self, count: int) -> int:
        """Where the first `count` PDUs end in the buffer."""
        return COMMAND_ROOM + count * (_HEADERS + self.fragment_size)

    def put_before(self, pdus: bytes) -> int | None:
        """Put PDUs right before the first fragment's; where they start, or None when there is no room for them."""
        start = COMMAND_ROOM - len(pdus)
        if start < 0:
            return None
        self.buffer[start:COMMAND_ROOM] = pdus
        return start

    def prepare_last(self, size: int) -> tuple[int, list[memoryview]]:
        """Where the PDUs end, and the fragment places, for the final `size` bytes (even, at most the capacity, 0
        allowed)."""
        full, rest = divmod(size, self.fragment_size)
        if rest == 0 and full:
            full, rest = full - 1, self.fragment_size
        start = self._starts[full]
        self._header(start, rest, DATA | LAST)
        self._changed = start
        end = start + _HEADERS + rest
        return end, [*self.fragments[:full], self.buffer[start + _HEADERS : end]]

    def _header(self, start: int, size: int, control: int) -> None:
        _PDU_AND_PDV.pack_into(
            self.buffer, start, 4, size + 6, size + 2, self._presentation_context_id, control
        )


class MessageAssembly:
    """The order of fragments in one direction (PS3.8 §E.2): a command set, then its data set, on one context.

    Anything else is RemoteProtocolError 2/5, unexpected PDU parameter, which aborts the association.
    """

    def __init__(self) -> None:
        self.presentation_context_id = 0
        self.expects_data = False
        """True from a command that announced a data set to that data set's last fragment."""
        self._command = bytearray()

    @property
    def idle(self) -> bool:
        """True between messages."""
        return not self.expects_data and not self.presentation_context_id

    def command(
        self, presentation_context_id: int, fragment: memoryview, *, last: bool, complete: bool
    ) -> bytes | None:
        """A piece of a command fragment; the whole command set with its last one, else None."""
        if self.expects_data:
            raise RemoteProtocolError("command fragment while a data set is expected", reason=5)
        if self.presentation_context_id != presentation_context_id:
            if self.presentation_context_id:
                raise RemoteProtocolError(
                    f"presentation context {presentation_context_id} inside a message on "
                    f"{self.presentation_context_id}",
                    reason=5,
                )
            self.presentation_context_id = presentation_context_id
        if last and complete and not self._command:
            return bytes(fragment)
        if len(self._command) + len(fragment) > COMMAND_SET_LIMIT:
            raise RemoteProtocolError(f"command set longer than {COMMAND_SET_LIMIT} bytes")
        self._command += fragment
        if not (last and complete):
            return None
        whole = bytes(self._command)
        self._command.clear()
        return whole

    def check_data(self, presentation_context_id: int) -> None:
        """A data set fragment has come: is it one's turn?"""
        if not self.expects_data:
            raise RemoteProtocolError("data set fragment, expected a command", reason=5)
        if presentation_context_id != self.presentation_context_id:
            raise RemoteProtocolError(
                f"presentation context {presentation_context_id} inside a message on "
                f"{self.presentation_context_id}",
                reason=5,
            )

    def end(self) -> None:
        """The message is complete."""
        self.presentation_context_id = 0
        self.expects_data = False


class _Noticed(Generic[T]):
    """Awaits something, and calls `stalled` when it is not there at once."""

    def __init__(self, awaited: Awaitable[T], stalled: Callable[[], None]) -> None:
        self._awaited = awaited
        self._stalled = stalled

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._awaited.__await__()
        try:
            waited_for = next(steps)
            self._stalled()
            while True:  # what `yield from` does, had it not begun
                try:
                    sent = yield waited_for
                except BaseException as error:
                    waited_for = steps.throw(error)
                else:
                    waited_for = steps.send(sent)
        except StopIteration as done:
            return cast(T, done.value)  # StopIteration's value is Any
        finally:
            steps.close()
