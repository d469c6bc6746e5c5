"""What the runs say: a table per sender, size and number of associations, and everything as JSON.

Each figure is the median over the rounds, with the smallest and the largest. The last columns divide a receiver's
median by that of DCMTK (at its best, with TCP_NODELAY, when that ran) and of pynetdicom: `rate` above 1 is faster,
`CPU` below 1 is cheaper.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Run
from benchmarks.peers import RECEIVERS, program
from benchmarks.senders import SENDERS
from benchmarks.tables import markdown, number, spread

DCMTK_REFERENCES = ("dcmtk-nodelay", "dcmtk", "dcmtk-fork")  # the first that ran

Cell = tuple[str, str, int]  # sender, size, associations


def cells(runs: Sequence[Run]) -> dict[Cell, dict[str, list[Run]]]:
    """Runs by cell and then by receiver, in the order in which they first came."""
    grouped: dict[Cell, dict[str, list[Run]]] = {}
    for run in runs:
        by_receiver = grouped.setdefault((run.sender, run.size, run.associations), {})
        by_receiver.setdefault(run.receiver, []).append(run)
    return grouped


def tables(runs: Sequence[Run]) -> str:
    """All cells as text."""
    return "\n\n".join(_table(cell, by_receiver) for cell, by_receiver in cells(runs).items())


def _table(cell: Cell, by_receiver: dict[str, list[Run]]) -> str:
    sender, size, associations = cell
    size_bytes = next(iter(by_receiver.values()))[0].data_set_bytes
    plural = "s" if associations > 1 else ""
    rows = [
        [
            "receiver",
            "rounds",
            "objects/s",
            "MB/s",
            "CPU us/object",
            "until answered",
            "peak MB",
            "/ DCMTK",
            "/ pynetdicom",
        ],
        *(_row(receiver, by_receiver) for receiver in by_receiver),
    ]
    rows = [
        list(row)
        for row in zip(*(column for column in zip(*rows, strict=True) if any(column[1:])), strict=True)
    ]
    title = (
        f"{size} ({size_bytes} bytes), {associations} association{plural}, sender: {SENDERS[sender].title}"
    )
    return f"{title}\n\n{markdown(rows)}"


def _row(receiver: str, by_receiver: dict[str, list[Run]]) -> list[str]:
    runs = by_receiver[receiver]
    references = [name for name in DCMTK_REFERENCES if name in by_receiver][:1]
    return [
        RECEIVERS[receiver].title,
        str(len(runs)),
        spread([run.objects_per_s for run in runs]),
        number(median(run.megabytes_per_s for run in runs)),
        spread([run.cpu_us_per_object for run in runs]),
        number(median(run.answered_cpu_us_per_object for run in runs)),
        f"{max(run.peak_rss_bytes for run in runs) / 1e6:.0f}",
        _ratio(runs, by_receiver[references[0]]) if references else "",
        _ratio(runs, by_receiver["pynetdicom"]) if "pynetdicom" in by_receiver else "",
    ]


def _ratio(runs: Sequence[Run], reference: Sequence[Run]) -> str:
    rate = median(run.objects_per_s for run in runs) / median(run.objects_per_s for run in reference)
    cpu = median(run.cpu_us_per_object for run in runs) / median(run.cpu_us_per_object for run in reference)
    return f"rate {_factor(rate)} CPU {_factor(cpu)}"


def _factor(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": _first("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": _first("/proc/meminfo", "MemTotal"),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in ("harmony-dicom", "uvloop", "pydicom", "pynetdicom")},
        "dcmtk": printed([program("storescp") or "storescp", "--version"]).partition("\n")[0].strip("$ "),
        "commit": printed(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
    }


def write_json(path: Path, runs: Sequence[Run], *, options: dict[str, Any], failures: Sequence[str]) -> None:
    """Everything needed to draw other tables: the machine, the options, every single run."""
    rows = [
        {
            **asdict(run),
            "objects_per_s": run.objects_per_s,
            "megabytes_per_s": run.megabytes_per_s,
            "cpu_us_per_object": run.cpu_us_per_object,
            "answered_cpu_us_per_object": run.answered_cpu_us_per_object,
        }
        for run in runs
    ]
    write_rows(path, rows, options=options, failures=failures)


def write_rows(
    path: Path,
    runs: Sequence[dict[str, Any]],
    *,
    options: dict[str, Any],
    failures: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> None:
    """The same for runs of any kind. more: what else the file is to have."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    content = {"machine": machine(), "options": settings, "failures": list(failures), "runs": list(runs)}
    content |= more or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _first(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def printed(command: list[str]) -> str:
    """Standard output of a program; "" when it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except OSError:
        return ""
