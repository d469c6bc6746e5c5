"""The file of the trail and its delivery: nothing lost by a kill, a full disk or a collector that is down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harmony.audit import trail as trails
from harmony.audit.message import Action, AuditSource, Event, Message, Outcome, Participant
from harmony.audit.syslog import DatagramSender, StreamSender, record
from harmony.audit.trail import AuditTrail

AT = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
WAIT_S = 20.0


def message(user: str) -> Message:
    return Message(Event.LOGIN, Action.EXECUTE, [Participant(user)])


def users(data: bytes) -> list[str]:
    return re.findall(r'UserID="([^"]*)"', data.decode())


def written(folder: Path) -> list[str]:
    return [user for path in sorted(folder.glob("audit-*.log")) for user in users(path.read_bytes())]


class Collector:
    """A syslog server. Takes frames; `refuse` closes connections at once."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.more = asyncio.Condition()
        self.cut_after: int | None = None
        """Reset the connection after so many records."""
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = int(await reader.readuntil(b" "))
                frame = await reader.readexactly(length)
                async with self.more:
                    self.records.append(frame)
                    self.more.notify_all()
                if self.cut_after is not None and len(self.records) >= self.cut_after:
                    self.cut_after = None
                    break
        writer.transport.abort()
        self._writers.discard(writer)

    async def until(self, names: list[str]) -> None:
        async with asyncio.timeout(WAIT_S), self.more:
            await self.more.wait_for(lambda: set(names) <= set(self.names))

    @property
    def names(self) -> list[str]:
        return users(b"\n".join(self.records))

    @contextlib.asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[None]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", port)
        try:
            yield
        finally:
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(trails, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(trails, "LAST_RETRY_S", 0.05)
    monkeypatch.setattr(trails, "SYNC_S", 0.01)


def test_record_is_as_rfc_5424_says():
    line = record(b"<AuditMessage/>", at=AT, host="gw 1", program="harmony", process=4711, failed=False)
    assert line == (
        b"<85>1 2026-01-02T03:04:05.678+00:00 gw_1 harmony 4711 DICOM+RFC3881 - \xef\xbb\xbf<AuditMessage/>"
    )
    assert record(b"", at=AT, host="", program="", process=1, failed=True).startswith(b"<84>1 ")


async def test_records_are_in_the_file_at_once(tmp_path):
    trail = AuditTrail(tmp_path / "a" / "audit", AuditSource("gw1"))
    await trail.start()
    trail.record(message("one"))
    trail.record(Message(Event.LOGIN, Action.EXECUTE, [Participant("two")], Outcome.MINOR_FAILURE))
    (path,) = trail.folder.glob("audit-*.log")
    lines = path.read_bytes().splitlines()
    assert [line[:4] for line in lines] == [b"<85>", b"<84>"]
    assert users(lines[1]) == ["two"]
    assert path.stat().st_mode & 0o777 == 0o640
    await trail.stop()


async def test_a_line_that_was_cut_short_spoils_no_other(tmp_path):
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    (tmp_path / f"audit-{today}.log").write_bytes(b'<85>1 half a rec UserID="half"')
    collector = Collector()
    async with collector.listening(0):
        pass
    trail = AuditTrail(tmp_path, AuditSource("gw1"))
    await trail.start()
    trail.record(message("whole"))
    await trail.stop()
    assert written(tmp_path) == ["half", "whole"]
    records, _ = trail._next_batch()
    assert users(b"\n".join(records)) == ["whole"]


async def test_a_full_disk_loses_nothing(tmp_path, quick, until, caplog):
    trail = AuditTrail(tmp_path, AuditSource("gw1"))
    await trail.start()
    trail.record(message("before"))
    good, trail._fd = trail._fd, os.open("/dev/full", os.O_WRONLY)
    for name in ("one", "two"):
        trail.record(message(name))
    assert written(tmp_path) == ["before"]
    assert "No space left" in caplog.text
    os.close(trail._fd)
    trail._fd = good
    trail.record(message("after"))
    assert written(tmp_path) == ["before", "one", "two", "after"]
    assert trail.lost_count == 0
    await trail.stop()


async def test_what_waits_in_memory_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(trails, "MAXIMUM_UNWRITTEN", 3)
    trail = AuditTrail(tmp_path, AuditSource("gw1"))
    await trail.start()
    good, trail._fd = trail._fd, os.open("/dev/full", os.O_WRONLY)
    for name in "abcde":
        trail.record(message(name))
    os.close(trail._fd)
    trail._fd = good
    await trail.stop()
    assert written(tmp_path) == ["c", "d", "e"]
    assert trail.lost_count == 2


async def test_the_collector_gets_everything_in_order(tmp_path, free_port, quick):
    collector, names = Collector(), [f"u{number}" for number in range(500)]
    async with collector.listening(free_port):
        trail = AuditTrail(tmp_path, AuditSource("gw1"), sender=StreamSender("127.0.0.1", free_port))
        await trail.start()
        for name in names:
            trail.record(message(name))
        await trail.stop()
        assert collector.names == names
        assert not trail.undelivered


async def test_a_collector_that_is_down_gets_it_later(tmp_path, free_port, quick, caplog):
    collector = Collector()
    trail = AuditTrail(tmp_path, AuditSource("gw1"), sender=StreamSender("127.0.0.1", free_port))
    await trail.start()
    trail.record(message("early"))
    async with asyncio.timeout(WAIT_S):
        while "takes nothing" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    async with collector.listening(free_port):
        await collector.until(["early"])
        trail.record(message("late"))
        await collector.until(["late"])
    await trail.stop(0.0)


@pytest.mark.parametrize("cut_after", [1, 2, 7])
async def test_a_connection_that_breaks_loses_nothing(cut_after, tmp_path, free_port, quick):
    collector, names = Collector(), [f"u{number}" for number in range(20)]
    collector.cut_after = cut_after
    async with collector.listening(free_port):
        trail = AuditTrail(tmp_path, AuditSource("gw1"), sender=StreamSender("127.0.0.1", free_port))
        await trail.start()
        for name in names:
            trail.record(message(name))
        await collector.until(names)
        await trail.stop()


async def test_the_next_process_goes_on_where_the_last_one_was(tmp_path, free_port, quick):
    collector = Collector()
    first = AuditTrail(tmp_path, AuditSource("gw1"), sender=StreamSender("127.0.0.1", free_port))
    async with collector.listening(free_port):
        await first.start()
        first.record(message("delivered"))
        await first.stop()
    assert collector.names == ["delivered"]
    await first.start()
    first.record(message("left"))
    await first.stop(0.0)
    second = AuditTrail(tmp_path, AuditSource("gw1"), sender=StreamSender("127.0.0.1", free_port))
    async with collector.listening(free_port):
        await second.start()
        await collector.until(["left"])
        await second.stop()
    assert collector.names == ["delivered", "left"]


async def test_udp(tmp_path, free_port):
    received: asyncio.Queue[bytes] = asyncio.Queue()

    class Listener(asyncio.DatagramProtocol):
        def datagram_received(self, data, address):
            received.put_nowait(data)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Listener, local_addr=("127.0.0.1", free_port)
    )
    trail = AuditTrail(tmp_path, AuditSource("gw1"), sender=DatagramSender("127.0.0.1", free_port))
    await trail.start()
    trail.record(message("datagram"))
    async with asyncio.timeout(WAIT_S):
        assert users(await received.get()) == ["datagram"]
    await trail.stop()
    transport.close()


