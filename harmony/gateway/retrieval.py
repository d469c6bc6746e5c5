"""A retrieve from a PACS as the iterator of a Selection: what arrives, then what did not.

The C-GET or C-MOVE runs in a task of its own, from the first instance that is asked for to its final response; whoever
leaves the iteration early cancels it, and waits until the PACS has been told (`harmony.dimse.cancellation`). What fails
is told to the consumer in the way in which it can be answered:

- the association is lost, or the PACS refuses as a whole: the exception, at once
- some instances do not come: `Unavailable` for each that is known, after those that do
- some do not come, and nobody knows which: DimseError, at the end
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

from harmony.dimse.retrieve import Retrieval, RetrieveFailed, RetrieveResult
from harmony.dimse.retrieve_scp import Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.status import DimseError, Status, StatusClass, classify
from harmony.dimse.sub_operations import Counters
from harmony.gateway.arrivals import Arrivals
from harmony.ul.errors import AssociationAborted

__all__ = ["Progress", "arriving"]


async def arriving(
    perform: Callable[[], Awaitable[RetrieveResult]],
    arrivals: Arrivals,
    *,
    expected: Iterable[str] | None,
    tasks: set[asyncio.Task[RetrieveResult]],
    name: str,
) -> AsyncGenerator[Instance | Unavailable, None]:
    """perform: the C-GET or C-MOVE, whose instances go to `arrivals`. expected: their UIDs, when known.

    tasks: where the task, with this name, is while it runs; whoever cancels it there ends the iteration with an
    AssociationAborted.
    """
    missing = None if expected is None else dict.fromkeys(expected)

    async def run() -> RetrieveResult:
        try:
            return await perform()
        finally:
            arrivals.end()

    retrieving = asyncio.create_task(run(), name=name)
    tasks.add(retrieving)
    retrieving.add_done_callback(tasks.discard)
    try:
        async for instance in arrivals:
            if missing is not None:
                missing.pop(instance.sop_instance_uid, None)
            yield instance
        await asyncio.wait([retrieving])
        try:
            result = retrieving.result()
        except RetrieveFailed as failed:
            if not arrivals.handed_over:
                raise
            result = failed.result
        except asyncio.CancelledError:
            raise AssociationAborted("the retrieve was stopped", by_peer=False) from None
        for uid in _unavailable(result, missing):
            yield Unavailable(uid)
    finally:
        arrivals.close()
        retrieving.cancel()
        await asyncio.wait([retrieving])
        if not retrieving.cancelled():
            retrieving.exception()  # counts as seen: nobody is interested any more


def _unavailable(result: RetrieveResult, missing: Iterable[str] | None) -> list[str]:
    """The instances that are known not to have come. Raises DimseError when some have not, and nobody knows which."""
    uids = [*dict.fromkeys((*result.failed_sop_instance_uids, *(missing or ())))]
    failed = result.counters.failed or 0
    if not uids and classify(result.status) in (StatusClass.FAILURE, StatusClass.CANCEL):
        raise RetrieveFailed(result)
    if not uids and failed:
        raise DimseError(
            Status.OUT_OF_RESOURCES_UNABLE_TO_PERFORM_SUB_OPERATIONS,
            f"{failed} sub-operations failed at the PACS",
        )
    return uids


class Progress:
    """How far a retrieve is, as the PACS says in its Pending responses."""

    def __init__(self) -> None:
        self._counters = Counters(None, None, None, None)

    async def follow(self, retrieval: Retrieval) -> RetrieveResult:
        """Iterate to the result."""
        async for counters in retrieval:
            self._counters = counters
        return retrieval.result

    def total(self) -> int | None:
        """How many instances there seem to be."""
        counters = self._counters
        if counters.remaining is None:
            return None
        return counters.remaining + sum(
            count or 0 for count in (counters.completed, counters.failed, counters.warning)
        )
