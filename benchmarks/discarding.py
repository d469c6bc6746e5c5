"""A storage SCP that keeps nothing, at next to no cost: `python -m benchmarks.discarding PORT`.

The floor for senders, as `floor` is for receivers: what they reach against it is what they can send. It reads a few
kilobytes at a time; what of a fragment is not among them is dropped in the kernel, without being copied (MSG_TRUNC,
which on Linux does that for TCP). Every C-STORE-RQ is answered with success once its last fragment is through. One
process for each association, so that they share nothing.

It believes what it is told: no negotiation, no limits but those of its buffer. Each association that ends is a line of
JSON on stdout, with the times of CLOCK_MONOTONIC between which it was open, so that a sender's time does not depend on
what it says itself, and nothing that it did not send counts; `send` reads them.
"""

import argparse
import json
import os
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass

from benchmarks.floor import RELEASE_RP, associate_ac, parse_command, response

BUFFER_BYTES = 4096
"""Holds a small object whole, or the headers and the command in front of a large one."""

DROP_BYTES = 1 << 20
TIMEOUT_S = 120
DROPPING = socket.MSG_TRUNC | socket.MSG_WAITALL
ASKS_FOR_WINDOW = b"\x53\x00\x00\x04"
"""Header of the Asynchronous Operations Window sub-item (PS3.7 §D.3.3.3), which is answered only when it came."""

HEADERS = struct.Struct(">BxIIBB")  # of a P-DATA-TF and its first PDV
PDV_HEADER = struct.Struct(">IBB")


@dataclass(slots=True)
class Discarded:
    """What one association brought."""

    objects: int = 0
    data_set_bytes: int = 0
    pdus: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0


class Association:
    """One connection, from its A-ASSOCIATE-RQ to its end."""

    def __init__(self, sock: socket.socket, *, maximum_length: int, window: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT_S, 0))
        self._sock = sock
        self._maximum_length = maximum_length
        self._window = window
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._dropped = bytearray(DROP_BYTES)
        self._at = self._end = 0  # of what has been read and not been looked at
        self.discarded = Discarded(began_s=time.monotonic())

    def serve(self) -> None:
        """Until the association ends."""
        self._answer_request()
        command, elements, pdu_left = b"", dict[int, bytes](), 0
        while self._need(12 if not pdu_left else 6):
            if pdu_left:
                length, context_id, control = PDV_HEADER.unpack_from(self._buffer, self._at)
                self._at += 6
            elif self._buffer[self._at] != 0x04:  # an A-RELEASE-RQ, or an end without one
                self._sock.sendall(RELEASE_RP)
                self.discarded.ended_s = time.monotonic()
                while self._sock.recv(BUFFER_BYTES):
                    pass  # closing is the requestor's part (PS3.8 Table 9-10, AR-3)
                return
            else:
                _, pdu_left, length, context_id, control = HEADERS.unpack_from(self._buffer, self._at)
                self._at += 12
                self.discarded.pdus += 1
            pdu_left -= length + 4
            if control & 1:
                command += self._take(length - 2)
                if control & 2:
                    elements, command = parse_command(command), b""
                    if elements[0x0800] == b"\x01\x01":  # C-ECHO-RQ
                        self._sock.sendall(response(elements, context_id))
                continue
            self._drop(length - 2)
            self.discarded.data_set_bytes += length - 2
            if control & 2:
                self.discarded.objects += 1
                self._sock.sendall(response(elements, context_id))
        self.discarded.ended_s = time.monotonic()

    def _answer_request(self) -> None:
        header = self._take(6)
        request = header + self._take(int.from_bytes(header[2:], "big"))
        answer, _ = associate_ac(request, self._maximum_length)
        if self._window and ASKS_FOR_WINDOW in request:
            answer = _with_sub_item(answer, struct.pack(">BxHHH", 0x53, 4, self._window, self._window))
        self._sock.sendall(answer)

    def _need(self, size: int) -> bool:
        """Have so many bytes in the buffer. False when the peer has left, or asks for its release, which is shorter."""
        while self._end - self._at < size:
            if self._end - self._at >= 6 and self._buffer[self._at] != 0x04 and size == 12:
                return True
            if self._at + size > BUFFER_BYTES or self._at == self._end:
                rest = bytes(self._buffer[self._at : self._end])
                self._buffer[: len(rest)] = rest
                self._at, self._end = 0, len(rest)
            count = self._sock.recv_into(self._buffer[self._end :])
            if not count:
                return False
            self._end += count
        return True

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[self._at : min(self._end, self._at + size)])
        self._at += len(taken)
        while len(taken) < size:
            more = self._sock.recv(size - len(taken))
            if not more:
                raise ConnectionError("the connection was closed inside a PDU")
            taken += more
        return taken

    def _drop(self, size: int) -> None:
        here = min(size, self._end - self._at)
        self._at += here
        size -= here
        while size:
            count = self._sock.recv_into(self._dropped, min(size, DROP_BYTES), DROPPING)
            if not count:
                raise ConnectionError("the connection was closed in a data set")
            size -= count


def _with_sub_item(associate_ac: bytes, sub_item: bytes) -> bytes:
    """Append to the User Information item, which is the last of the PDU."""
    at = 74
    while associate_ac[at] != 0x50:
        at += 4 + int.from_bytes(associate_ac[at + 2 : at + 4], "big")
    length = int.from_bytes(associate_ac[at + 2 : at + 4], "big") + len(sub_item)
    body = associate_ac[6 : at + 2] + length.to_bytes(2, "big") + associate_ac[at + 4 :] + sub_item
    return struct.pack(">BxI", 0x02, len(body)) + body


def serve(port: int, *, maximum_length: int, window: int) -> None:
    """Listen on 127.0.0.1 until killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes
    with socket.create_server(("127.0.0.1", port), backlog=64) as server:
        while True:
            sock, _ = server.accept()
            if os.fork():
                sock.close()
                continue
            server.close()
            association = Association(sock, maximum_length=maximum_length, window=window)
            try:
                association.serve()
            except OSError as error:
                print(f"discarding: {error}", file=sys.stderr)
            if association.discarded.ended_s:
                line = json.dumps(asdict(association.discarded)) + "\n"
                os.write(sys.stdout.fileno(), line.encode())  # at once: less than a pipe takes whole
            os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.discarding", description=__doc__.splitlines()[0]
    )
    parser.add_argument("port", type=int)
    parser.add_argument("--max-pdu", type=int, default=131072)
    parser.add_argument("--window", type=int, default=0, help="operations at a time, for who asks")
    options = parser.parse_args()
    serve(options.port, maximum_length=options.max_pdu, window=options.window)


if __name__ == "__main__":
    main()
