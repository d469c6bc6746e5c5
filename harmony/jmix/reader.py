"""Judge an uploaded envelope: is it a JMIX envelope, is it safe, is it what it says?

Both layouts are read, Harmony's own and the one of the JMIX specification (docs/DESIGN.md), from a ZIP or a gzip tar,
at the root of the archive or inside one top-level folder such as `<id>.JMIX/`. Checked are, besides what `zipread`
and `tarread` check of any archive:

- manifest.json is a JSON object whose id is a UUID;
- payload/metadata.json is a JSON object, unless the payload is encrypted (payload.encrypted or payload.enc), which is
  kept as it is;
- payload/files.json is there when payload/files/ has files; every file it lists is there, with its size and hash;
- security.payload_hash, in any of the forms of `payload_hash`; "sha256:skipped" counts as no hash.

Nothing is extracted: members pass by once, hashed, and only the three JSON documents are held. Schemas and signatures
are not checked here. Called by the gateway in a worker thread, on a file that the upload was written to.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from harmony.dicom.uid import is_valid_uid
from harmony.jmix.limits import EnvelopeError, Limits, Refusal, canonical_envelope_id
from harmony.jmix.payload_hash import ContentHash, listing_hashes
from harmony.jmix.tarread import TarGzReader
from harmony.jmix.zipread import ZipReader

__all__ = [
    "ArchiveFormat",
    "EnvelopeError",
    "EnvelopeInfo",
    "Limits",
    "Refusal",
    "check_envelope",
    "describe_archive",
    "format_of_content_type",
    "open_archive",
    "read_metadata",
]

MANIFEST = "manifest.json"
METADATA = "payload/metadata.json"
FILES = "payload/files.json"
ENCRYPTED = ("payload.encrypted", "payload.enc")
PAYLOAD = "payload/"

HASH_SKIPPED = "sha256:skipped"


class ArchiveFormat(Enum):
    """The kinds of archive an envelope may travel in; the value is the media type."""

    ZIP = "application/zip"
    TAR_GZ = "application/gzip"


_MEDIA_TYPES = {
    "application/zip": ArchiveFormat.ZIP,
    "application/x-zip-compressed": ArchiveFormat.ZIP,
    "application/x-zip": ArchiveFormat.ZIP,
    "application/jmix+zip": ArchiveFormat.ZIP,
    "application/gzip": ArchiveFormat.TAR_GZ,
    "application/x-gzip": ArchiveFormat.TAR_GZ,
    "application/x-gtar": ArchiveFormat.TAR_GZ,
    "application/x-tgz": ArchiveFormat.TAR_GZ,
    "application/x-compressed-tar": ArchiveFormat.TAR_GZ,
}


@dataclass(frozen=True, slots=True)
class EnvelopeInfo:
    """What is known of an envelope after it has been checked."""

    id: str
    """In canonical form."""
    format: ArchiveFormat
    study_instance_uids: tuple[str, ...]
    """As far as metadata.json names them; none of an encrypted envelope."""
    instance_count: int
    size_bytes: int
    """Of the archive."""
    manifest: bytes
    """The document as it is in the archive."""
    encrypted: bool
    payload_hash_checked: bool
    """False when there is none, when the payload is encrypted, and when a tar has it in the libraries' form with its
    files in another order, which cannot be checked without extracting."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """What one pass over an archive brings to light, names relative to the envelope's root."""

    files: dict[str, tuple[int, str]]
    documents: dict[str, bytes]


def check_envelope(
    path: Path, *, content_type: str | None = None, limits: Limits | None = None
) -> EnvelopeInfo:
    """Check the archive at `path`; return what it is or raise EnvelopeError. OSError when it cannot be read.

    content_type: as the sender declared it, parameters and all. None or application/octet-stream: whatever the
        first bytes say. Blocking, and as long as reading and hashing the archive takes; holds 64 bytes and the name
        per member, and the JSON documents.
    """
    limits = limits or Limits()
    declared = format_of_content_type(content_type)
    with open(path, "rb", buffering=0) as file:
        found, archive = open_archive(file.fileno(), limits=limits)
        if declared is not None and found is not declared:
            message = f"declared {declared.value}, the content is {found.value}"
            raise EnvelopeError(Refusal.UNSUPPORTED, message)
        contents = _read_once(archive, limits)
        manifest = _json_object(contents, MANIFEST)
        envelope_id = canonical_envelope_id(_text(manifest.get("id")))
        if envelope_id is None:
            raise _invalid(f"{MANIFEST}: id is not a UUID")
        encrypted = any(name in contents.files for name in ENCRYPTED)
        studies: tuple[str, ...] = ()
        if not encrypted:
            studies = _study_instance_uids(_json_object(contents, METADATA))
        _check_listed_files(contents)
        checked = False if encrypted else _check_payload_hash(manifest, contents, archive)
        return EnvelopeInfo(
            id=envelope_id,
            format=found,
            study_instance_uids=studies,
            instance_count=sum(map(_is_instance, contents.files)),
            size_bytes=archive.size_bytes,
            manifest=contents.documents[MANIFEST],
            encrypted=encrypted,
            payload_hash_checked=checked,
        )


