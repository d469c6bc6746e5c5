"""DCMTK, Orthanc and pynetdicom over TLS, in both roles, with and without client certificates.

The gateway runs in this process. DCMTK's getscu, movescu and dcmqrscp have no TLS in every release, so C-GET and C-MOVE
come from pynetdicom. Refusals are told apart by what the gateway says, in its log or as its error.
"""

import asyncio
import json
import logging
import ssl
from contextlib import AsyncExitStack, contextmanager, suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from pydicom import dcmread
from pydicom.dataset import Dataset

from harmony.dimse import associate
from harmony.gateway.config import ClientTLS
from harmony.gateway.tls import client_context
from harmony.http.client import HTTPClient
from harmony.ul.errors import AssociationError, ConnectFailed

pytestmark = pytest.mark.interop

STUDY = "1.2.3.4.5"
QUERY = ("-S", "-k", "0008,0052=STUDY", "-k", f"0020,000D={STUDY}", "-k", "0010,0010")

ARCHIVE = """
[network.n.dicom]
bind_address = "127.0.0.1"
bind_port = {port}
cert_path = "{own.certificate}"
key_path = "{own.key}"
ca_cert_path = "{authority.certificate}"
require_client_cert = {required}
tls_profile = "{profile}"
[pipelines.p]
networks = ["n"]
endpoints = ["scp"]
[endpoints.scp]
service = "dicom_scp"
options.local_aet = "HARMONY"
[endpoints.scp.options.aet_table.DEST]
host = "127.0.0.1"
port = {destination}
use_tls = true
ca_cert_path = "{authority.certificate}"
cert_path = "{own.certificate}"
key_path = "{own.key}"
"""

IN_FRONT = """
[network.n.http]
bind_address = "127.0.0.1"
bind_port = {http}
[network.n.dicom]
bind_address = "127.0.0.1"
bind_port = {dicom}
[pipelines.p]
networks = ["n"]
endpoints = ["web"]
backends = ["pacs"]
[endpoints.web]
service = "dicomweb"
options.path_prefix = "/dicom-web"
[pipelines.q]
networks = ["n"]
endpoints = ["scp"]
backends = ["pacs"]
[endpoints.scp]
service = "dicom_scp"
options.local_aet = "HARMONY"
[backends.pacs]
service = "dicom_scu"
connection = {{ host = "127.0.0.1", port = {pacs}, ca_cert_path = "{authority.certificate}" }}
options = {{ aet = "PACS", local_aet = "HARMONY", use_tls = true, {more} }}
"""


@pytest.fixture(scope="module")
def issue(authority):
    """issue(...): RSA, which the oldest of the profiles asks for."""

    def issue(*arguments, by=authority, **options):
        return by.issue(*arguments, key=rsa.generate_private_key(65537, 2048), **options)

    return issue


@pytest.fixture(scope="module")
def own(issue):
    return issue("harmony")


@pytest.fixture(scope="module")
def theirs(issue):
    return issue("peer")


@pytest.fixture
def dcmtk(authority, theirs):
    """dcmtk(named=True): the options of a tool of DCMTK that shows a certificate, or none."""

    def options(*, named, shown=theirs, trusted=authority.certificate):
        who = ("+tls", shown.key, shown.certificate) if named else ("+tla",)
        return (*who, "+cf", trusted)

    return options


@pytest.fixture
def start_archive(start_gateway, free_port, authority, own):
    """await start_archive(...) -> its port."""

    async def start(*, required=False, destination=104, shown=own, profile="bcp195"):
        text = ARCHIVE.format(
            port=free_port,
            own=shown,
            authority=authority,
            required=str(required).lower(),
            destination=destination,
            profile=profile,
        )
        await start_gateway(text)
        return free_port

    return start


def context_of(authority, shown=None):
    files = (shown.certificate, shown.key) if shown is not None else (None, None)
    return client_context(ClientTLS(authority.certificate, *files))


