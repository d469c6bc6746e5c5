"""The objects to send, made with pydicom in a temporary folder.

Four sizes: a small one (2.5 KB: a structured report, a key object, the many small files of a presentation state),
one CT slice (512 x 512 x 16 bit), a multi-frame object (256 such slices, 128 MiB, one file however many are sent) and
one of 1 GB. Each size has a study of its own. All are Explicit VR Little Endian and carry a SOP Instance UID of a
fixed length, so that a sender can count it up in place: `instance_uid(n)` always has UID_LENGTH characters.
"""

from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

UID_LENGTH = 40  # even, so that no padding follows it
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


def create(size: Size, folder: Path) -> Workload:
    """Write one object of this size into the folder."""
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
    dataset.Modality = "CT" if size.name == "ct" else "OT"
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
    # Every row differs from its neighbours, so that swapped or repeated fragments do not go unseen.
    row = bytes(range(256)) * (size.columns * 2 // 256 + 1)
    frame = b"".join(row[n % 251 : n % 251 + size.columns * 2] for n in range(size.rows))
    dataset.PixelData = frame * size.frames
    path = folder / f"{size.name}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    # (0002,0000) right after the prefix says how much file meta information follows it (PS3.10 §7.1).
    with path.open("rb") as file:
        head = file.read(144)
    offset = 144 + int.from_bytes(head[140:144], "little")
    return Workload(size, path, offset, path.stat().st_size - offset)
