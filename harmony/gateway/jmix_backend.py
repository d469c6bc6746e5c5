"""The `jmix_backend` backend: an upstream JMIX server, and the courier that brings it what waits in an
outbox.

A delivery is the upload of one envelope file, with Content-Length, to `POST {base}/api/jmix`. The envelope's
id was fixed long before the first try, so a try whose answer was lost is simply repeated: 409 says that the
upstream has it.

What an answer means:

    2xx, 409                            delivered
    2xx with the id of another envelope,
    408, 425, 429, 5xx, no connection,
    no answer in time                   tried again, with a growing delay, without end
    401, 403, 407                       tried again: it is the credentials that are wrong, not the envelope
    any other 4xx                       parked: kept, reported, and not tried again until somebody unparks it
                                        (`python -m harmony outbox`)
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from harmony.audit.message import DESTINATION, Participant
from harmony.gateway.addresses import jmix_base_path
from harmony.gateway.config import Backend as ConfiguredBackend
from harmony.gateway.envelope_audit import EnvelopeAudit
from harmony.gateway.http_upstream import upstream_client
from harmony.gateway.options import JmixBackendOptions
from harmony.gateway.tls import Certificates
from harmony.http.client import UpstreamError
from harmony.jmix.limits import canonical_envelope_id
from harmony.jmix.outbox import Delivery, Outbox, State, backoff_s

__all__ = ["Courier", "JmixUpstream", "Result", "Verdict"]

logger = logging.getLogger("harmony.gateway")

RETRIED_STATUSES = frozenset({401, 403, 407, 408, 425, 429})
CONFLICT = 409
KEEP_DELIVERED_S = 30 * 86400.0
"""Rows of what was delivered are kept this long, for whoever asks what became of an envelope."""

ERROR_TEXT_BYTES = 200

LOOK_AGAIN_S = 10.0
"""For what somebody else put into the outbox: a delivery that was unparked."""

DISK_DELAY_S = 5.0
"""Until the next try to write into an outbox whose disk is full."""


class Verdict(Enum):
    DELIVERED = "delivered"
    RETRY = "retry"
    PARK = "park"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one try. status None: there was no answer."""

    verdict: Verdict
    status: int | None
    error: str = ""


class JmixUpstream:
    """One upstream JMIX server."""

    def __init__(
        self,
        configured: ConfiguredBackend,
        *,
        certificates: Certificates | None = None,
        audit: EnvelopeAudit | None = None,
    ) -> None:
        """certificates: those of the gateway; None: read now and kept. audit: who is told of each attempt.

        Raises ValueError for an address or credentials that cannot be used, OSError for a CA file that is
        not there."""
        options = configured.options
        assert isinstance(options, JmixBackendOptions)
        assert configured.target is not None
        self.name = configured.name
        self.options = options
        self._audit = audit or EnvelopeAudit(None)
        self._participant = Participant(
            configured.target.url, address=configured.target.host, role=DESTINATION
        )
        self._client = upstream_client(
            configured,
            base_path=jmix_base_path(options.path_prefix, configured.target.base_path),
            maximum_connections=options.max_concurrent_uploads,
            certificates=certificates,
        )

    def __repr__(self) -> str:
        return f"<JmixUpstream {self.name} {self._client!r}>"

    async def upload(self, envelope_id: str, path: Path, content_type: str) -> Result:
        """Try once to deliver an envelope. Never raises for what the upstream does; OSError when the file is
        unreadable."""
        contents = await self._audit.upload_begins(path, self._participant)
        why = "it was not finished"
        try:
            result = await self._upload(envelope_id, path, content_type)
            if result.verdict is Verdict.DELIVERED:
                why = ""
            else:
                why = (
                    f"the upstream answered {result.status}"
                    if result.status
                    else "the upstream did not answer"
                )
            return result
        finally:
            self._audit.upload_ended(contents, self._participant, why)

    async def _upload(self, envelope_id: str, path: Path, content_type: str) -> Result:
        try:
            answer = await self._client.upload("POST", "", file_path=path, content_type=content_type)
        except UpstreamError as error:
            return Result(Verdict.RETRY, None, str(error))
        status = answer.status
        if 200 <= status < 300:
            taken = _envelope_id_in(answer.body)
            if taken is not None and taken != envelope_id:
                return Result(Verdict.RETRY, status, f"the upstream answered {status} for envelope {taken}")
            return Result(Verdict.DELIVERED, status)
        if status == CONFLICT:
            return Result(Verdict.DELIVERED, status)
        said = _printable(answer.body[:ERROR_TEXT_BYTES].decode("utf-8", "replace"))
        text = f"the upstream answered {status}: {said}"
        permanent = 400 <= status < 500 and status not in RETRIED_STATUSES
        return Result(Verdict.PARK if permanent else Verdict.RETRY, status, text)

    async def close(self) -> None:
        await self._client.aclose()


