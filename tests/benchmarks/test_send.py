"""The receiver that keeps nothing counts what was sent, and senders send all of it."""

from pathlib import Path

import pytest

from benchmarks.peers import PeerError
from benchmarks.send import SENDERS, Run, finished, receiving, targets
from benchmarks.workloads import SIZES, create

SENT = ("library", "floor", "harmony-4", "harmony-window")


@pytest.mark.parametrize("maximum_length", [4096, 16385, 131072])
def test_everything_that_was_sent_is_counted(tmp_path: Path, maximum_length: int) -> None:
    (tmp_path / "files").mkdir()
    workload = create(SIZES["ct"], tmp_path)
    for number in range(3):
        (tmp_path / "files" / f"{number}.dcm").hardlink_to(workload.path)
    with receiving(tmp_path, maximum_length) as receiver:
        for name in SENT:
            finished(SENDERS[name], receiver.port, tmp_path / "files")
            rows = receiver.associations(3)
            assert sum(row["data_set_bytes"] for row in rows) == 3 * workload.data_set_bytes
            assert all(row["began_s"] < row["ended_s"] for row in rows)


def test_a_sender_that_fails_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "note.txt").write_text("no DICOM")
    with receiving(tmp_path, 16384) as receiver, pytest.raises(PeerError, match="harmony-4 ended with 1"):
        finished(SENDERS["harmony-4"], receiver.port, tmp_path / "files")


def test_targets_are_ratios_of_the_same_round() -> None:
    def run(sender: str, turn: int, transfer_s: float) -> Run:
        return Run(sender, "ct", turn, 1, 1_000_000, transfer_s, 1.0, 0.1, 1)

    (target,) = targets(
        [run("library", 0, 1.0), run("library", 1, 4.0), run("storescu", 0, 3.0), run("storescu", 1, 8.0)]
    )
    assert (target.measured, target.least, target.is_met) == (2.5, 2.0, True)
