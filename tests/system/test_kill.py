"""SIGKILL at random moments of a flood: what was acknowledged is upstream, once, byte for byte.

Responses that are on their way in that moment are lost, as they are when a host goes down; the sender repeats those
objects. (Without that the kernel delivers them, and hardly ever is an object stored whose sender does not know it.)

A moment is a number of events (a store begins, a store is acknowledged), drawn with a fixed seed; what the gateway is
doing for the other associations, for envelopes and uploads in that moment is up to it.
"""

from __future__ import annotations

import asyncio
import collections
import io
import itertools
import os
import random
import signal
import zipfile
from pathlib import Path

import pytest

from harmony.http import Request, Response


def assert_nothing_partial(gateway, instances) -> None:
    sent = {instance.sop_instance_uid: instance.data for instance in instances}
    for sop_instance_uid, data in gateway.received():
        assert data == sent[sop_instance_uid], f"{sop_instance_uid}: {len(data)} bytes"


def assert_delivered_once(upstream, acknowledged) -> None:
    found = collections.defaultdict(list)
    for envelope_id, sop_instance_uid, data in upstream.objects():
        found[sop_instance_uid].append(envelope_id)
        assert data == acknowledged[sop_instance_uid].data
    assert {uid: envelopes for uid, envelopes in found.items() if len(envelopes) > 1} == {}
    assert found.keys() == acknowledged.keys()


@pytest.mark.parametrize(
    ("seed", "victims", "kills", "scp", "window"),
    [
        (1, "gateway", 20, "", 1),
        (2, "gateway", 8, 'durability = "fsync"\nmax_operations = 4', 4),
        (3, "either", 12, "", 1),
    ],
    ids=["gateway", "gateway-fsync-window", "either-or-both"],
)
async def test_flood(
    seed,
    victims,
    kills,
    scp,
    window,
    tmp_path,
    free_ports,
    processes,
    instances,
    make_gateway,
    make_upstream,
    make_flood,
):
    choice = random.Random(seed)
    gateway_port, upstream_port = free_ports(2)
    upstream = make_upstream(tmp_path / "upstream", port=upstream_port)
    gateway = make_gateway(
        tmp_path / "gateway",
        port=gateway_port,
        upstream_port=upstream_port,
        scp=scp,
        builder="quiet_time_secs = 0.05",
    )
    processes += [upstream, gateway]
    await upstream.start()
    await gateway.start()

    killed: asyncio.Queue[list] = asyncio.Queue()
    flood = make_flood(gateway_port, instances(25 * kills + 100), window=window)
    # Half of them come right after the restart: a second crash while the first is being dealt with.
    gaps = [choice.randint(1, 6) if choice.random() < 0.5 else choice.randint(10, 60) for _ in range(kills)]
    moments = itertools.accumulate(gaps)
    next_moment = next(moments)

    all_run = [True]

    def on_event(events: int) -> None:
        nonlocal next_moment
        if events >= next_moment and all_run:
            all_run.clear()
            next_moment = next(moments, float("inf"))
            who = (
                [gateway]
                if victims == "gateway"
                else choice.choice([[gateway], [upstream], [gateway, upstream]])
            )
            for process in who:
                process.kill()
            if gateway in who:
                flood.cut()
            else:
                flood.up.clear()  # the open associations go on
            killed.put_nowait(who)

    async def restart_what_is_killed() -> None:
        while True:
            who = await killed.get()
            for process in who:
                await process.wait()
            assert_nothing_partial(gateway, flood.instances)
            for process in who:
                await process.start()
            all_run.append(True)
            flood.up.set()

    flood.on_event = on_event
    flood.up.set()
    async with asyncio.TaskGroup() as group:
        restarting = group.create_task(restart_what_is_killed())
        await flood.run()
        restarting.cancel()
    assert next_moment == float("inf"), "not all kills happened"
    assert len(flood.acknowledged) == len(flood.instances)
    await gateway.until_idle()
    assert_nothing_partial(gateway, flood.instances)
    assert_delivered_once(upstream, flood.acknowledged)


async def send_all(flood) -> None:
    flood.up.set()
    await flood.run()


async def test_in_the_middle_of_an_upload(
    tmp_path, free_ports, processes, instances, make_gateway, make_flood, upstream_server
):
    gateway_port, upstream_port = free_ports(2)
    gateway = make_gateway(tmp_path, port=gateway_port, upstream_port=upstream_port)
    processes.append(gateway)
    await gateway.start()
    tries: list[str] = []
    kept: list[bytes] = []
    killed: asyncio.Queue[None] = asyncio.Queue()

    async def never() -> Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def upload(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.body:
            body += chunk
            if not tries:  # something of it has arrived
                tries.append("cut short")
                gateway.kill()
                killed.put_nowait(None)
                return await never()
        if kept:
            tries.append("again")
            assert bytes(body) == kept[0]
            return Response(409)
        tries.append("unanswered")
        kept.append(bytes(body))
        gateway.kill()
        killed.put_nowait(None)
        return await never()

    await upstream_server(upstream_port, upload)
    flood = make_flood(
        gateway_port, instances(100, smallest=100_000, largest=100_000, studies=1), associations=1
    )
    flood.per_association = 1000
    sending = asyncio.create_task(send_all(flood))
    for _ in range(2):
        await killed.get()
        await gateway.wait()
        await sending
        await gateway.start()
    await gateway.until_idle()
    assert tries == ["cut short", "unanswered", "again"]
    with zipfile.ZipFile(io.BytesIO(kept[0])) as archive:
        names = [name for name in archive.namelist() if name.endswith(".dcm")]
    assert len(names) == len(flood.acknowledged) == 100


async def test_while_an_envelope_is_built(
    tmp_path, free_ports, processes, instances, make_gateway, make_upstream, make_flood
):
    gateway_port, upstream_port = free_ports(2)
    upstream = make_upstream(tmp_path / "upstream", port=upstream_port)
    gateway = make_gateway(
        tmp_path / "gateway",
        port=gateway_port,
        upstream_port=upstream_port,
        builder='compression = "deflate"',  # takes its time
    )
    processes += [upstream, gateway]
    await gateway.start()
    flood = make_flood(
        gateway_port, instances(100, smallest=200_000, largest=200_000, studies=1), associations=1
    )
    flood.per_association = 1000
    stopped: list[int] = []  # the packing process, so that it does not build the envelope before the kill

    def on_event(events: int) -> None:
        if not stopped:
            stopped.extend(children(gateway.process.pid))
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)

    flood.on_event = on_event
    await send_all(flood)
    store = gateway.storage / "jmix-store"
    journals = gateway.storage / "jmix-builder" / "p" / "journals"
    for _ in range(3):
        async with asyncio.timeout(20):
            while not list(store.glob("*/*.zip.tmp")):
                on_event(0)
                if stopped and list(journals.glob("*.closed")):
                    break
                await asyncio.sleep(0)
        gateway.kill()
        await gateway.wait()
        assert list(store.glob("*/*.zip")) == []
        await gateway.start()
        while stopped:  # it goes on with what it was asked for, and finds that nobody waits for it
            os.kill(stopped.pop(), signal.SIGCONT)
    await upstream.start()
    await gateway.until_idle()
    assert_delivered_once(upstream, flood.acknowledged)
    assert list(store.glob("*/*.tmp")) == []


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
