"""The gateway's examples: their configurations are good, and the demonstrations do what they say."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CONFIGURATIONS = sorted(EXAMPLES.glob("*/*.toml"))

DCMTK = ("echoscu", "storescu", "findscu", "getscu", "movescu", "storescp")
DEMONSTRATIONS = {
    "dicom-backend": ("Orthanc", "curl"),
    "dicom-scp": (*DCMTK, "Orthanc", "curl"),
    "dicom-to-dicomweb": (*DCMTK, "Orthanc", "curl"),
    "dicom-to-jmix": ("echoscu", "storescu", "curl", "unzip", "sha256sum"),
    "dicomweb": ("storescu", "Orthanc", "curl", "unzip"),
    "dimse-integration": ("echoscu", "storescu", "findscu", "getscu", "Orthanc", "curl"),
    "http-with-middleware": ("curl",),
    "jmix": ("storescu", "Orthanc", "curl", "unzip", "sha256sum"),
}
"""By the folder with its demo.sh: the programs that it needs."""

DEMO_TIMEOUT_S = 100  # they take a few seconds; their own limits add up to more
STOP_TIMEOUT_S = 10


def environment(**changes):
    """Without what the examples take from the environment."""
    taken = ("HARMONY_", "JMIX_", "ORTHANC_", "DEST_", "BACKEND_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    return kept | {"PYTHON": sys.executable} | changes


def start_demo(folder, name, *arguments, **changes):
    return subprocess.Popen(
        [EXAMPLES / name / "demo.sh", *arguments],
        cwd=folder,
        env=environment(TMPDIR=str(folder), **changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_demo(folder, name, *arguments, **changes):
    """Run a demo.sh in `folder`, with its temporary folder there too; its exit status and all that it said."""
    demo = start_demo(folder, name, *arguments, **changes)
    try:
        output, _ = demo.communicate(timeout=DEMO_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(demo.pid, signal.SIGTERM)
        output, _ = demo.communicate(timeout=STOP_TIMEOUT_S)
        pytest.fail(f"{name}/demo.sh took more than {DEMO_TIMEOUT_S} s:\n{output}")
    return demo.returncode, output


@pytest.fixture
def require_programs_of(require_peer):
    """require_programs_of(demonstration)"""

    def require(name):
        for program in DEMONSTRATIONS[name]:
            require_peer(program)

    return require


@pytest.mark.interop
@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demo_passes_and_leaves_nothing(tmp_path, require_programs_of, name):
    require_programs_of(name)
    status, output = run_demo(tmp_path, name, "--free-ports")
    assert status == 0, output
    assert output.splitlines()[-1] == "demo passed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.interop
def test_demo_notices_a_data_set_that_is_not_the_one_sent_and_keeps_its_folder(tmp_path, require_programs_of):
    require_programs_of("dicom-to-jmix")
    # Stands between demo.sh and Python: one byte more in a file that was sent, before it is compared.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = check ]; then printf x >>"$3/series-1/image-1.dcm"; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    status, output = run_demo(tmp_path, "dicom-to-jmix", "--free-ports", "--keep", PYTHON=str(python))
    assert status == 1
    assert "is not what was sent" in output
    assert "--- gateway.log, the last lines" in output
    assert output.splitlines()[-1] == "demo failed"
    (kept,) = tmp_path.glob("harmony-demo.*")
    assert f"\nkept: {kept}\n" in output
    assert len(list(kept.glob("first-envelope/content/payload/series_*/*.dcm"))) == 5


@pytest.mark.interop
def test_demo_that_is_interrupted_leaves_nothing(tmp_path, require_programs_of, free_port):
    require_programs_of("dicom-scp")
    demo = start_demo(tmp_path, "dicom-scp", HARMONY_DICOM_PORT=str(free_port))
    for line in demo.stdout:
        if line == "== C-STORE\n":
            break
    demo.terminate()
    output, _ = demo.communicate(timeout=DEMO_TIMEOUT_S)
    assert demo.returncode == 128 + signal.SIGTERM
    assert output.splitlines()[-1] == "demo failed"
    assert list(tmp_path.iterdir()) == []
    socket.create_server(("127.0.0.1", free_port)).close()


@pytest.mark.interop
def test_demo_goes_around_ports_in_use(tmp_path, require_programs_of):
    require_programs_of("dicom-to-jmix")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        status, output = run_demo(tmp_path, "dicom-to-jmix", HARMONY_DICOM_PORT=port)
    assert status == 0, output
    assert f"port {port} is in use; " in output


@pytest.mark.parametrize("name", DEMONSTRATIONS)
@pytest.mark.parametrize(("arguments", "python"), [(["--fast"], sys.executable), ([], "/bin/false")])
def test_demo_that_cannot_start_fails(tmp_path, name, arguments, python):
    status, output = run_demo(tmp_path, name, *arguments, PYTHON=python)
    assert status == 1
    assert output.splitlines()[-1] == "demo failed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demo_explains_itself(tmp_path, name):
    status, output = run_demo(tmp_path, name, "--help")
    assert status == 0
    assert f"\n  examples/{name}/demo.sh [--keep] [--free-ports]\n" in output
    assert "source" not in output


def run_multipart(*arguments):
    script = [sys.executable, EXAMPLES / "multipart.py", *arguments]
    return subprocess.run(script, capture_output=True, text=True, timeout=DEMO_TIMEOUT_S)


def test_multipart_packs_and_unpacks_byte_by_byte(tmp_path):
    (tmp_path / "first").write_bytes(b"\x00\r\n\r\n\xff\r\n")
    (tmp_path / "second").write_bytes(b"")
    body = tmp_path / "body"
    packed = run_multipart("pack", body, "b1", tmp_path / "first", tmp_path / "second")
    assert packed.returncode == 0, packed.stderr
    assert body.read_bytes() == (
        b"--b1\r\nContent-Type: application/dicom\r\n\r\n\x00\r\n\r\n\xff\r\n\r\n"
        b"--b1\r\nContent-Type: application/dicom\r\n\r\n\r\n"
        b"--b1--\r\n"
    )
    unpacked = run_multipart("unpack", body, tmp_path / "parts")
    assert (unpacked.returncode, unpacked.stdout) == (0, "2\n")
    assert (tmp_path / "parts" / "1").read_bytes() == b"\x00\r\n\r\n\xff\r\n"
    assert (tmp_path / "parts" / "2").read_bytes() == b""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"error":"Not found"}',
        b"--b1\r\n\r\none\r\n",
        b"--b1\r\n\r\none\r\n--b1\r\n\r\ntw",
    ],
)
def test_multipart_unpacks_nothing_of_half_a_body(tmp_path, body):
    (tmp_path / "body").write_bytes(body)
    unpacked = run_multipart("unpack", tmp_path / "body", tmp_path / "parts")
    assert unpacked.returncode == 1
    assert "is not a whole multipart body" in unpacked.stderr
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_configuration_is_good(path):
    check = subprocess.run(
        [sys.executable, "-m", "harmony", "--config", path, "--check"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
    )
    assert check.returncode == 0, check.stderr
    assert check.stdout.endswith("\nThe configuration is good.\n")
    assert "warnings" not in check.stdout


def test_every_example_is_in_the_index():
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and any(path.glob("*.*"))}
    assert folders == {"embedding", *DEMONSTRATIONS}
    index = (EXAMPLES / "README.md").read_text()
    assert [name for name in sorted(folders) if f"| [{name}](" not in index] == []
