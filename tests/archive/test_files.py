"""Objects become files: whole, under a safe name, once, or not at all."""

import asyncio
import errno
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

import harmony.archive.files as files_module
import harmony.archive.folder as folder_module
from harmony.archive import Disposition, FileSink, FileStore, StoredObject
from harmony.dimse.status import DimseError, Outcome, Status

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def data_set(
    *,
    instance: bytes | None = b"1.2.3.9.1",
    study: bytes | None = b"1.2.3",
    series: bytes | None = b"1.2.3.9",
    sop_class: bytes | None = SECONDARY_CAPTURE.encode(),
    comment: bytes = b"",
) -> bytes:
    """A data set in Explicit VR Little Endian; None leaves an element out."""
    elements = [
        (0x00080016, b"UI", sop_class),
        (0x00080018, b"UI", instance),
        (0x00100020, b"LO", b"PID"),
        (0x0020000D, b"UI", study),
        (0x0020000E, b"UI", series),
        (0x00204000, b"LT", comment + b"x" * 200),
    ]
    return b"".join(element(tag, vr, value) for tag, vr, value in elements if value is not None)


def sink(store: FileStore, *, instance: str = "1.2.3.9.1", **options: Any) -> FileSink:
    options = {"calling_ae_title": "MODALITY", "called_ae_title": "HARMONY", **options}
    return store.sink(
        sop_class_uid=SECONDARY_CAPTURE, sop_instance_uid=instance, transfer_syntax_uid=EXPLICIT, **options
    )


def feed(target: FileSink, data: bytes, pieces: int = 0) -> None:
    """Write `data` in pieces from one buffer that is overwritten after each, as the receive buffer is."""
    step = pieces or max(1, len(data))
    for start in range(0, len(data), step):
        buffer = bytearray(data[start : start + step])
        target.write(memoryview(buffer))
        buffer[:] = b"\xff" * len(buffer)


def store_object(store: FileStore, data: bytes, pieces: int = 0, **options: Any) -> Outcome:
    target = sink(store, **options)
    feed(target, data, pieces)
    outcome = target.finish()
    assert isinstance(outcome, Outcome)
    return outcome


def stored_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def stored_data(root: Path, name: str = "1.2.3/1.2.3.9/1.2.3.9.1.dcm") -> bytes:
    """The data set of a stored file: what is behind the group length's reach (PS3.10 §7.1)."""
    content = (root / name).read_bytes()
    assert content[:132] == bytes(128) + b"DICM"
    return content[144 + int.from_bytes(content[140:144], "little") :]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dimse"


@pytest.fixture
def make_store(root: Path) -> Iterator[Callable[..., FileStore]]:
    stores = []

    def make(**options: Any) -> FileStore:
        store = FileStore(root, **options)
        store.open()
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., FileStore]) -> FileStore:
    return make_store()


# Layout and content


@pytest.mark.parametrize("pieces", [0, 1, 7, 133, 200])
def test_the_data_set_is_stored_as_it_came_under_its_uids(store, root, pieces):
    assert store_object(store, data_set(), pieces) == Outcome(Status.SUCCESS)
    assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.1.dcm"]
    assert stored_data(root) == data_set()


