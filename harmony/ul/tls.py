"""TLS under the upper layer (PS3.15 Annex B): handshakes beside an accept loop, and why one failed, in words.

Connections on a TLS port are taken from the event loop before anything is read of them. Each shakes hands in a task of
its own: a frozen one delays nobody, and who speaks something else is told apart by the first byte and let go at once.

A context may be replaced while it is in use, by giving a function that returns the one for the next handshake.

asyncio and uvloop drop the alert that says to the peer why a handshake failed; here it is sent.

Not here: what a context allows (whoever makes it). Used by `acceptor`, `requestor`, the HTTP server and client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from harmony.ul.shares import Shares, host_of
from harmony.ul.transport import format_address, format_peer

__all__ = ["Handshakes", "TLSContext", "connect", "describe_failure", "name_protocol"]

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)

LINGER_S: Final = 1.0
"""For a peer to take our alert before the connection is closed: what it still sends would reset the connection, and the
alert be lost."""

TLSContext = ssl.SSLContext | Callable[[], ssl.SSLContext]
"""A context, or a function that returns the one to use for a handshake that begins now."""

HANDSHAKE: Final = 0x16
"""The first byte of a ClientHello's record (RFC 8446 §5.1)."""
ALERT: Final = 0x15

PROTOCOL_VERSION_ALERT: Final = bytes.fromhex("15 03 03 0002 02 46")
"""Fatal, protocol_version (RFC 8446 §6.2): what says to a peer without TLS that this port has it."""

NO_HANDSHAKE_TIMEOUT_S: Final = 86400.0
"""The callers of `connect` have deadlines of their own."""

_HTTP: Final = (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"HTTP", b"DELE", b"PATC", b"CONN", b"PRI ")

_REASONS: Final = {
    "APPLICATION_DATA_AFTER_CLOSE_NOTIFY": "the peer went on sending after it had closed TLS",
    "BAD_CERTIFICATE": "the peer does not accept our certificate",
    "CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "CERTIFICATE_REQUIRED": "the peer wants a client certificate and was shown none",
    "CERTIFICATE_REVOKED": "the peer says that our certificate is revoked",
    "CERTIFICATE_UNKNOWN": "the peer does not accept our certificate",
    "DECRYPT_ERROR": "the peer could not verify our signature",
    "HANDSHAKE_FAILURE": "the peer has no cipher suite in common with us, or wants a client certificate",
    "HTTPS_PROXY_REQUEST": "the peer speaks HTTP without TLS",
    "HTTP_REQUEST": "the peer speaks HTTP without TLS",
    "INSUFFICIENT_SECURITY": "the peer wants stronger cipher suites than we have",
    "NO_SHARED_CIPHER": "the peer has no cipher suite in common with us",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no client certificate, which is required here",
    "PROTOCOL_VERSION": "the peer has no TLS version in common with us, which is 1.2 or newer",
    "UNEXPECTED_EOF_WHILE_READING": "the peer closed the connection during the handshake",
    "UNKNOWN_CA": "the peer does not trust who signed our certificate",
    "UNRECOGNIZED_NAME": "the peer does not know the server name that we asked for",
    "UNSUPPORTED_CERTIFICATE": "the peer does not accept this kind of certificate",
    "UNSUPPORTED_PROTOCOL": "the peer has no TLS version in common with us, which is 1.2 or newer",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS on this port",
}
"""OpenSSL's reasons, those of alerts without SSLV3_ALERT_, TLSV1_ALERT_ and so on -> what they mean."""

_UNTRUSTED: Final = frozenset({2, 18, 19, 20, 21})
"""X509_V_ERR_ codes: nobody that we trust has signed it."""


