"""How a backend proves who it is to an upstream over HTTP: from `[authentications.<name>]` to a header."""

from __future__ import annotations

from harmony.gateway.config import Authentication as ConfiguredAuthentication
from harmony.gateway.options import AuthenticationOptions
from harmony.http.client import Authentication

__all__ = ["authentication_towards_upstream"]


def authentication_towards_upstream(configured: ConfiguredAuthentication | None) -> Authentication | None:
    """Raises ValueError, without any secret, for what cannot be used."""
    if configured is None or configured.method in (
        "none",
        "mutual_tls",
    ):  # the latter is a matter of the connection
        return None
    options = configured.options
    assert isinstance(options, AuthenticationOptions)
    match configured.method:
        case "basic" if options.username is not None and options.password is not None:
            return Authentication.basic(options.username, options.password.reveal())
        case "bearer" if options.token is not None:
            return Authentication.bearer(options.token.reveal())
        case "api_key" if options.api_key is not None:
            return Authentication.api_key(options.api_key.reveal(), header=options.header_name)
        case method:
            raise ValueError(
                f"authentication {configured.id}: method {method} cannot be used towards an upstream"
            )
