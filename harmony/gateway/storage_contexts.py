"""Which presentation contexts a retrieve or a store proposes to a PACS (PS3.4 §B.3.1, §C.5.3; PS3.8 §9.3.2.2).

An association has 128 contexts. Each pair of SOP class and transfer syntax gets one of its own, as far as they go, so
that the PACS can send everything as it has it; what does not fit is left out, least common first. Equal needs make
equal proposals, so that associations are shared.

The order counts: there are archives that take the first context of a SOP class for everything (dcmqrscp).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from harmony.dimse.information_model import MAXIMUM_CONTEXTS, Proposal, propose_get
from harmony.dimse.sop_class import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_SOP_CLASSES,
    VERIFICATION,
    is_storage_sop_class,
)
from harmony.gateway.identifiers import extended_retrieval
from harmony.ul.association import Association
from harmony.ul.negotiation import propose_contexts

__all__ = [
    "NATIVE",
    "Pair",
    "accepted_pairs",
    "all_pairs",
    "known_pairs",
    "propose_retrieval",
    "propose_store",
    "with_native",
]

Pair = tuple[str, str]
"""SOP class and transfer syntax."""

NATIVE: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)

_SUFFIXES = (
    # Native and what archives compress with
    ".1", "", ".4.70", ".4.90", ".4.91", ".4.50", ".4.51", ".5", ".4.80", ".4.81", ".4.57", ".1.99", ".2",
    # Younger, and video
    ".4.201", ".4.202", ".4.203", ".4.102", ".4.103", ".4.104", ".4.105", ".4.106", ".4.100", ".4.101", ".4.107",
    ".4.108", ".4.110", ".4.111", ".4.112", ".1.98", ".8.1", ".4.92", ".4.93", ".4.100.1", ".4.101.1", ".4.102.1",
    ".4.103.1", ".4.104.1", ".4.105.1", ".4.106.1", ".7.1", ".7.2", ".7.3",
)  # fmt: skip
PREFERENCE: Final = tuple("1.2.840.10008.1.2" + suffix for suffix in _SUFFIXES)
"""Transfer syntaxes by how often archives have them; without those that refer to pixels elsewhere, and retired ones."""


def _storage(suffixes: str) -> tuple[str, ...]:
    return tuple("1.2.840.10008.5.1.4.1.1." + suffix for suffix in suffixes.split())


COMMON: Final = _storage("2 4 1 1.1 6.1 3.1 7 12.1 1.2 13.1.3")
"""SOP classes that are compressed more often than not, in COMMON_SYNTAXES of their own."""
COMMON_SYNTAXES: Final = PREFERENCE[:6]
USUAL: Final = _storage(
    "20 128 2.1 4.1 88.11 88.22 88.33 88.34 88.59 88.67 88.50 104.1 104.2 11.1 11.2 481.1 481.2 481.3 481.5 481.8 "
    "481.4 66 66.1 66.4 67 30 12.2 7.2 7.3 7.4 7.1 77.1.1 77.1.4 77.1.5.1 77.1.5.4 77.1.6 9.1.1 9.1.2 6.2 130"
)


def propose_retrieval(
    get_classes: Iterable[str], pairs: Iterable[Pair], *, relational: bool = False
) -> Proposal:
    """For a C-GET that brings these pairs, in order of preference: as many as there are contexts for."""
    services = [*get_classes, VERIFICATION]
    chosen = list(dict.fromkeys(pairs))[: MAXIMUM_CONTEXTS - len(services)]
    return propose_get(
        services,
        [(sop_class, [syntax]) for sop_class, syntax in chosen],
        extended_negotiations=extended_retrieval(services[:-1], relational=relational),
    )


def known_pairs(sop_classes: Iterable[str], transfer_syntaxes: Iterable[str] = ()) -> list[Pair]:
    """The pairs in which instances of these SOP classes may come, likeliest first.

    transfer_syntaxes: those that the PACS is known to have.
    """
    preference = dict.fromkeys((*transfer_syntaxes, *PREFERENCE))
    classes = sorted(set(sop_classes))
    return [(sop_class, syntax) for syntax in preference for sop_class in classes]


def all_pairs() -> list[Pair]:
    """When nobody says what comes: the common classes as archives have them, all others native."""
    common = [(uid, syntax) for syntax in COMMON_SYNTAXES for uid in COMMON]
    return [*common, *((uid, EXPLICIT_VR_LITTLE_ENDIAN) for uid in (*USUAL, *STORAGE_SOP_CLASSES))]


def with_native(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs that a requester takes, and what can be made into them."""
    pairs = list(pairs)
    return [*pairs, *((sop_class, syntax) for syntax in NATIVE for sop_class, _ in pairs)]


def propose_store(pairs: Iterable[Pair]) -> Proposal:
    """For storing these pairs, and exactly these; Verification comes along when there is room."""
    contexts = [(sop_class, (syntax,)) for sop_class, syntax in sorted(set(pairs))[:MAXIMUM_CONTEXTS]]
    if len(contexts) < MAXIMUM_CONTEXTS:
        contexts.append((VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,)))
    return Proposal(propose_contexts(contexts))


def accepted_pairs(association: Association) -> list[Pair]:
    """What a peer may store on an association that it opened."""
    return [
        (context.abstract_syntax, context.transfer_syntax)
        for context in association.agreed.contexts.values()
        if context.as_scp and is_storage_sop_class(context.abstract_syntax)
    ]
