"""Arrays of JSON objects, cut anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from harmony.http.json_array import JSONArrayError, read_json_array


async def chunks(text: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


async def read(text: bytes, size: int = 1, **options: int) -> list[bytes]:
    return [each async for each in read_json_array(chunks(text, size), **options)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "objects"),
    [
        (b"", []),
        (b" [ ] ", []),
        (b"[{}]", [b"{}"]),
        (b'\r\n[ {"a": [1, {"b": {}}]} ,\n{"c":2}\t]\n', [b'{"a": [1, {"b": {}}]}', b'{"c":2}']),
        (b'[{"a": "}{]["}, {"b": "\\"}\\\\"}]', [b'{"a": "}{]["}', b'{"b": "\\"}\\\\"}']),
        (b'{"a": {"b": 1}}\n', [b'{"a": {"b": 1}}']),
    ],
)
async def test_objects(text: bytes, objects: list[bytes], size: int) -> None:
    assert await read(text, size) == objects


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize(
    "text",
    [
        b"<html>",
        b"[1]",
        b"[[{}]]",
        b"[{}] {}",
        b"{} {}",
        b"[{}",
        b'[{"a": 1',
        b'[{"a": "}]',
        b"[",
        b"null",
        b"[]]",
    ],
)
async def test_what_is_none(text: bytes, size: int) -> None:
    with pytest.raises(JSONArrayError):
        await read(text, size)


async def test_an_object_without_end() -> None:
    with pytest.raises(JSONArrayError):
        await read(b'[{"a": "' + b"x" * 1000, 10, maximum_object_bytes=100)


async def test_a_long_string_in_small_chunks() -> None:
    """Looked at from its beginning for each chunk, it would take minutes: far longer than a test may."""
    text = b'[{"a": "' + b'x\\"' * 5_000_000 + b'"}]'
    assert await read(text, 1000) == [text[1:-1]]
