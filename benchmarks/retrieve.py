"""`python -m benchmarks retrieve`: C-GET and C-MOVE of a large study and of one large object from several archives.

Every archive is filled by C-STORE, started anew (so that its peak memory is that of retrieving) and kept running; then
they take turns, round after round, cell by cell. A cell is what is retrieved, the service and the client:

    draining    benchmarks.draining: drops what comes in the kernel, so that the server is what is measured
    dcmtk       getscu or movescu with storescp, all told to ignore what they receive

TCP_NODELAY=1 for all of DCMTK and Orthanc, but for one dcmqrscp, which is as it is installed. A retrieve of which an
object is missing is a failure.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.archives import ARCHIVES, NO_DELAY, missing
from benchmarks.measure import check_room, cpu_at_rest_s, memory_bytes, sampled_tree_rss
from benchmarks.peers import (
    CALLED_AE_TITLE,
    DESTINATION_AE_TITLE,
    PeerError,
    Place,
    Receiver,
    free_port,
    program,
    running,
)
from benchmarks.senders import preencoded
from benchmarks.tables import markdown, number, ratio, spread
from benchmarks.targets import Target, print_targets
from benchmarks.workloads import SIZES, Workload, create

TIMEOUT_S = 120.0
SERVICES = ("get", "move")
CLIENTS = ("draining", "dcmtk")
DCMTK_MAXIMUM_LENGTH = 131072  # the most its tools offer


@dataclass(frozen=True, slots=True)
class What:
    """What is retrieved: the study of a workload."""

    size: str
    objects: int
    title: str


WHATS = {
    "study": What("ct", 400, "a study of 400 CT images"),
    "object": What("gigabyte", 1, "one object of 1 GB"),
}
QUICK_WHATS = {
    "study": What("ct", 100, "a study of 100 CT images"),
    "object": What("multiframe", 1, "one object of 134 MB"),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One retrieve from one archive."""

    archive: str
    what: str
    service: str
    client: str
    objects: int
    size_bytes: int
    elapsed_s: float
    cpu_s: float
    peak_rss_bytes: int

    @property
    def megabytes_per_s(self) -> float:
        return self.size_bytes / self.elapsed_s / 1e6

    @property
    def cpu_s_per_gigabyte(self) -> float:
        return self.cpu_s / self.size_bytes * 1e9


