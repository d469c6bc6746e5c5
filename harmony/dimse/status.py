"""Status codes of DIMSE responses: their names, their classes, and how handlers answer with one.

PS3.7 Annex C defines the general codes, PS3.4 the ones of each service class (B.2.3 storage, C.4
query/retrieve). The class of a code is what a program acts on: Success, Warning, Failure, Cancel or Pending.
Ranges whose last digits are left to the implementation (A7xx, A9xx, Bxxx, Cxxx) are described by range.

A status travels in two forms: `Outcome` is a value, the result of an operation; `DimseError` carries one as
an exception. Sinks and service handlers raise it to answer with that status; the SCU raises it for what a
peer answered.

Nothing here knows which service may use which code: a received code is only ever classified, never refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from functools import lru_cache

__all__ = ["SUCCESS_OUTCOME", "DimseError", "Outcome", "Status", "StatusClass", "classify", "describe_status"]


class Status(IntEnum):
    """The codes with a meaning of their own. A status from the wire is any 16-bit number: keep it as int."""

    SUCCESS = 0x0000
    PENDING = 0xFF00
    PENDING_WARNING = 0xFF01
    """Pending, but an optional key was not supported for existence or matching (PS3.4 §C.4.1.1.4)."""
    CANCEL = 0xFE00

    # PS3.7 Annex C, general
    REQUESTED_OPTIONAL_ATTRIBUTES_NOT_SUPPORTED = 0x0001
    NO_SUCH_ATTRIBUTE = 0x0105
    INVALID_ATTRIBUTE_VALUE = 0x0106
    ATTRIBUTE_LIST_ERROR = 0x0107
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_SOP_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    NO_SUCH_ARGUMENT = 0x0114
    INVALID_ARGUMENT_VALUE = 0x0115
    ATTRIBUTE_VALUE_OUT_OF_RANGE = 0x0116
    INVALID_SOP_INSTANCE = 0x0117
    NO_SUCH_SOP_CLASS = 0x0118
    CLASS_INSTANCE_CONFLICT = 0x0119
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION_TYPE = 0x0123
    NOT_AUTHORIZED = 0x0124
    DUPLICATE_TRANSACTION_UID = 0x0131
    """Only inside storage commitment events, as Failure Reason (0008,1197) (PS3.4 §J.3)."""
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213

    # PS3.4 §B.2.3 C-STORE, §C.4 C-FIND, C-MOVE, C-GET
    OUT_OF_RESOURCES = 0xA700
    OUT_OF_RESOURCES_UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES = 0xA701
    OUT_OF_RESOURCES_UNABLE_TO_PERFORM_SUB_OPERATIONS = 0xA702
    INVALID_PRIOR_RECORD_KEY = 0xA710
    """C-FIND of the Repository Query; MPPS sends the same number as Error ID: "may no longer be updated"."""
    MOVE_DESTINATION_UNKNOWN = 0xA801
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    """C-FIND, C-MOVE and C-GET call the same code "Identifier does not match SOP Class"."""
    NONE_OF_THE_FRAMES_FOUND = 0xAA00
    UNABLE_TO_CREATE_OBJECT = 0xAA01
    UNABLE_TO_EXTRACT_FRAMES = 0xAA02
    TIME_BASED_REQUEST_ON_NON_TIME_BASED_INSTANCE = 0xAA03
    INVALID_REQUEST = 0xAA04
    COERCION_OF_DATA_ELEMENTS = 0xB000
    """C-MOVE and C-GET: sub-operations complete, one or more failures or warnings."""
    MORE_MATCHES_AVAILABLE = 0xB001
    ELEMENTS_DISCARDED = 0xB006
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS_WARNING = 0xB007
    """Stored all the same."""
    CANNOT_UNDERSTAND = 0xC000
    """C-FIND, C-MOVE and C-GET: unable to process."""
    MORE_THAN_ONE_MATCH_FOUND = 0xC100
    TEMPLATE_NOT_SUPPORTED = 0xC200


class StatusClass(Enum):
    """PS3.7 §C.1 to C.5."""

    SUCCESS = auto()
    WARNING = auto()
    FAILURE = auto()
    CANCEL = auto()
    PENDING = auto()


_NOT_A_RANGE: dict[int, StatusClass] = {
    Status.SUCCESS: StatusClass.SUCCESS,
    Status.PENDING: StatusClass.PENDING,
    Status.PENDING_WARNING: StatusClass.PENDING,
    Status.CANCEL: StatusClass.CANCEL,
    Status.REQUESTED_OPTIONAL_ATTRIBUTES_NOT_SUPPORTED: StatusClass.WARNING,
    Status.ATTRIBUTE_LIST_ERROR: StatusClass.WARNING,
    Status.ATTRIBUTE_VALUE_OUT_OF_RANGE: StatusClass.WARNING,
}


def classify(status: int) -> StatusClass:
    """The class of any code. A code of no class is a failure: what it was about cannot be counted as done."""
    if status & 0xF000 == 0xB000:
        return StatusClass.WARNING
    return _NOT_A_RANGE.get(status, StatusClass.FAILURE)


_OWN_WORDS = {
    Status.PENDING_WARNING: "Pending: optional keys not supported",
    Status.REQUESTED_OPTIONAL_ATTRIBUTES_NOT_SUPPORTED: (
        "Warning: requested optional attributes not supported"
    ),
    Status.ATTRIBUTE_LIST_ERROR: "Warning: attribute list error",
    Status.ATTRIBUTE_VALUE_OUT_OF_RANGE: "Warning: attribute value out of range",
    Status.DUPLICATE_SOP_INSTANCE: "Duplicate SOP instance",
    Status.NO_SUCH_SOP_INSTANCE: "No such SOP instance",
    Status.INVALID_SOP_INSTANCE: "Invalid SOP instance",
    Status.NO_SUCH_SOP_CLASS: "No such SOP class",
    Status.CLASS_INSTANCE_CONFLICT: "Class-instance conflict",
    Status.SOP_CLASS_NOT_SUPPORTED: "Refused: SOP class not supported",
    Status.NOT_AUTHORIZED: "Refused: not authorized",
    Status.DUPLICATE_TRANSACTION_UID: "Duplicate transaction UID",
    Status.OUT_OF_RESOURCES: "Refused: out of resources",
    Status.OUT_OF_RESOURCES_UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES: (
        "Refused: out of resources, unable to calculate number of matches"
    ),
    Status.OUT_OF_RESOURCES_UNABLE_TO_PERFORM_SUB_OPERATIONS: (
        "Refused: out of resources, unable to perform sub-operations"
    ),
    Status.MOVE_DESTINATION_UNKNOWN: "Refused: move destination unknown",
    Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS: "Error: data set or identifier does not match SOP class",
    Status.COERCION_OF_DATA_ELEMENTS: "Warning: coercion of data elements, or sub-operations with failures",
    Status.MORE_MATCHES_AVAILABLE: "Warning: more matches available",
    Status.ELEMENTS_DISCARDED: "Warning: elements discarded",
    Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS_WARNING: "Warning: data set does not match SOP class",
    Status.CANNOT_UNDERSTAND: "Error: cannot understand, or unable to process",
}
"""Where the member's name, in lower case, would not say it as the standard does."""

