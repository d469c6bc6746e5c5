"""DCMTK's tools in front of the gateway, Orthanc's DICOMweb plugin behind it: dicom_to_dicomweb."""

import asyncio
import json
import re

import pydicom
import pytest
from pydicom.uid import JPEGBaseline8Bit

from harmony.http import HTTPServer, Response

pytestmark = pytest.mark.interop

STUDY = "1.2.3.4.5"


@pytest.fixture
def bridge(free_port, run_tool, start_gateway):
    """start(http_port) a gateway; tool(name, ...) runs one of DCMTK's tools against it."""

    class Bridge:
        async def start(self, http_port, *, destinations=()):
            table = "".join(
                f'{name} = {{ host = "127.0.0.1", port = {port} }}\n' for name, port in destinations
            )
            return await start_gateway(
                f"""
                [network.default.dicom]
                bind_address = "127.0.0.1"
                bind_port = {free_port}
                [pipelines.bridge]
                networks = ["default"]
                endpoints = ["scp"]
                middleware = ["dicom_to_dicomweb"]
                backends = ["web"]
                [endpoints.scp]
                service = "dicom_scp"
                [endpoints.scp.options]
                local_aet = "BRIDGE_SCP"
                [endpoints.scp.options.aet_table]
                {table}
                [backends.web]
                service = "http"
                connection = {{ host = "127.0.0.1", port = {http_port}, base_path = "/dicom-web" }}
                options.timeout_secs = 20
                """
            )

        async def tool(self, name, *arguments, **options):
            words = ("-aec", "BRIDGE_SCP", "127.0.0.1", free_port, *arguments)
            return (await asyncio.to_thread(run_tool, name, *words, **options)).stdout

    return Bridge()


@pytest.fixture
def files(ct_file):
    """Three CT images in two series, and one of another patient's study."""
    return [ct_file(1), ct_file(2), ct_file(3, series=2), ct_file(4, study="1.2.3.4.6", patient="OTHER")]


@pytest.fixture
async def filled(bridge, start_orthanc, start_storescp, files):
    """The bridge, with the files in Orthanc, which came through it."""
    orthanc = await asyncio.to_thread(start_orthanc)
    bridge.destination = await asyncio.to_thread(start_storescp, ae_title="DEST")
    await bridge.start(orthanc.http_port, destinations=[("DEST", bridge.destination.port)])
    await bridge.tool("echoscu")
    await bridge.tool("storescu", *files)
    return bridge


LEVELS = [
    ("PATIENT", ["0010,0020=PATIENT123"], [1, 2, 3]),
    ("STUDY", [f"0020,000D={STUDY}"], [1, 2, 3]),
    ("SERIES", [f"0020,000D={STUDY}", f"0020,000E={STUDY}.1"], [1, 2]),
    ("IMAGE", [f"0020,000D={STUDY}", f"0020,000E={STUDY}.2", f"0008,0018={STUDY}.2.3"], [3]),
]


@pytest.mark.parametrize(("level", "keys", "numbers"), LEVELS)
async def test_every_level(filled, files, data_sets, tmp_path, level, keys, numbers):
    words = [word for key in (f"0008,0052={level}", *keys) for word in ("-k", key)]
    printed = await filled.tool("findscu", "-P", *words, "-k", "0010,0010")
    assert printed.count("Find Response:") == 1
    assert re.findall(r"\(0010,0010\) PN \[([^]]+?) *\]", printed)[-1] == "Doe^Jane"
    assert re.findall(r"\(0008,0054\) AE \[(\w+)", printed) == ["BRIDGE_SCP"]
    wanted = data_sets([files[number - 1] for number in numbers])
    got = tmp_path / "got"
    got.mkdir()
    await filled.tool("getscu", "-P", *words, cwd=got)
    assert data_sets(got.iterdir()) == wanted
    await filled.tool("movescu", "-P", *words, "-aem", "DEST")
    assert data_sets(filled.destination.received()) == wanted
    # Nothing was kept on the way.
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        (["0008,0052=STUDY", "0020,000D"], 2),
        (["0008,0052=STUDY", f"0020,000D={STUDY}\\1.2.3.4.6"], 2),
        (["0008,0052=STUDY", "0010,0010=Doe^J*", "0008,0020=20260101-20260103"], 2),
        (["0008,0052=STUDY", "0010,0020=OTH*"], 1),
        (["0008,0052=STUDY", "0008,0020=20270101-"], 0),
        (["0008,0052=STUDY", "0008,0061=CT"], 2),
        (["0008,0052=STUDY", "0010,0010=Doe^J?ne", "0008,0050=A1"], 2),
        (["0008,0052=PATIENT", "0010,0020"], 2),
        (["0008,0052=SERIES", f"0020,000D={STUDY}", "0020,000E", "0020,1209"], 2),
        (["0008,0052=SERIES", f"0020,000D={STUDY}", "0008,0060=MR"], 0),
        (["0008,0052=IMAGE", f"0020,000D={STUDY}", f"0020,000E={STUDY}.1", "0008,0018"], 2),
        (["0008,0052=IMAGE", f"0020,000D={STUDY}", f"0020,000E={STUDY}.9", "0008,0018"], 0),
    ],
)
async def test_searches(filled, keys, count):
    model = "-P" if "PATIENT" in keys[0] else "-S"
    words = [word for key in keys for word in ("-k", key)]
    printed = await filled.tool("findscu", "-v", model, *words)
    assert printed.count("Find Response:") == count
    assert "Success" in printed


