"""Pictures of images: from pixel data to JPEG, PNG or GIF (PS3.3 §C.11, §C.7.6.3; PS3.4 §N.2). Blocking.

Grayscale goes through the Modality LUT, then the VOI LUT, a window or a table; the values of an image that has neither
are spread from the least to the greatest. MONOCHROME1 is inverted. PALETTE COLOR goes through its tables, everything
else becomes RGB. Of enhanced images the functional groups of the frame count.

Needs the extra `render` (numpy, Pillow, pylibjpeg), and is the only module that does: it is imported when a picture is
wanted. Decoding is pydicom's. Not here: overlays, shutters, graphic annotation, ICC profiles, pixel aspect ratio.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

from harmony.dicom.frames import FileFrames, FrameError, FrameLayout, is_video, shifted
from harmony.dicom.presentation import (
    GIF,
    JPEG,
    ImageTooLarge,
    NoImage,
    NoSuchFrame,
    NotRenderable,
    Presentation,
    Region,
    Viewport,
    Window,
    WindowFunction,
    codestream_samples,
)

__all__ = ["ImageFile"]

Pixels = NDArray[Any]

MAXIMUM_FRAME_SAMPLES: Final = 64 * 1024 * 1024
"""Of one frame, 8192 by 8192 gray pixels. The steps of the pipeline take some 30 bytes for each."""
MAXIMUM_SAMPLES: Final = 256 * 1024 * 1024
"""Of all frames, or of their pictures where those are larger."""
MAXIMUM_FRAMES: Final = 2000
"""At a time; more than a minute of ultrasound."""

_KEYWORDS: Final = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "RepresentativeFrameNumber"),
    *("FrameTime", "RecommendedDisplayFrameRate", "CineRate"),
    *("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)
"""What is read of a header; everything else, such as the patient's name, is passed over."""
_PIXEL_ELEMENTS: Final = {
    b"\xe0\x7f\x08\x00": "FloatPixelData",
    b"\xe0\x7f\x09\x00": "DoubleFloatPixelData",
    b"\xe0\x7f\x10\x00": "PixelData",
}
_DEFAULT_FRAME_MS: Final = 100