def describe_archive(path: Path, *, limits: Limits) -> tuple[bytes, tuple[str, ...]]:
    """Return manifest.json and the Study Instance UIDs of an archive that was checked when it came.

    Of a ZIP only these two members are read. Raises EnvelopeError when it is no archive or has no manifest.
    """
    with open(path, "rb", buffering=0) as file:
        _, archive = open_archive(file.fileno(), limits=limits)
        contents = _read_once(archive, limits, only_documents=True)
        _json_object(contents, MANIFEST)
        metadata = _json_object(contents, METADATA) if METADATA in contents.documents else {}
        return contents.documents[MANIFEST], _study_instance_uids(metadata)


def read_metadata(path: Path, *, limits: Limits | None = None) -> Mapping[str, object]:
    """Return payload/metadata.json of an archive that was checked when it came; empty when it is encrypted.

    Raises EnvelopeError and OSError. Blocking; a gzip tar is read as a whole for it.
    """
    limits = limits or Limits()
    with open(path, "rb", buffering=0) as file:
        _, archive = open_archive(file.fileno(), limits=limits)
        contents = _read_once(archive, limits, only_documents=True)
        return _json_object(contents, METADATA) if METADATA in contents.documents else {}


def format_of_content_type(content_type: str | None) -> ArchiveFormat | None:
    """Return the format a media type names, None when it leaves that open; refuse any other (415)."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type in ("", "application/octet-stream", "binary/octet-stream"):
        return None
    if media_type not in _MEDIA_TYPES:
        raise EnvelopeError(Refusal.UNSUPPORTED, f"an envelope cannot be of type {media_type[:80]!r}")
    return _MEDIA_TYPES[media_type]


def open_archive(fd: int, *, limits: Limits) -> tuple[ArchiveFormat, ZipReader | TarGzReader]:
    """Open the archive in a file by its first bytes. The file descriptor stays the caller's."""
    start = os.pread(fd, 4, 0)
    if start[:2] == b"\x1f\x8b":
        return ArchiveFormat.TAR_GZ, TarGzReader(fd, limits=limits)
    if start[:2] == b"PK":
        return ArchiveFormat.ZIP, ZipReader(fd, limits=limits)
    raise EnvelopeError(Refusal.UNSUPPORTED, "the content is neither a ZIP nor a gzip file")


def _read_once(
    archive: ZipReader | TarGzReader, limits: Limits, *, only_documents: bool = False
) -> _Contents:
    """Read all members, hash them, keep the JSON documents, and find out where the envelope's root is."""
    files: dict[str, tuple[int, str]] = {}
    documents: dict[str, bytes] = {}
    root: str | None = None
    for name, size_bytes, chunks in archive.contents():
        if root is None:  # the first member tells: at the root are only files and payload/
            top = name.partition("/")[0]
            root = "" if top in (name, "payload") else top + "/"
        inner = name.removeprefix(root)
        digest = hashlib.sha256()
        if name.startswith(root) and inner in (MANIFEST, METADATA, FILES):
            if size_bytes > limits.json_bytes:
                raise EnvelopeError(Refusal.TOO_LARGE, f"{inner} of {size_bytes} bytes is too large")
            documents[inner] = b"".join(chunks)
            digest.update(documents[inner])
        elif not only_documents:
            for chunk in chunks:
                digest.update(chunk)
        files[name] = (size_bytes, digest.hexdigest())
    root = root or ""
    outside = next((name for name in files if not name.startswith(root)), None)
    if outside is not None:
        raise _invalid(f"member {outside!r} is outside the envelope's folder {root!r}")
    return _Contents({name.removeprefix(root): entry for name, entry in files.items()}, documents)


def _json_object(contents: _Contents, name: str) -> dict[str, object]:
    document = _json(contents, name)
    if not isinstance(document, dict):
        raise _invalid(f"{name} is not a JSON object")
    return document


