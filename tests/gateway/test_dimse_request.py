"""harmony.gateway.dimse_request and query_keys: every form in which a request may be written, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.dimse.command import PRIORITY_HIGH, PRIORITY_MEDIUM
from harmony.gateway.dimse_request import DimseRequest, DimseService, read_request, service_of_path
from harmony.http import HTTPError, Query

ECHO, FIND, GET, MOVE, STORE = DimseService
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"


def read(
    body: Any = None, named: DimseService | None = None, *, query: str = "", mode: Any = "get"
) -> DimseRequest:
    return read_request(named, Query(query), body, retrieve_mode=mode)


def refusal(body: Any, named: DimseService | None = None, *, query: str = "") -> str:
    with pytest.raises(HTTPError) as refused:
        read(body, named, query=query)
    assert refused.value.status == 400
    return refused.value.message


def identifier(body: Any) -> dict[str, Any]:
    query = read(body, FIND).query
    assert query is not None
    return query.identifier


# The path


@pytest.mark.parametrize(
    ("rest", "service"),
    [
        ("", None), ("/", None), ("echo", ECHO), ("find", FIND), ("get", GET), ("move", MOVE), ("store", STORE),
        ("find/", FIND), ("FIND", FIND), ("Echo", ECHO),
    ],
)  # fmt: skip
def test_the_path_names_a_service(rest: str, service: DimseService | None) -> None:
    assert service_of_path(rest) is service


@pytest.mark.parametrize("rest", ["c-find", "x", "find/x", "x/find", "finds", "ﬁnd", "echo/echo"])
def test_any_other_path_is_not_found(rest: str) -> None:
    with pytest.raises(HTTPError) as refused:
        service_of_path(rest)
    assert (refused.value.status, refused.value.message) == (
        404,
        "no such path here: expected echo, find, get, move or store after the prefix",
    )


# The bodies that users were told to send


def test_a_find_with_wild_cards_and_a_return_key() -> None:
    request = read(
        json.loads("""{
            "operation": "C-FIND",
            "query": {
              "PatientID": "*",
              "PatientName": "*",
              "StudyInstanceUID": ""
            }
          }""")
    )
    assert request.service is FIND
    assert request.query is not None
    assert (request.query.level, request.query.patient_root) == (Level.STUDY, False)
    assert request.query.identifier == {
        "00100020": {"vr": "LO", "Value": ["*"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "*"}]},
        "0020000D": {"vr": "UI"},
    }


def test_a_find_at_the_study_level() -> None:
    request = read(
        json.loads("""{
            "operation": "C-FIND",
            "level": "STUDY",
            "query": {
              "StudyInstanceUID": "1.2.3.4.5.6"
            }
          }""")
    )
    assert request.query is not None
    assert request.query.level is Level.STUDY
    assert request.query.identifier == {"0020000D": {"vr": "UI", "Value": ["1.2.3.4.5.6"]}}


def test_a_move() -> None:
    request = read(
        json.loads("""{
            "operation": "C-MOVE",
            "destination": "HARMONY_SCU",
            "query": {
              "StudyInstanceUID": "1.2.3.4.5.6"
            }
          }""")
    )
    assert (request.service, request.destination) == (MOVE, "HARMONY_SCU")
    assert request.retrieve is not None
    assert request.retrieve.level is Level.STUDY
    assert request.retrieve.keys == UniqueKeys(None, ["1.2.3.4.5.6"])
    assert request.retrieve.priority == PRIORITY_MEDIUM


def test_a_find_with_snake_case_keywords() -> None:
    request = read(json.loads('{"patient_id": "12345", "query_level": "PATIENT"}'), FIND)
    assert request.query is not None
    assert (request.query.level, request.query.patient_root) == (Level.PATIENT, True)
    assert request.query.identifier == {"00100020": {"vr": "LO", "Value": ["12345"]}}


def test_a_query_without_a_body_is_an_echo() -> None:
    assert read() == DimseRequest(ECHO)
    assert read(None, ECHO) == DimseRequest(ECHO)


# Which service


@pytest.mark.parametrize(
    "spelled", ["C-FIND", "c-find", "C_FIND", "c_find", "CFIND", "find", "Find", "C-FIND-RQ"]
)
def test_spellings_of_an_operation(spelled: str) -> None:
    assert read({"operation": spelled, "PatientID": "1"}).service is FIND
    assert read({"dimse_op": spelled, "PatientID": "1"}, FIND).service is FIND


@pytest.mark.parametrize("value", ["", "FINDC", "C-DELETE", None, 1, ["C-FIND", "C-GET"], {}])
def test_operations_that_are_none(value: Any) -> None:
    assert (
        refusal({"operation": value})
        == "'operation' must be echo, find, get, move or store, or C-ECHO and so on"
    )


@pytest.mark.parametrize("mode", ["get", "move"])
def test_a_query_alone_is_a_retrieve(mode: str) -> None:
    assert read({"StudyInstanceUID": "1.2"}, mode=mode).service is DimseService(mode)
    assert read({"StudyInstanceUID": "1.2"}, FIND, mode=mode).service is FIND
    assert read({"operation": "C-GET", "StudyInstanceUID": "1.2"}, mode=mode).service is GET


def test_a_destination_makes_a_retrieve_a_move() -> None:
    request = read({"StudyInstanceUID": "1.2", "destination": " PACS "}, mode="get")
    assert (request.service, request.destination) == (MOVE, "PACS")


def test_path_and_body_must_agree() -> None:
    assert read({"operation": "C-FIND", "PatientID": "1"}, FIND).service is FIND
    assert (
        refusal({"operation": "C-FIND", "PatientID": "1"}, GET)
        == "the request says operation find, its path get"
    )


def test_a_store_wants_a_file() -> None:
    assert "Content-Type application/dicom" in refusal({"operation": "C-STORE"})
    assert "Content-Type application/dicom" in refusal(None, STORE)


# Shapes


DICOM_JSON = {
    "00100020": {"vr": "LO", "Value": ["*"]},
    "0020000D": {"vr": "UI", "Value": []},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "DOE*"}]},
}
READ_AS = {
    "00100020": {"vr": "LO", "Value": ["*"]},
    "0020000D": {"vr": "UI"},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "DOE*"}]},
}


@pytest.mark.parametrize(
    "body",
    [
        DICOM_JSON,
        [DICOM_JSON],
        {"query": DICOM_JSON},
        {"identifier": DICOM_JSON},
        {"dimse_identifier": DICOM_JSON},
        {"query": {"PatientID": "*", "StudyInstanceUID": "", "PatientName": "DOE*"}},
        {"PatientID": "*", "StudyInstanceUID": None, "PatientName": {"Alphabetic": "DOE*"}},
        {"patient_id": ["*"], "study_instance_uid": [], "patient_name": ["DOE*"]},
        {"0010,0020": "*", "(0020,000d)": "*", "00100010": {"Value": ["DOE*"]}},
        {
            "PatientID": "*",
            "query": {"StudyInstanceUID": [""], "PatientName": {"vr": "PN", "Value": ["DOE*"]}},
        },
    ],
    ids=json.dumps,
)
def test_shapes_of_one_query(body: Any) -> None:
    assert identifier(body) == READ_AS


def test_the_wrapper_of_a_dimse_request() -> None:
    request = read(
        {
            "command": {
                "message_id": 7,
                "sop_class_uid": STUDY_ROOT_FIND,
                "priority": "MEDIUM",
                "direction": "REQUEST",
            },
            "identifier": {
                "00080052": {"vr": "CS", "Value": ["SERIES"]},
                "0020000D": {"vr": "UI", "Value": ["1.2"]},
                "00080060": {"vr": "CS", "Value": ["CT"]},
            },
            "query_metadata": {"0020000D": {"match_type": "EXACT"}, "00080060": {"match_type": "RETURN_KEY"}},
        }
    )
    assert request.service is FIND
    assert request.query is not None
    assert request.query.level is Level.SERIES
    assert request.query.identifier == {"0020000D": {"vr": "UI", "Value": ["1.2"]}, "00080060": {"vr": "CS"}}


def test_the_wrapper_in_camel_case() -> None:
    request = read(
        {
            "command": {"messageId": 7, "sopClassUid": PATIENT_ROOT_GET, "priority": "HIGH"},
            "identifier": {"StudyInstanceUID": "1.2"},
            "queryMetadata": {"StudyInstanceUID": {"matchType": "EXACT"}},
        }
    )
    assert request.service is GET
    assert request.retrieve is not None
    assert (request.retrieve.patient_root, request.retrieve.priority) == (True, PRIORITY_HIGH)


def test_the_query_string_is_read_like_a_body() -> None:
    request = read(
        query="operation=find&PatientID=1&StudyInstanceUID=&ModalitiesInStudy=CT&ModalitiesInStudy=MR&limit=3"
    )
    assert request.query is not None
    assert request.query.limit == 3
    assert request.query.identifier == {
        "00100020": {"vr": "LO", "Value": ["1"]},
        "0020000D": {"vr": "UI"},
        "00080061": {"vr": "CS", "Value": ["CT", "MR"]},
    }


@pytest.mark.parametrize(
    ("name", "value", "element"),
    [
        ("PatientName", "YAMADA^TARO=山田^太郎=やまだ^たろう", {"vr": "PN", "Value": [
            {"Alphabetic": "YAMADA^TARO", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}]}),
        ("PatientName", {"Ideographic": "山田", "Alphabetic": ""}, {"vr": "PN", "Value": [{"Ideographic": "山田"}]}),
        ("PatientName", {}, {"vr": "PN"}),
        ("PatientName", 5, {"vr": "PN", "Value": [{"Alphabetic": "5"}]}),
        ("StudyDate", "20240101-20241231", {"vr": "DA", "Value": ["20240101-20241231"]}),
        ("StudyInstanceUID", "1.2\\1.3", {"vr": "UI", "Value": ["1.2", "1.3"]}),
        ("StudyInstanceUID", ["1.2", "1.3"], {"vr": "UI", "Value": ["1.2", "1.3"]}),
        ("PatientComments", "a\\b", {"vr": "LT", "Value": ["a\\b"]}),
        ("SeriesNumber", 3, {"vr": "IS", "Value": [3]}),
        ("SeriesNumber", "3", {"vr": "IS", "Value": ["3"]}),
        ("PatientWeight", 70.5, {"vr": "DS", "Value": [70.5]}),
        ("Rows", [512, "256"], {"vr": "US", "Value": [512, "256"]}),
        ("00091001", {"vr": "LO", "Value": ["x"]}, {"vr": "LO", "Value": ["x"]}),
        ("ScheduledProcedureStepSequence", None, {"vr": "SQ"}),
        ("ScheduledProcedureStepSequence", {"Modality": "CT"}, {"vr": "SQ", "Value": [
            {"00080060": {"vr": "CS", "Value": ["CT"]}}]}),
        ("ScheduledProcedureStepSequence", {"vr": "SQ", "Value": [{"00080060": {"vr": "CS"}}]}, {"vr": "SQ", "Value": [
            {"00080060": {"vr": "CS"}}]}),
    ],
)  # fmt: skip
def test_values(name: str, value: Any, element: dict[str, Any]) -> None:
    assert list(identifier({name: value, "level": "STUDY"}).values()) == [element]


# Level


@pytest.mark.parametrize(
    ("spelled", "level"),
    [
        ({"level": "STUDY"}, Level.STUDY),
        ({"query_level": "series"}, Level.SERIES),
        ({"QueryLevel": "PATIENT"}, Level.PATIENT),
        ({"QueryRetrieveLevel": "IMAGE"}, Level.IMAGE),
        ({"query_retrieve_level": "INSTANCE"}, Level.IMAGE),
        ({"00080052": {"vr": "CS", "Value": ["SERIES "]}}, Level.SERIES),
        ({"query": {"QueryRetrieveLevel": "SERIES"}}, Level.SERIES),
    ],
)
def test_spellings_of_the_level(spelled: dict[str, Any], level: Level) -> None:
    request = read({"AccessionNumber": "1"} | spelled, FIND)
    assert request.query is not None
    assert request.query.level is level
    assert request.query.patient_root is (level is Level.PATIENT)


@pytest.mark.parametrize(
    ("keys", "level"),
    [
        ({"SOPInstanceUID": "1.2"}, Level.IMAGE),
        ({"SOPInstanceUID": "", "StudyInstanceUID": "1.2"}, Level.IMAGE),
        ({"SOPInstanceUID": "", "SeriesInstanceUID": "1.2"}, Level.IMAGE),
        ({"SOPInstanceUID": "", "StudyInstanceUID": ""}, Level.STUDY),
        ({"SeriesInstanceUID": "1.2"}, Level.SERIES),
        ({"SeriesInstanceUID": "", "StudyInstanceUID": "1.2"}, Level.SERIES),
        ({"StudyInstanceUID": "1.2"}, Level.STUDY),
        ({"StudyInstanceUID": ""}, Level.STUDY),
        ({"PatientID": "*", "PatientName": ""}, Level.PATIENT),
        ({"PatientID": "*", "StudyDate": "20240101"}, Level.STUDY),
        ({"AccessionNumber": "1"}, Level.STUDY),
    ],
)
def test_the_level_follows_from_the_keys(keys: dict[str, str], level: Level) -> None:
    request = read(keys, FIND)
    assert request.query is not None
    assert request.query.level is level


# Retrieves


@pytest.mark.parametrize(
    ("body", "level", "keys"),
    [
        ({"StudyInstanceUID": "1.2"}, Level.STUDY, UniqueKeys(None, ["1.2"])),
        ({"0020000D": {"vr": "UI", "Value": ["1.2"]}}, Level.STUDY, UniqueKeys(None, ["1.2"])),
        (
            {"PatientID": "A", "StudyInstanceUID": "1.2", "PatientName": ""},
            Level.STUDY,
            UniqueKeys(["A"], ["1.2"]),
        ),
        ({"PatientID": "A"}, Level.PATIENT, UniqueKeys(["A"])),
        (
            {"StudyInstanceUID": "1.2", "SeriesInstanceUID": ["1.3", "1.4"]},
            Level.SERIES,
            UniqueKeys(None, ["1.2"], ["1.3", "1.4"]),
        ),
        ({"SOPInstanceUID": "1.5"}, Level.IMAGE, UniqueKeys(None, None, None, ["1.5"])),
        (
            {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "", "level": "STUDY"},
            Level.STUDY,
            UniqueKeys(None, ["1.2"]),
        ),
    ],
)
def test_unique_keys_select(body: dict[str, Any], level: Level, keys: UniqueKeys) -> None:
    for service in (GET, MOVE):
        request = read(body, service)
        assert request.retrieve is not None
        assert (request.retrieve.level, request.retrieve.keys) == (level, keys)
        assert request.retrieve.patient_root is (level is Level.PATIENT)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "'PatientID' must have a value to get at level PATIENT"),
        ({"PatientID": "*"}, "'PatientID' must have a value to get at level PATIENT"),
        ({"StudyInstanceUID": ""}, "'StudyInstanceUID' must have a value to get at level STUDY"),
        ({"StudyInstanceUID": "*"}, "'StudyInstanceUID' must have a value to get at level STUDY"),
        ({"StudyInstanceUID": "1.2", "level": "SERIES"},
         "'SeriesInstanceUID' must have a value to get at level SERIES"),
        ({"StudyInstanceUID": "1.2.*"}, "'StudyInstanceUID' is no UID"),
        ({"StudyInstanceUID": "../../etc"}, "'StudyInstanceUID' is no UID"),
        ({"PatientID": "A*"}, "'PatientID' has a wild card; a retrieve takes none"),
        (
            {"study_instance_uid": "1.2", "accession_number": "A"},
            "'accession_number' does not select what to get at level STUDY: allowed PatientID, StudyInstanceUID",
        ),
        (
            {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "level": "STUDY"},
            "'SeriesInstanceUID' does not select what to get at level STUDY: allowed PatientID, StudyInstanceUID",
        ),
        (
            {"StudyInstanceUID": ["1.2", "1.3"], "SeriesInstanceUID": "1.4"},
            "get: only SeriesInstanceUID may have several values at level SERIES",
        ),
        ({"StudyInstanceUID": ["1.2"] * 1001}, "'StudyInstanceUID' has 1001 values, at most 1000 are allowed"),
        ({"StudyInstanceUID": "1.2", "priority": "URGENT"}, "'priority' must be one of LOW, MEDIUM, HIGH"),
        ({"StudyInstanceUID": "1.2", "limit": 1}, "'limit' has no meaning for get"),
        ({"StudyInstanceUID": "1.2", "destination": "A"}, "'destination' has no meaning for get"),
    ],
)  # fmt: skip
def test_retrieves_that_are_refused(body: dict[str, Any], message: str) -> None:
    assert refusal(body, GET) == message


# What is refused


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("text", "the request body must be a JSON object"),
        ([], "the request body must be a JSON object"),
        ([{}, {}], "the request body must be a JSON object"),
        (1, "the request body must be a JSON object"),
        ({}, "find: there is no key: expected attributes to match or to return, such as "
             '{"PatientID": "", "StudyInstanceUID": ""}'),
        ({"query": "PatientID"}, "'query' must be a JSON object"),
        ({"PatientId2": "1"}, "'PatientId2' is not known: expected operation, level, query, destination, limit, or a "
                              "DICOM attribute as keyword, keyword_in_snake_case, GGGGEEEE or gggg,eeee"),
        ({"PatientID": True}, "'PatientID' must be text, a number, null, or a list of them"),
        ({"PatientID": {"value": "1"}}, "'PatientID' must be text, a number, null, or a list of them"),
        ({"PatientID": [["1"]]}, "'PatientID' must be text, a number, null, or a list of them"),
        ({"PatientName": [{"Family": "A"}]},
         "'PatientName' must be a person name, text, a number, null, or a list of them"),
        ({"PatientName": {"Alphabetic": 1}}, "'PatientName' has a person name whose groups are not text"),
        ({"PatientID": {"vr": "XX"}}, "'PatientID' vr is none of PS3.5 Table 6.2-1"),
        ({"PatientID": {"vr": "LO", "InlineBinary": "AA=="}},
         "'PatientID' binary values cannot be matched: expected Value"),
        ({"ScheduledProcedureStepSequence": "x"}, "'ScheduledProcedureStepSequence' must be a JSON object"),
        ({"Rows": "many"}, "00280010: a value is no number that US can hold"),
        ({"PixelData": "x"}, "7FE00010: expected InlineBinary for OW, not Value"),
        ({"MoveOriginatorMessageID": 1}, "'MoveOriginatorMessageID' is no attribute of a data set"),
        ({"00100000": 1}, "'00100000' is no attribute of a data set"),
        ({"PatientID": "1", "level": "ROOM"}, "'level' must be one of PATIENT, STUDY, SERIES, IMAGE, INSTANCE"),
        ({"PatientID": "1", "level": None}, "'level' must be one of PATIENT, STUDY, SERIES, IMAGE, INSTANCE"),
        ({"PatientID": "1", "level": "STUDY", "query_level": "SERIES"},
         "'query_level' is given twice, also as 'level', with different values"),
        ({"PatientID": "1", "patient_id": "2"},
         "'patient_id' is given twice, also as 'PatientID', with different values"),
        ({"PatientID": "1", "query": {"00100020": "2"}},
         "'00100020' is given twice, also as 'PatientID', with different values"),
        ({"PatientID": "1", "limit": 0}, "'limit' must be a whole number from 1"),
        ({"PatientID": "1", "max_results": "ten"}, "'max_results' must be a whole number from 1"),
        ({"PatientID": "1", "limit": True}, "'limit' must be a whole number from 1"),
        ({"PatientID": "1", "destination": "PACS"}, "'destination' has no meaning for find"),
        ({"PatientID": "1", "command": []}, "'command' must be a JSON object"),
        ({"PatientID": "1", "command": {"direction": "RESPONSE"}}, "'direction' must be REQUEST"),
        ({"PatientID": "1", "command": {"status": 0}},
         "'status' is not known in 'command': expected message_id, sop_class_uid, priority or direction"),
        ({"PatientID": "1", "command": {"sop_class_uid": "1.2.840.10008.5.1.4.31"}},
         "'sop_class_uid' must be the SOP class of Verification, or of a Query/Retrieve model"),
        ({"PatientID": "1", "operation": "find", "command": {"sop_class_uid": PATIENT_ROOT_GET}},
         "'operation' is find, the SOP class of the command is that of another operation"),
        ({"PatientID": "1", "query_metadata": {"PatientID": {"match_type": "FUZZY"}}},
         "'PatientID' match_type must be one of EXACT, LIST, RANGE, RETURN_KEY, SEQUENCE, UNIVERSAL, WILDCARD"),
    ],
)  # fmt: skip
def test_bodies_that_are_refused(body: Any, message: str) -> None:
    assert refusal(body, FIND) == message


@pytest.mark.parametrize("value", ["", " ", "A" * 17, "A\\B", "Ü", "A\n", 1, None, ["A"]])
def test_destinations_that_are_no_ae_title(value: Any) -> None:
    body = {"StudyInstanceUID": "1.2", "destination": value}
    assert refusal(body, MOVE) == "'destination' must be an AE title of 1 to 16 characters"


def test_nesting_is_bounded() -> None:
    body: Any = None
    for _ in range(40):
        body = {"ReferencedStudySequence": body}
    assert refusal(body, FIND) == "'ReferencedStudySequence' sequences are nested deeper than 16 levels"


# Anything at all

_TEXTS = st.text(max_size=12) | st.sampled_from(["C-FIND", "*", "1.2.3", "STUDY", "IMAGE", "20240101-"])
_NAMES = st.text(max_size=12) | st.sampled_from(
    [
        "operation", "level", "query", "identifier", "destination", "limit", "priority", "command", "query_metadata",
        "PatientID", "PatientName", "0020000D", "SeriesInstanceUID", "SOPInstanceUID", "Rows", "PixelData", "vr",
        "Value", "Alphabetic", "ReferencedStudySequence", "00091001", "sop_class_uid", "match_type",
    ]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=5),
    max_leaves=20,
)


@given(_JSON, st.sampled_from([None, *DimseService]), st.sampled_from(["get", "move"]))
def test_any_json_is_a_request_or_refused(body: Any, named: DimseService | None, mode: Any) -> None:
    try:
        request = read(body, named, mode=mode)
    except HTTPError as error:
        assert error.status == 400  # noqa: PT017
        return
    assert named in (None, request.service)
    assert (request.query is not None) == (request.service is FIND)
    assert (request.retrieve is not None) == (request.service in (GET, MOVE))


@given(st.dictionaries(_NAMES, _TEXTS, max_size=5), st.sampled_from([None, *DimseService]))
def test_any_query_string_is_a_request_or_refused(pairs: dict[str, str], named: DimseService | None) -> None:
    query = Query()
    query.pairs = tuple(pairs.items())
    try:
        read_request(named, query)
    except HTTPError as error:
        assert error.status == 400  # noqa: PT017
