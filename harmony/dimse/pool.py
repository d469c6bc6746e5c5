"""Associations with one peer that are kept and used again, at most so many at a time.

Opening an association costs two round trips and a negotiation; archives limit how many one client may have. A pool
lends associations out, one user each, in the order in which they were asked for. It keeps the idle ones for some
seconds, looks whether one still lives before it lends it again after a pause, and releases the rest.

A peer may close an idle association in the very moment in which it is lent. That shows when an operation on a kept
association fails before anything was received of it: `run` and `find` then try once more on a new one.

    async with AssociationPool(peer, propose_query([STUDY_ROOT.find])) as pool:
        outcome = await pool.run(lambda scu: scu.echo())
        async with pool.lend() as scu: ...

Parallel stores are in `store_many`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from types import TracebackType
from typing import Final, Self, TypeVar

from harmony.dimse.cancellation import CANCEL_S, is_loss
from harmony.dimse.command import PRIORITY_MEDIUM
from harmony.dimse.information_model import Identifier, Proposal
from harmony.dimse.peer import Peer
from harmony.dimse.query import Match, find
from harmony.dimse.scp import Services
from harmony.dimse.scu import SCU, NoPresentationContext
from harmony.dimse.status import DimseError
from harmony.ul.errors import AssociationError, DeadlineExceeded, LocalProtocolError

__all__ = ["AssociationPool"]

logger = logging.getLogger("harmony.dimse")

T = TypeVar("T")

MAXIMUM_ASSOCIATIONS: Final = 4
"""With one peer: what archives commonly allow a client."""

IDLE_S: Final = 30.0
"""An idle association is kept so long. Archives close theirs after a minute or more, and count them until then."""

CHECK_AFTER_S: Final = 5.0
"""An association that was idle longer answers a C-ECHO before it is lent again: firewalls forget quietly."""

CHECK_S: Final = 3.0
"""For that answer."""


class _Kept:
    """One association of the pool."""

    def __init__(self, scu: SCU, stack: AsyncExitStack, proposal: Proposal) -> None:
        self.scu = scu
        self.proposal = proposal
        self.used_before = False
        self.idle_since = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self._stack = stack

    @property
    def usable(self) -> bool:
        """Open, and nothing outstanding in either direction."""
        return self.scu.association.is_open and not self.scu.exchange.busy()

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    async def close(self, *, abort: bool = False) -> None:
        """Release it, or abort it, and wait for that."""
        self.stop_timer()
        if abort:
            self.scu.association.abort()
        await self._stack.aclose()


class AssociationPool:
    """The associations with one peer.

    proposal: what is proposed unless a user asks for something else; only associations with equal proposals are shared,
    while the limit counts all of them. services: what we perform on them, such as `GetReceiver.services`. place_s: how
    long to wait while as many as allowed are lent, then DeadlineExceeded; None waits for ever.
    """

    def __init__(
        self,
        peer: Peer,
        proposal: Proposal,
        *,
        services: Services | None = None,
        maximum_associations: int = MAXIMUM_ASSOCIATIONS,
        place_s: float | None = None,
        idle_s: float = IDLE_S,
        check_after_s: float = CHECK_AFTER_S,
        check_s: float = CHECK_S,
    ) -> None:
        self.peer = peer
        self.proposal = proposal
        self.maximum_associations = maximum_associations
        self._services = services
        self._place_s = place_s
        self._idle_s = idle_s
        self._check_after_s = check_after_s
        self._check_s = check_s
        self._places = asyncio.Semaphore(maximum_associations)  # serves those who wait in order
        self._idle: list[_Kept] = []  # the one used last at the end
        self._lent: set[_Kept] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._takers = 0  # those who hold a place
        self._given_back = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<AssociationPool {self.peer}: {len(self._lent)} lent, {len(self._idle)} idle>"

    @property
    def lent(self) -> int:
        """Associations in use."""
        return len(self._lent)

    @property
    def idle(self) -> int:
        """Associations kept for the next user."""
        return len(self._idle)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, grace_s: float = 0.0) -> None:
        """Release the idle associations, abort those that are still lent after grace_s; nothing is lent any more."""
        self._closed = True
        if grace_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    while self._lent:
                        self._given_back.clear()
                        await self._given_back.wait()
        for kept in self._lent:
            kept.scu.association.abort()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(kept.close() for kept in idle), *self._closing)

    # Using associations ----

    @asynccontextmanager
    async def lend(self, proposal: Proposal | None = None, *, fresh: bool = False) -> AsyncIterator[SCU]:
        """An association for the length of the block. It is kept afterwards when it is open and nothing is outstanding
        on it, and aborted when something is.

        fresh: not one that was used before. Waits for its turn while as many as allowed are lent. Raises what
        `associate` raises, DeadlineExceeded after place_s, LocalProtocolError when the pool is closed.
        """
        async with self._lend(proposal, fresh=fresh) as kept:
            yield kept.scu

    async def run(self, operation: Callable[[SCU], Awaitable[T]], *, proposal: Proposal | None = None) -> T:
        """Lend an association to an operation; once more, on a new one, when the first turns out to be stale.

        operation: called with the association, twice at most. Raises what it raises, and what `lend` does.
        """
        async with self._lend(proposal) as kept:
            requests = kept.scu.exchange.requests_received
            try:
                return await operation(kept.scu)
            except AssociationError as error:
                if not self._was_stale(kept, requests, error):
                    raise
        async with self._lend(proposal, fresh=True) as kept:
            return await operation(kept.scu)

    async def find(
        self,
        sop_class_uid: str | Sequence[str],
        identifier: Identifier,
        *,
        proposal: Proposal | None = None,
        limit: int | None = None,
        priority: int = PRIORITY_MEDIUM,
        cancel_s: float = CANCEL_S,
    ) -> AsyncGenerator[Match, None]:
        """`query.find` on an association that is lent until the iteration ends; see `run` for stale ones."""
        for fresh in (False, True):
            async with self._lend(proposal, fresh=fresh) as kept:
                requests = kept.scu.exchange.requests_received
                matches = find(
                    kept.scu, sop_class_uid, identifier, limit=limit, priority=priority, cancel_s=cancel_s
                )
                try:
                    async with aclosing(matches):
                        async for match in matches:
                            yield match
                    return
                except AssociationError as error:
                    if fresh or not self._was_stale(kept, requests, error):
                        raise

    def _was_stale(self, kept: _Kept, requests: int, error: AssociationError) -> bool:
        """Whether a kept association was dead before the operation: it ended, and nothing was received of it.

        A peer that is slow is not stale: what took too long once will again.
        """
        stale = kept.used_before and is_loss(error) and kept.scu.exchange.requests_received == requests
        if stale:
            logger.info("association %d was stale: %s", kept.scu.association.number, error)
        return stale

    # Inside ----

    @asynccontextmanager
    async def _lend(self, proposal: Proposal | None, *, fresh: bool = False) -> AsyncIterator[_Kept]:
        async with self._place():
            self._takers += 1
            try:
                kept = await self._take(proposal or self.proposal, fresh=fresh)
                self._lent.add(kept)
                try:
                    yield kept
                finally:
                    self._lent.discard(kept)
                    try:
                        await self._give_back(kept)
                    finally:
                        self._given_back.set()
            finally:
                self._takers -= 1

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._place_s):
                await self._places.acquire()
        except TimeoutError:
            waiting = f"waiting for one of {self.maximum_associations} associations with {self.peer}"
            raise DeadlineExceeded(waiting, self._place_s or 0.0) from None
        try:
            yield
        finally:
            self._places.release()

    async def _take(self, proposal: Proposal, *, fresh: bool) -> _Kept:
        while not self._closed:
            kept = None if fresh else self._pop_idle(proposal)
            if kept is not None:
                if await self._lives(kept):
                    return kept
            elif self._takers + len(self._idle) <= self.maximum_associations:
                return await self._open(proposal)
            else:
                await self._idle.pop(0).close()  # room for another proposal
        raise LocalProtocolError("the pool is closed")

    def _pop_idle(self, proposal: Proposal) -> _Kept | None:
        """The one used last, as it is the likeliest to live."""
        for kept in reversed(self._idle):
            if kept.proposal == proposal:
                self._idle.remove(kept)
                return kept
        return None

    async def _lives(self, kept: _Kept) -> bool:
        """Whether a kept association can be lent again; it is closed otherwise."""
        kept.stop_timer()
        lives = kept.usable
        try:
            if lives and asyncio.get_running_loop().time() - kept.idle_since >= self._check_after_s:
                lives = await self._answers(kept.scu)
        except BaseException:
            await kept.close(abort=True)
            raise
        if not lives:
            await kept.close(abort=True)
        return lives

    async def _answers(self, scu: SCU) -> bool:
        try:
            async with asyncio.timeout(self._check_s):
                await scu.echo()
        except (NoPresentationContext, DimseError):
            pass  # Verification was not proposed, or is refused with an answer
        except (AssociationError, TimeoutError) as error:
            logger.info("association %d does not answer any more: %s", scu.association.number, error)
            return False
        return True

    async def _open(self, proposal: Proposal) -> _Kept:
        stack = AsyncExitStack()
        scu = await stack.enter_async_context(self.peer.associate(proposal, services=self._services))
        kept = _Kept(scu, stack, proposal)
        if self._closed:
            await kept.close(abort=True)
            raise LocalProtocolError("the pool is closed")
        return kept

    async def _give_back(self, kept: _Kept) -> None:
        if self._closed or not kept.usable:
            await kept.close(abort=not kept.usable)
            return
        loop = asyncio.get_running_loop()
        kept.used_before = True
        kept.idle_since = loop.time()
        kept.timer = loop.call_later(self._idle_s, self._expire, kept)
        self._idle.append(kept)

    def _expire(self, kept: _Kept) -> None:
        if kept in self._idle:
            self._idle.remove(kept)
            task = asyncio.get_running_loop().create_task(kept.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
