"""Habits of real peers that the standard does not have, met by the running gateway: F01 to F40.

Those that the other modules have are not here again; `test_every_case.py` says where each is. Whatever is wrong with
the bytes of a data set, they are stored as they came.
"""

import asyncio
import struct

import pytest

from harmony.dimse import DimseError, Instance
from harmony.dimse import associate as engine_associate
from harmony.ul.items import RoleSelection
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = b"1.2.840.10008.1.2.1"


def explicit(group, element, vr, value):
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def uid(group, element, value):
    return explicit(group, element, b"UI", value + b"\0" * (len(value) % 2))


def explicit_image(dimse, instance, *more, study=b"1.2.9"):
    """A CT image in Explicit VR Little Endian; more: before its pixels."""
    return b"".join(
        (
            uid(0x0008, 0x0016, dimse.CT),
            uid(0x0008, 0x0018, instance),
            explicit(0x0010, 0x0010, b"PN", b"Doe^Jane"),
            uid(0x0020, 0x000D, study),
            uid(0x0020, 0x000E, study + b".1"),
            *more,
            b"\xe0\x7f\x10\0OW\0\0\4\0\0\0\1\2\3\4",
        )
    )


async def stored(associate, dimse, wire, instance, data, *, syntax=None):
    """The status of a C-STORE of these bytes."""
    contexts = [(1, dimse.VERIFICATION, [dimse.IMPLICIT]), (3, dimse.CT, [syntax or dimse.IMPLICIT])]
    requestor = await associate(contexts)
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3), wire.p_data(data, context_id=3, control=2)
    )
    status = await requestor.status()
    await requestor.echo()
    await requestor.release()
    return status


async def found(associate, dimse, wire, *keys, level=b"STUDY "):
    """Final status and number of matches of a C-FIND."""
    requestor = await associate()
    identifier = (dimse.element(0x0008, 0x0052, level) if level else b"") + b"".join(keys)
    await requestor.send(
        wire.p_data(dimse.query(0x20, dimse.FIND), context_id=5),
        wire.p_data(identifier, context_id=5, control=2),
    )
    matches = 0
    while (status := await requestor.status()) in (0xFF00, 0xFF01):
        matches += 1
    await requestor.release()
    return status, matches


# Associations


@pytest.mark.parametrize(
    ("version", "accepted"), [(1, True), (3, True), (0xFFFF, True), (0, False), (2, False)]
)
async def test_f06_only_bit_0_of_the_protocol_version_counts(gateway, connect, wire, version, accepted):
    request = bytearray(wire.associate_rq(called=b"ARCHIVE"))
    request[6:8] = version.to_bytes(2, "big")
    peer = await connect(gateway.dicom)
    answer = await peer.exchange(bytes(request))
    assert answer[0] == 2 if accepted else answer == wire.reject(1, 2, 2)


async def test_f09_a_context_for_each_transfer_syntax(gateway, associate, dimse, wire):
    """Each is answered; the one that the message comes on says what its data set is."""
    requestor = await associate([(1, dimse.CT, [dimse.IMPLICIT]), (3, dimse.CT, [EXPLICIT])])
    assert requestor.results == [(1, 0, dimse.IMPLICIT), (3, 0, EXPLICIT)]
    for context_id, instance, data in (
        (1, b"1.2.4.9.1", dimse.image(b"1.2.4.9.1")),
        (3, b"1.2.4.9.3", explicit_image(dimse, b"1.2.4.9.3")),
    ):
        await requestor.send(
            wire.p_data(dimse.store(instance), context_id=context_id),
            wire.p_data(data, context_id=context_id, control=2),
        )
        assert await requestor.status() == 0
    assert uid(0x0002, 0x0010, dimse.IMPLICIT) in gateway.stored()["1.2.4.9.1.dcm"]
    assert uid(0x0002, 0x0010, EXPLICIT) in gateway.stored()["1.2.4.9.3.dcm"]


