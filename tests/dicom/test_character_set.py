"""Specific Character Set: the standard's own examples, pydicom's files, and what no one should have sent."""

import warnings
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.dicom.character_set import ASCII, UTF_8, character_set
from harmony.dicom.json_model import decode_data_set, text_of

CHARSET_FILES = sorted(Path(pydicom.data.__file__).parent.joinpath("charset_files").glob("*.dcm"))

SINGLE_BYTE = {
    "ISO_IR 100": "Äneas^Rüdiger",
    "ISO_IR 101": "Wałęsa",
    "ISO_IR 109": "Ĝusta",
    "ISO_IR 110": "Ķēniņš",
    "ISO_IR 144": "Люкceмбypг",
    "ISO_IR 127": "قباني^لنزار",
    "ISO_IR 126": "Διονυσιος",
    "ISO_IR 138": "שרון^דבורה",
    "ISO_IR 148": "Çavuşoğlu",
    "ISO_IR 166": "นามสกุล",
    "ISO_IR 203": "Œuvre€",
    "ISO_IR 13": "ﾔﾏﾀﾞ^ﾀﾛｳ",
    "ISO_IR 192": "Wang^XiaoDong=王^小东=",
    "GB18030": "Wang^XiaoDong=王^小东=",
    "GBK": "Wang^XiaoDong=王^小东=",
}

# PS3.5 Annexes H, I and K, and Annex J's names in the sets of K: bytes as printed there.
EXAMPLES = [
    (  # H.3.1
        r"\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (  # H.3.2
        r"ISO 2022 IR 13\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    (  # I.2
        r"\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (  # K.2
        r"\ISO 2022 IR 58",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        "Zhang^XiaoDong=张^小东=",
    ),
    (r"ISO 2022 IR 6\ISO 2022 IR 159", b"\x1b$(D\x30\x21\x1b(B", "丂"),
    (r"ISO 2022 IR 100\ISO 2022 IR 144", b"\xc4neas=\x1b-L\xbb\xee=", "Äneas=Лю="),
]


@pytest.mark.parametrize(("terms", "encoded", "text"), EXAMPLES)
def test_examples_of_the_standard_decode(terms: str, encoded: bytes, text: str) -> None:
    assert character_set(terms).decode(encoded, person_name=True) == text


@pytest.mark.parametrize(("terms", "encoded", "text"), EXAMPLES)
def test_examples_of_the_standard_encode(terms: str, encoded: bytes, text: str) -> None:
    assert character_set(terms).encode(text, person_name=True) == encoded


@pytest.mark.parametrize(("term", "text"), SINGLE_BYTE.items())
def test_sets_without_code_extensions_go_both_ways(term: str, text: str) -> None:
    encoded = character_set(term).encode(text, person_name=True)
    assert character_set(term).decode(encoded, person_name=True) == text


@pytest.mark.parametrize(
    ("term", "text", "encoded"),
    [
        ("ISO_IR 100", "ä", b"\xe4"),
        ("ISO_IR 101", "ł", b"\xb3"),
        ("ISO_IR 144", "я", b"\xef"),
        ("ISO_IR 126", "ω", b"\xf9"),
        ("ISO_IR 138", "ש", b"\xf9"),
        ("ISO_IR 127", "ن", b"\xe6"),
        ("ISO_IR 148", "ş", b"\xfe"),
        ("ISO_IR 166", "ก", b"\xa1"),
        ("ISO_IR 13", "ﾔ", b"\xd4"),
        ("ISO_IR 192", "ä", b"\xc3\xa4"),
        ("GB18030", "王", b"\xcd\xf5"),
    ],
)
def test_known_characters(term: str, text: str, encoded: bytes) -> None:
    assert character_set(term).encode(text) == encoded
    assert character_set(term).decode(encoded) == text


@pytest.mark.parametrize(
    ("spelling", "terms"),
    [
        ("", ()),
        (None, ()),
        ("ISO_IR 6", ()),
        ("ISO IR 100", ("ISO_IR 100",)),
        ("iso-ir 100 ", ("ISO_IR 100",)),
        ("UTF-8", ("ISO_IR 192",)),
        ("ISO 2022 IR 87", ("ISO 2022 IR 87",)),
        (r"\ISO2022 IR 87", ("", "ISO 2022 IR 87")),
        (r"ISO_IR 100\ISO_IR 144", ("ISO 2022 IR 100", "ISO 2022 IR 144")),
        (r"ISO_IR 192\ISO 2022 IR 87", ("ISO_IR 192",)),
        (r"ISO 2022 IR 6\GB18030", ("ISO 2022 IR 6",)),
        (["ISO_IR 100"], ("ISO_IR 100",)),
        (r"KLINGON\ISO 2022 IR 87", ("", "ISO 2022 IR 87")),
        (r"ISO 2022 IR 100\KLINGON", ("ISO 2022 IR 100",)),
    ],
)
def test_misspelt_terms_are_understood(spelling: str, terms: tuple[str, ...]) -> None:
    assert character_set(spelling).defined_terms == terms


