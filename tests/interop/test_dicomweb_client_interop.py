"""All that the Python package dicomweb-client can ask for, at every level, of the archive and of Orthanc as the PACS.

One study in two series, an instance for each transfer syntax that pydicom ships samples of, stored with the client as
well. What comes back is compared with what was sent: data sets byte by byte in the answers as they came from the
socket, pictures with what pydicom decodes.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import RLELossless

from harmony.dimse.part10 import read_file_meta

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

AS_STORED = {  # a sample, and its transfer syntax
    "CT_small.dcm": "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "image_dfl.dcm": "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
    "SC_rgb_jpeg_dcmtk.dcm": "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "JPGExtended.dcm": "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "SC_rgb_jpeg_gdcm.dcm": "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first order
    "MR_small_jpeg_ls_lossless.dcm": "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "JPEGLSNearLossless_08.dcm": "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-Lossless
    "MR_small_jp2klossless.dcm": "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
    "693_J2KI.dcm": "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "SC_rgb_rle_2frame.dcm": "1.2.840.10008.1.2.5",  # RLE Lossless
}
"""Those that go over the web as they are."""
NOT_ON_THE_WEB = {
    "MR_small_implicit.dcm": "1.2.840.10008.1.2",
    "MR_small_bigendian.dcm": "1.2.840.10008.1.2.2",
}
"""Those that leave in Explicit VR Little Endian (PS3.18 §8.7.3.5.2)."""

STUDY = "1.2.826.0.1.3680043.10.9"
SERIES = (f"{STUDY}.1", f"{STUDY}.2")
"""Of gray and of colour images."""
ANYTHING = (("application/dicom", "*"),)
OCTETS = (("application/octet-stream", "*"),)
PNG = ("image/png",)
PATIENCE_S = 90.0

Call = Callable[..., Any]


@dataclass
class Service:
    """A running one. client: its calls block."""

    client: DICOMwebClient
    sent: list[Dataset]
    bodies: list[bytes] = field(default_factory=list)
    """Of the answers, as they came."""

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        def run() -> Any:
            found = getattr(self.client, method)(*arguments, **options)
            return list(found) if method.startswith("iter_") else found

        self.bodies.clear()
        return await asyncio.to_thread(run)

    def of(self, name: str) -> Dataset:
        return self.sent[[*AS_STORED, *NOT_ON_THE_WEB].index(name)]


def sample(path: Any, number: int) -> Dataset:
    """A file, as an instance of the study, in the one form in which DCMTK, and so Orthanc, writes it again: without
    group lengths and trailing padding, with defined lengths, compressed pixel data as OB (PS3.5 §A.4)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
    plain(dataset)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset["PixelData"].VR = "OB"
    colour = dataset.SamplesPerPixel == 3
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES[colour]
    dataset.SOPInstanceUID = f"{SERIES[colour]}.{number}"
    dataset.PatientID, dataset.PatientName = "P1", "Doe^Jane"
    dataset.StudyDate, dataset.AccessionNumber = "20250615", "A1"
    dataset.Modality, dataset.SeriesNumber = ("CT", "OT")[colour], 1 + colour
    dataset.InstanceNumber = number
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def plain(dataset: Dataset) -> None:
    for element in list(dataset):
        if element.tag.element == 0 or element.tag == 0xFFFCFFFC:
            del dataset[element.tag]
        elif element.VR == "SQ":
            element.is_undefined_length = False
            for item in element.value:
                item.is_undefined_length_sequence_item = False
                plain(item)


def as_file(dataset: Dataset) -> bytes:
    written = io.BytesIO()
    pydicom.dcmwrite(written, dataset)
    return written.getvalue()


def data_set(dataset: Dataset) -> bytes:
    """Its bytes, as the client has sent them."""
    content = as_file(dataset)
    return content[read_file_meta(content).data_set_offset :]


def uids(dataset: Dataset) -> tuple[str, str, str]:
    return str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)


