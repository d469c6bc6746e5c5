"""The echo endpoint and backend of a running gateway."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from harmony.gateway.app import Gateway
from harmony.gateway.greeting import greeting
from harmony.http.client import HTTPClient, UpstreamResponse


@pytest.fixture
async def start(free_port: int, load_config: Callable[[str], Any]) -> AsyncIterator[Callable[..., Any]]:
    """await start(service="echo") -> ask(method, path, ...) of an endpoint at /echo."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(
            service: str = "echo", *, middleware: str = "[]", backends: str = "[]", proxy: str = ""
        ) -> Callable[..., Any]:
            config = load_config(
                f"""
                [proxy]
                id = "echo"
                {proxy}
                [network.n.http]
                bind_address = "127.0.0.1"
                bind_port = {free_port}
                [pipelines.p]
                networks = ["n"]
                endpoints = ["e"]
                middleware = {middleware}
                backends = {backends}
                [endpoints.e]
                service = "{service}"
                options.path_prefix = "/echo"
                [backends.b]
                service = "echo"
                """
            )
            gateway = Gateway(config)
            await gateway.start()
            stack.push_async_callback(gateway.stop, 0.0)
            client = await stack.enter_async_context(
                HTTPClient(f"http://127.0.0.1:{free_port}", timeout_s=20.0)
            )

            async def ask(method: str, path: str, **options: Any) -> UpstreamResponse:
                return await client.request(method, path, **options)

            return ask

        yield begin


@pytest.mark.parametrize(("service", "backends"), [("echo", "[]"), ("echo", '["b"]'), ("http", '["b"]')])
async def test_echo(start, service: str, backends: str) -> None:
    ask = await start(service, backends=backends)
    answer = await ask("GET", "/echo", headers={"X-Custom": "1", "Accept": "*/*"})
    assert (answer.status, answer.headers.get("content-type")) == (200, "application/json")
    content = json.loads(answer.body)
    assert (content["path"], content["full_path"], content["original_data"]) == ("", "/echo", "")
    assert (content["headers"]["x-custom"], content["headers"]["accept"]) == ("1", "*/*")
    answer = await ask("POST", "/echo/a%20b/c?q=1", body=b'{"a": "\xc3\xbc"}')
    content = json.loads(answer.body)
    assert (content["path"], content["full_path"]) == ("a b/c", "/echo/a b/c")
    assert content["original_data"] == '{"a": "ü"}'
    assert list(content) == ["path", "full_path", "headers", "original_data"]


@pytest.mark.parametrize(("service", "backends"), [("echo", "[]"), ("http", '["b"]')])
async def test_the_greeting_says_what_to_type(
    load_config, start, service: str, backends: str, free_port: int
) -> None:
    ask = await start(service, backends=backends)
    config = load_config(
        f"""
        [proxy]
        id = "echo"
        [network.n.http]
        bind_address = "127.0.0.1"
        bind_port = {free_port}
        [pipelines.p]
        networks = ["n"]
        endpoints = ["e"]
        backends = {backends}
        [endpoints.e]
        service = "{service}"
        options.path_prefix = "/echo"
        [backends.b]
        service = "echo"
        """
    )
    (hint,) = [line for line in greeting(Gateway(config)) if "try:" in line]
    url = f"http://127.0.0.1:{free_port}/echo"
    assert hint.strip() == f"try: curl {url}"
    assert (await ask("GET", "/echo")).status == 200


async def test_bodies_that_are_no_text(start) -> None:
    ask = await start()
    content = json.loads((await ask("POST", "/echo", body=b"\xff\x00")).body)
    assert (content["original_data"], content["original_data_encoding"]) == ("/wA=", "base64")


@pytest.mark.parametrize(("service", "status"), [("echo", 405), ("http", 200)])
async def test_methods(start, service: str, status: int) -> None:
    ask = await start(service, backends='["b"]')
    assert (await ask("PUT", "/echo")).status == status
    assert (await ask("DELETE", "/echo")).status == status
    assert (await ask("HEAD", "/echo")).status == 200


async def test_bodies_have_a_limit(start) -> None:
    ask = await start(proxy="content_limits.max_body_size = 1024")
    assert (await ask("POST", "/echo", body=bytes(1024))).status == 200
    assert (await ask("POST", "/echo", body=bytes(1025))).status == 413


@pytest.mark.parametrize(
    ("middleware", "marks"),
    [
        ('["passthru"]', {"mw_left", "mw_right"}),
        ('{ left = ["passthru"], right = [] }', {"mw_left"}),
        ('{ left = [], right = ["passthru"] }', {"mw_right"}),
    ],
)
async def test_passthru_leaves_a_mark(start, middleware: str, marks: set[str]) -> None:
    ask = await start(middleware=middleware)
    content = json.loads((await ask("GET", "/echo")).body)
    assert {key for key in content if key.startswith("mw_")} == marks
