"""`python -m harmony send`: arguments, what it prints, its report, exit status, Ctrl-C."""

import asyncio
import json
import os
import pty
import signal
import ssl
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest

from harmony.__main__ import main
from harmony.dimse import SUCCESS_OUTCOME, BytesSink, DimseError, Services, encode_file_meta, serve

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
PATIENCE_S = 30.0


@pytest.fixture
def folder(tmp_path):
    """Three CT images, 1.2.1 to 1.2.3, and a text."""
    folder = tmp_path / "files" / "deep"
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        meta = encode_file_meta(
            transfer_syntax_uid=EXPLICIT,
            media_storage_sop_class_uid=CT,
            media_storage_sop_instance_uid=f"1.2.{number}",
        )
        (folder / str(number)).write_bytes(bytes(meta) + b"\x08\x00\x18\x00UI\x06\x001.2.3\0")
    (folder / "note.txt").write_text("no DICOM")
    return folder.parent


@pytest.fixture
async def scp():
    """await scp(answer, ...): (port, what is received, associations); answer(request) raises DimseError to refuse."""
    async with AsyncExitStack() as running:

        async def start(answer=lambda request: None, **options):
            received, associations = [], []

            def open_sink(request):
                def done(data):
                    answer(request)
                    received.append(request.command.affected_sop_instance_uid)
                    return SUCCESS_OUTCOME

                return BytesSink(done)

            services = Services()
            services.store(open_sink)
            services.on_association(lambda association: associations.append(association))
            server = await running.enter_async_context(serve(services, port=0, **options))
            return server.port, received, associations

        yield start


