"""The dicom_scu backend and real archives: DCMTK's dcmqrscp, Orthanc, and SCPs on pynetdicom.

Each archive is filled by the backend's own C-STORE, asked at all levels in both information models, and everything is
retrieved again by C-GET and C-MOVE, byte by byte in the transfer syntax in which it was stored.
"""

import asyncio
import contextlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.dicom.json_model import encode_data_set, text_of
from harmony.dimse import DimseError, Instance, Outcome
from harmony.dimse.information_model import PATIENT_ROOT, STUDY_ROOT
from harmony.dimse.retrieve_scp import Unavailable
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.config import Backend, Origin, Target
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.options import DicomScuOptions
from harmony.gateway.store_receiver import StoreReceivers

pytestmark = pytest.mark.interop

CT, MR, SC = (f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("2", "4", "7"))
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
ENCAPSULATED = [
    f"1.2.840.10008.1.2.{suffix}"
    for suffix in ("4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5")
]
NO_DELAY = {"TCP_NODELAY": "1"}
PATIENCE_S = 60.0

ROOT = "1.2.826.0.1.3680043.10.1"


@dataclass(frozen=True)
class Image:
    patient: str
    study: str
    series: str
    instance: Instance

    @property
    def uid(self):
        return self.instance.sop_instance_uid


def image(patient, study, series, number, *, sop_class=CT, syntax=EXPLICIT):
    """UIDs are ROOT.study, ROOT.study.series, ROOT.study.series.number."""
    study, series = f"{ROOT}.{study}", f"{ROOT}.{study}.{series}"
    uid = f"{series}.{number}"
    model = {
        "SOPClassUID": sop_class, "SOPInstanceUID": uid,
        "StudyDate": "20240102", "StudyTime": "030405", "AccessionNumber": f"A{patient}", "Modality": "OT",
        "PatientName": f"Müller^{patient}", "PatientID": patient, "PatientBirthDate": "19700101", "PatientSex": "O",
        "StudyInstanceUID": study, "SeriesInstanceUID": series, "StudyID": "S1",
        "SeriesNumber": 1, "InstanceNumber": number,
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": 8, "Columns": 8,
        "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
    }  # fmt: skip
    model = {name: {"Value": [value]} for name, value in model.items()}
    pixels = bytes([number % 256]) * 64
    header_syntax = EXPLICIT if syntax == DEFLATED else syntax
    data = encode_data_set(model, header_syntax, character_set="ISO_IR 100") + pixel_data(pixels, syntax)
    if syntax == DEFLATED:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflater.compress(data) + deflater.flush()
        data += b"\0" * (len(data) % 2)
    return Image(patient, study, series, Instance(sop_class, uid, syntax, data))


def pixel_data(pixels, syntax):
    """(7FE0,0010) as PS3.5 §A.1 to A.4 have it; what is compressed is not looked at by an archive."""
    if syntax == IMPLICIT:
        return b"\xe0\x7f\x10\x00" + len(pixels).to_bytes(4, "little") + pixels
    if syntax == BIG_ENDIAN:
        return b"\x7f\xe0\x00\x10OB\0\0" + len(pixels).to_bytes(4, "big") + pixels
    if syntax in (EXPLICIT, DEFLATED):
        return b"\xe0\x7f\x10\x00OB\0\0" + len(pixels).to_bytes(4, "little") + pixels
    item = b"\xfe\xff\x00\xe0"
    return (
        b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + item + b"\0\0\0\0"
        + item + len(pixels).to_bytes(4, "little") + pixels + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )  # fmt: skip


IMAGES = [
    *(image("P1", 1, 1, number) for number in range(1, 5)),
    *(image("P1", 1, 2, number, sop_class=MR) for number in range(1, 4)),
    image("P1", 2, 1, 1),
    *(image("P2", 3, 1, number) for number in range(1, 6)),
]


# The archives


