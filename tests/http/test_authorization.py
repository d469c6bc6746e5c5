"""The Authorization header: what is credentials, what is none, what is malformed."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.http import Headers
from harmony.http.authorization import (
    MAXIMUM_CREDENTIALS_CHARS,
    MalformedCredentials,
    basic_credentials,
    bearer_token,
    challenge,
)


def authorization(*values: str) -> Headers:
    return Headers([("Authorization", value) for value in values])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", ("Aladdin", "open sesame")),  # RFC 7617 §2
        ("Basic dGVzdDoxMjPCow==", ("test", "123£")),  # RFC 7617 §2.1
        ("Basic dGVzdDoxMjOj", ("test", "123£")),  # the same in ISO 8859-1
        ("basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", ("Aladdin", "open sesame")),
        ("BASIC   QWxhZGRpbjpvcGVuIHNlc2FtZQ==", ("Aladdin", "open sesame")),
        ("Basic YTpiOmM6ZA==", ("a", "b:c:d")),
        ("Basic YTo=", ("a", "")),
        ("Basic OmI=", ("", "b")),
        ("Digest QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None),
        ("Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None),
        ("Basically QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None),
        ("", None),
    ],
)
def test_basic(value: str, expected: tuple[str, str] | None) -> None:
    assert basic_credentials(authorization(value)) == expected


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic ",
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ",  # without its padding
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=",
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ== ,x",
        "Basic Aladdin:open sesame",
        "Basic QWxhZGRpbg==",  # no colon
        "Basic YQA6Yg==",  # NUL in the name
        "Basic YTpiCg==",  # a line feed in the password
        "Basic YTp/",  # DEL
        "Basic \xe9\xe9\xe9\xe9",
        "Basic " + "YTph" * (MAXIMUM_CREDENTIALS_CHARS // 4) + "YTph",
    ],
)
def test_basic_that_is_malformed(value: str) -> None:
    with pytest.raises(MalformedCredentials) as caught:
        basic_credentials(authorization(value))
    assert "Aladdin" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Bearer mF_9.B5f-4.1JqM", "mF_9.B5f-4.1JqM"),  # RFC 6750 §2.1
        ("bearer a+/~==", "a+/~=="),
        ("Basic YTpi", None),
    ],
)
def test_bearer(value: str, expected: str | None) -> None:
    assert bearer_token(authorization(value)) == expected


@pytest.mark.parametrize(
    "value", ["Bearer", "Bearer a b", "Bearer a,b", "Bearer =", "Bearer \xe9", "Bearer " + "a" * 2**20]
)
def test_bearer_that_is_malformed(value: str) -> None:
    with pytest.raises(MalformedCredentials):
        bearer_token(authorization(value))


@pytest.mark.parametrize("read", [basic_credentials, bearer_token])
def test_there_is_one_or_none(read) -> None:  # type: ignore[no-untyped-def]
    assert read(Headers()) is None
    with pytest.raises(MalformedCredentials):
        read(authorization("Basic YTpi", "Basic YTpj"))


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]))


@given(TEXT.filter(lambda name: ":" not in name), TEXT)
def test_basic_round_trip(name: str, password: str) -> None:
    encoded = base64.b64encode(f"{name}:{password}".encode()).decode()
    assert basic_credentials(authorization(f"Basic {encoded}")) == (name, password)


VALUES = st.text(st.characters(max_codepoint=0xFF, exclude_categories=["Cc"]))


@given(st.sampled_from(["", "Basic ", "basic", "Bearer ", "bearer\t", "Digest "]), VALUES)
def test_anything_is_read_or_refused(scheme: str, rest: str) -> None:
    headers = authorization(scheme + rest)
    try:
        credentials = basic_credentials(headers)
    except MalformedCredentials:
        credentials = None
    if credentials is not None:
        assert ":" not in credentials[0]
        assert scheme.lower() == "basic " or rest.strip().lower().startswith("basic") or rest.startswith(" ")
    try:
        token = bearer_token(headers)
    except MalformedCredentials:
        token = None
    if token is not None:
        assert " " not in token


def test_challenges() -> None:
    assert challenge("Basic", realm="r", charset="UTF-8") == 'Basic realm="r", charset="UTF-8"'
