"""What is wrong with who checks whom, by its message; what is only weak is a warning."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from harmony.gateway.checks import unsupported
from harmony.gateway.config import ConfigError, Severity
from harmony.gateway.loading import load
from harmony.gateway.passwords import hash_password

HASH = str(hash_password("p", n=2, r=1, p=1))
LONG = "x" * 32
PRIVATE = (
    '"""'
    + ed25519.Ed25519PrivateKey.generate()
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
    + '"""'
)


def problems(folder: Path, tables: str, *, host: str = "127.0.0.1", endpoint: str = "", backend: str = ""):
    """Errors and warnings, as (severity, table, key, message)."""
    path = folder / "config.toml"
    path.write_text(f"""
        [proxy]
        id = "p"
        [network.n]
        http = {{ bind_address = "{host}", bind_port = 8080 }}
        dicom = {{ bind_address = "{host}", bind_port = 11112 }}
        [pipelines.p]
        networks = ["n"]
        endpoints = ["e"]
        middleware = {'["m"]' if "[middleware.m]" in tables else "[]"}
        backends = {'["b"]' if backend else "[]"}
        {endpoint or "[endpoints.e]" + chr(10) + 'service = "jmix"' + chr(10) + 'options.path_prefix = "/j"'}
        {backend}
        {tables}
        """)
    try:
        loaded = load(path, env={"EMPTY": ""})
        found = [*loaded.warnings, *unsupported(loaded)]
    except ConfigError as error:
        found = list(error.problems)
    return [(each.severity, each.table, each.key, each.message) for each in found]


def jwt(options: str) -> str:
    return f'[authentications.a]\nmethod = "jwt"\n[authentications.a.options]\n{options}'


def basic(options: str) -> str:
    return f'[authentications.a]\nmethod = "basic"\n[authentications.a.options]\n{options}'


def bearer(options: str) -> str:
    return f'[authentications.a]\nmethod = "bearer"\n[authentications.a.options]\n{options}'


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        (jwt(""), "public_key_path", "is missing; one of public_key_path, jwks_uri, or use_hs256"),
        (jwt(f'hs256_secret = "{LONG}"'), "use_hs256", "is missing; one of public_key_path"),
        (jwt("use_hs256 = true"), "hs256_secret", "is missing, must be set when use_hs256 is true"),
        (jwt('use_hs256 = true\nhs256_secret = "$EMPTY"'), "hs256_secret", "is empty, must be set when"),
        (
            jwt(f'use_hs256 = true\nhs256_secret = "{LONG}"\njwks_uri = "https://i/k"'),
            "jwks_uri",
            "and use_hs256 are both set",
        ),
        (jwt('public_key_path = "none.pem"'), "public_key_path", '"none.pem" cannot be read: No such file'),
        (jwt('public_key_path = "config.toml"'), "public_key_path", '"config.toml" must hold a public key'),
        (jwt('jwks_uri = "ftp://i/k"'), "jwks_uri", "must be an http or https URL"),
        (jwt('jwks_uri = "https://u:p@i/k"'), "jwks_uri", "must be an http or https URL without credentials"),
        (jwt('jwks_uri = "https://i:x/k"'), "jwks_uri", "must be an http or https URL"),
        (jwt('jwks_uri = "https://i/k"\nca_cert_path = "none"'), "ca_cert_path", '"none" cannot be read'),
        (
            jwt('jwks_uri = "https://i/k"\nalgorithms = ["none"]'),
            "algorithms",
            "lists 'none', must be of RS256",
        ),
        (jwt('jwks_uri = "https://i/k"\nalgorithms = ["HS256"]'), "algorithms", "HS256 needs use_hs256"),
        (jwt('jwks_uri = "https://i/k"\naudience = "$EMPTY"'), "audience", "is empty, must be left out"),
        (jwt('private_key = "a key"'), "private_key", "must be a private key in PEM without a passphrase"),
        (jwt('private_key = "$EMPTY"'), "private_key", "must be a private key in PEM"),
        (
            jwt(f'private_key = {PRIVATE}\nuse_hs256 = true\nhs256_secret = "{LONG}"'),
            "private_key",
            "and use_hs256 are both set",
        ),
        (jwt(f'private_key = {PRIVATE}\nalgorithms = ["RS256"]'), "algorithms", "must fit the private_key"),
        (jwt(f'private_key = {PRIVATE}\nsubject = ""'), "subject", "is empty, must be left out"),
        (jwt(f'private_key = {PRIVATE}\naudience = ["$EMPTY"]'), "audience", "is empty, must be left out"),
        (bearer(""), "token", "is missing, must be set for method"),
        (bearer('token = "t"\ntoken_path = "config.toml"'), "token_path", "and token are both set"),
        (bearer('token_path = "none"'), "token_path", '"none" cannot be read: No such file'),
        (bearer('token_path = "config.toml"'), "token_path", '"config.toml" must hold a token'),
        (basic('username = "u:v"\npassword = "p"'), "username", "holds a colon"),
        (basic('username = "u"\npassword = "scrypt:1"'), "password", "must be scrypt:N:r:p:salt:hash"),
        (basic('users_path = "none"'), "users_path", '"none" cannot be read'),
        (basic('users_path = "config.toml"'), "users_path", "must be name:scrypt:N:r:p:salt:hash"),
        (basic('users_path = "config.toml"\nusername = "u"'), "password", "is missing"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, monkeypatch, table, key, message) -> None:
    monkeypatch.chdir(tmp_path)
    ((severity, where, wrong, text),) = [
        each for each in problems(tmp_path, table) if each[0] is Severity.ERROR
    ]
    assert (severity, where, wrong) == (Severity.ERROR, "authentications.a.options", key)
    assert message in text
    assert LONG not in text


