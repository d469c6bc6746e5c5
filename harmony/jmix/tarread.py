"""Read a gzip-compressed tar archive that a stranger made, within limits and without believing it.

The format is POSIX ustar with the extensions that today's writers use: pax headers for long names and sizes, and
GNU's long names and binary sizes. Members are regular files and folders; links, devices and sparse files are refused,
and names are checked as in ZIP archives, after the "./" that `tar -C folder .` puts before them.

Python's tarfile is not used for reading: it takes the length of an extension header on trust and reads it whole.
A tar can only be read from front to back, and so it is here: nothing is extracted, nothing held but a chunk.
Called by `reader` and `store`; blocking.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

from harmony.jmix.limits import EnvelopeError, Limits, Refusal
from harmony.jmix.zipformat import check_member_name
from harmony.jmix.zipread import check_tree

__all__ = ["TarGzReader"]

CHUNK_BYTES = 256 * 1024
BLOCK_BYTES = 512
MAXIMUM_EXTENSION_BYTES = 64 * 1024
"""Of one pax or long-name header, which is held whole; a name is a kilobyte at most."""
MAXIMUM_EXTENSIONS = 8
"""Extension headers in a row before a member; writers use one or two."""

_FILES = (b"0", b"\0", b"7")
_FOLDER = b"5"
_GNU_LONG_NAME = b"L"
_GNU_LONG_LINK = b"K"
_PAX = b"x"
_PAX_GLOBAL = b"g"
_GZIP_WBITS = zlib.MAX_WBITS | 16


class TarGzReader:
    """An open archive. Raises EnvelopeError; the file descriptor stays the caller's.

    fd: opened for reading; only pread is used, so its position does not matter.
    """

    def __init__(self, fd: int, *, limits: Limits) -> None:
        self._fd = fd
        self._limits = limits
        self.size_bytes = os.fstat(fd).st_size
        if os.pread(fd, 2, 0) != b"\x1f\x8b":
            raise EnvelopeError(Refusal.UNSUPPORTED, "not a gzip file: it does not begin with 1F 8B")

    def contents(self) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Yield name, size and data of each regular file, in the order of the archive; what is left is skipped.

        Duplicate names and the end of the gzip stream are checked by the last step.
        """
        stream = _Gunzip(self._fd, self.size_bytes, self._limits)
        files: list[str] = []
        folders: list[str] = []
        while (header := _next_header(stream)) is not None:
            name, kind, size = header
            name = _plain_name(name)
            if kind == _FOLDER:
                if size:
                    raise _invalid(f"folder {name!r} has contents")
                if name:
                    folders.append(name)
            else:
                files.append(name)
                self._limits.check_member(name, size)
                chunks = stream.read_chunks(size, where=f"member {name!r}")
                yield name, size, chunks
                for _ in chunks:
                    pass
                stream.skip_padding(size)
            self._limits.check_count(len(files) + len(folders))
        stream.drain()
        check_tree(files, folders)


