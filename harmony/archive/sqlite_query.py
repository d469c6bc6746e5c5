"""What of a query the columns of `sqlite_schema` can answer, and the SQL that asks them.

Conditions only narrow the search: a row they let pass is checked against its whole entity, and a row they hold back
is one that the matcher would refuse. Two kinds of rows they cannot judge: those marked `odd`, and those whose
attribute has no value when that matches. Patients and studies are therefore searched in two passes, the plain rows
over an index and then these few; the series of one study, and the instances of one series, in one.

Studies are searched first, then the series of each, then their instances, each in the order of an index, so that pages
follow each other without sorting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.archive.matching import Key, KeyKind, Matcher
from harmony.archive.sqlite_writer import PATIENT_NAME, REFERRING_NAME, STUDY_PATIENT_NAME

__all__ = [
    "BELOW",
    "INSTANCE",
    "ONE",
    "PATIENT",
    "SERIES",
    "STUDY",
    "TRAITS",
    "Condition",
    "Parameters",
    "Table",
    "aggregate",
    "conditions_of",
    "only",
    "unique",
]

MAXIMUM_LIST = 10_000
"""Values of one list in SQL, of 32 766 parameters that a statement takes; a longer list is left to the matcher."""
MAXIMUM_PATTERNS, MAXIMUM_PATTERN_LENGTH, MAXIMUM_STARS = 100, 200, 4
FIRST_CHARACTER, LAST_CHARACTER = "\x01", "\U0010ffff"

Parameters = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """What one key asks of one table."""

    sql: str
    """True for rows whose attribute has a value that may match."""
    parameters: Parameters = ()
    empty: str = ""
    """True for rows whose attribute has no value, when these match as well."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it is read: page by page, in the order of an index."""

    name: str
    columns: str
    order: tuple[str, ...]
    parent: str = ""
    """The column of the row above; empty for those that are searched from the top."""
    descending: bool = False
    always: str = ""

    def passes(
        self, conditions: Sequence[Condition], *, parent: int | None = None, exact: bool = False
    ) -> Iterator[tuple[str, Parameters]]:
        """Yield the WHERE of each pass, with its parameters; no row is in two of them.

        exact: only rows for which the conditions are true, in one pass.
        """
        fixed = [self.always] if self.always else []
        parameters: Parameters = ()
        if parent is not None:
            fixed.append(f"{self.parent} = ?")
            parameters = (parent,)
        for condition in conditions:
            parameters += condition.parameters
        if not conditions:
            yield " AND ".join(fixed) or "1", parameters
            return
        strict = " AND ".join(f"({condition.sql})" for condition in conditions)
        if exact:
            yield " AND ".join([*fixed, strict]), parameters
            return
        loose = " AND ".join(
            f"({condition.sql} OR {condition.empty})" if condition.empty else f"({condition.sql})"
            for condition in conditions
        )
        if parent is not None:
            yield " AND ".join([*fixed, f"(odd OR ({loose}))"]), parameters
            return
        yield " AND ".join([*fixed, "NOT odd", strict]), parameters
        unclear = ["odd", *(condition.empty for condition in conditions if condition.empty)]
        candidates = " UNION ".join(f"SELECT id FROM {self.name} WHERE {one}" for one in unclear)
        yield (
            " AND ".join([*fixed, f"id IN ({candidates})", f"(odd OR (({loose}) AND NOT ({strict})))"]),
            parameters + tuple(value for condition in conditions for value in condition.parameters),
        )

    def page(self, where: str, *, after: Parameters | None, rows: int) -> str:
        """Return the SQL for the rows after a place in the order, whose values come last among the parameters.

        The first columns of each row are its place.
        """
        key = ", ".join(self.order)
        direction = " DESC" if self.descending else ""
        if after is not None:
            comparison = "<" if self.descending else ">"
            where = f"{where} AND ({key}) {comparison} ({', '.join('?' * len(after))})"
        order = ", ".join(column + direction for column in self.order)
        return f"SELECT {key}, {self.columns} FROM {self.name} WHERE {where} ORDER BY {order} LIMIT {rows}"


PATIENT = Table("patient", "representative, attributes, studies, series, instances", ("id",))
STUDY = Table(
    "study",
    "uid, representative, attributes, series, instances, modalities, sop_classes",
    ("study_date", "id"),
    descending=True,
)
SERIES = Table("series", "id, representative, attributes, instances", ("uid",), parent="study")
INSTANCE = Table(
    "instance",
    "id, sop_class_uid, transfer_syntax_uid, size_bytes, data_set_offset, pixel_data_offset, "
    "(SELECT content FROM header WHERE instance = instance.id)",
    ("uid", "name"),
    parent="series",
    always="NOT shadow",
)

