"""Many small requests on connections that stay open: `python -m benchmarks.request_client PORT REQUESTS ...`.

Requests are made before the clock starts, and each connection has one at a time on its way. Of an answer only the
status and Content-Length are looked at, so that what is measured is the server. Paths come from stdin, one per line,
and are asked for in turn. The last line on stdout is the result as JSON.
"""

import argparse
import itertools
import json
import re
import selectors
import socket
import sys
import time
from collections.abc import Iterator, Sequence

TIMEOUT_S = 60.0
BUFFER_BYTES = 1 << 16
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class AnswerError(Exception):
    """The server did something else than answer with success and a length."""


class _Asking:
    """One connection, and how much of the answer on its way has not come yet."""

    def __init__(self, port: int, requests: Iterator[bytes]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = requests
        self._head = b""
        self._left = 0
        self.body_bytes = 0

    def ask(self) -> None:
        self.sock.sendall(next(self._requests))

    def receive(self) -> bool:
        """Take what has come; True when an answer is complete."""
        data = self.sock.recv(BUFFER_BYTES)
        if not data:
            raise AnswerError("the connection was closed")
        if self._left:
            self._left -= len(data)
            return not self._left
        head, end, body = (self._head + data).partition(b"\r\n\r\n")
        if not end:
            self._head = head
            return False
        self._head = b""
        length = _LENGTH.search(head + b"\r\n")
        if head[9:12] not in (b"200", b"204") or (length is None and head[9:12] != b"204"):
            raise AnswerError(f"unexpected answer: {head[:200]!r}")
        size = int(length[1]) if length else 0
        self.body_bytes += size
        self._left = size - len(body)
        return not self._left


def run(
    port: int, paths: Sequence[str], *, method: str, accept: str, requests: int, connections: int
) -> tuple[float, int]:
    """How long so many requests take, in seconds, and the bytes of all bodies. Raises AnswerError, OSError."""
    made = itertools.cycle(
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {accept}\r\n\r\n".encode()
        for path in paths
    )
    left = requests - connections
    selector = selectors.DefaultSelector()
    asking = [_Asking(port, made) for _ in range(connections)]
    for each in asking:
        selector.register(each.sock, selectors.EVENT_READ, each)
    started = time.perf_counter()
    for each in asking:
        each.ask()
    answered = 0
    while answered < requests:
        ready = selector.select(TIMEOUT_S)
        if not ready:
            raise AnswerError(f"nothing came for {TIMEOUT_S:g} s")
        for key, _ in ready:
            if key.data.receive():
                answered += 1
                if left > 0:
                    left -= 1
                    key.data.ask()
    elapsed_s = time.perf_counter() - started
    for each in asking:
        each.sock.close()
    return elapsed_s, sum(each.body_bytes for each in asking)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.request_client", description=__doc__.splitlines()[0]
    )
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=int)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--method", default="GET")
    parser.add_argument("--accept", default="*/*")
    options = parser.parse_args()
    try:
        elapsed_s, body_bytes = run(
            options.port,
            sys.stdin.read().split(),
            method=options.method,
            accept=options.accept,
            requests=options.requests,
            connections=options.connections,
        )
    except (AnswerError, OSError) as error:
        print(f"request_client: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"requests": options.requests, "elapsed_s": elapsed_s, "body_bytes": body_bytes}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
