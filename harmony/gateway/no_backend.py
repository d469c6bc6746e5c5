"""An `http` endpoint of a pipeline with `backends = []`: every request that its middleware lets pass is answered 200,
without a body.

It is what load balancers and tests of a configuration ask, and where middleware answers by itself. What is sent to it
is read and thrown away; the log says so when the gateway starts.
"""

from __future__ import annotations

import logging

from harmony.gateway.config import Endpoint
from harmony.gateway.http_backend import METHODS
from harmony.gateway.options import HttpEndpointOptions
from harmony.http import Request, Response, Router, normalize_prefix

__all__ = ["NoBackend"]

logger = logging.getLogger("harmony.gateway")


class NoBackend:
    def __init__(self, endpoint: Endpoint) -> None:
        options = endpoint.options
        assert isinstance(options, HttpEndpointOptions)
        self._name = endpoint.name
        self._prefix = normalize_prefix(options.path_prefix).rstrip("/")
        logger.warning("%s: there is no backend: every request is answered 200 and goes nowhere", self._name)

    def add_routes(self, router: Router) -> None:
        """Raises RouteConflict when another endpoint of the network has one of them."""
        description = "200 without a body, no backend"
        router.add(METHODS, self._prefix + "/{rest*}", self.answer, name=self._name, description=description)

    async def answer(self, request: Request) -> Response:
        async for _ in request.body:
            pass
        return Response(200)
