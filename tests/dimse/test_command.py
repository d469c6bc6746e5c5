"""Command sets against bytes laid out by hand from PS3.7 §9.3, §10.3 and Annex E, and against what peers send."""

import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.dimse import command
from harmony.dimse.command import (
    CCancelRQ,
    CEchoRQ,
    CEchoRSP,
    CFindRQ,
    CFindRSP,
    CGetRQ,
    CGetRSP,
    CMoveRQ,
    CMoveRSP,
    CommandError,
    CStoreRQ,
    CStoreRSP,
    NActionRQ,
    NActionRSP,
    NCreateRQ,
    NCreateRSP,
    NDeleteRQ,
    NDeleteRSP,
    NEventReportRQ,
    NEventReportRSP,
    NGetRQ,
    NGetRSP,
    NSetRQ,
    NSetRSP,
    decode,
    encode_store_rsp,
)

CT = "1.2.840.10008.5.1.4.1.1.2"

# Elements that occur in many vectors: tag, 32-bit length, value, padded.
CT_CLASS = b"\x00\x00\x02\x00\x1a\x00\x00\x001.2.840.10008.5.1.4.1.1.2\x00"
INSTANCE = b"\x00\x00\x00\x10\x08\x00\x00\x001.2.3.4\x00"
FIND_CLASS = b"\x00\x00\x02\x00\x1c\x00\x00\x001.2.840.10008.5.1.4.1.2.2.1\x00"
MOVE_CLASS = b"\x00\x00\x02\x00\x1c\x00\x00\x001.2.840.10008.5.1.4.1.2.2.2\x00"
GET_CLASS = b"\x00\x00\x02\x00\x1c\x00\x00\x001.2.840.10008.5.1.4.1.2.2.3\x00"
MEDIUM = b"\x00\x00\x00\x07\x02\x00\x00\x00\x00\x00"
NO_DATA = b"\x00\x00\x00\x08\x02\x00\x00\x00\x01\x01"
DATA = b"\x00\x00\x00\x08\x02\x00\x00\x00\x01\x00"
MESSAGE_ID_7 = b"\x00\x00\x10\x01\x02\x00\x00\x00\x07\x00"
RESPONDED_TO_7 = b"\x00\x00\x20\x01\x02\x00\x00\x00\x07\x00"
SUCCESS = b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00"
PENDING = b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\xff"


def group_length(value: int) -> bytes:
    return b"\x00\x00\x00\x00\x04\x00\x00\x00" + bytes([value, 0, 0, 0])


def field(low: int, high: int) -> bytes:
    return b"\x00\x00\x00\x01\x02\x00\x00\x00" + bytes([low, high])


