"""A C-STORE sender that costs next to nothing while the clock runs: `python -m benchmarks.preencoded ...`.

Everything is encoded before the clock starts: the A-ASSOCIATE-RQ, each association's C-STORE-RQ with the first
P-DATA-TF of the data set, and the rest of the data set, which all associations share. What is left per object is to
write the next number into three fixed places (Message ID, Affected SOP Instance UID, SOP Instance UID), one sendmsg,
and to look for the status in the answer. One thread, one epoll, so that the receiver is what is measured.

It announces no asynchronous operations and no extended negotiation, proposes one context, and sends the next object
when the last one is answered, as PS3.7 §D.3.3.3 asks of it. Associations run side by side; a receiver that serves
one at a time serves them one after the other. The last line on stdout is the result as JSON; `senders` reads it.
"""

import argparse
import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.workloads import (
    SIZES,
    TRANSFER_SYNTAX_UID,
    UID_LENGTH,
    Workload,
    instance_uid,
    patient_id,
    series_uid,
    study_uid,
)

CONTEXT_ID = 1
OWN_MAXIMUM_LENGTH = 16384
LARGEST_PDU = 1 << 20  # towards receivers that announce 0, which means no limit (PS3.8 §D.1)
STALL_TIMEOUT_S = 120.0  # a receiver silent for this long has lost the object
LAST_COMMAND_FRAGMENT = 0x03  # message control header, PS3.8 §E.2
RELEASE_RQ = struct.pack(">BxI4x", 0x05, 4)
SUCCESS = b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00"  # (0000,0900) US, two bytes: 0000


class SendError(Exception):
    """The receiver did something else than answer with success."""


@dataclass(frozen=True, slots=True)
class Flood:
    """What one run of the sender did; elapsed_s runs from the first connect to the last A-RELEASE-RP, floods that
    followed each other added up.

    began_at_s, release_at_s: of the first connect and the last A-RELEASE-RQ, on CLOCK_MONOTONIC, which is the same for
    every process of the machine.
    """

    objects: int
    data_set_bytes: int
    elapsed_s: float
    maximum_length: int
    began_at_s: float
    release_at_s: float
    cpu_s: float


def _element(group: int, element: int, value: bytes) -> bytes:
    """An element of a command set: Implicit VR Little Endian (PS3.7 §6.3.1)."""
    return struct.pack("<HHI", group, element, len(value)) + value


def _uid(value: str) -> bytes:
    encoded = value.encode("ascii")
    return encoded + b"\0" * (len(encoded) % 2)


