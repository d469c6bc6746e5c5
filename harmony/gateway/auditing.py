"""What the gateway tells the audit trail (PS3.15 A.5.3), and when.

| what happened | message |
|---|---|
| the gateway starts, stops | Application Activity |
| another configuration was loaded, or refused | Security Alert: Security Configuration |
| an association is refused, a TLS handshake fails | Security Alert: Node Authentication |
| a user name, token, key or certificate is presented | User Authentication: Login |
| a query, by C-FIND or HTTP, or for the envelope of a study | Query |
| instances come in or go out, one by one or in an envelope | DICOM Instances Transferred |
| an envelope is brought to an upstream: each attempt | Begin Transferring DICOM Instances, then the above |
| headers, frames, pictures are served | DICOM Instances Accessed |

Transfers are told when the association or request is over, or once a minute while it goes on. Everything here is
called in the event loop and returns at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from harmony.audit.message import (
    APPLICATION,
    DESTINATION,
    SOURCE,
    Action,
    AuditSource,
    Code,
    Event,
    Message,
    Node,
    ObjectOfAudit,
    Outcome,
    Participant,
    Patient,
    QueryObject,
    Study,
)
from harmony.audit.syslog import DatagramSender, Sender, StreamSender
from harmony.audit.trail import AuditTrail
from harmony.gateway.activity import Activity, Deed, Party, Subject
from harmony.gateway.config import Audit, Collector
from harmony.gateway.principal import PRINCIPAL, AuthenticationOutcome, Principal
from harmony.gateway.tls import Certificates
from harmony.http import Request
from harmony.ul.association import Association
from harmony.ul.pdu import AssociateRJ, AssociateRQ, describe_rejection_reason

__all__ = ["Auditor"]

TELL_S: Final = 60.0
"""How long a transfer goes on before what has been transferred so far is told."""

_ACTIVITY: Final = "activity"
"""Key of `Request.state`."""

_EVENTS: Final = {
    Deed.RECEIVED: (Event.INSTANCES_TRANSFERRED, Action.CREATE),
    Deed.SENT: (Event.INSTANCES_TRANSFERRED, Action.READ),
    Deed.READ: (Event.INSTANCES_ACCESSED, Action.READ),
}


class Auditor:
    """One gateway's."""

    def __init__(self, trail: AuditTrail, ae_titles: Iterable[str] = ()) -> None:
        """ae_titles: those the gateway answers to."""
        self.trail = trail
        self._running = False
        self.ae_titles = tuple(ae_titles)
        self._activities: WeakKeyDictionary[Association, Activity] = WeakKeyDictionary()

    @classmethod
    def of(cls, audit: Audit, certificates: Certificates) -> Auditor:
        """As it is configured. Blocking; raises ValueError and OSError for certificates that cannot be used."""
        source, sender = AuditSource(audit.source_id, audit.site), None
        if audit.collector is not None:
            sender = _sender(audit.collector, certificates)
        return cls(AuditTrail(audit.folder, source, sender=sender, keep_days=audit.keep_days))

    def _ourselves(self, role: Code | None = None) -> Participant:
        return Participant(str(os.getpid()), self.ae_titles, address=self.trail.host, role=role)

    # The gateway itself

    async def start(self) -> None:
        """Raises OSError when the trail cannot be kept."""
        await self.trail.start()
        self._running = True
        ourselves = self._ourselves(APPLICATION)
        self.trail.record(Message(Event.APPLICATION_START, Action.EXECUTE, [ourselves]))

    async def stop(self, grace_s: float) -> None:
        if self._running:
            ourselves = self._ourselves(APPLICATION)
            self.trail.record(Message(Event.APPLICATION_STOP, Action.EXECUTE, [ourselves]))
        self._running = False
        await self.trail.stop(grace_s)

    def __str__(self) -> str:
        return str(self.trail)

    def reloaded(self, sources: Iterable[str], *, refused: bool) -> None:
        outcome = Outcome.MINOR_FAILURE if refused else Outcome.SUCCESS
        words = "refused, nothing has changed" if refused else "loaded again"
        nodes = [Node(source, f"configuration {words}") for source in sources]
        message = Message(
            Event.SECURITY_CONFIGURATION, Action.EXECUTE, [self._ourselves()], outcome, objects=nodes
        )
        self.trail.record(message)

    # Who comes

    def rejected(self, association: Association, request: AssociateRQ, rejection: AssociateRJ) -> None:
        """An association was refused."""
        address, calling = association.peer[0], request.calling_ae_title
        peer = Participant(calling or address, _titles(calling), address=address, is_requestor=True)
        message = Message(
            Event.NODE_AUTHENTICATION,
            Action.EXECUTE,
            [peer, self._ourselves()],
            Outcome.SERIOUS_FAILURE,
            describe_rejection_reason(rejection.source, rejection.reason),
            [Node(address, f"association to {request.called_ae_title!r} rejected")],
        )
        self.trail.record(message)

    def handshake_failed(self, address: str, why: str) -> None:
        peer = Participant(_host(address), address=_host(address), is_requestor=True)
        message = Message(
            Event.NODE_AUTHENTICATION,
            Action.EXECUTE,
            [peer, self._ourselves()],
            Outcome.SERIOUS_FAILURE,
            why,
            [Node(_host(address), "TLS handshake failed")],
        )
        self.trail.record(message)

    def authenticated(self, outcome: AuthenticationOutcome) -> None:
        """Somebody presented credentials."""
        if not self._running:  # the trail is kept no longer, though authentication goes on
            return
        titles = _titles(outcome.calling_ae_title)
        user = Participant(outcome.name or "unknown", titles, address=outcome.address, is_requestor=True)
        failed = outcome.failure is not None
        message = Message(
            Event.LOGIN,
            Action.EXECUTE,
            [user, self._ourselves()],
            Outcome.SERIOUS_FAILURE if failed else Outcome.SUCCESS,
            outcome.failure.value if outcome.failure is not None else "",
        )
        self.trail.record(message)

    def activity_of(self, by: Association | Request) -> Activity:
        if isinstance(by, Request):
            activity = by.state.get(_ACTIVITY)
            if not isinstance(activity, Activity):
                activity = by.state[_ACTIVITY] = Activity(partial(_who_requests, by), url=_url_of(by))
            return activity
        known = self._activities.get(by)
        if known is None:
            called = _titles(by.agreed.called_ae_title)
            known = self._activities[by] = Activity(partial(_who_associates, by), called)
        return known

    def request_ended(self, request: Request) -> None:
        activity = request.state.get(_ACTIVITY)
        if isinstance(activity, Activity):
            self.tell(activity)

    # What they do

    def query(self, activity: Activity, query: QueryObject, *, good: bool = True) -> None:
        asked = QueryObject(activity.url.encode()) if activity.url else query
        message = Message(
            Event.QUERY,
            Action.EXECUTE,
            [self._peer(activity, SOURCE), self._called(activity, DESTINATION)],
            Outcome.SUCCESS if good else Outcome.MINOR_FAILURE,
            objects=[asked],
        )
        self.trail.record(message)

    def progressed(self, activity: Activity) -> None:
        """Something was added to an activity."""
        now = asyncio.get_running_loop().time()
        if not activity.since:
            activity.since = now
        elif now - activity.since >= TELL_S:
            self.tell(activity)

    def tell(self, activity: Activity) -> None:
        """Tell what an activity has collected, and begin again."""
        counts, activity.counts, activity.since = activity.counts, {}, 0.0
        for (deed, destination, good), subjects in counts.items():
            for objects in _by_patient(subjects):
                event, action = _EVENTS[deed]
                message = Message(
                    event,
                    action,
                    self._participants(activity, deed, destination),
                    Outcome.SUCCESS if good else Outcome.MINOR_FAILURE,
                    objects=objects,
                )
                self.trail.record(message)

    def transfer_begins(
        self, contents: Mapping[Subject, Mapping[str, int]], destination: Participant
    ) -> None:
        """We send on our own account."""
        for objects in _by_patient(contents):
            participants = [replace(self._ourselves(SOURCE), is_requestor=True), destination]
            self.trail.record(
                Message(Event.BEGIN_TRANSFERRING, Action.EXECUTE, participants, objects=objects)
            )

    def transferred(
        self, contents: Mapping[Subject, Mapping[str, int]], destination: Participant, failure: str
    ) -> None:
        """failure: why it was not, in words; "" when it was."""
        for objects in _by_patient(contents):
            participants = [replace(self._ourselves(SOURCE), is_requestor=True), destination]
            result = Outcome.MINOR_FAILURE if failure else Outcome.SUCCESS
            self.trail.record(
                Message(
                    Event.INSTANCES_TRANSFERRED, Action.READ, participants, result, failure, objects=objects
                )
            )

    def association_ended(self, association: Association) -> None:
        activity = self._activities.pop(association, None)
        if activity is not None:
            self.tell(activity)

    def _participants(self, activity: Activity, deed: Deed, destination: str) -> list[Participant]:
        if deed is Deed.READ:
            return [self._peer(activity, None), self._called(activity, None)]
        if deed is Deed.RECEIVED:
            return [self._peer(activity, SOURCE), self._called(activity, DESTINATION)]
        ours = self._called(activity, SOURCE)
        if not destination:
            return [ours, self._peer(activity, DESTINATION)]
        return [ours, Participant(destination, [destination], role=DESTINATION), self._peer(activity, None)]

    def _peer(self, activity: Activity, role: Code | None) -> Participant:
        peer = activity.peer()
        return Participant(
            peer.user,
            peer.ae_titles,
            address=peer.address,
            is_requestor=True,
            role=role,
        )

    def _called(self, activity: Activity, role: Code | None) -> Participant:
        return Participant(
            str(os.getpid()),
            activity.called or self.ae_titles,
            address=self.trail.host,
            role=role,
        )


