"""The dicom_scu backend and a PACS that does as it is told: all operations, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.archive.matcher import IdentifierError, MatchingOptions
from harmony.archive.matching import compile_query
from harmony.archive.projection import Projection
from harmony.dicom.json_model import decode_data_set, encode_data_set, text_of, texts_of
from harmony.dimse import (
    CFindRQ,
    CGetRQ,
    CMoveRQ,
    DimseError,
    Instance,
    NoPresentationContext,
    Outcome,
    Services,
    associate,
    serve,
)
from harmony.dimse.command import CEchoRQ
from harmony.dimse.information_model import PATIENT_ROOT, PATIENT_STUDY_ONLY, STUDY_ROOT
from harmony.dimse.peer import Peer
from harmony.dimse.query import find_handler
from harmony.dimse.retrieve import RetrieveFailed
from harmony.dimse.retrieve_scp import Selection, Unavailable, get_handler, move_handler
from harmony.dimse.sink import BytesSink
from harmony.dimse.source import FileSource
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.config import Backend, Origin, Target
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.options import DicomScuOptions
from harmony.gateway.store_receiver import StoreReceivers
from harmony.ul import AssociationError, ConnectFailed, DeadlineExceeded
from harmony.ul.negotiation import propose_contexts

CT, MR, SR = (f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("2", "4", "88.11"))
IMPLICIT, EXPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"
PATIENT_ID, STUDY, SERIES, INSTANCE, LEVEL = "00100020", "0020000D", "0020000E", "00080018", "00080052"
VERIFICATION = "1.2.840.10008.1.1"
PATIENCE_S = 20.0


# The PACS


def image(patient, study, series, number, *, sop_class=CT, syntax=EXPLICIT, size=100, **attributes):
    uid = f"{series}.{number}"
    model = {
        "SOPClassUID": {"Value": [sop_class]},
        "SOPInstanceUID": {"Value": [uid]},
        "PatientID": {"Value": [patient]},
        "PatientName": {"Value": [f"Name^{patient}"]},
        "StudyInstanceUID": {"Value": [study]},
        "SeriesInstanceUID": {"Value": [series]},
        **{key: {"Value": [value]} for key, value in attributes.items()},
    }
    data = encode_data_set(model, syntax)
    return Instance(sop_class, uid, syntax, data + bytes([number]) * size)


@dataclass
class Pacs:
    """Has `images`. What else it does:

    models: those it accepts. strict: identifiers must be hierarchical, else A900. finds_images: at the IMAGE level.
    ignores: keys that do not count there, when the search is not hierarchical.
    before[n]: awaited before the n-th instance of a retrieve (and after the last), `reached(n)` is set then.
    store_outcome: of each C-STORE, by a function of the request.
    """

    images: list = field(default_factory=list)
    models: tuple = (STUDY_ROOT, PATIENT_ROOT)
    strict: bool = False
    finds_images: bool = True
    ignores: tuple = ()
    before: dict = field(default_factory=dict)
    on_find: object = None
    extra: list = field(default_factory=list)
    tells_progress: bool = True
    store_outcome: object = lambda request: Outcome(0)
    storage_syntaxes: object = None
    destinations: dict = field(default_factory=dict)
    echo_outcome: Outcome = Outcome(0)  # noqa: RUF009

    def __post_init__(self):
        self.asked = []
        self.stored = {}
        self.requests = []
        self.associations = []
        self.ends = []
        self._reached = {}
        self.cancelled = asyncio.Event()

    def reached(self, number):
        return self._reached.setdefault(number, asyncio.Event())

    def services(self):
        services = Services()
        pending = {"pending_instances": 1} if self.tells_progress else {"pending_s": 1000.0}
        services.operation(CEchoRQ, [VERIFICATION], lambda operation: self.echo_outcome)
        services.operation(CFindRQ, [model.find for model in self.models], find_handler(self.find))
        services.operation(CGetRQ, [model.get for model in self.models], get_handler(self.select, **pending))
        services.operation(
            CMoveRQ,
            [model.move for model in self.models],
            move_handler(self.select, lambda title, _: self.destinations.get(title), **pending),
        )
        services.store_as_scu()
        services.store(self.open_sink, transfer_syntaxes=self.storage_syntaxes)
        services.on_association(self.associations.append, lambda association, error: self.ends.append(error))
        return services

    @property
    def open_associations(self):
        return len(self.associations) - len(self.ends)

    def open_sink(self, request):
        self.requests.append(request)

        def complete(data):
            self.stored[request.affected_sop_instance_uid] = data
            return self.store_outcome(request)

        return BytesSink(complete, maximum_bytes=1 << 30)

    def models_asked(self, name):
        return [(op.context.abstract_syntax, level) for kind, op, level, _ in self.asked if kind == name]

    def _identifier(self, kind, operation):
        identifier = decode_data_set(operation.data_set, operation.context.transfer_syntax)
        level = text_of(identifier, int(LEVEL, 16))
        self.asked.append((kind, operation, level, identifier))
        return level, identifier

    def _check(self, level, identifier, model):
        above = [PATIENT_ID, STUDY, SERIES, INSTANCE][: ["PATIENT", "STUDY", "SERIES", "IMAGE"].index(level)]
        if model is STUDY_ROOT:
            above = above[1:]
        for key in above:
            if len(texts_of(identifier, int(key, 16))) != 1:
                raise DimseError(0xA900, "the search is hierarchical", (int(key, 16),))

    async def find(self, operation):
        level, identifier = self._identifier("find", operation)
        model = next(each for each in self.models if each.find == operation.context.abstract_syntax)
        assert level in model.levels
        if self.on_find is not None:
            await self.on_find(level)
        if self.strict:
            self._check(level, identifier, model)
        if level == "IMAGE" and not self.finds_images:
            return
        matcher = compile_query(identifier)
        projection = Projection(matcher, level=level, patient_root=model is not STUDY_ROOT)
        if level == "IMAGE" and not (text_of(identifier, 0x0020000D) and text_of(identifier, 0x0020000E)):
            matcher = matcher.without([int(key, 16) for key in self.ignores])
        answered = []
        for each in self.images:
            header = decode_data_set(each.data, each.transfer_syntax_uid)
            answer = projection.project(header)
            if matcher.matches(header) and answer not in answered:
                answered.append(answer)
                yield encode_data_set(answer, operation.context.transfer_syntax)

    async def select(self, operation):
        kind = "get" if isinstance(operation.request, CGetRQ) else "move"
        level, identifier = self._identifier(kind, operation)
        if self.strict:
            self._check(level, identifier, STUDY_ROOT)
        matcher = compile_query(identifier)
        chosen = [
            each
            for each in self.images
            if matcher.matches(decode_data_set(each.data, each.transfer_syntax_uid))
        ] + self.extra

        async def instances():
            try:
                for number in range(len(chosen) + 1):
                    self.reached(number).set()
                    if number in self.before:
                        await self.before[number](operation)
                    if number < len(chosen):
                        yield chosen[number]
            finally:
                if operation.cancelled.is_set():
                    self.cancelled.set()

        uids = [each.sop_instance_uid for each in chosen]
        return Selection(
            instances(),
            sop_instance_uids=uids,
            contexts=[
                (each.sop_class_uid, each.transfer_syntax_uid)
                for each in chosen
                if isinstance(each, Instance)
            ],
        )


@pytest.fixture
def pacs():
    return Pacs(
        [
            image("P1", "1.1", "1.1.1", 1, StudyDate="20240101"),
            image("P1", "1.1", "1.1.1", 2, StudyDate="20240101"),
            image("P1", "1.1", "1.1.2", 1, sop_class=MR, StudyDate="20240101"),
            image("P1", "1.3", "1.3.1", 1, sop_class=SR),
            image("P2", "1.2", "1.2.1", 1, syntax=JPEG, StudyDescription="Schädel"),
        ]
    )


pytestmark = pytest.mark.usefixtures("no_leaks")

ORIGIN = Origin(Path("config.toml"), "backends.pacs")


def configured(
    port,
    *,
    timeout_s=PATIENCE_S,
    tls=False,
    ca_cert_path=None,
    cert_path=None,
    key_path=None,
    tls_server_name=None,
    host="127.0.0.1",
    local_aet="HARMONY",
    **options,
):
    return Backend(
        name="pacs",
        service="dicom_scu",
        options=DicomScuOptions(aet="PACS", local_aet=local_aet, **options),
        target=Target(
            host,
            port,
            "dicom",
            "",
            tls,
            ca_cert_path,
            timeout_s,
            3,
            cert_path=cert_path,
            key_path=key_path,
            tls_server_name=tls_server_name,
        ),
        authentication=None,
        origin=ORIGIN,
    )


@pytest.fixture
def reaching():
    """async with reaching(pacs, option=...) as backend: the PACS listens, the backend is started."""

    @contextlib.asynccontextmanager
    async def start(pacs, *, limits=None, **options):
        async with asyncio.timeout(PATIENCE_S), serve(pacs.services(), port=0, limits=limits) as server:
            backend = DicomSCU(configured(server.port, **options))
            await backend.start()
            try:
                yield backend
                assert backend.pool.lent == 0
            finally:
                await backend.stop(0.0)

    return start


def keys(**attributes):
    """A model; None asks for the value. Names are keywords."""
    from harmony.dicom.json_model import tag_of, vr_of

    model = {}
    for name, value in attributes.items():
        tag = tag_of(name)
        values = value if isinstance(value, list) else [value]
        model[f"{tag:08X}"] = {"vr": vr_of(tag)} | ({} if value is None else {"Value": values})
    return {key: model[key] for key in sorted(model)}


async def all_of(iterator):
    return [each async for each in iterator]


def values(matches, key):
    return sorted(text_of(match, int(key, 16)) for match in matches)


async def read(instance):
    return b"".join([bytes(piece) async for piece in instance.data])


async def fetched(selection):
    """What a selection yields, by SOP Instance UID; None for what is not available."""
    found = {}
    async for item in selection.instances:
        found[item.sop_instance_uid] = None if isinstance(item, Unavailable) else await read(item)
    return found


def expected(pacs, *uids):
    return {each.sop_instance_uid: each.data for each in pacs.images if each.sop_instance_uid in uids}


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def forever(operation):
    await asyncio.Event().wait()


async def abort(operation):
    operation.association.abort()


# C-ECHO, and what can be wrong with any PACS


async def test_echo(pacs, reaching):
    async with reaching(pacs) as backend:
        await backend.echo()
        await backend.echo()
        assert (backend.name, backend.local_aet, backend.peer.called_ae_title) == ("pacs", "HARMONY", "PACS")
    assert len(pacs.associations) == 1
    agreed = pacs.associations[0].agreed
    assert (agreed.calling_ae_title, agreed.called_ae_title) == ("HARMONY", "PACS")


async def test_a_pacs_that_refuses(pacs, reaching):
    pacs.echo_outcome = Outcome(0x0122, "not today")
    async with reaching(pacs) as backend:
        with pytest.raises(DimseError, match="not today"):
            await backend.echo()


async def test_a_pacs_that_is_down(free_port, make_instance):
    backend = DicomSCU(configured(free_port))
    with pytest.raises(ConnectFailed):
        await backend.echo()
    with pytest.raises(ConnectFailed):
        await all_of(backend.query(Query(Level.STUDY, {})))
    retrieve = Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["1.1"]))
    with pytest.raises(ConnectFailed):
        await backend.retrieve(retrieve)
    taking = Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["1.1"]), accepted=((CT, EXPLICIT),))
    with pytest.raises(ConnectFailed):
        await fetched(await backend.retrieve(taking))
    with pytest.raises(DimseError, match="the PACS cannot be reached") as caught:
        await backend.store_instance(make_instance("1.2"))
    assert caught.value.status == 0xA700
    await backend.stop(0.0)


async def test_a_pacs_that_does_not_answer(pacs, reaching):
    pacs.on_find = lambda level: asyncio.Event().wait()
    async with reaching(pacs, timeout_s=0.05) as backend:
        with pytest.raises(DeadlineExceeded):
            await all_of(backend.query(Query(Level.STUDY, {})))
        await until(lambda: pacs.open_associations == 0)


async def test_no_more_associations_than_allowed(pacs, reaching):
    async with reaching(pacs, max_associations=1, timeout_s=0.5) as backend:
        async with contextlib.aclosing(backend.query(Query(Level.IMAGE, {}))) as matches:
            await anext(matches)
            with pytest.raises(DeadlineExceeded, match="waiting for one of 1 associations"):
                await backend.echo()
        await backend.echo()
    assert len(pacs.associations) == 1


# TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory, require_peer):
    """One file with a self-signed certificate for localhost, and one with its key."""
    folder = tmp_path_factory.mktemp("certificate")
    paths = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [require_peer("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-out", paths[0], "-keyout", paths[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


@pytest.fixture
def secured(pacs, certificate):
    """async with secured(option=...) as backend: over TLS, with a PACS that asks for a certificate."""

    @contextlib.asynccontextmanager
    async def start(**options):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate[0])
        context.load_cert_chain(*certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        options = {
            "tls": True,
            "ca_cert_path": certificate[0],
            "cert_path": certificate[0],
            "key_path": certificate[1],
        } | options
        async with (
            asyncio.timeout(PATIENCE_S),
            serve(pacs.services(), port=0, ssl_context=context) as server,
        ):
            backend = DicomSCU(configured(server.port, **options))
            yield backend
            await backend.stop(0.0)

    return start


async def test_tls(secured):
    async with secured(host="localhost") as backend:
        await backend.echo()
    async with secured(tls_server_name="localhost") as backend:
        await backend.echo()


async def test_tls_with_somebody_else(secured):
    async with secured() as backend:  # by its address, which the certificate does not name
        with pytest.raises(ConnectFailed, match="TLS certificate refused"):
            await backend.echo()
    async with secured(host="localhost", ca_cert_path=None) as backend:
        with pytest.raises(ConnectFailed, match="TLS certificate refused"):
            await backend.echo()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ca_cert_path": Path("missing.pem")}, "ca_cert_path missing.pem"),
        ({"cert_path": Path("missing.pem"), "key_path": Path("key.pem")}, "cert_path missing.pem"),
        ({"cert_path": Path("certificate.pem")}, "cert_path and key_path go together"),
    ],
)
async def test_certificates_that_cannot_be_used(options, words):
    with pytest.raises((OSError, ValueError), match=words):
        DicomSCU(configured(104, tls=True, **options))


# C-FIND


@pytest.mark.parametrize("models", [(STUDY_ROOT,), (PATIENT_ROOT,), (STUDY_ROOT, PATIENT_ROOT)])
@pytest.mark.parametrize("patient_root", [False, True])
@pytest.mark.parametrize(
    ("level", "given", "key", "wanted"),
    [
        (Level.STUDY, {"PatientID": "P1"}, STUDY, ["1.1", "1.3"]),
        (Level.SERIES, {"PatientID": "P1", "StudyInstanceUID": "1.1"}, SERIES, ["1.1.1", "1.1.2"]),
        (
            Level.IMAGE,
            {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1"},
            INSTANCE,
            ["1.1.1.1", "1.1.1.2"],
        ),
    ],
    ids=lambda each: each.value if isinstance(each, Level) else None,
)
async def test_find_in_the_model_there_is(pacs, reaching, models, patient_root, level, given, key, wanted):
    pacs.models = models
    async with reaching(pacs) as backend:
        matches = await all_of(backend.query(Query(level, keys(**given), patient_root=patient_root)))
    assert values(matches, key) == wanted
    preferred = PATIENT_ROOT if patient_root else STUDY_ROOT
    model = preferred if preferred in models else models[0]
    assert pacs.models_asked("find") == [(model.find, level.value)]
    for match in matches:
        assert text_of(match, int(LEVEL, 16)) == level.value
        assert all(
            text_of(match, int(each, 16)) for each in (STUDY, SERIES, INSTANCE)[: list(Level).index(level)]
        )


async def test_find_patients(pacs, reaching):
    async with reaching(pacs) as backend:
        matches = await all_of(backend.query(Query(Level.PATIENT, keys(PatientName=None))))
    assert values(matches, PATIENT_ID) == ["P1", "P2"]
    assert pacs.models_asked("find") == [(PATIENT_ROOT.find, "PATIENT")]


async def test_find_patients_where_there_is_only_the_retired_model(pacs, reaching):
    pacs.models = (STUDY_ROOT, PATIENT_STUDY_ONLY)
    async with reaching(pacs) as backend:
        await all_of(backend.query(Query(Level.PATIENT, {})))
        await all_of(backend.query(Query(Level.STUDY, {}, patient_root=True)))
    assert pacs.models_asked("find") == [(PATIENT_STUDY_ONLY.find, "PATIENT"), (STUDY_ROOT.find, "STUDY")]


async def test_study_root_has_no_patients(pacs, reaching):
    pacs.models = (STUDY_ROOT,)
    async with reaching(pacs) as backend:
        with pytest.raises(NoPresentationContext, match="no C-FIND at the PATIENT level"):
            await all_of(backend.query(Query(Level.PATIENT, {})))
        await backend.echo()


async def test_the_identifier_that_is_sent(pacs, reaching):
    given = keys(
        PatientName="Schädel*", SpecificCharacterSet="ISO_IR 100", RetrieveAETitle=["X"], StudyDate=None
    )
    async with reaching(pacs) as backend:
        await all_of(backend.query(Query(Level.SERIES, given)))
    ((_, operation, _, _),) = pacs.asked
    assert operation.data_set == (
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"
        b"\x08\x00\x20\x00DA\x00\x00"
        b"\x08\x00\x52\x00CS\x06\x00SERIES"
        b"\x10\x00\x10\x00PN\x08\x00Sch\xe4del*"
        b"\x20\x00\x0d\x00UI\x00\x00"
        b"\x20\x00\x0e\x00UI\x00\x00"
    )


async def test_answers_are_unicode_and_complete(pacs, reaching):
    async with reaching(pacs) as backend:
        (match,) = await all_of(
            backend.query(Query(Level.IMAGE, keys(StudyInstanceUID="1.2", StudyDescription=None)))
        )
    assert text_of(match, 0x00081030) == "Schädel"
    assert text_of(match, 0x00080016) == CT


async def test_unique_keys_that_the_pacs_leaves_out_are_filled_in(pacs, reaching):
    async def find(operation):
        yield encode_data_set(keys(SOPInstanceUID="1.1.1.1"), operation.context.transfer_syntax)

    pacs.find = find
    async with reaching(pacs) as backend:
        given = keys(PatientID="P*", StudyInstanceUID="1.1", SeriesInstanceUID=["1.1.1", "1.1.2"])
        (match,) = await all_of(backend.query(Query(Level.IMAGE, given)))
    assert match == keys(QueryRetrieveLevel="IMAGE", SOPInstanceUID="1.1.1.1", StudyInstanceUID="1.1")


async def test_matches_come_one_by_one_and_leaving_early_cancels(pacs, reaching):
    pacs.images = [image("P1", "1.1", "1.1.1", number) for number in range(1, 200)]
    async with reaching(pacs) as backend:
        async with contextlib.aclosing(backend.query(Query(Level.IMAGE, {}))) as matches:
            assert text_of(await anext(matches), int(INSTANCE, 16)) == "1.1.1.1"
            assert backend.pool.lent == 1
        assert backend.pool.lent == 0
        limited = await all_of(backend.query(Query(Level.IMAGE, {}, limit=3)))
        assert len(limited) == 3
        page = await all_of(backend.query(Query(Level.IMAGE, {}, limit=2, offset=3)))
        assert values(page, INSTANCE) == ["1.1.1.4", "1.1.1.5"]
        rest = await all_of(backend.query(Query(Level.IMAGE, {}, offset=198)))
        assert values(rest, INSTANCE) == ["1.1.1.199"]
        await backend.echo()
    assert [operation.cancelled.is_set() for _, operation, _, _ in pacs.asked] == [True, True, True, False]
    assert len(pacs.associations) == 1


async def test_a_query_that_fails(pacs, reaching):
    pacs.strict = True
    async with reaching(pacs) as backend:
        with pytest.raises(DimseError) as caught:
            await all_of(backend.query(Query(Level.SERIES, {})))
        await backend.echo()
    assert (caught.value.status, caught.value.outcome.offending_elements) == (0xA900, (0x0020000D,))


async def test_a_query_that_has_no_encoding(pacs, reaching):
    async with reaching(pacs) as backend:
        with pytest.raises(IdentifierError) as caught:
            await all_of(backend.query(Query(Level.STUDY, {"00280010": {"vr": "US", "Value": ["many"]}})))
        await backend.echo()
    assert caught.value.tag == 0x00280010


async def test_an_answer_that_is_no_data_set(pacs, reaching):
    async def find(operation):
        yield b"\xff" * 7

    pacs.find = find
    async with reaching(pacs) as backend:
        with pytest.raises(DimseError, match="cannot be decoded"):
            await all_of(backend.query(Query(Level.STUDY, {})))


def extended_items(pacs):
    agreed = pacs.associations[0].agreed.peer
    return {
        item.sop_class_uid: item.service_class_application_information
        for item in agreed.extended_negotiations
    }


async def test_what_is_negotiated_besides(pacs, reaching):
    async with reaching(pacs) as backend:
        await backend.echo()
    assert extended_items(pacs) == {}
    pacs.associations.clear()
    pacs.ends.clear()
    async with reaching(pacs, relational=True) as backend:
        await backend.echo()
    finds = [model.find for model in (STUDY_ROOT, PATIENT_ROOT, PATIENT_STUDY_ONLY)]
    moves = [model.move for model in (STUDY_ROOT, PATIENT_ROOT)]
    assert extended_items(pacs) == dict.fromkeys([*finds, *moves], b"\1")
    pacs.associations.clear()
    pacs.ends.clear()
    async with reaching(pacs) as backend:
        await all_of(backend.query(Query(Level.STUDY, {}, matching=MatchingOptions(fuzzy_names=True))))
    assert extended_items(pacs) == dict.fromkeys(finds, b"\0\0\1")


# C-GET


GET_CASES = {
    "patient": (Level.PATIENT, {"patient_ids": ["P1"]}, ["1.1.1.1", "1.1.1.2", "1.1.2.1", "1.3.1.1"]),
    "study": (Level.STUDY, {"study_instance_uids": ["1.1"]}, ["1.1.1.1", "1.1.1.2", "1.1.2.1"]),
    "studies": (Level.STUDY, {"study_instance_uids": ["1.2", "1.3"]}, ["1.3.1.1", "1.2.1.1"]),
    "series": (
        Level.SERIES,
        {"study_instance_uids": ["1.1"], "series_instance_uids": ["1.1.1"]},
        ["1.1.1.1", "1.1.1.2"],
    ),
    "image": (
        Level.IMAGE,
        {
            "study_instance_uids": ["1.1"],
            "series_instance_uids": ["1.1.1"],
            "sop_instance_uids": ["1.1.1.2"],
        },
        ["1.1.1.2"],
    ),
    "image of a study": (
        Level.IMAGE,
        {"study_instance_uids": ["1.1"], "sop_instance_uids": ["1.1.1.2"]},
        ["1.1.1.2"],
    ),
}


@pytest.mark.parametrize("strict", [False, True], ids=["relational", "hierarchical"])
@pytest.mark.parametrize("case", GET_CASES)
async def test_get(pacs, reaching, case, strict):
    level, given, uids = GET_CASES[case]
    pacs.strict = strict
    if strict and case in ("studies", "image of a study"):
        pacs.strict = False  # no PACS can be asked for these otherwise
    async with reaching(pacs) as backend:
        selection = await backend.retrieve(Retrieve(level, UniqueKeys(**given)))
        assert list(selection.sop_instance_uids) == uids
        assert selection.total == len(uids)
        assert await fetched(selection) == expected(pacs, *uids)
        assert (backend.pool.lent, backend.pool.idle) == (0, 2)


async def test_get_of_what_is_not_there(pacs, reaching):
    async with reaching(pacs) as backend:
        for given in ({"study_instance_uids": ["9"]}, {"patient_ids": ["P9"]}, {"study_instance_uids": []}):
            selection = await backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(**given)))
            assert (selection.total, await fetched(selection)) == (0, {})
    assert pacs.models_asked("get") == []


@pytest.mark.parametrize("models", [(STUDY_ROOT,), (PATIENT_ROOT,)])
async def test_get_in_the_model_there_is(pacs, reaching, models):
    pacs.models = models
    async with reaching(pacs) as backend:
        keys = UniqueKeys(study_instance_uids=["1.3"])
        selection = await backend.retrieve(Retrieve(Level.STUDY, keys, patient_root=models == (STUDY_ROOT,)))
        assert await fetched(selection) == expected(pacs, "1.3.1.1")
    assert pacs.models_asked("get") == [(models[0].get, "STUDY")]


async def test_get_of_a_patient_without_patient_root(pacs, reaching):
    pacs.models = (STUDY_ROOT,)
    async with reaching(pacs) as backend:
        selection = await backend.retrieve(Retrieve(Level.PATIENT, UniqueKeys(patient_ids=["P1"])))
        with pytest.raises(NoPresentationContext, match="no C-GET at the PATIENT level"):
            await fetched(selection)


async def test_get_from_a_pacs_that_does_not_find_images(pacs, reaching):
    """Then everything is proposed."""
    pacs.finds_images = False
    async with reaching(pacs) as backend:
        selection = await backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["1.1"])))
        assert selection.total is None
        assert selection.sop_instance_uids is None
        assert await fetched(selection) == expected(pacs, "1.1.1.1", "1.1.1.2", "1.1.2.1")
        selection = await backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["9"])))
        assert selection.total == 0
        assert await fetched(selection) == {}


async def test_get_from_a_pacs_that_disregards_keys_of_other_levels(pacs, reaching):
    """What it answers then is not what a retrieve brings. It may even be the whole archive: the query is cancelled."""
    pacs.ignores = (PATIENT_ID, STUDY)
    pacs.images = [image("P9", "1.9", "1.9.1", number) for number in range(1, 100)] + pacs.images
    async with reaching(pacs) as backend:
        for keys in (UniqueKeys(patient_ids=["P2"]), UniqueKeys(study_instance_uids=["1.2"])):
            selection = await backend.retrieve(Retrieve(Level.STUDY, keys))
            assert list(selection.sop_instance_uids) == ["1.2.1.1"]
            assert await fetched(selection) == expected(pacs, "1.2.1.1")
    assert pacs.models_asked("find")[0] == (STUDY_ROOT.find, "IMAGE")
    assert pacs.asked[0][1].cancelled.is_set()


async def test_get_for_a_requester_that_says_what_it_takes(pacs, reaching):
    """Nothing is asked before, and the requester's pairs are proposed with the native syntaxes."""
    keys = UniqueKeys(patient_ids=["P2"])
    async with reaching(pacs) as backend:
        selection = await backend.retrieve(Retrieve(Level.PATIENT, keys, accepted=((CT, JPEG),), priority=1))
        assert selection.total is None
        assert await fetched(selection) == expected(pacs, "1.2.1.1")
    assert [(kind, level) for kind, _, level, _ in pacs.asked] == [("get", "PATIENT")]
    assert pacs.asked[0][1].request.priority == 1
    contexts = pacs.associations[0].agreed.contexts.values()
    assert {(each.abstract_syntax, each.transfer_syntax) for each in contexts if each.as_scu} == {
        (CT, JPEG),
        (CT, EXPLICIT),
        (CT, IMPLICIT),
    }


