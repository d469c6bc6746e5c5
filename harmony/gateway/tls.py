"""TLS towards those who connect to us: one rule for DICOM and HTTP listeners (PS3.15 B.12: TLS 1.2 or newer)."""

from __future__ import annotations

import ssl

from harmony.gateway.config import Listener

__all__ = ["server_context"]


def server_context(address: Listener) -> ssl.SSLContext | None:
    """The context of a listener, None where it is plain. Blocking; OSError and ssl.SSLError for unusable files."""
    if address.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(address.tls.cert_path, address.tls.key_path)
    if address.tls.ca_cert_path is not None:
        context.load_verify_locations(address.tls.ca_cert_path)
        context.verify_mode = ssl.CERT_REQUIRED if address.tls.require_client_cert else ssl.CERT_OPTIONAL
    return context
