"""The programs of examples/embedding, run as processes, and docs/EMBEDDING.md, which shows them.

Each program runs as a user starts it: a process of its own, with warnings as errors. SCPs take port 0 and say where
they listen, so nothing here waits for anything but what a program prints or its end.
"""

import ast
import asyncio
import contextlib
import hashlib
import importlib
import inspect
import os
import pkgutil
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

import harmony
import harmony.dimse
import harmony.ul
from harmony.dicom.json_model import encode_data_set
from harmony.dimse import (
    SUCCESS_OUTCOME,
    AssociationPool,
    AsyncSink,
    BytesSink,
    CFindRQ,
    CStoreRQ,
    DimseError,
    Outcome,
    Server,
    Services,
    StoreRequest,
    associate,
    encode_file_meta,
    read_file_meta_from,
    scu,
    serve,
    store_many,
)
from harmony.ul import (
    AcceptorLimits,
    AssociationRejected,
    ConnectFailed,
    ConnectionLost,
    SizeLimits,
    Timeouts,
    UserIdentityRQ,
    propose_contexts,
)

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "embedding"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))
EMBEDDING = (ROOT / "docs" / "EMBEDDING.md").read_text()

END_TIMEOUT_S = 60.0
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


@dataclass(frozen=True, slots=True)
class Listening:
    """An SCP example at work."""

    port: int
    folder: Path
    process: "subprocess.Popen[str]"

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def stop(self) -> str:
        """End it; what it said on stderr."""
        self.process.terminate()
        return self.process.communicate(timeout=END_TIMEOUT_S)[1]


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