async def test_the_total_shows_while_they_come(pacs, reaching):
    keys = UniqueKeys(study_instance_uids=["1.1"])
    accepted = ((CT, EXPLICIT), (MR, EXPLICIT))
    async with reaching(pacs) as backend:
        selection = await backend.retrieve(Retrieve(Level.STUDY, keys, accepted=accepted))
        assert selection.total_so_far() is None
        totals = []
        async for instance in selection.instances:
            await read(instance)
            totals.append(selection.total_so_far())
        assert selection.total_so_far() == 3
        assert set(totals) <= {None, 3}


# What does not come


async def test_instances_that_the_pacs_could_not_send(pacs, reaching):
    pacs.extra = [Unavailable("1.1.9.9")]
    async with reaching(pacs) as backend:
        keys = UniqueKeys(study_instance_uids=["1.1"])
        selection = await backend.retrieve(
            Retrieve(Level.STUDY, keys, accepted=((CT, EXPLICIT), (MR, EXPLICIT)))
        )
        found = await fetched(selection)
    assert found == expected(pacs, "1.1.1.1", "1.1.1.2", "1.1.2.1") | {"1.1.9.9": None}


async def test_instances_that_are_not_accepted(pacs, reaching):
    async with reaching(pacs) as backend:
        keys = UniqueKeys(study_instance_uids=["1.1"])
        selection = await backend.retrieve(Retrieve(Level.STUDY, keys, accepted=((MR, EXPLICIT),)))
        found = await fetched(selection)
    assert found == expected(pacs, "1.1.2.1") | {"1.1.1.1": None, "1.1.1.2": None}


