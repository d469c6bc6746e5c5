"""Native encodings into each other: bytes by hand, a simple and slow encoder, any split, and broken senders."""

import struct
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.dicom.data_set_converter import MAXIMUM_NESTING, DataSetConverter, TranscodeError
from harmony.dicom.json_model import decode_data_set

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
SYNTAXES = [IMPLICIT, EXPLICIT, BIG_ENDIAN]


def convert(data, source, target, *, cuts=()):
    """What comes out for `data` in pieces that end at the cuts; each piece is overwritten once it has been fed."""
    converter = DataSetConverter(source, target)
    converted = bytearray()
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        buffer = bytearray(data[start:end])
        for piece in converter.feed(memoryview(buffer)):
            converted += piece
        buffer[:] = b"\xee" * len(buffer)
    for piece in converter.finish():
        converted += piece
    return bytes(converted)


# --- Bytes by hand ------------------------------------------------------------------------------------------

# A sequence of undefined length with an item of undefined length and an empty one, a private creator and a private
# element of unknown VR, numbers of each size, tags, and signed pixels of 16 bits: (Implicit VR Little Endian,
# Explicit VR Little Endian, Explicit VR Big Endian) of each.
BY_HAND = {
    "UI": (
        "0800 1600 04000000 312e3200",
        "0800 1600 5549 0400 312e3200",
        "0008 0016 5549 0004 312e3200",
    ),
    "SQ": (
        "0800 4011 ffffffff feff00e0 ffffffff 0800 5511 04000000 312e3300 feff0de0 00000000"
        "feff00e0 00000000 feffdde0 00000000",
        "0800 4011 5351 0000 ffffffff feff00e0 ffffffff 0800 5511 5549 0400 312e3300 feff0de0 00000000"
        "feff00e0 00000000 feffdde0 00000000",
        "0008 1140 5351 0000 ffffffff fffee000 ffffffff 0008 1155 5549 0004 312e3300 fffee00d 00000000"
        "fffee000 00000000 fffee0dd 00000000",
    ),
    "empty SQ": (
        "0800 1511 00000000",
        "0800 1511 5351 0000 00000000",
        "0008 1115 5351 0000 00000000",
    ),
    "private creator": (
        "0900 1000 04000000 41434d45",
        "0900 1000 4c4f 0400 41434d45",
        "0009 0010 4c4f 0004 41434d45",
    ),
    "UN": (
        "0900 0110 04000000 01020304",
        "0900 0110 554e 0000 04000000 01020304",
        "0009 1001 554e 0000 00000004 01020304",
    ),
    "UL": (
        "1800 1660 04000000 01020304",
        "1800 1660 554c 0400 01020304",
        "0018 6016 554c 0004 04030201",
    ),
    "FD": (
        "1800 8790 10000000 0102030405060708 1112131415161718",
        "1800 8790 4644 1000 0102030405060708 1112131415161718",
        "0018 9087 4644 0010 0807060504030201 1817161514131211",
    ),
    "AT": (
        "2800 0900 04000000 1800 6310",
        "2800 0900 4154 0400 1800 6310",
        "0028 0009 4154 0004 0018 1063",
    ),
    "Bits Allocated, Pixel Representation": (
        "2800 0001 02000000 1000 2800 0301 02000000 0100",
        "2800 0001 5553 0200 1000 2800 0301 5553 0200 0100",
        "0028 0100 5553 0002 0010 0028 0103 5553 0002 0001",
    ),
    "US or SS": (
        "2800 0601 02000000 feff",
        "2800 0601 5353 0200 feff",
        "0028 0106 5353 0002 fffe",
    ),
    "OW": (
        "e07f 1000 06000000 010203040506",
        "e07f 1000 4f57 0000 06000000 010203040506",
        "7fe0 0010 4f57 0000 00000006 020104030605",
    ),
    "Data Set Trailing Padding": (
        "fcff fcff 02000000 0000",
        "fcff fcff 4f42 0000 02000000 0000",
        "fffc fffc 4f42 0000 00000002 0000",
    ),
}


def by_hand(syntax):
    return bytes.fromhex("".join(encoded[SYNTAXES.index(syntax)] for encoded in BY_HAND.values()))


