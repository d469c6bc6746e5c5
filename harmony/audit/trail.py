"""Where audit messages go: into a file, and from the file to a collector.

    <folder>/audit-2026-01-31.log    records of a day (UTC), one per line, as they are sent
    <folder>/delivered               how far the collector has them: file and offset

The file is the queue. A record is in it, in the operating system's hands, before `record` returns, so that a process
that is killed has lost none; a second later it is on the disk. The collector gets every record in order, and again what
may have been lost when a connection broke or the process died: at least once.

While the disk takes nothing, records wait in memory, at most `MAXIMUM_UNWRITTEN` of them; `lost_count` says how many
more there were. Files are never rewritten, and only removed when they are older than `keep_days` and delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from harmony.audit import syslog
from harmony.audit.message import AuditSource, Message, Outcome, encode

__all__ = ["AuditTrail"]

logger = logging.getLogger("harmony.audit")

MAXIMUM_UNWRITTEN: Final = 10_000
SYNC_S: Final = 1.0
"""How long a record may be in the operating system's hands only."""
BATCH_BYTES: Final = 256 * 1024
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 60.0
STOP_S: Final = 5.0
"""For what is not delivered yet, at the end."""

_FILE_MODE, _FOLDER_MODE = 0o640, 0o750
_NAME = re.compile(r"audit-(\d{4}-\d\d-\d\d)\.log")
_DELIVERED = "delivered"
_END = b"</AuditMessage>"


