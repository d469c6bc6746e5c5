"""File meta information: bytes laid out by hand from PS3.10 §7.1, every file that pydicom ships, and damaged ones."""

import io
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.filereader import _read_file_meta_info, read_preamble

from harmony import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from harmony.dimse import part10
from harmony.dimse.part10 import (
    MAXIMUM_FILE_META_SIZE,
    FileMeta,
    Part10Error,
    encode_file_meta,
    read_file_meta,
    read_file_meta_from,
)

PREAMBLE = b"\x00" * 128 + b"DICM"
VERSION = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
SOP_CLASS = b"\x02\x00\x02\x00UI\x1a\x001.2.840.10008.5.1.4.1.1.2\x00"
SOP_INSTANCE = b"\x02\x00\x03\x00UI\x08\x001.2.3.4\x00"
EXPLICIT = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00"
DEFLATED = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99"
GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
DATA_SET = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"

GROUP = VERSION + SOP_CLASS + SOP_INSTANCE + EXPLICIT  # 14 + 34 + 16 + 28 = 92 bytes
FILE = PREAMBLE + GROUP_LENGTH + b"\x5c\x00\x00\x00" + GROUP + DATA_SET
META = FileMeta("1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", 132 + 12 + 92)


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_group_0002_laid_out_by_hand(buffer):
    assert read_file_meta(buffer(FILE)) == META


def test_ae_titles_and_implementation_are_read():
    more = (
        b"\x02\x00\x12\x00UI\x06\x00"
        b"1.2.9\x00"
        b"\x02\x00\x13\x00SH\x06\x00"
        b"MAKER "
        b"\x02\x00\x16\x00AE\x04\x00"
        b"SRC "
        b"\x02\x00\x17\x00AE\x04\x00"
        b"SEND"
        b"\x02\x00\x18\x00AE\x04\x00"
        b" RCV"
        b"\x02\x00\x26\x00UR\x00\x00\x0c\x00\x00\x00"
        b"dicom:h:104 "
    )
    meta = read_file_meta(PREAMBLE + GROUP + more + DATA_SET)
    assert meta == FileMeta(
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.3.4",
        132 + 92 + len(more),
        source_application_entity_title="SRC",
        sending_application_entity_title="SEND",
        receiving_application_entity_title="RCV",
        implementation_class_uid="1.2.9",
        implementation_version_name="MAKER",
    )


# --- Tolerance ---


def test_without_preamble():
    meta = read_file_meta(FILE[132:])
    assert meta.data_set_offset == META.data_set_offset - 132
    assert meta.transfer_syntax_uid == "1.2.840.10008.1.2.1"


@pytest.mark.parametrize("declared", [0, 1, 0x5A, 0x5E, 0xFFFFFFFF])
def test_group_ends_where_another_begins_whatever_the_group_length_says(declared):
    data = PREAMBLE + GROUP_LENGTH + struct.pack("<L", declared) + GROUP + DATA_SET
    assert read_file_meta(data) == META


def test_group_length_that_is_no_number():
    data = PREAMBLE + b"\x02\x00\x00\x00UL\x02\x00\x5c\x00" + GROUP + DATA_SET
    assert read_file_meta(data).data_set_offset == 132 + 10 + 92


def test_big_endian_data_set_ends_the_group():
    data = PREAMBLE + GROUP + b"\x00\x08\x00\x05CS\x00\x0aISO_IR 100"
    assert read_file_meta(data).data_set_offset == 132 + 92


def test_group_in_implicit_vr():
    group = (
        b"\x02\x00\x00\x00\x04\x00\x00\x00\x2c\x00\x00\x00"
        b"\x02\x00\x03\x00\x08\x00\x00\x00"
        b"1.2.3.4\x00"
        b"\x02\x00\x10\x00\x14\x00\x00\x00"
        b"1.2.840.10008.1.2.1\x00"
    )
    meta = read_file_meta(PREAMBLE + group + DATA_SET)
    assert meta == FileMeta("1.2.840.10008.1.2.1", "", "1.2.3.4", 132 + 12 + 16 + 28)


