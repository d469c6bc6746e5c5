"""harmony.http.message: targets decoded once, bodies with limits, errors as JSON."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.http import HTTPError, Query, Request, RequestBody, Response, error_response, json_response


def test_path_is_decoded_once_and_raw_path_is_kept() -> None:
    request = Request("GET", "/a%20b/%2541/x%2Fy?q=1")
    assert request.raw_path == "/a%20b/%2541/x%2Fy"
    assert request.segments == ("a b", "%41", "x/y")
    assert request.path == "/a b/%41/x/y"
    assert request.raw_query == "q=1"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a/", "/a/"),
        ("/?x", "/"),
        ("http://host:8080/a?b=c", "/a"),  # RFC 9112 §3.2.2
        ("HTTPS://host", "/"),
        ("http://host?b=c", "/"),
        ("/%C3%BC", "/ü"),
    ],
)
def test_targets_that_name_a_path(target: str, path: str) -> None:
    assert Request("GET", target).path == path


def test_asterisk_is_the_server_for_options_only() -> None:
    assert Request("OPTIONS", "*").path == "/"
    with pytest.raises(HTTPError):
        Request("GET", "*")


@pytest.mark.parametrize(
    "target",
    [
        "a", "", "ftp://host/a", "/a#b", "/%", "/%4", "/%zz", "/%00", "/a/../b", "/a/%2e%2E/b", "/.", "/..", "/%FF",
        "/?a=%", "/?a=%00", "/?%ff=1",
    ],
)  # fmt: skip
def test_targets_that_are_refused(target: str) -> None:
    with pytest.raises(HTTPError) as refused:
        Request("GET", target)
    assert refused.value.status == 400


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60))
def test_any_target_is_a_request_or_400(target: str) -> None:
    try:
        request = Request("GET", target)
    except HTTPError as error:
        refused = error.status
    else:
        refused = None
        assert "\0" not in request.path
        assert ".." not in request.segments
        assert request.path.startswith("/")
    assert refused in (None, 400)


def test_query_keeps_order_and_repeats() -> None:
    query = Query("includefield=00081030&limit=5&includefield=a%2Cb&flag&PatientName=M+%C3%BC&x=1=2&&")
    assert list(query) == [
        ("includefield", "00081030"),
        ("limit", "5"),
        ("includefield", "a,b"),
        ("flag", ""),
        ("PatientName", "M ü"),
        ("x", "1=2"),
    ]
    assert query.first("limit") == "5"
    assert query.first("offset") is None
    assert query.first("offset", "0") == "0"
    assert query.all("includefield") == ["00081030", "a,b"]
    assert "flag" in query
    assert len(query) == 6


def test_reprs_show_no_query_values() -> None:
    request = Request("GET", "/studies?PatientName=DOE")
    assert "DOE" not in repr(request)
    assert "DOE" not in repr(request.query)


async def test_body_is_read_whole_or_in_chunks() -> None:
    assert [chunk async for chunk in RequestBody.of(b"ab", b"", b"c")] == [b"ab", b"c"]
    body = RequestBody.of(b"ab", b"c")
    assert body.content_length == 3
    assert await body.read(3) == b"abc"
    assert await body.read(3) == b""
    assert body.received_bytes == 3


async def test_body_longer_than_the_limit_is_413_before_anything_is_read() -> None:
    body = RequestBody.of(b"abcd")
    with pytest.raises(HTTPError) as refused:
        await body.read(3)
    assert refused.value.status == 413
    assert body.received_bytes == 0


async def test_body_of_unknown_length_is_413_at_the_limit() -> None:
    chunks = [b"ab"] * 100

    async def receive() -> bytes:
        return chunks.pop() if chunks else b""

    body = RequestBody(receive, maximum_bytes=5)
    with pytest.raises(HTTPError) as refused:
        await body.read()
    assert refused.value.status == 413
    assert body.received_bytes == 6


async def test_handler_may_lift_the_default_limit() -> None:
    body = RequestBody.of(b"abcd")
    body.maximum_bytes = 3
    with pytest.raises(HTTPError):
        await anext(body)
    body.maximum_bytes = None
    assert await body.read() == b"abcd"


async def test_json_body_or_400_without_the_data() -> None:
    assert await Request("POST", "/", body=RequestBody.of(b'{"a":', b"[1]}")).json() == {"a": [1]}
    for broken in (b"", b'{"PatientName": DOE}', b'"DOE\xff"'):
        with pytest.raises(HTTPError) as refused:
            await Request("POST", "/", body=RequestBody.of(broken)).json()
        assert refused.value.status == 400
        assert "DOE" not in refused.value.message


async def test_json_without_a_bottom_is_400() -> None:
    deep = RequestBody.of(b"[" * 10_000 + b"]" * 10_000)
    with pytest.raises(HTTPError, match="request body is not JSON: it is nested too deep") as refused:
        await Request("POST", "/", body=deep).json()
    assert refused.value.status == 400


def test_errors_are_json() -> None:
    answer = error_response(404, "Study not found", study="1.2.3")
    assert (answer.status, answer.body) == (404, b'{"error":"Study not found","study":"1.2.3"}')
    assert answer.headers.get("content-type") == "application/json"
    refusal = HTTPError(401, "who are you", headers={"WWW-Authenticate": "Bearer"}).response()
    assert refusal.headers.get("www-authenticate") == "Bearer"
    assert refusal.body == b'{"error":"who are you"}'
    assert json_response([1], 201).body == b"[1]"


@pytest.mark.parametrize("status", [0, 100, 199, 600])
def test_impossible_statuses_are_refused(status: int) -> None:
    with pytest.raises(ValueError, match=str(status)):
        Response(status)
