"""Leaves of PS3.5 that need no decoding of a data set: UIDs, and a scanner for data set headers.

`harmony.dicom.uid` says which strings are UIDs and turns any string into a safe path component;
`harmony.dicom.scanner` finds a few top-level elements in the bytes of a data set while they arrive.
"""

from harmony.dicom.scanner import HeaderScanner
from harmony.dicom.uid import is_valid_uid, path_component

__all__ = ["HeaderScanner", "is_valid_uid", "path_component"]
