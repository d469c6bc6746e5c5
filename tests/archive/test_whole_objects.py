"""The short cut for objects in one fragment, against the way of all others: the same answers, files, index, counts.

Both get the same bytes in the same pieces, over associations whose transport is a list.
"""

import asyncio
import itertools
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony.archive.files import FileStore
from harmony.archive.index import UniqueKeys
from harmony.archive.indexing import ArchiveIndex
from harmony.archive.stored import StoredObject
from harmony.archive.whole_objects import WholeObjects
from harmony.dimse.command import CEchoRQ, CStoreRQ
from harmony.dimse.scp import Server, Services
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.store_receiver import StoreReceivers
from harmony.gateway.tallies import AssociationTally
from harmony.ul import UserInformation, propose_contexts
from harmony.ul.association import Association
from harmony.ul.negotiation import AcceptorPolicy
from harmony.ul.pdu import AssociateRQ

SECONDARY_CAPTURE, CT_IMAGE = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CONTEXTS = propose_contexts(
    [(VERIFICATION, [IMPLICIT]), (SECONDARY_CAPTURE, [EXPLICIT]), (SECONDARY_CAPTURE, [IMPLICIT])]
)
"""Numbered 1, 3 and 5."""
MAXIMUM_OBJECT_BYTES = 3000


def element(tag: int, vr: bytes, value: bytes, *, explicit: bool = True, pad: bytes = b"\0") -> bytes:
    value += pad * (len(value) % 2)
    if explicit:
        return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


@dataclass(frozen=True)
class Object:
    instance: bytes = b"1.2.3.9.1"
    named: bytes | None = None
    """In the command, when that is another one."""
    study: bytes = b"1.2.3"
    series: bytes = b"1.2.3.9"
    sop_class: bytes = SECONDARY_CAPTURE.encode()
    patient: bytes = b"Doe^Jane"
    time: bytes = b"101500"
    context_id: int = 3
    explicit: bool = True
    pixels: int = 100
    pad: bytes = b"\0"
    sequence: bool = False
    """Of undefined length, before the UIDs of study and series."""
    preamble: bool = False
    """A file inside of the C-STORE."""
    missing: int = 0
    """A tag to leave out."""

    def data_set(self) -> bytes:
        elements = [
            (0x00080016, b"UI", self.sop_class, self.pad),
            (0x00080018, b"UI", self.instance, self.pad),
            (0x00080030, b"TM", self.time, b" "),
            (0x00100010, b"PN", self.patient, b" "),
            (0x00100020, b"LO", b"ID" * 40, b" "),
            (0x0020000D, b"UI", self.study, self.pad),
            (0x0020000E, b"UI", self.series, self.pad),
            (0x00204000, b"LT", b"x" * self.pixels, b" "),
        ]
        encoded = [
            element(tag, vr, value, explicit=self.explicit, pad=pad)
            for tag, vr, value, pad in elements
            if tag != self.missing
        ]
        if self.sequence:
            header = b"\x08\x00\x10\x11" + (b"SQ\0\0" if self.explicit else b"") + b"\xff\xff\xff\xff"
            encoded.insert(3, header + b"\xfe\xff\xdd\xe0\0\0\0\0")
        data = b"".join(encoded)
        if self.preamble:
            syntax = element(0x00020010, b"UI", EXPLICIT.encode())
            data = bytes(128) + b"DICM" + syntax + data
        return data


@dataclass(frozen=True)
class Sent:
    """A message as PDUs."""

    what: Object | None
    """None: a C-ECHO."""
    message_id: int = 1
    priority: int = 0
    originator: str = ""
    command_pieces: int = 1
    data_pieces: int = 1
    packed: bool = False

    def pdus(self) -> bytes:
        if self.what is None:
            return p_data(pdv(1, 3, CEchoRQ(self.message_id).encode()))
        context_id = self.what.context_id
        command = CStoreRQ(
            self.message_id,
            SECONDARY_CAPTURE,
            (self.what.named or self.what.instance).decode("latin-1"),
            self.priority,
            self.originator,
            7 if self.originator else None,
        ).encode()
        pdvs = pieces_of(context_id, 1, command, self.command_pieces)
        pdvs += pieces_of(context_id, 0, self.what.data_set(), self.data_pieces)
        return p_data(b"".join(pdvs)) if self.packed else b"".join(map(p_data, pdvs))


def pdv(context_id: int, control: int, fragment: bytes) -> bytes:
    return struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment


def p_data(pdvs: bytes) -> bytes:
    return struct.pack(">BxI", 4, len(pdvs)) + pdvs


