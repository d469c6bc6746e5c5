"""The upper layer machine without I/O: all 247 cells of PS3.8 Table 9-10, two cores joined by byte queues, any split.

PDUs are put together here by hand, not by our own encoder. States are reached by what a peer and a user may do.
"""

import itertools
import struct
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from harmony.ul.errors import (
    AssociationAborted,
    AssociationRejected,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
)
from harmony.ul.items import ContextResult, ProposedContext, UserInformation
from harmony.ul.pdu import AssociateAC, AssociateRJ, AssociateRQ
from harmony.ul.state import Event, State
from harmony.ul.upper_layer import (
    AbortIndication,
    AssociateConfirmation,
    AssociateIndication,
    EventLog,
    PDataIndication,
    ReleaseConfirmation,
    ReleaseIndication,
    Role,
    SizeLimits,
    UpperLayer,
)

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"


def pdu(pdu_type, body):
    return struct.pack(">BBI", pdu_type, 0, len(body)) + body


def item(item_type, body):
    return struct.pack(">BBH", item_type, 0, len(body)) + body


def pdv(context_id, control, fragment):
    return struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment


def associate_rq(*, version=1):
    return pdu(
        1,
        struct.pack(">HH", version, 0)
        + b"CALLED          CALLING         "
        + bytes(32)
        + item(0x10, b"1.2.840.10008.3.1.1.1")
        + item(0x20, b"\1\0\0\0" + item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2"))
        + item(0x50, item(0x51, b"\0\0\x40\0") + item(0x52, b"1.2.3")),
    )


RQ = associate_rq()
AC = pdu(
    2,
    b"\0\1\0\0"
    + b"CALLED          CALLING         "
    + bytes(32)
    + item(0x10, b"1.2.840.10008.3.1.1.1")
    + item(0x21, b"\1\0\0\0" + item(0x40, b"1.2.840.10008.1.2"))
    + item(0x50, item(0x51, b"\0\0\x40\0") + item(0x52, b"1.2.3")),
)
RJ = bytes.fromhex("03 00 00000004 00 01 01 07")
P_DATA = pdu(4, pdv(1, 3, b"command!"))
RELEASE_RQ = bytes.fromhex("05 00 00000004 00000000")
RELEASE_RP = bytes.fromhex("06 00 00000004 00000000")
ABORT = bytes.fromhex("07 00 00000004 00 00 00 00")
INVALID = bytes.fromhex("01 00 FFFFFFFF")  # the length is over any limit

REQUEST = AssociateRQ(
    "CALLED", "CALLING", (ProposedContext(1, VERIFICATION, (IMPLICIT,)),), UserInformation(16384, "1.2.3")
)
RESPONSE = AssociateAC(
    (ContextResult(1, 0, IMPLICIT),),
    UserInformation(16384, "1.2.3"),
    address_fields=b"CALLED          CALLING         " + bytes(32),
)
REJECTION = AssociateRJ(1, 1, 7)

ARTIM_S = 30.0


class Side:
    """One core with its log, and `say`: what came of it since the last time."""

    def __init__(self, role, **options):
        self.log = EventLog()
        self.core = UpperLayer(role, self.log, artim_timeout_s=ARTIM_S, **options)
        self.sent = b""

    def receive(self, data, now=0.0):
        self.core.receive(data, now=now)
        return self

    def outgoing(self):
        return b"".join(self.core.take_outgoing())


def acceptor(*events, now=0.0, **options):
    return _driven(Side(Role.ACCEPTOR, **options), ["connect", *events], now)


def requestor(*events, now=0.0, **options):
    return _driven(Side(Role.REQUESTOR, **options), ["associate", *events], now)


def _driven(side, events, now):
    core = side.core
    for event in events:
        match event:
            case bytes():
                core.receive(event, now=now)
            case "connect":
                core.transport_connected(now=now)
            case "associate":
                core.associate(REQUEST, now=now)
            case "accept":
                core.accept(RESPONSE, now=now)
            case "reject":
                core.reject(REJECTION, now=now)
            case "release":
                core.release(now=now)
            case "respond":
                core.respond_release(now=now)
            case "abort":
                core.abort(now=now)
            case "closed":
                core.transport_closed(now=now)
    side.outgoing()
    side.log.take()
    return side


# How each state is reached, by which side.
PATHS = [
    (1, lambda: Side(Role.REQUESTOR)),
    (1, lambda: Side(Role.ACCEPTOR)),
    (1, lambda: requestor("connect", AC, "closed")),
    (2, lambda: acceptor()),
    (3, lambda: acceptor(RQ)),
    (4, lambda: requestor()),
    (5, lambda: requestor("connect")),
    (6, lambda: acceptor(RQ, "accept")),
    (6, lambda: requestor("connect", AC)),
    (7, lambda: acceptor(RQ, "accept", "release")),
    (7, lambda: requestor("connect", AC, "release")),
    (8, lambda: acceptor(RQ, "accept", RELEASE_RQ)),
    (8, lambda: requestor("connect", AC, RELEASE_RQ)),
    (9, lambda: requestor("connect", AC, "release", RELEASE_RQ)),
    (10, lambda: acceptor(RQ, "accept", "release", RELEASE_RQ)),
    (11, lambda: requestor("connect", AC, "release", RELEASE_RQ, "respond")),
    (12, lambda: acceptor(RQ, "accept", "release", RELEASE_RQ, RELEASE_RP)),
    (13, lambda: acceptor(RQ, "reject")),
    (13, lambda: acceptor(RQ, "accept", RELEASE_RQ, "respond")),
    (13, lambda: requestor("connect", AC, "abort")),
    (13, lambda: requestor("connect", "abort")),
]

# PS3.8 Table 9-10, laid out by event; the next state of AE-6 and AR-8 is checked below.
TABLE = """\
 1 AE-1  .    .    .    .    .    .    .    .    .     .    .    .
 2 .     .    .    AE-2 .    .    .    .    .    .     .    .    .
 3 .     AA-1 AA-8 .    AE-3 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6
 4 .     AA-1 AA-8 .    AE-4 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6
 5 AE-5  .    .    .    .    .    .    .    .    .     .    .    .
 6 .     AE-6 AA-8 .    AA-8 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-7
 7 .     .    AE-7 .    .    .    .    .    .    .     .    .    .
 8 .     .    AE-8 .    .    .    .    .    .    .     .    .    .
 9 .     .    .    .    .    DT-1 .    AR-7 .    .     .    .    .
10 .     AA-1 AA-8 .    AA-8 DT-2 AR-6 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6
11 .     .    .    .    .    AR-1 .    .    .    .     .    .    .
12 .     AA-1 AA-8 .    AA-8 AR-2 AR-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6
13 .     AA-1 AA-8 .    AA-8 AA-8 AR-3 AA-8 AA-8 AR-10 AR-3 AA-8 AA-6
14 .     .    .    .    .    .    .    AR-4 AR-9 .     .    AR-4 .
15 .     .    AA-1 AA-2 AA-1 AA-1 AA-1 AA-1 AA-1 AA-1  AA-1 AA-1 .
16 .     AA-2 AA-3 .    AA-3 AA-3 AA-3 AA-3 AA-3 AA-3  AA-3 AA-3 AA-2
17 .     AA-5 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4  AA-4 AA-4 AR-5
18 .     AA-2 .    .    .    .    .    .    .    .     .    .    AA-2
19 .     AA-1 AA-8 .    AA-8 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-7
"""
ACTIONS = {
    (state, int(event)): action
    for event, *row in (line.split() for line in TABLE.splitlines())
    for state, action in enumerate(row, 1)
    if action != "."
}

PROVIDER_ABORT = bytes.fromhex("07 00 00000004 00 00 02 02")  # unexpected PDU
INVALID_ABORT = bytes.fromhex("07 00 00000004 00 00 02 06")  # invalid PDU parameter value
START, STOP, KEEP = "start", "stop", "keep"

# action: next state, bytes sent, kinds of indications, ARTIM, transport closed
OUTCOMES = {
    "AE-1": (4, b"", [], KEEP, False),
    "AE-2": (5, RQ, [], KEEP, False),
    "AE-3": (6, b"", [AssociateConfirmation], KEEP, False),
    "AE-4": (1, b"", [AbortIndication], KEEP, True),
    "AE-5": (2, b"", [], START, False),
    "AE-6": (3, b"", [AssociateIndication], STOP, False),
    "AE-7": (6, AC, [], KEEP, False),
    "AE-8": (13, RJ, [], START, False),
    "DT-1": (6, b"", [], KEEP, False),
    "DT-2": (6, b"", [PDataIndication], KEEP, False),
    "AR-1": (7, RELEASE_RQ, [], KEEP, False),
    "AR-2": (8, b"", [ReleaseIndication], KEEP, False),
    "AR-3": (1, b"", [ReleaseConfirmation], KEEP, True),
    "AR-4": (13, RELEASE_RP, [], START, False),
    "AR-5": (1, b"", [], STOP, False),
    "AR-6": (7, b"", [PDataIndication], KEEP, False),
    "AR-7": (8, b"", [], KEEP, False),
    "AR-8": (None, b"", [ReleaseIndication], KEEP, False),
    "AR-9": (11, RELEASE_RP, [], KEEP, False),
    "AR-10": (12, b"", [ReleaseConfirmation], KEEP, False),
    "AA-1": (13, ABORT, [], START, False),
    "AA-2": (1, b"", [], STOP, True),
    "AA-3": (1, b"", [AbortIndication], KEEP, True),
    "AA-4": (1, b"", [AbortIndication], KEEP, False),
    "AA-5": (1, b"", [], STOP, False),
    "AA-6": (13, b"", [], KEEP, False),
    "AA-7": (13, PROVIDER_ABORT, [], KEEP, False),
    "AA-8": (13, PROVIDER_ABORT, [AbortIndication], START, False),
}

PDU_OF_EVENT = {3: AC, 4: RJ, 6: RQ, 10: P_DATA, 12: RELEASE_RQ, 13: RELEASE_RP, 16: ABORT, 19: INVALID}


def cause(core, event, now):
    """Let one event of the table happen."""
    if event in PDU_OF_EVENT:
        core.receive(PDU_OF_EVENT[event], now=now)
    elif event == 1:
        core.associate(REQUEST, now=now)
    elif event in (2, 5):
        core.role = (
            Role.REQUESTOR if event == 2 else Role.ACCEPTOR
        )  # who says "connected" decides which of both
        core.transport_connected(now=now)
    elif event == 7:
        core.accept(RESPONSE, now=now)
    elif event == 8:
        core.reject(REJECTION, now=now)
    elif event == 9:
        if not core.may_send_p_data():
            raise LocalProtocolError("no P-DATA in this state")
    elif event == 11:
        core.release(now=now)
    elif event == 14:
        core.respond_release(now=now)
    elif event == 15:
        core.abort(now=now)
    elif event == 17:
        core.transport_closed(now=now)
    elif event == 18:
        core.check_timer(now=now)


REFUSED = {
    1,
    2,
    5,
    7,
    8,
    9,
    11,
    14,
}  # primitives that raise where the cell is empty; the others have no effect


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize(("state", "reach"), PATHS, ids=[f"Sta{state}" for state, _ in PATHS])
def test_cell(state, reach, event):
    side = reach()
    core, event = side.core, int(event)
    role, deadline, closing = core.role, core.deadline, core.close_requested
    assert core.state == state
    assert (deadline is not None) == (state in (2, 13))
    now = 100.0 if event == 18 else 10.0
    action = ACTIONS.get((state, event))
    if action is None:
        if event in REFUSED:
            with pytest.raises(LocalProtocolError):
                cause(core, event, now)
        else:
            cause(core, event, now)
        assert (core.state, side.outgoing(), side.log.take()) == (state, b"", [])
        assert (core.deadline, core.close_requested) == (deadline, closing)
        return
    next_state, sent, indications, artim, closes = OUTCOMES[action]
    cause(core, event, now)
    if action == "AR-8":
        next_state = 9 if role is Role.REQUESTOR else 10
    if event == 19 and sent == PROVIDER_ABORT:
        sent = INVALID_ABORT
    assert core.state == next_state
    assert side.outgoing() == sent
    assert [type(indication) for indication in side.log.take()] == indications
    assert core.close_requested == closes
    assert core.deadline == {START: now + ARTIM_S, STOP: None, KEEP: deadline}[artim]


def test_the_paths_reach_all_states_and_the_table_has_123_cells():
    assert {state for state, _ in PATHS} == set(range(1, 14))
    assert len(ACTIONS) == 123


# What the indications say


def test_associate_indication_has_the_request():
    side = acceptor()
    side.receive(RQ)
    (indication,) = side.log.take()
    assert indication.request.called_ae_title == "CALLED"
    assert indication.request.presentation_contexts == (ProposedContext(1, VERIFICATION, (IMPLICIT,)),)


def test_rejection_says_its_codes_even_reserved_ones():
    side = requestor("connect").receive(bytes.fromhex("03 00 00000004 00 09 08 C8"))
    (indication,) = side.log.take()
    error = indication.error
    assert isinstance(error, AssociationRejected)
    assert (error.result, error.source, error.reason) == (9, 8, 200)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (2, 200)])
