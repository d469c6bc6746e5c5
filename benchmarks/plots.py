"""Pictures of what was measured: lines over time or size, as SVG or PNG beside a report.

matplotlib draws them, which is an extra (`pip install 'harmony-dicom[plots]'`). Without it nothing is drawn and `draw`
says so; tables never depend on it. Lines are thinned to POINTS, so that a picture stays small enough to be kept with
the documentation, and text in an SVG stays text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

__all__ = ["MISSING", "Line", "Panel", "draw", "is_available", "thinned"]

MISSING = "no pictures: matplotlib is missing (pip install 'harmony-dicom[plots]')"
POINTS = 120  # of one line: a soak of an hour has one for every half a minute
WIDTH_INCHES, PANEL_HEIGHT_INCHES = 8.0, 2.1

Line = Sequence[tuple[float, float]]
"""Points, from left to right."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes with its lines; a label of "" is left out of the legend."""

    title: str
    lines: Mapping[str, Line]
    is_logarithmic: bool = field(default=False, kw_only=True)
    """The vertical axis. Others begin at 0, so that a flat line looks flat."""


def is_available() -> bool:
    return find_spec("matplotlib") is not None


def thinned(line: Line, points: int = POINTS) -> list[tuple[float, float]]:
    """At most so many points: the means of neighbours."""
    size = -(-len(line) // points)
    groups = [line[at : at + size] for at in range(0, len(line), size or 1)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def draw(
    path: Path, panels: Sequence[Panel], *, title: str, x_label: str, is_x_logarithmic: bool = False
) -> str:
    """Draw the panels below each other, all with the same horizontal axis. What was done, for a report.

    path: its ending decides on the format, .svg or .png.
    """
    if not is_available():
        return MISSING
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same picture from the same figures: no date, and identifiers that do not change.
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "harmony", "font.size": 8}):
        figure, axes = pyplot.subplots(
            len(panels),
            1,
            figsize=(WIDTH_INCHES, PANEL_HEIGHT_INCHES * len(panels)),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        figure.suptitle(title)
        for panel, axis in zip(panels, axes[:, 0], strict=True):
            for label, line in panel.lines.items():
                points = thinned(line)
                marker = "." if len(points) < 60 else ""
                xs, ys = [x for x, _ in points], [y for _, y in points]
                axis.plot(xs, ys, marker=marker, linewidth=1, label=label)
            axis.set_title(panel.title, loc="left", fontsize=8)
            axis.grid(visible=True, linewidth=0.3)
            if panel.is_logarithmic:
                axis.set_yscale("log")
            else:
                axis.set_ylim(
                    0, max((y for line in panel.lines.values() for _, y in line), default=1.0) * 1.1
                )
            if any(panel.lines):
                axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
        if is_x_logarithmic:
            axes[-1, 0].set_xscale("log")
        axes[-1, 0].set_xlabel(x_label)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)
    return f"![{title}]({path.name})"
