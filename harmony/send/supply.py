"""What the associations of a flood send next: a short look ahead into the files, and the contexts that they need.

Files are found in a thread, LOOKAHEAD of them at most before they are sent. Each pair of SOP class and transfer syntax
belongs to a group that fits into one association, 128 contexts (PS3.8 §9.3.2.2); an association takes the files of its
group as long as there are any among those looked at, so that a mixture of many pairs does not mean an association for
each file.

Called by `flood`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES
from harmony.dimse.information_model import MAXIMUM_CONTEXTS, Proposal
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from harmony.send.files import Found, Pair, PassedOver, Unreadable
from harmony.ul.negotiation import propose_contexts

__all__ = ["LOOKAHEAD", "Contexts", "Job", "Supply"]

LOOKAHEAD: Final = 512
"""Files: more than one study of most modalities, so that the first associations fit what comes; read in a moment."""

BATCH: Final = 64
"""Files for each visit to the thread."""

FALLBACKS: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
"""Proposed besides a native transfer syntax: every peer has to take the second one (PS3.5 §10.1)."""


@dataclass(slots=True, eq=False)
class Job:
    """A file to be sent."""

    found: Found
    group: int
    tries: int = 0
    losses: int = 0
    """Associations that ended while it was being sent."""


class Contexts:
    """Which presentation contexts are proposed, and on which association."""

    def __init__(self, *, fallbacks: bool) -> None:
        self._fallbacks = FALLBACKS if fallbacks else ()
        self._groups: list[dict[Pair, None]] = []
        self._group_of: dict[Pair, int] = {}

    def group_of(self, pair: Pair) -> int:
        """The group of a pair; one that is new joins the last group if it has room there."""
        if (known := self._group_of.get(pair)) is not None:
            return known
        sop_class, syntax = pair
        fallbacks = self._fallbacks if syntax in NATIVE_TRANSFER_SYNTAXES else ()
        wanted = dict.fromkeys([pair, *((sop_class, fallback) for fallback in fallbacks)])
        if not self._groups or len(self._groups[-1] | wanted) > MAXIMUM_CONTEXTS:
            self._groups.append({})
        self._groups[-1].update(wanted)
        return self._group_of.setdefault(pair, len(self._groups) - 1)

    def proposal(self, group: int) -> Proposal:
        """A context for each pair of the group that is known by now: the peer chooses no transfer syntax, only which
        of them it takes."""
        return Proposal(propose_contexts((uid, (syntax,)) for uid, syntax in self._groups[group]))


class Supply:
    """The jobs of one flood. items: what `files.find_files` yields. aside: gets what is not to be sent."""

    def __init__(
        self,
        items: Iterator[Found | PassedOver | Unreadable],
        contexts: Contexts,
        *,
        aside: Callable[[PassedOver | Unreadable], None],
    ) -> None:
        self._items = items
        self._contexts = contexts
        self._aside = aside
        self._jobs: dict[int, deque[Job]] = {}  # by group, the empty ones left out
        self._waiting = 0
        self._all_found = False
        self._begun = asyncio.Event()  # the look ahead is as long as it will be
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def over(self) -> bool:
        """No job is left, and none comes unless one is handed back."""
        return self._all_found and not self._jobs

    async def fill(self) -> None:
        """Find files until there are no more."""
        while not self._all_found:
            items = await asyncio.to_thread(self._next_items)
            for item in items:
                if not isinstance(item, Found):
                    self._aside(item)
                elif not self._all_found:  # by `stop`
                    self._put(Job(item, self._contexts.group_of(item.pair)))
            if len(items) < BATCH:
                self._all_found = True
            if self._all_found or self._waiting > LOOKAHEAD - BATCH:
                self._begun.set()
            self._tell()
            while not self._all_found and self._waiting > LOOKAHEAD - BATCH:
                self._room.clear()
                await self._room.wait()

    def stop(self) -> None:
        """Give out no more jobs."""
        self._all_found = True
        self._jobs.clear()
        self._waiting = 0
        self._begun.set()
        self._room.set()
        self._tell()

    async def next_group(self) -> int | None:
        """The group with the most jobs, which stay here; None when there are no more."""
        await self._begun.wait()
        while not self._jobs:
            if self._all_found:
                return None
            await self._change()
        return max(self._jobs, key=lambda group: len(self._jobs[group]))

    async def take(self, group: int) -> Job | None:
        """The next job of a group; None when all that wait are others, and finding has ended or waits for them."""
        while not (jobs := self._jobs.get(group)):
            if self._all_found or self._waiting > LOOKAHEAD - BATCH:
                return None
            await self._change()
        job = jobs.popleft()
        if not jobs:
            del self._jobs[group]
        self._waiting -= 1
        if self._waiting <= LOOKAHEAD - BATCH:
            self._room.set()
        return job

    def hand_back(self, job: Job) -> None:
        """It has to be sent on another association."""
        self._put(job, first=True)
        self._tell()

    def _put(self, job: Job, *, first: bool = False) -> None:
        jobs = self._jobs.setdefault(job.group, deque())
        if first:
            jobs.appendleft(job)
        else:
            jobs.append(job)
        self._waiting += 1

    def _next_items(self) -> Sequence[Found | PassedOver | Unreadable]:
        return list(islice(self._items, BATCH))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()
