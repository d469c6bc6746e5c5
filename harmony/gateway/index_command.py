"""`python -m harmony index rebuild`: make the index of every archive of a configuration again from its files.

For an index that somebody does not trust; one that is missing, damaged or outdated is made again by the next start
anyway. The gateway must not be running: an index has one owner, and this says so when there is another.

Called by `command_line`.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path

from harmony.archive.index import ArchiveIndexError, IndexInUse
from harmony.archive.indexing import Progress, rebuild
from harmony.gateway.config import LoadedConfig
from harmony.gateway.pipelines import assemble

__all__ = ["run"]

EXIT_FAILED = 1
LISTED_SKIPS = 20
REPORT_S = 0.2
"""Between two looks of the progress line."""


def run(config: LoadedConfig) -> int:
    """Rebuild and print what was found. The exit status: 1 when an index could not be made."""
    folders = list(assemble(config).indexes)
    if not folders:
        print("no pipeline has a local archive, so there is no index")
    return max([_rebuild(folder) for folder in folders], default=0)


def _rebuild(folder: Path) -> int:
    if not folder.is_dir():
        print(f"{folder}: nothing was ever received")
        return 0
    line = _Line(folder)
    try:
        progress = rebuild(folder, report=line.show)
    except IndexInUse:
        line.clear()
        print(f"{folder}: the index is in use; stop the gateway first", file=sys.stderr)
        return EXIT_FAILED
    except (ArchiveIndexError, OSError, sqlite3.Error) as error:
        line.clear()
        print(f"{folder}: {error}", file=sys.stderr)
        return EXIT_FAILED
    line.clear()
    print(f"{folder}: {progress.files} files, {progress.indexed} indexed, {progress.skipped} passed over")
    for path, reason in progress.reported[:LISTED_SKIPS]:
        print(f"  {path}: {reason}")
    if len(progress.reported) > LISTED_SKIPS:
        print(f"  and {progress.skipped - LISTED_SKIPS} more, which the log names")
    return 0


class _Line:
    """A line that replaces itself, on a terminal only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shown = sys.stderr.isatty()
        self._began_at = self._told_at = time.monotonic()

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._shown and now >= self._told_at + REPORT_S:
            self._told_at = now
            rate = progress.files / max(now - self._began_at, 0.001)
            text = f"{self._folder}: {progress.files} files, {rate:.0f}/s"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
