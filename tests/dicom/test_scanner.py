"""The header scanner against pydicom, against every split of its input, and against what senders get wrong."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from harmony.dicom.scanner import HeaderScanner

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.50"

SOP_CLASS, SOP_INSTANCE, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
WANTED = frozenset((SOP_CLASS, SOP_INSTANCE, STUDY, SERIES))


def scan(
    data: bytes, syntax: str, *, wanted: frozenset[int] = WANTED, pieces: int = 0, **options: int
) -> HeaderScanner:
    """Scan `data` in pieces of `pieces` bytes (0: at once), each in a buffer that is overwritten afterwards."""
    scanner = HeaderScanner(syntax, wanted, **options)
    step = pieces or max(1, len(data))
    for start in range(0, len(data), step):
        buffer = bytearray(data[start : start + step])
        done = scanner.feed(memoryview(buffer))
        buffer[:] = b"\xff" * len(buffer)
        assert done == scanner.done
        if done:
            break
    scanner.finish()
    return scanner


def result(scanner: HeaderScanner) -> tuple[object, ...]:
    return (
        scanner.values,
        scanner.failed,
        scanner.embedded_file_meta,
        scanner.mismatched_encoding,
        scanner.data_set_offset,
    )


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One Explicit VR Little Endian element with a 16-bit length."""
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def encode(dataset: Dataset, syntax: str) -> bytes:
    file = DicomBytesIO()
    file.is_implicit_VR = syntax == IMPLICIT
    file.is_little_endian = syntax != BIG_ENDIAN
    write_dataset(file, dataset)
    data = file.getvalue()
    if syntax == DEFLATED:
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = compressor.compress(data) + compressor.flush()
    return data


UIDS = (
    element(SOP_CLASS, b"UI", b"1.2.840.10008.5.1.4.1.1.7\0")
    + element(SOP_INSTANCE, b"UI", b"1.2.3.4\0")
    + element(STUDY, b"UI", b"1.2.3\0")
    + element(SERIES, b"UI", b"1.2.3.9\0")
)


def found_all(scanner: HeaderScanner) -> bool:
    return [scanner.text(tag) for tag in sorted(WANTED)] == [
        "1.2.840.10008.5.1.4.1.1.7",
        "1.2.3.4",
        "1.2.3",
        "1.2.3.9",
    ]


# Data sets as pydicom writes them

UID = st.from_regex(r"[1-9]{1,9}(\.[1-9]{1,9}){0,4}", fullmatch=True)
ELEMENTS = {
    "ImageType": st.just(["ORIGINAL", "PRIMARY"]),
    "SOPClassUID": UID,
    "SOPInstanceUID": UID,
    "StudyDate": st.just("20240229"),
    "Manufacturer": st.text("ABC xyz", max_size=20),
    "PatientName": st.text("ABC^", max_size=9),
    "PixelSpacing": st.just(["0.5", "0.25"]),
    "StudyInstanceUID": UID,
    "SeriesInstanceUID": UID,
    "InstanceNumber": st.integers(0, 9999),
    "Rows": st.integers(0, 65535),
    "TextValue": st.text("lorem ipsum", max_size=300),
    "ICCProfile": st.binary(max_size=200).map(lambda data: data + b"\0" * (len(data) % 2)),
}


@st.composite
def datasets(draw: st.DrawFn, depth: int = 3) -> Dataset:
    dataset = Dataset()
    for keyword in draw(st.sets(st.sampled_from(sorted(ELEMENTS)))):
        setattr(dataset, keyword, draw(ELEMENTS[keyword]))
    if depth:
        for keyword in draw(
            st.sets(st.sampled_from(["ReferencedStudySequence", "RequestAttributesSequence"]))
        ):
            items = draw(st.lists(datasets(depth=depth - 1), max_size=2))
            for item in items:
                item.is_undefined_length_sequence_item = draw(st.booleans())
            setattr(dataset, keyword, Sequence(items))
            dataset[keyword].is_undefined_length = draw(st.booleans())
    return dataset


