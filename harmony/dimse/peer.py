"""A remote application entity: where it is, and how to associate with it (PS3.8 §7.1).

The value that address books hold: destinations of C-MOVE, the peers of a pool, the targets of a gateway. What is
proposed differs from one association to the next and is a `Proposal`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from harmony.dimse.information_model import Proposal
from harmony.dimse.observer import Observer
from harmony.dimse.scp import Services
from harmony.dimse.scu import DEFAULT_RESPONSE_S, SCU, associate
from harmony.ul import Timeouts
from harmony.ul.items import UserIdentityRQ
from harmony.ul.negotiation import DEFAULT_MAXIMUM_LENGTH
from harmony.ul.tls import TLSContext

__all__ = ["Peer"]


@dataclass(frozen=True, slots=True)
class Peer:
    """An application entity that listens. Immutable; equal values are the same peer."""

    host: str
    port: int
    called_ae_title: str = "ANY-SCP"
    calling_ae_title: str = ""
    """Ours towards it. Empty: the AE title that a C-MOVE was sent to for a destination, else HARMONY_SCU."""
    ssl_context: TLSContext | None = None
    server_hostname: str | None = None
    user_identity: UserIdentityRQ | Callable[[], UserIdentityRQ] | None = None
    """A function is asked for one at every association."""
    maximum_length: int = DEFAULT_MAXIMUM_LENGTH
    maximum_operations: int | None = None
    """The asynchronous operations window to ask for; None does not ask."""
    timeouts: Timeouts | None = None
    response_s: float | None = DEFAULT_RESPONSE_S
    observer: Observer | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.called_ae_title} at {self.host}:{self.port}"

    def associate(
        self, proposal: Proposal, *, services: Services | None = None
    ) -> AbstractAsyncContextManager[SCU]:
        """An association for the length of the block, as `scu.associate` makes it."""
        return associate(
            self.host,
            self.port,
            called_ae_title=self.called_ae_title,
            calling_ae_title=self.calling_ae_title or "HARMONY_SCU",
            contexts=proposal.contexts,
            roles=proposal.roles,
            extended_negotiations=proposal.extended_negotiations,
            user_identity=self.user_identity() if callable(self.user_identity) else self.user_identity,
            maximum_operations=self.maximum_operations,
            maximum_length=self.maximum_length,
            services=services,
            ssl_context=self.ssl_context,
            server_hostname=self.server_hostname,
            timeouts=self.timeouts,
            response_s=self.response_s,
            observer=self.observer,
        )
