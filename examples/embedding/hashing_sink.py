"""A storage SCP with a sink of its own: it hashes each data set while it arrives and keeps nothing.

    python examples/embedding/hashing_sink.py 127.0.0.1 11112

Then, with DCMTK: `storescu 127.0.0.1 11112 image.dcm`. Prints `sha256  SOPInstanceUID` for each object: the SHA-256 of
the data set as it is on the wire, which is the file without its file meta when the sender does not re-encode.
"""

import argparse
import asyncio
import contextlib
import hashlib

from harmony.dicom import path_component
from harmony.dimse import SUCCESS_OUTCOME, Outcome, Services, StoreRequest, serve


class HashingSink:
    """A `harmony.dimse.Sink`: memory does not grow with the object, and nothing is copied."""

    def __init__(self, request: StoreRequest) -> None:
        # A peer may send anything as a UID; path_component leaves no control character for the terminal.
        self._name = path_component(request.affected_sop_instance_uid)
        self._sha256 = hashlib.sha256()

    def write(self, fragment: memoryview) -> None:
        self._sha256.update(fragment)  # consumed on return: the view is of the receive buffer

    def finish(self) -> Outcome:
        print(f"{self._sha256.hexdigest()}  {self._name}", flush=True)
        return SUCCESS_OUTCOME

    def abort(self) -> None:
        """The association ended too early: there is nothing to undo."""


async def main(host: str, port: int) -> None:
    services = Services()
    services.store(HashingSink)
    async with serve(services, host=host, port=port) as server:
        print(f"listening on {host}:{server.port}", flush=True)
        await server.wait_closed()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="address to listen on")
    parser.add_argument("port", type=int, help="port to listen on; 0 takes a free one")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(**vars(parser.parse_args())))
