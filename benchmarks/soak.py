"""`python -m benchmarks soak`: an hour of a steady mixture of everything, and whether anything grows but the archive.

A `python -m harmony` with archive, index, DICOMweb and metrics; `mixture` says what comes to it, one round after the
other at a fixed rate. Every SAMPLE_S seconds: CPU of the gateway per object stored (everything else that the round
asks included), resident memory, descriptors, threads, how late its event loop is, and latencies by kind of operation.

At the end the archive is asked by C-FIND what it has, and compared with what was acknowledged. A line fitted through
the samples after the first third (caches fill in it) says what grows. Harmony removes nothing, so objects are small:
an hour at the default rate takes some 3.6 GB.

`--json FILE` keeps every sample; `--from FILE` makes tables and pictures of such a file again.
"""

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, mean, median, quantiles
from typing import Any

from benchmarks import plots, report
from benchmarks.measure import check_room, memory_bytes, tree_cpu_s
from benchmarks.mixture import KINDS, OBJECTS, ROUND_BYTES, Mixture
from benchmarks.peers import MANAGEMENT_CONFIGURATION, PeerError, Place, Receiver, free_port, harmony, running
from benchmarks.tables import markdown, number
from benchmarks.targets import Target, print_targets

SAMPLE_S = 10.0
RATE = 80.0  # objects/s: one round of the mixture
MINUTES = 60.0
MOST_FAILURES = 50  # then it is pointless to go on
SETTLING = 1 / 3
"""Of the samples, before what grows counts: at the default rate the page caches of the index, 32 MiB for each of its
connections, are full after some 20 minutes."""
LEAST_SAMPLES = 8
LEAST_MINUTES = 45.0
"""Before that memory grows because caches fill, and there is no target for it."""

MOST_RISE = 0.05
"""Of the median, over all of the fitted line, for memory: what an allocator may waste while it finds its size."""
MOST_DESCRIPTORS_RISE = 2.0
MOST_COST = 1.2
"""The last quarter's CPU per object against the second's, as medians."""

LAG_SUM, LAG_COUNT = "harmony_event_loop_lag_seconds_sum", "harmony_event_loop_lag_seconds_count"

HARMONY = Receiver("harmony", "Harmony", harmony(more=MANAGEMENT_CONFIGURATION), pattern="**/*.dcm")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment, and since the one before."""

    at_s: float
    """Since the first round began."""
    objects: int
    cpu_us_per_object: float
    rss_bytes: int
    descriptors: int
    threads: int
    lag_ms: float
    """The mean."""
    latency_ms: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    """By kind: p50, p95, how many."""


@dataclass(slots=True)
class Soak:
    """One whole run, as it is kept in a file."""

    samples: list[Sample] = field(default_factory=list)
    acknowledged: int = 0
    lost: int = -1
    """Acknowledged and not there at the end; -1: not looked."""
    failures: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """Studies that have more, or fewer, objects than were acknowledged."""
    complaints: list[str] = field(default_factory=list)
    """Lines of the gateway's log: warnings and errors."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "soak",
        help="an hour of everything: whether cost, memory or descriptors grow",
        description="A steady mixture of stores, queries, retrieves and clients that leave; samples every 10 seconds.",
    )
    parser.add_argument("--minutes", type=float, help=f"how long (default: {MINUTES:.0f})")
    parser.add_argument(
        "--rate", type=float, default=RATE, help=f"objects stored in a second (default: {RATE:.0f})"
    )
    parser.add_argument("--quick", action="store_true", help="one minute, more samples")
    parser.add_argument("--output", type=Path, help="the archive is below this folder (default: temporary)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw them (needs matplotlib)")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="source", help="of an earlier run: do not measure"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.source:
        soak = loaded(options.source)
    else:
        minutes = options.minutes or (1.0 if options.quick else MINUTES)
        sample_s = min(SAMPLE_S, minutes * 60 / (3 * LEAST_SAMPLES))
        soak = Soak()
        try:
            with tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary:
                _measure(soak, Path(temporary), duration_s=minutes * 60, rate=options.rate, sample_s=sample_s)
        except PeerError as error:
            soak.failures.append(str(error))
        finally:
            if options.json:
                settings = {"minutes": minutes, "rate": options.rate}
                rows = [asdict(sample) for sample in soak.samples]
                report.write_rows(
                    options.json, rows, options=settings, failures=soak.failures, more=_rest(soak)
                )
    print(_text(soak))
    if options.plot:
        print(f"\n{draw(soak, options.plot)}")
    print_targets(targets(soak))
    for failure in soak.failures[:MOST_FAILURES]:
        print(f"FAILED {failure}", file=sys.stderr)
    for sentence in soak.odd[:MOST_FAILURES]:
        print(f"FAILED {sentence}", file=sys.stderr)
    return 1 if soak.failures or soak.odd or soak.lost else 0


# Measuring ----


