"""The options of every type of rule, and the one table that lists the types.

A struct per type, as in `harmony.gateway.options`; `problems` finds what needs more than one key to be seen, or more
than a type can say, such as a regular expression that is none. What the rules do is in `harmony.gateway.rules`,
`http_rules` and `dimse_policies`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, time, tzinfo
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Meta

from harmony.gateway.config import Table
from harmony.gateway.path_pattern import PathPattern
from harmony.gateway.regular_expression import RegularExpression, RegularExpressionError
from harmony.gateway.sources import show
from harmony.gateway.tables import UID, AddressRanges, AETitle
from harmony.gateway.written import Written

__all__ = ["DIMSE", "HTTP", "RULES", "RuleKind", "RuleOptions"]

Mode = Literal["allow", "deny"]


class TimeOfDay(Written):
    """HH:MM; 24:00 is the end of the day."""

    __slots__ = ("minutes",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if text == "24:00":
            self.minutes = 24 * 60
            return
        if not re.fullmatch(r"[0-9]{2}:[0-9]{2}", text):
            raise ValueError("not a time of day")
        at = time.fromisoformat(text)
        self.minutes = at.hour * 60 + at.minute


class TimeZone(Written):
    """A name of the IANA time zone database, as this system has it."""

    __slots__ = ("zone",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.zone: tzinfo = UTC
        if text != "UTC":
            try:
                self.zone = ZoneInfo(text)
            except (ZoneInfoNotFoundError, OSError) as error:  # OSError: the name of a folder of the database
                raise ValueError("not a time zone") from error


Clock = Annotated[TimeOfDay, Meta(extra={"allowed": 'a time of day such as "07:30"'})]
Zone = Annotated[
    TimeZone, Meta(extra={"allowed": 'the name of a time zone such as "Europe/Berlin", or "UTC"'})
]
Method = Annotated[
    str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\Z", extra={"allowed": "an HTTP method"})
]
FieldName = Annotated[
    str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\Z", extra={"allowed": "an HTTP header name"})
]
ParameterName = Annotated[str, Meta(min_length=1, max_length=256)]
MediaRange = Annotated[
    str,
    Meta(
        pattern=r"^(\*/\*|[!#$%&'+.^_`|~0-9A-Za-z-]+/(\*|[!#$%&'+.^_`|~0-9A-Za-z-]+))\Z",
        extra={"allowed": 'a media type such as "application/json" or "image/*"'},
    ),
]
MatchType = Literal["exists", "exact", "contains", "regex"]

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Day = Annotated[
    str,
    Meta(
        pattern="^(?i:" + "|".join(f"{day[:3]}({day[3:]})?" for day in DAYS) + r")\Z",
        extra={"allowed": 'a day such as "mon" or "Monday"'},
    ),
]
Operation = Annotated[
    str,
    Meta(
        pattern=r"^(?i:(c-)?(echo|store|find|get|move))\Z",
        extra={"allowed": "one of C-ECHO, C-STORE, C-FIND, C-GET, C-MOVE"},
    ),
]


class RuleOptions(Table, frozen=True):
    """What all types have in common."""

    @property
    def may_allow(self) -> bool:
        """Whether there is anything that such a rule allows."""
        return False

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) for everything that is wrong with them."""
        yield from ()


class ModeOptions(RuleOptions, frozen=True, kw_only=True):
    """What matches is allowed, or denied."""

    mode: Mode = "allow"

    @property
    def may_allow(self) -> bool:
        return self.mode == "allow"


class DenyAllOptions(RuleOptions, frozen=True):
    pass


class AllowAllOptions(RuleOptions, frozen=True):
    @property
    def may_allow(self) -> bool:
        return True


class DeniedAddressOptions(RuleOptions, frozen=True):
    ip_addresses: AddressRanges = ()


class AllowedAddressOptions(DeniedAddressOptions, frozen=True):
    @property
    def may_allow(self) -> bool:
        return True


class RateLimitOptions(RuleOptions, frozen=True):
    max_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    window_seconds: Annotated[int, Meta(ge=1, le=86400)] = 60


class PathOptions(ModeOptions, frozen=True):
    paths: Annotated[tuple[str, ...], Meta(min_length=1)]

    def problems(self) -> Iterator[tuple[str, str]]:
        for path in self.paths:
            try:
                PathPattern.parse(path)
            except ValueError as error:
                yield "paths", f"holds a {error}"


class MethodOptions(ModeOptions, frozen=True):
    methods: Annotated[tuple[Method, ...], Meta(min_length=1)]


class _Condition(Table, frozen=True):
    def problem(self, match_type: MatchType, value: str | None, *, case_sensitive: bool) -> str:
        """What is wrong with a value; "" for nothing."""
        if match_type == "exists":
            return ""
        if value is None:
            return f"has an entry without value, which match_type {show(match_type)} needs"
        if match_type == "regex":
            try:
                RegularExpression(value, case_sensitive=case_sensitive)
            except RegularExpressionError as error:
                return f"holds {show(value)}, must be a regular expression: {error}"
        return ""


class HeaderCondition(_Condition, frozen=True):
    name: FieldName
    match_type: MatchType = "exact"
    value: str | None = None


