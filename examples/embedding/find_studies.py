"""A query SCU that prints the studies an archive has.

    python examples/embedding/find_studies.py 127.0.0.1 11112 PatientID=EX* StudyDate=20240101- --called ARCHIVE

A peer to try it on, with DCMTK: `dcmqrscp`; query_retrieve_scp.py is another. KEY=VALUE is what to match, KEY alone
asks for the value. One line per study on stdout, with the keys as columns. Exit status 0: the archive answered; 1: it
did not, and why on stderr.
"""

import argparse
import asyncio
import contextlib
import sys

from harmony.dicom.json_model import Model, decode_data_set, encode_data_set, tag_of, texts_of
from harmony.dimse import PATIENT_ROOT, STUDY_ROOT, DimseError, Peer, find, propose_query
from harmony.ul import PresentationContext, ULError

MODELS = [STUDY_ROOT.find, PATIENT_ROOT.find]
"""The first that the archive accepts is asked."""
COLUMNS = ["StudyInstanceUID", "StudyDate", "PatientID", "PatientName"]


async def find_studies(peer: Peer, keys: dict[str, str], limit: int | None) -> None:
    def identifier(context: PresentationContext) -> bytes:
        """Encode the keys for what was accepted."""
        elements: Model = {"QueryRetrieveLevel": {"Value": ["STUDY"]}}
        for name, value in keys.items():
            elements[name] = {"Value": value.split("\\")} if value else {}
        return encode_data_set(elements, context.transfer_syntax)

    async with (
        peer.associate(propose_query(MODELS)) as scu,
        contextlib.aclosing(find(scu, MODELS, identifier, limit=limit)) as matches,
    ):
        print("\t".join(keys))
        async for match in matches:
            study = decode_data_set(match.identifier, match.transfer_syntax_uid)
            print("\t".join(printable(texts_of(study, tag_of(name))) for name in keys), flush=True)


def printable(values: list[str]) -> str:
    """An archive may send anything: no control character for the terminal."""
    return "".join(character if character.isprintable() else "?" for character in "\\".join(values))


def key(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    tag_of(name)  # ValueError for what is no attribute
    return name, value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="the archive's name or address")
    parser.add_argument("port", type=int)
    parser.add_argument("keys", nargs="*", type=key, metavar="KEY[=VALUE]", help="attributes by keyword")
    parser.add_argument("--called", default="ANY-SCP", help="the archive's AE title")
    parser.add_argument("--calling", default="HARMONY_SCU", help="our AE title")
    parser.add_argument("--limit", type=int, help="studies wanted; then the query is cancelled")
    arguments = parser.parse_args()
    peer = Peer(arguments.host, arguments.port, arguments.called, arguments.calling)
    keys = dict.fromkeys(COLUMNS, "") | dict(arguments.keys)
    try:
        asyncio.run(find_studies(peer, keys, arguments.limit))
    except (ULError, DimseError, ValueError) as error:  # DataSetError and ModelError are ValueErrors
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
