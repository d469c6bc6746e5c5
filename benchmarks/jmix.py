"""`python -m benchmarks jmix`: from C-STORE to an envelope at an upstream, against receiving alone; the ZIP writer
against SHA-256 and a memory copy; how long after its release a study is upstream.

zip      Members of a CT's size through `ZipStream`, stored and hashed as in an envelope; the same bytes through
         hashlib.sha256 and into other memory, in the same process, turn and turn about. And, for information, from
         files into an archive on the disk, documents included.
flood    Studies of CT images, an association each, one or four at a time, into a gateway as `examples/dicom-to-jmix`
         configures it, until the last answer of the upstream; the same objects into a gateway with `backends = []`,
         until the last association is released. The upstream drops what it gets (`jmix_upstream`); a second Harmony in
         its place is for information.
latency  From the A-RELEASE-RQ of a study of CT images to the upstream's answer, less what the same bytes take to the
         same upstream from the page cache over a plain socket (sendfile).
"""

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any

from benchmarks import report
from benchmarks.jmix_upstream import content_length
from benchmarks.measure import FIRST_NUMBER, WARM_UP_OBJECTS, check_room, cpu_at_rest_s, memory_bytes, tree
from benchmarks.peers import CALLED_AE_TITLE, PeerError, Place, Receiver, free_port, harmony, running
from benchmarks.preencoded import Flood
from benchmarks.retrieve import names_of
from benchmarks.senders import flood
from benchmarks.tables import markdown, number, spread
from benchmarks.targets import Target, print_targets
from benchmarks.workloads import SIZES, Workload, create
from harmony.jmix.envelope import EnvelopePlan, build_envelope
from harmony.jmix.journal import JournalEntry
from harmony.jmix.outbox import Outbox, State
from harmony.jmix.zipstream import ZipStream

PARTS = ("zip", "flood", "latency")
ASSOCIATIONS = (1, 4)
ARRIVAL_TIMEOUT_S = 60.0
ZIP_TARGET = 0.8
FLOOD_TARGET = 0.5
LATENCY_TARGET_MS = 100.0
ENVELOPE_ID = "550e8400-e29b-41d4-a716-446655440000"
POLL_S = 0.02

CONFIGURATION = """\
[proxy]
name = "benchmark"
pipelines_path = "{scratch}/pipelines"

[logging]
log_level = "warn"

[storage]
backend = "filesystem"

[storage.options]
path = "{folder}"

[network.dicom_net.dicom]
bind_address = "127.0.0.1"
bind_port = {port}

[targets.upstream_jmix]
connection.host = "127.0.0.1"
connection.port = {upstream_port}
connection.protocol = "http"

[pipelines.dicom_to_jmix]
description = "As in examples/dicom-to-jmix"
networks = ["dicom_net"]
endpoints = ["receiver"]
middleware = ["jmix_builder"]
backends = ["upstream"]

[endpoints.receiver]
service = "dicom_scp"

[endpoints.receiver.options]
local_aet = "{ae_title}"
max_pdu = 65536
enable_echo = true
enable_store = true
enable_find = false
enable_get = false
enable_move = false

[middleware.jmix_builder]
type = "jmix_builder"

[backends.upstream]
service = "jmix_backend"
target_ref = "upstream_jmix"
"""

