"""An HTTP/1.1 client that costs next to nothing: `python -m benchmarks.web_client {get,store} PORT ...`.

`get` reads one path per line from stdin and asks for each on connections that stay open, one or several at once. Of an
answer it reads the head and the chunk sizes; the body is dropped in the kernel, without being copied (MSG_TRUNC, which
on Linux does that for TCP). So what an answer takes is what the server takes.

`store` sends copies of one file, each with a SOP Instance UID of its own, in one STOW-RS request: everything is in
memory before the clock starts.

It believes what it is told, but for the status and where the body ends. The last line on stdout is the result as JSON;
`dicomweb` reads it. Times are of `time.perf_counter`, which all processes of a Linux machine share.
"""

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.workloads import instance_uid

TIMEOUT_S = 120.0  # for each read
BUFFER_BYTES = 1 << 20
HEAD_BYTES = 4096  # read at a time where a head or a chunk size is expected
BOUNDARY = "harmony-benchmark-boundary"


class ResponseError(Exception):
    """The server did something else than answer with success."""


@dataclass(slots=True)
class Answered:
    """What came. Times are from the sending of each request."""

    requests: int = 0
    body_bytes: int = 0
    elapsed_s: float = 0.0
    first_at: float = 0.0
    """When the first byte of the first body came (perf_counter)."""
    first_s: list[float] = field(default_factory=list)
    """To the first byte of the body."""
    last_s: list[float] = field(default_factory=list)
    items: int = 0
    """Of the last answer, when it is a JSON array and was kept."""


class Connection:
    """One connection that stays open. keep: read bodies instead of dropping them."""

    def __init__(self, port: int, *, keep: bool = False) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._begin = self._end = 0  # what of the buffer has not been looked at
        self._keep = keep
        self.body = b""
        self.is_over = False
        """The connection ended with the last body."""

    def close(self) -> None:
        self._sock.close()

    def send(self, *pieces: bytes | bytearray) -> None:
        for piece in pieces:
            self._sock.sendall(piece)

    def answer(self) -> tuple[float, int]:
        """Read one answer: when the first byte of its body came, and how long the body is."""
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        if not 200 <= status < 300:
            raise ResponseError(f"status {status}")
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in head[1:])
        }
        self.body = b""
        self.is_over = False
        if fields.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks()
        self._some()
        first_at = time.perf_counter()
        if "content-length" in fields:
            size = int(fields["content-length"])
            self._skip(size)
            return first_at, size
        return first_at, self._rest()

    def _chunks(self) -> tuple[float, int]:
        first_at, total = 0.0, 0
        while size := int(self._until(b"\r\n").partition(b";")[0], 16):
            if not total:
                self._some()
                first_at = time.perf_counter()
            total += size
            self._skip(size)
            self._skip(2, count=False)
        self._until(b"\r\n")
        return first_at, total

    def _rest(self) -> int:
        """A body that ends with the connection, as Orthanc's multipart answers do."""
        total = self._end - self._begin
        while count := self._sock.recv_into(self._buffer, BUFFER_BYTES, socket.MSG_TRUNC):
            total += count
        self.is_over = True
        return total

    def _some(self) -> None:
        """Have at least a byte, if any more will come soon."""
        if self._begin == self._end:
            self._fill()

    def _fill(self) -> None:
        self._begin, self._end = 0, self._sock.recv_into(self._buffer, HEAD_BYTES)
        if not self._end:
            raise ResponseError("the connection was closed")

    def _until(self, end: bytes) -> bytes:
        line = b""
        while True:
            self._some()
            line += bytes(self._buffer[self._begin : self._end])
            at = line.find(end)
            if at >= 0:
                self._begin = self._end - (len(line) - at - len(end))
                return line[:at]
            self._begin = self._end

    def _skip(self, size: int, *, count: bool = True) -> None:
        here = min(size, self._end - self._begin)
        if self._keep and count:
            self.body += bytes(self._buffer[self._begin : self._begin + here])
        self._begin += here
        size -= here
        while size:
            take = min(size, BUFFER_BYTES)
            flags = socket.MSG_WAITALL if self._keep else socket.MSG_WAITALL | socket.MSG_TRUNC
            taken = self._sock.recv_into(self._buffer[:take], take, flags)
            if not taken:
                raise ResponseError("the connection was closed in a body")
            if self._keep and count:
                self.body += bytes(self._buffer[:taken])
            size -= taken


