"""Frames in pixel data, in files and in streams (PS3.5 §8, §A.4)."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pydicom
import pydicom.encaps
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.dicom.frame_stream import FrameBegin, FrameEnd, FrameStream
from harmony.dicom.frames import FileFrames, FrameError, FrameLayout, frame_numbers, shifted
from harmony.dicom.json_model import DataSetError, decode_data_set

EXPLICIT, JPEG, J2K, RLE = (f"1.2.840.10008.1.2{suffix}" for suffix in (".1", ".4.50", ".4.90", ".5"))
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


def us(tag: int, value: int) -> bytes:
    return b"\x28\x00" + tag.to_bytes(2, "little") + b"US\x02\x00" + value.to_bytes(2, "little")


def image(
    pixels: bytes, *, frames: int, rows: int = 2, columns: int = 2, bits: int = 8, before: bytes = b""
) -> bytes:
    number = str(frames).rjust(2).encode()
    assert len(number) == 2
    return (
        us(0x0002, 1)
        + (b"\x28\x00\x08\x00IS\x02\x00" + number)
        + us(0x0010, rows)
        + us(0x0011, columns)
        + us(0x0100, bits)
        + before
        + pixels
    )


def native(value: bytes) -> bytes:
    return b"\xe0\x7f\x10\x00OW\x00\x00" + len(value).to_bytes(4, "little") + value


def item(value: bytes) -> bytes:
    return ITEM + len(value).to_bytes(4, "little") + value


def encapsulated(table: bytes, *fragments: bytes) -> bytes:
    return b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff" + item(table) + b"".join(map(item, fragments)) + END


def basic_table(*offsets: int) -> bytes:
    return b"".join(offset.to_bytes(4, "little") for offset in offsets)


def extended_table(*offsets: int) -> bytes:
    """(7FE0,0001) and (7FE0,0002), whose values nobody here believes."""
    size = (8 * len(offsets)).to_bytes(4, "little")
    values = b"".join(offset.to_bytes(8, "little") for offset in offsets)
    return (
        b"\xe0\x7f\x01\x00OV\x00\x00"
        + size
        + values
        + b"\xe0\x7f\x02\x00OV\x00\x00"
        + size
        + bytes(len(values))
    )


def from_file(data: bytes, syntax: str, numbers: list[int]) -> list[bytes]:
    header = decode_data_set(data, EXPLICIT)
    layout = FrameLayout.of(header)
    implicit = data.rfind(b"\xe0\x7f\x10\x00\xff\xff\xff\xff")
    at = implicit if implicit >= 0 else data.rindex(b"\xe0\x7f\x10\x00O")
    frames = FileFrames(lambda offset, size: data[offset : offset + size], at, layout, syntax)
    found = []
    for _, segments, shift in frames.locate(numbers):
        content = b"".join(data[offset : offset + size] for offset, size in segments)
        if not frames.is_encapsulated and not layout.is_aligned:
            content = shifted(content, layout.frame_bits, shift)
        found.append(content)
    return found


def from_stream(
    data: bytes, syntax: str, numbers: list[int] | None, *, sizes: list[int] | None = None
) -> list[bytes]:
    stream = FrameStream(syntax, numbers)
    found: list[bytes] = []
    open_ = False

    def take(events: Any) -> None:
        nonlocal open_
        for event in events:
            if isinstance(event, FrameBegin):
                assert not open_
                assert numbers is None or event.number == numbers[len(found)]
                open_ = True
                found.append(b"")
            elif isinstance(event, FrameEnd):
                assert open_
                open_ = False
            else:
                assert open_
                found[-1] += bytes(event)

    at = 0
    for size in sizes or [len(data)]:
        take(stream.feed(data[at : at + size]))
        at += size
    take(stream.feed(data[at:]))
    take(stream.finish())
    assert not open_
    assert stream.is_complete
    return found


def both(data: bytes, syntax: str, numbers: list[int]) -> list[bytes]:
    found = from_file(data, syntax, numbers)
    assert from_stream(data, syntax, numbers) == found
    assert from_stream(data, syntax, numbers, sizes=[1] * len(data)) == found
    return found


# Native


def test_native_frames_are_cut_by_their_size() -> None:
    data = image(native(bytes(range(12))), frames=3)
    assert both(data, EXPLICIT, [1, 3]) == [bytes(range(4)), bytes(range(8, 12))]
    data = image(native(bytes(range(16))), frames=2, bits=16)
    assert both(data, EXPLICIT, [2]) == [bytes(range(8, 16))]


def test_frames_of_single_bits_begin_in_the_lowest_one() -> None:
    # Pixels of 2 frames of 3 x 1: 1 0 0 and 0 1 1, so 00110001 with the first pixel rightmost.
    data = image(native(bytes([0b00110001, 0])), frames=2, rows=3, columns=1, bits=1)
    assert both(data, EXPLICIT, [1, 2]) == [bytes([0b001]), bytes([0b110])]


def test_two_pixels_share_a_colour_in_422() -> None:
    photometric = b"\x28\x00\x04\x00CS\x0c\x00YBR_FULL_422"
    header = decode_data_set(
        us(0x0002, 3) + photometric + us(0x0010, 4) + us(0x0011, 2) + us(0x0100, 8), EXPLICIT
    )
    assert FrameLayout.of(header).frame_bytes == 4 * 2 * 2


def test_frames_in_implicit_vr() -> None:
    element = b"\xe0\x7f\x10\x00\x08\x00\x00\x00" + bytes(range(8))
    frames = FileFrames(lambda at, size: element[at : at + size], 0, FrameLayout(2, 32), "1.2.840.10008.1.2")
    assert list(frames.locate([1, 2])) == [(1, [(8, 4)], 0), (2, [(12, 4)], 0)]


@pytest.mark.parametrize("number", [2, 4])
def test_a_frame_beyond_the_pixel_data(number: int) -> None:
    data = image(native(bytes(6)), frames=3)
    for find in (from_file, from_stream):
        with pytest.raises(FrameError, match=f"frame {number} is"):
            find(data, EXPLICIT, [number])


def test_no_image() -> None:
    with pytest.raises(FrameError, match="not an image"):
        FrameLayout.of({})
    with pytest.raises(FrameError, match="no pixel data"):
        from_stream(us(0x0010, 2), EXPLICIT, [1])


# Encapsulated

SOI = b"\xff\xd8"


def test_one_fragment_per_frame() -> None:
    data = image(encapsulated(b"", b"one!", b"two!"), frames=2)
    for syntax in (JPEG, RLE):
        assert both(data, syntax, [1, 2]) == [b"one!", b"two!"]
        assert both(data, syntax, [2]) == [b"two!"]


def test_one_frame_of_all_fragments() -> None:
    assert both(image(encapsulated(b"", b"on", b"e!"), frames=1), JPEG, [1]) == [b"one!"]
    assert both(image(encapsulated(basic_table(0), b"on", b"e!"), frames=1), RLE, [1]) == [b"one!"]


def test_a_basic_offset_table_tells_which_fragments() -> None:
    # The second frame begins behind two items of 8 + 2 bytes.
    data = image(encapsulated(basic_table(0, 20), b"on", b"e!", b"tw", b"o!"), frames=2)
    assert both(data, JPEG, [1, 2]) == [b"one!", b"two!"]
    assert both(data, RLE, [2]) == [b"two!"]


def test_an_extended_offset_table() -> None:
    data = image(encapsulated(b"", b"one!", b"two!", b"3!"), frames=3, before=extended_table(0, 12, 24))
    assert both(data, JPEG, [1, 3]) == [b"one!", b"3!"]


@pytest.mark.parametrize(
    "data",
    [
        image(encapsulated(basic_table(0, 12), b"one!", b"two!"), frames=2),
        image(encapsulated(b"", b"one!", b"two!"), frames=2, before=extended_table(0, 12)),
    ],
)
def test_a_frame_beyond_the_offset_table(data: bytes) -> None:
    for find in (from_file, from_stream):
        with pytest.raises(FrameError, match="frame 3 is not there: the image has 2"):
            find(data, JPEG, [3])


@pytest.mark.parametrize("table", [basic_table(0), basic_table(4, 8), basic_table(0, 0), b"\0\0"])
def test_a_table_that_cannot_be_true_counts_for_nothing(table: bytes) -> None:
    data = image(encapsulated(table, b"one!", b"two!"), frames=2)
    assert both(data, RLE, [1, 2]) == [b"one!", b"two!"]


def test_without_a_table_codestreams_show_where_frames_begin() -> None:
    data = image(encapsulated(b"", SOI + b"1", b"23", b"", SOI + b"4", SOI + b"5", b"6"), frames=3)
    assert both(data, JPEG, [1, 2, 3]) == [SOI + b"123", SOI + b"4", SOI + b"56"]
    soc = b"\xff\x4f\xff\x51"
    data = image(encapsulated(b"", soc, b"1", soc + b"2"), frames=2)
    assert both(data, J2K, [1, 2]) == [soc + b"1", soc + b"2"]


def test_fewer_fragments_than_frames() -> None:
    data = image(encapsulated(b"", b"one!"), frames=2)
    for find in (from_file, from_stream):
        with pytest.raises(FrameError):
            find(data, RLE, [2])


@pytest.mark.parametrize(
    "pixels",
    [
        encapsulated(b"", b"one!")[:-8],  # no delimiter
        encapsulated(b"", b"one!")[:-12],  # inside of a fragment
        encapsulated(b"", b"one!").replace(ITEM, b"\xfe\xff\x01\xe0"),
        b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff",
    ],
)
def test_broken_encapsulation_is_no_crash(pixels: bytes) -> None:
    data = image(pixels, frames=2)
    for find in (from_file, from_stream):
        with pytest.raises((FrameError, DataSetError)):
            find(data, RLE, [2])


def test_a_video_is_one_frame() -> None:
    data = image(encapsulated(b"", b"codestream"), frames=50)
    assert from_stream(data, "1.2.840.10008.1.2.4.102", None) == [b"codestream"]


@given(st.data())
def test_any_frames_in_any_pieces(data: st.DataObject) -> None:
    """With a table, and wherever frames and network packets are cut."""
    frames = data.draw(
        st.lists(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=3), min_size=1, max_size=5)
    )
    even = [[piece + b"\0" * (len(piece) % 2) for piece in frame] for frame in frames]
    sizes = [sum(8 + len(piece) for piece in frame) for frame in even]
    offsets = [sum(sizes[:number]) for number in range(len(sizes))]
    flat = [piece for frame in even for piece in frame]
    whole = image(encapsulated(basic_table(*offsets), *flat), frames=len(frames))
    numbers = sorted(data.draw(st.sets(st.integers(1, len(frames)), min_size=1)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    wanted = [b"".join(even[number - 1]) for number in numbers]
    assert from_file(whole, RLE, numbers) == wanted
    pieces = [second - first for first, second in pairwise([0, *cuts])]
    assert from_stream(whole, RLE, numbers, sizes=pieces) == wanted


@given(st.data())
def test_any_native_frames_in_any_pieces(data: st.DataObject) -> None:
    bits, rows, count = (
        data.draw(st.sampled_from([1, 8, 16])),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 6)),
    )
    size = rows * 3 * bits
    value = data.draw(st.binary(min_size=(size * count + 7) // 8, max_size=(size * count + 7) // 8))
    whole = image(native(value), frames=count, rows=rows, columns=3, bits=bits)
    number = int.from_bytes(value, "little")
    wanted = [
        (number >> size * at & (1 << size) - 1).to_bytes((size + 7) // 8, "little") for at in range(count)
    ]
    numbers = sorted(data.draw(st.sets(st.integers(1, count), min_size=1)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    assert from_file(whole, EXPLICIT, numbers) == [wanted[number - 1] for number in numbers]
    pieces = [second - first for first, second in pairwise([0, *cuts])]
    assert from_stream(whole, EXPLICIT, numbers, sizes=pieces) == [wanted[number - 1] for number in numbers]


@given(st.binary(max_size=200), st.sampled_from([EXPLICIT, JPEG, RLE, "1.2.840.10008.1.2"]))
def test_arbitrary_bytes_raise_nothing_else(data: bytes, syntax: str) -> None:
    for content in (data, image(b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff" + data, frames=2)):
        try:
            from_stream(content, syntax, [1])
            from_file(content, syntax, [1])
        except ValueError:
            pass


def test_samples_as_pydicom_has_them(pydicom_files: list[Any]) -> None:
    compared = 0
    for sample in pydicom_files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(sample.path)
            if "PixelData" not in dataset or sample.path.name == "MR_truncated.dcm":
                continue
            count = int(dataset.get("NumberOfFrames") or 1)
        if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            continue
        wanted = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count))
        assert from_stream(sample.data_set, sample.transfer_syntax_uid, None) == wanted, sample
        assert from_file(sample.data_set, sample.transfer_syntax_uid, list(range(1, count + 1))) == wanted, (
            sample
        )
        compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1", [1]),
        ("1,2,10", [1, 2, 10]),
        ("0", None),
        ("", None),
        ("2,1", None),
        ("1,1", None),
        ("1,", None),
        ("-1", None),
        ("1.0", None),
        ("\u0661", None),
        ("1" * 9, None),
    ],
)
def test_frame_lists(text: str, numbers: list[int] | None) -> None:
    assert frame_numbers(text) == numbers
