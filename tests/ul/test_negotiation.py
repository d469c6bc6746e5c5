"""Negotiation as tables: contexts, transfer syntaxes, roles, lengths, windows and the rest (PS3.8 §9.3, PS3.7 §D.3)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.ul.errors import LocalProtocolError
from harmony.ul.items import (
    AsynchronousOperationsWindow,
    CommonExtendedNegotiation,
    ContextResult,
    ExtendedNegotiation,
    ProposedContext,
    RoleSelection,
    UserIdentityAC,
    UserIdentityRQ,
    UserInformation,
)
from harmony.ul.negotiation import (
    AcceptorPolicy,
    SupportedAbstractSyntax,
    choose_transfer_syntax,
    negotiate,
    propose_contexts,
    result_of,
)
from harmony.ul.pdu import AssociateAC, AssociateRJ, AssociateRQ, decode

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.70"
PRIVATE = "2.16.840.1.113709.1.2.1"

ANYTHING = AcceptorPolicy(other_abstract_syntaxes=lambda uid: SupportedAbstractSyntax(scu=True))


def request(*contexts, **user_information):
    return AssociateRQ("CALLED", "CALLING", contexts, UserInformation(**user_information))


def supporting(*syntaxes, **options):
    return AcceptorPolicy(
        abstract_syntaxes={CT: SupportedAbstractSyntax(frozenset(syntaxes) if syntaxes else None)}, **options
    )


def results(answer):
    return [(each.presentation_context_id, int(each.result)) for each in answer.presentation_contexts]


# Who may associate


@pytest.mark.parametrize(
    ("changes", "policy", "rejection"),
    [
        ({"application_context_name": "1.2.3"}, {}, AssociateRJ(1, 1, 2)),
        ({}, {"ae_titles": frozenset({"OTHER"})}, AssociateRJ(1, 1, 7)),
        ({}, {"ae_titles": frozenset({"called"})}, AssociateRJ(1, 1, 7)),  # compared exactly
        ({}, {"calling_ae_titles": frozenset({"OTHER"})}, AssociateRJ(1, 1, 3)),
        ({}, {"calling_ae_titles": frozenset()}, AssociateRJ(1, 1, 3)),
        ({"application_context_name": ""}, {}, None),  # item 0x10 missing: tolerated
        (
            {},
            {"ae_titles": frozenset({"CALLED", "OTHER"}), "calling_ae_titles": frozenset({"CALLING"})},
            None,
        ),
    ],
)
def test_who_may_associate(changes, policy, rejection):
    asked = AssociateRQ("CALLED", "CALLING", (ProposedContext(1, CT, (IMPLICIT,)),), **changes)
    answer = negotiate(asked, AcceptorPolicy(**policy))
    if rejection is None:
        assert isinstance(answer, AssociateAC)
    else:
        assert answer == rejection


def test_no_accepted_context_is_still_an_association():
    asked = request(ProposedContext(1, CT, (IMPLICIT,)))
    answer = negotiate(asked, AcceptorPolicy())
    assert results(answer) == [(1, 3)]
    assert result_of(asked, answer, requestor=True).contexts == {}


def test_the_titles_of_the_request_are_repeated_as_they_came():
    fields = b"CALLED\0\0\0\0\0\0\0\0\0\0" + b" CALLING        " + bytes(range(32))
    asked = AssociateRQ("CALLED", "CALLING", (ProposedContext(1, CT, (IMPLICIT,)),), address_fields=fields)
    assert negotiate(asked, ANYTHING).encode()[10:74] == fields


# Contexts


@pytest.mark.parametrize(
    ("proposed", "supported", "result", "chosen"),
    [
        ((IMPLICIT,), (IMPLICIT, EXPLICIT), 0, IMPLICIT),
        ((IMPLICIT, EXPLICIT), (IMPLICIT, EXPLICIT), 0, EXPLICIT),
        ((IMPLICIT, EXPLICIT), (IMPLICIT,), 0, IMPLICIT),
        ((JPEG, EXPLICIT), (IMPLICIT, EXPLICIT, JPEG), 0, JPEG),
        ((BIG_ENDIAN, DEFLATED, IMPLICIT), (), 0, DEFLATED),
        ((BIG_ENDIAN, IMPLICIT), (), 0, IMPLICIT),
        ((PRIVATE,), (), 0, PRIVATE),
        ((PRIVATE,), (IMPLICIT,), 4, None),
        ((EXPLICIT, EXPLICIT), (EXPLICIT,), 0, EXPLICIT),
        ((), (IMPLICIT,), 4, None),
        ((), (), 4, None),
        (("",), (), 4, None),
        (("not a UID", "\xff" * 70, IMPLICIT), (), 0, IMPLICIT),
        (("not a UID",), (), 4, None),
    ],
)
def test_r07_transfer_syntax_choice(proposed, supported, result, chosen):
    """None, one, duplicate, unknown and damaged transfer syntaxes are answered, never a reason to fail."""
    answer = negotiate(request(ProposedContext(1, CT, proposed)), supporting(*supported))
    (found,) = answer.presentation_contexts
    assert found.result == result
    if chosen is not None:
        assert found.transfer_syntax == chosen
    assert decode(2, answer.encode()[6:]).presentation_contexts[0].result == result


def test_a_policy_may_choose_the_transfer_syntax():
    policy = supporting(choose_transfer_syntax=lambda abstract_syntax, proposed: proposed[-1])
    answer = negotiate(request(ProposedContext(1, CT, (EXPLICIT, JPEG, IMPLICIT))), policy)
    assert answer.presentation_contexts == (ContextResult(1, 0, IMPLICIT),)


def test_a_policy_that_chooses_what_was_not_proposed_is_our_error():
    policy = supporting(choose_transfer_syntax=lambda abstract_syntax, proposed: JPEG)
    with pytest.raises(LocalProtocolError, match=JPEG):
        negotiate(request(ProposedContext(1, CT, (EXPLICIT,))), policy)


@pytest.mark.parametrize(
    ("proposed", "best"),
    [
        ((EXPLICIT,), EXPLICIT),
        ((IMPLICIT, JPEG, EXPLICIT), JPEG),
        ((BIG_ENDIAN, IMPLICIT), IMPLICIT),
        ((IMPLICIT, DEFLATED), DEFLATED),
        ((BIG_ENDIAN,), BIG_ENDIAN),
    ],
)
def test_the_default_choice_loses_nothing_first(proposed, best):
    assert choose_transfer_syntax(CT, proposed) == best


@pytest.mark.parametrize("uid", ["", "not a UID", "1" * 65, "1.2\0"])
def test_a_policy_that_takes_anything_is_not_asked_about_what_is_no_uid(uid):
    answer = negotiate(
        request(ProposedContext(1, uid, (IMPLICIT,)), role_selections=(RoleSelection(uid, True, True),)),
        ANYTHING,
    )
    assert results(answer) == [(1, 3)]
    assert answer.user_information.role_selections == ()
    answer.encode()


def test_r08_ids_even_zero_and_repeated_are_answered_once_and_never_used():
    """An even ID gets result 2; of a repeated one the first proposal stands."""
    asked = request(
        ProposedContext(255, CT, (IMPLICIT,)),
        ProposedContext(2, CT, (IMPLICIT,)),
        ProposedContext(1, CT, (IMPLICIT,)),
        ProposedContext(1, CT, (EXPLICIT,)),
        ProposedContext(0, CT, (IMPLICIT,)),
        ProposedContext(2, CT, (EXPLICIT,)),
        ProposedContext(3, MR, (IMPLICIT,)),
        ProposedContext(3, CT, (IMPLICIT,)),
    )
    answer = negotiate(asked, supporting())
    assert results(answer) == [(255, 0), (2, 2), (1, 0), (0, 2), (3, 3)]
    negotiated = result_of(asked, answer, requestor=False)
    assert {key: context.transfer_syntax for key, context in negotiated.contexts.items()} == {
        255: IMPLICIT,
        1: IMPLICIT,
    }
    assert len(negotiated.results) == 5


def test_r08_128_contexts_are_answered_in_the_order_of_the_request():
    order = [*range(255, 0, -4), *range(1, 256, 4)]
    asked = request(*(ProposedContext(identifier, CT, (IMPLICIT,)) for identifier in order))
    assert results(negotiate(asked, supporting())) == [(identifier, 0) for identifier in order]


@pytest.mark.parametrize(
    ("answers", "results_", "usable"),
    [
        ([ContextResult(1, 0, IMPLICIT), ContextResult(3, 0, EXPLICIT)], [0, 0], [1, 3]),
        ([ContextResult(3, 0, EXPLICIT), ContextResult(1, 0, IMPLICIT)], [0, 0], [1, 3]),
        ([ContextResult(1, 0, IMPLICIT)], [0, 2], [1]),  # R09: omitted means refused
        ([ContextResult(5, 0, IMPLICIT)], [2, 2], []),  # R09: never proposed
        ([ContextResult(1, 0, JPEG), ContextResult(3, 0, "")], [4, 4], []),
        ([ContextResult(1, 3), ContextResult(3, 77, IMPLICIT)], [3, 77], []),
        ([ContextResult(1, 0, IMPLICIT), ContextResult(1, 4, "")], [0, 2], [1]),
    ],
)
def test_r09_a_requestor_tolerates_any_answer(answers, results_, usable):
    asked = request(ProposedContext(1, CT, (IMPLICIT,)), ProposedContext(3, MR, (IMPLICIT, EXPLICIT)))
    negotiated = result_of(asked, AssociateAC(tuple(answers)), requestor=True)
    assert [code for _, code in negotiated.results] == results_
    assert list(negotiated.contexts) == usable


def test_refusals_are_described_with_their_reasons():
    asked = request(ProposedContext(1, CT, (IMPLICIT,)), ProposedContext(3, MR, (IMPLICIT,)))
    response = AssociateAC((ContextResult(1, 3), ContextResult(3, 99)))
    text = result_of(asked, response, requestor=True).describe_results()
    assert text == f"{CT}: abstract-syntax-not-supported; {MR}: reserved result 99"
    accepted = AssociateAC((ContextResult(1, 0, IMPLICIT), ContextResult(3, 0, IMPLICIT)))
    assert "accepted" in result_of(asked, accepted, requestor=True).describe_results()


# Roles (PS3.7 §D.3.3.4)


@pytest.mark.parametrize(
    ("proposed", "answered", "requestor_acts_as", "acceptor_acts_as"),
    [
        (None, None, "scu", "scp"),
        ((1, 1), (1, 1), "scu scp", "scu scp"),
        ((1, 1), (1, 0), "scu", "scp"),
        ((1, 1), (0, 1), "scp", "scu"),
        ((0, 1), (0, 1), "scp", "scu"),
        ((0, 1), None, "scu", "scp"),
        ((1, 1), (0, 0), "", ""),
        ((0, 1), (1, 1), "scp", "scu"),  # more than was proposed: only what was proposed counts
        (None, (1, 1), "scu", "scp"),  # answered without having been asked
    ],
)
def test_r34_role_selection_as_both_sides_understand_it(
    proposed, answered, requestor_acts_as, acceptor_acts_as
):
    def items(roles):
        return () if roles is None else (RoleSelection(CT, bool(roles[0]), bool(roles[1])),)

    asked = request(ProposedContext(1, CT, (IMPLICIT,)), role_selections=items(proposed))
    response = AssociateAC((ContextResult(1, 0, IMPLICIT),), UserInformation(role_selections=items(answered)))

    def acts_as(requestor):
        context = result_of(asked, response, requestor=requestor).contexts[1]
        return " ".join(["scu"] * context.as_scu + ["scp"] * context.as_scp)

    assert acts_as(True) == requestor_acts_as
    assert acts_as(False) == acceptor_acts_as


@pytest.mark.parametrize("scu", [False, True])
@pytest.mark.parametrize("scp", [False, True])
@pytest.mark.parametrize("proposed", [None, (1, 0), (0, 1), (1, 1), (0, 0)])
def test_roles_an_acceptor_grants(proposed, scp, scu):
    policy = AcceptorPolicy(abstract_syntaxes={CT: SupportedAbstractSyntax(scp=scp, scu=scu)})
    roles = () if proposed is None else (RoleSelection(CT, bool(proposed[0]), bool(proposed[1])),)
    answer = negotiate(request(ProposedContext(1, CT, (IMPLICIT,)), role_selections=roles), policy)
    # We are SCP where the requestor is SCU, and the other way round; a role not asked for is not granted.
    as_scu = scp and (proposed is None or bool(proposed[0]))
    as_scp = scu and proposed is not None and bool(proposed[1])
    assert results(answer) == [(1, 0 if as_scu or as_scp else 1)]
    expected = () if proposed is None else (RoleSelection(CT, as_scu, as_scp),)
    assert answer.user_information.role_selections == expected


def test_roles_of_classes_not_proposed_are_not_answered_and_one_answer_serves_all_contexts():
    asked = request(
        ProposedContext(1, CT, (IMPLICIT,)),
        ProposedContext(3, CT, (EXPLICIT,)),
        role_selections=(RoleSelection(MR, True, True), RoleSelection(CT, True, True)),
    )
    answer = negotiate(asked, AcceptorPolicy(abstract_syntaxes={CT: SupportedAbstractSyntax(scu=True)}))
    assert answer.user_information.role_selections == (RoleSelection(CT, True, True),)
    contexts = result_of(asked, answer, requestor=True).contexts
    assert all(context.as_scu and context.as_scp for context in contexts.values())


# Lengths (R10)


@pytest.mark.parametrize(
    ("announced", "used"),
    [
        (None, 16384),
        (0, 131072),
        *[(value, 4096) for value in range(1, 8)],
        (8, 8),
        (9, 9),
        (16383, 16383),
        (2**32 - 1, 2**32 - 1),
    ],
)
def test_r10_maximum_length_of_the_peer(announced, used):
    asked = request(ProposedContext(1, CT, (IMPLICIT,)), maximum_length=announced)
    answer = negotiate(asked, supporting(maximum_length=4242))
    assert answer.user_information.maximum_length == 4242
    ours = result_of(asked, answer, requestor=False)
    assert (ours.maximum_length, ours.peer_maximum_length) == (4242, used)
    theirs = result_of(asked, answer, requestor=True)
    assert (theirs.maximum_length, theirs.peer_maximum_length) == (announced or 0, 4242)


# Asynchronous operations window (R35)


@pytest.mark.parametrize(
    ("asked", "policy", "answered"),
    [
        (None, (8, 8), None),
        ((1, 1), (1, 1), (1, 1)),
        ((0, 0), (1, 1), (1, 1)),
        ((5, 3), (8, 8), (5, 3)),
        ((5, 3), (2, 1), (2, 1)),
        ((0, 0), (0, 0), (64, 64)),
        ((65535, 65535), (0, 0), (64, 64)),
        ((0, 4), (7, 0), (7, 4)),
    ],
)
def test_r35_window_an_acceptor_answers(asked, policy, answered):
    """The item keeps the requestor's perspective: what it may invoke is what we perform (PS3.7 §D.3.3.3)."""
    window = None if asked is None else AsynchronousOperationsWindow(*asked)
    request_ = request(ProposedContext(1, CT, (IMPLICIT,)), asynchronous_operations_window=window)
    answer = negotiate(
        request_, supporting(maximum_operations_performed=policy[0], maximum_operations_invoked=policy[1])
    )
    expected = None if answered is None else AsynchronousOperationsWindow(*answered)
    assert answer.user_information.asynchronous_operations_window == expected
    requestor, acceptor = (result_of(request_, answer, requestor=side) for side in (True, False))
    invoked, performed = answered or (1, 1)
    assert (requestor.maximum_operations_invoked, requestor.maximum_operations_performed) == (
        invoked,
        performed,
    )
    assert (acceptor.maximum_operations_invoked, acceptor.maximum_operations_performed) == (
        performed,
        invoked,
    )


