"""Write a ZIP archive to a file, with complete local headers throughout.

The bytes are those of `zipstream`; here they get into a file, where room is left for the local headers of what was
streamed, and filled when they are known: no data descriptors. Blocking; called by `envelope` and `packer` in worker
threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from harmony.jmix.zipformat import Compression, Member, ZipFormatError
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
        self._chunk: memoryview | None = None
        self._room = b""  # of a member that was begun, to be written with its first bytes

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

    def add_file(
        self,
        path: Path,
        *,
        longest_name_bytes: int,
        look: Callable[[memoryview], bool] | None = None,
        buffer: memoryview | None = None,
    ) -> UnnamedMember:
        """Add the contents of a file, read once, as a member to be named later. It must not change meanwhile.

        look: is shown the beginning, chunk by chunk, until it returns True.
        buffer: to read into, CHUNK_BYTES or more; given by who adds many files to many archives.
        """
        if buffer is None:
            self._chunk = buffer = self._chunk or memoryview(bytearray(CHUNK_BYTES))
        with open(path, "rb", buffering=0) as source:
            announced = os.fstat(source.fileno()).st_size
            self.begin(longest_name_bytes=longest_name_bytes)
            done = look is None
            while count := source.readinto(buffer):
                chunk = buffer[:count]
                if not done and look is not None:
                    done = look(chunk)
                self.write(chunk)
        member = self.end()
        if member.size_bytes != announced:
            raise ZipFormatError(f"a file of {announced} bytes had {member.size_bytes} when it was read")
        return member

    def begin(self, *, longest_name_bytes: int) -> None:
        """Begin a member whose size and name come later."""
        self._room = self.stream.begin(longest_name_bytes=longest_name_bytes)

    def write(self, chunk: Buffer) -> None:
        """Add to the member that was begun. Keeps no reference."""
        room, self._room = self._room, b""
        out = self.stream.write(chunk)
        self._write((room, out) if room else (out,))

    def end(self) -> UnnamedMember:
        """End the member that was begun."""
        rest, member = self.stream.end()
        self._write((self._room, rest))
        self._room = b""
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