async def test_a_compressed_object_stays_as_it_is(filled, pydicom_files, data_sets, tmp_path):
    sample = next(each for each in pydicom_files if each.transfer_syntax_uid == JPEGBaseline8Bit)
    study = pydicom.dcmread(sample.path, stop_before_pixels=True).StudyInstanceUID
    await filled.tool("storescu", "-xy", sample.path)
    got = tmp_path / "got"
    got.mkdir()
    await filled.tool("getscu", "+xy", "-S", "-k", "0008,0052=STUDY", "-k", f"0020,000D={study}", cwd=got)
    assert data_sets(got.iterdir()) == data_sets([sample.path])


async def test_a_retrieve_of_what_is_not_there(filled, tmp_path):
    printed = await filled.tool(
        "getscu", "-v", "-S", "-k", "0008,0052=STUDY", "-k", "0020,000D=1.9", cwd=tmp_path
    )
    assert "Success" in printed


async def test_a_server_that_is_down(bridge, free_ports, files):
    (nobody,) = free_ports(1)
    await bridge.start(nobody)
    await bridge.tool("echoscu")  # is about us
    printed = await bridge.tool("storescu", "-v", files[0], status=None)
    assert "Refused: OutOfResources" in printed
    printed = await bridge.tool("findscu", "-v", "-S", "-k", "0020,000D=*", status=None)
    assert "Failed: UnableToProcess" in printed


@pytest.mark.parametrize("ending", ["is whole", "breaks off"])
async def test_a_retrieve_that_is_not_complete(bridge, ct_file, start_storescp, data_sets, ending):
    """A server that lists two instances and has one; what came of it is said in the final response of the C-MOVE."""
    file = ct_file(1).read_bytes()

    async def chunks():
        yield b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file
        if ending == "breaks off":
            yield b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + file[:600]
            raise RuntimeError("the server dies")
        yield b"\r\n--b--\r\n"

    async def answer(request):
        if not request.path.endswith("/instances"):
            return Response(
                200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}, chunks()
            )
        uids = {"00080016": "1.2.840.10008.5.1.4.1.1.2", "0020000D": STUDY, "0020000E": f"{STUDY}.1"}
        found = [uids | {"00080018": f"{STUDY}.1.{number}"} for number in (1, 2)]
        listed = [{tag: {"vr": "UI", "Value": [uid]} for tag, uid in each.items()} for each in found]
        return Response(200, {"Content-Type": "application/dicom+json"}, json.dumps(listed).encode())

    server = HTTPServer(answer)
    await server.start("127.0.0.1", 0)
    try:
        destination = await asyncio.to_thread(start_storescp, ae_title="DEST")
        await bridge.start(server.addresses[0][1], destinations=[("DEST", destination.port)])
        keys = ("-k", "0008,0052=STUDY", "-k", f"0020,000D={STUDY}")
        printed = await bridge.tool("movescu", "-d", "-S", *keys, "-aem", "DEST", status=None)
    finally:
        await server.stop()
    final = printed[printed.rindex("Received Final Move Response") :] if "Final Move" in printed else printed
    assert re.findall(r"(Completed|Failed) Suboperations *: (\d+)", final) == [
        ("Completed", "1"),
        ("Failed", "1"),
    ]
    assert len(data_sets(destination.received())) == 1