async def test_nothing_comes_but_a_failure(pacs, reaching):
    async with reaching(pacs) as backend:
        keys = UniqueKeys(study_instance_uids=["1.3"])
        selection = await backend.retrieve(Retrieve(Level.STUDY, keys, accepted=((MR, EXPLICIT),)))
        with pytest.raises(DimseError) as caught:
            await fetched(selection)
        await backend.echo()
    assert caught.value.status == 0xA702


async def failing(operation):
    raise DimseError(0xC123, "the tape is torn")


async def test_a_failure_after_something_came(pacs, reaching):
    pacs.before[1] = failing
    async with reaching(pacs) as backend:
        keys = UniqueKeys(study_instance_uids=["1.1"])
        found = await fetched(await backend.retrieve(Retrieve(Level.STUDY, keys)))
        assert found == expected(pacs, "1.1.1.1") | {"1.1.1.2": None, "1.1.2.1": None}
        taking = Retrieve(Level.STUDY, keys, accepted=((CT, EXPLICIT), (MR, EXPLICIT)))
        instances = (await backend.retrieve(taking)).instances
        assert await read(await anext(instances)) == pacs.images[0].data
        with pytest.raises(DimseError, match="the tape is torn"):
            await anext(instances)


async def test_a_pacs_that_cancels_unasked(pacs, reaching):
    async def cancel(operation):
        operation.cancelled.set()

    pacs.before[1] = cancel
    async with reaching(pacs) as backend:
        keys = UniqueKeys(study_instance_uids=["1.1"])
        taking = Retrieve(Level.STUDY, keys, accepted=((CT, EXPLICIT), (MR, EXPLICIT)))
        instances = (await backend.retrieve(taking)).instances
        await read(await anext(instances))
        with pytest.raises(RetrieveFailed, match="0xFE00"):
            await anext(instances)


