"""Under which address a client reaches a service: the root of the URLs that answers hold (PS3.18 §8.2, RFC 9110 §7.1).

RetrieveURL (0008,1190), BulkDataURI and Content-Location are absolute URLs. Scheme and authority are those of the
request, so that they work from where it came; behind a proxy that changes either, `public_url` says what is true.
What stands in Host is checked, for it goes into answers; without one that can be used the URLs are absolute paths,
which PS3.18 does not know, but clients resolve.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from harmony.http import Request, normalize_prefix

__all__ = ["service_root"]

_HOST: Final = re.compile(
    r"(?:[0-9A-Za-z](?:[0-9A-Za-z._-]{0,251}[0-9A-Za-z.])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
"""Host (RFC 9110 §7.2): a name or an address, and a port."""
_PATH_CHARACTERS: Final = "/!$&'()*+,;=:@-._~"  # RFC 3986 §3.3


def service_root(request: Request, path_prefix: str, *, public_url: str | None = None) -> str:
    """The URL of a service without a slash at the end: http://host:port/prefix."""
    if public_url is not None:
        return public_url.rstrip("/")
    prefix = quote(normalize_prefix(path_prefix), safe=_PATH_CHARACTERS).rstrip("/")
    host = request.headers.get("host") or ""
    return f"{request.scheme}://{host}{prefix}" if _HOST.fullmatch(host) else prefix
