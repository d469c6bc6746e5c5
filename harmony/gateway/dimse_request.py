"""What an HTTP request to an `http` endpoint in front of a PACS asks for: a DIMSE service, and its parameters.

The service is named by the path, or else by the body; a body that is a query and nothing else is a retrieve, and no
body at all is an echo. A query may be written in any of these ways, or in the query string:

    {"operation": "C-FIND", "level": "STUDY", "query": {"PatientID": "*", "StudyInstanceUID": ""}}
    {"patient_id": "12345", "query_level": "PATIENT"}
    {"00100020": {"vr": "LO", "Value": ["*"]}, "0020000D": {"vr": "UI"}}                 DICOM JSON (PS3.18 Annex F)
    {"command": {"priority": "HIGH"}, "identifier": {"00100020": {"vr": "LO", "Value": ["*"]}}, "query_metadata": {}}

Attributes are keywords, keywords_in_snake_case, GGGGEEEE or gggg,eeee; values are text, numbers, null, or lists of
them. Every error is an HTTPError that names the key and what is allowed, never a value: 400, and 404 for a path that
is none of ours.

No I/O, and nothing about responses or bodies that are DICOM files: `harmony.gateway.dimse_bridge`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import PATIENT_ATTRIBUTES, Level, infer_level
from harmony.dicom.json_model import Model, format_tag, texts_of
from harmony.dicom.uid import is_valid_uid
from harmony.dimse.command import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_MEDIUM
from harmony.dimse.information_model import PATIENT_ROOT, PATIENT_STUDY_ONLY, STUDY_ROOT
from harmony.dimse.sop_class import VERIFICATION
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.query_keys import bad_key, check_encoding, json_object, key_element, key_tag, shown
from harmony.http import HTTPError
from harmony.http import Query as QueryString

__all__ = ["DimseRequest", "DimseService", "read_request", "service_of_path"]

MAXIMUM_UIDS = 1000
"""In one key of a retrieve: what a UI in Explicit VR can hold (PS3.5 §7.1.2)."""

QUERY_RETRIEVE_LEVEL = 0x00080052


class DimseService(Enum):
    """What can be asked of a PACS; the value is its name in paths and responses."""

    ECHO = "echo"
    FIND = "find"
    GET = "get"
    MOVE = "move"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class DimseRequest:
    """One request, understood."""

    service: DimseService
    query: Query | None = None
    """Of a find."""
    retrieve: Retrieve | None = None
    """Of a get or move."""
    destination: str | None = None
    """Of a move; None: to us."""


def service_of_path(rest: str) -> DimseService | None:
    """The service that the path after the prefix names, None for an empty one. Raises HTTPError 404 for any other."""
    segment = rest.strip("/")
    if not segment:
        return None
    try:
        return DimseService(segment.lower())
    except ValueError:
        raise HTTPError(404, f"no such path here: expected {_SERVICES} after the prefix") from None


def read_request(
    named: DimseService | None,
    query_string: QueryString,
    body: object = None,
    *,
    retrieve_mode: Literal["get", "move"] = "get",
) -> DimseRequest:
    """Understand a request, or raise HTTPError 400.

    named: the service of the path. body: what JSON it holds, None when there is none. retrieve_mode: what a query
    without a service is.
    """
    reading = _Reading()
    reading.parameters(query_string)
    if body is not None:
        reading.members(json_object(body))
    service = _service(named, reading, retrieve_mode, empty=body is None and not len(query_string))
    match service:
        case DimseService.ECHO:
            return DimseRequest(service)
        case DimseService.STORE:
            raise HTTPError(
                400,
                "store: the body must be a DICOM file, Content-Type application/dicom, or a multipart/related of them",
            )
        case DimseService.FIND:
            reading.allow(service, "limit")
            return DimseRequest(service, query=reading.query())
        case DimseService.GET:
            reading.allow(service)
            return DimseRequest(service, retrieve=reading.retrieve(service))
        case DimseService.MOVE:
            reading.allow(service, "destination")
            return DimseRequest(
                service, retrieve=reading.retrieve(service), destination=reading.destination()
            )


def _service(
    named: DimseService | None, reading: _Reading, retrieve_mode: Literal["get", "move"], *, empty: bool
) -> DimseService:
    stated = reading.service()
    if named is not None:
        if stated is not None and stated is not named:
            raise HTTPError(400, f"the request says operation {stated.value}, its path {named.value}")
        return named
    if stated is not None:
        return stated
    if empty:
        return DimseService.ECHO
    return DimseService.MOVE if "destination" in reading.settings else DimseService(retrieve_mode)


# Members that are not attributes, whatever the case and however they are divided into words. No keyword of PS3.6 is
# among them but QueryRetrieveLevel, which means the same.
_SETTINGS = {
    "operation": "operation",
    "dimseop": "operation",
    "level": "level",
    "querylevel": "level",
    "queryretrievelevel": "level",
    "limit": "limit",
    "maxresults": "limit",
    "destination": "destination",
    "movedestination": "destination",
    "priority": "priority",
    "command": "command",
    "querymetadata": "query_metadata",
}
_IDENTIFIERS = ("query", "identifier", "dimseidentifier")

_SERVICES = "echo, find, get, move or store"
_SERVICE = re.compile(r"C?(ECHO|FIND|GET|MOVE|STORE)(RQ)?")
_LEVELS = {"PATIENT": Level.PATIENT, "STUDY": Level.STUDY, "SERIES": Level.SERIES, "IMAGE": Level.IMAGE}
_LEVEL_SPELLINGS = _LEVELS | {"INSTANCE": Level.IMAGE}
_PRIORITIES = {"LOW": PRIORITY_LOW, "MEDIUM": PRIORITY_MEDIUM, "HIGH": PRIORITY_HIGH}
_MATCH_TYPES = {"EXACT", "WILDCARD", "RANGE", "LIST", "RETURN_KEY", "SEQUENCE", "UNIVERSAL"}
_UNRESTRICTED = {"RETURN_KEY", "UNIVERSAL"}
_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # PS3.5 Table 6.2-1

_UNIQUE_KEYS = {
    Level.PATIENT: ("PatientID", 0x00100020),
    Level.STUDY: ("StudyInstanceUID", 0x0020000D),
    Level.SERIES: ("SeriesInstanceUID", 0x0020000E),
    Level.IMAGE: ("SOPInstanceUID", 0x00080018),
}

_SOP_CLASSES = {VERIFICATION: DimseService.ECHO} | {
    uid: service
    for model in (STUDY_ROOT, PATIENT_ROOT, PATIENT_STUDY_ONLY)
    for uid, service in (
        (model.find, DimseService.FIND),
        (model.get, DimseService.GET),
        (model.move, DimseService.MOVE),
    )
}
_STUDY_ROOT = (STUDY_ROOT.find, STUDY_ROOT.get, STUDY_ROOT.move)


class _Reading:
    """What the query string and the body say, each thing once."""

    def __init__(self) -> None:
        self.settings: dict[str, tuple[str, Any]] = {}
        """By the name of the setting: how it was spelled, and its value as it came."""
        self.identifier: Model = {}
        self._names: dict[str, str] = {}
        """How each attribute of the identifier was spelled."""
        self._sop_class_uid = ""

    def parameters(self, query_string: QueryString) -> None:
        for name in dict.fromkeys(name for name, _ in query_string):
            values = query_string.all(name)
            self._member(name, values[0] if len(values) == 1 else values)

    def members(self, members: Mapping[str, Any]) -> None:
        for name, value in members.items():
            if _plain(name) in _IDENTIFIERS:
                for key, inner in json_object(value, name).items():
                    self._member(key, inner)
            else:
                self._member(name, value)
        if "command" in self.settings:
            self._command(*self.settings.pop("command"))
        if "query_metadata" in self.settings:
            self._query_metadata(*self.settings.pop("query_metadata"))

    def _member(self, name: str, value: Any) -> None:
        setting = _SETTINGS.get(_plain(name))
        if setting is not None:
            self._set(setting, name, value)
            return
        tag = key_tag(name)
        if tag == QUERY_RETRIEVE_LEVEL:
            self._set("level", name, value)
            return
        key, element = format_tag(tag), key_element(name, tag, value)
        if self.identifier.setdefault(key, element) != element:
            raise bad_key(name, f"is given twice, also as {shown(self._names[key])}, with different values")
        self._names[key] = name

    def _set(self, setting: str, name: str, value: Any) -> None:
        spelled, before = self.settings.setdefault(setting, (name, value))
        if before != value:
            raise bad_key(name, f"is given twice, also as {shown(spelled)}, with different values")

    def _command(self, name: str, value: Any) -> None:
        for key, inner in json_object(value, name).items():
            match _plain(key):
                case "messageid":
                    pass  # the association that carries the request has message IDs of its own
                case "priority":
                    self._set("priority", key, inner)
                case "direction":
                    if not isinstance(inner, str) or inner.upper() != "REQUEST":
                        raise bad_key(key, "must be REQUEST")
                case "sopclassuid":
                    if not isinstance(inner, str) or inner not in _SOP_CLASSES:
                        raise bad_key(
                            key, "must be the SOP class of Verification, or of a Query/Retrieve model"
                        )
                    self._sop_class_uid = inner
                case _:
                    expected = "message_id, sop_class_uid, priority or direction"
                    raise HTTPError(400, f"{shown(key)} is not known in {shown(name)}: expected {expected}")

    def _query_metadata(self, name: str, value: Any) -> None:
        for key, inner in json_object(value, name).items():
            match_type = {_plain(part): text for part, text in json_object(inner, key).items()}.get(
                "matchtype"
            )
            if match_type is None:
                continue
            if not isinstance(match_type, str) or match_type.upper() not in _MATCH_TYPES:
                raise bad_key(key, f"match_type must be one of {', '.join(sorted(_MATCH_TYPES))}")
            tag = format_tag(key_tag(key))
            if match_type.upper() in _UNRESTRICTED and tag in self.identifier:
                self.identifier[tag] = {"vr": self.identifier[tag]["vr"]}

    # What it comes to

    def allow(self, service: DimseService, *settings: str) -> None:
        """Refuse what has no meaning for a service."""
        for setting in ("limit", "destination"):
            if setting in self.settings and setting not in settings:
                raise bad_key(self.settings[setting][0], f"has no meaning for {service.value}")

    def service(self) -> DimseService | None:
        of_sop_class = _SOP_CLASSES.get(self._sop_class_uid)
        if "operation" not in self.settings:
            return of_sop_class
        name, value = self.settings["operation"]
        matched = _SERVICE.fullmatch(_plain(value).upper()) if isinstance(value, str) else None
        if matched is None:
            raise bad_key(name, f"must be {_SERVICES}, or C-ECHO and so on")
        service = DimseService(matched[1].lower())
        if of_sop_class not in (None, service):
            raise bad_key(
                name, f"is {service.value}, the SOP class of the command is that of another operation"
            )
        return service

    def query(self) -> Query:
        if not self.identifier:
            example = '{"PatientID": "", "StudyInstanceUID": ""}'
            raise HTTPError(
                400, f"find: there is no key: expected attributes to match or to return, such as {example}"
            )
        level = self._level()
        check_encoding(self.identifier)
        limit = None
        if "limit" in self.settings:
            limit = _positive(*self.settings["limit"])
        return Query(
            level,
            dict(sorted(self.identifier.items())),
            patient_root=self._is_patient_root(level),
            limit=limit,
        )

    def retrieve(self, service: DimseService) -> Retrieve:
        level = self._level()
        levels = list(_LEVELS.values())
        at = levels.index(level)
        selecting = dict(_UNIQUE_KEYS[each] for each in levels[: at + 1])
        allowed = ", ".join(selecting)
        check_encoding(self.identifier)
        for key in self.identifier:
            if int(key, 16) not in selecting.values() and texts_of(self.identifier, int(key, 16)):
                raise bad_key(
                    self._names[key],
                    f"does not select what to {service.value} at level {level.value}: allowed {allowed}",
                )
        values = [self._unique_key(name, tag) for name, tag in selecting.items()]
        name, _ = _UNIQUE_KEYS[level]
        if values[at] is None:
            raise bad_key(name, f"must have a value to {service.value} at level {level.value}")
        if any(each is not None and len(each) > 1 for each in values[:at]):
            raise HTTPError(
                400, f"{service.value}: only {name} may have several values at level {level.value}"
            )
        priority = PRIORITY_MEDIUM
        if "priority" in self.settings:
            priority = _choice(*self.settings["priority"], _PRIORITIES)
        keys = UniqueKeys(*values)
        return Retrieve(level, keys, patient_root=self._is_patient_root(level), priority=priority)

    def destination(self) -> str | None:
        if "destination" not in self.settings:
            return None
        name, value = self.settings["destination"]
        if not isinstance(value, str) or not _AE_TITLE.fullmatch(value) or not value.strip():
            raise bad_key(name, "must be an AE title of 1 to 16 characters")
        return value.strip()

    def _level(self) -> Level:
        if "level" in self.settings:
            stated: Level = _choice(*self.settings["level"], _LEVEL_SPELLINGS)
            return stated
        level = infer_level(self.identifier)
        if level is Level.PATIENT and any(key not in PATIENT_ATTRIBUTES for key in self.identifier):
            return Level.STUDY  # no UID, but something that no patient has: an accession number, a date
        return level

    def _is_patient_root(self, level: Level) -> bool:
        if level is Level.PATIENT:
            return True
        return bool(self._sop_class_uid) and self._sop_class_uid not in _STUDY_ROOT

    def _unique_key(self, name: str, tag: int) -> list[str] | None:
        values = [text for each in texts_of(self.identifier, tag) if (text := each.strip())]
        if not values or values == ["*"]:
            return None
        if len(values) > MAXIMUM_UIDS:
            raise bad_key(name, f"has {len(values)} values, at most {MAXIMUM_UIDS} are allowed")
        for value in values:
            if name == "PatientID" and ("*" in value or "?" in value):
                raise bad_key(name, "has a wild card; a retrieve takes none")
            if name != "PatientID" and not is_valid_uid(value):
                raise bad_key(name, "is no UID")
        return values


def _positive(name: str, value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise bad_key(name, "must be a whole number from 1")
    return value


def _choice(name: str, value: Any, choices: Mapping[str, Any]) -> Any:
    """Any: of the type that the choices have."""
    if isinstance(value, Mapping):
        value = value.get("Value")
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = value[0]
    found = choices.get(value.strip().upper()) if isinstance(value, str) else None
    if found is None:
        raise bad_key(name, f"must be one of {', '.join(choices)}")
    return found


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").replace(" ", "").lower()