@pytest.fixture
def pynetdicom_archive(require_peer, free_ports):
    """start(destinations) -> its port; an SCP in the manner of pynetdicom's qrscp, with the AE title PYNETDICOM."""
    require_peer("pynetdicom")
    from pynetdicom import AE, evt

    stored = []

    def handle_store(event):
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        stored.append(dataset)
        return 0x0000

    def matching(event):
        names = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        wanted = {name: event.identifier.get(name) for name in names}
        return [
            each
            for each in stored
            if all(not value or each.get(name) == value for name, value in wanted.items())
        ]

    def handle_find(event):
        answered = []
        for each in matching(event):
            answer = Dataset()
            for element in event.identifier:
                answer.add(each.get(element.tag, element))
            if answer not in answered:
                answered.append(answer)
                yield 0xFF00, answer

    def handle_get(event):
        yield len(matching(event))
        for each in matching(event):
            if event.is_cancelled:
                yield 0xFE00, None
                return
            yield 0xFF00, each

    with contextlib.ExitStack() as running:

        def start(destinations):
            def handle_move(event):
                yield destinations.get(event.move_destination) or (None, None)
                yield from handle_get(event)

            (port,) = free_ports(1)
            entity = AE("PYNETDICOM")
            entity.add_supported_context("1.2.840.10008.1.1")
            for model in (PATIENT_ROOT, STUDY_ROOT):
                for uid in (model.find, model.get, model.move):
                    entity.add_supported_context(uid)
            for each in SYNTAXES:
                syntax = each.instance.transfer_syntax_uid
                entity.add_supported_context(SC, syntax, scu_role=True, scp_role=True)
                entity.add_requested_context(SC, syntax)
            handlers = [
                (evt.EVT_C_STORE, handle_store),
                (evt.EVT_C_FIND, handle_find),
                (evt.EVT_C_GET, handle_get),
                (evt.EVT_C_MOVE, handle_move),
            ]
            server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
            running.callback(server.shutdown)
            return port

        yield start


@dataclass
class Archive:
    name: str
    ae_title: str
    port: int
    incoming_port: int
    receivers: StoreReceivers
    storescp: object = None

    @contextlib.asynccontextmanager
    async def backend(self, **options):
        options = {
            "aet": self.ae_title,
            "local_aet": "HARMONY",
            "incoming_store_address": "127.0.0.1",
            "incoming_store_port": self.incoming_port,
        } | options
        backend = DicomSCU(
            Backend(
                name=self.name,
                service="dicom_scu",
                options=DicomScuOptions(**options),
                target=Target("127.0.0.1", self.port, "dicom", "", False, None, 30.0, 3),
                authentication=None,
                origin=Origin(Path("config.toml"), "backends.pacs"),
            ),
            self.receivers,
        )
        await backend.start()
        try:
            yield backend
            assert backend.pool.lent == 0
        finally:
            await backend.stop(0.0)

    async def fill(self, images):
        async with self.backend() as backend:
            for each in images:
                assert (await backend.store_instance(each.instance)) == Outcome(0)


@pytest.fixture(params=["dcmqrscp", "orthanc"])
async def archive(request, free_port, start_storescp):
    """Has IMAGES."""
    async with asyncio.timeout(PATIENCE_S):
        storescp = await asyncio.to_thread(start_storescp, env=NO_DELAY)
        destinations = {"HARMONY": free_port, "NOBODY": 1, "STORESCP": storescp.port}
        if request.param == "dcmqrscp":
            start = request.getfixturevalue("start_dcmqrscp")
            port, title = await asyncio.to_thread(start, destinations), "ARCHIVE"
        else:
            start = request.getfixturevalue("start_orthanc")
            modalities = {name.lower(): (name, there) for name, there in destinations.items()}
            orthanc = await asyncio.to_thread(start, modalities=modalities)
            port, title = orthanc.port, orthanc.ae_title
        archive = Archive(request.param, title, port, free_port, StoreReceivers(), storescp)
        await archive.fill(IMAGES)
        yield archive


async def found(backend, level, key, given, *, patient_root=False):
    identifier = {tag: {"Value": [value]} if value else {} for tag, value in given.items()}
    query = Query(level, identifier, patient_root=patient_root)
    return sorted({text_of(match, int(key, 16)) async for match in backend.query(query)})


async def fetched(selection):
    got = {}
    async for item in selection.instances:
        assert not isinstance(item, Unavailable)
        data = b"".join([bytes(piece) async for piece in item.data])
        got[item.sop_instance_uid] = (item.sop_class_uid, item.transfer_syntax_uid, data)
    return got


