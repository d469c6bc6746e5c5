"""What the gateway's first process and its workers say to each other, and over what.

    first process                                  worker
      Configure + file of a Receiving    -->         an endpoint's settings, before its first association
      Receive + descriptor               -->         an association that was accepted
      Abort, Ping, Forget, SetUp  -->
                                         <--         Releasing, Ended   an association is over, its connection closed
                                         <--         Report    what was counted since the last one
                                         <--         Deeds     what is for the audit trail

A `Channel` is one end of a socketpair that keeps messages apart (SOCK_SEQPACKET), so that a descriptor stays with its
message. Nothing here is said for each object: objects are told by the log that the worker writes anyway
(`harmony.archive.worker_log`), counts come once in a while.

Settings are pickled: they come from the process that has started this one, over a descriptor that nobody else has.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import pickle
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from harmony.gateway.config import Middleware
from harmony.ul.deadlines import Timeouts

__all__ = [
    "Abort",
    "Channel",
    "Configure",
    "Deeds",
    "Ended",
    "Forget",
    "Operations",
    "Ping",
    "Receive",
    "Received",
    "Receiving",
    "Releasing",
    "Report",
    "SetUp",
    "Tally",
    "are_possible",
    "channels",
    "read_receiving",
    "receiving_file",
]

MAXIMUM_MESSAGE_BYTES: Final = 96 * 1024
"""Less than half of what a socket takes at once by default (net.core.wmem_default, 208 KiB)."""


@dataclass(frozen=True, slots=True)
class Receiving:
    """An endpoint that stores what it receives: all that a worker has to know of it."""

    endpoint: str
    storage_dir: Path
    durability: Literal["os", "fsync"]
    duplicates: Literal["keep_first", "keep_both", "replace", "refuse"]
    maximum_object_bytes: int | None
    minimum_free_bytes: int
    timeouts: Timeouts
    policies: tuple[Middleware, ...]
    """Of which the rules about operations are asked; the others have been, when the association was requested."""
    is_audited: bool


class Configure(msgspec.Struct, frozen=True, tag=True):
    """The descriptor is that of a file with a Receiving. log: the folder of the `WorkerLog` that it is told by."""

    receiving: int
    log: str | None


class Forget(msgspec.Struct, frozen=True, tag=True):
    """No more associations come for it."""

    receiving: int


class Receive(msgspec.Struct, frozen=True, tag=True):
    """The descriptor is that of a connection, whose request has been read and accepted."""

    association: int
    receiving: int
    request: bytes
    response: bytes
    peer: tuple[str, int]


class Abort(msgspec.Struct, frozen=True, tag=True):
    association: int


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answered with a Report."""

    number: int


class SetUp(msgspec.Struct, frozen=True, tag=True):
    """Logging, and how many bytes may be held for peers (`ul.held`)."""

    level: int
    file: str | None
    held_bytes: int | None


ToWorker = Configure | Forget | Receive | Abort | Ping | SetUp


class Operations(msgspec.Struct, frozen=True, tag=True):
    """Of one kind: see `tallies.OperationTally`."""

    request_type: str
    statuses: dict[int, int]
    counts: list[int]
    sum_s: float


class Tally(msgspec.Struct, frozen=True, tag=True):
    """What an endpoint's associations did since the last report."""

    endpoint: str
    received_bytes: int
    sent_bytes: int
    operations: list[Operations]


class Report(msgspec.Struct, frozen=True, tag=True):
    """ping: what it answers."""

    ping: int
    objects: int
    tallies: list[Tally]


class Releasing(msgspec.Struct, frozen=True, tag=True):
    """The release of an association is about to be answered: it is over, its connection not yet closed."""

    association: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """And its connection is closed. ending: as `tallies.ending_of` says; text: the error."""

    association: int
    ending: str
    text: str


class Received(msgspec.Struct, frozen=True):
    """Instances received: see `activity.Activity`."""

    study_instance_uid: str
    patient_id: str
    patient_name: str
    sop_class_uid: str
    count: int
    good: bool


class Deeds(msgspec.Struct, frozen=True, tag=True):
    association: int
    received: list[Received]


FromWorker = Report | Releasing | Ended | Deeds


def are_possible() -> bool:
    """Whether descriptors can be handed over here, with their messages."""
    return hasattr(socket, "send_fds") and hasattr(socket, "AF_UNIX") and hasattr(socket, "SOCK_SEQPACKET")


def channels() -> tuple[socket.socket, socket.socket]:
    """Two ends. Raises OSError."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end, in an event loop.

    on_message: a message and its descriptor, -1 without one; whoever gets it closes it. on_end: the other side is gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        kinds: Any,
        *,
        on_message: Callable[[Any, int], None],
        on_end: Callable[[], None],
    ) -> None:
        """kinds: the union of messages that come."""
        self._sock = sock
        self._sock.setblocking(False)
        self._decoder = msgspec.msgpack.Decoder(kinds)
        self._encoder = msgspec.msgpack.Encoder()
        self._on_message = on_message
        self._on_end = on_end
        self._waiting: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self.receive)
        self._closed = False

    def send(self, message: msgspec.Struct) -> None:
        """As soon as there is room."""
        if not self._closed and (self._waiting or not self._sent(self._encoder.encode(message), None)):
            self._waiting.append(self._encoder.encode(message))
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def offer(self, message: msgspec.Struct, fd: int) -> bool:
        """A message with a descriptor, at once or not at all."""
        if self._closed or self._waiting:
            return False
        encoded = self._encoder.encode(message)
        return len(encoded) <= MAXIMUM_MESSAGE_BYTES and self._sent(encoded, fd)

    def _sent(self, encoded: bytes, fd: int | None) -> bool:
        try:
            if fd is None:
                self._sock.send(encoded)
            else:
                socket.send_fds(self._sock, [encoded], [fd])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            if fd is not None:  # too many in flight, say
                return False
            # The other side is gone, which reading says as well.
        return True

    def _writable(self) -> None:
        while self._waiting and self._sent(self._waiting[0], None):
            self._waiting.popleft()
        if not self._waiting and not self._closed:
            self._loop.remove_writer(self._sock.fileno())

    def receive(self) -> None:
        """What has come; done whenever something comes."""
        while not self._closed:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(
                    MAXIMUM_MESSAGE_BYTES, socket.CMSG_SPACE(array.array("i").itemsize), _CLOSE_ON_EXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, ancillary = b"", []
            if not data:
                self.close()
                self._on_end()
                return
            fd = -1
            for _, _, content in ancillary:
                fd = array.array("i", content[: array.array("i").itemsize])[0]
            self._on_message(self._decoder.decode(data), fd)

    def close(self) -> None:
        """Nothing is sent or received any more; what waits is dropped."""
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()


_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def receiving_file(receiving: Receiving) -> int:
    """A descriptor of a file that has no name."""
    with tempfile.TemporaryFile() as file:
        pickle.dump(receiving, file)
        file.flush()
        return os.dup(file.fileno())


def read_receiving(fd: int) -> Receiving:
    """Several may read the same file, each from its beginning. Closes the descriptor."""
    try:
        received = pickle.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    finally:
        os.close(fd)
    assert isinstance(received, Receiving)
    return received
