"""Searches that a PACS need not know, asked level by level (PS3.4 §C.4.1.3.1).

Without having negotiated relational queries, a PACS answers for the series of one study and for the instances of one
series, and takes keys of that level alone. A search for series or instances wherever they are (PS3.18 §10.6.1.1) is
therefore begun at the study: its attributes there, then those of the series within each, then those of the instances.
Each answer has what was found on the way. Where the levels above are given, there is nothing to descend, and the query
goes through as it is.

One query at a time, so one association is enough; the studies, or series, that are looked into are held in memory, at
most `MAXIMUM_PARENTS`. Called by `harmony.gateway.qido`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from harmony.archive.levels import Level, level_of
from harmony.archive.matching import NOT_KEYS, compile_query
from harmony.dicom.json_model import Model, format_tag, text_of, texts_of
from harmony.gateway.backend import Query
from harmony.http import HTTPError

__all__ = ["descend"]

MAXIMUM_PARENTS: Final = 4096
"""A search through more than that takes a PACS minutes, and some ten megabytes here."""

LEVELS: Final = tuple(Level)
_PARENT: Final = {Level.SERIES: Level.STUDY, Level.IMAGE: Level.SERIES}
_UNIQUE_KEYS: Final = {Level.STUDY: 0x0020000D, Level.SERIES: 0x0020000E}
_EVERYWHERE: Final = frozenset(map(format_tag, NOT_KEYS))

Ask = Callable[[Query], AsyncGenerator[Model, None]]


async def descend(ask: Ask, query: Query) -> AsyncGenerator[Model, None]:
    """Yield the matches of a query, of which `ask` answers those that are within one study or series.

    Raises HTTPError 413 when there is too much to look into.
    """
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
    async with aclosing(descend(ask, question)) as matches:
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
