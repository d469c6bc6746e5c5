"""The DICOM Upper Layer of PS3.8: associations over TCP or TLS, with nothing but the standard library.

Three ways in, from the top: `request_association` and `Acceptor` for asyncio programs that bring their own
`AssociationUser`; `Association`, what both of them give you; `UpperLayer`, the protocol machine without any I/O.
Most programs want `harmony.dimse` instead.
"""

from harmony.ul.acceptor import Acceptor, AcceptorLimits, IdentityVerifier
from harmony.ul.association import Association, AssociationUser
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import (
    AssociationAborted,
    AssociationError,
    AssociationRejected,
    AssociationReleased,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    LocalProtocolError,
    RemoteProtocolError,
    ULError,
)
from harmony.ul.items import (
    APPLICATION_CONTEXT_NAME,
    AsynchronousOperationsWindow,
    CommonExtendedNegotiation,
    ContextResult,
    ContextResultCode,
    ExtendedNegotiation,
    ProposedContext,
    RoleSelection,
    UserIdentityAC,
    UserIdentityRQ,
    UserInformation,
)
from harmony.ul.negotiation import (
    DEFAULT_MAXIMUM_LENGTH,
    AcceptorPolicy,
    Negotiated,
    PresentationContext,
    SupportedAbstractSyntax,
    negotiate,
    propose_contexts,
    result_of,
)
from harmony.ul.pdu import (
    PDU,
    Abort,
    AssociateAC,
    AssociateRJ,
    AssociateRQ,
    PDataTF,
    PDUType,
    PresentationDataValue,
    ReleaseRP,
    ReleaseRQ,
    decode,
)
from harmony.ul.requestor import request_association
from harmony.ul.state import State
from harmony.ul.upper_layer import EventLog, Receiver, Role, SizeLimits, UpperLayer

__all__ = [
    "APPLICATION_CONTEXT_NAME",
    "DEFAULT_MAXIMUM_LENGTH",
    "PDU",
    "Abort",
    "Acceptor",
    "AcceptorLimits",
    "AcceptorPolicy",
    "AssociateAC",
    "AssociateRJ",
    "AssociateRQ",
    "Association",
    "AssociationAborted",
    "AssociationError",
    "AssociationRejected",
    "AssociationReleased",
    "AssociationUser",
    "AsynchronousOperationsWindow",
    "CommonExtendedNegotiation",
    "ConnectFailed",
    "ConnectionLost",
    "ContextResult",
    "ContextResultCode",
    "DeadlineExceeded",
    "EventLog",
    "ExtendedNegotiation",
    "IdentityVerifier",
    "LocalProtocolError",
    "Negotiated",
    "PDUType",
    "PDataTF",
    "PresentationContext",
    "PresentationDataValue",
    "ProposedContext",
    "Receiver",
    "ReleaseRP",
    "ReleaseRQ",
    "RemoteProtocolError",
    "Role",
    "RoleSelection",
    "SizeLimits",
    "State",
    "SupportedAbstractSyntax",
    "Timeouts",
    "ULError",
    "UpperLayer",
    "UserIdentityAC",
    "UserIdentityRQ",
    "UserInformation",
    "decode",
    "negotiate",
    "propose_contexts",
    "request_association",
    "result_of",
]
