"""One fault from start to verdict: a gateway, peers that go on while the fault is done to it, and what is left.

Before and after, when nobody is connected, memory and descriptors of the gateway are measured. At the end it is told to
stop, and every object that was answered 0000 has to be in the archive's folder, byte for byte.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.ports import free_ports
from tests.faults.program import Archive, Process, listener, received
from tests.faults.witness import Reader, Sender, instance_of

__all__ = ["FAULTS", "Fault", "NotHere", "ProgramMissing", "Row", "Trial", "fault", "perform"]

GAP_S = 5.0
"""The longest that a well-behaved peer may be without an answer while the gateway runs. What is usual is below 0.2 s;
a busy machine is no reason to fail."""
RESTART_GAP_S = 25.0
"""The same where the gateway has to be started again."""
RSS_GROWTH_BYTES = 96 << 20
"""What may stay. A gateway that is only used well grows by 50 MiB in the first minutes: each of the index's connections
keeps up to 32 MiB of its database, and the allocator pages that were in use at some time. A leak of 50 KB for each of
some thousand faults is more than this."""
DESCRIPTORS_GROWTH = 2
"""What comes and goes by itself: a log that is rotated, a folder that is synced."""
SETTLE_S = 90.0
"""For the gateway to notice that everyone has left: longer than the longest of its deadlines here, which is the minute
that the body of a request may pause."""
WARM_UP_OBJECTS = 60
STOP_S = 60.0
PAGE = 1000
ASSOCIATIONS = 20_000
"""Of `many-associations`, unless the command line says more."""

DICOM_DEADLINES = """
artim_timeout_secs = 1
pdu_timeout_secs = 2
association_timeout_secs = 2
"""


class NotHere(Exception):
    """This machine cannot do it to the gateway: a program or a permission is missing."""


class ProgramMissing(NotHere):
    """It can be installed."""


@dataclass
class Trial:
    """What a fault has to work with."""

    folder: Path
    short: bool
    gateway: Archive
    tls_port: int = 0
    tls_http_port: int = 0
    spare_ports: list[int] = field(default_factory=list)
    senders: list[Sender] = field(default_factory=list)
    reader: Reader | None = None
    injected: int = 0
    """How often the fault happened."""
    disk: Path | None = None
    associations: int = ASSOCIATIONS
    """How many where that is what it is about."""
    note: str = ""
    """What else it showed."""

    def many(self, long: int, short: int) -> int:
        """How often it is to happen."""
        return short if self.short else long

    async def until(self, condition: Callable[[], object], what: str, *, within_s: float = SETTLE_S) -> None:
        """Wait for something in another process, of which nobody tells."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"after {within_s:g} s still not: {what}") from None

    async def served(self, objects: int = 20) -> None:
        """Wait until the senders have been answered that often from now on."""
        goal = self.acknowledged + objects
        await self.until(lambda: self.acknowledged >= goal, f"{objects} more objects acknowledged")

    async def refusals(self, objects: int = 6) -> None:
        """Wait until so many more objects were refused."""
        goal = self.refused + objects
        await self.until(lambda: self.refused >= goal, f"{objects} more objects refused")

    async def reads(self, answers: int = 1) -> None:
        """Wait until so many more searches were answered."""
        assert self.reader is not None
        witnessed = self.reader.answers
        goal = witnessed.count + answers
        await self.until(lambda: witnessed.count >= goal, f"{answers} more searches answered")

    def found(self) -> list[str]:
        """SOP Instance UIDs of all that a search finds."""
        uids: list[str] = []
        reader = Reader(self.gateway.http_port, self.senders[0])
        while True:
            page = reader.search(f"/instances?limit={PAGE}&offset={len(uids)}")
            uids += [each["00080018"]["Value"][0] for each in page]
            if len(page) < PAGE:  # there are more by now, and that has no end
                return uids

    async def all_found(self) -> None:
        """Everything that was acknowledged is in the index."""
        acknowledged = [number for sender in self.senders for number in sender.acknowledged]
        found = set(await asyncio.to_thread(self.found))
        missing = [each for each in acknowledged if instance_of(each).sop_instance_uid not in found]
        assert not missing, f"acknowledged and not found: {missing[:10]} of {len(missing)}"

    @contextlib.asynccontextmanager
    async def restarted(self) -> AsyncIterator[None]:
        """Whatever ends the gateway in here, it is started again after it, when the index and all are as they were."""
        yield
        async with asyncio.timeout(STOP_S):
            await self.gateway.wait()
        await self.gateway.start()

    @property
    def acknowledged(self) -> int:
        return sum(len(sender.acknowledged) for sender in self.senders)

    @property
    def refused(self) -> int:
        return sum(sender.refused for sender in self.senders)

    @property
    def lost_associations(self) -> int:
        return sum(sender.lost for sender in self.senders)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and what well-behaved peers may notice of it."""

    name: str
    run: Callable[[Trial], Awaitable[None]]
    scp: str = DICOM_DEADLINES
    gap_s: float = GAP_S
    interrupts: bool = False
    """Their associations end."""
    refuses: bool = False
    """Their objects are answered A700 for a while, and their reads 5xx."""
    reads: bool = True
    tls: bool = False
    more: Callable[[Trial], str] | None = None
    """Tables added to the configuration."""
    disk_bytes: int = 0
    """The archive is on a file system of this size."""
    rss_growth_bytes: int = RSS_GROWTH_BYTES
    may_log_tracebacks: bool = False
    log_level: str = "info"


@dataclass(frozen=True)
class Row:
    """What a trial showed."""

    name: str
    objects_per_s: float
    reads: int
    injected: int
    acknowledged: int
    lost: int
    refused: int
    longest_gap_s: float
    rss_before_bytes: int
    rss_after_bytes: int
    descriptors_before: int
    descriptors_after: int
    seconds: float
    note: str


FAULTS: dict[str, Fault] = {}


def fault(
    **what: object,
) -> Callable[[Callable[[Trial], Awaitable[None]]], Callable[[Trial], Awaitable[None]]]:
    """Register an async function as a fault, under its name with hyphens."""

    def register(run: Callable[[Trial], Awaitable[None]]) -> Callable[[Trial], Awaitable[None]]:
        name = run.__name__.replace("_", "-")
        FAULTS[name] = Fault(name, run, **what)
        return run

    return register


async def perform(fault: Fault, folder: Path, *, short: bool, associations: int = ASSOCIATIONS) -> Row:
    """Do it. Raises AssertionError for a gateway that did not bear it, NotHere."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        trial = _set_up(fault, folder, short, stack)
        trial.associations = associations
        gateway = trial.gateway
        async with _started(gateway):
            await _warm_up(trial)
            descriptors_before, rss_before = await _measure(gateway), gateway.rss_bytes
            load_began, warm = time.monotonic(), trial.acknowledged
            async with _witnesses(trial, reads=fault.reads):
                await trial.served(10)
                await fault.run(trial)
                await trial.served(10)
            load_s = time.monotonic() - load_began
            await trial.until(
                lambda: gateway.descriptors <= descriptors_before + DESCRIPTORS_GROWTH,
                f"descriptors as before ({descriptors_before}): {_summary(gateway)}",
            )
            descriptors_after, rss_after = gateway.descriptors, gateway.rss_bytes
            gateway.terminate()
            async with asyncio.timeout(STOP_S):
                assert await gateway.wait() == 0, gateway.log.read_text()[-2000:]
        lost = _lost(trial)
    reads = trial.reader.answers if trial.reader is not None else None
    gaps = [sender.answers.longest_gap_s for sender in trial.senders] + (
        [reads.longest_gap_s] if reads else []
    )
    row = Row(
        fault.name,
        (trial.acknowledged - warm) / load_s,
        reads.count if reads else 0,
        trial.injected,
        trial.acknowledged,
        len(lost),
        trial.refused,
        max(gaps),
        rss_before,
        rss_after,
        descriptors_before,
        descriptors_after,
        time.monotonic() - began,
        trial.note,
    )
    _judge(fault, trial, row, lost)
    return row