@pytest.mark.parametrize("target", SYNTAXES)
@pytest.mark.parametrize("source", SYNTAXES)
def test_each_pair(source, target):
    data, expected = by_hand(source), by_hand(target)
    assert convert(data, source, target).hex() == expected.hex()
    for size in (1, 2, 3, 7, 13, 64):
        assert convert(data, source, target, cuts=range(size, len(data), size)) == expected


@pytest.mark.parametrize("name", sorted(BY_HAND.keys() - {"US or SS"}))  # which depends on another
@pytest.mark.parametrize("target", SYNTAXES)
@pytest.mark.parametrize("source", SYNTAXES)
def test_each_element(source, target, name):
    encoded = [bytes.fromhex(text) for text in BY_HAND[name]]
    converted = convert(encoded[SYNTAXES.index(source)], source, target)
    assert converted.hex() == encoded[SYNTAXES.index(target)].hex()


CASES = {
    "sequences and items of defined length become ones of undefined length": (
        EXPLICIT,
        IMPLICIT,
        "0800 4011 5351 0000 1c000000 feff00e0 0c000000 0800 5511 5549 0400 312e3300 feff00e0 00000000"
        "0800 1600 5549 0400 312e3200",
        "0800 4011 ffffffff feff00e0 ffffffff 0800 5511 04000000 312e3300 feff0de0 00000000"
        "feff00e0 00000000 feffdde0 00000000 0800 1600 04000000 312e3200",
    ),
    "group lengths are dropped, at every level": (
        IMPLICIT,
        EXPLICIT,
        "0800 0000 04000000 28000000 0800 4011 14000000 feff00e0 0c000000 0800 0000 04000000 00000000",
        "0800 4011 5351 0000 ffffffff feff00e0 ffffffff feff0de0 00000000 feffdde0 00000000",
    ),
    "file meta is dropped": (
        EXPLICIT,
        BIG_ENDIAN,
        "0200 1000 5549 0400 312e3200 0800 1600 5549 0400 312e3200",
        "0008 0016 5549 0004 312e3200",
    ),
    "UN of undefined length is Implicit VR inside and stays so": (
        EXPLICIT,
        BIG_ENDIAN,
        "0900 0110 554e 0000 ffffffff feff00e0 ffffffff 0800 5511 04000000 312e3300 feff0de0 00000000"
        "feffdde0 00000000 0800 1600 5549 0400 312e3200",
        "0009 1001 554e 0000 ffffffff feff00e0 ffffffff 0800 5511 04000000 312e3300 feff0de0 00000000"
        "feffdde0 00000000 0008 0016 5549 0004 312e3200",
    ),
    "and is a sequence in Implicit VR": (
        BIG_ENDIAN,
        IMPLICIT,
        "0009 1001 554e 0000 ffffffff feff00e0 0a000000 0800 5111 02000000 3100 feffdde0 00000000"
        "0008 0016 5549 0004 312e3200",
        "0900 0110 ffffffff feff00e0 ffffffff 0800 5111 02000000 3100 feff0de0 00000000 feffdde0 00000000"
        "0800 1600 04000000 312e3200",
    ),
    "an unknown element of undefined length can only be a sequence": (
        IMPLICIT,
        BIG_ENDIAN,
        "0900 0110 ffffffff feff00e0 ffffffff 2800 1000 02000000 0102 feff0de0 00000000 feffdde0 00000000",
        "0009 1001 5351 0000 ffffffff fffee000 ffffffff 0028 0010 5553 0002 0201 fffee00d 00000000"
        "fffee0dd 00000000",
    ),
    "UN of a tag that the dictionary knows": (
        EXPLICIT,
        IMPLICIT,
        "2800 1000 554e 0000 02000000 0102",
        "2800 1000 02000000 0102",
    ),
    "UN stays little-endian": (
        EXPLICIT,
        BIG_ENDIAN,
        "2800 1000 554e 0000 02000000 0102",
        "0028 0010 554e 0000 00000002 0102",
    ),
    "private VRs that the sender knows": (
        EXPLICIT,
        BIG_ENDIAN,
        "0900 0110 5553 0400 01020304 0900 0210 5356 0000 08000000 0102030405060708",
        "0009 1001 5553 0004 02010403 0009 1002 5356 0000 00000008 0807060504030201",
    ),
    "VRs of no edition": (
        EXPLICIT,
        BIG_ENDIAN,
        "0800 1600 5549 0000 0900 0110 3f3f 0200 0102 0900 0210 5a5a 0000 02000000 0102 1000 1000 2020 0200 4142",
        "0008 0016 5549 0000 0009 1001 554e 0000 00000002 0102 0009 1002 554e 0000 00000002 0102"
        "0010 0010 504e 0002 4142",
    ),
    "odd lengths stay as they are, and so does half a word": (
        EXPLICIT,
        BIG_ENDIAN,
        "0800 1600 5549 0300 312e32 2800 1000 5553 0300 010203",
        "0008 0016 5549 0003 312e32 0028 0010 5553 0003 020103",
    ),
    "unsigned without a Pixel Representation": (
        IMPLICIT,
        EXPLICIT,
        "2800 0601 02000000 feff",
        "2800 0601 5553 0200 feff",
    ),
    "signed as an outer data set says": (
        IMPLICIT,
        EXPLICIT,
        "2800 0301 02000000 0100 2800 0030 ffffffff feff00e0 ffffffff 2800 0230 06000000 0000 feff 1000"
        "feff0de0 00000000 feffdde0 00000000",
        "2800 0301 5553 0200 0100 2800 0030 5351 0000 ffffffff feff00e0 ffffffff"
        "2800 0230 5353 0600 0000 feff 1000 feff0de0 00000000 feffdde0 00000000",
    ),
    "pixels of 8 bits are bytes": (
        IMPLICIT,
        BIG_ENDIAN,
        "2800 0001 02000000 0800 e07f 1000 04000000 01020304",
        "0028 0100 5553 0002 0008 7fe0 0010 4f42 0000 00000004 01020304",
    ),
    "but not if the sender says words": (
        BIG_ENDIAN,
        EXPLICIT,
        "0028 0100 5553 0002 0008 7fe0 0010 4f57 0000 00000004 02010403",
        "2800 0001 5553 0200 0800 e07f 1000 4f57 0000 04000000 01020304",
    ),
    "pixels of 16 bits are words, also those of an icon inside": (
        EXPLICIT,
        BIG_ENDIAN,
        "2800 0001 5553 0200 0800 8800 0002 5351 0000 ffffffff feff00e0 ffffffff"
        "2800 0001 5553 0200 1000 e07f 1000 4f42 0000 02000000 0102 feff0de0 00000000 feffdde0 00000000"
        "e07f 1000 4f42 0000 02000000 0102",
        "0028 0100 5553 0002 0008 0088 0200 5351 0000 ffffffff fffee000 ffffffff"
        "0028 0100 5553 0002 0010 7fe0 0010 4f57 0000 00000002 0201 fffee00d 00000000 fffee0dd 00000000"
        "7fe0 0010 4f42 0000 00000002 0102",
    ),
    "pixels of 32 bits are words of 16 (PS3.5 §8.1.1)": (
        IMPLICIT,
        BIG_ENDIAN,
        "2800 0001 02000000 2000 e07f 1000 04000000 01020304",
        "0028 0100 5553 0002 0020 7fe0 0010 4f57 0000 00000004 02010403",
    ),
    "float pixels, lookup tables, overlays, waveforms": (
        IMPLICIT,
        BIG_ENDIAN,
        "2800 0630 04000000 01020304 0054 1010 04000000 01020304 0060 0030 04000000 01020304"
        "e07f 0800 04000000 01020304 e07f 0900 08000000 0102030405060708",
        "0028 3006 4f57 0000 00000004 02010403 5400 1010 4f57 0000 00000004 02010403"
        "6000 3000 4f57 0000 00000004 02010403 7fe0 0008 4f46 0000 00000004 04030201"
        "7fe0 0009 4f44 0000 00000008 0807060504030201",
    ),
    "an item delimiter is missing": (
        EXPLICIT,
        IMPLICIT,
        "0800 4011 5351 0000 ffffffff feff00e0 ffffffff 0800 5011 5549 0200 3100 feff00e0 00000000"
        "feffdde0 00000000",
        "0800 4011 ffffffff feff00e0 ffffffff 0800 5011 02000000 3100 feff0de0 00000000 feff00e0 00000000"
        "feffdde0 00000000",
    ),
    "a sequence delimiter is missing before the next element": (
        EXPLICIT,
        IMPLICIT,
        "0800 4011 5351 0000 ffffffff feff00e0 ffffffff feff0de0 00000000 1000 1000 504e 0200 4142",
        "0800 4011 ffffffff feff00e0 ffffffff feff0de0 00000000 feffdde0 00000000 1000 1000 02000000 4142",
    ),
    "an item of undefined length ends with its sequence": (
        EXPLICIT,
        IMPLICIT,
        "0800 4011 5351 0000 12000000 feff00e0 ffffffff 0800 5011 5549 0200 3100 1000 1000 504e 0200 4142",
        "0800 4011 ffffffff feff00e0 ffffffff 0800 5011 02000000 3100 feff0de0 00000000 feffdde0 00000000"
        "1000 1000 02000000 4142",
    ),
    "delimiters after what has a length": (
        EXPLICIT,
        IMPLICIT,
        "0800 4011 5351 0000 22000000 feff00e0 12000000 0800 5011 5549 0200 3100 feff0de0 00000000"
        "feffdde0 00000000 feffdde0 00000000 1000 1000 504e 0200 4142",
        "0800 4011 ffffffff feff00e0 ffffffff 0800 5011 02000000 3100 feff0de0 00000000 feffdde0 00000000"
        "1000 1000 02000000 4142",
    ),
    "Implicit VR sent as Explicit": (
        EXPLICIT,
        BIG_ENDIAN,
        "0800 1600 04000000 312e3200",
        "0008 0016 5549 0004 312e3200",
    ),
    "Explicit VR sent as Implicit": (
        IMPLICIT,
        BIG_ENDIAN,
        "0800 1600 5549 0400 312e3200",
        "0008 0016 5549 0004 312e3200",
    ),
    "Big Endian sent as Little Endian": (
        EXPLICIT,
        IMPLICIT,
        "0008 0016 5549 0004 312e3200",
        "0800 1600 04000000 312e3200",
    ),
    "Little Endian sent as Big Endian": (
        BIG_ENDIAN,
        IMPLICIT,
        "0800 1600 5549 0400 312e3200",
        "0800 1600 04000000 312e3200",
    ),
    "NULs at the end": (
        EXPLICIT,
        IMPLICIT,
        "0800 1600 5549 0400 312e3200 0000000000000000000000",
        "0800 1600 04000000 312e3200",
    ),
    "nothing": (EXPLICIT, IMPLICIT, "", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case):
    source, target, given_text, expected_text = CASES[case]
    data, expected = bytes.fromhex(given_text), bytes.fromhex(expected_text)
    assert convert(data, source, target).hex() == expected.hex()
    for size in (1, 3, 8):
        assert convert(data, source, target, cuts=range(size, len(data), size)) == expected


@pytest.mark.parametrize("target", [EXPLICIT, BIG_ENDIAN])
def test_values_too_long_for_their_length_field_are_unknown(target):
    long, short = b"\x01\x02" * 0x8000, b"\x01\x02" * 0x7FFF
    data = b"\x28\0\x10\0" + struct.pack("<I", len(long)) + long
    data += b"\x28\0\x11\0" + struct.pack("<I", len(short)) + short
    if target == EXPLICIT:
        expected = b"\x28\0\x10\0UN\0\0\0\0\1\0" + long + b"\x28\0\x11\0US\xfe\xff" + short
    else:  # UN is little-endian (PS3.5 §6.2.2 note 2)
        expected = b"\0\x28\0\x10UN\0\0\0\1\0\0" + long + b"\0\x28\0\x11US\xff\xfe" + b"\x02\x01" * 0x7FFF
    assert convert(data, IMPLICIT, target) == expected
    models = [
        decode_data_set(data, IMPLICIT, maximum_value_bytes=1 << 20),
        decode_data_set(expected, target, maximum_value_bytes=1 << 20),
    ]
    assert models[0] == models[1]


# --- Any data set -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """An element: `value` as little-endian words, or a list of items, which are lists of elements."""

    tag: int
    vr: str
    value: object
    defined: tuple[bool, ...] = (False,)
    """Whether the sequence, and each of its items in turn, has a length."""


WORDS = dict.fromkeys(("AT", "OW", "SS", "US"), 2) | dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4)
WORDS |= dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8)
LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}


