"""The durable outbox, restarted at will."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.jmix.outbox import InDoubt, Outbox, State, backoff_s

Open = Callable[[], Outbox]


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Open]:
    """Open the outbox; calling it again is a restart after a crash."""
    opened: list[Outbox] = []

    def reopen() -> Outbox:
        for outbox in opened:
            outbox.close()
        opened.append(Outbox(tmp_path / "outbox.sqlite"))
        return opened[-1]

    yield reopen
    for outbox in opened:
        outbox.close()


def enqueue(outbox: Outbox, envelope_id: str, *, destination: str = "upstream", now: float = 0.0) -> int:
    return outbox.enqueue(
        envelope_id,
        destination,
        payload_path=f"/store/{envelope_id}.zip",
        content_type="application/zip",
        content_length=10,
        origin="MODALITY",
        now=now,
    )


def test_delivery_from_end_to_end(reopen: Open) -> None:
    outbox = reopen()
    number = enqueue(outbox, "a", now=5.0)
    assert outbox.next_due() == 5.0
    assert outbox.claim_due(4.9) == []
    (delivery,) = outbox.claim_due(5.0)
    assert (delivery.id, delivery.envelope_id, delivery.destination) == (number, "a", "upstream")
    assert (delivery.payload_path, delivery.content_type, delivery.content_length) == (
        "/store/a.zip",
        "application/zip",
        10,
    )
    assert (delivery.state, delivery.attempts, delivery.origin) == (State.IN_PROGRESS, 1, "MODALITY")
    assert outbox.claim_due(1000.0) == []
    assert outbox.next_due() is None
    outbox.delivered(number, http_status=201, now=6.0)
    (delivered,) = outbox.deliveries(State.DELIVERED)
    assert (delivered.http_status, delivered.error, delivered.changed_at) == (201, None, 6.0)
    assert outbox.counts() == {State.PENDING: 0, State.IN_PROGRESS: 0, State.DELIVERED: 1, State.PARKED: 0}


def test_enqueue_is_idempotent_by_envelope_and_destination(reopen: Open) -> None:
    outbox = reopen()
    number = enqueue(outbox, "a")
    outbox.claim_due(0.0)
    outbox.delivered(number, http_status=201, now=1.0)
    assert enqueue(outbox, "a", now=2.0) == number
    assert outbox.claim_due(1000.0) == []
    assert enqueue(outbox, "a", destination="other") != number
    assert len(outbox.claim_due(1000.0)) == 1


def test_restart_makes_what_was_in_progress_pending(reopen: Open) -> None:
    outbox = reopen()
    enqueue(outbox, "a")
    outbox.claim_due(0.0)
    outbox = reopen()
    (delivery,) = outbox.claim_due(0.0)
    assert delivery.attempts == 2


def test_looking_changes_nothing_and_unparks_under_a_running_process(reopen: Open, tmp_path: Path) -> None:
    running = reopen()
    parked, sending = enqueue(running, "a"), enqueue(running, "b")
    running.claim_due(1.0, limit=2)
    running.parked(parked, error="400", now=2.0)
    looking = Outbox.inspect(tmp_path / "outbox.sqlite")
    try:
        states = {delivery.id: delivery.state for delivery in looking.deliveries()}
        assert states == {parked: State.PARKED, sending: State.IN_PROGRESS}
        assert looking.unpark(parked, now=3.0)
        assert running.next_due() == 3.0
        assert running.counts()[State.IN_PROGRESS] == 1
    finally:
        looking.close()


def test_looking_at_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Outbox.inspect(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "other.sqlite").write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        Outbox.inspect(tmp_path / "other.sqlite")


def test_failed_delivery_waits_and_keeps_its_error(reopen: Open) -> None:
    outbox = reopen()
    number = enqueue(outbox, "a")
    outbox.claim_due(0.0)
    outbox.failed(number, error="502", retry_at=30.0, now=1.0, http_status=502)
    outbox = reopen()
    assert outbox.next_due() == 30.0
    assert outbox.claim_due(29.0) == []
    (delivery,) = outbox.claim_due(30.0)
    assert (delivery.attempts, delivery.error, delivery.http_status) == (2, "502", 502)


def test_clock_that_was_set_back_delays_no_delivery(reopen: Open) -> None:
    """Its due time is a day away then, by a clock that was wrong when it was written down."""
    outbox = reopen()
    day_s = 86400.0
    number = enqueue(outbox, "a", now=day_s)
    outbox.claim_due(day_s)
    outbox.failed(number, error="502", retry_at=day_s + 300.0, now=day_s, http_status=502)
    assert outbox.claim_due(day_s - 1.0) == []  # a clock that is adjusted by little
    (delivery,) = outbox.claim_due(1000.0)
    assert (delivery.id, delivery.attempts) == (number, 2)
    assert delivery.changed_at == 1000.0
    outbox.failed(number, error="502", retry_at=1300.0, now=1000.0, http_status=502)
    assert outbox.claim_due(1100.0) == []
    assert len(outbox.claim_due(1300.0)) == 1


def test_parked_delivery_stays_until_unparked(reopen: Open) -> None:
    outbox = reopen()
    number = enqueue(outbox, "a")
    outbox.claim_due(0.0)
    outbox.parked(number, error="x" * 1000, now=1.0, http_status=400)
    outbox = reopen()
    assert outbox.claim_due(1e9) == []
    (parked,) = outbox.deliveries(State.PARKED)
    assert (parked.http_status, parked.error) == (400, "x" * 500)
    assert outbox.unpark(number, now=9.0)
    assert not outbox.unpark(number, now=9.0)
    (delivery,) = outbox.claim_due(9.0)
    assert delivery.attempts == 1


def test_longest_waiting_goes_first(reopen: Open) -> None:
    outbox = reopen()
    for name, now in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("later", 99.0)):
        enqueue(outbox, name, now=now)
    assert [delivery.envelope_id for delivery in outbox.claim_due(10.0, limit=2)] == ["a", "b"]
    assert [delivery.envelope_id for delivery in outbox.claim_due(10.0, limit=9)] == ["c"]
    assert [delivery.envelope_id for delivery in outbox.deliveries(limit=2)] == [
        "later",
        "b",
    ]  # by change, then number


def test_unknown_delivery_is_an_error(reopen: Open) -> None:
    with pytest.raises(KeyError):
        reopen().delivered(7, http_status=201, now=0.0)


def test_old_deliveries_are_forgotten_and_only_delivered_ones(reopen: Open) -> None:
    outbox = reopen()
    for name in "abc":
        enqueue(outbox, name)
    first, second, _ = outbox.claim_due(0.0, limit=3)
    outbox.delivered(first.id, http_status=201, now=1.0)
    outbox.parked(second.id, error="", now=1.0)
    assert outbox.forget_delivered(before=1.0) == 0
    assert outbox.forget_delivered(before=2.0) == 1
    assert outbox.counts() == {State.PENDING: 0, State.IN_PROGRESS: 1, State.DELIVERED: 0, State.PARKED: 1}


def test_each_delivery_is_claimed_by_one_thread(reopen: Open) -> None:
    outbox = reopen()
    for number in range(60):
        enqueue(outbox, str(number))
    claimed: list[str] = []

    def work() -> None:
        while deliveries := outbox.claim_due(0.0, limit=3):
            claimed.extend(delivery.envelope_id for delivery in deliveries)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed, key=int) == [str(number) for number in range(60)]


def test_object_in_doubt_is_taken_once(reopen: Open) -> None:
    outbox = reopen()
    first, second = InDoubt("1.1", "1.2", 10, None, 1.0), InDoubt("1.3", "1.2", 20, "ab", 2.0)
    outbox.mark_in_doubt([first, second])
    outbox = reopen()
    assert outbox.in_doubt() == [first, second]
    assert outbox.take_in_doubt("1.1")
    assert not outbox.take_in_doubt("1.1")
    outbox.mark_in_doubt([second])
    assert outbox.in_doubt() == [second]
    assert outbox.forget_in_doubt(before=2.0) == 0
    assert outbox.forget_in_doubt(before=2.1) == 1


def test_marking_and_forgetting_together(reopen: Open) -> None:
    outbox = reopen()
    outbox.mark_in_doubt([InDoubt("1.1", "1", 10, None, 1.0), InDoubt("1.2", "1", 10, None, 1.0)])
    outbox.mark_in_doubt([InDoubt("1.3", "1", 10, None, 2.0)], forget=["1.1", "1.9"])
    assert [each.sop_instance_uid for each in reopen().in_doubt()] == ["1.2", "1.3"]


def test_objects_in_doubt_are_marked_all_or_none(reopen: Open) -> None:
    outbox = reopen()
    with pytest.raises(sqlite3.IntegrityError):
        outbox.mark_in_doubt([InDoubt("1.1", "1", 1, None, 1.0), InDoubt("1.2", "1", 1, None, None)])  # type: ignore[arg-type]
    assert outbox.in_doubt() == []
    outbox.mark_in_doubt([])


def test_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite").write_bytes(b"not a database, certainly" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        Outbox(tmp_path / "outbox.sqlite")


def test_backoff_doubles_up_to_its_maximum() -> None:
    assert [backoff_s(attempt, random=lambda: 0.0) for attempt in (1, 2, 3, 9, 10, 10_000)] == [
        1,
        2,
        4,
        256,
        300,
        300,
    ]


@given(attempt=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_backoff_jitter_takes_up_to_half_away(attempt: int, chance: float) -> None:
    longest = backoff_s(attempt, random=lambda: 0.0)
    assert longest / 2 <= backoff_s(attempt, random=lambda: chance) <= longest


def test_waiting_since_the_oldest_that_is_not_settled(reopen: Open) -> None:
    outbox = reopen()
    assert outbox.waiting_since() is None
    first, second = enqueue(outbox, "a", now=5.0), enqueue(outbox, "b", now=7.0)
    assert outbox.waiting_since() == 5.0
    outbox.claim_due(5.0)
    assert outbox.waiting_since() == 5.0
    outbox.failed(first, error="no answer", retry_at=100.0, now=6.0)
    assert outbox.waiting_since() == 5.0
    outbox.parked(first, error="refused", now=8.0)
    assert outbox.waiting_since() == 7.0
    outbox.delivered(second, http_status=201, now=9.0)
    assert outbox.waiting_since() is None
