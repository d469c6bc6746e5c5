"""The DICOM Upper Layer protocol machine of PS3.8 §9, without I/O: bytes in, indications out, bytes to send.

`UpperLayer` is one association from either side. Its owner tells it what happened (`transport_connected`,
`receive`, `transport_closed`, `check_timer`) and what the local user wants (`associate`, `accept`, `reject`,
`release`, `respond_release`, `abort`), then writes `take_outgoing()` to the transport and closes it when
`close_requested` says so. Time is an argument, in seconds of any monotonic clock; ARTIM is a deadline.
Nothing here waits, logs or opens.

What the machine tells the local user goes to a `Receiver`, in the order in which it happened. P-DATA is
delivered while it arrives: a fragment of a PDV may come in several pieces, each a view of the buffer passed
to `receive` and valid until that returns. `EventLog` is a receiver that collects everything, for programs
that drive the core by hand.

P-DATA is sent by the owner itself: `may_send_p_data` is the DT-1/AR-7 check, so that the data path builds no
objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Protocol

from harmony.ul.errors import (
    AssociationAborted,
    AssociationError,
    AssociationRejected,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
)
from harmony.ul.pdu import (
    PDU,
    Abort,
    AssociateAC,
    AssociateRJ,
    AssociateRQ,
    PDUType,
    ReleaseRP,
    ReleaseRQ,
    decode,
    describe_abort,
)
from harmony.ul.state import EFFECTS, Action, Effect, Event, State, transition

__all__ = [
    "AbortIndication",
    "AssociateConfirmation",
    "AssociateIndication",
    "EventLog",
    "Indication",
    "PDataIndication",
    "Receiver",
    "ReleaseConfirmation",
    "ReleaseIndication",
    "Role",
    "SizeLimits",
    "UpperLayer",
]

PDU_HEADER = Struct(">BxI")  # type, reserved, length
PDV_HEADER = Struct(">IBB")  # item length, presentation context ID, message control header
HEADER_SIZE = 6  # of both
BOTH_HEADERS = Struct(">BxIIBB")
BOTH_HEADERS_SIZE = 12

PDV_OVERHEAD = 6
"""Bytes a PDV adds to its fragment: item length, presentation context ID, message control header."""

SHORT_PDU_LIMIT = 1024
"""Longest A-ASSOCIATE-RJ, A-RELEASE or A-ABORT that is read: they have 4 bytes; a longer one is tolerated,
not stored."""


class Role(Enum):
    """Which side of the association this is; it decides a release collision (PS3.8 §9.2.3, AR-8)."""

    REQUESTOR = "requestor"
    ACCEPTOR = "acceptor"


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """What a peer may make us read. Checked on the length field, before anything is stored."""

    associate_pdu_bytes: int = 1 << 20
    """A-ASSOCIATE-RQ and -AC: 128 contexts of 62 transfer syntaxes are 300 KB; DCMTK's limit is the same 1
    MiB."""

    p_data_pdu_bytes: int = 16 << 20
    """P-DATA-TF beyond the announced maximum length is tolerated up to here: real peers miscount or ignore
    it."""


@dataclass(frozen=True, slots=True)
class AssociateIndication:
    """A-ASSOCIATE indication: the peer asks for an association; answer with `accept` or `reject`."""

    request: AssociateRQ


@dataclass(frozen=True, slots=True)
class AssociateConfirmation:
    """A-ASSOCIATE confirmation: the peer accepted. (A rejection arrives as AbortIndication with
    AssociationRejected.)"""

    response: AssociateAC


@dataclass(frozen=True, slots=True)
class PDataIndication:
    """One PDV, put together again from its pieces; only `EventLog` makes these."""

    presentation_context_id: int
    message_control_header: int
    fragment: bytes


@dataclass(frozen=True, slots=True)
class ReleaseIndication:
    """A-RELEASE indication: answer with `respond_release`; P-DATA may still be sent before (Sta8)."""

    collision: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseConfirmation:
    """A-RELEASE confirmation: the association is over, in order."""


@dataclass(frozen=True, slots=True)
class AbortIndication:
    """The association is over, or never came to be: A-ABORT, A-P-ABORT, rejection or loss of the
    transport."""

    error: AssociationError


Indication = (
    AssociateIndication
    | AssociateConfirmation
    | PDataIndication
    | ReleaseIndication
    | ReleaseConfirmation
    | AbortIndication
)


class Receiver(Protocol):
    """The local user of the upper layer. Either method may call back into the machine."""

    def indication(self, indication: Indication) -> None:
        """Something happened; called once for each indication or confirmation primitive, in order."""

    def p_data(
        self, presentation_context_id: int, message_control_header: int, fragment: memoryview, complete: bool
    ) -> None:
        """A piece of a PDV's fragment; `complete` with its last one.

        fragment: a view of the bytes given to `receive`, valid until that returns. May be empty.
        Raising RemoteProtocolError aborts the association with the error's source and reason.
        """


class EventLog:
    """A Receiver that collects indications; P-DATA pieces are joined (copied) into one PDataIndication per
    PDV."""

    def __init__(self) -> None:
        self.events: list[Indication] = []
        self._fragment = bytearray()

    def indication(self, indication: Indication) -> None:
        self.events.append(indication)

    def p_data(
        self, presentation_context_id: int, message_control_header: int, fragment: memoryview, complete: bool
    ) -> None:
        self._fragment += fragment
        if complete:
            data = bytes(self._fragment)
            self._fragment.clear()
            self.events.append(PDataIndication(presentation_context_id, message_control_header, data))

    def take(self) -> list[Indication]:
        """The indications since the last call."""
        events, self.events = self.events, []
        return events


_EVENT_OF_PDU = {
    PDUType.ASSOCIATE_RQ: Event.ASSOCIATE_RQ,
    PDUType.ASSOCIATE_AC: Event.ASSOCIATE_AC,
    PDUType.ASSOCIATE_RJ: Event.ASSOCIATE_RJ,
    PDUType.RELEASE_RQ: Event.RELEASE_RQ,
    PDUType.RELEASE_RP: Event.RELEASE_RP,
    PDUType.ABORT: Event.ABORT,
}
_P_DATA_TF = int(PDUType.P_DATA_TF)
_STA6, _STA7 = State.STA6, State.STA7
_EMPTY = memoryview(b"")


class UpperLayer:
    """One association's protocol machine (PS3.8 Table 9-10).

    receiver: the local user. artim_timeout_s: the ARTIM timer of PS3.8 §9.1.5, running in Sta2 and Sta13.
    Methods for the local user raise LocalProtocolError where Table 9-10 has an empty cell.
    """

    def __init__(
        self,
        role: Role,
        receiver: Receiver,
        *,
        artim_timeout_s: float = 30.0,
        limits: SizeLimits | None = None,
    ) -> None:
        self.role = role
        self.state = State.STA1
        self.close_requested = False
        self.deadline: float | None = None
        """When ARTIM expires; None while it does not run. Call `check_timer` then."""
        self._receiver = receiver
        self._artim_timeout_s = artim_timeout_s
        self._limits = limits or SizeLimits()
        self._outgoing: list[bytes] = []
        self._request = b""  # the encoded A-ASSOCIATE-RQ, until the transport is there
        self._response = b""  # the encoded A-ASSOCIATE-AC or -RJ
        # How far the input has been parsed. Exactly one of these is under way at any time:
        self._header = b""  # a PDU or PDV header of which fewer than six bytes have come
        self._body: bytearray | None = None  # the body of a PDU other than P-DATA-TF
        self._body_type = 0
        self._body_length = 0
        self._p_data_left = 0  # bytes of the current P-DATA-TF after the PDV under way
        self._fragment_left = 0  # bytes of the PDV under way
        self._discard = 0  # bytes of a PDU that is not wanted in this state
        self._presentation_context_id = 0
        self._message_control_header = 0
        self._heard_anything = False
        self.fault: RemoteProtocolError | None = None
        """What the peer did wrong, once it did; the local user is not told of it before an association
        exists."""
        self.pdus_begun = 0
        """PDU headers seen so far; lets the owner tell one long PDU from many short ones."""

    def __repr__(self) -> str:
        return f"<UpperLayer {self.role.value} {self.state.name}>"

    # What the local user asks for ----

    def associate(self, request: AssociateRQ, *, now: float) -> None:
        """A-ASSOCIATE request: the owner connects the transport next, then calls `transport_connected`.

        Like `accept` and `reject` it raises LocalProtocolError for what cannot be encoded; nothing has happened then.
        """
        encoded = request.encode()
        self._check(Event.A_ASSOCIATE_REQUEST)
        self._request = encoded
        self._handle(Event.A_ASSOCIATE_REQUEST, now)

    def accept(self, response: AssociateAC, *, now: float) -> None:
        """A-ASSOCIATE response, accepted."""
        self._response = response.encode()
        self._local(Event.A_ASSOCIATE_RESPONSE_ACCEPT, now)

    def reject(self, response: AssociateRJ, *, now: float) -> None:
        """A-ASSOCIATE response, rejected."""
        self._response = response.encode()
        self._local(Event.A_ASSOCIATE_RESPONSE_REJECT, now)

    def release(self, *, now: float) -> None:
        """A-RELEASE request. Data may still arrive until the confirmation."""
        self._local(Event.A_RELEASE_REQUEST, now)

    def respond_release(self, *, now: float) -> None:
        """A-RELEASE response to a ReleaseIndication."""
        self._local(Event.A_RELEASE_RESPONSE, now)

    def abort(self, *, now: float) -> None:
        """A-ABORT request. Without effect where there is nothing left to abort (Sta1, Sta2, Sta13)."""
        if transition(self.state, Event.A_ABORT_REQUEST) is not None:
            self._local(Event.A_ABORT_REQUEST, now)

    def may_send_p_data(self) -> bool:
        """True in Sta6 and Sta8, where the owner may write P-DATA-TF PDUs (DT-1, AR-7)."""
        return self.state is State.STA6 or self.state is State.STA8

    # What happened to the transport ----

    def transport_connected(self, *, now: float) -> None:
        """The transport connection is open: connected by us (requestor) or accepted (acceptor)."""
        requestor = self.role is Role.REQUESTOR
        self._local(Event.TRANSPORT_CONFIRM if requestor else Event.TRANSPORT_INDICATION, now)

    def transport_closed(self, *, now: float, error: AssociationError | None = None) -> None:
        """The transport connection is gone; error says more than "closed" when something is known."""
        if transition(self.state, Event.TRANSPORT_CLOSED) is not None:
            self._handle(
                Event.TRANSPORT_CLOSED, now, error=error or ConnectionLost("the connection was closed")
            )

    def check_timer(self, *, now: float) -> None:
        """Let ARTIM expire when its deadline has passed."""
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            if transition(self.state, Event.ARTIM_EXPIRED) is not None:
                self._handle(Event.ARTIM_EXPIRED, now)

    def take_outgoing(self) -> list[bytes]:
        """Encoded PDUs to write, oldest first; each is handed out once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def has_outgoing(self) -> bool:
        """True when `take_outgoing` would return something."""
        return bool(self._outgoing)

    @property
    def mid_pdu(self) -> bool:
        """True when the last byte received is not the last byte of a PDU."""
        return bool(
            self._fragment_left
            or self._p_data_left
            or self._header
            or self._body is not None
            or self._discard > 0
        )

    # What the peer sent ----

    def receive(self, data: memoryview | bytes, *, now: float) -> None:
        """Take bytes from the transport, split anywhere. Never raises for what a peer sent.

        data: read in place; P-DATA pieces passed to the receiver are views of it. Nothing keeps a reference
        to it.
        """
        try:
            self._parse(memoryview(data), now)
        except RemoteProtocolError as error:
            self.fault = error
            self._body = None
            self._p_data_left = self._fragment_left = 0
            # After an invalid PDU the stream has no known boundaries: nothing of it is looked at any more.
            self._discard = -1
            self._handle(Event.INVALID_PDU, now, error=error)

    def _parse(self, view: memoryview, now: float) -> None:
        position = 0
        end = len(view)
        while True:
            if self._fragment_left:
                if position == end:
                    return
                left = self._fragment_left
                size = end - position
                if size > left:
                    size = left
                self._fragment_left = left = left - size
                piece = view[position : position + size]
                position += size
                if self._discard == 0:
                    self._receiver.p_data(
                        self._presentation_context_id, self._message_control_header, piece, left == 0
                    )
                continue
            if self._discard:
                if self._discard < 0 or end - position <= self._discard:
                    if self._discard > 0:
                        self._discard -= end - position
                    return
                position += self._discard
                self._discard = 0
            if self._body is not None:
                size = min(self._body_length - len(self._body), end - position)
                self._body += view[position : position + size]
                position += size
                if len(self._body) < self._body_length:
                    return
                body, self._body = bytes(self._body), None
                self._complete_pdu(decode(self._body_type, body), now)
                continue
            if self.state is State.STA1:
                return  # the association is over; what still arrives is nobody's
            # A header is next, of six bytes either way; it may be split.
            if end - position >= BOTH_HEADERS_SIZE and not self._p_data_left and not self._header:
                # Nearly all that comes is a P-DATA-TF of one PDV: one look at both headers. Everything else, and
                # whatever is wrong, is for the code below. Twice per small object: 2 us each instead of 4.
                pdu_type, length, item_length, context_id, control = BOTH_HEADERS.unpack_from(view, position)
                if (
                    pdu_type == _P_DATA_TF
                    and item_length == length - 4
                    and item_length > 2
                    and length <= self._limits.p_data_pdu_bytes
                    and (self.state is _STA6 or self.state is _STA7)
                ):
                    self.pdus_begun += 1
                    position += BOTH_HEADERS_SIZE
                    stop = position + item_length - 2
                    if stop > end:
                        self._presentation_context_id = context_id
                        self._message_control_header = control
                        self._fragment_left = stop - position
                        continue
                    self._receiver.p_data(context_id, control, view[position:stop], True)
                    position = stop
                    if stop == end:
                        return
                    continue
            if self._header:
                needed = HEADER_SIZE - len(self._header)
                self._header += view[position : position + needed]
                position = min(position + needed, end)
                if len(self._header) < HEADER_SIZE:
                    return
                header, offset = memoryview(self._header), 0
                self._header = b""
            elif end - position < HEADER_SIZE:
                self._header = bytes(view[position:end])
                return
            else:
                header, offset = view, position
                position += HEADER_SIZE
            if self._p_data_left:
                self._begin_pdv(*PDV_HEADER.unpack_from(header, offset))
            else:
                if not self._heard_anything:
                    self._check_first_header(bytes(header[offset : offset + HEADER_SIZE]))
                    self._heard_anything = True
                self.pdus_begun += 1
                pdu_type, length = PDU_HEADER.unpack_from(header, offset)
                self._begin_pdu(pdu_type, length, now)

    def _begin_pdu(self, pdu_type: int, length: int, now: float) -> None:
        """A PDU header has come: check its length against the limit of its type, decide what becomes of the
        body."""
        if pdu_type == _P_DATA_TF:
            if length < PDV_OVERHEAD or length > self._limits.p_data_pdu_bytes:
                raise RemoteProtocolError(
                    f"P-DATA-TF: length {length}, expected {PDV_OVERHEAD} to {self._limits.p_data_pdu_bytes}"
                )
            if self.state is State.STA6 or self.state is State.STA7:
                self._p_data_left = length
            else:
                self._discard = length
                self._handle(Event.P_DATA_TF, now)
            return
        if not PDUType.ASSOCIATE_RQ <= pdu_type <= PDUType.ABORT:
            raise RemoteProtocolError(f"unrecognized PDU type 0x{pdu_type:02X}", reason=1)
        associate = pdu_type <= PDUType.ASSOCIATE_AC
        limit = self._limits.associate_pdu_bytes if associate else SHORT_PDU_LIMIT
        if length > limit:
            raise RemoteProtocolError(f"{PDUType(pdu_type).name} PDU: length {length} exceeds {limit}")
        self._body = bytearray()
        self._body_type = pdu_type
        self._body_length = length

    def _begin_pdv(self, length: int, presentation_context_id: int, message_control_header: int) -> None:
        """A PDV header has come: its item must fit the PDU, and leave room for another or nothing."""
        left = self._p_data_left - 4 - length
        if length < 2 or left < 0 or 0 < left < PDV_OVERHEAD:
            raise RemoteProtocolError(
                f"P-DATA-TF: PDV item length {length} with {self._p_data_left - 4} bytes left"
            )
        self._p_data_left = left
        self._presentation_context_id = presentation_context_id
        self._message_control_header = message_control_header
        self._fragment_left = length - 2
        if length == 2:
            self._receiver.p_data(presentation_context_id, message_control_header, _EMPTY, True)

    def _complete_pdu(self, pdu: PDU, now: float) -> None:
        self._handle(_EVENT_OF_PDU[PDUType(self._body_type)], now, pdu=pdu)

    def _check_first_header(self, header: bytes) -> None:
        """Name what is clearly not DICOM from the first six bytes of a connection (all PDU types are 01 to 07)."""
        if not 1 <= header[0] <= 7:
            raise ForeignProtocolError(f"the peer does not speak DICOM: {_name_protocol(header)}", reason=1)

    # The table ----

    def _local(self, event: Event, now: float) -> None:
        self._check(event)
        self._handle(event, now)

    def _check(self, event: Event) -> None:
        if transition(self.state, event) is None:
            raise LocalProtocolError(f"{event.name} is not possible in {self.state.name}")

    def _handle(
        self, event: Event, now: float, *, pdu: PDU | None = None, error: Exception | None = None
    ) -> None:
        """Run one cell of Table 9-10: first the new state, then the action's effects in the table's order."""
        cell = transition(self.state, event)
        if cell is None:
            return  # a PDU in Sta1: the transport is being closed
        action = cell.action
        effects = EFFECTS[action]
        next_state = cell.next_state
        if action is Action.AE_6:
            assert isinstance(pdu, AssociateRQ)
            if pdu.protocol_version & 1:  # PS3.8 §9.3.2: only bit 0 is tested
                next_state = State.STA3
                effects = (*effects, Effect.INDICATE_ASSOCIATE)
            else:
                next_state = State.STA13
                effects = (*effects, Effect.SEND_ASSOCIATE_RJ, Effect.START_ARTIM)
                self._response = AssociateRJ(1, 2, 2).encode()
                self.fault = RemoteProtocolError(
                    f"A-ASSOCIATE-RQ: protocol version 0x{pdu.protocol_version:04X}, expected bit 0 to be set"
                )
        elif action is Action.AR_8:
            next_state = State.STA9 if self.role is Role.REQUESTOR else State.STA10
        elif action is Action.AA_1 and event is not Event.A_ABORT_REQUEST and self.fault is None:
            self.fault = RemoteProtocolError(f"{event.name} came, expected an A-ASSOCIATE-RQ", reason=2)
        self.state = next_state
        over = next_state is State.STA13 or next_state is State.STA1
        if over and self._p_data_left + self._fragment_left and self._discard == 0:
            # Aborted in the middle of a P-DATA-TF: the rest of it is not wanted, its boundary is still known.
            self._discard = self._p_data_left + self._fragment_left - len(self._header)
            self._p_data_left = self._fragment_left = 0
            self._header = b""
        for effect in effects:
            self._carry_out(effect, event, now, pdu, error)
        if isinstance(error, ForeignProtocolError) and self.state is State.STA13:
            # There is no DICOM peer whose last words could be waited for: let ARTIM expire at once.
            self.deadline = now
            self.check_timer(now=now)

    def _carry_out(
        self, effect: Effect, event: Event, now: float, pdu: PDU | None, error: Exception | None
    ) -> None:
        indicate = self._receiver.indication
        match effect:
            case Effect.CONNECT:
                pass  # the owner called `associate` and connects next
            case Effect.SEND_ASSOCIATE_RQ:
                self._outgoing.append(self._request)
            case Effect.SEND_ASSOCIATE_AC | Effect.SEND_ASSOCIATE_RJ:
                self._outgoing.append(self._response)
            case Effect.SEND_P_DATA_TF:
                pass  # written by the owner, see may_send_p_data
            case Effect.SEND_RELEASE_RQ:
                self._outgoing.append(ReleaseRQ().encode())
            case Effect.SEND_RELEASE_RP:
                self._outgoing.append(ReleaseRP().encode())
            case Effect.SEND_ABORT_USER:
                self._outgoing.append(Abort(0, 0).encode())
            case Effect.SEND_ABORT_PROVIDER:
                self._outgoing.append(_provider_abort(error).encode())
            case Effect.INDICATE_ASSOCIATE:
                assert isinstance(pdu, AssociateRQ)
                indicate(AssociateIndication(pdu))
            case Effect.CONFIRM_ACCEPTED:
                assert isinstance(pdu, AssociateAC)
                indicate(AssociateConfirmation(pdu))
            case Effect.CONFIRM_REJECTED:
                assert isinstance(pdu, AssociateRJ)
                indicate(AbortIndication(AssociationRejected(pdu.result, pdu.source, pdu.reason)))
            case Effect.INDICATE_P_DATA:
                pass  # delivered piece by piece in _parse
            case Effect.INDICATE_RELEASE:
                indicate(ReleaseIndication())
            case Effect.INDICATE_RELEASE_COLLISION:
                indicate(ReleaseIndication(collision=True))
            case Effect.CONFIRM_RELEASE:
                indicate(ReleaseConfirmation())
            case Effect.INDICATE_ABORT:
                assert isinstance(pdu, Abort)
                text = f"aborted by the peer: {describe_abort(pdu.source, pdu.reason)}"
                indicate(AbortIndication(AssociationAborted(text, source=pdu.source, reason=pdu.reason)))
            case Effect.INDICATE_P_ABORT:
                indicate(AbortIndication(_p_abort_error(event, error)))
            case Effect.START_ARTIM:
                self.deadline = now + self._artim_timeout_s
            case Effect.STOP_ARTIM:
                self.deadline = None
            case Effect.CLOSE:
                self.close_requested = True


