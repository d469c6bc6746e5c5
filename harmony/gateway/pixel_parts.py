"""Frames and bulk data in the bodies of HTTP responses (PS3.18 §10.4.1.1.3 to §10.4.1.1.5).

`PixelData` is the pixel data of one instance, wherever it is: `StoredPixelData` in a file, of which only the bytes that
are wanted are read; `ArrivingPixelData` in a data set that passes by. Frames of both are `FramePart`s.

Native frames are little-endian pixels without a header; encapsulated ones the codestream as it is. Nothing is decoded.
Called by `harmony.gateway.wado`, which negotiates what may be sent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from harmony.archive.index import StoredInstance
from harmony.dicom import element_stream
from harmony.dicom.bulk_data import ValueStream
from harmony.dicom.frame_stream import FrameBegin, FrameEnd, FrameEvent, FrameStream
from harmony.dicom.frames import FileFrames, FrameError, FrameLayout, Segment, is_video, shifted
from harmony.dicom.json_model import Model
from harmony.dicom.transcode import in_turns
from harmony.dimse.scu import Instance
from harmony.dimse.sop_class import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN
from harmony.dimse.source import pieces
from harmony.gateway.instance_files import DeliveredInstances
from harmony.http import FileBody
from harmony.http.files import FileChunks, open_file

__all__ = [
    "ArrivingPixelData",
    "ArrivingValue",
    "FramePart",
    "PixelData",
    "StoredPixelData",
    "can_be_read_in_place",
]

_OTHER_BYTES: Final = (DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
"""Transfer syntaxes in which pixels do not lie in the file as they go out."""


@dataclass(frozen=True, slots=True)
class FramePart:
    """One frame. content: to be iterated, or closed, before the next frame is asked for."""

    number: int
    content: AsyncIterator[bytes | memoryview]
    size_bytes: int | None
    in_file: FileBody | None = None
    """Where it lies as a whole, if it does."""


class PixelData(Protocol):
    """The pixel data of one instance; an iterator over the frames that are wanted, to be closed."""

    transfer_syntax_uid: str
    is_encapsulated: bool
    """Known after `begin`."""
    count: int
    """How many frames are wanted; known after `begin`."""

    async def begin(self) -> None:
        """Find the first one. Raises FrameError for what is not there, DataSetError, TranscodeError, and what the
        backend raises."""

    def __aiter__(self) -> AsyncIterator[FramePart]: ...
    async def __anext__(self) -> FramePart: ...
    async def aclose(self) -> None: ...


def can_be_read_in_place(stored: StoredInstance) -> bool:
    """Whether frames can be read out of the file."""
    return stored.pixel_data_offset is not None and stored.transfer_syntax_uid not in _OTHER_BYTES


class StoredPixelData:
    """In a file. numbers: of frames, ascending; None: all of them, native ones as one part."""

    def __init__(self, stored: StoredInstance, header: Model, numbers: Sequence[int] | None) -> None:
        self.transfer_syntax_uid = stored.transfer_syntax_uid
        self.is_encapsulated = False
        self.count = 0
        self._stored = stored
        self._header = header
        self._numbers = numbers
        self._located: list[tuple[int, list[Segment], int]] = []
        self._layout = FrameLayout(1, 0)
        self._next = 0

    async def begin(self) -> None:
        """Find the frames. Raises FrameError and OSError."""
        await asyncio.to_thread(self._locate)

    def _locate(self) -> None:
        descriptor = os.open(self._stored.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            layout = FrameLayout.of(self._header)
            if is_video(self.transfer_syntax_uid):
                layout = FrameLayout(1, layout.frame_bits)
            numbers = self._numbers if self._numbers is not None else range(1, layout.frame_count + 1)
            if numbers[-1] > layout.frame_count:
                raise FrameError(f"frame {numbers[-1]} is not there: the image has {layout.frame_count}")
            pixel_data = self._stored.pixel_data_offset
            assert pixel_data is not None
            frames = FileFrames(
                lambda at, size: os.pread(descriptor, size, at), pixel_data, layout, self.transfer_syntax_uid
            )
            self.is_encapsulated = frames.is_encapsulated
            if self._numbers is None and not frames.is_encapsulated:
                self._located = [(1, [frames.value], 0)]
            else:
                self._located = list(frames.locate(numbers))
            self._layout, self.count = layout, len(self._located)
        finally:
            os.close(descriptor)

    def __aiter__(self) -> AsyncIterator[FramePart]:
        return self

    async def __anext__(self) -> FramePart:
        if self._next == len(self._located):
            raise StopAsyncIteration
        number, segments, shift = self._located[self._next]
        self._next += 1
        path = Path(self._stored.path)
        if not self.is_encapsulated and not self._layout.is_aligned and self._numbers is not None:
            whole = b"".join([bytes(piece) async for piece in _read(path, segments)])
            part = shifted(whole, self._layout.frame_bits, shift)
            return FramePart(number, _once(part), len(part))
        in_file = FileBody(path, *segments[0]) if len(segments) == 1 else None
        return FramePart(number, _read(path, segments), sum(size for _, size in segments), in_file)

    async def aclose(self) -> None:
        self._next = len(self._located)


async def _read(path: Path, segments: Sequence[Segment]) -> AsyncGenerator[bytes | memoryview, None]:
    for offset, length in segments:
        descriptor, _ = await open_file(path)
        async with aclosing(FileChunks(descriptor, offset=offset, length=length)) as chunks:
            async for chunk in chunks:
                yield chunk


async def _once(content: bytes) -> AsyncGenerator[bytes | memoryview, None]:
    yield content


class _Arriving:
    """An instance that is retrieved for something that is in it. instances: where it comes from, closed with this."""

    def __init__(self, instances: DeliveredInstances, instance: Instance) -> None:
        self.transfer_syntax_uid = instance.transfer_syntax_uid
        self.is_encapsulated = False
        self.count = 1
        self._instances = instances
        self._data = pieces(instance.data)
        self._portions = in_turns(self._data, instance.transfer_syntax_uid)

    async def aclose(self) -> None:
        try:
            await self._portions.aclose()
            await self._data.aclose()
        finally:
            await self._instances.aclose()


class ArrivingPixelData(_Arriving):
    """In a data set that arrives. numbers: of frames, ascending; None: all of them."""

    def __init__(
        self, instances: DeliveredInstances, instance: Instance, numbers: Sequence[int] | None
    ) -> None:
        super().__init__(instances, instance)
        self._numbers = numbers
        self._frames = FrameStream(instance.transfer_syntax_uid, numbers)
        self._events = self._read()
        self._first: FrameBegin | None = None

    async def begin(self) -> None:
        """Wait for the first frame. Raises FrameError, and what the data raise."""
        event = await anext(self._events)
        assert isinstance(event, FrameBegin)
        self._first = event
        self.is_encapsulated = event.is_encapsulated
        assert self._frames.layout is not None
        self.count = len(self._numbers) if self._numbers is not None else self._frames.layout.frame_count

    async def _read(self) -> AsyncGenerator[FrameEvent, None]:
        async for piece in self._portions:
            for event in self._frames.feed(piece):
                yield event
            if self._frames.is_complete:
                return
        for event in self._frames.finish():
            yield event

    def __aiter__(self) -> AsyncIterator[FramePart]:
        return self

    async def __anext__(self) -> FramePart:
        event, self._first = self._first, None
        if event is None:
            following = await anext(self._events)
            assert isinstance(following, FrameBegin)
            event = following
        return FramePart(event.number, self._content(), event.size_bytes)

    async def _content(self) -> AsyncGenerator[bytes | memoryview, None]:
        async for event in self._events:
            if isinstance(event, FrameEnd):
                return
            assert isinstance(event, bytes | memoryview)
            yield event

    async def aclose(self) -> None:
        try:
            await self._events.aclose()
        finally:
            await super().aclose()


class ArrivingValue(_Arriving):
    """The value of one element of a data set that arrives: one part."""

    def __init__(self, instances: DeliveredInstances, instance: Instance, path: element_stream.Path) -> None:
        super().__init__(instances, instance)
        self._value = ValueStream(instance.transfer_syntax_uid, path)
        self._content = self._read()
        self._first: bytes | memoryview = b""
        self._over = False

    async def begin(self) -> None:
        """Find it, and wait for the beginning of it."""
        self._first = await anext(self._content, b"")
        if not self._value.is_found:
            raise FrameError("Not found")

    async def _read(self) -> AsyncGenerator[bytes | memoryview, None]:
        async for piece in self._portions:
            for part in self._value.feed(piece):
                yield part
            if self._value.is_complete:
                return
        for part in self._value.finish():
            yield part

    def __aiter__(self) -> AsyncIterator[FramePart]:
        return self

    async def __anext__(self) -> FramePart:
        if self._over:
            raise StopAsyncIteration
        self._over = True
        return FramePart(1, self._whole(), self._value.length)

    async def _whole(self) -> AsyncGenerator[bytes | memoryview, None]:
        if self._first:
            yield self._first
        async for piece in self._content:
            yield piece

    async def aclose(self) -> None:
        try:
            await self._content.aclose()
        finally:
            await super().aclose()
