"""Write a ZIP archive as a stream of buffers, never holding a member whole (PKWARE APPNOTE 6.3.10).

Each byte of a member is read once: hashed (SHA-256), checksummed (CRC-32), perhaps compressed, and passed on. What an
envelope's manifest needs to know about a member is there when the member is through, in `ZipStream.members`.

`ZipStream` makes buffers for any output. A member at hand as bytes carries its CRC and sizes in its local header. For
one that is streamed they come later: as a data descriptor when the output is a pure stream (APPNOTE §4.4.4, bit 3),
or as a header to be written over the first one when the output can be patched. `ZipFileWriter` does the latter with a
file, so that the envelopes in the store have no data descriptors, which some readers of stored members refuse.

Same calls, same bytes: names, order, time and contents decide everything. ZIP64 fields appear where a value needs
them and nowhere else, except that a streamed member of unknown size reserves them.

Not here: reading, encryption, folders as members of their own. Called by `envelope` and `store`, in worker threads.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from struct import pack
from types import TracebackType
from typing import Protocol, Self

import zstandard

from harmony.jmix import zipformat as zf
from harmony.jmix.zipformat import Compression, Member, ZipFormatError, check_member_name

__all__ = ["Buffer", "Compression", "Member", "ZipFileWriter", "ZipFormatError", "ZipStream"]

Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 512 * 1024
"""How much of a file is read at a time: large enough for few system calls, small enough to stay in the cache between
reading, hashing and writing. A file of up to this size becomes a member with a complete local header at once."""

DEFLATE_LEVEL = 6
ZSTANDARD_LEVEL = 3
_DIRECTORY_BATCH_BYTES = 64 * 1024
_COMPRESSION_SLACK = 64 * 1024 * 1024
"""Deflate and Zstandard add less than 0.1 % to what they cannot compress; a member this close to 4 GiB gets ZIP64."""

REGULAR_FILE = 0o100644 << 16
"""External attributes under Unix: an ordinary file, readable by all (APPNOTE §4.4.15)."""


class _Compressor(Protocol):
    def compress(self, data: Buffer, /) -> bytes: ...
    def flush(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _LocalHeader:
    """What stands before a member's data; `encode` gives the same length whatever the CRC and sizes are."""

    name: bytes
    compression: Compression
    flags: int
    zip64: bool
    dos_time: int
    dos_date: int

    @property
    def version_needed(self) -> int:
        if self.compression is Compression.ZSTANDARD:
            return zf.VERSION_ZSTANDARD
        return zf.VERSION_ZIP64 if self.zip64 else zf.VERSION_DEFAULT

    def encode(self, crc32: int, compressed_size: int, size: int) -> bytes:
        """APPNOTE §4.3.7; the ZIP64 field of a local header holds both sizes (§4.5.3)."""
        extra = pack("<HHQQ", zf.ZIP64_EXTRA_ID, 16, size, compressed_size) if self.zip64 else b""
        fixed = zf.LOCAL.pack(
            zf.LOCAL_SIGNATURE,
            self.version_needed,
            self.flags,
            self.compression,
            self.dos_time,
            self.dos_date,
            crc32,
            zf.MAXIMUM_32 if self.zip64 else compressed_size,
            zf.MAXIMUM_32 if self.zip64 else size,
            len(self.name),
            len(extra),
        )
        return fixed + self.name + extra

    def descriptor(self, crc32: int, compressed_size: int, size: int) -> bytes:
        """APPNOTE §4.3.9; eight-byte sizes when the header has the ZIP64 field (§4.3.9.2)."""
        layout = zf.DESCRIPTOR64 if self.zip64 else zf.DESCRIPTOR
        return layout.pack(zf.DESCRIPTOR_SIGNATURE, crc32, compressed_size, size)


