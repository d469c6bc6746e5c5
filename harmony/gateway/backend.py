"""The one interface between endpoints, middleware and backends (docs/DESIGN.md, "The gateway").

An endpoint calls a `Backend`; backends are one; middleware is a Backend around a Backend. So far a Backend stores
instances; queries and retrieval join it with the services that need them.
"""

from __future__ import annotations

from typing import Protocol

from harmony.dimse.exchange import StoreRequest
from harmony.dimse.sink import Sink
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["Backend"]


class Backend(Protocol):
    """What can be done with what an endpoint receives. Called from the event loop; nothing here blocks.

    str() names it in messages to the operator.
    """

    async def start(self) -> None:
        """Get ready, before any endpoint listens; raises OSError or sqlite3.Error when it cannot."""

    async def stop(self, grace_s: float) -> None:
        """Finish what is under way within grace_s, after every endpoint has stopped. Once more after it was
        cancelled."""

    def store(self, request: StoreRequest) -> Sink:
        """The sink for one instance; raises DimseError to refuse it."""

    def association_established(self, association: Association) -> None:
        """Instances may come from this association."""

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        """No more come; error None after a release."""
