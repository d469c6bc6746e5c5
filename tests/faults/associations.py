"""Associations by the hundred thousand: nothing may be left of one, whichever way it ended."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from tests.faults.trial import DICOM_DEADLINES, Trial, fault
from tests.faults.wire import ABORT, RELEASE_RQ, associate_rq, c_echo_rq

AT_ONCE = 8
PER_ROUND = 2_000
RESET = struct.pack("ii", 1, 0)
PATIENCE_S = 30.0
SETTLED = 0.2
"""Of all, after which what is kept from the first ones on is there."""
GROWTH_BYTES = 48 << 20
"""From then to the end: what the index keeps of what the witnesses store meanwhile. 50 bytes for each of a million."""


@fault(scp=DICOM_DEADLINES + "max_connections = 4000", log_level="warn")
async def many_associations(trial: Trial) -> None:
    """Associate, C-ECHO, release, over and over, among them aborted, reset and refused ones: memory stays flat."""
    total = trial.many(trial.associations, 1_000)
    loop = asyncio.get_running_loop()
    samples: list[tuple[int, int]] = []
    context = multiprocessing.get_context("spawn")
    began = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        while trial.injected < total:
            count = min(PER_ROUND, total - trial.injected)
            trial.injected += await loop.run_in_executor(pool, visit_often, trial.gateway.port, count)
            samples.append((trial.injected, trial.gateway.rss_bytes))
    rate = total / (time.monotonic() - began)
    settled = [sample for sample in samples if sample[0] >= SETTLED * total]
    shown = settled[:: max(1, len(settled) // 8)]
    trial.note = f"{rate:.0f} associations/s; MiB: " + ", ".join(
        f"{rss / 2**20:.1f} after {count}" for count, rss in shown
    )
    assert settled[-1][1] - settled[0][1] < GROWTH_BYTES, trial.note


def visit_often(port: int, count: int) -> int:
    """Have so many associations, AT_ONCE at a time; in a process of its own, which costs the witnesses nothing."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return sum(threads.map(lambda number: _visit(port, number), range(count)))


def _visit(port: int, number: int) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        VISITS[number % len(VISITS)](peer)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)  # leaves no port waiting
    return 1


def _released(peer: socket.socket) -> None:
    peer.sendall(associate_rq())
    assert _pdu(peer)[0] == 2
    peer.sendall(c_echo_rq())
    assert _pdu(peer)[0] == 4
    peer.sendall(RELEASE_RQ)
    assert _pdu(peer)[0] == 6


def _aborted(peer: socket.socket) -> None:
    peer.sendall(associate_rq())
    assert _pdu(peer)[0] == 2
    peer.sendall(ABORT)
    assert peer.recv(1) == b""


def _reset(peer: socket.socket) -> None:
    peer.sendall(associate_rq())
    assert _pdu(peer)[0] == 2
    peer.sendall(c_echo_rq())


def _refused(peer: socket.socket) -> None:
    peer.sendall(associate_rq(b"NOBODY"))
    assert _pdu(peer)[0] == 3


def _silent(peer: socket.socket) -> None:
    peer.sendall(associate_rq()[:50])


VISITS: tuple[Callable[[socket.socket], None], ...] = (
    *(_released,) * 6,
    _aborted,
    _reset,
    _refused,
    _silent,
)


def _pdu(peer: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while len(data) < 6 or len(data) < 6 + int.from_bytes(data[2:6], "big"):
            if not (piece := peer.recv(4096)):
                break
            data += piece
    assert data, "the gateway has closed the connection"
    return bytes(data)
