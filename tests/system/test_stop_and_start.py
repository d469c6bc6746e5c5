"""SIGTERM with work under way (R40), and everything that may keep the gateway from starting."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harmony.dimse import Instance, associate
from harmony.http import Request, Response
from harmony.ul.errors import AssociationAborted, AssociationRejected, ConnectFailed, ConnectionLost
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
ROOT = Path(__file__).parents[2]


def open_association(port: int):
    return associate(
        "127.0.0.1", port, called_ae_title="GATEWAY", contexts=propose_contexts([(CT, [IMPLICIT])])
    )


class SlowStores:
    """Stores of which half a data set has been sent, over an association each."""

    def __init__(self, port: int, instances: list[Instance]) -> None:
        self.port = port
        self.instances = instances
        self.go_on = asyncio.Event()
        self.begun = asyncio.Semaphore(0)
        self.outcomes: list[object] = []

    async def store(self, instance: Instance) -> None:
        async def halves():
            data = bytes(instance.data)
            yield data[: len(data) // 2]
            self.begun.release()
            await self.go_on.wait()
            yield data[len(data) // 2 :]

        try:
            async with open_association(self.port) as scu:
                slow = Instance(CT, instance.sop_instance_uid, IMPLICIT, halves())
                self.outcomes.append((await scu.store(slow)).status)
        except (AssociationAborted, ConnectionLost) as error:
            self.outcomes.append(type(error))

    async def __aenter__(self) -> SlowStores:
        self.tasks = [asyncio.create_task(self.store(instance)) for instance in self.instances]
        for _ in self.tasks:
            await self.begun.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go_on.set()
        await asyncio.gather(*self.tasks)


async def until_rejected(port: int) -> AssociationRejected:
    """The signal takes a moment; those that come before it are accepted."""
    while True:
        try:
            async with open_association(port):
                pass
        except AssociationRejected as error:
            return error


async def until_closed(port: int) -> None:
    while True:
        try:
            async with open_association(port):
                pass
        except AssociationRejected:
            pass
        except (ConnectFailed, ConnectionLost, AssociationAborted):
            return


async def test_r40_sigterm_lets_ten_stores_finish_and_rejects_new_associations(
    tmp_path, free_ports, processes, instances, make_gateway, make_upstream
):
    gateway_port, upstream_port = free_ports(2)
    gateway = make_gateway(tmp_path / "gateway", port=gateway_port, upstream_port=upstream_port)
    upstream = make_upstream(tmp_path / "upstream", port=upstream_port)
    processes += [gateway, upstream]
    await gateway.start()
    active = instances(10)
    async with SlowStores(gateway_port, active) as stores:
        gateway.terminate()
        rejected = await until_rejected(gateway_port)
        assert (rejected.result, rejected.source, rejected.reason) == (2, 3, 1)  # transient, congestion
    assert stores.outcomes == [0x0000] * 10
    assert await gateway.wait() == 0
    with pytest.raises(ConnectFailed):
        async with open_association(gateway_port):
            pass
    await upstream.start()  # which was not there: everything waited in the outbox
    await gateway.start()
    await gateway.until_idle()
    assert sorted(uid for _, uid, _ in upstream.objects()) == sorted(each.sop_instance_uid for each in active)
    assert "Traceback" not in gateway.log.read_text()


async def test_r40_second_signal_cuts_the_grace_short(
    tmp_path, free_ports, processes, instances, make_gateway
):
    gateway_port, upstream_port = free_ports(2)
    gateway = make_gateway(tmp_path, port=gateway_port, upstream_port=upstream_port)
    processes.append(gateway)
    await gateway.start()
    async with asyncio.timeout(15), SlowStores(gateway_port, instances(3)) as stores:
        gateway.terminate()
        await until_rejected(gateway_port)
        gateway.terminate()
        assert await gateway.wait() == 0
    assert 0x0000 not in stores.outcomes
    assert list(gateway.received()) == []
    assert "Traceback" not in gateway.log.read_text()


async def test_sigterm_during_an_upload_that_hangs(
    tmp_path, free_ports, processes, instances, make_gateway, make_flood, upstream_server
):
    gateway_port, upstream_port = free_ports(2)
    gateway = make_gateway(tmp_path, port=gateway_port, upstream_port=upstream_port)
    processes.append(gateway)
    await gateway.start()
    arrived = asyncio.Event()
    answers = itertools.chain([None], itertools.repeat(201))

    async def upload(request: Request) -> Response:
        async for _ in request.body:
            pass
        arrived.set()
        status = next(answers)
        if status is None:
            await asyncio.get_running_loop().create_future()
        return Response(status or 500)

    await upstream_server(upstream_port, upload)
    flood = make_flood(gateway_port, instances(5))
    flood.up.set()
    await flood.run()
    await arrived.wait()
    gateway.terminate()
    await until_closed(gateway_port)
    async with asyncio.timeout(10):
        gateway.terminate()  # cuts the grace short that the upload has
        assert await gateway.wait() == 0
    await gateway.start()
    await gateway.until_idle()


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harmony", "--config", str(config), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_dicom_port_that_is_taken(tmp_path, make_gateway):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = make_gateway(tmp_path, port=port, upstream_port=9)
        ended = run(gateway.config)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"cannot start: DICOM on 127.0.0.1:{port}: ")
    assert "address already in use" in line.lower()


def test_http_port_that_is_taken(tmp_path, make_upstream):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(make_upstream(tmp_path, port=port).config)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"cannot start: HTTP on 127.0.0.1:{port}: ")


def test_log_file_that_cannot_be_written(tmp_path, make_upstream, free_port):
    upstream = make_upstream(tmp_path, port=free_port)
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "harmony.log"
    upstream.config.write_text(
        f'logging.log_to_file = true\nlogging.log_file_path = "{path}"\n' + upstream.config.read_text()
    )
    ended = run(upstream.config)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cannot start: the log file: ")
    assert str(tmp_path / "file") in line


def test_storage_that_cannot_be_written(tmp_path, make_upstream, make_gateway, free_port):
    (tmp_path / "file").write_text("")
    for make in (
        lambda: make_upstream(tmp_path / "upstream", port=free_port),
        lambda: make_gateway(
            tmp_path / "gateway", port=free_port, upstream_port=9, storage=tmp_path / "file" / "storage"
        ),
    ):
        process = make()
        text = process.config.read_text().replace(str(process.storage), str(tmp_path / "file" / "storage"))
        process.config.write_text(text)
        ended = run(process.config)
        assert (ended.returncode, ended.stdout) == (1, "")
        (line,) = ended.stderr.splitlines()
        assert line.startswith("cannot start: ")
        assert str(tmp_path / "file" / "storage") in line


async def until_logged(process, text: str) -> None:
    while text not in process.log.read_text():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_hang_up_loads_the_configuration_again(tmp_path, make_gateway, processes, free_port, instances):
    gateway = make_gateway(tmp_path, port=free_port, upstream_port=9)
    good = 'logging.log_level = "info"\n' + gateway.config.read_text()
    gateway.config.write_text(good)
    processes.append(gateway)
    await gateway.start()
    (instance,) = instances(1)
    async with asyncio.timeout(30), open_association(free_port) as begun:
        gateway.config.write_text("[oops")
        gateway.process.send_signal(signal.SIGHUP)
        await until_logged(gateway, "nothing has changed: 1 error in the configuration")
        gateway.config.write_text(good.replace('"GATEWAY"', '"RENAMED"'))
        gateway.process.send_signal(signal.SIGHUP)
        await until_logged(gateway, "the configuration was reloaded")
        with pytest.raises(AssociationRejected):
            async with open_association(free_port):
                pass
        assert (await begun.store(instance)).status == 0
    gateway.terminate()
    assert await gateway.wait() == 0


def test_damaged_outbox_is_named(tmp_path, make_gateway, free_port):
    gateway = make_gateway(tmp_path, port=free_port, upstream_port=9)
    gateway.outbox_path.parent.mkdir(parents=True)
    gateway.outbox_path.write_bytes(b"this is not a database" * 100)
    ended = run(gateway.config)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cannot start: pipeline p, ")
    assert "not a database" in line
