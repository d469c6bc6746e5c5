"""Query keys as people and programs write them in JSON, made into the DICOM JSON model (PS3.18 Annex F).

    {"patient_name": "DOE*", "0020,000D": null, "StudyDate": ["20240101-"], "00080060": {"vr": "CS", "Value": ["CT"]}}

Every error is an HTTPError 400 that names the key and what is allowed, never a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harmony.dicom.json_model import (
    PERSON_NAME_GROUPS,
    Element,
    Model,
    ModelError,
    encode_data_set,
    format_tag,
    tag_of,
    vr_of,
)
from harmony.dicom.vr import KNOWN_VRS
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN
from harmony.http import HTTPError

__all__ = ["attribute_tag", "bad_key", "check_encoding", "json_object", "key_element", "key_tag", "shown"]

MAXIMUM_NESTING = 16
"""Sequences inside sequences; identifiers have one or two."""

_VRS = frozenset(vr.decode() for vr in KNOWN_VRS)
_SINGLE_VALUED = frozenset(("LT", "ST", "UR", "UT"))  # where a backslash is a character (PS3.5 §6.2)


def key_element(name: str, tag: int, value: Any, depth: int = 0) -> Element:
    """The element of the DICOM JSON model for one attribute, whatever form its value came in."""
    if depth > MAXIMUM_NESTING:
        raise bad_key(name, f"sequences are nested deeper than {MAXIMUM_NESTING} levels")
    vr = vr_of(tag)
    if isinstance(value, Mapping) and value.keys() <= {"vr", "Value", "InlineBinary", "BulkDataURI"}:
        vr = value.get("vr", vr)
        if not isinstance(vr, str) or vr not in _VRS:
            raise bad_key(name, "vr is none of PS3.5 Table 6.2-1")
        if "InlineBinary" in value or "BulkDataURI" in value:
            raise bad_key(name, "binary values cannot be matched: expected Value")
        value = value.get("Value")
    values = value if isinstance(value, list) else [value]
    if vr == "SQ":
        items = [_item(name, each, depth) for each in values if each not in (None, "")]
        return {"vr": vr, "Value": items} if items else {"vr": vr}
    found = [text for each in values for text in _values(name, vr, each)]
    if all(each is None for each in found):
        return {"vr": vr}
    return {"vr": vr, "Value": found}


def _item(name: str, value: Any, depth: int) -> Model:
    model: Model = {}
    for key, inner in json_object(value, name).items():
        tag = key_tag(key)
        model[format_tag(tag)] = key_element(key, tag, inner, depth + 1)
    return model


def _values(name: str, vr: str, value: Any) -> Iterator[Any]:
    """The values that one JSON value stands for: text may hold several, divided by backslashes."""
    if isinstance(value, str):
        for text in [value] if vr in _SINGLE_VALUED else value.split("\\"):
            # "*" as a UID is how users say "any", which PS3.4 writes as no value.
            unrestricted = not text or (vr == "UI" and text == "*")
            yield None if unrestricted else _person_name(text) if vr == "PN" else text
    elif value is None:
        yield None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield _person_name(str(value)) if vr == "PN" else value
    elif isinstance(value, Mapping) and vr == "PN" and value.keys() <= set(PERSON_NAME_GROUPS):
        if not all(text is None or isinstance(text, str) for text in value.values()):
            raise bad_key(name, "has a person name whose groups are not text")
        yield {group: value[group] for group in PERSON_NAME_GROUPS if value.get(group)} or None
    else:
        allowed = "text, a number, null, or a list of them"
        raise bad_key(name, f"must be {'a person name, ' if vr == 'PN' else ''}{allowed}")


def _person_name(text: str) -> dict[str, str] | None:
    groups = zip(PERSON_NAME_GROUPS, text.split("=", 2), strict=False)
    return {name: group for name, group in groups if group} or None


def check_encoding(identifier: Model) -> None:
    """Refuse what cannot be sent."""
    try:
        encode_data_set(identifier, EXPLICIT_VR_LITTLE_ENDIAN)
    except ModelError as error:
        raise HTTPError(400, str(error)) from error


def json_object(value: Any, name: str = "") -> Mapping[str, Any]:
    """A JSON object; an array of one, as application/dicom+json has it, stands for that."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Mapping):
        raise HTTPError(400, f"{shown(name) if name else 'the request body'} must be a JSON object")
    return value


def key_tag(name: str) -> int:
    tag = attribute_tag(name)
    if tag is None:
        raise HTTPError(
            400,
            f"{shown(name)} is not known: expected operation, level, query, destination, limit, or a DICOM attribute "
            "as keyword, keyword_in_snake_case, GGGGEEEE or gggg,eeee",
        )
    return tag


def attribute_tag(name: str) -> int | None:
    """The tag of an attribute that a data set can have, None for what is no name of one."""
    try:
        tag = tag_of(name)
    except ValueError:
        return None
    if tag >> 16 in (0x0000, 0x0002, 0xFFFE) or tag & 0xFFFF == 0:
        raise bad_key(name, "is no attribute of a data set")
    return tag


def shown(name: str) -> str:
    return repr(name[:64])


def bad_key(name: str, problem: str) -> HTTPError:
    return HTTPError(400, f"{shown(name)} {problem}")