def header(tag, vr, length, syntax):
    order = ">" if syntax == BIG_ENDIAN else "<"
    start = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT or not vr:
        return start + struct.pack(order + "I", length)
    if vr in LONG:
        return start + vr.encode() + b"\0\0" + struct.pack(order + "I", length)
    return start + vr.encode() + struct.pack(order + "H", length)


def encode(nodes, syntax):
    """As PS3.5 §7 describes it, in the simplest way."""
    return b"".join(encode_element(node, syntax) for node in nodes)


def encode_element(node, syntax):
    if isinstance(node.value, list):
        return encode_sequence(node, syntax)
    value, size = node.value, WORDS.get(node.vr, 1)
    if syntax == BIG_ENDIAN and size > 1:
        words = [value[at : at + size] for at in range(0, len(value), size)]
        value = b"".join(word[::-1] if len(word) == size else word for word in words)
    return header(node.tag, node.vr, len(value), syntax) + value


def encode_sequence(node, syntax):
    inside = IMPLICIT if node.vr == "UN" else syntax
    items = b""
    for number, item in enumerate(node.value, 1):
        content = encode(item, inside)
        if node.defined[number % len(node.defined)] or not content:
            items += header(0xFFFEE000, "", len(content), inside) + content
        else:
            items += header(0xFFFEE000, "", 0xFFFFFFFF, inside) + content + header(0xFFFEE00D, "", 0, inside)
    if node.defined[0] or not items:
        return header(node.tag, node.vr, len(items), syntax) + items
    return header(node.tag, node.vr, 0xFFFFFFFF, syntax) + items + header(0xFFFEE0DD, "", 0, inside)


