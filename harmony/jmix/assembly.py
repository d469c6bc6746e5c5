"""Which received objects make one envelope, and when it is complete.

One envelope per association and study. It is opened, and its id fixed, by the first object; it is complete when its
association has ended or when nothing has been added to it for the quiet time. An object counts as on its way from the
moment it is journaled until it is settled, that is until it has its final name or was refused; an envelope with
objects on their way is never handed out, or they would be missing from it.

An object whose response may never have reached its sender is in doubt: the last one(s) of an association that did not
end in a release, or that is open only because nobody has noticed yet that the sender is gone. Its sender will repeat
it, the archive finds the same bytes (IDENTICAL), and here it is consumed: it is in an envelope already. An identical
object that is not in doubt was sent again on purpose and goes into a new one. What the archive did not keep
(KEPT_FIRST) is not this sender's object and goes into none.

After a crash the last lines of an open journal are in doubt (`journal.recover`). What that does not tell, the caller
remembers durably: what `take_in_doubt` returns, before it closes a journal, until `take_no_longer_in_doubt` returns it.

A state machine: it opens no file (journals come from `open_journal`), starts no timer, and has its time, in monotonic
seconds, from `clock`. It belongs to the event loop; only `AssociationEnvelopes.sync` may run in a thread. Called by
the gateway's DICOM endpoint.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from harmony.jmix.journal import EnvelopeJournal, Stored

__all__ = ["DEFAULT_QUIET_TIME_S", "AssociationEnvelopes", "EnvelopeAssembly"]

DEFAULT_QUIET_TIME_S = 1.0
"""An association may stay open for hours between studies; whoever waits for the envelope should not."""

MAXIMUM_IN_DOUBT = 10_000
"""Instances remembered. The oldest is forgotten first, and then at worst sent on twice."""

_IDENTICAL = "IDENTICAL"
_KEPT_FIRST = "KEPT_FIRST"


@dataclass(slots=True, eq=False)
class _Envelope:
    """One that is being put together."""

    study_instance_uid: str
    association: AssociationEnvelopes
    journal: EnvelopeJournal
    last_at: float
    paths: set[str] = field(default_factory=set)
    on_their_way: dict[str, _Way] = field(default_factory=dict)  # by path


@dataclass(frozen=True, slots=True)
class _Way:
    sop_instance_uid: str
    journaled: bool
    """It has a line of its own: the envelope did not have its path before."""


class EnvelopeAssembly:
    """All envelopes that are being put together.

    open_journal: called with the origin and the Study Instance UID when an envelope's first object arrives.
    window: how many objects of an association may be without an answer at a time (PS3.7 Annex D.3.3.3).
    in_doubt: SOP Instance UIDs remembered from before, oldest first.
    """

    def __init__(
        self,
        open_journal: Callable[[str, str], EnvelopeJournal],
        *,
        clock: Callable[[], float],
        window: int = 1,
        in_doubt: Iterable[str] = (),
    ) -> None:
        self.open_journal = open_journal
        self.clock = clock
        self.window = window
        self._envelopes: OrderedDict[_Envelope, None] = OrderedDict()  # the quietest first
        self._complete: list[_Envelope] = []
        self._associations: dict[AssociationEnvelopes, None] = {}  # that have not ended
        self._in_doubt = dict.fromkeys(in_doubt)  # of associations that have ended
        self._remembered = set(self._in_doubt)  # by the caller; may also be of associations that have not
        self._newly_in_doubt: list[Stored] = []
        self._no_longer_in_doubt: list[str] = []

    def begin(self, origin: str) -> AssociationEnvelopes:
        """An association begins; `origin` says who, for example its calling AE title."""
        association = AssociationEnvelopes(self, origin)
        self._associations[association] = None
        return association

    def due(self, now: float, *, quiet_time_s: float = DEFAULT_QUIET_TIME_S) -> list[EnvelopeJournal]:
        """Return the journals that became complete; the caller closes them and has them built."""
        complete, self._complete = self._complete, []
        for envelope in self._envelopes:
            if envelope.last_at + quiet_time_s > now:
                break
            if not envelope.on_their_way:
                envelope.association.leave_in_doubt(envelope.paths)
                complete.append(envelope)
        return [self._hand_out(envelope) for envelope in complete]

    def next_deadline(self, *, quiet_time_s: float = DEFAULT_QUIET_TIME_S) -> float | None:
        """Return when `due` will have something unless something happens before; None when nothing is open."""
        if self._complete:
            return self._complete[0].last_at
        for envelope in self._envelopes:
            if not envelope.on_their_way:
                return envelope.last_at + quiet_time_s
        return None

    def take_in_doubt(self) -> list[Stored]:
        """Return, once, the objects that came to be in doubt; the caller remembers them durably (`outbox`)."""
        taken, self._newly_in_doubt = self._newly_in_doubt, []
        return taken

    def take_no_longer_in_doubt(self) -> list[str]:
        """Return, once, the SOP Instance UIDs whose senders have heard by now; the caller forgets them."""
        taken, self._no_longer_in_doubt = self._no_longer_in_doubt, []
        return taken

    # For its associations:

    def touch(self, envelope: _Envelope) -> None:
        envelope.last_at = self.clock()
        self._envelopes[envelope] = None
        self._envelopes.move_to_end(envelope)

    def complete(self, envelope: _Envelope) -> None:
        """The envelope's association has ended and nothing is on its way."""
        del self._envelopes[envelope]
        envelope.association.forget(envelope)
        self._complete.append(envelope)

    def complete_at_once(self, envelopes: list[_Envelope]) -> list[EnvelopeJournal]:
        return [self._hand_out(envelope) for envelope in envelopes]

    def was_in_doubt(self, sop_instance_uid: str, repeated_by: AssociationEnvelopes) -> bool:
        """Tell whether an instance is in doubt; from now on that is up to the association that repeats it."""
        if sop_instance_uid in self._in_doubt:
            del self._in_doubt[sop_instance_uid]
            return True
        for association in self._associations:
            if association is not repeated_by and association.origin == repeated_by.origin:
                stored = association.give_up(sop_instance_uid)
                if stored is not None:
                    self.remember(stored)
                    return True
        return False

    def is_in_doubt(self, stored: Stored) -> None:
        """The association that sent it is over, and its sender may not know what became of it."""
        uid = stored.sop_instance_uid
        self._in_doubt.pop(uid, None)
        self._in_doubt[uid] = None
        self.remember(stored)
        if len(self._in_doubt) > MAXIMUM_IN_DOUBT:
            oldest = next(iter(self._in_doubt))
            del self._in_doubt[oldest]
            self._forget(oldest)

    def remember(self, stored: Stored) -> None:
        """Have the caller remember an object, again if it does already."""
        uid = stored.sop_instance_uid
        self._remembered.add(uid)
        if uid in self._no_longer_in_doubt:
            self._no_longer_in_doubt.remove(uid)
        self._newly_in_doubt.append(stored)

    def is_remembered(self, sop_instance_uid: str) -> bool:
        return sop_instance_uid in self._remembered

    def was_answered(self, sop_instance_uid: str) -> None:
        """A sender has heard what became of an object; nobody else waits for that unless it is in doubt still."""
        if (
            sop_instance_uid in self._remembered
            and sop_instance_uid not in self._in_doubt
            and not any(association.may_repeat(sop_instance_uid) for association in self._associations)
        ):
            self._forget(sop_instance_uid)

    def has_ended(self, association: AssociationEnvelopes) -> None:
        del self._associations[association]

    def _forget(self, sop_instance_uid: str) -> None:
        self._remembered.discard(sop_instance_uid)
        self._no_longer_in_doubt.append(sop_instance_uid)

    def _hand_out(self, envelope: _Envelope) -> EnvelopeJournal:
        self._envelopes.pop(envelope, None)
        envelope.association.forget(envelope)
        return envelope.journal


