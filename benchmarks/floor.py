"""The floor: the least that a receiver in Python can do, as the mark to measure against: `python -m benchmarks.floor`.

uvloop when installed, one BufferedProtocol per connection over one receive buffer, PDU and PDV headers parsed where
they lie, the fragments that one read brought written with one writev, one file per object, one write per response.
It believes everything it is told: no state table, no negotiation (it accepts the first transfer syntax of every
context), no length is checked, no name, no limit, no timeout, nothing is durable. It is no receiver to use; the
distance to it is what being a real one costs.
"""

import argparse
import asyncio
import os
import struct
from pathlib import Path
from typing import cast

BUFFER_BYTES = 256 * 1024
MOST_VIEWS = 512  # in one writev; the system takes 1024 (IOV_MAX)
RELEASE_RP = struct.pack(">BxI4x", 0x06, 4)


def associate_ac(request: bytes, maximum_length: int) -> tuple[bytes, dict[int, bytes]]:
    """Accept everything in an A-ASSOCIATE-RQ; returns the answer and each context's transfer syntax."""
    items, transfer_syntaxes, at = b"\x10\x00\x00\x151.2.840.10008.3.1.1.1", {}, 74
    while at + 4 <= len(request):
        item_type, length = struct.unpack_from(">BxH", request, at)
        if item_type == 0x20:
            context_id = request[at + 4]
            syntax_at = at + 8 + 4 + int.from_bytes(request[at + 10 : at + 12], "big")
            syntax_length = int.from_bytes(request[syntax_at + 2 : syntax_at + 4], "big")
            syntax = request[syntax_at + 4 : syntax_at + 4 + syntax_length]
            transfer_syntaxes[context_id] = syntax
            items += struct.pack(">BxHB3xBxH", 0x21, 8 + len(syntax), context_id, 0x40, len(syntax)) + syntax
        at += 4 + length
    user = struct.pack(">BxHI", 0x51, 4, maximum_length) + struct.pack(">BxH", 0x52, 7) + b"2.25.23"
    items += struct.pack(">BxH", 0x50, len(user)) + user
    body = request[6:74] + items
    return struct.pack(">BxI", 0x02, len(body)) + body, transfer_syntaxes


def _even(uid: bytes) -> bytes:
    return uid if len(uid) % 2 == 0 else uid + b"\0"


def file_meta(sop_class_uid: bytes, sop_instance_uid: bytes, transfer_syntax_uid: bytes) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 §7.1); the UIDs as they come in a command, padded."""

    def uid(element: int, value: bytes) -> bytes:
        return struct.pack("<HH2sH", 2, element, b"UI", len(value)) + value

    meta = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01" + uid(2, sop_class_uid)
    meta += uid(3, sop_instance_uid) + uid(0x10, transfer_syntax_uid) + uid(0x12, b"2.25.23\0")
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta


def parse_command(command: bytes) -> dict[int, bytes]:
    """The elements of a command set by element number; the group is always 0000 (PS3.7 §6.3.1)."""
    elements, at = {}, 0
    while at < len(command):
        element, length = struct.unpack_from("<2xHI", command, at)
        elements[element] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return elements


def response(request: dict[int, bytes], context_id: int) -> bytes:
    """The P-DATA-TF that answers a request with success."""
    sop_class, instance = request[0x0002], request.get(0x1000, b"")
    body = struct.pack("<HHI", 0, 2, len(sop_class)) + sop_class
    body += b"\x00\x00\x00\x01\x02\x00\x00\x00" + bytes((request[0x0100][0], 0x80))
    body += b"\x00\x00\x20\x01\x02\x00\x00\x00" + request[0x0110]
    body += b"\x00\x00\x00\x08\x02\x00\x00\x00\x01\x01\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00"
    if instance:
        body += struct.pack("<HHI", 0, 0x1000, len(instance)) + instance
    size = len(body) + 12
    header = struct.pack(">BxIIBB", 0x04, size + 6, size + 2, context_id, 0x03)
    return header + struct.pack("<HHII", 0, 0, 4, len(body)) + body


class Floor(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, folder: str, maximum_length: int) -> None:
        self._folder = folder
        self._maximum_length = maximum_length
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._fragment_left = 0  # of the P-DATA-TF that is being read, bytes of its fragment
        self._control = 0
        self._command = b""
        self._elements: dict[int, bytes] = {}
        self._descriptor = -1
        self._pending: list[bytes | memoryview] = []
        self._transfer_syntaxes: dict[int, bytes] = {}
        self._response = (b"", b"")
        self._context_id = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        end, at, view, buffer = self._filled + nbytes, 0, self._view, self._buffer
        while at < end:
            if not self._fragment_left:
                if end - at < 6:
                    break
                if buffer[at] != 0x04:
                    length = 6 + int.from_bytes(view[at + 2 : at + 6], "big")
                    if end - at < length:
                        break
                    self._other_pdu(bytes(view[at : at + length]))
                    at += length
                    continue
                if end - at < 12:
                    break
                # One PDV per P-DATA-TF is what every sender here does.
                length, self._context_id, self._control = struct.unpack_from(">6xIBB", buffer, at)
                self._fragment_left = length - 2
                at += 12
            take = min(self._fragment_left, end - at)
            self._fragment_left -= take
            if self._control & 1:
                self._command += view[at : at + take]
            else:
                self._pending.append(view[at : at + take])
                if len(self._pending) >= MOST_VIEWS:
                    self._write_pending()
            at += take
            if not self._fragment_left and self._control & 2:
                self._end_of_message_part()
        if self._pending:
            self._write_pending()
        if at and at < end:
            buffer[: end - at] = buffer[at:end]
        self._filled = end - at

    def _other_pdu(self, pdu: bytes) -> None:
        if pdu[0] == 0x01:
            answer, self._transfer_syntaxes = associate_ac(pdu, self._maximum_length)
            self._transport.write(answer)
        elif pdu[0] == 0x05:
            self._transport.write(RELEASE_RP)
            self._transport.close()
        else:
            self._transport.close()

    def _end_of_message_part(self) -> None:
        if self._control & 1:
            self._elements = elements = parse_command(self._command)
            self._command = b""
            if elements[0x0100] == b"\x01\x00":
                self._open(elements)
            else:
                self._respond()
            return
        self._write_pending()
        os.close(self._descriptor)
        self._descriptor = -1
        self._respond()

    def _open(self, elements: dict[int, bytes]) -> None:
        name = elements[0x1000].rstrip(b"\0").decode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(f"{self._folder}/{name}.dcm", flags, 0o644)
        transfer_syntax = _even(self._transfer_syntaxes[self._context_id])
        self._pending.append(file_meta(elements[0x0002], elements[0x1000], transfer_syntax))

    def _write_pending(self) -> None:
        pending = self._pending
        size = sum(map(len, pending))
        if os.writev(self._descriptor, pending) != size:
            raise OSError("short write")  # a regular file takes all of it or has no room
        pending.clear()

    def _respond(self) -> None:
        self._transport.write(response(self._elements, self._context_id))


async def serve(port: int, folder: Path, *, maximum_length: int) -> None:
    """Listen on 127.0.0.1 until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Floor(str(folder), maximum_length), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--max-pdu", type=int, default=65536)
    options = parser.parse_args()
    serving = serve(options.port, options.folder, maximum_length=options.max_pdu)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


if __name__ == "__main__":
    main()
