"""WADO-RS and real programs: dicomweb-client as the client; the archive, and Orthanc as the PACS, behind it.

What pydicom finds in a file is what comes: the data set, its header, its frames.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pydicom
import pydicom.encaps
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import UID

from harmony.http.client import HTTPClient

pytestmark = pytest.mark.interop

NAMES = (  # with different UIDs
    "693_J2KI.dcm",
    "CT_small.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "JPEG-lossy.dcm",
    "MR_small.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "examples_palette.dcm",
    "examples_ybr_color.dcm",
    "liver_1frame.dcm",
    "test-SR.dcm",
)
PATIENCE_S = 60.0


@dataclass
class Service:
    """A running one. client: of dicomweb-client, whose calls block."""

    client: DICOMwebClient
    root: str
    files: list[tuple[Any, Dataset]]

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(getattr(self.client, method), *arguments, **options)


def uids(dataset: Dataset) -> tuple[str, str, str]:
    return str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)


@pytest.fixture(params=["archive", "orthanc"])
async def service(
    request: pytest.FixtureRequest, start_gateway, free_port, pydicom_files, tmp_path
) -> AsyncIterator[Service]:
    backend = "storage"
    options = f'{{ root = "{tmp_path / "archive"}" }}'
    if request.param == "orthanc":
        pacs = await asyncio.to_thread(request.getfixturevalue("start_orthanc"))
        backend = "dicom_scu"
        options = f'{{ aet = "{pacs.ae_title}", host = "127.0.0.1", port = {pacs.port} }}'
    await start_gateway(
        f"""
        [network.n.http]
        bind_address = "127.0.0.1"
        bind_port = {free_port}
        [pipelines.web]
        networks = ["n"]
        endpoints = ["web"]
        backends = ["behind"]
        [endpoints.web]
        service = "dicomweb"
        options.path_prefix = "/web"
        options.public_url = "http://127.0.0.1:{free_port}/web"  # the client's Host header has no port
        [backends.behind]
        service = "{backend}"
        options = {options}
        """
    )
    root = f"http://127.0.0.1:{free_port}/web"
    files = []
    async with asyncio.timeout(PATIENCE_S), HTTPClient(root, timeout_s=PATIENCE_S) as http:
        for sample in pydicom_files:
            if sample.path.name in NAMES:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    dataset = pydicom.dcmread(sample.path)
                headers = {"Content-Type": "application/dicom"}
                answer = await http.request(
                    "POST", "/studies", body=sample.path.read_bytes(), headers=headers
                )
                assert answer.status == 200, answer.body
                files.append((sample, dataset))
        assert len(files) == len(NAMES)
        yield Service(DICOMwebClient(root), root, files)


def plain(dataset: Dataset) -> list[Any]:
    """Elements that a PACS has no reason to write in another way."""
    return [
        each
        for each in dataset
        if each.tag.element and each.tag.group < 0x7FE0 and each.VR not in ("UN", "SQ")
    ]


async def test_instances(service: Service) -> None:
    """As they are stored, but for Implicit VR, which is not for the web."""
    for sample, dataset in service.files:
        media_types = (("application/dicom", "*"),)
        received = await service.call("retrieve_instance", *uids(dataset), media_types=media_types)
        if UID(sample.transfer_syntax_uid).is_encapsulated:
            assert received.file_meta.TransferSyntaxUID == sample.transfer_syntax_uid
        assert plain(received) == plain(dataset), sample
        assert received.get("PixelData") == dataset.get("PixelData"), sample


async def test_frames(service: Service) -> None:
    compared = 0
    for sample, dataset in service.files:
        if "PixelData" not in dataset:
            continue
        count = int(dataset.get("NumberOfFrames") or 1)
        numbers = sorted({1, count})
        if UID(sample.transfer_syntax_uid).is_encapsulated:
            frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count))
        else:
            size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
            frames = [dataset.PixelData[at * size : (at + 1) * size] for at in range(count)]
        # What viewers ask for, dicomweb-client by default as well: whatever is stored.
        media_types = (("application/octet-stream", "*"),)
        found = await service.call(
            "retrieve_instance_frames", *uids(dataset), numbers, media_types=media_types
        )
        assert found == [frames[number - 1] for number in numbers], sample
        compared += 1
    assert compared >= 7


async def test_metadata_and_bulk_data(service: Service) -> None:
    for sample, dataset in service.files:
        [header] = [
            each
            for each in await service.call("retrieve_series_metadata", *uids(dataset)[:2])
            if each["00080018"]["Value"] == [dataset.SOPInstanceUID]
        ]
        wanted = {f"{each.tag:08X}" for each in dataset if each.tag.element and each.tag <= 0x7FE00010}
        assert set(header) == wanted - {"00080005"}, sample
        decoded = Dataset.from_json({tag: each for tag, each in header.items() if "BulkDataURI" not in each})
        for each in decoded:
            if each.VR in ("UI", "US", "DA", "TM") and dataset[each.tag].VR == each.VR:
                assert each.value == dataset[each.tag].value, (sample, each.tag)
        for tag, element in header.items():
            if "BulkDataURI" in element and not UID(sample.transfer_syntax_uid).is_encapsulated:
                [value] = await service.call("retrieve_bulkdata", element["BulkDataURI"])
                stored = dataset[int(tag, 16)].value
                if isinstance(stored, bytes):
                    assert value == stored, (sample, tag)
