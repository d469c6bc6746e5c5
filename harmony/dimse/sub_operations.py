"""The accounts of a C-GET or C-MOVE: sub-operations by outcome, the final status, the list of what failed.

PS3.4 §C.4.2.1.6-8 and §C.4.3.1.4 count each C-STORE sub-operation as completed, failed or with a warning, and derive
the final status from the counts (Table in `SubOperations.final_status`). Failed SOP Instance UID List (0008,0058) is
the only attribute that the engine writes or reads in a data set; it does so by hand, in the transfer syntax of the
presentation context.

No I/O here. Called by `retrieve_scp`, which counts, and by `retrieve`, which reads the list.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from harmony.dimse.sop_class import EXPLICIT_VR_BIG_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from harmony.dimse.status import Status, StatusClass, classify

__all__ = [
    "Counters",
    "SubOperations",
    "decode_failed_sop_instance_uids",
    "encode_failed_sop_instance_uids",
]

logger = logging.getLogger("harmony.dimse")

FAILED_LIST_LIMIT: Final = 960 * 1024
"""Bytes of the list we send, some 15000 UIDs: receivers that collect data sets of 1 MiB, like our own, take it."""

_GROUP: Final = 0x0008
_FAILED_SOP_INSTANCE_UID_LIST: Final = 0x0058
_SHORT_LENGTH_LIMIT: Final = 0xFFFE
_UNDEFINED_LENGTH: Final = 0xFFFFFFFF
_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


@dataclass(frozen=True, slots=True)
class Counters:
    """Numbers of sub-operations, (0000,1020) to (0000,1023); None where the peer did not say, or nobody knows."""

    remaining: int | None
    completed: int | None
    failed: int | None
    warning: int | None


class SubOperations:
    """The sub-operations of one retrieve, counted as they end.

    expected: the SOP Instance UIDs of all of them, when known; total: their number, when only that is known. Then the
    counts always add up to it, and what never gets its turn can be listed as failed.
    """

    def __init__(self, *, expected: Iterable[str] | None = None, total: int | None = None) -> None:
        self.completed = 0
        self.warning = 0
        self.failed_sop_instance_uids: list[str] = []
        self._unlisted_failures = 0
        self._expected: dict[str, int] | None = None
        self._total = total
        if expected is not None:
            self._expected = {}
            self._total = 0
            for uid in expected:
                self._total += 1
                self._expected[uid] = self._expected.get(uid, 0) + 1

    @property
    def failed(self) -> int:
        return len(self.failed_sop_instance_uids) + self._unlisted_failures

    @property
    def done(self) -> int:
        return self.completed + self.failed + self.warning

    @property
    def remaining(self) -> int | None:
        """None when the total is not known."""
        return None if self._total is None else max(0, self._total - self.done)

    def counters(self) -> Counters:
        return Counters(self.remaining, self.completed, self.failed, self.warning)

    def count(self, sop_instance_uid: str, status: int) -> None:
        """A sub-operation has ended with the status of its C-STORE-RSP, or one that stands for it."""
        match classify(status):
            case StatusClass.SUCCESS:
                self.completed += 1
            case StatusClass.WARNING:
                self.warning += 1
            case _:
                self.failed_sop_instance_uids.append(sop_instance_uid)
        if self._expected is not None and self._total is not None:
            left = self._expected.get(sop_instance_uid, 0)
            if left > 1:
                self._expected[sop_instance_uid] = left - 1
            elif left:
                del self._expected[sop_instance_uid]
            else:
                self._total += 1  # one more than was announced, not instead of another

    def fail_remaining(self) -> None:
        """What has not had its turn never will: it counts as failed, and is listed as far as its UIDs are known."""
        remaining = self.remaining or 0
        if self._expected is not None:
            uids = [uid for uid, times in self._expected.items() for _ in range(times)][:remaining]
            self.failed_sop_instance_uids += uids
            self._expected.clear()
            remaining -= len(uids)
        self._unlisted_failures += remaining

    def final_status(self) -> Status:
        """PS3.4 Tables C.4-2 and C.4-3, for a retrieve that was not cancelled.

        | completed | warning | failed | |
        |---|---|---|---|
        | any | 0 | 0 | 0000 Success, also for no sub-operations at all |
        | 0 | 0 | >0 | A702 Refused: unable to perform sub-operations |
        | otherwise | | | B000 Warning: one or more failures or warnings |
        """
        if not self.failed and not self.warning:
            return Status.SUCCESS
        if not self.completed and not self.warning:
            return Status.OUT_OF_RESOURCES_UNABLE_TO_PERFORM_SUB_OPERATIONS
        return Status.COERCION_OF_DATA_ELEMENTS


# --- Failed SOP Instance UID List (0008,0058), VR UI, VM 1-n ------------------------------------------


def encode_failed_sop_instance_uids(uids: Iterable[str], transfer_syntax_uid: str) -> bytes:
    """A data set with nothing but the list, in a native transfer syntax (Implicit VR, or Explicit VR of either order).

    Explicit VR has 16 bits for the length of a UI; a longer value becomes UN with 32 bits, as PS3.5 §6.2.2 has it. UIDs
    beyond FAILED_LIST_LIMIT are left out, which is logged; the counters still count them.
    """
    value = "\\".join(uids).encode("latin-1", "replace")
    if len(value) > FAILED_LIST_LIMIT:
        value = value[: value.rindex(b"\\", 0, FAILED_LIST_LIMIT)]
        logger.warning("the list of failed SOP Instances ends after %d UIDs", value.count(b"\\") + 1)
    value += b"\0" * (len(value) & 1)
    tag = (_GROUP, _FAILED_SOP_INSTANCE_UID_LIST)
    if transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN:
        return Struct("<HHL").pack(*tag, len(value)) + value
    order = ">" if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else "<"
    if len(value) <= _SHORT_LENGTH_LIMIT:
        return Struct(order + "HH2sH").pack(*tag, b"UI", len(value)) + value
    return Struct(order + "HH2sxxL").pack(*tag, b"UN", len(value)) + value


def decode_failed_sop_instance_uids(data_set: bytes, transfer_syntax_uid: str) -> tuple[str, ...]:
    """The UIDs of the list in a final response's data set; empty when there is none, or it cannot be found.

    A retrieve is not to fail because its last words are garbled: whatever is wrong ends the search.
    """
    for group, element, value in _elements(data_set, transfer_syntax_uid):
        if (group, element) == (_GROUP, _FAILED_SOP_INSTANCE_UID_LIST):
            texts = (part.strip(b"\0 ").decode("latin-1") for part in value.split(b"\\"))
            return tuple(text for text in texts if text)
        if group > _GROUP:
            break
    return ()


def _elements(data_set: bytes, transfer_syntax_uid: str) -> Iterator[tuple[int, int, bytes]]:
    """Elements from the start as far as they have a defined length and are whole."""
    order = ">" if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else "<"
    explicit = transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN
    implicit_header, short_header = Struct(order + "HHL"), Struct(order + "HH2sH")
    long_length = Struct(order + "L")
    position = 0
    while position + 8 <= len(data_set):
        if explicit:
            group, element, vr, length = short_header.unpack_from(data_set, position)
            position += 8
            if vr in _LONG_VRS:
                if position + 4 > len(data_set):
                    return
                (length,) = long_length.unpack_from(data_set, position)
                position += 4
        else:
            group, element, length = implicit_header.unpack_from(data_set, position)
            position += 8
        if length == _UNDEFINED_LENGTH or position + length > len(data_set):
            return
        yield group, element, data_set[position : position + length]
        position += length
