"""Query/Retrieve Information Models and the presentation contexts they need (PS3.4 §C.6, §C.5.3).

A peer performs Patient Root, Study Root, both, or one for FIND and the other for MOVE. Programs propose what they can
use, in order of preference, and `accepted_context` says what came of it. The identifier depends on the answer (Study
Root has no PATIENT level, and the transfer syntax is the peer's choice), so an `Identifier` may be a function of it.

Identifiers are opaque here. Called by `query` and `retrieve`, and by programs before they associate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from harmony.dimse.scu import SCU, NoPresentationContext
from harmony.dimse.sop_class import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    PATIENT_ROOT_FIND,
    PATIENT_ROOT_GET,
    PATIENT_ROOT_MOVE,
    PATIENT_STUDY_ONLY_FIND,
    PATIENT_STUDY_ONLY_GET,
    PATIENT_STUDY_ONLY_MOVE,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    VERIFICATION,
)
from harmony.ul.items import ExtendedNegotiation, ProposedContext, RoleSelection
from harmony.ul.negotiation import PresentationContext, propose_contexts

__all__ = [
    "PATIENT_ROOT",
    "PATIENT_STUDY_ONLY",
    "STUDY_ROOT",
    "Identifier",
    "InformationModel",
    "Proposal",
    "accepted_context",
    "propose_get",
    "propose_query",
]

MAXIMUM_CONTEXTS: Final = 128
"""Of one association: presentation context IDs are the odd numbers 1 to 255 (PS3.8 §9.3.2.2)."""

_NATIVE: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)


@dataclass(frozen=True, slots=True)
class InformationModel:
    """The SOP classes of one information model, and its levels from the root down."""

    name: str
    find: str
    move: str
    get: str
    levels: tuple[str, ...]


PATIENT_ROOT: Final = InformationModel(
    "Patient Root",
    PATIENT_ROOT_FIND,
    PATIENT_ROOT_MOVE,
    PATIENT_ROOT_GET,
    ("PATIENT", "STUDY", "SERIES", "IMAGE"),
)
STUDY_ROOT: Final = InformationModel(
    "Study Root", STUDY_ROOT_FIND, STUDY_ROOT_MOVE, STUDY_ROOT_GET, ("STUDY", "SERIES", "IMAGE")
)
PATIENT_STUDY_ONLY: Final = InformationModel(
    "Patient/Study Only",
    PATIENT_STUDY_ONLY_FIND,
    PATIENT_STUDY_ONLY_MOVE,
    PATIENT_STUDY_ONLY_GET,
    ("PATIENT", "STUDY"),
)


Identifier = bytes | Callable[[PresentationContext], bytes]
"""An encoded Identifier, or what encodes it for the accepted context: its SOP class and its transfer syntax."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a requestor proposes for the contexts of one association. A value: equal proposals share associations."""

    contexts: tuple[ProposedContext, ...]
    roles: tuple[RoleSelection, ...] = ()
    extended_negotiations: tuple[ExtendedNegotiation, ...] = ()


def accepted_context(scu: SCU, sop_class_uids: str | Sequence[str]) -> PresentationContext:
    """The accepted context of the first SOP class that has one; NoPresentationContext when none has.

    sop_class_uids: one, or several in order of preference, such as (STUDY_ROOT.find, PATIENT_ROOT.find).
    """
    wanted = [sop_class_uids] if isinstance(sop_class_uids, str) else sop_class_uids
    for uid in wanted:
        try:
            return scu.context_for(uid)
        except NoPresentationContext:
            continue
    raise NoPresentationContext(
        f"no presentation context for any of {', '.join(wanted)} was accepted "
        f"({scu.association.agreed.describe_results()})"
    )


def encode_identifier(identifier: Identifier, context: PresentationContext) -> bytes:
    """The Identifier for an accepted context."""
    return identifier(context) if callable(identifier) else identifier


def propose_query(
    sop_class_uids: Iterable[str], *, extended_negotiations: Iterable[ExtendedNegotiation] = ()
) -> Proposal:
    """Contexts for FIND or MOVE SOP classes, and Verification, each in Explicit or Implicit VR Little Endian."""
    uids = [*sop_class_uids, VERIFICATION]
    return Proposal(
        propose_contexts((uid, _NATIVE) for uid in uids), extended_negotiations=tuple(extended_negotiations)
    )


def propose_get(
    sop_class_uids: Iterable[str],
    storage: Iterable[tuple[str, Iterable[str]]],
    *,
    extended_negotiations: Iterable[ExtendedNegotiation] = (),
) -> Proposal:
    """Contexts for C-GET: GET SOP classes (others may come along), and storage SOP classes with the SCP role.

    storage: SOP classes with the transfer syntaxes wanted. Each transfer syntax gets a context of its own, so that
    everything can be sent as it is stored; where that needs more contexts than there are, all those of a SOP class
    share one and the peer chooses. LocalProtocolError when even that is too much.
    """
    services = [(uid, _NATIVE) for uid in dict.fromkeys(sop_class_uids)]
    wanted: dict[str, dict[str, None]] = {}
    for sop_class, syntaxes in storage:
        wanted.setdefault(sop_class, {}).update(dict.fromkeys(syntaxes))
    one_each = [(sop_class, (syntax,)) for sop_class, syntaxes in wanted.items() for syntax in syntaxes]
    proposals: list[tuple[str, tuple[str, ...]]] = [*services, *one_each]
    if len(proposals) > MAXIMUM_CONTEXTS:
        proposals = [*services, *((sop_class, tuple(syntaxes)) for sop_class, syntaxes in wanted.items())]
    # The SCU role is proposed as well: some archives refuse a storage class that is not offered in the usual role.
    roles = tuple(RoleSelection(sop_class, True, True) for sop_class in wanted)
    return Proposal(propose_contexts(proposals), roles, tuple(extended_negotiations))
