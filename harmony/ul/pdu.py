"""The seven PDUs of PS3.8 §9.3: one frozen class each, used for sending and for receiving.

`encode` gives a whole PDU with its six-byte header and refuses what the standard does not allow. `decode`
takes the body of a complete PDU and is as tolerant as PS3.8 §9.3.1 and the field demand: reserved fields are
never tested, unknown items are skipped, AE titles and UIDs are taken as they come; only a structure that
contradicts itself is an error. Time and memory are linear in the length of the body, which the caller has
limited before reading it.

No state and no judgement of values here: see `harmony.ul.state` and `harmony.ul.negotiation`. The P-DATA-TF
of a living association are parsed in place by `harmony.ul.upper_layer`; `PDataTF` is for whoever holds a
whole PDU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct

from harmony.ul.errors import LocalProtocolError, RemoteProtocolError
from harmony.ul.items import (
    APPLICATION_CONTEXT_NAME,
    PDU_HEADER_SIZE,
    ContextResult,
    ContextResultCode,
    ProposedContext,
    UserInformation,
    check_unsigned,
    decode_context_result,
    decode_proposed_context,
    decode_uid,
    decode_user_information,
    encode_uid_item,
    walk_items,
)

__all__ = [
    "PDU",
    "Abort",
    "AssociateAC",
    "AssociateRJ",
    "AssociateRQ",
    "PDUType",
    "PDataTF",
    "PresentationDataValue",
    "ReleaseRP",
    "ReleaseRQ",
    "decode",
    "describe_abort",
    "describe_rejection",
    "describe_rejection_reason",
]

MAXIMUM_PROPOSED_CONTEXTS = 128
"""Odd IDs 1 to 255 (PS3.8 §9.3.2.2)."""

MAXIMUM_RECEIVED_CONTEXTS = 256
"""IDs have 8 bits; a PDU with more contexts can only repeat itself, and each would have to be answered."""

_HEADER = Struct(">BxI")  # type, reserved, length
_FIXED_FIELDS = Struct(">HH64s")  # protocol version, reserved, both AE titles and 32 reserved bytes
_PDV_HEADER = Struct(">IBB")  # item length, presentation context ID, message control header

_AE_TITLE_SIZE = 16
_NO_USER_INFORMATION = UserInformation()
_BLANK_ADDRESS_FIELDS = b" " * 32 + bytes(32)


class PDUType(IntEnum):
    """The first byte of every PDU (PS3.8 §9.3.1)."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


@dataclass(frozen=True, slots=True)
class AssociateRQ:
    """A-ASSOCIATE-RQ (PS3.8 §9.3.2). Received AE titles are without padding, of any bytes (latin-1)."""

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[ProposedContext, ...]
    user_information: UserInformation = _NO_USER_INFORMATION
    application_context_name: str = APPLICATION_CONTEXT_NAME
    """Empty when the peer sent no item 0x10."""
    protocol_version: int = 1
    """A bit set: test bit 0 only."""
    address_fields: bytes = field(default=b"", repr=False, compare=False)
    """Bytes 10 to 73 as received (titles, reserved), for the A-ASSOCIATE-AC to repeat; not encoded."""

    def encode(self) -> bytes:
        contexts = self.presentation_contexts
        if not 1 <= len(contexts) <= MAXIMUM_PROPOSED_CONTEXTS:
            raise LocalProtocolError(f"{len(contexts)} presentation contexts, expected 1 to 128")
        _check_unique(context.presentation_context_id for context in contexts)
        called = _encode_ae_title("called", self.called_ae_title)
        calling = _encode_ae_title("calling", self.calling_ae_title)
        return _encode_associate(PDUType.ASSOCIATE_RQ, self, called + calling + bytes(32))


@dataclass(frozen=True, slots=True)
class AssociateAC:
    """A-ASSOCIATE-AC (PS3.8 §9.3.3). Its AE title fields are reserved: repeated when sent, never tested."""

    presentation_contexts: tuple[ContextResult, ...]
    user_information: UserInformation = _NO_USER_INFORMATION
    application_context_name: str = APPLICATION_CONTEXT_NAME
    protocol_version: int = 1
    address_fields: bytes = field(default=b"", repr=False, compare=False)
    """Bytes 10 to 73: to send, those of the A-ASSOCIATE-RQ (or empty: blank titles); else as received."""

    def encode(self) -> bytes:
        address_fields = self.address_fields or _BLANK_ADDRESS_FIELDS
        if len(address_fields) != 64:
            raise LocalProtocolError(f"address fields: {len(address_fields)} bytes, expected 64")
        _check_unique(
            context.presentation_context_id
            for context in self.presentation_contexts
            if context.result == ContextResultCode.ACCEPTANCE
        )
        return _encode_associate(PDUType.ASSOCIATE_AC, self, address_fields)


