"""Convert a data set from one native encoding into another (PS3.5 §7) while it arrives: bytes in, bytes out.

It steps from element to element, gives each its new header, turns the words of its value where the byte order
changes, and passes on the values of long elements, pixel data above all, piece by piece as they come. Memory does
not depend on the data: a window of 64 KiB, and a bounded number of open sequences.

Lengths of sequences and items change with the headers inside them and are known at their ends only, so those that are
not empty become ones of undefined length with delimiters (PS3.5 §7.5). Group lengths are dropped. The value of UN,
items inside of undefined length included, is Implicit VR Little Endian whatever surrounds it (PS3.5 §6.2.2 note 2), so
it is passed on as it is.

Like `harmony.dicom.scanner` it reads what is there rather than what was declared: the first element tells the
encoding, missing delimiters are supplied, superfluous ones left out. What contradicts itself is a TranscodeError: who
sends on a data set must not guess.

Deliberately not here: deflate, and encapsulated pixel data, which no native encoding can hold. Called by
`harmony.dicom.transcode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from harmony.dicom.byte_order import WordSwapper, swap_words
from harmony.dicom.dictionary import format_tag
from harmony.dicom.element_conversion import (
    BITS_ALLOCATED,
    PIXEL_DATA,
    Action,
    Conversion,
    Rule,
    conversion,
)
from harmony.dicom.element_header import (
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT,
    ITEM,
    ITEM_END,
    NO_VR,
    SEQUENCE_END,
    SHORT_LENGTH,
    UNDEFINED_LENGTH,
    UNKNOWN_VR,
    ElementEncoding,
)
from harmony.dicom.vr import KNOWN_VRS

__all__ = ["MAXIMUM_NESTING", "DataSetConverter", "Piece", "TranscodeError"]

MAXIMUM_NESTING = 64
"""Sequences inside sequences, as for the decoder; real data sets stay below ten."""

_WINDOW_BYTES = 64 * 1024  # is copied to be looked at
_PIECE_BYTES = 256 * 1024  # of a value at a time: a copy with its words turned stays in the cache
_FIRST_BYTES = 8  # show the encoding
_NO_END = 1 << 64

Piece: TypeAlias = bytes | memoryview


class TranscodeError(ValueError):
    """The data set cannot be converted. The message names tag and place, and holds no content."""


class _Level:
    """A sequence or a data set being converted: the outermost, or an item."""

    __slots__ = ("bits_allocated", "conversion", "delimited", "end", "is_sequence", "is_signed")

    def __init__(self, conversion: Conversion, *, end: int, delimited: bool, is_sequence: bool) -> None:
        self.conversion = conversion
        self.end = end
        """Where it ends in the source, or what encloses it does."""
        self.delimited = delimited
        """A delimiter ends it in the source."""
        self.is_sequence = is_sequence
        self.bits_allocated = 0
        self.is_signed = False


class DataSetConverter:
    """Incremental conversion of one data set. Any split of the same bytes gives the same bytes."""

    def __init__(self, transfer_syntax_uid: str, target_transfer_syntax_uid: str) -> None:
        """Two of the three native syntaxes that are not deflated. The first element is believed where it says
        otherwise than transfer_syntax_uid."""
        self._declared = encoding_named(transfer_syntax_uid)
        self._target = encoding_named(target_transfer_syntax_uid)
        self._levels: list[_Level] = []  # empty until the encoding is known
        self._nesting = 0
        self._carry = b""  # of a header that is not complete
        self._origin = 0  # where in the data set the window, or the next byte of a value, lies
        self._starved = False
        self._left = 0  # bytes of a value that are still to come
        self._dropped = False  # that value is not passed on
        self._swapper: WordSwapper | None = None

    def feed(self, data: bytes | memoryview) -> Iterator[Piece]:
        """Convert the next bytes; to be iterated to the end. Memoryviews may be views of `data`."""
        view = memoryview(data).cast("B")
        at, size = 0, len(view)
        while at < size:
            if self._left:
                piece = view[at : at + min(self._left, _PIECE_BYTES)]
                at += len(piece)
                yield from self._continue(piece)
            else:
                window = self._carry + view[at : at + _WINDOW_BYTES]
                at += _WINDOW_BYTES
                yield from self._convert(window)

    def finish(self) -> Iterator[Piece]:
        """No more bytes will come; to be iterated to the end."""
        if self._left:
            raise TranscodeError(f"the data set ends inside a value, {self._left} bytes before its end")
        # Padding with NULs, as of some deflated data sets, is no element.
        if any(self._carry):
            raise TranscodeError(f"the data set ends inside an element that begins at byte {self._origin}")
        self._carry = b""
        if self._levels:
            yield from self._convert(b"")
        if len(self._levels) > 1:
            raise TranscodeError(f"the data set ends inside a sequence, at byte {self._origin}")

    def _continue(self, piece: memoryview) -> Iterator[Piece]:
        """Pass on the next bytes of a value."""
        self._left -= len(piece)
        self._origin += len(piece)
        if self._dropped:
            return
        if self._swapper is None:
            yield piece
            return
        yield from self._swapper.feed(piece)
        if not self._left and (rest := self._swapper.finish()):
            yield rest

    def _convert(self, window: bytes) -> Iterator[Piece]:
        """Convert the elements whose headers are in the window; keep the rest of it."""
        converted: list[Piece] = []
        at = 0
        if not self._levels:
            if len(window) < _FIRST_BYTES:
                self._carry = window
                return
            source = _encoding_shown(window, self._declared)
            root = _Level(conversion(source, self._target), end=_NO_END, delimited=False, is_sequence=False)
            self._levels.append(root)
        self._starved = False
        while not self._starved:
            level = self._levels[-1]
            if self._origin + at >= level.end:
                self._close(converted)
            elif level.is_sequence:
                at = self._item(level, window, at, converted)
            else:
                at = self._elements(level, window, at, converted)
        self._carry = window[at:]
        self._origin += at
        if converted:
            yield b"".join(converted)

    # Each of these goes on from `at`, and returns the index of the first byte it has not dealt with. When it takes more
    # bytes than the window has to go on, `_starved` is set.

    def _elements(self, level: _Level, window: bytes, at: int, converted: list[Piece]) -> int:
        """Convert elements until another level is to be dealt with."""
        # In local variables, with a dictionary lookup instead of parsing: the loop that matters.
        source, rules = level.conversion.source, level.conversion.rules
        known_rule, prefix_bytes = rules.get, source.header_bytes
        short_length, long_length = source.short_length, source.long_length
        append = converted.append
        end = min(len(window), level.end - self._origin)
        last_header = end - 8
        while at <= last_header:
            prefix = window[at : at + prefix_bytes]
            rule = known_rule(prefix) or level.conversion.rule(prefix)
            form, action, head, pack_length, maximum_length, word_bytes, _, _ = rule
            if form == SHORT_LENGTH:
                (length,) = short_length(window, at + 6)
                value = at + 8
            elif form == NO_VR:
                (length,) = long_length(window, at + 4)
                value = at + 8
            elif at + 12 <= end:
                (length,) = long_length(window, at + 8)
                value = at + 12
            else:
                break
            following = value + length
            if action or following > end or length > maximum_length or length % word_bytes:
                at = self._unusual(level, rule, window, at, value, length, converted)
                if self._starved or self._levels[-1] is not level:
                    return at
                continue
            append(head + pack_length(length))
            if word_bytes == 1:
                append(window[value:following])
            elif length == word_bytes:
                append(window[value:following][::-1])
            else:
                append(swap_words(window[value:following], word_bytes))
            at = following
        if self._origin + end < level.end:
            self._starved = True
        elif at < end:
            raise self._error(at, f"an item has {end - at} bytes too many for its elements")
        return at

    def _unusual(
        self,
        level: _Level,
        rule: Rule,
        window: bytes,
        at: int,
        value: int,
        length: int,
        converted: list[Piece],
    ) -> int:
        """Convert an element that is not simply copied, or not all there."""
        if rule.action is Action.DELIMITER:
            return self._delimiter(level, rule.tag, window, at, converted)
        has_items = length == UNDEFINED_LENGTH and rule.vr == "UN" and rule.action is not Action.DROP
        if rule.action is Action.SEQUENCE or has_items:
            return self._open_sequence(level, rule, at, value, length, converted)
        name = format_tag(rule.tag)
        if length == UNDEFINED_LENGTH:
            what = "encapsulated pixel data" if rule.tag == PIXEL_DATA else f"a {rule.vr} of undefined length"
            raise self._error(at, f"{name} is {what}, which the transfer syntax does not have")
        if self._origin + value + length > level.end:
            raise self._error(at, f"{name} has {length} bytes and does not end inside its item")
        if rule.action is Action.DROP:
            behind = _behind_nuls(window, at, min(len(window), level.end - self._origin))
            if not rule.tag and not length and behind > at:
                return behind
            self._dropped = True
            return self._value(None, window, value, length, converted)
        if rule.action is Action.REMEMBER:
            if length == 2 and value + length > len(window):
                self._starved = True
                return at
            self._remember(level, rule.tag, window[value : value + length])
        rule = self._decided(level, rule)
        if length > rule.maximum_length:
            rule = level.conversion.unknown(rule)
        converted.append(rule.head + rule.pack_length(length))
        return self._value(rule, window, value, length, converted)

    def _value(
        self, rule: Rule | None, window: bytes, value: int, length: int, converted: list[Piece]
    ) -> int:
        """Pass on a value, or as much of it as the window has; None drops it."""
        following = value + length
        self._dropped = rule is None
        self._swapper = WordSwapper(rule.word_bytes) if rule is not None and rule.word_bytes > 1 else None
        self._left = max(0, following - len(window))
        self._starved = self._left > 0
        here = window[value:following]
        if self._swapper is not None:
            converted.extend(self._swapper.feed(here))
            if not self._left:
                converted.append(self._swapper.finish())
        elif rule is not None:
            converted.append(here)
        return min(following, len(window))

    def _decided(self, level: _Level, rule: Rule) -> Rule:
        """The rule with the VR that other attributes decide on."""
        if rule.action is Action.SIGNED and level.is_signed:
            return level.conversion.rule_for(rule.tag, "SS", form=rule.form)
        if rule.action is Action.PIXELS:
            # PS3.5 §8.2: more than 8 bits are OW; otherwise it may be either, and Implicit VR does not say which.
            vr = "OW" if level.bits_allocated > 8 else rule.vr
            if rule.form == NO_VR and 0 < level.bits_allocated <= 8:
                vr = "OB"
            return level.conversion.rule_for(rule.tag, vr, form=rule.form)
        return rule

    def _remember(self, level: _Level, tag: int, value: bytes) -> None:
        number = int.from_bytes(value, level.conversion.source.byteorder) if len(value) == 2 else 0
        if tag == BITS_ALLOCATED:
            level.bits_allocated = number
        else:
            level.is_signed = number == 1

    # Sequences ----

    def _open_sequence(
        self, level: _Level, rule: Rule, at: int, value: int, length: int, converted: list[Piece]
    ) -> int:
        if not length:
            converted.append(rule.head + rule.pack_length(0))
            return value
        unknown = rule.form == UNKNOWN_VR
        end, delimited = level.end, length == UNDEFINED_LENGTH
        if not delimited:
            end = self._origin + value + length
            if end > level.end:
                raise self._error(at, f"sequence {format_tag(rule.tag)} does not end inside its item")
        self._nesting += 1
        if self._nesting > MAXIMUM_NESTING:
            raise self._error(at, f"sequences are nested deeper than {MAXIMUM_NESTING} levels")
        if not unknown and rule.vr == "UN":  # without a VR: only a sequence can have no length
            rule = level.conversion.rule_for(rule.tag, "SQ", form=rule.form)
        inside = conversion(IMPLICIT, IMPLICIT) if unknown else level.conversion
        converted.append(rule.head + rule.pack_length(UNDEFINED_LENGTH))
        self._enter(level, inside, end=end, delimited=delimited, is_sequence=True)
        return value

    def _item(self, level: _Level, window: bytes, at: int, converted: list[Piece]) -> int:
        """Enter the next item of a sequence, or end it."""
        left = level.end - self._origin - at
        if left < 8:
            raise self._error(at, f"a sequence has {left} bytes too many for its items")
        if at + 8 > len(window):
            self._starved = True
            return at
        group, element, length = level.conversion.source.item(window, at)
        tag = group << 16 | element
        if tag == ITEM:
            return self._open_item(level, at, length, converted)
        if tag == SEQUENCE_END and level.delimited:
            self._close(converted)
        elif tag not in (SEQUENCE_END, ITEM_END):
            if not level.delimited:
                raise self._error(at, f"{format_tag(tag)} in a sequence, expected an item")
            self._close(converted)  # the delimiter is missing
            return at
        return at + 8

    def _open_item(self, level: _Level, at: int, length: int, converted: list[Piece]) -> int:
        value = at + 8
        if not length:
            converted.append(level.conversion.empty_item)
            return value
        end, delimited = level.end, length == UNDEFINED_LENGTH
        if not delimited:
            end = self._origin + value + length
            if end > level.end:
                raise self._error(at, f"an item of {length} bytes does not end inside its sequence")
        converted.append(level.conversion.item)
        self._enter(level, level.conversion, end=end, delimited=delimited, is_sequence=False)
        return value

    def _delimiter(self, level: _Level, tag: int, window: bytes, at: int, converted: list[Piece]) -> int:
        """Handle an item or delimiter among elements: it ends an item of undefined length, and has no meaning
        elsewhere."""
        if tag not in (ITEM, ITEM_END, SEQUENCE_END) or (tag == ITEM and not level.delimited):
            raise self._error(at, f"{format_tag(tag)}, expected an element")
        if level.delimited:
            self._close(converted)
            # Without its own delimiter an item ends where the next one begins, or where the sequence ends.
            return at + 8 if tag == ITEM_END else at
        return at + 8

    def _enter(
        self, level: _Level, inside: Conversion, *, end: int, delimited: bool, is_sequence: bool
    ) -> None:
        entered = _Level(inside, end=end, delimited=delimited, is_sequence=is_sequence)
        entered.bits_allocated, entered.is_signed = level.bits_allocated, level.is_signed
        self._levels.append(entered)

    def _close(self, converted: list[Piece]) -> None:
        level = self._levels.pop()
        self._nesting -= level.is_sequence
        converted.append(level.conversion.sequence_end if level.is_sequence else level.conversion.item_end)

    def _error(self, at: int, what: str) -> TranscodeError:
        return TranscodeError(f"at byte {self._origin + at}: {what}")


def encoding_named(transfer_syntax_uid: str) -> ElementEncoding:
    """The encoding of a native transfer syntax that is not deflated; KeyError for others."""
    return _ENCODINGS[transfer_syntax_uid]


_ENCODINGS = {
    "1.2.840.10008.1.2": IMPLICIT,
    "1.2.840.10008.1.2.1": EXPLICIT_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.2": EXPLICIT_BIG_ENDIAN,
}


def _behind_nuls(window: bytes, at: int, end: int) -> int:
    """Where other elements begin. NULs behind a data set look like group lengths of eight bytes, a great many of them
    when a file was made longer than what is in it."""
    nuls = end - at - len(window[at:end].lstrip(b"\0"))
    return at + nuls // 8 * 8


def _encoding_shown(start: bytes, declared: ElementEncoding) -> ElementEncoding:
    """The encoding that the first element shows: its VR field holds a VR or half of a length, and the byte order is the
    declared one unless the other makes its group 0008 and this one 0800."""
    if start[4:6] not in KNOWN_VRS:
        return IMPLICIT if declared is IMPLICIT or not start[4:6].isalpha() else declared
    if declared is EXPLICIT_BIG_ENDIAN:
        return EXPLICIT_LITTLE_ENDIAN if start[:2] == b"\x08\x00" else EXPLICIT_BIG_ENDIAN
    return EXPLICIT_BIG_ENDIAN if start[:2] == b"\x00\x08" else EXPLICIT_LITTLE_ENDIAN
