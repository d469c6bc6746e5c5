"""harmony.gateway.backend_errors: whose fault it was, as an HTTP status, and nothing that names a patient or a path."""

import errno

import pytest

from harmony.archive.index import ArchiveIndexError
from harmony.archive.matcher import IdentifierError, Problem
from harmony.dimse.scu import NoPresentationContext
from harmony.dimse.status import DimseError
from harmony.gateway.backend_errors import backend_failure
from harmony.http import HTTPError
from harmony.ul.errors import AssociationRejected, ConnectFailed, ConnectionLost, DeadlineExceeded


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (HTTPError(409, "as it is"), 409, "as it is"),
        (
            DimseError(0xA700, "Doe^John"),
            502,
            "PACS answered 0xA700 Refused: out of resources",
        ),
        (caused(DimseError(0x0122), NoPresentationContext("no context for 1.2")), 502, "no context for 1.2"),
        (caused(DimseError(0xA700), ConnectFailed("cannot connect to h:1")), 502, "cannot connect to h:1"),
        (caused(DimseError(0xA700), DeadlineExceeded("the response", 3.0)), 504, "the response took longer than 3 s"),
        (ConnectionLost("connection lost"), 502, "connection lost"),
        (AssociationRejected(1, 1, 7), 502, "association rejected"),
        (DeadlineExceeded("connecting", 5.0), 504, "connecting took longer than 5 s"),
        (caused(ConnectFailed("x"), DeadlineExceeded("connecting", 5.0)), 504, "x"),
        (TimeoutError(), 504, "PACS did not answer in time"),
        (IdentifierError(0x00080020, Problem.DATE_TIME), 400, "identifier: (0008,0020): "),
        (ArchiveIndexError("/var/lib/secret is damaged"), 500, "PACS cannot be read"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/var/lib/secret"), 500, "PACS cannot be read"),
        (OSError(errno.EADDRINUSE, "port 1 cannot be listened on"), 500, "port 1 cannot be listened on"),
        (EOFError("/var/lib/secret ended"), 500, "PACS cannot be read"),
    ],
)  # fmt: skip
def test_failures(error: Exception, status: int, message: str) -> None:
    answer = backend_failure(error, "PACS")
    assert (answer.status, answer.message[: len(message)]) == (status, message)
    assert "Doe" not in answer.message
    assert "secret" not in answer.message
