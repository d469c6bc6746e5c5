"""Read a ZIP archive that a stranger made, within limits and without believing it (PKWARE APPNOTE 6.3.10).

The central directory decides what is in the archive, and everything else must agree with it: the directory ends where
the end records begin, every local header repeats what the directory says, members neither overlap nor reach into the
directory, and data inflates to exactly the size and CRC-32 that were announced. So an archive means one thing, here
and to every reader after us. Names are checked as `zipformat.check_member_name` says; anything that is not a regular
file or a folder is refused, as are encryption, archives in several parts and compression methods other than stored,
deflate and Zstandard.

Nothing is extracted and nothing is held whole except the directory. Called by `reader` and `store`; blocking.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import IO, cast

import zstandard
from zlib_ng import zlib_ng

from harmony.jmix import zipformat as zf
from harmony.jmix.limits import EnvelopeError, Limits, Refusal
from harmony.jmix.zipformat import Compression, check_member_name

__all__ = ["ZipMember", "ZipReader", "check_tree"]

CHUNK_BYTES = 256 * 1024
MAXIMUM_DIRECTORY_BYTES = 32 * 1024 * 1024
"""100 000 members with names of 200 bytes make 25 MB; the directory is the one thing that is read whole."""
MAXIMUM_ZSTANDARD_WINDOW_BYTES = 32 * 1024 * 1024
"""Memory that decoding one member may take; levels up to 19 ask for 8 MiB."""

_END_SEARCH_BYTES = zf.END.size + zf.MAXIMUM_16  # the end record and the longest comment
_UNSUPPORTED_FLAGS = zf.FLAG_ENCRYPTED | 0x0020 | 0x0040 | 0x2000  # encryption, patch data, masked headers
_MADE_BY = {3, 19}  # Unix and macOS: the upper half of the external attributes is a file mode
_UINT64 = Struct("<Q")
_EXTRA = Struct("<HH")


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A regular file, as the directory describes it."""

    name: str
    size_bytes: int
    compressed_size_bytes: int
    crc32: int
    compression: Compression
    offset_bytes: int
    flags: int
    raw_name: bytes


