"""What a backend shows to an upstream, request by request: tokens of a file, and tokens that we sign ourselves."""

from __future__ import annotations

import json
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from harmony.gateway.app import Gateway
from harmony.gateway.loading import load
from harmony.http import HTTPServer, Request, Response
from harmony.http.client import HTTPClient

KEY = ec.generate_private_key(ec.SECP256R1())
SECRET = "a secret of more than thirty-two bytes"


@pytest.fixture(autouse=True)
def keys(tmp_path) -> None:
    private = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "token").write_text("first\n")


def gateway(folder: Path, port: int, upstream: int, options: str, more: str = "", env=None) -> Gateway:
    """/up is what is at the upstream port; the backend shows what the table `ours` says."""
    path = folder / "config.toml"
    path.write_text(f"""
        [proxy]
        id = "g"
        [storage.options]
        path = "{folder}/storage"
        [network.n.http]
        bind_address = "127.0.0.1"
        bind_port = {port}
        [pipelines.p]
        networks = ["n"]
        endpoints = ["up"]
        backends = ["b"]
        [endpoints.up]
        service = "http"
        options.path_prefix = "/up"
        [backends.b]
        service = "http"
        authentication = "ours"
        connection = {{ host = "127.0.0.1", port = {upstream} }}
        [authentications.ours]
        {options}
        {more}
        """)
    return Gateway(load(path, env=env or {}))


SIGNED = """
    method = "jwt"
    [authentications.ours.options]
    private_key_file = "{folder}/key.pem"
    key_id = "2026"
    issuer = "https://gateway.example.test"
    subject = "gateway"
    audience = "upstream"
    lifetime_secs = 60
"""


@pytest.mark.parametrize(
    ("table", "key", "algorithm"),
    [
        (SIGNED, KEY.public_key(), "ES256"),
        (
            SIGNED.replace('private_key_file = "{folder}/key.pem"', 'private_key = "$KEY"'),
            KEY.public_key(),
            "ES256",
        ),
        (
            SIGNED.replace(
                'private_key_file = "{folder}/key.pem"', f'use_hs256 = true\nhs256_secret = "{SECRET}"'
            ),
            SECRET,
            "HS256",
        ),
    ],
)
async def test_a_token_that_we_sign(tmp_path, free_port, table, key, algorithm) -> None:
    seen = []

    async def verify(request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization").partition(" ")
        assert scheme == "Bearer"
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience="upstream",
            issuer="https://gateway.example.test",
            options={"require": ["exp", "iat", "sub"]},
        )
        seen.append((token, claims["sub"], claims["exp"] - claims["iat"], jwt.get_unverified_header(token)))
        return Response(200)

    server = HTTPServer(verify)
    await server.start("127.0.0.1", 0)
    env = {"KEY": (tmp_path / "key.pem").read_text()}
    upstream = server.addresses[0][1]
    harmony = gateway(tmp_path, free_port, upstream, table.format(folder=tmp_path), env=env)
    await harmony.start()
    try:
        async with HTTPClient(f"http://127.0.0.1:{free_port}", timeout_s=10.0) as client:
            for _ in range(2):
                # what the caller brings for the upstream does not reach it
                answer = await client.request("GET", "/up/x", headers={"Authorization": "Bearer other"})
                assert answer.status == 200
        first, second = seen
        assert first == second
        assert first[1:] == ("gateway", 60, {"alg": algorithm, "kid": "2026", "typ": "JWT"})
    finally:
        await harmony.stop(1.0)
        await server.stop(0.0)


async def test_another_gateway_lets_us_in(tmp_path, free_ports) -> None:
    ours, theirs = free_ports(2)
    path = tmp_path / "other.toml"
    path.write_text(f"""
        [proxy]
        id = "other"
        [storage.options]
        path = "{tmp_path}/other"
        [network.n.http]
        bind_address = "127.0.0.1"
        bind_port = {theirs}
        [pipelines.p]
        networks = ["n"]
        endpoints = ["echo"]
        middleware = ["jwt_auth"]
        [endpoints.echo]
        service = "echo"
        options.path_prefix = "/e"
        [middleware.jwt_auth.options]
        public_key_path = "{tmp_path}/public.pem"
        issuer = "https://gateway.example.test"
        audience = "upstream"
        """)
    other = Gateway(load(path, env={}))
    outcomes = []
    other.assembly.authentications.subscribe(outcomes.append)
    harmony = gateway(tmp_path, ours, theirs, SIGNED.format(folder=tmp_path))
    await other.start()
    await harmony.start()
    try:
        async with HTTPClient(f"http://127.0.0.1:{ours}", timeout_s=10.0) as client:
            assert (await client.request("GET", "/up/e")).status == 200
        assert [(each.name, each.failure) for each in outcomes] == [("gateway", None)]
    finally:
        await harmony.stop(1.0)
        await other.stop(1.0)


async def test_a_token_in_a_file(tmp_path, free_port) -> None:
    seen = []

    async def note(request: Request) -> Response:
        seen.append(request.headers.get("authorization"))
        return Response(200)

    server = HTTPServer(note)
    await server.start("127.0.0.1", 0)
    table = f'method = "bearer"\noptions.token_path = "{tmp_path}/token"'
    harmony = gateway(tmp_path, free_port, server.addresses[0][1], table)
    await harmony.start()
    try:
        async with HTTPClient(f"http://127.0.0.1:{free_port}", timeout_s=10.0) as client:
            assert (await client.request("GET", "/up/x")).status == 200
            (tmp_path / "token").write_text("second")
            assert (await client.request("GET", "/up/x")).status == 200
        assert seen == ["Bearer first", "Bearer second"]
    finally:
        await harmony.stop(1.0)
        await server.stop(0.0)


async def test_callers_with_a_token_in_a_file(tmp_path, free_port) -> None:
    table = f'method = "bearer"\noptions.token_path = "{tmp_path}/token"'
    guarded = """
        [pipelines.q]
        networks = ["n"]
        endpoints = ["echo"]
        [endpoints.echo]
        service = "echo"
        authentication = "ours"
        options.path_prefix = "/e"
    """
    harmony = gateway(tmp_path, free_port, free_port, table, guarded)
    await harmony.start()

    async def ask(token: str) -> int:
        async with HTTPClient(f"http://127.0.0.1:{free_port}", timeout_s=10.0) as client:
            answer = await client.request("GET", "/e", headers={"Authorization": f"Bearer {token}"})
        assert "authorization" not in json.loads(answer.body).get("headers", {})
        return answer.status

    try:
        assert [await ask("first"), await ask("second")] == [200, 401]
        (tmp_path / "token").write_text("second")
        assert [await ask("first"), await ask("second")] == [401, 200]
    finally:
        await harmony.stop(1.0)