def _judge(fault: Fault, trial: Trial, row: Row, lost: list[str]) -> None:
    assert not lost, f"acknowledged and not there: {lost[:10]} of {len(lost)}"
    assert row.injected > 0
    assert row.longest_gap_s <= fault.gap_s, f"a peer waited {row.longest_gap_s:.1f} s: {row}"
    growth = row.rss_after_bytes - row.rss_before_bytes
    assert growth <= fault.rss_growth_bytes, f"{growth >> 20} MiB more than before: {row}"
    if not fault.interrupts:
        assert trial.lost_associations == 0, f"{trial.lost_associations} associations of others were lost"
    if not fault.refuses:
        assert trial.refused == 0, f"{trial.refused} objects of others were refused"
    if trial.reader is not None and not (fault.interrupts or fault.refuses):
        assert not trial.reader.failed, f"reads failed: {trial.reader.failed}"
    if not fault.may_log_tracebacks:
        log = trial.gateway.log.read_text(errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:3000]


def _set_up(fault: Fault, folder: Path, short: bool, stack: contextlib.ExitStack) -> Trial:
    ports = free_ports(6)
    disk = stack.enter_context(small_disk(folder / "disk", fault.disk_bytes)) if fault.disk_bytes else None
    extra: dict[str, str] = {}
    if fault.tls:
        issued = make_certificate(folder)
        tables = listener("tls", "dicom", ports[2], issued) + listener("tls", "http", ports[3], issued)
        extra = {"more": tables, "networks": ', "tls"'}
    gateway = Archive(
        folder,
        port=ports[0],
        http_port=ports[1],
        storage=disk / "storage" if disk is not None else None,
        scp=fault.scp,
        log_level=fault.log_level,
        **extra,
    )
    trial = Trial(folder, short, gateway, ports[2], ports[3], ports[4:], disk=disk)
    if fault.more is not None:
        with gateway.config.open("a") as file:
            file.write(fault.more(trial))
    numbers = itertools.count(1)
    trial.senders = [Sender(ports[0], numbers), Sender(ports[0], numbers, per_association=1)]
    if fault.tls:
        context = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
        trial.senders.append(Sender(ports[2], numbers, per_association=1, ssl_context=context))
    return trial


