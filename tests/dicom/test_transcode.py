"""Transcoding as C-GET and C-MOVE use it: every sample file, deflate, instances of every kind of source, memory."""

import asyncio
import contextlib
import itertools
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import AsyncGenerator

import pydicom.config
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset

from harmony.dicom.json_model import decode_data_set
from harmony.dicom.transcode import (
    AHEAD_BYTES,
    NATIVE_TRANSFER_SYNTAXES,
    TranscodeError,
    Transcoder,
    transcode,
)
from harmony.dimse import SUCCESS_OUTCOME, BytesSink, FileSource, Instance, Services, serve
from harmony.dimse.command import CGetRQ, CMoveRQ
from harmony.dimse.information_model import STUDY_ROOT, propose_get, propose_query
from harmony.dimse.peer import Peer
from harmony.dimse.retrieve import GetReceiver, get, move
from harmony.dimse.retrieve_scp import Selection, get_handler, move_handler
from harmony.dimse.source import pieces

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.50"
CT = "1.2.840.10008.5.1.4.1.1.2"

SOP_INSTANCE_UID = {
    EXPLICIT: b"\x08\0\x18\0UI\x06\x001.2.3\0",
    IMPLICIT: b"\x08\0\x18\0\x06\0\0\x001.2.3\0",
    BIG_ENDIAN: b"\0\x08\0\x18UI\0\x061.2.3\0",
}
# RFC 1951 §3.2.4: the last block, stored; 14 bytes and the complement of their number.
STORED = b"\x01\x0e\x00\xf1\xff" + SOP_INSTANCE_UID[EXPLICIT]


def convert(data, source, target, *, cuts=()):
    transcoder = Transcoder(source, target)
    converted = bytearray()
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        for piece in transcoder.feed(data[start:end]):
            converted += piece
    for piece in transcoder.finish():
        converted += piece
    return bytes(converted)


def inflate(data):
    decompressor = zlib.decompressobj(-15)
    return decompressor.decompress(data) + decompressor.flush(), decompressor.unused_data


# --- Deflate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_inflated(target):
    for data in (
        STORED,
        STORED + b"\0",  # padded to an even length (PS3.5 §A.5)
        zlib.compress(SOP_INSTANCE_UID[EXPLICIT]),
        SOP_INSTANCE_UID[EXPLICIT],  # only claimed to be
    ):
        for cuts in ((), range(1, len(data))):
            assert convert(data, DEFLATED, target, cuts=cuts) == SOP_INSTANCE_UID[target]