class HeaderOptions(ModeOptions, frozen=True):
    headers: Annotated[tuple[HeaderCondition, ...], Meta(min_length=1)]

    def problems(self) -> Iterator[tuple[str, str]]:
        for each in self.headers:
            if message := each.problem(each.match_type, each.value, case_sensitive=False):
                yield "headers", message


class ContentTypeOptions(ModeOptions, frozen=True):
    content_types: Annotated[tuple[MediaRange, ...], Meta(min_length=1)]


class ParameterCondition(_Condition, frozen=True):
    name: ParameterName
    match_type: MatchType = "exact"
    value: str | None = None


class QueryParameterOptions(ModeOptions, frozen=True):
    parameters: Annotated[tuple[ParameterCondition, ...], Meta(min_length=1)]

    def problems(self) -> Iterator[tuple[str, str]]:
        for each in self.parameters:
            if message := each.problem(each.match_type, each.value, case_sensitive=True):
                yield "parameters", message


class UserAgentPattern(Table, frozen=True):
    pattern: str
    label: str = ""


class UserAgentOptions(ModeOptions, frozen=True):
    patterns: Annotated[tuple[UserAgentPattern, ...], Meta(min_length=1)]

    def problems(self) -> Iterator[tuple[str, str]]:
        for each in self.patterns:
            try:
                RegularExpression.of_literal(each.pattern)
            except RegularExpressionError as error:
                yield "patterns", f"holds {show(each.pattern)}, must be a regular expression: {error}"


class TimeOptions(RuleOptions, frozen=True):
    allow_during_window: bool = True
    timezone: Zone = TimeZone("UTC")
    start_time: Clock | None = None
    end_time: Clock | None = None
    days_of_week: tuple[Day, ...] = ()
    start_date: date | None = None
    end_date: date | None = None

    @property
    def may_allow(self) -> bool:
        return True

    @property
    def minutes(self) -> tuple[int, int]:
        """From the first, until before the second minute of a day; a day is 1440 of them."""
        start = self.start_time.minutes if self.start_time is not None else 0
        return start, self.end_time.minutes if self.end_time is not None else 24 * 60

    @property
    def weekdays(self) -> frozenset[int]:
        """Counted from Monday, 0; empty: all."""
        starts = [day[:3] for day in DAYS]
        return frozenset(starts.index(day[:3].lower()) for day in self.days_of_week)

    def problems(self) -> Iterator[tuple[str, str]]:
        start, end = self.minutes
        if start % (24 * 60) == end % (24 * 60) and end - start != 24 * 60:
            yield "end_time", "is the same as start_time, must be another time"
        if self.start_date is not None and self.end_date is not None and self.end_date < self.start_date:
            yield "end_date", f"is {self.end_date}, must not be before start_date, {self.start_date}"


class GeoOptions(ModeOptions, frozen=True):
    country_codes: tuple[str, ...] = ()


class CallingAEOptions(ModeOptions, frozen=True):
    ae_titles: Annotated[tuple[AETitle, ...], Meta(min_length=1)]


class CalledAEOptions(CallingAEOptions, frozen=True):
    pass


class SopClassOptions(ModeOptions, frozen=True):
    sop_classes: Annotated[tuple[UID, ...], Meta(min_length=1)]


class OperationOptions(ModeOptions, frozen=True):
    operations: Annotated[tuple[Operation, ...], Meta(min_length=1)]

    @property
    def names(self) -> frozenset[str]:
        """C-ECHO and so on."""
        return frozenset("C-" + each.upper().removeprefix("C-") for each in self.operations)


HTTP, DIMSE = "HTTP", "DIMSE"


@dataclass(frozen=True, slots=True)
class RuleKind:
    options: type[RuleOptions]
    protocols: tuple[str, ...]
    """Whose requests it can look at."""
    unavailable: str = ""
    """Why it cannot be used."""


_BOTH = (HTTP, DIMSE)

RULES: Mapping[str, RuleKind] = {
    "ip_deny": RuleKind(DeniedAddressOptions, _BOTH),
    "ip_allow": RuleKind(AllowedAddressOptions, _BOTH),
    "deny_all": RuleKind(DenyAllOptions, _BOTH),
    "allow_all": RuleKind(AllowAllOptions, _BOTH),
    "geo": RuleKind(
        GeoOptions,
        _BOTH,
        "needs to know in which country an address is, and there is no database for that here",
    ),
    "time_based": RuleKind(TimeOptions, _BOTH),
    "called_ae": RuleKind(CalledAEOptions, (DIMSE,)),
    "calling_ae": RuleKind(CallingAEOptions, (DIMSE,)),
    "rate_limit": RuleKind(RateLimitOptions, _BOTH),
    "path": RuleKind(PathOptions, (HTTP,)),
    "method": RuleKind(MethodOptions, (HTTP,)),
    "content_type": RuleKind(ContentTypeOptions, (HTTP,)),
    "header": RuleKind(HeaderOptions, (HTTP,)),
    "query_parameter": RuleKind(QueryParameterOptions, (HTTP,)),
    "user_agent": RuleKind(UserAgentOptions, (HTTP,)),
    "sop_class": RuleKind(SopClassOptions, (DIMSE,)),
    "operation": RuleKind(OperationOptions, (DIMSE,)),
}
"""In the order in which refusals of one weight are told: who somebody is comes before what they want."""
