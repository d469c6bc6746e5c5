"""Real `python -m harmony` processes for tests: started, killed, limited, measured, and what they left on the disk.

Used by tests/system and tests/faults. Objects are made from their number, so that what was stored can be compared
without being kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from harmony.dimse import Instance
from harmony.dimse.part10 import read_file_meta
from harmony.jmix.outbox import Outbox, State

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
ROOT = Path(__file__).parents[2]
START_S = 20.0
DELIVERY_S = 60.0


def element(tag: int, value: bytes) -> bytes:
    """Implicit VR Little Endian (PS3.5 §7.1.3)."""
    return (
        (tag >> 16).to_bytes(2, "little")
        + (tag & 0xFFFF).to_bytes(2, "little")
        + len(value).to_bytes(4, "little")
        + value
    )


def uid(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


def make_instance(number: int, *, study: str, size_bytes: int) -> Instance:
    """A CT image of random pixels."""
    sop_instance_uid = f"1.2.3.{number}"
    data = b"".join(
        (
            element(0x00080016, uid(CT)),
            element(0x00080018, uid(sop_instance_uid)),
            element(0x0020000D, uid(study)),
            element(0x0020000E, uid(study + ".1")),
            element(0x7FE00010, random.Random(number).randbytes(size_bytes)),
        )
    )
    return Instance(CT, sop_instance_uid, IMPLICIT, data)


class Issued(Protocol):
    """A certificate and its key, each in a file."""

    @property
    def certificate(self) -> Path: ...

    @property
    def key(self) -> Path: ...


def command(config: Path) -> list[str]:
    """Starts a gateway; it writes its greeting when it listens."""
    return [sys.executable, "-m", "harmony", "--config", str(config)]


def memory_bytes(pid: int, name: str = "VmRSS") -> int:
    """Of a process. name: as /proc has it; VmHWM is the most there has been."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (each for each in status if each.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to: the names of files, and `socket` for each of those."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = os.readlink(path)
            found.append("socket" if name.startswith("socket:") else name)
    return sorted(found)


def beginning(proxy_id: str, storage: Path, *, log_level: str = "info") -> str:
    """The first tables of a configuration."""
    return f"""
[proxy]
id = "{proxy_id}"
log_level = "{log_level}"
[storage.options]
path = "{storage}"
"""


def listener(network: str, kind: str, port: int, issued: Issued | None = None) -> str:
    """A table of a configuration. kind: dicom or http. issued: over TLS."""
    table = f"""
[network.{network}.{kind}]
bind_address = "127.0.0.1"
bind_port = {port}
"""
    if issued is not None:
        table += f'cert_path = "{issued.certificate}"\nkey_path = "{issued.key}"\n'
    return table


