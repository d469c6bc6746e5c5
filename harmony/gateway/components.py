"""Endpoints, backends, middleware and what they refer to: each table read once, given its address and credentials.

A table is read whether a pipeline uses it or not, so that mistakes in unused ones are seen too. Aliases end here:
`dicom` under `[endpoints]` is `dicom_scp`, under `[backends]` it is `dicom_scu`. `harmony.gateway.wiring` puts the
components into pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from harmony.gateway import providers, sections
from harmony.gateway.addresses import (
    NO_PARTS,
    AddressError,
    Parts,
    clean_path,
    parts_of_connection,
    parts_of_options,
    parts_of_peer,
    target_of,
)
from harmony.gateway.config import (
    Authentication,
    ListenerTLS,
    Rule,
    Secret,
    Table,
    Target,
)
from harmony.gateway.options import (
    STORAGE,
    AetEntry,
    AuthenticationOptions,
    BasicAuthOptions,
    DicomScpOptions,
    DicomScuOptions,
    HttpBackendOptions,
    JmixBackendOptions,
    Kind,
    ManagementOptions,
    PoliciesOptions,
    PrefixOptions,
    Role,
    TransformOptions,
    find_kind,
    spellings,
)
from harmony.gateway.policy_tables import PolicyTables
from harmony.gateway.sources import Entry, Merged, Place, Report, hint, show, unknown
from harmony.gateway.tables import keys_of, read_table

UNNAMED_AET = "ANY-SCP"
"""Called AE title when a backend names none, the one DCMTK's tools use."""

NEEDS_TARGET = frozenset({"http", "dicom_scu", "jmix_backend"})

ModelT = TypeVar("ModelT")


def server_tls(
    table: sections.ListenerTable | sections.DicomListenerTable | DicomScpOptions,
    place: Place,
    report: Report,
) -> ListenerTLS | None:
    """The certificate of a listener; both files or none, and they must exist. An endpoint may have its network's."""
    if table.cert_path is None or table.key_path is None:
        for key, path in (("cert_path", table.cert_path), ("key_path", table.key_path)):
            if path is None and (table.cert_path or table.key_path):
                report.error(place, key, "is missing; cert_path and key_path go together")
        check_file(table.ca_cert_path, place, "ca_cert_path", report)
        if table.require_client_cert and not isinstance(table, DicomScpOptions):
            message = "is true, must be accompanied by cert_path and key_path"
            report.error(place, "require_client_cert", message)
        return None
    for key, path in (
        ("cert_path", table.cert_path),
        ("key_path", table.key_path),
        ("ca_cert_path", table.ca_cert_path),
    ):
        check_file(path, place, key, report)
    if table.require_client_cert and table.ca_cert_path is None and not isinstance(table, DicomScpOptions):
        message = "is true, must be accompanied by ca_cert_path"
        report.error(place, "require_client_cert", message)
    return ListenerTLS(
        table.cert_path, table.key_path, table.ca_cert_path, table.require_client_cert, table.tls_profile
    )


def check_file(path: Path | None, place: Place, key: str, report: Report) -> None:
    try:
        missing = path is not None and not path.is_file()
    except OSError:  # a name too long for the system
        missing = True
    if missing:
        report.error(place, key, f'is "{path}", which is not a file')


@dataclass(frozen=True, slots=True)
class Part:
    """An endpoint, backend or middleware table, before a pipeline uses it."""

    name: str
    kind: Kind
    options: Table
    place: Place
    options_place: Place
    given: Mapping[str, object]
    """The options as written, to tell a default from a value."""
    address: Parts = NO_PARTS
    authentication: Authentication | None = None
    rules: tuple[Rule, ...] = ()


