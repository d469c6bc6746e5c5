"""Start and stop of the running gateway.

Starting goes inwards out: stores, backends (which take up what a crash left), then listeners; an address that
is taken is an error that names it. SIGTERM and SIGINT stop it outwards in: all at once, new associations are
rejected and new connections refused; then backends finish and stores close. GRACE_S is for all of it
together. A second signal cuts the grace short.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import signal
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from harmony import __version__
from harmony.archive.index import ArchiveIndexError
from harmony.archive.indexing import ArchiveIndex, Progress, Report
from harmony.gateway.config import ConfigError, LoadedConfig, LogSettings
from harmony.gateway.management import Phase
from harmony.gateway.options import PrefixOptions
from harmony.gateway.pipelines import Assembly, assemble
from harmony.gateway.tls import server_context
from harmony.http import HTTPServer, Request, Response
from harmony.http.message import HTTPError
from harmony.jmix.store import EnvelopeStore

__all__ = ["Gateway", "StartError", "run"]

logger = logging.getLogger("harmony.gateway")

GRACE_S = 20.0
"""For associations, requests and uploads that are under way when the gateway is told to stop."""

REPORT_S = 5.0
"""Between lines about an index that is being made at the start."""

EXIT_CANNOT_START = 1
EXIT_UNUSABLE = 2


class StartError(Exception):
    """The gateway cannot start; the message says what and where."""


_Stop = Callable[[float], Awaitable[None]]
"""Given the seconds it may take, or 0.0 for at once; may be called again when it was cancelled."""


class Gateway:
    """Everything a configuration describes, running between `start` and `stop`."""

    def __init__(self, config: LoadedConfig) -> None:
        """Raises ConfigError."""
        self.config = config
        self._assembly: Assembly = assemble(config)
        self._management = self._assembly.management
        self._http: HTTPServer | None = None
        self._management_http: HTTPServer | None = None
        """On networks of its own: the first to start, the last to stop."""
        self._listeners: list[_Stop] = []
        self._inner: list[_Stop] = []  # in the order of their start

    @property
    def dicom_addresses(self) -> list[tuple[str, int]]:
        """Where DICOM is listened for, in the order of the configuration."""
        return [address for each in self._assembly.dicom for address in each.server.acceptor.addresses]

    @property
    def http_addresses(self) -> list[tuple[str, int]]:
        """Where HTTP is listened for; networks with nothing but the management API come last."""
        servers = (self._http, self._management_http)
        return [address for server in servers if server is not None for address in server.addresses]

    async def start(self) -> None:
        """Raises StartError; what had been started is stopped again then."""
        try:
            await self._start()
        except BaseException:
            await self.stop(0.0)
            raise

    async def _start(self) -> None:
        assembly, management = self._assembly, self._management
        apart = management.own_networks if management is not None else frozenset()
        if management is not None:
            management.metrics.loop_lag.start()
        if apart:
            self._management_http = self._http_server()
            self._inner.append(self._management_http.stop)
            await self._listen(self._management_http, lambda network: network in apart)
        for path, store in assembly.envelope_stores.items():
            with _explained(f"the envelope store {path}"):
                await asyncio.to_thread(store.open)
            self._inner.append(_closing(store))
        for path, index in assembly.indexes.items():
            with _explained(f"the index of the storage folder {path}"):
                await asyncio.to_thread(index.open, _reporting(path))
            self._inner.append(_closing(index))
        for folders in assembly.retrieved.values():
            with _explained(str(folders)):
                await folders.start()
            self._inner.append(folders.stop)
        for backend in assembly.backends:
            with _explained(str(backend)):
                await backend.start()
            self._inner.append(backend.stop)
        self._inner.extend(upstream.stop for upstream in assembly.upstreams)
        self._inner.extend(studies.stop for studies in assembly.studies)
        for listener in assembly.dicom:
            with _explained(f"DICOM on {listener.address}"):
                await listener.start()
            self._listeners.append(listener.stop)
        if any(network not in apart for network, _ in assembly.http):
            self._http = self._http_server()
            self._listeners.append(self._http.stop)
            await self._listen(self._http, lambda network: network not in apart)
        if management is not None:
            management.phase = Phase.SERVING

    def _http_server(self) -> HTTPServer:
        counted = self._management.metrics.http.answered if self._management is not None else None
        return HTTPServer(self._handle, on_exchanged=counted)

    async def _listen(self, server: HTTPServer, wanted: Callable[[str], bool]) -> None:
        for network, address in self._assembly.http:
            if wanted(network):
                with _explained(f"HTTP on {address}"):
                    await server.start(
                        address.host, address.port, ssl=server_context(address), network=network
                    )

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Stop everything that was started, listeners first; idempotent, also after it was cancelled."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        if self._management is not None:
            self._management.phase = Phase.STOPPING
        await asyncio.gather(*(_stopped(stop, grace_s) for stop in self._listeners))
        self._listeners.clear()
        while self._inner:
            await _stopped(self._inner[-1], max(0.0, deadline - loop.time()))
            self._inner.pop()
        if self._management is not None:
            self._management.metrics.loop_lag.stop()

    async def _handle(self, request: Request) -> Response:
        router = self._assembly.routers.get(request.network)
        if router is None:
            raise HTTPError(404, "nothing is served here")
        return await router(request)

    def greeting(self) -> list[str]:
        """What was started, and what to type next."""
        lines = [f"Harmony {__version__} ({self.config.proxy_id}), data under {self.config.storage_path}"]
        for listener in self._assembly.dicom:
            host, port = listener.server.acceptor.addresses[0]
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            for scp in listener.scps:
                title = scp.options.local_aet
                lines.append(f"  DICOM  {host}:{port}  AE title {title}")
                lines.append(f"         try: echoscu -aec {title} {shown} {port}")
                lines.append(f"         try: storescu -aec {title} {shown} {port} FILE.dcm")
                if scp.backend.can_be_queried and scp.options.enable_find:
                    lines.append(
                        f"         try: findscu -aec {title} -S {shown} {port} "
                        "-k QueryRetrieveLevel=STUDY -k PatientName -k StudyInstanceUID"
                    )
        for network, address in self._assembly.http:
            scheme = "https" if address.tls else "http"
            shown = "127.0.0.1" if address.host in ("0.0.0.0", "::") else address.host
            for prefix, service, behind in sorted(self._prefixes(network)):
                url = f"{scheme}://{shown}:{address.port}{prefix.rstrip('/')}"
                lines.append(f"  {_LABELS.get(service, service.upper()):5}  {url}")
                try_it = "{url}" if behind in ("http", "echo") else _CURL.get(service)
                if try_it is not None:
                    lines.append(f"         try: curl {try_it.format(url=url)}")
            lines += self._management_greeting(network, f"{scheme}://{shown}:{address.port}")
        return lines

    def _management_greeting(self, network: str, url: str) -> Iterator[str]:
        for its_network, base_path in self._management.addresses if self._management is not None else []:
            if its_network == network:
                yield f"  ADMIN  {url}{base_path.rstrip('/')}, {url}/health, {url}/metrics"
                yield f"         try: curl {url}/health"

    def _prefixes(self, network: str) -> set[tuple[str, str, str]]:
        """Path prefix and service of the HTTP endpoints on a network, and the service of what is behind them."""
        return {
            (
                endpoint.options.path_prefix,
                endpoint.service,
                pipeline.backends[0].service if pipeline.backends else "",
            )
            for pipeline in self.config.pipelines.values()
            for endpoint in pipeline.endpoints
            if network in endpoint.networks and isinstance(endpoint.options, PrefixOptions)
        }


_LABELS = {"dicomweb": "WEB"}
_CURL = {
    "echo": "{url}",
    "http": "-X POST {url}/echo",
    "dicomweb": "'{url}/studies?PatientName=D*'",
    "jmix": "'{url}/api/jmix?studyInstanceUid=UID' -o envelope.zip",
}


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        where = (
            f": {error.filename}" if error.filename is not None and str(error.filename) not in what else ""
        )
        raise StartError(f"{what}{where}: {error.strerror or error}") from error
    except (sqlite3.Error, ArchiveIndexError) as error:
        raise StartError(f"{what}: {error}") from error


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


def run(config: LoadedConfig) -> int:
    """Run until a signal says stop; the process's exit status."""
    try:
        _set_up_logging(config.log)
        gateway = Gateway(config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_UNUSABLE
    except OSError as error:
        print(f"cannot start: the log file: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(gateway))


async def _serve(gateway: Gateway) -> int:
    stop = asyncio.Event()
    hurry = asyncio.Event()

    def told() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    try:
        await gateway.start()
    except StartError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    print("\n".join(gateway.greeting()), flush=True)
    await stop.wait()
    logger.info("stopping")
    stopping = asyncio.create_task(gateway.stop())
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        await gateway.stop(0.0)
    hurried.cancel()
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _set_up_logging(settings: LogSettings) -> None:
    handler: logging.Handler
    if settings.file is None:
        handler = logging.StreamHandler()
    else:
        Path(settings.file).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.WatchedFileHandler(settings.file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.number)
