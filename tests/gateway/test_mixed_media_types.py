"""Accept with DICOM and rendered media types (PS3.18 §8.7.4)."""

import pytest

from harmony.gateway.mixed_media_types import refuse_mixed_media_types
from harmony.http import HTTPError, Request

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "target"),
    [
        ("application/dicom, image/jpeg", "/studies/1"),
        ('image/png;q=0.1, multipart/related; type="application/dicom"', "/studies/1"),
        ("multipart/related; type=application/dicom+xml, video/mp4", "/studies/1/metadata"),
        ("application/dicom+json, image/*", "/studies"),
        ("*/*", "/studies/1?accept=application/dicom,image/jpeg"),
        ("*/*", "/studies/1?accept=application/dicom&accept=image/jpeg"),
        ("*/*", "/wado?contentType=application/dicom,image/jpeg"),
        (None, "/wado?contentType=image/jpeg&contentType=application/dicom"),
    ],
)
def test_both_are_refused(accept: str | None, target: str) -> None:
    with pytest.raises(HTTPError) as raised:
        refuse_mixed_media_types(request(accept, target))
    assert raised.value.status == 400
    assert "must not be acceptable at the same time" in raised.value.message


@pytest.mark.parametrize(
    ("accept", "target"),
    [
        (None, "/studies"),
        ("", "/studies"),
        (CHROME, "/studies/1"),
        ("image/jpeg, image/png", "/studies/1/rendered"),
        ("application/dicom, image/jpeg;q=0", "/studies/1"),
        ("application/dicom+json, application/json, text/plain, */*", "/studies"),
        # a browser's link
        (CHROME, "/studies/1?accept=application/dicom"),
        # frames as they are compressed
        (
            "multipart/related; type=image/jls; q=1, multipart/related; type=image/jpeg; q=0.5, application/dicom",
            "/studies/1",
        ),
        ("application/octet-stream, image/jpeg", "/studies/1"),
        ("*/*", "/wado?contentType=image/jpeg,image/png"),
        ("image/jpeg", "/wado?contentType=application/dicom"),
    ],
)
def test_others_are_not(accept: str | None, target: str) -> None:
    refuse_mixed_media_types(request(accept, target))


def request(accept: str | None, target: str) -> Request:
    return Request("GET", target, headers={} if accept is None else {"Accept": accept})
