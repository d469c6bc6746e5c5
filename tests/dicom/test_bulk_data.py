"""Headers without bulk data, and bulk data by path (PS3.18 §F.2.6), in streams."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.dicom.bulk_data import HeaderStream, ValueStream, name_bulk_data
from harmony.dicom.data_set_decoder import DataSetError, decode_data_set
from harmony.dicom.element_stream import format_path, parse_path
from harmony.dicom.transcode import TranscodeError

IMPLICIT, EXPLICIT, BIG, JPEG = (f"1.2.840.10008.1.2{suffix}" for suffix in ("", ".1", ".2", ".4.50"))
ITEM, UNDEFINED = b"\xfe\xff\x00\xe0", b"\xff\xff\xff\xff"
ITEM_END, SEQUENCE_END = b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"


def long_form(tag: bytes, vr: bytes, value: bytes) -> bytes:
    return tag + vr + b"\0\0" + len(value).to_bytes(4, "little") + value


PATIENT_ID = b"\x10\x00\x20\x00LO\x04\x00ID-1"
DOCUMENT = b"\x42\x00\x11\x00"  # (0042,0011) Encapsulated Document
MIME_TYPE = b"\x42\x00\x12\x00LO\x0a\x00text/plain"
WAVEFORM = b"\x00\x54\x10\x10"  # (5400,1010) in items of (5400,0100)
WAVEFORMS = b"\x00\x54\x00\x01SQ\0\0"
PIXELS = long_form(b"\xe0\x7f\x10\x00", b"OW", b"\1\2\3\4")


def read(data: bytes, syntax: str = EXPLICIT, *, piece: int = 7) -> Any:
    header = HeaderStream(syntax)
    for at in range(0, len(data), piece):
        if header.feed(data[at : at + piece]):
            break
    return header.finish()


def value(data: bytes, path: str, syntax: str = EXPLICIT, *, piece: int = 7) -> bytes | None:
    parsed = parse_path(path)
    assert parsed is not None
    stream, found = ValueStream(syntax, parsed), b""
    for at in range(0, len(data), piece):
        found += b"".join(map(bytes, stream.feed(data[at : at + piece])))
    found += b"".join(map(bytes, stream.finish()))
    return found if stream.is_found else None


def test_what_is_short_is_in_the_header_and_what_is_long_is_not() -> None:
    data = PATIENT_ID + long_form(DOCUMENT, b"OB", bytes(2000)) + MIME_TYPE + PIXELS
    assert read(data) == {
        "00100020": {"vr": "LO", "Value": ["ID-1"]},
        "00420011": {"vr": "OB", "BulkDataURI": ""},
        "00420012": {"vr": "LO", "Value": ["text/plain"]},
        "7FE00010": {"vr": "OW", "BulkDataURI": ""},
    }
    assert read(long_form(DOCUMENT, b"OB", b"\1\2") + MIME_TYPE)["00420011"] == {
        "vr": "OB",
        "InlineBinary": "AQI=",
    }
    assert read(long_form(DOCUMENT, b"OB", b"") + MIME_TYPE)["00420011"] == {"vr": "OB"}
    text = long_form(b"\x40\x00\x60\xa1", b"UT", b"x" * 70_000)  # (0040,A160)
    assert read(text) == {"0040A160": {"vr": "UT", "BulkDataURI": ""}}
    assert read(text[:8] + b"\x02\0\0\0hi") == {"0040A160": {"vr": "UT", "Value": ["hi"]}}


def test_pixel_data_end_the_header() -> None:
    header = HeaderStream(EXPLICIT)
    assert not header.feed(PATIENT_ID)
    assert header.feed(PIXELS[:12])
    assert header.finish()["7FE00010"] == {"vr": "OW", "BulkDataURI": ""}


@pytest.mark.parametrize("piece", [1, 8, 100_000])
@pytest.mark.parametrize("defined", [True, False])
def test_bulk_data_in_items(defined: bool, piece: int) -> None:
    waveform = long_form(WAVEFORM, b"OW", b"\1\2" * 1000)
    if defined:
        item = ITEM + len(waveform).to_bytes(4, "little") + waveform
        items = ITEM + b"\0\0\0\0" + item
        data = PATIENT_ID + WAVEFORMS + len(items).to_bytes(4, "little") + items + PIXELS
    else:
        item = ITEM + UNDEFINED + waveform + ITEM_END
        data = PATIENT_ID + WAVEFORMS + UNDEFINED + ITEM + b"\0\0\0\0" + item + SEQUENCE_END + PIXELS
    model = read(data, piece=piece)
    assert model["54000100"] == {"vr": "SQ", "Value": [{}, {"54001010": {"vr": "OW", "BulkDataURI": ""}}]}
    name_bulk_data(model, "/bulkdata/")
    assert model["54000100"]["Value"][1]["54001010"]["BulkDataURI"] == "/bulkdata/54000100/2/54001010"
    assert model["7FE00010"]["BulkDataURI"] == "/bulkdata/7FE00010"
    assert value(data, "54000100/2/54001010", piece=piece) == b"\1\2" * 1000
    assert value(data, "54000100/1/54001010", piece=piece) is None
    assert value(data, "54001010", piece=piece) is None
    assert value(data, "7FE00010", piece=piece) == b"\1\2\3\4"
    assert decode_data_set(data, EXPLICIT, complete=True) == {
        tag: model[tag] for tag in model if tag != "7FE00010"
    } | {"54000100": {"vr": "SQ", "Value": [{}, {"54001010": {"vr": "OW", "BulkDataURI": ""}}]}}


@pytest.mark.parametrize("defined", [True, False])
def test_a_sequence_longer_than_wanted_is_left_out(defined: bool) -> None:
    """Of 80 bytes, or 88 with its delimiter."""
    items = (ITEM + b"\0\0\0\0") * 10
    end = len(items).to_bytes(4, "little") + items if defined else UNDEFINED + items + SEQUENCE_END
    data = PATIENT_ID + WAVEFORMS + end

    def decoded(**options: Any) -> dict[str, Any]:
        return decode_data_set(data, EXPLICIT, **options)["54000100"]

    assert decoded(complete=True, maximum_sequence_bytes=88) == {"vr": "SQ", "Value": [{}] * 10}
    assert decoded(complete=True, maximum_sequence_bytes=72) == {"vr": "SQ", "BulkDataURI": ""}
    assert decoded(maximum_value_bytes=72) == {"vr": "SQ"}


def test_missing_delimiters_are_supplied() -> None:
    waveform = long_form(WAVEFORM, b"OW", b"\1\2")
    data = (
        WAVEFORMS
        + UNDEFINED
        + ITEM
        + UNDEFINED
        + waveform
        + ITEM
        + UNDEFINED
        + waveform
        + SEQUENCE_END
        + PIXELS
    )
    assert value(data, "54000100/2/54001010", JPEG) == b"\1\2"
    assert value(data, "7FE00010", JPEG) == b"\1\2\3\4"


def test_values_are_little_endian_whatever_is_stored() -> None:
    big = b"\x00\x28\x12\x01OW\0\0\0\0\0\4\1\2\3\4"  # (0028,1201)
    assert value(big, "00281201", BIG) == b"\2\1\4\3"
    assert decode_data_set(big, BIG, complete=True) == {"00281201": {"vr": "OW", "InlineBinary": "AgEEAw=="}}
    assert read(big, BIG) == decode_data_set(big, BIG, complete=True)
    implicit = b"\x28\x00\x01\x12\4\0\0\0\1\2\3\4"
    assert value(implicit, "00281201", IMPLICIT) == b"\1\2\3\4"


def test_fragments_without_their_table() -> None:
    data = b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED
    data += ITEM + b"\4\0\0\0\0\0\0\0" + ITEM + b"\2\0\0\0on" + ITEM + b"\2\0\0\0e!" + SEQUENCE_END
    assert value(data, "7FE00010", JPEG) == b"one!"


@pytest.mark.parametrize(
    "text", ["", "7FE0001", "7FE00010/", "x", "7FE00010/1", "54000100/a/54001010", "7FE000100"]
)
def test_no_paths(text: str) -> None:
    assert parse_path(text) is None


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 99999999)), max_size=9),
    st.integers(0, 0xFFFFFFFF),
)
def test_paths(steps: list[tuple[int, int]], tag: int) -> None:
    path = (*(number for step in steps for number in step), tag)
    assert parse_path(format_path(path)) == path


@given(st.binary(max_size=300), st.sampled_from([EXPLICIT, IMPLICIT, BIG, JPEG]), st.integers(1, 50))
def test_arbitrary_bytes_raise_nothing_else(data: bytes, syntax: str, piece: int) -> None:
    for content in (data, PATIENT_ID + data, WAVEFORMS + UNDEFINED + ITEM + UNDEFINED + data):
        try:
            read(content, syntax, piece=piece)
            value(content, "7FE00010", syntax, piece=piece)
        except (DataSetError, TranscodeError):
            pass


def test_samples(pydicom_files: list[Any]) -> None:
    """As the decoder reads them when it has all of them."""
    for sample in pydicom_files:
        model = read(sample.data_set, sample.transfer_syntax_uid, piece=1000)
        wanted = decode_data_set(sample.data_set, sample.transfer_syntax_uid, complete=True)
        assert {tag: model[tag] for tag in model if tag < "7FE00010"} == wanted, sample
