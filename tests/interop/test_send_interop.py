"""`python -m harmony send` towards other toolkits: DCMTK's storescp and dcmqrscp, Orthanc.

What they take of pydicom's sample files they hold byte for byte, or as another native transfer syntax.
"""

import json
import shutil
import subprocess
import sys
import urllib.request

import pydicom
import pytest

pytestmark = pytest.mark.interop

IMPLICIT = "1.2.840.10008.1.2"
IMAGES = "1.2.840.10008.5.1.4.1.1."


@pytest.fixture
def samples(pydicom_files, data_sets, tmp_path):
    """A folder with samples of images that say in their file meta who they are, and their data sets by that UID."""
    folder = tmp_path / "samples"
    folder.mkdir()
    chosen = {}
    for number, sample in enumerate(pydicom_files):
        ((uid, data_set),) = data_sets([sample.path]).items()
        if sample.sop_class_uid.startswith(IMAGES) and uid == sample.sop_instance_uid and uid not in chosen:
            chosen[uid] = even(data_set)
            shutil.copy(sample.path, folder / str(number))
    return folder, chosen


def even(data_set):
    """As it has to be sent (PS3.5 §A.5): one deflated sample is not."""
    return data_set + b"\0" * (len(data_set) % 2)


@pytest.fixture
def send():
    """send(port, title, folder, ...): the exit status and the output of the command."""

    def run(port, title, folder, *options):
        finished = subprocess.run(
            [sys.executable, "-m", "harmony", "send", "127.0.0.1", str(port), str(folder), "--aec", title,
             *map(str, options)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )  # fmt: skip
        return finished.returncode, finished.stdout + finished.stderr

    return run


def test_storescp_takes_it_all(start_storescp, send, samples, data_sets):
    folder, chosen = samples
    peer = start_storescp("--fork", env={"TCP_NODELAY": "1"})
    status, printed = send(peer.port, peer.ae_title, folder, "--associations", 3)
    assert status == 0, printed
    assert f"{len(chosen)} of {len(chosen)} stored" in printed
    assert {uid: even(data) for uid, data in data_sets(peer.received()).items()} == chosen


def test_a_storescp_that_serves_one_association_at_a_time(start_storescp, send, samples):
    folder, chosen = samples
    peer = start_storescp()
    status, printed = send(peer.port, peer.ae_title, folder, "--associations", 4)
    assert status == 0, printed
    assert len(peer.received()) == len(chosen)


def test_storescp_that_takes_implicit_vr_only(start_storescp, send, ct_file, tmp_path):
    folder = tmp_path / "ct"
    folder.mkdir()
    for number in (1, 2, 3):
        ct_file(number).rename(folder / str(number))
    peer = start_storescp("+xi")
    status, printed = send(peer.port, peer.ae_title, folder)
    assert status == 0, printed
    assert "3 sent in another transfer syntax than stored" in printed
    for path in peer.received():
        stored = pydicom.dcmread(path)
        assert stored.file_meta.TransferSyntaxUID == IMPLICIT
        original = pydicom.dcmread(folder / str(stored.InstanceNumber))
        assert stored.PatientName == original.PatientName
        assert stored.PixelData == original.PixelData
    status, printed = send(peer.port, peer.ae_title, folder, "--as-stored")
    assert status == 1
    assert "0 of 3 stored" in printed


def test_dcmqrscp(start_dcmqrscp, send, ct_file, tmp_path, run_tool):
    # One association: with several at a time into one series its index lacks some of what it has acknowledged.
    folder = tmp_path / "ct"
    folder.mkdir()
    for number in range(1, 11):
        ct_file(number).rename(folder / str(number))
    port = start_dcmqrscp({})
    status, printed = send(port, "ARCHIVE", folder, "--window", 4, "--associations", 1)
    assert status == 0, printed
    found = run_tool(
        "findscu", "-S", "-aec", "ARCHIVE", "-k", "0008,0052=IMAGE", "-k", "0020,000D=1.2.3.4.5",
        "-k", "0020,000E=1.2.3.4.5.1", "-k", "0008,0018", "127.0.0.1", port,
    )  # fmt: skip
    found = {
        line for line in found.stdout.splitlines() if "SOPInstanceUID" in line and "1.2.3.4.5.1." in line
    }
    assert len(found) == 10


def test_dcmqrscp_does_not_know_the_title(start_dcmqrscp, send, ct_file, tmp_path):
    port = start_dcmqrscp({})
    status, printed = send(port, "NOBODY", ct_file(1), "--retries", 0)
    assert status == 1
    assert "association rejected" in printed


def test_orthanc(start_orthanc, send, pydicom_files, ct_file, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(1, 6):
        ct_file(number).rename(folder / str(number))
    for sample in pydicom_files:
        if sample.path.name in ("CT_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "image_dfl.dcm"):
            shutil.copy(sample.path, folder)
    peer = start_orthanc()
    status, printed = send(peer.port, peer.ae_title, folder, "--associations", 2)
    assert status == 0, printed
    with urllib.request.urlopen(f"http://127.0.0.1:{peer.http_port}/statistics", timeout=10) as answer:
        assert json.load(answer)["CountInstances"] == 9
    assert "9 of 9 stored" in printed
