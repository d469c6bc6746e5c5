"""Attribute matching as PS3.4 §C.2.2.2 has it, its options, and what answers contain."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.archive.comparable import number, text_value
from harmony.archive.date_time import comparable, parse_range, utc_offset_minutes
from harmony.archive.matching import (
    IdentifierError,
    KeyKind,
    MatchingOptions,
    Problem,
    comparable_of,
    compile_query,
    name_keys,
    private_attribute,
)
from harmony.archive.person_name import soundex
from harmony.archive.projection import Projection
from harmony.archive.wildcard import wildcard
from harmony.dicom.json_model import format_tag, tag_of, vr_of

Model = Mapping[str, Any]


def model(**attributes: Any) -> dict[str, Any]:
    """A model by keyword; a list is several values, None or "" none."""
    made: dict[str, Any] = {}
    for keyword, value in attributes.items():
        tag = tag_of(keyword)
        values = value if isinstance(value, list) else [] if value in (None, "") else [value]
        made[format_tag(tag)] = {"vr": vr_of(tag)} | ({"Value": values} if values else {})
    return dict(sorted(made.items()))


def matches(key: Model, entity: Model, **options: Any) -> bool:
    return compile_query(key, MatchingOptions(**options)).matches(entity)


# --- single value, list, wild card -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "key", "stored", "expected"),
    [
        # universal
        ("PatientID", "", "42", True),
        ("PatientID", "*", "42", True),
        ("StudyDate", "*", "20060101", True),
        ("InstanceNumber", "*", 1, True),
        ("StudyInstanceUID", "*", "1.2", True),
        # single value: exact, case-sensitive, as strings
        ("PatientID", "42", "42", True),
        ("PatientID", "42", "042", False),
        ("PatientID", "a", "A", False),
        ("PatientID", "42 ", " 42", True),
        ("AccessionNumber", "A1", "A1", True),
        ("Modality", "CT", "CT", True),
        ("Modality", "ct", "CT", False),
        ("StudyDescription", "Ä", "A\u0308", True),  # composed and decomposed
        ("AdditionalPatientHistory", "x", " x", False),  # leading blanks count in LT
        ("InstanceNumber", "7", 7, True),
        ("InstanceNumber", 7, "007", True),
        ("InstanceNumber", "7", 8, False),
        ("SliceThickness", "1.50", 1.5, True),
        ("SliceThickness", 2, "2.0", True),
        ("Rows", 512, 512, True),
        ("FrameIncrementPointer", "00181063", "00181063", True),
        ("FrameIncrementPointer", "0020000d", "0020000D", True),
        # several stored values: any of them
        ("ModalitiesInStudy", "MR", ["CT", "MR"], True),
        ("ModalitiesInStudy", "US", ["CT", "MR"], False),
        # several values of the key: any of them
        ("ModalitiesInStudy", ["US", "MR"], ["CT", "MR"], True),
        ("ModalitiesInStudy", ["US", "XA"], ["CT", "MR"], False),
        ("StudyInstanceUID", ["1.2", "1.3"], "1.3", True),
        ("StudyInstanceUID", ["1.2", "1.3"], "1.4", False),
        # wild cards
        ("PatientID", "4*", "42", True),
        ("PatientID", "*2", "42", True),
        ("PatientID", "4*2", "42", True),
        ("PatientID", "4?2", "42", False),
        ("PatientID", "?2", "42", True),
        ("PatientID", "??", "42", True),
        ("PatientID", "?", "42", False),
        ("PatientID", "*1*", "42", False),
        ("StudyDescription", "ct*", "CT head", False),
        ("StudyDescription", "*[a-z]*", "CT [a-z]", True),
        ("StudyDescription", "*[a-z]*", "CT b", False),
        ("StudyDescription", "100%_*", "100%_x", True),
        ("StudyDescription", "a.c*", "abc", False),
        ("ModalitiesInStudy", "M*", ["CT", "MR"], True),
    ],
)
def test_single_value_list_and_wildcard(keyword: str, key: Any, stored: Any, expected: bool) -> None:
    assert matches(model(**{keyword: key}), model(**{keyword: stored})) is expected


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "StudyDate", "StudyTime", "InstanceNumber", "SliceThickness"]
)
def test_wildcards_where_none_are_defined(keyword: str) -> None:
    with pytest.raises(IdentifierError) as caught:
        compile_query(model(**{keyword: "1*"}))
    assert caught.value.tag == tag_of(keyword)
    assert caught.value.problem is Problem.WILDCARD
    assert not matches(model(**{keyword: "1*"}), model(**{keyword: "1"}), refuse_undefined_wildcards=False)


def test_every_key_must_match() -> None:
    entity = model(PatientID="42", StudyDate="20060102")
    assert matches(model(PatientID="42", StudyDate="20060102"), entity)
    assert not matches(model(PatientID="42", StudyDate="20060103"), entity)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a*b*c", True),
        ("a*c", True),
        ("*", True),
        ("abc?", False),
        ("a*bb*c", False),
        ("ab*bc", False),
        ("**a**c", True),
    ],
)
def test_wildcard_pieces(name: str, expected: bool) -> None:
    assert wildcard(name)("abc") is expected


@pytest.mark.parametrize(
    "key",
    [
        model(PatientID="*" + "a" * 2000),
        model(PatientName="a" * 2000),
        model(PatientName=["a"] * 200),
        model(StudyDate=["2006"] * 200),
        model(StudyDescription=["a*"] * 200),
    ],
)
def test_what_would_take_long_with_each_entity_is_refused(key: Model) -> None:
    with pytest.raises(IdentifierError) as caught:
        compile_query(key)
    assert caught.value.problem is Problem.SIZE


def test_a_list_of_uids_may_be_long() -> None:
    key = model(StudyInstanceUID=[f"1.2.{number}" for number in range(20_000)])
    assert matches(key, model(StudyInstanceUID="1.2.19999"))
    assert not matches(key, model(StudyInstanceUID="1.2.20000"))


def test_many_stars_cost_no_more_than_one() -> None:
    # A backtracking matcher would not come back from this one.
    assert not wildcard("*a" * 200 + "*b")("a" * 2000)
    assert not wildcard("*?a" * 200 + "*b")("a" * 2000)


# --- dates and times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "key", "stored", "expected"),
    [
        ("StudyDate", "20060315", "20060315", True),
        ("StudyDate", "2006.03.15", "20060315", True),
        ("StudyDate", "20060315", "2006.03.15", True),
        ("StudyDate", "20060316", "20060315", False),
        ("StudyDate", "20060101-20061231", "20060315", True),
        ("StudyDate", "20060315-20060315", "20060315", True),
        ("StudyDate", "20060316-20061231", "20060315", False),
        ("StudyDate", "20060315-", "20060315", True),
        ("StudyDate", "20060316-", "20060315", False),
        ("StudyDate", "-20060315", "20060315", True),
        ("StudyDate", "-20060314", "20060315", False),
        ("StudyDate", "20060101 - 20061231", "20060315", True),
        ("StudyDate", "2006.01.01-2006.12.31", "20060315", True),
        ("StudyDate", "20060101-2006", "20061231", True),
        ("StudyDate", "20060101-2006", "20070101", False),
        ("StudyDate", "200602-200603", "20060331", True),
        ("StudyDate", "2006", "20060331", True),
        ("StudyDate", "2005", "20060331", False),
        ("StudyDate", "20060101-20061231", "unknown", False),
        ("StudyTime", "2230", "223000", True),
        ("StudyTime", "223000.000000", "2230", True),
        ("StudyTime", "22:30:00", "223000", True),
        ("StudyTime", "22", "220000", True),
        ("StudyTime", "22", "223000", False),
        ("StudyTime", "1000-1200", "120059.999", True),
        ("StudyTime", "1000-1200", "120100", False),
        ("StudyTime", "100000-120000", "120000.5", True),
        ("StudyTime", "100000.0-120000.0", "120000.5", False),
        ("StudyTime", "2200-0200", "2300", False),  # not across midnight
        ("StudyTime", "-12", "1259", True),
        ("AcquisitionDateTime", "20060315120000", "20060315120000", True),
        ("AcquisitionDateTime", "200603151200", "20060315120000", True),
        ("AcquisitionDateTime", "20060315120000+0100", "20060315110000+0000", True),
        ("AcquisitionDateTime", "20060315120000-0500", "20060315170000+0000", True),
        ("AcquisitionDateTime", "20060315120000-0500", "20060315120000", False),
        ("AcquisitionDateTime", "20060315-2007", "20071231235959.999999", True),
        ("AcquisitionDateTime", "20060315-2007", "20080101", False),
        ("AcquisitionDateTime", "2006-2007", "200612", True),
        ("AcquisitionDateTime", "20060315120000-0500-20060315130000-0500", "20060315173000+0000", True),
        ("AcquisitionDateTime", "20060315120000-0500-20060315130000-0500", "20060315123000+0000", False),
        ("AcquisitionDateTime", "20060315120000-0500-", "20060315165959+0000", False),
        ("AcquisitionDateTime", "-20060315120000-0500", "20060315165959+0000", True),
        ("AcquisitionDateTime", "20060315-20060228", "20060315", False),
        ("AcquisitionDateTime", "-200602", "20060228235959", True),
        ("AcquisitionDateTime", "-200602", "20060301", False),
        ("StudyDate", ["20060314", "20060315"], "20060315", True),
        ("StudyDate", ["20060314", "20060316-"], "20060315", False),
    ],
)
def test_dates_and_times(keyword: str, key: Any, stored: str, expected: bool) -> None:
    assert matches(model(**{keyword: key}), model(**{keyword: stored})) is expected


@pytest.mark.parametrize(
    ("keyword", "key"),
    [
        ("StudyDate", "yesterday"),
        ("StudyDate", "-"),
        ("StudyDate", "2006010"),
        ("StudyDate", "20060101-20060102-20060103"),
        ("StudyTime", "1"),
        ("StudyTime", "12:30 pm"),
        ("AcquisitionDateTime", "20061301"),
        ("AcquisitionDateTime", "20060101120000+2500"),
        ("StudyDate", "２００６0101"),
    ],
)
def test_what_is_no_date_or_time_is_refused(keyword: str, key: str) -> None:
    with pytest.raises(IdentifierError, match="not a date") as caught:
        compile_query(model(**{keyword: key}))
    assert len(key) < 2 or key not in str(caught.value)


@pytest.mark.parametrize("vr", ["DA", "TM", "DT"])
def test_a_range_without_end_is_none(vr: str) -> None:
    """Tried at each of its hyphens it would take longer than a test may."""
    assert parse_range(vr, "-" * 3_000_000) is None
    assert parse_range(vr, "2024" + " " * 50 + "-") == parse_range(vr, "2024-")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("+0100", 60),
        ("-0330", -210),
        ("+1400", 840),
        ("-1200", -720),
        ("+1401", None),
        ("0100", None),
        ("+0160", None),
    ],
)
def test_utc_offsets(text: str, minutes: int | None) -> None:
    assert utc_offset_minutes(text) == minutes


@pytest.mark.parametrize(
    ("day", "time", "independent", "combined"),
    [
        ("20060310", "0900", False, False),
        ("20060310", "1100", True, True),
        ("20060311", "0100", False, True),
        ("20060312", "1100", True, True),
        ("20060312", "1300", False, False),
        ("20060309", "1100", False, False),
        ("20060311", None, True, True),
        (None, "0900", False, True),
        ("20060313", None, False, False),
    ],
)
def test_a_date_and_its_time_are_one_interval_if_combined(
    day: str | None, time: str | None, independent: bool, combined: bool
) -> None:
    key = model(StudyDate="20060310-20060312", StudyTime="1000-1200")
    entity = model(StudyDate=day, StudyTime=time)
    assert matches(key, entity) is independent
    assert matches(key, entity, combined_date_time=True) is combined


def test_combined_open_ends() -> None:
    key = model(StudyDate="20060310-", StudyTime="1000-")
    assert matches(key, model(StudyDate="20060311", StudyTime="0100"), combined_date_time=True)
    assert not matches(key, model(StudyDate="20060310", StudyTime="0959"), combined_date_time=True)
    key = model(StudyDate="-20060310", StudyTime="-1000")
    assert matches(key, model(StudyDate="20060309", StudyTime="2300"), combined_date_time=True)
    assert not matches(key, model(StudyDate="20060310", StudyTime="1001"), combined_date_time=True)


def test_combined_keys_are_pushed_down_as_days() -> None:
    key = model(StudyDate="20060310-20060312", StudyTime="1000-1200")
    (pushed,) = compile_query(key, MatchingOptions(combined_date_time=True)).keys
    assert (pushed.tag, pushed.kind, pushed.lower, pushed.upper) == (
        0x00080020,
        KeyKind.RANGE,
        "20060310",
        "20060312",
    )
    assert not pushed.exact


def test_timezones() -> None:
    entity = model(StudyDate="20060310", StudyTime="2330", TimezoneOffsetFromUTC="+0000")
    key = model(StudyDate="20060311", TimezoneOffsetFromUTC="+0100")
    assert not matches(key, entity)
    assert matches(key, entity, timezone_adjustment=True)
    ranges = model(StudyDate="20060311-20060311", StudyTime="0000-0045", TimezoneOffsetFromUTC="+0100")
    assert matches(ranges, entity, timezone_adjustment=True)
    assert matches(ranges, entity, timezone_adjustment=True, combined_date_time=True)
    assert not matches(ranges, entity, combined_date_time=True)
    (pushed,) = compile_query(key, MatchingOptions(timezone_adjustment=True)).keys
    assert (pushed.lower, pushed.upper, pushed.exact) == ("20060310", "20060312", False)


def test_a_date_time_without_offset_is_in_the_time_zone_of_its_data_set() -> None:
    key = model(AcquisitionDateTime="20060315110000+0000")
    stored = model(AcquisitionDateTime="20060315120000", TimezoneOffsetFromUTC="+0100")
    assert matches(key, stored)
    assert not matches(key, model(AcquisitionDateTime="20060315120000"))
    assert matches(key, model(AcquisitionDateTime="20060315120000"), utc_offset_minutes=60)
    key = model(AcquisitionDateTime="20060315120000", TimezoneOffsetFromUTC="+0100")
    stored = model(AcquisitionDateTime="20060315110000+0000")
    assert matches(key, stored, timezone_adjustment=True)
    assert not matches(key, stored)


# --- names -------------------------------------------------------------------------------------------------

YAMADA = {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}


@pytest.mark.parametrize(
    ("key", "stored", "expected"),
    [
        ("Smith^John", "SMITH^JOHN", True),
        ("Smith", "Smith^John", False),
        ("Smith*", "Smith^John", True),
        ("smith^j*", "Smith^John", True),
        ("*john", "Smith^John", True),
        ("Smith^John^^^", "Smith^John", True),
        ("Smith^John", "Smith^John^^", True),
        (" Smith ^ John ", "Smith^John", True),
        ("Smith^^Dr", "Smith^^Dr", True),
        ("Smith^Dr", "Smith^^Dr", False),
        ("Smith^*", "Smith", True),
        ("Smith^*", "Smithson^A", False),
        ("S?ith^John", "Smith^John", True),
        ("Müller*", "MÜLLER^A", True),
        ("Muller*", "Müller^A", False),
        ("Yamada*", YAMADA, True),
        ("山田*", YAMADA, True),
        ("*たろう", YAMADA, True),
        ("Suzuki*", YAMADA, False),
        ("Yamada*=山田*", YAMADA, True),
        ("=山田*", YAMADA, True),
        ("=Yamada*", YAMADA, False),
        ("Yamada*=鈴木*", YAMADA, False),
        ({"Ideographic": "山田^太郎"}, YAMADA, True),
        ({"Alphabetic": "yamada^tarou"}, YAMADA, True),
        (["Smith*", "Jones*"], "Jones^A", True),
        ("Smith*", ["Jones^A", "Smith^B"], True),
        ("Smith*", [{}, None, "Smith^B"], True),
    ],
)
def test_person_names(key: Any, stored: Any, expected: bool) -> None:
    assert matches(model(PatientName=key), model(PatientName=stored)) is expected


@pytest.mark.parametrize(
    ("key", "stored", "expected"),
    [
        ("Muller*", "Müller^A", True),
        ("MÜLLER*", "Muller^A", True),
        ("Soren*", "Sørén", True),
        ("か", "が", False),
    ],
)
def test_accents_fold_if_wanted(key: str, stored: str, expected: bool) -> None:
    assert matches(model(PatientName=key), model(PatientName=stored), fold_accents=True) is expected


@pytest.mark.parametrize(
    ("key", "stored", "expected"),
    [
        ("John Smith", "Smith^John", True),
        ("Smyth^Jon", "Smith^John", True),
        ("Smi", "Smith^John", True),
        ("Meier", "Mayer^Anna", True),
        ("Mueller", "Müller^Jörg", True),
        ("Karl", "Smith^Carl", True),
        ("Philip", "Smith^Filip", True),
        ("Jo*", "Smith^John", True),
        ("Smith^John", "Smith^Mary", False),
        ("Smith Jones", "Smith^John", False),
        ("Smith*", "Smith^John", True),
        ("太郎 山田", YAMADA, True),
        ("次郎", YAMADA, False),
    ],
)
def test_fuzzy_names(key: str, stored: Any, expected: bool) -> None:
    assert matches(model(PatientName=key), model(PatientName=stored), fuzzy_names=True) is expected


def test_soundex_of_words() -> None:
    assert soundex("robert") == soundex("rupert") != soundex("rubin")
    assert soundex("ashcraft") == soundex("ashcroft")  # h does not part s and c
    assert soundex("anna") == soundex("emma") != soundex("ida")
    for word in ("a", "ae", "山田", "o'neil"):  # too little, or nothing, to go by
        assert soundex(word) is None


def test_name_keys_are_the_groups_as_keys_look_for_them() -> None:
    assert list(
        name_keys(
            {"vr": "PN", "Value": [{"Alphabetic": "MÜLLER^Jörg^", "Phonetic": "x"}, None, "Müller^Jörg"]}
        )
    ) == [
        "muller^jorg",
        "x",
    ]
    assert list(name_keys(None)) == list(name_keys({"vr": "PN"})) == []
    (key,) = compile_query(model(PatientName="Müll?r^*")).keys
    assert key.kind is KeyKind.WILDCARD
    assert key.values == ("mull*r^*", "mull*r")
    assert not key.exact


# --- empty values, multiple values, sequences --------------------------------------------------------------


@pytest.mark.parametrize("entity", [{}, model(PatientID=""), {"00100020": {"vr": "LO", "Value": [None]}}])
def test_an_unknown_value_matches_unless_told_otherwise(entity: Model) -> None:
    for key in (model(PatientID="42"), model(PatientID="4*"), model(PatientID=["1", "2"])):
        assert matches(key, entity)
        assert not matches(key, entity, empty_matches=False)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_without_a_uid_nothing_is_the_one_asked_for(keyword: str) -> None:
    assert not matches(model(**{keyword: "1.2"}), {})


@pytest.mark.parametrize(
    "key", [model(StudyDate="20060101-"), model(PatientName="A*"), model(AcquisitionDateTime="2006")]
)
def test_unknown_dates_and_names(key: Model) -> None:
    assert matches(key, {})
    assert not matches(key, {}, empty_matches=False)


def test_empty_value_matching() -> None:
    key = model(PatientID='""')
    assert matches(key, {}, empty_value_matching=True)
    assert matches(key, model(PatientID=""), empty_value_matching=True)
    assert not matches(key, model(PatientID="42"), empty_value_matching=True)
    assert not matches(key, model(PatientID="42"))
    assert compile_query(key, MatchingOptions(empty_value_matching=True)).keys[0].kind is KeyKind.EMPTY
    assert matches(model(StudyDate='""'), {}, empty_value_matching=True)


def test_multiple_value_matching() -> None:
    both = model(ModalitiesInStudy=["CT", "MR"])
    assert matches(both, model(ModalitiesInStudy=["MR", "US", "CT"]), multiple_value_matching=True)
    assert not matches(both, model(ModalitiesInStudy=["CT", "US"]), multiple_value_matching=True)
    uids = model(StudyInstanceUID=["1.2", "1.3"])
    assert matches(
        uids, model(StudyInstanceUID="1.2"), multiple_value_matching=True
    )  # a list of UIDs stays one
    names = model(OtherPatientNames=["Smith*", "Jones*"])
    assert matches(names, model(OtherPatientNames=["Jones^A", "Smith^A"]), multiple_value_matching=True)
    assert not matches(names, model(OtherPatientNames=["Jones^A", "Jones^B"]), multiple_value_matching=True)


def item(**attributes: Any) -> dict[str, Any]:
    return model(**attributes)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([], True),
        ([{}], True),
        ([item(CodeValue="")], True),
        ([item(CodeValue="A")], True),
        ([item(CodeValue="A", CodingSchemeDesignator="99X")], True),
        ([item(CodeValue="A", CodingSchemeDesignator="99Y")], False),  # not in one and the same item
        ([item(CodeValue="C")], False),
        ([item(CodeValue="?")], True),
    ],
)
def test_sequences(asked: list[Any], expected: bool) -> None:
    entity = model(
        ProcedureCodeSequence=[
            item(CodeValue="A", CodingSchemeDesignator="99X"),
            item(CodeValue="B", CodingSchemeDesignator="99Y"),
        ]
    )
    assert matches({"00081032": {"vr": "SQ", "Value": asked}}, entity) is expected


def test_sequences_in_sequences_and_without_items() -> None:
    key = model(
        RequestAttributesSequence=[
            item(RequestedProcedureCodeSequence=[item(CodeValue="A")], ScheduledProcedureStepID="1")
        ]
    )
    entity = model(
        RequestAttributesSequence=[
            item(RequestedProcedureCodeSequence=[item(CodeValue="A")], ScheduledProcedureStepID="1")
        ]
    )
    assert matches(key, entity)
    other = model(
        RequestAttributesSequence=[
            item(RequestedProcedureCodeSequence=[item(CodeValue="B")], ScheduledProcedureStepID="1")
        ]
    )
    assert not matches(key, other)
    assert matches(key, {})
    assert not matches(key, {}, empty_matches=False)


def test_an_item_without_attributes_is_unknown_and_no_less_an_item() -> None:
    key = model(ProcedureCodeSequence=[item(CodeValue="A")])
    entity = model(ProcedureCodeSequence=[{}, item(CodeValue="B")])
    assert matches(key, entity)
    assert not matches(key, entity, empty_matches=False)


def test_sequences_end_at_a_limit() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100):
        nested = {"00081032": {"vr": "SQ", "Value": [nested or item(CodeValue="A")]}}
    with pytest.raises(IdentifierError) as caught:
        compile_query(nested)
    assert caught.value.problem is Problem.NESTING


# --- keys that are none ------------------------------------------------------------------------------------


def test_attributes_about_the_query_are_not_keys() -> None:
    key = model(
        SpecificCharacterSet="ISO_IR 100",
        QueryRetrieveLevel="STUDY",
        RetrieveAETitle="X",
        InstanceAvailability="ONLINE",
        TimezoneOffsetFromUTC="+0100",
    )
    assert compile_query(key).universal
    assert matches(key, {})


@pytest.mark.parametrize(
    "key",
    [
        {"00100020": "42"},
        {"00100020": {"vr": "LO", "Value": [{"x": 1}]}},
        {"00081032": {"vr": "SQ", "Value": ["x"]}},
        {
            "00081032": {"vr": "PN", "Value": [{"Alphabetic": "A"}]}
        },  # as sent; PS3.6 says that it is a sequence
    ],
)
def test_what_is_no_attribute_with_values_is_refused(key: Model) -> None:
    with pytest.raises(IdentifierError) as caught:
        compile_query(key)
    assert caught.value.problem is Problem.MALFORMED


def private(creator: str, block: int, value: str | None = None) -> dict[str, Any]:
    element = {"vr": "LO"} | ({"Value": [value]} if value else {})
    return {f"000900{block:02X}": {"vr": "LO", "Value": [creator]}, f"0009{block:02X}01": element}


def test_private_keys_need_their_creator_and_follow_its_block() -> None:
    entity = private("ACME", 0x11, "x") | private("OTHER", 0x10, "y")
    assert matches(private("ACME", 0x10, "x"), entity)
    assert not matches(private("ACME", 0x10, "y"), entity)
    assert matches(private("NOBODY", 0x10, "x"), entity)
    assert not matches(private("NOBODY", 0x10, "x"), entity, empty_matches=False)
    assert matches({"00091001": {"vr": "LO", "Value": ["z"]}}, entity)  # whose, nobody knows
    assert matches(
        {"00090010": {"vr": "LO", "Value": ["ACME"]}, "00091001": {"vr": "UN", "InlineBinary": "eA=="}},
        entity,
    )
    assert private_attribute(entity, 0x00091001, "ACME") == 0x00091101
    assert private_attribute(entity, 0x00091001, "NOBODY") is None


# --- for an index ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "key", "kind", "values", "lower", "upper"),
    [
        ("PatientID", "42", KeyKind.SINGLE, ("42",), None, None),
        ("StudyInstanceUID", ["1.2", "1.3"], KeyKind.LIST, ("1.2", "1.3"), None, None),
        ("PatientID", "4*", KeyKind.WILDCARD, ("4*",), None, None),
        ("StudyDate", "2006-20070203", KeyKind.RANGE, (), "20060101", "20070203"),
        ("StudyDate", "-2006", KeyKind.RANGE, (), None, "20061231"),
        ("StudyDate", "2006.01.02", KeyKind.SINGLE, ("20060102",), None, None),
        ("StudyTime", "10-", KeyKind.RANGE, (), "100000.000000", None),
        ("StudyTime", "1030", KeyKind.SINGLE, ("103000.000000",), None, None),
        ("SeriesNumber", "007", KeyKind.SINGLE, ("7",), None, None),
        ("StudyDate", ["2006", "20080101"], KeyKind.OTHER, (), None, None),
        (
            "AcquisitionDateTime",
            "20060315120000+0100",
            KeyKind.SINGLE,
            ("20060315110000.000000",),
            None,
            None,
        ),
    ],
)
def test_keys_for_a_database(
    keyword: str, key: Any, kind: KeyKind, values: tuple[str, ...], lower: str | None, upper: str | None
) -> None:
    (compiled,) = compile_query(model(**{keyword: key})).keys
    assert (compiled.kind, compiled.values, compiled.lower, compiled.upper) == (kind, values, lower, upper)
    assert compiled.exact is (kind is not KeyKind.OTHER and keyword != "AcquisitionDateTime")


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        ("LO", " 42 ", "42"),
        ("DA", "2006.01.02", "20060102"),
        ("DA", "junk ", "junk"),
        ("TM", "10", "100000.000000"),
        ("DT", "20060102030405+0100", "20060102020405.000000"),
        ("IS", 7, "7"),
        ("DS", "1.50", "1.5"),
        ("PN", {"Alphabetic": "Müller^A", "Phonetic": "X"}, "muller^a==x"),
        ("LO", None, None),
        ("OB", "AAAA", None),
        ("SQ", {}, None),
    ],
)
def test_stored_values_for_a_database(vr: str, value: Any, expected: str | None) -> None:
    assert comparable_of(vr, value) == expected


def test_without_leaves_what_a_database_has_not_answered() -> None:
    matcher = compile_query(model(PatientID="42", StudyDate="2006-"))
    entity = model(PatientID="43", StudyDate="20070101")
    assert not matcher.matches(entity)
    assert matcher.without([0x00100020]).matches(entity)
    assert matcher.without([0x00100020, 0x00080020]).universal


# --- answers -----------------------------------------------------------------------------------------------

STUDY = model(
    StudyDate="20060102",
    PatientName={"Alphabetic": "A^B"},
    PatientID="42",
    StudyInstanceUID="1.2",
    SeriesInstanceUID="1.2.3",
    SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
    SOPInstanceUID="1.2.3.4",
    StudyDescription="x",
)


def test_an_answer_has_what_was_asked_and_nothing_else() -> None:
    key = model(PatientID="42", AccessionNumber="", StudyDate="", SpecificCharacterSet="ISO_IR 100")
    assert Projection(compile_query(key)).project(STUDY) == model(
        StudyDate="20060102", AccessionNumber="", PatientID="42"
    )


@pytest.mark.parametrize(
    ("level", "patient_root", "keywords"),
    [
        ("PATIENT", True, ["PatientID"]),
        ("STUDY", True, ["PatientID", "StudyInstanceUID"]),
        ("STUDY", False, ["StudyInstanceUID"]),
        ("SERIES", False, ["StudyInstanceUID", "SeriesInstanceUID"]),
        ("IMAGE", False, ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]),
    ],
)
def test_an_answer_says_who_it_is(level: str, patient_root: bool, keywords: list[str]) -> None:
    matcher = compile_query(model(QueryRetrieveLevel=level))
    projection = Projection(
        matcher,
        level=level,
        patient_root=patient_root,
        retrieve_ae_title="A\\B",
        instance_availability="ONLINE",
    )
    answer = projection.project(STUDY)
    assert answer == model(
        QueryRetrieveLevel=level,
        RetrieveAETitle=["A", "B"],
        InstanceAvailability="ONLINE",
    ) | {format_tag(tag_of(keyword)): STUDY[format_tag(tag_of(keyword))] for keyword in keywords}
    assert list(answer) == sorted(answer)


def test_an_answer_has_the_matching_items_with_the_requested_attributes() -> None:
    entity = model(
        ProcedureCodeSequence=[item(CodeValue="A", CodeMeaning="a"), item(CodeValue="B", CodeMeaning="b")]
    )
    key = model(ProcedureCodeSequence=[item(CodeValue="B", CodingSchemeVersion="")])
    assert Projection(compile_query(key)).project(entity) == model(
        ProcedureCodeSequence=[item(CodeValue="B", CodingSchemeVersion="")]
    )
    assert Projection(compile_query(key)).project({}) == model(ProcedureCodeSequence="")
    for whole in ([], [{}]):
        asked = {"00081032": {"vr": "SQ", "Value": whole}}
        assert Projection(compile_query(asked)).project(entity) == entity
    some = model(ProcedureCodeSequence=[item(CodeMeaning="")])
    assert Projection(compile_query(some)).project(entity) == model(
        ProcedureCodeSequence=[item(CodeMeaning="a"), item(CodeMeaning="b")]
    )


def test_private_attributes_are_answered_in_the_block_of_the_identifier() -> None:
    entity = private("ACME", 0x11, "x") | private("OTHER", 0x10, "y")
    projection = Projection(compile_query(private("ACME", 0x10) | model(PatientID="")))
    assert projection.project(entity) == private("ACME", 0x10, "x") | model(PatientID="")
    assert Projection(compile_query(private("NOBODY", 0x10))).project(entity) == {}


# --- properties --------------------------------------------------------------------------------------------

TEXT = st.text(
    st.characters(min_codepoint=33, exclude_characters='\\*?"=^', exclude_categories=["Cs", "Cc", "Zs"]),
    min_size=1,
)
KEYWORDS = {
    "PatientID": TEXT,
    "Modality": st.text("ABC", min_size=1),
    "StudyInstanceUID": st.text("0123456789.", min_size=1),
    "StudyDate": st.dates().map(lambda day: day.strftime("%Y%m%d").rjust(8, "0")),
    "StudyTime": st.times().map(lambda time: f"{time:%H%M%S}.{time.microsecond:06}"),
    "AcquisitionDateTime": st.datetimes().map(
        lambda moment: f"{moment.year:04}{moment:%m%d%H%M%S}.{moment.microsecond:06}"
    ),
    "InstanceNumber": st.integers(-(2**31), 2**31 - 1),
    "SliceThickness": st.floats(-1e6, 1e6),
    "PatientName": TEXT,
}
STORED = st.sampled_from(list(KEYWORDS)).flatmap(
    lambda keyword: st.tuples(st.just(keyword), KEYWORDS[keyword])
)
OPTIONS = st.fixed_dictionaries(
    {
        name: st.booleans()
        for name in (
            "empty_matches",
            "empty_value_matching",
            "multiple_value_matching",
            "combined_date_time",
            "fuzzy_names",
            "fold_accents",
            "timezone_adjustment",
        )
    }
)


@settings(deadline=None)
@given(STORED, OPTIONS, st.sampled_from(["", "*"]))
def test_universal_matches_everything(stored: tuple[str, Any], options: dict[str, bool], key: str) -> None:
    keyword, value = stored
    assert matches(model(**{keyword: key}), model(**{keyword: value}), **options)
    assert matches(model(**{keyword: key}), {}, **options)


@settings(deadline=None)
@given(STORED, OPTIONS)
def test_a_value_matches_itself(stored: tuple[str, Any], options: dict[str, bool]) -> None:
    keyword, value = stored
    assert matches(model(**{keyword: value}), model(**{keyword: value}), **options)


@settings(deadline=None)
@given(st.sampled_from(["StudyDate", "StudyTime", "AcquisitionDateTime"]), st.data(), OPTIONS)
def test_a_range_contains_its_ends_and_what_is_between(
    keyword: str, data: st.DataObject, options: dict[str, bool]
) -> None:
    low, middle, high = sorted(data.draw(st.tuples(*[KEYWORDS[keyword]] * 3)))
    for key in (f"{low}-{high}", f"{low}-", f"-{high}"):
        for value in (low, middle, high):
            assert matches(model(**{keyword: key}), model(**{keyword: value}), **options)
    if high > middle:
        assert not matches(model(**{keyword: f"-{middle}"}), model(**{keyword: high}), **options)
        assert not matches(model(**{keyword: f"{high}-"}), model(**{keyword: middle}), **options)


@settings(deadline=None)
@given(st.sampled_from(["PatientID", "PatientName"]), TEXT, st.data(), OPTIONS)
def test_a_value_matches_what_wildcards_make_of_it(
    keyword: str, value: str, data: st.DataObject, options: dict[str, bool]
) -> None:
    value = text_value("LO", value)
    at = data.draw(st.integers(0, len(value)))
    to = data.draw(st.integers(at, len(value)))
    assert matches(model(**{keyword: value[:at] + "*" + value[to:]}), model(**{keyword: value}), **options)
    if keyword == "PatientID" and to > at:
        questions = "?" * (to - at)
        assert matches(
            model(**{keyword: value[:at] + questions + value[to:]}), model(**{keyword: value}), **options
        )


@settings(deadline=None)
@given(st.text("ab*?", max_size=12), st.text("ab", max_size=12))
def test_wildcards_mean_what_the_standard_says(pattern: str, text: str) -> None:
    def reference(pattern: str, text: str) -> bool:  # by the definition, letter by letter
        if not pattern:
            return not text
        if pattern[0] == "*":
            return reference(pattern[1:], text) or (bool(text) and reference(pattern, text[1:]))
        return bool(text) and pattern[0] in ("?", text[0]) and reference(pattern[1:], text[1:])

    assert wildcard(pattern)(text) is reference(pattern, text)


@settings(deadline=None)
@given(STORED, st.data(), OPTIONS)
def test_a_database_finds_every_match(
    stored: tuple[str, Any], data: st.DataObject, options: dict[str, bool]
) -> None:
    """The operands of a key, compared as an index compares them, never miss what `matches` finds."""
    keyword, value = stored
    key_value = data.draw(st.just(value) | KEYWORDS[keyword])
    if keyword in ("PatientID", "PatientName"):
        key_value = data.draw(
            st.sampled_from([key_value, key_value[:1] + "*", "?" + key_value[1:], "*" + key_value[-1:]])
        )
    matcher = compile_query(model(**{keyword: key_value}), MatchingOptions(**options))
    entity = model(**{keyword: value})
    for key in matcher.keys:
        groups = list(name_keys(entity["00100010"])) if key.vr == "PN" else [comparable_of(key.vr, value)]
        match key.kind:
            case KeyKind.SINGLE | KeyKind.LIST:
                found = any(group in key.values for group in groups)
            case KeyKind.WILDCARD:
                found = any(wildcard(pattern)(group or "") for pattern in key.values for group in groups)
            case KeyKind.RANGE:
                found = all((key.lower or "") <= (group or "") <= (key.upper or "~") for group in groups)
            case _:
                continue
        if matcher.matches(entity):
            assert found
        if key.exact:
            assert found is matcher.matches(entity)


@settings(deadline=None)
@given(st.sampled_from(["DA", "TM", "DT"]), st.text("0123456789-+.: ", max_size=30))
def test_any_text_is_a_range_or_none(vr: str, text: str) -> None:
    asked = parse_range(vr, text)
    if asked is not None:
        assert asked.lower is not None or asked.upper is not None
    stored = comparable(vr, text)
    assert stored is None or parse_range(vr, stored if vr != "DT" else stored + "+0000") is not None


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["00100020", "00100010", "00080020", "00081032", "00091001", "00090010", "0020000D"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["vr", "Value", "00080100"]), inner)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_identifier_compiles_or_names_the_attribute(key: dict[str, Any]) -> None:
    try:
        matcher = compile_query(key)
    except ValueError:  # IdentifierError, or a name that is none
        return
    matcher.matches(STUDY)
    Projection(matcher, level="STUDY").project(STUDY)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60))
def test_a_number_is_the_same_however_it_is_written(value: float) -> None:
    assert number(value) == number(str(value)) == number(f" {value} ")
