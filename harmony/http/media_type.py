"""Media types with their parameters, as Content-Type carries them (RFC 9110 §8.3.1, §5.6.6).

    parse_media_type('multipart/related; type="application/dicom"; boundary=x')

Not here: Accept with its weights, and the registry of types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MediaType", "parse_media_type"]

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TYPE = re.compile(rf"[ \t]*({_TOKEN})/({_TOKEN})[ \t]*")
# A value that is no token and not quoted, such as type=application/dicom, is what many clients send.
_PARAMETER = re.compile(rf';[ \t]*(?:({_TOKEN})=(?:"((?:[^"\\]|\\.)*)"|([^ \t;"\\]*)))?[ \t]*', re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MediaType:
    """`essence` is type/subtype in lower case; names of parameters are in lower case, values as sent."""

    essence: str
    parameters: Mapping[str, str]


def parse_media_type(value: str) -> MediaType:
    """Raises ValueError, whose message does not quote the value, when it is none."""
    matched = _TYPE.match(value)
    if matched is None:
        raise ValueError("not a media type: expected type/subtype")
    essence = f"{matched[1]}/{matched[2]}".lower()
    parameters: dict[str, str] = {}
    at = matched.end()
    while at < len(value):
        matched = _PARAMETER.match(value, at)
        if matched is None:
            raise ValueError(
                f"parameters of {essence} cannot be read: expected name=value after each semicolon"
            )
        name, quoted, plain = matched.groups()
        if name is not None:
            text = plain if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
            if parameters.setdefault(name.lower(), text) != text:
                raise ValueError(f"parameter {name.lower()} of {essence} is given twice")
        at = matched.end()
    return MediaType(essence, parameters)
