"""The management API: what runs here, how it does, and what it has counted (docs/CONFIGURATION.md, "Management and
metrics").

    GET  <base_path>/info        version, uptime, platform
    GET  <base_path>/pipelines   what is put together to what
    GET  <base_path>/routes      what HTTP requests are answered, on every network
    POST <base_path>/reload      load the configuration again; also /api/reload
    GET  /health                 200 while objects are taken and served, else 503 and why
    GET  /metrics                for Prometheus

`[management]` puts it on a network, and so does an endpoint with `service = "management"`. Without an `authentication`
who reaches the network may ask; with one /health is left open. No answer holds patient data, credentials or places in
the file system.

One `Management` belongs to a gateway. `pipelines` tells it what there is to watch, `app` which phase it is in.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from harmony import __version__
from harmony.archive.indexing import ArchiveIndex
from harmony.dimse.observer import Observer
from harmony.gateway.authentication import Authentications
from harmony.gateway.config import Authentication, Backend, ConfigError, Endpoint, LoadedConfig, Origin
from harmony.gateway.errors import StartError
from harmony.gateway.http_authentication import RequireAuthentication
from harmony.gateway.http_middleware import GuardedRouter, checks_anybody
from harmony.gateway.jmix_builder import JmixBuilder
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.metric_sources import (
    archive_source,
    envelope_source,
    memory_source,
    outbox_source,
    storage_source,
)
from harmony.gateway.metrics import Metrics, Watched
from harmony.gateway.options import ManagementOptions
from harmony.gateway.study_envelope import StudyEnvelopes
from harmony.http import (
    Request,
    Response,
    RouteConflict,
    Router,
    error_response,
    json_response,
    normalize_prefix,
)
from harmony.http.message import HTTPError

__all__ = ["Check", "Management", "Phase", "serves_management"]

logger = logging.getLogger("harmony.gateway")

NAME = "management"
"""Of the pipeline and the endpoint that `[management]` stands for, in what /routes lists."""

OS_NAMES = {"Darwin": "macos"}

Reload = Callable[[], Awaitable[LoadedConfig]]
"""`Gateway.reload`."""

Check = Callable[[], str | None]
"""Why a part cannot do its work, None when it can. Blocking."""


class Phase(Enum):
    """Of the gateway's life."""

    STARTING = "starting"
    SERVING = "ok"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class _Place:
    """One place where the API is: by the table `[management]`, or by an endpoint."""

    network: str
    base_path: str
    name: str
    origin: Origin
    key: str
    """That a route conflict is about."""
    authentication: Authentication | None


def _places(config: LoadedConfig) -> Iterator[_Place]:
    management = config.management
    if management.enabled and management.network is not None:
        yield _Place(
            management.network,
            management.base_path,
            NAME,
            management.origin,
            "base_path",
            management.authentication,
        )
    for pipeline in config.pipelines.values():
        for endpoint in pipeline.endpoints:
            if isinstance(endpoint.options, ManagementOptions):
                for network in endpoint.networks:
                    yield _Place(
                        network,
                        endpoint.options.base_path,
                        endpoint.name,
                        endpoint.origin,
                        "options.base_path",
                        endpoint.authentication,
                    )


def serves_management(config: LoadedConfig) -> bool:
    """Whether anybody can ask, so that counting is worth while."""
    return next(_places(config), None) is not None


