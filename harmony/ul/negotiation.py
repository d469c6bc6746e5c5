"""Association negotiation: PS3.8 §7.1, §9.3 and PS3.7 Annex D, as functions of what was proposed and what is
supported.

The acceptor describes itself once in an immutable `AcceptorPolicy`; `negotiate` answers an A-ASSOCIATE-RQ
with the -AC or
-RJ to send, in one pass over the proposal. Both sides then look at the same `Negotiated`: contexts by ID with
the roles of this side, maximum lengths, the operations windows. The requestor builds its proposal with
`propose_contexts`.

Nothing here does I/O. User identity is only recognized here; verifying it may take time and is the
association's job.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from harmony import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from harmony.ul.errors import LocalProtocolError
from harmony.ul.items import (
    APPLICATION_CONTEXT_NAME,
    AsynchronousOperationsWindow,
    ContextResult,
    ContextResultCode,
    ExtendedNegotiation,
    ProposedContext,
    RoleSelection,
    UserIdentityAC,
    UserInformation,
)
from harmony.ul.pdu import AssociateAC, AssociateRJ, AssociateRQ

__all__ = [
    "DEFAULT_MAXIMUM_LENGTH",
    "AcceptorPolicy",
    "Negotiated",
    "PresentationContext",
    "SupportedAbstractSyntax",
    "choose_transfer_syntax",
    "negotiate",
    "propose_contexts",
    "result_of",
]

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

DEFAULT_MAXIMUM_LENGTH = 262144
"""P-DATA-TF length announced by default: large enough for few system calls, known to work with peers in the
field."""

ASSUMED_MAXIMUM_LENGTH = 16384
"""What a peer that sent no Maximum Length sub-item (mandatory, PS3.8 §D.1) is assumed to take."""

UNLIMITED_SEND_LENGTH = 131072
"""P-DATA-TF length used for a peer that announced 0, no limit: several archives fail on larger PDUs."""

SMALLEST_MAXIMUM_LENGTH = 8
"""One PDV with a fragment of two bytes. An announcement below it cannot be honoured and is read as 4096."""

MAXIMUM_WINDOW = 64
"""Operations in flight on one association where the peer says unlimited (0): bounds memory, hides any round
trip."""

_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)

_LAST_RESORTS = {
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: 1,
    IMPLICIT_VR_LITTLE_ENDIAN: 2,
    EXPLICIT_VR_BIG_ENDIAN: 3,
}


@dataclass(frozen=True, slots=True)
class SupportedAbstractSyntax:
    """What an acceptor supports for one abstract syntax.

    transfer_syntaxes: those accepted; None accepts any, even unknown ones (data sets are opaque to the
    engine). scp, scu: the roles this side takes towards the requestor (PS3.7 §D.3.3.4); scu = True lets a
    requestor that proposes the SCP role receive C-STORE sub-operations of its C-GET.
    """

    transfer_syntaxes: frozenset[str] | None = None
    scp: bool = True
    scu: bool = False


@dataclass(frozen=True, slots=True)
class AcceptorPolicy:
    """How an acceptor answers association requests. Immutable; shared by all its associations."""

    ae_titles: frozenset[str] = frozenset()
    """Called AE titles answered to, compared exactly after stripping; empty: any."""
    calling_ae_titles: frozenset[str] | None = None
    """Calling AE titles accepted; None: any."""
    abstract_syntaxes: Mapping[str, SupportedAbstractSyntax] = field(default_factory=dict)
    other_abstract_syntaxes: Callable[[str], SupportedAbstractSyntax | None] | None = None
    """Asked for an abstract syntax that is not in the table, such as a private SOP class."""
    maximum_length: int = DEFAULT_MAXIMUM_LENGTH
    maximum_operations_performed: int = 1
    """Operations the requestor may have outstanding with us (0: unlimited, meaning MAXIMUM_WINDOW)."""
    maximum_operations_invoked: int = 1
    """Operations we would have outstanding with the requestor."""
    extended_negotiation: Callable[[ExtendedNegotiation], bytes | None] | None = None
    """Service-class-application-information to answer one item 56 with; None: no answer, all defaults."""
    choose_transfer_syntax: Callable[[str, tuple[str, ...]], str] | None = None
    """Choice among the supported proposals of an abstract syntax, in proposed order; default:
    choose_transfer_syntax."""


@dataclass(frozen=True, slots=True)
class PresentationContext:
    """An accepted presentation context, seen from this side."""

    presentation_context_id: int
    abstract_syntax: str
    transfer_syntax: str
    as_scu: bool
    """This side may invoke operations of the SOP class."""
    as_scp: bool
    """This side performs operations of the SOP class."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both sides agreed on, seen from this side."""

    calling_ae_title: str
    called_ae_title: str
    contexts: Mapping[int, PresentationContext]
    """The accepted ones, by presentation context ID."""
    results: tuple[tuple[ProposedContext, int], ...]
    """Every proposed context with its result (ContextResultCode, or the integer that came)."""
    maximum_length: int
    """What we announced: the longest P-DATA-TF the peer should send."""
    peer_maximum_length: int
    """The longest P-DATA-TF we send: the peer's announcement, made usable."""
    maximum_operations_invoked: int
    """Operations we may have outstanding; at least 1."""
    maximum_operations_performed: int
    """Operations the peer may have outstanding; at least 1."""
    peer: UserInformation
    """All the user information the peer sent."""

    def describe_results(self) -> str:
        """One line for errors: which abstract syntaxes were refused, and why."""
        refused = [
            f"{context.abstract_syntax}: {_result_name(code)}" for context, code in self.results if code != 0
        ]
        return "; ".join(refused) if refused else "all proposed contexts were accepted"