VECTORS = [
    (
        CEchoRQ(7),
        group_length(56)
        + b"\x00\x00\x02\x00\x12\x00\x00\x00"
        + b"1.2.840.10008.1.1\x00"
        + field(0x30, 0x00)
        + MESSAGE_ID_7
        + NO_DATA,
    ),
    (
        CEchoRSP(7, 0x0000, "1.2.840.10008.1.1"),
        group_length(66)
        + b"\x00\x00\x02\x00\x12\x00\x00\x00"
        + b"1.2.840.10008.1.1\x00"
        + field(0x30, 0x80)
        + RESPONDED_TO_7
        + NO_DATA
        + SUCCESS,
    ),
    (
        CStoreRQ(7, CT, "1.2.3.4"),
        group_length(90) + CT_CLASS + field(0x01, 0x00) + MESSAGE_ID_7 + MEDIUM + DATA + INSTANCE,
    ),
    (
        CStoreRQ(7, CT, "1.2.3.4", 2, "MOVER", 0x1234),
        group_length(114)
        + CT_CLASS
        + field(0x01, 0x00)
        + MESSAGE_ID_7
        + b"\x00\x00\x00\x07\x02\x00\x00\x00"
        + b"\x02\x00"
        + DATA
        + INSTANCE
        + b"\x00\x00\x30\x10\x06\x00\x00\x00"
        + b"MOVER "
        + b"\x00\x00\x31\x10\x02\x00\x00\x00"
        + b"\x34\x12",
    ),
    (
        CStoreRSP(7, 0x0000, CT, "1.2.3.4"),
        group_length(90) + CT_CLASS + field(0x01, 0x80) + RESPONDED_TO_7 + NO_DATA + SUCCESS + INSTANCE,
    ),
    (
        CStoreRSP(7, 0xA900, CT, "1.2.3.4", "bad class", (0x00080016,)),
        group_length(120)
        + CT_CLASS
        + field(0x01, 0x80)
        + RESPONDED_TO_7
        + NO_DATA
        + b"\x00\x00\x00\x09\x02\x00\x00\x00"
        + b"\x00\xa9"
        + b"\x00\x00\x01\x09\x04\x00\x00\x00"
        + b"\x08\x00\x16\x00"
        + b"\x00\x00\x02\x09\x0a\x00\x00\x00"
        + b"bad class "
        + INSTANCE,
    ),
    (
        CStoreRSP(7, 0x0000),
        group_length(40) + field(0x01, 0x80) + RESPONDED_TO_7 + NO_DATA + SUCCESS,
    ),
    (
        CFindRQ(7, "1.2.840.10008.5.1.4.1.2.2.1"),
        group_length(76) + FIND_CLASS + field(0x20, 0x00) + MESSAGE_ID_7 + MEDIUM + DATA,
    ),
    (
        CFindRSP(7, 0xFF00, "1.2.840.10008.5.1.4.1.2.2.1", data_set_present=True),
        group_length(76) + FIND_CLASS + field(0x20, 0x80) + RESPONDED_TO_7 + DATA + PENDING,
    ),
    (
        CFindRSP(7, 0x0000, "1.2.840.10008.5.1.4.1.2.2.1"),
        group_length(76) + FIND_CLASS + field(0x20, 0x80) + RESPONDED_TO_7 + NO_DATA + SUCCESS,
    ),
    (CCancelRQ(7), group_length(30) + field(0xFF, 0x0F) + RESPONDED_TO_7 + NO_DATA),
    (
        CGetRQ(7, "1.2.840.10008.5.1.4.1.2.2.3", 0),
        group_length(76) + GET_CLASS + field(0x10, 0x00) + MESSAGE_ID_7 + MEDIUM + DATA,
    ),
    (
        CGetRSP(7, 0xFF00, "1.2.840.10008.5.1.4.1.2.2.3", 3, 2, 0, 1),
        group_length(116)
        + GET_CLASS
        + field(0x10, 0x80)
        + RESPONDED_TO_7
        + NO_DATA
        + PENDING
        + b"\x00\x00\x20\x10\x02\x00\x00\x00"
        + b"\x03\x00"
        + b"\x00\x00\x21\x10\x02\x00\x00\x00"
        + b"\x02\x00"
        + b"\x00\x00\x22\x10\x02\x00\x00\x00"
        + b"\x00\x00"
        + b"\x00\x00\x23\x10\x02\x00\x00\x00"
        + b"\x01\x00",
    ),
    (
        CMoveRQ(7, "1.2.840.10008.5.1.4.1.2.2.2", "STORE_SCP"),
        group_length(94)
        + MOVE_CLASS
        + field(0x21, 0x00)
        + MESSAGE_ID_7
        + b"\x00\x00\x00\x06\x0a\x00\x00\x00"
        + b"STORE_SCP "
        + MEDIUM
        + DATA,
    ),
    (
        CMoveRSP(
            7,
            0xB000,
            "1.2.840.10008.5.1.4.1.2.2.2",
            number_of_completed_sub_operations=1,
            number_of_failed_sub_operations=2,
            number_of_warning_sub_operations=70000,
            data_set_present=True,
        ),
        group_length(106)
        + MOVE_CLASS
        + field(0x21, 0x80)
        + RESPONDED_TO_7
        + DATA
        + b"\x00\x00\x00\x09\x02\x00\x00\x00"
        + b"\x00\xb0"
        + b"\x00\x00\x21\x10\x02\x00\x00\x00"
        + b"\x01\x00"
        + b"\x00\x00\x22\x10\x02\x00\x00\x00"
        + b"\x02\x00"
        + b"\x00\x00\x23\x10\x02\x00\x00\x00"
        + b"\xff\xff",
    ),
    (
        NActionRQ(7, "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1", 1, data_set_present=True),
        group_length(98)
        + b"\x00\x00\x03\x00\x14\x00\x00\x00"
        + b"1.2.840.10008.1.20.1"
        + field(0x30, 0x01)
        + MESSAGE_ID_7
        + DATA
        + b"\x00\x00\x01\x10\x16\x00\x00\x00"
        + b"1.2.840.10008.1.20.1.1"
        + b"\x00\x00\x08\x10\x02\x00\x00\x00"
        + b"\x01\x00",
    ),
    (
        NEventReportRQ(7, "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1", 2, data_set_present=True),
        group_length(98)
        + b"\x00\x00\x02\x00\x14\x00\x00\x00"
        + b"1.2.840.10008.1.20.1"
        + field(0x00, 0x01)
        + MESSAGE_ID_7
        + DATA
        + b"\x00\x00\x00\x10\x16\x00\x00\x00"
        + b"1.2.840.10008.1.20.1.1"
        + b"\x00\x00\x02\x10\x02\x00\x00\x00"
        + b"\x02\x00",
    ),
    (
        NGetRQ(7, "1.2.3", "1.2.4", (0x00100010, 0x20100030)),
        group_length(74)
        + b"\x00\x00\x03\x00\x06\x00\x00\x00"
        + b"1.2.3\x00"
        + field(0x10, 0x01)
        + MESSAGE_ID_7
        + NO_DATA
        + b"\x00\x00\x01\x10\x06\x00\x00\x00"
        + b"1.2.4\x00"
        + b"\x00\x00\x05\x10\x08\x00\x00\x00"
        + b"\x10\x00\x10\x00\x10\x20\x30\x00",
    ),
    (
        NSetRSP(7, 0x0110, "1.2.3", "1.2.4", error_id=0xA710),
        group_length(78)
        + b"\x00\x00\x02\x00\x06\x00\x00\x00"
        + b"1.2.3\x00"
        + field(0x20, 0x81)
        + RESPONDED_TO_7
        + NO_DATA
        + b"\x00\x00\x00\x09\x02\x00\x00\x00"
        + b"\x10\x01"
        + b"\x00\x00\x03\x09\x02\x00\x00\x00"
        + b"\x10\xa7"
        + b"\x00\x00\x00\x10\x06\x00\x00\x00"
        + b"1.2.4\x00",
    ),
    (
        NCreateRQ(7, "1.2.3"),
        group_length(44)
        + b"\x00\x00\x02\x00\x06\x00\x00\x00"
        + b"1.2.3\x00"
        + field(0x40, 0x01)
        + MESSAGE_ID_7
        + NO_DATA,
    ),
]
IDS = [type(message).__name__ for message, _ in VECTORS]

