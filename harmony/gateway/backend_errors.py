"""What a `Backend` raises, as HTTP says it: one mapping for every endpoint that speaks HTTP.

    400  the query has no meaning (IdentifierError)
    500  the local archive, or something else on this machine, does not work (ArchiveIndexError, OSError, EOFError)
    502  the peer refuses, fails, or is not to be had (DimseError, AssociationError)
    504  it does not answer in time (DeadlineExceeded, TimeoutError)

What a peer says in words is not repeated, because it may name patients; neither are paths of this machine.
"""

from __future__ import annotations

import logging
from typing import Final

from harmony.archive.index import ArchiveIndexError
from harmony.archive.matcher import IdentifierError
from harmony.dimse.scu import NoPresentationContext
from harmony.dimse.status import DimseError, describe_status
from harmony.http import HTTPError
from harmony.ul.errors import AssociationError, DeadlineExceeded

__all__ = ["BACKEND_ERRORS", "BackendError", "backend_failure", "unreachable"]

logger = logging.getLogger("harmony.gateway")

BackendError = DimseError | AssociationError | IdentifierError | ArchiveIndexError | OSError | EOFError
BACKEND_ERRORS: Final = (
    DimseError,
    AssociationError,
    IdentifierError,
    ArchiveIndexError,
    OSError,  # TimeoutError is one
    EOFError,  # a file has become shorter
)


def backend_failure(error: Exception, name: str) -> HTTPError:
    """The answer to a request that failed with one of BACKEND_ERRORS; an HTTPError is one already.

    name: of what is behind the endpoint, as its callers may know it.
    """
    error = unreachable(error) or error
    match error:
        case HTTPError():
            return error
        case DimseError(__cause__=NoPresentationContext() as refused):
            return HTTPError(502, str(refused))
        case DimseError():
            return HTTPError(502, f"{name} answered {describe_status(error.status)}")
        case DeadlineExceeded() | TimeoutError() | AssociationError(__cause__=DeadlineExceeded()):
            return HTTPError(504, str(error) or f"{name} did not answer in time")
        case AssociationError():
            return HTTPError(502, str(error))
        case IdentifierError():
            return HTTPError(400, str(error))
        case OSError(filename=None, strerror=str(reason)):
            logger.error("%s: %s", name, error)
            return HTTPError(500, reason)
        case _:
            logger.error("%s cannot be read: %s", name, error)
            return HTTPError(500, f"{name} cannot be read")


def unreachable(error: Exception) -> AssociationError | None:
    """Why the peer is not to be had, when a store failed for that: a backend has only a status to say so."""
    cause = error.__cause__ if isinstance(error, DimseError) else None
    return (
        cause
        if isinstance(cause, AssociationError) and not isinstance(cause, NoPresentationContext)
        else None
    )
