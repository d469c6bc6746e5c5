"""Load a configuration: files -> merged tables -> typed, resolved, checked `LoadedConfig`.

`load` is the only entry. It goes as far as it can, collects every problem on the way and raises one `ConfigError` with
all of them; what is merely odd ends in `LoadedConfig.warnings`. Both generations of spellings are accepted (`dicom` and
`dicom_scp`, host and port in options or in targets, `proxy.id` and `proxy.name`), see docs/CONFIGURATION.md.

Whether this version can run what was loaded is asked separately, with `harmony.gateway.checks.unsupported`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from harmony.gateway import authentication_checks, checks, handover, sections
from harmony.gateway.addresses import DEFAULT_DICOM_PORT, clean_path
from harmony.gateway.components import Components, check_file, server_tls
from harmony.gateway.config import (
    Audit,
    ClientTLS,
    Collector,
    ConfigError,
    Listener,
    LoadedConfig,
    LogSettings,
    Management,
    Network,
    Table,
)
from harmony.gateway.default_config import DEFAULT_CONFIG
from harmony.gateway.options import DICOM_TLS_PORT
from harmony.gateway.sources import (
    Document,
    Entry,
    Merged,
    Place,
    Report,
    merge,
    parse_document,
    read_documents,
    show,
    unknown,
)
from harmony.gateway.tables import read_table
from harmony.gateway.wiring import Wiring

DEFAULT_STORAGE_PATH = Path("tmp")
DEFAULT_LOG_LEVEL = "error"
MAXIMUM_WORKERS = 64
"""More than one for each core of most machines; one that is meant to have more has them to spare for a number."""

TableT = TypeVar("TableT", bound=Table)


def load(path: Path | None, *, env: Mapping[str, str]) -> LoadedConfig:
    """Load the configuration file at `path` with its pipeline files, or the embedded default for None.

    env: what `$NAME` in string values refers to. Raises ConfigError with every problem found.
    """
    report = Report()
    if path is None:
        default = parse_document(None, DEFAULT_CONFIG, env=env, report=report)
        documents = [default] if default is not None else []
    else:
        documents = read_documents(path, env, report)
    return resolve(documents, env=env, report=report)


def resolve(documents: Sequence[Document], *, env: Mapping[str, str], report: Report) -> LoadedConfig:
    """Make a configuration of parsed documents, main file first. Raises ConfigError."""
    if not documents:
        raise ConfigError(report.problems)
    merged = merge(documents, report)
    proxy = _proxy(merged, env, report)
    log = _log_settings(merged, proxy, report)
    storage_path = _storage_path(merged, report)
    networks = _networks(merged, report)
    management = _management(merged, networks, report)
    audit = _audit(merged, report, storage_path=storage_path, instance=proxy.id or proxy.name or "")
    _check_what_is_not_wired(merged, report)
    components = Components(merged, report, storage_path=storage_path)
    management = _authenticated(management, merged, components)
    wiring = Wiring(merged, report, components=components, networks=networks, management=management)
    config = LoadedConfig(
        proxy_id=proxy.id or proxy.name or "",
        log=log,
        storage_path=storage_path,
        max_body_bytes=proxy.content_limits.max_body_size,
        max_held_bytes=proxy.content_limits.max_held_bytes,
        sensitive_field_patterns=proxy.sensitive_field_patterns,
        networks=networks,
        pipelines=wiring.pipelines(),
        management=management,
        warnings=(),
        sources=tuple(document.path for document in documents if document.path is not None),
        audit=audit,
        keep_keys_s=proxy.jwks_cache_duration_hours * 3600.0,
        workers=_workers(merged, report),
    )
    if not config.pipelines and not merged.named["pipelines"]:
        report.error(merged.main, "pipelines", "is missing; without a pipeline there is nothing to run")
    for problem in (*checks.conflicts(config), *authentication_checks.weaknesses(config)):
        report.add(problem)
    if report.failed:
        raise ConfigError(report.problems)
    return replace(config, warnings=report.warnings)


def _single(merged: Merged, section: str, kind: type[TableT], report: Report) -> tuple[TableT, Place]:
    entry = merged.single.get(section) or Entry({}, merged.main.child(section))
    return read_table(kind, entry.value, entry.place, report) or kind(), entry.place


def _proxy(merged: Merged, env: Mapping[str, str], report: Report) -> sections.ProxyTable:
    proxy, place = _single(merged, "proxy", sections.ProxyTable, report)
    if not (proxy.id or proxy.name):
        report.error(place, "id", "is missing; set id or name, the name of this instance")
    for name in proxy.required_env_vars:
        if not env.get(name):
            report.error(
                place, "required_env_vars", f"names {show(name)}, which is not set in the environment"
            )
    return proxy


def _workers(merged: Merged, report: Report) -> int:
    entry = merged.single.get("workers")
    if entry is None:
        return 1
    place, value = Place(entry.place.document), entry.value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAXIMUM_WORKERS:
        report.error(
            place, "workers", f"is {show(value)}, must be a whole number from 1 to {MAXIMUM_WORKERS}"
        )
        return 1
    if value > 1 and not handover.are_possible():
        report.error(
            place, "workers", "must be 1 on this system, which cannot hand connections to another process"
        )
    return value


def _log_settings(merged: Merged, proxy: sections.ProxyTable, report: Report) -> LogSettings:
    table, place = _single(merged, "logging", sections.LoggingTable, report)
    if table.log_to_file and table.log_file_path is None:
        report.error(place, "log_file_path", "is missing, must be a path when log_to_file is true")
    level = table.log_level or proxy.log_level or DEFAULT_LOG_LEVEL
    return LogSettings(level, table.log_file_path if table.log_to_file else None)


def _storage_path(merged: Merged, report: Report) -> Path:
    table, _ = _single(merged, "storage", sections.StorageTable, report)
    return table.options.path or table.path or DEFAULT_STORAGE_PATH


def _networks(merged: Merged, report: Report) -> dict[str, Network]:
    networks: dict[str, Network] = {}
    for name, entry in merged.named["network"].items():
        table = read_table(sections.NetworkTable, entry.value, entry.place, report)
        if table is None:
            continue
        if table.enable_wireguard:
            report.error(
                entry.place, "enable_wireguard", "is true, must be false: WireGuard is not available"
            )
        http = dicom = None
        if table.http is not None:
            http_place = entry.place.child("http")
            tls = server_tls(table.http, http_place, report)
            if table.http.force_https and tls is not None:
                report.error(
                    http_place, "force_https", "is for listeners without TLS; this one has a certificate"
                )
            _check_proxies(table.http, http_place, report)
            http = Listener(
                table.http.bind_address,
                table.http.bind_port,
                tls,
                table.http.force_https,
                trusted_proxies=table.http.trusted_proxies,
                proxy_protocol=table.http.proxy_protocol,
                forwarded_header=table.http.forwarded_header,
                limits=table.http.limits(),
            )
        if table.dicom is not None:
            tls = server_tls(table.dicom, entry.place.child("dicom"), report)
            _check_proxies(table.dicom, entry.place.child("dicom"), report)
            dicom = Listener(
                table.dicom.bind_address,
                table.dicom.bind_port or (DICOM_TLS_PORT if tls else DEFAULT_DICOM_PORT),
                tls,
                trusted_proxies=table.dicom.trusted_proxies,
                proxy_protocol=table.dicom.proxy_protocol,
            )
        aet = table.dicom.aet if table.dicom is not None else None
        networks[name] = Network(name, http, dicom=dicom, default_ae_title=aet, origin=entry.place.origin())
    return networks


def _check_proxies(
    table: sections.ListenerTable | sections.DicomListenerTable, place: Place, report: Report
) -> None:
    if table.proxy_protocol and not table.trusted_proxies:
        report.error(
            place, "trusted_proxies", "is missing, must say who may connect when proxy_protocol is true"
        )
    if isinstance(table, sections.DicomListenerTable) and table.trusted_proxies and not table.proxy_protocol:
        message = "has no effect without proxy_protocol: DICOM has no other way to name a client"
        report.warning(place, "trusted_proxies", message)


def _management(merged: Merged, networks: Mapping[str, Network], report: Report) -> Management:
    table, place = _single(merged, "management", sections.ManagementTable, report)
    if table.enabled:
        if table.network is None:
            report.error(place, "network", "is missing, must be the name of a network when enabled is true")
        elif table.network not in merged.named["network"]:
            report.error(place, "network", unknown(table.network, "network", merged))
        elif table.network in networks and networks[table.network].http is None:
            report.error(place, "network", f"is {show(table.network)}, which has no http listener")
    return Management(
        table.enabled, clean_path(table.base_path) or "/", network=table.network, origin=place.origin()
    )


def _audit(merged: Merged, report: Report, *, storage_path: Path, instance: str) -> Audit | None:
    table, place = _single(merged, "audit", sections.AuditTable, report)
    collector = None
    if table.syslog is not None:
        syslog, inner = table.syslog, place.child("syslog")
        for key in ("ca_cert_path", "cert_path", "key_path"):
            check_file(getattr(syslog, key), inner, key, report)
        if (syslog.cert_path is None) != (syslog.key_path is None):
            report.error(inner, "cert_path", "and key_path go together")
        tls = ClientTLS(syslog.ca_cert_path, syslog.cert_path, syslog.key_path, syslog.tls_profile)
        port = syslog.port or (514 if syslog.protocol == "udp" else 6514)
        collector = Collector(syslog.host, port, syslog.protocol, tls, syslog.tls_server_name)
    if not table.enabled:
        return None
    return Audit(
        table.folder or storage_path / "audit",
        table.keep_days,
        table.source_id or instance,
        table.site,
        collector=collector,
        origin=place.origin(),
    )


def _authenticated(management: Management, merged: Merged, components: Components) -> Management:
    """With the table that it names, once those have been read."""
    table, place = _single(merged, "management", sections.ManagementTable, Report())
    found = components.authentication(table.authentication, place, "authentication")
    return replace(management, authentication=found)


def _check_what_is_not_wired(merged: Merged, report: Report) -> None:
    """Tables that no pipeline is assembled from are read all the same, so that their mistakes are seen."""
    for section in ("services", "middleware_types"):
        for entry in merged.named[section].values():
            read_table(sections.ModuleTable, entry.value, entry.place, report)
