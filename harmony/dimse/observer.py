"""Watching what happens on associations, for statistics (no part of the standard).

An `Observer` is told of each association and of each operation that was answered, with its status and how long it
took. `Services.observe` sets one for what a server performs, `Peer` and `associate` take one for what is invoked;
without one nothing is measured. An association has one observer: what is invoked on an accepted association, as the
sub-operations of a C-GET are, comes to the observer of its services.

C-STOREs come by the thousand in a second: `performed` and `invoked` should count and return.
"""

from __future__ import annotations

from typing import Protocol

from harmony.dimse.command import Message
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["Observer"]


class Observer(Protocol):
    """Called from the event loop; must neither block nor raise."""

    def established(self, association: Association) -> None:
        """An association exists. The services may yet refuse it; then it ends at once."""

    def ended(self, association: Association, error: AssociationError | None) -> None:
        """It is over: None after a release, else why."""

    def not_established(self, error: AssociationError) -> None:
        """An association that we requested was not made. (`Acceptor.rejections` counts those that we rejected.)"""

    def performed(self, request_type: type[Message], status: int, elapsed_s: float) -> None:
        """A request of the peer was answered with this final status.

        elapsed_s: for a C-STORE from its command set to the response, so that the transfer of the data set is part
        of it; else from the complete request to the final response. Command sets that cannot be decoded and
        operations that are not answered because the association ended are not reported.
        """

    def invoked(self, request_type: type[Message], status: int | None, elapsed_s: float) -> None:
        """The peer answered a request of ours with this final status, or the association ended first: None.

        elapsed_s: from the moment in which the request began to leave.
        """