@dataclass(frozen=True, slots=True)
class AssociateRJ:
    """A-ASSOCIATE-RJ (PS3.8 §9.3.4). The codes stay integers: reserved ones reject like any other."""

    result: int
    source: int
    reason: int

    def encode(self) -> bytes:
        return _encode_codes(PDUType.ASSOCIATE_RJ, self.result, self.source, self.reason)


@dataclass(frozen=True, slots=True)
class PresentationDataValue:
    """One PDV item (PS3.8 §9.3.5.1): a fragment of a message with its message control header (§E.2)."""

    presentation_context_id: int
    message_control_header: int
    """Bits 2 to 7 are reserved and kept as they came."""
    fragment: bytes | memoryview
    """After decoding a view of the PDU body, valid as long as that buffer is."""

    @property
    def is_command(self) -> bool:
        return self.message_control_header & 1 != 0

    @property
    def is_last(self) -> bool:
        return self.message_control_header & 2 != 0

    def encode_header(self) -> bytes:
        """The six bytes that go before the fragment."""
        identifier = check_unsigned("presentation context ID", self.presentation_context_id, 0xFF)
        control = check_unsigned("message control header", self.message_control_header, 0xFF)
        length = check_unsigned("PDV item length", memoryview(self.fragment).nbytes + 2, 0xFFFFFFFF)
        return _PDV_HEADER.pack(length, identifier, control)


@dataclass(frozen=True, slots=True)
class PDataTF:
    """P-DATA-TF (PS3.8 §9.3.5)."""

    presentation_data_values: tuple[PresentationDataValue, ...]

    def encode(self) -> bytes:
        if not self.presentation_data_values:
            raise LocalProtocolError("P-DATA-TF without a presentation data value")
        parts: list[bytes | memoryview] = []
        for value in self.presentation_data_values:
            parts += (value.encode_header(), value.fragment)
        return _encode_pdu(PDUType.P_DATA_TF, b"".join(parts))


