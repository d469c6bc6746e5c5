"""JSON Web Tokens of ours, with which a backend proves who we are (RFC 7519, RFC 7523 §3).

A token says who issued it, about whom, for whom, when, and when it ends; it is signed with our private key or with
HS256 and a secret. It is used for many requests, and another one is made when a quarter of its time is left, so that
what is on its way does not expire there.

Needs the extra `jwt` (PyJWT and cryptography), like `harmony.gateway.json_web_token`, which checks those of others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

__all__ = ["SigningKey", "TokenSigner"]

MINIMUM_RSA_BITS: Final = 2048
"""RFC 7518 §3.3."""

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class SigningKey:
    """A secret or private key, and the algorithms it can sign with, the usual one first."""

    def __init__(self, material: Any, algorithms: Sequence[str]) -> None:
        self.material = material  # what PyJWT takes: a key of cryptography, or bytes
        self.algorithms = tuple(algorithms)

    @classmethod
    def secret(cls, secret: str) -> SigningKey:
        return cls(secret.encode("utf-8"), ("HS256",))

    @classmethod
    def private(cls, pem: str) -> SigningKey:
        """Raises ValueError, which says what is expected and nothing of what came."""
        try:
            key = load_pem_private_key(pem.encode("utf-8"), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
            key = None
        match key:
            case rsa.RSAPrivateKey() if key.key_size >= MINIMUM_RSA_BITS:
                return cls(key, _RSA)
            case ec.EllipticCurvePrivateKey() if key.curve.name in _EC:
                return cls(key, (_EC[key.curve.name],))
            case ed25519.Ed25519PrivateKey():
                return cls(key, ("EdDSA",))
        raise ValueError(
            "must be a private key in PEM without a passphrase: RSA of 2048 bits or more, "
            "EC on P-256, P-384 or P-521, or Ed25519"
        )


class TokenSigner:
    """The token to show now."""

    def __init__(
        self,
        key: SigningKey,
        algorithm: str,
        claims: Mapping[str, object],
        *,
        lifetime_s: float,
        kid: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """claims: those that do not change. kid: the name of the key, for who has several to check with."""
        self._key = key
        self._algorithm = algorithm
        self._claims = claims
        self._lifetime_s = lifetime_s
        self._headers = {"kid": kid} if kid is not None else None
        self._clock = clock
        self._token = ""
        self._made_at = 0.0

    def token(self) -> str:
        now = self._clock()
        age_s = now - self._made_at
        if not self._token or not 0 <= age_s < 0.75 * self._lifetime_s:  # below 0: the clock was set back
            issued_at = int(now)
            claims = {**self._claims, "iat": issued_at, "exp": issued_at + int(self._lifetime_s)}
            self._token = jwt.encode(
                claims, self._key.material, algorithm=self._algorithm, headers=self._headers
            )
            self._made_at = now
        return self._token

    def __repr__(self) -> str:
        return f"<TokenSigner {self._algorithm}>"
