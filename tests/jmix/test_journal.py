"""The journal on disk: what a crash at any byte leaves of it."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harmony.jmix import journal as journals
from harmony.jmix.journal import EnvelopeJournal, JournalHeader, read, recover

ENVELOPE_ID = "550e8400-e29b-41d4-a716-446655440000"
OTHER_ID = "650e8400-e29b-41d4-a716-446655440000"


def header(envelope_id: str = ENVELOPE_ID, *, created: str = "2024-01-15T10:20:30Z") -> JournalHeader:
    return JournalHeader(
        envelope_id=envelope_id,
        study_instance_uid="1.2.3.4.5.6",
        pipeline="p",
        origin="MODALITY",
        created=created,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "journals"
    path.mkdir()
    return path


Write = Callable[..., Path]


@pytest.fixture
def write(folder: Path, storage: Path, make_object: Callable[..., object]) -> Write:
    """Write a journal of objects 1.1, 1.2 ..., and leave it open as a crash would."""

    def write(count: int, *, envelope_id: str = ENVELOPE_ID, created: str = "2024-01-15T10:20:30Z") -> Path:
        journal = EnvelopeJournal(folder, header(envelope_id, created=created), storage_root=str(storage))
        for number in range(1, count + 1):
            journal.append(make_object(f"1.{number}"))
        journal.sync()
        os.close(journal._fd)
        return journal.path

    return write


def instances(entries: tuple[journals.JournalEntry, ...]) -> list[str]:
    return [entry.sop_instance_uid for entry in entries]


def test_lines_are_as_documented(folder: Path, storage: Path, make_object) -> None:
    journal = EnvelopeJournal(folder, header(), storage_root=str(storage))
    stored = make_object("1.1")
    journal.append(stored)
    assert journal.path == folder / f"{ENVELOPE_ID}.journal"
    assert journal.path.read_text() == (
        f'{{"envelope_id":"{ENVELOPE_ID}","study_instance_uid":"1.2.3.4.5.6","pipeline":"p","origin":"MODALITY",'
        '"created":"2024-01-15T10:20:30Z"}\n'
        '["1.2.3.4.5.6/1.2.3.4.5.6.1/1.1.dcm","1.2.3.4.5.6","1.2.3.4.5.6.1","1.2.840.10008.5.1.4.1.1.2","1.1",'
        f'"1.2.840.10008.1.2.1",{stored.size_bytes},"stored"]\n'
    )
    closed = journal.close()
    assert closed == folder / f"{ENVELOPE_ID}.closed" == journal.close()
    assert os.listdir(folder) == [closed.name]
    journal.sync()  # after close: nothing to do
    found = read(closed, storage_root=str(storage))
    assert found.header == header()
    assert found.entries[0].path == stored.path
    found.remove()
    found.remove()
    assert os.listdir(folder) == []


def test_crash_at_every_byte_leaves_a_prefix(write: Write, folder: Path, storage: Path) -> None:
    whole = write(4).read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == 0x0A]
    for size in range(len(whole) + 1):
        for left in folder.iterdir():
            left.unlink()
        (folder / f"{ENVELOPE_ID}.journal").write_bytes(whole[:size])
        complete = sum(end <= size for end in ends) - 1
        found = recover(folder, storage_root=str(storage))
        if complete < 0:
            assert found == []
            assert os.listdir(folder) == []
            continue
        assert instances(found[0].journal.entries) == ["1.1", "1.2", "1.3", "1.4"][:complete]
        torn = size not in ends
        expected = [] if torn or not complete else [f"1.{complete}"]
        assert instances(found[0].in_doubt) == expected
        assert found[0].interrupted
        assert os.listdir(folder) == [f"{ENVELOPE_ID}.closed"]


def test_object_without_its_file_was_never_acknowledged(write: Write, folder: Path, storage: Path) -> None:
    path = write(3)
    os.unlink(storage / "1.2.3.4.5.6/1.2.3.4.5.6.1/1.3.dcm")
    assert instances(read(path, storage_root=str(storage)).entries) == ["1.1", "1.2"]
    (found,) = recover(folder, storage_root=str(storage))
    assert instances(found.journal.entries) == ["1.1", "1.2"]
    assert found.in_doubt == ()  # 1.2 was answered before 1.3 was written down


def test_object_that_comes_again_after_a_crash_is_no_longer_of_the_old_journal(
    write: Write, folder: Path, storage: Path, make_object
) -> None:
    path = write(3)
    path.write_bytes(path.read_bytes() + b'["torn')
    missing = storage / "1.2.3.4.5.6/1.2.3.4.5.6.1/1.2.dcm"
    missing.unlink()
    (found,) = recover(folder, storage_root=str(storage))
    make_object("1.2")  # its sender has repeated it, before the old journal is built
    assert instances(read(found.journal.path, storage_root=str(storage)).entries) == ["1.1", "1.3"]
    (again,) = recover(folder, storage_root=str(storage))  # or before the next crash
    assert instances(again.journal.entries) == ["1.1", "1.3"]


def test_doubts_are_remembered_before_the_journal_is_closed(
    write: Write, folder: Path, storage: Path
) -> None:
    path = write(2)
    remembered = []

    def remember(recovered: journals.Recovered) -> None:
        assert path.exists()
        remembered.append(instances(recovered.in_doubt))
        if len(remembered) == 1:
            raise OSError("a crash")

    with pytest.raises(OSError, match="a crash"):
        recover(folder, storage_root=str(storage), remember=remember)
    recover(folder, storage_root=str(storage), remember=remember)
    recover(folder, storage_root=str(storage), remember=remember)  # closed by now
    assert remembered == [["1.2"], ["1.2"]]


def test_line_taken_back_needs_no_room(folder: Path, storage: Path, make_object) -> None:
    journal = EnvelopeJournal(folder, header(), storage_root=str(storage))
    first, second = make_object("1.1"), make_object("1.2")
    journal.append(first)
    before = journal.path.read_bytes()
    journal.append(second)
    assert not journal.take_back(first.path)
    assert journal.take_back(second.path)
    assert not journal.take_back(second.path)
    assert journal.path.read_bytes() == before
    journal.append(second)
    assert instances(read(journal.close(), storage_root=str(storage)).entries) == ["1.1", "1.2"]


def test_removed_object_is_not_the_last_one(folder: Path, storage: Path, make_object) -> None:
    journal = EnvelopeJournal(folder, header(), storage_root=str(storage))
    journal.append(make_object("1.1"))
    gone = make_object("1.2")
    journal.append(gone)
    journal.remove(gone.path)
    os.close(journal._fd)
    (found,) = recover(folder, storage_root=str(storage))
    assert instances(found.in_doubt) == ["1.1"]


def test_window_of_operations_is_in_doubt(write: Write, folder: Path, storage: Path) -> None:
    write(5)
    (found,) = recover(folder, storage_root=str(storage), window=2)
    assert instances(found.in_doubt) == ["1.4", "1.5"]


def test_closed_journal_is_found_again_and_nothing_is_in_doubt(
    write: Write, folder: Path, storage: Path
) -> None:
    first = write(1, created="2024-01-15T10:20:31Z")
    write(2, envelope_id=OTHER_ID, created="2024-01-15T10:20:30Z")
    (second,) = (f for f in recover(folder, storage_root=str(storage), skip=[first]))
    assert (second.journal.header.envelope_id, second.interrupted) == (OTHER_ID, True)
    found = recover(folder, storage_root=str(storage))
    assert [f.journal.header.envelope_id for f in found] == [OTHER_ID, ENVELOPE_ID]  # oldest first
    assert [f.interrupted for f in found] == [False, True]
    assert found[0].in_doubt == ()


def test_damaged_line_costs_only_itself(write: Write, storage: Path) -> None:
    path = write(3)
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (
        b"\0" * 80 + b"\n",
        b"{}\n",
        b"[1]\n",
        b'["../../etc/passwd","","","","","",1,"stored"]\n',
        b"\xff\n",
    ):
        path.write_bytes(b"".join([lines[0], lines[1], damage, lines[3]]))
        assert instances(read(path, storage_root=str(storage)).entries) == ["1.1", "1.3"]


def test_last_line_about_a_path_holds(folder: Path, storage: Path, make_object, dispositions) -> None:
    journal = EnvelopeJournal(folder, header(), storage_root=str(storage))
    one, two = make_object("1.1"), make_object("1.2")
    journal.append(one)
    journal.append(two)
    journal.append(replace(one, disposition=dispositions.IDENTICAL))
    journal.remove(two.path)
    entries = read(journal.close(), storage_root=str(storage)).entries
    assert [(entry.sop_instance_uid, entry.disposition) for entry in entries] == [("1.1", "identical")]


def test_root_may_be_moved(write: Write, folder: Path, storage: Path, tmp_path: Path) -> None:
    path = write(2)
    moved = storage.rename(tmp_path / "elsewhere")
    assert instances(read(path, storage_root=str(moved)).entries) == ["1.1", "1.2"]


def test_object_outside_the_storage_root_is_refused(
    folder: Path, storage: Path, make_object, tmp_path: Path
) -> None:
    journal = EnvelopeJournal(folder, header(), storage_root=str(tmp_path / "stor"))
    with pytest.raises(ValueError, match="not below"):
        journal.append(make_object("1.1"))


def test_id_that_is_no_uuid_never_becomes_a_path(folder: Path) -> None:
    for bad in ("../evil", ENVELOPE_ID.upper(), ""):
        with pytest.raises(ValueError, match="UUID"):
            EnvelopeJournal(folder, header(bad), storage_root="/x")
    assert os.listdir(folder) == []


def test_id_is_used_once(folder: Path, storage: Path) -> None:
    EnvelopeJournal(folder, header(), storage_root=str(storage))
    with pytest.raises(FileExistsError):
        EnvelopeJournal(folder, header(), storage_root=str(storage))


def test_full_disk_refuses_the_line_and_keeps_the_journal(folder: Path, storage: Path, make_object) -> None:
    """RLIMIT_FSIZE cuts a write short as a full disk does."""
    journal = EnvelopeJournal(folder, header(), storage_root=str(storage))
    first, second = make_object("1.1"), make_object("1.2")
    journal.append(first)
    size = journal.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="did not fit"):
            journal.append(second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert journal.path.stat().st_size == size
    journal.append(second)
    assert instances(read(journal.close(), storage_root=str(storage)).entries) == ["1.1", "1.2"]