class Management:
    """The answers, from a configuration and what became of it."""

    def __init__(self, config: LoadedConfig, previous: Management | None = None) -> None:
        """previous: that of the configuration before, while the gateway runs; its counting goes on here."""
        self.phase: Phase = previous.phase if previous is not None else Phase.STARTING
        self.metrics: Metrics = previous.metrics if previous is not None else Metrics()
        self.watched = Watched(sources=[memory_source])
        """For `metrics`, when this configuration is the one that runs."""
        self.reload: Reload | None = None
        """None: there is nothing to load again."""
        self._config = config
        self._started_at: float = previous._started_at if previous is not None else time.monotonic()
        self._checks: dict[str, Check] = {}
        self._indexes: list[ArchiveIndex] = []
        self._routers: Mapping[str, Router] = {}
        self._places = tuple(_places(config))

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Network and base path of each place."""
        return [(place.network, place.base_path) for place in self._places]

    @property
    def own_networks(self) -> frozenset[str]:
        """The networks that carry nothing else. They answer while the gateway starts and until it has stopped."""
        shared = {
            network
            for pipeline in self._config.pipelines.values()
            for endpoint in pipeline.endpoints
            if endpoint.service not in ("dicom_scp", "management")
            for network in endpoint.networks
        }
        return frozenset(place.network for place in self._places) - shared

    def observer(self, table: Endpoint | Backend) -> Observer:
        """What counts the associations of a dicom_scp endpoint, or with the PACS of a dicom_scu backend."""
        if isinstance(table, Endpoint):
            return self.metrics.endpoint(table.name)
        return self.metrics.backend(table.name)

    def watch_archive(self, pipeline: str, archive: LocalArchive) -> None:
        """What a pipeline receives is kept there."""
        self._checks[f"pipeline {pipeline}"] = archive.problem
        self.watched.sources.append(storage_source(pipeline, archive.files))
        index = archive.index
        if index is not None and index not in self._indexes:  # pipelines may share one
            self._indexes.append(index)
            self.watched.sources.append(archive_source(pipeline, index))

    def watch_builder(self, pipeline: str, component: str, builder: JmixBuilder) -> None:
        """What a pipeline receives is packed and delivered by it, over an archive that is watched already."""
        self._checks[f"pipeline {pipeline}"] = builder.problem
        self.watched.sources.append(outbox_source(pipeline, lambda: builder.outbox))
        self.watched.sources.append(envelope_source(pipeline, component, lambda: builder.built_count))

    def watch_studies(self, pipeline: str, component: str, studies: StudyEnvelopes) -> None:
        """An endpoint makes envelopes of what is there."""
        self.watched.sources.append(envelope_source(pipeline, component, lambda: studies.built_count))

    def add_routes(self, routers: dict[str, Router], authentications: Authentications) -> None:
        """Add the API to the routers of its networks, after all others. Raises ConfigError where a route is taken."""
        self._routers = routers
        at_root: set[str] = set()
        for place in self._places:
            router = routers.setdefault(place.network, Router())
            base = normalize_prefix(place.base_path).rstrip("/")
            try:
                guarded = router
                if checks_anybody(place.authentication):
                    gate = authentications.gate(place.authentication)
                    guarded = GuardedRouter(router, [RequireAuthentication(gate, place.name)])
                self._add(guarded, base, place.name)
                if place.network not in at_root:
                    self._add_root(guarded, router, place.name)
            except RouteConflict as error:
                raise ConfigError([place.origin.problem(place.key, f"cannot be served: {error}")]) from error
            at_root.add(place.network)

    def _add(self, router: Router, base: str, name: str) -> None:
        router.add("GET", base + "/info", self.info, name=name, description="version and uptime")
        router.add("GET", base + "/pipelines", self.pipelines, name=name, description="configured pipelines")
        router.add("GET", base + "/routes", self.routes, name=name, description="HTTP routes")
        router.add("POST", base + "/reload", self.load_again, name=name, description="load the configuration")

    def _add_root(self, guarded: Router, router: Router, name: str) -> None:
        """Load balancers, who ask for /health, have no credentials."""
        guarded.add("POST", "/api/reload", self.load_again, name=name, description="load the configuration")
        router.add("GET", "/health", self.health, name=name, description="readiness")
        guarded.add("GET", "/metrics", self.scrape, name=name, description="metrics for Prometheus")

    # Answers -----

    async def info(self, request: Request) -> Response:
        system = platform.system()
        return json_response(
            {
                "version": __version__,
                "uptime": int(time.monotonic() - self._started_at),
                "os": OS_NAMES.get(system, system.lower()),
                "arch": platform.machine(),
            }
        )

    async def pipelines(self, request: Request) -> Response:
        listed = [
            {
                "id": pipeline.name,
                "description": pipeline.description,
                "networks": pipeline.networks,
                "endpoints": [endpoint.name for endpoint in pipeline.endpoints],
                "backends": [backend.name for backend in pipeline.backends],
                "middleware": [middleware.name for middleware in pipeline.middleware],
            }
            for pipeline in self._config.pipelines.values()
        ]
        return json_response({"pipelines": listed})

    async def routes(self, request: Request) -> Response:
        owners = {
            (network, endpoint.name): (endpoint.service, pipeline.name)
            for pipeline in self._config.pipelines.values()
            for endpoint in pipeline.endpoints
            for network in endpoint.networks
        }
        listed = []
        for network, router in self._routers.items():
            for route in router.routes():
                service, pipeline = owners.get((network, route.name), (NAME, NAME))
                listed.append(
                    {
                        "path": route.pattern,
                        "methods": route.methods,
                        "description": route.description,
                        "endpoint_name": route.name,
                        "service_type": service,
                        "pipeline": pipeline,
                    }
                )
        listed.sort(key=lambda each: (each["path"], each["methods"], each["pipeline"]))
        return json_response({"routes": listed})

    async def health(self, request: Request) -> Response:
        """Ready or not; a cache must not answer for us."""
        status, code, problems = self.phase.value, 200, {}
        if self.phase is Phase.SERVING:
            problems = await asyncio.to_thread(self._problems)
            if problems:
                status = "failing"
        if status != Phase.SERVING.value:
            code = 503
        body = {"status": status, "version": __version__, "problems": problems}
        return json_response(body, code, headers={"Cache-Control": "no-store"})

    def _problems(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, check in self._checks.items():
            problem = check()
            if problem is not None:
                found[name] = problem
        return found

    async def load_again(self, request: Request) -> Response:
        """Where the problems are is said; what they are may quote the file, and is in the log."""
        if self.reload is None:
            raise HTTPError(409, "there is nothing to load again")
        try:
            config = await self.reload()
        except ConfigError as error:
            places = [f"[{each.table}] {each.key}".rstrip() for each in error.errors]
            return error_response(409, "the configuration cannot be used, see the log", problems=places)
        except StartError as error:
            logger.debug("reload: %s", error)
            return error_response(409, "the configuration cannot be started, see the log")
        return json_response({"status": "reloaded", "warnings": len(config.warnings)})

    async def scrape(self, request: Request) -> Response:
        body, media_type = await self.metrics.render(request.headers.get("accept") or "")
        return Response(200, {"Content-Type": media_type, "Cache-Control": "no-store"}, body)
