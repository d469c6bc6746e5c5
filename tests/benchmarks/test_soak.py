"""What a soak makes of what it has seen; the soak itself is for `python -m benchmarks soak`."""

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.mixture import Unexpected, compare, unchunked
from benchmarks.peers import PeerError
from benchmarks.soak import Sample, Soak, lag_of, loaded, rise, targets


def samples(count: int = 360, *, rss_per_sample: int = 0, cost: float = 200.0) -> list[Sample]:
    return [
        Sample(10.0 * n, 800, cost, 60_000_000 + n * rss_per_sample, 30, 9, 0.2, {"C-GET": (8.0, 11.0, 10)})
        for n in range(count)
    ]


def test_lost_objects_are_those_acknowledged_and_not_there() -> None:
    missing, odd = compare({"2.25.1": 20, "2.25.2": 20, "2.25.3": 1}, {"2.25.1": 20, "2.25.2": 17})
    assert missing == 4
    assert odd == [
        "study 2.25.2: 20 objects acknowledged, 17 in the archive",
        "study 2.25.3: 1 objects acknowledged, 0 in the archive",
    ]


def test_an_object_that_nobody_acknowledged_is_odd_and_not_lost() -> None:
    assert compare({}, {"2.25.9": 1}) == (0, ["study 2.25.9: 0 objects acknowledged, 1 in the archive"])


def test_loop_lag_is_read_from_metrics() -> None:
    text = (
        "# TYPE harmony_event_loop_lag_seconds histogram\n"
        'harmony_event_loop_lag_seconds_bucket{le="0.001"} 7.0\n'
        "harmony_event_loop_lag_seconds_count 8.0\n"
        "harmony_event_loop_lag_seconds_sum 0.0125\n"
    )
    assert lag_of(text) == (0.0125, 8.0)
    with pytest.raises(PeerError, match="harmony_event_loop_lag_seconds_sum"):
        lag_of("harmony_info 1.0\n")


def test_chunks_are_joined() -> None:
    assert unchunked(b"3\r\n[1,\r\n2;name=value\r\n2]\r\n0\r\n\r\n") == b"[1,2]"
    with pytest.raises(Unexpected):
        unchunked(b"3\r\n[1,\r\n")


def test_rise_is_that_of_the_fitted_line() -> None:
    flat, rising = samples(), samples(rss_per_sample=100_000)
    assert rise(flat, [sample.rss_bytes for sample in flat]) == pytest.approx(0.0)
    assert rise(rising, [sample.rss_bytes for sample in rising]) == pytest.approx(359 * 100_000)


def test_a_flat_soak_meets_its_targets() -> None:
    soak = Soak(samples(), acknowledged=32_000, lost=0)
    assert [target.what.partition(",")[0] for target in targets(soak) if not target.is_met] == []


def test_memory_that_grows_misses_its_target() -> None:
    soak = Soak(samples(rss_per_sample=300_000), acknowledged=32_000, lost=0)
    assert ["memory" in target.what for target in targets(soak) if not target.is_met] == [True]


def test_a_short_soak_has_no_target_for_memory() -> None:
    soak = Soak(samples(24, rss_per_sample=300_000), acknowledged=1_920, lost=0)
    assert [target.what for target in targets(soak) if not target.is_met] == []


def test_a_loss_misses_its_target() -> None:
    soak = Soak(samples(), acknowledged=32_000, lost=1)
    assert ["lost" in target.what for target in targets(soak) if not target.is_met] == [True]


def test_a_run_in_a_file_says_the_same_again(tmp_path: Path) -> None:
    soak = Soak(samples(), acknowledged=32_000, lost=0, failures=["C-FIND: none"])
    rest = {name: getattr(soak, name) for name in ("acknowledged", "lost", "odd", "complaints")}
    rows = [asdict(sample) for sample in soak.samples]
    report.write_rows(tmp_path / "soak.json", rows, options={}, failures=soak.failures, more=rest)
    again = loaded(tmp_path / "soak.json")
    assert [target.row() for target in targets(again)] == [target.row() for target in targets(soak)]
    assert again.failures == soak.failures
    assert again.samples[0].latency_ms["C-GET"][0] == 8.0
