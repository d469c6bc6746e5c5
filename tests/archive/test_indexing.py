"""The index and the files: read your writes, crashes, rebuilding, what is not ours, answers in an event loop."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harmony.archive.files import FileStore
from harmony.archive.index import ArchiveIndexError, Counts, IndexInUse, Level, UniqueKeys
from harmony.archive.indexing import ArchiveIndex, Progress, rebuild, stream
from harmony.archive.matching import compile_query
from harmony.archive.pending import PendingLog
from harmony.archive.stored import Disposition, StoredObject
from harmony.archive.stored_header import NotOurs, read_stored_header
from harmony.dicom.json_model import encode_data_set
from harmony.dimse.part10 import encode_file_meta
from harmony.dimse.status import Outcome

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
EVERYTHING = compile_query({})


def header(uid: str, *, study: str = "1.1", series: str = "1.1.1", patient_id: str = "P1") -> dict[str, Any]:
    return {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"vr": "UI", "Value": [uid]},
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
        "00100020": {"vr": "LO", "Value": [patient_id]},
        "0020000D": {"vr": "UI", "Value": [study]},
        "0020000E": {"vr": "UI", "Value": [series]},
        "00280010": {"vr": "US", "Value": [2]},
        "00280011": {"vr": "US", "Value": [2]},
    }


def data_set(uid: str, syntax: str = EXPLICIT, **parts: Any) -> bytes:
    return encode_data_set(header(uid, **parts), syntax)


async def store(
    files: FileStore, archive: ArchiveIndex | None, uid: str, *, content: bytes | None = None, **parts: Any
) -> Outcome:
    sink = files.sink(
        sop_class_uid=CT,
        sop_instance_uid=uid,
        transfer_syntax_uid=EXPLICIT,
        journal=archive,
        on_stored=archive.stored if archive is not None else None,
    )
    sink.write(memoryview(data_set(uid, **parts) if content is None else content))
    outcome = sink.finish()
    return outcome if isinstance(outcome, Outcome) else await outcome


@pytest.fixture
def make_files(tmp_path: Path) -> Iterator[Callable[..., FileStore]]:
    made: list[FileStore] = []

    def make(**options: Any) -> FileStore:
        files = FileStore(tmp_path / "archive", minimum_free_bytes=0, **options)
        files.open()
        made.append(files)
        return files

    yield make
    for files in made:
        files.close()


@pytest.fixture
def files(make_files: Callable[..., FileStore]) -> FileStore:
    return make_files()


@pytest.fixture
def make_archive(tmp_path: Path) -> Iterator[Callable[..., ArchiveIndex]]:
    made: list[ArchiveIndex] = []

    def make(**options: Any) -> ArchiveIndex:
        archive = ArchiveIndex(tmp_path / "archive", **options)
        archive.open()
        made.append(archive)
        return archive

    yield make
    for archive in made:
        archive.close()


def found(archive: ArchiveIndex, level: Level = Level.IMAGE) -> list[str]:
    tag = {Level.IMAGE: "00080018", Level.STUDY: "0020000D"}[level]
    return [entity[tag]["Value"][0] for entity in archive.query(level, EVERYTHING)]


def crash(archive: ArchiveIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """End as a killed process does: nothing is indexed, nothing is closed in order, the lock is gone."""
    index, log = archive._index, archive._log
    assert index is not None
    assert log is not None
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_index_batch", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        patch.setattr(log, "close", lambda: None)
        patch.setattr(index, "_set_meta", lambda key, value: None)
        archive.close()


# Read your writes


async def test_nobody_waits_in_the_event_loop_for_what_is_not_indexed_yet(
    files: FileStore, make_archive: Callable[..., ArchiveIndex]
) -> None:
    archive = make_archive()
    assert found(archive) == []  # so that there is a connection
    archive._closing, thread = True, archive._thread
    assert thread is not None
    with archive._changed:
        archive._changed.notify_all()
    thread.join()
    await store(files, archive, "1.1.1.1")
    assert archive.at_once(lambda within_s: archive.query(Level.IMAGE, EVERYTHING, within_s=within_s)) is None
    assert archive.at_once(lambda within_s: archive.instances(UniqueKeys(), within_s=within_s)) is None


async def test_what_was_acknowledged_is_found_by_the_next_query(
    files: FileStore, make_archive: Callable[..., ArchiveIndex]
) -> None:
    archive = make_archive()
    for n in range(20):
        await store(files, archive, f"1.1.1.{n:02}")
        assert found(archive) == [f"1.1.1.{m:02}" for m in range(n + 1)]
    assert archive.counts() == Counts(1, 1, 1, 20)
    assert archive.count(UniqueKeys(patient_ids=["P1"])) == 20


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_many_at_once(
    make_files: Callable[..., FileStore], make_archive: Callable[..., ArchiveIndex], durability: str
) -> None:
    files, archive = make_files(durability=durability), make_archive(durable=durability == "fsync")
    await asyncio.gather(*(store(files, archive, f"1.1.1.{n:03}", study=f"1.{n % 7}") for n in range(300)))
    assert len(found(archive)) == 300
    assert archive.counts() == Counts(1, 7, 7, 300)


async def test_duplicates_as_the_file_store_has_them(
    make_files: Callable[..., FileStore], make_archive: Callable[..., ArchiveIndex], tmp_path: Path
) -> None:
    archive = make_archive()
    first = make_files()
    await store(first, archive, "1.1.1.1", patient_id="A")
    await store(first, archive, "1.1.1.1", patient_id="A")  # identical
    await store(first, archive, "1.1.1.1", patient_id="B")  # kept first
    assert [one["00100020"]["Value"] for one in archive.query(Level.PATIENT, EVERYTHING)] == [["A"]]

    await store(make_files(duplicates="replace"), archive, "1.1.1.1", patient_id="C")
    assert [one["00100020"]["Value"] for one in archive.query(Level.PATIENT, EVERYTHING)] == [["C"]]
    assert archive.counts() == Counts(1, 1, 1, 1)

    await store(make_files(duplicates="keep_both"), archive, "1.1.1.1", patient_id="D")
    assert archive.counts() == Counts(1, 1, 1, 1)
    assert found(archive) == ["1.1.1.1"]
    (tmp_path / "archive/1.1/1.1.1/1.1.1.1.dcm").unlink()
    assert found(archive) == []  # which is noticed, and lets the other step out of the shadow
    assert [one["00100020"]["Value"] for one in archive.query(Level.PATIENT, EVERYTHING)] == [["D"]]
    assert found(archive) == ["1.1.1.1"]


async def test_a_sender_that_repeats_restores_a_row_that_was_lost(
    files: FileStore, make_archive: Callable[..., ArchiveIndex]
) -> None:
    archive = make_archive()
    await store(files, archive, "1.1.1.1")
    archive.remove([f"{files.folder.root}/1.1/1.1.1/1.1.1.1.dcm"])
    assert found(archive) == []
    await store(files, archive, "1.1.1.1")
    assert found(archive) == ["1.1.1.1"]


async def test_uids_that_are_none(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], tmp_path: Path
) -> None:
    archive = make_archive()
    await store(files, archive, "1.1", study="../../etc", series="a b")
    await store(files, archive, "1.2", study="1.2", series="")
    sink = files.sink(
        sop_class_uid=CT,
        sop_instance_uid="x/y",
        transfer_syntax_uid=EXPLICIT,
        journal=archive,
        on_stored=archive.stored,
    )
    sink.write(memoryview(data_set("")))
    sink.finish()
    assert sorted(found(archive)) == ["1.1", "1.2", "x/y"]
    before = [sorted(entity.items()) for entity in archive.query(Level.IMAGE, EVERYTHING)]
    assert all(os.path.isfile(one.path) for one in archive.instances(UniqueKeys()))
    archive.close()
    assert rebuild(tmp_path / "archive").indexed == 3
    archive.open()
    after = [sorted(entity.items()) for entity in archive.query(Level.IMAGE, EVERYTHING)]
    assert sorted(map(str, after)) == sorted(map(str, before))


async def test_an_index_that_cannot_be_written_is_an_error_until_it_can(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive()
    monkeypatch.setattr("harmony.archive.indexing.RETRY_S", 0.01)
    index = archive._index
    assert index is not None
    with monkeypatch.context() as patch:
        patch.setattr(index, "add", lambda instances: (_ for _ in ()).throw(ArchiveIndexError("disk full")))
        await store(files, archive, "1.1.1.1")
        with pytest.raises(ArchiveIndexError):
            archive.counts()
        assert archive.problem() == "objects cannot be indexed"
        assert archive.progress() == (Counts(0, 0, 0, 0), 1)
    while True:
        try:
            assert archive.counts().instances == 1
            break
        except ArchiveIndexError:
            continue  # of the attempt before
    assert archive.problem() is None
    assert archive.progress() == (Counts(1, 1, 1, 1), 0)
    archive.close()
    assert archive.problem() == "the index is closed"
    assert archive.progress() is None


@pytest.mark.parametrize("where", ["read", "add"])
async def test_one_object_that_cannot_be_indexed_does_not_hold_up_the_others(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    archive = make_archive()
    real_add = archive._index.add

    def read(root: str, path: str) -> Any:
        if "1.1.1.2" in path and where == "read":
            raise RecursionError
        return read_stored_header(root, path)

    def add(instances: Any) -> None:
        if where == "add" and any(one.sop_instance_uid == "1.1.1.2" for one in instances):
            raise UnicodeEncodeError("utf-8", "", 0, 1, "surrogates")
        real_add(instances)

    monkeypatch.setattr("harmony.archive.comparison.read_stored_header", read)
    monkeypatch.setattr(archive._index, "add", add)
    for n in range(1, 5):
        await store(files, archive, f"1.1.1.{n}")
    assert found(archive) == ["1.1.1.1", "1.1.1.3", "1.1.1.4"]


async def test_a_file_that_was_removed_again_is_not_indexed(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive()
    hold = threading.Event()
    real = ArchiveIndex._index_batch
    monkeypatch.setattr(
        ArchiveIndex, "_index_batch", lambda self, *arguments: hold.wait(10) and real(self, *arguments)
    )
    await store(files, archive, "1.1.1.1")
    await store(files, archive, "1.1.1.2")
    os.unlink(f"{files.folder.root}/1.1/1.1.1/1.1.1.1.dcm")
    hold.set()
    assert found(archive) == ["1.1.1.2"]


# Crashes


async def test_what_was_not_indexed_when_it_crashed_is_indexed_at_the_next_start(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive()
    await store(files, archive, "1.1.1.1")
    assert found(archive) == ["1.1.1.1"]
    monkeypatch.setattr(archive, "_index_batch", lambda *_: (_ for _ in ()).throw(OSError("too late")))
    for n in range(2, 6):
        await store(files, archive, f"1.1.1.{n}")
    crash(archive, monkeypatch)
    monkeypatch.undo()
    reads: list[str] = []

    def counting(root: str, path: str) -> Any:
        reads.append(path)
        return read_stored_header(root, path)

    monkeypatch.setattr("harmony.archive.comparison.read_stored_header", counting)
    again = make_archive()
    assert found(again) == [f"1.1.1.{n}" for n in range(1, 6)]
    assert len(reads) <= 5  # the log said which; not every file was looked at
    again.close()
    assert not list(Path(again.directory).glob("pending-*"))


async def test_a_crash_between_the_name_and_the_answer_is_found_too(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive()
    sink = files.sink(sop_class_uid=CT, sop_instance_uid="1.5", transfer_syntax_uid=EXPLICIT, journal=archive)
    sink.write(memoryview(data_set("1.5")))
    sink.finish()
    crash(archive, monkeypatch)
    assert found(make_archive()) == ["1.5"]


async def test_a_replacement_that_was_not_indexed(
    make_files: Callable[..., FileStore],
    make_archive: Callable[..., ArchiveIndex],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive, files = make_archive(), make_files(duplicates="replace")
    await store(files, archive, "1.1.1.1", patient_id="A")
    archive.flush()
    monkeypatch.setattr(archive, "_index_batch", lambda *_: (_ for _ in ()).throw(OSError("too late")))
    await store(files, archive, "1.1.1.1", patient_id="B")
    crash(archive, monkeypatch)
    [patient] = make_archive().query(Level.PATIENT, EVERYTHING)
    assert patient["00100020"]["Value"] == ["B"]


async def test_after_a_crash_of_the_machine_files_are_compared(
    files: FileStore,
    make_archive: Callable[..., ArchiveIndex],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    archive = make_archive()
    for n in range(1, 4):
        await store(files, archive, f"1.1.1.{n}")
    archive.flush()
    index = archive._index
    index._set_meta("opened", "another boot")
    crash(archive, monkeypatch)
    await store(files, None, "1.1.1.4")  # as if its row had been lost
    (tmp_path / "archive/1.1/1.1.1/1.1.1.2.dcm").unlink()
    reports: list[tuple[int, int, int]] = []
    again = ArchiveIndex(tmp_path / "archive", verify_files=False)
    again.open(lambda progress: reports.append((progress.files, progress.indexed, progress.removed)))
    try:
        assert found(again) == ["1.1.1.1", "1.1.1.3", "1.1.1.4"]
    finally:
        again.close()
    assert reports == [(3, 1, 1)]


async def test_after_a_crash_of_the_machine_torn_files_are_set_aside(
    files: FileStore,
    make_archive: Callable[..., ArchiveIndex],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    archive = make_archive()
    for n in range(1, 4):
        await store(files, archive, f"1.1.1.{n}")
    archive.flush()
    monkeypatch.setattr(archive, "_index_batch", lambda *_: (_ for _ in ()).throw(OSError("too late")))
    await store(files, archive, "1.1.1.4")
    archive._index._set_meta("opened", "another boot")
    crash(archive, monkeypatch)
    monkeypatch.undo()
    series = tmp_path / "archive/1.1/1.1.1"
    for n in (2, 4):
        path = series / f"1.1.1.{n}.dcm"
        os.truncate(path, path.stat().st_size - 5)
    again = make_archive()
    assert found(again) == ["1.1.1.1", "1.1.1.3"]
    assert again.torn_count == 2
    assert len(list((tmp_path / "archive/.torn/1.1/1.1.1").iterdir())) == 2
    for n in (2, 4):  # their senders repeat them
        assert (await store(files, again, f"1.1.1.{n}")).status == 0x0000
    assert found(again) == [f"1.1.1.{n}" for n in range(1, 5)]


@pytest.mark.parametrize("size", [0, 4096, 30_000])
async def test_a_truncated_index_is_rebuilt_at_the_next_start(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], size: int
) -> None:
    archive = make_archive()
    for n in range(30):
        await store(files, archive, f"1.1.{n}", study=f"1.{n}")
    archive.close()
    database = archive.directory / "index.sqlite"
    assert database.stat().st_size > size
    os.truncate(database, size)
    assert make_archive().counts() == Counts(1, 30, 30, 30)


PROGRAM = """
import asyncio, sys
from pathlib import Path
from harmony.archive.files import FileStore
from harmony.archive.indexing import ArchiveIndex
root, data, uid = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), b"1.9.00000000"
async def main():
    files, archive = FileStore(root, minimum_free_bytes=0), ArchiveIndex(root)
    files.open()
    archive.open()
    for n in range(100_000):
        own = b"1.9.%08d" % n
        sink = files.sink(sop_class_uid="1.2.840.10008.5.1.4.1.1.2", sop_instance_uid=own.decode(),
                          transfer_syntax_uid="1.2.840.10008.1.2.1", journal=archive, on_stored=archive.stored)
        sink.write(memoryview(data.replace(uid, own)))
        sink.finish()
        print(own.decode(), flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("after", [1, 40, 400])
def test_a_killed_process_loses_nothing_it_acknowledged(
    make_archive: Callable[..., ArchiveIndex], tmp_path: Path, after: int
) -> None:
    (tmp_path / "data").write_bytes(data_set("1.9.00000000"))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "archive"), str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    assert all(acknowledged)

    archive = make_archive()
    uids = set(found(archive))
    assert uids >= set(acknowledged)
    assert uids == {path.stem for path in (tmp_path / "archive").glob("*/*/*.dcm")}


