"""Items and sub-items of A-ASSOCIATE-RQ and -AC: PS3.8 §9.3.2, §9.3.3 and Annex D, PS3.7 Annex D.3.3.

One frozen class per item, used for sending and for receiving. `encode` is strict: what the standard does not
allow raises LocalProtocolError. Decoding is tolerant: unknown types are skipped by their length (PS3.8
§9.3.1), padding is stripped, and a user information sub-item that runs past its parent is clipped. Items 10,
30, 40, 51, 52 and 55 hold one value each and have no class of their own.

Nothing is negotiated here and no value is judged: that is `harmony.ul.negotiation`. Called by
`harmony.ul.pdu`, which walks the items of a PDU body. The decode functions take the whole body and the range
of one item in it, so that an error can name the byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct

from harmony.ul.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "APPLICATION_CONTEXT_NAME",
    "AsynchronousOperationsWindow",
    "CommonExtendedNegotiation",
    "ContextResult",
    "ContextResultCode",
    "ExtendedNegotiation",
    "ProposedContext",
    "RoleSelection",
    "UserIdentityAC",
    "UserIdentityRQ",
    "UserInformation",
    "decode_context_result",
    "decode_proposed_context",
    "decode_uid",
    "decode_user_information",
]

APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"
"""The only DICOM application context name (PS3.7 §A.2.1)."""

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"

PDU_HEADER_SIZE = 6  # what stands before a PDU body; added to offsets in messages

_ITEM_HEADER = Struct(">BBH")  # type, reserved (0x57: version), length
_U16 = Struct(">H")
_U32 = Struct(">I")
_TWO_U16 = Struct(">HH")
_UID = re.compile(r"[0-9.]{1,64}")
_PADDING = " \0"


# Presentation contexts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """Item 0x20: one presentation context of an A-ASSOCIATE-RQ (PS3.8 Table 9-13)."""

    presentation_context_id: int
    abstract_syntax: str
    """Empty when the peer sent no sub-item 0x30."""
    transfer_syntaxes: tuple[str, ...]
    """As received: may be empty, and may repeat itself."""

    def encode(self) -> bytes:
        identifier = check_unsigned("presentation context ID", self.presentation_context_id, 0xFF)
        if identifier % 2 == 0:
            raise LocalProtocolError(f"presentation context ID {identifier}: expected an odd number")
        if not self.transfer_syntaxes:
            raise LocalProtocolError(f"presentation context {identifier}: no transfer syntax")
        parts = [bytes((identifier, 0, 0, 0)), encode_uid_item(0x30, self.abstract_syntax)]
        parts += [encode_uid_item(0x40, uid) for uid in self.transfer_syntaxes]
        return encode_item(0x20, b"".join(parts))


class ContextResultCode(IntEnum):
    """Result/Reason of item 0x21 (PS3.8 Table 9-18)."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True)
class ContextResult:
    """Item 0x21: the answer to one presentation context in an A-ASSOCIATE-AC (PS3.8 Table 9-18)."""

    presentation_context_id: int
    result: int
    """A ContextResultCode, or the reserved integer that came."""
    transfer_syntax: str = ""
    """Significant only for ACCEPTANCE; empty when the peer sent none."""

    def encode(self) -> bytes:
        """Encode with exactly one 0x40 sub-item, as peers insist on one even where it is not significant.

        The ID of a context that is not accepted may be even: whatever was proposed gets its answer.
        """
        identifier = check_unsigned("presentation context ID", self.presentation_context_id, 0xFF)
        result = check_unsigned("result", self.result, 0xFF)
        transfer_syntax = self.transfer_syntax or IMPLICIT_VR_LITTLE_ENDIAN
        if result == ContextResultCode.ACCEPTANCE:
            if identifier % 2 == 0:
                raise LocalProtocolError(
                    f"presentation context ID {identifier}: an even one cannot be accepted"
                )
        elif not _UID.fullmatch(transfer_syntax):
            # A rejection usually repeats a proposed syntax; garbage in that must not keep us from answering.
            transfer_syntax = IMPLICIT_VR_LITTLE_ENDIAN
        return encode_item(0x21, bytes((identifier, 0, result, 0)) + encode_uid_item(0x40, transfer_syntax))


