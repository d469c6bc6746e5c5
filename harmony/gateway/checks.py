"""What can only be seen with the whole configuration in view: endpoints that take each other's place, and what this
version cannot run.

`conflicts` belongs to loading. `unsupported` is asked when the gateway starts (and by --check), so that a configuration
for a later version still loads and validates.
"""

from __future__ import annotations

from collections.abc import Iterator

from harmony.gateway.addresses import clean_path, overlap
from harmony.gateway.authentication_checks import NOT_AVAILABLE, unusable_at, unusable_towards
from harmony.gateway.config import Endpoint, Listener, LoadedConfig, Pipeline, Problem
from harmony.gateway.options import (
    SUPPORTED,
    DicomScpOptions,
    ManagementOptions,
    PrefixOptions,
    Role,
    TransformOptions,
)
from harmony.gateway.rule_options import DIMSE, HTTP, RULES
from harmony.gateway.sources import show

EVERY_METHOD = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
METHODS = {
    "http": EVERY_METHOD,
    "echo": frozenset({"GET", "HEAD", "POST", "OPTIONS"}),
    "jmix": frozenset({"GET", "HEAD", "POST", "OPTIONS"}),
    "dicomweb": frozenset({"GET", "HEAD", "POST", "OPTIONS"}),
    "management": EVERY_METHOD,
}
ROOTS = {"jmix": "/api/jmix"}
"""What a service adds to its prefix, so that a jmix and a dicomweb endpoint may share one."""

STUDY_SOURCES = frozenset({"dicom_scu", "storage"})
"""Backends from which jmix and dicomweb endpoints retrieve studies."""

HTTP_ONLY_MIDDLEWARE = frozenset({"basic_auth", "jwt_auth", "path_filter"})
BEHIND_HTTP = frozenset({"dicom_scu", "echo", "http"})
"""Backends of an http endpoint."""
ONLY_BEHIND_HTTP = frozenset({"echo", "http"})


def conflicts(config: LoadedConfig) -> Iterator[Problem]:
    yield from _route_conflicts(config)
    yield from _title_conflicts(config)
    yield from _listener_conflicts(config)
    for pipeline in config.pipelines.values():
        for endpoint in pipeline.endpoints:
            for middleware in pipeline.middleware:
                if endpoint.service == "dicom_scp" and middleware.type in HTTP_ONLY_MIDDLEWARE:
                    message = (
                        f"lists {show(middleware.name)} ({middleware.type}), which needs HTTP requests; "
                        f"the DICOM endpoint {show(endpoint.name)} has none and would refuse everything"
                    )
                    if middleware.type != "path_filter":
                        message += "; its own key authentication asks for a user identity"
                    yield pipeline.origin.problem("middleware", message)
        yield from _rules_about_nothing(pipeline)


def _rules_about_nothing(pipeline: Pipeline) -> Iterator[Problem]:
    """A rule is asked about the requests that it can look at; one that never is would be thought to protect."""
    protocols = {DIMSE if service == "dicom_scp" else HTTP for service in _services(pipeline)}
    for middleware in pipeline.middleware:
        for rule in middleware.rules:
            about = RULES[rule.type].protocols
            if protocols and protocols.isdisjoint(about):
                message = (
                    f"lists {show(middleware.name)}, whose rule {show(rule.name)} ({rule.type}) is about "
                    f"{about[0]} requests, and no endpoint of this pipeline takes any"
                )
                yield pipeline.origin.problem("middleware", message)


def _route_conflicts(config: LoadedConfig) -> Iterator[Problem]:
    """The same method and path twice on one network. A longer prefix inside a shorter one is fine, the longest wins."""
    taken: dict[tuple[str, str], list[tuple[frozenset[str], str]]] = {}
    management = config.management
    if management.enabled and management.network is not None:
        taken[(management.network, management.base_path)] = [(EVERY_METHOD, "the management API")]
    for pipeline, endpoint in _endpoints(config):
        match endpoint.options:
            case PrefixOptions(path_prefix=prefix):
                key = "path_prefix"
            case ManagementOptions(base_path=prefix):
                key = "base_path"
            case _:
                continue
        root = clean_path(prefix + ROOTS.get(endpoint.service, "")) or "/"
        for network in endpoint.networks:
            others = taken.setdefault((network, root), [])
            for methods, owner in others:
                if methods & METHODS[endpoint.service]:
                    message = f"is {show(prefix)}, which {owner} already has on network {show(network)}"
                    message += f"; pipeline {show(pipeline.name)} cannot have it too"
                    yield _in_options(endpoint, key, message)
                    break
            others.append((METHODS[endpoint.service], _owner(pipeline, endpoint)))