def _result_name(code: int) -> str:
    try:
        return ContextResultCode(code).name.lower().replace("_", "-")
    except ValueError:
        return f"reserved result {code}"


def choose_transfer_syntax(abstract_syntax: str, proposed: tuple[str, ...]) -> str:
    """Default choice: the first proposed one that loses nothing, then deflated, Implicit VR, Big Endian.

    proposed: the supported proposals, in the order in which they came, not empty. Implicit VR loses the VRs
    of private elements, so a store-and-forward acceptor takes anything explicit first.
    """
    best = proposed[0]
    if best not in _LAST_RESORTS:
        return best
    return min(proposed, key=lambda uid: _LAST_RESORTS.get(uid, 0))


def negotiate(
    request: AssociateRQ, policy: AcceptorPolicy, *, identity_response: UserIdentityAC | None = None
) -> AssociateAC | AssociateRJ:
    """Answer an A-ASSOCIATE-RQ.

    Rejections: PS3.8 Table 9-21, rejected-permanent by the service-user for application context (2), calling
    (3) and called AE title (7). No accepted context is still an association (PS3.8 §9.3.3): the requestor
    releases it. A presentation context ID that is even, zero or repeated is refused with result 2; its first
    use stands.
    """
    if request.application_context_name not in (APPLICATION_CONTEXT_NAME, ""):
        return AssociateRJ(1, 1, 2)
    if policy.ae_titles and request.called_ae_title not in policy.ae_titles:
        return AssociateRJ(1, 1, 7)
    if policy.calling_ae_titles is not None and request.calling_ae_title not in policy.calling_ae_titles:
        return AssociateRJ(1, 1, 3)
    roles = {role.sop_class_uid: role for role in request.user_information.role_selections}
    answered_roles: dict[str, RoleSelection] = {}
    results: list[ContextResult] = []
    seen: set[int] = set()
    for context in request.presentation_contexts:
        result = _negotiate_context(context, policy, roles.get(context.abstract_syntax), answered_roles)
        identifier = context.presentation_context_id
        if identifier % 2 == 0 or identifier in seen:
            if identifier in seen:
                continue  # one result per ID; the first proposal with it stands
            result = ContextResult(identifier, ContextResultCode.NO_REASON, result.transfer_syntax)
        seen.add(identifier)
        results.append(result)
    return AssociateAC(
        tuple(results),
        _answer_user_information(request.user_information, policy, answered_roles, identity_response),
        address_fields=request.address_fields,
    )


