"""An archive to query, generated straight into its index: `python -m benchmarks.find_data FOLDER`.

There are no files; whoever opens the index says `verify_files=False`, or calls `make_files`, which makes empty ones for
the instances that a query of studies or series looks for. All of it follows from the arguments: the same
numbers give the same archive, so that answers can be compared from run to run and from server to server. Patients have
between one and three studies; names, dates and modalities are spread so that a query by one of them finds from one
study to some thousands. Headers have what a CT slice's has apart from private attributes, 45 attributes.

`study_of(n)` tells what the n-th study is, for who wants to ask for it.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from harmony.archive.index import Counts, IndexedInstance
from harmony.archive.sqlite_index import SQLiteIndex
from harmony.dicom.json_model import encode_data_set

MAXIMUM_STUDIES = 1_000_000
MAXIMUM_INSTANCES = 10_000_000
"""Some 5 GB of index and ten minutes; more is a mistake in an argument."""

SERIES_PER_STUDY = 2
BATCH = 2000
TRANSFER_SYNTAX_UID = "1.2.840.10008.1.2.1"
FIRST_DATE = date(2015, 1, 1)
DAYS = 3650


def _words(text: str) -> list[str]:
    return text.split()


_FAMILY_NAMES = _words("""
    Smith Jones Garcia Muller Rossi Novak Silva Tanaka Kim Ivanova Nguyen Andersson Dubois Kowalski Yilmaz
    Okafor Haddad Cohen Singh Chen Peeters Horvat Virtanen Papadopoulos Murphy Costa Brown Weber Moreau
    Ferrari
""")
_GIVEN_NAMES = _words("""
    Anna Ben Clara David Eva Felix Grace Hugo Ines Jan Karin Leo Maria Noah Olga Paul
""")
_MODALITIES = ("CT", "MR", "US", "CR", "MG")
SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
}


@dataclass(frozen=True, slots=True)
class Study:
    """What can be asked for."""

    number: int
    uid: str
    patient_id: str
    patient_name: str
    date: str
    accession_number: str
    modality: str


def study_of(number: int) -> Study:
    """Return the n-th study, counted from 0."""
    patient = number * 2 // 3  # every other patient has two
    # Multiplying by a prime spreads neighbours over all values.
    spread = number * 7919
    family = _FAMILY_NAMES[patient * 31 % len(_FAMILY_NAMES)]
    given = _GIVEN_NAMES[patient * 17 // len(_FAMILY_NAMES) % len(_GIVEN_NAMES)]
    return Study(
        number,
        f"2.25.3{number:09d}",
        f"PID{patient:07d}",
        f"{family}^{given}{patient // 480 or ''}",
        (FIRST_DATE + timedelta(days=spread % DAYS)).strftime("%Y%m%d"),
        f"ACC{number:08d}",
        _MODALITIES[spread % len(_MODALITIES)],
    )


def generate(
    index: SQLiteIndex, *, studies: int, instances: int, report: Callable[[int], None] | None = None
) -> Counts:
    """Fill an empty index; every study has at least one instance, and about as many as the others.

    report: called with the number of instances so far, every BATCH of them. Raises ValueError for numbers that are
    out of bounds, ArchiveIndexError.
    """
    if not 1 <= studies <= min(instances, MAXIMUM_STUDIES) or instances > MAXIMUM_INSTANCES:
        raise ValueError(
            f"{studies} studies of {instances} instances: from 1 to {MAXIMUM_STUDIES} studies, "
            f"up to {MAXIMUM_INSTANCES} instances, and no fewer than studies"
        )
    batch: list[IndexedInstance] = []
    made = 0
    for number in range(studies):
        share = instances // studies + (number < instances % studies)
        batch += _instances(study_of(number), share)
        if len(batch) >= BATCH or number == studies - 1:
            index.add(batch)
            made += len(batch)
            batch = []
            if report is not None:
                report(made)
    index.set_current()
    return index.counts()


def make_files(root: Path, *, studies: int, instances: int) -> None:
    """Make an empty file for the first instance of every series, which stands for it and perhaps for its study."""
    for number in range(studies):
        study = study_of(number)
        share = instances // studies + (number < instances % studies)
        for series in range(1, min(SERIES_PER_STUDY, share) + 1):
            folder = f"{root}/{study.uid}/{study.uid}.{series}"
            os.makedirs(folder)
            os.close(os.open(f"{folder}/{study.uid}.{series}.{series}.dcm", os.O_CREAT | os.O_WRONLY, 0o640))


def data_sets(studies: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield SOP Class UID, SOP Instance UID and data set (Explicit VR Little Endian) of one instance per series."""
    for number in range(studies):
        for instance in _instances(study_of(number), SERIES_PER_STUDY):
            data = encode_data_set(instance.header, TRANSFER_SYNTAX_UID)
            yield instance.sop_class_uid, instance.sop_instance_uid, data