def _json(contents: _Contents, name: str) -> object:
    data = contents.documents.get(name)
    if data is None:
        raise _invalid(f"the envelope has no {name}")
    try:
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ):  # the message could quote what the document says
        raise _invalid(f"{name} is not JSON") from None


def _study_instance_uids(metadata: Mapping[str, object]) -> tuple[str, ...]:
    """Read `studies` as a map by Study Instance UID, as one study object, or as a list of them."""
    studies = metadata.get("studies")
    candidates: list[object] = []
    if isinstance(studies, dict):
        if "study_uid" in studies:
            candidates.append(studies["study_uid"])
        else:
            candidates.extend(studies)
    elif isinstance(studies, list):
        candidates.extend(study.get("study_uid") for study in studies if isinstance(study, dict))
    uids = [uid for uid in candidates if isinstance(uid, str) and is_valid_uid(uid)]
    return tuple(dict.fromkeys(uids))


def _check_listed_files(contents: _Contents) -> None:
    """Compare payload/files.json with what is there."""
    if FILES not in contents.documents:
        if any(name.startswith("payload/files/") for name in contents.files):
            raise _invalid(f"payload/files/ has files and there is no {FILES}")
        return
    listing = _json(contents, FILES)
    if not isinstance(listing, list):
        raise _invalid(f"{FILES} is not a JSON array")
    for number, entry in enumerate(listing):
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise _invalid(f"{FILES}: entry {number} names no file")
        found = contents.files.get(PAYLOAD + entry["file"])
        if found is None:
            raise _invalid(f"{FILES}: the file of entry {number} is not in the envelope")
        size_bytes, sha256 = found
        if entry.get("size_bytes", size_bytes) != size_bytes:
            raise _invalid(f"{FILES}: the file of entry {number} has {size_bytes} bytes, not what is listed")
        expected = _expected_hash(entry.get("hash"), where=f"{FILES}: entry {number}")
        if expected is not None and expected != sha256:
            raise _invalid(f"{FILES}: the file of entry {number} has another SHA-256 than is listed")


def _check_payload_hash(
    manifest: Mapping[str, object], contents: _Contents, archive: ZipReader | TarGzReader
) -> bool:
    """Compare security.payload_hash with the payload; tell whether that could be done."""
    security = manifest.get("security")
    claimed = security.get("payload_hash") if isinstance(security, dict) else None
    expected = _expected_hash(claimed, where=f"{MANIFEST}: security.payload_hash")
    if expected is None:
        return False
    payload = {
        name.removeprefix(PAYLOAD): entry
        for name, entry in contents.files.items()
        if name.startswith(PAYLOAD)
    }
    expected = "sha256:" + expected
    if expected in listing_hashes(payload):
        return True
    by_contents = _content_hash(payload, archive)
    if by_contents is None:
        return False
    if by_contents != expected:
        raise _invalid(f"{MANIFEST}: security.payload_hash is not the hash of the payload")
    return True


def _content_hash(payload: Mapping[str, tuple[int, str]], archive: ZipReader | TarGzReader) -> str | None:
    """Read the payload again, sorted by path; None when it comes from a tar in another order."""
    in_order = sorted(payload)
    result = ContentHash()
    if isinstance(archive, ZipReader):
        members = {_in_payload(member.name): member for member in archive.members}
        for path in in_order:
            result.add(path, archive.read(members[path]))
        return result.value()
    if list(payload) != in_order:
        return None
    for name, _, chunks in archive.contents():
        if (inner := _in_payload(name)) is not None:
            result.add(inner, chunks)
    return result.value()


def _in_payload(name: str) -> str | None:
    """Return the path relative to payload/, which is at the root or inside one folder."""
    if not name.startswith(PAYLOAD):
        name = name.partition("/")[2]
    return name.removeprefix(PAYLOAD) if name.startswith(PAYLOAD) else None


def _expected_hash(claimed: object, *, where: str) -> str | None:
    """Return a hash that was given, as lower-case hexadecimal; None when none was, or hashing was skipped."""
    if claimed is None or claimed in ("", HASH_SKIPPED):
        return None
    value = _text(claimed).lower().removeprefix("sha256:")
    if len(value) != 64 or value.strip("0123456789abcdef"):
        raise _invalid(f"{where} is not a SHA-256")
    return value


def _is_instance(name: str) -> bool:
    return name.startswith("payload/dicom/") or (name.startswith(PAYLOAD) and name.endswith(".dcm"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _invalid(message: str) -> EnvelopeError:
    return EnvelopeError(Refusal.INVALID, message)
