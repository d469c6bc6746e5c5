"""What one peer does with patients' images, collected until it is told to the audit trail.

An `Activity` is that of one association or of one HTTP request. Instances come and go by the hundred within one, and
the trail wants one message for each patient (PS3.15 A.5.3.7), so they are counted here: by what happened, by patient,
study and SOP class. `CALLER` says for whom the running task works; what it asks of a backend is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from harmony.http import Request
from harmony.ul.association import Association

__all__ = ["CALLER", "Activity", "Caller", "Deed", "Party", "Subject"]


class Deed(Enum):
    RECEIVED = "instances came from the peer"
    SENT = "instances went to the peer, or where it had them sent"
    READ = "the peer saw headers, frames or pictures"


@dataclass(frozen=True, slots=True)
class Party:
    """A peer. user: who it has proven to be, or the AE title it calls itself."""

    user: str
    address: str
    ae_titles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose images. Empty strings are unknown."""

    study_instance_uid: str
    patient_id: str = ""
    patient_name: str = ""


@dataclass(slots=True, eq=False)
class Activity:
    peer: Callable[[], Party]
    """Asked when something is told: who it is may show while a request is under way."""
    called: tuple[str, ...] = ()
    """Our own AE title, as it was called."""
    url: str = ""
    """Of an HTTP request."""
    since: float = 0.0
    """The loop's time of the first thing that has not been told yet."""
    counts: dict[tuple[Deed, str, bool], dict[Subject, dict[str, int]]] = field(default_factory=dict)
    """By what was done, the destination of a C-MOVE, and whether it went well: instances of each SOP class."""

    def add(
        self,
        deed: Deed,
        subject: Subject,
        sop_class_uid: str,
        count: int = 1,
        *,
        destination: str = "",
        good: bool = True,
    ) -> None:
        self.add_all(deed, subject, {sop_class_uid: count}, destination=destination, good=good)

    def add_all(
        self,
        deed: Deed,
        subject: Subject,
        instances: Mapping[str, int],
        *,
        destination: str = "",
        good: bool = True,
    ) -> None:
        """instances: of each SOP class; none where that is not known."""
        classes = self.counts.setdefault((deed, destination, good), {}).setdefault(subject, {})
        for sop_class_uid, count in instances.items():
            classes[sop_class_uid] = classes.get(sop_class_uid, 0) + count


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a task works, and where it wants instances to go: the Move Destination of a C-MOVE."""

    by: Association | Request
    destination: str = ""


CALLER: Final[ContextVar[Caller | None]] = ContextVar("harmony_caller", default=None)
