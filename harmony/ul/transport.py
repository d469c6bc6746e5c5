"""What an association needs of TCP besides asyncio's transport: the receive buffer, socket options, addresses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

__all__ = [
    "RECEIVE_BUFFER_BYTES",
    "BorrowedSocket",
    "acknowledge_quickly",
    "adopt_socket",
    "format_address",
    "format_peer",
    "peer_of",
    "receive_buffer",
]

RECEIVE_BUFFER_BYTES = 576 * 1024
"""One read takes at most this much: few system calls, and the bytes are still in the CPU's cache when consumed. Large
objects cost 8 % less CPU than with half of it, and nothing less with twice as much. A CT slice of 512 x 512 pixels has
512 KiB and its header, and is to fit in."""

KEEP_ALIVE_IDLE_S = 60
"""TCP keep-alive finds peers that vanished behind a firewall while an association is open but silent."""

TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)

_thread = threading.local()


def receive_buffer(loop: asyncio.AbstractEventLoop) -> memoryview:
    """The buffer to read into: one per thread, as a selector loop asks for it, reads and hands it back in one go.

    Proactor loops read in the background; there each association gets its own.
    """
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    if proactor is not None and isinstance(loop, proactor):
        return memoryview(bytearray(RECEIVE_BUFFER_BYTES))
    buffer: memoryview | None = getattr(_thread, "receive_buffer", None)
    if buffer is None:
        buffer = _thread.receive_buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
    return buffer


class BorrowedSocket(socket.socket):
    """A socket object over a descriptor that belongs to a transport; it never closes it."""

    def __del__(self) -> None:
        self.detach()


def adopt_socket(transport: asyncio.Transport) -> BorrowedSocket | None:
    """Switch keep-alive on; return a socket object over the transport's descriptor, to re-arm TCP_QUICKACK cheaply.

    None where there is no TCP_QUICKACK (elsewhere than on Linux) or no TCP.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_IDLE_S)
    if TCP_QUICKACK is None:
        return None
    return BorrowedSocket(sock.family, sock.type, sock.proto, fileno=sock.fileno())


def acknowledge_quickly(sock: BorrowedSocket) -> None:
    """Have the kernel acknowledge at once what arrives next; called after each read while a message is incomplete.

    Storage SCUs that leave Nagle's algorithm on split their writes and wait for this ACK; the option is not sticky.
    Without it DCMTK's storescu, as installed, sends 11 to 23 objects a second.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 1)  # type: ignore[arg-type]  # not None, see adopt_socket
    except OSError:
        pass  # the connection is going down, which the next read will say


def peer_of(transport: asyncio.Transport) -> tuple[str, int]:
    """The peer's host and port; ("", 0) where a transport has none."""
    address = transport.get_extra_info("peername")
    if isinstance(address, tuple) and len(address) >= 2:
        return str(address[0]), int(address[1])
    return "", 0


def format_peer(peer: tuple[str, int]) -> str:
    """For logs and errors: 192.0.2.1:104, [2001:db8::1]:104, or "?"."""
    host, port = peer
    if not host:
        return "?"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def format_address(transport: asyncio.Transport) -> str:
    """The peer's address as `format_peer` shows it."""
    return format_peer(peer_of(transport))
