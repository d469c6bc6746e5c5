"""The SQLite index: what is in it after which changes, and that columns never hide what the matcher would find."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony.archive.index import (
    ArchiveIndexError,
    Counts,
    IndexDamaged,
    IndexedInstance,
    IndexInUse,
    IndexState,
    Level,
    TookTooLong,
    UniqueKeys,
)
from harmony.archive.levels import uid_folder
from harmony.archive.matching import MatchingOptions, compile_query
from harmony.archive.sqlite_index import SQLiteIndex
from harmony.archive.sqlite_query import STUDY, conditions_of
from harmony.dicom.json_model import decode_data_set
from harmony.dicom.uid import path_component

CT, MR, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.11"
EXPLICIT = "1.2.840.10008.1.2.1"
EVERYTHING = compile_query({})

VRS = {
    "00080016": "UI", "00080018": "UI", "00080020": "DA", "00080030": "TM", "00080050": "SH", "00080060": "CS",
    "00080061": "CS", "00080062": "UI", "00080090": "PN", "00081030": "LO", "0008103E": "LO", "00100010": "PN",
    "00100020": "LO", "00100021": "LO", "00100030": "DA", "00100040": "CS", "0020000D": "UI", "0020000E": "UI",
    "00200010": "SH", "00200011": "IS", "00200013": "IS", "00201041": "DS", "00201208": "IS",
}  # fmt: skip


def model(attributes: dict[str, Any]) -> dict[str, Any]:
    """A data set from values by tag: one value or a list, names as text; None for an attribute without value."""
    elements = {}
    for tag, value in sorted(attributes.items()):
        vr = VRS[tag]
        values = [] if value is None else value if isinstance(value, list) else [value]
        if vr == "PN":
            groups = ("Alphabetic", "Ideographic", "Phonetic")
            values = [
                {key: text for key, text in zip(groups, one.split("="), strict=False) if text}
                for one in values
            ]
        elements[tag] = {"vr": vr, "Value": values} if values else {"vr": vr}
    return elements


def instance(
    uid: str,
    *,
    study: str = "1.1",
    series: str = "1.1.1",
    received: int = 1,
    name: str = "",
    **attributes: Any,
) -> IndexedInstance:
    """An instance whose header has the attributes given as t00100020="..."."""
    header = {"00080016": CT, "00080018": uid, "0020000D": study, "0020000E": series}
    header |= {tag[1:]: value for tag, value in attributes.items()}
    return IndexedInstance(
        path=f"{uid_folder(study)}/{uid_folder(series)}/{name or path_component(uid) + '.dcm'}",
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=uid,
        sop_class_uid=header["00080016"],
        transfer_syntax_uid=EXPLICIT,
        size_bytes=1000,
        received_ns=received,
        data_set_offset=340,
        pixel_data_offset=900,
        header=model({tag: value for tag, value in header.items() if value != ""}),
    )


@pytest.fixture
def make_index(tmp_path: Path) -> Iterator[Callable[..., SQLiteIndex]]:
    opened: list[SQLiteIndex] = []

    def make(folder: str = "index", **options: Any) -> SQLiteIndex:
        (tmp_path / folder).mkdir(exist_ok=True)
        index = SQLiteIndex(tmp_path / folder, root=str(tmp_path), **{"verify_files": False, **options})
        opened.append(index)
        return index

    yield make
    for index in opened:
        index.close()


@pytest.fixture
def index(make_index: Callable[..., SQLiteIndex]) -> SQLiteIndex:
    return make_index()


def values(entities: Any, tag: str) -> list[Any]:
    return [entity[tag].get("Value", [None])[0] for entity in entities]


def find(index: SQLiteIndex, level: Level, options: MatchingOptions | None = None, **keys: Any) -> list[Any]:
    matcher = compile_query(model({tag[1:]: value for tag, value in keys.items()}), options)
    return list(index.query(level, matcher))


# Levels


def test_each_level_has_its_attributes_and_those_above(index: SQLiteIndex) -> None:
    index.add(
        [
            instance(
                "1.1.1.1",
                t00100020="P1",
                t00100010="Doe^Jane",
                t00080020="20240115",
                t00080060="CT",
                t00200011="3",
                t00200013="7",
                t00201041="1.5",
            )
        ]
    )

    patient, study, series, image = (next(index.query(level, EVERYTHING)) for level in Level)

    assert set(patient) == {"00080056", "00100010", "00100020", "00201200", "00201202", "00201204"}
    assert set(study) == {
        "00080020", "00080056", "00080061", "00080062", "00100010", "00100020", "0020000D", "00201206", "00201208",
    }  # fmt: skip
    assert set(series) - set(study) == {"00080060", "0020000E", "00200011", "00201209"}
    assert set(image) - set(series) == {"00080016", "00080018", "00083002", "00200013", "00201041"}
    assert image["00083002"] == {"vr": "UI", "Value": [EXPLICIT]}
    assert image["00080056"] == {"vr": "CS", "Value": ["ONLINE"]}
    assert list(image) == sorted(image)


def test_numbers_modalities_and_sop_classes_are_of_all_instances(index: SQLiteIndex) -> None:
    index.add([instance(f"1.1.1.{n}", t00100020="P1", t00080060="CT") for n in range(3)])
    index.add([instance("1.1.2.1", series="1.1.2", t00100020="P1", t00080060="SR", t00080016=SR)])
    index.add(
        [instance("1.2.1.1", study="1.2", series="1.2.1", t00100020="P1", t00080060="MR", t00080016=MR)]
    )

    [patient] = index.query(Level.PATIENT, EVERYTHING)
    assert [patient[tag]["Value"] for tag in ("00201200", "00201202", "00201204")] == [[2], [3], [5]]
    [study] = find(index, Level.STUDY, t0020000D="1.1")
    assert study["00080061"]["Value"] == ["CT", "SR"]
    assert study["00080062"]["Value"] == [CT, SR]
    assert [study[tag]["Value"] for tag in ("00201206", "00201208")] == [[2], [4]]
    assert values(find(index, Level.SERIES, t0020000D="1.1"), "00201209") == [3, 1]
    assert index.counts() == Counts(patients=1, studies=2, series=3, instances=5)


def test_a_study_has_the_attributes_of_what_was_received_first(index: SQLiteIndex) -> None:
    index.add([instance("1.1.1.1", received=20, t00081030="second", t00100010="B")])
    index.add([instance("1.1.1.2", received=10, t00081030="first", t00100010="A")])
    index.add([instance("1.1.2.1", series="1.1.2", received=30, t00081030="third", t00100010="C")])

    [study] = index.query(Level.STUDY, EVERYTHING)
    assert study["00081030"]["Value"] == ["first"]
    assert values(find(index, Level.STUDY, t00100010="a"), "0020000D") == ["1.1"]
    assert find(index, Level.STUDY, t00100010="b") == []
    # An image is found under what its study is called, whatever its own header says.
    assert values(index.query(Level.IMAGE, EVERYTHING), "00081030") == ["first"] * 3


def test_order_of_arrival_does_not_matter(make_index: Callable[..., SQLiteIndex]) -> None:
    instances = [
        instance(
            f"1.{s}.{e}.{i}",
            study=f"1.{s}",
            series=f"1.{s}.{e}",
            received=7 * (s + e + i) % 5,
            t00100020=f"P{i}",
        )
        for s in range(2)
        for e in range(2)
        for i in range(3)
    ]
    forwards, backwards = make_index("forwards"), make_index("backwards")
    forwards.add(instances)
    for one in reversed(instances):
        backwards.add([one])

    for level in Level:
        texts = [
            sorted(json.dumps(entity) for entity in index.query(level, EVERYTHING))
            for index in (forwards, backwards)
        ]
        assert texts[0] == texts[1]


def test_people_without_id_are_told_apart_by_name_and_birth_date(index: SQLiteIndex) -> None:
    index.add(
        [
            instance("1.1", study="1.1", t00100010="Doe^Jane", t00100030="19700101"),
            instance("1.2", study="1.2", t00100010="Doe^Jane", t00100030="19800101"),
            instance("1.3", study="1.3", t00100010="Doe^Jane", t00100030="19800101"),
        ]
    )
    assert sorted(values(index.query(Level.PATIENT, EVERYTHING), "00201200")) == [1, 2]


def test_issuer_tells_patients_apart(index: SQLiteIndex) -> None:
    index.add([instance("1.1", study="1.1", t00100020="1", t00100021="A")])
    index.add([instance("1.2", study="1.2", t00100020="1", t00100021="B")])
    assert sorted(values(find(index, Level.PATIENT, t00100020="1"), "00100021")) == ["A", "B"]


# Changes


def test_the_same_path_again_replaces(index: SQLiteIndex) -> None:
    index.add([instance("1.1.1.1", t00100020="P1", t00080050="old"), instance("1.1.1.2", t00100020="P1")])
    index.add([instance("1.1.1.1", t00100020="P2", t00080050="new", t00080016=MR)])

    assert index.counts() == Counts(1, 1, 1, 2)
    assert values(index.query(Level.PATIENT, EVERYTHING), "00100020") == ["P2"]
    [study] = index.query(Level.STUDY, EVERYTHING)
    assert (study["00080050"]["Value"], study["00080062"]["Value"]) == (["new"], [CT, MR])
    assert values(find(index, Level.STUDY, t00080050="new"), "0020000D") == ["1.1"]
    assert find(index, Level.STUDY, MatchingOptions(empty_matches=False), t00080050="old") == []


def test_removing_the_last_instance_removes_all_above(index: SQLiteIndex) -> None:
    first, second = instance("1.1.1.1", t00100020="P1"), instance("1.1.2.1", series="1.1.2", t00100020="P1")
    index.add([first, second])
    index.remove([first.path, "no/such/file.dcm", "neither"])
    assert index.counts() == Counts(1, 1, 1, 1)
    assert values(index.query(Level.SERIES, EVERYTHING), "0020000E") == ["1.1.2"]
    index.remove([second.path])
    assert index.counts() == Counts(0, 0, 0, 0)
    for level in Level:
        assert list(index.query(level, EVERYTHING)) == []
    index.add([first])
    assert index.counts() == Counts(1, 1, 1, 1)


def test_removing_the_representative_finds_another(index: SQLiteIndex) -> None:
    first = instance("1.1.1.1", received=1, t00081030="first")
    index.add([first, instance("1.1.1.2", received=2, t00081030="second")])
    index.remove([first.path])
    assert values(index.query(Level.STUDY, EVERYTHING), "00081030") == ["second"]


def test_a_second_file_of_a_uid_stands_in_the_shadow_of_the_first(index: SQLiteIndex) -> None:
    first = instance("1.1.1.1", received=1, t00200013="1")
    second = instance("1.1.1.1", received=2, name="1.1.1.1-0123abcd.dcm", t00200013="2")
    index.add([second])
    index.add([first])

    assert index.counts().instances == 1
    assert values(index.query(Level.IMAGE, EVERYTHING), "00200013") == ["1"]
    assert [Path(one.path).name for one in index.instances(UniqueKeys())] == ["1.1.1.1.dcm"]
    assert values(index.query(Level.SERIES, EVERYTHING), "00201209") == [1]
    assert index.has(first.path)
    assert index.has(second.path)

    index.remove([first.path])
    assert index.counts().instances == 1
    assert values(index.query(Level.IMAGE, EVERYTHING), "00200013") == ["2"]
    assert [Path(one.path).name for one in index.instances(UniqueKeys())] == ["1.1.1.1-0123abcd.dcm"]


def test_odd_uids_have_rows_of_their_own(index: SQLiteIndex) -> None:
    odd = ["", "1.2.3/../../x", "not a uid", "1.2é", "'; DROP TABLE study; --"]
    instances = [instance("1.9", study=uid, series=uid) for uid in odd] + [
        instance(uid, study="1", series="1") for uid in odd[1:]
    ]
    index.add(instances)
    assert index.counts() == Counts(1, 6, 6, 9)
    assert sorted(path for path, _, _ in index.files()) == sorted(one.path for one in instances)
    assert all(index.has(one.path) for one in instances)
    found = [one.sop_instance_uid for one in index.instances(UniqueKeys(sop_instance_uids=odd[1:]))]
    assert sorted(found) == sorted(odd[1:])
    index.remove([one.path for one in instances])
    assert index.counts() == Counts(0, 0, 0, 0)


def test_a_batch_that_fails_leaves_nothing(index: SQLiteIndex) -> None:
    def broken() -> Iterator[IndexedInstance]:
        yield instance("1.1.1.1")
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        index.add(broken())
    assert index.counts() == Counts(0, 0, 0, 0)
    index.add([instance("1.1.1.2", t00081030="kept")])
    assert values(index.query(Level.STUDY, EVERYTHING), "00081030") == ["kept"]


# Queries


def test_character_sets_of_real_names_are_found(index: SQLiteIndex) -> None:
    folder = Path(pydicom.__file__).parent / "data" / "charset_files"
    names = {
        "chrH31.dcm": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "chrI2.dcm": "Hong^Gildong=洪^吉洞=홍^길동",
        "chrX1.dcm": "Wang^XiaoDong=王^小東",
        "chrX2.dcm": "Wang^XiaoDong=王^小东",
        "chrRuss.dcm": "Люкceмбypг",
    }
    for number, file in enumerate(names):
        content = (folder / file).read_bytes()
        end_of_meta = 144 + int.from_bytes(content[140:144], "little")
        header = decode_data_set(
            content[end_of_meta:], pydicom.dcmread(folder / file).file_meta.TransferSyntaxUID
        )
        plain = instance(f"1.{number}", study=f"1.{number}")
        for tag in ("00080018", "0020000D", "0020000E"):
            header[tag] = plain.header[tag]
        index.add(
            [
                IndexedInstance(
                    **{field: getattr(plain, field) for field in plain.__slots__} | {"header": header}
                )
            ]
        )

    def studies(name: str) -> list[str]:
        return sorted(values(find(index, Level.STUDY, t00100010=name), "0020000D"))

    assert studies("yamada*") == ["1.0"]
    assert studies("山田*") == ["1.0"]
    assert studies("=山田^太郎") == ["1.0"]
    assert studies("홍^길동") == ["1.1"]
    assert studies("wang*") == ["1.2", "1.3"]
    assert studies("王^小东") == ["1.3"]
    assert studies("люк*") == ["1.4"]
    assert studies("*太?") == ["1.0"]


def test_any_attribute_of_the_header_is_matched_and_returned(index: SQLiteIndex) -> None:
    index.add([instance("1.1.1.1", t00201041="1.5"), instance("1.1.1.2", t00201041="2.5")])
    [found] = find(index, Level.IMAGE, t00201041="2.50")
    assert found["00080018"]["Value"] == ["1.1.1.2"]


def test_headers_are_returned_as_they_were_stored(index: SQLiteIndex) -> None:
    first, second = instance("1.1.1.1", t00081030="one"), instance("1.1.1.2", received=2, t00081030="two")
    index.add([first, second])
    headers = [header for _, header in index.headers(UniqueKeys(study_instance_uids=["1.1"]))]
    assert headers == [first.header, second.header]


def test_references_to_bulk_data_are_in_encoded_headers_only(index: SQLiteIndex) -> None:
    """Where there is no URL for them, an element whose value is elsewhere has none. Text that looks like a reference is
    text."""
    text = ',"BulkDataURI":"00291010"'
    referring: dict[str, Any] = {
        "00204000": {"vr": "LT", "Value": [text]},
        "00291010": {"vr": "OB", "BulkDataURI": "00291010"},
        "00291011": {"vr": "SQ", "Value": [{"00291010": {"vr": "UN", "BulkDataURI": "00291011/1/00291010"}}]},
    }
    plain = referring | {
        "00291010": {"vr": "OB"},
        "00291011": {"vr": "SQ", "Value": [{"00291010": {"vr": "UN"}}]},
    }
    stored = instance("1.1.1.1")
    index.add([replace(stored, header=stored.header | referring)])
    keys = UniqueKeys(study_instance_uids=["1.1"])
    [(_, encoded)] = index.encoded_headers(keys)
    assert json.loads(encoded) == stored.header | referring
    [(_, decoded)] = index.headers(keys)
    assert decoded == stored.header | plain
    [found] = find(index, Level.IMAGE)
    assert found.items() >= plain.items()


def test_retrieval_by_unique_keys(index: SQLiteIndex, tmp_path: Path) -> None:
    index.add(
        instance(
            f"1.{s}.{e}.{i}", study=f"1.{s}", series=f"1.{s}.{e}", t00100020=f"P{s}", t00080050=["A", "B"]
        )
        for s in range(2)
        for e in range(2)
        for i in range(2)
    )

    def uids(**keys: Any) -> list[str]:
        found = [one.sop_instance_uid for one in index.instances(UniqueKeys(**keys))]
        assert index.count(UniqueKeys(**keys)) == len(found)
        return sorted(found)

    assert len(uids()) == 8
    assert uids(patient_ids=["P1"]) == ["1.1.0.0", "1.1.0.1", "1.1.1.0", "1.1.1.1"]
    assert uids(patient_ids=["P1"], study_instance_uids=["1.0"]) == []
    assert uids(study_instance_uids=["1.0"], series_instance_uids=["1.0.1", "1.1.1"]) == [
        "1.0.1.0",
        "1.0.1.1",
    ]
    assert uids(sop_instance_uids=["1.1.0.1", "1.0.0.0", "9"]) == ["1.0.0.0", "1.1.0.1"]
    assert uids(series_instance_uids=[]) == []
    assert uids(sop_instance_uids=[f"1.{n}" for n in range(40_000)] + ["1.1.0.1"]) == ["1.1.0.1"]
    [one] = index.instances(UniqueKeys(sop_instance_uids=["1.1.0.1"]))
    assert one.path == f"{tmp_path}/1.1/1.1.0/1.1.0.1.dcm"
    assert (one.sop_class_uid, one.transfer_syntax_uid) == (CT, EXPLICIT)
    assert (one.size_bytes, one.data_set_offset, one.pixel_data_offset) == (1000, 340, 900)


def test_pages_follow_each_other_and_keep_their_order(index: SQLiteIndex) -> None:
    dates = ["20240101", "20231231", None, "20240102"]
    index.add(instance(f"1.{n}", study=f"1.{n}", t00080020=dates[n % 4]) for n in range(150))
    everything = values(index.query(Level.STUDY, EVERYTHING), "0020000D")
    assert len(set(everything)) == 150
    assert values(index.query(Level.STUDY, EVERYTHING, limit=1), "00080020") == ["20240102"]
    pages = [
        uid
        for offset in range(0, 160, 7)
        for uid in values(index.query(Level.STUDY, EVERYTHING, limit=7, offset=offset), "0020000D")
    ]
    assert pages == everything
    # Rows whose date is unknown match any date, and come after the others.
    options = MatchingOptions(empty_matches=True)
    found = find(index, Level.STUDY, options, t00080020="20240101-")
    assert values(found, "00080020") == ["20240102"] * 37 + ["20240101"] * 38 + [None] * 37


def test_an_instance_that_is_added_while_reading_disturbs_nothing(index: SQLiteIndex) -> None:
    index.add(instance(f"1.{n:03}", series="1.1.1") for n in range(0, 200, 2))
    answers = index.query(Level.IMAGE, EVERYTHING)
    first = next(answers)
    index.add(instance(f"1.{n:03}", series="1.1.1") for n in range(1, 200, 2))
    index.remove([instance("1.150").path])
    uids = values([first, *answers], "00080018")
    assert len(set(uids)) == len(uids)
    assert set(uids) >= {f"1.{n:03}" for n in range(0, 200, 2)} - {"1.150"}


def explained(index: SQLiteIndex, **keys: Any) -> str:
    """How SQLite looks for the plain rows of a STUDY query."""
    matcher = compile_query(model({tag[1:]: value for tag, value in keys.items()}))
    where, parameters = next(STUDY.passes(conditions_of(matcher, STUDY, Level.STUDY)))
    database = sqlite3.connect(index._path)
    try:
        plan = database.execute("EXPLAIN QUERY PLAN " + STUDY.page(where, after=None, rows=16), parameters)
        return " | ".join(row[3] for row in plan)
    finally:
        database.close()


@pytest.mark.parametrize(
    ("key", "value", "how"),
    [
        ("t00100020", "P1", "study_by_patient_id (patient_id=?)"),
        ("t00100020", "P1*", "study_by_patient_id (patient_id>? AND patient_id<?)"),
        ("t00080020", "20240101-20240131", "study_by_date (study_date>? AND study_date<?)"),
        ("t00080020", "20240101", "study_by_date (study_date=?)"),
        ("t00080050", "A1", "study_by_accession_number (accession_number=?)"),
        ("t00200010", "S1", "study_by_study_id (study_id=?)"),
        ("t0020000D", ["1.2", "1.3"], "sqlite_autoindex_study_1 (uid=?)"),
        ("t00100010", "Doe*", "name USING PRIMARY KEY (kind=? AND key>? AND key<?)"),
        ("t00080090", "Smith^J*", "name USING PRIMARY KEY (kind=? AND key>? AND key<?)"),
        ("t0020000E", "1.2", "study"),
    ],
)
def test_queries_use_indexes(index: SQLiteIndex, key: str, value: Any, how: str) -> None:
    plan = explained(index, **{key: value})
    if key == "t0020000E":
        assert "SCAN study" in plan  # a study has no series: the key asks nothing at this level
        return
    assert how in plan
    assert "SCAN study" not in plan
    assert "SCAN name" not in plan


def test_a_date_range_needs_no_sorting(index: SQLiteIndex) -> None:
    assert "TEMP B-TREE" not in explained(index, t00080020="20240101-")
    assert "TEMP B-TREE" not in explained(index)


# Columns never hide what the matcher would find

IDS = st.sampled_from(["P1", "p1", "P10", " P1", "*", "[a]", "P\u00e91", "Pe\u03011", "0P"])
DATES = st.sampled_from(["20240101", "2024.01.01", "20231231", "2024", "nonsense", "20240101 "])
NAMES = st.sampled_from(
    [
        "Doe^Jane",
        "DOE^JANE^^",
        "Doe",
        "doe^j",
        "Müller^Ö",
        "Muller^O",
        "山田^太郎",
        "A=山田^太郎=やまだ",
        "^",
        "[x]^y",
    ]
)
MODALITIES = st.sampled_from(["CT", "MR", "SR", "ct"])


def stored(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, values, st.none(), st.lists(values, min_size=2, max_size=2))


def attributes(strategies: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


STUDY_PARTS = attributes(
    {
        "t00100020": stored(IDS),
        "t00100010": stored(NAMES),
        "t00080020": stored(DATES),
        "t00080050": stored(IDS),
        "t00100030": stored(DATES),
        "t00080090": stored(NAMES),
    }
)
SERIES_PARTS = attributes(
    {"t00080060": stored(MODALITIES), "t00200011": stored(st.sampled_from(["1", "+1", "01", "x"]))}
)
INSTANCE_PARTS = attributes(
    {"t00200013": stored(st.sampled_from(["1", "2", "10"])), "t00201041": st.just("1.5")}
)
ARCHIVES = st.lists(
    st.tuples(
        STUDY_PARTS, st.lists(st.tuples(SERIES_PARTS, st.lists(INSTANCE_PARTS, max_size=3)), max_size=3)
    ),
    max_size=4,
)

WILD = st.text(st.sampled_from("P1p*?é[a]0"), min_size=1, max_size=5)
WILD_NAMES = st.one_of(
    NAMES, st.sampled_from(["doe*", "*j*", "d?e*", "Doe^*", "m?ller*", "=山*", "*[*", "A", "**"])
)
RANGES = st.sampled_from(["20240101", "20231231-20240101", "-2023", "2024-", "20240102-20240201", "202401"])
IDENTIFIERS = attributes(
    {
        "t00100020": st.one_of(IDS, WILD),
        "t00100010": WILD_NAMES,
        "t00080090": WILD_NAMES,
        "t00080020": RANGES,
        "t00100030": RANGES,
        "t00080050": st.one_of(IDS, WILD, st.just('""')),
        "t00080060": st.one_of(MODALITIES, st.just("C*")),
        "t00080061": st.one_of(MODALITIES, st.just(["CT", "MR"]), st.just("?R")),
        "t00200011": st.sampled_from(["1", "2"]),
        "t00200013": st.sampled_from(["1", "10"]),
        "t00201041": st.just("1.5"),
        "t00201208": st.sampled_from(["1", "2"]),
        "t0020000D": st.sampled_from(["1.0", ["1.0", "1.1"]]),
        "t0020000E": st.sampled_from(["1.0.0", ["1.0.0", "1.1.1"]]),
        "t00080018": st.sampled_from(["1.0.0.0", ["1.0.0.0", "1.1.0.1"]]),
    }
)
OPTIONS = st.builds(
    MatchingOptions,
    empty_matches=st.booleans(),
    empty_value_matching=st.booleans(),
    multiple_value_matching=st.booleans(),
    fuzzy_names=st.booleans(),
    fold_accents=st.booleans(),
)


@settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(archive=ARCHIVES, asked=st.lists(st.tuples(IDENTIFIERS, OPTIONS), min_size=1, max_size=6))
def test_answers_are_those_of_the_matcher(index: SQLiteIndex, archive: Any, asked: Any) -> None:
    index.clear()
    index.add(
        instance(f"1.{s}.{e}.{i}", study=f"1.{s}", series=f"1.{s}.{e}", **study, **series, **image)
        for s, (study, all_series) in enumerate(archive)
        for e, (series, images) in enumerate(all_series)
        for i, image in enumerate(images)
    )
    for level in Level:
        everything = [*index.query(level, EVERYTHING)]
        for identifier, options in asked:
            matcher = compile_query(model({tag[1:]: value for tag, value in identifier.items()}), options)
            expected = [json.dumps(entity) for entity in everything if matcher.matches(entity)]
            found = [json.dumps(entity) for entity in index.query(level, matcher)]
            assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ({"t00100020": "[a]1"}, {"t00100020": "[a]*"}),  # a set of characters in GLOB, not in DICOM
        ({"t00100020": "x[a]"}, {"t00100020": "*[a]"}),
        ({"t00100010": "[x]^y"}, {"t00100010": "*[*"}),
        ({"t00100020": "P\U0010ffff9"}, {"t00100020": "P\U0010ffff*"}),
        ({"t00100020": "\ud7ff9"}, {"t00100020": "\ud7ff*"}),
        ({"t00080060": ["CT", "PT"]}, {"t00080061": "PT"}),
        ({"t00080020": ["20240101", "20250101"]}, {"t00080020": "2025-"}),
        ({"t00080020": "2024.01.01"}, {"t00080020": "20240101"}),
        ({"t00100020": None}, {"t00100020": "P1"}),
        ({"t00100010": None}, {"t00100010": "Doe*"}),
        ({"t00080060": None}, {"t00080061": "PT"}),
        ({"t00100010": "Doe"}, {"t00100010": "Doe^*"}),
        ({"t00100020": "P" + "1" * 60}, {"t00100020": "P" + "*1" * 30}),
    ],
)
def test_what_columns_cannot_tell_is_found_all_the_same(
    index: SQLiteIndex, stored: dict[str, Any], asked: dict[str, Any]
) -> None:
    index.add(
        [
            instance("1.1.1.1", **stored),
            instance("2.1.1.1", study="2.1", t00100020="other", t00100010="Other^O"),
        ]
    )
    assert "1.1" in values(find(index, Level.STUDY, **asked), "0020000D")


UIDS = st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 2), st.booleans())
CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "remove"]), UIDS, st.integers(1, 4), st.sampled_from(["A", "B"])),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_after_any_changes_it_is_as_if_made_anew(
    index: SQLiteIndex, make_index: Callable[..., SQLiteIndex], changes: Any
) -> None:
    index.clear()
    there: dict[str, IndexedInstance] = {}
    for action, (s, e, i, beside), received, patient in changes:
        one = instance(
            f"1.{s}.{e}.{i}",
            study=f"1.{s}",
            series=f"1.{s}.{e}",
            received=received,
            name=f"1.{s}.{e}.{i}-0123abcd.dcm" if beside else "",
            t00100020=patient,
            t00081030=f"{received}{beside}",
            t00080060="CT" if received % 2 else "MR",
        )
        if action == "add":
            there[one.path] = one
            index.add([one])
        else:
            there.pop(one.path, None)
            index.remove([one.path])
    anew = make_index("anew")
    try:
        anew.clear()
        anew.add(there.values())
        assert index.counts() == anew.counts()
        for level in Level:
            texts = [
                sorted(json.dumps(entity) for entity in one.query(level, EVERYTHING)) for one in (index, anew)
            ]
            assert texts[0] == texts[1]
        keys = UniqueKeys()
        assert {one.path for one in index.instances(keys)} == {one.path for one in anew.instances(keys)}
    finally:
        anew.close()


# Files


def test_an_answer_whose_file_is_gone_is_dropped_and_so_is_its_row(
    make_index: Callable[..., SQLiteIndex], tmp_path: Path
) -> None:
    index = make_index(verify_files=True)
    instances = [instance(f"1.1.1.{n}", received=n, t00081030=f"of {n}") for n in range(3)]
    other = instance("1.2.1.1", study="1.2", series="1.2.1")
    for one in (*instances, other):
        (tmp_path / one.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / one.path).touch()
    index.add([*instances, other])

    (tmp_path / instances[0].path).unlink()
    assert values(find(index, Level.STUDY, t0020000D="1.1"), "00081030") == ["of 1"]
    assert index.counts() == Counts(1, 2, 2, 3)
    (tmp_path / instances[2].path).unlink()
    assert values(find(index, Level.IMAGE, t0020000D="1.1"), "00080018") == ["1.1.1.1"]
    assert index.counts().instances == 2
    (tmp_path / other.path).unlink()
    assert [one.sop_instance_uid for one in index.instances(UniqueKeys())] == ["1.1.1.1"]
    assert index.counts() == Counts(1, 1, 1, 1)
    (tmp_path / instances[1].path).unlink()
    for level in Level:
        assert list(index.query(level, EVERYTHING)) == []
    assert index.counts() == Counts(0, 0, 0, 0)


def test_the_version_of_instances_changes_with_any_of_them(index: SQLiteIndex) -> None:
    now = 1_700_000_000_000_000_000
    study, series = UniqueKeys(study_instance_uids=["1.1"]), UniqueKeys(series_instance_uids=["1.1.1"])
    assert index.version(study) == ""
    # So many that their times do not add up to 64 bits.
    index.add([instance(f"1.1.1.{n}", received=now + n) for n in range(20)])
    seen = [index.version(study)]
    index.add([instance("1.2.1.1", study="1.2", series="1.2.1", received=now)])
    assert index.version(study) == seen[0] == index.version(study, within_s=30.0)
    index.add([instance("1.1.2.1", series="1.1.2", received=now)])
    assert index.version(series) == seen[0]
    seen.append(index.version(study))
    index.add([instance("1.1.1.3", received=now + 1_000_000_003)])  # replaced
    seen.append(index.version(study))
    index.remove([instance("1.1.1.3").path])
    seen.append(index.version(study))
    assert len(set(seen)) == len(seen)
    index.add([instance("1.1.1.3", received=now + 1_000_000_003)])
    assert index.version(study) == seen[2]


# Within a time


def test_the_same_is_found_within_a_time(index: SQLiteIndex) -> None:
    index.add([instance(f"1.1.1.{n}", series=f"1.1.{n % 3}", received=n) for n in range(60)])
    keys = UniqueKeys(study_instance_uids=["1.1"])
    for level in Level:
        expected = list(index.query(level, EVERYTHING))
        assert list(index.query(level, EVERYTHING, within_s=30.0)) == expected
    assert list(index.instances(keys, within_s=30.0)) == list(index.instances(keys))
    assert list(index.headers(keys, within_s=30.0)) == list(index.headers(keys))


def test_one_instance_is_found_in_its_study_and_series_only(index: SQLiteIndex) -> None:
    index.add([instance("1.1.1.1"), instance("1.1.1.1", study="1.2", received=2), instance("1.1.1.2")])
    for study, series, uid, count in (
        ("1.1", "1.1.1", "1.1.1.1", 1),
        ("1.2", "1.1.1", "1.1.1.1", 1),
        ("1.2", "1.1.1", "1.1.1.2", 0),
        ("1.1", "1.1.2", "1.1.1.1", 0),
        ("1.3", "1.1.1", "1.1.1.1", 0),
    ):
        keys = UniqueKeys(None, (study,), (series,), (uid,))
        expected = list(index.headers(keys))
        assert len(expected) == count
        assert list(index.headers(keys, within_s=30.0)) == expected
        assert list(index.instances(keys, within_s=30.0)) == list(index.instances(keys))


def test_a_search_is_broken_off_when_its_time_is_over(index: SQLiteIndex) -> None:
    index.add([instance(f"1.1.1.{n}", received=n) for n in range(3000)])
    assert len(list(index.query(Level.IMAGE, EVERYTHING))) == 3000
    with pytest.raises(TookTooLong):
        list(index.query(Level.IMAGE, EVERYTHING, within_s=0.0))
    with pytest.raises(TookTooLong):
        list(index.instances(UniqueKeys(), within_s=0.0))
    assert len(list(index.query(Level.IMAGE, EVERYTHING))) == 3000  # its connection can be used again


def test_no_connection_is_opened_within_a_time(index: SQLiteIndex) -> None:
    index.add([instance("1.1.1.1")])
    with pytest.raises(TookTooLong, match="no connection"):
        list(index.query(Level.STUDY, EVERYTHING, within_s=30.0))


def test_rows_whose_files_are_gone_are_left_to_who_has_time(
    make_index: Callable[..., SQLiteIndex],
) -> None:
    index = make_index(verify_files=True)
    index.add([instance("1.1.1.1")])
    index.has("1.1")
    with pytest.raises(TookTooLong):
        list(index.query(Level.STUDY, EVERYTHING, within_s=30.0))
    assert index.counts() == Counts(1, 1, 1, 1)
    with pytest.raises(TookTooLong, match="vanished"):
        list(index.query(Level.STUDY, EVERYTHING, within_s=30.0))
    with pytest.raises(TookTooLong, match="vanished"):
        list(index.instances(UniqueKeys(), within_s=30.0))
    assert index.counts() == Counts(1, 1, 1, 1)
    assert list(index.query(Level.STUDY, EVERYTHING)) == []


# Opening, closing, damage


def test_one_at_a_time(make_index: Callable[..., SQLiteIndex]) -> None:
    index = make_index()
    with pytest.raises(IndexInUse):
        make_index()
    index.close()
    make_index()


def test_closed_it_says_so(index: SQLiteIndex) -> None:
    index.add(instance(f"1.{n}", study=f"1.{n}") for n in range(40))
    answers = index.query(Level.STUDY, EVERYTHING)
    next(answers)
    index.close()
    index.close()
    with pytest.raises(ArchiveIndexError, match="closed"):
        list(answers)
    with pytest.raises(ArchiveIndexError, match="closed"):
        index.add([instance("1.1")])


def test_it_is_current_only_once_that_was_said(make_index: Callable[..., SQLiteIndex]) -> None:
    index = make_index()
    assert index.state is IndexState.INCOMPLETE
    index.close()
    index = make_index()
    assert index.state is IndexState.INCOMPLETE
    index.set_current()
    index.add([instance("1.1")])
    index.close()
    index = make_index()
    assert index.state is IndexState.CURRENT
    assert index.counts().instances == 1


def test_an_unclosed_index_of_an_earlier_boot_is_suspect(
    make_index: Callable[..., SQLiteIndex], tmp_path: Path
) -> None:
    index = make_index()
    index.set_current()
    index.add([instance("1.1")])
    index._set_meta("opened", "another boot")
    index._set_meta = lambda key, value: None  # as if closing never came to it
    index.close()
    again = make_index()
    assert again.state is IndexState.SUSPECT
    assert again.counts().instances == 1


@pytest.mark.parametrize("keep", [0, 50, 100, 5000, 0.5, -1])
def test_a_truncated_index_is_found_out_and_begun_anew(
    make_index: Callable[..., SQLiteIndex], tmp_path: Path, keep: float
) -> None:
    index = make_index()
    index.set_current()
    index.add(instance(f"1.{n}", study=f"1.{n}") for n in range(200))
    index.close()
    path = tmp_path / "index" / "index.sqlite"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(keep * size) if 0 < keep < 1 else keep % size)
    index = make_index()
    assert index.state is IndexState.INCOMPLETE
    assert index.counts() == Counts(0, 0, 0, 0)


@pytest.mark.parametrize("content", [b"", b"no zstandard frame", zstandard.compress(b"no JSON")])
def test_damage_found_while_reading_is_remembered(
    make_index: Callable[..., SQLiteIndex], tmp_path: Path, content: bytes
) -> None:
    index = make_index()
    index.set_current()
    index.add([instance("1.1")])
    index._database.execute("UPDATE header SET content = ?", (content,))
    with pytest.raises(IndexDamaged):
        list(index.query(Level.IMAGE, EVERYTHING))
    index.close()
    index = make_index()
    assert index.state is IndexState.INCOMPLETE
    assert index.counts().instances == 0


def test_another_version_is_begun_anew(make_index: Callable[..., SQLiteIndex], tmp_path: Path) -> None:
    index = make_index()
    index.set_current()
    index.close()
    database = sqlite3.connect(tmp_path / "index" / "index.sqlite")
    database.execute("PRAGMA user_version = 9999")
    database.close()
    assert make_index().state is IndexState.INCOMPLETE


def test_readers_and_the_writer_do_not_disturb_each_other(index: SQLiteIndex) -> None:
    """Each batch is a whole study: a reader sees all of it or nothing."""
    done = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                for study in index.query(Level.STUDY, EVERYTHING):
                    assert study["00201208"]["Value"] == [4]
                for _ in index.query(Level.IMAGE, EVERYTHING, limit=50):
                    pass
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(60):
        index.add(instance(f"1.{n}.{i}", study=f"1.{n}", series=f"1.{n}.{i % 2}") for i in range(4))
        if n % 3 == 2:
            index.remove(
                instance(f"1.{n}.{i}", study=f"1.{n}", series=f"1.{n}.{i % 2}").path for i in range(4)
            )
    done.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert index.counts().studies == 40


def test_values_that_sqlite_cannot_take_are_left_to_the_matcher(index: SQLiteIndex) -> None:
    index.add([instance("1.1", t00100020="a\0b", t00100010="x\0y")])
    assert len(find(index, Level.STUDY, t00100020="a\0b")) == 1
    assert len(find(index, Level.STUDY, t00100020="a*b")) == 1
    assert find(index, Level.STUDY, t00100020="\ud800") == []