@dataclass(frozen=True, slots=True)
class Served:
    """An archive that runs, and has everything."""

    archive: Receiver
    place: Place
    pid: int


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "retrieve",
        help="C-GET and C-MOVE from several archives",
        description="Retrieves a study and a large object: MB/s, server CPU per GB, peak memory of the server.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller things, 3 rounds, the draining client only"
    )
    parser.add_argument("--archives", type=names_of(ARCHIVES), help=f"of {','.join(ARCHIVES)}")
    parser.add_argument("--whats", type=names_of(WHATS), default=list(WHATS), help=f"of {','.join(WHATS)}")
    parser.add_argument("--services", type=names_of(SERVICES), default=list(SERVICES), help="of get,move")
    parser.add_argument("--clients", type=names_of(CLIENTS), help=f"of {','.join(CLIENTS)}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--max-pdu", type=int, default=131072, help="that the draining client takes")
    parser.add_argument("--output", type=Path, help="archives store below this folder (default: temporary)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    parser.set_defaults(run=run)


def names_of(known: Any) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def run(options: argparse.Namespace) -> int:
    whats = QUICK_WHATS if options.quick else WHATS
    rounds = options.rounds or (3 if options.quick else 5)
    clients = options.clients or (["draining"] if options.quick else list(CLIENTS))
    names = options.archives or list(ARCHIVES)
    for name in list(names):
        if lacking := missing(name):
            print(f"without {name}: {lacking} is missing", file=sys.stderr)
            names.remove(name)
    if "dcmtk" in clients and not all(map(program, ("getscu", "movescu", "storescp"))):
        print(
            "DCMTK's getscu, movescu and storescp are missing; --clients draining does without",
            file=sys.stderr,
        )
        return 2
    runs, failures = list[Run](), list[str]()
    with (
        tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary,
        ExitStack() as stack,
    ):
        folder = Path(temporary)
        workloads = {name: create(SIZES[whats[name].size], folder) for name in options.whats}
        contents = [(workloads[name], whats[name].objects) for name in options.whats]
        servers = [stack.enter_context(filled(ARCHIVES[name], contents, folder / name)) for name in names]
        for name in options.whats:
            for service in options.services:
                for client in clients:
                    cell = Cell(name, whats[name], workloads[name], service, client, options.max_pdu)
                    done = rounds_of(cell, servers, rounds, failures)
                    runs += done
                    print(
                        table(done, f"C-{service.upper()} of {whats[name].title}, {client} client"),
                        flush=True,
                    )
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        rows = [
            {
                **asdict(run),
                "megabytes_per_s": run.megabytes_per_s,
                "cpu_s_per_gigabyte": run.cpu_s_per_gigabyte,
            }
            for run in runs
        ]
        settings = {key: value for key, value in vars(options).items() if key != "run"}
        report.write_rows(options.json, rows, options=settings, failures=failures)
    print_targets(targets(runs))
    return 1 if failures else 0


@contextmanager
def filled(
    archive: Receiver,
    contents: Sequence[tuple[Workload, int]],
    scratch: Path,
    *,
    web: bool = False,
    also: Callable[[int], object] | None = None,
) -> Iterator[Served]:
    """An archive that has so many objects of each workload, running.

    web: with DICOMweb. also: stores more, at the port that it is given.
    """
    check_room(scratch.parent, sum(workload.data_set_bytes * objects for workload, objects in contents))
    (scratch / "objects").mkdir(parents=True)
    http_port = free_port() if web else 0
    place = Place(free_port(), scratch / "objects", scratch, None, free_port(), http_port)
    try:
        with running(archive, place, NO_DELAY) as pid:
            first_number = 1
            for workload, objects in contents:
                preencoded(workload, place.port, objects, 1, first_number)
                first_number += objects
            if also is not None:
                also(place.port)
            cpu_at_rest_s(pid)
        with running(archive, place, NO_DELAY | archive.env) as pid:
            yield Served(archive, place, pid)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Cell:
    name: str
    what: What
    workload: Workload
    service: str
    client: str
    maximum_length: int


def rounds_of(cell: Cell, servers: Sequence[Served], rounds: int, failures: list[str]) -> list[Run]:
    runs: list[Run] = []
    for turn in range(-1, rounds):  # the first to warm up: imports, caches, first allocations
        shift = turn % max(len(servers), 1)
        for served in [*servers[shift:], *servers[:shift]]:
            if served.archive.slow_answers and turn:
                continue  # one round of tens of milliseconds for each object says enough
            try:
                done = retrieve_once(cell, served)
            except (PeerError, OSError, subprocess.TimeoutExpired) as error:
                failures.append(
                    f"{cell.service} {cell.name} from {served.archive.name}, {cell.client}: {error}"
                )
                continue
            if turn >= 0:
                runs.append(done)
    order = {served.archive.name: place for place, served in enumerate(servers)}
    return sorted(runs, key=lambda run: order[run.archive])


def retrieve_once(cell: Cell, served: Served) -> Run:
    """Raises PeerError, OSError, subprocess.TimeoutExpired."""
    cpu_before_s = cpu_at_rest_s(served.pid)
    forks = served.archive.forks
    size_bytes = cell.workload.data_set_bytes * cell.what.objects
    with sampled_tree_rss(served.pid, enabled=forks) as sampled:
        elapsed_s = _draining(cell, served) if cell.client == "draining" else _dcmtk(cell, served)
    cpu_s = cpu_at_rest_s(served.pid) - cpu_before_s
    peak_rss_bytes = max(sampled) if forks else memory_bytes(served.pid, "VmHWM")
    return Run(
        served.archive.name, cell.name, cell.service, cell.client, cell.what.objects, size_bytes, elapsed_s, cpu_s,
        peak_rss_bytes,
    )  # fmt: skip


def _draining(cell: Cell, served: Served) -> float:
    command = [sys.executable, "-m", "benchmarks.draining", cell.service, str(served.place.port)]
    command += [cell.workload.size.study_instance_uid, "--max-pdu", str(cell.maximum_length)]
    command += ["--destination-port", str(served.place.destination_port)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if finished.returncode:
        raise PeerError(finished.stderr.strip())
    drained = json.loads(finished.stdout)
    # Data sets may come back with other bytes around the same values: Orthanc and DCMTK encode them anew.
    expected = cell.what.objects * cell.workload.data_set_bytes
    if (
        drained["instances"] != cell.what.objects
        or abs(drained["data_set_bytes"] - expected) > expected / 1000
    ):
        raise PeerError(f"{drained['instances']} objects with {drained['data_set_bytes']} bytes came")
    return float(drained["elapsed_s"])


def _dcmtk(cell: Cell, served: Served) -> float:
    """The time includes starting the client, some tens of milliseconds."""
    study = f"StudyInstanceUID={cell.workload.size.study_instance_uid}"
    pdu = ["-pdu", str(DCMTK_MAXIMUM_LENGTH)]
    common = ["-v", "-S", "-aec", CALLED_AE_TITLE, "-k", "QueryRetrieveLevel=STUDY", "-k", study]
    address = ["127.0.0.1", str(served.place.port)]
    environment = {**os.environ, **NO_DELAY}
    with ExitStack() as stack:
        if cell.service == "get":
            command = [program("getscu") or "getscu", *common, *pdu, "--ignore", *address]
        else:
            storescp = Receiver("storescp", "", _ignoring_storescp)
            stack.enter_context(running(storescp, _destination_place(served), NO_DELAY))
            command = [program("movescu") or "movescu", *common, "-aem", DESTINATION_AE_TITLE, *address]
        started = time.perf_counter()
        finished = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        elapsed_s = time.perf_counter() - started
    completed = [line for line in finished.stdout.splitlines() if "Completed Suboperations" in line]
    count = int(completed[-1].rpartition(":")[2]) if completed else 0
    if finished.returncode or count not in (0, cell.what.objects):
        raise PeerError(f"{command[0]} ended with {finished.returncode}: {finished.stdout.strip()[-500:]}")
    return elapsed_s


def _ignoring_storescp(place: Place) -> list[str]:
    return [program("storescp") or "storescp", "--ignore", "-pdu", str(DCMTK_MAXIMUM_LENGTH), str(place.port)]


def _destination_place(served: Served) -> Place:
    scratch = served.place.scratch / "destination"
    scratch.mkdir(exist_ok=True)
    return Place(served.place.destination_port, scratch, scratch, None)


def targets(runs: Sequence[Run]) -> list[Target]:
    """No more CPU per GB than the others, and no fewer MB/s: ratios of medians, as an archive's rounds are its own."""
    found: list[Target] = []
    cells = dict.fromkeys((each.what, each.service, each.client) for each in runs)
    for what, service, client in cells:
        its: dict[str, list[Run]] = {}
        for each in runs:
            if (each.what, each.service, each.client) == (what, service, client):
                its.setdefault(each.archive, []).append(each)
        for other in ("orthanc", "dcmqrscp"):
            if "harmony" not in its or other not in its:
                continue
            title = f"C-{service.upper()} of {WHATS[what].title}, {client} client / {ARCHIVES[other].title}"
            cpu = median(each.cpu_s_per_gigabyte for each in its["harmony"])
            cpu /= median(each.cpu_s_per_gigabyte for each in its[other])
            rate = median(each.megabytes_per_s for each in its["harmony"])
            rate /= median(each.megabytes_per_s for each in its[other])
            found.append(Target(f"server CPU per GB, {title}", cpu, most=1.0))
            found.append(Target(f"MB/s, {title}", rate, least=1.0))
    return found


def table(runs: Sequence[Run], title: str) -> str:
    by_archive: dict[str, list[Run]] = {}
    for each in runs:
        by_archive.setdefault(each.archive, []).append(each)
    references = [name for name in ("orthanc", "dcmqrscp", "pynetdicom") if name in by_archive]
    rows = [
        ["archive", "rounds", "MB/s", "server CPU s/GB", "peak MB", *(f"/ {name}" for name in references)]
    ]
    for name, its in by_archive.items():
        row = [ARCHIVES[name].title, str(len(its)), spread([each.megabytes_per_s for each in its])]
        row += [spread([each.cpu_s_per_gigabyte for each in its])]
        row += [number(max(each.peak_rss_bytes for each in its) / 1e6)]
        for reference in references:
            others = by_archive[reference]
            rate = ratio([each.megabytes_per_s for each in its], [each.megabytes_per_s for each in others])
            cpu = ratio(
                [each.cpu_s_per_gigabyte for each in its], [each.cpu_s_per_gigabyte for each in others]
            )
            row.append("" if reference == name else f"rate {rate} CPU {cpu}")
        rows.append(row)
    return f"{title}:\n\n{markdown(rows)}\n"
