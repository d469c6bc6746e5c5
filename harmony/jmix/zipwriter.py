"""Write a ZIP archive to a file, with complete local headers throughout.

The bytes are those of `zipstream`; here they get into a file, where what was streamed is patched when it is through:
no data descriptors. Blocking; called by `envelope` and `packer` in worker threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from harmony.jmix.zipformat import Compression, Member
from harmony.jmix.zipstream import CHUNK_BYTES, Buffer, UnnamedMember, ZipStream

__all__ = ["ZipFileWriter"]


class ZipFileWriter:
    """Write an archive to a new file. Blocking; not thread-safe.

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
        self.close()

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

    def begin(self, *, longest_name_bytes: int) -> None:
        """Begin a member whose size and name come later."""
        self._write((self.stream.begin(longest_name_bytes=longest_name_bytes),))

    def write(self, chunk: Buffer) -> None:
        """Add to the member that was begun. Keeps no reference."""
        self._write((self.stream.write(chunk),))

    def end(self) -> UnnamedMember:
        """End the member that was begun."""
        rest, member = self.stream.end()
        self._write((rest,))
        return member

    def name(self, unnamed: UnnamedMember, name: str) -> Member:
        """Name a member that has ended, once."""
        offset, header = self.stream.name(unnamed, name)
        os.pwrite(self._file.fileno(), header, offset)
        return self.stream.members[-1]

    def finish(self, *, fsync: bool = False) -> int:
        """Write the directory, make it durable if asked, close the file; return the size of the archive."""
        self._write(tuple(self.stream.finish()))
        if fsync:
            os.fsync(self._file.fileno())
        self._file.close()
        return self.stream.offset_bytes

    def close(self) -> None:
        """Close the file, complete or not; idempotent."""
        self._file.close()

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