def delimited(nodes):
    """The same with sequences and items of undefined length throughout: what a conversion writes."""
    return [
        replace(node, value=[delimited(item) for item in node.value], defined=(False,))
        if isinstance(node.value, list)
        else node
        for node in nodes
    ]


# Every VR, with tags for which the dictionary says it without conditions.
TAGS = {
    0x00080008: "CS",
    0x00080016: "UI",
    0x00080020: "DA",
    0x0008002A: "DT",
    0x00080030: "TM",
    0x00080050: "SH",
    0x00080054: "AE",
    0x00080119: "UC",
    0x00080120: "UR",
    0x00080300: "SQ",
    0x00081140: "SQ",
    0x00082112: "SQ",
    0x00090010: "LO",
    0x00091010: "UN",
    0x00091011: "UN",
    0x00100010: "PN",
    0x00100020: "LO",
    0x00101010: "AS",
    0x001021B0: "LT",
    0x00180050: "DS",
    0x00186016: "UL",
    0x00186020: "SL",
    0x00189087: "FD",
    0x00189219: "SS",
    0x00200013: "IS",
    0x00204000: "LT",
    0x00280009: "AT",
    0x00280010: "US",
    0x00281221: "OW",
    0x0040A160: "UT",
    0x00420011: "OB",
    0x00660016: "OF",
    0x00660022: "OD",
    0x00660040: "OL",
    0x00700022: "FL",
    0x00720082: "SV",
    0x00720083: "UV",
    0x00880140: "UI",
    0x40000010: "LT",
    0x7FE00001: "OV",
}