# From the files


async def test_rebuild_makes_the_same_index(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], tmp_path: Path
) -> None:
    archive = make_archive()
    for n in range(12):
        await store(files, archive, f"1.{n}", study=f"1.{n % 3}", series=f"1.{n % 4}", patient_id=f"P{n % 2}")
    before = {level: sorted(map(str, archive.query(level, EVERYTHING))) for level in Level}
    with pytest.raises(IndexInUse):
        rebuild(tmp_path / "archive")
    archive.close()

    reports: list[int] = []
    progress = rebuild(tmp_path / "archive", report=lambda progress: reports.append(progress.files))

    assert (progress.files, progress.indexed, progress.removed, progress.skipped) == (12, 12, 0, 0)
    assert reports == [12]
    archive = make_archive()
    assert {level: sorted(map(str, archive.query(level, EVERYTHING))) for level in Level} == before


async def test_files_that_are_not_ours_are_reported_and_skipped(files: FileStore, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    await store(files, None, "1.1.1.1")
    good = root / "1.1/1.1.1/1.1.1.1.dcm"
    (root / "1.1/1.1.1/notes.txt").write_text("hello")
    (root / "1.1/1.1.1/text.dcm").write_text("not DICOM")
    (root / "1.1/1.1.1/empty.dcm").touch()
    (root / "1.1/1.1.1/9.9.dcm").write_bytes(good.read_bytes())
    (root / "1.1/1.1.1/link.dcm").symlink_to(good)
    (root / "1.1/1.1.1/folder.dcm").mkdir()
    (root / "1.1/loose.dcm").write_bytes(good.read_bytes())
    (root / "readme").write_text("hello")
    (root / "8.8/8.8.8").mkdir(parents=True)
    shutil.copy(good, root / "8.8/8.8.8/1.1.1.1.dcm")
    os.mkfifo(root / "1.1/1.1.1/pipe.dcm")

    progress = rebuild(root)

    assert progress.indexed == 1
    assert sorted(path for path, _ in progress.reported) == [
        "1.1/1.1.1/9.9.dcm",
        "1.1/1.1.1/empty.dcm",
        "1.1/1.1.1/folder.dcm",
        "1.1/1.1.1/link.dcm",
        "1.1/1.1.1/notes.txt",
        "1.1/1.1.1/pipe.dcm",
        "1.1/1.1.1/text.dcm",
        "1.1/loose.dcm",
        "8.8/8.8.8/1.1.1.1.dcm",
        "readme",
    ]
    assert progress.skipped == 10


def test_only_so_many_are_reported_by_name() -> None:
    progress = Progress()
    for n in range(3000):
        progress.skip(f"{n}", "why")
    assert (progress.skipped, len(progress.reported)) == (3000, 1000)


# Headers

PIXELS = {
    EXPLICIT: b"\xe0\x7f\x10\x00OW\x00\x00\x08\x00\x00\x00" + b"\x01" * 8,
    IMPLICIT: b"\xe0\x7f\x10\x00\x08\x00\x00\x00" + b"\x01" * 8,
    BIG_ENDIAN: b"\x7f\xe0\x00\x10OW\x00\x00\x00\x00\x00\x08" + b"\x01" * 8,
    JPEG: b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
    b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00\xff\xd8\xff\xd9\xfe\xff\xdd\xe0\x00\x00\x00\x00",
}


def write(tmp_path: Path, content: bytes, syntax: str) -> str:
    path = tmp_path / "1.1/1.1.1/1.1.1.1.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = encode_file_meta(
        transfer_syntax_uid=syntax, media_storage_sop_class_uid=CT, media_storage_sop_instance_uid="1.1.1.1"
    )
    path.write_bytes(meta + content)
    return "1.1/1.1.1/1.1.1.1.dcm"


