"""Fuzz the targets, one after the other: `python -m tests.fuzz [TARGET ...] [--seconds N] [--rounds N] [--log FOLDER]`.

    python -m tests.fuzz --list               what there is
    python -m tests.fuzz                      every target for a minute
    python -m tests.fuzz pdu --seconds 600    one of them for ten
    python -m tests.fuzz --totals             what has been run in --log, by target
    python -m tests.fuzz --growth             long inputs made of the corpus: time that grows faster than they do

Needs atheris: `pip install .[fuzz]`. Starts from the corpus in the repository and what earlier runs have found; keeps
both in --log, with the inputs that showed a defect in FOLDER/defects/TARGET. Exit status 1 when there was one.
To see what an input does, and for a debugger, without atheris: `python -m tests.fuzz TARGET --input FILE`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import targets  # noqa: F401 - registers them
from tests.fuzz.growth import report_growth
from tests.fuzz.target import TARGETS, Target

_STATUS = re.compile(rb"^#(\d+)\t\S+ +cov: (\d+) ft: (\d+)", re.MULTILINE)
_DONE = re.compile(rb"^stat::number_of_executed_units: +(\d+)", re.MULTILINE)
_PEAK = re.compile(rb"^stat::peak_rss_mb: +(\d+)", re.MULTILINE)


def fuzz(target: Target, log: Path, seconds: int) -> bool:
    """Run one target in a process of its own, and add a line to FOLDER/totals.jsonl. True without a defect."""
    found = log / "corpus" / target.name
    defects = log / "defects" / target.name
    for folder in (found, defects, log / "output"):
        folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "tests.fuzz.engine", target.name, str(found),
        f"-max_total_time={seconds}", f"-max_len={target.maximum_bytes}", f"-timeout={target.seconds}",
        f"-rss_limit_mb={target.memory_mb}", f"-artifact_prefix={defects}/", "-print_final_stats=1",
    ]  # fmt: skip
    if target.corpus.is_dir():
        command.append(str(target.corpus))
    if target.dictionary.is_file():
        command.append(f"-dict={target.dictionary}")
    known = {*defects.iterdir()}
    with open(log / "output" / f"{target.name}.txt", "wb+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    lines = _STATUS.findall(text)
    executions, coverage, features = map(int, lines[-1]) if lines else (0, 0, 0)
    if done := _DONE.search(text):
        executions = int(done[1])
    peak = _PEAK.search(text)
    new = sorted(each.name for each in {*defects.iterdir()} - known)
    line = {
        "target": target.name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu_s": round(usage.ru_utime, 1),
        "executions": executions,
        "coverage": coverage,
        "features": features,
        "peak_mb": int(peak[1]) if peak else usage.ru_maxrss // 1024,
        "status": process.returncode,
        "defects": new,
    }
    with open(log / "totals.jsonl", "a") as totals:
        totals.write(json.dumps(line) + "\n")
    print(
        f"{target.name:18} {usage.ru_utime:7.0f} s CPU {executions:9} inputs {coverage:6} edges",
        *new,
        flush=True,
    )
    if process.returncode and not new:
        print(text[-2000:].decode("utf-8", "replace"))
    return process.returncode == 0


def print_totals(log: Path) -> None:
    rows: dict[str, dict[str, int | float]] = {}
    for line in (log / "totals.jsonl").read_text().splitlines():
        each = json.loads(line)
        row = rows.setdefault(
            each["target"], dict.fromkeys(("cpu_s", "executions", "coverage", "peak_mb", "defects"), 0)
        )
        row["cpu_s"] += each["cpu_s"]
        row["executions"] += each["executions"]
        row["coverage"] = max(row["coverage"], each["coverage"])
        row["peak_mb"] = max(row["peak_mb"], each["peak_mb"])
        row["defects"] += len(each["defects"])
    print(f"{'target':18} {'user CPU s':>10} {'inputs':>10} {'edges':>6} {'peak MB':>8} {'findings':>8}")
    for name, row in sorted(rows.items()):
        print(
            f"{name:18} {row['cpu_s']:10.0f} {row['executions']:10} {row['coverage']:6} {row['peak_mb']:8} "
            f"{row['defects']:8}"
        )
    total = {key: sum(row[key] for row in rows.values()) for key in ("cpu_s", "executions", "defects")}
    print(f"{'all':18} {total['cpu_s']:10.0f} {total['executions']:10} {'':15} {total['defects']:8}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", nargs="*", help="default: all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument(
        "--rounds", type=int, default=1, help="over the targets; 0: until interrupted (default 1)"
    )
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "harmony-fuzz")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--totals", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--input", type=Path, help="give one input to one target, in this process")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.target if name not in TARGETS]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; --list names them")
    chosen = [TARGETS[name] for name in arguments.target or TARGETS]
    if arguments.list:
        for target in chosen:
            print(f"{target.name:18} {(target.function.__doc__ or '').splitlines()[0]}")
        return 0
    if arguments.totals:
        print_totals(arguments.log)
        return 0
    if arguments.growth:
        return 0 if report_growth(chosen) else 1
    if arguments.input is not None:
        for target in chosen:
            target(arguments.input.read_bytes())
        return 0
    clean = True
    rounds = 0
    while arguments.rounds == 0 or rounds < arguments.rounds:
        rounds += 1
        for target in chosen:
            clean &= fuzz(target, arguments.log, arguments.seconds)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
