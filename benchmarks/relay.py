"""Between a PACS and whoever retrieves from it: passes everything on, and tells when the first instance came.

What counts is the first P-DATA-TF with a C-STORE-RQ that the PACS sends after `begin`: before it nobody can have a
byte of an instance. Threads of the benchmark's own process; it costs throughput, so that nothing else is measured
through it.
"""

import socket
import threading
import time
from contextlib import suppress

from benchmarks.floor import parse_command

RECEIVE_BYTES = 1 << 17
C_STORE_RQ = b"\x01\x00"
PDU_HEADER_BYTES = 6


class Relay:
    """Listens on a port of its own (`port`) while the block lasts."""

    def __init__(self, pacs_port: int) -> None:
        self._pacs_port = pacs_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.first_at = 0.0
        """When the first instance came (`time.perf_counter`); 0: none has come since `begin`."""

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def begin(self) -> None:
        self.first_at = 0.0

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._server.accept()[0]
                pacs = socket.create_connection(("127.0.0.1", self._pacs_port))
                for sock in (client, pacs):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_pass, args=(client, pacs, None), daemon=True).start()
                threading.Thread(target=_pass, args=(pacs, client, _Watch(self)), daemon=True).start()


def _pass(source: socket.socket, target: socket.socket, watch: "_Watch | None") -> None:
    buffer = memoryview(bytearray(RECEIVE_BYTES))
    with suppress(OSError):
        while count := source.recv_into(buffer):
            if watch is not None:
                watch.look(bytes(buffer[:count]), time.perf_counter())
            target.sendall(buffer[:count])
    for sock in (source, target):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


class _Watch:
    """Finds C-STORE-RQ messages in what a PACS sends; commands come in one piece."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._pending = b""
        self._skip = 0

    def look(self, data: bytes, now: float) -> None:
        if self._skip >= len(data):
            self._skip -= len(data)
            return
        data, self._skip = self._pending + data[self._skip :], 0
        while len(data) >= PDU_HEADER_BYTES:
            size = PDU_HEADER_BYTES + int.from_bytes(data[2:6], "big")
            if data[0] == 0x04 and not self._relay.first_at:
                if len(data) < 12:
                    break
                end = 10 + int.from_bytes(data[6:10], "big")
                if data[11] & 1:
                    if len(data) < end:
                        break
                    if parse_command(data[12:end])[0x0100] == C_STORE_RQ:
                        self._relay.first_at = now
            if size > len(data):
                self._pending, self._skip = b"", size - len(data)
                return
            data = data[size:]
        self._pending = data