@settings(max_examples=120, deadline=None)
@given(
    dataset=datasets(),
    syntax=st.sampled_from([IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, "1.2.3.4"]),
    data=st.data(),
)
def test_finds_what_pydicom_finds_however_the_bytes_are_split(dataset, syntax, data):
    encoded = encode(dataset, syntax)
    scanner = scan(encoded, syntax)
    for tag in WANTED:
        assert scanner.text(tag) == str(dataset.get(tag).value if tag in dataset else "")
    assert scanner.mismatched_encoding is False
    assert (scanner.failed is None) == bool(len(dataset))
    splits = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    split = HeaderScanner(syntax, WANTED)
    for start, stop in zip([0, *splits], [*splits, len(encoded)], strict=True):
        split.feed(memoryview(encoded[start:stop]))
    split.finish()
    assert result(split) == result(scanner)
    assert result(scan(encoded, syntax, pieces=1)) == result(scanner)


@settings(max_examples=200, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=400),
        st.lists(
            st.sampled_from(
                [
                    b"\x08\x00",
                    b"\x18\x00",
                    b"\xfe\xff",
                    b"\x00\xe0",
                    b"\r\xe0",
                    b"\xdd\xe0",
                    b"\xff\xff\xff\xff",
                    b"SQ\x00\x00",
                    b"UN\x00\x00",
                    b"UI",
                    b"??",
                    b"\x00\x00",
                    b"\x04\x00",
                    b"\x02\x00",
                    b"\x00" * 128 + b"DICM",
                ]
            ),
            max_size=60,
        ).map(b"".join),
        st.binary(max_size=300).map(lambda tail: UIDS[:40] + tail),
    ),
    syntax=st.sampled_from([IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, JPEG, "1.2.3", ""]),
    pieces=st.integers(1, 150),
    limit=st.integers(0, 400),
)
def test_arbitrary_bytes_never_raise_and_no_split_changes_the_result(data, syntax, pieces, limit):
    whole = scan(data, syntax, limit_bytes=limit)
    assert whole.done
    assert result(scan(data, syntax, pieces=pieces, limit_bytes=limit)) == result(whole)


def shipped_files() -> list[Path]:
    """The files inside the package; pydicom's own function would also download the rest."""
    folder = Path(pydicom.__file__).parent / "data"
    return sorted(path for path in folder.rglob("*") if path.suffix in (".dcm", "") and path.is_file())


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_pydicom_on_the_files_pydicom_ships():
    compared = 0
    for path in shipped_files():
        raw = path.read_bytes()
        if raw[128:132] != b"DICM":
            continue
        try:
            dataset = pydicom.dcmread(io.BytesIO(raw))
            meta_length = dataset.file_meta.FileMetaInformationGroupLength
            syntax = str(dataset.file_meta.TransferSyntaxUID)
            expected = {tag: str(dataset[tag].value or "") for tag in WANTED if tag in dataset}
        except (
            Exception
        ):  # pydicom's set holds files that are broken on purpose, which it refuses in many ways
            continue
        body = raw[144 + meta_length :]
        if body[:2] == b"\x02\x00":  # a wrong group length: pydicom reads on to the end of group 0002
            continue
        for pieces in (0, 1000):
            scanner = scan(body, syntax, pieces=pieces)
            assert {tag: scanner.text(tag) for tag in scanner.values} == expected, path.name
        compared += 1
    assert compared > 50


# What is skipped


def test_stops_at_the_last_wanted_element():
    scanner = HeaderScanner(EXPLICIT, WANTED)
    assert scanner.feed(memoryview(UIDS)) is False  # shorter than a preamble: it may yet be one
    assert scanner.feed(memoryview(bytes(134 - len(UIDS)))) is True
    assert found_all(scanner)


def test_stops_when_the_place_of_a_missing_element_is_passed():
    data = UIDS[: -len(element(SERIES, b"UI", b"1.2.3.9\0"))] + element(0x00200010, b"SH", b"x" * 150)
    scanner = HeaderScanner(EXPLICIT, WANTED)
    assert scanner.feed(memoryview(data)) is True
    assert scanner.failed is None
    assert set(scanner.values) == WANTED - {SERIES}


def test_elements_out_of_order_are_found_and_the_first_of_duplicates_counts():
    data = element(0x00100010, b"PN", b"A^B ") + UIDS[:34] + element(SOP_CLASS, b"UI", b"9\0") + UIDS[34:]
    assert found_all(scan(data, EXPLICIT))


