"""What becomes of each file: statuses, refusals, associations that are lost, conversions, more contexts than one
association has."""

import asyncio
import os
from dataclasses import replace

import pytest

from harmony.dimse import DimseError, NoPresentationContext
from harmony.dimse.peer import Peer
from harmony.send import Flood, PassedOver, Result, Tally, Unreadable, find_files
from harmony.send.flood import LOSSES_LIMIT
from harmony.ul import AcceptorLimits, AssociationError, AssociationRejected, ConnectFailed

pytestmark = pytest.mark.usefixtures("no_leaks")

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.50"


@pytest.fixture
def flood(patience):
    """await flood(peer, paths, ...): everything that was told, by the name of the file."""

    async def run(peer, paths, *, begun=lambda flood: None, **options):
        items = []
        options.setdefault("first_delay_s", 0.01)
        sending = Flood(peer, find_files(paths), on_item=items.append, **options)
        begun(sending)
        async with patience():
            await sending.run()
        told = {}
        for item in items:
            path = item.found.path if isinstance(item, Result) else item.path
            assert path not in told
            told[os.path.basename(path)] = item
        run.flood = sending
        return told

    return run


async def test_everything_in_a_folder_is_stored_as_it_is(serve, write_file, flood):
    scp = await serve()
    paths = [write_file(number) for number in range(1, 101)]
    (write_file.folder / "note.txt").write_text("no DICOM")
    told = await flood(scp.peer, [write_file.folder], associations=3)
    assert len(scp.uids()) == len(set(scp.uids())) == 100
    for uid, syntax, data in scp.received:
        assert syntax == EXPLICIT
        assert paths[int(uid[4:]) - 1].read_bytes().endswith(data)
    assert isinstance(told.pop("note.txt"), PassedOver)
    assert all(result.error is None and result.tries == 1 for result in told.values())
    assert len(scp.associations) <= 3
    assert scp.ends == [None] * len(scp.associations)  # released
    (result,) = {(each.outcome.status, each.transcoded, each.size_bytes > 0) for each in told.values()}
    assert result == (0x0000, False, True)


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0001, 0x0107, 0x0116])
async def test_a_warning_is_stored(serve, write_file, flood, status):
    scp = await serve()
    scp.answer = lambda uid: status
    told = await flood(scp.peer, [write_file(1)])
    assert (told["0001"].outcome.status, told["0001"].error, told["0001"].tries) == (status, None, 1)


@pytest.mark.parametrize(
    "status", [0xA900, 0xC000, 0xC123, 0x0110, 0x0111, 0x0117, 0x0122, 0x0124, 0x0210, 0xD000]
)
async def test_a_failure_is_not_repeated_and_the_others_go_on(serve, write_file, flood, status):
    scp = await serve()
    scp.answer = lambda uid: status if uid == "1.2.2" else 0
    told = await flood(scp.peer, [write_file(number) for number in (1, 2, 3)], associations=1)
    assert scp.uids() == ["1.2.1", "1.2.3"]
    failed = told["0002"]
    assert (failed.outcome.status, failed.outcome.error_comment, failed.tries) == (status, "as told", 1)
    assert isinstance(failed.error, DimseError)
    assert len(scp.associations) == 1


@pytest.mark.parametrize("status", [0xA700, 0xA7FF, 0x0213])
async def test_a_peer_that_is_full_for_a_moment(serve, write_file, flood, status):
    scp = await serve()
    answers = iter([status, status, 0])
    scp.answer = lambda uid: next(answers)
    told = await flood(scp.peer, [write_file(1)])
    assert (told["0001"].error, told["0001"].tries) == (None, 3)
    assert scp.uids() == ["1.2.1"]


async def test_a_peer_that_stays_full_is_not_given_time_for_every_file(serve, write_file, flood):
    scp = await serve()
    scp.answer = lambda uid: 0xA700
    told = await flood(scp.peer, [write_file(number) for number in range(5)], associations=1, retries=2)
    assert sorted(result.tries for result in told.values()) == [1, 1, 1, 1, 3]
    assert {result.outcome.status for result in told.values()} == {0xA700}


async def test_room_again_ends_the_impatience(serve, write_file, flood):
    scp = await serve()
    # The first stays refused, the second is stored, the third is stored after its own refusal.
    answers = iter([0xA700, 0xA700, 0, 0xA700, 0])
    scp.answer = lambda uid: next(answers)
    told = await flood(scp.peer, [write_file(number) for number in (1, 2, 3)], associations=1, retries=1)
    assert [told[name].tries for name in ("0001", "0002", "0003")] == [2, 1, 2]
    assert scp.uids() == ["1.2.2", "1.2.3"]


# Transfer syntaxes and contexts ----


async def test_native_files_are_converted_where_they_are_not_taken(serve, write_file, flood):
    scp = await serve(transfer_syntaxes=[IMPLICIT])
    told = await flood(scp.peer, [write_file(21)])
    assert told["0021"].transcoded
    # (0008,0018), length 6, in Implicit VR Little Endian
    assert scp.received == [("1.2.21", IMPLICIT, b"\x08\x00\x18\x00\x06\x00\x00\x001.2.21")]


