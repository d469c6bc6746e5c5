"""What an archive from outside may be at most, how it is refused, and which texts are envelope ids.

`zipread` and `tarread` keep an archive within `Limits` while they read it; `reader` judges it as an envelope; all
three refuse with `EnvelopeError`, whose kind is the HTTP status to answer. Whoever turns an id from outside into a
path asks `canonical_envelope_id` first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["EnvelopeError", "Limits", "Refusal", "canonical_envelope_id"]

_is_uuid = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z").match


class Refusal(IntEnum):
    """Why an envelope is not taken; the values are the HTTP status codes to answer with."""

    INVALID = 400
    """It can be read, and it is not a safe and complete envelope."""
    TOO_LARGE = 413
    UNSUPPORTED = 415
    """Not an archive of a kind that is read here."""


class EnvelopeError(Exception):
    """The archive or the envelope in it is refused. The message names members and fields, never their contents."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an archive may be. What goes beyond is refused with TOO_LARGE before the memory or time is spent."""

    members: int = 100_000
    """A study of 20 000 instances is a large one."""
    member_bytes: int = 16 * 1024**3
    total_bytes: int = 64 * 1024**3
    """Of all members, uncompressed."""
    ratio: int = 100
    """Uncompressed to compressed size of the whole archive. Image data reaches 2 to 4, JSON 20, empty masks more."""
    ratio_floor_bytes: int = 64 * 1024**2
    """Below this much uncompressed data the ratio does not matter."""
    json_bytes: int = 32 * 1024**2
    """Of each JSON document that is read; 100 000 instances with all their UIDs make 30 MB."""

    def check_total(self, total_bytes: int, *, archive_bytes: int) -> None:
        """Refuse an archive of `archive_bytes` that holds (so far) `total_bytes`."""
        if total_bytes > self.total_bytes:
            raise EnvelopeError(Refusal.TOO_LARGE, f"the archive holds more than {self.total_bytes} bytes")
        if total_bytes > max(self.ratio_floor_bytes, self.ratio * archive_bytes):
            message = f"the archive of {archive_bytes} bytes expands more than {self.ratio} times"
            raise EnvelopeError(Refusal.TOO_LARGE, message)

    def check_member(self, name: str, size_bytes: int) -> None:
        """Refuse a member that is too large by itself."""
        if size_bytes > self.member_bytes:
            message = f"member {name!r} of {size_bytes} bytes is larger than {self.member_bytes}"
            raise EnvelopeError(Refusal.TOO_LARGE, message)

    def check_count(self, members: int) -> None:
        """Refuse an archive of too many members."""
        if members > self.members:
            raise EnvelopeError(Refusal.TOO_LARGE, f"the archive has more than {self.members} members")


def canonical_envelope_id(text: str) -> str | None:
    """Return the id in its canonical form (RFC 9562 §4: lower case, 8-4-4-4-12), or None when it is no UUID.

    Nothing but this form becomes a path: no braces, no `urn:uuid:`, no 32 digits without hyphens.
    """
    lowered = text.lower() if text.isascii() else ""
    return lowered if _is_uuid(lowered) is not None else None
