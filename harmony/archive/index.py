"""What an index over the archive can do: the seam behind which SQLite stands, and PostgreSQL could.

An index holds, for each stored instance, where its file is and its whole header; it answers queries in the terms of
the DICOM JSON model and of PS3.4 Annex C, and knows nothing of DIMSE, HTTP or how objects arrive. It never is the
truth: the files are, and everything in it can be made again from them (`harmony.archive.indexing`).

What an entity is: `harmony.archive.levels`. A patient's, study's or series' attributes are those of the instance
that was received first (the time of its file, then its UID), so they depend neither on the order in which files are
read again nor on what arrives later. Numbers of related objects, modalities and SOP classes are of all instances.
A second file of one SOP Instance UID in the same series (`duplicates = "keep_both"`) is known but neither returned nor
counted, until the first is gone.

Everything here blocks, and may be called from any thread; `harmony.archive.indexing.stream` brings the answers to an
event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from harmony.archive.levels import Entity, Level
from harmony.archive.matching import Matcher

__all__ = [
    "ArchiveIndexError",
    "Counts",
    "Entity",
    "Index",
    "IndexDamaged",
    "IndexInUse",
    "IndexState",
    "IndexedInstance",
    "Level",
    "StoredInstance",
    "TookTooLong",
    "UniqueKeys",
]


class ArchiveIndexError(Exception):
    """The index cannot do what it was asked to; the files are not affected."""


class IndexInUse(ArchiveIndexError):
    """Another process, or another object in this one, has the index open."""


class IndexDamaged(ArchiveIndexError):
    """The index cannot be read. It is made again from the files when it is opened the next time."""


class TookTooLong(ArchiveIndexError):
    """The answer was wanted within a time and is not there; who can wait may ask again."""


class IndexState(Enum):
    """Whether an index that was opened can be believed."""

    CURRENT = "it is current"
    """But for what its log says."""
    SUSPECT = "the machine ended without closing it"
    INCOMPLETE = "it is new, or was being made when the program ended"


@dataclass(frozen=True, slots=True)
class IndexedInstance:
    """One stored file as it is put into an index."""

    path: str
    """Relative to the archive's root: `<study>/<series>/<name>`, where the names follow from the UIDs."""
    study_instance_uid: str
    """As in the header, though not necessarily valid; may be empty. So are the two others."""
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    size_bytes: int
    received_ns: int
    """The modification time of the file, which is when its last byte arrived."""
    data_set_offset: int
    """Where the data set begins in the file, in bytes."""
    pixel_data_offset: int | None
    """Where (7FE0,0010) or its siblings begin in the file, in bytes, when the file has them and it is known."""
    header: Entity
    """The data set up to the pixel data. What is left out of it is a BulkDataURI, the path of the element."""


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """One stored file, for retrieval."""

    path: str
    """Absolute."""
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    size_bytes: int
    data_set_offset: int
    pixel_data_offset: int | None


@dataclass(frozen=True, slots=True)
class UniqueKeys:
    """Which instances to retrieve (PS3.4 §C.4.2.1.4.1): all that have one of the values of each key given.

    None: any value. An empty sequence matches nothing.
    """

    patient_ids: Sequence[str] | None = None
    study_instance_uids: Sequence[str] | None = None
    series_instance_uids: Sequence[str] | None = None
    sop_instance_uids: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is in an archive."""

    patients: int
    studies: int
    series: int
    instances: int


class Index(Protocol):
    """An index. All methods block; they raise ArchiveIndexError, and OSError when the disk fails."""

    @property
    def state(self) -> IndexState: ...

    def set_current(self) -> None:
        """Say that it agrees with the files."""

    def add(self, instances: Iterable[IndexedInstance]) -> None:
        """Put instances in, in place of what was there for the same paths. All or, on an error, none."""

    def remove(self, paths: Iterable[str]) -> None:
        """Take out what has these paths, relative to the root. Paths that are not there are passed over."""

    def files(self) -> Iterator[tuple[str, int, int]]:
        """Yield path, size in bytes and received_ns of each file that is in."""

    def has(self, path: str) -> bool:
        """Tell whether a path is in."""

    def query(
        self,
        level: Level,
        matcher: Matcher,
        *,
        limit: int | None = None,
        offset: int = 0,
        within_s: float | None = None,
    ) -> Iterator[Entity]:
        """Yield the entities of a level that match, in an order that stays while the archive stays.

        Read a page at a time, so what changes meanwhile may or may not be seen. Studies come newest first. within_s:
        of computing; raise TookTooLong when that is over, and rather than wait for anybody.
        """

    def instances(self, keys: UniqueKeys, *, within_s: float | None = None) -> Iterator[StoredInstance]:
        """Yield the instances to retrieve, series by series. within_s: as in `query`."""

    def count(self, keys: UniqueKeys) -> int:
        """Return how many instances `instances` would yield."""

    def version(self, keys: UniqueKeys, *, within_s: float | None = None) -> str:
        """Return a word that is another one when instances were added, replaced or removed, "" when there are none;
        files are not looked at. within_s: as in `query`."""

    def headers(
        self, keys: UniqueKeys, *, within_s: float | None = None
    ) -> Iterator[tuple[StoredInstance, Entity]]:
        """Yield instances with the header of each as it is stored, but for references to bulk data. within_s: as in
        `query`."""

    def encoded_headers(self, keys: UniqueKeys) -> Iterator[tuple[StoredInstance, bytes]]:
        """Yield the headers, references included, as JSON without white space: decoding takes many times longer than
        the rest."""

    def counts(self) -> Counts: ...

    def clear(self) -> None:
        """Forget everything."""

    def close(self) -> None:
        """Give up the index. Iterators over it end with an ArchiveIndexError."""