def test_the_file_meta_is_made_from_the_association(store, root):
    store_object(store, data_set())
    meta = pydicom.dcmread(root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm").file_meta
    assert meta.MediaStorageSOPClassUID == SECONDARY_CAPTURE
    assert meta.MediaStorageSOPInstanceUID == "1.2.3.9.1"
    assert meta.TransferSyntaxUID == EXPLICIT
    assert meta.SourceApplicationEntityTitle == "MODALITY"
    assert meta.SendingApplicationEntityTitle == "MODALITY"
    assert meta.ReceivingApplicationEntityTitle == "HARMONY"


def test_only_owner_and_group_may_read(store, root):
    store_object(store, data_set())
    assert (root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm").stat().st_mode & 0o007 == 0
    assert (root / "1.2.3").stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("odd", ["..", "/etc/x", "." * 64, "9" * 65, "1.2\0.3", "1..2", "a/../../b"])
def test_odd_uids_stay_inside_the_folder(store, root, odd):
    told: list[StoredObject] = []
    data = data_set(instance=odd.encode(), study=odd.encode(), series=odd.encode())
    assert store_object(store, data, instance=odd, on_stored=told.append).is_success
    (name,) = stored_files(root)
    study, series, file = name.split("/")
    assert study == series == file.removesuffix(".dcm")
    assert study.startswith("x-")
    assert len(study) == 34
    assert told[0].study_instance_uid == odd
    assert stored_data(root, name) == data


def test_empty_uids_of_the_command_are_taken_from_the_data_set(store, root):
    assert store_object(store, data_set(), instance="").is_success
    assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.1.dcm"]


def test_the_instance_uid_of_the_data_set_wins_when_valid(store, root, caplog):
    caplog.set_level("INFO", "harmony.archive")
    assert store_object(store, data_set(instance=b"1.2.3.9.2"), instance="1.2.3.9.1").is_success
    assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.2.dcm"]
    assert caplog.messages == ["the command says 1.2.3.9.1, its data set 1.2.3.9.2"]
    assert store_object(store, data_set(instance=b"..", series=b"1"), instance="1.2.3.9.1").is_success
    assert "1.2.3/1/1.2.3.9.1.dcm" in stored_files(root)


def test_a_data_set_without_study_or_series_goes_to_x_none(store, root):
    assert store_object(store, data_set(study=None, series=b"")).is_success
    assert stored_files(root) == ["x-none/x-none/1.2.3.9.1.dcm"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff" * 500,
        data_set(instance=None, study=None, series=None, sop_class=None),
        b"GET / HTTP/1.1" * 20,
    ],
)
@pytest.mark.parametrize("pieces", [0, 3])
def test_what_holds_no_uids_is_not_understood(store, root, data, pieces):
    assert store_object(store, data, pieces).status == Status.CANNOT_UNDERSTAND
    assert stored_files(root) == []


@pytest.mark.parametrize("pieces", [0, 10])
def test_a_data_set_of_another_sop_class_is_refused(store, root, pieces):
    target = sink(store)
    with pytest.raises(DimseError) as caught:
        feed(target, data_set(sop_class=CT_IMAGE.encode()), pieces)
    assert caught.value.outcome == Outcome(
        Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, f"{CT_IMAGE} is not {SECONDARY_CAPTURE}", (0x00080016,)
    )
    assert stored_files(root) == []


def test_a_short_data_set_of_another_sop_class_is_refused_at_its_end(store, root):
    assert store_object(store, element(0x00080016, b"UI", b"1.2")).status == 0xA900
    assert stored_files(root) == []


@pytest.mark.parametrize("pieces", [0, 1, 140])
def test_file_meta_inside_the_data_set_is_left_out(store, root, pieces):
    meta = b"\x02\x00\x00\x00UL\x04\x00\x0e\x00\x00\x00" + b"\x02\x00\x10\x00UI\x06\x001.2.8\x00"
    assert store_object(store, bytes(128) + b"DICM" + meta + data_set(), pieces).is_success
    assert stored_data(root) == data_set()


def test_a_sink_tells_what_was_stored(store, root):
    told: list[StoredObject] = []
    store_object(store, data_set(), on_stored=told.append)
    path = root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm"
    assert told == [
        StoredObject(
            path=str(path),
            study_instance_uid="1.2.3",
            series_instance_uid="1.2.3.9",
            sop_class_uid=SECONDARY_CAPTURE,
            sop_instance_uid="1.2.3.9.1",
            transfer_syntax_uid=EXPLICIT,
            size_bytes=path.stat().st_size,
            disposition=Disposition.STORED,
        )
    ]


# Duplicates

FIRST, SECOND = data_set(comment=b"first "), data_set(comment=b"second")


@pytest.mark.parametrize("policy", ["keep_first", "keep_both", "replace", "refuse"])
def test_the_same_data_again_are_a_success_whoever_sends_them(make_store, root, policy):
    store = make_store(duplicates=policy)
    told: list[StoredObject] = []
    store_object(store, FIRST)
    before = (root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm").read_bytes()
    outcome = store_object(store, FIRST, calling_ae_title="ANOTHER_MODALITY", on_stored=told.append)
    assert outcome.is_success
    assert told[0].disposition is Disposition.IDENTICAL
    assert told[0].size_bytes == len(before)
    assert (root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm").read_bytes() == before
    assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.1.dcm"]


@pytest.mark.parametrize(
    ("policy", "status", "disposition", "kept"),
    [
        ("keep_first", 0xB000, Disposition.KEPT_FIRST, FIRST),
        ("keep_both", 0x0000, Disposition.KEPT_BOTH, FIRST),
        ("replace", 0x0000, Disposition.REPLACED, SECOND),
        ("refuse", 0x0111, None, FIRST),
    ],
)
@pytest.mark.parametrize("second", [SECOND, SECOND + b"longer"])
def test_different_data_under_the_same_uid(make_store, root, policy, status, disposition, kept, second):
    store = make_store(duplicates=policy)
    told: list[StoredObject] = []
    store_object(store, FIRST)
    assert store_object(store, second, on_stored=told.append).status == status
    assert [stored.disposition for stored in told] == ([disposition] if disposition else [])
    assert stored_data(root) == (second if kept is SECOND else kept)
    if disposition is Disposition.KEPT_BOTH:
        first, beside = sorted(stored_files(root), key=len)
        assert len(beside) == len(first) + 9  # a hyphen and 8 hex digits
        assert stored_data(root, beside) == second
        assert store_object(store, second).is_success
    assert len(stored_files(root)) == (2 if policy == "keep_both" else 1)


def test_keeping_the_first_is_logged_with_nothing_but_the_uid(store, caplog):
    store_object(store, FIRST)
    store_object(store, SECOND)
    assert caplog.messages == ["different data under SOP Instance UID 1.2.3.9.1; the first is kept"]


@pytest.mark.parametrize("policy", ["keep_first", "keep_both", "replace", "refuse"])
async def test_large_duplicates_are_compared_in_a_thread(make_store, root, policy):
    store = make_store(duplicates=policy)
    padding = bytes(files_module.INLINE_COMPARISON_BYTES)
    assert store_object(store, FIRST + padding).is_success
    for second, same in ((FIRST + padding, True), (SECOND + padding, False)):
        target = sink(store)
        feed(target, second, 300_000)
        answer = target.finish()
        assert not isinstance(answer, Outcome)
        target.abort()  # the association ends: the object is complete all the same
        outcome = await answer
        expected = {"keep_first": 0xB000, "refuse": 0x0111}.get(policy, 0)
        assert outcome.status == (0 if same else expected)
    assert len(stored_files(root)) == (2 if policy == "keep_both" else 1)


def test_the_same_instance_on_two_associations_at_once(store, root):
    first, second = sink(store), sink(store)
    for start in range(0, len(FIRST), 50):
        first.write(memoryview(FIRST[start : start + 50]))
        second.write(memoryview(SECOND[start : start + 50]))
    assert second.finish() == Outcome(Status.SUCCESS)
    assert first.finish().status == 0xB000
    assert stored_data(root) == SECOND
    assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.1.dcm"]


class RacingJournal:
    """Another process takes the final name right after the journal line."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.records: list[StoredObject] = []

    def append(self, stored: StoredObject) -> None:
        self.records.append(stored)
        if len(self.records) == 1:
            Path(stored.path).write_bytes(self.data)

    def sync(self) -> None:
        pass


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_a_name_taken_in_the_last_moment_is_looked_at_again(make_store, root, durability):
    store = make_store(durability=durability)
    journal = RacingJournal(b"not even a DICOM file")
    target = sink(store, journal=journal)
    feed(target, FIRST)
    answer = target.finish()
    outcome = answer if isinstance(answer, Outcome) else await answer
    assert outcome.status == 0xB000
    assert [record.disposition for record in journal.records] == [Disposition.STORED, Disposition.KEPT_FIRST]
    assert (root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm").read_bytes() == journal.data
    assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.1.dcm"]


# Adversity: whatever happens, nothing is left behind


def test_abort_leaves_nothing_and_may_be_repeated(store, root):
    for pieces in (0, 50):
        target = sink(store)
        feed(target, data_set()[:300], pieces)
        target.abort()
        target.abort()
        target.write(memoryview(b"late"))
        assert target.finish().status == Status.CANNOT_UNDERSTAND
    sink(store).abort()
    assert stored_files(root) == []


def test_abort_after_finish_keeps_what_was_acknowledged(store, root):
    target = sink(store)
    feed(target, data_set())
    assert target.finish() == Outcome(Status.SUCCESS)
    target.abort()
    assert stored_data(root) == data_set()


@pytest.mark.parametrize(
    "number",
    [
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EMFILE,
        errno.EIO,
        errno.EROFS,
        errno.ENODEV,
        errno.ESTALE,
        errno.EACCES,
    ],
)
@pytest.mark.parametrize("call", ["open", "writev", "write", "close", "link"])
def test_a_disk_that_fails_is_an_answer_and_leaves_nothing(store, root, monkeypatch, call, number):
    # None of these is the object's fault: its sender may try again (PS3.4 Table B.2-1).
    real = getattr(os, call)
    failures = []

    def fail(*arguments, **options):
        if call == "close":
            real(*arguments, **options)
        failures.append(call)
        raise OSError(number, os.strerror(number), "/a/path")

    target = sink(store)
    open_before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(files_module.os, call, fail)
    try:
        feed(target, data_set(), 200)
        outcome = target.finish()
    except DimseError as error:
        outcome = error.outcome
    monkeypatch.undo()
    assert failures
    assert outcome.status == 0xA700
    assert errno.errorcode[number] in outcome.error_comment
    assert "path" not in outcome.error_comment
    assert stored_files(root) == []
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert store_object(store, data_set()).is_success


@pytest.mark.parametrize("duplicates", ["keep_first", "keep_both", "refuse"])
@pytest.mark.parametrize("size", [0, 100, 300, -1])
def test_what_a_power_cut_left_is_replaced_by_the_repetition(make_store, root, duplicates, size):
    store = make_store(duplicates=duplicates)
    store_object(store, data_set())
    path = root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm"
    os.truncate(path, size % path.stat().st_size)
    stored: list[StoredObject] = []
    assert store_object(store, data_set(), on_stored=stored.append) == Outcome(Status.SUCCESS)
    assert stored[0].disposition is Disposition.REPLACED
    assert stored_data(root) == data_set()


def test_a_torn_file_of_another_object_and_a_shorter_object_are_kept(store, root):
    store_object(store, data_set())
    path = root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm"
    os.truncate(path, path.stat().st_size - 1)
    assert store_object(store, data_set(comment=b"other")).status == 0xB000
    path.unlink()
    store_object(store, data_set())
    more = data_set() + element(0xFFFCFFFC, b"OB", b"")
    assert store_object(store, more).status == 0xB000


def test_a_full_disk_is_out_of_resources(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        store = FileStore(folder, minimum_free_bytes=0)
        store.open()
        target = sink(store)
        with pytest.raises(DimseError) as caught:
            feed(target, data_set() + bytes(2_000_000), 500_000)
        assert caught.value.status == Status.OUT_OF_RESOURCES
        assert stored_files(folder) == []
        assert store_object(store, data_set()).is_success
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_file_size_limit_is_out_of_resources(store, root):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        target = sink(store)
        with pytest.raises(DimseError) as caught:
            feed(target, data_set() + bytes(2000), 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.status == Status.OUT_OF_RESOURCES
    assert stored_files(root) == []


def test_short_writes_are_continued(store, root, monkeypatch):
    real_write, real_writev = os.write, os.writev
    monkeypatch.setattr(files_module.os, "writev", lambda fd, parts: real_writev(fd, [bytes(parts[0])[:9]]))
    monkeypatch.setattr(files_module.os, "write", lambda fd, data: real_write(fd, bytes(data[:11])))
    assert store_object(store, data_set(), 150).is_success
    monkeypatch.undo()
    assert stored_data(root) == data_set()


def test_objects_have_a_maximum_size(make_store, root):
    size = len(data_set())
    assert store_object(make_store(maximum_object_bytes=size), data_set(), 100).is_success
    target = sink(make_store(maximum_object_bytes=size - 1))
    with pytest.raises(DimseError) as caught:
        feed(target, data_set(comment=b"!"), 100)
    assert caught.value.status == Status.OUT_OF_RESOURCES
    assert len(stored_files(root)) == 1


def test_some_space_is_left_free(make_store, root):
    store = make_store(minimum_free_bytes=1 << 60)
    with pytest.raises(DimseError) as caught:
        feed(sink(store), data_set())
    assert caught.value.status == Status.OUT_OF_RESOURCES
    assert stored_files(root) == []


def test_problem_says_why_objects_are_refused(make_store, root):
    store = make_store(minimum_free_bytes=0)
    assert store.problem() is None
    free_bytes, size_bytes = store.folder.free_space()
    assert 0 < free_bytes <= size_bytes
    assert make_store(minimum_free_bytes=1 << 60).problem() == f"less than {1 << 60} bytes are free"
    store.close()
    assert store.problem() == "the archive is closed"
    lost = make_store(minimum_free_bytes=0)
    root.rename(root.with_name("elsewhere"))
    assert lost.problem() == "the storage folder cannot be used: No such file or directory"


def test_without_hard_links_files_are_renamed(store, root, monkeypatch):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(folder_module.os, "link", no_links)
    assert store_object(store, FIRST).is_success
    assert store_object(store, SECOND).status == 0xB000
    assert stored_data(root) == FIRST
    assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.1.dcm"]


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_folders_that_were_removed_are_made_again(make_store, root, durability):
    store = make_store(durability=durability)
    for attempt in range(2):
        target = sink(store)
        feed(target, data_set())
        answer = target.finish()
        assert (answer if isinstance(answer, Outcome) else await answer).is_success
        assert stored_data(root) == data_set()
        if not attempt:
            (root / "1.2.3/1.2.3.9/1.2.3.9.1.dcm").unlink()
            (root / "1.2.3/1.2.3.9").rmdir()
            (root / "1.2.3").rmdir()
            (root / ".incoming").rmdir()


def test_what_a_dead_process_left_is_removed_at_open(root):
    incoming = root / ".incoming"
    incoming.mkdir(parents=True)
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    token = folder_module._PROCESS_TOKEN
    left = [
        f"{finished.pid}-0123abcd-7",
        f"{os.getpid()}-0123abcd-7",
    ]  # the second: the same id in an earlier life
    kept = [f"{os.getppid()}-0123abcd-7", f"{os.getpid()}-{token}-999999999", "notes.txt", "12-x-1"]
    for name in left + kept:
        (incoming / name).write_bytes(b"x")
    FileStore(root).open()
    assert sorted(os.listdir(incoming)) == sorted(kept)


def test_a_killed_process_leaves_nothing_visible(root):
    program = (
        "import os, sys; from pathlib import Path; from harmony.archive import FileStore\n"
        "store = FileStore(Path(sys.argv[1])); store.open()\n"
        f"sink = store.sink(sop_class_uid='{SECONDARY_CAPTURE}', sop_instance_uid='1', "
        f"transfer_syntax_uid='{EXPLICIT}')\n"
        "sink.write(memoryview(sys.stdin.buffer.read())); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(root)], input=data_set(), check=False)
    (left,) = stored_files(root)
    assert left.startswith(".incoming/")
    FileStore(root).open()
    assert stored_files(root) == []


def test_a_closed_store_takes_nothing(root):
    store = FileStore(root)
    with pytest.raises(DimseError):
        sink(store)
    store.open()
    target = sink(store)
    store.close()
    with pytest.raises(DimseError):
        sink(store)
    feed(target, data_set())
    assert target.finish() == Outcome(Status.SUCCESS)


# The order of events


class OrderedJournal:
    """Checks at every call that no final name exists yet, and writes down what happened."""

    def __init__(self, events: list[str], *, fail: str = "", error: Exception | None = None) -> None:
        self.events = events
        self.fail = fail
        self.error = error
        self.unsynced: list[StoredObject] = []

    def append(self, stored: StoredObject) -> None:
        assert not os.path.exists(stored.path)
        self.unsynced.append(stored)
        self.events.append(f"journal {os.path.basename(stored.path)}")
        if self.fail == "append":
            raise self.error or OSError(errno.ENOSPC, "No space left on device")

    def sync(self) -> None:
        for stored in self.unsynced:
            assert not os.path.exists(stored.path)
        self.unsynced.clear()
        self.events.append("sync journal")
        if self.fail == "sync":
            raise self.error or OSError(errno.EIO, "Input/output error")


def watch(monkeypatch: pytest.MonkeyPatch, events: list[str]) -> None:
    """Have fsync, link and unlink recorded."""
    real_fsync, real_link = os.fsync, os.link

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        events.append(f"fsync {'data' if '/.incoming/' in path else os.path.basename(path)}")
        real_fsync(fd)

    def link(source: str, target: str) -> None:
        events.append(f"link {os.path.basename(target)}")
        real_link(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)


def test_the_journal_comes_before_the_name(store, root, monkeypatch):
    events: list[str] = []
    watch(monkeypatch, events)
    store_object(
        store, data_set(), journal=OrderedJournal(events), on_stored=lambda stored: events.append("told")
    )
    assert events == ["journal 1.2.3.9.1.dcm", "link 1.2.3.9.1.dcm", "told"]


def start(store: FileStore, number: int, **options: Any) -> asyncio.Future[Outcome]:
    target = sink(store, instance=f"1.2.3.9.{number}", **options)
    feed(target, data_set(instance=f"1.2.3.9.{number}".encode()))
    answer = target.finish()
    assert isinstance(answer, asyncio.Future)
    target.abort()  # as when the association ends now; the object is complete
    return answer


async def test_fsync_in_the_promised_order(make_store, root, monkeypatch):
    store = make_store(durability="fsync")
    events: list[str] = []
    watch(monkeypatch, events)
    answer = start(
        store,
        1,
        journal=OrderedJournal(events),
        on_stored=lambda stored: events.append(f"told {stored.disposition.name}"),
    )
    answer.add_done_callback(lambda _: events.append("answer"))
    assert (await answer).is_success
    await asyncio.sleep(0)
    assert events[:5] == [
        "fsync data",
        "journal 1.2.3.9.1.dcm",
        "sync journal",
        "link 1.2.3.9.1.dcm",
        "fsync 1.2.3.9",
    ]
    assert sorted(events[5:7]) == ["fsync 1.2.3", "fsync dimse"]  # the study and the series are new
    assert events[7:] == ["told STORED", "answer"]


async def test_fsync_groups_what_arrives_together(make_store, root, monkeypatch):
    store = make_store(durability="fsync")
    assert (await start(store, 0)).is_success
    events: list[str] = []
    watch(monkeypatch, events)
    one, other = OrderedJournal(events), OrderedJournal(events)
    answers = [start(store, number, journal=one if number % 2 else other) for number in range(1, 6)]
    assert all(outcome.is_success for outcome in await asyncio.gather(*answers))
    kinds = [
        event.split()[0] + " " + event.split()[1] if event.startswith("fsync") else event.split()[0]
        for event in events
    ]
    assert kinds == ["fsync data"] * 5 + ["journal"] * 5 + ["sync"] * 2 + ["link"] * 5 + ["fsync 1.2.3.9"]
    assert len(stored_files(root)) == 6


async def test_fsync_of_the_same_instance_at_once_stores_it_once(make_store, root):
    store = make_store(durability="fsync")
    events: list[StoredObject] = []
    answers = [start(store, 1, on_stored=events.append) for _ in range(3)]
    different = sink(store)
    feed(different, SECOND)
    answers.append(different.finish())
    assert [outcome.status for outcome in await asyncio.gather(*answers)] == [0, 0, 0, 0xB000]
    assert [stored.disposition.name for stored in events] == ["STORED", "IDENTICAL", "IDENTICAL"]
    assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.1.dcm"]


@pytest.mark.parametrize("fail", ["append", "sync"])
@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_a_journal_that_fails_refuses_its_objects_and_no_others(make_store, root, fail, durability):
    store = make_store(durability=durability)
    failing, working = OrderedJournal([], fail=fail), OrderedJournal([])
    answers = []
    for number, journal in ((1, failing), (2, working)):
        target = sink(store, instance=f"1.2.3.9.{number}", journal=journal)
        feed(target, data_set(instance=f"1.2.3.9.{number}".encode()))
        answers.append(target.finish())
    outcomes = [answer if isinstance(answer, Outcome) else await answer for answer in answers]
    if durability == "os" and fail == "sync":
        assert [outcome.status for outcome in outcomes] == [0, 0]  # never called
    else:
        assert [outcome.status for outcome in outcomes] == [0xA700, 0]
        assert stored_files(root) == ["1.2.3/1.2.3.9/1.2.3.9.2.dcm"]


async def test_a_journal_with_a_defect_refuses_and_is_logged_with_its_traceback(make_store, root, caplog):
    store = make_store(durability="fsync")
    outcome = await start(store, 1, journal=OrderedJournal([], fail="append", error=KeyError("defect")))
    assert outcome.status == 0xC000
    assert stored_files(root) == []
    assert caplog.records[-1].exc_info is not None
    assert (await start(store, 2)).is_success


@pytest.mark.parametrize("what", ["data", "1.2.3.9", "dimse"])
async def test_an_fsync_that_fails_is_no_success(make_store, root, monkeypatch, what):
    store = make_store(durability="fsync")
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.basename(path) == what or (what == "data" and "/.incoming/" in path):
            raise OSError(errno.EIO, "Input/output error")
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert (await start(store, 1)).status == 0xA700
    assert not list((root / ".incoming").iterdir())
    monkeypatch.undo()
    events: list[str] = []
    watch(monkeypatch, events)
    assert (await start(store, 1)).is_success  # the sender's second try
    assert "fsync 1.2.3.9" in events
    assert ("fsync dimse" in events) == (what == "dimse")  # synced in the first try, or else due again


async def test_a_waiter_that_is_cancelled_changes_nothing(make_store, root):
    store = make_store(durability="fsync")
    answers = [start(store, number) for number in range(3)]
    answers[1].cancel()
    assert (await answers[0]).is_success
    assert (await answers[2]).is_success
    assert len(stored_files(root)) == 3


async def test_closing_finishes_what_was_submitted(make_store, root):
    store = make_store(durability="fsync")
    answers = [start(store, number) for number in range(3)]
    store.close()
    assert all(outcome.is_success for outcome in await asyncio.gather(*answers))
    assert len(stored_files(root)) == 3
