"""The Native DICOM Model, DICOM as XML (PS3.19 §A.1), made of DICOM JSON models.

    <NativeDicomModel xmlns="…" xml:space="preserve">
      <DicomAttribute keyword="PatientID" tag="00100020" vr="LO"><Value number="1">P1</Value></DicomAttribute>

Without blanks between elements, as those would count. A private attribute is written with its creator and 00 for the
block that the creator has in this data set; without a creator it has the tag that it has. Characters that XML 1.0 does
not know are replaced by U+FFFD. Numbers are written as JSON has them, which need not be how the data set has them.

Not here: reading it. Called by `harmony.gateway.metadata_bodies`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from harmony.dicom.dictionary import keyword_of
from harmony.dicom.json_values import PERSON_NAME_GROUPS, Model

__all__ = ["NAMESPACE", "encode_native_model"]

NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
NAME_COMPONENTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
"""In the order of PS3.5 §6.2.1.1."""

_HEAD: Final = '<?xml version="1.0" encoding="UTF-8"?>'
_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]").sub
_LINE_ENDS: Final = {"\r": "&#13;"}
"""Of which a reader would make line feeds (XML 1.0 §2.11)."""


def encode_native_model(model: Model) -> bytes:
    """One data set as a document in UTF-8."""
    content = "".join(_data_set(model))
    return f'{_HEAD}<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">{content}</NativeDicomModel>'.encode()


def _data_set(model: Mapping[str, Any]) -> Iterator[str]:
    for tag, element in model.items():
        yield f"<DicomAttribute {_identity(model, tag)} vr={quoteattr(element['vr'])}>"
        if "BulkDataURI" in element:
            yield f"<BulkData uri={quoteattr(_allowed(element['BulkDataURI']))}/>"
        elif "InlineBinary" in element:
            yield f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
        for number, value in enumerate(element.get("Value") or (), 1):
            yield from _value(element["vr"], number, value)
        yield "</DicomAttribute>"


def _identity(model: Mapping[str, Any], tag: str) -> str:
    number = int(tag, 16)
    creator = _private_creator(model, number)
    if creator:
        return f'tag="{tag[:4]}00{tag[6:]}" privateCreator={quoteattr(_allowed(creator))}'
    keyword = keyword_of(number)
    return f'keyword="{keyword}" tag="{tag}"' if keyword else f'tag="{tag}"'


def _private_creator(model: Mapping[str, Any], tag: int) -> str:
    """Of a private attribute that is none itself (PS3.5 §7.8.1)."""
    block = tag >> 8 & 0xFF
    if not tag & 0x10000 or block < 0x10:
        return ""
    values = model.get(f"{tag >> 16:04X}{block:04X}", {}).get("Value") or [""]
    return values[0] if isinstance(values[0], str) else ""


def _value(vr: str, number: int, value: Any) -> Iterator[str]:
    if vr == "SQ":
        yield f'<Item number="{number}">'
        yield from _data_set(value or {})
        yield "</Item>"
    elif vr == "PN":
        yield f'<PersonName number="{number}">'
        yield from _person_name(value or {})
        yield "</PersonName>"
    else:
        text = "" if value is None else value if isinstance(value, str) else repr(value)
        yield f'<Value number="{number}">{_text(text)}</Value>'


def _person_name(name: Mapping[str, str]) -> Iterator[str]:
    for group in PERSON_NAME_GROUPS:
        if group in name:
            yield f"<{group}>"
            for component, text in zip(NAME_COMPONENTS, name[group].split("^"), strict=False):
                if text:
                    yield f"<{component}>{_text(text)}</{component}>"
            yield f"</{group}>"


def _text(text: str) -> str:
    return escape(_allowed(text), _LINE_ENDS)


def _allowed(text: str) -> str:
    return _NOT_IN_XML("\ufffd", text)
