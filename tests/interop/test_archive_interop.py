"""The gateway as an archive for DCMTK, pynetdicom and Orthanc: the commands of the users' document on dicom_scp as they
are printed there, and what is retrieved against what was stored, byte by byte."""

import asyncio
import json
import re

import pytest

from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES, Transcoder
from harmony.dimse import associate, contexts_for
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

pytestmark = pytest.mark.interop

STUDY = "1.2.3.4.5"


@pytest.fixture
def archive(free_port, run_tool, start_gateway):
    """A gateway as in the document; set destinations (AE title -> port) and start it."""

    class Archive:
        def __init__(self):
            self.port, self.destinations = free_port, {}

        async def start(self):
            table = "".join(
                f'{name} = {{ host = "127.0.0.1", port = {port} }}\n'
                for name, port in self.destinations.items()
            )
            await start_gateway(
                f"""
                [network.default.dicom]
                bind_address = "127.0.0.1"
                bind_port = {self.port}
                [pipelines.scp]
                networks = ["default"]
                endpoints = ["scp"]
                backends = []
                [endpoints.scp]
                service = "dicom"
                [endpoints.scp.options]
                local_aet = "HARMONY_SCP"
                min_free_bytes = 0
                [endpoints.scp.options.aet_table]
                {table}
                """
            )

        async def tool(self, name, *arguments, **options):
            """As printed in the document, but for the port."""
            words = [self.port if word == "11112" else word for word in arguments]
            return (await asyncio.to_thread(run_tool, name, *words, **options)).stdout

    return Archive()


@pytest.fixture
def small_files(pydicom_files):
    """One sample of each transfer syntax, small ones first, in which DCMTK's tools send and take files as they are."""
    by_syntax, uids = {}, set()
    for sample in sorted(pydicom_files, key=lambda each: len(each.data_set)):
        # Several samples are one image in different transfer syntaxes, with one UID.
        if sample.transfer_syntax_uid not in by_syntax and sample.sop_instance_uid not in uids:
            by_syntax[sample.transfer_syntax_uid] = sample
            uids.add(sample.sop_instance_uid)
    return list(by_syntax.values())


async def test_the_document(archive, start_storescp, ct_file, data_sets, tmp_path):
    """Every command of the document, in its order; C-STORE works as well."""
    destination = await asyncio.to_thread(start_storescp, ae_title="DEST_AET")
    archive.destinations = {"DEST_AET": destination.port}
    await archive.start()
    files = [ct_file(number) for number in (1, 2, 3)]
    other = ct_file(1, study="1.2.9", patient="OTHER")
    await archive.tool("storescu", "-aec", "HARMONY_SCP", "127.0.0.1", "11112", *files, other)
    assert (tmp_path / "storage" / "dimse" / STUDY / f"{STUDY}.1" / f"{STUDY}.1.1.dcm").is_file()

    await archive.tool("echoscu", "-aec", "HARMONY_SCP", "127.0.0.1", "11112")

    find = ("findscu", "-aec", "HARMONY_SCP")
    printed = await archive.tool(*find, "-P", "127.0.0.1", "11112", "-k", "0010,0020=*")
    assert sorted(re.findall(r"\(0010,0020\) LO \[(\w+)", printed)) == ["OTHER", "PATIENT123"]
    printed = await archive.tool(*find, "-P", "127.0.0.1", "11112", "-k", "0010,0020=PATIENT123")
    assert re.findall(r"\(0010,0020\) LO \[(\w+)", printed) == ["PATIENT123"]
    printed = await archive.tool(*find, "-S", "127.0.0.1", "11112", "-k", "0020,000D=*")
    assert sorted(re.findall(r"\(0020,000d\) UI \[([0-9.]+)", printed)) == ["1.2.3.4.5", "1.2.9"]

    got = tmp_path / "got"
    got.mkdir()
    await archive.tool(
        "getscu", "-aec", "HARMONY_SCP", "127.0.0.1", "11112", "-k", "0020,000D=1.2.3.4.5", cwd=got
    )
    assert data_sets(got.iterdir()) == data_sets(files)

    await archive.tool(
        *("movescu", "-aec", "HARMONY_SCP", "-aem", "DEST_AET"),
        *("127.0.0.1", "11112", "-k", "0020,000D=1.2.3.4.5"),
    )
    assert data_sets(destination.received()) == data_sets(files)


