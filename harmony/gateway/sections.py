"""The tables of a configuration that are not options: proxy, network, targets, pipelines and so on, as written.

These structs mirror the files key by key, aliases included; `harmony.gateway.loading` turns them into the structures
of `harmony.gateway.config`. Keys of the original that have no meaning here are listed as ignored. `Any` stands where
another struct reads on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from harmony.gateway.config import ForwardedHeader, Table
from harmony.gateway.options import Retries, TimeoutSecs, ZeroForNone
from harmony.gateway.tables import AddressRanges, AETitle, Host, Port, Seconds, TLSProfile, URLPath
from harmony.http import ServerLimits

LogLevel = Literal["trace", "debug", "info", "warn", "error"]
Name = Annotated[str, Meta(min_length=1)]
Protocol = Literal["http", "https", "h3", "http3", "dicom", "harmony", "fhir", "hl7v2", "custom"]
HTTP3 = "HTTP/3 is not available; only the http listener is opened"


class ContentLimits(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"max_csv_rows", "max_xml_depth", "max_multipart_files", "max_form_fields"}
    )

    max_body_size: Annotated[int, Meta(ge=1024, le=2**62)] = 10485760
    max_held_bytes: Annotated[int, Meta(ge=2**24, le=2**62)] | None = None
    """None: by the memory that there is."""


class ProxyTable(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"transforms_path", "primary_provider", "store_dir", "mesh_path"}
    )

    id: Name | None = None
    name: Name | None = None
    log_level: LogLevel | None = None
    pipelines_path: str = "pipelines"
    content_limits: ContentLimits = ContentLimits()
    jwks_cache_duration_hours: Annotated[int, Meta(ge=1, le=168)] = 24
    required_env_vars: tuple[str, ...] = ()
    sensitive_field_patterns: tuple[str, ...] = ()


class LoggingTable(Table, frozen=True):
    log_level: LogLevel | None = None
    log_to_file: bool = False
    log_file_path: Path | None = None


class StorageOptions(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"bucket", "region", "access_key_id", "secret_access_key", "endpoint"}
    )

    path: Path | None = None


class StorageTable(Table, frozen=True):
    backend: Literal["filesystem"] = "filesystem"
    options: StorageOptions = StorageOptions()
    path: Path | None = None


class ManagementTable(Table, frozen=True):
    enabled: bool = False
    base_path: URLPath = "admin"
    network: str | None = None
    authentication: str | None = None


class SyslogTable(Table, frozen=True):
    """`audit.syslog`: the collector."""

    host: Host
    port: Port | None = None
    """None: 6514, or 514 over UDP."""
    protocol: Literal["tls", "tcp", "udp"] = "tls"
    ca_cert_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    tls_server_name: Host | None = None
    tls_profile: TLSProfile = "bcp195"


class AuditTable(Table, frozen=True):
    enabled: bool = False
    folder: Path | None = None
    """None: audit, below the storage folder."""
    keep_days: Annotated[int, Meta(ge=0, le=36500)] = 0
    """0: for ever."""
    source_id: Name | None = None
    """None: the name of this instance."""
    site: str = ""
    syslog: SyslogTable | None = None


class ListenerTable(Table, frozen=True):
    """`network.<n>.http`, also spelled tcp_config."""

    aliases: ClassVar[Mapping[str, str]] = {"ca_bundle_path": "ca_cert_path"}

    bind_address: Host = "0.0.0.0"
    bind_port: Port = 8080
    cert_path: Path | None = None
    key_path: Path | None = None
    ca_cert_path: Path | None = None
    require_client_cert: bool = False
    tls_profile: TLSProfile = "bcp195"
    force_https: bool = False
    trusted_proxies: AddressRanges = ()
    """Whose word about the client counts."""
    forwarded_header: ForwardedHeader = "X-Forwarded-For"
    proxy_protocol: bool = False
    max_connections: Annotated[int, Meta(ge=1, le=65535)] = ServerLimits().maximum_connections
    max_connections_per_address: ZeroForNone = 0
    max_connection_rate: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    max_header_bytes: Annotated[int, Meta(ge=1024, le=2**20)] = ServerLimits().maximum_header_bytes
    header_timeout_secs: Seconds = ServerLimits().header_timeout_s
    idle_timeout_secs: Seconds = ServerLimits().idle_keep_alive_timeout_s
    body_timeout_secs: Seconds = ServerLimits().body_read_timeout_s
    write_timeout_secs: Seconds = ServerLimits().write_timeout_s
    min_rate: Annotated[float, Meta(ge=0, le=1_000_000_000)] = ServerLimits().minimum_rate

    def limits(self) -> ServerLimits:
        return ServerLimits(
            maximum_connections=self.max_connections,
            maximum_connections_per_address=self.max_connections_per_address,
            maximum_header_bytes=self.max_header_bytes,
            header_timeout_s=self.header_timeout_secs,
            idle_keep_alive_timeout_s=self.idle_timeout_secs,
            body_read_timeout_s=self.body_timeout_secs,
            write_timeout_s=self.write_timeout_secs,
            connections_per_second_per_address=self.max_connection_rate,
            minimum_rate=self.min_rate,
        )


class DicomListenerTable(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {
        "local_aet": "aet",
        "bind_addr": "bind_address",
        "port": "bind_port",
        "ca_bundle_path": "ca_cert_path",
    }

    bind_address: Host = "0.0.0.0"
    bind_port: Port | None = None
    """None: 2762 with a certificate, else 11112."""
    aet: AETitle | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    trusted_proxies: AddressRanges = ()
    proxy_protocol: bool = False
    ca_cert_path: Path | None = None
    require_client_cert: bool = False
    tls_profile: TLSProfile = "bcp195"


class NetworkTable(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {"tcp_config": "http"}
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "interface"})
    unsupported: ClassVar[Mapping[str, str]] = {"http3": HTTP3}

    enable_wireguard: bool = False
    http: ListenerTable | None = None
    dicom: DicomListenerTable | None = None


class TLSTable(Table, frozen=True):
    enabled: bool = False


class ConnectionTable(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {"ca_bundle_path": "ca_cert_path"}

    host: Host | None = None
    """A name or address; some files hold a whole URL here."""
    port: Port | None = None
    protocol: Protocol | None = None
    base_path: URLPath | None = None
    ca_cert_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    tls_server_name: Host | None = None
    tls_profile: TLSProfile | None = None
    tls: TLSTable = TLSTable()


class PeerTable(Table, frozen=True):
    """`peers.<n>` and `targets.<n>`."""

    aliases: ClassVar[Mapping[str, str]] = {"type": "protocol"}
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "name", "description", "tags"})

    enabled: bool = True
    connection: ConnectionTable = ConnectionTable()
    protocol: Protocol | None = None
    url: Host | None = None
    authentication: str | None = None
    timeout_secs: TimeoutSecs | None = None
    max_retries: Retries | None = None


class AuthenticationTable(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset({"name", "description"})

    method: Literal["jwt", "basic", "bearer", "api_key", "mutual_tls", "kerberos", "saml", "custom", "none"]
    id: str | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class PolicyTable(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "name", "description"})

    rules: tuple[str | dict[str, Any], ...] = ()
    enabled: bool = True


class RuleTable(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "name", "description"})

    type: Literal[
        "ip_allow",
        "ip_deny",
        "rate_limit",
        "path",
        "method",
        "header",
        "content_type",
        "query_parameter",
        "user_agent",
        "time_based",
        "geo",
        "calling_ae",
        "called_ae",
        "sop_class",
        "operation",
        "allow_all",
        "deny_all",
    ]
    weight: Annotated[int, Meta(ge=-1000, le=1000)] = 100
    enabled: bool = True
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class ModuleTable(Table, frozen=True):
    """`services.<n>` and `middleware_types.<n>`: what is built in is listed in options.py, so this only informs."""

    ignored: ClassVar[frozenset[str]] = frozenset({"type"})

    module: Annotated[
        str, Meta(max_length=0, extra={"allowed": '"": extension modules are not available'})
    ] = ""


class SplitMiddleware(Table, frozen=True):
    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()


class PipelineTable(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "name"})

    networks: Annotated[tuple[str, ...], Meta(min_length=1)]
    endpoints: Annotated[tuple[str, ...], Meta(min_length=1)]
    description: str = "Unnamed pipeline"
    middleware: Annotated[
        tuple[str, ...] | dict[str, Any],
        Meta(extra={"allowed": "a list of names or a table with the lists left and right"}),
    ] = ()
    backends: tuple[str, ...] = ()


class EndpointTable(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "name", "description"})

    service: Name
    peer_ref: str | None = None
    connection: ConnectionTable = ConnectionTable()
    authentication: str | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class BackendTable(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "name", "description"})

    service: Name
    target_ref: str | None = None
    targets: tuple[str, ...] = ()
    connection: ConnectionTable = ConnectionTable()
    authentication: str | None = None
    timeout_secs: TimeoutSecs | None = None
    max_retries: Retries | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class MiddlewareTable(Table, frozen=True):
    """Every other key of the table is an option as well, see `harmony.gateway.loading`."""

    aliases: ClassVar[Mapping[str, str]] = {"middleware_type": "type"}
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "name", "description"})

    type: str | None = None
    authentication: str | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)