# User information sub-items ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AsynchronousOperationsWindow:
    """Sub-item 0x53 (PS3.7 §D.3.3.3). 0 means unlimited; both sides count from the requestor's view."""

    maximum_number_operations_invoked: int
    maximum_number_operations_performed: int

    def encode(self) -> bytes:
        invoked = check_unsigned("operations invoked", self.maximum_number_operations_invoked, 0xFFFF)
        performed = check_unsigned("operations performed", self.maximum_number_operations_performed, 0xFFFF)
        return encode_item(0x53, _TWO_U16.pack(invoked, performed))


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """Sub-item 0x54 (PS3.7 §D.3.3.4): the requestor's roles for one SOP class, in the -RQ and in the -AC."""

    sop_class_uid: str
    scu_role: bool
    scp_role: bool

    def encode(self) -> bytes:
        roles = bytes((bool(self.scu_role), bool(self.scp_role)))
        return encode_item(0x54, _encode_counted(encode_uid(self.sop_class_uid)) + roles)


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """Sub-item 0x56 (PS3.7 §D.3.3.5); what the information means is told by the service class (PS3.4)."""

    sop_class_uid: str
    service_class_application_information: bytes

    def encode(self) -> bytes:
        uid = _encode_counted(encode_uid(self.sop_class_uid))
        return encode_item(0x56, uid + self.service_class_application_information)


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """Sub-item 0x57 (PS3.7 §D.3.3.6), only in an A-ASSOCIATE-RQ."""

    sop_class_uid: str
    service_class_uid: str
    related_general_sop_class_uids: tuple[str, ...] = ()
    sub_item_version: int = 0
    """Stands where other items have a reserved byte."""

    def encode(self) -> bytes:
        related = b"".join(_encode_counted(encode_uid(uid)) for uid in self.related_general_sop_class_uids)
        body = (
            _encode_counted(encode_uid(self.sop_class_uid))
            + _encode_counted(encode_uid(self.service_class_uid))
            + _encode_counted(related)
        )
        return encode_item(0x57, body, second=check_unsigned("sub-item version", self.sub_item_version, 0xFF))


@dataclass(frozen=True, slots=True)
class UserIdentityRQ:
    """Sub-item 0x58 (PS3.7 §D.3.3.7.1). The fields are secrets: repr() shows neither."""

    user_identity_type: int
    """1 user name, 2 user name and passcode, 3 Kerberos ticket, 4 SAML assertion, 5 JSON Web Token."""
    primary_field: bytes = field(repr=False)
    secondary_field: bytes = field(default=b"", repr=False)
    """The passcode; empty for all types but 2."""
    positive_response_requested: bool = False

    def encode(self) -> bytes:
        kind = check_unsigned("user identity type", self.user_identity_type, 0xFF)
        head = bytes((kind, bool(self.positive_response_requested)))
        fields = _encode_counted(self.primary_field) + _encode_counted(self.secondary_field)
        return encode_item(0x58, head + fields)


@dataclass(frozen=True, slots=True)
class UserIdentityAC:
    """Sub-item 0x59 (PS3.7 §D.3.3.7.2). A ticket or assertion is as secret as the request: not in repr()."""

    server_response: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        return encode_item(0x59, _encode_counted(self.server_response))


@dataclass(frozen=True, slots=True)
class UserInformation:
    """Item 0x50 with its sub-items, sent in ascending order of type for old peers (PS3.8 §9.3.2.3)."""

    maximum_length: int | None = None
    """Sub-item 0x51: longest P-DATA-TF its sender takes, 0 for any length. None: the sub-item is missing."""
    implementation_class_uid: str = ""
    """Sub-item 0x52; not sent when empty."""
    implementation_version_name: str = ""
    """Sub-item 0x55; not sent when empty."""
    asynchronous_operations_window: AsynchronousOperationsWindow | None = None
    role_selections: tuple[RoleSelection, ...] = ()
    extended_negotiations: tuple[ExtendedNegotiation, ...] = ()
    common_extended_negotiations: tuple[CommonExtendedNegotiation, ...] = ()
    user_identity_rq: UserIdentityRQ | None = None
    user_identity_ac: UserIdentityAC | None = None

    def encode(self) -> bytes:
        parts: list[bytes] = []
        if self.maximum_length is not None:
            maximum_length = check_unsigned("maximum length", self.maximum_length, 0xFFFFFFFF)
            parts.append(encode_item(0x51, _U32.pack(maximum_length)))
        if self.implementation_class_uid:
            parts.append(encode_uid_item(0x52, self.implementation_class_uid))
        if self.asynchronous_operations_window is not None:
            parts.append(self.asynchronous_operations_window.encode())
        parts += [item.encode() for item in self.role_selections]
        if self.implementation_version_name:
            parts.append(encode_item(0x55, _encode_version_name(self.implementation_version_name)))
        parts += [item.encode() for item in self.extended_negotiations]
        parts += [item.encode() for item in self.common_extended_negotiations]
        if self.user_identity_rq is not None:
            parts.append(self.user_identity_rq.encode())
        if self.user_identity_ac is not None:
            parts.append(self.user_identity_ac.encode())
        return encode_item(0x50, b"".join(parts))


