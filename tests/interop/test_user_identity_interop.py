"""User identity (PS3.7 §D.3.3.7) as DCMTK and pynetdicom send it, to an endpoint that requires one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest

from harmony.gateway.app import Gateway
from harmony.gateway.loading import load
from harmony.gateway.passwords import hash_password

pytestmark = pytest.mark.interop

EXPLICIT = "1.2.840.10008.1.2.1"
SECRET = "a secret of more than thirty-two bytes"
FAR = 4102444800  # 2100-01-01


@pytest.fixture
async def port(tmp_path, free_port) -> AsyncIterator[int]:
    """PASSWORD wants a user name and passcode, TOKEN a JSON Web Token."""
    path = tmp_path / "config.toml"
    path.write_text(f"""
        [proxy]
        id = "guarded"
        [storage.options]
        path = "{tmp_path}/storage"
        [network.n.dicom]
        bind_address = "127.0.0.1"
        bind_port = {free_port}
        [pipelines.p]
        networks = ["n"]
        endpoints = ["password", "token"]
        [endpoints.password]
        service = "dicom_scp"
        authentication = "people"
        options = {{ local_aet = "PASSWORD", min_free_bytes = 0 }}
        [endpoints.token]
        service = "dicom_scp"
        authentication = "issuer"
        options = {{ local_aet = "TOKEN", min_free_bytes = 0 }}
        [authentications.people]
        method = "basic"
        options = {{ username = "alice", password = "{hash_password("sesame", n=2, r=1, p=1)}", max_failures = 2 }}
        [authentications.issuer]
        method = "jwt"
        options = {{ use_hs256 = true, hs256_secret = "{SECRET}", issuer = "i" }}
        """)
    gateway = Gateway(load(path, env={}))
    await gateway.start()
    yield free_port
    await gateway.stop(5.0)


@pytest.fixture
def sample(pydicom_files) -> Path:
    found: Path = next(one for one in pydicom_files if one.transfer_syntax_uid == EXPLICIT).path
    return found


@pytest.fixture
def files(tmp_path) -> dict[str, object]:
    """What storescu reads, by name."""
    claims = {"sub": "alice", "exp": FAR, "iss": "i"}
    contents = {
        "good": jwt.encode(claims, SECRET, algorithm="HS256"),
        "expired": jwt.encode({**claims, "exp": 1}, SECRET, algorithm="HS256"),
        "ticket": "a Kerberos ticket",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return {name: tmp_path / name for name in contents}


@pytest.mark.parametrize(
    ("title", "arguments", "answer"),
    [
        ("PASSWORD", ["-usr", "alice", "-pwd", "sesame"], "Association Accepted"),
        ("PASSWORD", ["-usr", "alice", "-pwd", "sesame", "-rsp"], "Association Accepted"),
        ("PASSWORD", ["-usr", "alice", "-pwd", "wrong"], "Rejected Permanent"),
        ("PASSWORD", ["-usr", "alice", "-epw"], "Rejected Permanent"),
        ("PASSWORD", ["-usr", "alice"], "Rejected Permanent"),
        ("PASSWORD", [], "Rejected Permanent"),
        ("PASSWORD", ["-kt", "@ticket"], "Rejected Permanent"),
        ("PASSWORD", ["--saml", "@ticket"], "Rejected Permanent"),
        ("PASSWORD", ["--jwt", "@good"], "Rejected Permanent"),
        ("TOKEN", ["--jwt", "@good"], "Association Accepted"),
        ("TOKEN", ["--jwt", "@good", "-rsp"], "Association Accepted"),
        ("TOKEN", ["--jwt", "@expired"], "Rejected Permanent"),
        ("TOKEN", ["-usr", "alice", "-pwd", "sesame"], "Rejected Permanent"),
    ],
)
async def test_dcmtk(port, run_tool, files, sample, title, arguments, answer) -> None:
    given = [str(files[each[1:]]) if each.startswith("@") else each for each in arguments]
    finished = await asyncio.to_thread(
        run_tool, "storescu", "-v", "-R", "-aec", title, *given, "127.0.0.1", port, sample, status=None
    )
    assert answer in finished.stdout
    assert (finished.returncode == 0) is (answer == "Association Accepted")


async def test_dcmtk_locked_out(port, run_tool, sample) -> None:
    async def send(password: str) -> str:
        identity = ("-usr", "alice", "-pwd", password)
        finished = await asyncio.to_thread(
            run_tool, "storescu", "-v", "-aec", "PASSWORD", *identity, "127.0.0.1", port, sample, status=None
        )
        return finished.stdout

    for _ in range(2):
        assert "Rejected Permanent" in await send("wrong")
    assert "Rejected Transient" in await send("sesame")


@pytest.mark.parametrize(
    ("title", "kind", "primary", "secondary", "accepted"),
    [
        ("PASSWORD", 2, b"alice", b"sesame", True),
        ("PASSWORD", 2, b"alice", b"wrong", False),
        ("PASSWORD", 1, b"alice", None, False),
        ("PASSWORD", 3, b"ticket", None, False),
        ("TOKEN", 5, "good", None, True),
        ("TOKEN", 5, "expired", None, False),
    ],
)
async def test_pynetdicom(port, require_peer, files, title, kind, primary, secondary, accepted) -> None:
    require_peer("pynetdicom")
    from pynetdicom import AE
    from pynetdicom.pdu_primitives import UserIdentityNegotiation

    def call() -> tuple[bool, bytes | None]:
        item = UserIdentityNegotiation()
        item.user_identity_type = kind
        item.primary_field = files[primary].read_bytes() if isinstance(primary, str) else primary
        if secondary is not None:
            item.secondary_field = secondary
        item.positive_response_requested = True
        ae = AE()
        ae.add_requested_context("1.2.840.10008.1.1")
        association = ae.associate("127.0.0.1", port, ae_title=title, ext_neg=[item])
        if not association.is_established:
            return False, None
        answer = association.acceptor.user_identity.server_response
        assert association.send_c_echo().Status == 0
        association.release()
        return True, answer

    assert await asyncio.to_thread(call) == ((True, b"") if accepted else (False, None))
