"""The timers of an association, as values: how long each phase may take, which of them run, what has run out.

ARTIM is the protocol machine's own (PS3.8 §9.1.5). The others supervise what the standard leaves to the
implementation: connecting, the answer to a request, reading, writing, release, idleness. `Association` keeps one timer
of the event loop, set for the earliest deadline that runs or could begin to run before; data in flight only moves
deadlines later.
"""

from __future__ import annotations

from dataclasses import dataclass

from harmony.ul.errors import DeadlineExceeded

__all__ = ["Deadlines", "Timeouts", "after"]

LONGEST_WAIT_S = 3600.0
"""Between two looks at the deadlines when all of them are off."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds for each phase of an association; None switches one off."""

    connect_s: float | None = 15.0
    """Name resolution, TCP connect and TLS handshake together."""
    associate_s: float | None = 30.0
    """Requestor: from A-ASSOCIATE-RQ to the answer. Acceptor: for the user identity verifier's decision."""
    artim_s: float = 30.0
    """ARTIM, PS3.8 §9.1.5: from TCP accept to a complete A-ASSOCIATE-RQ, and for the peer's close at the
    end."""
    pdu_s: float | None = 60.0
    """A PDU once begun, and the next PDU of a message once begun. A trickle of bytes does not extend it."""
    write_s: float | None = 60.0
    """For the peer to take everything that was written."""
    idle_s: float | None = 600.0
    """Without any operation: the association is then released."""
    release_s: float | None = 10.0
    """From A-RELEASE-RQ to A-RELEASE-RP."""
    tls_handshake_s: float = 15.0
    """Acceptor: for the TLS handshake, before the association's own timers begin."""


@dataclass(slots=True)
class Deadlines:
    """Which application timers run, as times of the loop's clock; None while one does not."""

    associate: float | None = None
    pdu: float | None = None
    write: float | None = None
    release: float | None = None
    close: float | None = None
    idle_since: float = 0.0

    def soonest(self, now: float, timeouts: Timeouts, *, artim: float | None) -> float:
        """The earliest deadline, counting those that may begin at any moment from now."""
        soonest = now + LONGEST_WAIT_S
        for timeout in (timeouts.pdu_s, timeouts.write_s, timeouts.idle_s):
            if timeout is not None and now + timeout < soonest:
                soonest = now + timeout
        for deadline in (artim, self.associate, self.pdu, self.write, self.release, self.close):
            if deadline is not None and deadline < soonest:
                soonest = deadline
        return soonest

    def expired(self, now: float, timeouts: Timeouts, *, reading_held: bool) -> DeadlineExceeded | None:
        """The first phase that took too long. A peer that we keep from sending is not late."""
        for phase, deadline, timeout in (
            ("the association request", self.associate, timeouts.associate_s),
            ("reading a PDU", None if reading_held else self.pdu, timeouts.pdu_s),
            ("writing to the peer", self.write, timeouts.write_s),
            ("the release", self.release, timeouts.release_s),
        ):
            if deadline is not None and timeout is not None and now >= deadline:
                return DeadlineExceeded(phase, timeout)
        return None


def after(now: float, timeout_s: float | None) -> float | None:
    """The deadline for something that begins now."""
    return None if timeout_s is None else now + timeout_s
