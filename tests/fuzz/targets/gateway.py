"""What the gateway reads: searches, DIMSE operations as JSON, metadata of STOW-RS, configurations in TOML."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from harmony.archive.levels import Level
from harmony.archive.matching import compile_query
from harmony.dimse.status import DimseError
from harmony.gateway.checks import unsupported
from harmony.gateway.config import ConfigError
from harmony.gateway.dimse_request import DimseService, read_request, service_of_path
from harmony.gateway.loading import resolve
from harmony.gateway.metadata_upload import BulkSpool, Metadata, bulk_data_uris, described
from harmony.gateway.qido_request import Target, read_search
from harmony.gateway.sources import Report, parse_document
from harmony.http import HTTPError, Request
from harmony.http.media_type import MediaType
from harmony.http.message import RequestBody
from tests.fuzz.target import run, target
from tests.fuzz.targets.archive import ENTITY


@target(HTTPError)
def search(data: bytes) -> None:
    """A query string: understood, then asked of an entity."""
    if not data:
        return
    setting, text = data[0], data[1:].decode("latin-1")
    what = Target((Level.STUDY, Level.SERIES, Level.IMAGE)[setting % 3], "1.2.3" if setting & 4 else None)
    asked = Request("GET", "/dicom-web/studies?" + text)
    found = read_search(
        asked.query,
        what,
        matches_as_asked=setting & 8 == 0,
        match_empty_values=setting & 16 == 0,
        fuzzy_names=setting & 32 != 0,
    )
    matcher = compile_query(found.query.identifier, found.query.matching)
    matcher.matches(ENTITY)
    repr(found)


@target(HTTPError)
def dimse_request(data: bytes) -> None:
    """A request target, and after a line end a JSON body, to the endpoint that speaks DIMSE for its client."""
    head, _, body = data.partition(b"\n")
    asked = Request("POST", head.decode("latin-1"), body=RequestBody.of(body))
    named = service_of_path(asked.path)
    content = run(asked.json()) if body else None
    found = read_request(named, asked.query, content)
    assert found.service is not DimseService.STORE
    repr(found)


MEDIA_TYPES = (
    MediaType("application/octet-stream", {}),
    MediaType("image/jpeg", {}),
    MediaType("video/mp4", {"transfer-syntax": "1.2.840.10008.1.2.4.102"}),
    MediaType("image/png", {}),
)


@target(HTTPError, DimseError)
def stow_metadata(data: bytes) -> None:
    """The metadata of a store as DICOM JSON, with a part for each URI that they name."""
    if data:
        run(_stored(data[0], data[1:]))


async def _stored(setting: int, body: bytes) -> None:
    metadata = Metadata()
    metadata.add(body)

    async def content() -> AsyncIterator[bytes]:
        yield b"\xff\xd8\xff\xe0"

    async with BulkSpool() as spool:
        for model in metadata:
            described(model)
            if setting & 4 == 0:
                for uri in list(bulk_data_uris(model)):
                    await spool.add(uri, MEDIA_TYPES[setting % 4], content())
            instance = spool.instance(model)
            async for piece in instance.data:
                assert isinstance(piece, bytes)


@target(ConfigError)
def configuration(data: bytes) -> None:
    """A file in TOML is loaded, or refused with every problem named."""
    report = Report()
    env = {"NAME": "value", "PORT": "104"}
    try:
        document = parse_document(Path("fuzz.toml"), data.decode("utf-8", "replace"), env=env, report=report)
        loaded = resolve([document] if document is not None else [], env=env, report=report)
    except ConfigError as error:
        if not error.errors or not str(error):
            raise AssertionError("refused without a problem") from error
        raise
    repr(loaded)
    for problem in unsupported(loaded):
        str(problem)
