"""Loopback for DIMSE: both event loops, a peer that sends what it is told to, sinks that remember, a watch on leaks.

Every wait here has a limit of some seconds that no passing test comes near.
"""

import asyncio
import contextlib
import logging
import struct
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import uvloop

from harmony.dimse import (
    SUCCESS_OUTCOME,
    CEchoRQ,
    CStoreRQ,
    Services,
    associate,
    serve,
)
from harmony.dimse.command import decode
from harmony.dimse.command_set import CommandError
from harmony.ul import (
    AssociateRQ,
    AsynchronousOperationsWindow,
    RoleSelection,
    UserInformation,
    propose_contexts,
    request_association,
)

PATIENCE_S = 5.0

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

CONTEXTS = propose_contexts(
    [(VERIFICATION, [IMPLICIT]), (CT, [EXPLICIT]), (FIND, [EXPLICIT]), (GET, [EXPLICIT])]
)


def pytest_asyncio_loop_factories(config, item):
    """Every asynchronous test here runs on both loops."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def uids():
    """What a `RawPeer` and `connect` propose: VERIFICATION is context 1, CT 3, FIND 5, GET 7."""
    return SimpleNamespace(
        VERIFICATION=VERIFICATION,
        CT=CT,
        FIND=FIND,
        GET=GET,
        IMPLICIT=IMPLICIT,
        EXPLICIT=EXPLICIT,
        CONTEXTS=CONTEXTS,
    )


@dataclass
class Received:
    context_id: int
    message: object
    data_set: bytes | None


class RawPeer:
    """A requestor without manners: it sends any fragments, and collects the messages that come."""

    def __init__(self):
        self.receiving = False
        self.association = None
        self.messages: list[Received] = []
        self.over = False
        self.error = None
        self._taken = 0
        self._command = bytearray()
        self._data = bytearray()
        self._message = None
        self._changed = asyncio.Event()

    def send(self, context_id, control, fragment):
        """One P-DATA-TF with one PDV."""
        self.association.write_p_data(
            struct.pack(">BxIIBB", 4, len(fragment) + 6, len(fragment) + 2, context_id, control) + fragment
        )

    def send_message(self, context_id, message, data_set=None):
        """In as few PDUs as possible: one for the command, one for the data set."""
        self.send(context_id, 3, message.encode())
        if data_set is not None:
            self.send(context_id, 2, data_set)

    def send_store(self, message_id=1, data_set=b"\0" * 16, *, context_id=3, instance="1.2.3"):
        self.send_message(context_id, CStoreRQ(message_id, CT, instance), data_set)

    async def next(self):
        """The next message that has come, or comes."""
        await self._until(lambda: len(self.messages) > self._taken or self.over)
        if len(self.messages) <= self._taken:
            raise AssertionError(f"no message came, the association ended: {self.error}")
        self._taken += 1
        return self.messages[self._taken - 1]

    async def ended(self):
        """Why the association ended."""
        await self._until(lambda: self.over)
        return self.error

    async def echo(self, message_id=99):
        """Proves that the association lives on."""
        self.send_message(1, CEchoRQ(message_id))
        answer = await self.next()
        assert answer.message.command_field == 0x8030
        assert answer.message.message_id_being_responded_to == message_id
        assert answer.message.status == 0

    async def _until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    # ul.AssociationUser

    def established(self, association):
        self.association = association

    def p_data(self, context_id, control, fragment, complete):
        if control & 1:
            self._command += fragment
            if complete and control & 2:
                try:
                    self._message, has_data = decode(bytes(self._command))
                except CommandError:
                    self._message, has_data = bytes(self._command), False
                self._command.clear()
                if not has_data:
                    self._done(context_id, None)
        else:
            self._data += fragment
            if complete and control & 2:
                self._done(context_id, bytes(self._data))

    def _done(self, context_id, data_set):
        self.messages.append(Received(context_id, self._message, data_set))
        self._data.clear()
        self._changed.set()

    def release_requested(self):
        self.association.respond_release()

    def busy(self):
        return True

    def p_data_paused(self):
        pass

    def writable(self):
        pass

    def ended_(self, error):
        self.over = True
        self.error = error
        self._changed.set()


@pytest.fixture
async def raw_peer():
    """await raw_peer(port, ...): a RawPeer with an association to a server on that port."""
    peers = []

    async def connect(port, *, contexts=CONTEXTS, window=None, roles=(), maximum_length=16384, timeouts=None):
        peer = RawPeer()

        class User:
            receiving = False
            established = peer.established
            p_data = peer.p_data
            release_requested = peer.release_requested
            busy = peer.busy
            p_data_paused = peer.p_data_paused
            writable = peer.writable
            ended = peer.ended_

        request = AssociateRQ(
            "ANY-SCP",
            "RAW",
            tuple(contexts),
            UserInformation(
                maximum_length=maximum_length,
                implementation_class_uid="1.2.3",
                asynchronous_operations_window=window and AsynchronousOperationsWindow(*window),
                role_selections=tuple(RoleSelection(*role) for role in roles),
            ),
        )
        await request_association("127.0.0.1", port, request, User(), timeouts=timeouts)
        peers.append(peer)
        return peer

    yield connect
    for peer in peers:
        peer.association.abort()
        peer.association.cut_after_writing()
        await peer.association.wait_closed()


@dataclass
class RecordingSink:
    """Remembers what happened to it; `fails` names the method that raises, `answer` is what finish returns."""

    request: object = None
    fails: str = ""
    error: BaseException = field(default_factory=lambda: RuntimeError("defect"))
    answer: object = SUCCESS_OUTCOME
    on_write: object = None
    data: bytearray = field(default_factory=bytearray)
    finished: int = 0
    aborted: int = 0
    changed: object = None

    def write(self, fragment):
        if self.on_write is not None:
            self.on_write(fragment)
        self._do("write")
        self.data += fragment
        self.changed()

    def finish(self):
        self.finished += 1
        self._do("finish")
        self.changed()
        return self.answer() if callable(self.answer) else self.answer

    def abort(self):
        self.aborted += 1
        self.changed()
        self._do("abort")

    def _do(self, what):
        if self.fails == what:
            raise self.error


@dataclass
class Store:
    """A store service that opens RecordingSinks; `make(request)` may make others, or raise."""

    sinks: list = field(default_factory=list)
    make: object = RecordingSink
    ends: list = field(default_factory=list)
    services: Services = field(default_factory=Services)

    def __post_init__(self):
        self._changed = asyncio.Event()
        self.services.store(self.open)
        self.services.on_association(ended=self.ended)

    def open(self, request):
        sink = self.make(request)
        sink.changed = self._changed.set
        self.sinks.append(sink)
        self._changed.set()
        return sink

    def ended(self, association, error):
        self.ends.append(error)
        self._changed.set()

    async def until(self, condition):
        """Wait until something holds that happens to a sink, or with the end of an association."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def recording_sink():
    return RecordingSink


@pytest.fixture
def serving():
    """async with serving(services, ...) as server: `serve` on a free port."""

    def start(services, **options):
        return serve(services, port=0, **options)

    return start


@pytest.fixture
def connect():
    """async with connect(server, ...) as scu: `associate` with the contexts of `uids`."""

    def start(server, **options):
        options.setdefault("contexts", CONTEXTS)
        return associate("127.0.0.1", server.port, **options)

    return start


@pytest.fixture
def patience():
    """async with patience(): a limit for whatever a test waits for."""
    return lambda: asyncio.timeout(PATIENCE_S)


@pytest.fixture
def quiet_errors(caplog):
    """For tests whose handlers fail on purpose: hands out what was logged as an error."""

    def errors():
        return [record for record in caplog.records if record.levelno >= logging.ERROR]

    yield errors
    with contextlib.suppress(Exception):
        caplog.clear()
