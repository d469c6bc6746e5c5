"""The hash of a payload that a manifest carries as `security.payload_hash`, in the forms that are in use.

The JMIX specification hashes a listing: one line per entry below payload/, a folder by its path, a file by its path,
size and SHA-256; lines sorted by path, joined, hashed. It does not say what stands between the fields of a line nor
between the lines. Harmony writes a single space between fields, a line feed between lines, none at the end, paths
relative to payload/, folders without a trailing slash, hexadecimal in lower case:

    metadata.json 812 3a7b...
    series_1
    series_1/image_001.dcm 526340 91fe...

The JMIX libraries hash contents instead: for each file, sorted by path, its path, a line feed, and its bytes.
`ContentHash` is that form; checking tries both, and the listing also with other separators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import product

__all__ = ["ContentHash", "listing_hash", "listing_hashes"]

FIELD_SEPARATORS = (" ", "\t", ":", "|", ",", "  ")
FOLDER_ENDINGS = ("", "/", None)  # None: no lines for folders
LINE_ENDINGS = ("", "\n")  # after the last line
"""The first of each is ours."""


def listing_hash(files: Mapping[str, tuple[int, str]]) -> str:
    """Return `sha256:` and the hash of the listing of a payload.

    files: path relative to payload/ -> size in bytes and SHA-256 in hexadecimal.
    """
    return next(listing_hashes(files))


def listing_hashes(files: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    """Yield the hash of the listing, first as Harmony writes it, then in the other readings of the specification."""
    folders: set[str] = set()
    for path in files:
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    entries = sorted([*files, *folders])
    for slash, end, separator in product(FOLDER_ENDINGS, LINE_ENDINGS, FIELD_SEPARATORS):
        lines = []
        for path in entries:
            if path in files:
                size_bytes, sha256 = files[path]
                lines.append(f"{path}{separator}{size_bytes}{separator}{sha256}")
            elif slash is not None:
                lines.append(path + slash)
        text = "\n".join(lines) + end
        yield "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class ContentHash:
    """The form of the JMIX libraries. Files must be added in the order of their paths."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, path: str, chunks: Iterable[bytes]) -> None:
        """Add one file; path relative to payload/."""
        self._hash.update(path.encode() + b"\n")
        for chunk in chunks:
            self._hash.update(chunk)

    def value(self) -> str:
        """Return `sha256:` and the hash."""
        return "sha256:" + self._hash.hexdigest()