async def test_less_comes_than_was_found(pacs, reaching):
    removed = pacs.images[1]

    async with reaching(pacs) as backend:
        keys = UniqueKeys(study_instance_uids=["1.1"])
        selection = await backend.retrieve(Retrieve(Level.STUDY, keys))
        pacs.images.remove(removed)
        found = await fetched(selection)
    assert found == expected(pacs, "1.1.1.1", "1.1.2.1") | {removed.sop_instance_uid: None}


# C-STORE


@contextlib.asynccontextmanager
async def in_front_of(backend, *, pairs=((CT, EXPLICIT), (MR, EXPLICIT)), **options):
    """An association with an SCP that gives everything to the backend."""
    services = Services()
    services.store(backend.store)
    contexts = propose_contexts((sop_class, [syntax]) for sop_class, syntax in pairs)
    async with (
        serve(services, port=0) as server,
        associate("127.0.0.1", server.port, contexts=contexts, **options) as scu,
    ):
        yield scu


async def test_one_association_for_one_association(pacs, reaching):
    async with reaching(pacs) as backend, in_front_of(backend) as scu:
        for each in (*pacs.images[:3], image("P1", "1.1", "1.1.1", 7, size=3_000_000)):
            assert await scu.store(each) == Outcome(0)
            assert pacs.stored[each.sop_instance_uid] == each.data + b"\0" * (len(each.data) % 2)
    assert len(pacs.associations) == 1
    contexts = pacs.associations[0].agreed.contexts.values()
    assert {(each.abstract_syntax, each.transfer_syntax) for each in contexts} == {
        (CT, EXPLICIT),
        (MR, EXPLICIT),
        (VERIFICATION, IMPLICIT),
    }
    assert len(pacs.stored) == 4


