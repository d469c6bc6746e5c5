"""Tables in Markdown, and figures the way they stand in them: the median, and in parentheses the least and the most."""

from collections.abc import Sequence
from statistics import median

__all__ = ["markdown", "number", "ratio", "spread"]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head, columns other than the first are aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if n == 0 else text.rjust(width)
            for n, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = "|".join(
        "-" * (width + 2) if n == 0 else "-" * (width + 1) + ":" for n, width in enumerate(widths)
    )
    return "\n".join([line(rows[0]), f"|{rule}|", *map(line, rows[1:])])


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}-{number(max(values))})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(values: Sequence[float], reference: Sequence[float]) -> str:
    """How many times the reference's median."""
    divisor = median(reference)
    if not divisor:
        return ""
    factor = median(values) / divisor
    return f"{factor:.2f}" if factor >= 0.1 else f"{factor:.2g}"
