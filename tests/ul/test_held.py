"""The account of what is held for peers."""

from harmony.ul.held import HeldBytes


def test_it_is_full_at_its_limit_and_has_room_again():
    account = HeldBytes(10)
    account.take(9)
    assert not account.is_full
    assert account.has_room(1)
    assert not account.has_room(2)
    account.take(5)  # what one read brings is taken
    assert account.is_full
    account.give(5)
    assert not account.is_full
    assert account.held_bytes == 9


def test_without_a_limit_it_only_counts():
    account = HeldBytes()
    account.take(1 << 40)
    assert not account.is_full
    assert account.has_room(1 << 40)
