"""Uploaded envelopes: what is accepted, and every attack by its name."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.jmix.limits import canonical_envelope_id
from harmony.jmix.payload_hash import ContentHash, listing_hash
from harmony.jmix.reader import (
    ArchiveFormat,
    EnvelopeError,
    EnvelopeInfo,
    Limits,
    Refusal,
    check_envelope,
    format_of_content_type,
)
from harmony.jmix.zipstream import Compression, ZipStream

ENVELOPE_ID = "550e8400-e29b-41d4-a716-446655440000"
MANIFEST = {
    "id": ENVELOPE_ID,
    "type": "envelope",
    "version": 1,
    "content": {"type": "directory", "path": "payload"},
}
METADATA = {"id": ENVELOPE_ID, "studies": {"1.2.3.4.5.6": {"study_uid": "1.2.3.4.5.6", "series": []}}}
IMAGE = b"\0" * 128 + b"DICM image"


def envelope(**changes: object) -> dict[str, bytes]:
    """The members of an envelope; a change is a JSON value or bytes, None removes the member."""
    members: dict[str, object] = {
        "manifest.json": MANIFEST,
        "payload/metadata.json": METADATA,
        "payload/series_1/image_001.dcm": IMAGE,
    }
    members.update(changes)
    return {
        name: value if isinstance(value, bytes) else json.dumps(value).encode()
        for name, value in members.items()
        if value is not None
    }


def zip_of(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def tar_gz_of(members: dict[str, bytes], *, prefix: str = "", style: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=style) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


Check = Callable[..., EnvelopeInfo]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def check(data: bytes, **arguments: object) -> EnvelopeInfo:
        path = tmp_path / "upload"
        path.write_bytes(data)
        return check_envelope(path, **arguments)  # type: ignore[arg-type]

    return check


def refused(
    check: Check, data: bytes, match: str, kind: Refusal = Refusal.INVALID, **arguments: object
) -> None:
    with pytest.raises(EnvelopeError, match=match) as caught:
        check(data, **arguments)
    assert caught.value.kind is kind


# What is accepted


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_of_the_documented_structure(check: Check, method: int) -> None:
    data = zip_of(envelope(), method=method)
    assert check(data, content_type="application/zip; charset=binary") == EnvelopeInfo(
        id=ENVELOPE_ID,
        format=ArchiveFormat.ZIP,
        study_instance_uids=("1.2.3.4.5.6",),
        instance_count=1,
        size_bytes=len(data),
        manifest=json.dumps(MANIFEST).encode(),
        encrypted=False,
        payload_hash_checked=False,
    )


@pytest.mark.parametrize("prefix", ["", "./", f"{ENVELOPE_ID}.JMIX/", f"./{ENVELOPE_ID}.JMIX/"])
@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_gzip_tar(check: Check, prefix: str, style: int) -> None:
    info = check(tar_gz_of(envelope(), prefix=prefix, style=style), content_type="application/gzip")
    assert (info.format, info.id, info.instance_count) == (ArchiveFormat.TAR_GZ, ENVELOPE_ID, 1)


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_gzip_tar_with_long_names_and_folders(check: Check, style: int, tmp_path: Path) -> None:
    long = "payload/files/" + "f" * 90 + "/" + "g" * 90
    members = envelope(**{long: b"x", "payload/files.json": []})
    root = tmp_path / "root"
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=style) as archive:
        archive.add(root, arcname=".")
    assert check(out.getvalue()).id == ENVELOPE_ID


def test_zip_inside_one_top_level_folder(check: Check) -> None:
    members = {f"{ENVELOPE_ID}.JMIX/{name}": data for name, data in envelope().items()}
    assert check(zip_of(members)).instance_count == 1


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("descriptors", [False, True])
def test_our_own_archives(check: Check, compression: Compression, descriptors: bool) -> None:
    stream = ZipStream(compression=compression)
    raw = b""
    for name, data in envelope(**{"payload/big.dcm": bytes(700_000)}).items():
        parts = stream.stream(name, [data]) if descriptors else stream.add(name, data)
        raw += b"".join(bytes(part) for part in parts)
    assert check(raw + b"".join(stream.finish())).instance_count == 2


def test_zip64_records_that_were_not_needed(check: Check) -> None:
    data = zip_of(envelope())
    end = data[-22:]
    _, _, _, count, _, size, offset, _ = struct.unpack("<IHHHHIIH", end)
    record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<IIQI", 0x07064B50, 0, len(data) - 22, 1)
    assert check(data[:-22] + record + locator + end).id == ENVELOPE_ID
    wrong = record.replace(struct.pack("<Q", count), struct.pack("<Q", count + 1), 1)
    refused(check, data[:-22] + wrong + locator + end, "disagree")


def test_specification_layout_with_one_study_object(check: Check) -> None:
    members = {
        "manifest.json": b'{"id": "%s"}' % ENVELOPE_ID.upper().encode(),
        "payload/metadata.json": b'{"studies": {"study_uid": "1.2.3", "series": []}}',
        "payload/dicom/1.2.3.4": IMAGE,
    }
    info = check(zip_of(members))
    assert (info.id, info.study_instance_uids, info.instance_count) == (ENVELOPE_ID, ("1.2.3",), 1)


@pytest.mark.parametrize("name", ["payload.encrypted", "payload.enc"])
def test_encrypted_payload_is_opaque(check: Check, name: str) -> None:
    manifest = MANIFEST | {"security": {"payload_hash": "sha256:" + "0" * 64}}
    info = check(zip_of({"manifest.json": json.dumps(manifest).encode(), name: b"secret"}))
    assert (info.encrypted, info.payload_hash_checked, info.study_instance_uids) == (True, False, ())


def test_study_uids_that_are_none_are_left_out(check: Check) -> None:
    metadata = {"studies": {"../../etc": {}, "1.2.3": {}, "1.2.3\n": {}}}
    assert check(zip_of(envelope(**{"payload/metadata.json": metadata}))).study_instance_uids == ("1.2.3",)


# Hashes


def listing_of(members: dict[str, bytes]) -> dict[str, tuple[int, str]]:
    return {
        name.removeprefix("payload/"): (len(data), hashlib.sha256(data).hexdigest())
        for name, data in members.items()
        if name.startswith("payload/")
    }


def test_listing_hash_is_the_documented_text() -> None:
    text = "a 1 " + "0" * 64 + "\ns\ns/b 2 " + "1" * 64
    expected = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert listing_hash({"s/b": (2, "1" * 64), "a": (1, "0" * 64)}) == expected


def content_hash(members: dict[str, bytes]) -> str:
    result = ContentHash()
    for name, data in sorted(members.items()):
        if name.startswith("payload/"):
            result.add(name.removeprefix("payload/"), [data])
    return result.value()


def foreign_listing_hash(members: dict[str, bytes]) -> str:
    lines = [f"{path}\t{size}\t{digest}\n" for path, (size, digest) in sorted(listing_of(members).items())]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


HASHES: list[Callable[[dict[str, bytes]], str]] = [
    lambda members: listing_hash(listing_of(members)),
    foreign_listing_hash,
    content_hash,
]


@pytest.mark.parametrize("form", HASHES)
@pytest.mark.parametrize("pack", [zip_of, tar_gz_of])
@pytest.mark.parametrize("top", ["", "top/"])
def test_payload_hash_is_compared(
    check: Check, form: Callable[[dict[str, bytes]], str], pack: Callable[[dict[str, bytes]], bytes], top: str
) -> None:
    def with_hash(value: str, members: dict[str, bytes]) -> bytes:
        manifest = json.dumps(MANIFEST | {"security": {"payload_hash": value}}).encode()
        return pack({top + name: data for name, data in (members | {"manifest.json": manifest}).items()})

    members = envelope()
    assert check(with_hash(form(members), members)).payload_hash_checked
    changed = members | {"payload/series_1/image_001.dcm": b"changed"}
    refused(check, with_hash(form(members), changed), "payload_hash is not the hash")
    refused(check, with_hash("sha256:1234", members), "payload_hash is not a SHA-256")
    assert not check(with_hash("sha256:skipped", members)).payload_hash_checked


def test_content_hash_of_an_unsorted_tar_is_left_unchecked(check: Check) -> None:
    members = dict(reversed(envelope().items()))
    members["manifest.json"] = json.dumps(
        MANIFEST | {"security": {"payload_hash": content_hash(members)}}
    ).encode()
    assert not check(tar_gz_of(members)).payload_hash_checked


@pytest.mark.parametrize("prefix", ["", "sha256:", "SHA256:"])
def test_hash_of_a_listed_file_is_compared(check: Check, prefix: str) -> None:
    digest = hashlib.sha256(IMAGE).hexdigest()
    entry = {"file": "series_1/image_001.dcm", "hash": prefix + digest, "size_bytes": len(IMAGE)}
    check(zip_of(envelope(**{"payload/files.json": [entry]})))
    wrong = entry | {"hash": prefix + digest[::-1]}
    refused(check, zip_of(envelope(**{"payload/files.json": [wrong]})), "another SHA-256")
    wrong = entry | {"size_bytes": 1}
    refused(check, zip_of(envelope(**{"payload/files.json": [wrong]})), "not what is listed")
    wrong = entry | {"file": "series_1/image_002.dcm"}
    refused(check, zip_of(envelope(**{"payload/files.json": [wrong]})), "not in the envelope")
    skipped = {"file": "series_1/image_001.dcm", "hash": "sha256:skipped"}
    check(zip_of(envelope(**{"payload/files.json": [skipped]})))


# What is not an envelope


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"manifest.json": None}, "no manifest.json"),
        ({"manifest.json": b"{"}, "not JSON"),
        ({"manifest.json": b"[" * 100_000}, "not JSON"),
        ({"manifest.json": b'{"id": "\xff"}'}, "not JSON"),
        ({"manifest.json": []}, "not a JSON object"),
        ({"manifest.json": {}}, "not a UUID"),
        ({"manifest.json": {"id": 5}}, "not a UUID"),
        ({"manifest.json": {"id": "../../../etc/passwd"}}, "not a UUID"),
        ({"manifest.json": {"id": ENVELOPE_ID + "/x"}}, "not a UUID"),
        ({"manifest.json": {"id": ENVELOPE_ID.replace("-", "")}}, "not a UUID"),
        ({"payload/metadata.json": None}, "no payload/metadata.json"),
        ({"payload/metadata.json": b"no"}, "not JSON"),
        ({"payload/metadata.json": [1]}, "not a JSON object"),
        ({"payload/files/report.pdf": b"x"}, "there is no payload/files.json"),
        ({"payload/files.json": {}}, "not a JSON array"),
        ({"payload/files.json": [{"name": "x"}]}, "names no file"),
        ({"payload/files.json": [5]}, "names no file"),
        ({"payload/files.json": [{"file": "metadata.json", "hash": "zz"}]}, "not a SHA-256"),
        ({"payload/files.json": [{"file": "../manifest.json"}]}, "not in the envelope"),
    ],
)
@pytest.mark.parametrize("pack", [zip_of, tar_gz_of])
def test_incomplete_or_wrong_envelopes(
    check: Check, changes: dict[str, object], match: str, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    refused(check, pack(envelope(**changes)), match)


def test_member_beside_the_top_level_folder(check: Check) -> None:
    members = {f"top/{name}": data for name, data in envelope().items()} | {"other/x": b""}
    refused(check, zip_of(members), "outside the envelope's folder")


@pytest.mark.parametrize("data", [b"", b"P", b"PK", b"PK\5\6", b"Rar!\x1a\x07\x00" + bytes(100), b"{}" * 50])
def test_no_archive_at_all(check: Check, data: bytes) -> None:
    refused(check, data, "neither a ZIP|no end record", Refusal.UNSUPPORTED)


def test_content_type_decides_and_must_be_true(check: Check) -> None:
    refused(
        check,
        zip_of(envelope()),
        "declared application/gzip",
        Refusal.UNSUPPORTED,
        content_type="application/gzip",
    )
    refused(check, zip_of(envelope()), "cannot be of type", Refusal.UNSUPPORTED, content_type="text/plain")
    assert format_of_content_type("Application/ZIP") is ArchiveFormat.ZIP
    assert format_of_content_type("application/octet-stream") is None


def test_canonical_envelope_id() -> None:
    assert canonical_envelope_id(ENVELOPE_ID.upper()) == ENVELOPE_ID
    for text in (
        "",
        "..",
        ENVELOPE_ID + "\n",
        "{" + ENVELOPE_ID + "}",
        "urn:uuid:" + ENVELOPE_ID,
        "\uff15" * 36,
    ):
        assert canonical_envelope_id(text) is None


# Attacks


UNSAFE_NAMES = [
    "../evil",
    "payload/../../evil",
    "/etc/passwd",
    "C:/evil",
    "payload//x",
    "payload/./x",
    "a\nb",
]


@pytest.mark.parametrize("name", [*UNSAFE_NAMES, "payload\\..\\evil"])
def test_zip_slip(check: Check, name: str) -> None:
    data = zip_of(envelope(PLACEHOLD=b"x"))
    if len(name) == len("PLACEHOLD"):
        data = data.replace(b"PLACEHOLD", name.encode())
    else:
        data = zip_of(envelope(**{name: b"x"}))
    refused(check, data, "member name")


@pytest.mark.parametrize("name", [*UNSAFE_NAMES, "payload\\..\\evil", "..", "./../evil"])
def test_tar_slip(check: Check, name: str) -> None:
    refused(check, tar_gz_of(envelope(**{name: b"x"})), "member name")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_zip_member_that_is_no_regular_file(check: Check, kind: int) -> None:
    out = io.BytesIO(zip_of(envelope()))
    with zipfile.ZipFile(out, "a") as archive:
        info = zipfile.ZipInfo("payload/link")
        info.create_system = 3
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(check, out.getvalue(), "neither a regular file nor a folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S"])
def test_tar_member_that_is_no_regular_file(check: Check, kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("payload/link")
        info.type = kind
        info.linkname = "/etc/passwd"
        archive.addfile(info)
    refused(check, out.getvalue(), "neither a regular file nor a folder")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_zip_members(check: Check) -> None:
    out = io.BytesIO(zip_of(envelope()))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("manifest.json", b"{}")
    refused(check, out.getvalue(), "occurs twice")


def test_duplicate_tar_members(check: Check) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in [*envelope().items(), ("./manifest.json", b"{}")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    refused(check, out.getvalue(), "occurs twice")


@pytest.mark.parametrize("pack", [zip_of, tar_gz_of])
def test_file_that_is_also_a_folder(check: Check, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    refused(
        check,
        pack(envelope(**{"payload/x": b"", "payload/x-y": b"", "payload/x/y": b""})),
        "a file and a folder",
    )


def test_folder_entry_of_the_name_of_a_file(check: Check) -> None:
    refused(check, zip_of(envelope(**{"payload/x": b"", "payload/x/": b""})), "a file and a folder")


def test_zip_bomb_by_declared_sizes(check: Check) -> None:
    data = zip_of(envelope(**{"payload/x.dcm": bytes(1_000_000)}), method=zipfile.ZIP_DEFLATED)
    check(data)
    too_large = Refusal.TOO_LARGE
    refused(check, data, "larger than", too_large, limits=Limits(member_bytes=999_999))
    refused(check, data, "holds more than", too_large, limits=Limits(total_bytes=1_000_000))
    refused(check, data, "expands more than", too_large, limits=Limits(ratio=10, ratio_floor_bytes=100_000))
    refused(check, data, "more than 3 members", too_large, limits=Limits(members=3))
    refused(check, data, "too large", too_large, limits=Limits(json_bytes=10))


def test_tar_bomb(check: Check) -> None:
    data = tar_gz_of(envelope(**{"payload/x.dcm": bytes(1_000_000)}))
    check(data)
    too_large = Refusal.TOO_LARGE
    refused(check, data, "larger than", too_large, limits=Limits(member_bytes=999_999))
    refused(check, data, "holds more than", too_large, limits=Limits(total_bytes=1_000_000))
    refused(check, data, "expands more than", too_large, limits=Limits(ratio=10, ratio_floor_bytes=100_000))
    refused(check, data, "more than 3 members", too_large, limits=Limits(members=3))
    refused(check, data, "too large", too_large, limits=Limits(json_bytes=10))
    endless = gzip.compress(bytes(5_000_000))
    refused(check, endless, "no manifest.json")
    refused(check, endless, "expands more than", too_large, limits=Limits(ratio_floor_bytes=1_000_000))


def central_entry(data: bytes, name: bytes) -> int:
    """Where the directory entry of `name` begins."""
    return data.rindex(b"PK\x01\x02", 0, data.rindex(name))


def patched(data: bytes, at: int, replacement: bytes) -> bytes:
    return data[:at] + replacement + data[at + len(replacement) :]


def test_deflate_member_longer_than_declared(check: Check) -> None:
    data = zip_of(envelope(**{"payload/z": bytes(5000)}), method=zipfile.ZIP_DEFLATED)
    central = central_entry(data, b"payload/z")
    local = data.index(b"payload/z") - 30
    small = struct.pack("<I", 10)
    refused(check, patched(patched(data, central + 24, small), local + 22, small), "longer than the 10 bytes")
    large = struct.pack("<I", 6000)
    refused(
        check, patched(patched(data, central + 24, large), local + 22, large), "5000 bytes instead of 6000"
    )


def test_overlapping_members(check: Check) -> None:
    """The quoted-overlap bomb: two directory entries that point at one local header, or inside one another."""
    data = zip_of(envelope(**{"payload/a": b"x" * 100, "payload/b": b"y" * 100}))
    place = data.index(b"payload/a") - 30
    central = central_entry(data, b"payload/b")
    refused(check, patched(data, central + 42, struct.pack("<I", place)), "overlaps")
    central = central_entry(data, b"payload/a")
    local = data.index(b"payload/a") - 30
    sizes = struct.pack("<II", 200, 200)
    refused(check, patched(patched(data, central + 20, sizes), local + 18, sizes), "overlaps")


def test_member_that_reaches_into_the_directory(check: Check) -> None:
    data = zip_of(envelope(**{"payload/z": b"x" * 100}))
    central = central_entry(data, b"payload/z")
    local = data.index(b"payload/z") - 30
    sizes = struct.pack("<II", 120, 120)
    refused(
        check, patched(patched(data, central + 20, sizes), local + 18, sizes), "reaches into the directory"
    )


def test_local_header_that_disagrees(check: Check) -> None:
    data = zip_of(envelope(**{"payload/z": b"x" * 100}))
    at = data.index(b"payload/z")
    refused(check, patched(data, at, b"payload/q"), "disagrees")
    refused(check, patched(data, at - 16, b"\1"), "disagrees")  # CRC
    refused(check, patched(data, at - 30, b"XX"), "no local header")


def test_wrong_crc(check: Check) -> None:
    data = zip_of(envelope(**{"payload/z": b"y" * 100}))
    refused(check, patched(data, data.index(b"y" * 100), b"Y"), "CRC-32")


def test_encrypted_zip_and_other_methods(check: Check) -> None:
    data = zip_of(envelope())
    central = central_entry(data, b"manifest.json")
    unsupported = Refusal.UNSUPPORTED
    refused(check, patched(data, central + 8, b"\1\0"), "encrypted", unsupported)
    refused(check, patched(data, central + 10, b"\x0e\0"), "method 14", unsupported)
    refused(check, patched(data, len(data) - 18, b"\1\0"), "several parts", unsupported)


def test_directory_that_does_not_fit_its_end_record(check: Check) -> None:
    data = zip_of(envelope())
    refused(check, b"prefix" + data, "neither", Refusal.UNSUPPORTED)
    refused(check, b"PK" + data, "does not end where")
    refused(check, patched(data, len(data) - 14, b"\2\0"), "several parts", Refusal.UNSUPPORTED)
    refused(check, patched(data, len(data) - 14, b"\2\0\2\0"), "more than the 2 entries")
    refused(check, patched(data, len(data) - 14, b"\4\0\4\0"), "fewer than the 4 entries")


def test_zstandard_window_and_garbage(check: Check) -> None:
    stream = ZipStream(compression=Compression.ZSTANDARD)
    body = b"".join(bytes(part) for name, data in envelope().items() for part in stream.add(name, data))
    data = body + b"".join(stream.finish())
    check(data)
    frame = data.index(b"\x28\xb5\x2f\xfd")
    refused(check, patched(data, frame, b"XXXX"), "not a Zstandard stream")
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    huge_window = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    payload = huge_window.compress(b"x") + huge_window.flush()
    stored = zip_of(envelope(**{"payload/z": payload}))
    central, local = central_entry(stored, b"payload/z"), stored.index(b"payload/z") - 30
    as_zstd = patched(patched(stored, central + 10, b"\x5d\0"), local + 8, b"\x5d\0")
    size, crc = struct.pack("<I", 1), struct.pack("<I", zlib.crc32(b"x"))
    for at, value in ((central + 24, size), (local + 22, size), (central + 16, crc), (local + 14, crc)):
        as_zstd = patched(as_zstd, at, value)
    refused(check, as_zstd, "not a Zstandard stream")


def tar_header(name: bytes, *, kind: bytes = b"0", size: bytes = b"00000000000\0") -> bytes:
    header = bytearray(512)
    header[: len(name)] = name
    header[124:136] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("tar", "match"),
    [
        (tar_header(b"x", kind=b"x", size=b"77777777777\0"), "extension header of 8589934591 bytes"),
        (tar_header(b"x", kind=b"L", size=b"\x80" + b"\xff" * 11), "extension header"),
        (tar_header(b"x", kind=b"g") * 9, "in a row"),
        (tar_header(b"x", size=b"0000000000z\0"), "not octal"),
        (tar_header(b"x", size=b"00000000010\0"), "ends inside member 'x'"),
        (tar_header(b"x")[:500], "ends inside a header"),
        (tar_header(b"x").replace(b"ustar", b"ustas"), "checksum"),
        (tar_header(b"x", kind=b"x", size=b"00000000004\0") + b"0 a\n" + bytes(508), "record"),
        (tar_header(b"x", kind=b"x", size=b"00000000004\0") + b"abcd" + bytes(508), "without a length"),
        (tar_header(b"x", kind=b"x", size=b"00000000013\0") + b"11 size=-1\n" + bytes(501), "not a number"),
        (
            tar_header(b"x", kind=b"x", size=b"00000000030\0") + b"24 GNU.sparse.name=abcd\n" + bytes(488),
            "sparse",
        ),
        (tar_header(b"x\xff"), "not UTF-8"),
        (tar_header(b"x", kind=b"5", size=b"00000000010\0"), "has contents"),
    ],
)
def test_tar_headers_that_lie(check: Check, tar: bytes, match: str) -> None:
    refused(check, gzip.compress(tar), match)


def test_gzip_stream_that_is_damaged(check: Check) -> None:
    data = tar_gz_of(envelope())
    refused(check, data[:-9], "ends early")
    refused(check, patched(data, len(data) - 8, b"\0\0\0\0"), "damaged")
    refused(check, data + b"more", "followed by")
    refused(check, data + data, "followed by")
    assert check(data + bytes(1000)).id == ENVELOPE_ID


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=400), start=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08"])
)
def test_arbitrary_bytes_are_refused(data: bytes, start: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "upload")
        path.write_bytes(start + data)
        with pytest.raises(EnvelopeError):
            check_envelope(path)


ZIP_SEED = zip_of(envelope(), method=zipfile.ZIP_DEFLATED)
TAR_SEED = gzip.decompress(tar_gz_of(envelope()))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.sampled_from([ZIP_SEED, TAR_SEED]),
    place=st.integers(0, 20_000),
    replacement=st.binary(min_size=1, max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 20_000)),
)
def test_damaged_envelopes_give_only_documented_errors(
    seed: bytes, place: int, replacement: bytes, cut: int | None
) -> None:
    data = patched(seed, place % len(seed), replacement)
    data = data if cut is None else data[: cut % len(seed)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "upload")
        path.write_bytes(gzip.compress(data, 1) if seed is TAR_SEED else data)
        try:
            envelope_id = check_envelope(path).id
        except EnvelopeError:
            return
        assert canonical_envelope_id(envelope_id) == envelope_id


def test_unreadable_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_envelope(tmp_path / "missing")
    assert not os.listdir(tmp_path)
