"""The PROXY protocol, versions 1 and 2: what a load balancer says of a connection before it passes it on.

Bytes in, an address out; the header has a length of its own, so that what follows it, a TLS handshake or the first PDU,
is left alone. Written after the specification of HAProxy (proxy-protocol.txt, 2020/03/05), §2.1 and §2.2.

Not here: who may send one (the caller knows whom it trusts), UDP, what the TLVs say, their checksum.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

__all__ = ["MAXIMUM_BYTES", "ProxyHeader", "ProxyProtocolError"]

MAXIMUM_V1_BYTES: Final = 107
"""§2.1: the longest line, with its CRLF."""
MAXIMUM_V2_BYTES: Final = 4096
"""Behind the first 16 bytes: addresses are at most 216, the rest is for TLVs such as a client certificate's name."""
MAXIMUM_BYTES: Final = 16 + MAXIMUM_V2_BYTES

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LINE: Final = re.compile(
    r"PROXY (?:UNKNOWN(?: .*)?|(TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))",
    re.DOTALL,
)

_TCP4, _TCP6, _UNIX_STREAM = 0x11, 0x21, 0x31
_ADDRESS_BYTES: Final = {0x00: 0, _TCP4: 12, _TCP6: 36, _UNIX_STREAM: 216}
"""Address family and transport -> the length of the address block."""


class ProxyProtocolError(Exception):
    """There is no PROXY header, or one that breaks the protocol; the connection is to be closed."""


class ProxyHeader:
    """One header while it arrives."""

    def __init__(self) -> None:
        self.complete = False
        self.source: tuple[str, int] | None = None
        """Host and port of the client, once complete; None when the header names none: a health check of the proxy
        itself, or a client that it does not know."""
        self._received = bytearray()

    def receive(self, data: bytes) -> int:
        """How many of these bytes belong to the header; more is needed unless it is `complete` then.

        Raises ProxyProtocolError, as soon as it shows.
        """
        before = len(self._received)
        self._received += data[: MAXIMUM_BYTES - before]
        start = bytes(self._received[: len(_V2)])
        if start[: len(_V1)] == _V1[: len(start)]:
            end = self._line_end()
        elif start == _V2[: len(start)]:
            end = self._binary_end()
        else:
            raise ProxyProtocolError("expected a PROXY header, something else came")
        if end is None:
            return len(self._received) - before
        del self._received[end:]
        self.complete = True
        return end - before

    def _line_end(self) -> int | None:
        end = self._received.find(b"\r\n", 0, MAXIMUM_V1_BYTES)
        if end < 0:
            if len(self._received) >= MAXIMUM_V1_BYTES:
                raise ProxyProtocolError(f"no end of the PROXY line within {MAXIMUM_V1_BYTES} bytes")
            return None
        found = _LINE.fullmatch(self._received[:end].decode("latin-1"))
        if found is None:
            raise ProxyProtocolError("malformed PROXY line")
        family, source, destination, port, destination_port = found.groups()
        if family is not None:
            kind = ipaddress.IPv4Address if family == "TCP4" else ipaddress.IPv6Address
            try:
                self.source = str(kind(source)), int(port)
                kind(destination)
            except ValueError as error:
                raise ProxyProtocolError(f"malformed address in a PROXY line for {family}") from error
            if max(int(port), int(destination_port)) > 65535:
                raise ProxyProtocolError("port in a PROXY line above 65535")
        return end + 2

    def _binary_end(self) -> int | None:
        header = bytes(self._received)
        if len(header) > 12 and header[12] not in (0x20, 0x21):
            raise ProxyProtocolError(f"PROXY version and command 0x{header[12]:02X}, expected 0x20 or 0x21")
        if len(header) > 13 and header[13] not in _ADDRESS_BYTES and header[12] == 0x21:
            raise ProxyProtocolError(f"PROXY address family and transport 0x{header[13]:02X}, expected TCP")
        if len(header) < 16:
            return None
        length = int.from_bytes(header[14:16], "big")
        if length > MAXIMUM_V2_BYTES:
            raise ProxyProtocolError(f"PROXY header of 16 + {length} bytes, at most 16 + {MAXIMUM_V2_BYTES}")
        if header[12] == 0x21 and length < _ADDRESS_BYTES[header[13]]:
            raise ProxyProtocolError(f"PROXY addresses of {length} bytes, too few for 0x{header[13]:02X}")
        end = 16 + length
        if len(header) < end:
            return None
        if header[12] == 0x21:  # with LOCAL the rest means nothing, §2.2
            self._read_addresses(header[13], header[16:end])
        return end

    def _read_addresses(self, family: int, body: bytes) -> None:
        if family == _TCP4:
            self.source = str(ipaddress.IPv4Address(body[:4])), int.from_bytes(body[8:10], "big")
        elif family == _TCP6:
            self.source = str(ipaddress.IPv6Address(body[:16])), int.from_bytes(body[32:34], "big")
        vectors = body[_ADDRESS_BYTES[family] :]
        while vectors:
            length = int.from_bytes(vectors[1:3], "big")
            if len(vectors) < 3 + length:
                raise ProxyProtocolError("a TLV of a PROXY header goes beyond its end")
            vectors = vectors[3 + length :]