def answering(listener, wire, answer, *messages):
    """A peer that sends an A-ASSOCIATE-AC, something for each message that comes, and the end of a release."""

    async def acceptor():
        peer = await listener.accept()
        await peer.receive_pdu()
        await peer.send(answer)
        for message in messages:
            while not (await peer.receive_pdu())[11] & 2:  # the last fragment of a command or data set
                pass
            await peer.send(message)
        assert await peer.receive_pdu() == wire.RELEASE_RQ
        await peer.send(wire.RELEASE_RP)

    return asyncio.create_task(acceptor())


async def test_f13_a_refusal_without_transfer_syntax(listener, wire):
    refused = wire.item(0x21, b"\1\0\3\0")
    accepted = wire.item(0x21, b"\3\0\0\0" + wire.item(0x40, IMPLICIT.encode()))
    task = answering(listener, wire, wire.associate_ac(contexts=refused + accepted))
    contexts = propose_contexts([(CT, [IMPLICIT]), ("1.2.840.10008.1.1", [IMPLICIT])])
    async with engine_associate("127.0.0.1", listener.port, contexts=contexts) as scu:
        assert list(scu.association.agreed.contexts) == [3]
    await task


async def test_f14_more_roles_than_were_proposed_are_not_ours(listener, wire):
    """Proposed to be SCP alone, the answer says SCU and SCP."""
    role = wire.item(0x54, struct.pack(">H", len(CT)) + CT.encode() + b"\1\1")
    task = answering(listener, wire, wire.associate_ac(role))
    async with engine_associate(
        "127.0.0.1",
        listener.port,
        contexts=propose_contexts([(CT, [IMPLICIT])]),
        roles=[RoleSelection(CT, False, True)],
    ) as scu:
        context = scu.association.agreed.contexts[1]
        assert (context.as_scu, context.as_scp) == (False, True)
    await task


# Messages


@pytest.mark.parametrize("excess", [6, 12, 1 << 20])
async def test_f17_more_than_the_announced_maximum_is_taken(gateway, associate, dimse, wire, excess):
    requestor = await associate()
    at = requestor.answer.index(b"\x51\0\0\4") + 4
    size = int.from_bytes(requestor.answer[at : at + 4], "big") + excess
    instance = b"1.2.4.17.%d" % excess
    data = dimse.image(instance, bytes(size - len(dimse.image(instance, b"")) - 6))
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3), wire.p_data(data, context_id=3, control=2)
    )
    assert await requestor.status() == 0
    assert gateway.stored()[instance.decode() + ".dcm"].endswith(data)


async def test_f18_fragments_of_two_bytes(gateway, associate, dimse, wire):
    instance = b"1.2.4.18"
    data = dimse.image(instance, bytes(20_000))
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3),
        *(wire.p_data(data[at : at + 2], context_id=3, control=0) for at in range(0, len(data), 2)),
        wire.p_data(b"", context_id=3, control=2),
    )
    assert await requestor.status() == 0
    assert gateway.stored()["1.2.4.18.dcm"].endswith(data)


async def test_f20_a_command_without_last_fragment_ends_by_its_deadline(gateway, associate, dimse, wire):
    requestor = await associate(port=gateway.hurried)
    await requestor.send(wire.p_data(dimse.echo(), control=1))
    assert await requestor.peer.receive_pdu() == wire.ABORT


async def test_f23_message_ids_of_zero_and_always_the_same(associate, dimse, wire):
    requestor = await associate()
    for message_id in (0, 0, 1, 1):
        await requestor.echo(message_id)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"message_id_being_responded_to": 4711},
        {"no UIDs": True},
    ],
    ids=["as it should be", "F24: another Message ID", "F25: no UIDs"],
)
async def test_f24_f25_responses_that_name_something_else(listener, dimse, wire, more):
    answer = dimse.command(
        b"" if "no UIDs" in more else dimse.uid(0x0002, dimse.CT),
        dimse.us(0x0100, 0x8001),
        dimse.us(0x0120, more.get("message_id_being_responded_to", 1)),
        dimse.us(0x0800, 0x0101),
        dimse.us(0x0900, 0),
        b"" if "no UIDs" in more else dimse.uid(0x1000, b"1.2.3"),
    )
    task = answering(listener, wire, wire.associate_ac(), wire.p_data(answer))
    async with engine_associate(
        "127.0.0.1", listener.port, contexts=propose_contexts([(CT, [IMPLICIT])])
    ) as scu:
        assert (await scu.store(Instance(CT, "1.2.3", IMPLICIT, b""))).status == 0
    await task