async def test_every_transfer_syntax_comes_back_as_it_was_stored(
    archive, small_files, start_storescp, data_sets
):
    """With movescu, whose storescp takes what it is offered. At least ten, the rule of this project."""
    assert len(small_files) >= 10
    destination = await asyncio.to_thread(start_storescp, ae_title="DEST_AET")
    archive.destinations = {"DEST_AET": destination.port}
    await archive.start()
    paths = [sample.path for sample in small_files]
    async with associate(
        "127.0.0.1", archive.port, called_ae_title="HARMONY_SCP", contexts=contexts_for(paths)
    ) as scu:
        for path in paths:
            await scu.store(path)
    for sample in small_files:
        await archive.tool(
            *("movescu", "-aec", "HARMONY_SCP", "-aem", "DEST_AET", "127.0.0.1", "11112"),
            *("-k", "0008,0052=IMAGE", "-k", f"0008,0018={sample.sop_instance_uid}"),
        )
    received = data_sets(destination.received())
    # storescp pads a data set that was stored with an odd length, as one of the samples is.
    assert received == {
        sample.sop_instance_uid: sample.data_set + b"\0" * (len(sample.data_set) % 2)
        for sample in small_files
    }


@pytest.fixture
def native_files(pydicom_files):
    """Four small samples of each native transfer syntax at most, each of another image."""
    chosen = {}
    for sample in sorted(pydicom_files, key=lambda each: len(each.data_set)):
        like = [each for each in chosen.values() if each.transfer_syntax_uid == sample.transfer_syntax_uid]
        if sample.transfer_syntax_uid in NATIVE_TRANSFER_SYNTAXES and len(like) < 4:
            chosen.setdefault(sample.sop_instance_uid, sample)
    assert {each.transfer_syntax_uid for each in chosen.values()} == set(NATIVE_TRANSFER_SYNTAXES)
    return list(chosen.values())


@pytest.mark.parametrize(
    ("how", "syntax"), [("get", EXPLICIT_VR_LITTLE_ENDIAN), ("move", IMPLICIT_VR_LITTLE_ENDIAN)]
)
async def test_a_receiver_of_one_transfer_syntax(
    archive, data_sets, native_files, start_storescp, tmp_path, how, syntax
):
    """What it does not accept is converted for it, whatever it was stored in."""
    destination = await asyncio.to_thread(start_storescp, "+xi", ae_title="DEST_AET")
    archive.destinations = {"DEST_AET": destination.port}
    await archive.start()
    paths = [sample.path for sample in native_files]
    async with associate(
        "127.0.0.1", archive.port, called_ae_title="HARMONY_SCP", contexts=contexts_for(paths)
    ) as scu:
        for path in paths:
            await scu.store(path)
    got = tmp_path / "got"
    got.mkdir()
    for sample in native_files:
        key = ("-k", "0008,0052=IMAGE", "-k", f"0008,0018={sample.sop_instance_uid}")
        peer = ("-aec", "HARMONY_SCP", "127.0.0.1", "11112")
        if how == "get":
            # Its +xi proposes Explicit VR all the same, as of DCMTK 3.6.7.
            await archive.tool("getscu", "+xe", "+B", *peer, *key, cwd=got)
        else:
            await archive.tool("movescu", "-aem", "DEST_AET", *peer, *key)
    received = data_sets(got.iterdir() if how == "get" else destination.received())
    assert received == {
        sample.sop_instance_uid: converted(sample.data_set, sample.transfer_syntax_uid, syntax)
        for sample in native_files
    }


