"""What a search asks for (QIDO-RS, PS3.18 §8.3.4, §10.6.1): the query string made into a `Query`, and what to return.

    PatientName=DOE*&StudyDate=20240101-&00080061=CT&includefield=StudyDescription&limit=50&offset=100
    RequestAttributesSequence.ScheduledProcedureStepID=A1          StudyInstanceUID=1.2,1.3          includefield=all

Attributes are keywords or eight hex digits; values are those of C-FIND (PS3.4 §C.2.2.2), combined date-time matching
included. Commas divide values where the VR cannot hold one, as in UIDs and codes; a repeated parameter is a list, too.

PS3.18 §8.3.4 wants unknown parameters ignored, so cache busters and what other servers know are, with a Warning. But
one that is written like an attribute (`PatientNaem`, `00100100G`, a dotted path) and is none is refused: to ignore a
filter would return what was to be left out. So are values that mean nothing; messages name the parameter, never a
value. A parameter at a level below that of the search cannot tell its entities apart, and is ignored with a Warning;
Modality and SOPClassUID at the study level mean ModalitiesInStudy and SOPClassesInStudy.

No I/O. Called by `harmony.gateway.qido`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from harmony.archive.comparable import NUMBER_VRS, RANGE_VRS
from harmony.archive.date_time import utc_offset_minutes
from harmony.archive.levels import Level, level_of
from harmony.archive.matcher import IdentifierError, Matcher, MatchingOptions
from harmony.archive.matching import MAXIMUM_NESTING, NOT_KEYS, TIMEZONE_OFFSET, compile_query
from harmony.dicom.json_model import (
    Element,
    Model,
    ModelError,
    encode_data_set,
    format_tag,
    texts_of,
    vr_of,
)
from harmony.dicom.uid import is_valid_uid
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN
from harmony.gateway.backend import Query
from harmony.gateway.query_keys import attribute_tag, bad_key, key_element, shown
from harmony.http import HTTPError
from harmony.http import Query as QueryString

__all__ = ["Search", "Target", "read_search"]

LEVELS: Final = tuple(Level)
UNIQUE_KEYS: Final = {Level.STUDY: "0020000D", Level.SERIES: "0020000E", Level.IMAGE: "00080018"}


def _tags(table: str) -> tuple[str, ...]:
    return tuple(table.split())


# PS3.18 Tables 10.6.3-3, 10.6.3-4 and 10.6.3-5. What is returned always, without value where there is none
ALWAYS: Final = {
    Level.STUDY: _tags("""
        00080020 00080030 00080050 00080061 00080090 00100010 00100020 00100030 00100040 0020000D 00200010 00201206
        00201208
    """),
    Level.SERIES: _tags("00080060 0020000D 0020000E 00200011 00201209"),
    Level.IMAGE: _tags("00080016 00080018 0020000D 0020000E 00200013"),
}
# and what is returned where it is known. Study Description is in none of them, and every list of studies shows it.
IF_KNOWN: Final = {
    Level.STUDY: _tags("00080056 00080201 00081030"),
    Level.SERIES: _tags("00080056 00080201 0008103E 00400244 00400245 00400275"),
    Level.IMAGE: _tags("00080056 00080201 00280008 00280010 00280011 00280100"),
}
_REQUEST_ATTRIBUTES: Final = "00400275"
_REQUEST_IDS: Final = {"00400009": {"vr": "SH"}, "00401001": {"vr": "SH"}}

_OURS: Final = frozenset({0x00080005, 0x00080052, 0x00080053, 0x00081190})
"""Never asked for: what describes a message of C-FIND, and the Retrieve URL, which only this end knows."""
_IN_STUDY: Final = {"00080060": 0x00080061, "00080016": 0x00080062}
_ANY_LEVEL: Final = frozenset(map(format_tag, NOT_KEYS))

_NO_COMMA: Final = RANGE_VRS | NUMBER_VRS | {"AS", "AT", "CS", "UI"}
_LIKE_AN_ATTRIBUTE: Final = re.compile(
    r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*|[0-9A-Fa-f(][0-9A-Fa-f,]{6,}.*|.*\..*"
)
_IN_WARNINGS: Final = re.compile(r"[A-Za-z0-9_.,()-]{1,64}")
MAXIMUM_WARNINGS: Final = 8
"""Of parameters that were ignored; headers have a limit at most clients."""

_LITERAL: Final = {
    "fuzzymatching": "The fuzzymatching parameter is left to the PACS, which may match literally.",
    "emptyvaluematching": "The emptyvaluematching parameter is left to the PACS, which may not support it.",
    "multiplevaluematching": "The multiplevaluematching parameter is left to the PACS, which may not support it.",
}


@dataclass(frozen=True, slots=True)
class Target:
    """The resource that is searched: what it has entities of, and within what."""

    level: Level
    study_uid: str | None = None
    series_uid: str | None = None
    instance_uid: str | None = None

    def keys(self) -> dict[str, str]:
        """Values by tag. Raises HTTPError 400 for what is no UID."""
        uids = {
            "0020000D": ("study", self.study_uid),
            "0020000E": ("series", self.series_uid),
            "00080018": ("instance", self.instance_uid),
        }
        for name, uid in uids.values():
            if uid is not None and not is_valid_uid(uid):
                raise HTTPError(400, f"the {name} in the path is no UID: expected digits and dots, up to 64")
        return {tag: uid for tag, (_, uid) in uids.items() if uid is not None}

    def levels(self) -> tuple[Level, ...]:
        """Those whose attributes an answer has: that of the entities, and the ones above that the path leaves open."""
        open_above = [
            level
            for level, uid in ((Level.STUDY, self.study_uid), (Level.SERIES, self.series_uid))
            if uid is None and LEVELS.index(level) < LEVELS.index(self.level)
        ]
        return (*open_above, self.level)


@dataclass(frozen=True, slots=True)
class Search:
    """One search, understood."""

    query: Query
    """Without a limit: how many matches to take is for whoever answers."""
    always: tuple[str, ...]
    """Tags that each answer has."""
    if_present: tuple[str, ...]
    """Tags that were asked for by name."""
    if_known: tuple[str, ...]
    """Tags that an answer has where they have a value."""
    limit: int | None
    warnings: tuple[str, ...]


def read_search(
    query_string: QueryString,
    target: Target,
    *,
    matches_as_asked: bool = True,
    match_empty_values: bool = True,
    fuzzy_names: bool = False,
) -> Search:
    """Understand a search, or raise HTTPError 400.

    matches_as_asked: as `Backend` says. match_empty_values: an attribute without value matches whatever is asked.
    fuzzy_names: also without fuzzymatching=true.
    """
    reading = _Reading(target)
    for name in dict.fromkeys(name for name, _ in query_string):
        reading.parameter(name, query_string.all(name))
    if not matches_as_asked:
        reading.warnings += [text for name, text in _LITERAL.items() if reading.flags.get(name)]
    matching = MatchingOptions(
        empty_matches=match_empty_values,
        empty_value_matching=reading.flags.get("emptyvaluematching", False),
        multiple_value_matching=reading.flags.get("multiplevaluematching", False),
        combined_date_time=reading.has_times(),
        fuzzy_names=reading.flags.get("fuzzymatching", fuzzy_names),
        timezone_adjustment=reading.has_timezone(),
    )
    return reading.search(matching)


class _Reading:
    """What the parameters say, one after the other."""

    def __init__(self, target: Target) -> None:
        self.flags: dict[str, bool] = {}
        self.warnings: list[str] = []
        self._target = target
        self._of_path = target.keys()
        self._numbers: dict[str, int] = {}
        self._identifier: Model = {}
        self._names: dict[str, str] = {}
        """How each attribute that is matched was spelled, by path of tags."""
        self._included: list[list[str]] = []
        """Paths of tags."""
        self._all = False
        for tag, uid in self._of_path.items():
            self._identifier[tag] = {"vr": "UI", "Value": [uid]}

    def parameter(self, name: str, values: list[str]) -> None:
        match name.lower():
            case "limit" | "offset" as which:
                for text in _one(name, values):
                    self._numbers[which] = _number(name, text)
            case "fuzzymatching" | "emptyvaluematching" as which:
                for text in _one(name, values):
                    self.flags[which] = _flag(name, text)
            case "multiplevaluematching" | "multivaluematching":
                for text in _one(name, values):
                    self.flags["multiplevaluematching"] = _flag(name, text)
            case "includefield":
                for text in values:
                    self._include(name, text)
            case "accept" | "charset":
                pass  # of the response as a whole (PS3.18 §8.3.3)
            case _:
                self._match(name, values)

    # Parameters

    def _include(self, name: str, text: str) -> None:
        for each in filter(None, (part.strip() for part in text.split(","))):
            if each.lower() == "all":
                self._all = True
                continue
            path = _path(each)
            if path is None:
                raise bad_key(name, "has what is no attribute: expected keywords, GGGGEEEE, or all")
            if any(vr_of(int(tag, 16)) not in ("SQ", "UN") for tag in path[:-1]):
                raise bad_key(name, "has a path into what is no sequence")
            if self._is_within(path[0]):
                self._included.append(path)

    def _match(self, name: str, values: list[str]) -> None:
        path = _path(name)
        if path is None:
            if _LIKE_AN_ATTRIBUTE.fullmatch(name):
                raise bad_key(name, "is no DICOM attribute: expected a keyword, GGGGEEEE, or a path of them")
            self._ignore(name, "is not known")
            return
        if len(path) == 1 and self._target.level is Level.STUDY and path[0] in _IN_STUDY:
            path = [format_tag(_IN_STUDY[path[0]])]
        tag = int(path[-1], 16)
        if tag in NOT_KEYS and tag != TIMEZONE_OFFSET:
            self._ignore(name, "cannot be matched")
        elif not self._is_within(path[0]):
            self._ignore(name, f"is below the level {self._target.level.value} of this search")
        else:
            self._add(name, path, _element(name, tag, values))

    def _add(self, name: str, path: list[str], element: Element) -> None:
        where = self._item(name, path)
        key, spelled = path[-1], self._names.setdefault(".".join(path), name)
        if spelled != name and where.get(key) != element:
            raise bad_key(name, f"is given twice, also as {shown(spelled)}")
        if len(path) == 1 and key in self._of_path:
            values = texts_of({key: element}, int(key, 16))
            if values and self._of_path[key] not in values:
                raise bad_key(name, "differs from the one in the path")
            return
        where[key] = element

    def _item(self, name: str, path: list[str]) -> Model:
        """The data set that the last attribute of a path is in: made where there is none yet."""
        where = self._identifier
        for tag in path[:-1]:
            if vr_of(int(tag, 16)) not in ("SQ", "UN"):
                raise bad_key(name, "goes into what is no sequence")
            element = where.get(tag)
            if not (element and element.get("Value")):
                where[tag] = element = {"vr": "SQ", "Value": [{}]}
            where = element["Value"][0]
        return where

    def _is_within(self, tag: str) -> bool:
        """Whether entities of the search have an attribute."""
        at = LEVELS.index(self._target.level)
        return tag in _ANY_LEVEL or LEVELS.index(level_of(tag)) <= at

    def _ignore(self, name: str, why: str) -> None:
        if len(self.warnings) < MAXIMUM_WARNINGS:
            what = f"The parameter {name}" if _IN_WARNINGS.fullmatch(name) else "A parameter"
            self.warnings.append(f"{what} {why}, and was ignored.")

    # What it comes to

    def has_timezone(self) -> bool:
        """Whether dates and times of the search have a time zone, which those of entities are adjusted to."""
        stated = texts_of(self._identifier, TIMEZONE_OFFSET)
        if not stated:
            return False
        if len(stated) > 1 or utc_offset_minutes(stated[0]) is None:
            raise bad_key(self._names[format_tag(TIMEZONE_OFFSET)], "must be an offset such as +0100")
        return True

    def has_times(self) -> bool:
        """Whether there is anything to be combined with a date; what is not needed is not negotiated with a PACS."""
        return any(
            vr_of(int(tag, 16)) == "TM" and "Value" in element for tag, element in self._identifier.items()
        )

    def search(self, matching: MatchingOptions) -> Search:
        always, if_known, returned = _returned(self._target.levels())
        asked = dict.fromkeys([*self._identifier, *(path[0] for path in self._included)])
        keys = dict(self._identifier)
        self._return([path for path in self._included if int(path[0], 16) not in _OURS])
        identifier = returned | self._identifier
        compiled = self._checked(keys, identifier, matching)
        query = Query(
            self._target.level,
            {key: identifier[key] for key in sorted(identifier)},
            matching=matching,
            offset=self._numbers.get("offset", 0),
            all_attributes=self._all,
            compiled=compiled,
        )
        return Search(query, always, tuple(asked), if_known, self._numbers.get("limit"), tuple(self.warnings))

    def _return(self, paths: list[list[str]]) -> None:
        """Put what was asked for into the identifier: a whole sequence, or attributes in it."""
        for path in sorted(paths, key=len):  # the whole of a sequence before what is in it
            where = self._identifier
            for tag in path[:-1]:
                element = where.setdefault(tag, {"vr": "SQ", "Value": [{}]})
                if "Value" not in element:
                    break  # the whole of it was asked for before
                where = element["Value"][0]
            else:
                where.setdefault(path[-1], {"vr": vr_of(int(path[-1], 16))})

    def _checked(self, keys: Model, identifier: Model, matching: MatchingOptions) -> Matcher:
        """Refuse values that have no meaning, or no encoding, whatever the backend makes of them. keys: what of the
        identifier has any."""
        try:
            compiled = compile_query(identifier, matching)
            encode_data_set(keys, EXPLICIT_VR_LITTLE_ENDIAN)
        except IdentifierError as error:
            name = shown(self._name_of(format_tag(error.tag)))
            raise HTTPError(400, f"{name}: {error.problem.value}") from error
        except ModelError as error:
            tag = error.key.rpartition(".")[2][:8]
            raise bad_key(self._name_of(tag), f"has a value that is no {vr_of(int(tag, 16))}") from error
        return compiled

    def _name_of(self, tag: str) -> str:
        """How an attribute was spelled, wherever it is."""
        return next((name for path, name in self._names.items() if tag in path.split(".")), tag)


@cache
def _returned(levels: tuple[Level, ...]) -> tuple[tuple[str, ...], tuple[str, ...], Model]:
    """What answers have always and where it is known, when attributes of these levels are answered; and an identifier
    that asks for it, which is not to be changed."""
    always = tuple(dict.fromkeys(tag for level in levels for tag in ALWAYS[level]))
    if_known = tuple(dict.fromkeys(tag for level in levels for tag in IF_KNOWN[level]))
    identifier: Model = {tag: {"vr": vr_of(int(tag, 16))} for tag in (*always, *if_known)}
    if _REQUEST_ATTRIBUTES in identifier:
        identifier[_REQUEST_ATTRIBUTES]["Value"] = [dict(_REQUEST_IDS)]
    return always, if_known, identifier


def _path(name: str) -> list[str] | None:
    """Tags from the outermost sequence in; None for what is no attribute."""
    parts = name.split(".")
    if len(parts) > MAXIMUM_NESTING:
        return None
    tags = [attribute_tag(part) for part in parts]
    return [format_tag(tag) for tag in tags if tag is not None] if None not in tags else None


def _element(name: str, tag: int, values: list[str]) -> Element:
    vr = vr_of(tag)
    if vr == "SQ":
        if any(values):
            raise bad_key(name, "is a sequence: expected a path to an attribute in it")
        return {"vr": vr}
    if vr in _NO_COMMA:
        values = [part.strip() for text in values for part in text.split(",")]
    if vr == "DT" or tag == TIMEZONE_OFFSET:
        values = [_LOST_PLUS.sub("+", text) for text in values]
    found = [text for text in values if text]
    return key_element(name, tag, found or None)


def _one(name: str, values: list[str]) -> Iterator[str]:
    """The one value, none when it is empty."""
    if len(set(values)) > 1:
        raise bad_key(name, "is given twice, with different values")
    yield from filter(None, values[:1])


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise bad_key(name, "must be a whole number from 0")
    return int(text)


_LOST_PLUS: Final = re.compile(r" (?=\d{4}(?:-|$))", re.ASCII)
"""Of an offset from UTC, by clients that do not encode it: in a form it is a space."""

_FLAGS: Final[Mapping[str, Any]] = {"true": True, "false": False}


def _flag(name: str, text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise bad_key(name, "must be true or false")
    return bool(_FLAGS[text.lower()])