async def test_as_stored_means_as_stored(serve, write_file, flood):
    scp = await serve(transfer_syntaxes=[IMPLICIT])
    told = await flood(scp.peer, [write_file(1)], as_stored=True)
    assert isinstance(told["0001"].error, NoPresentationContext)
    assert scp.received == []


async def test_mixed_transfer_syntaxes(serve, write_file, flood):
    scp = await serve(transfer_syntaxes=[EXPLICIT, IMPLICIT])
    big_endian = b"\x00\x08\x00\x18UI\x00\x06" + b"1.2.23"
    paths = [
        write_file(21),
        write_file(22, syntax=IMPLICIT, data=b"\x08\x00\x18\x00\x06\x00\x00\x001.2.22"),
        write_file(23, syntax=BIG_ENDIAN, data=big_endian),
        write_file(24, syntax=JPEG),
        write_file(25, syntax=BIG_ENDIAN, data=big_endian[:-3]),
    ]
    told = await flood(scp.peer, paths)
    assert sorted(scp.received) == [
        ("1.2.21", EXPLICIT, b"\x08\x00\x18\x00UI\x06\x001.2.21"),
        ("1.2.22", IMPLICIT, b"\x08\x00\x18\x00\x06\x00\x00\x001.2.22"),
        ("1.2.23", EXPLICIT, b"\x08\x00\x18\x00UI\x06\x001.2.23"),
    ]
    assert {name for name, result in told.items() if result.transcoded} == {"0023"}
    assert isinstance(told["0024"].error, NoPresentationContext)
    assert isinstance(told["0025"].error, ValueError)  # the data set contradicts itself


async def test_more_than_128_contexts(serve, write_file, flood):
    scp = await serve()
    paths = [
        write_file(number, sop_class=f"1.2.840.10008.5.1.4.1.1.{number}", syntax=JPEG)
        for number in range(1, 301)
    ]
    told = await flood(scp.peer, paths, associations=2)
    assert {type(result.error) for result in told.values()} == {type(None)}
    assert len(scp.received) == 300
    # Each association serves its group to the end.
    assert len(scp.associations) <= 6
    assert max(len(association.agreed.results) for association in scp.associations) == 128


async def test_a_pair_that_shows_up_late_makes_the_association_anew(serve, write_file, flood, monkeypatch):
    monkeypatch.setattr("harmony.send.supply.LOOKAHEAD", 4)
    monkeypatch.setattr("harmony.send.supply.BATCH", 2)
    scp = await serve()
    paths = [write_file(number, syntax=JPEG if number == 30 else EXPLICIT) for number in range(1, 41)]
    await flood(scp.peer, paths, associations=1)
    assert len(scp.received) == 40
    assert len(scp.associations) == 2
    assert scp.ends == [None, None]


# Associations ----


async def test_the_operations_window_is_used(serve, write_file, flood):
    scp = await serve(serve_options={"maximum_operations": 3})
    peer = replace(scp.peer, maximum_operations=8)
    told = await flood(peer, [write_file(number) for number in range(40)], associations=1)
    assert len(scp.received) == len(told) == 40
    assert scp.associations[0].agreed.maximum_operations_performed == 3


async def test_associations_that_are_refused_are_done_without(serve, write_file, flood):
    scp = await serve(serve_options={"limits": AcceptorLimits(maximum_associations=1)})
    told = await flood(scp.peer, [write_file(number) for number in range(50)], associations=3)
    assert len(scp.received) == len(told) == 50
    assert all(result.error is None for result in told.values())
    assert all(isinstance(error, AssociationRejected) for error in flood.flood.given_up)


async def test_a_permanent_rejection_fails_every_file(serve, write_file, flood):
    scp = await serve(serve_options={"ae_title": "ANOTHER"})
    told = await flood(scp.peer, [write_file(number) for number in range(5)], associations=2, retries=1)
    assert {type(result.error) for result in told.values()} == {AssociationRejected}
    assert {(result.outcome, result.tries) for result in told.values()} == {(None, 0)}


async def test_nobody_listens(write_file, flood, free_port):
    told = await flood(
        Peer("127.0.0.1", free_port), [write_file(number) for number in range(700)], associations=2, retries=1
    )
    assert len(told) == 700  # more than are looked ahead
    assert {type(result.error) for result in told.values()} == {ConnectFailed}


async def test_a_peer_that_comes_back(serve, write_file, flood):
    scp = await serve()
    lose = iter([True, False, True, False, False])

    def answer(uid):
        if next(lose, False):
            scp.current.abort()
        return 0

    scp.answer = answer
    told = await flood(scp.peer, [write_file(number) for number in range(6)], associations=1)
    assert {result.error for result in told.values()} == {None}
    assert sorted(result.tries for result in told.values()) == [1, 1, 1, 1, 2, 2]
    assert len(scp.associations) == 3