@pytest.mark.parametrize("source", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_deflated(source):
    data = SOP_INSTANCE_UID[source]
    for cuts in ((), range(1, len(data))):
        deflated = convert(data, source, DEFLATED, cuts=cuts)
        assert len(deflated) % 2 == 0
        assert inflate(deflated) in [(SOP_INSTANCE_UID[EXPLICIT], b""), (SOP_INSTANCE_UID[EXPLICIT], b"\0")]


@pytest.mark.parametrize("data", [STORED[:-1], STORED[:5], b"\x01", b"\x07" * 40, zlib.compress(b"")[:-1]])
def test_broken_deflate(data):
    for cuts in ((), range(1, len(data))):
        with pytest.raises(TranscodeError, match="deflated data set"):
            convert(data, DEFLATED, EXPLICIT, cuts=cuts)


def test_a_bomb_is_passed_on_in_bounded_pieces():
    """128 MB out of 128 KB, and nobody has to have it at once."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = b"\x08\0\x18\0UI\0\0\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", 1 << 27)
    bomb = compressor.compress(header)
    bomb += b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1 << 7)) + compressor.flush()
    assert len(bomb) < 200_000
    transcoder = Transcoder(DEFLATED, IMPLICIT)
    tracemalloc.start()
    try:
        size = sum(len(piece) for piece in transcoder.feed(bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == (1 << 27) + 16
    assert peak < 1_000_000


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from(NATIVE_TRANSFER_SYNTAXES),
    st.sampled_from(NATIVE_TRANSFER_SYNTAXES),
    st.lists(st.floats(0, 1), max_size=5),
)
def test_any_bytes(data, source, target, fractions):
    """Converted or refused, and the same for any split."""
    results = []
    for cuts in ((), sorted(int(fraction * len(data)) for fraction in fractions)):
        try:
            converted = convert(data, source, target, cuts=cuts)
            results.append(inflate(converted)[0] if target == DEFLATED else converted)
        except TranscodeError as error:
            results.append(str(error))
    assert results[0] == results[1]


# --- Files --------------------------------------------------------------------------------------------------

WORDS = {"OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}


def read(data, syntax):
    if syntax == DEFLATED:
        data = inflate(data)[0]
    return read_dataset(DicomBytesIO(data), syntax == IMPLICIT, syntax != BIG_ENDIAN)


def comparable(dataset, *, big):
    """Every element as tag, VR and value, bulk data in little endian; group lengths left out."""
    rows = []
    for element in dataset:
        if element.VR == "SQ":
            value = [comparable(item, big=big) for item in element.value]
        else:
            value = element.value
            if isinstance(value, bytes) and big and (size := WORDS.get(element.VR, 0)):
                value = b"".join(value[at : at + size][::-1] for at in range(0, len(value), size))
        if element.tag.element:
            rows.append((element.tag, element.VR, value))
    return rows


def test_every_native_sample_file(pydicom_files, monkeypatch):
    """As pydicom reads it, pixel data and private elements included, and as our own decoder does."""
    samples = [
        sample
        for sample in pydicom_files
        if sample.transfer_syntax_uid in NATIVE_TRANSFER_SYNTAXES and sample.path.name != "MR_truncated.dcm"
    ]
    assert {sample.transfer_syntax_uid for sample in samples} == set(NATIVE_TRANSFER_SYNTAXES)
    for sample, target in itertools.product(samples, NATIVE_TRANSFER_SYNTAXES):
        source, data = sample.transfer_syntax_uid, sample.data_set
        converted = convert(data, source, target)
        implicit = IMPLICIT in (source, target)
        # Where pydicom knows a private element better than the sender it takes UN for big-endian in Big Endian, against
        # PS3.5 §6.2.2 note 2.
        monkeypatch.setattr(pydicom.config, "replace_un_with_known_vr", BIG_ENDIAN not in (source, target))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values in the files are none of our business
            there = comparable(read(data, source), big=source == BIG_ENDIAN)
            here = comparable(read(converted, target), big=target == BIG_ENDIAN)
        assert without_lost_vrs(there, here, implicit=implicit) == here, (sample, target)
        if not implicit:
            models = [
                decode_data_set(encoded, syntax, stop_before=1 << 32)
                for encoded, syntax in ((data, source), (converted, target))
            ]
            assert models[0] == models[1], (sample, target)


def without_lost_vrs(there, here, *, implicit):
    """`there` with the VRs of `here` where Implicit VR does not have them: OB or OW, and private ones."""
    if not implicit:
        return there
    rows = []
    for row, (tag, vr, value) in itertools.zip_longest(there, here, fillvalue=(None, None, None)):
        if isinstance(row[2], list) and row[1] == vr == "SQ":
            items = itertools.zip_longest(row[2], value, fillvalue=[])
            row = (*row[:2], [without_lost_vrs(one, other, implicit=True) for one, other in items])
        elif {row[1], vr} == {"OB", "OW"}:
            row = (row[0], vr, row[2])
        elif tag is not None and tag.is_private and row[1] != vr:
            same_type = type(row[2]) is type(value)  # else bytes: test_data_set_converter is about them
            row = (row[0], vr, row[2] if same_type else value)
        rows.append(row)
    return rows


def test_a_truncated_sample_file(pydicom_files):
    (sample,) = [sample for sample in pydicom_files if sample.path.name == "MR_truncated.dcm"]
    with pytest.raises(TranscodeError, match="ends inside a value, 62 bytes before its end"):
        convert(sample.data_set, sample.transfer_syntax_uid, IMPLICIT)


# --- Memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [(EXPLICIT, IMPLICIT), (IMPLICIT, BIG_ENDIAN), (BIG_ENDIAN, EXPLICIT), (EXPLICIT, DEFLATED)],
)
def test_memory_does_not_depend_on_the_data(source, target):
    size, piece = 256 << 20, bytes(256 << 10)
    header = convert(b"\x28\0\x03\x01US\x02\0\0\0", EXPLICIT, source)
    header += {
        EXPLICIT: b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", size),
        IMPLICIT: b"\xe0\x7f\x10\0" + struct.pack("<I", size),
        BIG_ENDIAN: b"\x7f\xe0\0\x10OW\0\0" + struct.pack(">I", size),
    }[source]
    transcoder = Transcoder(source, target)
    converted = 0
    tracemalloc.start()
    try:
        for fed in (header, *itertools.repeat(piece, size // len(piece))):
            converted += sum(len(each) for each in transcoder.feed(fed))
        converted += sum(len(each) for each in transcoder.finish())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
    assert converted > size or target == DEFLATED


# --- The hook -----------------------------------------------------------------------------------------------


def image(syntax, size):
    """A data set with `size` bytes of pixel data."""
    pixels = bytes(range(256)) * (size // 256)
    explicit = SOP_INSTANCE_UID[EXPLICIT] + b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<I", size) + pixels
    return convert(explicit, EXPLICIT, syntax)


async def arriving(data, *, closed):
    try:
        for at in range(0, len(data), 10_000):
            yield data[at : at + 10_000]
    finally:
        closed.append(True)


def source_of(kind, data, folder, closed):
    if kind == "bytes":
        return data
    if kind == "arriving":
        return arriving(data, closed=closed)
    path = folder / "data"
    path.write_bytes(b"meta" + data)
    return FileSource(path, offset=4)


async def collected(data):
    return b"".join([bytes(piece) async for piece in pieces(data)])


SMALL, LARGE = 1024, 3 * AHEAD_BYTES


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("kind", ["bytes", "arriving", "file"])
async def test_instances_of_every_kind(tmp_path, kind, size):
    data, closed = image(BIG_ENDIAN, size), []
    instance = Instance(CT, "1.2.3", BIG_ENDIAN, source_of(kind, data, tmp_path, closed))
    converted = await transcode(instance, [IMPLICIT])
    assert converted.sop_class_uid == CT
    assert converted.sop_instance_uid == "1.2.3"
    assert converted.transfer_syntax_uid == IMPLICIT
    assert isinstance(converted.data, bytes if size == SMALL else AsyncGenerator)
    assert await collected(converted.data) == image(IMPLICIT, size)
    assert closed == ([True] if kind == "arriving" else [])


async def test_an_empty_data_set():
    converted = await transcode(Instance(CT, "1.2.3", EXPLICIT, b""), [IMPLICIT])
    assert await collected(converted.data) == b""


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ([BIG_ENDIAN, DEFLATED, IMPLICIT, EXPLICIT], EXPLICIT),
        ([JPEG, BIG_ENDIAN, DEFLATED, IMPLICIT], IMPLICIT),
        ([BIG_ENDIAN, DEFLATED], DEFLATED),
        ([JPEG, BIG_ENDIAN], BIG_ENDIAN),
        ([JPEG, "1.2.3.4"], None),
        ([], None),
    ],
)
async def test_preference(accepted, expected):
    converted = await transcode(Instance(CT, "1.2.3", EXPLICIT, image(EXPLICIT, SMALL)), accepted)
    assert (converted and converted.transfer_syntax_uid) == expected


@pytest.mark.parametrize("syntax", [JPEG, "1.2.840.10008.1.2.1.98", "1.2.3.4"])
async def test_only_native_instances(syntax):
    assert await transcode(Instance(CT, "1.2.3", syntax, b""), [EXPLICIT, IMPLICIT]) is None


async def test_an_error_shows_before_anything_is_sent():
    closed = []
    data = image(EXPLICIT, SMALL)[:-1]
    with pytest.raises(TranscodeError, match="1 bytes before its end"):
        await transcode(Instance(CT, "1.2.3", EXPLICIT, arriving(data, closed=closed)), [IMPLICIT])
    assert closed == [True]


@pytest.mark.parametrize("read_first", [False, True])
async def test_a_result_that_is_not_used_up_closes_its_source(read_first):
    closed = []
    instance = Instance(CT, "1.2.3", EXPLICIT, arriving(image(EXPLICIT, LARGE), closed=closed))
    converted = await transcode(instance, [IMPLICIT])
    if read_first:
        assert len(await anext(converted.data)) >= AHEAD_BYTES
    await converted.data.aclose()
    assert closed == [True]


# --- Loopback -----------------------------------------------------------------------------------------------


class Received(dict):
    """SOP Instance UID: (transfer syntax, data set)."""

    def open(self, request):
        def keep(data):
            self[request.affected_sop_instance_uid] = (request.transfer_syntax_uid, data)
            return SUCCESS_OUTCOME

        return BytesSink(keep, maximum_bytes=1 << 24)


@contextlib.asynccontextmanager
async def archive(instances, *, destination=None):
    """The Peer that is an SCP with these instances, which transcodes."""

    async def select(operation):
        async def each():
            for instance in instances:
                yield instance

        return Selection(
            each(),
            sop_instance_uids=[instance.sop_instance_uid for instance in instances],
            contexts={(instance.sop_class_uid, instance.transfer_syntax_uid) for instance in instances},
        )

    services = Services()
    services.operation(CGetRQ, [STUDY_ROOT.get], get_handler(select, transcode=transcode))
    services.operation(
        CMoveRQ, [STUDY_ROOT.move], move_handler(select, lambda title, _: destination, transcode=transcode)
    )
    services.store_as_scu()
    async with serve(services, port=0) as server:
        yield Peer("127.0.0.1", server.port)


def stored(folder, *broken):
    """Instances in every native transfer syntax, small and large ones, and broken ones among them."""
    instances = []
    for number, (syntax, size) in enumerate(itertools.product(NATIVE_TRANSFER_SYNTAXES, (SMALL, LARGE))):
        path = folder / str(number)
        path.write_bytes(image(syntax, size))
        instances.append(Instance(CT, f"1.2.3.{number}", syntax, FileSource(path)))
    instances[3:3] = broken
    return instances


EXPECTED = {f"1.2.3.{number}": (IMPLICIT, image(IMPLICIT, (SMALL, LARGE)[number % 2])) for number in range(8)}
TRUNCATED = Instance(CT, "1.2.4", BIG_ENDIAN, image(BIG_ENDIAN, SMALL)[:-10])
TRUNCATED_LATE = Instance(CT, "1.2.5", BIG_ENDIAN, image(BIG_ENDIAN, LARGE)[:-10])


async def test_get_in_another_transfer_syntax(tmp_path):
    received, receiver = Received(), GetReceiver()
    proposal = propose_get([STUDY_ROOT.get], [(CT, [IMPLICIT])])
    async with (
        archive(stored(tmp_path, TRUNCATED)) as peer,
        peer.associate(proposal, services=receiver.services) as scu,
        get(scu, STUDY_ROOT.get, identifier, received.open, receiver=receiver) as retrieval,
    ):
        result = await retrieval.final()
    assert (result.status, result.counters.completed) == (0xB000, 8)
    assert result.failed_sop_instance_uids == ("1.2.4",)
    assert received == EXPECTED


async def test_move_in_another_transfer_syntax(tmp_path):
    """An error far into an instance costs the association with the destination, and no other instance."""
    received, storing = Received(), Services()
    storing.store(received.open, transfer_syntaxes=[IMPLICIT])
    async with serve(storing, port=0) as destination:
        there = Peer("127.0.0.1", destination.port)
        async with (
            archive(stored(tmp_path, TRUNCATED, TRUNCATED_LATE), destination=there) as peer,
            peer.associate(propose_query([STUDY_ROOT.move])) as scu,
            move(scu, STUDY_ROOT.move, identifier, "THERE") as retrieval,
        ):
            result = await retrieval.final()
    assert (result.status, result.counters.completed) == (0xB000, 8)
    assert result.failed_sop_instance_uids == ("1.2.4", "1.2.5")
    assert received == EXPECTED


def identifier(context):
    if context.transfer_syntax == IMPLICIT:
        return b"\x08\0\x52\0\x06\0\0\0STUDY "
    return b"\x08\0\x52\0CS\x06\0STUDY "


def test_an_element_of_zeros_but_for_its_vr_is_passed_over():
    """Tag (0000,0000) and length 0, with something in between that is no VR: it looks like padding, and is none."""
    transcoder = Transcoder(BIG_ENDIAN, EXPLICIT)
    first = b"\x00\x08\x00\x16UI\x00\x02\x31\x00"
    last = b"\x00\x20\x00\x0dUI\x00\x02\x32\x00"
    found = b"".join(transcoder.feed(first + b"\0\0\0\0.5\0\0" + bytes(8) + last))
    found += b"".join(transcoder.finish())
    assert found == b"\x08\x00\x16\x00UI\x02\x00\x31\x00" + b"\x20\x00\x0d\x00UI\x02\x00\x32\x00"


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("portion", [65_536, 65_533, 1])
async def test_others_have_their_turn_while_padding_is_passed_over(syntax, portion):
    """NULs behind the last element, as in a file that is longer than its data set."""

    async def data():
        yield SOP_INSTANCE_UID[syntax]
        for _ in range(200):
            yield bytes(portion)

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turns = 0
    task = asyncio.create_task(others())
    target = IMPLICIT if syntax == EXPLICIT else EXPLICIT
    converted = await transcode(Instance(CT, "1.2.3", syntax, data()), [target])
    task.cancel()
    assert bytes(converted.data) == SOP_INSTANCE_UID[target]
    assert turns >= 200
