"""The upper layer: PDUs, the protocol machine in every state that hears a peer, negotiation (PS3.8, PS3.7 Annex D)."""

from __future__ import annotations

from dataclasses import replace

from harmony.ul.errors import LocalProtocolError, RemoteProtocolError
from harmony.ul.items import ProposedContext, UserInformation
from harmony.ul.negotiation import AcceptorPolicy, SupportedAbstractSyntax, negotiate, result_of
from harmony.ul.pdu import (
    AssociateAC,
    AssociateRJ,
    AssociateRQ,
    PDataTF,
    ReleaseRQ,
    decode,
)
from harmony.ul.state import State
from harmony.ul.upper_layer import (
    AbortIndication,
    AssociateIndication,
    EventLog,
    Indication,
    ReleaseConfirmation,
    Role,
    UpperLayer,
)
from tests.fuzz.target import pieces, target

REQUEST = AssociateRQ(
    "CALLED",
    "CALLING",
    (ProposedContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),),
    UserInformation(16384),
)
POLICY = AcceptorPolicy(
    other_abstract_syntaxes=lambda uid: SupportedAbstractSyntax(scu=True),
    maximum_operations_performed=8,
    extended_negotiation=lambda item: item.service_class_application_information,
)
ANSWER = negotiate(REQUEST, POLICY)
assert isinstance(ANSWER, AssociateAC)


@target(RemoteProtocolError)
def pdu(data: bytes) -> None:
    """The first byte is the type. What can be encoded again means the same."""
    decoded = decode(data[0] if data else 0, data[1:])
    try:
        encoded = decoded.encode()
    except LocalProtocolError:  # what the standard does not allow us to send
        return
    again = decode(encoded[0], encoded[6:])
    if isinstance(decoded, AssociateAC):  # we always name a transfer syntax, also of what was refused
        named = {
            each.presentation_context_id for each in decoded.presentation_contexts if each.transfer_syntax
        }
        decoded, again = _accepted(decoded, named), _accepted(again, named)
    assert int.from_bytes(encoded[2:6], "big") == len(encoded) - 6
    if isinstance(decoded, PDataTF):
        assert [bytes(value.fragment) for value in decoded.presentation_data_values] == [
            bytes(value.fragment) for value in again.presentation_data_values
        ]
    else:
        assert again == decoded, f"{again} is not {decoded}"


def _accepted(answer: object, named: set[int]) -> AssociateAC:
    assert isinstance(answer, AssociateAC)
    accepted = (each for each in answer.presentation_contexts if each.result == 0)
    return replace(
        answer,
        presentation_contexts=tuple(each for each in accepted if each.presentation_context_id in named),
    )


class _User(EventLog):
    """Accepts what comes, and lets the machine say what it does."""

    def __init__(self, *, answers: bool) -> None:
        super().__init__()
        self.heard: list[str] = []
        self.ended = 0
        self._answers = answers
        self.layer: UpperLayer

    def indication(self, indication: Indication) -> None:
        if (
            self.ended
        ):  # of the acceptor in Sta12, which has yet to answer the release that collided with its own
            assert isinstance(self.events[-1], ReleaseConfirmation), f"{indication} after the end"
            assert self.layer.role is Role.ACCEPTOR
        super().indication(indication)
        error = getattr(indication, "error", None)
        self.heard.append(f"{error!r} {error}" if error is not None else repr(indication))
        self.ended += isinstance(indication, AbortIndication | ReleaseConfirmation)
        if isinstance(indication, AssociateIndication):
            answer = negotiate(indication.request, POLICY)
            if isinstance(answer, AssociateRJ):
                self.layer.reject(answer, now=0.0)
            else:
                self.layer.accept(answer, now=0.0)
        elif self._answers and self.layer.state in (State.STA8, State.STA9, State.STA12):
            self.layer.respond_release(now=0.0)

    def p_data(
        self, presentation_context_id: int, message_control_header: int, fragment: memoryview, complete: bool
    ) -> None:
        assert not self.ended, "P-DATA after the end"
        before = len(self.events)
        super().p_data(presentation_context_id, message_control_header, fragment, complete)
        self.heard += [repr(event) for event in self.events[before:]]


def _layer(setting: int) -> tuple[UpperLayer, _User]:
    """A machine in one of the states in which a peer is listened to."""
    user = _User(answers=setting & 8 == 0)
    requestor = setting & 1 == 1
    layer = user.layer = UpperLayer(Role.REQUESTOR if requestor else Role.ACCEPTOR, user)
    if requestor:
        layer.associate(REQUEST, now=0.0)
    layer.transport_connected(now=0.0)
    if setting & 2:
        layer.receive(ANSWER.encode() if requestor else REQUEST.encode(), now=0.0)
        if setting & 4:
            layer.release(now=0.0)
    return layer, user


@target()
def upper_layer(data: bytes) -> None:
    """The first byte says in which state, the rest comes from the peer; any split of it ends the same."""
    if not data:
        return
    whole, heard = _layer(data[0])
    whole.receive(data[1:], now=1.0)
    parts, heard_in_parts = _layer(data[0])
    for piece in pieces(data[1:]):
        parts.receive(piece, now=1.0)
    assert heard.heard == heard_in_parts.heard
    for name in ("state", "close_requested", "deadline", "mid_pdu", "pdus_begun"):
        assert getattr(whole, name) == getattr(parts, name), name
    assert str(whole.fault) == str(parts.fault)
    assert whole.take_outgoing() == parts.take_outgoing()
    whole.transport_closed(now=2.0)
    assert whole.state.name == "STA1", whole
    assert heard.ended <= (2 if whole.role is Role.ACCEPTOR else 1)
    whole.receive(ReleaseRQ().encode(), now=3.0)
    assert not whole.has_outgoing()


@target(RemoteProtocolError)
def negotiation(data: bytes) -> None:
    """An A-ASSOCIATE-RQ is answered with what can be encoded, and both sides understand the same by it."""
    request = decode(1, data)
    assert isinstance(request, AssociateRQ)
    answer = negotiate(request, POLICY)
    encoded = answer.encode()
    again = decode(encoded[0], encoded[6:])
    if isinstance(answer, AssociateRJ):
        assert again == answer
        return
    assert isinstance(again, AssociateAC)
    ours = result_of(request, answer, requestor=False)
    theirs = result_of(request, again, requestor=True)
    assert ours.contexts.keys() == theirs.contexts.keys()
    for identifier, context in ours.contexts.items():
        other = theirs.contexts[identifier]
        assert context.transfer_syntax == other.transfer_syntax
        assert (context.as_scp, context.as_scu) == (other.as_scu, other.as_scp)
    assert ours.maximum_operations_performed == theirs.maximum_operations_invoked >= 1
    ours.describe_results()
    repr(ours)
