"""The index in one SQLite file (`sqlite_schema`), for one process.

One connection writes, under a lock, and each batch is one transaction; readers take connections from a pool, read a
page at a time and hold nothing in between, so a client that takes an hour over its answers neither sees the file
grow nor keeps anyone waiting. In WAL mode readers and the writer do not wait for each other.

The folder holds `index.sqlite`, a lock file that keeps a second process out, and `damaged` when something in the
file could not be read: the next opening starts with an empty index then, and says so.

What of a query the columns can answer is `sqlite_query`; every answer is checked against the whole entity after
that, so columns only ever narrow the search. Called by `harmony.archive.indexing`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from time import thread_time
from typing import TypeVar

from harmony.archive.header_compression import HeaderDamaged, HeaderDecompressor
from harmony.archive.index import (
    ArchiveIndexError,
    Counts,
    Entity,
    IndexDamaged,
    IndexedInstance,
    IndexInUse,
    IndexState,
    Level,
    StoredInstance,
    TookTooLong,
    UniqueKeys,
)
from harmony.archive.matching import Matcher
from harmony.archive.sqlite_entities import (
    Found,
    Row,
    instance_of,
    path_of,
    patient_of,
    series_of,
    stored_instance,
    study_of,
)
from harmony.archive.sqlite_query import (
    BELOW,
    INSTANCE,
    ONE,
    PATIENT,
    SERIES,
    STUDY,
    TRAITS,
    Condition,
    Parameters,
    Table,
    aggregate,
    conditions_of,
    only,
    unique,
)
from harmony.archive.sqlite_schema import OTHER_VERSION, TABLES, connect, create, damage
from harmony.archive.sqlite_writer import SQLiteWriter

__all__ = ["SQLiteIndex"]

logger = logging.getLogger("harmony.archive")

T = TypeVar("T")

PAGES = (16, 64, 256, 1024)
"""Rows read at a time: a first answer soon, and few statements for many."""
STEPS = 1000
"""Of SQLite's machine, some 30 us, after which a search that may not take long looks at the clock."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_DATABASE, _LOCK, _DAMAGED = "index.sqlite", "lock", "damaged"
_CORRUPT = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


class _Reader:
    """A connection to read over, and the dictionaries of the headers read over it."""

    def __init__(self, path: Path) -> None:
        self.database = connect(path, read_only=True)
        self.headers = HeaderDecompressor(self._dictionary)

    def _dictionary(self, series: int) -> bytes:
        row = self.database.execute("SELECT dictionary FROM series WHERE id = ?", (series,)).fetchone()
        if row is None:
            raise _SeriesGone
        return bytes(row[0])


