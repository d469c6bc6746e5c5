"""Which address a listener gets and which address a backend connects to.

An address may be written in several places; the nearest one wins, host and port each for themselves:

- DICOM listener: options > own connection > peer_ref > network.dicom > network.http, when no HTTP endpoint uses that
  network > 0.0.0.0:11112
- target of a backend: options > own connection > target_ref > the protocol's own port

Pure functions over the structs of the files; `harmony.gateway.loading` calls them and reports what they raise.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from harmony.gateway.config import (
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT_S,
    DEFAULT_TLS_PROFILE,
    Listener,
    ListenerTLS,
    Target,
)
from harmony.gateway.options import (
    DICOM_PORT,
    DICOM_TLS_PORT,
    DicomScpOptions,
    DicomScuOptions,
    HttpBackendOptions,
    JmixBackendOptions,
)
from harmony.gateway.sections import ConnectionTable, PeerTable

DEFAULT_DICOM_HOST = "0.0.0.0"
DEFAULT_DICOM_PORT = 11112
DEFAULT_PORTS = {"http": 80, "https": 443, "dicom": DICOM_PORT}


class AddressError(ValueError):
    """An address that cannot be used; `key` is the one to correct."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Parts:
    """What one place says about an address; None where it is silent."""

    host: str | None = None
    port: int | None = None
    protocol: str | None = None
    base_path: str | None = None
    ca_cert_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    tls_server_name: str | None = None
    tls_profile: str | None = None
    tls: bool | None = None
    timeout_s: float | None = None
    max_retries: int | None = None

    def over(self, other: Parts) -> Parts:
        """This one, completed by the other."""
        return Parts(
            *(
                theirs if mine is None else mine
                for mine, theirs in zip(astuple(self), astuple(other), strict=True)
            )
        )


NO_PARTS = Parts()


def parts_of_url(url: str, key: str) -> Parts:
    """host may be a bare name or a URL: `pacs`, `pacs:104`, `https://jmix.example.com/base`, `::1`."""
    if url.count(":") > 1 and "/" not in url and not url.startswith("["):
        return Parts(host=url)
    try:
        split = urlsplit(url if "://" in url else f"//{url}")
        port = split.port if "@" not in split.netloc else None
    except ValueError as error:
        raise AddressError(key, f'is "{url}", must be a host name or a URL: {error}') from error
    if split.username is not None:  # and perhaps a password: not to be repeated
        raise AddressError(key, "holds credentials, which belong in an [authentications] table")
    if not split.hostname or port == 0 or split.query or split.fragment:
        raise AddressError(key, f'is "{url}", must be a host name or a URL of scheme, host, port and path')
    path = clean_path(split.path)
    return Parts(host=split.hostname, port=port, protocol=split.scheme or None, base_path=path or None)


def parts_of_connection(connection: ConnectionTable) -> Parts:
    parts = Parts(
        port=connection.port,
        protocol=connection.protocol,
        base_path=connection.base_path,
        ca_cert_path=connection.ca_cert_path,
        cert_path=connection.cert_path,
        key_path=connection.key_path,
        tls_server_name=connection.tls_server_name,
        tls_profile=connection.tls_profile,
        tls=True if connection.tls.enabled else None,
    )
    return parts.over(parts_of_url(connection.host, "connection.host")) if connection.host else parts


def parts_of_peer(peer: PeerTable) -> Parts:
    parts = parts_of_connection(peer.connection)
    own = Parts(protocol=peer.protocol, timeout_s=peer.timeout_secs, max_retries=peer.max_retries)
    if peer.url:
        parts = parts.over(parts_of_url(peer.url, "url"))
    return parts.over(own)


def parts_of_options(options: object) -> Parts:
    match options:
        case HttpBackendOptions():
            own = Parts(
                options.host,
                options.port,
                options.protocol,
                options.base_path,
                ca_cert_path=options.ca_cert_path,
                cert_path=options.cert_path,
                key_path=options.key_path,
                tls_server_name=options.tls_server_name,
                tls_profile=options.tls_profile,
                timeout_s=options.timeout_secs,
                max_retries=options.max_retries,
            )
            if options.base_url:
                return parts_of_url(options.base_url, "base_url").over(own)
            return own.over(parts_of_url(options.host, "host")) if options.host else own
        case JmixBackendOptions():
            own = Parts(
                ca_cert_path=options.ca_cert_path,
                cert_path=options.cert_path,
                key_path=options.key_path,
                tls_server_name=options.tls_server_name,
                tls_profile=options.tls_profile,
                timeout_s=options.timeout_secs,
                max_retries=options.max_retries,
            )
            return own.over(parts_of_url(options.base_url, "base_url")) if options.base_url else own
        case DicomScuOptions():
            return Parts(
                options.host,
                options.port,
                ca_cert_path=options.ca_cert_path,
                cert_path=options.cert_path,
                key_path=options.key_path,
                tls_server_name=options.tls_server_name,
                tls_profile=options.tls_profile,
                tls=options.use_tls or None,
                timeout_s=options.timeout_secs,
                max_retries=options.max_retries,
            )
    return Parts()