def _title_conflicts(config: LoadedConfig) -> Iterator[Problem]:
    """Endpoints on one address are told apart by the called AE title."""
    titles: dict[tuple[str, int, str], str] = {}
    promiscuous: dict[tuple[str, int], str] = {}
    for pipeline, endpoint in _endpoints(config):
        options = endpoint.options
        if not isinstance(options, DicomScpOptions):
            continue
        for listener in endpoint.listeners:
            address = (listener.host, listener.port)
            owner = _owner(pipeline, endpoint)
            other = titles.setdefault((*address, options.local_aet), owner)
            if other != owner:
                message = f"is {show(options.local_aet)} on {listener}, which {other} already has"
                message += f"; pipeline {show(pipeline.name)} cannot have it too"
                yield _in_options(endpoint, "local_aet", message)
            if options.accept_any_called_ae:
                other = promiscuous.setdefault(address, owner)
                if other != owner:
                    message = f"is true on {listener}, where {other} already accepts any called AE title"
                    yield _in_options(endpoint, "accept_any_called_ae", message)


def _listener_conflicts(config: LoadedConfig) -> Iterator[Problem]:
    """Listeners that are not the same, yet cannot be open at the same time."""
    opened: list[tuple[Listener, str]] = []
    for network in config.http_networks():
        listener = network.http
        if listener is None:
            continue
        owner = f"the http listener of network {show(network.name)}"
        for other, its_owner in opened:
            if overlap(listener, other):
                message = f"{listener} cannot be opened beside {other}, {its_owner}"
                yield network.origin.problem("http", message)
        opened.append((listener, owner))
    for pipeline, endpoint in _endpoints(config):
        if endpoint.service != "dicom_scp":
            continue
        for listener in endpoint.listeners:
            for other, its_owner in opened:
                same = (listener.host, listener.port) == (other.host, other.port)
                dicom = not its_owner.startswith("the http")
                if listener == other and dicom:
                    continue
                if overlap(listener, other):
                    why = "with other settings for TLS or proxies" if same and dicom else f"beside {other}"
                    message = f"{listener} cannot be opened {why}, {its_owner}"
                    yield _in_options(endpoint, "port", message)
                    break
            opened.append((listener, _owner(pipeline, endpoint)))


def unsupported(config: LoadedConfig) -> list[Problem]:
    """What this version cannot run. The gateway must not start when there is any."""
    found: list[Problem] = []
    for network in config.http_networks():
        if network.http is not None and network.http.force_https:
            found.append(network.origin.problem("http.force_https", f"is true, which {NOT_AVAILABLE}"))
    for pipeline in config.pipelines.values():
        if len(pipeline.backends) > 1:
            message = f"lists {len(pipeline.backends)} names; more than one backend {NOT_AVAILABLE}"
            found.append(pipeline.origin.problem("backends", message))
        if needed := _missing_on_the_way(pipeline):
            found.append(pipeline.origin.problem("backends", needed))
        for endpoint in pipeline.endpoints:
            if (Role.ENDPOINT, endpoint.service) not in SUPPORTED:
                message = f"is {show(endpoint.service)}, which {NOT_AVAILABLE}"
                found.append(endpoint.origin.problem("service", message))
            dicom = endpoint.service == "dicom_scp"
            if why := unusable_at(endpoint.authentication, endpoint.listeners, dicom=dicom):
                found.append(endpoint.origin.problem("authentication", why))
        for backend in pipeline.backends:
            if (Role.BACKEND, backend.service) not in SUPPORTED:
                message = f"is {show(backend.service)}, which {NOT_AVAILABLE}"
                found.append(backend.origin.problem("service", message))
            used = backend.authentication
            if used is not None and (why := unusable_towards(used, backend.service)):
                found.append(used.origin.problem("method", why))
        for middleware in pipeline.middleware:
            options = middleware.options
            if middleware.type == "dicomweb_bridge" and "dicomweb" not in _services(pipeline):
                message = f"lists {show(middleware.name)}; dicomweb_bridge without a dicomweb endpoint {NOT_AVAILABLE}"
                found.append(pipeline.origin.problem("middleware", message))
            if middleware.type == "dicom_to_dicomweb" and (why := _not_to_dicomweb(pipeline)):
                message = f"lists {show(middleware.name)} (dicom_to_dicomweb), {why}"
                found.append(pipeline.origin.problem("middleware", message))
            harmless = isinstance(options, TransformOptions) and not options.fail_on_error
            if (Role.MIDDLEWARE, middleware.type) not in SUPPORTED and not harmless:
                named = middleware.origin.table.startswith("middleware")
                message = f"is {show(middleware.type)}, which {NOT_AVAILABLE}"
                found.append(middleware.origin.problem("type" if named else "middleware", message))
    management = config.management
    if management.enabled and management.network is not None:
        http = config.networks[management.network].http
        if why := unusable_at(management.authentication, [http] if http is not None else []):
            found.append(management.origin.problem("authentication", why))
    return list(dict.fromkeys(found))


