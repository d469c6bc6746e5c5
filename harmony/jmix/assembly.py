"""Which received objects make one envelope, and when it is complete.

One envelope per association and study. It is opened, and its id fixed, by the first object; it is complete when its
association has ended or when nothing has been added to it for the quiet time. An object counts as on its way from the
moment it is journaled until it is settled, that is until it has its final name or was refused; an envelope with
objects on their way is never handed out, or they would be missing from it.

An object whose response may never have reached its sender is in doubt: the last one(s) of an association that did not
end in a release. Its sender will repeat it, the archive finds the same bytes (IDENTICAL), and here it is consumed: it
is in an envelope already. An identical object that is not in doubt was sent again on purpose and goes into a new one.
What the archive did not keep (KEPT_FIRST) is not this sender's object and goes into none.

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
    on_their_way: dict[str, str] = field(default_factory=dict)  # path -> SOP Instance UID


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
        self._in_doubt = dict.fromkeys(in_doubt)
        self._newly_in_doubt: list[Stored] = []
        self._no_longer_in_doubt: list[str] = []

    def begin(self, origin: str) -> AssociationEnvelopes:
        """An association begins; `origin` says who, for example its calling AE title."""
        return AssociationEnvelopes(self, origin)

    def due(self, now: float, *, quiet_time_s: float = DEFAULT_QUIET_TIME_S) -> list[EnvelopeJournal]:
        """Return the journals that became complete; the caller closes them and has them built."""
        complete, self._complete = self._complete, []
        for envelope in self._envelopes:
            if envelope.last_at + quiet_time_s > now:
                break
            if not envelope.on_their_way:
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
        """Return, once, the SOP Instance UIDs that were repeated; the caller forgets them."""
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

    def was_in_doubt(self, sop_instance_uid: str) -> bool:
        """Tell whether an instance is in doubt; it is not any more."""
        if sop_instance_uid not in self._in_doubt:
            return False
        del self._in_doubt[sop_instance_uid]
        self._no_longer_in_doubt.append(sop_instance_uid)
        return True

    def is_in_doubt(self, stored: Stored) -> None:
        uid = stored.sop_instance_uid
        self._in_doubt.pop(uid, None)
        self._in_doubt[uid] = None
        if uid in self._no_longer_in_doubt:
            self._no_longer_in_doubt.remove(uid)
        self._newly_in_doubt.append(stored)
        if len(self._in_doubt) > MAXIMUM_IN_DOUBT:
            oldest = next(iter(self._in_doubt))
            del self._in_doubt[oldest]
            self._no_longer_in_doubt.append(oldest)

    def _hand_out(self, envelope: _Envelope) -> EnvelopeJournal:
        self._envelopes.pop(envelope, None)
        envelope.association.forget(envelope)
        return envelope.journal


class AssociationEnvelopes:
    """The envelopes of one association: what its objects are journaled to (`harmony.archive.Journal`).

    Every object that was appended must be settled, whatever became of it.
    """

    def __init__(self, assembly: EnvelopeAssembly, origin: str) -> None:
        self.origin = origin
        self._assembly = assembly
        self._open: dict[str, _Envelope] = {}  # by Study Instance UID
        self._last: deque[Stored] = deque(maxlen=assembly.window)
        self._ended: bool = False

    def __repr__(self) -> str:
        return f"<AssociationEnvelopes of {self.origin!r}: {len(self._open)} open, ended={self._ended}>"

    def append(self, stored: Stored) -> None:
        """Journal one object, whose bytes are complete and whose name is yet to come. OSError refuses the object."""
        disposition = stored.disposition.name
        self._withdraw_other(stored, kept=disposition != _KEPT_FIRST)
        if disposition == _KEPT_FIRST:
            return
        consumed = self._assembly.was_in_doubt(stored.sop_instance_uid) and disposition == _IDENTICAL
        if not consumed:
            self._add(stored)
        if self._ended:  # complete only now, and nobody is left to hear of it
            self._assembly.is_in_doubt(stored)
        else:
            self._last.append(stored)

    def sync(self) -> None:
        """Make what was appended durable. Blocking; in a worker thread."""
        for envelope in list(self._open.values()):
            envelope.journal.sync()

    def settled(self, path: str) -> None:
        """The object that was to be at `path` is there, or was refused and never will be."""
        for envelope in list(self._open.values()):
            if envelope.on_their_way.pop(path, None) is not None:
                self._assembly.touch(envelope)
                if self._ended and not envelope.on_their_way:
                    self._assembly.complete(envelope)
                return

    def ended(self, *, released: bool) -> list[EnvelopeJournal]:
        """The association is over; return the journals to close and build. Idempotent.

        Those with objects still on their way come from `EnvelopeAssembly.due` when these are settled.
        released: it ended in an A-RELEASE; else its last objects are in doubt.
        """
        if not self._ended:
            self._ended = True
            if not released:
                for stored in self._last:
                    self._assembly.is_in_doubt(stored)
            self._last.clear()
        complete = [envelope for envelope in self._open.values() if not envelope.on_their_way]
        return self._assembly.complete_at_once(complete)

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
        if path not in envelope.paths:
            envelope.journal.append(stored)
            envelope.paths.add(path)
        envelope.on_their_way[path] = stored.sop_instance_uid
        self._assembly.touch(envelope)

    def _withdraw_other(self, stored: Stored, *, kept: bool) -> None:
        """Take back an object that was appended and is now something else: another process took its name."""
        for envelope in self._open.values():
            for path, sop_instance_uid in envelope.on_their_way.items():
                if sop_instance_uid == stored.sop_instance_uid and not (kept and path == stored.path):
                    envelope.journal.remove(path)
                    envelope.paths.discard(path)
                    del envelope.on_their_way[path]
                    return