class SQLiteIndex:
    """An `Index` in a folder, which must exist.

    root: of the archive's files. durable: a batch is on the disk when `add` returns. verify_files: look whether the
    file of each answer is there; answers without are dropped, and so are their rows.
    Raises IndexInUse, ArchiveIndexError.
    """

    def __init__(
        self, directory: Path, *, root: str, durable: bool = False, verify_files: bool = True
    ) -> None:
        self._directory = directory
        self._path = directory / _DATABASE
        self._root = root
        self._verify_files = verify_files
        self._readers: list[_Reader] = []
        self._reader_lock = threading.Lock()
        self._write_lock = threading.RLock()
        self._closed = False
        self._lock_fd = _lock(directory / _LOCK)
        try:
            with self._translated():
                self._state = self._open(durable)
        except BaseException:
            os.close(self._lock_fd)
            raise

    def __repr__(self) -> str:
        return f"<SQLiteIndex {self._path}{' closed' if self._closed else ''}>"

    def _open(self, durable: bool) -> IndexState:
        boot_id = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        marker = self._directory / _DAMAGED
        reason = "it was found damaged" if marker.exists() else damage(self._path, thorough=False)
        opened = "" if reason else self._meta_of_file("opened")
        suspect = bool(opened) and (opened != boot_id or not boot_id)
        self.may_have_lost_power = suspect or (
            reason is not None and self._path.exists() and not marker.exists() and OTHER_VERSION not in reason
        )
        """Whether the machine stopped while it was open. One that cannot be read does not say."""
        if reason is None and suspect:
            reason = damage(self._path, thorough=True)
        if reason is not None:
            if self._path.exists():
                logger.warning("%s: cannot be used, %s; starting with an empty one", self._path, reason)
            for suffix in ("", "-wal", "-shm", "-journal"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            create(self._path)
            marker.unlink(missing_ok=True)
        self._database = connect(self._path, read_only=False, durable=durable)
        self._writer = SQLiteWriter(self._database)
        if self._meta("complete") != "yes":
            state = IndexState.INCOMPLETE
        else:
            state = IndexState.SUSPECT if suspect else IndexState.CURRENT
        self._set_meta("opened", boot_id or "unknown")
        return state

    def _meta_of_file(self, key: str) -> str:
        with contextlib.closing(connect(self._path, read_only=True)) as database:
            row = database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row is not None else ""

    def _meta(self, key: str) -> str:
        row = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row is not None else ""

    def _set_meta(self, key: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @property
    def state(self) -> IndexState:
        return self._state

    def set_current(self) -> None:
        with self._write_lock, self._translated():
            self._set_meta("complete", "yes")
        self._state = IndexState.CURRENT

    def close(self) -> None:
        """Close all connections; the last one folds the write-ahead log into the file."""
        with self._write_lock, self._reader_lock:
            if self._closed:
                return
            self._closed = True
            for reader in self._readers:
                reader.database.close()
            self._readers.clear()
            try:
                with self._translated():
                    self._set_meta("opened", "")
            except ArchiveIndexError as error:
                logger.warning("%s: not closed cleanly: %s", self._path, error)
            self._database.close()
            os.close(self._lock_fd)

    # Writing

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[SQLiteWriter]:
        with self._write_lock, self._translated():
            if self._closed:
                raise ArchiveIndexError("the index is closed")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.finish()
                self._database.execute("COMMIT")
            except BaseException:
                self._writer.forget()
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, and remember damage."""
        try:
            yield
        except HeaderDamaged as error:
            self._mark_damaged()
            raise IndexDamaged(str(error)) from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_INTERRUPT:
                raise TookTooLong("the search took too long") from error
            if code in _CORRUPT:
                self._mark_damaged()
                raise IndexDamaged(f"{self._path}: {error}") from error
            raise ArchiveIndexError(f"{self._path}: {error}") from error

    def _mark_damaged(self) -> None:
        try:
            (self._directory / _DAMAGED).touch()
        except OSError as error:
            logger.error("%s is damaged, and that cannot be noted: %s", self._path, error.strerror)

    def add(self, instances: Iterable[IndexedInstance]) -> None:
        with self._transaction() as writer:
            for instance in instances:
                writer.add(instance)

    def remove(self, paths: Iterable[str]) -> None:
        with self._transaction() as writer:
            for path in paths:
                found = self._locate(path)
                if found is not None:
                    writer.remove(*found)

    def clear(self) -> None:
        with self._transaction() as writer:
            self._set_meta("complete", "no")
            for table in TABLES:
                self._database.execute(f"DELETE FROM {table}")
            writer.forget()

    def has(self, path: str) -> bool:
        with self._write_lock, self._translated():
            return self._locate(path) is not None

    def _locate(self, path: str) -> tuple[str, str, int] | None:
        """Find the row of a path: the UIDs of study and series, and the instance's id."""
        name = path.rpartition("/")[2]
        for condition, value in (
            ("instance.uid = ? AND name = ''", name.removesuffix(".dcm")),
            ("instance.name = ? AND name <> ''", name),
        ):
            for study, series, uid, own, key in self._database.execute(_LOCATE + condition, (value,)):
                if path_of(study, series, uid, own) == path:
                    return study, series, key
        return None

    # Reading

    def _lend(self, given: _Reader | None) -> contextlib.AbstractContextManager[_Reader]:
        """The reader that is given, or one from the pool."""
        return self._reader() if given is None else contextlib.nullcontext(given)

    def _hastily(self, within_s: float, ask: Callable[[_Reader], Iterator[T]]) -> Iterator[T]:
        """What somebody finds over one connection, which says TookTooLong when this thread has computed for so long."""
        deadline = thread_time() + within_s
        with self._reader(may_open=False) as reader:
            reader.database.set_progress_handler(lambda: thread_time() > deadline, STEPS)
            try:
                yield from ask(reader)
            finally:
                reader.database.set_progress_handler(None, 0)

    @contextlib.contextmanager
    def _reader(self, *, may_open: bool = True) -> Iterator[_Reader]:
        """Take a connection from the pool, for one page. may_open: otherwise TookTooLong when the pool is empty."""
        with self._reader_lock:
            if self._closed:
                raise ArchiveIndexError("the index is closed")
            reader = self._readers.pop() if self._readers else None
        with self._translated():
            if reader is None:
                if not may_open:
                    raise TookTooLong("no connection is open")
                reader = _Reader(self._path)
            try:
                yield reader
            finally:
                with self._reader_lock:
                    if self._closed:
                        reader.database.close()
                    else:
                        self._readers.append(reader)

    def _rows(
        self,
        table: Table,
        conditions: list[Condition],
        *,
        parent: int | None = None,
        exact: bool = False,
        given: _Reader | None = None,
    ) -> Iterator[Row]:
        """Yield rows of a table, page by page."""
        width = len(table.order)
        for where, parameters in table.passes(conditions, parent=parent, exact=exact):
            place: Parameters | None = None
            for size in chain(PAGES, repeat(PAGES[-1])):
                sql = table.page(where, after=place, rows=size)
                with self._lend(given) as reader:
                    rows = reader.database.execute(sql, (*parameters, *(place or ()))).fetchall()
                yield from rows
                if len(rows) < size:
                    break
                place = rows[-1][:width]

    def query(
        self,
        level: Level,
        matcher: Matcher,
        *,
        limit: int | None = None,
        offset: int = 0,
        within_s: float | None = None,
    ) -> Iterator[Entity]:
        if within_s is None:
            answers = self._answers(level, matcher)
        else:
            answers = self._hastily(within_s, lambda reader: self._answers(level, matcher, reader))
        return islice(answers, offset, None if limit is None else offset + limit)

    def _answers(self, level: Level, matcher: Matcher, given: _Reader | None = None) -> Iterator[Entity]:
        for found in self._found(level, matcher, given):
            answer: Found | None = found
            if not matcher.matches(found.entity):
                continue
            if self._verify_files and not self._file_exists(found, given):
                if given is not None:
                    raise TookTooLong("files have vanished")
                answer = self._without_vanished(found)
                if answer is None or not matcher.matches(answer.entity):
                    continue
            assert answer is not None
            yield dict(sorted(answer.entity.items()))

    def _found(self, level: Level, matcher: Matcher, given: _Reader | None) -> Iterator[Found]:
        """Yield everything of a level that may match."""
        if level is Level.PATIENT:
            for row in self._rows(PATIENT, conditions_of(matcher, PATIENT, level), given=given):
                yield patient_of(row)
            return
        series_conditions = conditions_of(matcher, SERIES, level)
        instance_conditions = conditions_of(matcher, INSTANCE, level)
        for study_row in self._rows(STUDY, conditions_of(matcher, STUDY, level), given=given):
            study = study_of(study_row)
            if level is Level.STUDY:
                yield study
                continue
            for series_row in self._rows(SERIES, series_conditions, parent=study.id, given=given):
                series = series_of(series_row, study)
                if level is Level.SERIES:
                    yield series
                    continue
                for row in self._rows(INSTANCE, instance_conditions, parent=series.id, given=given):
                    header = self._header(series.id, row, given)
                    if header is not None:
                        yield instance_of(row, header, study, series)

    def _header(self, series: int, row: Row, given: _Reader | None) -> Entity | None:
        """Decompress the header in a row of INSTANCE; None when its series was removed meanwhile."""
        with self._lend(given) as reader:
            try:
                return reader.headers.decompress(series, row[-1])
            except _SeriesGone:
                return None

    def files(self) -> Iterator[tuple[str, int, int]]:
        with self._reader() as reader:
            series = reader.database.execute(
                "SELECT series.id, study.uid, series.uid FROM series JOIN study ON study.id = series.study"
            ).fetchall()
        for key, study, uid in series:
            with self._reader() as reader:
                rows = reader.database.execute(
                    "SELECT uid, name, size_bytes, received_ns FROM instance WHERE series = ?", (key,)
                ).fetchall()
            for instance, name, size_bytes, received_ns in rows:
                yield path_of(study, uid, instance, name), size_bytes, received_ns

    def instances(self, keys: UniqueKeys, *, within_s: float | None = None) -> Iterator[StoredInstance]:
        if within_s is None:
            return (instance for instance, _, _ in self._instances(keys))
        return (
            instance
            for instance, _, _ in self._hastily(within_s, lambda reader: self._instances(keys, reader))
        )

    def headers(
        self, keys: UniqueKeys, *, within_s: float | None = None
    ) -> Iterator[tuple[StoredInstance, Entity]]:
        if within_s is None:
            return self._headers(keys)
        return self._hastily(within_s, lambda reader: self._headers(keys, reader))

    def _headers(
        self, keys: UniqueKeys, given: _Reader | None = None
    ) -> Iterator[tuple[StoredInstance, Entity]]:
        for instance, series, row in self._instances(keys, given):
            header = self._header(series, row, given)
            if header is not None:
                yield instance, header

    def encoded_headers(self, keys: UniqueKeys) -> Iterator[tuple[StoredInstance, bytes]]:
        for instance, series, row in self._instances(keys):
            with self._reader() as reader:
                try:
                    encoded = reader.headers.encoded(series, row[-1])
                except _SeriesGone:
                    continue
            yield instance, encoded

    def _instances(
        self, keys: UniqueKeys, given: _Reader | None = None
    ) -> Iterator[tuple[StoredInstance, int, Row]]:
        """Yield what is to be retrieved, with the id of its series and its row of INSTANCE."""
        if given is not None and (one := only(keys)):
            study_uid, series_uid, uid = one
            for key, *row in given.database.execute(ONE, (uid, study_uid, series_uid)).fetchall():
                instance = stored_instance(tuple(row), self._root, study_uid, series_uid)
                if self._verify_files and not os.path.lexists(instance.path):
                    raise TookTooLong("files have vanished")
                yield instance, key, tuple(row)
            return
        vanished: list[str] = []
        try:
            for study_row in self._rows(STUDY, unique(keys, STUDY), exact=True, given=given):
                study = study_of(study_row)
                for series_row in self._rows(
                    SERIES, unique(keys, SERIES), parent=study.id, exact=True, given=given
                ):
                    series = series_of(series_row, study)
                    for row in self._rows(
                        INSTANCE, unique(keys, INSTANCE), parent=series.id, exact=True, given=given
                    ):
                        instance = stored_instance(row, self._root, study.uid, series.uid)
                        if self._verify_files and not os.path.lexists(instance.path):
                            if given is not None:
                                raise TookTooLong("files have vanished")
                            vanished.append(instance.path[len(self._root) + 1 :])
                        else:
                            yield instance, series.id, row
        finally:
            if vanished:
                self._remove_vanished(vanished)

    def count(self, keys: UniqueKeys) -> int:
        sql, parameters = aggregate("count(*)", keys)
        with self._reader() as reader:
            return int(reader.database.execute(sql, parameters).fetchone()[0])

    def version(self, keys: UniqueKeys, *, within_s: float | None = None) -> str:
        sql, parameters = aggregate(TRAITS, keys)

        def ask(reader: _Reader) -> Iterator[Row]:
            yield reader.database.execute(sql, parameters).fetchone()

        if within_s is not None:
            (traits,) = self._hastily(within_s, ask)
        else:
            with self._reader() as reader:
                (traits,) = ask(reader)
        return "-".join(map(str, traits)) if traits[0] else ""

    def counts(self) -> Counts:
        with self._reader() as reader:
            return Counts(*reader.database.execute(_COUNTS).fetchone())

    # Files that are gone

    def _file_exists(self, found: Found, given: _Reader | None = None) -> bool:
        if found.path:
            return os.path.lexists(f"{self._root}/{found.path}")
        with self._lend(given) as reader:
            row = reader.database.execute(_PATH_OF, (found.representative,)).fetchone()
        return row is not None and os.path.lexists(f"{self._root}/{path_of(*row)}")

    def _without_vanished(self, found: Found) -> Found | None:
        """Take out what has no file any more; return what is left of an entity."""
        while True:
            column = f"{found.table.name}.id"
            with self._reader() as reader:
                rows = reader.database.execute(_PATHSBELOW.format(column), (found.id,)).fetchall()
            vanished = [
                path for row in rows if not os.path.lexists(f"{self._root}/{(path := path_of(*row))}")
            ]
            if vanished:
                self._remove_vanished(vanished)
            again = self._read_again(found.table, found.id)
            if again is None or self._file_exists(again):
                return again
            if not vanished:  # it was removed and stored again while this looked
                return None
            found = again

    def _remove_vanished(self, paths: list[str]) -> None:
        logger.warning("%d files are no longer there and were taken out of the index", len(paths))
        # Stored again since? Then its arrival is queued, or comes, and puts it back.
        self.remove(path for path in paths if not os.path.lexists(f"{self._root}/{path}"))

    def _read_again(self, table: Table, key: int) -> Found | None:
        """Read one patient, study or series; an instance whose file is gone is gone itself."""
        if table is INSTANCE:
            return None
        row = next(self._rows(table, [Condition("id = ?", (key,))], exact=True), None)
        if row is None:
            return None
        if table is SERIES:
            with self._reader() as reader:
                above = reader.database.execute("SELECT study FROM series WHERE id = ?", (key,)).fetchone()
            study = self._read_again(STUDY, above[0]) if above is not None else None
            return series_of(row, study) if study is not None else None
        return patient_of(row) if table is PATIENT else study_of(row)


class _SeriesGone(LookupError):
    """The series of a header was removed while somebody read it."""


def _lock(path: Path) -> int:
    """Take the lock; it goes with the process."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise IndexInUse(f"{path.parent}: the index is open elsewhere") from error
    return fd


_LOCATE = f"SELECT study.uid, series.uid, instance.uid, instance.name, instance.id {BELOW} WHERE "
_PATH_OF = f"SELECT study.uid, series.uid, instance.uid, instance.name {BELOW} WHERE instance.id = ?"
_PATHSBELOW = (
    "SELECT study.uid, series.uid, instance.uid, instance.name "
    f"{BELOW} JOIN patient ON patient.id = study.patient WHERE {{}} = ?"
)
_COUNTS = (
    "SELECT (SELECT count(*) FROM patient), count(*), coalesce(sum(series), 0), coalesce(sum(instances), 0) "
    "FROM study"
)
