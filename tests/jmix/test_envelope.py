"""Envelopes as they are built: the documented structure, the specification's schemas, order and names."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pydicom
import pytest

from harmony.jmix.envelope import (
    Compression,
    Entity,
    EnvelopeFile,
    EnvelopePlan,
    EnvelopeSummary,
    Parties,
    Profile,
    build_envelope,
)
from harmony.jmix.header import HeaderReader, InstanceHeader, decode_text
from harmony.jmix.reader import check_envelope

ENVELOPE_ID = "550e8400-e29b-41d4-a716-446655440000"
CREATED = datetime(2024, 1, 15, 10, 20, 30, tzinfo=UTC)
SCHEMAS = Path(__file__).parents[2] / ".." / "shared" / "schemas" / "jmix"

Build = Callable[..., EnvelopeSummary]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def build(objects: list[Any], *, parties: Parties | None = None, **options: Any) -> EnvelopeSummary:
        plan = EnvelopePlan(ENVELOPE_ID, CREATED, objects, parties=parties or Parties())
        return build_envelope(plan, out_path=tmp_path / "envelope.zip", **options)

    return build


def members(summary: EnvelopeSummary) -> dict[str, bytes]:
    with zipfile.ZipFile(summary.path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def documents(summary: EnvelopeSummary) -> dict[str, Any]:
    return {name: json.loads(data) for name, data in members(summary).items() if name.endswith(".json")}


CT = {"PatientName": "DOE^JOHN", "PatientID": "P1", "StudyDate": "20240115", "Modality": "CT"}


def test_envelope_is_the_documented_one(build: Build, make_object) -> None:
    one = make_object("1.1", SeriesNumber=1, InstanceNumber=1, **CT)
    two = make_object("1.2", SeriesNumber=1, InstanceNumber=2, **CT)
    summary = build([one, two])
    found = members(summary)
    assert list(found) == [
        "payload/series_1/image_001.dcm",
        "payload/series_1/image_002.dcm",
        "payload/metadata.json",
        "payload/files.json",
        "manifest.json",
    ]
    assert found["payload/series_1/image_001.dcm"] == Path(one.path).read_bytes()
    found_documents = documents(summary)
    manifest = found_documents["manifest.json"]
    assert manifest == {
        "id": ENVELOPE_ID,
        "type": "envelope",
        "version": 1,
        "content": {"type": "directory", "path": "payload"},
        "timestamp": "2024-01-15T10:20:30Z",
        "sender": {"id": "org:harmony", "name": "Harmony"},
        "receiver": [{"id": "org:upstream", "name": "Upstream JMIX server"}],
        "security": {"classification": "confidential", "payload_hash": summary.payload_hash},
    }
    assert json.loads(summary.manifest) == manifest
    study = found_documents["payload/metadata.json"]["studies"]["1.2.3.4.5.6"]
    instance = {
        "sop_instance_uid": "1.1",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "instance_number": 1,
        "file": "series_1/image_001.dcm",
        "size_bytes": one.size_bytes,
    }
    assert study == {
        "study_uid": "1.2.3.4.5.6",
        "patient_name": "DOE^JOHN",
        "study_date": "20240115",
        "modality": "CT",
        "series": [
            {
                "series_uid": "1.2.3.4.5.6.1",
                "modality": "CT",
                "series_number": 1,
                "instance_count": 2,
                "instances": [
                    instance,
                    instance
                    | {
                        "sop_instance_uid": "1.2",
                        "instance_number": 2,
                        "file": "series_1/image_002.dcm",
                        "size_bytes": two.size_bytes,
                    },
                ],
            }
        ],
    }
    assert found_documents["payload/metadata.json"]["id"] == ENVELOPE_ID
    assert found_documents["payload/metadata.json"]["patient"] == {
        "id": "P1",
        "name": {"family": "DOE", "given": ["JOHN"], "text": "JOHN DOE"},
    }
    metadata = found["payload/metadata.json"]
    assert found_documents["payload/files.json"][0] == {
        "file": "metadata.json",
        "hash": hashlib.sha256(metadata).hexdigest(),
        "size_bytes": len(metadata),
    }
    assert [entry["file"] for entry in found_documents["payload/files.json"]] == [
        "metadata.json",
        "series_1/image_001.dcm",
        "series_1/image_002.dcm",
    ]
    assert (summary.instance_count, summary.study_instance_uids) == (2, ("1.2.3.4.5.6",))
    assert summary.size_bytes == summary.path.stat().st_size
    assert os.listdir(summary.path.parent) != []
    assert not list(summary.path.parent.glob("*.tmp"))


def test_payload_hash_is_that_of_the_listing(build: Build, make_object) -> None:
    summary = build([make_object("1.1")])
    payload = {n.removeprefix("payload/"): d for n, d in members(summary).items() if n.startswith("payload/")}
    lines = [f"{name} {len(data)} {hashlib.sha256(data).hexdigest()}" for name, data in payload.items()]
    text = "\n".join(sorted([*lines, "series_1"]))
    assert summary.payload_hash == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("skip", [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_built_passes_the_check(
    build: Build, make_object, profile: Profile, compression: Compression, skip: tuple[bool, bool]
) -> None:
    hashing, listing = skip
    objects = [make_object("1.1"), make_object("1.2", series="1.2.3.4.5.6.2")]
    options = {
        "profile": profile,
        "compression": compression,
        "skip_hashing": hashing,
        "skip_listing": listing,
    }
    summary = build(objects, **options, fsync=True)
    info = check_envelope(summary.path)
    assert (info.id, info.instance_count, info.study_instance_uids) == (ENVELOPE_ID, 2, ("1.2.3.4.5.6",))
    assert info.payload_hash_checked is not hashing
    assert info.manifest == summary.manifest


def test_skipping_leaves_out_hashes_and_the_listing(build: Build, make_object) -> None:
    found = documents(build([make_object("1.1")], skip_hashing=True, skip_listing=True))
    assert found["manifest.json"]["security"] == {"classification": "confidential"}
    assert [list(entry) for entry in found["payload/files.json"]] == [["file", "size_bytes"]]
    assert found["payload/files.json"][0]["file"] == "metadata.json"
    (study,) = found["payload/metadata.json"]["studies"].values()
    assert study["series"][0]["instances"][0]["file"] == "series_1/image_001.dcm"


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="the JMIX schemas are not beside the project")
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {
            "PatientName": "DOE^JOHN PAUL^MIDDLE^DR^JR=山田^太郎",
            "SpecificCharacterSet": "ISO_IR 192",
            "PatientID": "P1",
            "PatientBirthDate": "19700131",
            "PatientSex": "F",
            "StudyDescription": "Head",
            "Modality": "MR",
            "BodyPartExamined": "HEAD",
        },
    ],
)
def test_jmix_profile_is_valid_against_the_schemas(
    build: Build, make_object, skip: bool, elements: dict
) -> None:
    entity = Entity("org:hospital", "Hospital", "mailto:it@example.com")
    summary = build(
        [make_object("1.1", **elements), make_object("1.2", series="1.2.3.4.5.6.2", **elements)],
        profile=Profile.JMIX,
        parties=Parties(sender=entity, requester=entity, receiver=(entity,)),
        skip_hashing=skip,
        skip_listing=skip,
    )
    found = documents(summary)
    assert set(found) == {"manifest.json", "audit.json", "payload/metadata.json", "payload/files.json"}
    for name, document in found.items():
        schema = json.loads((SCHEMAS / Path(name).with_suffix(".schema.json").name).read_text())
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(document)
    assert "payload/dicom/1.1.dcm" in members(summary)
    if elements:
        assert found["payload/metadata.json"]["patient"] == {
            "id": "P1",
            "name": {
                "family": "DOE",
                "given": ["JOHN", "PAUL", "MIDDLE"],
                "prefix": "DR",
                "suffix": "JR",
                "text": "DR JOHN PAUL MIDDLE DOE JR",
            },
            "dob": "1970-01-31",
            "sex": "F",
        }


def test_series_and_images_follow_their_numbers(build: Build, make_object) -> None:
    objects = [
        make_object("1.1", series="1.9", SeriesNumber=10, InstanceNumber=2),
        make_object("1.2", series="1.8", SeriesNumber=9),
        make_object("1.3", series="1.7"),
        make_object("1.4", series="1.9", SeriesNumber=10, InstanceNumber=1),
        make_object("1.5", series="1.9", SeriesNumber=10),
        make_object("1.6", series="1.9", SeriesNumber=10, InstanceNumber=-1),
    ]
    (study,) = documents(build(objects))["payload/metadata.json"]["studies"].values()
    found = [
        [(instance["file"], instance["sop_instance_uid"]) for instance in series["instances"]]
        for series in study["series"]
    ]
    assert found == [
        [("series_1/image_001.dcm", "1.2")],
        [
            ("series_2/image_001.dcm", "1.6"),
            ("series_2/image_002.dcm", "1.4"),
            ("series_2/image_003.dcm", "1.1"),
            ("series_2/image_004.dcm", "1.5"),
        ],
        [("series_3/image_001.dcm", "1.3")],
    ]


def test_more_than_999_images_have_longer_numbers(build: Build, make_object) -> None:
    template = make_object("1.1")
    found = list(members(build([replace(template, sop_instance_uid=f"1.{n}") for n in range(1000)])))
    assert (found[0], found[999]) == ("payload/series_1/image_0001.dcm", "payload/series_1/image_1000.dcm")


def test_several_studies_share_an_envelope_only_in_our_profile(build: Build, make_object) -> None:
    objects = [make_object("1.1"), make_object("1.2", study="1.2.9", series="1.2.9.1")]
    found = build(objects)
    assert found.study_instance_uids == ("1.2.3.4.5.6", "1.2.9")
    assert "payload/series_2/image_001.dcm" in members(found)
    with pytest.raises(ValueError, match="one study"):
        build(objects, profile=Profile.JMIX)


def test_one_uid_with_different_data_does_not_collide(build: Build, make_object) -> None:
    template = make_object("1.1")
    hostile = replace(template, sop_instance_uid="../../evil")
    found = list(members(build([template, template, hostile], profile=Profile.JMIX)))
    assert found[:2] == ["payload/dicom/1.1.dcm", "payload/dicom/1.1-2.dcm"]
    assert found[2] == f"payload/dicom/x-{hashlib.sha256(b'../../evil').hexdigest()[:32]}.dcm"


def test_same_plan_gives_the_same_bytes(build: Build, make_object) -> None:
    objects = [make_object("1.1"), make_object("1.2")]
    first = build(objects).path.read_bytes()
    assert build(objects).path.read_bytes() == first


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., EnvelopeFile]:
    def begin(objects: list[Any], **options: Any) -> EnvelopeFile:
        options = {"profile": Profile.HARMONY, "compression": Compression.STORED} | options
        begun = EnvelopeFile(
            EnvelopePlan(ENVELOPE_ID, CREATED),
            tmp_path / "begun.tmp",
            skip_hashing=False,
            skip_listing=False,
            fsync=False,
            **options,
        )
        for each in objects:
            begun.add_file(each)
        return begun

    return begin


@pytest.mark.parametrize("count", [0, 1, 3])
def test_begun_earlier_gives_the_same_bytes(build: Build, begin, make_object, tmp_path: Path, count) -> None:
    objects = [make_object(f"1.{number}", InstanceNumber=9 - number, **CT) for number in range(3)]
    at_once = build(objects).path.read_bytes()
    summary = build(objects, begun=begin(objects[:count]))
    assert (summary.path.read_bytes(), summary.instance_count) == (at_once, 3)
    assert not list(tmp_path.glob("*.tmp"))


def test_what_was_begun_with_something_else_does_not_count(
    build: Build, begin, make_object, tmp_path: Path
) -> None:
    one, two, three = (make_object(f"1.{number}") for number in range(3))
    at_once = build([one, three]).path.read_bytes()
    for begun in ([two], [three], [one, two], [one, three, two], [replace(one, series_instance_uid="1.9")]):
        assert build([one, three], begun=begin(begun)).path.read_bytes() == at_once
    assert not list(tmp_path.glob("*.tmp"))


def test_missing_file_leaves_nothing_behind(build: Build, make_object, tmp_path: Path) -> None:
    one, two = make_object("1.1"), make_object("1.2")
    summary = build([one])
    before = summary.path.read_bytes()
    os.unlink(two.path)
    with pytest.raises(FileNotFoundError):
        build([one, two])
    assert summary.path.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_left_over_of_a_crash_is_in_nobodys_way(build: Build, make_object, tmp_path: Path) -> None:
    (tmp_path / "envelope.zip.tmp").write_bytes(b"half")
    assert check_envelope(build([make_object("1.1")]).path).id == ENVELOPE_ID


def test_plans_that_cannot_be_envelopes(build: Build, make_object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one object"):
        build([])
    with pytest.raises(ValueError, match="UUID"):
        build_envelope(EnvelopePlan("../x", CREATED, [make_object("1.1")]), out_path=tmp_path / "x.zip")
    with pytest.raises(ValueError, match="receiver"):
        Parties(receiver=())


def test_object_that_is_no_dicom_still_gets_into_its_envelope(build: Build, make_object) -> None:
    stored = make_object("1.1")
    Path(stored.path).write_bytes(b"\xff" * 5000)
    (study,) = documents(build([stored]))["payload/metadata.json"]["studies"].values()
    assert (study["patient_name"], study["study_date"], study["modality"]) == ("", "", "")
    assert study["series"][0]["instance_count"] == 1


# The header


def read_header(path: str, transfer_syntax_uid: str) -> InstanceHeader:
    reader = HeaderReader(transfer_syntax_uid)
    reader.feed(memoryview(Path(path).read_bytes()))
    return reader.header()


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]
)
def test_header_in_every_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    dataset = pydicom.Dataset()
    elements = CT | {
        "SeriesNumber": 3,
        "InstanceNumber": 12,
        "PatientSex": "O",
        "PatientBirthDate": "19700131",
    }
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.1"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    path = tmp_path / "file.dcm"
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    header = read_header(str(path), syntax)
    assert (header.patient_name, header.patient_id, header.modality) == ("DOE^JOHN", "P1", "CT")
    assert (header.series_number, header.instance_number) == (3, 12)
    assert (header.patient_birth_date, header.patient_sex, header.study_date) == ("19700131", "O", "20240115")


# PS3.5 Annex H.3.1 and I.2: the examples of the standard.
@pytest.mark.parametrize(
    ("raw", "character_sets", "text"),
    [
        (b"DOE^JOHN", [""], "DOE^JOHN"),
        (b"Buc^J\xe9r\xf4me", ["ISO_IR 100"], "Buc^Jérôme"),
        (b"Buc^J\xe9r\xf4me", [""], "Buc^Jérôme"),
        (b"Buc^J\xc3\xa9r\xc3\xb4me", ["ISO_IR 192"], "Buc^Jérôme"),
        (b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", ["ISO_IR 126"], "Διονυσιος"),
        (
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            ["", "ISO 2022 IR 87"],
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        (
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            ["", "ISO 2022 IR 149"],
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        (b"J\xe9", ["NO SUCH SET"], "Jé"),
        (b"J\xff\xfe", ["ISO_IR 192"], "J\ufffd\ufffd"),
        (b"\x1b$B\xff\xff\xff", ["", "ISO 2022 IR 87"], "\x1b$Bÿÿÿ"),
    ],
)
def test_text_is_decoded_with_its_character_set(raw: bytes, character_sets: list[str], text: str) -> None:
    assert decode_text(raw, character_sets) == text


def test_numbers_that_are_none(make_object) -> None:
    stored = make_object("1.1")
    data = Path(stored.path).read_bytes()
    for value in (b"1\\2 ", b"1.5 ", b"abc ", b"    "):
        element = b"\x20\x00\x13\x00IS\x04\x00" + value
        Path(stored.path).write_bytes(data + element)
        assert read_header(stored.path, stored.transfer_syntax_uid).instance_number is None