@pytest.mark.parametrize(
    "outcome", [Outcome(0xB007, "odd"), Outcome(0xA700, "full"), Outcome(0xC123, "no", (0x00100020,))]
)
async def test_the_answer_is_that_of_the_pacs(pacs, reaching, outcome):
    pacs.store_outcome = lambda request: outcome
    async with reaching(pacs) as backend, in_front_of(backend) as scu:
        if outcome.status == 0xB007:
            assert await scu.store(pacs.images[0]) == outcome
        else:
            with pytest.raises(DimseError) as caught:
                await scu.store(pacs.images[0])
            assert caught.value.outcome == outcome
        with contextlib.suppress(DimseError):
            await backend.store_instance(pacs.images[0])
    assert len(pacs.requests) == 2


async def test_the_request_is_passed_on(pacs, reaching):
    async with reaching(pacs) as backend, in_front_of(backend) as scu:
        await scu.store(
            pacs.images[0], priority=2, move_originator_ae_title="SOMEBODY", move_originator_message_id=77
        )
    command = pacs.requests[0].command
    assert (command.affected_sop_class_uid, command.affected_sop_instance_uid) == (CT, "1.1.1.1")
    assert (command.priority, command.move_originator_ae_title) == (2, "SOMEBODY")
    assert command.move_originator_message_id == 77


