"""The steps of a growing archive, and what is made of them; `python -m benchmarks growth` measures."""

import pytest

from benchmarks.growth import Round, Step, counts, points, round_targets, step_targets, tenth


def step(objects: int, *, cost: float = 200.0, query_ms: float = 0.5) -> Step:
    return Step(objects, 25_000, 10.0, cost, 200.0, 80_000_000, query_ms, 2 * query_ms)


def test_steps_are_short_at_first_and_end_at_the_number_asked_for() -> None:
    assert points(60_000) == [1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 60_000]
    assert points(500) == [500]
    assert points(1_000_000)[-2:] == [975_000, 1_000_000]


def test_associations_go_up_by_tens() -> None:
    assert counts(1) == [1]
    assert counts(10) == [1, 10]
    assert counts(250) == [1, 10, 100, 250]
    assert counts(1000) == [1, 10, 100, 1000]


def test_tenths_take_the_steps_that_end_in_them() -> None:
    steps = [step(objects) for objects in points(1_000_000)]
    assert [each.objects for each in tenth(steps, 2)] == [125_000, 150_000, 175_000, 200_000]
    assert [each.objects for each in tenth(steps, 10)] == [925_000, 950_000, 975_000, 1_000_000]


def test_what_stays_flat_meets_its_targets() -> None:
    assert [target.is_met for target in step_targets([step(n) for n in points(1_000_000)])] == [True, True]


def test_what_grows_misses_them() -> None:
    steps = [step(n, cost=200 + n / 5000, query_ms=n / 100_000) for n in points(1_000_000)]
    assert [target.is_met for target in step_targets(steps)] == [False, False]


def test_an_archive_with_few_steps_has_no_target() -> None:
    assert step_targets([step(1_000)]) == []
    assert step_targets([]) == []


def test_associations_are_compared_with_one_in_the_same_round() -> None:
    rounds = [
        Round(open_, sending, 4000, 1.0, cost, 80_000_000)
        for one, idle, busy in ((200.0, 220.0, 300.0), (100.0, 105.0, 140.0))
        for open_, sending, cost in ((1, 1, one), (1000, 1, idle), (1000, 1000, busy))
    ]
    idle, busy = round_targets(rounds)
    assert idle.measured == pytest.approx((1.1 + 1.05) / 2)
    assert idle.is_met
    assert busy.measured == pytest.approx((1.5 + 1.4) / 2)
    assert not busy.is_met
