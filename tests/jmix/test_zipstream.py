"""The ZIP writer: bytes typed from APPNOTE, and what three other readers make of its archives."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.jmix.limits import Limits
from harmony.jmix.zipread import ZipReader
from harmony.jmix.zipstream import (
    CHUNK_BYTES,
    Compression,
    ZipFormatError,
    ZipStream,
    _end_records,
)
from harmony.jmix.zipwriter import ZipFileWriter

UNZIP = shutil.which("unzip")
ZIP = shutil.which("zip")


def collect(stream: ZipStream, members: list[tuple[str, bytes]]) -> bytes:
    out = b"".join(b"".join(bytes(part) for part in stream.add(name, data)) for name, data in members)
    return out + b"".join(stream.finish())


# One member "a.txt" holding "hi", stored, 2024-01-15 10:20:30. CRC-32("hi") = D8932AAC.
LOCAL_HI = bytes.fromhex(
    "504b0304 1400 0008 0000 8f52 2f58 ac2a93d8 02000000 02000000 0500 0000 612e747874 6869"
)
TINY = LOCAL_HI + bytes.fromhex(
    "504b0102 1403 1400 0008 0000 8f52 2f58 ac2a93d8 02000000 02000000 0500 0000 0000 0000 0000"
    "0000a481 00000000 612e747874"
    "504b0506 0000 0000 0100 0100 33000000 25000000 0000"
)


def test_tiny_archive_is_the_bytes_of_appnote() -> None:
    stream = ZipStream(modified=datetime(2024, 1, 15, 10, 20, 30))
    assert collect(stream, [("a.txt", b"hi")]) == TINY
    assert stream.offset_bytes == len(TINY)
    (member,) = stream.members
    assert (member.size_bytes, member.crc32, member.offset_bytes) == (2, 0xD8932AAC, 0)
    assert member.sha256 == "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"


def test_streamed_member_of_known_size_has_a_descriptor() -> None:
    stream = ZipStream(modified=datetime(2024, 1, 15, 10, 20, 30))
    data = b"".join(bytes(part) for part in stream.stream("a.txt", [b"h", b"i"], size_bytes=2))
    assert data == bytes.fromhex(
        "504b0304 1400 0808 0000 8f52 2f58 00000000 00000000 00000000 0500 0000 612e747874 6869"
        "504b0708 ac2a93d8 02000000 02000000"
    )


def test_streamed_member_of_unknown_size_reserves_zip64() -> None:
    stream = ZipStream(modified=datetime(2024, 1, 15, 10, 20, 30))
    data = b"".join(bytes(part) for part in stream.stream("a.txt", [b"hi"]))
    assert data == bytes.fromhex(
        "504b0304 2d00 0808 0000 8f52 2f58 00000000 ffffffff ffffffff 0500 1400 612e747874"
        "0100 1000 0000000000000000 0000000000000000 6869"
        "504b0708 ac2a93d8 0200000000000000 0200000000000000"
    )


def test_member_that_is_named_last_has_a_growth_hint() -> None:
    """Room for nine characters, of which five are used, and for a ZIP64 field, which is not needed."""
    stream = ZipStream(modified=datetime(2024, 1, 15, 10, 20, 30), patchable=True)
    room = stream.begin(longest_name_bytes=9)
    assert room == bytes(30 + 9 + 20 + 8)
    assert [bytes(stream.write(chunk)) for chunk in (b"h", b"i")] == [b"h", b"i"]
    rest, unnamed = stream.end()
    assert (rest, stream.offset_bytes) == (b"", len(room) + 2)
    offset, header = stream.name(unnamed, "a.txt")
    assert (offset, header) == (
        0,
        bytes.fromhex(
            "504b0304 1400 0008 0000 8f52 2f58 ac2a93d8 02000000 02000000 0500 2000 612e747874"
            "20a2 1c00 28a0 1800 000000000000000000000000000000000000000000000000"
        ),
    )
    directory = b"".join(stream.finish())
    assert directory == bytes.fromhex(
        "504b0102 1403 1400 0008 0000 8f52 2f58 ac2a93d8 02000000 02000000 0500 0000 0000 0000 0000"
        "0000a481 00000000 612e747874"
        "504b0506 0000 0000 0100 0100 33000000 45000000 0000"
    )


def test_directory_is_in_the_order_of_naming(tmp_path: Path) -> None:
    with ZipFileWriter(tmp_path / "out.zip") as writer:
        arrived = []
        for data in (b"second", b"first"):
            writer.begin(longest_name_bytes=10)
            writer.write(data)
            arrived.append(writer.end())
        writer.add("between", b"x")
        assert writer.name(arrived[1], "1").offset_bytes > writer.name(arrived[0], "2").offset_bytes
        writer.add("last", b"y")
        assert writer.finish() == (tmp_path / "out.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "between": b"x",
            "1": b"first",
            "2": b"second",
            "last": b"y",
        }
        assert archive.namelist() == ["between", "1", "2", "last"]


def test_names_that_come_last_are_checked_like_others() -> None:
    stream = ZipStream(patchable=True)
    stream.add("taken", b"")
    stream.begin(longest_name_bytes=6)
    with pytest.raises(ZipFormatError, match="incomplete"):
        stream.add("other", b"")
    with pytest.raises(ZipFormatError, match="incomplete"):
        stream.begin(longest_name_bytes=6)
    _, unnamed = stream.end()
    for name, problem in (("../a", "component"), ("taken", "already"), ("1234567", "longer")):
        with pytest.raises(ZipFormatError, match=problem):
            stream.name(unnamed, name)
    stream.name(unnamed, "123456")
    assert list(stream.finish())


def test_nothing_is_left_without_a_name() -> None:
    stream = ZipStream(patchable=True)
    for method in (lambda: stream.write(b""), stream.end):
        with pytest.raises(ZipFormatError, match="begun"):
            method()
    stream.begin(longest_name_bytes=6)
    with pytest.raises(ZipFormatError, match="incomplete"):
        list(stream.finish())
    stream.end()
    with pytest.raises(ZipFormatError, match="1 members have no name"):
        list(stream.finish())
    with pytest.raises(ZipFormatError, match="patched"):
        ZipStream().begin(longest_name_bytes=6)


def test_empty_archive_is_an_end_record() -> None:
    assert b"".join(ZipStream().finish()) == bytes.fromhex(
        "504b0506 0000 0000 0000 0000 00000000 00000000 0000"
    )


def test_time_is_written_in_utc() -> None:
    east = datetime(2024, 1, 15, 12, 20, 30, tzinfo=timezone(timedelta(hours=2)))
    assert collect(ZipStream(modified=east), [("a.txt", b"hi")]) == TINY
    assert (
        collect(ZipStream(modified=datetime(2024, 1, 15, 10, 20, 30, tzinfo=UTC)), [("a.txt", b"hi")]) == TINY
    )
    with pytest.raises(ZipFormatError, match="1979"):
        ZipStream(modified=datetime(1979, 12, 31))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a//b",
        "a/",
        "./a",
        "a/./b",
        "..",
        "a/../b",
        "a\\b",
        "C:a",
        "c:/a",
        "a\0b",
        "a\nb",
        "x" * 513,
        "x/" * 16 + "x",
    ],
)
def test_unsafe_names_are_refused(name: str) -> None:
    stream = ZipStream()
    with pytest.raises(ZipFormatError, match="member name"):
        stream.add(name, b"")
    assert list(stream.finish())  # the archive is not spoilt by the attempt


def test_duplicate_names_are_refused() -> None:
    stream = ZipStream()
    stream.add("a", b"1")
    with pytest.raises(ZipFormatError, match="already"):
        stream.add("a", b"2")


@pytest.mark.parametrize("chunks", [[b"abc"], [b"ab", b"cde"], []])
def test_wrong_announced_size_spoils_the_archive(chunks: list[bytes]) -> None:
    stream = ZipStream()
    with pytest.raises(ZipFormatError, match="announced"):
        list(stream.stream("a", chunks, size_bytes=4))
    with pytest.raises(ZipFormatError, match="incomplete"):
        list(stream.finish())


def test_leaving_a_member_early_spoils_the_archive() -> None:
    stream = ZipStream()
    next(stream.stream("a", [b"abc"]))
    with pytest.raises(ZipFormatError, match="incomplete"):
        stream.add("b", b"")


def test_nothing_follows_the_directory() -> None:
    stream = ZipStream()
    list(stream.finish())
    with pytest.raises(ZipFormatError, match="finished"):
        stream.add("a", b"")


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def read_member(archive: zipfile.ZipFile, raw: bytes, name: str) -> bytes:
    """zipfile of Python 3.11 has no Zstandard: cut such a member out by what the directory says."""
    info = archive.getinfo(name)
    if info.compress_type != Compression.ZSTANDARD:
        return archive.read(name)
    header = raw[info.header_offset : info.header_offset + 30]
    start = (
        info.header_offset
        + 30
        + int.from_bytes(header[26:28], "little")
        + int.from_bytes(header[28:30], "little")
    )
    body = raw[start : start + info.compress_size]
    data = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    assert zlib.crc32(data) == info.CRC
    return data


@settings(max_examples=100, deadline=None)
@given(
    contents=st.lists(st.binary(max_size=3000), max_size=5),
    cuts=st.lists(st.integers(0, 3000), max_size=5),
    compression=st.sampled_from(list(Compression)),
    announce=st.booleans(),
    hashing=st.booleans(),
)
def test_any_sizes_in_any_chunks_read_back(
    contents: list[bytes], cuts: list[int], compression: Compression, announce: bool, hashing: bool
) -> None:
    stream = ZipStream(compression=compression, hashing=hashing)
    raw = b""
    for number, data in enumerate(contents):
        size = len(data) if announce else None
        buffers = stream.stream(f"folder/ü{number}", split(data, cuts), size_bytes=size)
        raw += b"".join(bytes(buffer) for buffer in buffers)
    raw += b"".join(stream.finish())
    assert stream.offset_bytes == len(raw)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.namelist() == [member.name for member in stream.members]
        for member, data in zip(stream.members, contents, strict=True):
            assert read_member(archive, raw, member.name) == data
            assert member.size_bytes == len(data)
            assert member.crc32 == zlib.crc32(data)
            assert member.sha256 == (hashlib.sha256(data).hexdigest() if hashing else None)
            assert (member.offset_bytes, member.compressed_size_bytes) == (
                archive.getinfo(member.name).header_offset,
                archive.getinfo(member.name).compress_size,
            )


@settings(max_examples=30, deadline=None)
@given(
    data=st.binary(max_size=3000),
    cuts=st.lists(st.integers(0, 3000), max_size=5),
    compression=st.sampled_from(list(Compression)),
)
def test_chunking_does_not_change_the_archive(data: bytes, cuts: list[int], compression: Compression) -> None:
    def archive(chunks: list[bytes]) -> bytes:
        stream = ZipStream(compression=compression)
        body = b"".join(bytes(part) for part in stream.stream("a", chunks, size_bytes=len(data)))
        return body + b"".join(stream.finish())

    if compression is Compression.STORED:
        assert archive(split(data, cuts)) == archive([data])
    else:  # the compressor may place its blocks differently; what comes out again may not differ
        first, second = archive(split(data, cuts)), archive([data])
        for raw in (first, second):
            with zipfile.ZipFile(io.BytesIO(raw)) as reader:
                assert read_member(reader, raw, "a") == data


@settings(max_examples=50, deadline=None)
@given(
    contents=st.lists(st.binary(max_size=3000), max_size=6),
    cuts=st.lists(st.integers(0, 3000), max_size=5),
    names=st.permutations(["a", "folder/b", "folder/\u00fc", "d" * 20, "e", "f"]),
    order=st.permutations(range(6)),
    compression=st.sampled_from(list(Compression)),
    hashing=st.booleans(),
)
def test_any_members_named_last_in_any_order_read_back(
    contents: list[bytes],
    cuts: list[int],
    names: list[str],
    order: list[int],
    compression: Compression,
    hashing: bool,
) -> None:
    order = [number for number in order if number < len(contents)]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.zip")
        with ZipFileWriter(target, compression=compression, hashing=hashing) as writer:
            arrived = []
            for data in contents:
                writer.begin(longest_name_bytes=20)
                for chunk in split(data, cuts):
                    writer.write(chunk)
                arrived.append(writer.end())
            for number in order:
                writer.name(arrived[number], names[number])
            members = writer.stream.members
            assert writer.finish() == target.stat().st_size
        raw = target.read_bytes()
        with zipfile.ZipFile(target) as archive:
            assert archive.namelist() == [names[number] for number in order]
            for number, member in zip(order, members, strict=True):
                data = contents[number]
                assert read_member(archive, raw, names[number]) == data
                assert (member.size_bytes, member.crc32) == (len(data), zlib.crc32(data))
                assert member.sha256 == (hashlib.sha256(data).hexdigest() if hashing else None)
        with open(target, "rb") as file:
            reader = ZipReader(file.fileno(), limits=Limits())
            read = {name: b"".join(chunks) for name, _, chunks in reader.contents()}
        assert read == {names[number]: contents[number] for number in order}


@settings(max_examples=20, deadline=None)
@given(data=st.data(), compression=st.sampled_from(list(Compression)))
def test_files_around_the_chunk_size(data: st.DataObject, compression: Compression) -> None:
    size = data.draw(st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES]))
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "out.zip")
        source.write_bytes(content)
        with ZipFileWriter(target, compression=compression) as writer:
            member = writer.name(writer.add_file(source, longest_name_bytes=10), "f")
            writer.add("last", b"x")
            assert writer.finish() == target.stat().st_size
        raw = target.read_bytes()
        assert member.sha256 == hashlib.sha256(content).hexdigest()
        with zipfile.ZipFile(target) as archive:
            assert read_member(archive, raw, "f") == content
            assert [info.flag_bits & 0x08 for info in archive.infolist()] == [0, 0]
        local_crc = int.from_bytes(raw[14:18], "little")
        assert local_crc == zlib.crc32(content)


def test_identical_calls_make_identical_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(CHUNK_BYTES + 17))
    for name in ("one.zip", "two.zip"):
        with ZipFileWriter(tmp_path / name, modified=datetime(2024, 1, 15, tzinfo=UTC)) as writer:
            writer.name(writer.add_file(source, longest_name_bytes=10), "a")
            writer.add("b", b"b")
            writer.finish(fsync=True)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_file_that_changes_while_it_is_read_spoils_the_archive(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"short")

    def grow(chunk: memoryview) -> bool:
        with open(source, "ab") as file:
            file.write(b"er no more")
        return True

    with (
        ZipFileWriter(tmp_path / "out.zip") as writer,
        pytest.raises(ZipFormatError, match="a file of 5 bytes had 15 when it was read"),
    ):
        writer.add_file(source, longest_name_bytes=10, look=grow)


def test_beginning_of_a_file_is_shown_until_enough_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    shown = []

    def look(chunk: memoryview) -> bool:
        shown.append(bytes(chunk))
        return len(shown) == 2

    with ZipFileWriter(tmp_path / "out.zip") as writer:
        member = writer.add_file(source, longest_name_bytes=10, look=look, buffer=memoryview(bytearray(4)))
    assert shown == [b"0123", b"4567"]
    assert (member.size_bytes, member.sha256) == (10, hashlib.sha256(b"0123456789").hexdigest())


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.zip").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        ZipFileWriter(tmp_path / "out.zip")


@pytest.mark.skipif(UNZIP is None or ZIP is None, reason="unzip or zip is not installed")
@pytest.mark.parametrize("compression", [Compression.STORED, Compression.DEFLATE])
def test_info_zip_accepts_the_archive(tmp_path: Path, compression: Compression) -> None:
    assert UNZIP is not None
    assert ZIP is not None
    source = tmp_path / "source"
    source.write_bytes(bytes(CHUNK_BYTES + 1000))
    with ZipFileWriter(tmp_path / "file.zip", compression=compression) as writer:
        writer.add("manifest.json", b"{}")
        writer.name(writer.add_file(source, longest_name_bytes=96), "payload/series_1/image_001.dcm")
        for name in ("payload/series_1/image_002.dcm", "b"):
            writer.begin(longest_name_bytes=96)
            writer.write(b"one")
            writer.write(b"two")
            writer.name(writer.end(), name)
        writer.finish()
    stream = ZipStream(compression=compression)
    with open(tmp_path / "stream.zip", "wb") as out:
        out.writelines(stream.stream("payload/ä.txt", [b"one", b"two"]))
        out.writelines(stream.stream("known", [b"one", b"two"], size_bytes=6))
        out.writelines(stream.finish())
    for name in ("file.zip", "stream.zip"):
        for command in ([UNZIP, "-t"], [ZIP, "-T"]):
            result = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(UNZIP is None, reason="unzip is not installed")
def test_more_members_than_sixteen_bits_count(tmp_path: Path) -> None:
    assert UNZIP is not None
    path = tmp_path / "many.zip"
    stream = ZipStream(hashing=False)
    with open(path, "wb") as out:
        for number in range(65_536):
            out.writelines(stream.add(f"{number:05}", b""))
        out.writelines(stream.finish())
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == 65_536
    result = subprocess.run([UNZIP, "-tqq", str(path)], capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stdout  # 1: every member is an empty file


def test_count_that_needs_zip64_begins_at_its_mark() -> None:
    """65535 in the old field means "look elsewhere", so it cannot be the count (APPNOTE §4.4.1.4)."""
    assert _end_records(65_534, 10, 20) == bytes.fromhex(
        "504b0506 0000 0000 feff feff 0a000000 14000000 0000"
    )
    assert _end_records(65_535, 10, 20) == bytes.fromhex(
        "504b0606 2c00000000000000 2d03 2d00 00000000 00000000 ffff000000000000 ffff000000000000"
        "0a00000000000000 1400000000000000"
        "504b0607 00000000 1e00000000000000 01000000"
        "504b0506 0000 0000 ffff ffff 0a000000 14000000 0000"
    )


def test_members_beyond_four_gibibytes(tmp_path: Path) -> None:
    """The sizes are real, the bytes are holes: nothing reads or writes 4 GiB here."""
    size = 0x1_0000_0000

    class Hole(bytes):
        def __len__(self) -> int:
            return size - 1

    stream = ZipStream(hashing=False)
    parts = stream.stream("big", [b"x"], size_bytes=size)
    header = bytes(next(parts))
    assert header == bytes.fromhex(
        "504b0304 2d00 0808 0000 0000 2100 00000000 ffffffff ffffffff 0300 1400 626967"
        "0100 1000 0000000000000000 0000000000000000"
    )
    stream = ZipStream(hashing=False)
    *_, descriptor = stream.stream("big", [b"x", Hole()], size_bytes=size)
    assert descriptor == bytes.fromhex("504b0708 8316dc8c 0000000001000000 0000000001000000")
    stream.add("after", b"y")
    directory = b"".join(stream.finish())
    offset = size + len(header) + len(descriptor)
    big, after = directory.split(b"PK\x01\x02")[1:3]
    assert big[16:26] == b"\xff\xff\xff\xff\xff\xff\xff\xff\x03\x00"
    assert big[42:] == b"big" + bytes.fromhex("0100 1000 0000000001000000 0000000001000000")
    assert after[38:42] == b"\xff\xff\xff\xff"
    assert after[42:59] == b"after" + bytes.fromhex("0100 0800") + offset.to_bytes(8, "little")


def test_member_named_last_beyond_four_gibibytes() -> None:
    """As above: the ZIP64 field is in the room that was made for it, and the hint is the smaller for it."""

    class Hole(bytes):
        def __len__(self) -> int:
            return 0x1_0000_0000

    stream = ZipStream(hashing=False, patchable=True)
    stream.begin(longest_name_bytes=4)
    stream.write(Hole())
    _, unnamed = stream.end()
    assert stream.name(unnamed, "big") == (
        0,
        bytes.fromhex(
            "504b0304 2d00 0008 0000 0000 2100 00000000 ffffffff ffffffff 0300 1d00 626967"
            "0100 1000 0000000001000000 0000000001000000 20a2 0500 28a0 0100 00"
        ),
    )
    assert b"".join(stream.finish())[46:69] == b"big" + bytes.fromhex(
        "0100 1000 0000000001000000 0000000001000000"
    )


@pytest.mark.skipif(
    "HARMONY_LARGE_TESTS" not in os.environ, reason="reads 4 GiB; set HARMONY_LARGE_TESTS to run"
)
def test_sparse_file_beyond_four_gibibytes(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with open(source, "wb") as file:
        file.truncate(0x1_0000_0001)
    with ZipFileWriter(tmp_path / "big.zip", hashing=False) as writer:
        writer.name(writer.add_file(source, longest_name_bytes=10), "big")
        writer.begin(longest_name_bytes=10)
        for _ in range(0x1001):
            writer.write(bytes(0x10_0000))
        writer.name(writer.end(), "stream")
        writer.add("after", b"after")
        writer.finish()
    with zipfile.ZipFile(tmp_path / "big.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("after") == b"after"
    assert UNZIP is not None
    assert subprocess.run([UNZIP, "-tqq", str(tmp_path / "big.zip")]).returncode == 0
