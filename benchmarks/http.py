"""`python -m benchmarks http`: Harmony as an HTTP server, beside nginx and the least that Python can do.

    small       JSON on connections that stay open, 1, 8 and 64 at once: /admin/info, the capabilities, QIDO-RS searches
                from the index; nginx and the floor (`web_peers`) send as many bytes as the searches do
    bodies      one CT image, a study of them, an object of 1 GB over WADO-RS from the archive; nginx sends the same
                bytes as a file, with sendfile(2) and without
    first       the metadata of a series of 1000 instances: to the first byte, and to the last

Servers take turns, round after round, measure by measure. Rates of small answers also stand as what a core would do
with nothing else to do: CPU time of the server per request, turned over. Bodies are dropped in the kernel
(`web_client`). Ratios are medians of the ratios of each round.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.find import store_studies
from benchmarks.find_data import study_of
from benchmarks.measure import tree_cpu_s
from benchmarks.peers import WEB_ROOT, PeerError, Place, Receiver, free_port, harmony, program, running
from benchmarks.retrieve import filled, names_of
from benchmarks.tables import markdown, spread
from benchmarks.targets import Target, print_targets
from benchmarks.web_peers import NGINX, NGINX_PATH, NGINX_WITHOUT_SENDFILE, floor, write_file
from benchmarks.workloads import SIZES, Workload, create

PARTS = ("small", "bodies", "first")
TIMEOUT_S = 120.0
JSON, DICOM = "application/dicom+json", "application/dicom"
MULTIPART = 'multipart/related; type="application/dicom"'
LEAST_REQUESTS_PER_S = 5000
LEAST_OF_NGINX = 0.7
_MANAGEMENT = '\n[management]\nenabled = true\nnetwork = "default"\n'


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    rounds: int
    studies: int
    requests: int  # in a round, of each small measure
    connections: tuple[int, ...]
    images: int  # of the study
    single: int  # requests for one image
    large: str  # the size of the large object
    instances: int  # of the series whose metadata are asked for


FULL = Sizes(7, 300, 3000, (1, 8, 64), 400, 400, "gigabyte", 1000)
QUICK = Sizes(3, 100, 1000, (1, 8), 100, 200, "multiframe", 1000)


@dataclass(frozen=True, slots=True)
class Run:
    """What one server did in one round of one measure."""

    measure: str
    server: str
    connections: int
    requests: int
    size_bytes: int
    elapsed_s: float
    cpu_s: float
    first_s: float = 0.0

    @property
    def per_s(self) -> float:
        return self.requests / self.elapsed_s

    @property
    def cpu_us_each(self) -> float:
        return self.cpu_s / self.requests * 1e6

    @property
    def megabytes_per_s(self) -> float:
        return self.size_bytes / self.elapsed_s / 1e6

    @property
    def cpu_s_per_gigabyte(self) -> float:
        return self.cpu_s / self.size_bytes * 1e9


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs, and where."""

    name: str
    title: str
    port: int
    pid: int
    folder: Path


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "http",
        help="HTTP: small answers and large bodies, beside nginx",
        description="Requests/s, MB/s and CPU of Harmony's HTTP server beside nginx and a floor.",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, 3 rounds")
    parser.add_argument("--parts", type=names_of(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="files are stored below this folder (default: temporary)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    sizes = QUICK if options.quick else FULL
    sizes = replace(sizes, rounds=options.rounds or sizes.rounds)
    has_nginx = program("nginx", NGINX_PATH) is not None
    if not has_nginx:
        print("without nginx: it is missing (Debian has it as nginx-light)", file=sys.stderr)
    failures: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary,
        ExitStack() as stack,
    ):
        bench = _Bench(Path(temporary), stack, sizes, failures, has_nginx=has_nginx)
        bench.start(options.parts)
        for part in options.parts:
            {"small": bench.small, "bodies": bench.bodies, "first": bench.first}[part]()
    print_targets(bench.targets)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "run"}
        report.write_rows(
            options.json, [asdict(run) for run in bench.runs], options=settings, failures=failures
        )
    return 1 if failures else 0


