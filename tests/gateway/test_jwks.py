"""Keys that are fetched: when, how often, for how long, and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from harmony.gateway.jwks import MAXIMUM_SET_BYTES, RETRY_S, JwkSet, KeysUnavailable, fetch_from
from harmony.http import HTTPServer, Request, Response


@dataclass(frozen=True)
class Key:
    kid: str | None


def parse(content: bytes) -> list[Key]:
    if content == b"broken":
        raise ValueError("is not a JWK Set")
    return [Key(name or None) for name in content.decode().split(",")]


@dataclass
class Issuer:
    """Answers a fetch, and is the clock."""

    content: bytes | None = b"a,b"
    now: float = 1000.0
    asked: int = 0
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.let_go.set()

    async def fetch(self) -> bytes:
        self.asked += 1
        await self.let_go.wait()
        if self.content is None:
            raise KeysUnavailable("down")
        return self.content

    def keys(self) -> JwkSet[Key]:
        return JwkSet(self.fetch, parse, keep_s=3600.0, clock=lambda: self.now)


async def test_fetched_once() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    for _ in range(3):
        assert await keys.find("a") == Key("a")
    assert issuer.asked == 1


async def test_without_a_name_the_only_one() -> None:
    assert await Issuer(b"a").keys().find(None) == Key("a")
    assert await Issuer(b"").keys().find(None) == Key(None)
    assert await Issuer(b"a,b").keys().find(None) is None


async def test_a_name_that_is_not_known_asks_again_but_not_too_often() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    assert await keys.find("c") is None
    issuer.content = b"a,b,c"
    for _ in range(100):
        assert await keys.find("c") is None
    issuer.now += RETRY_S
    assert await keys.find("c") == Key("c")
    assert issuer.asked == 2


async def test_many_at_once_ask_once() -> None:
    issuer = Issuer()
    issuer.let_go.clear()
    keys = issuer.keys()
    tasks = [asyncio.create_task(keys.find("a")) for _ in range(20)]
    while not issuer.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    tasks.pop(0).cancel()  # the one that asked
    issuer.let_go.set()
    assert await asyncio.gather(*tasks) == [Key("a")] * 19
    assert issuer.asked == 1


@pytest.mark.parametrize("content", [None, b"broken"])
async def test_old_keys_go_on_for_a_while(content: bytes | None) -> None:
    issuer = Issuer()
    keys = issuer.keys()
    await keys.find("a")
    issuer.content = content
    issuer.now += 3601.0
    assert await keys.find("a") == Key("a")
    issuer.now += 3600.0
    with pytest.raises(KeysUnavailable):
        await keys.find("a")
    issuer.content = b"a"
    issuer.now += RETRY_S
    assert await keys.find("a") == Key("a")


async def test_no_keys_yet() -> None:
    issuer = Issuer(None)
    keys = issuer.keys()
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await keys.find("a")
    assert issuer.asked == 1


async def test_closing_gives_up() -> None:
    issuer = Issuer()
    issuer.let_go.clear()
    keys = issuer.keys()
    waiting = asyncio.create_task(keys.find("a"))
    while not issuer.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await keys.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, list[Response], list[Request]]]:
    answers: list[Response] = []
    requests: list[Request] = []

    async def answer(request: Request) -> Response:
        requests.append(request)
        return answers.pop(0)

    served = HTTPServer(answer)
    await served.start("127.0.0.1", 0)
    host, port = served.addresses[0]
    yield f"http://{host}:{port}", answers, requests
    await served.stop(0.0)


async def test_over_http(server: tuple[str, list[Response], list[Request]]) -> None:
    url, answers, requests = server
    fetch, client = fetch_from(f"{url}/realm/certs?a=b", ca_cert_path=None)
    async with client:
        answers.append(Response(200, {}, b"a"))
        assert await fetch() == b"a"
        assert (requests[0].path, requests[0].raw_query) == ("/realm/certs", "a=b")
        answers.append(Response(302, {"Location": "/elsewhere"}))
        with pytest.raises(KeysUnavailable, match="answered 302"):
            await fetch()
        answers.append(Response(200, {}, b"a" * (MAXIMUM_SET_BYTES + 1)))
        with pytest.raises(KeysUnavailable, match="sent too much"):
            await fetch()


async def test_nobody_there(free_port: int) -> None:
    fetch, client = fetch_from(f"http://127.0.0.1:{free_port}/", ca_cert_path=None)
    async with client:
        with pytest.raises(KeysUnavailable):
            await fetch()
