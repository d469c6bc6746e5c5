"""A query SCP that answers every Study Root C-FIND with the same studies, and stops when asked to.

    python examples/embedding/find_scp.py 127.0.0.1 11112 --matches 1000

Then, with DCMTK:

    findscu -S -k QueryRetrieveLevel=STUDY -k PatientID -k StudyInstanceUID 127.0.0.1 11112
    findscu -S --cancel 5 -k QueryRetrieveLevel=STUDY -k PatientID 127.0.0.1 11112

A real SCP decodes the identifier in `operation.data_set` and matches by it, as query_retrieve_scp.py does.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator

from harmony.dicom.json_model import encode_data_set
from harmony.dimse import STUDY_ROOT, CFindRQ, Operation, Services, find_handler, serve


async def find(operation: Operation, matches: int) -> AsyncIterator[bytes]:
    """Yield an identifier for each match; the handler sends them, and heeds C-CANCEL between two."""
    for number in range(1, matches + 1):
        study = {
            "QueryRetrieveLevel": {"Value": ["STUDY"]},
            "PatientName": {"Value": ["Example^Patient"]},
            "PatientID": {"Value": [f"EX{number}"]},
            "StudyInstanceUID": {"Value": [f"2.25.{number}"]},
        }
        yield encode_data_set(study, operation.context.transfer_syntax)


async def main(host: str, port: int, matches: int) -> None:
    services = Services()
    handler = find_handler(lambda operation: find(operation, matches))
    services.operation(CFindRQ, [STUDY_ROOT.find], handler)
    async with serve(services, host=host, port=port) as server:
        print(f"listening on {host}:{server.port}", flush=True)
        await server.wait_closed()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="address to listen on")
    parser.add_argument("port", type=int, help="port to listen on; 0 takes a free one")
    parser.add_argument("--matches", type=int, default=3, help="studies to answer with, 3 by default")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(**vars(parser.parse_args())))
