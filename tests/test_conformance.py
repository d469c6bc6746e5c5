"""docs/CONFORMANCE.md against the code: identification, defaults, SOP classes, negotiation, statuses.

Statuses are not looked up but provoked: each case asks for an operation and finds what came in the table.
"""

import inspect
import re
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import harmony
import harmony.ul
from harmony.archive import comparable, matching
from harmony.archive.files import FileStore
from harmony.archive.indexing import ArchiveIndex
from harmony.dicom.json_model import encode_data_set
from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES
from harmony.dimse import (
    PATIENT_ROOT,
    PATIENT_STUDY_ONLY,
    SCU,
    STUDY_ROOT,
    SUCCESS_OUTCOME,
    AssociationPool,
    BytesSink,
    CommandError,
    CStoreRQ,
    DimseError,
    GetReceiver,
    Identifier,
    InformationModel,
    Instance,
    Peer,
    RetrieveFailed,
    Services,
    associate,
    destination,
    find,
    get,
    move,
    propose_get,
    retrieve_scp,
    scu,
    serve,
    sop_class,
    sub_operations,
)
from harmony.dimse.command import decode
from harmony.gateway import dicom_scu, query_retrieve
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.options import AetEntry, DicomScpOptions, DicomScuOptions
from harmony.gateway.query_retrieve import QueryRetrieve
from harmony.ul import AcceptorLimits, ExtendedNegotiation, Timeouts, propose_contexts

CONFORMANCE = (Path(__file__).parent.parent / "docs" / "CONFORMANCE.md").read_text()

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


