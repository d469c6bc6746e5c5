"""What must still be delivered, and which objects are in doubt: two SQLite tables that survive everything.

A delivery is an envelope on its way to one destination. It is `pending` until it is claimed, `in_progress` while it is
being sent, `delivered` when the destination has it (201, or 409: it had it already), `parked` when the destination will
never take it as it is; a parked one stays, visible, until somebody unparks it. What was in progress when the process
ended is pending again. Enqueueing is idempotent by envelope and destination, so every step before it may be repeated.

Objects in doubt are those whose sender may repeat them although they are in an envelope (`assembly`).

Times are seconds since the epoch and come from the caller. All methods block (a commit with durable=True waits for the
disk) and may be called from any thread; one connection and one lock serve them all. One process per file delivers; any
other may look, and unpark, with `inspect`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

__all__ = ["Delivery", "InDoubt", "Outbox", "State", "backoff_s"]

FIRST_DELAY_S = 1.0
MAXIMUM_DELAY_S = 300.0
"""An upstream that is back is noticed within five minutes; one that is down for a day sees 300 attempts."""

_MAXIMUM_ERROR_CHARACTERS = 500

_BUSY_S = 10.0
"""Wait for another process that is writing; a commit on a slow disk takes a tenth of that."""

_CLOCK_ADJUSTED_S = 300.0
"""A clock that was set back by more than this was wrong when the times in the future were written down."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS delivery (
    id INTEGER PRIMARY KEY,
    envelope_id TEXT NOT NULL,
    destination TEXT NOT NULL,
    payload_path TEXT NOT NULL,
    content_type TEXT NOT NULL,
    content_length INTEGER NOT NULL,
    origin TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL,
    created_at REAL NOT NULL,
    changed_at REAL NOT NULL,
    http_status INTEGER,
    error TEXT,
    UNIQUE (envelope_id, destination)
);
CREATE INDEX IF NOT EXISTS delivery_by_state ON delivery (state, due_at);
CREATE TABLE IF NOT EXISTS in_doubt (
    sop_instance_uid TEXT PRIMARY KEY,
    study_instance_uid TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    digest TEXT,
    marked_at REAL NOT NULL
);
"""


class State(Enum):
    """Where a delivery stands."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    DELIVERED = "delivered"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One envelope on its way to one destination."""

    id: int
    envelope_id: str
    destination: str
    payload_path: str
    content_type: str
    content_length: int
    origin: str
    state: State
    attempts: int
    """How often it was claimed."""
    due_at: float
    created_at: float
    changed_at: float
    http_status: int | None
    error: str | None
    """Of the last attempt that failed."""


@dataclass(frozen=True, slots=True)
class InDoubt:
    """An object that is in an envelope and whose sender may not know it."""

    sop_instance_uid: str
    study_instance_uid: str
    size_bytes: int
    digest: str | None
    marked_at: float


_COLUMNS = ", ".join(Delivery.__slots__)