def test_abort_says_its_codes_even_reserved_ones(codes):
    side = acceptor(RQ, "accept").receive(ABORT[:8] + bytes(codes))
    (indication,) = side.log.take()
    assert isinstance(indication.error, AssociationAborted)
    assert indication.error.by_peer
    assert (indication.error.source, indication.error.reason) == codes


def test_provider_abort_says_what_came():
    (indication,) = acceptor(RQ, "accept").receive(RELEASE_RP).log.take()
    assert not indication.error.by_peer
    assert "RELEASE_RP" in str(indication.error)


def test_loss_of_the_transport_is_a_connection_lost():
    side = acceptor(RQ, "accept")
    side.core.transport_closed(now=1.0)
    (indication,) = side.log.take()
    assert isinstance(indication.error, ConnectionLost)
    side.core.transport_closed(now=2.0)
    assert side.log.take() == []


@pytest.mark.parametrize("version", [0, 2, 0xFFFE])
def test_protocol_version_without_bit_0_is_rejected(version):
    side = acceptor().receive(associate_rq(version=version), now=5.0)
    assert side.outgoing() == bytes.fromhex("03 00 00000004 00 01 02 02")
    assert side.core.state is State.STA13
    assert side.core.deadline == 35.0
    assert side.log.take() == []
    assert "version" in str(side.core.fault)