@pytest.fixture(params=["archive", "orthanc"])
async def service(
    request: pytest.FixtureRequest, start_gateway, free_port, pydicom_files, tmp_path
) -> AsyncIterator[Service]:
    behind, options = "storage", f'{{ root = "{tmp_path / "archive"}" }}'
    if request.param == "orthanc":
        pacs = await asyncio.to_thread(request.getfixturevalue("start_orthanc"))
        behind = "dicom_scu"
        options = f'{{ aet = "{pacs.ae_title}", host = "127.0.0.1", port = {pacs.port} }}'
    root = f"http://127.0.0.1:{free_port}/web"
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
        options.public_url = "{root}"  # the client's Host header has no port
        [backends.behind]
        service = "{behind}"
        options = {options}
        """
    )
    files = {each.path.name: each.path for each in pydicom_files}
    session = requests.Session()
    sent = [sample(files[name], number) for number, name in enumerate([*AS_STORED, *NOT_ON_THE_WEB], 1)]
    found = Service(DICOMwebClient(root, session=session), sent)

    def keep(answer: requests.Response, *_: Any, **__: Any) -> None:
        found.bodies.append(answer.content)

    session.hooks["response"].append(keep)
    async with asyncio.timeout(PATIENCE_S):
        stored = await found.call("store_instances", sent)
        assert len(stored.ReferencedSOPSequence) == len(sent)
        assert "FailedSOPSequence" not in stored
        yield found
    session.close()


# Search: method, arguments, options, the attribute that is compared, its values


SEARCHES: list[tuple[str, tuple[str, ...], dict[str, Any], str, list[Any]]] = [
    ("studies", (), {}, "StudyInstanceUID", [STUDY]),
    ("studies", (), {"search_filters": {"PatientName": "Doe*"}}, "PatientID", ["P1"]),
    ("studies", (), {"search_filters": {"00100020": "P1"}}, "StudyDate", ["20250615"]),
    ("studies", (), {"search_filters": {"StudyDate": "20250101-20251231"}}, "AccessionNumber", ["A1"]),
    ("studies", (), {"search_filters": {"StudyDate": "20260101-"}}, "StudyInstanceUID", []),
    ("studies", (), {"search_filters": {"PatientID": "P2"}}, "StudyInstanceUID", []),
    ("studies", (), {"fields": ["PatientBirthDate"], "limit": 1}, "StudyInstanceUID", [STUDY]),
    ("studies", (), {"offset": 1}, "StudyInstanceUID", []),
    ("studies", (), {"fuzzymatching": True}, "StudyInstanceUID", [STUDY]),
    ("series", (), {}, "SeriesInstanceUID", [*SERIES]),
    ("series", (STUDY,), {}, "SeriesInstanceUID", [*SERIES]),
    ("series", (STUDY,), {"search_filters": {"Modality": "OT"}}, "SeriesNumber", [2]),
    ("series", ("1.2.3",), {}, "SeriesInstanceUID", []),
    ("instances", (), {"search_filters": {"InstanceNumber": "1"}}, "SOPInstanceUID", [f"{SERIES[0]}.1"]),
    ("instances", (STUDY,), {}, "InstanceNumber", list(range(1, 13))),
    ("instances", (STUDY,), {"limit": 5, "get_remaining": True}, "InstanceNumber", list(range(1, 13))),
    ("instances", (STUDY, SERIES[1]), {}, "InstanceNumber", [3, 5, 10]),
    ("instances", (STUDY, SERIES[1]), {"fields": ["NumberOfFrames"]}, "NumberOfFrames", [2]),
    ("instances", (STUDY, SERIES[1]), {"search_filters": {"Rows": "1"}}, "InstanceNumber", []),
]


async def test_search(service: Service) -> None:
    for level, arguments, options, keyword, expected in SEARCHES:
        found = await service.call(f"search_for_{level}", *arguments, **options)
        tag = DICOMwebClient.lookup_tag(keyword)
        values = [value for each in found for value in each.get(tag, {}).get("Value", [])]
        assert sorted(values) == expected, (level, arguments, options)


# Retrieve


async def retrieve_each(service: Service, method: str) -> tuple[list[Dataset], list[bytes]]:
    received, bodies = [], []
    for each in service.sent:
        received.append(await service.call(method, *uids(each), media_types=ANYTHING))
        bodies += service.bodies
    return received, bodies


async def retrieved(service: Service, method: str) -> tuple[list[Dataset], list[bytes]]:
    """Every instance, and the bodies of the answers."""
    if method.endswith("_instance"):
        return await retrieve_each(service, method)
    places = [(STUDY,)] if method.endswith("_study") else [(STUDY, uid) for uid in SERIES]
    received, bodies = [], []
    for place in places:
        received += await service.call(method, *place, media_types=ANYTHING)
        bodies += service.bodies
    return received, bodies


METHODS = ("retrieve_study", "iter_study", "retrieve_series", "iter_series", "retrieve_instance")


async def test_instances_byte_by_byte_in_ten_transfer_syntaxes(service: Service) -> None:
    assert len(set(AS_STORED.values())) == 10
    for method in METHODS:
        received, bodies = await retrieved(service, method)
        by_uid = {each.SOPInstanceUID: each for each in received}
        assert len(received) == len(by_uid) == len(service.sent), method
        for name, syntax in AS_STORED.items():
            sent = service.of(name)
            assert sent.file_meta.TransferSyntaxUID == syntax
            assert by_uid[sent.SOPInstanceUID].file_meta.TransferSyntaxUID == syntax, (method, name)
            assert sum(body.count(data_set(sent)) for body in bodies) == 1, (method, name)


async def test_instances_in_another_transfer_syntax(service: Service) -> None:
    for name in NOT_ON_THE_WEB:
        sent = service.of(name)
        received = await service.call("retrieve_instance", *uids(sent), media_types=ANYTHING)
        assert received.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert received.pixel_array.tolist() == sent.pixel_array.tolist()
        assert received.PatientName == sent.PatientName
    rle = service.of("SC_rgb_rle_2frame.dcm")
    media_types = (("application/dicom", RLELossless),)
    received = await service.call("retrieve_instance", *uids(rle), media_types=media_types)
    assert received.PixelData == rle.PixelData


# Metadata, frames, bulk data


async def test_metadata(service: Service) -> None:
    study = await service.call("retrieve_study_metadata", STUDY)
    series = [each for uid in SERIES for each in await service.call("retrieve_series_metadata", STUDY, uid)]
    instances = [await service.call("retrieve_instance_metadata", *uids(each)) for each in service.sent]
    for found in (study, series, instances):
        headers = {each["00080018"]["Value"][0]: each for each in found}
        assert len(headers) == len(found) == len(service.sent)
        for sent in service.sent:
            header = headers[sent.SOPInstanceUID]
            wanted = {f"{each.tag:08X}" for each in sent if each.tag.element and each.tag <= 0x7FE00010}
            assert set(header) == wanted - {"00080005"}, sent.SOPInstanceUID
            assert header["00280010"]["Value"] == [sent.Rows]
            assert header["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]


async def test_frames(service: Service) -> None:
    for name, syntax in (AS_STORED | NOT_ON_THE_WEB).items():
        sent = service.of(name)
        count = int(sent.get("NumberOfFrames") or 1)
        if sent.file_meta.TransferSyntaxUID.is_encapsulated:
            expected = list(generate_frames(sent.PixelData, number_of_frames=count))
        else:
            pixels = sent.pixel_array
            expected = [pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()]
        for method in ("retrieve_instance_frames", "iter_instance_frames"):
            numbers = list(range(1, count + 1))
            assert await service.call(method, *uids(sent), numbers, media_types=OCTETS) == expected, name
            assert await service.call(method, *uids(sent), [count]) == expected[-1:], name
        if syntax == "1.2.840.10008.1.2.4.50":
            media_types = (("image/jpeg", syntax),)
            frames = await service.call("retrieve_instance_frames", *uids(sent), [1], media_types=media_types)
            assert frames == expected


async def test_bulk_data(service: Service) -> None:
    compared = 0
    for name in (*AS_STORED, *NOT_ON_THE_WEB):
        sent = service.of(name)
        header = await service.call("retrieve_instance_metadata", *uids(sent))
        for tag, element in header.items():
            if "BulkDataURI" not in element:
                continue
            element_sent = sent[int(tag, 16)]
            expected = [element_sent.value]
            if tag == "7FE00010" and sent.file_meta.TransferSyntaxUID.is_encapsulated:
                count = int(sent.get("NumberOfFrames") or 1)
                expected = list(generate_frames(element_sent.value, number_of_frames=count))
            elif tag == "7FE00010" and name == "MR_small_bigendian.dcm":
                expected = [sent.pixel_array.astype("<i2").tobytes()]
            elif not isinstance(element_sent.value, bytes):
                continue
            media_types = OCTETS if tag == "7FE00010" else None
            for method in ("retrieve_bulkdata", "iter_bulkdata"):
                found = await service.call(method, element["BulkDataURI"], media_types=media_types)
                assert found == expected, (name, tag)
            compared += 1
    assert compared >= len(service.sent)


# Rendered


def expected_picture(sent: Dataset, frame: int) -> tuple[list[Any], dict[str, str]]:
    """What pydicom decodes, of 8 bits, and the window that it is looked at through."""
    pixels = pixel_array(sent, index=frame - 1)
    if sent.SamplesPerPixel == 3:
        return pixels.tolist(), {}
    values = pixels.astype(np.float64) * float(sent.get("RescaleSlope", 1))
    values += float(sent.get("RescaleIntercept", 0))
    center, width = 100.0, 400.0
    levels = np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
    return np.floor(levels + 0.5).astype(np.uint8).tolist(), {"window": f"{center},{width},linear"}


def pixels_of(picture: bytes) -> list[Any]:
    with Image.open(io.BytesIO(picture)) as opened:
        assert opened.format == "PNG"
        values: list[Any] = np.asarray(opened).tolist()
        return values


async def test_rendered(service: Service) -> None:
    for name in (*AS_STORED, *NOT_ON_THE_WEB):
        sent = service.of(name)
        expected, params = expected_picture(sent, 1)
        whole = await service.call("retrieve_instance_rendered", *uids(sent), media_types=PNG, params=params)
        assert pixels_of(whole) == expected, name
        count = int(sent.get("NumberOfFrames") or 1)
        expected, params = expected_picture(sent, count)
        frame = await service.call(
            "retrieve_instance_frames_rendered", *uids(sent), [count], media_types=PNG, params=params
        )
        assert pixels_of(frame) == expected, name


async def test_series_rendered(service: Service) -> None:
    """The client has no parser for several pictures: it returns the body as it is."""
    whole = await service.call("retrieve_series_rendered", STUDY, SERIES[1])
    colour = [each for each in service.sent if each.SamplesPerPixel == 3]
    for each in colour:
        assert whole.count(f"/instances/{each.SOPInstanceUID}/rendered\r\n".encode()) == 1
    assert whole.count(b"Content-Type: image/jpeg\r\n") == len(colour)
    with pytest.raises(requests.HTTPError) as raised:
        await service.call("retrieve_series_rendered", STUDY, SERIES[1], media_types=PNG)
    assert raised.value.response.status_code == 406


# Store


async def test_store_into_a_study(service: Service) -> None:
    """What is of another study is refused, and what it is named for is stored."""
    [sent] = [sample(io.BytesIO(as_file(service.of("CT_small.dcm"))), 20)]
    with pytest.raises(requests.HTTPError) as raised:
        await service.call("store_instances", [sent], study_instance_uid="1.2.3")
    assert raised.value.response.status_code == 409
    await service.call("store_instances", [sent], study_instance_uid=STUDY)
    received = await service.call("retrieve_instance", *uids(sent), media_types=ANYTHING)
    assert received == sent
    assert service.bodies[0].count(data_set(sent)) == 1
