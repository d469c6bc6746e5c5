"""dicomweb-client from npm, on Node, as the client of everything that the dicomweb endpoint has, over the archive and
over Orthanc. What was stored comes back byte for byte, whatever the transfer syntax; the rest is what pydicom finds.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from harmony.dimse.part10 import read_file_meta

pytestmark = pytest.mark.interop

STUDY = "1.2.826.0.1.3680043.10.5"
NAMES = {  # the number of the series of each
    "MR_small.dcm": 1,
    "image_dfl.dcm": 2,  # deflated
    "SC_rgb_rle_2frame.dcm": 2,
    "SC_rgb_jpeg_dcmtk.dcm": 2,
    "JPEG-lossy.dcm": 2,
    "SC_rgb_jpeg_gdcm.dcm": 2,  # lossless
    "MR_small_jpeg_ls_lossless.dcm": 1,
    "SC_rgb_jls_lossy_line.dcm": 2,
    "MR_small_jp2klossless.dcm": 1,
    "693_J2KI.dcm": 3,
    "examples_ybr_color.dcm": 4,  # 30 frames
}
AS_STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
FRAMES_AS_STORED = [{"mediaType": "application/octet-stream", "transferSyntaxUID": "*"}]
PNG = [{"mediaType": "image/png"}]


@dataclass
class Original:
    path: Path
    dataset: Dataset

    @property
    def uids(self) -> dict[str, str]:
        return {
            "studyInstanceUID": str(self.dataset.StudyInstanceUID),
            "seriesInstanceUID": str(self.dataset.SeriesInstanceUID),
            "sopInstanceUID": str(self.dataset.SOPInstanceUID),
        }

    @property
    def transfer_syntax(self) -> UID:
        return UID(self.dataset.file_meta.TransferSyntaxUID)

    @property
    def data_set(self) -> bytes:
        file = self.path.read_bytes()
        return file[read_file_meta(file).data_set_offset :]

    @property
    def frames(self) -> list[bytes]:
        count = int(self.dataset.get("NumberOfFrames") or 1)
        if self.transfer_syntax.is_encapsulated:
            return list(generate_frames(self.dataset.PixelData, number_of_frames=count))
        size = len(self.dataset.PixelData) // count
        return [self.dataset.PixelData[at * size : (at + 1) * size] for at in range(count)]


@dataclass
class Service:
    originals: dict[str, Original]
    calls: Callable[..., list[dict[str, Any]]]
    """calls((method, options), ..., headers={...}): what came of each."""

    def values(self, *calls: tuple[str, dict[str, Any]], **options: Any) -> list[Any]:
        return [result["value"] for result in self.calls(*calls, **options)]


def content(result: dict[str, str]) -> bytes:
    return base64.b64decode(result["base64"])


def data_sets(results: list[dict[str, str]]) -> dict[str, tuple[str, bytes]]:
    """By SOP Instance UID: transfer syntax, and what is behind the file meta."""
    found = {}
    for result in results:
        file = content(result)
        meta = read_file_meta(file)
        found[meta.media_storage_sop_instance_uid] = (meta.transfer_syntax_uid, file[meta.data_set_offset :])
    return found


def plain(dataset: Dataset) -> None:
    """As Orthanc sends, which writes every data set anew: without padding, sequences of defined length, and compressed
    pixel data as OB (PS3.5 §A.4), which some samples do not have."""
    dataset.pop(0xFFFCFFFC, None)
    for element in dataset.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = False
            for item in element.value:
                item.is_undefined_length_sequence_item = False
    if UID(dataset.file_meta.TransferSyntaxUID).is_encapsulated:
        dataset["PixelData"].VR = "OB"


@pytest.fixture
def originals(pydicom_files, tmp_path) -> dict[str, Original]:
    """One study: samples that have UIDs in common cannot be told apart."""
    found = {}
    for number, (name, series) in enumerate(NAMES.items(), 1):
        sample = next(each for each in pydicom_files if each.path.name == name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values in the files are none of our business
            dataset = pydicom.dcmread(sample.path)
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, f"{STUDY}.{series}"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
                f"{STUDY}.{series}.{number}"
            )
            dataset.PatientID, dataset.PatientName, dataset.StudyDate = "NPM1", "Node^Client", "20260102"
            plain(dataset)
            dataset.save_as(tmp_path / name)
            found[name] = Original(tmp_path / name, pydicom.dcmread(tmp_path / name))
    return found


@pytest.fixture(params=["archive", "orthanc"])
def service(request, start_program, run_node, free_port, originals, tmp_path) -> Service:
    backend, options = "storage", f'{{ root = "{tmp_path / "archive"}" }}'
    if request.param == "orthanc":
        pacs = request.getfixturevalue("start_orthanc")()
        backend = "dicom_scu"
        options = f'{{ aet = "{pacs.ae_title}", host = "127.0.0.1", port = {pacs.port} }}'
    root = f"http://127.0.0.1:{free_port}/web"
    start_program(
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
        [backends.behind]
        service = "{backend}"
        options = {options}
        """,
        free_port,
    )

    def calls(*calls: tuple[str, dict[str, Any]], headers: Any = None) -> list[dict[str, Any]]:
        return run_node("client.mjs", {"root": root, "headers": headers or {}, "calls": calls})

    files = [str(each.path) for each in originals.values()]
    [answer] = calls(("storeInstances", {"files": files, "studyInstanceUID": STUDY}))
    stored = json.loads(answer["value"])
    assert "00081198" not in stored, "FailedSOPSequence"
    assert len(stored["00081199"]["Value"]) == len(NAMES)
    return Service(originals, calls)