async def test_what_the_pacs_does_not_take(pacs, reaching):
    pacs.storage_syntaxes = [IMPLICIT]
    async with reaching(pacs) as backend, in_front_of(backend) as scu:
        with pytest.raises(DimseError) as caught:
            await scu.store(pacs.images[0])
        assert caught.value.status == 0x0122
        await backend.echo()


async def test_store_to_a_pacs_that_is_down(pacs, free_port):
    backend = DicomSCU(configured(free_port))
    async with in_front_of(backend) as scu:
        for _ in range(2):
            with pytest.raises(DimseError, match="the PACS cannot be reached") as caught:
                await scu.store(image("P1", "1.1", "1.1.1", 7, size=3_000_000))
            assert caught.value.status == 0xA700
    await backend.stop(0.0)


async def test_the_pacs_dies_in_the_middle_of_a_store(pacs, reaching):
    pacs.open_sink = lambda request: request.association.abort()
    async with reaching(pacs) as backend, in_front_of(backend) as scu:
        with pytest.raises(DimseError) as caught:
            await scu.store(image("P1", "1.1", "1.1.1", 7, size=3_000_000))
        assert caught.value.status == 0xA700
        await until(lambda: backend.pool.lent == 0)


async def test_the_sender_dies_in_the_middle_of_a_store(pacs, reaching):
    opened = asyncio.Event()

    class Sink(BytesSink):
        def write(self, fragment):
            opened.set()

    pacs.open_sink = lambda request: Sink(None)

    async def chunks(association):
        yield b"\0" * 1_000_000
        await opened.wait()
        association.abort()
        yield b"\0"

    async with reaching(pacs) as backend:
        with contextlib.suppress(AssociationError):
            async with in_front_of(backend) as scu:
                await scu.store(Instance(CT, "1.2", EXPLICIT, chunks(scu.association)))
        await until(lambda: backend.pool.lent == 0 and pacs.open_associations == 0)
    assert pacs.stored == {}


async def test_a_slow_pacs_slows_the_sender(pacs, reaching):
    """What is between the two is bounded."""
    flowing, sent, received = asyncio.Event(), 0, 0

    class Slow:
        def __init__(self, request):
            self.association = request.association
            self.association.hold_reading()
            flowing.set()

        def write(self, fragment):
            nonlocal received
            received += len(fragment)

        def finish(self):
            return Outcome(0)

        def abort(self):
            pass

    slow = []

    def open_sink(request):
        slow.append(Slow(request))
        return slow[-1]

    pacs.open_sink = open_sink

    async def chunks():
        nonlocal sent
        for _ in range(640):
            sent += 100_000
            yield b"\0" * 100_000

    async with reaching(pacs) as backend, in_front_of(backend) as scu:
        storing = asyncio.create_task(scu.store(Instance(CT, "1.2", EXPLICIT, chunks())))
        await flowing.wait()
        before = -1
        while sent != before:
            before = sent
            for _ in range(200):
                await asyncio.sleep(0)
        assert sent < 40_000_000
        slow[0].association.continue_reading()
        assert await storing == Outcome(0)
    assert received == 64_000_000


async def test_a_stale_association_is_replaced(pacs, reaching):
    async with reaching(pacs) as backend, in_front_of(backend) as scu:
        await scu.store(pacs.images[0])
        pacs.associations[0].abort()
        await scu.store(pacs.images[1])
        pacs.associations[1].abort()
        await backend.store_instance(pacs.images[2])
    assert sorted(pacs.stored) == ["1.1.1.1", "1.1.1.2", "1.1.2.1"]


async def test_uploads_share_associations(pacs, reaching):
    async with reaching(pacs) as backend:
        for _ in range(2):
            for each in pacs.images:
                await backend.store_instance(each)
        assert len(pacs.associations) <= 4
        before = len(pacs.associations)
        for each in pacs.images:
            await backend.store_instance(each)
        assert len(pacs.associations) == before


async def test_the_source_of_an_instance_is_closed_in_any_case(free_port, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"\0" * 10)
    source = FileSource(path)
    backend = DicomSCU(configured(free_port))
    with pytest.raises(DimseError):
        await backend.store_instance(Instance(CT, "1.2", EXPLICIT, source))
    with pytest.raises(OSError, match="Bad file descriptor"):
        source.read_into([memoryview(bytearray(1))])
    await backend.stop(0.0)


# C-MOVE


@pytest.fixture
def moving(reaching, free_port, pacs):
    """async with moving(option=...) as backend: it retrieves by C-MOVE; the PACS knows where it is."""

    @contextlib.asynccontextmanager
    async def start(**options):
        pacs.destinations["HARMONY"] = Peer("127.0.0.1", free_port, "HARMONY")
        incoming = {"incoming_store_address": "127.0.0.1", "incoming_store_port": free_port}
        async with reaching(pacs, dimse_retrieve_mode="move", **(incoming | options)) as backend:
            yield backend

    return start


