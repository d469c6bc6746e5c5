"""SAML assertions as user identity: what their signature covers and nothing else, times, audience, who is confirmed."""

from __future__ import annotations

import asyncio
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

pytest.importorskip("signxml", reason="needs the extra saml")

from lxml import etree
from signxml import DigestAlgorithm, SignatureMethod, XMLSigner

from harmony.dimse import associate
from harmony.gateway.app import Gateway
from harmony.gateway.authenticators import EvidenceRefused
from harmony.gateway.config import ConfigError
from harmony.gateway.loading import load
from harmony.gateway.principal import Failure, Principal
from harmony.gateway.saml import AssertionRules, read_certificates
from harmony.ul.errors import AssociationRejected
from harmony.ul.items import UserIdentityRQ

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
HERE = "urn:example:harmony"
IDP = "https://idp.example.test"
SAML = "urn:oasis:names:tc:SAML:2.0:assertion"
BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"

CONDITIONS = (
    '<saml:Conditions NotBefore="2026-05-01T11:55:00Z" NotOnOrAfter="2026-05-01T12:05:00Z">'
    f"<saml:AudienceRestriction><saml:Audience>{HERE}</saml:Audience></saml:AudienceRestriction>"
    "</saml:Conditions>"
)
CONFIRMATION = f'<saml:SubjectConfirmation Method="{BEARER}"/>'


def assertion(
    *,
    name: str = "alice",
    conditions: str = CONDITIONS,
    confirmation: str = CONFIRMATION,
    subject: str | None = None,
    more: str = "",
) -> str:
    """SAML 2.0 core §2.3.3, as an identity provider writes it."""
    subject = subject or f"<saml:NameID>{name}</saml:NameID>"
    return (
        f'<saml:Assertion xmlns:saml="{SAML}" Version="2.0" ID="_a75adf55"'
        ' IssueInstant="2026-05-01T11:59:00Z">'
        f"<saml:Issuer>{IDP}</saml:Issuer>{more}"
        f"<saml:Subject>{subject}{confirmation}</saml:Subject>{conditions}</saml:Assertion>"
    )


