"""One association on an asyncio transport: the sans-IO core of `upper_layer`, a receive buffer, deadlines,
back-pressure.

Both sides use it: `acceptor` makes one per connection, `requestor` one per call. The local user is an
`AssociationUser` (DIMSE's exchange, or anyone else's): it is called from the event loop, never waits, and
gets P-DATA fragments as views of the receive buffer.

The receive buffer is shared by all associations of a thread: the event loop asks for it, reads and hands it
back in one go, so a thousand idle associations cost nothing. (Proactor loops read in the background; there
each gets its own.)

Not here: what is negotiated (`negotiation`), the protocol rules (`state`, `upper_layer`), connecting and
listening.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from harmony.ul.deadlines import Deadlines, Timeouts, after
from harmony.ul.errors import (
    AssociationAborted,
    AssociationError,
    ConnectionLost,
    DeadlineExceeded,
    LocalProtocolError,
)
from harmony.ul.held import HELD
from harmony.ul.negotiation import Negotiated, result_of
from harmony.ul.pdu import AssociateAC, AssociateRJ, AssociateRQ, describe_rejection
from harmony.ul.state import State
from harmony.ul.tls import describe_failure
from harmony.ul.transport import (
    BorrowedSocket,
    acknowledge_quickly,
    adopt_socket,
    format_peer,
    peer_of,
    receive_buffer,
)
from harmony.ul.upper_layer import (
    AbortIndication,
    AssociateConfirmation,
    AssociateIndication,
    Indication,
    ReleaseConfirmation,
    ReleaseIndication,
    Role,
    SizeLimits,
    UpperLayer,
)

__all__ = ["Association", "AssociationUser"]

logger = logging.getLogger("harmony.ul")

CLOSE_LINGER_S = 2.0
"""How long the last bytes may take to leave after the transport is told to close; then it is cut."""

_numbers = itertools.count(1)


class AssociationUser(Protocol):
    """The user of the upper layer service; its methods are called from the event loop and must not block."""

    receiving: bool
    """True while a message has begun to arrive and is not complete."""

    def established(self, association: Association) -> None:
        """The association exists; `association.negotiated` says what was agreed."""

    def p_data(
        self, presentation_context_id: int, message_control_header: int, fragment: memoryview, complete: bool
    ) -> None:
        """A piece of a PDV; see `upper_layer.Receiver.p_data`."""

    def p_data_paused(self) -> None:
        """No more has come for now, in the middle of a message: views that `p_data` was given are not valid any more.

        Without such a call they are until the last fragment of a message; never longer.
        """

    def release_requested(self) -> None:
        """The peer wants to release: finish, then call `association.respond_release()`."""

    def busy(self) -> bool:
        """True while any operation is outstanding in either direction; such an association is not idle."""

    def writable(self) -> None:
        """Everything written has left; called after `association.write_blocked` was true."""

    def ended(self, error: AssociationError | None) -> None:
        """The association is over: None after a release, else why. Called once, and last."""


class Association(asyncio.BufferedProtocol):
    """An association in any phase; create it through `acceptor` or `requestor`.

    Everything public is for the event loop's thread. `negotiated` is set once established.
    """

    def __init__(
        self,
        role: Role,
        user: AssociationUser,
        *,
        timeouts: Timeouts,
        limits: SizeLimits | None = None,
        request: AssociateRQ | None = None,
        peer: tuple[str, int] | None = None,
        on_connected: Callable[[Association], None] | None = None,
        on_request: Callable[[Association, AssociateRQ], None] | None = None,
        on_releasing: Callable[[Association], None] | None = None,
        on_ended: Callable[[Association], None] | None = None,
        on_closed: Callable[[Association], None] | None = None,
    ) -> None:
        self.number = next(_numbers)
        """Counts associations of this process, for logs."""
        self.role = role
        self.user = user
        self.negotiated: Negotiated | None = None
        self.peer = peer or ("", 0)
        """Host and port: what the argument says, or else where the transport leads, once there is one."""
        self.peer_address = format_peer(self.peer)
        """The same for logs and errors: 192.0.2.1:104, [2001:db8::1]:104, or "?"."""
        self._peer_certificate: Mapping[str, Any] | None = None
        self._secured = False
        self.principal: object | None = None
        """Acceptor: who the peer has proven to be, as the identity verifier says; it is set before `established`."""
        self.request = request
        self.error: AssociationError | None = None
        self.received_bytes = 0
        """By the transport, decrypted where there is TLS; all PDUs with their headers. So is sent_bytes."""
        self.sent_bytes = 0
        self._timeouts = timeouts
        self._on_connected = on_connected
        self._on_request = on_request
        self._on_releasing = on_releasing
        self._on_ended = on_ended
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._core = UpperLayer(role, self, artim_timeout_s=timeouts.artim_s, limits=limits)
        self._transport: asyncio.Transport | None = None
        self._socket: BorrowedSocket | None = None
        self._deadlines = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._pdus_seen = 0
        self._holds = 0
        self._abort_elsewhere: Callable[[], None] | None = None  # handed over, and what to call to abort it
        self._write_blocked = False
        self._unsent_bytes = 0  # counted as held
        self._flush_waiters: list[asyncio.Future[None]] = []
        self._established: asyncio.Future[Negotiated] = self._loop.create_future()
        self._established.add_done_callback(_retrieve)
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._is_established = False
        self._is_ended = False
        self._release_indicated = False
        self._closed = asyncio.Event()
        self._buffer = receive_buffer(self._loop)
        if request is not None:
            self._core.associate(request, now=self._loop.time())

    def __repr__(self) -> str:
        negotiated = self.negotiated
        names = ""
        if negotiated:
            names = f"{_printable(negotiated.calling_ae_title)}->{_printable(negotiated.called_ae_title)} "
        state = self._core.state.name
        return f"<Association {self.number} {names}{self.role.value} {self.peer_address} {state}>"

    # For the local user ----

    @property
    def agreed(self) -> Negotiated:
        """What was negotiated; LocalProtocolError before the association is established."""
        if self.negotiated is None:
            raise LocalProtocolError("the association is not established")
        return self.negotiated

    @property
    def peer_certificate(self) -> Mapping[str, Any] | None:
        """What `ssl.SSLSocket.getpeercert()` says of the certificate that the peer showed and that was verified.

        None without one, without TLS, and before the connection is made. It stays when the association ends.
        """
        return self._peer_certificate

    @property
    def is_open(self) -> bool:
        """True from establishment until release, abort or loss."""
        return self._is_established and not self._is_ended

    @property
    def write_blocked(self) -> bool:
        """True while the peer has not taken all that was written."""
        return self._write_blocked

    def write_p_data(self, pdus: bytes | bytearray | memoryview) -> bool:
        """Write encoded P-DATA-TF PDUs (DT-1, AR-7). The caller never mixes messages and obeys
        peer_maximum_length.

        Returns True when the bytes have left already; otherwise the buffer must stay as it is until
        `flushed()`. Over TLS "left" means encrypted and handed to the TCP transport, which may hold one
        such write back unseen; the next one is then blocked. Raises the error that ended the association,
        or LocalProtocolError in a state that sends no data.
        """
        transport = self._transport
        if transport is None or not self._core.may_send_p_data():
            raise self.error or LocalProtocolError(f"P-DATA cannot be sent in {self._core.state.name}")
        self.sent_bytes += len(pdus)
        transport.write(pdus)
        return not transport.get_write_buffer_size()

    async def flushed(self) -> None:
        """Wait until everything written has left this process; raises what ended the association instead."""
        while True:
            if self._is_ended:
                raise self.error or ConnectionLost("the association has ended")
            if self._transport is None or not self._transport.get_write_buffer_size():
                return
            waiter = self._loop.create_future()
            self._flush_waiters.append(waiter)
            await waiter

    def hold_reading(self) -> None:
        """Stop reading from the peer until a matching `continue_reading`; holds add up.

        At most one receive buffer (RECEIVE_BUFFER_BYTES) that has been read already is still delivered.
        """
        self._holds += 1
        if self._holds == 1 and self._transport is not None and not self._is_ended:
            with contextlib.suppress(RuntimeError):  # closing
                self._transport.pause_reading()

    def continue_reading(self) -> None:
        """Take one hold back."""
        self._holds -= 1
        if self._holds == 0 and not self._is_ended:
            self._deadlines.pdu = None  # the peer was made to wait: what it was sending gets a new deadline
            if self._core.mid_pdu or self.user.receiving:
                self._watch_reading(self._loop.time())
            self._resume_reading()

    async def release(self) -> None:
        """Release the association in order (PS3.8 §7.2) and wait for its end.

        A peer that closes instead of answering counts as released; one that does neither in `release_s` is
        aborted and DeadlineExceeded raised. Returns at once when there is no association any more.
        """
        if self.is_open and self._core.state is State.STA6:
            self._begin_release()
        await asyncio.shield(self._ended)
        if isinstance(self.error, DeadlineExceeded):
            raise self.error

    def respond_release(self) -> None:
        """Answer the peer's release (A-RELEASE response)."""
        if self._core.state in (State.STA8, State.STA9, State.STA12):
            if self._on_releasing is not None:
                self._on_releasing(self)
            self._core.respond_release(now=self._loop.time())
            self._flush()

    def abort(self, error: AssociationError | None = None) -> None:
        """Abort at once, from any state and any number of times (A-ABORT request, PS3.8 §7.3).

        error: what `ended` and waiting calls report; AssociationAborted with by_peer=False by default.
        """
        if self._abort_elsewhere is not None:
            if not self._is_ended:
                self._abort_elsewhere()
            return
        if self._is_ended and self._core.state is State.STA1:
            return
        self._core.abort(now=self._loop.time())
        self._finish(error or AssociationAborted("aborted by us", by_peer=False))
        self._flush()
        if self._transport is None:
            self._closed.set()  # never connected: nothing is left to wait for
        elif self._core.state is State.STA2:
            self._close_transport()

    def cut_after_writing(self) -> None:
        """Close the transport as soon as what was written has left, without waiting for the peer to close."""
        self._close_transport()

    def give_up(self, error: AssociationError) -> None:
        """Requestor: connecting failed or was cancelled, and the event loop has closed what there was of a transport.

        uvloop does so without calling connection_lost, even after connection_made.
        """
        self._core.abort(now=self._loop.time())
        self._core.take_outgoing()
        self._finish(error)
        if self._transport is not None:
            self.connection_lost(None)
        self._closed.set()

    async def wait_established(self) -> Negotiated:
        """Requestor: wait for the answer to A-ASSOCIATE-RQ; raises AssociationRejected and its kin."""
        return await asyncio.shield(self._established)

    async def wait_ended(self) -> AssociationError | None:
        """Wait until the association is over; None after a release."""
        await asyncio.shield(self._ended)
        return self.error

    async def wait_closed(self) -> None:
        """Wait until the transport is closed as well."""
        await self._closed.wait()

    # For the acceptor ----

    def answer(self, response: AssociateAC | AssociateRJ) -> None:
        """A-ASSOCIATE response. Nothing happens when the request is no longer waiting (the peer is gone).

        LocalProtocolError: the response cannot be encoded; the request still waits.
        """
        if self._core.state is not State.STA3:
            return
        now = self._loop.time()
        if isinstance(response, AssociateRJ):
            self._core.reject(response, now=now)
            rejection = describe_rejection(response.result, response.source, response.reason)
            self._finish(AssociationAborted(f"rejected by us: {rejection}", by_peer=False))
            self._flush()
        else:
            assert self.request is not None
            self._core.accept(response, now=now)
            self._flush()  # first: the user may send P-DATA as soon as it is told
            self._establish(result_of(self.request, response, requestor=False))

    # Handing over: another process takes the connection, with the request that has been read from it ----

    def hand_over(
        self, response: AssociateAC, give: Callable[[int], bool], *, abort: Callable[[], None]
    ) -> None:
        """Instead of `answer`: have the association go on in another process.

        give: called soon, with the descriptor of the connection, to be sent elsewhere; whoever gets it answers with
        `response` (`adopt`). This process closes its own descriptor then, and the object goes on counting as open, with
        what was negotiated, until `ended_elsewhere` and `closed_elsewhere`. False declines. abort: called
        when somebody here aborts it.

        Where it cannot be handed over (TLS, or more has come than the request), or nobody takes it, it is answered
        here.
        """
        self.hold_reading()
        self._loop.call_soon(self._give, response, give, abort)

    def _give(self, response: AssociateAC, give: Callable[[int], bool], abort: Callable[[], None]) -> None:
        transport, request = self._transport, self.request
        if transport is None or request is None or self._is_ended or self._core.state is not State.STA3:
            self.continue_reading()
            return
        sock = transport.get_extra_info("socket")
        if self._secured or self._core.mid_pdu or sock is None or not give(sock.fileno()):
            self.continue_reading()
            self.answer(response)
            return
        self._abort_elsewhere = abort
        self.negotiated = result_of(request, response, requestor=False)
        self.received_bytes = 0  # they count where they are read again
        self._socket = self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        transport.close()  # of this descriptor, not of the connection: nothing is shut down

    def ended_elsewhere(self, error: AssociationError | None) -> None:
        """The association that was handed over is over, or is about to be: a release is being answered. Its connection
        still counts. error: as for `ended`."""
        if self._is_ended:
            return
        self._is_ended = True
        self.error = error
        if not self._established.done():
            self._established.set_exception(error or ConnectionLost("the association has ended"))
        self._ended.set_result(None)
        if self._on_ended is not None:
            self._on_ended(self)

    def closed_elsewhere(self, error: AssociationError | None) -> None:
        """Its connection is closed; error: if that is the first that is heard of its end."""
        if self._closed.is_set():
            return
        self.ended_elsewhere(error)
        self._closed.set()
        if self._on_closed is not None:
            self._on_closed(self)

    def replay(self, data: bytes) -> None:
        """Take bytes that were read from this connection before it was ours, as if they came now."""
        self.received_bytes += len(data)
        self._core.receive(data, now=self._loop.time())
        self._flush()

    # asyncio.BufferedProtocol
    # ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio.Transport, only alike.
        transport = cast(asyncio.Transport, transport)
        if self._is_ended:  # aborted while it was being connected
            transport.abort()
            return
        self._transport = transport
        # None left: `write_p_data` learns at once whether the bytes left, and `resume_writing` means all of them did.
        # TLS transports pause at `size >= high`, plain ones at `size > high`: 0 would pause the former for nothing.
        self._secured = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if self._secured else 0, low=0)
        if not self.peer[0]:
            self.peer = peer_of(transport)
        self.peer_address = format_peer(self.peer)
        self._peer_certificate = transport.get_extra_info("peercert") or None
        self._socket = adopt_socket(transport)
        now = self._loop.time()
        self._deadlines.idle_since = now
        if self.role is Role.REQUESTOR:
            self._deadlines.associate = after(now, self._timeouts.associate_s)
        self._core.transport_connected(now=now)
        self._flush()
        self._schedule(now)
        if self._on_connected is not None:
            self._on_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received_bytes += nbytes
        now = self._loop.time()
        core = self._core
        try:
            core.receive(self._buffer[:nbytes], now=now)
            if self.user.receiving:
                self.user.p_data_paused()
        except Exception:
            logger.exception("association %d: its user failed", self.number)
            self.abort(AssociationAborted("aborted by us: an internal error", by_peer=False))
            return
        self._deadlines.idle_since = now
        if core.close_requested or core.has_outgoing():
            self._flush()
        if core.mid_pdu or self.user.receiving:
            self._watch_reading(now)
            if self._socket is not None:
                acknowledge_quickly(self._socket)
        else:
            self._deadlines.pdu = None

    def eof_received(self) -> bool:
        self._close_transport()  # there is no half-closed association; what is still to be written may take a moment
        return False

    def _count_unsent(self, size_bytes: int) -> None:
        HELD.take(size_bytes - self._unsent_bytes)
        self._unsent_bytes = size_bytes

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket = None
        self._count_unsent(0)
        if self._closed.is_set() or self._abort_elsewhere is not None:
            return  # given up before, or handed over
        error = self._loss(exc)
        self._core.transport_closed(now=self._loop.time(), error=error)
        self._finish(error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = None
        self._wake_flush_waiters()
        self._closed.set()
        if self._on_closed is not None:
            self._on_closed(self)

    def _loss(self, exc: Exception | None) -> ConnectionLost:
        if isinstance(
            exc, ssl.SSLError
        ):  # an alert may come after the handshake: TLS 1.3 checks our certificate then
            return ConnectionLost(f"the connection was lost: {describe_failure(exc)}")
        unanswered = self.role is Role.REQUESTOR and not self._is_established and not self._secured
        hint = "; does it expect TLS?" if unanswered else ""
        if exc:
            return ConnectionLost(f"the connection was lost: {exc}{hint}")
        if unanswered:
            return ConnectionLost(f"the peer closed the connection without an answer{hint}")
        return ConnectionLost("the peer closed the connection")

    def pause_writing(self) -> None:
        self._write_blocked = True
        if self._transport is not None:
            self._count_unsent(self._transport.get_write_buffer_size())
        now = self._loop.time()
        self._deadlines.write = after(now, self._timeouts.write_s)
        self._schedule(now)

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._count_unsent(0)
        self._deadlines.write = None
        self._wake_flush_waiters()
        if self.is_open:
            self.user.writable()

    # upper_layer.Receiver
    # --------------------------------------------------------------------------------------

    def p_data(
        self, presentation_context_id: int, message_control_header: int, fragment: memoryview, complete: bool
    ) -> None:
        self.user.p_data(presentation_context_id, message_control_header, fragment, complete)

    def indication(self, indication: Indication) -> None:
        match indication:
            case AssociateIndication(request):
                self.request = request
                assert self._on_request is not None
                self._on_request(self, request)
            case AssociateConfirmation(response):
                self._deadlines.associate = None
                assert self.request is not None
                self._establish(result_of(self.request, response, requestor=True))
            case ReleaseIndication(collision):
                self._release_indicated = True
                if collision and self.role is Role.ACCEPTOR:
                    return  # Sta10: our release waits for the peer's A-RELEASE-RP first
                if collision:
                    self.respond_release()
                else:
                    self.user.release_requested()
            case ReleaseConfirmation():
                if self._core.state is State.STA12:
                    self.respond_release()
                self._finish(None)
            case AbortIndication(error):
                self._finish(error)

    # Inside ----

    def _establish(self, negotiated: Negotiated) -> None:
        self.negotiated = negotiated
        self._is_established = True
        # Prebound: from here on P-DATA goes straight to the user.
        self.p_data = self.user.p_data  # type: ignore[method-assign]
        logger.info(
            "association %d open: %s -> %s, %s %s, %d of %d contexts",
            self.number,
            _printable(negotiated.calling_ae_title),
            _printable(negotiated.called_ae_title),
            "from" if self.role is Role.ACCEPTOR else "to",
            self.peer_address,
            len(negotiated.contexts),
            len(negotiated.results),
        )
        self.user.established(self)
        if not self._established.done():
            self._established.set_result(negotiated)

    def _finish(self, error: AssociationError | None) -> None:
        """The association is over for its user; the transport may still be closing."""
        if self._is_ended:
            return
        self._is_ended = True
        release_begun = self._release_indicated or self._deadlines.release is not None
        if release_begun and isinstance(error, ConnectionLost):
            error = (
                None  # closing after A-RELEASE-RQ, or in answer to one, is as good as the rest of the release
            )
        self.error = error
        self._deadlines = Deadlines(close=self._deadlines.close)
        if self._is_established:
            logger.info("association %d ended: %s", self.number, error or "released")
        elif isinstance(error, ConnectionLost):
            logger.debug("connection %d from %s closed before an association", self.number, self.peer_address)
        else:
            logger.info("association %d with %s not made: %s", self.number, self.peer_address, error)
        if not self._established.done():
            self._established.set_exception(error or ConnectionLost("the association has ended"))
        if self._holds:
            self._resume_reading()  # else the peer's A-ABORT or close would not be seen
        self._wake_flush_waiters()
        if not self._ended.done():
            self._ended.set_result(None)
        if self._on_ended is not None:
            self._on_ended(self)
        if self._is_established:
            self.user.ended(error)

    def _begin_release(self) -> None:
        now = self._loop.time()
        self._core.release(now=now)
        self._deadlines.release = after(now, self._timeouts.release_s)
        self._flush()
        self._schedule(now)

    def _flush(self) -> None:
        """Write what the core has to say; close when it says so."""
        transport = self._transport
        if transport is None:
            return
        if self._core.has_outgoing():
            outgoing = b"".join(self._core.take_outgoing())
            if not transport.is_closing():
                self.sent_bytes += len(outgoing)
                transport.write(outgoing)
        core = self._core
        if core.state is State.STA13 or core.close_requested:
            self._finish(self._ending())
        if core.close_requested or (self._write_blocked and self.error is not None and self._is_ended):
            self._close_transport()  # a peer that leaves data unread will not read an A-ABORT either
        elif core.deadline is not None:
            self._schedule(self._loop.time())

    def _ending(self) -> AssociationError | None:
        """Why the association is over, where the core indicates nothing: after answering a release, or before one."""
        if self._is_established:
            return None
        fault = self._core.fault
        by_peer = fault is None
        return AssociationAborted(
            str(fault or "the peer aborted before requesting an association"), by_peer=by_peer
        )

    def _close_transport(self) -> None:
        transport = self._transport
        if transport is None or self._deadlines.close is not None:
            return
        now = self._loop.time()
        self._deadlines.close = now + CLOSE_LINGER_S
        transport.close()
        self._schedule(now)

    def _resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(RuntimeError):  # it was not paused
                self._transport.resume_reading()

    def _wake_flush_waiters(self) -> None:
        waiters, self._flush_waiters = self._flush_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # Deadlines: one timer, set for the earliest that runs or could begin to run ----

    def _watch_reading(self, now: float) -> None:
        """A PDU or message is under way: give a new PDU its deadline, leave that of the old one."""
        begun = self._core.pdus_begun
        if begun != self._pdus_seen or self._deadlines.pdu is None:
            self._pdus_seen = begun
            self._deadlines.pdu = after(now, self._timeouts.pdu_s)

    def _schedule(self, now: float) -> None:
        """Have `_on_timer` called no later than the earliest deadline, those included that may begin before then."""
        soonest = self._deadlines.soonest(now, self._timeouts, artim=self._core.deadline)
        if self._timer is not None:
            if self._timer.when() <= soonest:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(soonest, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._transport is None:
            return
        now = self._loop.time() + 0.001  # the loop's clock is coarser than its timers
        self._core.check_timer(now=now)
        closing = self._deadlines.close
        if closing is not None and now >= closing:
            self._transport.abort()
            return
        if self._core.close_requested:
            self._finish(DeadlineExceeded("waiting for A-ASSOCIATE-RQ", self._timeouts.artim_s))
            if self._write_blocked:
                self._transport.abort()  # ARTIM ran out on a peer that does not even read
            else:
                self._close_transport()
        if not self._is_ended:
            self._check_application_timers(now)
        if self._transport is not None:
            self._flush()
            self._schedule(now)

    def _check_application_timers(self, now: float) -> None:
        expired = self._deadlines.expired(now, self._timeouts, reading_held=self._holds > 0)
        if expired is not None:
            self.abort(expired)
            return
        deadlines, idle_s = self._deadlines, self._timeouts.idle_s
        if idle_s is not None and self.is_open and self._core.state is State.STA6:
            if self.user.busy():
                deadlines.idle_since = now
            elif now >= deadlines.idle_since + idle_s:
                logger.info("association %d idle for %g s: releasing it", self.number, idle_s)
                self._begin_release()


def _printable(title: str) -> str:
    """An AE title as it came, for a log line: whatever is not printable is escaped, so that it stays one line."""
    return title if title.isprintable() else title.encode("unicode_escape").decode("ascii")


def _retrieve(future: asyncio.Future[Negotiated]) -> None:
    """Acceptors wait for `established` nowhere: its exception counts as seen."""
    if not future.cancelled():
        future.exception()
