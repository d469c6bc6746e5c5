"""Where the instances of our own C-MOVEs come in: the listening sockets behind `incoming_store_port`.

All backends of a gateway share one `StoreReceivers`. An address is listened on while somebody waits there, a retrieve
or a backend with `persistent_store_scp`, and by one server whoever they are. What no retrieve waits for is refused.

A port on which a dicom_scp endpoint listens anyway is not opened a second time: the endpoint is told to give its
instances to `open_sink` first, and the registry that it does (`provide`).

    receivers.provide({11112: frozenset({"HARMONY"})})
    services.store(receivers.open_sink(unmatched=backend.store))      # of the endpoint
    ...
    async with receivers.listening("0.0.0.0", 11112, "HARMONY") as moves:
        async with move(scu, ..., "HARMONY", receiver=moves, open_sink=...) as retrieval: ...
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from harmony.dimse.move_receiver import MoveReceiver, OpenSink
from harmony.dimse.observer import Observer
from harmony.dimse.operation import StoreRequest
from harmony.dimse.scp import Server, Services, WholeStoreFor
from harmony.dimse.sink import Sink, WholeStore
from harmony.dimse.status import Outcome
from harmony.ul.deadlines import Timeouts
from harmony.ul.negotiation import DEFAULT_MAXIMUM_LENGTH, AcceptorPolicy
from harmony.ul.tls import TLSContext

__all__ = ["StoreReceivers", "require_title"]

logger = logging.getLogger("harmony.gateway")

CLOSING_S: Final = 0.5
"""For the PACS to release its associations after a retrieve. Most have when they say that it is over."""


class _Place:
    """One address, and those who wait there."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()  # of opening and closing
        self.server: Server | None = None
        self.ssl_context: TLSContext | None = None
        self.ae_titles: set[str] = set()
        self.users = 0


class StoreReceivers:
    """The moves of all backends, and the servers that receive for them."""

    def __init__(self) -> None:
        self.moves = MoveReceiver()
        """One for all addresses, so that Message IDs differ also between backends with the same AE title."""
        self._places: dict[tuple[str, int], _Place] = {}
        self._provided: dict[int, frozenset[str]] = {}

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Those listened on now."""
        return [address for address, place in self._places.items() if place.server is not None]

    # For a dicom_scp endpoint on the same port

    def provide(self, ports: Mapping[int, frozenset[str]]) -> None:
        """From now on it is these ports on which somebody listens, answers to these AE titles (none: to any), and gives
        instances to `open_sink`."""
        self._provided = dict(ports)

    def open_sink(self, unmatched: OpenSink | None = None) -> OpenSink:
        """What to give to `Services.store`: instances that a retrieve waits for go to it, others to `unmatched`; None
        refuses them."""

        def open_sink(request: StoreRequest) -> Sink:
            return self.moves.open_sink(request, unmatched=unmatched)

        return open_sink

    def whole_store(self, unmatched: WholeStoreFor) -> WholeStoreFor:
        """The same for short cuts: while no retrieve waits for anything, that of `unmatched`."""

        def whole_store(request: StoreRequest) -> WholeStore | None:
            store = unmatched(request)
            if store is None or request.command.move_originator_ae_title:
                return None
            moves = self.moves

            def store_unless_waiting(instance_uid: bytes, fragments: Sequence[memoryview]) -> Outcome | None:
                return None if moves.is_waiting else store(instance_uid, fragments)

            return store_unless_waiting

        return whole_store

    def services(self) -> Services:
        """For an AE title that receives nothing else."""
        services = Services()
        services.store(self.open_sink())
        return services

    # For a backend

    @asynccontextmanager
    async def listening(
        self,
        host: str,
        port: int,
        ae_title: str,
        *,
        maximum_length: int = DEFAULT_MAXIMUM_LENGTH,
        timeouts: Timeouts | None = None,
        observer: Observer | None = None,
        ssl_context: TLSContext | None = None,
    ) -> AsyncIterator[MoveReceiver]:
        """Have the address listened on for an AE title, for the length of the block.

        observer: of the associations to the AE title. It, maximum_length and timeouts are those of the first in this
        moment. ssl_context: must be the same for all of them. Raises OSError when the address cannot be listened on.
        """
        require_title(self._provided, port, ae_title)
        if port in self._provided:
            yield self.moves
            return
        place = self._places.setdefault((host, port), _Place())
        async with place.lock:
            if place.server is None:
                place.server = await _listen(host, port, timeouts, ssl_context)
                place.ssl_context = ssl_context
            elif place.ssl_context is not ssl_context:
                message = f"incoming_store_port {port} is that of another backend with other TLS settings"
                raise OSError(errno.EADDRINUSE, message)
            if ae_title not in place.ae_titles:
                policy = AcceptorPolicy(ae_titles=frozenset({ae_title}), maximum_length=maximum_length)
                services = self.services()
                if observer is not None:
                    services.observe(observer)
                place.server.add(services, policy)
                place.ae_titles.add(ae_title)
            place.users += 1
        try:
            yield self.moves
        finally:
            place.users -= 1
            await self._leave(place)

    async def _leave(self, place: _Place) -> None:
        async with place.lock:
            server = place.server
            if place.users or server is None:
                return
            try:
                await server.drain(CLOSING_S)
            except asyncio.CancelledError:
                await server.close()
                raise
            finally:
                place.server = None
                place.ae_titles.clear()


def require_title(provided: Mapping[int, frozenset[str]], port: int, ae_title: str) -> None:
    """Raises OSError when the port is that of an endpoint which does not answer to the AE title.

    provided: as for `StoreReceivers.provide`.
    """
    titles = provided.get(port)
    if titles and ae_title not in titles:
        message = (
            f"incoming_store_port {port} is that of a dicom_scp endpoint with the AE title "
            f"{' or '.join(sorted(titles))}; local_aet is {ae_title}, must be the same, or the port another one"
        )
        raise OSError(errno.EADDRINUSE, message)


async def _listen(host: str, port: int, timeouts: Timeouts | None, ssl_context: TLSContext | None) -> Server:
    server = Server(timeouts=timeouts)
    try:
        await server.listen(host, port, ssl_context=ssl_context)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"incoming_store_port {port} cannot be listened on: {reason}") from error
    except asyncio.CancelledError:
        await server.close()
        raise
    logger.info("listening on %s:%d for what a retrieve brings", host, port)
    return server
