"""Sources fill whatever places they are given with the next bytes, or say that there are none left."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.dimse.source import IOV_MAX, BytesSource, FileSource

DATA = bytes(range(256)) * 20


def fill(source, sizes):
    places = [bytearray(size) for size in sizes]
    source.read_into([memoryview(place) for place in places])
    return b"".join(places)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"file meta" + DATA)
    return path


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview"])
def test_bytes_in_order(kind):
    source = BytesSource({"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview}[kind](DATA))
    assert source.size_bytes == len(DATA)
    assert fill(source, [1, 0, 300]) + fill(source, [7]) == DATA[:308]


def test_bytes_that_are_not_counted_in_bytes():
    source = BytesSource(memoryview(DATA).cast("I"))
    assert source.size_bytes == len(DATA)
    assert fill(source, [len(DATA)]) == DATA


def test_bytes_run_out():
    source = BytesSource(b"1234")
    with pytest.raises(EOFError, match="4 bytes"):
        fill(source, [3, 2])


def test_a_file_from_its_offset(file):
    source = FileSource(file, offset=9)
    assert source.size_bytes == len(DATA)
    assert fill(source, [100, 1]) + fill(source, [len(DATA) - 101]) == DATA
    source.close()


def test_what_of_a_file_is_unread(file):
    source = FileSource(file, offset=9)
    descriptor, offset, size = source.unread()
    assert (offset, size) == (9, len(DATA))
    assert os.pread(descriptor, size + 1, offset) == DATA
    fill(source, [10])
    assert source.unread() == (descriptor, 19, len(DATA) - 10)
    source.close()


def test_r29_a_file_beyond_32_bits(tmp_path):
    """A hole of 5 GiB in front of the data, and one more behind."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(5 << 30)
        file.write(DATA)
        file.truncate(10 << 30)
    source = FileSource(path, offset=5 << 30)
    assert source.size_bytes == 5 << 30
    assert fill(source, [len(DATA), 100]) == DATA + bytes(100)
    source.close()


def test_more_places_than_one_system_call_takes(file):
    source = FileSource(file, offset=9)
    sizes = [2] * (IOV_MAX + 10)
    assert fill(source, sizes) == DATA[: sum(sizes)]
    source.close()


def test_reads_that_come_up_short_are_continued(file, monkeypatch):
    preadv = os.preadv

    def short(descriptor, places, offset):
        return preadv(descriptor, [places[0][:3]], offset)

    monkeypatch.setattr(os, "preadv", short)
    source = FileSource(file, offset=9)
    assert fill(source, [2, 10, 1]) == DATA[:13]
    source.close()


@given(st.lists(st.integers(0, 700), max_size=12))
@settings(deadline=None)
def test_any_places_are_filled_in_order(sizes):
    source = BytesSource(DATA)
    if sum(sizes) > len(DATA):
        with pytest.raises(EOFError):
            fill(source, sizes)
    else:
        assert fill(source, sizes) == DATA[: sum(sizes)]


def test_a_file_that_became_shorter(file):
    source = FileSource(file, offset=9)
    file.write_bytes(b"file meta" + DATA[:50])
    assert fill(source, [50]) == DATA[:50]
    with pytest.raises(EOFError, match="at byte 59"):
        fill(source, [1])
    source.close()


def test_a_file_shorter_than_the_offset_has_no_data(file):
    source = FileSource(file, offset=1 << 20)
    assert source.size_bytes == 0
    source.close()


def test_close_is_idempotent_and_closes(file):
    source = FileSource(file)
    source.close()
    source.close()
    with pytest.raises(OSError, match="descriptor"):
        fill(source, [1])