async def send(*arguments, **options):
    """The exit status, output and errors of the command in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "harmony", "send", *map(str, arguments),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_a_folder(scp, folder):
    port, received, associations = await scp()
    status, output, errors = await send(
        "127.0.0.1", port, folder, "--aet", "MODALITY", "--aec", "ARCHIVE", "--associations", 1
    )
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["result", "objects", "MB"],
        ["0x0000", "Success", "3", "0.0"],
        ["passed", "over:", "no", "DICOM", "files", "to", "send", "1"],
    ]
    assert lines[4].startswith("3 of 3 stored in ")
    assert sorted(received) == ["1.2.1", "1.2.2", "1.2.3"]
    agreed = associations[0].agreed
    assert (agreed.calling_ae_title, agreed.called_ae_title) == ("MODALITY", "ARCHIVE")


async def test_failures_are_reported(scp, folder, tmp_path):
    def answer(request):
        if request.command.affected_sop_instance_uid == "1.2.2":
            raise DimseError(0xC001, "no \x1b[31m room")

    port, received, _ = await scp(answer)
    report = tmp_path / "failures.jsonl"
    status, output, _ = await send("--to", f"127.0.0.1:{port}", "--report", report, folder)
    assert status == 1
    assert "2 of 3 stored" in output
    assert "\x1b" not in output
    assert len(received) == 2
    (line,) = report.read_text().splitlines()
    row = json.loads(line)
    assert "0xC001" in row.pop("reason")
    assert row == {
        "path": str(folder / "deep" / "2"),
        "status": "0xC001",
        "sop_class_uid": CT,
        "sop_instance_uid": "1.2.2",
        "transfer_syntax_uid": EXPLICIT,
        "tries": 1,
    }


async def test_what_became_of_each_file(scp, folder):
    def answer(request):
        if request.command.affected_sop_instance_uid == "1.2.2":
            raise DimseError(0xC001, "no room")

    port, _, _ = await scp(answer)
    status, output, _ = await send("127.0.0.1", port, folder, "--verbose", "--associations", 1)
    assert status == 1
    lines = sorted(line for line in output.splitlines() if str(folder) in line and not line.startswith(" "))
    assert [line.partition(":")[0] for line in lines] == ["0x0000 Success"] * 2 + ["Failed", "Passed over"]
    assert lines[2].startswith(f"Failed: {folder / 'deep' / '2'}: 0xC001")
    assert lines[2].endswith("no room")


async def test_repeat_and_limit(scp, folder):
    port, received, _ = await scp()
    status, output, _ = await send("127.0.0.1", port, folder, "--repeat", 3, "--limit", 7, "--window", 2)
    assert (status, len(received)) == (0, 7)
    assert "7 of 7 stored" in output


async def test_nothing_to_send(folder, free_port, tmp_path):
    status, _, errors = await send("127.0.0.1", free_port, folder / "deep" / "note.txt")
    assert (status, errors) == (1, "no DICOM file was found among 1 files\n")


async def test_nobody_listens(folder, free_port):
    status, output, errors = await send("127.0.0.1", free_port, folder, "--retries", 0)
    assert status == 1
    assert "No association: cannot connect" in output
    assert "0 of 3 stored" in output
    assert "fewer associations than 4: cannot connect" in errors


async def test_a_line_that_replaces_itself_on_a_terminal(scp, folder):
    port, received, _ = await scp()
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "harmony", "send", "127.0.0.1", str(port), str(folder), "--repeat", "50",
            stdout=subprocess.PIPE, stderr=theirs,
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE_S):
            await process.communicate()
    finally:
        os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert (process.returncode, len(received)) == (0, 150)
    assert b"\n" not in shown
    assert shown.endswith(b"\r\x1b[K")


async def test_interrupted(scp, folder):
    """Ctrl-C: what is under way is finished, the association released, the table printed."""
    begun, ended = asyncio.Event(), []
    stored = asyncio.Event()

    class SlowSink:
        def write(self, fragment):
            pass

        def finish(self):
            begun.set()
            return self._later()

        async def _later(self):
            await stored.wait()
            return SUCCESS_OUTCOME

        def abort(self):
            pass

    services = Services()
    services.store(lambda request: SlowSink())
    services.on_association(ended=lambda association, error: ended.append(error))
    async with serve(services, port=0) as server, asyncio.timeout(PATIENCE_S):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "harmony", "send", "127.0.0.1", str(server.port), str(folder),
            "--associations", "1", "--repeat", "1000",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        await begun.wait()
        process.send_signal(signal.SIGINT)
        stored.set()
        output, errors = await process.communicate()
    assert process.returncode == 130
    assert "stored in" in output.decode()
    assert errors.decode() == "interrupted: the rest was not sent\n"
    assert ended == [None]


async def test_tls(scp, folder, tmp_path, require_peer):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    await asyncio.to_thread(
        subprocess.run,
        [require_peer("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-out", certificate, "-days", "30", "-subj", "/CN=pacs",
         "-addext", "subjectAltName=DNS:pacs.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    port, received, _ = await scp(ssl_context=context)
    trust = ["--tls", "--ca", certificate, "--tls-name", "pacs.example", "--cert", certificate, "--key", key]
    status, output, errors = await send("127.0.0.1", port, folder, *trust)
    assert (status, len(received)) == (0, 3), output + errors
    status, output, _ = await send("127.0.0.1", port, folder, "--tls", "--retries", 0)
    assert status == 1
    assert "TLS certificate refused" in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["127.0.0.1", "104"], "expected HOST PORT PATH"),
        (["127.0.0.1", "dicom", "."], "expected a host and a port"),
        (["--to", "127.0.0.1", "."], "expected a host and a port"),
        (["--to", "[::1]:70000", "."], "expected a host and a port"),
        (["127.0.0.1", "104", "./does/not/exist"], "./does/not/exist does not exist"),
        (["127.0.0.1", "104", ".", "--aec", "SEVENTEEN LETTERS"], "no AE title"),
        (["127.0.0.1", "104", ".", "--associations", "0"], "0 is not 1 or more"),
        (["127.0.0.1", "104", ".", "--timeout", "0"], "0 is not a number of seconds"),
    ],
)
def test_usage(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as exited:
        main(["send", *arguments])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err


def test_send_comes_first(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["--log-level", "debug", "send"])
    assert exited.value.code == 2
    assert "send comes first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--ca", "ca.pem"], "--tls-name belong to --tls"),
        (["--tls", "--ca", "./does/not/exist"], "--ca does/not/exist: No such file"),
        (["--tls", "--key", "key.pem"], "--cert and --key go together"),
        (["--report", "./does/not/exist"], "does/not/exist"),
    ],
)
def test_files_that_cannot_be_used(arguments, complaint, tmp_path, capsys):
    assert main(["send", "127.0.0.1", "104", str(tmp_path), *arguments]) == 2
    assert complaint in capsys.readouterr().err