async def in_thread(run_tool, *arguments, **options):
    return (await asyncio.to_thread(run_tool, *arguments, **options)).stdout


# DCMTK


@pytest.mark.parametrize("profile", ["bcp195", "bcp195-modified"])
@pytest.mark.parametrize("mutual", [False, True], ids=["anonymous", "mutual"])
async def test_dcmtk_as_scu(start_archive, run_tool, dcmtk, ct_file, mutual, profile):
    port = await start_archive(required=mutual, profile=profile)
    where = (*dcmtk(named=mutual), "-aec", "HARMONY", "localhost", port)
    await in_thread(run_tool, "echoscu", *where)
    await in_thread(run_tool, "storescu", *where, ct_file(1), ct_file(2))
    printed = await in_thread(run_tool, "findscu", *where, *QUERY)
    assert "Doe^Jane" in printed


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"], ids=["bcp195-nd", "bcp195", "bcp195-ex"])
async def test_profiles_of_dcmtk(start_archive, run_tool, dcmtk, profile):
    port = await start_archive(profile="bcp195-modified")
    await in_thread(run_tool, "echoscu", profile, *dcmtk(named=False), "-aec", "HARMONY", "localhost", port)


async def test_dcmtk_as_the_destination_of_a_c_move(
    start_archive, start_storescp, run_tool, dcmtk, ct_file, data_sets, authority, own
):
    destination = await asyncio.to_thread(start_storescp, *dcmtk(named=True), ae_title="DEST")
    port = await start_archive(destination=destination.port)
    files = [ct_file(1), ct_file(2)]
    where = (*dcmtk(named=False), "-aec", "HARMONY", "localhost", port)
    await in_thread(run_tool, "storescu", *where, *files)
    statuses = await asyncio.to_thread(pynetdicom_move, port, context_of(authority, own))
    assert statuses[-1] == 0
    assert data_sets(destination.received()) == data_sets(files)


async def test_refusals_of_dcmtk_are_named(
    start_archive, run_tool, dcmtk, issue, authority, other_authority, caplog
):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    port = await start_archive(required=True)
    for options, reason in (
        (dcmtk(named=False), "showed no client certificate, which is required here"),
        (dcmtk(named=True, shown=issue(by=other_authority)), "signed by nobody that we trust"),
        (dcmtk(named=True, shown=issue(valid_days=(-9, -1))), "certificate has expired"),
        (dcmtk(named=True, trusted=other_authority.certificate), "does not trust who signed our certificate"),
        ((), "speaks plain DICOM, not TLS; closed"),
    ):
        caplog.clear()
        where = ("-aec", "HARMONY", "localhost", port)
        refused = await asyncio.to_thread(run_tool, "echoscu", *options, *where, status=None)
        assert refused.returncode != 0
        assert [line for line in caplog.messages if reason in line], (reason, caplog.messages)


async def test_storescp_is_refused_by_name(
    start_storescp, dcmtk, issue, authority, other_authority, own, caplog
):
    """As SCU: their certificate is not what we want."""
    cases = [
        (issue(by=other_authority), "localhost", "signed by nobody that we trust"),
        (issue(valid_days=(-9, -1)), "localhost", "certificate has expired"),
        (issue(names=("pacs.example",)), "localhost", "Hostname mismatch"),
    ]
    for shown, name, reason in cases:
        peer = await asyncio.to_thread(start_storescp, *dcmtk(named=True, shown=shown))
        with pytest.raises(ConnectFailed, match=reason):
            async with associate(
                "127.0.0.1", peer.port, ssl_context=context_of(authority, own), server_hostname=name
            ):
                pass


async def test_storescp_and_the_other_kind_of_port(start_storescp, dcmtk, authority):
    secured = await asyncio.to_thread(start_storescp, *dcmtk(named=True))
    plain = await asyncio.to_thread(start_storescp)
    async with asyncio.timeout(10):
        with pytest.raises(AssociationError, match=r"expects? TLS"):
            async with associate("127.0.0.1", secured.port):
                pass
        with pytest.raises(ConnectFailed, match=r"speak TLS on this port"):
            async with associate("127.0.0.1", plain.port, ssl_context=context_of(authority)):
                pass


