"""Find a few top-level elements of a data set (PS3.5 §7) in its bytes, while they arrive, without parsing it.

Who stores or forwards an object needs three or four UIDs from its header and nothing else. The scanner steps
from element to element by their lengths, keeps the values it was asked for, and stops as soon as it has them
or has passed the place where they would be. What it skips it neither copies nor looks at; what is split
between two fragments it carries over; any split of the same bytes gives the same result, but for how much
of a damaged deflate stream zlib still gives out.

Senders err, so it scans what is there rather than what was declared (both are noted): an Implicit VR data
set sent as Explicit or the reverse, a preamble and group 0002 inside a C-STORE, zlib-wrapped deflate,
sequences and items whose delimiters are missing, unknown VRs, elements out of order as long as none comes
after the last wanted tag.

Deliberately not here: values inside sequences, VR checks, character sets, validation. Bytes never raise: a
header that makes no sense ends the scan with a reason in `failed`, free of patient data. Called by
`harmony.archive` per object.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache

from harmony.dicom.vr import BIG_ENDIAN, IMPLICIT_HEADER, KNOWN_VRS, LITTLE_ENDIAN, Buffer

__all__ = ["HeaderScanner"]

DEFAULT_LIMIT_BYTES = 16 * 1024 * 1024
"""How far into the (inflated) data set to look. Headers end within some 100 KiB; this bounds a deflate bomb
to about 50 ms and a chain of millions of empty items to about a second."""
MAXIMUM_VALUE_BYTES = 64 * 1024
"""A wanted value longer than this is passed over; a 16-bit length cannot be longer."""
MAXIMUM_NESTING = 64
"""Levels of sequence plus item of undefined length; real data sets stay below 20."""

_START_BYTES = 134  # a preamble (PS3.10 §7.1), "DICM" and the group number of the file meta that must follow
_MAXIMUM_FILE_META_BYTES = 64 * 1024  # embedded file meta longer than this is no file meta
_FILE_META_BEGINNINGS = (  # the group length or the version, in Explicit or Implicit VR
    b"\x02\x00\x00\x00UL\x04\x00",
    b"\x02\x00\x00\x00\x04\x00\x00\x00",
    b"\x02\x00\x01\x00OB\x00\x00",
    b"\x02\x00\x01\x00\x02\x00\x00\x00",
)
_INFLATE_INPUT_BYTES = 4 * 1024  # small, because zlib copies what one call leaves over
_INFLATE_OUTPUT_BYTES = 64 * 1024

_UNDEFINED = 0xFFFFFFFF
_ITEM, _IMPLICIT = 1, 2  # flags of one nesting level; a level without _ITEM is a sequence

_IMPLICIT_VR = "1.2.840.10008.1.2"
_EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED_EXPLICIT_VR = "1.2.840.10008.1.2.1.99"
_OTHER_SYNTAXES = frozenset((_IMPLICIT_VR, _EXPLICIT_VR_BIG_ENDIAN, _DEFLATED_EXPLICIT_VR))
"""All others are Explicit VR Little Endian (PS3.5 Annex A)."""


@lru_cache(maxsize=64)  # programs have a handful of such sets
def _last_of(wanted: frozenset[int]) -> int:
    return max(wanted, default=-1)


class HeaderScanner:
    """Incremental scan of one data set.

    transfer_syntax_uid: as negotiated. Every encapsulated syntax of PS3.5 is Explicit VR LE; of a private or
        unknown one the first element tells.
    wanted: tags as 0xGGGGEEEE; only their first occurrence at the top level counts.
    """

    __slots__ = (
        "_carry",
        "_encoding",
        "_fed_bytes",
        "_final",
        "_inflate",
        "_inner",
        "_last_tag",
        "_limit_bytes",
        "_need",
        "_origin",
        "_skip",
        "_stack",
        "_step",
        "_syntax",
        "_wanted",
        "data_set_offset",
        "done",
        "embedded_file_meta",
        "failed",
        "mismatched_encoding",
        "values",
    )

    def __init__(
        self, transfer_syntax_uid: str, wanted: frozenset[int], *, limit_bytes: int = DEFAULT_LIMIT_BYTES
    ) -> None:
        self.values: dict[int, bytes] = {}
        """Raw value bytes by tag, padding included; `text` strips it."""
        self.done = False
        self.failed: str | None = None
        """Why the scan gave up, or None. What was found before that is in `values`."""
        self.embedded_file_meta = False
        """The bytes began with file meta (group 0002), which has no place in a C-STORE (PS3.10 §7.1)."""
        self.mismatched_encoding = False
        """The data set is not encoded as its transfer syntax says."""
        self.data_set_offset: int | None = None
        """Where the data set begins in the bytes fed: 0, or after embedded file meta. None until known."""
        self._syntax = transfer_syntax_uid
        self._wanted = wanted
        self._last_tag = _last_of(wanted)
        self._limit_bytes = limit_bytes
        self._step: Callable[[Buffer, int, int], int] = self._start
        self._encoding = LITTLE_ENDIAN
        self._carry: bytearray | None = None  # the beginning of what the last fragment left unfinished
        self._need = 0  # how long the carry must be before stepping on makes sense
        self._skip = 0  # bytes to pass over before anything is looked at again
        self._fed_bytes = 0
        self._origin = 0  # where in the data set index 0 of the buffer being stepped through lies
        self._stack: list[int] = []  # open sequences and items of undefined length, flags per level
        self._final = False
        self._inner: HeaderScanner | None = None  # scans what a deflated data set inflates to
        self._inflate: zlib._Decompress | None = None

    def __repr__(self) -> str:
        found = ", ".join(f"{tag >> 16:04x},{tag & 0xFFFF:04x}" for tag in self.values)
        return f"<HeaderScanner found [{found}] done={self.done} failed={self.failed!r}>"

    def text(self, tag: int) -> str:
        """Return the value as latin-1 text without its padding (PS3.5 §6.2); empty when not found."""
        value = self.values.get(tag)
        return "" if value is None else value.decode("latin-1").strip(" \0")

    def feed(self, fragment: memoryview) -> bool:
        """Scan the next bytes; nothing of `fragment` is kept except an unfinished element's beginning.

        Returns True when no more bytes are needed: all wanted elements are found or passed, or the scan gave
        up.
        """
        if self.done:
            return True
        size = len(fragment)
        at = 0
        if self._skip or self._carry is not None:
            at = self._resume(fragment, size)
        if at < size and not self.done:
            self._origin = self._fed_bytes
            self._need = 0
            at = self._step(fragment, at, size)
            if at > size:
                self._skip = at - size
            elif at < size and not self.done:
                self._carry = bytearray(fragment[at:])
        self._fed_bytes += size
        return self.done

    def finish(self) -> None:
        """No more bytes will come. What is still unfinished then is a failure, as is an empty data set."""
        if self.done:
            return
        self._final = True
        if self._carry is not None:
            carry, self._carry = self._carry, None
            self._origin = self._fed_bytes - len(carry)
            self._need = 0
            if not self.done:
                at = self._step(carry, 0, len(carry))
                self._skip = max(0, at - len(carry))
        if self._inner is not None:
            self._inner.finish()
            self.failed = self._inner.failed
            self.mismatched_encoding |= self._inner.mismatched_encoding
            self.done = True
        nothing = self._step == self._file_meta  # has come but file meta
        if self.data_set_offset is None:
            self.data_set_offset = 0
        if self.done:
            return
        if not self._fed_bytes or (nothing and not self._need and not self._skip):
            self._give_up("the data set is empty")
        elif self._need or self._skip or self._stack:
            self._give_up(f"the data set ends inside an element, after {self._fed_bytes} bytes")
        self.done = True

    def _resume(self, fragment: memoryview, size: int) -> int:
        """Finish what an earlier fragment left, copying no more than that takes; return where to go on."""
        at = 0
        while True:
            if self._skip:
                if self._skip >= size - at:
                    self._skip -= size - at
                    return size
                at += self._skip
                self._skip = 0
            carry = self._carry
            if carry is None:
                return at
            missing = self._need - len(carry)
            carry += fragment[at : at + missing]
            at += missing
            if at > size:
                return size
            self._need = 0
            self._origin = self._fed_bytes + at - len(carry)
            stepped = self._step(carry, 0, len(carry))
            if self.done:
                return size
            if stepped >= len(carry):
                self._carry = None
                self._skip = stepped - len(carry)
            else:
                del carry[:stepped]

    # Steps: each goes from `at` as far as it can, and returns the index of the first byte it has not dealt
    # with, past `end` when an element continues there. When that is before `end`, `_need` says how many
    # bytes it takes.

    def _start(self, data: Buffer, at: int, end: int) -> int:
        """Pass over a preamble and "DICM"; see whether file meta or the data set begins."""
        if end - at < _START_BYTES and not self._final:
            self._need = _START_BYTES
            return at
        if bytes(data[at + 128 : at + _START_BYTES]) == b"DICM\x02\x00":
            self._step = self._file_meta
            return self._file_meta(data, at + 132, end)
        if bytes(data[at : at + 8]) in _FILE_META_BEGINNINGS:
            self._step = self._file_meta
            return self._file_meta(data, at, end)
        self._step = self._first_element
        return self._first_element(data, at, end)

    def _file_meta(self, data: Buffer, at: int, end: int) -> int:
        """Pass over group 0002 element by element: its group length is often wrong (PS3.10 §7.1)."""
        self.embedded_file_meta = True
        while end - at >= 12 or (self._final and end - at >= 8):
            group, _, vr, length = LITTLE_ENDIAN.header(data, at)
            if group != 0x0002:
                self._step = self._first_element
                return self._first_element(data, at, end)
            value = at + 8
            if vr not in LITTLE_ENDIAN.short:
                header = LITTLE_ENDIAN.unusual_header(data, at, end)
                if header is None:
                    break
                value, length = header
            stop = value + length
            if self._origin + stop > _MAXIMUM_FILE_META_BYTES:
                return self._give_up("the file meta inside the data set is too long")
            if stop > end:
                return stop
            at = stop
        self._need = 12 if at < end else 0
        return at

    def _first_element(self, data: Buffer, at: int, end: int) -> int:
        """Decide the encoding: the first element's VR field either holds a VR or half of a length."""
        if end - at < 8:
            self._need = 8
            return at
        self.data_set_offset = self._origin + at
        first = bytes(data[at : at + 6])
        start, explicit = first[:2], first[4:] in KNOWN_VRS
        syntax = self._syntax
        if explicit and start == b"\x08\x00" and syntax not in _OTHER_SYNTAXES:  # nearly always
            self._step = self._explicit
            return self._explicit(data, at, end)
        if syntax == _DEFLATED_EXPLICIT_VR and not (explicit and start == b"\x08\x00"):
            # Raw deflate (PS3.5 Annex A.5), though some senders wrap it as zlib: RFC 1950 §2.2 makes its
            # first two bytes a multiple of 31, and 8 in the low nibble is no beginning that a deflater
            # writes.
            wrapped = start[0] & 0x0F == 8 and start[0] < 0x80 and int.from_bytes(start, "big") % 31 == 0
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
            self._inner = HeaderScanner("1.2.840.10008.1.2.1", self._wanted, limit_bytes=self._limit_bytes)
            self._inner.values = self.values
            self._step = self._inflated
            return self._inflated(data, at, end)
        if explicit:
            # The byte order is the declared one, unless the other makes the first group 0008 and this one
            # 0800.
            big = start == b"\x00\x08" if syntax != _EXPLICIT_VR_BIG_ENDIAN else start != b"\x08\x00"
            declared = syntax not in (_IMPLICIT_VR, _DEFLATED_EXPLICIT_VR) and big == (
                syntax == _EXPLICIT_VR_BIG_ENDIAN
            )
            self._encoding = BIG_ENDIAN if big else LITTLE_ENDIAN
            self._step = self._explicit
        else:
            declared = syntax == _IMPLICIT_VR
            self._step = self._implicit
        known = syntax == _IMPLICIT_VR or syntax.startswith(_IMPLICIT_VR + ".")
        self.mismatched_encoding = known and not declared
        return self._step(data, at, end)

    def _explicit(self, data: Buffer, at: int, end: int) -> int:
        """Step through Explicit VR elements; once per received object, so: locals, no calls, no copies."""
        if self._stack:
            at = self._nested(data, at, end)
            if self._stack or self.done:
                return at
        encoding = self._encoding
        unpack, short = encoding.header, encoding.short
        wanted, last_tag, values = self._wanted, self._last_tag, self.values
        last_header = min(end, self._limit_bytes - self._origin) - 8
        while at <= last_header:
            group, element, vr, length = unpack(data, at)
            tag: int = group << 16 | element
            if tag > last_tag:
                if group != 0xFFFE:
                    self.done = True
                    return at
                at += 8  # a delimiter that ends nothing; some writers add one to a sequence of known length
                continue
            if vr in short:
                value = at + 8
                if tag not in wanted:
                    at = value + length
                    continue
            else:
                header = encoding.unusual_header(data, at, end)
                if header is None:
                    self._need = 12
                    return at
                value, length = header
            if tag in wanted and length <= MAXIMUM_VALUE_BYTES:
                at, start = value + length, at
                if at > end:
                    self._need = at - start
                    return start
                if tag not in values:
                    values[tag] = bytes(data[value:at])
                    if len(values) == len(wanted):
                        self.done = True
                        return at
                continue
            if length == _UNDEFINED:
                self._stack.append(_IMPLICIT if vr == encoding.un else 0)
                at = self._nested(data, value, end)
                if self._stack or self.done:
                    return at
                continue
            at = value + length
        return self._between_elements(at, end)

    def _implicit(self, data: Buffer, at: int, end: int) -> int:
        """Step through Implicit VR elements; the same loop with a simpler header."""
        if self._stack:
            at = self._nested(data, at, end)
            if self._stack or self.done:
                return at
        unpack = IMPLICIT_HEADER
        wanted, last_tag, values = self._wanted, self._last_tag, self.values
        last_header = min(end, self._limit_bytes - self._origin) - 8
        while at <= last_header:
            group, element, length = unpack(data, at)
            tag: int = group << 16 | element
            if tag > last_tag:
                if group != 0xFFFE:
                    self.done = True
                    return at
                at += 8
                continue
            if tag in wanted and length <= MAXIMUM_VALUE_BYTES:
                stop = at + 8 + length
                if stop > end:
                    self._need = stop - at
                    return at
                if tag not in values:
                    values[tag] = bytes(data[at + 8 : stop])
                    if len(values) == len(wanted):
                        self.done = True
                        return stop
            elif length == _UNDEFINED:
                self._stack.append(_IMPLICIT)
                at = self._nested(data, at + 8, end)
                if self._stack or self.done:
                    return at
                continue
            at += 8 + length
        return self._between_elements(at, end)

    def _nested(self, data: Buffer, at: int, end: int) -> int:
        """Walk sequences and items of undefined length (PS3.5 §7.5) until the outermost one is closed.

        Items and elements of known length are stepped over whole. Contents of a UN element of undefined
        length are Implicit VR LE whatever surrounds them (PS3.5 §6.2.2 note 2). A missing delimiter is
        supplied where the next tag shows that it is missing.
        """
        stack, encoding = self._stack, self._encoding
        last_header = min(end, self._limit_bytes - self._origin) - 8
        while stack:
            if at > last_header:
                return self._between_elements(at, end)
            level = stack[-1]
            group, element, length = (IMPLICIT_HEADER if level & _IMPLICIT else encoding.item)(data, at)
            if group == 0xFFFE:
                if element == 0xE000 and level & _ITEM:
                    stack.pop()
                    continue
                at += 8
                if element == 0xE000:
                    if length != _UNDEFINED:
                        at += length
                    elif len(stack) >= MAXIMUM_NESTING:
                        return self._give_up(f"sequences are nested deeper than {MAXIMUM_NESTING} levels")
                    else:
                        stack.append(level | _ITEM)
                elif element == 0xE00D and level & _ITEM:
                    stack.pop()
                elif element == 0xE0DD:
                    del stack[-2 if level & _ITEM else -1 :]
                continue
            if not level & _ITEM:
                stack.pop()
                continue
            value = at + 8
            below = _IMPLICIT
            if not level & _IMPLICIT:
                _, _, vr, length = encoding.header(data, at)
                below = 0
                if vr not in encoding.short:
                    header = encoding.unusual_header(data, at, end)
                    if header is None:
                        self._need = 12
                        return at
                    value, length = header
                    below = _IMPLICIT if vr == encoding.un else 0
            if length != _UNDEFINED:
                at = value + length
            elif len(stack) >= MAXIMUM_NESTING:
                return self._give_up(f"sequences are nested deeper than {MAXIMUM_NESTING} levels")
            else:
                stack.append(below)
                at = value
        return at

    def _inflated(self, data: Buffer, at: int, end: int) -> int:
        """Inflate in small steps into the inner scanner, until it has enough: a bomb ends at its limit."""
        inner, inflate = self._inner, self._inflate
        assert inner is not None
        assert inflate is not None
        try:
            while at < end and not inflate.eof:
                piece = bytes(data[at : min(at + _INFLATE_INPUT_BYTES, end)])
                at += len(piece)
                while True:
                    output = inflate.decompress(piece, _INFLATE_OUTPUT_BYTES)
                    if output and inner.feed(memoryview(output)):
                        self.failed = inner.failed
                        self.mismatched_encoding |= inner.mismatched_encoding
                        self.done = True
                        return end
                    piece = inflate.unconsumed_tail
                    if not piece and len(output) < _INFLATE_OUTPUT_BYTES:
                        break
        except zlib.error:
            return self._give_up("the deflated data set cannot be inflated")
        return end

    def _between_elements(self, at: int, end: int) -> int:
        """No whole header is left before `end` or the limit: ask for more bytes, or give up."""
        if at > self._limit_bytes - self._origin - 8:
            return self._give_up(f"not all wanted elements are within the first {self._limit_bytes} bytes")
        if at < end:
            self._need = 8
        return at

    def _give_up(self, reason: str) -> int:
        self.failed = reason
        self.done = True
        self._stack.clear()
        return 0
