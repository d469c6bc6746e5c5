"""TLS in both directions, one rule for DICOM and HTTP (PS3.15 Annex B), and certificates that change while in use.

Profiles: B.12, BCP 195 RFC 8996, 9325, is TLS 1.2 or newer with the cipher suites of the Python it runs on, all with
forward secrecy and authenticated encryption or better; B.13, Modified BCP 195, is the closed list of cipher suites of
the standard, as far as OpenSSL has them, and keys of 112 bits of security or more. OpenSSL has no Camellia in GCM, and
Python offers no way to choose among the suites of TLS 1.3: those that OpenSSL offers are all in the list.

`Certificates` makes every context of a gateway and looks after its files: when they change the next handshakes use what
they hold then, and when that cannot be used the old ones go on. What was agreed with a peer already is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from harmony.gateway.certificate_validity import not_after
from harmony.gateway.config import ClientTLS, ListenerTLS

__all__ = ["Certificates", "client_context", "server_context"]

logger = logging.getLogger("harmony.gateway")

MODIFIED: Final = frozenset({"bcp195-modified", "Modified BCP 195 RFC 8996, 9325"})
"""The names of the profile of PS3.15 B.13; every other is that of B.12."""

MODIFIED_CIPHERS: Final = (
    # To be supported by servers
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES256-CCM",
    "ECDHE-ECDSA-AES256-CCM8",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES128-CCM",
    "ECDHE-ECDSA-AES128-CCM8",
    # Others that are allowed
    "DHE-RSA-AES256-GCM-SHA384",
    "DHE-RSA-CHACHA20-POLY1305",
    "DHE-RSA-AES256-CCM",
    "DHE-RSA-AES256-CCM8",
    "DHE-RSA-AES128-GCM-SHA256",
    "DHE-RSA-AES128-CCM",
    "DHE-RSA-AES128-CCM8",
)
"""PS3.15 B.13 for TLS 1.2, by OpenSSL's names."""

SECURITY_LEVEL: Final = "@SECLEVEL=2"
"""OpenSSL's: RSA and DH of 2048 bits, no SHA-1. Its level for elliptic curves is 224 bits; no curve that it offers for
key exchange is smaller than 256."""

POLL_S: Final = 60.0
"""Between two looks at the files."""
EXPIRY_WARNING_DAYS: Final = 30
REMINDERS_S: Final = 86400.0
"""Between two warnings about one that expires."""

Stamp = tuple[int, int, int] | None
"""Of a file: when it changed, its size and number. None: it cannot be looked at."""


