"""The targets, by the part of the program that they are about; importing this package registers all of them."""

from tests.fuzz.targets import access, archive, dicom, dimse, gateway, http, jmix, ul

__all__ = ["access", "archive", "dicom", "dimse", "gateway", "http", "jmix", "ul"]
