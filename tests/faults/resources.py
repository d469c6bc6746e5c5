"""What the gateway's own machine does to it: a disk that is full or read-only, no descriptors, a clock that jumps."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
from pathlib import Path

from tests.faults.peers import PATIENCE_S, Peer, crowd
from tests.faults.trial import RESTART_GAP_S, ProgramMissing, Trial, fault, mount, unmount

MIB = 1 << 20


@fault(disk_bytes=48 * MIB, refuses=True, may_log_tracebacks=True)
async def full_disk(trial: Trial) -> None:
    """ENOSPC: the disk is filled to the last byte and emptied again; A700 meanwhile, on associations that live on."""
    assert trial.disk is not None
    filler = trial.disk / "filler"
    for _ in range(trial.many(10, 2)):
        _fill(filler)
        await trial.refusals()
        filler.unlink()
        trial.injected += 1
        await trial.served(10)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


@fault(refuses=True, may_log_tracebacks=True)
async def file_size_limit(trial: Trial) -> None:
    """EFBIG: files cannot grow past 4 KiB any more (RLIMIT_FSIZE), in the middle of an object."""
    for _ in range(trial.many(10, 2)):
        trial.gateway.limit(resource.RLIMIT_FSIZE, 4096)
        await trial.refusals()
        trial.gateway.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        trial.injected += 1
        await trial.served(10)


@fault(refuses=True, interrupts=True, may_log_tracebacks=True)
async def no_descriptors(trial: Trial) -> None:
    """EMFILE: connections take every descriptor that there is, until they are closed (RLIMIT_NOFILE)."""
    soft, _ = resource.prlimit(trial.gateway.pid, resource.RLIMIT_NOFILE)
    for _ in range(trial.many(10, 2)):
        room = len(trial.gateway.open_files) + 20
        trial.gateway.limit(resource.RLIMIT_NOFILE, room)
        peers: list[Peer] = []

        async def connect(_: int, peers: list[Peer] = peers) -> None:
            with contextlib.suppress(OSError):
                peers.append(await Peer.connect(trial.gateway.port))

        await crowd(60, connect)
        await asyncio.wait_for(_until_full(trial, room), PATIENCE_S)
        trial.injected += len(peers)
        for peer in peers:
            peer.close()
        trial.gateway.limit(resource.RLIMIT_NOFILE, soft)
        await trial.served(10)


async def _until_full(trial: Trial, room: int) -> None:
    refused = trial.refused
    while len(trial.gateway.open_files) < room - 1 and trial.refused == refused:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@fault(refuses=True)
async def read_only(trial: Trial) -> None:
    """EROFS: the folder that objects are written to becomes read-only, and writable again."""
    incoming = trial.gateway.root / ".incoming"
    for _ in range(trial.many(10, 2)):
        mount(["-t", "tmpfs", "-o", "ro", "tmpfs"], incoming)
        try:
            await trial.refusals()
        finally:
            unmount(incoming)
        trial.injected += 1
        await trial.served(10)


@fault()
async def removed_folders(trial: Trial) -> None:
    """Somebody removes the folder of temporary files, and those of series that nothing is in yet."""
    incoming = trial.gateway.root / ".incoming"
    for _ in range(trial.many(50, 5)):
        for name in os.listdir(
            incoming
        ):  # a file that is being written goes on without a name: not this fault
            with contextlib.suppress(FileNotFoundError):
                if not name.startswith(str(trial.gateway.pid)):
                    os.unlink(incoming / name)
        try:
            incoming.rmdir()
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            trial.injected += 1
        await trial.served(4)


LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
JUMPS = ("+1d", "-1d", "+3600s", "-3600s", "+10y", "+0")


@fault(interrupts=True, gap_s=RESTART_GAP_S)
async def clock_jumps(trial: Trial) -> None:
    """The clock is set a day forward and back, and ten years; deadlines do not follow it (libfaketime)."""
    library = _libfaketime()
    setting = trial.folder / "clock"
    setting.write_text("+0\n")
    trial.gateway.environment = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(setting),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    async with trial.restarted():
        trial.gateway.terminate()
    await trial.served(10)
    lost = trial.lost_associations
    for jump in JUMPS[: trial.many(6, 3)]:
        replacement = setting.with_suffix(".new")
        replacement.write_text(jump + "\n")
        replacement.rename(setting)
        trial.injected += 1
        await trial.served(trial.many(40, 6))
    assert trial.lost_associations == lost, "an association was ended because the clock jumped"


def _libfaketime() -> str:
    for path in (LIBFAKETIME, *map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))):
        if Path(path).exists():
            return path
    raise ProgramMissing("peer missing: libfaketime (apt-get install faketime)")
