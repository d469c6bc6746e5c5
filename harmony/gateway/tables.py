"""From a TOML table to a struct, one key at a time, so that every wrong key is reported and not only the first.

msgspec checks and converts each value against the field's type; the words are ours: what came and what is allowed,
the latter derived from the same type. Unknown keys are warnings with the nearest known key. For a field of type
`Secret` the key `<name>_file` is accepted as well and names a file that holds the secret.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, inspect

from harmony.gateway.address_range import AddressRange
from harmony.gateway.config import Secret, Table
from harmony.gateway.sources import Place, Report, Substituted, hint, show
from harmony.gateway.written import Written

TableT = TypeVar("TableT", bound=Table)

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
PositiveInt = Annotated[int, Meta(ge=1, le=2**31 - 1)]
ByteCount = Annotated[int, Meta(ge=0, le=2**62)]
AETitle = Annotated[
    str,
    # PS3.5 Table 6.2-1, AE: default character repertoire without backslash and control characters. Spaces around it
    # do not count, so they are not allowed here: two spellings of one title would compare as different.
    Meta(
        pattern=r"^(?! )[ -\[\]-~]{1,16}(?<! )\Z",
        extra={
            "allowed": "an AE title: 1 to 16 printable ASCII characters, no backslash, no space around it"
        },
    ),
]
Host = Annotated[str, Meta(pattern=r"^[!-~]{1,255}\Z", extra={"allowed": "a host name or IP address"})]
TLSProfile = Literal["bcp195", "bcp195-modified", "BCP 195 RFC 8996, 9325", "Modified BCP 195 RFC 8996, 9325"]
"""PS3.15 B.12 and B.13, in short and by the names that the standard has for them."""
UID = Annotated[
    str,
    Meta(pattern=r"^(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*\Z", extra={"allowed": "a UID: 1 to 64 of 0-9 and ."}),
]
URLPath = Annotated[
    str,
    Meta(
        pattern=r"^(?!(.*/)?\.\.?(/|\Z))[!\"$-.0->@-\[\]-~/]{0,255}\Z",
        extra={"allowed": 'a URL path such as "/jmix", without spaces, "?", "#", backslash or ".." in it'},
    ),
]

AddressRanges = tuple[
    Annotated[AddressRange, Meta(extra={"allowed": "an IP address or a network such as 192.0.2.0/24"})], ...
]
WebURL = Annotated[
    str,
    Meta(
        pattern=r"^https?://[0-9A-Za-z._:\[\]-]{1,255}(/[!$&'()*+,;=:@%0-9A-Za-z._~/-]{0,255})?\Z",
        extra={"allowed": 'a URL such as "https://pacs.example.org/dicomweb", without "?" and "#"'},
    ),
]
Origin = Annotated[
    str,
    # As browsers send it, which compares by characters: no path, and no port that is the scheme's own (RFC 6454 §6.2).
    Meta(
        pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[0-9a-z._:\[\]-]{1,255})\Z",
        extra={
            "allowed": 'an origin such as "https://viewer.example.org", in lower case without a path, or "*"'
        },
    ),
]

UNREADABLE = Secret("(unreadable)")
"""Stands for a secret whose error has been reported, so that it does not count as missing as well."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: object
    """The annotation."""
    allowed: str
    required: bool
    secret: bool
    single: type[Table] | None
    """The field is a table of its own."""
    many: type[Table] | None
    """The field is a table of such tables."""
    listed: type[Table] | None
    """The field is a list of such tables."""


def read_table(
    kind: type[TableT], value: object, place: Place, report: Report, *, options: Collection[str] = ()
) -> TableT | None:
    """Read a table into its struct, reporting everything that is wrong with it.

    A wrong value is replaced by the field's default, so that reading goes on; None when a field without a default is
    missing or wrong, or when the value is no table at all. Callers look at `report.failed` in the end.

    options: keys that would be right in the table's `options`, for a better hint.
    """
    if not isinstance(value, dict):
        report.error(
            Place(place.document, place.path[:-1]), place.path[-1], f"is {show(value)}, must be a table"
        )
        return None
    fields = fields_of(kind)
    values: dict[str, object] = {}
    spelled: dict[str, str] = {}
    for key, given in value.items():
        name = kind.aliases.get(key, key)
        field = fields.get(name) or fields.get(name.removesuffix("_file"))
        if key in kind.ignored:
            continue
        if key in kind.unsupported:
            report.warning(place, key, kind.unsupported[key])
        elif field is None or not (field.name == name or field.secret):
            if key in options:
                report.warning(place, key, f"belongs in [{place.child('options').table}], ignored here")
                continue
            known = [each for each in (*fields, *kind.aliases) if each not in kind.unsupported]
            report.warning(place, key, "is not a known key, ignored" + hint(key, known))
        elif field.name in spelled:
            other = spelled[field.name]
            if value[other] != given or field.name != name:
                report.error(
                    place, key, f"and {other} say the same thing in different words; keep one of them"
                )
        else:
            spelled[field.name] = key
            if field.name != name:
                _read_secret_file(field, given, values=values, place=place, key=key, report=report)
            else:
                _read_value(field, given, values=values, place=place, key=key, report=report)
    complete = True
    for field in fields.values():
        if field.required and field.name not in values:
            complete = False
            if field.name not in spelled:
                report.error(place, field.name, f"is missing, must be {field.allowed}")
    return kind(**values) if complete else None


def keys_of(kind: type[Table]) -> tuple[str, ...]:
    """Every key that a table of this kind accepts without a warning, canonical spellings first."""
    fields = fields_of(kind)
    files = tuple(f"{name}_file" for name, field in fields.items() if field.secret)
    return (*fields, *files, *kind.aliases)