# pynetdicom


def pynetdicom_move(port, context):
    """C-MOVE of the study to DEST, requested by pynetdicom; the statuses."""
    import pynetdicom
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove as Move

    entity = pynetdicom.AE("PYNETDICOM")
    entity.add_requested_context(Move)
    association = entity.associate("127.0.0.1", port, ae_title="HARMONY", tls_args=(context, "localhost"))
    assert association.is_established
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
    statuses = [status.Status for status, _ in association.send_c_move(identifier, "DEST", Move)]
    association.release()
    return statuses


def pynetdicom_store_and_get(port, context, path):
    """C-STORE and C-GET by pynetdicom: their statuses, and the SOP Instance UIDs that came."""
    import pynetdicom
    from pynetdicom import build_role, evt
    from pynetdicom.sop_class import CTImageStorage
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as Get

    entity, came = pynetdicom.AE("PYNETDICOM"), []
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    entity.add_requested_context(Get)

    def keep(event):
        came.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    association = entity.associate(
        "127.0.0.1",
        port,
        ae_title="HARMONY",
        tls_args=(context, "localhost"),
        ext_neg=[build_role(CTImageStorage, scp_role=True, scu_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    assert association.is_established
    stored = association.send_c_store(dcmread(path)).Status
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
    got = [status.Status for status, _ in association.send_c_get(identifier, Get)]
    association.release()
    return stored, got[-1], came


@contextmanager
def pynetdicom_server(port, context):
    import pynetdicom
    from pynetdicom.sop_class import Verification

    entity = pynetdicom.AE("PACS")
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", port), block=False, ssl_context=context)
    try:
        yield
    finally:
        server.shutdown()


@pytest.mark.parametrize("mutual", [False, True], ids=["anonymous", "mutual"])
async def test_pynetdicom_as_scu(start_archive, require_peer, ct_file, authority, theirs, mutual):
    require_peer("pynetdicom")
    port = await start_archive(required=mutual)
    context = context_of(authority, theirs if mutual else None)
    stored, got, came = await asyncio.to_thread(pynetdicom_store_and_get, port, context, ct_file(1))
    assert (stored, got, came) == (0, 0, [f"{STUDY}.1.1"])


@pytest.mark.parametrize("mutual", [False, True], ids=["anonymous", "mutual"])
async def test_pynetdicom_as_scp(require_peer, free_port, authority, own, theirs, mutual):
    require_peer("pynetdicom")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    context.load_cert_chain(theirs.certificate, theirs.key)
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    with pynetdicom_server(free_port, context):
        ours = context_of(authority, own if mutual else None)
        async with associate("127.0.0.1", free_port, called_ae_title="PACS", ssl_context=ours) as scu:
            await scu.echo()
        if mutual:
            with pytest.raises(AssociationError):
                async with associate("127.0.0.1", free_port, ssl_context=context_of(authority)):
                    pass


# Orthanc


@pytest.fixture
def start_secured_orthanc(start_orthanc, authority, theirs):
    """start_secured_orthanc(...): DICOM over TLS, and the gateway known as `harmony`."""

    def start(*, harmony_port, required):
        return start_orthanc(
            options={
                "DicomTlsEnabled": True,
                "DicomTlsCertificate": str(theirs.certificate),
                "DicomTlsPrivateKey": str(theirs.key),
                "DicomTlsTrustedCertificates": str(authority.certificate),
                "DicomTlsRemoteCertificateRequired": required,
                "DicomModalities": {
                    "harmony": {
                        "AET": "HARMONY",
                        "Host": "127.0.0.1",
                        "Port": harmony_port,
                        "UseDicomTls": True,
                    }
                },
            }
        )

    return start


@pytest.fixture
async def tunnel(theirs):
    """await tunnel(port): a port with TLS in front of one without, as an operator puts before an Orthanc. The HTTPS of
    Orthanc 1.10 as Debian has it ends the process at the first connection, also of curl."""
    async with AsyncExitStack() as running:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(theirs.certificate, theirs.key)

        async def start(port):
            async def copy(reader, writer):
                with suppress(ConnectionError):
                    while data := await reader.read(65536):
                        writer.write(data)
                        await writer.drain()
                writer.close()

            async def connected(reader, writer):
                there, back = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(copy(reader, back), copy(there, writer))

            server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
            running.callback(server.close)
            return server.sockets[0].getsockname()[1]

        yield start


@pytest.mark.parametrize("mutual", [False, True], ids=["anonymous", "mutual"])
async def test_orthanc_in_both_roles(
    start_archive, start_gateway, start_secured_orthanc, free_ports, ct_file, authority, own, mutual
):
    archive = await start_archive(required=mutual)
    orthanc = await asyncio.to_thread(start_secured_orthanc, harmony_port=archive, required=mutual)
    more = f'cert_path = "{own.certificate}", key_path = "{own.key}"' if mutual else "max_associations = 2"
    http, dicom = free_ports(2)
    await start_gateway(
        IN_FRONT.format(http=http, dicom=dicom, pacs=orthanc.port, authority=authority, more=more)
    )
    async with associate("127.0.0.1", dicom, called_ae_title="HARMONY", contexts=None) as scu:
        await scu.echo()
    url = f"http://127.0.0.1:{orthanc.http_port}"
    async with (
        HTTPClient(url) as rest,
        HTTPClient(f"http://127.0.0.1:{http}") as client,
    ):
        stored = await rest.request("POST", "/instances", body=ct_file(1).read_bytes())
        assert stored.status == 200
        # We are the SCU: a search, and a retrieve with its C-GET
        found = await client.request("GET", "/dicom-web/studies?PatientID=PATIENT123")
        assert found.status == 200
        assert json.loads(found.body)[0]["0020000D"]["Value"] == [STUDY]
        whole = await client.request("GET", f"/dicom-web/studies/{STUDY}")
        assert whole.status == 200
        # And the SCP
        identifier = json.loads(stored.body)["ID"].encode()
        assert (await rest.request("POST", "/modalities/harmony/echo", body=b"{}")).status == 200
        assert (await rest.request("POST", "/modalities/harmony/store", body=identifier)).status == 200
    async with associate(
        "127.0.0.1", archive, called_ae_title="HARMONY", ssl_context=context_of(authority, own)
    ) as scu:
        await scu.echo()


async def test_orthanc_as_a_dicomweb_server_over_https(
    start_gateway, start_orthanc, tunnel, free_ports, run_tool, ct_file, data_sets, authority, tmp_path
):
    (dicom,) = free_ports(1)
    orthanc = await asyncio.to_thread(start_orthanc)
    https = await tunnel(orthanc.http_port)
    await start_gateway(
        f"""
        [network.n.dicom]
        bind_address = "127.0.0.1"
        bind_port = {dicom}
        [pipelines.p]
        networks = ["n"]
        endpoints = ["scp"]
        middleware = ["dicom_to_dicomweb"]
        backends = ["web"]
        [endpoints.scp]
        service = "dicom_scp"
        options.local_aet = "HARMONY"
        [backends.web]
        service = "http"
        [backends.web.connection]
        host = "https://127.0.0.1:{https}/dicom-web"
        ca_cert_path = "{authority.certificate}"
        tls_server_name = "localhost"
        """
    )
    where = ("-aec", "HARMONY", "127.0.0.1", dicom)
    await in_thread(run_tool, "storescu", *where, ct_file(1))
    folder = tmp_path / "got"
    folder.mkdir()
    await in_thread(
        run_tool, "getscu", "-S", *where, "-k", "0008,0052=STUDY", "-k", f"0020,000D={STUDY}", cwd=folder
    )
    assert data_sets(folder.iterdir()) == data_sets([ct_file(1)])
