"""SAML assertions (PS3.7 §D.3.3.7, user identity type 4), checked: signature, times, audience, subject (SAML 2.0 core).

An assertion is the whole document, with its own signature (SAML 2.0 core §5.4): by the key of a configured certificate,
whatever certificates or keys it brings itself, with SHA-256 or better. Only what that signature covers, as it was
canonicalized, is read; that must be the assertion itself. A document type, an encoding other than UTF-8, a subject
that is encrypted, a condition that is not known: refused. Nothing is fetched.

Of subject confirmations `bearer` counts; its times are checked, and its recipient must be one of the audiences.
`OneTimeUse` is refused: several processes, or a restart, could not hold to it.

The only module that needs the extra `saml` (signxml, lxml and cryptography). Everything blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import Certificate, load_pem_x509_certificates
from lxml import etree
from signxml import DigestAlgorithm, SignatureConfiguration, SignatureMethod, XMLVerifier
from signxml.exceptions import InvalidCertificate, SignXMLException

from harmony.gateway.authenticators import EvidenceRefused

__all__ = ["AssertionRules", "read_certificates"]

MAXIMUM_PEM_BYTES: Final = 256 * 1024
MINIMUM_RSA_BITS: Final = 2048

SAML: Final = "{urn:oasis:names:tc:SAML:2.0:assertion}"
BEARER: Final = "urn:oasis:names:tc:SAML:2.0:cm:bearer"

CONFIGURATION: Final = SignatureConfiguration(
    location="./",  # a child of the assertion, nowhere else
    expect_references=1,
    signature_methods=frozenset(
        {
            *(SignatureMethod.RSA_SHA256, SignatureMethod.RSA_SHA384, SignatureMethod.RSA_SHA512),
            *(SignatureMethod.ECDSA_SHA256, SignatureMethod.ECDSA_SHA384, SignatureMethod.ECDSA_SHA512),
            *(SignatureMethod.SHA256_RSA_MGF1, SignatureMethod.SHA384_RSA_MGF1),
            SignatureMethod.SHA512_RSA_MGF1,
        }
    ),
    digest_algorithms=frozenset({DigestAlgorithm.SHA256, DigestAlgorithm.SHA384, DigestAlgorithm.SHA512}),
)

_UNVERIFIED = (SignXMLException, etree.LxmlError, ValueError, TypeError, LookupError, AttributeError)
"""What verifying raises for documents that are none."""


def read_certificates(path: Path) -> tuple[Certificate, ...]:
    """Those of a PEM file: an identity provider has two while it changes its key. Raises OSError and ValueError."""
    with path.open("rb") as file:
        pem = file.read(MAXIMUM_PEM_BYTES + 1)
    try:
        certificates = load_pem_x509_certificates(pem) if len(pem) <= MAXIMUM_PEM_BYTES else []
    except ValueError:
        certificates = []
    for certificate in certificates:
        key = certificate.public_key()
        strong = isinstance(key, rsa.RSAPublicKey) and key.key_size >= MINIMUM_RSA_BITS
        if not (strong or isinstance(key, ec.EllipticCurvePublicKey)):
            certificates = []
            break
    if not certificates:
        raise ValueError("must hold certificates in PEM, with RSA keys of 2048 bits or more, or EC keys")
    return tuple(certificates)


@dataclass(frozen=True, slots=True)
class AssertionRules:
    """What an assertion has to say."""

    certificates: Sequence[Certificate] = field(repr=False)
    audiences: Sequence[str]
    issuers: Sequence[str] = ()
    """Empty: whoever has the key."""
    leeway_s: float = 0.0
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC), repr=False)

    def check(self, document: bytes) -> tuple[str, bytes]:
        """The NameID of its subject, and no answer to it. Raises EvidenceRefused."""
        try:
            return self._subject(self._verified(document)), b""
        except _Refused as error:
            raise EvidenceRefused(f"the assertion is refused: {error}") from error.__cause__

    # The signature

    def _verified(self, document: bytes) -> etree._Element:
        """The assertion, made of what has been signed and nothing else."""
        sent = _parse(document)
        expired = False
        for certificate in self.certificates:
            try:
                result = XMLVerifier().verify(
                    document,
                    x509_cert=certificate,
                    parser=_parser(),
                    id_attribute="ID",
                    expect_config=CONFIGURATION,
                )
            except InvalidCertificate:
                expired = True
            except _UNVERIFIED:
                pass
            else:
                assert not isinstance(result, list)
                signed = result.signed_xml
                if signed is None or signed.tag != sent.tag or signed.get("ID") != sent.get("ID"):
                    raise _Refused("its signature is that of something else")
                return signed
        if expired:
            raise _Refused("its signature is wrong, or the certificate to check it with has expired")
        raise _Refused("its signature is wrong")

    # What it says

    def _subject(self, assertion: etree._Element) -> str:
        issuer = _text(assertion.find(SAML + "Issuer"))
        if self.issuers and issuer not in self.issuers:
            raise _Refused("it is from another issuer")
        self._check_conditions(_only(assertion, "Conditions"))
        subject = _only(assertion, "Subject")
        if not any(map(self._confirms, subject.findall(SAML + "SubjectConfirmation"))):
            raise _Refused("its subject is not confirmed as a bearer, here and now")
        name = _text(_only(subject, "NameID"))
        if not name:
            raise _Refused("it names nobody")
        return name

    def _check_conditions(self, conditions: etree._Element) -> None:
        if conditions.get("NotOnOrAfter") is None:
            raise _Refused("it has no end")
        self._check_times(conditions)
        restrictions = conditions.findall(SAML + "AudienceRestriction")
        if not restrictions:
            raise _Refused("it is for no particular audience")
        for restriction in restrictions:  # SAML 2.0 core §2.5.1.4: each of them
            audiences = map(_text, restriction.findall(SAML + "Audience"))
            if not set(audiences) & set(self.audiences):
                raise _Refused("it is for another audience")
        for condition in conditions.iterchildren(tag=etree.Element):
            if condition.tag == SAML + "OneTimeUse":
                raise _Refused("it may be used once only, which is not supported")
            if condition.tag not in (SAML + "AudienceRestriction", SAML + "ProxyRestriction"):
                raise _Refused("it has a condition that is not known")

    def _confirms(self, confirmation: etree._Element) -> bool:
        if confirmation.get("Method") != BEARER:
            return False
        data = confirmation.find(SAML + "SubjectConfirmationData")
        if data is None:
            return True
        try:
            self._check_times(data)
        except _Refused:
            return False
        return data.get("Recipient", self.audiences[0]) in self.audiences

    def _check_times(self, element: etree._Element) -> None:
        now, leeway = self.now(), timedelta(seconds=self.leeway_s)
        begins, ends = _time(element.get("NotBefore")), _time(element.get("NotOnOrAfter"))
        if begins is not None and now + leeway < begins:
            raise _Refused("it is not valid yet")
        if ends is not None and now - leeway >= ends:
            raise _Refused("it has expired")


class _Refused(Exception):
    """Says why, without anything that is in the assertion."""


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        encoding="utf-8", resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False
    )


def _parse(document: bytes) -> etree._Element:
    if b"<!DOCTYPE" in document:
        raise _Refused("it has a document type")
    try:
        root = etree.fromstring(document, parser=_parser())
    except (etree.LxmlError, ValueError):
        raise _Refused("it is malformed") from None
    if root.tag != SAML + "Assertion" or root.get("Version") != "2.0" or not root.get("ID"):
        raise _Refused("it is not an assertion of SAML 2.0")
    return root


def _only(parent: etree._Element, name: str) -> etree._Element:
    found: list[Any] = parent.findall(SAML + name)
    if len(found) != 1:
        raise _Refused(f"it has {len(found)} {name}, expected one")
    element: etree._Element = found[0]
    return element


def _text(element: etree._Element | None) -> str:
    """Of an element that holds nothing else, comments neither: they would hide a part of it."""
    if element is None or len(element):
        return ""
    return (element.text or "").strip()


def _time(text: str | None) -> datetime | None:
    """xs:dateTime in UTC (SAML 2.0 core §1.3.3)."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text.strip())
        return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise _Refused("one of its times is malformed") from None
