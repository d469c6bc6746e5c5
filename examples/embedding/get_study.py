"""Retrieves a study with C-GET into a folder, as Part 10 files named by SOP Instance UID.

    python examples/embedding/get_study.py 127.0.0.1 11112 1.2.3.4 study/ --called ARCHIVE

A peer to try it on, with DCMTK: `dcmqrscp`; query_retrieve_scp.py is another. Instances are kept in the transfer syntax
in which they come. What comes must be proposed beforehand: images of the usual kinds, native or compressed, and what
`--sop-class` adds.

Progress on stderr. Exit status 0: the whole study is there; 1: it is not, and why on stderr.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

from harmony.dicom import path_component
from harmony.dicom.json_model import encode_data_set
from harmony.dimse import (
    STUDY_ROOT,
    SUCCESS_OUTCOME,
    BytesSink,
    DimseError,
    GetReceiver,
    Outcome,
    Peer,
    RetrieveResult,
    StoreRequest,
    encode_file_meta,
    get,
    propose_get,
)
from harmony.ul import PresentationContext, ULError

SOP_CLASSES = [
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX
    "1.2.840.10008.5.1.4.1.1.1.2",  # MG
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.3.1",  # US multi-frame
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
    "1.2.840.10008.5.1.4.1.1.6.1",  # US
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
    "1.2.840.10008.5.1.4.1.1.12.1",  # XA
    "1.2.840.10008.5.1.4.1.1.20",  # NM
    "1.2.840.10008.5.1.4.1.1.128",  # PET
]
TRANSFER_SYNTAXES = [
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.5",  # RLE Lossless
]
"""Of each SOP class, in a context of its own as long as there are no more than 128; else the archive chooses one."""


def save(request: StoreRequest, data: bytes, folder: Path) -> Outcome:
    meta = encode_file_meta(
        transfer_syntax_uid=request.transfer_syntax_uid,
        media_storage_sop_class_uid=request.affected_sop_class_uid,
        media_storage_sop_instance_uid=request.affected_sop_instance_uid,
    )
    (folder / f"{path_component(request.affected_sop_instance_uid)}.dcm").write_bytes(meta + data)
    return SUCCESS_OUTCOME


async def get_study(peer: Peer, study: str, folder: Path, sop_classes: Iterable[str]) -> RetrieveResult:
    def open_sink(request: StoreRequest) -> BytesSink:
        return BytesSink(lambda data: save(request, data, folder), maximum_bytes=1 << 30)

    def identifier(context: PresentationContext) -> bytes:
        keys = {"QueryRetrieveLevel": {"Value": ["STUDY"]}, "StudyInstanceUID": {"Value": [study]}}
        return encode_data_set(keys, context.transfer_syntax)

    receiver = GetReceiver()
    proposal = propose_get([STUDY_ROOT.get], [(uid, TRANSFER_SYNTAXES) for uid in sop_classes])
    async with (
        peer.associate(proposal, services=receiver.services) as scu,
        get(scu, STUDY_ROOT.get, identifier, open_sink, receiver=receiver) as retrieval,
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
    parser.add_argument("--calling", default="HARMONY_SCU", help="our AE title")
    parser.add_argument("--sop-class", action="append", default=[], metavar="UID", help="one more to take")
    arguments = parser.parse_args()
    peer = Peer(arguments.host, arguments.port, arguments.called, arguments.calling)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = asyncio.run(get_study(peer, arguments.study, folder, [*SOP_CLASSES, *arguments.sop_class]))
    except (ULError, DimseError) as error:  # RetrieveFailed is a DimseError
        print(error, file=sys.stderr)
        return 1
    for uid in result.failed_sop_instance_uids:
        print(f"failed: {uid}", file=sys.stderr)
    print(f"{result.counters.completed} instances retrieved")
    return 0 if result.status == 0 and result.counters.completed else 1


if __name__ == "__main__":
    sys.exit(main())
