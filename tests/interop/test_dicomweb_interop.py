"""The dicomweb endpoint and real programs: Orthanc's DICOMweb plugin as its client, Orthanc as the PACS behind it with
dicomweb-client in front, and curl as anybody types it."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from typing import Any

import pydicom
import pytest
from dicomweb_client import DICOMwebClient

from harmony.http.client import HTTPClient

pytestmark = pytest.mark.interop

STUDY = "1.2.3.4.5"
PATIENCE_S = 60.0


def configuration(http_port: int, *, pacs: Any = None) -> str:
    address = f'{{ aet = "{pacs.ae_title}", host = "127.0.0.1", port = {pacs.port} }}' if pacs else "{}"
    return f"""
        [network.n.http]
        bind_address = "127.0.0.1"
        bind_port = {http_port}
        [pipelines.web]
        networks = ["n"]
        endpoints = ["web"]
        backends = {'["pacs"]' if pacs else "[]"}
        [endpoints.web]
        service = "dicomweb"
        options.path_prefix = "/web"
        [backends.pacs]
        service = "{"dicom_scu" if pacs else "storage"}"
        options = {address}
    """


async def ask(client: HTTPClient, method: str, path: str, content: Any = b"") -> Any:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    async with asyncio.timeout(PATIENCE_S):
        answer = await client.request(method, path, body=body)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


async def test_orthanc_as_the_client(start_orthanc, start_gateway, free_port, ct_file) -> None:
    await start_gateway(configuration(free_port))
    servers = {"harmony": [f"http://127.0.0.1:{free_port}/web/"]}
    options = {"DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Servers": servers}}
    peer = await asyncio.to_thread(start_orthanc, options=options)
    async with HTTPClient(f"http://127.0.0.1:{peer.http_port}", timeout_s=PATIENCE_S) as orthanc:
        for number in (1, 2, 3):
            stored = await ask(orthanc, "POST", "/instances", ct_file(number).read_bytes())
        remote = "/dicom-web/servers/harmony"
        sent = await ask(
            orthanc, "POST", f"{remote}/stow", {"Resources": [stored["ParentStudy"]], "Synchronous": True}
        )
        assert sent["InstancesCount"] == "3"
        query = {"Uri": "/studies", "Arguments": {"PatientID": "PATIENT123"}}
        [found] = await ask(orthanc, "POST", f"{remote}/qido", query)
        assert found["0020000D"]["Value"] == STUDY
        await ask(orthanc, "DELETE", f"/studies/{stored['ParentStudy']}")
        assert await ask(orthanc, "GET", "/instances") == []
        wanted = {"Resources": [{"Study": STUDY}], "Synchronous": True}
        await ask(orthanc, "POST", f"{remote}/retrieve", wanted)
        assert len(await ask(orthanc, "GET", "/instances")) == 3


@pytest.mark.parametrize("behind", ["archive", "orthanc"])
async def test_dicomweb_client(start_orthanc, start_gateway, free_port, ct_file, behind: str) -> None:
    pacs = await asyncio.to_thread(start_orthanc) if behind == "orthanc" else None
    await start_gateway(configuration(free_port, pacs=pacs))
    client = DICOMwebClient(f"http://127.0.0.1:{free_port}/web")
    sent = [pydicom.dcmread(ct_file(number)) for number in (1, 2, 3)]
    await asyncio.to_thread(client.store_instances, sent)
    [study] = await asyncio.to_thread(client.search_for_studies, search_filters={"PatientName": "Doe*"})
    assert study["0020000D"]["Value"] == [STUDY]
    received = await asyncio.to_thread(client.retrieve_study, STUDY)
    assert sorted(received, key=lambda each: each.InstanceNumber) == sent
    headers = await asyncio.to_thread(client.retrieve_series_metadata, STUDY, f"{STUDY}.1")
    assert sorted(each["00200013"]["Value"][0] for each in headers) == [1, 2, 3]
    uids = (STUDY, f"{STUDY}.1", f"{STUDY}.1.2")
    [frame] = await asyncio.to_thread(client.retrieve_instance_frames, *uids, [1])
    assert frame == sent[1].PixelData


async def test_curl(require_peer, start_gateway, free_port, ct_file) -> None:
    async def run(*arguments: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            require_peer("curl"), "-sS", *arguments, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output

    await start_gateway(configuration(free_port))
    web = f"http://127.0.0.1:{free_port}/web"
    path = ct_file(1)
    await run("-f", "-H", "Content-Type: application/dicom", "--data-binary", f"@{path}", f"{web}/studies")
    [study] = json.loads(await run("-f", "--compressed", f"{web}/studies?PatientName=Doe*"))
    url = study["00081190"]["Value"][0]
    assert url == f"{web}/studies/{STUDY}"
    with zipfile.ZipFile(io.BytesIO(await run("-f", f"{url}?accept=application/zip"))) as archive:
        assert len(archive.namelist()) == 1
    instance = f"{url}/series/{STUDY}.1/instances/{STUDY}.1.1"
    file = await run("-f", "-H", "Accept: application/dicom; transfer-syntax=*", instance)
    assert pydicom.dcmread(io.BytesIO(file)) == pydicom.dcmread(path)
    assert (await run("-f", f"{instance}/rendered")).startswith(b"\xff\xd8\xff")
