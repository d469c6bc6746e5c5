"""From C-STORE to envelopes: which objects make one, when, and what crashes and repetitions change about it."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import jsonschema
import pytest

from harmony.dimse.status import DimseError
from harmony.gateway import jmix_builder
from harmony.jmix.outbox import State

SCHEMAS = Path(__file__).parents[2] / ".." / "shared" / "schemas" / "jmix"


async def next_objects(upstream, read_envelope) -> tuple[str, ...]:
    return read_envelope((await upstream.next()).body).objects


# Grouping


async def test_an_envelope_per_association_and_study(forward, upstream, make_instance, read_envelope, until):
    await forward.start()
    first = [make_instance(f"1.{number}") for number in range(3)]
    second = make_instance("2.1", study="1.2.9")
    assert await forward.send(*first, second) == [0, 0, 0, 0]
    found = sorted([await next_objects(upstream, read_envelope) for _ in range(2)])
    assert found == [("1.0", "1.1", "1.2"), ("2.1",)]
    assert await forward.send(make_instance("1.3")) == [0]
    assert await next_objects(upstream, read_envelope) == ("1.3",)
    await until(lambda: forward.states() == [State.DELIVERED] * 3)
    assert forward.journals() == []


async def test_bytes_are_those_that_were_sent(forward, upstream, make_instance, read_envelope):
    await forward.start()
    instance = make_instance("1.1", pixels=bytes(range(256)) * 1000)
    await forward.send(instance)
    request = await upstream.next()
    assert read_envelope(request.body).data == {"1.1": instance.data}
    assert read_envelope(forward.envelopes()[0]).data == {"1.1": instance.data}


async def test_quiet_time_finishes_an_envelope_of_an_open_association(
    forward, upstream, make_instance, read_envelope
):
    forward.builder = "quiet_time_secs = 0.02"
    await forward.start()
    async with forward.associate() as scu:
        await scu.store(make_instance("1.1"))
        assert await next_objects(upstream, read_envelope) == ("1.1",)
        await scu.store(make_instance("1.2"))
        assert await next_objects(upstream, read_envelope) == ("1.2",)


async def test_long_quiet_time_is_not_waited_for_at_release(forward, upstream, make_instance, read_envelope):
    forward.builder = "quiet_time_secs = 3600"
    await forward.start()
    await forward.send(make_instance("1.1"), make_instance("1.2"))
    assert await next_objects(upstream, read_envelope) == ("1.1", "1.2")


async def test_without_an_upstream_envelopes_stay(bench, make_instance, read_envelope, until):
    await bench.start()
    await bench.send(make_instance("1.1"))
    await until(lambda: bench.journals() == [])
    assert [read_envelope(path).objects for path in bench.envelopes()] == [("1.1",)]
    assert bench.deliveries() == []


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_fifty_associations_at_a_time(
    durability, forward, upstream, make_instance, read_envelope, until
):
    forward.scp = f'durability = "{durability}"'
    await forward.start()
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(forward.send(make_instance(f"1.{number}.1"), make_instance(f"1.{number}.2")))
    await until(lambda: forward.states() == [State.DELIVERED] * 50)
    found = [read_envelope(request.body).objects for request in upstream.requests]
    assert sorted(found) == sorted((f"1.{number}.1", f"1.{number}.2") for number in range(50))


# Repetitions


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_repeated_after_an_abort_is_not_doubled(
    durability, forward, upstream, make_instance, read_envelope
):
    forward.scp = f'durability = "{durability}"'
    await forward.start()
    objects = [make_instance("1.1"), make_instance("1.2")]
    await forward.send(*objects, abort=True)
    assert await next_objects(upstream, read_envelope) == ("1.1", "1.2")
    await forward.send(objects[1], make_instance("1.3"))  # it never heard about 1.2
    assert await next_objects(upstream, read_envelope) == ("1.3",)
    assert forward.files() == ["1.1.dcm", "1.2.dcm", "1.3.dcm"]


async def test_repeated_after_a_restart_is_not_doubled(forward, upstream, make_instance, read_envelope):
    await forward.start()
    await forward.send(make_instance("1.1"), abort=True)
    assert await next_objects(upstream, read_envelope) == ("1.1",)
    await forward.restart(5.0)
    await forward.send(make_instance("1.1"), make_instance("1.2"))
    assert await next_objects(upstream, read_envelope) == ("1.2",)


async def test_sent_again_on_purpose_is_sent_on_again(forward, upstream, make_instance, read_envelope):
    await forward.start()
    for _ in range(2):
        await forward.send(make_instance("1.1"))
        assert await next_objects(upstream, read_envelope) == ("1.1",)
    assert len({request.body for request in upstream.requests}) == 2  # two ids


async def test_sender_that_comes_back_while_its_old_association_seems_alive(
    forward, upstream, make_instance, read_envelope
):
    await forward.start()
    async with forward.associate() as old:
        await old.store(make_instance("1.1"))
        await forward.send(make_instance("1.1"), make_instance("1.2"))
        assert await next_objects(upstream, read_envelope) == ("1.2",)
    assert await next_objects(upstream, read_envelope) == ("1.1",)


async def test_different_data_that_was_not_kept_is_in_no_envelope(
    forward, upstream, make_instance, read_envelope
):
    await forward.start()
    await forward.send(make_instance("1.1"))
    assert await next_objects(upstream, read_envelope) == ("1.1",)
    assert await forward.send(make_instance("1.1", pixels=b"\7\7"), make_instance("1.2")) == [0xB000, 0]
    assert await next_objects(upstream, read_envelope) == ("1.2",)


async def test_different_data_that_was_kept_beside_is_sent_on(
    forward, upstream, make_instance, read_envelope
):
    forward.scp = 'duplicates = "keep_both"'
    await forward.start()
    await forward.send(make_instance("1.1"))
    first = read_envelope((await upstream.next()).body)
    other = make_instance("1.1", pixels=b"\7\7")
    assert await forward.send(other) == [0]
    second = read_envelope((await upstream.next()).body)
    assert first.data != second.data == {"1.1": other.data}


async def test_refused_object_is_in_no_envelope(forward, upstream, make_instance, read_envelope):
    forward.scp = "max_object_bytes = 1024"
    await forward.start()
    async with forward.associate() as scu:
        await scu.store(make_instance("1.1"))
        with pytest.raises(DimseError) as refused:
            await scu.store(make_instance("1.2", pixels=bytes(2000)))
        assert refused.value.status == 0xA700
        await scu.store(make_instance("1.3"))
    assert await next_objects(upstream, read_envelope) == ("1.1", "1.3")


# Failures


async def test_build_that_fails_is_tried_again(
    forward, upstream, make_instance, read_envelope, until, monkeypatch, caplog
):
    monkeypatch.setattr(jmix_builder, "REBUILD_DELAY_S", 0.01)
    await forward.start()
    store = forward.storage / "jmix-store"
    store.rename(forward.folder / "elsewhere")
    await forward.send(make_instance("1.1"))
    await until(lambda: caplog.text.count("cannot be built") > 1)
    assert forward.journals() == [".closed"]
    (forward.folder / "elsewhere").rename(store)
    assert await next_objects(upstream, read_envelope) == ("1.1",)
    await until(lambda: forward.journals() == [])


async def test_doubts_that_cannot_be_written_down_keep_the_journal_open(
    forward, upstream, make_instance, read_envelope, until, monkeypatch, caplog
):
    """An open journal says the same after a crash."""
    monkeypatch.setattr(jmix_builder, "BOOKS_DELAY_S", 0.01)
    await forward.start()
    outbox = forward.gateway.assembly.backends[-1]._outbox
    outbox._database.execute("ALTER TABLE in_doubt RENAME TO gone")
    await forward.send(make_instance("1.1"), abort=True)
    await until(lambda: "cannot be written down" in caplog.text)
    assert forward.journals() == [".journal"]
    outbox._database.execute("ALTER TABLE gone RENAME TO in_doubt")
    assert await next_objects(upstream, read_envelope) == ("1.1",)
    await until(lambda: [each.sop_instance_uid for each in outbox.in_doubt()] == ["1.1"])


async def test_stop_with_everything_under_way_loses_nothing(
    forward, upstream, make_instance, read_envelope, until
):
    upstream.answers.extend(["hang"] * 2)
    await forward.start()
    for number in range(4):
        await forward.send(make_instance(f"1.{number}"))
    await upstream.next()
    async with forward.associate() as scu:
        await scu.store(make_instance("1.9"))
        await forward.stop(0.0)
    assert State.DELIVERED not in forward.states()
    await forward.start()
    await until(lambda: forward.states() == [State.DELIVERED] * 5 and forward.journals() == [])
    found = {read_envelope(request.body).id: request.body for request in upstream.requests}
    assert len(found) == 5  # the same id at every try
    objects = [read_envelope(body).objects for body in found.values()]
    assert sorted(itertools.chain(*objects)) == ["1.0", "1.1", "1.2", "1.3", "1.9"]


# Options


async def test_skipping(forward, upstream, make_instance, read_envelope):
    forward.builder = "skip_hashing = true\nskip_listing = true"
    await forward.start()
    await forward.send(make_instance("1.1"))
    documents = read_envelope((await upstream.next()).body).documents
    assert [each["file"] for each in documents["payload/files.json"]] == ["metadata.json"]
    assert "sha256" not in json.dumps(documents)


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="the JMIX schemas are not beside the project")
async def test_jmix_profile_is_valid(forward, upstream, make_instance, read_envelope):
    forward.builder = 'profile = "jmix"\nreceiver = "Clinic"\nreceiver_id = "org:clinic"'
    await forward.start()
    await forward.send(make_instance("1.1"))
    envelope = read_envelope((await upstream.next()).body)
    assert "payload/dicom/1.1.dcm" in envelope.names
    for name, document in envelope.documents.items():
        schema = json.loads((SCHEMAS / Path(name).with_suffix(".schema.json").name).read_text())
        jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("compression", ["deflate", "stored"])
async def test_compression(compression, forward, upstream, make_instance, read_envelope):
    forward.builder = f'compression = "{compression}"'
    await forward.start()
    instance = make_instance("1.1", pixels=bytes(100_000))
    await forward.send(instance)
    body = (await upstream.next()).body
    assert (len(body) < 10_000) == (compression == "deflate")
    assert read_envelope(body).data == {"1.1": instance.data}


# One envelope per object


@pytest.fixture
async def instance_mode(forward):
    forward.builder = 'group = "instance"'
    forward.upstream = "timeout_secs = 1"
    await forward.start()
    return forward


async def status_of(scu, instance) -> int:
    try:
        return (await scu.store(instance)).status
    except DimseError as error:
        return error.status


async def test_sender_is_answered_when_the_upstream_has_answered(
    instance_mode, upstream, make_instance, read_envelope
):
    upstream.answers.append("hang")
    async with instance_mode.associate() as scu:
        storing = asyncio.create_task(status_of(scu, make_instance("1.1")))
        request = await upstream.next()
        assert not storing.done()
        assert instance_mode.files() == ["1.1.dcm"]  # stored, and still no answer
        upstream.let_go.set()  # closes without an answer
        assert await storing == 0xA700
        assert await status_of(scu, make_instance("1.1")) == 0x0000
    assert read_envelope(request.body).objects == ("1.1",)
    assert read_envelope(upstream.requests[1].body).id == read_envelope(request.body).id


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (201, 0x0000),
        (200, 0x0000),
        (409, 0x0000),
        (503, 0xA700),
        (500, 0xA700),
        (429, 0xA700),
        (401, 0xA700),
        (400, 0xC000),
        (415, 0xC000),
        ("close", 0xA700),
        ("close early", 0xA700),
        ("hang", 0xA700),
    ],
)
async def test_answers_as_statuses(answer, status, instance_mode, upstream, make_instance, until):
    upstream.answers.append(answer)
    async with instance_mode.associate() as scu:
        assert await status_of(scu, make_instance("1.1")) == status
        await scu.echo()
    assert len(instance_mode.envelopes()) == (status == 0x0000)
    assert instance_mode.deliveries() == []
    assert instance_mode.journals() == []


async def test_lost_answer_and_repetition_are_one_envelope(
    instance_mode, upstream, make_instance, read_envelope
):
    upstream.answers.extend(["close", 409])
    async with instance_mode.associate() as scu:
        assert await status_of(scu, make_instance("1.1")) == 0xA700
        assert await status_of(scu, make_instance("1.1")) == 0x0000
        assert await status_of(scu, make_instance("1.2")) == 0x0000
    ids = [read_envelope(request.body).id for request in upstream.requests]
    assert ids[0] == ids[1] != ids[2]


async def test_other_bytes_under_the_same_uid_are_another_envelope(
    forward, upstream, make_instance, read_envelope
):
    forward.builder = 'group = "instance"'
    forward.scp = 'duplicates = "keep_both"'
    await forward.start()
    await forward.send(make_instance("1.1"), make_instance("1.1", pixels=b"\4\3\2\1"))
    ids = {read_envelope(request.body).id for request in upstream.requests}
    assert len(ids) == 2


async def test_what_was_not_kept_is_not_sent(instance_mode, upstream, make_instance):
    assert await instance_mode.send(make_instance("1.1"), make_instance("1.1", pixels=b"\7\7")) == [0, 0xB000]
    assert len(upstream.requests) == 1


async def test_upstream_that_hangs_for_one_sender_leaves_the_others(instance_mode, upstream, make_instance):
    upstream.answers.append("hang")
    async with instance_mode.associate() as slow, instance_mode.associate() as quick:
        storing = asyncio.create_task(status_of(slow, make_instance("1.1")))
        await upstream.next()
        assert await status_of(quick, make_instance("1.2")) == 0x0000
        assert not storing.done()
        assert await storing == 0xA700  # within the upstream's timeout


async def test_same_object_from_two_senders_is_uploaded_once(instance_mode, upstream, make_instance, until):
    upstream.answers.append("hang")
    instance = make_instance("1.1")
    async with instance_mode.associate() as first, instance_mode.associate() as second:
        both = [asyncio.create_task(status_of(scu, instance)) for scu in (first, second)]
        await upstream.next()
        assert await asyncio.gather(*both) == [0xA700, 0xA700]
        assert len(upstream.requests) == 1
        assert await status_of(first, instance) == 0x0000


async def test_sender_that_leaves_before_the_answer(instance_mode, upstream, make_instance):
    upstream.answers.append("hang")
    async with instance_mode.associate() as scu:
        storing = asyncio.create_task(scu.store(make_instance("1.1")))
        await upstream.next()
        scu.association.abort()
        await asyncio.wait({storing})
        storing.exception()
    async with instance_mode.associate() as scu:
        assert await status_of(scu, make_instance("1.1")) == 0xA700  # of the same upload
        assert len(upstream.requests) == 1
        assert await status_of(scu, make_instance("1.1")) == 0x0000


async def test_stop_hands_back_what_is_under_way(instance_mode, upstream, make_instance):
    upstream.answers.append("hang")
    async with instance_mode.associate() as scu:
        storing = asyncio.create_task(scu.store(make_instance("1.1")))
        await upstream.next()
        await instance_mode.stop(0.0)
        await asyncio.wait({storing})
        assert storing.exception() is not None
    assert instance_mode.envelopes() == []


async def test_without_an_upstream_instances_stay(bench, make_instance, read_envelope):
    bench.builder = 'group = "instance"'
    await bench.start()
    assert await bench.send(make_instance("1.1"), make_instance("1.2"), make_instance("1.1")) == [0, 0, 0]
    found = sorted(read_envelope(path).objects for path in bench.envelopes())
    assert found == [("1.1",), ("1.2",)]


async def test_single_envelope_that_cannot_be_built(instance_mode, upstream, make_instance):
    store = instance_mode.storage / "jmix-store"
    store.rename(instance_mode.folder / "elsewhere")
    async with instance_mode.associate() as scu:
        assert await status_of(scu, make_instance("1.1")) == 0xA700
        (instance_mode.folder / "elsewhere").rename(store)
        assert await status_of(scu, make_instance("1.1")) == 0x0000
