"""DIMSE of PS3.7 over `harmony.ul`: ask for services with `associate`, perform them with `serve`.

Query/Retrieve of PS3.4 in both roles: `find`, `get` and `move`; `find_handler`, `get_handler` and `move_handler`.

Nothing but the standard library; data sets are bytes here, never parsed. See docs/EMBEDDING.md for whole programs.
"""

from harmony.dimse.cancellation import OperationInterrupted
from harmony.dimse.command import (
    CCancelRQ,
    CEchoRQ,
    CEchoRSP,
    CFindRQ,
    CFindRSP,
    CGetRQ,
    CGetRSP,
    CMoveRQ,
    CMoveRSP,
    CStoreRQ,
    CStoreRSP,
    Message,
)
from harmony.dimse.command_set import CommandError
from harmony.dimse.exchange import Exchange
from harmony.dimse.information_model import (
    PATIENT_ROOT,
    PATIENT_STUDY_ONLY,
    STUDY_ROOT,
    Identifier,
    InformationModel,
    Proposal,
    propose_get,
    propose_query,
)
from harmony.dimse.invocation import Invocation, Response
from harmony.dimse.move_receiver import MoveReceiver
from harmony.dimse.observer import Observer
from harmony.dimse.operation import Handler, Operation, StoreRequest
from harmony.dimse.part10 import FileMeta, Part10Error, encode_file_meta, read_file_meta, read_file_meta_from
from harmony.dimse.peer import Peer
from harmony.dimse.pool import AssociationPool
from harmony.dimse.query import Match, find, find_handler
from harmony.dimse.retrieve import GetReceiver, Retrieval, RetrieveFailed, RetrieveResult, get, move
from harmony.dimse.retrieve_scp import Selection, Unavailable, get_handler, move_handler
from harmony.dimse.scp import Admission, Authorization, Server, Services, serve
from harmony.dimse.scu import SCU, Instance, NoPresentationContext, associate, contexts_for
from harmony.dimse.sink import AsyncSink, BytesSink, DataStream, Sink, feed
from harmony.dimse.source import BytesSource, DataSource, FileSource, StreamSource, pieces
from harmony.dimse.status import (
    SUCCESS_OUTCOME,
    DimseError,
    Outcome,
    Status,
    StatusClass,
    classify,
    describe_status,
)
from harmony.dimse.store_many import StoreResult, store_many
from harmony.dimse.sub_operations import Counters

__all__ = [
    "PATIENT_ROOT",
    "PATIENT_STUDY_ONLY",
    "SCU",
    "STUDY_ROOT",
    "SUCCESS_OUTCOME",
    "Admission",
    "AssociationPool",
    "AsyncSink",
    "Authorization",
    "BytesSink",
    "BytesSource",
    "CCancelRQ",
    "CEchoRQ",
    "CEchoRSP",
    "CFindRQ",
    "CFindRSP",
    "CGetRQ",
    "CGetRSP",
    "CMoveRQ",
    "CMoveRSP",
    "CStoreRQ",
    "CStoreRSP",
    "CommandError",
    "Counters",
    "DataSource",
    "DataStream",
    "DimseError",
    "Exchange",
    "FileMeta",
    "FileSource",
    "GetReceiver",
    "Handler",
    "Identifier",
    "InformationModel",
    "Instance",
    "Invocation",
    "Match",
    "Message",
    "MoveReceiver",
    "NoPresentationContext",
    "Observer",
    "Operation",
    "OperationInterrupted",
    "Outcome",
    "Part10Error",
    "Peer",
    "Proposal",
    "Response",
    "Retrieval",
    "RetrieveFailed",
    "RetrieveResult",
    "Selection",
    "Server",
    "Services",
    "Sink",
    "Status",
    "StatusClass",
    "StoreRequest",
    "StoreResult",
    "StreamSource",
    "Unavailable",
    "associate",
    "classify",
    "contexts_for",
    "describe_status",
    "encode_file_meta",
    "feed",
    "find",
    "find_handler",
    "get",
    "get_handler",
    "move",
    "move_handler",
    "pieces",
    "propose_get",
    "propose_query",
    "read_file_meta",
    "read_file_meta_from",
    "serve",
    "store_many",
]
