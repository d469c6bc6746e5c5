"""Envelopes of instances that arrive: the same as of files, whatever the order and the pieces they come in."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony.dimse.part10 import Part10Error, read_file_meta
from harmony.jmix.envelope import Compression, EnvelopePlan, Parties, Profile, build_envelope
from harmony.jmix.packer import EnvelopePacker, ForeignInstance
from harmony.jmix.reader import check_envelope

ENVELOPE_ID = "550e8400-e29b-41d4-a716-446655440000"
CREATED = datetime(2024, 1, 15, 10, 20, 30, tzinfo=UTC)
STUDY = "1.2.3.4.5.6"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
UNZIP = shutil.which("unzip")

MakePacker = Callable[..., EnvelopePacker]


@pytest.fixture
def make_packer(tmp_path: Path) -> MakePacker:
    (tmp_path / "incoming").mkdir()

    def make(**options: Any) -> EnvelopePacker:
        plan = EnvelopePlan(ENVELOPE_ID, CREATED, parties=Parties())
        return EnvelopePacker(plan, STUDY, tmp_path / "incoming" / "x.tmp", **options)

    return make


def data_set(stored: Any) -> bytes:
    content = Path(stored.path).read_bytes()
    return content[read_file_meta(content).data_set_offset :]


def pack(packer: EnvelopePacker, objects: Iterable[Any], *, cuts: Iterable[int] = ()) -> None:
    for stored in objects:
        packer.begin(stored.sop_class_uid, stored.sop_instance_uid, stored.transfer_syntax_uid)
        data = data_set(stored)
        places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
        for start, end in pairwise(places):
            packer.write(memoryview(data)[start:end])
        packer.end()


def documents(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".json")]
        return {name: json.loads(archive.read(name)) for name in names}


def data_sets(path: Path) -> dict[str, bytes]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            if name.endswith(".dcm"):
                content = archive.read(name)
                found[name] = content[read_file_meta(content).data_set_offset :]
    return found


@pytest.fixture
def study(make_object) -> list[Any]:
    """Three series of two transfer syntaxes, in no order."""
    common = {"PatientName": "DOE^JOHN", "PatientID": "P1", "StudyDate": "20240115"}
    return [
        make_object("1.4", series="1.9", SeriesNumber=2, InstanceNumber=2, Modality="CT", **common),
        make_object("1.1", series="1.8", SeriesNumber=1, InstanceNumber=1, Modality="MR", **common),
        make_object("1.7", series="1.7", Modality="SR", **common),
        make_object("1.3", series="1.9", SeriesNumber=2, InstanceNumber=1, Modality="CT", **common),
        make_object(
            "1.2", series="1.8", syntax="1.2.840.10008.1.2", SeriesNumber=1, InstanceNumber=2, Modality="MR"
        ),
    ]


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("skip", [(False, False), (True, False), (False, True)])
def test_packed_is_like_built(
    make_packer: MakePacker,
    study: list[Any],
    tmp_path: Path,
    profile: Profile,
    compression: Compression,
    skip: tuple[bool, bool],
) -> None:
    options: dict[str, Any] = {
        "profile": profile,
        "compression": compression,
        "skip_hashing": skip[0],
        "skip_listing": skip[1],
    }
    packer = make_packer(**options, fsync=True)
    pack(packer, study)
    assert packer.instance_count == 5
    summary = packer.finish(tmp_path / "packed.zip")
    plan = EnvelopePlan(ENVELOPE_ID, CREATED, study)
    built = build_envelope(plan, out_path=tmp_path / "built.zip", **options)
    assert (summary.id, summary.study_instance_uids, summary.instance_count) == (ENVELOPE_ID, (STUDY,), 5)
    assert summary.size_bytes == summary.path.stat().st_size
    info = check_envelope(summary.path)
    assert info.payload_hash_checked is not skip[0]
    assert info.manifest == summary.manifest
    if compression is not Compression.ZSTANDARD:
        with zipfile.ZipFile(summary.path) as one, zipfile.ZipFile(built.path) as other:
            assert one.namelist() == other.namelist()
        assert data_sets(summary.path) == data_sets(built.path)
        ours, theirs = documents(summary.path), documents(built.path)
        for found in (ours, theirs):  # file meta is not the same, so neither are sizes and hashes
            for entry in found["payload/files.json"]:
                entry.pop("hash", None)
                entry.pop("size_bytes")
            found["manifest.json"]["security"].pop("payload_hash", None)
        assert [entry["file"] for entry in ours["payload/files.json"]] == [
            entry["file"] for entry in theirs["payload/files.json"]
        ]
        assert ours["manifest.json"] == theirs["manifest.json"]
        assert _without_sizes(ours["payload/metadata.json"]) == _without_sizes(
            theirs["payload/metadata.json"]
        )
    assert list((tmp_path / "incoming").iterdir()) == []


def _without_sizes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_sizes(each) for key, each in value.items() if key != "size_bytes"}
    return [_without_sizes(each) for each in value] if isinstance(value, list) else value


def test_names_follow_numbers_whatever_the_order_of_arrival(
    make_packer: MakePacker, study: list[Any], tmp_path: Path
) -> None:
    packer = make_packer()
    pack(packer, study)
    found = documents(packer.finish(tmp_path / "out.zip").path)
    (described,) = found["payload/metadata.json"]["studies"].values()
    assert [
        [(each["file"], each["sop_instance_uid"]) for each in series["instances"]]
        for series in described["series"]
    ] == [
        [("series_1/image_001.dcm", "1.1"), ("series_1/image_002.dcm", "1.2")],
        [("series_2/image_001.dcm", "1.3"), ("series_2/image_002.dcm", "1.4")],
        [("series_3/image_001.dcm", "1.7")],
    ]
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        for entry in found["payload/files.json"]:
            content = archive.read("payload/" + entry["file"])
            assert entry["hash"] == hashlib.sha256(content).hexdigest()
            assert entry["size_bytes"] == len(content)


def test_file_meta_says_what_was_negotiated(
    make_packer: MakePacker, study: list[Any], tmp_path: Path
) -> None:
    packer = make_packer()
    pack(packer, study)
    with zipfile.ZipFile(packer.finish(tmp_path / "out.zip").path) as archive:
        content = archive.read("payload/series_1/image_002.dcm")
        (tmp_path / "image.dcm").write_bytes(content)
    assert content[:132] == bytes(128) + b"DICM"
    meta = read_file_meta(content)
    assert meta.media_storage_sop_class_uid == CT
    assert meta.media_storage_sop_instance_uid == "1.2"
    assert meta.transfer_syntax_uid == "1.2.840.10008.1.2"
    assert pydicom.dcmread(tmp_path / "image.dcm").InstanceNumber == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 400), max_size=20))
def test_any_pieces_give_the_same_envelope(
    make_packer: MakePacker, study: list[Any], tmp_path: Path, cuts: list[int]
) -> None:
    one = make_packer()
    pack(one, study)
    expected = one.finish(tmp_path / "one.zip").path.read_bytes()
    other = make_packer()
    pack(other, study, cuts=cuts)
    assert other.finish(tmp_path / "other.zip").path.read_bytes() == expected


@pytest.mark.skipif(UNZIP is None, reason="unzip is not installed")
@pytest.mark.parametrize("compression", [Compression.STORED, Compression.DEFLATE])
def test_info_zip_accepts_it(
    make_packer: MakePacker, study: list[Any], tmp_path: Path, compression: Compression
) -> None:
    assert UNZIP is not None
    packer = make_packer(compression=compression)
    pack(packer, study)
    path = packer.finish(tmp_path / "out.zip").path
    result = subprocess.run([UNZIP, "-t", str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "No errors detected" in result.stdout


def test_longest_names_have_room(make_packer: MakePacker, make_object, tmp_path: Path) -> None:
    uid = "1." + "9" * 62
    one = make_object(uid)
    packer = make_packer(profile=Profile.JMIX)
    pack(packer, [one, one])
    names = list(data_sets(packer.finish(tmp_path / "out.zip").path))
    assert names == [f"payload/dicom/{uid}.dcm", f"payload/dicom/{uid}-2.dcm"]


def test_instance_of_another_study_is_no_part_of_it(
    make_packer: MakePacker, make_object, tmp_path: Path
) -> None:
    packer = make_packer()
    with pytest.raises(ForeignInstance, match=STUDY):
        pack(packer, [make_object("1.1"), make_object("1.2", study="1.2.9")])
    packer.discard()
    assert list((tmp_path / "incoming").iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"\xff" * 5000, bytes(5000)])
def test_instance_that_makes_no_sense_gets_into_it(
    make_packer: MakePacker, make_object, tmp_path: Path, data: bytes
) -> None:
    packer = make_packer()
    packer.begin(CT, "1.99", EXPLICIT)
    packer.write(memoryview(data))
    packer.end()
    pack(packer, [make_object("1.1", SeriesNumber=1)])
    found = data_sets(packer.finish(tmp_path / "out.zip").path)
    assert found["payload/series_2/image_001.dcm"] == data


def test_what_is_discarded_leaves_nothing(make_packer: MakePacker, study: list[Any], tmp_path: Path) -> None:
    packer = make_packer()
    pack(packer, study)
    packer.begin(CT, "1.99", EXPLICIT)
    packer.write(memoryview(b"half"))
    packer.discard()
    packer.discard()
    assert list((tmp_path / "incoming").iterdir()) == []


def test_without_instances_there_is_no_envelope(make_packer: MakePacker, tmp_path: Path) -> None:
    packer = make_packer()
    with pytest.raises(ValueError, match="at least one"):
        packer.finish(tmp_path / "out.zip")
    packer.discard()
    assert not (tmp_path / "out.zip").exists()


def test_uid_that_no_file_meta_can_hold(make_packer: MakePacker) -> None:
    packer = make_packer()
    with pytest.raises(Part10Error):
        packer.begin(CT, "1.\u20ac", EXPLICIT)
    packer.discard()


def test_disk_that_takes_no_more(make_packer: MakePacker, tmp_path: Path) -> None:
    """The limit for files stands in for a full disk: a write fails in the middle of an instance."""
    packer = make_packer()
    packer.begin(CT, "1.1", EXPLICIT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            packer.write(memoryview(bytes(50_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    packer.discard()
    assert list((tmp_path / "incoming").iterdir()) == []
