"""`python -m harmony hash-password`: a password as `password` and `users_path` may hold it.

Asked for twice at a terminal, else the first line of standard input. It is never an argument, which other users see.
"""

from __future__ import annotations

import getpass
import sys

from harmony.gateway.passwords import hash_password

__all__ = ["run"]

EXIT_UNUSABLE = 2


def run() -> int:
    """The process's exit status."""
    try:
        password = _asked() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    except (EOFError, KeyboardInterrupt):
        return EXIT_UNUSABLE
    if not password or any(ord(character) < 32 or ord(character) == 127 for character in password):
        print("the password must not be empty, nor hold control characters", file=sys.stderr)
        return EXIT_UNUSABLE
    print(hash_password(password))
    return 0


def _asked() -> str:
    password = getpass.getpass("Password: ")
    return password if getpass.getpass("Once more: ") == password else ""
