"""Objects that another process stores: found as soon as they are acknowledged, and after every crash."""

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harmony.archive import worker_log
from harmony.archive.files import FileStore
from harmony.archive.index import ArchiveIndexError, Level
from harmony.archive.indexing import ArchiveIndex
from harmony.archive.matching import compile_query
from harmony.archive.stored import Disposition, StoredObject
from harmony.archive.worker_log import WorkerFeed, WorkerLog
from harmony.dicom.json_model import encode_data_set
from harmony.dimse.status import Outcome

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def data_set(uid: str, patient_id: str = "P1") -> bytes:
    model = {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"vr": "UI", "Value": [uid]},
        "00100020": {"vr": "LO", "Value": [patient_id]},
        "0020000D": {"vr": "UI", "Value": ["1.1"]},
        "0020000E": {"vr": "UI", "Value": ["1.1.1"]},
    }
    return encode_data_set(model, EXPLICIT)


class Site:
    """An index, and workers that store into its folder; all of them in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = ArchiveIndex(root)
        self.workers: list[tuple[WorkerFeed, WorkerLog, FileStore]] = []

    def worker(self, **options: Any) -> tuple[WorkerFeed, WorkerLog, FileStore]:
        files = FileStore(self.root, minimum_free_bytes=0, **options)
        files.open()
        feed = self.index.follow(f"test-{len(self.workers)}")
        log = WorkerLog(feed.directory, root=str(self.root), durable=options.get("durability") == "fsync")
        self.workers.append((feed, log, files))
        return self.workers[-1]

    def found(self) -> dict[str, str]:
        """Patient ID by SOP Instance UID, as a query has them."""
        entities = self.index.query(Level.IMAGE, compile_query({}))
        return {each["00080018"]["Value"][0]: each["00100020"]["Value"][0] for each in entities}

    def logs(self) -> list[str]:
        return sorted(path.name for path in self.index.directory.glob("worker-*/*"))


async def store(log: WorkerLog, files: FileStore, uid: str, patient_id: str = "P1") -> Outcome:
    sink = files.sink(
        sop_class_uid=CT,
        sop_instance_uid=uid,
        transfer_syntax_uid=EXPLICIT,
        journal=log,
        on_stored=log.stored,
    )
    sink.write(memoryview(data_set(uid, patient_id)))
    outcome = sink.finish()
    return outcome if isinstance(outcome, Outcome) else await outcome


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path / "archive")
    site.root.mkdir()
    site.index.open()
    yield site
    site.index.close()


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_what_was_acknowledged_is_found(site, durability):
    _, log, files = site.worker(durability=durability)
    for number in range(1, 20):
        assert (await store(log, files, f"1.{number}")).status == 0
        found = await asyncio.to_thread(site.found)
        assert len(found) == number


async def test_a_question_that_is_answered_at_once_misses_nothing(site):
    """What is not indexed yet is left to the answer that waits."""
    _, log, files = site.worker()
    await asyncio.to_thread(site.found)
    await store(log, files, "1.1")

    def ask(within_s: float) -> Iterator[Any]:
        return site.index.query(Level.IMAGE, compile_query({}), within_s=within_s)

    assert site.index.at_once(ask) is None
    await asyncio.to_thread(site.found)
    found = site.index.at_once(ask)
    assert found is not None
    assert len(found) == 1


async def test_of_several_workers_and_the_process_itself(site):
    own = FileStore(site.root, minimum_free_bytes=0)
    own.open()
    workers = [site.worker(), site.worker()]
    for number in range(1, 31):
        if number % 3:
            _, log, files = workers[number % 2]
            await store(log, files, f"1.{number}")
        else:
            await store(site.index, own, f"1.{number}")
    assert len(await asyncio.to_thread(site.found)) == 30


async def test_a_replacement_is_found_as_it_is_now(site):
    """The line from before the name leads to the old file, which may be looked at then."""
    _, log, files = site.worker(duplicates="replace")
    await store(log, files, "1.1", "OLD")
    assert await asyncio.to_thread(site.found) == {"1.1": "OLD"}
    stored = StoredObject(
        f"{site.root}/1.1/1.1.1/1.1.dcm", "1.1", "1.1.1", CT, "1.1", EXPLICIT, 1, Disposition.REPLACED
    )
    log.append(stored)
    assert await asyncio.to_thread(site.found) == {"1.1": "OLD"}
    await store(log, files, "1.1", "NEW")
    assert await asyncio.to_thread(site.found) == {"1.1": "NEW"}


async def test_the_same_again_brings_back_what_the_index_lost(site):
    _, log, files = site.worker()
    await store(log, files, "1.1")
    await asyncio.to_thread(site.index.remove, [f"{site.root}/1.1/1.1.1/1.1.dcm"])
    assert await asyncio.to_thread(site.found) == {}
    await store(log, files, "1.1")
    assert [*await asyncio.to_thread(site.found)] == ["1.1"]


async def test_a_file_that_gets_its_name_after_its_line_was_read(site):
    feed, log, files = site.worker()
    sink = files.sink(sop_class_uid=CT, sop_instance_uid="1.1", transfer_syntax_uid=EXPLICIT)
    stored = StoredObject(
        f"{site.root}/1.1/1.1.1/1.1.dcm", "1.1", "1.1.1", CT, "1.1", EXPLICIT, 1, Disposition.STORED
    )
    feed.asked(1)
    log.append(stored)
    assert site.found() == {}
    feed.answered(1)  # an earlier question: it says nothing of this line
    assert site.found() == {}
    sink.write(memoryview(data_set("1.1")))
    assert isinstance(sink.finish(), Outcome)
    assert [*site.found()] == ["1.1"]


async def test_what_was_refused_is_forgotten_and_its_log_removed(site, monkeypatch):
    monkeypatch.setattr(worker_log, "ROTATE_LINES", 2)
    feed, log, files = site.worker()
    log.append(
        StoredObject(
            f"{site.root}/1.1/1.1.1/1.9.dcm", "1.1", "1.1.1", CT, "1.9", EXPLICIT, 1, Disposition.STORED
        )
    )
    for number in range(1, 4):
        await store(log, files, f"1.{number}")
    assert len(await asyncio.to_thread(site.found)) == 3
    assert site.logs() == ["pending-0.log", "pending-1.log"]
    feed.asked(1)
    feed.answered(1)
    assert len(site.found()) == 3
    assert site.logs() == ["pending-1.log"]


async def test_logs_do_not_grow(site, monkeypatch):
    monkeypatch.setattr(worker_log, "ROTATE_LINES", 4)
    _, log, files = site.worker()
    for number in range(1, 42):
        await store(log, files, f"1.{number}")
    assert len(await asyncio.to_thread(site.found)) == 41
    assert site.logs() == ["pending-10.log"]


async def test_of_a_dead_worker_all_is_found_and_nothing_left(site):
    feed, log, files = site.worker()
    for number in range(1, 6):
        await store(log, files, f"1.{number}")
    log.append(
        StoredObject(
            f"{site.root}/1.1/1.1.1/1.9.dcm", "1.1", "1.1.1", CT, "1.9", EXPLICIT, 1, Disposition.STORED
        )
    )
    log.close()
    site.index.unfollow(feed)
    assert len(site.found()) == 5
    assert [*site.index.directory.glob("worker-*")] == []


async def test_after_a_crash_of_everybody(site, monkeypatch):
    _, log, files = site.worker()
    for number in range(1, 6):
        await store(log, files, f"1.{number}")
    monkeypatch.setattr(site.index, "_feeds", [])  # nothing was read
    log.close()
    site.index.close()
    assert site.logs() == ["pending-0.log"]
    site.index.open()
    assert len(site.found()) == 5
    assert [*site.index.directory.glob("worker-*")] == []


async def test_the_sizes_are_there_for_whoever_looks_for_torn_files(site):
    _, log, files = site.worker()
    for number in range(1, 4):
        await store(log, files, f"1.{number}")
    log.close()
    (left,) = worker_log.left_by_workers(site.index.directory).values()
    assert left == {
        str(path.relative_to(site.root)): path.stat().st_size for path in site.root.glob("1.1/*/*.dcm")
    }
    assert len(left) == 3


async def test_a_worker_that_outlives_the_process_is_waited_for(site, monkeypatch):
    feed, log, files = site.worker()
    await store(log, files, "1.1")
    monkeypatch.setattr(site.index, "_feeds", [])
    site.index.close()
    opening = asyncio.create_task(asyncio.to_thread(site.index.open))
    await store(log, files, "1.2")
    assert not opening.done()
    log.close()
    await opening
    assert sorted(site.found()) == ["1.1", "1.2"]
    assert not feed.directory.exists()


def test_one_that_stays_is_an_error(site, monkeypatch):
    monkeypatch.setattr(worker_log, "LEAVING_S", 0.0)
    _, log, _ = site.worker()
    monkeypatch.setattr(site.index, "_feeds", [])
    site.index.close()
    with pytest.raises(ArchiveIndexError, match="still stores"):
        site.index.open()
    log.close()
    site.index.open()


def test_a_worker_cannot_begin_in_a_folder_that_was_taken_away(site):
    """Its process has ended, and another one has opened the index since."""
    feed = site.index.follow("late")
    feed.directory.rmdir()
    with pytest.raises(FileNotFoundError):
        WorkerLog(feed.directory, root=str(site.root), durable=False)


def test_the_lock_goes_with_the_process(site, tmp_path):
    feed = site.index.follow("killed")
    code = (
        "import sys; from pathlib import Path; from harmony.archive.worker_log import WorkerLog\n"
        "log = WorkerLog(Path(sys.argv[1]), root='/', durable=False); print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(feed.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        fd = os.open(feed.directory, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process.kill()
            process.wait()
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