def _not_to_dicomweb(pipeline: Pipeline) -> str:
    """Why a dicom_to_dicomweb has nothing to translate, or nobody to translate for."""
    if "dicom_scp" not in _services(pipeline):
        return "which needs a dicom_scp endpoint"
    services = [backend.service for backend in pipeline.backends]
    if services[:1] != ["http"]:
        return "which needs an http backend, the DICOMweb server"
    return ""


def _missing_on_the_way(pipeline: Pipeline) -> str:
    """Why what this version's endpoints receive would never reach a pipeline's backend; "" when it does."""
    services = _services(pipeline)
    packs = any(middleware.type == "jmix_builder" for middleware in pipeline.left)
    to_dicomweb = any(middleware.type == "dicom_to_dicomweb" for middleware in pipeline.middleware)
    if packs and "dicomweb" in services and not services & {"dicom_scp", "jmix"}:
        listed = ", ".join(show(backend.name) for backend in pipeline.backends)
        return f"is [{listed}]; packing what a dicomweb endpoint stores with a jmix_builder {NOT_AVAILABLE}"
    if not pipeline.backends:
        if packs and "http" in services:
            return f"is []; packing what an http endpoint receives with a jmix_builder {NOT_AVAILABLE}"
        return ""
    name = show(pipeline.backends[0].name)
    service = pipeline.backends[0].service
    if "http" in services and service not in BEHIND_HTTP:
        return f"lists {name}; an http endpoint in front of {service} {NOT_AVAILABLE}"
    if "echo" in services and service != "echo":
        return f"lists {name}, which an echo endpoint never asks, must be []"
    if "jmix" in services and service not in STUDY_SOURCES:
        return f"lists {name}; forwarding the requests of a jmix endpoint to {service} {NOT_AVAILABLE}, must be []"
    if "dicomweb" in services and "dicom_scp" not in services and service not in STUDY_SOURCES:
        return f"lists {name}; a dicomweb endpoint in front of {service} {NOT_AVAILABLE}"
    others = services - {"http", "echo", "management"}
    if service == "http" and to_dicomweb:
        others -= {"dicom_scp"}
    if service == "http" and others == {"dicom_scp"}:
        return (
            f'lists {name}; a dicom_scp endpoint in front of http needs the middleware "dicom_to_dicomweb", '
            "and a DICOMweb server there"
        )
    if service in ONLY_BEHIND_HTTP and others:
        return f"lists {name}; handing what a {min(others)} endpoint receives to {service} {NOT_AVAILABLE}"
    if service == "http" and packs:
        return f"lists {name}; packing what is sent to an HTTP server with a jmix_builder {NOT_AVAILABLE}"
    if service == "dicom_scu" and packs and services != {"jmix"}:
        return f"lists {name}, a PACS; packing what is sent to one with a jmix_builder {NOT_AVAILABLE}"
    if service == "jmix_backend" and not packs:
        return f'lists {name}, which takes envelopes; the middleware must contain a "jmix_builder" that makes them'
    return ""


def _services(pipeline: Pipeline) -> set[str]:
    return {endpoint.service for endpoint in pipeline.endpoints}


def _endpoints(config: LoadedConfig) -> Iterator[tuple[Pipeline, Endpoint]]:
    for pipeline in config.pipelines.values():
        for endpoint in pipeline.endpoints:
            yield pipeline, endpoint


def _owner(pipeline: Pipeline, endpoint: Endpoint) -> str:
    return f"endpoint {show(endpoint.name)} of pipeline {show(pipeline.name)}"


def _in_options(endpoint: Endpoint, key: str, message: str) -> Problem:
    return endpoint.origin.problem(f"options.{key}", message)