@pytest.mark.parametrize(
    ("asked", "answered", "effective"),
    [
        ((4, 1), (9, 9), (4, 1)),  # answered larger than proposed
        ((4, 1), None, (1, 1)),  # no answer: synchronous
        (None, (9, 9), (1, 1)),  # answered though not asked
        ((0, 0), (0, 0), (64, 64)),
        ((0, 1), (3, 0), (3, 1)),
    ],
)
def test_r35_window_a_requestor_uses(asked, answered, effective):
    def information(window):
        return UserInformation(
            asynchronous_operations_window=None if window is None else AsynchronousOperationsWindow(*window)
        )

    context = ProposedContext(1, CT, (IMPLICIT,))
    negotiated = result_of(
        AssociateRQ("A", "B", (context,), information(asked)),
        AssociateAC((ContextResult(1, 0, IMPLICIT),), information(answered)),
        requestor=True,
    )
    assert (
        negotiated.maximum_operations_invoked,
        negotiated.maximum_operations_performed,
    ) == effective


# Extended negotiation, user identity


def test_extended_negotiation_is_the_policys():
    asked = request(
        ProposedContext(1, CT, (IMPLICIT,)),
        extended_negotiations=(
            ExtendedNegotiation(CT, b"\1\1\1"),
            ExtendedNegotiation(MR, b"\2"),
            ExtendedNegotiation("no UID", b"\3"),
        ),
    )
    seen = []

    def answer_to(item):
        seen.append(item)
        return item.service_class_application_information[:1] if item.sop_class_uid == CT else None

    answer = negotiate(asked, supporting(extended_negotiation=answer_to))
    assert answer.user_information.extended_negotiations == (ExtendedNegotiation(CT, b"\1"),)
    assert [item.sop_class_uid for item in seen] == [CT, MR]
    assert negotiate(asked, supporting()).user_information.extended_negotiations == ()


