"""Another configuration for a gateway that runs: what ends under the old one, what is answered by the new one, and
that one which cannot be used changes nothing."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from harmony.dimse import SCU, associate
from harmony.gateway.app import Gateway
from harmony.gateway.config import ConfigError
from harmony.gateway.errors import StartError
from harmony.http.client import HTTPClient
from harmony.ul.errors import AssociationRejected, ConnectFailed
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"


@dataclass
class Site:
    """A configuration that is written again and again. Its gateway has a DICOM endpoint and an echo endpoint."""

    folder: Path
    load_config: object
    dicom_port: int
    http_port: int
    other_port: int
    title: str = "FIRST"
    prefix: str = "/first"
    scp: str = ""
    builder: str = ""
    middleware: str = "[]"
    dicom: str = ""
    more: str = ""
    gateway: Gateway | None = None

    def load(self):
        return self.load_config(
            f"""
            [proxy]
            id = "site"
            [storage.options]
            path = "{self.folder / "storage"}"
            [management]
            enabled = true
            network = "n"
            [network.n.dicom]
            bind_address = "127.0.0.1"
            bind_port = {self.dicom_port}
            {self.dicom}
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {self.http_port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp"]
            middleware = {self.middleware}
            [endpoints.scp]
            service = "dicom_scp"
            [endpoints.scp.options]
            local_aet = "{self.title}"
            min_free_bytes = 0
            {self.scp}
            [middleware.jmix_builder.options]
            {self.builder}
            [pipelines.q]
            networks = ["n"]
            endpoints = ["echo"]
            [endpoints.echo]
            service = "echo"
            options.path_prefix = "{self.prefix}"
            {self.more}
            """
        )

    async def start(self) -> Gateway:
        self.gateway = Gateway(self.load(), load=self.load)
        await self.gateway.start()
        return self.gateway

    def associate(self, title: str, port: int | None = None):
        return associate(
            "127.0.0.1",
            port or self.dicom_port,
            called_ae_title=title,
            contexts=propose_contexts([(CT, [IMPLICIT])]),
        )

    def files(self, folder: str = "dimse") -> list[str]:
        return sorted(path.name for path in (self.folder / "storage" / folder).glob("*/*/*"))


@pytest.fixture
async def site(tmp_path, load_config, free_ports):
    dicom_port, http_port, other_port = free_ports(3)
    site = Site(tmp_path, load_config, dicom_port, http_port, other_port)
    yield site
    if site.gateway is not None:
        await site.gateway.stop(0.0)


@pytest.fixture
async def client(site):
    client = HTTPClient(f"http://127.0.0.1:{site.http_port}", timeout_s=10.0)
    yield client
    await client.aclose()


async def status(client: HTTPClient, method: str, path: str) -> int:
    return (await client.request(method, path)).status


async def rejected(site: Site, title: str) -> bool:
    try:
        async with site.associate(title):
            return False
    except AssociationRejected:
        return True


async def stores(scu: SCU, instance) -> int:
    return (await scu.store(instance)).status


async def test_what_was_begun_ends_as_it_began(site, client, make_instance, until):
    gateway = await site.start()
    old = gateway.assembly.backends[0]
    async with site.associate("FIRST") as begun:
        assert await stores(begun, make_instance("1.1")) == 0
        site.title, site.prefix, site.scp = "SECOND", "/second", f'storage_dir = "{site.folder}/storage/new"'
        await gateway.reload()
        assert await rejected(site, "FIRST")
        async with site.associate("SECOND") as new:
            assert await stores(new, make_instance("1.2")) == 0
        assert await stores(begun, make_instance("1.3")) == 0
        assert old.problem() is None
    assert site.files() == ["1.1.dcm", "1.3.dcm"]
    assert site.files("new") == ["1.2.dcm"]
    await until(lambda: old.problem() == "the archive is closed")
    assert await status(client, "GET", "/first") == 404
    assert await status(client, "GET", "/second") == 200


async def test_what_is_the_same_stays(site, client):
    site.middleware = '["jmix_builder"]'
    gateway = await site.start()
    before = gateway.assembly
    assert await status(client, "GET", "/first") == 200
    site.prefix = "/second"
    await gateway.reload()
    after = gateway.assembly
    assert after is not before
    assert after.backends == before.backends
    assert after.indexes == before.indexes
    assert after.dicom[0].server is before.dicom[0].server
    assert after.management is not None
    assert before.management is not None
    assert after.management.metrics is before.management.metrics
    assert await status(client, "GET", "/second") == 200


async def test_an_address_moves(site, make_instance):
    gateway = await site.start()
    first_port = site.dicom_port
    async with site.associate("FIRST") as begun:
        site.dicom_port = site.other_port
        await gateway.reload()
        assert gateway.dicom_addresses == [("127.0.0.1", site.other_port)]
        with pytest.raises(ConnectFailed):
            async with site.associate("FIRST", first_port):
                pass
        async with site.associate("FIRST") as new:
            assert await stores(new, make_instance("1.2")) == 0
        assert await stores(begun, make_instance("1.1")) == 0
    assert site.files() == ["1.1.dcm", "1.2.dcm"]


async def test_an_endpoint_that_is_not_there_any_more_serves_whom_it_has(site, make_instance):
    gateway = await site.start()
    async with site.associate("FIRST") as begun:
        site.load = lambda: site.load_config(  # type: ignore[method-assign]
            f"""
            [proxy]
            id = "site"
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {site.http_port}
            [pipelines.q]
            networks = ["n"]
            endpoints = ["echo"]
            [endpoints.echo]
            service = "echo"
            options.path_prefix = "/"
            """
        )
        gateway._load = site.load
        await gateway.reload()
        assert gateway.dicom_addresses == []
        assert await stores(begun, make_instance("1.1")) == 0
    assert site.files() == ["1.1.dcm"]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"prefix": "no slash\\u0000"}, ConfigError, "path_prefix"),
        ({"more": "[oops"}, ConfigError, "config.toml"),
        ({"builder": 'group = "instance"'}, ConfigError, "takes a restart"),
        ({"scp": 'durability = "fsync"'}, ConfigError, "takes a restart"),
        ({"dicom_port": "taken"}, StartError, "DICOM on 127.0.0.1:"),
        ({"http_port": "taken"}, StartError, "HTTP on 127.0.0.1:"),
        ({"dicom": 'cert_path = "{0}/c.pem"\nkey_path = "{0}/c.pem"'}, StartError, "DICOM on 127.0.0.1:"),
        (
            {"scp": 'storage_dir = "{0}/file/below"\nindex = false', "middleware": "[]"},
            StartError,
            "the storage folder .*file",
        ),
    ],
    ids=["key", "syntax", "builder", "index", "dicom port", "http port", "certificate", "folder"],
)
async def test_what_cannot_be_used_changes_nothing(change, error, says, site, client, make_instance):
    site.middleware = '["jmix_builder"]'
    gateway = await site.start()
    before, routers, addresses = gateway.assembly, gateway._routers, gateway.dicom_addresses
    (site.folder / "c.pem").write_text("no certificate")
    (site.folder / "file").touch()
    async with site.associate("FIRST") as begun:
        with socket.create_server(("127.0.0.1", 0)) as other:
            for key, value in {"title": "SECOND", **change}.items():
                taken = other.getsockname()[1]
                setattr(site, key, taken if value == "taken" else str(value).replace("{0}", str(site.folder)))
            with pytest.raises(error, match=says):
                await gateway.reload()
        assert gateway.assembly is before
        assert gateway._routers is routers
        assert await stores(begun, make_instance("1.1")) == 0
    assert gateway.dicom_addresses == addresses
    async with site.associate("FIRST", addresses[0][1]) as scu:
        assert await stores(scu, make_instance("1.2")) == 0
    assert await status(client, "GET", "/first") == 200
    assert site.files() == ["1.1.dcm", "1.2.dcm"]


async def test_a_body_that_is_being_sent_is_sent_to_its_end(site, until):
    gateway = await site.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.http_port)
    writer.write(b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
    await until(lambda: gateway._requests._count == 1)
    site.prefix = "/second"
    await gateway.reload()
    (retiring,) = gateway._retiring
    assert not retiring.done()
    writer.write(b"def")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    await asyncio.wait({retiring})
    writer.write(b"GET /first HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"HTTP/1.1 404 " in await reader.read()
    writer.close()


async def test_what_cannot_be_there_twice_waits_for_its_last_association(site, make_instance):
    site.middleware = '["jmix_builder"]'
    gateway = await site.start()
    async with site.associate("FIRST") as begun:
        assert await stores(begun, make_instance("1.1")) == 0
        site.middleware = "[]"
        await gateway.reload()
        site.middleware = '["jmix_builder"]'
        with pytest.raises(ConfigError, match="which associations of an earlier configuration still use"):
            await gateway.reload()
        assert await stores(begun, make_instance("1.2")) == 0
    (retiring,) = gateway._retiring
    await asyncio.wait({retiring})
    async with site.associate("FIRST") as scu:
        assert await stores(scu, make_instance("1.4")) == 0
    await gateway.reload()
    async with site.associate("FIRST") as scu:
        assert await stores(scu, make_instance("1.3")) == 0


async def test_stop_ends_what_an_earlier_configuration_has_left(site, make_instance):
    gateway = await site.start()
    old = gateway.assembly.backends[0]
    async with site.associate("FIRST") as begun:
        site.title, site.scp = "SECOND", f'storage_dir = "{site.folder}/storage/new"'
        await gateway.reload()
        assert await stores(begun, make_instance("1.1")) == 0
        await gateway.stop(0.0)
        assert old.problem() == "the archive is closed"
    with pytest.raises(StartError, match="stops"):
        await gateway.reload()


async def test_reloads_follow_each_other(site):
    gateway = await site.start()
    site.title = "SECOND"
    configs = await asyncio.gather(*(gateway.reload() for _ in range(5)))
    assert gateway.config is configs[-1]
    assert not await rejected(site, "SECOND")


async def test_by_the_management_api(site, client):
    await site.start()
    site.title = "SECOND"
    for path in ("/admin/reload", "/api/reload"):
        response = await client.request("POST", path)
        assert (response.status, response.body) == (200, b'{"status":"reloaded","warnings":0}')
    assert not await rejected(site, "SECOND")
    site.scp = "port = 0"
    response = await client.request("POST", "/admin/reload")
    assert response.status == 409
    assert b'"problems":["[endpoints.scp.options] port"]' in response.body
    assert await status(client, "GET", "/admin/reload") == 405


async def test_what_is_counted_goes_on(site, client):
    gateway = await site.start()
    async with site.associate("FIRST"):
        pass
    site.prefix = "/second"
    await gateway.reload()
    async with site.associate("FIRST"):
        pass
    text = (await client.request("GET", "/metrics")).body.decode()
    assert 'harmony_associations_established_total{component="endpoint",name="scp"} 2.0' in text


async def test_without_a_file_there_is_nothing_to_load(site, client):
    gateway = Gateway(site.load())
    site.gateway = gateway
    await gateway.start()
    with pytest.raises(StartError, match="nothing to load"):
        await gateway.reload()
    assert await status(client, "POST", "/admin/reload") == 409