@pytest.mark.parametrize("version", [1, 3, 0xFFFF])
def test_only_bit_0_of_the_protocol_version_is_tested(version):
    assert acceptor().receive(associate_rq(version=version)).core.state is State.STA3


def test_a_pdu_before_the_request_is_remembered_as_the_fault():
    side = acceptor().receive(P_DATA)
    assert "P_DATA_TF" in str(side.core.fault)
    assert side.outgoing() == ABORT


def test_a_response_that_cannot_be_encoded_changes_nothing():
    side = acceptor(RQ)
    with pytest.raises(LocalProtocolError):
        side.core.accept(AssociateAC((ContextResult(1, 0, "not a UID"),)), now=0.0)
    with pytest.raises(LocalProtocolError):
        side.core.reject(AssociateRJ(1, 1, 256), now=0.0)
    assert side.core.state is State.STA3
    assert side.outgoing() == b""
    side.core.reject(REJECTION, now=0.0)
    assert side.outgoing() == RJ


def test_a_request_that_cannot_be_encoded_changes_nothing():
    side = Side(Role.REQUESTOR)
    with pytest.raises(LocalProtocolError):
        side.core.associate(AssociateRQ("", "CALLING", ()), now=0.0)
    assert side.core.state is State.STA1


# ARTIM


