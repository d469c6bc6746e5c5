"""The `policies` middleware in front of `dicom_scp` endpoints: who may associate, and what they may have performed.

Rules about addresses, AE titles and time, and rate limits, decide when an association is requested: it is rejected
(PS3.8 Table 9-21). Rules about SOP classes and operations decide in negotiation, where what is not allowed is a context
rejected by the user, and again about each request, which is answered Refused: Not Authorized (PS3.7 Annex C.4.2): a
C-STORE may name another SOP class than its context, and hours pass while an association is open.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from harmony.dimse.command import CEchoRQ, CFindRQ, CGetRQ, CMoveRQ, CStoreRQ, Message
from harmony.dimse.information_model import PATIENT_ROOT, PATIENT_STUDY_ONLY, STUDY_ROOT
from harmony.dimse.sop_class import VERIFICATION, is_storage_sop_class
from harmony.dimse.status import DimseError, Status
from harmony.gateway.address_range import address_of
from harmony.gateway.config import Middleware
from harmony.gateway.options import PoliciesOptions
from harmony.gateway.policies import Evaluation, Refusal, evaluate
from harmony.gateway.rule_options import (
    DIMSE,
    CalledAEOptions,
    CallingAEOptions,
    OperationOptions,
    RuleOptions,
    SopClassOptions,
)
from harmony.gateway.rules import LATER, Judge, Judgement, Rule, Rulebook, Subject, matching
from harmony.ul.association import Association
from harmony.ul.negotiation import AcceptorPolicy, PresentationContext, SupportedAbstractSyntax
from harmony.ul.pdu import AssociateRJ, AssociateRQ

__all__ = ["DimsePolicies", "DimseSubject", "dimse_judge"]

logger = logging.getLogger("harmony.gateway")

_REJECTIONS: Final = {
    "calling_ae": AssociateRJ(1, 1, 3),
    "called_ae": AssociateRJ(1, 1, 7),
    "rate_limit": AssociateRJ(2, 3, 2),  # transient, local-limit-exceeded
}
"""By the type of the rules that refuse; no-reason-given for all others."""
_NO_REASON: Final = AssociateRJ(1, 1, 1)

_OPERATIONS: Final[dict[type[Message], str]] = {
    CEchoRQ: "C-ECHO",
    CStoreRQ: "C-STORE",
    CFindRQ: "C-FIND",
    CGetRQ: "C-GET",
    CMoveRQ: "C-MOVE",
}
_MODELS: Final = (PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY)
_OPERATION_OF: Final = (
    {VERIFICATION: "C-ECHO"}
    | {model.find: "C-FIND" for model in _MODELS}
    | {model.get: "C-GET" for model in _MODELS}
    | {model.move: "C-MOVE" for model in _MODELS}
)
"""The operation that a SOP class is for; of storage SOP classes it is C-STORE."""


@dataclass(frozen=True, slots=True)
class DimseSubject(Subject):
    calling_ae_title: str
    called_ae_title: str
    sop_class_uid: str | None = None
    """None while an association is requested, as is the operation."""
    operation: str | None = None
    """C-ECHO and so on; "" for one that no rule can name."""


def dimse_judge(options: RuleOptions) -> Judge:
    match options:
        case CalledAEOptions(mode=mode, ae_titles=titles):
            return lambda subject: matching(mode, _dimse(subject).called_ae_title in titles)
        case CallingAEOptions(mode=mode, ae_titles=titles):
            return lambda subject: matching(mode, _dimse(subject).calling_ae_title in titles)
        case SopClassOptions():
            return functools.partial(_sop_class, options)
        case OperationOptions():
            return functools.partial(_operation, options)
    raise AssertionError(f"{type(options).__name__} is not about DIMSE")


def _sop_class(options: SopClassOptions, subject: Subject) -> Judgement:
    uid = _dimse(subject).sop_class_uid
    return LATER if uid is None else matching(options.mode, uid in options.sop_classes)


def _operation(options: OperationOptions, subject: Subject) -> Judgement:
    operation = _dimse(subject).operation
    return LATER if operation is None else matching(options.mode, operation in options.names)


def _dimse(subject: Subject) -> DimseSubject:
    assert isinstance(subject, DimseSubject)
    return subject


class DimsePolicies:
    """What the associations of one endpoint are asked."""

    def __init__(self, rules: Sequence[Rule], *, name: str = "", evaluation: Evaluation = "per_type") -> None:
        """rules: by rank."""
        self._rules = tuple(rules)
        self._lasting = tuple(rule for rule in rules if rule.type != "rate_limit")
        """Asked again; what is counted are associations."""
        self._name = name
        self._evaluation = evaluation

    @classmethod
    def of(cls, middleware: Middleware, rulebook: Rulebook) -> DimsePolicies:
        options = middleware.options
        assert isinstance(options, PoliciesOptions)
        rules = rulebook.compiled(middleware.rules, DIMSE, dimse_judge)
        return cls(rules, name=middleware.name, evaluation=options.evaluation)

    def admit(
        self, request: AssociateRQ, association: Association, policy: AcceptorPolicy
    ) -> AcceptorPolicy | AssociateRJ:
        """`dimse.scp.Admission`."""
        subject = DimseSubject(
            address_of(association.peer[0]), request.calling_ae_title, request.called_ae_title
        )
        refusal = evaluate(self._rules, subject, evaluation=self._evaluation)
        if refusal is not None:
            self._log("association", association, refusal)
            return _REJECTIONS.get(refusal.type, _NO_REASON)

        def support_for(abstract_syntax: str) -> SupportedAbstractSyntax | None:
            assert policy.other_abstract_syntaxes is not None
            return self._allowed_of(subject, abstract_syntax, policy.other_abstract_syntaxes(abstract_syntax))

        return replace(policy, other_abstract_syntaxes=support_for)

    def authorize(self, request: Message, context: PresentationContext, association: Association) -> None:
        """`dimse.scp.Authorization`."""
        agreed = association.agreed
        subject = DimseSubject(
            address_of(association.peer[0]),
            agreed.calling_ae_title,
            agreed.called_ae_title,
            getattr(request, "affected_sop_class_uid", "") or context.abstract_syntax,
            _OPERATIONS.get(type(request), ""),
        )
        refusal = evaluate(self._lasting, subject, evaluation=self._evaluation)
        if refusal is not None:
            self._log(subject.operation or "operation", association, refusal)
            raise DimseError(Status.NOT_AUTHORIZED, "not allowed here")

    def _allowed_of(
        self, subject: DimseSubject, abstract_syntax: str, support: SupportedAbstractSyntax | None
    ) -> SupportedAbstractSyntax | None:
        """Without the roles in which everything would be refused."""
        if support is None:
            return None

        def allows(operation: str | None) -> bool:
            asked = replace(subject, sop_class_uid=abstract_syntax, operation=operation)
            return evaluate(self._lasting, asked, evaluation=self._evaluation) is None

        own = _OPERATION_OF.get(abstract_syntax)
        if own is None and is_storage_sop_class(abstract_syntax):
            own = "C-STORE"
        # Where the peer is SCP of storage, it is for the sub-operations of its C-GET.
        return replace(support, scp=support.scp and allows(own), scu=support.scu and allows("C-GET"))

    def _log(self, what: str, association: Association, refusal: Refusal) -> None:
        logger.info(
            "%s: %s of %s (association %d) refused: %s",
            self._name,
            what,
            association.peer_address,
            association.number,
            refusal,
        )
