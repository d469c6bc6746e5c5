"""curl, the http endpoint and real archives: Orthanc and DCMTK's dcmqrscp.

The commands are those that users are given, as they are printed but for the ports: of the description of the DICOM
backend, which sends everything to one path, and of DIMSE integration, with a path for each operation.
"""

import asyncio
import contextlib
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from harmony.dicom.json_model import encode_data_set
from harmony.dimse.part10 import encode_file_meta, read_file_meta
from harmony.gateway.app import Gateway
from harmony.gateway.loading import load

pytestmark = pytest.mark.interop

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
STUDY = "1.2.3.4.5.6"


def part10(number: int, *, study: str = STUDY) -> bytes:
    """A CT image of patient 12345."""
    uid = f"{study}.1.{number}"
    attributes = {
        "SOPClassUID": CT, "SOPInstanceUID": uid, "StudyDate": "20240102", "StudyTime": "030405",
        "AccessionNumber": "A1", "Modality": "CT", "PatientName": "Müller^Jörg", "PatientID": "12345",
        "PatientBirthDate": "19700101", "PatientSex": "O", "StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1",
        "StudyID": "S1", "SeriesNumber": 1, "InstanceNumber": number, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": 8, "Columns": 8, "BitsAllocated": 8, "BitsStored": 8,
        "HighBit": 7, "PixelRepresentation": 0,
    }  # fmt: skip
    model = {name: {"Value": [value]} for name, value in attributes.items()}
    pixels = b"\xe0\x7f\x10\x00OB\0\0" + (64).to_bytes(4, "little") + bytes([number]) * 64
    meta = encode_file_meta(
        transfer_syntax_uid=EXPLICIT, media_storage_sop_class_uid=CT, media_storage_sop_instance_uid=uid
    )
    return meta + encode_data_set(model, EXPLICIT, character_set="ISO_IR 100") + pixels


@dataclass
class Archive:
    """aet and port of the archive; what it moves to is ours, or the storescp at `other`."""

    aet: str
    port: int
    incoming_port: int
    other: object = None
    http_port: int = 0


@pytest.fixture(params=["orthanc", "dcmqrscp"])
def archive(request, start_orthanc, start_dcmqrscp, start_storescp, free_port):
    other = start_storescp(ae_title="OTHER")
    if request.param == "orthanc":
        modalities = {"harmony": ("HARMONY_SCU", free_port), "other": ("OTHER", other.port)}
        peer = start_orthanc(modalities=modalities)
        return Archive(peer.ae_title, peer.port, free_port, other, peer.http_port)
    port = start_dcmqrscp({"HARMONY_SCU": free_port, "OTHER": other.port})
    return Archive("ARCHIVE", port, free_port, other)


@pytest.fixture
async def curl(archive, free_ports, tmp_path, run_tool):
    """await curl("curl ...") -> status and answer, from a gateway in front of the archive.

    The ports of the printed commands lead to it, /trigger-dicom and /dicom are both there.
    """
    (http_port,) = free_ports(1)
    path = tmp_path / "config.toml"
    path.write_text(f"""
        [proxy]
        id = "harmony-dicom-backend"
        [storage.options]
        path = "{tmp_path / "tmp"}"
        [network.default.http]
        bind_address = "127.0.0.1"
        bind_port = {http_port}
        [pipelines.dicom_backend_demo]
        description = "HTTP requests trigger DIMSE operations"
        networks = ["default"]
        endpoints = ["http_to_dicom", "trigger"]
        middleware = []
        backends = ["dicom_pacs"]
        [endpoints.http_to_dicom]
        service = "http"
        options = {{ path_prefix = "/dicom" }}
        [endpoints.trigger]
        service = "http"
        options = {{ path_prefix = "/trigger-dicom" }}
        [backends.dicom_pacs]
        service = "dicom"
        [backends.dicom_pacs.options]
        aet = "{archive.aet}"
        host = "localhost"
        port = {archive.port}
        local_aet = "HARMONY_SCU"
        use_tls = false
        incoming_store_address = "127.0.0.1"
        incoming_store_port = {archive.incoming_port}
    """)
    gateway = Gateway(load(path, env={}))
    await gateway.start()

    async def run(command: str) -> tuple[int, object]:
        run_tool_output = "-s -S -w '\\n%{http_code}'"
        for printed in ("127.0.0.1:8085", "localhost:8080"):
            command = command.replace(printed, f"127.0.0.1:{http_port}")
        command = command.replace("curl ", f"curl {run_tool_output} ", 1)
        finished = await asyncio.to_thread(run_tool, "bash", "-c", command)
        answer, _, status = finished.stdout.rpartition("\n")
        return int(status), json.loads(answer)

    try:
        yield run
    finally:
        await gateway.stop(0.0)


