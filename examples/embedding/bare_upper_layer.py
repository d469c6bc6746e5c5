"""A C-ECHO SCU on the sans-IO core: one blocking socket, no asyncio, no threads.

    python examples/embedding/bare_upper_layer.py 127.0.0.1 11112 --called ARCHIVE

A peer to try it on, with DCMTK: `storescp 11112`. Prints the status of the response. Exit status 0: success; 1:
anything else, and why on stderr.

The same machine runs under trio, in a simulator or in a test: it never opens, waits or reads a clock.
"""

import argparse
import socket
import sys
import time

from harmony import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from harmony.dimse import CEchoRQ, CEchoRSP, CommandError, describe_status
from harmony.dimse.command import decode
from harmony.dimse.message import encode_message
from harmony.ul import (
    DEFAULT_MAXIMUM_LENGTH,
    AbortIndication,
    AssociateConfirmation,
    AssociateRQ,
    EventLog,
    Indication,
    Negotiated,
    PDataIndication,
    ReleaseConfirmation,
    ReleaseIndication,
    Role,
    ULError,
    UpperLayer,
    UserInformation,
    propose_contexts,
    result_of,
)

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
TIMEOUT_S = 10.0
MAXIMUM_COMMAND_BYTES = 1 << 16
COMMAND, LAST = 1, 2
"""Bits of the message control header, PS3.8 Annex E.2."""


class BlockingAssociation:
    """An association as a requestor: a socket, the machine, and what it indicated."""

    def __init__(self, host: str, port: int, request: AssociateRQ) -> None:
        self._request = request
        self._log = EventLog()
        self._waiting: list[Indication] = []
        self._core = UpperLayer(Role.REQUESTOR, self._log)
        self._core.associate(request, now=time.monotonic())
        self._socket = socket.create_connection((host, port), timeout=TIMEOUT_S)
        self._core.transport_connected(now=time.monotonic())

    def establish(self) -> Negotiated:
        """Wait for the answer to A-ASSOCIATE-RQ."""
        confirmation = self._next()
        assert isinstance(confirmation, AssociateConfirmation)
        return result_of(self._request, confirmation.response, requestor=True)

    def send(self, pdus: bytes) -> None:
        """Send P-DATA-TF PDUs. They go past the machine, which only says whether they may."""
        assert self._core.may_send_p_data()
        self._socket.sendall(pdus)

    def receive_command(self) -> bytes:
        """Wait for a whole command set."""
        command = b""
        while True:
            data = self._next()
            if not isinstance(data, PDataIndication) or not data.message_control_header & COMMAND:
                raise ULError(f"{type(data).__name__} came, expected a command set")
            command += data.fragment
            if len(command) > MAXIMUM_COMMAND_BYTES:
                raise ULError(f"command set longer than {MAXIMUM_COMMAND_BYTES} bytes")
            if data.message_control_header & LAST:
                return command

    def release(self) -> None:
        """Release in order; data and a release of the peer's own that come first are answered or passed over."""
        self._core.release(now=time.monotonic())
        while not isinstance(indication := self._next(), ReleaseConfirmation):
            if isinstance(indication, ReleaseIndication):
                self._core.respond_release(now=time.monotonic())

    def close(self) -> None:
        """Abort what has not been released, and close."""
        self._core.abort(now=time.monotonic())
        try:
            self._flush()
        except OSError:
            pass  # the peer has closed already
        self._socket.close()

    def _next(self) -> Indication:
        """The next indication; raises why the association is over."""
        while not self._waiting:
            self._flush()
            received = self._socket.recv(1 << 16)
            if received:
                self._core.receive(received, now=time.monotonic())
            else:
                self._core.transport_closed(now=time.monotonic())
            self._waiting = self._log.take()
            if not received and not self._waiting:
                raise ULError("the peer closed the connection")
        indication = self._waiting.pop(0)
        if isinstance(indication, AbortIndication):
            raise indication.error
        return indication

    def _flush(self) -> None:
        self._socket.sendall(b"".join(self._core.take_outgoing()))


def echo(host: str, port: int, called: str) -> int:
    """C-ECHO over an association of its own; the status of the response."""
    request = AssociateRQ(
        called,
        "BARE_SCU",
        propose_contexts([(VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN])]),
        UserInformation(
            maximum_length=DEFAULT_MAXIMUM_LENGTH,
            implementation_class_uid=IMPLEMENTATION_CLASS_UID,
            implementation_version_name=IMPLEMENTATION_VERSION_NAME,
        ),
    )
    association = BlockingAssociation(host, port, request)
    try:
        agreed = association.establish()
        if not agreed.contexts:
            raise ULError(f"Verification was not accepted: {agreed.describe_results()}")
        (context_id,) = agreed.contexts
        command = CEchoRQ(message_id=1).encode()
        association.send(encode_message(context_id, command, maximum_length=agreed.peer_maximum_length))
        response, _ = decode(association.receive_command())
        if not isinstance(response, CEchoRSP):
            raise ULError(f"{type(response).__name__} came, expected C-ECHO-RSP")
        association.release()
        return response.status
    finally:
        association.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="the peer's name or address")
    parser.add_argument("port", type=int)
    parser.add_argument("--called", default="ANY-SCP", help="the peer's AE title")
    arguments = parser.parse_args()
    try:
        status = echo(arguments.host, arguments.port, arguments.called)
    except (ULError, CommandError, OSError) as error:
        print(f"C-ECHO failed: {error}", file=sys.stderr)
        return 1
    print(describe_status(status))
    return 0 if status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
