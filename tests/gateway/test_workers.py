"""`workers = 2`: what one process promises, several keep. The gateway runs here, its workers are real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harmony.archive.index import UniqueKeys
from harmony.dicom.json_model import encode_data_set
from harmony.dimse.command import CStoreRQ
from harmony.dimse.information_model import STUDY_ROOT
from harmony.dimse.query import find
from harmony.dimse.status import DimseError
from harmony.gateway import handover
from harmony.gateway.config import ConfigError
from harmony.gateway.errors import StartError
from harmony.http.client import HTTPClient
from harmony.ul.errors import AssociationError, AssociationRejected
from harmony.ul.negotiation import propose_contexts
from tests.faults.program import CT, IMPLICIT, make_instance

WAIT_S = 20.0
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"


@pytest.fixture
def receiver(bench):
    bench.builder = None
    bench.top = "workers = 2"
    return bench


def storing(receiver, **options):
    """An association that only stores."""
    options.setdefault("contexts", propose_contexts([(CT, [IMPLICIT])]))
    return receiver.associate(**options)


def image(number: int, *, study: str = "1.2.9.1"):
    return make_instance(number, study=study, size_bytes=2000)


def associations(receiver) -> list[int]:
    """How many each worker has."""
    return [count for _, count, _, _ in receiver.gateway.assembly.workers.counts()]


def process_ids(receiver) -> list[int]:
    return receiver.gateway.assembly.workers.process_ids


def stored(receiver) -> set[str]:
    """Blocking: the SOP Instance UIDs that a query finds."""
    (index,) = receiver.gateway.assembly.indexes.values()
    return {each.sop_instance_uid for each in index.instances(UniqueKeys())}


def descriptors(pid: int | str = "self") -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def until(condition) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - there is nothing else in another process to wait for
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def several(receiver, count: int):
    """Associations at the same time."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(storing(receiver)) for _ in range(count)]


# Receiving


async def test_associations_go_to_whom_has_the_fewest(receiver):
    await receiver.start()
    async with several(receiver, 5):
        assert sorted(associations(receiver)) == [2, 3]
    await until(lambda: associations(receiver) == [0, 0])


async def test_a_query_right_after_an_answer_finds_the_object(receiver):
    await receiver.start()
    level = {"vr": "CS", "Value": ["STUDY"]}
    identifier = encode_data_set({"00080052": level, "0020000D": {"vr": "UI"}}, EXPLICIT)
    async with (
        several(receiver, 2) as scus,
        receiver.associate(contexts=propose_contexts([(STUDY_ROOT.find, [EXPLICIT])])) as asking,
    ):
        assert sorted(associations(receiver)) == [1, 1], "the query is not for a worker"
        for number in range(1, 21):
            assert (await scus[number % 2].store(image(number, study=f"1.2.9.{number}"))).status == 0
            matches = [match async for match in find(asking, STUDY_ROOT.find, identifier)]
            assert len(matches) == number


async def test_the_same_answers_and_files_as_with_one_process(receiver, tmp_path):
    """Duplicates, other data under the same UID, an object that is refused: 16 senders with the same objects."""
    changed = image(3)
    changed = type(changed)(CT, "1.2.3.1", IMPLICIT, changed.data.replace(b"1.2.3.3\0", b"1.2.3.1\0"))
    wrong = type(changed)(CT, "1.2.3.7", IMPLICIT, b"\x08\x00\x16\x00\x04\x00\x00\x001.2\0")
    seen = []
    for workers in (1, 2):
        receiver.top = f"workers = {workers}"
        receiver.folder = tmp_path / str(workers)
        receiver.folder.mkdir()
        await receiver.start()
        async with several(receiver, 4) as scus:
            statuses = []
            for instance in (image(1), image(2), image(1), changed, wrong, image(4)):
                try:
                    statuses.append((await scus[len(statuses) % 4].store(instance)).status)
                except DimseError as error:
                    statuses.append(error.outcome.status)
        names = await asyncio.to_thread(stored, receiver)
        files = {path.name: path.read_bytes() for path in receiver.storage.glob("dimse/[!.]*/*/*")}
        seen.append((statuses, names, files))
        await receiver.stop()
    assert seen[0] == seen[1]
    assert seen[0][0][0] == 0x0000
    assert len(seen[0][1]) == 3


