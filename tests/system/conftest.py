"""Real `python -m harmony` processes, a flood of small objects for them, and a look at what they left on the disk."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from harmony.dimse import Instance, associate
from harmony.dimse.scu import SCU
from harmony.dimse.status import DimseError
from harmony.http import HTTPServer, Request, Response
from harmony.ul.errors import AssociationError
from harmony.ul.negotiation import propose_contexts
from tests.faults.program import CT, IMPLICIT, Gateway, Process, Upstream, make_instance

Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class Flood:
    """Sends objects over several associations at a time until each has been acknowledged.

    on_event: called when a store begins and when it is acknowledged, with the number of such events so far.
    """

    port: int
    instances: list[Instance]
    on_event: Callable[[int], None] = lambda events: None
    associations: int = 4
    per_association: int = 12
    """Objects until an association is released."""
    window: int = 1
    acknowledged: dict[str, Instance] = field(default_factory=dict)
    events: int = 0
    up: asyncio.Event = field(default_factory=asyncio.Event)
    """Whoever kills the gateway clears this."""
    open: set[SCU] = field(default_factory=set)

    async def run(self) -> None:
        self._left = list(self.instances)[::-1]
        async with asyncio.TaskGroup() as group:
            for number in range(self.associations):
                group.create_task(self._send(random.Random(number)))

    def cut(self) -> None:
        """Lose every association, and the responses that are on their way: as when a host goes down."""
        self.up.clear()
        while self.open:
            self.open.pop().association.abort()

    async def _send(self, choice: random.Random) -> None:
        while self._left:
            await self.up.wait()
            count = choice.randint(1, self.per_association)
            mine = [self._left.pop() for _ in range(min(count, len(self._left)))]
            try:
                async with associate(
                    "127.0.0.1",
                    self.port,
                    called_ae_title="GATEWAY",
                    calling_ae_title="FLOOD",
                    contexts=propose_contexts([(CT, [IMPLICIT])]),
                    maximum_operations=self.window if self.window > 1 else None,
                ) as scu:
                    self.open.add(scu)
                    places = asyncio.Semaphore(self.window)
                    async with asyncio.TaskGroup() as group:
                        for instance in mine:
                            await places.acquire()
                            group.create_task(self._store(scu, instance, places))
                    self.open.discard(scu)
            except (AssociationError, ExceptionGroup) as error:
                if isinstance(error, ExceptionGroup) and error.split(AssociationError)[1] is not None:
                    raise
                assert not self.up.is_set(), "who else ended the association?"
            self._left += [each for each in mine if each.sop_instance_uid not in self.acknowledged]

    async def _store(self, scu: SCU, instance: Instance, places: asyncio.Semaphore) -> None:
        self._event()
        try:
            outcome = await scu.store(instance)
        except DimseError as error:
            raise AssertionError(f"{instance.sop_instance_uid} was refused: {error}") from error
        finally:
            places.release()
        assert outcome.status == 0x0000
        self.acknowledged[instance.sop_instance_uid] = instance
        self._event()

    def _event(self) -> None:
        self.events += 1
        self.on_event(self.events)


@pytest.fixture
def make_process() -> type[Process]:
    return Process


@pytest.fixture
def make_gateway() -> type[Gateway]:
    return Gateway


@pytest.fixture
def make_upstream() -> type[Upstream]:
    return Upstream


@pytest.fixture
def make_flood() -> type[Flood]:
    return Flood


@pytest.fixture
def instances() -> Callable[..., list[Instance]]:
    """instances(n): small images of several studies."""

    def make(
        count: int, *, smallest: int = 2_500, largest: int = 50_000, first: int = 1, studies: int = 7
    ) -> list[Instance]:
        sizes = random.Random(count)
        return [
            make_instance(
                number,
                study=f"1.2.9.{number % studies + 1}",
                size_bytes=sizes.randint(smallest, largest) & ~1,
            )
            for number in range(first, first + count)
        ]

    return make


@pytest.fixture
async def processes() -> AsyncIterator[list[Process]]:
    """Those that are put into this list do not outlive the test."""
    started: list[Process] = []
    yield started
    for each in started:
        if each.process is not None:
            if each.process.returncode is None:
                each.kill()
            await each.wait()


@pytest.fixture
async def upstream_server() -> AsyncIterator[Callable[[int, Handler], Awaitable[None]]]:
    """upstream_server(port, handler): an HTTP server in this process."""
    servers: list[HTTPServer] = []

    async def serve(port: int, handler: Handler) -> None:
        async def unlimited(request: Request) -> Response:
            request.body.maximum_bytes = None
            return await handler(request)

        server = HTTPServer(unlimited)
        servers.append(server)
        await server.start("127.0.0.1", port)

    yield serve
    for server in servers:
        await server.stop()
