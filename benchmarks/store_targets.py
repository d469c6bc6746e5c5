"""What receiving was promised to cost: CPU per object of the receiver, against the floor and against DCMTK.

Ratios are those of the same round, in which receivers take turns, and their median is what counts. With an index it is
what was spent until the last answer, and in a line of its own with the indexing that follows.
"""

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.measure import Run
from benchmarks.targets import Target

__all__ = ["store_targets"]

FLOOR_LIMITS = {"small": 1.3, "ct": 1.1, "multiframe": 1.1}
DCMTK_LIMIT = 1.0

Cost = Callable[[Run], float]
_answered: Cost = lambda run: run.answered_cpu_s / run.objects  # noqa: E731
_all: Cost = lambda run: run.cpu_s / run.objects  # noqa: E731
COSTS: tuple[tuple[str, str, Cost], ...] = (
    ("harmony-no-index", "without index", _all),
    ("harmony", "until answered", _answered),
    ("harmony", "and indexed", _all),
)


def store_targets(runs: Sequence[Run]) -> list[Target]:
    """For what ran on one association with the pre-encoding sender. runs: of a cell in the order of their rounds."""
    targets = []
    for size, limit in FLOOR_LIMITS.items():
        cell: dict[str, list[Run]] = {}
        for run in runs:
            if (run.sender, run.size, run.associations) == ("preencoded", size, 1):
                cell.setdefault(run.receiver, []).append(run)
        for receiver, what, cost in COSTS:
            for reference, title, most in (
                ("floor", "floor", limit),
                ("dcmtk-nodelay", "DCMTK +B, TCP_NODELAY=1", DCMTK_LIMIT),
            ):
                pairs = zip(cell.get(receiver, ()), cell.get(reference, ()), strict=False)
                ratios = [cost(ours) / _all(theirs) for ours, theirs in pairs]
                if ratios:
                    name = f"CPU per object, {size}, {what} / {title}"
                    targets.append(Target(name, median(ratios), most=most, spread=ratios))
    return targets
