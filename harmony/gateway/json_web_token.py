"""JSON Web Tokens of others, checked: signature, algorithm, times, issuer, audience, claims (RFC 7519, RFC 8725).

What may verify a token is decided by the key and the configuration, never by the token: each `Key` carries the
algorithms it is good for, and a token that names another one is refused before anything is computed. A public key is
never an HMAC secret, a JWK of type "oct" never a key, `jku`, `x5u` and `jwk` in a header mean nothing, and an extension
that is marked critical is refused (RFC 7515 §4.1.11).

The only module that needs the extra `jwt` (PyJWT and cryptography). Where keys come from is up to a `KeySource`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

__all__ = [
    "FixedKey",
    "Key",
    "KeySource",
    "TokenRefused",
    "TokenRules",
    "keys_of_set",
    "read_public_key",
    "secret_key",
]

MAXIMUM_TOKEN_CHARS: Final = 16384
MAXIMUM_HEADER_CHARS: Final = 4096
"""Of the encoded JOSE header, which is parsed before anything is verified."""
MINIMUM_RSA_BITS: Final = 2048
"""RFC 7518 §3.3."""
MAXIMUM_KEYS: Final = 64
MAXIMUM_PEM_BYTES: Final = 64 * 1024

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_MESSAGE: Final = (
    "must hold a public key in PEM: RSA of 2048 bits or more, EC on P-256, P-384 or P-521, or Ed25519"
)

_PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class TokenRefused(Exception):
    """The token does not count; says why, without anything that is in it."""


@dataclass(frozen=True, slots=True)
class Key:
    material: _PublicKey | bytes = field(repr=False)
    algorithms: tuple[str, ...]
    """What it may verify; the first is what it is used for when nothing else is said."""
    kid: str | None = None


class KeySource(Protocol):
    async def find(self, kid: str | None) -> Key | None:
        """The key that a token names, or the only one there is for a token that names none.

        Raises KeysUnavailable (`harmony.gateway.jwks`) when there are none to be had just now.
        """


@dataclass(frozen=True, slots=True)
class FixedKey:
    """One key, whatever tokens call it."""

    key: Key

    async def find(self, kid: str | None) -> Key | None:
        return self.key


def read_public_key(path: Path) -> Key:
    """The public key, or that of the certificate, in a file. Raises OSError, and ValueError for others."""
    with path.open("rb") as file:
        pem = file.read(MAXIMUM_PEM_BYTES + 1)
    if len(pem) > MAXIMUM_PEM_BYTES or b"PRIVATE KEY-----" in pem:
        raise ValueError(_MESSAGE)
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            material: object = load_pem_x509_certificate(pem).public_key()
        else:
            material = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(_MESSAGE) from None
    key = _public(material, None)
    if key is None:
        raise ValueError(_MESSAGE)
    return key


def secret_key(secret: str) -> Key:
    """For HS256."""
    return Key(secret.encode("utf-8"), ("HS256",))


def keys_of_set(content: bytes) -> list[Key]:
    """The usable keys of a JWK Set (RFC 7517 §5); those that are for something else are passed over.

    Raises ValueError when it is no such set.
    """
    try:
        members = json.loads(content)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("is not a JWK Set") from None
    if not isinstance(members, list):
        raise ValueError("is not a JWK Set")
    keys = (_of_set(each) for each in members[:MAXIMUM_KEYS])
    return [key for key in keys if key is not None]


def _of_set(member: object) -> Key | None:
    if not isinstance(member, dict) or member.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    operations = member.get("key_ops", ["verify"])
    if member.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kid, algorithm = member.get("kid"), member.get("alg")
    # "d" is a private key, which has no business in a set of public ones.
    if "d" in member or not (kid is None or isinstance(kid, str)):
        return None
    try:
        material: object = jwt.PyJWK.from_dict({**member, "alg": algorithm} if algorithm else member).key
    except (jwt.PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    key = _public(material, kid)
    if key is None or algorithm is None:
        return key
    return Key(key.material, (algorithm,), kid) if algorithm in key.algorithms else None


def _public(material: object, kid: str | None) -> Key | None:
    match material:
        case rsa.RSAPublicKey() if material.key_size >= MINIMUM_RSA_BITS:
            return Key(material, _RSA, kid)
        case ec.EllipticCurvePublicKey() if material.curve.name in _EC:
            return Key(material, (_EC[material.curve.name],), kid)
        case ed25519.Ed25519PublicKey():
            return Key(material, ("EdDSA",), kid)
    return None


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token has to say."""

    algorithms: tuple[str, ...] = ()
    """Empty: what the key is used for when nothing else is said."""
    issuers: tuple[str, ...] = ()
    """Empty: any."""
    audiences: tuple[str, ...] = ()
    """Empty: any."""
    required_claims: Mapping[str, object | None] = field(default_factory=dict)
    """Claim -> the value it must have or contain, one of a list of values, or None: any value."""
    validate_expiry: bool = True
    leeway_s: float = 0.0

    async def check(self, token: str, source: KeySource) -> dict[str, Any]:
        """The claims. Raises TokenRefused; KeysUnavailable from the source."""
        header = _header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header:
            raise TokenRefused("it has critical extensions")
        if not isinstance(algorithm, str) or not (kid is None or isinstance(kid, str)):
            raise TokenRefused("its header is malformed")
        if self.algorithms and algorithm not in self.algorithms:
            raise TokenRefused("its algorithm is not allowed")
        key = await source.find(kid)
        if key is None:
            raise TokenRefused("it names a key that is not known")
        if algorithm not in (key.algorithms if self.algorithms else key.algorithms[:1]):
            raise TokenRefused("its algorithm is not that of the key")
        claims = self._decode(token, key, algorithm)
        for name, wanted in self.required_claims.items():
            if not _satisfies(claims.get(name), wanted):
                raise TokenRefused(f"the claim {name} is not as required")
        return claims

    def _decode(self, token: str, key: Key, algorithm: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.material,
                algorithms=[algorithm],
                issuer=self.issuers or None,
                audience=self.audiences or None,
                leeway=self.leeway_s,
                options={
                    "require": ["exp"] if self.validate_expiry else [],
                    "verify_exp": self.validate_expiry,
                    "verify_nbf": True,
                    "verify_iat": False,  # RFC 7519 §4.1.6: it informs
                    "verify_aud": bool(self.audiences),
                    "verify_iss": bool(self.issuers),
                },
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("it has expired") from None
        except jwt.ImmatureSignatureError:
            raise TokenRefused("it is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise TokenRefused("it is for another audience") from None
        except jwt.InvalidIssuerError:
            raise TokenRefused("it is from another issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefused(f"the claim {error.claim} is missing") from None
        except jwt.InvalidSignatureError:
            raise TokenRefused("its signature is wrong") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise TokenRefused("it is malformed") from None
        return claims


def _header(token: str) -> Mapping[str, object]:
    if len(token) > MAXIMUM_TOKEN_CHARS:
        raise TokenRefused("it is too long")
    if token.count(".") != 2 or len(token.partition(".")[0]) > MAXIMUM_HEADER_CHARS:
        raise TokenRefused("it is malformed")
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefused("it is malformed") from None


def _satisfies(value: object, wanted: object | None) -> bool:
    if wanted is None:
        return value is not None
    allowed: Sequence[object] = wanted if isinstance(wanted, list | tuple) else [wanted]
    present: Sequence[object] = value if isinstance(value, list) else [value]
    # type(): to Python, true is 1
    return any(type(one) is type(other) and one == other for one in present for other in allowed)
