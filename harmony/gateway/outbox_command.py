"""`python -m harmony outbox`: what has not been delivered, and why; `--retry` makes parked deliveries pending again.

Reads the outboxes of a configuration's pipelines beside a gateway that may be running on them. Nothing else in them is
changed: a running gateway notices within seconds what was unparked, one that is not running when it starts.

Called by `command_line`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence

from harmony.gateway.config import LoadedConfig
from harmony.gateway.pipelines import outboxes
from harmony.jmix.outbox import Delivery, Outbox, State

__all__ = ["ALL", "run"]

ALL = "all"
"""`--retry all`."""

LISTED = (State.PARKED, State.IN_PROGRESS, State.PENDING)
MAXIMUM_LISTED = 200
"""Of each state in each pipeline; the latest ones, the counts say how many there are."""

NO_LIMIT = -1
"""SQLite's."""

EXIT_FAILED = 1


def run(config: LoadedConfig, *, retry: str | None = None) -> int:
    """Print the deliveries of every pipeline; with `retry`, an envelope's id or ALL, unpark first.

    The exit status: 1 when an outbox cannot be read, or nothing parked has this id.
    """
    paths = outboxes(config)
    status = 0
    unparked = 0
    if not paths:
        print("no pipeline has a jmix_builder, so there is nothing to deliver")
    for pipeline, path in paths.items():
        try:
            with contextlib.closing(Outbox.inspect(path)) as outbox:
                if retry is not None:
                    unparked += _unpark(outbox, retry)
                print("\n".join(_described(pipeline, outbox)))
        except FileNotFoundError:
            print(f"pipeline {pipeline}: nothing was ever received ({path} is not there)")
        except (OSError, sqlite3.Error) as error:
            print(f"pipeline {pipeline}: {path}: {error}", file=sys.stderr)
            status = EXIT_FAILED
    if retry is not None:
        print(f"{unparked} unparked")
        if retry != ALL and not unparked:
            print(f"no parked envelope has the id {retry}", file=sys.stderr)
            status = EXIT_FAILED
    return status


def _unpark(outbox: Outbox, wanted: str) -> int:
    now = time.time()
    parked = outbox.deliveries(State.PARKED, limit=NO_LIMIT)
    return sum(outbox.unpark(each.id, now=now) for each in parked if wanted in (ALL, each.envelope_id))


def _described(pipeline: str, outbox: Outbox) -> Iterator[str]:
    counts = outbox.counts()
    numbers = ", ".join(f"{counts[state]} {_name(state)}" for state in (*LISTED, State.DELIVERED))
    yield f"pipeline {pipeline}: {numbers}"
    rows: list[tuple[str, ...]] = [
        ("state", "envelope", "upstream", "attempts", "age", "next try", "last error")
    ]
    now = time.time()
    for state in LISTED:
        rows += [_row(delivery, now) for delivery in outbox.deliveries(state, limit=MAXIMUM_LISTED)]
    if len(rows) > 1:
        yield from _table(rows)


def _row(delivery: Delivery, now: float) -> tuple[str, ...]:
    next_try = "-"
    if delivery.state is State.PENDING:
        next_try = "now" if delivery.due_at <= now else f"in {_span(delivery.due_at - now)}"
    return (
        _name(delivery.state),
        delivery.envelope_id,
        delivery.destination,
        str(delivery.attempts),
        _span(now - delivery.created_at),
        next_try,
        _printable(delivery.error or "-"),
    )


def _name(state: State) -> str:
    return state.value.replace("_", " ")


def _printable(text: str) -> str:
    """An upstream's words; it must not command the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
