"""The listeners of the running gateway, and how they become those of another configuration.

An address that both configurations have stays open, whoever is connected stays connected; what answers there changes
from one moment to the next. `Listeners.open` opens the rest, `swap` closes what is not wanted any more, or `restore`
puts everything back. Associations on a DICOM address that was closed are served to their end.

The management API, where it has a network of its own, is the first to listen and the last to stop.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from harmony.gateway.assembly import Assembly
from harmony.gateway.config import Listener
from harmony.gateway.dicom_scp import DicomListener
from harmony.gateway.errors import StartError
from harmony.gateway.tls import Certificates
from harmony.http import HTTPServer

__all__ = ["Listeners"]

logger = logging.getLogger("harmony.gateway")


@dataclass(frozen=True, slots=True)
class _HTTPAddress:
    network: str
    listener: Listener
    apart: bool
    """It carries the management API only."""
    certificates: Certificates = field(repr=False)
    """Of the gateway, and so the same in all of them."""


def _http_addresses(assembly: Assembly, *, apart: bool) -> list[_HTTPAddress]:
    """apart: those of the management API, or else all others."""
    own = assembly.management.own_networks if assembly.management is not None else frozenset()
    return [
        _HTTPAddress(network, listener, apart, assembly.certificates)
        for network, listener in assembly.http
        if (network in own) == apart
    ]


class Listeners:
    """http, management_http: servers without a listener yet, for everything and for the management API alone."""

    def __init__(self, http: HTTPServer, management_http: HTTPServer) -> None:
        self.http = http
        self.management_http = management_http
        self._http: list[_HTTPAddress] = []
        self._dicom: dict[Listener, DicomListener] = {}
        self._leaving: set[DicomListener] = set()
        """Not listening any more, with associations that are not over."""

    async def open_management(self, assembly: Assembly) -> None:
        """Before everything else, at the start. Raises StartError."""
        for address in _http_addresses(assembly, apart=True):
            await self._open_http(address)

    async def open(self, assembly: Assembly) -> None:
        """Listen on every address of an assembly that is not listened on yet. Raises StartError; what `restore` is
        given listens again then."""
        for wanted in self._missing(assembly):
            for other in self._in_the_way(wanted):
                self._close(other)
            await self._open(wanted)

    async def restore(self, assembly: Assembly) -> None:
        """Listen where an assembly listens, and nowhere else, after `open` was in vain for another one."""
        self._close_others(assembly)
        for wanted in self._missing(assembly):
            try:
                await self._open(wanted)
            except StartError as error:
                logger.error("%s; it was listened on until now", error)

    def swap(self, assembly: Assembly) -> None:
        """Everything is open that the assembly needs: let its endpoints answer, and close what it does not need."""
        for number, listener in enumerate(assembly.dicom):
            running = self._dicom[listener.address]
            if running is not listener:
                running.follow(listener)
                assembly.dicom[number] = running
        for address in [*_http_addresses(assembly, apart=True), *_http_addresses(assembly, apart=False)]:
            host, port = _place(address)
            self._server(address).limit(host, port, address.listener.limits)
        self._close_others(assembly)

    def _server(self, address: _HTTPAddress) -> HTTPServer:
        return self.management_http if address.apart else self.http

    def _close_others(self, assembly: Assembly) -> None:
        for address in set(self._dicom) - {each.address for each in assembly.dicom}:
            self._close(self._dicom[address])
        wanted = [*_http_addresses(assembly, apart=True), *_http_addresses(assembly, apart=False)]
        for unwanted in [each for each in self._http if each not in wanted]:
            self._close(unwanted)

    async def stop(self, grace_s: float) -> None:
        """All but the management API, at once."""
        listeners = [*self._dicom.values(), *self._leaving]
        self._dicom.clear()
        await asyncio.gather(
            self._stopped(self.http, grace_s), *(self._stopped(each, grace_s) for each in listeners)
        )
        self._leaving.clear()

    async def _stopped(self, server: HTTPServer | DicomListener, grace_s: float) -> None:
        if isinstance(server, DicomListener):
            self._leaving.add(server)  # until it has stopped, for whoever comes again after a cancelled stop
        try:
            await server.stop(grace_s)
        except Exception:
            logger.exception("a listener did not stop cleanly")

    def _missing(self, assembly: Assembly) -> list[_HTTPAddress | DicomListener]:
        """What is to be opened: new addresses first, as they may be taken by somebody else."""
        missing: list[_HTTPAddress | DicomListener] = [
            each for each in assembly.dicom if each.address not in self._dicom
        ]
        for apart in (True, False):
            missing += [each for each in _http_addresses(assembly, apart=apart) if each not in self._http]
        missing.sort(key=lambda each: bool(self._in_the_way(each)))
        return missing

    def _in_the_way(self, wanted: _HTTPAddress | DicomListener) -> list[_HTTPAddress | DicomListener]:
        """What has the address now, in another form (with another certificate, say)."""
        place = _place(wanted)
        open_now: list[_HTTPAddress | DicomListener] = [*self._http, *self._dicom.values()]
        return [each for each in open_now if _place(each) == place]

    async def _open(self, wanted: _HTTPAddress | DicomListener) -> None:
        if isinstance(wanted, _HTTPAddress):
            await self._open_http(wanted)
            return
        try:
            await wanted.start()
        except OSError as error:  # ssl.SSLError is one
            raise StartError(f"DICOM on {wanted.address}{_reason(error)}") from error
        self._dicom[wanted.address] = wanted
        self._leaving.discard(wanted)

    async def _open_http(self, wanted: _HTTPAddress) -> None:
        server, listener = self._server(wanted), wanted.listener
        try:
            context = None
            if listener.tls is not None:
                context = await asyncio.to_thread(wanted.certificates.server, listener.tls)
            await server.start(
                listener.host,
                listener.port,
                ssl=context,
                network=wanted.network,
                trusted_proxy=listener.trusts if listener.proxy_protocol else None,
                limits=listener.limits,
            )
        except OSError as error:
            raise StartError(f"HTTP on {listener}{_reason(error)}") from error
        self._http.append(wanted)

    def _close(self, unwanted: _HTTPAddress | DicomListener) -> None:
        if isinstance(unwanted, _HTTPAddress):
            self._server(unwanted).stop_listening(unwanted.listener.host, unwanted.listener.port)
            self._http.remove(unwanted)
            return
        unwanted.server.acceptor.stop_listening()
        del self._dicom[unwanted.address]
        self._leaving.add(unwanted)

    async def left(self) -> None:
        """Wait until the associations of what was closed are over."""
        for listener in list(self._leaving):
            for association in listener.server.acceptor.associations:
                await association.wait_closed()
            await self._stopped(listener, 0.0)
            self._leaving.discard(listener)


def _place(listening: _HTTPAddress | DicomListener) -> tuple[str, int]:
    listener = listening.listener if isinstance(listening, _HTTPAddress) else listening.address
    return listener.host, listener.port


def _reason(error: OSError) -> str:
    where = f": {error.filename}" if error.filename is not None else ""
    return f"{where}: {error.strerror or error}"
