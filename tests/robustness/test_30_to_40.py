"""R30 to R40: names from the network, bombs, crowds, strange answers, both roles, what stands in front of us.

The peer is a bare socket, the other side the running gateway; where the gateway would be the SCU it is the engine.
R40, the end of the gateway, and R36 under load are in tests/system and tests/interop, R31 over HTTP in tests/gateway.
"""

import asyncio
import contextlib
import resource
import socket
import struct
import zlib
from pathlib import Path

import pytest

from harmony.dimse import associate as engine_associate
from harmony.ul.errors import AssociationAborted, AssociationRejected
from harmony.ul.negotiation import propose_contexts

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
PATIENCE_S = 20.0
DEFLATED = b"1.2.840.10008.1.2.1.99"
CONTEXTS = propose_contexts([(VERIFICATION, [IMPLICIT])])


# R30


@pytest.mark.parametrize(
    "instance",
    [b"..", b"/etc/x", b"../../../escaped", b"." * 64, b"1" * 65, b"1.2.3\0.4", b"C:/x", b"\xff\xfe"],
    ids=["dots", "absolute", "relative", "64 dots", "65 digits", "NUL inside", "drive", "no text"],
)
async def test_r30_uids_that_are_paths_are_stored_safely(gateway, associate, dimse, wire, instance):
    inside = gateway.folder / "storage"
    outside = {path for path in gateway.folder.rglob("*") if inside not in path.parents}
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3),
        wire.p_data(dimse.image(instance, study=instance), context_id=3, control=2),
    )
    answer = await requestor.message()
    assert answer[0x1000] == instance + b"\0" * (len(instance) % 2)
    if answer[0x0900] == b"\0\0":
        assert any(
            content.endswith(dimse.image(instance, study=instance)) for content in gateway.stored().values()
        )
    await requestor.echo()
    assert {path for path in gateway.folder.rglob("*") if inside not in path.parents} == outside
    assert not Path("/etc/x").exists()
    for path in inside.rglob("*"):
        assert path.resolve().is_relative_to(inside.resolve())


async def test_r30_an_empty_uid_is_answered(gateway, associate, dimse, wire):
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(b""), context_id=3),
        wire.p_data(dimse.image(b"", study=b""), context_id=3, control=2),
    )
    assert await requestor.status() != 0
    await requestor.echo()


# R31


@pytest.mark.parametrize("where", ["before its UIDs", "in its pixels"])
async def test_r31_a_deflate_bomb_takes_no_memory(gateway, associate, dimse, wire, where):
    """A quarter of a gigabyte of zeroes, deflated to a quarter of a megabyte."""
    instance = b"1.2.3.31.%d" % len(where)

    def explicit(group, element, vr, value):
        return struct.pack("<HH2sH", group, element, vr, len(value)) + value

    def uid(group, element, value):
        return explicit(group, element, b"UI", value + b"\0" * (len(value) % 2))

    before = [uid(0x0008, 0x0016, dimse.CT), uid(0x0008, 0x0018, instance)]
    behind = [uid(0x0020, 0x000D, b"1.2.9"), uid(0x0020, 0x000E, b"1.2.9.1")]
    bomb = b"\x09\0\x10\x10OB\0\0" if where == "before its UIDs" else b"\xe0\x7f\x10\0OW\0\0"
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    pieces = [*before, bomb + struct.pack("<I", 1 << 30)]
    if where == "in its pixels":
        pieces[2:2] = behind
        behind = []
    data = b"".join(deflater.compress(piece) for piece in pieces)
    data += b"".join(deflater.compress(bytes(1 << 22)) for _ in range(1 << 6))
    data += b"".join(deflater.compress(piece) for piece in behind) + deflater.flush()
    data += b"\0" * (len(data) % 2)
    assert len(data) < 1 << 19
    memory = gateway.memory_bytes
    requestor = await associate([(1, dimse.VERIFICATION, [dimse.IMPLICIT]), (3, dimse.CT, [DEFLATED])])
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3), wire.p_data(data, context_id=3, control=2)
    )
    status = await requestor.status()
    if status == 0:  # stored as it came
        assert any(content.endswith(data) for content in gateway.stored().values())
    await requestor.echo()
    assert gateway.memory_bytes - memory < 64 << 20


