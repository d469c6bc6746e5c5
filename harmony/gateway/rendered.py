"""Pictures of instances for browsers: rendered resources and thumbnails (PS3.18 §8.3.5, §10.4.1.1.3, §10.4.1.1.4), and
WADO-URI with an image as contentType (§9.1.2.2).

    one instance    image/jpeg, image/png: its representative frame, else the first; image/gif: all frames, animated
    frames          one: the same; several: image/gif, or each as part of multipart/related
    study, series   such a picture of each image, as parts of multipart/related; of a single one also by itself
    thumbnail       image/jpeg, image/png, image/gif: one frame; of a study or series of the first image in it

Query parameters are those of `rendered_request`; annotation and iccprofile are ignored, nothing is ever burnt in.
404 is a frame that is not there, 406 an instance that is no image or cannot be decoded, 413 one that is too large, 501
that the extra `render` is not installed: without it nothing here imports numpy or Pillow.

The pictures of a study are made one after the other, at the pace of the client. Reports and the like are passed over;
an image that cannot be rendered makes the status 206 when it comes first, and later breaks the connection off.

A stored file is read where it lies; what a PACS sends is put into a temporary file first. A few threads do the
rendering (`harmony.dicom.rendering`), however many requests wait.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final, cast

from harmony.dicom.json_model import DataSetError
from harmony.dicom.presentation import (
    GIF,
    JPEG,
    PNG,
    ImageTooLarge,
    NoImage,
    NoSuchFrame,
    NotRenderable,
    Presentation,
    RenderingError,
    Viewport,
)
from harmony.dicom.transcode import TranscodeError
from harmony.dimse.scu import Instance
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN
from harmony.gateway.backend import Backend, Retrieve
from harmony.gateway.instance_files import DeliveredInstances, IncompleteRetrieve, file_content
from harmony.gateway.instance_headers import instance_url
from harmony.gateway.pixel_parts import can_be_read_in_place
from harmony.gateway.rendered_request import (
    frame_number,
    numbers_of,
    presentation,
    uri_presentation,
)
from harmony.gateway.wado import retrieve_for, uids_of_uri
from harmony.http import HTTPError, Request, Response
from harmony.http.accept import ANY_TRANSFER_SYNTAX, Offer, TransferSyntaxes, choose, negotiate
from harmony.http.multipart_writer import OutgoingPart, multipart_response

__all__ = ["PICTURES", "PICTURE_PARTS", "Rendered"]

logger = logging.getLogger("harmony.gateway")

PICTURES: Final = (JPEG, PNG, GIF)
PICTURE_PARTS: Final = tuple(f'multipart/related; type="{each}"' for each in PICTURES)
WORKERS: Final = 2
MAXIMUM_FILE_BYTES: Final = 1024 * 1024 * 1024
"""Of an instance that a PACS sends."""
MAXIMUM_TRIED: Final = 20
"""Instances of a study that may come before its first image."""
THUMBNAIL: Final = Viewport(128, 128)

_IN_MEMORY_BYTES: Final = 4 * 1024 * 1024
_VARY: Final = {"Vary": "Accept"}
_NEEDED: Final = ("numpy", "PIL")
_SYNTAXES: Final = TransferSyntaxes({EXPLICIT_VR_LITTLE_ENDIAN: 1.0, ANY_TRANSFER_SYNTAX: 0.5})
"""Native pixels in an encoding that can be read in place, everything else as it is."""

_SINGLE: Final = tuple(Offer(each, (each, False)) for each in PICTURES)
_SEVERAL: Final = (
    *(Offer(f'multipart/related; type="{each}"', (each, True)) for each in (JPEG, PNG)),
    Offer(GIF, (GIF, False)),
)
_OF_ALL: Final = (
    *(Offer(parts, (each, True)) for parts, each in zip(PICTURE_PARTS, PICTURES, strict=True)),
    *_SINGLE,
)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """numbers: of frames, None: those that the media type has room for. apart: a picture of each frame."""

    how: Presentation
    numbers: Sequence[int] | None
    apart: bool = False
    still: bool = False
    """One frame, whatever the media type."""


class Rendered:
    """Pictures of what a backend has.

    All methods raise HTTPError, and what the backend raises.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="rendering")

    async def picture(
        self, request: Request, uids: Sequence[str], *, frames: str | None, root: str
    ) -> Response:
        """An instance, or frames of it. frames: the list as it is in the URL. root: the URL of the service."""
        _require_extra()
        numbers = numbers_of(frames)
        several = numbers is not None and len(numbers) > 1
        media_type, apart = negotiate(request, _SEVERAL if several else _SINGLE).value
        wanted = _Wanted(presentation(request, media_type), numbers, apart)
        pictures = await self._render(uids, wanted)
        if not apart:
            return Response(200, _VARY | {"Content-Type": media_type}, pictures[0])
        assert numbers is not None
        url = f"{instance_url(root, uids)}/frames/"
        parts = [
            OutgoingPart(media_type, picture, content_location=f"{url}{number}/rendered")
            for number, picture in zip(numbers, pictures, strict=True)
        ]
        return multipart_response(_each(parts), root_type=media_type, headers=_VARY)

    async def pictures(self, request: Request, uids: Sequence[str], root: str) -> Response:
        """Of a study or series: one of each image in it."""
        _require_extra()
        media_type, apart = negotiate(request, _OF_ALL).value
        wanted = _Wanted(presentation(request, media_type), None)
        instances = DeliveredInstances(await self._backend.retrieve(retrieve_for(uids)), _SYNTAXES)
        series = f"{root}/studies/{uids[0]}/series/{uids[1]}" if len(uids) > 1 else None
        pictures = _OfEach(instances, lambda file: self._made(file, wanted), media_type, series)
        held = await pictures.begin(1 if apart else 2)
        if apart:
            return multipart_response(pictures, root_type=media_type, status=pictures.status, headers=_VARY)
        await pictures.aclose()
        if len(held) > 1:
            raise HTTPError(
                406, f'there are several images, which can be had as multipart/related; type="{media_type}"'
            )
        return Response(pictures.status, _VARY | {"Content-Type": media_type}, held[0])

    async def thumbnail(self, request: Request, uids: Sequence[str], *, frames: str | None) -> Response:
        """Of a study, a series, an instance, or the first of some frames."""
        _require_extra()
        numbers = numbers_of(frames)
        media_type, _ = negotiate(request, _SINGLE).value
        how = presentation(request, media_type)
        if how.viewport is None:
            how = replace(how, viewport=THUMBNAIL)
        [picture] = await self._render(uids, _Wanted(how, numbers and numbers[:1], still=True))
        return Response(200, _VARY | {"Content-Type": media_type}, picture)

    async def uri(self, request: Request) -> Response:
        """WADO-URI: contentType instead of Accept, other names for the parameters."""
        uids = uids_of_uri(request)
        _require_extra()
        choice = choose(", ".join(request.query.all("contentType")), _SINGLE)
        if choice is None:
            raise HTTPError(406, f"contentType must be application/dicom, {', '.join(PICTURES)}")
        media_type, _ = choice.value
        wanted = _Wanted(uri_presentation(request, media_type), frame_number(request))
        [picture] = await self._render(uids, wanted)
        return Response(200, {"Content-Type": media_type}, picture)

    # Where the image is

    async def _render(self, uids: Sequence[str], wanted: _Wanted) -> list[bytes]:
        tried = 0
        async with aclosing(self._files(retrieve_for(uids))) as files:
            async for file in files:
                try:
                    return await self._made(file, wanted)
                except NoSuchFrame as error:
                    raise HTTPError(404, str(error)) from error
                except ImageTooLarge as error:
                    raise HTTPError(413, str(error)) from error
                except NotRenderable as error:
                    tried += 1
                    if len(uids) == 3 or tried == MAXIMUM_TRIED:
                        raise HTTPError(406, str(error)) from error
        raise HTTPError(406, "there is no image that can be rendered")

    async def _made(self, file: BinaryIO, wanted: _Wanted) -> list[bytes]:
        return await asyncio.get_running_loop().run_in_executor(self._workers, _pictures, file, wanted)

    async def _files(self, retrieve: Retrieve) -> AsyncGenerator[BinaryIO, None]:
        """Instances as open files, each closed when the next one is asked for."""
        located = await self._backend.locate(retrieve)
        if located is not None and can_be_read_in_place(located[0]):
            with await asyncio.to_thread(Path(located[0].path).open, "rb") as stored:
                yield stored
        instances = DeliveredInstances(await self._backend.retrieve(retrieve), _SYNTAXES)
        try:
            await instances.begin()
            async with aclosing(_spooled(instances)) as files:
                async for _, file in files:
                    yield file
        finally:
            await instances.aclose()


