"""The grouping rules, with a clock that is a number and real journals."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony.jmix.assembly import MAXIMUM_IN_DOUBT, EnvelopeAssembly
from harmony.jmix.journal import EnvelopeJournal, JournalHeader, read

STUDY, OTHER_STUDY = "1.2.3.4.5.6", "1.2.9"


class Bench:
    """An assembly, its clock, and the names of what comes out of it."""

    def __init__(
        self, folder: Path, storage: Path, *, window: int = 1, in_doubt: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.storage = folder, storage
        self.now = 100.0
        self.opened = 0
        self.assembly = EnvelopeAssembly(
            self.open_journal, clock=lambda: self.now, window=window, in_doubt=in_doubt
        )

    def open_journal(self, origin: str, study_instance_uid: str) -> EnvelopeJournal:
        self.opened += 1
        header = JournalHeader(
            envelope_id=str(uuid.uuid4()),
            study_instance_uid=study_instance_uid,
            pipeline="p",
            origin=origin,
            created="",
        )
        return EnvelopeJournal(self.folder, header, storage_root=str(self.storage))

    def contents(self, journals: list[EnvelopeJournal]) -> list[tuple[str, list[str]]]:
        found = [read(journal.close(), storage_root=str(self.storage)) for journal in journals]
        return [
            (closed.header.study_instance_uid, [entry.sop_instance_uid for entry in closed.entries])
            for closed in found
        ]


@pytest.fixture
def bench(tmp_path: Path, storage: Path) -> Callable[..., Bench]:
    numbers = itertools.count()

    def make(**arguments: object) -> Bench:
        folder = tmp_path / f"journals-{next(numbers)}"
        folder.mkdir()
        return Bench(folder, storage, **arguments)  # type: ignore[arg-type]

    return make


def add(association, stored) -> None:
    association.append(stored)
    association.settled(stored.path)


def test_one_envelope_per_association_and_study(bench, make_object) -> None:
    b = bench()
    first, second = b.assembly.begin("A"), b.assembly.begin("B")
    add(first, make_object("1.1"))
    add(second, make_object("1.2"))
    add(first, make_object("1.3", study=OTHER_STUDY))
    add(first, make_object("1.4"))
    assert b.contents(first.ended(released=True)) == [(STUDY, ["1.1", "1.4"]), (OTHER_STUDY, ["1.3"])]
    assert b.contents(second.ended(released=True)) == [(STUDY, ["1.2"])]
    assert b.opened == 3
    assert first.ended(released=False) == []
    assert b.assembly.take_in_doubt() == []
    assert b.assembly.next_deadline() is None


def test_quiet_time_completes_an_envelope_and_the_next_object_opens_another(bench, make_object) -> None:
    b = bench()
    association = b.assembly.begin("A")
    assert b.assembly.next_deadline() is None
    add(association, make_object("1.1"))
    b.now = 100.9
    add(association, make_object("1.2"))
    assert b.assembly.next_deadline(quiet_time_s=1.0) == 101.9
    assert b.assembly.due(101.8) == []
    assert b.contents(b.assembly.due(101.9)) == [(STUDY, ["1.1", "1.2"])]
    assert b.assembly.next_deadline() is None
    b.now = 200.0
    add(association, make_object("1.3"))
    assert b.contents(association.ended(released=True)) == [(STUDY, ["1.3"])]


def test_objects_on_their_way_hold_the_envelope(bench, make_object) -> None:
    b = bench()
    association = b.assembly.begin("A")
    stored = make_object("1.1")
    association.append(stored)
    assert b.assembly.next_deadline() is None
    assert b.assembly.due(1000.0) == []
    assert association.ended(released=True) == []
    assert b.assembly.due(1000.0) == []
    b.now = 150.0
    association.settled(stored.path)
    assert b.assembly.next_deadline() == 150.0
    assert b.contents(b.assembly.due(150.0)) == [(STUDY, ["1.1"])]
    assert b.assembly.due(1000.0) == []


def test_settling_starts_the_quiet_time(bench, make_object) -> None:
    b = bench()
    association = b.assembly.begin("A")
    stored = make_object("1.1")
    association.append(stored)
    b.now = 105.0
    association.settled(stored.path)
    assert b.assembly.due(105.5) == []
    assert len(b.assembly.due(106.0)) == 1


def test_refused_object_leaves_the_others(bench, make_object) -> None:
    b = bench()
    association = b.assembly.begin("A")
    add(association, make_object("1.1"))
    refused = make_object("1.2")
    association.append(refused)
    Path(refused.path).unlink()
    association.settled(refused.path)
    association.settled("/never/journaled")
    assert b.contents(association.ended(released=True)) == [(STUDY, ["1.1"])]


def test_last_object_of_an_aborted_association_is_in_doubt(bench, make_object, dispositions) -> None:
    b = bench()
    association = b.assembly.begin("A")
    objects = [make_object(f"1.{number}") for number in (1, 2, 3)]
    for stored in objects:
        add(association, stored)
    assert b.contents(association.ended(released=False)) == [(STUDY, ["1.1", "1.2", "1.3"])]
    assert b.assembly.take_in_doubt() == [objects[2]]
    assert b.assembly.take_in_doubt() == []

    again = b.assembly.begin("A")
    for stored in objects:
        add(again, replace(stored, disposition=dispositions.IDENTICAL))
    assert b.assembly.take_no_longer_in_doubt() == []  # this answer may be lost as well
    assert b.contents(again.ended(released=True)) == [(STUDY, ["1.1", "1.2"])]  # 1.3 is in the first already
    assert b.assembly.take_no_longer_in_doubt() == ["1.3"]

    on_purpose = b.assembly.begin("A")
    add(on_purpose, replace(objects[2], disposition=dispositions.IDENTICAL))
    assert b.contents(on_purpose.ended(released=True)) == [(STUDY, ["1.3"])]


def test_repeating_only_what_is_in_doubt_opens_no_envelope(bench, make_object, dispositions) -> None:
    b = bench(in_doubt=("1.1",))
    association = b.assembly.begin("A")
    stored = replace(make_object("1.1"), disposition=dispositions.IDENTICAL)
    add(association, stored)
    assert association.ended(released=False) == []
    assert b.opened == 0
    assert b.assembly.take_in_doubt() == [stored]  # this answer may have been lost as well
    assert b.assembly.take_no_longer_in_doubt() == []


def test_other_data_under_an_instance_in_doubt_is_a_new_object(bench, make_object) -> None:
    b = bench(in_doubt=("1.1",))
    association = b.assembly.begin("A")
    add(association, make_object("1.1"))
    assert b.contents(association.ended(released=True)) == [(STUDY, ["1.1"])]
    assert b.assembly.take_no_longer_in_doubt() == ["1.1"]


def test_window_of_operations_is_in_doubt(bench, make_object) -> None:
    b = bench(window=3)
    association = b.assembly.begin("A")
    for number in range(5):
        add(association, make_object(f"1.{number}"))
    association.ended(released=False)
    assert [stored.sop_instance_uid for stored in b.assembly.take_in_doubt()] == ["1.2", "1.3", "1.4"]


def test_object_completed_after_its_association_ended(bench, make_object) -> None:
    b = bench()
    association = b.assembly.begin("A")
    association.ended(released=False)
    stored = make_object("1.1")
    association.append(stored)
    assert b.assembly.take_in_doubt() == [stored]
    association.settled(stored.path)
    assert b.contents(b.assembly.due(b.now)) == [(STUDY, ["1.1"])]


def test_object_the_archive_did_not_keep_goes_into_none(bench, make_object, dispositions) -> None:
    b = bench()
    association = b.assembly.begin("A")
    add(association, replace(make_object("1.1"), disposition=dispositions.KEPT_FIRST))
    assert association.ended(released=False) == []
    assert b.assembly.take_in_doubt() == []


def test_name_taken_by_another_process_withdraws_the_line(bench, make_object, dispositions) -> None:
    b = bench()
    association = b.assembly.begin("A")
    add(association, make_object("1.2"))
    stored = make_object("1.1")
    association.append(stored)
    association.append(replace(stored, disposition=dispositions.KEPT_FIRST))
    association.settled(stored.path)
    lost = make_object("1.3")
    beside = replace(make_object("1.4"), sop_instance_uid="1.3", disposition=dispositions.KEPT_BOTH)
    association.append(lost)
    association.append(beside)
    association.settled(beside.path)
    (journal,) = association.ended(released=True)
    entries = read(journal.close(), storage_root=str(b.storage)).entries
    assert [entry.path for entry in entries] == [make_object("1.2").path, beside.path]


def test_different_data_refused_later_keeps_the_first_object(bench, make_object, dispositions) -> None:
    b = bench()
    association = b.assembly.begin("A")
    stored = make_object("1.1")
    add(association, stored)
    add(association, replace(stored, disposition=dispositions.KEPT_FIRST))
    add(association, replace(stored, disposition=dispositions.IDENTICAL))
    assert b.contents(association.ended(released=True)) == [(STUDY, ["1.1"])]


def test_repeated_object_stays_in_doubt_until_its_sender_goes_on(bench, make_object, dispositions) -> None:
    b = bench(in_doubt=("1.1",))
    association = b.assembly.begin("A")
    add(association, replace(make_object("1.1"), disposition=dispositions.IDENTICAL))
    assert b.assembly.take_no_longer_in_doubt() == []
    add(association, make_object("1.2"))
    assert b.assembly.take_no_longer_in_doubt() == ["1.1"]
    assert b.contents(association.ended(released=False)) == [(STUDY, ["1.2"])]


def test_sender_that_came_back_before_its_old_association_was_missed(
    bench, make_object, dispositions
) -> None:
    """A sender that lost its network opens another association while the old one still looks alive."""
    b = bench()
    old, other = b.assembly.begin("A"), b.assembly.begin("B")
    objects = [make_object("1.1"), make_object("1.2")]
    for stored in objects:
        add(old, stored)
    new = b.assembly.begin("A")
    repeated = replace(objects[1], disposition=dispositions.IDENTICAL)
    add(new, repeated)
    assert b.assembly.take_in_doubt() == [objects[1]]
    add(new, replace(objects[0], disposition=dispositions.IDENTICAL))  # was answered: sent again on purpose
    assert b.assembly.take_no_longer_in_doubt() == ["1.2"]
    add(other, repeated)  # another sender's
    assert b.contents(new.ended(released=True)) == [(STUDY, ["1.1"])]
    assert b.contents(old.ended(released=False)) == [(STUDY, ["1.1", "1.2"])]
    assert b.contents(other.ended(released=True)) == [(STUDY, ["1.2"])]
    assert b.assembly.take_in_doubt() == []


def test_last_object_is_remembered_before_its_quiet_journal_is_closed(
    bench, make_object, dispositions
) -> None:
    """Only an open journal tells after a crash what was sent last."""
    b = bench()
    association = b.assembly.begin("A")
    first, last = make_object("1.1"), make_object("1.2")
    add(association, first)
    add(association, last)
    assert b.assembly.take_in_doubt() == []
    assert b.contents(b.assembly.due(b.now + 2)) == [(STUDY, ["1.1", "1.2"])]
    assert b.assembly.take_in_doubt() == [last]
    again = replace(last, disposition=dispositions.IDENTICAL)
    add(association, again)  # by a sender that is alive, on the same association: on purpose
    assert b.contents(b.assembly.due(b.now + 4)) == [(STUDY, ["1.2"])]
    assert b.assembly.take_in_doubt() == []  # is remembered
    association.ended(released=True)
    assert b.assembly.take_no_longer_in_doubt() == ["1.2"]


def test_quiet_journal_of_an_association_that_then_breaks(bench, make_object, dispositions) -> None:
    b = bench()
    association = b.assembly.begin("A")
    last = make_object("1.1")
    add(association, last)
    b.assembly.due(b.now + 2)
    association.ended(released=False)
    assert b.assembly.take_no_longer_in_doubt() == []
    again = b.assembly.begin("A")
    add(again, replace(last, disposition=dispositions.IDENTICAL))
    assert again.ended(released=True) == []


def test_refused_object_is_struck_from_the_journal(bench, make_object) -> None:
    """It is sent again elsewhere, and is there, before this envelope is built."""
    b = bench()
    first, second = b.assembly.begin("A"), b.assembly.begin("A")
    add(first, make_object("1.1"))
    refused = make_object("1.2")
    first.append(refused)
    first.refused(refused.path)
    first.refused("/never/journaled")
    journals = first.ended(released=False)
    assert b.assembly.take_in_doubt() == []
    add(second, refused)
    journals += second.ended(released=True)
    assert b.contents(journals) == [(STUDY, ["1.1"]), (STUDY, ["1.2"])]


def test_refusing_a_repetition_leaves_what_was_there(bench, make_object, dispositions) -> None:
    b = bench()
    association = b.assembly.begin("A")
    stored = make_object("1.1")
    add(association, stored)
    association.append(replace(stored, disposition=dispositions.IDENTICAL))
    association.refused(stored.path)
    assert b.contents(association.ended(released=True)) == [(STUDY, ["1.1"])]


def test_refused_object_completes_the_envelope_of_an_ended_association(bench, make_object) -> None:
    b = bench()
    association = b.assembly.begin("A")
    add(association, make_object("1.1"))
    refused = make_object("1.2")
    association.append(refused)
    assert association.ended(released=True) == []
    association.refused(refused.path)
    assert b.contents(b.assembly.due(b.now)) == [(STUDY, ["1.1"])]


def test_memory_of_objects_in_doubt_is_bounded(bench, make_object) -> None:
    b = bench(in_doubt=tuple(f"1.{number}" for number in range(MAXIMUM_IN_DOUBT)))
    association = b.assembly.begin("A")
    add(association, make_object("2.1"))
    association.ended(released=False)
    assert b.assembly.take_no_longer_in_doubt() == ["1.0"]


def test_journal_that_cannot_be_opened_refuses_the_object(bench, make_object) -> None:
    b = bench()
    b.folder.rmdir()
    association = b.assembly.begin("A")
    with pytest.raises(OSError):
        association.append(make_object("1.1"))
    assert association.ended(released=True) == []
    association.sync()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("object"), st.integers(0, 2), st.sampled_from([STUDY, OTHER_STUDY])),
        st.tuples(st.just("end"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("settle"), st.integers(0, 2), st.just(None)),
        st.tuples(st.just("wait"), st.floats(0, 3), st.just(None)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_every_object_is_in_exactly_one_envelope(bench, make_object, steps) -> None:
    b = bench()
    associations = [b.assembly.begin(str(number)) for number in range(3)]
    template = make_object("9.9")
    on_their_way: list[list[str]] = [[], [], []]
    sent: list[str] = []
    journals: list[EnvelopeJournal] = []
    for kind, which, value in steps:
        if kind == "object":
            instance = f"1.{len(sent)}"
            path = f"{b.storage}/{instance}.dcm"
            Path(path).write_bytes(b"")
            associations[which].append(
                replace(template, path=path, sop_instance_uid=instance, study_instance_uid=value)
            )
            on_their_way[which].append(path)
            sent.append(instance)
        elif kind == "settle" and on_their_way[which]:
            associations[which].settled(on_their_way[which].pop())
        elif kind == "end":
            journals += associations[which].ended(released=value)
        elif kind == "wait":
            b.now += which
            journals += b.assembly.due(b.now)
    for association, paths in zip(associations, on_their_way, strict=True):
        for path in paths:
            association.settled(path)
        journals += association.ended(released=True)
    journals += b.assembly.due(b.now)
    assert b.assembly.next_deadline() is None
    assert len({id(journal) for journal in journals}) == len(journals) == b.opened
    found = [instance for _, instances in b.contents(journals) for instance in instances]
    assert sorted(found) == sorted(sent)
