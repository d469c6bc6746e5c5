"""The gateway between DCMTK's tools and a PACS (Orthanc, dcmqrscp): each service goes through, data sets as they are,
and a PACS that is down, or goes away in the middle, is an error in time and not the end."""

import asyncio
import re

import pytest

from harmony.dimse import Instance, associate
from harmony.dimse.part10 import read_file_meta
from harmony.dimse.status import DimseError
from harmony.ul import propose_contexts

pytestmark = pytest.mark.interop

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
STUDY = "1.2.3.4.5"


@pytest.fixture
def proxy(free_port, run_tool, start_gateway):
    """start(pacs_port, ...) a gateway; tool(name, ...) runs one of DCMTK's tools against it."""

    class Proxy:
        port = free_port

        async def start(self, pacs_port, *, pacs="ORTHANC", options="", destinations=()):
            table = "".join(
                f'{name} = {{ host = "127.0.0.1", port = {port} }}\n' for name, port in destinations
            )
            return await start_gateway(
                f"""
                [network.default.dicom]
                bind_address = "127.0.0.1"
                bind_port = {self.port}
                [pipelines.scp]
                networks = ["default"]
                endpoints = ["scp"]
                backends = ["pacs"]
                [endpoints.scp]
                service = "dicom_scp"
                [endpoints.scp.options]
                local_aet = "PROXY"
                [endpoints.scp.options.aet_table]
                {table}
                [backends.pacs]
                service = "dicom_scu"
                [backends.pacs.options]
                aet = "{pacs}"
                host = "127.0.0.1"
                port = {pacs_port}
                timeout_secs = 10
                {options}
                """
            )

        async def tool(self, name, *arguments, **options):
            words = ("-aec", "PROXY", "127.0.0.1", self.port, *arguments)
            return (await asyncio.to_thread(run_tool, name, *words, **options)).stdout

    return Proxy()


@pytest.fixture
def files(ct_file):
    """Three CT images in two series."""
    return [ct_file(1), ct_file(2), ct_file(3, series=2)]


@pytest.mark.parametrize("mode", ["get", "move", "move to the endpoint's port"])
async def test_every_service_goes_through(
    proxy, start_orthanc, start_storescp, free_ports, files, data_sets, tmp_path, mode
):
    (incoming,) = free_ports(1)
    title = "HARMONY_SCU"
    if "port" in mode:
        incoming, title = proxy.port, "PROXY"
    orthanc = await asyncio.to_thread(start_orthanc, modalities={"proxy": (title, incoming)})
    destination = await asyncio.to_thread(start_storescp, ae_title="DEST")
    await proxy.start(
        orthanc.port,
        destinations=[("DEST", destination.port)],
        options=f"""
            dimse_retrieve_mode = "{mode[:4].rstrip()}"
            incoming_store_port = {incoming}
            local_aet = "{title}"
        """,
    )
    await proxy.tool("echoscu")
    await proxy.tool("storescu", *files)
    printed = await proxy.tool("findscu", "-S", "-k", "0020,000D=*", "-k", "NumberOfStudyRelatedInstances")
    assert re.findall(r"\(0020,000d\) UI \[([0-9.]+)", printed) == [STUDY]
    assert re.findall(r"\(0020,1208\) IS \[(\d+)", printed) == ["3"]
    assert re.findall(r"\(0008,0054\) AE \[(\w+)", printed) == ["PROXY"]
    got = tmp_path / "got"
    got.mkdir()
    await proxy.tool("getscu", "-k", f"0020,000D={STUDY}", cwd=got)
    assert data_sets(got.iterdir()) == data_sets(files)
    await proxy.tool("movescu", "-aem", "DEST", "-k", f"0020,000D={STUDY}")
    assert data_sets(destination.received()) == data_sets(files)
    # Nothing was kept on the way.
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("level", "keys", "count"),
    [
        ("PATIENT", ["0010,0020=PATIENT123"], 3),
        ("STUDY", [f"0020,000D={STUDY}"], 3),
        ("SERIES", [f"0020,000D={STUDY}", f"0020,000E={STUDY}.1"], 2),
        ("IMAGE", [f"0020,000D={STUDY}", f"0020,000E={STUDY}.2", f"0008,0018={STUDY}.2.3"], 1),
    ],
)
async def test_every_level(proxy, start_orthanc, files, tmp_path, level, keys, count):
    orthanc = await asyncio.to_thread(start_orthanc)
    await proxy.start(orthanc.port)
    await proxy.tool("storescu", *files)
    words = [word for key in (f"0008,0052={level}", *keys) for word in ("-k", key)]
    printed = await proxy.tool("findscu", "-P", *words, "-k", "0010,0010")
    assert printed.count("Find Response:") == 1
    got = tmp_path / "got"
    got.mkdir()
    await proxy.tool("getscu", "-P", *words, cwd=got)
    assert len(list(got.iterdir())) == count


async def test_a_pacs_that_is_down(proxy, files, free_ports):
    (nobody,) = free_ports(1)
    await proxy.start(nobody, pacs="NOBODY")
    await proxy.tool("echoscu")  # is about us
    printed = await proxy.tool("storescu", "-v", files[0], status=None)
    assert "Refused: OutOfResources" in printed
    printed = await proxy.tool("findscu", "-v", "-S", "-k", "0020,000D=*", status=None)
    assert "Failed: UnableToProcess" in printed
    printed = await proxy.tool("getscu", "-v", "-k", f"0020,000D={STUDY}", status=None)
    assert "Failed: UnableToProcess" in printed or "0xc000" in printed.lower()


async def test_the_next_request_works_after_the_pacs_was_restarted(proxy, start_orthanc, files):
    orthanc = await asyncio.to_thread(start_orthanc)
    await proxy.start(orthanc.port)
    await proxy.tool("storescu", *files)
    orthanc.process.kill()
    await asyncio.to_thread(orthanc.process.wait, 10)
    async with associate(
        "127.0.0.1", proxy.port, called_ae_title="PROXY", contexts=propose_contexts([(CT, [EXPLICIT])])
    ) as scu:
        content = files[0].read_bytes()
        meta = read_file_meta(content)
        instance = Instance(
            CT, meta.media_storage_sop_instance_uid, EXPLICIT, content[meta.data_set_offset :]
        )
        with pytest.raises(DimseError) as refused:
            await scu.store(instance)
        assert refused.value.status == 0xA700
        again = await asyncio.to_thread(start_orthanc, port=orthanc.port)
        assert again.process.poll() is None
        assert (await scu.store(instance)).status == 0x0000
