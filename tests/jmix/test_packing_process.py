"""The packing process: the same bytes as without it, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harmony.jmix.envelope import Compression, EnvelopePlan, Parties, Profile, build_envelope
from harmony.jmix.journal import JournalEntry
from harmony.jmix.packing_process import (
    LENGTH_BYTES,
    Add,
    Build,
    Built,
    Discard,
    Failed,
    Order,
    decode_reply,
    encode,
)

ENVELOPE_ID = "550e8400-e29b-41d4-a716-446655440000"
CREATED = datetime(2024, 1, 15, 10, 20, 30, tzinfo=UTC)
ORDER = Order(
    ENVELOPE_ID, CREATED, Parties(), "confidential", Profile.HARMONY, False, False, Compression.STORED, False
)


class Packing:
    """The process, and its side of the conversation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harmony.jmix.packing_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def temporary(self) -> str:
        return str(self.folder / "begun.tmp")

    def tell(self, *messages: Add | Build | Discard) -> None:
        assert self.process.stdin is not None
        for message in messages:
            self.process.stdin.write(encode(message))
        self.process.stdin.flush()

    def hear(self) -> Built | Failed:
        assert self.process.stdout is not None
        size = int.from_bytes(self.process.stdout.read(LENGTH_BYTES), "big")
        return decode_reply(self.process.stdout.read(size))

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def end(self) -> int:
        """Its exit status."""
        self.process.communicate(timeout=20)
        return self.process.returncode


@pytest.fixture
def packing(tmp_path: Path) -> Iterator[Packing]:
    folder = tmp_path / "incoming"
    folder.mkdir()
    packing = Packing(folder)
    yield packing
    packing.process.kill()
    packing.process.communicate()


@pytest.fixture
def entries(make_object: Any) -> tuple[JournalEntry, ...]:
    made = [make_object(f"1.{number}", InstanceNumber=9 - number) for number in range(4)]
    return tuple(
        JournalEntry(
            each.path,
            each.study_instance_uid,
            each.series_instance_uid,
            each.sop_class_uid,
            each.sop_instance_uid,
            each.transfer_syntax_uid,
            each.size_bytes,
            each.disposition.value,
        )
        for each in made
    )


@pytest.fixture
def expected(entries: tuple[JournalEntry, ...], tmp_path: Path) -> bytes:
    plan = EnvelopePlan(ENVELOPE_ID, CREATED, entries)
    return build_envelope(plan, out_path=tmp_path / "expected.zip").path.read_bytes()


def test_what_was_begun_is_completed(
    packing: Packing, entries: tuple[JournalEntry, ...], expected: bytes
) -> None:
    out = packing.folder / "out"
    packing.tell(
        Add(ORDER, packing.temporary, entries[:2]),
        Add(ORDER, packing.temporary, entries[2:3]),
        Build(ORDER, entries, str(out)),
    )
    built = packing.hear()
    assert isinstance(built, Built)
    assert out.read_bytes() == expected
    assert (built.size_bytes, built.instance_count) == (len(expected), 4)
    assert built.study_instance_uids == ("1.2.3.4.5.6",)
    assert built.manifest in expected
    assert packing.left() == ["out"]
    assert packing.end() == 0


@pytest.mark.parametrize("begun", [(), (1,), (0, 2)], ids=["nothing", "another", "one left out"])
def test_what_was_begun_otherwise_is_built_whole(
    packing: Packing, entries: tuple[JournalEntry, ...], expected: bytes, begun: tuple[int, ...]
) -> None:
    out = packing.folder / "out"
    if begun:
        packing.tell(Add(ORDER, packing.temporary, tuple(entries[number] for number in begun)))
    packing.tell(Build(ORDER, entries, str(out)))
    assert isinstance(packing.hear(), Built)
    assert out.read_bytes() == expected
    assert packing.left() == ["out"]


def test_file_that_is_gone_fails_when_it_is_built(
    packing: Packing, entries: tuple[JournalEntry, ...]
) -> None:
    out = packing.folder / "out"
    os.unlink(entries[1].path)
    packing.tell(
        Add(ORDER, packing.temporary, entries[:2]),
        Add(ORDER, packing.temporary, entries[2:]),
        Build(ORDER, entries, str(out)),
    )
    failed = packing.hear()
    assert isinstance(failed, Failed)
    assert "No such file" in failed.error
    assert packing.left() == []
    packing.tell(Build(ORDER, entries[2:], str(out)))  # it goes on
    assert isinstance(packing.hear(), Built)


def test_what_is_discarded_leaves_nothing(packing: Packing, entries: tuple[JournalEntry, ...]) -> None:
    packing.tell(Add(ORDER, packing.temporary, entries), Discard(ENVELOPE_ID), Discard("another"))
    packing.tell(Build(ORDER, entries[:1], str(packing.folder / "out")))
    assert isinstance(packing.hear(), Built)
    assert packing.left() == ["out"]


def test_end_of_its_input_leaves_nothing(packing: Packing, entries: tuple[JournalEntry, ...]) -> None:
    packing.tell(Add(ORDER, packing.temporary, entries[:2]))
    assert packing.process.stdin is not None
    packing.process.stdin.write(encode(Add(ORDER, packing.temporary, entries[2:]))[:-1])  # killed meanwhile
    assert packing.end() == 0
    assert packing.left() == []


def test_envelope_that_nobody_waits_for_any_more_is_removed(
    packing: Packing, entries: tuple[JournalEntry, ...]
) -> None:
    assert packing.process.stdout is not None
    packing.process.stdout.close()
    packing.tell(Build(ORDER, entries, str(packing.folder / "out")))
    assert packing.process.wait(timeout=20) == 0
    assert packing.left() == []


def test_signals_to_the_gateway_are_not_for_it(
    packing: Packing, entries: tuple[JournalEntry, ...], expected: bytes
) -> None:
    packing.tell(Add(ORDER, packing.temporary, entries), Build(ORDER, entries, str(packing.folder / "out")))
    packing.hear()
    for number in (signal.SIGINT, signal.SIGTERM):
        packing.process.send_signal(number)
    packing.tell(Build(ORDER, entries, str(packing.folder / "again")))
    packing.hear()
    assert (packing.folder / "again").read_bytes() == expected