@pytest.mark.parametrize("status", [0x0002, 0xFFFF])
async def test_f26_a_status_of_no_class_is_a_failure(listener, dimse, wire, status):
    answer = dimse.command(
        dimse.us(0x0100, 0x8001), dimse.us(0x0120, 1), dimse.us(0x0800, 0x0101), dimse.us(0x0900, status)
    )
    task = answering(listener, wire, wire.associate_ac(), wire.p_data(answer))
    async with engine_associate(
        "127.0.0.1", listener.port, contexts=propose_contexts([(CT, [IMPLICIT])])
    ) as scu:
        with pytest.raises(DimseError, match=f"0x{status:04X}"):
            await scu.store(Instance(CT, "1.2.3", IMPLICIT, b""))
    await task


# Ends


@pytest.mark.parametrize("how", ["A-ABORT", "FIN", "RST"])
async def test_f28_an_abort_after_the_last_response_loses_nothing(gateway, associate, dimse, wire, how):
    instance = b"1.2.4.28.%d" % ("A-ABORT", "FIN", "RST").index(how)
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3),
        wire.p_data(dimse.image(instance), context_id=3, control=2),
    )
    assert await requestor.status() == 0
    if how == "A-ABORT":
        await requestor.send(wire.ABORT)
    elif how == "RST":
        requestor.peer.reset()
    requestor.peer.close()
    assert gateway.stored()[instance.decode() + ".dcm"].endswith(dimse.image(instance))


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_f29_a_close_instead_of_the_end_of_a_release_is_one(listener, wire, how):
    async def acceptor():
        peer = await listener.accept()
        await peer.receive_pdu()
        await peer.send(wire.associate_ac())
        assert await peer.receive_pdu() == wire.RELEASE_RQ
        peer.reset() if how == "RST" else peer.close()

    task = asyncio.create_task(acceptor())
    contexts = propose_contexts([("1.2.840.10008.1.1", [IMPLICIT])])
    async with engine_associate("127.0.0.1", listener.port, contexts=contexts):
        pass
    await task


# Queries


@pytest.mark.parametrize(
    ("level", "keys", "status", "matches"),
    [
        (b"SERIES", [(0x0010, 0x0020, b"P34 "), (0x0020, 0x000D, b"1.2.4.34")], 0x0000, 1),
        (b"SERIES", [(0x0020, 0x000D, b""), (0x0020, 0x000E, b"1.2.4.34.1")], 0x0000, 1),
        (b"", [(0x0020, 0x000D, b"1.2.4.34")], 0x0000, 1),
        (b"study", [(0x0020, 0x000D, b"1.2.4.34")], 0x0000, 1),
        (b"ROOM", [(0x0020, 0x000D, b"1.2.4.34")], 0xA900, 0),
    ],
    ids=["patient keys of a series", "empty study of a series", "no level", "lower case", "no such level"],
)
async def test_f34_queries_that_do_not_keep_to_the_hierarchy(
    associate, dimse, wire, level, keys, status, matches
):
    data = dimse.image(b"1.2.4.34.1.1", study=b"1.2.4.34").replace(b"\2\0\0\0P1", b"\4\0\0\0P34 ")
    assert await stored(associate, dimse, wire, b"1.2.4.34.1.1", data) == 0
    elements = [dimse.element(*key) for key in keys]
    assert await found(associate, dimse, wire, *elements, level=level) == (status, matches)


# Data sets

