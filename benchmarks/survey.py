"""`python -m benchmarks all`: every benchmark, one after the other, into one Markdown report.

Each runs as a process of its own, as it would by itself, and its tables (medians, in parentheses the least and the
most, ratios to the peers) go into the report as they are printed. In front stands what they were measured on: the
machine, versions, which peers were there and which were missing; and one table of all targets, met or not, which each
benchmark prints of its own (`targets`). Pictures go beside the report.

There is a budget, by default of 40 minutes and with `--quick` of less than two. Each benchmark has its share of what is
left, so that one that is slow on this machine does not take all of it: what has not ended by then is interrupted, and
the report has what was measured before, and says so. What is chosen of each fits on an idle machine with two cores.
Another benchmark is one more entry of BENCHMARKS.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks import plots, report
from benchmarks.archives import ORTHANC_PATH, missing
from benchmarks.peers import program
from benchmarks.tables import markdown
from benchmarks.targets import COLUMNS, HEADING, MET
from benchmarks.web_peers import NGINX_PATH

ROOT = Path(__file__).parent.parent
BUDGET_MINUTES = 40.0
QUICK_BUDGET_MINUTES = 1.75  # two minutes with what follows
GENEROSITY = 1.5
STOP_S = 15.0  # to stop its servers and to remove what it wrote


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One of the others, and what of it the report contains."""

    name: str
    title: str
    quick: tuple[str, ...] | None
    """Arguments with `--quick`; None: not at all."""
    full: tuple[str, ...] = ()
    """Arguments without."""
    share: float = field(default=1.0, kw_only=True)
    """Of the budget; only beside the others' it means something."""
    quick_share: float = field(default=1.0, kw_only=True)
    is_drawn: bool = field(default=False, kw_only=True)
    """It takes `--plot FILE`."""


FEW_QUERIES = ("--small-studies", "60", "--queries", "20")
IN_MEMORY = ("--output", "/dev/shm")