def section(title: str) -> str:
    """The text under a heading, up to the next one of any level."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", CONFORMANCE, re.M | re.S)
    assert found, title
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """The tables of a text: the cells of each row by its first one, without backquotes."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[cells[0].replace("`", "")] = cells[1:]
    return found


def test_it_names_the_implementation() -> None:
    text = rows(section("Implementation identification"))
    assert text["Application context name"] == [f"`{harmony.ul.APPLICATION_CONTEXT_NAME}`"]
    assert text["Implementation class UID"] == [f"`{harmony.IMPLEMENTATION_CLASS_UID}`"]
    assert text["Implementation version name"] == [f"`{harmony.IMPLEMENTATION_VERSION_NAME}`"]
    assert f"Harmony {harmony.__version__}:" in CONFORMANCE


def test_it_counts_the_storage_sop_classes() -> None:
    text = section("Presentation contexts")
    assert f"the {len(sop_class.STORAGE_SOP_CLASSES)} storage SOP classes" in text


def test_it_has_the_defaults_of_the_options() -> None:
    """The gateway's column: `30 (artim_timeout_secs)` and the like."""
    table = rows(section("Association policies"))
    found = [
        match.groups()
        for cells in table.values()
        if cells and (match := re.match(r"([\d.]+) \(`(\w+)`", cells[0]))
    ]
    names = [name for _, name in found]
    assert {"max_pdu", "max_associations", "max_operations", "idle_timeout_secs"} <= set(names)
    assert [float(value) for value, _ in found] == [getattr(DicomScpOptions(), name) for name in names]


def test_it_has_the_defaults_of_the_library() -> None:
    table = rows(section("Association policies"))
    timeouts = Timeouts()
    timers = {
        "ARTIM: the A-ASSOCIATE-RQ to arrive, the peer to close": timeouts.artim_s,
        "A PDU or message that has begun": timeouts.pdu_s,
        "The peer to take what was written": timeouts.write_s,
        "No operation: the association is released": timeouts.idle_s,
        "The answer to our A-RELEASE-RQ": timeouts.release_s,
        "TLS handshake, as acceptor": timeouts.tls_handshake_s,
        "Connecting, TLS included, as requestor": timeouts.connect_s,
        "The answer to our A-ASSOCIATE-RQ": timeouts.associate_s,
        "Each DIMSE response": scu.DEFAULT_RESPONSE_S,
        "Maximum length received, announced": harmony.ul.DEFAULT_MAXIMUM_LENGTH,
        "Simultaneous associations": AcceptorLimits().maximum_associations,
        "Simultaneous connections, TLS handshakes included": AcceptorLimits().maximum_connections,
    }
    assert {name: float(table[name][1].split()[0]) for name in timers} == timers


def test_it_names_only_options_that_exist() -> None:
    named = set(re.findall(r"`(\w+)(?: = [^`]*)?`", CONFORMANCE))
    options = {
        name
        for name in named
        if re.match(
            r"enable_|max_|min_|calling_|restrict_|accept_|require_|durability|duplicates|sop_|transfer_|"
            r"match_|fuzzy_|incoming_|dimse_|aet_|local_|relational",
            name,
        )
        or name.endswith("_secs")
    }
    assert len(options) > 15
    assert not options - set(DicomScpOptions.__struct_fields__) - set(DicomScuOptions.__struct_fields__)


def element(group: int, number: int, uid: str) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return struct.pack("<HH2sH", group, number, b"UI", len(value)) + value


OBJECT = element(8, 0x16, CT) + element(8, 0x18, "2.25.1") + element(0x20, 0xD, "2.25.2")
OTHER_OBJECT = OBJECT + element(0x20, 0x52, "2.25.3")
"""Different bytes under the same UID."""


@pytest.mark.parametrize(
    ("duplicates", "context", "data_sets", "status"),
    [
        ("keep_first", CT, [OBJECT], 0x0000),
        ("keep_first", CT, [OBJECT, OBJECT], 0x0000),
        ("keep_first", CT, [OBJECT, OTHER_OBJECT], 0xB000),
        ("refuse", CT, [OBJECT, OTHER_OBJECT], 0x0111),
        ("replace", CT, [OBJECT, OTHER_OBJECT], 0x0000),
        ("keep_both", CT, [OBJECT, OTHER_OBJECT], 0x0000),
        ("keep_first", VERIFICATION, [OBJECT], 0x0122),
        ("keep_first", CT, [OBJECT + bytes(8192)], 0xA700),
        ("keep_first", CT, [OBJECT.replace(CT.encode(), b"1" * len(CT))], 0xA900),
        ("keep_first", CT, [element(0x20, 0x52, "2.25.3")], 0xC000),
        ("keep_first", CT, [b""], 0xC000),
    ],
)
async def test_the_statuses_of_c_store(
    duplicates: Any, context: str, data_sets: list[bytes], status: int, tmp_path: Path
) -> None:
    store = FileStore(tmp_path, duplicates=duplicates, maximum_object_bytes=4096)
    store.open()
    services = Services()
    services.store(LocalArchive(store).store)
    contexts = propose_contexts([(CT, [EXPLICIT]), (VERIFICATION, [EXPLICIT])])
    async with (
        serve(services, port=0) as server,
        associate("127.0.0.1", server.port, contexts=contexts) as user,
    ):
        for data in data_sets:
            asked = await user.invoke(
                lambda message_id: CStoreRQ(message_id, CT, "2.25.1"), user.context_for(context), data
            )
            response = await asked.final()
    store.close()
    assert response.status == status
    assert f"{status:04X}" in rows(section("Storage SCP"))


@pytest.mark.parametrize(
    ("command_field", "status"),
    [
        (0x0001, 0x0212),  # C-STORE-RQ, without its UIDs
        (0x0777, 0x0211),
    ],
)
def test_the_statuses_of_broken_commands(command_field: int, status: int) -> None:
    elements = ((0x0100, command_field), (0x0110, 7), (0x0800, 0x0101))
    encoded = b"".join(struct.pack("<HHLH", 0, number, 2, value) for number, value in elements)
    with pytest.raises(CommandError) as refusal:
        decode(encoded)
    assert not refusal.value.fatal
    assert refusal.value.status == status
    # (0000,0900) Status, US, as it goes out.
    assert struct.pack("<HHLH", 0, 0x0900, 2, status) in refusal.value.response
    assert f"{status:04X}" in rows(section("Storage SCP"))


# Query/Retrieve -------------------------------------------------------------------------------------------------

MR = "1.2.840.10008.5.1.4.1.1.4"
STUDY = "2.25.1"
MODELS = {model.name: model for model in (PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY)}


def test_it_names_the_information_models() -> None:
    table = rows(section("Query/Retrieve SCP"))
    documented = {name: [cell.strip("`") for cell in table[name]] for name in MODELS}
    assert documented == {
        name: [model.find, model.move, model.get, ", ".join(model.levels)] for name, model in MODELS.items()
    }
    assert set(MODELS.values()) == set(query_retrieve.MODELS)


def test_it_says_how_values_are_compared() -> None:
    text = section("Matching").replace("\n", " ")
    patterns, length = matching.MAXIMUM_PATTERNS, matching.MAXIMUM_PATTERN_LENGTH
    assert f"at most {patterns} values of at most {length} characters" in text
    assert f"{matching.MAXIMUM_NESTING} deep" in text
    assert f"in {', '.join(sorted(comparable.WILDCARD_VRS))};" in rows(section("Matching"))["Wild card"][0]
    assert ", ".join(sorted(comparable.RANGE_VRS - {"TM"})) == "DA, DT"


def test_it_says_how_instances_are_sent() -> None:
    text = section("C-MOVE and C-GET").replace("\n", " ")
    assert ", ".join(sop_class.TRANSFER_SYNTAXES[uid] for uid in NATIVE_TRANSFER_SYNTAXES) in text
    assert retrieve_scp.PENDING_S == 1.0
    assert "every second" in text
    assert destination.LOSSES_LIMIT == 3
    assert "After three associations" in text
    assert f"up to {sub_operations.FAILED_LIST_LIMIT // 1024} KiB" in text
    assert f"more than {query_retrieve.MAXIMUM_UIDS} values" in text


def test_it_has_the_defaults_of_the_scu() -> None:
    table = rows(section("SCU (`dicom_scu`)"))
    found = [
        match.groups()
        for cells in table.values()
        if cells and (match := re.match(r"([\d.]+) \(`(\w+)`", cells[0]))
    ]
    names = [name for _, name in found]
    assert {"max_pdu", "max_associations", "connect_timeout_secs"} <= set(names)
    assert [float(value) for value, _ in found] == [getattr(DicomScuOptions(), name) for name in names]
    pool = inspect.signature(AssociationPool).parameters
    kept = table["Idle association"][0]
    assert kept.startswith(f"kept for {pool['idle_s'].default:g} seconds")
    assert f"after {pool['check_after_s'].default:g} seconds" in kept
    assert table["The final response after C-CANCEL"][0].startswith(f"{dicom_scu.CANCEL_S:g} seconds")


class PACS(LocalArchive):
    """A backend that matches as it will."""

    @property
    def matches_as_asked(self) -> bool:
        return False


def test_it_lists_what_extended_negotiation_agrees_on(tmp_path: Path) -> None:
    table = rows(section("Extended negotiation"))
    everything = b"\1" * 7
    for column, backend in enumerate([LocalArchive(FileStore(tmp_path)), PACS(FileStore(tmp_path))], start=1):
        endpoint = QueryRetrieve(backend, DicomScpOptions())
        documented = bytes(table[str(byte)][column] == "yes" for byte in range(1, 8))
        for model in MODELS.values():
            assert endpoint.extended_negotiation(ExtendedNegotiation(model.find, everything)) == documented
            for uid in model.move, model.get:
                answer = endpoint.extended_negotiation(ExtendedNegotiation(uid, everything))
                assert answer == b"\1" + bytes(6)


@dataclass
class Endpoint:
    """A dicom_scp endpoint's Query/Retrieve over a local archive with a CT and an MR image of one study."""

    port: int
    index: ArchiveIndex

    def associate(self, storage: Sequence[str] = ()) -> AbstractAsyncContextManager[SCU]:
        """With every Query/Retrieve context, and for storage as SCP."""
        uids = [uid for model in MODELS.values() for uid in (model.find, model.move, model.get)]
        proposal = propose_get(uids, [(uid, [EXPLICIT]) for uid in storage])
        self.receiver = GetReceiver()
        return Peer("127.0.0.1", self.port).associate(proposal, services=self.receiver.services)


@pytest.fixture
async def endpoint(tmp_path: Path, free_port: int) -> AsyncIterator[Endpoint]:
    """Destinations of C-MOVE: HERE, which is the endpoint itself, and DOWN."""
    files = FileStore(tmp_path)
    index = ArchiveIndex(tmp_path)
    archive = LocalArchive(files, index)
    index.open()
    await archive.start()
    services = Services()
    services.store(archive.store)
    async with serve(services, port=0) as server:
        table = {
            "HERE": AetEntry(host="127.0.0.1", port=server.port),
            "DOWN": AetEntry(host="127.0.0.1", port=free_port),
        }
        QueryRetrieve(archive, DicomScpOptions(aet_table=table)).register(services)
        contexts = propose_contexts([(CT, [EXPLICIT]), (MR, [EXPLICIT])])
        async with associate("127.0.0.1", server.port, contexts=contexts) as user:
            for number, uid in enumerate((CT, MR), start=1):
                keys = {
                    "SOPClassUID": uid,
                    "SOPInstanceUID": f"{STUDY}.{number}",
                    "StudyInstanceUID": STUDY,
                    "SeriesInstanceUID": f"{STUDY}.0.{number}",
                }
                data = encode_data_set({key: {"Value": [value]} for key, value in keys.items()}, EXPLICIT)
                await user.store(Instance(uid, keys["SOPInstanceUID"], EXPLICIT, data))
        yield Endpoint(server.port, index)
    await archive.stop(0)
    index.close()


GARBAGE = b"\xff" * 20
"""No data set in any transfer syntax."""


def identifier(**keys: str) -> Identifier:
    elements = {key: {"Value": value.split("\\")} if value else {} for key, value in keys.items()}
    return lambda context: encode_data_set(elements, context.transfer_syntax)


async def status_of_find(user: SCU, keys: Identifier, *, model: InformationModel = STUDY_ROOT) -> list[int]:
    statuses = []
    try:
        async for match in find(user, model.find, keys):
            statuses.append(match.status)
    except DimseError as error:
        return [*statuses, error.status]
    return [*statuses, 0x0000]


@pytest.mark.parametrize(
    ("keys", "statuses"),
    [
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), [0xFF00, 0x0000]),
        (identifier(StudyInstanceUID=""), [0xFF00, 0x0000]),
        (identifier(QueryRetrieveLevel="INSTANCE", SOPInstanceUID=""), [0xFF00, 0xFF00, 0x0000]),
        (identifier(QueryRetrieveLevel="STUDY", PatientID="NOBODY", StudyInstanceUID="2.25.9"), [0x0000]),
        (identifier(QueryRetrieveLevel="PATIENT", PatientID=""), [0xA900]),
        (identifier(QueryRetrieveLevel="STUDY", StudyDate="2026*"), [0xA900]),
        (GARBAGE, [0xC000]),
    ],
)
async def test_the_statuses_of_c_find(endpoint: Endpoint, keys: Identifier, statuses: list[int]) -> None:
    async with endpoint.associate() as user:
        assert await status_of_find(user, keys) == statuses
    assert {f"{status:04X}" for status in statuses} <= set(rows(section("C-FIND")))


