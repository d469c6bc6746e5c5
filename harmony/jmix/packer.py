"""Build an envelope from instances while they arrive.

Each instance goes into the archive in the pieces in which it comes, behind file meta of its own (PS3.10 §7.1): the
header is read, the hash and the CRC are computed as it passes, and neither its size nor its place among the others has
to be known. Names follow from all the headers (`arrangement`), so members are named when the last one has come. The
result has the names, the documents and the promises of `envelope`.

Which instances belong to a study, and whether all have come, is for the caller to know: a packer is finished or
discarded. Blocking; for a worker thread, or one after the other.
"""

from __future__ import annotations

from pathlib import Path

from harmony.dimse.part10 import encode_file_meta
from harmony.jmix.arrangement import LONGEST_NAME_BYTES
from harmony.jmix.documents import Profile
from harmony.jmix.envelope import EnvelopeFile, EnvelopePlan, EnvelopeSummary
from harmony.jmix.header import HeaderReader
from harmony.jmix.zipformat import Compression

__all__ = ["EnvelopePacker", "ForeignInstance"]


class ForeignInstance(Exception):
    """An instance says that it is of another study."""


class EnvelopePacker:
    """The envelope of one study in the making: `begin`, `write` and `end` each instance; `finish` or `discard`."""

    def __init__(
        self,
        plan: EnvelopePlan,
        study_instance_uid: str,
        temporary: Path,
        *,
        profile: Profile = Profile.HARMONY,
        skip_hashing: bool = False,
        skip_listing: bool = False,
        compression: Compression = Compression.STORED,
        fsync: bool = False,
    ) -> None:
        """plan: without objects. temporary: where the archive is until `finish`, on the file system of its final place.

        The other arguments are those of `build_envelope`. Raises OSError, as everything here does when the disk is
        full; what is to be done then is `discard`.
        """
        self._study_instance_uid = study_instance_uid
        self._envelope = EnvelopeFile(
            plan,
            temporary,
            profile=profile,
            skip_hashing=skip_hashing,
            skip_listing=skip_listing,
            compression=compression,
            fsync=fsync,
        )
        self._uids = ("", "", "")
        self._reader: HeaderReader | None = None
        self._header_done = False

    @property
    def instance_count(self) -> int:
        """How many instances have ended."""
        return self._envelope.instance_count

    def begin(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> None:
        """Begin an instance. Raises Part10Error for UIDs that no file meta can hold."""
        meta = encode_file_meta(
            transfer_syntax_uid=transfer_syntax_uid,
            media_storage_sop_class_uid=sop_class_uid,
            media_storage_sop_instance_uid=sop_instance_uid,
        )
        self._uids = (sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        self._reader = HeaderReader(transfer_syntax_uid)
        self._header_done = False
        self._envelope.writer.begin(longest_name_bytes=LONGEST_NAME_BYTES)
        self._envelope.writer.write(meta)

    def write(self, piece: memoryview) -> None:
        """Add the next bytes of its data set. Keeps no reference."""
        assert self._reader is not None
        if not self._header_done:
            self._header_done = self._reader.feed(piece)
        self._envelope.writer.write(piece)

    def end(self) -> None:
        """The data set is complete. Raises ForeignInstance; the packer is good for `discard` only, then."""
        assert self._reader is not None
        header = self._reader.header()
        study_instance_uid = header.study_instance_uid or self._study_instance_uid
        if study_instance_uid != self._study_instance_uid:
            raise ForeignInstance(
                f"an instance of study {self._study_instance_uid} says it is of another one"
            )
        member = self._envelope.writer.end()
        self._envelope.add(study_instance_uid, header.series_instance_uid, self._uids, header, member)
        self._reader = None

    def finish(self, out_path: Path) -> EnvelopeSummary:
        """Name the members, add the documents, and give the envelope its name; `out_path` is replaced.

        Raises ValueError when no instance has come.
        """
        return self._envelope.complete(out_path)

    def discard(self) -> None:
        """Leave nothing behind; idempotent."""
        self._envelope.discard()
