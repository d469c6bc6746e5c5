"""What an `[authentications]` table has to say about those who want in: one `Authenticator` per method.

An authenticator takes `Evidence` from an HTTP request, or from an association: its user identity (PS3.7 §D.3.3.7) or
certificate. Then it says whose it is. It keeps no count of failures and answers nobody: `Gate`
(`harmony.gateway.authentication`) does the one, `http_authentication` and `dicom_authentication` the other.

| method | HTTP | association |
|---|---|---|
| basic | Basic | user identity type 2; type 1 where the name is enough |
| bearer | Bearer | type 5 |
| api_key | a header | – |
| jwt | Bearer | type 5 |
| mutual_tls | client certificate | client certificate |
| kerberos, saml | – | types 3 and 4 (`harmony.gateway.identity_authenticator`) |

Secrets are compared by their
keyed digests, so that neither content nor length shows in the time it takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from harmony.gateway.jwks import KeysUnavailable
from harmony.gateway.passwords import PasswordHash, prepared
from harmony.gateway.principal import Principal
from harmony.http import Request
from harmony.http.authorization import MalformedCredentials, basic_credentials, bearer_token, challenge
from harmony.ul.items import UserIdentityRQ

if TYPE_CHECKING:
    from harmony.gateway.json_web_token import KeySource, TokenRules

Certificate = Mapping[str, Any]
"""As `ssl.SSLSocket.getpeercert()` has it."""

__all__ = [
    "ApiKeyAuthenticator",
    "Authenticator",
    "BearerAuthenticator",
    "Evidence",
    "EvidenceRefused",
    "JwtAuthenticator",
    "MutualTlsAuthenticator",
    "PasswordAuthenticator",
    "other_type",
]

REALM: Final = "Harmony"

REMEMBERED: Final = 1024
"""Credentials that have been verified, so that not every request costs a derivation."""
REMEMBERED_S: Final = 60.0

_ALTERNATIVES: Final = ("DNS", "email", "URI", "IP Address")
"""Kinds of subject alternative names, in OpenSSL's words."""

NAME_CHARS: Final = 256
"""Of the subject of a token that become the name of a principal."""

JSON_WEB_TOKEN: Final = 5
"""User identity type (PS3.7 Table D.3-14)."""


class EvidenceRefused(Exception):
    """It proves nothing; says why, for the log."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What somebody presents."""

    name: str
    """Who they claim to be; "" when that does not show before it has been checked."""
    secret: str = field(repr=False)
    name_only: bool = False
    """A user name without a passcode (user identity type 1)."""
    certificate: Certificate | None = field(default=None, repr=False)
    """Verified by TLS."""
    field: bytes = field(default=b"", repr=False)
    """The primary field of a user identity that is no text."""


class Authenticator(Protocol):
    """Who is asked about credentials. One object per table, for all who name it."""

    method: str

    guessable: bool
    """Whether trying often enough could succeed, so that failures are to be counted."""

    header: str
    """The request header that the credentials are in, lower case; "" for none."""

    forwardable: bool
    """Whether that header may be passed on to whoever is behind the gateway."""

    def from_request(self, request: Request) -> Evidence | None:
        """None: the request brings none. Raises MalformedCredentials."""

    def from_association(
        self, identity: UserIdentityRQ | None, certificate: Certificate | None
    ) -> Evidence | None:
        """None: the request brings none. Raises MalformedCredentials, and EvidenceRefused for an identity of a type
        that is not for this method."""

    async def verify(self, evidence: Evidence) -> Principal:
        """Raises EvidenceRefused, and KeysUnavailable (`harmony.gateway.jwks`)."""

    def challenge(self, *, presented: bool) -> str | None:
        """For WWW-Authenticate; None: nothing that a request could bring would help. presented: there was evidence,
        which was not good."""

    async def aclose(self) -> None:
        """Give up what is under way."""


