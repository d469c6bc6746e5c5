"""Authentication of associations by user identity (PS3.7 §D.3.3.7) or certificate, against the tables that HTTP has.

An endpoint that names an `authentication` requires proof; an association without it, or with an identity of another
type, is rejected 1/2/1 (rejected-permanent, ACSE, no reason given). While its sender is locked out, or keys cannot be
had, it is rejected-transient, 2/2/1. The response that a requestor may ask for is empty, as it is for types 1 and 2,
and for type 5 where the standard names none; for a Kerberos ticket (3) it is the AP-REP. A SAML response (4) says
success, which the association does as well, and would have to be signed: it is left empty.
"""

from __future__ import annotations

from collections.abc import Callable

from harmony.gateway.authentication import Denied, Gate
from harmony.gateway.principal import Failure
from harmony.ul.acceptor import VerifiedIdentity
from harmony.ul.association import Association
from harmony.ul.items import UserIdentityRQ
from harmony.ul.pdu import AssociateRJ, AssociateRQ

__all__ = ["IdentityCheck"]


class IdentityCheck:
    """An IdentityVerifier for the endpoints that share an address."""

    def __init__(self, gate_of: Callable[[AssociateRQ], tuple[str, Gate | None]]) -> None:
        """gate_of: the name of the endpoint that a request is for, and its gate, None where nothing is checked."""
        self._gate_of = gate_of

    async def __call__(
        self, identity: UserIdentityRQ | None, request: AssociateRQ, association: Association
    ) -> VerifiedIdentity | AssociateRJ | None:
        endpoint, gate = self._gate_of(request)
        if gate is None:
            return VerifiedIdentity(None)
        asked = gate.authenticator
        try:
            principal = await gate.admit(
                lambda: asked.from_association(identity, association.peer_certificate),
                address=association.peer[0],
                protocol="dicom",
                endpoint=endpoint,
                calling_ae_title=request.calling_ae_title,
            )
        except Denied as error:
            later = error.failure in (Failure.LOCKED_OUT, Failure.UNAVAILABLE)
            return AssociateRJ(2, 2, 1) if later else None
        # A certificate proves who calls; an identity that came with it has not been looked at.
        return VerifiedIdentity(
            None if asked.method == "mutual_tls" else principal.server_response, principal
        )