def _read_value(
    field: _Field, given: object, *, values: dict[str, object], place: Place, key: str, report: Report
) -> None:
    if field.single is not None:
        table = read_table(field.single, given, place.child(key), report)
        if table is not None:
            values[field.name] = table
        return
    if field.many is not None and isinstance(given, dict):
        inner = place.child(key)
        tables = {
            name: read_table(field.many, each, inner.child(name), report) for name, each in given.items()
        }
        values[field.name] = {name: table for name, table in tables.items() if table is not None}
        return
    if field.listed is not None and isinstance(given, list):
        numbered = [
            read_table(field.listed, each, place.child(key, str(number)), report)
            for number, each in enumerate(given, start=1)
        ]
        if given or not field.required:
            values[field.name] = tuple(table for table in numbered if table is not None)
            return
    try:
        values[field.name] = convert(given, field.kind)
    except (msgspec.ValidationError, OverflowError):
        came = "is not valid" if field.secret else f"is {show(given)}"
        report.error(place, key, f"{came}, must be {field.allowed}")
        if field.secret:
            values[field.name] = UNREADABLE


def _read_secret_file(
    field: _Field, given: object, *, values: dict[str, object], place: Place, key: str, report: Report
) -> None:
    values[field.name] = UNREADABLE
    if not isinstance(given, str) or not given or "\0" in given:
        report.error(place, key, f"is {show(given)}, must be the path of a file")
        return
    try:
        text = Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        report.error(place, key, f'"{given}" cannot be read: {reason}')
        return
    values[field.name] = Secret(text.rstrip("\r\n"))


def convert(value: object, kind: object) -> object:
    """msgspec.convert with our own types; text from the environment may become a number or true/false."""
    strict = not isinstance(value, Substituted)
    plain = _plain(value)
    try:
        return msgspec.convert(plain, kind, strict=strict, dec_hook=_decode)
    except msgspec.ValidationError:
        # Closed sets are written in lower case; "INFO" for "info" is not worth an error.
        if isinstance(plain, str) and plain != plain.lower() and isinstance(_bare(kind), inspect.LiteralType):
            return msgspec.convert(plain.lower(), kind)
        raise


def _plain(value: object) -> object:
    match value:
        case Substituted():
            return str(value)
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {key: _plain(each) for key, each in value.items()}
    return value


def _decode(kind: type, value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("not a string")
    if kind is Secret:
        return Secret(value)
    if issubclass(kind, Written):
        return kind(value)
    if not value or any(character < " " for character in value):
        raise ValueError("not a path")
    return Path(value)


@functools.cache
def fields_of(kind: type[Table]) -> Mapping[str, _Field]:
    return {field.name: _describe(field) for field in msgspec.structs.fields(kind)}


def _describe(field: msgspec.structs.FieldInfo) -> _Field:
    info = inspect.type_info(field.type)
    bare = _unwrap(info)
    value = _unwrap(bare.value_type) if isinstance(bare, inspect.DictType) else None
    item = _unwrap(bare.item_type) if isinstance(bare, inspect.VarTupleType) else None
    return _Field(
        field.name,
        field.type,
        allowed=allowed(info),
        required=field.required,
        secret=isinstance(bare, inspect.CustomType) and bare.cls is Secret,
        single=_table_class(bare),
        many=_table_class(value),
        listed=_table_class(item),
    )


def _table_class(info: inspect.Type | None) -> type[Table] | None:
    return info.cls if isinstance(info, inspect.StructType) and issubclass(info.cls, Table) else None


def _bare(kind: object) -> inspect.Type:
    return _unwrap(inspect.type_info(kind))


def _unwrap(info: inspect.Type) -> inspect.Type:
    """Without annotations and without the None that only says that the key may be left out."""
    if isinstance(info, inspect.Metadata):
        return _unwrap(info.type)
    if isinstance(info, inspect.UnionType):
        types = [each for each in info.types if not isinstance(each, inspect.NoneType)]
        return _unwrap(types[0]) if len(types) == 1 else info
    return info


def allowed(info: inspect.Type) -> str:
    """What a type accepts, in words that fit after "must be"."""
    match info:
        case inspect.Metadata(extra={"allowed": str(text)}):
            return text
        case inspect.Metadata():
            return allowed(info.type)
        case inspect.UnionType():
            types = [each for each in info.types if not isinstance(each, inspect.NoneType)]
            return " or ".join(allowed(each) for each in types)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            return ("an integer" if isinstance(info, inspect.IntType) else "a number") + _range(info)
        case inspect.StrType():
            return "a string" if not info.min_length else "a string that is not empty"
        case inspect.LiteralType():
            return "one of " + ", ".join(show(each) for each in info.values)
        case inspect.ListType():
            return f"a list, each {allowed(info.item_type)}"
        case inspect.VarTupleType():
            least = " that is not empty" if info.min_length else ""
            return f"a list{least}, each {allowed(info.item_type)}"
        case inspect.DictType() | inspect.StructType():
            return "a table"
        case inspect.CustomType() if info.cls is Path:
            return "a path"
        case inspect.DateType():
            return "a date such as 2026-01-31"
    return "a string"


def _range(info: inspect.IntType | inspect.FloatType) -> str:
    low = info.ge if info.ge is not None else info.gt
    if low is None or info.le is None:
        return ""
    return f" from {low:g} to {info.le}" if info.gt is None else f" above {low:g}, at most {info.le}"
