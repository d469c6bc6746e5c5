"""`python -m benchmarks loops`: uvloop against asyncio's own event loop, and one Python against another.

The gateway is started with each, in turns, and does the same: receives small objects over one association and over
several, receives CT images, sends them with C-GET, answers QIDO-RS requests with a little JSON. Clients stay the same
throughout, those of the Python that runs this. What counts is the gateway's CPU, as a ratio to that of the first
variant in the same round.

`--pythons PATH,...` adds interpreters; each has what Harmony needs installed, and finds the Harmony of this folder. A
variant with asyncio is the same interpreter told that there is no uvloop.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.draining import RetrieveError
from benchmarks.draining import get as drain_study
from benchmarks.measure import check_room
from benchmarks.peers import WEB_ROOT, PeerError, Place, Receiver, free_port, harmony, running
from benchmarks.querying import QueryError, indexed_cpu_s
from benchmarks.senders import preencoded
from benchmarks.tables import markdown, number, spread
from benchmarks.targets import Target, print_targets
from benchmarks.web_client import ResponseError
from benchmarks.web_client import get as http_get
from benchmarks.workloads import SIZES, Workload, create

ROOT = Path(__file__).parent.parent
WITHOUT_UVLOOP = (
    "import sys; sys.modules['uvloop'] = None; from harmony.__main__ import main; raise SystemExit(main())"
)
"""Instead of `-m harmony`: whoever imports uvloop is told that there is none."""
SMALL, CT, REQUESTS = 4000, 400, 1000
QUICK_SMALL, QUICK_CT, QUICK_REQUESTS = 1500, 120, 300
MANY = 16
ASK_VERSION = """
import platform
try:
    import uvloop
except ImportError:
    uvloop = None
print(platform.python_version(), uvloop and uvloop.__version__)
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """What the gateway runs on."""

    python: str
    """The path of the interpreter."""
    version: str
    loop: str
    """uvloop and its version, or asyncio."""

    @property
    def title(self) -> str:
        return f"Python {self.version}, {self.loop}"

    def command(self, harmony_command: Sequence[str]) -> list[str]:
        """harmony_command: as of this Python, with `-m harmony`."""
        start = ["-c", WITHOUT_UVLOOP] if self.loop == "asyncio" else ["-m", "harmony"]
        return [self.python, *start, *harmony_command[3:]]


@dataclass(frozen=True, slots=True)
class Task:
    """One thing that the gateway does, and how often in a round."""

    name: str
    title: str
    unit: str
    count: int
    perform: Callable[[Place, int], float]
    """Do it so many times; seconds."""


