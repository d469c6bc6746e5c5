"""The DICOM JSON Model (PS3.18 Annex F) as the program's one form of decoded attributes.

A model is a plain dict by tag, `{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "DOE^JOHN"}]}}`: identifiers
of queries, their answers, the header of a stored object in the index, bodies of DICOMweb. Whatever made it,
it obeys §F.2: upper-case keys in ascending order, `vr` always, nothing else when empty, Unicode strings
without padding, `null` for an empty value among others.

This module is the door: decode, encode, names of attributes, and how to look into a model. The work is done
in `data_set_decoder`, `element_header`, `json_values`, `data_set_encoder`, `dictionary` and `character_set`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmony.dicom.data_set_decoder import PIXEL_DATA, DataSetError, decode_data_set
from harmony.dicom.data_set_encoder import ModelError, encode_data_set
from harmony.dicom.dictionary import format_tag, tag_of, vr_of
from harmony.dicom.json_values import PERSON_NAME_GROUPS, Element, Model

__all__ = [
    "PERSON_NAME_GROUPS",
    "PIXEL_DATA",
    "DataSetError",
    "Element",
    "Model",
    "ModelError",
    "decode_data_set",
    "encode_data_set",
    "format_tag",
    "tag_of",
    "text_of",
    "texts_of",
    "values_of",
    "vr_of",
]


def values_of(model: Mapping[str, Any], tag: int) -> list[Any]:
    """Return the values of an attribute, nulls included; empty when it is absent or empty, or has something else than a
    list, as JSON of others may."""
    values = model.get(f"{tag:08X}", {}).get("Value")
    return values if isinstance(values, list) else []


def texts_of(model: Mapping[str, Any], tag: int) -> list[str]:
    """Return the values of an attribute as DICOM writes them: numbers in decimal, names with `=`, null as ""."""
    return [_text(value) for value in values_of(model, tag)]


def text_of(model: Mapping[str, Any], tag: int) -> str:
    """Return the first value of an attribute as DICOM writes it, "" when there is none."""
    values = values_of(model, tag)
    return _text(values[0]) if values else ""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "=".join(str(value.get(group) or "") for group in PERSON_NAME_GROUPS).rstrip("=")
    return "" if value is None else str(value)