@pytest.fixture
async def filled(curl, tmp_path):
    """Three images are in the archive, sent by curl; their files by SOP Instance UID."""
    files = {}
    for number in (1, 2, 3):
        path = tmp_path / f"image-{number}.dcm"
        path.write_bytes(part10(number))
        status, answer = await curl(
            "curl -X POST http://127.0.0.1:8085/trigger-dicom/store "
            f"-H 'Content-Type: application/dicom' --data-binary @{path}"
        )
        assert (status, answer["success"], answer["status"]) == (200, True, "0000")
        files[answer["sop_instance_uid"]] = path
    return files


def values(answer, key):
    return [match.get(key, {}).get("Value") for match in answer["matches"]]


# The DICOM backend, as described


async def test_trigger_dicom_query(curl, filled):
    status, answer = await curl("""\
curl -X POST http://127.0.0.1:8085/trigger-dicom \\
  -H "Content-Type: application/json" \\
  -d '{
    "operation": "C-FIND",
    "query": {
      "PatientID": "*",
      "PatientName": "*",
      "StudyInstanceUID": ""
    }
  }'
""")
    assert status == 200
    assert (answer["operation"], answer["success"]) == ("find", True)
    assert values(answer, "00100020") == [["12345"]]
    assert values(answer, "00100010") == [[{"Alphabetic": "Müller^Jörg"}]]
    assert values(answer, "0020000D") == [[STUDY]]


async def test_c_find_query(curl, filled):
    status, answer = await curl("""\
curl -X POST http://127.0.0.1:8085/trigger-dicom \\
  -H "Content-Type: application/json" \\
  -d '{
    "operation": "C-FIND",
    "level": "STUDY",
    "query": {
      "StudyInstanceUID": "1.2.3.4.5.6"
    }
  }'
""")
    assert status == 200
    assert values(answer, "0020000D") == [[STUDY]]


async def test_c_move_retrieve(curl, filled):
    status, answer = await curl("""\
curl -X POST http://127.0.0.1:8085/trigger-dicom \\
  -H "Content-Type: application/json" \\
  -d '{
    "operation": "C-MOVE",
    "destination": "HARMONY_SCU",
    "query": {
      "StudyInstanceUID": "1.2.3.4.5.6"
    }
  }'
""")
    assert status == 200
    assert (answer["operation"], answer["success"], answer["file_count"]) == ("move", True, 3)
    assert_files(answer, filled)


def assert_files(answer, filled):
    """The files of the answer's folder hold what was stored, data set for data set."""
    folder = Path(answer["folder_path"])
    assert folder.name == answer["folder_id"]
    assert {path.stem for path in folder.glob("*.dcm")} == set(filled)
    for uid, stored in filled.items():
        ours, theirs = (folder / f"{uid}.dcm").read_bytes(), stored.read_bytes()
        ours_meta, theirs_meta = read_file_meta(ours), read_file_meta(theirs)
        assert ours_meta.transfer_syntax_uid == EXPLICIT
        assert ours[ours_meta.data_set_offset :] == theirs[theirs_meta.data_set_offset :]
    assert {each["00080018"]["Value"][0] for each in answer["instances"]} == set(filled)


# DIMSE integration, as described


@pytest.mark.parametrize("prefix", ["trigger-dicom", "dicom"])
async def test_trigger_c_echo_via_backend(curl, archive, prefix):
    status, answer = await curl(f"curl -X POST http://localhost:8080/{prefix}/echo\n")
    assert (status, answer) == (
        200,
        {
            "operation": "echo",
            "success": True,
            "remote_aet": archive.aet,
            "host": "localhost",
            "port": archive.port,
        },
    )


