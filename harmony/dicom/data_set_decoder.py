"""Data sets (PS3.5 §7) to the DICOM JSON Model, without bulk data.

Once per received object for the index and once per identifier of a query, so it is one loop over the bytes:
what an element header means (key, VR, the function for its value) is looked up by the header's own first
bytes, which repeat from object to object.

It reads what is there. An Implicit VR data set sent as Explicit or the reverse, file meta in front, VRs that
do not exist, lengths that point outside, missing delimiters, elements out of order or repeated (the first
counts, as for `harmony.dicom.scanner`): what can be understood is in the model, the rest is not. Only bytes
that are no data set at all raise.

What is not in the model: group lengths, file meta, the values of bulk VRs (OB, OW ...), of UN when longer
than 1 KiB, and of anything longer than the caller wants; of these `{"vr": ...}` tells that they are there.
With `complete` everything is, short bulk data as InlineBinary, and what is too long is told from what is
empty (PS3.18 §F.2.6).
Deliberately not here: the values themselves (`harmony.dicom.json_values`), pixel data, checks against IODs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from harmony.dicom.byte_order import WORD_BYTES, swap_words
from harmony.dicom.character_set import ASCII, CharacterSet, character_set
from harmony.dicom.dictionary import ambiguous_vr_of
from harmony.dicom.element_header import (
    IMPLICIT,
    ITEM,
    ITEM_END,
    NO_VR,
    SEQUENCE_END,
    SHORT_LENGTH,
    SKIPPED_GROUPS,
    SPECIFIC_CHARACTER_SET,
    UNDEFINED_LENGTH,
    UNKNOWN_VR,
    ElementEncoding,
    Header,
    encoding_of,
    explicit_form,
)
from harmony.dicom.json_values import BULK_VRS, MAXIMUM_INLINE_BYTES, Element, Model, inline_binary

__all__ = ["MAXIMUM_VALUE_BYTES", "PIXEL_DATA", "DataSetError", "decode_data_set"]

MAXIMUM_VALUE_BYTES = 64 * 1024
"""The longest value that is represented; a 16-bit length cannot be longer. Sequences count as a whole."""
MAXIMUM_NESTING = 64
"""Sequences inside sequences; real data sets stay below ten."""
MAXIMUM_ELEMENTS = 50_000
"""Elements and items of a data set that are looked at: a tenth or two of a second at worst, hundreds of times
what a header has. What comes after them is not in the model."""
MAXIMUM_ELEMENTS_COMPLETE = 2_000_000
"""The same of a complete header, which has been bounded in bytes: functional groups of some ten thousand frames."""
MAXIMUM_INFLATED_BYTES = 16 * 1024 * 1024
"""Of a deflated data set as much as this is looked at; inflating it takes some 50 ms."""
PIXEL_DATA = 0x7FE00010

_FIRST_WINDOW_BYTES = 64 * 1024  # holds most headers; the next one holds all that are not absurd
_SECOND_WINDOW_BYTES = 1024 * 1024

_INFLATE_INPUT_BYTES = 4 * 1024  # small, because zlib copies what one call leaves over

_NO_TAG = 1 << 32

_DEFLATED_EXPLICIT_VR = "1.2.840.10008.1.2.1.99"


class DataSetError(ValueError):
    """The bytes are no data set. The message holds no content."""


class _Sequence:
    """A sequence whose items are being read."""

    __slots__ = ("defined", "element", "encoding", "end", "start")

    def __init__(
        self, element: Element, encoding: ElementEncoding, *, start: int, end: int, defined: bool
    ) -> None:
        self.element = element
        self.encoding = encoding
        self.start = start
        self.end = end
        """Where its length says, if `defined`; else where what encloses it ends."""
        self.defined = defined


class _Level:
    """A data set that is being read: the outermost, or an item of a sequence."""

    __slots__ = (
        "characters",
        "defined",
        "encoding",
        "end",
        "last_tag",
        "model",
        "sequence",
        "stop_before",
        "unordered",
    )

    def __init__(
        self,
        encoding: ElementEncoding,
        end: int,
        *,
        characters: CharacterSet = ASCII,
        stop_before: int = _NO_TAG,
        sequence: _Sequence | None = None,
        defined: bool = True,
    ) -> None:
        self.model: Model = {}
        self.encoding = encoding
        self.end = end
        """Where its length says, if `defined`; else where what encloses it ends."""
        self.defined = defined
        self.characters = characters
        self.stop_before = stop_before
        self.sequence = sequence
        """The one this is an item of."""
        self.last_tag = -1
        self.unordered = False


def decode_data_set(
    data: bytes | memoryview,
    transfer_syntax_uid: str,
    *,
    stop_before: int = PIXEL_DATA,
    maximum_value_bytes: int = MAXIMUM_VALUE_BYTES,
    complete: bool = False,
    maximum_sequence_bytes: int | None = None,
) -> Model:
    """Decode a data set, or the beginning of one, to the DICOM JSON Model.

    data: without file meta information; all of it, or as much as there is. A view is copied in part.
    transfer_syntax_uid: as negotiated; the first element is believed where it says otherwise.
    stop_before: the first top-level element with this tag or a higher one ends the reading.
    complete: sequences however long, bulk data up to 1 KiB as InlineBinary; an element whose value is left out has an
    empty BulkDataURI, for the caller to fill in. maximum_sequence_bytes: of these; a longer sequence is left out like
    any other value.
    Tags ascend; strings are Unicode whatever (0008,0005) says, which is kept as it was sent: it names the set to
    answer in, and is to be left out where a model is sent as JSON.
    Raises DataSetError when nothing of it can be read. Empty data is an empty data set.
    """
    if not len(data):
        return {}
    deflated = transfer_syntax_uid == _DEFLATED_EXPLICIT_VR
    for window, is_all in _inflated(data) if deflated else _windows(data):
        start = _after_file_meta(window)
        encoding = encoding_of(window, start, transfer_syntax_uid)
        decoder = _Decoder(window, encoding, maximum_value_bytes, complete, maximum_sequence_bytes)
        model = decoder.run(start, stop_before)
        if is_all or decoder.stopped:
            if not model and not decoder.understood and any(window[:64]):
                raise DataSetError(f"no data set: none of {len(data)} bytes can be read as an element")
            return model
    return {}


class _Decoder:
    """The state of one decoding. `_elements` reads values, the methods after it all that is no plain value."""

    def __init__(
        self,
        data: bytes,
        encoding: ElementEncoding,
        maximum_value_bytes: int,
        complete: bool,
        maximum_sequence_bytes: int | None,
    ) -> None:
        self.stopped = False
        """The end was found; more bytes would not change the result."""
        self.understood = False
        """There was an element whose header makes sense."""
        self._data = data
        self._encoding = encoding
        self._maximum_value_bytes = maximum_value_bytes
        self._complete = complete
        # What may be left out, or is longer than any usual value, is not dealt with in the loop.
        self._plain_bytes = (
            min(maximum_value_bytes, MAXIMUM_INLINE_BYTES) if complete else maximum_value_bytes
        )
        unbounded = complete and maximum_sequence_bytes is None
        self._maximum_sequence_bytes = (
            len(data) if unbounded else maximum_sequence_bytes or maximum_value_bytes
        )
        self._levels: list[_Level] = []
        self._budget = MAXIMUM_ELEMENTS_COMPLETE if unbounded else MAXIMUM_ELEMENTS

    def run(self, at: int, stop_before: int) -> Model:
        root = _Level(self._encoding, len(self._data), stop_before=stop_before)
        self._levels.append(root)
        while self._levels and not self.stopped:
            at = self._elements(self._levels[-1], at)
        while self._levels:
            self._leave()
        return root.model

    def _elements(self, level: _Level, at: int) -> int:
        """Read the elements of one level until another level is to be read; return where that goes on."""
        # Everything in local variables, and a dictionary lookup instead of parsing: the loop that matters.
        data, maximum, budget = self._data, self._plain_bytes, self._budget
        end, model, characters, encoding = level.end, level.model, level.characters, level.encoding
        last_tag, stop_before, last_header = level.last_tag, level.stop_before, level.end - 8
        known_header, prefix_bytes = encoding.headers.get, encoding.header_bytes
        short_length, long_length = encoding.short_length, encoding.long_length
        while at <= last_header:
            prefix = data[at : at + prefix_bytes]
            header = known_header(prefix) or encoding.header(prefix)
            form, tag, key, _, convert = header
            if form == SHORT_LENGTH:
                (length,) = short_length(data, at + 6)
                value = at + 8
            elif form == NO_VR:
                (length,) = long_length(data, at + 4)
                value = at + 8
            elif at + 12 <= end:
                (length,) = long_length(data, at + 8)
                value = at + 12
            else:
                break
            at = value + length
            budget -= 1
            if convert is None or at > end or length > maximum or tag >= stop_before or budget <= 0:
                level.last_tag, self._budget = last_tag, budget
                at = self._unusual(level, header, value, length)
                if self.stopped or self._levels[-1] is not level:
                    return at
                last_tag, characters, budget = level.last_tag, level.characters, self._budget
            elif tag > last_tag:
                last_tag = tag
                model[key] = convert(data[value:at], characters)
            else:
                level.unordered = True
                model.setdefault(key, convert(data[value:at], characters))
        self._budget = budget
        self._leave()
        return end if level.sequence is None else self._next_item(level.sequence, end)

    def _unusual(self, level: _Level, header: Header, value: int, length: int) -> int:
        """Handle an element that is not simply a value; return where to go on, at whatever level that is."""
        _, tag, key, vr, _ = header
        following = value + length
        if tag >> 16 == 0xFFFE:
            return self._delimiter(level, tag, value)
        if tag >= level.stop_before or self._budget <= 0:
            self.stopped = True
            self.understood |= tag == level.stop_before or following <= level.end
            return following
        if tag >> 16 in SKIPPED_GROUPS or tag & 0xFFFF == 0:
            self.understood |= tag >> 16 >= 8 and following <= level.end
            return following
        if length == UNDEFINED_LENGTH:
            return self._undefined_length(level, header, value)
        if vr == "SQ" and length and length <= self._maximum_sequence_bytes:
            self.understood = True
            return self._sequence(level, header, value, min(following, level.end), defined=True)
        if following > level.end:
            # The end of the bytes at hand, or lengths that contradict each other. That the element is there
            # is known, but an empty value would be a false statement about anything but bulk data.
            if vr in BULK_VRS:
                self._keep(level, tag, key, self._left_out(vr))
            return level.end
        self.understood = True
        self._keep(level, tag, key, self._element(level, header, self._data[value:following]))
        return following

    def _element(self, level: _Level, header: Header, value: bytes) -> Element:
        form, tag, _, vr, convert = header
        if self._complete and value and (vr in BULK_VRS or vr == "UN"):
            if len(value) > MAXIMUM_INLINE_BYTES:
                return self._left_out(vr)
            turned = level.encoding.byteorder == "big" and form != UNKNOWN_VR
            word_bytes = WORD_BYTES.get(vr, 1) if turned else 1
            return inline_binary(vr, value if word_bytes == 1 else _turned(value, word_bytes))
        if len(value) > self._maximum_value_bytes or (vr == "SQ" and value):  # a sequence that is too long
            return self._left_out(vr)
        if vr in BULK_VRS or vr == "SQ":
            return {"vr": vr}
        known = IMPLICIT.converters if form == UNKNOWN_VR else level.encoding.converters
        if tag == SPECIFIC_CHARACTER_SET:
            element = known["CS"](value, ASCII)
            # An unknown set is the default repertoire, whose decoding takes what it cannot read for UTF-8.
            level.characters = character_set(element.get("Value")) or ASCII
            return element
        if form in (NO_VR, UNKNOWN_VR, SHORT_LENGTH) and convert is None and self._is_signed(tag):
            vr = "SS"
        return known[vr](value, level.characters)

    def _left_out(self, vr: str) -> Element:
        return {"vr": vr, "BulkDataURI": ""} if self._complete else {"vr": vr}

    def _is_signed(self, tag: int) -> bool:
        """Tell which of "US or SS" an attribute is: the data set's Pixel Representation or an outer one's says."""
        if ambiguous_vr_of(tag) != "US or SS":
            return False
        for level in reversed(self._levels):
            representation = level.model.get("00280103", {}).get("Value")
            if representation:
                return bool(representation[0] == 1)
        return False

    def _undefined_length(self, level: _Level, header: Header, value: int) -> int:
        form, tag, key, vr, _ = header
        if vr in BULK_VRS:
            self._keep(level, tag, key, self._left_out(vr))
            return self._after_fragments(level, value)
        nested = self._data[value : value + 4] in level.encoding.item_tags or form == UNKNOWN_VR
        if vr not in ("SQ", "UN") and not nested:
            self.stopped = True  # a length that only sequences can have, and no sequence: lost
            return level.end
        self.understood = True
        return self._sequence(level, header, value, level.end, defined=False)

    def _sequence(self, level: _Level, header: Header, value: int, end: int, *, defined: bool) -> int:
        if len(self._levels) > MAXIMUM_NESTING:
            self.stopped = True
            return end
        form, tag, key, _, _ = header
        element: Element = {"vr": "SQ"}
        self._keep(level, tag, key, element)
        encoding = IMPLICIT if form == UNKNOWN_VR else level.encoding
        return self._next_item(_Sequence(element, encoding, start=value, end=end, defined=defined), value)

    def _next_item(self, sequence: _Sequence, at: int) -> int:
        """Enter the next item of a sequence, or end it; the level that holds it is the current one."""
        while at + 8 <= sequence.end and not self.stopped:
            group, element, length = sequence.encoding.item(self._data, at)
            tag = group << 16 | element
            if tag == ITEM:
                self._enter(sequence, at + 8, length)
                return at + 8
            if tag == SEQUENCE_END and not sequence.defined:
                return self._end_sequence(sequence, at + 8)
            if tag not in (SEQUENCE_END, ITEM_END):
                # The delimiter is missing, if there should be one.
                return self._end_sequence(sequence, sequence.end if sequence.defined else at)
            at += 8
            self._spend()
        return self._end_sequence(sequence, sequence.end)

    def _enter(self, sequence: _Sequence, at: int, length: int) -> None:
        self._spend()
        defined = length != UNDEFINED_LENGTH
        item = _Level(
            sequence.encoding,
            min(at + length, sequence.end) if defined else sequence.end,
            characters=self._levels[-1].characters,
            sequence=sequence,
            defined=defined,
        )
        sequence.element.setdefault("Value", []).append(item.model)
        self._levels.append(item)

    def _end_sequence(self, sequence: _Sequence, at: int) -> int:
        if at - sequence.start > self._maximum_sequence_bytes:
            sequence.element.pop("Value", None)
            sequence.element.update(self._left_out("SQ"))
        return at

    def _delimiter(self, level: _Level, tag: int, value: int) -> int:
        """Handle a delimiter among the elements of a level: it ends items of undefined length, and is skipped
        elsewhere."""
        sequence = level.sequence
        if sequence is None or level.defined or tag not in (ITEM, ITEM_END, SEQUENCE_END):
            return value
        self._leave()
        # Without its own delimiter an item ends where the next one begins, or where the sequence ends.
        return self._next_item(sequence, value if tag == ITEM_END else value - 8)

    def _after_fragments(self, level: _Level, at: int) -> int:
        """Return where encapsulated data ends (PS3.5 §A.4): fragments as items, then a delimiter."""
        while at + 8 <= level.end and not self.stopped:
            group, element, length = level.encoding.item(self._data, at)
            tag = group << 16 | element
            if tag == SEQUENCE_END:
                return at + 8
            if tag != ITEM or length == UNDEFINED_LENGTH:
                return at
            at += 8 + length
            self._spend()
        return level.end

    def _keep(self, level: _Level, tag: int, key: str, element: Element) -> None:
        """Put an element where it belongs, unless there is one with its tag already."""
        if tag > level.last_tag:
            level.last_tag = tag
            level.model[key] = element
        else:
            level.unordered = True
            level.model.setdefault(key, element)

    def _leave(self) -> None:
        level = self._levels.pop()
        if level.unordered:
            ordered = sorted(level.model.items())
            level.model.clear()
            level.model.update(ordered)

    def _spend(self) -> None:
        self._budget -= 1
        if self._budget <= 0:
            self.stopped = True


def _turned(value: bytes, word_bytes: int) -> bytes:
    whole = len(value) - len(value) % word_bytes
    return bytes(swap_words(value[:whole], word_bytes)) + value[whole:]


def _after_file_meta(data: bytes) -> int:
    """Return where the data set begins: some senders put a whole Part 10 file into a C-STORE."""
    # The group must follow: DICM alone may stand in a value.
    at = 132 if data[128:134] == b"DICM\2\0" else 0
    last_header = min(len(data), _FIRST_WINDOW_BYTES) - 12
    while at <= last_header and data[at : at + 2] == b"\2\0":
        form, _ = explicit_form(data[at + 4 : at + 6])
        if form == SHORT_LENGTH:
            at += 8 + int.from_bytes(data[at + 6 : at + 8], "little")
        elif form == NO_VR:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        else:
            at += 12 + int.from_bytes(data[at + 8 : at + 12], "little")
    return at


def _windows(data: bytes | memoryview) -> Iterator[tuple[bytes, bool]]:
    """Yield the data, or more and more of it where looking at it means copying it; and whether it is all."""
    if isinstance(data, bytes):
        yield data, True
        return
    for size in (_FIRST_WINDOW_BYTES, _SECOND_WINDOW_BYTES):
        if size < len(data):
            yield bytes(data[:size]), False
    yield bytes(data), True


def _inflated(data: bytes | memoryview) -> Iterator[tuple[bytes, bool]]:
    """The same for deflated data (PS3.5 §A.5), zlib-wrapped data, and data that only claims to be either."""
    for window_bits in (-zlib.MAX_WBITS, zlib.MAX_WBITS):
        if _inflate(data, window_bits, 1) != (b"", False):
            for size in (_FIRST_WINDOW_BYTES, _SECOND_WINDOW_BYTES, MAXIMUM_INFLATED_BYTES):
                window, complete = _inflate(data, window_bits, size)
                yield window, complete or size == MAXIMUM_INFLATED_BYTES
            return
    yield from _windows(data)


def _inflate(data: bytes | memoryview, window_bits: int, size: int) -> tuple[bytes, bool]:
    """Return the first `size` bytes, and whether there are no more; (b"", False) for what is not deflated."""
    inflater = zlib.decompressobj(window_bits)
    inflated = bytearray()
    for at in range(0, len(data), _INFLATE_INPUT_BYTES):
        try:
            piece = inflater.decompress(data[at : at + _INFLATE_INPUT_BYTES], size - len(inflated))
        except zlib.error:
            return bytes(inflated), bool(inflated)
        inflated += piece
        if inflater.eof:
            return bytes(inflated), True
        if len(inflated) >= size:
            return bytes(inflated), False
    return bytes(inflated), bool(inflated)
