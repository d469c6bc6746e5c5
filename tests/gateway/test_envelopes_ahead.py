"""Envelopes begun while their objects arrive: what goes wrong with that changes nothing about them."""

from __future__ import annotations

import os
import signal

import pytest

from harmony.gateway import envelopes_ahead
from harmony.gateway.envelope_builder import EnvelopeBuilder
from harmony.jmix.outbox import State

SIZE_BYTES = 600_000  # more than BATCH_BYTES


@pytest.fixture
def make_large(make_instance):
    def make_large(number: int, fill: int = 0):
        return make_instance(f"1.{number}", pixels=bytes([number, fill]) * (SIZE_BYTES // 2))

    return make_large


def ahead(forward) -> envelopes_ahead.EnvelopesAhead:
    return forward.gateway.assembly.backends[-1]._ahead


def left(forward) -> list[str]:
    return [path.name for path in (forward.storage / "jmix-store" / "incoming").iterdir()]


async def started(forward, until) -> int:
    await until(lambda: ahead(forward)._process is not None)
    return ahead(forward)._process.pid


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_packed_ahead_is_delivered(
    durability, forward, upstream, make_large, read_envelope, until, monkeypatch
):
    forward.scp = f'durability = "{durability}"'
    await forward.start()
    objects = [make_large(number) for number in range(3)]
    monkeypatch.delattr(EnvelopeBuilder, "build")  # nothing is left for it to do
    async with forward.associate() as scu:
        await scu.store(objects[0])
        await started(forward, until)
        for each in objects[1:]:
            await scu.store(each)
    envelope = read_envelope((await upstream.next()).body)
    assert envelope.data == {each.sop_instance_uid: each.data for each in objects}
    await until(lambda: forward.states() == [State.DELIVERED] and forward.journals() == [])
    assert left(forward) == []


async def test_envelopes_of_several_associations_at_a_time(
    forward, upstream, make_large, make_instance, read_envelope, until
):
    await forward.start()
    async with forward.associate() as one, forward.associate() as two:
        await one.store(make_large(1))
        await started(forward, until)
        await two.store(make_large(2))
        await one.store(make_instance("1.10", study="1.2.9"))
        await two.store(make_large(3))
        await one.store(make_large(4))
    found = [read_envelope((await upstream.next()).body).objects for _ in range(3)]
    assert sorted(found) == [("1.1", "1.4"), ("1.10",), ("1.2", "1.3")]


async def test_process_that_is_killed_changes_nothing(
    forward, upstream, make_large, read_envelope, until, caplog
):
    await forward.start()
    async with forward.associate() as scu:
        await scu.store(make_large(1))
        os.kill(await started(forward, until), signal.SIGKILL)
        await until(lambda: "the packing process has ended with -9" in caplog.text)
        await scu.store(make_large(2))
    assert read_envelope((await upstream.next()).body).objects == ("1.1", "1.2")


async def test_process_is_started_again(forward, upstream, make_large, read_envelope, until, monkeypatch):
    monkeypatch.setattr(envelopes_ahead, "RESTART_S", 0.0)
    await forward.start()
    async with forward.associate() as scu:
        await scu.store(make_large(1))
        first = await started(forward, until)
        os.kill(first, signal.SIGKILL)
        await until(lambda: ahead(forward)._process is None)
    assert read_envelope((await upstream.next()).body).objects == ("1.1",)
    monkeypatch.delattr(EnvelopeBuilder, "build")
    async with forward.associate() as scu:
        await scu.store(make_large(2))
        assert await started(forward, until) != first
    assert read_envelope((await upstream.next()).body).objects == ("1.2",)


async def test_process_that_cannot_be_started(
    forward, upstream, make_large, read_envelope, until, monkeypatch, caplog
):
    monkeypatch.setattr(envelopes_ahead.sys, "executable", "/nowhere")
    await forward.start()
    async with forward.associate() as scu:
        await scu.store(make_large(1))
        await until(lambda: "not packed ahead" in caplog.text)
        await scu.store(make_large(2))
    assert read_envelope((await upstream.next()).body).objects == ("1.1", "1.2")


async def test_object_that_is_replaced_is_packed_as_it_is_at_last(
    forward, upstream, make_large, read_envelope, until
):
    forward.scp = 'duplicates = "replace"'
    await forward.start()
    other = make_large(1, fill=7)
    async with forward.associate() as scu:
        await scu.store(make_large(1))
        await started(forward, until)
        await scu.store(make_large(2))
        await scu.store(make_large(2))  # the same again
        await scu.store(other)
    envelope = read_envelope((await upstream.next()).body)
    assert (envelope.objects, envelope.data["1.1"]) == (("1.1", "1.2"), other.data)
    await until(lambda: left(forward) == [])


async def test_what_a_stop_interrupts_is_built_after_the_next_start(
    forward, upstream, make_large, read_envelope, until
):
    await forward.start()
    async with forward.associate() as scu:
        await scu.store(make_large(1))
        await started(forward, until)
        await scu.store(make_large(2))
        await forward.restart()
    assert read_envelope((await upstream.next()).body).objects == ("1.1", "1.2")
    await until(lambda: forward.states() == [State.DELIVERED] and forward.journals() == [])
    assert left(forward) == []


async def test_what_the_process_does_not_take_is_built_later(
    forward, upstream, make_large, read_envelope, until, monkeypatch
):
    monkeypatch.setattr(envelopes_ahead, "MAXIMUM_UNSENT_BYTES", -1)
    await forward.start()
    async with forward.associate() as scu:
        await scu.store(make_large(1))
        await started(forward, until)
        await scu.store(make_large(2))
    assert read_envelope((await upstream.next()).body).objects == ("1.1", "1.2")


async def test_envelopes_beyond_the_limit_are_built_later(
    forward, upstream, make_large, make_instance, read_envelope, until, monkeypatch
):
    monkeypatch.setattr(envelopes_ahead, "MAXIMUM_BEGUN", 1)
    await forward.start()
    async with forward.associate() as one, forward.associate() as two:
        await one.store(make_large(1))
        await started(forward, until)
        await two.store(make_large(2))
        await two.store(make_large(3))
    found = [read_envelope((await upstream.next()).body).objects for _ in range(2)]
    assert sorted(found) == [("1.1",), ("1.2", "1.3")]