def test_missing_sop_uids_are_empty():
    assert read_file_meta(PREAMBLE + EXPLICIT + DATA_SET) == FileMeta("1.2.840.10008.1.2.1", "", "", 160)


def test_deflated_data_set_that_looks_like_group_0002_is_left_to_the_group_length():
    compressed = b"\x02\x00" + b"\xaa" * 30
    data = PREAMBLE + GROUP_LENGTH + b"\x1e\x00\x00\x00" + DEFLATED + compressed
    assert read_file_meta(data).data_set_offset == 132 + 12 + 30


def test_file_that_ends_with_its_group():
    assert read_file_meta(FILE[: META.data_set_offset]) == META


def test_long_private_information_is_skipped(tmp_path):
    private = b"\x02\x00\x02\x01OB\x00\x00" + struct.pack("<L", 100_000) + bytes(100_000)
    data = PREAMBLE + GROUP + private + DATA_SET
    assert read_file_meta(data).data_set_offset == 132 + 92 + 100_012
    path = tmp_path / "long.dcm"
    path.write_bytes(data)
    assert read_file_meta_from(path) == read_file_meta(data)


@given(st.integers(3990, 4110))
@settings(max_examples=40, deadline=None)
def test_group_that_ends_around_the_first_read(tmp_path_factory, end):
    # 132 + 92 bytes in front, 12 for the header of the private information.
    private = b"\x02\x00\x02\x01OB\x00\x00" + struct.pack("<L", end - 236) + bytes(end - 236)
    path = tmp_path_factory.mktemp("files") / "x.dcm"
    path.write_bytes(PREAMBLE + GROUP + private + SOP_INSTANCE + DATA_SET)
    assert read_file_meta_from(path).data_set_offset == end + 16
    path.write_bytes(PREAMBLE + GROUP + private)
    assert read_file_meta_from(path).data_set_offset == end


# --- Refused ---


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no group 0002 at the start, nor DICM at byte 128"),
        (PREAMBLE, "no group 0002 at byte 132"),
        (PREAMBLE[:131], "no group 0002 at the start"),
        (PREAMBLE + DATA_SET, "no group 0002 at byte 132"),
        (DATA_SET, "no group 0002 at the start"),
        (b"<html>" * 100, "no group 0002 at the start"),
        (PREAMBLE + VERSION + SOP_CLASS + DATA_SET, r"without Transfer Syntax UID \(0002,0010\)"),
        (PREAMBLE + b"\x02\x00\x10\x00UI\x00\x00" + DATA_SET, "without Transfer Syntax UID"),
        (FILE[: META.data_set_offset - 1], r"\(0002,0010\) at byte 208: length 20 exceeds remaining 19"),
        (PREAMBLE + b"\x02\x00", "element at byte 132: 2 bytes left, a header has 8"),
        (PREAMBLE + b"\x02\x00\x01\x00OB\x00\x00\x02", "element at byte 132: 9 bytes left, a header has 12"),
        (PREAMBLE + b"\x02\x00\x01\x00OB\x00\x00\xff\xff\xff\xff", "past 1048576 bytes"),
        (PREAMBLE + EXPLICIT * (MAXIMUM_FILE_META_SIZE // 28), "past 1048576 bytes"),
    ],
)
def test_what_is_wrong_is_named(data, message, tmp_path):
    with pytest.raises(Part10Error, match=message):
        read_file_meta(data)
    path = tmp_path / "wrong"
    path.write_bytes(data)
    with pytest.raises(Part10Error, match=message):
        read_file_meta_from(path)


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_file_meta_from(tmp_path / "none.dcm")


def meta_or_none(data: bytes) -> FileMeta | None:
    try:
        return read_file_meta(data)
    except Part10Error:
        return None


