"""The tables of the SQLite index, and what tells a file that holds them from one that does not.

    patient 1-n study 1-n series 1-n instance 1-1 header

A patient, a study and a series have the attributes of their representative, the instance received first, as JSON, and
beside them the columns that queries can use. `odd` is 1 where one of these columns cannot stand for its attribute
(several values, a date that is none): such rows are found without the help of columns. `name` has a row for each
component group of each person's name, folded as names are compared, and an empty one for no name.

Headers are JSON, compressed by Zstandard with the first header of their series as dictionary: 100 bytes where
the JSON has 10 000, and decompressed in a microsecond, because the instances of a series differ in little.

Not here: what fills the tables (`sqlite_writer`) and what asks them (`sqlite_query`).
"""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

__all__ = ["connect", "create", "damage"]

APPLICATION_ID = 0x4861726D  # "Harm"
SCHEMA_VERSION = 2
"""Raised with every change of the tables or of what is in them; an index of another version is made again."""
OTHER_VERSION = "its application id and version are"
"""How `damage` begins to say that."""

BUSY_S = 10.0
"""Wait for a lock held by another connection; only opening and closing take one that readers notice."""
CACHE_KIB = 32 * 1024
"""Per connection, and only as far as used; holds the inner pages of an index over ten million instances."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE patient (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    representative INTEGER NOT NULL,
    received_ns INTEGER NOT NULL,
    attributes BLOB NOT NULL,
    odd INTEGER NOT NULL,
    patient_id TEXT NOT NULL,
    birth_date TEXT NOT NULL,
    sex TEXT NOT NULL,
    studies INTEGER NOT NULL,
    series INTEGER NOT NULL,
    instances INTEGER NOT NULL
);
CREATE INDEX patient_by_id ON patient (patient_id);
CREATE INDEX patient_odd ON patient (id) WHERE odd;
CREATE INDEX patient_without_birth_date ON patient (id) WHERE birth_date = '';
CREATE INDEX patient_without_sex ON patient (id) WHERE sex = '';
CREATE TABLE study (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL UNIQUE,
    patient INTEGER NOT NULL,
    representative INTEGER NOT NULL,
    received_ns INTEGER NOT NULL,
    attributes BLOB NOT NULL,
    odd INTEGER NOT NULL,
    patient_id TEXT NOT NULL,
    birth_date TEXT NOT NULL,
    sex TEXT NOT NULL,
    study_date TEXT NOT NULL,
    accession_number TEXT NOT NULL,
    study_id TEXT NOT NULL,
    series INTEGER NOT NULL,
    instances INTEGER NOT NULL,
    modalities TEXT NOT NULL,
    sop_classes TEXT NOT NULL
);
CREATE INDEX study_by_patient ON study (patient);
CREATE INDEX study_by_patient_id ON study (patient_id);
CREATE INDEX study_by_date ON study (study_date);
CREATE INDEX study_by_accession_number ON study (accession_number);
CREATE INDEX study_by_study_id ON study (study_id);
CREATE INDEX study_odd ON study (id) WHERE odd;
CREATE INDEX study_without_birth_date ON study (id) WHERE birth_date = '';
CREATE INDEX study_without_sex ON study (id) WHERE sex = '';
CREATE INDEX study_without_modalities ON study (id) WHERE modalities = '';
CREATE TABLE series (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    study INTEGER NOT NULL,
    uid TEXT NOT NULL,
    representative INTEGER NOT NULL,
    received_ns INTEGER NOT NULL,
    attributes BLOB NOT NULL,
    odd INTEGER NOT NULL,
    modality TEXT NOT NULL,
    number TEXT NOT NULL,
    instances INTEGER NOT NULL,
    sop_classes TEXT NOT NULL,
    dictionary BLOB NOT NULL,
    UNIQUE (study, uid)
);
CREATE INDEX series_by_uid ON series (uid);
CREATE TABLE instance (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL,
    uid TEXT NOT NULL,
    name TEXT NOT NULL,
    shadow INTEGER NOT NULL,
    odd INTEGER NOT NULL,
    number TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    received_ns INTEGER NOT NULL,
    data_set_offset INTEGER NOT NULL,
    pixel_data_offset INTEGER,
    UNIQUE (series, uid, name)
);
CREATE INDEX instance_by_uid ON instance (uid);
CREATE INDEX instance_by_name ON instance (name) WHERE name <> '';
CREATE TABLE header (instance INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE name (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    entity INTEGER NOT NULL,
    PRIMARY KEY (kind, key, entity)
) WITHOUT ROWID;
CREATE INDEX name_by_entity ON name (entity, kind);
"""
# instance.name: the file's name when it is not the UID and .dcm, else empty. No foreign keys: the
# writer keeps the tables in step, and each of them checked would be a lookup more per object.
TABLES = ("name", "header", "instance", "series", "study", "patient")

_HEADER = struct.Struct(
    ">16sH6xII60xI"
)  # magic, page size, change counter, pages, and the counter pages is for


def connect(path: Path, *, read_only: bool, durable: bool = False) -> sqlite3.Connection:
    """Open a connection that any thread may use, one at a time. Raises sqlite3.Error.

    durable: a commit is on the disk when it returns; else after the next checkpoint, and the file is whole anyway.
    """
    database = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_S, cached_statements=256
    )
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        database.execute("PRAGMA temp_store = MEMORY")
        if read_only:
            database.execute("PRAGMA query_only = 1")
    except BaseException:
        database.close()
        raise
    return database


def create(path: Path) -> None:
    """Make an empty index. Raises sqlite3.Error; the file must not exist."""
    database = connect(path, read_only=False)
    try:
        database.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
    finally:
        database.close()


def damage(path: Path, *, thorough: bool) -> str | None:
    """Return why the file is no index that can be used, or None when it is one.

    Looks at what costs nothing: that all pages are there, and that the tables are ours. thorough: reads everything,
    which takes about a second per gigabyte; worth it after a crash of the machine.
    """
    if not path.exists():
        return "it does not exist"
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    size = path.stat().st_size
    if len(head) == _HEADER.size:
        magic, page_bytes, changes, pages, pages_valid_for = _HEADER.unpack(head)
        page_bytes = 65536 if page_bytes == 1 else page_bytes
        if magic != b"SQLite format 3\0":
            return "it is no SQLite database"
        # https://www.sqlite.org/fileformat.html: the number of pages holds when the two counters agree.
        if changes == pages_valid_for and size < pages * page_bytes:
            return f"it has {size} bytes of {pages * page_bytes}"
    try:
        database = connect(path, read_only=True)
        try:
            found = (
                database.execute("PRAGMA application_id").fetchone()[0],
                database.execute("PRAGMA user_version").fetchone()[0],
            )
            if found != (APPLICATION_ID, SCHEMA_VERSION):
                return f"{OTHER_VERSION} {found[0]:#x} and {found[1]}"
            for table in TABLES:
                database.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
            if thorough:
                verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    return str(verdict)
        finally:
            database.close()
    except sqlite3.DatabaseError as error:
        return str(error)
    return None
