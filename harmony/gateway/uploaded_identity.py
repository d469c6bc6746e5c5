"""Which instance an upload is: the UIDs in its data set, read while the rest of it is still to come.

Where an instance belongs is decided by its data set and not by its file meta, so a store over HTTP looks before it
stores: the data set is held back until (0020,000E) has passed, and then goes on as it came.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import replace
from typing import Final

from harmony.dicom.scanner import HeaderScanner
from harmony.dicom.uid import is_valid_uid
from harmony.dimse.scu import Instance
from harmony.dimse.status import DimseError, Status
from harmony.gateway.store_report import SOPInstance

__all__ = ["identify", "require_identity"]

_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_IDENTIFYING: Final = frozenset((_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES))

MAXIMUM_HELD_BYTES = 4 * 1024 * 1024
"""Of a data set before its Series Instance UID. Real ones have some kilobytes there, or an icon."""


async def identify(instance: Instance) -> tuple[Instance, SOPInstance]:
    """The same instance, to be stored instead of the one given, and what its data set says that it is.

    What the data set does not say is empty, or as the file meta says. The data are chunks that arrive; whoever closes
    anything closes those of the instance given. Raises what reading them raises.
    """
    assert isinstance(instance.data, AsyncIterable)
    scanner = HeaderScanner(instance.transfer_syntax_uid, _IDENTIFYING)
    chunks = aiter(instance.data)
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if scanner.feed(memoryview(chunk)) or len(held) > MAXIMUM_HELD_BYTES:
            break
    else:
        scanner.finish()
    found = SOPInstance(
        scanner.text(_SOP_CLASS) or instance.sop_class_uid,
        scanner.text(_SOP_INSTANCE) or instance.sop_instance_uid,
        scanner.text(_STUDY),
        scanner.text(_SERIES),
    )
    return replace(instance, data=_whole(bytes(held), chunks)), found


def require_identity(found: SOPInstance, instance: Instance, *, study_uid: str | None) -> None:
    """Raises DimseError when the instance cannot be stored: it would not be found, or does not belong here.

    study_uid: of the study that it must belong to; None: any.
    """
    for tag, uid in (
        (_SOP_CLASS, found.sop_class_uid),
        (_SOP_INSTANCE, found.sop_instance_uid),
        (_STUDY, found.study_instance_uid),
        (_SERIES, found.series_instance_uid),
    ):
        if not is_valid_uid(uid):
            what = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is missing or no UID"
            raise DimseError(Status.CANNOT_UNDERSTAND, what, (tag,))
    if found.sop_class_uid != instance.sop_class_uid:
        raise DimseError(
            Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "not the class of the file meta", (_SOP_CLASS,)
        )
    if study_uid is not None and found.study_instance_uid != study_uid:
        raise DimseError(
            Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "belongs to another study than the request", (_STUDY,)
        )


async def _whole(
    held: bytes, rest: AsyncIterator[bytes | memoryview]
) -> AsyncGenerator[bytes | memoryview, None]:
    yield held
    async for chunk in rest:
        yield chunk
