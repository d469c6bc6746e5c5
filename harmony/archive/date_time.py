"""DA, TM and DT values and ranges of them (PS3.5 §6.2, PS3.4 §C.2.2.2.5) as text that sorts like time.

A date becomes `YYYYMMDD`, a time `HHMMSS.ffffff`, a date-time `YYYYMMDDHHMMSS.ffffff` in UTC, so that a
database and Python compare them alike, as strings. What a value leaves out is its beginning when it is stored
or a lower bound, and its end when it is an upper one: `2006` as an upper bound is the end of 2006.

Understood besides the standard's forms: `YYYY.MM.DD` and `HH:MM:SS` of ACR-NEMA, blanks around the `-` of a
range, and the negative offset of a DT, which looks like a range. Calendars are not checked for DA and TM:
what devices stored is compared as it is. Called by `harmony.archive.matching`.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["Range", "comparable", "parse_range", "utc_offset_minutes"]

LONGEST_RANGE = 128
"""Characters; a range of two DT has 53, and some write blanks around the `-`."""

_EARLIEST_TIME, _LATEST_TIME = "000000.000000", "235959.999999"

_date = re.compile(r"(\d{4})(?:\.?(\d\d)(?:\.?(\d\d))?)?", re.ASCII).fullmatch
_time = re.compile(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(?:\.(\d{1,6}))?)?)?", re.ASCII).fullmatch
_date_time = re.compile(
    r"(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,6}))?)?)?)?)?)? *([+-]\d{4})?", re.ASCII
).fullmatch
_offset = re.compile(r"[+-]\d{4}", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True)
class Range:
    """What a DA, TM or DT key asks for, both ends included; None where the range is open."""

    lower: str | None
    upper: str | None
    single: bool = False
    """One value, not a range; both bounds are that value."""

    def contains(self, value: str) -> bool:
        return (self.lower is None or self.lower <= value) and (self.upper is None or value <= self.upper)


def comparable(vr: str, value: str, *, utc_offset_minutes: int = 0) -> str | None:
    """Return the text to compare a stored value by, None when it is no value of its VR.

    utc_offset_minutes: of a DT that states no offset.
    """
    return _bound(vr, value.strip(), utc_offset_minutes, end=False)


def parse_range(vr: str, text: str, *, utc_offset_minutes: int = 0) -> Range | None:
    """Return what a key asks for, None when it is neither a value nor a range of its VR.

    A single DA that leaves out the day or the month is the range of its days.
    """
    text = text.strip()
    if len(text) > LONGEST_RANGE:
        return None
    if "-" not in text or (vr == "DT" and _ends_in_offset(text)):
        lower = _bound(vr, text, utc_offset_minutes, end=False)
        if lower is None:
            return None
        upper = _bound(vr, text, utc_offset_minutes, end=True)
        return Range(lower, upper) if vr == "DA" and lower != upper else Range(lower, lower, single=True)
    # Only in a DT can there be more than one `-`: negative offsets. Just one way to split makes sense then.
    for at, character in enumerate(text):
        if character != "-":
            continue
        first, last = text[:at].rstrip(), text[at + 1 :].lstrip()
        lower = _bound(vr, first, utc_offset_minutes, end=False) if first else None
        upper = _bound(vr, last, utc_offset_minutes, end=True) if last else None
        if (lower is not None or not first) and (upper is not None or not last) and (first or last):
            return Range(lower, upper)
    return None


def combined(date: Range, time: Range) -> Range:
    """Return the one interval from the first date's first time to the last date's last (PS3.4 §C.2.2.2.5.3)."""
    lower = None if date.lower is None else date.lower + (time.lower or _EARLIEST_TIME)
    upper = None if date.upper is None else date.upper + (time.upper or _LATEST_TIME)
    return Range(lower, upper)


def shifted(date_time: str, minutes: int) -> str | None:
    """Return a `YYYYMMDDHHMMSS.ffffff` that many minutes later, None for a day that no calendar has."""
    try:
        moment = datetime(*_fields(date_time)) + timedelta(minutes=minutes)
    except (ValueError, OverflowError):
        return None
    return _format(moment)


def utc_offset_minutes(text: str) -> int | None:
    """Return a UTC offset `&ZZXX` (PS3.5 §6.2, PS3.3 §C.12.1.1.8) in minutes, None when it is none."""
    text = text.strip()
    if not _offset(text):
        return None
    hours, minutes = int(text[1:3]), int(text[3:5])
    offset = (hours * 60 + minutes) * (-1 if text[0] == "-" else 1)
    return offset if -12 * 60 <= offset <= 14 * 60 and minutes < 60 else None


def _bound(vr: str, text: str, offset: int, *, end: bool) -> str | None:
    return _BOUNDS[vr](text, offset, end)


def _date_bound(text: str, offset: int, end: bool) -> str | None:
    matched = _date(text)
    if matched is None:
        return None
    year, month, day = matched.groups()
    return year + (month or ("12" if end else "01")) + (day or ("31" if end else "01"))


def _time_bound(text: str, offset: int, end: bool) -> str | None:
    matched = _time(text)
    if matched is None:
        return None
    hour, minute, second, fraction = matched.groups()
    filler = "59" if end else "00"
    return f"{hour}{minute or filler}{second or filler}." + (fraction or "").ljust(6, "9" if end else "0")


def _date_time_bound(text: str, offset: int, end: bool) -> str | None:
    matched = _date_time(text)
    if matched is None:
        return None
    year, month, day, hour, minute, second, fraction, stated = matched.groups()
    if stated is not None:
        known = utc_offset_minutes(stated)
        if known is None:
            return None
        offset = known
    month = month or ("12" if end else "01")
    try:
        day = day or (str(calendar.monthrange(int(year), int(month))[1]) if end else "01")
        moment = datetime(
            int(year),
            int(month),
            int(day),
            int(hour or (23 if end else 0)),
            int(minute or (59 if end else 0)),
            min(int(second or (59 if end else 0)), 59),  # 60 is a leap second
            int((fraction or "").ljust(6, "9" if end else "0")),
        ) - timedelta(minutes=offset)
    except (ValueError, OverflowError):
        return None
    return _format(moment)


_BOUNDS: dict[str, Callable[[str, int, bool], str | None]] = {
    "DA": _date_bound,
    "TM": _time_bound,
    "DT": _date_time_bound,
}


def _ends_in_offset(text: str) -> bool:
    """Tell whether all of a DT key is one value with a negative offset.

    With less than an hour in front, `2006-1200` is two years; with more, the second would be a year in the
    Middle Ages.
    """
    matched = _date_time(text)
    return bool(matched and matched[4] and matched[8] and utc_offset_minutes(matched[8]) is not None)


def _fields(date_time: str) -> tuple[int, int, int, int, int, int, int]:
    year, month, day = int(date_time[0:4]), int(date_time[4:6]), int(date_time[6:8])
    hour, minute, second = int(date_time[8:10]), int(date_time[10:12]), int(date_time[12:14])
    return year, month, day, hour, minute, min(second, 59), int(date_time[15:21])


def _format(moment: datetime) -> str:
    # Not strftime, which does not pad the years before 1000 everywhere.
    return (
        f"{moment.year:04}{moment.month:02}{moment.day:02}"
        f"{moment.hour:02}{moment.minute:02}{moment.second:02}.{moment.microsecond:06}"
    )
