"""What the peers of faults send, as bytes, put together by hand (PS3.8 §9.3, PS3.7 §6.3)."""

from __future__ import annotations

import struct

from tests.faults.program import CT, IMPLICIT, element, uid

STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
VERIFICATION = "1.2.840.10008.1.1"

RELEASE_RQ = bytes.fromhex("05 00 00000004 00000000")
ABORT = bytes.fromhex("07 00 00000004 00 00 00 00")
STORE, FIND, GET, ECHO = 1, 3, 5, 7
"""Presentation contexts of `associate_rq`."""


def pdu(pdu_type: int, body: bytes) -> bytes:
    return struct.pack(">BBI", pdu_type, 0, len(body)) + body


def item(item_type: int, body: bytes) -> bytes:
    return struct.pack(">BBH", item_type, 0, len(body)) + body


def associate_rq(called: bytes = b"GATEWAY") -> bytes:
    contexts = ((STORE, CT), (FIND, STUDY_ROOT_FIND), (GET, STUDY_ROOT_GET), (ECHO, VERIFICATION))
    proposed = b"".join(
        item(0x20, bytes((number, 0, 0, 0)) + item(0x30, syntax.encode()) + item(0x40, IMPLICIT.encode()))
        for number, syntax in contexts
    )
    role = item(0x54, struct.pack(">H", len(CT)) + CT.encode() + b"\1\1")
    user = item(0x50, item(0x51, b"\0\0\x40\0") + item(0x52, b"1.2.3") + role)
    head = b"\0\1\0\0" + called.ljust(16) + b"FAULT".ljust(16) + bytes(32)
    return pdu(1, head + item(0x10, b"1.2.840.10008.3.1.1.1") + proposed + user)


def p_data(fragment: bytes, *, context_id: int = STORE, control: int) -> bytes:
    """One PDV. control: 1 command, 2 last."""
    return pdu(4, struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment)


def command(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return element(0x00000000, len(body).to_bytes(4, "little")) + body


def us(tag: int, value: int) -> bytes:
    return element(tag, value.to_bytes(2, "little"))


def c_echo_rq() -> bytes:
    rq = command(
        element(0x00000002, uid(VERIFICATION)),
        us(0x00000100, 0x0030),
        us(0x00000110, 1),
        us(0x00000800, 0x0101),
    )
    return p_data(rq, context_id=ECHO, control=3)


def c_store_rq(sop_instance_uid: str, data_set: bytes) -> bytes:
    """The message in one PDU for the command and as many as are needed for the data set."""
    rq = command(
        element(0x00000002, uid(CT)),
        us(0x00000100, 0x0001),
        us(0x00000110, 1),
        us(0x00000700, 0),
        us(0x00000800, 0x0001),
        element(0x00001000, uid(sop_instance_uid)),
    )
    pieces = [data_set[start : start + 16_000] for start in range(0, len(data_set), 16_000)]
    return p_data(rq, control=3) + b"".join(
        p_data(piece, control=2 if piece is pieces[-1] else 0) for piece in pieces
    )


def study_rq(context_id: int, sop_class: str, operation: int, study: str) -> bytes:
    """A C-FIND-RQ (0x0020) or C-GET-RQ (0x0010) for a study."""
    rq = command(
        element(0x00000002, uid(sop_class)),
        us(0x00000100, operation),
        us(0x00000110, 1),
        us(0x00000700, 0),
        us(0x00000800, 0x0001),
    )
    keys = element(0x00080052, b"STUDY ") + element(0x0020000D, uid(study))
    return p_data(rq, context_id=context_id, control=3) + p_data(keys, context_id=context_id, control=2)


def c_get_rq(study: str) -> bytes:
    return study_rq(GET, STUDY_ROOT_GET, 0x0010, study)


def c_find_rq(study: str) -> bytes:
    return study_rq(FIND, STUDY_ROOT_FIND, 0x0020, study)
