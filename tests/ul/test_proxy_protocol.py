"""Headers of the PROXY protocol, byte by byte after proxy-protocol.txt §2.1 and §2.2."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.ul.proxy_protocol import MAXIMUM_BYTES, ProxyHeader, ProxyProtocolError

SIGNATURE = bytes.fromhex("0D0A0D0A 000D0A51 5549540A")
V4 = "C0000201 C6336402 A17C 0068"  # 192.0.2.1:41340 -> 198.51.100.2:104
V6 = "20010DB8 00000000 00000000 00000001" + "20010DB8 00000000 00000000 00000002" + "A17C 0068"


def v2(text):
    return SIGNATURE + bytes.fromhex(text)


HEADERS = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 41340 104\r\n", ("192.0.2.1", 41340)),
    (b"PROXY TCP6 2001:DB8::1 2001:db8::2 65535 0\r\n", ("2001:db8::1", 65535)),
    (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        b" 65535 65535\r\n",
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
    ),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN whatever it is\r\n", None),
    (v2("21 11 000C" + V4), ("192.0.2.1", 41340)),
    (v2("21 21 0024" + V6), ("2001:db8::1", 41340)),
    (v2("20 00 0000"), None),  # LOCAL: a health check of the proxy
    (v2("20 11 000C" + V4), None),
    (v2("20 00 0003 FFFFFF"), None),  # what LOCAL carries means nothing
    (v2("21 00 0000"), None),  # UNSPEC
    (v2("21 31 00D8" + "00" * 216), None),  # UNIX
    # TLVs: ALPN "h2", then two bytes of PP2_TYPE_NOOP
    (v2("21 11 0016" + V4 + "01 0002 6832" + "04 0002 0000"), ("192.0.2.1", 41340)),
]


@pytest.mark.parametrize(("header", "source"), HEADERS)
def test_headers(header, source):
    parsed = ProxyHeader()
    assert parsed.receive(header) == len(header)
    assert (parsed.complete, parsed.source) == (True, source)


@given(st.sampled_from(HEADERS), st.binary(max_size=40), st.lists(st.integers(1, 60)))
def test_any_split_takes_the_header_and_nothing_of_what_follows(case, following, sizes):
    header, source = case
    stream, parsed, taken = header + following, ProxyHeader(), 0
    for size in [*sizes, *[1] * len(stream)]:
        if parsed.complete:
            break
        count = parsed.receive(stream[taken : taken + size])
        assert count > 0
        taken += count
    assert (taken, parsed.complete, parsed.source) == (len(header), True, source)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01\x00\x00\x00\x00\xcd", "expected a PROXY header, something else came"),
        (b"GET / HTTP/1.1\r\n", "something else came"),
        (b"\x16\x03\x01", "something else came"),
        (b"PROXY\r\n", "something else came"),
        (b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "something else came"),
        (SIGNATURE[:-1] + b"\r", "something else came"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "malformed PROXY line"),
        (b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", "malformed PROXY line"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", "malformed PROXY line"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", "malformed PROXY line"),
        (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", "malformed PROXY line"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", "port in a PROXY line above 65535"),
        (b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n", "malformed address"),
        (b"PROXY TCP4 2001:db8::1 192.0.2.2 1 2\r\n", "malformed address"),
        (b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", "malformed address"),
        (b"PROXY UNKNOWN" + b"x" * 93, None),  # 106 bytes, the line may still end
        (b"PROXY UNKNOWN" + b"x" * 94, "no end of the PROXY line within 107 bytes"),
        (v2("11"), "PROXY version and command 0x11"),
        (v2("22"), "PROXY version and command 0x22"),
        (v2("21 12"), "family and transport 0x12"),
        (v2("21 41"), "family and transport 0x41"),
        (v2("21 11 000B"), "PROXY addresses of 11 bytes"),
        (v2("21 11 1001"), "PROXY header of 16 + 4097 bytes"),
        (v2("20 00 FFFF"), "PROXY header of 16 + 65535 bytes"),
        (v2("21 11 000E" + V4 + "01 00"), "a TLV of a PROXY header goes beyond its end"),
        (v2("21 11 0010" + V4 + "01 0002 68"), "a TLV of a PROXY header goes beyond its end"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_no_header_is_refused_as_soon_as_it_shows(data, message, at_once):
    parsed = ProxyHeader()
    pieces = [data] if at_once else [data[at : at + 1] for at in range(len(data))]
    if message is None:
        assert sum(parsed.receive(piece) for piece in pieces) == len(data)
        assert not parsed.complete
        return
    with pytest.raises(ProxyProtocolError, match=re.escape(message)):
        [parsed.receive(piece) for piece in pieces]


@given(
    st.binary(max_size=300)
    | st.binary(max_size=300).map(SIGNATURE.__add__)
    | st.binary().map(b"PROXY ".__add__)
)
def test_arbitrary_bytes_give_an_address_or_an_error(data):
    parsed = ProxyHeader()
    try:
        assert 0 <= parsed.receive(data) <= min(len(data), MAXIMUM_BYTES)
    except ProxyProtocolError:
        assert not parsed.complete
