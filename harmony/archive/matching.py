"""Attribute matching of queries (PS3.4 §C.2.2.2), for C-FIND and QIDO-RS alike.

`compile_query` reads an identifier once. `Matcher.matches` then tells for each entity, a model of all the
attributes at its level and above, whether it is an answer. `Matcher.keys` says the same in pieces that an
index can ask its database for: the kind of each key and its operands in a normal form, which `comparable_of`
gives to stored values. Where a key says `exact`, the database's answer needs no second look; otherwise what
it found contains every match and maybe more.

Everything the standard leaves open or negotiates is a field of `MatchingOptions`. An attribute that is absent
from an entity is like one without value. Character sets are none of the business here: models are Unicode.
What an answer contains is `harmony.archive.projection`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from harmony.archive.comparable import (
    BINARY_VRS,
    NUMBER_VRS,
    RANGE_VRS,
    WILDCARD_VRS,
    comparable_of,
    name_keys,
    number,
    text_value,
)
from harmony.archive.date_time import Range, combined, comparable, parse_range, shifted, utc_offset_minutes
from harmony.archive.matcher import IdentifierError, Key, KeyKind, Matcher, MatchingOptions, Problem
from harmony.archive.person_name import name_groups, name_patterns, name_test
from harmony.archive.wildcard import has_wildcard, wildcard
from harmony.dicom.json_model import PERSON_NAME_GROUPS, Element, format_tag, tag_of, text_of, vr_of

__all__ = [
    "IdentifierError",
    "Key",
    "KeyKind",
    "Matcher",
    "MatchingOptions",
    "Problem",
    "comparable_of",
    "compile_query",
    "name_keys",
    "private_attribute",
]

_DATE_LENGTH = len("YYYYMMDD")
_DAY_MINUTES = 24 * 60

MAXIMUM_PATTERNS = 100
MAXIMUM_PATTERN_LENGTH = 1024
"""Of names, dates and wild cards, which are compared one by one with every entity. The longest values that the
standard lets anyone search with `*` have 64 characters, and people type one or two."""
MAXIMUM_NESTING = 16
"""Sequences inside sequences of an identifier; the deepest that any information model has is three."""

# PS3.4 §C.2.2.2.1: what is unknown about an entity matches; who it is, is not unknown.
UNIQUE_IDENTIFIERS = frozenset({0x00080018, 0x0020000D, 0x0020000E})

TIMEZONE_OFFSET = 0x00080201
NOT_KEYS = frozenset(
    {
        0x00080005,  # Specific Character Set
        0x00080052,  # Query/Retrieve Level
        0x00080053,  # Query/Retrieve View
        0x00080054,  # Retrieve AE Title
        0x00080056,  # Instance Availability
        TIMEZONE_OFFSET,
        0x00081190,  # Retrieve URL
        0x00880130,  # Storage Media File-set ID
        0x00880140,  # Storage Media File-set UID
    }
)
"""They say how to read the identifier, or what only the answer knows."""

# Dates with the time that belongs to them, for combined date-time matching (PS3.4 §C.2.2.2.5.3).
_TIME_OF_DATE = {
    0x00080012: 0x00080013,  # Instance Creation
    0x00080020: 0x00080030,  # Study
    0x00080021: 0x00080031,  # Series
    0x00080022: 0x00080032,  # Acquisition
    0x00080023: 0x00080033,  # Content
    0x00100030: 0x00100032,  # Patient's Birth
    0x00400002: 0x00400003,  # Scheduled Procedure Step Start
    0x00400004: 0x00400005,  # Scheduled Procedure Step End
    0x00400244: 0x00400245,  # Performed Procedure Step Start
    0x00400250: 0x00400251,  # Performed Procedure Step End
    0x00402004: 0x00402005,  # Issue Date of Imaging Service Request
}


def compile_query(identifier: Mapping[str, Any], options: MatchingOptions | None = None) -> Matcher:
    """Compile an identifier, a model of which each attribute is a key or asks to be returned.

    Raises IdentifierError naming the attribute that means nothing; ValueError for a name that is no attribute.
    """
    attributes = _attributes(identifier)
    return _Compiler(options or MatchingOptions(), attributes).matcher(attributes, depth=0)


def private_attribute(entity: Mapping[str, Any], tag: int, creator: str) -> int | None:
    """Return where an entity has the private attribute that an identifier calls `tag` (PS3.5 §7.8.1): blocks
    are reserved by each data set anew. None when the creator has no block there."""
    group = tag >> 16
    asked = tag >> 8 & 0xFF
    blocks: list[int] = [asked, *range(0x10, 0x100)]
    for block in blocks:
        if text_of(entity, group << 16 | block).strip() == creator:
            return group << 16 | block << 8 | tag & 0xFF
    return None


class _Compiler:
    def __init__(self, options: MatchingOptions, identifier: Mapping[int, Element]) -> None:
        self._options = options
        stated = None
        if options.timezone_adjustment:
            stated = utc_offset_minutes(_first_text(identifier.get(TIMEZONE_OFFSET)))
        self._offset = options.utc_offset_minutes if stated is None else stated
        """Of dates and times in the identifier."""

    def matcher(self, attributes: Mapping[int, Element], depth: int) -> Matcher:
        if depth > MAXIMUM_NESTING:
            raise IdentifierError(min(attributes), Problem.NESTING)
        creators = {
            tag: _first_text(element)
            for tag, element in attributes.items()
            if tag & 0x10000 and 0x10 <= tag & 0xFFFF <= 0xFF
        }
        keys: list[Key] = []
        requested: list[tuple[int, str, Matcher | None]] = []
        for tag in sorted(attributes):
            if tag >> 16 < 8 or tag & 0xFFFF == 0 or tag in creators:
                continue
            creator = creators.get(tag & 0xFFFF0000 | tag >> 8 & 0xFF, "") if tag & 0x10000 else None
            if creator == "":
                continue  # whose attribute it is cannot be told
            key, items = self._key(tag, attributes[tag], depth)
            requested.append((tag, key.vr, items))
            if key.kind is not KeyKind.UNIVERSAL and tag not in NOT_KEYS:
                keys.append(key if creator is None else _private(key, creator))
        return Matcher(tuple(self._paired(keys)), tuple(requested), creators)

    def _key(self, tag: int, element: Element, depth: int) -> tuple[Key, Matcher | None]:
        vr = vr_of(tag)
        if vr == "UN":
            vr = str(element.get("vr") or "UN")
        values = element["Value"]
        if vr == "SQ":
            return self._sequence(tag, values, depth)
        if vr in BINARY_VRS or tag in NOT_KEYS or not values:
            return _universal(tag, vr), None
        try:
            texts = [_key_text(vr, value) for value in values]
        except TypeError:
            raise IdentifierError(tag, Problem.MALFORMED) from None
        texts = [text for text in texts if text]
        patterns = vr == "PN" or vr in RANGE_VRS or any(map(has_wildcard, texts))
        if patterns and (
            len(texts) > MAXIMUM_PATTERNS or max(map(len, texts), default=0) > MAXIMUM_PATTERN_LENGTH
        ):
            raise IdentifierError(tag, Problem.SIZE)
        if not texts or "*" in texts:
            return _universal(tag, vr), None
        if texts == ['""'] and self._options.empty_value_matching:
            empty = format_tag(tag)
            return Key(tag, vr, KeyKind.EMPTY, test=lambda entity: not _values(entity, empty)), None
        if vr == "PN":
            key = self._person_name(tag, texts)
        elif vr in RANGE_VRS:
            key = self._date_time(tag, vr, texts)
        else:
            key = self._plain(tag, vr, texts)
        return key, None

    def _plain(self, tag: int, vr: str, texts: list[str]) -> Key:
        wild = any(map(has_wildcard, texts))
        if wild and vr not in WILDCARD_VRS:
            return self._undefined_wildcard(tag, vr)
        values = tuple(number(text) if vr in NUMBER_VRS else text for text in texts)
        kind = KeyKind.WILDCARD if wild else KeyKind.SINGLE if len(values) == 1 else KeyKind.LIST
        # A UID has one value wherever PS3.4 lists them, so a list of them cannot mean all (PS3.4 §C.2.2.2.2).
        every = self._options.multiple_value_matching and len(values) > 1 and vr != "UI"
        tests: list[Callable[[str], bool]]
        if wild:
            tests = [wildcard(value) for value in values]
        else:
            tests = [_equal(value) for value in values] if every else [frozenset(values).__contains__]
        return self._test_values(
            Key(tag, vr, kind, values, every=every),
            tests,
            lambda value: (number(value) if vr in NUMBER_VRS else text_value(vr, str(value)),),
        )

    def _person_name(self, tag: int, texts: list[str]) -> Key:
        accents, fuzzy = self._options.fold_accents, self._options.fuzzy_names
        tests = [name_test(text, accents=accents, fuzzy=fuzzy) for text in texts]
        every = self._options.multiple_value_matching and len(texts) > 1
        operands: list[str] = []
        for text in texts:
            operand = next((group for group in name_groups(text, accents=True) if group), "*")
            # Folding may change how many characters there are.
            operands += name_patterns(operand if accents else operand.replace("?", "*"))
        wild = any(map(has_wildcard, operands))
        kind = KeyKind.WILDCARD if wild else KeyKind.SINGLE if len(operands) == 1 else KeyKind.LIST
        exact = accents and len(operands) == len(texts) and not any("=" in text for text in texts)
        if fuzzy:
            key = Key(tag, "PN", KeyKind.OTHER, exact=False)
        elif every and len(operands) > len(texts):
            key = Key(tag, "PN", kind, tuple(operands), exact=False)
        else:
            key = Key(tag, "PN", kind, tuple(operands), every=every, exact=exact)
        return self._test_values(
            key, tests, lambda value: (name_groups(value, accents=accents),), every=every
        )

    def _date_time(self, tag: int, vr: str, texts: list[str]) -> Key:
        if any(map(has_wildcard, texts)):
            return self._undefined_wildcard(tag, vr)
        ranges: list[Range] = []
        for text in texts:
            asked = parse_range(vr, text, utc_offset_minutes=self._offset)
            if asked is None:
                raise IdentifierError(tag, Problem.DATE_TIME)
            ranges.append(asked)
        every = self._options.multiple_value_matching and len(ranges) > 1
        if len(ranges) == 1 and not ranges[0].single:
            key = Key(tag, vr, KeyKind.RANGE, lower=ranges[0].lower, upper=ranges[0].upper)
        elif all(asked.single for asked in ranges):
            values = tuple(asked.lower or "" for asked in ranges)
            key = Key(tag, vr, KeyKind.SINGLE if len(values) == 1 else KeyKind.LIST, values, every=every)
        else:
            key = Key(tag, vr, KeyKind.OTHER, exact=False)
        site = self._options.utc_offset_minutes
        tests = [asked.contains for asked in ranges]
        if vr != "DT":
            return self._test_values(
                key, tests, lambda value: _maybe(comparable(vr, str(value))), every=every
            )
        name = format_tag(tag)

        def matches(entity: Mapping[str, Any]) -> bool:
            values = _values(entity, name)
            if not values:
                return self._options.empty_matches
            offset = _offset_of(entity, site)
            moments = [comparable(vr, str(value), utc_offset_minutes=offset) for value in values]
            combine = all if every else any
            return combine(any(moment is not None and test(moment) for moment in moments) for test in tests)

        # An index cannot know the offset that an entity's data set states for values that state none.
        return replace(key, exact=False, test=matches, empty_matches=self._options.empty_matches)

    def _undefined_wildcard(self, tag: int, vr: str) -> Key:
        if self._options.refuse_undefined_wildcards:
            raise IdentifierError(tag, Problem.WILDCARD)
        return Key(tag, vr, KeyKind.LIST, (), test=lambda entity: False)

    def _sequence(self, tag: int, values: Iterable[Any], depth: int) -> tuple[Key, Matcher | None]:
        universal = Key(tag, "SQ", KeyKind.UNIVERSAL)
        # The standard allows one item. Of several, the first with anything in it is taken.
        item = next((value for value in values if value), None)
        if item is None:
            return universal, None
        if not isinstance(item, Mapping):
            raise IdentifierError(tag, Problem.MALFORMED)
        try:
            attributes = _attributes(item)
        except IdentifierError:
            raise
        except ValueError:  # a value of another VR: a person name is a mapping, too
            raise IdentifierError(tag, Problem.MALFORMED) from None
        matcher = self.matcher(attributes, depth + 1)
        if matcher.universal:
            return universal, matcher
        name, empty_matches = format_tag(tag), self._options.empty_matches

        def matches(entity: Mapping[str, Any]) -> bool:
            # An item without attributes counts: nothing is known about it.
            values = (entity.get(name) or {}).get("Value") or ()
            items = [item for item in values if isinstance(item, Mapping)]
            return any(map(matcher.matches, items)) if items else empty_matches

        return (
            Key(
                tag,
                "SQ",
                KeyKind.SEQUENCE,
                exact=False,
                empty_matches=empty_matches,
                items=matcher,
                test=matches,
            ),
            matcher,
        )

    def _test_values(
        self,
        key: Key,
        tests: Sequence[Callable[[Any], bool]],
        comparables: Callable[[Any], tuple[Any, ...]],
        *,
        every: bool | None = None,
    ) -> Key:
        """Return the key with its test: any value of the entity fits any value of the key, or every one."""
        name = format_tag(key.tag)
        combine = all if (key.every if every is None else every) else any
        empty_matches = self._options.empty_matches and key.tag not in UNIQUE_IDENTIFIERS

        def matches(entity: Mapping[str, Any]) -> bool:
            values = _values(entity, name)
            if not values:
                return empty_matches
            candidates = [candidate for value in values for candidate in comparables(value)]
            return combine(any(map(test, candidates)) for test in tests)

        return replace(key, test=matches, empty_matches=empty_matches)

    def _paired(self, keys: list[Key]) -> list[Key]:
        """Return the keys with those dates and times changed that mean something together."""
        by_tag = {key.tag: key for key in keys}
        for date_tag, time_tag in _TIME_OF_DATE.items():
            date, time = by_tag.get(date_tag), by_tag.get(time_tag)
            if date and time and self._options.combined_date_time and _are_interval(date, time):
                by_tag[date_tag] = self._interval(date, time)
                del by_tag[time_tag]
            elif self._options.timezone_adjustment:
                by_tag |= {key.tag: self._adjusted(key, date_tag, time_tag) for key in (date, time) if key}
        return list(by_tag.values())

    def _interval(self, date: Key, time: Key) -> Key:
        """Return the date's key with the test of the interval; its own bounds are those of the days."""
        days, interval = _range_of(date), combined(_range_of(date), _range_of(time))

        def matches(entity: Mapping[str, Any]) -> bool:
            moment = self._moment(entity, date.tag, time.tag)
            if moment is None:
                return self._options.empty_matches and not _values(entity, format_tag(date.tag))
            if len(moment) == _DATE_LENGTH:  # at an unknown time of that day
                return self._options.empty_matches and days.contains(moment)
            return interval.contains(moment)

        key = Key(
            date.tag,
            "DA",
            KeyKind.RANGE,
            lower=days.lower,
            upper=days.upper,
            exact=False,
            empty_matches=self._options.empty_matches,
            test=matches,
        )
        return _widened(key) if self._options.timezone_adjustment else key

    def _adjusted(self, key: Key, date_tag: int, time_tag: int) -> Key:
        """Return the key with a test of the entity's date or time in the identifier's time zone."""
        name, test = format_tag(key.tag), key.test

        def matches(entity: Mapping[str, Any]) -> bool:
            moment = self._moment(entity, date_tag, time_tag)
            if moment is None or len(moment) == _DATE_LENGTH:
                return test(entity)  # without both, nothing can be adjusted
            value = moment[:_DATE_LENGTH] if key.vr == "DA" else moment[_DATE_LENGTH:]
            return test({name: {"vr": key.vr, "Value": [value]}})

        adjusted = replace(key, exact=False, test=matches)
        return _widened(adjusted) if key.vr == "DA" else replace(adjusted, kind=KeyKind.OTHER, values=())

    def _moment(self, entity: Mapping[str, Any], date_tag: int, time_tag: int) -> str | None:
        """Return an entity's date and time, adjusted if need be, or its date if there is no time."""
        dates, times = _values(entity, format_tag(date_tag)), _values(entity, format_tag(time_tag))
        day = comparable("DA", str(dates[0])) if dates else None
        time = comparable("TM", str(times[0])) if times else None
        if day is None or time is None:
            return day
        if not self._options.timezone_adjustment:
            return day + time
        offset = _offset_of(entity, self._options.utc_offset_minutes)
        return shifted(day + time, self._offset - offset) or day + time