class ZipStream:
    """One archive in the making. Use its buffers in the order in which they come; not thread-safe.

    compression: of every member. DICOM pixel data of compressed syntaxes gains nothing; stored is the default.
    modified: the time of every member, to two seconds (MS-DOS); 1980-01-01, the earliest there is, when not given.
    hashing: compute SHA-256 of every member.
    patchable: the output can be written over; see `patch`.
    """

    def __init__(
        self,
        *,
        compression: Compression = Compression.STORED,
        modified: datetime | None = None,
        hashing: bool = True,
        patchable: bool = False,
    ) -> None:
        self.members: list[Member] = []
        self.offset_bytes = 0
        """How many bytes have been handed out."""
        self.patch: tuple[int, bytes] | None = None
        """After a streamed member of a patchable archive: the place and the bytes of its final local header."""
        self._compression = compression
        self._hashing = hashing
        self._patchable = patchable
        self._dos_time, self._dos_date = _dos_time(modified)
        self._headers: list[_LocalHeader] = []
        self._names: set[str] = set()
        self._state = "ready"

    def add(self, name: str, data: Buffer) -> tuple[bytes, Buffer]:
        """Add a member that is at hand; return its local header, complete, and its (compressed) data."""
        self._begin(name)
        crc32 = zlib.crc32(data)
        digest = hashlib.sha256(data).hexdigest() if self._hashing else None
        body = data
        if self._compression is not Compression.STORED:
            compressor = _compressor(self._compression, len(data))
            body = compressor.compress(data) + compressor.flush()
        zip64 = max(len(data), len(body)) >= zf.MAXIMUM_32
        header = self._header(name, zip64=zip64, descriptor=False)
        encoded = header.encode(crc32, len(body), len(data))
        self._end(name, header, len(encoded) + len(body), crc32, len(body), len(data), digest)
        return encoded, body

    def stream(
        self, name: str, chunks: Iterable[Buffer], *, size_bytes: int | None = None
    ) -> Iterator[Buffer]:
        """Add a member that arrives in chunks; yields its header, data and, unless patchable, its descriptor.

        chunks: each is used before the next is asked for; stored chunks are yielded as they are, not copied.
        size_bytes: how much will come, when known. More or less than that raises ZipFormatError, after which the
            archive cannot be finished; so does leaving the iteration early.
        """
        self._begin(name)
        stored = self._compression is Compression.STORED
        limit = zf.MAXIMUM_32 if stored else zf.MAXIMUM_32 - _COMPRESSION_SLACK
        zip64 = size_bytes is None or size_bytes >= limit
        header = self._header(name, zip64=zip64, descriptor=not self._patchable)
        encoded = header.encode(0, 0, 0)
        yield encoded
        compressor = None if stored else _compressor(self._compression, size_bytes)
        digest = hashlib.sha256() if self._hashing else None
        crc32 = size = compressed_size = 0
        for chunk in chunks:
            size += len(chunk)
            if size_bytes is not None and size > size_bytes:
                raise ZipFormatError(f"member {name!r}: more than the {size_bytes} bytes that were announced")
            crc32 = zlib.crc32(chunk, crc32)
            if digest is not None:
                digest.update(chunk)
            out = chunk if compressor is None else compressor.compress(chunk)
            if out:
                compressed_size += len(out)
                yield out
        if compressor is not None:
            out = compressor.flush()
            if out:
                compressed_size += len(out)
                yield out
        if size_bytes is not None and size != size_bytes:
            raise ZipFormatError(f"member {name!r}: {size_bytes} bytes were announced, {size} came")
        total = len(encoded) + compressed_size
        patch = None
        if self._patchable:
            patch = (self.offset_bytes, header.encode(crc32, compressed_size, size))
        else:
            descriptor = header.descriptor(crc32, compressed_size, size)
            total += len(descriptor)
            yield descriptor
        hexdigest = None if digest is None else digest.hexdigest()
        self._end(name, header, total, crc32, compressed_size, size, hexdigest)
        self.patch = patch

    def finish(self) -> Iterator[bytes]:
        """Yield the central directory and the end records (APPNOTE §4.3.12 to §4.3.16). Nothing can follow."""
        if self._state != "ready":
            raise ZipFormatError(f"the archive cannot be finished: {self._state}")
        self._state = "it is finished"
        start = self.offset_bytes
        size = 0
        batch = bytearray()
        for member, header in zip(self.members, self._headers, strict=True):
            batch += _central_header(member, header)
            if len(batch) >= _DIRECTORY_BATCH_BYTES:
                size += len(batch)
                yield bytes(batch)
                batch.clear()
        size += len(batch)
        records = _end_records(len(self.members), size, start)
        self.offset_bytes = start + size + len(records)
        yield bytes(batch) + records

    def _begin(self, name: str) -> None:
        if self._state != "ready":
            raise ZipFormatError(f"member {name!r} cannot be added: {self._state}")
        problem = check_member_name(name)
        if problem is None and name in self._names:
            problem = "is already in the archive"
        if problem is not None:
            raise ZipFormatError(f"member name {name!r} {problem}")
        self.patch = None
        self._state = f"member {name!r} is incomplete"

    def _header(self, name: str, *, zip64: bool, descriptor: bool) -> _LocalHeader:
        flags = zf.FLAG_UTF8 | (zf.FLAG_DESCRIPTOR if descriptor else 0)
        return _LocalHeader(name.encode(), self._compression, flags, zip64, self._dos_time, self._dos_date)

    def _end(
        self,
        name: str,
        header: _LocalHeader,
        total: int,
        crc32: int,
        compressed_size: int,
        size: int,
        sha256: str | None,
    ) -> None:
        member = Member(name, size, compressed_size, crc32, sha256, self._compression, self.offset_bytes)
        self.members.append(member)
        self._headers.append(header)
        self._names.add(name)
        self.offset_bytes += total
        self._state = "ready"


