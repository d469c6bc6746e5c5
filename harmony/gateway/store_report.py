"""What became of the instances of a store over HTTP: the Store Instances Response Module, and the status that goes with
it (PS3.18 §10.5.3, Annex I).

    200  every instance was stored, without warnings
    202  some were not, or some with a warning
    400  none was, and what came was no DICOM at all
    409  none was: failure reasons say why
    507  none was, because there is no room

Each entry is kept encoded, some 300 bytes, as a body may have very many instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from harmony.dicom.json_model import Element, Model
from harmony.dicom.uid import MAXIMUM_UID_LENGTH
from harmony.dimse.status import Outcome, Status
from harmony.http import Response

__all__ = ["SOPInstance", "StoreReport"]

_SOP_CLASS, _SOP_INSTANCE = "00081150", "00081155"
_RETRIEVE_URL = "00081190"
_WARNING_REASON, _FAILURE_REASON = "00081196", "00081197"
_FAILED, _REFERENCED, _OTHER_FAILURES = "00081198", "00081199", "0008119A"


@dataclass(frozen=True, slots=True)
class SOPInstance:
    """Which instance. UIDs are as they came: empty, or no UIDs at all, when the instance is to blame."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str = ""
    series_instance_uid: str = ""


class StoreReport:
    """root: the URL of the service, without a trailing slash, in front of `/studies`."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._studies: set[str] = set()
        self._stored: list[bytes] = []
        self._failed: list[bytes] = []
        self._other: list[bytes] = []
        self._warnings = 0
        self._full = 0

    def __repr__(self) -> str:
        return f"<StoreReport {len(self._stored)} stored, {len(self._failed) + len(self._other)} not>"

    @property
    def has_stored(self) -> bool:
        return bool(self._stored)

    @property
    def is_empty(self) -> bool:
        """Nothing has been said yet."""
        return not (self._stored or self._failed or self._other)

    def stored(self, instance: SOPInstance, outcome: Outcome) -> None:
        """With a status that is no failure."""
        study = f"{self._root}/studies/{instance.study_instance_uid}"
        url = f"{study}/series/{instance.series_instance_uid}/instances/{instance.sop_instance_uid}"
        item = _reference(instance) | {_RETRIEVE_URL: {"vr": "UR", "Value": [url]}}
        if not outcome.is_success:
            item[_WARNING_REASON] = _reason(outcome.status)
            self._warnings += 1
        self._stored.append(msgspec.json.encode(item))
        self._studies.add(study)

    def failed(self, instance: SOPInstance, status: int) -> None:
        self._full += status & 0xFF00 == Status.OUT_OF_RESOURCES
        self._failed.append(msgspec.json.encode(_reference(instance) | {_FAILURE_REASON: _reason(status)}))

    def failed_unnamed(self, status: int) -> None:
        """What cannot even be said to be an instance."""
        self._other.append(msgspec.json.encode({_FAILURE_REASON: _reason(status)}))

    def status(self) -> int:
        if self._stored:
            return 202 if self._failed or self._other or self._warnings else 200
        if not self._failed:
            return 400
        return 507 if self._full == len(self._failed) + len(self._other) else 409

    def response(self) -> Response:
        study = {"Value": [next(iter(self._studies))]} if len(self._studies) == 1 else {}
        content: dict[str, object] = {_RETRIEVE_URL: {"vr": "UR"} | study}
        for tag, items in (
            (_FAILED, self._failed),
            (_REFERENCED, self._stored),
            (_OTHER_FAILURES, self._other),
        ):
            if items:
                content[tag] = _sequence(items)
        body = msgspec.json.encode(content)
        return Response(self.status(), {"Content-Type": "application/dicom+json"}, body)


def _reference(instance: SOPInstance) -> Model:
    return {
        _SOP_CLASS: _uid(instance.sop_class_uid),
        _SOP_INSTANCE: _uid(instance.sop_instance_uid),
    }


def _uid(uid: str) -> Element:
    return {"vr": "UI", "Value": [uid[:MAXIMUM_UID_LENGTH]]} if uid else {"vr": "UI"}


def _reason(status: int) -> Element:
    return {"vr": "US", "Value": [status]}


def _sequence(items: Sequence[bytes]) -> dict[str, object]:
    return {"vr": "SQ", "Value": [msgspec.Raw(item) for item in items]}
