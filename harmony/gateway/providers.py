"""From an `[authentications]` table, or the options of `basic_auth` and `jwt_auth`, to an Authenticator.

`check` is asked when a configuration is loaded, `authenticator` when the gateway is put together; both read the files
that are named. What cannot be used is `Unusable`, with the key that is to blame and never a secret.
"""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Mapping
from concurrent.futures import Executor
from types import ModuleType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from harmony.gateway.authenticators import (
    ApiKeyAuthenticator,
    Authenticator,
    BearerAuthenticator,
    JwtAuthenticator,
    MutualTlsAuthenticator,
    PasswordAuthenticator,
)
from harmony.gateway.config import Authentication, Middleware, Table
from harmony.gateway.identity_authenticator import Check, IdentityAuthenticator
from harmony.gateway.jwks import JwkSet, fetch_from
from harmony.gateway.options import AuthenticationOptions, BasicAuthOptions, JwtAuthOptions
from harmony.gateway.passwords import PREFIX, PasswordHash, read_users

if TYPE_CHECKING:
    from harmony.gateway.json_web_token import Key, TokenRules

__all__ = ["MIDDLEWARE_METHODS", "Unusable", "authenticator", "check", "of_middleware"]

MIDDLEWARE_METHODS: Final = {"basic_auth": "basic", "jwt_auth": "jwt"}
"""Middleware type -> the method that it checks."""

ASYMMETRIC: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)