def test_r02_artim_runs_from_the_connection_and_bytes_do_not_extend_it():
    side = acceptor()
    for second, byte in enumerate(RQ[:29], 1):
        side.receive(bytes((byte,)), now=float(second))
    side.core.check_timer(now=29.9)
    assert side.core.state is State.STA2
    side.core.check_timer(now=30.0)
    assert side.core.state is State.STA1
    assert side.core.close_requested
    assert side.outgoing() == b""


def test_check_timer_without_artim_does_nothing():
    side = acceptor(RQ, "accept")
    side.core.check_timer(now=1e9)
    assert side.core.state is State.STA6


# P-DATA (R12 to R14, R16)


def established(**options):
    return acceptor(RQ, "accept", **options)


@pytest.mark.parametrize("reserved", [0x00, 0x04, 0xFC])
@pytest.mark.parametrize("control", [0, 1, 2, 3])
def test_r14_control_header_reaches_the_receiver_as_it_came(control, reserved):
    side = established().receive(pdu(4, pdv(1, control | reserved, b"ab")))
    assert side.log.take() == [PDataIndication(1, control | reserved, b"ab")]


@pytest.mark.parametrize("fragment", [b"", b"a", b"abc", bytes(1001)])
def test_r12_r16_empty_and_odd_fragments_are_delivered(fragment):
    side = established().receive(pdu(4, pdv(255, 2, fragment)))
    assert side.log.take() == [PDataIndication(255, 2, fragment)]
    assert not side.core.mid_pdu


def test_r13_many_pdvs_in_one_pdu_and_several_messages_in_one_segment():
    body = pdv(1, 1, b"co") + pdv(1, 3, b"mmand") + pdv(1, 0, b"data") + pdv(3, 2, b"")
    side = established().receive(pdu(4, body) + P_DATA + P_DATA + RELEASE_RQ)
    assert side.log.take() == [
        PDataIndication(1, 1, b"co"),
        PDataIndication(1, 3, b"mmand"),
        PDataIndication(1, 0, b"data"),
        PDataIndication(3, 2, b""),
        PDataIndication(1, 3, b"command!"),
        PDataIndication(1, 3, b"command!"),
        ReleaseIndication(),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(5),
        b"\0\0\0\0\1\3",  # PDV item length 0
        b"\0\0\0\1\1\3",  # 1
        b"\0\0\0\3\1\3",  # one byte more than the PDU has
        b"\xff\xff\xff\xff\1\3" + bytes(10),
        pdv(1, 3, b"ab") + b"\0",  # trailing bytes
        pdv(1, 3, b"ab") + b"\0\0\0\2\1",
        pdv(1, 3, b"ab") + b"\0\0\0\1\1\3",
    ],
)
def test_r12_a_pdv_that_does_not_fit_its_pdu_is_invalid(body):
    side = established().receive(pdu(4, body))
    assert side.outgoing() == INVALID_ABORT
    assert side.core.state is State.STA13
    last = side.log.take()[-1]
    assert last.error.reason == 6
    side.receive(P_DATA + RQ + INVALID)
    assert side.outgoing() == b""
    assert side.log.take() == []


def test_fragments_are_views_of_the_buffer_received():
    views = []

    class Keeper(EventLog):
        def p_data(self, presentation_context_id, message_control_header, fragment, complete):
            views.append((fragment.obj, bytes(fragment), complete))

    side = Side(Role.ACCEPTOR)
    side.core._receiver = keeper = Keeper()
    side.core.transport_connected(now=0.0)
    side.receive(RQ)
    side.core.accept(RESPONSE, now=0.0)
    assert len(keeper.events) == 1
    buffer = bytearray(P_DATA)
    side.core.receive(memoryview(buffer)[:15], now=0.0)
    side.core.receive(memoryview(buffer)[15:], now=0.0)
    assert [(data, complete) for _, data, complete in views] == [(b"com", False), (b"mand!", True)]
    assert all(owner is buffer for owner, _, _ in views)


def test_a_receiver_may_refuse_a_fragment_with_its_own_reason():
    class Refuser(EventLog):
        def p_data(self, presentation_context_id, message_control_header, fragment, complete):
            raise RemoteProtocolError("no", source=2, reason=5)

    side = established()
    side.core._receiver = refuser = Refuser()
    side.receive(P_DATA + P_DATA)
    assert side.outgoing() == bytes.fromhex("07 00 00000004 00 00 02 05")
    assert [event.error.reason for event in refuser.events] == [5]


@pytest.mark.parametrize("cut", range(1, 40))
def test_abort_in_the_middle_of_p_data_keeps_the_boundaries(cut):
    """Local A-ABORT at any byte of a P-DATA-TF: the rest of it is skipped, the peer's A-ABORT is understood."""
    long = pdu(4, pdv(1, 1, b"abcd") + pdv(1, 3, b"efgh") + pdv(1, 2, b"ijkl"))
    side = established()
    side.receive(long[:cut])
    side.core.abort(now=0.0)
    assert side.outgoing() == ABORT
    side.log.take()
    side.receive(long[cut:] + P_DATA + ABORT)
    assert side.outgoing() == b""
    assert side.log.take() == []
    assert side.core.state is State.STA1
    assert side.core.close_requested


