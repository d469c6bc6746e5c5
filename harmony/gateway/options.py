"""The options of every service and middleware type, and the one table that lists them.

A struct per kind: field names are the TOML keys, types carry the allowed ranges, defaults are the documented ones.
`KINDS` gives each kind its canonical name, its aliases and its struct; `find_kind` resolves what a file says. Kinds
that are not in `SUPPORTED` load and validate, but a gateway that would have to run them does not start.

Paths that start with `<storage>` lie under the storage folder; the loader puts the real path in its place.
docs/CONFIGURATION.md describes every key; a test holds it to these structs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from harmony.gateway.config import ClientTLS, Secret, Table
from harmony.gateway.tables import (
    UID,
    AETitle,
    ByteCount,
    Host,
    Origin,
    Port,
    PositiveInt,
    Seconds,
    TLSProfile,
    URLPath,
    WebURL,
)

STORAGE = "<storage>"
ENVELOPE_FOLDER = "jmix-store"
"""Where envelopes are kept, below the storage folder, unless some `store_dir` says otherwise."""

DICOM_PORT = 104
DICOM_TLS_PORT = 2762
"""Where DICOM is called, without and with TLS, when nothing says otherwise (PS3.8 §9.1.1, PS3.15 §B.12)."""

MAX_PDU_MIN = 4096
"""Smaller PDUs cost more in headers and system calls than any peer could gain."""
MAX_PDU_MAX = 1048576
DEFAULT_MAX_PDU = 131072
"""The largest value the original's schema allows; a peer that announces less is sent less (PS3.8 Annex D.1)."""

DEFAULT_LARGEST_UPLOAD_BYTES = 16 * 2**30
"""Four times the largest element PS3.5 can encode with a defined length; whole-slide studies stay below it."""
DEFAULT_MIN_FREE_BYTES = 256 * 2**20

CONNECTIONS_PER_ASSOCIATION = 4
"""Connections beyond the associations: requests under way, rejections and closings that take their time."""

MaxPDU = Annotated[int, Meta(ge=MAX_PDU_MIN, le=MAX_PDU_MAX)]
TimeoutSecs = Annotated[int, Meta(ge=1, le=300)]
Retries = Annotated[int, Meta(ge=0, le=10)]
ZeroForNone = Annotated[int, Meta(ge=0, le=65535, extra={"allowed": "from 0 (no limit) to 65535"})]
"""A limit on a number of connections or associations."""


class NoOptions(Table, frozen=True):
    """A kind without options."""


# Endpoints


class PrefixOptions(Table, frozen=True):
    """What all endpoints of the HTTP family share."""

    path_prefix: URLPath


class HttpEndpointOptions(PrefixOptions, frozen=True):
    max_upload_bytes: ByteCount = DEFAULT_LARGEST_UPLOAD_BYTES


class EchoEndpointOptions(PrefixOptions, frozen=True):
    pass


class DicomwebOptions(PrefixOptions, frozen=True):
    public_url: WebURL | None = None
    """None: what the request says, which is wrong behind some proxies."""
    allow_origins: tuple[Origin, ...] = ()
    """Web pages that may read what is served here."""
    preflight_max_age_secs: Annotated[int, Meta(ge=0, le=86400)] = 600
    max_results: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    empty_search_status: Literal[200, 204] = 204
    match_empty_values: bool = True
    """As in a `dicom_scp` endpoint; a PACS matches as it will."""
    fuzzy_names: bool = False
    max_upload_bytes: ByteCount = DEFAULT_LARGEST_UPLOAD_BYTES


class JmixEndpointOptions(PrefixOptions, frozen=True):
    skip_hashing: bool | None = None
    """None: what the jmix_builder of the pipeline says. The query parameter of a request beats both."""
    skip_listing: bool | None = None
    store_dir: Path | None = None
    """None: that of the jmix_builder of the pipeline, or ENVELOPE_FOLDER below the storage folder."""
    max_upload_bytes: ByteCount = DEFAULT_LARGEST_UPLOAD_BYTES
    min_free_bytes: ByteCount = DEFAULT_MIN_FREE_BYTES
    """For uploads and what is packed on demand; envelopes of what was received may take the rest."""


@dataclass(frozen=True, slots=True)
class MoveDestination:
    """Where a C-MOVE may send."""

    ae_title: str
    host: str
    port: int
    tls: ClientTLS | None = None
    tls_server_name: str | None = None


