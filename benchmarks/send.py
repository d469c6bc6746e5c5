"""`python -m benchmarks send`: files to a receiver that keeps nothing, by several senders.

The receiver is `benchmarks.discarding`, which costs so little that a sender is what is measured. Senders take turns,
round after round, each a process of its own that is given a folder of files, every one another instance:

    harmony-4, harmony-1    `harmony send` over so many associations
    harmony-window          the same over one, with eight operations under way at a time
    library                 `associate` and `store` of the library, over one association
    storescu                DCMTK's, as installed and with TCP_NODELAY=1
    dcmsend                 DCMTK's, TCP_NODELAY=1
    pynetdicom              its storescu
    floor                   the least Python can do

Two rates: of the transfer, from the receiver's first A-ASSOCIATE-RQ to its last A-RELEASE-RQ, and of the whole run of
the program, starting it included. CPU is of the sender, without what it takes to send one small object, which is
starting it; memory its peak. A run of which an object did not arrive is a failure.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.measure import check_room, memory_bytes
from benchmarks.peers import CALLED_AE_TITLE, PeerError, Place, Receiver, free_port, program, running
from benchmarks.retrieve import names_of
from benchmarks.tables import markdown, number, ratio, spread
from benchmarks.targets import Target, print_targets
from benchmarks.workloads import SIZES, create, instance_uid

TIMEOUT_S = 300.0
ARRIVAL_S = 5.0
"""For the receiver's last word, which may be a little later than the sender's end."""

SAMPLE_S = 0.01
"""Between two looks at a sender's memory."""

WINDOW = 8
NO_DELAY = {"TCP_NODELAY": "1"}


@dataclass(frozen=True, slots=True)
class What:
    """What is sent: so many files of a size; those that take tens of milliseconds for each get fewer."""

    size: str
    files: int
    few: int
    title: str


WHATS = {
    "small": What("small", 3000, 100, "objects of 2.4 KB"),
    "ct": What("ct", 400, 100, "CT images of 525 KB"),
    "large": What("gigabyte", 1, 1, "one object of 1 GB"),
}
QUICK_WHATS = {
    "small": What("small", 1000, 40, "objects of 2.4 KB"),
    "ct": What("ct", 200, 40, "CT images of 525 KB"),
    "large": What("multiframe", 1, 1, "one object of 134 MB"),
}


@dataclass(frozen=True, slots=True)
class Sender:
    """A program that sends a folder of files to a port."""

    name: str
    title: str
    command: Callable[[int, Path], list[str]]
    env: dict[str, str] = field(default_factory=dict)
    slow: bool = False

    def missing(self) -> str | None:
        if self.name.startswith("storescu"):
            return None if program("storescu") else "DCMTK's storescu"
        if self.name == "dcmsend":
            return None if program("dcmsend") else "DCMTK's dcmsend"
        if self.name == "pynetdicom":
            return None if find_spec("pynetdicom") else "the Python package pynetdicom"
        return None


def _harmony(*options: str) -> Callable[[int, Path], list[str]]:
    def command(port: int, folder: Path) -> list[str]:
        address = ["127.0.0.1", str(port), str(folder), "--aec", CALLED_AE_TITLE]
        return [sys.executable, "-m", "harmony", "send", *address, *options]

    return command


def _own(sender: str) -> Callable[[int, Path], list[str]]:
    return lambda port, folder: [sys.executable, "-m", "benchmarks.sending", sender, str(port), str(folder)]


def _dcmtk(name: str, *options: str) -> Callable[[int, Path], list[str]]:
    def command(port: int, folder: Path) -> list[str]:
        address = ["-aec", CALLED_AE_TITLE, "127.0.0.1", str(port), str(folder)]
        return [program(name) or name, *options, "+sd", *address]

    return command


def _pynetdicom(port: int, folder: Path) -> list[str]:
    address = ["127.0.0.1", str(port), str(folder)]
    return [sys.executable, "-m", "pynetdicom", "storescu", *address, "-q", "-aec", CALLED_AE_TITLE]


