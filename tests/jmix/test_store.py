"""The envelope store: what is put in comes out, whatever crashed in between."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harmony.jmix.envelope import EnvelopePlan, build_envelope
from harmony.jmix.reader import ArchiveFormat, check_envelope
from harmony.jmix.store import EnvelopeExists, EnvelopeStore

STUDY = "1.2.3.4.5.6"
CREATED = datetime(2024, 1, 15, 10, 20, 30, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


Open = Callable[[], EnvelopeStore]


@pytest.fixture
def reopen(root: Path) -> Iterator[Open]:
    opened: list[EnvelopeStore] = []

    def reopen() -> EnvelopeStore:
        for store in opened:
            store.close()
        opened.append(EnvelopeStore(root, fsync=len(opened) % 2 == 0))
        opened[-1].open()
        return opened[-1]

    yield reopen
    for store in opened:
        store.close()


Add = Callable[..., str]


@pytest.fixture
def add(make_object) -> Add:
    """Build an envelope of one object in a store."""

    def add(
        store: EnvelopeStore, *, study: str = STUDY, created: datetime = CREATED, index: bool = True
    ) -> str:
        envelope_id = str(uuid.uuid4())
        plan = EnvelopePlan(envelope_id, created, [make_object("1.1", study=study)])
        summary = build_envelope(plan, out_path=store.place(envelope_id))
        if index:
            store.add_built(
                envelope_id,
                manifest=summary.manifest,
                study_instance_uids=summary.study_instance_uids,
                origin="pipeline",
                created_at=created,
            )
        return envelope_id

    return add


def upload(store: EnvelopeStore, data: bytes, *, created: datetime = CREATED) -> str:
    path = store.incoming()
    path.write_bytes(data)
    return store.add_uploaded(path, check_envelope(path), origin="upload", created_at=created).id


def tar_gz_of(data: bytes) -> bytes:
    """The members of a ZIP as a gzip tar."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, tarfile.open(fileobj=out, mode="w:gz") as target:
        for name in source.namelist():
            info = tarfile.TarInfo(name)
            info.size = len(source.read(name))
            target.addfile(info, io.BytesIO(source.read(name)))
    return out.getvalue()


def contents(data: bytes) -> dict[str, bytes]:
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar.getmembers()]
        return {name: file.read() for name, file in files if file is not None}


def test_built_envelope_is_found_and_served(reopen: Open, add: Add, root: Path) -> None:
    store = reopen()
    envelope_id = add(store)
    assert store.path(envelope_id) == root / envelope_id / f"{envelope_id}.zip"
    assert store.find_by_study(STUDY) == envelope_id
    assert store.find_by_study("1.2.9") is None
    data = b"".join(store.iter_as_zip(envelope_id))
    assert data == store.path(envelope_id).read_bytes()
    assert store.manifest(envelope_id) == contents(data)["manifest.json"]
    stored = store.get(envelope_id.upper())
    assert (stored.id, stored.origin, stored.created_at, stored.format) == (
        envelope_id,
        "pipeline",
        CREATED,
        ArchiveFormat.ZIP,
    )
    assert stored.size_bytes == len(data)


def test_uploads_are_served_as_they_came(reopen: Open, add: Add) -> None:
    store = reopen()
    envelope_id = add(store)
    as_zip = store.path(envelope_id).read_bytes()
    as_tar = tar_gz_of(as_zip)
    store.remove(envelope_id)
    for data, suffix in ((as_zip, ".zip"), (as_tar, ".tar.gz")):
        assert upload(store, data) == envelope_id
        assert store.path(envelope_id).name == envelope_id + suffix
        assert store.find_by_study(STUDY) == envelope_id
        for _ in range(2):
            serve = store.iter_as_zip if suffix == ".zip" else store.iter_as_tar_gz
            assert b"".join(serve(envelope_id)) == data
            store = reopen()
        store.remove(envelope_id)
        assert store.find_by_study(STUDY) is None
        assert not store.root.joinpath(envelope_id).exists()


def test_repacking_in_both_directions(reopen: Open, add: Add) -> None:
    store = reopen()
    envelope_id = add(store)
    original = store.path(envelope_id).read_bytes()
    chunks = list(store.iter_as_tar_gz(envelope_id))
    assert all(chunks)  # an empty chunk would end a chunked HTTP body
    as_tar = b"".join(chunks)
    assert contents(as_tar) == contents(original)
    store.remove(envelope_id)
    upload(store, as_tar)
    chunks = list(store.iter_as_zip(envelope_id))
    assert all(chunks)
    assert b"".join(chunks) == b"".join(store.iter_as_zip(envelope_id))
    assert contents(b"".join(chunks)) == contents(original)
    (path := store.incoming()).write_bytes(b"".join(chunks))
    assert check_envelope(path).payload_hash_checked


def test_large_members_are_repacked_in_pieces(reopen: Open, add: Add) -> None:
    store = reopen()
    envelope_id = add(store)
    data = store.path(envelope_id).read_bytes()
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("payload/preview/large.jpg", os.urandom(1_500_000))
    expected = contents(out.getvalue())
    manifest = expected["manifest.json"]
    store.remove(envelope_id)
    store.place(envelope_id).write_bytes(out.getvalue())
    store.add_built(
        envelope_id, manifest=manifest, study_instance_uids=[STUDY], origin="", created_at=CREATED
    )
    as_tar = b"".join(store.iter_as_tar_gz(envelope_id))
    assert contents(as_tar) == expected
    store.remove(envelope_id)
    (store.place(envelope_id).parent / f"{envelope_id}.tar.gz").write_bytes(as_tar)
    store = reopen()
    chunks = list(store.iter_as_zip(envelope_id))
    assert contents(b"".join(chunks)) == expected
    assert max(map(len, chunks)) < 1_000_000