class AetEntry(Table, frozen=True):
    """One peer: a C-MOVE destination, and a permitted calling AE when calling AEs are restricted."""

    aliases: ClassVar[Mapping[str, str]] = {"aet": "ae_title", "ca_bundle_path": "ca_cert_path"}

    ae_title: AETitle | None = None
    """None: the key of the entry."""
    host: Host | None = None
    """None: may call, cannot be a C-MOVE destination."""
    port: Port | None = None
    """None: 2762 with use_tls, else 104."""
    use_tls: bool = False
    ca_cert_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    tls_server_name: Host | None = None
    tls_profile: TLSProfile = "bcp195"

    def destination(self, name: str) -> MoveDestination | None:
        """name: its key."""
        if self.host is None:
            return None
        tls = None
        if self.use_tls:
            tls = ClientTLS(self.ca_cert_path, self.cert_path, self.key_path, self.tls_profile)
        port = self.port or (DICOM_TLS_PORT if self.use_tls else DICOM_PORT)
        return MoveDestination(self.ae_title or name, self.host, port, tls, self.tls_server_name)


class DicomScpOptions(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {
        "aet": "local_aet",
        "bind_address": "bind_addr",
        "bind_port": "port",
        "ca_bundle_path": "ca_cert_path",
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"use_dcmtk_store"})

    local_aet: AETitle = "HARMONY_SCP"
    bind_addr: Host | None = None
    port: Port | None = None

    enable_echo: bool = True
    enable_store: bool = True
    enable_find: bool = True
    enable_move: bool = True
    enable_get: bool = True

    accept_any_called_ae: bool = False
    restrict_calling_ae: bool = False
    calling_aets: tuple[AETitle, ...] = ()
    aet_table: dict[str, AetEntry] = msgspec.field(default_factory=dict)

    sop_classes: tuple[UID, ...] = ()
    """Storage SOP classes to accept; empty: all."""
    transfer_syntaxes: tuple[UID, ...] = ()
    """Transfer syntaxes to accept for storage; empty: all."""
    max_pdu: MaxPDU = DEFAULT_MAX_PDU
    max_operations: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Operations a peer may have outstanding (PS3.7 Annex D.3.3.3); 1: not negotiated."""
    max_associations: Annotated[int, Meta(ge=1, le=65535)] = 256
    max_associations_per_ae: ZeroForNone = 0
    max_associations_per_address: ZeroForNone = 0
    max_connections: PositiveInt | None = None
    """None: CONNECTIONS_PER_ASSOCIATION for each of max_associations."""
    max_connections_per_address: ZeroForNone = 0
    max_connection_rate: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    """From one address, per second on average."""

    max_results: Annotated[int, Meta(ge=0, le=100_000_000)] = 100_000
    """Matches of one C-FIND; 0: all there are."""
    match_empty_values: bool = True
    """A stored attribute without value matches any query for it (PS3.4 §C.2.2.1.2)."""
    fuzzy_names: bool = False
    """Person names match by sound and in any order, also where that was not negotiated."""

    storage_dir: Path = Path(STORAGE, "dimse")
    index: bool = True
    """Keep an index of what is received, so that it can be queried and retrieved."""
    durability: Literal["os", "fsync"] = "os"
    duplicates: Literal["keep_first", "keep_both", "replace", "refuse"] = "keep_first"
    max_object_bytes: Annotated[int, Meta(ge=1024, le=2**62)] = DEFAULT_LARGEST_UPLOAD_BYTES
    min_free_bytes: ByteCount = DEFAULT_MIN_FREE_BYTES

    artim_timeout_secs: Seconds = 30.0
    association_timeout_secs: Seconds = 30.0
    pdu_timeout_secs: Seconds = 60.0
    idle_timeout_secs: Seconds = 300.0

    use_tls: bool | None = None
    """None: when there is a certificate."""
    cert_path: Path | None = None
    key_path: Path | None = None
    ca_cert_path: Path | None = None
    require_client_cert: bool = False
    tls_profile: TLSProfile = "bcp195"

    def allowed_calling_ae_titles(self) -> frozenset[str] | None:
        """Who may open an association; None: everyone."""
        if not self.restrict_calling_ae:
            return frozenset(self.calling_aets) or None
        return frozenset(self.calling_aets) | {
            entry.ae_title or name for name, entry in self.aet_table.items()
        }

    def move_destinations(self) -> Mapping[str, MoveDestination]:
        """What a C-MOVE may name. Both the key and the AE title of an entry count."""
        places: dict[str, MoveDestination] = {}
        for name, entry in self.aet_table.items():
            if (place := entry.destination(name)) is not None:
                places[name] = places[place.ae_title] = place
        return places


class ManagementOptions(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {"path_prefix": "base_path"}

    base_path: URLPath = "admin"


# Backends


class HttpBackendOptions(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {"url": "base_url", "ca_bundle_path": "ca_cert_path"}

    base_url: Host | None = None
    host: Host | None = None
    port: Port | None = None
    protocol: Literal["http", "https"] | None = None
    base_path: URLPath | None = None
    path_prefix: URLPath = ""
    ca_cert_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    tls_server_name: Host | None = None
    tls_profile: TLSProfile | None = None
    authentication_ref: str | None = None
    timeout_secs: TimeoutSecs | None = None
    max_retries: Retries | None = None
    max_connections: Annotated[int, Meta(ge=1, le=1024)] = 64
    method: Annotated[str, Meta(pattern=r"^[A-Za-z]{1,16}\Z", extra={"allowed": "an HTTP method"})] | None = (
        None
    )
    headers: dict[str, str] = msgspec.field(default_factory=dict)


class DicomScuOptions(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {"ca_bundle_path": "ca_cert_path"}

    aet: AETitle | None = None
    """Never None once loaded: ANY-SCP, with a warning."""
    host: Host | None = None
    port: Port | None = None
    local_aet: AETitle = "HARMONY_SCU"
    use_tls: bool = False
    cert_path: Path | None = None
    key_path: Path | None = None
    ca_cert_path: Path | None = None
    tls_server_name: Host | None = None
    """The name in the certificate of the PACS; None: that of the host connected to."""
    tls_profile: TLSProfile | None = None
    max_pdu: MaxPDU = DEFAULT_MAX_PDU
    max_associations: Annotated[int, Meta(ge=1, le=64)] = 4
    relational: bool = False
    dimse_retrieve_mode: Literal["get", "move"] = "get"
    incoming_store_address: Host = "0.0.0.0"
    """Other than the loopback interface by default: what is to be retrieved comes from the PACS."""
    incoming_store_port: Port = 11123
    incoming_store_use_tls: bool = False
    """With cert_path, key_path and, for the certificates of clients, ca_cert_path."""
    incoming_store_require_client_cert: bool = False
    persistent_store_scp: bool = False
    storage_dir: Path = Path(STORAGE, "retrieved")
    """Where an http endpoint puts what it retrieves. Not the folder of an archive, which is no place for copies."""
    retrieve_ttl_secs: Annotated[float, Meta(ge=0, le=31_536_000)] = 3600.0
    """How long that is kept; 0: for ever."""
    min_free_bytes: ByteCount = DEFAULT_MIN_FREE_BYTES
    connect_timeout_secs: Seconds = 30.0
    timeout_secs: TimeoutSecs | None = None
    max_retries: Retries | None = None


class JmixBackendOptions(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {"url": "base_url", "ca_bundle_path": "ca_cert_path"}

    base_url: Host | None = None
    path_prefix: URLPath = ""
    """See `harmony.gateway.addresses.jmix_base_path`."""
    authentication_ref: str | None = None
    ca_cert_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    tls_server_name: Host | None = None
    tls_profile: TLSProfile | None = None
    timeout_secs: TimeoutSecs | None = None
    max_retries: Retries | None = None
    """Within one delivery; between deliveries the outbox waits and tries again without end."""
    retry_backoff_secs: Seconds = 1.0
    retry_backoff_max_secs: Seconds = 300.0
    max_concurrent_uploads: Annotated[int, Meta(ge=1, le=64)] = 2


class StorageBackendOptions(Table, frozen=True):
    root: Path = Path("tmp/disk")
    min_free_bytes: ByteCount = DEFAULT_MIN_FREE_BYTES
    write_pattern: str | None = None
    read_pattern: str = "{storedPath}"


# Middleware


class JmixBuilderOptions(Table, frozen=True):
    skip_hashing: bool = False
    skip_listing: bool = False
    store_dir: Path = Path(STORAGE, ENVELOPE_FOLDER)
    profile: Literal["harmony", "jmix"] = "harmony"
    group: Literal["study", "instance"] = "study"
    quiet_time_secs: Annotated[float, Meta(gt=0, le=3600)] = 1.0
    compression: Literal["stored", "deflate", "zstd"] = "stored"
    sender: str = "Harmony"
    sender_id: str = "org:harmony"
    requester: str = ""
    """Empty: the sender. So for `receiver`."""
    requester_id: str = ""
    receiver: str = ""
    receiver_id: str = ""
    classification: Literal["confidential", "sensitive", "de-identified"] = "confidential"


class PathFilterOptions(Table, frozen=True):
    rules: tuple[str | dict[str, str], ...] = ()


class PoliciesOptions(Table, frozen=True):
    policies: tuple[str | dict[str, Any], ...] = ()
    evaluation: Literal["per_type", "any"] = "per_type"


Failures = Annotated[int, Meta(ge=0, le=1_000_000)]
Claims = tuple[str, ...] | dict[str, Any]


class AuthenticationOptions(Table, frozen=True):
    """`[authentications.<name>.options]`; the two authentication middlewares have some of them."""

    aliases: ClassVar[Mapping[str, str]] = {"leeway_seconds": "leeway_secs"}

    username: str | None = None
    password: Secret | None = None
    credentials_path: Path | None = None
    users_path: Path | None = None
    """Users with their hashed passwords, one on each line (`harmony.gateway.passwords`)."""
    accept_username_only: bool = False
    """In associations, whose user identity may come without a passcode (PS3.15 B.4)."""
    token: Secret | None = None
    token_path: Path | None = None
    """Read again when it changes."""
    api_key: Secret | None = None
    header_name: Annotated[
        str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\Z", extra={"allowed": "an HTTP header name"})
    ] = "X-API-Key"
    cert_path: Path | None = None
    key_path: Path | None = None
    allowed_subjects: tuple[str, ...] = ()
    keytab_path: Path | None = None
    service_principal: str | None = None
    """None: every one that the keytab has a key for."""
    idp_cert_path: Path | None = None
    """Certificates of the identity provider, one or several."""
    issuer: str | None = None
    audience: str | tuple[str, ...] | None = None
    trusted_issuers: tuple[str, ...] = ()
    jwks_uri: str | None = None
    ca_cert_path: Path | None = None
    algorithms: tuple[str, ...] = ()
    required_claims: Claims = ()
    public_key_path: Path | None = None
    use_hs256: bool = False
    hs256_secret: Secret | None = None
    private_key: Secret | None = None
    """Of ours, in PEM: what tokens for a backend are signed with."""
    key_id: str | None = None
    subject: str | None = None
    lifetime_secs: Annotated[int, Meta(ge=10, le=86400)] = 300
    validate_expiry: bool = True
    leeway_secs: Annotated[int, Meta(ge=0, le=300)] = 0
    max_failures: Failures = 10
    """Within five minutes; 0: without end."""
    lockout_secs: Seconds = 300.0


class BasicAuthOptions(Table, frozen=True):
    ignored: ClassVar[frozenset[str]] = frozenset({"token_path"})

    username: str | None = None
    password: Secret | None = None
    users_path: Path | None = None
    max_failures: Failures = 10
    lockout_secs: Seconds = 300.0


class JwtAuthOptions(Table, frozen=True):
    aliases: ClassVar[Mapping[str, str]] = {"leeway_seconds": "leeway_secs"}

    public_key_path: Path | None = None
    jwks_uri: str | None = None
    ca_cert_path: Path | None = None
    use_hs256: bool = False
    hs256_secret: Secret | None = None
    algorithms: tuple[str, ...] = ()
    issuer: str | None = None
    trusted_issuers: tuple[str, ...] = ()
    audience: str | tuple[str, ...] | None = None
    required_claims: Claims = ()
    validate_expiry: bool = True
    leeway_secs: Annotated[int, Meta(ge=0, le=300)] = 0


class LogDumpOptions(Table, frozen=True):
    pretty: bool = True
    max_bytes: PositiveInt = 65536
    redact_headers: tuple[str, ...] = ()
    redact_metadata: tuple[str, ...] = ()
    redact_data_fields: tuple[str, ...] = ()
    label: str = ""
    apply: Literal["left", "right", "both"] = "left"


class TransformOptions(Table, frozen=True):
    """JOLT transforms are out of scope; a pipeline that can do without them may keep them listed."""

    spec_path: str | None = None
    apply: Literal["left", "right", "both"] = "left"
    fail_on_error: bool = True


class DicomFlattenOptions(Table, frozen=True):
    apply: Literal["left", "right", "both"] = "left"


class Role(Enum):
    ENDPOINT = "endpoint"
    BACKEND = "backend"
    MIDDLEWARE = "middleware"


@dataclass(frozen=True, slots=True)
class Kind:
    """A service or middleware type."""

    role: Role
    name: str
    options: type[Table]
    aliases: tuple[str, ...] = ()


KINDS = (
    Kind(Role.ENDPOINT, "http", HttpEndpointOptions),
    Kind(Role.ENDPOINT, "echo", EchoEndpointOptions),
    Kind(Role.ENDPOINT, "dicomweb", DicomwebOptions),
    Kind(Role.ENDPOINT, "jmix", JmixEndpointOptions),
    Kind(Role.ENDPOINT, "dicom_scp", DicomScpOptions, aliases=("dicom", "dimse")),
    Kind(Role.ENDPOINT, "management", ManagementOptions),
    Kind(Role.BACKEND, "http", HttpBackendOptions),
    Kind(Role.BACKEND, "echo", NoOptions),
    Kind(Role.BACKEND, "dicom_scu", DicomScuOptions, aliases=("dicom", "dimse", "dicom_scp")),
    Kind(Role.BACKEND, "jmix_backend", JmixBackendOptions),
    Kind(Role.BACKEND, "storage", StorageBackendOptions),
    Kind(Role.MIDDLEWARE, "passthru", NoOptions),
    Kind(Role.MIDDLEWARE, "jmix_builder", JmixBuilderOptions),
    Kind(Role.MIDDLEWARE, "path_filter", PathFilterOptions),
    Kind(Role.MIDDLEWARE, "policies", PoliciesOptions),
    Kind(Role.MIDDLEWARE, "basic_auth", BasicAuthOptions, aliases=("basic-auth",)),
    Kind(Role.MIDDLEWARE, "jwt_auth", JwtAuthOptions, aliases=("jwtauth", "jwt-auth")),
    Kind(Role.MIDDLEWARE, "dicomweb_bridge", NoOptions, aliases=("dicomweb",)),
    Kind(Role.MIDDLEWARE, "dicom_to_dicomweb", NoOptions),
    Kind(Role.MIDDLEWARE, "json_extractor", NoOptions, aliases=("json",)),
    Kind(Role.MIDDLEWARE, "log_dump", LogDumpOptions),
    Kind(Role.MIDDLEWARE, "dicom_flatten", DicomFlattenOptions),
    Kind(Role.MIDDLEWARE, "transform", TransformOptions, aliases=("metadata_transform",)),
    Kind(Role.MIDDLEWARE, "connect", NoOptions),
)

SUPPORTED = frozenset(
    {
        (Role.ENDPOINT, "dicom_scp"),
        (Role.ENDPOINT, "dicomweb"),
        (Role.ENDPOINT, "echo"),
        (Role.ENDPOINT, "http"),
        (Role.ENDPOINT, "jmix"),
        (Role.ENDPOINT, "management"),
        (Role.BACKEND, "dicom_scu"),
        (Role.BACKEND, "echo"),
        (Role.BACKEND, "http"),
        (Role.BACKEND, "jmix_backend"),
        (Role.BACKEND, "storage"),
        (Role.MIDDLEWARE, "basic_auth"),
        (Role.MIDDLEWARE, "dicom_to_dicomweb"),
        (Role.MIDDLEWARE, "dicomweb_bridge"),
        (Role.MIDDLEWARE, "jmix_builder"),
        (Role.MIDDLEWARE, "jwt_auth"),
        (Role.MIDDLEWARE, "passthru"),
        (Role.MIDDLEWARE, "path_filter"),
        (Role.MIDDLEWARE, "policies"),
    }
)
"""What this version can run. Consulted when the gateway starts, not when a configuration is loaded."""

_BY_NAME = {(kind.role, name): kind for kind in KINDS for name in (kind.name, *kind.aliases)}


def find_kind(role: Role, spelled: str) -> Kind | None:
    return _BY_NAME.get((role, spelled))


def spellings(role: Role) -> tuple[str, ...]:
    """Every accepted name, canonical ones first."""
    kinds = [kind for kind in KINDS if kind.role is role]
    return (*(kind.name for kind in kinds), *(alias for kind in kinds for alias in kind.aliases))
