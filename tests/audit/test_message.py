"""The XML of audit messages, compared with documents typed from PS3.15 A.5."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.audit.message import (
    APPLICATION,
    DESTINATION,
    SOURCE,
    Action,
    AuditSource,
    Event,
    Message,
    Node,
    Outcome,
    Participant,
    Patient,
    QueryObject,
    Study,
    encode,
)

AT = datetime(2026, 1, 2, 3, 4, 5, 678000, timezone(timedelta(hours=1)))
GW1 = AuditSource("gw1")


def canonical(text: str | bytes) -> str:
    return ElementTree.canonicalize(text, strip_text=True)


def test_application_start():
    """The minimal message of the standard's schema."""
    message = Message(
        Event.APPLICATION_START,
        Action.EXECUTE,
        [Participant("4711", ["GATEWAY"], address="gw1", role=APPLICATION)],
        at=AT,
    )
    assert canonical(encode(message, GW1)) == canonical(
        """<AuditMessage>
        <EventIdentification EventActionCode="E" EventDateTime="2026-01-02T03:04:05.678+01:00"
          EventOutcomeIndicator="0">
        <EventID csd-code="110100" codeSystemName="DCM" originalText="Application Activity"/>
        <EventTypeCode csd-code="110120" codeSystemName="DCM" originalText="Application Start"/>
        </EventIdentification>
        <ActiveParticipant UserID="4711" AlternativeUserID="AETITLES=GATEWAY" UserIsRequestor="false"
          NetworkAccessPointID="gw1" NetworkAccessPointTypeCode="1">
        <RoleIDCode csd-code="110150" codeSystemName="DCM" originalText="Application"/></ActiveParticipant>
        <AuditSourceIdentification AuditSourceID="gw1"><AuditSourceTypeCode csd-code="4"/>
        </AuditSourceIdentification></AuditMessage>"""
    )


def test_instances_transferred():
    message = Message(
        Event.INSTANCES_TRANSFERRED,
        Action.CREATE,
        [
            Participant("CT1", ["CT1"], address="192.0.2.7", is_requestor=True, role=SOURCE),
            Participant("4711", ["GATEWAY", "ARCHIVE"], address="::1", role=DESTINATION),
        ],
        objects=[
            Study("1.2.3", [("1.2.840.10008.5.1.4.1.1.2", 400)]),
            Patient("4321", "Müller^Änne"),
        ],
        at=AT,
    )
    assert canonical(encode(message, AuditSource("gw1", "Site A"))) == canonical(
        """<AuditMessage>
        <EventIdentification EventActionCode="C" EventDateTime="2026-01-02T03:04:05.678+01:00"
          EventOutcomeIndicator="0">
        <EventID csd-code="110104" codeSystemName="DCM" originalText="DICOM Instances Transferred"/>
        </EventIdentification>
        <ActiveParticipant UserID="CT1" AlternativeUserID="AETITLES=CT1" UserIsRequestor="true"
          NetworkAccessPointID="192.0.2.7" NetworkAccessPointTypeCode="2">
        <RoleIDCode csd-code="110153" codeSystemName="DCM" originalText="Source Role ID"/></ActiveParticipant>
        <ActiveParticipant UserID="4711" AlternativeUserID="AETITLES=GATEWAY;ARCHIVE" UserIsRequestor="false"
          NetworkAccessPointID="::1" NetworkAccessPointTypeCode="2">
        <RoleIDCode csd-code="110152" codeSystemName="DCM" originalText="Destination Role ID"/>
        </ActiveParticipant>
        <AuditSourceIdentification AuditSourceID="gw1" AuditEnterpriseSiteID="Site A">
        <AuditSourceTypeCode csd-code="4"/></AuditSourceIdentification>
        <ParticipantObjectIdentification ParticipantObjectID="1.2.3" ParticipantObjectTypeCode="2"
          ParticipantObjectTypeCodeRole="3">
        <ParticipantObjectIDTypeCode csd-code="110180" codeSystemName="DCM"
          originalText="Study Instance UID"/>
        <ParticipantObjectDescription><SOPClass UID="1.2.840.10008.5.1.4.1.1.2" NumberOfInstances="400"/>
        </ParticipantObjectDescription></ParticipantObjectIdentification>
        <ParticipantObjectIdentification ParticipantObjectID="4321" ParticipantObjectTypeCode="1"
          ParticipantObjectTypeCodeRole="1">
        <ParticipantObjectIDTypeCode csd-code="2" codeSystemName="RFC-3881" originalText="Patient Number"/>
        <ParticipantObjectName>Müller^Änne</ParticipantObjectName></ParticipantObjectIdentification>
        </AuditMessage>"""
    )