async def status_of_get(endpoint: Endpoint, keys: Identifier, storage: Sequence[str]) -> int:
    async with endpoint.associate(storage) as user:
        sinks = lambda request: BytesSink(lambda data: SUCCESS_OUTCOME)  # noqa: E731
        try:
            async with get(user, STUDY_ROOT.get, keys, sinks, receiver=endpoint.receiver) as retrieval:
                return (await retrieval.final()).status
        except RetrieveFailed as error:
            return error.status


@pytest.mark.parametrize(
    ("keys", "storage", "status"),
    [
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=STUDY), [CT, MR], 0x0000),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID="2.25.9"), [CT], 0x0000),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=STUDY), [CT], 0xB000),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=STUDY), [], 0xA702),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), [CT], 0xA900),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID="2.25.*"), [CT], 0xA900),
        (identifier(QueryRetrieveLevel="PATIENT", PatientID="1"), [CT], 0xA900),
        (GARBAGE, [CT], 0xC000),
    ],
)
async def test_the_statuses_of_c_get(
    endpoint: Endpoint, keys: Identifier, storage: list[str], status: int
) -> None:
    assert await status_of_get(endpoint, keys, storage) == status
    assert f"{status:04X}" in rows(section("C-MOVE and C-GET"))


@pytest.mark.parametrize(
    ("destination_title", "status"), [("HERE", 0x0000), ("DOWN", 0xA702), ("NOWHERE", 0xA801)]
)
async def test_the_statuses_of_c_move(endpoint: Endpoint, destination_title: str, status: int) -> None:
    keys = identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=STUDY)
    async with endpoint.associate() as user:
        try:
            async with move(user, STUDY_ROOT.move, keys, destination_title) as retrieval:
                found = (await retrieval.final()).status
        except RetrieveFailed as error:
            found = error.status
            uids = error.result.failed_sop_instance_uids
            assert uids == ((f"{STUDY}.1", f"{STUDY}.2") if status == 0xA702 else ())
    assert found == status
    assert f"{status:04X}" in rows(section("C-MOVE and C-GET"))


async def test_the_statuses_without_an_index(endpoint: Endpoint) -> None:
    endpoint.index.close()
    keys = identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=STUDY)
    async with endpoint.associate() as user:
        assert await status_of_find(user, keys) == [0xA700]
    assert await status_of_get(endpoint, keys, [CT]) == 0xA701
    assert "A700" in rows(section("C-FIND"))
    assert "A701" in rows(section("C-MOVE and C-GET"))
