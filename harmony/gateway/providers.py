"""From an `[authentications]` table, or the options of `basic_auth` and `jwt_auth`, to an Authenticator.

`check` is asked when a configuration is loaded, `authenticator` when the gateway is put together, `token_towards` for
what a backend shows. All of them read the files that are named. What cannot be used is `Unusable`, with the key that is
to blame and never a secret.
"""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Callable, Mapping
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
from harmony.gateway.token_file import TokenFile

if TYPE_CHECKING:
    from harmony.gateway.json_web_token import Key, TokenRules
    from harmony.gateway.token_signing import SigningKey, TokenSigner

__all__ = [
    "MIDDLEWARE_METHODS",
    "Unusable",
    "authenticator",
    "check",
    "checks_tokens",
    "of_middleware",
    "token_towards",
]

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
        case "bearer":
            _token(options)
        case "jwt":
            if options.private_key is not None:
                _signer(options)
            if options.private_key is None or checks_tokens(options):
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
        case "bearer":
            return BearerAuthenticator(configured.id, _token(options))
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


def token_towards(method: str, options: AuthenticationOptions) -> Callable[[], str]:
    """What a backend shows: asked at each request. Raises Unusable."""
    return _token(options) if method == "bearer" else _signer(options).token


def _token(options: AuthenticationOptions) -> Callable[[], str]:
    """The one that all have."""
    path, token = options.token_path, options.token
    if token is not None and path is not None:
        raise Unusable("token_path", "and token are both set, must be one of them")
    if token is not None:
        return token.reveal
    if path is None:
        raise Unusable("token", "is missing, must be set for method bearer, or token_path")
    try:
        return TokenFile(path).token
    except OSError as error:
        raise Unusable("token_path", f'"{path}" cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise Unusable("token_path", f'"{path}" {error}') from error


def _signer(options: AuthenticationOptions) -> TokenSigner:
    module = _optional("token_signing", "PyJWT and cryptography", extra="jwt")
    private = options.private_key
    if private is not None and options.use_hs256:
        raise Unusable("private_key", "and use_hs256 are both set, must be one of them")
    if private is None:
        secret = options.hs256_secret
        assert secret is not None  # as it has been checked
        key: SigningKey = module.SigningKey.secret(secret.reveal())
    else:
        try:
            key = module.SigningKey.private(private.reveal())
        except ValueError as error:
            raise Unusable("private_key", str(error)) from error
        for algorithm in options.algorithms:
            if algorithm not in key.algorithms:
                listed = ", ".join(key.algorithms)
                raise Unusable("algorithms", f"lists {algorithm}, must fit the private_key: {listed}")
    for name in ("subject", "key_id"):
        value: str | None = getattr(options, name)
        _filled(name, (value,) if value is not None else ())
    _issuers(options)
    audience = _audiences(options)
    claims: dict[str, object] = {
        name: value
        for name, value in (("iss", options.issuer), ("sub", options.subject))
        if value is not None
    }
    if audience:
        claims["aud"] = list(audience) if len(audience) > 1 else audience[0]
    signer: TokenSigner = module.TokenSigner(
        key,
        (options.algorithms or key.algorithms)[0],
        claims,
        lifetime_s=options.lifetime_secs,
        kid=options.key_id,
    )
    return signer


def checks_tokens(options: AuthenticationOptions) -> bool:
    """Whether a table says what tokens of others are checked with."""
    return options.use_hs256 or options.public_key_path is not None or options.jwks_uri is not None


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