# Encoding ---------------------------------------------------------------------------------------------------


def encode_item(item_type: int, body: bytes, *, second: int = 0) -> bytes:
    """Put the item header before the body. `second` is the byte after the type: reserved but in item 0x57."""
    if len(body) > 0xFFFF:
        raise LocalProtocolError(f"item 0x{item_type:02X}: {len(body)} bytes, expected at most 65535")
    return _ITEM_HEADER.pack(item_type, second, len(body)) + body


def encode_uid_item(item_type: int, uid: str) -> bytes:
    """An item that holds one UID and nothing else: 0x10, 0x30, 0x40, 0x52."""
    return encode_item(item_type, encode_uid(uid))


def encode_uid(uid: str) -> bytes:
    """Check the characters and the length (PS3.8 Annex F); UIDs in items are not padded."""
    if not _UID.fullmatch(uid):
        raise LocalProtocolError(f"UID {uid[:80]!r}: expected 1 to 64 of 0-9 and '.'")
    return uid.encode("ascii")


def check_unsigned(name: str, value: int, maximum: int) -> int:
    if not 0 <= value <= maximum:
        raise LocalProtocolError(f"{name} {value}: expected 0 to {maximum}")
    return value


def _encode_counted(value: bytes) -> bytes:
    if len(value) > 0xFFFF:
        raise LocalProtocolError(
            f"field of a user information sub-item: {len(value)} bytes, expected at most 65535"
        )
    return _U16.pack(len(value)) + value


def _encode_version_name(name: str) -> bytes:
    if len(name) > 16 or not (name.isascii() and name.isprintable()):
        raise LocalProtocolError(
            f"implementation version name {name[:80]!r}: expected 1 to 16 ISO 646 characters"
        )
    return name.encode("ascii")


# Decoding ---------------------------------------------------------------------------------------------------


def walk_items(
    data: bytes, start: int, end: int, *, parent: str, clip: bool = False
) -> Iterator[tuple[int, int, int]]:
    """Yield (type, start, end) of the contents of each item between `start` and `end` of a PDU body.

    An item that runs past `end` raises RemoteProtocolError 2/6, never a wish for more bytes: the PDU is
    complete. With `clip` it ends at `end` instead, and a rest too short for an item header is ignored.
    """
    position = start
    while position < end:
        if end - position < 4:
            if clip:
                return
            where = position + PDU_HEADER_SIZE
            raise RemoteProtocolError(
                f"{parent} at byte {where}: {end - position} bytes, expected an item of at least 4"
            )
        item_type, _, length = _ITEM_HEADER.unpack_from(data, position)
        content = position + 4
        stop = content + length
        if stop > end:
            if not clip:
                raise RemoteProtocolError(
                    f"{parent} item 0x{item_type:02X} at byte {position + PDU_HEADER_SIZE}: "
                    f"length {length} exceeds remaining {end - content}"
                )
            stop = end
        yield item_type, content, stop
        position = stop


def decode_uid(data: bytes) -> str:
    """A UID as text, whatever its bytes, without the NUL or space that peers pad it with."""
    return data.decode("latin-1").rstrip(_PADDING)


def decode_proposed_context(data: bytes, start: int, end: int) -> ProposedContext:
    """Decode the contents of an item 0x20; the first 0x30 counts, other items are skipped."""
    _check_context_length(0x20, start, end)
    abstract_syntax = ""
    transfer_syntaxes: list[str] = []
    for item_type, first, stop in walk_items(data, start + 4, end, parent="presentation context 0x20"):
        if item_type == 0x40:
            transfer_syntaxes.append(decode_uid(data[first:stop]))
        elif item_type == 0x30 and not abstract_syntax:
            abstract_syntax = decode_uid(data[first:stop])
    return ProposedContext(data[start], abstract_syntax, tuple(transfer_syntaxes))


def decode_context_result(data: bytes, start: int, end: int) -> ContextResult:
    """Decode the contents of an item 0x21; the first 0x40 counts.

    When the context is not accepted the sub-item is not significant (PS3.8 §9.3.3.2): missing or damaged, it
    is no error.
    """
    _check_context_length(0x21, start, end)
    result = data[start + 2]
    transfer_syntax = ""
    rejected = result != ContextResultCode.ACCEPTANCE
    for item_type, first, stop in walk_items(
        data, start + 4, end, parent="presentation context 0x21", clip=rejected
    ):
        if item_type == 0x40 and not transfer_syntax:
            transfer_syntax = decode_uid(data[first:stop])
    return ContextResult(data[start], result, transfer_syntax)