@pytest.mark.parametrize(
    ("middleware", "message"),
    [
        ('type = "passthru"\nauthentication = "a"', "must be left out: only basic_auth and jwt_auth check"),
        (
            'type = "path_filter"\nauthentication = "a"',
            "must be left out: only basic_auth and jwt_auth check",
        ),
        ('type = "jwt_auth"\nauthentication = "a"', 'a table of method "basic", must be one of "jwt"'),
    ],
)
def test_middleware_that_would_check_nobody(tmp_path, middleware, message) -> None:
    tables = f"[middleware.m]\n{middleware}\n" + basic('username = "u"\npassword = "p"')
    ((_, where, key, text),) = problems(tmp_path, tables)
    assert (where, key) == ("middleware.m", "authentication")
    assert message in text


SAML = '[authentications.a]\nmethod = "saml"\noptions = { idp_cert_path = "idp.pem", audience = "a" }'
WEB = '[endpoints.e]\nservice = "jmix"\noptions.path_prefix = "/j"\nauthentication = "a"'
SCP = '[endpoints.e]\nservice = "dicom_scp"\nauthentication = "a"'
PACS = (
    '[backends.b]\nservice = "dicom_scu"\nauthentication = "a"\noptions = { aet = "P", host = "127.0.0.1" }'
)
UP = '[backends.b]\nservice = "http"\nconnection.host = "127.0.0.1"\nauthentication = "a"'
HTTP = '[endpoints.e]\nservice = "http"\noptions.path_prefix = "/h"'
KEY = '[authentications.a]\nmethod = "api_key"\noptions.api_key = "k"'


