"""The gateway's examples: their configurations are good, and the demonstration does what it says."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DEMO = EXAMPLES / "dicom-to-jmix" / "demo.sh"
CONFIGURATIONS = sorted([*EXAMPLES.glob("*/config.toml"), *EXAMPLES.glob("*/upstream.toml")])

DEMO_TIMEOUT_S = 100  # it takes three seconds; its own limits add up to more
STOP_TIMEOUT_S = 10


def environment(**changes):
    """Without what the examples take from the environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HARMONY_", "JMIX_"))}
    return kept | {"PYTHON": sys.executable} | changes


def run_demo(folder, *arguments, **changes):
    """Run demo.sh in `folder`, with its temporary folder there too; its exit status and all that it said."""
    demo = subprocess.Popen(
        [DEMO, *arguments],
        cwd=folder,
        env=environment(TMPDIR=str(folder), **changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = demo.communicate(timeout=DEMO_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(demo.pid, signal.SIGTERM)
        output, _ = demo.communicate(timeout=STOP_TIMEOUT_S)
        pytest.fail(f"demo.sh took more than {DEMO_TIMEOUT_S} s:\n{output}")
    return demo.returncode, output


@pytest.fixture
def demo_peers(require_peer):
    for name in ("echoscu", "storescu", "curl", "unzip", "sha256sum"):
        require_peer(name)


@pytest.mark.interop
@pytest.mark.usefixtures("demo_peers")
def test_demo_passes_and_leaves_nothing(tmp_path):
    status, output = run_demo(tmp_path)
    assert status == 0, output
    assert output.splitlines()[-1] == "demo passed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.interop
@pytest.mark.usefixtures("demo_peers")
def test_demo_notices_a_data_set_that_is_not_the_one_sent_and_keeps_its_folder(tmp_path):
    # Stands between demo.sh and Python: one byte more in a file that was sent, before it is compared.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = check ]; then printf x >>"$3/series-1/image-1.dcm"; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    status, output = run_demo(tmp_path, "--keep", PYTHON=str(python))
    assert status == 1
    assert "is not what was sent" in output
    assert "--- gateway.log, the last lines" in output
    assert output.splitlines()[-1] == "demo failed"
    (kept,) = tmp_path.glob("harmony-demo.*")
    assert f"\nkept: {kept}\n" in output
    assert len(list(kept.glob("first-envelope/content/payload/series_*/*.dcm"))) == 5


@pytest.mark.parametrize(("arguments", "python"), [(["--fast"], sys.executable), ([], "/bin/false")])
def test_demo_that_cannot_start_fails(tmp_path, arguments, python):
    status, output = run_demo(tmp_path, *arguments, PYTHON=python)
    assert status == 1
    assert output.splitlines()[-1] == "demo failed"
    assert list(tmp_path.iterdir()) == []


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
    assert folders >= {"dicom-to-jmix", "embedding"}
    index = (EXAMPLES / "README.md").read_text()
    assert [name for name in sorted(folders) if f"| [{name}](" not in index] == []