def nested(dimse, depth, *, defined):
    """Sequences (0008,1140) within one another."""
    tag, item = struct.pack("<HH", 0x0008, 0x1140), struct.pack("<HH", 0xFFFE, 0xE000)
    if not defined:
        ends = bytes.fromhex("FEFF0DE0 00000000 FEFFDDE0 00000000")
        return (tag + b"\xff" * 4 + item + b"\xff" * 4) * depth + ends * depth
    sizes = [16 * inner for inner in reversed(range(depth))]
    return b"".join(tag + struct.pack("<I", size + 8) + item + struct.pack("<I", size) for size in sizes)


@pytest.mark.parametrize("defined", [False, True], ids=["undefined lengths", "defined lengths"])
async def test_r31_10_000_sequences_within_one_another(gateway, associate, dimse, wire, defined):
    """To be stored, and as what is asked for."""
    deep = nested(dimse, 10_000, defined=defined)
    instance = b"1.2.3.31.%d" % defined
    head = dimse.image(instance)[: 8 + 26 + 8 + len(instance) + len(instance) % 2]
    rest = dimse.image(instance)[len(head) :]
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3),
        wire.p_data(head + deep + rest, context_id=3, control=2),
    )
    if await requestor.status() == 0:
        assert any(content.endswith(head + deep + rest) for content in gateway.stored().values())
    await requestor.send(
        wire.p_data(dimse.query(0x20, dimse.FIND), context_id=5),
        wire.p_data(dimse.element(0x0008, 0x0052, b"STUDY ") + deep, context_id=5, control=2),
    )
    while (status := await requestor.status()) in (0xFF00, 0xFF01):
        pass
    assert status in (0x0000, 0xA900, 0xC000)
    await requestor.echo()


# R32


async def test_r32_more_than_1024_associations_at_a_time(gateway, associate, dimse):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip(f"this system allows {hard} open files")
    if soft < 2000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (2000, hard))
    sockets = gateway.open_files().count("socket")
    requestors = [await associate() for _ in range(1100)]
    assert gateway.open_files().count("socket") >= 1100
    for requestor in requestors[::50]:
        await requestor.echo()
    for requestor in requestors:
        requestor.peer.close()
    await gateway.until(lambda: gateway.open_files().count("socket") <= sockets)


# R33 to R35


async def test_r33_reserved_codes_come_through_as_integers(listener, wire):
    async def asked(answer):
        async def acceptor():
            peer = await listener.accept()
            await peer.receive_pdu()
            await peer.send(answer)

        answering = asyncio.create_task(acceptor())
        try:
            async with engine_associate("127.0.0.1", listener.port, contexts=CONTEXTS):
                raise AssertionError("it was accepted")
        finally:
            await answering

    with pytest.raises(AssociationRejected) as rejected:
        await asked(wire.reject(200, 201, 202))
    assert (rejected.value.result, rejected.value.source, rejected.value.reason) == (200, 201, 202)
    with pytest.raises(AssociationAborted) as aborted:
        await asked(bytes.fromhex("07 00 00000004 00 00 01 C8"))
    assert (aborted.value.source, aborted.value.reason) == (1, 200)


def role(wire, uid, scu, scp):
    return wire.item(0x54, struct.pack(">H", len(uid)) + uid + bytes((scu, scp)))


