"""What keeps a good configuration from running."""

from __future__ import annotations

__all__ = ["StartError"]


class StartError(Exception):
    """The gateway cannot start, or cannot go on with another configuration; the message says what and where."""
