"""`python -m benchmarks growth`: what an object costs as the archive grows, and as more associations are open.

Objects: small ones, OBJECTS_PER_STUDY to a study and a patient, are stored until there are as many as asked for. After
each step the archive is asked for studies by Patient ID. The first query is answered when all of the step is in the
index, and what a step cost is the gateway's CPU until then. Minutes of a machine differ: so after each step another
gateway, that has nothing yet, is given YOUNG_OBJECTS, and what counts is the ratio.

Associations: with 1, 10, 100 and 1000 open, the same number of objects comes over one of them while the others are
idle, and over all of them at once. Counts take turns, round after round; the associations are open before the clock
starts.

A million objects take some 6 GB in memory (`--output /dev/shm`, where a file takes a page and its inode). `--json FILE`
keeps every step, `--from FILE` makes tables and pictures of such a file again.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

from benchmarks import plots, report
from benchmarks.measure import check_room, cpu_at_rest_s, memory_bytes
from benchmarks.peers import CALLED_AE_TITLE, PeerError, Place, Receiver, free_port, harmony, running
from benchmarks.preencoded import Sender, SendError
from benchmarks.querying import QueryError, ask, indexed_cpu_s, studies_of
from benchmarks.tables import markdown, number, spread
from benchmarks.targets import Target, print_targets
from benchmarks.workloads import SIZES, Workload, create, patient_id

OBJECTS = 1_000_000
QUICK_OBJECTS = 20_000
OBJECTS_PER_STUDY = 100
OBJECT_BYTES = 6144  # of memory or disk, index included
SENDING = 4
"""Associations that fill the archive."""
FIRST_STEPS = (1_000, 2_000, 5_000, 10_000)
STEP = 25_000
YOUNG_OBJECTS = 2500
QUERIES = 200
ASSOCIATIONS = 1000
ROUND_OBJECTS = 4000
MOST_COST = 1.2
"""The last tenth against the second, and every number of associations against one."""
MOST_LATENCY_MS = 5.0

HARMONY = Receiver("harmony", "Harmony", harmony())


@dataclass(frozen=True, slots=True)
class Step:
    """What storing some more objects cost, and a query after it."""

    objects: int
    """In the archive after it."""
    sent: int
    elapsed_s: float
    cpu_us_per_object: float
    young_cpu_us_per_object: float
    """Of a gateway with an empty archive, right after it."""
    rss_bytes: int
    query_p50_ms: float
    query_p95_ms: float

    @property
    def ratio(self) -> float:
        return self.cpu_us_per_object / self.young_cpu_us_per_object


@dataclass(frozen=True, slots=True)
class Round:
    """What the same objects cost with so many associations open."""

    open: int
    sending: int
    """Associations that they came over: 1, or all."""
    objects: int
    elapsed_s: float
    cpu_us_per_object: float
    rss_bytes: int


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "growth",
        help="cost per object from the first to the millionth, and from 1 association to 1000",
        description="Cost per object while the archive grows, and with more and more associations open.",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_OBJECTS} objects, 100 associations, fewer rounds"
    )
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=["objects", "associations"],
        help="of objects,associations",
    )
    parser.add_argument("--objects", type=int, help=f"in the archive at the end (default: {OBJECTS})")
    parser.add_argument("--associations", type=int, help=f"open at most (default: {ASSOCIATIONS})")
    parser.add_argument("--rounds", type=int, help="of the part with associations (default: 5)")
    parser.add_argument("--output", type=Path, help="the archive is below this folder (default: temporary)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every step to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw them (needs matplotlib)")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="source", help="of an earlier run: do not measure"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    steps, rounds, failures = list[Step](), list[Round](), list[str]()
    if options.source:
        content = json.loads(options.source.read_text())
        steps = [Step(**row) for row in content["runs"]]
        rounds = [Round(**row) for row in content["rounds"]]
    else:
        objects = options.objects or (QUICK_OBJECTS if options.quick else OBJECTS)
        most = options.associations or (ASSOCIATIONS // 10 if options.quick else ASSOCIATIONS)
        turns = options.rounds or (2 if options.quick else 5)
        try:
            with tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary:
                if "objects" in options.parts:
                    for step in grow(Path(temporary) / "objects", objects):
                        steps.append(step)
                        print(_progress(step), file=sys.stderr, flush=True)
                if "associations" in options.parts:
                    rounds += crowd(Path(temporary) / "associations", counts(most), turns=turns)
        except (PeerError, SendError, QueryError, OSError) as error:
            failures.append(str(error))
        finally:
            if options.json:
                settings = {"objects": objects, "associations": most, "rounds": turns}
                more = {"rounds": [asdict(each) for each in rounds]}
                rows = [asdict(step) for step in steps]
                report.write_rows(options.json, rows, options=settings, failures=failures, more=more)
    print("\n\n".join(filter(None, (_steps_text(steps), _rounds_text(rounds)))))
    if options.plot:
        print(f"\n{draw(steps, rounds, options.plot)}")
    print_targets([*step_targets(steps), *round_targets(rounds)])
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


# Measuring ----


def points(objects: int) -> list[int]:
    """How many objects there are after each step."""
    found = [count for count in FIRST_STEPS if count < objects]
    return [*found, *range(STEP, objects, STEP), objects]


def counts(most: int) -> list[int]:
    """Powers of ten up to it, and itself."""
    found = [10**power for power in range(len(str(most))) if 10**power < most]
    return [*found, most]


def grow(folder: Path, objects: int) -> Iterator[Step]:
    """Fill an archive, step by step."""
    folder.mkdir()
    check_room(folder, objects * OBJECT_BYTES)
    workload = create(SIZES["small"], folder, of_many_studies=True)
    place = _place(folder)
    random = Random(6)
    with running(HARMONY, place) as pid:
        sender = _sender(place, workload)
        sender.flood(OBJECTS_PER_STUDY, associations=1, first_number=0)  # imports, first allocations
        stored = OBJECTS_PER_STUDY
        cpu_s = indexed_cpu_s(place.port, pid)
        for point in points(objects):
            flood = sender.flood(point - stored, associations=SENDING, first_number=stored)
            sent, stored = point - stored, point
            cost = (indexed_cpu_s(place.port, pid) - cpu_s) / sent * 1e6
            asked = ask(place.port, [_identifier(random, stored) for _ in range(QUERIES)], associations=1)
            if asked.matches != QUERIES:
                raise PeerError(f"{QUERIES} queries have {asked.matches} matches, {QUERIES} expected")
            cpu_s = cpu_at_rest_s(pid)
            yield Step(
                stored,
                sent,
                flood.elapsed_s,
                cost,
                _young_cost(folder, workload),
                memory_bytes(pid, "VmRSS"),
                median(asked.last_s) * 1e3,
                quantiles(asked.last_s, n=20)[-1] * 1e3,
            )


def crowd(folder: Path, numbers: Sequence[int], *, turns: int) -> Iterator[Round]:
    """The same objects with so many associations open: over one of them, and over all of them."""
    folder.mkdir()
    check_room(folder, 2 * turns * len(numbers) * ROUND_OBJECTS * OBJECT_BYTES)
    workload = create(SIZES["small"], folder, of_many_studies=True)
    place = _place(folder)
    options = f"max_associations = {max(numbers) + 16}"
    with running(Receiver("harmony", "Harmony", harmony(options=options)), place) as pid:
        sender = _sender(place, workload)
        sender.flood(OBJECTS_PER_STUDY, associations=1, first_number=0)
        first_number = OBJECTS_PER_STUDY
        for turn in range(turns):
            for count in [*numbers[turn % len(numbers) :], *numbers[: turn % len(numbers)]]:
                opened = sender.open(count)
                for sending in sorted({1, count}):
                    # Each of them has sent before the clock starts.
                    sender.send(opened[:sending], sending, first_number=first_number)
                    first_number += sending
                    cpu_before_s = indexed_cpu_s(place.port, pid)
                    flood = sender.send(opened[:sending], ROUND_OBJECTS, first_number=first_number)
                    first_number += ROUND_OBJECTS
                    cost = (indexed_cpu_s(place.port, pid) - cpu_before_s) / ROUND_OBJECTS * 1e6
                    rss_bytes = memory_bytes(pid, "VmRSS")
                    yield Round(count, sending, ROUND_OBJECTS, flood.elapsed_s, cost, rss_bytes)
                sender.release(opened)


def _young_cost(folder: Path, workload: Workload) -> float:
    """CPU per object of a gateway that is new, in microseconds."""
    with tempfile.TemporaryDirectory(prefix="young-", dir=folder) as temporary:
        place = _place(Path(temporary))
        with running(HARMONY, place) as pid:
            sender = _sender(place, workload)
            sender.flood(OBJECTS_PER_STUDY, associations=1, first_number=0)
            cpu_s = indexed_cpu_s(place.port, pid)
            sender.flood(YOUNG_OBJECTS, associations=SENDING, first_number=OBJECTS_PER_STUDY)
            return (indexed_cpu_s(place.port, pid) - cpu_s) / YOUNG_OBJECTS * 1e6


def _sender(place: Place, workload: Workload) -> Sender:
    return Sender(
        ("127.0.0.1", place.port),
        workload,
        called_ae_title=CALLED_AE_TITLE,
        objects_per_study=OBJECTS_PER_STUDY,
    )


def _place(folder: Path) -> Place:
    objects = folder / "objects"
    objects.mkdir()
    return Place(free_port(), objects, folder, None)


def _identifier(random: Random, stored: int) -> bytes:
    return studies_of(patient_id(random.randrange(stored // OBJECTS_PER_STUDY)))


def _progress(step: Step) -> str:
    return (
        f"{step.objects:8d} objects  {step.cpu_us_per_object:.0f} us/object, {step.ratio:.2f} x an empty archive  "
        f"{step.sent / step.elapsed_s:.0f} objects/s  {step.rss_bytes / 1e6:.1f} MB  "
        f"query {step.query_p50_ms:.2f} ms"
    )


# What was measured ----


def tenth(steps: Sequence[Step], number: int) -> list[Step]:
    """The steps that ended in that tenth of the archive (1 is the first), small first steps left out."""
    most = steps[-1].objects
    return [
        step
        for step in steps
        if most * (number - 1) / 10 < step.objects <= most * number / 10 and step.objects >= FIRST_STEPS[0]
    ]


def step_targets(steps: Sequence[Step]) -> list[Target]:
    if not steps or not (second := tenth(steps, 2)) or not (last := tenth(steps, 10)):
        return []
    title = f"growth to {steps[-1].objects} objects"
    costs = [[step.ratio for step in part] for part in (second, last)]
    return [
        Target(
            f"{title}: CPU per object (of an empty archive's, right after), last tenth / second",
            median(costs[1]) / median(costs[0]),
            most=MOST_COST,
        ),
        Target(
            f"{title}: C-FIND by Patient ID, p50, last tenth",
            median(step.query_p50_ms for step in last),
            most=MOST_LATENCY_MS,
            unit="ms",
        ),
    ]


def _costs(rounds: Sequence[Round], count: int, *, over_all: bool) -> list[float]:
    return [
        each.cpu_us_per_object
        for each in rounds
        if each.open == count and each.sending == (count if over_all else 1)
    ]


def round_targets(rounds: Sequence[Round]) -> list[Target]:
    if not rounds:
        return []
    most, alone = max(each.open for each in rounds), _costs(rounds, 1, over_all=True)
    found = []
    for over_all, title in ((False, "1 sending, the others idle"), (True, "all sending")):
        its = _costs(rounds, most, over_all=over_all)
        pairs = [cost / one for cost, one in zip(its, alone, strict=False)]
        what = f"growth: CPU per object, {most} associations open, {title} / 1 open"
        found.append(Target(what, median(pairs), most=MOST_COST, spread=pairs))
    return found


def _steps_text(steps: Sequence[Step]) -> str:
    if not steps:
        return ""
    rows = [
        [
            "objects stored",
            "CPU us/object",
            "/ empty archive",
            "objects/s",
            "by Patient ID, ms p50 / p95",
            "resident MB",
        ],
    ]
    parts = [(f"{step.objects}", [step]) for step in steps if step.objects < steps[-1].objects / 10]
    parts += [(_range(part), part) for n in range(2, 11) if (part := tenth(steps, n))]
    for title, part in parts:
        p50, p95 = (median(getattr(step, f"query_{name}_ms") for step in part) for name in ("p50", "p95"))
        rows.append(
            [
                title,
                spread([step.cpu_us_per_object for step in part]),
                spread([step.ratio for step in part]),
                spread([step.sent / step.elapsed_s for step in part]),
                f"{number(p50)} / {number(p95)}",
                number(part[-1].rss_bytes / 1e6),
            ]
        )
    return markdown(rows)


def _range(part: Sequence[Step]) -> str:
    first = part[0].objects - part[0].sent
    return f"{first}-{part[-1].objects}"


def _rounds_text(rounds: Sequence[Round]) -> str:
    if not rounds:
        return ""
    rows = [["open associations", "1 sending, CPU us/object", "all sending, CPU us/object", "resident MB"]]
    for count in sorted({each.open for each in rounds}):
        rows.append(
            [
                str(count),
                spread(_costs(rounds, count, over_all=False)),
                spread(_costs(rounds, count, over_all=True)),
                number(max(each.rss_bytes for each in rounds if each.open == count) / 1e6),
            ]
        )
    return markdown(rows)


def draw(steps: Sequence[Step], rounds: Sequence[Round], path: Path) -> str:
    """What was said of it: see `plots.draw`. Associations go into a picture of their own, NAME-associations."""
    said = []
    if steps:
        lines = {
            "C-FIND by Patient ID, ms (p50)": [(step.objects, step.query_p50_ms) for step in steps],
            "resident memory, MB": [(step.objects, step.rss_bytes / 1e6) for step in steps],
        }
        costs = {
            "this archive": [(step.objects, step.cpu_us_per_object) for step in steps],
            "an empty one": [(step.objects, step.young_cpu_us_per_object) for step in steps],
        }
        panels = [plots.Panel("CPU of the gateway, us per object", costs)]
        panels += [plots.Panel(title, {"": line}) for title, line in lines.items()]
        said.append(plots.draw(path, panels, title="As the archive grows", x_label="objects stored"))
    if rounds:
        numbers = sorted({each.open for each in rounds})
        crowded = {
            title: [(float(count), median(_costs(rounds, count, over_all=over_all))) for count in numbers]
            for over_all, title in ((False, "1 sending"), (True, "all sending"))
        }
        said.append(
            plots.draw(
                path.with_stem(f"{path.stem}-associations"),
                [plots.Panel("CPU of the gateway, us per object", crowded)],
                title="As more associations are open",
                x_label="open associations",
                is_x_logarithmic=True,
            )
        )
    return "\n\n".join(dict.fromkeys(said))
