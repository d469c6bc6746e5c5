"""Identifiers for a PACS, byte by byte as PS3.4 §C.4 and §C.6 have them; which models have which level."""

from types import SimpleNamespace

import pytest

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.archive.matcher import MatchingOptions
from harmony.dicom.json_model import decode_data_set
from harmony.dimse.information_model import PATIENT_ROOT, PATIENT_STUDY_ONLY, STUDY_ROOT
from harmony.gateway.backend import Query
from harmony.gateway.identifiers import (
    answer,
    is_empty,
    matches_keys,
    propose_questions,
    query_identifier,
    query_models,
    retrieve_identifier,
    retrieve_level,
    retrieve_models,
)

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


def context(sop_class, syntax=EXPLICIT):
    return SimpleNamespace(abstract_syntax=sop_class, transfer_syntax=syntax)


@pytest.mark.parametrize(
    ("level", "patient_root", "query", "retrieve"),
    [
        (Level.PATIENT, False, [PATIENT_ROOT, PATIENT_STUDY_ONLY], [PATIENT_ROOT]),
        (Level.PATIENT, True, [PATIENT_ROOT, PATIENT_STUDY_ONLY], [PATIENT_ROOT]),
        (Level.STUDY, False, [STUDY_ROOT, PATIENT_ROOT, PATIENT_STUDY_ONLY], [STUDY_ROOT, PATIENT_ROOT]),
        (Level.STUDY, True, [PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY], [PATIENT_ROOT, STUDY_ROOT]),
        (Level.SERIES, False, [STUDY_ROOT, PATIENT_ROOT], [STUDY_ROOT, PATIENT_ROOT]),
        (Level.IMAGE, True, [PATIENT_ROOT, STUDY_ROOT], [PATIENT_ROOT, STUDY_ROOT]),
    ],
)
def test_models_in_order_of_preference(level, patient_root, query, retrieve):
    assert query_models(level, patient_root=patient_root) == query
    assert retrieve_models(level, patient_root=patient_root) == retrieve


def test_a_query_gets_the_level_and_the_unique_keys_of_the_model():
    given = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "DOE*"}]}}
    encode = query_identifier(Query(Level.IMAGE, given))
    study_root = (
        b"\x08\x00\x16\x00UI\x00\x00\x08\x00\x18\x00UI\x00\x00\x08\x00\x52\x00CS\x06\x00IMAGE "
        b"\x10\x00\x10\x00PN\x04\x00DOE*%b\x20\x00\x0d\x00UI\x00\x00\x20\x00\x0e\x00UI\x00\x00"
    )
    assert encode(context(STUDY_ROOT.find)) == study_root % b""
    assert encode(context(PATIENT_ROOT.find)) == study_root % b"\x10\x00\x20\x00LO\x00\x00"


def test_a_query_in_implicit_vr():
    encode = query_identifier(Query(Level.STUDY, {"0020000D": {"vr": "UI", "Value": ["1.2", "1.3"]}}))
    assert encode(context(STUDY_ROOT.find, IMPLICIT)) == (
        b"\x08\x00\x52\x00\x06\x00\x00\x00STUDY \x20\x00\x0d\x00\x08\x00\x00\x001.2\\1.3\x00"
    )


def test_what_is_not_for_the_wire_is_left_out():
    given = {
        "00080052": {"vr": "CS", "Value": ["IMAGE"]},
        "00080053": {"vr": "CS", "Value": ["CLASSIC"]},
        "00080054": {"vr": "AE", "Value": ["HERE"]},
        "00080056": {"vr": "CS"},
        "0020000D": {"vr": "UI", "Value": ["*"]},
    }
    assert query_identifier(Query(Level.STUDY, given))(context(STUDY_ROOT.find)) == (
        b"\x08\x00\x52\x00CS\x06\x00STUDY \x20\x00\x0d\x00UI\x00\x00"
    )


def test_every_attribute_of_a_level_and_those_above():
    given = {"00100020": {"vr": "LO", "Value": ["P1"]}, "00102160": {"vr": "SH"}}
    encode = query_identifier(Query(Level.STUDY, given, all_attributes=True))
    identifier = decode_data_set(encode(context(STUDY_ROOT.find)), EXPLICIT)
    assert identifier["00100020"] == {"vr": "LO", "Value": ["P1"]}
    assert {"00100010", "00100040", "00200010", "00080061"} <= identifier.keys()  # PS3.4 Table C.6-5
    assert not identifier.keys() & {"00080060", "0020000E", "00200013"}
    assert [key for key, element in identifier.items() if "Value" in element] == ["00080052", "00100020"]