STORE_RQ = VECTORS[2][1]


@pytest.mark.parametrize(("message", "encoded"), VECTORS, ids=IDS)
def test_encoding_is_byte_for_byte_that_of_the_standard(message, encoded):
    assert message.encode() == encoded


@pytest.mark.parametrize(("message", "encoded"), VECTORS, ids=IDS)
@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_decoding_gives_the_message_and_whether_a_data_set_follows(message, encoded, buffer):
    received, data_set_follows = decode(buffer(encoded))
    if isinstance(message, CMoveRSP):
        message = dataclasses.replace(message, number_of_warning_sub_operations=0xFFFF)
    assert received == message
    assert data_set_follows is message.data_set_present


COMMAND_FIELDS = {  # PS3.7 Table E.1-1, Command Field
    CStoreRQ: 0x0001,
    CStoreRSP: 0x8001,
    CGetRQ: 0x0010,
    CGetRSP: 0x8010,
    CFindRQ: 0x0020,
    CFindRSP: 0x8020,
    CMoveRQ: 0x0021,
    CMoveRSP: 0x8021,
    CEchoRQ: 0x0030,
    CEchoRSP: 0x8030,
    NEventReportRQ: 0x0100,
    NEventReportRSP: 0x8100,
    NGetRQ: 0x0110,
    NGetRSP: 0x8110,
    NSetRQ: 0x0120,
    NSetRSP: 0x8120,
    NActionRQ: 0x0130,
    NActionRSP: 0x8130,
    NCreateRQ: 0x0140,
    NCreateRSP: 0x8140,
    NDeleteRQ: 0x0150,
    NDeleteRSP: 0x8150,
    CCancelRQ: 0x0FFF,
}


