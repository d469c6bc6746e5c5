"""Short answers in the event loop: what is given up, and when nothing is tried."""

from collections.abc import Iterator

from harmony.archive.at_once import HELD_UP_S, PAUSE, QUICK_S, AtOnce
from harmony.archive.index import TookTooLong


class Disk:
    """A clock and a counter of blocks; asking takes a while and some blocks, if it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.blocks = 0
        self.takes_s = 0.0
        self.reads_blocks = 0
        self.asked = 0

    def at_once(self) -> AtOnce:
        return AtOnce(clock=lambda: self.now_s, blocks_read=lambda: self.blocks)

    def ask(self, within_s: float) -> Iterator[int]:
        assert within_s == QUICK_S
        self.asked += 1
        self.now_s += self.takes_s
        self.blocks += self.reads_blocks
        yield from (1, 2, 3)


def test_all_of_an_answer_is_returned() -> None:
    disk = Disk()
    assert disk.at_once().answers(disk.ask) == [1, 2, 3]


def test_an_answer_that_took_too_long_is_none() -> None:
    def ask(within_s: float) -> Iterator[int]:
        yield 1
        raise TookTooLong("the search took too long")

    assert AtOnce().answers(ask) is None


def test_computing_for_too_long_is_noticed_between_two_answers_and_the_iterator_closed() -> None:
    closed = []

    def ask(within_s: float) -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.append(number)

    assert AtOnce().answers(ask) is None
    assert closed


def test_who_waited_for_a_disk_does_not_try_for_a_while() -> None:
    disk = Disk()
    at_once = disk.at_once()
    disk.takes_s, disk.reads_blocks = 2 * HELD_UP_S, 8
    assert at_once.answers(disk.ask) == [1, 2, 3]
    disk.takes_s = disk.reads_blocks = 0
    disk.now_s += PAUSE * 2 * HELD_UP_S - 0.001
    assert at_once.answers(disk.ask) is None
    assert disk.asked == 1
    disk.now_s += 0.002
    assert at_once.answers(disk.ask) == [1, 2, 3]


def test_what_other_processes_take_is_no_reason() -> None:
    disk = Disk()
    at_once = disk.at_once()
    disk.takes_s = 2 * HELD_UP_S
    for _ in range(3):
        assert at_once.answers(disk.ask) == [1, 2, 3]
