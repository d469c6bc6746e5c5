"""C-STORE-RQs that are like an earlier one, recognised by their bytes; and stores that take what is whole."""

import asyncio
import contextlib
import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.dimse import SUCCESS_OUTCOME, BytesSink, CStoreRQ, DimseError, Outcome, Services, Status
from harmony.dimse.command import decode
from harmony.dimse.exchange import MAXIMUM_FRAGMENTS
from harmony.dimse.message import PDU_AND_PDV_HEADERS
from harmony.dimse.store_template import StoreTemplate

CT = "1.2.840.10008.5.1.4.1.1.2"
RESPONSE = bytes.fromhex(
    "04 00 0000006a"  # P-DATA-TF, 106 bytes
    "00000066 03 03"  # one PDV on context 3, last fragment of a command
    "0000 0000 04000000 58000000"  # (0000,0000): 88 bytes follow
    "0000 0200 1a000000" + (CT.encode() + b"\0").hex() + "0000 0001 02000000 0180"  # a C-STORE-RSP
    "0000 2001 02000000 3412"  # to message 1234H
    "0000 0008 02000000 0101"  # without data set
    "0000 0009 02000000 0000"  # Success
    "0000 0010 06000000 312e322e3334"  # 1.2.34
)


def template_of(
    request: CStoreRQ, *, encoded: bytes = b"", maximum_length: int = 16384
) -> StoreTemplate | None:
    return StoreTemplate.of(
        encoded or request.encode(),
        request,
        lambda uid, fragments: None,
        presentation_context_id=3,
        maximum_length=maximum_length,
    )


def test_the_answer_is_a_c_store_rsp_in_one_pdu() -> None:
    template = template_of(CStoreRQ(1, CT, "1.2.33"))
    assert template is not None
    assert template.success(CStoreRQ(0x1234, CT, "1.2.34").encode()) == RESPONSE


requests = st.builds(
    CStoreRQ,
    st.integers(0, 0xFFFF),
    st.sampled_from([CT, "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"]),
    st.sampled_from(["1.2.3", "1.2.4", "1.2.33", "1.2.34"]),
    st.sampled_from([0, 1]),
    st.sampled_from(["", "MOVER"]),
    st.sampled_from([None, 7, 8]),
)


@given(requests, requests)
def test_what_matches_differs_in_message_id_and_instance_only(first: CStoreRQ, second: CStoreRQ) -> None:
    template, encoded = template_of(first), second.encode()
    assert template is not None
    alike = dataclasses.replace(
        second,
        message_id=first.message_id,
        affected_sop_instance_uid=first.affected_sop_instance_uid,
    )
    if len(encoded) != len(first.encode()):
        return
    assert template.matches(encoded) == (alike == first)
    if alike == first:
        response = decode(template.success(encoded)[PDU_AND_PDV_HEADERS:])[0]
        assert response.message_id_being_responded_to == second.message_id
        assert response.affected_sop_instance_uid == second.affected_sop_instance_uid
        assert response.status == 0


def test_odd_command_sets_have_no_template() -> None:
    request = CStoreRQ(1, CT, "1.2.33")
    encoded = request.encode()
    message_id = b"\0\0\x10\x01\2\0\0\0\1\0"
    assert message_id in encoded
    twice = encoded.replace(message_id, message_id * 2)
    assert template_of(request, encoded=twice) is None
    assert template_of(request, encoded=encoded.replace(message_id, b"") + message_id) is None  # out of order
    assert template_of(request, encoded=encoded + b"\2\0\x10\0\0\0\0\0") is None  # another group
    blank = encoded.replace(b"1.2.33", b"1.2.3 ")
    assert template_of(CStoreRQ(1, CT, "1.2.3"), encoded=blank) is None  # padded otherwise than we do
    assert template_of(request, maximum_length=64) is None  # the answer takes several PDUs


class Whole:
    """A WholeStore that does as it is told."""

    def __init__(self) -> None:
        self.asked = 0
        self.took: list[tuple[bytes, bytes]] = []
        self.result: Outcome | Exception | None = SUCCESS_OUTCOME

    def store_for(self, request):
        self.asked += 1
        return self

    def __call__(self, uid, fragments):
        if isinstance(self.result, Exception):
            raise self.result
        if self.result is not None:
            self.took.append((uid, b"".join(fragments)))
        return self.result


@pytest.fixture
def whole():
    return Whole()