WHATEVER_IS_IN_IT = {
    "odd length": explicit(0x0020, 0x4000, b"LT", b"odd"),
    "wrong VR": explicit(0x0020, 0x0013, b"UI", b"1 "),
    "VR of question marks": explicit(0x0021, 0x1001, b"??", b"ab"),
    "UN of undefined length": b"\x21\0\x10\x10UN\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0",
    "group length": explicit(0x0021, 0x0000, b"UL", b"\4\0\0\0"),
    "twice": explicit(0x0020, 0x0013, b"IS", b"1 ") + explicit(0x0020, 0x0013, b"IS", b"2 "),
    "out of order": explicit(0x0008, 0x0060, b"CS", b"CT"),
    "sequence without end": b"\x20\0\x40\x91SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff",
    "F35: another character set": explicit(0x0020, 0x4000, b"LT", "Größe ".encode("latin-1") + b" "),
}


@pytest.mark.parametrize("what", WHATEVER_IS_IN_IT)
async def test_f35_f37_a_data_set_that_is_wrong_is_kept_and_found(
    gateway, associate, dimse, wire, connect, what
):
    study = b"1.2.4.37.%d" % list(WHATEVER_IS_IN_IT).index(what)
    data = explicit_image(dimse, study + b".1.1", WHATEVER_IS_IN_IT[what], study=study)
    assert await stored(associate, dimse, wire, study + b".1.1", data, syntax=EXPLICIT) == 0
    assert gateway.stored()[study.decode() + ".1.1.dcm"].endswith(data)
    key = dimse.element(0x0020, 0x000D, study + b"\0" * (len(study) % 2))
    assert await found(associate, dimse, wire, key) == (0x0000, 1)
    peer = await connect(gateway.http)
    await peer.send(b"GET /web/studies/%s/metadata HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % study)
    answer = await peer.receive_all()
    assert answer.startswith(b"HTTP/1.1 200")
    assert study + b".1.1" in answer


async def test_f12_data_in_another_transfer_syntax_than_negotiated(gateway, associate, dimse, wire):
    """Implicit VR on a context for Explicit VR: kept as it came, found as what it is."""
    data = dimse.image(b"1.2.4.12.1.1", study=b"1.2.4.12")
    assert await stored(associate, dimse, wire, b"1.2.4.12.1.1", data, syntax=EXPLICIT) == 0
    content = gateway.stored()["1.2.4.12.1.1.dcm"]
    assert content.endswith(data)
    assert await found(associate, dimse, wire, dimse.element(0x0020, 0x000D, b"1.2.4.12")) == (0x0000, 1)


async def test_f38_another_object_under_the_same_uid_does_not_replace_it(gateway, associate, dimse, wire):
    first, second = dimse.image(b"1.2.4.38", b"\1" * 8), dimse.image(b"1.2.4.38", b"\2" * 8)
    seen = len(gateway.log)
    assert await stored(associate, dimse, wire, b"1.2.4.38", first) == 0
    await stored(associate, dimse, wire, b"1.2.4.38", second)
    assert gateway.stored()["1.2.4.38.dcm"].endswith(first)
    assert "1.2.4.38" in gateway.log[seen:]  # it is said


@pytest.mark.parametrize("preamble", [bytes(128) + b"DICM", b""], ids=["preamble", "group 0002 alone"])
async def test_f39_a_whole_file_as_data_set_is_stored_without_its_head(
    gateway, associate, dimse, wire, preamble
):
    instance = b"1.2.4.39.%d" % len(preamble)
    meta = uid(0x0002, 0x0002, dimse.CT) + uid(0x0002, 0x0003, instance) + uid(0x0002, 0x0010, EXPLICIT)
    head = preamble + explicit(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta))) + meta
    data = explicit_image(dimse, instance)
    assert await stored(associate, dimse, wire, instance, head + data, syntax=EXPLICIT) == 0
    content = gateway.stored()[instance.decode() + ".dcm"]
    assert content.endswith(data)
    assert content.count(uid(0x0002, 0x0010, EXPLICIT)) == 1
