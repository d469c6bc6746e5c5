"""The dicom_scp endpoint: who gets in, what is negotiated, and where objects go."""

from __future__ import annotations

import contextlib

import pytest

from harmony.dimse.scu import NoPresentationContext
from harmony.dimse.status import DimseError
from harmony.ul.errors import AssociationRejected
from harmony.ul.negotiation import propose_contexts

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"


@pytest.fixture
def receiver(bench):
    """Without jmix_builder: what is received is kept, and that is all."""
    bench.builder = None
    return bench


async def rejection(associating) -> tuple[int, int, int]:
    with pytest.raises(AssociationRejected) as rejected:
        async with associating:
            pass
    return rejected.value.result, rejected.value.source, rejected.value.reason


async def accepted(bench, *proposals) -> list[tuple[str, str]]:
    async with bench.associate(contexts=propose_contexts(list(proposals))) as scu:
        contexts = scu.association.agreed.contexts.values()
        return [(context.abstract_syntax, context.transfer_syntax) for context in contexts]


async def test_objects_are_kept(receiver, make_instance):
    await receiver.start()
    assert await receiver.send(make_instance("1.1"), make_instance("1.1"), make_instance("1.2")) == [0, 0, 0]
    path = receiver.storage / "dimse" / "1.2.3.4.5" / "1.2.3.4.5.1" / "1.1.dcm"
    assert path.read_bytes().endswith(make_instance("1.1").data)
    assert receiver.files() == ["1.1.dcm", "1.2.dcm"]
    assert not (receiver.storage / "jmix-builder").exists()


async def test_duplicates_as_configured(receiver, make_instance):
    receiver.scp = 'duplicates = "refuse"'
    await receiver.start()
    async with receiver.associate() as scu:
        await scu.store(make_instance("1.1"))
        with pytest.raises(DimseError) as refused:
            await scu.store(make_instance("1.1", pixels=b"\7\7"))
        assert refused.value.status == 0x0111
        await scu.echo()


async def test_called_ae_title(receiver):
    await receiver.start()
    assert await rejection(receiver.associate(called_ae_title="OTHER")) == (1, 1, 7)
    receiver.scp = "accept_any_called_ae = true"
    await receiver.restart()
    async with receiver.associate(called_ae_title="OTHER") as scu:
        await scu.echo()


async def test_calling_ae_title(receiver):
    receiver.scp = """
        restrict_calling_ae = true
        calling_aets = ["CT_1"]
        aet_table = { ct2 = { ae_title = "CT_2", host = "h" }, CT_3 = { host = "h" } }
    """
    await receiver.start()
    for title in ("CT_1", "CT_2", "CT_3"):
        async with receiver.associate(calling_ae_title=title) as scu:
            await scu.echo()
    assert await rejection(receiver.associate(calling_ae_title="ct2")) == (1, 1, 3)


async def test_two_titles_on_one_address(receiver, make_instance):
    receiver.more = f"""
        [pipelines.second]
        networks = ["n"]
        endpoints = ["second"]
        [endpoints.second]
        service = "dicom_scp"
        [endpoints.second.options]
        local_aet = "SECOND"
        storage_dir = "{receiver.folder}/second"
        min_free_bytes = 0
        enable_echo = false
        calling_aets = ["SENDER"]
    """
    await receiver.start()
    await receiver.send(make_instance("1.1"))
    async with receiver.associate(called_ae_title="SECOND") as scu:
        await scu.store(make_instance("1.2"))
        with pytest.raises(NoPresentationContext):
            await scu.echo()
    assert receiver.files() == ["1.1.dcm"]
    assert [path.name for path in (receiver.folder / "second").glob("*/*/*")] == ["1.2.dcm"]
    assert await rejection(receiver.associate(called_ae_title="THIRD")) == (1, 1, 7)
    assert await rejection(receiver.associate(called_ae_title="SECOND", calling_ae_title="X")) == (1, 1, 3)
    async with receiver.associate(calling_ae_title="X") as scu:
        await scu.echo()


async def test_operations_that_are_off_are_not_accepted(receiver, make_instance):
    receiver.scp = "enable_echo = false"
    await receiver.start()
    assert await accepted(receiver, (VERIFICATION, [IMPLICIT]), (CT, [IMPLICIT])) == [(CT, IMPLICIT)]
    receiver.scp = "enable_store = false"
    await receiver.restart()
    assert await accepted(receiver, (VERIFICATION, [IMPLICIT]), (CT, [IMPLICIT])) == [
        (VERIFICATION, IMPLICIT)
    ]


async def test_any_storage_class_in_any_syntax(receiver):
    await receiver.start()
    private, future = "1.3.6.1.4.1.5.6", "1.2.840.10008.5.1.4.1.1.999"
    proposals = [(CT, [JPEG]), (MR, [EXPLICIT, IMPLICIT]), (private, [IMPLICIT]), (future, [IMPLICIT])]
    assert await accepted(receiver, *proposals) == [(uid, syntaxes[0]) for uid, syntaxes in proposals]


async def test_narrowed_classes_and_syntaxes(receiver):
    receiver.scp = f'sop_classes = ["{CT}"]\ntransfer_syntaxes = ["{EXPLICIT}"]'
    await receiver.start()
    assert await accepted(
        receiver,
        (CT, [JPEG, EXPLICIT]),
        (CT, [IMPLICIT]),
        (MR, [EXPLICIT]),
        (VERIFICATION, [IMPLICIT]),
    ) == [(CT, EXPLICIT), (VERIFICATION, IMPLICIT)]


async def test_narrowed_syntaxes_of_all_classes(receiver):
    receiver.scp = f'transfer_syntaxes = ["{EXPLICIT}"]'
    await receiver.start()
    assert await accepted(receiver, (CT, [IMPLICIT]), (MR, [JPEG, EXPLICIT])) == [(MR, EXPLICIT)]


async def test_limit_of_associations(receiver):
    receiver.scp = "max_associations = 2"
    await receiver.start()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(receiver.associate())
        await stack.enter_async_context(receiver.associate())
        assert await rejection(receiver.associate()) == (2, 3, 2)
        await first.association.release()
        async with receiver.associate() as scu:
            await scu.echo()


async def test_what_is_announced(receiver):
    receiver.scp = "max_pdu = 32768\nmax_operations = 4"
    await receiver.start()
    async with receiver.associate(maximum_operations=16) as scu:
        agreed = scu.association.agreed
        assert agreed.peer_maximum_length == 32768
        assert agreed.maximum_operations_invoked == 4


async def test_association_that_is_idle_for_too_long(receiver, until):
    receiver.scp = "idle_timeout_secs = 0.05"
    gateway = await receiver.start()
    async with receiver.associate() as scu:
        server = gateway.assembly.dicom[0].server
        await until(lambda: not server.acceptor.associations)
        await until(lambda: not scu.association.is_open)
