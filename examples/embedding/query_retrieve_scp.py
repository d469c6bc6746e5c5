"""A query/retrieve SCP over a folder of Part 10 files: C-FIND, C-GET and C-MOVE in the Study Root model.

    python examples/embedding/query_retrieve_scp.py 127.0.0.1 11112 images/ --destination STORESCP=127.0.0.1:11113

Then, with DCMTK, where `storescp -od received 11113` is the destination:

    findscu -S -k QueryRetrieveLevel=STUDY -k PatientName=D* -k StudyInstanceUID 127.0.0.1 11112
    getscu -S -od received -k QueryRetrieveLevel=STUDY -k StudyInstanceUID=1.2.3.4 127.0.0.1 11112
    movescu -S -aem STORESCP -k QueryRetrieveLevel=STUDY -k StudyInstanceUID=1.2.3.4 127.0.0.1 11112

The folder is read once, at the start; the headers stay in memory. Instances go out as they are stored; those that are
not compressed, in another native transfer syntax where the receiver accepts only that.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from harmony.archive.matching import IdentifierError, compile_query
from harmony.archive.projection import Projection
from harmony.dicom.json_model import DataSetError, Model, decode_data_set, encode_data_set, text_of, texts_of
from harmony.dicom.transcode import transcode
from harmony.dimse import (
    STUDY_ROOT,
    CFindRQ,
    CGetRQ,
    CMoveRQ,
    DimseError,
    FileMeta,
    FileSource,
    Instance,
    Operation,
    Part10Error,
    Peer,
    Selection,
    Services,
    Status,
    Unavailable,
    find_handler,
    get_handler,
    move_handler,
    read_file_meta_from,
    serve,
)

QUERY_RETRIEVE_LEVEL = 0x00080052
UNIQUE_KEYS = {"STUDY": 0x0020000D, "SERIES": 0x0020000E, "IMAGE": 0x00080018}
HEADER_BYTES = 1 << 20
"""Read of each file: what describes an image comes before its pixels."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A Part 10 file."""

    path: Path
    meta: FileMeta
    header: Model


def read_folder(folder: Path) -> Iterator[Stored]:
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_file():
                meta = read_file_meta_from(path)
                with path.open("rb") as file:
                    file.seek(meta.data_set_offset)
                    header = decode_data_set(file.read(HEADER_BYTES), meta.transfer_syntax_uid)
                yield Stored(path, meta, header)
        except (Part10Error, DataSetError, OSError) as error:
            print(f"passed over {path}: {error}", file=sys.stderr)


class Archive:
    """Answers requests from the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.files = list(read_folder(folder))

    async def find(self, operation: Operation) -> AsyncIterator[bytes]:
        """C-FIND: yield an identifier for each entity of the level that matches."""
        identifier = read_identifier(operation)
        level = level_of(identifier)
        try:
            matcher = compile_query(identifier)
        except IdentifierError as error:
            raise DimseError(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, str(error), (error.tag,)) from error
        projection = Projection(matcher, level=level)
        answered: set[str] = set()
        for stored in self.files:
            uid = text_of(stored.header, UNIQUE_KEYS[level])
            if uid not in answered and matcher.matches(stored.header):
                answered.add(uid)
                yield encode_data_set(projection.project(stored.header), operation.context.transfer_syntax)

    async def select(self, operation: Operation) -> Selection:
        """C-GET and C-MOVE: what has the unique keys of the identifier."""
        identifier = read_identifier(operation)
        keys = {tag: values for tag in UNIQUE_KEYS.values() if (values := set(texts_of(identifier, tag)))}
        if not keys:
            raise DimseError(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "no unique key has a value")
        chosen = [
            stored
            for stored in self.files
            if all(text_of(stored.header, tag) in values for tag, values in keys.items())
        ]
        metas = [stored.meta for stored in chosen]
        return Selection(
            instances(chosen),
            sop_instance_uids=[meta.media_storage_sop_instance_uid for meta in metas],
            contexts=[(meta.media_storage_sop_class_uid, meta.transfer_syntax_uid) for meta in metas],
        )


async def instances(chosen: list[Stored]) -> AsyncIterator[Instance | Unavailable]:
    """Open each file when its turn has come. The source is closed by whoever sends it."""
    for stored in chosen:
        meta = stored.meta
        uid = meta.media_storage_sop_instance_uid
        try:
            source = FileSource(stored.path, offset=meta.data_set_offset)
        except OSError:
            yield Unavailable(uid)
        else:
            yield Instance(meta.media_storage_sop_class_uid, uid, meta.transfer_syntax_uid, source)


def read_identifier(operation: Operation) -> Model:
    try:
        return decode_data_set(operation.data_set or b"", operation.context.transfer_syntax)
    except DataSetError as error:
        raise DimseError(Status.CANNOT_UNDERSTAND, "the identifier cannot be decoded") from error


def level_of(identifier: Model) -> str:
    level = text_of(identifier, QUERY_RETRIEVE_LEVEL)
    if level not in UNIQUE_KEYS:
        raise DimseError(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "no level of Study Root")
    return level


async def main(host: str, port: int, folder: Path, destination: list[tuple[str, Peer]]) -> None:
    archive, destinations = Archive(folder), dict(destination)
    services = Services()
    services.operation(CFindRQ, [STUDY_ROOT.find], find_handler(archive.find))
    services.operation(CGetRQ, [STUDY_ROOT.get], get_handler(archive.select, transcode=transcode))
    services.store_as_scu()  # the sub-operations of a C-GET
    mover = move_handler(
        archive.select, lambda ae_title, operation: destinations.get(ae_title), transcode=transcode
    )
    services.operation(CMoveRQ, [STUDY_ROOT.move], mover)
    async with serve(services, host=host, port=port) as server:
        print(f"listening on {host}:{server.port}", flush=True)
        await server.wait_closed()


def named_peer(text: str) -> tuple[str, Peer]:
    ae_title, _, address = text.partition("=")
    host, _, port = address.rpartition(":")
    return ae_title, Peer(host, int(port), ae_title)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="address to listen on")
    parser.add_argument("port", type=int, help="port to listen on; 0 takes a free one")
    parser.add_argument("folder", type=Path, help="the files")
    parser.add_argument(
        "--destination",
        action="append",
        default=[],
        type=named_peer,
        metavar="AE_TITLE=HOST:PORT",
        help="where a C-MOVE may send",
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(**vars(parser.parse_args())))