def test_abort_from_within_a_fragment():
    class Aborter(EventLog):
        def p_data(self, presentation_context_id, message_control_header, fragment, complete):
            super().p_data(presentation_context_id, message_control_header, fragment, complete)
            side.core.abort(now=0.0)

    side = established()
    side.core._receiver = aborter = Aborter()
    side.receive(pdu(4, pdv(1, 1, b"ab") + pdv(1, 3, b"") + pdv(1, 3, b"cd")) + P_DATA + RELEASE_RQ + ABORT)
    assert aborter.events == [PDataIndication(1, 1, b"ab")]
    assert side.outgoing() == ABORT
    assert side.core.close_requested


def test_nothing_is_delivered_after_the_transport_was_lost_within_a_pdv():
    side = established()
    side.receive(P_DATA[:-1])
    side.core.transport_closed(now=0.0)
    side.log.take()
    side.receive(P_DATA[-1:] + P_DATA)
    assert side.log.take() == []
    assert side.core.state is State.STA1


# Sizes (R03): the length field is judged before anything is stored


@pytest.mark.parametrize("pdu_type", range(1, 8))
def test_r03_the_longest_length_is_aborted_with_2_6_and_nothing_is_stored(pdu_type):
    side = established()
    side.receive(bytes((pdu_type, 0)) + b"\xff\xff\xff\xff" + bytes(1000))
    assert side.outgoing() == INVALID_ABORT
    assert not side.core.mid_pdu
    assert side.core._body is None


@pytest.mark.parametrize("pdu_type", [0, 8, 0x47, 0xFF])
def test_an_unrecognized_type_on_an_association_is_aborted_with_2_1(pdu_type):
    side = established().receive(bytes((pdu_type, 0, 0, 0, 0, 0)))
    assert side.outgoing() == bytes.fromhex("07 00 00000004 00 00 02 01")
    assert side.core.state is State.STA13


def test_limits_are_those_of_the_owner():
    limits = SizeLimits(associate_pdu_bytes=len(RQ) - 6, p_data_pdu_bytes=14)
    assert acceptor(limits=limits).receive(RQ).core.state is State.STA3
    side = established(limits=limits)
    side.receive(P_DATA)
    assert len(side.log.take()) == 1
    side.receive(pdu(4, pdv(1, 3, b"command!!")))
    assert side.outgoing() == INVALID_ABORT
    limits = SizeLimits(associate_pdu_bytes=len(RQ) - 7)
    assert acceptor(limits=limits).receive(RQ[:6]).outgoing() == ABORT


def test_a_long_associate_is_stored_only_as_far_as_it_has_come():
    side = acceptor().receive(b"\1\0\0\x0f\xff\xff" + bytes(10))
    assert len(side.core._body) == 10
    assert side.core.mid_pdu


@pytest.mark.parametrize("length", [0, 3, 5, 1024])
@pytest.mark.parametrize("pdu_type", [5, 7])
def test_release_and_abort_of_another_length_count_by_their_type(pdu_type, length):
    side = established().receive(pdu(pdu_type, bytes(length)))
    assert side.core.state is (State.STA8 if pdu_type == 5 else State.STA1)


# Other protocols on the port (R04)

