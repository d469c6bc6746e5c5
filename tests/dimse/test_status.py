"""Status codes: PS3.7 Annex C and the tables of PS3.4, code by code."""

import pytest

from harmony.dimse.status import (
    SUCCESS_OUTCOME,
    DimseError,
    Outcome,
    Status,
    StatusClass,
    classify,
    describe_status,
)

WARNINGS = {0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000)}
PENDING = {0xFF00, 0xFF01}


def expected_class(status: int) -> StatusClass:
    if status == 0x0000:
        return StatusClass.SUCCESS
    if status in PENDING:
        return StatusClass.PENDING
    if status == 0xFE00:
        return StatusClass.CANCEL
    return StatusClass.WARNING if status in WARNINGS else StatusClass.FAILURE


def test_every_16_bit_number_has_its_class():
    assert [status for status in range(0x10000) if classify(status) is not expected_class(status)] == []


@pytest.mark.parametrize("status", [0x0002, 0x0300, 0x8000, 0xF000, 0xFF02, 0xFFFF])
def test_code_of_no_class_is_a_failure(status):
    assert classify(status) is StatusClass.FAILURE


@pytest.mark.parametrize("status", [0xF000, 0xFB00, 0xFFFF])
def test_fxxx_is_not_taken_for_bxxx_by_its_common_bits(status):
    assert classify(status) is not StatusClass.WARNING


@pytest.mark.parametrize(
    ("status", "description"),
    [
        (0x0000, "0x0000 Success"),
        (0xFF00, "0xFF00 Pending"),
        (0xFE00, "0xFE00 Cancel"),
        (0x0110, "0x0110 Processing failure"),
        (0x0122, "0x0122 Refused: SOP class not supported"),
        (0x0124, "0x0124 Refused: not authorized"),
        (0x0211, "0x0211 Unrecognized operation"),
        (0xA700, "0xA700 Refused: out of resources"),
        (0xA7FF, "0xA7FF Refused: out of resources"),
        (0xA801, "0xA801 Refused: move destination unknown"),
        (0xA9F0, "0xA9F0 Error: data set or identifier does not match SOP class"),
        (0xB00F, "0xB00F Warning"),
        (0xC123, "0xC123 Error: cannot understand, or unable to process"),
        (0x01FF, "0x01FF Failure"),
        (0x9999, "0x9999 Unknown status"),
    ],
)
def test_description(status, description):
    assert describe_status(status) == description


@pytest.mark.parametrize("status", list(Status))
def test_description_of_a_warning_says_so_and_of_a_failure_does_not(status):
    says_warning = "Warning:" in describe_status(status)
    assert says_warning == (classify(status) is StatusClass.WARNING)


def test_outcome_knows_its_class_and_only_0000_is_success():
    assert SUCCESS_OUTCOME.is_success
    assert Outcome(0x0000, "", ()) == SUCCESS_OUTCOME
    warning = Outcome(0xB000)
    assert warning.status_class is StatusClass.WARNING
    assert not warning.is_success


def test_dimse_error_carries_the_answer():
    error = DimseError(Status.OUT_OF_RESOURCES, "disk full", [0x00080018])
    assert error.outcome == Outcome(0xA700, "disk full", (0x00080018,))
    assert error.status == 0xA700
    assert str(error) == "0xA700 Refused: out of resources: disk full"
