"""Services as negotiation and the exchange ask them, and servers: who is served what, until when."""

import asyncio
from dataclasses import replace

import pytest

from harmony.dimse import (
    CEchoRQ,
    CFindRQ,
    CGetRQ,
    DimseError,
    Instance,
    Outcome,
    Server,
    Services,
    Status,
    associate,
)
from harmony.dimse.command import NEventReportRQ
from harmony.dimse.sop_class import is_storage_sop_class
from harmony.ul import (
    AcceptorPolicy,
    AssociateRJ,
    AssociationAborted,
    AssociationRejected,
    SupportedAbstractSyntax,
    UserIdentityRQ,
    propose_contexts,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

CT = "1.2.840.10008.5.1.4.1.1.2"
PRIVATE = "1.3.6.1.4.1.99999.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})


# What negotiation is told


async def test_only_verification_to_begin_with():
    services = Services()
    assert services.support_for("1.2.840.10008.1.1") == SupportedAbstractSyntax(NATIVE)
    assert services.support_for(CT) is None
    assert services.support_for(FIND) is None
    services.no_echo()
    assert services.support_for("1.2.840.10008.1.1") is None


async def test_storage_of_anything():
    services = Services()
    services.store(lambda request: None)
    assert services.support_for(CT) == SupportedAbstractSyntax(None, scp=True, scu=False)
    assert services.support_for(PRIVATE) == SupportedAbstractSyntax(None)
    assert services.support_for("1.2.840.10008.5.1.4.1.1.99999") == SupportedAbstractSyntax(None)
    assert services.support_for(FIND) is None


async def test_storage_of_some_classes_and_syntaxes():
    services = Services()
    services.store(lambda request: None, sop_classes=[CT], transfer_syntaxes=[JPEG])
    assert services.support_for(CT) == SupportedAbstractSyntax(frozenset({JPEG}))
    assert services.support_for(PRIVATE) is None


@pytest.mark.parametrize("order", [1, -1])
async def test_roles_add_up_in_any_order(order):
    services = Services()
    steps = [
        lambda: services.store(lambda request: None, sop_classes=[CT], transfer_syntaxes=[JPEG]),
        lambda: services.store_as_scu(),
    ]
    for step in steps[::order]:
        step()
    assert services.support_for(CT) == SupportedAbstractSyntax(frozenset({JPEG}), scp=True, scu=True)
    assert services.support_for(PRIVATE) == SupportedAbstractSyntax(None, scp=False, scu=True)
    assert services.support_for(FIND) is None


async def test_operations_take_native_syntaxes_and_event_reports_both_roles():
    services = Services()
    services.operation(CFindRQ, [FIND], lambda operation: None)
    services.operation(NEventReportRQ, ["1.2.840.10008.1.20.1"], lambda operation: None)
    assert services.support_for(FIND) == SupportedAbstractSyntax(NATIVE)
    assert services.support_for("1.2.840.10008.1.20.1") == SupportedAbstractSyntax(NATIVE, scp=True, scu=True)


@pytest.mark.parametrize(
    ("uid", "expected"),
    [
        (CT, True),
        ("1.2.840.10008.5.1.4.34.7", True),
        ("1.2.840.10008.5.1.4.1.1.200.1", True),  # CT Defined Procedure Protocol Storage
        ("1.2.840.10008.5.1.4.1.1.200.4", False),  # ... Information Model - FIND
        ("1.2.840.10008.5.1.4.1.1.201.2", False),  # Inventory - FIND
        ("1.2.840.10008.5.1.4.1.1.2345", True),
        (PRIVATE, True),
        (FIND, False),
        ("1.2.840.10008.1.1", False),
        ("1.2.840.10008.1.3.10", False),
    ],
)
async def test_what_counts_as_storage(uid, expected):
    assert is_storage_sop_class(uid) is expected


# Choosing who performs


async def test_sinks_by_class(serving, raw_peer, store, recording_sink, uids):
    opened = []

    def special(request):
        opened.append(request.affected_sop_class_uid)
        raise DimseError(0xA700)

    store.services.store(special, sop_classes=[uids.CT])
    contexts = propose_contexts([(uids.CT, [uids.EXPLICIT]), (PRIVATE, [uids.EXPLICIT])])
    async with serving(store.services) as server:
        peer = await raw_peer(server.port, contexts=contexts)
        peer.send_store(1, context_id=1)
        assert (await peer.next()).message.status == 0xA700
    assert opened == [uids.CT]
    assert store.sinks == []


async def test_an_echo_handler_is_asked_when_there_is_one(serving, raw_peer, uids):
    services = Services()
    services.operation(CEchoRQ, [uids.VERIFICATION], lambda operation: Outcome(0x0122))
    async with serving(services) as server:
        peer = await raw_peer(server.port)
        peer.send_message(1, CEchoRQ(3))
        assert (await peer.next()).message.status == 0x0122


# Associations


async def test_callbacks_hear_of_every_association_even_when_one_of_them_fails(
    serving, raw_peer, quiet_errors
):
    services, told = Services(), []

    def fail(*_):
        raise RuntimeError("defect")

    services.on_association(lambda association: told.append("open"), fail)
    services.on_association(ended=lambda association, error: told.append(error))
    async with serving(services) as server:
        peer = await raw_peer(server.port)
        await peer.echo()
        await peer.association.release()
    assert told == ["open", None]
    assert len(quiet_errors()) == 1


async def test_a_callback_that_refuses_an_association_aborts_it(serving, raw_peer, quiet_errors):
    services = Services()

    def refuse(association):
        raise RuntimeError("no room")

    services.on_association(refuse)
    async with serving(services) as server:
        peer = await raw_peer(server.port)
        assert isinstance(await peer.ended(), AssociationAborted)


async def test_called_ae_titles_have_services_of_their_own(uids):
    one, two, anyone = Services(), Services(), Services()
    two.operation(CFindRQ, [uids.FIND], lambda operation: None)
    anyone.no_echo()
    server = Server()
    server.add(one, AcceptorPolicy(ae_titles=frozenset({"ONE"})))
    server.add(two, AcceptorPolicy(ae_titles=frozenset({"TWO"})))
    await server.listen("127.0.0.1", 0)
    try:
        accepted = {}
        for title in ("ONE", "TWO"):
            async with associate(
                "127.0.0.1", server.port, called_ae_title=title, contexts=uids.CONTEXTS
            ) as scu:
                accepted[title] = sorted(scu.association.agreed.contexts)
        with pytest.raises(AssociationRejected, match="called-AE-title") as caught:
            async with associate("127.0.0.1", server.port, called_ae_title="THREE"):
                pass
        assert (caught.value.result, caught.value.source, caught.value.reason) == (1, 1, 7)
        server.add(anyone)
        async with associate("127.0.0.1", server.port, called_ae_title="THREE") as scu:
            accepted["THREE"] = sorted(scu.association.agreed.contexts)
    finally:
        await server.close()
    assert accepted == {"ONE": [1], "TWO": [1, 5], "THREE": []}


async def test_user_identity_reaches_the_verifier_and_its_answer_the_requestor(serving):
    seen = []

    async def verify(identity, request, association):
        seen.append((identity.user_identity_type, identity.primary_field, identity.secondary_field))
        return b"ticket" if identity.primary_field == b"alice" else None

    async with serving(Services(), verify_identity=verify) as server:
        identity = UserIdentityRQ(2, b"alice", b"secret", positive_response_requested=True)
        async with associate("127.0.0.1", server.port, user_identity=identity) as scu:
            assert scu.association.agreed.peer.user_identity_ac.server_response == b"ticket"
            await scu.echo()
        with pytest.raises(AssociationRejected) as caught:
            async with associate("127.0.0.1", server.port, user_identity=UserIdentityRQ(1, b"mallory")):
                pass
    assert (caught.value.result, caught.value.source) == (1, 2)
    assert seen == [(2, b"alice", b"secret"), (1, b"mallory", b"")]


async def test_r40_drain_lets_stores_finish_and_rejects_new_associations(
    serving, raw_peer, store, recording_sink, patience
):
    futures = []

    def answer():
        futures.append(asyncio.get_running_loop().create_future())
        return futures[-1]

    store.make = lambda request: recording_sink(request, answer=answer)
    async with serving(store.services) as server:
        peers = [await raw_peer(server.port) for _ in range(10)]
        for number, peer in enumerate(peers):
            peer.send_store(number)
        await store.until(lambda: len(futures) == 10)
        draining = asyncio.create_task(server.drain(60))
        await asyncio.sleep(0)
        with pytest.raises(AssociationRejected) as caught:
            await raw_peer(server.port)
        assert caught.value.transient
        for future in futures:
            future.set_result(Outcome(0))
        for number, peer in enumerate(peers):
            answer = (await peer.next()).message
            assert (answer.status, answer.message_id_being_responded_to) == (0, number)
            await peer.association.release()
        async with patience():
            await draining
            await server.wait_closed()
    assert store.ends == [None] * 10


async def test_get_needs_the_scu_role_of_storage(serving, raw_peer, uids):
    """PS3.7 §D.3.3.4: the acceptor's answer decides; SCP for the requestor only where we take the SCU role."""
    services = Services()
    services.operation(CGetRQ, [uids.GET], lambda operation: None)
    async with serving(services) as server:
        peer = await raw_peer(server.port, roles=[(uids.CT, True, True)])
        assert sorted(peer.association.agreed.contexts) == [1, 7]
    services.store_as_scu()
    async with serving(services) as server:
        peer = await raw_peer(server.port, roles=[(uids.CT, True, True)])
        context = peer.association.agreed.contexts[3]
        assert (context.as_scu, context.as_scp) == (False, True)


# Who may associate, and have what performed


async def test_admission_and_authorization():
    services = Services()
    services.store(lambda request: Discarding())

    def admit(request, association, policy):
        if request.calling_ae_title == "BANNED":
            return AssociateRJ(1, 1, 3)
        return replace(policy, maximum_length=16384)

    def authorize(request, context, association):
        if association.agreed.calling_ae_title == "READER":
            raise DimseError(Status.NOT_AUTHORIZED, "only reading")

    services.authorize(authorize)
    server = Server()
    server.add(services, admit=admit)
    await server.listen("127.0.0.1", 0)
    contexts = propose_contexts([(CT, [JPEG]), ("1.2.840.10008.1.1", sorted(NATIVE))])
    try:
        with pytest.raises(AssociationRejected) as rejected:
            async with associate("127.0.0.1", server.port, calling_ae_title="BANNED", contexts=contexts):
                pass
        assert rejected.value.reason == 3
        async with associate("127.0.0.1", server.port, calling_ae_title="WRITER", contexts=contexts) as scu:
            assert scu.association.agreed.peer.maximum_length == 16384
            assert (await scu.store(Instance(CT, "1.2", JPEG, b"12"))).status == 0
        async with associate("127.0.0.1", server.port, calling_ae_title="READER", contexts=contexts) as scu:
            for asked in (scu.echo(), scu.store(Instance(CT, "1.2", JPEG, b"12"))):
                with pytest.raises(DimseError) as refused:
                    await asked
                assert refused.value.status == 0x0124
    finally:
        await server.close()


class Discarding:
    def write(self, fragment):
        pass

    def finish(self):
        return Outcome(Status.SUCCESS)

    def abort(self):
        pass
