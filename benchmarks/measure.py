"""One run: start a receiver, flood it, see what it cost, check that nothing was lost, clean up.

CPU is user plus system time of the receiver's process tree between the end of a warm-up (imports, first allocations)
and the moment that it has come to rest after the last object, work done behind the answer included (Harmony's index);
what of it was spent until the last answer is told apart. It is read from
the process's own CPU clock, in nanoseconds; children that a forking receiver has reaped count from /proc/<pid>/stat,
in ticks of 10 ms. Memory is the kernel's own peak (VmHWM); for a forking receiver, which has no such number, the
largest sum of resident sizes that a sampler saw, shared pages counted once per process. Linux only.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.peers import PeerError, Place, Receiver, free_port, running
from benchmarks.senders import Sender, preencoded
from benchmarks.workloads import Workload

WARM_UP_OBJECTS = 20
SLOW_WARM_UP_OBJECTS = 3
FIRST_NUMBER = 1001  # above every warm-up object's
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
REST_WINDOW_S = (
    0.25  # at rest: less than a hundredth of a core for this long; Harmony's index pauses for 0.1 s
)
REST_TIMEOUT_S = 10.0
SAMPLE_INTERVAL_S = 0.05
INVENTED_UID_SLACK = 64  # storescu's invented UIDs may be shorter than ours
COMPARED_BYTES = 1 << 20


class ObjectsLost(Exception):
    """The receiver answered success for objects that are not there, or not whole."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one receiver did in one round."""

    receiver: str
    sender: str
    size: str
    associations: int
    objects: int
    data_set_bytes: int  # of one object
    elapsed_s: float
    cpu_s: float
    peak_rss_bytes: int
    answered_cpu_s: float  # until the last answer

    @property
    def objects_per_s(self) -> float:
        return self.objects / self.elapsed_s

    @property
    def megabytes_per_s(self) -> float:
        return self.objects * self.data_set_bytes / self.elapsed_s / 1e6

    @property
    def cpu_us_per_object(self) -> float:
        return self.cpu_s / self.objects * 1e6

    @property
    def answered_cpu_us_per_object(self) -> float:
        return self.answered_cpu_s / self.objects * 1e6


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all runs have in common."""

    output: Path  # where receivers store; decides whether on disk or in memory
    maximum_length: int | None
    warm_up: Workload


def run(
    receiver: Receiver,
    sender: Sender,
    workload: Workload,
    *,
    associations: int,
    objects: int,
    conditions: Conditions,
) -> Run:
    """One round of one receiver. Raises ObjectsLost, or PeerError when one side fails."""
    check_room(conditions.output, objects * workload.data_set_bytes)
    os.sync()  # what the last round left for the file system to do is not this one's
    scratch = Path(mkdtemp(prefix="harmony-bench-", dir=conditions.output))
    try:
        folder = scratch / "objects"
        folder.mkdir()
        place = Place(free_port(), folder, scratch, conditions.maximum_length)
        warm_up_objects = SLOW_WARM_UP_OBJECTS if receiver.slow_answers else WARM_UP_OBJECTS
        with running(receiver, place) as pid:
            preencoded(conditions.warm_up, place.port, warm_up_objects, 1, 1)
            cpu_before_s = cpu_at_rest_s(pid)
            with sampled_tree_rss(pid, enabled=receiver.forks) as sampled:
                sent = sender.send(workload, place.port, objects, associations, FIRST_NUMBER)
                answered_cpu_s = tree_cpu_s(pid) - cpu_before_s
            cpu_s = cpu_at_rest_s(pid) - cpu_before_s
            peak_rss_bytes = max(sampled) if receiver.forks else memory_bytes(pid, "VmHWM")
        _check_stored(receiver, workload, folder, objects, warm_up_objects)
    finally:
        shutil.rmtree(scratch)
    return Run(
        receiver.name,
        sender.name,
        workload.size.name,
        associations,
        objects,
        workload.data_set_bytes,
        sent.elapsed_s,
        cpu_s,
        peak_rss_bytes,
        answered_cpu_s,
    )


def check_room(output: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(output).free
    if free < size_bytes * 1.1 + (64 << 20):
        raise PeerError(f"{output} has {free >> 20} MiB free, one round stores {size_bytes >> 20} MiB")


def _check_stored(
    receiver: Receiver, workload: Workload, folder: Path, objects: int, warm_up_objects: int
) -> None:
    sizes = {path: path.stat().st_size for path in folder.glob(receiver.pattern) if path.is_file()}
    if len(sizes) != objects + warm_up_objects:
        expected = f"{objects} objects sent after {warm_up_objects} to warm up"
        raise ObjectsLost(f"{receiver.name}: {expected}, {len(sizes)} files stored")
    whole = [path for path, size in sizes.items() if size >= workload.data_set_bytes - INVENTED_UID_SLACK]
    if len(whole) < objects:
        raise ObjectsLost(f"{receiver.name}: {objects} objects sent, {len(whole)} files are long enough")
    tail = workload.data_set()[-min(COMPARED_BYTES, workload.data_set_bytes // 2) :]
    for path in whole[:1] + whole[-1:]:
        with path.open("rb") as file:
            file.seek(-len(tail), os.SEEK_END)
            if file.read() != tail:
                raise ObjectsLost(f"{receiver.name}: {path.name} does not end as the object that was sent")


def tree(pid: int) -> list[int]:
    """A process and all its descendants, those that have ended but are not reaped included."""
    found, at = [pid], 0
    while at < len(found):
        with suppress(OSError):
            for task in Path(f"/proc/{found[at]}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        at += 1
    return found


def tree_cpu_s(pid: int) -> float:
    """User plus system time of a process tree since it was started."""
    total = 0.0
    for process in tree(pid):
        with suppress(OSError):
            # clock_getcpuclockid(3), which Python does not have: CPUCLOCK_SCHED (2) of a whole process.
            total += time.clock_gettime((~process << 3) | 2)
            # Fields 16 and 17: reaped children. The name in field 2 may hold spaces; count from its bracket.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[13]) + int(fields[14])) / TICKS_PER_S
    return total


def cpu_at_rest_s(pid: int) -> float:
    """The same, once it has stopped growing."""
    deadline = time.monotonic() + REST_TIMEOUT_S
    before = tree_cpu_s(pid)
    while time.monotonic() < deadline:
        time.sleep(REST_WINDOW_S)
        now = tree_cpu_s(pid)
        if now - before < REST_WINDOW_S / 100:
            return now
        before = now
    return before


def memory_bytes(pid: int, field: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


@contextmanager
def sampled_tree_rss(pid: int, *, enabled: bool) -> Iterator[list[int]]:
    """Samples of a process tree's resident size, taken while the block runs."""
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while True:
            samples.append(sum(memory_bytes(process, "VmRSS") for process in tree(pid)))
            if ended.wait(SAMPLE_INTERVAL_S):
                return

    sampler = threading.Thread(target=sample, daemon=True)
    if enabled:
        sampler.start()
    try:
        yield samples
    finally:
        ended.set()
        if enabled:
            sampler.join()
