"""An http endpoint with nothing behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from harmony.gateway.app import Gateway
from harmony.http.client import HTTPClient

PATIENCE_S = 20.0


@pytest.fixture
async def client(
    free_port: int, load_config: Callable[[str], Any], no_leaks: None
) -> AsyncIterator[HTTPClient]:
    gateway = Gateway(
        load_config(
            f"""
            [proxy]
            id = "nothing"
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {free_port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["e"]
            middleware = ["filter"]
            backends = []
            [endpoints.e]
            service = "http"
            options.path_prefix = "/here"
            [middleware.filter]
            type = "path_filter"
            options.rules = ["/a/*"]
            """
        )
    )
    await gateway.start()
    try:
        async with HTTPClient(f"http://127.0.0.1:{free_port}", timeout_s=PATIENCE_S) as found:
            yield found
    finally:
        await gateway.stop(0.0)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_what_the_middleware_lets_pass_is_answered_200(client: HTTPClient, method: str) -> None:
    content = bytes(1_000_000) if method in ("POST", "PUT", "PATCH") else b""
    answer = await client.request(method, "/here/a/b?q=1", body=content)
    assert (answer.status, answer.body) == (200, b"")
    assert (await client.request(method, "/here/b", body=content)).status == 404
    assert (await client.request(method, "/elsewhere")).status == 404
