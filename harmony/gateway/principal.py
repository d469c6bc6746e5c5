"""Who somebody has proven to be, and what became of the attempt: what authentication leaves behind for others.

`Principal` is in `Request.state[PRINCIPAL]` and in `Association.principal`. Every attempt, good or not, is an
`AuthenticationOutcome`, and whoever keeps an audit trail is called with it (`Authentications.subscribe`). An outcome
holds names and addresses, never a secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

__all__ = ["PRINCIPAL", "AuthenticationOutcome", "Failure", "OnAuthentication", "Principal", "Protocol"]

PRINCIPAL: Final = "principal"
"""Key of `Request.state`."""

Protocol = Literal["http", "dicom"]


@dataclass(frozen=True, slots=True)
class Principal:
    name: str
    """The user name, the subject of a token or a certificate, or the id of the table where a key names nobody."""
    method: str
    """Of the `[authentications]` table: basic, bearer, api_key, jwt, mutual_tls, kerberos or saml."""
    server_response: bytes = field(default=b"", repr=False, compare=False)
    """For a requestor that asks for one (PS3.7 §D.3.3.7.2): what authenticates us to it."""


class Failure(Enum):
    MISSING = "nothing was presented"
    MALFORMED = "what was presented is malformed"
    REFUSED = "what was presented is not accepted"
    LOCKED_OUT = "too many failures"
    UNAVAILABLE = "the keys to check with could not be had"


@dataclass(frozen=True, slots=True)
class AuthenticationOutcome:
    """One attempt."""

    authentication: str
    """The id of the `[authentications]` table, or the name of the middleware."""
    method: str
    name: str
    """Who it is; after a failure who it claims to be, "" where that is not known."""
    address: str
    """Where it comes from, without a port."""
    protocol: Protocol
    endpoint: str
    failure: Failure | None = None
    """None: success."""
    reason: str = ""
    """Of a failure, in more detail than its sender is told."""
    calling_ae_title: str = ""
    """Of an association."""


OnAuthentication = Callable[[AuthenticationOutcome], None]
"""Called from the event loop; must neither block nor raise."""