class AssociationEnvelopes:
    """The envelopes of one association: what its objects are journaled to (`harmony.archive.Journal`).

    Every object that was appended must be settled, or refused.
    """

    def __init__(self, assembly: EnvelopeAssembly, origin: str) -> None:
        self.origin = origin
        self._assembly = assembly
        self._open: dict[str, _Envelope] = {}  # by Study Instance UID
        self._last: deque[Stored] = deque()  # whose response may not have arrived yet
        self._ended: bool = False

    def __repr__(self) -> str:
        return f"<AssociationEnvelopes of {self.origin!r}: {len(self._open)} open, ended={self._ended}>"

    def append(self, stored: Stored) -> None:
        """Journal one object, whose bytes are complete and whose name is yet to come. OSError refuses the object."""
        disposition = stored.disposition.name
        self._withdraw_other(stored, kept=disposition != _KEPT_FIRST)
        if disposition == _KEPT_FIRST:
            return
        was_in_doubt = self._assembly.was_in_doubt(stored.sop_instance_uid, self)
        if not (was_in_doubt and disposition == _IDENTICAL):
            self._add(stored)
        if self._ended:  # complete only now, and nobody is left to hear of it
            self._assembly.is_in_doubt(stored)
            return
        self._last.append(stored)
        if len(self._last) > self._assembly.window:
            self._assembly.was_answered(self._last.popleft().sop_instance_uid)

    def sync(self) -> None:
        """Make what was appended durable. Blocking; in a worker thread."""
        for envelope in list(self._open.values()):
            envelope.journal.sync()

    def settled(self, path: str) -> EnvelopeJournal | None:
        """The object at `path` is there: it has its final name. Return the journal that it is in, if it is in one."""
        for envelope in list(self._open.values()):
            if envelope.on_their_way.pop(path, None) is not None:
                self._arrived(envelope)
                return envelope.journal
        return None

    def refused(self, path: str) -> None:
        """The object that was to be at `path` was refused after all; nothing if it was never appended.

        It is taken out of the journal as well: its sender may send it again elsewhere before this envelope is built,
        and then there is a file of this name, which belongs to another envelope.
        """
        for envelope in list(self._open.values()):
            if path in envelope.on_their_way:
                self._withdraw(envelope, path)
                self._last = deque(stored for stored in self._last if stored.path != path)
                self._arrived(envelope)
                return

    def _arrived(self, envelope: _Envelope) -> None:
        self._assembly.touch(envelope)
        if self._ended and not envelope.on_their_way:
            self._assembly.complete(envelope)

    def ended(self, *, released: bool) -> list[EnvelopeJournal]:
        """The association is over; return the journals to close and build. Idempotent.

        Those with objects still on their way come from `EnvelopeAssembly.due` when these are settled.
        released: it ended in an A-RELEASE; else its last objects are in doubt.
        """
        if not self._ended:
            self._ended = True
            self._assembly.has_ended(self)
            last, self._last = self._last, deque()
            for stored in last:
                if released:
                    self._assembly.was_answered(stored.sop_instance_uid)
                else:
                    self._assembly.is_in_doubt(stored)
        complete = [envelope for envelope in self._open.values() if not envelope.on_their_way]
        return self._assembly.complete_at_once(complete)

    # For the assembly:

    def give_up(self, sop_instance_uid: str) -> Stored | None:
        """Hand over an object whose response may not have arrived: somebody repeats it."""
        for stored in self._last:
            if stored.sop_instance_uid == sop_instance_uid:
                self._last.remove(stored)
                return stored
        return None

    def may_repeat(self, sop_instance_uid: str) -> bool:
        return any(stored.sop_instance_uid == sop_instance_uid for stored in self._last)

    def leave_in_doubt(self, paths: set[str]) -> None:
        """A journal of these paths is about to be closed, and then it no longer tells what was sent last."""
        for stored in self._last:
            if stored.path in paths and not self._assembly.is_remembered(stored.sop_instance_uid):
                self._assembly.remember(stored)

    def forget(self, envelope: _Envelope) -> None:
        """The envelope is complete; a further object of its study opens another one."""
        if self._open.get(envelope.study_instance_uid) is envelope:
            del self._open[envelope.study_instance_uid]

    def _add(self, stored: Stored) -> None:
        study_instance_uid = stored.study_instance_uid
        envelope = self._open.get(study_instance_uid)
        if envelope is None:
            journal = self._assembly.open_journal(self.origin, study_instance_uid)
            envelope = _Envelope(study_instance_uid, self, journal, 0.0)
            self._open[study_instance_uid] = envelope
            self._assembly.touch(envelope)
        path = stored.path
        journaled = False
        if path not in envelope.paths:
            envelope.journal.append(stored)
            envelope.paths.add(path)
            journaled = True
        envelope.on_their_way[path] = _Way(stored.sop_instance_uid, journaled)
        self._assembly.touch(envelope)

    def _withdraw_other(self, stored: Stored, *, kept: bool) -> None:
        """Take back an object that was appended and is now something else: another process took its name."""
        for envelope in self._open.values():
            for path, way in envelope.on_their_way.items():
                if way.sop_instance_uid == stored.sop_instance_uid and not (kept and path == stored.path):
                    self._withdraw(envelope, path)
                    return

    @staticmethod
    def _withdraw(envelope: _Envelope, path: str) -> None:
        if envelope.on_their_way.pop(path).journaled:
            envelope.paths.discard(path)
            if not envelope.journal.take_back(path):
                envelope.journal.remove(path)
