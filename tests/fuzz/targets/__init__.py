"""The targets, by the part of the program that they are about; importing this package registers all of them."""

from tests.fuzz.targets import archive, dicom, dimse, gateway, http, jmix, ul

__all__ = ["archive", "dicom", "dimse", "gateway", "http", "jmix", "ul"]
