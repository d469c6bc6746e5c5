"""The jmix endpoint over HTTP: every route, every status."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sqlite3
import struct
import tarfile
import uuid
import zipfile

import pytest

from harmony.archive.index import ArchiveIndexError
from harmony.dimse import associate
from harmony.dimse.retrieve_scp import Selection
from harmony.dimse.status import DimseError, Status
from harmony.gateway.backend import Retrieve
from harmony.http.client import HTTPClient, UpstreamError
from harmony.jmix.reader import check_envelope
from harmony.ul.errors import AssociationRejected, ConnectFailed, ConnectionLost, DeadlineExceeded
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
STUDY = "1.2.3.4.5"


@pytest.fixture
async def served(bench, make_instance, until):
    """With one envelope of two objects in its store."""
    await bench.start()
    await bench.send(make_instance("1.1"), make_instance("1.2", pixels=bytes(100_000)))
    await until(lambda: bench.journals() == [])
    return bench


@pytest.fixture
def envelope_id(served) -> str:
    return served.envelopes()[0].stem


async def ask(bench, method: str, path: str, *, body: bytes = b"", **headers: str):
    async with bench.http() as client:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, body=body, headers=fields)


async def raw(bench, head: str, *, path: str = "") -> tuple[int, dict[str, str], bytes]:
    """A request typed by hand; the connection is closed after the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.http_port)
    writer.write(f"{head}\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    first, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = first.decode().split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), fields, body


def envelope(manifest: object = None, *, files: dict[str, bytes] | None = None, **options: object) -> bytes:
    """A ZIP that is an envelope unless something is wrong with it."""
    if manifest is None:
        manifest = {"id": str(uuid.uuid4()), "type": "envelope", "version": 1}
    metadata = {"studies": {STUDY: {"study_uid": STUDY, "series": []}}}
    members = {"payload/metadata.json": json.dumps(metadata).encode()} if files is None else files
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("manifest.json", manifest if isinstance(manifest, bytes) else json.dumps(manifest))
    return out.getvalue()


# Reading


async def test_by_id(served, envelope_id, read_envelope):
    answer = await ask(served, "GET", f"/{envelope_id}")
    assert answer.status == 200
    assert answer.headers.get("content-type") == "application/zip"
    assert answer.headers.get("content-disposition") == f'attachment; filename="{envelope_id}.zip"'
    assert answer.body == served.envelopes()[0].read_bytes()
    assert sorted(read_envelope(answer.body).objects) == ["1.1", "1.2"]
    assert (await ask(served, "GET", f"/{envelope_id.upper()}")).body == answer.body


async def test_by_study(served, envelope_id):
    answer = await ask(served, "GET", f"?studyInstanceUid={STUDY}")
    assert answer.status == 200
    assert answer.body == served.envelopes()[0].read_bytes()


async def test_newest_of_a_study(served, envelope_id, make_instance, until, read_envelope):
    await served.send(make_instance("1.3"))
    await until(lambda: served.journals() == [])
    answer = await ask(served, "GET", f"?studyInstanceUid={STUDY}")
    assert read_envelope(answer.body).objects == ("1.3",)


async def test_manifest(served, envelope_id):
    answer = await ask(served, "GET", f"/{envelope_id}/manifest")
    assert answer.status == 200
    assert answer.headers.get("content-type") == "application/json"
    manifest = json.loads(answer.body)
    assert (manifest["id"], manifest["type"], manifest["version"]) == (envelope_id, "envelope", 1)


@pytest.mark.parametrize(
    "path",
    [
        "/00000000-0000-4000-8000-000000000000",
        "/00000000-0000-4000-8000-000000000000/manifest",
        "/no-uuid",
        "/no-uuid/manifest",
        "/..%2f..%2fetc%2fpasswd",
        "/..%2f..%2fetc/manifest",
        "?studyInstanceUid=1.2.99",
        "?studyInstanceUid=../../etc",
        "/prime/1.2.99",
        "/prime/..%2f..",
        "/x/y/z",
    ],
)
async def test_unknown_is_404(path, served):
    for method in ("GET", "HEAD"):
        answer = await ask(served, method, path)
        assert answer.status == 404
    assert (await ask(served, "GET", path)).headers.get("content-type") == "application/json"


async def test_missing_parameter(served):
    for path in ("", "?studyInstanceUid=", "?study=1.2"):
        answer = await ask(served, "GET", path)
        assert (answer.status, json.loads(answer.body)) == (400, {"error": "missing studyInstanceUid"})


async def test_other_methods(served, envelope_id):
    answer = await ask(served, "DELETE", f"/{envelope_id}")
    assert answer.status == 405
    assert "GET" in (answer.headers.get("allow") or "")
    assert (await ask(served, "OPTIONS", f"/{envelope_id}")).status in (200, 204)
    assert (await ask(served, "PUT", "")).status == 405


async def test_head(served, envelope_id):
    size = served.envelopes()[0].stat().st_size
    base = "/jmix/api/jmix"
    for path in (f"{base}/{envelope_id}", f"{base}?studyInstanceUid={STUDY}"):
        status, headers, body = await raw(served, f"HEAD {path} HTTP/1.1")
        assert (status, body) == (200, b"")
        assert headers["content-length"] == str(size)
        assert headers["content-type"] == "application/zip"
    status, headers, body = await raw(served, f"HEAD {base}/{envelope_id}/manifest HTTP/1.1")
    assert (status, body, headers["content-type"]) == (200, b"", "application/json")
    tar = f"HEAD {base}/{envelope_id} HTTP/1.1\r\nAccept: application/gzip"
    status, headers, body = await raw(served, tar)
    assert (status, body, headers["content-type"]) == (200, b"", "application/gzip")


async def test_range(served, envelope_id):
    whole = served.envelopes()[0].read_bytes()
    answer = await ask(served, "GET", f"/{envelope_id}", Range="bytes=10-19")
    assert (answer.status, answer.body) == (206, whole[10:20])
    assert answer.headers.get("content-range") == f"bytes 10-19/{len(whole)}"
    answer = await ask(served, "GET", f"/{envelope_id}", Range="bytes=-5")
    assert (answer.status, answer.body) == (206, whole[-5:])
    answer = await ask(served, "GET", f"/{envelope_id}", Range=f"bytes={len(whole)}-")
    assert answer.status == 416


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/zip"),
        ("application/*", "application/zip"),
        ("application/zip", "application/zip"),
        ("application/gzip", "application/gzip"),
        ("application/x-gzip", "application/gzip"),
        ("application/zip;q=0.5, application/gzip", "application/gzip"),
        ("application/zip, application/gzip", "application/zip"),
        ("application/zip;q=0, */*", "application/gzip"),
        ("text/html, */*;q=0.1", "application/zip"),
        ("text/html", None),
        ("application/zip;q=0", None),
    ],
)
async def test_accept(accept, content_type, served, envelope_id):
    answer = await ask(served, "GET", f"/{envelope_id}", Accept=accept)
    assert answer.status == (406 if content_type is None else 200)
    if content_type is not None:
        assert answer.headers.get("content-type") == content_type
        assert answer.headers.get("vary") == "Accept"


