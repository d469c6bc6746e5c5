"""Kerberos tickets as user identity (PS3.7 §D.3.3.7, type 3), from a key distribution centre of MIT Kerberos."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harmony.dimse import associate
from harmony.gateway.app import Gateway
from harmony.gateway.config import ConfigError
from harmony.gateway.loading import load
from harmony.gateway.principal import AuthenticationOutcome, Failure, Principal
from harmony.ul.errors import AssociationRejected
from harmony.ul.items import UserIdentityRQ

pytestmark = pytest.mark.interop

REALM = "EXAMPLE.TEST"
SERVICE = f"dicom/harmony.test@{REALM}"
PASSWORD = "open sesame"
READY_S = 20.0

AP_REQ = b"\x6e"
AP_REP = b"\x6f"
TOKEN_HEADER = bytes.fromhex("06092a864886f712010202 0100")  # RFC 4121 §4.1, before the AP-REQ

CLIENT = """
import sys, gssapi
user, password, service, flags = sys.argv[1:]
name = gssapi.Name(user, gssapi.NameType.kerberos_principal)
credentials = gssapi.raw.acquire_cred_with_password(name, password.encode(), usage="initiate").creds
context = gssapi.SecurityContext(
    name=gssapi.Name(service, gssapi.NameType.kerberos_principal),
    creds=gssapi.Credentials(base=credentials),
    usage="initiate",
    flags=int(flags),
)
sys.stdout.buffer.write(context.step())
"""
MUTUAL, NOT_MUTUAL = 2, 4
"""GSS_C_MUTUAL_FLAG, and another one."""


@dataclass
class Realm:
    """A realm with `alice`, `bob` and two services."""

    folder: Path
    require_peer: Callable[[str], str]
    free_ports: Callable[[int], list[int]]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def make(self) -> None:
        self.env = {**os.environ, "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf")}
        self.env |= self._configure("", self.free_ports(1)[0])
        self._run("kdb5_util", "create", "-s", "-W", "-P", "master", "-r", REALM)
        for query in (
            *(f'addprinc -pw "{PASSWORD}" {user}' for user in ("alice", "bob")),
            "addprinc -randkey dicom/harmony.test",
            "addprinc -randkey dicom/other.test",
            f"ktadd -k {self.keytab} dicom/harmony.test",
            f"ktadd -k {self.folder}/other.keytab dicom/other.test",
        ):
            self._run("kadmin.local", "-r", REALM, "-q", query)
        self._serve(self.env, [])

    @property
    def keytab(self) -> Path:
        return self.folder / "harmony.keytab"

    def _configure(self, suffix: str, port: int) -> dict[str, str]:
        """krb5.conf and kdc.conf for a KDC on this port, as environment."""
        self.port = port
        (self.folder / f"krb5{suffix}.conf").write_text(f"""
[libdefaults]
  default_realm = {REALM}
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  udp_preference_limit = 1
[realms]
  {REALM} = {{
    kdc = 127.0.0.1:{port}
  }}
""")
        (self.folder / f"kdc{suffix}.conf").write_text(f"""
[kdcdefaults]
  kdc_listen = 127.0.0.1:{port}
  kdc_tcp_listen = 127.0.0.1:{port}
[realms]
  {REALM} = {{
    database_name = {self.folder}/principal
    key_stash_file = {self.folder}/stash
    acl_file = {self.folder}/acl
    max_life = 1h
  }}
[logging]
  kdc = FILE:{self.folder}/kdc{suffix}.log