def _instances(study: Study, count: int) -> Iterator[IndexedInstance]:
    series_count = min(SERIES_PER_STUDY, count)
    received_ns = 1_700_000_000_000_000_000 + study.number * 1_000_000_000
    headers = [_header(study, series, f"{study.uid}.{series}") for series in range(1, series_count + 1)]
    for n in range(count):
        series = n % series_count + 1
        series_uid, uid = f"{study.uid}.{series}", f"{study.uid}.{series}.{n + 1}"
        yield IndexedInstance(
            path=f"{study.uid}/{series_uid}/{uid}.dcm",
            study_instance_uid=study.uid,
            series_instance_uid=series_uid,
            sop_instance_uid=uid,
            sop_class_uid=SOP_CLASSES[study.modality],
            transfer_syntax_uid=TRANSFER_SYNTAX_UID,
            size_bytes=526_000,
            received_ns=received_ns + n,
            data_set_offset=386,
            pixel_data_offset=1700,
            header=headers[series - 1] | _of_instance(study, uid, n + 1),
        )


def _header(study: Study, series: int, series_uid: str) -> dict[str, dict[str, Any]]:
    """What the instances of a series have in common, and room for the rest, by tag in ascending order."""
    elements: list[tuple[str, str, Any]] = [
        ("00080005", "CS", "ISO_IR 100"),
        ("00080008", "CS", ["ORIGINAL", "PRIMARY", "AXIAL"]),
        ("00080016", "UI", SOP_CLASSES[study.modality]),
        ("00080018", "UI", ""),
        ("00080020", "DA", study.date),
        ("00080021", "DA", study.date),
        ("00080022", "DA", study.date),
        ("00080023", "DA", study.date),
        ("00080030", "TM", f"{8 + study.number % 10:02d}{study.number % 60:02d}00"),
        ("00080032", "TM", ""),
        ("00080050", "SH", study.accession_number),
        ("00080060", "CS", study.modality),
        ("00080070", "LO", "Benchmark"),
        ("00080080", "LO", "General Hospital"),
        ("00080090", "PN", {"Alphabetic": "Referrer^" + _GIVEN_NAMES[study.number % len(_GIVEN_NAMES)]}),
        ("00081010", "SH", f"{study.modality}{study.number % 4}"),
        ("00081030", "LO", f"{study.modality} of the {('head', 'chest', 'knee')[study.number % 3]}"),
        ("0008103E", "LO", f"Series {series}"),
        ("00081090", "LO", "Scanner 3000"),
        ("00100010", "PN", {"Alphabetic": study.patient_name}),
        ("00100020", "LO", study.patient_id),
        ("00100030", "DA", f"19{study.number * 2 // 3 % 90 + 10}0{study.number * 2 // 3 % 9 + 1}15"),
        ("00100040", "CS", "FM"[study.number * 2 // 3 % 2]),
        ("00180015", "CS", "CHEST"),
        ("00180050", "DS", 2.5),
        ("00180060", "DS", 120),
        ("00181030", "LO", "Routine"),
        ("00185100", "CS", "HFS"),
        ("0020000D", "UI", study.uid),
        ("0020000E", "UI", series_uid),
        ("00200010", "SH", f"S{study.number}"),
        ("00200011", "IS", series),
        ("00200012", "IS", 1),
        ("00200013", "IS", 0),
        ("00200032", "DS", 0),
        ("00200037", "DS", [1, 0, 0, 0, 1, 0]),
        ("00200052", "UI", f"{study.uid}.0"),
        ("00201041", "DS", 0),
        ("00280002", "US", 1),
        ("00280004", "CS", "MONOCHROME2"),
        ("00280010", "US", 512),
        ("00280011", "US", 512),
        ("00280030", "DS", [0.7, 0.7]),
        ("00280100", "US", 16),
        ("00281050", "DS", 40),
    ]
    return {
        tag: {"vr": vr, "Value": value if isinstance(value, list) else [value]} for tag, vr, value in elements
    }


def _of_instance(study: Study, uid: str, number: int) -> dict[str, dict[str, Any]]:
    location = round(number * 2.5, 2)
    time_of_day = f"{8 + study.number % 10:02d}{study.number % 60:02d}{number % 60:02d}"
    return {
        "00080018": {"vr": "UI", "Value": [uid]},
        "00080032": {"vr": "TM", "Value": [time_of_day]},
        "00200013": {"vr": "IS", "Value": [number]},
        "00200032": {"vr": "DS", "Value": [-180.0, -180.0, location]},
        "00201041": {"vr": "DS", "Value": [location]},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.find_data", description="Generates the index of an archive without files."
    )
    parser.add_argument("folder", type=Path, help="of the index; made when missing, must not hold one")
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--instances", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    if (options.folder / "index.sqlite").exists():
        print(f"{options.folder}: there is an index already", file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    index = SQLiteIndex(options.folder, root=str(options.folder), verify_files=False)
    try:
        counts = generate(index, studies=options.studies, instances=options.instances)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        index.close()
    elapsed_s = time.perf_counter() - started
    size_bytes = (options.folder / "index.sqlite").stat().st_size
    print(
        f"{counts.patients} patients, {counts.studies} studies, {counts.series} series, {counts.instances} instances: "
        f"{elapsed_s:.1f} s, {counts.instances / elapsed_s:.0f} instances/s, {size_bytes / 1e6:.0f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