@pytest.mark.parametrize(("message_type", "command_field"), COMMAND_FIELDS.items())
def test_command_fields_and_directions(message_type, command_field):
    assert message_type.command_field == command_field
    assert message_type.is_request is message_type.__name__.endswith("RQ")


def test_messages_of_different_types_are_never_equal_and_values_are_hashable():
    assert CFindRQ(1, "1.2") != CGetRQ(1, "1.2")
    assert len({CFindRQ(1, "1.2"), CFindRQ(1, "1.2"), CGetRQ(1, "1.2")}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        CFindRQ(1, "1.2").message_id = 2


# --- Round trips ---

uids = st.text("0123456789.", min_size=1, max_size=70)
numbers = st.integers(0, 0xFFFF)
VALUES = {
    "uid": uids,
    "title": st.text("ABCXYZ_019", min_size=1, max_size=16),
    "comment": st.from_regex(r"[!-\[\]-~]([ -\[\]-~]{0,62}[!-\[\]-~])?", fullmatch=True),
    "tags": st.lists(st.integers(0, 0xFFFFFFFF), max_size=5).map(tuple),
}


def values_for(declared: dataclasses.Field) -> st.SearchStrategy:
    name = declared.name
    if name == "data_set_present":
        return st.booleans()
    if name in ("move_destination", "move_originator_ae_title"):
        kind = VALUES["title"]
    elif name.endswith("_uid"):
        kind = VALUES["uid"]
    elif name == "error_comment":
        kind = VALUES["comment"]
    elif name in ("offending_elements", "attribute_identifier_list"):
        kind = VALUES["tags"]
    else:
        kind = numbers
    if declared.default is None or declared.default == "":
        return st.just(declared.default) | kind
    return kind


messages = st.sampled_from(sorted(COMMAND_FIELDS, key=lambda message_type: message_type.__name__)).flatmap(
    lambda message_type: st.builds(
        message_type,
        **{declared.name: values_for(declared) for declared in dataclasses.fields(message_type)},
    )
)


def elements_of(encoded: bytes) -> list[tuple[int, bytes]]:
    found, offset = [], 0
    while offset < len(encoded):
        group, number, length = struct.unpack_from("<HHL", encoded, offset)
        assert group == 0
        found.append((number, encoded[offset + 8 : offset + 8 + length]))
        offset += 8 + length
    return found


@given(messages)
@settings(max_examples=200, deadline=None)
def test_what_is_encoded_decodes_to_the_same(message):
    assert decode(message.encode()) == (message, message.data_set_present)


@given(messages)
@settings(max_examples=100, deadline=None)
def test_encoding_obeys_the_rules_for_command_sets(message):
    encoded = message.encode()
    elements = elements_of(encoded)
    numbers_sent = [number for number, _ in elements]
    assert numbers_sent == sorted(set(numbers_sent))
    assert elements[0] == (0x0000, struct.pack("<L", len(encoded) - 12))
    assert all(len(value) % 2 == 0 for _, value in elements)
    assert {0x0100, 0x0800} < set(numbers_sent)


def decoded_or_refused(data: bytes) -> command.Message | CommandError:
    try:
        return decode(data)[0]
    except CommandError as error:
        return error


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_give_a_message_or_a_command_error(data):
    result = decoded_or_refused(data)
    if isinstance(result, CommandError):
        assert result.fatal == (result.response == b"")
    else:
        assert result.encode()


raw_elements = st.lists(
    st.tuples(
        st.sampled_from([0x0002, 0x0003, 0x0110, 0x0120, 0x0600, 0x0700, 0x0800, 0x0900, 0x0901, 0x0902])
        | st.sampled_from([0x1000, 0x1001, 0x1002, 0x1005, 0x1008, 0x1020, 0x1023, 0x1030, 0x1031, 0x5010]),
        st.binary(max_size=20),
    ),
    max_size=14,
)


@given(st.sampled_from([*COMMAND_FIELDS.values(), 0x0040, 0x8040]), raw_elements)
@settings(max_examples=200, deadline=None)
def test_arbitrary_elements_give_a_message_or_a_command_error_with_a_readable_response(
    command_field, elements
):
    data = b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value
        for number, value in [(0x0100, struct.pack("<H", command_field)), *elements]
    )
    result = decoded_or_refused(data)
    if not isinstance(result, CommandError):
        again, _ = decode(result.encode())
        if getattr(result, "error_comment", "").isprintable():  # control characters are written as blanks
            assert again.encode() == result.encode()
        assert decode(again.encode()) == decode(result.encode())
        return
    assert result.command_field == command_field
    if not result.fatal:
        answered = dict(elements_of(result.response))
        assert answered[0x0100] == struct.pack("<H", command_field | 0x8000)
        assert answered[0x0120] == struct.pack("<H", result.message_id)
        assert answered[0x0900] == struct.pack("<H", result.status)
        assert answered[0x0800] == b"\x01\x01"


