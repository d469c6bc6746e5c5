"""A client that retrieves and keeps nothing, at next to no cost: `python -m benchmarks.draining get PORT STUDY`.

Of each P-DATA-TF it reads the twelve bytes of headers; the fragment of a data set is dropped in the kernel, without
being copied (MSG_TRUNC, which on Linux does that for TCP). So what a retrieve takes is what the server takes. Every
C-STORE-RQ is answered with success once its last fragment is through.

`get` asks with C-GET and takes the instances on the same association. `move` asks with C-MOVE and takes them on
another one, as the destination; sub-operations and responses are read in two threads that share nothing.

It believes what it is told, like `floor`, except for lengths, PDU types and the final status. The last line on stdout
is the result as JSON; `retrieve` reads it.
"""

import argparse
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.floor import RELEASE_RP, associate_ac, parse_command, response
from benchmarks.peers import CALLED_AE_TITLE, DESTINATION_AE_TITLE
from benchmarks.workloads import SIZES, TRANSFER_SYNTAX_UID

TIMEOUT_S = 120.0  # for each read
MAXIMUM_LENGTH = 131072
BUFFER_BYTES = 1 << 20
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
QUERY_CONTEXT_ID = 1
RELEASE_RQ = struct.pack(">BxI4x", 0x05, 4)
C_STORE_RQ, C_GET_RQ, C_MOVE_RQ, RESPONSE = 0x0001, 0x0010, 0x0021, 0x8000


class RetrieveError(Exception):
    """The server did something else than send everything."""


@dataclass(slots=True)
class Drained:
    """What came; elapsed_s from the connect to the final response."""

    instances: int = 0
    data_set_bytes: int = 0
    elapsed_s: float = 0.0
    first_s: float = 0.0  # to the first command of a sub-operation


def _item(item_type: int, body: bytes) -> bytes:
    return struct.pack(">BxH", item_type, len(body)) + body


def associate_rq(query_sop_class_uid: str, *, as_scp: Sequence[str], maximum_length: int) -> bytes:
    """An A-ASSOCIATE-RQ with the query's context and one in the SCP role for each storage class (PS3.8 §9.3.2)."""
    syntax = _item(0x40, TRANSFER_SYNTAX_UID.encode())
    body = struct.pack(">H2x16s16s32x", 1, CALLED_AE_TITLE.ljust(16).encode(), b"DRAINING".ljust(16))
    body += _item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, sop_class_uid in enumerate([query_sop_class_uid, *as_scp]):
        context_id = QUERY_CONTEXT_ID + 2 * number
        body += _item(0x20, struct.pack(">B3x", context_id) + _item(0x30, sop_class_uid.encode()) + syntax)
    user = _item(0x51, struct.pack(">I", maximum_length)) + _item(0x52, b"2.25.24")
    for sop_class_uid in as_scp:
        uid = sop_class_uid.encode()
        user += _item(0x54, struct.pack(">H", len(uid)) + uid + b"\x00\x01")  # not SCU, but SCP
    user += _item(0x55, b"BENCHMARK")
    body += _item(0x50, user)
    return struct.pack(">BxI", 0x01, len(body)) + body


def request(command_field: int, sop_class_uid: str, identifier: bytes) -> bytes:
    """One P-DATA-TF with a C-GET-RQ or C-MOVE-RQ and its Identifier."""

    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, number, len(value)) + value

    uid = sop_class_uid.encode()
    elements = element(0x0002, uid + b"\0" * (len(uid) % 2))
    elements += element(0x0100, struct.pack("<H", command_field)) + element(0x0110, b"\x01\x00")
    if command_field == C_MOVE_RQ:
        title = DESTINATION_AE_TITLE.encode()
        elements += element(0x0600, title + b" " * (len(title) % 2))
    elements += element(0x0700, b"\x00\x00") + element(0x0800, b"\x01\x00")
    command = element(0x0000, struct.pack("<I", len(elements))) + elements
    values = struct.pack(">IBB", len(command) + 2, QUERY_CONTEXT_ID, 3) + command
    values += struct.pack(">IBB", len(identifier) + 2, QUERY_CONTEXT_ID, 2) + identifier
    return struct.pack(">BxI", 0x04, len(values)) + values


