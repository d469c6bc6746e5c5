"""What a running gateway tells its audit trail, read from the file: one test for each kind of message."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import ssl
import zipfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from harmony.dimse import Instance, associate
from harmony.dimse.information_model import STUDY_ROOT
from harmony.dimse.query import find
from harmony.dimse.status import DimseError
from harmony.gateway.app import Gateway
from harmony.gateway.config import ConfigError
from harmony.http.client import HTTPClient
from harmony.ul.errors import AssociationRejected
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def element(tag: int, vr: str, value: bytes) -> bytes:
    """Explicit VR Little Endian (PS3.5 §7.1.2), for VRs with a length of two bytes."""
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + vr.encode()
    return head + len(value).to_bytes(2, "little") + value


def image(
    number: int, *, study: str = "1.2.3", patient: str = "4711", name: str = "Yamada^Tarou"
) -> Instance:
    uid = f"{study}.1.{number}"
    data = b"".join(
        (
            element(0x00080005, "CS", b"ISO_IR 192"),
            element(0x00080016, "UI", CT.encode()),
            element(0x00080018, "UI", uid.encode()),
            element(0x00100010, "PN", name.encode()),
            element(0x00100020, "LO", patient.encode()),
            element(0x0020000D, "UI", study.encode()),
            element(0x0020000E, "UI", f"{study}.1".encode()),
        )
    )
    return Instance(CT, uid, EXPLICIT, data)


class Site:
    """A gateway with an archive behind DICOM and DICOMweb, whose audit trail can be read."""

    def __init__(self, folder: Path, load_config, dicom_port: int, http_port: int) -> None:
        self.folder = folder
        self.dicom_port, self.http_port = dicom_port, http_port
        self.title, self.scp, self.more = "GATEWAY", "", ""
        self.between = ""
        """Middleware and backends of the pipeline."""
        self.audit = "enabled = true"
        self._load_config = load_config
        self.gateway: Gateway | None = None

    def load(self):
        return self._load_config(
            f"""
            [proxy]
            id = "site"
            [storage.options]
            path = "{self.folder / "storage"}"
            [audit]
            site = "Ward 7"
            {self.audit}
            [network.n.dicom]
            bind_address = "127.0.0.1"
            bind_port = {self.dicom_port}
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {self.http_port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp", "web"]
            {self.between}
            [endpoints.scp]
            service = "dicom_scp"
            [endpoints.scp.options]
            local_aet = "{self.title}"
            min_free_bytes = 0
            {self.scp}
            [endpoints.web]
            service = "dicomweb"
            options.path_prefix = "/web"
            {self.more}
            """
        )

    async def start(self) -> Gateway:
        self.gateway = Gateway(self.load(), load=self.load)
        await self.gateway.start()
        return self.gateway

    async def stop(self) -> None:
        gateway, self.gateway = self.gateway, None
        if gateway is not None:
            await gateway.stop(5.0)

    def associate(self, **options):
        options.setdefault("called_ae_title", self.title)
        options.setdefault("calling_ae_title", "MODALITY")
        contexts = propose_contexts([(CT, [EXPLICIT]), (STUDY_ROOT.find, [EXPLICIT])])
        return associate("127.0.0.1", self.dicom_port, contexts=contexts, **options)

    async def store(self, *instances: Instance) -> None:
        async with self.associate() as scu:
            for instance in instances:
                assert (await scu.store(instance)).status == 0

    def messages(self, event: str) -> list[Element]:
        """Those with this EventID, by its words."""
        found = []
        for path in sorted((self.folder / "storage" / "audit").glob("audit-*.log")):
            for line in path.read_bytes().splitlines():
                root = ElementTree.fromstring(line[line.index(b"<AuditMessage") :])
                if root.find("EventIdentification/EventID").get("originalText") == event:
                    found.append(root)
        return found


@pytest.fixture
async def site(tmp_path, load_config, free_ports):
    site = Site(tmp_path, load_config, *free_ports(2))
    yield site
    await site.stop()


@pytest.fixture
async def client(site):
    client = HTTPClient(f"http://127.0.0.1:{site.http_port}/web", timeout_s=20.0)
    yield client
    await client.aclose()


def outcome(message: Element) -> str:
    return message.find("EventIdentification").get("EventOutcomeIndicator")


def action(message: Element) -> str:
    return message.find("EventIdentification").get("EventActionCode")


def participants(message: Element) -> list[tuple[str, str, str]]:
    """User or our process, what it is called, and its role."""
    found = []
    for each in message.findall("ActiveParticipant"):
        role = each.find("RoleIDCode")
        titles = each.get("AlternativeUserID", "").removeprefix("AETITLES=")
        asks = "asks" if each.get("UserIsRequestor") == "true" else ""
        found.append((titles or each.get("UserID"), role.get("csd-code") if role is not None else "", asks))
    return found


def patients(message: Element) -> list[tuple[str, str]]:
    return [
        (each.get("ParticipantObjectID"), each.findtext("ParticipantObjectName", ""))
        for each in message.findall("ParticipantObjectIdentification")
        if each.get("ParticipantObjectTypeCode") == "1"
    ]


def studies(message: Element) -> dict[str, dict[str, int]]:
    return {
        each.get("ParticipantObjectID"): {
            sop_class.get("UID"): int(sop_class.get("NumberOfInstances"))
            for sop_class in each.iter("SOPClass")
        }
        for each in message.findall("ParticipantObjectIdentification")
        if each.find("ParticipantObjectIDTypeCode").get("csd-code") == "110180"
    }


async def until_told(site: Site, event: str, count: int = 1) -> list[Element]:
    """Once an association or a request is over, which its peer may know a little earlier."""
    async with asyncio.timeout(20):
        while len(found := site.messages(event)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


async def test_start_and_stop(site):
    await site.start()
    (start,) = site.messages("Application Activity")
    assert start.find("EventIdentification/EventTypeCode").get("csd-code") == "110120"
    assert start.find("AuditSourceIdentification").get("AuditSourceID") == "site"
    assert start.find("AuditSourceIdentification").get("AuditEnterpriseSiteID") == "Ward 7"
    await site.stop()
    _, stop = site.messages("Application Activity")
    assert stop.find("EventIdentification/EventTypeCode").get("csd-code") == "110121"
    assert participants(stop) == [("GATEWAY", "110150", "")]


async def test_instances_received_are_told_by_patient_when_the_association_is_over(site):
    await site.start()
    await site.store(
        image(1), image(2), image(1, study="1.2.4"), image(1, study="1.2.5", patient="9", name="山田^太郎")
    )
    found = await until_told(site, "DICOM Instances Transferred", 2)
    first = next(each for each in found if patients(each)[0][0] == "4711")
    assert (action(first), outcome(first)) == ("C", "0")
    assert participants(first) == [("MODALITY", "110153", "asks"), ("GATEWAY", "110152", "")]
    assert studies(first) == {"1.2.3": {CT: 2}, "1.2.4": {CT: 1}}
    assert patients(first) == [("4711", "Yamada^Tarou")]
    assert first.find("ActiveParticipant").get("NetworkAccessPointID") == "127.0.0.1"
    (other,) = [each for each in found if each is not first]
    assert patients(other) == [("9", "山田^太郎")]


async def test_an_instance_that_was_refused_is_told_as_that(site):
    site.scp = "max_object_bytes = 1024"
    await site.start()
    too_long = image(1)
    too_long = Instance(
        CT, too_long.sop_instance_uid, EXPLICIT, bytes(too_long.data) + element(0x00204000, "LT", b"x" * 2000)
    )
    async with site.associate() as scu:
        with pytest.raises(DimseError, match="A700"):
            await scu.store(too_long)
    found = await until_told(site, "DICOM Instances Transferred")
    assert [outcome(each) for each in found] == ["4"]


async def test_query_by_c_find(site):
    await site.start()
    await site.store(image(1))
    identifier = (
        element(0x00080052, "CS", b"STUDY")
        + element(0x00100020, "LO", b"4711")
        + element(0x0020000D, "UI", b"")
    )
    async with (
        site.associate() as scu,
        contextlib.aclosing(find(scu, STUDY_ROOT.find, identifier)) as matches,
    ):
        assert len([match async for match in matches]) == 1
    (query,) = await until_told(site, "Query")
    assert (action(query), outcome(query)) == ("E", "0")
    assert participants(query) == [("MODALITY", "110153", "asks"), ("GATEWAY", "110152", "")]
    asked = query.find("ParticipantObjectIdentification")
    assert asked.get("ParticipantObjectID") == STUDY_ROOT.find
    data = base64.b64decode(asked.findtext("ParticipantObjectQuery"))
    assert element(0x00100020, "LO", b"4711") in data
    assert element(0x00080052, "CS", b"STUDY") in data


async def test_query_by_http(site, client):
    await site.start()
    assert (await client.request("GET", "/studies?PatientID=4711")).status in (200, 204)
    (query,) = await until_told(site, "Query")
    url = base64.b64decode(query.findtext("ParticipantObjectIdentification/ParticipantObjectQuery")).decode()
    assert url == f"http://127.0.0.1:{site.http_port}/web/studies?PatientID=4711"
    assert participants(query)[0] == ("127.0.0.1", "110153", "asks")


async def test_retrieve_by_http(site, client):
    await site.start()
    await site.store(image(1), image(2))
    accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    assert (await client.request("GET", "/studies/1.2.3", headers=accept)).status == 200
    found = await until_told(site, "DICOM Instances Transferred", 2)
    (sent,) = [each for each in found if action(each) == "R"]
    assert participants(sent) == [("GATEWAY", "110153", ""), ("127.0.0.1", "110152", "asks")]
    assert studies(sent) == {"1.2.3": {CT: 2}}
    assert patients(sent) == [("4711", "Yamada^Tarou")]


async def test_metadata_are_instances_accessed(site, client):
    await site.start()
    await site.store(image(1))
    assert (await client.request("GET", "/studies/1.2.3/metadata")).status == 200
    (read,) = await until_told(site, "DICOM Instances Accessed")
    assert action(read) == "R"
    assert list(studies(read)) == ["1.2.3"]
    assert patients(read) == [("4711", "Yamada^Tarou")]


async def test_store_by_http(site, client):
    await site.start()
    instance = image(1)
    meta = (
        element(0x00020002, "UI", CT.encode())
        + element(0x00020003, "UI", instance.sop_instance_uid.encode())
        + element(0x00020010, "UI", EXPLICIT.encode())
    )
    part10 = (
        bytes(128)
        + b"DICM"
        + element(0x00020000, "UL", len(meta).to_bytes(4, "little"))
        + meta
        + bytes(instance.data)
    )
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + part10 + b"\r\n--b--\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    assert (await client.request("POST", "/studies", body=body, headers=headers)).status == 200
    (received,) = await until_told(site, "DICOM Instances Transferred")
    assert (action(received), outcome(received)) == ("C", "0")
    assert studies(received) == {"1.2.3": {CT: 1}}


# Envelopes

JMIX = """
    [pipelines.q]
    networks = ["n"]
    endpoints = ["jmix"]
    [endpoints.jmix]
    service = "jmix"
    options = { path_prefix = "/jmix", min_free_bytes = 0 }
"""


@pytest.fixture
async def envelopes(site):
    """The envelopes of a site that packs what it receives."""
    site.between = 'middleware = ["jmix_builder"]'
    site.more = JMIX
    async with HTTPClient(f"http://127.0.0.1:{site.http_port}/jmix/api/jmix", timeout_s=20.0) as client:
        yield client


async def envelope_of(site: Site, envelopes: HTTPClient, until) -> str:
    """The id of the envelope of two images, once it is built."""
    await site.start()
    await site.store(image(1), image(2))
    (store,) = site.gateway.assembly.envelope_stores.values()
    await until(lambda: store.find_by_study("1.2.3"))
    return store.find_by_study("1.2.3")


def by_http(site: Site, event: str, wanted: str) -> list[Element]:
    """Those with this action whose peer is no AE."""
    return [
        each
        for each in site.messages(event)
        if action(each) == wanted and not any("MODALITY" in one for one, _, _ in participants(each))
    ]


def url_of(query: Element) -> str:
    return base64.b64decode(query.findtext(".//ParticipantObjectQuery")).decode()


@pytest.mark.parametrize("accept", ["application/zip", "application/gzip"])
async def test_an_envelope_is_fetched_by_id(site, envelopes, until, accept):
    envelope_id = await envelope_of(site, envelopes, until)
    assert (await envelopes.request("HEAD", f"/{envelope_id}")).status == 200
    assert (await envelopes.request("GET", f"/{envelope_id}/manifest")).status == 200
    assert (await envelopes.request("GET", f"/{envelope_id}", headers={"Accept": accept})).status == 200
    await until(lambda: by_http(site, "DICOM Instances Transferred", "R"))
    (sent,) = by_http(site, "DICOM Instances Transferred", "R")
    assert outcome(sent) == "0"
    assert participants(sent) == [("GATEWAY", "110153", ""), ("127.0.0.1", "110152", "asks")]
    assert studies(sent) == {"1.2.3": {CT: 2}}
    assert patients(sent) == [("4711", "Yamada^Tarou")]
    assert site.messages("Query") == []


async def test_an_envelope_is_asked_for_by_study(site, envelopes, until):
    await envelope_of(site, envelopes, until)
    assert (await envelopes.request("GET", "?studyInstanceUid=1.2.3")).status == 200
    assert (await envelopes.request("GET", "?studyInstanceUid=1.2.9")).status == 404
    assert (await envelopes.request("GET", "/prime/1.2.3")).status == 200
    queries = await until_told(site, "Query", 3)
    base = f"http://127.0.0.1:{site.http_port}/jmix/api/jmix"
    assert [url_of(each) for each in queries] == [
        f"{base}?studyInstanceUid=1.2.3",
        f"{base}?studyInstanceUid=1.2.9",
        f"{base}/prime/1.2.3",
    ]
    assert [outcome(each) for each in queries] == ["0", "0", "0"]
    assert participants(queries[0]) == [("127.0.0.1", "110153", "asks"), ("GATEWAY", "110152", "")]
    await until(lambda: by_http(site, "DICOM Instances Transferred", "R"))
    (sent,) = by_http(site, "DICOM Instances Transferred", "R")
    assert studies(sent) == {"1.2.3": {CT: 2}}


async def test_an_envelope_is_uploaded(site, envelopes, until):
    envelope_id = await envelope_of(site, envelopes, until)
    archive = (await envelopes.request("GET", f"/{envelope_id}")).body
    (store,) = site.gateway.assembly.envelope_stores.values()

    async def upload(body: bytes) -> int:
        headers = {"Content-Type": "application/zip"}
        return (await envelopes.request("POST", "", body=body, headers=headers)).status

    assert await upload(archive) == 409
    await asyncio.to_thread(store.remove, envelope_id)
    assert await upload(archive) == 201
    assert await upload(b"no envelope") == 415
    await until(lambda: len(by_http(site, "DICOM Instances Transferred", "C")) == 2)
    refused, taken = by_http(site, "DICOM Instances Transferred", "C")
    assert (outcome(refused), outcome(taken)) == ("4", "0")
    for each in (refused, taken):
        assert participants(each) == [("127.0.0.1", "110153", "asks"), ("GATEWAY", "110152", "")]
        assert studies(each) == {"1.2.3": {CT: 2}}
        assert patients(each) == [("4711", "Yamada^Tarou")]


async def test_an_envelope_that_nobody_can_read_into(site, envelopes, until):
    """Its payload is encrypted: that it came is told, and nothing about whose it is."""
    await site.start()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("manifest.json", '{"id": "550e8400-e29b-41d4-a716-446655440000"}')
        archive.writestr("payload.encrypted", b"x" * 100)
    headers = {"Content-Type": "application/zip"}
    assert (await envelopes.request("POST", "", body=content.getvalue(), headers=headers)).status == 201
    (received,) = await until_told(site, "DICOM Instances Transferred")
    assert (action(received), outcome(received)) == ("C", "0")
    assert studies(received) == {"unknown": {}}
    assert patients(received) == [("unknown", "")]


@pytest.fixture
async def forwarding(site, upstream):
    site.between = 'middleware = ["jmix_builder"]\nbackends = ["up"]'
    site.more = f"""
        [backends.up]
        service = "jmix_backend"
        connection = {{ host = "127.0.0.1", port = {upstream.port} }}
        options = {{ retry_backoff_secs = 0.01, retry_backoff_max_secs = 0.05 }}
    """
    return upstream


def forwarded(site: Site) -> list[Element]:
    return by_http(site, "DICOM Instances Transferred", "R")


async def test_each_attempt_to_bring_an_envelope_upstream(site, forwarding, until):
    forwarding.answers.extend(["503 Yamada is not known here", "close", 201])
    await site.start()
    await site.store(image(1), image(2))
    await until(lambda: len(forwarded(site)) == 3)
    begun, ended = site.messages("Begin Transferring DICOM Instances"), forwarded(site)
    assert [(action(each), outcome(each)) for each in begun] == [("E", "0")] * 3
    assert [outcome(each) for each in ended] == ["4", "4", "0"]
    assert [each.findtext("EventIdentification/EventOutcomeDescription", "") for each in ended] == [
        "the upstream answered 503",
        "the upstream did not answer",
        "",
    ]
    for each in (*begun, *ended):
        url = f"http://127.0.0.1:{forwarding.port}"
        assert participants(each) == [("GATEWAY", "110153", "asks"), (url, "110152", "")]
        assert studies(each) == {"1.2.3": {CT: 2}}
        assert patients(each) == [("4711", "Yamada^Tarou")]


async def test_an_envelope_that_is_refused_upstream(site, forwarding, until):
    forwarding.answers.append(422)
    await site.start()
    await site.store(image(1))
    await until(lambda: forwarded(site))
    (ended,) = forwarded(site)
    assert outcome(ended) == "4"
    assert ended.findtext("EventIdentification/EventOutcomeDescription") == "the upstream answered 422"


async def test_an_attempt_that_the_end_cuts_short(site, forwarding, until):
    forwarding.answers.append("hang")
    gateway = await site.start()
    await site.store(image(1))
    await forwarding.next()
    site.gateway = None
    await gateway.stop(0.0)
    (ended,) = forwarded(site)
    assert outcome(ended) == "4"
    assert ended.findtext("EventIdentification/EventOutcomeDescription") == "it was not finished"


async def test_what_goes_upstream_is_told_from_when_a_trail_is_kept(site, forwarding, until):
    site.audit = "enabled = false"
    gateway = await site.start()
    await site.store(image(1))
    await forwarding.next()
    site.audit = "enabled = true"
    await gateway.reload()
    await site.store(image(1, study="1.2.4"))
    await until(lambda: forwarded(site))
    assert [list(studies(each)) for each in forwarded(site)] == [["1.2.4"]]


async def test_an_association_that_is_refused(site):
    site.scp = 'calling_aets = ["FRIEND"]'
    await site.start()
    with pytest.raises(AssociationRejected):
        async with site.associate(calling_ae_title="STRANGER"):
            pass
    (alert,) = await until_told(site, "Security Alert")
    assert outcome(alert) == "8"
    assert alert.find("EventIdentification/EventTypeCode").get("csd-code") == "110126"
    assert participants(alert)[0] == ("STRANGER", "", "asks")
    assert "calling" in alert.findtext("EventIdentification/EventOutcomeDescription").lower()


async def test_credentials_that_are_shown(site, client):
    site.more = """
        authentication = "users"
        [authentications.users]
        method = "basic"
        options = { username = "viewer", password = "open sesame" }
    """
    await site.start()
    assert (await client.request("GET", "/studies")).status == 401
    for password, status in (("wrong", 401), ("open sesame", 204)):
        encoded = base64.b64encode(f"viewer:{password}".encode()).decode()
        response = await client.request("GET", "/studies", headers={"Authorization": f"Basic {encoded}"})
        assert response.status == status
    found = await until_told(site, "User Authentication", 2)
    told = Counter((participants(each)[0][0], outcome(each)) for each in found)
    assert told["viewer", "8"] == 1
    assert told["viewer", "0"] == 1
    (query,) = await until_told(site, "Query")
    assert participants(query)[0] == ("viewer", "110153", "asks")
    assert b"sesame" not in b"".join(
        path.read_bytes() for path in (site.folder / "storage" / "audit").glob("audit-*.log")
    )


async def test_configurations(site):
    gateway = await site.start()
    site.title = "OTHER"
    await gateway.reload()
    site.scp = "port = 0"
    with pytest.raises(ConfigError):
        await gateway.reload()
    told = [
        (outcome(each), each.find("EventIdentification/EventTypeCode").get("csd-code"))
        for each in site.messages("Security Alert")
    ]
    assert told == [("0", "110129"), ("4", "110129")]


async def test_without_a_trail_nothing_is_written(site):
    site.audit = "enabled = false"
    await site.start()
    await site.store(image(1))
    await site.stop()
    assert not (site.folder / "storage" / "audit").exists()


async def test_a_collector_gets_it_all_over_tls(site, free_port, authority):
    """RFC 5425, with a certificate of an authority that only this configuration knows."""
    received = bytearray()
    complete = asyncio.Event()

    async def collect(reader, writer):
        while data := await reader.read(65536):
            received.extend(data)
            if b"Application Stop" in received:
                complete.set()
        writer.close()

    certificate = authority.issue()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.certificate, certificate.key)
    server = await asyncio.start_server(collect, "127.0.0.1", free_port, ssl=context)
    site.audit = f"""enabled = true
        [audit.syslog]
        host = "127.0.0.1"
        port = {free_port}
        ca_cert_path = "{authority.certificate}"
    """
    async with server:
        await site.start()
        await site.store(image(1))
        await site.stop()
        async with asyncio.timeout(20):
            await complete.wait()
    records = []
    data = bytes(received)
    while data:
        length, _, rest = data.partition(b" ")
        records.append(rest[: int(length)])
        data = rest[int(length) :]
    assert all(record.startswith(b"<85>1 ") for record in records)
    assert [record.count(b"</AuditMessage>") for record in records] == [1, 1, 1]
