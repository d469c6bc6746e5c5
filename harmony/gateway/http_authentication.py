"""Authentication of HTTP requests: the middleware `basic_auth` and `jwt_auth`, and an endpoint's `authentication`.

A request that is let in carries its `Principal` in `state`. One that is not is answered 401 with the challenge of the
method (403 where it has none: a certificate), 429 with Retry-After while its sender is locked out, 503 when the keys
to check with cannot be had. The body of an answer says no more than its status.

A CORS preflight passes without credentials, as browsers send none with it (Fetch §3.2.2).
"""

from __future__ import annotations

from typing import Final

from harmony.gateway.authentication import Denied, Gate, retry_after
from harmony.gateway.principal import PRINCIPAL, Failure
from harmony.http import Handler, Request, Response, error_response
from harmony.http.cross_origin import CrossOrigin

__all__ = ["CREDENTIAL_HEADERS", "RequireAuthentication", "without_credentials"]

CREDENTIAL_HEADERS: Final = "credential_headers"
"""Key of `Request.state`: names of headers that were for this gateway, and for nobody behind it."""


class RequireAuthentication:
    """Lets those pass who prove who they are. An HttpMiddleware."""

    def __init__(self, gate: Gate, endpoint: str, *, cross_origin: CrossOrigin | None = None) -> None:
        """endpoint: its name, for outcomes. cross_origin: what lets pages read its answers, refusals among them."""
        self._gate = gate
        self._endpoint = endpoint
        self._cross_origin = cross_origin

    async def handle(self, request: Request, proceed: Handler) -> Response:
        asked = self._gate.authenticator
        if _is_preflight(request) and asked.header not in request.headers:
            return await proceed(request)
        try:
            principal = await self._gate.admit(
                lambda: asked.from_request(request),
                address=request.client[0],
                protocol="http",
                endpoint=self._endpoint,
            )
        except Denied as error:
            response = self._refusal(error)
            return self._cross_origin.applied(request, response) if self._cross_origin else response
        request.state[PRINCIPAL] = principal
        if not asked.forwardable:
            request.state[CREDENTIAL_HEADERS] = (*without_credentials(request), asked.header)
        return await proceed(request)

    def _refusal(self, error: Denied) -> Response:
        if error.failure in (Failure.LOCKED_OUT, Failure.UNAVAILABLE):
            status, text = (
                (429, "Too many failures") if error.failure is Failure.LOCKED_OUT else (503, "Try later")
            )
            response = error_response(status, text)
            response.headers = response.headers.set("Retry-After", retry_after(error.retry_after_s))
            return response
        challenge = self._gate.authenticator.challenge(presented=error.failure is not Failure.MISSING)
        if challenge is None:
            return error_response(403, "Forbidden")
        response = error_response(401, "Unauthorized")
        response.headers = response.headers.set("WWW-Authenticate", challenge)
        return response


def without_credentials(request: Request) -> tuple[str, ...]:
    """The headers that are not to be passed on, or shown."""
    names = request.state.get(CREDENTIAL_HEADERS, ())
    assert isinstance(names, tuple)
    return names


def _is_preflight(request: Request) -> bool:
    return (
        request.method == "OPTIONS"
        and "origin" in request.headers
        and "access-control-request-method" in request.headers
        and request.body.content_length == 0
    )
