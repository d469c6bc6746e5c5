"""A storage SCU that sends every Part 10 file under some folders or files, as it is, over several associations at once.

    python examples/embedding/send_folder.py 127.0.0.1 11112 images/ --called ARCHIVE --connections 4

A peer to try it on, with DCMTK: `storescp --fork +xa 11112`; with `+B` it writes the bytes as they come.

One line per file on stdout, its outcome and its path; progress on stderr. Files that are not DICOM files are passed
over. Exit status 0: every DICOM file was stored; 1: some were not; 2: there were none.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from harmony.dicom import is_valid_uid
from harmony.dimse import (
    AssociationPool,
    Part10Error,
    Peer,
    StoreResult,
    describe_status,
    propose_query,
    read_file_meta_from,
    store_many,
)

MAXIMUM_PAIRS = 127
"""Presentation contexts of an association, PS3.8 §9.3.2.2, less one for Verification."""
DICOMDIR = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: found in files, never sent."""

Pair = tuple[str, str]
"""SOP class and transfer syntax: what a presentation context is for."""


def scan(places: Iterable[Path]) -> dict[Pair, list[Path]]:
    """The DICOM files under some folders or files, by what they need of an association."""
    found: dict[Pair, list[Path]] = {}
    for path in files_in(places):
        try:
            meta = read_file_meta_from(path)
        except (Part10Error, OSError) as error:
            print(f"passed over {path}: {error}", file=sys.stderr)
            continue
        pair = meta.media_storage_sop_class_uid, meta.transfer_syntax_uid
        if pair[0] == DICOMDIR or not all(map(is_valid_uid, pair)):
            # One UID that cannot be encoded would spoil the proposal for all the others.
            print(f"passed over {path}: its SOP class or transfer syntax cannot be proposed", file=sys.stderr)
            continue
        found.setdefault(pair, []).append(path)
    return found


def files_in(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(path for path in place.rglob("*") if path.is_file())
        else:
            yield place


async def send(files: dict[Pair, list[Path]], peer: Peer, connections: int) -> int:
    """Send the files, as many pairs at a time as fit an association; returns how many were not stored."""
    total, done, failed = sum(map(len, files.values())), 0, 0
    pairs = list(files)
    async with AssociationPool(peer, propose_query([]), maximum_associations=connections) as pool:
        for start in range(0, len(pairs), MAXIMUM_PAIRS):
            some = pairs[start : start + MAXIMUM_PAIRS]
            paths = [path for pair in some for path in files[pair]]
            results = store_many(pool, paths, connections=connections, pairs=some)
            async with contextlib.aclosing(results):
                async for result in results:
                    done += 1
                    failed += result.error is not None
                    print(f"{describe(result)}: {result.item!s}", flush=True)
                    print(f"{done} of {total}, {failed} failed", file=sys.stderr)
    return failed


def describe(result: StoreResult) -> str:
    if result.outcome is None:  # it was not sent, or nobody answered
        return f"not stored, {result.error}"
    if result.error is not None:  # the peer says no to this one
        return str(result.error)
    comment = f" ({result.outcome.error_comment})" if result.outcome.error_comment else ""
    return describe_status(result.outcome.status) + comment


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="the peer's name or address")
    parser.add_argument("port", type=int)
    parser.add_argument("places", nargs="+", type=Path, metavar="FOLDER_OR_FILE")
    parser.add_argument("--called", default="ANY-SCP", help="the peer's AE title")
    parser.add_argument("--calling", default="HARMONY_SCU", help="our AE title")
    parser.add_argument("--connections", type=int, default=4, help="associations at once, 4 by default")
    arguments = parser.parse_args()
    files = scan(arguments.places)
    if not files:
        print("no DICOM files", file=sys.stderr)
        return 2
    peer = Peer(arguments.host, arguments.port, arguments.called, arguments.calling)
    failed = asyncio.run(send(files, peer, arguments.connections))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
