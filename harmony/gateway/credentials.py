"""How a backend proves who it is: from `[authentications.<name>]` to a header or a user identity (PS3.7 §D.3.3.7).

Tokens that change, of a file (`token_path`) or signed by us (`jwt`), are asked for at each request and association.
"""

from __future__ import annotations

from collections.abc import Callable

from harmony.gateway import providers
from harmony.gateway.config import Authentication as ConfiguredAuthentication
from harmony.gateway.options import AuthenticationOptions
from harmony.http.client import Authentication
from harmony.ul.items import UserIdentityRQ

__all__ = ["authentication_towards_upstream", "user_identity_towards"]

OF_THE_CONNECTION = ("none", "mutual_tls")
"""Methods that add nothing to a request."""


def authentication_towards_upstream(
    configured: ConfiguredAuthentication | None,
) -> Authentication | Callable[[], Authentication] | None:
    """Raises ValueError, without any secret, for what cannot be used; OSError for a token that cannot be read."""
    if configured is None or configured.method in OF_THE_CONNECTION:
        return None
    options = configured.options
    assert isinstance(options, AuthenticationOptions)
    match configured.method:
        case "basic" if options.username is not None and options.password is not None:
            return Authentication.basic(options.username, options.password.reveal())
        case "bearer" | "jwt":
            token = providers.token_towards(configured.method, options)
            Authentication.bearer(token())  # ValueError for what no header can carry
            return lambda: Authentication.bearer(token())
        case "api_key" if options.api_key is not None:
            return Authentication.api_key(options.api_key.reveal(), header=options.header_name)
        case method:
            raise ValueError(
                f"authentication {configured.id}: method {method} cannot be used towards an upstream"
            )


def user_identity_towards(
    configured: ConfiguredAuthentication | None,
) -> UserIdentityRQ | Callable[[], UserIdentityRQ] | None:
    """For a PACS: a user name with its passcode (type 2), or a token that somebody, or we, have issued (type 5).

    No response is asked for: a PACS that does not know the item disregards it, and is as good as before.
    Raises ValueError, without any secret, for what cannot be used; OSError for a token that cannot be read.
    """
    if configured is None or configured.method in OF_THE_CONNECTION:
        return None
    options = configured.options
    assert isinstance(options, AuthenticationOptions)
    match configured.method:
        case "basic" if options.username is not None and options.password is not None:
            return UserIdentityRQ(2, options.username.encode(), options.password.reveal().encode())
        case "bearer" | "jwt":
            token = providers.token_towards(configured.method, options)
            return lambda: UserIdentityRQ(5, token().encode())
        case method:
            raise ValueError(f"authentication {configured.id}: method {method} cannot be used towards a PACS")
