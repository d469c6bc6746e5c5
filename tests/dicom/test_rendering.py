"""Pictures of small images, with values worked out by hand from PS3.3 §C.11, and of pydicom's samples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset

from harmony.dicom.presentation import (
    ImageTooLarge,
    NoSuchFrame,
    NotRenderable,
    Presentation,
    Viewport,
    Window,
    WindowFunction,
    codestream_samples,
)
from harmony.dicom.rendering import ImageFile

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

EXPLICIT, JPEG_2000 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"
PNG = Presentation("image/png")


def image(pixels: bytes, *, syntax: str = EXPLICIT, **attributes: Any) -> io.BytesIO:
    """An image of one row and four columns of 8 bits, unless attributes say otherwise."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    described = {
        **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": 1, "Columns": 4},
        **{"BitsAllocated": 8, "BitsStored": 8, "PixelRepresentation": 0},
        **attributes,
    }
    described.setdefault("HighBit", described["BitsStored"] - 1)
    for keyword, value in described.items():
        setattr(header, keyword, value)
    header.PixelData = pixels
    header["PixelData"].VR = "OB" if described["BitsAllocated"] <= 8 else "OW"
    written = io.BytesIO()
    pydicom.dcmwrite(written, header, enforce_file_format=True)
    written.seek(0)
    return written


def shown(file: io.BytesIO, how: Presentation = PNG, frame: int = 1) -> list[Any]:
    with Image.open(io.BytesIO(ImageFile(file).render([frame], how))) as picture:
        values: list[Any] = np.asarray(picture).tolist()
        return values


def through(center: float, width: float, function: str = "linear") -> Presentation:
    return Presentation("image/png", window=Window(center, width, WindowFunction(function)))