""")
        return {
            "KRB5_CONFIG": str(self.folder / f"krb5{suffix}.conf"),
            "KRB5_KDC_PROFILE": str(self.folder / f"kdc{suffix}.conf"),
            "KRB5CCNAME": "MEMORY:",
            "KRB5RCACHENAME": f"file2:{self.folder}/replays",
        }

    def _run(self, name: str, *arguments: str) -> None:
        command = [self.require_peer(name), *arguments]
        subprocess.run(command, env=self.env, check=True, capture_output=True, timeout=READY_S)

    def _serve(self, env: dict[str, str], before: list[str]) -> None:
        command = [*before, self.require_peer("krb5kdc"), "-n"]
        process = subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)
        deadline = time.monotonic() + READY_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the key distribution centre does not listen"
            try:
                process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"krb5kdc ended with {process.returncode}")

    def stop(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # faketime runs its program as a child
            process.wait()

    def ticket(self, user: str = "alice", service: str = SERVICE, *, flags: int = MUTUAL) -> bytes:
        """What a client sends, as GSS-API has it."""
        return self._client([], self.env, user, service, flags)

    def ticket_of_two_hours_ago(self) -> bytes:
        """Tickets last one."""
        before = [self.require_peer("faketime"), "-f", "-2h"]
        current = self.env["KRB5_CONFIG"]
        env = self.env | self._configure("-past", self.free_ports(1)[0])
        self._serve(env, before)
        token = self._client(before, env, "alice", SERVICE, MUTUAL)
        assert env["KRB5_CONFIG"] != current
        return token

    def _client(self, before: list[str], env: dict[str, str], user: str, service: str, flags: int) -> bytes:
        arguments = (f"{user}@{REALM}", PASSWORD, service, str(flags))
        command = [*before, sys.executable, "-c", CLIENT, *arguments]
        finished = subprocess.run(command, env=env, check=True, capture_output=True, timeout=READY_S)
        return finished.stdout


@pytest.fixture
def realm(tmp_path, require_peer, free_ports, monkeypatch) -> Iterator[Realm]:
    require_gssapi()
    folder = tmp_path / "realm"
    folder.mkdir()
    realm = Realm(folder, require_peer, free_ports)
    try:
        realm.make()
        for name in ("KRB5_CONFIG", "KRB5RCACHENAME"):
            monkeypatch.setenv(name, realm.env[name])
        yield realm
    finally:
        realm.stop()


def require_gssapi() -> None:
    if importlib.util.find_spec("gssapi") is not None:
        return
    message = "peer missing: gssapi (apt-get install gcc libkrb5-dev, pip install '.[kerberos]')"
    if os.environ.get("HARMONY_REQUIRE_PEERS") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@dataclass
class Guarded:
    """A gateway whose one endpoint, SCP, wants tickets."""

    folder: Path
    port: int
    options: str
    outcomes: list[AuthenticationOutcome] = field(default_factory=list)
    answer: bytes | None = None
    """The server response of the last call."""

    def load(self):
        path = self.folder / "config.toml"
        path.write_text(f"""
            [proxy]
            id = "guarded"
            [storage.options]
            path = "{self.folder}/storage"
            [network.n.dicom]
            bind_address = "127.0.0.1"
            bind_port = {self.port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp"]
            [endpoints.scp]
            service = "dicom_scp"
            authentication = "realm"
            options = {{ local_aet = "SCP", min_free_bytes = 0 }}
            [authentications.realm]
            method = "kerberos"
            [authentications.realm.options]
            {self.options}
            """)
        return load(path, env={})

    async def start(self) -> None:
        self.gateway = Gateway(self.load())
        self.gateway.assembly.authentications.subscribe(self.outcomes.append)
        await self.gateway.start()

    async def call(self, *identity: object, response: bool = True) -> Principal | tuple[int, int, int]:
        """Who the gateway takes us for, or how it rejects us."""
        wanted = UserIdentityRQ(*identity, positive_response_requested=response) if identity else None
        address = ("127.0.0.1", self.port)
        self.answer = None
        try:
            async with associate(*address, called_ae_title="SCP", user_identity=wanted) as scu:
                await scu.echo()
                item = scu.association.agreed.peer.user_identity_ac
                self.answer = item.server_response if item is not None else None
                (theirs,) = self.gateway.assembly.dicom[0].server.acceptor.associations
                return theirs.principal
        except AssociationRejected as error:
            return error.result, error.source, error.reason


@pytest.fixture
async def guarded(realm, tmp_path, free_ports):
    made = []

    async def start(options: str | None = None) -> Guarded:
        options = options or f'keytab_path = "{realm.keytab}"'
        made.append(Guarded(tmp_path, free_ports(1)[0], options))
        await made[-1].start()
        return made[-1]

    yield start
    for each in made:
        await each.gateway.stop(1.0)


ALICE = Principal(f"alice@{REALM}", "kerberos")
REJECTED = (1, 2, 1)


async def test_a_ticket(realm, guarded) -> None:
    gateway = await guarded(f'keytab_path = "{realm.keytab}"\nservice_principal = "{SERVICE}"')
    assert await gateway.call(3, realm.ticket()) == ALICE
    assert gateway.answer[:1] == b"\x60"
    assert AP_REP in gateway.answer
    (outcome,) = gateway.outcomes
    assert (outcome.name, outcome.method, outcome.failure) == (ALICE.name, "kerberos", None)


async def test_the_answer_is_in_the_form_of_the_request(realm, guarded) -> None:
    """PS3.7 §D.3.3.7: "encoded in accordance with RFC-1510"."""
    gateway = await guarded()
    token = realm.ticket()
    bare = token[token.index(TOKEN_HEADER) + len(TOKEN_HEADER) :]
    assert bare[:1] == AP_REQ
    assert await gateway.call(3, bare) == ALICE
    assert gateway.answer[:1] == AP_REP


async def test_no_answer_for_who_wants_none(realm, guarded) -> None:
    gateway = await guarded()
    assert await gateway.call(3, realm.ticket(flags=NOT_MUTUAL)) == ALICE
    assert gateway.answer == b""
    assert await gateway.call(3, realm.ticket(), response=False) == ALICE
    assert gateway.answer is None


async def test_a_client_knows_the_gateway_by_its_answer(realm, guarded, monkeypatch) -> None:
    import gssapi

    gateway = await guarded()
    monkeypatch.setenv("KRB5CCNAME", "MEMORY:")
    name = gssapi.Name(f"alice@{REALM}", gssapi.NameType.kerberos_principal)
    credentials = await asyncio.to_thread(
        gssapi.raw.acquire_cred_with_password, name, PASSWORD.encode(), usage="initiate"
    )
    context = gssapi.SecurityContext(
        name=gssapi.Name(SERVICE, gssapi.NameType.kerberos_principal),
        creds=gssapi.Credentials(base=credentials.creds),
        usage="initiate",
        flags=MUTUAL,
    )
    token = await asyncio.to_thread(context.step)
    assert not context.complete
    assert await gateway.call(3, token) == ALICE
    context.step(gateway.answer)
    assert context.complete


async def test_a_ticket_that_was_used(realm, guarded) -> None:
    gateway = await guarded()
    ticket = realm.ticket()
    assert await gateway.call(3, ticket) == ALICE
    assert await gateway.call(3, ticket) == REJECTED
    assert gateway.outcomes[-1].failure is Failure.REFUSED
    assert gateway.outcomes[-1].reason == "the ticket is refused: it has been used before"
    await gateway.gateway.stop(1.0)
    await gateway.start()
    assert await gateway.call(3, ticket) == REJECTED


async def test_a_ticket_that_has_expired(realm, guarded) -> None:
    gateway = await guarded()
    assert await gateway.call(3, await asyncio.to_thread(realm.ticket_of_two_hours_ago)) == REJECTED
    # MIT Kerberos looks at the client's clock first, or at the ticket's end, depending on its version.
    assert gateway.outcomes[-1].reason in (
        "the ticket is refused: it has expired",
        "the ticket is refused: its clock and ours differ too much",
    )


async def test_a_ticket_for_another_service(realm, guarded) -> None:
    gateway = await guarded()
    assert await gateway.call(3, realm.ticket(service=f"dicom/other.test@{REALM}")) == REJECTED
    assert "it is for another service" in gateway.outcomes[-1].reason


async def test_the_wrong_keytab(realm, guarded) -> None:
    gateway = await guarded(f'keytab_path = "{realm.folder}/other.keytab"')
    assert await gateway.call(3, realm.ticket()) == REJECTED
    assert "it is for another service" in gateway.outcomes[-1].reason


async def test_garbage(realm, guarded, caplog) -> None:
    gateway = await guarded()
    token = realm.ticket()
    altered = [
        b"",
        b"ticket",
        AP_REQ,
        AP_REQ + b"\x03abc",
        b"\x60" + b"\xff" * 8,
        token[:100],
        token[:-4] + bytes(4),
        token[:300] + bytes((token[300] ^ 1,)) + token[301:],
        token + b"x" * 60000,
    ]
    for each in altered:
        assert await gateway.call(3, each) == REJECTED
        assert gateway.outcomes[-1].failure is Failure.REFUSED, each[:10]
    assert "Traceback" not in caplog.text
    assert await gateway.call(3, token) == ALICE


async def test_other_identities(realm, guarded) -> None:
    gateway = await guarded()
    for identity in ((), (1, b"alice"), (2, b"alice", PASSWORD.encode()), (4, b"<a/>"), (5, b"a.b.c")):
        assert await gateway.call(*identity) == REJECTED


async def test_who_is_allowed(realm, guarded) -> None:
    gateway = await guarded(f'keytab_path = "{realm.keytab}"\nallowed_subjects = ["bob@{REALM}"]')
    assert await gateway.call(3, realm.ticket("bob")) == Principal(f"bob@{REALM}", "kerberos")
    assert await gateway.call(3, realm.ticket("alice")) == REJECTED


async def test_failures_lock_nobody_out(realm, guarded) -> None:
    gateway = await guarded(f'keytab_path = "{realm.keytab}"\nmax_failures = 1')
    for _ in range(3):
        assert await gateway.call(3, b"ticket") == REJECTED
    assert await gateway.call(3, realm.ticket()) == ALICE


async def test_used_tickets_cannot_be_remembered(realm, guarded, monkeypatch, caplog) -> None:
    """Without a replay cache nobody is let in, and may come again later; the operator hears why."""
    caplog.set_level("INFO", "harmony.gateway")
    monkeypatch.setenv("KRB5RCACHENAME", f"file2:{realm.folder}/none/replays")
    gateway = await guarded()
    assert await gateway.call(3, realm.ticket()) == (2, 2, 1)
    assert gateway.outcomes[-1].failure is Failure.UNAVAILABLE
    assert (
        f"tickets cannot be checked: No such file or directory (filename: {realm.folder}/none" in caplog.text
    )


async def test_tickets_are_not_logged(realm, guarded, caplog) -> None:
    gateway = await guarded()
    ticket = realm.ticket()
    assert await gateway.call(3, ticket) == ALICE
    assert await gateway.call(3, ticket) == REJECTED
    assert ticket[40:60].hex() not in caplog.text
    assert repr(ticket[40:60])[2:-1] not in caplog.text
    assert ticket not in (each.reason.encode() for each in gateway.outcomes)


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ("", "keytab_path", "is missing, must be set for method"),
        ('keytab_path = "/none"', "keytab_path", '"/none" cannot be read: No such file'),
        ('keytab_path = "{folder}/krb5.conf"', "keytab_path", "holds no key at all"),
        ('keytab_path = "{keytab}"\nservice_principal = "a@b@c"', "keytab_path", "cannot be used: "),
        (
            'keytab_path = "{keytab}"\nservice_principal = "dicom/x@EXAMPLE.TEST"',
            "keytab_path",
            "holds no key for dicom/x@EXAMPLE.TEST",
        ),
        (
            'keytab_path = "{keytab}"\nservice_principal = ""',
            "service_principal",
            "is empty, must be left out",
        ),
    ],
)
def test_tables_that_cannot_be_used(realm, tmp_path, options, key, message) -> None:
    options = options.format(folder=realm.folder, keytab=realm.keytab)
    with pytest.raises(ConfigError) as caught:
        Guarded(tmp_path, 11112, options).load()
    (problem,) = caught.value.problems
    assert (problem.table, problem.key) == ("authentications.realm.options", key)
    assert message in problem.message


@pytest.mark.parametrize("asking", [["-rsp"], []])
async def test_dcmtk(realm, guarded, run_tool, pydicom_files, tmp_path, asking) -> None:
    gateway = await guarded()
    sample = next(one for one in pydicom_files if one.transfer_syntax_uid == "1.2.840.10008.1.2.1")
    file = tmp_path / "ticket"
    file.write_bytes(realm.ticket())

    async def send() -> str:
        arguments = ("-v", "-R", "-aec", "SCP", "-kt", file, *asking, "127.0.0.1", gateway.port, sample.path)
        finished = await asyncio.to_thread(run_tool, "storescu", *arguments, status=None)
        return finished.stdout

    assert "Association Accepted" in await send()
    assert "Rejected Permanent" in await send()
    file.write_bytes(b"a Kerberos ticket")
    assert "Rejected Permanent" in await send()