def run(name: str, *arguments: object, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run an example to its end."""
    done = subprocess.run(
        command(name, *arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


async def run_beside(name: str, *arguments: object, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run an example to its end while this event loop serves it."""
    return await asyncio.to_thread(run, name, *arguments, status=status)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    """start("x.py", *arguments after host and port) -> Listening, in a folder of its own."""
    running: list[subprocess.Popen[str]] = []

    def start(name: str, *arguments: object) -> Listening:
        folder = tmp_path / f"scp-{len(running)}"
        folder.mkdir()
        process = subprocess.Popen(
            command(name, "127.0.0.1", 0, *arguments),
            env=ENVIRONMENT,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        listening = Listening(0, folder, process)
        said = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", listening.line())
        assert said, listening.stop()
        return Listening(int(said[1]), folder, process)

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def samples(pydicom_files: Sequence[Any]) -> list[Any]:
    """The smallest sample file of each SOP class and transfer syntax, each instance once."""
    smallest: dict[tuple[str, str], Any] = {}
    for sample in pydicom_files:
        kind = sample.sop_class_uid, sample.transfer_syntax_uid
        if len(sample.data_set) < len(getattr(smallest.get(kind), "data_set", b"\0" * 100_000)):
            smallest[kind] = sample
    unique = {sample.sop_instance_uid: sample for sample in smallest.values()}
    # Some samples have file meta that names another instance than the data set: what is sent is what the meta says.
    chosen = [
        sample
        for sample in unique.values()
        if read_file_meta_from(sample.path).media_storage_sop_instance_uid == sample.sop_instance_uid
    ]
    assert len(chosen) > 10
    return chosen


def on_the_wire(sample: Any) -> bytes:
    """The data set as sent: of even length (PS3.5 §7.1.1)."""
    data: bytes = sample.data_set
    return data + b"\0" if len(data) % 2 else data


def write_file(path: Path, *, sop_class_uid: str, number: int, data: bytes = b"") -> Path:
    meta = encode_file_meta(
        transfer_syntax_uid=EXPLICIT,
        media_storage_sop_class_uid=sop_class_uid,
        media_storage_sop_instance_uid=f"2.25.{number}",
    )
    path.write_bytes(meta + data)
    return path


def write_study(folder: Path, study: int, patient: str, count: int) -> dict[str, bytes]:
    """CT and MR images by turns, a series of each; the data sets by the names that the programs give the files."""
    folder.mkdir(exist_ok=True)
    written: dict[str, bytes] = {}
    for index in range(count):
        number, series = 100 * study + index, 10 * study + index % 2
        keys = {
            "SOPClassUID": (CT, MR)[index % 2],
            "SOPInstanceUID": f"2.25.{number}",
            "StudyDate": f"202601{study:02}",
            "StudyTime": "0304",
            "AccessionNumber": f"A{study}",
            "Modality": ("CT", "MR")[index % 2],
            "PatientName": f"Doe^{patient}",
            "PatientID": patient,
            "StudyInstanceUID": f"2.25.{study}",
            "SeriesInstanceUID": f"2.25.{series}",
            "StudyID": f"S{study}",
            "SeriesNumber": series,
            "InstanceNumber": index + 1,
        }
        data = encode_data_set({name: {"Value": [value]} for name, value in keys.items()}, EXPLICIT)
        path = folder / f"{number}.dcm"
        write_file(path, sop_class_uid=(CT, MR)[index % 2], number=number, data=data)
        written[f"2.25.{number}.dcm"] = data
    return written


def data_sets(folder: Path) -> dict[str, bytes]:
    """What a program has written: data sets by file name."""
    return {
        path.name: path.read_bytes()[read_file_meta_from(path).data_set_offset :] for path in folder.iterdir()
    }


# The programs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_says_how_to_run_it_with_dcmtk(name: str) -> None:
    help_text = run(name, "--help").stdout
    assert f"python examples/embedding/{name} 127.0.0.1 11112" in help_text
    assert re.search(r"\b(storescu|findscu|storescp|dcmqrscp)\b", help_text)
    assert "host" in help_text
    assert "port" in help_text


def test_the_scp_is_fifteen_lines() -> None:
    """Counted: everything but the docstring, the imports, blank lines and the command line."""
    source = (EXAMPLES / "scp_in_fifteen_lines.py").read_text()
    counted: list[str] = []
    for node in ast.parse(source).body[1:]:
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.If):
            counted += source.splitlines()[node.lineno - 1 : node.end_lineno]
    lines = [line for line in counted if line.strip()]
    assert 0 < len(lines) <= 15


def test_scp_stores_the_folder_that_the_scu_sends(
    start: Callable[..., Listening], samples: list[Any], tmp_path: Path
) -> None:
    places = tmp_path / "sent" / "deeper"
    places.mkdir(parents=True)
    (places / "notes.txt").write_text("not DICOM")
    write_file(places / "DICOMDIR", sop_class_uid="1.2.840.10008.1.3.10", number=1)
    for index, sample in enumerate(samples):
        (places / f"{index}.dcm").symlink_to(sample.path)
    scp = start("scp_in_fifteen_lines.py")

    sent = run("send_folder.py", "127.0.0.1", scp.port, tmp_path / "sent")

    assert scp.stop() == ""
    assert len(sent.stdout.splitlines()) == len(samples)
    assert all(line.startswith("0x0000 Success: ") for line in sent.stdout.splitlines())
    assert sent.stderr.count("passed over") == 2
    assert f"{len(samples)} of {len(samples)}, 0 failed" in sent.stderr
    stored = {path.name: path for path in scp.folder.iterdir()}
    assert set(stored) == {f"{sample.sop_instance_uid}.dcm" for sample in samples}
    for sample in samples:
        path = stored[f"{sample.sop_instance_uid}.dcm"]
        meta = read_file_meta_from(path)
        assert meta.transfer_syntax_uid == sample.transfer_syntax_uid
        assert meta.media_storage_sop_class_uid == sample.sop_class_uid
        assert path.read_bytes()[meta.data_set_offset :] == on_the_wire(sample), sample


async def test_scp_names_no_file_outside_its_folder(start: Callable[..., Listening]) -> None:
    scp = start("scp_in_fifteen_lines.py")
    contexts = propose_contexts([(CT, [EXPLICIT])])
    async with associate("127.0.0.1", scp.port, contexts=contexts) as user:
        outcome = await user.store(harmony.dimse.Instance(CT, "../escaped", EXPLICIT, b"\x08\x00\x16\x00"))
    assert outcome == SUCCESS_OUTCOME
    (path,) = scp.folder.iterdir()
    assert re.fullmatch(r"x-[0-9a-f]{32}\.dcm", path.name)
    assert not (scp.folder.parent / "escaped.dcm").exists()


def test_scp_with_dcmtk(
    start: Callable[..., Listening], require_peer: Callable[[str], str], samples: list[Any]
) -> None:
    echoscu, storescu = require_peer("echoscu"), require_peer("storescu")
    sample = next(sample for sample in samples if sample.transfer_syntax_uid == EXPLICIT)
    scp = start("scp_in_fifteen_lines.py")
    for arguments in ([echoscu], [storescu, "-R"]):
        tail = [sample.path] if arguments[0] == storescu else []
        subprocess.run(
            [*arguments, "127.0.0.1", str(scp.port), *tail],
            check=True,
            capture_output=True,
            timeout=END_TIMEOUT_S,
        )
    (path,) = scp.folder.iterdir()
    assert path.name == f"{sample.sop_instance_uid}.dcm"


async def test_scu_takes_a_second_association_beyond_128_contexts(tmp_path: Path) -> None:
    for number in range(130):
        write_file(tmp_path / f"{number}.dcm", sop_class_uid=f"2.25.1.{number}", number=number)
    associations: list[object] = []
    received: set[str] = set()

    def keep(request: StoreRequest) -> BytesSink:
        received.add(request.affected_sop_instance_uid)
        return BytesSink(lambda _: SUCCESS_OUTCOME)

    services = Services()
    services.store(keep)
    services.on_association(established=associations.append)
    async with serve(services, ae_title="ARCHIVE", port=0) as server:
        await run_beside(
            "send_folder.py", "127.0.0.1", server.port, tmp_path, "--called", "ARCHIVE", "--connections", 1
        )
    assert received == {f"2.25.{number}" for number in range(130)}
    assert len(associations) == 2


async def test_scu_reports_each_refused_file_and_goes_on(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_file(tmp_path / f"{number}.dcm", sop_class_uid=CT, number=number)
    write_file(tmp_path / "4.dcm", sop_class_uid="2.25.99", number=4)

    def open_sink(request: StoreRequest) -> BytesSink:
        if request.affected_sop_instance_uid == "2.25.2":
            raise DimseError(0xA700, "full")
        warning = request.affected_sop_instance_uid == "2.25.3"
        return BytesSink(lambda _: Outcome(0xB000, "as it were") if warning else SUCCESS_OUTCOME)

    services = Services()
    services.store(open_sink, sop_classes=[CT])
    async with serve(services, port=0) as server:
        done = await run_beside("send_folder.py", "127.0.0.1", server.port, tmp_path, status=1)
    said = dict(reversed(line.rsplit(": ", 1)) for line in done.stdout.splitlines())
    assert said[str(tmp_path / "1.dcm")] == "0x0000 Success"
    assert said[str(tmp_path / "2.dcm")].startswith("0xA700")
    assert said[str(tmp_path / "3.dcm")].startswith("0xB000")
    assert said[str(tmp_path / "4.dcm")].startswith("not stored, no presentation context for 2.25.99")
    assert "4 of 4, 2 failed" in done.stderr


async def test_scu_goes_on_when_an_association_is_lost(tmp_path: Path) -> None:
    """On another one, where the instance that was under way is tried once more."""
    for number in (1, 2, 3):
        write_file(tmp_path / f"{number}.dcm", sop_class_uid=CT, number=number)

    def open_sink(request: StoreRequest) -> BytesSink:
        if request.affected_sop_instance_uid == "2.25.2":
            request.association.abort()
        return BytesSink(lambda _: SUCCESS_OUTCOME)

    associations: list[object] = []
    services = Services()
    services.store(open_sink)
    services.on_association(established=associations.append)
    async with serve(services, port=0) as server:
        done = await run_beside(
            "send_folder.py", "127.0.0.1", server.port, tmp_path, "--connections", 1, status=1
        )
    said = dict(reversed(line.rsplit(": ", 1)) for line in done.stdout.splitlines())
    assert said[str(tmp_path / "1.dcm")] == said[str(tmp_path / "3.dcm")] == "0x0000 Success"
    assert said[str(tmp_path / "2.dcm")].startswith("not stored, aborted by the peer")
    assert len(associations) == 3


async def test_scu_uses_several_associations_at_once(tmp_path: Path) -> None:
    for number in range(12):
        write_file(tmp_path / f"{number}.dcm", sop_class_uid=CT, number=number)
    associations: list[object] = []
    three_are_here = asyncio.Event()
    together: set[object] = set()

    async def answer_when_three_store(request: StoreRequest) -> Outcome:
        together.add(request.association)
        if len(together) == 3:
            three_are_here.set()
        await three_are_here.wait()  # for ever, if they came one after the other
        return SUCCESS_OUTCOME

    services = Services()
    services.store(lambda request: BytesSink(lambda _: answer_when_three_store(request)))
    services.on_association(established=associations.append)
    async with serve(services, port=0) as server:
        done = await run_beside("send_folder.py", "127.0.0.1", server.port, tmp_path, "--connections", 3)
    assert "12 of 12, 0 failed" in done.stderr
    assert len(associations) == 3


def test_scu_without_a_peer_or_without_files(free_port: int, tmp_path: Path) -> None:
    run("send_folder.py", "127.0.0.1", free_port, tmp_path, status=2)
    write_file(tmp_path / "1.dcm", sop_class_uid=CT, number=1)
    done = run("send_folder.py", "127.0.0.1", free_port, tmp_path, status=1)
    assert done.stdout.startswith("not stored, cannot connect to 127.0.0.1:")


def test_hashing_sink_prints_the_hash_of_the_data_set(
    start: Callable[..., Listening], samples: list[Any]
) -> None:
    scp = start("hashing_sink.py")
    run("send_folder.py", "127.0.0.1", scp.port, *(sample.path for sample in samples[:3]))
    expected = {
        f"{hashlib.sha256(on_the_wire(sample)).hexdigest()}  {sample.sop_instance_uid}"
        for sample in samples[:3]
    }
    assert {scp.line() for _ in range(3)} == expected
    assert scp.stop() == ""


def test_async_sink_pipes_the_data_set_into_a_command(
    start: Callable[..., Listening], tmp_path: Path
) -> None:
    data = bytes(range(256)) * 20_000  # five times what may wait in memory
    path = write_file(tmp_path / "large.dcm", sop_class_uid=CT, number=7, data=data)
    scp = start("async_sink.py", "--", "sh", "-c", 'cat > "$SOP_INSTANCE_UID-$TRANSFER_SYNTAX_UID"')
    run("send_folder.py", "127.0.0.1", scp.port, path)
    assert (scp.folder / f"2.25.7-{EXPLICIT}").read_bytes() == data
    assert scp.stop() == ""


def test_async_sink_answers_with_the_status_of_a_command_that_reads_nothing(
    start: Callable[..., Listening], tmp_path: Path
) -> None:
    path = write_file(tmp_path / "large.dcm", sop_class_uid=CT, number=7, data=bytes(5_000_000))
    scp = start("async_sink.py", "--", "sh", "-c", "exit 3")
    done = run("send_folder.py", "127.0.0.1", scp.port, path, path, status=1)
    assert [line[:6] for line in done.stdout.splitlines()] == ["0xC000", "0xC000"]
    assert "the command exited with status 3" in done.stdout
    assert scp.stop() == ""


async def test_async_sink_ends_its_command_with_the_association(start: Callable[..., Listening]) -> None:
    scp = start("async_sink.py", "--", "sh", "-c", "exec cat > fifo")
    fifo = scp.folder / "fifo"
    os.mkfifo(fifo)
    associations: list[harmony.ul.Association] = []

    async def half() -> Any:
        yield bytes(1 << 20)
        with await asyncio.to_thread(open, fifo, "rb", 0) as reader:  # waits for the command to open its end
            await asyncio.to_thread(reader.read, 1)
            associations[0].abort()
            await asyncio.to_thread(reader.readall)  # ends when the command has
        yield b""

    async def send_half() -> None:
        contexts = propose_contexts([(CT, [EXPLICIT])])
        async with associate("127.0.0.1", scp.port, contexts=contexts) as user:
            associations.append(user.association)
            await user.store(harmony.dimse.Instance(CT, "2.25.1", EXPLICIT, half()))

    with pytest.raises(harmony.ul.AssociationAborted):
        await send_half()
    assert scp.process.poll() is None


async def test_find_scp_answers_with_its_studies(start: Callable[..., Listening]) -> None:
    scp = start("find_scp.py", "--matches", 2)
    first = {
        IMPLICIT: b"\x08\x00\x52\x00\x06\x00\x00\x00STUDY \x10\x00\x10\x00\x10\x00\x00\x00Example^Patient "
        b"\x10\x00\x20\x00\x04\x00\x00\x00EX1 \x20\x00\x0d\x00\x06\x00\x00\x002.25.1",
        EXPLICIT: b"\x08\x00\x52\x00CS\x06\x00STUDY \x10\x00\x10\x00PN\x10\x00Example^Patient "
        b"\x10\x00\x20\x00LO\x04\x00EX1 \x20\x00\x0d\x00UI\x06\x002.25.1",
        "1.2.840.10008.1.2.2": b"\x00\x08\x00\x52CS\x00\x06STUDY \x00\x10\x00\x10PN\x00\x10Example^Patient "
        b"\x00\x10\x00\x20LO\x00\x04EX1 \x00\x20\x00\x0dUI\x00\x062.25.1",
    }
    for transfer_syntax, identifier in first.items():
        contexts = propose_contexts([(STUDY_ROOT_FIND, [transfer_syntax])])
        async with associate("127.0.0.1", scp.port, contexts=contexts) as user:
            asked = await user.invoke(
                lambda message_id: CFindRQ(message_id, STUDY_ROOT_FIND),
                user.context_for(STUDY_ROOT_FIND),
                b"",
            )
            responses = [response async for response in asked]
        assert [response.status for response in responses] == [0xFF00, 0xFF00, 0x0000]
        assert responses[0].data_set == identifier


async def test_find_scp_stops_when_cancelled(start: Callable[..., Listening]) -> None:
    scp = start("find_scp.py", "--matches", 10**9)
    contexts = propose_contexts([(STUDY_ROOT_FIND, [IMPLICIT])])
    async with associate("127.0.0.1", scp.port, contexts=contexts) as user:
        asked = await user.invoke(
            lambda message_id: CFindRQ(message_id, STUDY_ROOT_FIND), user.context_for(STUDY_ROOT_FIND), b""
        )
        assert (await anext(asked)).status == 0xFF00
        await asked.cancel()
        assert (await asked.final()).status == 0xFE00


def test_find_scp_with_dcmtk(start: Callable[..., Listening], require_peer: Callable[[str], str]) -> None:
    scp = start("find_scp.py", "--matches", 10**9)
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID"]
    done = subprocess.run(
        [require_peer("findscu"), "-v", "-S", "--cancel", "2", *keys, "127.0.0.1", str(scp.port)],
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        check=True,
    )
    assert "(0010,0020) LO [EX1 ]" in done.stdout + done.stderr
    assert "Received Final Find Response (Cancel" in done.stdout + done.stderr


HEADING = "StudyInstanceUID\tStudyDate\tPatientID\tPatientName"


def test_find_studies_prints_what_the_archive_has(start: Callable[..., Listening], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_study(folder, 1, "EX1", 3)
    write_study(folder, 2, "EX2", 1)
    write_study(folder, 3, "OTHER", 1)
    (folder / "notes.txt").write_text("not DICOM")
    scp = start("query_retrieve_scp.py", folder)
    one, two = "2.25.1\t20260101\tEX1\tDoe^EX1", "2.25.2\t20260102\tEX2\tDoe^EX2"

    def found(*keys: str) -> list[str]:
        return run("find_studies.py", "127.0.0.1", scp.port, *keys).stdout.splitlines()

    assert found("PatientID=EX*") == [HEADING, one, two]
    assert found("PatientID=EX*", "StudyDate=20260102-") == [HEADING, two]
    assert found("PatientName=doe^ex1", "AccessionNumber") == [f"{HEADING}\tAccessionNumber", f"{one}\tA1"]
    assert found("StudyInstanceUID=2.25.2\\2.25.4") == [HEADING, two]
    assert found("PatientID=NOBODY") == [HEADING]
    assert "passed over" in scp.stop()


def test_find_studies_takes_no_more_than_it_wants(start: Callable[..., Listening]) -> None:
    scp = start("find_scp.py", "--matches", 10**9)
    done = run("find_studies.py", "127.0.0.1", scp.port, "--limit", 2)
    assert done.stdout.splitlines() == [
        HEADING,
        "2.25.1\t\tEX1\tExample^Patient",
        "2.25.2\t\tEX2\tExample^Patient",
    ]
    assert scp.stop() == ""


def test_find_studies_says_why_there_are_none(
    start: Callable[..., Listening], free_port: int, tmp_path: Path
) -> None:
    assert "cannot connect" in run("find_studies.py", "127.0.0.1", free_port, status=1).stderr
    assert "NoSuchKey" in run("find_studies.py", "127.0.0.1", free_port, "NoSuchKey=1", status=2).stderr
    storage = start("hashing_sink.py")
    done = run("find_studies.py", "127.0.0.1", storage.port, status=1)
    assert "no presentation context" in done.stderr
    scp = start("query_retrieve_scp.py", tmp_path)
    done = run("find_studies.py", "127.0.0.1", scp.port, "StudyDate=yesterday", status=1)
    assert done.stderr.startswith("0xA900")


def test_get_study_retrieves_it_byte_for_byte(start: Callable[..., Listening], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    study = write_study(folder, 1, "EX1", 5)
    write_study(folder, 2, "EX2", 1)
    scp = start("query_retrieve_scp.py", folder)
    got = run("get_study.py", "127.0.0.1", scp.port, "2.25.1", tmp_path / "got")
    assert got.stdout == "5 instances retrieved\n"
    assert data_sets(tmp_path / "got") == study
    nothing = run("get_study.py", "127.0.0.1", scp.port, "2.25.9", tmp_path / "nothing", status=1)
    assert nothing.stdout == "0 instances retrieved\n"
    assert scp.stop() == ""


def test_get_study_retrieves_what_is_compressed(
    start: Callable[..., Listening], samples: list[Any], tmp_path: Path
) -> None:
    """Samples that pydicom ships, each in the transfer syntax in which it is stored."""
    folder = tmp_path / "images"
    folder.mkdir()
    sample = next(sample for sample in samples if sample.transfer_syntax_uid == "1.2.840.10008.1.2.4.50")
    (folder / "jpeg.dcm").symlink_to(sample.path)
    scp = start("query_retrieve_scp.py", folder)
    (line,) = run("find_studies.py", "127.0.0.1", scp.port).stdout.splitlines()[1:]
    address = "127.0.0.1", scp.port, line.split("\t")[0]
    run("get_study.py", *address, tmp_path / "got", "--sop-class", sample.sop_class_uid)
    assert data_sets(tmp_path / "got") == {f"{sample.sop_instance_uid}.dcm": on_the_wire(sample)}


def test_get_study_takes_more_kinds_than_there_are_contexts(
    start: Callable[..., Listening], tmp_path: Path
) -> None:
    study = write_study(tmp_path / "images", 1, "EX1", 2)
    scp = start("query_retrieve_scp.py", tmp_path / "images")
    more = [option for number in range(5) for option in ("--sop-class", f"2.25.9.{number}")]
    run("get_study.py", "127.0.0.1", scp.port, "2.25.1", tmp_path / "got", *more)
    assert data_sets(tmp_path / "got") == study


def test_get_study_reports_what_is_gone(start: Callable[..., Listening], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_study(folder, 1, "EX1", 3)
    scp = start("query_retrieve_scp.py", folder)
    (folder / "101.dcm").unlink()
    got = run("get_study.py", "127.0.0.1", scp.port, "2.25.1", tmp_path / "got", status=1)
    assert "failed: 2.25.101" in got.stderr
    assert set(data_sets(tmp_path / "got")) == {"2.25.100.dcm", "2.25.102.dcm"}


def test_move_study_retrieves_to_itself(
    start: Callable[..., Listening], free_port: int, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    study = write_study(folder, 1, "EX1", 5)
    write_study(folder, 2, "EX2", 1)
    scp = start("query_retrieve_scp.py", folder, "--destination", f"MOVER=127.0.0.1:{free_port}")
    listen = ["--bind", "127.0.0.1", "--listen", free_port]
    address = "127.0.0.1", scp.port, "2.25.1"
    moved = run("move_study.py", *address, tmp_path / "moved", "--calling", "MOVER", *listen)
    assert moved.stdout == "5 instances retrieved\n"
    assert data_sets(tmp_path / "moved") == study
    unknown = run("move_study.py", *address, tmp_path / "unknown", "--calling", "OTHER", *listen, status=1)
    assert unknown.stderr.startswith("0xA801")
    assert scp.stop() == ""


def run_dcmtk(path: str, *arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, timeout=END_TIMEOUT_S, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_query_retrieve_scp_with_dcmtk(
    start: Callable[..., Listening], require_peer: Callable[[str], str], free_port: int, tmp_path: Path
) -> None:
    findscu, getscu, movescu = map(require_peer, ("findscu", "getscu", "movescu"))
    folder = tmp_path / "images"
    study = write_study(folder, 1, "EX1", 3)
    write_study(folder, 2, "EX2", 1)
    scp = start("query_retrieve_scp.py", folder, "--destination", f"MOVESCU=127.0.0.1:{free_port}")
    address = "127.0.0.1", scp.port
    keys = ["-k", "QueryRetrieveLevel=IMAGE", "-k", "StudyInstanceUID=2.25.1", "-k", "SOPInstanceUID"]
    said = run_dcmtk(findscu, "-v", "-S", *keys, *address)
    assert [f"[2.25.{number}]" in said for number in (100, 101, 102, 200)] == [True, True, True, False]
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=2.25.1"]
    for program, options in (getscu, []), (movescu, ["-aem", "MOVESCU", "+P", free_port]):
        received = tmp_path / Path(program).name
        received.mkdir()
        run_dcmtk(program, "-S", "-od", received, *options, *keys, *address)
        assert sorted(data_sets(received).values()) == sorted(study.values())
    converted = tmp_path / "implicit"
    converted.mkdir()
    options = "-aem", "MOVESCU", "+P", free_port, "+xi"  # Implicit VR only
    run_dcmtk(movescu, "-S", "-od", converted, *options, *keys, *address)
    assert {read_file_meta_from(path).transfer_syntax_uid for path in converted.iterdir()} == {IMPLICIT}
    assert len(list(converted.iterdir())) == len(study)
    said = run_dcmtk(findscu, "-v", "-S", "-k", "QueryRetrieveLevel=PATIENT", *address)
    assert "DataSetDoesNotMatchSOPClass" in said  # 0xA900 has the words of C-STORE here
    assert scp.stop() == ""


def test_send_find_get_and_move_with_dcmqrscp(
    require_peer: Callable[[str], str], free_ports: Callable[[int], list[int]], tmp_path: Path
) -> None:
    port, listen = free_ports(2)
    folder, configuration = tmp_path / "archive", tmp_path / "dcmqrscp.cfg"
    folder.mkdir()
    configuration.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nmover = (MOVER, 127.0.0.1, {listen})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {folder} RW (100, 1024mb) ANY\nAETable END\n"
    )
    study = write_study(tmp_path / "images", 1, "EX1", 5)
    write_study(tmp_path / "images", 2, "EX2", 1)
    titles = ["--called", "ARCHIVE", "--calling", "MOVER"]
    with listening([require_peer("dcmqrscp"), "-c", str(configuration)], port):
        sent = run("send_folder.py", "127.0.0.1", port, tmp_path / "images", *titles, "--connections", 1)
        assert sent.stdout.count("0x0000 Success") == 6
        found = run("find_studies.py", "127.0.0.1", port, "PatientID=EX1", *titles)
        assert found.stdout.splitlines() == [HEADING, "2.25.1\t20260101\tEX1\tDoe^EX1"]
        arguments = "127.0.0.1", port, "2.25.1"
        run("get_study.py", *arguments, tmp_path / "got", *titles)
        assert data_sets(tmp_path / "got") == study
        where = ["--bind", "127.0.0.1", "--listen", listen]
        run("move_study.py", *arguments, tmp_path / "moved", *titles, *where)
        assert data_sets(tmp_path / "moved") == study


async def test_bare_core_echoes_with_harmony() -> None:
    async with serve(Services(), ae_title="ARCHIVE", port=0) as server:
        done = await run_beside("bare_upper_layer.py", "127.0.0.1", server.port, "--called", "ARCHIVE")
        assert done.stdout == "0x0000 Success\n"
        done = await run_beside("bare_upper_layer.py", "127.0.0.1", server.port, status=1)
    assert "called-AE-title-not-recognized" in done.stderr


async def test_bare_core_says_that_verification_is_not_accepted() -> None:
    services = Services()
    services.no_echo()
    services.store(lambda _: BytesSink(lambda _: SUCCESS_OUTCOME), sop_classes=[CT])
    async with serve(services, port=0) as server:
        done = await run_beside("bare_upper_layer.py", "127.0.0.1", server.port, status=1)
    assert "1.2.840.10008.1.1: abstract-syntax-not-supported" in done.stderr


def test_bare_core_without_a_peer(free_port: int) -> None:
    assert "refused" in run("bare_upper_layer.py", "127.0.0.1", free_port, status=1).stderr


def test_bare_core_and_folder_with_dcmtk(
    require_peer: Callable[[str], str], free_port: int, samples: list[Any], tmp_path: Path
) -> None:
    with listening([require_peer("storescp"), "+B", "+xa", "-od", str(tmp_path), str(free_port)], free_port):
        assert run("bare_upper_layer.py", "127.0.0.1", free_port).stdout == "0x0000 Success\n"
        paths = [
            sample.path
            for sample in samples
            if sample.sop_class_uid.startswith("1.2.840.10008.5.1.4.1.1.")
            and sample.transfer_syntax_uid in (IMPLICIT, EXPLICIT)
        ]
        done = run("send_folder.py", "127.0.0.1", free_port, *paths[:3], "--connections", 1)
        assert done.stdout.count("0x0000 Success") == 3
        assert len(list(tmp_path.iterdir())) == 3


@contextlib.contextmanager
def listening(command: list[str], port: int) -> Iterator[None]:
    """A DCMTK server, from when it listens to the end of the block."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until_it_listens(port, process)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with a child for each association, where it forks
        process.wait()


def wait_until_it_listens(port: int, process: "subprocess.Popen[bytes]") -> None:
    """DCMTK says nothing when it listens: connect until it does, or has ended."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"{process.args!r} ended with status {process.wait(0.02)}")


# docs/EMBEDDING.md ----------------------------------------------------------------------------------------------

BLOCKS = re.findall(
    r"^(?:\[`examples/embedding/(\S+)`\]\(\S+\):\n\n)?```python\n(.*?)^```", EMBEDDING, re.M | re.S
)
SNIPPETS = [code for name, code in BLOCKS if not name]


@pytest.mark.parametrize("name", NAMES)
def test_the_document_holds_the_program_as_it_is(name: str) -> None:
    blocks = [code for found, code in BLOCKS if found == name]
    assert blocks == [(EXAMPLES / name).read_text()]


def snippet(name: str) -> dict[str, Any]:
    """What the code block that defines `name` defines."""
    (code,) = [code for code in SNIPPETS if re.search(rf"^(?:async )?def {name}\(", code, re.M)]
    namespace: dict[str, Any] = {}
    exec(compile(code, f"docs/EMBEDDING.md, {name}", "exec"), namespace)
    return namespace


def test_every_other_code_block_is_run_by_a_test() -> None:
    tested = "store_eight_at_a_time", "scp_context", "verify", "admit"
    assert len(SNIPPETS) == len(tested)
    for name in tested:
        assert callable(snippet(name)[name])


async def test_the_operations_window_snippet(tmp_path: Path) -> None:
    paths = [write_file(tmp_path / f"{number}.dcm", sop_class_uid=CT, number=number) for number in range(20)]
    everyone_is_here = asyncio.Event()
    together: set[str] = set()

    async def answer_when_eight_have_come(request: StoreRequest) -> Outcome:
        together.add(request.affected_sop_instance_uid)
        if len(together) == 8:
            everyone_is_here.set()
        await everyone_is_here.wait()  # for ever, if they came one at a time
        return SUCCESS_OUTCOME

    services = Services()
    services.store(lambda request: BytesSink(lambda _: answer_when_eight_have_come(request)))
    async with serve(services, port=0, maximum_operations=8) as server:
        store = snippet("store_eight_at_a_time")["store_eight_at_a_time"]
        outcomes = await store("127.0.0.1", server.port, paths)
    assert outcomes == [SUCCESS_OUTCOME] * 20


@pytest.fixture
def certificate(require_peer: Callable[[str], str], tmp_path: Path) -> tuple[str, str]:
    """Files with a self-signed certificate for localhost and its key."""
    paths = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-out", paths[0], "-keyout", paths[1]]
    subprocess.run([require_peer("openssl"), *options.split(), *names], check=True, capture_output=True)
    return paths


async def test_the_tls_snippet(certificate: tuple[str, str]) -> None:
    make = snippet("scp_context")
    theirs: ssl.SSLContext = make["scp_context"](*certificate, certificate[0])
    ours: ssl.SSLContext = make["scu_context"](*certificate, certificate[0])
    without_certificate = ssl.create_default_context(cafile=certificate[0])
    async with serve(Services(), port=0, ssl_context=theirs) as server:
        address = "127.0.0.1", server.port
        async with associate(*address, ssl_context=ours, server_hostname="localhost") as user:
            assert await user.echo() == SUCCESS_OUTCOME
        with pytest.raises((ConnectFailed, ConnectionLost)):
            async with associate(*address, ssl_context=without_certificate, server_hostname="localhost"):
                pass


IDENTITY = UserIdentityRQ(2, b"modality-7", b"correct horse", positive_response_requested=True)


async def test_the_user_identity_snippet_accepts_the_passcode() -> None:
    async with (
        serve(Services(), port=0, verify_identity=snippet("verify")["verify"]) as server,
        associate("127.0.0.1", server.port, user_identity=IDENTITY) as user,
    ):
        assert user.association.agreed.peer.user_identity_ac is not None


@pytest.mark.parametrize(
    "identity",
    [
        None,
        replace(IDENTITY, secondary_field=b"battery staple"),
        replace(IDENTITY, secondary_field=b""),
        replace(IDENTITY, primary_field=b"nobody", secondary_field=b""),
        replace(IDENTITY, user_identity_type=1),
    ],
)
async def test_the_user_identity_snippet_refuses(identity: UserIdentityRQ | None) -> None:
    async with serve(Services(), port=0, verify_identity=snippet("verify")["verify"]) as server:
        with pytest.raises(AssociationRejected) as refusal:
            async with associate("127.0.0.1", server.port, user_identity=identity):
                pass
    assert (refusal.value.result, refusal.value.source, refusal.value.reason) == (1, 2, 1)


async def test_the_snippet_about_who_may_do_what() -> None:
    made = snippet("admit")
    services, server = made["services"], made["server"]
    services.store(lambda request: BytesSink(lambda data: SUCCESS_OUTCOME))
    await server.listen("127.0.0.1", 0)
    contexts = propose_contexts([(CT, [IMPLICIT])])
    try:
        with pytest.raises(AssociationRejected):
            async with associate("127.0.0.1", server.port, calling_ae_title="STRANGER"):
                pass
        for title, status in (("CT", 0), ("VIEWER", 0x0124)):
            options = {"calling_ae_title": title, "contexts": contexts}
            async with associate("127.0.0.1", server.port, **options) as user:  # type: ignore[arg-type]
                assert user.association.agreed.peer.maximum_length == 16384
                invocation = await user.invoke(
                    lambda number: CStoreRQ(number, CT, "1.2"), user.association.agreed.contexts[1], b"12"
                )
                assert (await invocation.final()).status == status
    finally:
        await server.close()


def section(document: str, title: str) -> str:
    """The text under a heading, up to the next one of any level."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", document, re.M | re.S)
    assert found, title
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """The tables of a text: the cells of each row by its first one, without backquotes."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[cells[0].replace("`", "")] = cells[1:]
    return found


def test_the_table_of_deadlines_has_the_defaults() -> None:
    table = rows(section(EMBEDDING, "Deadlines"))
    documented = {name: float(cells[0]) for name, cells in table.items() if name.endswith("_s")}
    assert documented == {field.name: field.default for field in fields(Timeouts)}
    text = section(EMBEDDING, "Deadlines")
    assert f"`response_s` of `associate`: {scu.DEFAULT_RESPONSE_S:g} seconds" in text
    assert f"`cancel_s` of `find`, `get` and `move`: {constant('CANCEL_S')} seconds" in text


def test_the_pool_keeps_and_checks_as_documented() -> None:
    parameters = inspect.signature(AssociationPool).parameters
    text = section(EMBEDDING, "An association pool and many files").replace("\n", " ")
    assert f"{parameters['idle_s'].default:g} seconds (`idle_s`)" in text
    assert f"more than {parameters['check_after_s'].default:g} (`check_after_s`)" in text


def constant(name: str) -> int:
    """A limit of harmony.dimse: its value is documented, its module is not."""
    modules = [
        importlib.import_module(f"harmony.dimse.{module.name}")
        for module in pkgutil.iter_modules(harmony.dimse.__path__)
    ]
    (value,) = {vars(module)[name] for module in modules if name in vars(module)}
    return int(value)


def test_the_table_of_limits_has_the_defaults() -> None:
    def default_of(function: Any, name: str) -> int:
        return int(inspect.signature(function).parameters[name].default)

    table = rows(section(EMBEDDING, "Limits"))
    documented = {name: int(cells[0]) for name, cells in table.items() if cells[0].isdigit()}
    assert documented == {
        **{
            f"{limits.__name__}.{field.name}": field.default
            for limits in (AcceptorLimits, SizeLimits)
            for field in fields(limits)
        },
        "command set": constant("COMMAND_SET_LIMIT"),
        "data set of an Operation or a Response": constant("COLLECTED_DATA_LIMIT"),
        "BytesSink(maximum_bytes=)": default_of(BytesSink, "maximum_bytes"),
        "AsyncSink(maximum_buffered_bytes=)": default_of(AsyncSink, "maximum_buffered_bytes"),
        "responses that wait for an Invocation to be iterated": constant("WAITING_RESPONSES_LIMIT"),
        "AssociationPool(maximum_associations=)": default_of(AssociationPool, "maximum_associations"),
        "store_many(connections=)": default_of(store_many, "connections"),
    }
    text = section(EMBEDDING, "Limits")
    assert f"({harmony.ul.DEFAULT_MAXIMUM_LENGTH})" in text
    assert "size_limits" in inspect.signature(Server).parameters


PACKAGES = [harmony.ul, harmony.dimse]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_is_in_the_document(package: Any) -> None:
    names = set(re.findall(r"`(\w+)`", section(EMBEDDING, "The names")))
    assert not set(package.__all__) - names


def test_the_document_lists_no_other_name() -> None:
    listed = set(re.findall(r"`(\w+)`", section(EMBEDDING, "The names")))
    assert not listed - {name for package in PACKAGES for name in package.__all__}


def test_the_document_names_only_members_that_exist() -> None:
    """`SCU.store`, `serve(..., maximum_operations=8)` and the like, outside code blocks."""
    text = re.sub(r"^```.*?^```", "", EMBEDDING, flags=re.M | re.S)
    public = {name: getattr(package, name) for package in PACKAGES for name in package.__all__}
    members = {
        (name, member)
        for name, member in re.findall(r"`(\w+)\.(\w+)", text)
        if name in public and not member.endswith("py")
    }
    arguments = {
        (name, argument)
        for name, inside in re.findall(r"`(\w+)\(([^`]*)\)`", text)
        if name in public
        for argument in re.findall(r"(\w+)=", inside)
        if argument[0].islower()
    }
    assert len(members) > 10
    assert len(arguments) > 4
    assert not {
        (name, member)
        for name, member in members
        if member not in vars(public[name]) | instance(public[name])
    }
    assert not {
        (name, argument)
        for name, argument in arguments
        if argument not in inspect.signature(public[name]).parameters
    }


def test_the_codec_and_the_matching_need_only_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        "import harmony.dicom.json_model, harmony.dicom.transcode\n"
        "import harmony.archive.matching, harmony.archive.projection\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) - {"harmony"} <= sys.stdlib_module_names


def instance(thing: Any) -> dict[str, Any]:
    """What `__init__` or the fields of a dataclass give an object."""
    return dict(inspect.signature(thing).parameters) if inspect.isclass(thing) else {}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_class_and_function_has_a_docstring_of_its_own(package: Any) -> None:
    bare = [
        name
        for name in package.__all__
        if (inspect.isclass(thing := getattr(package, name)) or inspect.isfunction(thing))
        # A dataclass without one gets its signature.
        and (
            not (vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__)
            or str(thing.__doc__).startswith(f"{name}(")
        )
    ]
    assert not bare


def test_the_table_of_errors_is_the_hierarchy() -> None:
    table = rows(section(EMBEDDING, "Errors"))
    documented = {
        tuple(re.fullmatch(r"(\w+) \((\w+)\)", cell).groups())  # type: ignore[union-attr]
        for cell in table
        if "(" in cell
    }
    public = {
        thing
        for package in PACKAGES
        for thing in (getattr(package, name) for name in package.__all__)
        if inspect.isclass(thing) and issubclass(thing, Exception)
    }
    described_in_the_text = {harmony.ul.ULError, harmony.ul.AssociationError}
    assert documented == {
        (error.__name__, error.__base__.__name__) for error in public - described_in_the_text
    }