def objects(message: Message) -> list[ElementTree.Element]:
    return ElementTree.fromstring(encode(message, GW1)).findall("ParticipantObjectIdentification")


def test_query_by_dimse():
    query = QueryObject(b"\x08\x00\x52\x00", "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.1.2")
    (found,) = objects(Message(Event.QUERY, Action.EXECUTE, [Participant("A")], objects=[query], at=AT))
    assert canonical(ElementTree.tostring(found)) == canonical(
        """<ParticipantObjectIdentification ParticipantObjectID="1.2.840.10008.5.1.4.1.2.2.1"
        ParticipantObjectTypeCode="2" ParticipantObjectTypeCodeRole="3">
        <ParticipantObjectIDTypeCode csd-code="110181" codeSystemName="DCM" originalText="SOP Class UID"/>
        <ParticipantObjectQuery>CABSAA==</ParticipantObjectQuery>
        <ParticipantObjectDetail type="TransferSyntax" value="MS4yLjg0MC4xMDAwOC4xLjI="/>
        </ParticipantObjectIdentification>"""
    )


def test_query_by_http():
    query = QueryObject(b"http://a/studies?PatientID=1")
    (found,) = objects(Message(Event.QUERY, Action.EXECUTE, [Participant("A")], objects=[query], at=AT))
    assert found.get("ParticipantObjectTypeCodeRole") == "24"
    assert found.findtext("ParticipantObjectQuery") == "aHR0cDovL2Evc3R1ZGllcz9QYXRpZW50SUQ9MQ=="


def test_alert_says_why():
    message = Message(
        Event.NODE_AUTHENTICATION,
        Action.EXECUTE,
        [Participant("A", is_requestor=True)],
        Outcome.SERIOUS_FAILURE,
        "calling AE title not recognized",
        [Node("192.0.2.9", "association rejected")],
        AT,
    )
    root = ElementTree.fromstring(encode(message, GW1))
    assert root.find("EventIdentification").get("EventOutcomeIndicator") == "8"
    assert root.findtext("EventIdentification/EventOutcomeDescription") == "calling AE title not recognized"
    assert root.find("ParticipantObjectIdentification/ParticipantObjectDetail").attrib == {
        "type": "Alert Description",
        "value": "YXNzb2NpYXRpb24gcmVqZWN0ZWQ=",
    }


@pytest.mark.parametrize("event", list(Event))
def test_every_event_has_its_code(event):
    root = ElementTree.fromstring(encode(Message(event, Action.EXECUTE, [Participant("A")], at=AT), GW1))
    code = root.find("EventIdentification/EventID")
    assert code.get("csd-code") == event.value[0].value
    kind = root.find("EventIdentification/EventTypeCode")
    assert (kind is None) == (event.value[1] is None)


@given(st.text(), st.text(), st.text(), st.binary())
def test_whatever_peers_send_is_one_line_of_xml(name, title, uid, query):
    message = Message(
        Event.QUERY,
        Action.EXECUTE,
        [Participant(name, [title], address=name)],
        description=uid,
        objects=[
            Study(uid, [(title, 1)]),
            Patient(uid, name),
            QueryObject(query, uid, title),
            Node(uid, name),
        ],
        at=AT,
    )
    encoded = encode(message, AuditSource(title, name))
    assert b"\n" not in encoded
    assert len(encoded.decode().splitlines()) == 1
    found = ElementTree.fromstring(encoded).findall("ParticipantObjectIdentification")
    assert len(found) == 4
    text = found[1].findtext("ParticipantObjectName", "")
    assert len(text) == len(name)
    assert all(ours in (theirs, "\ufffd") for ours, theirs in zip(text, name, strict=True))