@pytest.fixture
def services(whole):
    """Stores with a short cut; `services.sinks` has what came the long way."""
    services = Services()
    services.sinks = []
    services.paused = asyncio.Event()

    def collected(data):
        services.sinks.append(data)
        return SUCCESS_OUTCOME

    def open_sink(request):
        if whole.asked:  # the first is learned from
            services.paused.set()
        return BytesSink(collected)

    services.store(open_sink, whole=whole.store_for)
    return services


@pytest.fixture
def peer_of(serving, raw_peer):
    """async with peer_of(services) as peer: a RawPeer and a server for it."""

    @contextlib.asynccontextmanager
    async def connect(services):
        async with serving(services) as server:
            yield await raw_peer(server.port)

    return connect


async def test_the_second_of_a_kind_is_stored_whole(peer_of, services, whole):
    async with peer_of(services) as peer:
        for number in (1, 2, 3):
            peer.send_store(number, b"data", instance=f"1.2.{number}")
            answer = (await peer.next()).message
            assert (answer.status, answer.message_id_being_responded_to) == (0, number)
            assert answer.affected_sop_instance_uid == f"1.2.{number}"
        await peer.echo()
    assert services.sinks == [b"data"]
    assert whole.took == [(b"1.2.2\0", b"data"), (b"1.2.3\0", b"data")]
    assert whole.asked == 1


async def test_what_comes_bit_by_bit_or_is_declined_goes_to_a_sink(peer_of, services, whole):
    async with peer_of(services) as peer:
        peer.send_store(1, b"one.")
        assert (await peer.next()).message.status == 0
        peer.send(3, 3, CStoreRQ(2, CT, "1.2.3").encode())
        peer.send(3, 0, b"tw")
        peer.association.write_p_data(b"\4\0\0\0\0\x08")  # the SCP sees this much, and that more is to come
        await peer.association.flushed()
        await services.paused.wait()
        peer.association.write_p_data(b"\0\0\0\4\3\2o.")
        assert (await peer.next()).message.status == 0
        whole.result = None
        peer.send_store(3, b"four")
        assert (await peer.next()).message.status == 0
    assert services.sinks == [b"one.", b"two.", b"four"]
    assert not whole.took


async def test_more_fragments_than_are_written_at_once_go_to_a_sink(peer_of, services, whole):
    async with peer_of(services) as peer:
        peer.send_store(1, b"one.")
        fragments = [struct.pack(">BxIIBB2s", 4, 8, 4, 3, 0, b"ab")] * (MAXIMUM_FRAGMENTS + 1)
        command = CStoreRQ(2, CT, "1.2.3").encode()
        assert (await peer.next()).message.status == 0
        head = struct.pack(">BxIIBB", 4, len(command) + 6, len(command) + 2, 3, 3)
        last = struct.pack(">BxIIBB", 4, 6, 2, 3, 2)
        peer.association.write_p_data(b"".join((head, command, *fragments, last)))
        assert (await peer.next()).message.status == 0
    assert services.sinks == [b"one.", b"ab" * (MAXIMUM_FRAGMENTS + 1)]
    assert not whole.took


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Outcome(Status.COERCION_OF_DATA_ELEMENTS, "kept"), Status.COERCION_OF_DATA_ELEMENTS),
        (DimseError(Status.OUT_OF_RESOURCES, "full"), Status.OUT_OF_RESOURCES),
        (RuntimeError("a defect"), Status.CANNOT_UNDERSTAND),
    ],
)
async def test_what_the_short_cut_says_is_the_answer(peer_of, services, whole, quiet_errors, result, status):
    async with peer_of(services) as peer:
        peer.send_store(1)
        await peer.next()
        whole.result = result
        peer.send_store(2, instance="1.2.9")
        answer = (await peer.next()).message
        assert (answer.status, answer.message_id_being_responded_to) == (status, 2)
        assert answer.affected_sop_instance_uid == "1.2.9"
        whole.result = SUCCESS_OUTCOME
        peer.send_store(3)
        assert (await peer.next()).message.status == 0


async def test_requests_that_are_authorized_one_by_one_have_no_short_cut(peer_of, services, whole):
    seen = []
    services.authorize(lambda request, context, association: seen.append(request))
    async with peer_of(services) as peer:
        for number in (1, 2):
            peer.send_store(number)
            await peer.next()
    assert len(seen) == 2
    assert not whole.asked


async def test_an_association_may_end_between_command_and_data_set(peer_of, services, whole):
    async with peer_of(services) as peer:
        peer.send_store(1)
        await peer.next()
        peer.send(3, 3, CStoreRQ(2, CT, "1.2.3").encode())
        await peer.association.release()
        assert await peer.ended() is not None
    assert not whole.took