# PS3.3 §C.11.2.1.2: 100 and 5 are 97.5 (black) to 101.5 (white); 100 and 4 of linear-exact 98 to 102.
@pytest.mark.parametrize(
    ("how", "pixels", "expected"),
    [
        (through(100, 5), (97, 98, 99, 102), (0, 32, 96, 255)),  # (98 - 99.5) / 4 + 1/2 = 1/8
        (through(100, 4, "linear-exact"), (98, 99, 100, 102), (0, 64, 128, 255)),  # 1/4, 1/2
        (through(100, 40, "sigmoid"), (0, 100, 110, 200), (0, 128, 186, 255)),  # 1 / (1 + exp(-1)) = .731
        (through(100, 1), (98, 99, 100, 101), (0, 0, 255, 255)),  # a threshold at 99.5
    ],
)
def test_window(how: Presentation, pixels: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert shown(image(bytes(pixels)), how) == [list(expected)]
    inverted = image(bytes(pixels), PhotometricInterpretation="MONOCHROME1")
    assert shown(inverted, how) == [[255 - each for each in expected]]


def test_the_first_window_of_the_image_is_the_default() -> None:
    file = image(bytes((97, 98, 99, 102)), WindowCenter=[100, 7], WindowWidth=[5, 9])
    assert shown(file) == [[0, 32, 96, 255]]
    exact = image(bytes((98, 99, 100, 102)), WindowCenter=100, WindowWidth=4, VOILUTFunction="LINEAR_EXACT")
    assert shown(exact) == [[0, 64, 128, 255]]


def test_without_a_window_the_values_are_spread_but_for_the_padding() -> None:
    assert shown(image(bytes((10, 20, 30, 60)))) == [[0, 51, 102, 255]]
    assert shown(image(bytes((7, 7, 7, 7)))) == [[0, 0, 0, 0]]
    padded = image(bytes((10, 20, 60, 200)), PixelPaddingValue=200)
    assert shown(padded) == [[0, 51, 255, 255]]


def test_a_window_counts_after_the_rescale() -> None:
    signed = np.array([-1000, 0, 40, 1000], "<i2").tobytes()
    ct = {"BitsAllocated": 16, "BitsStored": 16, "PixelRepresentation": 1}
    file = image(signed, RescaleSlope=2, RescaleIntercept=-40, **ct)
    # -2040, -40, 40, 1960 in a window from -40 to 40
    assert shown(file, through(0, 80, "linear-exact")) == [[0, 0, 255, 255]]
    assert shown(file, through(0, 160, "linear-exact")) == [[0, 64, 191, 255]]


def test_only_the_stored_bits_count() -> None:
    data = np.array([0xF000, 0x0FFF, 0x17FF, 0x0800], "<u2").tobytes()
    file = image(data, BitsAllocated=16, BitsStored=12)
    assert shown(file) == [[0, 255, 127, 128]]  # of 4095: 0, 4095, 2047, 2048


def lookup_table(*entries: int, first: int, bits: int) -> Dataset:
    table = Dataset()
    table.LUTDescriptor = [len(entries), first, bits]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = list(entries)
    table["LUTData"].VR = "US"
    return table


def test_tables() -> None:
    voi = image(bytes((0, 10, 11, 99)), VOILUTSequence=[lookup_table(0, 51, 255, first=10, bits=8)])
    assert shown(voi) == [[0, 0, 51, 255]]
    modality = image(
        bytes((0, 1, 2, 3)), ModalityLUTSequence=[lookup_table(0, 100, 50, 200, first=0, bits=8)]
    )
    assert shown(modality) == [[0, 128, 64, 255]]


def palette() -> dict[str, Any]:
    found: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color, entries in (("Red", (0, 0xFF00)), ("Green", (0x8000, 0)), ("Blue", (0, 0x0100))):
        found[f"{color}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        found[f"{color}PaletteColorLookupTableData"] = np.array(entries, "<u2").tobytes()
    return found


def test_palette_color() -> None:
    green, red = [0, 128, 0], [255, 0, 1]
    assert shown(image(bytes((0, 1, 1, 0)), **palette())) == [[green, red, red, green]]


@pytest.mark.parametrize(
    ("planar", "pixels"), [(0, (1, 2, 3, 4, 5, 6)), (1, (1, 4, 2, 5, 3, 6))], ids=["by pixel", "by plane"]
)
def test_rgb(planar: int, pixels: tuple[int, ...]) -> None:
    file = image(
        bytes(pixels),
        Columns=2, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar,
    )  # fmt: skip
    assert shown(file) == [[[1, 2, 3], [4, 5, 6]]]


def test_ybr_becomes_rgb() -> None:
    file = image(
        bytes((128, 128, 128, 76, 85, 255)),
        Columns=2, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0,
    )  # fmt: skip
    [[gray, red]] = shown(file)
    assert gray == [128, 128, 128]
    assert np.abs(np.array(red) - [254, 0, 0]).max() <= 1


def test_a_frame_of_single_bits_begins_within_a_byte() -> None:
    """Frames of three pixels (PS3.5 §8.1.1): 101 and 011, the first in the lowest bit."""
    file = image(b"\x35\0", Columns=3, NumberOfFrames=2, BitsAllocated=1, BitsStored=1)
    assert shown(file) == [[255, 0, 255]]
    assert shown(file, frame=2) == [[0, 255, 255]]


def test_functional_groups_of_the_frame() -> None:
    def group(center: int) -> Dataset:
        voi, item = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 5
        item.FrameVOILUTSequence = [voi]
        return item

    file = image(
        bytes((97, 98, 99, 102, 197, 198, 199, 202)),
        NumberOfFrames=2,
        PerFrameFunctionalGroupsSequence=[group(100), group(200)],
    )
    assert shown(file) == shown(file, frame=2) == [[0, 32, 96, 255]]


# Pictures


def test_viewport() -> None:
    file = image(bytes(range(0, 255, 32)), Rows=2)  # 0 32 64 96, 128 160 192 224
    exact = Presentation("image/png", through(127.5, 255, "linear-exact").window)

    def at(*numbers: int | None) -> list[Any]:
        return shown(file, Presentation("image/png", exact.window, Viewport(*numbers)))  # type: ignore[arg-type]

    assert at(4, 4) == [[0, 32, 64, 96], [128, 160, 192, 224]]
    assert at(2, 1, 1, 1, 2, 1) == [[160, 192]]
    assert at(2, 1, 1, 1, -2, 1) == [[192, 160]]
    assert at(4, 2, 0, 0, None, -2) == [[128, 160, 192, 224], [0, 32, 64, 96]]
    assert np.array(at(100, 100)).shape == (50, 100)
    with pytest.raises(NotRenderable, match="outside"):
        at(4, 4, 4, 0)


def test_animation() -> None:
    file = image(bytes((0, 255, 0, 255, 255, 0, 255, 0)), NumberOfFrames=2, FrameTime=50)
    with Image.open(io.BytesIO(ImageFile(file).render([1, 2], Presentation("image/gif")))) as picture:
        assert (picture.format, picture.n_frames, picture.info["duration"]) == ("GIF", 2, 50)
        picture.seek(1)
        assert np.asarray(picture.convert("L")).tolist() == [[255, 0, 255, 0]]


def test_quality() -> None:
    file = image(bytes(range(256)) * 16, Rows=64, Columns=64)
    sizes = [len(ImageFile(file).render([1], Presentation(quality=quality))) for quality in (10, 90)]
    assert sizes[0] < sizes[1]


# What is refused


def test_a_frame_that_is_not_there() -> None:
    with pytest.raises(NoSuchFrame, match="frame 2"):
        shown(image(bytes(4)), frame=2)


def test_no_image() -> None:
    for file in (io.BytesIO(b""), io.BytesIO(b"\0" * 200), image(bytes(4), Rows=0)):
        with pytest.raises(NotRenderable):
            shown(file)


def test_sizes_are_checked_before_anything_is_decoded() -> None:
    with pytest.raises(ImageTooLarge):
        shown(image(bytes(4), Rows=65535, Columns=65535))
    many = image(bytes(4), NumberOfFrames=5000)
    with pytest.raises(ImageTooLarge):
        ImageFile(many).render(range(1, 5001), Presentation("image/gif"))
    large = image(bytes(40), NumberOfFrames=10)
    with pytest.raises(ImageTooLarge):
        ImageFile(large).render(range(1, 11), Presentation("image/gif", viewport=Viewport(8192, 8192)))
    # SOC, SIZ: 65536 by 65536 pixels of one component; the header says 1 by 4.
    siz = b"\xff\x4f\xff\x51\0\x29\0\0" + (b"\0\1\0\0" * 2) + bytes(8) + (b"\0\1\0\0" * 2) + bytes(8)
    siz += b"\0\1\7\1\1"
    assert codestream_samples(siz) == 65536 * 65536
    with pytest.raises(ImageTooLarge, match="codestream"):
        shown(image(pydicom.encaps.encapsulate([siz + b"\0"]), syntax=JPEG_2000))


def test_size_of_a_jpeg() -> None:
    # SOI, APP0 of four bytes, SOF0: 8 bits, 2 lines of 3 samples, 3 components
    jpeg = b"\xff\xd8" + b"\xff\xe0\0\4ab" + b"\xff\xc0\0\x11\x08\0\2\0\3\3" + bytes(9)
    assert codestream_samples(jpeg) == 18
    for nothing in (b"", b"\xff\xd8", jpeg[:12], b"\xff\xd8\xff\xda" + bytes(20), b"\xff\x4f\xff\x51"):
        assert codestream_samples(nothing) is None


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf")])
def test_a_window_without_width_means_nothing(width: float) -> None:
    with pytest.raises(ValueError, match="width"):
        Window(1, width)
    assert shown(image(bytes((0, 1, 2, 5)), WindowCenter=1, WindowWidth=0)) == [[0, 51, 102, 255]]


# pydicom's samples

UNDECODABLE = {
    "JPEG-lossy.dcm": NotRenderable,  # not a codestream that its transfer syntax allows
    "JPEG2000-embedded-sequence-delimiter.dcm": ImageTooLarge,  # made up, and not of a size that it says
    "MR_truncated.dcm": NotRenderable,
}


def test_samples() -> None:
    rendered = 0
    for path in sorted(Path(pydicom.__file__).parent.rglob("*.dcm")):
        with path.open("rb") as file:
            if path.name in UNDECODABLE:
                with pytest.raises(UNDECODABLE[path.name]):
                    ImageFile(file).render([1], PNG)
                continue
            try:
                sample = ImageFile(file)
            except NotRenderable:
                continue  # no image in it
            picture = sample.render([sample.representative_frame], PNG)
            assert picture.startswith(b"\x89PNG"), path.name
            rendered += 1
    assert rendered > 50