@given(st.binary(max_size=200), st.sampled_from([b"", PREAMBLE, PREAMBLE + b"\x02\x00", PREAMBLE + EXPLICIT]))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_give_file_meta_or_a_part10_error(data, start):
    meta = meta_or_none(start + data)
    assert meta is None or (meta.transfer_syntax_uid and meta.data_set_offset <= len(start + data))


@given(st.integers(0, len(FILE)))
@settings(deadline=None)
def test_cut_anywhere_the_offset_is_right_or_it_is_refused(end):
    # Cut between two elements the rest is a shorter group; only the last one makes it whole here.
    meta = meta_or_none(FILE[:end])
    assert meta == (META if end >= META.data_set_offset else None)


def test_files_of_a_series_differ_in_one_uid():
    other = FILE.replace(b"\x08\x001.2.3.4\x00", b"\x08\x001.2.3.56")
    longer = FILE.replace(b"\x08\x001.2.3.4\x00", b"\x0a\x001.2.3.567\x00").replace(
        GROUP_LENGTH + b"\x5c", GROUP_LENGTH + b"\x5e"
    )
    for _ in range(2):
        assert read_file_meta(FILE) == META
        assert read_file_meta(other) == replace(META, media_storage_sop_instance_uid="1.2.3.56")
        meta = replace(META, media_storage_sop_instance_uid="1.2.3.567", data_set_offset=238)
        assert read_file_meta(memoryview(longer)) == meta


def test_a_group_that_goes_on_where_that_of_the_file_before_ended():
    read_file_meta(FILE)
    more = b"\x02\x00\x16\x00AE\x04\x00SRC "
    meta = read_file_meta(FILE[: META.data_set_offset] + more + DATA_SET)
    assert meta == replace(META, source_application_entity_title="SRC", data_set_offset=248)


@given(
    st.lists(st.tuples(st.integers(128, len(FILE) - 1), st.integers(0, 255)), max_size=3),
    st.integers(140, len(FILE)),
)
@settings(max_examples=300, deadline=None)
def test_whatever_was_read_before_a_file_means_the_same(changes, end):
    changed = bytearray(FILE)
    for position, byte in changes:
        changed[position] = byte
    part10._layouts.clear()
    expected = meta_or_none(changed[:end])
    for before in (FILE, changed, FILE.replace(b"1.2.3.4\0", b"1.2.3.5\0")):
        meta_or_none(before)
    assert meta_or_none(changed[:end]) == expected


# --- Writing ---


def test_file_meta_is_byte_for_byte_that_of_the_standard():
    encoded = encode_file_meta(
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        media_storage_sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        media_storage_sop_instance_uid="1.2.3.4",
        sending_application_entity_title="CT1",
        receiving_application_entity_title="HARMONY",
    )
    class_uid = IMPLEMENTATION_CLASS_UID.encode() + b"\x00" * (len(IMPLEMENTATION_CLASS_UID) % 2)
    version = IMPLEMENTATION_VERSION_NAME.encode() + b" " * (len(IMPLEMENTATION_VERSION_NAME) % 2)
    group = (
        GROUP
        + (b"\x02\x00\x12\x00UI" + bytes([len(class_uid), 0]) + class_uid)
        + (b"\x02\x00\x13\x00SH" + bytes([len(version), 0]) + version)
        + b"\x02\x00\x17\x00AE\x04\x00"
        + b"CT1 "
        + b"\x02\x00\x18\x00AE\x08\x00"
        + b"HARMONY "
    )
    assert encoded == PREAMBLE + GROUP_LENGTH + struct.pack("<L", len(group)) + group


uids = st.text("0123456789.", min_size=1, max_size=70)
titles = st.text("ABCXYZ_019", max_size=16)


