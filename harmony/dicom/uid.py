"""Unique identifiers (PS3.5 §9.1): which strings are UIDs, and how any string becomes a path component.

A peer chooses the UIDs it sends, and the archive names folders and files after them. Only what is a UID here
may become a name as it stands; everything else (`..`, `/etc/x`, 65 characters, an empty string, a NUL
inside) is named by its hash, so that storing it is safe and two different strings still get two different
names.

Deliberately not here: generating UIDs, and the registry of PS3.6.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["MAXIMUM_UID_LENGTH", "is_valid_uid", "path_component"]

MAXIMUM_UID_LENGTH = 64
"""PS3.5 §9.1: "The maximum length of a UID shall be 64 total characters", dots included."""

# [0-9], not \d: the latter also matches digits outside ASCII.
_is_uid = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*\Z").match


def is_valid_uid(text: str) -> bool:
    """Tell whether `text` is 1 to 64 characters of numeric components separated by single dots.

    Leading zeros in a component are forbidden by PS3.5 §9.1 and tolerated here: real devices send them, and
    they do no harm to anyone who compares UIDs as strings, as everyone must.
    """
    return _is_uid(text) is not None


def path_component(uid: str) -> str:
    """Return a name for a file or folder: the UID itself when valid, else `x-` and 32 hex digits of its
    SHA-256.

    A valid UID cannot be `.`, `..` or contain a separator, and it cannot start with `x`, so the two kinds
    never meet. The hash is taken over the latin-1 bytes, which is how UIDs are decoded from the wire;
    characters that latin-1 does not have (a caller's own strings) are hashed as UTF-8.
    """
    if _is_uid(uid) is not None:
        return uid
    try:
        data = uid.encode("latin-1")
    except UnicodeEncodeError:
        data = uid.encode("utf-8", "surrogatepass")
    return "x-" + hashlib.sha256(data).hexdigest()[:32]