@pytest.mark.parametrize("syntax", PIXELS)
def test_header_and_offsets_of_each_encoding(tmp_path: Path, syntax: str) -> None:
    head = data_set("1.1.1.1", syntax)
    path = write(tmp_path, head + PIXELS[syntax], syntax)

    read = read_stored_header(str(tmp_path), path)

    assert read.header == header("1.1.1.1")
    content = (tmp_path / path).read_bytes()
    assert content[read.data_set_offset :].startswith(head)
    assert read.pixel_data_offset is not None
    assert content[read.pixel_data_offset :] == PIXELS[syntax]
    assert (read.transfer_syntax_uid, read.sop_class_uid, read.size_bytes) == (syntax, CT, len(content))
    assert read.received_ns == (tmp_path / path).stat().st_mtime_ns


def test_header_of_a_deflated_object(tmp_path: Path) -> None:
    path = write(tmp_path, data_set("1.1.1.1", DEFLATED), DEFLATED)
    read = read_stored_header(str(tmp_path), path)
    assert (read.header, read.pixel_data_offset) == (header("1.1.1.1"), None)


def test_header_longer_than_the_first_read(tmp_path: Path) -> None:
    """The tag of the pixel data in a value is not where the header ends."""
    many = b"\x29\x00\x10\x10OB\x00\x00" + (200_000).to_bytes(4, "little") + PIXELS[EXPLICIT] * 10_000
    head = data_set("1.1.1.1") + many + b"\x88\x00\x40\x01UI\x06\x001.2.3\x00"
    path = write(tmp_path, head + PIXELS[EXPLICIT], EXPLICIT)
    read = read_stored_header(str(tmp_path), path)
    assert read.header["00880140"] == {"vr": "UI", "Value": ["1.2.3"]}
    assert read.pixel_data_offset == read.size_bytes - len(PIXELS[EXPLICIT])


