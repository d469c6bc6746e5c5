"""The envelopes that are here: built by us or uploaded to us, found by id or by study, served as they came.

    <root>/<id>/<id>.zip         or <id>.tar.gz, when that is what was uploaded
    <root>/<id>/manifest.json    the document in the archive
    <root>/jmix-index.sqlite     which envelope holds which study
    <root>/incoming/             uploads on their way

Files come first and the index last, so a crash leaves at worst an envelope that is not yet in the index: `open` puts
it there, and takes out what has no file. The index can be deleted; it is made again from the archives. An id becomes
a path only in its canonical form.

One process per store. All methods block, and may be called from any thread.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tarfile
import threading
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from harmony.jmix.limits import EnvelopeError, Limits, canonical_envelope_id
from harmony.jmix.reader import ArchiveFormat, EnvelopeInfo, describe_archive, open_archive
from harmony.jmix.tarread import TarGzReader
from harmony.jmix.zipread import ZipReader
from harmony.jmix.zipstream import CHUNK_BYTES, ZipStream

__all__ = ["EnvelopeExists", "EnvelopeStore", "StoredEnvelope"]

logger = logging.getLogger("harmony.jmix")

INDEX_NAME = "jmix-index.sqlite"
INCOMING_NAME = "incoming"
_SUFFIXES = {ArchiveFormat.ZIP: ".zip", ArchiveFormat.TAR_GZ: ".tar.gz"}
_GZIP_LEVEL = 1
"""Image data hardly shrinks; what matters is how fast the documents and the rare uncompressed image go through."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS envelope (
    id TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    created_at TEXT NOT NULL,
    origin TEXT NOT NULL,
    size_bytes INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS study (
    study_uid TEXT NOT NULL,
    envelope_id TEXT NOT NULL REFERENCES envelope (id) ON DELETE CASCADE,
    PRIMARY KEY (study_uid, envelope_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS study_of_envelope ON study (envelope_id);
"""


class EnvelopeExists(Exception):
    """There is an envelope of this id already (409)."""

    def __init__(self, envelope_id: str) -> None:
        super().__init__("envelope id already exists")
        self.envelope_id = envelope_id


@dataclass(frozen=True, slots=True)
class StoredEnvelope:
    """One envelope of the store."""

    id: str
    path: Path
    format: ArchiveFormat
    created_at: datetime
    origin: str
    """Where it came from, for example a pipeline's name or "upload"."""
    size_bytes: int


class EnvelopeStore:
    """A folder of envelopes. KeyError from the methods that take an id, when there is no such envelope."""

    def __init__(self, root: Path, *, fsync: bool = False, limits: Limits | None = None) -> None:
        self.root = root
        self.fsync = fsync
        """What is in the store is on the disk; who builds into it sees to that as well."""
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._index: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<EnvelopeStore {self.root} {'open' if self._index is not None else 'closed'}>"

    def open(self) -> None:
        """Make the folder, remove what was left unfinished, and bring the index into line with the files."""
        incoming = self.root / INCOMING_NAME
        incoming.mkdir(parents=True, exist_ok=True)
        for left in {*incoming.iterdir(), *self.root.glob("*/*.tmp")}:
            left.unlink(missing_ok=True)  # a process of an earlier gateway may be doing the same
        index = sqlite3.connect(self.root / INDEX_NAME, isolation_level=None, check_same_thread=False)
        index.execute("PRAGMA journal_mode = WAL")
        index.execute(f"PRAGMA synchronous = {'FULL' if self.fsync else 'NORMAL'}")
        index.execute("PRAGMA foreign_keys = ON")
        index.executescript(_SCHEMA)
        self._index = index
        with self._lock:
            self._reconcile()

    def close(self) -> None:
        """Close the index; generators that were handed out keep working."""
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None

    # Adding

    def place(self, envelope_id: str) -> Path:
        """Return where `build_envelope` is to put the archive of a new envelope, its folder made."""
        path = self._folder(envelope_id) / (envelope_id + _SUFFIXES[ArchiveFormat.ZIP])
        path.parent.mkdir(exist_ok=True)
        return path

    def incoming(self) -> Path:
        """Return a new path for an upload to be written to; `add_uploaded` takes it from there."""
        return self.root / INCOMING_NAME / f"{uuid.uuid4()}.tmp"

    def add_built(
        self,
        envelope_id: str,
        *,
        manifest: bytes,
        study_instance_uids: Iterable[str],
        origin: str,
        created_at: datetime,
    ) -> StoredEnvelope:
        """Index an envelope that was built at `place(envelope_id)`. Doing it again changes nothing but the entry."""
        path = self.place(envelope_id)
        self._write_manifest(path.parent, manifest)
        with self._lock:
            return self._enter(envelope_id, path, study_instance_uids, origin=origin, created_at=created_at)

    def add_uploaded(
        self, upload: Path, info: EnvelopeInfo, *, origin: str, created_at: datetime
    ) -> StoredEnvelope:
        """Take over an upload, from `incoming()`, that `check_envelope` has accepted; it is kept byte for byte.

        Raises EnvelopeExists, and leaves the upload to the caller then.
        """
        folder = self._folder(info.id)
        path = folder / (info.id + _SUFFIXES[info.format])
        with self._lock:
            if self._archive(folder) is not None:
                raise EnvelopeExists(info.id)
            folder.mkdir(exist_ok=True)
            if self.fsync:
                _sync(upload)
            try:
                os.rename(upload, path)
                self._write_manifest(folder, info.manifest)
                return self._enter(
                    info.id, path, info.study_instance_uids, origin=origin, created_at=created_at
                )
            except (
                BaseException
            ):  # the sender is told of a failure and repeats it: that must not be a conflict
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def remove(self, envelope_id: str) -> None:
        """Remove an envelope; nothing when there is none."""
        folder = self._folder(envelope_id)
        with self._lock:
            self._connection().execute("DELETE FROM envelope WHERE id = ?", (folder.name,))
            shutil.rmtree(folder, ignore_errors=True)

    # Finding

    def get(self, envelope_id: str) -> StoredEnvelope:
        """Return what is known of an envelope. KeyError also for what is no UUID."""
        canonical = canonical_envelope_id(envelope_id)
        with self._lock:
            row = (
                self._connection()
                .execute(
                    "SELECT id, path, created_at, origin, size_bytes FROM envelope WHERE id = ?", (canonical,)
                )
                .fetchone()
            )
        if row is None:
            raise KeyError(envelope_id)
        return self._stored(row)

    def path(self, envelope_id: str) -> Path:
        """Return the path of an envelope's archive, in whichever format it is."""
        return self.get(envelope_id).path

    def manifest(self, envelope_id: str) -> bytes:
        """Return manifest.json."""
        return (self.path(envelope_id).parent / "manifest.json").read_bytes()

    def find_by_study(self, study_instance_uid: str) -> str | None:
        """Return the id of the newest envelope that holds a study."""
        with self._lock:
            row = (
                self._connection()
                .execute(
                    "SELECT envelope.id FROM study JOIN envelope ON envelope.id = envelope_id WHERE study_uid = ?"
                    " ORDER BY created_at DESC, envelope.rowid DESC LIMIT 1",
                    (study_instance_uid,),
                )
                .fetchone()
            )
        return None if row is None else str(row[0])

    def envelopes(self, *, limit: int = 100) -> list[StoredEnvelope]:
        """Return the newest envelopes."""
        with self._lock:
            rows = (
                self._connection()
                .execute(
                    "SELECT id, path, created_at, origin, size_bytes FROM envelope"
                    " ORDER BY created_at DESC, rowid DESC LIMIT ?",
                    (limit,),
                )
                .fetchall()
            )
        return [self._stored(row) for row in rows]

    # Serving

    def iter_as_zip(self, envelope_id: str) -> Iterator[bytes]:
        """Return the envelope as a ZIP: as it is, or repacked from a tar while it is read.

        The file is open on return, so what can fail fails here, and chunks are never empty. Blocking, like `next`.
        """
        stored = self.get(envelope_id)
        file = open(stored.path, "rb", buffering=0)  # noqa: SIM115 - closed by the generator
        return _as_it_is(file) if stored.format is ArchiveFormat.ZIP else _as_zip(file, self._limits)

    def iter_as_tar_gz(self, envelope_id: str) -> Iterator[bytes]:
        """Return the envelope as a gzip tar: as it is, or repacked from a ZIP while it is read. As `iter_as_zip`."""
        stored = self.get(envelope_id)
        file = open(stored.path, "rb", buffering=0)  # noqa: SIM115 - closed by the generator
        return _as_it_is(file) if stored.format is ArchiveFormat.TAR_GZ else _as_tar_gz(file, self._limits)

    # The index

    def _connection(self) -> sqlite3.Connection:
        if self._index is None:
            raise RuntimeError("the envelope store is not open")
        return self._index

    def _folder(self, envelope_id: str) -> Path:
        canonical = canonical_envelope_id(envelope_id)
        if canonical is None:
            raise ValueError("an envelope id must be a UUID")
        return self.root / canonical

    @staticmethod
    def _archive(folder: Path) -> Path | None:
        for suffix in _SUFFIXES.values():
            path = folder / (folder.name + suffix)
            if path.is_file():
                return path
        return None

    def _stored(self, row: tuple[str, str, str, str, int]) -> StoredEnvelope:
        envelope_id, path, created_at, origin, size_bytes = row
        found = ArchiveFormat.TAR_GZ if path.endswith(".tar.gz") else ArchiveFormat.ZIP
        created = datetime.fromisoformat(created_at)
        return StoredEnvelope(envelope_id, self.root / path, found, created, origin, size_bytes)

    def _enter(
        self, envelope_id: str, path: Path, studies: Iterable[str], *, origin: str, created_at: datetime
    ) -> StoredEnvelope:
        if self.fsync:
            _sync(path.parent)
            _sync(self.root)
        relative = f"{path.parent.name}/{path.name}"
        created = created_at.astimezone(UTC).isoformat(timespec="microseconds")
        row = (envelope_id, relative, created, origin, path.stat().st_size)
        index = self._connection()
        index.execute("BEGIN IMMEDIATE")
        try:
            index.execute("INSERT OR REPLACE INTO envelope VALUES (?, ?, ?, ?, ?)", row)
            index.execute("DELETE FROM study WHERE envelope_id = ?", (envelope_id,))
            index.executemany(
                "INSERT OR IGNORE INTO study VALUES (?, ?)", [(uid, envelope_id) for uid in studies]
            )
            index.execute("COMMIT")
        except BaseException:
            if index.in_transaction:  # a full disk may have rolled back by itself
                index.execute("ROLLBACK")
            raise
        return self._stored(row)

    def _reconcile(self) -> None:
        """Take out entries without a file, put in archives without an entry."""
        index = self._connection()
        indexed = dict(index.execute("SELECT id, path FROM envelope"))
        for envelope_id, path in list(indexed.items()):
            if not (self.root / path).is_file():
                index.execute("DELETE FROM envelope WHERE id = ?", (envelope_id,))
                del indexed[envelope_id]
        for folder in self.root.iterdir():
            if folder.name in indexed or canonical_envelope_id(folder.name) != folder.name:
                continue
            path = self._archive(folder)
            if path is None:
                continue
            try:
                self._reindex(path)
            except (EnvelopeError, OSError) as error:
                logger.warning("%s is not in the index: %s", path.name, error)

    def _reindex(self, path: Path) -> None:
        manifest, studies = describe_archive(path, limits=self._limits)
        if not (path.parent / "manifest.json").is_file():
            self._write_manifest(path.parent, manifest)
        created_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        self._enter(path.parent.name, path, studies, origin="recovered", created_at=created_at)

    def _write_manifest(self, folder: Path, manifest: bytes) -> None:
        temporary = folder / "manifest.json.tmp"
        temporary.write_bytes(manifest)
        if self.fsync:
            _sync(temporary)
        os.replace(temporary, folder / "manifest.json")


def _as_it_is(file: FileIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _as_zip(file: FileIO, limits: Limits) -> Iterator[bytes]:
    with file:
        _, archive = open_archive(file.fileno(), limits=limits)
        stream = ZipStream(hashing=False)
        for name, size_bytes, chunks in archive.contents():
            if size_bytes <= CHUNK_BYTES:
                yield b"".join(stream.add(name, b"".join(chunks)))
            else:
                for buffer in stream.stream(name, chunks, size_bytes=size_bytes):
                    yield bytes(buffer)
        yield from stream.finish()


def _as_tar_gz(file: FileIO, limits: Limits) -> Iterator[bytes]:
    gzip = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    with file:
        _, archive = open_archive(file.fileno(), limits=limits)
        for block in _tar_blocks(archive):
            if compressed := gzip.compress(block):
                yield compressed
        yield gzip.flush()


def _tar_blocks(archive: ZipReader | TarGzReader) -> Iterator[bytes]:
    for name, size_bytes, chunks in archive.contents():
        info = tarfile.TarInfo(name)
        info.size = size_bytes
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield from chunks
        yield bytes(-size_bytes % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
