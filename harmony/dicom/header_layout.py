"""Recognise the beginning of a data set that is laid out like an earlier one (PS3.5 §7), without stepping through it.

The objects of a series have the same elements at the same places, up to their Series Instance UID and mostly beyond;
few values before that differ. A `HeaderLayout` remembers one such beginning and compares the next with it, all but the
SOP Instance UID and the values that were seen to differ: what a `HeaderScanner` would find there is then what it found
here. Where the headers of elements differ, there is no telling, and the scanner is asked.

Only what nearly all data sets are: little endian, not deflated, no sequence of undefined length in front of the Series
Instance UID. Called by `harmony.archive` per object.
"""

from __future__ import annotations

from typing import Final

from harmony.dicom.scanner import HeaderScanner
from harmony.dicom.vr import IMPLICIT_HEADER, KNOWN_VRS, LITTLE_ENDIAN

__all__ = ["IDENTIFYING", "SERIES", "SOP_CLASS", "SOP_INSTANCE", "STUDY", "HeaderLayout"]

SOP_CLASS, SOP_INSTANCE, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
IDENTIFYING: Final = frozenset((SOP_CLASS, SOP_INSTANCE, STUDY, SERIES))
"""What the archive wants to know of an object."""

MAXIMUM_VARIABLE_VALUES: Final = 16
"""Where more differ, comparing takes as long as scanning."""

_UNDEFINED: Final = 0xFFFFFFFF
_PREAMBLE_END, _START_BYTES = 128, 134
"""A scanner looks here for the prefix of a file, which may be inside of a value."""
_FILE_PREFIX: Final = b"DICM\x02\x00"


class HeaderLayout:
    """The beginning of one data set, and where another may differ from it."""

    __slots__ = (
        "_constants",
        "_elements",
        "_head",
        "_variables",
        "end",
        "instance_at",
        "instance_end",
        "values",
    )

    def __init__(
        self, head: bytes, elements: tuple[tuple[int, int, int], ...], variables: frozenset[int]
    ) -> None:
        """head: up to the end of the Series Instance UID. variables: indexes of elements that may differ."""
        self._head = head
        self._elements = elements
        self._variables = variables
        self.values = {tag: head[start:end] for tag, start, end in elements if tag in IDENTIFYING}
        """Value fields of the identifying elements, as in this data set."""
        self.end = len(head)
        """Bytes up to which data sets are compared."""
        self.instance_at, self.instance_end = next(
            place[1:] for place in elements if place[0] == SOP_INSTANCE
        )
        constants = []
        at = 0
        for number, (tag, start, end) in enumerate(elements):
            if tag == SOP_INSTANCE or number in variables:
                constants.append((at, head[at:start]))
                at = end
        constants.append((at, head[at:]))
        self._constants = tuple(constants)

    @classmethod
    def of(cls, data_set: memoryview, scanner: HeaderScanner) -> HeaderLayout | None:
        """The layout of a data set that was scanned for `IDENTIFYING`; None when it cannot be compared with."""
        if scanner.data_set_offset != 0 or scanner.failed or len(scanner.values) < len(IDENTIFYING):
            return None
        elements = _walk(data_set)
        if elements is None or elements[-1][2] < _START_BYTES:
            return None
        layout = cls(bytes(data_set[: elements[-1][2]]), elements, frozenset())
        return layout if layout.values == scanner.values else None

    def matches(self, head: bytes) -> bool:
        """Tell whether a data set is laid out like this one, and identified by the same UIDs but for its own.

        head: its first `end` bytes. The SOP Instance UID is then what is at `instance_at`.
        """
        for at, constant in self._constants:
            if not head.startswith(constant, at):
                return False
        return len(head) == self.end and head[_PREAMBLE_END:_START_BYTES] != _FILE_PREFIX

    def widened(self, newer: HeaderLayout) -> HeaderLayout:
        """The layout that has what differs in a newer one as variable, or the newer one when it is too different."""
        mine, its = self._head, newer._head
        if self._elements != newer._elements:
            return newer
        variables = self._variables | {
            number
            for number, (tag, start, end) in enumerate(self._elements)
            if tag not in IDENTIFYING and mine[start:end] != its[start:end]
        }
        if len(variables) > MAXIMUM_VARIABLE_VALUES:
            return newer
        return HeaderLayout(its, newer._elements, variables)


def _walk(data_set: memoryview) -> tuple[tuple[int, int, int], ...] | None:
    """Tag, start and end of the value of each element up to the Series Instance UID.

    None where they do not simply follow each other, or end before it.
    """
    explicit = bytes(data_set[4:6]) in KNOWN_VRS
    elements = []
    at, size, last = 0, len(data_set), -1
    while last < SERIES:
        if at + 12 > size:
            return None
        group, element, length = IMPLICIT_HEADER(data_set, at)
        value = at + 8
        if explicit:
            vr, length = LITTLE_ENDIAN.header(data_set, at)[2:]
            if vr not in LITTLE_ENDIAN.short:
                if vr not in LITTLE_ENDIAN.long:
                    return None
                value, length = at + 12, LITTLE_ENDIAN.length(data_set, at + 8)[0]
        tag = group << 16 | element
        at = value + length
        if length == _UNDEFINED or tag <= last or at > size:
            return None
        elements.append((tag, value, at))
        last = tag
    return tuple(elements) if last == SERIES else None
