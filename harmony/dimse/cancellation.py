"""How a query or retrieve ends early: C-CANCEL, both roles (PS3.7 §9.3.2.3, PS3.4 §C.4), and lost associations.

As SCU, whoever leaves an operation early calls `end_early`: C-CANCEL-RQ, then the responses up to the final one, which
is due within a limit.

As SCP, a handler that waits for a slow source has to stop when C-CANCEL-RQ comes; the same handler in the middle of a
C-STORE has to finish it. `Interruption.wait` marks the first kind of waiting. It costs one task for an operation, none
for a wait.

An association that ends after part of the responses is `OperationInterrupted`: what has come cannot be taken back, so
trying again is not for a pool to decide.

Called by `query`, `retrieve`, `retrieve_scp` and `pool`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from harmony.dimse.invocation import Invocation
from harmony.ul.association import Association
from harmony.ul.errors import (
    AssociationAborted,
    AssociationError,
    AssociationReleased,
    ConnectionLost,
    DeadlineExceeded,
)

__all__ = [
    "CANCEL_S",
    "END",
    "End",
    "Interrupted",
    "Interruption",
    "OperationInterrupted",
    "close_iterator",
    "end_early",
    "is_loss",
    "send_cancel",
]

T = TypeVar("T")

CANCEL_S: Final = 10.0
"""For the final response after C-CANCEL. Archives look for it between two responses; one that does not look at all
would keep the association busy with what nobody wants any more, so it is aborted then."""


# --- SCU ------------------------------------------------------------------------------------------------


class OperationInterrupted(AssociationError):
    """The association was lost in the middle of an operation, after part of what it asked for had come; __cause__ says
    how."""


def is_loss(error: AssociationError) -> bool:
    """True when the peer, or the network, ended the association; not for a deadline of ours, nor for our abort."""
    if isinstance(error, AssociationAborted):
        return error.by_peer
    return isinstance(error, ConnectionLost | AssociationReleased)


async def send_cancel(invocation: Invocation) -> bool:
    """C-CANCEL-RQ, unless the final response has come; False when there is no association to send it on."""
    try:
        await invocation.cancel()
    except AssociationError:
        return False
    return True


async def end_early(
    invocation: Invocation, association: Association, *, cancelled: bool, cancel_s: float
) -> None:
    """See that an operation is over when its iteration is: cancel it, wait for the final response, or abort.

    cancelled: C-CANCEL-RQ has been sent. Does nothing more when the final response has come.
    """
    try:
        if not invocation.done:
            async with asyncio.timeout(cancel_s):
                if not cancelled:
                    await invocation.cancel()
                await invocation.final()
    except TimeoutError:
        association.abort(DeadlineExceeded("the response to C-CANCEL", cancel_s))
    except AssociationError:
        pass  # over as well
    finally:
        invocation.abandon()  # what came in the meantime must not hold the association's reading


# --- SCP ------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """The peer cancelled the operation while, or before, its handler waited."""


class End:
    """The type of END."""


END: Final = End()
"""Instead of an item when an iterator has no more."""


class Interruption:
    """Waits of the current task that end with Interrupted once `cancelled` is set. Use it in a `with` block.

    What is waited for gets a CancelledError, as from a timeout; a cancellation of the task itself stays one.
    """

    def __init__(self, cancelled: asyncio.Event) -> None:
        self._cancelled = cancelled
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._waiting = False
        self._interrupted = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._watcher is not None
        self._watcher.cancel()

    async def _watch(self) -> None:
        await self._cancelled.wait()
        if self._waiting and self._task is not None:
            self._interrupted = True
            self._task.cancel()

    async def wait(self, begin: Callable[[], Awaitable[T]]) -> T:
        """Begin something and wait for it; Interrupted when the operation is cancelled first."""
        if self._cancelled.is_set():
            raise Interrupted
        assert self._task is not None
        requests = self._task.cancelling()
        self._waiting = True
        try:
            return await begin()
        except asyncio.CancelledError:
            if self._interrupted and self._task.uncancel() <= requests:
                raise Interrupted from None
            raise
        finally:
            self._waiting = False

    async def next(self, iterator: AsyncIterator[T]) -> T | End:
        """The next item, or END."""
        return await self.wait(lambda: anext(iterator, END))


async def close_iterator(iterator: AsyncIterator[Any] | None) -> None:
    """Let a generator that is left early clean up now."""
    if isinstance(iterator, AsyncGenerator):
        await iterator.aclose()
