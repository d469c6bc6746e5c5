"""What a rule says to a request, for the types of rules that look at HTTP and DIMSE alike.

A rule is compiled once, to a `Judge`: given a subject it answers ALLOW, DENY, NO_MATCH, or that it has nothing to look
at (EXEMPT), or that it cannot tell before it knows more (LATER). How the answers of several rules become one is in
`harmony.gateway.policies`. `Rulebook` makes the judges, each rule's once, so that who shares a rule shares its counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final

from harmony.gateway import config
from harmony.gateway.address_range import IPAddress, contains
from harmony.gateway.rate_limit import RateLimit
from harmony.gateway.rule_options import (
    RULES,
    AllowAllOptions,
    AllowedAddressOptions,
    DeniedAddressOptions,
    DenyAllOptions,
    Mode,
    RateLimitOptions,
    RuleOptions,
    TimeOptions,
)

__all__ = ["Clock", "Judge", "Judgement", "Rule", "Rulebook", "Subject", "Verdict", "matching"]


class Verdict(Enum):
    ALLOW = "allow"
    DENY = "deny"
    NO_MATCH = "no match"
    EXEMPT = "exempt"
    """There is nothing that the rule is about, and nothing to object to."""
    LATER = "later"
    """What the rule is about has not come yet; the same rule is asked again when it has."""


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    retry_after_s: int = 0
    """With DENY: when to come again; 0: that will not help."""


ALLOW: Final = Judgement(Verdict.ALLOW)
DENY: Final = Judgement(Verdict.DENY)
NO_MATCH: Final = Judgement(Verdict.NO_MATCH)
EXEMPT: Final = Judgement(Verdict.EXEMPT)
LATER: Final = Judgement(Verdict.LATER)


@dataclass(frozen=True, slots=True)
class Subject:
    """What all rules can look at."""

    address: IPAddress | None
    """Of the client; None when it is not known."""


Judge = Callable[[Subject], Judgement]


@dataclass(frozen=True, slots=True)
class Clock:
    monotonic: Callable[[], float] = time.monotonic
    utc: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that can be asked."""

    name: str
    type: str
    weight: int
    may_allow: bool
    """Whether there is anything to which it says ALLOW."""
    judge: Judge

    @property
    def rank(self) -> tuple[int, int]:
        """Rules of higher weight come first; those of one weight in the order of RULES."""
        return -self.weight, _ORDER[self.type]


_ORDER: Final = {type: number for number, type in enumerate(RULES)}


def matching(mode: Mode, matches: bool) -> Judgement:
    """What a rule with a `mode` says."""
    if not matches:
        return NO_MATCH
    return ALLOW if mode == "allow" else DENY


def common_judge(options: RuleOptions, clock: Clock) -> Judge | None:
    """The judge of a rule that looks at nothing of its own in HTTP or DIMSE; None for any other."""
    match options:
        case AllowedAddressOptions(ip_addresses=ranges):
            return lambda subject: matching("allow", contains(ranges, subject.address))
        case DeniedAddressOptions(ip_addresses=ranges):
            # An address that nobody knows might be one of them.
            return lambda subject: matching(
                "deny", subject.address is None or contains(ranges, subject.address)
            )
        case RateLimitOptions():
            return _rate_limit(options, clock)
        case TimeOptions():
            return lambda subject: _time(options, clock.utc())
        case AllowAllOptions():
            return lambda subject: ALLOW
        case DenyAllOptions():
            return lambda subject: DENY
    return None


def _rate_limit(options: RateLimitOptions, clock: Clock) -> Judge:
    counts = RateLimit(options.max_requests, options.window_seconds)

    def judge(subject: Subject) -> Judgement:
        wait_s = counts.request(subject.address, now=clock.monotonic())
        return NO_MATCH if wait_s is None else Judgement(Verdict.DENY, max(1, math.ceil(wait_s)))

    return judge


def _time(options: TimeOptions, now: datetime) -> Judgement:
    return ALLOW if is_within(options, now) == options.allow_during_window else DENY


def is_within(options: TimeOptions, now: datetime) -> bool:
    """Whether a moment is in the window. Days and dates are those on which it began, if it goes over midnight."""
    local = now.astimezone(options.timezone.zone)
    start, end = options.minutes
    minute, day = local.hour * 60 + local.minute, local.date()
    if start < end:
        inside = start <= minute < end
    else:
        inside = minute >= start or minute < end
        if minute < end:
            day -= timedelta(days=1)
    return (
        inside
        and (not options.weekdays or day.weekday() in options.weekdays)
        and (options.start_date is None or day >= options.start_date)
        and (options.end_date is None or day <= options.end_date)
    )


class Rulebook:
    """Compiles rules; one for a running configuration."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._common: dict[str, Judge] = {}
        """By the name of the rule."""

    def compiled(
        self, rules: Iterable[config.Rule], protocol: str, specific: Callable[[RuleOptions], Judge]
    ) -> tuple[Rule, ...]:
        """Those that can look at a protocol's requests, by rank.

        specific: the judge of a rule that only this protocol knows.
        """
        found = [
            Rule(rule.name, rule.type, rule.weight, rule.options.may_allow, self._judge(rule, specific))
            for rule in rules
            if protocol in RULES[rule.type].protocols and isinstance(rule.options, RuleOptions)
        ]
        return tuple(sorted(found, key=lambda rule: rule.rank))

    def _judge(self, rule: config.Rule, specific: Callable[[RuleOptions], Judge]) -> Judge:
        assert isinstance(rule.options, RuleOptions)
        if rule.name in self._common:
            return self._common[rule.name]
        judge = common_judge(rule.options, self._clock)
        if judge is None:
            return specific(rule.options)
        self._common[rule.name] = judge
        return judge