class Process:
    """One `python -m harmony`, started as often as it is killed."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.log = folder / "harmony.log"
        folder.mkdir(exist_ok=True)
        self.config.write_text(config)
        self.environment: dict[str, str] = {}
        """Added to ours at the next start."""
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Return the first line of its greeting, which comes when it listens."""
        with open(self.log, "ab") as log:  # noqa: ASYNC230 - a test may block
            self.process = await asyncio.create_subprocess_exec(
                *command(self.config),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONUNBUFFERED": "1"} | self.environment,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_S):
            line = (await self.process.stdout.readline()).decode()
        assert line, self.log.read_text()
        return line

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        """The exit status."""
        assert self.process is not None
        assert self.process.stdout is not None
        await self.process.stdout.read()
        return await self.process.wait()

    async def restart(self) -> None:
        """After a kill."""
        await self.wait()
        await self.start()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def rss_bytes(self) -> int:
        """Resident memory, VmRSS of /proc."""
        return memory_bytes(self.pid)

    @property
    def open_files(self) -> list[str]:
        """What its descriptors lead to."""
        return open_files(self.pid)

    def limit(self, what: int, value: int) -> None:
        """Set a soft limit (`resource.RLIMIT_…`) of the running process."""
        _, hard = resource.prlimit(self.pid, what)
        resource.prlimit(self.pid, what, (value, hard))


class Gateway(Process):
    """Receives on `port`, delivers to an upstream."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        upstream_port: int,
        storage: Path | None = None,
        scp: str = "",
        builder: str = "",
        upstream: str = "",
    ) -> None:
        self.port = port
        self.storage = storage or folder / "storage"
        super().__init__(
            folder,
            beginning("gateway", self.storage)
            + listener("n", "dicom", port)
            + f"""
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp"]
            middleware = ["jmix_builder"]
            backends = ["up"]
            [endpoints.scp]
            service = "dicom_scp"
            [endpoints.scp.options]
            local_aet = "GATEWAY"
            {"" if "min_free_bytes" in scp else "min_free_bytes = 0"}
            {scp}
            [middleware.jmix_builder.options]
            {builder}
            [backends.up]
            service = "jmix_backend"
            connection.host = "127.0.0.1"
            connection.port = {upstream_port}
            [backends.up.options]
            retry_backoff_secs = 0.05
            retry_backoff_max_secs = 0.2
            {upstream}
            """,
        )

    @property
    def outbox_path(self) -> Path:
        return self.storage / "jmix-builder" / "p" / "outbox.sqlite"

    @property
    def is_idle(self) -> bool:
        """Nothing is to be built or to be delivered."""
        if list((self.storage / "jmix-builder" / "p" / "journals").iterdir()):
            return False
        outbox = Outbox.inspect(self.outbox_path)
        try:
            counts = outbox.counts()
        finally:
            outbox.close()
        return not counts[State.PENDING] and not counts[State.IN_PROGRESS]

    async def until_idle(self) -> None:
        async with asyncio.timeout(DELIVERY_S):
            while not self.is_idle:  # noqa: ASYNC110 - there is nothing else in another process to wait for
                await asyncio.sleep(0.02)

    def received(self) -> Iterator[tuple[str, bytes]]:
        """SOP Instance UID and data set of every file under its final name."""
        return received(self.storage / "dimse")


class Archive(Process):
    """Receives on `port`, and serves what it has over DICOMweb on `http_port`; both plain, and with a certificate both
    over TLS as well, on ports of their own."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        http_port: int,
        storage: Path | None = None,
        scp: str = "",
        more: str = "",
        networks: str = "",
        endpoints: str = "",
        log_level: str = "info",
    ) -> None:
        """more: tables added at the end. networks, endpoints: of the pipeline, as `, "a", "b"`."""
        self.port = port
        self.http_port = http_port
        self.storage = storage or folder / "storage"
        super().__init__(
            folder,
            beginning("archive", self.storage, log_level=log_level)
            + listener("lan", "dicom", port)
            + listener("lan", "http", http_port)
            + f"""
            [pipelines.archive]
            networks = ["lan"{networks}]
            endpoints = ["scp", "web"{endpoints}]
            [endpoints.web]
            service = "dicomweb"
            options.path_prefix = "/dicom-web"
            [endpoints.scp]
            service = "dicom_scp"
            [endpoints.scp.options]
            local_aet = "GATEWAY"
            min_free_bytes = 0
            {scp}
            {more}
            """,
        )

    @property
    def root(self) -> Path:
        return self.storage / "dimse"

    @property
    def descriptors(self) -> int:
        """How many are open. Those of the index's connections, of which it keeps as many as there were queries at a
        time, do not count."""
        return sum("/index.sqlite" not in name for name in self.open_files)


class Upstream(Process):
    """A second Harmony that keeps what it is sent."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.storage = folder / "storage"
        super().__init__(
            folder,
            beginning("upstream", self.storage)
            + listener("n", "http", port)
            + """
            [pipelines.p]
            networks = ["n"]
            endpoints = ["jmix"]
            [endpoints.jmix]
            service = "jmix"
            options.path_prefix = "/"
            """,
        )

    def objects(self) -> Iterator[tuple[str, str, bytes]]:
        """Envelope, SOP Instance UID and data set of every object of every envelope."""
        for path in (self.storage / "jmix-store").glob("*/*.zip"):
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
                for name in archive.namelist():
                    if name.endswith(".dcm"):
                        content = archive.read(name)
                        meta = read_file_meta(content)
                        yield (
                            path.stem,
                            meta.media_storage_sop_instance_uid,
                            content[meta.data_set_offset :],
                        )


def received(root: Path) -> Iterator[tuple[str, bytes]]:
    """SOP Instance UID and data set of every file under its final name in an archive's folder."""
    for path in root.glob("[!.]*/*/*"):
        content = path.read_bytes()
        meta = read_file_meta(content)
        assert path.name == meta.media_storage_sop_instance_uid + ".dcm"
        yield meta.media_storage_sop_instance_uid, content[meta.data_set_offset :]
