"""harmony.http.accept: RFC 9110 §12.5.1 and PS3.18 §8.7, with the headers that real clients send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.http import HTTPError, Request
from harmony.http.accept import (
    Offer,
    TransferSyntaxes,
    choose,
    negotiate,
    parse_accept,
    split_list,
    weight_of,
)

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
EXPLICIT = "1.2.840.10008.1.2.1"

METADATA = Offer("application/dicom+json", "metadata", also=("application/json",))
DICOM = Offer('multipart/related; type="application/dicom"', "dicom", transfer_syntaxes=True)
BULK = Offer('multipart/related; type="application/octet-stream"', "bulk", transfer_syntaxes=True)
ZIP = Offer("application/zip", "zip")
OFFERS = (METADATA, DICOM, BULK, ZIP)

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
JAVA = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        # Nothing said, everything allowed
        (None, "metadata"),
        ("", "metadata"),
        ("  ", "metadata"),
        ("*/*", "metadata"),
        (CHROME, "metadata"),
        (FIREFOX, "metadata"),
        (JAVA, "metadata"),
        # DICOMweb clients: dicomweb-client, OHIF, dcm4che, Weasis, Google
        ("application/dicom+json", "metadata"),
        ("application/dicom+json, application/json", "metadata"),
        ("application/json", "metadata"),
        ("application/json, text/plain, */*", "metadata"),
        ("application/dicom+json; charset=utf-8", "metadata"),
        ('multipart/related; type="application/dicom"', "dicom"),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', "dicom"),
        ('multipart/related; type="application/dicom"; transfer-syntax="1.2.840.10008.1.2.1"', "dicom"),
        ("multipart/related; type=application/dicom; transfer-syntax=*", "dicom"),
        ('multipart/related;type="application/dicom";boundary=x', "dicom"),
        ('Multipart/Related; TYPE="Application/DICOM"', "dicom"),
        ('multipart/related; type="application/octet-stream"', "bulk"),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", "bulk"),
        ("multipart/related", "dicom"),
        ('multipart/related; type="*/*"', "dicom"),
        ('multipart/related; type="application/*"', "dicom"),
        ('multipart/related; type="*/*", multipart/related; type="application/dicom"; q=0', "bulk"),
        ("multipart/*", "dicom"),
        ("application/*", "metadata"),
        # Weights, and what is named more precisely
        ("application/dicom+json;q=0.5, application/zip", "zip"),
        ("application/dicom+json;q=0.5, application/zip;q=0.4", "metadata"),
        ("application/*;q=0.5, application/zip;q=0.6", "zip"),
        ("*/*, application/zip", "zip"),
        ("application/zip, application/dicom+json", "metadata"),
        ('*/*;q=1, multipart/related; type="application/dicom"', "dicom"),
        ("application/zip;q=2", "zip"),
        ("application/zip;q=1.000", "zip"),
        ("application/zip; Q=0.3", "zip"),
        # q=0 excludes
        ("application/dicom+json;q=0, */*", "dicom"),
        ("application/*;q=0, */*;q=0.1", "dicom"),
        ("multipart/related;q=0, application/*;q=0, application/zip", "zip"),
        ('multipart/*, multipart/related;type="application/dicom";q=0', "bulk"),
        # What cannot be read, and what nobody has, is ignored
        ("application/zip;q=x, application/dicom+json;q=0.1", "metadata"),
        ("nonsense, ;, application/zip, ,", "zip"),
        ("*/json, application/zip", "zip"),
        ("text/html, application/zip;q=0.1", "zip"),
        ('text/plain; note="a, application/zip;q=0", application/zip', "zip"),
        ('text/plain; note="\\", application/dicom+json", application/zip', "zip"),
        # Nothing left
        ("text/html", None),
        ("nonsense", None),
        ("*/*;q=0", None),
        ("application/zip;q=0", None),
        ("application/zip;q=x", None),
        ("application/zip;q=-1", None),
        ("application/*+json", None),
        ('multipart/related; type="image/jpeg"', None),
        ('multipart/related; type="image/*"', None),
        ('"application/zip', None),
    ],
)
def test_choice(accept: str | None, chosen: str | None) -> None:
    choice = choose(accept, OFFERS)
    assert (choice and choice.value) == chosen


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, {"": 1.0}),
        ('multipart/related; type="application/dicom"', {"": 1.0}),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', {"*": 1.0}),
        (
            f'multipart/related; type="application/dicom"; transfer-syntax={JPEG_BASELINE},'
            'multipart/related; type="application/dicom"; transfer-syntax=*; q=0.5',
            {JPEG_BASELINE: 1.0, "*": 0.5},
        ),
        (
            f'multipart/related; type="application/dicom"; Transfer-Syntax="{JPEG_BASELINE}"; q=0.5, */*;q=0.1',
            {JPEG_BASELINE: 0.5, "": 0.1},
        ),
        (
            f"multipart/related; transfer-syntax=*, multipart/related; transfer-syntax={JPEG_BASELINE}; q=0",
            {"*": 1.0, JPEG_BASELINE: 0.0},
        ),
        ('multipart/related; type="application/dicom"; q=0.2, */*;q=0.9', {"": 0.2}),
    ],
)
def test_transfer_syntaxes(accept: str | None, expected: dict[str, float]) -> None:
    choice = choose(accept, [DICOM])
    assert choice is not None
    assert dict(choice.transfer_syntaxes) == expected
    assert list(choice.transfer_syntaxes.values()) == sorted(expected.values(), reverse=True)
    assert choice.weight == max(expected.values())


def test_how_welcome_a_transfer_syntax_is() -> None:
    syntaxes = TransferSyntaxes({"*": 0.5, JPEG_BASELINE: 1.0, "1.2.3": 0.0, "": 0.2})
    assert syntaxes.weight(JPEG_BASELINE) == 1.0
    assert syntaxes.weight("1.2.3") == 0.0
    assert syntaxes.weight(EXPLICIT) == 0.5
    assert syntaxes.weight(EXPLICIT, is_default=True) == 0.2
    assert syntaxes.named() == [JPEG_BASELINE]
    assert TransferSyntaxes({"": 1.0}).weight(JPEG_BASELINE) == 0.0
    assert TransferSyntaxes({"": 1.0}).weight(EXPLICIT, is_default=True) == 1.0
    assert TransferSyntaxes({"*": 1.0}).weight(EXPLICIT, is_default=True) == 1.0


def test_a_transfer_syntax_does_not_matter_where_there_is_none() -> None:
    choice = choose(f"application/dicom+json; transfer-syntax={JPEG_BASELINE}", [METADATA])
    assert choice is not None
    assert dict(choice.transfer_syntaxes) == {"": 1.0}


def ask(target: str, accept: str | None = None) -> str:
    headers = {} if accept is None else {"Accept": accept}
    return negotiate(Request("GET", target, headers=headers), OFFERS).value


@pytest.mark.parametrize(
    ("query", "accept", "chosen"),
    [
        ("", "application/zip", "zip"),
        ("accept=application/zip", FIREFOX, "zip"),
        ("accept=application/zip", "application/dicom+json", "zip"),
        ("accept=application%2Fdicom%2Bjson", "application/zip", "metadata"),
        ("accept=application/dicom+json", "application/zip", "metadata"),  # a + that should be %2B
        ("accept=multipart/related;%20type=%22application/dicom%22", None, "dicom"),
        ("accept=text/html,application/zip", None, "zip"),
        ("accept=text/html&accept=application/zip", None, "zip"),
        ("accept=", "application/zip", "zip"),
    ],
)
def test_the_query_parameter_beats_the_header(query: str, accept: str | None, chosen: str) -> None:
    assert ask("/studies?" + query, accept) == chosen


@pytest.mark.parametrize(("query", "accept"), [("", "text/html"), ("?accept=text/html", "application/zip")])
def test_not_acceptable_says_what_is(query: str, accept: str) -> None:
    with pytest.raises(HTTPError) as caught:
        ask("/studies" + query, accept)
    assert caught.value.status == 406
    for offer in OFFERS:
        assert offer.media_type in caught.value.message
    assert "html" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "weight"),
    [("1", 1.0), ("0", 0.0), ("0.5", 0.5), ("1.", 1.0), (".25", 0.25), ("0.", 0.0), ("7", 1.0),
     ("", None), ("-1", None), ("+1", None), ("1e3", None), ("nan", None), ("inf", None), (".", None), ("¹", None)],
)  # fmt: skip
def test_weights(text: str, weight: float | None) -> None:
    assert weight_of(text) == weight


def test_ranges_keep_their_order_and_parameters() -> None:
    ranges = parse_accept('a/b; c="d,e"; q=0.5, */*')
    assert [(each.media_type.essence, each.media_type.parameters, each.weight) for each in ranges] == [
        ("a/b", {"c": "d,e"}, 0.5),
        ("*/*", {}, 1.0),
    ]


@given(st.text(alphabet=st.sampled_from('ab/*;=q01., "\\\t-+') | st.characters()))
def test_any_text_chooses_an_offer_or_none(accept: str) -> None:
    choice = choose(accept, OFFERS)
    assert choice is None or choice.offer in OFFERS
    for each in parse_accept(accept):
        assert 0.0 <= each.weight <= 1.0
        assert "q" not in each.media_type.parameters


@given(st.text(alphabet='a,"\\ '))
def test_no_character_of_a_list_is_lost(value: str) -> None:
    assert ",".join(split_list(value)) == value


TYPES = [
    "*/*",
    "application/*",
    "application/zip",
    "application/dicom+json",
    "multipart/related",
    "text/html",
]


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.sampled_from(["0", "0.3", "1"])), min_size=1))
def test_what_is_excluded_by_name_is_never_chosen(members: list[tuple[str, str]]) -> None:
    choice = choose(", ".join(f"{name};q={q}" for name, q in members), OFFERS)
    if choice is not None:
        named = {q for name, q in members if name == choice.media_type}
        assert named != {"0"}
