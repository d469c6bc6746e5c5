"""HTTP header fields: an immutable, case-insensitive list (RFC 9110 §5).

Order and repetition are kept, because Set-Cookie and Warning mean something repeated; `get` joins repeated fields with
a comma when somebody asks for the one value. What would let a value start a line of its own (CR, LF, NUL and the other
controls) is refused with ValueError when the object is made, so no later stage can forget it: a UID or a file name that
ends up in a header cannot split a response.

Used by requests and responses of the server and of the client alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

__all__ = ["Headers", "HeadersLike"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5: VCHAR, obs-text, SP, HTAB


class Headers:
    """Header fields in order; names compare without case, values are str (ISO 8859-1 on the wire)."""

    __slots__ = ("_fields",)

    _fields: tuple[tuple[str, str, str], ...]  # name in lower case, as given, value

    def __init__(self, items: HeadersLike = ()) -> None:
        """items: a mapping or pairs of name and value. Raises ValueError for what no header line can carry."""
        if isinstance(items, Headers):
            self._fields = items._fields
            return
        pairs = items.items() if isinstance(items, Mapping) else items
        self._fields = tuple(_field(name, value) for name, value in pairs)

    @classmethod
    def from_wire(cls, items: Iterable[tuple[bytes, bytes]]) -> Self:
        """From h11's list: names already lower-cased, everything already checked."""
        headers = cls.__new__(cls)
        headers._fields = tuple(
            [(key := name.decode("ascii"), key, value.decode("latin-1")) for name, value in items]
        )
        return headers

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of `name`, repeated fields joined with ", " (RFC 9110 §5.3)."""
        wanted = name.lower()
        values = [value for key, _, value in self._fields if key == wanted]
        if len(values) == 1:
            return values[0]
        return ", ".join(values) if values else default

    def get_all(self, name: str) -> list[str]:
        """Each value of `name`, in order; an empty list when there is none."""
        wanted = name.lower()
        return [value for key, _, value in self._fields if key == wanted]

    def set(self, name: str, value: str) -> Headers:
        """A copy in which `name` has this one value."""
        return self.without(name).add(name, value)

    def add(self, name: str, value: str) -> Headers:
        """A copy with one more field at the end."""
        return self._copy((*self._fields, _field(name, value)))

    def without(self, *names: str) -> Headers:
        """A copy without any field of these names."""
        unwanted = {name.lower() for name in names}
        return self._copy(tuple(field for field in self._fields if field[0] not in unwanted))

    def lines(self, *, without: frozenset[str]) -> tuple[frozenset[str], str]:
        """The names in lower case, and the fields as they stand in a head, but for some; without: in lower case."""
        names = frozenset([key for key, _, _ in self._fields])
        if names.isdisjoint(without):
            return names, "".join([f"{name}: {value}\r\n" for _, name, value in self._fields])
        return names, "".join(
            [f"{name}: {value}\r\n" for key, name, value in self._fields if key not in without]
        )

    def _copy(self, fields: tuple[tuple[str, str, str], ...]) -> Headers:
        headers = Headers.__new__(Headers)
        headers._fields = fields
        return headers

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Pairs of name, spelled as given, and value."""
        return ((name, value) for _, name, value in self._fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in [key for key, _, _ in self._fields]

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            return NotImplemented
        return [(key, value) for key, _, value in self._fields] == [(k, v) for k, _, v in other._fields]

    def __hash__(self) -> int:
        return hash(tuple((key, value) for key, _, value in self._fields))

    def __repr__(self) -> str:
        """Names only: values hold credentials and patient data."""
        return f"Headers({', '.join(name for _, name, _ in self._fields)})"


HeadersLike = Headers | Mapping[str, str] | Iterable[tuple[str, str]]


def _field(name: str, value: str) -> tuple[str, str, str]:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"header name {name!r} is not a token (RFC 9110 §5.6.2)")
    value = value.strip(" \t")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"value of header {name} has a control character or one outside ISO 8859-1")
    return name.lower(), name, value
