"""Any interleaving of operations on one association over loopback, both ends ours: everything ends, nothing is left.

Stores, echoes, queries and retrieves begin, are held up at the SCP, cancelled by C-CANCEL or by whoever waits for them;
the association is released or aborted from either end, and made again. Whatever happened, in the end each operation has
an outcome, and sinks, iterators, sources, tasks and descriptors are back to where they were.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from harmony.dimse import (
    SUCCESS_OUTCOME,
    BytesSource,
    CFindRQ,
    CGetRQ,
    DimseError,
    GetReceiver,
    Instance,
    Operation,
    Selection,
    Services,
    Status,
    associate,
    find,
    find_handler,
    get,
    get_handler,
    serve,
)
from harmony.ul import AssociationError, LocalProtocolError, RoleSelection, propose_contexts

PATIENCE_S = 10.0
CANCEL_S = 5.0

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
CONTEXTS = propose_contexts(
    [(VERIFICATION, [IMPLICIT]), (CT, [EXPLICIT]), (FIND, [EXPLICIT]), (GET, [EXPLICIT])]
)

HELD, AT_ONCE, REFUSED = "held", "at once", "refused"
manners = st.sampled_from([HELD, AT_ONCE, AT_ONCE, REFUSED])


class Source(BytesSource):
    closed = False

    def close(self):
        self.closed = True
        super().close()


class Sink:
    """Takes anything; its success may wait for the gate."""

    def __init__(self, gate):
        self.gate = gate
        self.finished = self.aborted = 0

    def write(self, fragment):
        assert not self.finished
        assert not self.aborted

    def finish(self):
        self.finished += 1
        return SUCCESS_OUTCOME if self.gate is None else self.success()

    async def success(self):
        await self.gate.wait()
        return SUCCESS_OUTCOME

    def abort(self):
        self.aborted += 1


class Ends:
    """A server, an association that comes and goes, and what was begun on it. Lives in one event loop."""

    def __init__(self, window):
        self.window = window
        self.gate = asyncio.Event()
        """What is held at the server waits for it."""
        self.sinks = []
        self.sources = []
        self.iterators = 0
        self.operations = []
        self.tasks = []  # these, and the associations
        self.accepted = []
        self.scu = None
        self.left = None
        self.receiver = GetReceiver()
        services = Services()
        services.store(self.open_sink)
        services.store_as_scu()
        services.operation(CFindRQ, [FIND], find_handler(self.matches))
        services.operation(CGetRQ, [GET], get_handler(self.select, pending_instances=1))
        services.on_association(established=self.accepted.append)
        self.serving = serve(services, port=0, maximum_operations=window)

    # What the server does. Manner and number are in the identifier, which is nobody else's business.

    def open_sink(self, request):
        manner = {"1": HELD, "2": AT_ONCE, "3": REFUSED}[request.affected_sop_instance_uid[-1]]
        if manner == REFUSED:
            raise DimseError(Status.OUT_OF_RESOURCES)
        self.sinks.append(Sink(self.gate if manner == HELD else None))
        return self.sinks[-1]

    async def each(self, operation: Operation) -> AsyncIterator[int]:
        manner, number = operation.data_set[8:].decode().strip().split(",")
        self.iterators += 1
        try:
            for count in range(int(number)):
                if manner == HELD:
                    await self.gate.wait()
                yield count
            if manner == REFUSED:
                raise DimseError(Status.OUT_OF_RESOURCES)
        finally:
            self.iterators -= 1

    async def matches(self, operation: Operation) -> AsyncIterator[bytes]:
        async with aclosing(self.each(operation)) as numbers:
            async for number in numbers:
                yield b"\x20\x00\x13\x00IS\x02\x00%2d" % number

    async def select(self, operation: Operation) -> Selection:
        return Selection(self.instances(operation))

    async def instances(self, operation: Operation) -> AsyncIterator[Instance]:
        async with aclosing(self.each(operation)) as numbers:
            async for number in numbers:
                self.sources.append(Source(bytes(5000)))
                yield Instance(CT, f"1.2.3.{number}.2", EXPLICIT, self.sources[-1])

    # What its client does

    async def connect(self):
        connected = asyncio.get_running_loop().create_future()
        self.left = asyncio.get_running_loop().create_future()

        async def session(left):
            async with associate(
                "127.0.0.1",
                self.server.port,
                contexts=CONTEXTS,
                roles=[RoleSelection(CT, True, True)],
                maximum_operations=self.window,
                services=self.receiver.services,
            ) as scu:
                connected.set_result(scu)
                if await left == "abort":
                    raise AssociationError("left")

        self.tasks.append(asyncio.get_running_loop().create_task(session(self.left)))
        async with asyncio.timeout(PATIENCE_S):
            self.scu = await connected

    def leave(self, how):
        self.left.set_result(how)
        self.scu = None

    def begin(self, operation):
        self.operations.append(asyncio.get_running_loop().create_task(operation))
        self.tasks.append(self.operations[-1])

    async def find(self, identifier, limit):
        async with aclosing(find(self.scu, FIND, identifier, limit=limit, cancel_s=CANCEL_S)) as matches:
            count = len([match async for match in matches])
        assert limit is None or count <= limit

    async def get(self, identifier, cancel_after):
        async with get(
            self.scu,
            GET,
            identifier,
            lambda request: self.open_sink(request),
            receiver=self.receiver,
            cancel_s=CANCEL_S,
        ) as retrieval:
            async for counters in retrieval:
                if cancel_after is not None and (counters.completed or 0) >= cancel_after:
                    await retrieval.cancel()
            assert retrieval.is_over

    async def end(self):
        """Let everything come to its end, and look at what is left."""
        self.gate.set()
        if self.scu is not None:
            self.leave("release")
        if self.tasks:
            done, pending = await asyncio.wait(self.tasks, timeout=PATIENCE_S)
            assert not pending, f"never ended: {pending}"
            for task in done:
                error = None if task.cancelled() else task.exception()
                assert error is None or isinstance(
                    error, DimseError | AssociationError | LocalProtocolError
                ), repr(error)
        async with asyncio.timeout(PATIENCE_S):
            await self.serving.__aexit__(None, None, None)
            while len(asyncio.all_tasks()) > 1 or _descriptors() > self.descriptors:
                await _turn()  # closing takes the loop a few
        assert self.iterators == 0
        assert all(source.closed for source in self.sources)
        for sink in self.sinks:
            assert sink.finished <= 1
            assert sink.aborted <= 1
            assert sink.finished + sink.aborted >= 1


class Interleavings(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.runner = None

    @initialize(
        loop=st.sampled_from([asyncio.SelectorEventLoop, uvloop.new_event_loop]), window=st.integers(1, 4)
    )
    def begin(self, loop, window):
        self.complaints = []
        self.log = _Errors()
        logging.getLogger("harmony").addHandler(self.log)
        self.runner = asyncio.Runner(loop_factory=loop)
        self.runner.get_loop().set_exception_handler(lambda _, context: self.complaints.append(context))

        async def start():
            self.ends = Ends(window)
            self.ends.descriptors = _descriptors()
            self.ends.server = await self.ends.serving.__aenter__()
            await self.ends.connect()

        self.runner.run(start())

    def do(self, what, *arguments):
        """Call something on the loop, and let it have one turn."""

        async def call():
            what(*arguments)
            await asyncio.sleep(0)

        self.runner.run(call())

    connected = precondition(lambda self: self.ends.scu is not None)

    @connected
    @rule()
    def echo(self):
        self.do(lambda: self.ends.begin(self.ends.scu.echo()))

    @connected
    @rule(size=st.sampled_from([0, 2, 5000, 300_000]), manner=manners)
    def store(self, size, manner):
        uid = "1.2.3." + {HELD: "1", AT_ONCE: "2", REFUSED: "3"}[manner]
        instance = Instance(CT, uid, EXPLICIT, bytes(size))
        self.do(lambda: self.ends.begin(self.ends.scu.store(instance)))

    @connected
    @rule(count=st.integers(0, 5), manner=manners, limit=st.none() | st.integers(1, 5))
    def find(self, count, manner, limit):
        self.do(lambda: self.ends.begin(self.ends.find(_identifier(manner, count), limit)))

    @connected
    @rule(count=st.integers(0, 5), manner=manners, cancel_after=st.none() | st.integers(0, 5))
    def get(self, count, manner, cancel_after):
        self.do(lambda: self.ends.begin(self.ends.get(_identifier(manner, count), cancel_after)))

    @rule(which=st.integers(0, 30))
    def give_up(self, which):
        waiting = [task for task in self.ends.operations if not task.done()]
        if waiting:
            self.do(waiting[which % len(waiting)].cancel)

    @rule(open_=st.booleans())
    def gate(self, open_):
        self.do(self.ends.gate.set if open_ else self.ends.gate.clear)

    @rule(count=st.sampled_from([1, 2, 5, 20]))
    def turns(self, count):
        async def turn():
            for _ in range(count):
                await asyncio.sleep(0)

        self.runner.run(turn())

    @connected
    @rule(how=st.sampled_from(["release", "release", "abort"]))
    def leave(self, how):
        self.do(self.ends.leave, how)

    @connected
    @rule(by_acceptor=st.booleans())
    def abort(self, by_acceptor):
        association = self.ends.accepted[-1] if by_acceptor else self.ends.scu.association
        self.do(association.abort)
        self.do(self.ends.leave, "abort")

    @precondition(lambda self: self.ends.scu is None)
    @rule()
    def connect(self):
        self.runner.run(self.ends.connect())

    def teardown(self):
        if self.runner is None:
            return
        try:
            self.runner.run(self.ends.end())
        finally:
            self.runner.close()
            logging.getLogger("harmony").removeHandler(self.log)
        assert self.complaints == []
        assert self.log.records == []


async def _turn():
    await asyncio.sleep(0)


class _Errors(logging.Handler):
    def __init__(self):
        super().__init__(logging.ERROR)
        self.records = []

    def emit(self, record):
        self.records.append(record.getMessage())


def _identifier(manner, count):
    value = f"{manner},{count}".encode()
    value += b" " * (len(value) % 2)
    return b"\x08\x00\x52\x00CS" + len(value).to_bytes(2, "little") + value


def _descriptors():
    """Open descriptors; without /dev/null, which libuv keeps in reserve from the first listening socket on."""
    count = 0
    for name in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(name) != "/dev/null"
        except OSError:  # the one that lists the folder
            pass
    return count


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
