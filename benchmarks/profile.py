"""`python -m benchmarks profile`: where the time of one received object goes, by system call and by Python function.

Three views of the same, each repeatable by itself:

- system calls per object, of the receiver and of the floor, with what the kernel says that each took (strace -c);
- Python functions per object, in a process without sockets: calls and time of each (cProfile), and without a profiler
  the time of all of them, each the best of several runs, of which the system calls for files are a part;
- with `--instructions` user instructions per object as valgrind's callgrind counts them, which are the same on a busy
  machine, but take minutes.

strace makes everything slower, and small calls more so; its times are there to compare calls with one another.
"""

import argparse
import asyncio
import cProfile
import pstats
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from benchmarks.peers import RECEIVERS, PeerError, Place, Receiver, free_port, program, running
from benchmarks.preencoded import Encoded, associate_rq
from benchmarks.senders import preencoded
from benchmarks.tables import markdown
from benchmarks.workloads import SIZES, UID_LENGTH, Workload, create, instance_uid

WARM_UP_OBJECTS = 50
TRACER_S = 1.0  # for strace to attach
FUNCTIONS = 40
REPEATS = 5
INSTRUCTION_OBJECTS = 200, 600
VALGRIND_READY_S = 300.0
MAXIMUM_LENGTH = 131072


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "profile",
        help="where the time of one received object goes",
        description="System calls, Python functions and instructions per received object.",
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--receivers", default="harmony,floor", help=f"of {','.join(RECEIVERS)}")
    parser.add_argument("--output", type=Path, help="store below this folder: /dev/shm for memory")
    parser.add_argument("--instructions", action="store_true", help="count them as well; takes minutes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    receivers = [RECEIVERS[name] for name in options.receivers.split(",")]
    with tempfile.TemporaryDirectory(prefix="harmony-profile-", dir=options.output) as temporary:
        folder = Path(temporary)
        workload = create(SIZES[options.size], folder)
        print(f"{options.size}: {workload.data_set_bytes} bytes, {options.objects} objects\n")
        if program("strace"):
            for receiver in receivers:
                print(f"System calls per object, {receiver.title}\n")
                print(_system_calls(receiver, workload, options.objects, folder), end="\n\n", flush=True)
        else:
            print("strace is missing: no system calls\n", file=sys.stderr)
        print(asyncio.run(_functions(workload, options.objects, folder)), flush=True)
        if options.instructions:
            for receiver in receivers:
                few, many = (_instructions(receiver, workload, n, folder) for n in INSTRUCTION_OBJECTS)
                each = (many - few) / (INSTRUCTION_OBJECTS[1] - INSTRUCTION_OBJECTS[0])
                print(f"{receiver.title}: {each:.0f} user instructions per object", flush=True)
    return 0


# System calls


def _system_calls(receiver: Receiver, workload: Workload, objects: int, folder: Path) -> str:
    place = _place(folder, receiver.name)
    summary = place.scratch / "strace"
    try:
        with running(receiver, place) as pid:
            preencoded(workload, place.port, WARM_UP_OBJECTS, 1, 1)
            command = [program("strace") or "strace", "-f", "-c", "-o", str(summary), "-p", str(pid)]
            tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(TRACER_S)
            preencoded(workload, place.port, objects, 1, 1 + WARM_UP_OBJECTS)
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        return _summary(summary.read_text(), objects)
    finally:
        shutil.rmtree(place.scratch)


def _summary(text: str, objects: int) -> str:
    """The table of strace -c, per object; what comes with connections or now and then is left out."""
    rows = [("system call", "calls", "us each", "us per object")]
    for line in text.splitlines():
        found = re.fullmatch(r"\s*[\d.]+\s+([\d.]+)\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z]\w+)", line)
        if found is None or found[3] == "total":
            continue
        seconds, calls = float(found[1]), int(found[2])
        if calls * 20 >= objects:
            each = seconds / calls * 1e6
            rows.append((found[3], f"{calls / objects:.2f}", f"{each:.1f}", f"{seconds / objects * 1e6:.1f}"))
    return markdown(rows)


def _place(folder: Path, name: str) -> Place:
    scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    (scratch / "objects").mkdir()
    return Place(free_port(), scratch / "objects", scratch, None)


# Python functions


class _Transport(asyncio.Transport):
    """Takes what is written, and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: Any) -> None:
        self.writes += 1

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


async def _functions(workload: Workload, objects: int, folder: Path) -> str:
    """The gateway's archive behind an association whose transport is an object, without index: all in one thread."""
    # Here, so that the other benchmarks do without the gateway.
    from harmony.archive.files import FileStore
    from harmony.dimse.scp import Server, Services
    from harmony.gateway.local_archive import LocalArchive
    from harmony.gateway.store_receiver import StoreReceivers
    from harmony.gateway.tallies import AssociationTally
    from harmony.ul.negotiation import AcceptorPolicy

    root = Path(tempfile.mkdtemp(prefix="functions-", dir=folder))
    archive, moves, services = LocalArchive(FileStore(root)), StoreReceivers(), Services()
    await archive.start()
    services.store(moves.open_sink(archive.store), whole=moves.whole_store(archive.whole_store))
    services.observe(AssociationTally())
    server = Server()
    server.add(services, AcceptorPolicy(maximum_length=MAXIMUM_LENGTH))
    transport = _Transport()
    association = cast(Any, server.acceptor)._make_association()
    association.connection_made(transport)

    def receive(data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            buffer = association.get_buffer(-1)
            size = min(len(view), len(buffer))
            buffer[:size] = view[:size]
            association.buffer_updated(size)
            view = view[size:]

    receive(associate_rq(called_ae_title="ANY-SCP", sop_class_uid=workload.size.sop_class_uid))
    encoded = Encoded.encode(workload, MAXIMUM_LENGTH)
    message = bytearray(encoded.head) + encoded.tail

    def flood(first: int) -> None:
        for number in range(first, first + objects):
            struct.pack_into("<H", message, encoded.message_id_at, number & 0xFFFF)
            uid = instance_uid(number).encode()
            for at in encoded.uids_at:
                message[at : at + UID_LENGTH] = uid
            receive(message)

    flood(1)
    best = min(_thread_s(flood, 1 + n * objects) for n in range(1, REPEATS + 1))
    own_s: dict[tuple[str, int, str], list[float]] = {}
    calls: dict[tuple[str, int, str], int] = {}
    for turn in range(REPEATS):
        profiler = cProfile.Profile()
        profiler.runcall(flood, 1 + (REPEATS + 1 + turn) * objects)
        for key, figures in cast(Any, pstats.Stats(profiler)).stats.items():
            calls[key] = figures[1]
            own_s.setdefault(key, []).append(figures[2])
    await archive.stop(0.0)
    if transport.writes != 1 + (2 * REPEATS + 1) * objects:
        raise PeerError(f"{transport.writes} answers to {(2 * REPEATS + 1) * objects} objects")
    rows = [("function", "calls", "us, with the profiler's share")]
    for key in sorted(own_s, key=lambda key: -min(own_s[key]))[:FUNCTIONS]:
        file, line, name = key
        where = f"{Path(file).parent.name}/{Path(file).name}:{line} {name}" if line else name
        rows.append((where, f"{calls[key] / objects:.1f}", f"{min(own_s[key]) / objects * 1e6:.2f}"))
    return (
        f"Python functions per object: {sum(calls.values()) / objects:.0f} calls, without a profiler "
        f"{best / objects * 1e6:.1f} us in all\n\n{markdown(rows)}\n"
    )


def _thread_s(flood: Callable[[int], None], first: int) -> float:
    started = time.thread_time()
    flood(first)
    return time.thread_time() - started


# Instructions


def _instructions(receiver: Receiver, workload: Workload, objects: int, folder: Path) -> int:
    """User instructions of a receiver from its start to its end, with so many objects in between."""
    place = _place(folder, receiver.name)
    counted = place.scratch / "callgrind"
    under = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counted}"]
    command = [*under, *receiver.command(place)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + VALGRIND_READY_S
        while not _listens(place.port):
            if time.monotonic() > deadline or process.poll() is not None:
                raise PeerError(f"{receiver.name} does not listen under valgrind")
            time.sleep(0.2)
        preencoded(workload, place.port, objects, 1, 1)
        process.send_signal(signal.SIGTERM)
        process.wait(VALGRIND_READY_S)
        totals = re.findall(r"^(?:summary|totals): (\d+)", counted.read_text(), re.MULTILINE)
        return int(totals[0])
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(place.scratch)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