def _negotiate_context(
    context: ProposedContext,
    policy: AcceptorPolicy,
    role: RoleSelection | None,
    answered_roles: dict[str, RoleSelection],
) -> ContextResult:
    identifier = context.presentation_context_id
    any_syntax = context.transfer_syntaxes[0] if context.transfer_syntaxes else ""
    supported = policy.abstract_syntaxes.get(context.abstract_syntax)
    # What is not a UID cannot be repeated in an answer, so a policy that takes anything is not asked about it.
    if supported is None and policy.other_abstract_syntaxes is not None and _is_uid(context.abstract_syntax):
        supported = policy.other_abstract_syntaxes(context.abstract_syntax)
    if supported is None:
        return ContextResult(identifier, ContextResultCode.ABSTRACT_SYNTAX_NOT_SUPPORTED, any_syntax)
    if role is None:
        usable = supported.scp
    else:
        answer = RoleSelection(
            context.abstract_syntax, role.scu_role and supported.scp, role.scp_role and supported.scu
        )
        answered_roles[context.abstract_syntax] = answer
        usable = answer.scu_role or answer.scp_role
    if not usable:
        return ContextResult(identifier, ContextResultCode.USER_REJECTION, any_syntax)
    known = supported.transfer_syntaxes
    accepted = tuple(
        uid for uid in context.transfer_syntaxes if (_is_uid(uid) if known is None else uid in known)
    )
    if not accepted:
        return ContextResult(identifier, ContextResultCode.TRANSFER_SYNTAXES_NOT_SUPPORTED, any_syntax)
    choose = policy.choose_transfer_syntax or choose_transfer_syntax
    chosen = choose(context.abstract_syntax, accepted)
    if chosen not in accepted:
        raise LocalProtocolError(f"the policy chose transfer syntax {chosen}, expected one of {accepted}")
    return ContextResult(identifier, ContextResultCode.ACCEPTANCE, chosen)


def _is_uid(text: str) -> bool:
    """Whether it may stand in a UID item of ours (PS3.8 Annex F); peers send anything."""
    return _UID.fullmatch(text) is not None


def _answer_user_information(
    proposed: UserInformation,
    policy: AcceptorPolicy,
    roles: Mapping[str, RoleSelection],
    identity_response: UserIdentityAC | None,
) -> UserInformation:
    window = None
    if proposed.asynchronous_operations_window is not None:
        # The values keep the requestor's perspective (PS3.7 §D.3.3.3): what it may invoke is what we perform.
        asked = proposed.asynchronous_operations_window
        window = AsynchronousOperationsWindow(
            _smaller_window(asked.maximum_number_operations_invoked, policy.maximum_operations_performed),
            _smaller_window(asked.maximum_number_operations_performed, policy.maximum_operations_invoked),
        )
    extended: list[ExtendedNegotiation] = []
    if policy.extended_negotiation is not None:
        for item in proposed.extended_negotiations:
            information = policy.extended_negotiation(item) if _is_uid(item.sop_class_uid) else None
            if information is not None:
                extended.append(ExtendedNegotiation(item.sop_class_uid, information))
    return UserInformation(
        maximum_length=policy.maximum_length,
        implementation_class_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version_name=IMPLEMENTATION_VERSION_NAME,
        asynchronous_operations_window=window,
        role_selections=tuple(roles.values()),
        extended_negotiations=tuple(extended),
        user_identity_ac=identity_response,
    )


def _smaller_window(offered: int, own: int) -> int:
    """The smaller of two windows in which 0 means unlimited; never 0, so that a bound is always stated."""
    return min(offered or MAXIMUM_WINDOW, own or MAXIMUM_WINDOW, MAXIMUM_WINDOW)


