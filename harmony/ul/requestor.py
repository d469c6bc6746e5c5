"""Request an association: resolve, connect, TLS, A-ASSOCIATE, each phase under its deadline (PS3.8 §7.1)."""

from __future__ import annotations

import asyncio
import ssl

from harmony.ul.association import Association, AssociationUser
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import AssociationError, ConnectFailed, DeadlineExceeded
from harmony.ul.pdu import AssociateRQ
from harmony.ul.tls import TLSContext, connect, describe_failure
from harmony.ul.upper_layer import Role, SizeLimits

__all__ = ["request_association"]


async def request_association(
    host: str,
    port: int,
    request: AssociateRQ,
    user: AssociationUser,
    *,
    ssl_context: TLSContext | None = None,
    server_hostname: str | None = None,
    timeouts: Timeouts | None = None,
    limits: SizeLimits | None = None,
) -> Association:
    """Connect to an acceptor and return the established association.

    One deadline, `timeouts.connect_s`, covers name resolution, TCP and TLS; `timeouts.associate_s` the
    answer. Raises ConnectFailed, AssociationRejected, AssociationAborted, ConnectionLost or DeadlineExceeded,
    and LocalProtocolError for a request that cannot be encoded. Cancelling it closes the connection.
    """
    timeouts = timeouts or Timeouts()
    loop = asyncio.get_running_loop()
    association = Association(Role.REQUESTOR, user, timeouts=timeouts, limits=limits, request=request)
    try:
        async with asyncio.timeout(timeouts.connect_s) as deadline:
            if ssl_context is None:
                await loop.create_connection(lambda: association, host, port)
            else:
                await connect(
                    lambda: association,
                    host,
                    port,
                    context=ssl_context,
                    server_hostname=server_hostname or host,
                )
    except (OSError, UnicodeError) as error:
        reason = _describe(error, secured=ssl_context is not None)
        failure: AssociationError = ConnectFailed(f"cannot connect to {host}:{port}: {reason}")
        if deadline.expired():
            failure = DeadlineExceeded(f"connecting to {host}:{port}", timeouts.connect_s or 0.0)
        association.give_up(failure)
        raise failure from error
    except asyncio.CancelledError:
        association.give_up(ConnectFailed(f"connecting to {host}:{port} was cancelled"))
        raise
    try:
        await association.wait_established()
    except asyncio.CancelledError:
        association.abort()
        association.cut_after_writing()
        raise
    except AssociationError:
        association.cut_after_writing()  # nobody waits for it any more, not even for the peer to close
        raise
    return association


def _describe(error: Exception, *, secured: bool) -> str:
    if isinstance(error, ssl.SSLError):
        return describe_failure(error)
    if secured and isinstance(error, ConnectionResetError | ConnectionAbortedError):
        return f"{describe_failure(error)}; does the peer speak TLS on this port?"
    return str(error) or type(error).__name__
