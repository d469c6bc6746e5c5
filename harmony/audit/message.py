"""Audit messages as XML (PS3.15 A.5.1, with the DICOM specific content of A.5.3).

A message says what happened (`Event`), who took part (`Participant`), and to what (`Study`, `Patient`, `QueryObject`,
`Node`). `encode` makes one line of UTF-8 of it; every value is escaped, and what XML cannot carry at all (control
characters) becomes U+FFFD. Patient data are where the standard puts them: in `Patient` and, encoded, in the query.

Passwords, tokens and certificates have no place in any of these classes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, IntEnum
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

__all__ = [
    "Action",
    "AuditSource",
    "Code",
    "Event",
    "Message",
    "Node",
    "ObjectOfAudit",
    "Outcome",
    "Participant",
    "Patient",
    "QueryObject",
    "Study",
    "encode",
]


@dataclass(frozen=True, slots=True)
class Code:
    """A coded value; all of ours are DICOM's own (PS3.16 Annex D)."""

    value: str
    meaning: str
    system: str = "DCM"


class Event(Enum):
    """EventID and, where there is one, EventTypeCode (PS3.15 A.5.3)."""

    APPLICATION_START = (Code("110100", "Application Activity"), Code("110120", "Application Start"))
    APPLICATION_STOP = (Code("110100", "Application Activity"), Code("110121", "Application Stop"))
    BEGIN_TRANSFERRING = (Code("110102", "Begin Transferring DICOM Instances"), None)
    INSTANCES_ACCESSED = (Code("110103", "DICOM Instances Accessed"), None)
    INSTANCES_TRANSFERRED = (Code("110104", "DICOM Instances Transferred"), None)
    QUERY = (Code("110112", "Query"), None)
    NODE_AUTHENTICATION = (Code("110113", "Security Alert"), Code("110126", "Node Authentication"))
    SECURITY_CONFIGURATION = (Code("110113", "Security Alert"), Code("110129", "Security Configuration"))
    RESTRICTED_FUNCTION = (Code("110113", "Security Alert"), Code("110132", "Use of Restricted Function"))
    LOGIN = (Code("110114", "User Authentication"), Code("110122", "Login"))


class Action(Enum):
    """EventActionCode."""

    CREATE = "C"
    READ = "R"
    UPDATE = "U"
    DELETE = "D"
    EXECUTE = "E"