def propose_contexts(proposals: Iterable[tuple[str, Iterable[str]]]) -> tuple[ProposedContext, ...]:
    """Presentation contexts with IDs 1, 3, 5, ... for (abstract syntax, transfer syntaxes) pairs, in order.

    Exact duplicates are proposed once, and a transfer syntax once per context. At most 128 fit (PS3.8
    §9.3.2.2); LocalProtocolError names the count otherwise.
    """
    unique: dict[tuple[str, tuple[str, ...]], None] = {}
    for abstract_syntax, transfer_syntaxes in proposals:
        unique[abstract_syntax, tuple(dict.fromkeys(transfer_syntaxes))] = None
    if len(unique) > 128:
        raise LocalProtocolError(
            f"{len(unique)} presentation contexts proposed, an association has at most 128"
        )
    return tuple(
        ProposedContext(2 * index + 1, abstract_syntax, transfer_syntaxes)
        for index, (abstract_syntax, transfer_syntaxes) in enumerate(unique)
    )


def result_of(request: AssociateRQ, response: AssociateAC, *, requestor: bool) -> Negotiated:
    """What an A-ASSOCIATE-RQ and its -AC amount to, for the side that `requestor` says.

    Tolerant of acceptors (PS3.8 §9.3.3): an ID that was never proposed is ignored, an omitted one is refused,
    and so is an accepted one whose transfer syntax was not proposed.
    """
    answers: dict[int, ContextResult] = {}
    for answer in response.presentation_contexts:
        answers.setdefault(answer.presentation_context_id, answer)
    asked_roles = {role.sop_class_uid: role for role in request.user_information.role_selections}
    given_roles = {role.sop_class_uid: role for role in response.user_information.role_selections}
    contexts: dict[int, PresentationContext] = {}
    results: list[tuple[ProposedContext, int]] = []
    seen: set[int] = set()
    for proposed in request.presentation_contexts:
        identifier = proposed.presentation_context_id
        if identifier in seen:
            continue
        seen.add(identifier)
        found = answers.get(identifier)
        code = int(ContextResultCode.NO_REASON) if found is None else found.result
        if found is not None and code == 0 and found.transfer_syntax not in proposed.transfer_syntaxes:
            code = int(ContextResultCode.TRANSFER_SYNTAXES_NOT_SUPPORTED)
        results.append((proposed, code))
        if found is None or code != 0:
            continue
        requestor_is_scu, requestor_is_scp = True, False
        asked, given = (
            asked_roles.get(proposed.abstract_syntax),
            given_roles.get(proposed.abstract_syntax),
        )
        if asked is not None and given is not None:
            requestor_is_scu = asked.scu_role and given.scu_role
            requestor_is_scp = asked.scp_role and given.scp_role
        contexts[identifier] = PresentationContext(
            identifier,
            proposed.abstract_syntax,
            found.transfer_syntax,
            as_scu=requestor_is_scu if requestor else requestor_is_scp,
            as_scp=requestor_is_scp if requestor else requestor_is_scu,
        )
    ours, theirs = request.user_information, response.user_information
    if not requestor:
        ours, theirs = theirs, ours
    invoked, performed = _windows(request.user_information, response.user_information)
    if not requestor:
        invoked, performed = performed, invoked
    return Negotiated(
        calling_ae_title=request.calling_ae_title,
        called_ae_title=request.called_ae_title,
        contexts=contexts,
        results=tuple(results),
        maximum_length=ours.maximum_length or 0,
        peer_maximum_length=_usable_maximum_length(theirs.maximum_length),
        maximum_operations_invoked=invoked,
        maximum_operations_performed=performed,
        peer=theirs,
    )


def _windows(request: UserInformation, response: UserInformation) -> tuple[int, int]:
    """(invoked, performed) of the requestor: the smaller of both sides; without both items it is 1/1."""
    asked, given = request.asynchronous_operations_window, response.asynchronous_operations_window
    if asked is None or given is None:
        return 1, 1
    return (
        _smaller_window(asked.maximum_number_operations_invoked, given.maximum_number_operations_invoked),
        _smaller_window(asked.maximum_number_operations_performed, given.maximum_number_operations_performed),
    )


def _usable_maximum_length(announced: int | None) -> int:
    if announced is None:
        return ASSUMED_MAXIMUM_LENGTH
    if announced == 0:
        return UNLIMITED_SEND_LENGTH
    return announced if announced >= SMALLEST_MAXIMUM_LENGTH else 4096