def test_large_values_are_skipped_without_keeping_them():
    blob = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 8_000_000)
    scanner = HeaderScanner(EXPLICIT, WANTED)
    scanner.feed(memoryview(UIDS[:34] + blob))
    piece = memoryview(bytes(100_000))
    tracemalloc.start()
    try:
        for _ in range(80):
            assert scanner.feed(piece) is False
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
    assert scanner.feed(memoryview(UIDS[34:])) is True
    assert found_all(scanner)


def test_a_wanted_value_that_is_too_long_is_passed_over():
    header = struct.pack("<HH2sHI", SOP_INSTANCE >> 16, SOP_INSTANCE & 0xFFFF, b"UT", 0, 65537 + 1)
    scanner = scan(header + b"1" * 65538 + UIDS, EXPLICIT, pieces=1000)
    assert found_all(scanner)


ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
UNDEFINED = b"\xff\xff\xff\xff"
SEQUENCE = b"\x08\x00\x40\x11SQ\0\0" + UNDEFINED  # (0008,1140)
INNER = element(SERIES, b"UI", b"6.6.6\0")  # inside a sequence: must not be taken


@pytest.mark.parametrize(
    "sequence",
    [
        SEQUENCE + ITEM + UNDEFINED + INNER + ITEM_END + SEQUENCE_END,
        SEQUENCE + ITEM + bytes([len(INNER), 0, 0, 0]) + INNER + SEQUENCE_END,
        SEQUENCE + SEQUENCE_END,
        SEQUENCE
        + ITEM
        + UNDEFINED
        + SEQUENCE
        + ITEM
        + UNDEFINED
        + ITEM_END
        + SEQUENCE_END
        + INNER
        + ITEM_END
        + SEQUENCE_END,
        # PS3.5 §6.2.2: UN of undefined length holds Implicit VR items
        b"\x09\x00\x01\x10UN\0\0"
        + UNDEFINED
        + ITEM
        + UNDEFINED
        + b"\x20\x00\x0e\x00\x02\0\0\0"
        + b"6\0"
        + ITEM_END
        + SEQUENCE_END,
        # the item delimiter is missing
        SEQUENCE + ITEM + UNDEFINED + INNER + SEQUENCE_END,
        SEQUENCE + ITEM + UNDEFINED + INNER + ITEM + UNDEFINED + INNER + SEQUENCE_END,
        # the sequence delimiter is missing
        SEQUENCE + ITEM + UNDEFINED + INNER + ITEM_END,
        # a delimiter too many
        b"\x08\x00\x40\x11SQ\0\0\0\0\0\0" + SEQUENCE_END,
        # encapsulated private data: fragments are items of known length
        b"\x09\x00\x01\x10OB\0\0"
        + UNDEFINED
        + ITEM
        + b"\0\0\0\0"
        + ITEM
        + b"\x04\0\0\0"
        + b"\xff\xd8\xff\xe0"
        + SEQUENCE_END,
        # VRs nobody knows
        b"\x09\x00\x01\x10??\x04\0abcd",
        b"\x09\x00\x01\x10  \x04\0abcd",
        b"\x09\x00\x01\x10ZZ\0\0\x04\0\0\0abcd",
        b"\x09\x00\x01\x10\0\0\x04\0abcd",
        # one element that is implicit among explicit ones
        b"\x09\x00\x01\x10\x04\0\0\0abcd",
        # an odd length, and a group length
        b"\x09\x00\x01\x10LO\x03\0abc",
        b"\x09\x00\x00\x00UL\x04\0\x10\0\0\0",
    ],
)
def test_sequences_and_odd_elements_are_stepped_over(sequence):
    data = UIDS[:34] + sequence + UIDS[34:]
    for pieces in (0, 1, 7):
        scanner = scan(data, EXPLICIT, pieces=pieces)
        assert scanner.failed is None
        assert found_all(scanner)


def test_nesting_has_a_limit():
    level = SEQUENCE + ITEM + UNDEFINED
    closed = ITEM_END + SEQUENCE_END
    assert found_all(scan(UIDS[:34] + level * 32 + closed * 32 + UIDS[34:], EXPLICIT))
    scanner = scan(UIDS[:34] + level * 10_000, EXPLICIT)
    assert scanner.failed == "sequences are nested deeper than 64 levels"
    assert set(scanner.values) == {SOP_CLASS}


