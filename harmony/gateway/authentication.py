"""Who may ask: credentials in, a Principal or a refusal out, and everybody who wants to know is told.

A `Gate` stands before an `Authenticator`: it counts failures, locks out for a while whoever has too many of them
(`harmony.gateway.lockout`), and reports each attempt. HTTP requests and associations pass the same gates, so that
failures on one side count on the other. `Authentications` holds the gates of a gateway, one per table that is named.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final
from weakref import WeakValueDictionary

from harmony.gateway.authenticators import Authenticator, Evidence, EvidenceRefused
from harmony.gateway.config import Authentication, ConfigError, Origin
from harmony.gateway.jwks import KEEP_S, RETRY_S, KeysUnavailable
from harmony.gateway.lockout import Lockout, Who
from harmony.gateway.options import AuthenticationOptions
from harmony.gateway.principal import (
    AuthenticationOutcome,
    Failure,
    OnAuthentication,
    Principal,
    Protocol,
)
from harmony.gateway.providers import Unusable, authenticator
from harmony.http.authorization import MalformedCredentials

__all__ = ["Authentications", "Denied", "Gate"]

logger = logging.getLogger("harmony.gateway")

WINDOW_S: Final = 300.0
"""In which failures count together."""

LOGGED_CHARS: Final = 64
"""Of a claimed name."""

WORKERS: Final = 1
"""Threads that derive passwords, of all gates together: guessers are to wait, and nobody else."""


class Denied(Exception):
    """Not let in."""

    def __init__(self, failure: Failure, *, retry_after_s: float = 0.0) -> None:
        super().__init__(failure.value)
        self.failure = failure
        self.retry_after_s = retry_after_s
        """Before which another attempt is of no use; 0: no matter when."""


class Gate:
    """One authenticator and its count of failures."""

    def __init__(
        self,
        name: str,
        authenticator: Authenticator,
        *,
        lockout: Lockout,
        report: OnAuthentication,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """name: of the table, as outcomes have it."""
        self.name = name
        self.authenticator = authenticator
        self._lockout = lockout
        self._report = report
        self._clock = clock
        self._attempts: WeakValueDictionary[Who, asyncio.Lock] = WeakValueDictionary()

    async def admit(
        self,
        read: Callable[[], Evidence | None],
        *,
        address: str,
        protocol: Protocol,
        endpoint: str,
        calling_ae_title: str = "",
    ) -> Principal:
        """Who it is. Raises Denied.

        read: what is presented, None for nothing; may raise MalformedCredentials and EvidenceRefused. address: of the
        client, without a port.
        """
        claimed = ""

        def report(name: str, failure: Failure | None = None, reason: str = "") -> None:
            outcome = AuthenticationOutcome(
                self.name,
                self.authenticator.method,
                name=name,
                address=address,
                protocol=protocol,
                endpoint=endpoint,
                failure=failure,
                reason=reason,
                calling_ae_title=calling_ae_title,
            )
            self._report(outcome)

        try:
            evidence = read()
            if evidence is None:
                raise Denied(Failure.MISSING)
            claimed = evidence.name
            principal = await self._verify(evidence, (address, claimed))
        except MalformedCredentials as error:
            report(claimed, Failure.MALFORMED, str(error))
            raise Denied(Failure.MALFORMED) from error
        except EvidenceRefused as error:
            report(claimed, Failure.REFUSED, str(error))
            raise Denied(Failure.REFUSED) from error
        except KeysUnavailable as error:
            report(claimed, Failure.UNAVAILABLE, str(error))
            raise Denied(Failure.UNAVAILABLE, retry_after_s=RETRY_S) from error
        except Denied as error:
            report(claimed, error.failure)
            raise
        report(principal.name)
        return principal

    async def _verify(self, evidence: Evidence, who: Who) -> Principal:
        if not self.authenticator.guessable:
            return await self.authenticator.verify(evidence)
        attempt = self._attempts.get(who)
        if attempt is None:
            attempt = self._attempts[who] = asyncio.Lock()
        async with attempt:  # one after the other, so that many at a time do not outrun the count
            locked_s = self._lockout.locked_s(who, self._clock())
            if locked_s:
                raise Denied(Failure.LOCKED_OUT, retry_after_s=locked_s)
            try:
                principal = await self.authenticator.verify(evidence)
            except EvidenceRefused:
                if self._lockout.failed(who, self._clock()):
                    logger.warning("%s: %s is locked out: too many failures", self.name, _shown(*who))
                raise
            self._lockout.succeeded(who)
            return principal


class Authentications:
    """The gates of a gateway, and who is told what happens at them."""

    def __init__(self, *, keep_keys_s: float = KEEP_S, previous: Authentications | None = None) -> None:
        """keep_keys_s: for how long fetched keys are good. previous: whose place this takes when a configuration is
        loaded again; who is told stays told, and who is locked out stays so unless the limits are others."""
        self._keep_keys_s = keep_keys_s
        self._gates: dict[Origin, Gate] = {}
        self._told: list[OnAuthentication] = previous._told if previous is not None else []
        self._lockouts: dict[tuple[str, int, float], Lockout] = (
            dict(previous._lockouts) if previous is not None else {}
        )
        self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="passwords")

    def subscribe(self, on_authentication: OnAuthentication) -> None:
        """Have somebody told of every attempt."""
        self._told.append(on_authentication)

    def gate(self, configured: Authentication) -> Gate:
        """That of a table, the same for all who name it. Raises ConfigError."""
        if configured.origin not in self._gates:
            options = configured.options
            assert isinstance(options, AuthenticationOptions)
            try:
                asked = authenticator(configured, self._executor, keep_s=self._keep_keys_s)
            except Unusable as error:
                raise ConfigError([configured.origin.problem(error.key, str(error))]) from error
            lockout = self._lockout(configured.origin.table, options)
            self._gates[configured.origin] = Gate(configured.id, asked, lockout=lockout, report=self._tell)
        return self._gates[configured.origin]

    def _lockout(self, table: str, options: AuthenticationOptions) -> Lockout:
        limits = (table, options.max_failures, options.lockout_secs)
        if limits not in self._lockouts:
            _, max_failures, lockout_s = limits
            self._lockouts[limits] = Lockout(
                max_failures=max_failures, window_s=WINDOW_S, lockout_s=lockout_s
            )
        return self._lockouts[limits]

    async def stop(self, grace_s: float) -> None:
        async with AsyncExitStack() as closing:
            closing.callback(self._executor.shutdown, wait=False, cancel_futures=True)
            for gate in self._gates.values():
                closing.push_async_callback(gate.authenticator.aclose)

    def _tell(self, outcome: AuthenticationOutcome) -> None:
        if outcome.failure is not None:
            logger.info(
                "%s: %s was not let in to %s: %s%s",
                outcome.authentication,
                _shown(outcome.address, outcome.name),
                outcome.endpoint,
                outcome.failure.value,
                f" ({outcome.reason})" if outcome.reason else "",
            )
        for told in self._told:
            told(outcome)


def _shown(address: str, name: str) -> str:
    return f"{name[:LOGGED_CHARS]!r} from {address}" if name else address


def retry_after(seconds: float) -> str:
    """As Retry-After has it (RFC 9110 §10.2.3)."""
    return str(max(1, math.ceil(seconds)))