async def test_old_files_go_when_they_are_delivered(tmp_path, quick, until):
    old = (datetime.now(UTC) - timedelta(days=40)).strftime("%Y-%m-%d")
    recent = (datetime.now(UTC) - timedelta(days=20)).strftime("%Y-%m-%d")
    for day in (old, recent):
        (tmp_path / f"audit-{day}.log").write_bytes(b"<85>1 - - - - - - <AuditMessage></AuditMessage>\n")
    trail = AuditTrail(tmp_path, AuditSource("gw1"), keep_days=30)
    await trail.start()
    trail.record(message("new"))
    await until(lambda: not (tmp_path / f"audit-{old}.log").exists())
    assert (tmp_path / f"audit-{recent}.log").exists()
    await trail.stop()


PROGRAM = """
import asyncio, sys
from pathlib import Path
from harmony.audit.message import *
from harmony.audit.trail import AuditTrail
async def main():
    trail = AuditTrail(Path(sys.argv[1]), AuditSource("gw1"))
    await trail.start()
    number = 0
    while True:
        trail.record(Message(Event.LOGIN, Action.EXECUTE, [Participant(f"u{number}")]))
        print(number, flush=True)
        number += 1
asyncio.run(main())
"""


def test_a_kill_loses_nothing_that_was_recorded(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(300):
            last = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        last = ([last, *process.stdout.read().split()])[-1]
    count = int(last) + 1
    assert written(tmp_path)[:count] == [f"u{number}" for number in range(count)]


async def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    trail = AuditTrail(tmp_path / "file" / "audit", AuditSource("gw1"))
    with pytest.raises(OSError):
        await trail.start()
    await trail.stop()
