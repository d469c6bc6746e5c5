"""Files that are cut off are told from those that were sent as they are."""

import os
import struct
import zlib
from pathlib import Path

import pytest

from harmony.archive.torn import RECENT_NS, ends_early, set_aside
from harmony.dimse.part10 import encode_file_meta

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"
SOP_CLASS = "1.2.840.10008.5.1.4.1.1.2"

# PS3.5 §7.1.2: tag, VR, length, value.
UID = bytes.fromhex("0800 1800 5549 0600") + b"1.2.3\0"
SHORT = bytes.fromhex("1000 2000 4c4f 0400") + b"PID "
PIXELS = bytes.fromhex("e07f 1000 4f57 0000 08000000") + b"12345678"
# §7.5: a sequence and an item of undefined length, an element, both delimiters.
SEQUENCE = (
    bytes.fromhex("0800 4011 5351 0000 ffffffff feff 00e0 ffffffff")
    + SHORT
    + bytes.fromhex("feff 0de0 00000000 feff dde0 00000000")
)
# §6.2.2, Note 4: within UN of undefined length VRs are implicit.
UNKNOWN = (
    bytes.fromhex("0900 0110 554e 0000 ffffffff feff 00e0 ffffffff 1000 2000 04000000")
    + b"PID "
    + bytes.fromhex("feff 0de0 00000000 feff dde0 00000000")
)
# Annex A.4: an empty offset table, one fragment.
FRAGMENTS = bytes.fromhex("e07f 1000 4f42 0000 ffffffff feff 00e0 00000000 feff 00e0 04000000") + (
    b"abcd" + bytes.fromhex("feff dde0 00000000")
)
IMPLICIT_SET = (
    bytes.fromhex("0800 1800 06000000") + b"1.2.3\0" + bytes.fromhex("e07f 1000 04000000") + b"abcd"
)
BIG_SET = (
    bytes.fromhex("0008 0018 5549 0006")
    + b"1.2.3\0"
    + bytes.fromhex("7fe0 0010 4f57 0000 00000004")
    + b"abcd"
)


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


WHOLE = {
    "pixels": (EXPLICIT, UID + SHORT + PIXELS),
    "sequence": (EXPLICIT, UID + SEQUENCE + SHORT),
    "unknown": (EXPLICIT, UID + UNKNOWN + SHORT),
    "fragments": (JPEG, UID + FRAGMENTS),
    "implicit": (IMPLICIT, IMPLICIT_SET),
    "big endian": (BIG_ENDIAN, BIG_SET),
    "deflated": (DEFLATED, deflate(UID + SHORT + PIXELS)),
}
BOUNDARIES = {
    "pixels": {len(UID), len(UID + SHORT)},
    "sequence": {len(UID), len(UID + SEQUENCE)},
    "unknown": {len(UID), len(UID + UNKNOWN)},
    "fragments": {len(UID)},
    "implicit": {14},
    "big endian": {1, 14},
    "deflated": set(),
}
"""Where an element ends, so that nothing shows, or what is left looks like a byte of padding."""


def file_of(data_set: bytes, syntax: str) -> tuple[bytes, int]:
    meta = encode_file_meta(
        transfer_syntax_uid=syntax,
        media_storage_sop_class_uid=SOP_CLASS,
        media_storage_sop_instance_uid="1.2.3",
    )
    return meta + data_set, len(meta)


@pytest.mark.parametrize("name", WHOLE)
def test_every_cut_shows_but_between_two_elements(name: str, tmp_path: Path) -> None:
    syntax, data_set = WHOLE[name]
    content, offset = file_of(data_set, syntax)
    path = tmp_path / "file.dcm"
    path.write_bytes(content)
    assert not ends_early(str(path))
    unseen = set()
    for size in range(len(content) - 1, -1, -1):
        os.truncate(path, size)
        if not ends_early(str(path)):
            unseen.add(size - offset)
    assert unseen == BOUNDARIES[name]


@pytest.mark.parametrize(
    ("content", "early"),
    [
        (b"", True),
        (bytes(5000), True),  # a file whose blocks were never written
        (b"no DICOM", False),
        (file_of(UID + b"\0", EXPLICIT)[0], False),  # a byte of padding
        (file_of(UID + bytes(5000), EXPLICIT)[0], True),
        (file_of(UID + struct.pack("<HH2sH", 8, 0x70, b"\1\2", 90), EXPLICIT)[0], False),  # not understood
    ],
)
def test_what_is_odd(content: bytes, early: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.dcm"
    path.write_bytes(content)
    assert ends_early(str(path)) is early


def test_an_inflated_bomb_is_no_cut(tmp_path: Path) -> None:
    path = tmp_path / "file.dcm"
    path.write_bytes(file_of(deflate(bytes(80 << 20))[:-10], DEFLATED)[0])
    assert not ends_early(str(path))


def test_only_recent_files_and_shorter_ones_are_looked_at(tmp_path: Path) -> None:
    content, offset = file_of(UID + SHORT + PIXELS, EXPLICIT)
    now = 10**18
    files = []
    for name, size, age_ns in (
        ("whole", len(content), 0),
        ("torn", len(content) - 3, 1),
        ("torn-long-ago", len(content) - 3, RECENT_NS + 1),
        ("sent-like-that", len(content) - 3, 2),
        ("shorter-than-indexed", len(content) - 3, RECENT_NS + 1),
        ("replaced-by-a-shorter-one", offset + len(UID), RECENT_NS + 1),
        ("cut-between-elements", offset + len(UID), 3),
    ):
        path = f"1/2/{name}"
        (tmp_path / "1/2").mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content[:size])
        files.append((path, size, now - age_ns))
    indexed = {
        hash("1/2/sent-like-that"): len(content) - 3,
        hash("1/2/shorter-than-indexed"): len(content),
        hash("1/2/replaced-by-a-shorter-one"): len(content),
    }
    torn = set_aside(
        str(tmp_path), files, written={"1/2/cut-between-elements": len(content)}, indexed=indexed
    )
    assert sorted(torn) == ["1/2/cut-between-elements", "1/2/shorter-than-indexed", "1/2/torn"]
    assert (tmp_path / ".torn/1/2/torn").read_bytes() == content[:-3]
    assert not (tmp_path / "1/2/torn").exists()
    assert (tmp_path / "1/2/whole").exists()


def test_what_was_set_aside_before_stays(tmp_path: Path) -> None:
    content, _ = file_of(UID + PIXELS, EXPLICIT)
    (tmp_path / "1/2").mkdir(parents=True)
    for size in (5, 6):
        (tmp_path / "1/2/x").write_bytes(content[:size])
        assert set_aside(str(tmp_path), [("1/2/x", size, 1)], written={}, indexed={}) == ["1/2/x"]
    assert sorted(path.name for path in (tmp_path / ".torn/1/2").iterdir()) == ["x", "x.2"]
