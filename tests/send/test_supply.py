"""What is proposed on which association, and in which order files are given out."""

import asyncio

from harmony.send.files import Found, PassedOver
from harmony.send.supply import LOOKAHEAD, Contexts, Supply

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"


def found(number, *, sop_class=CT, syntax=EXPLICIT):
    return Found(f"/{number}", sop_class, f"1.2.{number}", syntax, 0)


def proposed(contexts, group):
    return [
        (context.abstract_syntax, *context.transfer_syntaxes) for context in contexts.proposal(group).contexts
    ]


def test_exactly_what_is_needed_is_proposed():
    contexts = Contexts(fallbacks=False)
    assert {contexts.group_of(pair) for pair in [(CT, EXPLICIT), (CT, JPEG), (CT, EXPLICIT)]} == {0}
    assert proposed(contexts, 0) == [(CT, EXPLICIT), (CT, JPEG)]


def test_fallbacks_for_what_can_be_converted():
    contexts = Contexts(fallbacks=True)
    contexts.group_of((CT, JPEG))
    assert proposed(contexts, 0) == [(CT, JPEG)]
    contexts.group_of((CT, DEFLATED))
    assert proposed(contexts, 0) == [(CT, JPEG), (CT, DEFLATED), (CT, EXPLICIT), (CT, IMPLICIT)]


def test_more_than_128_contexts_need_another_association():
    contexts = Contexts(fallbacks=False)
    groups = [contexts.group_of((f"1.2.{number}", JPEG)) for number in range(300)]
    assert groups == [0] * 128 + [1] * 128 + [2] * 44
    assert len(proposed(contexts, 0)) == 128
    assert contexts.group_of(("1.2.5", JPEG)) == 0


def test_fallbacks_stay_with_their_pair():
    contexts = Contexts(fallbacks=True)
    groups = [contexts.group_of((f"1.2.{number}", DEFLATED)) for number in range(43)]
    assert groups == [0] * 42 + [1]  # three contexts each
    assert len(proposed(contexts, 0)) == 126


async def test_a_look_ahead_that_does_not_grow():
    taken_from_walk = 0

    def walk():
        nonlocal taken_from_walk
        for number in range(10 * LOOKAHEAD):
            taken_from_walk += 1
            yield found(number)

    supply = Supply(walk(), Contexts(fallbacks=False), aside=lambda item: None)
    filling = asyncio.create_task(supply.fill())
    assert await supply.next_group() == 0
    most = 0
    for number in range(10 * LOOKAHEAD):
        job = await supply.take(0)
        assert job.found.path == f"/{number}"
        most = max(most, taken_from_walk - number)
    assert await supply.take(0) is None
    assert await supply.next_group() is None
    await filling
    assert most <= LOOKAHEAD + 1


async def test_a_group_is_given_out_as_long_as_it_lasts():
    contexts = Contexts(fallbacks=False)
    for number in range(256):
        contexts.group_of((f"1.2.{number}", JPEG))
    # One of each association by turns.
    mixed = [found(number, sop_class=f"1.2.{128 * (number % 2)}", syntax=JPEG) for number in range(200)]
    supply = Supply(iter(mixed), contexts, aside=lambda item: None)
    await supply.fill()
    group = await supply.next_group()
    taken = []
    while (job := await supply.take(group)) is not None:
        taken.append(job)
    assert len(taken) == 100
    assert {job.group for job in taken} == {group}
    assert await supply.next_group() == 1 - group
    supply.hand_back(taken[0])
    assert (await supply.take(group)).found is taken[0].found


async def test_stop_leaves_nothing_to_take():
    aside = []
    items = iter([PassedOver("/x"), found(1), found(2)])
    supply = Supply(items, Contexts(fallbacks=False), aside=aside.append)
    await supply.fill()
    assert aside == [PassedOver("/x")]
    supply.stop()
    assert supply.over
    assert await supply.next_group() is None
    assert await supply.take(0) is None