async def test_data_that_the_peer_sends_before_it_is_answered(receiver, wire):
    """It may lie in the kernel when the connection is handed over; it is read in the worker."""
    await receiver.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", receiver.dicom_port)
    request = wire.associate_rq(called=b"GATEWAY", contexts=[(1, CT.encode(), [IMPLICIT.encode()])])
    writer.write(request)
    await writer.drain()
    writer.write(b"\5\0\0\0\0\4\0\0\0\0")  # A-RELEASE-RQ
    types = []
    async with asyncio.timeout(WAIT_S):
        while not types or types[-1] == 2:
            head = await reader.readexactly(6)
            types.append(head[0])
            await reader.readexactly(int.from_bytes(head[2:], "big"))
    # A-ASSOCIATE-AC, A-RELEASE-RP; or A-ABORT, where both were read before the answer (PS3.8 Table 9-10, Sta3).
    assert types in ([2, 6], [7])
    writer.close()
    await until(lambda: associations(receiver) == [0, 0])


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_dcmtk(receiver, durability, require_peer, pydicom_files):
    storescu = require_peer("storescu")
    receiver.scp = f'durability = "{durability}"'
    await receiver.start()
    files = [each for each in pydicom_files if each.transfer_syntax_uid in (IMPLICIT, EXPLICIT)][:12]
    sending = [
        await asyncio.create_subprocess_exec(
            storescu,
            *("-R", "-aec", "GATEWAY", "127.0.0.1", str(receiver.dicom_port)),
            *(str(each.path) for each in files[number::2]),
            stderr=subprocess.PIPE,
        )
        for number in (0, 1)
    ]
    for each in sending:
        _, said = await each.communicate()
        assert each.returncode == 0, said.decode()
    assert await asyncio.to_thread(stored, receiver) == {each.sop_instance_uid for each in files}
    await receiver.gateway.assembly.workers.refresh()
    objects = [count for _, _, count, _ in receiver.gateway.assembly.workers.counts()]
    assert min(objects) > 0
    assert sum(objects) == len(files)


# What stays in the first process


async def test_verification_alone_is_answered_by_the_first_process(receiver):
    await receiver.start()
    async with receiver.associate(contexts=propose_contexts([(VERIFICATION, [IMPLICIT])])) as scu:
        assert associations(receiver) == [0, 0]
        await scu.echo()
    async with receiver.associate() as scu:
        assert sum(associations(receiver)) == 1
        await scu.echo()
        assert (await scu.store(image(1))).status == 0


async def test_what_is_packed_stays_too(bench):
    bench.top = "workers = 2"
    await bench.start()
    async with storing(bench) as scu:
        assert associations(bench) == [0, 0]
        assert (await scu.store(image(1))).status == 0
    await until(lambda: len(bench.envelopes()) == 1)


async def test_without_workers_it_receives_itself(receiver):
    await receiver.start()
    for pid in process_ids(receiver):
        os.kill(pid, signal.SIGSTOP)
    for slot in receiver.gateway.assembly.workers._slots:
        slot.running.answered = 0  # as one that is still starting
    async with storing(receiver) as scu:
        assert associations(receiver) == [0, 0]
        assert (await scu.store(image(1))).status == 0
    for pid in process_ids(receiver):
        os.kill(pid, signal.SIGCONT)


# Limits


async def test_limits_are_for_all_workers_together(receiver):
    receiver.scp = "max_associations = 3"
    await receiver.start()
    async with several(receiver, 3) as scus:
        with pytest.raises(AssociationRejected) as rejected:
            await storing(receiver).__aenter__()
        error = rejected.value
        assert (error.result, error.source, error.reason) == LOCAL_LIMIT_EXCEEDED
        await scus[0].association.release()
        async with storing(receiver) as scu:
            assert (await scu.store(image(1))).status == 0


async def test_rules_about_associations_and_operations(receiver):
    """The former are asked before it is handed over, and counted for all; the latter in the worker."""
    receiver.middleware = '["guard"]'
    receiver.more = f"""
        [middleware.guard]
        type = "policies"
        [[middleware.guard.options.policies]]
        rules = [{{ type = "ip_allow", options = {{ ip_addresses = ["127.0.0.0/8"] }} }}]
        [[middleware.guard.options.policies]]
        rules = [{{ type = "sop_class", options = {{ sop_classes = ["{CT}"] }} }}]
        [[middleware.guard.options.policies]]
        rules = [{{ type = "rate_limit", options = {{ max_requests = 2 }} }}]
    """
    await receiver.start()
    async with several(receiver, 2) as scus:
        assert sorted(associations(receiver)) == [1, 1]
        for number, scu in enumerate(scus):
            instance = image(number + 1)
            assert (await scu.store(instance)).status == 0
            context = scu.association.agreed.contexts[1]
            request = partial(CStoreRQ, affected_sop_class_uid=MR, affected_sop_instance_uid="1.2")
            invocation = await scu.invoke(request, context, instance.data)
            assert (await invocation.final()).status == 0x0124
        with pytest.raises(AssociationRejected) as rejected:
            await storing(receiver).__aenter__()
        assert (rejected.value.result, rejected.value.reason) == (2, 2)