class _OfEach:
    """The pictures of all images of a retrieve as parts, each made when it is asked for.

    series: the URL of their series, when they are of one.
    """

    def __init__(
        self,
        instances: DeliveredInstances,
        render: Callable[[BinaryIO], Awaitable[list[bytes]]],
        media_type: str,
        series: str | None,
    ) -> None:
        self.status = 0
        """Known after `begin`."""
        self._instances = instances
        self._render = render
        self._media_type = media_type
        self._series = series
        self._held: list[OutgoingPart] = []
        self._sent = 0
        self._left_out = 0
        self._parts = self._made()

    async def begin(self, count: int) -> list[bytes]:
        """Wait for the first pictures, at most this many. Raises HTTPError when there is none, and what the backend
        raises."""
        found: list[bytes] = []
        try:
            await self._instances.begin()
            while len(found) < count and (part := await anext(self._parts, None)) is not None:
                assert isinstance(part.content, bytes)
                found.append(part.content)
                self._held.append(part)
            if not found:
                raise HTTPError(406, "there is no image that can be rendered")
        except BaseException:
            await self.aclose()
            raise
        self.status = 206 if self._left_out else self._instances.status
        return found

    def __aiter__(self) -> AsyncIterator[OutgoingPart]:
        return self

    async def __anext__(self) -> OutgoingPart:
        part = self._held.pop(0) if self._held else await anext(self._parts)
        self._sent += 1
        return part

    async def _made(self) -> AsyncGenerator[OutgoingPart, None]:
        async with aclosing(_spooled(self._instances)) as files:
            async for instance, file in files:
                try:
                    [picture] = await self._render(file)
                except NoImage:
                    continue
                except RenderingError as error:
                    self._left_out += 1
                    logger.warning("instance %s is not rendered: %s", instance.sop_instance_uid, error)
                    continue
                url = self._series and f"{self._series}/instances/{instance.sop_instance_uid}/rendered"
                yield OutgoingPart(self._media_type, picture, content_location=url)
        if self._left_out and self.status == 200:
            raise IncompleteRetrieve(
                f"{self._left_out} of {self._left_out + self._sent} images could not be rendered"
            )

    async def aclose(self) -> None:
        self._held.clear()
        try:
            await self._parts.aclose()
        finally:
            await self._instances.aclose()