def test_search(service: Service) -> None:
    studies, none, series, some_series, instances, some, everywhere = service.calls(
        ("searchForStudies", {"queryParams": {"PatientID": "NPM1", "StudyDate": "20260101-"}}),
        ("searchForStudies", {"queryParams": {"PatientID": "nobody"}}),
        ("searchForSeries", {"studyInstanceUID": STUDY}),
        ("searchForSeries", {"studyInstanceUID": STUDY, "queryParams": {"Modality": "MR"}}),
        ("searchForInstances", {"studyInstanceUID": STUDY}),
        ("searchForInstances", {"studyInstanceUID": STUDY, "seriesInstanceUID": f"{STUDY}.1"}),
        ("searchForInstances", {"queryParams": {"PatientName": "Node*"}}),
    )
    uids = sorted(each.uids["sopInstanceUID"] for each in service.originals.values())

    def found(result: dict[str, Any], tag: str) -> list[str]:
        return sorted(each[tag]["Value"][0] for each in result["value"])

    assert found(studies, "0020000D") == [STUDY]
    assert none["value"] == []
    assert found(series, "0020000E") == [f"{STUDY}.{number}" for number in (1, 2, 3, 4)]
    assert found(some_series, "0020000E") == [f"{STUDY}.1"]
    assert found(instances, "00080018") == found(everywhere, "00080018") == uids
    assert found(some, "00080018") == [uid for uid in uids if uid.startswith(f"{STUDY}.1.")]


def test_instances_are_what_was_stored(service: Service) -> None:
    """At every level, in ten transfer syntaxes, none of which is changed."""
    originals = service.originals.values()
    expected = {each.uids["sopInstanceUID"]: (each.transfer_syntax, each.data_set) for each in originals}
    assert len({syntax for syntax, _ in expected.values()}) == 10
    study, *parts = service.values(
        ("retrieveStudy", {"studyInstanceUID": STUDY}),
        *(
            ("retrieveSeries", {"studyInstanceUID": STUDY, "seriesInstanceUID": f"{STUDY}.{number}"})
            for number in (1, 2, 3, 4)
        ),
        *(("retrieveInstance", each.uids) for each in originals),
        headers=AS_STORED,
    )
    assert data_sets(study) == expected
    assert data_sets([instance for series in parts[:4] for instance in series]) == expected
    assert data_sets(parts[4:]) == expected


def test_instances_without_a_word_about_transfer_syntaxes(service: Service) -> None:
    """As the client asks by itself: deflated ones are not, everything else is as it was stored."""
    study, missing = service.calls(
        ("retrieveStudy", {"studyInstanceUID": STUDY}), ("retrieveStudy", {"studyInstanceUID": f"{STUDY}.9"})
    )
    received = data_sets(study["value"])
    for each in service.originals.values():
        syntax, data_set = received[each.uids["sopInstanceUID"]]
        if each.transfer_syntax == DeflatedExplicitVRLittleEndian:
            assert (syntax, data_set) == (
                ExplicitVRLittleEndian,
                zlib.decompress(each.data_set, -zlib.MAX_WBITS),
            )
        else:
            assert (syntax, data_set) == (each.transfer_syntax, each.data_set)
    assert missing == {"status": 404}


