"""Passwords as they are kept: the form, what is no such form, files of users."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.gateway.passwords import PasswordHash, hash_password, prepared, read_users

# RFC 7914 §12: scrypt("pleaseletmein", "SodiumChloride", N=16384, r=8, p=1), 64 bytes
RFC_7914 = (
    "scrypt:16384:8:1:U29kaXVtQ2hsb3JpZGU:"
    "cCO9yzr9c0hGHAbNgf046_2o-7qQT44-qbVD9lRdofLVQylVYT8Pz2LUlwUkKpr55h6F3A1lHkDfzwF7RVdYhw"
)
SALT = "c2FsdHNhbHQ"  # saltsalt
HASH = "AAAAAAAAAAAAAAAAAAAAAA"  # 16 bytes


def test_the_vector_of_rfc_7914() -> None:
    kept = PasswordHash.parse(RFC_7914)
    assert (kept.n, kept.r, kept.p, kept.salt) == (16384, 8, 1, b"SodiumChloride")
    assert kept.hash.hex().startswith("7023bdcb3afd7348461c06cd81fd38eb")
    assert kept.verify(b"pleaseletmein")
    assert not kept.verify(b"pleaseletmeout")
    assert str(kept) == RFC_7914
    assert "U29k" not in repr(kept)


@pytest.mark.parametrize(
    "text",
    [
        "sesame",
        "scrypt:",
        f"scrypt:16:8:1:{SALT}",
        f"scrypt:16:8:1:{SALT}:{HASH}:",
        f"scrypt:15:8:1:{SALT}:{HASH}",  # no power of two
        f"scrypt:1:8:1:{SALT}:{HASH}",
        f"scrypt:0:8:1:{SALT}:{HASH}",
        f"scrypt:-2:8:1:{SALT}:{HASH}",
        f"scrypt:٢:8:1:{SALT}:{HASH}",
        f"scrypt:1048576:8:1:{SALT}:{HASH}",  # a gigabyte
        f"scrypt:16:8:1000:{SALT}:{HASH}",
        f"scrypt:16:8:1:c2FsdA:{HASH}",  # a salt of four bytes
        f"scrypt:16:8:1:{SALT}:AAAA",
        f"scrypt:16:8:1:{SALT}:{'é' * 22}",
    ],
)
def test_what_is_no_hash(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        PasswordHash.parse(text)
    assert SALT not in str(caught.value)


@given(st.text(), st.text())
def test_only_the_password_verifies(password: str, other: str) -> None:
    kept = PasswordHash.parse(str(hash_password(password, n=2, r=1, p=1)))
    assert kept.verify(prepared(password))
    assert kept.verify(prepared(other)) is (prepared(other) == prepared(password))


def test_two_hashes_of_one_password_differ() -> None:
    assert hash_password("a", n=2, r=1, p=1).hash != hash_password("a", n=2, r=1, p=1).hash


def test_composed_and_decomposed_letters_are_the_same() -> None:
    kept = hash_password(unicodedata.normalize("NFD", "Zoë"), n=2, r=1, p=1)
    assert kept.verify(prepared(unicodedata.normalize("NFC", "Zoë")))


def test_a_file_of_users(tmp_path: Path) -> None:
    path = tmp_path / "users"
    alice, zoe = hash_password("a", n=2, r=1, p=1), hash_password("z", n=2, r=1, p=1)
    path.write_text(f"# of the ward\n\nalice:{alice}\n  Zoë:{zoe}  \n", encoding="utf-8")
    assert read_users(path) == {"alice": alice, "Zoë": zoe}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"alice\n", "line 1 must be name:scrypt:N:r:p:salt:hash"),
        (b":scrypt:\n", "line 1 must be name:scrypt:N:r:p:salt:hash"),
        (
            b"\nalice:sesame\n",
            "line 2: the password must be scrypt:N:r:p:salt:hash, as hash-password prints it",
        ),
        (f"a:{RFC_7914}\na:{RFC_7914}\n".encode(), "line 2 has a name that was there before"),
        (b"\xff\n", "is not UTF-8"),
        (b"#" * (4 * 2**20 + 1), "is longer than 4194304 bytes"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "users"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_users(path)
    assert str(caught.value) == message