def _measure(soak: Soak, folder: Path, *, duration_s: float, rate: float, sample_s: float) -> None:
    check_room(folder, round(duration_s * rate / OBJECTS * ROUND_BYTES))
    objects = folder / "objects"
    objects.mkdir()
    place = Place(free_port(), objects, folder, None, http_port=free_port())
    try:
        with running(HARMONY, place) as pid:
            mixture = Mixture(folder, port=place.port, http_port=place.http_port)
            try:
                asyncio.run(_soak(soak, mixture, pid, duration_s=duration_s, rate=rate, sample_s=sample_s))
            finally:
                soak.acknowledged = mixture.acknowledged
                soak.failures += mixture.failures
    finally:
        soak.complaints += _complaints(folder / "log")
        shutil.rmtree(objects)


async def _soak(
    soak: Soak, mixture: Mixture, pid: int, *, duration_s: float, rate: float, sample_s: float
) -> None:
    sampler = _Sampler(mixture, pid)
    await mixture.round(0)  # imports, first allocations
    await sampler.begin()
    began = time.monotonic()
    next_sample_at, told_at = began + sample_s, began
    rounds = 0
    while (now := time.monotonic()) < began + duration_s and len(mixture.failures) < MOST_FAILURES:
        rounds += 1
        await mixture.round(rounds)
        if time.monotonic() >= next_sample_at:
            soak.samples.append(await sampler.sample())
            next_sample_at = time.monotonic() + sample_s
            if now >= told_at + 60 or len(soak.samples) == 1:
                told_at = now
                print(_progress(soak.samples[-1], mixture), file=sys.stderr, flush=True)
        # At a fixed rate; what is late by more than a round is not made good, or it would come in a flood.
        due = max(began + rounds * OBJECTS / rate, now)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    soak.lost, soak.odd = await mixture.missing_from()


class _Sampler:
    def __init__(self, mixture: Mixture, pid: int) -> None:
        self._mixture, self._pid = mixture, pid
        self._began = 0.0
        self._cpu_s = 0.0
        self._objects = 0
        self._lag = (0.0, 0.0)

    async def begin(self) -> None:
        self._began = time.monotonic()
        await self.sample()

    async def sample(self) -> Sample:
        mixture, pid = self._mixture, self._pid
        latencies, mixture.latencies_s = mixture.latencies_s, {kind: [] for kind in KINDS}
        cpu_s, acknowledged = tree_cpu_s(pid), mixture.acknowledged
        objects = acknowledged - self._objects
        lag = lag_of(await mixture.metrics())
        late_s, times = lag[0] - self._lag[0], lag[1] - self._lag[1]
        sample = Sample(
            time.monotonic() - self._began,
            objects,
            (cpu_s - self._cpu_s) / objects * 1e6 if objects else 0.0,
            memory_bytes(pid, "VmRSS"),
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
            len(list(Path(f"/proc/{pid}/task").iterdir())),
            late_s / times * 1e3 if times else 0.0,
            {kind: _latency(values) for kind, values in latencies.items() if values},
        )
        self._cpu_s, self._objects, self._lag = cpu_s, acknowledged, lag
        return sample


def _latency(values_s: Sequence[float]) -> tuple[float, float, int]:
    p95 = quantiles(values_s, n=20)[-1] if len(values_s) > 1 else values_s[0]
    return median(values_s) * 1e3, min(p95, max(values_s)) * 1e3, len(values_s)


def lag_of(metrics: str) -> tuple[float, float]:
    """Sum and count of the gateway's loop lag, out of an answer in the text format of Prometheus."""
    found = {}
    for name in (LAG_SUM, LAG_COUNT):
        match = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
        if match is None:
            raise PeerError(f"/metrics has no {name}")
        found[name] = float(match[1])
    return found[LAG_SUM], found[LAG_COUNT]


def _complaints(log: Path) -> list[str]:
    text = log.read_text(errors="replace") if log.exists() else ""
    return [line for line in text.splitlines() if re.search(r" (WARNING|ERROR|CRITICAL) |^Traceback", line)]


def _progress(sample: Sample, mixture: Mixture) -> str:
    return (
        f"{sample.at_s / 60:5.1f} min  {mixture.acknowledged} objects  "
        f"{sample.cpu_us_per_object:.0f} us/object  {sample.rss_bytes / 1e6:.1f} MB  "
        f"{sample.descriptors} descriptors  {sample.threads} threads  {len(mixture.failures)} failures"
    )


# What was measured ----


def _rest(soak: Soak) -> dict[str, Any]:
    kept = ("acknowledged", "lost", "odd", "complaints")
    return {name: getattr(soak, name) for name in kept}


def loaded(path: Path) -> Soak:
    """A run that was written with --json."""
    content = json.loads(path.read_text())
    names = [each.name for each in fields(Sample)]
    samples = [Sample(**{name: row[name] for name in names}) for row in content["runs"]]
    rest = {name: content[name] for name in ("acknowledged", "lost", "odd", "complaints")}
    return Soak(samples, failures=content["failures"], **rest)


