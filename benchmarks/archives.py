"""The archives that are queried and retrieved from, and how each is started: Harmony, Orthanc, dcmqrscp, qrscp.

As with receivers, each has the defaults that it is installed with; limits on the amount of data are raised as far as
they go. DCMTK's dcmqrscp serves each association in a process of its own. pynetdicom's qrscp needs SQLAlchemy.
`NO_DELAY` in the environment turns Nagle's algorithm off in everything that is built on DCMTK; `dcmqrscp-nagle` has it
on all the same, as DCMTK is installed.

All of them answer to `CALLED_AE_TITLE` and know one C-MOVE destination, `DESTINATION_AE_TITLE` at
`Place.destination_port`.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.peers import (
    CALLED_AE_TITLE,
    DESTINATION_AE_TITLE,
    WEB_CONFIGURATION,
    WEB_ROOT,
    Place,
    Receiver,
    free_port,
    harmony,
    program,
)

NO_DELAY = {"TCP_NODELAY": "1"}

DCMQRSCP_STUDIES = 500
"""More it does not keep (DB_UpperMaxStudies): the oldest goes."""

ORTHANC_PATH = "/usr/sbin"
"""Where Debian has it, which is not on every user's PATH."""
ORTHANC_PLUGINS = "/usr/share/orthanc/plugins"


def _orthanc(place: Place) -> list[str]:
    configuration = {
        "Name": "Benchmark",
        "StorageDirectory": str(place.folder),
        "IndexDirectory": str(place.folder),
        "DicomAet": CALLED_AE_TITLE,
        "DicomPort": place.port,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {
            "destination": [DESTINATION_AE_TITLE, "127.0.0.1", place.destination_port or 104]
        },
        "HttpPort": place.http_port or free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    if place.http_port:
        configuration["Plugins"] = [str(path) for path in _dicomweb_plugin()]
        configuration["DicomWeb"] = {"Enable": True, "Root": f"{WEB_ROOT}/"}
    if place.maximum_length:
        configuration["MaximumPduLength"] = place.maximum_length
    file = place.scratch / "orthanc.json"
    file.write_text(json.dumps(configuration))
    return [program("Orthanc", ORTHANC_PATH) or "Orthanc", str(file)]


def _dicomweb_plugin() -> list[Path]:
    return sorted(Path(ORTHANC_PLUGINS).glob("libOrthancDicomWeb.*"))[:1]


def _dcmqrscp(place: Place) -> list[str]:
    file = place.scratch / "dcmqrscp.cfg"
    file.write_text(
        f"NetworkTCPPort = {place.port}\n"
        f"MaxPDUSize = {place.maximum_length or 16384}\n"
        "MaxAssociations = 16\n"
        "HostTable BEGIN\n"
        f"destination = ({DESTINATION_AE_TITLE}, 127.0.0.1, {place.destination_port or 104})\n"
        "HostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        "AETable BEGIN\n"
        f"{CALLED_AE_TITLE} {place.folder} RW ({DCMQRSCP_STUDIES}, 1024mb) ANY\n"
        "AETable END\n"
    )
    return [program("dcmqrscp") or "dcmqrscp", "-c", str(file)]


def _qrscp(place: Place) -> list[str]:
    file = place.scratch / "qrscp.ini"
    file.write_text(
        "[DEFAULT]\n"
        f"ae_title: {CALLED_AE_TITLE}\n"
        f"port: {place.port}\n"
        f"max_pdu: {place.maximum_length or 16382}\n"
        "acse_timeout: 30\ndimse_timeout: 60\nnetwork_timeout: 60\n"
        "bind_address: 127.0.0.1\n"
        f"instance_location: {place.folder}\n"
        f"database_location: {place.scratch / 'instances.sqlite'}\n"
        "log_identifier: False\n"
        f"[{DESTINATION_AE_TITLE}]\naddress: 127.0.0.1\nport: {place.destination_port or 104}\n"
    )
    return [sys.executable, "-m", "pynetdicom", "qrscp", "-c", str(file), "-q"]


PROXY_CONFIGURATION = """\
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

[pipelines.front]
description = "What is asked goes to the PACS"
networks = ["default"]
endpoints = ["front"]
middleware = []
backends = ["pacs"]

[endpoints.front]
service = "dicom_scp"

[endpoints.front.options]
local_aet = "{ae_title}"
bind_addr = "127.0.0.1"
port = {port}

[backends.pacs]
service = "dicom_scu"

[backends.pacs.options]
aet = "{ae_title}"
host = "127.0.0.1"
port = {pacs_port}
"""


def in_front_of(pacs: Receiver, pacs_port: int) -> Receiver:
    """Harmony with an archive as its backend."""

    def command(place: Place) -> list[str]:
        (place.scratch / "pipelines").mkdir(exist_ok=True)
        configuration = place.scratch / "config.toml"
        text = PROXY_CONFIGURATION.format(
            scratch=place.scratch,
            folder=place.folder,
            http_port=place.http_port or free_port(),
            ae_title=CALLED_AE_TITLE,
            port=place.port,
            pacs_port=pacs_port,
        )
        web = WEB_CONFIGURATION.format(backends='"pacs"') if place.http_port else ""
        configuration.write_text(text + web)
        return [sys.executable, "-m", "harmony", "--config", str(configuration)]

    return Receiver(f"harmony-{pacs.name}", f"through Harmony to {pacs.title}", command)


ARCHIVES = {
    archive.name: archive
    for archive in (
        Receiver("harmony", "Harmony", harmony()),
        Receiver("orthanc", "Orthanc", _orthanc),
        Receiver("dcmqrscp", "DCMTK dcmqrscp", _dcmqrscp, forks=True),
        Receiver(
            "dcmqrscp-nagle",
            "DCMTK dcmqrscp, as installed",
            _dcmqrscp,
            env={"TCP_NODELAY": "0"},
            forks=True,
            slow_answers=True,
        ),
        Receiver("pynetdicom", "pynetdicom qrscp", _qrscp),
    )
}


def missing(name: str) -> str | None:
    """What would have to be installed first to have an archive, or None."""
    if name == "orthanc":
        return None if program("Orthanc", ORTHANC_PATH) else "Orthanc"
    if name == "orthanc-dicomweb":
        return missing("orthanc") or (None if _dicomweb_plugin() else "Orthanc's DICOMweb plugin")
    if name.startswith("dcmqrscp"):
        return None if program("dcmqrscp") else "DCMTK's dcmqrscp"
    if name == "pynetdicom":
        return None if find_spec("pynetdicom") and find_spec("sqlalchemy") else "pynetdicom with SQLAlchemy"
    return None