TEXT = st.text("0123456789.", max_size=8).map(lambda text: (text + " " * (len(text) % 2)).encode())


@st.composite
def data_sets(draw, depth=2):
    nodes = []
    for tag in sorted(draw(st.lists(st.sampled_from(sorted(TAGS)), unique=True, max_size=8))):
        vr = TAGS[tag]
        if vr == "SQ":
            items = draw(st.lists(data_sets(depth - 1), max_size=3)) if depth else []
            nodes.append(Node(tag, vr, items, tuple(draw(st.lists(st.booleans(), min_size=1, max_size=3)))))
        else:
            size = draw(st.integers(0, 5)) * WORDS.get(vr, 2)
            value = draw(st.binary(min_size=size, max_size=size) if vr in LONG or vr in WORDS else TEXT)
            nodes.append(Node(tag, vr, value))
    return nodes


@st.composite
def images(draw):
    """A data set whose first element shows the encoding, with pixel data."""
    signed, bits = draw(st.booleans()), draw(st.sampled_from([8, 16, 32]))
    pixels = draw(st.binary(max_size=40)) * 2
    nodes = [
        Node(0x00080005, "CS", b"ISO_IR 100"),
        Node(0x00280100, "US", struct.pack("<H", bits)),
        Node(0x00280103, "US", struct.pack("<H", signed)),
        Node(0x00280120, "SS" if signed else "US", draw(st.binary(min_size=2, max_size=2))),
        Node(0x7FE00010, "OB" if bits == 8 else "OW", pixels),
    ]
    return sorted([*draw(data_sets()), *nodes], key=lambda node: node.tag)