@dataclass(frozen=True, slots=True)
class Run:
    variant: str
    task: str
    turn: int
    count: int
    elapsed_s: float
    cpu_s: float

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.count * 1e6


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "loops",
        help="uvloop against asyncio, one Python against another",
        description="The gateway's CPU for the same work on different event loops and interpreters.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 2")
    parser.add_argument(
        "--pythons",
        type=lambda text: text.split(","),
        default=[],
        metavar="PATH,...",
        help="interpreters besides this one",
    )
    parser.add_argument("--output", type=Path, help="archives are below this folder (default: temporary)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to this file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    runs, failures = list[Run](), list[str]()
    turns = options.rounds or (2 if options.quick else 5)
    found: list[Variant] = []
    try:
        found = variants([sys.executable, *options.pythons])
        with tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary:
            folder = Path(temporary)
            workloads = {name: create(SIZES[name], folder) for name in ("small", "ct")}
            planned = tasks(workloads, quick=options.quick)
            check_room(
                folder, sum(task.count for task in planned) * 8192 + 2 * CT * workloads["ct"].data_set_bytes
            )
            for turn in range(turns):
                shift = turn % len(found)
                for variant in found[shift:] + found[:shift]:
                    try:
                        runs += _round(variant, planned, folder, turn)
                    except (PeerError, RetrieveError, ResponseError, QueryError, OSError) as error:
                        failures.append(f"{variant.title}: {error}")
    except (PeerError, OSError) as error:
        failures.append(str(error))
    for task in tasks({}, quick=options.quick):
        if its := [each for each in runs if each.task == task.name]:
            print(f"{task.title}\n\n{_table(task, its, found)}\n")
    print_targets(targets(runs, found))
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        settings = {"rounds": turns, "variants": [asdict(variant) for variant in found]}
        report.write_rows(options.json, [asdict(each) for each in runs], options=settings, failures=failures)
    return 1 if failures else 0


def variants(pythons: Sequence[str]) -> list[Variant]:
    """Each interpreter with uvloop, where it has it, and with asyncio. Raises PeerError for one that does not run."""
    found = []
    for python in pythons:
        try:
            asked = subprocess.run([python, "-c", ASK_VERSION], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PeerError(f"{python} does not run: {error}") from error
        version, uvloop = asked.stdout.split()
        if uvloop != "None":
            found.append(Variant(python, version, f"uvloop {uvloop}"))
        found.append(Variant(python, version, "asyncio"))
    return found


def tasks(workloads: dict[str, Workload], *, quick: bool) -> list[Task]:
    """What is measured, in this order: what is retrieved has been stored before."""
    small, ct, requests = (QUICK_SMALL, QUICK_CT, QUICK_REQUESTS) if quick else (SMALL, CT, REQUESTS)
    first = iter(range(1000, 1 << 60, 1_000_000))

    def store(size: str, associations: int) -> Callable[[Place, int], float]:
        def send(place: Place, count: int) -> float:
            return preencoded(workloads[size], place.port, count, associations, next(first)).elapsed_s

        return send

    def get(place: Place, count: int) -> float:
        drained = drain_study(place.port, SIZES["ct"].study_instance_uid)
        if drained.instances != count:
            raise PeerError(f"{drained.instances} instances came, {count} are stored")
        return drained.elapsed_s

    def search(place: Place, count: int) -> float:
        path = f"{WEB_ROOT}/studies?StudyInstanceUID={SIZES['ct'].study_instance_uid}"
        return http_get(place.http_port, [path] * count, accept="application/dicom+json").elapsed_s

    return [
        Task("small", "Receiving 2.4 KB objects, 1 association", "object", small, store("small", 1)),
        Task(
            "small-many",
            f"Receiving 2.4 KB objects, {MANY} associations",
            "object",
            small,
            store("small", MANY),
        ),
        Task("ct", "Receiving CT images of 525 KB, 1 association", "object", ct, store("ct", 1)),
        Task("get", "C-GET of these CT images", "object", ct, get),
        Task("search", "QIDO-RS, one study, a connection that stays open", "request", requests, search),
    ]


def _round(variant: Variant, planned: Sequence[Task], parent: Path, turn: int) -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="round-", dir=parent) as temporary:
        folder = Path(temporary)
        objects = folder / "objects"
        objects.mkdir()
        command = harmony()
        receiver = Receiver("harmony", variant.title, lambda place: variant.command(command(place)))
        place = Place(free_port(), objects, folder, None, http_port=free_port())
        with running(receiver, place, {"PYTHONPATH": str(ROOT), "PATH": os.environ.get("PATH", "")}) as pid:
            for task in planned:
                if task.name in ("small", "search"):  # imports, first allocations
                    task.perform(place, 20)
                cpu_s = indexed_cpu_s(place.port, pid)
                elapsed_s = task.perform(place, task.count)
                cpu_s = indexed_cpu_s(place.port, pid) - cpu_s
                yield Run(variant.title, task.name, turn, task.count, elapsed_s, cpu_s)


# What was measured ----

MOST = 1.05
"""Of the default's CPU against what could be chosen instead: less than one can tell."""


def ratios(runs: Sequence[Run], variant: str, reference: str) -> list[float]:
    """CPU of a variant against that of another in the same rounds; runs of one task."""
    of = {(each.variant, each.turn): each.cpu_s for each in runs}
    turns = sorted({each.turn for each in runs})
    return [
        of[variant, turn] / of[reference, turn]
        for turn in turns
        if (variant, turn) in of and of.get((reference, turn))
    ]


def targets(runs: Sequence[Run], found: Sequence[Variant]) -> list[Target]:
    """The default must not be what costs more."""
    if len(found) < 2 or found[0].loop == "asyncio":
        return []
    uvloop, asyncio = found[0].title, found[1].title
    made = []
    for task in tasks({}, quick=False):
        pairs = ratios([each for each in runs if each.task == task.name], uvloop, asyncio)
        if pairs:
            what = f"loops: CPU with uvloop / asyncio, {task.title}"
            made.append(Target(what, median(pairs), most=MOST, spread=pairs))
    return made


def _table(task: Task, runs: Sequence[Run], found: Sequence[Variant]) -> str:
    reference = found[0].title
    rows = [["", f"CPU us/{task.unit}", f"{task.unit}s/s", "CPU / the first"]]
    for variant in found:
        its = [each for each in runs if each.variant == variant.title]
        pairs = ratios(runs, variant.title, reference)
        rows.append(
            [
                variant.title,
                spread([each.cpu_us for each in its]),
                spread([each.count / each.elapsed_s for each in its]),
                number(median(pairs)) if pairs and variant.title != reference else "",
            ]
        )
    return markdown(rows)
