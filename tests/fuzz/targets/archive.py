"""Matching: dates, times, names and wild cards one by one, and whole identifiers (PS3.4 §C.2.2.2)."""

from __future__ import annotations

from harmony.archive.date_time import comparable, parse_range, utc_offset_minutes
from harmony.archive.levels import Level, infer_level
from harmony.archive.matching import IdentifierError, MatchingOptions, compile_query
from harmony.archive.person_name import folded, name_groups, name_patterns, name_test, soundex, words
from harmony.archive.sqlite_query import PATIENT, SERIES, STUDY, conditions_of
from harmony.archive.wildcard import wildcard
from harmony.dicom.data_set_decoder import DataSetError
from harmony.dicom.json_model import Model, decode_data_set
from tests.fuzz.target import target

ENTITY: Model = {
    "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
    "00080020": {"vr": "DA", "Value": ["20240115"]},
    "00080030": {"vr": "TM", "Value": ["101500.25"]},
    "0008002A": {"vr": "DT", "Value": ["20240115101500.000000+0100"]},
    "00080060": {"vr": "CS", "Value": ["CT"]},
    "00080061": {"vr": "CS", "Value": ["CT", "SR"]},
    "00080201": {"vr": "SH", "Value": ["+0100"]},
    "00081030": {"vr": "LO", "Value": ["Head*"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]},
    "00100020": {"vr": "LO", "Value": ["ID1", None]},
    "00101030": {"vr": "DS", "Value": [70.5]},
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    "0020000E": {"vr": "UI", "Value": ["1.2.3.4"]},
    "00200013": {"vr": "IS", "Value": [7]},
    "00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["A1"]}}, {}]},
}


@target()
def date_time(data: bytes) -> None:
    """VR by the first byte, offset by the second. A value is found by itself, and lies within its own bounds."""
    if len(data) < 2:
        return
    vr, offset = ("DA", "TM", "DT")[data[0] % 3], (data[1] - 128) * 15
    text = data[2:].decode("utf-8", "replace")
    utc_offset_minutes(text)
    found = parse_range(vr, text, utc_offset_minutes=offset)
    value = comparable(vr, text, utc_offset_minutes=offset)
    if found is not None:
        assert found.lower is not None or found.upper is not None
        if value is not None and (found.single or vr == "DA"):
            assert found.contains(value), (found, value)


def _matches(pattern: str, text: str) -> bool:
    """What a pattern means, by its definition."""
    reached = {0}
    for character in pattern:
        if character == "*":
            reached = set(range(min(reached), len(text) + 1)) if reached else set()
        else:
            reached = {at + 1 for at in reached if at < len(text) and character in ("?", text[at])}
    return len(text) in reached


@target(maximum_bytes=512)
def wild_cards(data: bytes) -> None:
    """A pattern and a text on two lines: they match exactly when the definition says so."""
    pattern, _, text = data.decode("utf-8", "replace").partition("\n")
    assert wildcard(pattern)(text) == _matches(pattern, text)


@target()
def person_name(data: bytes) -> None:
    """A key and a name on two lines. A name without wild cards matches itself; folding is done once for all."""
    key, _, name = data.decode("utf-8", "replace").replace("\0", "").partition("\n")
    for accents in (False, True):
        groups = name_groups(name, accents=accents)
        for fuzzy in (False, True):
            name_test(key, accents=accents, fuzzy=fuzzy)(groups)
            if not set("*?") & set(name):
                assert name_test(name, accents=accents, fuzzy=fuzzy)(groups)
        for group in groups:
            assert folded(group, accents=accents) == group, (group, folded(group, accents=accents))
            for word in words(group):
                soundex(word)
            name_patterns(group)


@target(IdentifierError, DataSetError)
def identifier(data: bytes) -> None:
    """The identifier of a C-FIND-RQ: compiled, asked of an entity and of itself, and made into SQL."""
    if not data:
        return
    setting = data[0]
    model = decode_data_set(data[1:], "1.2.840.10008.1.2" if setting & 1 else "1.2.840.10008.1.2.1")
    options = MatchingOptions(
        empty_matches=setting & 2 == 0,
        empty_value_matching=setting & 4 != 0,
        multiple_value_matching=setting & 8 != 0,
        combined_date_time=setting & 16 != 0,
        fuzzy_names=setting & 32 != 0,
        fold_accents=setting & 64 != 0,
        timezone_adjustment=setting & 128 != 0,
        refuse_undefined_wildcards=setting & 6 == 0,
    )
    level = infer_level(model)
    assert level in Level
    matcher = compile_query(model, options)
    repr(matcher)
    matcher.matches(ENTITY)
    matcher.matches({})
    for table, of_level in ((PATIENT, Level.PATIENT), (STUDY, Level.STUDY), (SERIES, Level.SERIES)):
        for condition in conditions_of(matcher, table, of_level):
            assert condition.sql.count("?") == len(condition.parameters) or condition.empty
