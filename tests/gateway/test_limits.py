"""What a gateway takes on at once, as configured: reached, told to the peer, and over again when there is room."""

from __future__ import annotations

import contextlib

import pytest

from harmony.gateway.dicom_scp import acceptor_limits
from harmony.gateway.options import DicomScpOptions
from harmony.ul.errors import AssociationRejected, ConnectFailed, ConnectionLost

LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


@pytest.fixture
def receiver(bench):
    bench.builder = None
    return bench


async def rejection(association) -> tuple[int, int, int]:
    with pytest.raises(AssociationRejected) as rejected:
        await association.__aenter__()
    error = rejected.value
    return error.result, error.source, error.reason


async def test_associations_of_one_calling_ae_title(receiver):
    receiver.scp = "max_associations_per_ae = 2"
    await receiver.start()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(receiver.associate())
        await stack.enter_async_context(receiver.associate())
        assert await rejection(receiver.associate()) == LOCAL_LIMIT_EXCEEDED
        async with receiver.associate(calling_ae_title="ANOTHER") as scu:
            await scu.echo()
        await first.association.release()
        async with receiver.associate() as scu:
            await scu.echo()


async def test_associations_from_one_address_and_a_reload(receiver):
    receiver.scp = "max_associations_per_address = 1"
    gateway = await receiver.start()
    gateway._load = receiver.config
    async with receiver.associate() as scu:
        assert await rejection(receiver.associate(calling_ae_title="ANOTHER")) == LOCAL_LIMIT_EXCEEDED
        receiver.scp = "max_associations_per_address = 2"
        await gateway.reload()
        async with receiver.associate() as another:
            await another.echo()
            assert await rejection(receiver.associate()) == LOCAL_LIMIT_EXCEEDED
        await scu.echo()


@pytest.mark.parametrize(
    "limit", ["max_connections = 1", "max_connections_per_address = 1", "max_connection_rate = 0.001"]
)
async def test_connections(receiver, limit):
    receiver.scp = limit
    await receiver.start()
    async with receiver.associate() as scu:
        with pytest.raises((ConnectionLost, ConnectFailed)):
            await receiver.associate().__aenter__()
        await scu.echo()
    if "rate" in limit:
        return
    for acceptor in [each.server.acceptor for each in receiver.gateway.assembly.dicom]:
        for association in acceptor._connections.copy():
            await association.wait_closed()
    async with receiver.associate() as scu:
        await scu.echo()


def test_four_connections_for_each_association_unless_it_is_said():
    assert acceptor_limits(DicomScpOptions(max_associations=10)).maximum_connections == 40
    assert acceptor_limits(DicomScpOptions(max_associations=10, max_connections=11)).maximum_connections == 11
