"""A process of its own that packs envelopes: `python -m harmony.jmix.packing_process`, started by the gateway.

Hashing and copying leave Python's interpreter to others, but the steps between them do not, and every one of them would
hold up those who receive. Here they hold up nobody. Requests come on the standard input, answers to `Build` go to the
standard output, in the order of the requests: each a length (four bytes, big-endian) and a MessagePack document.

It opens no socket, knows no configuration and decides nothing: it reads files that it is told and writes archives under
names that are temporary. Whoever asked gives them their own, so that a process that outlives the gateway by a moment
changes nothing that anybody sees. It ends with its input, and leaves nothing behind then.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from harmony.jmix.documents import Parties, Profile
from harmony.jmix.envelope import EnvelopeFile, EnvelopePlan, build_envelope
from harmony.jmix.journal import JournalEntry
from harmony.jmix.zipformat import Compression
from harmony.jmix.zipstream import CHUNK_BYTES

__all__ = ["Add", "Build", "Built", "Discard", "Failed", "Order", "decode_reply", "encode", "serve"]

LENGTH_BYTES = 4


class Order(msgspec.Struct, frozen=True):
    """An envelope, but for its objects: `EnvelopePlan` and the arguments of `build_envelope`."""

    envelope_id: str
    created: datetime
    parties: Parties
    classification: str
    profile: Profile
    skip_hashing: bool
    skip_listing: bool
    compression: Compression
    fsync: bool

    def begin(self, temporary: Path) -> EnvelopeFile:
        """Open its file."""
        return EnvelopeFile(
            self.plan(()),
            temporary,
            profile=self.profile,
            skip_hashing=self.skip_hashing,
            skip_listing=self.skip_listing,
            compression=self.compression,
            fsync=self.fsync,
        )

    def plan(self, objects: tuple[JournalEntry, ...]) -> EnvelopePlan:
        return EnvelopePlan(self.envelope_id, self.created, objects, self.parties, self.classification)


class Add(msgspec.Struct, frozen=True, tag=True):
    """The first objects of an envelope, or the next ones. No answer: what fails is built as if it was never begun."""

    order: Order
    temporary: str
    """Where its archive is until it is built."""
    objects: tuple[JournalEntry, ...]


class Build(msgspec.Struct, frozen=True, tag=True):
    """Complete an envelope, or build it whole: `Built` or `Failed`."""

    order: Order
    objects: tuple[JournalEntry, ...]
    """All of them."""
    out_path: str


class Discard(msgspec.Struct, frozen=True, tag=True):
    """Forget what was begun of an envelope. No answer."""

    envelope_id: str


class Built(msgspec.Struct, frozen=True, tag=True):
    """`EnvelopeSummary`, but for what the order says."""

    size_bytes: int
    study_instance_uids: tuple[str, ...]
    instance_count: int
    payload_hash: str | None
    manifest: bytes


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Why there is no envelope. Nothing is left behind."""

    error: str


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Add | Build | Discard).decode
decode_reply = msgspec.msgpack.Decoder(Built | Failed).decode


def encode(message: Add | Build | Discard | Built | Failed) -> bytes:
    """A message with its length."""
    body = _encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Until the requests end."""
    begun: dict[str, EnvelopeFile | None] = {}  # None: it failed
    buffer = memoryview(bytearray(CHUNK_BYTES))
    try:
        for body in _bodies(requests):
            match _decode_request(body):
                case Add() as add:
                    _add(begun, add, buffer)
                case Build() as build:
                    reply = _build(build, begun.pop(build.order.envelope_id, None))
                    try:
                        replies.write(encode(reply))
                        replies.flush()
                    except BrokenPipeError:  # nobody will give it a name
                        Path(build.out_path).unlink(missing_ok=True)
                        return
                case Discard(envelope_id):
                    file = begun.pop(envelope_id, None)
                    if file is not None:
                        file.discard()
    finally:
        for file in begun.values():
            if file is not None:
                file.discard()


def _bodies(requests: BinaryIO) -> Iterator[bytes]:
    while len(length := requests.read(LENGTH_BYTES)) == LENGTH_BYTES:
        size = int.from_bytes(length, "big")
        body = requests.read(size)
        if len(body) < size:
            return
        yield body


def _add(begun: dict[str, EnvelopeFile | None], add: Add, buffer: memoryview) -> None:
    envelope_id = add.order.envelope_id
    file = None
    try:
        if envelope_id not in begun:
            begun[envelope_id] = add.order.begin(Path(add.temporary))
        file = begun[envelope_id]
        if file is not None:
            for planned in add.objects:
                file.add_file(planned, buffer)
    except Exception as error:  # the disk is full, a file is gone: to be found out again when it is built
        _complain(error)
        begun[envelope_id] = None
        if file is not None:
            file.discard()


def _build(build: Build, begun: EnvelopeFile | None) -> Built | Failed:
    order = build.order
    try:
        summary = build_envelope(
            order.plan(build.objects),
            out_path=Path(build.out_path),
            profile=order.profile,
            skip_hashing=order.skip_hashing,
            skip_listing=order.skip_listing,
            compression=order.compression,
            fsync=order.fsync,
            begun=begun,
        )
    except Exception as error:
        _complain(error)
        return Failed(str(error))
    return Built(
        summary.size_bytes,
        summary.study_instance_uids,
        summary.instance_count,
        summary.payload_hash,
        summary.manifest,
    )


def _complain(error: Exception) -> None:
    if not isinstance(error, OSError):  # those are known, and the gateway says them
        traceback.print_exception(error)


def main() -> None:
    # Whoever stops the gateway, at a terminal or as a service, may mean all its processes; this one's input ends then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    serve(sys.stdin.buffer, open(sys.stdout.fileno(), "wb", buffering=0, closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