def cuts_of(fractions, size):
    return sorted({int(fraction * size) for fraction in fractions})


@settings(max_examples=300, deadline=None)
@given(images(), st.sampled_from(SYNTAXES), st.sampled_from(SYNTAXES), st.lists(st.floats(0, 1), max_size=8))
def test_any_data_set(nodes, source, target, fractions):
    """Bytes as the simple encoder writes them, for any split of the input; the same model; and the way back."""
    data = encode(nodes, source)
    expected = encode(delimited(nodes), target)
    assert convert(data, source, target, cuts=cuts_of(fractions, len(data))) == expected
    models = [
        decode_data_set(data, source, stop_before=1 << 32),
        decode_data_set(expected, target, stop_before=1 << 32),
    ]
    if IMPLICIT in (source, target):  # where pixels of 8 bits are OW too
        for model in models:
            model["7FE00010"] = {"vr": "OW"}
    assert models[0] == models[1]
    assert convert(expected, target, source) == encode(delimited(nodes), source)


@settings(max_examples=100, deadline=None)
@given(images(), st.sampled_from([EXPLICIT, BIG_ENDIAN]), st.sampled_from(SYNTAXES))
def test_sequences_of_unknown_vr(nodes, source, target):
    """UN of undefined length, Implicit VR inside: the same wherever it is, a sequence in Implicit VR."""
    unknown = Node(0x00091020, "UN", [delimited(nodes)])
    whole = [Node(0x00080005, "CS", b"ISO_IR 100"), unknown, Node(0x00100020, "LO", b"4711")]
    assert convert(encode(whole, source), source, target) == encode(whole, target)


