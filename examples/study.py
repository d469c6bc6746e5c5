"""The studies that the demonstrations send, and the check that exactly these have arrived.

    python examples/study.py make FOLDER [--study-instance-uid UID] [--series-instance-uid UID]
                                         [--patient-id ID] [--study-date YYYYMMDD]
    python examples/study.py check FOLDER RECEIVED

make: 5 small CT images in 2 series, under FOLDER/<series>/, with new UIDs; prints the Study Instance UID. The
patient is invented. --series-instance-uid is that of the first series.
check: compares each image that was received, in a JMIX envelope (a ZIP) or in the files of a folder, with the file of
the same SOP Instance UID under FOLDER: its data set, byte by byte. Exit status 1, with what differs on stderr, when
something does.

Whoever stores an object writes file meta information of its own (PS3.10 §7.1), so what comes first in each file is
left out of the comparison.
"""

import argparse
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

IMAGES_PER_SERIES = (3, 2)
SIDE = 64  # pixels

META_START = 128 + len("DICM")
GROUP_LENGTH_BYTES = 12
"""(0002,0000) UL, which opens the file meta information and says how much of it follows (PS3.10 §7.1)."""


def make(
    folder: Path,
    *,
    study_instance_uid: str,
    first_series_instance_uid: str,
    patient_id: str,
    study_date: str,
) -> None:
    for series_number, images in enumerate(IMAGES_PER_SERIES, 1):
        series_folder = folder / f"series-{series_number}"
        series_folder.mkdir(parents=True)
        series_instance_uid = first_series_instance_uid if series_number == 1 else generate_uid(prefix=None)
        for instance_number in range(1, images + 1):
            image = ct_image(series_number, instance_number)
            image.PatientID = patient_id
            image.StudyDate = study_date
            image.StudyInstanceUID = study_instance_uid
            image.SeriesInstanceUID = series_instance_uid
            image.SOPInstanceUID = generate_uid(prefix=None)
            image.save_as(series_folder / f"image-{instance_number}.dcm", enforce_file_format=True)
    print(study_instance_uid)


def ct_image(series_number: int, instance_number: int) -> Dataset:
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.PatientName = "Demo^Harmony"
    image.PatientBirthDate = "19700101"
    image.PatientSex = "O"
    image.StudyTime = "093000"
    image.StudyID = "1"
    image.AccessionNumber = ""
    image.ReferringPhysicianName = ""
    image.StudyDescription = "Demonstration"
    image.Modality = "CT"
    image.SeriesNumber = series_number
    image.InstanceNumber = instance_number
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows = image.Columns = SIDE
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = 0
    image.PixelData = b"".join(  # a slope, another one in each image
        ((x + y * instance_number * series_number) % 0x10000).to_bytes(2, "little")
        for y in range(SIDE)
        for x in range(SIDE)
    )
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def check(folder: Path, received: Path) -> None:
    sent = dict(identified(path.read_bytes()) for path in folder.rglob("*.dcm"))
    files = files_of_folder(received) if received.is_dir() else files_of_envelope(received)
    arrived = dict(map(identified, files))
    if len(files) != len(arrived) or sent.keys() != arrived.keys():
        sys.exit(f"sent: {sorted(sent)}\nreceived: {sorted(arrived)}, {len(files)} files")
    for sop_instance_uid, data_set in sent.items():
        if arrived[sop_instance_uid] != data_set:
            sys.exit(f"the data set of {sop_instance_uid} is not what was sent")
    total_bytes = sum(map(len, sent.values()))
    print(f"{len(sent)} data sets, {total_bytes} bytes, each the same as sent")


def files_of_envelope(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            sys.exit(f"{damaged}: its CRC-32 does not match")
        return [archive.read(name) for name in archive.namelist() if name.endswith(".dcm")]


def files_of_folder(folder: Path) -> list[bytes]:
    """Of all but hidden ones."""
    return [path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()]


def identified(file: bytes) -> tuple[str, bytes]:
    """The SOP Instance UID of a Part 10 file, and its data set as it stands there."""
    length_at = META_START + GROUP_LENGTH_BYTES - 4
    meta_bytes = int.from_bytes(file[length_at : length_at + 4], "little")
    data_set = file[META_START + GROUP_LENGTH_BYTES + meta_bytes :]
    return str(pydicom.dcmread(BytesIO(file), stop_before_pixels=True).SOPInstanceUID), data_set


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the images of a study")
    making.add_argument("folder", type=Path)
    making.add_argument("--study-instance-uid", default=generate_uid(prefix=None))  # from a UUID, PS3.5 §B.2
    making.add_argument("--series-instance-uid", default=generate_uid(prefix=None))
    making.add_argument("--patient-id", default="DEMO-1")
    making.add_argument("--study-date", default="20240115")
    checking = commands.add_parser("check", help="compare what was received with what was sent")
    checking.add_argument("folder", type=Path)
    checking.add_argument("received", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(
            arguments.folder,
            study_instance_uid=arguments.study_instance_uid,
            first_series_instance_uid=arguments.series_instance_uid,
            patient_id=arguments.patient_id,
            study_date=arguments.study_date,
        )
    else:
        check(arguments.folder, arguments.received)


if __name__ == "__main__":
    main()
