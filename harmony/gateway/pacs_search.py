"""Searches in a PACS, in terms that every PACS knows (PS3.4 §C.4.1.3.1).

What PS3.18 §10.6 lets anyone search for goes beyond a C-FIND for which nothing was negotiated:

- Series or instances wherever they are: a PACS answers for the series of one study and for the instances of one series,
  and takes keys of that level alone. So the search begins at the studies: attributes of a study are asked for there,
  those of series within each, then those of instances. Each answer has what was found on the way. Where the levels
  above are given there is nothing to descend.
- A range of dates and one of times as one interval, from an evening to a morning: the days are asked for, and what
  comes is looked at here.

Everything else goes through as it is. One query at a time, so one association is enough; the studies, or series, that
are looked into are held in memory, at most `MAXIMUM_PARENTS`. Called by `harmony.gateway.qido`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from harmony.archive.levels import Level, level_of
from harmony.archive.matching import NOT_KEYS, compile_query
from harmony.dicom.json_model import Model, format_tag, text_of, texts_of, vr_of
from harmony.gateway.backend import Query
from harmony.http import HTTPError

__all__ = ["search_pacs"]

MAXIMUM_PARENTS: Final = 4096
"""A search through more than that takes a PACS minutes, and some ten megabytes here."""

LEVELS: Final = tuple(Level)
_PARENT: Final = {Level.SERIES: Level.STUDY, Level.IMAGE: Level.SERIES}
_UNIQUE_KEYS: Final = {Level.STUDY: 0x0020000D, Level.SERIES: 0x0020000E}
_EVERYWHERE: Final = frozenset(map(format_tag, NOT_KEYS))

Ask = Callable[[Query], AsyncGenerator[Model, None]]


async def search_pacs(ask: Ask, query: Query) -> AsyncGenerator[Model, None]:
    """Yield the matches of a query; `ask` is `Backend.query`.

    Raises HTTPError 413 when there is too much to look into.
    """
    times = _times_in_intervals(query)
    matches = _page(_in_intervals(ask, query, times), query) if times else _found(ask, query)
    async with aclosing(matches):
        async for match in matches:
            yield match


async def _page(matches: AsyncGenerator[Model, None], query: Query) -> AsyncGenerator[Model, None]:
    """What the offset and limit of a query leave of all matches."""
    skip, left = query.offset, query.limit
    async with aclosing(matches):
        async for match in matches:
            if skip:
                skip -= 1
                continue
            yield match
            if left is not None:
                left -= 1
                if not left:
                    return


# Dates with times


def _times_in_intervals(query: Query) -> set[str]:
    """Tags of times that are one interval with their date."""
    if not query.matching.combined_date_time or query.matching.timezone_adjustment:
        return set()
    apart = compile_query(query.identifier, replace(query.matching, combined_date_time=False))
    together = compile_query(query.identifier, query.matching)
    return {format_tag(key.tag) for key in apart.keys} - {format_tag(key.tag) for key in together.keys}


async def _in_intervals(ask: Ask, query: Query, times: set[str]) -> AsyncGenerator[Model, None]:
    """All matches, whatever offset and limit are."""
    of_days, moments = dict(query.identifier), {}
    for key, element in query.identifier.items():
        if key in times:
            of_days[key] = {"vr": element["vr"]}
        if key in times or vr_of(int(key, 16)) == "DA":
            moments[key] = element
    matcher = compile_query(moments, query.matching)
    apart = replace(query.matching, combined_date_time=False)
    question = replace(query, identifier=of_days, matching=apart, limit=None, offset=0)
    async with aclosing(_found(ask, question)) as matches:
        async for match in matches:
            if matcher.matches(match):
                yield match


# Levels


def _found(ask: Ask, query: Query) -> AsyncGenerator[Model, None]:
    return ask(query) if _is_within_one(query) else _page(_below(ask, query), query)


def _is_within_one(query: Query) -> bool:
    """Whether the unique keys of all levels above have one value each."""
    above = LEVELS[1 : LEVELS.index(query.level)]
    return all(
        len(list(filter(None, texts_of(query.identifier, _UNIQUE_KEYS[level])))) == 1 for level in above
    )


async def _below(ask: Ask, query: Query) -> AsyncGenerator[Model, None]:
    """The first matches, at least as many as offset and limit speak of."""
    enough = None if query.limit is None else query.offset + query.limit
    own = _keys(query, lambda level: level is query.level)
    # Where nothing restricts them, so many parents have that many matches, unless there are empty ones.
    at_once = enough if compile_query(own, query.matching).universal else None
    looked_into = 0
    while parents := await _parents(ask, query, at_once, looked_into):
        for parent in parents:
            within = {
                f"{tag:08X}": parent[f"{tag:08X}"] for tag in _UNIQUE_KEYS.values() if text_of(parent, tag)
            }
            identifier = dict(sorted((own | within).items()))
            question = replace(query, identifier=identifier, limit=enough, offset=0)
            async with aclosing(ask(question)) as matches:
                async for match in matches:
                    yield _joined(parent, match)
        looked_into += len(parents)
        if at_once is None or len(parents) < at_once:
            return


async def _parents(ask: Ask, query: Query, wanted: int | None, looked_into: int) -> list[Model]:
    """What to look into next, all of it where no number is wanted."""
    level = _PARENT[query.level]
    identifier = _keys(query, lambda each: LEVELS.index(each) <= LEVELS.index(level))
    most = MAXIMUM_PARENTS - looked_into + 1
    limit = most if wanted is None else min(wanted, most)
    question = replace(query, level=level, identifier=identifier, limit=limit, offset=looked_into)
    async with aclosing(_found(ask, question)) as matches:
        parents = [match async for match in matches]
    if looked_into + len(parents) > MAXIMUM_PARENTS:
        what = "studies" if level is Level.STUDY else "series"
        remedy = "narrow the search by their attributes" + (", or give a limit" if wanted is not None else "")
        raise HTTPError(413, f"there are more than {MAXIMUM_PARENTS} {what} to search: {remedy}")
    return parents


def _keys(query: Query, chosen: Callable[[Level], bool]) -> Model:
    return {
        key: element
        for key, element in query.identifier.items()
        if key in _EVERYWHERE or chosen(level_of(key))
    }


def _joined(parent: Model, match: Model) -> Model:
    """A match with what is known of the levels above; where both have an attribute, what has a value counts."""
    return parent | {key: element for key, element in match.items() if len(element) > 1 or key not in parent}
