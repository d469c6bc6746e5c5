"""The running gateway: start, reload and stop.

Starting goes inwards out: stores, backends (which take up what a crash left), then listeners; an address that
is taken is an error that names it. Stopping goes outwards in: all at once, new associations are rejected and new
connections refused; then backends finish and stores close. GRACE_S is for all of it together.

Reloading makes an assembly of the new configuration, which takes over what it can of the old one, starts what is new
in it, opens what it listens on, and then has every new association and request answered by it. Until then each step can
be taken back, so that a configuration that cannot be used changes nothing. What was begun under the old assembly ends
under it; what only that one needs is stopped afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harmony.archive.index import ArchiveIndexError
from harmony.archive.indexing import ArchiveIndex, Progress, Report
from harmony.gateway.activity import CALLER, Caller
from harmony.gateway.assembly import Assembly
from harmony.gateway.auditing import Auditor
from harmony.gateway.config import ConfigError, LoadedConfig, LogSettings
from harmony.gateway.errors import StartError
from harmony.gateway.forwarded import trace
from harmony.gateway.listeners import Listeners
from harmony.gateway.management import Phase
from harmony.gateway.memory_limit import default_held_bytes
from harmony.gateway.pipelines import assemble
from harmony.http import HTTPServer, Request, Response, Router
from harmony.http.message import HTTPError
from harmony.http.server import Exchanged
from harmony.jmix.store import EnvelopeStore
from harmony.ul.association import Association
from harmony.ul.held import HELD

__all__ = ["Gateway", "Load"]

logger = logging.getLogger("harmony.gateway")

GRACE_S = 20.0
"""For associations, requests and uploads that are under way when the gateway is told to stop."""

REPORT_S = 5.0
"""Between lines about an index that is being made at the start."""

Load = Callable[[], LoadedConfig]
"""Reads and checks the configuration. Blocking; raises ConfigError."""


_Stop = Callable[[float], Awaitable[None]]
"""Given the seconds it may take, or 0.0 for at once; may be called again when it was cancelled."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Something that runs from a start to a stop. thing: itself, which several assemblies may have."""

    thing: object
    name: str
    start: Callable[[], Awaitable[None]]
    stop: _Stop


