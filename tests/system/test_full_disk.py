"""A disk that is full: A700, the association lives on, and it goes on when there is room again."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harmony.dimse import associate
from harmony.dimse.status import DimseError
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
OUT_OF_RESOURCES = 0xA700

DISK_BYTES = 24 << 20
FILLER_BYTES = 16 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here (it takes root): {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def filler(small_disk: Path) -> Path:
    """A file that takes most of the disk; removing it makes room."""
    path = small_disk / "filler"
    path.write_bytes(bytes(FILLER_BYTES))
    return path


def open_association(gateway):
    return associate(
        "127.0.0.1",
        gateway.port,
        called_ae_title="GATEWAY",
        contexts=propose_contexts([(CT, [IMPLICIT]), (VERIFICATION, [IMPLICIT])]),
    )


async def send_until_full(scu, instances) -> tuple[list, list]:
    """Those that were acknowledged, and the rest; the first of the rest was refused."""
    for number, instance in enumerate(instances):
        try:
            await scu.store(instance)
        except DimseError as error:
            if error.status != OUT_OF_RESOURCES:
                raise
            return instances[:number], instances[number:]
    raise AssertionError("the disk is not full")


def assert_complete(gateway, acknowledged) -> None:
    assert dict(gateway.received()) == {each.sop_instance_uid: each.data for each in acknowledged}
    incoming = gateway.storage / "dimse" / ".incoming"
    assert os.listdir(incoming) == []


def delivered(upstream) -> list[tuple[str, bytes]]:
    return sorted((uid, data) for _, uid, data in upstream.objects())


def all_of(instances) -> list[tuple[str, bytes]]:
    return sorted((each.sop_instance_uid, each.data) for each in instances)


async def start_both(tmp_path, small_disk, ports, make_gateway, make_upstream, processes, **options):
    upstream = make_upstream(tmp_path / "upstream", port=ports[1])
    gateway = make_gateway(
        tmp_path / "gateway", port=ports[0], upstream_port=ports[1], storage=small_disk / "storage", **options
    )
    processes += [gateway, upstream]
    await upstream.start()
    await gateway.start()
    return gateway, upstream


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_r28_full_and_not_full_again(
    durability,
    tmp_path,
    small_disk,
    filler,
    free_ports,
    processes,
    instances,
    make_gateway,
    make_upstream,
):
    gateway, upstream = await start_both(
        tmp_path,
        small_disk,
        free_ports(2),
        make_gateway,
        make_upstream,
        processes,
        scp=f'durability = "{durability}"',
        builder="quiet_time_secs = 3600",
    )
    async with open_association(gateway) as scu:
        acknowledged, rest = await send_until_full(scu, instances(120, smallest=100_000, largest=100_000))
        assert len(acknowledged) > 40
        with pytest.raises(DimseError) as refused:  # the association is alive, and the disk is still full
            await scu.store(rest[0])
        assert refused.value.status == OUT_OF_RESOURCES
        await scu.echo()
        assert_complete(gateway, acknowledged)
        filler.unlink()
        for instance in rest[:3]:
            assert (await scu.store(instance)).status == 0x0000
    await gateway.until_idle()
    assert_complete(gateway, acknowledged + rest[:3])
    assert delivered(upstream) == all_of(acknowledged + rest[:3])


async def test_full_while_an_association_breaks_and_the_gateway_is_killed(
    tmp_path, small_disk, filler, free_ports, processes, instances, make_gateway, make_upstream
):
    """Journals and the outbox cannot be written any more; what they hold must stay right."""
    gateway, upstream = await start_both(
        tmp_path, small_disk, free_ports(2), make_gateway, make_upstream, processes
    )
    async with open_association(gateway) as scu:
        acknowledged, rest = await send_until_full(scu, instances(200, smallest=2_500, largest=100_000))
        take_the_rest(small_disk)
        scu.association.abort()
    async with open_association(gateway) as scu:  # the others are served as before
        await scu.echo()
        with pytest.raises(DimseError) as refused:
            await scu.store(rest[0])
        assert refused.value.status == OUT_OF_RESOURCES
    gateway.kill()
    await gateway.wait()
    assert_complete_but_for_temporaries(gateway, acknowledged)
    filler.unlink()
    (small_disk / "rest").unlink()
    await gateway.start()
    async with open_association(gateway) as scu:
        await scu.store(acknowledged[-1])  # whose answer it has forgotten
        await scu.store(rest[0])
    await gateway.until_idle()
    assert_complete(gateway, [*acknowledged, rest[0]])
    assert delivered(upstream) == all_of([*acknowledged, rest[0]])


def take_the_rest(disk: Path) -> None:
    """To the last byte."""
    with open(disk / "rest", "wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass


def assert_complete_but_for_temporaries(gateway, acknowledged) -> None:
    """SIGKILL may leave these, under names that nobody looks for."""
    assert dict(gateway.received()) == {each.sop_instance_uid: each.data for each in acknowledged}


async def test_minimum_of_free_space(
    tmp_path, small_disk, filler, free_ports, processes, instances, make_gateway, make_upstream
):
    gateway, upstream = await start_both(
        tmp_path,
        small_disk,
        free_ports(2),
        make_gateway,
        make_upstream,
        processes,
        scp=f"min_free_bytes = {5 << 20}",
    )
    async with open_association(gateway) as scu:
        acknowledged, _ = await send_until_full(scu, instances(120, smallest=100_000, largest=100_000))
    assert 20 < len(acknowledged) < 32  # 3 MB; the disk has room for 8
    await gateway.until_idle()  # there was room for the envelopes
    assert_complete(gateway, acknowledged)
    assert delivered(upstream) == all_of(acknowledged)


async def test_start_on_a_full_disk_says_so(
    tmp_path, small_disk, free_ports, processes, make_gateway, instances
):
    ports = free_ports(2)
    gateway = make_gateway(
        tmp_path / "gateway", port=ports[0], upstream_port=ports[1], storage=small_disk / "storage"
    )
    processes.append(gateway)
    take_the_rest(small_disk)
    with pytest.raises(AssertionError, match=r"cannot start: .*(disk|space)"):
        await gateway.start()
    assert await gateway.wait() == 1
    assert "Traceback" not in gateway.log.read_text()
    (small_disk / "rest").unlink()
    await gateway.start()
    async with asyncio.timeout(10), open_association(gateway) as scu:
        assert (await scu.store(instances(1)[0])).status == 0x0000
