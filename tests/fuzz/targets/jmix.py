"""Archives that somebody else made: ZIP, tar with gzip, and the envelopes in them (PKWARE APPNOTE, POSIX.1 pax)."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harmony.jmix.limits import EnvelopeError, Limits, canonical_envelope_id
from harmony.jmix.reader import check_envelope, describe_archive, format_of_content_type
from harmony.jmix.tarread import TarGzReader
from harmony.jmix.zipformat import check_member_name
from harmony.jmix.zipread import ZipReader
from tests.fuzz.target import target

LIMITS = Limits(
    members=100, member_bytes=1 << 22, total_bytes=1 << 23, ratio_floor_bytes=1 << 20, json_bytes=1 << 16
)


@contextmanager
def _file(data: bytes) -> Iterator[int]:
    """A file of these bytes that has no name."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def _read_all(archive: ZipReader | TarGzReader) -> int:
    total = 0
    for name, size_bytes, chunks in archive.contents():
        assert check_member_name(name) is None
        assert not Path(name).is_absolute()
        assert ".." not in Path(name).parts
        length = sum(map(len, chunks))
        assert length == size_bytes
        total += length
    assert total <= LIMITS.total_bytes
    return total


@target(EnvelopeError, maximum_bytes=8192)
def zip_reader(data: bytes) -> None:
    """An archive that is read to its end is read with what it announced, and within the limits."""
    with _file(data) as fd:
        _read_all(ZipReader(fd, limits=LIMITS))


@target(EnvelopeError, maximum_bytes=16384)
def tar_reader(data: bytes) -> None:
    """The same of a tar; unless the first byte is 1F, the rest is compressed first, for gzip has a checksum."""
    if data[:1] != b"\x1f":
        data = gzip.compress(data[1:], compresslevel=1, mtime=0)
    with _file(data) as fd:
        _read_all(TarGzReader(fd, limits=LIMITS))


@target(EnvelopeError)
def envelope(data: bytes) -> None:
    """Documents of an envelope, with two NULs between them: manifest, metadata, list of files, a media type."""
    manifest, metadata, files, media_type = (data.split(b"\0\0", 3) + [b""] * 3)[:4]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, document in (("manifest.json", manifest), ("payload/metadata.json", metadata)):
            archive.writestr(zipfile.ZipInfo(name), document)
        if files:
            archive.writestr(zipfile.ZipInfo("payload/files.json"), files)
            archive.writestr(zipfile.ZipInfo("payload/files/report.pdf"), b"%PDF-")
        archive.writestr(zipfile.ZipInfo("payload/dicom/series_1/image_001.dcm"), b"image")
    with _file(content.getvalue()) as fd:
        path = Path(f"/proc/self/fd/{fd}")
        format_of_content_type(media_type.decode("latin-1") or None)
        describe_archive(path, limits=LIMITS)
        found = check_envelope(path, limits=LIMITS)
        assert canonical_envelope_id(found.id) == found.id
        assert found.instance_count == 1