SENDERS = {
    sender.name: sender
    for sender in (
        Sender("harmony-4", "harmony send, 4 associations", _harmony("--associations", "4")),
        Sender("harmony-1", "harmony send, 1 association", _harmony("--associations", "1")),
        Sender(
            "harmony-window",
            f"harmony send, 1 association, {WINDOW} operations",
            _harmony("--associations", "1", "--window", str(WINDOW)),
        ),
        Sender("library", "Harmony's library, 1 association", _own("library")),
        # -R: propose what the files need, not DCMTK's 120 contexts.
        Sender("storescu", "DCMTK storescu, as installed", _dcmtk("storescu", "-R"), slow=True),
        Sender("storescu-nodelay", "DCMTK storescu, TCP_NODELAY=1", _dcmtk("storescu", "-R"), env=NO_DELAY),
        Sender("dcmsend", "DCMTK dcmsend, TCP_NODELAY=1", _dcmtk("dcmsend"), env=NO_DELAY),
        Sender("pynetdicom", "pynetdicom storescu", _pynetdicom, slow=True),
        Sender("floor", "floor: the least Python can do", _own("floor")),
    )
}
QUICK_SENDERS = ("harmony-4", "library", "storescu-nodelay", "pynetdicom", "floor")


@dataclass(frozen=True, slots=True)
class Run:
    """One sender in one round."""

    sender: str
    what: str
    round: int
    objects: int
    size_bytes: int
    """Of all data sets."""
    transfer_s: float
    whole_s: float
    cpu_s: float
    """Without starting."""
    peak_rss_bytes: int

    @property
    def objects_per_s(self) -> float:
        return self.objects / self.transfer_s

    @property
    def megabytes_per_s(self) -> float:
        return self.size_bytes / self.transfer_s / 1e6

    @property
    def whole_megabytes_per_s(self) -> float:
        return self.size_bytes / self.whole_s / 1e6

    @property
    def cpu_us_per_object(self) -> float:
        return self.cpu_s / self.objects * 1e6

    @property
    def cpu_s_per_gigabyte(self) -> float:
        return self.cpu_s / self.size_bytes * 1e9


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "send",
        help="files to a receiver that keeps nothing, by several senders",
        description="Sends folders of files: objects/s, MB/s, CPU per object and per GB, peak memory of the sender.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller, 3 rounds, five senders")
    parser.add_argument("--senders", type=names_of(SENDERS), help=f"of {','.join(SENDERS)}")
    parser.add_argument("--whats", type=names_of(WHATS), default=list(WHATS), help=f"of {','.join(WHATS)}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--max-pdu", type=int, default=131072, help="that the receiver takes")
    parser.add_argument(
        "--files", type=Path, help="files are written below this folder (default: /dev/shm, or temporary)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    whats = QUICK_WHATS if options.quick else WHATS
    rounds = options.rounds or (3 if options.quick else 7)
    senders = [SENDERS[name] for name in options.senders or (QUICK_SENDERS if options.quick else SENDERS)]
    for sender in list(senders):
        if lacking := sender.missing():
            print(f"without {sender.name}: {lacking} is missing", file=sys.stderr)
            senders.remove(sender)
    runs, failures = list[Run](), list[str]()
    memory = Path("/dev/shm")
    output = options.files or (memory if memory.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=output) as temporary:
        folder = Path(temporary)
        one = files_of(What("small", 1, 1, ""), folder / "one")
        with receiving(folder, options.max_pdu) as receiver:
            started = {
                sender.name: median(starting_cpu_s(sender, receiver, one) for _ in range(3))
                for sender in senders
            }
            for name in options.whats:
                what = whats[name]
                files = files_of(what, folder / name)
                # The floor lays out one whole object in memory: not one of these.
                takers = [sender for sender in senders if what.files > 1 or sender.name != "floor"]
                done = rounds_of(name, what, files, takers, receiver, started, rounds, failures)
                shutil.rmtree(files)
                runs += done
                print(table(done, f"{what.title}, PDUs of {options.max_pdu} bytes"), flush=True)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        rows = [
            {
                **asdict(run),
                "objects_per_s": run.objects_per_s,
                "megabytes_per_s": run.megabytes_per_s,
                "cpu_us_per_object": run.cpu_us_per_object,
            }
            for run in runs
        ]
        settings = {key: value for key, value in vars(options).items() if key != "run"}
        report.write_rows(options.json, rows, options=settings, failures=failures)
    print_targets(targets(runs))
    return 1 if failures else 0


def files_of(what: What, folder: Path) -> Path:
    """A folder with two: `all` the instances, and a `few` of them."""
    size = SIZES[what.size]
    (folder / "all").mkdir(parents=True)
    (folder / "few").mkdir()
    workload = create(size, folder)
    check_room(folder, workload.data_set_bytes * what.files)
    if what.files == 1:
        workload.path.rename(folder / "all" / "0.dcm")
    else:
        template = workload.path.read_bytes()
        workload.path.unlink()
        for index in range(what.files):
            uid = instance_uid(index + 1).encode()
            (folder / "all" / f"{index}.dcm").write_bytes(template.replace(instance_uid(0).encode(), uid))
    for index in range(what.few):
        (folder / "few" / f"{index}.dcm").hardlink_to(folder / "all" / f"{index}.dcm")
    return folder


@dataclass(slots=True)
class Receiving:
    """The receiver that runs, and its log."""

    port: int
    log: Path
    read: int = 0
    """Bytes of the log that belong to runs before."""

    def associations(self, objects: int) -> list[dict[str, Any]]:
        """Those that have ended since the last call, once they brought so many objects. Raises PeerError."""
        deadline = time.monotonic() + ARRIVAL_S
        while True:
            lines = self.log.read_bytes()[self.read :].splitlines(keepends=True)
            lines = [line for line in lines if line.endswith(b"\n")]
            rows = [json.loads(line) for line in lines if line.startswith(b"{")]
            arrived = sum(row["objects"] for row in rows)
            if arrived >= objects or time.monotonic() > deadline:
                self.read += sum(map(len, lines))
                if arrived != objects:
                    raise PeerError(f"{arrived} of {objects} objects arrived")
                return [row for row in rows if row["objects"]]
            time.sleep(0.01)


@contextmanager
def receiving(folder: Path, maximum_length: int) -> Iterator[Receiving]:
    def command(place: Place) -> list[str]:
        limits = ["--max-pdu", str(maximum_length), "--window", str(WINDOW)]
        return [sys.executable, "-m", "benchmarks.discarding", str(place.port), *limits]

    scratch = folder / "receiver"
    scratch.mkdir()
    place = Place(free_port(), scratch, scratch, None)
    with running(Receiver("discarding", "", command), place):
        yield Receiving(place.port, scratch / "log")


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has: its time, its CPU time, its peak memory."""

    whole_s: float
    cpu_s: float
    peak_rss_bytes: int


def finished(sender: Sender, port: int, folder: Path) -> Ended:
    """Run a sender. Raises PeerError."""
    with tempfile.TemporaryFile() as printed:
        began_at = time.perf_counter()
        process = subprocess.Popen(
            sender.command(port, folder),
            env={**os.environ, **sender.env},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        with sampled_peak(process.pid) as peaks:
            _, status, usage = os.wait4(process.pid, 0)
        whole_s = time.perf_counter() - began_at
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            text = printed.read()[-1000:].decode(errors="replace").strip()
            raise PeerError(f"{sender.name} ended with {process.returncode}: {text}")
    return Ended(whole_s, usage.ru_utime + usage.ru_stime, max(peaks))


@contextmanager
def sampled_peak(pid: int) -> Iterator[list[int]]:
    """Its peak memory, looked at now and then; what wait4 has for it is no less than that of this process."""
    peaks, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            peaks[0] = max(peaks[0], memory_bytes(pid, "VmHWM"))

    sampler = threading.Thread(target=sample)
    stopper = threading.Timer(TIMEOUT_S, os.kill, (pid, signal.SIGKILL))
    sampler.start()
    stopper.start()
    try:
        yield peaks
    finally:
        stopper.cancel()
        ended.set()
        sampler.join()


def starting_cpu_s(sender: Sender, receiver: Receiving, one: Path) -> float:
    """The median of three, without the first."""
    found = []
    for _ in range(4):
        found.append(finished(sender, receiver.port, one / "all").cpu_s)
        receiver.associations(1)
    return median(found[1:])


def rounds_of(
    name: str,
    what: What,
    files: Path,
    senders: Sequence[Sender],
    receiver: Receiving,
    started: dict[str, float],
    rounds: int,
    failures: list[str],
) -> list[Run]:
    runs: list[Run] = []
    for turn in range(-1, rounds):  # the first to warm up
        shift = turn % max(len(senders), 1)
        for sender in [*senders[shift:], *senders[:shift]]:
            objects = what.few if sender.slow else what.files
            try:
                ended = finished(sender, receiver.port, files / ("few" if sender.slow else "all"))
                rows = receiver.associations(objects)
            except PeerError as error:
                failures.append(f"{name}, round {turn + 1}, {sender.name}: {error}")
                continue
            if turn >= 0:
                transfer_s = max(row["ended_s"] for row in rows) - min(row["began_s"] for row in rows)
                runs.append(
                    Run(
                        sender.name, name, turn, objects, sum(row["data_set_bytes"] for row in rows), transfer_s,
                        ended.whole_s, max(ended.cpu_s - started[sender.name], 0.0), ended.peak_rss_bytes,
                    )
                )  # fmt: skip
    order = {sender.name: place for place, sender in enumerate(senders)}
    return sorted(runs, key=lambda run: (order[run.sender], run.round))


def table(runs: Sequence[Run], title: str) -> str:
    by_sender: dict[str, list[Run]] = {}
    for each in runs:
        by_sender.setdefault(each.sender, []).append(each)
    references = [name for name in ("storescu-nodelay", "pynetdicom", "floor") if name in by_sender]
    rows = [
        [
            *(
                "sender",
                "objects",
                "objects/s",
                "MB/s",
                "with starting, MB/s",
                "CPU us/object",
                "CPU s/GB",
                "peak MB",
            ),
            *(f"/ {name}" for name in references),
        ]
    ]
    for name, its in by_sender.items():
        row = [
            SENDERS[name].title,
            f"{its[0].objects}",
            spread([each.objects_per_s for each in its]),
            number(median(each.megabytes_per_s for each in its)),
            number(median(each.whole_megabytes_per_s for each in its)),
            spread([each.cpu_us_per_object for each in its]),
            number(median(each.cpu_s_per_gigabyte for each in its)),
            number(max(each.peak_rss_bytes for each in its) / 1e6),
        ]
        for reference in references:
            others = by_sender[reference]
            rate = ratio([each.megabytes_per_s for each in its], [each.megabytes_per_s for each in others])
            cpu = ratio([each.cpu_us_per_object for each in its], [each.cpu_us_per_object for each in others])
            row.append("" if reference == name else f"rate {rate} CPU {cpu}")
        rows.append(row)
    return f"{title}, {len(next(iter(by_sender.values()), []))} rounds:\n\n{markdown(rows)}\n"


def targets(runs: Sequence[Run]) -> list[Target]:
    """What the project promises for CT images, round by round."""
    rates = {(each.sender, each.round): each.megabytes_per_s for each in runs if each.what == "ct"}
    found: list[Target] = []
    for sender in ("harmony-4", "harmony-1", "library"):
        for peer, least in (("storescu-nodelay", 2.0), ("storescu", 2.0), ("pynetdicom", 10.0)):
            ratios = [
                rate / rates[peer, turn]
                for (name, turn), rate in rates.items()
                if name == sender and (peer, turn) in rates
            ]
            if ratios:
                what = f"MB/s of CT images, {SENDERS[sender].title} / {SENDERS[peer].title}"
                found.append(Target(what, median(ratios), least=least, spread=ratios))
    return found
