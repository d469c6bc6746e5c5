"""The management API, where it is and what it says, over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys

import pytest

import harmony
from harmony.gateway.app import Gateway
from harmony.gateway.authentication import Authentications
from harmony.gateway.config import ConfigError
from harmony.gateway.errors import StartError
from harmony.gateway.greeting import greeting
from harmony.gateway.management import Management, Phase
from harmony.gateway.pipelines import assemble
from harmony.http import Router
from harmony.http.client import HTTPClient, UpstreamError


@pytest.fixture
def managed(bench):
    """On the network of everything else."""
    bench.more = """
        [management]
        enabled = true
        network = "n"
    """
    return bench


@pytest.fixture
def apart(bench, free_port):
    """On a network of its own; its port is `free_port`."""
    bench.more = f"""
        [management]
        enabled = true
        network = "admin"
        [network.admin.http]
        bind_address = "127.0.0.1"
        bind_port = {free_port}
    """
    return bench


async def ask(port: int, path: str, method: str = "GET"):
    """Status and decoded body."""
    async with HTTPClient(f"http://127.0.0.1:{port}", timeout_s=10.0) as client:
        answer = await client.request(method, path)
    return answer.status, json.loads(answer.body) if answer.body else None


# What it says


async def test_info(managed):
    await managed.start()
    status, info = await ask(managed.http_port, "/admin/info")
    assert status == 200
    assert info == {
        "version": harmony.__version__,
        "uptime": info["uptime"],
        "os": {"darwin": "macos"}.get(sys.platform, sys.platform),
        "arch": platform.machine(),
    }
    assert 0 <= info["uptime"] < 60


async def test_pipelines(managed, upstream):
    managed.upstream_port = upstream.port
    await managed.start()
    assert await ask(managed.http_port, "/admin/pipelines") == (
        200,
        {
            "pipelines": [
                {
                    "id": "p",
                    "description": "Unnamed pipeline",
                    "networks": ["n"],
                    "endpoints": ["scp"],
                    "backends": ["up"],
                    "middleware": ["jmix_builder"],
                },
                {
                    "id": "q",
                    "description": "Unnamed pipeline",
                    "networks": ["n"],
                    "endpoints": ["jmix"],
                    "backends": [],
                    "middleware": [],
                },
            ]
        },
    )


async def test_routes(managed):
    await managed.start()
    status, body = await ask(managed.http_port, "/admin/routes")
    assert status == 200
    routes = body["routes"]
    assert [(each["path"], each["methods"]) for each in routes] == [
        ("/admin/info", ["GET"]),
        ("/admin/pipelines", ["GET"]),
        ("/admin/reload", ["POST"]),
        ("/admin/routes", ["GET"]),
        ("/api/reload", ["POST"]),
        ("/health", ["GET"]),
        ("/jmix/api/jmix", ["GET"]),
        ("/jmix/api/jmix", ["POST"]),
        ("/jmix/api/jmix/prime/{study_uid}", ["GET"]),
        ("/jmix/api/jmix/{id}", ["GET"]),
        ("/jmix/api/jmix/{id}/manifest", ["GET"]),
        ("/metrics", ["GET"]),
    ]
    assert routes[0] == {
        "path": "/admin/info",
        "methods": ["GET"],
        "description": "version and uptime",
        "endpoint_name": "management",
        "service_type": "management",
        "pipeline": "management",
    }
    assert routes[6] == {
        "path": "/jmix/api/jmix",
        "methods": ["GET"],
        "description": "envelope of a study",
        "endpoint_name": "jmix",
        "service_type": "jmix",
        "pipeline": "q",
    }


@pytest.mark.parametrize("path", ["/admin", "/admin/authorize", "/info", "/health/x", "/api/info"])
async def test_other_paths_are_not_found(path, managed):
    await managed.start()
    assert await ask(managed.http_port, path) == (404, {"error": "Not found"})


async def test_other_methods_are_not_allowed(managed):
    await managed.start()
    for path in ("/health", "/metrics", "/admin/info"):
        assert (await ask(managed.http_port, path, "POST"))[0] == 405
        assert await ask(managed.http_port, path, "HEAD") == (200, None)


# Where it is


@pytest.mark.parametrize("base_path", ["ops", "/ops/", "/ops"])
async def test_base_path(base_path, managed):
    managed.more += f'base_path = "{base_path}"'
    await managed.start()
    assert (await ask(managed.http_port, "/ops/info"))[0] == 200
    assert (await ask(managed.http_port, "/admin/info"))[0] == 404
    assert (await ask(managed.http_port, "/health"))[0] == 200


async def test_no_base_path(managed):
    managed.more += 'base_path = ""'
    await managed.start()
    assert (await ask(managed.http_port, "/info"))[0] == 200


async def test_on_its_own_network(apart, free_port):
    gateway = await apart.start()
    assert gateway.http_addresses == [("127.0.0.1", apart.http_port), ("127.0.0.1", free_port)]
    for path in ("/admin/info", "/admin/routes", "/health"):
        assert (await ask(free_port, path))[0] == 200
        assert (await ask(apart.http_port, path))[0] == 404
    assert (await ask(free_port, "/jmix/api/jmix"))[0] == 404
    paths = [each["path"] for each in (await ask(free_port, "/admin/routes"))[1]["routes"]]
    assert "/jmix/api/jmix/{id}" in paths


ENDPOINT = """
    [pipelines.m]
    networks = ["n"]
    endpoints = ["ops"]
    [endpoints.ops]
    service = "management"
    options.base_path = "ops"