def test_a_time_zone_is_stated_only_where_there_is_one():
    """(0008,0201) is no key: it says how to read the dates of the Identifier (PS3.4 §C.4.1.1.3.1)."""
    for given, sent in (({"vr": "SH"}, False), ({"vr": "SH", "Value": ["+0100"]}, True)):
        encode = query_identifier(Query(Level.STUDY, {"00080201": given}))
        assert ("00080201" in decode_data_set(encode(context(STUDY_ROOT.find)), EXPLICIT)) is sent


@pytest.mark.parametrize(
    ("keys", "level"),
    [
        (UniqueKeys(["P"]), Level.PATIENT),
        (UniqueKeys(["P"], ["1"]), Level.STUDY),
        (UniqueKeys(None, ["1"]), Level.STUDY),
        (UniqueKeys(None, None, ["2"]), Level.SERIES),
        (UniqueKeys(None, ["1"], None, ["3"]), Level.IMAGE),
    ],
)
def test_the_level_of_a_retrieve_is_that_of_its_deepest_key(keys, level):
    assert retrieve_level(keys) is level


def test_a_retrieve_has_level_and_unique_keys_and_nothing_else():
    keys = UniqueKeys(["P1"], ["1.2"], ["1.2.3", "1.2.4"])
    encoded = retrieve_identifier(keys)
    study_root = (
        b"\x08\x00\x52\x00CS\x06\x00SERIES%b"
        b"\x20\x00\x0d\x00UI\x04\x001.2\x00\x20\x00\x0e\x00UI\x0c\x001.2.3\\1.2.4\x00"
    )
    assert encoded(context(STUDY_ROOT.get)) == study_root % b""
    assert encoded(context(PATIENT_ROOT.move)) == study_root % b"\x10\x00\x20\x00LO\x02\x00P1"


def test_keys_that_nothing_can_match():
    assert is_empty(UniqueKeys(["P1"], []))
    assert not is_empty(UniqueKeys(["P1"]))
    match = {"00100020": {"vr": "LO", "Value": ["P1"]}, "0020000D": {"vr": "UI", "Value": ["1.2"]}}
    assert matches_keys(match, UniqueKeys(["P1", "P2"], ["1.2"]))
    assert not matches_keys(match, UniqueKeys(["P2"]))
    assert not matches_keys(match, UniqueKeys(["P1"], None, ["1.2.3"]))


def test_an_answer_is_completed_only_where_there_is_no_doubt():
    query = Query(
        Level.IMAGE,
        {
            "00100020": {"vr": "LO", "Value": ["P?"]},
            "0020000D": {"vr": "UI", "Value": ["1.2"]},
            "0020000E": {"vr": "UI", "Value": ["1.2.3", "1.2.4"]},
        },
    )
    sop_instance = {"vr": "UI", "Value": ["1.2.3.1"]}
    level = {"vr": "CS", "Value": ["IMAGE"]}
    study = {"vr": "UI", "Value": ["1.2"]}
    completed = answer({"00080018": sop_instance, "0020000D": {"vr": "UI"}}, query)
    assert completed == {"00080018": sop_instance, "00080052": level, "0020000D": study}
    assert list(completed) == ["00080018", "00080052", "0020000D"]
    other = {"00080018": sop_instance, "00080052": level, "0020000D": {"vr": "UI", "Value": ["1.9"]}}
    assert answer(other, query) is other


def test_extended_negotiation():
    """PS3.4 §C.5.1.1: bytes 1 to 7; none that is 0 at the end, and no item without any."""

    def items(proposal):
        return {
            each.sop_class_uid: each.service_class_application_information
            for each in proposal.extended_negotiations
        }

    finds = [model.find for model in (STUDY_ROOT, PATIENT_ROOT, PATIENT_STUDY_ONLY)]
    moves = [model.move for model in (STUDY_ROOT, PATIENT_ROOT)]
    assert items(propose_questions(relational=False)) == {}
    assert items(propose_questions(relational=True)) == dict.fromkeys([*finds, *moves], b"\1")
    matching = MatchingOptions(combined_date_time=True, multiple_value_matching=True)
    assert items(propose_questions(relational=False, matching=matching)) == dict.fromkeys(
        finds, b"\0\1\0\0\0\0\1"
    )
    everything = MatchingOptions(
        combined_date_time=True,
        fuzzy_names=True,
        timezone_adjustment=True,
        empty_value_matching=True,
        multiple_value_matching=True,
    )
    assert (
        items(propose_questions(relational=True, matching=everything))[STUDY_ROOT.find] == b"\1\1\1\1\0\1\1"
    )
    assert propose_questions(relational=True) == propose_questions(relational=True)
