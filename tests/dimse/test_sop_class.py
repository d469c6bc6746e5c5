"""The tables of SOP classes and transfer syntaxes against the registries of two other implementations."""

import pydicom.uid
import pynetdicom.sop_class
import pytest

from harmony.dimse import sop_class
from harmony.dimse.sop_class import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES

NEWER_THAN_PYDICOM = {
    "1.2.840.10008.5.1.4.1.1.9.100.1",
    "1.2.840.10008.5.1.4.1.1.9.100.2",
    "1.2.840.10008.5.1.4.1.1.66.7",
    "1.2.840.10008.5.1.4.1.1.66.8",
}


def test_every_storage_class_that_pynetdicom_knows_is_in_the_table():
    known = {
        *pynetdicom.sop_class._STORAGE_CLASSES.values(),
        *pynetdicom.sop_class._NON_PATIENT_OBJECT_CLASSES.values(),
    }
    assert known - STORAGE_SOP_CLASSES.keys() == set()


@pytest.mark.parametrize("uid", sorted(STORAGE_SOP_CLASSES.keys() - NEWER_THAN_PYDICOM))
def test_storage_classes_have_their_registered_names(uid):
    registered = pydicom.uid.UID(uid)
    assert registered.type == "SOP Class"
    assert STORAGE_SOP_CLASSES[uid] == registered.name


@pytest.mark.parametrize("uid", sorted(TRANSFER_SYNTAXES))
def test_transfer_syntaxes_have_their_registered_names(uid):
    registered = pydicom.uid.UID(uid)
    assert registered.type == "Transfer Syntax"
    assert TRANSFER_SYNTAXES[uid] == registered.name


def test_four_syntaxes_that_are_not_encapsulated_are_in_the_table_under_their_constants():
    assert TRANSFER_SYNTAXES[sop_class.IMPLICIT_VR_LITTLE_ENDIAN] == "Implicit VR Little Endian"
    assert TRANSFER_SYNTAXES[sop_class.EXPLICIT_VR_LITTLE_ENDIAN] == "Explicit VR Little Endian"
    assert (
        TRANSFER_SYNTAXES[sop_class.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN]
        == "Deflated Explicit VR Little Endian"
    )
    assert TRANSFER_SYNTAXES[sop_class.EXPLICIT_VR_BIG_ENDIAN] == "Explicit VR Big Endian"


@pytest.mark.parametrize(
    ("uids", "ending"),
    [
        (sop_class.QUERY_RETRIEVE_FIND_SOP_CLASSES, "Information Model - FIND"),
        (sop_class.QUERY_RETRIEVE_MOVE_SOP_CLASSES, "MOVE"),
        (sop_class.QUERY_RETRIEVE_GET_SOP_CLASSES, "GET"),
        ({sop_class.VERIFICATION}, "Verification SOP Class"),
        ({sop_class.MODALITY_WORKLIST_FIND}, "Modality Worklist Information Model - FIND"),
        ({sop_class.MODALITY_PERFORMED_PROCEDURE_STEP}, "Modality Performed Procedure Step SOP Class"),
        ({sop_class.STORAGE_COMMITMENT_PUSH_MODEL}, "Storage Commitment Push Model SOP Class"),
        ({sop_class.STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE}, "Storage Commitment Push Model SOP Instance"),
        ({sop_class.INSTANCE_AVAILABILITY_NOTIFICATION}, "Instance Availability Notification SOP Class"),
        ({sop_class.MEDIA_STORAGE_DIRECTORY_STORAGE}, "Media Storage Directory Storage"),
    ],
)
def test_service_classes_are_what_their_names_say(uids, ending):
    assert [uid for uid in uids if not pydicom.uid.UID(uid).name.endswith(ending)] == []
