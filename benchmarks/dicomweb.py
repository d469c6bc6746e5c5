"""`python -m benchmarks dicomweb`: QIDO-RS, WADO-RS and STOW-RS of an archive and of a gateway.

Three servers, which take turns round after round, measure by measure:

    harmony             an archive of its own
    orthanc             Orthanc with its DICOMweb plugin
    harmony-orthanc     Harmony in front of that Orthanc, over C-FIND, C-GET and C-STORE

A study is also retrieved straight from Orthanc by C-GET, by `draining` and by DCMTK's getscu. The client of the rest
is `web_client`, in a process of its own, which drops what comes in the kernel. CPU and peak memory are those of the
process that the client talks to. Archives are filled by C-STORE and then started anew. TCP_NODELAY=1 for DCMTK and
Orthanc.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from socket import create_connection
from statistics import median, quantiles
from typing import Any

from benchmarks import report
from benchmarks.archives import ARCHIVES, NO_DELAY, in_front_of, missing
from benchmarks.find import store_studies
from benchmarks.find_data import Study, study_of
from benchmarks.measure import cpu_at_rest_s, memory_bytes
from benchmarks.peers import READY_TIMEOUT_S, WEB_ROOT, PeerError, Place, free_port, running
from benchmarks.relay import Relay
from benchmarks.retrieve import DCMTK_MAXIMUM_LENGTH, Cell, Served, What, filled, names_of, retrieve_once
from benchmarks.tables import markdown, number, ratio, spread
from benchmarks.workloads import SIZES, Workload, create

TIMEOUT_S = 120.0
PARTS = ("search", "metadata", "study", "first", "store")
PACS, GATEWAY, STRAIGHT = "orthanc", "harmony-orthanc", ("draining", "getscu")
TITLES = {
    "harmony": "Harmony, archive",
    PACS: "Orthanc, plugin",
    GATEWAY: "through Harmony to Orthanc",
    "draining": "Orthanc, C-GET, draining client",
    "getscu": "Orthanc, C-GET, getscu",
}
JSON = "application/dicom+json"
MULTIPART = 'multipart/related; type="application/dicom"'
CONNECTIONS = 8
STORED_NUMBER = 500_000  # of the first instance that is stored while the clock runs


@dataclass(frozen=True, slots=True)
class Run:
    """What one server did in one round of one measure."""

    measure: str
    server: str
    count: int  # requests, instances or objects: what the measure counts
    size_bytes: int
    elapsed_s: float
    cpu_s: float
    peak_rss_bytes: int = 0
    first_s: tuple[float, ...] = ()
    last_s: tuple[float, ...] = ()
    together_per_s: float = 0.0  # of requests, on several connections; 0: not asked

    @property
    def per_s(self) -> float:
        return self.count / self.elapsed_s

    @property
    def ms_each(self) -> float:
        return self.elapsed_s / self.count * 1e3

    @property
    def cpu_ms_each(self) -> float:
        return self.cpu_s / self.count * 1e3

    @property
    def megabytes_per_s(self) -> float:
        return self.size_bytes / self.elapsed_s / 1e6

    @property
    def cpu_s_per_gigabyte(self) -> float:
        return self.cpu_s / self.size_bytes * 1e9


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    rounds: int
    studies: int
    requests: int
    instances: int  # of a series whose metadata are asked for
    images: int  # of the study that is retrieved
    stored: tuple[tuple[str, int], ...]  # sizes, and how many in a request
    first_rounds: int


FULL = Sizes(4, 300, 100, 1000, 400, (("ct", 40), ("small", 400)), 10)
QUICK = Sizes(3, 100, 50, 1000, 100, (("ct", 20), ("small", 100)), 5)

Measure = Callable[[Served, int], Run]
"""One round of one server; the number of the round."""


@dataclass(frozen=True, slots=True)
class _Query:
    name: str
    title: str
    requests: int  # in a round
    items: int  # that the answers have, or more
    path: Callable[[int], str]  # of the n-th request


_SEARCH_HEAD = [
    "query",
    "server",
    "ms p50 / p95",
    "requests/s",
    f"at {CONNECTIONS}",
    "CPU ms/request",
    "rate / Orthanc",
]
_STUDY_HEAD = [
    "server",
    "MB/s",
    "server CPU s/GB",
    "first byte, ms",
    "peak MB",
    "/ Orthanc, plugin",
    "/ draining",
    "/ getscu",
]
_STORE_HEAD = [
    "objects in a request",
    "server",
    "MB/s",
    "objects/s",
    "server CPU ms/object",
    "/ Orthanc, plugin",
]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "dicomweb",
        help="QIDO-RS, WADO-RS and STOW-RS of an archive and of a gateway, against Orthanc's plugin",
        description="DICOMweb: latencies, rates, MB/s, server CPU; from an archive and in front of a PACS.",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, 3 rounds")
    parser.add_argument("--parts", type=names_of(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument(
        "--servers", type=names_of(("harmony", PACS, GATEWAY)), help="of harmony,orthanc,harmony-orthanc"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="archives store below this folder (default: temporary)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    sizes = QUICK if options.quick else FULL
    sizes = replace(sizes, rounds=options.rounds or sizes.rounds)
    names = options.servers or ["harmony", PACS, GATEWAY]
    if lacking := missing("orthanc-dicomweb"):
        print(f"without Orthanc: {lacking} is missing", file=sys.stderr)
        names = [name for name in names if name == "harmony"]
    failures: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary,
        ExitStack() as stack,
    ):
        bench = _Bench(Path(temporary), sizes, failures)
        bench.start(stack, names)
        for part in options.parts:
            {
                "search": bench.search,
                "metadata": bench.metadata,
                "study": bench.study,
                "first": bench.first,
                "store": bench.store,
            }[part]()
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "run"}
        report.write_rows(
            options.json, [asdict(run) for run in bench.runs], options=settings, failures=failures
        )
    return 1 if failures else 0


class _Bench:
    """The servers, and what is measured of them; every part prints its table."""

    def __init__(self, folder: Path, sizes: Sizes, failures: list[str]) -> None:
        self._folder = folder
        self._sizes = sizes
        self._failures = failures
        self._stored = STORED_NUMBER
        self._servers: dict[str, Served] = {}
        self._workloads: dict[str, Workload] = {}
        self.runs: list[Run] = []

    def start(self, stack: ExitStack, names: Sequence[str]) -> None:
        sizes = self._sizes
        wanted = {"header", "private", "ct", *(name for name, _ in sizes.stored)}
        self._workloads = {name: create(SIZES[name], self._folder) for name in sorted(wanted)}
        contents = [(self._workloads[name], sizes.instances) for name in ("header", "private")]
        contents.append((self._workloads["ct"], sizes.images))

        def studies(port: int) -> None:
            asyncio.run(store_studies(port, sizes.studies))

        for name in ("harmony", PACS):
            if name in names or (name == PACS and GATEWAY in names):
                filling = filled(ARCHIVES[name], contents, self._folder / name, web=True, also=studies)
                self._servers[name] = stack.enter_context(filling)
        if GATEWAY in names:
            self._servers[GATEWAY] = self._gateway(stack, self._servers[PACS].place.port)
        for served in self._servers.values():
            _wait_until_listening(served.place.http_port)

    def _gateway(self, stack: ExitStack, pacs_port: int) -> Served:
        receiver = in_front_of(ARCHIVES[PACS], pacs_port)
        scratch = self._folder / f"gateway-{pacs_port}"
        (scratch / "objects").mkdir(parents=True)
        place = Place(free_port(), scratch / "objects", scratch, None, http_port=free_port())
        pid = stack.enter_context(running(receiver, place, NO_DELAY))
        return Served(receiver, place, pid)

    # What is measured

    def search(self) -> None:
        rows = [_SEARCH_HEAD]
        for query in self._queries():
            by_server = self._rounds(
                f"search {query.name}", _searching(query), check=(WEB_ROOT + query.path(0), query.items)
            )
            plugin = [run.per_s for run in by_server.get(PACS, ())]
            for place, (server, its) in enumerate(by_server.items()):
                last = [1e3 * value for run in its for value in run.last_s]
                rates = [run.per_s for run in its]
                rows.append([
                    query.title if not place else "",
                    TITLES[server],
                    f"{number(median(last))} / {number(_p95(last))}",
                    spread(rates),
                    spread([run.together_per_s for run in its if run.together_per_s]),
                    spread([run.cpu_ms_each for run in its]),
                    "" if server == PACS else _ratio(rates, plugin),
                ])  # fmt: skip
        self._print("Searching, on one connection and on several", rows)

    def _queries(self) -> list[_Query]:
        sizes = self._sizes
        series = self._workloads["header"].size.study_instance_uid

        def study(n: int) -> Study:
            return study_of(n * 37 % sizes.studies)

        return [
            _Query(
                "patient", "studies of a patient, by Patient ID", sizes.requests, 1,
                lambda n: f"/studies?PatientID={study(n).patient_id}",
            ),
            _Query("series", "series of a study", sizes.requests, 2, lambda n: f"/studies/{study(n).uid}/series"),
            _Query(
                "instances", f"{sizes.instances} instances of a series", 1, sizes.instances,
                lambda n: f"/studies/{series}/series/{series}.1/instances",
            ),
        ]  # fmt: skip

    def metadata(self) -> None:
        count = self._sizes.instances
        rows = [["series", "server", "us/instance", "CPU us/instance", "first byte, ms", "Orthanc / it"]]
        for name, title in (("header", "public attributes"), ("private", "and private elements")):
            study = self._workloads[name].size.study_instance_uid
            path = f"{WEB_ROOT}/studies/{study}/series/{study}.1/metadata"
            by_server = self._rounds(
                f"metadata {name}",
                _reading(f"metadata {name}", path, count=count, accept=JSON),
                check=(path, count),
            )
            plugin = [run.ms_each for run in by_server.get(PACS, ())]
            for place, (server, its) in enumerate(by_server.items()):
                each = [run.ms_each for run in its]
                rows.append([
                    title if not place else "",
                    TITLES[server],
                    spread([1e3 * value for value in each]),
                    spread([1e3 * run.cpu_ms_each for run in its]),
                    spread([1e3 * run.first_s[0] for run in its]),
                    "" if server == PACS else _ratio(plugin, each),
                ])  # fmt: skip
        self._print(f"Metadata of a series of {count} CT images", rows)

    def study(self) -> None:
        workload, count = self._workloads["ct"], self._sizes.images
        servers = dict(self._servers)
        if PACS in servers:
            for name in STRAIGHT:
                servers[name] = replace(servers[PACS], archive=replace(servers[PACS].archive, name=name))
        by_server = self._rounds("study", _retrieving(workload, count), servers=servers)
        rows = [_STUDY_HEAD]
        plugin = by_server.get(PACS, [])
        for server, its in by_server.items():
            rates, cpu = [run.megabytes_per_s for run in its], [run.cpu_s_per_gigabyte for run in its]
            against = ""
            if plugin and server != PACS:
                rate = _ratio(rates, [run.megabytes_per_s for run in plugin])
                against = f"rate {rate} CPU {_ratio(cpu, [run.cpu_s_per_gigabyte for run in plugin])}"
            straight = [[run.megabytes_per_s for run in by_server.get(name, ())] for name in STRAIGHT]
            rows.append([
                TITLES[server],
                spread(rates),
                spread(cpu),
                spread([1e3 * run.first_s[0] for run in its if run.first_s]),
                number(max(run.peak_rss_bytes for run in its) / 1e6),
                against,
                *(_ratio(rates, reference) if server == GATEWAY else "" for reference in straight),
            ])  # fmt: skip
        self._print(f"WADO-RS of a study of {count} CT images", rows)

    def first(self) -> None:
        """How long after the PACS's first P-DATA of an instance a client of the gateway has its first byte."""
        if GATEWAY not in self._servers:
            return
        study = self._workloads["ct"].size.study_instance_uid
        later: list[float] = []
        with ExitStack() as stack:
            relay = stack.enter_context(Relay(self._servers[PACS].place.port))
            gateway = self._gateway(stack, relay.port)
            _wait_until_listening(gateway.place.http_port)
            for turn in range(-1, self._sizes.first_rounds):
                relay.begin()
                got = _get(gateway, [f"{WEB_ROOT}/studies/{study}"], accept=MULTIPART)
                if turn >= 0 and relay.first_at:
                    later.append(1e3 * (got["first_at"] - relay.first_at))
        if not later:
            self._failures.append("first: the PACS sent no instance")
            return
        rows = [["", "ms"], ["PACS's first P-DATA of an instance to first byte of the body", spread(later)]]
        self._print("First byte through the gateway", rows)

    def store(self) -> None:
        rows = [_STORE_HEAD]
        for name, objects in self._sizes.stored:
            workload = self._workloads[name]
            by_server = self._rounds(f"store {name}", self._storing(workload, objects))
            plugin = by_server.get(PACS, [])
            for place, (server, its) in enumerate(by_server.items()):
                rates, cpu = [run.per_s for run in its], [run.cpu_ms_each for run in its]
                against = ""
                if plugin and server != PACS:
                    rate = _ratio(rates, [run.per_s for run in plugin])
                    against = f"rate {rate} CPU {_ratio(cpu, [run.cpu_ms_each for run in plugin])}"
                rows.append([
                    f"{objects} of {workload.data_set_bytes / 1e3:.3g} KB" if not place else "",
                    TITLES[server],
                    spread([run.megabytes_per_s for run in its]),
                    spread(rates),
                    spread(cpu),
                    against,
                ])  # fmt: skip
        self._print("STOW-RS, one request at a time", rows)

    def _storing(self, workload: Workload, objects: int) -> Measure:
        def store(served: Served, turn: int) -> Run:
            before_s = cpu_at_rest_s(served.pid)
            got = _client(
                "store", str(served.place.http_port), f"{WEB_ROOT}/studies", str(workload.path),
                "--objects", str(objects), "--first-number", str(self._stored),
            )  # fmt: skip
            self._stored += objects
            cpu_s = cpu_at_rest_s(served.pid) - before_s
            measure, server = f"store {workload.size.name}", served.archive.name
            return Run(measure, server, objects, got["body_bytes"], got["elapsed_s"], cpu_s)

        return store

    # How

    def _rounds(
        self,
        title: str,
        measure: Measure,
        *,
        servers: dict[str, Served] | None = None,
        check: tuple[str, int] | None = None,
    ) -> dict[str, list[Run]]:
        """Runs by server. check: a path to warm up with, and of how many items at least the answer has to be."""
        served = list((servers or self._servers).values())
        runs: list[Run] = []
        for turn in range(-1, self._sizes.rounds):  # the first to warm up: imports, caches, first allocations
            shift = turn % len(served)
            for each in [*served[shift:], *served[:shift]]:
                try:
                    if turn < 0 and check is not None:
                        found = _get(each, [check[0]], accept=JSON, keep=True)["items"]
                        if found < check[1]:
                            raise PeerError(f"{found} items, expected {check[1]}")
                        continue
                    done = measure(each, turn + 1)
                except (PeerError, OSError, subprocess.TimeoutExpired) as error:
                    self._failures.append(f"{title}, {each.archive.name}: {error}")
                    continue
                if turn >= 0:
                    runs.append(done)
        self.runs += runs
        by_server: dict[str, list[Run]] = {}
        for name in TITLES:
            if its := [run for run in runs if run.server == name]:
                by_server[name] = its
        return by_server

    def _print(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        print(f"{title}, {self._sizes.rounds} rounds:\n\n{markdown(rows)}\n", flush=True)


def _searching(query: _Query) -> Measure:
    def search(served: Served, turn: int) -> Run:
        paths = [WEB_ROOT + query.path(turn * query.requests + n) for n in range(query.requests)]
        before_s = cpu_at_rest_s(served.pid)
        got = _get(served, paths, accept=JSON)
        cpu_s = cpu_at_rest_s(served.pid) - before_s
        together_per_s = 0.0
        if query.requests >= CONNECTIONS:
            together = _get(served, paths, accept=JSON, connections=CONNECTIONS)
            together_per_s = together["requests"] / together["elapsed_s"]
        return Run(
            f"search {query.name}", served.archive.name, query.requests, got["body_bytes"], got["elapsed_s"], cpu_s,
            last_s=tuple(got["last_s"]), together_per_s=together_per_s,
        )  # fmt: skip

    return search


def _reading(measure: str, path: str, *, count: int, accept: str) -> Measure:
    def read(served: Served, turn: int) -> Run:
        before_s = cpu_at_rest_s(served.pid)
        got = _get(served, [path], accept=accept)
        cpu_s = cpu_at_rest_s(served.pid) - before_s
        return Run(
            measure, served.archive.name, count, got["body_bytes"], got["elapsed_s"], cpu_s,
            memory_bytes(served.pid, "VmHWM"), tuple(got["first_s"]), tuple(got["last_s"]),
        )  # fmt: skip

    return read


def _retrieving(workload: Workload, count: int) -> Measure:
    """A study over WADO-RS; for the servers of STRAIGHT over C-GET."""
    path = f"{WEB_ROOT}/studies/{workload.size.study_instance_uid}"
    read = _reading("study", path, count=count, accept=MULTIPART)
    expected = workload.data_set_bytes * count

    def retrieve(served: Served, turn: int) -> Run:
        name = served.archive.name
        if name in STRAIGHT:
            client = "dcmtk" if name == "getscu" else "draining"
            cell = Cell("study", What("ct", count, ""), workload, "get", client, DCMTK_MAXIMUM_LENGTH)
            one = retrieve_once(cell, served)
            return Run("study", name, count, expected, one.elapsed_s, one.cpu_s, one.peak_rss_bytes)
        run = read(served, turn)
        # Orthanc and DCMTK encode anew, and there are boundaries and file meta information.
        if not expected * 0.999 < run.size_bytes < expected * 1.01:
            raise PeerError(f"{run.size_bytes} bytes came, expected {expected}")
        return run

    return retrieve


def _p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def _ratio(values: Sequence[float], reference: Sequence[float]) -> str:
    return ratio(values, reference) if values and reference else ""


def _get(
    served: Served, paths: Sequence[str], *, accept: str, connections: int = 1, keep: bool = False
) -> dict[str, Any]:
    arguments = ["get", str(served.place.http_port), "--accept", accept, "--connections", str(connections)]
    return _client(*arguments, *(["--keep"] if keep else []), paths=paths)


def _client(*arguments: str, paths: Sequence[str] = ()) -> dict[str, Any]:
    """Run `benchmarks.web_client` in a process of its own. Raises PeerError."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.web_client", *arguments],
        input="\n".join(paths), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if finished.returncode:
        raise PeerError(finished.stderr.strip()[-500:])
    answered: dict[str, Any] = json.loads(finished.stdout)
    return answered


def _wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)
    raise PeerError(f"nothing listens at port {port} after {READY_TIMEOUT_S} s")
