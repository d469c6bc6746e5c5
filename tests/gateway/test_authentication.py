"""Who may ask, through a running gateway: every method over HTTP and DIMSE, refusals, lock-outs, and who is told."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from dataclasses import dataclass, field

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from harmony.dimse import associate
from harmony.gateway.app import Gateway
from harmony.gateway.authentication import Authentications, Denied, Gate
from harmony.gateway.authenticators import (
    Evidence,
    EvidenceRefused,
    MutualTlsAuthenticator,
    PasswordAuthenticator,
)
from harmony.gateway.loading import load
from harmony.gateway.lockout import Lockout
from harmony.gateway.passwords import hash_password
from harmony.gateway.principal import AuthenticationOutcome, Failure, Principal
from harmony.http import HTTPServer, Request, Response
from harmony.http.client import HTTPClient
from harmony.ul.errors import AssociationRejected
from harmony.ul.items import UserIdentityRQ

SECRET = "a secret of more than thirty-two bytes"
FAR = 4102444800  # 2100-01-01
KEY = ed25519.Ed25519PrivateKey.generate()


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signed(secret: str = SECRET, **claims: object) -> str:
    return jwt.encode({"sub": "alice", "exp": FAR, "iss": "test", **claims}, secret, algorithm="HS256")


@dataclass
class Guarded:
    """A gateway with an echo endpoint at /e, a dicom_scp and the management API, all checked against `tables`."""

    folder: object
    http_port: int
    dicom_port: int
    tables: str
    authentication: str = 'authentication = "a"'
    web: str | None = None
    """Of the HTTP endpoint and the management API, where it is not `authentication`."""
    scp: str = ""
    """Options of both DICOM endpoints."""
    middleware: str = ""
    outcomes: list[AuthenticationOutcome] = field(default_factory=list)
    gateway: Gateway | None = None

    async def start(self) -> Guarded:
        web = self.authentication if self.web is None else self.web
        path = self.folder / "config.toml"
        path.write_text(f"""
            [proxy]
            id = "guarded"
            [storage.options]
            path = "{self.folder}/storage"
            [management]
            enabled = true
            network = "n"
            {web}
            [network.n]
            http = {{ bind_address = "127.0.0.1", bind_port = {self.http_port} }}
            dicom = {{ bind_address = "127.0.0.1", bind_port = {self.dicom_port} }}
            [pipelines.web]
            networks = ["n"]
            endpoints = ["e"]
            middleware = [{self.middleware}]
            [endpoints.e]
            service = "echo"
            options.path_prefix = "/e"
            {web if not self.middleware else ""}
            [pipelines.images]
            networks = ["n"]
            endpoints = ["scp", "open"]
            [endpoints.scp]
            service = "dicom_scp"
            {self.authentication if "api_key" not in self.tables else ""}
            [endpoints.scp.options]
            local_aet = "CLOSED"
            min_free_bytes = 0
            {self.scp}
            [endpoints.open]
            service = "dicom_scp"
            [endpoints.open.options]
            local_aet = "OPEN"
            min_free_bytes = 0
            {self.scp}
            {self.tables.replace("{port}", str(self.dicom_port))}
            """)
        self.gateway = Gateway(load(path, env={}))
        self.gateway.assembly.authentications.subscribe(self.outcomes.append)
        await self.gateway.start()
        return self

    async def ask(self, headers: object = (), *, method: str = "GET", path: str = "/e"):
        async with HTTPClient(f"http://127.0.0.1:{self.http_port}", timeout_s=10.0) as client:
            return await client.request(method, path, headers=headers)

    async def call(self, *identity: object, title: str = "CLOSED", ssl_context: object = None) -> object:
        """Who the gateway takes us for, or (result, source, reason) of a rejection."""
        wanted = UserIdentityRQ(*identity, positive_response_requested=True) if identity else None
        address = ("127.0.0.1", self.dicom_port)
        try:
            async with associate(
                *address, called_ae_title=title, user_identity=wanted, ssl_context=ssl_context
            ) as scu:
                await scu.echo()
                (theirs,) = self.gateway.assembly.dicom[0].server.acceptor.associations
                return theirs.principal
        except AssociationRejected as error:
            return error.result, error.source, error.reason


@pytest.fixture
async def guarded(tmp_path, free_ports):
    made = []

    async def start(tables: str, **more: object) -> Guarded:
        http_port, dicom_port = free_ports(2)
        made.append(Guarded(tmp_path, http_port, dicom_port, tables, **more))
        return await made[-1].start()

    yield start
    for each in made:
        if each.gateway is not None:
            await each.gateway.stop(1.0)


BASIC = """
[authentications.a]
method = "basic"
options = { username = "Zoë", password = "with:colon é" }
"""
HASHED = f"""
[authentications.a]
method = "basic"
options = {{ username = "alice", password = "{hash_password("sesame", n=2, r=1, p=1)}", max_failures = 3 }}
"""
BEARER = '[authentications.a]\nmethod = "bearer"\noptions.token = "t0ken"'
API_KEY = '[authentications.a]\nmethod = "api_key"\noptions = { api_key = "k3y", header_name = "X-Key" }'
HS256 = f"""
[authentications.a]
method = "jwt"
options = {{ use_hs256 = true, hs256_secret = "{SECRET}", issuer = "test" }}
"""

HTTP = [
    (BASIC, basic("Zoë", "with:colon é"), basic("Zoë", "with"), 'Basic realm="Harmony", charset="UTF-8"'),
    (
        BASIC,
        basic("Zoë", "with:colon é"),
        basic("Zoe", "with:colon é"),
        'Basic realm="Harmony", charset="UTF-8"',
    ),
    (HASHED, basic("alice", "sesame"), basic("alice", "Sesame"), 'Basic realm="Harmony", charset="UTF-8"'),
    (HASHED, basic("alice", "sesame"), basic("bob", "sesame"), 'Basic realm="Harmony", charset="UTF-8"'),
    (
        HASHED,
        basic("alice", "sesame"),
        {"Authorization": "Basic !"},
        'Basic realm="Harmony", charset="UTF-8"',
    ),
    (BEARER, bearer("t0ken"), bearer("t0keN"), 'Bearer realm="Harmony", error="invalid_token"'),
    (API_KEY, {"X-Key": "k3y"}, {"X-Key": "k3"}, 'ApiKey realm="Harmony", header="X-Key"'),
    (HS256, bearer(signed()), bearer(signed("x" * 32)), 'Bearer realm="Harmony", error="invalid_token"'),
    (HS256, bearer(signed()), bearer(signed(iss="other")), 'Bearer realm="Harmony", error="invalid_token"'),
    (HS256, bearer(signed()), bearer(signed(exp=1)), 'Bearer realm="Harmony", error="invalid_token"'),
]


@pytest.mark.parametrize(("tables", "good", "bad", "challenge"), HTTP)
async def test_over_http(guarded, tables, good, bad, challenge) -> None:
    gateway = await guarded(tables)
    missing = await gateway.ask()
    assert missing.status == 401
    assert missing.headers.get("www-authenticate") == challenge.removesuffix(', error="invalid_token"')
    for _ in range(2):  # the second time from what is remembered
        assert (await gateway.ask(good)).status == 200
    refused = await gateway.ask(bad)
    assert (refused.status, json.loads(refused.body)) == (401, {"error": "Unauthorized"})
    assert refused.headers.get("www-authenticate") == challenge
    assert (await gateway.ask(good, path="/admin/info")).status == 200
    for path in ("/admin/info", "/admin/routes", "/metrics"):
        assert (await gateway.ask(path=path)).status == 401
    for path in ("/admin/reload", "/api/reload"):
        assert (await gateway.ask(method="POST", path=path)).status == 401
    assert (await gateway.ask(path="/health")).status == 200


async def test_credentials_go_no_further(guarded) -> None:
    gateway = await guarded(BASIC)
    shown = await gateway.ask({**basic("Zoë", "with:colon é"), "X-Other": "1"})
    headers = json.loads(shown.body)["headers"]
    assert "authorization" not in headers
    assert headers["x-other"] == "1"


async def test_a_preflight_needs_no_credentials(guarded) -> None:
    gateway = await guarded(BASIC)
    preflight = {"Origin": "http://viewer", "Access-Control-Request-Method": "GET"}
    assert (await gateway.ask(preflight, method="OPTIONS")).status == 200
    assert (await gateway.ask({"Origin": "http://viewer"}, method="OPTIONS")).status in (200, 401)
    assert (await gateway.ask(preflight, method="GET")).status == 401
    assert (await gateway.ask(preflight, method="POST")).status == 401


async def test_too_many_failures(guarded) -> None:
    gateway = await guarded(HASHED)
    wrong, right = basic("alice", "wrong"), basic("alice", "sesame")
    assert (await gateway.ask(right)).status == 200
    assert [(await gateway.ask(wrong)).status for _ in range(3)] == [401, 401, 401]
    locked = await gateway.ask(right)
    assert locked.status == 429
    assert 1 <= int(locked.headers.get("retry-after")) <= 300
    assert await gateway.call(2, b"alice", b"sesame") == (2, 2, 1)  # there as well
    assert (await gateway.ask(basic("bob", "sesame"))).status == 401
    assert [outcome.failure for outcome in gateway.outcomes[-2:]] == [Failure.LOCKED_OUT, Failure.REFUSED]


async def test_many_guesses_at_once_do_not_outrun_the_count(guarded) -> None:
    gateway = await guarded(HASHED)
    answers = await asyncio.gather(*(gateway.ask(basic("alice", f"guess {n}")) for n in range(20)))
    assert sorted(answer.status for answer in answers) == [401] * 3 + [429] * 17


async def test_tokens_lock_nobody_out(guarded) -> None:
    gateway = await guarded(HS256)
    assert [(await gateway.ask(bearer(signed(exp=1)))).status for _ in range(15)] == [401] * 15
    assert (await gateway.ask(bearer(signed()))).status == 200


async def test_who_is_told(guarded, caplog) -> None:
    caplog.set_level("INFO", logger="harmony.gateway")
    gateway = await guarded(BASIC)
    await gateway.ask()
    await gateway.ask(basic("mallory", "very secret"))
    await gateway.ask(basic("Zoë", "with:colon é"))
    assert [(each.name, each.failure, each.reason) for each in gateway.outcomes] == [
        ("", Failure.MISSING, ""),
        ("mallory", Failure.REFUSED, "user name or password is wrong"),
        ("Zoë", None, ""),
    ]
    assert {
        (each.authentication, each.method, each.address, each.protocol, each.endpoint)
        for each in gateway.outcomes
    } == {("a", "basic", "127.0.0.1", "http", "e")}
    assert "'mallory' from 127.0.0.1 was not let in to e" in caplog.text
    for secret in ("very secret", "with:colon"):
        assert secret not in caplog.text + repr(gateway.outcomes)


@pytest.mark.parametrize(
    ("middleware", "good"),
    [
        ('[middleware.m]\ntype = "basic_auth"\nusername = "u"\npassword = "p"', basic("u", "p")),
        (
            f'[middleware.m]\ntype = "jwt_auth"\noptions = {{ use_hs256 = true, hs256_secret = "{SECRET}" }}',
            bearer(signed()),
        ),
        (f'[middleware.m]\ntype = "basic_auth"\nauthentication = "a"\n{HASHED}', basic("alice", "sesame")),
        (f'[middleware.m]\ntype = "jwt_auth"\nauthentication = "a"\n{HS256}', bearer(signed())),
    ],
)
async def test_middleware(guarded, middleware, good) -> None:
    gateway = await guarded(middleware, authentication="", middleware='"m"')
    assert (await gateway.ask()).status == 401
    assert (await gateway.ask(basic("u", "P"))).status == 401
    assert (await gateway.ask(good)).status == 200
    assert (await gateway.ask(path="/admin/info")).status == 200


async def test_a_file_of_users(guarded, tmp_path) -> None:
    lines = [f"{name}:{hash_password(name + name, n=2, r=1, p=1)}\n" for name in ("alice", "bob")]
    (tmp_path / "users").write_text("".join(lines))
    gateway = await guarded(f'[authentications.a]\nmethod = "basic"\noptions.users_path = "{tmp_path}/users"')
    assert (await gateway.ask(basic("alice", "alicealice"))).status == 200
    assert (await gateway.ask(basic("bob", "bobbob"))).status == 200
    assert (await gateway.ask(basic("alice", "bobbob"))).status == 401
    assert (await gateway.ask(basic("carol", "alicealice"))).status == 401


async def test_keys_from_a_server(guarded) -> None:
    public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(KEY.public_key()))
    answers = [Response(200, {}, json.dumps({"keys": [{**public, "kid": "1"}]}).encode())]

    async def issuer(request: Request) -> Response:
        return answers.pop()

    async def outcome(gateway, kid: str) -> int:
        token = jwt.encode({"sub": "s", "exp": FAR, "aud": "h"}, KEY, algorithm="EdDSA", headers={"kid": kid})
        return (await gateway.ask(bearer(token))).status

    server = HTTPServer(issuer)
    await server.start("127.0.0.1", 0)
    try:
        uri = f"http://127.0.0.1:{server.addresses[0][1]}/certs"
        table = f'[authentications.a]\nmethod = "jwt"\noptions = {{ jwks_uri = "{uri}", audience = "h" }}'
        gateway = await guarded(table)
        assert await outcome(gateway, "1") == 200
        assert await outcome(gateway, "2") == 401
        assert gateway.outcomes[0].name == "s"
    finally:
        await server.stop(0.0)


async def test_keys_that_cannot_be_had(guarded, free_port) -> None:
    uri = f"http://127.0.0.1:{free_port}/certs"
    gateway = await guarded(
        f'[authentications.a]\nmethod = "jwt"\noptions = {{ jwks_uri = "{uri}", audience = "h" }}'
    )
    token = jwt.encode({"exp": FAR, "aud": "h"}, KEY, algorithm="EdDSA")
    answer = await gateway.ask(bearer(token))
    assert (answer.status, answer.headers.get("retry-after")) == (503, "60")
    assert await gateway.call(5, token.encode()) == (2, 2, 1)


async def test_a_key_in_a_file(guarded, tmp_path) -> None:
    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    table = f'[authentications.a]\nmethod = "jwt"\noptions = {{ public_key_path = "{tmp_path}/key.pem", issuer = "i" }}'
    gateway = await guarded(table)
    token = jwt.encode({"sub": "s", "exp": FAR, "iss": "i"}, KEY, algorithm="EdDSA")
    assert (await gateway.ask(bearer(token))).status == 200
    assert (await gateway.ask(bearer(signed(iss="i")))).status == 401


# User identity (PS3.7 §D.3.3.7)

REJECTED = (1, 2, 1)


@pytest.mark.parametrize(
    ("tables", "identity", "expected"),
    [
        (BASIC, (2, "Zoë".encode(), "with:colon é".encode()), Principal("Zoë", "basic")),
        (BASIC, (2, "Zoë".encode(), b"wrong"), REJECTED),
        (BASIC, (2, b"\xff", b"x"), REJECTED),
        (BASIC, (1, "Zoë".encode()), REJECTED),
        (BASIC, (3, b"ticket"), REJECTED),
        (BASIC, (4, b"<saml/>"), REJECTED),
        (BASIC, (5, signed().encode()), REJECTED),
        (BASIC, (77, b"x"), REJECTED),
        (BASIC, (), REJECTED),
        (BEARER, (5, b"t0ken"), Principal("a", "bearer")),
        (BEARER, (5, b"token"), REJECTED),
        (BEARER, (2, b"a", b"t0ken"), REJECTED),
        (HS256, (5, signed().encode()), Principal("alice", "jwt")),
        (HS256, (5, signed(exp=1).encode()), REJECTED),
        (HS256, (5, b"a" * 60000), REJECTED),
    ],
)
async def test_over_dimse(guarded, tables, identity, expected) -> None:
    gateway = await guarded(tables)
    found = await gateway.call(*identity)
    if expected == REJECTED:
        assert found == REJECTED
        assert gateway.outcomes[-1].failure is not None
    else:
        assert found == expected
        assert gateway.outcomes[-1].failure is None
    last = gateway.outcomes[-1]
    assert (last.protocol, last.endpoint, last.calling_ae_title) == ("dicom", "scp", "HARMONY_SCU")
    assert last.address == "127.0.0.1"


async def test_other_titles_of_the_address_are_as_open_as_before(guarded) -> None:
    gateway = await guarded(BASIC)
    assert await gateway.call(title="OPEN") is None
    assert await gateway.call(2, b"x", b"y", title="OPEN") is None
    assert await gateway.call(title="NOBODY") == (1, 1, 7)
    assert gateway.outcomes == []


async def test_a_name_may_be_enough(guarded) -> None:
    gateway = await guarded(HASHED.replace("max_failures = 3", "accept_username_only = true"))
    assert await gateway.call(1, b"alice") == Principal("alice", "basic")
    assert await gateway.call(1, b"bob") == REJECTED
    assert (await gateway.ask(basic("alice", ""))).status == 401


async def test_loading_again(guarded, tmp_path) -> None:
    gateway = await guarded(HASHED)
    assert [(await gateway.ask(basic("alice", "wrong"))).status for _ in range(3)] == [401] * 3
    path = tmp_path / "config.toml"
    gateway.gateway._load = lambda: load(path, env={})
    more = '[authentications.b]\nmethod = "basic"\noptions = { username = "bob", password = "b" }\n'
    path.write_text(more + path.read_text())
    await gateway.gateway.reload()
    assert (await gateway.ask(basic("alice", "sesame"))).status == 429  # still
    path.write_text(path.read_text().replace('authentication = "a"', 'authentication = "b"'))
    await gateway.gateway.reload()
    assert (await gateway.ask(basic("alice", "sesame"))).status == 401
    assert (await gateway.ask(basic("bob", "b"))).status == 200
    assert await gateway.call(2, b"bob", b"b") == Principal("bob", "basic")
    assert [(each.authentication, each.name) for each in gateway.outcomes[-2:]] == [("b", "bob")] * 2
    path.write_text(path.read_text().replace('authentication = "b"', ""))
    await gateway.gateway.reload()
    assert (await gateway.ask()).status == 200
    assert await gateway.call() is None


async def test_pages_may_read_a_refusal(guarded, free_port) -> None:
    await guarded(
        BASIC
        + f"""
        [network.pages]
        http = {{ bind_address = "127.0.0.1", bind_port = {free_port} }}
        [pipelines.pages]
        networks = ["pages"]
        endpoints = ["rs"]
        [endpoints.rs]
        service = "dicomweb"
        authentication = "a"
        options = {{ path_prefix = "/rs", allow_origins = ["https://viewer.example.org"] }}
        """
    )
    origin = {"Origin": "https://viewer.example.org"}
    preflight = {**origin, "Access-Control-Request-Method": "GET"}
    async with HTTPClient(f"http://127.0.0.1:{free_port}/rs", timeout_s=10.0) as client:
        asked = await client.request("OPTIONS", "/studies", headers=preflight)
        assert asked.status == 200
        assert "authorization" in (asked.headers.get("access-control-allow-headers") or "")
        refused = await client.request("GET", "/studies", headers=origin)
        assert refused.status == 401
        assert refused.headers.get("access-control-allow-origin") == "https://viewer.example.org"


# By themselves


def gate(authenticator, outcomes, *, max_failures: int = 10) -> Gate:
    lockout = Lockout(max_failures=max_failures, window_s=300.0, lockout_s=60.0)
    return Gate("a", authenticator, lockout=lockout, report=outcomes.append)


CERTIFICATE = {
    "subject": ((("countryName", "DE"),), (("commonName", "ct-1"),)),
    "subjectAltName": (("DNS", "ct-1.example.org"), ("IP Address", "192.0.2.7"), ("DirName", "x")),
}


@pytest.mark.parametrize(
    ("allowed", "certificate", "expected"),
    [
        ((), CERTIFICATE, "ct-1"),
        (("ct-1",), CERTIFICATE, "ct-1"),
        (("mr-1", "ct-1.example.org"), CERTIFICATE, "ct-1.example.org"),
        (("192.0.2.7",), CERTIFICATE, "192.0.2.7"),
        (("DE",), CERTIFICATE, Failure.REFUSED),
        (("x",), CERTIFICATE, Failure.REFUSED),
        (("ct-1",), {"subject": ()}, Failure.REFUSED),
        ((), {"subject": ()}, ""),
        ((), None, Failure.MISSING),
        ((), {}, Failure.MISSING),
    ],
)
async def test_certificates(allowed, certificate, expected) -> None:
    asked = MutualTlsAuthenticator(allowed)
    request = Request("GET", "/", client_certificate=certificate)
    for read in (lambda: asked.from_request(request), lambda: asked.from_association(None, certificate)):
        admitting = gate(asked, []).admit(read, address="x", protocol="http", endpoint="e")
        if isinstance(expected, str):
            assert await admitting == Principal(expected, "mutual_tls")
            continue
        with pytest.raises(Denied) as caught:
            await admitting
        assert caught.value.failure is expected
    assert asked.challenge(presented=True) is None


async def test_what_is_remembered_is_forgotten() -> None:
    times, derived = [0.0], []

    authentications = Authentications()
    executor = authentications._executor
    asked = PasswordAuthenticator(
        {"alice": hash_password("s", n=2, r=1, p=1)}, executor, clock=lambda: times[-1]
    )
    submit = executor.submit
    executor.submit = lambda *arguments: derived.append(arguments) or submit(*arguments)
    for now, count in ((0.0, 1), (59.0, 1), (61.0, 2)):
        times.append(now)
        assert await asked.verify(Evidence("alice", "s")) == Principal("alice", "basic")
        assert len(derived) == count
    for _ in range(2):
        with pytest.raises(EvidenceRefused):
            await asked.verify(Evidence("alice", "S"))
    assert len(derived) == 4  # what is wrong is derived every time
    await authentications.stop(0.0)


# What a backend shows, and what a listener has seen


@pytest.mark.parametrize(
    ("table", "name"),
    [(BASIC, "Zoë"), (BEARER, "a"), (HS256.replace("issuer =", 'subject = "us", issuer ='), "us")],
)
async def test_a_pacs_is_shown_a_user_identity(guarded, free_port, table, name) -> None:
    gateway = await guarded(
        table
        + f"""
        [network.inner]
        http = {{ bind_address = "127.0.0.1", bind_port = {free_port} }}
        [pipelines.bridge]
        networks = ["inner"]
        endpoints = ["bridge"]
        backends = ["good"]
        [endpoints.bridge]
        service = "http"
        options.path_prefix = "/good"
        [backends.good]
        service = "dicom_scu"
        authentication = "a"
        target_ref = "pacs"
        options.aet = "CLOSED"
        [pipelines.nobody]
        networks = ["inner"]
        endpoints = ["nobody"]
        backends = ["bad"]
        [endpoints.nobody]
        service = "http"
        options.path_prefix = "/bad"
        [backends.bad]
        service = "dicom_scu"
        target_ref = "pacs"
        options.aet = "CLOSED"
        [targets.pacs]
        connection = {{ host = "127.0.0.1", port = {{port}}, protocol = "dicom" }}
        """
    )
    async with HTTPClient(f"http://127.0.0.1:{free_port}", timeout_s=10.0) as client:
        assert (await client.request("POST", "/good/echo")).status == 200
        assert gateway.outcomes[-1].name == name
        assert (await client.request("POST", "/bad/echo")).status >= 500
    assert gateway.outcomes[-1].failure is Failure.MISSING


@pytest.mark.parametrize(
    ("allowed", "expected"), [("ct-1", Principal("ct-1", "mutual_tls")), ("mr-1", REJECTED)]
)
async def test_a_certificate_over_dimse(guarded, authority, allowed, expected) -> None:
    ours, theirs = authority.issue(), authority.issue("ct-1", ())
    gateway = await guarded(
        f"""
        [authentications.a]
        method = "mutual_tls"
        options.allowed_subjects = ["{allowed}"]
        """,
        web="",
        scp=f"""
            cert_path = "{ours.certificate}"
            key_path = "{ours.key}"
            ca_cert_path = "{authority.certificate}"
        """,
    )
    assert await gateway.call(ssl_context=_client_context(authority, theirs)) == expected
    assert await gateway.call(ssl_context=_client_context(authority, None)) == REJECTED
    assert gateway.outcomes[-1].failure is Failure.MISSING


def _client_context(authority, certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if certificate is not None:
        context.load_cert_chain(certificate.certificate, certificate.key)
    return context
