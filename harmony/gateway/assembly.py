"""What runs: everything that a configuration was put together to, and what the next one may take over of it.

`pipelines` fills an `Assembly`; `app` and `listeners` start and stop what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harmony.archive.indexing import ArchiveIndex
from harmony.gateway.auditing import Auditor
from harmony.gateway.authentication import Authentications
from harmony.gateway.backend import Backend
from harmony.gateway.config import Listener
from harmony.gateway.dicom_scp import DicomListener
from harmony.gateway.envelope_audit import EnvelopeAudit
from harmony.gateway.http_backend import HttpUpstream
from harmony.gateway.management import Management
from harmony.gateway.retrieved import RetrievedFolders
from harmony.gateway.store_receiver import StoreReceivers
from harmony.gateway.study_envelope import StudyEnvelopes
from harmony.gateway.tls import Certificates
from harmony.gateway.workers import WorkerPool
from harmony.http import Router
from harmony.jmix.store import EnvelopeStore

__all__ = ["Assembly", "Kept"]


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Something that is taken over as long as its settings stay the same. purpose: what it is for, its kind first."""

    purpose: tuple[object, ...]
    settings: object
    thing: object


@dataclass(slots=True)
class Assembly:
    """Everything that runs, in starting order."""

    envelope_stores: dict[Path, EnvelopeStore] = field(default_factory=dict)
    indexes: dict[Path, ArchiveIndex] = field(default_factory=dict)
    """By the storage folder."""
    retrieved: dict[Path, RetrievedFolders] = field(default_factory=dict)
    """By their root."""
    backends: list[Backend] = field(default_factory=list)
    upstreams: list[HttpUpstream] = field(default_factory=list)
    studies: list[StudyEnvelopes] = field(default_factory=list)
    dicom: list[DicomListener] = field(default_factory=list)
    routers: dict[str, Router] = field(default_factory=dict)
    """By network name."""
    http: list[tuple[str, Listener]] = field(default_factory=list)
    """Network name and address of each HTTP listener."""
    authentications: Authentications = field(default_factory=Authentications)
    """Who may ask."""
    management: Management | None = None
    """None: nobody can ask, so nothing is counted."""
    receivers: StoreReceivers = field(default_factory=StoreReceivers)
    auditor: Auditor | None = None
    """None: no audit trail is kept."""
    envelope_audits: list[EnvelopeAudit] = field(default_factory=list)
    """Of what goes on with another auditor after a reload."""
    workers: WorkerPool | None = None
    """None: this process receives itself."""
    certificates: Certificates = field(default_factory=Certificates)
    """Like the receivers, those of the gateway: every assembly takes them over."""
    provided: dict[int, frozenset[str]] = field(default_factory=dict)
    """For `StoreReceivers.provide`, once the listeners are those of this assembly."""
    kept: list[Kept] = field(default_factory=list)
    """What the next assembly may take over."""
