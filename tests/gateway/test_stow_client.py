"""What a server says of a store, as a DIMSE status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harmony.gateway.stow_client import store_outcome


def response(**sequences: list[dict[str, Any]]) -> bytes:
    return json.dumps({tag[1:]: {"vr": "SQ", "Value": items} for tag, items in sequences.items()}).encode()


def item(uid: str = "1.2", **reasons: Any) -> dict[str, Any]:
    model = {tag[1:]: {"vr": "US", "Value": [value]} for tag, value in reasons.items()}
    return {"00081155": {"vr": "UI", "Value": [uid]}, **model}


@pytest.mark.parametrize(
    ("http_status", "status"),
    [
        (200, 0x0000), (202, 0x0000), (204, 0x0000), (400, 0xA900), (401, 0x0124), (403, 0x0124), (404, 0xC000),
        (409, 0xC000), (413, 0xA700), (415, 0xC000), (429, 0xA700), (500, 0xC000), (502, 0xC000), (503, 0xA700),
        (507, 0xA700), (301, 0xC000),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"status":"stored"}', b"[]", b"7", b"\xff", b"[" * 10_000]
)
def test_by_http_status(http_status: int, body: bytes, status: int) -> None:
    assert store_outcome(http_status, body, "1.2").status == status


@pytest.mark.parametrize(
    ("http_status", "body", "status"),
    [
        (200, response(_00081199=[item()]), 0x0000),
        (202, response(_00081199=[item(_00081196=0xB006)]), 0xB006),
        (202, response(_00081199=[item(_00081196=1)]), 0x0001),
        (202, response(_00081199=[item(_00081196=0xA700)]), 0xB000),
        (200, response(_00081198=[item(_00081197=0xC123)]), 0xC123),
        (202, response(_00081198=[item(_00081197=272)], _00081199=[item("1.3")]), 0x0110),
        (202, response(_00081198=[item("1.3", _00081197=272)], _00081199=[item("1.2")]), 0x0000),
        (200, response(_00081198=[item()]), 0xC000),
        (200, response(_0008119A=[{"00081197": {"vr": "US", "Value": [0xC000]}}]), 0xC000),
        (409, response(_00081198=[item(_00081197=0xA700)]), 0xA700),
        (409, response(_00081198=[item(_00081197="43264")]), 0xA900),
        (409, response(_00081198=[item(_00081197=0)]), 0xC000),
        (409, response(_00081198=[item()]), 0xC000),
        (400, response(_0008119A=[{"00081197": {"vr": "US", "Value": [0x0117]}}]), 0x0117),
        (409, b"[" + response(_00081198=[item(_00081197=0xA700)]) + b"]", 0xA700),
    ],
)
def test_by_reason(http_status: int, body: bytes, status: int) -> None:
    assert store_outcome(http_status, body, "1.2").status == status
