"""C-FIND, C-GET and C-MOVE of a dicom_scp endpoint over the local archive: levels, keys, statuses, negotiation."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from harmony.dicom.json_model import decode_data_set, encode_data_set, text_of
from harmony.dimse import AsyncSink, BytesSink, Services, Status, serve
from harmony.dimse.information_model import (
    PATIENT_ROOT,
    PATIENT_STUDY_ONLY,
    STUDY_ROOT,
    propose_get,
    propose_query,
)
from harmony.dimse.query import find
from harmony.dimse.retrieve import GetReceiver, get, move
from harmony.dimse.scu import Instance, NoPresentationContext
from harmony.dimse.status import SUCCESS_OUTCOME, DimseError
from harmony.ul.errors import AssociationError
from harmony.ul.items import ExtendedNegotiation
from harmony.ul.negotiation import propose_contexts

CT, IMPLICIT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
PATIENT_ID, PATIENT_NAME, STUDY, SERIES, INSTANCE = (
    "00100020",
    "00100010",
    "0020000D",
    "0020000E",
    "00080018",
)


def instance(patient, study, series, number, **attributes) -> Instance:
    uid = f"{series}.{number}"
    model = {
        "SOPClassUID": {"Value": [CT]},
        "SOPInstanceUID": {"Value": [uid]},
        "PatientID": {"Value": [patient]},
        "PatientName": {"Value": [f"Name^{patient}"]},
        "StudyInstanceUID": {"Value": [study]},
        "SeriesInstanceUID": {"Value": [series]},
        "InstanceNumber": {"Value": [number]},
        **{key: {"Value": [value]} for key, value in attributes.items()},
    }
    return Instance(CT, uid, EXPLICIT, encode_data_set(model, EXPLICIT))


ARCHIVE = [
    instance("P1", "1.1", "1.1.1", 1, StudyDate="20240101", Modality="CT"),
    instance("P1", "1.1", "1.1.1", 2, StudyDate="20240101", Modality="CT"),
    instance("P1", "1.1", "1.1.2", 1, StudyDate="20240101", Modality="MR"),
    instance("P2", "1.2", "1.2.1", 1, StudyDate="20240202", Modality="CT", StudyDescription="Schädel"),
]


@pytest.fixture
async def archive(bench):
    """A gateway that has ARCHIVE; stop it to change its options."""
    bench.builder = None
    await bench.start()
    async with bench.associate(contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
        for each in ARCHIVE:
            await scu.store(each)
    return bench


def keys(**attributes):
    """keys(PatientID="P1", StudyInstanceUID=None): a model; None asks for the value."""
    return {
        name: {"Value": value if isinstance(value, list) else [value]} if value is not None else {}
        for name, value in attributes.items()
    }


def encoded(model):
    return lambda context: encode_data_set(model, context.transfer_syntax)


async def found(bench, sop_class, model, *, extended=()):
    proposal = propose_query([sop_class], extended_negotiations=extended)
    matches = []
    async with (
        bench.associate(
            contexts=proposal.contexts, extended_negotiations=proposal.extended_negotiations
        ) as scu,
        contextlib.aclosing(find(scu, sop_class, encoded(model))) as answers,
    ):
        async for match in answers:
            matches.append(decode_data_set(match.identifier, match.transfer_syntax_uid))
    return matches


def values(matches, tag):
    return sorted(text_of(match, int(tag, 16)) for match in matches)


@pytest.fixture
def collect():
    """collect.open_sink: takes instances; collect.data by SOP Instance UID."""

    class Collect:
        def __init__(self):
            self.data = {}

        def open_sink(self, request):
            def complete(data):
                self.data[request.affected_sop_instance_uid] = data
                return SUCCESS_OUTCOME

            return BytesSink(complete)

    return Collect()


async def got(bench, sop_class, model, collect, *, storage=((CT, (EXPLICIT,)),)):
    """The result of a C-GET."""
    receiver = GetReceiver()
    proposal = propose_get([sop_class], storage)
    async with (
        bench.associate(contexts=proposal.contexts, roles=proposal.roles, services=receiver.services) as scu,
        get(scu, sop_class, encoded(model), collect.open_sink, receiver=receiver) as retrieval,
    ):
        async for _ in retrieval:
            pass
        return retrieval.result


# C-FIND


@pytest.mark.parametrize(
    ("sop_class", "level", "tag", "expected"),
    [
        (PATIENT_ROOT.find, "PATIENT", PATIENT_ID, ["P1", "P2"]),
        (PATIENT_ROOT.find, "STUDY", STUDY, ["1.1", "1.2"]),
        (PATIENT_ROOT.find, "SERIES", SERIES, ["1.1.1", "1.1.2", "1.2.1"]),
        (PATIENT_ROOT.find, "IMAGE", INSTANCE, ["1.1.1.1", "1.1.1.2", "1.1.2.1", "1.2.1.1"]),
        (STUDY_ROOT.find, "STUDY", STUDY, ["1.1", "1.2"]),
        (STUDY_ROOT.find, "SERIES", SERIES, ["1.1.1", "1.1.2", "1.2.1"]),
        (STUDY_ROOT.find, "IMAGE", INSTANCE, ["1.1.1.1", "1.1.1.2", "1.1.2.1", "1.2.1.1"]),
        (STUDY_ROOT.find, "instance ", INSTANCE, ["1.1.1.1", "1.1.1.2", "1.1.2.1", "1.2.1.1"]),
        (PATIENT_STUDY_ONLY.find, "STUDY", STUDY, ["1.1", "1.2"]),
    ],
)
async def test_every_level_of_every_model(archive, sop_class, level, tag, expected):
    matches = await found(archive, sop_class, keys(QueryRetrieveLevel=level, PatientName=None))
    assert values(matches, tag) == expected
    for match in matches:
        assert text_of(match, 0x00080052) == {"instance ": "IMAGE"}.get(level, level)
        assert text_of(match, 0x00080054) == "GATEWAY"
        assert match[PATIENT_NAME]["Value"]


@pytest.mark.parametrize(
    ("sop_class", "identifier", "level"),
    [  # the commands of the users' documents, which state no level
        (PATIENT_ROOT.find, keys(PatientID="*"), "PATIENT"),
        (PATIENT_ROOT.find, keys(PatientID="PATIENT123"), None),
        (STUDY_ROOT.find, keys(StudyInstanceUID="*"), "STUDY"),
        (STUDY_ROOT.find, keys(PatientID="*"), "STUDY"),
        (STUDY_ROOT.find, keys(StudyInstanceUID="1.1", SeriesInstanceUID=None), "SERIES"),
        (STUDY_ROOT.find, keys(SeriesInstanceUID="1.1.1", SOPInstanceUID=None), "IMAGE"),
        (PATIENT_STUDY_ONLY.find, keys(SOPInstanceUID=None), "PATIENT"),
    ],
)
async def test_level_that_is_not_stated(archive, sop_class, identifier, level):
    matches = await found(archive, sop_class, identifier)
    assert {text_of(match, 0x00080052) for match in matches} == ({level} if level else set())


async def test_level_that_the_model_does_not_have(archive):
    with pytest.raises(DimseError) as refused:
        await found(archive, STUDY_ROOT.find, keys(QueryRetrieveLevel="PATIENT", PatientID=None))
    assert refused.value.status == 0xA900
    assert refused.value.outcome.offending_elements == (0x00080052,)


async def test_key_without_meaning(archive):
    with pytest.raises(DimseError) as refused:
        await found(archive, STUDY_ROOT.find, keys(QueryRetrieveLevel="STUDY", StudyDate="yesterday"))
    assert refused.value.status == 0xA900
    assert refused.value.outcome.offending_elements == (0x00080020,)


async def test_answer_in_the_character_set_of_the_question(archive):
    identifier = keys(QueryRetrieveLevel="STUDY", StudyDescription="Schä*", StudyInstanceUID="1.2")
    proposal = propose_query([STUDY_ROOT.find])
    async with archive.associate(contexts=proposal.contexts) as scu:

        def latin1(context):
            return encode_data_set(identifier, context.transfer_syntax, character_set="ISO_IR 100")

        async with contextlib.aclosing(find(scu, STUDY_ROOT.find, latin1)) as answers:
            (match,) = [match async for match in answers]
    assert "Schädel".encode("latin-1") in match.identifier
    assert b"ISO_IR 100" in match.identifier


@pytest.mark.parametrize("negotiated", [True, False])
async def test_extended_negotiation_decides(archive, negotiated):
    """Names by sound, PS3.4 §C.5.1.1 byte 3."""
    extended = [ExtendedNegotiation(STUDY_ROOT.find, b"\1\0\1")] if negotiated else []
    identifier = keys(QueryRetrieveLevel="STUDY", PatientName="P2^Nahme")
    matches = await found(archive, STUDY_ROOT.find, identifier, extended=extended)
    assert values(matches, STUDY) == (["1.2"] if negotiated else [])


async def test_extended_negotiation_is_answered(archive):
    offered = b"\1\1\1\1\1\1\1"
    proposal = propose_query(
        [STUDY_ROOT.find, STUDY_ROOT.move],
        extended_negotiations=[
            ExtendedNegotiation(STUDY_ROOT.find, offered),
            ExtendedNegotiation(STUDY_ROOT.move, b"\1"),
            ExtendedNegotiation(CT, b"\2\0\3\0\1\0"),
        ],
    )
    async with archive.associate(
        contexts=proposal.contexts, extended_negotiations=proposal.extended_negotiations
    ) as scu:
        answers = {
            item.sop_class_uid: item.service_class_application_information
            for item in scu.association.agreed.peer.extended_negotiations
        }
    assert answers == {STUDY_ROOT.find: b"\1\1\1\1\0\1\1", STUDY_ROOT.move: b"\1"}


async def test_acknowledged_is_found(archive):
    """The next query finds it, on another association, without waiting."""
    for number in range(10, 30):
        async with archive.associate(contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
            await scu.store(instance("P3", "1.3", "1.3.1", number))
            matches = await found(
                archive, STUDY_ROOT.find, keys(QueryRetrieveLevel="IMAGE", StudyInstanceUID="1.3")
            )
            assert len(matches) == number - 9


async def test_empty_values_as_configured(archive):
    identifier = keys(QueryRetrieveLevel="STUDY", AccessionNumber="A1")
    assert len(await found(archive, STUDY_ROOT.find, identifier)) == 2
    archive.scp = "match_empty_values = false"
    await archive.restart(5.0)
    assert await found(archive, STUDY_ROOT.find, identifier) == []


@pytest.mark.parametrize("option", ["enable_find = false", "index = false"])
async def test_not_accepted_when_disabled(archive, option):
    archive.scp = option
    await archive.restart(5.0)
    with pytest.raises(NoPresentationContext):
        await found(archive, STUDY_ROOT.find, keys(StudyInstanceUID=None))


async def test_index_that_was_deleted_is_made_again(archive):
    await archive.stop()
    for path in (archive.storage / "dimse" / ".index").iterdir():
        path.unlink()
    await archive.start()
    assert len(await found(archive, STUDY_ROOT.find, keys(StudyInstanceUID=None))) == 2


# C-GET


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        (keys(QueryRetrieveLevel="PATIENT", PatientID="P1"), ["1.1.1.1", "1.1.1.2", "1.1.2.1"]),
        (keys(QueryRetrieveLevel="STUDY", StudyInstanceUID=["1.1", "1.2"]), None),
        (keys(QueryRetrieveLevel="SERIES", StudyInstanceUID="1.1", SeriesInstanceUID="1.1.2"), ["1.1.2.1"]),
        (keys(QueryRetrieveLevel="IMAGE", SOPInstanceUID="1.1.1.2"), ["1.1.1.2"]),
        (keys(StudyInstanceUID="1.2"), ["1.2.1.1"]),
        (keys(QueryRetrieveLevel="STUDY", PatientID="P2"), ["1.2.1.1"]),
        (keys(QueryRetrieveLevel="STUDY", PatientID="P2", StudyInstanceUID="1.1"), []),
        (keys(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.9"), []),
    ],
)
async def test_get(archive, collect, identifier, expected):
    result = await got(archive, PATIENT_ROOT.get, identifier, collect)
    wanted = {each.sop_instance_uid: each.data for each in ARCHIVE}
    assert sorted(collect.data) == (sorted(wanted) if expected is None else expected)
    assert all(data == wanted[uid] for uid, data in collect.data.items())
    assert (result.status, result.counters.completed) == (0x0000, len(collect.data))


@pytest.mark.parametrize(
    "identifier",
    [
        keys(QueryRetrieveLevel="STUDY", PatientName="Name^P1"),
        keys(QueryRetrieveLevel="STUDY", StudyInstanceUID="*"),
        keys(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.*"),
        keys(QueryRetrieveLevel="STUDY"),
    ],
)
async def test_never_the_whole_archive(archive, collect, identifier):
    with pytest.raises(DimseError) as refused:
        await got(archive, STUDY_ROOT.get, identifier, collect)
    assert refused.value.status == 0xA900
    assert collect.data == {}


async def test_file_that_is_gone_fails_alone(archive, collect):
    (archive.storage / "dimse" / "1.1" / "1.1.1" / "1.1.1.1.dcm").unlink()
    result = await got(archive, STUDY_ROOT.get, keys(StudyInstanceUID="1.1"), collect)
    assert sorted(collect.data) == ["1.1.1.2", "1.1.2.1"]
    assert result.status in (0x0000, 0xB000)  # by when the index notices


# C-MOVE


@pytest.fixture
async def destination(collect):
    """A storage SCP, DEST; destination.port, destination.requests."""
    services = Services()
    requests = []

    def open_sink(request):
        requests.append(request.command)
        return collect.open_sink(request)

    services.store(open_sink)
    async with serve(services, ae_title="DEST", port=0) as server:
        server.requests = requests
        yield server


async def moved(bench, model, title):
    proposal = propose_query([STUDY_ROOT.move])
    async with (
        bench.associate(contexts=proposal.contexts, calling_ae_title="ASKER") as scu,
        move(scu, STUDY_ROOT.move, encoded(model), title) as retrieval,
    ):
        async for _ in retrieval:
            pass
        return retrieval.result


@pytest.mark.parametrize("title", ["DEST", "VIEWER"])
async def test_move(archive, destination, collect, title):
    archive.scp = (
        f'aet_table = {{ VIEWER = {{ ae_title = "DEST", host = "127.0.0.1", port = {destination.port} }} }}'
    )
    await archive.restart(5.0)
    result = await moved(archive, keys(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.1"), title)
    assert (result.status, result.counters.completed) == (0x0000, 3)
    assert collect.data == {each.sop_instance_uid: each.data for each in ARCHIVE[:3]}
    assert {request.move_originator_ae_title for request in destination.requests} == {"ASKER"}


async def test_unknown_destination(archive):
    with pytest.raises(DimseError) as refused:
        await moved(archive, keys(StudyInstanceUID="1.1"), "NOBODY")
    assert refused.value.status == Status.MOVE_DESTINATION_UNKNOWN


async def test_destination_that_is_down(archive, free_port):
    archive.scp = f'aet_table = {{ DEST = {{ host = "127.0.0.1", port = {free_port} }} }}'
    await archive.restart(5.0)
    with pytest.raises(DimseError) as refused:
        await moved(archive, keys(StudyInstanceUID="1.1"), "DEST")
    assert refused.value.status == 0xA702
    assert sorted(refused.value.result.failed_sop_instance_uids) == ["1.1.1.1", "1.1.1.2", "1.1.2.1"]


# Together


async def test_storage_backend(bench, collect):
    """Objects go below its root, and are queried and retrieved from there."""
    bench.builder = None
    config = bench.config()
    text = (bench.folder / "config.toml").read_text().replace("backends = []", 'backends = ["disk"]', 1)
    text += f'\n[backends.disk]\nservice = "storage"\noptions.root = "{bench.folder / "disk"}"\n'
    bench.config = lambda: bench.load_config(text)
    assert config.pipelines["p"].backends == ()
    await bench.start()
    async with bench.associate(contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
        await scu.store(ARCHIVE[0])
    assert (bench.folder / "disk" / "dimse" / "1.1" / "1.1.1" / "1.1.1.1.dcm").is_file()
    await got(bench, STUDY_ROOT.get, keys(StudyInstanceUID="1.1"), collect)
    assert collect.data == {"1.1.1.1": ARCHIVE[0].data}


async def test_behind_jmix_builder(bench, collect):
    """Envelopes are made of what is received, which is queried and retrieved all the same."""
    await bench.start()
    async with bench.associate(contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
        await scu.store(ARCHIVE[0])
    assert values(await found(bench, STUDY_ROOT.find, keys(StudyInstanceUID=None)), STUDY) == ["1.1"]
    await got(bench, STUDY_ROOT.get, keys(StudyInstanceUID="1.1"), collect)
    assert sorted(collect.data) == ["1.1.1.1"]


async def test_queries_beside_a_flood(archive):
    """Both get on: no query waits for the flood to end, none sees part of what was acknowledged."""
    acknowledged = 0

    async def flood() -> None:
        nonlocal acknowledged
        async with archive.associate(contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
            for number in range(300):
                await scu.store(instance("P4", "1.4", "1.4.1", number))
                acknowledged = number + 1

    async def ask() -> None:
        while acknowledged < 300:
            at_least = acknowledged
            matches = await found(
                archive,
                STUDY_ROOT.find,
                keys(QueryRetrieveLevel="IMAGE", StudyInstanceUID="1.4", SeriesInstanceUID="1.4.1"),
            )
            assert len(matches) >= at_least

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(flood())
        tasks.create_task(ask())


@pytest.mark.parametrize("operation", ["find", "get", "move"])
async def test_an_abort_frees_everything(archive, destination, collect, until, operation):
    """In the middle of each: no task, no open file and no association is left of it."""
    archive.scp = f'aet_table = {{ DEST = {{ host = "127.0.0.1", port = {destination.port} }} }}'
    await archive.restart(5.0)
    async with archive.associate(contexts=propose_contexts([(CT, [EXPLICIT])])) as scu:
        for number in range(400):  # more than a socket buffer holds
            await scu.store(instance("P5", "1.5", "1.5.1", number, ImageComments="x" * 10_000))
    await found(archive, STUDY_ROOT.find, keys(StudyInstanceUID="1.5"))
    tasks = asyncio.all_tasks()
    begun, aborted = asyncio.Event(), asyncio.Event()
    identifier = keys(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.5")

    def stuck(request):
        begun.set()
        return AsyncSink(request.association, lambda stream: asyncio.Event().wait())

    async def invoke():
        if operation == "find":
            proposal = propose_query([STUDY_ROOT.find])
            image = keys(QueryRetrieveLevel="IMAGE", StudyInstanceUID="1.5", ImageComments=None)
            async with archive.associate(contexts=proposal.contexts) as scu:
                async for _ in find(scu, STUDY_ROOT.find, encoded(image)):
                    begun.set()
                    await aborted.wait()
        elif operation == "get":
            receiver = GetReceiver()
            proposal = propose_get([STUDY_ROOT.get], [(CT, (EXPLICIT,))])
            async with (
                archive.associate(
                    contexts=proposal.contexts, roles=proposal.roles, services=receiver.services
                ) as scu,
                get(scu, STUDY_ROOT.get, encoded(identifier), stuck, receiver=receiver) as retrieval,
            ):
                await anext(retrieval)
        else:
            collect.open_sink = stuck
            await moved(archive, identifier, "DEST")

    client = asyncio.create_task(invoke())
    await begun.wait()
    acceptor = archive.gateway.assembly.dicom[0].server.acceptor
    (association,) = acceptor.associations
    association.abort()
    aborted.set()
    with pytest.raises(AssociationError):
        await client
    await until(lambda: not acceptor.associations)
    await until(lambda: not open_files(archive.storage))
    await until(lambda: not {task for task in asyncio.all_tasks() - tasks if not task.done()} - {client})


def open_files(folder):
    """What this process has open of the objects in a folder."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = descriptor.readlink()
            if target.suffix == ".dcm" and target.is_relative_to(folder):
                found.append(target)
    return found


async def test_more_matches_than_an_answer_has_are_told(archive):
    await archive.stop()
    archive.scp = "max_results = 2"
    await archive.start()
    wanted = keys(QueryRetrieveLevel="IMAGE", StudyInstanceUID="1.1", SOPInstanceUID=None)
    proposal = propose_query([STUDY_ROOT.find])
    async with archive.associate(contexts=proposal.contexts) as scu:
        async with contextlib.aclosing(find(scu, STUDY_ROOT.find, encoded(wanted))) as answers:
            for _ in range(2):
                await anext(answers)
            with pytest.raises(DimseError, match="more than 2 matches") as cut:
                await anext(answers)
        assert cut.value.status == 0xA700
        await scu.echo()  # the association lives on
    as_many = keys(QueryRetrieveLevel="STUDY", StudyInstanceUID=None)
    assert len(await found(archive, STUDY_ROOT.find, as_many)) == 2
    await archive.stop()
    archive.scp = "max_results = 0"
    await archive.start()
    assert len(await found(archive, STUDY_ROOT.find, wanted)) == 3
