"""Who comes in: PROXY headers, Forwarded and X-Forwarded-For, Authorization, JSON Web Tokens and sets of keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

from harmony.gateway.address_range import AddressRange, address_of
from harmony.gateway.config import Listener
from harmony.gateway.forwarded import trace
from harmony.gateway.json_web_token import FixedKey, TokenRefused, TokenRules, keys_of_set, secret_key
from harmony.http import Request
from harmony.http.authorization import MalformedCredentials, basic_credentials, bearer_token
from harmony.http.headers import Headers
from harmony.ul.proxy_protocol import MAXIMUM_BYTES, ProxyHeader, ProxyProtocolError
from tests.fuzz.target import pieces, run, target


@target()
def proxy_header(data: bytes) -> None:
    """Any split gives the same address and the same end of the header, or is refused."""

    def read(parts: Iterable[bytes]) -> tuple[object, ...]:
        header, taken = ProxyHeader(), 0
        try:
            for piece in parts:
                used = header.receive(piece)
                assert 0 <= used <= len(piece)
                taken += used
                if header.complete:
                    break
        except ProxyProtocolError:
            return ("refused",)
        assert taken <= MAXIMUM_BYTES
        return header.complete, header.source, taken

    assert read([data]) == read(pieces(data))


@target()
def forwarded(data: bytes) -> None:
    """A field on each line: the client is an address, or nobody."""
    first, *lines = data.decode("latin-1").split("\n")
    name = "Forwarded" if first.startswith("F") else "X-Forwarded-For"
    trusted = AddressRange("192.0.2.0/24")
    listener = Listener("127.0.0.1", 80, trusted_proxies=(trusted,), forwarded_header=name)
    names = (name, name, "X-Forwarded-Proto", "X-Forwarded-Host")
    try:
        headers = Headers(zip(names, lines, strict=False))
    except ValueError:
        return
    request = Request("GET", "/", headers=headers, client=("192.0.2.1", 1))
    trace(request, listener)
    assert request.client[0] == "" or address_of(request.client[0]) is not None
    assert request.scheme in ("http", "https")


@target(MalformedCredentials)
def authorization(data: bytes) -> None:
    """The value of an Authorization header."""
    try:
        headers = Headers([("Authorization", data.decode("latin-1"))])
    except ValueError:
        return
    credentials = basic_credentials(headers)
    assert credentials is None or ":" not in credentials[0]
    bearer_token(headers)


SECRET = "a secret of thirty-two characters"
RULES = TokenRules(issuers=("issuer",), audiences=("audience",), required_claims={"scope": ["read", 1]})


@target(TokenRefused)
def json_web_token(data: bytes) -> None:
    """A header and claims with a line end between them, properly signed, as an issuer with ideas of its own would."""
    header, _, claims = data.partition(b"\n")
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, claims))
    signature = hmac.digest(SECRET.encode(), signed, hashlib.sha256)
    token = (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()
    for rules in (RULES, TokenRules(validate_expiry=False)):
        run(rules.check(token, FixedKey(secret_key(SECRET))))


@target(ValueError)
def key_set(data: bytes) -> None:
    """A JWK Set."""
    for key in keys_of_set(data):
        assert key.algorithms
        repr(key)
