"""Kerberos service tickets (PS3.7 §D.3.3.7, user identity type 3), accepted with the keys of a keytab.

The standard has the ticket as RFC 1510 (now RFC 4120) encodes it. A ticket alone proves nothing, so what is accepted
is the AP-REQ that a client makes with it, bare or as the initial token of GSS-API (RFC 4121 §4.1), which most
libraries produce. The answer, an AP-REP, is in the same form; there is none for a client that does not ask to have the
service authenticated as well.

MIT Kerberos checks keys, times (its `clockskew`) and repetitions, in a replay cache that processes share. Where all
that is found is `krb5.conf`'s business. The keytab is read each time, so that its keys can change. When it or the
replay cache cannot be used nobody is let in, and the log says why.

The only module that needs the extra `kerberos` (gssapi, on the system's Kerberos library). Everything blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import gssapi

from harmony.gateway.authenticators import EvidenceRefused
from harmony.gateway.jwks import KeysUnavailable

__all__ = ["TicketAcceptor"]

MECHANISM: Final = bytes.fromhex("06 09 2a 86 48 86 f7 12 01 02 02")
"""1.2.840.113554.1.2.2, RFC 4121 §4.1."""
TOKEN: Final = 0x60
"""[APPLICATION 0] of an initial token (RFC 2743 §3.1)."""
AP_REQ: Final = 0x6E
"""[APPLICATION 14] (RFC 4120 §5.5.1)."""
TOKEN_ID_REQ: Final = bytes.fromhex("0100")
TOKEN_ID_REP: Final = bytes.fromhex("0200")

ERROR_TABLE_BASE: Final = -1765328384 & 0xFFFFFFFF
"""To which the library adds error codes of the protocol."""

REASONS: Final = {  # RFC 4120 §7.5.9
    31: "it is not what the key distribution centre has made",
    32: "it has expired",
    33: "it is not valid yet",
    34: "it has been used before",
    35: "it is for another service, or for a key that is not in the keytab",
    37: "its clock and ours differ too much",
    44: "it is for a key that is not in the keytab",
    45: "it is for a key that is not in the keytab",
}

OURS: Final = frozenset((*range(159, 173), 183, 184, 211, 213, 215))
"""KRB5_RC_..., KRB5_RCACHE_..., KRB5_KT_NOWRITE and _IOERR, KRB5_KEYTAB_BADVNO: replay cache or keytab is broken."""
KEYTAB_IS_EMPTY: Final = 181
"""KRB5_KT_NOTFOUND, also for a file that is no keytab."""
MAXIMUM_ERRNO: Final = 255
"""Minor codes up to it are those of the operating system."""
NO_KEY: Final = 39756033
"""KG_KEYTAB_NOMATCH, of the GSS-API library."""


class TicketAcceptor:
    """One service, and the keys that it has."""

    def __init__(self, keytab_path: Path, service_principal: str | None) -> None:
        """service_principal: None for every one that has a key. Raises OSError, and ValueError that says what is
        missing."""
        with keytab_path.open("rb"):  # for an error that says why
            pass
        try:
            name = None
            if service_principal is not None:
                name = gssapi.Name(service_principal, gssapi.NameType.kerberos_principal)
            self._credentials = gssapi.Credentials(
                name=name,
                usage="accept",
                mechs=[gssapi.MechType.kerberos],
                store={"keytab": f"FILE:{keytab_path}"},
            )
        except gssapi.exceptions.GSSError as error:
            if _number(error) == KEYTAB_IS_EMPTY or error.min_code == NO_KEY:
                whose = f"for {service_principal}" if service_principal is not None else "at all"
                raise ValueError(f"holds no key {whose}") from error
            raise ValueError(f"cannot be used: {_words(error)}") from error

    def accept(self, ticket: bytes) -> tuple[str, bytes]:
        """The client's principal and the answer to it, b"" for none. Raises EvidenceRefused and KeysUnavailable."""
        bare = ticket[:1] == bytes((AP_REQ,))
        context = gssapi.SecurityContext(creds=self._credentials, usage="accept")
        try:
            answer = context.step(_token(TOKEN_ID_REQ + ticket) if bare else ticket) or b""
            accepted = context.complete and context.mech == gssapi.MechType.kerberos
            if not accepted or context.actual_flags & gssapi.RequirementFlag.anonymity:
                raise EvidenceRefused("the ticket names nobody")
            client = str(context.initiator_name)
        except gssapi.exceptions.GSSError as error:
            if _number(error) in OURS or 0 < error.min_code <= MAXIMUM_ERRNO:
                raise KeysUnavailable(f"tickets cannot be checked: {_words(error)}") from error
            # The library's words quote what came.
            reason = REASONS.get(_number(error), "it is malformed")
            raise EvidenceRefused(f"the ticket is refused: {reason}") from None
        return client, _bare(answer) if bare else answer


def _number(error: gssapi.exceptions.GSSError) -> int:
    """In the table of Kerberos; out of its range for others."""
    return (int(error.min_code) & 0xFFFFFFFF) - ERROR_TABLE_BASE


def _words(error: gssapi.exceptions.GSSError) -> str:
    return " ".join(map(str, error.get_all_statuses(error.min_code, False)))


def _token(inner: bytes) -> bytes:
    """A token of the Kerberos mechanism (RFC 2743 §3.1)."""
    content = MECHANISM + inner
    return bytes((TOKEN,)) + _length(len(content)) + content


def _bare(token: bytes) -> bytes:
    """The AP-REP in a token."""
    _, mark, message = token.partition(MECHANISM + TOKEN_ID_REP)
    return message if mark else b""


def _length(length: int) -> bytes:
    """X.690 §8.1.3."""
    if length < 0x80:
        return bytes((length,))
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(octets),)) + octets