def decode_user_information(data: bytes, ranges: list[tuple[int, int]]) -> UserInformation:
    """Decode the contents of all 0x50 items of one PDU body into one value.

    The first sub-item of a kind counts where only one is allowed. A sub-item too short for what it must hold
    is left out. Never raises.
    """
    single: dict[int, bytes] = {}
    roles: list[RoleSelection] = []
    extended: list[ExtendedNegotiation] = []
    common: list[CommonExtendedNegotiation] = []
    for start, end in ranges:
        for item_type, first, stop in walk_items(data, start, end, parent="user information", clip=True):
            content = data[first:stop]
            match item_type:
                case 0x54:
                    roles += _decode_role_selection(content)
                case 0x56:
                    extended += _decode_extended_negotiation(content)
                case 0x57:
                    common += _decode_common_extended_negotiation(content, sub_item_version=data[first - 3])
                case 0x51 | 0x52 | 0x53 | 0x55 | 0x58 | 0x59:
                    single.setdefault(item_type, content)
    user_identity_ac = single.get(0x59)
    return UserInformation(
        maximum_length=_decode_maximum_length(single.get(0x51, b"")),
        implementation_class_uid=decode_uid(single.get(0x52, b"")),
        implementation_version_name=single.get(0x55, b"").decode("latin-1").rstrip(_PADDING),
        asynchronous_operations_window=_decode_window(single.get(0x53, b"")),
        role_selections=tuple(roles),
        extended_negotiations=tuple(extended),
        common_extended_negotiations=tuple(common),
        user_identity_rq=_decode_user_identity_rq(single.get(0x58, b"")),
        user_identity_ac=None
        if user_identity_ac is None
        else UserIdentityAC(_decode_counted(user_identity_ac, 0)[0]),
    )


def _check_context_length(item_type: int, start: int, end: int) -> None:
    if end - start < 4:
        where = start - 4 + PDU_HEADER_SIZE
        raise RemoteProtocolError(
            f"item 0x{item_type:02X} at byte {where}: length {end - start}, expected at least 4"
        )


def _decode_maximum_length(content: bytes) -> int | None:
    return int.from_bytes(content[:4], "big") if len(content) >= 4 else None


def _decode_window(content: bytes) -> AsynchronousOperationsWindow | None:
    return AsynchronousOperationsWindow(*_TWO_U16.unpack_from(content)) if len(content) >= 4 else None


def _decode_role_selection(content: bytes) -> Iterator[RoleSelection]:
    """Yield it, or nothing when the roles are missing: half an item must not select a role."""
    uid, position = _decode_counted(content, 0)
    if uid and len(content) - position >= 2:
        yield RoleSelection(decode_uid(uid), content[position] != 0, content[position + 1] != 0)


def _decode_extended_negotiation(content: bytes) -> Iterator[ExtendedNegotiation]:
    uid, position = _decode_counted(content, 0)
    if uid:
        yield ExtendedNegotiation(decode_uid(uid), content[position:])


def _decode_common_extended_negotiation(
    content: bytes, *, sub_item_version: int
) -> Iterator[CommonExtendedNegotiation]:
    """Yield it, or nothing without a SOP class. What later versions append is ignored."""
    sop_class_uid, position = _decode_counted(content, 0)
    service_class_uid, position = _decode_counted(content, position)
    related, _ = _decode_counted(content, position)
    related_uids: list[str] = []
    position = 0
    while position < len(related):
        uid, position = _decode_counted(related, position)
        if uid:
            related_uids.append(decode_uid(uid))
    if sop_class_uid:
        yield CommonExtendedNegotiation(
            decode_uid(sop_class_uid), decode_uid(service_class_uid), tuple(related_uids), sub_item_version
        )


def _decode_user_identity_rq(content: bytes) -> UserIdentityRQ | None:
    """A missing secondary length means an empty field; a clipped secret is for its verifier to refuse."""
    if len(content) < 2:
        return None
    primary, position = _decode_counted(content, 2)
    secondary, _ = _decode_counted(content, position)
    return UserIdentityRQ(content[0], primary, secondary, content[1] != 0)


def _decode_counted(data: bytes, start: int) -> tuple[bytes, int]:
    """A 16-bit length and the bytes it counts, as far as they are there; and where the next field starts."""
    if len(data) - start < 2:
        return b"", len(data)
    (length,) = _U16.unpack_from(data, start)
    stop = min(start + 2 + length, len(data))
    return data[start + 2 : stop], stop