# --- Values larger than a window ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", SYNTAXES)
@pytest.mark.parametrize("source", SYNTAXES)
@pytest.mark.parametrize("size", [65_530, 65_536, 300_001])
def test_long_values(source, target, size):
    value = bytes(range(251)) * (size // 251) + bytes(size % 251)
    nodes = [
        Node(0x00080016, "UI", b"1.2\0"),
        Node(0x00081140, "SQ", [[Node(0x00281221, "OW", value), Node(0x00420011, "OB", value)]]),
        Node(0x00660016, "OF", value),
        Node(0x7FE00010, "OW", value),
    ]
    data, expected = encode(nodes, source), encode(nodes, target)
    assert convert(data, source, target) == expected
    assert convert(data, source, target, cuts=range(65_537, len(data), 65_537)) == expected


def test_pixel_data_of_the_same_byte_order_is_not_copied():
    pixels = memoryview(bytes(300_000))
    converter = DataSetConverter(EXPLICIT, IMPLICIT)
    assert b"".join(converter.feed(header(0x7FE00010, "OW", len(pixels), EXPLICIT))) == header(
        0x7FE00010, "OW", len(pixels), IMPLICIT
    )
    assert {piece.obj is pixels.obj for piece in converter.feed(pixels)} == {True}


# --- Hostile ------------------------------------------------------------------------------------------------

BROKEN = {
    "half a header": ("0800 1600 5549", "the data set ends inside an element that begins at byte 0"),
    "half a long header": ("0800 1600 554e 0000 0400", "ends inside an element that begins at byte 0"),
    "half a value": ("0800 1600 5549 0400 312e", "the data set ends inside a value, 2 bytes before its end"),
    "half a remembered value": ("0800 1600 5549 0000 2800 0001 5553 0200 10", "begins at byte 8"),
    "no end of a sequence": (
        "0800 4011 5351 0000 ffffffff feff00e0 00000000",
        "the data set ends inside a sequence, at byte 20",
    ),
    "no end of an item": (
        "0800 4011 5351 0000 ffffffff feff00e0 ffffffff",
        "the data set ends inside a sequence, at byte 20",
    ),
    "sequence longer than the data": (
        "0800 4011 5351 0000 20000000 feff00e0 00000000",
        "the data set ends inside a sequence, at byte 20",
    ),
    "value longer than its item": (
        "0800 4011 5351 0000 12000000 feff00e0 0a000000 0800 5011 5549 0400 31003100",
        "at byte 20: 00081150 has 4 bytes and does not end inside its item",
    ),
    "sequence longer than its item": (
        "0800 4011 5351 0000 14000000 feff00e0 0c000000 0800 1511 5351 0000 02000000",
        "at byte 20: sequence 00081115 does not end inside its item",
    ),
    "item longer than its sequence": (
        "0800 4011 5351 0000 08000000 feff00e0 0c000000",
        "at byte 12: an item of 12 bytes does not end inside its sequence",
    ),
    "item with bytes left over": (
        "0800 4011 5351 0000 0c000000 feff00e0 04000000 08005011",
        "at byte 20: an item has 4 bytes too many for its elements",
    ),
    "sequence with bytes left over": (
        "0800 4011 5351 0000 04000000 feff00e0 00000000",
        "at byte 12: a sequence has 4 bytes too many for its items",
    ),
    "no item in a sequence": (
        "0800 4011 5351 0000 08000000 0800 5011 5549 0000",
        "at byte 12: 00081150 in a sequence, expected an item",
    ),
    "item outside a sequence": (
        "0800 1600 5549 0400 312e3200 feff00e0 00000000",
        "at byte 12: FFFEE000, expected an element",
    ),
    "encapsulated pixel data": (
        "0800 1600 5549 0400 312e3200 e07f 1000 4f42 0000 ffffffff feff00e0 00000000 feffdde0 00000000",
        "at byte 12: 7FE00010 is encapsulated pixel data, which the transfer syntax does not have",
    ),
    "text of undefined length": (
        "0800 1901 5543 0000 ffffffff feffdde0 00000000",
        "at byte 0: 00080119 is a UC of undefined length",
    ),
    "command element of undefined length": (
        "0000 1001 554e 0000 ffffffff feffdde0 00000000",
        "at byte 0: 00000110 is a UN of undefined length",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_contradictions(case):
    given_text, message = BROKEN[case]
    data = bytes.fromhex(given_text)
    for cuts in ((), range(1, len(data))):
        with pytest.raises(TranscodeError) as caught:
            convert(data, EXPLICIT, IMPLICIT, cuts=cuts)
        assert message in str(caught.value)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_nesting_is_bounded(syntax):
    level = header(0x00081140, "SQ", 0xFFFFFFFF, syntax) + header(0xFFFEE000, "", 0xFFFFFFFF, syntax)
    end = header(0xFFFEE00D, "", 0, syntax) + header(0xFFFEE0DD, "", 0, syntax)
    deepest = level * MAXIMUM_NESTING + end * MAXIMUM_NESTING
    assert convert(deepest, syntax, syntax) == deepest
    with pytest.raises(TranscodeError, match=f"nested deeper than {MAXIMUM_NESTING} levels"):
        convert(level * 100_000, syntax, BIG_ENDIAN)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), images().map(lambda nodes: encode(nodes, EXPLICIT))),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=5),
    st.sampled_from(SYNTAXES),
    st.sampled_from(SYNTAXES),
    st.lists(st.floats(0, 1), max_size=5),
)
def test_any_bytes(data, changes, source, target, fractions):
    """Converted or refused, and the same for any split."""
    changed = bytearray(data)
    for place, value in changes:
        if changed:
            changed[int(place * len(changed))] = value
    results = []
    for cuts in ((), cuts_of(fractions, len(changed))):
        try:
            results.append(convert(bytes(changed), source, target, cuts=cuts))
        except TranscodeError as error:
            results.append(str(error))
    assert results[0] == results[1]
