"""A JMIX server that keeps nothing, at next to no cost: `python -m benchmarks.jmix_upstream PORT`.

Of each request it reads the head; the body is dropped in the kernel, without being copied (MSG_TRUNC, which on Linux
does that for TCP). The answer is 201, without an id, which a client takes for that of its envelope. One thread for each
connection. For each answer it prints a line of JSON: when it was sent, on CLOCK_MONOTONIC, and how long the body was.

It believes what it is told: a request has a Content-Length, and the next one comes after the answer.
"""

import argparse
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence

BUFFER_BYTES = 1 << 20
ANSWER_BODY = b'{"status": "stored"}'
ANSWER = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(ANSWER_BODY),
    ANSWER_BODY,
)


def content_length(head: bytes) -> int:
    """Of a request's head; 0 when it does not say."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def serve_connection(sock: socket.socket) -> None:
    """Answer requests until the client closes."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with sock:
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                part = sock.recv(65536)
                if not part:
                    return
                received += part
            head, _, body = received.partition(b"\r\n\r\n")
            size = content_length(head)
            received, left = body[size:], size - len(body)
            while left > 0:
                count = sock.recv_into(buffer, min(left, BUFFER_BYTES), socket.MSG_TRUNC | socket.MSG_WAITALL)
                if not count:
                    return
                left -= count
            sock.sendall(ANSWER)
            line = json.dumps({"at_s": time.monotonic(), "size_bytes": size})
            os.write(sys.stdout.fileno(), f"{line}\n".encode())  # in one piece: there are other threads


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.jmix_upstream", description=__doc__.splitlines()[0]
    )
    parser.add_argument("port", type=int)
    options = parser.parse_args(arguments)
    with socket.create_server(("127.0.0.1", options.port)) as server:
        while True:
            sock, _ = server.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve_connection, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
