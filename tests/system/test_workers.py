"""SIGKILL of workers, and of the process that has them, at random moments of a flood: what was acknowledged is there,
byte for byte, and is found."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path

import pytest

from harmony.http.client import HTTPClient
from tests.faults.program import Archive, received

WAIT_S = 20.0


class Workers(Archive):
    """An archive with two workers."""

    async def start(self) -> str:
        if not self.config.read_text().startswith("workers"):
            self.config.write_text("workers = 2\n" + self.config.read_text())
        return await super().start()

    def worker_ids(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


@pytest.fixture
async def archive(tmp_path, free_ports, processes):
    port, http_port = free_ports(2)
    archive = Workers(tmp_path, port=port, http_port=http_port)
    processes.append(archive)
    return archive


async def found(archive) -> set[str]:
    async with HTTPClient(f"http://127.0.0.1:{archive.http_port}", timeout_s=WAIT_S) as client:
        answer = await client.request("GET", "/dicom-web/instances?limit=10000")
    assert answer.status in (200, 204), answer.status
    return {each["00080018"]["Value"][0] for each in json.loads(answer.body or b"[]")}


def assert_all_there(archive, flood) -> None:
    sent = {instance.sop_instance_uid: instance.data for instance in flood.instances}
    there = dict(received(archive.root))
    assert all(data == sent[uid] for uid, data in there.items())
    assert flood.acknowledged.keys() <= there.keys()


async def until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(WAIT_S):
        while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_workers_are_killed(archive, durability, instances, make_flood):
    if durability == "fsync":
        text = archive.config.read_text()
        archive.config.write_text(text.replace("min_free_bytes", 'durability = "fsync"\nmin_free_bytes'))
    await archive.start()
    choice = random.Random(7)
    flood = make_flood(archive.port, instances(400))
    moments = sorted(choice.sample(range(20, 700), 6))
    killed: asyncio.Queue[int] = asyncio.Queue()

    def on_event(events: int) -> None:
        if moments and events >= moments[0] and flood.up.is_set():
            moments.pop(0)
            victim = choice.choice(archive.worker_ids())
            os.kill(victim, signal.SIGKILL)
            flood.cut()  # answers that are on their way are lost; and which worker has whom nobody knows here
            killed.put_nowait(victim)

    async def wait_for_another() -> None:
        while True:
            victim = await killed.get()
            async with asyncio.timeout(WAIT_S):
                while victim in archive.worker_ids() or len(archive.worker_ids()) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            flood.up.set()

    flood.on_event = on_event
    flood.up.set()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(wait_for_another())
        await flood.run()
        waiting.cancel()
    assert not moments
    assert len(flood.acknowledged) == 400
    assert await found(archive) >= flood.acknowledged.keys()
    assert_all_there(archive, flood)
    assert "Traceback" not in archive.log.read_text()
    archive.terminate()
    assert await archive.wait() == 0
    assert list((archive.root / ".index").glob("worker-*")) == []


async def test_the_first_process_is_killed(archive, instances, make_flood):
    await archive.start()
    choice = random.Random(11)
    flood = make_flood(archive.port, instances(300))
    moments = sorted(choice.sample(range(20, 500), 3))
    killed: asyncio.Queue[list[int]] = asyncio.Queue()

    def on_event(events: int) -> None:
        if moments and events >= moments[0] and flood.up.is_set():
            moments.pop(0)
            pids = archive.worker_ids()
            archive.kill()
            flood.cut()
            killed.put_nowait(pids)

    async def restart() -> None:
        while True:
            pids = await killed.get()
            await archive.restart()  # which waits for workers that outlive the first process
            await until_gone(pids)
            flood.up.set()

    flood.on_event = on_event
    flood.up.set()
    async with asyncio.TaskGroup() as group:
        restarting = group.create_task(restart())
        await flood.run()
        restarting.cancel()
    assert not moments
    assert await found(archive) >= flood.acknowledged.keys()
    assert_all_there(archive, flood)


async def test_told_to_stop_during_a_flood(archive, instances, make_flood):
    """What is open ends as it should, then all of them are gone."""
    await archive.start()
    pids = archive.worker_ids()
    assert len(pids) == 2
    flood = make_flood(archive.port, instances(120), per_association=30)

    def on_event(events: int) -> None:
        if events == 60:
            archive.terminate()
            flood.up.clear()  # no further associations

    flood.on_event = on_event
    flood.up.set()
    running = asyncio.create_task(flood.run())
    assert await archive.wait() == 0
    await until_gone(pids)
    assert_all_there(archive, flood)
    await archive.start()
    flood.up.set()
    await running
    assert await found(archive) == {instance.sop_instance_uid for instance in flood.instances}
    assert_all_there(archive, flood)


async def test_another_configuration_during_a_flood(archive, instances, make_flood):
    await archive.start()
    pids = archive.worker_ids()
    flood = make_flood(archive.port, instances(300))
    text = archive.config.read_text()

    def on_event(events: int) -> None:
        if events % 100 == 0:
            extra = f"max_object_bytes = {10_000_000 + events}"
            archive.config.write_text(text.replace("min_free_bytes = 0", f"min_free_bytes = 0\n{extra}"))
            os.kill(archive.pid, signal.SIGHUP)

    flood.on_event = on_event
    flood.up.set()
    await flood.run()
    assert archive.worker_ids() == pids
    assert len(flood.acknowledged) == 300
    assert await found(archive) == flood.acknowledged.keys()
    assert "Traceback" not in archive.log.read_text()
