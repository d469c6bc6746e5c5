"""What became of the files of a flood, in numbers: by status, by kind of error; the rate; and all of it as a table.

Holds counters and a few failures as examples, whatever the number of files. Messages of peers are shown with what is
not printable replaced: they must not command a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harmony.dicom.transcode import TranscodeError
from harmony.dimse.part10 import Part10Error
from harmony.dimse.scu import NoPresentationContext
from harmony.dimse.status import describe_status
from harmony.send.files import PassedOver, Unreadable
from harmony.send.flood import Result
from harmony.ul.errors import AssociationError, AssociationRejected, ConnectFailed, DeadlineExceeded

__all__ = ["Failure", "Tally", "described", "failure_of", "printable"]

EXAMPLES: Final = 10
"""Failures that are kept to be shown."""

MEGABYTE: Final = 1e6

_KINDS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (NoPresentationContext, "No presentation context was accepted"),
    (ConnectFailed, "No association: cannot connect"),
    (AssociationRejected, "No association: rejected"),
    (DeadlineExceeded, "No answer in time"),
    (AssociationError, "Association lost"),
    (TranscodeError, "Data set cannot be converted"),
    (Part10Error, "File meta information unusable"),
    (EOFError, "File became shorter"),
    (OSError, "Cannot be read"),
)
"""The first that fits; subclasses before their bases."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A file, or a folder, that was not sent or not stored."""

    path: str
    reason: str
    status: int | None = None
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    transfer_syntax_uid: str = ""
    tries: int = 0


def failure_of(item: Result | PassedOver | Unreadable) -> Failure | None:
    """None for what is stored, and for what was passed over."""
    if isinstance(item, PassedOver) or (isinstance(item, Result) and item.error is None):
        return None
    reason = printable(str(item.error) or type(item.error).__name__)
    if isinstance(item, Unreadable):
        return Failure(item.path, reason)
    found = item.found
    return Failure(
        found.path,
        reason,
        item.outcome.status if item.outcome else None,
        found.sop_class_uid,
        found.sop_instance_uid,
        found.transfer_syntax_uid,
        item.tries,
    )


def described(item: Result | PassedOver | Unreadable) -> str:
    """One line: what became of a file, which one it is, and why when it is not stored."""
    if isinstance(item, PassedOver):
        return f"Passed over: {printable(item.path)}"
    if (failure := failure_of(item)) is not None:
        return f"Failed: {printable(failure.path)}: {failure.reason}"
    assert isinstance(item, Result)
    return f"{_label(item)}: {printable(item.found.path)}"


class Tally:
    """Counts. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self.stored = 0
        """With warnings, too."""
        self.warnings = 0
        self.failed = 0
        self.passed_over = 0
        self.transcoded = 0
        self.repeated = 0
        self.stored_bytes = 0
        self.sent_bytes = 0
        """Also of what is under way, or was sent again."""
        self.examples: list[Failure] = []
        self.began_at = time.monotonic()
        self.ended_at: float | None = None
        self._rows: dict[str, list[int]] = {}  # objects and bytes

    @property
    def done(self) -> int:
        """Files of which it is known what became of them."""
        return self.stored + self.failed + self.passed_over

    @property
    def elapsed_s(self) -> float:
        return max((self.ended_at or time.monotonic()) - self.began_at, 1e-6)

    def add(self, item: Result | PassedOver | Unreadable) -> None:
        if isinstance(item, PassedOver):
            self.passed_over += 1
            return
        if (failure := failure_of(item)) is not None:
            self.failed += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(failure)
        size = 0
        if isinstance(item, Result):
            size = item.size_bytes
            self.repeated += item.tries > 1
            if failure is None:
                self.stored += 1
                self.stored_bytes += size
                self.transcoded += item.transcoded
                self.warnings += item.outcome is not None and not item.outcome.is_success
        row = self._rows.setdefault(_label(item), [0, 0])
        row[0] += 1
        row[1] += size

    def end(self) -> None:
        """The clock stops."""
        self.ended_at = time.monotonic()

    def add_bytes(self, size: int) -> None:
        self.sent_bytes += size

    def lines(self) -> Iterator[str]:
        """The table, the totals, the first failures."""
        rows = [("result", "objects", "MB")]
        rows += [
            (label, str(objects), _megabytes(size)) for label, (objects, size) in sorted(self._rows.items())
        ]
        if self.passed_over:
            rows.append(("passed over: no DICOM files to send", str(self.passed_over), ""))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for label, objects, size in rows:
            yield f"{label.ljust(widths[0])}  {objects.rjust(widths[1])}  {size.rjust(widths[2])}".rstrip()
        seconds = self.elapsed_s
        yield (
            f"\n{self.stored} of {self.stored + self.failed} stored in {seconds:.2f} s: "
            f"{self.stored / seconds:.1f} objects/s, {self.stored_bytes / MEGABYTE / seconds:.1f} MB/s"
        )
        for number, what in (
            (self.warnings, "stored with a warning"),
            (self.transcoded, "sent in another transfer syntax than stored"),
            (self.repeated, "sent more than once"),
            (self.failed, "failed"),
        ):
            if number:
                yield f"{number} {what}"
        for failure in self.examples:
            yield f"  {printable(failure.path)}: {failure.reason}"
        if self.failed > len(self.examples) > 0:
            yield f"  and {self.failed - len(self.examples)} more"


def _label(item: Result | Unreadable) -> str:
    if isinstance(item, Result) and item.outcome is not None:
        return describe_status(item.outcome.status)
    error = item.error
    return next((name for kind, name in _KINDS if isinstance(error, kind)), "Not sent")


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:.1f}"


def printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
