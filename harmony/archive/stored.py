"""What became of one received object, who wants to know, and what to answer when the disk says no.

`Disposition` and `StoredObject` are the archive's result, `Journal` its interface to whoever promises more
than a file (an envelope, an index): see docs/DESIGN.md, "What has been received", for the order of events.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import NamedTuple, Protocol

from harmony.dimse.status import SUCCESS_OUTCOME, DimseError, Outcome, Status

__all__ = ["Disposition", "Journal", "JournalChain", "StoredObject", "refusal"]


class Disposition(Enum):
    """What became of an object whose data set arrived completely."""

    STORED = "stored"
    IDENTICAL = "identical"
    """The same data set was there already; the sender repeated it. Success, and nothing changed."""
    KEPT_FIRST = "kept first"
    """A different data set has this SOP Instance UID; it stays, this one is dropped. The sender is warned."""
    KEPT_BOTH = "kept both"
    """A different data set has this SOP Instance UID; this one is stored beside it."""
    REPLACED = "replaced"
    """A different data set had this SOP Instance UID, or what a power cut left of this one, and is gone."""

    @property
    def outcome(self) -> Outcome:
        return _KEPT_FIRST_OUTCOME if self is Disposition.KEPT_FIRST else SUCCESS_OUTCOME


_KEPT_FIRST_OUTCOME = Outcome(
    Status.COERCION_OF_DATA_ELEMENTS, "different data under this SOP Instance UID; the first is kept"
)


class StoredObject(NamedTuple):  # one per received object: made in a third of a frozen dataclass's time
    """One object in the archive."""

    path: str
    """The Part 10 file that holds the object now; with IDENTICAL and KEPT_FIRST the one that was there before."""
    study_instance_uid: str
    """As in the data set, empty when it has none, and not necessarily valid (PS3.5 §9.1). So is the series'."""
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    """Of the data set when that is valid, else of the command."""
    transfer_syntax_uid: str
    size_bytes: int
    """Of the file at `path`, file meta included."""
    disposition: Disposition


class Journal(Protocol):
    """Writes down what an association stored, before the object can be seen by anyone."""

    def append(self, stored: StoredObject) -> None:
        """Record an object; its bytes are complete and its final name does not exist yet.

        Called in the event loop, for every disposition. When another process takes the name in this very
        moment it is called again with what the object became instead: the last record of a path holds.
        OSError and DimseError refuse the object, nothing is stored then.
        """

    def sync(self) -> None:
        """Make what was appended durable. Called in a worker thread, only with durability "fsync"."""


class JournalChain:
    """Two journals as one; the first to refuse an object refuses it for both.

    What the first has written down then is an object that does not exist, as after a crash.
    """

    __slots__ = ("_first", "_second")

    def __init__(self, first: Journal, second: Journal) -> None:
        self._first = first
        self._second = second

    def append(self, stored: StoredObject) -> None:
        self._first.append(stored)
        self._second.append(stored)

    def sync(self) -> None:
        self._first.sync()
        self._second.sync()


def refusal(error: Exception) -> DimseError:
    """Return the answer to give for an error while storing: the error itself when it is a DimseError already.

    An OSError is the storage's, never the object's: full, read-only, broken, gone or not ours to write. That is A700
    (out of resources), so that the sender tries again; anything else is a defect, C000 (PS3.4 Table B.2-1). The comment
    names the error, never a path.
    """
    match error:
        case DimseError():
            return error
        case OSError():
            name = errno.errorcode.get(error.errno or 0, type(error).__name__)
            return DimseError(Status.OUT_OF_RESOURCES, f"out of resources: {name}")
        case _:
            return DimseError(
                Status.CANNOT_UNDERSTAND, f"the object could not be stored: {type(error).__name__}"
            )
