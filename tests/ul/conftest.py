"""Loopback for the upper layer: both event loops, users that remember, certificates, and a watch on leaks.

Every wait here has a limit of some seconds that no passing test comes near.
"""

import asyncio
import contextlib
import os
import shutil
import ssl
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

    def p_data_paused(self):
        pass

    def writable(self):
        self._tell("writable")

    def ended(self, error):
        self._tell(("ended", error))


@pytest.fixture
def make_user():
    return User


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

    async def until_connected_from(self, host, count):
        """The same for one address, handshakes included."""
        async with asyncio.timeout(PATIENCE_S):
            acceptor = self.acceptor
            while acceptor._connected_hosts.count(host) + acceptor._handshakes.count(host) != count:
                await turn()

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
