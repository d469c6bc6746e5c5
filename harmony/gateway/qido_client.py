"""Searches of a DICOMweb server: a Query as paths and parameters, and its answers as matches (PS3.18 §10.6).

The level decides what is searched, the study and series that are named where: `/studies/1.2/series`. There is no search
for patients; what a server knows of them is in its studies. Values go out with the tag in eight digits; several UIDs
or Patient IDs become one search each, because not every server takes a list.

A match has what was asked for, empty where the server did not say, and the unique keys above its level.

No I/O. Called by `dicomweb_upstream`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final
from urllib.parse import quote, urlencode

from harmony.archive.levels import Level, level_of
from harmony.dicom.json_model import Element, Model, format_tag, tag_of, text_of, texts_of, vr_of
from harmony.gateway.backend import Query
from harmony.gateway.identifiers import answer

__all__ = ["Search", "match_of", "searches", "unique_key"]

LEVELS: Final = tuple(Level)
PATIENT_ID, STUDY_UID, SERIES_UID = "00100020", "0020000D", "0020000E"
UNIQUE_KEYS: Final = {
    Level.PATIENT: PATIENT_ID,
    Level.STUDY: STUDY_UID,
    Level.SERIES: SERIES_UID,
    Level.IMAGE: "00080018",
}
SOP_CLASS: Final = "00080016"

_UNESCAPED: Final = "*?,:/@!$()"
"""May stand in a query as they are (RFC 3986 §3.4), and Orthanc takes an escaped wild card for a literal one."""
_TAG: Final = re.compile(r"[0-9A-F]{8}")
_NEVER_ASKED: Final = frozenset({"00080005", "00080052", "00080053", "00080054", "00081190"})
"""About a message of C-FIND, or a URL."""
_IN_PATH_AS: Final = {Level.PATIENT: "studies", Level.STUDY: "studies", Level.SERIES: "series"}


@dataclass(frozen=True, slots=True)
class Search:
    """One request, without its offset and limit."""

    resource: str
    parameters: tuple[tuple[str, str], ...]
    uids: Mapping[str, str]
    """The UIDs, and the Patient ID, that it is restricted to, by tag."""

    def path(self, *, offset: int, limit: int, strict: bool = False) -> str:
        """strict: escaped as RFC 3986 wants it. Browsers do not escape a caret (URL Standard, query percent-encode
        set), and Orthanc 1.10 does not understand an escaped one."""
        paging = [("limit", str(limit)), *([("offset", str(offset))] if offset else [])]
        safe = _UNESCAPED if strict else _UNESCAPED + "^"
        return f"{self.resource}?{urlencode([*self.parameters, *paging], safe=safe, quote_via=quote)}"


def searches(query: Query) -> Iterator[Search]:
    """The requests that together find what a query is about."""
    keys = {key: each for key, each in query.identifier.items() if _is_key(key)}
    lists = {
        key: [text for text in dict.fromkeys(texts_of(keys, int(key, 16))) if text and text != "*"]
        for key, each in keys.items()
        if key == PATIENT_ID or (each.get("vr") or vr_of(int(key, 16))) == "UI"
    }
    lists = {key: uids for key, uids in lists.items() if uids}
    parameters = [pair for key, each in keys.items() if key not in lists for pair in _parameters(key, each)]
    parameters += [("includefield", field) for field in _included(query, keys)]
    matching = query.matching
    for name, wanted in (
        ("fuzzymatching", matching.fuzzy_names),
        ("emptyvaluematching", matching.empty_value_matching),
        ("multiplevaluematching", matching.multiple_value_matching),
    ):
        parameters += [(name, "true")] if wanted else []
    for uids in product(*lists.values()):
        one_of_each = dict(zip(lists, uids, strict=True))
        resource, left = _resource(query.level, one_of_each)
        yield Search(resource, (*left.items(), *parameters), one_of_each)


def _is_key(key: str) -> bool:
    tag = tag_of(key)
    return format_tag(tag) == key and key not in _NEVER_ASKED and tag & 0xFFFF != 0 and tag >> 16 > 7


def _resource(level: Level, uids: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The resource, and the UIDs that it does not name."""
    left, path = dict(uids), ""
    if level in (Level.SERIES, Level.IMAGE) and STUDY_UID in left:
        path += f"/studies/{quote(left.pop(STUDY_UID), safe='')}"
        if level is Level.IMAGE and SERIES_UID in left:
            path += f"/series/{quote(left.pop(SERIES_UID), safe='')}"
    return f"{path}/{_IN_PATH_AS.get(level, 'instances')}", left


def _parameters(key: str, element: Element, path: str = "") -> Iterator[tuple[str, str]]:
    """What an element says that is to be matched."""
    values = element.get("Value") or []
    if any(isinstance(value, dict) for value in values) and (element.get("vr") or "SQ") != "PN":
        for item in values:
            for inner, each in item.items():
                yield from _parameters(inner, each, f"{path}{key}.")
        return
    text = "\\".join(texts_of({key: element}, int(key, 16)))
    if text.strip("\\") and text != "*":
        yield path + key, text


def _included(query: Query, keys: Model) -> list[str]:
    if query.all_attributes:
        return ["all"]
    return [key for key in keys if key not in UNIQUE_KEYS.values()]


def match_of(found: Mapping[str, Any], query: Query, search: Search) -> Model:
    """What a server found, as an answer to the query."""
    known = {
        key: _element(key, each)
        for key, each in found.items()
        if _TAG.fullmatch(key) and isinstance(each, Mapping)
    }
    for key, value in search.uids.items():
        if "Value" not in known.get(key, {}) and not set(value) & {"*", "?"}:
            known[key] = {"vr": vr_of(int(key, 16)), "Value": [value]}
    unique = [UNIQUE_KEYS[level] for level in LEVELS[: LEVELS.index(query.level) + 1]]
    if query.level is Level.IMAGE:
        unique.append(SOP_CLASS)
    wanted = {key: each for key, each in query.identifier.items() if _is_key(key)}
    match: Model = {key: known[key] for key in unique if key in known}
    for key, each in known.items():
        if (
            query.all_attributes
            and _is_key(key)
            and (query.level is not Level.PATIENT or _is_of_patient(key))
        ):
            match[key] = each
    for key, each in wanted.items():
        match[key] = known.get(key) or {"vr": each.get("vr") or vr_of(int(key, 16))}
    return answer({key: match[key] for key in sorted(match)}, query)


def _is_of_patient(key: str) -> bool:
    return level_of(key) is Level.PATIENT


def _element(key: str, given: Mapping[str, Any]) -> Element:
    """Without what refers to elsewhere, and with a VR."""
    vr = given.get("vr")
    element: Element = {"vr": vr if isinstance(vr, str) else vr_of(int(key, 16))}
    for name in ("Value", "InlineBinary"):
        if given.get(name):
            element[name] = given[name]
    return element


def unique_key(match: Model, level: Level) -> str:
    """What tells one entity from another."""
    return text_of(match, int(UNIQUE_KEYS[level], 16))
