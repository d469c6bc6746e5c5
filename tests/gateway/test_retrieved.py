"""harmony.gateway.retrieved: folders that are whole or not there, and that go away again."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harmony.archive.indexing import ArchiveIndex
from harmony.dimse.part10 import read_file_meta
from harmony.dimse.scu import Instance
from harmony.gateway.retrieved import MARKER, NotWritten, RetrievedFolder, RetrievedFolders

HOUR = 3600.0


@pytest.fixture
async def folders(tmp_path: Path) -> AsyncIterator[RetrievedFolders]:
    folders = RetrievedFolders(tmp_path / "retrieved", ttl_s=HOUR, minimum_free_bytes=0)
    await folders.start()
    yield folders
    await folders.stop(0.0)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name != MARKER)


async def filled(folders: RetrievedFolders, *instances: Instance) -> RetrievedFolder:
    folder = await folders.new()
    for instance in instances:
        await folder.add(instance)
    return folder


async def test_a_folder_appears_when_it_is_complete(folders, make_instance) -> None:
    first, second = make_instance("1.2.3"), make_instance("1.2.4")
    folder = await filled(folders, first, second)
    assert not folder.path.exists()
    await folder.complete()
    assert str(uuid.UUID(folder.id)) == folder.id
    assert folder.path == folders.root / folder.id
    assert names(folder.path) == ["1.2.3.dcm", "1.2.4.dcm"]
    assert folder.file_count == 2
    content = (folder.path / "1.2.3.dcm").read_bytes()
    meta = read_file_meta(content)
    assert meta.media_storage_sop_instance_uid == "1.2.3"
    assert meta.transfer_syntax_uid == first.transfer_syntax_uid
    assert content[meta.data_set_offset :] == first.data


async def test_names_are_never_paths(folders, make_instance) -> None:
    folder = await filled(folders, make_instance("../../../etc/passwd"))
    await folder.complete()
    (name,) = names(folder.path)
    assert name.startswith("x-")


async def test_others_may_not_read(folders, make_instance) -> None:
    folder = await filled(folders, make_instance("1.2.3"))
    await folder.complete()
    assert folder.path.stat().st_mode & 0o007 == 0
    assert (folder.path / "1.2.3.dcm").stat().st_mode & 0o007 == 0


async def test_headers_are_those_of_the_files_in_their_order(folders, make_instance) -> None:
    folder = await filled(folders, *(make_instance(f"1.2.{number}") for number in (3, 1, 2)))
    await folder.complete()
    found = [header["00080018"]["Value"] for header in folder.headers(0, 2)]
    found += [header["00080018"]["Value"] for header in folder.headers(2, 2)]
    assert found == [["1.2.3"], ["1.2.1"], ["1.2.2"]]
    assert all("7FE00010" not in header for header in folder.headers(0, 3))


@pytest.mark.parametrize("complete", [False, True])
async def test_a_folder_is_removed(folders, make_instance, complete: bool) -> None:
    folder = await filled(folders, make_instance("1.2.3"))
    if complete:
        await folder.complete()
    await folder.remove()
    assert list(folders.root.iterdir()) == []


async def test_data_that_break_off(folders, make_instance) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"beginning"
        raise EOFError("it broke off")

    whole = make_instance("1.2.3")
    folder = await folders.new()
    with pytest.raises(EOFError, match="it broke off"):
        await folder.add(Instance(whole.sop_class_uid, "1.2.3", whole.transfer_syntax_uid, broken()))
    assert folder.file_count == 0
    await folder.remove()
    assert list(folders.root.iterdir()) == []


async def test_a_full_disk(tmp_path: Path, make_instance) -> None:
    folders = RetrievedFolders(tmp_path, ttl_s=HOUR, minimum_free_bytes=2**62)
    folder = await folders.new()
    with pytest.raises(NotWritten, match="bytes are free"):
        await folder.add(make_instance("1.2.3"))


async def test_a_disk_that_gets_full_within_an_instance(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("harmony.archive.free_space.CHECK_S", 0.0)
    folders = RetrievedFolders(tmp_path, ttl_s=HOUR, minimum_free_bytes=1)
    folder = await folders.new()

    async def data() -> AsyncIterator[bytes]:
        yield b"there is room"
        folders.space.minimum_free_bytes = 2**62
        yield b"there is none"

    with pytest.raises(NotWritten, match="would be free"):
        await folder.add(Instance("1.2.840.10008.5.1.4.1.1.2", "1.2", "1.2.840.10008.1.2", data()))
    await folder.remove()
    assert list(tmp_path.iterdir()) == []


# Time to live


async def test_a_folder_is_removed_when_its_time_is_over(folders, make_instance) -> None:
    folder = await filled(folders, make_instance("1.2.3"))
    await folder.complete()
    folder.release()
    now = time.time()
    folders.sweep(now + HOUR - 60)
    assert names(folder.path) == ["1.2.3.dcm"]
    folders.sweep(now + HOUR + 60)
    assert list(folders.root.iterdir()) == []


async def test_a_folder_in_use_stays(folders, make_instance) -> None:
    unfinished = await filled(folders, make_instance("1.2.3"))
    finished = await filled(folders, make_instance("1.2.3"))
    await finished.complete()
    folders.sweep(time.time() + 100 * HOUR)
    assert len(list(folders.root.iterdir())) == 2
    await unfinished.remove()
    finished.release()
    folders.sweep(time.time() + 100 * HOUR)
    assert list(folders.root.iterdir()) == []


async def test_what_an_earlier_process_left_is_removed_at_the_start(tmp_path: Path, make_instance) -> None:
    earlier = RetrievedFolders(tmp_path, ttl_s=HOUR, minimum_free_bytes=0)
    unfinished, finished, fresh = [await filled(earlier, make_instance("1.2.3")) for _ in range(3)]
    await finished.complete()
    await fresh.complete()
    old = time.time() - 2 * HOUR
    os.utime(tmp_path / f".{unfinished.id}", (old, old))
    os.utime(finished.path, (old, old))
    later = RetrievedFolders(tmp_path, ttl_s=HOUR)
    await later.start()
    assert [path.name for path in tmp_path.iterdir()] == [fresh.id]
    await later.stop(0.0)


async def test_a_time_to_live_of_0_keeps_what_is_complete(tmp_path: Path, make_instance) -> None:
    folders = RetrievedFolders(tmp_path, ttl_s=0, minimum_free_bytes=0)
    unfinished, finished = [await filled(folders, make_instance("1.2.3")) for _ in range(2)]
    await finished.complete()
    unfinished.release()
    finished.release()
    folders.sweep(time.time() + 100 * HOUR)
    assert [path.name for path in tmp_path.iterdir()] == [finished.id]


async def test_nothing_else_is_touched(folders, make_instance) -> None:
    strange = [folders.root / name for name in (str(uuid.uuid4()), "1.2.3", "notes", ".hidden")]
    for path in strange:
        path.mkdir()
        (path / "file.dcm").write_bytes(b"x")
    (folders.root / str(uuid.uuid4())).write_bytes(b"a file")
    folders.sweep(time.time() + 100 * HOUR)
    assert len(list(folders.root.iterdir())) == 5


async def test_a_folder_with_something_of_the_user_in_it_stays(folders, make_instance, caplog) -> None:
    folder = await filled(folders, make_instance("1.2.3"))
    await folder.complete()
    folder.release()
    (folder.path / "mine").mkdir()
    folders.sweep(time.time() + 100 * HOUR)
    assert (folder.path / "mine").is_dir()
    assert (folder.path / MARKER).exists()
    assert "cannot remove the retrieved instances" in caplog.text


async def test_sweeping_goes_on_while_it_is_started(tmp_path: Path, make_instance, monkeypatch) -> None:
    monkeypatch.setattr("harmony.gateway.retrieved.LONGEST_SWEEP_INTERVAL_S", 0.0)
    folders = RetrievedFolders(tmp_path, ttl_s=HOUR, minimum_free_bytes=0)
    swept = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(folders, "sweep", lambda now: loop.call_soon_threadsafe(swept.set))
    await folders.start()
    swept.clear()
    async with asyncio.timeout(20):
        await swept.wait()
    await folders.stop(0.0)
    await folders.stop(0.0)


# In the folder of an archive


async def test_an_index_over_the_same_folder_passes_them_over(tmp_path: Path, make_instance) -> None:
    folders = RetrievedFolders(tmp_path / "dimse", ttl_s=HOUR, minimum_free_bytes=0)
    await folders.start()
    folder = await filled(folders, make_instance("1.2.3"))
    await folder.complete()
    await filled(folders, make_instance("1.2.4"))
    index = ArchiveIndex(tmp_path / "dimse")
    index.open()
    try:
        assert index.counts().instances == 0
    finally:
        index.close()
    await folders.stop(0.0)