class _Gunzip:
    """The bytes of a gzip file (RFC 1952, of one member), a bounded piece at a time."""

    def __init__(self, fd: int, size_bytes: int, limits: Limits) -> None:
        self._fd = fd
        self._archive_bytes = size_bytes
        self._limits = limits
        self._position = 0
        self._total = 0
        self._input = b""
        self._inflate: zlib._Decompress | None = zlib.decompressobj(_GZIP_WBITS)
        self._ready = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, at least one unless the stream has ended."""
        if self._at == len(self._ready):
            self._ready = self._next()
            self._at = 0
        piece = self._ready[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def read_exactly(self, size: int, *, where: str) -> bytes:
        """Return `size` bytes, which the caller has checked to be few."""
        piece = self.read(size)
        while len(piece) < size:
            more = self.read(size - len(piece))
            if not more:
                raise _invalid(f"the archive ends inside {where}")
            piece += more
        return piece

    def read_chunks(self, size: int, *, where: str) -> Iterator[bytes]:
        """Yield the next `size` bytes."""
        while size:
            piece = self.read(size)
            if not piece:
                raise _invalid(f"the archive ends inside {where}")
            size -= len(piece)
            yield piece

    def skip_padding(self, size: int) -> None:
        """Pass over what fills the last block of `size` bytes."""
        self.read_exactly(-size % BLOCK_BYTES, where="the padding of a member")

    def drain(self) -> None:
        """Read to the end, so that the gzip checksum is checked."""
        while self.read(CHUNK_BYTES):
            pass

    def _next(self) -> bytes:
        while self._inflate is not None:
            if not self._input:
                self._input = os.pread(self._fd, CHUNK_BYTES, self._position)
                self._position += len(self._input)
            ended = not self._input
            try:
                out = self._inflate.decompress(self._input, CHUNK_BYTES)
            except zlib.error:
                raise _invalid("the gzip stream is damaged") from None
            self._input = self._inflate.unconsumed_tail
            self._total += len(out)
            self._limits.check_total(self._total, archive_bytes=self._archive_bytes)
            if self._inflate.eof:
                self._check_end(self._inflate.unused_data)
                self._inflate = None
            elif ended and not out:
                raise _invalid("the gzip stream ends early")
            if out:
                return out
        return b""

    def _check_end(self, rest: bytes) -> None:
        """Only zeros, which fill the last block of some tape, may follow. Several gzip members are not read."""
        while True:
            if rest.strip(b"\0"):
                raise _invalid("the gzip stream is followed by something else")
            rest = os.pread(self._fd, CHUNK_BYTES, self._position)
            self._position += len(rest)
            if not rest:
                return


def _next_header(stream: _Gunzip) -> tuple[str, bytes, int] | None:
    """Return name, type and size of the next file or folder, its extension headers applied; None at the end."""
    long_name: str | None = None
    long_size: int | None = None
    for _ in range(MAXIMUM_EXTENSIONS):
        block = stream.read_exactly(BLOCK_BYTES, where="a header")
        if not block.strip(b"\0"):
            return None
        name, kind, size = _decode_header(block)
        if kind in _FILES or kind == _FOLDER:
            return long_name or name, kind, size if long_size is None else long_size
        if kind not in (_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK):
            raise _invalid(f"member {name!r} of type {kind!r} is neither a regular file nor a folder")
        if size > MAXIMUM_EXTENSION_BYTES:
            raise _invalid(f"an extension header of {size} bytes is too large")
        body = stream.read_exactly(size, where="an extension header")
        stream.skip_padding(size)
        if kind == _GNU_LONG_NAME:
            long_name = _text(body.rstrip(b"\0"))
        elif kind == _PAX:
            records = _pax_records(body)
            if "path" in records:
                long_name = records["path"]
            if "size" in records:
                long_size = _decimal(records["size"])
            if any(key.startswith("GNU.sparse.") for key in records):
                raise _invalid("sparse members are not read")
    raise _invalid(f"more than {MAXIMUM_EXTENSIONS} extension headers in a row")


def _decode_header(block: bytes) -> tuple[str, bytes, int]:
    """POSIX.1 pax, "ustar Interchange Format": name 0-99, size 124-135, checksum 148-155, type 156, prefix 345-499."""
    checksum = sum(block[:148]) + 8 * 0x20 + sum(block[156:])
    if _number(block[148:156]) != checksum:
        raise _invalid("a tar header has a wrong checksum")
    name = _text(block[:100].split(b"\0", 1)[0])
    if block[257:263] == b"ustar\0":
        prefix = _text(block[345:500].split(b"\0", 1)[0])
        name = f"{prefix}/{name}" if prefix else name
    kind = block[156:157]
    return name, _FOLDER if kind in _FILES and name.endswith("/") else kind, _number(block[124:136])


def _number(field: bytes) -> int:
    """Octal digits ended by a space or NUL, or GNU's binary form, marked by the highest bit."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise _invalid("a tar header has a number that is not octal")
    return int(digits, 8)


def _decimal(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise _invalid("a pax header has a size that is not a number")
    return int(text)


def _pax_records(body: bytes) -> dict[str, str]:
    """Records "length key=value newline", where the length counts the whole record."""
    records = {}
    while body:
        length, _, _ = body[:20].partition(b" ")
        if not length.isdigit():
            raise _invalid("a pax header has a record without a length")
        size = int(length)
        record, body = body[len(length) + 1 : size], body[size:]
        key, separator, value = record.partition(b"=")
        if not separator or not value.endswith(b"\n"):
            raise _invalid("a pax header has a record that is not key=value")
        records[_text(key)] = _text(value[:-1])
    return records


def _plain_name(name: str) -> str:
    """Strip what tar adds to relative names and refuse what is then no safe path; "" is the root folder itself."""
    plain = name.removesuffix("/")
    if plain == ".":
        return ""
    plain = plain.removeprefix("./")
    problem = check_member_name(plain)
    if problem is not None:
        raise _invalid(f"member name {name!r} {problem}")
    return plain


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _invalid(f"member name {raw[:80]!r} is not UTF-8") from None


def _invalid(message: str) -> EnvelopeError:
    return EnvelopeError(Refusal.INVALID, message)