def test_metadata(service: Service) -> None:
    originals = {each.uids["sopInstanceUID"]: each for each in service.originals.values()}
    study, *parts = service.values(
        ("retrieveStudyMetadata", {"studyInstanceUID": STUDY}),
        *(
            ("retrieveSeriesMetadata", {"studyInstanceUID": STUDY, "seriesInstanceUID": f"{STUDY}.{number}"})
            for number in (1, 2, 3, 4)
        ),
        *(("retrieveInstanceMetadata", each.uids) for each in originals.values()),
    )

    def by_uid(headers: list[Any]) -> dict[str, Any]:
        return {header["00080018"]["Value"][0]: header for header in headers}

    found = by_uid(study)
    assert found.keys() == originals.keys()
    for others in (parts[:4], parts[4:]):
        assert by_uid([header for headers in others for header in headers]) == found
    for uid, each in originals.items():
        dataset = each.dataset
        tags = {f"{element.tag:08X}" for element in dataset if element.tag.element}
        assert found[uid].keys() == tags - {"00080005"}, each.path.name
        for name in ("SOPClassUID", "PatientName", "Rows", "PhotometricInterpretation", "StudyTime"):
            if name in dataset:
                element = Dataset.from_json({tag: found[uid][tag] for tag in [f"{dataset[name].tag:08X}"]})
                assert element[name].value == dataset[name].value, (each.path.name, name)


def test_bulk_data(service: Service) -> None:
    each = service.originals["MR_small.dcm"]
    [[header]] = service.values(("retrieveInstanceMetadata", each.uids))
    [[pixels]] = service.values(("retrieveBulkData", {"BulkDataURI": header["7FE00010"]["BulkDataURI"]}))
    assert content(pixels) == each.dataset.PixelData


def test_frames(service: Service) -> None:
    originals = service.originals.values()
    numbers = [sorted({1, len(each.frames)}) for each in originals]
    found = service.values(
        *(
            (
                "retrieveInstanceFrames",
                {**each.uids, "frameNumbers": wanted, "mediaTypes": FRAMES_AS_STORED},
            )
            for each, wanted in zip(originals, numbers, strict=True)
        )
    )
    for each, wanted, frames in zip(originals, numbers, found, strict=True):
        assert [content(frame) for frame in frames] == [each.frames[number - 1] for number in wanted], (
            each.path
        )


def test_rendered(service: Service) -> None:
    each, film = service.originals["MR_small.dcm"], service.originals["examples_ybr_color.dcm"]
    window = {"window": "300,400,linear"}
    default, as_png, windowed, thumbnail, frames = service.values(
        ("retrieveInstanceRendered", each.uids),
        ("retrieveInstanceRendered", {**each.uids, "mediaTypes": PNG}),
        ("retrieveInstanceRendered", {**each.uids, "mediaTypes": PNG, "queryParams": window}),
        ("retrieveInstanceThumbnail", each.uids),
        ("retrieveInstanceFramesRendered", {**film.uids, "frameNumbers": [30], "mediaTypes": PNG}),
    )
    formats = [image(result).format for result in (*default, *as_png, *windowed, *thumbnail)]
    assert formats == ["JPEG", "PNG", "PNG", "JPEG"]
    assert image(frames[0]).size == (film.dataset.Columns, film.dataset.Rows)
    # PS3.3 §C.11.2.1.2.1, to 8 bits
    for [result], center, width in ((as_png, 600, 1600), (windowed, 300, 400)):
        values = (each.dataset.pixel_array - (center - 0.5)) / (width - 1) + 0.5
        shown = np.asarray(image(result).convert("L")).astype(float)
        assert np.abs(shown - np.clip(values, 0, 1) * 255).max() <= 1
    differences = np.asarray(image(default[0])).astype(int) - np.asarray(image(as_png[0])).astype(int)
    assert np.abs(differences).mean() < 5  # JPEG loses some


def image(result: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(content(result)))