@dataclass(frozen=True, slots=True)
class _Small:
    """A small answer of one server; paths: asked for in turn."""

    name: str
    title: str
    server: Served
    paths: tuple[str, ...]
    method: str = "GET"
    accept: str = JSON


@dataclass(frozen=True, slots=True)
class _Body:
    """A large one, of one server."""

    server: Served
    path: str
    accept: str


class _Bench:
    """The servers, and what is measured of them; every part prints its table."""

    def __init__(
        self, folder: Path, stack: ExitStack, sizes: Sizes, failures: list[str], *, has_nginx: bool
    ) -> None:
        self._folder = folder
        self._stack = stack
        self._sizes = sizes
        self._failures = failures
        self._has_nginx = has_nginx
        self._workloads: dict[str, Workload] = {}
        self.runs: list[Run] = []
        self.targets: list[Target] = []
        self._harmony: Served

    def start(self, parts: Sequence[str]) -> None:
        sizes = self._sizes
        wanted = {"ct": sizes.images}
        if "bodies" in parts:
            wanted[sizes.large] = 1
        if "first" in parts:
            wanted["header"] = sizes.instances
        self._workloads = {name: create(SIZES[name], self._folder) for name in wanted}
        contents = [(self._workloads[name], count) for name, count in wanted.items()]

        def studies(port: int) -> None:
            asyncio.run(store_studies(port, sizes.studies))

        receiver = Receiver("harmony", "Harmony", _with_management)
        filling = filled(receiver, contents, self._folder / "harmony", web=True, also=studies)
        archive = self._stack.enter_context(filling)
        self._harmony = Served(
            "harmony", "Harmony", archive.place.http_port, archive.pid, archive.place.folder
        )

    def _run(self, receiver: Receiver, folder: Path | None = None) -> Served:
        scratch = self._folder / f"{receiver.name}-{free_port()}"
        (scratch / "files").mkdir(parents=True)
        place = Place(free_port(), folder or scratch / "files", scratch, None)
        pid = self._stack.enter_context(running(receiver, place))
        return Served(receiver.name, receiver.title, place.port, pid, place.folder)

    # Small answers

    def small(self) -> None:
        smalls = self._smalls()
        rows = [["answer", "server", "bytes", *(f"requests/s, {n}" for n in self._sizes.connections)]]
        rows[0] += ["CPU us/request", "requests/s a core"]
        by_name: dict[str, list[Run]] = {small.name: [] for small in smalls}
        for turn in range(-1, self._sizes.rounds):
            shift = turn % len(smalls)
            for small in [*smalls[shift:], *smalls[:shift]]:
                for connections in self._sizes.connections:
                    done = self._attempt(small.name, _asking(small, connections, self._sizes.requests))
                    if done is not None and turn >= 0:
                        by_name[small.name].append(done)
        for small in smalls:
            its = by_name[small.name]
            if not its:
                continue
            rates = [spread([r.per_s for r in its if r.connections == n]) for n in self._sizes.connections]
            cores = [1e6 / run.cpu_us_each for run in its]
            rows.append([
                small.title, small.server.title, str(its[0].size_bytes // its[0].requests), *rates,
                spread([run.cpu_us_each for run in its]), spread(cores),
            ])  # fmt: skip
            if small.server.name == "harmony":
                what = f"requests/s a core, {small.title}"
                self.targets.append(
                    Target(what, median(cores), least=LEAST_REQUESTS_PER_S, unit="1/s", spread=cores)
                )
        self._print("Small answers, on connections that stay open", rows)

    def _smalls(self) -> list[_Small]:
        ours = self._harmony
        patients = tuple(
            f"{WEB_ROOT}/studies?PatientID={study_of(n).patient_id}" for n in range(self._sizes.studies)
        )
        studies = tuple(f"{WEB_ROOT}/studies/{study_of(n).uid}/series" for n in range(self._sizes.studies))
        instance = f"{WEB_ROOT}/instances?SOPInstanceUID={_first_instance(ours, self._workloads['ct'])}"
        found = [
            _Small("info", "/admin/info", ours, ("/admin/info",), accept="*/*"),
            _Small("capabilities", "capabilities (OPTIONS)", ours, (WEB_ROOT,), "OPTIONS", "*/*"),
            _Small("patient", "QIDO-RS, studies of a patient", ours, patients),
            _Small("series", "QIDO-RS, series of a study", ours, studies),
            _Small("instance", "QIDO-RS, an instance", ours, (instance,)),
        ]
        size = len(_fetched(ours, patients[0], JSON))
        if self._has_nginx:
            nginx = self._run(NGINX)
            path = write_file(nginx.folder, "small.json", size)
            found.append(_Small("nginx", "a file", nginx, (path,)))
        found.append(_Small("floor", "what was made before", self._run(floor(size)), ("/",)))
        return found

    # Bodies

    def bodies(self) -> None:
        ours, sizes = self._harmony, self._sizes
        ct, large = self._workloads["ct"], self._workloads[sizes.large]
        study = f"{WEB_ROOT}/studies/{ct.size.study_instance_uid}"
        peers = (NGINX, NGINX_WITHOUT_SENDFILE) if self._has_nginx else ()
        servers = [self._run(peer, ours.folder) for peer in peers]
        study_file = ours.folder / "study.multipart"
        study_file.write_bytes(_fetched(ours, study, MULTIPART))
        rows = [["body", "server", "MB/s", "CPU s/GB", "MB/s / nginx", "CPU / nginx"]]
        for title, count, path, accept, file in (
            (f"a CT image of {ct.path.stat().st_size / 1e3:.0f} KB", sizes.single,
             *self._one(ct), DICOM, self._file(ct)),
            (f"a study of {sizes.images} of them", 1, study, MULTIPART, study_file),
            (f"an object of {large.path.stat().st_size / 1e6:.0f} MB", 1, *self._one(large), DICOM, self._file(large)),
        ):  # fmt: skip
            asked = [_Body(ours, path, accept)]
            asked += [_Body(each, f"/{file.relative_to(ours.folder)}", "*/*") for each in servers]
            by_server = self._rounds(title, asked, count)
            rows += self._rows(title, by_server)
        self._print("Bodies, one connection, dropped by the client", rows)

    def _one(self, workload: Workload) -> tuple[str]:
        study = workload.size.study_instance_uid
        uid = _first_instance(self._harmony, workload)
        return (f"{WEB_ROOT}/studies/{study}/series/{study}.1/instances/{uid}",)

    def _file(self, workload: Workload) -> Path:
        """Where Harmony keeps the instance that is asked for."""
        uid = _first_instance(self._harmony, workload)
        return next(self._harmony.folder.glob(f"**/{uid}.dcm"))

    def _rounds(self, title: str, asked: Sequence[_Body], count: int) -> dict[str, list[Run]]:
        by_server: dict[str, list[Run]] = {body.server.name: [] for body in asked}
        for turn in range(-1, self._sizes.rounds):
            shift = turn % len(asked)
            for body in [*asked[shift:], *asked[:shift]]:
                done = self._attempt(title, _draining(title, body, count))
                if done is not None and turn >= 0:
                    by_server[body.server.name].append(done)
        return by_server

    def _rows(self, title: str, by_server: dict[str, list[Run]]) -> list[list[str]]:
        rows: list[list[str]] = []
        titles = {each.name: each.title for each in (NGINX, NGINX_WITHOUT_SENDFILE)}
        nginx = by_server.get(NGINX.name, [])
        for name, its in by_server.items():
            row = [
                title if not rows else "",
                titles.get(name, "Harmony"),
                spread([run.megabytes_per_s for run in its]),
                spread([run.cpu_s_per_gigabyte for run in its]),
            ]
            rates = [a.megabytes_per_s / b.megabytes_per_s for a, b in zip(its, nginx, strict=False)]
            cpu = [a.cpu_s_per_gigabyte / b.cpu_s_per_gigabyte for a, b in zip(its, nginx, strict=False)]
            rows.append([*row, *("" if name == NGINX.name else spread(each) for each in (rates, cpu))])
            if name == "harmony" and rates:
                what = f"MB/s of {title} / nginx"
                self.targets.append(Target(what, median(rates), least=LEAST_OF_NGINX, spread=rates))
        return rows

    # Metadata

    def first(self) -> None:
        study = self._workloads["header"].size.study_instance_uid
        path = f"{WEB_ROOT}/studies/{study}/series/{study}.1/metadata"
        done = self._rounds("metadata", [_Body(self._harmony, path, JSON)], 1)["harmony"]
        first = [1e3 * run.first_s for run in done]
        rows = [
            ["", "first byte, ms", "last byte, ms", "CPU ms"],
            [
                f"metadata of {self._sizes.instances} instances",
                spread(first),
                spread([1e3 * run.elapsed_s for run in done]),
                spread([1e3 * run.cpu_s for run in done]),
            ],
        ]
        self._print("Metadata of a series", rows)

    # How

    def _attempt(self, title: str, measure: Callable[[], Run]) -> Run | None:
        try:
            done = measure()
        except (PeerError, OSError, subprocess.TimeoutExpired) as error:
            self._failures.append(f"{title}: {error}")
            return None
        self.runs.append(done)
        return done

    def _print(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        print(f"{title}, {self._sizes.rounds} rounds:\n\n{markdown(rows)}\n", flush=True)


def _with_management(place: Place) -> list[str]:
    command = harmony()(place)
    with (place.scratch / "config.toml").open("a") as configuration:
        configuration.write(_MANAGEMENT)
    return command


def _asking(small: _Small, connections: int, requests: int) -> Callable[[], Run]:
    def ask() -> Run:
        arguments = [str(small.server.port), str(requests), "--connections", str(connections)]
        arguments += ["--method", small.method, "--accept", small.accept]
        before_s = tree_cpu_s(small.server.pid)
        got = _client("request_client", *arguments, paths=small.paths)
        cpu_s = tree_cpu_s(small.server.pid) - before_s
        return Run(
            small.name, small.server.name, connections, requests, got["body_bytes"], got["elapsed_s"], cpu_s
        )

    return ask


def _draining(title: str, body: _Body, count: int) -> Callable[[], Run]:
    def drain() -> Run:
        before_s = tree_cpu_s(body.server.pid)
        got = _client(
            "web_client", "get", str(body.server.port), "--accept", body.accept, paths=[body.path] * count
        )
        cpu_s = tree_cpu_s(body.server.pid) - before_s
        return Run(
            title, body.server.name, 1, count, got["body_bytes"], got["elapsed_s"], cpu_s, got["first_s"][0]
        )

    return drain


def _client(module: str, *arguments: str, paths: Sequence[str]) -> dict[str, Any]:
    """Run a client in a process of its own. Raises PeerError."""
    finished = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        input="\n".join(paths), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if finished.returncode:
        raise PeerError(finished.stderr.strip()[-500:])
    answered: dict[str, Any] = json.loads(finished.stdout)
    return answered


def _fetched(served: Served, path: str, accept: str) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{served.port}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        content: bytes = answer.read()
    return content


def _first_instance(served: Served, workload: Workload) -> str:
    study = workload.size.study_instance_uid
    found = json.loads(_fetched(served, f"{WEB_ROOT}/studies/{study}/instances?limit=1", JSON))
    return str(found[0]["00080018"]["Value"][0])
