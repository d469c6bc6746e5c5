"""What a PACS has that a retrieve would bring: asked by C-FIND before a C-GET (PS3.4 §C.4.1).

A C-GET must propose the SOP classes of what comes before it comes; whoever gets the instances wants to know how many
they are and which. One query at the IMAGE level says both, where the PACS allows keys of the levels above to be missing
or to be there ("relational"). Where it refuses that, says that there is nothing, or disregards such a key and answers
with other instances too (dcmqrscp), the survey walks down from the study to its series and to their instances, as the
hierarchical search of PS3.4 §C.4.1.3.1 wants it.

A PACS that finds the study but no instance in it does not answer queries at that level; what it has is then unknown.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.dicom.json_model import Model, text_of, texts_of
from harmony.dimse.scu import NoPresentationContext
from harmony.dimse.status import DimseError, describe_status
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.identifiers import key_elements, matches_keys

__all__ = ["Ask", "Survey", "survey"]

logger = logging.getLogger("harmony.gateway")

LISTED_UIDS: Final = 65536
"""Up to this many instances their UIDs are kept, some 10 MB; beyond it only their number."""

_PATIENT_ID: Final = 0x00100020
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_SOP_INSTANCE: Final = 0x00080018
_SOP_CLASS: Final = 0x00080016
_SOP_CLASSES_IN_STUDY: Final = 0x00080062
_AVAILABLE_TRANSFER_SYNTAX: Final = 0x00083002

Ask = Callable[[Query], AsyncGenerator[Model, None]]
"""C-FIND: yields the matches just as the PACS gives them."""


@dataclass(slots=True)
class Survey:
    """What is there, as far as the PACS says."""

    total: int | None = None
    """None: unknown."""
    sop_instance_uids: dict[str, None] | None = None
    sop_classes: dict[str, None] = field(default_factory=dict)
    transfer_syntaxes: dict[str, None] = field(default_factory=dict)
    """Available Transfer Syntax UID (0008,3002), where the PACS returns it."""
    parents: dict[int, set[str]] = field(default_factory=dict)
    """Values of the unique keys above the instances, by tag; no more than two of each are kept."""

    def add(self, match: Model) -> None:
        """Count an instance."""
        self.total = (self.total or 0) + 1
        self.sop_classes.update(dict.fromkeys(filter(None, texts_of(match, _SOP_CLASS))))
        self.transfer_syntaxes.update(
            dict.fromkeys(filter(None, texts_of(match, _AVAILABLE_TRANSFER_SYNTAX)))
        )
        uids = self.sop_instance_uids
        if uids is not None:
            uids[text_of(match, _SOP_INSTANCE)] = None
            if len(uids) > LISTED_UIDS:
                self.sop_instance_uids = None
        for tag in (_PATIENT_ID, _STUDY, _SERIES):
            values = self.parents.setdefault(tag, set())
            if len(values) < 2 and (value := text_of(match, tag)):
                values.add(value)

    def complete(self, keys: UniqueKeys, *, patient_root: bool) -> UniqueKeys:
        """The keys with those of the levels above filled in, where there is only one value: a hierarchical PACS wants
        them in a retrieve (PS3.4 §C.4.2.2.1)."""
        if keys.sop_instance_uids is not None and keys.series_instance_uids is None:
            keys = replace(keys, series_instance_uids=self._only(_SERIES))
        if keys.series_instance_uids is not None and keys.study_instance_uids is None:
            keys = replace(keys, study_instance_uids=self._only(_STUDY))
        if keys.study_instance_uids is not None and keys.patient_ids is None and patient_root:
            keys = replace(keys, patient_ids=self._only(_PATIENT_ID))
        return keys

    def _only(self, tag: int) -> list[str] | None:
        values = self.parents.get(tag, set())
        return list(values) if len(values) == 1 else None


async def survey(ask: Ask, retrieve: Retrieve) -> Survey:
    """Ask what a retrieve would bring. Raises AssociationError when the PACS is not to be had."""
    surveyor = _Surveyor(ask, retrieve)
    try:
        found = await surveyor.relational()
        return found if found is not None else await surveyor.hierarchical()
    except DimseError as error:
        reason = describe_status(error.status)
    except NoPresentationContext as error:
        reason = str(error)
    logger.info("the PACS cannot be asked what a retrieve would bring: %s", reason)
    return Survey()


class _Surveyor:
    def __init__(self, ask: Ask, retrieve: Retrieve) -> None:
        self._ask = ask
        self._keys = retrieve.keys
        self._patient_root = retrieve.patient_root

    async def relational(self) -> Survey | None:
        """One query; None when its answer means nothing."""
        found = Survey(sop_instance_uids={})
        try:
            matched = await self._instances(self._keys, found)
        except DimseError:
            return None
        if not matched:
            return None
        if found.total:
            return found
        return Survey(0, {}) if self._is_hierarchical(self._keys) else None

    async def hierarchical(self) -> Survey:
        """From the study down."""
        found = Survey(sop_instance_uids={})
        keys = self._keys
        studies = await self._matches(Level.STUDY, keys, _STUDY, _SOP_CLASSES_IN_STUDY)
        if not studies:
            return Survey(0, {})
        wanted = UniqueKeys(patient_ids=keys.patient_ids if self._patient_root else None)
        any_series = False
        for study in studies:
            below = replace(wanted, study_instance_uids=[text_of(study, _STUDY)])
            in_study = replace(below, series_instance_uids=keys.series_instance_uids)
            for series in await self._matches(Level.SERIES, in_study, _SERIES):
                any_series = True
                await self._instances(
                    replace(
                        below,
                        series_instance_uids=[text_of(series, _SERIES)],
                        sop_instance_uids=keys.sop_instance_uids,
                    ),
                    found,
                )
        if found.total:
            return found
        if keys.sop_instance_uids is not None or (keys.series_instance_uids is not None and not any_series):
            return Survey(0, {})
        classes = {uid: None for study in studies for uid in texts_of(study, _SOP_CLASSES_IN_STUDY) if uid}
        return Survey(sop_classes=classes)

    def _is_hierarchical(self, keys: UniqueKeys) -> bool:
        """Whether a query at the IMAGE level with these keys is one that every PACS must answer."""
        above = [keys.study_instance_uids, keys.series_instance_uids]
        if self._patient_root:
            above.append(keys.patient_ids)
        return all(values is not None and len(values) == 1 for values in above)

    async def _instances(self, keys: UniqueKeys, found: Survey) -> bool:
        """Count instances. False as soon as one comes that does not match, or may not."""
        identifier = {
            f"{tag:08X}": {"vr": "UI"} for tag in (_SOP_CLASS, _SOP_INSTANCE, _AVAILABLE_TRANSFER_SYNTAX)
        }
        certain = self._is_hierarchical(keys)
        async with aclosing(self._ask(self._query(Level.IMAGE, keys, identifier))) as matches:
            async for match in matches:
                if not certain and not matches_keys(match, keys):
                    return False
                found.add(match)
        return True

    async def _matches(self, level: Level, keys: UniqueKeys, *returned: int) -> list[Model]:
        """Small ones: the unique key and what else is asked for."""
        identifier = {f"{tag:08X}": {"vr": "UI"} for tag in returned}
        # The PACS may know more keys than those of the level; none of them is below it.
        if level is Level.STUDY:
            keys = replace(keys, series_instance_uids=None, sop_instance_uids=None)
        async with aclosing(self._ask(self._query(level, keys, identifier))) as matches:
            return [
                {key: match[key] for key in identifier if key in match}
                async for match in matches
                if text_of(match, returned[0])
            ]

    def _query(self, level: Level, keys: UniqueKeys, returned: Model) -> Query:
        identifier = {**returned, **key_elements(keys)}
        return Query(
            level, {key: identifier[key] for key in sorted(identifier)}, patient_root=self._patient_root
        )
