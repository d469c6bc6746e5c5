"""harmony.http.headers: lookups without case, joined repeats, nothing that could split a response."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.http.headers import Headers


def test_names_compare_without_case_and_keep_their_spelling() -> None:
    headers = Headers({"Content-Type": "text/plain", "X-Trace": "1"})
    assert headers.get("content-type") == headers.get("CONTENT-TYPE") == "text/plain"
    assert list(headers) == [("Content-Type", "text/plain"), ("X-Trace", "1")]
    assert "x-TRACE" in headers
    assert headers.get("Accept") is None
    assert headers.get("Accept", "*/*") == "*/*"


def test_repeated_fields_are_joined_on_demand_and_kept_apart() -> None:
    headers = Headers([("Accept", "a/b"), ("Via", "x"), ("accept", "c/d;q=0.5")])
    assert headers.get("Accept") == "a/b, c/d;q=0.5"
    assert headers.get_all("ACCEPT") == ["a/b", "c/d;q=0.5"]


def test_changes_make_copies() -> None:
    before = Headers({"A": "1", "B": "2"})
    assert list(before.set("a", "3")) == [("B", "2"), ("a", "3")]
    assert list(before.add("A", "3")) == [("A", "1"), ("B", "2"), ("A", "3")]
    assert list(before.without("b")) == [("A", "1")]
    assert list(before) == [("A", "1"), ("B", "2")]


@pytest.mark.parametrize(
    "value", ["a\r\nSet-Cookie: x", "a\nb", "a\rb", "a\0b", "\x1b[0m", "\x7f", "Müller → Meier"]
)
def test_values_that_no_line_can_carry_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="value of header X-Name"):
        Headers({"X-Name": value})


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "Ä", "a\n"])
def test_names_that_are_not_tokens_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Headers({name: "x"})


def test_repr_shows_no_values() -> None:
    assert "secret" not in repr(Headers({"Authorization": "Bearer secret"}))


@given(st.text(max_size=40))
def test_any_value_is_either_refused_or_one_line(value: str) -> None:
    try:
        headers = Headers({"X": value})
    except ValueError:
        return
    line = (headers.get("X") or "").encode("latin-1")
    assert b"\r" not in line
    assert b"\n" not in line
    assert b"\0" not in line
