"""The table of limits in docs/CONFIGURATION.md says what the code does."""

import re
from pathlib import Path

import msgspec
import pytest

from harmony.archive.free_space import MINIMUM_FREE_FILES
from harmony.dicom import data_set_decoder, rendering
from harmony.dimse.message import COMMAND_SET_LIMIT
from harmony.dimse.sink import COLLECTED_DATA_LIMIT
from harmony.gateway import arrivals, query_retrieve
from harmony.gateway.options import (
    DicomScpOptions,
    DicomScuOptions,
    DicomwebOptions,
    HttpBackendOptions,
    HttpEndpointOptions,
    JmixEndpointOptions,
    StorageBackendOptions,
)
from harmony.gateway.sections import ContentLimits, ListenerTable
from harmony.http import multipart
from harmony.http.channel import READ_HIGH_WATER_BYTES, WRITE_HIGH_WATER_BYTES
from harmony.http.server import MAXIMUM_REFUSED_CONNECTIONS
from harmony.jmix.limits import Limits
from harmony.ul.deadlines import Timeouts
from harmony.ul.pdu import MAXIMUM_RECEIVED_CONTEXTS
from harmony.ul.transport import RECEIVE_BUFFER_BYTES
from harmony.ul.upper_layer import SizeLimits

TEXT = (Path(__file__).parents[2] / "docs" / "CONFIGURATION.md").read_text()
SECTION = re.search(r"^## Limits\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)

OPTIONS = {
    "`dicom_scp`": DicomScpOptions,
    "`dicom_scu`": DicomScuOptions,
    "`dicomweb`": DicomwebOptions,
    "`http` backend": HttpBackendOptions,
    "`http` endpoint": HttpEndpointOptions,
    "`jmix`": JmixEndpointOptions,
    "`network.http`": ListenerTable,
    "`proxy.content_limits`": ContentLimits,
    "`storage`": StorageBackendOptions,
}

FIXED = {
    "refusals that are told at a time": MAXIMUM_REFUSED_CONNECTIONS,
    "bytes of an A-ASSOCIATE PDU": SizeLimits().associate_pdu_bytes,
    "presentation contexts of a request": MAXIMUM_RECEIVED_CONTEXTS,
    "bytes of a P-DATA-TF PDU, read": SizeLimits().p_data_pdu_bytes,
    "bytes of a command set": COMMAND_SET_LIMIT,
    "bytes of an Identifier": COLLECTED_DATA_LIMIT,
    "UIDs in the keys of a retrieve": query_retrieve.MAXIMUM_UIDS,
    "levels of sequences that are decoded": data_set_decoder.MAXIMUM_NESTING,
    "parts of a multipart body": multipart.MAXIMUM_PARTS,
    "bytes of the header of a part": multipart.MAXIMUM_PART_HEADER_BYTES,
    "frames rendered at a time": rendering.MAXIMUM_FRAMES,
    "samples of a rendered frame": rendering.MAXIMUM_FRAME_SAMPLES,
    "samples rendered at a time": rendering.MAXIMUM_SAMPLES,
    "members": Limits().members,
    "bytes of a member": Limits().member_bytes,
    "bytes of all members": Limits().total_bytes,
    "expansion, beyond 64 MiB": Limits().ratio,
    "bytes of a JSON document": Limits().json_bytes,
    "for a TLS handshake": Timeouts().tls_handshake_s,
    "for the check of a user identity": Timeouts().associate_s,
    "files that can still be made, for all of these": MINIMUM_FREE_FILES,
    "bytes of a C-STORE that waits for its receiver": arrivals.MAXIMUM_BUFFERED_BYTES,
    "bytes received on an HTTP connection and not taken": READ_HIGH_WATER_BYTES,
    "bytes written to an HTTP connection and not sent": WRITE_HIGH_WATER_BYTES,
    "bytes read from all DICOM connections at a time": RECEIVE_BUFFER_BYTES,
}


def rows() -> list[list[str]]:
    """The cells of each limit: what, default, key, what the peer hears."""
    assert SECTION
    lines = re.findall(r"^\| (?![-*]|What)(.*) \|$", SECTION[1], re.MULTILINE)
    return [line.split(" | ") for line in lines]


def shown(value: float | None) -> str:
    return "`–`" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: f"{cells[2]} {cells[0]}")
def test_each_limit_is_that_of_the_code(cells):
    what, default, key, told = cells
    assert told
    if key == "fixed":
        assert default == shown(FIXED[what])
        return
    place, _, name = key.partition(": ")
    defaults = {field.name: field.default for field in msgspec.structs.fields(OPTIONS[place])}
    assert default == shown(defaults[name.strip("`")])


def test_every_fixed_limit_is_in_the_table():
    assert {cells[0] for cells in rows() if cells[2] == "fixed"} == set(FIXED)


LIMITING = re.compile(r"max_(?!retries)|min_(free_|rate)|.*_timeout_secs$")


@pytest.mark.parametrize(
    "place", ["`dicom_scp`", "`dicomweb`", "`http` endpoint", "`jmix`", "`network.http`", "`storage`"]
)
def test_every_option_that_limits_is_in_the_table(place):
    options = {field.name for field in msgspec.structs.fields(OPTIONS[place]) if LIMITING.match(field.name)}
    listed = {key.partition(": ")[2].strip("`") for _, _, key, _ in rows() if key.partition(": ")[0] == place}
    assert listed == options
