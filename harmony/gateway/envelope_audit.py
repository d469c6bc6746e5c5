"""Envelopes in the audit trail: those that are fetched and uploaded at a `jmix` endpoint, and those that go upstream.

Whose images they hold is read from the envelope itself, in a thread, and only while a trail is kept. An envelope that
cannot be read, or is encrypted, is told all the same, of a study that is not known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from harmony.audit.message import Participant, QueryObject
from harmony.gateway.activity import Deed, Subject
from harmony.gateway.auditing import Auditor
from harmony.http import Request
from harmony.jmix.description import described_studies
from harmony.jmix.limits import EnvelopeError
from harmony.jmix.reader import read_metadata

__all__ = ["Contents", "EnvelopeAudit"]

logger = logging.getLogger("harmony.gateway")

Contents = Mapping[Subject, Mapping[str, int]]
"""Instances of each SOP class, by study."""

UNKNOWN: Contents = {Subject(""): {}}


class EnvelopeAudit:
    """auditor: None, as long as there is none, tells nobody."""

    def __init__(self, auditor: Auditor | None) -> None:
        self.auditor = auditor

    def asked(self, request: Request, *, good: bool = True) -> None:
        """For the envelope of a study: a query, whose URL names the study."""
        if self.auditor is not None:
            self.auditor.query(self.auditor.activity_of(request), QueryObject(b""), good=good)

    async def served(self, request: Request, path: Path) -> None:
        """An envelope goes to who asks for it."""
        await self._told(request, Deed.SENT, path)

    async def uploaded(self, request: Request, path: Path, *, good: bool = True) -> None:
        """good: it is in the store now."""
        await self._told(request, Deed.RECEIVED, path, good=good)

    async def _told(self, request: Request, deed: Deed, path: Path, *, good: bool = True) -> None:
        auditor = self.auditor
        if auditor is None:
            return
        activity = auditor.activity_of(request)
        for subject, classes in (await _contents(path)).items():
            activity.add_all(deed, subject, classes, good=good)
        auditor.progressed(activity)

    async def upload_begins(self, path: Path, upstream: Participant) -> Contents:
        """One attempt to bring an envelope to an upstream; what it holds, for `upload_ended`."""
        auditor = self.auditor
        if auditor is None:
            return {}
        contents = await _contents(path)
        auditor.transfer_begins(contents, upstream)
        return contents

    def upload_ended(self, contents: Contents, upstream: Participant, failure: str) -> None:
        """failure: "" when the upstream has the envelope; nothing that it said in words."""
        if self.auditor is not None and contents:
            self.auditor.transferred(contents, upstream, failure)


async def _contents(path: Path) -> Contents:
    try:
        studies = described_studies(await asyncio.to_thread(read_metadata, path))
    except (EnvelopeError, OSError) as error:
        logger.warning("audit: %s does not say whose study it is: %s", path, type(error).__name__)
        return UNKNOWN
    found = {
        Subject(each.study_instance_uid, each.patient_id, each.patient_name): each.instances
        for each in studies
    }
    return found or UNKNOWN
