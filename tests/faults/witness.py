"""Well-behaved peers: they store and read all the time while something goes wrong for others, and remember.

A `Sender` keeps its association, or makes one for each object, as modalities do. A `Reader` searches for what was
acknowledged last and retrieves it, over DICOMweb, with Python's own HTTP client. What they note: how much was answered,
and the longest time without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from harmony.dimse import SCU, Instance, associate
from harmony.dimse.status import DimseError
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import AssociationError
from harmony.ul.negotiation import propose_contexts
from tests.faults.program import CT, IMPLICIT, make_instance

RESPONSE_S = 30.0
PACE_S = 0.02
"""Between the beginnings of two objects of a sender, unless an answer takes longer: 50 objects/s each."""
AGAIN_S = 0.1
"""Before another try after an association, or a connection, was lost or refused."""
PER_ASSOCIATION = 50
REFUSALS = frozenset((0xA700,))
"""Out of resources: worth another try (PS3.4 Table B.2-1)."""


def instance_of(number: int) -> Instance:
    """The objects that witnesses send: 2.5 to 42 KB, ten to a study."""
    return make_instance(number, study=f"1.2.9.{number // 10 + 1}", size_bytes=pixel_bytes_of(number))


def pixel_bytes_of(number: int) -> int:
    return (2_500 + number * 7919 % 40_000) & ~1


class Answers:
    """When something was answered: how often, and the longest time without."""

    def __init__(self) -> None:
        self.count = 0
        self.longest_gap_s = 0.0
        self._last = time.monotonic()

    def began(self) -> None:
        self._last = time.monotonic()

    def came(self) -> None:
        self.count += 1
        self.waited()

    def waited(self) -> None:
        """The time since the last one counts, whatever comes."""
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._last)
        self._last = now


@dataclass
class Sender:
    """Stores objects over and over. acknowledged: the numbers of those that were answered 0000."""

    port: int
    numbers: Iterator[int]
    per_association: int = PER_ASSOCIATION
    pace_s: float = PACE_S
    ssl_context: ssl.SSLContext | None = None
    acknowledged: list[int] = field(default_factory=list)
    answers: Answers = field(default_factory=Answers)
    refused: int = 0
    """Answered with one of REFUSALS; the object is tried again a little later."""
    lost: int = 0
    """Associations that broke or did not come about."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _pending: int | None = None

    async def run(self) -> None:
        self.answers.began()
        while not self.stopping.is_set():
            try:
                async with self.association() as scu:
                    for _ in range(self.per_association):
                        if self.stopping.is_set():
                            break
                        await self._store(scu)
            except (AssociationError, ExceptionGroup) as error:
                if isinstance(error, ExceptionGroup) and error.split(AssociationError)[1] is not None:
                    raise
                self.lost += 1
                await self._pause(AGAIN_S)

    async def finish(self) -> None:
        """One more object acknowledged after all, then stop; the time until then is waiting as well."""
        if self.stopping.is_set():
            return
        target = len(self.acknowledged) + 1
        async with asyncio.timeout(RESPONSE_S):
            while len(self.acknowledged) < target:  # noqa: ASYNC110 - it is `run` that counts
                await asyncio.sleep(0.01)
        self.stopping.set()

    @contextlib.asynccontextmanager
    async def association(self) -> AsyncIterator[SCU]:
        async with associate(
            "127.0.0.1",
            self.port,
            called_ae_title="GATEWAY",
            calling_ae_title="WITNESS",
            contexts=propose_contexts([(CT, [IMPLICIT])]),
            ssl_context=self.ssl_context,
            server_hostname="localhost" if self.ssl_context is not None else None,
            timeouts=Timeouts(connect_s=RESPONSE_S, pdu_s=RESPONSE_S),
            response_s=RESPONSE_S,
        ) as scu:
            yield scu

    async def _store(self, scu: SCU) -> None:
        began = time.monotonic()
        number = self._pending if self._pending is not None else next(self.numbers)
        self._pending = number  # until it is answered: a sender repeats what it lost
        try:
            outcome = await scu.store(instance_of(number))
        except DimseError as error:
            if error.status not in REFUSALS:
                raise
            self.refused += 1
            self.answers.came()
            await self._pause(AGAIN_S)
            return
        assert outcome.status == 0x0000, f"{number} was answered {outcome}"
        self._pending = None
        self.acknowledged.append(number)
        self.answers.came()
        await self._pause(max(0.0, began + self.pace_s - time.monotonic()))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()


@dataclass
class Reader:
    """Searches for and retrieves the last object that a sender had acknowledged."""

    http_port: int
    sender: Sender
    answers: Answers = field(default_factory=Answers)
    failed: dict[str, int] = field(default_factory=dict)
    """Answers that were none, by what came."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        self.answers.began()
        while not self.stopping.is_set():
            if self.sender.acknowledged:
                await self.read(self.sender.acknowledged[-1])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self.stopping.wait()
        self.answers.waited()

    async def read(self, number: int) -> None:
        try:
            await asyncio.to_thread(self.read_one, number)
        except (OSError, http.client.HTTPException, Unavailable) as error:
            reason = str(error) if isinstance(error, Unavailable) else type(error).__name__
            self.failed[reason] = self.failed.get(reason, 0) + 1
        else:
            self.answers.came()

    def read_one(self, number: int) -> None:
        """Find an object by its UID, and get it as it was sent. Raises Unavailable for a 5xx."""
        instance = instance_of(number)
        (found,) = self.search(f"/instances?SOPInstanceUID={instance.sop_instance_uid}")
        study = found["0020000D"]["Value"][0]
        path = f"/studies/{study}/series/{study}.1/instances/{instance.sop_instance_uid}"
        content = self.get(
            path, accept="application/dicom"
        )  # on the web VRs are explicit, pixels what they were
        pixels = bytes(instance.data)[-pixel_bytes_of(number) :]
        assert content.endswith(pixels), f"{number} was retrieved, and not as it was sent"

    def search(self, path: str) -> list[dict[str, dict[str, list[str]]]]:
        return json.loads(self.get(path) or b"[]")

    def get(self, path: str, *, accept: str = "application/dicom+json") -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=RESPONSE_S)
        try:
            connection.request("GET", "/dicom-web" + path, headers={"Accept": accept})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 500:
            raise Unavailable(str(answer.status))
        assert answer.status in (200, 204), f"GET {path}: {answer.status} {content[:200]!r}"
        return content


class Unavailable(Exception):
    """The gateway said that it cannot now."""
