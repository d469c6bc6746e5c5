"""`python -m benchmarks all`: every benchmark, one after the other, into one Markdown report.

Each runs as a process of its own, as it would by itself, and its tables (medians, in parentheses the least and the
most, ratios to the peers) go into the report as they are printed. In front stands what they were measured on: the
machine, versions, and which peers were there and which were missing.

`--quick` is a part of each, chosen for two minutes of an idle machine with two cores: the comparison that says most. It
has a limit: what has not ended by then is interrupted, and the report has what was measured before, and says so.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks import report
from benchmarks.archives import ORTHANC_PATH, missing
from benchmarks.peers import program
from benchmarks.tables import markdown
from benchmarks.web_peers import NGINX_PATH

ROOT = Path(__file__).parent.parent
QUICK_LIMIT_S = 105.0  # two minutes with what follows
STOP_S = 15.0  # to stop its servers and to remove what it wrote


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One of the others, and what of it `--quick` contains."""

    name: str
    title: str
    quick: tuple[str, ...]


SLOW_QUERIES = ("--small-studies", "100", "--queries", "10")  # dcmqrscp takes tens of milliseconds for each

BENCHMARKS = (
    Benchmark(
        "store",
        "Receiving: C-STORE",
        (
            *("--quick", "--sizes", "small,ct", "--associations", "1", "--rounds", "2"),
            *("--receivers", "harmony,dcmtk-nodelay,floor", "--output", "/dev/shm"),
        ),
    ),
    Benchmark("send", "Sending: C-STORE", ("--quick", "--whats", "ct", "--rounds", "2")),
    Benchmark(
        "retrieve",
        "Retrieving: C-GET",
        (
            *("--quick", "--services", "get", "--whats", "study", "--rounds", "2"),
            *("--archives", "harmony,orthanc,dcmqrscp"),
        ),
    ),
    Benchmark(
        "proxy",
        "In front of a PACS: C-GET",
        ("--quick", "--pacs", "harmony", "--whats", "study", "--rounds", "2"),
    ),
    Benchmark(
        "workers",
        "Receiving with several processes",
        ("--quick", "--rounds", "1", "--output", "/dev/shm"),
    ),
    Benchmark("dicomweb", "DICOMweb", ("--quick", "--parts", "study", "--rounds", "2")),
    Benchmark("http", "HTTP, beside nginx", ("--quick", "--parts", "bodies", "--rounds", "2")),
    Benchmark("jmix", "To a JMIX upstream", ("--quick", "--parts", "zip,latency", "--rounds", "2")),
    Benchmark(
        "find",
        "Querying: C-FIND",
        ("--quick", "--parts", "small", "--archives", "harmony,dcmqrscp", "--rounds", "2", *SLOW_QUERIES),
    ),
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
    parser = commands.add_parser(
        "all",
        help="every benchmark, and one report in Markdown",
        description="Runs every benchmark of BENCHMARKS, and writes one report in Markdown.",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"a part of each, and no more than {QUICK_LIMIT_S:.0f} seconds"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.md", help="write it there (default: print it only)"
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help="for all of them together (default: --quick's, or none)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    limit_s = options.limit or (QUICK_LIMIT_S if options.quick else None)
    if options.report:  # which had better not fail after an hour
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.touch()
    began_at = time.monotonic()
    outcomes: list[Outcome] = []
    for benchmark in BENCHMARKS:
        arguments = benchmark.quick if options.quick else ()
        left_s = None if limit_s is None else limit_s - (time.monotonic() - began_at)
        outcomes.append(_outcome(benchmark, arguments, left_s))
    text = document(outcomes, began_at=began_at, limit_s=limit_s)
    if options.report:
        options.report.write_text(text)
        print(f"written to {options.report}")
    return 1 if any(outcome.status for outcome in outcomes) else 0


def _outcome(benchmark: Benchmark, arguments: Sequence[str], left_s: float | None) -> Outcome:
    command = f"python -m benchmarks {' '.join([benchmark.name, *arguments])}"
    if left_s is not None and left_s <= 0:
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
    """What it says about being interrupted is of no interest."""
    for line in source:
        if not interrupted.is_set():
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


def document(outcomes: Sequence[Outcome], *, began_at: float, limit_s: float | None) -> str:
    """The whole of it. Figures as they were printed."""
    parts = [
        "# Harmony's benchmarks",
        markdown([("measured on", ""), *_machine()]),
        markdown([("peer", ""), *_peers()]),
    ]
    minutes, seconds = divmod(round(time.monotonic() - began_at), 60)
    limit = f" (limit {limit_s:.0f} s)" if limit_s is not None else ""
    parts.append(
        "Figures are medians, in parentheses the least and the most of the rounds; servers that are compared take "
        f"turns. Compare within a table, not across tables. All of it took {minutes} min {seconds} s{limit}."
    )
    for outcome in outcomes:
        parts.append(f"## {outcome.benchmark.title}")
        parts.append(f"```bash\n{outcome.command}\n```")
        if outcome.printed.strip():
            parts.append(outcome.printed.strip())
        if outcome.complaints.strip():
            parts.append(f"```text\n{outcome.complaints.strip()}\n```")
        parts.append(_ending(outcome))
    return "\n\n".join(parts) + "\n"


def _ending(outcome: Outcome) -> str:
    if outcome.status is None:
        if not outcome.elapsed_s:
            return "Left out: the time was up."
        return f"Interrupted after {outcome.elapsed_s:.0f} s, as the time was up: what was not printed is missing."
    if outcome.status:
        return f"**Failed** with exit status {outcome.status} after {outcome.elapsed_s:.0f} s."
    return f"{outcome.elapsed_s:.0f} s."


def _machine() -> list[tuple[str, str]]:
    machine = report.machine()
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in machine["packages"].items())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        ("date", machine["date"]),
        ("processor", f"{machine['processor'] or 'unknown'}, {machine['cores']} cores"),
        ("memory", machine["memory"]),
        ("system", machine["system"]),
        ("load at the end (1, 5, 15 min)", load),
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
    peers.append(("nginx", "there" if program("nginx", NGINX_PATH) else "missing"))
    peers.append(("pynetdicom qrscp", "missing" if missing("pynetdicom") else "there"))
    return peers
