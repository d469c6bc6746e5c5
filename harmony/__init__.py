"""Harmony: a DICOM engine and gateway.

`harmony.ul` (PS3.8) and `harmony.dimse` (PS3.7) are the engine and need only the standard library; everything else
is the gateway built on top of them. Start with README.md; docs/DESIGN.md has the whole picture.
"""

__version__ = "0.1.0"

IMPLEMENTATION_CLASS_UID = "2.25.210114358941862953921745613372089347151"
"""Identifies Harmony on the wire and in files (PS3.7 §D.3.3.2, PS3.10 (0002,0012)); from a UUID (PS3.5 §B.2)."""

IMPLEMENTATION_VERSION_NAME = "HARMONY_" + __version__.replace(".", "_")
