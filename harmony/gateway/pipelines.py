"""From a LoadedConfig to the objects that run: stores, backends, DICOM listeners, HTTP routes.

Nothing is opened or listened on here; `app` starts what `assemble` returns, in the order of its fields, and
stops it in reverse. Stores are shared by everyone who names the same folder: what one pipeline receives,
another serves.

A gateway that is running gives its assembly to the next one: what would be made of the same settings again is
taken over as it is, with its associations, its queues and what it remembers. Some things cannot be there twice,
a journal say; when their settings have changed the configuration is refused, and a restart is what it takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from harmony.archive.files import FileStore
from harmony.archive.indexing import ArchiveIndex
from harmony.dimse.observer import Observer
from harmony.gateway import config
from harmony.gateway.assembly import Assembly, Kept
from harmony.gateway.audited_backend import AuditedBackend, AuditedPACS
from harmony.gateway.auditing import Auditor
from harmony.gateway.authentication import Authentications, Gate
from harmony.gateway.backend import Backend
from harmony.gateway.config import ConfigError, Endpoint, Listener, LoadedConfig, Origin, Pipeline
from harmony.gateway.dicom_scp import DicomListener, DicomSCP, timeouts_of
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.dicomweb import DicomWeb
from harmony.gateway.dicomweb_upstream import DicomwebUpstream
from harmony.gateway.dimse_bridge import DimseBridge
from harmony.gateway.dimse_policies import DimsePolicies
from harmony.gateway.echo import Echo
from harmony.gateway.envelope_audit import EnvelopeAudit
from harmony.gateway.envelope_builder import EnvelopeBuilder
from harmony.gateway.handover import Receiving
from harmony.gateway.http_backend import HttpForward, HttpUpstream
from harmony.gateway.http_middleware import GuardedRouter, checks_anybody, http_middleware
from harmony.gateway.jmix import JmixEndpoint
from harmony.gateway.jmix_backend import JmixUpstream
from harmony.gateway.jmix_builder import OUTBOX_NAME, JmixBuilder
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.management import Management, serves_management
from harmony.gateway.metric_sources import audit_source, certificate_source, worker_source
from harmony.gateway.no_backend import NoBackend
from harmony.gateway.options import (
    DEFAULT_MIN_FREE_BYTES,
    ENVELOPE_FOLDER,
    DicomScpOptions,
    DicomScuOptions,
    DicomwebOptions,
    EchoEndpointOptions,
    HttpBackendOptions,
    HttpEndpointOptions,
    JmixBackendOptions,
    JmixBuilderOptions,
    JmixEndpointOptions,
    StorageBackendOptions,
)
from harmony.gateway.retrieved import RetrievedFolders
from harmony.gateway.rules import Rulebook
from harmony.gateway.store_receiver import require_title
from harmony.gateway.study_envelope import StudyEnvelopes
from harmony.gateway.tallies import AssociationTally
from harmony.gateway.workers import ReceivingEndpoint, WorkerPool
from harmony.http import RouteConflict, Router
from harmony.jmix.store import EnvelopeStore

__all__ = ["assemble", "outboxes"]

T = TypeVar("T")

BUILDER_FOLDER = "jmix-builder"

OBJECT_FOLDER = "dimse"
"""Where a storage backend keeps DICOM objects, below its root."""

FILE_OPTIONS = ("storage_dir", "index", "durability", "duplicates", "max_object_bytes", "min_free_bytes")
"""Options of a dicom_scp endpoint that are about what is behind it."""


class _Served(Protocol):
    """An endpoint of the HTTP family."""

    def add_routes(self, router: Router) -> None: ...


class _Assembler:
    def __init__(
        self, loaded: LoadedConfig, previous: Assembly | None, retiring: Collection[tuple[object, ...]]
    ) -> None:
        self.config = loaded
        self.retiring = retiring
        self.previous = previous if previous is not None else Assembly()
        management = Management(loaded, self.previous.management) if serves_management(loaded) else None
        self.assembly = Assembly(
            authentications=Authentications(
                keep_keys_s=loaded.keep_keys_s, previous=self.previous.authentications
            ),
            management=management,
            receivers=self.previous.receivers,
            certificates=self.previous.certificates,
        )
        self.assembly.auditor = self._auditor()
        self.assembly.workers = self._workers()
        self._origin = next((each.origin for each in loaded.pipelines.values()), loaded.management.origin)
        """Of what several pipelines may share."""
        self._scps: dict[Listener, list[DicomSCP]] = {}
        self._pacses: dict[str, DicomSCU] = {}
        """By the name of their table."""
        self._upstreams: dict[str, HttpUpstream] = {}
        self._dicomweb_servers: dict[str, DicomwebUpstream] = {}
        self._rulebook = Rulebook()
        self._archives: dict[Path, LocalArchive] = {}
        """What can be retrieved from, one for each storage folder."""
        self._behind: dict[str, Backend] = {}
        """What is behind the DICOM endpoints of a pipeline, by its name."""
        self._durable_indexes = {
            _place(options.storage_dir) for options in self._scp_options() if options.durability == "fsync"
        }

    def assemble(self) -> Assembly:
        for pipeline in self.config.pipelines.values():
            self._add(pipeline)
        for pipeline in self.config.pipelines.values():
            for endpoint in pipeline.endpoints:
                if isinstance(endpoint.options, JmixEndpointOptions):
                    self._add_jmix(pipeline, endpoint, endpoint.options)
                elif isinstance(endpoint.options, DicomwebOptions):
                    self._add_dicomweb(pipeline, endpoint)
        self._share_store_ports()
        for listener, scps in self._scps.items():
            try:
                workers = self.assembly.workers
                self.assembly.dicom.append(DicomListener(listener, scps, workers=workers))
            except (ValueError, OSError) as error:  # a certificate for a destination of C-MOVE
                raise ConfigError(
                    [scps[0].endpoint.origin.problem("options.aet_table", str(error))]
                ) from error
        if self.assembly.management is not None:
            if self.assembly.auditor is not None:
                trail = self.assembly.auditor.trail
                self.assembly.management.watched.sources.append(audit_source(trail))
            if self.assembly.workers is not None:
                self.assembly.management.watched.sources.append(worker_source(self.assembly.workers))
                self.assembly.management.watched.refresh = self.assembly.workers.refresh
            source = certificate_source(self.assembly.certificates)
            self.assembly.management.watched.sources.append(source)
            self.assembly.management.add_routes(self.assembly.routers, self.assembly.authentications)
        for network in self.config.http_networks():
            if network.http is not None:
                self.assembly.http.append((network.name, network.http))
                self.assembly.routers.setdefault(network.name, Router())
        return self.assembly

    def _kept(
        self,
        purpose: tuple[object, ...],
        settings: object,
        make: Callable[[], T],
        *,
        only_one: Origin | None = None,
    ) -> T:
        """What the assembly before has made of the same settings, or a new one.

        only_one: it cannot be there twice, so that other settings for the same purpose take a restart; where they are
        written.
        """
        name = f"{purpose[0]} {purpose[1]}"
        there = next((each for each in self.previous.kept if each.purpose == purpose), None)
        if there is not None and there.settings == settings:
            thing = there.thing
        elif there is not None and only_one is not None:
            raise ConfigError(
                [only_one.problem("", f"changes {name}, which is in use; that takes a restart")]
            )
        elif only_one is not None and purpose in self.retiring:
            message = f"needs {name}, which associations of an earlier configuration still use"
            raise ConfigError([only_one.problem("", message)])
        else:
            thing = make()
        self.assembly.kept.append(Kept(purpose, settings, thing))
        return thing  # type: ignore[return-value]  # what is kept for a purpose is of one type

    def _auditor(self) -> Auditor | None:
        audit = self.config.audit
        if audit is None:
            return None

        def make() -> Auditor:
            try:
                auditor = Auditor.of(audit, self.assembly.certificates)
            except (ValueError, OSError) as error:
                raise ConfigError([audit.origin.problem("syslog", str(error))]) from error
            self.assembly.authentications.subscribe(auditor.authenticated)
            return auditor

        return self._kept(("the audit trail", _place(audit.folder)), audit, make, only_one=audit.origin)

    def _workers(self) -> WorkerPool | None:
        count = self.config.workers
        if (self.previous.workers is not None) != (count > 1) and self.previous.kept:
            message = f"is {count}; whether there are workers, and how many, takes a restart to change"
            raise ConfigError([Origin(self.config.management.origin.file, "").problem("workers", message)])
        if count == 1:
            return None
        return self._kept(
            ("the number of", "workers"),
            count,
            lambda: WorkerPool(count, self.config.log),
            only_one=Origin(self.config.management.origin.file, ""),
        )

    def _receiving(
        self, endpoint: Endpoint, backend: Backend, pipeline: Pipeline
    ) -> ReceivingEndpoint | None:
        """What a worker may do of an endpoint: store into the local archive."""
        archive = backend.backend if isinstance(backend, AuditedBackend) else backend
        options = endpoint.options
        assert isinstance(options, DicomScpOptions)
        if self.assembly.workers is None or not isinstance(archive, LocalArchive) or not options.enable_store:
            return None
        observer = self._observer(endpoint)
        files = archive.files
        receiving = Receiving(
            endpoint.name,
            Path(files.folder.root),
            durability="os" if files.commit is None else "fsync",
            duplicates=files.duplicates,
            maximum_object_bytes=files.maximum_object_bytes,
            minimum_free_bytes=options.min_free_bytes,
            timeouts=timeouts_of(options),
            policies=tuple(each for each in pipeline.middleware if each.type == "policies"),
            is_audited=isinstance(backend, AuditedBackend),
        )
        return ReceivingEndpoint(
            receiving,
            archive.index,
            observer if isinstance(observer, AssociationTally) else None,
            self.assembly.auditor if isinstance(backend, AuditedBackend) else None,
        )

    def _audited(self, backend: Backend) -> Backend:
        auditor = self.assembly.auditor
        if auditor is None or isinstance(backend, AuditedBackend):
            return backend
        return AuditedBackend(backend, auditor)

    def _add(self, pipeline: Pipeline) -> None:
        backend: Backend | None = None
        first: Endpoint | None = None
        for endpoint in pipeline.endpoints:
            if isinstance(endpoint.options, DicomScpOptions):
                if backend is None or first is None:
                    first = endpoint
                    backend = self._audited(self._behind_scp(pipeline, endpoint.options))
                    self._behind[pipeline.name] = backend
                _require_same_storage(first, endpoint)
                for listener in endpoint.listeners:
                    self._scps.setdefault(listener, []).append(
                        DicomSCP(
                            endpoint,
                            backend,
                            self._observer(endpoint),
                            gate=self._gate(endpoint),
                            policies=self._dimse_policies(pipeline),
                            certificates=self.assembly.certificates,
                            receiving=self._receiving(endpoint, backend, pipeline),
                        )
                    )
            elif isinstance(endpoint.options, EchoEndpointOptions):
                self._add_echo(pipeline, endpoint)
            elif isinstance(endpoint.options, HttpEndpointOptions):
                if pipeline.backends:
                    self._add_http(pipeline, endpoint, pipeline.backends[0])
                else:
                    self._add_routes(pipeline, endpoint, NoBackend(endpoint))

    def _dimse_policies(self, pipeline: Pipeline) -> tuple[DimsePolicies, ...]:
        return tuple(
            DimsePolicies.of(each, self._rulebook) for each in pipeline.middleware if each.type == "policies"
        )

    def _share_store_ports(self) -> None:
        """Where a PACS sends to a port that endpoints listen on, they receive for our retrieves as well."""
        moving = [pacs for pacs in self._pacses.values() if pacs.options.dimse_retrieve_mode == "move"]
        for listener, scps in self._scps.items():
            if any(pacs.options.incoming_store_port == listener.port for pacs in moving):
                for number, scp in enumerate(scps):
                    self._provide(listener.port, scp.policy().ae_titles)
                    scps[number] = replace(scp, moves=self.assembly.receivers)
        for pacs in moving:
            try:
                require_title(self.assembly.provided, pacs.options.incoming_store_port, pacs.local_aet)
            except OSError as error:
                raise ConfigError([pacs.origin.problem("options.local_aet", str(error.strerror))]) from error

    def _provide(self, port: int, ae_titles: frozenset[str]) -> None:
        """ae_titles: none for any. Several may share a port; their titles add up."""
        known = self.assembly.provided.setdefault(port, ae_titles)
        self.assembly.provided[port] = known | ae_titles if known and ae_titles else frozenset()

    def _gate(self, endpoint: Endpoint) -> Gate | None:
        asked = endpoint.authentication
        return self.assembly.authentications.gate(asked) if checks_anybody(asked) else None

    def _observer(self, table: Endpoint | config.Backend) -> Observer | None:
        management = self.assembly.management
        return management.observer(table) if management is not None else None

    def _behind_scp(self, pipeline: Pipeline, options: DicomScpOptions) -> Backend:
        """What a pipeline does with what its DICOM endpoints receive and are asked."""
        configured = pipeline.backends[0] if pipeline.backends else None
        if configured is not None and isinstance(configured.options, DicomScuOptions):
            return self._pacs(configured)
        if configured is not None and isinstance(configured.options, HttpBackendOptions):
            return self._dicomweb_server(configured)
        if configured is not None and isinstance(configured.options, StorageBackendOptions):
            options = msgspec.structs.replace(options, storage_dir=configured.options.root / OBJECT_FOLDER)
        archive = self._archive(options, pipeline.name)
        if options.index:
            self._archives.setdefault(_place(options.storage_dir), archive)
        builder = next((each for each in pipeline.left if isinstance(each.options, JmixBuilderOptions)), None)
        management = self.assembly.management
        if management is not None:
            management.watch_archive(pipeline.name, archive)
        self.assembly.backends.append(archive)
        if builder is None:
            return archive
        assert isinstance(builder.options, JmixBuilderOptions)
        packing = self._builder(pipeline, builder, options=options, archive=archive, configured=configured)
        if management is not None:
            management.watch_builder(pipeline.name, builder.name, packing)
        self.assembly.backends.append(packing)
        return packing

    def _builder(
        self,
        pipeline: Pipeline,
        middleware: config.Middleware,
        *,
        options: DicomScpOptions,
        archive: LocalArchive,
        configured: config.Backend | None,
    ) -> JmixBuilder:
        """configured: where the envelopes go, if that is an upstream."""
        assert isinstance(middleware.options, JmixBuilderOptions)
        builder, envelopes = middleware.options, self._envelopes(middleware.options.store_dir)
        if configured is not None and not isinstance(configured.options, JmixBackendOptions):
            configured = None
        audit = self._kept(
            ("the audit of pipeline", pipeline.name), None, lambda: EnvelopeAudit(self.assembly.auditor)
        )
        self.assembly.envelope_audits.append(audit)

        def make() -> JmixBuilder:
            try:
                upstream = None
                if configured is not None:
                    upstream = JmixUpstream(
                        configured,
                        certificates=self.assembly.certificates,
                        audit=audit,
                    )
            except (ValueError, OSError) as error:
                assert configured is not None
                raise ConfigError([configured.origin.problem("", str(error))]) from error
            return JmixBuilder(
                pipeline.name,
                builder,
                archive=archive,
                envelopes=envelopes,
                folder=_builder_folder(self.config, pipeline),
                upstream=upstream,
                window=options.max_operations,
                fsync=options.durability == "fsync",
            )

        settings = (builder, archive, envelopes, configured, options.max_operations, options.durability)
        purpose = ("the jmix_builder of pipeline", pipeline.name)
        return self._kept(purpose, settings, make, only_one=middleware.origin)

    def _pacs(self, configured: config.Backend) -> DicomSCU:
        """One for all who name the same table: its limits are about what the PACS gets from all of them."""
        if configured.name not in self._pacses:
            observer = self._observer(configured)
            try:
                pacs = self._kept(
                    ("the PACS", configured.name),
                    (configured, observer is not None),
                    lambda: DicomSCU(
                        configured,
                        self.assembly.receivers,
                        observer=observer,
                        certificates=self.assembly.certificates,
                    ),
                )
            except (ValueError, OSError) as error:
                raise ConfigError([configured.origin.problem("", str(error))]) from error
            self._pacses[configured.name] = pacs
            self.assembly.backends.append(pacs)
        return self._pacses[configured.name]

    def _dicomweb_server(self, configured: config.Backend) -> DicomwebUpstream:
        if configured.name not in self._dicomweb_servers:
            try:
                server = self._kept(
                    ("the DICOMweb server", configured.name),
                    configured,
                    lambda: DicomwebUpstream(configured, certificates=self.assembly.certificates),
                )
            except (ValueError, OSError) as error:
                raise ConfigError([configured.origin.problem("", str(error))]) from error
            self._dicomweb_servers[configured.name] = server
            self.assembly.backends.append(server)
        return self._dicomweb_servers[configured.name]

    def _archive(self, options: DicomScpOptions, pipeline: str = "") -> LocalArchive:
        """pipeline: that which receives into it."""
        index = self._index(options.storage_dir) if options.index else None

        def make() -> LocalArchive:
            files = FileStore(
                options.storage_dir,
                durability=options.durability,
                duplicates=options.duplicates,
                maximum_object_bytes=options.max_object_bytes,
                minimum_free_bytes=options.min_free_bytes,
            )
            return LocalArchive(files, index)

        settings = tuple(getattr(options, each) for each in FILE_OPTIONS)
        return self._kept(("the archive", _place(options.storage_dir), pipeline), settings, make)

    def _index(self, folder: Path) -> ArchiveIndex:
        place = _place(folder)
        if place not in self.assembly.indexes:
            durable = place in self._durable_indexes
            self.assembly.indexes[place] = self._kept(
                ("the index of", place),
                durable,
                lambda: ArchiveIndex(place, durable=durable),
                only_one=self._origin,
            )
        return self.assembly.indexes[place]

    def _add_jmix(self, pipeline: Pipeline, endpoint: Endpoint, options: JmixEndpointOptions) -> None:
        """After all that receive: what they have received can be packed."""
        given = next(
            (each.options for each in pipeline.middleware if isinstance(each.options, JmixBuilderOptions)),
            None,
        )
        builder = given or JmixBuilderOptions(store_dir=self.config.storage_path / ENVELOPE_FOLDER)
        envelopes = self._envelopes(options.store_dir or builder.store_dir)
        sources = [self._source(each) for each in pipeline.backends] or list(self._archives.values())
        studies = self._kept(
            ("the envelopes of", pipeline.name, endpoint.name),
            (builder, envelopes, tuple(sources), options.min_free_bytes),
            lambda: StudyEnvelopes(
                sources,
                EnvelopeBuilder(builder, envelopes, fsync=envelopes.fsync),
                minimum_free_bytes=options.min_free_bytes,
            ),
        )
        self.assembly.studies.append(studies)
        if self.assembly.management is not None:
            self.assembly.management.watch_studies(pipeline.name, endpoint.name, studies)
        jmix = JmixEndpoint(
            endpoint,
            envelopes,
            studies,
            on_demand=bool(pipeline.backends),
            audit=EnvelopeAudit(self.assembly.auditor),
        )
        self._add_routes(pipeline, endpoint, jmix)

    def _add_http(self, pipeline: Pipeline, endpoint: Endpoint, configured: config.Backend) -> None:
        if configured.service == "echo":
            self._add_echo(pipeline, endpoint)
            return
        if isinstance(configured.options, HttpBackendOptions):
            self._add_routes(pipeline, endpoint, HttpForward(endpoint, self._upstream(configured)))
            return
        pacs = self._pacs(configured)
        folders = self._retrieved(configured, pacs)
        limit = self.config.max_body_bytes
        auditor = self.assembly.auditor
        audited = AuditedPACS(pacs, auditor) if auditor is not None else pacs
        self._add_routes(pipeline, endpoint, DimseBridge(endpoint, audited, folders, max_body_bytes=limit))

    def _add_dicomweb(self, pipeline: Pipeline, endpoint: Endpoint) -> None:
        """In front of what is behind the DICOM endpoints of the pipeline, if it has any, or else of its backend or
        the default storage folder. After all that receive, as its archive may be theirs."""
        backend = self._behind.get(pipeline.name)
        if backend is None and pipeline.backends:
            backend = self._source(pipeline.backends[0])
        elif backend is None:
            backend = self._stored_in(self.config.storage_path / OBJECT_FOLDER)
        backend = self._audited(backend)
        if not backend.can_be_queried:
            message = "needs the index of what is received: options.index of the DICOM endpoint must be true"
            raise ConfigError([endpoint.origin.problem("service", message)])
        bare = backend.backend if isinstance(backend, AuditedBackend) else backend
        behind = bare.peer.called_ae_title if isinstance(bare, DicomSCU) else "the archive"
        limit = self.config.max_body_bytes
        self._add_routes(pipeline, endpoint, DicomWeb(endpoint, backend, behind=behind, max_body_bytes=limit))

    def _add_echo(self, pipeline: Pipeline, endpoint: Endpoint) -> None:
        self._add_routes(pipeline, endpoint, Echo(endpoint, max_body_bytes=self.config.max_body_bytes))

    def _upstream(self, configured: config.Backend) -> HttpUpstream:
        """One for all who name the same table: its limits are about what the upstream gets from all of them."""
        if configured.name not in self._upstreams:
            try:
                upstream = self._kept(
                    ("the HTTP server", configured.name),
                    configured,
                    lambda: HttpUpstream(configured, certificates=self.assembly.certificates),
                )
            except (ValueError, OSError) as error:
                raise ConfigError([configured.origin.problem("", str(error))]) from error
            self._upstreams[configured.name] = upstream
            self.assembly.upstreams.append(upstream)
        return self._upstreams[configured.name]

    def _add_routes(self, pipeline: Pipeline, endpoint: Endpoint, served: _Served) -> None:
        middleware = http_middleware(
            pipeline, endpoint, authentications=self.assembly.authentications, rulebook=self._rulebook
        )
        for network in endpoint.networks:
            router = self.assembly.routers.setdefault(network, Router())
            try:
                served.add_routes(GuardedRouter(router, middleware))
            except RouteConflict as error:
                raise ConfigError([endpoint.origin.problem("options.path_prefix", str(error))]) from error

    def _retrieved(self, configured: config.Backend, pacs: DicomSCU) -> RetrievedFolders:
        root, ttl_s = _place(pacs.options.storage_dir), pacs.options.retrieve_ttl_secs
        minimum_free = pacs.options.min_free_bytes
        folders = self.assembly.retrieved.get(root)
        if folders is None:
            folders = self.assembly.retrieved[root] = self._kept(
                ("the folder of retrieved instances", root),
                (ttl_s, minimum_free),
                lambda: RetrievedFolders(root, ttl_s=ttl_s, minimum_free_bytes=minimum_free),
                only_one=configured.origin,
            )
        if folders.ttl_s != ttl_s:
            message = f"is {ttl_s:g}, must be {folders.ttl_s:g}, as elsewhere with this storage_dir"
            raise ConfigError([configured.origin.problem("options.retrieve_ttl_secs", message)])
        if folders.space.minimum_free_bytes != minimum_free:
            other = folders.space.minimum_free_bytes
            message = f"is {minimum_free}, must be {other}, as elsewhere with this storage_dir"
            raise ConfigError([configured.origin.problem("options.min_free_bytes", message)])
        return folders

    def _source(self, configured: config.Backend) -> Backend:
        """Where studies are retrieved from."""
        options = configured.options
        if isinstance(options, DicomScuOptions):
            return self._pacs(configured)
        assert isinstance(options, StorageBackendOptions)
        return self._stored_in(options.root / OBJECT_FOLDER, options.min_free_bytes)

    def _stored_in(self, folder: Path, min_free_bytes: int = DEFAULT_MIN_FREE_BYTES) -> LocalArchive:
        """The archive in a folder, whether a DICOM endpoint receives into it or not."""
        place = _place(folder)
        if place not in self._archives:
            archive = self._archive(DicomScpOptions(storage_dir=place, min_free_bytes=min_free_bytes))
            self.assembly.backends.append(archive)
            self._archives[place] = archive
        return self._archives[place]

    def _scp_options(self) -> Iterator[DicomScpOptions]:
        for pipeline in self.config.pipelines.values():
            for endpoint in pipeline.endpoints:
                if isinstance(endpoint.options, DicomScpOptions):
                    yield endpoint.options

    def _envelopes(self, folder: Path) -> EnvelopeStore:
        place = _place(folder)
        if place not in self.assembly.envelope_stores:
            fsync = any(options.durability == "fsync" for options in self._scp_options())
            self.assembly.envelope_stores[place] = self._kept(
                ("the envelope store", place),
                fsync,
                lambda: EnvelopeStore(place, fsync=fsync),
                only_one=self._origin,
            )
        return self.assembly.envelope_stores[place]


def _place(folder: Path) -> Path:
    return Path(os.path.abspath(folder))


def _require_same_storage(first: Endpoint, other: Endpoint) -> None:
    """The endpoints of a pipeline share what is behind them. Raises ConfigError when they want it different."""
    for key in (*FILE_OPTIONS, "max_operations"):
        ours, theirs = getattr(other.options, key), getattr(first.options, key)
        if ours != theirs:
            message = f"is {ours}, must be {theirs} as in endpoint {first.name} of the same pipeline"
            raise ConfigError([other.origin.problem(f"options.{key}", message)])


def _builder_folder(loaded: LoadedConfig, pipeline: Pipeline) -> Path:
    return loaded.storage_path / BUILDER_FOLDER / pipeline.name


def outboxes(loaded: LoadedConfig) -> dict[str, Path]:
    """Where the deliveries of each pipeline with a jmix_builder are kept, by the pipeline's name."""
    return {
        pipeline.name: _builder_folder(loaded, pipeline) / OUTBOX_NAME
        for pipeline in loaded.pipelines.values()
        if any(isinstance(each.options, JmixBuilderOptions) for each in pipeline.left)
    }


def assemble(
    loaded: LoadedConfig,
    previous: Assembly | None = None,
    *,
    retiring: Collection[tuple[object, ...]] = (),
) -> Assembly:
    """Build what a configuration describes.

    previous: that of the gateway which runs; it is not changed. retiring: purposes of what still runs although the
    previous assembly does not need it. Raises ConfigError for what only shows when it is put together.
    """
    return _Assembler(loaded, previous, retiring).assemble()