def target_of(parts: Parts, *, dicom: bool) -> Target:
    """Make a target of what all places together say. Raises AddressError when that is not enough or not possible."""
    if parts.host is None:
        wanted = (
            "target_ref, connection.host or options.host" if dicom else "target_ref, connection or base_url"
        )
        raise AddressError("", f"does not say where to connect to; set {wanted}")
    protocol = parts.protocol or ("dicom" if dicom else "http")
    if dicom and protocol != "dicom":
        raise AddressError(
            "protocol", f'of the target is "{protocol}", must be "dicom" for a dicom_scu backend'
        )
    if not dicom and protocol not in ("http", "https"):
        raise AddressError("protocol", f'of the target is "{protocol}", must be one of "http", "https"')
    if parts.tls and protocol == "http":
        protocol = "https"
    tls = protocol == "https" or (dicom and bool(parts.tls))
    port = parts.port or (DICOM_TLS_PORT if dicom and tls else DEFAULT_PORTS[protocol])
    return Target(
        parts.host,
        port,
        protocol=protocol,
        base_path=clean_path(parts.base_path or ""),
        tls=tls,
        ca_cert_path=parts.ca_cert_path,
        timeout_s=DEFAULT_TIMEOUT_S if parts.timeout_s is None else float(parts.timeout_s),
        max_retries=DEFAULT_MAX_RETRIES if parts.max_retries is None else parts.max_retries,
        cert_path=parts.cert_path,
        key_path=parts.key_path,
        tls_server_name=parts.tls_server_name,
        tls_profile=parts.tls_profile or DEFAULT_TLS_PROFILE,
    )


def dicom_listener(
    options: DicomScpOptions, explicit: Parts, *, inherited: Listener | None, tls: ListenerTLS | None
) -> Listener:
    """explicit: what options, connection and peer say; inherited: the network's listener, if it has one to give."""
    host = explicit.host or (inherited.host if inherited else DEFAULT_DICOM_HOST)
    if options.use_tls is False:
        tls = None
    elif tls is None and inherited is not None and inherited.tls is not None:
        tls = replace(
            inherited.tls,
            ca_cert_path=options.ca_cert_path or inherited.tls.ca_cert_path,
            require_client_cert=options.require_client_cert or inherited.tls.require_client_cert,
        )
    port = explicit.port or (inherited.port if inherited else None)
    port = port or (DICOM_TLS_PORT if tls else DEFAULT_DICOM_PORT)
    if inherited is None or not inherited.proxy_protocol:
        return Listener(host, port, tls)
    return Listener(host, port, tls, trusted_proxies=inherited.trusted_proxies, proxy_protocol=True)


def clean_path(path: str) -> str:
    """With a leading, without a trailing slash; "" for the root."""
    parts = [part for part in path.split("/") if part]
    return "/" + "/".join(parts) if parts else ""


def jmix_base_path(path_prefix: str, base_path: str = "") -> str:
    """The path of an upstream's JMIX API, to which `/{id}`, `/{id}/manifest` or `?studyInstanceUid=` is added.

    path_prefix, from the options of the backend, is written in three ways, all of which must work: empty for
    `/api/jmix`; `/api`, to which `/jmix` belongs; or the whole path, `/v2/jmix`, in place of `/api/jmix`. Anything
    else goes in front of `/api/jmix`. base_path, from the target, goes in front of all that; when it alone already
    names the API, it is not named a second time.
    """
    base, prefix = clean_path(base_path), clean_path(path_prefix)
    if not prefix and base.endswith("/api/jmix"):
        return base
    if not prefix and base.endswith("/api"):
        return base + "/jmix"
    if prefix.endswith("/jmix"):
        return base + prefix
    if prefix.endswith("/api"):
        return base + prefix + "/jmix"
    return base + prefix + "/api/jmix"


def overlap(one: Listener, other: Listener) -> bool:
    """Whether the two cannot be listened on at the same time as different listeners."""
    wildcards = ("0.0.0.0", "::")
    return one.port == other.port and (
        one.host == other.host or one.host in wildcards or other.host in wildcards
    )
