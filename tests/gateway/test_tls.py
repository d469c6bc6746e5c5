"""TLS of the gateway: profiles, certificates that change while it runs, and every place that TLS is configured in."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import ssl

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from harmony.dimse import associate
from harmony.dimse.information_model import STUDY_ROOT
from harmony.dimse.retrieve import move
from harmony.dimse.scp import Services, serve
from harmony.dimse.sink import BytesSink
from harmony.dimse.status import Outcome
from harmony.gateway.app import Gateway
from harmony.gateway.config import ClientTLS, ConfigError, ListenerTLS
from harmony.gateway.options import AetEntry, MoveDestination
from harmony.gateway.store_receiver import StoreReceivers
from harmony.gateway.tls import MODIFIED_CIPHERS, Certificates, client_context, server_context
from harmony.http import HTTPServer, Response
from harmony.http.client import HTTPClient, UpstreamError
from harmony.ul.errors import AssociationError, ConnectFailed, ConnectionLost
from harmony.ul.negotiation import propose_contexts

WAIT_S = 20.0
IMPLICIT = "1.2.840.10008.1.2"
PROFILES_B12 = ["bcp195", "BCP 195 RFC 8996, 9325"]
PROFILES_B13 = ["bcp195-modified", "Modified BCP 195 RFC 8996, 9325"]


def shake_hands(server, client, name="localhost"):
    """Two contexts, in memory: (protocol, cipher suite, the server's certificate as the client saw it)."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepting = server.wrap_bio(to_server, to_client, server_side=True)
    requesting = client.wrap_bio(to_client, to_server, server_hostname=name)
    done = set()
    for _ in range(10):
        for side in (requesting, accepting):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done.add(side)
    assert len(done) == 2
    return requesting.version(), requesting.cipher()[0], requesting.getpeercert()


@pytest.fixture
def listening(authority):
    """listening(...): ListenerTLS with a new certificate."""

    def make(certificate=None, **options):
        certificate = certificate or authority.issue()
        return ListenerTLS(certificate.certificate, certificate.key, **options)

    return make


# Profiles


@pytest.mark.parametrize("profile", PROFILES_B12 + PROFILES_B13)
def test_tls_1_3_is_preferred_and_1_2_is_possible(listening, authority, profile):
    server = server_context(listening(profile=profile))
    client = client_context(ClientTLS(authority.certificate, profile=profile))
    assert shake_hands(server, client)[0] == "TLSv1.3"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake_hands(server, client)[0] == "TLSv1.2"


@pytest.mark.parametrize("profile", PROFILES_B12 + PROFILES_B13)
def test_nothing_older_than_tls_1_2(listening, profile):
    for context in (server_context(listening(profile=profile)), client_context(ClientTLS(profile=profile))):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("profile", PROFILES_B13)
def test_the_modified_profile_has_the_closed_list(listening, profile):
    """PS3.15 B.13: these and no others; the suites of TLS 1.3 are those that the standard lists too."""
    for context in (server_context(listening(profile=profile)), client_context(ClientTLS(profile=profile))):
        names = {each["name"] for each in context.get_ciphers()}
        older = {each for each in names if not each.startswith("TLS_")}
        assert older <= set(MODIFIED_CIPHERS)
        assert older >= set(MODIFIED_CIPHERS[:2])
        assert names - older <= {
            "TLS_AES_256_GCM_SHA384",
            "TLS_CHACHA20_POLY1305_SHA256",
            "TLS_AES_128_GCM_SHA256",
            "TLS_AES_128_CCM_SHA256",
            "TLS_AES_128_CCM_8_SHA256",
        }


@pytest.mark.parametrize("suite", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-CCM"])
def test_suites_of_the_modified_profile_are_accepted(listening, authority, suite):
    client = ssl.create_default_context(cafile=authority.certificate)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(suite)
    assert shake_hands(server_context(listening(profile="bcp195-modified")), client)[1] == suite


def test_cbc_is_no_suite_of_the_modified_profile(listening, authority):
    client = ssl.create_default_context(cafile=authority.certificate)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-ECDSA-AES256-SHA384")
    with pytest.raises(ssl.SSLError, match=r"NO_SHARED_CIPHER|no shared cipher"):
        shake_hands(server_context(listening(profile="bcp195-modified")), client)


def test_a_key_that_is_too_small_is_refused(listening, authority):
    weak = authority.issue(key=rsa.generate_private_key(65537, 1024))
    with pytest.raises(OSError, match="EE_KEY_TOO_SMALL"):
        server_context(listening(weak, profile="bcp195-modified"))


# Files that cannot be used


def test_files_that_cannot_be_used_are_named(listening, authority, tmp_path):
    own, other = authority.issue(), authority.issue()
    missing = tmp_path / "missing.pem"
    with pytest.raises(
        OSError, match=r"cert_path .*, key_path .*: the key does not belong to the certificate"
    ):
        server_context(ListenerTLS(own.certificate, other.key))
    with pytest.raises(OSError, match=r"key_path .*missing.pem: No such file"):
        server_context(ListenerTLS(own.certificate, missing))
    with pytest.raises(OSError, match=r"ca_cert_path .*missing.pem: No such file"):
        server_context(listening(ca_cert_path=missing))
    with pytest.raises(OSError, match=r"ca_cert_path .*: not what is expected in PEM"):
        client_context(ClientTLS(own.key))
    with pytest.raises(ValueError, match="cert_path and key_path go together"):
        client_context(ClientTLS(cert_path=own.certificate))


def test_an_encrypted_key_is_refused_and_nobody_asked(authority, tmp_path):
    own = authority.issue()
    key = serialization.load_pem_private_key(own.key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(OSError, match="the key is encrypted"):
        server_context(ListenerTLS(own.certificate, encrypted))


# Certificates that change


def replace_files(into, source):
    """As tools do that renew certificates: each file at once, one after the other."""
    for target, path in ((into.certificate, source.certificate), (into.key, source.key)):
        shutil.copy(path, target.with_suffix(".new"))
        os.replace(target.with_suffix(".new"), target)


def name_shown(provider, authority):
    certificate = shake_hands(provider(), client_context(ClientTLS(authority.certificate)))[2]
    return certificate["subject"][0][0][1]


def test_equal_settings_share_a_context(listening):
    certificates = Certificates()
    settings = listening()
    assert certificates.server(settings) is certificates.server(dataclasses.replace(settings))
    assert certificates.server(settings)() is certificates.server(settings)()


def test_reload_takes_what_the_files_hold_now(listening, authority):
    certificates, own = Certificates(), authority.issue("old")
    provider = certificates.server(listening(own))
    assert name_shown(provider, authority) == "old"
    replace_files(own, authority.issue("new"))
    assert name_shown(provider, authority) == "old"
    certificates.reload()
    assert name_shown(provider, authority) == "new"


def test_a_broken_file_is_named_and_the_old_certificate_stays(listening, authority, caplog):
    certificates, own = Certificates(), authority.issue("old")
    provider = certificates.server(listening(own))
    own.certificate.write_text("broken")
    certificates.reload()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(own.certificate) in record.getMessage()
    assert "the certificates read before stay in use" in record.getMessage()
    assert name_shown(provider, authority) == "old"
    replace_files(own, authority.issue("new"))
    certificates.reload()
    assert name_shown(provider, authority) == "new"


async def test_files_are_looked_at_from_time_to_time(listening, authority, until, caplog):
    caplog.set_level(logging.INFO, logger="harmony.gateway")
    certificates, own = Certificates(poll_s=0.01), authority.issue("old")
    provider = certificates.server(listening(own))
    before = provider()
    await certificates.start()
    try:
        new = authority.issue("new")
        shutil.copy(new.certificate, own.certificate)  # the key is still the old one: half a change
        await until(lambda: "the key does not belong to the certificate" in caplog.text)
        assert provider() is before
        shutil.copy(new.key, own.key)
        await until(lambda: provider() is not before)
    finally:
        await certificates.stop()
    assert name_shown(provider, authority) == "new"
    assert len([each for each in caplog.messages if "does not belong" in each]) == 1  # not once a turn
    assert f"TLS: certificates read anew: {own.certificate}" in caplog.text


@pytest.mark.parametrize(
    ("days", "words"),
    [(40.5, None), (20.5, "expires in 20 days"), (-2.5, "expired 2 days ago")],
)
async def test_certificates_that_expire_are_warned_of(listening, authority, caplog, days, words):
    certificates = Certificates()
    own = authority.issue(valid_days=(-10, days))
    held = certificates.server(listening(own))
    ((path, left_s),) = certificates.seconds_left()
    assert path == own.certificate
    assert abs(left_s - days * 86400) < 60
    await certificates.start()
    await certificates.stop()
    assert caplog.messages == ([f"TLS: the certificate in {own.certificate} {words}"] if words else [])
    del held  # what nobody uses is not looked after any more
    assert list(certificates.seconds_left()) == []


# The gateway


@pytest.fixture
def running(load_config, tmp_path):
    """async with running(toml, ...) as gateway: {name} of the arguments are filled in."""

    @contextlib.asynccontextmanager
    async def run(text, **values):
        values["storage"] = tmp_path / "storage"
        text = '[proxy]\nid = "test"\n[storage]\npath = "{storage}"\n' + text
        for name, value in values.items():
            text = text.replace("{" + name + "}", str(value))
        gateway = Gateway(load_config(text))
        await gateway.start()
        try:
            async with asyncio.timeout(WAIT_S):
                yield gateway
        finally:
            await gateway.stop(1.0)

    return run


SERVER = """
[network.n.http]
bind_address = "127.0.0.1"
bind_port = {http}
cert_path = "{cert}"
key_path = "{key}"
ca_cert_path = "{ca}"
require_client_cert = {required}
[network.n.dicom]
bind_address = "127.0.0.1"
bind_port = {dicom}
cert_path = "{cert}"
key_path = "{key}"
ca_bundle_path = "{ca}"
require_client_cert = {required}
[management]
enabled = true
network = "n"
[pipelines.p]
networks = ["n"]
endpoints = ["scp", "web"]
[endpoints.scp]
service = "dicom_scp"
options = { local_aet = "HARMONY" }
[endpoints.web]
service = "echo"
options.path_prefix = "/echo"
"""


@pytest.mark.parametrize("required", ["false", "true"])
async def test_listeners_ask_for_client_certificates(running, free_ports, authority, required):
    own, theirs = authority.issue(), authority.issue("client", ())
    http, dicom = free_ports(2)
    anonymous = client_context(ClientTLS(authority.certificate))
    named = client_context(ClientTLS(authority.certificate, theirs.certificate, theirs.key))
    async with running(
        SERVER,
        http=http,
        dicom=dicom,
        cert=own.certificate,
        key=own.key,
        ca=authority.certificate,
        required=required,
    ):
        url = f"https://127.0.0.1:{http}"
        async with HTTPClient(url, ssl_context=named) as client:
            assert (await client.request("GET", "/echo")).status == 200
            metrics = (await client.request("GET", "/metrics")).body.decode()
            assert f'harmony_tls_certificate_expires_in_seconds{{path="{own.certificate}"}}' in metrics
        async with associate("127.0.0.1", dicom, called_ae_title="HARMONY", ssl_context=named) as scu:
            await scu.echo()
        async with HTTPClient(url, ssl_context=anonymous) as client:
            if required == "false":
                assert (await client.request("GET", "/echo")).status == 200
            else:
                with pytest.raises(UpstreamError, match="wants a client certificate"):
                    await client.request("GET", "/echo")
        if required == "true":
            with pytest.raises((ConnectionLost, ConnectFailed), match="wants a client certificate"):
                async with associate("127.0.0.1", dicom, ssl_context=anonymous):
                    pass


async def test_the_gateway_reloads_its_certificates(running, free_ports, authority):
    own = authority.issue("old")
    http, dicom = free_ports(2)
    context = client_context(ClientTLS(authority.certificate))

    async with (
        running(
            SERVER,
            http=http,
            dicom=dicom,
            cert=own.certificate,
            key=own.key,
            ca=authority.certificate,
            required="false",
        ) as gateway,
        associate("127.0.0.1", dicom, called_ae_title="HARMONY", ssl_context=context) as before,
    ):
        replace_files(own, authority.issue("new"))
        await gateway.reload_certificates()
        async with associate("127.0.0.1", dicom, called_ae_title="HARMONY", ssl_context=context) as after:
            await after.echo()
            assert after.association.peer_certificate["subject"][0][0][1] == "new"
        await before.echo()  # what was open goes on
        assert before.association.peer_certificate["subject"][0][0][1] == "old"
        _, writer = await asyncio.open_connection("127.0.0.1", http, ssl=context)
        assert writer.get_extra_info("peercert")["subject"][0][0][1] == "new"
        writer.close()


MUTUAL = """
[network.n.http]
bind_address = "127.0.0.1"
bind_port = {http}
[pipelines.p]
networks = ["n"]
endpoints = ["web"]
backends = ["upstream"]
[endpoints.web]
service = "http"
options.path_prefix = "/"
[backends.upstream]
service = "http"
options = { base_url = "https://127.0.0.1:{upstream}", max_retries = 0, tls_server_name = "web.example" }
connection.ca_cert_path = "{ca}"
{authentication}
[authentications.ours]
method = "mutual_tls"
options = { cert_path = "{cert}", key_path = "{key}" }
"""


async def test_our_certificate_towards_an_http_server(running, free_ports, authority):
    own, theirs = authority.issue("us", ()), authority.issue(names=("web.example",))
    http, upstream = free_ports(2)
    values = {"http": http, "upstream": upstream, "ca": authority.certificate}
    values |= {"cert": own.certificate, "key": own.key}
    context = server_context(
        ListenerTLS(theirs.certificate, theirs.key, authority.certificate, require_client_cert=True)
    )
    seen = []

    async def answer(request):
        seen.append(request.client_certificate["subject"][0][0][1])
        return Response(200, body=b"ok")

    server = HTTPServer(answer)
    await server.start("127.0.0.1", upstream, ssl=context)
    try:
        async with (
            running(MUTUAL, authentication='authentication = "ours"', **values),
            HTTPClient(f"http://127.0.0.1:{http}") as client,
        ):
            assert (await client.request("GET", "/")).body == b"ok"
        async with (
            running(MUTUAL, authentication="", **values),
            HTTPClient(f"http://127.0.0.1:{http}") as client,
        ):
            answered = await client.request("GET", "/")
    finally:
        await server.stop()
    assert seen == ["us"]
    assert answered.status == 502
    assert b"wants a client certificate and was shown none" in answered.body


def test_mutual_tls_without_tls(load_config, authority):
    own = authority.issue()
    text = '[proxy]\nid = "t"\n' + MUTUAL.replace("https:", "http:")
    for name, value in {
        "http": 8080,
        "upstream": 8081,
        "ca": authority.certificate,
        "cert": own.certificate,
        "key": own.key,
        "authentication": 'authentication = "ours"',
    }.items():
        text = text.replace("{" + name + "}", str(value))
    with pytest.raises(ConfigError, match="method mutual_tls; the target must be reached over TLS"):
        load_config(text)


MOVING = """
[network.n.dicom]
bind_address = "127.0.0.1"
bind_port = {dicom}
[pipelines.p]
networks = ["n"]
endpoints = ["scp"]
[endpoints.scp]
service = "dicom_scp"
options.local_aet = "HARMONY"
[endpoints.scp.options.aet_table.STATION]
host = "127.0.0.1"
port = {station}
use_tls = true
ca_cert_path = "{ca}"
cert_path = "{cert}"
key_path = "{key}"
tls_server_name = "station.example"
"""


async def test_a_c_move_sends_over_tls(running, free_ports, authority, make_instance):
    own, theirs = authority.issue("us", ()), authority.issue(names=("station.example",))
    dicom, station = free_ports(2)
    context = server_context(
        ListenerTLS(theirs.certificate, theirs.key, authority.certificate, require_client_cert=True)
    )
    services, callers = Services(), []

    def keep(request):
        callers.append(request.association.peer_certificate["subject"][0][0][1])
        return BytesSink(lambda data: Outcome(0))

    services.store(keep)
    instance = make_instance("1.2.3.9")
    contexts = propose_contexts(
        [(instance.sop_class_uid, (instance.transfer_syntax_uid,)), (STUDY_ROOT.move, (IMPLICIT,))]
    )
    identifier = bytes.fromhex("08005200 06000000") + b"STUDY "
    identifier += bytes.fromhex("20000d00 0a000000") + b"1.2.3.4.5\0"
    values = {"ca": authority.certificate, "cert": own.certificate, "key": own.key}
    async with (
        running(MOVING, dicom=dicom, station=station, **values),
        serve(services, port=station, ssl_context=context),
        associate("127.0.0.1", dicom, called_ae_title="HARMONY", contexts=contexts) as scu,
    ):
        assert (await scu.store(instance)).status == 0
        async with move(scu, STUDY_ROOT.move, identifier, "STATION") as retrieval:
            assert (await retrieval.final()).status == 0
    assert callers == ["us"]


async def test_our_c_moves_come_in_over_tls(free_port, authority):
    """A PACS that sends to incoming_store_port, as far as the listening goes."""
    own, theirs = authority.issue("us"), authority.issue("pacs", ())
    tls = ListenerTLS(own.certificate, own.key, authority.certificate, require_client_cert=True)
    certificates, receivers = Certificates(), StoreReceivers()
    context = certificates.server(tls)
    named = client_context(ClientTLS(authority.certificate, theirs.certificate, theirs.key))
    async with (
        receivers.listening("127.0.0.1", free_port, "US", ssl_context=context),
        receivers.listening("127.0.0.1", free_port, "ALSO", ssl_context=certificates.server(tls)),
    ):
        async with associate("127.0.0.1", free_port, called_ae_title="ALSO", ssl_context=named) as scu:
            await scu.echo()
        with pytest.raises(AssociationError, match="the peer expects TLS"):
            async with associate("127.0.0.1", free_port, called_ae_title="US"):
                pass
        with pytest.raises(OSError, match="another backend with other TLS settings"):
            async with receivers.listening("127.0.0.1", free_port, "PLAIN"):
                pass


# Where no port is given


@pytest.mark.parametrize(
    ("network", "options", "port"),
    [
        ("", "", 11112),
        ("", 'cert_path = "{cert}"\nkey_path = "{key}"', 2762),
        ('[network.n.dicom]\nbind_address = "127.0.0.1"', "", 11112),
        ('[network.n.dicom]\ncert_path = "{cert}"\nkey_path = "{key}"', "", 2762),
        ('[network.n.dicom]\nbind_port = 104\ncert_path = "{cert}"\nkey_path = "{key}"', "", 104),
        ("", 'cert_path = "{cert}"\nkey_path = "{key}"\nuse_tls = false', 11112),
    ],
)
def test_dicom_over_tls_is_on_port_2762(load_config, authority, network, options, port):
    own = authority.issue()
    text = f"""
[proxy]
id = "t"
[network.n]
{network}
[pipelines.p]
networks = ["n"]
endpoints = ["e"]
[endpoints.e]
service = "dicom_scp"
[endpoints.e.options]
local_aet = "A"
{options}
"""
    text = text.replace("{cert}", str(own.certificate)).replace("{key}", str(own.key))
    (endpoint,) = load_config(text).pipelines["p"].endpoints
    assert endpoint.address.port == port
    assert (endpoint.address.tls is not None) == (port in (2762, 104))


def test_an_endpoint_with_the_certificate_of_its_network(load_config, authority):
    """What it asks of clients is its own."""
    own = authority.issue()
    text = f"""
[proxy]
id = "t"
[network.n.dicom]
cert_path = "{own.certificate}"
key_path = "{own.key}"
tls_profile = "Modified BCP 195 RFC 8996, 9325"
[pipelines.p]
networks = ["n"]
endpoints = ["e"]
[endpoints.e]
service = "dicom_scp"
options = {{ ca_cert_path = "{authority.certificate}", require_client_cert = true }}
"""
    (endpoint,) = load_config(text).pipelines["p"].endpoints
    profile = "Modified BCP 195 RFC 8996, 9325"
    assert endpoint.address.tls == ListenerTLS(
        own.certificate, own.key, authority.certificate, require_client_cert=True, profile=profile
    )


def test_a_move_destination_over_tls():
    entry = AetEntry(host="h", use_tls=True, tls_server_name="n")
    assert entry.destination("A") == MoveDestination("A", "h", 2762, ClientTLS(), "n")
    assert AetEntry(host="h").destination("A") == MoveDestination("A", "h", 104)