BELOW = "FROM study JOIN series ON series.study = study.id JOIN instance ON instance.series = series.id"
ONE = (
    f"SELECT series, {', '.join(INSTANCE.order)}, {INSTANCE.columns} FROM instance WHERE uid = ? AND NOT shadow AND "
    "series IN (SELECT series.id FROM series JOIN study ON study.id = series.study WHERE study.uid = ? "
    f"AND series.uid = ?) ORDER BY {', '.join(INSTANCE.order)}"
)
"""One instance by its UID and those of study and series: the id of its series, and the row as it is read."""
TRAITS = (
    "count(*), coalesce(sum(instance.size_bytes), 0), coalesce(max(instance.received_ns), 0), "
    # A replaced file was received at another time. Divided, as a sum of nanoseconds does not fit into 64 bits.
    "coalesce(sum(instance.received_ns >> 32), 0), coalesce(sum(instance.received_ns & 0xffffffff), 0)"
)
"""What changes with any instance."""

# Which columns stand for which attributes, by table.
_PATIENT_COLUMNS = {0x00100020: "patient_id", 0x00100030: "birth_date", 0x00100040: "sex"}
_STUDY_COLUMNS = _PATIENT_COLUMNS | {
    0x0020000D: "uid",
    0x00080020: "study_date",
    0x00080050: "accession_number",
    0x00200010: "study_id",
}
_SERIES_COLUMNS = {0x0020000E: "uid", 0x00080060: "modality", 0x00200011: "number"}
_INSTANCE_COLUMNS = {0x00080018: "uid", 0x00200013: "number", 0x00080016: "sop_class_uid"}
_NAMES = {
    "patient": {0x00100010: PATIENT_NAME},
    "study": {0x00100010: STUDY_PATIENT_NAME, 0x00080090: REFERRING_NAME},
}
_COLUMNS = {
    "patient": _PATIENT_COLUMNS,
    "study": _STUDY_COLUMNS,
    "series": _SERIES_COLUMNS,
    "instance": _INSTANCE_COLUMNS,
}
_MODALITIES_IN_STUDY = 0x00080061

# The UIDs of what is below say in which rows above to look.
_STUDIES_OF_SERIES = "id IN (SELECT study FROM series WHERE {})"
_STUDIES_OF_INSTANCES = "id IN (SELECT study FROM series WHERE id IN (SELECT series FROM instance WHERE {}))"
_SERIES_OF_INSTANCES = "id IN (SELECT series FROM instance WHERE {})"


def conditions_of(matcher: Matcher, table: Table, level: Level) -> list[Condition]:
    """Return what the matcher's keys ask of a table when entities of a level are searched."""
    conditions = []
    for key in matcher.keys:
        condition = _condition(key, table.name) or _condition_below(key, table.name, level)
        if condition is not None:
            conditions.append(condition)
    return conditions


def _condition(key: Key, table: str) -> Condition | None:
    column = _COLUMNS[table].get(key.tag)
    if column is not None:
        sql = _sql(key, column)
        return sql and Condition(*sql, f"{column} = ''" if key.empty_matches else "")
    kind = _NAMES.get(table, {}).get(key.tag)
    if kind is not None and key.kind is not KeyKind.EMPTY and (sql := _sql(key, "key")):
        names = f"id IN (SELECT entity FROM name WHERE kind = '{kind}' AND "
        return Condition(f"{names}{sql[0]})", sql[1], f"{names}key = '')" if key.empty_matches else "")
    if key.tag == _MODALITIES_IN_STUDY and table == "study" and (sql := _sql(key, "modality")):
        # `odd`: the column does not show several values
        exists = f"EXISTS (SELECT 1 FROM series WHERE study = study.id AND ({sql[0]} OR series.odd))"
        return Condition(exists, sql[1], "modalities = ''" if key.empty_matches else "")
    return None


def _condition_below(key: Key, table: str, level: Level) -> Condition | None:
    if key.kind not in (KeyKind.SINGLE, KeyKind.LIST):
        return None
    sql = None
    if key.tag == 0x0020000E and level in (Level.SERIES, Level.IMAGE) and table == "study":
        sql, form = _sql(key, "uid"), _STUDIES_OF_SERIES
    elif key.tag == 0x00080018 and level is Level.IMAGE and table in ("study", "series"):
        sql, form = _sql(key, "uid"), _STUDIES_OF_INSTANCES if table == "study" else _SERIES_OF_INSTANCES
    return Condition(form.format(sql[0]), sql[1]) if sql else None


