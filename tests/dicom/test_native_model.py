"""DICOM as XML (PS3.19 §A.1)."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.dicom.native_model import encode_native_model

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM" xml:space="preserve">'
)
NAMESPACE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, ""),
        (
            {"00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]}},
            '<DicomAttribute keyword="ImageType" tag="00080008" vr="CS"><Value number="1">ORIGINAL</Value>'
            '<Value number="2"></Value><Value number="3">AXIAL</Value></DicomAttribute>',
        ),
        (
            {"00080050": {"vr": "SH"}},
            '<DicomAttribute keyword="AccessionNumber" tag="00080050" vr="SH"></DicomAttribute>',
        ),
        (
            {
                "00100010": {
                    "vr": "PN",
                    "Value": [{"Alphabetic": "Yamada^Tarou^^Dr^", "Ideographic": "山田^太郎"}, None],
                }
            },
            '<DicomAttribute keyword="PatientName" tag="00100010" vr="PN"><PersonName number="1"><Alphabetic>'
            "<FamilyName>Yamada</FamilyName><GivenName>Tarou</GivenName><NamePrefix>Dr</NamePrefix></Alphabetic>"
            "<Ideographic><FamilyName>山田</FamilyName><GivenName>太郎</GivenName></Ideographic></PersonName>"
            '<PersonName number="2"></PersonName></DicomAttribute>',
        ),
        (
            {"00281050": {"vr": "DS", "Value": [40, -1.5, "1e400"]}},
            '<DicomAttribute keyword="WindowCenter" tag="00281050" vr="DS"><Value number="1">40</Value>'
            '<Value number="2">-1.5</Value><Value number="3">1e400</Value></DicomAttribute>',
        ),
        (
            {
                "00081140": {
                    "vr": "SQ",
                    "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}, {}],
                }
            },
            '<DicomAttribute keyword="ReferencedImageSequence" tag="00081140" vr="SQ"><Item number="1">'
            '<DicomAttribute keyword="ReferencedSOPInstanceUID" tag="00081155" vr="UI"><Value number="1">1.2</Value>'
            '</DicomAttribute></Item><Item number="2"></Item></DicomAttribute>',
        ),
        (
            {
                "00090011": {"vr": "LO", "Value": ['A "&" B']},
                "00091101": {"vr": "OB", "InlineBinary": "AQI="},
                "00091201": {"vr": "LO", "Value": ["no creator"]},
            },
            '<DicomAttribute tag="00090011" vr="LO"><Value number="1">A "&amp;" B</Value></DicomAttribute>'
            '<DicomAttribute tag="00090001" privateCreator=\'A "&amp;" B\' vr="OB">'
            "<InlineBinary>AQI=</InlineBinary></DicomAttribute>"
            '<DicomAttribute tag="00091201" vr="LO"><Value number="1">no creator</Value></DicomAttribute>',
        ),
        (
            {"7FE00010": {"vr": "OW", "BulkDataURI": "http://h/a?b&c"}},
            '<DicomAttribute keyword="PixelData" tag="7FE00010" vr="OW"><BulkData uri="http://h/a?b&amp;c"/>'
            "</DicomAttribute>",
        ),
        (
            {"00204000": {"vr": "LT", "Value": ["a\r\n<b>\x1b\x00\ud800"]}},
            '<DicomAttribute keyword="ImageComments" tag="00204000" vr="LT"><Value number="1">a&#13;\n&lt;b&gt;'
            "\ufffd\ufffd\ufffd</Value></DicomAttribute>",
        ),
    ],
)
def test_encode(model, expected):
    assert encode_native_model(model).decode() == f"{HEAD}{expected}</NativeDicomModel>"


@given(st.text(), st.text())
def test_any_text_is_well_formed(creator, text):
    model = {
        "00110010": {"vr": "LO", "Value": [creator]},
        "00111000": {"vr": "UT", "Value": [text]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": text}]},
    }
    root = ElementTree.fromstring(encode_native_model(model))
    value = root.findall(f"{NAMESPACE}DicomAttribute")[1].find(f"{NAMESPACE}Value")
    kept = "".join(
        each if each in "\t\n\r" or " " <= each < "\ufffe" or each > "\uffff" else "\ufffd" for each in text
    )
    assert (value.text or "") == kept