@given(numbers, uids, uids, numbers, st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_short_cut_for_store_requests_reads_the_same(message_id, class_uid, instance_uid, priority, at, byte):
    data = bytearray(CStoreRQ(message_id, class_uid, instance_uid, priority).encode())
    unknown_element = bytes.fromhex("0000 1050 00000000")  # keeps the short cut from being taken
    assert decode(data) == decode(data + unknown_element)
    data[at % len(data)] = byte
    changed = decoded_or_refused(data)
    if isinstance(changed, CStoreRQ):
        assert changed == decoded_or_refused(data + unknown_element)


@given(numbers, numbers, uids | st.just(""), uids | st.just(""))
@settings(max_examples=50, deadline=None)
def test_short_cut_for_store_responses_writes_the_same(message_id, status, class_uid, instance_uid):
    expected = CStoreRSP(message_id, status, class_uid, instance_uid).encode()
    assert encode_store_rsp(message_id, status, class_uid, instance_uid) == expected


@given(numbers, numbers, uids, uids, st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_short_cut_for_store_responses_reads_the_same(message_id, status, class_uid, instance_uid, at, byte):
    data = bytearray(CStoreRSP(message_id, status, class_uid, instance_uid).encode())
    unknown_element = bytes.fromhex("0000 1050 00000000")  # keeps the short cut from being taken
    assert decode(data) == decode(data + unknown_element)
    data[at % len(data)] = byte
    changed = decoded_or_refused(data)
    if isinstance(changed, CStoreRSP):
        assert changed == decoded_or_refused(data + unknown_element)


@given(numbers, uids | st.just(""), uids | st.just(""), numbers)
@settings(max_examples=50, deadline=None)
def test_short_cut_for_store_requests_writes_the_same(message_id, class_uid, instance_uid, priority):
    originator = bytes.fromhex("0000 3110 02000000 0500")  # (0000,1031), which keeps it from being taken
    longer = CStoreRQ(message_id, class_uid, instance_uid, priority, "", 5).encode()
    assert longer.endswith(originator)
    (length,) = struct.unpack_from("<L", longer, 8)
    expected = longer[:8] + struct.pack("<L", length - len(originator)) + longer[12 : -len(originator)]
    assert CStoreRQ(message_id, class_uid, instance_uid, priority).encode() == expected


# --- What peers send ---


def store_rq(
    *,
    class_uid: bytes = CT_CLASS,
    instance: bytes = INSTANCE,
    message_id: bytes = MESSAGE_ID_7,
    priority: bytes = MEDIUM,
    data_set_type: bytes = DATA,
) -> bytes:
    return class_uid + field(0x01, 0x00) + message_id + priority + data_set_type + instance


def test_r17_group_length_may_be_missing_or_wrong():
    expected = decode(STORE_RQ)
    assert decode(store_rq()) == expected
    assert decode(group_length(3) + store_rq()) == expected
    assert decode(b"\x00\x00\x00\x00\x04\x00\x00\x00\xff\xff\xff\xff" + store_rq()) == expected
    assert decode(b"\x00\x00\x00\x00\x00\x00\x00\x00" + store_rq()) == expected


def test_elements_may_come_in_any_order():
    assert decode(INSTANCE + DATA + MEDIUM + MESSAGE_ID_7 + field(0x01, 0x00) + CT_CLASS) == decode(STORE_RQ)


def test_r17_retired_and_unknown_elements_are_skipped():
    retired = b"\x00\x00\x01\x00\x04\x00\x00\x00\x7a\x00\x00\x00" + b"\x00\x00\x10\x50\x04\x00\x00\x00DATA"
    assert decode(retired + store_rq() + b"\x00\x00\xff\xff\x00\x00\x00\x00") == decode(STORE_RQ)


@pytest.mark.parametrize(
    "instance",
    [
        b"\x00\x00\x00\x10\x07\x00\x00\x001.2.3.4",
        b"\x00\x00\x00\x10\x08\x00\x00\x001.2.3.4 ",
        b"\x00\x00\x00\x10\x0a\x00\x00\x001.2.3.4\x00\x00\x00",
        b"\x00\x00\x00\x10\x0f\x00\x00\x001.2.3.4\\1.2.3.5",
        b"\x00\x00\x00\x10\x0a\x00\x00\x001.2.3.4 \\9",
    ],
    ids=["odd length", "space", "three NULs", "two values", "padded first value"],
)
def test_r17_padding_odd_lengths_and_further_values_of_a_uid(instance):
    assert decode(store_rq(instance=instance)) == decode(STORE_RQ)


def test_r17_first_of_several_numbers_counts():
    two = b"\x00\x00\x10\x01\x04\x00\x00\x00\x07\x00\x08\x00"
    assert decode(store_rq(message_id=two)) == decode(STORE_RQ)


def test_message_id_0_is_a_message_id():
    message, _ = decode(store_rq(message_id=b"\x00\x00\x10\x01\x02\x00\x00\x00\x00\x00"))
    assert message.message_id == 0


def test_missing_priority_is_medium():
    assert decode(store_rq(priority=b"")) == decode(STORE_RQ)


@pytest.mark.parametrize(
    "uid",
    [
        b"..",
        b"1." * 32 + b"1",
        b"1.2\x003.4",
        b"1.2.\xe4\xff",
        b"../../etc",
        b" 1.2",
        b"a b",
    ],
)
def test_odd_uids_go_back_as_they_came(uid):
    value = struct.pack("<HHL", 0, 0x1000, len(uid)) + uid
    class_value = struct.pack("<HHL", 0, 0x0002, len(uid)) + uid
    request, _ = decode(store_rq(instance=value, class_uid=class_value))
    response = CStoreRSP(7, 0, request.affected_sop_class_uid, request.affected_sop_instance_uid).encode()
    padded = uid + b"\x00" * (len(uid) % 2)
    elements = dict(elements_of(response))
    assert elements[0x0002] == padded
    assert elements[0x1000] == padded


@pytest.mark.parametrize("value", [0x0000, 0x0001, 0x0100, 0x0102, 0x0202, 0xFFFF])
def test_r18_any_data_set_type_but_0101_announces_a_data_set(value):
    data_set_type = b"\x00\x00\x00\x08\x02\x00\x00\x00" + struct.pack("<H", value)
    assert decode(store_rq(data_set_type=data_set_type)) == decode(STORE_RQ)


def test_data_set_type_that_contradicts_the_message_is_visible():
    echo = VECTORS[0][1].replace(NO_DATA, DATA)
    assert decode(echo) == (CEchoRQ(7), True)
    message, data_set_follows = decode(store_rq(data_set_type=NO_DATA))
    assert isinstance(message, CStoreRQ)
    assert not data_set_follows


def test_missing_data_set_type_leaves_it_to_the_rule_of_the_message():
    assert decode(store_rq(data_set_type=b""))[1] is True
    assert decode(VECTORS[0][1].replace(NO_DATA, b""))[1] is False
    assert decode(FIND_CLASS + field(0x20, 0x80) + RESPONDED_TO_7 + PENDING)[1] is False


def test_response_without_uids_is_accepted():
    assert decode(field(0x01, 0x80) + RESPONDED_TO_7 + NO_DATA + SUCCESS) == (CStoreRSP(7, 0), False)
    assert decode(field(0x30, 0x80) + RESPONDED_TO_7 + NO_DATA + SUCCESS) == (CEchoRSP(7, 0, ""), False)


def test_r17_ae_titles_lose_padding_on_both_sides():
    destination = b"\x00\x00\x00\x06\x10\x00\x00\x00  STORE SCP\x00\x00\x00  "
    message, _ = decode(MOVE_CLASS + field(0x21, 0x00) + MESSAGE_ID_7 + destination + DATA)
    assert message.move_destination == "STORE SCP"


def test_error_comment_is_cut_to_64_characters_of_the_default_repertoire():
    response = CStoreRSP(7, 0xC000, error_comment="Gerät\\voll\n\x1b" + "x" * 100)
    value = dict(elements_of(response.encode()))[0x0902]
    assert value == b"Ger?t/voll  " + b"x" * 52


def test_error_comment_received_may_be_longer_or_not_ascii():
    comment = b"\xfcber" + b"x" * 200
    data = (
        field(0x01, 0x80) + RESPONDED_TO_7 + SUCCESS + struct.pack("<HHL", 0, 0x0902, len(comment)) + comment
    )
    assert decode(data)[0].error_comment == "über" + "x" * 200


def test_another_group_ends_the_command_set():
    """Orthanc answers a C-GET that failed in part with Failed SOP Instance UID List (0008,0058) in the command."""
    behind = b"\x08\x00\x00\x00\x04\x00\x00\x00\x0c\x00\x00\x00\x08\x00\x58\x00\x04\x00\x00\x001.2\0"
    assert decode(STORE_RQ + behind) == decode(STORE_RQ)
    assert decode(STORE_RQ + behind[:9]) == decode(STORE_RQ)


# --- Errors ---


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "without Command Field"),
        (MESSAGE_ID_7, "without Command Field"),
        (b"\x00\x00\x00\x01\x01\x00\x00\x00\x01", "without Command Field"),
        (STORE_RQ[:-1], r"\(0000,1000\) at byte 86: length 8 exceeds remaining 7"),
        (STORE_RQ + b"\x00", "1 stray bytes at byte 102"),
        (b"\x08\x00\x16\x00\x00\x00\x00\x00" + STORE_RQ, r"\(0008,0016\) at byte 0: expected group 0000"),
        (b"\x00\x00\x02\x00\xff\xff\xff\xff", "length 4294967295 exceeds remaining 0"),
        (b"\x00\x00\x00\x00UL\x04\x00\x5a\x00\x00\x00", "exceeds remaining"),  # Explicit VR
        (b"\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x5a", "exceeds remaining"),  # Big Endian
        (store_rq(message_id=b""), r"CStoreRQ without a value in \(0000,0110\)"),
        (
            store_rq(message_id=b"\x00\x00\x10\x01\x00\x00\x00\x00"),
            r"CStoreRQ without a value in \(0000,0110\)",
        ),
        (store_rq(message_id=b"", instance=b""), "CStoreRQ without a value"),
        (field(0xFF, 0x0F) + NO_DATA, r"CCancelRQ without a value in \(0000,0120\)"),
        (field(0xFF, 0x0F) + MESSAGE_ID_7 + NO_DATA, r"CCancelRQ without a value in \(0000,0120\)"),
        (field(0x01, 0x80) + NO_DATA + SUCCESS, r"CStoreRSP without a value in \(0000,0120\)"),
        (field(0x01, 0x80) + RESPONDED_TO_7 + NO_DATA, r"CStoreRSP without a value in \(0000,0900\)"),
        (field(0x01, 0x80) + RESPONDED_TO_7 + MESSAGE_ID_7, r"CStoreRSP without a value in \(0000,0900\)"),
        (field(0xFE, 0x8F) + RESPONDED_TO_7 + MESSAGE_ID_7 + SUCCESS, "unknown Command Field 0x8FFE"),
        (field(0x40, 0x00) + NO_DATA, "unknown Command Field 0x0040"),
    ],
)
def test_what_cannot_be_answered_is_fatal(data, message):
    with pytest.raises(CommandError, match=message) as caught:
        decode(data)
    assert caught.value.fatal
    assert caught.value.response == b""


