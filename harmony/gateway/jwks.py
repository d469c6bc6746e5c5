"""The public keys of a token issuer, fetched from its JWK Set and kept (RFC 7517 §5).

Fetched when first needed, again when `keep_s` is over or a token names a key that is not in it: an issuer has new keys
now and then. No matter what tokens say it is asked at most every RETRY_S, one request at a time. While it cannot be
reached the old keys go on for as long again, and no longer: an issuer that withdraws a key must be heard.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from harmony.http.client import HTTPClient, UpstreamError

__all__ = ["JwkSet", "KeysUnavailable", "fetch_from"]

logger = logging.getLogger("harmony.gateway")

RETRY_S: Final = 60.0
TIMEOUT_S: Final = 5.0
"""For each phase; a caller waits."""
MAXIMUM_SET_BYTES: Final = 256 * 1024
KEEP_S: Final = 24 * 3600.0


class KeysUnavailable(Exception):
    """There are no keys to check with; the caller may come again later."""


class Named(Protocol):
    @property
    def kid(self) -> str | None: ...


KeyT = TypeVar("KeyT", bound=Named)

Fetch = Callable[[], Awaitable[bytes]]
"""Raises KeysUnavailable."""


class JwkSet(Generic[KeyT]):
    """A KeySource (`harmony.gateway.json_web_token`)."""

    def __init__(
        self,
        fetch: Fetch,
        parse: Callable[[bytes], list[KeyT]],
        *,
        client: HTTPClient | None = None,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """parse: raises ValueError for what is no set of keys. client: to close in the end."""
        self._client = client
        self._fetch = fetch
        self._parse = parse
        self._keep_s = keep_s
        self._clock = clock
        self._keys: list[KeyT] = []
        self._fetched_at = -math.inf
        self._asked_at = -math.inf
        self._refreshing: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> KeyT | None:
        """The key with this name; without a name the only key. Raises KeysUnavailable when there are none."""
        if self._age_s > self._keep_s or (kid is not None and self._named(kid) is None):
            if self._refreshing is None and self._clock() - self._asked_at >= RETRY_S:
                self._asked_at = self._clock()
                self._refreshing = asyncio.create_task(self._refresh())
            if self._refreshing is not None:
                # A caller that leaves must not take the keys of the others with it.
                await asyncio.shield(self._refreshing)
        if self._age_s > 2 * self._keep_s:
            raise KeysUnavailable("the keys of the issuer could not be fetched")
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return self._named(kid)

    @property
    def _age_s(self) -> float:
        return self._clock() - self._fetched_at

    def _named(self, kid: str) -> KeyT | None:
        return next((key for key in self._keys if key.kid == kid), None)

    async def _refresh(self) -> None:
        """Leaves the old ones in place when it fails."""
        try:
            keys = self._parse(await self._fetch())
        except (KeysUnavailable, ValueError) as error:
            logger.warning("the keys of a token issuer could not be fetched: %s", error)
        else:
            self._keys, self._fetched_at = keys, self._clock()
        finally:
            self._refreshing = None

    async def aclose(self) -> None:
        """Give up a request that is under way."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait((self._refreshing,))
        if self._client is not None:
            await self._client.aclose()


def fetch_from(uri: str, *, ca_cert_path: Path | None) -> tuple[Fetch, HTTPClient]:
    """What fetches a set from this URI, and the client to close in the end.

    Raises ValueError for a URI that is not one, OSError when the CA file cannot be read.
    """
    url = urlsplit(uri)
    client = HTTPClient(
        f"{url.scheme}://{url.netloc}{url.path}",
        timeout_s=TIMEOUT_S,
        ca_cert_path=ca_cert_path,
        maximum_connections=1,
        maximum_response_bytes=MAXIMUM_SET_BYTES,
    )
    query = f"?{url.query}" if url.query else ""

    async def fetch() -> bytes:
        try:
            answer = await client.request("GET", query, headers={"Accept": "application/json"})
        except UpstreamError as error:
            raise KeysUnavailable(error.message) from error
        if answer.status != 200 or answer.truncated:
            what = f"answered {answer.status}" if answer.status != 200 else "sent too much"
            raise KeysUnavailable(f"{url.netloc} {what}, expected 200 and at most {MAXIMUM_SET_BYTES} bytes")
        return answer.body

    return fetch, client
