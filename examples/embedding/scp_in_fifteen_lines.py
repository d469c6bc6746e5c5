"""A storage SCP that writes each object it receives to <SOP Instance UID>.dcm in the current folder.

    python examples/embedding/scp_in_fifteen_lines.py 127.0.0.1 11112

Then, with DCMTK: `echoscu 127.0.0.1 11112` and `storescu 127.0.0.1 11112 image.dcm`. Port 0 takes a free one.

Success is answered when the file is written; what cannot be written is answered 0xC000, what is larger than 1 GiB
0xA700. A crash may leave part of a file, of an object that was never acknowledged.
"""

import argparse
import asyncio
import contextlib
from pathlib import Path

from harmony.dicom import path_component
from harmony.dimse import SUCCESS_OUTCOME, BytesSink, Outcome, Services, StoreRequest, encode_file_meta, serve


def save(request: StoreRequest, data: bytes) -> Outcome:
    meta = encode_file_meta(
        transfer_syntax_uid=request.transfer_syntax_uid,
        media_storage_sop_class_uid=request.affected_sop_class_uid,
        media_storage_sop_instance_uid=request.affected_sop_instance_uid,
    )
    Path(f"{path_component(request.affected_sop_instance_uid)}.dcm").write_bytes(meta + data)
    return SUCCESS_OUTCOME


async def main(host: str, port: int) -> None:
    services = Services()
    services.store(lambda request: BytesSink(lambda data: save(request, data), maximum_bytes=1 << 30))
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
