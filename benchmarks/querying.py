"""Clients that ask C-FINDs and time the answers: `python -m benchmarks.querying PORT KIND ...`.

Two of them. Ours encodes every request before the clock starts, sends each in one write with Nagle's algorithm off and
counts what comes, on one or several associations at once (one thread, one epoll), so that the server is what is
measured. `--pynetdicom` asks the same with pynetdicom, which leaves Nagle's algorithm on and writes command and
Identifier one after the other, as it is used everywhere.

What is asked follows from `find_data`: KIND is one of KINDS. The last line on stdout is the result as JSON; `find`
reads it.
"""

import argparse
import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any

from benchmarks.draining import QUERY_CONTEXT_ID, RELEASE_RQ, associate_rq
from benchmarks.find_data import TRANSFER_SYNTAX_UID, Study, study_of
from benchmarks.floor import parse_command
from benchmarks.measure import cpu_at_rest_s
from benchmarks.peers import CALLED_AE_TITLE
from harmony.dicom.json_model import Model, encode_data_set

TIMEOUT_S = 60.0
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PENDING = (0xFF00, 0xFF01)
STEP = 7919  # a prime: neighbouring queries ask for studies far apart

LEVEL, STUDY_DATE, PATIENT_NAME, PATIENT_ID = "00080052", "00080020", "00100010", "00100020"
STUDY_UID = "0020000D"
_RETURNED = {
    "STUDY": {
        STUDY_DATE: "DA", "00080030": "TM", "00080050": "SH", "00080061": "CS", "00081030": "LO",
        PATIENT_NAME: "PN", PATIENT_ID: "LO", "00100030": "DA", STUDY_UID: "UI", "00201206": "IS", "00201208": "IS",
    },
    "SERIES": {
        "00080060": "CS", "0008103E": "LO", STUDY_UID: "UI", "0020000E": "UI", "00200011": "IS", "00201209": "IS",
    },
}  # fmt: skip


class QueryError(Exception):
    """The server did something else than answer."""


def _week(study: Study) -> str:
    first = datetime.strptime(study.date, "%Y%m%d")
    return f"{study.date}-{first + timedelta(days=6):%Y%m%d}"


KINDS: dict[str, Callable[[Study], tuple[str, str, str, Any]]] = {
    "patient": lambda study: ("STUDY", PATIENT_ID, "LO", study.patient_id),
    "week": lambda study: ("STUDY", STUDY_DATE, "DA", _week(study)),
    "name": lambda study: ("STUDY", PATIENT_NAME, "PN", {"Alphabetic": _beginning(study) + "*"}),
    "series": lambda study: ("SERIES", STUDY_UID, "UI", study.uid),
}
"""Of a study: the level of the query, and tag, VR and value of its one key."""

TITLES = {
    "patient": "studies of a patient, by Patient ID",
    "week": "studies of a week, by Study Date",
    "name": "studies, by Patient's Name NAME^GIVEN*",
    "series": "series of a study",
}


def _beginning(study: Study) -> str:
    return study.patient_name.rstrip("0123456789")


def identifier(kind: str, study: Study) -> Model:
    level, tag, vr, value = KINDS[kind](study)
    model: Model = {LEVEL: {"vr": "CS", "Value": [level]}}
    model |= {each: {"vr": its} for each, its in _RETURNED[level].items()}
    model[tag] = {"vr": vr, "Value": [value]}
    return dict(sorted(model.items()))


@dataclass(slots=True)
class Asked:
    """What a client did; one latency per query, in the order in which they ended."""

    elapsed_s: float = 0.0
    matches: int = 0
    first_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)


def _request(message_id: int, data: bytes) -> bytes:
    """One P-DATA-TF with a C-FIND-RQ and its Identifier."""

    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, number, len(value)) + value

    uid = STUDY_ROOT_FIND.encode()
    elements = element(0x0002, uid + b"\0" * (len(uid) % 2)) + element(0x0100, b"\x20\x00")
    elements += element(0x0110, struct.pack("<H", message_id)) + element(0x0700, b"\x00\x00")
    elements += element(0x0800, b"\x01\x00")
    command = element(0x0000, struct.pack("<I", len(elements))) + elements
    values = struct.pack(">IBB", len(command) + 2, QUERY_CONTEXT_ID, 3) + command
    values += struct.pack(">IBB", len(data) + 2, QUERY_CONTEXT_ID, 2) + data
    return struct.pack(">BxI", 0x04, len(values)) + values