class AuditTrail:
    """Started before anything that is audited, stopped after it.

    sender: the way to a collector; None: records stay in the file. keep_days: 0 keeps them for ever.
    """

    def __init__(
        self,
        folder: Path,
        source: AuditSource,
        *,
        sender: syslog.Sender | None = None,
        keep_days: int = 0,
    ) -> None:
        self.folder = folder
        self.source = source
        self.recorded_count = 0
        self.lost_count = 0
        self._sender = sender
        self._keep_days = keep_days
        self.host = socket.gethostname()
        """Our own name, as the records have it."""
        self._fd = -1
        self._day = ""
        self._unwritten: deque[bytes] = deque()
        self._dirty = asyncio.Event()
        self._more = asyncio.Event()
        self._all_delivered = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._cursor = ("", 0)

    def __str__(self) -> str:
        return f"the audit trail {self.folder}"

    async def start(self) -> None:
        """Raises OSError when the folder cannot be written to."""
        await asyncio.to_thread(self._open)
        self._tasks = [asyncio.create_task(self._sync_always(), name="audit sync")]
        if self._sender is not None:
            self._more.set()
            self._tasks.append(asyncio.create_task(self._deliver_always(), name="audit delivery"))

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Deliver what can be delivered within grace_s; the rest is delivered after the next start."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        if self._sender is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(grace_s, STOP_S)):
                    await self._all_delivered.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if self._sender is not None:
            await self._sender.close()
        self._write_waiting()
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(os.fsync, self._fd)
            os.close(self._fd)
            self._fd = -1

    @property
    def undelivered(self) -> bool:
        """The collector does not have everything that is in the files."""
        files = self._files()
        if not files or self._sender is None:
            return False
        name, offset = self._cursor
        return name != files[-1] or offset < (self.folder / name).stat().st_size

    # Recording

    def record(self, message: Message) -> None:
        """Append a message to the file. Never raises: what the disk does not take waits, and is logged."""
        line = syslog.record(
            encode(message, self.source),
            at=message.at,
            host=self.host,
            program="harmony",
            process=os.getpid(),
            failed=message.outcome is not Outcome.SUCCESS,
        )
        self.recorded_count += 1
        self._unwritten.append(line + b"\n")
        self._write_waiting()
        while len(self._unwritten) > MAXIMUM_UNWRITTEN:
            self._unwritten.popleft()
            self.lost_count += 1

    def _write_waiting(self) -> None:
        waiting = len(self._unwritten)
        try:
            while self._unwritten:
                self._append(self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            if waiting == 1:
                logger.error("%s cannot be written to, records wait in memory: %s", self, error.strerror)
            return
        if waiting > 1:
            logger.warning("%s is written to again, %d records had waited", self, waiting)
        self._dirty.set()
        self._all_delivered.clear()
        self._more.set()

    def _append(self, line: bytes) -> None:
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        if day != self._day or self._fd < 0:
            self._open_day(day)
        written = os.write(self._fd, line)
        if written < len(line):  # a full disk: what there is of the line ends here, and it is written again
            os.write(self._fd, b"\n")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self) -> None:
        os.makedirs(self.folder, _FOLDER_MODE, exist_ok=True)
        self._open_day(datetime.now(UTC).strftime("%Y-%m-%d"))
        with contextlib.suppress(FileNotFoundError, ValueError):
            name, offset = (self.folder / _DELIVERED).read_text().split()
            self._cursor = (name, int(offset))

    def _open_day(self, day: str) -> None:
        path = self.folder / f"audit-{day}.log"
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")  # an earlier process was cut short
        old, self._fd, self._day = self._fd, fd, day
        if old >= 0:
            os.close(old)

    async def _sync_always(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SYNC_S)
            self._dirty.clear()
            if self._unwritten:
                self._write_waiting()
                self._dirty.set()
            try:
                fd = os.dup(self._fd)  # the day may end meanwhile
                try:
                    await asyncio.to_thread(os.fsync, fd)
                finally:
                    os.close(fd)
                await asyncio.to_thread(self._remove_old)
            except OSError as error:
                logger.error("%s: %s", self, error.strerror)

    def _remove_old(self) -> None:
        if not self._keep_days:
            return
        first = (datetime.now(UTC) - timedelta(days=self._keep_days)).strftime("%Y-%m-%d")
        for name in self._files():
            match = _NAME.fullmatch(name)
            delivered = self._sender is None or name < self._cursor[0]
            if match is not None and match[1] < first and delivered:
                os.unlink(self.folder / name)

    # Delivering

    def _files(self) -> list[str]:
        return sorted(name for name in os.listdir(self.folder) if _NAME.fullmatch(name))

    async def _deliver_always(self) -> None:
        assert self._sender is not None
        delay_s = FIRST_RETRY_S
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                while batch := await asyncio.to_thread(self._next_batch):
                    records, cursor = batch
                    if records:
                        await self._sender.send(records)
                    await asyncio.to_thread(self._delivered, cursor)
                    if delay_s > FIRST_RETRY_S:
                        logger.warning("the audit collector %s has everything again", self._sender)
                    delay_s = FIRST_RETRY_S
                if not self._more.is_set():
                    self._all_delivered.set()
            except OSError as error:  # ssl.SSLError and TimeoutError as well
                if delay_s == FIRST_RETRY_S:
                    reason = error.strerror or str(error) or type(error).__name__
                    logger.error("the audit collector %s takes nothing: %s", self._sender, reason)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LAST_RETRY_S)
                self._more.set()

    def _next_batch(self) -> tuple[list[bytes], tuple[str, int]] | None:
        """Records that follow the cursor and where they end. Blocking."""
        name, offset = self._cursor
        for file in self._files():
            if file < name:
                continue
            start = offset if file == name else 0
            with open(self.folder / file, "rb") as stream:
                stream.seek(start)
                data = stream.read(BATCH_BYTES)
                while data and b"\n" not in data and (more := stream.read(BATCH_BYTES)):
                    data += more
            whole = data[: data.rfind(b"\n") + 1]
            if whole:
                lines = whole.split(b"\n")[:-1]
                records = [line for line in lines if line.endswith(_END)]
                if len(records) < len(lines):
                    logger.warning("%s: %d records are incomplete", file, len(lines) - len(records))
                return records, (file, start + len(whole))
        return None

    def _delivered(self, cursor: tuple[str, int]) -> None:
        self._cursor = cursor
        path = self.folder / _DELIVERED
        temporary = path.with_suffix(".new")
        temporary.write_text(f"{cursor[0]} {cursor[1]}\n")
        os.replace(temporary, path)
