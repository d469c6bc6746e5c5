"""Identifiers for a PACS: what a Query or a Retrieve asks for, in the information model that the PACS accepted.

A PACS has Patient Root, Study Root, both, or the retired Patient/Study Only (PS3.4 §C.6). Which of them serves a
question depends on its level alone; the Query/Retrieve Level and the unique keys that go into the Identifier depend on
the model (PS3.4 §C.4.1.1.3, §C.4.2.1.4). So each function here makes either a list of SOP classes in order of
preference, or an `Identifier` that is encoded once the context is known.

No I/O. Called by `dicom_scu` and `survey`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harmony.archive.comparable import WILDCARD_VRS
from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.archive.matcher import MatchingOptions
from harmony.dicom.json_model import (
    Element,
    Model,
    encode_data_set,
    tag_of,
    text_of,
    texts_of,
    values_of,
    vr_of,
)
from harmony.dimse.information_model import (
    PATIENT_ROOT,
    PATIENT_STUDY_ONLY,
    STUDY_ROOT,
    Identifier,
    InformationModel,
    Proposal,
    propose_query,
)
from harmony.gateway.backend import Query
from harmony.ul.items import ExtendedNegotiation
from harmony.ul.negotiation import PresentationContext

__all__ = [
    "LEVELS",
    "answer",
    "extended_retrieval",
    "is_empty",
    "key_elements",
    "matches_keys",
    "propose_questions",
    "query_identifier",
    "query_models",
    "retrieve_identifier",
    "retrieve_level",
    "retrieve_models",
    "tag_of_key",
]

MODELS: Final = (STUDY_ROOT, PATIENT_ROOT, PATIENT_STUDY_ONLY)
_MODEL_OF: Final = {uid: model for model in MODELS for uid in (model.find, model.move, model.get)}

BY_DEFAULT: Final = MatchingOptions()

LEVELS: Final = tuple(Level)
"""From the root down."""

_CHARACTER_SET: Final = 0x00080005
_LEVEL_KEY: Final = "00080052"
_TIMEZONE_OFFSET: Final = "00080201"
_NOT_KEYS: Final = frozenset({"00080052", "00080053", "00080054", "00080056"})
"""Level, view, Retrieve AE Title, Instance Availability: ours to state, negotiated, or only in answers."""
_UNIQUE_KEYS: Final = {
    Level.PATIENT: ("00100020", "LO"),
    Level.STUDY: ("0020000D", "UI"),
    Level.SERIES: ("0020000E", "UI"),
    Level.IMAGE: ("00080018", "UI"),
}
_SOP_CLASS_KEY: Final = ("00080016", "UI")

_ALL_ATTRIBUTES: Final = {
    Level.PATIENT: "00100010 00100020 00100021 00100030 00100032 00100040 00101000 00102160 00104000",
    Level.STUDY: """
        00080020 00080030 00080050 00080061 00080062 00080090 00081030 00081060 00081080 00101010 00101020
        00101030 00102180 001021B0 00200010 00201206 00201208
    """,
    Level.SERIES: """
        00080021 00080031 00080060 00080070 00080080 0008103E 00081040 00081050 00081070 00081090 00180015 00181030
        00200011 00200052 00200060 00201209 00400244 00400245 00400253 00400254
    """,
    Level.IMAGE: """
        00080008 00080012 00080013 00080022 00080023 00080032 00080033 00083002 00200012 00200013 00280002 00280004
        00280008 00280010 00280011 00280030 00280100 00280101 00280102 00280103 00281050 00281051
    """,
}
"""Attributes of each level that PACS answer with: the keys of PS3.4 Tables C.6-1 to C.6-4, and what of PS3.3 is in
most images. C-FIND has no way to ask for all there are."""


def _models(
    level: Level, *, patient_root: bool, models: Sequence[InformationModel]
) -> list[InformationModel]:
    ordered = sorted(models, key=lambda model: (model is PATIENT_ROOT) != patient_root)
    return [model for model in ordered if level.value in model.levels]


def query_models(level: Level, *, patient_root: bool) -> list[InformationModel]:
    """The models in which a level can be queried, best first: Study Root unless Patient Root is asked for."""
    both = _models(level, patient_root=patient_root, models=(STUDY_ROOT, PATIENT_ROOT))
    return both + _models(level, patient_root=False, models=(PATIENT_STUDY_ONLY,))


def retrieve_models(level: Level, *, patient_root: bool) -> list[InformationModel]:
    """The same for C-GET and C-MOVE."""
    return _models(level, patient_root=patient_root, models=(STUDY_ROOT, PATIENT_ROOT))


# Queries


def query_identifier(query: Query) -> Identifier:
    """The keys of a query with what the model wants besides, in the character set that the query states.

    Encoding raises ModelError for what has no encoding.
    """
    keys = {key: _defined(key, each) for key, each in query.identifier.items() if key not in _NOT_KEYS}
    character_set = "\\".join(texts_of(query.identifier, _CHARACTER_SET)) or None

    def encode(context: PresentationContext) -> bytes:
        wanted = [(key, {"vr": vr}) for key, vr in _unique_keys(query.level, context)]
        if query.all_attributes:
            wanted += [(key, {"vr": vr_of(int(key, 16))}) for key in _all_attributes(query.level)]
        identifier: Model = {**dict(wanted), **keys, _LEVEL_KEY: {"vr": "CS", "Value": [query.level.value]}}
        if "Value" not in identifier.get(_TIMEZONE_OFFSET, ()):
            identifier.pop(_TIMEZONE_OFFSET, None)  # without value it would be that of the dates in here
        return encode_data_set(identifier, context.transfer_syntax, character_set=character_set)

    return encode


def _all_attributes(level: Level) -> list[str]:
    """Of the level and those above, that of a patient included."""
    down_to = LEVELS[: LEVELS.index(level) + 1]
    return [key for each in down_to for key in _ALL_ATTRIBUTES[each].split()]


def _defined(key: str, element: Element) -> Element:
    """`*` alone is universal matching where wild cards are defined; where they are not, as for a UID, that is an empty
    key (PS3.4 §C.2.2.2.3), and people write `*` all the same."""
    vr = str(element.get("vr") or vr_of(tag_of(key)))
    return {"vr": vr} if element.get("Value") == ["*"] and vr not in WILDCARD_VRS else element


def _unique_keys(level: Level, context: PresentationContext) -> list[tuple[str, str]]:
    """Those of the level and the ones above, as far as the model has them. An instance cannot be retrieved without its
    SOP class either."""
    down_to = LEVELS[: LEVELS.index(level) + 1]
    model = _MODEL_OF[context.abstract_syntax]
    keys = [_UNIQUE_KEYS[each] for each in down_to if each.value in model.levels]
    return [*keys, _SOP_CLASS_KEY] if level is Level.IMAGE else keys


def answer(match: Model, query: Query) -> Model:
    """A match with the unique keys above its level where the PACS left them out, as the query has only one value."""
    missing: Model = {_LEVEL_KEY: {"vr": "CS", "Value": [query.level.value]}}
    for level in LEVELS[: LEVELS.index(query.level)]:
        key, vr = _UNIQUE_KEYS[level]
        values = values_of(query.identifier, int(key, 16))
        if len(values) == 1 and values[0] and not _is_wild(values[0]):
            missing[key] = {"vr": vr, "Value": values}
    if all((match.get(key) or {}).get("Value") for key in missing):
        return match
    completed = match | {
        key: each for key, each in missing.items() if not (match.get(key) or {}).get("Value")
    }
    return {key: completed[key] for key in sorted(completed)}


def _is_wild(value: object) -> bool:
    return not isinstance(value, str) or "*" in value or "?" in value


# Retrieves


def retrieve_level(keys: UniqueKeys) -> Level:
    """The level of the deepest key: what a retrieve is about, whatever it says itself. A level below it has no unique
    key, one above would bring more than was asked for."""
    return max(
        (level for level, values in _values(keys).items() if values is not None),
        key=LEVELS.index,
        default=Level.PATIENT,
    )


def retrieve_identifier(keys: UniqueKeys) -> Identifier:
    """Level and unique keys, nothing else (PS3.4 §C.4.2.1.4.1). In Study Root there is no Patient ID."""
    level = retrieve_level(keys)

    def encode(context: PresentationContext) -> bytes:
        model = _MODEL_OF[context.abstract_syntax]
        identifier: Model = {_LEVEL_KEY: {"vr": "CS", "Value": [level.value]}}
        for each, values in _values(keys).items():
            if values is not None and each.value in model.levels:
                key, vr = _UNIQUE_KEYS[each]
                identifier[key] = {"vr": vr, "Value": list(values)}
        return encode_data_set(identifier, context.transfer_syntax)

    return encode


def _values(keys: UniqueKeys) -> dict[Level, Sequence[str] | None]:
    return {
        Level.PATIENT: keys.patient_ids,
        Level.STUDY: keys.study_instance_uids,
        Level.SERIES: keys.series_instance_uids,
        Level.IMAGE: keys.sop_instance_uids,
    }


def is_empty(keys: UniqueKeys) -> bool:
    """Nothing can match: one of the keys has no values."""
    return any(values is not None and not values for values in _values(keys).values())


def key_elements(keys: UniqueKeys) -> Model:
    """The keys as elements of an identifier."""
    elements: Model = {}
    for level, values in _values(keys).items():
        if values is not None:
            key, vr = _UNIQUE_KEYS[level]
            elements[key] = {"vr": vr, "Value": list(values)}
    return {key: elements[key] for key in sorted(elements)}


def matches_keys(match: Model, keys: UniqueKeys) -> bool:
    """Whether an answer has one of the values of each key."""
    for level, values in _values(keys).items():
        if values is not None and text_of(match, int(_UNIQUE_KEYS[level][0], 16)) not in values:
            return False
    return True


# Proposals


def propose_questions(*, relational: bool, matching: MatchingOptions = BY_DEFAULT) -> Proposal:
    """Everything that is not an instance on one association: FIND and MOVE in every model, and Verification.

    relational, matching: what is asked for by extended negotiation (PS3.4 §C.5.1). A PACS that does not know it says
    nothing, and does without.
    """
    find = bytes(
        (
            relational,
            matching.combined_date_time,
            matching.fuzzy_names,
            matching.timezone_adjustment,
            0,  # Query/Retrieve View
            matching.empty_value_matching,
            matching.multiple_value_matching,
        )
    ).rstrip(b"\0")
    finds = [model.find for model in MODELS]
    moves = [model.move for model in (STUDY_ROOT, PATIENT_ROOT)]
    extended = [ExtendedNegotiation(uid, find) for uid in finds] if find else []
    return propose_query(
        [*finds, *moves], extended_negotiations=[*extended, *extended_retrieval(moves, relational=relational)]
    )


def extended_retrieval(sop_class_uids: Sequence[str], *, relational: bool) -> list[ExtendedNegotiation]:
    """For MOVE or GET SOP classes (PS3.4 §C.5.2)."""
    return [ExtendedNegotiation(uid, b"\1") for uid in sop_class_uids] if relational else []


def tag_of_key(key: str) -> int:
    """Of the key of a ModelError, `00400100[0].00080060`: the outermost attribute; 0 for what is none."""
    try:
        return int(key[:8], 16)
    except ValueError:
        return 0
