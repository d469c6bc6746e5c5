"""Native transfer syntaxes into each other as DCMTK does it, byte for byte."""

import pytest

from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES, Transcoder
from harmony.dimse.part10 import read_file_meta

pytestmark = pytest.mark.interop

OPTIONS = {"1.2.840.10008.1.2": "+ti", "1.2.840.10008.1.2.1": "+te", "1.2.840.10008.1.2.2": "+tb"}

NOT_LIKE_DCMTK = {
    "MR_truncated.dcm": "refused here, as it ends inside its pixel data",
    "winter.dcm": "has elements out of order, which DCMTK sorts, and twice, of which it drops one",
    "SC_rgb_jpeg_dcmd.dcm": "pixels of 8 bits in Implicit VR are OB here and OW there",
    "reportsi_with_empty_number_tags.dcm": "empty sequences have no length here and a delimiter there",
    "test-SR.dcm": "likewise",
}


def some_of(samples):
    """Ten of each native transfer syntax at most, of different sizes."""
    chosen = []
    for syntax in NATIVE_TRANSFER_SYNTAXES:
        like = [sample for sample in samples if sample.transfer_syntax_uid == syntax]
        like = [sample for sample in like if sample.path.name not in NOT_LIKE_DCMTK]
        like.sort(key=lambda sample: len(sample.data_set))
        chosen += like[:: -(-len(like) // 10)]
    return chosen


@pytest.mark.parametrize("target", OPTIONS)
def test_as_dcmconv_does_it(pydicom_files, run_tool, tmp_path, target):
    """Undefined lengths (-e), no group lengths (-g)."""
    samples = some_of(pydicom_files)
    assert {sample.transfer_syntax_uid for sample in samples} == set(NATIVE_TRANSFER_SYNTAXES)
    for sample in samples:
        path = tmp_path / "converted.dcm"
        run_tool("dcmconv", OPTIONS[target], "-e", "-g", sample.path, path)
        content = path.read_bytes()
        transcoder = Transcoder(sample.transfer_syntax_uid, target)
        converted = b"".join([*transcoder.feed(sample.data_set), *transcoder.finish()])
        assert converted == content[read_file_meta(content).data_set_offset :], sample
