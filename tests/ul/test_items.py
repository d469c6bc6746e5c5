"""Items and sub-items: bytes typed by hand from PS3.8 §9.3.2, §9.3.3, Annex D, PS3.7 Annex D.3.3; and the tolerance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.ul.errors import LocalProtocolError, RemoteProtocolError
from harmony.ul.items import (
    AsynchronousOperationsWindow,
    CommonExtendedNegotiation,
    ContextResult,
    ContextResultCode,
    ExtendedNegotiation,
    ProposedContext,
    RoleSelection,
    UserIdentityAC,
    UserIdentityRQ,
    UserInformation,
    decode_context_result,
    decode_proposed_context,
    decode_user_information,
)


def proposed(item: bytes) -> ProposedContext:
    return decode_proposed_context(item, 4, len(item))


def result(item: bytes) -> ContextResult:
    return decode_context_result(item, 4, len(item))


def user_information(*items: bytes) -> UserInformation:
    """Decode whole 0x50 items as they would stand one after the other."""
    ranges, position = [], 0
    for item in items:
        ranges.append((position + 4, position + len(item)))
        position += len(item)
    return decode_user_information(b"".join(items), ranges)


def sub_items(*parts: bytes) -> UserInformation:
    body = b"".join(parts)
    return user_information(b"\x50\x00" + len(body).to_bytes(2, "big") + body)


# Presentation contexts ------------------------------------------------------------------------------------------

ITEM_20 = (
    b"\x20\x00\x00\x2e\x01\x00\x00\x00"
    b"\x30\x00\x00\x11" + b"1.2.840.10008.1.1"
    b"\x40\x00\x00\x11" + b"1.2.840.10008.1.2"
)
ITEM_21 = b"\x21\x00\x00\x19\x03\x00\x00\x00" + b"\x40\x00\x00\x11" + b"1.2.840.10008.1.2"


def test_item_20_30_40():
    context = ProposedContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",))
    assert context.encode() == ITEM_20
    assert proposed(ITEM_20) == context


def test_item_20_with_two_transfer_syntaxes():
    item = (
        b"\x20\x00\x00\x1c\xff\x00\x00\x00"
        b"\x30\x00\x00\x03" + b"1.1" + b"\x40\x00\x00\x03" + b"1.2" + b"\x40\x00\x00\x06" + b"1.2.10"
    )
    context = ProposedContext(255, "1.1", ("1.2", "1.2.10"))
    assert context.encode() == item
    assert proposed(item) == context


def test_item_21():
    context = ContextResult(3, ContextResultCode.ACCEPTANCE, "1.2.840.10008.1.2")
    assert context.encode() == ITEM_21
    assert result(ITEM_21) == context


@pytest.mark.parametrize("syntax", ["", "not a UID", "1" * 65])
def test_item_21_not_accepted_always_has_a_40_that_is_a_uid(syntax):
    item = b"\x21\x00\x00\x19\x04\x00\x03\x00" + b"\x40\x00\x00\x11" + b"1.2.840.10008.1.2"
    assert ContextResult(4, ContextResultCode.ABSTRACT_SYNTAX_NOT_SUPPORTED, syntax).encode() == item


def test_item_21_accepted_never_hides_a_bad_transfer_syntax():
    with pytest.raises(LocalProtocolError):
        ContextResult(1, 0, "not a UID").encode()


def test_result_codes():
    assert [(code.name, code.value) for code in ContextResultCode] == [
        ("ACCEPTANCE", 0),
        ("USER_REJECTION", 1),
        ("NO_REASON", 2),
        ("ABSTRACT_SYNTAX_NOT_SUPPORTED", 3),
        ("TRANSFER_SYNTAXES_NOT_SUPPORTED", 4),
    ]


@pytest.mark.parametrize(
    ("item", "context"),
    [
        (b"\x20\x00\x00\x0b\x01\x00\x00\x00\x30\x00\x00\x03" + b"1.1", ProposedContext(1, "1.1", ())),
        (b"\x20\x00\x00\x0b\x01\x00\x00\x00\x40\x00\x00\x03" + b"1.2", ProposedContext(1, "", ("1.2",))),
        (b"\x20\x00\x00\x04\x01\x00\x00\x00", ProposedContext(1, "", ())),
        (
            b"\x20\x00\x00\x1c\x01\xaa\xbb\xcc\x30\xdd\x00\x04"
            + b"1.1\0"
            + b"\x40\xee\x00\x06"
            + b"1.2 \0 "
            + b"\x40\x00\x00\x02"
            + b"zz",
            ProposedContext(1, "1.1", ("1.2", "zz")),
        ),
        (
            b"\x20\x00\x00\x19\x01\x00\x00\x00\x30\x00\x00\x03"
            + b"1.1"
            + b"\x40\x00\x00\x03"
            + b"1.2"
            + b"\x40\x00\x00\x03"
            + b"1.2",
            ProposedContext(1, "1.1", ("1.2", "1.2")),
        ),
    ],
    ids=["zero syntaxes", "no abstract syntax", "nothing", "padded, unknown, reserved set", "repeated"],
)
def test_r07_a_context_is_kept_as_it_came(item, context):
    assert proposed(item) == context


def test_r00_unknown_sub_items_inside_20_and_21_are_skipped():
    item = (
        b"\x20\x00\x00\x1e\x01\x00\x00\x00"
        + b"\x11\x00\x00\x02ab"
        + (b"\x30\x00\x00\x03" + b"1.1" + b"\xff\x00\x00\x00" + b"\x40\x00\x00\x03" + b"1.2")
    )
    assert proposed(item) == ProposedContext(1, "1.1", ("1.2",))
    item = b"\x21\x00\x00\x12\x01\x00\x00\x00" + b"\x30\x00\x00\x03" + b"9.9" + b"\x40\x00\x00\x03" + b"1.2"
    assert result(item) == ContextResult(1, 0, "1.2")


@pytest.mark.parametrize("context_id", [0, 2, 254])
def test_r08_even_context_ids_are_decoded_and_answered_but_not_sent(context_id):
    item = bytes((0x20, 0, 0, 4, context_id, 0, 0, 0))
    assert proposed(item).presentation_context_id == context_id
    assert ContextResult(context_id, 2).encode()[4] == context_id
    with pytest.raises(LocalProtocolError):
        ContextResult(context_id, 0).encode()
    with pytest.raises(LocalProtocolError):
        ProposedContext(context_id, "1.1", ("1.2",)).encode()


def test_21_without_40_with_several_and_damaged_where_not_significant():
    assert result(b"\x21\x00\x00\x04\x01\x00\x03\x00") == ContextResult(1, 3, "")
    two = b"\x21\x00\x00\x12\x01\x00\x00\x00" + b"\x40\x00\x00\x03" + b"1.2" + b"\x40\x00\x00\x03" + b"1.3"
    assert result(two) == ContextResult(1, 0, "1.2")
    assert result(b"\x21\x00\x00\x09\x01\x00\x04\x00\x40\x00\xff\xff\x31") == ContextResult(1, 4, "1")
    assert result(b"\x21\x00\x00\x06\x01\x00\x04\x00\x40\x00") == ContextResult(1, 4, "")
    with pytest.raises(RemoteProtocolError):
        result(b"\x21\x00\x00\x09\x01\x00\x00\x00\x40\x00\xff\xff\x31")


@pytest.mark.parametrize("decode", [decode_proposed_context, decode_context_result])
@pytest.mark.parametrize("size", range(4))
def test_a_context_needs_its_four_fixed_bytes(decode, size):
    with pytest.raises(RemoteProtocolError, match=f"length {size}, expected at least 4") as caught:
        decode(bytes(4 + size), 4, 4 + size)
    assert (caught.value.source, caught.value.reason) == (2, 6)


# User information -----------------------------------------------------------------------------------------------

ITEM_51 = b"\x51\x00\x00\x04\x00\x00\x40\x00"
ITEM_52 = b"\x52\x00\x00\x05" + b"1.2.3"
ITEM_53 = b"\x53\x00\x00\x04\x00\x05\x01\x00"
ITEM_54 = b"\x54\x00\x00\x09\x00\x05" + b"1.2.4" + b"\x00\x01"
ITEM_55 = b"\x55\x00\x00\x07" + b"HARMONY"
ITEM_56 = b"\x56\x00\x00\x0a\x00\x05" + b"1.2.5" + b"\x01\x00\x01"
ITEM_57 = (
    b"\x57\x00\x00\x15\x00\x03"
    + b"1.6"
    + b"\x00\x03"
    + b"1.7"
    + b"\x00\x09\x00\x03"
    + b"1.8"
    + b"\x00\x02"
    + b"19"
)
ITEM_58 = b"\x58\x00\x00\x0c\x02\x01\x00\x03" + b"bob" + b"\x00\x03" + b"\xc3\xa9!"
ITEM_59 = b"\x59\x00\x00\x05\x00\x03" + b"tkt"

WINDOW = AsynchronousOperationsWindow(5, 256)
ROLE = RoleSelection("1.2.4", False, True)
EXTENDED = ExtendedNegotiation("1.2.5", b"\x01\x00\x01")
COMMON = CommonExtendedNegotiation("1.6", "1.7", ("1.8", "19"))
IDENTITY = UserIdentityRQ(2, b"bob", b"\xc3\xa9!", True)
IDENTITY_AC = UserIdentityAC(b"tkt")


@pytest.mark.parametrize(
    ("item", "encoded"),
    [
        (WINDOW, ITEM_53),
        (ROLE, ITEM_54),
        (EXTENDED, ITEM_56),
        (COMMON, ITEM_57),
        (
            CommonExtendedNegotiation("1.6", "1.7", (), 3),
            b"\x57\x03\x00\x0c\x00\x03" + b"1.6" + b"\x00\x03" + b"1.7" + b"\x00\x00",
        ),
        (IDENTITY, ITEM_58),
        (UserIdentityRQ(1, b"bob"), b"\x58\x00\x00\x09\x01\x00\x00\x03" + b"bob" + b"\x00\x00"),
        (IDENTITY_AC, ITEM_59),
        (UserIdentityAC(), b"\x59\x00\x00\x02\x00\x00"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bytes) else f"{value[0]:02x}",
)
def test_sub_items_encode(item, encoded):
    assert item.encode() == encoded


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b"", UserInformation()),
        (ITEM_51, UserInformation(maximum_length=16384)),
        (ITEM_52, UserInformation(implementation_class_uid="1.2.3")),
        (ITEM_53, UserInformation(asynchronous_operations_window=WINDOW)),
        (ITEM_54, UserInformation(role_selections=(ROLE,))),
        (ITEM_55, UserInformation(implementation_version_name="HARMONY")),
        (ITEM_56, UserInformation(extended_negotiations=(EXTENDED,))),
        (ITEM_57, UserInformation(common_extended_negotiations=(COMMON,))),
        (ITEM_58, UserInformation(user_identity_rq=IDENTITY)),
        (ITEM_59, UserInformation(user_identity_ac=IDENTITY_AC)),
    ],
    ids=["none", "51", "52", "53", "54", "55", "56", "57", "58", "59"],
)
def test_user_information_with_one_sub_item_both_ways(encoded, expected):
    item = b"\x50\x00" + len(encoded).to_bytes(2, "big") + encoded
    assert user_information(item) == expected
    assert expected.encode() == item


EVERYTHING = UserInformation(
    16384, "1.2.3", "HARMONY", WINDOW, (ROLE,), (EXTENDED,), (COMMON,), IDENTITY, IDENTITY_AC
)
ALL_SUB_ITEMS = [ITEM_51, ITEM_52, ITEM_53, ITEM_54, ITEM_55, ITEM_56, ITEM_57, ITEM_58, ITEM_59]


def test_sub_items_are_sent_in_ascending_order():
    body = b"".join(ALL_SUB_ITEMS)
    assert EVERYTHING.encode() == b"\x50\x00\x00" + bytes([len(body)]) + body


@given(st.permutations(ALL_SUB_ITEMS))
def test_sub_items_may_come_in_any_order(items):
    assert sub_items(*items) == EVERYTHING


@given(st.integers(0, 9), st.integers(0x5A, 0xFF), st.binary(max_size=20))
def test_r00_unknown_sub_items_are_skipped(position, item_type, content):
    items = ALL_SUB_ITEMS.copy()
    items.insert(position, bytes((item_type, 0, 0, len(content))) + content)
    assert sub_items(*items) == EVERYTHING


def test_several_50_items_are_merged_and_the_first_of_a_kind_counts():
    first = b"\x50\x00\x00\x11" + ITEM_51 + b"\x52\x00\x00\x05" + b"1.2.3"
    second = b"\x50\x00\x00\x15\x51\x00\x00\x04\x00\x00\x00\x01" + ITEM_54
    assert user_information(first, second) == UserInformation(16384, "1.2.3", role_selections=(ROLE,))


def test_a_clipped_sub_item_does_not_reach_into_the_next_50():
    first = b"\x50\x00\x00\x08" + b"\x55\x00\x00\x40" + b"LONG"
    second = b"\x50\x00\x00\x08" + ITEM_51
    assert user_information(first, second) == UserInformation(16384, implementation_version_name="LONG")


def test_r03_a_sub_item_that_runs_past_its_parent_is_clipped():
    assert sub_items(ITEM_51, b"\x55\x00\xff\xff" + b"NAME") == UserInformation(
        16384, implementation_version_name="NAME"
    )
    assert sub_items(ITEM_51, b"\x52\x00\xff\xff" + b"1.2") == UserInformation(16384, "1.2")
    assert sub_items(ITEM_51, b"\x53\x00\xff\xff" + b"\x00\x01") == UserInformation(16384)
    assert sub_items(ITEM_51, b"\x52\x00\x00") == UserInformation(16384)
    assert sub_items(b"\x51\x00\xff\xff" + b"\x00\x00\x40") == UserInformation()


@pytest.mark.parametrize("value", [0, 1, 6, 7, 16383, 2**32 - 1])
def test_r10_any_maximum_length_is_reported(value):
    sub_item = b"\x51\x00\x00\x04" + value.to_bytes(4, "big")
    assert sub_items(sub_item).maximum_length == value
    assert UserInformation(maximum_length=value).encode() == b"\x50\x00\x00\x08" + sub_item


def test_r10_a_maximum_length_sub_item_of_another_size():
    assert sub_items(b"\x51\x00\x00\x02\x40\x00").maximum_length is None
    assert sub_items(b"\x51\x00\x00\x06\x00\x00\x40\x00\xff\xff").maximum_length == 16384


@pytest.mark.parametrize(("scu", "scp"), [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0xFF)])
def test_any_role_byte_but_zero_is_true(scu, scp):
    item = b"\x54\x00\x00\x07\x00\x03" + b"1.2" + bytes((scu, scp))
    assert sub_items(item).role_selections == (RoleSelection("1.2", scu != 0, scp != 0),)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"\x00\x03", b"\x00\x031.", b"\x00\x031.2", b"\x00\x031.2\x01"]
)
def test_r34_half_a_role_selection_selects_nothing(content):
    item = b"\x54\x00" + len(content).to_bytes(2, "big") + content
    assert sub_items(item, ITEM_55) == UserInformation(implementation_version_name="HARMONY")


def test_user_identity_without_secondary_length():
    item = b"\x58\x00\x00\x07\x01\x01\x00\x03" + b"bob"
    assert sub_items(item).user_identity_rq == UserIdentityRQ(1, b"bob", b"", True)


def test_user_identity_too_short_and_clipped():
    assert sub_items(b"\x58\x00\x00\x01\x01").user_identity_rq is None
    assert sub_items(b"\x58\x00\x00\x02\x01\x00").user_identity_rq == UserIdentityRQ(1, b"")
    assert sub_items(b"\x58\x00\x00\x06\x01\x00\xff\xff" + b"bo").user_identity_rq == UserIdentityRQ(1, b"bo")
    assert sub_items(b"\x59\x00\x00\x00").user_identity_ac == UserIdentityAC(b"")


def test_repr_does_not_show_secrets():
    text = repr(UserInformation(user_identity_rq=IDENTITY, user_identity_ac=IDENTITY_AC))
    assert "bob" not in text
    assert "xa9" not in text
    assert "tkt" not in text
    assert "user_identity_type=2" in text


def test_common_extended_negotiation_cut_short():
    assert sub_items(ITEM_57[:2] + b"\x00\x05" + ITEM_57[4:9]).common_extended_negotiations == (
        CommonExtendedNegotiation("1.6", ""),
    )
    assert sub_items(b"\x57\x00\x00\x00").common_extended_negotiations == ()
    later = b"\x57\x01\x00\x0e\x00\x03" + b"1.6" + b"\x00\x03" + b"1.7" + b"\x00\x00" + b"\xaa\xbb"
    assert sub_items(later).common_extended_negotiations == (CommonExtendedNegotiation("1.6", "1.7", (), 1),)


@pytest.mark.parametrize(
    "item",
    [
        ProposedContext(-1, "1.1", ("1.2",)),
        ProposedContext(257, "1.1", ("1.2",)),
        ProposedContext(1, "", ("1.2",)),
        ProposedContext(1, "1.1", ()),
        ProposedContext(1, "1.1", ("1.2 ",)),
        ProposedContext(1, "1.1", ("1.2\n",)),
        ProposedContext(1, "1.1", ("1." + "2" * 63,)),
        ProposedContext(1, "1.1", ("1.٣",)),
        ProposedContext(1, "1.1", ("1" * 64,) * 964),
        ContextResult(1, 256),
        ContextResult(-1, 1),
        AsynchronousOperationsWindow(-1, 0),
        AsynchronousOperationsWindow(0, 65536),
        RoleSelection("", True, True),
        ExtendedNegotiation("1.2", bytes(65536)),
        CommonExtendedNegotiation("1.2", "1.3", ("x",)),
        CommonExtendedNegotiation("1.2", "1.3", (), 256),
        CommonExtendedNegotiation("1.2", "1.3", ("1" * 64,) * 1000),
        UserIdentityRQ(256, b""),
        UserIdentityRQ(4, bytes(65536)),
        UserIdentityRQ(4, bytes(65530)),
        UserIdentityAC(bytes(65534)),
        UserInformation(maximum_length=-1),
        UserInformation(maximum_length=2**32),
        UserInformation(implementation_class_uid="one"),
        UserInformation(implementation_version_name="SEVENTEEN_LETTERS"),
        UserInformation(implementation_version_name="tab\t"),
        UserInformation(implementation_version_name="é"),
        UserInformation(user_identity_rq=UserIdentityRQ(4, bytes(65529))),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_the_standard_does_not_allow_is_not_sent(item):
    with pytest.raises(LocalProtocolError):
        item.encode()


def test_an_error_about_a_secret_does_not_show_it():
    with pytest.raises(LocalProtocolError) as caught:
        UserIdentityRQ(2, b"bob", b"sesame" * 20000).encode()
    assert "sesame" not in str(caught.value)


# Properties -----------------------------------------------------------------------------------------------------

uids = st.from_regex(r"[0-9.]{1,64}", fullmatch=True)
short = st.binary(max_size=40)
information = st.builds(
    UserInformation,
    maximum_length=st.none() | st.integers(0, 2**32 - 1),
    implementation_class_uid=st.just("") | uids,
    implementation_version_name=st.from_regex(r"([!-~]{1,16})?", fullmatch=True),
    asynchronous_operations_window=st.none()
    | st.builds(AsynchronousOperationsWindow, st.integers(0, 65535), st.integers(0, 65535)),
    role_selections=st.lists(st.builds(RoleSelection, uids, st.booleans(), st.booleans()), max_size=4).map(
        tuple
    ),
    extended_negotiations=st.lists(st.builds(ExtendedNegotiation, uids, short), max_size=4).map(tuple),
    common_extended_negotiations=st.lists(
        st.builds(
            CommonExtendedNegotiation, uids, uids, st.lists(uids, max_size=3).map(tuple), st.integers(0, 255)
        ),
        max_size=3,
    ).map(tuple),
    user_identity_rq=st.none() | st.builds(UserIdentityRQ, st.integers(0, 255), short, short, st.booleans()),
    user_identity_ac=st.none() | st.builds(UserIdentityAC, short),
)


@given(information)
def test_user_information_round_trip(value):
    assert user_information(value.encode()) == value


@given(information, st.data())
def test_user_information_cut_anywhere_keeps_what_was_whole(value, data):
    """Damage never raises and never invents: a role or a single value is there as sent, or not at all."""
    encoded = value.encode()
    end = data.draw(st.integers(4, len(encoded)))
    cut = decode_user_information(encoded, [(4, end)])
    assert cut.maximum_length in (value.maximum_length, None)
    assert cut.role_selections == value.role_selections[: len(cut.role_selections)]
    assert value.implementation_class_uid.startswith(cut.implementation_class_uid)


@given(st.binary(max_size=200))
def test_any_bytes_are_some_user_information(body):
    assert isinstance(decode_user_information(body, [(0, len(body))]), UserInformation)
