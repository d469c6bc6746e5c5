"""Heads of responses, byte by byte, and the framing of bodies (RFC 9112 §4, §6, §7.1)."""

import re

import pytest

from harmony import __version__
from harmony.http.headers import Headers
from harmony.http.message import FileSpan
from harmony.http.response_head import BodyLengthError, Framing, response_head

OURS = f"Server: harmony/{__version__}\r\nX-Content-Type-Options: nosniff\r\nDate: DATE\r\n"


def head(status: int, headers: dict[str, str], framing: Framing, *, close: bool = False) -> str:
    text = response_head(status, Headers(headers), framing, close=close).decode("latin-1")
    return re.sub(r"Date: \w{3}, \d{2} \w{3} \d{4} \d{2}:\d{2}:\d{2} GMT", "Date: DATE", text)


def framing(length: int | None, *, http_1_0: bool = False, has_body: bool = True) -> Framing:
    return Framing(length, http_1_0=http_1_0, has_body=has_body)


def test_a_body_of_known_length() -> None:
    assert head(200, {"Content-Type": "text/plain"}, framing(5)) == (
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n" + OURS + "\r\n"
    )


def test_a_body_of_unknown_length_comes_in_chunks() -> None:
    chunked = framing(None)
    assert head(200, {}, chunked) == "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + OURS + "\r\n"
    assert b"".join(map(bytes, chunked.data(b"x" * 26))) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert chunked.end() == b"0\r\n\r\n"


def test_to_http_1_0_it_ends_with_the_connection() -> None:
    until_closed = framing(None, http_1_0=True)
    assert head(200, {}, until_closed, close=True) == (
        "HTTP/1.1 200 OK\r\n" + OURS + "Connection: close\r\n\r\n"
    )
    assert until_closed.data(b"abc") == (b"abc",)
    assert until_closed.end() == b""


@pytest.mark.parametrize("status", [204, 304])
def test_what_has_no_body_says_nothing_about_its_length(status: int) -> None:
    assert "Length" not in head(status, {}, framing(0, has_body=False))
    assert "chunked" not in head(status, {}, framing(None, has_body=False))


def test_the_answer_to_head_says_what_get_would_say_and_ends_there() -> None:
    for length, field in ((7, "Content-Length: 7\r\n"), (None, "Transfer-Encoding: chunked\r\n")):
        without = framing(length, has_body=False)
        assert field in head(200, {}, without)
        assert without.end() == b""


def test_fields_about_the_connection_are_decided_here() -> None:
    given = {
        "Connection": "keep-alive, X-Hop",
        "Transfer-Encoding": "gzip",
        "content-length": "99",
        "Keep-Alive": "timeout=5",
        "Upgrade": "h2c",
        "X-Kept": "yes",
    }
    assert head(200, given, framing(1)) == (
        "HTTP/1.1 200 OK\r\nX-Kept: yes\r\nContent-Length: 1\r\n" + OURS + "\r\n"
    )


def test_what_a_handler_has_said_itself_is_not_said_twice() -> None:
    given = {"server": "upstream", "date": "Thu, 01 Jan 1970 00:00:00 GMT", "X-content-type-options": "none"}
    assert head(200, given, framing(0)) == (
        "HTTP/1.1 200 OK\r\nserver: upstream\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
        "X-content-type-options: none\r\nContent-Length: 0\r\n\r\n"
    )


def test_values_are_iso_8859_1_and_unknown_statuses_have_no_phrase() -> None:
    assert response_head(299, Headers({"X-Name": "J\xf6rg"}), framing(0), close=False).startswith(
        b"HTTP/1.1 299 \r\nX-Name: J\xf6rg\r\n"
    )


def test_a_body_that_is_too_long_is_an_error_before_it_is_sent() -> None:
    short = framing(3)
    short.data(b"ab")
    with pytest.raises(BodyLengthError, match="1 bytes too long"):
        short.data(b"cd")


def test_a_body_that_is_too_short_is_an_error_at_its_end() -> None:
    short = framing(3)
    short.data(b"ab")
    with pytest.raises(BodyLengthError, match="1 bytes too short"):
        short.end()


def test_a_piece_of_a_file_counts_with_what_is_in_front_of_it() -> None:
    span = FileSpan(0, 0, 10, head=b"12345")
    assert framing(None).data(span) == (b"f\r\n", span, b"\r\n")
    exact = framing(15)
    assert exact.data(span) == (span,)
    assert exact.end() == b""
