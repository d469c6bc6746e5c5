"""What HTTP of Harmony is compared with: nginx, which serves files, and the least that Python can do.

nginx runs as one process without a master, which is what its worker is, with a configuration and folders of its own;
files with sendfile(2), or read and written. The floor is `python -m benchmarks.web_peers PORT BYTES`: for each end of a
head that comes it writes an answer that was made before, over uvloop where there is one, and reads nothing else.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from benchmarks.peers import Place, Receiver, program

NGINX_PATH = "/usr/sbin"
"""Where Debian has it, which is not on every user's PATH."""

_NGINX = """\
daemon off;
master_process off;
pid {scratch}/nginx.pid;
error_log {scratch}/nginx.log error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile {sendfile};
    tcp_nopush on;
    keepalive_requests 1000000000;
    open_file_cache max=1000;
    client_body_temp_path {scratch};
    proxy_temp_path {scratch};
    fastcgi_temp_path {scratch};
    uwsgi_temp_path {scratch};
    scgi_temp_path {scratch};
    server {{
        listen 127.0.0.1:{port};
        root {folder};
    }}
}}
"""


def _nginx(*, sendfile: bool) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        configuration = place.scratch / "nginx.conf"
        configuration.write_text(
            _NGINX.format(
                scratch=place.scratch,
                folder=place.folder,
                port=place.port,
                sendfile="on" if sendfile else "off",
            )
        )
        log = str(place.scratch / "nginx.log")
        nginx = program("nginx", NGINX_PATH) or "nginx"
        return [nginx, "-p", str(place.scratch), "-e", log, "-c", str(configuration)]

    return command


NGINX = Receiver("nginx", "nginx, sendfile", _nginx(sendfile=True))
NGINX_WITHOUT_SENDFILE = Receiver("nginx-read", "nginx, sendfile off", _nginx(sendfile=False))


def floor(size_bytes: int) -> Receiver:
    """A server whose answers have a body of so many bytes."""

    def command(place: Place) -> list[str]:
        return [sys.executable, "-m", "benchmarks.web_peers", str(place.port), str(size_bytes)]

    return Receiver("floor", "floor: the least Python can do", command)


class _Floor(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of uvloop's it is no subclass

    def data_received(self, data: bytes) -> None:
        for _ in range(data.count(b"\r\n\r\n")):
            self._transport.write(self._answer)


async def _serve(port: int, size_bytes: int) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {size_bytes}\r\n\r\n"
    answer = head.encode() + b" " * size_bytes
    server = await asyncio.get_running_loop().create_server(lambda: _Floor(answer), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main(arguments: Sequence[str]) -> None:
    serving = _serve(int(arguments[0]), int(arguments[1]))
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


def write_file(folder: Path, name: str, size_bytes: int) -> str:
    """A file of blanks for nginx; returns its path in a URL."""
    (folder / name).write_bytes(b" " * size_bytes)
    return f"/{name}"


if __name__ == "__main__":
    main(sys.argv[1:])