class ZipReader:
    """An open archive. Raises EnvelopeError from every method; the file descriptor stays the caller's.

    fd: opened for reading; only pread is used, so its position does not matter.
    """

    def __init__(self, fd: int, *, limits: Limits) -> None:
        self._fd = fd
        self._limits = limits
        self.size_bytes = os.fstat(fd).st_size
        self._directory_start, size, count = self._find_directory()
        self.members: list[ZipMember] = []
        """In the order of the directory, folders left out."""
        self._folders: list[str] = []
        self._read_directory(os.pread(fd, size, self._directory_start), count)
        check_tree([member.name for member in self.members], self._folders)
        limits.check_total(sum(member.size_bytes for member in self.members), archive_bytes=self.size_bytes)
        self._data_offsets = self._check_local_headers()

    def contents(self) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Yield name, size and data of each member, in the order of the directory."""
        for member in self.members:
            yield member.name, member.size_bytes, self.read(member)

    def read(self, member: ZipMember) -> Iterator[bytes]:
        """Yield a member's bytes, uncompressed; the last step checks size and CRC-32."""
        size = crc32 = 0
        for chunk in self._decode(member):
            size += len(chunk)
            if size > member.size_bytes:
                raise _invalid(
                    f"member {member.name!r} is longer than the {member.size_bytes} bytes announced"
                )
            crc32 = zlib_ng.crc32(chunk, crc32)
            yield chunk
        if size != member.size_bytes:
            raise _invalid(f"member {member.name!r} has {size} bytes instead of {member.size_bytes}")
        if crc32 != member.crc32:
            raise _invalid(f"member {member.name!r} has CRC-32 {crc32:08x} instead of {member.crc32:08x}")

    def _find_directory(self) -> tuple[int, int, int]:
        """Return the offset and size of the central directory and its number of entries (APPNOTE §4.3.14-16)."""
        start = max(0, self.size_bytes - _END_SEARCH_BYTES)
        tail = os.pread(self._fd, _END_SEARCH_BYTES, start)
        at = len(tail)
        while True:
            at = tail.rfind(b"PK\x05\x06", 0, at + 3)
            if at < 0:
                raise EnvelopeError(Refusal.UNSUPPORTED, "not a ZIP archive: it has no end record")
            if at + zf.END.size <= len(tail):
                _, disk, first_disk, here, count, size, offset, comment = zf.END.unpack_from(tail, at)
                if at + zf.END.size + comment == len(tail):
                    break
        end = start + at
        located = self._find_zip64_end(end)
        if located is not None:
            end, *large = located
            small = (disk, first_disk, here, count, size, offset)
            if any(a not in (b, zf.MAXIMUM_16, zf.MAXIMUM_32) for a, b in zip(small, large, strict=True)):
                raise _invalid("the two end records disagree")
            disk, first_disk, here, count, size, offset = large
        if disk or first_disk or here != count:
            raise EnvelopeError(Refusal.UNSUPPORTED, "ZIP archives in several parts are not read")
        if offset + size != end:
            raise _invalid(
                f"the directory (offset {offset}, {size} bytes) does not end where its end record begins"
            )
        self._limits.check_count(count)
        if size > MAXIMUM_DIRECTORY_BYTES:
            raise EnvelopeError(Refusal.TOO_LARGE, f"the directory of {size} bytes is too large")
        return offset, size, count

    def _find_zip64_end(self, end: int) -> tuple[int, int, int, int, int, int, int] | None:
        if end < zf.LOCATOR64.size:
            return None
        locator = os.pread(self._fd, zf.LOCATOR64.size, end - zf.LOCATOR64.size)
        signature, disk, place, _ = zf.LOCATOR64.unpack(locator)
        if signature != zf.LOCATOR64_SIGNATURE:
            return None
        if disk or place + zf.END64.size > end - zf.LOCATOR64.size:
            raise _invalid("the ZIP64 end record is not where its locator says")
        record = os.pread(self._fd, zf.END64.size, place)
        signature, rest, _, _, disk, first_disk, here, count, size, offset = zf.END64.unpack(record)
        if signature != zf.END64_SIGNATURE or place + 12 + rest != end - zf.LOCATOR64.size:
            raise _invalid("the ZIP64 end record is not where its locator says")
        return place, disk, first_disk, here, count, size, offset

    def _read_directory(self, directory: bytes, count: int) -> None:
        at = 0
        total = 0
        for _ in range(count):
            if at + zf.CENTRAL.size > len(directory):
                raise _invalid(f"the directory has fewer than the {count} entries announced")
            fields = zf.CENTRAL.unpack_from(directory, at)
            if fields[0] != zf.CENTRAL_SIGNATURE:
                raise _invalid(f"the directory has no entry at byte {at}")
            name_end = at + zf.CENTRAL.size + fields[10]
            extra_end = name_end + fields[11]
            next_at = extra_end + fields[12]
            if next_at > len(directory):
                raise _invalid(f"the directory entry at byte {at} reaches beyond the directory")
            raw_name = directory[at + zf.CENTRAL.size : name_end]
            member = self._entry(fields, raw_name, directory[name_end:extra_end])
            if member is not None:
                self._limits.check_member(member.name, member.size_bytes)
                total += member.size_bytes
                self._limits.check_total(total, archive_bytes=self.size_bytes)
                self.members.append(member)
            at = next_at
        if at != len(directory):
            raise _invalid(f"the directory has more than the {count} entries announced")

    def _entry(self, fields: tuple[int, ...], raw_name: bytes, extra: bytes) -> ZipMember | None:
        """Judge one directory entry; None for a folder, which is only noted."""
        _, made_by, _, flags, method, _, _, crc32, compressed, size, *_, disk, _, attributes, offset = fields
        name = _decode_name(raw_name, utf8=bool(flags & zf.FLAG_UTF8))
        is_folder = name.endswith("/")
        problem = check_member_name(name.removesuffix("/"))
        if problem is not None:
            raise _invalid(f"member name {name!r} {problem}")
        mode = attributes >> 16 if made_by >> 8 in _MADE_BY else 0
        kind = stat.S_IFMT(mode)
        if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
            raise _invalid(f"member {name!r} is neither a regular file nor a folder")
        if flags & _UNSUPPORTED_FLAGS:
            raise EnvelopeError(
                Refusal.UNSUPPORTED, f"member {name!r} is encrypted or patched (flags {flags:#06x})"
            )
        if method not in Compression.__members__.values():
            raise EnvelopeError(Refusal.UNSUPPORTED, f"member {name!r} uses compression method {method}")
        size, compressed, offset, disk = _zip64_values(name, size, compressed, offset, disk, extra)
        if disk:
            raise EnvelopeError(Refusal.UNSUPPORTED, "ZIP archives in several parts are not read")
        if is_folder:
            if size:
                raise _invalid(f"folder {name!r} has contents")
            self._folders.append(name[:-1])
            return None
        compression = Compression(method)
        if compression is Compression.STORED and size != compressed:
            raise _invalid(f"stored member {name!r} has two sizes, {size} and {compressed}")
        return ZipMember(name, size, compressed, crc32, compression, offset, flags, raw_name)

    def _check_local_headers(self) -> dict[str, int]:
        """Compare every local header with the directory; return where each member's data begins."""
        places = {}
        previous_end = 0
        for member in sorted(self.members, key=lambda member: member.offset_bytes):
            name = member.name
            if member.offset_bytes < previous_end:
                raise _invalid(f"member {name!r} overlaps another one")
            if member.offset_bytes + zf.LOCAL.size > self._directory_start:
                raise _invalid(f"member {name!r} has no local header")
            header = os.pread(self._fd, zf.LOCAL.size + len(member.raw_name), member.offset_bytes)
            signature, _, flags, method, _, _, crc32, compressed, size, name_length, extra_length = (
                zf.LOCAL.unpack_from(header)
            )
            if signature != zf.LOCAL_SIGNATURE:
                raise _invalid(f"member {name!r} has no local header at byte {member.offset_bytes}")
            same_name = name_length == len(member.raw_name) and header[zf.LOCAL.size :] == member.raw_name
            if not same_name or method != member.compression or flags & _UNSUPPORTED_FLAGS:
                raise _invalid(f"the local header of member {name!r} disagrees with the directory")
            if not flags & zf.FLAG_DESCRIPTOR:
                known = (
                    (crc32, member.crc32),
                    (compressed, min(member.compressed_size_bytes, zf.MAXIMUM_32)),
                    (size, min(member.size_bytes, zf.MAXIMUM_32)),
                )
                if any(local not in (central, zf.MAXIMUM_32) for local, central in known):
                    raise _invalid(f"the local header of member {name!r} disagrees with the directory")
            start = member.offset_bytes + zf.LOCAL.size + name_length + extra_length
            previous_end = start + member.compressed_size_bytes
            if previous_end > self._directory_start:
                raise _invalid(f"member {name!r} reaches into the directory")
            places[name] = start
        return places

    def _raw(self, member: ZipMember) -> Iterator[bytes]:
        at = self._data_offsets[member.name]
        end = at + member.compressed_size_bytes
        while at < end:
            chunk = os.pread(self._fd, min(CHUNK_BYTES, end - at), at)
            if not chunk:
                raise _invalid(f"member {member.name!r} ends early")
            at += len(chunk)
            yield chunk

    def _decode(self, member: ZipMember) -> Iterator[bytes]:
        raw = self._raw(member)
        if member.compression is Compression.STORED:
            return raw
        if member.compression is Compression.DEFLATE:
            return _inflate(member.name, raw)
        return _decode_zstandard(member.name, raw)


