"""What the project has promised of its speed, beside what was measured: every benchmark prints its targets with this.

`python -m benchmarks all` collects the lines of all of them into the table in front of its report.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.tables import markdown

__all__ = ["COLUMNS", "HEADING", "MET", "Target", "print_targets"]

HEADING = "### Targets"
"""The line before the table."""
COLUMNS = ("what", "target", "measured", "")
MET, NOT_MET = "met", "**not met**"


@dataclass(frozen=True, slots=True)
class Target:
    """One figure and its limit. Ratios are medians of ratios of the same round where rounds are paired."""

    what: str
    """What is measured, and against what: "CPU per 2.4 KB object / floor receiver"."""
    measured: float
    least: float | None = None
    most: float | None = None
    unit: str = "x"
    spread: Sequence[float] = ()
    """The rounds."""

    @property
    def is_met(self) -> bool:
        return (self.least is None or self.measured >= self.least) and (
            self.most is None or self.measured <= self.most
        )

    def row(self) -> tuple[str, str, str, str]:
        limits = [f"at least {self.least:g} {self.unit}"] if self.least is not None else []
        limits += [f"at most {self.most:g} {self.unit}"] if self.most is not None else []
        measured = f"{self.measured:.3g} {self.unit}"
        if self.spread:
            measured += f" ({min(self.spread):.3g}-{max(self.spread):.3g})"
        return self.what, " and ".join(limits), measured, MET if self.is_met else NOT_MET


def print_targets(targets: Iterable[Target]) -> None:
    """Print the table; nothing when there is none."""
    rows = [target.row() for target in targets]
    if rows:
        print(f"\n{HEADING}\n\n{markdown([COLUMNS, *rows])}", flush=True)
