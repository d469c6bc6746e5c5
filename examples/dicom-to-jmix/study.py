"""The study that demo.sh sends, and the check that an envelope holds exactly it.

    python examples/dicom-to-jmix/study.py make FOLDER
    python examples/dicom-to-jmix/study.py check FOLDER ENVELOPE_ZIP

make: 5 small CT images in 2 series, under FOLDER/<series>/, with new UIDs; prints the Study Instance UID. The
patient is invented.
check: opens the archive with Python's zipfile and compares each image's data set, byte by byte, with the file
of the same SOP Instance UID under FOLDER. Exit status 1, with what differs on stderr, when something does.

Harmony rewrites nothing but the file meta information of what it receives (PS3.10 §7.1), so that comes first in
each file and is left out of the comparison.
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


def make(folder: Path) -> None:
    study_instance_uid = generate_uid(prefix=None)  # from a UUID, PS3.5 §B.2
    for series_number, images in enumerate(IMAGES_PER_SERIES, 1):
        series_folder = folder / f"series-{series_number}"
        series_folder.mkdir(parents=True)
        series_instance_uid = generate_uid(prefix=None)
        for instance_number in range(1, images + 1):
            image = ct_image(series_number, instance_number)
            image.StudyInstanceUID = study_instance_uid
            image.SeriesInstanceUID = series_instance_uid
            image.SOPInstanceUID = generate_uid(prefix=None)
            image.save_as(series_folder / f"image-{instance_number}.dcm", enforce_file_format=True)
    print(study_instance_uid)


def ct_image(series_number: int, instance_number: int) -> Dataset:
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.PatientName = "Demo^Harmony"
    image.PatientID = "DEMO-1"
    image.PatientBirthDate = "19700101"
    image.PatientSex = "O"
    image.StudyDate = "20240115"
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


def check(folder: Path, envelope: Path) -> None:
    sent = dict(identified(path.read_bytes()) for path in folder.rglob("*.dcm"))
    with zipfile.ZipFile(envelope) as archive:
        if damaged := archive.testzip():
            sys.exit(f"{damaged}: its CRC-32 does not match")
        names = [name for name in archive.namelist() if name.endswith(".dcm")]
        arrived = dict(identified(archive.read(name)) for name in names)
    if len(names) != len(arrived) or sent.keys() != arrived.keys():
        sys.exit(f"sent: {sorted(sent)}\nin the envelope: {sorted(arrived)}, {len(names)} files")
    for sop_instance_uid, data_set in sent.items():
        if arrived[sop_instance_uid] != data_set:
            sys.exit(f"the data set of {sop_instance_uid} is not what was sent")
    total_bytes = sum(map(len, sent.values()))
    print(f"{len(sent)} data sets, {total_bytes} bytes, each the same as sent")


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
    checking = commands.add_parser("check", help="compare an envelope with what was sent")
    checking.add_argument("folder", type=Path)
    checking.add_argument("envelope", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.folder)
    else:
        check(arguments.folder, arguments.envelope)


if __name__ == "__main__":
    main()
