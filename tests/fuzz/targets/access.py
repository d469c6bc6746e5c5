"""Who comes in: PROXY and Forwarded headers, Authorization, JSON Web Tokens and sets of keys, SAML assertions."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from lxml import etree
from signxml import XMLSigner
from signxml.exceptions import SignXMLException

from harmony.gateway.address_range import AddressRange, address_of
from harmony.gateway.authenticators import EvidenceRefused
from harmony.gateway.config import Listener
from harmony.gateway.forwarded import trace
from harmony.gateway.json_web_token import FixedKey, TokenRefused, TokenRules, keys_of_set, secret_key
from harmony.gateway.saml import AssertionRules
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


KEY = ec.generate_private_key(ec.SECP256R1())
CERTIFICATE = (
    x509.CertificateBuilder()
    .subject_name(x509.Name([]))
    .issuer_name(x509.Name([]))
    .public_key(KEY.public_key())
    .serial_number(1)
    .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
    .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
    .sign(KEY, hashes.SHA256())
)
ASSERTIONS = AssertionRules(
    (CERTIFICATE,), ("urn:here",), ("urn:idp",), now=lambda: datetime(2026, 5, 1, 12, tzinfo=UTC)
)


@target(EvidenceRefused)
def saml_assertion(data: bytes) -> None:
    """As it comes, which is never good; and properly signed, by an identity provider with ideas of its own."""
    try:
        ASSERTIONS.check(data)
    except EvidenceRefused:
        pass
    else:
        raise AssertionError("taken without a signature")
    try:
        root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True))
        signer = XMLSigner(
            c14n_algorithm="http://www.w3.org/2001/10/xml-exc-c14n#", signature_algorithm="ecdsa-sha256"
        )
        signed = signer.sign(root, key=KEY, reference_uri=root.get("ID"), id_attribute="ID")
    except (SignXMLException, etree.LxmlError, ValueError, TypeError, AttributeError):
        return
    name, response = ASSERTIONS.check(etree.tostring(signed))
    assert name
    assert response == b""