def test_common_extended_negotiation_is_tolerated_and_never_answered():
    asked = request(
        ProposedContext(1, CT, (IMPLICIT,)),
        common_extended_negotiations=(CommonExtendedNegotiation(CT, "1.2.840.10008.4.2", (MR,)),),
    )
    answer = negotiate(asked, supporting())
    assert results(answer) == [(1, 0)]
    assert answer.user_information.common_extended_negotiations == ()
    assert result_of(asked, answer, requestor=False).peer.common_extended_negotiations != ()


def test_user_identity_is_answered_with_what_the_association_found():
    asked = request(ProposedContext(1, CT, (IMPLICIT,)), user_identity_rq=UserIdentityRQ(1, b"user"))
    assert negotiate(asked, supporting()).user_information.user_identity_ac is None
    answer = negotiate(asked, supporting(), identity_response=UserIdentityAC(b"ticket"))
    assert answer.user_information.user_identity_ac == UserIdentityAC(b"ticket")
    assert answer.user_information.user_identity_rq is None


# Proposals


def test_proposed_contexts_are_numbered_and_unique():
    contexts = propose_contexts(
        [(CT, [EXPLICIT, IMPLICIT, EXPLICIT]), (CT, [JPEG]), (CT, (EXPLICIT, IMPLICIT)), (MR, [IMPLICIT])]
    )
    assert contexts == (
        ProposedContext(1, CT, (EXPLICIT, IMPLICIT)),
        ProposedContext(3, CT, (JPEG,)),
        ProposedContext(5, MR, (IMPLICIT,)),
    )


