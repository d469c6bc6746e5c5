"""Whose instance is it? The rules of `move_receiver`, one by one."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from harmony.dimse import CStoreRQ, DimseError
from harmony.dimse.move_receiver import RETIRED_LIMIT, MessageIDTaken, MoveReceiver
from harmony.dimse.operation import StoreRequest


class Incoming:
    """As much of an association as the receiver looks at."""

    def __init__(self, calling_ae_title):
        self.agreed = SimpleNamespace(calling_ae_title=calling_ae_title)
        self.is_open = True
        self.user = SimpleNamespace(busy=lambda: True)


def request(ae_title="", message_id=None, calling="PACS"):
    command = CStoreRQ(1, "1.2.840.10008.5.1.4.1.1.2", "1.2.3", 0, ae_title, message_id)
    return StoreRequest(command, None, Incoming(calling))


@pytest.fixture
def moves():
    """Waiting: A (id 1) and B (id 2) at PACS, C (id 3) at OTHER; what is nobody's goes to 'nobody'."""
    receiver = MoveReceiver(lambda request: "nobody")
    with ExitStack() as stack:
        for name, message_id, peer in (("A", 1, "PACS"), ("B", 2, "PACS"), ("C", 3, "OTHER")):
            expectation = stack.enter_context(
                receiver.expect(lambda request, name=name: name, originator_ae_title="US", peer_ae_title=peer)
            )
            expectation.claim(message_id)
        yield receiver
    assert len(receiver) == 0


@pytest.mark.parametrize(
    ("ae_title", "message_id", "calling", "expected"),
    [
        # Both elements: exactly, from wherever it comes.
        ("US", 1, "PACS", "A"),
        ("US", 2, "PACS", "B"),
        ("US", 1, "OTHER", "A"),
        ("US", 3, "STORAGE", "C"),
        ("US", 4, "PACS", "nobody"),
        ("THEM", 1, "PACS", "nobody"),
        ("US", 0, "OTHER", "nobody"),
        # One missing: what is there has to agree, the peer has to be the one that calls, and there is one.
        ("", 1, "PACS", "A"),
        ("", 2, "PACS", "B"),
        ("", 3, "PACS", "nobody"),
        ("", 3, "OTHER", "C"),
        ("US", None, "OTHER", "C"),
        ("US", None, "PACS", "nobody"),
        ("THEM", None, "OTHER", "nobody"),
        # The sender's own AE title counts as missing.
        ("PACS", 1, "PACS", "A"),
        ("OTHER", 3, "OTHER", "C"),
        ("OTHER", 1, "OTHER", "nobody"),
        ("OTHER", None, "OTHER", "C"),
        ("PACS", None, "PACS", "nobody"),
        # Both missing: the only move at the peer.
        ("", None, "OTHER", "C"),
        ("", None, "PACS", "nobody"),
        ("", None, "MODALITY", "nobody"),
    ],
)
def test_whose(moves, ae_title, message_id, calling, expected):
    assert moves.open_sink(request(ae_title, message_id, calling)) == expected


def test_without_a_place_for_them_others_are_refused():
    with pytest.raises(DimseError) as caught:
        MoveReceiver().open_sink(request("US", 1))
    assert caught.value.status == 0x0124


def test_each_server_may_have_its_own_place_for_others(moves):
    assert moves.open_sink(request("US", 1), unmatched=lambda request: "elsewhere") == "A"
    assert moves.open_sink(request("US", 4), unmatched=lambda request: "elsewhere") == "elsewhere"


def test_a_message_id_has_one_move():
    receiver = MoveReceiver()
    with (
        receiver.expect(lambda request: "A", originator_ae_title="US", peer_ae_title="P") as a,
        receiver.expect(lambda request: "B", originator_ae_title="US", peer_ae_title="Q") as b,
        receiver.expect(lambda request: "C", originator_ae_title="ALSO US", peer_ae_title="P") as c,
    ):
        a.claim(1)
        with pytest.raises(MessageIDTaken):
            b.claim(1)
        b.claim(2)
        c.claim(1)  # under another AE title
        assert receiver.open_sink(request("US", 1)) == "A"
        assert receiver.open_sink(request("ALSO US", 1)) == "C"
        a.claim(5)  # the exchange took another one
        assert receiver.open_sink(request("US", 5)) == "A"
        b.claim(1)
        assert receiver.open_sink(request("US", 1)) == "B"


@pytest.mark.parametrize("given_up", [True, False])
def test_what_comes_for_a_move_that_was_given_up_is_refused_and_its_id_not_used_again(given_up):
    receiver = MoveReceiver(lambda request: "nobody")
    with receiver.expect(lambda request: "A", originator_ae_title="US", peer_ae_title="P") as a:
        a.claim(1)
        a.given_up = given_up
    with receiver.expect(lambda request: "B", originator_ae_title="US", peer_ae_title="P") as b:
        if not given_up:
            assert receiver.open_sink(request("US", 1)) == "nobody"
            b.claim(1)
            assert receiver.open_sink(request("US", 1)) == "B"
            return
        with pytest.raises(DimseError, match="given up"):
            receiver.open_sink(request("US", 1))
        with pytest.raises(MessageIDTaken):
            b.claim(1)
        b.claim(2)
        assert receiver.open_sink(request("US", 2)) == "B"


def test_given_up_ids_are_forgotten_in_the_end():
    receiver = MoveReceiver()
    for message_id in range(1, RETIRED_LIMIT + 2):
        with receiver.expect(lambda request: "A", originator_ae_title="US", peer_ae_title="P") as a:
            a.claim(message_id)
    with receiver.expect(lambda request: "B", originator_ae_title="US", peer_ae_title="P") as b:
        with pytest.raises(MessageIDTaken):
            b.claim(2)
        b.claim(1)


def test_busy_while_an_association_that_brought_something_is():
    receiver = MoveReceiver()
    with receiver.expect(lambda request: "A", originator_ae_title="US", peer_ae_title="P") as a:
        a.claim(1)
        assert not a.busy
        assert a.received == 0
        store = request("US", 1)
        receiver.open_sink(store)
        assert (a.busy, a.received) == (True, 1)
        store.association.is_open = False
        assert not a.busy