@contextlib.asynccontextmanager
async def _started(gateway: Process) -> AsyncIterator[None]:
    await gateway.start()
    try:
        yield
    finally:
        if gateway.process is not None:
            if gateway.process.returncode is None:
                gateway.kill()
            await gateway.wait()


async def _warm_up(trial: Trial) -> None:
    """What is loaded and kept from the first use on belongs to the memory before."""
    async with _witnesses(trial, reads=True, pace_s=0.0):
        await trial.served(WARM_UP_OBJECTS)
        assert trial.reader is not None
        for _ in range(3):
            await asyncio.gather(*(trial.reader.read(trial.senders[0].acknowledged[-1]) for _ in range(4)))


@contextlib.asynccontextmanager
async def _witnesses(trial: Trial, *, reads: bool, pace_s: float | None = None) -> AsyncIterator[None]:
    for sender in trial.senders:
        sender.stopping.clear()
    usual = [(sender, sender.pace_s) for sender in trial.senders]
    trial.reader = Reader(trial.gateway.http_port, trial.senders[0]) if reads else None
    async with asyncio.TaskGroup() as group:
        for sender in trial.senders:
            sender.pace_s = sender.pace_s if pace_s is None else pace_s
            group.create_task(sender.run())
        if trial.reader is not None:
            group.create_task(trial.reader.run())
        yield
        for sender in trial.senders:
            await sender.finish()
        if trial.reader is not None:
            trial.reader.stopping.set()
    for sender, pace in usual:
        sender.pace_s = pace


async def _measure(gateway: Archive) -> int:
    """How many descriptors it has when connections are closed that are being closed."""
    counts: collections.deque[int] = collections.deque(maxlen=10)
    async with asyncio.timeout(SETTLE_S):
        while len(counts) < 10 or len(set(counts)) > 1:
            counts.append(gateway.descriptors)
            await asyncio.sleep(0.02)
    return counts[-1]


def _summary(gateway: Process) -> str:
    kinds = collections.Counter(name.split("[")[0].rsplit("/", 1)[-1] for name in gateway.open_files)
    return ", ".join(f"{count} {name}" for name, count in kinds.most_common(12))


def _lost(trial: Trial) -> list[str]:
    left = {
        instance_of(number).sop_instance_uid: number for each in trial.senders for number in each.acknowledged
    }
    for sop_instance_uid, data in received(trial.gateway.root):
        number = left.get(sop_instance_uid)
        if number is not None and data == instance_of(number).data:
            del left[sop_instance_uid]
    return list(left)


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of that size, in memory."""
    path.mkdir()
    mount(["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs"], path)
    try:
        yield path
    finally:
        unmount(path)


def mount(arguments: list[str], path: Path) -> None:
    mounted = subprocess.run(["mount", *arguments, path], capture_output=True, text=True)
    if mounted.returncode != 0:
        raise NotHere(f"no file system can be mounted (it takes root): {mounted.stderr.strip()}")


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", path], check=True)


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    """A self-signed one for localhost, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise ProgramMissing("peer missing: openssl")
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    files = ["-out", os.fspath(made.certificate), "-keyout", os.fspath(made.key)]
    subprocess.run([openssl, *command.split(), "-addext", names, *files], check=True, capture_output=True)
    return made
