"""`python -m harmony outbox`, beside a gateway that runs."""

from __future__ import annotations

import contextlib
import time

import pytest

from harmony.gateway import jmix_backend
from harmony.gateway.command_line import main
from harmony.jmix.outbox import Outbox, State

IDS = [f"{number}50e8400-e29b-41d4-a716-446655440000" for number in range(6)]


@pytest.fixture
def command(forward, capsys):
    """command("--retry", "all"): its exit status, output and errors."""
    forward.config()

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["outbox", "--config", str(forward.folder / "config.toml"), *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def outbox(forward):
    """One delivery in each state, two parked."""
    forward.outbox_path.parent.mkdir(parents=True)
    with contextlib.closing(Outbox(forward.outbox_path)) as outbox:
        now = time.time()
        created = {
            IDS[0]: now - 7200,
            IDS[1]: now - 180,
            IDS[2]: now - 60,
            IDS[3]: now - 50,
            IDS[4]: now - 200_000,
        }
        numbers = [
            outbox.enqueue(
                envelope_id,
                "up",
                payload_path="/x.zip",
                content_type="application/zip",
                content_length=1,
                origin="CT",
                now=when,
            )
            for envelope_id, when in created.items()
        ]
        outbox.claim_due(now, limit=10)
        outbox.parked(numbers[0], error="the upstream answered 400: \x1b[31mno\nno", now=now)
        outbox.parked(numbers[1], error="the upstream answered 415: no", now=now - 1)
        outbox.failed(numbers[2], error="upstream h:1: refused", retry_at=now + 7230, now=now)
        outbox.delivered(numbers[4], http_status=201, now=now)
        yield outbox


def test_table(outbox, command):
    assert command() == (
        0,
        f"""\
pipeline p: 2 parked, 1 in progress, 1 pending, 1 delivered
  state        envelope                              upstream  attempts  age    next try  last error
  parked       {IDS[0]}  up        1         2 h    -         the upstream answered 400: ?[31mno?no
  parked       {IDS[1]}  up        1         3 min  -         the upstream answered 415: no
  in progress  {IDS[3]}  up        1         50 s   -         -
  pending      {IDS[2]}  up        1         1 min  in 2 h    upstream h:1: refused
""",
        "",
    )
    assert outbox.counts()[State.IN_PROGRESS] == 1  # looking changes nothing


def test_retry_of_one(outbox, command):
    status, out, err = command("--retry", IDS[1])
    assert (status, err) == (0, "")
    assert "pipeline p: 1 parked, 1 in progress, 2 pending, 1 delivered" in out
    assert out.endswith("1 unparked\n")
    assert [delivery.envelope_id for delivery in outbox.deliveries(State.PARKED)] == [IDS[0]]


def test_retry_of_all(outbox, command):
    assert command("--retry", "all")[1].endswith("2 unparked\n")
    assert command("--retry", "all")[::2] == (0, "")
    assert outbox.counts()[State.PENDING] == 3


@pytest.mark.parametrize("wanted", [IDS[2], IDS[5], "1", ""])
def test_retry_of_what_is_not_parked(wanted, outbox, command):
    status, out, err = command("--retry", wanted)
    assert (status, err) == (1, f"no parked envelope has the id {wanted}\n")
    assert "0 unparked" in out


def test_before_anything_was_received(forward, command):
    status, out, err = command()
    assert (status, err) == (0, "")
    assert out == f"pipeline p: nothing was ever received ({forward.outbox_path} is not there)\n"
    assert not forward.storage.exists()


def test_damaged_outbox(forward, command):
    forward.outbox_path.parent.mkdir(parents=True)
    forward.outbox_path.write_bytes(b"not a database" * 100)
    status, out, err = command()
    assert (status, out) == (1, "")
    assert str(forward.outbox_path) in err


def test_pipelines_without_a_builder(bench, capsys):
    bench.builder = None
    bench.config()
    assert main(["outbox", "-c", str(bench.folder / "config.toml")]) == 0
    assert "nothing to deliver" in capsys.readouterr().out


def test_retry_without_outbox(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--retry", "all"])
    assert ended.value.code == 2
    assert "--retry belongs to the outbox command" in capsys.readouterr().err


async def test_beside_a_running_gateway(forward, upstream, make_instance, until, command, monkeypatch):
    monkeypatch.setattr(jmix_backend, "LOOK_AGAIN_S", 0.01)
    upstream.answers.append(400)
    await forward.start()
    await forward.send(make_instance("1.1"))
    await until(lambda: forward.states() == [State.PARKED])
    status, out, _ = command("--retry", forward.deliveries()[0].envelope_id)
    assert (status, "1 unparked" in out) == (0, True)
    await until(lambda: forward.states() == [State.DELIVERED])
    assert "0 parked, 0 in progress, 0 pending, 1 delivered" in command()[1]
