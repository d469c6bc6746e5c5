"""Loopback for the upper layer: both event loops, raw peers, users that remember, certificates, and a watch on leaks.

Bytes are put together by hand. Every wait here has a limit of some seconds that no passing test comes near.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from harmony.ul.acceptor import Acceptor
from harmony.ul.errors import AssociationError
from harmony.ul.items import ProposedContext, UserInformation
from harmony.ul.negotiation import AcceptorPolicy, SupportedAbstractSyntax
from harmony.ul.pdu import AssociateRQ
from harmony.ul.requestor import request_association

PATIENCE_S = 3.0

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"


def pytest_asyncio_loop_factories(config, item):
    """Every asynchronous test here runs on both loops."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


class Wire:
    """PDUs as bytes."""

    RELEASE_RQ = bytes.fromhex("05 00 00000004 00000000")
    RELEASE_RP = bytes.fromhex("06 00 00000004 00000000")
    ABORT = bytes.fromhex("07 00 00000004 00 00 00 00")

    @staticmethod
    def pdu(pdu_type, body):
        return struct.pack(">BBI", pdu_type, 0, len(body)) + body

    @staticmethod
    def item(item_type, body):
        return struct.pack(">BBH", item_type, 0, len(body)) + body

    @staticmethod
    def p_data(fragment, *, context_id=1, control=3):
        return Wire.pdu(4, struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment)

    @staticmethod
    def provider_abort(reason):
        return bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, reason))

    @staticmethod
    def reject(result, source, reason):
        return bytes((3, 0, 0, 0, 0, 4, 0, result, source, reason))

    @classmethod
    def associate_rq(cls, contexts=None, user_items=b"", *, called=b"CALLED", calling=b"CALLING"):
        if contexts is None:
            contexts = [(1, b"1.2.840.10008.1.1", [b"1.2.840.10008.1.2"])]
        proposed = b"".join(
            cls.item(
                0x20,
                bytes((identifier, 0, 0, 0))
                + cls.item(0x30, abstract)
                + b"".join(cls.item(0x40, syntax) for syntax in syntaxes),
            )
            for identifier, abstract, syntaxes in contexts
        )
        return cls.pdu(
            1,
            b"\0\1\0\0"
            + called.ljust(16)
            + calling.ljust(16)
            + bytes(32)
            + cls.item(0x10, b"1.2.840.10008.3.1.1.1")
            + proposed
            + cls.item(0x50, cls.item(0x51, b"\0\0\x40\0") + cls.item(0x52, b"1.2.3") + user_items),
        )

    @classmethod
    def associate_ac(cls, user_items=b""):
        return cls.pdu(
            2,
            b"\0\1\0\0"
            + bytes(64)
            + cls.item(0x10, b"1.2.840.10008.3.1.1.1")
            + cls.item(0x21, b"\1\0\0\0" + cls.item(0x40, b"1.2.840.10008.1.2"))
            + cls.item(0x50, cls.item(0x51, b"\0\0\x40\0") + cls.item(0x52, b"1.2.3") + user_items),
        )


@pytest.fixture
def wire():
    return Wire


class User:
    """An AssociationUser that remembers; `told` has what it heard, in order."""

    def __init__(self, *, on_established=None, on_p_data=None, answer_release=True) -> None:
        self.receiving = False
        self.is_busy = False
        self.association = None
        self.told: list[object] = []
        self.data = bytearray()
        self._on_established = on_established
        self._on_p_data = on_p_data
        self._answer_release = answer_release
        self._changed = asyncio.Event()

    def _tell(self, what: object) -> None:
        self.told.append(what)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition on what was told holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_told(self, what: object) -> None:
        await self.until(lambda: what in self.told)

    @property
    def ends(self) -> list[AssociationError | None]:
        return [what[1] for what in self.told if isinstance(what, tuple)]

    def established(self, association):
        self.association = association
        self._tell("established")
        if self._on_established is not None:
            self._on_established(association)

    def p_data(self, presentation_context_id, message_control_header, fragment, complete):
        self.data += fragment
        self._changed.set()
        if self._on_p_data is not None:
            self._on_p_data(self.association)

    def release_requested(self):
        self._tell("release")
        if self._answer_release:
            self.association.respond_release()

    def busy(self):
        return self.is_busy

    def writable(self):
        self._tell("writable")

    def ended(self, error):
        self._tell(("ended", error))


@pytest.fixture
def make_user():
    return User


