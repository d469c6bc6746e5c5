"""C-FIND, both roles (PS3.4 §C.4.1, PS3.7 §9.1.2).

As SCU: `find` yields the matches as they arrive. Leaving the iteration early, reaching `limit` or being cancelled
sends C-CANCEL-RQ and waits, not for ever, for the final response.

    async with contextlib.aclosing(find(scu, STUDY_ROOT.find, identifier)) as matches:
        async for match in matches: ...

As SCP: `find_handler` turns a function that yields matching Identifiers into a handler for `Services.operation`.

Identifiers are bytes in the transfer syntax of the presentation context; what they say is for those above.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from harmony.dimse.cancellation import (
    CANCEL_S,
    End,
    Interrupted,
    Interruption,
    OperationInterrupted,
    close_iterator,
    end_early,
    is_loss,
    send_cancel,
)
from harmony.dimse.command import PRIORITY_MEDIUM, CFindRQ, CFindRSP
from harmony.dimse.information_model import Identifier, accepted_context, encode_identifier
from harmony.dimse.invocation import Response
from harmony.dimse.operation import Handler, Operation
from harmony.dimse.scu import SCU
from harmony.dimse.status import DimseError, Outcome, Status, StatusClass
from harmony.ul.errors import AssociationError

__all__ = ["Match", "find", "find_handler"]

logger = logging.getLogger("harmony.dimse")


@dataclass(frozen=True, slots=True)
class Match:
    """One matching entity.

    status: 0xFF00, or 0xFF01 where the SCP did not support an optional key (PS3.4 §C.4.1.1.4).
    transfer_syntax_uid: of the Identifier; empty from a `find_handler` query means that of the context.
    """

    identifier: bytes
    status: int = Status.PENDING
    transfer_syntax_uid: str = ""


# --- SCU ------------------------------------------------------------------------------------------------


async def find(
    scu: SCU,
    sop_class_uid: str | Sequence[str],
    identifier: Identifier,
    *,
    limit: int | None = None,
    priority: int = PRIORITY_MEDIUM,
    cancel_s: float = CANCEL_S,
) -> AsyncGenerator[Match, None]:
    """Query: yield the matches in the order in which they arrive, each as soon as it has.

    sop_class_uid: a FIND SOP class, or several of which the first accepted one is taken. limit: matches wanted; then
    the query is cancelled. cancel_s: for the final response after C-CANCEL, else the association is aborted.
    Raises DimseError for a final status that is a failure, or Cancel without having been asked for,
    NoPresentationContext, and AssociationError when the association ends first: OperationInterrupted after a match.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1")
    context = accepted_context(scu, sop_class_uid)
    invocation = await scu.invoke(
        lambda message_id: CFindRQ(message_id, context.abstract_syntax, priority),
        context,
        encode_identifier(identifier, context),
    )
    cancelled = False
    count = 0
    try:
        async for response in invocation:
            if response.status_class is not StatusClass.PENDING:
                check_final(response)
            elif response.data_set is None:
                logger.warning(
                    "association %d: Pending C-FIND-RSP without an Identifier: skipped",
                    scu.association.number,
                )
            else:
                count += 1
                if count == limit:
                    cancelled = await send_cancel(invocation)  # before the consumer takes its time
                yield Match(response.data_set, response.status, context.transfer_syntax)
                if count == limit:
                    return
    except AssociationError as error:
        if count and is_loss(error):
            raise OperationInterrupted(f"after {count} matches: {error}") from error
        raise
    finally:
        await end_early(invocation, scu.association, cancelled=cancelled, cancel_s=cancel_s)


def check_final(response: Response) -> None:
    """DimseError unless a final status is a success or a warning."""
    if response.status_class in (StatusClass.SUCCESS, StatusClass.WARNING):
        return
    message = response.message
    raise DimseError(
        response.status, getattr(message, "error_comment", ""), getattr(message, "offending_elements", ())
    )


# --- SCP ------------------------------------------------------------------------------------------------


def find_handler(query: Callable[[Operation], AsyncIterator[bytes | Match]]) -> Handler:
    """A handler for CFindRQ: sends a Pending response for each match that `query` yields, then the final one.

    query: called with the operation (`data_set` is the Identifier, `context` says its transfer syntax); yields matching
    Identifiers in that transfer syntax. It may take its time: a C-CANCEL cancels the wait for the next match, closes
    the iterator and is answered 0xFE00. DimseError is answered with its status, any other exception with 0xC000.
    A peer that does not read keeps `query` from being asked for more.
    """

    async def perform(operation: Operation) -> Outcome:
        if operation.data_set is None:
            return Outcome(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "C-FIND-RQ without an Identifier")
        matches: AsyncIterator[bytes | Match] | None = None
        with Interruption(operation.cancelled) as interruption:
            try:
                matches = query(operation)
                while not isinstance(match := await interruption.next(matches), End):
                    await _respond(operation, match)
                    # A source that never waits must not keep the C-CANCEL from being read.
                    await asyncio.sleep(0)
            except Interrupted:
                return Outcome(Status.CANCEL)
            except Exception as error:
                return failure_outcome(operation, error)
            finally:
                await close_iterator(matches)
        return Outcome(Status.SUCCESS)

    return perform


async def _respond(operation: Operation, match: bytes | Match) -> None:
    if not isinstance(match, Match):
        match = Match(match)
    syntax = operation.context.transfer_syntax
    if match.transfer_syntax_uid not in ("", syntax):
        raise ValueError(f"a match in transfer syntax {match.transfer_syntax_uid}, expected {syntax}")
    request = operation.request
    assert isinstance(request, CFindRQ)
    await operation.respond(
        CFindRSP(request.message_id, match.status, request.affected_sop_class_uid, data_set_present=True),
        match.identifier,
    )


def failure_outcome(operation: Operation, error: Exception) -> Outcome:
    """The final response of a query or retrieve that failed: the status a DimseError carries, 0xC000 "unable to
    process" (PS3.4 §C.4) for anything else, which is logged."""
    if isinstance(error, DimseError):
        return error.outcome
    number = operation.association.number
    if not operation.association.is_open:
        pass  # nobody is there to be answered
    elif isinstance(error, AssociationError | OSError | TimeoutError):
        # An archive of ours that is not to be had. Its message names addresses and phases, no patients.
        logger.warning("association %d: %s failed: %s", number, type(operation.request).__name__, error)
    else:
        logger.error("association %d: %s failed", number, type(operation.request).__name__, exc_info=error)
    return Outcome(Status.CANNOT_UNDERSTAND, "unable to process")