def _by_patient(subjects: Mapping[Subject, Mapping[str, int]]) -> Iterator[list[ObjectOfAudit]]:
    """PS3.15 §A.5.3.7: a message is about one patient."""
    patients: dict[tuple[str, str], list[Study]] = {}
    for subject, classes in subjects.items():
        study = Study(subject.study_instance_uid, sorted(classes.items()))
        patients.setdefault((subject.patient_id, subject.patient_name), []).append(study)
    for (patient_id, name), studies in patients.items():
        yield [*studies, Patient(patient_id, name)]


def _sender(collector: Collector, certificates: Certificates) -> Sender:
    if collector.protocol == "udp":
        return DatagramSender(collector.host, collector.port)
    return StreamSender(
        collector.host,
        collector.port,
        ssl_context=certificates.client(collector.tls) if collector.protocol == "tls" else None,
        server_hostname=collector.server_name,
    )


def _who_requests(request: Request) -> Party:
    principal = request.state.get(PRINCIPAL)
    user = principal.name if isinstance(principal, Principal) else request.client[0]
    return Party(user, request.client[0])


def _who_associates(association: Association) -> Party:
    principal, title = association.principal, association.agreed.calling_ae_title
    user = principal.name if isinstance(principal, Principal) else title
    return Party(user, association.peer[0], _titles(title))


def _url_of(request: Request) -> str:
    query = f"?{request.raw_query}" if request.raw_query else ""
    return f"{request.scheme}://{request.headers.get('host') or ''}{request.raw_path}{query}"


def _titles(ae_title: str) -> tuple[str, ...]:
    return (ae_title,) if ae_title else ()


def _host(address: str) -> str:
    """Without the port: `192.0.2.1:104` and `[::1]:104` as engine messages have them."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and (host.startswith("[") or ":" not in host):
        return host.strip("[]")
    return address.strip("[]")