class Components:
    """Every table that a pipeline can name, read and typed."""

    def __init__(self, merged: Merged, report: Report, *, storage_path: Path) -> None:
        self.merged = merged
        self.report = report
        self.storage_path = storage_path
        self.policies = PolicyTables(merged, report)
        self.authentications = self._all("authentications", self._read_authentication)
        self.peers = self._all("peers", self._read_peer)
        self.targets = self._all("targets", self._read_peer)
        self.endpoints = self._all("endpoints", self._read_endpoint)
        self.backends = self._all("backends", self._read_backend)
        self.middleware = self._all("middleware", self._read_middleware)

    def built_in(self, kind: Kind, name: str, place: Place) -> Part | None:
        """A middleware that is listed without a table of its own."""
        place = Place(place.document, ("middleware", name))
        options = self._options(kind, {}, place)
        if options is None:
            return None
        self._check_middleware(kind.name, options, place=place, authentication=None)
        rules = self._rules(options, place)
        return Part(name, kind, options=options, place=place, options_place=place, given={}, rules=rules)

    def _all(self, section: str, read: Callable[[str, Entry], ModelT | None]) -> dict[str, ModelT]:
        entries = self.merged.named[section].items()
        found = {name: read(name, entry) for name, entry in entries}
        return {name: each for name, each in found.items() if each is not None}

    # Credentials and addresses

    def _read_authentication(self, name: str, entry: Entry) -> Authentication | None:
        head, given, place = flatten(entry, sections.AuthenticationTable)
        table = read_table(sections.AuthenticationTable, head, entry.place, self.report)
        options = read_table(AuthenticationOptions, given, place, self.report)
        if table is None or options is None:
            return None
        if table.method == "basic" and options.credentials_path is not None:
            options = self._with_credentials(options, options.credentials_path, place)
        wanted: dict[str, object] = {}
        match table.method:
            case "bearer" if options.token_path is None:
                wanted = {"token": options.token}
            case "api_key":
                wanted = {"api_key": options.api_key}
            case "kerberos":
                wanted = {"keytab_path": options.keytab_path}
            case "saml":
                wanted = {"idp_cert_path": options.idp_cert_path, "audience": options.audience}
            case "basic" if options.users_path is None or options.username or options.password:
                wanted = {"username": options.username, "password": options.password}
        missing = False
        for key, value in wanted.items():
            # An empty value is what an unset environment variable leaves behind.
            if value in (None, "", Secret("")):
                came = "is missing" if value is None else "is empty"
                self.report.error(place, key, f"{came}, must be set for method {show(table.method)}")
                missing = True
        if not missing:
            self._check_provider(table.method, options, place)
        return Authentication(table.id or name, table.method, options=options, origin=entry.place.origin())

    def _check_provider(self, method: str, options: AuthenticationOptions, place: Place) -> None:
        try:
            providers.check(method, options)
        except providers.Unusable as error:
            if error.key:
                self.report.error(place, error.key, str(error))
            else:
                self.report.add(place.origin().problem("", str(error)))

    def _with_credentials(
        self, options: AuthenticationOptions, path: Path, place: Place
    ) -> AuthenticationOptions:
        """User name and password from a file that holds `user:password`."""
        username, password = (
            "(unreadable)",
            Secret("(unreadable)"),
        )  # so that neither counts as missing as well
        try:
            text = path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            self.report.error(place, "credentials_path", f'is "{path}", which cannot be read: {reason}')
        else:
            if ":" in text:
                username, _, rest = text.partition(":")
                password = Secret(rest)
            else:
                self.report.error(place, "credentials_path", f'is "{path}", which must hold user:password')
        return msgspec.structs.replace(options, username=username, password=password)

    def authentication(self, ref: str | None, place: Place, key: str) -> Authentication | None:
        if ref is None:
            return None
        name = ref.removeprefix("authentications.")
        for known, authentication in self.authentications.items():
            if name in (known, authentication.id):
                return authentication
        if not self.merged.knows("authentications", name):  # else its own errors have been reported
            self.report.error(place, key, unknown(name, "authentications", self.merged))
        return None

    def _read_peer(self, name: str, entry: Entry) -> tuple[Parts, Authentication | None] | None:
        table = read_table(sections.PeerTable, entry.value, entry.place, self.report)
        if table is None:
            return None
        authentication = self.authentication(table.authentication, entry.place, "authentication")
        if not (table.connection.host or table.url):
            given = entry.value.get("connection") if isinstance(entry.value, dict) else None
            if not (isinstance(given, dict) and "host" in given):  # a wrong one has been reported
                message = "is missing, must be a host name, an IP address or a URL"
                self.report.error(entry.place, "connection.host", message)
        try:
            return parts_of_peer(table), authentication
        except AddressError as error:
            self.report.error(entry.place, error.key, str(error))
            return None

    def _connection(self, connection: sections.ConnectionTable, place: Place) -> Parts:
        inner = place.child("connection")
        for key, path in (
            ("ca_cert_path", connection.ca_cert_path),
            ("cert_path", connection.cert_path),
            ("key_path", connection.key_path),
        ):
            check_file(path, inner, key, self.report)
        try:
            return parts_of_connection(connection)
        except AddressError as error:
            self.report.error(place, error.key, str(error))
            return Parts()

    def _reference(
        self, ref: str | None, section: str, place: Place, key: str
    ) -> tuple[Parts, Authentication | None]:
        known = self.peers if section == "peers" else self.targets
        if ref is None:
            return Parts(), None
        name = ref.removeprefix(f"{section}.")
        if name not in self.merged.named[section]:
            self.report.error(place, key, unknown(name, section, self.merged))
        return known.get(name, (Parts(), None))

    # Tables

    def _kind(self, role: Role, spelled: str, place: Place, key: str) -> Kind | None:
        kind = find_kind(role, spelled)
        if kind is None:
            names = spellings(role)
            listed = ", ".join(show(each) for each in names)
            message = f"is {show(spelled)}, must be one of {listed}{hint(spelled, names)}"
            self.report.error(place, key, message)
        return kind

    def _kind_of(self, role: Role, entry: Entry) -> Kind | None:
        service = entry.value.get("service") if isinstance(entry.value, dict) else None
        if not isinstance(service, str) or not service:
            return None  # reading the table reports it
        return self._kind(role, str(service), entry.place, "service")

    def _options(self, kind: Kind, given: object, place: Place) -> Table | None:
        """Read options, make paths whole: `<storage>` filled in, prefixes in one form."""
        options = read_table(kind.options, given, place, self.report)
        if options is None:
            return None
        changes: dict[str, object] = {}
        for key, value in msgspec.structs.asdict(options).items():
            if isinstance(value, Path) and value.parts[:1] == (STORAGE,):
                changes[key] = self.storage_path.joinpath(*value.parts[1:])
        match options:
            case PrefixOptions():
                changes["path_prefix"] = clean_path(options.path_prefix) or "/"
            case ManagementOptions():
                changes["base_path"] = clean_path(options.base_path) or "/"
            case DicomScuOptions(aet=None):
                changes["aet"] = UNNAMED_AET
                message = f'is missing, "{UNNAMED_AET}" is used; a PACS usually wants its own AE title'
                self.report.warning(place, "aet", message)
        return msgspec.structs.replace(options, **changes) if changes else options

    def _read_endpoint(self, name: str, entry: Entry) -> Part | None:
        kind = self._kind_of(Role.ENDPOINT, entry)
        wanted = keys_of(kind.options) if kind is not None else ()
        table = read_table(sections.EndpointTable, entry.value, entry.place, self.report, options=wanted)
        if table is None or kind is None:
            return None
        place, given = entry.place.child("options"), options_of(entry)
        options = self._options(kind, given, place)
        if options is None:
            return None
        address = Parts()
        if isinstance(options, DicomScpOptions):
            self._check_scp(options, place)
            address = Parts(options.bind_addr, options.port).over(
                self._connection(table.connection, entry.place)
            )
        peer, _ = self._reference(table.peer_ref, "peers", entry.place, "peer_ref")
        authentication = self.authentication(table.authentication, entry.place, "authentication")
        return Part(
            name,
            kind,
            options=options,
            place=entry.place,
            options_place=place,
            given=given,
            address=address.over(peer),
            authentication=authentication,
        )

    def _check_scp(self, options: DicomScpOptions, place: Place) -> None:
        enabled = (
            options.enable_echo,
            options.enable_store,
            options.enable_find,
            options.enable_move,
            options.enable_get,
        )
        if not any(enabled):
            message = "and all other enable_ keys are false, must be true for at least one operation"
            self.report.error(place, "enable_echo", message)
        if options.restrict_calling_ae and not options.allowed_calling_ae_titles():
            message = "is true, but calling_aets and aet_table are empty: nobody could call"
            self.report.error(place, "restrict_calling_ae", message)
        if options.use_tls and options.cert_path is None and options.key_path is None:
            message = "is true, must be accompanied by cert_path and key_path"
            self.report.error(place, "use_tls", message)
        if options.require_client_cert and options.ca_cert_path is None:
            message = "is true, must be accompanied by ca_cert_path"
            self.report.error(place, "require_client_cert", message)
        for name, entry in options.aet_table.items():
            self._check_destination(entry, place.child("aet_table").child(name))

    def _check_destination(self, entry: AetEntry, place: Place) -> None:
        for key, value in (
            ("ca_cert_path", entry.ca_cert_path),
            ("cert_path", entry.cert_path),
            ("key_path", entry.key_path),
            ("tls_server_name", entry.tls_server_name),
        ):
            if value is not None and not entry.use_tls:
                self.report.error(place, key, "is for TLS, must be accompanied by use_tls = true")
        self._check_client_files(
            place, ca_cert_path=entry.ca_cert_path, cert_path=entry.cert_path, key_path=entry.key_path
        )

    def _check_client_files(
        self, place: Place, *, ca_cert_path: Path | None, cert_path: Path | None, key_path: Path | None
    ) -> None:
        """Of our side when it connects: who is trusted, and our own certificate, both files or none."""
        check_file(ca_cert_path, place, "ca_cert_path", self.report)
        for key, path, other in (("cert_path", cert_path, key_path), ("key_path", key_path, cert_path)):
            check_file(path, place, key, self.report)
            if path is None and other is not None:
                self.report.error(place, key, "is missing; cert_path and key_path go together")

    def _read_backend(self, name: str, entry: Entry) -> tuple[Part, Target | None] | None:
        kind = self._kind_of(Role.BACKEND, entry)
        wanted = keys_of(kind.options) if kind is not None else ()
        table = read_table(sections.BackendTable, entry.value, entry.place, self.report, options=wanted)
        if table is None or kind is None:
            return None
        place, given = entry.place.child("options"), options_of(entry)
        options = self._options(kind, given, place)
        if options is None:
            return None
        if len(table.targets) > 1:
            message = f"has {len(table.targets)} names, only the first one is used"
            self.report.warning(entry.place, "targets", message)
        key = "targets" if table.targets and table.target_ref is None else "target_ref"
        ref = table.target_ref or (table.targets[0] if table.targets else None)
        named, authentication = self._reference(ref, "targets", entry.place, key)
        if isinstance(options, HttpBackendOptions | JmixBackendOptions) and options.authentication_ref:
            authentication = self.authentication(options.authentication_ref, place, "authentication_ref")
        elif table.authentication:
            authentication = self.authentication(table.authentication, entry.place, "authentication")
        target = None
        if kind.name in NEEDS_TARGET:
            own = Parts(timeout_s=table.timeout_secs, max_retries=table.max_retries)
            near = self._connection(table.connection, entry.place).over(own)
            broken = ref is not None and ref.removeprefix("targets.") not in self.targets
            target = self._target(
                options, near.over(named), place=entry.place, broken=broken, authentication=authentication
            )
        if isinstance(options, DicomScuOptions) and target is not None:
            self._check_incoming_store(options, target, place)
        part = Part(
            name,
            kind,
            options=options,
            place=entry.place,
            options_place=place,
            given=given,
            authentication=authentication,
        )
        return part, target

    def _check_incoming_store(self, options: DicomScuOptions, target: Target, place: Place) -> None:
        key = "incoming_store_use_tls"
        if options.incoming_store_use_tls and target.cert_path is None:
            self.report.error(place, key, "is true, must be accompanied by cert_path and key_path")
        key = "incoming_store_require_client_cert"
        if options.incoming_store_require_client_cert and not (
            options.incoming_store_use_tls and target.ca_cert_path is not None
        ):
            message = "is true, must be accompanied by incoming_store_use_tls = true and ca_cert_path"
            self.report.error(place, key, message)

    def _target(
        self,
        options: Table,
        outer: Parts,
        *,
        place: Place,
        broken: bool,
        authentication: Authentication | None,
    ) -> Target | None:
        """broken: the target referred to has been reported already, so that what it left open is no news."""
        try:
            parts = parts_of_options(options).over(outer)
            if parts.host is None and broken:
                return None
            self._check_client_files(
                place, ca_cert_path=parts.ca_cert_path, cert_path=parts.cert_path, key_path=parts.key_path
            )
            if authentication is not None and authentication.method == "mutual_tls":
                parts = self._with_certificate(parts, authentication, place)
            target = target_of(parts, dicom=isinstance(options, DicomScuOptions))
            if authentication is not None and authentication.method == "mutual_tls" and not target.tls:
                message = (
                    f"is {show(authentication.id)}, method mutual_tls; the target must be reached over TLS"
                )
                self.report.error(place, "authentication", message)
            return target
        except AddressError as error:
            self.report.error(place, error.key, str(error))
            return None

    def _with_certificate(self, parts: Parts, authentication: Authentication, place: Place) -> Parts:
        """Our certificate from an authentication with method mutual_tls; one that the target has itself wins."""
        options = authentication.options
        assert isinstance(options, AuthenticationOptions)
        if parts.cert_path is not None:
            return parts
        if options.cert_path is None or options.key_path is None:
            message = (
                f"is {show(authentication.id)}, method mutual_tls, which must have cert_path and key_path"
            )
            self.report.error(place, "authentication", message)
            return parts
        self._check_client_files(
            place, ca_cert_path=None, cert_path=options.cert_path, key_path=options.key_path
        )
        return replace(parts, cert_path=options.cert_path, key_path=options.key_path)

    def _read_middleware(self, name: str, entry: Entry) -> Part | None:
        head, given, place = flatten(entry, sections.MiddlewareTable)
        table = read_table(sections.MiddlewareTable, head, entry.place, self.report)
        if table is None:
            return None
        spelled = table.type
        if spelled is None:
            if find_kind(Role.MIDDLEWARE, name) is None:
                if not isinstance(head, dict) or not {"type", "middleware_type"} & head.keys():
                    listed = ", ".join(show(each) for each in spellings(Role.MIDDLEWARE))
                    self.report.error(entry.place, "type", f"is missing, must be one of {listed}")
                return None
            spelled = name
        kind = self._kind(Role.MIDDLEWARE, spelled, entry.place, "type")
        options = self._options(kind, given, place) if kind is not None else None
        if kind is None or options is None:
            return None
        authentication = self.authentication(table.authentication, entry.place, "authentication")
        self._check_middleware(kind.name, options, place=place, authentication=authentication)
        return Part(
            name,
            kind,
            options=options,
            place=entry.place,
            options_place=place,
            given=given if isinstance(given, dict) else {},
            authentication=authentication,
            rules=self._rules(options, place),
        )

    def _rules(self, options: Table, place: Place) -> tuple[Rule, ...]:
        return self.policies.rules_of(options, place) if isinstance(options, PoliciesOptions) else ()

    def _check_middleware(
        self, kind: str, options: Table, *, place: Place, authentication: Authentication | None
    ) -> None:
        match options:
            case TransformOptions(fail_on_error=False):
                message = "is false, and transforms are not available: the middleware does nothing"
                self.report.warning(place, "fail_on_error", message)
        method = providers.MIDDLEWARE_METHODS.get(kind)
        if authentication is not None:
            self._check_reference(authentication, method, place)
        elif method == "basic":
            self._check_basic(options, place)
        elif method is not None:
            self._check_provider(method, providers.options_of_middleware(options), place)

    def _check_basic(self, options: Table, place: Place) -> None:
        assert isinstance(options, BasicAuthOptions)
        complete = True
        if options.users_path is None or options.username or options.password:
            for key, value in (("username", options.username), ("password", options.password)):
                if value in (None, "", Secret("")):
                    came = "is missing" if value is None else "is empty"
                    message = f"{came}, must be set when the middleware names no authentication"
                    self.report.error(place, key, message)
                    complete = False
        if complete:
            self._check_provider("basic", providers.options_of_middleware(options), place)

    def _check_reference(self, authentication: Authentication, method: str | None, place: Place) -> None:
        """A middleware that checks nobody must not look as if it did."""
        if place.path[-1] == "options":
            place = Place(place.document, place.path[:-1])
        named = f"is {show(authentication.id)}"
        if method is None:
            wanted = " and ".join(providers.MIDDLEWARE_METHODS)
            self.report.error(
                place, "authentication", f"{named}, must be left out: only {wanted} check anybody"
            )
        elif authentication.method != method:
            message = (
                f"{named}, a table of method {show(authentication.method)}, must be one of {show(method)}"
            )
            self.report.error(place, "authentication", message)


def options_of(entry: Entry) -> Mapping[str, object]:
    """The options as written: values from the environment are still marked, which a struct would lose."""
    given = entry.value.get("options") if isinstance(entry.value, dict) else None
    return given if isinstance(given, dict) else {}


def flatten(entry: Entry, kind: type[Table]) -> tuple[object, Mapping[str, object], Place]:
    """Split a table whose options may also stand beside its own keys: (own keys, options, where the options are)."""
    if not isinstance(entry.value, dict):
        return entry.value, {}, entry.place
    own = {*keys_of(kind), *kind.ignored}
    head = {key: value for key, value in entry.value.items() if key in own}
    beside = {key: value for key, value in entry.value.items() if key not in own}
    place = entry.place.child("options") if "options" in entry.value else entry.place
    return head, {**beside, **options_of(entry)}, place
