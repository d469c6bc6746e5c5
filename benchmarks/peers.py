"""The receivers, and how each is started: its command, its environment, where its objects land.

Every receiver listens on 127.0.0.1, stores each object as one file, and runs with the defaults that it is installed
with, except where its title says otherwise. DCMTK appears three times: as installed (Nagle's algorithm on, and its
responses leave in two writes, so that every object waits for a delayed ACK), with TCP_NODELAY=1, its best, and as
one process per association. Harmony's command line and configuration are in one place, `harmony`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

READY_TIMEOUT_S = 30.0
CALLED_AE_TITLE = "BENCHMARK"
DESTINATION_AE_TITLE = "DESTINATION"
WEB_ROOT = "/dicom-web"


class PeerError(Exception):
    """A receiver or sender is missing, does not start or does not end as it should."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a receiver is to listen and to store."""

    port: int
    folder: Path  # for objects, and nothing else
    scratch: Path  # for its configuration and its log
    maximum_length: int | None  # None: the receiver's own default
    destination_port: int = 0  # of the C-MOVE destination DESTINATION, for archives
    http_port: int = 0  # for DICOMweb, below WEB_ROOT; 0: without


@dataclass(frozen=True, slots=True)
class Receiver:
    """A storage SCP that can be started."""

    name: str
    title: str
    command: Callable[[Place], list[str]]
    env: dict[str, str] = field(default_factory=dict)
    pattern: str = "*"  # of the files in Place.folder that are objects
    forks: bool = False  # CPU and memory are those of a process tree
    slow_answers: bool = False  # tens of milliseconds for each object; rounds have fewer of them
    most_associations: int | None = None  # its own limit, not configurable on its command line

    def missing(self) -> str | None:
        """What would have to be installed first, or None."""
        if self.name.startswith("dcmtk"):
            return None if program("storescp") else "DCMTK's storescp"
        if self.name == "pynetdicom":
            return None if find_spec("pynetdicom") else "the Python package pynetdicom"
        if self.name.startswith("harmony"):
            return None if (Path(__file__).parent.parent / "harmony" / "__main__.py").exists() else "Harmony"
        return None


def program(name: str, *elsewhere: str) -> str | None:
    """The path of an installed program; not the one of the same name in this virtual environment (pynetdicom's).

    elsewhere: folders to look in after those on the PATH.
    """
    own = Path(sys.executable).absolute().parent
    folders = [part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part]
    folders += elsewhere
    return shutil.which(name, path=os.pathsep.join(part for part in folders if Path(part).absolute() != own))


