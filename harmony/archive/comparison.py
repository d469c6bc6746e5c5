"""Bring an index into agreement with the files: all of them, or those that are named.

The files are the truth. Compared are the size and the time of each; read is only what differs. Files that the archive
did not store, or that cannot be read, are reported and passed over: one of them is no reason not to index the others.

Blocking. Called by `harmony.archive.indexing`, for a batch of arrivals as for a whole archive.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from harmony.archive.index import ArchiveIndexError, Index, IndexedInstance
from harmony.archive.stored_header import NotOurs, read_stored_header

__all__ = ["BATCH", "Progress", "Report", "compare", "index_paths", "stored_files"]

logger = logging.getLogger("harmony.archive")

BATCH = 1000
"""Files per transaction, whose headers are in memory together: a few megabytes."""
MAXIMUM_REPORTED = 1000
"""Files that are not ours, by name; the others are counted."""


@dataclass(slots=True)
class Progress:
    """How far comparing the files with the index has come."""

    files: int = 0
    """Looked at."""
    indexed: int = 0
    removed: int = 0
    """Taken out of the index, because there is no such file."""
    skipped: int = 0
    """Files that are not the archive's."""
    reported: list[tuple[str, str]] = field(default_factory=list)
    """The first MAXIMUM_REPORTED of these: path relative to the root, and why."""

    def skip(self, path: str, reason: str) -> None:
        self.skipped += 1
        if len(self.reported) < MAXIMUM_REPORTED:
            self.reported.append((path, reason))


Report = Callable[[Progress], None]


def compare(index: Index, root: str, report: Report | None = None) -> Progress:
    """Bring an index into agreement with the files: by size and time of each, reading only what differs."""
    progress = Progress()
    known = {hash(entry) for entry in index.files()}
    seen: set[int] = set()
    differing: list[str] = []
    for path, size_bytes, received_ns in stored_files(root, progress):
        progress.files += 1
        if hash((path, size_bytes, received_ns)) in known:
            seen.add(hash(path))
        else:
            differing.append(path)
        if len(differing) >= BATCH:
            seen.update(hash(path) for path in index_paths(index, root, differing, progress))
            differing = []
        if report is not None and progress.files % BATCH == 0:
            report(progress)
    seen.update(hash(path) for path in index_paths(index, root, differing, progress))
    gone = [path for path, _, _ in index.files() if hash(path) not in seen]
    index.remove(gone)
    progress.removed += len(gone)
    for path, reason in progress.reported:
        logger.warning("not indexed: %s: %s", path, reason)
    if report is not None:
        report(progress)
    return progress


def stored_files(root: str, progress: Progress) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of what may be ours: `<study>/<series>/<name>.dcm`. Nothing hidden, no links."""
    for study in _entries(root, "", progress):
        for series in _entries(root, f"{study.name}/", progress) if _is_folder(study, "", progress) else ():
            folder = f"{study.name}/{series.name}/"
            for entry in (
                _entries(root, folder, progress) if _is_folder(series, f"{study.name}/", progress) else ()
            ):
                if not entry.is_file(follow_symlinks=False) or not entry.name.endswith(".dcm"):
                    progress.skip(folder + entry.name, "it is no file that ends in .dcm")
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield folder + entry.name, status.st_size, status.st_mtime_ns


def _entries(root: str, folder: str, progress: Progress) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(f"{root}/{folder}") as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except PermissionError as error:
        progress.skip(folder, str(error.strerror))
        return []


def _is_folder(entry: os.DirEntry[str], parent: str, progress: Progress) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return True
    progress.skip(parent + entry.name, "it is no folder of a study or series")
    return False


def index_paths(index: Index, root: str, paths: Iterable[str], progress: Progress) -> list[str]:
    """Read files and put them into the index, or take them out when they are gone. Returns those put in.

    A file that cannot be read or understood is no reason not to index the others.
    """
    instances: list[IndexedInstance] = []
    gone: list[str] = []
    for path in paths:
        try:
            instances.append(read_stored_header(root, path))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _RESOURCES:
                raise
            gone.append(path)
            _skip(path, error, progress)
    if gone:
        index.remove(gone)
    try:
        index.add(instances)
    except (ArchiveIndexError, OSError):
        raise
    except Exception:  # one of them is something that nobody thought of
        instances = [instance for instance in instances if _add_alone(index, instance, progress)]
    progress.indexed += len(instances)
    return [instance.path for instance in instances]


def _add_alone(index: Index, instance: IndexedInstance, progress: Progress) -> bool:
    try:
        index.add([instance])
    except (ArchiveIndexError, OSError):
        raise
    except Exception as error:
        _skip(instance.path, error, progress)
        return False
    return True


def _skip(path: str, error: Exception, progress: Progress) -> None:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return
        case NotOurs():
            reason = str(error)
        case OSError():
            reason = str(error.strerror)
        case _:
            reason = f"it cannot be indexed ({type(error).__name__})"
            logger.error("%s: %s", path, reason, exc_info=error)
    progress.skip(path, reason)


# What passes, and says nothing about the file.
_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