@lru_cache(maxsize=4096)
def _universal(tag: int, vr: str) -> Key:
    """Most keys of a query only ask for what is to be returned, and it is the same ones again and again."""
    return Key(tag, vr, KeyKind.UNIVERSAL)


def _are_interval(date: Key, time: Key) -> bool:
    """Tell whether a date and a time are one interval: at least one is a range, the other has one value."""
    kinds = {date.kind, time.kind}
    return KeyKind.RANGE in kinds and kinds <= {KeyKind.RANGE, KeyKind.SINGLE}


def _widened(key: Key) -> Key:
    """Return a date's key with bounds for days of another time zone: the one before and the one after."""
    if key.kind not in (KeyKind.RANGE, KeyKind.SINGLE):
        return replace(key, kind=KeyKind.OTHER, values=(), exact=False)
    days = _range_of(key)
    lower = days.lower and (shifted(days.lower + "000000.000000", -_DAY_MINUTES) or "")[:_DATE_LENGTH]
    upper = days.upper and (shifted(days.upper + "000000.000000", _DAY_MINUTES) or "")[:_DATE_LENGTH]
    return replace(key, kind=KeyKind.RANGE, values=(), lower=lower or None, upper=upper or None, exact=False)


def _attributes(identifier: Mapping[str, Any]) -> dict[int, Element]:
    """Return the attributes of an identifier or an item by tag, each with a list of values."""
    attributes: dict[int, Element] = {}
    for name, element in identifier.items():
        tag = tag_of(name)
        if not isinstance(element, Mapping):
            raise IdentifierError(tag, Problem.MALFORMED)
        values = element.get("Value")
        if not isinstance(values, list):
            values = [] if values is None else [values]
        attributes[tag] = {"vr": element.get("vr"), "Value": values}
    return attributes


