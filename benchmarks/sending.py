"""Two senders of all files in a folder, over one association: `python -m benchmarks.sending library PORT FOLDER`.

`library` is what a program does that embeds the engine: `harmony.dimse.associate`, and `store` for each path.

`floor` is the least that a sender in Python can do, as the mark to measure against: a blocking socket, each file opened
once and read with one preadv to between headers that were written before, one send per object, one read per answer. It
believes that all files are laid out as the first: no file meta is parsed, no status but success is known, nothing is
logged or counted.
"""

import argparse
import asyncio
import os
import socket
import struct
from pathlib import Path

from benchmarks.peers import CALLED_AE_TITLE
from harmony import IMPLEMENTATION_CLASS_UID
from harmony.dimse import CStoreRQ, FileMeta, associate, contexts_for, read_file_meta
from harmony.ul import AssociateAC, AssociateRQ, UserInformation
from harmony.ul.pdu import ReleaseRQ, decode

CONTEXT_ID = 1
LAST_COMMAND_FRAGMENT = 0x03  # message control header, PS3.8 §E.2
NO_LIMIT = 1 << 20  # for receivers that announce none
SUCCESS = b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00"  # (0000,0900) US, two bytes: 0000
HEADERS = struct.Struct(">BxIIBB")
ANSWER_BYTES = 4096


async def library(port: int, paths: list[str]) -> None:
    """Raises what `store` does."""
    async with associate(
        "127.0.0.1", port, called_ae_title=CALLED_AE_TITLE, contexts=contexts_for(paths[:1])
    ) as scu:
        for path in paths:
            await scu.store(path)


def floor(port: int, paths: list[str]) -> None:
    """Raises OSError, ValueError."""
    head = Path(paths[0]).read_bytes()[:4096]
    meta = read_file_meta(head)
    uid_at = head.index(meta.media_storage_sop_instance_uid.encode())
    size_bytes = Path(paths[0]).stat().st_size - meta.data_set_offset
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message = Laid(meta, size_bytes, maximum_length_of(sock, meta))
        prefix = memoryview(bytearray(meta.data_set_offset))
        for number, path in enumerate(paths):
            descriptor = os.open(path, os.O_RDONLY)
            os.preadv(descriptor, [prefix, *message.fragments], 0)
            os.close(descriptor)
            message.address(
                number & 0xFFFF, prefix[uid_at : uid_at + len(meta.media_storage_sop_instance_uid)]
            )
            sock.sendall(message.buffer)
            if SUCCESS not in sock.recv(ANSWER_BYTES):
                raise ValueError(f"{path} was not answered with success")
        sock.sendall(ReleaseRQ().encode())
        sock.recv(ANSWER_BYTES)


def maximum_length_of(sock: socket.socket, meta: FileMeta) -> int:
    """Associate with one context for what the file holds; what may be sent to the peer."""
    contexts = contexts_for([meta])
    information = UserInformation(maximum_length=16384, implementation_class_uid=IMPLEMENTATION_CLASS_UID)
    sock.sendall(AssociateRQ(CALLED_AE_TITLE, "FLOOR", contexts, information).encode())
    answer = sock.recv(ANSWER_BYTES)
    accepted = decode(answer[0], answer[6:])
    if not isinstance(accepted, AssociateAC) or contexts[0].presentation_context_id != CONTEXT_ID:
        raise ValueError(f"A-ASSOCIATE-RQ was answered with {accepted}")
    return accepted.user_information.maximum_length or NO_LIMIT


class Laid:
    """One C-STORE in a buffer, command and data set, of which the fragments are to be filled."""

    def __init__(self, meta: FileMeta, size_bytes: int, maximum_length: int) -> None:
        sop_instance_uid = meta.media_storage_sop_instance_uid
        command = CStoreRQ(0, meta.media_storage_sop_class_uid, sop_instance_uid).encode()
        limit = (maximum_length - 6) & ~1
        sizes = [min(limit, size_bytes - at) for at in range(0, size_bytes, limit)]
        self.buffer = memoryview(bytearray(12 * (len(sizes) + 1) + len(command) + size_bytes))
        HEADERS.pack_into(
            self.buffer, 0, 4, len(command) + 6, len(command) + 2, CONTEXT_ID, LAST_COMMAND_FRAGMENT
        )
        self.buffer[12 : 12 + len(command)] = command
        self._uid_at = 12 + command.index(sop_instance_uid.encode())
        self._message_id_at = 12 + command.index(b"\x00\x00\x10\x01\x02\x00\x00\x00") + 8
        self.fragments: list[memoryview] = []
        at = 12 + len(command)
        for number, size in enumerate(sizes, start=1):
            HEADERS.pack_into(
                self.buffer, at, 4, size + 6, size + 2, CONTEXT_ID, 2 if number == len(sizes) else 0
            )
            self.fragments.append(self.buffer[at + 12 : at + 12 + size])
            at += 12 + size

    def address(self, message_id: int, sop_instance_uid: memoryview) -> None:
        struct.pack_into("<H", self.buffer, self._message_id_at, message_id)
        self.buffer[self._uid_at : self._uid_at + len(sop_instance_uid)] = sop_instance_uid


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sending", description=__doc__.splitlines()[0])
    parser.add_argument("sender", choices=("library", "floor"))
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    paths = sorted(map(str, options.folder.iterdir()))
    if options.sender == "floor":
        floor(options.port, paths)
        return
    sending = library(options.port, paths)
    try:
        import uvloop
    except ImportError:
        asyncio.run(sending)
    else:
        uvloop.run(sending)


if __name__ == "__main__":
    main()