def test_at_most_128_contexts_fit():
    assert propose_contexts((f"1.{n}", [IMPLICIT]) for n in range(128))[-1].presentation_context_id == 255
    with pytest.raises(LocalProtocolError, match="129"):
        propose_contexts((f"1.{n}", [IMPLICIT]) for n in range(129))


# Whatever is proposed

uids = st.one_of(
    st.sampled_from([CT, MR, IMPLICIT, EXPLICIT, JPEG, PRIVATE]),
    st.text(st.characters(max_codepoint=255), max_size=70),
)
proposals = st.lists(
    st.builds(ProposedContext, st.integers(0, 255), uids, st.lists(uids, max_size=4).map(tuple)), max_size=12
)
roles = st.lists(st.builds(RoleSelection, uids, st.booleans(), st.booleans()), max_size=4).map(tuple)
extended = st.lists(st.builds(ExtendedNegotiation, uids, st.binary(max_size=8)), max_size=3).map(tuple)
policies = st.sampled_from(
    [
        ANYTHING,
        AcceptorPolicy(
            other_abstract_syntaxes=lambda uid: SupportedAbstractSyntax(),
            extended_negotiation=lambda item: item.service_class_application_information,
        ),
        supporting(IMPLICIT, EXPLICIT),
    ]
)