def pieces_of(context_id: int, kind: int, value: bytes, count: int) -> list[bytes]:
    size = max(2, len(value) // count + 1)
    places = range(0, len(value) or 1, size)
    return [pdv(context_id, kind | 2 * (at == places[-1]), value[at : at + size]) for at in places]


class Transport(asyncio.Transport):
    """Takes everything at once, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: Any) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


@dataclass
class Gateway:
    """An archive behind an association, with the short cut or without; and what became of what it was sent."""

    root: Path
    short_cut: bool
    duplicates: Any = "keep_first"
    appended: list[StoredObject] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    """Whether the short cut took it, by object that it was tried with."""

    def __post_init__(self) -> None:
        self.index = ArchiveIndex(self.root)
        self.index.open()
        files = FileStore(self.root, duplicates=self.duplicates, maximum_object_bytes=MAXIMUM_OBJECT_BYTES)
        files.open()
        self.archive = LocalArchive(files, self.index)
        self.tally = AssociationTally()
        append = self.index.append

        def appended(stored: StoredObject) -> None:
            append(stored)
            self.appended.append(stored._replace(path=stored.path.removeprefix(str(self.root))))

        self.index.append = appended  # type: ignore[method-assign]
        moves, services = StoreReceivers(), Services()
        whole = moves.whole_store(self._whole) if self.short_cut else None
        services.store(moves.open_sink(self.archive.store), whole=whole)
        services.observe(self.tally)
        self.server = Server()
        self.server.add(services, AcceptorPolicy(maximum_length=65536))

    def _whole(self, request: Any) -> Any:
        store = self.archive.whole_store(request)
        assert isinstance(store, WholeObjects)

        def noted(uid: bytes, fragments: Sequence[memoryview]) -> Any:
            outcome = store(uid, fragments)
            self.whole.append(outcome is not None)
            return outcome

        return noted

    def connect(self) -> tuple[Association, Transport]:
        transport = Transport()
        association = self.server.acceptor._make_association()
        association.connection_made(transport)
        request = AssociateRQ(
            called_ae_title="HARMONY",
            calling_ae_title="MODALITY",
            presentation_contexts=tuple(CONTEXTS),
            user_information=UserInformation(maximum_length=16384, implementation_class_uid="1.2.3"),
        )
        receive(association, request.encode())
        assert association.is_open
        transport.written.clear()
        return association, transport

    def result(self) -> dict[str, Any]:
        """All that can be told of it afterwards."""
        self.index.flush(10)
        rows = [
            (stored.path.removeprefix(str(self.root)), header)
            for stored, header in self.index.headers(UniqueKeys(study_instance_uids=None))
        ]
        return {
            "files": {
                str(path.relative_to(self.root)): path.read_bytes()
                for path in self.root.rglob("*")
                if path.is_file() and ".index" not in path.parts
            },
            "index": sorted(rows, key=lambda row: row[0]),
            "counts": {
                kind.__name__: (tally.statuses, sum(tally.durations.counts))
                for kind, tally in self.tally.as_scp.items()
            },
        }


def receive(association: Association, data: bytes) -> None:
    """As the event loop does; what was read is overwritten after that."""
    buffer = association.get_buffer(-1)
    while data:
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        association.buffer_updated(size)
        buffer[:size] = b"\xff" * size
        data = data[size:]


def run(gateway: Gateway, stream: bytes, cuts: Sequence[int]) -> tuple[bytes, dict[str, Any]]:
    async def main() -> tuple[bytes, dict[str, Any]]:
        association, transport = gateway.connect()
        places = [0, *sorted({cut % len(stream) for cut in cuts} - {0}), len(stream)]
        for start, end in itertools.pairwise(places):
            receive(association, stream[start:end])
        await asyncio.sleep(0)
        association.abort()
        return bytes(transport.written[:]), gateway.result()

    try:
        return asyncio.run(main())
    finally:
        gateway.index.close()


uids = st.sampled_from([b"1.2.3.9.1", b"1.2.3.9.2", b"1.2.3.9.10", b"1.2.3.9.11", b"1.2.3.9.117"])
plain = st.builds(
    Object,
    instance=uids,
    study=st.sampled_from([b"1.2.3", b"1.2.4"]),
    series=st.sampled_from([b"1.2.3.9", b"1.2.3.8"]),
    patient=st.sampled_from([b"Doe^Jane", b"Roe^Jane", b"Doe^J"]),
    time=st.sampled_from([b"101500", b"101501", b"1015"]),
    context_id=st.just(3),
)
odd = st.builds(
    Object,
    instance=st.one_of(uids, st.sampled_from([b"1..2", b"", b"../../x", b"1.2.3.9.1 "])),
    named=st.one_of(st.none(), st.sampled_from([b"1.2.3.9.77", b"x/y", b"1.2.3.9."])),
    study=st.sampled_from([b"1.2.3", b"..", b""]),
    sop_class=st.sampled_from([SECONDARY_CAPTURE.encode(), CT_IMAGE.encode()]),
    patient=st.sampled_from([b"Doe^Jane", b"DICM\2\0 ", b"DICM\2\0DICM\2\0DICM\2\0"]),
    context_id=st.sampled_from([3, 5]),
    explicit=st.booleans(),
    pixels=st.sampled_from([0, 100, MAXIMUM_OBJECT_BYTES]),
    pad=st.sampled_from([b"\0", b" "]),
    sequence=st.booleans(),
    preamble=st.booleans(),
    missing=st.sampled_from([0, 0, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00100020]),
)
messages = st.builds(
    Sent,
    what=st.one_of(plain, plain, plain, plain, odd, st.none()),
    message_id=st.integers(0, 0xFFFF),
    priority=st.sampled_from([0, 0, 0, 2]),
    originator=st.sampled_from(["", "", "", "OTHER"]),
    command_pieces=st.sampled_from([1, 1, 1, 2]),
    data_pieces=st.sampled_from([1, 1, 1, 3]),
    packed=st.booleans(),
).filter(lambda sent: sent.what is None or len(sent.what.named or sent.what.instance) > 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(messages, min_size=2, max_size=14),
    st.lists(st.integers(0, 1 << 20), max_size=12),
    st.sampled_from(["keep_first", "keep_both", "replace", "refuse"]),
)
def test_the_short_cut_does_what_the_long_way_does(
    sent: list[Sent], cuts: list[int], duplicates: str
) -> None:
    stream = b"".join(each.pdus() for each in sent)
    with TemporaryDirectory() as folder:
        results = []
        for short_cut in (True, False):
            gateway = Gateway(Path(folder) / str(short_cut), short_cut, duplicates)
            answers, result = run(gateway, stream, cuts)
            # An object that is refused may have been written down; an index then looks, and finds what is there.
            result["journal"] = {stored.path for stored in gateway.appended} & {
                f"/{path}" for path in result["files"]
            }
            results.append((answers, result))
        assert results[0] == results[1]


def test_objects_of_a_series_take_the_short_cut_once_the_first_has_come(tmp_path: Path) -> None:
    times = [b"101500", b"101501", b"101502", b"101503"]
    objects = [Object(instance=b"1.2.3.9.%d" % (10 + number), time=time) for number, time in enumerate(times)]
    gateway = Gateway(tmp_path, True)
    stream = b"".join(Sent(each, number).pdus() for number, each in enumerate(objects))
    run(gateway, stream, ())
    assert gateway.whole == [True, True, True]
    assert [stored.sop_instance_uid for stored in gateway.appended] == [f"1.2.3.9.{10 + n}" for n in range(4)]


def test_fragments_in_one_buffer_are_stored_in_one_go(tmp_path: Path) -> None:
    objects = [
        Sent(Object(instance=b"1.2.3.9.%d" % number, pixels=2000), data_pieces=3) for number in range(4)
    ]
    gateway = Gateway(tmp_path, True)
    stream = b"".join(each.pdus() for each in objects)
    _, result = run(gateway, stream, [len(stream) - 100])
    assert gateway.whole == [True, True]  # the first is learned from, and the last comes in two reads
    assert len(result["files"]) == 4


def test_a_file_is_written_down_before_it_gets_its_name(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, True)
    there: list[bool] = []
    append = gateway.index.append

    def appended(stored: StoredObject) -> None:
        append(stored)
        there.append(Path(stored.path).exists())

    gateway.index.append = appended  # type: ignore[method-assign]
    stream = b"".join(Sent(Object(instance=b"1.2.3.9.%d" % number)).pdus() for number in range(3))
    run(gateway, stream, ())
    assert gateway.whole == [True, True]
    assert there == [False, False, False]


def test_a_journal_that_cannot_be_written_refuses_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(tmp_path, True)
    run_first = b"".join(Sent(Object(instance=b"1.2.3.9.%d" % number)).pdus() for number in range(2))

    def refuses(stored: StoredObject) -> None:
        if stored.sop_instance_uid == "1.2.3.9.2":
            raise OSError(28, "No space left on device")

    gateway.index.append = refuses  # type: ignore[method-assign]
    with caplog.at_level(logging.CRITICAL, "harmony.archive"):
        answers, result = run(gateway, run_first + Sent(Object(instance=b"1.2.3.9.2")).pdus(), ())
    assert sorted(result["files"]) == ["1.2.3/1.2.3.9/1.2.3.9.0.dcm", "1.2.3/1.2.3.9/1.2.3.9.1.dcm"]
    assert b"\0\0\0\x09\2\0\0\0\0\xa7" in answers  # (0000,0900): A700, out of resources


def test_a_series_folder_that_is_gone_is_made_again(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, True)

    async def main() -> None:
        association, _ = gateway.connect()
        for number in range(4):
            receive(association, Sent(Object(instance=b"1.2.3.9.%d" % number)).pdus())
            if number == 1:
                for path in (tmp_path / "1.2.3" / "1.2.3.9").iterdir():
                    path.unlink()
                (tmp_path / "1.2.3" / "1.2.3.9").rmdir()
        association.abort()

    asyncio.run(main())
    gateway.index.close()
    assert sorted(path.name for path in tmp_path.rglob("*.dcm")) == ["1.2.3.9.2.dcm", "1.2.3.9.3.dcm"]
    assert gateway.whole == [True, False, True]
    assert not list((tmp_path / ".incoming").iterdir())
