"""Folders full of DICOM files to one peer: found, planned, sent, counted (PS3.4 Annex B as SCU, PS3.10 files).

`harmony send` is `gateway/send_command.py` on top of this. Programs that have a handful of files, or instances that
are no files, use `harmony.dimse.store_many`.
"""

from harmony.send.files import Found, PassedOver, Unreadable, count, find_files
from harmony.send.flood import Flood, Result
from harmony.send.tally import Tally

__all__ = ["Flood", "Found", "PassedOver", "Result", "Tally", "Unreadable", "count", "find_files"]
