"""Store an object that is in memory completely, in one go: what `FileSink` does in steps, for what nearly all are.

`WholeObjects` is a `harmony.dimse.sink.WholeStore` for the objects of one kind on one association. Most of what a
FileSink works out for each of them is the same for the next: the file meta but for one value, the folder, what a
HeaderScanner would find, and where. What is left are the system calls:

    open, writev, close     of the temporary file
    write                   by the journal, of what is about to be there
    link, unlink            the final name, instead of the temporary one

Files, journal, answers and metrics are those of a FileSink, in the same order and with the same promises. Whatever is
not plain goes the long way: this returns None, has left nothing behind, and a FileSink finds out what is wrong. So it
knows of no duplicates and no refusals.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harmony.archive.folder import remove
from harmony.archive.stored import Disposition, Journal, StoredObject, refusal
from harmony.dicom.header_layout import IDENTIFYING, SERIES, SOP_CLASS, STUDY, HeaderLayout
from harmony.dicom.scanner import HeaderScanner
from harmony.dimse.part10 import Part10Error, around_instance_uid, encode_file_meta
from harmony.dimse.status import SUCCESS_OUTCOME, DimseError, Outcome

if TYPE_CHECKING:
    from harmony.archive.files import FileStore

__all__ = ["WholeObjects"]

logger = logging.getLogger("harmony.archive")

PATIENCE = 8
"""Headers that are laid out otherwise than the last, one after the other, until only every PATIENCE-th is learned: it
takes longer than scanning, which is what they cost then."""

# PS3.5 §9.1 as `harmony.dicom.uid` has it, on a value field, padded with NUL.
_uid_of = re.compile(rb"(?=.{1,64}\Z)([0-9]+(?:\.[0-9]+)*)\0?\Z").match


class WholeObjects:
    """Objects of one SOP class, transfer syntax, and pair of AE titles.

    Arguments are those of `FileStore.sink`; durability is "os". journal: one that takes no harm when an object never
    gets its name, or has been there before, as that of an index, which only looks.
    """

    __slots__ = (
        "_called_ae_title",
        "_calling_ae_title",
        "_directory",
        "_journal",
        "_layout",
        "_meta",
        "_on_stored",
        "_series",
        "_sop_class_uid",
        "_store",
        "_study",
        "_transfer_syntax_uid",
        "_unlike",
    )

    def __init__(
        self,
        store: FileStore,
        sop_class_uid: str,
        transfer_syntax_uid: str,
        calling_ae_title: str,
        called_ae_title: str,
        journal: Journal | None,
        on_stored: Callable[[StoredObject], None] | None,
    ) -> None:
        self._store = store
        self._sop_class_uid = sop_class_uid
        self._transfer_syntax_uid = transfer_syntax_uid
        self._calling_ae_title = calling_ae_title
        self._called_ae_title = called_ae_title
        self._journal = journal
        self._on_stored = on_stored
        self._meta: dict[int, tuple[bytes, bytes]] = {}  # by the length of the UID between them
        self._layout: HeaderLayout | None = None
        self._unlike = 0  # headers in a row that were not like it
        # Of the layout:
        self._study = ""
        self._series = ""
        self._directory = ""

    def __call__(self, instance_uid: bytes, fragments: Sequence[memoryview]) -> Outcome | None:
        """Store an object, see `WholeStore`. The first fragment has to hold the header as far as it is looked at."""
        store, folder, layout = self._store, self._store.folder, self._layout
        data_set = fragments[0]
        data_bytes = len(data_set) if len(fragments) == 1 else sum(map(len, fragments))
        maximum = store.maximum_object_bytes
        if not store.is_open or (maximum is not None and data_bytes > maximum) or not folder.has_hard_links:
            return None
        found = _uid_of(instance_uid)
        if found is None:
            return None
        if layout is not None and layout.matches(head := bytes(data_set[: layout.end])):
            self._unlike = 0
        elif (layout := self._look_at(data_set)) is not None:
            head = bytes(data_set[: layout.end])
        else:
            return None
        if head[layout.instance_at : layout.instance_end] != instance_uid:
            return None
        uid = found[1].decode("ascii")
        temporary = folder.temporary()
        path = f"{self._directory}/{uid}.dcm"
        try:
            before, after = self._meta.get(len(instance_uid)) or self._new_meta(instance_uid, uid)
            size_bytes = len(before) + len(instance_uid) + len(after) + data_bytes
            folder.require_space(data_bytes)
            fd = folder.create(temporary)
            try:
                if os.writev(fd, (before, instance_uid, after, *fragments)) < size_bytes:
                    raise OSError
            finally:
                os.close(fd)
            stored = StoredObject(
                path,
                self._study,
                self._series,
                self._sop_class_uid,
                uid,
                self._transfer_syntax_uid,
                size_bytes,
                Disposition.STORED,
            )
            if self._journal is not None:
                self._journal.append(stored)
            os.link(temporary, path)
        except (OSError, DimseError, Part10Error):
            remove(temporary)
            return None
        remove(temporary)
        if self._on_stored is not None:
            try:
                self._on_stored(stored)
            except (OSError, DimseError) as error:
                answer = refusal(error)
                logger.warning("refused %s: %s", uid, answer)
                return answer.outcome
        return SUCCESS_OUTCOME

    def _new_meta(self, instance_uid: bytes, uid: str) -> tuple[bytes, bytes]:
        """The file meta around a UID, for this and all of its length."""
        meta = encode_file_meta(
            transfer_syntax_uid=self._transfer_syntax_uid,
            media_storage_sop_class_uid=self._sop_class_uid,
            media_storage_sop_instance_uid=uid,
            source_application_entity_title=self._calling_ae_title,
            sending_application_entity_title=self._calling_ae_title,
            receiving_application_entity_title=self._called_ae_title,
        )
        parts = self._meta[len(instance_uid)] = around_instance_uid(meta, uid)
        return parts

    def _look_at(self, data_set: memoryview) -> HeaderLayout | None:
        """Scan a header that is not laid out like the last; its layout, or None when it has to go the long way."""
        self._unlike += 1
        if self._unlike > PATIENCE and self._unlike % PATIENCE:
            return None
        scanner = HeaderScanner(self._transfer_syntax_uid, IDENTIFYING)
        scanner.feed(data_set)
        layout = HeaderLayout.of(data_set, scanner)
        if layout is None or scanner.text(SOP_CLASS) != self._sop_class_uid:
            return None
        study, series = scanner.text(STUDY), scanner.text(SERIES)
        try:
            self._directory = self._store.folder.directory(study, series)
        except OSError:
            return None
        self._study, self._series = study, series
        self._layout = layout if self._layout is None else self._layout.widened(layout)
        return self._layout