class _Requests:
    """The HTTP requests that are answered by one assembly."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def begun(self) -> None:
        self._count += 1
        self._none.clear()

    def ended(self) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def over(self) -> None:
        await self._none.wait()


class Gateway:
    """Everything a configuration describes, running between `start` and `stop`."""

    def __init__(
        self,
        config: LoadedConfig,
        *,
        load: Load | None = None,
        set_up_logging: Callable[[LogSettings], None] | None = None,
    ) -> None:
        """load: where the configuration comes from when it is to be loaded again; None: it cannot be.
        set_up_logging: told of other settings then; raises OSError. Raises ConfigError."""
        self.config = config
        self.assembly: Assembly = assemble(config)
        self._load = load
        self._set_up_logging = set_up_logging
        self._listeners = Listeners(self._http_server(), self._http_server())
        self._routers: dict[str, Router] = self.assembly.routers
        self._requests = _Requests()
        self._running: list[_Part] = []  # in the order of their start
        self._retiring: dict[asyncio.Task[None], list[_Part]] = {}
        self._retiring_purposes: dict[asyncio.Task[None], list[tuple[object, ...]]] = {}
        self._reloading: asyncio.Task[LoadedConfig] | None = None
        self._stopping = False

    @property
    def dicom_addresses(self) -> list[tuple[str, int]]:
        """Where DICOM is listened for, in the order of the configuration."""
        return [address for each in self.assembly.dicom for address in each.server.acceptor.addresses]

    @property
    def http_addresses(self) -> list[tuple[str, int]]:
        """Where HTTP is listened for; networks with nothing but the management API come last."""
        return [*self._listeners.http.addresses, *self._listeners.management_http.addresses]

    async def start(self) -> None:
        """Raises StartError; what had been started is stopped again then."""
        try:
            with _explained():
                await self._start()
        except BaseException:
            await self.stop(0.0)
            raise

    def _limit_memory(self) -> None:
        """Of this process: one gateway runs in it."""
        HELD.limit_bytes = self.config.max_held_bytes or default_held_bytes()

    async def _start(self) -> None:
        self._limit_memory()
        management = self.assembly.management
        if management is not None:
            management.metrics.loop_lag.start()
        await self._listeners.open_management(self.assembly)
        self.assembly.receivers.provide(self.assembly.provided)
        for part in _parts(self.assembly):
            await self._start_part(part)
        await self._listeners.open(self.assembly)
        self._listeners.swap(self.assembly)
        await self.assembly.certificates.start()
        self._told_management()
        self._told_auditor()
        if management is not None:
            management.phase = Phase.SERVING

    async def _start_part(self, part: _Part) -> None:
        with _explained(part.name):
            await part.start()
        self._running.append(part)

    def _told_auditor(self) -> None:
        """Whom the listeners tell of those who were refused."""
        auditor = self.assembly.auditor
        for each in self.assembly.envelope_audits:
            each.auditor = auditor
        if auditor is not None:
            auditor.ae_titles = tuple(
                dict.fromkeys(scp.options.local_aet for each in self.assembly.dicom for scp in each.scps)
            )
        handshake_failed = auditor.handshake_failed if auditor is not None else None
        for listener in self.assembly.dicom:
            acceptor = listener.server.acceptor
            acceptor.on_rejected = auditor.rejected if auditor is not None else None
            acceptor.on_handshake_failed(handshake_failed)
        for server in (self._listeners.http, self._listeners.management_http):
            server.on_handshake_failed(handshake_failed)

    def _told_management(self) -> None:
        management = self.assembly.management
        if management is None:
            return
        management.reload = self.reload if self._load is not None else None
        for listener in self.assembly.dicom:
            management.watched.acceptors[str(listener.address)] = listener.server.acceptor
        management.metrics.watched = management.watched

    async def reload_certificates(self) -> None:
        """Use for new handshakes what the files of all certificates hold now. They are looked at from time to time
        anyway; what cannot be used is logged, and the old ones stay."""
        await asyncio.to_thread(self.assembly.certificates.reload)

    async def reload(self) -> LoadedConfig:
        """Go over to the configuration as it is written now. Returns it.

        Raises ConfigError for one that cannot be used, StartError for what cannot be started or listened on. Nothing
        has changed then.
        """
        before = self._reloading
        self._reloading = asyncio.create_task(self._reload(before), name="reload")
        # Whoever asked for it may leave; it goes on.
        return await asyncio.shield(self._reloading)

    async def _reload(self, before: asyncio.Task[LoadedConfig] | None) -> LoadedConfig:
        if before is not None:
            await asyncio.wait({before})
        try:
            if self._load is None or self._stopping:
                raise StartError(
                    "there is nothing to load again" if self._load is None else "the gateway stops"
                )
            config = await asyncio.to_thread(self._load)
            retiring = [purpose for purposes in self._retiring_purposes.values() for purpose in purposes]
            assembly = assemble(config, self.assembly, retiring=retiring)
            with _explained():
                await self._go_over_to(config, assembly)
            await self.reload_certificates()
        except (ConfigError, StartError) as error:
            self._audit_reload(refused=True)
            logger.error("the configuration was not reloaded, nothing has changed: %s", error)
            raise
        self._audit_reload(refused=False)
        logger.info("the configuration was reloaded: %s", ", ".join(map(str, config.sources)) or "embedded")
        return config

    def _audit_reload(self, *, refused: bool) -> None:
        if self.assembly.auditor is not None:
            self.assembly.auditor.reloaded(map(str, self.config.sources), refused=refused)

    async def _go_over_to(self, config: LoadedConfig, assembly: Assembly) -> None:
        old = self.assembly
        parts = list(_parts(assembly))
        here = {id(part.thing) for part in self._running}
        started: list[_Part] = []
        self._routers = {**assembly.routers, **old.routers}  # nobody else answers on a network that is new
        assembly.receivers.provide(assembly.provided)
        try:
            for part in parts:
                if id(part.thing) not in here:
                    await self._start_part(part)
                    started.append(part)
            await self._listeners.open(assembly)
            if self._set_up_logging is not None and config.log != self.config.log:
                with _explained("the log file"):
                    self._set_up_logging(config.log)
        except BaseException:
            await self._listeners.restore(old)
            self._routers = old.routers
            old.receivers.provide(old.provided)
            for part in reversed(started):
                await _stopped(part.stop, 0.0)
                self._running.remove(part)
            raise
        # Nothing can fail from here on, and nothing waits: everybody who comes next meets the new assembly.
        associations = {each for listener in old.dicom for each in listener.server.acceptor.associations}
        requests, self._requests = self._requests, _Requests()
        self.config, self.assembly, self._routers = config, assembly, assembly.routers
        self._limit_memory()
        if assembly.workers is not None:
            assembly.workers.set_up(config.log)
        self._listeners.swap(assembly)
        self._told_management()
        self._told_auditor()
        wanted = {id(part.thing) for part in parts}
        retired = [part for part in self._running if id(part.thing) not in wanted]
        self._running = [part for part in self._running if id(part.thing) in wanted]
        task = asyncio.create_task(self._retire(retired, associations, requests), name="retire")
        self._retiring[task] = retired
        gone = {id(part.thing) for part in retired}
        self._retiring_purposes[task] = [each.purpose for each in old.kept if id(each.thing) in gone]
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.pop(task, None)
        self._retiring_purposes.pop(task, None)

    async def _retire(self, parts: list[_Part], associations: set[Association], requests: _Requests) -> None:
        """Stop what only an earlier assembly needed, when what was begun under it is over."""
        for association in associations:
            await association.wait_closed()
        await requests.over()
        await self._listeners.left()
        if self.assembly.workers is not None:
            await self.assembly.workers.keep_only(
                [each for listener in self.assembly.dicom for each in listener.receiving]
            )
        while parts:
            await _stopped(parts[-1].stop, GRACE_S)
            parts.pop()

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Stop everything that was started, listeners first; idempotent, also after it was cancelled."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        self._stopping = True
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait({self._reloading})
        management = self.assembly.management
        if management is not None:
            management.phase = Phase.STOPPING
        await self._listeners.stop(grace_s)
        await self.assembly.certificates.stop()
        for task, parts in list(self._retiring.items()):
            task.cancel()
            await asyncio.wait({task})
            self._running += parts
            parts.clear()
        while self._running:
            await _stopped(self._running[-1].stop, max(0.0, deadline - loop.time()))
            self._running.pop()
        await _stopped(self._listeners.management_http.stop, max(0.0, deadline - loop.time()))
        if management is not None:
            management.metrics.loop_lag.stop()

    # HTTP

    def _http_server(self) -> HTTPServer:
        return HTTPServer(self._handle, on_exchanged=self._exchanged)

    async def _handle(self, request: Request) -> Response:
        request.state[_REQUESTS] = self._requests
        self._requests.begun()
        network = self.config.networks.get(request.network)
        if network is not None and network.http is not None and network.http.trusted_proxies:
            trace(request, network.http)
        router = self._routers.get(request.network)
        if router is None:
            raise HTTPError(404, "nothing is served here")
        if self.assembly.auditor is not None:
            request.state[_AUDITOR] = self.assembly.auditor
            CALLER.set(Caller(request))  # the task also sends the body
        return await router(request)

    def _exchanged(self, exchanged: Exchanged) -> None:
        request, management = exchanged.request, self.assembly.management
        requests = request.state.get(_REQUESTS) if request is not None else None
        if isinstance(requests, _Requests):
            requests.ended()
        auditor = request.state.get(_AUDITOR) if request is not None else None
        if request is not None and isinstance(auditor, Auditor):
            auditor.request_ended(request)
        if management is not None:
            management.metrics.http.answered(exchanged)


_REQUESTS, _AUDITOR = "requests", "auditor"
"""Keys of `Request.state`."""


def _parts(assembly: Assembly) -> Iterator[_Part]:
    """What an assembly consists of, in the order of the start."""
    yield _Part(assembly.authentications, "", _nothing, assembly.authentications.stop)
    if assembly.auditor is not None:
        yield _Part(assembly.auditor, str(assembly.auditor), assembly.auditor.start, assembly.auditor.stop)
    for path, store in assembly.envelope_stores.items():
        opened = _opening(store)
        yield _Part(store, f"the envelope store {path}", opened, _closing(store))
    for path, index in assembly.indexes.items():
        name = f"the index of the storage folder {path}"
        yield _Part(index, name, _opening(index, _reporting(path)), _closing(index))
    if assembly.workers is not None:
        yield _Part(assembly.workers, "", assembly.workers.start, assembly.workers.stop)
    for folders in assembly.retrieved.values():
        yield _Part(folders, str(folders), folders.start, folders.stop)
    for backend in assembly.backends:
        yield _Part(backend, str(backend), backend.start, backend.stop)
    for upstream in assembly.upstreams:
        yield _Part(upstream, "", _nothing, upstream.stop)
    for studies in assembly.studies:
        yield _Part(studies, "", _nothing, studies.stop)


async def _nothing() -> None:
    """What only needs an end."""


def _opening(store: EnvelopeStore | ArchiveIndex, *arguments: Report) -> Callable[[], Awaitable[None]]:
    async def start() -> None:
        await asyncio.to_thread(store.open, *arguments)

    return start


@contextlib.contextmanager
def _explained(what: str = "") -> Iterator[None]:
    prefix = f"{what}: " if what else ""
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        where = (
            f"{error.filename}: " if error.filename is not None and str(error.filename) not in what else ""
        )
        raise StartError(f"{prefix}{where}{error.strerror or error}") from error
    except (sqlite3.Error, ArchiveIndexError) as error:
        raise StartError(f"{prefix}{error}") from error


async def _stopped(stop: _Stop, grace_s: float) -> None:
    try:
        await stop(grace_s)
    except Exception:
        logger.exception("a part of the gateway did not stop cleanly")


def _closing(store: EnvelopeStore | ArchiveIndex) -> _Stop:
    """A thread cannot be cancelled: who comes again, after a cancelled stop, waits for the one that closes already."""
    closing: asyncio.Task[None] | None = None

    async def close(grace_s: float) -> None:
        nonlocal closing
        if closing is None:
            closing = asyncio.create_task(asyncio.to_thread(store.close))
        await asyncio.shield(closing)

    return close


def _reporting(path: Path) -> Report:
    """A line now and then while an index is brought up to date, which is a millisecond per file that it lacks."""
    told_at = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal told_at
        if time.monotonic() >= told_at + REPORT_S:
            told_at = time.monotonic()
            logger.info(
                "%s: %d files compared with the index, %d indexed", path, progress.files, progress.indexed
            )

    return report