def as_stored(images):
    return {
        each.uid: (each.instance.sop_class_uid, each.instance.transfer_syntax_uid, each.instance.data)
        for each in images
    }


async def test_echo(archive):
    async with archive.backend() as backend:
        await backend.echo()


@pytest.mark.parametrize("patient_root", [False, True], ids=["Study Root", "Patient Root"])
async def test_query_at_every_level(archive, patient_root):
    above = {"00100020": "P1"} if patient_root else {}
    study, series = f"{ROOT}.1", f"{ROOT}.1.2"
    async with archive.backend() as backend:
        patients = await found(
            backend, Level.PATIENT, "00100020", {"00100010": ""}, patient_root=patient_root
        )
        assert patients == ["P1", "P2"]
        given = {"00100020": "P1"}
        studies = await found(backend, Level.STUDY, "0020000D", given, patient_root=patient_root)
        assert studies == [f"{ROOT}.1", f"{ROOT}.2"]
        given = {"0020000D": study, **above}
        in_study = await found(backend, Level.SERIES, "0020000E", given, patient_root=patient_root)
        assert in_study == [f"{ROOT}.1.1", f"{ROOT}.1.2"]
        given = {"0020000D": study, "0020000E": series, **above}
        images = await found(backend, Level.IMAGE, "00080018", given, patient_root=patient_root)
        assert images == [f"{ROOT}.1.2.{number}" for number in range(1, 4)]
        nothing = await found(backend, Level.STUDY, "0020000D", {"00100020": "P9"}, patient_root=patient_root)
        assert nothing == []


async def test_query_with_characters_outside_ascii(archive):
    given = {"00080005": "ISO_IR 100", "00100010": "Müller^P1*", "00100020": ""}
    async with archive.backend() as backend:
        assert await found(backend, Level.STUDY, "00100010", given) == ["Müller^P1"]


RETRIEVES = {
    "patient": (Level.PATIENT, UniqueKeys(["P1"]), IMAGES[:8]),
    "study": (Level.STUDY, UniqueKeys(None, [f"{ROOT}.1"]), IMAGES[:7]),
    "series": (Level.SERIES, UniqueKeys(None, [f"{ROOT}.1"], [f"{ROOT}.1.2"]), IMAGES[4:7]),
    "image": (Level.IMAGE, UniqueKeys(None, [f"{ROOT}.1"], [f"{ROOT}.1.2"], [f"{ROOT}.1.2.3"]), IMAGES[6:7]),
    "nothing": (Level.STUDY, UniqueKeys(None, [f"{ROOT}.9"]), []),
}


@pytest.mark.parametrize("mode", ["get", "move"])
@pytest.mark.parametrize("patient_root", [False, True], ids=["Study Root", "Patient Root"])
@pytest.mark.parametrize("case", RETRIEVES)
async def test_retrieve(archive, case, patient_root, mode):
    level, keys, images = RETRIEVES[case]
    async with archive.backend(dimse_retrieve_mode=mode) as backend:
        selection = await backend.retrieve(Retrieve(level, keys, patient_root=patient_root))
        assert await fetched(selection) == as_stored(images)
        assert selection.total == len(images)


@pytest.mark.parametrize("mode", ["get", "move"])
async def test_retrieves_of_different_patients_at_the_same_time(archive, mode):
    async with (
        archive.backend(dimse_retrieve_mode=mode) as backend,
        archive.backend(dimse_retrieve_mode=mode) as other,
    ):
        selections = [
            await backend.retrieve(Retrieve(Level.PATIENT, UniqueKeys(["P1"]))),
            await other.retrieve(Retrieve(Level.PATIENT, UniqueKeys(["P2"]))),
            await backend.retrieve(Retrieve(Level.PATIENT, UniqueKeys(["P2"]))),
        ]
        one, two, three = await asyncio.gather(*map(fetched, selections))
        assert one == as_stored(IMAGES[:8])
        assert two == three == as_stored(IMAGES[8:])


