"""`python -m harmony`; everything is in `harmony.gateway.command_line`, and `send` in `harmony.gateway.send_command`.

`send` needs nothing of the gateway, and what it does not import is a third of a second sooner at its first object.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    send = bool(words) and words[0] == "send"  # comes first, as it has arguments of its own
    module = importlib.import_module(f"harmony.gateway.{'send_command' if send else 'command_line'}")
    command: Callable[[Sequence[str]], int] = module.main
    return command(words[1:] if send else words)


if __name__ == "__main__":
    sys.exit(main())
