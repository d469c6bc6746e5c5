"""A bearer token in a file that somebody else writes anew now and then: read again when the file is another one.

Looking costs a stat for each request. A file that cannot be used, or holds no token, changes nothing: the one that was
there before goes on, and the log says so once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

__all__ = ["TokenFile"]

logger = logging.getLogger("harmony.gateway")

MAXIMUM_TOKEN_BYTES: Final = 16 * 1024
"""More than fits into the header of most servers."""

_Version = tuple[int, int, int]


class TokenFile:
    def __init__(self, path: Path) -> None:
        """Raises OSError, and ValueError for a file that holds no token."""
        self._path = path
        self._version = _version(path)
        self._token = _read(path)

    def token(self) -> str:
        try:
            version = _version(self._path)
            if version == self._version:
                return self._token
            self._version = version
            self._token = _read(self._path)
        except OSError as error:
            if self._version != (0, 0, 0):
                logger.warning("%s cannot be read, its token is kept: %s", self._path, error.strerror)
            self._version = (0, 0, 0)
        except ValueError as error:
            logger.warning("%s %s, the one before is kept", self._path, error)
        return self._token

    def __repr__(self) -> str:
        return f"<TokenFile {self._path}>"


def _version(path: Path) -> _Version:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAXIMUM_TOKEN_BYTES + 1)
    token = content.strip()
    if not token or len(content) > MAXIMUM_TOKEN_BYTES or not all(0x21 <= octet <= 0x7E for octet in token):
        raise ValueError(f"must hold a token: printable ASCII, at most {MAXIMUM_TOKEN_BYTES} bytes")
    return token.decode("ascii")
