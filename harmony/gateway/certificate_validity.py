"""When a certificate ends: what of X.509 (RFC 5280 §4.1) an operator has to be warned about, and no more of it.

The standard library reads certificates of peers only; a library that parses all of X.509 is large for one date.
Certificates here are those of the operator, which OpenSSL has accepted; whatever is odd is a ValueError all the same.
"""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

__all__ = ["not_after"]

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18

_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def not_after(path: Path) -> datetime:
    """When the first certificate of a PEM file ends. Raises OSError, and ValueError for a file without one."""
    found = _PEM.search(path.read_text(encoding="ascii", errors="replace"))
    if found is None:
        raise ValueError(f"{path} holds no certificate in PEM")
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(found[0]))
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} holds a certificate that cannot be read: {error}") from error


def _not_after(der: bytes) -> datetime:
    _, certificate, _ = _element(der)
    _, to_be_signed, _ = _element(certificate)
    tag, _, rest = _element(to_be_signed)
    if tag == _VERSION:
        _, _, rest = _element(rest)  # serialNumber
    for _ in ("signature", "issuer"):
        _, _, rest = _element(rest)
    tag, validity, _ = _element(rest)
    if tag != _SEQUENCE:
        raise ValueError(f"tag 0x{tag:02X} where its validity was expected")
    _, _, rest = _element(validity)  # notBefore
    tag, text, _ = _element(rest)
    return _time(tag, text.decode("ascii"))


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content and what follows the first element (X.690 §8.1, definite lengths)."""
    tag, length, at = data[0], data[1], 2
    if length & 0x80:
        at += length & 0x7F
        length = int.from_bytes(data[2:at], "big")
    if len(data) < at + length:
        raise ValueError(f"an element of {length} bytes exceeds what there is")
    return tag, data[at : at + length], data[at + length :]


def _time(tag: int, text: str) -> datetime:
    """RFC 5280 §4.1.2.5: UTCTime up to 2049, GeneralizedTime from 2050, both in UTC with seconds."""
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < 50 else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"tag 0x{tag:02X} where a time was expected")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
