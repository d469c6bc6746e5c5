"""C-MOVE to ourselves: which incoming C-STORE belongs to which waiting retrieve (PS3.7 §9.3.1.1, PS3.4 §C.4.2).

The sub-operations of a C-MOVE come on associations that the peer opens to a server of ours, perhaps while other moves
wait and other devices send. A C-STORE-RQ says whose it is with Move Originator Application Entity Title (0000,1030) and
Move Originator Message ID (0000,1031):

1. Both are there: they name a waiting move, or it is nobody's. Nothing is guessed.
2. One or both are missing (they are optional in PS3.7), or the AE title is the sender's own (pynetdicom's SCP): of the
   moves that wait at the peer whose AE title is calling, and that agree with the element that is there, the only one.
   With none or several it is nobody's.

Nobody's instance goes to `unmatched`, by default a refusal. Message IDs of waiting moves differ from each other even on
different associations, and those of moves that were given up are not used again soon: what still comes for them is
refused, never mixed into the next retrieve.

    receiver = MoveReceiver()
    services.store(receiver.open_sink)               # of the server that listens as the move destination
    async with move(scu, STUDY_ROOT.move, identifier, "HARMONY", receiver=receiver, open_sink=...) as retrieval: ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from harmony.dimse.operation import StoreRequest
from harmony.dimse.sink import Sink
from harmony.dimse.status import DimseError, Status
from harmony.ul.association import Association

__all__ = ["Expectation", "MessageIDTaken", "MoveReceiver", "OpenSink"]

OpenSink = Callable[[StoreRequest], Sink]

RETIRED_LIMIT: Final = 1024
"""Message IDs of moves that were given up which are not used again: many more than a peer still works on, few enough
to leave most of the 65535."""


class MessageIDTaken(Exception):
    """Another move waits, or was given up lately, under this Message ID; the next one may be free."""


class Expectation:
    """One waiting move."""

    def __init__(
        self, receiver: MoveReceiver, open_sink: OpenSink, *, originator_ae_title: str, peer_ae_title: str
    ) -> None:
        self.originator_ae_title = originator_ae_title
        """Ours: the calling AE title of the association with the C-MOVE."""
        self.peer_ae_title = peer_ae_title
        self.message_id: int | None = None
        self.received = 0
        """Sub-operations that have begun."""
        self.given_up = True
        """Set to False once the final response is here: the peer has no more for it."""
        self._receiver = receiver
        self._open_sink = open_sink
        self._associations: set[Association] = set()

    @property
    def busy(self) -> bool:
        """True while an instance arrives, or one that has arrived is being stored."""
        self._associations = {each for each in self._associations if each.is_open}
        return any(association.user.busy() for association in self._associations)

    def claim(self, message_id: int) -> None:
        """Wait under this Message ID from now on; MessageIDTaken when it is not free."""
        self._receiver.claim(self, message_id)

    def open(self, request: StoreRequest) -> Sink:
        self.received += 1
        self._associations.add(request.association)
        return self._open_sink(request)


class MoveReceiver:
    """The moves that wait for their instances. One serves any number of peers, associations and servers.

    unmatched: opens the sink for an instance that no move waits for, such as what a device sends on its own; None
    refuses it with 0x0124.
    """

    def __init__(self, unmatched: OpenSink | None = None) -> None:
        self._unmatched = unmatched
        self._waiting: dict[tuple[str, int], Expectation] = {}
        self._retired: deque[tuple[str, int]] = deque(maxlen=RETIRED_LIMIT)

    @property
    def is_waiting(self) -> bool:
        """Some move waits; if none does, what names no move is unmatched."""
        return bool(self._waiting)

    def __len__(self) -> int:
        """Moves that wait."""
        return len(self._waiting)

    def open_sink(self, request: StoreRequest, *, unmatched: OpenSink | None = None) -> Sink:
        """The sink for one C-STORE: give this to `Services.store`.

        unmatched: instead of the receiver's own, where several servers share it.
        """
        expectation = self._match(request)
        if expectation is not None:
            return expectation.open(request)
        unmatched = unmatched or self._unmatched
        if unmatched is None:
            raise DimseError(Status.NOT_AUTHORIZED, "no retrieve waits for this instance")
        return unmatched(request)

    @contextmanager
    def expect(
        self, open_sink: OpenSink, *, originator_ae_title: str, peer_ae_title: str
    ) -> Iterator[Expectation]:
        """Let a move wait from `Expectation.claim` to the end of the block.

        Its Message ID is retired when it is `given_up` then: the peer may not have noticed yet.
        """
        expectation = Expectation(
            self, open_sink, originator_ae_title=originator_ae_title, peer_ae_title=peer_ae_title
        )
        try:
            yield expectation
        finally:
            if expectation.message_id is not None:
                key = (originator_ae_title, expectation.message_id)
                del self._waiting[key]
                if expectation.given_up:
                    self._retired.append(key)

    def claim(self, expectation: Expectation, message_id: int) -> None:
        key = (expectation.originator_ae_title, message_id)
        if key in self._waiting or key in self._retired:
            raise MessageIDTaken
        if expectation.message_id is not None:
            del self._waiting[expectation.originator_ae_title, expectation.message_id]
        expectation.message_id = message_id
        self._waiting[key] = expectation

    def _match(self, request: StoreRequest) -> Expectation | None:
        ae_title = request.command.move_originator_ae_title
        message_id = request.command.move_originator_message_id
        if ae_title == request.calling_ae_title:
            ae_title = ""  # who stores is not who asked, except in a loop, where this comes to the same
        if ae_title and message_id is not None:
            found = self._waiting.get((ae_title, message_id))
            if found is None and (ae_title, message_id) in self._retired:
                raise DimseError(Status.NOT_AUTHORIZED, "the retrieve was given up")
            return found
        candidates = [
            each
            for each in self._waiting.values()
            if each.peer_ae_title == request.calling_ae_title
            and ae_title in ("", each.originator_ae_title)
            and message_id in (None, each.message_id)
        ]
        return candidates[0] if len(candidates) == 1 else None