@pytest.mark.parametrize("prefix", ["trigger-dicom", "dicom"])
async def test_trigger_c_find_via_backend(curl, filled, prefix):
    status, answer = await curl(f"""\
curl -X POST http://localhost:8080/{prefix}/find \\
  -H "Content-Type: application/json" \\
  -d '{{"patient_id": "12345", "query_level": "PATIENT"}}'
""")
    assert status == 200
    assert values(answer, "00100020") == [["12345"]]


# What else there is


async def test_dicom_json(curl, filled):
    status, answer = await curl("""\
curl -X POST http://localhost:8080/dicom/find -H "Content-Type: application/dicom+json" \\
  -d '{"00100020":{"vr":"LO","Value":["*"]},"0020000D":{"vr":"UI","Value":[]}}'
""")
    assert (status, values(answer, "0020000D")) == (200, [[STUDY]])


async def test_get(curl, filled):
    status, answer = await curl("""\
curl -X POST http://localhost:8080/dicom/get -H "Content-Type: application/json" \\
  -d '{"0020000D":{"vr":"UI","Value":["1.2.3.4.5.6"]}}'
""")
    assert (status, answer["operation"], answer["file_count"]) == (200, "get", 3)
    assert_files(answer, filled)


async def test_get_one_instance(curl, filled):
    uid = next(iter(filled))
    status, answer = await curl(
        "curl 'http://localhost:8080/dicom/get"
        f"?StudyInstanceUID={STUDY}&SeriesInstanceUID={STUDY}.1&SOPInstanceUID={uid}'"
    )
    assert (status, answer["file_count"]) == (200, 1)
    assert_files(answer, {uid: filled[uid]})


@pytest.mark.parametrize("operation", ["get", "move"])
async def test_a_study_that_is_not_there(curl, filled, operation):
    status, answer = await curl(f"""\
curl -X POST http://localhost:8080/dicom/{operation} -H "Content-Type: application/json" \\
  -d '{{"StudyInstanceUID":"1.2.3.4.9"}}'
""")
    assert (status, answer["error"]) == (404, "Study not found")


async def test_move_to_somebody_else(curl, filled, archive):
    status, answer = await curl("""\
curl -X POST http://localhost:8080/dicom/move -H "Content-Type: application/json" \\
  -d '{"StudyInstanceUID":"1.2.3.4.5.6","destination":"OTHER"}'
""")
    assert (status, answer) == (
        200,
        {
            "operation": "move",
            "success": True,
            "destination": "OTHER",
            "completed": 3,
            "failed": 0,
            "warning": 0,
            "status": "0000",
        },
    )
    assert len(archive.other.received()) == 3


async def test_move_to_nobody(curl, filled, archive):
    status, answer = await curl("""\
curl -X POST http://localhost:8080/dicom/move -H "Content-Type: application/json" \\
  -d '{"StudyInstanceUID":"1.2.3.4.5.6","destination":"NOBODY"}'
""")
    assert (status, answer["success"]) == (502, False)
    if archive.aet == "ARCHIVE":
        assert answer["status"] == "A801"  # Orthanc answers C000


async def test_store_of_many(curl, archive, tmp_path):
    body = b"".join(
        b"--b\r\nContent-Type: application/dicom\r\n\r\n" + part10(number) + b"\r\n" for number in range(1, 6)
    )
    (tmp_path / "body").write_bytes(body + b"--b--\r\n")
    status, answer = await curl(
        "curl -X POST http://localhost:8080/dicom/store "
        """-H 'Content-Type: multipart/related; type="application/dicom"; boundary=b' """
        f"--data-binary @{tmp_path / 'body'}"
    )
    assert (status, answer["success"]) == (200, True)
    assert [each["status"] for each in answer["instances"]] == ["0000"] * 5
    if archive.http_port:
        assert len(await asyncio.to_thread(instances_of, archive.http_port)) == 5


def instances_of(http_port):
    with contextlib.closing(
        urllib.request.urlopen(f"http://127.0.0.1:{http_port}/instances", timeout=30)
    ) as answer:
        return json.load(answer)
