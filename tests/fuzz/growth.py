"""Time that grows faster than the input does: long inputs, made by repeating what is in the corpus.

Coverage-guided fuzzing keeps inputs short, and a quadratic loop over four kilobytes goes unnoticed. Here each input of
the corpus is repeated, whole or its last half or a few bytes of it, up to `LONGEST` and to half of that. Twice as much
input may take twice as long; more than `STEEP` times as long, where it takes time at all, is reported.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator

from tests.fuzz.target import Target

__all__ = ["report_growth"]

LONGEST = 256 * 1024
STEEP = 3.0
NOTICEABLE_S = 0.2


def report_growth(targets: Iterable[Target]) -> bool:
    """Print what is steep; True when nothing is."""
    clean = True
    for target in targets:
        worst = 0.0
        for name, long in _long_inputs(target):
            half_s, whole_s = _seconds(target, long[: len(long) // 2]), _seconds(target, long)
            worst = max(worst, whole_s)
            if whole_s >= NOTICEABLE_S and whole_s > STEEP * half_s:
                # Once more: something else may have had the processor.
                half_s, whole_s = _seconds(target, long[: len(long) // 2]), _seconds(target, long)
                if whole_s > STEEP * half_s:
                    clean = False
                    print(
                        f"{target.name:18} {half_s:7.3f} s, then {whole_s:7.3f} s for {len(long)} bytes of {name}"
                    )
        print(f"{target.name:18} at most {worst:.3f} s for {LONGEST} bytes", flush=True)
    return clean


def _long_inputs(target: Target) -> Iterator[tuple[str, bytes]]:
    for path in sorted(target.corpus.iterdir()):
        data = path.read_bytes()
        choose = random.Random(path.name)
        for _ in range(6):
            begin = choose.randrange(len(data) + 1)
            end = min(len(data), begin + choose.choice((1, 2, 4, 8, 16, 64, len(data))))
            repeated = data[begin:end]
            if repeated:
                yield (
                    f"{path.name}[{begin}:{end}]",
                    data[:begin] + repeated * (LONGEST // len(repeated)) + data[end:],
                )


def _seconds(target: Target, data: bytes) -> float:
    begin = time.process_time()
    target(data)
    return time.process_time() - begin
