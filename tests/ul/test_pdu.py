"""The seven PDUs: bytes typed by hand from PS3.8 §9.3, what is tolerated, what is refused and with which A-ABORT."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.ul.errors import AssociationRejected, LocalProtocolError, RemoteProtocolError
from harmony.ul.items import (
    APPLICATION_CONTEXT_NAME,
    ContextResult,
    ProposedContext,
    RoleSelection,
    UserIdentityRQ,
    UserInformation,
)
from harmony.ul.pdu import (
    Abort,
    AssociateAC,
    AssociateRJ,
    AssociateRQ,
    PDataTF,
    PDUType,
    PresentationDataValue,
    ReleaseRP,
    ReleaseRQ,
    decode,
    describe_abort,
    describe_rejection,
    describe_rejection_reason,
)

ITEM_10 = b"\x10\x00\x00\x15" + b"1.2.840.10008.3.1.1.1"
ITEM_20 = (
    b"\x20\x00\x00\x2e\x01\x00\x00\x00"
    b"\x30\x00\x00\x11" + b"1.2.840.10008.1.1" + b"\x40\x00\x00\x11" + b"1.2.840.10008.1.2"
)
ITEM_21 = b"\x21\x00\x00\x19\x01\x00\x00\x00" + b"\x40\x00\x00\x11" + b"1.2.840.10008.1.2"
ITEM_50 = b"\x50\x00\x00\x11" + b"\x51\x00\x00\x04\x00\x00\x40\x00" + b"\x52\x00\x00\x05" + b"1.2.3"

ADDRESSES = b"CALLED          " + b"CALLING         " + bytes(32)
FIXED = b"\x00\x01\x00\x00" + ADDRESSES

RQ_BYTES = b"\x01\x00\x00\x00\x00\xa4" + FIXED + ITEM_10 + ITEM_20 + ITEM_50
AC_BYTES = b"\x02\x00\x00\x00\x00\x8f" + FIXED + ITEM_10 + ITEM_21 + ITEM_50

INFORMATION = UserInformation(maximum_length=16384, implementation_class_uid="1.2.3")
CONTEXT = ProposedContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",))
RESULT = ContextResult(1, 0, "1.2.840.10008.1.2")
RQ = AssociateRQ("CALLED", "CALLING", (CONTEXT,), INFORMATION)
AC = AssociateAC((RESULT,), INFORMATION, address_fields=ADDRESSES)


def decode_whole(data: bytes):
    assert int.from_bytes(data[2:6], "big") == len(data) - 6
    return decode(data[0], data[6:])


def request(*items: bytes, fixed: bytes = FIXED) -> AssociateRQ:
    return decode(1, fixed + b"".join(items))


# Byte vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pdu", "encoded"),
    [
        (RQ, RQ_BYTES),
        (AC, AC_BYTES),
        (AssociateRJ(1, 1, 7), b"\x03\x00\x00\x00\x00\x04\x00\x01\x01\x07"),
        (AssociateRJ(2, 3, 2), b"\x03\x00\x00\x00\x00\x04\x00\x02\x03\x02"),
        (
            PDataTF((PresentationDataValue(3, 3, b"\x01\x02"),)),
            b"\x04\x00\x00\x00\x00\x08" + b"\x00\x00\x00\x04\x03\x03\x01\x02",
        ),
        (
            PDataTF((PresentationDataValue(1, 3, b"abcd"), PresentationDataValue(1, 2, b""))),
            b"\x04\x00\x00\x00\x00\x10" + b"\x00\x00\x00\x06\x01\x03abcd" + b"\x00\x00\x00\x02\x01\x02",
        ),
        (ReleaseRQ(), b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"),
        (ReleaseRP(), b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"),
        (Abort(0, 0), b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00"),
        (Abort(2, 6), b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bytes) else "",
)
def test_pdu_both_ways(pdu, encoded):
    assert pdu.encode() == encoded
    assert decode_whole(encoded) == pdu
    assert decode(encoded[0], memoryview(encoded)[6:]) == pdu


def test_pdu_types():
    assert [(kind.name, kind.value) for kind in PDUType] == [
        ("ASSOCIATE_RQ", 1),
        ("ASSOCIATE_AC", 2),
        ("ASSOCIATE_RJ", 3),
        ("P_DATA_TF", 4),
        ("RELEASE_RQ", 5),
        ("RELEASE_RP", 6),
        ("ABORT", 7),
    ]


def test_ac_repeats_the_64_bytes_of_the_rq():
    """PS3.8 Table 9-17: both AE titles and the 32 reserved bytes are sent as they were received."""
    addresses = bytes(range(0xC0, 0x100))
    received = request(ITEM_10, ITEM_20, ITEM_50, fixed=b"\x00\x01\x00\x00" + addresses)
    assert received.address_fields == addresses
    assert AssociateAC((RESULT,), address_fields=received.address_fields).encode()[10:74] == addresses


def test_ac_built_without_an_rq_has_blank_titles():
    assert AssociateAC((RESULT,)).encode()[10:74] == b" " * 32 + bytes(32)


def test_ac_address_fields_are_never_tested():
    body = b"\x00\x01\xff\xff" + bytes(range(0xC0, 0x100)) + ITEM_10 + ITEM_21 + ITEM_50
    assert decode(2, body) == AC


def test_fragments_are_views_of_the_body():
    body = bytearray(b"\x00\x00\x00\x04\x01\x02ab")
    pdu = decode(4, body)
    body[6:] = b"xy"
    assert pdu.presentation_data_values[0].fragment == b"xy"


@pytest.mark.parametrize(
    ("control", "command", "last"), [(0, False, False), (1, True, False), (2, False, True), (3, True, True)]
)
@pytest.mark.parametrize("reserved", [0, 4, 0xFC])
def test_r14_reserved_control_header_bits_are_ignored(control, command, last, reserved):
    pdu = decode(4, b"\x00\x00\x00\x02\x01" + bytes([control | reserved]))
    assert pdu.presentation_data_values[0].is_command is command
    assert pdu.presentation_data_values[0].is_last is last


# Tolerance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item_type", [0x00, 0x11, 0x21, 0x22, 0x30, 0x40, 0x51, 0x5A, 0x60, 0xFF])
@pytest.mark.parametrize("position", range(4))
def test_r00_unknown_items_of_an_rq_are_skipped(item_type, position):
    items = [ITEM_10, ITEM_20, ITEM_50]
    items.insert(position, bytes((item_type, 0xAA, 0, 3)) + b"xyz")
    assert request(*items) == RQ


@pytest.mark.parametrize("item_type", [0x00, 0x11, 0x20, 0x22, 0xFF])
@pytest.mark.parametrize("position", range(4))
def test_r00_unknown_items_of_an_ac_are_skipped(item_type, position):
    items = [ITEM_10, ITEM_21, ITEM_50]
    items.insert(position, bytes((item_type, 0xAA, 0, 0)))
    assert decode(2, FIXED + b"".join(items)) == AC


@pytest.mark.parametrize("pdu_type", [1, 2])
@pytest.mark.parametrize("item_type", [0x10, 0x20, 0x21, 0x50, 0x99])
def test_r03_an_item_longer_than_its_pdu_is_an_error_that_names_it(pdu_type, item_type):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(pdu_type, FIXED + bytes((item_type, 0, 0x23, 0x28)) + bytes(120))
    name = "A-ASSOCIATE-RQ" if pdu_type == 1 else "A-ASSOCIATE-AC"
    assert str(caught.value) == f"{name} item 0x{item_type:02X} at byte 74: length 9000 exceeds remaining 120"
    assert (caught.value.source, caught.value.reason) == (2, 6)


@pytest.mark.parametrize("sub_item", [0x30, 0x40, 0x77])
def test_r03_a_sub_item_longer_than_its_context_is_an_error_not_a_wait(sub_item):
    context = b"\x20\x00\x00\x09\x01\x00\x00\x00" + bytes((sub_item, 0, 0xFF, 0xFF)) + b"1"
    with pytest.raises(RemoteProtocolError, match="at byte 107: length 65535 exceeds remaining 1") as caught:
        request(ITEM_10, context, ITEM_50)
    assert (caught.value.source, caught.value.reason) == (2, 6)


@pytest.mark.parametrize("rest", [b"\x10", b"\x10\x00", b"\x10\x00\x00"])
def test_half_an_item_header_is_an_error(rest):
    with pytest.raises(RemoteProtocolError, match=f"at byte 74: {len(rest)} bytes"):
        request(rest)


@pytest.mark.parametrize("pdu_type", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 67])
def test_an_association_pdu_shorter_than_its_fixed_fields(pdu_type, size):
    with pytest.raises(RemoteProtocolError, match=f"length {size}, expected at least 68") as caught:
        decode(pdu_type, bytes(size))
    assert (caught.value.source, caught.value.reason) == (2, 6)


def test_r07_contexts_with_odd_transfer_syntaxes_never_refuse_the_pdu():
    none = b"\x20\x00\x00\x0b\x03\x00\x00\x00" + b"\x30\x00\x00\x03" + b"1.1"
    padded = (
        b"\x20\x00\x00\x13\x05\x00\x00\x00" + b"\x30\x00\x00\x04" + b"1.1\0" + b"\x40\x00\x00\x03" + b"x\0\0"
    )
    assert request(ITEM_10, ITEM_20, none, padded, ITEM_50).presentation_contexts == (
        CONTEXT,
        ProposedContext(3, "1.1", ()),
        ProposedContext(5, "1.1", ("x",)),
    )


def small_context(identifier: int) -> bytes:
    return bytes((0x20, 0, 0, 4, identifier, 0, 0, 0))


def test_r08_even_zero_duplicate_and_unordered_context_ids_are_kept_as_sent():
    identifiers = [255, 0, 2, 1, 1, 254, 3]
    contexts = request(*map(small_context, identifiers)).presentation_contexts
    assert [context.presentation_context_id for context in contexts] == identifiers


def test_r08_128_contexts_are_decoded_and_257_are_not():
    contexts = request(*map(small_context, range(1, 256, 2))).presentation_contexts
    assert [context.presentation_context_id for context in contexts] == list(range(1, 256, 2))
    assert len(request(*map(small_context, range(256))).presentation_contexts) == 256
    with pytest.raises(RemoteProtocolError, match="257 presentation contexts"):
        request(*map(small_context, range(256)), small_context(1))


def test_r09_an_ac_is_decoded_whatever_ids_it_names():
    items = bytes((0x21, 0, 0, 4, 99, 0, 3, 0)) + bytes((0x21, 0, 0, 4, 99, 0, 77, 0))
    pdu = decode(2, FIXED + items)
    assert pdu.presentation_contexts == (ContextResult(99, 3), ContextResult(99, 77))


@pytest.mark.parametrize("pdu_type", [1, 2])
def test_r10_nothing_but_fixed_fields(pdu_type):
    pdu = decode(pdu_type, FIXED)
    assert pdu.application_context_name == ""
    assert pdu.presentation_contexts == ()
    assert pdu.user_information == UserInformation()
    assert pdu.user_information.maximum_length is None


def test_the_first_item_10_wins_and_several_50_are_merged():
    other = b"\x10\x00\x00\x05" + b"9.9.9"
    role = b"\x50\x00\x00\x0b" + b"\x54\x00\x00\x07\x00\x03" + b"1.2" + b"\x01\x01"
    pdu = request(ITEM_50, ITEM_10, other, ITEM_20, role)
    assert pdu.application_context_name == APPLICATION_CONTEXT_NAME
    assert pdu.user_information == UserInformation(
        16384, "1.2.3", role_selections=(RoleSelection("1.2", True, True),)
    )


def test_items_may_come_in_any_order():
    assert request(ITEM_50, ITEM_20, ITEM_10) == RQ


@pytest.mark.parametrize(
    ("field", "title"),
    [
        (b"                ", ""),
        (bytes(16), ""),
        (b"STORESCP\0\0\0\0\0\0\0\0", "STORESCP"),
        (b"  STORE SCP \0 \0 ", "STORE SCP"),
        (b"\0STORESCP       ", "STORESCP"),
        (b"back\\slash\x01\x02    ", "back\\slash\x01\x02"),
        (b"\xff\xe9\x80IX           ", "ÿé\x80IX"),
        (b"SIXTEEN_LETTERS_", "SIXTEEN_LETTERS_"),
    ],
)
def test_r11_ae_titles_of_any_bytes_are_decoded(field, title):
    assert len(field) == 16
    fixed = b"\x00\x01\x00\x00" + field + field + bytes(32)
    pdu = request(ITEM_20, fixed=fixed)
    assert (pdu.called_ae_title, pdu.calling_ae_title) == (title, title)


def test_reserved_fields_of_an_rq_are_not_tested():
    fixed = b"\x00\x03\xff\xff" + ADDRESSES[:32] + b"\xff" * 32
    context = bytearray(ITEM_20)
    context[1] = context[5] = context[6] = context[7] = context[9] = 0xFF
    pdu = request(ITEM_10, bytes(context), ITEM_50, fixed=fixed)
    assert pdu == AssociateRQ("CALLED", "CALLING", (CONTEXT,), INFORMATION, protocol_version=3)


@pytest.mark.parametrize("length", [0, 1, 3, 0xFFFFFFFF])
def test_r12_a_pdv_length_that_cannot_be(length):
    body = length.to_bytes(4, "big") + b"\x01\x03"
    with pytest.raises(
        RemoteProtocolError, match=re.escape(f"byte 6: length {length}, expected 2 to 2")
    ) as caught:
        decode(4, body)
    assert (caught.value.source, caught.value.reason) == (2, 6)


@pytest.mark.parametrize("size", range(6))
def test_r12_a_p_data_tf_without_a_whole_pdv_header(size):
    with pytest.raises(RemoteProtocolError, match=f"byte 6: {size} bytes"):
        decode(4, bytes(size))


@pytest.mark.parametrize("size", range(1, 6))
def test_r12_bytes_after_the_last_pdv(size):
    with pytest.raises(RemoteProtocolError, match=f"byte 14: {size} bytes"):
        decode(4, b"\x00\x00\x00\x04\x01\x02ab" + bytes(size))


def test_r12_a_second_pdv_that_overlaps_the_end():
    with pytest.raises(RemoteProtocolError, match="byte 14: length 5, expected 2 to 4"):
        decode(4, b"\x00\x00\x00\x04\x01\x02ab" + b"\x00\x00\x00\x05\x01\x02ab")


def test_r12_r13_empty_and_odd_fragments_are_legal():
    pdu = decode(4, b"\x00\x00\x00\x02\x01\x00" + b"\x00\x00\x00\x03\x01\x00a" + b"\x00\x00\x00\x02\x01\x02")
    assert [bytes(value.fragment) for value in pdu.presentation_data_values] == [b"", b"a", b""]


@pytest.mark.parametrize("body", [b"", b"\x00", bytes(4), b"\xff" * 4, bytes(500)])
def test_release_of_any_length(body):
    assert decode(5, body) == ReleaseRQ()
    assert decode(6, body) == ReleaseRP()


@pytest.mark.parametrize(
    ("body", "pdu"),
    [
        (b"", Abort(0, 0)),
        (b"\xff\xff", Abort(0, 0)),
        (b"\x00\x00\x02", Abort(2, 0)),
        (b"\xff\xff\x02\x05", Abort(2, 5)),
        (b"\x00\x00\x02\x01more", Abort(2, 1)),
    ],
)
def test_abort_of_any_length(body, pdu):
    assert decode(7, body) == pdu


def test_r33_reserved_codes_come_through_as_integers():
    rejection = decode(3, b"\xff\x00\x09\xc8")
    assert rejection == AssociateRJ(0, 9, 200)
    error = AssociationRejected(rejection.result, rejection.source, rejection.reason)
    assert (error.result, error.source, error.reason) == (0, 9, 200)
    assert "reserved (0), reserved (9), reserved (200)" in str(error)
    assert decode(7, b"\x00\x00\x01\xc8") == Abort(1, 200)


def test_a_rejection_may_be_too_long_but_not_too_short():
    assert decode(3, b"\x00\x01\x01\x01\x00\x00") == AssociateRJ(1, 1, 1)
    for size in range(4):
        with pytest.raises(RemoteProtocolError, match=f"length {size}, expected 4"):
            decode(3, bytes(size))


@pytest.mark.parametrize("pdu_type", [-1, 0, 8, 0x16, 0x47, 0xFF])
def test_an_unknown_type_is_an_unrecognized_pdu(pdu_type):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(pdu_type, bytes(100))
    assert (caught.value.source, caught.value.reason) == (2, 1)


# What is not sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "title", ["", " ", " " * 16, "SEVENTEEN_LETTERS", "BACK\\SLASH", "TAB\t", "NUL\0", "DEL\x7f", "É", "٣"]
)
def test_ae_titles_the_standard_does_not_allow(title):
    with pytest.raises(LocalProtocolError, match="called AE title"):
        AssociateRQ(title, "CALLING", (CONTEXT,)).encode()
    with pytest.raises(LocalProtocolError, match="calling AE title"):
        AssociateRQ("CALLED", title, (CONTEXT,)).encode()


def contexts(*identifiers: int) -> tuple[ProposedContext, ...]:
    return tuple(ProposedContext(identifier, "1.1", ("1.2",)) for identifier in identifiers)


@pytest.mark.parametrize(
    "pdu",
    [
        AssociateRQ("A", "B", ()),
        AssociateRQ("A", "B", contexts(1, 3, 1)),
        AssociateRQ("A", "B", contexts(1, 2)),
        AssociateRQ("A", "B", contexts(*range(1, 259, 2))),
        AssociateRQ("A", "B", contexts(1), application_context_name=""),
        AssociateRQ("A", "B", contexts(1), protocol_version=65536),
        AssociateAC((), address_fields=bytes(63)),
        AssociateAC((RESULT, RESULT)),
        AssociateAC((), application_context_name="x"),
        AssociateRJ(256, 1, 1),
        AssociateRJ(1, -1, 1),
        AssociateRJ(1, 1, 1000),
        Abort(-1, 0),
        Abort(0, 256),
        PDataTF(()),
        PDataTF((PresentationDataValue(256, 0, b""),)),
        PDataTF((PresentationDataValue(1, -1, b""),)),
    ],
    ids=lambda pdu: type(pdu).__name__,
)
def test_what_the_standard_does_not_allow_is_not_sent(pdu):
    with pytest.raises(LocalProtocolError):
        pdu.encode()


def test_an_ac_may_answer_the_same_id_twice_when_only_one_is_accepted():
    """A peer that proposed an ID twice gets both answers."""
    pdu = AssociateAC((ContextResult(1, 0, "1.2"), ContextResult(1, 2, "1.2")), address_fields=ADDRESSES)
    assert decode_whole(pdu.encode()) == pdu


# Words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ((1, 1, 1), "rejected-permanent (1), UL service-user (1), no-reason-given (1)"),
        (
            (1, 1, 2),
            "rejected-permanent (1), UL service-user (1), application-context-name-not-supported (2)",
        ),
        ((1, 1, 3), "rejected-permanent (1), UL service-user (1), calling-AE-title-not-recognized (3)"),
        ((1, 1, 7), "rejected-permanent (1), UL service-user (1), called-AE-title-not-recognized (7)"),
        ((1, 2, 1), "rejected-permanent (1), UL service-provider ACSE (2), no-reason-given (1)"),
        (
            (1, 2, 2),
            "rejected-permanent (1), UL service-provider ACSE (2), protocol-version-not-supported (2)",
        ),
        ((2, 3, 1), "rejected-transient (2), UL service-provider Presentation (3), temporary-congestion (1)"),
        ((2, 3, 2), "rejected-transient (2), UL service-provider Presentation (3), local-limit-exceeded (2)"),
        ((2, 3, 0), "rejected-transient (2), UL service-provider Presentation (3), reserved (0)"),
        ((3, 4, 5), "reserved (3), reserved (4), reserved (5)"),
    ],
)
def test_describe_rejection(codes, text):
    assert describe_rejection(*codes) == text
    assert text.endswith(f", {describe_rejection_reason(*codes[1:])} ({codes[2]})")


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ((0, 0), "UL service-user (0), reason not significant (0)"),
        ((0, 6), "UL service-user (0), reason not significant (6)"),
        ((2, 0), "UL service-provider (2), reason-not-specified (0)"),
        ((2, 1), "UL service-provider (2), unrecognized-PDU (1)"),
        ((2, 2), "UL service-provider (2), unexpected-PDU (2)"),
        ((2, 3), "UL service-provider (2), reserved (3)"),
        ((2, 4), "UL service-provider (2), unrecognized-PDU-parameter (4)"),
        ((2, 5), "UL service-provider (2), unexpected-PDU-parameter (5)"),
        ((2, 6), "UL service-provider (2), invalid-PDU-parameter-value (6)"),
        ((1, 200), "reserved (1), reason not significant (200)"),
    ],
)
def test_describe_abort(codes, text):
    assert describe_abort(*codes) == text


# Properties -----------------------------------------------------------------------------------------------------

uids = st.from_regex(r"[0-9.]{1,64}", fullmatch=True)
titles = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\"), min_size=1, max_size=16
)
octet = st.integers(0, 255)
information = st.builds(
    UserInformation,
    maximum_length=st.none() | st.integers(0, 2**32 - 1),
    implementation_class_uid=st.just("") | uids,
    role_selections=st.lists(st.builds(RoleSelection, uids, st.booleans(), st.booleans()), max_size=3).map(
        tuple
    ),
    user_identity_rq=st.none()
    | st.builds(UserIdentityRQ, octet, st.binary(max_size=9), st.binary(max_size=9)),
)
odd = st.integers(0, 127).map(lambda n: 2 * n + 1)
proposals = st.lists(odd, min_size=1, max_size=6, unique=True).flatmap(
    lambda ids: st.tuples(
        *(
            st.builds(ProposedContext, st.just(n), uids, st.lists(uids, min_size=1, max_size=3).map(tuple))
            for n in ids
        )
    )
)
results = st.lists(odd, max_size=6, unique=True).flatmap(
    lambda ids: st.tuples(*(st.builds(ContextResult, st.just(n), octet, uids) for n in ids))
)
pdus = st.one_of(
    st.builds(AssociateRQ, titles, titles, proposals, information, uids, st.integers(0, 65535)),
    st.builds(
        AssociateAC, results, information, uids, st.integers(0, 65535), st.binary(min_size=64, max_size=64)
    ),
    st.builds(AssociateRJ, octet, octet, octet),
    st.builds(
        PDataTF,
        st.lists(
            st.builds(PresentationDataValue, octet, octet, st.binary(max_size=20)), min_size=1, max_size=4
        ).map(tuple),
    ),
    st.just(ReleaseRQ()),
    st.just(ReleaseRP()),
    st.builds(Abort, octet, octet),
)


@given(pdus)
def test_round_trip(pdu):
    decoded = decode_whole(pdu.encode())
    assert decoded == pdu
    if isinstance(pdu, AssociateAC):
        assert decoded.address_fields == pdu.address_fields


def only_remote_protocol_error(pdu_type: int, body: bytes) -> None:
    abort = None
    try:
        decode(pdu_type, body)
    except RemoteProtocolError as error:
        abort = (error.source, error.reason)
    assert abort in (None, (2, 1), (2, 6))


@settings(max_examples=200)
@given(st.integers(0, 9), st.binary(max_size=300))
def test_arbitrary_bytes_give_a_pdu_or_a_remote_protocol_error(pdu_type, body):
    only_remote_protocol_error(pdu_type, body)


@given(st.sampled_from([1, 2]), st.binary(max_size=300))
def test_arbitrary_items_give_a_pdu_or_a_remote_protocol_error(pdu_type, items):
    only_remote_protocol_error(pdu_type, FIXED + items)


@given(pdus, st.data())
def test_a_damaged_pdu_gives_a_pdu_or_a_remote_protocol_error(pdu, data):
    body = bytearray(pdu.encode()[6:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(octet)
    end = data.draw(st.integers(0, len(body)))
    only_remote_protocol_error(pdu.encode()[0], bytes(body[:end]))


def test_a_large_request_round_trips():
    """128 contexts of 62 transfer syntaxes: 300 KB, 8000 UIDs."""
    syntaxes = tuple(f"1.2.840.10008.1.2.4.{number}.1234567890" for number in range(62))
    proposal = tuple(
        ProposedContext(2 * number + 1, f"1.2.840.10008.5.1.4.1.1.{number}", syntaxes)
        for number in range(128)
    )
    pdu = AssociateRQ("A", "B", proposal, INFORMATION)
    encoded = pdu.encode()
    assert len(encoded) > 290_000
    assert decode_whole(encoded) == pdu
