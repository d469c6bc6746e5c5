"""The Authorization header, read; and the challenge that asks for it (RFC 9110 §11, RFC 7617, RFC 6750 §2.1).

A header of another scheme is no credentials: the caller asks for its own. One of the right scheme that is not what its
RFC says is `MalformedCredentials`, whose text holds nothing of it. Who may enter is decided elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from harmony.http.headers import Headers

__all__ = [
    "MAXIMUM_CREDENTIALS_CHARS",
    "MalformedCredentials",
    "basic_credentials",
    "bearer_token",
    "challenge",
]

MAXIMUM_CREDENTIALS_CHARS: Final = 16384
"""Of an Authorization header: a JSON Web Token with many groups in it, and more than any password."""

_BEARER: Final = re.compile(r"[0-9A-Za-z._~+/-]+=*")  # RFC 6750 §2.1, b64token


class MalformedCredentials(Exception):
    """The scheme is right, the rest is not."""


def basic_credentials(headers: Headers) -> tuple[str, str] | None:
    """User name and password (RFC 7617); None when there are none. Raises MalformedCredentials.

    The first colon separates: passwords may hold others. Octets are UTF-8, or ISO 8859-1 where they are not: what
    clients send that do not know of the charset parameter.
    """
    encoded = _credentials(headers, "basic")
    if encoded is None:
        return None
    try:
        octets = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise MalformedCredentials("not Base64") from None
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        text = octets.decode("latin-1")
    name, colon, password = text.partition(":")
    if not colon:
        raise MalformedCredentials("no colon")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise MalformedCredentials("control character")
    return name, password


def bearer_token(headers: Headers) -> str | None:
    """The token (RFC 6750 §2.1); None when there is none. Raises MalformedCredentials."""
    token = _credentials(headers, "bearer")
    if token is not None and not _BEARER.fullmatch(token):
        raise MalformedCredentials("not a token")
    return token


def challenge(scheme: str, **parameters: str) -> str:
    """The value of WWW-Authenticate (RFC 9110 §11.6.1). Values must not need quoting themselves."""
    listed = ", ".join(f'{name}="{value}"' for name, value in parameters.items())
    return f"{scheme} {listed}"


def _credentials(headers: Headers, scheme: str) -> str | None:
    """What follows the scheme."""
    values = headers.get_all("authorization")
    if len(values) > 1:  # which of them would the next one believe?
        raise MalformedCredentials("more than one Authorization header")
    if not values:
        return None
    given, _, rest = values[0].strip(" \t").partition(" ")
    if given.lower() != scheme:
        return None
    if len(rest) > MAXIMUM_CREDENTIALS_CHARS:
        raise MalformedCredentials("too long")
    return rest.strip(" ")