"""


async def test_as_an_endpoint_of_a_pipeline(bench):
    bench.more = ENDPOINT
    await bench.start()
    assert (await ask(bench.http_port, "/ops/info"))[0] == 200
    assert await ask(bench.http_port, "/health") == (
        200,
        {"status": "ok", "version": harmony.__version__, "problems": {}},
    )
    _, body = await ask(bench.http_port, "/ops/routes")
    (info,) = (each for each in body["routes"] if each["path"] == "/ops/info")
    assert (info["endpoint_name"], info["service_type"], info["pipeline"]) == ("ops", "management", "m")


async def test_both_ways_on_one_network(managed):
    managed.more += ENDPOINT
    await managed.start()
    for path in ("/ops/info", "/admin/info", "/health"):
        assert (await ask(managed.http_port, path))[0] == 200


def test_same_base_path_twice_is_an_error(managed):
    managed.more += ENDPOINT.replace('base_path = "ops"', 'base_path = "/admin"')
    with pytest.raises(ConfigError) as error:
        managed.config()
    assert "[endpoints.ops] options.base_path: " in str(error.value)
    assert 'is "/admin", which the management API already has on network "n"' in str(error.value)


def test_base_path_that_an_endpoint_has_is_an_error(managed):
    managed.more = managed.more.replace(
        "enabled = true", 'enabled = true\nbase_path = "/jmix/api/jmix/prime"'
    )
    assemble(managed.config())  # literals beside a parameter are no conflict
    managed.more = managed.more.replace("/prime", "")
    with pytest.raises(ConfigError) as error:
        managed.config()
    assert "[endpoints.jmix] options.path_prefix: " in str(error.value)
    assert "which the management API already has on network" in str(error.value)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/admin/info"])
def test_route_that_is_taken_is_an_error(path, managed):
    async def other(request):
        raise AssertionError

    router = Router()
    router.add(["GET", "POST"], path, other, name="other")
    with pytest.raises(ConfigError) as error:
        Management(managed.config()).add_routes({"n": router}, Authentications())
    assert "[management] base_path: cannot be served: " in str(error.value)
    assert f"GET {path} of management is already taken by {path} of other" in str(error.value)


def test_network_is_required(bench):
    bench.more = "[management]\nenabled = true"
    with pytest.raises(
        ConfigError, match=r"\[management\] network: is missing, must be the name of a network"
    ):
        bench.config()


async def test_greeting(apart, free_port):
    gateway = await apart.start()
    text = "\n".join(greeting(gateway))
    url = f"http://127.0.0.1:{free_port}"
    assert f"  ADMIN  {url}/admin, {url}/health, {url}/metrics\n         try: curl {url}/health" in text


# Health


async def test_full_disk_is_no_health(managed):
    managed.config()
    text = (managed.folder / "config.toml").read_text()
    text = text.replace("min_free_bytes = 0", f"min_free_bytes = {2**60}")
    managed.gateway = Gateway(managed.load_config(text))
    await managed.gateway.start()
    status, body = await ask(managed.http_port, "/health")
    assert status == 503
    assert body["status"] == "failing"
    assert body["problems"] == {"pipeline p": f"less than {2**60} bytes are free"}


async def test_storage_folder_that_is_gone(managed):
    await managed.start()
    os.rename(managed.storage / "dimse", managed.storage / "elsewhere")
    status, body = await ask(managed.http_port, "/health")
    assert (status, body["problems"]) == (
        503,
        {"pipeline p": "the storage folder cannot be used: No such file or directory"},
    )


async def test_upstream_that_is_down_is_no_problem(apart, free_ports, free_port, make_instance):
    (apart.upstream_port,) = free_ports(1)
    await apart.start()
    await apart.send(make_instance("1.1"))
    assert (await ask(free_port, "/health"))[0] == 200


async def test_builder_that_ended(managed):
    gateway = await managed.start()
    *_, builder = gateway.assembly.backends
    builder._bookkeeper.cancel()
    await asyncio.wait({builder._bookkeeper})
    status, body = await ask(managed.http_port, "/health")
    assert (status, body["problems"]) == (503, {"pipeline p": "keeping books has ended"})


async def test_own_network_answers_until_the_gateway_has_stopped(apart, free_port, until):
    gateway = await apart.start()
    async with apart.associate():
        stopping = asyncio.create_task(gateway.stop(20.0))
        await until(lambda: gateway.assembly.management.phase is Phase.STOPPING)
        status, body = await ask(free_port, "/health")
        assert (status, body["status"]) == (503, "stopping")
        async with HTTPClient(f"http://127.0.0.1:{free_port}", timeout_s=10.0) as client:
            answer = await client.request("GET", "/metrics")
        assert b'harmony_associations_open{component="endpoint",name="scp"} 1.0' in answer.body
    await stopping
    with pytest.raises(UpstreamError):
        await ask(free_port, "/health")


async def test_own_network_answers_before_the_gateway_has_started(apart, free_port):
    gateway = Gateway(apart.config())
    *_, backend = gateway.assembly.backends
    starting, start = asyncio.Event(), asyncio.Event()
    real_start = backend.start

    async def slow_start() -> None:
        starting.set()
        await start.wait()
        await real_start()

    backend.start = slow_start
    apart.gateway = gateway
    started = asyncio.create_task(gateway.start())
    await starting.wait()
    status, body = await ask(free_port, "/health")
    assert (status, body["status"]) == (503, "starting")
    async with HTTPClient(f"http://127.0.0.1:{free_port}", timeout_s=10.0) as client:
        assert (await client.request("GET", "/metrics")).status == 200
    start.set()
    await started
    assert (await ask(free_port, "/health"))[0] == 200


async def test_failed_start_closes_it_again(apart, free_port):
    gateway = Gateway(apart.config())
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", apart.dicom_port)
    try:
        with pytest.raises(StartError):
            await gateway.start()
    finally:
        server.close()
        await server.wait_closed()
    with pytest.raises(UpstreamError):
        await ask(free_port, "/health")
