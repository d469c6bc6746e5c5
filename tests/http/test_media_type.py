"""harmony.http.media_type: RFC 9110 §8.3.1 and §5.6.6, and what clients make of it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.http.media_type import MediaType, parse_media_type


@pytest.mark.parametrize(
    ("value", "essence", "parameters"),
    [
        ("text/html;charset=utf-8", "text/html", {"charset": "utf-8"}),  # the four of RFC 9110 §8.3.1
        ("Text/HTML;Charset=\"utf-8\"", "text/html", {"charset": "utf-8"}),
        ('text/html; charset="utf-8"', "text/html", {"charset": "utf-8"}),
        ("text/html;charset=UTF-8", "text/html", {"charset": "UTF-8"}),
        ("application/json", "application/json", {}),
        (" application/json ; ", "application/json", {}),
        ("a/b;;c=d;", "a/b", {"c": "d"}),
        ('a/b; c="d;\\"e\\\\"', "a/b", {"c": 'd;"e\\'}),
        (
            'multipart/related; type="application/dicom"; boundary=x',
            "multipart/related",
            {"type": "application/dicom", "boundary": "x"},
        ),
        # A slash has to be quoted (RFC 9110 §5.6.6), and often is not.
        ("multipart/related; type=application/dicom", "multipart/related", {"type": "application/dicom"}),
        ("a/b; c=", "a/b", {"c": ""}),
        ("a/b; c=d; C=d", "a/b", {"c": "d"}),
    ],
)  # fmt: skip
def test_media_types(value: str, essence: str, parameters: dict[str, str]) -> None:
    assert parse_media_type(value) == MediaType(essence, parameters)


@pytest.mark.parametrize(
    "value",
    [
        "", "json", "/", "a/", "/b", "a/b c", "a/b, c/d", "a/b; c", "a/b; c=d e", 'a/b; c="d', 'a/b; c="d"e',
        "a/b; c=d; c=e",
    ],
)  # fmt: skip
def test_what_is_no_media_type(value: str) -> None:
    with pytest.raises(ValueError):
        parse_media_type(value)


@given(st.text())
def test_any_text_is_a_media_type_or_a_value_error(value: str) -> None:
    with contextlib.suppress(ValueError):
        parse_media_type(value)