BENCHMARKS = (
    Benchmark(
        "store",
        "Receiving: C-STORE",
        (
            *("--quick", "--sizes", "small,ct", "--associations", "1", "--rounds", "1", "--objects", "400"),
            *("--receivers", "harmony,dcmtk-nodelay,floor", *IN_MEMORY),
        ),
        (
            *("--senders", "preencoded", "--associations", "1,16", "--rounds", "3", *IN_MEMORY),
            *("--receivers", "harmony,harmony-no-index,dcmtk-nodelay,dcmtk-fork,pynetdicom,floor"),
        ),
        share=8,
        quick_share=2,
    ),
    Benchmark(
        "store",
        "Receiving from DCMTK's storescu",
        None,
        (
            *("--senders", "dcmtk-nagle,dcmtk-nodelay", "--associations", "1", "--sizes", "small"),
            *("--receivers", "harmony,dcmtk,dcmtk-nodelay,pynetdicom", "--rounds", "3", *IN_MEMORY),
        ),
        share=3,
    ),
    Benchmark(
        "send",
        "Sending: C-STORE",
        ("--quick", "--whats", "ct", "--rounds", "1", "--senders", "harmony-1,storescu-nodelay,floor"),
        ("--rounds", "3"),
        share=4,
        quick_share=1,
    ),
    Benchmark(
        "retrieve",
        "Retrieving: C-GET and C-MOVE",
        (
            *("--quick", "--services", "get", "--whats", "study", "--rounds", "1"),
            *("--archives", "harmony,orthanc,dcmqrscp", *IN_MEMORY),
        ),
        ("--rounds", "3", "--clients", "draining", *IN_MEMORY),
        share=6,
        quick_share=1.5,
    ),
    Benchmark(
        "proxy",
        "In front of a PACS: C-GET",
        None,
        ("--rounds", "3"),
        share=3,
    ),
    Benchmark(
        "dicomweb",
        "DICOMweb",
        None,
        ("--rounds", "2", *IN_MEMORY),
        share=8,
    ),
    Benchmark(
        "jmix",
        "To a JMIX upstream",
        ("--quick", "--parts", "zip,latency", "--rounds", "1"),
        ("--rounds", "3"),
        share=4,
        quick_share=0.7,
    ),
    Benchmark(
        "http",
        "HTTP, beside nginx",
        ("--quick", "--parts", "bodies", "--rounds", "1"),
        ("--rounds", "3"),
        share=4,
        quick_share=1.5,
    ),
    Benchmark(
        "workers",
        "Receiving with several processes",
        ("--quick", "--rounds", "1", *IN_MEMORY),
        ("--rounds", "3", *IN_MEMORY),
        share=3,
    ),
    Benchmark(
        "find",
        "Querying: C-FIND",
        ("--quick", "--parts", "small", "--archives", "harmony", "--rounds", "1", *FEW_QUERIES),
        ("--quick", "--rounds", "3", *IN_MEMORY),
        share=4,
        quick_share=1.8,
    ),
    Benchmark(
        "growth",
        "Growing",
        ("--quick", "--parts", "associations", "--associations", "10", "--rounds", "1", *IN_MEMORY),
        ("--objects", "200000", "--rounds", "3", *IN_MEMORY),
        share=5,
        is_drawn=True,
    ),
    Benchmark(
        "soak",
        "A steady mixture of everything",
        ("--minutes", "0.15", *IN_MEMORY),
        ("--minutes", "2", *IN_MEMORY),
        share=4,
        quick_share=1.4,
        is_drawn=True,
    ),
    Benchmark(
        "profile",
        "Where the time of a received object goes",
        None,
        ("--receivers", "harmony,dcmtk-nodelay,floor", *IN_MEMORY),
    ),
    Benchmark("loops", "Event loops", None, ("--rounds", "3", *IN_MEMORY), share=3),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one benchmark printed, and how it ended."""

    benchmark: Benchmark
    command: str
    printed: str = ""
    complaints: str = ""
    elapsed_s: float = 0.0
    status: int | None = None
    """Exit status; None when it was interrupted, or not begun."""


def add_parser(commands: Any) -> None:
    names = ", ".join(dict.fromkeys(benchmark.name for benchmark in BENCHMARKS))
    parser = commands.add_parser(
        "all",
        help="every benchmark, and one report in Markdown",
        description=f"Runs {names}, and writes one report in Markdown.",
    )
    parser.add_argument("--quick", action="store_true", help="a part of each, two minutes for all of it")
    parser.add_argument(
        "--report", type=Path, metavar="FILE.md", help="write it there (default: print it only)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help=f"for all of them together (default: {BUDGET_MINUTES:.0f}, with --quick {QUICK_BUDGET_MINUTES})",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    budget_s = 60 * (options.budget or (QUICK_BUDGET_MINUTES if options.quick else BUDGET_MINUTES))
    if options.report:  # which had better not fail after an hour
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.touch()
    began_at, load = time.monotonic(), os.getloadavg()
    planned = [each for each in BENCHMARKS if not options.quick or each.quick is not None]
    outcomes: list[Outcome] = []
    for number, benchmark in enumerate(planned):
        shares = [each.quick_share if options.quick else each.share for each in planned[number:]]
        left_s = budget_s - (time.monotonic() - began_at)
        arguments = [*(benchmark.quick or () if options.quick else benchmark.full)]
        if options.report and benchmark.is_drawn:
            arguments += ["--plot", str(picture(options.report, benchmark).absolute())]
        outcomes.append(_outcome(benchmark, arguments, allowance_s(left_s, shares)))
    text = document(outcomes, elapsed_s=time.monotonic() - began_at, budget_s=budget_s, load_before=load)
    if options.report:
        options.report.write_text(text)
        print(f"written to {options.report}")
    return 1 if any(outcome.status for outcome in outcomes) else 0


def allowance_s(left_s: float, shares: Sequence[float]) -> float:
    """What the first of those that are still to come may take: more than its share, as most need less than theirs."""
    return max(0.0, min(left_s, GENEROSITY * left_s * shares[0] / sum(shares)))


def picture(report_file: Path, benchmark: Benchmark) -> Path:
    return report_file.with_name(f"{report_file.stem}-{benchmark.name}.svg")


def _outcome(benchmark: Benchmark, arguments: Sequence[str], left_s: float) -> Outcome:
    command = f"python -m benchmarks {' '.join([benchmark.name, *arguments])}"
    if left_s <= 0:
        return Outcome(benchmark, command)
    print(f"## {benchmark.title}\n\n    {command}\n", flush=True)
    began_at = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", benchmark.name, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C comes from here, once
    )
    printed, complaints = list[str](), list[str]()
    interrupted = threading.Event()
    readers = [
        threading.Thread(target=_copy, args=(source, lines, to, interrupted))
        for source, lines, to in (
            (process.stdout, printed, sys.stdout),
            (process.stderr, complaints, sys.stderr),
        )
    ]
    for reader in readers:
        reader.start()
    status: int | None = None
    try:
        status = process.wait(timeout=left_s)
        for reader in readers:
            reader.join()
    except subprocess.TimeoutExpired:
        pass
    finally:
        interrupted.set()
        _stop(process)
        for reader in readers:
            reader.join()
    return Outcome(
        benchmark, command, "".join(printed), "".join(complaints), time.monotonic() - began_at, status
    )


def _copy(source: TextIO, lines: list[str], to: TextIO, interrupted: threading.Event) -> None:
    """What it complains of when it is interrupted is of no interest; what it has measured by then is."""
    for line in source:
        if to is sys.stdout or not interrupted.is_set():
            lines.append(line)
            to.write(line)
            to.flush()


def _stop(process: "subprocess.Popen[str]") -> None:
    """Interrupt it, so that it stops what it has started."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# The report ----


def document(
    outcomes: Sequence[Outcome],
    *,
    elapsed_s: float,
    budget_s: float,
    load_before: tuple[float, float, float],
) -> str:
    """The whole of it. Figures as they were printed."""
    parts = [
        "# Harmony's benchmarks",
        markdown([("measured on", ""), *_machine(load_before)]),
        markdown([("peer", ""), *_peers()]),
    ]
    minutes, seconds = divmod(round(elapsed_s), 60)
    parts.append(
        "Figures are medians, in parentheses the least and the most of the rounds; servers that are compared take "
        f"turns. Compare within a table, not across tables. All of it took {minutes} min {seconds} s "
        f"(budget {budget_s / 60:.3g} min)."
    )
    taken_out = [taken(outcome.printed) for outcome in outcomes]
    rows = [row for rows, _ in taken_out for row in rows]
    if rows:
        met = sum(row[-1] == MET for row in rows)
        parts += [f"## Targets\n\n{met} of {len(rows)} met.", markdown([COLUMNS, *rows])]
    if not plots.is_available() and any(outcome.benchmark.is_drawn for outcome in outcomes):
        parts.append(f"{plots.MISSING[0].upper()}{plots.MISSING[1:]}.")
    for outcome, (_, printed) in zip(outcomes, taken_out, strict=True):
        parts.append(f"## {outcome.benchmark.title}")
        parts.append(f"```bash\n{outcome.command}\n```")
        if printed.strip():
            parts.append(printed.strip())
        if outcome.complaints.strip():
            parts.append(f"```text\n{outcome.complaints.strip()}\n```")
        parts.append(_ending(outcome))
    return "\n\n".join(parts) + "\n"


def taken(printed: str) -> tuple[list[tuple[str, ...]], str]:
    """The rows of the tables of targets in what a benchmark printed, and the rest of it."""
    rows, rest, lines = list[tuple[str, ...]](), list[str](), iter(printed.splitlines())
    for line in lines:
        if line != HEADING:
            rest.append(line)
            continue
        table = list[tuple[str, ...]]()
        for line in lines:
            if line.startswith("|"):
                table.append(tuple(cell.strip() for cell in line.strip("|").split(" | ")))
            elif table:
                rest.append(line)
                break
        rows += table[2:]  # without its head and the rule
    return rows, "\n".join(rest)


def _ending(outcome: Outcome) -> str:
    if outcome.status is None:
        if not outcome.elapsed_s:
            return "Left out: the time was up."
        return f"Interrupted after {outcome.elapsed_s:.0f} s, as the time was up: what was not printed is missing."
    if outcome.status:
        return f"**Failed** with exit status {outcome.status} after {outcome.elapsed_s:.0f} s."
    return f"{outcome.elapsed_s:.0f} s."


def _machine(load_before: tuple[float, float, float]) -> list[tuple[str, str]]:
    machine = report.machine()
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in machine["packages"].items())
    before, after = (", ".join(f"{value:.1f}" for value in load) for load in (load_before, os.getloadavg()))
    return [
        ("date", machine["date"]),
        ("processor", f"{machine['processor'] or 'unknown'}, {machine['cores']} cores"),
        ("memory", machine["memory"]),
        ("system", machine["system"]),
        ("load before (1, 5, 15 min)", before),
        ("load after", after),
        ("Python", machine["python"]),
        ("packages", packages),
        ("commit", machine["commit"]),
    ]


def _peers() -> list[tuple[str, str]]:
    dcmtk = report.machine()["dcmtk"]
    peers = [
        ("DCMTK storescp", dcmtk if program("storescp") else "missing"),
        ("DCMTK dcmqrscp", dcmtk if program("dcmqrscp") else "missing"),
    ]
    orthanc = program("Orthanc", ORTHANC_PATH)
    peers.append(
        ("Orthanc", report.printed([orthanc, "--version"]).partition("\n")[0] if orthanc else "missing")
    )
    peers.append(("Orthanc's DICOMweb plugin", "missing" if missing("orthanc-dicomweb") else "there"))
    version = report.machine()["packages"]["pynetdicom"]
    peers.append(("pynetdicom", version or "missing"))
    peers.append(("pynetdicom qrscp", "missing" if missing("pynetdicom") else version))
    nginx = program("nginx", NGINX_PATH)
    peers.append(("nginx", _nginx_version(nginx) if nginx else "missing"))
    return peers


def _nginx_version(nginx: str) -> str:
    """It says so on standard error: "nginx version: nginx/1.22.1"."""
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr
    return said.strip().rpartition("/")[2]