def unique(keys: UniqueKeys, table: Table) -> list[Condition]:
    """Return what unique keys ask of a table; exact, not only narrowing."""
    asked: list[tuple[str, Sequence[str] | None]]
    match table.name:
        case "study":
            asked = [
                ("patient_id IN ({})", keys.patient_ids),
                ("uid IN ({})", keys.study_instance_uids),
                (_STUDIES_OF_SERIES.format("uid IN ({})"), keys.series_instance_uids),
                (_STUDIES_OF_INSTANCES.format("uid IN ({})"), keys.sop_instance_uids),
            ]
        case "series":
            asked = [
                ("uid IN ({})", keys.series_instance_uids),
                (_SERIES_OF_INSTANCES.format("uid IN ({})"), keys.sop_instance_uids),
            ]
        case _:
            asked = [("uid IN ({})", keys.sop_instance_uids)]
    return [
        Condition(sql.format("SELECT value FROM json_each(?)"), (_json_list(values),))
        for sql, values in asked
        if values is not None
    ]


def only(keys: UniqueKeys) -> tuple[str, str, str] | None:
    """Return study, series and instance when the keys are these, as in a URL."""
    named = (keys.study_instance_uids, keys.series_instance_uids, keys.sop_instance_uids)
    if keys.patient_ids is not None or not all(uids is not None and len(uids) == 1 for uids in named):
        return None
    study, series, instance = (uids[0] for uids in named if uids is not None)
    return study, series, instance


def aggregate(expressions: str, keys: UniqueKeys) -> tuple[str, list[object]]:
    """Return the SQL of an aggregate over all instances to retrieve, and its parameters."""
    conditions: list[str] = ["NOT instance.shadow"]
    parameters: list[object] = []
    for table in (STUDY, SERIES, INSTANCE):
        for condition in unique(keys, table):
            conditions.append(f"{table.name}.{condition.sql}")
            parameters.extend(condition.parameters)
    return f"SELECT {expressions} {BELOW} WHERE {' AND '.join(conditions)}", parameters


def _json_list(values: Sequence[str]) -> str:
    """One parameter for a list of any length: C-MOVE may name more UIDs than a statement has parameters."""
    return json.dumps(list(values))


def _sql(key: Key, column: str) -> tuple[str, Parameters] | None:
    """Return what a key asks of a column, or None when that cannot be said in SQL."""
    if len(key.values) > MAXIMUM_LIST or not all(map(_is_plain, key.values)):
        return None
    match key.kind:
        case KeyKind.SINGLE | KeyKind.LIST:
            return f"{column} IN ({', '.join('?' * len(key.values))})", key.values
        case KeyKind.RANGE:
            return f"{column} BETWEEN ? AND ?", (key.lower or FIRST_CHARACTER, key.upper or LAST_CHARACTER)
        case KeyKind.WILDCARD if len(key.values) <= MAXIMUM_PATTERNS:
            patterns = [_like(value, column) for value in key.values]
            sql = " OR ".join(pattern[0] for pattern in patterns)
            return f"({sql})", tuple(value for pattern in patterns for value in pattern[1])
        case KeyKind.EMPTY:
            return f"{column} = ''", ()
    return None


def _is_plain(text: str) -> bool:
    """Tell whether SQLite takes a text as Python does: it knows no half surrogates, and a NUL ends its patterns."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _like(pattern: str, column: str) -> tuple[str, Parameters]:
    """Return what a pattern asks: what it begins with, for an index, and all of it."""
    start = min((at for at in (pattern.find("*"), pattern.find("?")) if at >= 0), default=-1)
    if start < 0:
        return f"{column} = ?", (pattern,)
    sql, parameters = f"{column} <> ''", []
    if start:
        sql, parameters = f"{column} >= ?", [pattern[:start]]
        after = _after(pattern[:start])
        if after is not None:
            sql += f" AND {column} < ?"
            parameters.append(after)
    # A pattern of many stars is left to the matcher, which takes no longer for it.
    if (
        len(pattern) <= MAXIMUM_PATTERN_LENGTH
        and pattern.count("*") <= MAXIMUM_STARS
        and pattern[start:] != "*"
    ):
        sql += f" AND {column} GLOB ?"
        parameters.append(pattern.replace("[", "[[]"))  # which is special in GLOB
    return f"({sql})", tuple(parameters)


def _after(prefix: str) -> str | None:
    """Return the first text, in the order of code points, that comes after all that begin with a prefix."""
    last = ord(prefix[-1]) + 1
    if last > 0x10FFFF:
        return None
    return prefix[:-1] + chr(0xE000 if 0xD800 <= last <= 0xDFFF else last)
