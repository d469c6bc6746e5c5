"""Envelopes that are begun while their objects still arrive, so that little is left to do when the last one has.

Each object that has its final name is packed by a process of its own (`harmony.jmix.packing_process`) while it is in
the page cache. When its envelope is complete, that process adds what is missing and completes it. Nothing depends on
it: the journal says what is in an envelope, and what was begun with anything else, or failed, or was lost with the
process, is built from the journal alone, to the same bytes.

The process is started when there is enough to do for the first time, and again when it has ended. Called by
`jmix_builder`, in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from harmony.archive.stored import Disposition, StoredObject
from harmony.jmix.journal import JournalEntry, JournalHeader
from harmony.jmix.packing_process import (
    LENGTH_BYTES,
    Add,
    Build,
    Built,
    Discard,
    Failed,
    Order,
    decode_reply,
    encode,
)

__all__ = ["EnvelopesAhead"]

logger = logging.getLogger("harmony.gateway")

BATCH_BYTES = 512 * 1024
"""The process is told of so much at a time: each CT image, or hundreds of small objects, for which waking it costs
more than the rest."""

MAXIMUM_BEGUN = 64
"""Each has a file open; those beyond are built when they are complete."""

MAXIMUM_UNSENT_BYTES = 4 * 1024 * 1024
"""Requests that the process has not read, ten thousand objects: it does not keep up, and gets the rest later."""

MAXIMUM_WAITING = 10_000
"""Objects of an envelope while there is no process; more than that are left to whoever builds it."""

RESTART_S = 10.0
"""What ends at once should not be started all the time."""

STOP_S = 1.0


class EnvelopesAhead:
    """order: what is to be known of an envelope besides its objects, by its id and time of creation.

    temporary: a new path for an unfinished archive.
    """

    def __init__(self, order: Callable[[str, datetime], Order], temporary: Callable[[], Path]) -> None:
        self._order = order
        self._temporary = temporary
        self._begun: dict[str, _Begun] = {}  # by envelope id
        self._process: Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._started_at: float | None = None
        self._reader: asyncio.Task[None] | None = None
        self._awaited: deque[asyncio.Future[Built | Failed | None]] = deque()
        self._is_stopped = False

    def add(self, header: JournalHeader, stored: StoredObject) -> None:
        """An object of an envelope has its final name."""
        begun = self._begun.get(header.envelope_id)
        if begun is None:
            if self._is_stopped:
                return
            order = self._order(header.envelope_id, datetime.fromisoformat(header.created))
            begun = self._begun[header.envelope_id] = _Begun(order, str(self._temporary()))
            begun.is_given_up = len(self._begun) > MAXIMUM_BEGUN
        if begun.is_given_up or begun.is_full:
            return
        if stored.path in begun.paths:
            # Sent again, with other bytes it is in the archive as it was before.
            begun.is_given_up = stored.disposition is not Disposition.IDENTICAL
            return
        begun.paths.add(stored.path)
        begun.waiting.append(_entry(stored))
        begun.waiting_bytes += stored.size_bytes
        if begun.waiting_bytes >= BATCH_BYTES:
            if self._process is not None:
                self._send_waiting(begun, self._process)
            elif len(begun.waiting) <= MAXIMUM_WAITING:
                self._start()
            else:
                begun.is_full = True
                begun.waiting.clear()

    async def build(self, envelope_id: str, objects: Sequence[JournalEntry], out_path: Path) -> Built | None:
        """Complete what was begun of an envelope; None when there is nothing, or it cannot be done here.

        out_path: on the file system of the temporary paths.
        """
        begun = self._begun.pop(envelope_id, None)
        process = self._process
        if begun is None or process is None or not begun.was_sent:
            return None
        if begun.is_given_up:
            self._write(process, Discard(envelope_id))
            return None
        answer: asyncio.Future[Built | Failed | None] = asyncio.get_running_loop().create_future()
        self._awaited.append(answer)
        self._write(process, Build(begun.order, tuple(objects), str(out_path)))
        built = await answer
        if isinstance(built, Failed):
            logger.warning("envelope %s was not packed ahead: %s", envelope_id, built.error)
            return None
        return built

    def forget(self, envelope_id: str) -> None:
        """There will be no such envelope."""
        if self._begun.pop(envelope_id, None) is not None and self._process is not None:
            self._write(self._process, Discard(envelope_id))

    async def stop(self) -> None:
        """Begin nothing more, and end the process."""
        self._is_stopped = True
        self._begun.clear()
        if self._starting is not None:
            await asyncio.wait({self._starting})
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if self._reader is not None:
            await asyncio.wait({self._reader})

    # The process -----

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._starting is not None and not self._starting.done():
            return
        if self._started_at is not None and loop.time() < self._started_at + RESTART_S:
            return
        self._started_at = loop.time()
        self._starting = loop.create_task(self._run(), name="packing process")

    async def _run(self) -> None:
        command = (sys.executable, "-m", "harmony.jmix.packing_process")
        path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment)
        except OSError as error:
            logger.warning("envelopes are not packed ahead: %s", error)
            return
        self._process = process
        self._reader = asyncio.create_task(self._read(process), name="packing process answers")
        for begun in self._begun.values():
            if begun.waiting_bytes >= BATCH_BYTES:
                self._send_waiting(begun, process)

    def _send_waiting(self, begun: _Begun, process: Process) -> None:
        assert process.stdin is not None
        if process.stdin.transport.get_write_buffer_size() > MAXIMUM_UNSENT_BYTES:
            begun.is_full = True
            begun.waiting.clear()
            return
        self._write(process, Add(begun.order, begun.temporary, tuple(begun.waiting)))
        begun.waiting.clear()
        begun.waiting_bytes = 0
        begun.was_sent = True

    @staticmethod
    def _write(process: Process, message: Add | Build | Discard) -> None:
        assert process.stdin is not None
        process.stdin.write(encode(message))

    async def _read(self, process: Process) -> None:
        """Answers, until there are no more."""
        assert process.stdout is not None
        try:
            while True:
                size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
                reply = decode_reply(await process.stdout.readexactly(size))
                answer = self._awaited.popleft()
                if not answer.done():
                    answer.set_result(reply)
        except (asyncio.IncompleteReadError, OSError):
            pass
        self._process = None
        for begun in self._begun.values():
            begun.is_given_up = True
        while self._awaited:
            answer = self._awaited.popleft()
            if not answer.done():
                answer.set_result(None)
        if not self._is_stopped:
            logger.error(
                "the packing process has ended with %s; envelopes are built without it", await process.wait()
            )


class _Begun:
    """What the process knows of an envelope, and what it does not know yet."""

    __slots__ = (
        "is_full",
        "is_given_up",
        "order",
        "paths",
        "temporary",
        "waiting",
        "waiting_bytes",
        "was_sent",
    )

    def __init__(self, order: Order, temporary: str) -> None:
        self.order = order
        self.temporary = temporary
        self.paths: set[str] = set()
        self.waiting: list[JournalEntry] = []
        self.waiting_bytes = 0
        self.was_sent = False
        self.is_full = False
        """The rest is sent when it is built."""
        self.is_given_up = False


def _entry(stored: StoredObject) -> JournalEntry:
    return JournalEntry(
        stored.path,
        stored.study_instance_uid,
        stored.series_instance_uid,
        stored.sop_class_uid,
        stored.sop_instance_uid,
        stored.transfer_syntax_uid,
        stored.size_bytes,
        stored.disposition.value,
    )