def _storescp(*options: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        pdu = ["-pdu", str(place.maximum_length)] if place.maximum_length else []
        folder = ["-od", str(place.folder)]
        return [program("storescp") or "storescp", "+B", "-dhl", *options, *pdu, *folder, str(place.port)]

    return command


def _pynetdicom(place: Place) -> list[str]:
    pdu = ["-pdu", str(place.maximum_length)] if place.maximum_length else []
    folder = ["-ba", "127.0.0.1", "-od", str(place.folder)]
    return [sys.executable, "-m", "pynetdicom", "storescp", str(place.port), "-q", *pdu, *folder]


def _floor(place: Place) -> list[str]:
    pdu = ["--max-pdu", str(place.maximum_length)] if place.maximum_length else []
    return [sys.executable, "-m", "benchmarks.floor", str(place.port), "--folder", str(place.folder), *pdu]


HARMONY_CONFIGURATION = """\
workers = {workers}

[proxy]
name = "benchmark"
pipelines_path = "{scratch}/pipelines"

[logging]
log_level = "warn"

[storage]
backend = "filesystem"

[storage.options]
path = "{folder}"

[network.default.http]
bind_address = "127.0.0.1"
bind_port = {http_port}

[pipelines.receive]
description = "Store what comes in; nothing behind it"
networks = ["default"]
endpoints = ["receiver"]
middleware = []
backends = []

[endpoints.receiver]
service = "dicom_scp"

[endpoints.receiver.options]
local_aet = "{ae_title}"
bind_addr = "127.0.0.1"
port = {port}
enable_echo = true
enable_store = true
index = {index}
{max_pdu}

[endpoints.receiver.options.aet_table.{destination_ae_title}]
host = "127.0.0.1"
port = {destination_port}
"""

WEB_CONFIGURATION = f"""\

[pipelines.web]
description = "The same over DICOMweb"
networks = ["default"]
endpoints = ["web"]
middleware = []
backends = [{{backends}}]

[endpoints.web]
service = "dicomweb"

[endpoints.web.options]
path_prefix = "{WEB_ROOT}"
"""


MANAGEMENT_CONFIGURATION = """\

[management]
enabled = true
network = "default"
"""
"""With it there are metrics, on Place.http_port."""


def harmony(
    *, index: bool = True, workers: int = 1, options: str = "", more: str = ""
) -> Callable[[Place], list[str]]:
    """The command of a gateway that keeps what it receives.

    options: more of the endpoint, a line each. more: configuration behind the rest.
    """

    def command(place: Place) -> list[str]:
        (place.scratch / "pipelines").mkdir(exist_ok=True)
        configuration = place.scratch / "config.toml"
        max_pdu = f"max_pdu = {place.maximum_length}" if place.maximum_length else ""
        text = HARMONY_CONFIGURATION.format(
            scratch=place.scratch,
            folder=place.folder,
            port=place.port,
            http_port=place.http_port or free_port(),
            ae_title=CALLED_AE_TITLE,
            index=str(index).lower(),
            workers=workers,
            max_pdu=f"{max_pdu}\n{options}",
            destination_ae_title=DESTINATION_AE_TITLE,
            destination_port=place.destination_port or 104,
        )
        web = WEB_CONFIGURATION.format(backends="") if place.http_port else ""
        configuration.write_text(text + web + more)
        return [sys.executable, "-m", "harmony", "--config", str(configuration)]

    return command


RECEIVERS = {
    receiver.name: receiver
    for receiver in (
        Receiver("harmony", "Harmony", harmony(), pattern="**/*.dcm"),
        Receiver("harmony-no-index", "Harmony, index = false", harmony(index=False), pattern="**/*.dcm"),
        Receiver(
            "harmony-workers", "Harmony, workers = 2", harmony(workers=2), pattern="**/*.dcm", forks=True
        ),
        Receiver("dcmtk", "DCMTK storescp +B, as installed", _storescp(), slow_answers=True),
        Receiver("dcmtk-nodelay", "DCMTK storescp +B, TCP_NODELAY=1", _storescp(), env={"TCP_NODELAY": "1"}),
        Receiver(
            "dcmtk-fork",
            "DCMTK storescp --fork +B, TCP_NODELAY=1",
            _storescp("--fork"),
            env={"TCP_NODELAY": "1"},
            forks=True,
        ),
        # pynetdicom's AE takes ten associations at a time; its storescp has no option for it.
        Receiver("pynetdicom", "pynetdicom storescp", _pynetdicom, most_associations=10),
        Receiver("floor", "floor: the least Python can do", _floor, pattern="*.dcm"),
    )
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def running(receiver: Receiver, place: Place, env: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run a receiver while the block lasts; yields its process id once it accepts connections.

    env: besides the receiver's own.
    """
    log = place.scratch / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            receiver.command(place),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **receiver.env, **(env or {})},
            start_new_session=True,  # its children end with it
        )
    try:
        _wait_until_listening(receiver, process, place.port, log)
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_listening(
    receiver: Receiver, process: "subprocess.Popen[bytes]", port: int, log: Path
) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        try:
            status = process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        printed = log.read_text(errors="replace")[-2000:]
        raise PeerError(f"{receiver.name} ended with {status} before it listened:\n{printed}")
    printed = log.read_text(errors="replace")[-2000:]
    raise PeerError(f"{receiver.name} does not listen after {READY_TIMEOUT_S} s:\n{printed}")