async def test_a_file_that_the_peer_cannot_digest(serve, write_file, flood):
    scp = await serve()

    def answer(uid):
        if uid == "1.2.2":
            scp.current.abort()
        return 0

    scp.answer = answer
    told = await flood(scp.peer, [write_file(number) for number in (1, 2, 3)], associations=1)
    assert (told["0001"].error, told["0003"].error) == (None, None)
    assert isinstance(told["0002"].error, AssociationError)
    assert told["0002"].tries == 3


async def test_a_peer_that_ends_every_association(serve, write_file, flood):
    scp = await serve()

    def answer(uid):
        scp.current.abort()
        return 0

    scp.answer = answer
    told = await flood(scp.peer, [write_file(number) for number in range(30)], associations=1)
    assert len(told) == 30
    assert all(isinstance(result.error, AssociationError) for result in told.values())
    assert len(scp.associations) == LOSSES_LIMIT


async def test_stop_finishes_what_is_under_way(serve, write_file, flood):
    scp = await serve()
    sending = []

    def answer(uid):
        sending[0].stop()
        return 0

    scp.answer = answer
    told = await flood(
        scp.peer, [write_file(number) for number in range(50)], associations=1, begun=sending.append
    )
    assert len(told) == len(scp.received) == 1
    assert scp.ends == [None]  # released


async def test_stop_does_not_wait_for_a_full_peer(serve, write_file, flood):
    scp = await serve()
    sending = []

    def answer(uid):
        asyncio.get_running_loop().call_soon(sending[0].stop)
        return 0xA700

    scp.answer = answer
    told = await flood(scp.peer, [write_file(1)], associations=1, first_delay_s=1000.0, begun=sending.append)
    assert told["0001"].outcome.status == 0xA700


async def test_abort(serve, write_file, flood):
    scp = await serve()
    sending = []

    def answer(uid):
        sending[0].abort()
        return 0

    scp.answer = answer
    told = await flood(
        scp.peer, [write_file(number) for number in range(50)], associations=2, begun=sending.append
    )
    assert told == {}


# Files ----


@pytest.mark.parametrize("size", [0, 2, 3000, 4094, 4096, 20_000, 600_001])
async def test_files_of_any_size_arrive_whole(serve, write_file, flood, size):
    scp = await serve()
    data = bytes(number % 251 for number in range(size))
    told = await flood(scp.peer, [write_file(1, data=data)], associations=1)
    assert (told["0001"].error, told["0001"].size_bytes) == (None, size)
    assert [sent for _, _, sent in scp.received] == [data + b"\0" * (size % 2)]


async def test_a_file_that_goes_away_and_one_that_was_never_there(serve, write_file, flood):
    scp = await serve()
    first, second = write_file(1), write_file(2, data=bytes(5000))  # too long to be read when it is found

    def answer(uid):
        second.unlink(missing_ok=True)
        return 0

    scp.answer = answer
    told = await flood(scp.peer, [first, second, write_file.folder / "missing"], associations=1)
    assert told["0001"].error is None
    assert isinstance(told["0002"].error, FileNotFoundError)
    assert isinstance(told["missing"], Unreadable)


async def test_a_defect_ends_the_flood(serve, write_file, patience):
    scp = await serve()

    def fail(item):
        raise ZeroDivisionError

    def broken():
        yield from find_files([write_file(1)])
        raise ZeroDivisionError

    for items, on_item in ((find_files([write_file(1)]), fail), (broken(), lambda item: None)):
        with pytest.raises((ZeroDivisionError, ExceptionGroup)):
            async with patience():
                await Flood(scp.peer, items, on_item=on_item).run()


async def test_the_tally(serve, write_file, patience):
    scp = await serve(transfer_syntaxes=[IMPLICIT])
    statuses = {"1.2.2": 0xB000, "1.2.3": 0xC000}
    scp.answer = lambda uid: statuses.get(uid, 0)
    for number in (1, 2, 3):
        write_file(number)
    write_file(4, syntax=JPEG)
    (write_file.folder / "note").write_text("no DICOM")
    tally = Tally()
    async with patience():
        await Flood(
            scp.peer, find_files([write_file.folder]), on_item=tally.add, on_bytes=tally.add_bytes
        ).run()
    tally.end()
    assert (tally.stored, tally.warnings, tally.failed, tally.passed_over) == (2, 1, 2, 1)
    assert (tally.transcoded, tally.repeated, tally.done) == (2, 0, 5)
    assert tally.stored_bytes < tally.sent_bytes
    table = "\n".join(tally.lines())
    assert "0x0000 Success                                                                    1" in table
    assert "0xB000 Warning: coercion of data elements, or sub-operations with failures" in table
    assert "0xC000 Error: cannot understand, or unable to process" in table
    assert "No presentation context was accepted" in table
    assert "passed over: no DICOM files to send" in table
    assert "\n2 of 4 stored in " in table
    assert {failure.status for failure in tally.examples} == {0xC000, None}
