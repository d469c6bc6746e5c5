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
    async with aclosing(_in_intervals(ask, query, times) if times else _descend(ask, query)) as matches:
        async for match in matches:
            yield match


# Dates with times


def _times_in_intervals(query: Query) -> set[str]:
    """Tags of times that are one interval with their date."""
    if not query.matching.combined_date_time or query.matching.timezone_adjustment:
        return set()
    apart = compile_query(query.identifier, replace(query.matching, combined_date_time=False))
    together = compile_query(query.identifier, query.matching)
    return {format_tag(key.tag) for key in apart.keys} - {format_tag(key.tag) for key in together.keys}


async def _in_intervals(ask: Ask, query: Query, times: set[str]) -> AsyncGenerator[Model, None]:
    of_days = {
        key: {"vr": element["vr"]} if key in times else element for key, element in query.identifier.items()
    }
    moments = {
        key: element
        for key, element in query.identifier.items()
        if key in times or vr_of(int(key, 16)) == "DA"
    }
    matcher = compile_query(moments, query.matching)
    apart = replace(query.matching, combined_date_time=False)
    question = replace(query, identifier=of_days, matching=apart, limit=None, offset=0)
    skip, wanted = query.offset, query.limit
    async with aclosing(_descend(ask, question)) as matches:
        async for match in matches:
            if not matcher.matches(match):
                continue
            if skip:
                skip -= 1
                continue
            yield match
            if wanted is not None:
                wanted -= 1
                if not wanted:
                    return


# Levels


async def _descend(ask: Ask, query: Query) -> AsyncGenerator[Model, None]:
    matches = ask(query) if _is_within_one(query) else _below(ask, query)
    async with aclosing(matches):
        async for match in matches:
            yield match


def _is_within_one(query: Query) -> bool:
    """Whether the unique keys of all levels above have one value each."""
    above = LEVELS[1 : LEVELS.index(query.level)]
    return all(
        len(list(filter(None, texts_of(query.identifier, _UNIQUE_KEYS[level])))) == 1 for level in above
    )


async def _below(ask: Ask, query: Query) -> AsyncGenerator[Model, None]:
    skip, wanted = query.offset, query.limit
    own = _keys(query, lambda level: level is query.level)
    restricted = not compile_query(own, query.matching).universal
    enough = None if restricted or wanted is None else skip + wanted
    for parent in await _parents(ask, query, enough):
        within = {
            f"{tag:08X}": _uid(text_of(parent, tag)) for tag in _UNIQUE_KEYS.values() if text_of(parent, tag)
        }
        limit = None if wanted is None else skip + wanted
        question = replace(query, identifier=dict(sorted((own | within).items())), limit=limit, offset=0)
        async with aclosing(ask(question)) as matches:
            async for match in matches:
                if skip:
                    skip -= 1
                    continue
                yield _joined(parent, match)
                if wanted is not None:
                    wanted -= 1
                    if not wanted:
                        return


async def _parents(ask: Ask, query: Query, enough: int | None) -> list[Model]:
    """What to look into. enough: so many hold as many matches as are wanted."""
    level = _PARENT[query.level]
    identifier = _keys(query, lambda each: LEVELS.index(each) <= LEVELS.index(level))
    limit = MAXIMUM_PARENTS + 1 if enough is None else min(enough, MAXIMUM_PARENTS + 1)
    question = replace(query, level=level, identifier=identifier, limit=limit, offset=0)
    async with aclosing(_descend(ask, question)) as matches:
        parents = [match async for match in matches]
    if len(parents) > MAXIMUM_PARENTS:
        what = "studies" if level is Level.STUDY else "series"
        raise HTTPError(
            413,
            f"there are more than {MAXIMUM_PARENTS} {what} to search: narrow the search by their attributes, or give "
            "a limit",
        )
    return parents


def _keys(query: Query, chosen: Callable[[Level], bool]) -> Model:
    return {
        key: element
        for key, element in query.identifier.items()
        if key in _EVERYWHERE or chosen(level_of(key))
    }


def _uid(uid: str) -> dict[str, object]:
    return {"vr": "UI", "Value": [uid]}


def _joined(parent: Model, match: Model) -> Model:
    """A match with what is known of the levels above; where both have an attribute, what has a value counts."""
    return parent | {key: element for key, element in match.items() if len(element) > 1 or key not in parent}