@settings(max_examples=200, deadline=None)
@given(proposals, roles, extended, policies)
def test_any_proposal_gets_an_answer_that_can_be_sent(
    contexts, role_selections, extended_negotiations, policy
):
    asked = request(*contexts, role_selections=role_selections, extended_negotiations=extended_negotiations)
    answer = negotiate(asked, policy)
    assert decode(2, answer.encode()[6:]).presentation_contexts is not None
    identifiers = [context.presentation_context_id for context in contexts]
    assert [each.presentation_context_id for each in answer.presentation_contexts] == list(
        dict.fromkeys(identifiers)
    )
    first = {context.presentation_context_id: context for context in reversed(contexts)}
    for each in answer.presentation_contexts:
        if each.result == 0:
            assert each.presentation_context_id % 2 == 1
            assert each.transfer_syntax in first[each.presentation_context_id].transfer_syntaxes
    ours, theirs = (result_of(asked, answer, requestor=side) for side in (False, True))
    assert [code for _, code in ours.results] == [int(each.result) for each in answer.presentation_contexts]
    for identifier, context in ours.contexts.items():
        mirror = theirs.contexts[identifier]
        assert (context.as_scu, context.as_scp) == (mirror.as_scp, mirror.as_scu)
        assert context.as_scu or context.as_scp


@settings(max_examples=200, deadline=None)
@given(
    proposals,
    st.lists(st.builds(ContextResult, st.integers(0, 255), st.integers(0, 5), uids), max_size=12),
    roles,
    roles,
)
def test_a_requestor_makes_sense_of_any_answer(contexts, answers, asked_roles, given_roles):
    asked = request(*contexts, role_selections=asked_roles)
    response = AssociateAC(tuple(answers), UserInformation(role_selections=given_roles))
    negotiated = result_of(asked, response, requestor=True)
    identifiers = [context.presentation_context_id for context in contexts]
    assert [proposed.presentation_context_id for proposed, _ in negotiated.results] == list(
        dict.fromkeys(identifiers)
    )
    accepted = {proposed.presentation_context_id for proposed, code in negotiated.results if code == 0}
    assert set(negotiated.contexts) == accepted
    for proposed, code in negotiated.results:
        if code == 0:
            context = negotiated.contexts[proposed.presentation_context_id]
            assert context.transfer_syntax in proposed.transfer_syntaxes
            assert context.abstract_syntax == proposed.abstract_syntax