def test_unknown_request_is_answered_as_unrecognized_operation():
    with pytest.raises(CommandError, match="0x0040") as caught:
        decode(CT_CLASS + field(0x40, 0x00) + MESSAGE_ID_7 + DATA + INSTANCE)
    error = caught.value
    assert not error.fatal
    assert (error.status, error.message_id, error.command_field) == (0x0211, 7, 0x0040)
    assert error.data_set_follows
    assert error.response == (
        group_length(126)
        + CT_CLASS
        + field(0x40, 0x80)
        + RESPONDED_TO_7
        + NO_DATA
        + b"\x00\x00\x00\x09\x02\x00\x00\x00"
        + b"\x11\x02"
        + b"\x00\x00\x02\x09\x1c\x00\x00\x00"
        + b"unknown Command Field 0x0040"
        + INSTANCE
    )


@pytest.mark.parametrize(
    "empty", [b"", b"\x00\x00\x00\x10\x00\x00\x00\x00", b"\x00\x00\x00\x10\x02\x00\x00\x00 \x00"]
)
def test_store_request_without_instance_uid_is_answered(empty):
    with pytest.raises(CommandError, match=r"CStoreRQ without a value in \(0000,1000\)") as caught:
        decode(store_rq(instance=empty))
    error = caught.value
    assert not error.fatal
    assert (error.status, error.message_id, error.command_field) == (0x0212, 7, 0x0001)
    assert error.data_set_follows
    response, _ = decode(error.response)
    assert response == CStoreRSP(7, 0x0212, CT, "", "CStoreRQ without a value in (0000,1000)")