def _first_text(element: Element | None) -> str:
    values = element["Value"] if element else []
    return values[0].strip() if values and isinstance(values[0], str) else ""


def _range_of(key: Key) -> Range:
    return Range(key.lower, key.upper) if key.kind is KeyKind.RANGE else Range(key.values[0], key.values[0])


def _offset_of(entity: Mapping[str, Any], default: int) -> int:
    offset = utc_offset_minutes(text_of(entity, TIMEZONE_OFFSET))
    return default if offset is None else offset


def _private(key: Key, creator: str) -> Key:
    """Return the key with a test that looks where the entity has this creator's attributes."""
    name, test = format_tag(key.tag), key.test

    def matches(entity: Mapping[str, Any]) -> bool:
        tag = private_attribute(entity, key.tag, creator)
        element = entity.get(format_tag(tag)) if tag is not None else None
        return test({name: element} if element is not None else {})

    return replace(key, kind=KeyKind.OTHER, values=(), lower=None, upper=None, exact=False, test=matches)


def _values(entity: Mapping[str, Any], name: str) -> list[Any]:
    element = entity.get(name)
    values = element.get("Value") if element else None
    return [value for value in values if value not in (None, "", {})] if values else []


def _maybe(text: str | None) -> tuple[str, ...]:
    return () if text is None else (text,)


def _equal(value: str) -> Callable[[str], bool]:
    return lambda other: other == value


def _key_text(vr: str, value: Any) -> str:
    """Return a value of a key as text; raises TypeError for what has none."""
    if vr == "PN" and isinstance(value, Mapping):
        return "=".join(str(value.get(group) or "") for group in PERSON_NAME_GROUPS).rstrip("=")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return text_value(vr, str(value))
