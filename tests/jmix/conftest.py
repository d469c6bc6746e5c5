"""Small DICOM files and the objects that name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

CT = "1.2.840.10008.5.1.4.1.1.2"


class Disposition(Enum):
    """As in the archive, which the package under test does not import."""

    STORED = "stored"
    IDENTICAL = "identical"
    KEPT_FIRST = "kept first"
    KEPT_BOTH = "kept both"


@dataclass(frozen=True, slots=True)
class Object:
    path: str
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int
    disposition: Disposition = Disposition.STORED


MakeObject = Callable[..., Object]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    path = tmp_path / "storage"
    path.mkdir()
    return path


@pytest.fixture
def make_object(storage: Path) -> MakeObject:
    """Make a DICOM file with pydicom and return the object it is; other elements by keyword."""

    def make_object(
        instance: str,
        *,
        study: str = "1.2.3.4.5.6",
        series: str = "1.2.3.4.5.6.1",
        syntax: str = str(ExplicitVRLittleEndian),
        **elements: object,
    ) -> Object:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = UID(CT)
        meta.MediaStorageSOPInstanceUID = UID(instance)
        meta.TransferSyntaxUID = UID(syntax)
        path = storage / study / series / f"{instance}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID = UID(CT)
        dataset.SOPInstanceUID = UID(instance)
        dataset.StudyInstanceUID = UID(study)
        dataset.SeriesInstanceUID = UID(series)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path, enforce_file_format=True)
        return Object(str(path), study, series, CT, instance, syntax, path.stat().st_size)

    return make_object


@pytest.fixture
def dispositions() -> type[Disposition]:
    return Disposition