class Unusable(ValueError):
    """key: in the options; "" for the whole table."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def of_middleware(middleware: Middleware) -> Authentication | None:
    """What a middleware checks: the table that it names, or its own options. None: it is none that checks."""
    method = MIDDLEWARE_METHODS.get(middleware.type)
    if method is None or middleware.authentication is not None:
        return middleware.authentication if method is not None else None
    options = options_of_middleware(middleware.options)
    return Authentication(middleware.name, method, options=options, origin=middleware.origin)


def options_of_middleware(options: Table) -> AuthenticationOptions:
    """The options of a middleware are some of those of a table."""
    assert isinstance(options, BasicAuthOptions | JwtAuthOptions)
    return AuthenticationOptions(**msgspec.structs.asdict(options))


def check(method: str, options: AuthenticationOptions) -> None:
    """Raises Unusable for what nobody could be checked with."""
    match method:
        case "basic":
            _users(options)
        case "jwt":
            _rules(options)
            _key(options)
        case "kerberos":
            _tickets(options)
        case "saml":
            _assertions(options)


def authenticator(configured: Authentication, executor: Executor, *, keep_s: float) -> Authenticator:
    """executor: where passwords are derived. keep_s: for how long fetched keys are kept. Raises Unusable."""
    options = configured.options
    assert isinstance(options, AuthenticationOptions)
    match configured.method:
        case "basic":
            return PasswordAuthenticator(
                _users(options), executor, name_is_enough=options.accept_username_only
            )
        case "bearer" if options.token is not None:
            return BearerAuthenticator(configured.id, options.token.reveal())
        case "api_key" if options.api_key is not None:
            return ApiKeyAuthenticator(configured.id, options.api_key.reveal(), header=options.header_name)
        case "jwt":
            return _jwt(configured.id, options, keep_s)
        case "mutual_tls":
            return MutualTlsAuthenticator(options.allowed_subjects)
        case "kerberos":
            return IdentityAuthenticator(
                "kerberos", _tickets(options), allowed_subjects=options.allowed_subjects
            )
        case "saml":
            return IdentityAuthenticator(
                "saml", _assertions(options), allowed_subjects=options.allowed_subjects
            )
    raise Unusable("", f"is of method {configured.method}, with which nobody can be checked")


# Passwords


def _users(options: AuthenticationOptions) -> Mapping[str, str | PasswordHash]:
    users: dict[str, str | PasswordHash] = {}
    if options.users_path is not None:
        try:
            users.update(read_users(options.users_path))
        except OSError as error:
            raise Unusable(
                "users_path", f'"{options.users_path}" cannot be read: {error.strerror}'
            ) from error
        except ValueError as error:
            raise Unusable("users_path", f'"{options.users_path}" {error}') from error
        if not users and options.username is None:
            raise Unusable("users_path", f'"{options.users_path}" has no users')
    if options.username is not None and options.password is not None:
        if ":" in options.username:
            raise Unusable("username", "holds a colon, which HTTP cannot carry (RFC 7617)")
        if options.username in users:
            raise Unusable("username", "is in users_path as well")
        password = options.password.reveal()
        try:
            hashed = PasswordHash.parse(password) if password.startswith(PREFIX) else None
        except ValueError as error:
            raise Unusable("password", str(error)) from error
        users[options.username] = hashed or password
    return users


# JSON Web Tokens


def _json_web_token() -> ModuleType:
    return _optional("json_web_token", "PyJWT and cryptography", extra="jwt")


def _jwt(name: str, options: AuthenticationOptions, keep_s: float) -> Authenticator:
    rules, key, module = _rules(options), _key(options), _json_web_token()
    if key is not None:
        return JwtAuthenticator(name, rules, module.FixedKey(key))
    assert options.jwks_uri is not None
    fetch, client = fetch_from(options.jwks_uri, ca_cert_path=options.ca_cert_path)
    return JwtAuthenticator(name, rules, JwkSet(fetch, module.keys_of_set, client=client, keep_s=keep_s))


def _rules(options: AuthenticationOptions) -> TokenRules:
    if options.use_hs256:
        if options.algorithms not in ((), ("HS256",)):
            raise Unusable("algorithms", 'must be ["HS256"] or left out when use_hs256 is true')
    else:
        for algorithm in options.algorithms:
            if algorithm not in ASYMMETRIC:
                listed = ", ".join(ASYMMETRIC)
                raise Unusable(
                    "algorithms", f"lists {algorithm!r}, must be of {listed}; HS256 needs use_hs256"
                )
    claims = options.required_claims
    rules: TokenRules = _json_web_token().TokenRules(
        algorithms=options.algorithms,
        issuers=_issuers(options),
        audiences=_audiences(options),
        required_claims=claims if isinstance(claims, dict) else dict.fromkeys(claims),
        validate_expiry=options.validate_expiry,
        leeway_s=options.leeway_secs,
    )
    return rules


def _issuers(options: AuthenticationOptions) -> tuple[str, ...]:
    issuers = (options.issuer, *options.trusted_issuers)
    return _filled("issuer", tuple(each for each in issuers if each is not None))


def _audiences(options: AuthenticationOptions) -> tuple[str, ...]:
    audience = options.audience
    return _filled("audience", (audience,) if isinstance(audience, str) else audience or ())


def _filled(key: str, values: tuple[str, ...]) -> tuple[str, ...]:
    if "" in values:  # what an unset environment variable leaves behind
        raise Unusable(key, "is empty, must be left out or hold a value")
    return values


def _key(options: AuthenticationOptions) -> Key | None:
    """None: they are fetched. Exactly one place must say what tokens are verified with."""
    module = _json_web_token()
    given = [
        key
        for key, value in (
            ("use_hs256", options.use_hs256 or None),
            ("public_key_path", options.public_key_path),
            ("jwks_uri", options.jwks_uri),
        )
        if value is not None
    ]
    if not given:
        key = "use_hs256" if options.hs256_secret is not None else "public_key_path"
        raise Unusable(
            key, "is missing; one of public_key_path, jwks_uri, or use_hs256 with hs256_secret must be set"
        )
    if len(given) > 1:
        raise Unusable(
            given[1], f"and {given[0]} are both set, must be one of them: a token has one kind of key"
        )
    if options.use_hs256:
        if options.hs256_secret is None or not options.hs256_secret.reveal():
            came = "is missing" if options.hs256_secret is None else "is empty"
            raise Unusable("hs256_secret", f"{came}, must be set when use_hs256 is true")
        secret: Key = module.secret_key(options.hs256_secret.reveal())
        return secret
    if options.public_key_path is not None:
        return _read_key(module, options)
    _check_uri(options)
    return None


def _read_key(module: ModuleType, options: AuthenticationOptions) -> Key:
    path = options.public_key_path
    try:
        key: Key = module.read_public_key(path)
    except OSError as error:
        raise Unusable("public_key_path", f'"{path}" cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise Unusable("public_key_path", f'"{path}" {error}') from error
    for algorithm in options.algorithms:
        if algorithm not in key.algorithms:
            listed = ", ".join(key.algorithms)
            raise Unusable("algorithms", f"lists {algorithm}, must fit the key in public_key_path: {listed}")
    return key


def _check_uri(options: AuthenticationOptions) -> None:
    try:
        url = urlsplit(options.jwks_uri or "")
        valid = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or url.username is not None or url.fragment:
        raise Unusable("jwks_uri", "must be an http or https URL without credentials")
    if options.ca_cert_path is not None:
        try:
            ssl.create_default_context(cafile=options.ca_cert_path)
        except OSError as error:
            raise Unusable(
                "ca_cert_path", f'"{options.ca_cert_path}" cannot be read: {error.strerror}'
            ) from error


# Tickets and assertions


def _tickets(options: AuthenticationOptions) -> Check:
    path, principal = options.keytab_path, options.service_principal
    module = _optional("kerberos", "gssapi", extra="kerberos")
    _filled("service_principal", (principal,) if principal is not None else ())
    try:
        accept: Check = module.TicketAcceptor(path, principal).accept
    except OSError as error:
        raise Unusable("keytab_path", f'"{path}" cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise Unusable("keytab_path", f'"{path}" {error}') from error
    return accept


def _assertions(options: AuthenticationOptions) -> Check:
    path, audiences = options.idp_cert_path, _audiences(options)
    module = _optional("saml", "signxml", extra="saml")
    if not audiences:
        raise Unusable("audience", "is empty, must name what assertions for this gateway are for")
    try:
        certificates = module.read_certificates(path)
    except OSError as error:
        raise Unusable("idp_cert_path", f'"{path}" cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise Unusable("idp_cert_path", f'"{path}" {error}') from error
    check: Check = module.AssertionRules(
        certificates, audiences, _issuers(options), leeway_s=options.leeway_secs
    ).check
    return check


def _optional(module: str, packages: str, *, extra: str) -> ModuleType:
    """A module that not every installation can have."""
    try:
        return importlib.import_module(f"harmony.gateway.{module}")
    except ImportError as error:
        raise Unusable("", f"needs {packages}: pip install 'harmony-dicom[{extra}]'") from error
