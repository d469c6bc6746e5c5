"""PS3.5 §9.1, and the names that hostile UIDs get (the strings of robustness case R30)."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.dicom.uid import is_valid_uid, path_component


@pytest.mark.parametrize(
    "uid",
    ["1.2.840.10008.1.2", "0", "2.25.0", "1." * 31 + "12", "9" * 64, "1.2.007"],
)
def test_a_uid_is_its_own_path_component(uid: str) -> None:
    assert is_valid_uid(uid)
    assert path_component(uid) == uid


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "." * 64,
        "/etc/x",
        "9" * 65,
        "1.2\x00.3",
        "1.2\x00",
        "1.2\n",
        "1.2 ",
        "1..2",
        ".1",
        "1.",
        "1.a",
        "1.²",
        "-1",
        "1.2\\1.3",
        "x-none",
        "�",
        "١.٢",
        "日",
    ],
)
def test_anything_else_is_named_by_its_hash(text: str) -> None:
    assert not is_valid_uid(text)
    name = path_component(text)
    assert name.startswith("x-")
    assert len(name) == 34
    assert set(name[2:]) <= set("0123456789abcdef")


def test_the_hash_is_sha256_of_the_latin_1_bytes() -> None:
    assert path_component("..") == "x-5ec1f7e700f37c3d0b2981d04855fc34"  # printf .. | sha256sum
    assert path_component("\xe9") == "x-" + hashlib.sha256(b"\xe9").hexdigest()[:32]


@given(st.text(max_size=80))
def test_a_path_component_is_always_one_safe_name(text: str) -> None:
    name = path_component(text)
    assert 1 <= len(name) <= 64
    assert name.isascii()
    assert name.strip(".") != ""
    assert "/" not in name
    assert "\0" not in name
    assert (name == text) == is_valid_uid(text)