def test_bulk_data_are_in_the_header_or_their_paths_are(tmp_path: Path) -> None:
    """Private elements of one, none and 2000 bytes (OB), of an item, and a sequence of more than 64 KiB."""

    def long(tag: bytes, vr: bytes, value: bytes) -> bytes:
        return tag + vr + b"\0\0" + len(value).to_bytes(4, "little") + value

    def item(value: bytes) -> bytes:
        return b"\xfe\xff\x00\xe0" + len(value).to_bytes(4, "little") + value

    private = (
        long(b"\x29\x00\x10\x10", b"OB", b"\1\2")
        + long(b"\x29\x00\x11\x10", b"OB", b"")
        + long(b"\x29\x00\x12\x10", b"OB", bytes(2000))
        + long(b"\x29\x00\x13\x10", b"SQ", item(b"") + item(long(b"\x29\x00\x12\x10", b"UN", bytes(2000))))
        + long(b"\x29\x00\x14\x10", b"SQ", item(b"") * 8193)
        + long(b"\x29\x00\x15\x10", b"SQ", b"")
    )
    path = write(tmp_path, data_set("1.1.1.1") + private + PIXELS[EXPLICIT], EXPLICIT)
    assert read_stored_header(str(tmp_path), path).header == header("1.1.1.1") | {
        "00291010": {"vr": "OB", "InlineBinary": "AQI="},
        "00291011": {"vr": "OB"},
        "00291012": {"vr": "OB", "BulkDataURI": "00291012"},
        "00291013": {
            "vr": "SQ",
            "Value": [{}, {"00291012": {"vr": "UN", "BulkDataURI": "00291013/2/00291012"}}],
        },
        "00291014": {"vr": "SQ", "BulkDataURI": "00291014"},
        "00291015": {"vr": "SQ"},
    }


