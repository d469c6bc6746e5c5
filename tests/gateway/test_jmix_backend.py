"""Deliveries: what an upstream may answer, how long it may take, and who sees what could not be delivered."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import sqlite3
import time

import pytest

from harmony.gateway import jmix_backend
from harmony.jmix.outbox import Outbox, State


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 409])
async def test_delivered(status, forward, upstream, make_instance, until):
    upstream.answers.append(status)
    await forward.start()
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.DELIVERED])
    (delivery,) = forward.deliveries()
    assert (delivery.http_status, delivery.attempts, delivery.destination) == (status, 1, "up")


@pytest.mark.parametrize(
    "answer",
    [500, 501, 502, 503, 504, 507, 408, 425, 429, 401, 403, 407, 302, "close", "close early"],
)
async def test_tried_again(answer, forward, upstream, make_instance, read_envelope, until):
    upstream.answers.extend([answer] * 3)
    await forward.start()
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.DELIVERED])
    assert forward.deliveries()[0].attempts == 4
    uploads = [request.body for request in upstream.requests if request.body]
    assert len(set(uploads)) == 1  # the same bytes, the same id
    assert read_envelope(uploads[0]).objects == ("1.1",)


async def test_another_envelope_than_ours_is_no_delivery(forward, upstream, make_instance, until):
    other = "00000000-0000-4000-8000-000000000000"
    upstream.answers.append(f'201 {{"id": "{other}", "status": "stored"}}')
    await forward.start()
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.DELIVERED])
    (delivery,) = forward.deliveries()
    assert delivery.attempts == 2
    assert delivery.error == f"the upstream answered 201 for envelope {other}"


@pytest.mark.parametrize(
    "body", ["{}", '{"id": 7}', '{"id": "an id of its own"}', "[]", "{", "stored", "[" * 5000]
)
async def test_what_else_an_upstream_says_with_201_does_not_matter(
    body, forward, upstream, make_instance, until
):
    upstream.answers.append(f"201 {body}")
    await forward.start()
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.DELIVERED])
    assert forward.deliveries()[0].attempts == 1


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422])
async def test_parked_is_seen_and_waits_for_a_person(status, forward, upstream, make_instance, until, caplog):
    upstream.answers.append(status)
    await forward.start()
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.PARKED])
    (delivery,) = forward.deliveries()
    assert (delivery.http_status, delivery.attempts) == (status, 1)
    assert delivery.error == f'the upstream answered {status}: {{"error":"as it was told"}}'
    await until(lambda: f"envelope {delivery.envelope_id} parked for up" in caplog.text)
    (record,) = [record for record in caplog.records if "parked" in record.getMessage()]
    assert record.levelno == logging.ERROR

    caplog.clear()
    caplog.set_level(logging.INFO)
    await forward.restart()  # which does not try it again, and says that it is there
    assert "upstream up: 0 envelopes to deliver, 1 parked" in caplog.text
    await forward.send(make_instance("1.2"))
    await until(lambda: State.DELIVERED in forward.states())
    assert len(upstream.requests) == 2
    assert len(forward.envelopes()) == 2  # nothing is dropped


async def test_unparked_by_another_process_is_tried_again(
    forward, upstream, make_instance, until, monkeypatch
):
    monkeypatch.setattr(jmix_backend, "LOOK_AGAIN_S", 0.01)
    upstream.answers.append(400)
    await forward.start()
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.PARKED])
    with contextlib.closing(Outbox.inspect(forward.outbox_path)) as outbox:
        outbox.unpark(forward.deliveries()[0].id, now=time.time())
    await until(lambda: forward.states() == [State.DELIVERED])


async def test_upstream_down_for_a_while(forward, upstream, make_instance, read_envelope, until, free_port):
    """Nothing listens: objects are received all the same, attempts are counted over a restart."""
    forward.upstream_port = free_port
    await forward.start()
    for number in range(3):
        assert await forward.send(make_instance(f"1.{number}")) == [0]
    await until(lambda: [each.attempts > 1 for each in forward.deliveries()] == [True] * 3)
    assert all("127.0.0.1" in (each.error or "") for each in forward.deliveries())
    await forward.stop(0.0)
    before = {each.envelope_id: each.attempts for each in forward.deliveries()}
    assert set(forward.states()) <= {State.PENDING, State.IN_PROGRESS}
    forward.upstream_port = upstream.port
    await forward.start()
    await until(lambda: forward.states() == [State.DELIVERED] * 3)
    assert {each.envelope_id: each.attempts - 1 for each in forward.deliveries()} == before
    assert sorted(read_envelope(each.body).objects for each in upstream.requests) == [
        ("1.0",),
        ("1.1",),
        ("1.2",),
    ]


async def test_backoff_outlives_a_restart(forward, upstream, make_instance, until):
    forward.upstream = "retry_backoff_secs = 3600\nretry_backoff_max_secs = 7200"
    upstream.answers.append(503)
    await forward.start()
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.PENDING] and forward.deliveries()[0].attempts == 1)
    await until(lambda: forward.deliveries()[0].error)
    (delivery,) = forward.deliveries()
    assert 1700 < delivery.due_at - delivery.changed_at <= 3600
    await forward.restart()
    await forward.send(make_instance("1.2"))
    await until(lambda: State.DELIVERED in forward.states())
    assert len(upstream.requests) == 2
    assert delivery in forward.deliveries()


async def test_upstream_that_hangs_has_a_deadline_and_c_store_goes_on(
    forward, upstream, make_instance, until
):
    forward.upstream = "timeout_secs = 1\nmax_concurrent_uploads = 1"
    upstream.answers.append("hang")
    await forward.start()
    await forward.send(make_instance("1.1"))
    await upstream.next()
    for number in range(2, 12):  # while the only upload hangs
        assert await forward.send(make_instance(f"1.{number}")) == [0]
    assert State.DELIVERED not in forward.states()
    await until(lambda: forward.states() == [State.DELIVERED] * 11)
    assert sorted(each.attempts for each in forward.deliveries()) == [1] * 10 + [2]


async def test_so_many_uploads_at_a_time(forward, upstream, make_instance, until):
    forward.upstream = "max_concurrent_uploads = 3"
    upstream.answers.extend(["hang"] * 3)
    await forward.start()
    for number in range(5):
        await forward.send(make_instance(f"1.{number}"))
    await until(lambda: len(forward.deliveries()) == 5)
    await until(lambda: len(upstream.requests) == 3)
    assert forward.states().count(State.IN_PROGRESS) == 3
    upstream.let_go.set()
    await until(lambda: forward.states() == [State.DELIVERED] * 5)


async def test_outbox_that_cannot_be_written_is_written_later(
    forward, upstream, make_instance, until, monkeypatch, caplog
):
    monkeypatch.setattr(jmix_backend, "DISK_DELAY_S", 0.01)
    await forward.start()
    outbox = forward.gateway.assembly.backends[-1]._outbox
    delivered, failures = outbox.delivered, iter([sqlite3.OperationalError("database or disk is full")] * 3)

    def full_for_a_while(delivery_id: int, **arguments: object) -> None:
        for failure in failures:
            raise failure
        delivered(delivery_id, **arguments)

    monkeypatch.setattr(outbox, "delivered", full_for_a_while)
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.DELIVERED])
    assert caplog.text.count("what became of it cannot be written down") == 3
    assert len(upstream.requests) == 1


async def test_envelope_that_is_gone_is_parked(forward, upstream, make_instance, until):
    upstream.answers.append(503)
    forward.upstream = "retry_backoff_secs = 0.3\nretry_backoff_max_secs = 0.3"
    await forward.start()
    await forward.send(make_instance("1.1"))
    await upstream.next()
    forward.envelopes()[0].unlink()
    await until(lambda: forward.states() == [State.PARKED])
    assert "cannot be read" in (forward.deliveries()[0].error or "")


# The request


@pytest.mark.parametrize(
    ("path_prefix", "path"),
    [
        ("", "/api/jmix"),
        ("/api", "/api/jmix"),
        ("/v2/jmix", "/v2/jmix"),
        ("/hospital", "/hospital/api/jmix"),
    ],
)
async def test_request(path_prefix, path, forward, upstream, make_instance):
    forward.upstream = f'path_prefix = "{path_prefix}"'
    await forward.start()
    await forward.send(make_instance("1.1"))
    request = await upstream.next()
    assert request.request_line == f"POST {path} HTTP/1.1"
    assert request.headers["content-type"] == "application/zip"
    assert int(request.headers["content-length"]) == len(request.body) > 0
    assert "transfer-encoding" not in request.headers
    assert "authorization" not in request.headers


AUTHENTICATIONS = {
    "bearer": ('method = "bearer"\noptions.token = "t0ken"', "authorization", "Bearer t0ken"),
    "basic": (
        'method = "basic"\noptions.username = "u"\noptions.password = "pässword"',
        "authorization",
        "Basic " + base64.b64encode("u:pässword".encode()).decode(),
    ),
    "api_key": ('method = "api_key"\noptions.api_key = "k"', "x-api-key", "k"),
    "api_key-header": (
        'method = "api_key"\noptions.api_key = "k"\noptions.header_name = "X-Other"',
        "x-other",
        "k",
    ),
}


@pytest.mark.parametrize("method", AUTHENTICATIONS)
@pytest.mark.parametrize("group", ["study", "instance"])
async def test_authentication(method, group, forward, upstream, make_instance, caplog):
    caplog.set_level(logging.DEBUG)
    options, header, value = AUTHENTICATIONS[method]
    forward.builder = f'group = "{group}"'
    forward.upstream = 'authentication_ref = "known"'
    forward.more = f"[authentications.known]\n{options}"
    await forward.start()
    await forward.send(make_instance("1.1"))
    assert (await upstream.next()).headers[header] == value
    assert "t0ken" not in caplog.text
    assert "pässword" not in caplog.text


async def test_cancelled_and_stopped_again(forward, upstream, make_instance, until):
    """A second signal cancels the first stop."""
    upstream.answers.append("hang")
    gateway = await forward.start()
    await forward.send(make_instance("1.1"))
    await upstream.next()
    stopping = asyncio.create_task(gateway.stop(60.0))
    courier = gateway.assembly.backends[-1]._courier
    await until(courier._stopping.is_set)
    stopping.cancel()
    await asyncio.wait({stopping})
    async with asyncio.timeout(5):
        await gateway.stop(0.0)
    assert forward.states() == [State.IN_PROGRESS]
