"""Envelopes of studies that Orthanc has: everything it was sent is in them as it was sent, or there is none."""

import asyncio
import io
import json
import os
import signal
import zipfile
from dataclasses import dataclass

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from harmony.dimse import Instance, associate
from harmony.dimse.part10 import read_file_meta
from harmony.gateway.app import Gateway
from harmony.gateway.loading import load
from harmony.http.client import HTTPClient
from harmony.jmix.reader import check_envelope
from harmony.ul.negotiation import propose_contexts

pytestmark = pytest.mark.interop

CT, MR, SC, SR = (f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("2", "4", "7", "88.11"))
IMPLICIT, EXPLICIT, JPEG, RLE = (f"1.2.840.10008.1.2{suffix}" for suffix in ("", ".1", ".4.50", ".5"))
STUDY = "1.2.826.0.1.3680043.10.9999.1"
PATIENCE_S = 60.0
MODALITIES = {CT: "CT", MR: "MR", SC: "OT", SR: "SR"}


def image(series, number, *, study=STUDY, sop_class=CT, syntax=EXPLICIT, pixels=bytes(2000)):
    """Series number and instance number are those of the arguments; pixels as they are, encoded or not."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, f"{study}.{series}.{number}"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260102", "030405", "A1"
    dataset.Modality, dataset.PatientName, dataset.PatientID = MODALITIES[sop_class], "DOE^JANE", "PID1"
    dataset.PatientBirthDate, dataset.PatientSex = "19700131", "F"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.{series}"
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "S1", series, number
    if sop_class != SR:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = max(1, len(pixels) // 2000), 1000
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = 0
        encapsulated = syntax in (JPEG, RLE)
        dataset.PixelData = encapsulate([pixels]) if encapsulated else pixels
        dataset["PixelData"].VR = "OB" if encapsulated else "OW"
        dataset["PixelData"].is_undefined_length = encapsulated
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, syntax == IMPLICIT
    write_dataset(buffer, dataset)
    return Instance(sop_class, dataset.SOPInstanceUID, syntax, buffer.getvalue())


async def send(orthanc, instances):
    contexts = {(each.sop_class_uid, each.transfer_syntax_uid): None for each in instances}
    proposed = propose_contexts([(sop_class, [syntax]) for sop_class, syntax in contexts])
    async with associate("127.0.0.1", orthanc.port, called_ae_title="ORTHANC", contexts=proposed) as scu:
        for instance in instances:
            assert (await scu.store(instance)).status == 0


@dataclass
class Gate:
    """A gateway whose jmix endpoint has Orthanc behind it."""

    folder: object
    http_port: int

    async def ask(self, path):
        client = HTTPClient(f"http://127.0.0.1:{self.http_port}/jmix/api/jmix", timeout_s=PATIENCE_S)
        try:
            return await client.request("GET", path)
        finally:
            await client.aclose()

    def left(self):
        names = (path.name for path in self.folder.rglob("*") if path.is_file())
        return sorted(name for name in names if not name.startswith("jmix-index"))


@pytest.fixture
async def gate(tmp_path, free_ports):
    """gate(port of the PACS, options of the backend): a Gate, started."""
    running = []

    async def start(port, options=""):
        (http_port,) = free_ports(1)
        path = tmp_path / "config.toml"
        path.write_text(
            f"""
            [proxy]
            id = "gate"
            [storage.options]
            path = "{tmp_path / "storage"}"
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {http_port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["jmix"]
            middleware = ["jmix_builder"]
            backends = ["orthanc"]
            [endpoints.jmix]
            service = "jmix"
            options.path_prefix = "/jmix"
            [backends.orthanc]
            service = "dicom_scu"
            connection = {{ host = "127.0.0.1", port = {port} }}
            [backends.orthanc.options]
            aet = "ORTHANC"
            {options}
            """
        )
        gateway = Gateway(load(path, env={}))
        await gateway.start()
        running.append(gateway)
        return Gate(tmp_path / "storage" / "jmix-store", http_port)

    yield start
    for gateway in running:
        await gateway.stop(0.0)


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("mode", ["get", "move"])
async def test_study_of_several_series_and_transfer_syntaxes(
    start_orthanc, gate, run_tool, free_port, tmp_path, mode
):
    orthanc = start_orthanc(modalities={"us": ("HARMONY_SCU", free_port)})
    sent = [
        image(2, 2),
        image(2, 1),
        image(1, 1, sop_class=MR, syntax=IMPLICIT),
        image(3, 1, sop_class=SC, syntax=JPEG, pixels=b"\xff\xd8" + bytes(1000) + b"\xff\xd9"),
        image(3, 2, sop_class=SC, syntax=RLE, pixels=bytes(64) + b"\x81\0" * 8),
        image(4, 1, sop_class=SR),
        image(5, 1, pixels=os.urandom(3_000_000)),
    ]
    await send(orthanc, [*sent, image(1, 1, study="1.2.826.0.1.3680043.10.9999.2")])
    served = await gate(
        orthanc.port,
        f"""
        dimse_retrieve_mode = "{mode}"
        incoming_store_address = "127.0.0.1"
        incoming_store_port = {free_port}
        """,
    )
    answer = await served.ask(f"?studyInstanceUid={STUDY}")
    assert (answer.status, answer.headers.get("content-type")) == (200, "application/zip")
    envelope = tmp_path / "envelope.zip"
    envelope.write_bytes(answer.body)
    info = check_envelope(envelope)
    assert (info.instance_count, info.study_instance_uids) == (len(sent), (STUDY,))
    assert info.payload_hash_checked
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.testzip() is None
        found, names = {}, {}
        for name in archive.namelist():
            if name.endswith(".dcm"):
                content = archive.read(name)
                meta = read_file_meta(content)
                data_set = content[meta.data_set_offset :]
                found[meta.media_storage_sop_instance_uid] = (
                    meta.media_storage_sop_class_uid,
                    meta.transfer_syntax_uid,
                    data_set,
                )
                names[name] = meta.media_storage_sop_instance_uid
                pydicom.dcmread(io.BytesIO(content))
        metadata = json.loads(archive.read("payload/metadata.json"))
    assert found == {
        each.sop_instance_uid: (each.sop_class_uid, each.transfer_syntax_uid, each.data) for each in sent
    }
    assert names == {
        "payload/series_1/image_001.dcm": f"{STUDY}.1.1",
        "payload/series_2/image_001.dcm": f"{STUDY}.2.1",
        "payload/series_2/image_002.dcm": f"{STUDY}.2.2",
        "payload/series_3/image_001.dcm": f"{STUDY}.3.1",
        "payload/series_3/image_002.dcm": f"{STUDY}.3.2",
        "payload/series_4/image_001.dcm": f"{STUDY}.4.1",
        "payload/series_5/image_001.dcm": f"{STUDY}.5.1",
    }
    study = metadata["studies"][STUDY]
    assert (study["patient_name"], study["study_date"]) == ("DOE^JANE", "20260102")
    assert [each["modality"] for each in study["series"]] == ["MR", "CT", "OT", "SR", "CT"]
    tested = await asyncio.to_thread(run_tool, "unzip", "-t", envelope)
    assert "No errors detected" in tested.stdout
    prime = await served.ask(f"/prime/{STUDY}")
    assert (prime.status, json.loads(prime.body)) == (200, {"id": info.id, "status": "ready"})


async def test_study_that_orthanc_does_not_have(start_orthanc, gate):
    orthanc = start_orthanc()
    await send(orthanc, [image(1, 1)])
    served = await gate(orthanc.port)
    for path in ("?studyInstanceUid=1.2.99", "/prime/1.2.99"):
        answer = await served.ask(path)
        assert (answer.status, list(json.loads(answer.body))) == (404, ["error"])
    assert served.left() == []


async def test_orthanc_that_is_not_there(start_orthanc, gate):
    orthanc = start_orthanc()
    served = await gate(orthanc.port)
    orthanc.process.kill()
    orthanc.process.wait()
    assert (await served.ask(f"?studyInstanceUid={STUDY}")).status == 502
    assert served.left() == []


async def test_orthanc_that_dies_on_the_way(start_orthanc, gate):
    orthanc = start_orthanc()
    await send(orthanc, [image(1, number, pixels=bytes(1_000_000)) for number in range(1, 101)])
    served = await gate(orthanc.port)
    asking = asyncio.create_task(served.ask(f"?studyInstanceUid={STUDY}"))
    await until(lambda: any(path.stat().st_size for path in (served.folder / "incoming").iterdir()))
    os.killpg(orthanc.process.pid, signal.SIGKILL)
    assert (await asking).status == 502
    assert served.left() == []


async def test_client_that_leaves(start_orthanc, gate):
    """In the middle of it, which is why Orthanc is stopped meanwhile; then the study can be had as before."""
    orthanc = start_orthanc()
    await send(orthanc, [image(1, number, pixels=bytes(1_000_000)) for number in range(1, 51)])
    served = await gate(orthanc.port)
    _, writer = await asyncio.open_connection("127.0.0.1", served.http_port)
    writer.write(f"GET /jmix/api/jmix?studyInstanceUid={STUDY} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    await until(lambda: any(path.stat().st_size for path in (served.folder / "incoming").iterdir()))
    os.killpg(orthanc.process.pid, signal.SIGSTOP)
    writer.close()
    os.killpg(orthanc.process.pid, signal.SIGCONT)
    await until(lambda: served.left() == [])
    answer = await served.ask(f"/prime/{STUDY}")
    assert answer.status == 201
    (envelope,) = served.folder.glob("*/*.zip")
    assert check_envelope(envelope).instance_count == 50
