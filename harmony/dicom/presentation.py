"""How an image is to be shown: what `harmony.dicom.rendering` is asked for, and what it refuses (PS3.18 §8.3.5.1).

Values only, so that they can be checked where nothing can be rendered. Also here, because it is read before anything is
decoded: the size that a compressed frame says it has (`codestream_samples`), which need not be that of the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = [
    "ImageTooLarge",
    "NoImage",
    "NoSuchFrame",
    "NotRenderable",
    "Presentation",
    "Region",
    "RenderingError",
    "Viewport",
    "Window",
    "WindowFunction",
    "codestream_samples",
]

GIF, JPEG, PNG = "image/gif", "image/jpeg", "image/png"
DEFAULT_QUALITY: Final = 90


class RenderingError(Exception):
    """There is no picture. The message has no patient data."""


class NotRenderable(RenderingError):
    """No image, or one that cannot be decoded."""


class NoImage(NotRenderable):
    """A report, a presentation state, or pixel data that no header describes."""


class NoSuchFrame(RenderingError):
    """The image has fewer."""


class ImageTooLarge(RenderingError):
    """It would take too much memory."""


class WindowFunction(Enum):
    """VOI LUT Function (0028,1056), by the names of the query parameter."""

    LINEAR = "linear"
    LINEAR_EXACT = "linear-exact"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class Window:
    """PS3.3 §C.11.2.1.2, in units after the Modality LUT. Raises ValueError for a width that means nothing."""

    center: float
    width: float
    function: WindowFunction = WindowFunction.LINEAR

    def __post_init__(self) -> None:
        least = 1.0 if self.function is WindowFunction.LINEAR else 0.0
        finite = abs(self.center) < float("inf") and self.width < float("inf")
        if not finite or not (self.width >= least and self.width > 0):
            raise ValueError(f"the width of a {self.function.value} window must be {least:g} or more")


@dataclass(frozen=True, slots=True)
class Viewport:
    """The picture is made as large as fits into width and height, in the proportions of the image.

    x, y: where the part of the image that is shown begins; source_width and source_height: its size, None for the rest
    of the image. Negative ones flip it.
    """

    width: int
    height: int
    x: int = 0
    y: int = 0
    source_width: int | None = None
    source_height: int | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the image, in fractions of its width and height (PS3.18 §9.1.2.2). Raises ValueError for none."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1):
            raise ValueError("a region must be within the image and have a size")


@dataclass(frozen=True, slots=True)
class Presentation:
    """media_type: image/jpeg or image/png, of one frame; image/gif, of any number. quality: of JPEG, 1 to 100."""

    media_type: str = JPEG
    window: Window | None = None
    """None: the first that the image has, else all its values."""
    viewport: Viewport | None = None
    quality: int = DEFAULT_QUALITY
    region: Region | None = None
    """What the viewport is filled with; None: all of the image."""


def codestream_samples(data: bytes) -> int | None:
    """How many samples a JPEG, JPEG-LS or JPEG 2000 codestream decodes to; None when it does not say.

    ITU-T T.81 §B.2.2 (SOF), T.87 §C.2.2 (SOF55), T.800 §A.5.1 (SIZ).
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_samples(data)
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # behind the boxes of a JP2 file, if there are any
    if at < 0 or len(data) < at + 42:
        return None
    right, bottom, left, top = (
        int.from_bytes(data[at + each : at + each + 4], "big") for each in (8, 12, 16, 20)
    )
    components = int.from_bytes(data[at + 40 : at + 42], "big")
    return max(0, right - left) * max(0, bottom - top) * components


def _jpeg_samples(data: bytes) -> int | None:
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = (int.from_bytes(data[at + each : at + each + 2], "big") for each in (5, 7))
            return height * width * data[at + 9]
        if marker == 0xDA:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
