"""harmony.gateway.service_root: the URLs that a client can use, and no part of them that it could have made up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.gateway.service_root import service_root
from harmony.http import Request


def root(
    host: str | None, prefix: str = "/dicomweb", *, scheme: str = "http", public: str | None = None
) -> str:
    headers = {} if host is None else {"Host": host}
    return service_root(
        Request("GET", "/dicomweb/studies", headers=headers, scheme=scheme), prefix, public_url=public
    )


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("pacs.example.org", "http://pacs.example.org/dicomweb"),
        ("pacs.example.org:8042", "http://pacs.example.org:8042/dicomweb"),
        ("127.0.0.1:8042", "http://127.0.0.1:8042/dicomweb"),
        ("[::1]:8042", "http://[::1]:8042/dicomweb"),
        ("h", "http://h/dicomweb"),
        ("docker_name", "http://docker_name/dicomweb"),
        (None, "/dicomweb"),
        ("", "/dicomweb"),
        ("user@h", "/dicomweb"),
        ("h/path", "/dicomweb"),
        ('h"onload="x', "/dicomweb"),
        ("h:port", "/dicomweb"),
    ],
)
def test_roots(host: str | None, url: str) -> None:
    assert root(host) == url


@pytest.mark.parametrize(
    ("prefix", "url"),
    [("/", "http://h"), ("/a/", "http://h/a"), ("a/b", "http://h/a/b"), ("/ä", "http://h/%C3%A4")],
)
def test_prefixes(prefix: str, url: str) -> None:
    assert root("h", prefix) == url


def test_scheme_and_public_url() -> None:
    assert root("h", scheme="https") == "https://h/dicomweb"
    assert root("h", public="https://pacs.example.org/web/") == "https://pacs.example.org/web"


@given(st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")))
def test_any_host_gives_a_root_without_markup(host: str) -> None:
    try:
        found = root(host)
    except ValueError:
        return  # no header line can carry it
    assert found.endswith("/dicomweb")
    assert not set(found) & set("\"'<>@ \r\n?#\\")