@pytest.mark.parametrize(
    ("roles", "completed"), [("none", 0), ("SCU only", 0), ("both", 1), ("others and half a one", 1)]
)
async def test_r34_a_get_with_whatever_roles(associate, dimse, wire, roles, completed):
    """PS3.7 §D.3.3.4: nobody is sent what it has not said to take. That is a failure, not the end."""
    items = {
        "none": b"",
        "SCU only": role(wire, dimse.CT, 1, 0),
        "both": role(wire, dimse.CT, 1, 1),
        "others and half a one": role(wire, b"1.2.3", 1, 1)
        + role(wire, dimse.CT, 0, 1)
        + wire.item(0x54, b"\0\x20x"),
    }
    instance = b"1.2.3.34"
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3),
        wire.p_data(dimse.image(instance, study=b"1.2.34"), context_id=3, control=2),
    )
    assert await requestor.status() == 0
    requestor = await associate(dimse.CONTEXTS, items[roles])
    await requestor.send(
        wire.p_data(dimse.query(0x10, dimse.GET), context_id=7),
        wire.p_data(
            dimse.element(0x0008, 0x0052, b"STUDY ") + dimse.element(0x0020, 0x000D, b"1.2.34"),
            context_id=7,
            control=2,
        ),
    )
    while True:
        message = await requestor.message()
        if message[0x0100] == b"\1\0":
            answer = dimse.command(
                dimse.us(0x0100, 0x8001),
                dimse.element(0, 0x0120, message[0x0110]),
                dimse.us(0x0800, 0x101),
                dimse.us(0x0900, 0),
                dimse.element(0, 0x1000, message[0x1000]),
            )
            await requestor.send(wire.p_data(answer, context_id=3))
        elif message[0x0900] != b"\0\xff":
            break
    assert message[0x1021][0] == completed
    assert message[0x1022][0] == 1 - completed
    assert (message[0x0900] == b"\0\0") is bool(completed)
    await requestor.echo()


@pytest.mark.parametrize(
    "asked", [b"", b"\0\0\0\0", b"\0\1\0\1", b"\xff\xff\0\0"], ids=["absent", "0", "1", "many"]
)
async def test_r35_a_window_is_answered_where_it_was_asked_for(associate, wire, asked):
    requestor = await associate(user_items=wire.item(0x53, asked) if asked else b"")
    assert (b"\x53\0\0\4\0\1\0\1" in requestor.answer) is bool(asked)  # max_operations is 1
    await requestor.echo()


@pytest.mark.parametrize(
    ("answered", "operations"),
    [(b"", 1), (b"\0\0\0\0", 4), (b"\0\1\0\1", 1), (b"\0\3\0\1", 3), (b"\0\x09\0\x09", 4)],
    ids=["absent", "0", "1", "3", "9"],
)
async def test_r35_the_smaller_window_counts(listener, wire, answered, operations):
    """Asked for 4."""

    async def acceptor():
        peer = await listener.accept()
        await peer.receive_pdu()
        await peer.send(wire.associate_ac(wire.item(0x53, answered) if answered else b""))
        await peer.receive_pdu()
        await peer.send(wire.RELEASE_RP)

    answering = asyncio.create_task(acceptor())
    async with engine_associate("127.0.0.1", listener.port, contexts=CONTEXTS, maximum_operations=4) as scu:
        assert scu.association.agreed.maximum_operations_invoked == operations
    await answering


# R36 to R38


async def test_r36_the_same_instance_twice_at_a_time_is_not_torn(gateway, associate, dimse, wire):
    instance = b"1.2.3.36"
    versions = [dimse.image(instance, bytes((number,)) * 100_000) for number in (1, 2)]
    requestors = [await associate() for _ in versions]
    for requestor in requestors:
        await requestor.send(wire.p_data(dimse.store(instance), context_id=3))
    for at in range(0, len(versions[0]), 10_000):
        for requestor, data in zip(requestors, versions, strict=True):
            await requestor.send(wire.p_data(data[at : at + 10_000], context_id=3, control=0))
    for requestor in requestors:
        await requestor.send(wire.p_data(b"", context_id=3, control=2))
    for requestor in requestors:
        await requestor.status()
    assert any(gateway.stored()["1.2.3.36.dcm"].endswith(data) for data in versions)


