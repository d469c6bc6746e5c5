"""Peers that break off, and peers that send what nobody should: resets in every state, damaged PDUs and requests.

What is damaged comes from a seed, printed with a failure by way of the peer's number, so that it can be done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

from tests.faults.peers import GONE, Peer, crowd
from tests.faults.program import make_instance
from tests.faults.trial import DICOM_DEADLINES, Trial, fault
from tests.faults.wire import ABORT, RELEASE_RQ, associate_rq, c_find_rq, c_get_rq, c_store_rq
from tests.faults.witness import instance_of

OWN_STUDY = "1.2.8.2"
LISTEN_S = 1.0
"""For an answer to what is damaged: the gateway either answers at once or waits for more, until its deadline."""
STORE = c_store_rq("1.2.3.910000", bytes(make_instance(910_000, study=OWN_STUDY, size_bytes=40_000).data))


@fault()
async def resets(trial: Trial) -> None:
    """TCP resets in each state of PS3.8 Table 9-10 that an acceptor can be in, and in each part of an HTTP exchange."""
    gateway = trial.gateway
    study = "1.2.9.1"
    associated = [  # what is sent after the association was accepted, and whether an answer is awaited
        (b"", False),  # Sta6
        (STORE[:3], False),  # in a PDU header
        (STORE[:60], False),  # in a command
        (STORE[: STORE.index(b"\x04\x00", 100)], False),  # between command and data set
        (STORE[:-30], False),  # in the data set
        (STORE, False),  # while it is stored
        (STORE, True),  # Sta6 again
        (c_find_rq(study), False),  # while it is answered
        (c_get_rq(study), False),
        (c_get_rq(study), True),  # with a C-STORE of the gateway outstanding
        (RELEASE_RQ, False),  # Sta8, Sta13
        (RELEASE_RQ, True),
        (ABORT, False),
        (STORE + RELEASE_RQ, False),
    ]
    request = b"GET /dicom-web/studies/1.2.9.1/metadata HTTP/1.1\r\nHost: localhost\r\n\r\n"
    upload = (
        b"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        b'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n\r\n--b\r\n'
    )

    async def break_off(number: int) -> None:
        for sent in (b"", associate_rq()[:5], associate_rq()[:100], associate_rq()):  # Sta2, Sta3
            peer = await Peer.connect(gateway.port)
            peer.send(sent)
            peer.reset()
        for sent, answered in associated:
            peer = await Peer.associated(gateway.port)
            peer.send(sent)
            with contextlib.suppress(*GONE):
                if answered:
                    await peer.pdu()
                else:
                    await peer.writer.drain()
            peer.reset()
        for sent, answered in (
            (b"", False),
            (request[:20], False),
            (request, False),
            (request, True),
            (upload, False),
        ):
            peer = await Peer.connect(gateway.http_port)
            peer.send(sent)
            if answered:
                await peer.reader.read(10)
            peer.reset()
        trial.injected += 4 + len(associated) + 5

    await crowd(trial.many(100, 4), break_off, at_once=4)


def damaged(choice: random.Random, whole: bytes) -> bytes:
    """Bits flipped, bytes left out, repeated or put in, a length changed, or the end cut off."""
    data = bytearray(whole)
    for _ in range(choice.randint(1, 3)):
        place = choice.randrange(len(data))
        match choice.randrange(6):
            case 0:
                del data[place:]
                data += b"\0"
            case 1:
                for _ in range(choice.randint(1, 8)):
                    data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
            case 2:
                del data[place : place + choice.randint(1, 8)]
                data += b"\0"
            case 3:
                data[place:place] = choice.randbytes(choice.randint(1, 8))
            case 4:
                data[place:place] = data[place : place + choice.randint(1, 500)]
            case 5:
                data[place : place + 4] = choice.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1")
                )
    return bytes(data)


@fault(scp=DICOM_DEADLINES)
async def broken_pdus(trial: Trial) -> None:
    """A-ASSOCIATE-RQ, C-STORE, C-FIND, C-GET and release with flipped bits, wrong lengths, pieces missing or twice."""
    seed = 1

    async def send(number: int) -> None:
        choice = random.Random(seed * 1_000_000 + number)
        message = choice.choice(
            (STORE[:3000], STORE, c_find_rq(OWN_STUDY), c_get_rq("1.2.9.1"), RELEASE_RQ, ABORT)
        )
        if choice.random() < 0.3:
            peer = await Peer.connect(trial.gateway.port)
            peer.send(damaged(choice, associate_rq()) + message)
        else:
            peer = await Peer.associated(trial.gateway.port)
            peer.send(damaged(choice, message) + RELEASE_RQ)
        await _listen(peer)
        trial.injected += 1

    await crowd(trial.many(2000, 80), send, at_once=40)


@fault()
async def broken_requests(trial: Trial) -> None:
    """Stores, searches and retrieves over HTTP, damaged in the same ways."""
    seed = 2
    part10 = bytes(128) + b"DICM" + instance_of(1).data[:2000]
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + part10 + b"\r\n--b--\r\n"
    upload = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n\r\n'
    ).encode() + body
    searches = [
        f"GET /dicom-web/{path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/dicom+json\r\n\r\n".encode()
        for path in (
            "studies?PatientID=1&limit=2",
            "studies/1.2.9.1/metadata",
            "instances?StudyDate=20240101-",
        )
    ]

    async def send(number: int) -> None:
        choice = random.Random(seed * 1_000_000 + number)
        peer = await Peer.connect(trial.gateway.http_port)
        peer.send(damaged(choice, choice.choice((upload, *searches))))
        await _listen(peer)
        trial.injected += 1

    await crowd(trial.many(2000, 80), send, at_once=40)


async def _listen(peer: Peer) -> None:
    """Hear what the gateway says, until it ends the connection or waits for more; then leave."""
    with contextlib.suppress(*GONE, TimeoutError):
        async with asyncio.timeout(LISTEN_S):
            while await peer.reader.read(1 << 16):
                pass
    peer.close()