async def _spooled(
    instances: DeliveredInstances,
) -> AsyncGenerator[tuple[Instance, BinaryIO], None]:
    """Instances as open files, each closed when the next one is asked for."""
    try:
        async for instance in instances:
            with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spooled:
                file = cast(BinaryIO, spooled)
                await _fill(file, instance)
                yield instance, file
    except (DataSetError, TranscodeError) as error:
        raise HTTPError(500, f"the instance cannot be read: {error}") from error


async def _fill(file: BinaryIO, instance: Instance) -> None:
    size = 0
    async with aclosing(file_content(instance)) as content:
        async for piece in content:
            size += len(piece)
            if size > MAXIMUM_FILE_BYTES:
                raise HTTPError(
                    413, f"the instance is longer than {MAXIMUM_FILE_BYTES} bytes, too large to be rendered"
                )
            await asyncio.to_thread(file.write, piece)
    file.seek(0)


def _pictures(file: BinaryIO, wanted: _Wanted) -> list[bytes]:
    """In a worker. Raises RenderingError."""
    from harmony.dicom.rendering import ImageFile

    image = ImageFile(file)
    numbers = wanted.numbers
    if numbers is None:
        animated = wanted.how.media_type == GIF and not wanted.still
        numbers = range(1, image.frame_count + 1) if animated else [image.representative_frame]
    return image.render_each(numbers, wanted.how) if wanted.apart else [image.render(numbers, wanted.how)]


async def _each(parts: Sequence[OutgoingPart]) -> AsyncIterator[OutgoingPart]:
    for part in parts:
        yield part


def _require_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise HTTPError(
            501, "images are not rendered here: the server needs pip install 'harmony-dicom[render]'"
        )