async def test_r37_an_event_report_that_nobody_expects_is_answered(associate, dimse, wire):
    """On the same association, and in front of a release."""
    report = dimse.command(
        dimse.uid(0x0002, b"1.2.840.10008.1.20.1"),
        dimse.us(0x0100, 0x0100),
        dimse.us(0x0110, 37),
        dimse.us(0x0800, 0x0101),
        dimse.uid(0x1000, b"1.2.840.10008.1.20.1.1"),
        dimse.us(0x1002, 1),
    )
    requestor = await associate()
    await requestor.send(wire.p_data(report), wire.RELEASE_RQ)
    answer = await requestor.message()
    assert answer[0x0100] == b"\0\x81"
    assert answer[0x0120] == b"\x25\0"
    assert answer[0x0900] != b"\0\0"
    assert await requestor.peer.receive_pdu() == wire.RELEASE_RP


@pytest.mark.parametrize(
    ("destination", "study", "status"),
    [(b"NOBODY", b"1.2.9\0", 0xA801), (b"ELSEWHERE ", b"1.2.77", 0x0000)],
    ids=["unknown destination", "zero matches"],
)
async def test_r38_a_move_that_needs_no_association(
    gateway, associate, dimse, wire, destination, study, status
):
    with socket.create_server(("127.0.0.1", gateway.elsewhere)) as elsewhere:
        elsewhere.setblocking(False)
        requestor = await associate()
        await requestor.send(
            wire.p_data(dimse.query(0x21, dimse.MOVE, destination=destination), context_id=9),
            wire.p_data(
                dimse.element(0x0008, 0x0052, b"STUDY ") + dimse.element(0x0020, 0x000D, study),
                context_id=9,
                control=2,
            ),
        )
        assert await requestor.status() == status
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
        await requestor.echo()


# R39

HEADERS = {
    "v1": b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 104\r\n",
    "v2": bytes.fromhex("0D0A0D0A000D0A515549540A 21 11 000C CB007107 7F000001 9C40 0068"),
}


@pytest.mark.parametrize("version", HEADERS)
async def test_r39_the_peer_is_the_one_that_a_trusted_load_balancer_names(
    gateway, connect, dimse, wire, version
):
    seen = len(gateway.log)
    peer = await connect(gateway.behind)
    await peer.send(HEADERS[version] + wire.associate_rq(called=b"ARCHIVE") + wire.p_data(dimse.echo()))
    assert (await peer.receive_pdu())[0] == 2
    assert dimse.us(0x0900, 0) in await peer.receive_pdu()
    assert "from 203.0.113.7:40000" in gateway.log[seen:]


@pytest.mark.parametrize("version", HEADERS)
async def test_r39_a_header_where_nobody_is_trusted_is_refused(gateway, connect, wire, version):
    seen = len(gateway.log)
    peer = await connect(gateway.dicom)
    await peer.send(HEADERS[version] + wire.associate_rq(called=b"ARCHIVE"))
    assert await peer.receive_all() == wire.ABORT
    assert " open: " not in gateway.log[seen:]


@pytest.mark.parametrize("version", HEADERS)
async def test_r39_a_header_from_an_untrusted_net_is_refused(gateway, wire, version):
    """127.0.0.2 is not the load balancer."""
    seen = len(gateway.log)
    loop = asyncio.get_running_loop()
    with socket.socket() as spoofer:
        try:
            spoofer.bind(("127.0.0.2", 0))
        except OSError:
            pytest.skip("this system has no 127.0.0.2")
        spoofer.setblocking(False)
        await loop.sock_connect(spoofer, ("127.0.0.1", gateway.behind))
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(spoofer, HEADERS[version] + wire.associate_rq(called=b"ARCHIVE"))
            async with asyncio.timeout(PATIENCE_S):
                assert await loop.sock_recv(spoofer, 1) == b""
    await gateway.until(lambda: "127.0.0.2" in gateway.log[seen:])
    assert " open: " not in gateway.log[seen:]
