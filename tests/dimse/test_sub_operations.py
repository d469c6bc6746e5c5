"""The accounts of a retrieve: every mixture of outcomes, more than 65535 of them, the list of what failed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.dimse import CMoveRSP
from harmony.dimse.command import decode
from harmony.dimse.sub_operations import (
    FAILED_LIST_LIMIT,
    Counters,
    SubOperations,
    decode_failed_sop_instance_uids,
    encode_failed_sop_instance_uids,
)

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
SYNTAXES = [IMPLICIT, EXPLICIT, BIG_ENDIAN]

STATUSES = {
    "completed": (0x0000,),
    "warning": (0xB000, 0xB006, 0xB007, 0x0001, 0x0107, 0x0116),
    "failed": (0xA700, 0xA900, 0xC000, 0x0110, 0x0122, 0x0111, 0x1234, 0xFE00, 0xFF00),
}


@pytest.mark.parametrize("kinds", list(itertools.product(STATUSES, repeat=3)), ids="-".join)
@pytest.mark.parametrize("known", ["uids", "total", "nothing"])
def test_every_mixture(kinds, known):
    uids = ["1.1", "1.2", "1.3"]
    accounts = {
        "uids": SubOperations(expected=uids),
        "total": SubOperations(total=3),
        "nothing": SubOperations(),
    }[known]
    for index, (uid, kind) in enumerate(zip(uids, kinds, strict=True)):
        assert accounts.remaining == (None if known == "nothing" else 3 - index)
        accounts.count(uid, STATUSES[kind][index % len(STATUSES[kind])])
    accounts.fail_remaining()
    counts = {kind: kinds.count(kind) for kind in STATUSES}
    assert accounts.counters() == Counters(remaining=None if known == "nothing" else 0, **counts)
    assert accounts.failed_sop_instance_uids == [
        uid for uid, kind in zip(uids, kinds, strict=True) if kind == "failed"
    ]
    # PS3.4 Tables C.4-2 and C.4-3
    if set(kinds) == {"completed"}:
        expected = 0x0000
    elif set(kinds) == {"failed"}:
        expected = 0xA702
    else:
        expected = 0xB000
    assert accounts.final_status() == expected


@pytest.mark.parametrize(
    ("kind", "status"), [(kind, status) for kind, group in STATUSES.items() for status in group]
)
def test_every_status_counts_once(kind, status):
    accounts = SubOperations(total=1)
    accounts.count("1.2", status)
    counts = dict.fromkeys(STATUSES, 0) | {kind: 1}
    assert accounts.counters() == Counters(remaining=0, **counts)


def test_no_sub_operations_are_a_success():
    for accounts in (SubOperations(), SubOperations(total=0), SubOperations(expected=[])):
        accounts.fail_remaining()
        assert accounts.final_status() == 0x0000
        assert accounts.failed == 0


def test_what_had_no_turn_fails_with_its_uid():
    accounts = SubOperations(expected=["1.1", "1.2", "1.2", "1.3"])
    accounts.count("1.2", 0)
    accounts.fail_remaining()
    assert accounts.counters() == Counters(remaining=0, completed=1, failed=3, warning=0)
    assert accounts.failed_sop_instance_uids == ["1.1", "1.2", "1.3"]
    assert accounts.final_status() == 0xB000


def test_what_had_no_turn_fails_without_uids_when_only_the_number_is_known():
    accounts = SubOperations(total=5)
    accounts.count("1.1", 0xA700)
    accounts.fail_remaining()
    assert accounts.counters() == Counters(remaining=0, completed=0, failed=5, warning=0)
    assert accounts.failed_sop_instance_uids == ["1.1"]
    assert accounts.final_status() == 0xA702


def test_more_than_were_announced_do_not_count_backwards():
    accounts = SubOperations(expected=["1.1"])
    accounts.count("1.1", 0)
    accounts.count("1.9", 0)
    assert accounts.remaining == 0
    accounts.fail_remaining()
    assert accounts.final_status() == 0x0000


def test_an_instance_that_was_not_announced_does_not_hide_one_that_was():
    accounts = SubOperations(expected=["1.1", "1.2"])
    accounts.count("1.9", 0)
    assert accounts.remaining == 2
    accounts.fail_remaining()
    assert accounts.failed_sop_instance_uids == ["1.1", "1.2"]


def test_r29_more_than_16_bits_count():
    """Our numbers go on, those on the wire stay at the top."""
    accounts = SubOperations(total=70_000)
    for _ in range(66_000):
        accounts.count("1.2", 0x0000)
    for _ in range(4_000):
        accounts.count("1.2", 0xB000)
    assert accounts.counters() == Counters(0, 66_000, 0, 4_000)
    response = CMoveRSP(1, 0xFF00, "1.2", 70_000, accounts.completed, 0, accounts.warning)
    message, _ = decode(response.encode())
    assert message.number_of_remaining_sub_operations == 0xFFFF
    assert message.number_of_completed_sub_operations == 0xFFFF
    assert message.number_of_warning_sub_operations == 4_000


# Failed SOP Instance UID List


@pytest.mark.parametrize(
    ("syntax", "expected"),
    [
        (IMPLICIT, b"\x08\x00\x58\x00\x08\x00\x00\x001.2\\3.4\0"),
        (EXPLICIT, b"\x08\x00\x58\x00UI\x08\x001.2\\3.4\0"),
        (BIG_ENDIAN, b"\x00\x08\x00\x58UI\x00\x081.2\\3.4\0"),
    ],
)
def test_bytes_of_the_list(syntax, expected):
    assert encode_failed_sop_instance_uids(["1.2", "3.4"], syntax) == expected
    assert decode_failed_sop_instance_uids(expected, syntax) == ("1.2", "3.4")


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("count", [1023, 1024, 2000])
def test_a_list_beyond_16_bits_of_length(syntax, count):
    """64 characters each: 1024 of them take 66559 bytes, and Explicit VR has no UI that long (PS3.5 §6.2.2)."""
    uids = [f"1.{number:062d}" for number in range(count)]
    data_set = encode_failed_sop_instance_uids(uids, syntax)
    if syntax != IMPLICIT:
        assert data_set[4:6] == (b"UI" if count * 65 - 1 <= 0xFFFE else b"UN")
    assert len(data_set) % 2 == 0
    assert decode_failed_sop_instance_uids(data_set, syntax) == tuple(uids)


def test_a_list_that_nobody_would_take_is_cut_between_two_uids(caplog):
    uids = [f"1.{number:062d}" for number in range(20_000)]
    data_set = encode_failed_sop_instance_uids(uids, EXPLICIT)
    assert len(data_set) <= FAILED_LIST_LIMIT + 12
    found = decode_failed_sop_instance_uids(data_set, EXPLICIT)
    assert 15_000 < len(found) < 20_000
    assert list(found) == uids[: len(found)]
    assert f"after {len(found)} UIDs" in caplog.text


uids = st.from_regex(r"[0-9.]{1,64}", fullmatch=True)


@given(st.lists(uids, min_size=1, max_size=50), st.sampled_from(SYNTAXES))
@settings(max_examples=100)
def test_round_trip(values, syntax):
    assert decode_failed_sop_instance_uids(encode_failed_sop_instance_uids(values, syntax), syntax) == tuple(
        values
    )


@given(st.lists(uids, min_size=1, max_size=5), st.sampled_from(SYNTAXES), st.data())
@settings(max_examples=100)
def test_any_bytes_are_read_or_not_but_never_an_error(values, syntax, data):
    encoded = bytearray(encode_failed_sop_instance_uids(values, syntax))
    for _ in range(data.draw(st.integers(0, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    assert isinstance(decode_failed_sop_instance_uids(bytes(encoded[:cut]), syntax), tuple)


@pytest.mark.parametrize("syntax", SYNTAXES)
@given(data=st.binary(max_size=200))
@settings(max_examples=100)
def test_arbitrary_bytes(syntax, data):
    assert isinstance(decode_failed_sop_instance_uids(data, syntax), tuple)


def test_elements_before_the_list_are_skipped():
    charset = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"
    sequence = b"\x08\x00\x06\x00SQ\x00\x00\x00\x00\x00\x00"
    failed = b"\x08\x00\x58\x00UI\x06\x001.2.3\0"
    assert decode_failed_sop_instance_uids(charset + sequence + failed, EXPLICIT) == ("1.2.3",)
    assert decode_failed_sop_instance_uids(b"\x10\x00\x10\x00PN\x00\x00" + failed, EXPLICIT) == ()
    assert decode_failed_sop_instance_uids(b"\x08\x00\x58\x00UI\x00\x00", EXPLICIT) == ()
