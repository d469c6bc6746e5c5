"""Free space on real file systems: refused before they are full, and not a moment longer than that."""

import errno
import subprocess

import pytest

from harmony.archive.free_space import CHECK_BYTES, MINIMUM_FREE_FILES, FreeSpace

MIB = 1 << 20
DISK_BYTES = 64 * MIB


@pytest.fixture
def disk(tmp_path):
    """A file system of DISK_BYTES with room for fifty files more than the minimum."""
    path = tmp_path / "disk"
    path.mkdir()
    options = f"size={DISK_BYTES},nr_inodes={MINIMUM_FREE_FILES + 50}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here (it takes root): {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_what_is_written_counts_before_the_system_is_asked_again(disk):
    space = FreeSpace(disk, minimum_free_bytes=DISK_BYTES - 4 * MIB)
    assert [space.shortage(MIB) for _ in range(4)] == [None] * 4
    assert space.shortage(MIB) == f"less than {DISK_BYTES - 4 * MIB} bytes would be free"
    assert space.shortage_now(3 * MIB) is None  # nothing has been written in fact
    assert space.shortage_now(5 * MIB) is not None


def test_full_and_not_full_again(disk):
    space = FreeSpace(disk, minimum_free_bytes=40 * MIB)
    (disk / "filler").write_bytes(bytes(30 * MIB))
    with pytest.raises(OSError, match="less than 41943040 bytes would be free") as full:
        space.require(1)
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="less than 41943040 bytes are free"):
        space.require_now()
    (disk / "filler").unlink()
    space.require_now()
    space.require(CHECK_BYTES)  # so much that it asks again


def test_too_few_files_can_be_made(disk):
    space = FreeSpace(disk, minimum_free_bytes=1)
    assert space.shortage_now() is None
    for number in range(60):
        (disk / str(number)).touch()
    assert space.shortage_now() == f"fewer than {MINIMUM_FREE_FILES} files can be made"
    for number in range(60):
        (disk / str(number)).unlink()
    assert space.shortage_now() is None


def test_without_a_minimum_the_disk_decides(disk):
    space = FreeSpace(disk, minimum_free_bytes=0)
    assert space.shortage(2 * DISK_BYTES) is None
    assert space.shortage_now(2 * DISK_BYTES) is None


def test_a_file_system_that_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError):
        FreeSpace(tmp_path / "gone", minimum_free_bytes=1).require_now()
