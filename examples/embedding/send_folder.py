"""A storage SCU that sends every Part 10 file under some folders or files, as it is.

    python examples/embedding/send_folder.py 127.0.0.1 11112 images/ --called ARCHIVE

A peer to try it on, with DCMTK: `storescp +xa 11112`; with `+B` it writes the bytes as they come.

One line per file on stdout, its outcome and its path; progress on stderr. Files that are not DICOM files are passed
over. Exit status 0: every DICOM file was stored; 1: some were not; 2: there were none.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from harmony.dicom import is_valid_uid
from harmony.dimse import (
    SCU,
    DimseError,
    NoPresentationContext,
    Part10Error,
    associate,
    describe_status,
    read_file_meta_from,
)
from harmony.ul import ULError, propose_contexts

MAXIMUM_CONTEXTS = 128
"""Odd presentation context IDs from 1 to 255, PS3.8 §9.3.2.2."""
DICOMDIR = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: found in files, never sent."""

Kind = tuple[str, str]
"""SOP class and transfer syntax: what a presentation context is for."""


class Report:
    """Counts and prints outcomes."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.failed = 0

    def add(self, path: Path, text: str, *, stored: bool) -> None:
        self.done += 1
        self.failed += not stored
        print(f"{text}: {path}", flush=True)
        print(f"{self.done} of {self.total}, {self.failed} failed", file=sys.stderr)


def scan(places: Iterable[Path]) -> dict[Kind, list[Path]]:
    """The DICOM files under some folders or files, by what they need of an association."""
    found: dict[Kind, list[Path]] = {}
    for path in files_in(places):
        try:
            meta = read_file_meta_from(path)
        except (Part10Error, OSError) as error:
            print(f"passed over {path}: {error}", file=sys.stderr)
            continue
        kind = meta.media_storage_sop_class_uid, meta.transfer_syntax_uid
        if kind[0] == DICOMDIR or not all(map(is_valid_uid, kind)):
            # One UID that cannot be encoded would spoil the proposal for all the others.
            print(f"passed over {path}: its SOP class or transfer syntax cannot be proposed", file=sys.stderr)
            continue
        found.setdefault(kind, []).append(path)
    return found


def files_in(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(path for path in place.rglob("*") if path.is_file())
        else:
            yield place


async def send(
    files: dict[Kind, list[Path]], host: str, port: int, *, called: str, calling: str, report: Report
) -> None:
    """Send files over as many associations as their kinds need, one after the other."""
    kinds = list(files)
    for start in range(0, len(kinds), MAXIMUM_CONTEXTS):
        batch = kinds[start : start + MAXIMUM_CONTEXTS]
        waiting = [path for kind in batch for path in files[kind]]
        waiting.reverse()
        try:
            async with associate(
                host,
                port,
                called_ae_title=called,
                calling_ae_title=calling,
                contexts=propose_contexts((sop_class, [syntax]) for sop_class, syntax in batch),
            ) as scu:
                while waiting:
                    text, stored = await store(scu, waiting[-1])
                    report.add(waiting.pop(), text, stored=stored)
        except (ULError, EOFError) as error:
            # The association never was, or is over: whatever has no outcome yet was not stored.
            while waiting:
                report.add(waiting.pop(), f"not sent, {error}", stored=False)


async def store(scu: SCU, path: Path) -> tuple[str, bool]:
    """Send one file; what came of it, and whether it is stored. Raises what ended the association."""
    try:
        outcome = await scu.store(path)
    except DimseError as error:  # the peer says no to this one
        return str(error), False
    except (NoPresentationContext, Part10Error, OSError) as error:  # it was not sent, the next one may be
        return f"not sent, {error}", False
    comment = f" ({outcome.error_comment})" if outcome.error_comment else ""
    return describe_status(outcome.status) + comment, True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="the peer's name or address")
    parser.add_argument("port", type=int)
    parser.add_argument("places", nargs="+", type=Path, metavar="FOLDER_OR_FILE")
    parser.add_argument("--called", default="ANY-SCP", help="the peer's AE title")
    parser.add_argument("--calling", default="HARMONY_SCU", help="our AE title")
    arguments = parser.parse_args()
    files = scan(arguments.places)
    if not files:
        print("no DICOM files", file=sys.stderr)
        return 2
    report = Report(sum(map(len, files.values())))
    asyncio.run(
        send(
            files,
            arguments.host,
            arguments.port,
            called=arguments.called,
            calling=arguments.calling,
            report=report,
        )
    )
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
