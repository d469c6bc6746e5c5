"""Data sets: the header scanner, the decoder and encoder of the JSON model, conversion, frames, character sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from harmony.dicom.bulk_data import HeaderStream
from harmony.dicom.character_set import character_set
from harmony.dicom.data_set_decoder import DataSetError
from harmony.dicom.data_set_encoder import ModelError
from harmony.dicom.frame_stream import FrameBegin, FrameEnd, FrameStream
from harmony.dicom.frames import FileFrames, FrameError, FrameLayout
from harmony.dicom.json_model import Model, decode_data_set, encode_data_set, text_of
from harmony.dicom.presentation import codestream_samples
from harmony.dicom.scanner import HeaderScanner
from harmony.dicom.transcode import TranscodeError, Transcoder
from harmony.dicom.uid import is_valid_uid, path_component
from tests.fuzz.target import pieces, target

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
SYNTAXES = (*NATIVE, "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.3")

UIDS = frozenset((0x00080016, 0x00080018, 0x0020000D, 0x0020000E))


def _outcome(run: Callable[[], Iterable[object]]) -> tuple[bytes, str]:
    """All that is yielded, joined; and the error that ended it."""
    joined = bytearray()
    try:
        for piece in run():
            if isinstance(piece, bytes | memoryview):
                joined += piece
            elif isinstance(piece, FrameBegin | FrameEnd):
                joined += repr(piece).encode()
    except (DataSetError, TranscodeError, FrameError) as error:
        return bytes(joined), f"{type(error).__name__}: {error}"
    return bytes(joined), ""


@target(maximum_bytes=8192)
def scanner(data: bytes) -> None:
    """Any split of the bytes gives the same; UIDs that were found are those that the decoder finds."""
    if not data:
        return
    syntax, data = SYNTAXES[data[0] % len(SYNTAXES)], data[1:]
    whole, parts = HeaderScanner(syntax, UIDS), HeaderScanner(syntax, UIDS)
    whole.feed(memoryview(data))
    whole.finish()
    for piece in pieces(data):
        parts.feed(memoryview(piece))
    parts.finish()
    if "the deflated data set cannot be inflated" in (whole.failed, parts.failed):
        return  # how much of it zlib gives out before it finds the damage depends on the pieces
    for name in ("values", "failed", "done", "embedded_file_meta", "mismatched_encoding", "data_set_offset"):
        assert getattr(whole, name) == getattr(parts, name), name
    for tag in UIDS:
        path_component(whole.text(tag))
        is_valid_uid(whole.text(tag))
    if whole.failed is None and whole.values.keys() == UIDS:
        try:
            model = decode_data_set(data, syntax)
        except DataSetError:
            return
        for tag in UIDS:
            if is_valid_uid(whole.text(tag)) and model.get(f"{tag:08X}", {}).get("vr") == "UI":
                assert text_of(model, tag).strip(" \0") == whole.text(tag), f"{tag:08X}"


@target(DataSetError, maximum_bytes=8192)
def data_set(data: bytes) -> None:
    """A model is JSON; what of it can be encoded is decoded as the same, whatever the transfer syntax."""
    if not data:
        return
    complete = data[0] & 0x80 != 0
    syntax, data = SYNTAXES[data[0] % len(SYNTAXES)], data[1:]
    model = decode_data_set(data, syntax, complete=complete)
    msgspec.json.encode(model)
    assert list(model) == sorted(model)
    try:
        again = decode_data_set(encode_data_set(model, EXPLICIT), EXPLICIT)
    except ModelError:
        return
    if any(next(iter(each), "").startswith("0800") for each in (model, again)):
        return  # which is taken for group 0008 in the other byte order
    # Encoded once, a model has the form that the encoder gives it; from then on nothing may change any more.
    for other in NATIVE:
        once = _carried(again, other)
        if other != IMPLICIT:
            assert once == again, other
            continue
        twice = _carried(once, other)  # what has another VR now may be text, and need a character set
        assert _carried(twice, other) == twice, other


def _carried(model: Model, syntax: str) -> Model:
    try:
        return decode_data_set(encode_data_set(model, syntax), syntax)
    except ModelError as error:
        raise AssertionError(f"what was decoded cannot be encoded: {error}") from error


@target(maximum_bytes=8192)
def converter(data: bytes) -> None:
    """Any split of the bytes gives the same bytes or the same error, and what comes out is the same data set."""
    if not data:
        return
    source, destination = NATIVE[data[0] & 3], NATIVE[data[0] >> 2 & 3]
    data = data[1:]

    def convert(parts: Iterable[bytes]) -> Iterator[object]:
        transcoder = Transcoder(source, destination)
        for piece in parts:
            yield from transcoder.feed(piece)
        yield from transcoder.finish()

    whole, error = _outcome(lambda: convert([data]))
    in_parts, error_in_parts = _outcome(lambda: convert(pieces(data)))
    assert bool(error) == bool(error_in_parts), f"{error} / {error_in_parts}"
    if error:
        return
    assert whole == in_parts
    if whole[:2] == (b"\x08\x00" if destination == BIG_ENDIAN else b"\x00\x08"):
        return  # a first element of group 0800 is taken for one of 0008 in the other byte order
    again, error = _outcome(lambda: _converted(whole, destination, destination))
    if destination == IMPLICIT and error:
        return  # without its VR a value may be taken for a sequence
    assert not error, error
    if destination != DEFLATED:
        assert again == whole


def _converted(data: bytes, source: str, destination: str) -> Iterator[object]:
    transcoder = Transcoder(source, destination)
    yield from transcoder.feed(data)
    yield from transcoder.finish()


@target(DataSetError, TranscodeError, maximum_bytes=8192)
def header_stream(data: bytes) -> None:
    """A header that arrives in pieces is the one that arrives at once."""
    if not data:
        return
    syntax, data = SYNTAXES[data[0] % len(SYNTAXES)], data[1:]

    def read(parts: Iterable[bytes]) -> object:
        stream = HeaderStream(syntax)
        for piece in parts:
            if stream.feed(piece):
                break
        return stream.finish()

    model = read([data])
    msgspec.json.encode(model)
    assert read(pieces(data)) == model


@target(maximum_bytes=8192)
def frames(data: bytes) -> None:
    """The frames of a file, and of a data set that arrives in one piece or in many, are the same."""
    if len(data) < 2:
        return
    syntax = SYNTAXES[data[0] % len(SYNTAXES)]
    numbers = (
        None
        if data[1] == 0
        else [data[1] & 15 or 1, *([(data[1] & 15) + (data[1] >> 4)] if data[1] >> 4 else [])]
    )
    data = data[2:]
    codestream_samples(data)

    def read(parts: Iterable[bytes]) -> Iterator[object]:
        stream = FrameStream(syntax, numbers)
        for piece in parts:
            yield from stream.feed(piece)
        yield from stream.finish()

    whole, error = _outcome(lambda: read([data]))
    in_parts, error_in_parts = _outcome(lambda: read(pieces(data)))
    if (
        not error and not error_in_parts
    ):  # what comes behind the last frame is looked at when it is already there
        assert whole == in_parts
    at = data.find(b"\xe0\x7f\x10\x00")
    if at < 0 or syntax in (BIG_ENDIAN, DEFLATED):
        return
    try:
        layout = FrameLayout.of(decode_data_set(data, syntax))
        found = FileFrames(lambda offset, size: data[offset : offset + size], at, layout, syntax)
        for _, segments, shift in found.locate(numbers or [1, 2, 3]):
            assert 0 <= shift < 8
            assert all(offset >= 0 and length >= 0 for offset, length in segments)
    except (DataSetError, FrameError):
        return


TERMS = (
    "", "ISO_IR 100", "ISO_IR 192", "GB18030", "GBK", "ISO_IR 13", "ISO 2022 IR 6\\ISO 2022 IR 87",
    "ISO 2022 IR 13\\ISO 2022 IR 87", "\\ISO 2022 IR 149", "\\ISO 2022 IR 58", "ISO_IR 166",
    "ISO 2022 IR 6\\ISO 2022 IR 159\\ISO 2022 IR 87", "ISO_IR 144", "ISO 2022 IR 100\\ISO 2022 IR 126",
)  # fmt: skip


@target()
def characters(data: bytes) -> None:
    """Bytes in any character set are some text; text that a set can encode is that text again."""
    if not data:
        return
    if data[0] == 255:
        terms, _, data = data[1:].partition(b"\0")
        found = character_set(terms.decode("latin-1"))
        if found is None:
            return
    else:
        found = character_set(TERMS[data[0] % len(TERMS)])
        data = data[1:]
        assert found is not None
    repr(found)
    for person_name in (False, True):
        text = found.decode(data, person_name=person_name)
        text.encode()  # no half of a surrogate pair
        try:
            encoded = found.encode(text, person_name=person_name)
        except UnicodeEncodeError:
            continue
        again = found.decode(encoded, person_name=person_name)
        assert again == (text.replace("\x1b", "") if found.code_extensions else text), (text, again)
