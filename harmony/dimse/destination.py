"""The associations of one C-MOVE with its destination, as storage SCU (PS3.4 §C.4.2.2.3).

Instances are sent as they are stored, so each pair of SOP class and transfer syntax needs a presentation context of its
own. Pairs that are known beforehand are proposed together, 128 contexts to an association. A pair that shows up later
joins the last group: its association is released and made again with one context more.

Nothing is opened before the first instance. Called by `retrieve_scp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

from harmony.dimse.information_model import MAXIMUM_CONTEXTS, Proposal
from harmony.dimse.operation import Operation
from harmony.dimse.peer import Peer
from harmony.dimse.scu import SCU
from harmony.ul.errors import AssociationError
from harmony.ul.negotiation import propose_contexts

__all__ = ["Destination", "Unreachable"]

LOSSES_LIMIT: Final = 3
"""Associations lost one after the other without a single response in between: then the destination counts as gone. One
or two may be the fault of an instance that the peer cannot digest."""

Pair = tuple[str, str]
"""SOP class and transfer syntax."""


class Unreachable(Exception):
    """No association with the destination can be made, or none lasts; __cause__ says why."""


class Destination:
    """Where a C-MOVE sends, while it does.

    pairs: the SOP classes with their transfer syntaxes, as far as known. fallbacks: transfer syntaxes to propose for
    every SOP class besides, for instances that can be transcoded.
    """

    def __init__(self, peer: Peer, pairs: Iterable[Pair] = (), *, fallbacks: Sequence[str] = ()) -> None:
        self.peer = peer
        self._fallbacks = tuple(fallbacks)
        self._contexts: list[
            set[Pair]
        ] = []  # of each group, that is association: its pairs and their fallbacks
        self._group_of: dict[Pair, int] = {}
        self._open: dict[int, tuple[SCU, AsyncExitStack]] = {}
        self._losses = 0
        for pair in pairs:
            self._add(pair)

    @staticmethod
    def of(
        operation: Operation, peer: Peer, pairs: Iterable[Pair], *, fallbacks: Sequence[str]
    ) -> Destination:
        """For a C-MOVE-RQ: by default we call ourselves there what its sender calls us."""
        ours = peer.calling_ae_title or operation.association.agreed.called_ae_title
        return Destination(replace(peer, calling_ae_title=ours), pairs, fallbacks=fallbacks)

    async def scu_for(self, pair: Pair) -> SCU:
        """An open association on which a context for the pair was proposed. Raises Unreachable."""
        index = self._group_of.get(pair)
        if index is None:
            index = self._add(pair)
            await self._close(index)
        found = self._open.get(index)
        if found is not None:
            if found[0].association.is_open:
                return found[0]
            await self._close(index)
            self._losses += 1
        if self._losses >= LOSSES_LIMIT:
            raise Unreachable from ConnectionError(
                f"{self.peer}: {self._losses} associations were lost one after the other"
            )
        stack = AsyncExitStack()
        proposal = Proposal(
            propose_contexts((uid, (syntax,)) for uid, syntax in sorted(self._contexts[index]))
        )
        try:
            scu = await stack.enter_async_context(self.peer.associate(proposal))
        except AssociationError as error:
            raise Unreachable from error
        self._open[index] = (scu, stack)
        return scu

    def responded(self) -> None:
        """The destination has answered a C-STORE-RQ."""
        self._losses = 0

    async def close(self, *, abort: bool = False) -> None:
        """Release the associations, or abort them."""
        for index, (scu, _) in list(self._open.items()):
            if abort:
                scu.association.abort()
            await self._close(index)

    async def _close(self, index: int) -> None:
        found = self._open.pop(index, None)
        if found is not None:
            await found[1].aclose()

    def _add(self, pair: Pair) -> int:
        """Put a pair into the last group when it has room, else into a new one."""
        wanted = {pair, *((pair[0], syntax) for syntax in self._fallbacks)}
        if not self._contexts or len(self._contexts[-1] | wanted) > MAXIMUM_CONTEXTS:
            self._contexts.append(set())
        self._contexts[-1] |= wanted
        return self._group_of.setdefault(pair, len(self._contexts) - 1)
