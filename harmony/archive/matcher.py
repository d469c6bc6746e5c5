"""What a compiled query is: keys with the type of matching each asks for, and options (PS3.4 §C.2.2.2).

A `Matcher` says the same twice. `matches` tells for one entity whether it is an answer; `keys` are the pieces
that an index can ask its database for, with operands in the form that `comparable_of` gives to stored values.
Made by `compile_query` in `harmony.archive.matching`, which re-exports all of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

__all__ = ["IdentifierError", "Key", "KeyKind", "Matcher", "MatchingOptions", "Problem", "Test"]

Test = Callable[[Mapping[str, Any]], bool]


class Problem(Enum):
    """What is wrong with an identifier; each is status A900 in DIMSE and 400 in HTTP."""

    WILDCARD = "wild cards are not defined for this VR"
    DATE_TIME = "not a date, time or date-time, nor a range of them"
    SIZE = "too many or too long values to compare with each entity"
    NESTING = "sequences are nested too deep"
    MALFORMED = "not an attribute with values"


class IdentifierError(ValueError):
    """An identifier asks for something that has no meaning. The message holds the attribute, not its value."""

    def __init__(self, tag: int, problem: Problem) -> None:
        super().__init__(f"identifier: ({tag >> 16:04X},{tag & 0xFFFF:04X}): {problem.value}")
        self.tag = tag
        """The offending element, for (0000,0901) of the response."""
        self.problem = problem


@dataclass(frozen=True, slots=True)
class MatchingOptions:
    """What the standard leaves open, or lets the two sides negotiate."""

    empty_matches: bool = True
    """A stored attribute without value matches whatever is asked, "unknown" as PS3.4 §C.2.2.1.2 wants it; many
    archives answer no. Never for study, series and instance UIDs."""
    empty_value_matching: bool = False
    """The key `""` asks for entities without the value (PS3.4 §C.2.2.2.7)."""
    multiple_value_matching: bool = False
    """Several values of a key must all be there (PS3.4 §C.2.2.2.8), instead of any one of them."""
    combined_date_time: bool = False
    """A range of a date and one of its time are one interval (PS3.4 §C.2.2.2.5.3); always so in QIDO-RS."""
    fuzzy_names: bool = False
    """Names also match by sound and in any order."""
    fold_accents: bool = False
    """Names match whatever the accents."""
    timezone_adjustment: bool = False
    """Dates and times of the identifier are in the time zone that it states (PS3.4 §C.2.2.2.5)."""
    utc_offset_minutes: int = 0
    """Of entities and identifiers that state none."""
    refuse_undefined_wildcards: bool = True
    """Wild cards where PS3.4 does not define them are an error; otherwise they match nothing."""


class KeyKind(Enum):
    """The types of matching (PS3.4 §C.2.2.2), as far as a database cares."""

    UNIVERSAL = "universal"
    SINGLE = "single"
    """Equal to the one value."""
    LIST = "list"
    """Equal to any of the values (to all of them with `every`)."""
    WILDCARD = "wildcard"
    """Like any of the values, in which `*` and `?` are wild (all of them with `every`)."""
    RANGE = "range"
    """From `lower` to `upper`, both included, either open when None."""
    EMPTY = "empty"
    """Without value."""
    SEQUENCE = "sequence"
    """One item matches `items`."""
    OTHER = "other"
    """Only `matches` can tell."""


@dataclass(frozen=True, slots=True)
class Key:
    """One attribute of the identifier that restricts the answer."""

    tag: int
    """As in the identifier; the block of a private attribute may be another one in an entity."""
    vr: str
    kind: KeyKind
    values: tuple[str, ...] = ()
    """In the form of `comparable_of`; of names, folded with accents and to compare with each group."""
    lower: str | None = None
    upper: str | None = None
    every: bool = False
    exact: bool = True
    """Asking a database with these operands finds the matches and nothing else."""
    empty_matches: bool = False
    """An entity without value matches, too."""
    items: Matcher | None = None
    test: Test = field(repr=False, compare=False, default=lambda entity: True)
    """What `Matcher.matches` asks."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """A compiled identifier."""

    keys: tuple[Key, ...]
    """Those that restrict; universal ones are only in `requested`."""
    requested: tuple[tuple[int, str, Matcher | None], ...]
    """Tag, VR and, for sequences with keys inside, their matcher, of every attribute to return; by tag."""
    private_creators: Mapping[int, str] = field(default_factory=dict)
    """By the tag of the private creator element (gggg,00bb)."""

    @property
    def universal(self) -> bool:
        """Everything matches."""
        return not self.keys

    def matches(self, entity: Mapping[str, Any]) -> bool:
        """Tell whether an entity matches every key."""
        return all(key.test(entity) for key in self.keys)

    def without(self, tags: Iterable[int]) -> Matcher:
        """Return what is left to ask once a database has answered the keys of these tags."""
        answered = frozenset(tags)
        return replace(self, keys=tuple(key for key in self.keys if key.tag not in answered))