@pytest.mark.parametrize("mode", ["get", "move"])
async def test_a_retrieve_that_is_left_early(archive, mode):
    async with archive.backend(dimse_retrieve_mode=mode) as backend:
        selection = await backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(None, [f"{ROOT}.1"])))
        await anext(selection.instances)
        await selection.instances.aclose()
        assert backend.pool.lent == 0
        again = await backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(None, [f"{ROOT}.1"])))
        assert await fetched(again) == as_stored(IMAGES[:7])


async def test_move_to_somebody_else(archive):
    retrieve = Retrieve(Level.STUDY, UniqueKeys(None, [f"{ROOT}.1"]))
    async with archive.backend() as backend:
        result = await backend.move_to(retrieve, "STORESCP")
        assert (result.status, result.counters.completed) == (0x0000, 7)
        assert len(archive.storescp.received()) == 7
        for destination in ("UNKNOWN", "NOBODY"):
            with pytest.raises(DimseError):
                await backend.move_to(retrieve, destination)
        await backend.echo()


async def test_what_the_requester_takes(archive):
    """Without a survey; of an image in another SOP class it is told at the end, as far as the archive says it."""
    retrieve = Retrieve(
        Level.SERIES, UniqueKeys(None, [f"{ROOT}.1"], [f"{ROOT}.1.2"]), accepted=((MR, EXPLICIT),)
    )
    async with archive.backend() as backend:
        selection = await backend.retrieve(retrieve)
        assert selection.total is None
        assert await fetched(selection) == as_stored(IMAGES[4:7])
        study = Retrieve(Level.STUDY, UniqueKeys(None, [f"{ROOT}.1"]), accepted=((MR, EXPLICIT),))
        selection = await backend.retrieve(study)
        got = {}
        with contextlib.suppress(DimseError):  # Orthanc gives up at the first one
            async for item in selection.instances:
                got[item.sop_instance_uid] = isinstance(item, Unavailable)
        if archive.name == "dcmqrscp":
            assert sorted(uid for uid, failed in got.items() if failed) == [each.uid for each in IMAGES[:4]]
            assert sorted(uid for uid, failed in got.items() if not failed) == [
                each.uid for each in IMAGES[4:7]
            ]


# Transfer syntaxes

SYNTAXES = [
    image("P3", 4, 1, number, sop_class=SC, syntax=syntax)
    for number, syntax in enumerate([EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, *ENCAPSULATED], 1)
]


@pytest.mark.parametrize("mode", ["get", "move"])
async def test_orthanc_sends_everything_as_it_was_stored(start_orthanc, free_port, mode):
    async with asyncio.timeout(PATIENCE_S):
        orthanc = await asyncio.to_thread(start_orthanc, modalities={"harmony": ("HARMONY", free_port)})
        archive = Archive("orthanc", orthanc.ae_title, orthanc.port, free_port, StoreReceivers())
        await archive.fill(SYNTAXES)
        async with archive.backend(dimse_retrieve_mode=mode) as backend:
            selection = await backend.retrieve(Retrieve(Level.PATIENT, UniqueKeys(["P3"])))
            assert await fetched(selection) == as_stored(SYNTAXES)


@pytest.mark.parametrize("mode", ["get", "move"])
async def test_pynetdicom_sends_everything_as_it_was_stored(pynetdicom_archive, free_port, mode):
    async with asyncio.timeout(PATIENCE_S):
        port = pynetdicom_archive({"HARMONY": ("127.0.0.1", free_port)})
        archive = Archive("pynetdicom", "PYNETDICOM", port, free_port, StoreReceivers())
        await archive.fill(SYNTAXES)
        async with archive.backend(dimse_retrieve_mode=mode) as backend:
            await backend.echo()
            assert await found(backend, Level.PATIENT, "00100020", {}) == ["P3"]
            retrieve = Retrieve(Level.STUDY, UniqueKeys(None, [f"{ROOT}.4"]))
            assert await fetched(await backend.retrieve(retrieve)) == as_stored(SYNTAXES)
            selection = await backend.retrieve(retrieve)
            await anext(selection.instances)
            await selection.instances.aclose()
            nothing = Retrieve(Level.STUDY, UniqueKeys(None, [f"{ROOT}.9"]))
            assert await fetched(await backend.retrieve(nothing)) == {}
