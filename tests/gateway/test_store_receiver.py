"""Who listens where for our own C-MOVEs, and how long."""

import asyncio
import errno
from typing import ClassVar

import pytest

from harmony.dimse import DimseError, Instance, Services, associate, serve
from harmony.gateway.store_receiver import StoreReceivers
from harmony.ul import AssociationRejected, ConnectFailed
from harmony.ul.negotiation import propose_contexts

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"


async def store(port, ae_title):
    contexts = propose_contexts([(CT, [EXPLICIT])])
    async with associate("127.0.0.1", port, called_ae_title=ae_title, contexts=contexts) as scu:
        return await scu.store(Instance(CT, "1.2.3", EXPLICIT, b"\0\0"))


async def test_an_address_is_open_while_somebody_waits_there(free_port):
    receivers = StoreReceivers()
    async with receivers.listening("127.0.0.1", free_port, "A") as moves:
        async with receivers.listening("127.0.0.1", free_port, "B") as same:
            assert moves is same
            assert receivers.addresses == [("127.0.0.1", free_port)]
            for title in ("A", "B"):
                with pytest.raises(DimseError, match="no retrieve waits"):
                    await store(free_port, title)
            with pytest.raises(AssociationRejected):
                await store(free_port, "C")
        with pytest.raises(DimseError):
            await store(free_port, "A")
    assert receivers.addresses == []
    with pytest.raises(ConnectFailed):
        await store(free_port, "A")


async def test_associations_are_observed(free_port):
    class Observer:
        seen: ClassVar = []

        def established(self, association):
            self.seen.append(association.agreed.called_ae_title)

        def ended(self, association, error):
            self.seen.append(error)

        def performed(self, request_type, status, elapsed_s):
            self.seen.append((request_type.__name__, status))

    observer = Observer()
    async with StoreReceivers().listening("127.0.0.1", free_port, "A", observer=observer):
        with pytest.raises(DimseError):
            await store(free_port, "A")
    assert observer.seen[:2] == ["A", ("CStoreRQ", 0x0124)]
    assert len(observer.seen) == 3


async def test_coming_and_going_at_once(free_port):
    """Whoever comes while the address is being closed waits, and opens it again."""
    receivers = StoreReceivers()

    async def use(turns):
        async with receivers.listening("127.0.0.1", free_port, "A"):
            for _ in range(turns):
                await asyncio.sleep(0)
            with pytest.raises(DimseError):
                await store(free_port, "A")

    for _ in range(5):
        await asyncio.gather(*(use(turns) for turns in (0, 1, 5, 50)))
    assert receivers.addresses == []


async def test_an_address_that_is_taken_is_named(free_port):
    receivers = StoreReceivers()
    async with serve(Services(), port=free_port):
        with pytest.raises(OSError, match=f"incoming_store_port {free_port} cannot be listened on") as caught:
            async with receivers.listening("127.0.0.1", free_port, "A"):
                pass
    assert caught.value.errno == errno.EADDRINUSE
    async with receivers.listening("127.0.0.1", free_port, "A"):
        pass


async def test_an_endpoint_may_have_the_port(free_port):
    receivers, kept = StoreReceivers(), []

    def keep(request):
        kept.append(request.affected_sop_instance_uid)
        raise DimseError(0xA700, "kept")

    services = Services()
    services.store(receivers.open_sink(keep))
    receivers.provide({free_port: frozenset({"A", "B"})})
    async with serve(services, port=free_port), receivers.listening("0.0.0.0", free_port, "A") as moves:
        assert receivers.addresses == []
        with pytest.raises(DimseError, match="kept"):
            await store(free_port, "A")
        opened = []

        def take(request):
            opened.append(request)
            raise DimseError(0xA701, "taken")

        with moves.expect(take, originator_ae_title="A", peer_ae_title="HARMONY_SCU") as expectation:
            expectation.claim(1)
            with pytest.raises(DimseError, match="taken"):
                await store(free_port, "A")
            expectation.given_up = False
    assert kept == ["1.2.3"]
    assert len(opened) == 1
    with pytest.raises(OSError, match="AE title A or B; local_aet is C"):
        async with receivers.listening("0.0.0.0", free_port, "C"):
            pass
    receivers.provide({free_port: frozenset()})  # one that answers to any
    async with receivers.listening("0.0.0.0", free_port, "C"):
        assert receivers.addresses == []


async def test_a_user_cancelled_at_any_step_leaves_nothing_open(free_port):
    receivers = StoreReceivers()

    async def use():
        async with receivers.listening("127.0.0.1", free_port, "A"):
            await asyncio.sleep(0)

    for steps in range(12):
        task = asyncio.create_task(use())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert receivers.addresses == []
