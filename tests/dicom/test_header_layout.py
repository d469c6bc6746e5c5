"""A layout matches what a scanner finds the same UIDs in, whatever values differ."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from harmony.dicom.header_layout import IDENTIFYING, SOP_INSTANCE, HeaderLayout
from harmony.dicom.scanner import HeaderScanner

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"


def data_set(
    instance: bytes = b"1.2.3.10", *, time: bytes = b"101500", name: bytes = b"A" * 64, explicit: bool = True
) -> bytes:
    elements = [
        (0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.7\0"),
        (0x00080018, b"UI", instance),
        (0x00080030, b"TM", time),
        (0x00100010, b"PN", name),
        (0x00102201, b"UT", b"spoken"),
        (0x0020000D, b"UI", b"1.2.34"),
        (0x0020000E, b"UI", b"1.2.34.5"),
        (0x7FE00010, b"OB", bytes(64)),
    ]
    encoded = b""
    for tag, vr, value in elements:
        header = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if not explicit:
            header += struct.pack("<I", len(value))
        elif vr in (b"UT", b"OB"):
            header += vr + b"\0\0" + struct.pack("<I", len(value))
        else:
            header += vr + struct.pack("<H", len(value))
        encoded += header + value
    return encoded


def scan(data: bytes, syntax: str = EXPLICIT) -> HeaderScanner:
    scanner = HeaderScanner(syntax, IDENTIFYING)
    scanner.feed(memoryview(data))
    scanner.finish()
    return scanner


def layout_of(data: bytes, syntax: str = EXPLICIT) -> HeaderLayout | None:
    return HeaderLayout.of(memoryview(data), scan(data, syntax))


def matches(layout: HeaderLayout, data: bytes) -> bool:
    return layout.matches(data[: layout.end])


def test_another_instance_of_the_series_matches() -> None:
    for syntax, explicit in ((EXPLICIT, True), (IMPLICIT, False)):
        layout = layout_of(data_set(explicit=explicit), syntax)
        assert layout is not None
        other = data_set(b"1.2.3.11", explicit=explicit)
        assert matches(layout, other)
        assert other[layout.instance_at : layout.instance_end] == b"1.2.3.11"
        assert not matches(layout, data_set(b"1.2.3.1234", explicit=explicit))
        assert not matches(layout, data_set(time=b"101501", explicit=explicit))


def test_values_that_were_seen_to_differ_may_differ() -> None:
    layout = layout_of(data_set())
    newer = layout_of(data_set(time=b"101501"))
    assert layout is not None
    assert newer is not None
    widened = layout.widened(newer)
    assert matches(widened, data_set(b"1.2.3.77", time=b"235959"))
    assert not matches(widened, data_set(time=b"2359"))
    assert not matches(widened, data_set(name=b"B" * 64))
    other = layout_of(data_set(time=b"2359"))
    assert other is not None
    assert widened.widened(other) is other  # its elements are in other places


def test_a_file_inside_of_a_value_is_left_to_the_scanner() -> None:
    """It looks for DICM at byte 128; here that is in the Patient's Name, which may differ."""
    at = 128 - data_set().index(b"A" * 64)
    layout, newer = layout_of(data_set()), layout_of(data_set(name=b"B" * 64))
    assert layout is not None
    assert newer is not None
    widened = layout.widened(newer)
    assert matches(widened, data_set(name=b"C" * 64))
    assert not matches(widened, data_set(name=(b"C" * at + b"DICM\2\0").ljust(64, b"C")))


def test_what_is_not_simply_one_element_after_the_other_has_no_layout() -> None:
    plain = data_set()
    sequence = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0"
    at = plain.index(b"\x10\x00\x10\x00")
    assert layout_of(plain[:at] + sequence + plain[at:]) is None
    assert layout_of(bytes(128) + b"DICM" + plain) is None
    assert layout_of(plain[:at]) is None
    assert layout_of(plain.replace(b"\x20\x00\x0e\x00UI", b"\x20\x00\x0f\x00UI")) is None


@given(st.data())
def test_whatever_matches_is_scanned_to_the_same_uids(data: st.DataObject) -> None:
    layout, newer = layout_of(data_set()), layout_of(data_set(time=b"101501", name=b"B" * 64))
    assert layout is not None
    assert newer is not None
    widened = layout.widened(newer)
    changed = bytearray(data_set(time=b"101502"))
    for _ in range(data.draw(st.integers(0, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    if matches(widened, bytes(changed)):
        found = scan(bytes(changed))
        assert found.failed is None
        assert found.data_set_offset == 0
        instance = bytes(changed[widened.instance_at : widened.instance_end])
        assert found.values == {**widened.values, SOP_INSTANCE: instance}