@pytest.mark.parametrize(
    ("tables", "endpoint", "backend", "message"),
    [
        (KEY, SCP, "", "has no user identity; must be basic, bearer, jwt, mutual_tls, kerberos or saml"),
        (SAML, WEB, "", "is for associations; must be basic, bearer, api_key, jwt or mutual_tls"),
        (SAML, HTTP, UP, "is not available"),
        ('[authentications.a]\nmethod = "custom"', SCP, "", "which is not available in this version"),
        ('[authentications.a]\nmethod = "mutual_tls"', SCP, "", "it has no ca_cert_path"),
        (KEY, HTTP, PACS, "must be basic, bearer or jwt towards a PACS"),
        (jwt('jwks_uri = "https://i/k"'), HTTP, PACS, "is jwt without private_key, which a backend needs"),
        (jwt('jwks_uri = "https://i/k"'), HTTP, UP, "is jwt without private_key, which a backend needs"),
        (
            jwt(f'issuer = "i"\nprivate_key = {PRIVATE}'),
            WEB,
            "",
            "has a private_key only, with which nobody can be checked",
        ),
        (basic(f'username = "u"\npassword = "{HASH}"'), HTTP, UP, "with a hashed password"),
    ],
)
def test_methods_where_they_cannot_work(
    tmp_path, monkeypatch, authority, tables, endpoint, backend, message
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(authority.issue().certificate, "idp.pem")
    ((severity, _, _, text),) = problems(tmp_path, tables, endpoint=endpoint, backend=backend)
    assert severity is Severity.ERROR
    assert message in text


@pytest.mark.parametrize("endpoint", [WEB, SCP])
@pytest.mark.parametrize(
    ("host", "count"), [("127.0.0.1", 0), ("localhost", 0), ("0.0.0.0", 1), ("192.0.2.1", 1)]
)
def test_credentials_in_the_clear(tmp_path, endpoint, host, count) -> None:
    found = problems(tmp_path, basic('username = "u"\npassword = "p"'), host=host, endpoint=endpoint)
    assert [each[:3] for each in found] == [(Severity.WARNING, "endpoints.e", "authentication")] * count
    assert all("credentials everybody on the way can read" in each[3] for each in found)


def test_credentials_sent_in_the_clear(tmp_path) -> None:
    backend = UP.replace("127.0.0.1", "up.example.org")
    ((severity, where, _, text),) = problems(
        tmp_path, basic('username = "u"\npassword = "p"'), endpoint=HTTP, backend=backend
    )
    assert (severity, where) == (Severity.WARNING, "backends.b")
    assert text == 'sends the credentials of "a" to up.example.org:80 without TLS'


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        (f'use_hs256 = true\nhs256_secret = "{LONG}"', "issuer", "every token that the key has signed"),
        ('use_hs256 = true\nhs256_secret = "short"\nissuer = "i"', "hs256_secret", "shorter than 32 bytes"),
        (
            f'use_hs256 = true\nhs256_secret = "{LONG}"\nissuer = "i"\nvalidate_expiry = false',
            "validate_expiry",
            "good for ever",
        ),
        ('jwks_uri = "http://i.example.org/k"\nissuer = "i"', "jwks_uri", "is not https"),
    ],
)
def test_weak_tokens(tmp_path, options, key, message) -> None:
    ((severity, _, wrong, text),) = problems(tmp_path, jwt(options), endpoint=WEB)
    assert (severity, wrong) == (Severity.WARNING, key)
    assert message in text
    assert "short" not in text.replace("shorter", "")


@pytest.mark.parametrize(
    ("table", "ours", "theirs", "extra"),
    [
        (jwt(f'use_hs256 = true\nhs256_secret = "{LONG}"'), "json_web_token", "jwt", "jwt"),
        (SAML, "saml", "signxml", "saml"),
        ('[authentications.a]\nmethod = "kerberos"\nkeytab_path = "k"', "kerberos", "gssapi", "kerberos"),
    ],
)
def test_without_the_extra(tmp_path, monkeypatch, table, ours, theirs, extra) -> None:
    monkeypatch.delitem(sys.modules, f"harmony.gateway.{ours}", raising=False)
    monkeypatch.setitem(sys.modules, theirs, None)
    ((severity, where, _, text),) = problems(tmp_path, table)
    assert severity is Severity.ERROR
    assert where.startswith("authentications.a")
    assert f"pip install 'harmony-dicom[{extra}]'" in text