def describe_failure(error: Exception) -> str:
    """Why TLS failed, for logs and errors: what it means, with OpenSSL's word for it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message.rstrip(".")
        if error.verify_code in _UNTRUSTED:
            reason += "; it is signed by nobody that we trust"
        return f"TLS certificate refused: {reason}"
    if not isinstance(error, ssl.SSLError):
        return "the connection was closed during the TLS handshake" + (f" ({error})" if str(error) else "")
    reason = error.reason or str(error)
    meaning = _REASONS.get(reason) or _REASONS.get(reason.partition("_ALERT_")[2]) or _alert(reason)
    return f"TLS handshake failed: {meaning} ({reason})" if meaning else f"TLS handshake failed: {reason}"


def _alert(reason: str) -> str | None:
    return _REASONS.get(reason.partition("_")[2])  # TLSV1_UNRECOGNIZED_NAME


def name_protocol(data: bytes) -> str | None:
    """What the first bytes of a connection are of, None when they could be anything."""
    if data[:1] in (bytes((HANDSHAKE,)), bytes((ALERT,))):
        return "TLS"
    if data[:1] == b"\x01":  # A-ASSOCIATE-RQ, PS3.8 §9.3.2
        return "plain DICOM"
    if data[:4] in _HTTP:
        return "plain HTTP"
    return "SSH" if data[:4] == b"SSH-" else None


class Handshakes:
    """The handshakes under way on the TLS ports of one server."""

    def __init__(
        self,
        admit: Callable[[str], bool],
        *,
        timeout_s: float,
        logger: logging.Logger,
        answer_plain: Callable[[bytes], bytes] = lambda first: PROTOCOL_VERSION_ALERT,
        shutdown_timeout_s: float | None = None,
    ) -> None:
        """admit: given the address of a peer, False closes its connection. timeout_s: for the first byte to come, and
        for the handshake then. answer_plain: what a peer that begins with these bytes of something else is sent at the
        end. shutdown_timeout_s: for a peer to answer when we close TLS; None: asyncio's 30 s.
        """
        self._admit = admit
        self.timeout_s = timeout_s
        self._logger = logger
        self._answer_plain = answer_plain
        self._shutdown_timeout_s = shutdown_timeout_s
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order of their beginning
        self._hosts: Shares[asyncio.Task[None]] = Shares()
        self.on_failed: Callable[[str, str], None] | None = None
        """Told of the peer and of what went wrong."""

    def __len__(self) -> int:
        return len(self._tasks)

    def count(self, host: str) -> int:
        """Those with one host."""
        return self._hosts.count(host)

    def door(
        self,
        context: TLSContext,
        make_protocol: Callable[[Callable[[], None]], asyncio.BaseProtocol],
        *,
        peer: tuple[str, int] | None = None,
    ) -> asyncio.Protocol:
        """For `loop.create_server`: the protocol of a connection just accepted.

        make_protocol: makes the one that talks over TLS, which calls its argument when it is connected; from then on
        the connection is its own business and no handshake any more. peer: who it is with, None for the one who
        connected.
        """

        def begin(sock: socket.socket, peer_address: str) -> None:
            address = peer_address if peer is None else format_peer(peer)
            self._begin(sock, address, context=context, make=make_protocol)

        return _Door(begin)

    def drop_oldest(self) -> bool:
        """Make room: the handshake that has taken longest is the likeliest to be frozen. False when there is none."""
        for task in self._tasks:
            self._forget(task)
            task.cancel()
            return True
        return False

    async def close(self) -> None:
        """Cut all of them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(
        self,
        sock: socket.socket,
        peer_address: str,
        *,
        context: TLSContext,
        make: Callable[[Callable[[], None]], asyncio.BaseProtocol],
    ) -> None:
        """A connection came in; the socket is ours from here on."""
        if not self._admit(peer_address):
            sock.close()
            return

        def ended(task: asyncio.Task[None]) -> None:
            self._forget(task)
            if task.cancelled():
                sock.close()  # it may never have started

        def connected() -> None:
            self._forget(task)

        task = asyncio.get_running_loop().create_task(
            self._shake_hands(sock, peer_address, context=context, make_protocol=lambda: make(connected))
        )
        self._tasks[task] = None
        self._hosts.take(task, host_of(peer_address))
        task.add_done_callback(ended)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._hosts.release(task)

    async def _shake_hands(
        self,
        sock: socket.socket,
        peer_address: str,
        *,
        context: TLSContext,
        make_protocol: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                first = await _first_bytes(sock)
            if not first or first[0] != HANDSHAKE:
                self._let_go(sock, peer_address, first)
                return
        except OSError as error:  # TimeoutError is one
            self._logger.debug("TLS connection from %s closed: %s", peer_address, error or "nothing came")
            sock.close()
            return
        loop = asyncio.get_running_loop()
        with contextlib.closing(sock.dup()) as spare:
            watched = _WatchedContext.of(context() if callable(context) else context, server_side=True)
            try:
                await loop.connect_accepted_socket(
                    make_protocol,
                    sock,
                    ssl=watched,
                    ssl_handshake_timeout=self.timeout_s,
                    ssl_shutdown_timeout=self._shutdown_timeout_s,
                )
            except (
                OSError
            ) as error:  # ssl.SSLError is one, and what a peer that leaves or takes too long makes of it
                why = describe_failure(error)
                self._logger.info("%s: %s", peer_address, why)
                if self.on_failed is not None:
                    self.on_failed(peer_address, why)
                watched.send_last_words(spare)
                with contextlib.suppress(OSError):
                    spare.shutdown(socket.SHUT_WR)
                    async with asyncio.timeout(LINGER_S):
                        while await loop.sock_recv(spare, 65536):
                            pass

    def _let_go(self, sock: socket.socket, peer_address: str, first: bytes) -> None:
        """Close a connection that nothing came on, or something else than TLS."""
        if first:
            named = name_protocol(first) or f"something that begins with 0x{first[0]:02X}"
            self._logger.info("%s speaks %s, not TLS; closed", peer_address, named)
            if self.on_failed is not None:
                self.on_failed(peer_address, f"speaks {named}, not TLS")
            with contextlib.suppress(OSError):
                sock.recv(
                    65536
                )  # what is unread at the close would reset the connection, and the answer be lost
                sock.send(self._answer_plain(first))
        sock.close()


class _Door(asyncio.Protocol):
    """Takes the socket from a connection just accepted, before anything is read, for a TLS handshake."""

    def __init__(self, admit: Callable[[socket.socket, str], None]) -> None:
        self._admit = admit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses, only alike
        transport.pause_reading()
        accepted = transport.get_extra_info("socket")
        try:
            sock = socket.socket(
                accepted.family, accepted.type, accepted.proto, fileno=os.dup(accepted.fileno())
            )
        except OSError as error:  # out of descriptors
            logging.getLogger("harmony.ul").warning(
                "TLS connection from %s closed: %s", format_address(transport), error
            )
        else:
            sock.setblocking(False)
            self._admit(sock, format_address(transport))
        transport.abort()  # closes its own descriptor; the connection lives on in ours


class _SSLObject(ssl.SSLObject):
    """Tells of a handshake that failed, while what it wanted to send is still there: the event loop throws it away."""

    on_failure: Callable[[], None] | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            if self.on_failure is not None:
                self.on_failure()
            raise


class _WatchedContext(ssl.SSLContext):
    """Stands for another context in one handshake, and keeps what that was about to send when it failed."""

    _context: ssl.SSLContext
    _last_words = b""

    @classmethod
    def of(cls, context: ssl.SSLContext, *, server_side: bool) -> _WatchedContext:
        watched = cls(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        if context.sslobject_class is ssl.SSLObject:
            context.sslobject_class = _SSLObject
        watched._context = context
        return watched

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> Any:
        wrapped = self._context.wrap_bio(incoming, outgoing, *args, **kwargs)
        if isinstance(wrapped, _SSLObject):
            wrapped.on_failure = lambda: self._keep(outgoing)
        return wrapped

    def _keep(self, outgoing: ssl.MemoryBIO) -> None:
        self._last_words = outgoing.read()

    def send_last_words(self, sock: socket.socket) -> None:
        """sock: another descriptor of the connection, as the event loop closes its own."""
        if self._last_words:
            with contextlib.suppress(OSError):
                sock.send(self._last_words)


async def connect(
    make_protocol: Callable[[], ProtocolT], host: str, port: int, *, context: TLSContext, server_hostname: str
) -> tuple[asyncio.Transport, ProtocolT]:
    """Like `loop.create_connection` over TLS, and the peer is told why we refuse its certificate. No deadline.

    Raises OSError, of which ssl.SSLError is one, and UnicodeError for an impossible host name.
    """
    loop = asyncio.get_running_loop()
    sock = await _connected_socket(host, port)
    try:
        spare = sock.dup()
    except BaseException:
        sock.close()
        raise
    with contextlib.closing(spare):
        watched = _WatchedContext.of(context() if callable(context) else context, server_side=False)
        try:
            return await loop.create_connection(
                make_protocol,
                sock=sock,
                ssl=watched,
                server_hostname=server_hostname,
                ssl_handshake_timeout=NO_HANDSHAKE_TIMEOUT_S,
            )
        except ssl.SSLError:
            watched.send_last_words(spare)
            raise


async def _connected_socket(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    failures: list[OSError] = []
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            failures.append(error)
            continue
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failures.append(error)
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    if len(failures) == 1:
        raise failures[0]
    raise OSError(f"none of {len(failures)} addresses: " + ", ".join(str(each) for each in failures))


async def _first_bytes(sock: socket.socket) -> bytes:
    """Up to eight bytes, left in the socket; b"" at the end."""
    try:
        return sock.recv(8, socket.MSG_PEEK)
    except BlockingIOError:
        pass
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    descriptor = sock.fileno()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return sock.recv(8, socket.MSG_PEEK)
