"""File descriptors: as many as the system allows, and few words when there are none left.

Without a free one, connections wait or are closed at once, depending on the event loop; those that are open are served,
and new ones again as soon as one is free. asyncio says so with a traceback for each attempt, hundreds at a time; here
it is one line a minute.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from typing import Any, Final

from harmony.ul.shares import OnceAWhile

__all__ = ["raise_limit", "watch_accepting"]

logger = logging.getLogger("harmony.gateway")

ENOUGH: Final = 65536
"""More than every limit on connections at its default needs; a soft limit of 1024, which is usual, is not."""


def raise_limit() -> None:
    """Allow this process as many as the hard limit does, up to ENOUGH."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def watch_accepting(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop say once in a while that no connection can be accepted; anything else as before."""
    is_to_be_told = OnceAWhile()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif is_to_be_told(error.errno, now=loop.time()):
            logger.error("connections cannot be accepted until others are closed: %s", error.strerror)

    loop.set_exception_handler(handle)