class ForeignProtocolError(RemoteProtocolError):
    """The first bytes of the connection belong to another protocol; the message names it."""


def _provider_abort(error: Exception | None) -> Abort:
    """AA-7 and AA-8: reason 2, unexpected PDU, unless the error knows better (PS3.8 Table 9-26)."""
    if isinstance(error, RemoteProtocolError):
        return Abort(error.source, error.reason)
    return Abort(2, 2)


def _p_abort_error(event: Event, error: Exception | None) -> AssociationError:
    if isinstance(error, AssociationError):
        return error
    if error is not None:
        abort = _provider_abort(error)
        aborted = AssociationAborted(
            f"aborted: {error}", source=abort.source, reason=abort.reason, by_peer=False
        )
        aborted.__cause__ = error
        return aborted
    return AssociationAborted(
        f"aborted: unexpected {event.name} from the peer", source=2, reason=2, by_peer=False
    )


def _name_protocol(data: bytes) -> str:
    """A guess for the operator, from the first bytes of a connection."""
    if data[:1] == b"\x16":
        return "this looks like a TLS ClientHello: the peer speaks TLS, on a port without"
    if data[:1] == b"\x15":
        return "this looks like a TLS alert: the peer expects TLS"
    if data[:4] in (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"HTTP", b"DELE", b"PRI "):
        return "this looks like HTTP"
    if data[:4] == b"SSH-":
        return "this looks like SSH"
    return f"the first byte is 0x{data[0]:02X}, expected a PDU type 0x01 to 0x07"
