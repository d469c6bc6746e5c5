"""The inputs that fuzzing starts from: `python -m tests.fuzz.seeds` writes them to `corpus/TARGET/seed-N`.

Small examples of what each target reads, and of what is wrong in an interesting way. They lie in the repository beside
the inputs that fuzzing has found (`found-...`), which this leaves alone.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from harmony.dicom.data_set_encoder import encode_data_set
from harmony.dimse.command import CEchoRQ, CFindRSP, CGetRSP, CMoveRQ, CStoreRQ, CStoreRSP, NEventReportRQ
from harmony.dimse.message import encode_message
from harmony.dimse.part10 import encode_file_meta
from harmony.gateway.default_config import DEFAULT_CONFIG
from harmony.jmix.reader import HASH_SKIPPED
from harmony.ul.items import (
    AsynchronousOperationsWindow,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    ProposedContext,
    RoleSelection,
    UserIdentityRQ,
    UserInformation,
)
from harmony.ul.pdu import Abort, AssociateAC, AssociateRJ, AssociateRQ, ReleaseRP, ReleaseRQ
from tests.fuzz.target import CORPUS
from tests.fuzz.targets.archive import ENTITY
from tests.fuzz.targets.dicom import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, NATIVE, SYNTAXES, TERMS
from tests.fuzz.targets.ul import ANSWER

EXAMPLES = Path(__file__).parents[2] / "examples"

CT = "1.2.840.10008.5.1.4.1.1.2"


def _assertions() -> Iterator[bytes]:
    """SAML 2.0 core §2.3.3, not signed yet."""
    for conditions, subject in (
        ('NotOnOrAfter="2026-05-01T12:05:00Z"', "<s:NameID>alice</s:NameID>"),
        (
            'NotBefore="2026-05-01T12:00:00.000Z" NotOnOrAfter="2026-05-02T00:00:00+02:00"',
            "<s:NameID>a</s:NameID>",
        ),
        ("", "<s:EncryptedID/>"),
    ):
        yield (
            '<s:Assertion xmlns:s="urn:oasis:names:tc:SAML:2.0:assertion" Version="2.0" ID="_1">'
            f"<s:Issuer>urn:idp</s:Issuer><s:Subject>{subject}"
            '<s:SubjectConfirmation Method="urn:oasis:names:tc:SAML:2.0:cm:bearer">'
            '<s:SubjectConfirmationData Recipient="urn:here"/></s:SubjectConfirmation></s:Subject>'
            f"<s:Conditions {conditions}><s:AudienceRestriction><s:Audience>urn:here</s:Audience>"
            "</s:AudienceRestriction></s:Conditions></s:Assertion>"
        ).encode()
    yield b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>'


def _pdus() -> list[bytes]:
    information = UserInformation(
        16384,
        "1.2.3",
        "HARMONY",
        AsynchronousOperationsWindow(4, 1),
        (RoleSelection(CT, True, True),),
        (ExtendedNegotiation("1.2.840.10008.5.1.4.1.2.2.1", b"\1\1\1"),),
        (CommonExtendedNegotiation(CT, "1.2.840.10008.4.2", ("1.2.3",)),),
        UserIdentityRQ(2, b"name", b"passcode", True),
    )
    contexts = (
        ProposedContext(1, "1.2.840.10008.1.1", (IMPLICIT,)),
        ProposedContext(3, CT, (EXPLICIT, IMPLICIT, "1.2.840.10008.1.2.4.70")),
        ProposedContext(3, CT, (BIG_ENDIAN,)),
    )[:2]
    request = AssociateRQ("CALLED", "CALLING", contexts, information)
    assert isinstance(ANSWER, AssociateAC)
    return [
        request.encode(),
        ANSWER.encode(),
        AssociateRJ(1, 1, 7).encode(),
        encode_message(1, CEchoRQ(1).encode(), maximum_length=16384),
        encode_message(
            1, CStoreRQ(7, CT, "1.2.3").encode(), b"\x08\0\x16\0UI\2\x001\0" * 9, maximum_length=64
        ),
        ReleaseRQ().encode(),
        ReleaseRP().encode(),
        Abort(2, 6).encode(),
    ]


def _upper_layer() -> Iterator[bytes]:
    request, accept, reject, echo, store, release, released, abort = _pdus()
    for setting, sent in (
        (0, request + echo + store + release),
        (0, request + abort + echo),
        (0, b"GET / HTTP/1.1\r\n"),
        (1, accept + echo + abort),
        (1, reject),
        (2, echo + store[:-3]),
        (2, store + release + echo),
        (6, store + released),
        (6, release + released),
        (7, store + release + released),
        (10, release + echo),
        (2, request),
        (2, b"\4\0\0\0\0\2\0\0"),
        (0, request.replace(b"\1\0", b"\1\0", 1)[:6] + b"\0\2" + request[8:]),
    ):
        yield bytes((setting,)) + sent


def _image(frames: int = 2, bits: int = 16, pixels: bytes = bytes(16)) -> dict[str, object]:
    return {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"vr": "UI", "Value": ["1.2.3.4.5"]},
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.3.4"]},
        "00280002": {"vr": "US", "Value": [1]},
        "00280004": {"vr": "CS", "Value": ["MONOCHROME2"]},
        "00280008": {"vr": "IS", "Value": [frames]},
        "00280010": {"vr": "US", "Value": [2]},
        "00280011": {"vr": "US", "Value": [2]},
        "00280100": {"vr": "US", "Value": [bits]},
        "7FE00010": {"vr": "OW", "InlineBinary": base64.b64encode(pixels).decode()},
    }


def _every_vr() -> dict[str, object]:
    return {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 100"]},
        "00080020": {"vr": "DA", "Value": ["20240115"]},
        "00080030": {"vr": "TM", "Value": ["101500.25"]},
        "0008002A": {"vr": "DT", "Value": ["20240115101500+0100"]},
        "00081140": {"vr": "SQ", "Value": [{"00081150": {"vr": "UI", "Value": [CT]}}, {}]},
        "00081160": {"vr": "IS", "Value": [1, 2]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Jörg", "Phonetic": "x"}]},
        "00101010": {"vr": "AS", "Value": ["042Y"]},
        "00101030": {"vr": "DS", "Value": [70.5]},
        "00181624": {"vr": "UL", "Value": [1]},
        "00189810": {"vr": "FD", "Value": [0.5]},
        "00200062": {"vr": "CS", "Value": ["L"]},
        "00204000": {"vr": "LT", "Value": ["a\\b"]},
        "00280009": {"vr": "AT", "Value": ["00181063"]},
        "00281052": {"vr": "DS", "Value": [-1024]},
        "00287FE0": {"vr": "UR", "Value": ["http://x/"]},
        "00291010": {"vr": "UN", "InlineBinary": "AAEC"},
        "00400244": {"vr": "DA"},
    }


def _undefined_lengths() -> bytes:
    """A sequence and an item of undefined length, an unknown VR of undefined length, and padding."""
    return (
        struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        + struct.pack("<HH2sH", 0x0008, 0x1150, b"UI", 4)
        + b"1.2\0"
        + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        + struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 8)
        + struct.pack("<HHI", 0x0008, 0x0005, 0)
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        + struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 2)
        + bytes(2)
    )


def _encapsulated(table: bytes, *fragments: bytes, frames: int = 2) -> bytes:
    head = {key: element for key, element in _image(frames, 8).items() if key != "7FE00010"}
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    for item in (table, *fragments):
        pixels += struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    return encode_data_set(head, EXPLICIT) + pixels + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _data_sets() -> Iterator[bytes]:
    """With the number of their transfer syntax in front."""
    for model in (_every_vr(), _image(), ENTITY):
        for number, syntax in enumerate(NATIVE):
            yield bytes((number,)) + encode_data_set(model, syntax)
    yield b"\1" + _undefined_lengths()
    yield b"\0" + encode_data_set(_every_vr(), EXPLICIT)
    yield b"\1" + encode_data_set(_image(), IMPLICIT)
    yield b"\3" + zlib.compress(encode_data_set(_image(), EXPLICIT))
    meta = encode_file_meta(
        transfer_syntax_uid=EXPLICIT, media_storage_sop_class_uid=CT, media_storage_sop_instance_uid="1.2.3"
    )
    yield b"\1" + meta + encode_data_set(_image(), EXPLICIT)
    yield b"\x04" + _encapsulated(b"", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xd9")


def _frames() -> Iterator[bytes]:
    for number in (0, 1, 4):
        encoded = encode_data_set(_image(), SYNTAXES[number] if number < 4 else EXPLICIT)
        yield bytes((number, 0)) + encoded
        yield bytes((number, 2)) + encoded
    yield b"\1\0" + encode_data_set(_image(3, 1, b"\x5a\xff"), EXPLICIT)
    yield b"\4\0" + _encapsulated(struct.pack("<II", 0, 12), b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xd9")
    yield b"\4\x12" + _encapsulated(b"", b"\xff\xd8\xff\xe0", b"more", b"\xff\xd8\xff\xd9")
    yield b"\5\0" + _encapsulated(b"", b"rle1", b"rle2")
    yield b"\6\0" + _encapsulated(b"", b"\xff\x4f\xff\x51", b"rest", frames=1)


def _commands() -> list[bytes]:
    return [
        message.encode()
        for message in (
            CEchoRQ(1),
            CStoreRQ(7, CT, "1.2.3", 0, "MOVER", 3),
            CStoreRSP(7, 0xA700, CT, "1.2.3", "out of resources", (0x00080016,)),
            CFindRSP(2, 0xFF00),
            CGetRSP(3, 0xFF00, "", 5, 1, 0, 0),
            CMoveRQ(4, "1.2.840.10008.5.1.4.1.2.2.2", "DEST"),
            NEventReportRQ(5, "1.2.3", "1.2.4", 1),
        )
    ]


def _zip(compression: int, *, names: Iterable[str] = ("a/b.txt", "c")) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"content " * 4, compression)
    return content.getvalue()


def _tar(form: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form, encoding="utf-8") as archive:
        for name in ("./", "a", "b" * 60 + "/" + "c" * 60):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name == "./" else tarfile.REGTYPE
            member.size = 0 if name == "./" else 5
            archive.addfile(member, io.BytesIO(b"hello"))
    return content.getvalue()[:6144]


MANIFEST = {
    "id": "c79f13e8-86c5-482b-85aa-118660c46f7f",
    "type": "envelope",
    "security": {"payload_hash": HASH_SKIPPED},
}
METADATA = {"studies": {"1.2.3": {"series": {}}}}
FILES = [{"file": "files/report.pdf", "size_bytes": 5, "hash": ""}]


def _request(line: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join((line, "Host: a", *fields, "", "")).encode() + body


HTTP = (
    _request("GET /read HTTP/1.1") + _request("GET /skip HTTP/1.0"),
    _request("POST /read HTTP/1.1", "Content-Length: 5", body=b"hello")
    + _request("GET / HTTP/1.1", "Connection: close"),
    _request(
        "POST /stream HTTP/1.1",
        "Transfer-Encoding: chunked",
        body=b"5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nT: x\r\n\r\n",
    ),
    _request("POST /json HTTP/1.1", "Content-Length: 11", "Expect: 100-continue", body=b'{"a":[1,2]}'),
    _request(
        "POST /parts HTTP/1.1",
        "Content-Type: multipart/related; boundary=b",
        "Content-Length: 34",
        body=b"--b\r\nContent-Type: a/b\r\n\r\nx\r\n--b--",
    ),
    _request("HEAD /refuse?x=%20 HTTP/1.1"),
    _request("OPTIONS * HTTP/1.1"),
    _request("GET /accept HTTP/1.1", "Accept: application/json;q=0.5, */*;q=0.1"),
    _request("POST /skip HTTP/1.1", "Content-Length: 5000", body=b"abc"),
    b"\x16\x03\x01\x02\x00\x01\x00",
    _request("GET /../x HTTP/1.1"),
)


def _lines(*lines: str) -> bytes:
    return "\n".join(lines).encode()


REQUESTS = (
    _lines(
        "/dicom-web/studies/1.2.3/frames/1,2,5?accept=application/dicom%2Bjson&x=%41",
        "application/json;q=0.5, */*",
        "gzip, zstd;q=0.5",
    ),
    _lines(
        "/",
        'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50, image/*;q=.2',
        "*",
        "bytes=0-99",
    ),
    _lines(
        "http://a/b?c=d+e",
        "multipart/related; type=application/dicom; transfer-syntax=*",
        "identity;q=0",
        "bytes=-5",
        'multipart/related; boundary="a b"',
        '"1"',
    ),
)

MULTIPARTS = (
    b"b\n--b\r\nContent-Type: application/dicom\r\n\r\nfirst\r\n--b\r\n\r\nsecond\r\n--b--\r\nepilogue",
    b"b\npreamble\n--b\nA: x\n y\n\none\n--b--",
    b"b\n--b  \r\n\r\n\r\n--b--",
    b"bound\n\r\n--bound\r\nA: 1\r\n\r\n\r\n--boun\r\n-\r\n--bound\r\n",
)

SEARCHES = (
    b"\0PatientName=DOE*&StudyDate=20240101-&00080061=CT&includefield=StudyDescription&limit=50&offset=100",
    b"\1StudyDate=20240101-20240201&StudyTime=10-&fuzzymatching=true&includefield=all",
    b"\2RequestAttributesSequence.ScheduledProcedureStepID=A1&StudyInstanceUID=1.2,1.3",
    b"\7TimezoneOffsetFromUTC=%2B0100&SeriesDescription=%22%22&emptyvaluematching=true&multiplevaluematching=true",
    b"\0PatientName=%E5%B1%B1*&accept=json&unknown=1&0040A370.00080050=1",
)

DIMSE_REQUESTS = (
    b'/find\n{"patient_name": "DOE*", "0020,000D": null, "00080060": {"vr": "CS", "Value": ["CT"]}, "limit": 5}',
    b'/get\n{"level": "SERIES", "query": {"StudyInstanceUID": "1.2", "SeriesInstanceUID": ["1.2.3", "1.2.4"]}}',
    b'/move?destination=AE\n{"StudyInstanceUID": "1.2", "priority": "HIGH"}',
    b'/\n{"command": {"message_id": 1, "sop_class_uid": "1.2.840.10008.5.1.4.1.2.2.1", "priority": "LOW", '
    b'"direction": "REQUEST"}, "identifier": {"PatientID": "1"}, '
    b'"query_metadata": {"PatientID": {"match_type": "EXACT"}}}',
    b"/find?PatientID=1&StudyDate=20240101-&limit=3",
    b"/echo",
    b'/find\n[{"RequestAttributesSequence": [{"ScheduledProcedureStepID": "x"}], "PatientName": {"Alphabetic": "A"}}]',
)  # fmt: skip

NAMES = (
    "Smith^J*\nSMITH^John",
    "Yamada^Tarou=山田^太郎\nYamada^Tarou=山田^太郎=やまだ^たろう",
    "Muller\nMüller^Jörg",
    "philip\nFilip^^^",
    "*^^?a*\nØrsted^Hans Christian",
)
DATES = (
    "\0\x8020240101-20240201",
    "\1\x801015-",
    "\2\x80202401-0500",
    "\2\x842024-2025",
    "\1\x7010:15:00.5",
    "\0\x802024.01.02",
)
WILD_CARDS = ("a*b?c\naxxbyc", "**?\nx", "?*?\nab", "*abc*abc*\nabcabc")
CHARACTERS = (
    b"\x06\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
    b"\x07\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J",
    b"\x08Hong^\x1b$)C\xb1\xe6\xb5\xbf\\x",
    b"\x09\x1b$)A\xd0\xa1\xb6\xab",
    b"\x01M\xfcller",
    b"\x02M\xc3\xbcller",
    b"\x03\xcd\xf5\xd0\xa1\xb6\xab",
    b"\xffISO 2022 IR 100\\ISO 2022 IR 144\0\x1b-L\xb0",
)
JSON_ARRAYS = (b'[{"a": "}\\""}, {"b": {"c": []}}]', b'{"a": 1}', b" [ ] ", b'[{"a": "', b"[{}]x", b"")


def _stow() -> Iterator[bytes]:
    image = _image()
    yield b"\0" + json.dumps([image, _every_vr()]).encode()
    for setting in (0, 1, 2, 3, 4):
        yield (
            bytes((setting,))
            + json.dumps(
                image
                | {
                    "7FE00010": {"vr": "OW", "BulkDataURI": "bulk/1"},
                    "00280008": {"vr": "IS", "Value": ["1"]},
                    "00880200": {"vr": "SQ", "Value": [{"7FE00010": {"vr": "OW", "BulkDataURI": "bulk/2"}}]},
                }
            ).encode()
        )


def _configurations() -> Iterator[bytes]:
    yield DEFAULT_CONFIG.encode()
    for path in sorted(EXAMPLES.glob("*/*.toml")):
        text = path.read_text()
        pipelines = path.parent / ("pipelines" if path.name == "config.toml" else path.stem + "-pipelines")
        for other in sorted(pipelines.glob("*.toml")):
            text += other.read_text()
        yield "\n".join(line for line in text.split("\n") if line and not line.startswith("#")).encode()


def seeds() -> dict[str, list[bytes]]:
    """By target."""
    data_sets = list(_data_sets())
    meta = encode_file_meta(
        transfer_syntax_uid=DEFLATED, media_storage_sop_class_uid=CT, media_storage_sop_instance_uid="1.2.3"
    )
    pdus = _pdus()
    return {
        "proxy_header": [
            b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 104\r\n\1\0",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\1\xc6\x33\x64\1\x9c\x40\0\x68",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x28" + bytes(36) + b"\4\0\1x",
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        ],
        "forwarded": [
            _lines("F", 'for=203.0.113.7;proto=https;host="a,b", for="[2001:db8::1]:80"', "for=192.0.2.9"),
            _lines("X", "203.0.113.7, 192.0.2.7", "unknown", "https", "a"),
        ],
        "authorization": [b"Basic dXNlcjpwYXNz", b"Bearer a.b.c", b"Basic ///8="],
        "json_web_token": [
            b'{"alg":"HS256","typ":"JWT"}\n{"exp":4102444800,"iss":"issuer","aud":["audience"],"scope":"read"}',
            b'{"alg":"HS256","kid":"1"}\n{"nbf":1,"sub":"x"}',
        ],
        "key_set": [
            b'{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"1"}]}',
            b'{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA","alg":"ES256"}]}',
        ],
        "saml_assertion": list(_assertions()),
        "pdu": [each[:1] + each[6:] for each in pdus],
        "upper_layer": list(_upper_layer()),
        "negotiation": [pdus[0][6:]],
        "command": _commands(),
        "message": [
            pdus[3][6:],
            encode_message(1, CStoreRQ(1, CT, "1.2").encode(), b"abcd", maximum_length=4096)[6:],
        ],
        "part10": [meta, meta[128:], meta[132:], meta + b"\x02\0xx"],
        "scanner": data_sets,
        "data_set": data_sets,
        "converter": [bytes((each[0] & 3 | to << 2,)) + each[1:] for each in data_sets for to in (0, 1, 2)][
            :36
        ],
        "header_stream": data_sets,
        "frames": list(_frames()),
        "characters": [*CHARACTERS, *(bytes((number,)) + b"A\xc4" for number in range(len(TERMS)))],
        "date_time": [each.encode("latin-1") for each in DATES],
        "wild_cards": [each.encode() for each in WILD_CARDS],
        "person_name": [each.encode() for each in NAMES],
        "identifier": [
            bytes((setting | number,)) + encode_data_set(ENTITY | other, (EXPLICIT, IMPLICIT)[number])
            for number in (0, 1)
            for setting, other in (
                (0, {"00080020": {"vr": "DA", "Value": ["20240101-"]}}),
                (16, {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Ya*"}]}}),
                (254, {"00081030": {"vr": "LO", "Value": ['""']}}),
            )
        ],
        "search": list(SEARCHES),
        "dimse_request": list(DIMSE_REQUESTS),
        "stow_metadata": list(_stow()),
        "configuration": list(_configurations()),
        "multipart": list(MULTIPARTS),
        "http_connection": list(HTTP),
        "request": list(REQUESTS),
        "json_array": list(JSON_ARRAYS),
        "zip_reader": [
            _zip(zipfile.ZIP_STORED),
            _zip(zipfile.ZIP_DEFLATED),
            _zip(zipfile.ZIP_STORED, names=("d/", "d/e")),
        ],
        "tar_reader": [
            *(b"\0" + _tar(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
            gzip.compress(_tar(tarfile.USTAR_FORMAT), mtime=0),
        ],
        "envelope": [
            b"\0\0".join((json.dumps(MANIFEST).encode(), json.dumps(METADATA).encode())),
            b"\0\0".join(
                (
                    json.dumps(MANIFEST).encode(),
                    json.dumps({"studies": [{"study_uid": "1.2.3"}]}).encode(),
                    json.dumps(FILES).encode(),
                    b"application/zip",
                )
            ),
        ],
    }


def main() -> None:
    for name, inputs in seeds().items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for number, data in enumerate(dict.fromkeys(inputs), 1):
            (folder / f"seed-{number:02}").write_bytes(data)


if __name__ == "__main__":
    main()