async def test_limits_on_objects_hold_in_the_worker(receiver):
    receiver.scp = "max_object_bytes = 1024"
    await receiver.start()
    async with storing(receiver) as scu:
        assert sum(associations(receiver)) == 1
        with pytest.raises(DimseError) as refused:
            await scu.store(image(1))
        assert refused.value.outcome.status == 0xA700
    assert await asyncio.to_thread(stored, receiver) == set()


# Death


async def test_a_killed_worker_costs_its_associations_and_is_replaced(receiver):
    receiver.more = '[management]\nenabled = true\nnetwork = "n"'
    await receiver.start()
    async with several(receiver, 4) as scus:
        for number, scu in enumerate(scus):
            assert (await scu.store(image(number + 1))).status == 0
        victim = process_ids(receiver)[0]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: sum(scu.association.is_open for scu in scus) == 2)
        survivors = [scu for scu in scus if scu.association.is_open]
        assert (await survivors[0].store(image(5))).status == 0
        assert await asyncio.to_thread(stored, receiver) == {f"1.2.3.{number}" for number in range(1, 6)}
        await until(lambda: len(process_ids(receiver)) == 2 and victim not in process_ids(receiver))
        await until(lambda: sum(associations(receiver)) == 2)
    values = await scrape(receiver)
    assert values["harmony_worker_restarts_total", '{"worker": "0"}'] == 1
    assert values["harmony_associations_open", SCP] == 0
    async with several(receiver, 2) as scus:
        await until(lambda: sum(associations(receiver)) == 2)
        assert (await scus[0].store(image(6))).status == 0


async def test_workers_that_cannot_start(receiver, monkeypatch):
    monkeypatch.setattr("harmony.gateway.workers.sys.executable", "/bin/false")
    with pytest.raises(StartError, match=r"worker . does not start"):
        await receiver.start()
    monkeypatch.undo()
    await receiver.stop()
    await receiver.start()
    async with storing(receiver) as scu:
        assert (await scu.store(image(1))).status == 0


async def test_a_worker_that_hangs_is_killed(receiver, monkeypatch):
    monkeypatch.setattr("harmony.gateway.workers.PING_S", 0.05)
    monkeypatch.setattr("harmony.gateway.workers.HEARTBEAT_S", 0.3)
    await receiver.start()
    async with several(receiver, 2) as scus:
        victim = process_ids(receiver)[0]
        os.kill(victim, signal.SIGSTOP)
        await until(lambda: sum(scu.association.is_open for scu in scus) == 1)
        await until(lambda: len(process_ids(receiver)) == 2 and victim not in process_ids(receiver))


async def test_stopping_lets_associations_end(receiver):
    await receiver.start()
    pids = process_ids(receiver)
    async with several(receiver, 2) as scus:
        stopping = asyncio.create_task(receiver.stop(5.0))
        await asyncio.sleep(0)
        for number, scu in enumerate(scus):
            assert (await scu.store(image(number + 1))).status == 0
        with pytest.raises(AssociationRejected) as rejected:
            await storing(receiver).__aenter__()
        assert rejected.value.reason == 1
    await stopping
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list(receiver.storage.glob("dimse/.index/worker-*")) == []


async def test_stopping_aborts_what_does_not_end(receiver):
    await receiver.start()
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(AssociationError):
            async with several(receiver, 2) as scus:
                await receiver.stop(0.1)
                await asyncio.gather(*(scu.association.wait_ended() for scu in scus))
                assert all(scu.association.error is not None for scu in scus)


# Another configuration


async def test_after_a_reload_old_and_new_go_on(receiver):
    gateway = await receiver.start()
    gateway._load = receiver.config
    pids = process_ids(receiver)
    async with storing(receiver) as old:
        assert (await old.store(image(1))).status == 0
        receiver.scp = "max_object_bytes = 1024"
        await gateway.reload()
        async with storing(receiver) as new:
            assert sum(associations(receiver)) == 2
            with pytest.raises(DimseError):
                await new.store(image(2))
        assert (await old.store(image(3))).status == 0
    assert process_ids(receiver) == pids
    assert await asyncio.to_thread(stored, receiver) == {"1.2.3.1", "1.2.3.3"}
    # What only the old one needed is forgotten.
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*gateway._retiring)
    assert len(list(receiver.storage.glob("dimse/.index/worker-*"))) <= 2