def test_the_scan_ends_at_its_limit():
    padding = element(0x00090010, b"LO", b"x" * 200)
    scanner = scan(padding * 10 + UIDS, EXPLICIT, limit_bytes=1000)
    assert scanner.failed == "not all wanted elements are within the first 1000 bytes"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the data set is empty"),
        (b"\x08\x00", "the data set ends inside an element, after 2 bytes"),
        (UIDS[:30], "the data set ends inside an element, after 30 bytes"),
        (UIDS[:34] + SEQUENCE + ITEM, "the data set ends inside an element, after 50 bytes"),
    ],
)
def test_a_data_set_that_ends_early_is_a_failure(data, reason):
    assert scan(data, EXPLICIT).failed == reason
    assert scan(data, EXPLICIT, pieces=1).failed == reason


# What senders get wrong

FILE_META = (
    b"\x02\x00\x00\x00UL\x04\x00\x1a\x00\x00\x00"
    b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
    b"\x02\x00\x10\x00UI\x06\x001.2.8\x00"
)


@pytest.mark.parametrize("beginning", [bytes(128) + b"DICM" + FILE_META, FILE_META, FILE_META[12:]])
@pytest.mark.parametrize("pieces", [0, 1, 50])
def test_file_meta_inside_a_c_store_is_passed_over(beginning, pieces):
    scanner = scan(beginning + UIDS, EXPLICIT, pieces=pieces)
    assert scanner.embedded_file_meta
    assert scanner.data_set_offset == len(beginning)
    assert found_all(scanner)


@pytest.mark.parametrize("data", [bytes(128) + b"DICM" + FILE_META, FILE_META])
def test_file_meta_without_a_data_set_is_a_failure_however_it_comes(data):
    for pieces in (0, 1, 7, len(data) - 1):
        assert scan(data, EXPLICIT, pieces=pieces).failed == "the data set is empty"


def test_dicm_in_the_value_of_an_element_is_no_preamble():
    data = element(0x00080008, b"CS", b"x" * 120 + b"DICM" + b"x" * 20) + UIDS
    scanner = scan(data, EXPLICIT)
    assert not scanner.embedded_file_meta
    assert scanner.data_set_offset == 0
    assert found_all(scanner)


@pytest.mark.parametrize(
    ("declared", "actual"),
    [
        (declared, actual)
        for declared in (IMPLICIT, EXPLICIT, BIG_ENDIAN, JPEG)
        for actual in (IMPLICIT, EXPLICIT, BIG_ENDIAN)
    ]
    + [(DEFLATED, EXPLICIT)],
)
def test_a_data_set_in_another_encoding_is_scanned_as_what_it_is(declared, actual):
    dataset = pydicom.dcmread(io.BytesIO(UIDS), force=True)
    scanner = scan(encode(dataset, actual), declared)
    assert found_all(scanner)
    assert scanner.mismatched_encoding == ((EXPLICIT if declared == JPEG else declared) != actual)


def test_deflate_in_a_zlib_wrapper_is_tolerated():
    assert found_all(scan(zlib.compress(UIDS), DEFLATED))
    assert found_all(scan(zlib.compress(UIDS), DEFLATED, pieces=1))


def test_a_deflate_bomb_ends_at_the_limit():
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    header = element(SOP_CLASS, b"UI", b"1\0") + b"\x09\x00\x01\x10OB\0\0" + struct.pack("<I", 0xF0000000)
    bomb = compressor.compress(header) + b"".join(compressor.compress(bytes(1_000_000)) for _ in range(40))
    scanner = scan(bomb, DEFLATED)
    assert scanner.failed == f"not all wanted elements are within the first {16 * 1024 * 1024} bytes"
    items = ITEM + b"\0\0\0\0"
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = compressor.compress(SEQUENCE + items * 200_000) + compressor.flush()
    assert scan(bomb, DEFLATED, limit_bytes=100_000).failed is not None


def test_damaged_deflate_is_a_failure():
    assert scan(b"\xff" * 200, DEFLATED).failed == "the deflated data set cannot be inflated"


def test_text_is_without_padding_and_values_are_as_sent():
    scanner = scan(element(SOP_CLASS, b"UI", b" 1.2\0\0") + element(SOP_INSTANCE, b"UI", b"\xe9 "), EXPLICIT)
    assert scanner.values[SOP_CLASS] == b" 1.2\0\0"
    assert scanner.text(SOP_CLASS) == "1.2"
    assert scanner.text(SOP_INSTANCE) == "\xe9"
    assert scanner.text(STUDY) == ""
    assert "0008,0016" in repr(scanner)
