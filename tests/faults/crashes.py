"""Ends that nobody planned: SIGKILL, a power cut, an index that is locked or overwritten, SIGTERM with work in flight.

A power cut is played: the gateway is killed, and what a disk may lose of what was never synced is taken away or zeroed.
What was acknowledged with durability "fsync" is no part of that; with "os" it is, and its senders have to repeat it.
The index is told that it was open in another boot, which is how it learns of a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from pathlib import Path

from tests.faults.program import received
from tests.faults.trial import DICOM_DEADLINES, GAP_S, RESTART_GAP_S, Trial, fault
from tests.faults.witness import instance_of

LOCKED_S = 3.0


@fault(interrupts=True, gap_s=RESTART_GAP_S)
async def kill(trial: Trial) -> None:
    """SIGKILL in the middle of everything, and a new start on what it left."""
    choice = random.Random(3)
    for _ in range(trial.many(15, 2)):
        await trial.served(choice.randint(3, 60))
        async with trial.restarted():
            trial.gateway.kill()
        trial.injected += 1
        await trial.all_found()


@fault(scp=DICOM_DEADLINES + 'durability = "fsync"', interrupts=True, gap_s=RESTART_GAP_S)
async def power_cut(trial: Trial) -> None:
    """SIGKILL; then temporary files are cut or zeroed, the index's write-ahead log and list of files cut off."""
    choice = random.Random(4)
    root = trial.gateway.root
    for _ in range(trial.many(15, 2)):
        await trial.served(choice.randint(3, 60))
        async with trial.restarted():
            trial.gateway.kill()
            await trial.gateway.wait()
            for path in (root / ".incoming").iterdir():
                spoil(path, choice)
            for path in [*(root / ".index").glob("pending-*"), *(root / ".index").glob("*-wal")]:
                os.truncate(path, choice.randint(0, path.stat().st_size))
            another_boot(root)
        trial.injected += 1
        for sop_instance_uid, data in received(root):
            number = int(sop_instance_uid.removeprefix("1.2.3."))
            assert data == instance_of(number).data, f"{number} is not what was sent"
        await trial.all_found()


@fault(interrupts=True, gap_s=RESTART_GAP_S, reads=False)  # what was acknowledged last is what is cut
async def power_cut_unsynced(trial: Trial) -> None:
    """The same with durability "os": files under their final names are cut off as well; set aside, and stored again."""
    choice = random.Random(6)
    root = trial.gateway.root
    for _ in range(trial.many(15, 2)):
        await trial.served(choice.randint(20, 60))
        async with trial.restarted():
            trial.gateway.kill()
            await trial.gateway.wait()
            stored = sorted(root.glob("[!.]*/*/*"), key=lambda path: path.stat().st_mtime_ns)
            cut = [path for path in stored[-20:] if choice.random() < 0.5]
            for path in cut:
                os.truncate(path, choice.randrange(path.stat().st_size))
            for path in [*(root / ".index").glob("pending-*"), *(root / ".index").glob("*-wal")]:
                os.truncate(path, choice.randint(0, path.stat().st_size))
            another_boot(root)
        trial.injected += len(cut)
        numbers = [int(path.stem.removeprefix("1.2.3.")) for path in cut]
        assert not set(await asyncio.to_thread(trial.found)) & {path.stem for path in cut}
        async with trial.senders[0].association() as scu:
            for number in numbers:
                assert (await scu.store(instance_of(number))).status == 0x0000
        await trial.all_found()


def spoil(path: Path, choice: random.Random) -> None:
    """What a file may look like whose data were not on the disk yet: shorter, or zeros in place of its end."""
    size = path.stat().st_size
    keep = choice.randint(0, size)
    os.truncate(path, keep)
    if choice.random() < 0.5:
        os.truncate(path, size)


def another_boot(root: Path) -> None:
    """As if the machine had been started again since the index was opened."""
    # What damaged it so that this is not possible has it made anew.
    with (
        contextlib.suppress(sqlite3.DatabaseError),
        contextlib.closing(sqlite3.connect(root / ".index" / "index.sqlite", isolation_level=None)) as index,
    ):
        index.execute("UPDATE meta SET value = 'another boot' WHERE key = 'opened'")


@fault(refuses=True, gap_s=LOCKED_S + GAP_S, may_log_tracebacks=True)
async def index_locked(trial: Trial) -> None:
    """Another process holds the lock of the index's database: objects are taken all the same, and found afterwards."""
    for _ in range(trial.many(5, 1)):
        with contextlib.closing(
            sqlite3.connect(
                trial.gateway.root / ".index" / "index.sqlite",
                timeout=10.0,
                isolation_level=None,
                check_same_thread=False,
            )
        ) as database:
            await asyncio.to_thread(database.execute, "BEGIN IMMEDIATE")
            end = asyncio.get_running_loop().time() + LOCKED_S
            while asyncio.get_running_loop().time() < end:
                await trial.served(5)
            database.execute("ROLLBACK")
        trial.injected += 1
        await trial.all_found()
    assert trial.refused == 0, "objects do not wait for the index"


@fault(refuses=True, interrupts=True, gap_s=RESTART_GAP_S, may_log_tracebacks=True)
async def index_overwritten(trial: Trial) -> None:
    """Pages of the index's database are overwritten while it is used: objects are taken, and a start makes it anew."""
    choice = random.Random(5)
    path = trial.gateway.root / ".index" / "index.sqlite"
    for _ in range(trial.many(5, 1)):
        with path.open("r+b", buffering=0) as file:
            for _ in range(20):
                file.seek(choice.randrange(max(1, path.stat().st_size)))
                file.write(choice.randbytes(500))
        await trial.served(20)
        async with trial.restarted():
            trial.gateway.terminate()
        trial.injected += 1
        await trial.all_found()


@fault(interrupts=True, gap_s=RESTART_GAP_S)
async def terminate(trial: Trial) -> None:
    """SIGTERM with objects on their way: exit status 0, after what had begun is done."""
    for _ in range(trial.many(10, 2)):
        await trial.served(10)
        trial.gateway.terminate()
        async with asyncio.timeout(60):
            status = await trial.gateway.wait()
        assert status == 0
        await trial.gateway.start()
        trial.injected += 1
        await trial.all_found()