FOREIGN = [
    (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
    (b"OPTIONS * HTTP/1.0\r\n", "HTTP"),
    (b"PRI * HTTP/2.0\r\n", "HTTP"),
    (bytes.fromhex("16 03 01 00 c8 01 00"), "TLS"),
    (bytes.fromhex("15 03 01 00 02 02 46"), "TLS alert"),
    (b"SSH-2.0-OpenSSH_9\r\n", "SSH"),
    (bytes.fromhex("ff fb 01 ff fb 03"), "0xFF"),
]


@pytest.mark.parametrize(("data", "name"), FOREIGN)
def test_r04_another_protocol_is_named_and_the_connection_closed_at_once(data, name):
    side = acceptor().receive(data)
    assert name in str(side.core.fault)
    assert side.core.state is State.STA1
    assert side.core.close_requested
    assert side.core.deadline is None


@pytest.mark.parametrize(("data", "name"), [*FOREIGN, (b"HTTP/1.1 400 Bad", "HTTP")])
def test_a_requestor_hears_the_name_as_well(data, name):
    side = requestor("connect").receive(data)
    (indication,) = side.log.take()
    assert name in str(indication.error)
    assert side.core.close_requested


def test_another_protocol_after_the_first_pdu_is_just_invalid():
    side = established().receive(b"GET / HTTP/1.1")
    assert side.core.state is State.STA13
    assert not side.core.close_requested


# Two cores joined by byte queues


class Pair:
    """A requestor and an acceptor whose bytes travel when told to."""

    def __init__(self):
        self.requestor = Side(Role.REQUESTOR)
        self.acceptor = Side(Role.ACCEPTOR)
        self.requestor.core.associate(REQUEST, now=0.0)
        self.requestor.core.transport_connected(now=0.0)
        self.acceptor.core.transport_connected(now=0.0)

    def pump(self):
        """Carry everything over until both are silent, closing where asked to."""
        while True:
            to_acceptor, to_requestor = self.requestor.outgoing(), self.acceptor.outgoing()
            if not to_acceptor and not to_requestor:
                break
            self.requestor.receive(to_requestor)
            self.acceptor.receive(to_acceptor)
        for side, peer in ((self.requestor, self.acceptor), (self.acceptor, self.requestor)):
            if side.core.close_requested:
                peer.core.transport_closed(now=0.0)

    def states(self):
        return int(self.requestor.core.state), int(self.acceptor.core.state)

    def take(self):
        return self.requestor.log.take(), self.acceptor.log.take()


@pytest.fixture
def pair():
    pair = Pair()
    pair.pump()
    assert pair.states() == (5, 3)
    pair.acceptor.core.accept(RESPONSE, now=0.0)
    pair.pump()
    assert pair.states() == (6, 6)
    confirmed, indicated = pair.take()
    assert [type(event) for event in confirmed + indicated] == [AssociateConfirmation, AssociateIndication]
    return pair


def test_reject_in_memory():
    pair = Pair()
    pair.pump()
    pair.acceptor.core.reject(REJECTION, now=0.0)
    pair.pump()
    assert pair.states() == (1, 1)
    (told,), _ = pair.take()
    assert isinstance(told.error, AssociationRejected)


@pytest.mark.parametrize("first", ["requestor", "acceptor"])
def test_data_and_release_in_memory(pair, first):
    one, other = (pair.requestor, pair.acceptor) if first == "requestor" else (pair.acceptor, pair.requestor)
    other.receive(P_DATA)
    assert other.log.take() == [PDataIndication(1, 3, b"command!")]
    one.core.release(now=0.0)
    pair.pump()
    assert (int(one.core.state), int(other.core.state)) == (7, 8)
    assert other.log.take() == [ReleaseIndication()]
    assert not one.core.may_send_p_data()
    assert other.core.may_send_p_data()  # AR-7: the answers still due
    one.receive(P_DATA)  # AR-6
    assert one.log.take() == [PDataIndication(1, 3, b"command!")]
    other.core.respond_release(now=0.0)
    pair.pump()
    assert one.log.take() == [ReleaseConfirmation()]
    assert pair.states() == (1, 1)
    assert one.core.close_requested


def test_r23_data_sent_before_the_release_was_seen_arrives_in_sta7(pair):
    """Release with P-DATA still arriving, part of it before the release and part after."""
    pair.requestor.receive(P_DATA[:14])
    pair.requestor.core.release(now=0.0)
    pair.requestor.receive(P_DATA[14:])
    assert pair.requestor.log.take() == [PDataIndication(1, 3, b"command!")]
    assert pair.requestor.core.state is State.STA7


def test_r23_release_collision_acceptor_waits(pair):
    """Requestor 7, 9, 11, 1; acceptor 7, 10, 12, 13; both send A-RELEASE-RP (PS3.8 §7.2.2)."""
    pair.requestor.core.release(now=0.0)
    pair.acceptor.core.release(now=0.0)
    pair.pump()
    assert pair.states() == (9, 10)
    assert pair.take() == ([ReleaseIndication(collision=True)], [ReleaseIndication(collision=True)])
    with pytest.raises(LocalProtocolError):
        pair.acceptor.core.respond_release(now=0.0)
    pair.requestor.core.respond_release(now=0.0)
    pair.pump()
    assert pair.states() == (11, 12)
    assert pair.take() == ([], [ReleaseConfirmation()])
    pair.acceptor.core.respond_release(now=0.0)
    pair.pump()
    assert pair.take() == ([ReleaseConfirmation()], [])
    assert pair.states() == (1, 1)


@pytest.mark.parametrize("aborts", ["requestor", "acceptor"])
def test_abort_in_memory(pair, aborts):
    one, other = (pair.requestor, pair.acceptor) if aborts == "requestor" else (pair.acceptor, pair.requestor)
    one.core.abort(now=0.0)
    one.core.abort(now=0.0)
    pair.pump()
    assert pair.states() == (1, 1)
    assert one.log.take() == []
    (indication,) = other.log.take()
    assert indication.error.by_peer


def test_both_abort_at_once(pair):
    pair.requestor.core.abort(now=0.0)
    pair.acceptor.core.abort(now=0.0)
    pair.pump()
    assert pair.states() == (1, 1)
    assert pair.take() == ([], [])


def test_r06_accepting_from_within_the_indication_takes_a_whole_session_in_one_segment():
    """A-ASSOCIATE-RQ, P-DATA-TF and A-RELEASE-RQ in one segment."""
    side, log = _session_acceptor()
    side.receive(RQ + P_DATA + RELEASE_RQ)
    assert [type(event) for event in log.events] == [AssociateIndication, PDataIndication, ReleaseIndication]
    assert side.outgoing() == AC + RELEASE_RP


# Any split of any bytes


class Obliging(EventLog):
    """Accepts what is requested and answers releases, from within the indication."""

    core: UpperLayer

    def indication(self, indication):
        super().indication(indication)
        match indication:
            case AssociateIndication():
                self.core.accept(RESPONSE, now=0.0)
            case ReleaseIndication():
                self.core.respond_release(now=0.0)


def _session_acceptor():
    log = Obliging()
    side = Side(Role.ACCEPTOR)
    side.log, side.core._receiver, log.core = log, log, side.core
    side.core.transport_connected(now=0.0)
    return side, log


def _session_requestor():
    log = Obliging()
    side = Side(Role.REQUESTOR)
    side.log, side.core._receiver, log.core = log, log, side.core
    side.core.associate(REQUEST, now=0.0)
    side.core.transport_connected(now=0.0)
    return side, log


def _trace(make, pieces):
    side, log = make()
    out = b""
    for piece in pieces:
        side.receive(piece)
        out += side.outgoing()
    core = side.core
    told = [
        (type(event.error), str(event.error)) if isinstance(event, AbortIndication) else event
        for event in log.events
    ]
    return told, core.state, core.deadline, core.close_requested, out, core.mid_pdu, str(core.fault)


def _pieces(data, cuts):
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


fragments = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=12)), min_size=1, max_size=4
)
messages = st.lists(fragments, max_size=4).map(
    lambda pdus: b"".join(pdu(4, b"".join(pdv(*value) for value in values)) for values in pdus)
)
endings = st.sampled_from([b"", RELEASE_RQ, ABORT, RELEASE_RQ + P_DATA, RELEASE_RP, RQ, AC])
cuts = st.lists(st.integers(0, 1 << 16), max_size=12)
corruptions = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.booleans(), messages, endings, corruptions, cuts)
def test_r06_any_split_of_a_session_gives_the_same_trace(accepting, data, ending, corruption, cut):
    stream = bytearray((RQ if accepting else AC) + data + ending)
    for position, value in corruption:
        stream[position % len(stream)] = value
    make = _session_acceptor if accepting else _session_requestor
    whole = _trace(make, [bytes(stream)])
    assert _trace(make, _pieces(bytes(stream), cut)) == whole


