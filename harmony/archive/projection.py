"""What the answer to a query contains (PS3.4 §C.4.1.1.3.2, §C.2.2.2.6).

Exactly the attributes that the identifier has, without value where the entity has none, because there are
clients that fail on a missing one; of a sequence the items that match, each with the attributes asked for in
the key's item, or all of it when the key has no item. Besides them what every answer has: the level, the unique
keys down to it, and where to retrieve from. Private attributes are answered where the identifier has them,
whichever block the entity keeps them in.

(0008,0005) is not in an answer: models are Unicode, and the encoder says what it chose. Called per match, with
everything prepared once per query.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmony.archive.matching import Matcher, private_attribute
from harmony.dicom.json_model import Element, Model, format_tag

__all__ = ["Projection"]

_QUERY_RETRIEVE_LEVEL = 0x00080052
_RETRIEVE_AE_TITLE = 0x00080054
_INSTANCE_AVAILABILITY = 0x00080056
# About the answer, not attributes of an entity: the character set, and what the negotiated view is.
_NEVER = frozenset({0x00080005, 0x00080053})

_PATIENT_ID, _STUDY, _SERIES = 0x00100020, 0x0020000D, 0x0020000E
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
# PS3.4 §C.6.1.1, §C.6.2.1. The SOP class is an optional key; whoever retrieves by instance needs it.
UNIQUE_KEYS: Mapping[str, tuple[int, ...]] = {
    "PATIENT": (_PATIENT_ID,),
    "STUDY": (_STUDY,),
    "SERIES": (_STUDY, _SERIES),
    "IMAGE": (_STUDY, _SERIES, _SOP_CLASS, _SOP_INSTANCE),
}
_VRS = {_PATIENT_ID: "LO"}  # the other unique keys are UI


class Projection:
    """Makes answers from entities, for one query."""

    def __init__(
        self,
        matcher: Matcher,
        *,
        level: str | None = None,
        patient_root: bool = False,
        retrieve_ae_title: str = "",
        instance_availability: str = "",
    ) -> None:
        r"""matcher: of the identifier, complete (not `without` anything).

        level: PATIENT, STUDY, SERIES or IMAGE; its unique keys and those above are added. None (QIDO-RS, worklist)
            adds nothing, not even (0008,0052).
        patient_root: the Patient ID is one of the unique keys.
        retrieve_ae_title, instance_availability: stated in (0008,0054) and (0008,0056) unless empty; several AE
            titles are separated by `\`.
        """
        self._constants: Model = {}
        wanted: dict[int, tuple[str, Matcher | None]] = {
            tag: (vr, items) for tag, vr, items in matcher.requested if tag not in _NEVER
        }
        if level is not None:
            tags = UNIQUE_KEYS[level] + ((_PATIENT_ID,) if patient_root else ())
            wanted = {tag: (_VRS.get(tag, "UI"), None) for tag in tags} | wanted
            self._constants[format_tag(_QUERY_RETRIEVE_LEVEL)] = {"vr": "CS", "Value": [level]}
        if retrieve_ae_title:
            titles = retrieve_ae_title.split("\\")
            self._constants[format_tag(_RETRIEVE_AE_TITLE)] = {"vr": "AE", "Value": titles}
        if instance_availability:
            availability: Element = {"vr": "CS", "Value": [instance_availability]}
            self._constants[format_tag(_INSTANCE_AVAILABILITY)] = availability
        self._attributes = _Attributes(wanted, matcher.private_creators)

    def project(self, entity: Mapping[str, Any]) -> Model:
        """Return the answer for an entity. Elements are shared with the entity, not copied."""
        answer = self._attributes.of(entity)
        if self._constants:
            answer |= self._constants
            answer = {key: answer[key] for key in sorted(answer)}
        return answer


class _Attributes:
    """The attributes to return of a data set or an item."""

    def __init__(
        self, wanted: Mapping[int, tuple[str, Matcher | None]], private_creators: Mapping[int, str]
    ) -> None:
        self._plain: list[tuple[str, Element]] = []
        self._sequences: list[tuple[str, Matcher, _Attributes]] = []
        self._private: list[tuple[int, str]] = []
        self._creators = private_creators
        for tag in sorted(wanted):
            vr, items = wanted[tag]
            creator = private_creators.get(tag & 0xFFFF0000 | tag >> 8 & 0xFF) if tag & 0x10000 else None
            if creator is not None:
                self._private.append((tag, creator))
            elif items is not None:
                nested = {tag: (vr, matcher) for tag, vr, matcher in items.requested}
                self._sequences.append((format_tag(tag), items, _Attributes(nested, items.private_creators)))
            else:
                self._plain.append((format_tag(tag), {"vr": vr}))

    def of(self, entity: Mapping[str, Any]) -> Model:
        model: Model = {key: entity.get(key) or empty for key, empty in self._plain}
        if not self._sequences and not self._private:
            return model
        for key, matcher, attributes in self._sequences:
            items = (entity.get(key) or {}).get("Value") or ()
            answers = [attributes.of(item) for item in items if item is not None and matcher.matches(item)]
            model[key] = {"vr": "SQ", "Value": answers} if answers else {"vr": "SQ"}
        for tag, creator in self._private:
            stored = private_attribute(entity, tag, creator)
            if stored is not None and (element := entity.get(format_tag(stored))):
                model[format_tag(tag)] = element
                block = tag & 0xFFFF0000 | tag >> 8 & 0xFF
                model[format_tag(block)] = {"vr": "LO", "Value": [creator]}
        return {key: model[key] for key in sorted(model)}
