"""Retrieves a study with C-MOVE to itself: asks an archive, and listens as the destination of what it sends.

    python examples/embedding/move_study.py 127.0.0.1 11112 1.2.3.4 study/ --calling MOVER --listen 11113

A peer to try it on, with DCMTK: `dcmqrscp`; query_retrieve_scp.py is another, with `--destination
MOVER=127.0.0.1:11113`. Either must know where MOVER is: a C-MOVE names its destination by AE title only.

Progress on stderr. Exit status 0: the whole study is in the folder; 1: it is not, and why on stderr.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from harmony.dicom import path_component
from harmony.dicom.json_model import encode_data_set
from harmony.dimse import (
    STUDY_ROOT,
    SUCCESS_OUTCOME,
    BytesSink,
    DimseError,
    MoveReceiver,
    Outcome,
    Peer,
    RetrieveResult,
    Services,
    StoreRequest,
    encode_file_meta,
    move,
    propose_query,
    serve,
)
from harmony.ul import PresentationContext, ULError


def save(request: StoreRequest, data: bytes, folder: Path) -> Outcome:
    meta = encode_file_meta(
        transfer_syntax_uid=request.transfer_syntax_uid,
        media_storage_sop_class_uid=request.affected_sop_class_uid,
        media_storage_sop_instance_uid=request.affected_sop_instance_uid,
    )
    (folder / f"{path_component(request.affected_sop_instance_uid)}.dcm").write_bytes(meta + data)
    return SUCCESS_OUTCOME


async def move_study(peer: Peer, study: str, folder: Path, *, host: str, port: int) -> RetrieveResult:
    def open_sink(request: StoreRequest) -> BytesSink:
        return BytesSink(lambda data: save(request, data, folder), maximum_bytes=1 << 30)

    def identifier(context: PresentationContext) -> bytes:
        keys = {"QueryRetrieveLevel": {"Value": ["STUDY"]}, "StudyInstanceUID": {"Value": [study]}}
        return encode_data_set(keys, context.transfer_syntax)

    receiver = MoveReceiver()  # what no move waits for is refused
    services = Services()
    services.store(receiver.open_sink)
    destination = peer.calling_ae_title
    async with (
        serve(services, ae_title=destination, host=host, port=port),
        peer.associate(propose_query([STUDY_ROOT.move])) as scu,
        move(
            scu, STUDY_ROOT.move, identifier, destination, receiver=receiver, open_sink=open_sink
        ) as retrieval,
    ):
        async for counters in retrieval:
            print(f"{counters.completed} here, {counters.remaining} to come", file=sys.stderr)
    return retrieval.result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="the archive's name or address")
    parser.add_argument("port", type=int)
    parser.add_argument("study", help="the Study Instance UID")
    parser.add_argument("folder", type=Path, help="where to put the files; made when it is missing")
    parser.add_argument("--called", default="ANY-SCP", help="the archive's AE title")
    parser.add_argument("--calling", default="HARMONY_SCU", help="our AE title, the destination")
    parser.add_argument("--bind", default="0.0.0.0", help="address to listen on; every interface by default")
    parser.add_argument("--listen", type=int, default=11113, help="port to listen on, 11113 by default")
    arguments = parser.parse_args()
    peer = Peer(arguments.host, arguments.port, arguments.called, arguments.calling)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = asyncio.run(
            move_study(peer, arguments.study, folder, host=arguments.bind, port=arguments.listen)
        )
    except (ULError, DimseError, OSError) as error:  # RetrieveFailed is a DimseError
        print(error, file=sys.stderr)
        return 1
    for uid in result.failed_sop_instance_uids:
        print(f"failed: {uid}", file=sys.stderr)
    print(f"{result.counters.completed} instances retrieved")
    return 0 if result.status == 0 and result.counters.completed else 1


if __name__ == "__main__":
    sys.exit(main())
