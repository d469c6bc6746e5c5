"""Regular expressions that an operator wrote and a stranger's text is matched with.

They are RE2's, which takes time in proportion to the text whatever the expression: Python's own can be made to search
for hours by forty characters. Hence no look-around and no references to groups. Errors are told, never logged.
"""

from __future__ import annotations

import re
from typing import Self

import re2

__all__ = ["RegularExpression", "RegularExpressionError"]

MAXIMUM_MEMORY_BYTES = 1024 * 1024
"""For one compiled expression; RE2 refuses what would need more."""

_LITERAL = re.compile(r"/(.*)/([a-z]*)", re.DOTALL)


class RegularExpressionError(ValueError):
    """It is none; the message says why."""


class RegularExpression:
    def __init__(self, pattern: str, *, case_sensitive: bool = True) -> None:
        """Raises RegularExpressionError."""
        options = re2.Options()
        options.case_sensitive = case_sensitive
        options.log_errors = False
        options.max_mem = MAXIMUM_MEMORY_BYTES
        try:
            self._compiled = re2.compile(pattern, options)
        except (re2.error, UnicodeEncodeError) as error:
            reason = error.args[0] if error.args else error
            text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
            raise RegularExpressionError(text) from error

    @classmethod
    def of_literal(cls, text: str) -> Self:
        """`/pattern/`, `/pattern/i` to ignore case, or the pattern alone."""
        found = _LITERAL.fullmatch(text)
        if found is None:
            return cls(text)
        pattern, flags = found.groups()
        if flags not in ("", "i"):
            raise RegularExpressionError(f"flags {flags!r}, only i is known")
        return cls(pattern, case_sensitive=not flags)

    def is_in(self, text: str) -> bool:
        """Whether it matches anywhere in the text; ^ and $ tie it to the ends."""
        return self._compiled.search(text) is not None
