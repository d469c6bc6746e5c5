"""Presentation contexts for retrieves and stores: as many as there are, in the right order, equal for equal needs."""

import pytest

from harmony.dimse.information_model import STUDY_ROOT
from harmony.dimse.sop_class import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from harmony.gateway.storage_contexts import (
    PREFERENCE,
    all_pairs,
    known_pairs,
    propose_retrieval,
    propose_store,
    with_native,
)

CT, MR, SR = (f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("2", "4", "88.11"))
IMPLICIT, EXPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"
VERIFICATION = "1.2.840.10008.1.1"


def storage(proposal):
    """The pairs of a proposal, each of which has a context of its own."""
    contexts = [each for each in proposal.contexts if each.abstract_syntax in STORAGE_SOP_CLASSES]
    assert all(len(each.transfer_syntaxes) == 1 for each in contexts)
    return [(each.abstract_syntax, each.transfer_syntaxes[0]) for each in contexts]


def test_one_class_in_everything():
    proposal = propose_retrieval([STUDY_ROOT.get], known_pairs([CT]))
    assert storage(proposal) == [(CT, syntax) for syntax in PREFERENCE]
    assert [(role.sop_class_uid, role.scu_role, role.scp_role) for role in proposal.roles] == [
        (CT, True, True)
    ]
    assert [each.abstract_syntax for each in proposal.contexts[:2]] == [STUDY_ROOT.get, VERIFICATION]


def test_preferences_are_transfer_syntaxes():
    assert len(set(PREFERENCE)) == len(PREFERENCE)
    assert set(PREFERENCE) <= set(TRANSFER_SYNTAXES)


@pytest.mark.parametrize("count", [3, 40, 150])
def test_many_classes_have_the_commonest_syntaxes(count):
    classes = sorted(STORAGE_SOP_CLASSES)[:count]
    pairs = storage(propose_retrieval([STUDY_ROOT.get], known_pairs(classes)))
    assert len(pairs) == min(126, count * len(PREFERENCE))
    assert set(pairs) >= {(uid, EXPLICIT) for uid in classes[:126]}
    assert [syntax for uid, syntax in pairs if uid == classes[0]][:1] == [EXPLICIT]


def test_what_the_pacs_is_known_to_have_comes_first():
    assert known_pairs([MR, CT], [JPEG])[:4] == [(CT, JPEG), (MR, JPEG), (CT, EXPLICIT), (MR, EXPLICIT)]


def test_when_nothing_is_known():
    pairs = storage(propose_retrieval([STUDY_ROOT.get], all_pairs()))
    assert len(pairs) == 126
    assert {(CT, EXPLICIT), (CT, IMPLICIT), (SR, EXPLICIT)} <= set(pairs)
    assert {syntax for uid, syntax in pairs if uid == CT} >= {EXPLICIT, IMPLICIT, JPEG}


def test_what_a_requester_takes_with_what_can_be_made_into_it():
    assert with_native([(CT, JPEG), (MR, EXPLICIT)]) == [
        (CT, JPEG),
        (MR, EXPLICIT),
        (CT, EXPLICIT),
        (MR, EXPLICIT),
        (CT, IMPLICIT),
        (MR, IMPLICIT),
    ]


def test_a_store_has_exactly_its_pairs():
    proposal = propose_store([(MR, EXPLICIT), (CT, JPEG), (CT, JPEG)])
    assert storage(proposal) == [(CT, JPEG), (MR, EXPLICIT)]
    assert proposal == propose_store([(CT, JPEG), (MR, EXPLICIT)])
    full = propose_store((uid, EXPLICIT) for uid in sorted(STORAGE_SOP_CLASSES)[:128])
    assert len(storage(full)) == len(full.contexts) == 128


def test_relational_retrieves_are_negotiated():
    proposal = propose_retrieval([STUDY_ROOT.get], [(CT, EXPLICIT)], relational=True)
    (item,) = proposal.extended_negotiations
    assert (item.sop_class_uid, item.service_class_application_information) == (STUDY_ROOT.get, b"\1")
