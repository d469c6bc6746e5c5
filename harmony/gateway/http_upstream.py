"""The client of a backend that is an HTTP server: address, credentials and TLS as its target says."""

from __future__ import annotations

from dataclasses import replace

from harmony.gateway.config import Backend
from harmony.gateway.credentials import authentication_towards_upstream
from harmony.gateway.tls import Certificates
from harmony.http.client import HTTPClient

__all__ = ["upstream_client"]


def upstream_client(
    configured: Backend,
    *,
    base_path: str,
    maximum_connections: int,
    certificates: Certificates | None = None,
) -> HTTPClient:
    """base_path: the whole of it. certificates: those of the gateway; None: read now and kept.

    Raises ValueError for an address or credentials that cannot be used, OSError that names a file which cannot be.
    """
    target = configured.target
    assert target is not None
    context = None
    if target.tls:
        context = (certificates or Certificates()).client(target.client_tls)
    return HTTPClient(
        replace(target, base_path=base_path).url,
        timeout_s=target.timeout_s,
        authentication=authentication_towards_upstream(configured.authentication),
        ssl_context=context,
        server_hostname=target.tls_server_name,
        maximum_connections=maximum_connections,
    )
