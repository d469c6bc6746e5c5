"""C-STORE objects as Part 10 files (PS3.10 §7), written as they arrive and never decoded.

    <root>/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm

The bytes of the data set are stored as received, behind file meta made from the command and the presentation
context. They go to a temporary file, which gets its final name when it is complete: a final name always
holds a whole object, and is never overwritten unless `duplicates = "replace"` says so.

What is read of the data set are four UIDs. The SOP Class UID must be the command's (else A900, PS3.4
§B.2.3); study, series and instance decide the path. A data set that has none of the four is not understood
(C000); one that merely lacks a study or series goes to a folder `x-none`.

Not here: reading back, an index, deleting. Called by the gateway's DICOM endpoint, which takes a sink per
object.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from harmony.archive.duplicates import data_set_sha256, is_torn_copy, same_data_set
from harmony.archive.durability import GroupCommit
from harmony.archive.folder import Folder, remove
from harmony.archive.stored import Disposition, Journal, StoredObject, refusal
from harmony.archive.whole_objects import WholeObjects
from harmony.dicom.header_layout import IDENTIFYING, SERIES, SOP_CLASS, SOP_INSTANCE, STUDY
from harmony.dicom.scanner import HeaderScanner
from harmony.dicom.uid import is_valid_uid, path_component
from harmony.dimse.part10 import Part10Error, encode_file_meta
from harmony.dimse.status import SUCCESS_OUTCOME, DimseError, Outcome, Status

__all__ = ["Disposition", "FileSink", "FileStore", "Journal", "StoredObject"]

logger = logging.getLogger("harmony.archive")

DEFAULT_MINIMUM_FREE_BYTES = 64 * 1024 * 1024
"""Left free on the file system, so that journals, the outbox and logs can still be written when objects cannot."""
INLINE_COMPARISON_BYTES = 1024 * 1024
"""Files up to this size are compared in the event loop, which takes about a millisecond; larger ones in a thread."""

Duplicates = Literal["keep_first", "keep_both", "replace", "refuse"]


class FileStore:
    """Stores received objects in one folder.

    durability: "os" answers when the file is complete under its name; a crash of the program loses nothing,
    the
        kernel has it on the disk within seconds. "fsync" answers when it is on the disk.
    duplicates: what to do with different data under a SOP Instance UID that is stored already. The same data
    again
        is always a success and changes nothing.
    maximum_object_bytes: larger data sets are answered A700. None: as large as the disk.
    minimum_free_bytes: objects are answered A700 when less than this would be free; 0 leaves it to the disk
    to fill.
    """

    def __init__(
        self,
        root: Path,
        *,
        durability: Literal["os", "fsync"] = "os",
        duplicates: Duplicates = "keep_first",
        maximum_object_bytes: int | None = None,
        minimum_free_bytes: int = DEFAULT_MINIMUM_FREE_BYTES,
    ) -> None:
        self.duplicates: Duplicates = duplicates
        self.maximum_object_bytes = maximum_object_bytes
        self.commit = GroupCommit() if durability == "fsync" else None
        """With durability "fsync"."""
        self.folder = Folder(
            os.path.abspath(root),
            minimum_free_bytes=minimum_free_bytes,
            directories_made=self.commit.directories_made if self.commit is not None else None,
        )
        self.is_open = False

    def __repr__(self) -> str:
        durability = "os" if self.commit is None else "fsync"
        state = "open" if self.is_open else "closed"
        return f"<FileStore {self.folder.root} {state} durability={durability} duplicates={self.duplicates}>"

    def open(self) -> None:
        """Make the folder and clear it of what an earlier process left unfinished. Raises OSError."""
        self.folder.open()
        self.is_open = True

    def close(self) -> None:
        """Take no more objects. Those being received may still be finished."""
        self.is_open = False
        if self.commit is not None:
            self.commit.close()

    def problem(self) -> str | None:
        """Why objects are refused now, for whoever watches the gateway. Blocking."""
        if not self.is_open:
            return "the archive is closed"
        try:
            self.folder.require_space_now()
        except OSError as error:
            return f"the storage folder cannot be used: {error.strerror}"
        except DimseError as error:
            return error.outcome.error_comment
        return None

    def sink(
        self,
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        calling_ae_title: str = "",
        called_ae_title: str = "",
        journal: Journal | None = None,
        on_stored: Callable[[StoredObject], None] | None = None,
    ) -> FileSink:
        """Receive one object; the UIDs are the command's and the presentation context's.

        on_stored: called in the event loop when the object has its final name and before the answer, for
        every
            disposition. Raises DimseError when the store is not open.
        """
        if not self.is_open:
            raise DimseError(Status.OUT_OF_RESOURCES, "the archive is closed")
        return FileSink(
            self,
            sop_class_uid,
            sop_instance_uid,
            transfer_syntax_uid,
            calling_ae_title,
            called_ae_title,
            journal,
            on_stored,
        )

    def whole_objects(
        self,
        *,
        sop_class_uid: str,
        transfer_syntax_uid: str,
        calling_ae_title: str = "",
        called_ae_title: str = "",
        journal: Journal | None = None,
        on_stored: Callable[[StoredObject], None] | None = None,
    ) -> WholeObjects | None:
        """The short cut for objects that come in one fragment; None with "fsync", where others are waited for.

        Arguments are those of `sink`, but a journal must not mind objects that never come: see `WholeObjects`.
        """
        if self.commit is not None:
            return None
        return WholeObjects(
            self,
            sop_class_uid,
            transfer_syntax_uid,
            calling_ae_title,
            called_ae_title,
            journal,
            on_stored,
        )


class FileSink:
    """One object on its way to its file: a `harmony.dimse.Sink`; with "fsync" a `PendingObject` as well."""

    __slots__ = (
        "_called_ae_title",
        "_calling_ae_title",
        "_complete",
        "_fd",
        "_folder",
        "_held",
        "_meta_bytes",
        "_name",
        "_on_stored",
        "_over",
        "_scanner",
        "_size_bytes",
        "_sop_class_uid",
        "_sop_instance_uid",
        "_store",
        "_stored",
        "_temporary",
        "_transfer_syntax_uid",
        "journal",
        "path",
    )

    def __init__(
        self,
        store: FileStore,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        calling_ae_title: str,
        called_ae_title: str,
        journal: Journal | None,
        on_stored: Callable[[StoredObject], None] | None,
    ) -> None:
        self._store = store
        self._folder = store.folder
        self._sop_class_uid = sop_class_uid
        self._sop_instance_uid = sop_instance_uid
        self._transfer_syntax_uid = transfer_syntax_uid
        self._calling_ae_title = calling_ae_title
        self._called_ae_title = called_ae_title
        self.journal = journal
        self._on_stored = on_stored
        self._scanner = HeaderScanner(transfer_syntax_uid, IDENTIFYING)
        self._held: bytearray | None = None  # the beginning, while it may yet turn out to be file meta
        self._fd = -1
        self._temporary = ""  # its name, from when it exists
        self._meta_bytes = 0
        self._size_bytes = 0
        self._name = ""  # the final name, before duplicates are looked for
        self.path = ""
        self._stored: StoredObject | None = None
        self._complete = False  # the data set is whole: it will be stored or refused, but no longer given up
        self._over = False  # stored, refused or given up

    def __repr__(self) -> str:
        return f"<FileSink {path_component(self._sop_instance_uid)} {self._size_bytes} bytes>"

    # Receiving

    def write(self, fragment: memoryview) -> None:
        """Scan and write a fragment. Raises DimseError A700, A900 or C000; nothing is left behind then."""
        if self._over:
            return
        try:
            scanner = self._scanner
            if not scanner.done and scanner.feed(fragment):
                self._check_sop_class()
            if self._fd < 0:
                self._begin(fragment)
                return
            size = len(fragment)
            self._require_room(size)
            written = os.write(self._fd, fragment)
            self._size_bytes += size
            if written < size:
                self._write_rest(fragment[written:])
        except (OSError, DimseError) as error:
            raise self._refuse(error) from error

    def _begin(self, fragment: memoryview) -> None:
        """Write the file meta and what there is; file meta that the sender put into the data set is left out."""
        if self._held is not None:
            self._held += fragment
            fragment = memoryview(self._held)
        offset = self._scanner.data_set_offset
        if offset is None and not self._scanner.done:
            if self._held is None:
                self._held = bytearray(fragment)
            return
        if offset:
            logger.info("%s: left out the file meta in its data set", path_component(self._sop_instance_uid))
            fragment = fragment[offset:]
        try:
            meta = encode_file_meta(
                transfer_syntax_uid=self._transfer_syntax_uid,
                media_storage_sop_class_uid=self._sop_class_uid,
                media_storage_sop_instance_uid=self._sop_instance_uid,
                source_application_entity_title=self._calling_ae_title,
                sending_application_entity_title=self._calling_ae_title,
                receiving_application_entity_title=self._called_ae_title,
            )
        except Part10Error as error:
            raise DimseError(
                Status.CANNOT_UNDERSTAND, "the command's UIDs do not fit into file meta"
            ) from error
        self._require_room(len(fragment))
        temporary = self._folder.temporary()
        self._fd = self._folder.create(temporary)
        self._temporary = temporary
        self._meta_bytes = len(meta)
        self._size_bytes = len(meta) + len(fragment)
        written = os.writev(self._fd, (meta, fragment))
        if written < self._size_bytes:
            self._write_rest(memoryview(b"".join((meta, fragment)))[written:])
        self._held = None

    def _write_rest(self, rest: memoryview) -> None:
        """Go on after a short write; usually the next one says why."""
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def _require_room(self, size_bytes: int) -> None:
        maximum = self._store.maximum_object_bytes
        if maximum is not None and self._size_bytes - self._meta_bytes + size_bytes > maximum:
            raise DimseError(Status.OUT_OF_RESOURCES, f"data set larger than {maximum} bytes")
        self._folder.require_space(size_bytes)

    def _check_sop_class(self) -> None:
        found = self._scanner.text(SOP_CLASS)
        if found and found != self._sop_class_uid:
            raise DimseError(
                Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
                f"{path_component(found)} is not {path_component(self._sop_class_uid)}",
                (SOP_CLASS,),
            )

    # Completing

    def finish(self) -> Outcome | Awaitable[Outcome]:
        """Give the file its final name. Every failure is an Outcome, and then nothing is left behind.

        The answer comes later with durability "fsync", and when a large file must be compared with an
        earlier one.
        """
        if self._over:
            return Outcome(Status.CANNOT_UNDERSTAND, "the object was given up")
        try:
            self._identify()
            commit = self._store.commit
            if commit is not None:
                self._complete = True
                return commit.submit(self)
            self.close_file(sync=False)
            # Without a journal there is no line to be taken back: link(2) itself may say that the name is taken.
            small = self._size_bytes <= INLINE_COMPARISON_BYTES
            if (small and self.journal is None) or not os.access(self._name, os.F_OK):
                return self._conclude(Disposition.STORED)
            if self._size_bytes <= INLINE_COMPARISON_BYTES:
                return self._conclude(self.judge())
            self._complete = True
            return asyncio.get_running_loop().create_task(self._conclude_later())
        except (OSError, DimseError) as error:
            return self._refuse(error).outcome

    def _identify(self) -> None:
        """Decide the final name, from the data set where it has the UIDs."""
        scanner = self._scanner
        if not scanner.done:
            scanner.finish()
            self._check_sop_class()
        if not scanner.values:
            reason = scanner.failed or "the data set has none of the UIDs of a SOP instance"
            raise DimseError(Status.CANNOT_UNDERSTAND, reason)
        if self._fd < 0:
            self._begin(memoryview(b""))
        instance = scanner.text(SOP_INSTANCE)
        if instance != self._sop_instance_uid:
            named = path_component(self._sop_instance_uid)
            if is_valid_uid(instance):
                logger.info("the command says %s, its data set %s", named, instance)
                self._sop_instance_uid = instance
            else:
                logger.info("%s: no valid SOP Instance UID in its data set", named)
        directory = self._folder.directory(scanner.text(STUDY), scanner.text(SERIES))
        self.path = self._name = f"{directory}/{path_component(self._sop_instance_uid)}.dcm"

    def _conclude(self, disposition: Disposition) -> Outcome:
        """Journal, name, answer. When another process takes the name in between, look again."""
        self.record(disposition)
        while not self.place(disposition):
            disposition = self.judge()
            self.record(disposition)
        self.tell()
        return SUCCESS_OUTCOME if disposition is Disposition.STORED else disposition.outcome

    async def _conclude_later(self) -> Outcome:
        try:
            return self._conclude(await asyncio.get_running_loop().run_in_executor(None, self.judge))
        except (OSError, DimseError) as error:
            return self._refuse(error).outcome
        finally:
            self.discard()  # cancelled

    def _refuse(self, error: Exception) -> DimseError:
        """Leave nothing behind; return what to answer."""
        self.discard()
        answer = refusal(error)
        logger.warning("refused %s: %s", path_component(self._sop_instance_uid), answer)
        return answer

    def abort(self) -> None:
        """Give the object up, unless it is complete: then it is stored, though nobody will be told."""
        if not self._complete:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary file if there still is one."""
        if self._over:
            return
        self._over = True
        self._held = None
        try:
            self.close_file(sync=False)
        except OSError:
            pass  # what could not be written is removed anyway
        if self._temporary:
            remove(self._temporary)

    # Steps to the final name; `judge` and `place` run in a thread as well

    def close_file(self, *, sync: bool) -> None:
        """Close the temporary file, which may be the first to hear that the disk is full."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)

    def judge(self) -> Disposition:
        """See whether the final name is taken, and by what. Raises DimseError, OSError."""
        self.path = self._name
        if not os.path.lexists(self.path):
            return Disposition.STORED
        if same_data_set(self.path, self._temporary, self._meta_bytes):
            return Disposition.IDENTICAL
        if is_torn_copy(self.path, self._temporary, self._meta_bytes):
            logger.warning("%s was cut off, and is replaced", path_component(self._sop_instance_uid))
            return Disposition.REPLACED
        match self._store.duplicates:
            case "keep_first":
                uid = path_component(self._sop_instance_uid)
                logger.warning("different data under SOP Instance UID %s; the first is kept", uid)
                return Disposition.KEPT_FIRST
            case "keep_both":
                return self._find_name_beside()
            case "replace":
                return Disposition.REPLACED
            case "refuse":
                raise DimseError(Status.DUPLICATE_SOP_INSTANCE, "different data are stored under this UID")

    def _find_name_beside(self) -> Disposition:
        """Name the file after its contents as well: `<UID>-<hash>.dcm`, which is no other UID's name."""
        digest = data_set_sha256(self._temporary, self._meta_bytes)
        for digits in (8, 64):  # eight are for people; a peer could make two data sets that share them
            self.path = f"{self._name.removesuffix('.dcm')}-{digest[:digits]}.dcm"
            if not os.path.lexists(self.path):
                return Disposition.KEPT_BOTH
            if same_data_set(self.path, self._temporary, self._meta_bytes):
                return Disposition.IDENTICAL
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path)

    def record(self, disposition: Disposition) -> None:
        """Append to the journal."""
        if self.journal is None and self._on_stored is None:
            return
        arrived = disposition not in (Disposition.IDENTICAL, Disposition.KEPT_FIRST)
        self._stored = StoredObject(
            self.path,
            self._scanner.text(STUDY),
            self._scanner.text(SERIES),
            self._sop_class_uid,
            self._sop_instance_uid,
            self._transfer_syntax_uid,
            self._size_bytes if arrived else os.stat(self.path).st_size,
            disposition,
        )
        if self.journal is not None:
            self.journal.append(self._stored)

    def place(self, disposition: Disposition) -> bool:
        """Give the file its final name; False when that was taken since `judge`."""
        match disposition:
            case Disposition.STORED | Disposition.KEPT_BOTH:
                if not self._folder.name(self._temporary, self.path):
                    return False
            case Disposition.REPLACED:
                self._folder.replace(self._temporary, self.path)
            case Disposition.IDENTICAL | Disposition.KEPT_FIRST:
                remove(self._temporary)
        self._over = True
        return True

    def tell(self) -> None:
        """Call back who asked for it."""
        if self._on_stored is not None and self._stored is not None:
            self._on_stored(self._stored)
