"""harmony.gateway.dicom_upload: files in any pieces, and what is no file."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.dimse.part10 import encode_file_meta
from harmony.dimse.scu import Instance
from harmony.dimse.source import pieces
from harmony.gateway.dicom_upload import WatchedBody, uploaded_instance
from harmony.http import HTTPError

CT, IMPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2"
DATA_SET = b"\x08\x00\x18\x00\x04\x00\x00\x001.2\0" + bytes(1000)


def meta(**changes: str) -> bytes:
    known = {
        "transfer_syntax_uid": IMPLICIT,
        "media_storage_sop_class_uid": CT,
        "media_storage_sop_instance_uid": "1.2",
    }
    return encode_file_meta(**(known | changes))


async def cut(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def content(instance: Instance) -> bytes:
    return b"".join([bytes(piece) async for piece in pieces(instance.data)])


async def refusal(data: bytes, size: int = 64) -> str:
    with pytest.raises(HTTPError) as refused:
        await uploaded_instance(cut(data, size))
    assert refused.value.status == 400
    return refused.value.message


@given(st.integers(1, 2000), st.integers(0, 2000))
async def test_a_file_in_any_pieces(size: int, title_bytes: int) -> None:
    # Titles of any length move everything behind them, so that pieces end everywhere.
    head = meta(source_application_entity_title="A" * title_bytes)
    instance = await uploaded_instance(cut(head + DATA_SET, size))
    assert (instance.sop_class_uid, instance.sop_instance_uid) == (CT, "1.2")
    assert instance.transfer_syntax_uid == IMPLICIT
    assert await content(instance) == DATA_SET


async def test_a_file_without_preamble() -> None:
    instance = await uploaded_instance(cut(meta()[132:] + DATA_SET, 100))
    assert await content(instance) == DATA_SET


async def test_a_small_file() -> None:
    instance = await uploaded_instance(cut(meta() + DATA_SET[:12], 7))
    assert await content(instance) == DATA_SET[:12]


async def test_the_data_set_is_read_only_when_it_is_asked_for() -> None:
    asked = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal asked
        yield meta() + DATA_SET
        asked += 1
        yield b"the rest"

    instance = await uploaded_instance(chunks())
    assert asked == 0
    assert await content(instance) == DATA_SET + b"the rest"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the body is no DICOM file that could be sent: not a DICOM file: no group 0002 at the start, nor DICM"),
        (b"{}", "the body is no DICOM file that could be sent: not a DICOM file: no group 0002 at the start, nor DICM"),
        (bytes(100_000), "the body is no DICOM file that could be sent: not a DICOM file: no group 0002 at the start"),
        (bytes(128) + b"DICM" + DATA_SET, "the body is no DICOM file that could be sent: not a DICOM file: no group"),
        (meta()[:200], "the body is no DICOM file that could be sent: (0002,"),
        (meta(), "the DICOM file ends with its file meta information: there is no data set"),
        (
            meta(media_storage_sop_class_uid="") + DATA_SET,
            "the DICOM file has no (0002,0002) in its file meta information",
        ),
        (
            meta(media_storage_sop_instance_uid="") + DATA_SET,
            "the DICOM file has no (0002,0003) in its file meta information",
        ),
        (
            meta(transfer_syntax_uid="") + DATA_SET,
            "the body is no DICOM file that could be sent: file meta information without Transfer Syntax UID",
        ),
    ],
)  # fmt: skip
async def test_what_is_no_file(data: bytes, message: str) -> None:
    assert (await refusal(data)).startswith(message)


async def test_a_file_meta_without_end_is_not_collected() -> None:
    endless = meta(transfer_syntax_uid="")
    private = b"\x02\x00\x02\x01OB\x00\x00\x00\x00\x01\x00" + bytes(65536)
    asked = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal asked
        yield endless
        while True:
            asked += 1
            yield private

    with pytest.raises(HTTPError, match="past 1048576 bytes"):
        await uploaded_instance(chunks())
    assert asked < 64


async def test_a_watched_body_remembers_what_went_wrong() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise HTTPError(413, "too much")

    body = WatchedBody(broken())
    with pytest.raises(HTTPError):
        [chunk async for chunk in body]
    assert body.error is not None
    assert body.error.status == 413