@dataclass(frozen=True, slots=True)
class ReleaseRQ:
    """A-RELEASE-RQ (PS3.8 §9.3.6)."""

    def encode(self) -> bytes:
        return _encode_codes(PDUType.RELEASE_RQ, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ReleaseRP:
    """A-RELEASE-RP (PS3.8 §9.3.7)."""

    def encode(self) -> bytes:
        return _encode_codes(PDUType.RELEASE_RP, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT (PS3.8 §9.3.8). Source 0 is the service-user, 2 the service-provider, which gives a reason."""

    source: int
    reason: int

    def encode(self) -> bytes:
        return _encode_codes(PDUType.ABORT, 0, self.source, self.reason)


PDU = AssociateRQ | AssociateAC | AssociateRJ | PDataTF | ReleaseRQ | ReleaseRP | Abort


# Decoding ---------------------------------------------------------------------------------------------------


def decode(pdu_type: int, body: bytes | memoryview) -> PDU:
    """Decode the body of one complete PDU, without its six-byte header.

    body: exactly PDU-length bytes. Fragments of a PDataTF are views of it; everything else is copied.
    Raises only RemoteProtocolError, with the A-ABORT to send: 2/1 for an unrecognized type, 2/6 for a length
    that contradicts another.
    """
    match pdu_type:
        case PDUType.P_DATA_TF:
            return _decode_p_data_tf(memoryview(body))
        case PDUType.ASSOCIATE_RQ:
            return _decode_associate_rq(bytes(body))
        case PDUType.ASSOCIATE_AC:
            return _decode_associate_ac(bytes(body))
        case PDUType.ASSOCIATE_RJ:
            if len(body) < 4:
                raise RemoteProtocolError(f"A-ASSOCIATE-RJ: length {len(body)}, expected 4")
            return AssociateRJ(body[1], body[2], body[3])
        case PDUType.RELEASE_RQ:
            return ReleaseRQ()
        case PDUType.RELEASE_RP:
            return ReleaseRP()
        case PDUType.ABORT:
            # Whatever its length, the association is over.
            return Abort(body[2] if len(body) > 2 else 0, body[3] if len(body) > 3 else 0)
        case _:
            raise RemoteProtocolError(
                f"unrecognized PDU type 0x{pdu_type:02X}, expected 0x01 to 0x07", reason=1
            )


def _decode_associate_rq(body: bytes) -> AssociateRQ:
    version, address_fields = _decode_fixed_fields("A-ASSOCIATE-RQ", body)
    items = _AssociateItems("A-ASSOCIATE-RQ", body, context_type=0x20)
    return AssociateRQ(
        called_ae_title=_decode_ae_title(address_fields[:16]),
        calling_ae_title=_decode_ae_title(address_fields[16:32]),
        presentation_contexts=tuple(
            decode_proposed_context(body, start, end) for start, end in items.contexts
        ),
        user_information=decode_user_information(body, items.user_information),
        application_context_name=items.application_context_name,
        protocol_version=version,
        address_fields=address_fields,
    )


def _decode_associate_ac(body: bytes) -> AssociateAC:
    version, address_fields = _decode_fixed_fields("A-ASSOCIATE-AC", body)
    items = _AssociateItems("A-ASSOCIATE-AC", body, context_type=0x21)
    return AssociateAC(
        presentation_contexts=tuple(decode_context_result(body, start, end) for start, end in items.contexts),
        user_information=decode_user_information(body, items.user_information),
        application_context_name=items.application_context_name,
        protocol_version=version,
        address_fields=address_fields,
    )


def _decode_fixed_fields(name: str, body: bytes) -> tuple[int, bytes]:
    """Protocol version and the 64 address bytes; what is reserved is skipped."""
    if len(body) < _FIXED_FIELDS.size:
        raise RemoteProtocolError(f"{name}: length {len(body)}, expected at least {_FIXED_FIELDS.size}")
    version, _, address_fields = _FIXED_FIELDS.unpack_from(body)
    return version, address_fields


class _AssociateItems:
    """Where the items of an A-ASSOCIATE-RQ or -AC are. The first 0x10 counts; unknown ones are skipped."""

    def __init__(self, name: str, body: bytes, *, context_type: int) -> None:
        self.application_context_name = ""
        self.contexts: list[tuple[int, int]] = []
        self.user_information: list[tuple[int, int]] = []
        for item_type, start, end in walk_items(body, _FIXED_FIELDS.size, len(body), parent=name):
            if item_type == context_type:
                self.contexts.append((start, end))
            elif item_type == 0x50:
                self.user_information.append((start, end))
            elif item_type == 0x10 and not self.application_context_name:
                self.application_context_name = decode_uid(body[start:end])
        if len(self.contexts) > MAXIMUM_RECEIVED_CONTEXTS:
            raise RemoteProtocolError(
                f"{name}: {len(self.contexts)} presentation contexts, "
                f"expected at most {MAXIMUM_RECEIVED_CONTEXTS}"
            )


def _decode_p_data_tf(body: memoryview) -> PDataTF:
    """The PDV items must fill the body exactly. An empty fragment is legal: many peers end messages so."""
    size = body.nbytes
    values: list[PresentationDataValue] = []
    position = 0
    while position < size or not values:
        remaining = size - position
        where = position + PDU_HEADER_SIZE
        if remaining < _PDV_HEADER.size:
            raise RemoteProtocolError(
                f"P-DATA-TF at byte {where}: {remaining} bytes, expected a PDV item of at least 6"
            )
        length, identifier, control = _PDV_HEADER.unpack_from(body, position)
        if not 2 <= length <= remaining - 4:
            raise RemoteProtocolError(
                f"P-DATA-TF PDV item at byte {where}: length {length}, expected 2 to {remaining - 4}"
            )
        end = position + 4 + length
        values.append(PresentationDataValue(identifier, control, body[position + _PDV_HEADER.size : end]))
        position = end
    return PDataTF(tuple(values))


def _decode_ae_title(data: bytes) -> str:
    """Spaces are not significant on either side (PS3.8 Table 9-11); NUL padding comes from the field."""
    return data.decode("latin-1").strip(" \0")


# Encoding ---------------------------------------------------------------------------------------------------


def _encode_pdu(pdu_type: PDUType, body: bytes) -> bytes:
    return _HEADER.pack(pdu_type, check_unsigned("PDU length", len(body), 0xFFFFFFFF)) + body


def _encode_codes(pdu_type: PDUType, first: int, second: int, third: int) -> bytes:
    """The four-byte body that -RJ, A-RELEASE and A-ABORT have in common; its first byte is reserved."""
    codes = [check_unsigned(f"{pdu_type.name} code", code, 0xFF) for code in (first, second, third)]
    return _encode_pdu(pdu_type, bytes((0, *codes)))


def _encode_associate(pdu_type: PDUType, pdu: AssociateRQ | AssociateAC, address_fields: bytes) -> bytes:
    """Items in increasing order of type, as PS3.8 §9.3.1 wants."""
    version = check_unsigned("protocol version", pdu.protocol_version, 0xFFFF)
    parts = [
        _FIXED_FIELDS.pack(version, 0, address_fields),
        encode_uid_item(0x10, pdu.application_context_name),
    ]
    parts += [context.encode() for context in pdu.presentation_contexts]
    parts.append(pdu.user_information.encode())
    return _encode_pdu(pdu_type, b"".join(parts))


def _encode_ae_title(which: str, title: str) -> bytes:
    """Value representation AE (PS3.5 §6.2): ISO 646, no control character or backslash, not all spaces."""
    allowed = title.isascii() and title.isprintable() and "\\" not in title
    if not allowed or not title.strip() or len(title) > _AE_TITLE_SIZE:
        raise LocalProtocolError(
            f"{which} AE title {title[:80]!r}: expected 1 to 16 ISO 646 characters, no backslash"
        )
    return title.encode("ascii").ljust(_AE_TITLE_SIZE)


def _check_unique(identifiers: Iterable[int]) -> None:
    seen: set[int] = set()
    for identifier in identifiers:
        if identifier in seen:
            raise LocalProtocolError(f"presentation context ID {identifier} is there twice")
        seen.add(identifier)


# Codes in words ---------------------------------------------------------------------------------------------

_REJECT_RESULTS = {1: "rejected-permanent", 2: "rejected-transient"}

_REJECT_SOURCES = {
    1: "UL service-user",
    2: "UL service-provider ACSE",
    3: "UL service-provider Presentation",
}

_REJECT_REASONS = {
    (1, 1): "no-reason-given",
    (1, 2): "application-context-name-not-supported",
    (1, 3): "calling-AE-title-not-recognized",
    (1, 7): "called-AE-title-not-recognized",
    (2, 1): "no-reason-given",
    (2, 2): "protocol-version-not-supported",
    (3, 1): "temporary-congestion",
    (3, 2): "local-limit-exceeded",
}

_ABORT_SOURCES = {0: "UL service-user", 2: "UL service-provider"}

_ABORT_REASONS = {
    0: "reason-not-specified",
    1: "unrecognized-PDU",
    2: "unexpected-PDU",
    4: "unrecognized-PDU-parameter",
    5: "unexpected-PDU-parameter",
    6: "invalid-PDU-parameter-value",
}


def describe_rejection(result: int, source: int, reason: int) -> str:
    """The codes of an A-ASSOCIATE-RJ in the words of PS3.8 Table 9-21, each with its number."""
    return ", ".join(
        (
            f"{_REJECT_RESULTS.get(result, 'reserved')} ({result})",
            f"{_REJECT_SOURCES.get(source, 'reserved')} ({source})",
            f"{describe_rejection_reason(source, reason)} ({reason})",
        )
    )


def describe_rejection_reason(source: int, reason: int) -> str:
    """The reason of an A-ASSOCIATE-RJ alone; what its number means depends on the source."""
    return _REJECT_REASONS.get((source, reason), "reserved")


def describe_abort(source: int, reason: int) -> str:
    """The codes of an A-ABORT in the words of PS3.8 Table 9-26. Only source 2 gives a reason."""
    words = _ABORT_REASONS.get(reason, "reserved") if source == 2 else "reason not significant"
    return f"{_ABORT_SOURCES.get(source, 'reserved')} ({source}), {words} ({reason})"
