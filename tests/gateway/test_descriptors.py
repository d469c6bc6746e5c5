"""No file descriptors left, in a process of its own: others are served, and everybody once there are some again."""

import asyncio
import json
import logging
import subprocess
import sys

import pytest

from harmony.gateway.descriptors import watch_accepting

PATIENCE_S = 30.0

SERVER = """
import asyncio, logging, resource, sys
import uvloop
from harmony.gateway.descriptors import watch_accepting
from harmony.http import HTTPServer, Response

logging.basicConfig()

async def hello(request):
    return Response(200, {}, b"hello")

async def main():
    watch_accepting(asyncio.get_running_loop())
    server = HTTPServer(hello)
    ((_, port),) = await server.start("127.0.0.1", 0)
    asyncio.get_running_loop().run_in_executor(None, sys.stdin.read).add_done_callback(lambda _: stop.set())
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    print(port, flush=True)
    await stop.wait()
    await server.stop()

stop = asyncio.Event()
factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.SelectorEventLoop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def served(client) -> bool:
    reader, writer = client
    writer.write(REQUEST)
    return (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_connections_are_accepted_again(loop):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, loop,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    clients = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            port = int(await process.stdout.readline())
            for _ in range(60):
                clients.append(await asyncio.open_connection("127.0.0.1", port))
            assert await served(clients[0])
            assert await served(clients[1])
            for _, writer in clients[1:]:
                writer.transport.abort()
            while True:  # those that wait to be accepted come first
                clients.append(await asyncio.open_connection("127.0.0.1", port))
                try:
                    assert await served(clients[-1])
                    break
                except (ConnectionError, asyncio.IncompleteReadError):
                    pass
            assert await served(clients[0])
            clients[0][1].close()
            clients[-1][1].close()
            _, told = await process.communicate(b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for _, writer in clients:
            writer.transport.abort()
    assert b"Traceback" not in told
    assert told.count(b"connections cannot be accepted until others are closed") == (loop == "asyncio")


async def test_anything_else_is_said_as_before(caplog):
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    watch_accepting(loop)
    try:
        loop.call_exception_handler({"message": "something else", "exception": ValueError("a value")})
    finally:
        loop.set_exception_handler(before)
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.ERROR, "something else")
    ]


@pytest.mark.parametrize(("soft", "hard"), [(64, 256), (256, 256), (1024, 2048)])
def test_the_hard_limit_is_what_there_is(soft, hard):
    script = """
import json, resource, sys
from harmony.gateway.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:])))
raise_limit()
print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))
"""
    command = [sys.executable, "-c", script, str(soft), str(hard)]
    told = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert json.loads(told) == [hard, hard]
