"""Where the log of a process goes."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

__all__ = ["set_up_logging"]


def set_up_logging(level: int, file: Path | None, *, who: str = "") -> None:
    """file: None is standard error. who: at the beginning of each line of a process that shares it with others.

    Raises OSError when the file cannot be written to; what was set up before stays then.
    """
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler()
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.WatchedFileHandler(file, encoding="utf-8")
    prefix = f"{who}: ".replace("%", "%%") if who else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s %(name)s: {prefix}%(message)s"))
    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], [handler]
    for each in before:
        each.close()
    root.setLevel(level)
