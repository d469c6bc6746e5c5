"""Operations that a peer invokes and we perform, as handlers and sinks see them (PS3.7 §7.5, §9, §10).

A C-STORE is announced to `Services.open_sink` as a `StoreRequest`, before its data set comes. Any other request is
an `Operation`, which a handler performs in a task of its own. `harmony.dimse.exchange` makes both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from time import perf_counter
from typing import TYPE_CHECKING, Any, get_args

from harmony.dimse.command import CStoreRQ, Message
from harmony.dimse.status import Outcome, StatusClass, classify
from harmony.ul.association import Association
from harmony.ul.negotiation import PresentationContext

if TYPE_CHECKING:
    from harmony.dimse.exchange import Exchange

__all__ = ["Handler", "Operation", "StoreRequest", "response_to"]


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE-RQ on its way to a sink: what is known before the data set comes."""

    command: CStoreRQ
    context: PresentationContext
    association: Association
    received_at: float = 0.0
    """By time.perf_counter; 0.0 when nobody observes."""

    @property
    def affected_sop_class_uid(self) -> str:
        return self.command.affected_sop_class_uid

    @property
    def affected_sop_instance_uid(self) -> str:
        return self.command.affected_sop_instance_uid

    @property
    def transfer_syntax_uid(self) -> str:
        """Of the presentation context: the exact encoding of the data set's bytes."""
        return self.context.transfer_syntax

    @property
    def calling_ae_title(self) -> str:
        return self.association.agreed.calling_ae_title

    @property
    def called_ae_title(self) -> str:
        return self.association.agreed.called_ae_title


class Operation:
    """A request other than C-STORE, being performed by a handler task.

    request: the message. data_set: its Identifier or list, or None. context: the presentation context it came
    on. exchange: to invoke operations on the same association, as a C-GET does. cancelled: set when the peer
    sent C-CANCEL-RQ for it, or the association is over.
    """

    def __init__(
        self, exchange: Exchange, request: Message, data_set: bytes | None, context: PresentationContext
    ) -> None:
        self.exchange = exchange
        self.request = request
        self.data_set = data_set
        self.context = context
        self.received_at = perf_counter()
        self.cancelled = asyncio.Event()
        self.answered = False
        """True once the final response has begun to leave; its Message ID is then free again."""

    @property
    def association(self) -> Association:
        return self.exchange.association

    async def respond(self, response: Message, data_set: bytes | None = None) -> None:
        """Send a response, Pending or final; waits while the peer is slow to read. Nothing may follow the
        final one.

        Raises what ended the association, ValueError when the message announces a data set that is not given or
        the other way round, RuntimeError after the final response.
        """
        if response.data_set_present != (data_set is not None):
            raise ValueError(
                f"{type(response).__name__} has data_set_present={response.data_set_present}, "
                f"data_set {'is not given' if data_set is None else 'is given'}"
            )
        command = response.encode()
        final = classify(getattr(response, "status", 0)) is not StatusClass.PENDING
        writer = self.exchange.writer
        async with writer.turn:
            if self.answered:
                raise RuntimeError("the final response has been sent")
            if final:
                self.exchange.operation_answered(self, getattr(response, "status", 0))
            await writer.write(self.context.presentation_context_id, command, data_set)


Handler = Callable[[Operation], Awaitable[Outcome | None] | Outcome | None]
"""Performs an operation. It may send responses itself; the Outcome it returns is the final one if it did
not."""


def _layouts() -> dict[int, tuple[type[Any], frozenset[str]]]:
    return {
        message_type.command_field: (message_type, frozenset(field.name for field in fields(message_type)))
        for message_type in get_args(Message)
        if not message_type.is_request
    }


_RESPONSES = _layouts()
"""Response type and its field names, by Command Field."""


def response_to(request: Message, outcome: Outcome) -> Message:
    """The final response to a request, of the type that belongs to it, with an outcome and nothing else to
    say.

    It repeats the SOP Class and Instance UIDs: optional in most responses, yet many SCUs look at them.
    """
    response_type, names = _RESPONSES[request.command_field | 0x8000]
    elements = {
        "message_id_being_responded_to": getattr(request, "message_id", 0),
        "status": outcome.status,
        "affected_sop_class_uid": _uid(request, "sop_class_uid"),
        "affected_sop_instance_uid": _uid(request, "sop_instance_uid"),
        "error_comment": outcome.error_comment,
        "offending_elements": outcome.offending_elements,
    }
    response: Message = response_type(**{name: value for name, value in elements.items() if name in names})
    return response


def _uid(request: Message, name: str) -> str:
    """What a request calls affected or requested, responses call affected."""
    return str(getattr(request, f"affected_{name}", "") or getattr(request, f"requested_{name}", ""))
