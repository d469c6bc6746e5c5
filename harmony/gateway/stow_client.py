"""What a DICOMweb server says of a store, as the status of a C-STORE (PS3.18 §10.5.3, PS3.4 §B.2.3).

The response names the instance in its Referenced or its Failed SOP Sequence, with a reason that is a status already.
Without one the HTTP status decides:

    2xx        0000
    400        A900
    401, 403   0124
    413, 429, 503, 507
               A700: not now, or not there
    any other  C000; 409 as well, since nothing was stored (PS3.18 §10.5.3.1), and a warning would say that it was
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from harmony.dicom.json_model import Model, text_of, values_of
from harmony.dimse.status import Outcome, Status, StatusClass, classify

__all__ = ["refusal", "store_outcome"]

SOP_INSTANCE: Final = 0x00081155
WARNING_REASON, FAILURE_REASON = 0x00081196, 0x00081197
FAILED, REFERENCED, OTHER_FAILURES = 0x00081198, 0x00081199, 0x0008119A

_BY_HTTP_STATUS: Final = {
    400: Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
    401: Status.NOT_AUTHORIZED,
    403: Status.NOT_AUTHORIZED,
    413: Status.OUT_OF_RESOURCES,
    429: Status.OUT_OF_RESOURCES,
    503: Status.OUT_OF_RESOURCES,
    507: Status.OUT_OF_RESOURCES,
}


def refusal(http_status: int) -> Status:
    """The DIMSE status of an answer that is no success."""
    return _BY_HTTP_STATUS.get(http_status, Status.CANNOT_UNDERSTAND)


def store_outcome(http_status: int, body: bytes, sop_instance_uid: str) -> Outcome:
    """What became of the one instance of a request."""
    comment = f"the DICOMweb server answered {http_status}"
    response = _decoded(body)
    for item in _items(response, FAILED, sop_instance_uid):
        return Outcome(_reason(item, FAILURE_REASON, StatusClass.FAILURE, http_status), comment)
    if not 200 <= http_status < 300:
        for item in _items(response, OTHER_FAILURES, ""):
            return Outcome(_reason(item, FAILURE_REASON, StatusClass.FAILURE, http_status), comment)
        return Outcome(refusal(http_status), comment)
    for item in _items(response, REFERENCED, sop_instance_uid):
        if values_of(item, WARNING_REASON):
            return Outcome(_reason(item, WARNING_REASON, StatusClass.WARNING, http_status), comment)
        return Outcome(Status.SUCCESS)
    for item in _items(response, OTHER_FAILURES, ""):
        return Outcome(_reason(item, FAILURE_REASON, StatusClass.FAILURE, http_status), comment)
    return Outcome(Status.SUCCESS)


def _decoded(body: bytes) -> Model:
    """Servers that are none say something else."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(decoded, list):
        decoded = decoded[0] if len(decoded) == 1 else {}
    return (
        {key: each for key, each in decoded.items() if isinstance(each, dict)}
        if isinstance(decoded, dict)
        else {}
    )


def _items(response: Model, tag: int, sop_instance_uid: str) -> Iterator[Model]:
    """Those about the instance; of one that is not named there is only one request that it can be about."""
    values = values_of(response, tag)
    for item in values if isinstance(values, list) else []:
        if isinstance(item, dict) and all(isinstance(each, dict) for each in item.values()):
            named = text_of(item, SOP_INSTANCE)
            if not named or not sop_instance_uid or named == sop_instance_uid:
                yield item


def _reason(item: Model, tag: int, wanted: StatusClass, http_status: int) -> int:
    """The status in an item, where it is one of the class."""
    for value in values_of(item, tag):
        known = isinstance(value, int | str) and str(value).isdecimal() and int(value) <= 0xFFFF
        if known and classify(int(value)) is wanted:
            return int(value)
    if wanted is StatusClass.WARNING:
        return Status.COERCION_OF_DATA_ELEMENTS
    found = refusal(http_status)
    return Status.PROCESSING_FAILURE if classify(found) is not StatusClass.FAILURE else found
