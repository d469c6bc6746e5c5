"""The one interface between endpoints, middleware and backends (docs/DESIGN.md, "The gateway").

An endpoint calls a `Backend`; backends are one; middleware is a Backend around a Backend. Attributes cross it as
DICOM JSON models with Unicode strings (`harmony.dicom.json_model`), data sets as the bytes they are.

Errors pass as they are, so that every endpoint can give its own protocol's answer: DimseError (the service said no),
AssociationError and TimeoutError (a peer that is not to be had), IdentifierError (the query has no meaning),
ArchiveIndexError and OSError (the local archive).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from harmony.archive.index import StoredInstance, UniqueKeys
from harmony.archive.levels import Level
from harmony.archive.matcher import Matcher, MatchingOptions
from harmony.dicom.json_model import Model
from harmony.dimse.command import PRIORITY_MEDIUM
from harmony.dimse.operation import StoreRequest
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.sink import Sink
from harmony.dimse.status import Outcome
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["Backend", "Query", "Retrieve"]


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for, at one level of the Query/Retrieve information model (PS3.4 §C.4.1)."""

    level: Level
    identifier: Model
    """Keys to match, and empty ones for what to return. (0008,0052) counts for nothing here."""
    patient_root: bool = False
    """Asked in the Patient Root model; a PACS is asked in the same one if it has it."""
    matching: MatchingOptions = field(default=MatchingOptions())
    limit: int | None = None
    offset: int = 0
    """How many matches to pass over, before `limit` begins to count."""
    all_attributes: bool = False
    """Return everything known at the level and those above; of a PACS, what PACS are known to have."""
    compiled: Matcher | None = field(default=None, compare=False, repr=False)
    """What `compile_query` made of `identifier` and `matching`, if somebody has needed it already."""


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Which instances to get (PS3.4 §C.4.2.1.4)."""

    level: Level
    keys: UniqueKeys
    """At least one of them is not None."""
    patient_root: bool = False
    accepted: tuple[tuple[str, str], ...] | None = None
    """SOP classes with the transfer syntaxes that whoever gets the instances can take; None: anything."""
    priority: int = PRIORITY_MEDIUM


class Backend(Protocol):
    """What can be done with what an endpoint receives. Called from the event loop; nothing here blocks.

    str() names it in messages to the operator.
    """

    @property
    def matches_as_asked(self) -> bool:
        """The `matching` of a Query is honoured; a PACS matches as it will."""

    @property
    def can_be_queried(self) -> bool:
        """`query` and `retrieve` have something to look into."""

    async def start(self) -> None:
        """Get ready, before any endpoint listens; raises OSError or sqlite3.Error when it cannot."""

    async def stop(self, grace_s: float) -> None:
        """Finish what is under way within grace_s, after every endpoint has stopped. Once more after it was
        cancelled."""

    async def echo(self) -> None:
        """Return when what is behind this answers."""

    def query(self, query: Query) -> AsyncGenerator[Model, None]:
        """Yield matches as they are found; closing the generator ends the search.

        Each has the attributes that were asked for and the unique keys of its level and those above.
        """

    async def retrieve(self, retrieve: Retrieve) -> Selection:
        """Find instances. Those that match none of the keys make an empty selection, which is no error.

        The selection's `instances` must be iterated or closed (`harmony.dimse.cancellation.close_iterator`), and the
        data of each instance read before the next one is asked for; it is not valid any more then.
        """

    def metadata(self, retrieve: Retrieve, root: str) -> AsyncGenerator[bytes | Unavailable, None]:
        """Yield the complete headers of instances, each a JSON object; encoded, for an archive has them like that.

        Long values and pixel data are left out for a BulkDataURI below `root`, the URL of a DICOMweb service. Raises
        what `retrieve` raises.
        """

    async def locate(self, retrieve: Retrieve) -> tuple[StoredInstance, Model] | None:
        """The file that the first of the instances lies in, and what the index has of its header.

        None: it is in no file here, and `retrieve` tells whether it is anywhere.
        """

    async def version(self, retrieve: Retrieve) -> str | None:
        """A word that is another one as soon as any of the instances is, or there are others.

        None: that is not known, or takes as long as asking for them. Raises what `retrieve` raises.
        """

    def store(self, request: StoreRequest) -> Sink:
        """The sink for one instance that a peer sends; raises DimseError to refuse it."""

    async def store_instance(self, instance: Instance) -> Outcome:
        """Store one instance that came some other way; raises DimseError for a failure."""

    def association_established(self, association: Association) -> None:
        """Instances may come from this association."""

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        """No more come; error None after a release."""
