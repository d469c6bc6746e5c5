"""DICOM as XML: the same as DCMTK's dcm2xml writes."""

from xml.etree import ElementTree

import pytest

from harmony.dicom.json_model import decode_data_set
from harmony.dicom.native_model import NAMESPACE, encode_native_model

pytestmark = pytest.mark.interop

SAMPLES = (
    "CT_small.dcm",
    "MR_small.dcm",
    "reportsi.dcm",
    "MR_small_implicit.dcm",
    "test-SR.dcm",
    "liver_1frame.dcm",
)
CHARACTER_SET = "00080005"  # which dcm2xml changes
NUMBERS = ("DS", "IS", "FL", "FD")  # in decimal, of which there are many forms


def content(element):
    """Of a data set: what each attribute is and has, without what is binary."""
    found = []
    for attribute in element:
        vr = attribute.get("vr")
        values = []
        for each in attribute:
            if each.tag.endswith("Value"):
                text = each.text or ""
                values.append(float(f"{float(text):.6g}") if vr in NUMBERS and text else text)
            elif each.tag.endswith("Item"):
                values.append(content(each))
            elif each.tag.endswith("PersonName"):
                values.append([(part.tag, part.text) for part in each.iter() if (part.text or "").strip()])
        attributes = {name: attribute.get(name) for name in ("tag", "vr", "keyword", "privateCreator")}
        if vr not in ("OB", "OW", "UN", "AT") and attribute.get("tag") != CHARACTER_SET:
            found.append((attributes, values))
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_as_dcm2xml_writes_it(run_tool, pydicom_files, name):
    [sample] = [each for each in pydicom_files if each.path.name == name]
    printed = run_tool(
        "dcm2xml", "--convert-to-utf8", "--native-format", "--use-xml-namespace", sample.path
    ).stdout
    theirs = ElementTree.fromstring(printed[printed.index("<NativeDicomModel") :])
    model = decode_data_set(sample.data_set, sample.transfer_syntax_uid, complete=True)
    ours = ElementTree.fromstring(encode_native_model(model))
    assert ours.tag == theirs.tag == f"{{{NAMESPACE}}}NativeDicomModel"
    assert content(ours) == content(theirs)