def settled(samples: Sequence[Sample]) -> Sequence[Sample]:
    return samples[int(len(samples) * SETTLING) :]


def rise(samples: Sequence[Sample], values: Sequence[float]) -> float:
    """How much a line through the values, fitted by least squares, rises from the first of the samples to the last."""
    times = [sample.at_s for sample in samples]
    return linear_regression(times, values).slope * (times[-1] - times[0])


def targets(soak: Soak) -> list[Target]:
    found = []
    if soak.lost >= 0:
        what = f"soak: objects lost of {soak.acknowledged} acknowledged"
        found.append(Target(what, soak.lost, most=0, unit="objects"))
        found.append(Target("soak: operations that failed", len(soak.failures), most=0, unit="operations"))
    samples = settled(soak.samples)
    if len(samples) < LEAST_SAMPLES:
        return found
    minutes = (samples[-1].at_s - samples[0].at_s) / 60
    if soak.samples[-1].at_s >= LEAST_MINUTES * 60:
        memory = [sample.rss_bytes / 1e6 for sample in samples]
        what = (
            f"soak: resident memory ({median(memory):.0f} MB), rise of the fitted line over {minutes:.0f} min"
        )
        most = round(median(memory) * MOST_RISE, 1)
        found.append(Target(what, rise(samples, memory), most=most, unit="MB"))
    for name in ("descriptors", "threads"):
        values: list[float] = [getattr(sample, name) for sample in samples]
        what = f"soak: {name} ({median(values):.0f}), rise of the fitted line over {minutes:.0f} min"
        found.append(Target(what, rise(samples, values), most=MOST_DESCRIPTORS_RISE, unit=name))
    quarters = _quarters(soak.samples)
    second, last = (median(sample.cpu_us_per_object for sample in quarters[n]) for n in (1, 3))
    found.append(Target("soak: CPU per object, last quarter / second", last / second, most=MOST_COST))
    return found


def _text(soak: Soak) -> str:
    lost = f"{soak.lost} of them lost" if soak.lost >= 0 else "not counted at the end"
    text = [
        f"{soak.acknowledged} objects acknowledged, {lost}; {len(soak.failures)} operations failed; "
        f"{len(soak.complaints)} warnings and errors in the gateway's log."
    ]
    quarters = _quarters(soak.samples)
    if not all(quarters):
        return text[0]
    head = ["", *(f"{part[0].at_s / 60:.1f}-{part[-1].at_s / 60:.1f} min" for part in quarters)]
    rows = [head]
    for title, value in _FIGURES.items():
        rows.append([title, *(number(mean(value(sample) for sample in part)) for part in quarters)])
    for kind in KINDS:
        cells = []
        for part in quarters:
            seen = [sample.latency_ms[kind] for sample in part if kind in sample.latency_ms]
            p50, p95 = ([each[n] for each in seen] for n in (0, 1))
            cells.append(f"{number(median(p50))} / {number(median(p95))}" if seen else "")
        rows.append([f"{kind}, ms p50 / p95", *cells])
    text.append(markdown(rows))
    text += [f"- `{line}`" for line in soak.complaints[:5]]
    return "\n\n".join(text[:2]) + "".join(f"\n{line}" for line in text[2:])


_FIGURES: dict[str, Callable[[Sample], float]] = {
    "CPU us/object": lambda sample: sample.cpu_us_per_object,
    "resident MB": lambda sample: sample.rss_bytes / 1e6,
    "descriptors": lambda sample: sample.descriptors,
    "threads": lambda sample: sample.threads,
    "loop lag, ms": lambda sample: sample.lag_ms,
}


def _quarters(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    bounds = [len(samples) * n // 4 for n in range(5)]
    return [samples[first:last] for first, last in pairwise(bounds)]


def draw(soak: Soak, path: Path) -> str:
    """What was said of it: see `plots.draw`."""
    samples = soak.samples

    def line(value: Callable[[Sample], float]) -> list[tuple[float, float]]:
        return [(sample.at_s / 60, value(sample)) for sample in samples]

    latencies = {
        kind: [
            (sample.at_s / 60, sample.latency_ms[kind][0]) for sample in samples if kind in sample.latency_ms
        ]
        for kind in KINDS
    }
    panels = [
        plots.Panel("CPU of the gateway, us per object stored", {"": line(_FIGURES["CPU us/object"])}),
        plots.Panel("resident memory, MB", {"": line(_FIGURES["resident MB"])}),
        plots.Panel(
            "descriptors and threads",
            {name: line(_FIGURES[name]) for name in ("descriptors", "threads")},
        ),
        plots.Panel("latency, ms (p50 of ten seconds)", latencies, is_logarithmic=True),
    ]
    return plots.draw(path, panels, title="A steady mixture of everything", x_label="minutes")
