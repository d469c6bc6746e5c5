"""DIMSE: command sets, the order of fragments, file meta information (PS3.7, PS3.8 Annex E, PS3.10)."""

from __future__ import annotations

from dataclasses import replace

from harmony.dimse.command import decode
from harmony.dimse.command_set import CommandError, decode_us, split_elements
from harmony.dimse.message import MessageAssembly
from harmony.dimse.part10 import MAXIMUM_FILE_META_SIZE, Part10Error, encode_file_meta, read_file_meta
from harmony.ul.errors import RemoteProtocolError
from harmony.ul.pdu import PDataTF
from harmony.ul.pdu import decode as decode_pdu
from tests.fuzz.target import pieces, target


@target()
def command(data: bytes) -> None:
    """What was decoded can be encoded and means the same; the answer to what was not is a message."""
    try:
        message, _ = decode(data)
    except CommandError as error:
        _check_response(error)
        return
    again, follows = decode(message.encode())
    if hasattr(message, "error_comment"):  # what LO has no place for is left out
        message = replace(message, error_comment=again.error_comment)
    assert again == message, f"{again} is not {message}"
    assert follows == message.data_set_present
    repr(message)


def _check_response(error: CommandError) -> None:
    if error.fatal:
        return
    elements = split_elements(error.response)
    assert decode_us(elements[0x0900]) == error.status
    assert decode_us(elements[0x0120]) == error.message_id
    assert decode_us(elements[0x0100]) == (error.command_field or 0) | 0x8000


@target(RemoteProtocolError)
def message(data: bytes) -> None:
    """The body of a P-DATA-TF: command fragments give the same command set however its pieces come."""
    whole, parts = MessageAssembly(), MessageAssembly()
    values = decode_pdu(4, data)
    assert isinstance(values, PDataTF)
    for value in values.presentation_data_values:
        fragment = bytes(value.fragment)
        cut = list(pieces(fragment)) or [b""]
        context, last = value.presentation_context_id, value.is_last
        if not value.is_command:
            for assembly in (whole, parts):
                assembly.check_data(context)
                if last:
                    assembly.end()
            continue
        found = whole.command(context, memoryview(fragment), last=last, complete=True)
        in_parts = [
            parts.command(context, memoryview(piece), last=last, complete=at == len(cut) - 1)
            for at, piece in enumerate(cut)
        ]
        assert in_parts[-1] == found
        assert not any(in_parts[:-1])
        if found is not None:
            for assembly in (whole, parts):
                try:
                    assembly.expects_data = decode(found)[1]
                except CommandError as error:
                    if error.fatal:
                        return
                    assembly.expects_data = error.data_set_follows
                if not assembly.expects_data:
                    assembly.end()


@target(Part10Error)
def part10(data: bytes) -> None:
    """What was read can be written, and is then read as the same."""
    meta = read_file_meta(data)
    assert 0 < meta.data_set_offset <= min(len(data), MAXIMUM_FILE_META_SIZE)
    texts = {
        "transfer_syntax_uid": meta.transfer_syntax_uid,
        "media_storage_sop_class_uid": meta.media_storage_sop_class_uid,
        "media_storage_sop_instance_uid": meta.media_storage_sop_instance_uid,
        "source_application_entity_title": meta.source_application_entity_title,
        "sending_application_entity_title": meta.sending_application_entity_title,
        "receiving_application_entity_title": meta.receiving_application_entity_title,
    }
    written = encode_file_meta(**texts)
    again = read_file_meta(written)
    assert {name: getattr(again, name) for name in texts} == texts
    assert again.data_set_offset == len(written)
