"""Tokens that we sign: every algorithm, as PyJWT verifies it; when another one is made."""

from __future__ import annotations

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from harmony.gateway.token_signing import SigningKey, TokenSigner

RSA = rsa.generate_private_key(65537, 2048)
P256, P521 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP521R1())
ED = ed25519.Ed25519PrivateKey.generate()


def pem(key, encryption=None) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()).decode()


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        (RSA, ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        (P256, ("ES256",)),
        (P521, ("ES512",)),
        (ED, ("EdDSA",)),
    ],
    ids=["rsa", "p256", "p521", "ed25519"],
)
def test_private_keys(key, algorithms) -> None:
    signing = SigningKey.private(pem(key))
    assert signing.algorithms == algorithms
    for algorithm in algorithms:
        signer = TokenSigner(signing, algorithm, {"iss": "us"}, lifetime_s=300, clock=lambda: 1e9)
        claims = jwt.decode(
            signer.token(), key.public_key(), algorithms=[algorithm], options={"verify_exp": False}
        )
        assert claims == {"iss": "us", "iat": 1_000_000_000, "exp": 1_000_000_300}


def test_a_secret() -> None:
    key = SigningKey.secret("x" * 32)
    token = TokenSigner(key, "HS256", {"sub": "us"}, lifetime_s=60, kid="k1").token()
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "k1", "typ": "JWT"}
    assert jwt.decode(token, "x" * 32, algorithms=["HS256"])["sub"] == "us"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a key",
        pem(RSA, BestAvailableEncryption(b"secret")),
        pem(rsa.generate_private_key(65537, 1024)),
        pem(ec.generate_private_key(ec.SECP256K1())),
    ],
    ids=["empty", "text", "encrypted", "weak", "curve"],
)
def test_keys_that_cannot_be_used(text) -> None:
    with pytest.raises(ValueError, match="must be a private key in PEM without a passphrase"):
        SigningKey.private(text)


def test_when_another_one_is_made() -> None:
    now = 1000.0
    signer = TokenSigner(SigningKey.secret("x" * 32), "HS256", {}, lifetime_s=100, clock=lambda: now)

    def expires() -> int:
        claims = jwt.decode(
            signer.token(), "x" * 32, algorithms=["HS256"], options={"verify_exp": False, "verify_iat": False}
        )
        return int(claims["exp"])

    seen = []
    for now in (1000.0, 1074.9, 1075.0, 1149.0, 1150.0, 1100.0, 1101.0):  # noqa: B007 - read by the clock
        seen.append(expires())
    assert seen == [1100, 1100, 1175, 1175, 1250, 1200, 1200]  # the clock was set back before the last two


def test_nothing_is_shown() -> None:
    signer = TokenSigner(SigningKey.secret("s3cret"), "HS256", {}, lifetime_s=100)
    assert repr(signer) == "<TokenSigner HS256>"
