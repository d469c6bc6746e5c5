"""The configuration as the gateway sees it: typed, frozen, every reference resolved, every alias gone.

`harmony.gateway.loading` makes a `LoadedConfig` out of TOML files or refuses with one `ConfigError` that carries every
problem found. Nothing here reads files or knows TOML. Paths are kept as written, relative to the working directory.
The structs behind `options` are those of `harmony.gateway.options`, one per service or middleware type.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from harmony.gateway.address_range import AddressRange, address_of, contains
from harmony.http import ServerLimits

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_RETRIES = 3
DEFAULT_TLS_PROFILE = "bcp195"

ForwardedHeader = Literal["X-Forwarded-For", "Forwarded"]


class Table(msgspec.Struct, frozen=True):
    """Base of every struct that a TOML table is read into; field names are the keys."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings of keys -> the field's name."""
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Keys of other implementations that change nothing here and are accepted in silence."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """Keys accepted with a warning -> why they have no effect."""


class Severity(Enum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in the configuration, and where to find it."""

    severity: Severity
    file: Path | None
    """None: the embedded default, or nothing that stands in a file (an environment variable)."""
    table: str
    """As TOML spells it, without brackets; "" for what concerns the whole file."""
    key: str
    """"" for what concerns the whole table."""
    message: str
    """What came and what is allowed."""
    line: int | None = None
    """Counted from 1; None when it could not be found."""

    def __str__(self) -> str:
        where = str(self.file) if self.file is not None else "(embedded default)"
        if self.line is not None:
            where += f":{self.line}"
        table = f" [{self.table}]" if self.table else ""
        key = f" {self.key}" if self.key else ""
        return f"{where}:{table}{key}{':' if table or key else ''} {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds every error and warning found, errors first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.severity is Severity.WARNING))
        super().__init__(self.problems)

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)

    def __str__(self) -> str:
        errors = self.errors
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        return "\n".join([f"{count} in the configuration:", *(f"  {problem}" for problem in errors)])


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a table was written, for messages of later stages."""

    file: Path | None
    table: str
    line: int | None = None

    def problem(self, key: str, message: str, *, severity: Severity = Severity.ERROR) -> Problem:
        return Problem(severity, self.file, self.table, key, message, self.line)


@dataclass(frozen=True, slots=True)
class ListenerTLS:
    cert_path: Path
    key_path: Path
    ca_cert_path: Path | None = None
    """Trust anchor for client certificates."""
    require_client_cert: bool = False
    profile: str = DEFAULT_TLS_PROFILE


@dataclass(frozen=True, slots=True)
class ClientTLS:
    """How to connect to a peer over TLS."""

    ca_cert_path: Path | None = None
    """Who has signed the peer's certificate; None: who the operating system trusts."""
    cert_path: Path | None = None
    """Our own certificate, for a peer that asks for one; with key_path or not at all."""
    key_path: Path | None = None
    profile: str = DEFAULT_TLS_PROFILE


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to listen on."""

    host: str
    port: int
    tls: ListenerTLS | None = None
    force_https: bool = False
    """Answer every request with 301 to the https URL."""
    trusted_proxies: tuple[AddressRange, ...] = ()
    """Whose word about the client counts."""
    proxy_protocol: bool = False
    """They give it in front of each connection, and nobody else may connect."""
    forwarded_header: ForwardedHeader = "X-Forwarded-For"
    """HTTP: where they give it in a request."""
    limits: ServerLimits = field(default=ServerLimits(), repr=False, compare=False)
    """HTTP: of connections. An address with other limits is the same one."""

    def trusts(self, host: str) -> bool:
        return contains(self.trusted_proxies, address_of(host))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Network:
    """A named set of listeners. A listener is opened only when an endpoint uses it."""

    name: str
    http: Listener | None
    dicom: Listener | None
    default_ae_title: str | None
    origin: Origin = field(repr=False, compare=False)


class Secret:
    """Text that must not appear in logs, errors or a repr; `reveal()` hands it out.

    Not a dataclass: msgspec would read a table into one, and a secret is written as a string.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret()"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the policies that a middleware names."""

    name: str
    type: str
    """A key of `harmony.gateway.rule_options.RULES`."""
    weight: int
    options: Table
    origin: Origin = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Authentication:
    """Credentials, or how to check them. Fields that a method does not use are None or empty."""

    id: str
    method: str
    """jwt, basic, bearer, api_key, mutual_tls, kerberos, saml, custom or none."""
    options: Table
    """An `AuthenticationOptions`: token, username, password, api_key, header_name, JWT settings."""
    origin: Origin = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a backend connects to."""

    host: str
    port: int
    protocol: str
    """http, https or dicom."""
    base_path: str
    """"" or a path with a leading and without a trailing slash."""
    tls: bool
    ca_cert_path: Path | None
    timeout_s: float
    max_retries: int
    cert_path: Path | None = None
    """Our certificate, for a target that asks for one; with key_path or not at all."""
    key_path: Path | None = None
    tls_server_name: str | None = None
    """The name in the target's certificate; None: host."""
    tls_profile: str = DEFAULT_TLS_PROFILE

    @property
    def client_tls(self) -> ClientTLS:
        return ClientTLS(self.ca_cert_path, self.cert_path, self.key_path, self.tls_profile)

    @property
    def url(self) -> str:
        """Without a trailing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}{self.base_path}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A way in. One table used by two pipelines gives two endpoints, each with its pipeline's listeners."""

    name: str
    service: str
    """http, echo, dicomweb, jmix, dicom_scp or management."""
    options: Table
    networks: tuple[str, ...]
    """Those of the pipeline's networks on which this endpoint is visible."""
    listeners: tuple[Listener, ...]
    """Same order as `networks`, or a single one when the endpoint names its own address."""
    authentication: Authentication | None
    origin: Origin = field(repr=False, compare=False)

    @property
    def address(self) -> Listener:
        return self.listeners[0]