@pytest.mark.parametrize(
    "data",
    [
        store_rq(class_uid=b""),
        field(0x30, 0x00) + MESSAGE_ID_7 + NO_DATA,
        field(0x20, 0x00) + MESSAGE_ID_7 + DATA,
        MOVE_CLASS + field(0x21, 0x00) + MESSAGE_ID_7 + DATA,
        CT_CLASS + INSTANCE + field(0x00, 0x01) + MESSAGE_ID_7 + DATA,
        field(0x50, 0x01) + MESSAGE_ID_7 + NO_DATA,
    ],
    ids=["C-STORE", "C-ECHO", "C-FIND", "C-MOVE destination", "N-EVENT-REPORT type", "N-DELETE"],
)
def test_requests_that_lack_something_mandatory_are_answered(data):
    with pytest.raises(CommandError) as caught:
        decode(data)
    assert not caught.value.fatal
    response, data_set_follows = decode(caught.value.response)
    assert not response.is_request
    assert (response.message_id_being_responded_to, response.status) == (7, 0x0212)
    assert not data_set_follows


def test_requested_uids_are_answered_as_affected_uids():
    data = b"\x00\x00\x03\x00\x06\x00\x00\x001.2.3\x00" + field(0x30, 0x01) + MESSAGE_ID_7
    data += b"\x00\x00\x01\x10\x06\x00\x00\x001.2.4\x00"
    with pytest.raises(CommandError) as caught:
        decode(data)
    response, _ = decode(caught.value.response)
    assert isinstance(response, NActionRSP)
    assert (response.affected_sop_class_uid, response.affected_sop_instance_uid) == ("1.2.3", "1.2.4")


def test_every_message_type_is_known_to_the_decoder():
    assert set(command.Message.__args__) == set(COMMAND_FIELDS)
