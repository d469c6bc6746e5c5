"""C-STORE-RQs that differ from an earlier one in Message ID and SOP Instance UID only (PS3.7 §9.3.1).

An association that brings a study brings the same command set again and again. Once one was decoded, the next is
recognised by the bytes before, between and behind the two values, and answered with those of a response around them:
1 us, where decoding, a request object and encoding take 6.

What a template matches is what `harmony.dimse.command` would decode to the same request; everything else is left to
that. Called by `harmony.dimse.exchange`.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from harmony.dimse.command import CStoreRQ, encode_store_rsp
from harmony.dimse.message import encode_message
from harmony.dimse.sink import WholeStore

__all__ = ["StoreTemplate"]

_ELEMENT = Struct("<HHL")
_MESSAGE_ID, _INSTANCE_UID = 0x0110, 0x1000
_BEHIND_MESSAGE_ID = 10 + 10 + 8
"""In a C-STORE-RSP, between the values of the two: (0000,0800), (0000,0900), the header of (0000,1000)."""


class StoreTemplate(NamedTuple):
    """What all C-STORE-RQs of one kind and one length on one presentation context have in common."""

    store: WholeStore
    message_id_at: int
    instance_at: int
    instance_end: int
    before: bytes
    """Of the command set, up to the Message ID."""
    between: bytes
    """From there to the SOP Instance UID."""
    behind: bytes
    """What follows that: nothing, or a Move Originator."""
    before_response: bytes
    """Of the P-DATA-TF that answers Success, up to the Message ID."""
    between_response: bytes
    """From there to the SOP Instance UID, which ends it."""

    def matches(self, command: bytes) -> bool:
        """Tell whether a command set of the same length is of this kind."""
        return (
            command.startswith(self.before)
            and command.startswith(self.between, self.message_id_at + 2)
            and command.endswith(self.behind)
        )

    def success(self, command: bytes) -> bytes:
        """The P-DATA-TF that answers a command set that matches."""
        at = self.message_id_at
        uid = command[self.instance_at : self.instance_end]
        return b"".join((self.before_response, command[at : at + 2], self.between_response, uid))

    @classmethod
    def of(
        cls,
        encoded: bytes,
        command: CStoreRQ,
        store: WholeStore,
        *,
        presentation_context_id: int,
        maximum_length: int,
    ) -> StoreTemplate | None:
        """The template of a command set; None when it, or the answer to it, is not as nearly all are.

        command: what `encoded` was decoded to. maximum_length: of PDUs to the peer.
        """
        places = _places(encoded)
        if places is None:
            return None
        message_id_at, instance_at, instance_end = places
        uid = encoded[instance_at:instance_end]
        answer = encode_store_rsp(
            command.message_id, 0x0000, command.affected_sop_class_uid, command.affected_sop_instance_uid
        )
        response = encode_message(presentation_context_id, answer, maximum_length=maximum_length)
        uid_at = len(response) - len(uid)
        answer_at = uid_at - _BEHIND_MESSAGE_ID - 2
        # The peer may have padded its UID otherwise than we do; a peer that takes only tiny PDUs gets several of them.
        if not response.endswith(uid) or not response.endswith(answer):
            return None
        return cls(
            store,
            message_id_at,
            instance_at,
            instance_end,
            encoded[:message_id_at],
            encoded[message_id_at + 2 : instance_at],
            encoded[instance_end:],
            response[:answer_at],
            response[answer_at + 2 : uid_at],
        )


def _places(encoded: bytes) -> tuple[int, int, int] | None:
    """Where the Message ID is, where the SOP Instance UID begins and ends; None unless it is a plain command set.

    Plain: elements of group 0000 that fill it, each once, in the order of their tags.
    """
    found: dict[int, tuple[int, int]] = {}
    at, size, last = 0, len(encoded), -1
    while at < size:
        if at + 8 > size:
            return None
        group, number, length = _ELEMENT.unpack_from(encoded, at)
        if group or number <= last or at + 8 + length > size:
            return None
        found[number] = (at + 8, length)
        last = number
        at += 8 + length
    if found.get(_MESSAGE_ID, (0, 0))[1] != 2 or _INSTANCE_UID not in found:
        return None
    instance_at, length = found[_INSTANCE_UID]
    return found[_MESSAGE_ID][0], instance_at, instance_at + length