def check_tree(files: list[str], folders: list[str]) -> None:
    """Refuse names that occur twice, or that would be a file and a folder at once. The names are checked already."""
    # NUL is in no name and sorts before everything, so what is inside "a" comes right after "a".
    entries = [(name.replace("/", "\0"), True) for name in files]
    entries += [(name.replace("/", "\0"), False) for name in folders]
    entries.sort()
    for (name, is_file), (next_name, next_is_file) in pairwise(entries):
        shown = name.replace("\0", "/")
        if name == next_name and is_file and next_is_file:
            raise _invalid(f"member {shown!r} occurs twice")
        if (name == next_name and next_is_file) or (is_file and next_name.startswith(name + "\0")):
            raise _invalid(f"member {shown!r} is a file and a folder")


def _invalid(message: str) -> EnvelopeError:
    return EnvelopeError(Refusal.INVALID, message)


def _decode_name(raw: bytes, *, utf8: bool) -> str:
    try:
        return raw.decode("utf-8" if utf8 else "cp437")
    except UnicodeDecodeError:
        raise _invalid(f"member name {raw[:80]!r} is not UTF-8") from None


def _zip64_values(
    name: str, size: int, compressed: int, offset: int, disk: int, extra: bytes
) -> tuple[int, int, int, int]:
    """Replace fields at their maximum by their ZIP64 values, which stand in this order (APPNOTE §4.5.3)."""
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        body = extra[at + _EXTRA.size : at + _EXTRA.size + length]
        at += _EXTRA.size + length
        if kind != zf.ZIP64_EXTRA_ID:
            continue
        values = [size, compressed, offset]
        place = 0
        for index, value in enumerate(values):
            if value == zf.MAXIMUM_32:
                if place + 8 > len(body):
                    raise _invalid(f"member {name!r}: its ZIP64 field is too short")
                values[index] = _UINT64.unpack_from(body, place)[0]
                place += 8
        if disk == zf.MAXIMUM_16:
            disk = int.from_bytes(body[place : place + 4], "little")
        return values[0], values[1], values[2], disk
    return size, compressed, offset, disk


def _inflate(name: str, raw: Iterator[bytes]) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for chunk in raw:
            while chunk:
                if inflate.eof:
                    raise _invalid(f"member {name!r} has bytes after the end of its deflate stream")
                out = inflate.decompress(chunk, CHUNK_BYTES)
                chunk = inflate.unconsumed_tail or inflate.unused_data
                if out:
                    yield out
        while not inflate.eof:  # output may be left that no further input brings out
            out = inflate.decompress(b"", CHUNK_BYTES)
            if not out:
                raise _invalid(f"member {name!r}: its deflate stream ends early")
            yield out
    except zlib.error:
        raise _invalid(f"member {name!r} is not a deflate stream") from None


class _Source(io.RawIOBase):
    """A member's compressed bytes as a file: the bounded interface of zstandard reads from one."""

    def __init__(self, raw: Iterator[bytes]) -> None:
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        """Return the next chunk; it is never longer than CHUNK_BYTES, which is what is asked for."""
        return next(self._raw, b"")


def _decode_zstandard(name: str, raw: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAXIMUM_ZSTANDARD_WINDOW_BYTES)
    try:
        source = cast(IO[bytes], _Source(raw))  # only its read() is used
        with decompressor.stream_reader(source, read_size=CHUNK_BYTES, read_across_frames=True) as reader:
            while chunk := reader.read(CHUNK_BYTES):
                yield chunk
    except zstandard.ZstdError:
        raise _invalid(f"member {name!r} is not a Zstandard stream this reader can decode") from None
