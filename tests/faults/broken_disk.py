"""A disk that fails: EIO for what the gateway asks of its files, and of nothing else, by strace's fault injection.

strace is attached to the running gateway, has calls fail that name one of these files or that only files get, and is
detached again. The names of temporary files are numbered, so those to come are known; sockets are none of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from tests.faults.trial import DICOM_DEADLINES, GAP_S, NotHere, ProgramMissing, Trial, fault

NAMES_AHEAD = 400
"""Temporary files whose names are given to strace: more than are made while it is attached."""
ATTACH_S = 20.0


@fault(scp=DICOM_DEADLINES + 'durability = "fsync"', refuses=True, may_log_tracebacks=True)
async def broken_disk(trial: Trial) -> None:
    """EIO from open, write, fsync, link, of each file or of some, and from the index's own (strace): A700 meanwhile."""
    index = trial.gateway.root / ".index"
    for turn in range(trial.many(3, 1)):
        when = (":when=2+3", "", ":when=1+2")[turn]
        for call in ("openat", "write,writev", "fsync", "fdatasync", "link,linkat"):
            if call == "openat":
                paths = await _temporary_files(trial)
            elif call == "write,writev":
                paths = [*await _temporary_files(trial), *index.glob("pending-*.log")]
            else:
                paths = []
            async with _failing(trial, call, paths, when):
                await trial.refusals(4)
            await trial.served(10)
        # Objects are taken while the index cannot be written, and are in it afterwards.
        refused = trial.refused
        async with _failing(
            trial, "pwrite64,ftruncate", [index / "index.sqlite-wal", index / "index.sqlite"]
        ):
            await trial.served(40)
        assert trial.refused == refused, "objects do not wait for the index"
        await trial.reads()
        await trial.all_found()


async def _temporary_files(trial: Trial) -> list[Path]:
    """Those that come next: `<process>-<token>-<number>`."""
    incoming = trial.gateway.root / ".incoming"
    async with asyncio.timeout(GAP_S):
        while not (names := [name for name in os.listdir(incoming) if name.count("-") == 2]):  # noqa: ASYNC110
            await asyncio.sleep(0)
    prefix, _, number = names[-1].rpartition("-")
    return [incoming / f"{prefix}-{int(number) + ahead}" for ahead in range(NAMES_AHEAD)]


@contextlib.asynccontextmanager
async def _failing(
    trial: Trial, calls: str, paths: Iterable[Path] = (), when: str = ""
) -> AsyncIterator[None]:
    """Have system calls of the gateway fail. paths: only those that name one of these. when: as strace has it."""
    program = shutil.which("strace")
    if program is None:
        raise ProgramMissing("peer missing: strace")
    log = trial.folder / "strace.log"
    arguments = ["-f", "-p", str(trial.gateway.pid), "-o", str(log), "-e", f"trace={calls}"]
    arguments += ["-e", f"inject={calls}:error=EIO{when}"]
    for path in paths:
        arguments += ["-P", str(path)]
    strace = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    assert strace.stderr is not None
    try:
        async with asyncio.timeout(ATTACH_S):
            said = (await strace.stderr.readline()).decode()
        if "attached" not in said:
            raise NotHere(f"a process cannot be traced: {said.strip()}")
        yield
    finally:
        if strace.returncode is None:
            strace.send_signal(signal.SIGINT)
        await strace.communicate()
    injected = log.read_text().count("(INJECTED)")
    assert injected, f"no {calls} has failed"
    trial.injected += injected