UPSTREAM_CONFIGURATION = """\
[proxy]
name = "upstream"
pipelines_path = "{scratch}/pipelines"

[logging]
log_level = "warn"

[storage.options]
path = "{folder}"

[network.upstream_net.http]
bind_address = "127.0.0.1"
bind_port = {port}

[pipelines.upstream]
description = "Keeps the envelopes it is sent"
networks = ["upstream_net"]
endpoints = ["jmix"]
middleware = []
backends = []

[endpoints.jmix]
service = "jmix"

[endpoints.jmix.options]
path_prefix = "/"
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "jmix",
        help="C-STORE to a JMIX upstream, the ZIP writer, and how long after its release a study is upstream",
        description="Receive, hash, pack and upload: against receiving alone, SHA-256 and a plain socket.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--parts", type=names_of(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--studies", type=int, default=8, help="in a flood (default: 8)")
    parser.add_argument("--images", type=int, help="in each of them (default: 100)")
    parser.add_argument(
        "--latency-images", type=int, default=400, help="in the study of `latency` (default: 400)"
    )
    parser.add_argument("--output", type=Path, help="everything is stored below it (default: temporary)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    rounds = options.rounds or (3 if options.quick else 7)
    rows, targets, failures = list[dict[str, Any]](), list[Target](), list[str]()
    with tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary:
        folder = Path(temporary)
        workload = create(SIZES["ct"], folder)
        try:
            if "zip" in options.parts:
                rows += _zip(workload, folder, rounds, 100 if options.quick else 256, targets)
            if "flood" in options.parts:
                images = options.images or (50 if options.quick else 100)
                for associations in ASSOCIATIONS:
                    studies = Studies(max(1, options.studies // associations), associations, images)
                    rows += _floods(workload, folder, rounds, studies, targets)
            if "latency" in options.parts:
                rows += _latencies(workload, folder, rounds, options.latency_images, targets)
        except PeerError as error:
            failures.append(str(error))
    print_targets(targets)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "run"}
        report.write_rows(options.json, rows, options=settings, failures=failures)
    return 1 if failures else 0


# The ZIP writer ----


def _zip(
    workload: Workload, folder: Path, rounds: int, count: int, targets: list[Target]
) -> list[dict[str, Any]]:
    content = workload.path.read_bytes()
    members = [bytearray(content) for _ in range(count)]
    total = len(content) * count
    copied = bytearray(total)
    entries = _objects(folder / "members", content, count, workload)

    def sha256() -> None:
        for member in members:
            hashlib.sha256(member).digest()

    def copy() -> None:
        at = 0
        for member in members:
            copied[at : at + len(member)] = member
            at += len(member)

    def write() -> None:
        stream = ZipStream()
        for place, member in enumerate(members):
            stream.add(f"payload/series_1/image_{place:03}.dcm", member)
        for _ in stream.finish():
            pass

    def build() -> None:
        plan = EnvelopePlan(ENVELOPE_ID, datetime(2024, 1, 15, tzinfo=UTC), entries)
        build_envelope(plan, out_path=folder / "envelope.zip")

    ways: dict[str, tuple[str, Callable[[], None]]] = {
        "sha256": ("hashlib.sha256", sha256),
        "copy": ("memory copy", copy),
        "zip": ("ZIP writer", write),
        "build": ("files to an envelope on the disk", build),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, (_, way) in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first is to warm up
                rates[name].append(total / (time.perf_counter() - started) / 1e6)
    shutil.rmtree(folder / "members")
    (folder / "envelope.zip").unlink()
    slower = [min(pair) for pair in zip(rates["sha256"], rates["copy"], strict=True)]
    table = [["what", "MB/s", "/ the slower of SHA-256 and copy"]]
    for name, (title, _) in ways.items():
        ratios = [rate / limit for rate, limit in zip(rates[name], slower, strict=True)]
        table.append([title, spread(rates[name]), spread(ratios)])
        if name == "zip":
            what = "ZIP writer / the slower of SHA-256 and memory copy"
            targets.append(Target(what, median(ratios), least=ZIP_TARGET, spread=ratios))
    print(f"{count} members of {len(content)} bytes, {rounds} rounds:\n\n{markdown(table)}\n", flush=True)
    return [{"part": "zip", "way": name, "mb_per_s": rates[name]} for name in ways]


def _objects(folder: Path, content: bytes, count: int, workload: Workload) -> list[JournalEntry]:
    """So many files, as the journal of their envelope has them."""
    folder.mkdir()
    entries = []
    for place in range(count):
        path = folder / f"{place}.dcm"
        path.write_bytes(content)
        study, sop_class = workload.size.study_instance_uid, workload.size.sop_class_uid
        entries.append(
            JournalEntry(str(path), study, "2.25.1", sop_class, f"2.25.{place}", "1.2.840.10008.1.2.1", 0, "")
        )
    return entries


# The whole way ----


@dataclass(frozen=True, slots=True)
class Arrived:
    """An envelope that the upstream has answered."""

    at_s: float  # CLOCK_MONOTONIC
    size_bytes: int


class Answers:
    """What a running upstream has answered: its lines, read in a thread."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._arrived: list[Arrived] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._arrived.append(Arrived(**json.loads(line)))
                self._changed.notify()

    def take(self, count: int) -> list[Arrived]:
        """Wait for so many answers, and return them. Raises PeerError when they do not come."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._arrived) >= count, ARRIVAL_TIMEOUT_S):
                raise PeerError(f"{len(self._arrived)} of {count} envelopes after {ARRIVAL_TIMEOUT_S} s")
            taken, self._arrived = self._arrived[:count], self._arrived[count:]
        return taken


@contextmanager
def _draining() -> Iterator[tuple[int, Answers]]:
    """A draining upstream: its port, and what it has answered."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.jmix_upstream", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        _wait_until_listening(port)
        yield port, Answers(process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None


def _wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerError(f"nothing listens on port {port}") from error
            time.sleep(POLL_S)


def _configured(text: str, **values: object) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        (place.scratch / "pipelines").mkdir(exist_ok=True)
        path = place.scratch / "config.toml"
        fields = {"scratch": place.scratch, "folder": place.folder, "port": place.port, **values}
        path.write_text(text.format(ae_title=CALLED_AE_TITLE, **fields))
        return [sys.executable, "-m", "harmony", "--config", str(path)]

    return command


def _to(upstream_port: int) -> Receiver:
    return Receiver("jmix", "Harmony to an upstream", _configured(CONFIGURATION, upstream_port=upstream_port))


@contextmanager
def _placed(folder: Path) -> Iterator[Place]:
    scratch = Path(mkdtemp(prefix="run-", dir=folder))
    try:
        (scratch / "objects").mkdir()
        yield Place(free_port(), scratch / "objects", scratch, None)
    finally:
        shutil.rmtree(scratch)


@dataclass(frozen=True, slots=True)
class Run:
    """One flood. elapsed_s: until the last association was released, or until the upstream's last answer."""

    route: str
    associations: int
    objects: int
    data_set_bytes: int
    elapsed_s: float
    cpu_s: float  # of the gateway's processes, until they had come to rest
    peak_rss_bytes: int  # sum of what each had at its peak, shared pages counted once per process

    @property
    def megabytes_per_s(self) -> float:
        return self.data_set_bytes / self.elapsed_s / 1e6

    @property
    def cpu_s_per_gigabyte(self) -> float:
        return self.cpu_s / self.data_set_bytes * 1e9


@dataclass(frozen=True, slots=True)
class Studies:
    """What is sent: an association for each, some at a time, so many times."""

    times: int
    at_a_time: int
    images: int

    @property
    def count(self) -> int:
        return self.times * self.at_a_time


ROUTES = {
    "bare": "receiving alone, `backends = []`",
    "drain": "to an upstream that drops what it gets",
    "harmony": "to a second Harmony",
}


def _floods(
    workload: Workload, folder: Path, rounds: int, studies: Studies, targets: list[Target]
) -> list[dict[str, Any]]:
    check_room(folder, 3 * studies.count * studies.images * workload.data_set_bytes)
    runs: list[Run] = []
    for turn in range(rounds):
        names = list(ROUTES)
        for name in names[turn % 3 :] + names[: turn % 3]:
            os.sync()  # what the last one left for the file system to do is not this one's
            runs.append(_one(name, workload, folder, studies))
    by_route = {name: [run for run in runs if run.route == name] for name in ROUTES}
    bare = [run.megabytes_per_s for run in by_route["bare"]]
    table = [["route", "MB/s", "/ receiving alone", "gateway CPU s/GB", "peak MB"]]
    for name, title in ROUTES.items():
        rates = [run.megabytes_per_s for run in by_route[name]]
        ratios = [rate / alone for rate, alone in zip(rates, bare, strict=True)]
        table.append([
            title,
            spread(rates),
            "" if name == "bare" else spread(ratios),
            spread([run.cpu_s_per_gigabyte for run in by_route[name]]),
            number(max(run.peak_rss_bytes for run in by_route[name]) / 1e6),
        ])  # fmt: skip
        if name == "drain":
            what = f"CT to upstream / received alone, {studies.at_a_time} at a time"
            targets.append(Target(what, median(ratios), least=FLOOD_TARGET, spread=ratios))
    title = f"{studies.count} studies of {studies.images} CT images, {studies.at_a_time} at a time"
    print(f"{title}, {rounds} rounds:\n\n{markdown(table)}\n", flush=True)
    return [{"part": "flood", **asdict(run)} for run in runs]


def _one(name: str, workload: Workload, folder: Path, studies: Studies) -> Run:
    with _placed(folder) as place:
        match name:
            case "bare":
                receiver = Receiver("harmony", "Harmony", harmony())
                with running(receiver, place) as pid:
                    return _flooded(name, workload, place, pid, studies, None)
            case "drain":
                with _draining() as (port, answers), running(_to(port), place) as pid:

                    def last_answer(count: int) -> float:
                        return max(each.at_s for each in answers.take(count))

                    return _flooded(name, workload, place, pid, studies, last_answer)
            case _:
                return _to_harmony(workload, folder, place, studies)


def _to_harmony(workload: Workload, folder: Path, place: Place, studies: Studies) -> Run:
    upstream = Receiver("upstream", "Harmony", _configured(UPSTREAM_CONFIGURATION))
    outbox_path = place.folder / "jmix-builder" / "dicom_to_jmix" / "outbox.sqlite"
    delivered = 0

    def last_answer(count: int) -> float:
        """Found out by looking, and so up to POLL_S too late."""
        nonlocal delivered
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        outbox = Outbox.inspect(outbox_path)
        try:
            while outbox.counts()[State.DELIVERED] < delivered + count:
                if time.monotonic() > deadline:
                    raise PeerError(f"{count} envelopes are not delivered after {ARRIVAL_TIMEOUT_S} s")
                time.sleep(POLL_S)
        finally:
            outbox.close()
        delivered += count
        return time.monotonic()

    with (
        _placed(folder) as there,
        running(upstream, there),
        running(_to(there.port), place) as pid,
    ):
        return _flooded("harmony", workload, place, pid, studies, last_answer)


def _flooded(
    route: str,
    workload: Workload,
    place: Place,
    pid: int,
    studies: Studies,
    last_answer: Callable[[int], float] | None,
) -> Run:
    flood(workload, place.port, WARM_UP_OBJECTS, 1, 1)
    if last_answer is not None:
        last_answer(1)
    before_s = cpu_at_rest_s(pid)
    at_once = studies.at_a_time * studies.images
    sent = flood(workload, place.port, at_once, studies.at_a_time, FIRST_NUMBER, repeat=studies.times)
    elapsed_s = sent.elapsed_s
    if last_answer is not None:
        elapsed_s = last_answer(studies.count) - sent.began_at_s
    cpu_s = cpu_at_rest_s(pid) - before_s
    peak = sum(memory_bytes(process, "VmHWM") for process in tree(pid))
    return Run(route, studies.at_a_time, sent.objects, sent.data_set_bytes, elapsed_s, cpu_s, peak)


# After the release ----


def _latencies(
    workload: Workload, folder: Path, rounds: int, images: int, targets: list[Target]
) -> list[dict[str, Any]]:
    check_room(folder, 3 * images * workload.data_set_bytes)
    whole, plain = list[float](), list[float]()
    with _draining() as (port, answers):
        for _ in range(rounds):
            with _placed(folder) as place, running(_to(port), place):
                flood(workload, place.port, WARM_UP_OBJECTS, 1, 1)
                answers.take(1)
                sent: Flood = flood(workload, place.port, images, 1, FIRST_NUMBER)
                (arrived,) = answers.take(1)
                whole.append((arrived.at_s - sent.release_at_s) * 1e3)
                paths = (place.folder / "jmix-store").glob("*/*.zip")
                envelope = max(paths, key=lambda path: path.stat().st_size)
                plain.append(_transfer_s(envelope, port) * 1e3)
                answers.take(1)
    beyond = [total - transfer for total, transfer in zip(whole, plain, strict=True)]
    table = [
        ["from A-RELEASE-RQ to the upstream's 201", "ms"],
        ["all of it", spread(whole)],
        ["the same bytes by a plain socket", spread(plain)],
        ["the difference", spread(beyond)],
    ]
    print(
        f"A study of {images} CT images over one association, {rounds} rounds:\n\n{markdown(table)}\n",
        flush=True,
    )
    what = f"A-RELEASE-RQ to 201 beyond the transfer, {images} CT images"
    targets.append(
        Target(what, median(beyond), most=LATENCY_TARGET_MS, unit="ms", spread=beyond),
    )
    return [{"part": "latency", "whole_ms": whole, "plain_ms": plain}]


def _transfer_s(path: Path, port: int) -> float:
    """POST a file, by sendfile(2), until the answer has come."""
    size = path.stat().st_size
    head = b"POST / HTTP/1.1\r\nHost: upstream\r\nContent-Length: %d\r\n\r\n" % size
    with path.open("rb") as file, socket.create_connection(("127.0.0.1", port)) as sock:
        started = time.perf_counter()
        sock.sendall(head, socket.MSG_MORE)
        sock.sendfile(file)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < content_length(answer):
            part = sock.recv(65536)
            if not part:
                raise PeerError("the upstream closed the connection")
            answer += part
        return time.perf_counter() - started
