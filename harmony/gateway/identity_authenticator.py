"""User identities that somebody else has vouched for: Kerberos tickets (type 3) and SAML assertions (type 4).

An Authenticator (`harmony.gateway.authenticators`) for associations; HTTP has other ways for both. What a ticket or an
assertion has to be is `harmony.gateway.kerberos`' and `harmony.gateway.saml`'s business. Neither can be guessed, so
that failures are not counted, as with JSON Web Tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from harmony.gateway.authenticators import (
    NAME_CHARS,
    Certificate,
    Evidence,
    EvidenceRefused,
    other_type,
)
from harmony.gateway.jwks import KeysUnavailable
from harmony.gateway.principal import Principal
from harmony.http import Request
from harmony.ul.items import UserIdentityRQ

__all__ = ["IDENTITY_TYPES", "Check", "IdentityAuthenticator"]

IDENTITY_TYPES: Final = {"kerberos": 3, "saml": 4}
"""PS3.7 Table D.3-14."""

Check = Callable[[bytes], tuple[str, bytes]]
"""Blocking: what was presented -> whose it is, and the server response (PS3.7 §D.3.3.7.2). Raises EvidenceRefused."""


class IdentityAuthenticator:
    """The primary field of a user identity, checked in a thread of its own."""

    guessable = False
    header = ""
    forwardable = True

    def __init__(self, method: str, check: Check, *, allowed_subjects: Collection[str] = ()) -> None:
        """method: a key of IDENTITY_TYPES. allowed_subjects: empty for all."""
        self.method = method
        self._check = check
        self._allowed = frozenset(allowed_subjects)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=method)

    def from_request(self, request: Request) -> None:
        return None

    def from_association(
        self, identity: UserIdentityRQ | None, certificate: Certificate | None
    ) -> Evidence | None:
        if identity is None:
            return None
        if identity.user_identity_type != IDENTITY_TYPES[self.method]:
            raise other_type(identity)
        return Evidence("", "", field=bytes(identity.primary_field))

    async def verify(self, evidence: Evidence) -> Principal:
        loop = asyncio.get_running_loop()
        try:
            checking = loop.run_in_executor(self._executor, self._check, evidence.field)
        except RuntimeError as error:  # it has been shut down
            raise KeysUnavailable("the gateway stops") from error
        name, response = await checking
        if self._allowed and name not in self._allowed:
            raise EvidenceRefused("it is for nobody who is allowed")
        return Principal(name[:NAME_CHARS], self.method, server_response=response)

    def challenge(self, *, presented: bool) -> None:
        return None

    async def aclose(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