@dataclass(frozen=True, slots=True)
class Middleware:
    name: str
    type: str
    options: Table
    authentication: Authentication | None
    origin: Origin = field(repr=False, compare=False)
    rules: tuple[Rule, ...] = ()
    """Of `policies`: those that are enabled, of policies that are, each once."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A way out."""

    name: str
    service: str
    """http, echo, dicom_scu, jmix_backend or storage."""
    options: Table
    target: Target | None
    """Set for http, dicom_scu and jmix_backend."""
    authentication: Authentication | None
    origin: Origin = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Pipeline:
    name: str
    description: str
    networks: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    left: tuple[Middleware, ...]
    """In the order in which a request passes them."""
    right: tuple[Middleware, ...]
    """In the order in which a response passes them: the reverse of a plain list, as written in the split form."""
    backends: tuple[Backend, ...]
    origin: Origin = field(repr=False, compare=False)

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """Each once: left order, then what stands only on the right."""
        return (*self.left, *(each for each in self.right if each not in self.left))


@dataclass(frozen=True, slots=True)
class Management:
    enabled: bool
    base_path: str
    """With a leading, without a trailing slash."""
    network: str | None
    origin: Origin = field(repr=False, compare=False)
    authentication: Authentication | None = None


LOG_LEVELS: Mapping[str, int] = {
    "trace": 5,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: str
    """A key of LOG_LEVELS."""
    file: Path | None
    """None: standard error only."""

    @property
    def number(self) -> int:
        return LOG_LEVELS[self.level]


@dataclass(frozen=True, slots=True)
class Collector:
    """A syslog collector."""

    host: str
    port: int
    protocol: str
    """tls, tcp or udp."""
    tls: ClientTLS
    server_name: str | None = None
    """The name in its certificate; None: host."""


@dataclass(frozen=True, slots=True)
class Audit:
    """An audit trail that is kept."""

    folder: Path
    keep_days: int
    source_id: str
    site: str
    collector: Collector | None
    origin: Origin = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """Everything the gateway is assembled from."""

    proxy_id: str
    log: LogSettings
    storage_path: Path
    max_body_bytes: int
    """For JSON and text bodies; DICOM and ZIP uploads have limits of their own."""
    sensitive_field_patterns: tuple[str, ...]
    networks: Mapping[str, Network]
    pipelines: Mapping[str, Pipeline]
    management: Management
    warnings: tuple[Problem, ...]
    sources: tuple[Path, ...]
    """The files read, main file first; empty for the embedded default."""
    max_held_bytes: int | None = None
    """In memory for peers; None: by how much there is."""
    keep_keys_s: float = 24 * 3600.0
    """For how long the public keys of token issuers are kept."""
    audit: Audit | None = None
    """None: none is kept."""
    workers: int = 1
    """Processes that receive; 1: the only process there is."""

    def http_networks(self) -> tuple[Network, ...]:
        """The networks whose HTTP listener must be opened: an HTTP endpoint or the management API is on them."""
        names = {
            name
            for pipeline in self.pipelines.values()
            for endpoint in pipeline.endpoints
            if endpoint.service != "dicom_scp"
            for name in endpoint.networks
        }
        if self.management.enabled and self.management.network is not None:
            names.add(self.management.network)
        return tuple(network for name, network in self.networks.items() if name in names)
