"""The objects to send, made with pydicom in a temporary folder.

Four sizes: a small one (2.5 KB: a structured report, a key object, the many small files of a presentation state),
one CT slice (512 x 512 x 16 bit), a multi-frame object (256 such slices, 128 MiB, one file however many are sent) and
one of 1 GB. And two CT slices with the whole header of a scanner, with private elements and without. Each
size has a study of its own. All are Explicit VR Little Endian and carry a SOP Instance UID of a fixed length, so that a
sender can count it up in place: `instance_uid(n)` always has UID_LENGTH characters.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

UID_LENGTH = 40  # even, so that no padding follows it
PATIENT_ID_LENGTH = 14  # even, for the same reason
TRANSFER_SYNTAX_UID = str(ExplicitVRLittleEndian)


@dataclass(frozen=True, slots=True)
class Size:
    """One size of object; `objects` is how many make up one round, over all associations, at full speed."""

    name: str
    sop_class_uid: str
    rows: int
    columns: int
    frames: int
    objects: int
    quick_objects: int
    header: str = "short"  # or "ct", all that a scanner writes; or "private", and elements of its maker's

    @property
    def study_instance_uid(self) -> str:
        return f"2.25.20{self.frames * self.rows}"


SIZES = {
    size.name: size
    for size in (
        Size("small", str(SecondaryCaptureImageStorage), 32, 32, 1, objects=4000, quick_objects=1500),
        Size("ct", str(CTImageStorage), 512, 512, 1, objects=800, quick_objects=240),
        Size(
            "multiframe",
            str(MultiFrameGrayscaleWordSecondaryCaptureImageStorage),
            512,
            512,
            256,
            objects=8,
            quick_objects=4,
        ),
        Size(
            "gigabyte",  # a little less: DCMTK's dcmqrscp keeps 2^30 bytes of a study at most
            str(MultiFrameGrayscaleWordSecondaryCaptureImageStorage),
            512,
            512,
            1900,
            objects=1,
            quick_objects=1,
        ),
        # Not 512 rows: they tell the studies apart.
        Size("header", str(CTImageStorage), 510, 512, 1, objects=1000, quick_objects=300, header="ct"),
        Size("private", str(CTImageStorage), 511, 512, 1, objects=1000, quick_objects=300, header="private"),
    )
}


@dataclass(frozen=True, slots=True)
class Workload:
    """One object on disk, the template of all that are sent."""

    size: Size
    path: Path
    data_set_offset: int  # where the data set starts in the file
    data_set_bytes: int

    def data_set(self) -> bytearray:
        """The data set as it lies in the file, in a buffer of its own."""
        buffer = bytearray(self.data_set_bytes)
        with self.path.open("rb") as file:
            file.seek(self.data_set_offset)
            file.readinto(buffer)
        return buffer


def instance_uid(number: int) -> str:
    """The SOP Instance UID of the n-th object, UID_LENGTH characters below 2.25 (PS3.5 §B.2)."""
    return f"2.25.1{number:0{UID_LENGTH - 6}d}"


def study_uid(number: int) -> str:
    """The Study Instance UID of the n-th of many studies, as long as an `instance_uid`."""
    return f"2.25.3{number:0{UID_LENGTH - 6}d}"


def series_uid(number: int) -> str:
    """The Series Instance UID of the only series of that study, as long as an `instance_uid`."""
    return f"2.25.4{number:0{UID_LENGTH - 6}d}"


def patient_id(number: int) -> str:
    """The Patient ID of that study, always PATIENT_ID_LENGTH characters; every study has a patient of its own."""
    return f"BENCH{number:0{PATIENT_ID_LENGTH - 5}d}"


def create(size: Size, folder: Path, *, of_many_studies: bool = False) -> Workload:
    """Write one object of this size into the folder.

    of_many_studies: its study is `study_uid(0)`, to be counted up in place like its SOP Instance UID.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(size.sop_class_uid)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(instance_uid(0))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SOPClassUID = size.sop_class_uid
    dataset.SOPInstanceUID = instance_uid(0)
    dataset.StudyDate = "20240115"
    dataset.StudyTime = "093000"
    dataset.AccessionNumber = "BENCH"
    dataset.Modality = "CT" if size.sop_class_uid == CTImageStorage else "OT"
    dataset.PatientName = "Benchmark^Store"
    dataset.PatientID = "BENCH"
    dataset.StudyInstanceUID = size.study_instance_uid
    dataset.SeriesInstanceUID = size.study_instance_uid + ".1"
    dataset.SeriesNumber = "1"
    dataset.InstanceNumber = "1"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    if size.frames > 1:
        dataset.NumberOfFrames = str(size.frames)
    dataset.Rows = size.rows
    dataset.Columns = size.columns
    dataset.BitsAllocated = 16
    dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    if size.header != "short":
        _add_scanner_attributes(dataset)
    if size.header == "private":
        _add_private_elements(dataset)
    # Every row differs from its neighbours, so that swapped or repeated fragments do not go unseen.
    row = bytes(range(256)) * (size.columns * 2 // 256 + 1)
    frame = b"".join(row[n % 251 : n % 251 + size.columns * 2] for n in range(size.rows))
    dataset.PixelData = frame * size.frames
    if of_many_studies:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid(0), series_uid(0)
        dataset.PatientID = patient_id(0)
    path = folder / f"{size.name}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    # (0002,0000) right after the prefix says how much file meta information follows it (PS3.10 §7.1).
    with path.open("rb") as file:
        head = file.read(144)
    offset = 144 + int.from_bytes(head[140:144], "little")
    return Workload(size, path, offset, path.stat().st_size - offset)


def _add_scanner_attributes(dataset: Dataset) -> None:
    """Make the header what a CT scanner writes, but for private elements: 80 elements, 3 of them sequences."""
    values: dict[str, Any] = {
        "SeriesDate": "20240115", "AcquisitionDate": "20240115", "ContentDate": "20240115", "SeriesTime": "093100.250",
        "AcquisitionTime": "093112.500", "ContentTime": "093112.750", "Manufacturer": "Benchmark",
        "InstitutionName": "General Hospital", "InstitutionAddress": "1 Main Street", "ReferringPhysicianName": "A^B",
        "StationName": "CT1", "StudyDescription": "CT of the chest", "SeriesDescription": "Axial 1.5 mm",
        "InstitutionalDepartmentName": "Radiology", "OperatorsName": "C^D", "ManufacturerModelName": "Scanner 3000",
        "IrradiationEventUID": "2.25.77", "PatientBirthDate": "19610403", "PatientSex": "F", "PatientAge": "062Y",
        "PatientSize": "1.68", "PatientWeight": "64", "ContrastBolusAgent": "Agent", "BodyPartExamined": "CHEST",
        "ScanOptions": "HELIX", "SliceThickness": "1.5", "KVP": "120", "DataCollectionDiameter": "500",
        "DeviceSerialNumber": "123456", "SoftwareVersions": "1.2.3", "ProtocolName": "Routine chest",
        "ReconstructionDiameter": "360", "DistanceSourceToDetector": "1085.6", "DistanceSourceToPatient": "595",
        "GantryDetectorTilt": "0", "TableHeight": "157", "RotationDirection": "CW", "ExposureTime": "500",
        "XRayTubeCurrent": "210", "Exposure": "105", "FilterType": "WEDGE", "GeneratorPower": "25",
        "FocalSpots": "1.2", "DateOfLastCalibration": "20240110", "ConvolutionKernel": ["B31f", "3"],
        "PatientPosition": "HFS", "SingleCollimationWidth": 0.6, "TotalCollimationWidth": 38.4, "TableSpeed": 64.0,
        "SpiralPitchFactor": 0.8, "CTDIvol": 7.93, "StudyID": "1", "AcquisitionNumber": "2",
        "ImagePositionPatient": ["-180", "-180", "-312.5"], "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "FrameOfReferenceUID": "2.25.78", "PositionReferenceIndicator": "", "SliceLocation": "-312.5",
        "ImageComments": "Comment", "PixelSpacing": ["0.703125", "0.703125"], "SmallestImagePixelValue": 0,
        "LargestImagePixelValue": 2500, "WindowCenter": ["40", "-600"], "WindowWidth": ["400", "1200"],
        "RescaleIntercept": "-1024", "RescaleSlope": "1", "WindowCenterWidthExplanation": ["SOFT", "LUNG"],
        "RequestedProcedureDescription": "Chest CT",
    }  # fmt: skip
    for keyword, value in values.items():
        dataset.add_new(keyword, dictionary_VR(keyword), value)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24627-2", "LN", "Chest CT"
    dataset.ProcedureCodeSequence = [code]
    request = Dataset()
    request.ScheduledProcedureStepDescription, request.ScheduledProcedureStepID = "Chest CT", "S1"
    request.ScheduledProtocolCodeSequence = [code]
    dataset.RequestAttributesSequence = [request]
    referenced = Dataset()
    referenced.ReferencedSOPClassUID, referenced.ReferencedSOPInstanceUID = str(CTImageStorage), "2.25.79"
    dataset.ReferencedImageSequence = [referenced] * 3


def _add_private_elements(dataset: Dataset) -> None:
    """Add what makers add: numbers, texts, a short binary value, and two long ones (PS3.5 §7.8)."""
    block = dataset.private_block(0x0029, "BENCHMARK HEADER", create=True)
    block.add_new(0x08, "CS", "IMAGE NUM 4")
    block.add_new(0x09, "LO", "20240115")
    block.add_new(0x10, "OB", bytes(range(256)) * 42)
    block.add_new(0x18, "CS", "SERIES")
    block.add_new(0x20, "OB", bytes(range(256)) * 20)
    block.add_new(0x31, "UN", b"SOMETHING ")
    block.add_new(0x40, "OB", bytes(range(64)))
    block.add_new(0x41, "DS", ["1.5", "2.5"])
    block.add_new(0x42, "SL", 77)
    item = Dataset()
    inner = item.private_block(0x0029, "BENCHMARK ITEM", create=True)
    inner.add_new(0x10, "OB", bytes(16))
    block.add_new(0x50, "SQ", [item])