class Peer:
    """The other end of a connection, as a bare socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.port = sock.getsockname()[1]
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._loop.sock_sendall(self.socket, data)

    async def receive(self, size: int) -> bytes:
        """Exactly size bytes, fewer at the end."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            while len(data) < size:
                piece = await self._loop.sock_recv(self.socket, size - len(data))
                if not piece:
                    break
                data += piece
        return data

    async def receive_pdu(self) -> bytes:
        header = await self.receive(6)
        return header + await self.receive(int.from_bytes(header[2:6], "big"))

    async def receive_all(self) -> bytes:
        """Everything until the connection is closed; a reset counts as closed."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                while piece := await self._loop.sock_recv(self.socket, 65536):
                    data += piece
        return data

    async def exchange(self, data: bytes) -> bytes:
        await self.send(data)
        return await self.receive_pdu()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Neither tasks nor descriptors may be left of a test, and the loop must not have complained."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    await loop.run_in_executor(None, int)  # whatever the executor opens is there before the count
    before = _descriptors()
    yield
    async with asyncio.timeout(PATIENCE_S):
        while len(asyncio.all_tasks()) > 1 or _descriptors() > before:
            await turn()  # closing takes the loop a few
    assert complaints == []


async def turn() -> None:
    """One turn of the event loop."""
    await asyncio.sleep(0)


def _descriptors() -> int:
    """Open descriptors; without /dev/null, which libuv keeps in reserve from the first listening socket on."""
    folder = Path("/proc/self/fd")
    count = 0
    for name in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            count += os.readlink(name) != "/dev/null"
    return count


@pytest.fixture
async def connect(no_leaks):
    """connect(port): a Peer connected to 127.0.0.1, closed at the end."""
    peers = []

    async def connect(port, *, receive_buffer=None):
        sock = socket.socket()
        peers.append(sock)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return Peer(sock)

    yield connect
    for peer in peers:
        peer.close()


class Service:
    """An acceptor on a free port, and the users it made."""

    def __init__(self, acceptor: Acceptor, users: list[User]) -> None:
        self.acceptor = acceptor
        self.users = users

    @property
    def port(self) -> int:
        return self.acceptor.addresses[0][1]

    async def until_connected(self, count):
        """Wait until the acceptor knows of that many connections, and return them."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.acceptor._connections) != count:
                await turn()
        return [*self.acceptor._connections]

    async def until_state(self, association, name, mid_pdu):
        async with asyncio.timeout(PATIENCE_S):
            while association._core.state.name != name or association._core.mid_pdu != mid_pdu:
                await turn()

    @property
    def user(self) -> User:
        """The one user that was told something."""
        (user,) = (user for user in self.users if user.told)
        return user


@pytest.fixture
async def serve(no_leaks):
    """await serve(...): a Service; closed at the end."""
    acceptors = []

    async def serve(policy=None, *, user=User, ssl_context=None, **options):
        users = []

        def make():
            users.append(user())
            return users[-1]

        policy = policy or AcceptorPolicy(other_abstract_syntaxes=lambda uid: SupportedAbstractSyntax())
        acceptor = Acceptor(policy, make, **options)
        acceptors.append(acceptor)
        await acceptor.listen("127.0.0.1", 0, ssl_context=ssl_context)
        return Service(acceptor, users)

    yield serve
    for acceptor in acceptors:
        async with asyncio.timeout(PATIENCE_S):
            await acceptor.close()


class Listener:
    """A listening socket whose connections the test answers itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.port = sock.getsockname()[1]
        self.accepted: list[socket.socket] = []

    async def accept(self) -> Peer:
        async with asyncio.timeout(PATIENCE_S):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.socket)
        self.accepted.append(sock)
        return Peer(sock)


@pytest.fixture
async def listener(no_leaks):
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    listener = Listener(sock)
    yield listener
    for each in [sock, *listener.accepted]:
        each.close()


@pytest.fixture
def request_pdu():
    return AssociateRQ(
        "CALLED",
        "CALLING",
        (ProposedContext(1, VERIFICATION, (IMPLICIT,)),),
        UserInformation(maximum_length=16384, implementation_class_uid="1.2.3"),
    )


@pytest.fixture
async def associate(no_leaks, request_pdu):
    """await associate(port, ...): an established association and its user; aborted at the end."""
    associations = []

    async def associate(port, *, user=None, **options):
        user = user or User()
        options.setdefault("request", request_pdu)
        async with asyncio.timeout(PATIENCE_S):
            association = await request_association(
                "127.0.0.1", port, options.pop("request"), user, **options
            )
        associations.append(association)
        return association

    yield associate
    for association in associations:
        association.abort()
        association.cut_after_writing()
        async with asyncio.timeout(PATIENCE_S):
            await association.wait_closed()


@pytest.fixture
async def pair(listener, associate, wire):
    """await pair(...): an established association as requestor, and the Peer that plays its acceptor."""

    async def pair(**options):
        async def answer():
            peer = await listener.accept()
            await peer.receive_pdu()
            await peer.send(wire.associate_ac())
            return peer

        answering = asyncio.create_task(answer())
        association = await associate(listener.port, **options)
        return association, await answering

    return pair


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key, made with the openssl program."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("peer missing: openssl, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([openssl, *command.split(), "-addext", names, *files], check=True, capture_output=True)
    return paths


@pytest.fixture
def server_tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.fixture
def client_tls(certificate):
    return ssl.create_default_context(cafile=str(certificate[0]))