def converted(data_set, source, target):
    """Compared with DCMTK's conversion in test_transcode_interop."""
    if source == target:
        return data_set
    transcoder = Transcoder(source, target)
    return b"".join([*transcoder.feed(data_set), *transcoder.finish()])


async def test_orthanc_queries_and_retrieves(archive, start_orthanc, run_tool, ct_file):
    orthanc = await asyncio.to_thread(start_orthanc, modalities={"harmony": ("HARMONY_SCP", archive.port)})
    archive.destinations = {"ORTHANC": orthanc.port}
    await archive.start()
    files = [ct_file(number) for number in (1, 2, 3)]
    await archive.tool("storescu", "-aec", "HARMONY_SCP", "127.0.0.1", "11112", *files)

    async def curl(path, body=None):
        data = ("-X", "POST", "-d", body) if body is not None else ()
        url = f"http://127.0.0.1:{orthanc.http_port}{path}"
        return json.loads((await asyncio.to_thread(run_tool, "curl", "-sSf", *data, url)).stdout)

    query = await curl("/modalities/harmony/query", '{"Level":"Study","Query":{"PatientID":"*"}}')
    (answer,) = await curl(f"{query['Path']}/answers")
    content = await curl(f"{query['Path']}/answers/{answer}/content?simplify")
    assert content["StudyInstanceUID"] == STUDY
    await curl(f"{query['Path']}/answers/{answer}/retrieve", '{"TargetAet":"ORTHANC","Synchronous":true}')
    assert len(await curl("/instances")) == 3


async def test_pynetdicom_as_client(archive, require_peer, ct_file, data_sets):
    """C-FIND at each level and C-GET, in both roots; sub-operations come as they were stored."""
    require_peer("pynetdicom")
    from pydicom.dataset import Dataset
    from pynetdicom import AE, build_role, evt
    from pynetdicom import sop_class as sop

    await archive.start()
    files = [ct_file(number) for number in (1, 2)]
    await archive.tool("storescu", "-aec", "HARMONY_SCP", "127.0.0.1", "11112", *files)
    received = {}

    def keep(event):
        received[event.request.AffectedSOPInstanceUID] = event.request.DataSet.getvalue()
        return 0x0000

    def ask():
        entity = AE()
        for uid in (
            sop.PatientRootQueryRetrieveInformationModelFind,
            sop.StudyRootQueryRetrieveInformationModelFind,
            sop.PatientRootQueryRetrieveInformationModelGet,
            sop.StudyRootQueryRetrieveInformationModelGet,
        ):
            entity.add_requested_context(uid)
        entity.add_requested_context(sop.CTImageStorage, "1.2.840.10008.1.2.1")
        association = entity.associate(
            "127.0.0.1",
            archive.port,
            ae_title="HARMONY_SCP",
            ext_neg=[build_role(sop.CTImageStorage, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, keep)],
        )
        assert association.is_established
        counts = {}
        for model, levels in (
            (sop.PatientRootQueryRetrieveInformationModelFind, ("PATIENT", "STUDY", "SERIES", "IMAGE")),
            (sop.StudyRootQueryRetrieveInformationModelFind, ("STUDY", "SERIES", "IMAGE")),
        ):
            for level in levels:
                identifier = Dataset()
                identifier.QueryRetrieveLevel = level
                identifier.PatientID = "PATIENT123"
                answers = [status.Status for status, _ in association.send_c_find(identifier, model)]
                assert set(answers[:-1]) == {0xFF00}
                assert answers[-1] == 0x0000
                counts[model.name, level] = len(answers) - 1
        identifier = Dataset()
        identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
        statuses = [
            status.Status
            for status, _ in association.send_c_get(identifier, sop.StudyRootQueryRetrieveInformationModelGet)
        ]
        association.release()
        return list(counts.values()), statuses[-1]

    counts, status = await asyncio.to_thread(ask)
    assert counts == [1, 1, 1, 2, 1, 1, 2]
    assert status == 0x0000
    assert received == data_sets(files)
