"""What is wrong, or weak, about who checks whom: a method where it cannot work, secrets that everybody can read.

A part of `harmony.gateway.checks`. Whether a table is complete in itself is `harmony.gateway.providers`' business.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from harmony.gateway.config import Authentication, Listener, LoadedConfig, Origin, Problem, Severity
from harmony.gateway.identity_authenticator import IDENTITY_TYPES
from harmony.gateway.options import AuthenticationOptions
from harmony.gateway.passwords import PREFIX
from harmony.gateway.providers import checks_tokens, of_middleware
from harmony.gateway.sources import show

__all__ = ["NOT_AVAILABLE", "unusable_at", "unusable_towards", "weaknesses"]

NOT_AVAILABLE = "is not available in this version"

READABLE = frozenset({"basic", "bearer", "api_key", "jwt", "saml"})
"""Methods whose credentials travel with each request, for anybody to read and use who sees it."""

USABLE_TOWARDS_HTTP = frozenset({"none", "basic", "bearer", "api_key", "jwt", "mutual_tls"})
USABLE_TOWARDS_DICOM = frozenset({"none", "basic", "bearer", "jwt", "mutual_tls"})

SHORTEST_SECRET_BYTES = 32
"""RFC 7518 §3.2, for HS256."""


def unusable_at(asked: Authentication | None, listeners: Sequence[Listener], *, dicom: bool = False) -> str:
    """Why nobody can be checked on these listeners with a table; "" when they can."""
    if asked is None:
        return ""
    named = f"is {show(asked.id)}, of method {asked.method}, which"
    if asked.method == "custom":
        return f"{named} {NOT_AVAILABLE}"
    if asked.method == "api_key" and dicom:
        return f"{named} has no user identity; must be basic, bearer, jwt, mutual_tls, kerberos or saml"
    if asked.method in IDENTITY_TYPES and not dicom:
        return f"{named} is for associations; must be basic, bearer, api_key, jwt or mutual_tls"
    options = asked.options
    if asked.method == "jwt" and isinstance(options, AuthenticationOptions) and not checks_tokens(options):
        return f"{named} has a private_key only, with which nobody can be checked; public_key_path is missing"
    for listener in listeners if asked.method == "mutual_tls" else ():
        if listener.tls is None or listener.tls.ca_cert_path is None:
            return f"{named} needs a certificate that {listener} does not ask for: it has no ca_cert_path"
    return ""


def unusable_towards(used: Authentication, service: str) -> str:
    """Why a backend cannot prove who we are with a table; "" when it can."""
    usable = USABLE_TOWARDS_DICOM if service == "dicom_scu" else USABLE_TOWARDS_HTTP
    if used.method in usable:
        options = used.options
        assert isinstance(options, AuthenticationOptions)
        if used.method == "basic" and options.password is None:
            return "is basic without username and password, which a backend needs"
        password = options.password.reveal() if options.password is not None else ""
        if used.method == "basic" and password.startswith(PREFIX):
            return "is basic with a hashed password, which cannot be shown to anybody"
        if used.method == "jwt" and options.private_key is None and not options.use_hs256:
            return "is jwt without private_key, which a backend needs to sign its tokens with"
        return ""
    if service == "dicom_scu" and used.method in USABLE_TOWARDS_HTTP:
        return (
            f"is {show(used.method)}, which has no user identity; must be basic, bearer or jwt towards a PACS"
        )
    return f"is {show(used.method)}, which {NOT_AVAILABLE}"


def weaknesses(config: LoadedConfig) -> Iterator[Problem]:
    """What works and should not be left so. Warnings."""
    checked: dict[Origin, Authentication] = {}
    for where, asked, listener in _checks(config):
        checked[asked.origin] = asked
        if asked.method in READABLE and listener.tls is None and not is_loopback(listener.host):
            message = f"is {show(asked.id)}, whose {asked.method} credentials everybody on the way can read: "
            message += f"{listener} has no TLS"
            yield where.problem("authentication", message, severity=Severity.WARNING)
    for asked in checked.values():
        yield from _weak_tokens(asked)
    for pipeline in config.pipelines.values():
        for backend in pipeline.backends:
            used, target = backend.authentication, backend.target
            if used is None or target is None or used.method not in READABLE:
                continue
            if not target.tls and target.protocol != "https" and not is_loopback(target.host):
                message = (
                    f"sends the credentials of {show(used.id)} to {target.host}:{target.port} without TLS"
                )
                yield backend.origin.problem("authentication", message, severity=Severity.WARNING)


def _checks(config: LoadedConfig) -> Iterator[tuple[Origin, Authentication, Listener]]:
    """Who is checked against what on which listener."""
    management = config.management
    network = config.networks.get(management.network or "")
    if management.enabled and management.authentication is not None and network is not None and network.http:
        yield management.origin, management.authentication, network.http
    for pipeline in config.pipelines.values():
        for endpoint in pipeline.endpoints:
            for listener in endpoint.listeners:
                if endpoint.authentication is not None:
                    yield endpoint.origin, endpoint.authentication, listener
                for middleware in pipeline.middleware:
                    asked = of_middleware(middleware)
                    if asked is not None and endpoint.service != "dicom_scp":
                        yield middleware.origin, asked, listener


def _weak_tokens(asked: Authentication) -> Iterator[Problem]:
    options = asked.options
    if asked.method != "jwt" or not isinstance(options, AuthenticationOptions):
        return
    if not (options.issuer or options.trusted_issuers or options.audience):
        message = "is missing, and so is audience: every token that the key has signed is accepted, whoever it is for"
        yield asked.origin.problem("issuer", message, severity=Severity.WARNING)
    if not options.validate_expiry:
        message = "is false: a token that got lost is good for ever"
        yield asked.origin.problem("validate_expiry", message, severity=Severity.WARNING)
    if options.use_hs256 and options.hs256_secret is not None:
        size = len(options.hs256_secret.reveal().encode("utf-8"))
        if size < SHORTEST_SECRET_BYTES:
            message = f"is shorter than {SHORTEST_SECRET_BYTES} bytes (RFC 7518 §3.2): it can be guessed from a token"
            yield asked.origin.problem("hs256_secret", message, severity=Severity.WARNING)
    if options.jwks_uri is not None:
        url = urlsplit(options.jwks_uri)
        if url.scheme != "https" and not is_loopback(url.hostname or ""):
            message = "is not https: whoever stands in between decides which keys are good"
            yield asked.origin.problem("jwks_uri", message, severity=Severity.WARNING)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
