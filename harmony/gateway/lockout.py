"""Who has failed too often: counted by client address and user name, for a while, in bounded memory.

After `max_failures` within `window_s` a pair is locked out for `lockout_s`, whatever it presents then; a success
forgets its failures. The pairs whose last failure is the oldest make room for new ones. Time is an argument.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

__all__ = ["Lockout", "Who"]

TRACKED: Final = 16_384
"""Pairs that are remembered, some 5 MB: guessers who make room for themselves with names that nobody has need this many
failures for each of their `max_failures` guesses."""

NAME_CHARS: Final = 128
"""Of a claimed name that count."""

Who = tuple[str, str]
"""Client address and claimed user name."""


@dataclass(slots=True)
class _Record:
    failures: int
    begun_at: float
    locked_until: float = -math.inf


class Lockout:
    def __init__(
        self, *, max_failures: int, window_s: float, lockout_s: float, tracked: int = TRACKED
    ) -> None:
        """max_failures: 0 never locks anybody out."""
        self._max_failures = max_failures
        self._window_s = window_s
        self._lockout_s = lockout_s
        self._tracked = tracked
        self._records: OrderedDict[Who, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def locked_s(self, who: Who, now: float) -> float:
        """For how much longer; 0: not."""
        record = self._records.get(_clipped(who))
        return max(0.0, record.locked_until - now) if record is not None else 0.0

    def failed(self, who: Who, now: float) -> bool:
        """Count a failure; whether it is the one too many."""
        if not self._max_failures:
            return False
        who = _clipped(who)
        record = self._records.pop(who, None)
        if record is None or now - record.begun_at > self._window_s or -math.inf < record.locked_until <= now:
            record = _Record(0, now)
        record.failures += 1
        self._records[who] = record
        while len(self._records) > self._tracked:
            self._records.popitem(last=False)
        if record.failures < self._max_failures or record.locked_until > now:
            return False
        record.locked_until = now + self._lockout_s
        return True

    def succeeded(self, who: Who) -> None:
        self._records.pop(_clipped(who), None)


def _clipped(who: Who) -> Who:
    return who[0], who[1][:NAME_CHARS]
