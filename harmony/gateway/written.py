"""Values that files hold as strings and that are none: `harmony.gateway.tables` makes them while it reads."""

from __future__ import annotations

__all__ = ["Written"]


class Written:
    """A value that files hold as a string and that is no string: a subclass raises ValueError for what is none.

    Not a dataclass, as a `Secret`.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        """text: what the file says. Raises ValueError."""
        self.text = text

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Written) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"
