"""What is asked of a picture: query parameters of rendered resources and of WADO-URI (PS3.18 §8.3.5.1, §9.1.2.2).

A parameter that cannot be honoured is refused where leaving it out would show something else than was asked for:
a presentation state is 501. Others (annotation, iccprofile, charset) change nothing here, as nothing is burnt in and
pictures have no text.

Called by `harmony.gateway.rendered`. All functions raise HTTPError 400 for values that mean nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from harmony.dicom.frames import frame_numbers
from harmony.dicom.presentation import Presentation, Region, Viewport, Window, WindowFunction
from harmony.http import HTTPError, Request

__all__ = ["frame_number", "is_picture_uri", "numbers_of", "presentation", "uri_presentation"]

MAXIMUM_SIDE: Final = 8192
"""Of a viewport, in pixels."""


def is_picture_uri(request: Request) -> bool:
    """A WADO-URI that wants a picture, which is the default (PS3.18 §9.1.2.2.1)."""
    wanted = [each.strip().lower() for value in request.query.all("contentType") for each in value.split(",")]
    return not any(wanted) or any(each.startswith("image/") for each in wanted)


def numbers_of(frames: str | None) -> list[int] | None:
    if frames is None:
        return None
    numbers = frame_numbers(frames)
    if numbers is None:
        raise HTTPError(400, "the frame list must be numbers from 1, ascending, separated by commas")
    return numbers


def frame_number(request: Request) -> list[int] | None:
    """The one of a WADO-URI, if it has one."""
    number = request.query.first("frameNumber")
    numbers = numbers_of(number) if number else None
    if numbers is not None and len(numbers) > 1:
        raise HTTPError(400, "frameNumber must be one number")
    return numbers


def presentation(request: Request, media_type: str) -> Presentation:
    """PS3.18 §8.3.5.1."""
    query = request.query
    how = Presentation(media_type, _window(query.first("window")), _viewport(query.first("viewport")))
    return _with_quality(how, "quality", query.first("quality"))


def uri_presentation(request: Request, media_type: str) -> Presentation:
    """PS3.18 §9.1.2.2. Raises HTTPError 501 for a presentation state."""
    query = request.query
    if query.first("presentationUID") or query.first("presentationSeriesUID"):
        raise HTTPError(501, "presentationUID is not supported here: presentation states are not applied")
    center, width = query.first("windowCenter"), query.first("windowWidth")
    if bool(center) != bool(width):
        raise HTTPError(400, "windowCenter and windowWidth must be there together")
    rows, columns = query.first("rows"), query.first("columns")
    viewport = f"{columns or MAXIMUM_SIDE},{rows or MAXIMUM_SIDE}" if rows or columns else None
    window = _window(f"{center},{width}" if center else None)
    how = Presentation(media_type, window, _viewport(viewport), region=_region(query.first("region")))
    return _with_quality(how, "imageQuality", query.first("imageQuality"))


def _with_quality(how: Presentation, name: str, text: str | None) -> Presentation:
    if not text:
        return how
    quality = _number(text)
    if not 1 <= quality <= 100:
        raise HTTPError(400, f"{name} must be a number from 1 to 100")
    return replace(how, quality=int(quality))


def _window(text: str | None) -> Window | None:
    if not text:
        return None
    try:
        center, width, *function = text.split(",")
        [name] = function or ["linear"]
        return Window(float(center), float(width), WindowFunction(name.strip().lower()))
    except ValueError as error:
        raise HTTPError(
            400, "window must be center,width,function: the function linear, linear-exact or sigmoid"
        ) from error


def _viewport(text: str | None) -> Viewport | None:
    if not text:
        return None
    values = [_number(each) if each.strip() else None for each in text.split(",")]
    sizes = [value for value in values[:2] if value is not None and 1 <= value <= MAXIMUM_SIDE]
    x, y, source_width, source_height = (*values[2:], None, None, None, None)[:4]
    if (
        len(sizes) != 2
        or len(values) > 6
        or (x or 0) < 0
        or (y or 0) < 0
        or 0 in (source_width, source_height)
    ):
        raise HTTPError(
            400,
            f"viewport must be width,height with optional x,y,width,height of the source; to {MAXIMUM_SIDE}",
        )
    return Viewport(sizes[0], sizes[1], x or 0, y or 0, source_width, source_height)


def _region(text: str | None) -> Region | None:
    if not text:
        return None
    try:
        return Region(*map(float, text.split(",")))
    except (TypeError, ValueError) as error:
        raise HTTPError(
            400, "region must be left,top,right,bottom: decimal numbers from 0.0 to 1.0 of the image"
        ) from error


def _number(text: str) -> int:
    """0 would be out of every range; raises HTTPError 400 for what is no number."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1_000_000:
        raise HTTPError(400, f"{text[:20]!r} is not a number that can be used here")
    return int(number)