@pytest.mark.parametrize("make", [_session_acceptor, _session_requestor])
def test_r06_every_single_cut_and_byte_by_byte(make):
    first = RQ if make is _session_acceptor else AC
    stream = first + pdu(4, pdv(1, 3, b"ab") + pdv(1, 2, b"")) + P_DATA + RELEASE_RQ
    whole = _trace(make, [stream])
    for cut in range(len(stream)):
        assert _trace(make, [stream[:cut], stream[cut:]]) == whole
    assert _trace(make, [stream[index : index + 1] for index in range(len(stream))]) == whole


@pytest.mark.parametrize("make", [_session_acceptor, _session_requestor])
@pytest.mark.parametrize("data", [data for data, _ in FOREIGN])
def test_another_protocol_is_named_the_same_however_it_is_split(make, data):
    whole = _trace(make, [data])
    assert _trace(make, [data[index : index + 1] for index in range(len(data))]) == whole


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([_session_acceptor, _session_requestor]),
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([RQ, AC, RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT]),
            st.tuples(st.integers(1, 7), st.binary(max_size=90)).map(lambda value: pdu(*value)),
        ),
        max_size=6,
    ),
)
def test_arbitrary_bytes_never_raise_and_never_leave_the_table(make, pieces):
    side, log = make()
    for piece in pieces:
        side.receive(piece)
    core = side.core
    assert (core.deadline is not None) == (core.state in (State.STA2, State.STA13))
    assert sum(isinstance(event, AbortIndication) for event in log.events) <= 1
    if core.fault is not None:
        assert core.state in (State.STA13, State.STA1)
    core.check_timer(now=ARTIM_S)
    core.transport_closed(now=ARTIM_S)
    assert core.state is State.STA1


# Two cores, in any order of events


rarely = st.integers(0, 15).map(lambda number: number == 15)
"""For what ends everything, so that there is something to be ended."""


class Twins:
    """One side twice: the first core gets what comes in the pieces in which it comes, the second byte by byte."""

    def __init__(self, role):
        self.whole, self.bytewise = Side(role), Side(role)
        self.core = self.whole.core
        self.told = []  # since the last `take`, of the first one
        self.ended_by = []

    def do(self, what, *arguments, now):
        for side in (self.whole, self.bytewise):
            getattr(side.core, what)(*arguments, now=now)

    def receive(self, piece, now):
        self.whole.receive(piece, now)
        for at in range(len(piece)):
            self.bytewise.receive(piece[at : at + 1], now)

    def take(self):
        """What both say, which is the same: indications, and bytes to send."""
        told, told_bytewise = self.whole.log.take(), self.bytewise.log.take()
        assert [*map(_in_words, told)] == [*map(_in_words, told_bytewise)]
        for name in ("state", "deadline", "close_requested", "mid_pdu", "pdus_begun"):
            assert getattr(self.core, name) == getattr(self.bytewise.core, name), name
        assert str(self.core.fault) == str(self.bytewise.core.fault)
        sent = self.whole.outgoing()
        assert sent == self.bytewise.outgoing()
        return told, sent


def _in_words(event):
    return (
        f"{type(event.error).__name__}: {event.error}" if isinstance(event, AbortIndication) else repr(event)
    )


