"""Objects that are counted up in place: what a sender writes over is where it looks for it, and as long."""

from io import BytesIO
from pathlib import Path

import pytest
from pydicom.filereader import read_dataset

from benchmarks.preencoded import Encoded
from benchmarks.workloads import SIZES, create, instance_uid, patient_id, series_uid, study_uid


@pytest.mark.parametrize("its", [instance_uid, study_uid, series_uid, patient_id])
def test_every_number_is_as_long_as_the_first(its: object) -> None:
    assert callable(its)
    assert {len(its(number)) for number in (0, 1, 999_999, 10_000_000)} == {len(its(0))}
    assert len(its(0)) % 2 == 0  # no padding follows it


def test_an_object_of_many_studies_can_be_moved_to_another(tmp_path: Path) -> None:
    workload = create(SIZES["small"], tmp_path, of_many_studies=True)
    encoded = Encoded.encode(workload, 131072)
    head = bytearray(encoded.head)
    for at, length, its in encoded.study_at:
        head[at : at + length] = its(42).encode()
    size = workload.data_set_bytes
    found = read_dataset(BytesIO(bytes(head[-size:])), False, True)
    assert found.StudyInstanceUID == study_uid(42)
    assert found.SeriesInstanceUID == series_uid(42)
    assert found.PatientID == patient_id(42)
    assert found.SOPInstanceUID == instance_uid(0)


def test_other_objects_stay_in_the_study_of_their_size(tmp_path: Path) -> None:
    workload = create(SIZES["small"], tmp_path)
    assert Encoded.encode(workload, 131072).study_at == ()
