"""A query SCP that answers every Study Root C-FIND with the same studies, and stops when asked to.

    python examples/embedding/find_scp.py 127.0.0.1 11112 --matches 1000

Then, with DCMTK:

    findscu -S -k QueryRetrieveLevel=STUDY -k PatientID -k StudyInstanceUID 127.0.0.1 11112
    findscu -S --cancel 5 -k QueryRetrieveLevel=STUDY -k PatientID 127.0.0.1 11112

The engine does not look into identifiers. A real SCP reads the one in `operation.data_set` and matches by it, with
pydicom for instance; here four elements are written by hand.
"""

import argparse
import asyncio
import contextlib
from struct import pack

from harmony.dimse import CFindRQ, CFindRSP, Operation, Outcome, Services, Status, serve

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"


def study(number: int, transfer_syntax: str) -> bytes:
    """An identifier: ascending tags, even lengths, in the transfer syntax of the presentation context (PS3.5 §7)."""
    order = ">" if transfer_syntax == EXPLICIT_VR_BIG_ENDIAN else "<"
    data = b""
    for group, element, vr, value in (
        (0x0008, 0x0052, b"CS", b"STUDY"),
        (0x0010, 0x0010, b"PN", b"Example^Patient"),
        (0x0010, 0x0020, b"LO", b"EX%d" % number),
        (0x0020, 0x000D, b"UI", b"2.25.%d" % number),
    ):
        if len(value) % 2:
            value += b"\0" if vr == b"UI" else b" "
        if transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN:
            data += pack("<HHL", group, element, len(value)) + value
        else:
            data += pack(order + "HH2sH", group, element, vr, len(value)) + value
    return data


async def find(operation: Operation, matches: int) -> Outcome:
    """Send one Pending response for each match; what is returned becomes the final response."""
    request = operation.request
    assert isinstance(request, CFindRQ)
    for number in range(1, matches + 1):
        # Where a real SCP waits for its database. The event loop reads from the peer meanwhile, C-CANCEL-RQ too.
        await asyncio.sleep(0)
        if operation.cancelled.is_set():
            return Outcome(Status.CANCEL)
        response = CFindRSP(
            request.message_id, Status.PENDING, request.affected_sop_class_uid, data_set_present=True
        )
        await operation.respond(response, study(number, operation.context.transfer_syntax))
    return Outcome(Status.SUCCESS)


async def main(host: str, port: int, matches: int) -> None:
    services = Services()
    services.operation(CFindRQ, [STUDY_ROOT_FIND], lambda operation: find(operation, matches))
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
