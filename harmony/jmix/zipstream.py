"""Write a ZIP archive as a stream of buffers, never holding a member whole (PKWARE APPNOTE 6.3.10).

Each byte of a member is read once: hashed (SHA-256), checksummed (CRC-32), perhaps compressed, and passed on. What an
envelope's manifest needs to know about a member is there when the member is through, in `ZipStream.members`.

`ZipStream` makes buffers for any output. A member at hand as bytes carries its CRC and sizes in its local header. For
one that is streamed they come later: as a data descriptor when the output is a pure stream (APPNOTE §4.4.4, bit 3).

Where the output can be patched, a member may also be written with room for its local header (`begin`, `write`, `end`)
and named when its name is known (`name`), which may depend on members to come; what the header does not need of the
room is a growth hint (APPNOTE §4.6.10). The directory lists members in the order in which they were named. `zipwriter`
does this with a file, so that the envelopes in the store have no data descriptors, which some readers of stored members
refuse.

Same calls, same bytes: names, order, time and contents decide everything. ZIP64 fields appear where a value needs
them and nowhere else, except that a streamed member of unknown size reserves them.

Not here: reading, encryption, folders as members of their own. Called by `zipwriter` and `store`, in worker threads.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from struct import pack
from typing import Protocol

import zstandard
from zlib_ng import zlib_ng

from harmony.jmix import zipformat as zf
from harmony.jmix.zipformat import Compression, Member, ZipFormatError, check_member_name

__all__ = ["Buffer", "Compression", "Member", "UnnamedMember", "ZipFormatError", "ZipStream"]

Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 640 * 1024
"""How much of a file is read at a time: a CT image of 512 x 512 in one piece, and little enough to stay in the cache
between reading, hashing and writing."""

DEFLATE_LEVEL = 6
ZSTANDARD_LEVEL = 3
_DIRECTORY_BATCH_BYTES = 64 * 1024
_ZIP64_LOCAL_BYTES = 20
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
    room_bytes: int | None = None
    """What it has to fill, when that was decided before the name."""

    @property
    def version_needed(self) -> int:
        if self.compression is Compression.ZSTANDARD:
            return zf.VERSION_ZSTANDARD
        return zf.VERSION_ZIP64 if self.zip64 else zf.VERSION_DEFAULT

    def encode(self, crc32: int, compressed_size: int, size: int) -> bytes:
        """APPNOTE §4.3.7; the ZIP64 field of a local header holds both sizes (§4.5.3)."""
        extra = pack("<HHQQ", zf.ZIP64_EXTRA_ID, 16, size, compressed_size) if self.zip64 else b""
        if self.room_bytes is not None:
            padding = self.room_bytes - zf.LOCAL.size - len(self.name) - len(extra) - zf.GROWTH_HINT.size
            hint = (zf.GROWTH_HINT_EXTRA_ID, 4 + padding, zf.GROWTH_HINT_SIGNATURE, padding)
            extra += zf.GROWTH_HINT.pack(*hint) + bytes(padding)
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


class _Content:
    """What the bytes of a member come to while they pass."""

    __slots__ = ("_compressor", "_digest", "compressed_size_bytes", "crc32", "size_bytes")

    def __init__(self, compressor: _Compressor | None, *, hashing: bool) -> None:
        self.crc32 = self.size_bytes = self.compressed_size_bytes = 0
        self._compressor = compressor
        self._digest = hashlib.sha256() if hashing else None

    @property
    def sha256(self) -> str | None:
        return None if self._digest is None else self._digest.hexdigest()

    def feed(self, chunk: Buffer) -> Buffer:
        """Return what is to be written, which may be nothing yet; a stored chunk is returned as it is."""
        self.crc32 = zlib_ng.crc32(chunk, self.crc32)
        if self._digest is not None:
            self._digest.update(chunk)
        out = chunk if self._compressor is None else self._compressor.compress(chunk)
        self.size_bytes += len(chunk)
        self.compressed_size_bytes += len(out)
        return out

    def flush(self) -> bytes:
        """Return what is still to be written after the last chunk."""
        out = b"" if self._compressor is None else self._compressor.flush()
        self.compressed_size_bytes += len(out)
        return out


@dataclass(frozen=True, slots=True)
class UnnamedMember:
    """A member that is in the archive but for its local header."""

    size_bytes: int
    compressed_size_bytes: int
    crc32: int
    sha256: str | None
    """As in Member."""
    offset_bytes: int
    room_bytes: int
    """Of the local header."""


class ZipStream:
    """One archive in the making. Use its buffers in the order in which they come; not thread-safe.

    compression: of every member. DICOM pixel data of compressed syntaxes gains nothing; stored is the default.
    modified: the time of every member, to two seconds (MS-DOS); 1980-01-01, the earliest there is, when not given.
    hashing: compute SHA-256 of every member.
    patchable: the output can be written over, which members that are named later need.
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
        self._compression = compression
        self._hashing = hashing
        self._patchable = patchable
        self._dos_time, self._dos_date = _dos_time(modified)
        self._headers: list[_LocalHeader] = []
        self._names: set[str] = set()
        self._unnamed_content: _Content | None = None
        self._room = b""
        self._unnamed = 0
        self._state = "ready"

    def add(self, name: str, data: Buffer) -> tuple[bytes, Buffer]:
        """Add a member that is at hand; return its local header, complete, and its (compressed) data."""
        self._claim(name)
        crc32 = zlib_ng.crc32(data)
        digest = hashlib.sha256(data).hexdigest() if self._hashing else None
        body = data
        if self._compression is not Compression.STORED:
            compressor = _compressor(self._compression, len(data))
            body = compressor.compress(data) + compressor.flush()
        zip64 = max(len(data), len(body)) >= zf.MAXIMUM_32
        header = self._header(name, zip64=zip64, descriptor=False)
        encoded = header.encode(crc32, len(body), len(data))
        self._complete(name, header, len(encoded) + len(body), crc32, len(body), len(data), digest)
        return encoded, body

    def stream(
        self, name: str, chunks: Iterable[Buffer], *, size_bytes: int | None = None
    ) -> Iterator[Buffer]:
        """Add a member that arrives in chunks; yields its header, data and descriptor.

        chunks: each is used before the next is asked for; stored chunks are yielded as they are, not copied.
        size_bytes: how much will come, when known. More or less than that raises ZipFormatError, after which the
            archive cannot be finished; so does leaving the iteration early.
        """
        self._claim(name)
        stored = self._compression is Compression.STORED
        limit = zf.MAXIMUM_32 if stored else zf.MAXIMUM_32 - _COMPRESSION_SLACK
        zip64 = size_bytes is None or size_bytes >= limit
        header = self._header(name, zip64=zip64, descriptor=True)
        encoded = header.encode(0, 0, 0)
        yield encoded
        content = self._content(size_bytes)
        for chunk in chunks:
            if size_bytes is not None and content.size_bytes + len(chunk) > size_bytes:
                raise ZipFormatError(f"member {name!r}: more than the {size_bytes} bytes that were announced")
            if out := content.feed(chunk):
                yield out
        if out := content.flush():
            yield out
        size, compressed_size = content.size_bytes, content.compressed_size_bytes
        if size_bytes is not None and size != size_bytes:
            raise ZipFormatError(f"member {name!r}: {size_bytes} bytes were announced, {size} came")
        descriptor = header.descriptor(content.crc32, compressed_size, size)
        yield descriptor
        total = len(encoded) + compressed_size + len(descriptor)
        self._complete(name, header, total, content.crc32, compressed_size, size, content.sha256)

    def begin(self, *, longest_name_bytes: int) -> bytes:
        """Begin a member of a patchable archive whose size and name come later; return room for its header.

        Until every such member is named, the archive cannot be finished.
        """
        if not self._patchable:
            raise ZipFormatError("an archive that cannot be patched has no members without a name")
        if self._state != "ready":
            raise ZipFormatError(f"a member cannot be begun: {self._state}")
        self._state = "a member without a name is incomplete"
        self._room = bytes(zf.LOCAL.size + longest_name_bytes + _ZIP64_LOCAL_BYTES + zf.GROWTH_HINT.size)
        self._unnamed_content = self._content(None)
        return self._room

    def write(self, chunk: Buffer) -> Buffer:
        """Add to the member that was begun; return what is to be written, as `stream` yields it."""
        return self._begun().feed(chunk)

    def end(self) -> tuple[bytes, UnnamedMember]:
        """End the member that was begun; return the rest of its data, and what `name` needs."""
        content = self._begun()
        rest = content.flush()
        member = UnnamedMember(
            content.size_bytes,
            content.compressed_size_bytes,
            content.crc32,
            content.sha256,
            self.offset_bytes,
            len(self._room),
        )
        self.offset_bytes += member.room_bytes + member.compressed_size_bytes
        self._unnamed_content = None
        self._unnamed += 1
        self._state = "ready"
        return rest, member

    def name(self, unnamed: UnnamedMember, name: str) -> tuple[int, bytes]:
        """Name a member, once; return the place and the bytes of its local header."""
        self._claim(name)
        self._state = "ready"
        size, compressed_size = unnamed.size_bytes, unnamed.compressed_size_bytes
        zip64 = max(size, compressed_size) >= zf.MAXIMUM_32
        header = replace(self._header(name, zip64=zip64, descriptor=False), room_bytes=unnamed.room_bytes)
        smallest = zf.LOCAL.size + len(header.name) + _ZIP64_LOCAL_BYTES + zf.GROWTH_HINT.size
        if smallest > unnamed.room_bytes:
            raise ZipFormatError(f"member name {name!r} is longer than the room that was made for it")
        member = Member(
            name,
            size,
            compressed_size,
            unnamed.crc32,
            unnamed.sha256,
            self._compression,
            unnamed.offset_bytes,
        )
        self._enter(member, header)
        self._unnamed -= 1
        return unnamed.offset_bytes, header.encode(unnamed.crc32, compressed_size, size)

    def finish(self) -> Iterator[bytes]:
        """Yield the central directory and the end records (APPNOTE §4.3.12 to §4.3.16). Nothing can follow."""
        if self._state == "ready" and self._unnamed:
            self._state = f"{self._unnamed} members have no name"
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

    def _claim(self, name: str) -> None:
        if self._state != "ready":
            raise ZipFormatError(f"member {name!r} cannot be added: {self._state}")
        problem = check_member_name(name)
        if problem is None and name in self._names:
            problem = "is already in the archive"
        if problem is not None:
            raise ZipFormatError(f"member name {name!r} {problem}")
        self._state = f"member {name!r} is incomplete"

    def _header(self, name: str, *, zip64: bool, descriptor: bool) -> _LocalHeader:
        flags = zf.FLAG_UTF8 | (zf.FLAG_DESCRIPTOR if descriptor else 0)
        return _LocalHeader(name.encode(), self._compression, flags, zip64, self._dos_time, self._dos_date)

    def _content(self, size_bytes: int | None) -> _Content:
        stored = self._compression is Compression.STORED
        compressor = None if stored else _compressor(self._compression, size_bytes)
        return _Content(compressor, hashing=self._hashing)

    def _begun(self) -> _Content:
        if self._unnamed_content is None:
            raise ZipFormatError("no member was begun")
        return self._unnamed_content

    def _complete(
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
        self._enter(member, header)
        self.offset_bytes += total
        self._state = "ready"

    def _enter(self, member: Member, header: _LocalHeader) -> None:
        self.members.append(member)
        self._headers.append(header)
        self._names.add(member.name)


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