class Provider:
    """An identity provider: a key, and the certificate for it."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *, valid_days: int = 36500
    ) -> None:
        self.key = key
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp")])
        begins = datetime(2020, 1, 1, tzinfo=UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(begins)
            .not_valid_after(begins + timedelta(days=valid_days))
            .sign(key, hashes.SHA256())
        )

    def sign(self, document: str, **options: object) -> bytes:
        """Enveloped, by the ID, with its certificate: as SAML 2.0 core §5.4 has it."""
        kind = "RSA" if isinstance(self.key, rsa.RSAPrivateKey) else "ECDSA"
        method = options.pop("method", SignatureMethod[f"{kind}_SHA256"])
        signer = XMLSigner(signature_algorithm=method, c14n_algorithm=EXCLUSIVE, **options)
        root = etree.fromstring(document)
        signed = signer.sign(
            root, key=self.key, cert=[self.certificate], reference_uri=root.get("ID"), id_attribute="ID"
        )
        return etree.tostring(signed)


EXCLUSIVE = "http://www.w3.org/2001/10/xml-exc-c14n#"
IDENTITY_PROVIDER = Provider(ec.generate_private_key(ec.SECP256R1()))
RSA_PROVIDER = Provider(rsa.generate_private_key(65537, 2048))
STRANGER = Provider(ec.generate_private_key(ec.SECP256R1()))


def rules(*providers: Provider, **options: object) -> AssertionRules:
    certificates = [each.certificate for each in providers or (IDENTITY_PROVIDER,)]
    return AssertionRules(certificates, (HERE,), now=lambda: NOW, **options)


def refused(document: bytes, asked: AssertionRules | None = None) -> str:
    with pytest.raises(EvidenceRefused) as caught:
        (asked or rules()).check(document)
    return str(caught.value).removeprefix("the assertion is refused: ")


@pytest.mark.parametrize("provider", [IDENTITY_PROVIDER, RSA_PROVIDER], ids=["ec", "rsa"])
def test_an_assertion(provider) -> None:
    assert rules(provider, issuers=(IDP,)).check(provider.sign(assertion())) == ("alice", b"")


def test_two_keys_while_one_takes_the_place_of_the_other() -> None:
    both = rules(RSA_PROVIDER, IDENTITY_PROVIDER)
    for provider in (RSA_PROVIDER, IDENTITY_PROVIDER):
        assert both.check(provider.sign(assertion())) == ("alice", b"")


# The signature


def test_a_key_that_nobody_knows() -> None:
    """Its certificate is in the document, as that of the identity provider would be."""
    assert refused(STRANGER.sign(assertion())) == "its signature is wrong"


def test_no_signature() -> None:
    assert refused(assertion().encode()) == "its signature is wrong"


def test_altered() -> None:
    signed = IDENTITY_PROVIDER.sign(assertion())
    for old, new in (
        (b"alice", b"admin"),
        (b"12:05:00Z", b"23:05:00Z"),
        (HERE.encode(), b"urn:example:other"),
    ):
        assert old in signed
        assert refused(signed.replace(old, new, 1)) == "its signature is wrong"


def test_the_certificate_has_expired() -> None:
    provider = Provider(ec.generate_private_key(ec.SECP256R1()), valid_days=30)
    assert "has expired" in refused(provider.sign(assertion()), rules(provider))


@pytest.mark.parametrize(
    ("method", "digest"),
    [
        (SignatureMethod.RSA_SHA1, DigestAlgorithm.SHA256),
        (SignatureMethod.RSA_SHA256, DigestAlgorithm.SHA1),
    ],
)
def test_algorithms_that_are_too_weak(monkeypatch, method, digest) -> None:
    monkeypatch.setattr(XMLSigner, "check_deprecated_methods", lambda self: None)
    signed = RSA_PROVIDER.sign(assertion(), method=method, digest_algorithm=digest)
    assert refused(signed, rules(RSA_PROVIDER)) == "its signature is wrong"


def test_hmac_with_the_certificate_as_secret() -> None:
    """An asymmetric key is never a secret."""
    signer = XMLSigner(signature_algorithm=SignatureMethod.HMAC_SHA256, c14n_algorithm=EXCLUSIVE)
    root = etree.fromstring(assertion(name="admin"))
    secret = IDENTITY_PROVIDER.certificate.public_bytes(Encoding.PEM)
    signed = signer.sign(root, key=secret, reference_uri="_a75adf55", id_attribute="ID")
    assert refused(etree.tostring(signed)) == "its signature is wrong"


def _split(signed: bytes) -> tuple[etree._Element, etree._Element]:
    """The assertion, and its signature taken out of it."""
    root = etree.fromstring(signed)
    signature = root.find("{http://www.w3.org/2000/09/xmldsig#}Signature")
    root.remove(signature)
    return root, signature


def _evil(identifier: str = "_evil") -> etree._Element:
    return etree.fromstring(assertion(name="admin").replace("_a75adf55", identifier))


def _wrap_as_child(root, signature):
    evil = _evil()
    root.append(signature)
    evil.append(root)
    return evil


def _wrap_beside(root, signature):
    evil = _evil()
    evil.append(signature)
    evil.append(root)
    return evil


def _wrap_in_the_signature(root, signature):
    evil = _evil()
    holder = etree.SubElement(signature, "{http://www.w3.org/2000/09/xmldsig#}Object")
    holder.append(root)
    evil.append(signature)
    return evil


def _wrap_with_the_same_id(root, signature):
    evil = _evil("_a75adf55")
    evil.append(signature)
    evil.append(root)
    return evil


def _wrap_in_the_subject(root, signature):
    evil = _evil()
    root.append(signature)
    evil.find(f"{{{SAML}}}Subject").append(root)
    return evil


def _wrap_in_a_response(root, signature):
    response = etree.Element("{urn:oasis:names:tc:SAML:2.0:protocol}Response", ID="_r")
    root.append(signature)
    response.append(_evil())
    response.append(root)
    return response


def _wrap_second_signature(root, signature):
    evil = etree.fromstring(STRANGER.sign(assertion(name="admin").replace("_a75adf55", "_evil")))
    evil.append(signature)
    evil.append(root)
    return evil


@pytest.mark.parametrize(
    "wrap",
    [
        _wrap_as_child,
        _wrap_beside,
        _wrap_in_the_signature,
        _wrap_with_the_same_id,
        _wrap_in_the_subject,
        _wrap_in_a_response,
        _wrap_second_signature,
    ],
)
def test_a_signature_that_is_wrapped(wrap) -> None:
    """A genuine assertion goes along, and another one is to be read."""
    wrapped = etree.tostring(wrap(*_split(IDENTITY_PROVIDER.sign(assertion()))))
    assert b"admin" in wrapped
    why = refused(wrapped)
    assert why.startswith(("its signature is", "it is not an assertion"))


def test_a_comment_does_not_shorten_a_name() -> None:
    """A comment is not signed: added by whoever presents it, the name is read as it was signed."""
    signed = IDENTITY_PROVIDER.sign(assertion(name="admin.example"))
    commented = signed.replace(b"admin.example", b"admin<!-- -->.example")
    assert rules().check(commented) == ("admin.example", b"")


def test_a_name_that_is_not_text() -> None:
    name = f'<saml:NameID xmlns:saml="{SAML}">ad<b/>min</saml:NameID>'
    assert refused(IDENTITY_PROVIDER.sign(assertion(subject=name))) == "it names nobody"


# XML


def test_entities_and_document_types(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root")
    bomb = (
        '<!ENTITY a "'
        + "x" * 1000
        + '">'
        + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    )
    for declaration, used in (
        (f'<!ENTITY e SYSTEM "file://{secret}">', "&e;"),
        ('<!ENTITY e SYSTEM "http://127.0.0.1:9/e">', "&e;"),
        (bomb, "&j;"),
        ("", "alice"),
    ):
        text = assertion(name="alice").replace("alice", used)
        assert refused(f"<!DOCTYPE a [{declaration}]>{text}".encode()) == "it has a document type"
        # in an encoding in which nobody looked for it
        assert refused(f"<!DOCTYPE a [{declaration}]>{text}".encode("utf-16")) == "it is malformed"


def test_an_external_reference_is_not_fetched() -> None:
    signed = IDENTITY_PROVIDER.sign(assertion())
    elsewhere = signed.replace(b'URI="#_a75adf55"', b'URI="http://127.0.0.1:9/a"')
    assert elsewhere != signed
    assert refused(elsewhere) == "its signature is wrong"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\0",
        b"a SAML assertion",
        b"<a/>",
        b"<" * 1000,
        b"<a>" * 5000,
        assertion().replace('Version="2.0"', 'Version="1.1"').encode(),
        assertion().replace(' ID="_a75adf55"', "").encode(),
        assertion().encode()[:-5],
        assertion().encode().replace(b"alice", b"\xff"),
    ],
)
def test_garbage(document) -> None:
    assert refused(document) in ("it is malformed", "it is not an assertion of SAML 2.0")


# What it says


def conditions(attributes: str, inner: str | None = None) -> str:
    if inner is None:
        inner = f"<saml:AudienceRestriction><saml:Audience>{HERE}</saml:Audience></saml:AudienceRestriction>"
    return f"<saml:Conditions {attributes}>{inner}</saml:Conditions>"


TIMES = 'NotOnOrAfter="2026-05-01T12:05:00Z"'
OTHER = "<saml:AudienceRestriction><saml:Audience>urn:other</saml:Audience></saml:AudienceRestriction>"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"conditions": ""}, "it has 0 Conditions, expected one"),
        ({"conditions": CONDITIONS * 2}, "it has 2 Conditions, expected one"),
        ({"conditions": conditions("")}, "it has no end"),
        ({"conditions": conditions('NotOnOrAfter="2026-05-01T12:00:00Z"')}, "it has expired"),
        ({"conditions": conditions('NotOnOrAfter="2026-05-01T13:30:00+02:00"')}, "it has expired"),
        (
            {"conditions": conditions(f'NotBefore="2026-05-01T12:00:01.5Z" {TIMES}')},
            "it is not valid yet",
        ),
        ({"conditions": conditions('NotOnOrAfter="tomorrow"')}, "one of its times is malformed"),
        ({"conditions": conditions(TIMES, "")}, "it is for no particular audience"),
        ({"conditions": conditions(TIMES, OTHER)}, "it is for another audience"),
        (
            {"conditions": CONDITIONS.replace("</saml:Cond", OTHER + "</saml:Cond")},
            "it is for another audience",
        ),
        (
            {"conditions": CONDITIONS.replace("</saml:Cond", "<saml:OneTimeUse/></saml:Cond")},
            "it may be used once only, which is not supported",
        ),
        (
            {"conditions": CONDITIONS.replace("</saml:Cond", "<saml:Condition/></saml:Cond")},
            "it has a condition that is not known",
        ),
        ({"name": ""}, "it names nobody"),
        ({"subject": "<saml:EncryptedID/>"}, "it has 0 NameID, expected one"),
        ({"confirmation": ""}, "its subject is not confirmed as a bearer, here and now"),
        (
            {"confirmation": CONFIRMATION.replace("bearer", "holder-of-key")},
            "its subject is not confirmed as a bearer, here and now",
        ),
    ],
)
def test_what_an_assertion_has_to_say(given, why) -> None:
    assert refused(IDENTITY_PROVIDER.sign(assertion(**given))) == why


@pytest.mark.parametrize(
    ("data", "good"),
    [
        ("", True),
        (f'Recipient="{HERE}"', True),
        ('Recipient="https://other.example.test"', False),
        ('NotOnOrAfter="2026-05-01T12:01:00Z"', True),
        ('NotOnOrAfter="2026-05-01T11:59:00Z"', False),
        ('NotBefore="2026-05-01T12:01:00Z"', False),
        ('NotOnOrAfter="never"', False),
    ],
)
def test_how_a_subject_is_confirmed(data, good) -> None:
    confirmation = CONFIRMATION.replace(
        "/>", f"><saml:SubjectConfirmationData {data}/></saml:SubjectConfirmation>"
    )
    signed = IDENTITY_PROVIDER.sign(assertion(confirmation=confirmation))
    if good:
        assert rules().check(signed) == ("alice", b"")
    else:
        assert refused(signed) == "its subject is not confirmed as a bearer, here and now"


def test_another_issuer() -> None:
    signed = IDENTITY_PROVIDER.sign(assertion())
    assert refused(signed, rules(issuers=("https://other.example.test",))) == "it is from another issuer"


def test_clocks_may_differ_a_little() -> None:
    for times in ('NotOnOrAfter="2026-05-01T11:59:30Z"', f'NotBefore="2026-05-01T12:00:30Z" {TIMES}'):
        signed = IDENTITY_PROVIDER.sign(assertion(conditions=conditions(times)))
        assert rules(leeway_s=60).check(signed) == ("alice", b"")
        assert refused(signed, rules(leeway_s=20)) in ("it has expired", "it is not valid yet")


# Files


def test_certificates_that_cannot_be_used(tmp_path) -> None:
    path = tmp_path / "idp.pem"
    weak = Provider(rsa.generate_private_key(65537, 1024)).certificate.public_bytes(Encoding.PEM)
    for content in (b"", b"no certificate", weak, b"x" * 300_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must hold certificates in PEM, with RSA keys of 2048 bits"):
            read_certificates(path)
    both = [each.certificate for each in (IDENTITY_PROVIDER, RSA_PROVIDER)]
    path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in both))
    assert list(read_certificates(path)) == both


# A gateway

CURRENT = conditions('NotBefore="2026-01-01T00:00:00Z" NotOnOrAfter="2100-01-01T00:00:00Z"')


def write_config(folder, port: int, options: str):
    (folder / "idp.pem").write_bytes(IDENTITY_PROVIDER.certificate.public_bytes(Encoding.PEM))
    path = folder / "config.toml"
    path.write_text(f"""
        [proxy]
        id = "guarded"
        [storage.options]
        path = "{folder}/storage"
        [network.n.dicom]
        bind_address = "127.0.0.1"
        bind_port = {port}
        [pipelines.p]
        networks = ["n"]
        endpoints = ["scp"]
        [endpoints.scp]
        service = "dicom_scp"
        authentication = "idp"
        options = {{ local_aet = "SCP", min_free_bytes = 0 }}
        [authentications.idp]
        method = "saml"
        [authentications.idp.options]
        {options}
        """)
    return load(path, env={"EMPTY": ""})


async def test_associations(tmp_path, free_port, caplog) -> None:
    options = f"""
        idp_cert_path = "{tmp_path}/idp.pem"
        issuer = "{IDP}"
        audience = "{HERE}"
        allowed_subjects = ["alice", "bob"]
        max_failures = 1
    """
    gateway = Gateway(write_config(tmp_path, free_port, options))
    outcomes = []
    gateway.assembly.authentications.subscribe(outcomes.append)
    await gateway.start()

    async def call(kind: int, primary: bytes) -> object:
        wanted = UserIdentityRQ(kind, primary, positive_response_requested=True)
        try:
            async with associate("127.0.0.1", free_port, called_ae_title="SCP", user_identity=wanted) as scu:
                await scu.echo()
                answer = scu.association.agreed.peer.user_identity_ac
                (theirs,) = gateway.assembly.dicom[0].server.acceptor.associations
                return theirs.principal, answer.server_response
        except AssociationRejected as error:
            return error.result, error.source, error.reason

    try:
        good = IDENTITY_PROVIDER.sign(assertion(conditions=CURRENT))
        for bad in (
            STRANGER.sign(assertion(conditions=CURRENT)),
            IDENTITY_PROVIDER.sign(assertion(conditions=CURRENT, name="mallory")),
            IDENTITY_PROVIDER.sign(assertion()),
            good.replace(b"alice", b"bob", 1),
            b"x" * 60_000,
        ):
            assert await call(4, bad) == (1, 2, 1)
            assert outcomes[-1].failure is Failure.REFUSED
        for kind in (1, 2, 3, 5):
            assert await call(kind, good) == (1, 2, 1)
        assert await call(4, good) == (Principal("alice", "saml"), b"")
        assert (outcomes[-1].name, outcomes[-1].method, outcomes[-1].failure) == ("alice", "saml", None)
        assert "mallory" not in caplog.text
        assert "SignatureValue" not in caplog.text
    finally:
        await gateway.stop(1.0)


@pytest.mark.interop
async def test_dcmtk(tmp_path, free_port, require_peer, pydicom_files) -> None:
    storescu = require_peer("storescu")
    sample = next(one for one in pydicom_files if one.transfer_syntax_uid == "1.2.840.10008.1.2.1")
    options = f'idp_cert_path = "{tmp_path}/idp.pem"\naudience = "{HERE}"'
    gateway = Gateway(write_config(tmp_path, free_port, options))
    file = tmp_path / "assertion.xml"

    async def send(document: bytes) -> str:
        file.write_bytes(document)
        arguments = ("-v", "-R", "-aec", "SCP", "--saml", file, "-rsp", "127.0.0.1", free_port, sample.path)
        process = await asyncio.create_subprocess_exec(
            storescu, *map(str, arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(60):
            printed, _ = await process.communicate()
        return printed.decode(errors="replace")

    await gateway.start()
    try:
        good = assertion(conditions=CURRENT)
        assert "Association Accepted" in await send(IDENTITY_PROVIDER.sign(good))
        assert "Rejected Permanent" in await send(STRANGER.sign(good))
    finally:
        await gateway.stop(1.0)


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ("", "idp_cert_path", "is missing, must be set for method"),
        ('idp_cert_path = "{folder}/idp.pem"', "audience", "is missing, must be set for method"),
        (
            'idp_cert_path = "{folder}/idp.pem"\naudience = []',
            "audience",
            "is empty, must name what assertions for this gateway are for",
        ),
        (
            'idp_cert_path = "{folder}/idp.pem"\naudience = ["$EMPTY"]',
            "audience",
            "is empty, must be left out",
        ),
        ('idp_cert_path = "/none"\naudience = "a"', "idp_cert_path", '"/none" cannot be read: No such file'),
        (
            'idp_cert_path = "{folder}/config.toml"\naudience = "a"',
            "idp_cert_path",
            "must hold certificates in PEM",
        ),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, options, key, message) -> None:
    with pytest.raises(ConfigError) as caught:
        write_config(tmp_path, 11112, options.format(folder=tmp_path))
    problem = next(each for each in caught.value.problems if each.key == key)
    assert problem.table == "authentications.idp.options"
    assert message in problem.message
