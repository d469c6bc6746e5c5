"""harmony.dicom.value_layout: expected bytes by hand, from PS3.5 §7.1.2 and §A.4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from harmony.dicom.json_model import ModelError
from harmony.dicom.value_layout import lay_out

PATIENT_ID = {"00100020": {"vr": "LO", "Value": ["P1"]}}
PATIENT_ID_BYTES = b"\x10\x00\x20\x00LO\x02\x00P1"
PIXEL_DATA = 0x7FE00010


@dataclass(frozen=True)
class Piece:
    size_bytes: int


def test_native_pixel_data() -> None:
    pieces = [Piece(2), Piece(4)]
    model = PATIENT_ID | {"7FE00010": {"vr": "OW", "BulkDataURI": "x"}}
    assert lay_out(model, {PIXEL_DATA: pieces}) == [
        PATIENT_ID_BYTES,
        b"\xe0\x7f\x10\x00OW\x00\x00\x06\x00\x00\x00",
        *pieces,
    ]


def test_elements_follow_in_order_of_tag() -> None:
    document, more = Piece(4), {"00420012": {"vr": "LO", "Value": ["text/xml"]}}
    assert lay_out(more | PATIENT_ID, {0x00420011: [document]}) == [
        PATIENT_ID_BYTES,
        b"\x42\x00\x11\x00OB\x00\x00\x04\x00\x00\x00",
        document,
        b"\x42\x00\x12\x00LO\x08\x00text/xml",
    ]


@pytest.mark.parametrize(
    ("tag", "vr", "size", "header", "padding"),
    [
        (0x00420011, "OB", 3, b"\x42\x00\x11\x00OB\x00\x00\x04\x00\x00\x00", b"\0"),
        (0x00420011, "UN", 3, b"\x42\x00\x11\x00UN\x00\x00\x04\x00\x00\x00", b"\0"),
        (0x00281052, "DS", 3, b"\x28\x00\x52\x10DS\x04\x00", b" "),
        (0x00281052, "DS", 65534, b"\x28\x00\x52\x10DS\xfe\xff", b""),
        (0x00281052, "DS", 65535, b"\x28\x00\x52\x10UN\x00\x00\x00\x00\x01\x00", b" "),
    ],
)
def test_length_and_padding(tag: int, vr: str, size: int, header: bytes, padding: bytes) -> None:
    laid = lay_out({f"{tag:08X}": {"vr": vr}}, {tag: [Piece(size)]})
    if vr == "DS":
        assert laid.pop(0) == b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192"
    assert laid == [header, Piece(size), *([padding] if padding else [])]


def test_a_vr_that_is_no_text_is_that_of_the_dictionary() -> None:
    header = b"\x42\x00\x11\x00OB\x00\x00\x04\x00\x00\x00"
    assert lay_out({"00420011": {"vr": ["LO"]}}, {0x00420011: [Piece(4)]}) == [header, Piece(4)]


def test_fragments_for_frames() -> None:
    frames = [Piece(3), Piece(4)]
    assert lay_out(PATIENT_ID, {PIXEL_DATA: frames}, fragments=True) == [
        PATIENT_ID_BYTES,
        b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff",
        b"\xfe\xff\x00\xe0\x00\x00\x00\x00",
        b"\xfe\xff\x00\xe0\x04\x00\x00\x00",
        frames[0],
        b"\0",
        b"\xfe\xff\x00\xe0\x04\x00\x00\x00",
        frames[1],
        b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",
    ]


@pytest.mark.parametrize(
    ("model", "size", "key"),
    [
        ({"nonsense": {"vr": "LO"}}, 2, "nonsense"),
        ({"00280010": {"vr": "US", "Value": ["many"]}}, 2, "00280010"),
        ({}, 2**32, "7FE00010"),
    ],
)
def test_what_has_no_encoding(model: dict[str, Any], size: int, key: str) -> None:
    with pytest.raises(ModelError) as refused:
        lay_out(model, {PIXEL_DATA: [Piece(size)]})
    assert refused.value.key == key
