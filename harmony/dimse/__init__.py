"""DIMSE of PS3.7 over `harmony.ul`: ask for services with `associate`, perform them with `serve`.

Nothing but the standard library; data sets are bytes here, never parsed. See docs/EMBEDDING.md for whole programs.
"""

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
from harmony.dimse.invocation import Invocation, Response
from harmony.dimse.observer import Observer
from harmony.dimse.operation import Handler, Operation, StoreRequest
from harmony.dimse.part10 import FileMeta, Part10Error, encode_file_meta, read_file_meta, read_file_meta_from
from harmony.dimse.scp import Server, Services, serve
from harmony.dimse.scu import SCU, Instance, NoPresentationContext, associate, contexts_for
from harmony.dimse.sink import AsyncSink, BytesSink, DataStream, Sink
from harmony.dimse.source import BytesSource, DataSource, FileSource, StreamSource
from harmony.dimse.status import (
    SUCCESS_OUTCOME,
    DimseError,
    Outcome,
    Status,
    StatusClass,
    classify,
    describe_status,
)

__all__ = [
    "SCU",
    "SUCCESS_OUTCOME",
    "AsyncSink",
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
    "DataSource",
    "DataStream",
    "DimseError",
    "Exchange",
    "FileMeta",
    "FileSource",
    "Handler",
    "Instance",
    "Invocation",
    "Message",
    "NoPresentationContext",
    "Observer",
    "Operation",
    "Outcome",
    "Part10Error",
    "Response",
    "Server",
    "Services",
    "Sink",
    "Status",
    "StatusClass",
    "StoreRequest",
    "StreamSource",
    "associate",
    "classify",
    "contexts_for",
    "describe_status",
    "encode_file_meta",
    "read_file_meta",
    "read_file_meta_from",
    "serve",
]