async def listens(port):
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True
    return False


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("case", ["patient", "study", "image"])
async def test_move_to_ourselves(pacs, moving, free_port, case, persistent):
    level, given, uids = GET_CASES[case]
    async with moving(persistent_store_scp=persistent) as backend:
        assert await listens(free_port) == persistent
        selection = await backend.retrieve(Retrieve(level, UniqueKeys(**given)))
        assert selection.total == len(uids)
        assert await fetched(selection) == expected(pacs, *uids)
        assert await listens(free_port) == persistent
        selection = await backend.retrieve(Retrieve(level, UniqueKeys(study_instance_uids=["9"])))
        assert await fetched(selection) == {}
        accepted = Retrieve(level, UniqueKeys(**given), accepted=())
        assert await fetched(await backend.retrieve(accepted)) == expected(pacs, *uids)
    assert not await listens(free_port)
    assert pacs.models_asked("get") == []
    await until(lambda: pacs.open_associations == 0)


async def test_moves_at_the_same_time_are_not_mixed(pacs, moving):
    """One patient each; both begin at once and take turns, and a third is left early."""
    pacs.images = [
        image(f"P{patient}", f"1.{patient}", f"1.{patient}.1", number, size=300_000)
        for patient in range(1, 4)
        for number in range(1, 6)
    ]
    async with moving() as backend:
        selections = [
            await backend.retrieve(Retrieve(Level.PATIENT, UniqueKeys(patient_ids=[f"P{patient}"])))
            for patient in range(1, 4)
        ]
        await anext(selections[2].instances)
        await selections[2].instances.aclose()
        found = {}, {}
        for _ in range(5):
            for number in range(2):
                instance = await anext(selections[number].instances)
                found[number][instance.sop_instance_uid] = await read(instance)
        for number in range(2):
            assert await anext(selections[number].instances, None) is None
            assert found[number] == expected(
                pacs, *(each.sop_instance_uid for each in pacs.images[5 * number : 5 * number + 5])
            )


async def test_backends_with_the_same_port(pacs, free_port):
    receivers = StoreReceivers()
    incoming = {
        "dimse_retrieve_mode": "move",
        "incoming_store_address": "127.0.0.1",
        "incoming_store_port": free_port,
    }
    pacs.destinations["HARMONY"] = pacs.destinations["OTHER"] = None
    async with (
        asyncio.timeout(PATIENCE_S),
        serve(pacs.services(), port=0) as first,
        serve(pacs.services(), port=0) as second,
    ):
        backends = [
            DicomSCU(configured(first.port, **incoming), receivers),
            DicomSCU(configured(second.port, **incoming), receivers),
            DicomSCU(configured(second.port, local_aet="OTHER", **incoming), receivers),
        ]
        for backend in backends:
            await backend.start()
            title = backend.local_aet
            pacs.destinations[title] = Peer("127.0.0.1", free_port, title)
        uids = ["1.1", "1.2", "1.3"]
        selections = [
            await backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=[uid])))
            for backend, uid in zip(backends, uids, strict=True)
        ]
        results = await asyncio.gather(*map(fetched, selections))
        assert [sorted(found) for found in results] == [
            ["1.1.1.1", "1.1.1.2", "1.1.2.1"],
            ["1.2.1.1"],
            ["1.3.1.1"],
        ]
        assert receivers.addresses == []
        for backend in backends:
            await backend.stop(0.0)


async def test_a_port_that_is_taken(pacs, moving, free_port):
    async with (
        serve(Services(), port=free_port),
        moving() as backend,
    ):
        selection = await backend.retrieve(Retrieve(Level.PATIENT, UniqueKeys(patient_ids=["P1"])))
        with pytest.raises(OSError, match=f"incoming_store_port {free_port} cannot be listened on"):
            await fetched(selection)
        with pytest.raises(OSError, match="incoming_store_port"):
            async with moving(persistent_store_scp=True):
                pass


async def test_a_port_on_which_an_endpoint_listens(pacs, moving, free_port, reaching):
    receivers, stored = StoreReceivers(), {}

    def endpoint_store(request):
        def complete(data):
            stored[request.affected_sop_instance_uid] = data
            return Outcome(0)

        return BytesSink(complete)

    services = Services()
    services.store(receivers.open_sink(endpoint_store))
    receivers.provide({free_port: frozenset({"HARMONY"})})
    pacs.destinations["HARMONY"] = Peer("127.0.0.1", free_port, "HARMONY")
    options = {"dimse_retrieve_mode": "move", "incoming_store_port": free_port, "persistent_store_scp": True}
    async with (
        asyncio.timeout(PATIENCE_S),
        serve(pacs.services(), port=0) as server,
        serve(services, ae_title="HARMONY", port=free_port),
        associate(
            "127.0.0.1",
            free_port,
            called_ae_title="HARMONY",
            contexts=propose_contexts([(CT, [EXPLICIT])]),
        ) as modality,
    ):
        backend = DicomSCU(configured(server.port, **options), receivers)
        await backend.start()
        selection = await backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["1.1"])))
        first = await anext(selection.instances)
        await modality.store(image("P7", "1.7", "1.7.1", 1))
        found = {first.sop_instance_uid: await read(first)} | await fetched(selection)
        assert found == expected(pacs, "1.1.1.1", "1.1.1.2", "1.1.2.1")
        assert sorted(stored) == ["1.7.1.1"]
        await backend.stop(0.0)
        other = DicomSCU(configured(server.port, local_aet="OTHER", **options), receivers)
        with pytest.raises(OSError, match="AE title HARMONY; local_aet is OTHER"):
            await other.start()
        await other.stop(0.0)


async def test_what_nobody_waits_for_is_refused(pacs, moving, free_port):
    async with (
        moving(persistent_store_scp=True),
        associate(
            "127.0.0.1",
            free_port,
            called_ae_title="HARMONY",
            contexts=propose_contexts([(CT, [EXPLICIT])]),
        ) as modality,
    ):
        with pytest.raises(DimseError, match="no retrieve waits"):
            await modality.store(pacs.images[0])


async def test_move_to_somebody_else(pacs, reaching):
    there = Pacs()
    async with serve(there.services(), port=0) as third, reaching(pacs) as backend:
        pacs.destinations["THIRD"] = Peer("127.0.0.1", third.port, "THIRD")
        retrieve = Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["1.1"]), priority=1)
        result = await backend.move_to(retrieve, "THIRD")
        assert (result.status, result.counters.completed) == (0, 3)
        there.store_outcome = lambda request: Outcome(0xA700)
        with pytest.raises(RetrieveFailed) as caught:
            await backend.move_to(retrieve, "THIRD")
        assert caught.value.result.counters.failed == 3
        with pytest.raises(DimseError, match="0xA801"):
            await backend.move_to(retrieve, "NOBODY")
        with pytest.raises(ValueError, match="our own AE title"):
            await backend.move_to(retrieve, "HARMONY")
        nothing = Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=[]))
        assert (await backend.move_to(nothing, "THIRD")).counters.completed == 0
    assert sorted(there.stored) == ["1.1.1.1", "1.1.1.2", "1.1.2.1"]