class TwoCores(RuleBasedStateMachine):
    """Both sides do what their states allow, the network carries any number of bytes, transports may break.

    Whatever has happened, both sides come to their end when all that was sent arrives, each user answers what it is
    asked, and time passes; and each knows how it ended.
    """

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.sides = (Twins(Role.REQUESTOR), Twins(Role.ACCEPTOR))
        self.wires = [b"", b""]  # towards the requestor, towards the acceptor
        self.broken = False
        self.data_sent = [b"", b""]
        self.data_received = [b"", b""]
        self.ends = [Counter(), Counter()]
        self.known = [True, False]  # to its user
        self.sides[0].do("associate", REQUEST, now=0.0)
        self.sides[0].do("transport_connected", now=0.0)
        self.sides[1].do("transport_connected", now=0.0)
        self.settle()

    def settle(self):
        """Collect what both sides say."""
        for index, side in enumerate(self.sides):
            told, sent = side.take()
            self.wires[1 - index] += sent
            for event in told:
                assert not self.told_of_the_end(index) or index == 1, f"{event} after the end"
                if isinstance(event, PDataIndication):
                    assert not self.told_of_the_end(index), "P-DATA after the end"
                    assert not side.ended_by, "P-DATA after an abort"
                    self.data_received[index] += event.fragment
                elif isinstance(event, AbortIndication | ReleaseConfirmation):
                    self.ends[index][type(event)] += 1
                elif isinstance(event, AssociateIndication):
                    self.known[index] = True

    @initialize(from_the_beginning=rarely)
    def begin(self, from_the_beginning):
        if not from_the_beginning:
            self.carry(1, len(self.wires[1]))
            self.decide(True)
            self.carry(0, len(self.wires[0]))

    def told_of_the_end(self, index):
        return self.ends[index][AbortIndication] + self.ends[index][ReleaseConfirmation]

    def core(self, index):
        return self.sides[index].core

    def act(self, index, what, *arguments):
        self.sides[index].do(what, *arguments, now=self.now)
        self.settle()

    @precondition(lambda self: self.core(1).state is State.STA3)
    @rule(accept=st.booleans())
    def decide(self, accept):
        if accept:
            self.act(1, "accept", RESPONSE)
        else:
            self.act(1, "reject", REJECTION)
            self.sides[1].ended_by.append("reject")

    @rule(index=st.integers(0, 1), data=st.binary(max_size=9), pdvs=st.integers(1, 3))
    def send_data(self, index, data, pdvs):
        if self.core(index).may_send_p_data():
            self.wires[1 - index] += pdu(4, pdv(1, 0, data) * pdvs)
            if self.data_sent[index] is not None:
                self.data_sent[index] += data * pdvs

    @rule(index=st.integers(0, 1))
    def release(self, index):
        if self.core(index).state is State.STA6:
            self.act(index, "release")

    @rule(index=st.integers(0, 1))
    def respond_release(self, index):
        if self.core(index).state in (State.STA8, State.STA9, State.STA12):
            self.act(index, "respond_release")
            if self.core(index).state is State.STA13:
                self.sides[index].ended_by.append("release")

    @rule(index=st.integers(0, 1), really=rarely)
    def abort(self, index, really=True):
        if not really:
            return
        before = self.core(index).state
        self.act(index, "abort")
        if self.core(index).state is not before:
            self.sides[index].ended_by.append("abort")

    @rule(index=st.integers(0, 1), count=st.integers(1, 20) | st.just(400))
    def carry(self, index, count):
        if not self.broken:
            piece, self.wires[index] = self.wires[index][:count], self.wires[index][count:]
            self.sides[index].receive(piece, self.now)
            self.settle()

    @rule(
        really=rarely,
        index=st.integers(0, 1),
        data=st.sampled_from([INVALID, P_DATA[:7], RELEASE_RP, RQ, b"\xff", ABORT]),
    )
    def disturb(self, really, index, data):
        """Something that no core sends follows what it did send."""
        if really and not self.broken:
            self.wires[index] += data
            self.data_sent[1 - index] = None

    @rule(index=st.integers(0, 1))
    def break_transport(self, index):
        """The other side closed, or asked to: everything still under way is lost."""
        if self.broken or self.core(1 - index).close_requested:
            self.broken = True
            self.act(index, "transport_closed")

    @rule(really=rarely)
    def cut(self, really):
        self.broken = self.broken or really

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds):
        self.now += seconds
        for side in self.sides:
            side.do("check_timer", now=self.now)
        self.settle()

    @invariant()
    def artim_runs_in_sta2_and_sta13_only(self):
        for side in self.sides:
            assert (side.core.deadline is not None) == (side.core.state in (State.STA2, State.STA13))

    @invariant()
    def closing_means_idle(self):
        for side in self.sides:
            assert not side.core.close_requested or side.core.state is State.STA1

    @invariant()
    def data_arrives_in_order(self):
        for index in (0, 1):
            sent = self.data_sent[1 - index]
            assert sent is None or sent.startswith(self.data_received[index])

    @invariant()
    def an_end_is_told_once(self):
        # After the confirmation of a release collision the acceptor's transport may still be lost (Sta12).
        for index, told in enumerate(self.ends):
            assert told[AbortIndication] <= 1
            assert told[ReleaseConfirmation] <= 1
            assert told.total() <= 1 or index == 1

    def teardown(self):
        for _ in range(12):
            if all(side.core.state is State.STA1 for side in self.sides):
                break
            self.carry(0, len(self.wires[0]))
            self.carry(1, len(self.wires[1]))
            if self.core(1).state is State.STA3:
                self.decide(True)
            self.release(0)
            self.respond_release(0)
            self.respond_release(1)
            self.break_transport(0)
            self.break_transport(1)
        else:
            # Of what was disturbed half a PDU may be under way for ever, and somebody has to give up.
            assert None in self.data_sent, f"all of them wait: {[side.core for side in self.sides]}"
            self.abort(0)
            self.abort(1)
            self.wait(ARTIM_S)
            self.break_transport(0)
            self.break_transport(1)
        for index, side in enumerate(self.sides):
            assert side.core.state is State.STA1, side.core
            assert len(side.ended_by) <= 1
            if self.known[index]:
                assert side.ended_by or self.told_of_the_end(index), "the user does not know that it is over"


TestTwoCores = TwoCores.TestCase
TestTwoCores.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