class Courier:
    """Delivers what is in an outbox to an upstream, several at a time, for as long as it runs."""

    def __init__(self, outbox: Outbox, upstream: JmixUpstream) -> None:
        self._outbox = outbox
        self._upstream = upstream
        self._wanted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._uploads: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Say what is waiting, and begin."""
        counts = await asyncio.to_thread(self._outbox.counts)
        if counts[State.PENDING] or counts[State.PARKED]:
            logger.info(
                "upstream %s: %d envelopes to deliver, %d parked",
                self._upstream.name,
                counts[State.PENDING],
                counts[State.PARKED],
            )
        self._task = asyncio.create_task(self._run(), name=f"courier {self._upstream.name}")

    def wake(self) -> None:
        """Something new is in the outbox."""
        self._wanted.set()

    async def stop(self, grace_s: float) -> None:
        """Begin nothing new, let uploads finish within grace_s; what is cut short is pending at the next
        start."""
        self._stopping.set()
        self._wanted.set()
        if self._task is not None:
            await asyncio.wait({self._task})  # not cancelled with us: we may be called again
        if self._uploads:
            _, late = await asyncio.wait(self._uploads, timeout=grace_s)
            for upload in late:
                upload.cancel()
            if late:
                await asyncio.wait(late)
        await self._upstream.close()

    async def _run(self) -> None:
        limit = self._upstream.options.max_concurrent_uploads
        while not self._stopping.is_set():
            self._wanted.clear()
            try:
                await self._begin(limit - len(self._uploads))
                next_due = await asyncio.to_thread(self._outbox.next_due)
                delay_s = LOOK_AGAIN_S
                if next_due is not None and len(self._uploads) < limit:  # else a finished upload wakes us
                    delay_s = min(delay_s, max(0.0, next_due - time.time()))
            except sqlite3.Error as error:
                logger.error("upstream %s: the outbox cannot be used: %s", self._upstream.name, error)
                delay_s = DISK_DELAY_S
            except Exception:
                logger.exception("upstream %s: deliveries cannot be begun", self._upstream.name)
                delay_s = DISK_DELAY_S
            try:
                async with asyncio.timeout(delay_s):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def _begin(self, free: int) -> None:
        if free <= 0:
            return
        for delivery in await asyncio.to_thread(self._outbox.claim_due, time.time(), limit=free):
            upload = asyncio.create_task(self._deliver(delivery))
            self._uploads.add(upload)
            upload.add_done_callback(self._uploaded)

    def _uploaded(self, upload: asyncio.Task[None]) -> None:
        self._uploads.discard(upload)
        self._wanted.set()
        if not upload.cancelled() and (error := upload.exception()) is not None:
            logger.error("upstream %s: a delivery failed", self._upstream.name, exc_info=error)

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            result = await self._upstream.upload(
                delivery.envelope_id, Path(delivery.payload_path), delivery.content_type
            )
        except (OSError, EOFError) as error:
            result = Result(Verdict.PARK, None, f"the envelope file cannot be read: {error}")
        while True:
            try:
                await asyncio.to_thread(self._record, delivery, result)
                return
            except sqlite3.Error as error:
                logger.error(
                    "envelope %s: what became of it cannot be written down: %s", delivery.envelope_id, error
                )
            try:
                async with asyncio.timeout(DISK_DELAY_S):
                    await self._stopping.wait()
                return  # it is tried again after the next start, and a 409 then says that it was delivered
            except TimeoutError:
                pass

    def _record(self, delivery: Delivery, result: Result) -> None:
        now, outbox, name = time.time(), self._outbox, self._upstream.name
        match result.verdict:
            case Verdict.DELIVERED:
                outbox.delivered(delivery.id, http_status=result.status or 0, now=now)
                logger.info("envelope %s delivered to %s (%s)", delivery.envelope_id, name, result.status)
                outbox.forget_delivered(before=now - KEEP_DELIVERED_S)
            case Verdict.RETRY:
                options = self._upstream.options
                delay_s = backoff_s(
                    delivery.attempts,
                    random=random.random,
                    first_s=options.retry_backoff_secs,
                    maximum_s=options.retry_backoff_max_secs,
                )
                outbox.failed(
                    delivery.id,
                    error=result.error,
                    retry_at=now + delay_s,
                    now=now,
                    http_status=result.status,
                )
                logger.warning(
                    "envelope %s not delivered to %s, try %d: %s; again in %.1f s",
                    delivery.envelope_id,
                    name,
                    delivery.attempts,
                    result.error,
                    delay_s,
                )
            case Verdict.PARK:
                outbox.parked(delivery.id, error=result.error, now=now, http_status=result.status)
                logger.error("envelope %s parked for %s: %s", delivery.envelope_id, name, result.error)


def _envelope_id_in(body: bytes) -> str | None:
    """The envelope that an answer is about: `{"id": "<UUID>", …}`. None when it does not say, or has ids of its own."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    said = answer.get("id") if isinstance(answer, dict) else None
    return canonical_envelope_id(said) if isinstance(said, str) else None


def _printable(text: str) -> str:
    """For logs, which are read line by line, and on terminals."""
    return "".join(character if character.isprintable() else " " for character in text)
