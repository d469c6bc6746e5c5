"""Associations that begin in one process and go on in another.

One process listens and decides: limits, titles, identities. Where it accepts, `Acceptor.on_accepting` may give the
connection away with `Association.hand_over`: the descriptor goes to another process, by `socket.send_fds` say, along
with the request, the answer and the peer's address. There `adopt` makes an association of them, whose protocol machine
begins in Sta2 like any other, reads the request again and gives the answer (PS3.8 Table 9-10).

The association counts where it was accepted, towards every limit, until the other process says that it is over
(`Association.ended_elsewhere`, `closed_elsewhere`). How the two talk is their own affair. A connection with TLS stays
where its keys are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from harmony.ul.association import Association, AssociationUser
from harmony.ul.deadlines import Timeouts
from harmony.ul.pdu import AssociateAC, AssociateRQ
from harmony.ul.upper_layer import Role, SizeLimits

__all__ = ["adopt"]


async def adopt(
    sock: socket.socket,
    user: AssociationUser,
    *,
    request: bytes,
    response: AssociateAC,
    peer: tuple[str, int],
    timeouts: Timeouts | None = None,
    size_limits: SizeLimits | None = None,
    on_releasing: Callable[[Association], None] | None = None,
    on_closed: Callable[[Association], None] | None = None,
) -> Association:
    """Go on with an association that was handed over: the answer is sent, the user told.

    request: the A-ASSOCIATE-RQ, as it was read. on_releasing: told before a release is answered, so that the peer finds
    its place free when it comes again. on_closed: told when the connection is closed. Raises OSError; the socket is
    closed then.
    """

    def requested(association: Association, _: AssociateRQ) -> None:
        association.answer(response)

    association = Association(
        Role.ACCEPTOR,
        user,
        peer=peer,
        timeouts=timeouts or Timeouts(),
        limits=size_limits,
        on_connected=lambda association: association.replay(request),
        on_request=requested,
        on_releasing=on_releasing,
        on_closed=on_closed,
    )
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: association, sock)
    except BaseException:
        sock.close()
        raise
    return association