def server_context(tls: ListenerTLS) -> ssl.SSLContext:
    """The context of a listener. Blocking; OSError that names a file which cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _apply_profile(context, tls.profile)
    _load_chain(context, tls.cert_path, tls.key_path)
    if tls.ca_cert_path is not None:
        _load_authorities(context, tls.ca_cert_path)
        context.verify_mode = ssl.CERT_REQUIRED if tls.require_client_cert else ssl.CERT_OPTIONAL
    return context


def client_context(tls: ClientTLS) -> ssl.SSLContext:
    """The context for connecting to a peer, whose certificate and name are checked. Blocking; OSError that names a file
    which cannot be used, ValueError for one without the other."""
    if (tls.cert_path is None) != (tls.key_path is None):
        raise ValueError("cert_path and key_path go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # with certificate and name required
    if tls.ca_cert_path is not None:
        _load_authorities(context, tls.ca_cert_path)  # and nobody else is trusted
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    _apply_profile(context, tls.profile)
    if tls.cert_path is not None and tls.key_path is not None:
        _load_chain(context, tls.cert_path, tls.key_path)
    return context


def _apply_profile(context: ssl.SSLContext, profile: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # The authorities of hospitals are older than what Python 3.13 asks of theirs; elsewhere it was never asked.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if profile in MODIFIED:
        context.set_ciphers(":".join((*MODIFIED_CIPHERS, SECURITY_LEVEL)))


def _load_chain(context: ssl.SSLContext, cert_path: Path, key_path: Path) -> None:
    try:
        context.load_cert_chain(cert_path, key_path, password=_no_password)
    except OSError as error:
        raise OSError(f"cert_path {cert_path}, key_path {key_path}: {_reason(error)}") from error


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise OSError(f"ca_cert_path {path}: {_reason(error)}") from error


def _no_password() -> str:
    raise OSError("the key is encrypted, and there is nobody to ask for its password")


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key does not belong to the certificate"
        return f"not what is expected in PEM ({error.reason or error})"
    return error.strerror or str(error)


class _Held:
    """One context, and the files that it is made of. Called, it is the context to use now."""

    def __init__(self, settings: ListenerTLS | ClientTLS) -> None:
        self._settings = settings
        self._files = [
            each
            for each in (settings.cert_path, settings.key_path, settings.ca_cert_path)
            if each is not None
        ]
        self._stamps = self._look()
        self._context = self._make()

    def __call__(self) -> ssl.SSLContext:
        return self._context

    @property
    def cert_path(self) -> Path | None:
        return self._settings.cert_path

    def renew(self, *, always: bool = False) -> bool:
        """Make the context anew when a file has changed since the last time, or always; True when it was.

        Raises OSError when what is there now cannot be used; the old context stays.
        """
        stamps = self._look()
        if stamps == self._stamps and not always:
            return False
        self._stamps = stamps  # before: what cannot be used is told once, and tried again when it changes
        self._context = self._make()
        return True

    def _make(self) -> ssl.SSLContext:
        if isinstance(self._settings, ListenerTLS):
            return server_context(self._settings)
        return client_context(self._settings)

    def _look(self) -> list[Stamp]:
        stamps: list[Stamp] = []
        for path in self._files:
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                stamps.append(None)
        return stamps


class Certificates:
    """The TLS contexts of a gateway. What blocks may be called from any thread."""

    def __init__(self, *, poll_s: float = POLL_S) -> None:
        self._poll_s = poll_s
        self._held: WeakValueDictionary[ListenerTLS | ClientTLS, _Held] = WeakValueDictionary()
        """Those in use."""
        self._lock = threading.Lock()
        self._polling: asyncio.Task[None] | None = None

    def server(self, tls: ListenerTLS) -> Callable[[], ssl.SSLContext]:
        """What to listen with; equal settings share it. Blocking; OSError that names a file which cannot be used."""
        return self._hold(tls)

    def client(self, tls: ClientTLS) -> Callable[[], ssl.SSLContext]:
        """What to connect with. Blocking; raises what `client_context` does."""
        return self._hold(tls)

    def _hold(self, settings: ListenerTLS | ClientTLS) -> _Held:
        with self._lock:
            held = self._held.get(settings)
            if held is None:
                held = self._held[settings] = _Held(settings)
            return held

    def reload(self) -> None:
        """Use what the files hold now, for handshakes from here on, and warn of what expires. Blocking; a file that
        cannot be used is logged, and what was made of it before stays in use."""
        self._renew(always=True)
        self.warn()

    def _renew(self, *, always: bool) -> None:
        with self._lock:
            held = list(self._held.values())
        for each in held:
            try:
                if each.renew(always=always):
                    logger.info(
                        "TLS: certificates read anew: %s", each.cert_path or "those of the authorities"
                    )
            except (OSError, ValueError) as error:
                logger.error("TLS: %s; the certificates read before stay in use", error)

    def seconds_left(self) -> Iterator[tuple[Path, float]]:
        """Until each certificate of ours ends, as its file says now; negative afterwards. Blocking; without those that
        cannot be read."""
        now = datetime.now(UTC)
        with self._lock:
            paths = dict.fromkeys(each.cert_path for each in list(self._held.values()))
        for path in paths:
            if path is not None:
                with contextlib.suppress(OSError, ValueError):
                    yield path, (not_after(path) - now).total_seconds()

    def warn(self) -> None:
        """Log what has ended or will soon. Blocking."""
        for path, left_s in self.seconds_left():
            days = left_s / 86400
            if days < 0:
                logger.error("TLS: the certificate in %s expired %d days ago", path, -days)
            elif days < EXPIRY_WARNING_DAYS:
                logger.warning("TLS: the certificate in %s expires in %d days", path, days)

    async def start(self) -> None:
        """Warn now and each day, and look at the files from time to time, until `stop`."""
        await asyncio.to_thread(self.warn)
        self._polling = asyncio.create_task(self._poll(), name="certificates")

    async def stop(self, grace_s: float = 0.0) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait({self._polling})

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        warned_at = loop.time()
        while True:
            await asyncio.sleep(self._poll_s)
            await asyncio.to_thread(self._renew, always=False)
            if loop.time() >= warned_at + REMINDERS_S:
                warned_at = loop.time()
                await asyncio.to_thread(self.warn)