def study(study_instance_uid: str) -> bytes:
    """The Identifier for all of a study, in Explicit VR Little Endian."""

    def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
        return struct.pack("<HH2sH", group, number, vr, len(value)) + value

    uid = study_instance_uid.encode()
    return element(0x0008, 0x0052, b"CS", b"STUDY ") + element(
        0x0020, 0x000D, b"UI", uid + b"\0" * (len(uid) % 2)
    )


class Connection:
    """The reading side of one association."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._pdu_left = 0  # bytes of the current PDU after the current PDV

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def close(self) -> None:
        self._sock.close()

    def _exactly(self, size: int) -> memoryview:
        view, have = self._buffer[:size], 0
        while have < size:
            count = self._sock.recv_into(view[have:])
            if not count:
                raise RetrieveError("the connection was closed")
            have += count
            if have >= 6 and size == 12 and view[0] == 0x07:
                raise RetrieveError(f"A-ABORT: {bytes(view[:have]).hex()}")
        return view

    def pdu(self) -> bytes:
        """A whole PDU, at most 64 KB of it."""
        header = bytes(self._exactly(6))
        return header + bytes(self._exactly(min(int.from_bytes(header[2:6], "big"), 65536)))

    def _drop(self, size: int) -> None:
        while size:
            take = min(size, BUFFER_BYTES)
            flags = socket.MSG_TRUNC | socket.MSG_WAITALL
            count = self._sock.recv_into(self._buffer[:take], take, flags)
            if not count:
                raise RetrieveError("the connection was closed in a data set")
            size -= count

    def next(self) -> tuple[int, int, bytes, int]:
        """Presentation context, message control header, the command's fragment or nothing, the fragment's size.

        A context of 0: the PDU is an A-RELEASE-RQ.
        """
        if self._pdu_left:
            length, context_id, control = struct.unpack(">IBB", self._exactly(6))
            self._pdu_left -= length + 4
        else:
            kind = self._exactly(1)[0]
            if kind != 0x04:
                rest = bytes(self._exactly(9))
                if kind == 0x05:
                    return 0, 0, b"", 0
                raise RetrieveError(f"expected a P-DATA-TF, got a PDU of type {kind:#04x}: {rest.hex()}")
            pdu_length, length, context_id, control = struct.unpack(">xIIBB", self._exactly(11))
            self._pdu_left = pdu_length - length - 4
        size = length - 2
        if self._pdu_left < 0 or size < 0:
            raise RetrieveError(f"a PDV of {length} bytes does not fit into its PDU")
        if control & 1:
            return context_id, control, bytes(self._exactly(size)), size
        self._drop(size)
        return context_id, control, b"", size


def drain(connection: Connection, drained: Drained, *, started: float, final: int | None) -> int:
    """Take sub-operations and responses until the final response, or A-RELEASE-RQ when final is None.

    final: the command field of the response that ends it. Returns its status.
    """
    command, elements = b"", {}
    while True:
        context_id, control, fragment, size = connection.next()
        if not context_id:
            connection.send(RELEASE_RP)
            return 0
        if control & 1:
            command += fragment
            if not control & 2:
                continue
            elements, command = parse_command(command), b""
            field = int.from_bytes(elements[0x0100], "little")
            if field == C_STORE_RQ and not drained.instances:
                drained.first_s = time.perf_counter() - started
            has_data_set = elements[0x0800] != b"\x01\x01"
            if field == final and not has_data_set:
                status = int.from_bytes(elements[0x0900], "little")
                if status not in (0xFF00, 0xFF01):
                    return status
            continue
        drained.data_set_bytes += size
        if control & 2:
            if int.from_bytes(elements[0x0100], "little") != C_STORE_RQ:
                status = int.from_bytes(elements[0x0900], "little")
                raise RetrieveError(f"a response with an Identifier, status {status:#06x}: something failed")
            drained.instances += 1
            connection.send(response(elements, context_id))


def _associated(port: int, pdu: bytes) -> Connection:
    connection = Connection(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S))
    connection.send(pdu)
    answer = connection.pdu()
    if answer[0] != 0x02:
        raise RetrieveError(f"A-ASSOCIATE-RQ was answered with {answer.hex()}")
    return connection


def _release(connection: Connection) -> None:
    connection.send(RELEASE_RQ)
    connection.pdu()
    connection.close()


def get(port: int, study_instance_uid: str, *, maximum_length: int = MAXIMUM_LENGTH) -> Drained:
    """C-GET of a study. Raises RetrieveError, OSError."""
    storage = list(dict.fromkeys(size.sop_class_uid for size in SIZES.values()))
    pdu = associate_rq(STUDY_ROOT_GET, as_scp=storage, maximum_length=maximum_length)
    drained, started = Drained(), time.perf_counter()
    connection = _associated(port, pdu)
    connection.send(request(C_GET_RQ, STUDY_ROOT_GET, study(study_instance_uid)))
    status = drain(connection, drained, started=started, final=C_GET_RQ | RESPONSE)
    drained.elapsed_s = time.perf_counter() - started
    _release(connection)
    if status:
        raise RetrieveError(f"C-GET ended with status {status:#06x}")
    return drained


def move(
    port: int, study_instance_uid: str, *, destination_port: int, maximum_length: int = MAXIMUM_LENGTH
) -> Drained:
    """C-MOVE of a study to ourselves. Raises RetrieveError, OSError."""
    drained, failures = Drained(), list[BaseException]()
    pdu = associate_rq(STUDY_ROOT_MOVE, as_scp=(), maximum_length=maximum_length)
    with socket.create_server(("127.0.0.1", destination_port)) as server:
        server.settimeout(TIMEOUT_S)
        started = time.perf_counter()

        def receive() -> None:
            try:
                connection = Connection(server.accept()[0])
                answer, _ = associate_ac(connection.pdu(), maximum_length)
                connection.send(answer)
                drain(connection, drained, started=started, final=None)
                connection.close()
            except (RetrieveError, OSError) as error:
                failures.append(error)

        # Orthanc releases the association seconds later, so nobody waits for this thread.
        threading.Thread(target=receive, daemon=True).start()
        connection = _associated(port, pdu)
        connection.send(request(C_MOVE_RQ, STUDY_ROOT_MOVE, study(study_instance_uid)))
        status = drain(connection, Drained(), started=started, final=C_MOVE_RQ | RESPONSE)
        drained.elapsed_s = time.perf_counter() - started
        _release(connection)
    if status or failures:
        raise RetrieveError(f"C-MOVE ended with status {status:#06x}: {failures or 'no failure here'}")
    return drained


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.draining", description=__doc__.splitlines()[0]
    )
    parser.add_argument("service", choices=("get", "move"))
    parser.add_argument("port", type=int)
    parser.add_argument("study", help="Study Instance UID")
    parser.add_argument("--destination-port", type=int, default=0, help="to listen on, for move")
    parser.add_argument("--max-pdu", type=int, default=MAXIMUM_LENGTH)
    options = parser.parse_args(arguments)
    try:
        if options.service == "get":
            drained = get(options.port, options.study, maximum_length=options.max_pdu)
        else:
            drained = move(
                options.port,
                options.study,
                destination_port=options.destination_port,
                maximum_length=options.max_pdu,
            )
    except (RetrieveError, OSError) as error:
        print(f"draining: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(drained)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
