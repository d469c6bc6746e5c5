"""`python -m benchmarks workers`: many associations of small objects into one process, into several, and others.

The receivers take turns, each round in another order; the sender is `preencoded`, one process whose share of the cores
is told as well: on a machine with two, what the sender and the receivers need together decides how much faster two
workers can be than one. `most` is that limit: both cores, divided by all that an object costs, sender included, while
one process alone cannot have more than one core.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure, report
from benchmarks.measure import ObjectsLost
from benchmarks.peers import RECEIVERS, PeerError
from benchmarks.senders import Sender, Sent, flood
from benchmarks.tables import markdown, ratio, spread
from benchmarks.targets import Target, print_targets
from benchmarks.workloads import SIZES, Workload, create

ONE, SEVERAL, FORKING = "harmony", "harmony-workers", "dcmtk-fork"
COMPARED = (ONE, SEVERAL, FORKING, "floor")
CORES = 2
"""That the targets are about."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one receiver did in one round, and what the sender needed for it."""

    run: measure.Run
    sender_cpu_us: float
    """Per object."""

    @property
    def cpu_us(self) -> float:
        """Of the receiver, per object, until the last answer."""
        return self.run.answered_cpu_us_per_object


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "workers",
        help="associations of small objects into one process and into several",
        description="C-STORE over several associations: objects/s and CPU per object, of receivers and sender.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer objects, 3 rounds")
    parser.add_argument("--associations", type=int, default=16)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--objects", type=int, help="per round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="receivers store below this folder (default: temporary)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    rounds = options.rounds or (3 if options.quick else 7)
    size = SIZES[options.size]
    objects = options.objects or (size.quick_objects if options.quick else 2 * size.objects)
    names = [name for name in COMPARED if not RECEIVERS[name].missing()]
    done: list[Round] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="harmony-bench-") as temporary:
        workload = create(size, Path(temporary))
        conditions = measure.Conditions(options.output or Path(temporary), None, warm_up=workload)
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                try:
                    done.append(_round(name, workload, options.associations, objects, conditions))
                except (PeerError, ObjectsLost) as error:
                    failures.append(f"round {turn + 1}: {error}")
    print(f"{options.associations} associations, {workload.data_set_bytes} bytes an object:\n")
    print(_table(done, names), flush=True)
    if options.size == "small":
        print_targets(_targets(done))
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "run"}
        rows = [asdict(each.run) | {"sender_cpu_us": each.sender_cpu_us} for each in done]
        report.write_rows(options.json, rows, options=settings, failures=failures)
    return 1 if failures else 0


def _round(
    name: str, workload: Workload, associations: int, objects: int, conditions: measure.Conditions
) -> Round:
    sender_cpu_us = 0.0

    def send(workload: Workload, port: int, objects: int, associations: int, first_number: int) -> Sent:
        nonlocal sender_cpu_us
        sent = flood(workload, port, objects, associations, first_number)
        sender_cpu_us = sent.cpu_s / objects * 1e6
        return Sent(sent.elapsed_s)

    sender = Sender("preencoded", "pre-encoded", send)
    done = measure.run(
        RECEIVERS[name],
        sender,
        workload,
        associations=associations,
        objects=objects,
        conditions=conditions,
    )
    return Round(done, sender_cpu_us)


def _of(done: Sequence[Round], name: str) -> list[Round]:
    return [each for each in done if each.run.receiver == name]


def _table(done: Sequence[Round], names: Sequence[str]) -> str:
    rows = [
        [
            "receiver",
            "objects/s",
            "/ one process",
            "CPU us/object",
            "with the index",
            "sender us/object",
            "most objects/s",
            "peak MB",
        ]
    ]
    reference = [each.run.objects_per_s for each in _of(done, ONE)]
    for name in names:
        rounds = _of(done, name)
        if not rounds:
            continue
        rates = [each.run.objects_per_s for each in rounds]
        rows.append(
            [
                RECEIVERS[name].title,
                spread(rates),
                ratio(rates, reference) if reference else "",
                spread([each.cpu_us for each in rounds]),
                spread([each.run.cpu_us_per_object for each in rounds]),
                spread([each.sender_cpu_us for each in rounds]),
                f"{_most(name, rounds):.0f}",
                spread([each.run.peak_rss_bytes / 1e6 for each in rounds]),
            ]
        )
    return markdown(rows)


def _most(name: str, rounds: Sequence[Round]) -> float:
    """Objects/s that two cores have room for: all cores for both sides, one for the sender, and for a receiver that is
    one process one as well."""
    receiver = median(each.cpu_us for each in rounds)
    sender = median(each.sender_cpu_us for each in rounds)
    limits = [CORES / (receiver + sender), 1 / sender]
    if not RECEIVERS[name].forks:
        limits.append(1 / receiver)
    return min(limits) * 1e6


def _targets(done: Sequence[Round]) -> list[Target]:
    one, several, forking = _of(done, ONE), _of(done, SEVERAL), _of(done, FORKING)
    targets = []
    for what, others, least in (
        ("objects/s of 2 workers / of one process, 16 associations of 2.4 KB", one, 1.7),
        ("objects/s of 2 workers / DCMTK storescp --fork +B, the same", forking, 1.0),
    ):
        pairs = zip(several, others, strict=False)
        ratios = [ours.run.objects_per_s / other.run.objects_per_s for ours, other in pairs]
        if ratios:
            targets.append(Target(what, median(ratios), least=least, spread=ratios))
    return targets
