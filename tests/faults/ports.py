"""TCP ports on 127.0.0.1 that nobody listens on."""

from __future__ import annotations

import contextlib
import random
import socket

__all__ = ["free_ports"]

FREE_PORTS = range(20000, 32000)


def free_ports(count: int) -> list[int]:
    """That many different ones. They are below those that systems give to outgoing connections, one of which would else
    take a port between this and the start of the program that it is for."""
    ports: list[int] = []
    for port in random.sample(FREE_PORTS, k=len(FREE_PORTS)):
        if len(ports) == count:
            break
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    assert len(ports) == count
    return ports