def get(
    port: int, paths: Sequence[str], *, accept: str, connections: int = 1, keep: bool = False
) -> Answered:
    """Ask for every path, on so many connections at once. Raises ResponseError, OSError."""
    requests = [
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {accept}\r\n\r\n".encode()
        for path in paths
    ]
    answered, failures = Answered(requests=len(requests)), list[BaseException]()
    opened = [Connection(port, keep=keep) for _ in range(connections)]

    def ask(connection: Connection, its: Sequence[bytes]) -> None:
        try:
            for request in its:
                if connection.is_over:
                    raise ResponseError("the connection was closed behind an answer")
                began = time.perf_counter()
                connection.send(request)
                first_at, size = connection.answer()
                answered.last_s.append(time.perf_counter() - began)
                answered.first_s.append(first_at - began)
                answered.first_at = answered.first_at or first_at
                answered.body_bytes += size
        except (ResponseError, OSError, ValueError) as error:
            failures.append(error)

    threads = [
        threading.Thread(target=ask, args=(connection, requests[n::connections]))
        for n, connection in enumerate(opened)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered.elapsed_s = time.perf_counter() - started
    if failures:
        raise ResponseError(f"GET: {failures[0]}")
    if keep:
        found = json.loads(opened[0].body)
        answered.items = len(found) if isinstance(found, list) else 0
    for connection in opened:
        connection.close()
    return answered


def store(port: int, path: str, file: Path, *, objects: int, first_number: int) -> Answered:
    """Store so many copies of a file that `workloads.create` made. Raises ResponseError, OSError."""
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    template, original = file.read_bytes(), instance_uid(0).encode()
    pieces: list[bytes] = []
    for number in range(first_number, first_number + objects):
        pieces += [head + template.replace(original, instance_uid(number).encode()) + b"\r\n"]
    pieces.append(f"--{BOUNDARY}--\r\n".encode())
    request = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: application/dicom+json\r\n"
        f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}\r\n'
        f"Content-Length: {sum(map(len, pieces))}\r\n\r\n"
    )
    connection = Connection(port, keep=True)
    started = time.perf_counter()
    connection.send(request.encode(), *pieces)
    first_at, size = connection.answer()
    elapsed_s = time.perf_counter() - started
    connection.close()
    stored = len(json.loads(connection.body).get("00081199", {}).get("Value", ()))
    if stored != objects:
        raise ResponseError(f"{stored} of {objects} objects were stored")
    return Answered(
        objects, len(template) * objects, elapsed_s, first_at, [first_at - started], [elapsed_s], size
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.web_client", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    getting = commands.add_parser("get")
    getting.add_argument("port", type=int)
    getting.add_argument("--accept", default="application/dicom+json")
    getting.add_argument("--connections", type=int, default=1)
    getting.add_argument("--keep", action="store_true", help="read the bodies, and count what is in the last")
    storing = commands.add_parser("store")
    storing.add_argument("port", type=int)
    storing.add_argument("path")
    storing.add_argument("file", type=Path)
    storing.add_argument("--objects", type=int, default=1)
    storing.add_argument("--first-number", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        if options.command == "get":
            answered = get(
                options.port,
                sys.stdin.read().split(),
                accept=options.accept,
                connections=options.connections,
                keep=options.keep,
            )
        else:
            answered = store(
                options.port,
                options.path,
                options.file,
                objects=options.objects,
                first_number=options.first_number,
            )
    except (ResponseError, OSError, ValueError) as error:
        print(f"web_client: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(answered)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