_RANGES = (
    (0xFF00, 0xA700, "Refused: out of resources"),
    (0xFF00, 0xA900, "Error: data set or identifier does not match SOP class"),
    (0xF000, 0xA000, "Failure"),
    (0xF000, 0xB000, "Warning"),
    (0xF000, 0xC000, "Error: cannot understand, or unable to process"),
    (0xFF00, 0x0100, "Failure"),
    (0xFF00, 0x0200, "Failure"),
)


@lru_cache(maxsize=256)  # for every object that is sent, and nearly always the same
def describe_status(status: int) -> str:
    """One line for logs and errors: the code in hexadecimal and what it means."""
    try:
        known = Status(status)
    except ValueError:
        text = next((name for mask, value, name in _RANGES if status & mask == value), "Unknown status")
    else:
        text = _OWN_WORDS.get(known) or known.name.replace("_", " ").capitalize()
    return f"0x{status:04X} {text}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation came to: a status and the elements that may explain it (PS3.7 Annex C)."""

    status: int
    error_comment: str = ""
    """(0000,0902). Encoding cuts it to 64 characters of the default repertoire. Never patient data."""
    offending_elements: tuple[int, ...] = ()
    """(0000,0901), tags as 32-bit numbers: 0x00100020 is (0010,0020)."""

    @property
    def status_class(self) -> StatusClass:
        return classify(self.status)

    @property
    def is_success(self) -> bool:
        """Exactly 0x0000; a warning is not a success."""
        return self.status == Status.SUCCESS


SUCCESS_OUTCOME = Outcome(Status.SUCCESS)


class DimseError(Exception):
    """The service says no, with this status: ours from a handler or sink, the peer's from the SCU."""

    def __init__(
        self, status: int, error_comment: str = "", offending_elements: tuple[int, ...] = ()
    ) -> None:
        comment = f": {error_comment}" if error_comment else ""
        super().__init__(describe_status(status) + comment)
        self.outcome = Outcome(status, error_comment, tuple(offending_elements))

    @property
    def status(self) -> int:
        return self.outcome.status
