"""README.md says what is so: its first session, its program, its table; and links in all documents lead somewhere."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest

from harmony.gateway.app import Gateway
from harmony.gateway.default_config import DEFAULT_CONFIG
from harmony.gateway.greeting import greeting
from harmony.gateway.loading import load
from harmony.gateway.options import SUPPORTED

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

PROGRAM_TIMEOUT_S = 60


def blocks(language):
    return [text for name, text in BLOCK.findall(README.read_text()) if name == language]


@pytest.fixture
async def embedded_default(tmp_path, free_ports):
    """The gateway that runs when none is configured, with ports and a folder of its own: (gateway, localized).

    localized(text) puts those ports and that folder into a text of the README.
    """
    ports = dict(zip(("11112", "8042"), map(str, free_ports(2)), strict=True))
    folder = tmp_path / "harmony-data"

    def localized(text):
        for port, free in ports.items():
            text = text.replace(port, free)
        return text.replace("data under harmony-data", f"data under {folder}")

    config = tmp_path / "config.toml"
    config.write_text(localized(DEFAULT_CONFIG).replace("./harmony-data", str(folder)))
    gateway = Gateway(load(config, env={}))
    await gateway.start()
    yield gateway, localized
    await gateway.stop()


async def test_greeting_of_the_first_session(embedded_default):
    gateway, localized = embedded_default
    (session,) = (text for text in blocks("console") if text.startswith("$ make run\n"))
    assert greeting(gateway) == localized(session).splitlines()[1:]


async def test_program_sends_to_the_embedded_default(embedded_default, tmp_path, pydicom_files):
    _, localized = embedded_default
    (program,) = blocks("python")
    images = tmp_path / "images" / "series"
    images.mkdir(parents=True)
    sent = [sample for sample in pydicom_files if sample.path.name in ("CT_small.dcm", "JPEG2000.dcm")]
    for sample in sent:
        shutil.copy(sample.path, images)

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        localized(program),
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PROGRAM_TIMEOUT_S):
        output, errors = await process.communicate()

    assert process.returncode == 0, errors.decode()
    paths = [f"images/series/{sample.path.name}" for sample in sent]
    assert output.decode().splitlines() == [f"{path} 0x0000 Success" for path in paths]
    received = {path.stem for path in (tmp_path / "harmony-data" / "dimse").glob("*/*/*.dcm")}
    assert received == {sample.sop_instance_uid for sample in sent}


def test_table_of_what_is_there():
    _, text = README.read_text().split("\n## What is there\n")
    now = [row.split("|")[2] for row in text.split("\n## ")[0].splitlines() if row.startswith("|")]
    assert set(re.findall(r"`(\w+)`", "".join(now))) == {name for _, name in SUPPORTED}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    targets = [link.partition("#")[0] for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [target for target in targets if target and not (document.parent / target).exists()] == []
