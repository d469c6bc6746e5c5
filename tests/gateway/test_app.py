"""Start and stop: in which order, what is undone when it fails, and one grace for everything."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace

import pytest

from harmony.gateway.app import Gateway
from harmony.gateway.errors import StartError
from harmony.gateway.greeting import greeting
from harmony.ul.errors import AssociationAborted, AssociationRejected, ConnectFailed

WAIT_S = 10.0


async def connects(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def test_greeting_names_what_to_type(bench):
    gateway = await bench.start()
    assert gateway.dicom_addresses == [("127.0.0.1", bench.dicom_port)]
    assert gateway.http_addresses == [("127.0.0.1", bench.http_port)]
    text = "\n".join(greeting(gateway))
    assert str(bench.storage) in text
    assert f"echoscu -aec GATEWAY 127.0.0.1 {bench.dicom_port}" in text
    assert f"http://127.0.0.1:{bench.http_port}/jmix/api/jmix?studyInstanceUid=UID" in text


@pytest.mark.parametrize("taken", ["dicom", "http"])
async def test_failed_start_leaves_nothing_open(taken, bench, make_instance):
    ports = {"dicom": bench.dicom_port, "http": bench.http_port}
    gateway = Gateway(bench.config())
    with socket.create_server(("127.0.0.1", ports[taken])), pytest.raises(StartError) as error:
        await gateway.start()
    assert str(error.value).startswith(f"{taken.upper()} on 127.0.0.1:{ports[taken]}: ")
    assert not await connects(ports["http" if taken == "dicom" else "dicom"])
    await bench.start()
    assert await bench.send(make_instance("1.1")) == [0]


async def test_stop_is_idempotent(bench):
    gateway = await bench.start()
    await gateway.stop(1.0)
    await gateway.stop(0.0)
    assert not await connects(bench.dicom_port)
    assert not await connects(bench.http_port)


async def test_stop_after_one_that_was_cancelled_waits_for_what_is_being_closed(bench, monkeypatch):
    gateway = await bench.start()
    (index,) = gateway.assembly.indexes.values()
    close, closing, go_on, calls = index.close, threading.Event(), threading.Event(), []

    def close_slowly():
        calls.append(None)
        closing.set()
        assert go_on.wait(WAIT_S)
        close()

    monkeypatch.setattr(index, "close", close_slowly)
    stopping = asyncio.create_task(gateway.stop(1.0))
    assert await asyncio.to_thread(closing.wait, WAIT_S)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    again = asyncio.create_task(gateway.stop(0.0))
    go_on.set()
    await again
    assert len(calls) == 1
    assert index._index is None


async def test_listeners_stop_together(bench, make_instance, until):
    """HTTP does not wait for associations, nor the other way round."""
    gateway = await bench.start()
    async with bench.associate() as scu:
        stopping = asyncio.create_task(gateway.stop(20.0))
        await until(lambda: not gateway.http_addresses)
        assert not await connects(bench.http_port)
        with pytest.raises(AssociationRejected) as rejected:
            async with bench.associate():
                pass
        answer = rejected.value
        assert (answer.result, answer.source, answer.reason) == (2, 3, 1)
        assert (await scu.store(make_instance("1.1"))).status == 0
    async with asyncio.timeout(10):
        await stopping
    with pytest.raises(ConnectFailed):
        async with bench.associate():
            pass
    assert bench.files() == ["1.1.dcm"]
    assert len(bench.envelopes()) == 1


async def test_end_of_the_grace_aborts_associations(bench, make_instance):
    gateway = await bench.start()
    async with bench.associate() as scu:
        await scu.store(make_instance("1.1"))
        await gateway.stop(0.0)
        with pytest.raises(AssociationAborted):
            await scu.store(make_instance("1.2"))
    assert bench.files() == ["1.1.dcm"]


async def test_part_that_does_not_stop_keeps_none_of_the_others(bench, caplog, monkeypatch):
    gateway = await bench.start()

    async def fail(grace_s: float) -> None:
        raise RuntimeError("a defect")

    listener = gateway.assembly.dicom[0]
    stop = listener.stop

    async def stop_and_fail(grace_s: float) -> None:
        await stop(grace_s)
        await fail(grace_s)

    monkeypatch.setattr(listener, "stop", stop_and_fail)
    gateway._running.append(replace(gateway._running[0], stop=fail))
    await gateway.stop(1.0)
    assert caplog.text.count("did not stop cleanly") == 2
    assert not await connects(bench.dicom_port)
    await bench.restart()