async def test_tar_holds_the_same(served, envelope_id):
    answer = await ask(served, "GET", f"?studyInstanceUid={STUDY}", Accept="application/gzip")
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    with zipfile.ZipFile(served.envelopes()[0]) as archive:
        assert found == {name: archive.read(name) for name in archive.namelist()}


async def test_archive_that_is_gone_is_404(served, envelope_id):
    served.envelopes()[0].unlink()
    for accept in ("application/zip", "application/gzip"):
        assert (await ask(served, "GET", f"/{envelope_id}", Accept=accept)).status == 404


# Uploading


async def test_upload_is_served_as_it_came(served):
    body = envelope()
    answer = await ask(served, "POST", "", body=body, Content_Type="application/zip")
    assert answer.status == 201
    assert json.loads(answer.body)["status"] == "stored"
    stored = json.loads(answer.body)["id"]
    assert (await ask(served, "GET", f"/{stored}")).body == body
    await served.restart()
    assert (await ask(served, "GET", f"/{stored}")).body == body


async def test_upload_of_a_tar(served):
    content = io.BytesIO()
    envelope_id = str(uuid.uuid4())
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in (
            ("manifest.json", json.dumps({"id": envelope_id}).encode()),
            ("payload/metadata.json", b'{"studies":{"study_uid":"1.2.77"}}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    answer = await ask(served, "POST", "", body=content.getvalue(), Content_Type="application/gzip")
    assert (answer.status, json.loads(answer.body)["id"]) == (201, envelope_id)
    answer = await ask(served, "GET", "?studyInstanceUid=1.2.77")
    assert (answer.status, answer.headers.get("content-type")) == (200, "application/zip")
    answer = await ask(served, "GET", f"/{envelope_id}", Accept="application/gzip")
    assert answer.body == content.getvalue()


async def test_second_upload_is_a_conflict(served, envelope_id):
    body = envelope()
    assert (await ask(served, "POST", "", body=body, Content_Type="application/zip")).status == 201
    for again in (body, served.envelopes()[0].read_bytes()):
        answer = await ask(served, "POST", "", body=again, Content_Type="application/zip")
        assert (answer.status, json.loads(answer.body)) == (409, {"error": "envelope id already exists"})


async def test_one_of_many_simultaneous_uploads_is_stored(served):
    body = envelope()
    answers = await asyncio.gather(
        *(ask(served, "POST", "", body=body, Content_Type="application/zip") for _ in range(8))
    )
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7


def zip_bomb() -> bytes:
    return envelope(
        files={"payload/metadata.json": b"{}", "payload/bomb": bytes(200 << 20)},
        compression=zipfile.ZIP_DEFLATED,
    )


def overlong_name() -> bytes:
    return envelope(files={"payload/metadata.json": b"{}", "a" * 5000: b"x"})


BAD_UPLOADS = {
    "nothing": (b"", "application/zip", 415),
    "no archive": (b"this is not an archive" * 100, "application/zip", 415),
    "cut short": (envelope()[:-30], "application/zip", 415),
    "another type": (envelope(), "text/plain", 415),
    "declared as gzip": (envelope(), "application/gzip", 415),
    "no manifest": (b"PK\5\6" + bytes(18), "application/zip", 400),  # a ZIP without members
    "manifest is no JSON": (envelope(b"{"), "application/zip", 400),
    "manifest without id": (envelope({"type": "envelope"}), "application/zip", 400),
    "id is a path": (envelope({"id": "../../etc/passwd"}), "application/zip", 400),
    "id is no UUID": (envelope({"id": "1234"}), "application/zip", 400),
    "no metadata": (envelope(files={"payload/x": b""}), "application/zip", 400),
    "climbing": (
        envelope(files={"payload/metadata.json": b"{}", "../../evil": b"x"}),
        "application/zip",
        400,
    ),
    "absolute": (envelope(files={"payload/metadata.json": b"{}", "/evil": b"x"}), "application/zip", 400),
    "backslashes": (
        envelope(files={"payload/metadata.json": b"{}", "..\\evil": b"x"}),
        "application/zip",
        400,
    ),
    "wrong hash": (
        envelope(
            files={
                "payload/metadata.json": b"{}",
                "payload/files.json": json.dumps(
                    [{"file": "metadata.json", "hash": hashlib.sha256(b"other").hexdigest(), "size_bytes": 2}]
                ).encode(),
            }
        ),
        "application/zip",
        400,
    ),
}


@pytest.mark.parametrize("kind", BAD_UPLOADS)
async def test_bad_uploads(kind, bench):
    await bench.start()
    body, content_type, status = BAD_UPLOADS[kind]
    answer = await ask(bench, "POST", "", body=body, Content_Type=content_type)
    assert answer.status == status
    assert json.loads(answer.body)["error"]
    assert bench.envelopes() == []
    assert list((bench.storage / "jmix-store" / "incoming").iterdir()) == []
    assert list(bench.folder.rglob("*evil*")) == []


@pytest.mark.parametrize("make", [zip_bomb, overlong_name])
async def test_archives_that_would_explode(make, bench):
    await bench.start()
    answer = await ask(bench, "POST", "", body=make(), Content_Type="application/zip")
    assert answer.status in (400, 413)
    assert bench.envelopes() == []
    assert list((bench.storage / "jmix-store" / "incoming").iterdir()) == []


async def test_upload_that_is_too_large(bench):
    bench.config()
    text = (bench.folder / "config.toml").read_text()
    text = text.replace(
        'options.path_prefix = "/jmix"', 'options = { path_prefix = "/jmix", max_upload_bytes = 1000 }'
    )
    bench.config = lambda: bench.load_config(text)  # type: ignore[method-assign]
    await bench.start()
    big = envelope(files={"payload/metadata.json": b"{}", "payload/x": bytes(5000)})
    assert (await ask(bench, "POST", "", body=big, Content_Type="application/zip")).status == 413
    assert list((bench.storage / "jmix-store" / "incoming").iterdir()) == []


async def test_upload_that_breaks_off_leaves_nothing(bench, until):
    await bench.start()
    incoming = bench.storage / "jmix-store" / "incoming"
    _, writer = await asyncio.open_connection("127.0.0.1", bench.http_port)
    writer.write(
        b"POST /jmix/api/jmix HTTP/1.1\r\nHost: h\r\nContent-Type: application/zip\r\nContent-Length: 100000\r\n\r\n"
        + envelope()
    )
    await until(lambda: list(incoming.iterdir()))
    writer.close()
    await until(lambda: not list(incoming.iterdir()))
    assert bench.envelopes() == []


async def test_store_that_cannot_take_an_upload(bench, monkeypatch):
    await bench.start()
    (store,) = bench.gateway.assembly.envelope_stores.values()

    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_enter", full)
        body = envelope()
        answer = await ask(bench, "POST", "", body=body, Content_Type="application/zip")
        assert answer.status == 507
    assert (await ask(bench, "POST", "", body=body, Content_Type="application/zip")).status == 201


# Prime


async def test_prime_makes_an_envelope_of_what_is_in_the_archive(bench, make_instance, read_envelope):
    bench.builder = None
    await bench.start()
    await bench.send(make_instance("1.1"), make_instance("1.2"))
    answer = await ask(bench, "GET", f"/prime/{STUDY}")
    made = json.loads(answer.body)
    assert (answer.status, made["status"]) == (201, "created")
    answer = await ask(bench, "GET", f"/{made['id']}")
    assert sorted(read_envelope(answer.body).objects) == ["1.1", "1.2"]
    answer = await ask(bench, "GET", f"/prime/{STUDY}")
    assert (answer.status, json.loads(answer.body)) == (200, {"id": made["id"], "status": "ready"})


async def test_prime_looks_where_endpoints_store(bench, make_instance):
    bench.builder = None
    bench.scp = f'storage_dir = "{bench.folder}/objects"'
    await bench.start()
    await bench.send(make_instance("1.1"))
    assert (await ask(bench, "GET", f"/prime/{STUDY}")).status == 201


async def test_simultaneous_primes_build_once(bench, make_instance):
    bench.builder = None
    await bench.start()
    await bench.send(make_instance("1.1"))
    answers = await asyncio.gather(*(ask(bench, "GET", f"/prime/{STUDY}") for _ in range(5)))
    assert {json.loads(answer.body)["id"] for answer in answers} == {bench.envelopes()[0].stem}


async def test_prime_takes_all_folders_that_have_an_index(bench, make_instance, free_ports, read_envelope):
    (port,) = free_ports(1)
    bench.builder = None
    bench.more = f"""
        [pipelines.r]
        networks = ["n"]
        endpoints = ["second"]
        [endpoints.second]
        service = "dicom_scp"
        options = {{ local_aet = "SECOND", bind_addr = "127.0.0.1", port = {port}, storage_dir = "{bench.folder}/2" }}
    """
    await bench.start()
    await bench.send(make_instance("1.1"))
    async with associate(
        "127.0.0.1", port, called_ae_title="SECOND", contexts=propose_contexts([(CT, [IMPLICIT])])
    ) as scu:
        await scu.store(make_instance("1.2"))
    made = json.loads((await ask(bench, "GET", f"/prime/{STUDY}")).body)
    envelope = read_envelope((await ask(bench, "GET", f"/{made['id']}")).body)
    assert sorted(envelope.objects) == ["1.1", "1.2"]


async def test_asking_for_a_study_packs_nothing_without_a_backend(bench, make_instance):
    bench.builder = None
    await bench.start()
    await bench.send(make_instance("1.1"))
    assert (await ask(bench, "GET", f"?studyInstanceUid={STUDY}")).status == 404
    assert bench.envelopes() == []


async def test_file_that_is_not_ours_is_no_object(bench, make_instance):
    bench.builder = None
    await bench.start()
    folder = bench.storage / "dimse" / "1.2.88" / "1.2.88.1"
    folder.mkdir(parents=True)
    (folder / "x.dcm").write_bytes(struct.pack("<L", 0) * 100)
    assert (await ask(bench, "GET", "/prime/1.2.88")).status == 404


# A study from a backend


@pytest.fixture
async def archive(bench, make_instance):
    """The bench, whose archive is a backend for a second jmix endpoint: ask_archive."""
    bench.builder = None
    bench.more = f"""
        [pipelines.r]
        networks = ["n"]
        endpoints = ["other"]
        middleware = ["own"]
        backends = ["disk"]
        [backends.disk]
        service = "storage"
        options.root = "{bench.storage}"
        [middleware.own]
        type = "jmix_builder"
        [middleware.own.options]
        store_dir = "{bench.folder}/own"
        sender = "Hospital"
        sender_id = "org:hospital"
        skip_hashing = true
        [endpoints.other]
        service = "jmix"
        options.path_prefix = "/other"
        options.skip_listing = true
    """
    await bench.start()
    await bench.send(make_instance("1.1"), make_instance("1.2", pixels=bytes(100_000)))
    return bench


async def ask_archive(bench, path: str, method: str = "GET", **headers: str):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    client = HTTPClient(f"http://127.0.0.1:{bench.http_port}/other/api/jmix", timeout_s=10.0)
    try:
        return await client.request(method, path, headers=fields)
    finally:
        await client.aclose()


async def test_study_is_packed_when_it_is_asked_for(archive, make_instance, read_envelope):
    answer = await ask_archive(archive, f"?studyInstanceUid={STUDY}")
    assert (answer.status, answer.headers.get("content-type")) == (200, "application/zip")
    found = read_envelope(answer.body)
    assert answer.headers.get("content-disposition") == f'attachment; filename="{found.id}.zip"'
    assert found.data == {
        "1.1": make_instance("1.1").data,
        "1.2": make_instance("1.2", pixels=bytes(100_000)).data,
    }
    assert check_envelope(archive.folder / "own" / found.id / f"{found.id}.zip").id == found.id
    again = await ask_archive(archive, f"?studyInstanceUid={STUDY}")
    assert again.body == answer.body
    prime = await ask_archive(archive, f"/prime/{STUDY}")
    assert (prime.status, json.loads(prime.body)) == (200, {"id": found.id, "status": "ready"})
    assert (await ask_archive(archive, f"/{found.id}")).body == answer.body
    await archive.restart()
    assert (await ask_archive(archive, f"?studyInstanceUid={STUDY}")).body == answer.body


async def test_options_of_the_builder_are_for_what_is_packed(archive, read_envelope):
    found = read_envelope((await ask_archive(archive, f"?studyInstanceUid={STUDY}")).body)
    manifest, files = found.documents["manifest.json"], found.documents["payload/files.json"]
    assert manifest["sender"] == {"id": "org:hospital", "name": "Hospital"}
    assert "payload_hash" not in manifest["security"]
    assert [(entry["file"], "hash" in entry) for entry in files] == [("metadata.json", False)]


async def test_the_request_has_the_last_word(archive, read_envelope):
    path = f"?studyInstanceUid={STUDY}&skip_hashing=0&skip_listing=False"
    found = read_envelope((await ask_archive(archive, path)).body)
    manifest, files = found.documents["manifest.json"], found.documents["payload/files.json"]
    assert manifest["security"]["payload_hash"].startswith("sha256:")
    assert len(files) == 3
    assert all("hash" in entry for entry in files)


@pytest.mark.parametrize("path", [f"?studyInstanceUid={STUDY}&", f"/prime/{STUDY}?"])
@pytest.mark.parametrize("flag", ["skip_hashing=yes", "skip_listing=", "skip_hashing=2"])
async def test_flags_are_true_or_false(archive, path, flag):
    answer = await ask_archive(archive, path + flag)
    assert answer.status == 400
    assert json.loads(answer.body)["error"].endswith("must be true, false, 1 or 0")
    assert list((archive.folder / "own").glob("*/*.zip")) == []


async def test_prime_of_what_a_backend_has(archive):
    answer = await ask_archive(archive, f"/prime/{STUDY}?skip_hashing=1")
    assert (answer.status, json.loads(answer.body)["status"]) == (201, "created")
    assert (await ask_archive(archive, f"/{json.loads(answer.body)['id']}")).status == 200


async def test_backend_without_the_study(archive):
    for path in (
        "?studyInstanceUid=1.2.99",
        "?studyInstanceUid=../../etc",
        "?studyInstanceUid=*",
        "/prime/1.2.99",
        "/00000000-0000-4000-8000-000000000000",
        "/00000000-0000-4000-8000-000000000000/manifest",
    ):
        answer = await ask_archive(archive, path)
        assert (answer.status, list(json.loads(answer.body))) == (404, ["error"])
    assert list((archive.folder / "own" / "incoming").iterdir()) == []


async def test_study_that_nobody_could_take_is_not_packed(archive):
    answer = await ask_archive(archive, f"?studyInstanceUid={STUDY}", Accept="text/html")
    assert answer.status == 406
    assert list((archive.folder / "own").glob("*/*.zip")) == []
    answer = await ask_archive(archive, f"?studyInstanceUid={STUDY}", Accept="application/gzip")
    assert (answer.status, answer.headers.get("content-type")) == (200, "application/gzip")


async def test_archive_that_is_gone_is_packed_again(archive):
    first = await ask_archive(archive, f"/prime/{STUDY}")
    (path,) = (archive.folder / "own").glob("*/*.zip")
    path.unlink()
    answer = await ask_archive(archive, f"/prime/{STUDY}")
    assert answer.status == 201
    assert json.loads(answer.body)["id"] != json.loads(first.body)["id"]


FAILURES = [
    (ConnectFailed("connection refused"), 502),
    (AssociationRejected(1, 1, 7), 502),
    (ConnectionLost("the peer closed the connection"), 502),
    (DimseError(Status.OUT_OF_RESOURCES, "no room for DOE^JOHN"), 502),
    (DeadlineExceeded("the response", 30.0), 504),
    (TimeoutError(), 504),
    (ArchiveIndexError("database disk image is malformed"), 500),
    (PermissionError(13, "Permission denied", "/a/file"), 500),
    (EOFError("/a/file ended at byte 7"), 500),
]


@pytest.mark.parametrize(("error", "status"), FAILURES, ids=[type(error).__name__ for error, _ in FAILURES])
async def test_backend_that_fails(archive, monkeypatch, caplog, error, status):
    async def retrieve(_: Retrieve) -> Selection:
        raise error

    (source,) = archive.gateway.assembly.backends
    monkeypatch.setattr(source, "retrieve", retrieve)
    for path in (f"?studyInstanceUid={STUDY}", f"/prime/{STUDY}"):
        answer = await ask_archive(archive, path)
        assert answer.status == status
        assert list(json.loads(answer.body)) == ["error"]
        assert b"DOE" not in answer.body
        assert b"/a/file" not in answer.body
    assert f"study {STUDY} cannot be packed" in caplog.text
    assert "DOE" not in caplog.text
    assert [path.name for path in (archive.folder / "own").iterdir() if path.is_dir()] == ["incoming"]
    assert list((archive.folder / "own" / "incoming").iterdir()) == []


async def test_client_that_leaves_ends_the_retrieve(archive, monkeypatch, make_instance, until):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def instances():
        try:
            yield make_instance("1.1")
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def retrieve(_: Retrieve) -> Selection:
        return Selection(instances())

    (source,) = archive.gateway.assembly.backends
    monkeypatch.setattr(source, "retrieve", retrieve)
    _, writer = await asyncio.open_connection("127.0.0.1", archive.http_port)
    writer.write(f"GET /other/api/jmix?studyInstanceUid={STUDY} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    async with asyncio.timeout(20):
        await begun.wait()
        writer.close()
        await ended.wait()
    await until(lambda: not list((archive.folder / "own" / "incoming").iterdir()))
    assert list((archive.folder / "own").glob("*/*.zip")) == []


async def test_gateway_that_stops_ends_the_retrieve(archive, monkeypatch, make_instance):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def instances():
        try:
            yield make_instance("1.1")
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def retrieve(_: Retrieve) -> Selection:
        return Selection(instances())

    (source,) = archive.gateway.assembly.backends
    monkeypatch.setattr(source, "retrieve", retrieve)
    asking = asyncio.create_task(ask_archive(archive, f"?studyInstanceUid={STUDY}"))
    async with asyncio.timeout(20):
        await begun.wait()
        await archive.stop(0.0)
        await ended.wait()
        with pytest.raises(UpstreamError):
            await asking
    assert list((archive.folder / "own" / "incoming").iterdir()) == []
