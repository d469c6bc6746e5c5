"""A storage SCP that pipes each data set, while it arrives, into a command of its own; no shell, no temporary file.

    python examples/embedding/async_sink.py 127.0.0.1 11112 -- sha256sum

Then, with DCMTK: `storescu 127.0.0.1 11112 image.dcm`. The command finds SOP_INSTANCE_UID and TRANSFER_SYNTAX_UID in
its environment. The object is answered with success when the command exits with status 0, else with 0xC000.

A command that reads slowly slows the sender: at most a megabyte of each object waits in memory.
"""

import argparse
import asyncio
import contextlib
import os
from asyncio.subprocess import PIPE
from collections.abc import Sequence

from harmony.dicom import path_component
from harmony.dimse import AsyncSink, DataStream, DimseError, Services, Status, StoreRequest, serve

MAXIMUM_BUFFERED_BYTES = 1 << 20


async def pipe(command: Sequence[str], request: StoreRequest, data: DataStream) -> None:
    """The consumer: cancelled when the association ends before the data set does."""
    names = {
        "SOP_INSTANCE_UID": path_component(request.affected_sop_instance_uid),
        "TRANSFER_SYNTAX_UID": request.transfer_syntax_uid,
    }
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, env={**os.environ, **names})
    assert process.stdin is not None
    try:
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it has read enough: its status decides
            async for chunk in data:
                process.stdin.write(chunk)
                await process.stdin.drain()
        process.stdin.close()
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    if status != 0:
        raise DimseError(Status.CANNOT_UNDERSTAND, f"the command exited with status {status}")


async def main(host: str, port: int, command: Sequence[str]) -> None:
    def open_sink(request: StoreRequest) -> AsyncSink:
        return AsyncSink(
            request.association,
            lambda data: pipe(command, request, data),
            maximum_buffered_bytes=MAXIMUM_BUFFERED_BYTES,
        )

    services = Services()
    services.store(open_sink)
    async with serve(services, host=host, port=port) as server:
        print(f"listening on {host}:{server.port}", flush=True)
        await server.wait_closed()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="address to listen on")
    parser.add_argument("port", type=int, help="port to listen on; 0 takes a free one")
    parser.add_argument("command", nargs="+", help="the command and its arguments, after --")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(**vars(parser.parse_args())))