@given(uids, uids, uids, titles, titles, titles)
@settings(max_examples=100, deadline=None)
def test_what_is_written_reads_back(transfer_syntax, sop_class, instance, source, sending, receiving):
    encoded = encode_file_meta(
        transfer_syntax_uid=transfer_syntax,
        media_storage_sop_class_uid=sop_class,
        media_storage_sop_instance_uid=instance,
        source_application_entity_title=source,
        sending_application_entity_title=sending,
        receiving_application_entity_title=receiving,
    )
    assert len(encoded) % 2 == 0
    assert read_file_meta(encoded + DATA_SET) == FileMeta(
        transfer_syntax,
        sop_class,
        instance,
        len(encoded),
        source_application_entity_title=source,
        sending_application_entity_title=sending,
        receiving_application_entity_title=receiving,
        implementation_class_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version_name=IMPLEMENTATION_VERSION_NAME,
    )


@pytest.mark.parametrize("uid", ["1.2.\N{SNOWMAN}", "1" * 65535, "1" * 70000])
def test_text_that_cannot_be_written_is_refused(uid):
    for name in ("transfer_syntax_uid", "media_storage_sop_class_uid", "media_storage_sop_instance_uid"):
        uids = dict.fromkeys(
            ("transfer_syntax_uid", "media_storage_sop_class_uid", "media_storage_sop_instance_uid"), "1.2"
        )
        with pytest.raises(Part10Error, match=r"\(0002,00(02|03|10)\)"):
            encode_file_meta(**{**uids, name: uid})


def test_pydicom_reads_what_is_written():
    encoded = encode_file_meta(
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        media_storage_sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        media_storage_sop_instance_uid="1.2.3.4",
        source_application_entity_title="SOURCE",
    )
    dataset = pydicom.dcmread(io.BytesIO(encoded + DATA_SET))
    meta = dataset.file_meta
    assert meta.FileMetaInformationGroupLength == len(encoded) - 144
    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert meta.MediaStorageSOPInstanceUID == "1.2.3.4"
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert meta.SourceApplicationEntityTitle == "SOURCE"
    assert "SendingApplicationEntityTitle" not in meta
    assert dataset.SpecificCharacterSet == "ISO_IR 100"


# --- The files pydicom ships ---

TEST_FILES = Path(pydicom.__file__).parent / "data"
SHIPPED = [
    path
    for path in sorted(TEST_FILES.rglob("*"))
    if path.is_file() and path.suffix not in {".py", ".pyc", ".json", ".txt", ".md", ".xml"}
]
NOT_READABLE = {  # no group 0002, or one without a Transfer Syntax UID
    "ExplVR_BigEndNoMeta.dcm",
    "ExplVR_LitEndNoMeta.dcm",
    "README",
    "crayons.icc",
    "meta_missing_tsyntax.dcm",
    "no_meta.dcm",
    "rtplan.dump",
    "rtstruct.dcm",
    "rtstruct.dump",
    "zipMR.gz",
}


def pydicom_meta(path: Path) -> tuple[pydicom.Dataset, int]:
    """What pydicom reads, and where it finds the data set."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_preamble(file, force=True)
        meta = _read_file_meta_info(file)
        return meta, file.tell()


def test_pydicom_ships_files():
    assert len(SHIPPED) > 100


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.name not in NOT_READABLE], ids=lambda p: p.name
)
def test_same_file_meta_as_pydicom(path):
    ours = read_file_meta_from(path)
    theirs, offset = pydicom_meta(path)
    assert ours == FileMeta(
        theirs.get("TransferSyntaxUID", ""),
        theirs.get("MediaStorageSOPClassUID", ""),
        theirs.get("MediaStorageSOPInstanceUID", ""),
        offset,
        theirs.get("SourceApplicationEntityTitle", "") or "",
        theirs.get("SendingApplicationEntityTitle", "") or "",
        theirs.get("ReceivingApplicationEntityTitle", "") or "",
        theirs.get("ImplementationClassUID", ""),
        theirs.get("ImplementationVersionName", "") or "",
    )


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.name in NOT_READABLE], ids=lambda p: p.name
)
def test_shipped_files_without_usable_file_meta_are_refused(path):
    theirs, _ = pydicom_meta(path)
    assert "TransferSyntaxUID" not in theirs
    with pytest.raises(Part10Error, match=r"no group 0002|without Transfer Syntax UID"):
        read_file_meta_from(path)
