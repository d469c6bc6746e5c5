"""Specific Character Set (PS3.3 §C.12.1.1.2, PS3.5 §6.1): text from the bytes of a value, and the reverse.

One `CharacterSet` stands for one value of (0008,0005). Decoding never raises: what does not fit what was
declared is read as UTF-8 when it is that, else as latin-1, because a match with an odd name is worth more
than none. Encoding is strict: who cannot say something in the requester's set takes another.

The tables of characters are Python's codecs; only the code extensions (ISO 2022, PS3.5 §6.1.2.5) are ours.
pydicom has them too, but holds one set at a time where the standard has G0 and G1, answers what does not fit
by a Python warning and question marks, and changes with global settings; none of that suits a server.

Deliberately not here: splitting into values and person name groups, and padding. Called by the codecs of
this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

__all__ = ["ASCII", "UTF_8", "CharacterSet", "character_set"]

_ESC = b"\x1b"


@dataclass(frozen=True, slots=True)
class _Repertoire:
    """One coded character set of PS3.3 Tables C.12-3 and C.12-4, as a codec sees it."""

    codec: str
    escape: bytes
    """Designates it."""
    g1: bool = True
    """Invoked by bytes with the high bit; else it takes the place of ASCII."""
    width: int = 1
    """Bytes of a character."""
    prefix: bytes = b""
    """What the codec wants in front of each character."""

    def decode(self, data: bytes) -> str:
        if self.width == 2 and not self.g1:
            # G0 and G1 forms of a set differ in the high bit; the codecs read the G1 form (EUC).
            data = bytes(byte | 0x80 for byte in data)
            if self.prefix:
                data = b"".join(self.prefix + data[at : at + 2] for at in range(0, len(data), 2))
        return data.decode(self.codec, "replace")

    def encode(self, character: str) -> bytes | None:
        """Return the bytes of one character, None when the set has no such character."""
        try:
            data = character.encode(self.codec)
        except UnicodeEncodeError:
            return None
        if self.prefix:
            if not data.startswith(self.prefix):
                return None
            data = data[len(self.prefix) :]
        if len(data) != self.width or min(data) < 0xA0:  # ASCII, or another set within the same codec
            return None
        return data if self.g1 else bytes(byte & 0x7F for byte in data)


# By ISO-IR registration number. PS3.3 Table C.12-3: in Japan and for its own sake 13; GR of the others.
_KATAKANA = _Repertoire("shift_jis", b"\x1b)I")
_REPERTOIRES = {
    100: _Repertoire("latin_1", b"\x1b-A"),
    101: _Repertoire("iso8859_2", b"\x1b-B"),
    109: _Repertoire("iso8859_3", b"\x1b-C"),
    110: _Repertoire("iso8859_4", b"\x1b-D"),
    144: _Repertoire("iso8859_5", b"\x1b-L"),
    127: _Repertoire("iso8859_6", b"\x1b-G"),
    126: _Repertoire("iso8859_7", b"\x1b-F"),
    138: _Repertoire("iso8859_8", b"\x1b-H"),
    148: _Repertoire("iso8859_9", b"\x1b-M"),
    203: _Repertoire("iso8859_15", b"\x1b-b"),
    166: _Repertoire("iso8859_11", b"\x1b-T"),
    13: _KATAKANA,
    # PS3.3 Table C.12-4.
    87: _Repertoire("euc_jp", b"\x1b$B", g1=False, width=2),
    159: _Repertoire("euc_jp", b"\x1b$(D", g1=False, width=2, prefix=b"\x8f"),
    149: _Repertoire("euc_kr", b"\x1b$)C", width=2),
    58: _Repertoire("gb2312", b"\x1b$)A", width=2),
}
_BY_ESCAPE = {repertoire.escape: repertoire for repertoire in _REPERTOIRES.values()}
_BY_ESCAPE[b"\x1b$@"] = _REPERTOIRES[
    87
]  # JIS C 6226-1978, which the 1983 edition replaced; old Japanese devices
_G0_ASCII = b"\x1b(B"
_G0_ROMAJI = b"\x1b(J"  # JIS X 0201 romaji; PS3.5 §6.1.2.1 lets it pass for ASCII

_STANDALONE = {"ISO_IR 192": "utf_8", "GB18030": "gb18030", "GBK": "gbk"}
_ALIASES = {
    "ISO 2022 GBK": "GBK",
    "ISO 2022 58": "ISO 2022 IR 58",
    "GB2312": "GBK",
    "GB 18030": "GB18030",
    "UTF-8": "ISO_IR 192",
    "UTF8": "ISO_IR 192",
}
_MAXIMUM_TERMS, _LONGEST_TERM = 16, 32  # of a set to remember; there are no longer terms, nor a use for more

# ISO-IR 100, ISO IR 100, ISO2022 IR 100, ISO_2022_IR_100: all seen.
_is_iso = re.compile(r"ISO[ _-]*(2022)?[ _-]*IR[ _-]*(\d{1,3})").fullmatch

_runs = re.compile(rb"\x1b\$[()]?[@-Z]|\x1b[()-][@-Zb]|[\x80-\xff]+|[\x00-\x1a\x1c-\x7f]+|\x1b").findall
# PS3.5 §6.1.2.5.3: at each of these, and at the end of a value, the first set is back in place.
_text_delimiter = re.compile(rb"[\\\t\n\f\r]").search
_name_delimiter = re.compile(rb"[\\\t\n\f\r^=]").search
_TEXT_DELIMITERS = frozenset("\\\t\n\f\r")
_NAME_DELIMITERS = _TEXT_DELIMITERS | {"^", "="}


class CharacterSet:
    """What one value of Specific Character Set means. Made by `character_set`, which keeps them."""

    __slots__ = ("_codec", "_extensions", "_first", "code_extensions", "defined_terms")

    def __init__(self, defined_terms: tuple[str, ...]) -> None:
        self.defined_terms = defined_terms
        """As they are written to (0008,0005): corrected, and empty for the default repertoire alone."""
        first, *others = defined_terms or ("",)
        numbers = [_number(term) for term in (first, *others)]
        self._codec: str | None = _STANDALONE.get(first)
        self._first = _REPERTOIRES.get(numbers[0] or 0)
        """G1 of a value until an escape sequence says otherwise."""
        self._extensions = tuple(_REPERTOIRES[number] for number in numbers if number in _REPERTOIRES)
        self.code_extensions = any(term.startswith("ISO 2022") for term in defined_terms)
        """Values may contain escape sequences, so ASCII bytes need not be ASCII text."""
        if self._codec is None and not self.code_extensions and self._first is not None:
            self._codec = self._first.codec

    def __repr__(self) -> str:
        return f"<CharacterSet {chr(92).join(self.defined_terms) or 'default'}>"

    def decode(self, data: bytes, *, person_name: bool = False) -> str:
        r"""Return the text of a value field. Split it at `\` afterwards, never before: 5CH may be half a
        character."""
        try:
            if not (self.code_extensions and _ESC in data) and data.isascii():
                return data.decode("ascii")
            if self.code_extensions:
                return self._decode_extensions(data, person_name)
            return data.decode(self._codec or "ascii")
        except UnicodeDecodeError:
            pass
        try:
            return data.decode("utf_8")
        except UnicodeDecodeError:
            return data.decode("latin_1")

    def encode(self, text: str, *, person_name: bool = False) -> bytes:
        """Return the bytes of a value field.

        Raises UnicodeEncodeError for characters that are not in any of the sets.
        """
        if text.isascii():
            # An escape character would be taken for the beginning of an escape sequence.
            return text.encode("ascii") if not self.code_extensions else text.replace("\x1b", "").encode()
        if self.code_extensions:
            return self._encode_extensions(text, person_name)
        data = text.encode(self._codec or "ascii")
        if self._first is _KATAKANA and len(data) != len(text):
            raise UnicodeEncodeError("JIS X 0201", text, 0, len(text), "not a character of ISO_IR 13")
        return data

    def _decode_extensions(self, data: bytes, person_name: bool) -> str:
        if _ESC not in data:
            # Senders that declare an extension and never switch to it.
            g1 = self._first or next((wide for wide in self._extensions if wide.g1), None)
            return data.decode(g1.codec if g1 else "ascii")
        delimiter = _name_delimiter if person_name else _text_delimiter
        text: list[str] = []
        g0: _Repertoire | None = None
        g1 = self._first or next((wide for wide in self._extensions if wide.g1), None)
        for token in _runs(data):
            if token[0] == 0x1B:
                if token in (_G0_ASCII, _G0_ROMAJI):
                    g0 = None
                elif (designated := _BY_ESCAPE.get(token)) is None:
                    text.append("\ufffd")  # a set that PS3.3 does not have
                elif designated.g1:
                    g1 = designated
                else:
                    g0 = designated
            elif token[0] >= 0x80:
                text.append(g1.decode(token) if g1 else token.decode("latin_1"))
            elif g0 is not None:
                g0 = self._decode_wide(token, g0, text)
            else:
                text.append(token.decode("ascii"))
                if self._first is not None and delimiter(token):
                    # With a G1 of its own; otherwise bytes after the delimiter keep the one they had, which is
                    # what senders meant that do not designate it again.
                    g1 = self._first
        return "".join(text)

    def _decode_wide(self, token: bytes, g0: _Repertoire, text: list[str]) -> _Repertoire | None:
        """Decode bytes while a two-byte set is in G0. Controls are never part of a character; they end it."""
        for at, byte in enumerate(token):
            if byte < 0x21:
                text.append(g0.decode(token[: at - at % 2]))
                text.append(token[at - at % 2 :].decode("ascii"))
                return None
        text.append(g0.decode(token))
        return g0

    def _encode_extensions(self, text: str, person_name: bool) -> bytes:
        delimiters = _NAME_DELIMITERS if person_name else _TEXT_DELIMITERS
        narrow = _G0_ROMAJI if self._first is _KATAKANA else _G0_ASCII
        data = bytearray()
        g0: _Repertoire | None = None
        g1 = self._first
        for at, character in enumerate(text):
            if character.isascii():
                if g0 is not None:
                    data += narrow
                    g0 = None
                if character in delimiters:
                    g1 = self._first
                if character != "\x1b":
                    data += character.encode("ascii")
                continue
            for repertoire in (g0, g1, *self._extensions):
                if repertoire is not None and (encoded := repertoire.encode(character)) is not None:
                    break
            else:
                raise UnicodeEncodeError("ISO 2022", text, at, at + 1, "in none of the declared sets")
            if repertoire.g1:
                if repertoire is not g1:
                    data += repertoire.escape
                    g1 = repertoire
            elif repertoire is not g0:
                data += repertoire.escape
                g0 = repertoire
            data += encoded
        if g0 is not None:
            data += narrow
        return bytes(data)


def character_set(specific_character_set: str | Iterable[str | None] | None) -> CharacterSet | None:
    r"""Return what a value of (0008,0005) means, None for a term that is in no edition of PS3.3.

    Takes the values, or one string of them separated by `\`. Common misspellings are understood. An empty
    or absent value is the default repertoire.
    """
    if isinstance(specific_character_set, str):
        specific_character_set = specific_character_set.split("\\")
    terms = islice(specific_character_set or (), _MAXIMUM_TERMS)
    return _character_set(tuple(str(term or "").strip(" \0")[:_LONGEST_TERM].upper() for term in terms))


@lru_cache(maxsize=256)
def _character_set(terms: tuple[str, ...]) -> CharacterSet | None:
    corrected = [_defined_term(term, alone=len(terms) == 1) for term in terms]
    if corrected and not any(term is not None for term in corrected):
        return None
    # An unknown first value leaves the default repertoire; an unknown extension is never switched to.
    known = [corrected[0] or "", *(term for term in corrected[1:] if term)] if corrected else []
    if known == [""]:
        known = []
    if known and known[0] in _STANDALONE:  # which allow no extensions (PS3.3 §C.12.1.1.2)
        return CharacterSet((known[0],))
    return CharacterSet(tuple(term for term in known if term not in _STANDALONE))


def _defined_term(term: str, *, alone: bool) -> str | None:
    """Return the term as PS3.3 spells it, None if there is none like it."""
    term = _ALIASES.get(term, term)
    if term in _STANDALONE:
        return term
    if not term:
        return ""
    matched = _is_iso(term)
    if matched is None:
        return None
    number = int(matched[2])
    if number == 6:
        return "" if alone else "ISO 2022 IR 6"
    if number == 192:
        return "ISO_IR 192"
    if number not in _REPERTOIRES:
        return None
    # Of several values each is a set with code extensions, whatever its spelling.
    extended = matched[1] is not None or not alone or number in (87, 159, 149, 58)
    return f"ISO 2022 IR {number}" if extended else f"ISO_IR {number}"


def _number(term: str) -> int | None:
    matched = _is_iso(term)
    return int(matched[2]) if matched else None


ASCII = CharacterSet(())
"""The default repertoire (ISO-IR 6)."""
UTF_8 = CharacterSet(("ISO_IR 192",))