def test_second_envelope_of_an_id_is_refused(reopen: Open, add: Add) -> None:
    store = reopen()
    envelope_id = add(store)
    data = store.path(envelope_id).read_bytes()
    path = store.incoming()
    path.write_bytes(data)
    for format_ in (data, tar_gz_of(data)):
        path.write_bytes(format_)
        with pytest.raises(EnvelopeExists, match="envelope id already exists"):
            store.add_uploaded(path, check_envelope(path), origin="upload", created_at=CREATED)
    assert path.exists()
    assert store.path(envelope_id).read_bytes() == data


def test_upload_that_failed_half_way_can_be_repeated(reopen: Open, add: Add, root: Path) -> None:
    """Its sender heard of a failure; a conflict would tell it that the envelope is here."""
    store = reopen()
    envelope_id = add(store)
    data = store.path(envelope_id).read_bytes()
    store.remove(envelope_id)
    (root / envelope_id / "manifest.json.tmp").mkdir(parents=True)  # in the way of the manifest
    with pytest.raises(OSError):
        upload(store, data)
    assert not (root / envelope_id).exists()
    assert upload(store, data) == envelope_id


def test_one_of_two_simultaneous_uploads_wins(reopen: Open, add: Add) -> None:
    store = reopen()
    envelope_id = add(store)
    data = store.path(envelope_id).read_bytes()
    store.remove(envelope_id)
    outcomes: list[str] = []

    def work() -> None:
        try:
            upload(store, data)
            outcomes.append("stored")
        except EnvelopeExists:
            outcomes.append("exists")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["exists", "exists", "exists", "stored"]


def test_newest_envelope_of_a_study_is_found(reopen: Open, add: Add) -> None:
    store = reopen()
    first = add(store, created=CREATED)
    newest = add(store, created=CREATED + timedelta(seconds=2))
    add(store, created=CREATED + timedelta(seconds=1))
    add(store, created=CREATED + timedelta(seconds=9), study="1.2.9")
    assert store.find_by_study(STUDY) == newest
    assert [stored.id for stored in store.envelopes(limit=2)][1] == newest
    store.remove(newest)
    assert store.find_by_study(STUDY) not in (None, newest, first)


def test_indexing_again_changes_nothing(reopen: Open, add: Add) -> None:
    store = reopen()
    envelope_id = add(store)
    for _ in range(2):
        store.add_built(
            envelope_id,
            manifest=b"{}",
            study_instance_uids=[STUDY, "1.2.9"],
            origin="again",
            created_at=CREATED,
        )
    assert len(store.envelopes()) == 1
    assert store.find_by_study("1.2.9") == envelope_id


def test_lost_index_is_made_again(reopen: Open, add: Add, root: Path) -> None:
    store = reopen()
    built = add(store)
    data = tar_gz_of(store.path(built).read_bytes())
    store.remove(built)
    uploaded = upload(store, data)
    second = add(store, study="1.2.9")
    store.close()
    for left in root.glob("jmix-index.sqlite*"):
        left.unlink()
    (root / second / "manifest.json").unlink()
    store = reopen()
    assert store.find_by_study(STUDY) == uploaded
    assert store.find_by_study("1.2.9") == second
    assert store.manifest(second) == contents(store.path(second).read_bytes())["manifest.json"]
    assert {stored.origin for stored in store.envelopes()} == {"recovered"}


def test_crash_before_the_index_row(reopen: Open, add: Add) -> None:
    store = reopen()
    envelope_id = add(store, index=False)
    with pytest.raises(KeyError):
        store.path(envelope_id)
    assert reopen().find_by_study(STUDY) == envelope_id


def test_entry_without_its_file_is_dropped(reopen: Open, add: Add) -> None:
    store = reopen()
    envelope_id = add(store)
    shutil.rmtree(store.path(envelope_id).parent)
    store = reopen()
    assert store.find_by_study(STUDY) is None
    assert store.envelopes() == []


def test_what_was_left_unfinished_is_removed(reopen: Open, add: Add, root: Path) -> None:
    store = reopen()
    envelope_id = add(store)
    (root / envelope_id / f"{envelope_id}.zip.tmp").write_bytes(b"half")
    store.incoming().write_bytes(b"half")
    reopen()
    assert sorted(os.listdir(root / envelope_id)) == [f"{envelope_id}.zip", "manifest.json"]
    assert os.listdir(root / "incoming") == []


def test_damaged_and_foreign_folders_are_left_alone(reopen: Open, root: Path) -> None:
    damaged = str(uuid.uuid4())
    for name, data in ((damaged, b"PK no zip"), ("notes", b""), (str(uuid.uuid4()).upper(), b"")):
        (root / name).mkdir(parents=True)
        (root / name / f"{name}.zip").write_bytes(data)
    (root / damaged / f"{damaged}.zip").write_bytes(gzip.compress(b""))
    store = reopen()
    assert store.envelopes() == []
    assert (root / damaged / f"{damaged}.zip").exists()


@pytest.mark.parametrize(
    "bad", ["..", "../../etc/passwd", "", "incoming", "550e8400e29b41d4a716446655440000"]
)
def test_only_a_uuid_becomes_a_path(reopen: Open, bad: str) -> None:
    store = reopen()
    for call in (store.place, store.remove):
        with pytest.raises(ValueError, match="UUID"):
            call(bad)
    for look in (store.path, store.manifest, store.get, store.iter_as_zip, store.iter_as_tar_gz):
        with pytest.raises(KeyError):
            look(bad)


def test_closed_store_says_so(reopen: Open) -> None:
    store = reopen()
    store.close()
    with pytest.raises(RuntimeError, match="not open"):
        store.find_by_study(STUDY)
