"""Pipelines: components put in order, endpoints given the listeners of their pipeline's networks.

One endpoint table used by two pipelines gives two endpoints. A middleware that is listed without a table of its own is
a built-in type; what a list says in one order for requests is passed in the reverse order by responses.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from harmony.gateway import sections
from harmony.gateway.addresses import dicom_listener
from harmony.gateway.components import Components, Part, server_tls
from harmony.gateway.config import (
    Backend,
    Endpoint,
    Listener,
    Management,
    Middleware,
    Network,
    Pipeline,
)
from harmony.gateway.options import DicomScpOptions, Role, find_kind, spellings
from harmony.gateway.sources import Entry, Merged, Place, Report, hint, show, unknown
from harmony.gateway.tables import read_table


class Wiring:
    def __init__(
        self,
        merged: Merged,
        report: Report,
        *,
        components: Components,
        networks: Mapping[str, Network],
        management: Management,
    ) -> None:
        self.merged = merged
        self.report = report
        self.networks = networks
        self.endpoints = components.endpoints
        self.backends = components.backends
        self.components = components
        read = {name: self._read_pipeline(entry) for name, entry in merged.named["pipelines"].items()}
        self.tables = {name: each for name, each in read.items() if each is not None}
        self.http_networks = self._http_networks(management)

    def pipelines(self) -> dict[str, Pipeline]:
        return {name: self._pipeline(name, *each) for name, each in self.tables.items()}

    def _read_pipeline(self, entry: Entry) -> tuple[sections.PipelineTable, Place] | None:
        table = read_table(sections.PipelineTable, entry.value, entry.place, self.report)
        if table is None:
            return None
        for key, section, names in (
            ("networks", "network", table.networks),
            ("endpoints", "endpoints", table.endpoints),
            ("backends", "backends", table.backends),
        ):
            for each in names:
                if each not in self.merged.named[section]:
                    self.report.error(entry.place, key, unknown(each, section, self.merged))
        return table, entry.place

    def _http_networks(self, management: Management) -> frozenset[str]:
        """The networks whose http listener carries HTTP, so that a DICOM endpoint cannot have its address."""
        names = {management.network} if management.enabled and management.network else set()
        for table, _ in self.tables.values():
            parts = [self.endpoints[name] for name in table.endpoints if name in self.endpoints]
            if any(part.kind.name != "dicom_scp" for part in parts):
                names.update(table.networks)
        return frozenset(names)

    def _pipeline(self, name: str, table: sections.PipelineTable, place: Place) -> Pipeline:
        endpoints = [
            self._endpoint(self.endpoints[each], table, place)
            for each in table.endpoints
            if each in self.endpoints
        ]
        left, right = self._sides(table, place)
        return Pipeline(
            name,
            table.description,
            networks=table.networks,
            endpoints=tuple(each for each in endpoints if each is not None),
            left=left,
            right=right,
            backends=tuple(
                Backend(
                    each,
                    part.kind.name,
                    options=part.options,
                    target=target,
                    authentication=part.authentication,
                    origin=part.place.origin(),
                )
                for each in table.backends
                if each in self.backends
                for part, target in (self.backends[each],)
            ),
            origin=place.origin(),
        )

    def _endpoint(self, part: Part, table: sections.PipelineTable, place: Place) -> Endpoint | None:
        networks = [self.networks[name] for name in table.networks if name in self.networks]
        if not networks:
            return None  # their absence has been reported
        options = part.options
        if isinstance(options, DicomScpOptions):
            networks, listeners = self._dicom_listeners(part, options, networks)
            titles = [each.default_ae_title for each in networks if each.default_ae_title]
            if titles and not {"local_aet", "aet"} & part.given.keys():
                options = msgspec.structs.replace(options, local_aet=titles[0])
        else:
            networks = [network for network in networks if network.http is not None]
            listeners = tuple(network.http for network in networks if network.http is not None)
            if not networks:
                listed = ", ".join(show(each) for each in table.networks)
                message = f"{listed} have no http listener, which endpoint {show(part.name)} needs"
                self.report.error(place, "networks", message)
                return None
        return Endpoint(
            part.name,
            part.kind.name,
            options=options,
            networks=tuple(network.name for network in networks),
            listeners=listeners,
            authentication=part.authentication,
            origin=part.place.origin(),
        )

    def _dicom_listeners(
        self, part: Part, options: DicomScpOptions, networks: list[Network]
    ) -> tuple[list[Network], tuple[Listener, ...]]:
        tls = server_tls(options, part.options_place, self.report)
        having = [(network, network.dicom) for network in networks if network.dicom is not None]
        free = [(network, network.http) for network in networks if network.name not in self.http_networks]
        candidates: list[tuple[Network, Listener | None]] = [*having] or [
            (network, http) for network, http in free if http is not None
        ]
        if not candidates or (part.address.host and part.address.port):
            candidates = [*candidates, (networks[0], None)][:1]
        found: dict[Listener, Network] = {}
        for network, inherited in candidates:
            listener = dicom_listener(options, part.address, inherited=inherited, tls=tls)
            if options.require_client_cert and listener.tls is None:
                message = f"is true, and {listener} has no certificate; cert_path and key_path must be set"
                self.report.error(part.options_place, "require_client_cert", message)
            found.setdefault(listener, network)
        return list(found.values()), tuple(found)

    def _sides(
        self, table: sections.PipelineTable, place: Place
    ) -> tuple[tuple[Middleware, ...], tuple[Middleware, ...]]:
        dicomweb = any(
            self.endpoints[each].kind.name == "dicomweb" for each in table.endpoints if each in self.endpoints
        )

        def chain(names: tuple[str, ...], key: str) -> tuple[Middleware, ...]:
            found = [self._middleware(name, key, place=place, dicomweb=dicomweb) for name in names]
            return tuple(each for each in found if each is not None)

        if isinstance(table.middleware, dict):
            inner = place.child("middleware")
            split = read_table(sections.SplitMiddleware, table.middleware, inner, self.report)
            split = split or sections.SplitMiddleware()
            return chain(split.left, "middleware.left"), chain(split.right, "middleware.right")
        left = chain(table.middleware, "middleware")
        return left, left[::-1]

    def _middleware(self, spelled: str, key: str, *, place: Place, dicomweb: bool) -> Middleware | None:
        name = spelled.removeprefix("middleware.")
        part = self.components.middleware.get(name)
        if part is None:
            if name in self.merged.named["middleware"]:
                return None  # its own errors have been reported
            part = self._built_in(name, key, place=place, dicomweb=dicomweb)
        if part is None:
            return None
        return Middleware(
            name,
            part.kind.name,
            options=part.options,
            authentication=part.authentication,
            origin=part.place.origin(),
            rules=part.rules,
        )

    def _built_in(self, name: str, key: str, *, place: Place, dicomweb: bool) -> Part | None:
        kind = find_kind(Role.MIDDLEWARE, name)
        if kind is None and dicomweb:
            kind = find_kind(Role.MIDDLEWARE, "dicomweb_bridge")
            message = f'names {show(name)}, which is not defined; the built-in "dicomweb_bridge" is used'
            self.report.warning(place, key, message)
        if kind is None:
            known = (*self.merged.named["middleware"], *spellings(Role.MIDDLEWARE))
            listed = ", ".join(show(each) for each in known)
            message = f"names {show(name)}, must be a [middleware] table or a built-in type: {listed}"
            self.report.error(place, key, message + hint(name, known))
            return None
        return self.components.built_in(kind, name, place)
