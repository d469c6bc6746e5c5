"""Tokens, good and bad: what is signed, by whom, with what, for whom, until when."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from harmony.gateway.json_web_token import (
    FixedKey,
    TokenRefused,
    TokenRules,
    keys_of_set,
    read_public_key,
    secret_key,
)

SECRET = "a secret of more than thirty-two bytes"


@cache
def private(kind: str) -> Any:
    match kind:
        case "RS256" | "other":
            return rsa.generate_private_key(65537, 2048)
        case "short":
            return rsa.generate_private_key(65537, 1024)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ES256K":
            return ec.generate_private_key(ec.SECP256K1())
    return ed25519.Ed25519PrivateKey.generate()


def pem(kind: str) -> bytes:
    found: bytes = private(kind).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


def in_seconds(seconds: float) -> int:
    return int((datetime.now(UTC) + timedelta(seconds=seconds)).timestamp())


def claims(**more: object) -> dict[str, object]:
    return {"sub": "alice", "exp": in_seconds(600), **more}


def token(kind: str = "RS256", *, algorithm: str | None = None, **more: object) -> str:
    headers = more.pop("headers", None)
    return jwt.encode(claims(**more), private(kind), algorithm=algorithm or kind, headers=headers)  # type: ignore[arg-type]


def part(content: object) -> str:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def with_hmac(header: object, payload: object, key: bytes) -> str:
    signed = f"{part(header)}.{part(payload)}"
    return f"{signed}.{part(hmac.digest(key, signed.encode(), hashlib.sha256))}"


@pytest.fixture(params=["RS256", "ES256", "EdDSA"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def source(tmp_path: Path, kind: str) -> FixedKey:
    (tmp_path / "key.pem").write_bytes(pem(kind))
    return FixedKey(read_public_key(tmp_path / "key.pem"))


async def test_a_good_token(tmp_path: Path, kind: str) -> None:
    found = await TokenRules().check(token(kind, headers={"kid": "any"}), source(tmp_path, kind))
    assert found["sub"] == "alice"


async def test_a_good_token_with_the_secret() -> None:
    signed = jwt.encode(claims(), SECRET, algorithm="HS256")
    assert (await TokenRules().check(signed, FixedKey(secret_key(SECRET))))["sub"] == "alice"


GOOD = [
    (TokenRules(issuers=("i",)), {"iss": "i"}),
    (TokenRules(issuers=("h", "i")), {"iss": "i"}),
    (TokenRules(audiences=("a",)), {"aud": "a"}),
    (TokenRules(audiences=("a",)), {"aud": ["b", "a"]}),
    (TokenRules(audiences=("a", "b")), {"aud": "b"}),
    (TokenRules(), {"aud": "somebody", "iss": "somebody"}),
    (TokenRules(leeway_s=3600), {"exp": in_seconds(-30)}),
    (TokenRules(leeway_s=120), {"nbf": in_seconds(60)}),
    (TokenRules(validate_expiry=False), {"exp": in_seconds(-3600)}),
    (TokenRules(), {"iat": in_seconds(60)}),
    (TokenRules(required_claims={"role": None}), {"role": "nurse"}),
    (TokenRules(required_claims={"role": "nurse"}), {"role": "nurse"}),
    (TokenRules(required_claims={"role": "nurse"}), {"role": ["doctor", "nurse"]}),
    (TokenRules(required_claims={"role": ["doctor", "nurse"]}), {"role": "nurse"}),
    (TokenRules(algorithms=("RS256", "ES256")), {}),
]


@pytest.mark.parametrize(("rules", "said"), GOOD)
async def test_what_is_asked_for(tmp_path: Path, rules: TokenRules, said: dict[str, object]) -> None:
    await rules.check(token(**said), source(tmp_path, "RS256"))


BAD: list[tuple[TokenRules, dict[str, object], str]] = [
    (TokenRules(), {"exp": in_seconds(-1)}, "it has expired"),
    (TokenRules(leeway_s=60), {"exp": in_seconds(-90)}, "it has expired"),
    (TokenRules(), {"exp": None}, "the claim exp is missing"),
    (TokenRules(), {"exp": "tomorrow"}, "it is malformed"),
    (TokenRules(), {"exp": [1]}, "it is malformed"),
    (TokenRules(), {"nbf": in_seconds(600)}, "it is not valid yet"),
    (TokenRules(validate_expiry=False), {"nbf": in_seconds(600)}, "it is not valid yet"),
    (TokenRules(issuers=("i",)), {"iss": "j"}, "it is from another issuer"),
    (TokenRules(issuers=("i",)), {}, "the claim iss is missing"),
    (TokenRules(audiences=("a",)), {"aud": "b"}, "it is for another audience"),
    (TokenRules(audiences=("a",)), {"aud": []}, "the claim aud is missing"),
    (TokenRules(audiences=("a",)), {}, "the claim aud is missing"),
    (TokenRules(required_claims={"role": None}), {}, "the claim role is not as required"),
    (TokenRules(required_claims={"role": "nurse"}), {"role": "nurses"}, "the claim role is not as required"),
    (TokenRules(required_claims={"admin": True}), {"admin": 1}, "the claim admin is not as required"),
    (TokenRules(algorithms=("ES256",)), {}, "its algorithm is not allowed"),
]


@pytest.mark.parametrize(("rules", "said", "why"), BAD)
async def test_what_is_not_enough(
    tmp_path: Path, rules: TokenRules, said: dict[str, object], why: str
) -> None:
    with pytest.raises(TokenRefused) as caught:
        await rules.check(token(**said), source(tmp_path, "RS256"))
    assert str(caught.value) == why


def forgeries() -> dict[str, str]:
    good = token()
    header, payload, signature = good.split(".")
    public = pem("RS256")
    changed = part(claims(sub="root"))
    return {
        "none": f"{part({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
        "None": f"{part({'alg': 'None'})}.{payload}.",
        "none with a signature": f"{part({'alg': 'none'})}.{payload}.{signature}",
        "HS256 with the public key": with_hmac({"alg": "HS256"}, claims(), public),
        "HS256 with the public key, stripped": with_hmac({"alg": "HS256"}, claims(), public.strip()),
        "HS256 with nothing": with_hmac({"alg": "HS256"}, claims(), b""),
        "another key": token("other", algorithm="RS256"),
        "another kind of key": token("ES256"),
        "another algorithm of the key": token("RS256", algorithm="RS512"),
        "PS256": token("RS256", algorithm="PS256"),
        "another payload": f"{header}.{changed}.{signature}",
        "no signature": f"{header}.{payload}.",
        "two parts": f"{header}.{payload}",
        "five parts": f"{header}.{payload}.{signature}.a.b",
        "no algorithm": f"{part({'typ': 'JWT'})}.{payload}.{signature}",
        "an algorithm that is a list": f"{part({'alg': ['RS256']})}.{payload}.{signature}",
        "a kid that is a number": f"{part({'alg': 'RS256', 'kid': 1})}.{payload}.{signature}",
        "a kid that is a path": f"{part({'alg': 'HS256', 'kid': '/dev/null'})}.{payload}.{signature}",
        "critical": f"{part({'alg': 'RS256', 'crit': ['x'], 'x': 1})}.{payload}.{signature}",
        "a header that is a list": f"{part([1])}.{payload}.{signature}",
        "a deep header": f"{part(b'[' * 3000)}.{payload}.{signature}",
        "a deep payload": f"{header}.{part(b'[' * 8000)}.{signature}",
        "garbage": "garbage",
        "dots": "..",
        "nothing": "",
        "not Base64": "é.é.é",
        "with padding": f"{header}=.{payload}=.{signature}=",
        "a megabyte": "a" * 2**20,
        "a megabyte of dots": "." * 2**20,
        "cut off": good[:-20],
    }


@pytest.mark.parametrize("forgery", list(forgeries()))
async def test_forgeries(tmp_path: Path, forgery: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        await TokenRules().check(forgeries()[forgery], source(tmp_path, "RS256"))
    assert "alice" not in str(caught.value)


async def test_an_issuer_that_is_no_text() -> None:
    signed = with_hmac({"alg": "HS256"}, claims(iss=["i"]), SECRET.encode())
    with pytest.raises(TokenRefused):
        await TokenRules(issuers=("i",)).check(signed, FixedKey(secret_key(SECRET)))


async def test_no_asymmetric_token_with_a_secret() -> None:
    for signed in (token("RS256"), f"{part({'alg': 'none'})}.{part(claims())}."):
        with pytest.raises(TokenRefused):
            await TokenRules().check(signed, FixedKey(secret_key(SECRET)))


@given(st.text() | st.builds("{}.{}.{}".format, st.text(), st.text(), st.text()))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(TokenRefused):
        asyncio.run(TokenRules().check(text, FixedKey(secret_key(SECRET))))


# Keys


@pytest.mark.parametrize("kind", ["short", "ES256K"])
def test_keys_that_are_not_good_enough(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="must hold a public key in PEM"):
        source(tmp_path, kind)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"]
)
def test_files_without_a_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must hold a public key in PEM"):
        read_public_key(path)


def test_a_private_key_is_no_public_one(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private("RS256").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ValueError, match="must hold a public key in PEM"):
        read_public_key(path)


def jwk(kind: str, **more: object) -> dict[str, object]:
    algorithm = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm}.get(
        kind, jwt.algorithms.OKPAlgorithm
    )
    return {**json.loads(algorithm.to_jwk(private(kind).public_key())), **more}


def test_a_set_of_keys() -> None:
    members = [
        jwk("RS256", kid="r"),
        jwk("RS256", kid="ps", alg="PS256"),
        jwk("ES256", kid="e", alg="ES256", use="sig", key_ops=["verify"]),
        jwk("EdDSA", kid="ed"),
        jwk("ES256", kid="wrong", alg="RS256"),
        jwk("RS256", kid="enc", use="enc"),
        jwk("RS256", kid="sign", key_ops=["sign"]),
        {"kty": "oct", "kid": "secret", "k": part(SECRET.encode())},
        {"kty": "RSA", "kid": "broken", "n": "AQ", "e": "AQAB"},
        {"kty": "EC", "kid": "broken", "crv": "P-256"},
        {"kty": ["RSA"]},
        {"kty": "RSA", "kid": 7},
        None,
    ]
    keys = keys_of_set(json.dumps({"keys": members}).encode())
    assert [(key.kid, key.algorithms[0]) for key in keys] == [
        ("r", "RS256"),
        ("ps", "PS256"),
        ("e", "ES256"),
        ("ed", "EdDSA"),
    ]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys": 1}', b"\xff", b"[" * 100_000])
def test_what_is_no_set_of_keys(content: bytes) -> None:
    with pytest.raises(ValueError, match="is not a JWK Set"):
        keys_of_set(content)