# Leaving early, and losing the PACS


@pytest.fixture(params=["get", "move"])
def retrieving(request, reaching, moving, pacs):
    """async with retrieving(option=...) as backend, for C-GET and C-MOVE; 20 instances of 100 kB."""
    pacs.images = [image("P1", "1.1", "1.1.1", number, size=100_000) for number in range(1, 21)]
    return partial(reaching, pacs) if request.param == "get" else moving


STUDY_11 = Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["1.1"]))


def retrieve_tasks():
    return sum("retrieve" in task.get_name() for task in asyncio.all_tasks())


async def test_leaving_after_each_instance(pacs, retrieving):
    async with retrieving() as backend:
        for count in range(4):
            selection = await backend.retrieve(STUDY_11)
            for _ in range(count):
                await read(await anext(selection.instances))
            assert retrieve_tasks() == (1 if count else 0)
            await selection.instances.aclose()
            assert (backend.pool.lent, retrieve_tasks()) == (0, 0)
        await backend.echo()


async def test_leaving_in_the_middle_of_an_instance(pacs, retrieving):
    pacs.images = [image("P1", "1.1", "1.1.1", number, size=5_000_000) for number in range(1, 5)]
    async with retrieving() as backend:
        selection = await backend.retrieve(STUDY_11)
        instance = await anext(selection.instances)
        await anext(instance.data)
        await selection.instances.aclose()
        assert backend.pool.lent == 0
        with pytest.raises(ValueError, match="left behind"):
            await anext(instance.data)
        assert await fetched(await backend.retrieve(STUDY_11)) == {
            each.sop_instance_uid: each.data for each in pacs.images
        }


async def test_an_instance_may_be_left_unread(pacs, retrieving):
    pacs.images = [image("P1", "1.1", "1.1.1", number, size=5_000_000) for number in range(1, 4)]
    async with retrieving() as backend:
        selection = await backend.retrieve(STUDY_11)
        seen = []
        async for instance in selection.instances:
            seen.append(instance.sop_instance_uid)
        assert seen == [each.sop_instance_uid for each in pacs.images]


@pytest.mark.parametrize("steps", range(0, 200, 4))
async def test_a_consumer_that_is_cancelled_at_any_step(pacs, retrieving, steps):
    async with retrieving(max_associations=1) as backend:
        await backend.echo()

        async def consume():
            selection = await backend.retrieve(STUDY_11)
            try:
                await fetched(selection)
            finally:
                await selection.instances.aclose()

        consumer = asyncio.create_task(consume())
        for _ in range(steps):
            await asyncio.sleep(0)
        consumer.cancel()
        await asyncio.wait([consumer])
        assert (backend.pool.lent, retrieve_tasks()) == (0, 0)
        await backend.echo()
        await until(lambda: pacs.open_associations == 1)


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_the_pacs_dies_between_two_instances(pacs, retrieving, count):
    pacs.before[count] = abort
    async with retrieving() as backend:
        selection = await backend.retrieve(STUDY_11)
        for number in range(count):
            assert await read(await anext(selection.instances)) == pacs.images[number].data
        with pytest.raises(AssociationError):
            await anext(selection.instances)
        assert (backend.pool.lent, retrieve_tasks()) == (0, 0)
        with pytest.raises(StopAsyncIteration):
            await anext(selection.instances)


async def test_the_pacs_dies_in_the_middle_of_an_instance(pacs, retrieving):
    """Whoever reads the data hears of it at once."""
    stopped = asyncio.Event()

    async def chunks():
        yield b"\0" * 1000_000
        await stopped.wait()
        raise RuntimeError("the disk is gone")

    pacs.extra = [Instance(CT, "1.1.9.1", EXPLICIT, chunks())]
    pacs.images = []
    async with retrieving() as backend:
        selection = await backend.retrieve(
            Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["1.1"]), accepted=((CT, EXPLICIT),))
        )
        instance = await anext(selection.instances)
        await anext(instance.data)
        stopped.set()
        with pytest.raises(AssociationError):
            await read(instance)
        with contextlib.suppress(AssociationError, DimseError):
            await fetched(selection)


async def test_a_pacs_that_stalls_during_a_retrieve(pacs, retrieving):
    pacs.before[1] = forever
    pacs.tells_progress = False
    async with retrieving(timeout_s=0.5) as backend:
        selection = await backend.retrieve(STUDY_11)
        assert await read(await anext(selection.instances)) == pacs.images[0].data
        with pytest.raises(DeadlineExceeded):
            await anext(selection.instances)
        assert backend.pool.lent == 0


async def test_a_slow_consumer_is_not_taken_for_a_slow_pacs(pacs, retrieving):
    """It takes longer than the PACS may be silent, which is long enough for a busy machine to answer in."""
    async with retrieving(timeout_s=2.0) as backend:
        selection = await backend.retrieve(STUDY_11)
        first = await anext(selection.instances)
        await asyncio.sleep(2.5)
        assert await read(first) == pacs.images[0].data
        assert len(await fetched(selection)) == 19


async def test_a_slow_consumer_slows_the_pacs(pacs, retrieving):
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(640):
            sent += 100_000
            yield b"\0" * 100_000

    pacs.images, pacs.extra = [], [Instance(CT, "1.1.9.1", EXPLICIT, chunks())]
    async with retrieving() as backend:
        selection = await backend.retrieve(
            Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=["1.1"]), accepted=((CT, EXPLICIT),))
        )
        instance = await anext(selection.instances)
        before = -1
        while sent != before:
            before = sent
            for _ in range(200):
                await asyncio.sleep(0)
        assert sent < 40_000_000
        assert len(await read(instance)) == 64_000_000
        assert await anext(selection.instances, None) is None


async def test_stopping_lets_a_retrieve_finish(pacs, retrieving):
    async with retrieving() as backend:
        selection = await backend.retrieve(STUDY_11)
        await read(await anext(selection.instances))
        stopping = asyncio.create_task(backend.stop(PATIENCE_S))
        assert len(await fetched(selection)) == 19
        await stopping


async def test_stopping_ends_a_retrieve_that_takes_too_long(pacs, retrieving):
    async with retrieving() as backend:
        selection = await backend.retrieve(STUDY_11)
        await anext(selection.instances)
        await backend.stop(0.01)
        with pytest.raises(AssociationError):
            await fetched(selection)