class _Association:
    """One association, one query at a time."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = iter(requests)
        self._received = bytearray()
        self._command = b""
        self._status = -1
        self._asked_at = 0.0
        self._first_at = 0.0
        self.sock.sendall(associate_rq(STUDY_ROOT_FIND, as_scp=(), maximum_length=131072))
        while len(self._received) < 6 or len(self._received) < 6 + int.from_bytes(self._received[2:6], "big"):
            self._read()
        if self._received[0] != 0x02:
            raise QueryError(f"A-ASSOCIATE-RQ was answered with {self._received.hex()}")
        self._received.clear()

    def _read(self) -> None:
        data = self.sock.recv(262144)
        if not data:
            raise QueryError("the connection was closed")
        self._received += data

    def ask(self) -> bool:
        """Send the next query; False when there is none."""
        request = next(self._requests, None)
        if request is None:
            return False
        self._first_at = 0.0
        self._asked_at = time.perf_counter()
        self.sock.sendall(request)
        return True

    def readable(self, asked: Asked) -> bool:
        """Take in what has come; True when the query has been answered."""
        self._read()
        received, at = self._received, 0
        over = False
        while len(received) - at >= 6:
            end = at + 6 + int.from_bytes(received[at + 2 : at + 6], "big")
            if end > len(received):
                break
            if received[at] != 0x04:
                raise QueryError(f"a query was answered with {received[at:end].hex()}")
            at += 6
            while at < end:
                length, _, control = struct.unpack_from(">IBB", received, at)
                over = self._value(control, received[at + 6 : at + 4 + length], asked) or over
                at += 4 + length
        del received[:at]
        return over

    def _value(self, control: int, fragment: bytearray, asked: Asked) -> bool:
        if not control & 1:
            asked.matches += bool(control & 2)
            return False
        self._command += fragment
        if not control & 2:
            return False
        elements, self._command = parse_command(self._command), b""
        status = int.from_bytes(elements[0x0900], "little")
        now = time.perf_counter()
        self._first_at = self._first_at or now
        if status in PENDING:
            return False
        if status:
            raise QueryError(f"a query ended with status {status:#06x}")
        asked.first_s.append(self._first_at - self._asked_at)
        asked.last_s.append(now - self._asked_at)
        return True

    def release(self) -> None:
        self.sock.settimeout(TIMEOUT_S)
        self.sock.sendall(RELEASE_RQ)
        self.sock.recv(64)
        self.sock.close()


def ask(port: int, identifiers: Sequence[bytes], *, associations: int) -> Asked:
    """Ask all of it, each association its share, one query at a time. Raises QueryError, OSError."""
    encoded = [_request(number % 65535 + 1, data) for number, data in enumerate(identifiers)]
    opened = [_Association(port, encoded[index::associations]) for index in range(associations)]
    asked, selector = Asked(), selectors.DefaultSelector()
    started = time.perf_counter()
    in_flight = 0
    for association in opened:
        if association.ask():
            selector.register(association.sock, selectors.EVENT_READ, association)
            in_flight += 1
    while in_flight:
        ready = selector.select(TIMEOUT_S)
        if not ready:
            raise QueryError(f"no answer in {TIMEOUT_S} s")
        for key, _ in ready:
            if key.data.readable(asked) and not key.data.ask():
                selector.unregister(key.data.sock)
                in_flight -= 1
    asked.elapsed_s = time.perf_counter() - started
    for association in opened:
        association.release()
    return asked


def ask_with_pynetdicom(port: int, identifiers: Sequence[bytes]) -> Asked:
    """The same on one association of pynetdicom's. Raises QueryError."""
    from pydicom.filereader import read_dataset
    from pynetdicom import AE

    entity = AE(ae_title="PYNETDICOM")
    entity.add_requested_context(STUDY_ROOT_FIND, TRANSFER_SYNTAX_UID)
    entity.dimse_timeout = entity.acse_timeout = entity.network_timeout = TIMEOUT_S
    association = entity.associate("127.0.0.1", port, ae_title=CALLED_AE_TITLE)
    if not association.is_established:
        raise QueryError("pynetdicom got no association")
    data_sets = [read_dataset(BytesIO(data), False, True) for data in identifiers]
    asked, started = Asked(), time.perf_counter()
    for data_set in data_sets:
        asked_at, first_at = time.perf_counter(), 0.0
        for status, match in association.send_c_find(data_set, STUDY_ROOT_FIND):
            first_at = first_at or time.perf_counter()
            asked.matches += match is not None
            if not status or status.Status not in (*PENDING, 0):
                raise QueryError(f"a query of pynetdicom's ended with {status}")
        asked.first_s.append(first_at - asked_at)
        asked.last_s.append(time.perf_counter() - asked_at)
    asked.elapsed_s = time.perf_counter() - started
    association.release()
    return asked


def studies_of(patient_id: str) -> bytes:
    """The Identifier for all studies of a patient, which wants nothing returned but their UIDs."""
    model: Model = {
        LEVEL: {"vr": "CS", "Value": ["STUDY"]},
        PATIENT_ID: {"vr": "LO", "Value": [patient_id]},
        STUDY_UID: {"vr": "UI"},
    }
    return encode_data_set(model, TRANSFER_SYNTAX_UID)


def indexed_cpu_s(port: int, pid: int) -> float:
    """CPU time of a Harmony when everything it has received is in its index, which an answer waits for."""
    ask(port, [studies_of("NOBODY")], associations=1)
    return cpu_at_rest_s(pid)


def studies_asked_for(count: int, studies: int, *, shift: int = 0) -> Iterator[Study]:
    """Which studies so many queries are about, of an archive of `studies`; another shift, other ones."""
    for number in range(count):
        yield study_of((shift + number) * STEP % studies)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.querying", description=__doc__.splitlines()[0]
    )
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--studies", type=int, required=True, help="in the archive")
    parser.add_argument("--queries", type=int, default=100, help="over all associations")
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument("--shift", type=int, default=0, help="ask for other studies")
    parser.add_argument("--pynetdicom", action="store_true", help="ask with pynetdicom")
    options = parser.parse_args(arguments)
    encoded = [
        encode_data_set(identifier(options.kind, study), TRANSFER_SYNTAX_UID)
        for study in studies_asked_for(options.queries, options.studies, shift=options.shift)
    ]
    try:
        if options.pynetdicom:
            asked = ask_with_pynetdicom(options.port, encoded)
        else:
            asked = ask(options.port, encoded, associations=options.associations)
    except (QueryError, OSError) as error:
        print(f"querying: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(asked)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