class ZipFileWriter:
    """Write an archive to a new file, with complete local headers throughout. Blocking; not thread-safe.

    path: must not exist; a partial file is left behind when something fails, for the caller to remove.
    The other arguments are those of ZipStream. Raises ZipFormatError and OSError.
    """

    def __init__(
        self,
        path: Path,
        *,
        compression: Compression = Compression.STORED,
        modified: datetime | None = None,
        hashing: bool = True,
    ) -> None:
        self.stream = ZipStream(compression=compression, modified=modified, hashing=hashing, patchable=True)
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()
        self._chunk = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, data: Buffer) -> Member:
        """Add a member that is at hand."""
        self._write(self.stream.add(name, data))
        return self.stream.members[-1]

    def add_file(self, name: str, path: Path) -> Member:
        """Add the contents of a file, read once, in chunks. It must not change meanwhile."""
        with open(path, "rb", buffering=0) as source:
            size_bytes = os.fstat(source.fileno()).st_size
            if size_bytes <= CHUNK_BYTES:
                data = source.read(size_bytes + 1)
                if len(data) == size_bytes:
                    return self.add(name, data)
                source.seek(0)  # a short read or a file that grew: the slow way finds out which
            if not self._chunk:
                self._chunk = bytearray(CHUNK_BYTES)
            with memoryview(self._chunk) as view:
                for buffer in self.stream.stream(name, _chunks(source.readinto, view), size_bytes=size_bytes):
                    self._write((buffer,))
        if self.stream.patch is not None:
            offset, header = self.stream.patch
            os.pwrite(self._file.fileno(), header, offset)
        return self.stream.members[-1]

    def finish(self, *, fsync: bool = False) -> int:
        """Write the directory, make it durable if asked, close the file; return the size of the archive."""
        self._write(tuple(self.stream.finish()))
        if fsync:
            os.fsync(self._file.fileno())
        self._file.close()
        return self.stream.offset_bytes

    def _write(self, buffers: tuple[Buffer, ...]) -> None:
        fd = self._file.fileno()
        if len(buffers) == 2:  # the usual member: header and data in one system call
            header, body = buffers
            written = os.writev(fd, buffers)
            if written == len(header) + len(body):
                return
            buffers = (memoryview(header)[written:], memoryview(body)[max(0, written - len(header)) :])
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                rest = rest[os.write(fd, rest) :]


class _ReadInto(Protocol):
    def __call__(self, buffer: memoryview, /) -> int | None: ...


def _chunks(readinto: _ReadInto, view: memoryview) -> Iterator[memoryview]:
    """Yield views of one reused buffer: fresh memory for every chunk costs more than hashing it."""
    while count := readinto(view):
        yield view[:count]


def _compressor(compression: Compression, size_bytes: int | None) -> _Compressor:
    if compression is Compression.DEFLATE:
        return zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = -1 if size_bytes is None else size_bytes
    return zstandard.ZstdCompressor(level=ZSTANDARD_LEVEL).compressobj(size=size)


def _central_header(member: Member, local: _LocalHeader) -> bytes:
    """APPNOTE §4.3.12; its ZIP64 field holds only what does not fit, in this order (§4.5.3)."""
    values = (member.size_bytes, member.compressed_size_bytes, member.offset_bytes)
    large = [value for value in values if value >= zf.MAXIMUM_32]
    extra = pack(f"<HH{len(large)}Q", zf.ZIP64_EXTRA_ID, 8 * len(large), *large) if large else b""
    size, compressed_size, offset = (min(value, zf.MAXIMUM_32) for value in values)
    version = max(local.version_needed, zf.VERSION_ZIP64 if large else 0)
    fixed = zf.CENTRAL.pack(
        zf.CENTRAL_SIGNATURE,
        zf.MADE_BY_UNIX | version,
        version,
        local.flags,
        local.compression,
        local.dos_time,
        local.dos_date,
        member.crc32,
        compressed_size,
        size,
        len(local.name),
        len(extra),
        0,
        0,
        0,
        REGULAR_FILE,
        offset,
    )
    return fixed + local.name + extra


def _end_records(entries: int, size: int, start: int) -> bytes:
    """APPNOTE §4.3.14 to §4.3.16: the ZIP64 records only when a field of the old one is too small."""
    records = b""
    if entries >= zf.MAXIMUM_16 or size >= zf.MAXIMUM_32 or start >= zf.MAXIMUM_32:
        version = zf.VERSION_ZIP64
        records = zf.END64.pack(
            zf.END64_SIGNATURE,
            zf.END64.size - 12,
            zf.MADE_BY_UNIX | version,
            version,
            0,
            0,
            entries,
            entries,
            size,
            start,
        ) + zf.LOCATOR64.pack(zf.LOCATOR64_SIGNATURE, 0, start + size, 1)
    count = min(entries, zf.MAXIMUM_16)
    return records + zf.END.pack(
        zf.END_SIGNATURE, 0, 0, count, count, min(size, zf.MAXIMUM_32), min(start, zf.MAXIMUM_32), 0
    )


def _dos_time(modified: datetime | None) -> tuple[int, int]:
    """Return time and date in MS-DOS form, in UTC so that the bytes do not depend on the machine's time zone."""
    if modified is None:
        return 0, 0x21
    if modified.tzinfo is not None:
        modified = modified.astimezone(UTC)
    if not 1980 <= modified.year <= 2107:
        raise ZipFormatError(f"year {modified.year} does not fit into an MS-DOS date (1980 to 2107)")
    time = modified.hour << 11 | modified.minute << 5 | modified.second // 2
    return time, (modified.year - 1980) << 9 | modified.month << 5 | modified.day
