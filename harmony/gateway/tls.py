"""TLS in both directions, one rule for DICOM and HTTP (PS3.15 B.12: TLS 1.2 or newer)."""

from __future__ import annotations

import ssl
from pathlib import Path

from harmony.gateway.config import Listener

__all__ = ["client_context", "server_context"]


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


def client_context(
    *, ca_cert_path: Path | None, cert_path: Path | None, key_path: Path | None
) -> ssl.SSLContext:
    """The context for connecting to a peer, whose certificate and name are checked.

    ca_cert_path: who has signed it; None: who the operating system trusts. cert_path, key_path: our own certificate,
    for a peer that asks for one. Blocking; OSError naming a file that cannot be used, ValueError for one without the
    other.
    """
    if (cert_path is None) != (key_path is None):
        raise ValueError("cert_path and key_path go together")
    try:
        # With a file of its own the context trusts nobody else.
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_cert_path)
    except OSError as error:
        raise OSError(f"ca_cert_path {ca_cert_path}: {error.strerror or error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert_path is not None:
        try:
            context.load_cert_chain(cert_path, key_path)
        except OSError as error:
            raise OSError(f"cert_path {cert_path}, key_path {key_path}: {error.strerror or error}") from error
    return context