def associate_rq(*, called_ae_title: str, sop_class_uid: str) -> bytes:
    """An A-ASSOCIATE-RQ with one presentation context (PS3.8 §9.3.2)."""

    def item(item_type: int, body: bytes) -> bytes:
        return struct.pack(">BxH", item_type, len(body)) + body

    context = struct.pack(">B3x", CONTEXT_ID)
    context += item(0x30, sop_class_uid.encode()) + item(0x40, TRANSFER_SYNTAX_UID.encode())
    user = item(0x51, struct.pack(">I", OWN_MAXIMUM_LENGTH))
    user += item(0x52, b"2.25.22") + item(0x55, b"BENCHMARK")
    body = struct.pack(">H2x16s16s32x", 1, called_ae_title.ljust(16).encode(), b"BENCHMARK".ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BxI", 0x01, len(body)) + body


def maximum_length_of(associate_ac: bytes) -> int:
    """What an A-ASSOCIATE-AC says may be sent to it, 0 for no limit. Raises SendError when it is not a plain yes."""
    if associate_ac[0] != 0x02:
        raise SendError(
            f"A-ASSOCIATE-RQ was answered with a PDU of type {associate_ac[0]:#04x}: {associate_ac.hex()}"
        )
    maximum_length, at = 0, 74
    while at + 4 <= len(associate_ac):
        item_type, length = struct.unpack_from(">BxH", associate_ac, at)
        if item_type == 0x21 and associate_ac[at + 6] != 0:
            raise SendError(f"the presentation context was refused, result {associate_ac[at + 6]}")
        if item_type == 0x51:
            (maximum_length,) = struct.unpack_from(">I", associate_ac, at + 4)
        at += (
            4 if item_type == 0x50 else 4 + length
        )  # sub-items follow the header of the user information item
    return maximum_length


def _read_pdu(sock: socket.socket) -> bytes:
    pdu = b""
    while len(pdu) < 6 or len(pdu) < 6 + int.from_bytes(pdu[2:6], "big"):
        part = sock.recv(65536)
        if not part:
            raise SendError("connection closed before an answer was complete")
        pdu += part
    return pdu


@dataclass(frozen=True, slots=True)
class Encoded:
    """One object as it goes over the wire, and where its numbers are."""

    head: bytes  # P-DATA-TF with the command, P-DATA-TF with the beginning of the data set
    tail: memoryview  # P-DATA-TFs with the rest, without anything that changes
    message_id_at: int
    uids_at: tuple[int, int]
    study_at: tuple[tuple[int, int, Callable[[int], str]], ...]
    """Where the study is told, how long that is, and what by, in an object of many studies (`workloads.create`)."""

    @classmethod
    def encode(cls, workload: Workload, maximum_length: int) -> "Encoded":
        uid = instance_uid(0)
        elements = _element(0x0000, 0x0002, _uid(workload.size.sop_class_uid))
        elements += _element(0x0000, 0x0100, b"\x01\x00")  # C-STORE-RQ
        elements += _element(0x0000, 0x0110, b"\x00\x00")  # Message ID
        elements += _element(0x0000, 0x0700, b"\x00\x00")  # priority: medium
        elements += _element(0x0000, 0x0800, b"\x01\x00")  # a data set follows
        elements += _element(0x0000, 0x1000, _uid(uid))
        command = _element(0x0000, 0x0000, struct.pack("<I", len(elements))) + elements

        def pdu(control: int, fragment: bytes | memoryview) -> bytes:
            header = struct.pack(">BxIIBB", 0x04, len(fragment) + 6, len(fragment) + 2, CONTEXT_ID, control)
            return header + fragment

        # The six bytes of the PDV header count towards the maximum length (PS3.8 §D.1.1); fragments are even.
        largest = (min(maximum_length or LARGEST_PDU, LARGEST_PDU) - 6) & ~1
        data_set = memoryview(workload.data_set())
        fragments = [data_set[at : at + largest] for at in range(0, len(data_set), largest)]
        head = pdu(LAST_COMMAND_FRAGMENT, command) + pdu(2 if len(fragments) == 1 else 0, fragments[0])
        tail = bytearray()
        for number, fragment in enumerate(fragments[1:], start=2):
            tail += pdu(2 if number == len(fragments) else 0, fragment)
        in_command = head.index(uid.encode())
        in_data_set = head.index(uid.encode(), in_command + 1)
        message_id_at = head.index(b"\x00\x00\x10\x01\x02\x00\x00\x00") + 8
        places = [
            (head.find(its(0).encode()), len(its(0)), its) for its in (study_uid, series_uid, patient_id)
        ]
        study_at = tuple(place for place in places if place[0] >= 0)
        return cls(head, memoryview(tail), message_id_at, (in_command, in_data_set), study_at)


@dataclass(slots=True)
class Association:
    """One association in flight: what is still to be written, what has been read."""

    sock: socket.socket
    head: bytearray
    objects_left: int
    number: int  # of the next object
    is_kept: bool = False  # without objects it stays open
    unsent: list[memoryview] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    established: bool = False
    releasing: bool = False
    writing: bool = False


class Sender:
    """Floods one receiver over a number of associations, each with its share of the objects."""

    def __init__(
        self,
        address: tuple[str, int],
        workload: Workload,
        *,
        called_ae_title: str,
        objects_per_study: int = 0,
    ) -> None:
        """objects_per_study: consecutive numbers in one study, for a workload of many studies."""
        self._address = address
        self._objects_per_study = objects_per_study
        self._workload = workload
        self._associate_rq = associate_rq(
            called_ae_title=called_ae_title, sop_class_uid=workload.size.sop_class_uid
        )
        self.maximum_length = self._ask_maximum_length()
        self._encoded = Encoded.encode(workload, self.maximum_length)
        self._selector = selectors.DefaultSelector()
        self._release_at_s = 0.0

    def _ask_maximum_length(self) -> int:
        """Learn before the clock starts how long the PDUs may be: an association that sends nothing."""
        with socket.create_connection(self._address, timeout=STALL_TIMEOUT_S) as sock:
            sock.sendall(self._associate_rq)
            maximum_length = maximum_length_of(_read_pdu(sock))
            sock.sendall(RELEASE_RQ)
            _read_pdu(sock)  # the A-RELEASE-RP; closing is the requestor's part (PS3.8 Table 9-10, AR-3)
        return maximum_length

    def flood(self, objects: int, *, associations: int, first_number: int) -> Flood:
        """Send that many objects in all, numbered from first_number, and wait until every association is released."""
        waiting = [self._new() for _ in range(associations)]
        self._distribute(waiting, objects, first_number)
        began_at_s = time.monotonic()
        started, cpu_started_s = time.perf_counter(), time.process_time()
        for association in waiting:
            self._connect(association)
        self._serve(waiting)
        return self._flood(
            objects, began_at_s, time.perf_counter() - started, time.process_time() - cpu_started_s
        )

    # The same in parts, for who looks at the receiver in between. elapsed_s is that of the objects alone.

    def open(self, associations: int) -> list[Association]:
        """So many associations, established."""
        opened = [self._new(is_kept=True) for _ in range(associations)]
        for association in opened:
            self._connect(association)
        self._serve(opened)
        return opened

    def send(self, opened: Sequence[Association], objects: int, *, first_number: int) -> Flood:
        """Send so many objects over associations that are open, and stay so."""
        self._distribute(opened, objects, first_number)
        busy = [association for association in opened if association.objects_left]
        began_at_s = time.monotonic()
        started, cpu_started_s = time.perf_counter(), time.process_time()
        for association in busy:
            self._send_next(association)
        self._serve(busy)
        return self._flood(
            objects, began_at_s, time.perf_counter() - started, time.process_time() - cpu_started_s
        )

    def release(self, opened: Sequence[Association]) -> None:
        for association in opened:
            association.is_kept = False
            self._send_next(association)
        self._serve(opened)

    def _flood(self, objects: int, began_at_s: float, elapsed_s: float, cpu_s: float) -> Flood:
        return Flood(
            objects,
            objects * self._workload.data_set_bytes,
            elapsed_s,
            self.maximum_length,
            began_at_s,
            self._release_at_s,
            cpu_s,
        )

    def _new(self, *, is_kept: bool = False) -> Association:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Association(sock, bytearray(self._encoded.head), 0, 0, is_kept)

    def _distribute(self, associations: Sequence[Association], objects: int, first_number: int) -> None:
        for index, association in enumerate(associations):
            association.objects_left = objects // len(associations) + (index < objects % len(associations))
            association.number = first_number
            first_number += association.objects_left

    def _connect(self, association: Association) -> None:
        association.sock.connect(self._address)
        association.sock.setblocking(False)
        self._selector.register(association.sock, selectors.EVENT_READ, association)
        self._write(association, [memoryview(self._associate_rq)])

    def _serve(self, busy: Sequence[Association]) -> None:
        """Until each of them has nothing left to do."""
        in_flight = len(busy)
        while in_flight:
            ready = self._selector.select(STALL_TIMEOUT_S)
            if not ready:
                raise SendError(f"no answer in {STALL_TIMEOUT_S} s")
            for key, events in ready:
                association = key.data
                if events & selectors.EVENT_WRITE:
                    self._flush(association)
                if events & selectors.EVENT_READ and self._read(association):
                    in_flight -= 1
                    if association.releasing:
                        self._selector.unregister(association.sock)
                        association.sock.close()

    def _read(self, association: Association) -> bool:
        """Take in what has come; True when there is nothing left to do."""
        data = association.sock.recv(65536)
        if not data:
            raise SendError(f"connection closed with {association.objects_left} objects left to send")
        received = association.received
        received += data
        while len(received) >= 6 and len(received) >= (end := 6 + int.from_bytes(received[2:6], "big")):
            pdu = bytes(received[:end])
            del received[:end]
            if association.releasing:
                if pdu[0] != 0x06:
                    raise SendError(f"A-RELEASE-RQ was answered with a PDU of type {pdu[0]:#04x}")
                return True
            if not association.established:
                if maximum_length_of(pdu) != self.maximum_length:
                    raise SendError("this association's maximum length differs from the first one's")
                association.established = True
            elif pdu[0] != 0x04 or SUCCESS not in pdu:
                raise SendError(f"C-STORE-RQ was answered with {pdu.hex()}")
            if association.is_kept and not association.objects_left:
                return True
            self._send_next(association)
        return False

    def _send_next(self, association: Association) -> None:
        if not association.objects_left:
            association.releasing = True
            self._release_at_s = time.monotonic()
            self._write(association, [memoryview(RELEASE_RQ)])
            return
        association.objects_left -= 1
        head, uid = association.head, instance_uid(association.number).encode()
        struct.pack_into("<H", head, self._encoded.message_id_at, association.number & 0xFFFF)
        for at in self._encoded.uids_at:
            head[at : at + UID_LENGTH] = uid
        if self._objects_per_study:
            study = association.number // self._objects_per_study
            for at, length, its in self._encoded.study_at:
                head[at : at + length] = its(study).encode()
        association.number += 1
        tail = self._encoded.tail
        self._write(association, [memoryview(head), tail] if tail else [memoryview(head)])

    def _write(self, association: Association, buffers: list[memoryview]) -> None:
        association.unsent = buffers
        self._flush(association)

    def _flush(self, association: Association) -> None:
        unsent = association.unsent
        try:
            while unsent:
                sent = association.sock.sendmsg(unsent)
                while unsent and sent >= len(unsent[0]):
                    sent -= len(unsent.pop(0))
                if sent:
                    unsent[0] = unsent[0][sent:]
        except BlockingIOError:
            pass
        if association.writing != bool(unsent):
            association.writing = bool(unsent)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
            self._selector.modify(association.sock, events, association)


def _sum(floods: Sequence[Flood]) -> Flood:
    return replace(
        floods[-1],
        objects=sum(flood.objects for flood in floods),
        data_set_bytes=sum(flood.data_set_bytes for flood in floods),
        elapsed_s=sum(flood.elapsed_s for flood in floods),
        began_at_s=floods[0].began_at_s,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preencoded", description=__doc__.splitlines()[0]
    )
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path, help="written by benchmarks.workloads.create")
    parser.add_argument("--size", choices=SIZES, required=True, help="which size the file has")
    parser.add_argument("--data-set-offset", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--called-ae-title", default="ANY-SCP")
    parser.add_argument("--objects", type=int, default=100, help="over all associations (default: 100)")
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="so many floods, one after the other")
    parser.add_argument("--first-number", type=int, default=1, help="number in the first SOP Instance UID")
    options = parser.parse_args(arguments)
    data_set_bytes = options.file.stat().st_size - options.data_set_offset
    workload = Workload(SIZES[options.size], options.file, options.data_set_offset, data_set_bytes)
    try:
        sender = Sender((options.host, options.port), workload, called_ae_title=options.called_ae_title)
        floods = [
            sender.flood(
                options.objects,
                associations=options.associations,
                first_number=options.first_number + turn * options.objects,
            )
            for turn in range(options.repeat)
        ]
    except (SendError, OSError) as error:
        print(f"preencoded: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(_sum(floods))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