def test_an_icon_is_not_the_pixel_data(tmp_path: Path) -> None:
    item = PIXELS[JPEG]
    icon = (
        b"\x88\x00\x00\x02SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        + item
        + b"\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    )
    path = write(tmp_path, data_set("1.1.1.1") + icon + PIXELS[JPEG], JPEG)
    read = read_stored_header(str(tmp_path), path)
    assert read.pixel_data_offset == read.size_bytes - len(PIXELS[JPEG])
    assert read.header["00880200"]["vr"] == "SQ"


@pytest.mark.parametrize("size", [0, 1, 100, 131, 200, 300, 340])
def test_a_file_cut_short_is_not_ours(tmp_path: Path, size: int) -> None:
    path = write(tmp_path, data_set("1.1.1.1"), EXPLICIT)
    os.truncate(tmp_path / path, size)
    with pytest.raises(NotOurs):
        read_stored_header(str(tmp_path), path)


# The log


def test_log_keeps_what_was_not_settled(tmp_path: Path) -> None:
    log = PendingLog(tmp_path)
    for path in ("a", "b", "c", "b"):
        log.append(path, 7)
    mark = log.mark()
    log.append("c", 7)  # again, after the mark: as if replaced meanwhile
    log.settle(["a", "c"], mark)
    log.sync()
    log.rotate(durable=True)
    log.append("d")
    again = PendingLog(tmp_path)
    assert again.found == ["b", "c", "d"]
    assert again.sizes == {"b": 7, "c": 7}


def test_log_passes_over_a_line_that_was_torn(tmp_path: Path) -> None:
    (tmp_path / "pending-0.log").write_bytes(b"a\nb\nhalf of c")
    (tmp_path / "pending-10.log").write_bytes(b"d\n")
    (tmp_path / "pending-9.log").write_bytes(b"b\n\n")
    log = PendingLog(tmp_path)
    assert log.found == ["a", "b", "d"]
    log.rotate(durable=False)
    log.close()
    assert list(tmp_path.iterdir()) == []


async def test_objects_that_were_refused_leave_the_log(
    files: FileStore, make_archive: Callable[..., ArchiveIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harmony.archive.pending.ROTATE_LINES", 3)
    archive = make_archive()
    log = archive._log
    assert log is not None
    log.append("1.1/1.1.1/refused.dcm")
    for n in range(12):
        await store(files, archive, f"1.1.1.{n}")
        archive.flush()
    assert log.pending(log.mark()) == []
    assert len(list(archive.directory.glob("pending-*"))) == 1


# In an event loop


async def test_stream_yields_all_and_no_faster_than_taken() -> None:
    produced: list[int] = []

    def answers() -> Iterator[int]:
        for n in range(1000):
            produced.append(n)
            yield n

    taken = []
    source = stream(answers, chunk=4, chunk_s=60)
    async for n in source:
        taken.append(n)
        assert len(produced) <= n + 4
    assert taken == list(range(1000))


async def test_stream_hands_over_what_there_is_while_more_is_sought() -> None:
    sought, found = threading.Event(), threading.Event()

    def answers() -> Iterator[int]:
        yield 1
        sought.set()
        found.wait(10)
        yield 2

    source = stream(answers, chunk_s=0)
    assert await anext(source) == 1
    assert not sought.is_set()
    found.set()
    assert [n async for n in source] == [2]


async def test_stream_closes_what_it_reads_from() -> None:
    closed: list[bool] = []

    def answers() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    source = stream(answers, chunk=10)
    assert await anext(source) == 0
    await source.aclose()
    assert closed == [True]


async def test_stream_survives_cancelling_while_a_thread_reads() -> None:
    entered, release, closed = threading.Event(), threading.Event(), threading.Event()

    def answers() -> Iterator[int]:
        try:
            entered.set()
            release.wait(10)
            yield 1
        finally:
            closed.set()

    async def read() -> None:
        async for _ in stream(answers):
            pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(closed.wait, 10)


async def test_stream_passes_errors_on(make_archive: Callable[..., ArchiveIndex]) -> None:
    archive = make_archive()
    archive.close()
    with pytest.raises(ArchiveIndexError):
        async for _ in stream(lambda: archive.query(Level.STUDY, EVERYTHING)):
            pass


def test_dispositions_that_change_nothing_are_not_written_down(
    make_archive: Callable[..., ArchiveIndex],
) -> None:
    archive = make_archive()
    log = archive._log
    assert log is not None
    for disposition in (Disposition.IDENTICAL, Disposition.KEPT_FIRST):
        archive.append(StoredObject(f"{archive.root}/a/b/c.dcm", "a", "b", CT, "c", EXPLICIT, 1, disposition))
    assert log.mark() == 0
