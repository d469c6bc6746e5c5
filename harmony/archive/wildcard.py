"""Wild card matching (PS3.4 §C.2.2.2.4): `*` stands for any characters or none, `?` for exactly one.

There is no escape character and nothing else is special. A pattern from outside must not cost more than its
length times the text's, which a regular expression with several `*` can; so the pieces between the stars are
found one after the other, from the left, which is enough to know whether all of them fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

__all__ = ["has_wildcard", "wildcard"]


def has_wildcard(text: str) -> bool:
    return "*" in text or "?" in text


@lru_cache(maxsize=1024)
def wildcard(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a text matches, case and all."""
    first, *others = pattern.split("*")
    if not others:
        whole = _piece(first)
        return lambda text: len(text) == len(first) and whole(text, 0) == 0
    *middle, last = others
    if not any(middle) and "?" not in pattern:
        length = len(first) + len(last)
        return lambda text: len(text) >= length and text.startswith(first) and text.endswith(last)
    begin, finish = _piece(first), _piece(last)
    pieces = [(_piece(piece), len(piece)) for piece in middle if piece]

    def matches(text: str) -> bool:
        at, end = len(first), len(text) - len(last)
        if at > end or begin(text[:at], 0) != 0 or finish(text[end:], 0) != 0:
            return False
        for find, length in pieces:
            found = find(text, at)
            if found < 0 or found + length > end:
                return False
            at = found + length
        return True

    return matches


def _piece(piece: str) -> Callable[[str, int], int]:
    """Return what finds a piece without `*` in a text, like str.find."""
    if "?" not in piece:
        return lambda text, at: text.find(piece, at)
    search = re.compile(re.escape(piece).replace(r"\?", "."), re.DOTALL).search

    def find(text: str, at: int) -> int:
        found = search(text, at)
        return found.start() if found else -1

    return find
