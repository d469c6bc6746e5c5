"""What can go wrong in the upper layer, sorted by whose fault it is.

Local errors are ours (the caller asked for what the state does not permit), remote ones the peer's. An error
carries what its catcher needs: the A-ABORT to send, the reject codes received, the phase that ran out of
time.
"""

from __future__ import annotations


class ULError(Exception):
    """Anything the upper layer reports."""


class LocalProtocolError(ULError):
    """A request primitive was issued in a state whose cell in PS3.8 Table 9-10 is empty, or with impossible
    values."""


class RemoteProtocolError(ULError):
    """The peer sent what PS3.8 does not allow.

    source, reason: the A-ABORT to answer with (PS3.8 Table 9-26); 2/1 unrecognized PDU, 2/2 unexpected PDU,
    2/4 unrecognized parameter, 2/5 unexpected parameter, 2/6 invalid parameter value.
    """

    def __init__(self, message: str, *, source: int = 2, reason: int = 6) -> None:
        super().__init__(message)
        self.source = source
        self.reason = reason


class AssociationError(ULError):
    """There is no association, or no longer one."""


class AssociationRejected(AssociationError):
    """The peer answered A-ASSOCIATE-RJ. The codes are kept as integers, reserved ones too (PS3.8 Table
    9-21)."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        from harmony.ul.pdu import describe_rejection

        super().__init__(f"association rejected: {describe_rejection(result, source, reason)}")
        self.result = result
        self.source = source
        self.reason = reason

    @property
    def transient(self) -> bool:
        """True for result 2, rejected-transient: worth another try later."""
        return self.result == 2


class AssociationAborted(AssociationError):
    """An A-ABORT ended the association; `by_peer` says who sent it (PS3.8 Table 9-26 for the codes)."""

    def __init__(self, message: str, *, source: int = 0, reason: int = 0, by_peer: bool = True) -> None:
        super().__init__(message)
        self.source = source
        self.reason = reason
        self.by_peer = by_peer


class AssociationReleased(AssociationError):
    """The association was released while something was still expected of it."""


class ConnectionLost(AssociationError):
    """The transport connection closed without A-RELEASE or A-ABORT."""


class ConnectFailed(AssociationError):
    """No transport connection: refused, unreachable, name unknown, or the TLS handshake failed."""


class DeadlineExceeded(AssociationError):
    """A phase ran out of time; `phase` names it as in the message ("reading a PDU", "the release")."""

    def __init__(self, phase: str, timeout_s: float) -> None:
        super().__init__(f"{phase} took longer than {timeout_s:g} s")
        self.phase = phase
        self.timeout_s = timeout_s