async def test_the_number_takes_a_restart(receiver):
    gateway = await receiver.start()
    gateway._load = receiver.config
    for top in ("workers = 3", "", "workers = 1"):
        receiver.top = top
        with pytest.raises(ConfigError, match="restart"):
            await gateway.reload()
    async with storing(receiver) as scu:
        assert (await scu.store(image(1))).status == 0


@pytest.mark.parametrize("value", ["0", "65", "-1", "true", '"2"', "2.0", "[]"])
def test_numbers_that_are_none(receiver, value):
    receiver.top = f"workers = {value}"
    with pytest.raises(ConfigError, match=r"workers: is .*, must be a whole number from 1 to 64"):
        receiver.config()


def test_where_connections_cannot_be_handed_over(receiver, monkeypatch):
    monkeypatch.delattr(socket, "send_fds")
    assert not handover.are_possible()
    with pytest.raises(ConfigError, match="workers: must be 1 on this system"):
        receiver.config()


# Counting and telling

SCP = '{"component": "endpoint", "name": "scp"}'


async def scrape(receiver) -> dict[tuple[str, str], float]:
    async with HTTPClient(f"http://127.0.0.1:{receiver.http_port}", timeout_s=10.0) as client:
        answer = await client.request("GET", "/metrics")
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


async def test_metrics_are_those_of_one_process(receiver):
    receiver.more = '[management]\nenabled = true\nnetwork = "n"'
    await receiver.start()
    async with several(receiver, 3) as scus:
        for number in range(1, 10):
            await scus[number % 3].store(image(number))
        values = await scrape(receiver)
        assert values["harmony_associations_open", SCP] == 3
        stores = (
            '{"component": "endpoint", "name": "scp", "operation": "C-STORE", "role": "scp", '
            '"status": "0000", "status_class": "success"}'
        )
        assert values["harmony_operations_total", stores] == 9
        assert values["harmony_association_received_bytes_total", SCP] > 9 * 2000
        assert sum(values["harmony_worker_objects_total", f'{{"worker": "{n}"}}'] for n in (0, 1)) == 9
        assert sum(values["harmony_worker_associations", f'{{"worker": "{n}"}}'] for n in (0, 1)) == 3
    await until(lambda: associations(receiver) == [0, 0])
    values = await scrape(receiver)
    assert values["harmony_associations_open", SCP] == 0
    released = '{"component": "endpoint", "name": "scp", "reason": "released"}'
    assert values["harmony_associations_ended_total", released] == 3


async def test_the_audit_trail_is_that_of_one_process(receiver):
    receiver.more = "[audit]\nenabled = true"
    await receiver.start()
    async with several(receiver, 2) as scus:
        for number in range(1, 7):
            await scus[number % 2].store(image(number))
    await until(lambda: associations(receiver) == [0, 0])
    await receiver.stop()
    transfers = []
    for path in receiver.storage.glob("audit/audit-*.log"):
        for line in path.read_bytes().splitlines():
            root = ElementTree.fromstring(line[line.index(b"<AuditMessage") :])
            if root.find("EventIdentification/EventID").get("originalText") == "DICOM Instances Transferred":
                transfers.append(root)
    assert len(transfers) == 2
    for root in transfers:
        source, ours = root.findall("ActiveParticipant")
        assert source.get("UserID") == "SENDER"
        assert ours.get("UserID") == str(os.getpid())
        assert [each.get("NumberOfInstances") for each in root.iter("SOPClass")] == ["3"]


async def test_descriptors_come_back(receiver):
    await receiver.start()

    async def send() -> list[int]:
        async with several(receiver, 8) as scus:
            for number, scu in enumerate(scus):
                await scu.store(image(number + 1))
        await until(lambda: associations(receiver) == [0, 0])
        await asyncio.to_thread(stored, receiver)  # so that the workers' logs are open
        return [descriptors(), *map(descriptors, process_ids(receiver))]

    before = await send()
    for _ in range(3):
        await send()

    def are_back() -> bool:
        now = [descriptors(), *map(descriptors, process_ids(receiver))]
        return all(count <= then for count, then in zip(now, before, strict=True))

    await until(are_back)


async def test_workers_listen_nowhere_and_nothing_is_on_their_command_line(receiver):
    await receiver.start()
    for pid in process_ids(receiver):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        at = command.index(b"-m")
        assert command[at + 1] == b"harmony.gateway.worker"
        assert all(part.isdigit() for part in command[at + 2 : at + 4])
        assert command[at + 4 :] == [b""]
        sockets = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        listening = {
            f"socket:[{line.split()[9]}]"
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        }
        assert not sockets & listening