class ImageFile:
    """The image in a Part 10 file, little-endian and not deflated. It must stay open for as long as this is used."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises NoImage when there is no image in it."""
        self._file = file
        try:
            file.seek(0)
            self._header = dcmread(file, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
            self._pixel_data = file.tell()
            self._syntax = self._header.file_meta.TransferSyntaxUID
            self._keyword = _PIXEL_ELEMENTS[self._read(self._pixel_data, 4)]
            self._layout = _layout(self._header)
            self._samples = self._header.Rows * self._header.Columns * self._header.get("SamplesPerPixel", 1)
        except Exception as error:  # whatever pydicom makes of a header like this
            raise NoImage("there is no image in this instance") from error

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    @property
    def frame_count(self) -> int:
        return self._layout.frame_count

    @property
    def representative_frame(self) -> int:
        """Representative Frame Number (0028,6010), else the first."""
        number = self._header.get("RepresentativeFrameNumber")
        return number if isinstance(number, int) and 1 <= number <= self.frame_count else 1

    def render(self, numbers: Sequence[int], how: Presentation) -> bytes:
        """The picture of one frame, counted from 1, or of several as an animation.

        Raises NoSuchFrame, ImageTooLarge, and NotRenderable.
        """
        self._check(numbers, how)
        pictures = [
            _shown(_part(self._picture(number, how.window), how.region), how.viewport) for number in numbers
        ]
        return _encoded(pictures, how, self._frame_ms())

    def render_each(self, numbers: Sequence[int], how: Presentation) -> list[bytes]:
        """A picture of each frame; raises what `render` does."""
        self._check(numbers, how)
        return [self.render([number], how) for number in numbers]

    def _check(self, numbers: Sequence[int], how: Presentation) -> None:
        if numbers[-1] > self.frame_count:
            raise NoSuchFrame(f"frame {numbers[-1]} is not there: the image has {self.frame_count}")
        if is_video(self._syntax):
            raise NotRenderable(f"videos are not rendered (transfer syntax {self._syntax})")
        shown = 3 * how.viewport.width * how.viewport.height if how.viewport is not None else 0
        largest = max(self._samples, shown)
        count = len(numbers)
        if (
            self._samples > MAXIMUM_FRAME_SAMPLES
            or largest * count > MAXIMUM_SAMPLES
            or count > MAXIMUM_FRAMES
        ):
            raise ImageTooLarge(f"{count} frames of {largest} samples are too many to be rendered at a time")

    def _picture(self, number: int, window: Window | None) -> Image.Image:
        try:
            with np.errstate(all="ignore"):
                return Image.fromarray(_rendered(self._decoded(number), self._of_frame(number), window))
        except (ImageTooLarge, NotRenderable):
            raise
        except FrameError as error:
            raise NotRenderable(str(error)) from error
        except Exception as error:  # decoders and pydicom raise anything for pixel data like these
            raise NotRenderable(
                f"frame {number} cannot be decoded (transfer syntax {self._syntax})"
            ) from error

    def _decoded(self, number: int) -> Pixels:
        """The frame: rows by columns, with the samples of a colour last, in RGB."""
        frames = FileFrames(self._read, self._pixel_data, self._layout, self._syntax)
        [(_, segments, shift)] = frames.locate([number])
        data = b"".join(self._read(*segment) for segment in segments)
        samples = codestream_samples(data) if frames.is_encapsulated else None
        if samples is not None and samples > MAXIMUM_FRAME_SAMPLES:
            raise ImageTooLarge(f"a codestream of {samples} samples is too large to be rendered")
        if shift or not self._layout.is_aligned:
            data = shifted(data, self._layout.frame_bits, shift)
        single: Any = Dataset()
        single.update(self._header)
        single.file_meta = self._header.file_meta
        single.NumberOfFrames = 1
        setattr(single, self._keyword, encapsulate([data]) if frames.is_encapsulated else _even(data))
        if self._keyword == "PixelData":
            single["PixelData"].VR = "OB" if frames.is_encapsulated or single.BitsAllocated <= 8 else "OW"
        decoder = get_decoder(self._syntax)
        pixels, _ = decoder.as_array(single, index=0)
        return pixels

    def _of_frame(self, number: int) -> Dataset:
        """The header, with what the functional groups say of one frame (PS3.3 §C.7.6.16)."""
        found = Dataset()
        found.update(self._header)
        shared = self._header.get("SharedFunctionalGroupsSequence") or []
        each = self._header.get("PerFrameFunctionalGroupsSequence") or []
        for group in (*shared[:1], *each[number - 1 : number]):
            for sequence in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in group.get(sequence) or []:
                    found.update(item)
        return found

    def _frame_ms(self) -> int:
        for keyword in ("FrameTime", "RecommendedDisplayFrameRate", "CineRate"):
            value = self._header.get(keyword)
            if isinstance(value, int | float) and value > 0:
                return int(min(10_000, max(20, value if keyword == "FrameTime" else 1000 / value)))
        return _DEFAULT_FRAME_MS


def _layout(header: Dataset) -> FrameLayout:
    model = {
        f"{header[keyword].tag:08X}": {"vr": header[keyword].VR, "Value": [header[keyword].value]}
        for keyword in (
            *("Rows", "Columns", "BitsAllocated", "SamplesPerPixel"),
            *("NumberOfFrames", "PhotometricInterpretation"),
        )
        if keyword in header and header[keyword].value is not None
    }
    return FrameLayout.of(model)


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


# Grayscale and colour


def _rendered(pixels: Pixels, header: Dataset, window: Window | None) -> Pixels:
    """8 bits per sample, rows by columns, or by 3 more for RGB."""
    interpretation = header.PhotometricInterpretation
    if interpretation == "PALETTE COLOR":
        colors = apply_color_lut(pixels, header)
        return _of_8_bits(colors, 8 * colors.dtype.itemsize)
    if pixels.ndim == 3:
        return _of_8_bits(pixels, header.BitsStored)
    gray = _windowed(pixels, header, window)
    return 255 - gray if interpretation == "MONOCHROME1" else gray


def _of_8_bits(pixels: Pixels, bits: int) -> Pixels:
    if bits > 8:
        pixels = pixels >> bits - 8
    elif bits < 8:
        pixels = pixels * 255 // ((1 << bits) - 1)
    return np.ascontiguousarray(pixels.astype(np.uint8))


def _windowed(pixels: Pixels, header: Dataset, window: Window | None) -> Pixels:
    values = apply_modality_lut(pixels, header)
    if window is None:
        window = _first_window(header)
        if window is None and header.get("VOILUTSequence"):
            return _by_table(values, header)
    if window is None:
        return _spread(values, _is_padding(pixels, header))
    return _levels(_through(values.astype(np.float64), window))


def _first_window(header: Dataset) -> Window | None:
    center, width = (_first(header.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    names = {"LINEAR_EXACT": WindowFunction.LINEAR_EXACT, "SIGMOID": WindowFunction.SIGMOID}
    function = names.get(str(header.get("VOILUTFunction")), WindowFunction.LINEAR)
    try:
        return None if center is None or width is None else Window(float(center), float(width), function)
    except ValueError:
        return None  # as if there were none


def _first(value: Any) -> Any:  # of pydicom: None, a number, or several
    return (value[0] if len(value) else None) if isinstance(value, Sequence) else value


def _through(values: Pixels, window: Window) -> Pixels:
    """From 0 to 1 (PS3.3 §C.11.2.1.2 and §C.11.2.1.3)."""
    center, width = window.center, window.width
    if window.function is WindowFunction.SIGMOID:
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if window.function is WindowFunction.LINEAR:
        center, width = center - 0.5, width - 1
    if not width:
        return (values > center).astype(np.float64)
    return (values - center) / width + 0.5


def _by_table(values: Pixels, header: Dataset) -> Pixels:
    whole = values if np.issubdtype(values.dtype, np.integer) else np.rint(values).astype(np.int64)
    shown = apply_voi(whole, header)
    bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
    return _levels(shown / ((1 << bits) - 1))


def _is_padding(pixels: Pixels, header: Dataset) -> Pixels | None:
    padding = header.get("PixelPaddingValue")
    return pixels == padding if isinstance(padding, int) else None


def _spread(values: Pixels, padding: Pixels | None) -> Pixels:
    """The least value black, the greatest white; those that fill up the image do not count."""
    counted = values[np.isfinite(values)] if padding is None else values[np.isfinite(values) & ~padding]
    if not counted.size or counted.min() == counted.max():
        return np.zeros(values.shape, np.uint8)
    least, greatest = float(counted.min()), float(counted.max())
    return _levels((values.astype(np.float64) - least) / (greatest - least))


def _levels(values: Pixels) -> Pixels:
    """0 to 1 as 0 to 255."""
    rounded: Pixels = np.floor(np.clip(np.nan_to_num(values), 0, 1) * 255 + 0.5).astype(np.uint8)
    return rounded


# Pictures


def _part(picture: Image.Image, region: Region | None) -> Image.Image:
    """At least one pixel of it."""
    if region is None:
        return picture
    left = min(round(region.left * picture.width), picture.width - 1)
    top = min(round(region.top * picture.height), picture.height - 1)
    right = max(round(region.right * picture.width), left + 1)
    bottom = max(round(region.bottom * picture.height), top + 1)
    return picture.crop((left, top, right, bottom))


def _shown(picture: Image.Image, viewport: Viewport | None) -> Image.Image:
    if viewport is None:
        return picture
    width, height = (
        picture.width - viewport.x if viewport.source_width is None else viewport.source_width,
        picture.height - viewport.y if viewport.source_height is None else viewport.source_height,
    )
    right, bottom = (
        min(picture.width, viewport.x + abs(width)),
        min(picture.height, viewport.y + abs(height)),
    )
    if right <= viewport.x or bottom <= viewport.y:
        raise NotRenderable(f"the viewport begins outside of the {picture.width} by {picture.height} image")
    picture = picture.crop((viewport.x, viewport.y, right, bottom))
    if width < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if height < 0:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    scale = min(viewport.width / picture.width, viewport.height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)


def _encoded(pictures: Sequence[Image.Image], how: Presentation, frame_ms: int) -> bytes:
    written = io.BytesIO()
    first, *more = pictures
    if how.media_type == GIF:
        animation = {"save_all": True, "append_images": more, "duration": frame_ms, "loop": 0} if more else {}
        first.save(written, "GIF", **animation)
    elif how.media_type == JPEG:
        first.save(written, "JPEG", quality=how.quality)
    else:
        first.save(written, "PNG")
    return written.getvalue()