@pytest.mark.parametrize("spelling", ["KLINGON", "ISO_IR 9999", "100", "ISO_IR"])
def test_unknown_terms_are_none(spelling: str) -> None:
    assert character_set(spelling) is None


def test_a_backslash_inside_a_character_is_not_a_delimiter() -> None:
    # The second byte of 乗 in GBK, both bytes of 樛 (row 60, cell 60) in JIS X 0208.
    assert character_set("GBK").decode(b"a\x81\x5c\\b") == "a乗\\b"
    assert character_set(r"\ISO 2022 IR 87").decode(b"\x1b$B\x5c\x5c\x1b(B\\x") == "樛\\x"


def test_a_delimiter_returns_to_the_first_set() -> None:
    letters = character_set(r"ISO 2022 IR 100\ISO 2022 IR 144")
    assert letters.decode(b"\x1b-L\xee\\\xe4") == "ю\\ä"
    assert letters.decode(b"\x1b-L\xee^\xe4", person_name=True) == "ю^ä"
    assert letters.decode(b"\x1b-L\xee^\xe4") == "ю^ф"  # only in names is ^ a delimiter


def test_senders_that_declare_an_extension_and_never_switch_to_it() -> None:
    assert character_set(r"\ISO 2022 IR 149").decode(b"\xc8\xab") == "홍"
    assert character_set(r"\ISO 2022 IR 149").decode(b"\x1b$)C\xc8\xab^\xb1\xe6", person_name=True) == "홍^길"


@pytest.mark.parametrize(
    ("term", "data", "text"),
    [
        ("", b"M\xc3\xbcller", "Müller"),
        ("", b"M\xfcller", "Müller"),
        ("ISO_IR 192", b"M\xfcller", "Müller"),
        ("ISO_IR 127", b"\xff\xff", "ÿÿ"),
        ("GB18030", b"\xff", "ÿ"),
        (r"\ISO 2022 IR 87", b"\x1b%Gx", "\ufffd%Gx"),
        (r"\ISO 2022 IR 87", b"\x1b", "\ufffd"),
    ],
)
def test_what_does_not_fit_is_utf8_or_latin1(term: str, data: bytes, text: str) -> None:
    assert character_set(term).decode(data) == text


@pytest.mark.parametrize("term", ["", "ISO_IR 100", "ISO_IR 13", "GBK", r"\ISO 2022 IR 87"])
def test_encoding_is_strict(term: str) -> None:
    with pytest.raises(UnicodeEncodeError):
        character_set(term).encode("ä€\U0001f600")


TERMS = [*SINGLE_BYTE, "", *(terms for terms, _, _ in EXAMPLES)]


@settings(deadline=None)
@given(st.sampled_from(TERMS), st.binary(max_size=40), st.booleans())
def test_any_bytes_decode_to_text_that_json_can_hold(term: str, data: bytes, person_name: bool) -> None:
    character_set(term).decode(data, person_name=person_name).encode("utf-8")


@settings(deadline=None)
@given(st.sampled_from(TERMS), st.text(max_size=20), st.booleans())
def test_what_can_be_encoded_decodes_to_itself(term: str, text: str, person_name: bool) -> None:
    characters = character_set(term)
    text = text.replace("\x1b", "")  # begins escape sequences, so it is never a character of a value
    try:
        encoded = characters.encode(text, person_name=person_name)
    except UnicodeEncodeError:
        return
    assert characters.decode(encoded, person_name=person_name) == text


@settings(deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_code_extensions_mix_freely(example: tuple[str, bytes, str], data: st.DataObject) -> None:
    terms, _, text = example
    shuffled = "".join(data.draw(st.permutations(text + "A\\^ ")))
    encoded = character_set(terms).encode(shuffled, person_name=True)
    assert character_set(terms).decode(encoded, person_name=True) == shuffled


@settings(deadline=None)
@given(st.sampled_from([ASCII, UTF_8]), st.text(st.characters(max_codepoint=127), max_size=20))
def test_ascii_is_ascii(characters: object, text: str) -> None:
    assert characters.encode(text) == text.encode("ascii")


@pytest.mark.parametrize("path", CHARSET_FILES, ids=lambda path: path.stem)
def test_names_in_pydicoms_character_set_files(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pydicom.dcmread(path)
        syntax = reference.file_meta.TransferSyntaxUID
        expected = str(reference.PatientName) if "PatientName" in reference else None
    content = path.read_bytes()
    model = decode_data_set(content[144 + int.from_bytes(content[140:144], "little") :], syntax)
    if expected is None:  # the name is in an item, with a character set of its own
        model = model["00321064"]["Value"][0]
        expected = str(reference.RequestedProcedureCodeSequence[0].PatientName)
    assert text_of(model, 0x00100010) == expected.rstrip("=")
