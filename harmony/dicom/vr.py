"""Value representations as they show in element headers (PS3.5 §7.1.2): which length field follows, in
either byte order.

An explicit header is `group element VR length` with a 16-bit length for the older VRs, and `group element VR
0000 length` with a 32-bit one for the others. Only that is here, as tables for the scanner; what the VRs
mean is not.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Literal, TypeAlias

__all__ = ["BIG_ENDIAN", "IMPLICIT_HEADER", "KNOWN_VRS", "LITTLE_ENDIAN", "Buffer", "ExplicitEncoding"]

Buffer: TypeAlias = memoryview | bytearray
Unpack: TypeAlias = Callable[[Buffer, int], tuple[int, ...]]

# PS3.5 Table 7.1-2 and Table 7.1-1.
_SHORT_VRS = "AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()  # noqa: SIM905 (a table)
_LONG_VRS = "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()  # noqa: SIM905
KNOWN_VRS = frozenset(vr.encode() for vr in _SHORT_VRS + _LONG_VRS)

IMPLICIT_HEADER: Unpack = Struct("<HHI").unpack_from
"""Group, element, length of an Implicit VR Little Endian element (PS3.5 §7.1.3)."""

_LETTERS = range(ord("A"), ord("Z") + 1)
_PRINTABLE = range(0x20, 0x7F)


class ExplicitEncoding:
    """Explicit VR in one byte order. VRs are compared as 16-bit integers, as they come out of `header`."""

    def __init__(self, byteorder: Literal["little", "big"]) -> None:
        order = "<" if byteorder == "little" else ">"
        self.header: Unpack = Struct(order + "HHHH").unpack_from
        """Group, element, VR, and the 16-bit length if the VR has one."""
        self.item: Unpack = Struct(order + "HHI").unpack_from
        """Group, element, length of an item or delimiter, which carry no VR (PS3.5 §7.5)."""
        self.length: Unpack = Struct(order + "I").unpack_from
        self.un = int.from_bytes(b"UN", byteorder)
        self.short = frozenset(int.from_bytes(vr.encode(), byteorder) for vr in _SHORT_VRS)
        """VRs with a 16-bit length."""
        # VRs of later editions of the standard have a 32-bit length too: any other two capital letters.
        self.long = frozenset(first << 8 | second for first in _LETTERS for second in _LETTERS) - self.short
        """VRs with a 32-bit length."""
        # Toolkits write `??` or blanks for private elements of unknown VR, some old writers NUL NUL, all
        # with a 16-bit length. Any other two bytes are half the length of an element that is really implicit.
        text = frozenset(first << 8 | second for first in _PRINTABLE for second in _PRINTABLE)
        self._odd = (text | {0}) - self.short - self.long

    def unusual_header(self, data: Buffer, at: int, end: int) -> tuple[int, int] | None:
        """Read a header whose VR is not in `short`, at least 8 bytes of which are there.

        Returns (index of the value, length), or None when 12 bytes are needed and `end` comes before.
        """
        _, _, vr, length = self.header(data, at)
        if vr in self.long:
            return None if end - at < 12 else (at + 12, self.length(data, at + 8)[0])
        if vr in self._odd:
            return at + 8, length
        return at + 8, self.length(data, at + 4)[0]


LITTLE_ENDIAN = ExplicitEncoding("little")
BIG_ENDIAN = ExplicitEncoding("big")
