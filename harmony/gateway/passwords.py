"""Passwords as they are kept: scrypt (RFC 7914) in one line of text, and files with a user on each line.

    scrypt:32768:8:3:<salt>:<hash>          N, r, p; salt and hash in URL-safe Base64 without padding
    alice:scrypt:32768:8:3:<salt>:<hash>    a line of a users file; empty lines and lines that begin with # do not count

A form without "$", which would mean the environment in a configuration. Deriving takes tens of milliseconds and as many
megabytes, on purpose: call `verify` and `hash_password` in a thread. Names and passwords are compared in Unicode
Normalization Form C (RFC 8265 §3.4, §4.2).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

__all__ = ["PREFIX", "PasswordHash", "hash_password", "prepared", "read_users"]

PREFIX: Final = "scrypt:"

DEFAULT_N: Final = 2**15
"""With r = 8 and p = 3 what OWASP recommends where 32 MiB are to be enough."""
DEFAULT_R: Final = 8
DEFAULT_P: Final = 3

MAXIMUM_MEMORY_BYTES: Final = 256 * 2**20
MAXIMUM_P: Final = 16
"""So that no file can make a login cost seconds."""
MINIMUM_SALT_BYTES: Final = 8
MINIMUM_HASH_BYTES: Final = 16
MAXIMUM_HASH_BYTES: Final = 64

MAXIMUM_USERS_BYTES: Final = 4 * 2**20
MAXIMUM_USERS: Final = 10_000

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")


def prepared(text: str) -> bytes:
    """A name or password as it is compared."""
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class PasswordHash:
    n: int
    r: int
    p: int
    salt: bytes = field(repr=False)
    hash: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, which says what is expected and nothing of what came."""
        numbers = text.removeprefix(PREFIX).split(":")
        if not text.startswith(PREFIX) or len(numbers) != 5:
            raise ValueError("must be scrypt:N:r:p:salt:hash, as hash-password prints it")
        if not all(_NUMBER.fullmatch(each) for each in numbers[:3]):
            raise ValueError("N, r and p of scrypt must be numbers")
        n, r, p = map(int, numbers[:3])
        if n < 2 or n & (n - 1) or 128 * n * r > MAXIMUM_MEMORY_BYTES or p > MAXIMUM_P:
            raise ValueError(
                f"N of scrypt must be a power of 2, 128 * N * r at most {MAXIMUM_MEMORY_BYTES}, p at most {MAXIMUM_P}"
            )
        salt, digest = _decode(numbers[3]), _decode(numbers[4])
        if len(salt) < MINIMUM_SALT_BYTES or not MINIMUM_HASH_BYTES <= len(digest) <= MAXIMUM_HASH_BYTES:
            raise ValueError(
                f"the salt must have {MINIMUM_SALT_BYTES} bytes or more, the hash "
                f"{MINIMUM_HASH_BYTES} to {MAXIMUM_HASH_BYTES}"
            )
        return cls(n, r, p, salt=salt, hash=digest)

    def verify(self, password: bytes) -> bool:
        """password: as `prepared`. Takes its time."""
        derived = _derive(password, self.salt, n=self.n, r=self.r, p=self.p, length=len(self.hash))
        return hmac.compare_digest(derived, self.hash)

    def __str__(self) -> str:
        return f"{PREFIX}{self.n}:{self.r}:{self.p}:{_encode(self.salt)}:{_encode(self.hash)}"


def hash_password(
    password: str, *, n: int = DEFAULT_N, r: int = DEFAULT_R, p: int = DEFAULT_P
) -> PasswordHash:
    salt = secrets.token_bytes(16)
    return PasswordHash(n, r, p, salt=salt, hash=_derive(prepared(password), salt, n=n, r=r, p=p, length=32))


def read_users(path: Path) -> dict[str, PasswordHash]:
    """The users of a file. Raises OSError, and ValueError with the line that is wrong, without what is in it."""
    with path.open("rb") as file:
        content = file.read(MAXIMUM_USERS_BYTES + 1)
    if len(content) > MAXIMUM_USERS_BYTES:
        raise ValueError(f"is longer than {MAXIMUM_USERS_BYTES} bytes")
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    users: dict[str, PasswordHash] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not name or not colon:
            raise ValueError(f"line {number} must be name:scrypt:N:r:p:salt:hash")
        name = prepared(name).decode("utf-8", "surrogatepass")
        if name in users:
            raise ValueError(f"line {number} has a name that was there before")
        try:
            users[name] = PasswordHash.parse(password)
        except ValueError as error:
            raise ValueError(f"line {number}: the password {error}") from None
        if len(users) > MAXIMUM_USERS:
            raise ValueError(f"has more than {MAXIMUM_USERS} users")
    return users


def _derive(password: bytes, salt: bytes, *, n: int, r: int, p: int, length: int) -> bytes:
    memory = 128 * r * (n + p + 2) + 2**20  # RFC 7914 §6, and something for OpenSSL
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=length)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("salt and hash must be URL-safe Base64") from None