class Outbox:
    """The deliveries and the objects in doubt in one file. Opening it makes what was in progress pending again.

    durable: a method that returned is on the disk (synchronous=FULL); False trusts the kernel to write it out soon.
    Raises sqlite3.Error from every method when the file is damaged or the disk is full.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._connect(str(path), uri=False)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._database.executescript(_SCHEMA)
            self._database.execute("UPDATE delivery SET state = 'pending' WHERE state = 'in_progress'")
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def inspect(cls, path: Path) -> Self:
        """Open a file that exists and leave everything in it as it is: another process may be delivering from it.

        Raises FileNotFoundError when there is none, sqlite3.Error when it is none.
        """
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        outbox = cls.__new__(cls)
        outbox._connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)
        try:
            outbox._database.execute("SELECT 1 FROM delivery LIMIT 1")
        except BaseException:
            outbox._database.close()
            raise
        return outbox

    def _connect(self, name: str, *, uri: bool) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            name, uri=uri, isolation_level=None, check_same_thread=False, timeout=_BUSY_S
        )
        self._database.row_factory = sqlite3.Row

    def close(self) -> None:
        """Close the file; nothing can be called afterwards."""
        with self._lock:
            self._database.close()

    # Deliveries

    def enqueue(
        self,
        envelope_id: str,
        destination: str,
        *,
        payload_path: str,
        content_type: str,
        content_length: int,
        origin: str,
        now: float,
    ) -> int:
        """Add a delivery, due at once, and return its number; one that exists already stays as it is."""
        row = (envelope_id, destination, payload_path, content_type, content_length, origin, now, now, now)
        with self._lock:
            self._database.execute(
                "INSERT INTO delivery (envelope_id, destination, payload_path, content_type, content_length, origin,"
                " state, due_at, created_at, changed_at) VALUES (?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?)"
                " ON CONFLICT (envelope_id, destination) DO NOTHING",
                row,
            )
            found = self._database.execute(
                "SELECT id FROM delivery WHERE envelope_id = ? AND destination = ?", row[:2]
            ).fetchone()
        return int(found[0])

    def claim_due(self, now: float, *, limit: int = 1) -> list[Delivery]:
        """Mark up to `limit` pending deliveries that are due as in progress; return them, the longest due first.

        One that was last changed in the future is due as well: the clock was set back, and its time means nothing.
        """
        with self._lock:
            rows = self._database.execute(
                "UPDATE delivery SET state = 'in_progress', attempts = attempts + 1, changed_at = ?1 WHERE id IN"
                " (SELECT id FROM delivery WHERE state = 'pending' AND (due_at <= ?1 OR changed_at > ?3)"
                " ORDER BY due_at, id LIMIT ?2)"
                f" RETURNING {_COLUMNS}",
                (now, limit, now + _CLOCK_ADJUSTED_S),
            ).fetchall()
        return sorted(map(_delivery, rows), key=lambda delivery: (delivery.due_at, delivery.id))

    def next_due(self) -> float | None:
        """Return when the next pending delivery is due, None when there is none."""
        with self._lock:
            (due_at,) = self._database.execute(
                "SELECT min(due_at) FROM delivery WHERE state = 'pending'"
            ).fetchone()
        return None if due_at is None else float(due_at)

    def delivered(self, delivery_id: int, *, http_status: int, now: float) -> None:
        """The destination has it."""
        self._change(delivery_id, State.DELIVERED, now, http_status=http_status)

    def failed(
        self, delivery_id: int, *, error: str, retry_at: float, now: float, http_status: int | None = None
    ) -> None:
        """It did not work this time; try again at `retry_at` (see `backoff_s`)."""
        self._change(delivery_id, State.PENDING, now, http_status=http_status, error=error, due_at=retry_at)

    def parked(self, delivery_id: int, *, error: str, now: float, http_status: int | None = None) -> None:
        """It will never work as it is: keep it for a person to look at."""
        self._change(delivery_id, State.PARKED, now, http_status=http_status, error=error)

    def unpark(self, delivery_id: int, *, now: float) -> bool:
        """Make a parked delivery pending and due; False when there is no such parked delivery."""
        with self._lock:
            cursor = self._database.execute(
                "UPDATE delivery SET state = 'pending', attempts = 0, due_at = ?1, changed_at = ?1"
                " WHERE id = ?2 AND state = 'parked'",
                (now, delivery_id),
            )
            return cursor.rowcount == 1

    def counts(self) -> dict[State, int]:
        """Return how many deliveries there are in each state, zeros included."""
        with self._lock:
            rows = self._database.execute("SELECT state, count(*) FROM delivery GROUP BY state").fetchall()
        return dict.fromkeys(State, 0) | {State(state): count for state, count in rows}

    def waiting_since(self) -> float | None:
        """Return when the oldest delivery that is pending or in progress was enqueued, None when there is none."""
        with self._lock:
            (created_at,) = self._database.execute(
                "SELECT min(created_at) FROM delivery WHERE state IN ('pending', 'in_progress')"
            ).fetchone()
        return None if created_at is None else float(created_at)

    def deliveries(self, state: State | None = None, *, limit: int = 100) -> list[Delivery]:
        """Return deliveries, all or of one state, the latest changed first."""
        with self._lock:
            rows = self._database.execute(
                f"SELECT {_COLUMNS} FROM delivery WHERE ?1 IS NULL OR state = ?1"
                " ORDER BY changed_at DESC, id DESC LIMIT ?2",
                (None if state is None else state.value, limit),
            ).fetchall()
        return [_delivery(row) for row in rows]

    def forget_delivered(self, *, before: float) -> int:
        """Remove deliveries that were delivered before a time; return how many."""
        with self._lock:
            return self._database.execute(
                "DELETE FROM delivery WHERE state = 'delivered' AND changed_at < ?", (before,)
            ).rowcount

    def _change(
        self,
        delivery_id: int,
        state: State,
        now: float,
        *,
        http_status: int | None = None,
        error: str | None = None,
        due_at: float | None = None,
    ) -> None:
        error = None if error is None else error[:_MAXIMUM_ERROR_CHARACTERS]
        with self._lock:
            cursor = self._database.execute(
                "UPDATE delivery SET state = ?, changed_at = ?, http_status = ?, error = coalesce(?, error),"
                " due_at = coalesce(?, due_at) WHERE id = ?",
                (state.value, now, http_status, error, due_at, delivery_id),
            )
            if cursor.rowcount != 1:
                raise KeyError(f"there is no delivery {delivery_id}")

    # Objects in doubt

    def mark_in_doubt(self, objects: Iterable[InDoubt], *, forget: Iterable[str] = ()) -> None:
        """Remember objects, and forget SOP Instance UIDs, all or none; one that is remembered already is renewed."""
        rows = [
            (o.sop_instance_uid, o.study_instance_uid, o.size_bytes, o.digest, o.marked_at) for o in objects
        ]
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR REPLACE INTO in_doubt VALUES (?, ?, ?, ?, ?)", rows)
                self._database.executemany(
                    "DELETE FROM in_doubt WHERE sop_instance_uid = ?", [(uid,) for uid in forget]
                )
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # a full disk may have rolled back by itself
                    self._database.execute("ROLLBACK")
                raise

    def take_in_doubt(self, sop_instance_uid: str) -> bool:
        """Tell whether an instance is in doubt, and forget it: true once."""
        with self._lock:
            cursor = self._database.execute(
                "DELETE FROM in_doubt WHERE sop_instance_uid = ?", (sop_instance_uid,)
            )
            return cursor.rowcount == 1

    def in_doubt(self) -> list[InDoubt]:
        """Return all objects in doubt, the oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT sop_instance_uid, study_instance_uid, size_bytes, digest, marked_at FROM in_doubt"
                " ORDER BY marked_at, rowid"
            ).fetchall()
        return [InDoubt(*row) for row in rows]

    def forget_in_doubt(self, *, before: float) -> int:
        """Forget objects marked before a time: nobody repeats them any more. Return how many."""
        with self._lock:
            return self._database.execute("DELETE FROM in_doubt WHERE marked_at < ?", (before,)).rowcount


def backoff_s(
    attempt: int,
    *,
    random: Callable[[], float],
    first_s: float = FIRST_DELAY_S,
    maximum_s: float = MAXIMUM_DELAY_S,
) -> float:
    """Return how long to wait after the `attempt`-th try failed, counted from 1.

    Doubles each time up to `maximum_s`; `random` (0 <= x < 1) takes up to half of it away, so that what failed
    together does not come back together.
    """
    delay = min(maximum_s, first_s * 2.0 ** min(attempt - 1, 62))
    return delay * (1.0 - 0.5 * random())


def _delivery(row: sqlite3.Row) -> Delivery:
    values = dict(row)
    return Delivery(**values | {"state": State(values["state"])})