class Outcome(IntEnum):
    """EventOutcomeIndicator."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


APPLICATION = Code("110150", "Application")
DESTINATION = Code("110152", "Destination Role ID")
SOURCE = Code("110153", "Source Role ID")

STUDY_INSTANCE_UID = Code("110180", "Study Instance UID")
SOP_CLASS_UID = Code("110181", "SOP Class UID")
NODE_ID = Code("110182", "Node ID")
PATIENT_NUMBER = Code("2", "Patient Number", "RFC-3881")
URI = Code("12", "URI", "RFC-3881")

# What XML 1.0 §2.2 has no characters for, and line ends, as a message is one line of a file.
_UNREPRESENTABLE = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\x7f-\x9f\u2028\u2029]")
_IP_ADDRESS = re.compile(r"[0-9.]+|\[?[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(%\w+)?\]?")


@dataclass(frozen=True, slots=True)
class Participant:
    """Who took part: a program, identified by its AE titles, or a person (ActiveParticipant)."""

    user_id: str
    """A user's name, or a program's: its process number, its AE title, its address."""
    ae_titles: Sequence[str] = ()
    address: str = ""
    """IP address or host name; "" where there is none."""
    is_requestor: bool = False
    role: Code | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """sop_classes: the number of instances of each SOP class."""

    study_instance_uid: str
    sop_classes: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class Patient:
    patient_id: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class QueryObject:
    """What was asked. sop_class_uid "": by HTTP, and query is the URL."""

    query: bytes
    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """What a security alert is about: an address, or a place in the configuration."""

    node_id: str
    description: str


ObjectOfAudit = Study | Patient | QueryObject | Node


@dataclass(frozen=True, slots=True)
class AuditSource:
    """Who reports. site: "" or the name of the enterprise site."""

    source_id: str
    site: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    event: Event
    action: Action
    participants: Sequence[Participant]
    outcome: Outcome = Outcome.SUCCESS
    description: str = ""
    """Why it failed, in words; nothing about patients."""
    objects: Sequence[ObjectOfAudit] = ()
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


def encode(message: Message, source: AuditSource) -> bytes:
    """The XML document, without declaration, on one line."""
    root = Element("AuditMessage")
    identification = SubElement(
        root,
        "EventIdentification",
        EventActionCode=message.action.value,
        EventDateTime=message.at.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=str(int(message.outcome)),
    )
    event_id, event_type = message.event.value
    _code(identification, "EventID", event_id)
    if event_type is not None:
        _code(identification, "EventTypeCode", event_type)
    if message.description:
        SubElement(identification, "EventOutcomeDescription").text = _text(message.description)
    for participant in message.participants:
        _participant(root, participant)
    reporting = SubElement(root, "AuditSourceIdentification", AuditSourceID=_text(source.source_id))
    if source.site:
        reporting.set("AuditEnterpriseSiteID", _text(source.site))
    SubElement(reporting, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process
    for each in message.objects:
        match each:
            case Study():
                _study(root, each)
            case Patient():
                _patient(root, each)
            case QueryObject():
                _query(root, each)
            case Node():
                _node(root, each)
    encoded: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=False)
    return encoded


def _participant(root: Element, participant: Participant) -> None:
    element = SubElement(root, "ActiveParticipant", UserID=_text(participant.user_id) or "unknown")
    if participant.ae_titles:
        element.set("AlternativeUserID", _text("AETITLES=" + ";".join(participant.ae_titles)))
    element.set("UserIsRequestor", "true" if participant.is_requestor else "false")
    if participant.address:
        element.set("NetworkAccessPointID", _text(participant.address))
        kind = "2" if _IP_ADDRESS.fullmatch(participant.address) else "1"
        element.set("NetworkAccessPointTypeCode", kind)
    if participant.role is not None:
        _code(element, "RoleIDCode", participant.role)


def _study(root: Element, study: Study) -> None:
    element = _object(root, study.study_instance_uid, "2", "3", STUDY_INSTANCE_UID)
    if study.sop_classes:
        description = SubElement(element, "ParticipantObjectDescription")
        for uid, count in study.sop_classes:
            SubElement(description, "SOPClass", UID=_text(uid), NumberOfInstances=str(count))


def _patient(root: Element, patient: Patient) -> None:
    element = _object(root, patient.patient_id, "1", "1", PATIENT_NUMBER)
    if patient.name:
        SubElement(element, "ParticipantObjectName").text = _text(patient.name)


def _query(root: Element, query: QueryObject) -> None:
    if not query.sop_class_uid:
        element = _object(root, "", "2", "24", URI)
    else:
        element = _object(root, query.sop_class_uid, "2", "3", SOP_CLASS_UID)
    SubElement(element, "ParticipantObjectQuery").text = base64.b64encode(query.query).decode()
    if query.transfer_syntax_uid:
        _detail(element, "TransferSyntax", query.transfer_syntax_uid)


def _node(root: Element, node: Node) -> None:
    element = _object(root, node.node_id, "2", "13", NODE_ID)
    _detail(element, "Alert Description", node.description)


def _object(root: Element, object_id: str, kind: str, role: str, id_type: Code) -> Element:
    element = SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_text(object_id) or "unknown",
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )
    _code(element, "ParticipantObjectIDTypeCode", id_type)
    return element


def _detail(element: Element, kind: str, value: str) -> None:
    SubElement(element, "ParticipantObjectDetail", type=kind, value=base64.b64encode(value.encode()).decode())


def _code(parent: Element, name: str, code: Code) -> None:
    SubElement(
        parent,
        name,
        {"csd-code": code.value, "codeSystemName": code.system, "originalText": code.meaning},
    )


def _text(value: str) -> str:
    return _UNREPRESENTABLE.sub("�", value)
