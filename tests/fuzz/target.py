"""What a fuzz target is, and the list of them.

A target is a function of bytes. It may raise the exceptions that it names, which are those that the code under test
documents; anything else is a defect, and so are a failed assertion, an error in the log, an input that takes longer
than `seconds`, and memory beyond `memory_mb`. Targets draw everything from their input, so that an input means the same
in any process.
"""

from __future__ import annotations

import asyncio
import logging
import random
import zlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["CORPUS", "TARGETS", "Target", "close_loop", "pieces", "run", "target"]

T = TypeVar("T")

CORPUS = Path(__file__).parent / "corpus"

TARGETS: dict[str, Target] = {}

MOST_PIECES = 200


class _Complaints(logging.Handler):
    """What is logged as an error: code that catches everything says so there."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    function: Callable[[bytes], None]
    allowed: tuple[type[BaseException], ...]
    maximum_bytes: int
    """Longest input that is tried."""
    seconds: int
    """What one input may take."""
    memory_mb: int
    """What the process may hold, with some 150 MB of interpreter and instrumented modules in it."""

    def __call__(self, data: bytes) -> None:
        complaints = _Complaints()
        logger = logging.getLogger("harmony")
        logger.addHandler(complaints)
        try:
            self.function(data)
        except self.allowed:
            pass
        finally:
            logger.removeHandler(complaints)
        for record in complaints.records:
            raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)

    @property
    def corpus(self) -> Path:
        """Its inputs in the repository."""
        return CORPUS / self.name

    @property
    def dictionary(self) -> Path:
        return CORPUS / f"{self.name}.dict"


def target(
    *allowed: type[BaseException], maximum_bytes: int = 4096, seconds: int = 2, memory_mb: int = 768
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Make a function a target; its name is that of the target, its docstring says what it holds to."""

    def register(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
        name = function.__name__
        assert name not in TARGETS
        TARGETS[name] = Target(name, function, allowed, maximum_bytes, seconds, memory_mb)
        return function

    return register


def pieces(data: bytes, *, most: int = MOST_PIECES) -> Iterator[bytes]:
    """The data cut somewhere: where, its checksum decides, so that each change of it is another way to cut."""
    choose = random.Random(zlib.crc32(data))
    longest = choose.choice((1, 3, 8, 64, 1024))
    least = 1 + len(data) // most
    at = 0
    while at < len(data):
        size = choose.randint(least, max(least, longest))
        yield data[at : at + size]
        at += size


_runner: asyncio.Runner | None = None


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on a loop that inputs share: making one costs more than most of them do."""
    global _runner
    if _runner is None:
        _runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
    return _runner.run(coroutine)


def close_loop() -> None:
    global _runner
    if _runner is not None:
        _runner.close()
        _runner = None