class PasswordAuthenticator:
    """User names with their passwords, as text or hashed."""

    method = "basic"
    guessable = True
    header = "authorization"
    forwardable = False

    def __init__(
        self,
        users: Mapping[str, str | PasswordHash],
        executor: Executor,
        *,
        name_is_enough: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """executor: where hashes are derived. name_is_enough: for associations (PS3.15 B.4)."""
        self._users = {
            prepared(name): password if isinstance(password, PasswordHash) else prepared(password)
            for name, password in users.items()
        }
        self._executor = executor
        self._name_is_enough = name_is_enough
        hashed = [password for password in self._users.values() if isinstance(password, PasswordHash)]
        self._stranger: PasswordHash | bytes = hashed[0] if hashed else secrets.token_bytes(32)
        """What the password of a name that nobody has is compared with, to take as long as that of one that exists."""
        self._remembered = _Remembered(clock)

    def from_request(self, request: Request) -> Evidence | None:
        credentials = basic_credentials(request.headers)
        return Evidence(*credentials) if credentials is not None else None

    def from_association(
        self, identity: UserIdentityRQ | None, certificate: Certificate | None
    ) -> Evidence | None:
        if identity is None:
            return None
        match identity.user_identity_type:
            case 1 if self._name_is_enough:  # a user name
                return Evidence(_text(identity.primary_field), "", name_only=True)
            case 2:  # with a passcode
                return Evidence(_text(identity.primary_field), _text(identity.secondary_field))
        raise other_type(identity)

    async def verify(self, evidence: Evidence) -> Principal:
        name = prepared(evidence.name)
        known = self._users.get(name)
        principal = Principal(name.decode("utf-8", "replace"), self.method)
        if evidence.name_only:
            if known is None:
                raise EvidenceRefused("the user is not known")
            return principal
        expected = known if known is not None else self._stranger
        presented = prepared(evidence.secret)
        if isinstance(expected, bytes):
            right = _same(expected, presented)
        elif self._remembered.knows(name, presented):
            right = True
        else:
            loop = asyncio.get_running_loop()
            try:
                deriving = loop.run_in_executor(self._executor, expected.verify, presented)
            except RuntimeError as error:  # it has been shut down
                raise KeysUnavailable("the gateway stops") from error
            right = await deriving
            if right and known is not None:
                self._remembered.add(name, presented)
        if not right or known is None:
            raise EvidenceRefused("user name or password is wrong")
        return principal

    def challenge(self, *, presented: bool) -> str:
        return challenge("Basic", realm=REALM, charset="UTF-8")

    async def aclose(self) -> None:
        pass


class BearerAuthenticator:
    """One token that all who may enter have."""

    method = "bearer"
    guessable = True
    header = "authorization"
    forwardable = False

    def __init__(self, name: str, token: Callable[[], str]) -> None:
        """token: that of now."""
        self._principal = Principal(name, self.method)
        self._token = token

    def from_request(self, request: Request) -> Evidence | None:
        return _bearer(request)

    def from_association(
        self, identity: UserIdentityRQ | None, certificate: Certificate | None
    ) -> Evidence | None:
        return _token(identity)

    async def verify(self, evidence: Evidence) -> Principal:
        if not _same(self._token().encode("utf-8"), evidence.secret.encode("utf-8", "surrogatepass")):
            raise EvidenceRefused("the token is wrong")
        return self._principal

    def challenge(self, *, presented: bool) -> str:
        return _bearer_challenge(presented)

    async def aclose(self) -> None:
        pass


class ApiKeyAuthenticator:
    """One key that all who may enter have, in a header of its own."""

    method = "api_key"
    guessable = True
    forwardable = False

    def __init__(self, name: str, key: str, *, header: str) -> None:
        self._principal = Principal(name, self.method)
        self._key = key.encode("utf-8")
        self.header = header.lower()
        self._shown = header

    def from_request(self, request: Request) -> Evidence | None:
        values = request.headers.get_all(self.header)
        if len(values) > 1:
            raise MalformedCredentials(f"more than one header {self._shown}")
        return Evidence("", values[0]) if values else None

    def from_association(
        self, identity: UserIdentityRQ | None, certificate: Certificate | None
    ) -> Evidence | None:
        if identity is not None:
            raise other_type(identity)
        return None

    async def verify(self, evidence: Evidence) -> Principal:
        if not _same(self._key, evidence.secret.encode("utf-8")):
            raise EvidenceRefused("the key is wrong")
        return self._principal

    def challenge(self, *, presented: bool) -> str:
        # No registered scheme, but RFC 9110 §15.5.2 wants one in a 401.
        return challenge("ApiKey", realm=REALM, header=self._shown)

    async def aclose(self) -> None:
        pass


class JwtAuthenticator:
    """JSON Web Tokens that somebody else has signed. They cannot be guessed, and go on to whoever is behind."""

    method = "jwt"
    guessable = False
    header = "authorization"
    forwardable = True

    def __init__(self, name: str, rules: TokenRules, source: KeySource) -> None:
        """name: of a principal whose token has no subject."""
        self._name = name
        self._rules = rules
        self._source = source

    def from_request(self, request: Request) -> Evidence | None:
        return _bearer(request)

    def from_association(
        self, identity: UserIdentityRQ | None, certificate: Certificate | None
    ) -> Evidence | None:
        return _token(identity)

    async def verify(self, evidence: Evidence) -> Principal:
        from harmony.gateway.json_web_token import TokenRefused

        try:
            claims = await self._rules.check(evidence.secret, self._source)
        except TokenRefused as error:
            raise EvidenceRefused(f"the token is refused: {error}") from error
        subject = claims.get("sub")
        name = subject[:NAME_CHARS] if isinstance(subject, str) and subject else self._name
        return Principal(name, self.method)

    def challenge(self, *, presented: bool) -> str:
        return _bearer_challenge(presented)

    async def aclose(self) -> None:
        close = getattr(self._source, "aclose", None)  # of those that fetch keys
        if close is not None:
            await close()


class MutualTlsAuthenticator:
    """Certificates that a listener has verified: all of its CA, or only some."""

    method = "mutual_tls"
    guessable = False
    header = ""
    forwardable = True

    def __init__(self, allowed_subjects: Collection[str] = ()) -> None:
        """allowed_subjects: common names or subject alternative names; empty: all."""
        self._allowed = frozenset(allowed_subjects)

    def from_request(self, request: Request) -> Evidence | None:
        return _certificate(request.client_certificate)

    def from_association(
        self, identity: UserIdentityRQ | None, certificate: Certificate | None
    ) -> Evidence | None:
        return _certificate(certificate)

    async def verify(self, evidence: Evidence) -> Principal:
        assert evidence.certificate is not None
        names = _names(evidence.certificate)
        if not self._allowed:
            return Principal(names[0] if names else "", self.method)
        for name in names:
            if name in self._allowed:
                return Principal(name, self.method)
        raise EvidenceRefused("the certificate is for nobody who is allowed")

    def challenge(self, *, presented: bool) -> None:
        return None

    async def aclose(self) -> None:
        pass


def _certificate(certificate: Certificate | None) -> Evidence | None:
    if not certificate:
        return None
    names = _names(certificate)
    return Evidence(names[0] if names else "", "", certificate=certificate)


def _names(certificate: Certificate) -> list[str]:
    """Common names first, then the alternatives."""
    names = [value for each in certificate.get("subject", ()) for kind, value in each if kind == "commonName"]
    alternatives = certificate.get("subjectAltName", ())
    return [*names, *(value for kind, value in alternatives if kind in _ALTERNATIVES)]


class _Remembered:
    """Credentials that were right a moment ago, as keyed digests."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def knows(self, name: bytes, password: bytes) -> bool:
        return self._until.get(_digest(name, password), 0.0) > self._clock()

    def add(self, name: bytes, password: bytes) -> None:
        digest = _digest(name, password)
        self._until[digest] = self._clock() + REMEMBERED_S
        self._until.move_to_end(digest)
        while len(self._until) > REMEMBERED:
            self._until.popitem(last=False)


_KEY: Final = secrets.token_bytes(32)
"""Of this process, for digests."""


def _digest(*parts: bytes) -> bytes:
    lengths = b"".join(len(part).to_bytes(8, "big") for part in parts)
    return hmac.digest(_KEY, lengths + b"".join(parts), hashlib.sha256)


def _same(expected: bytes, presented: bytes) -> bool:
    return hmac.compare_digest(_digest(expected), _digest(presented))


def _bearer(request: Request) -> Evidence | None:
    token = bearer_token(request.headers)
    return Evidence("", token) if token is not None else None


def _token(identity: UserIdentityRQ | None) -> Evidence | None:
    if identity is None:
        return None
    if identity.user_identity_type != JSON_WEB_TOKEN:
        raise other_type(identity)
    return Evidence("", _text(identity.primary_field).strip())


def other_type(identity: UserIdentityRQ) -> EvidenceRefused:
    """For a user identity that is not for a method."""
    return EvidenceRefused(f"user identity type {identity.user_identity_type} is not accepted here")


def _text(field: bytes) -> str:
    """PS3.7 Table D.3-14: UTF-8."""
    try:
        return field.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedCredentials("not UTF-8") from None


def _bearer_challenge(presented: bool) -> str:
    """RFC 6750 §3: no error code for a request without a token."""
    if presented:
        return challenge("Bearer", realm=REALM, error="invalid_token")
    return challenge("Bearer", realm=REALM)
