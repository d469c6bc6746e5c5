"""`python -m benchmarks find`: C-FIND of a large archive of Harmony's, and of a small one of several archives.

Large: 100 000 studies with 1 000 000 instances, generated straight into the index of a real `python -m harmony`, with
an empty file for every instance that a query looks for. Our client asks on one and on eight associations at once;
latencies are to the first response and to the final one.

Small: as many studies as DCMTK's dcmqrscp keeps, stored in each archive by C-STORE. Three clients ask for the studies
of a patient: ours (no Nagle's algorithm), DCMTK's findscu and pynetdicom (both as they are installed: it is on, and
they write a request in two). Servers are as installed too. Archives take turns, round after round.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import find_data, report
from benchmarks.archives import ARCHIVES, DCMQRSCP_STUDIES, missing
from benchmarks.measure import cpu_at_rest_s, memory_bytes
from benchmarks.peers import CALLED_AE_TITLE, PeerError, Place, Receiver, free_port, program, running
from benchmarks.querying import KINDS, TITLES, studies_asked_for
from benchmarks.tables import markdown, number, ratio, spread
from harmony.archive.sqlite_index import SQLiteIndex
from harmony.dimse.scu import Instance, associate
from harmony.ul.negotiation import propose_contexts

TIMEOUT_S = 240.0
ASSOCIATIONS = (1, 8)
CLIENTS = {
    "ours": "one write, Nagle's algorithm off",
    "findscu": "DCMTK findscu, as installed",
    "pynetdicom": "pynetdicom, as installed",
}
LARGE_QUERIES = {"patient": 1000, "week": 60, "name": 60, "series": 1000}
QUICK_LARGE_QUERIES = {"patient": 200, "week": 20, "name": 20, "series": 200}


@dataclass(frozen=True, slots=True)
class Run:
    """What one client was answered by one archive in one round."""

    archive: str
    studies: int
    kind: str
    client: str
    associations: int
    queries: int
    matches: int
    elapsed_s: float
    cpu_s: float
    first_s: tuple[float, ...] = ()  # of each query
    last_s: tuple[float, ...] = ()

    @property
    def queries_per_s(self) -> float:
        return self.queries / self.elapsed_s

    @property
    def ms_per_query(self) -> float:
        return self.elapsed_s / self.queries * 1e3

    @property
    def cpu_ms_per_query(self) -> float:
        return self.cpu_s / self.queries * 1e3


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "find",
        help="C-FIND of a large archive, and of several small ones",
        description="Queries: latency of the first and the last response, queries/s, server CPU per query.",
    )
    parser.add_argument("--quick", action="store_true", help="10 000 studies, 3 rounds, fewer queries")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=["large", "small"], help="of large,small"
    )
    parser.add_argument("--studies", type=int, help="of the large archive (default: 100 000)")
    parser.add_argument("--instances", type=int, help="of the large archive (default: ten per study)")
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="FOLDER",
        help="generate the large archive there, or use the one that is there",
    )
    parser.add_argument("--small-studies", type=int, default=DCMQRSCP_STUDIES, help="of each small archive")
    parser.add_argument(
        "--archives", type=lambda text: text.split(","), help="small ones: harmony,orthanc,dcmqrscp"
    )
    parser.add_argument("--queries", type=int, help="per round of a small archive")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="archives store below this folder (default: temporary)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    runs, failures = list[Run](), list[str]()
    with tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary:
        for part, measure_it in (("large", _large), ("small", _small)):
            if part in options.parts:
                try:
                    runs += measure_it(options, Path(temporary) / part, failures)
                except (PeerError, OSError, subprocess.TimeoutExpired) as error:
                    failures.append(f"{part}: {error}")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        rows = [{**asdict(run), "queries_per_s": run.queries_per_s} for run in runs]
        settings = {key: value for key, value in vars(options).items() if key != "run"}
        report.write_rows(options.json, rows, options=settings, failures=failures)
    return 1 if failures else 0


# The large archive ----


def _large(options: argparse.Namespace, scratch: Path, failures: list[str]) -> list[Run]:
    studies = options.studies or (10_000 if options.quick else 100_000)
    instances = options.instances or 10 * studies
    rounds = options.rounds or 3
    folder: Path = (options.archive or scratch / "objects").absolute()
    scratch.mkdir()
    _generate(folder / "dimse", studies, instances)
    place = Place(free_port(), folder, scratch, None)
    runs: list[Run] = []
    with running(ARCHIVES["harmony"], place) as pid:
        for kind in KINDS:
            queries = (QUICK_LARGE_QUERIES if options.quick else LARGE_QUERIES)[kind]
            for turn in range(-1, rounds):
                for associations in ASSOCIATIONS:
                    try:
                        # Every round asks for other studies: nothing is answered from a cache of answers.
                        done = _ask(
                            ARCHIVES["harmony"], place.port, pid, kind=kind, client="ours", studies=studies,
                            queries=queries, associations=associations, shift=(turn + 1) * queries,
                        )  # fmt: skip
                    except (PeerError, subprocess.TimeoutExpired) as error:
                        failures.append(f"{kind}, {associations} associations: {error}")
                        continue
                    if turn >= 0:
                        runs.append(done)
        peak_rss_bytes = memory_bytes(pid, "VmHWM")
    print(f"Harmony with {studies} studies, {instances} instances; peak {peak_rss_bytes / 1e6:.0f} MB:\n")
    print(_large_table(runs) + "\n", flush=True)
    return runs


def _generate(root: Path, studies: int, instances: int) -> None:
    """Make the archive unless it is there."""
    directory = root / ".index"
    if directory.exists():
        return
    started = time.perf_counter()
    directory.mkdir(parents=True)
    index = SQLiteIndex(directory, root=str(root), verify_files=False)
    try:
        find_data.generate(index, studies=studies, instances=instances)
    finally:
        index.close()
    find_data.make_files(root, studies=studies, instances=instances)
    print(f"generated in {time.perf_counter() - started:.0f} s", file=sys.stderr)


def _large_table(runs: Sequence[Run]) -> str:
    rows = [
        ["query", "matches", "first ms p50 / p95", "last ms p50 / p95", "queries/s", "at 8", "CPU ms/query"]
    ]
    for kind in dict.fromkeys(run.kind for run in runs):
        alone = [run for run in runs if run.kind == kind and run.associations == 1]
        together = [run for run in runs if run.kind == kind and run.associations != 1]
        if not alone or not together:
            continue
        first = [1e3 * value for run in alone for value in run.first_s]
        last = [1e3 * value for run in alone for value in run.last_s]
        rows.append([
            TITLES[kind],
            number(median(run.matches / run.queries for run in alone)),
            f"{number(median(first))} / {number(quantiles(first, n=20)[-1])}",
            f"{number(median(last))} / {number(quantiles(last, n=20)[-1])}",
            spread([run.queries_per_s for run in alone]),
            spread([run.queries_per_s for run in together]),
            spread([run.cpu_ms_per_query for run in alone]),
        ])  # fmt: skip
    return markdown(rows)


# The small archives ----


def _small(options: argparse.Namespace, scratch: Path, failures: list[str]) -> list[Run]:
    studies = options.small_studies
    rounds = options.rounds or (3 if options.quick else 5)
    queries = options.queries or (20 if options.quick else 50)
    names = options.archives or ["harmony", "orthanc", "dcmqrscp"]
    if studies > DCMQRSCP_STUDIES:
        names = [name for name in names if name != "dcmqrscp"]
    for name in list(names):
        if lacking := missing(name):
            print(f"without {name}: {lacking} is missing", file=sys.stderr)
            names.remove(name)
    clients = [client for client in CLIENTS if client != "findscu" or program("findscu")]
    runs: list[Run] = []
    with ExitStack() as stack:
        served = [
            (ARCHIVES[name], *stack.enter_context(_filled(ARCHIVES[name], studies, scratch / name)))
            for name in names
        ]
        for client in clients:
            done: list[Run] = []
            for turn in range(-1, rounds):
                shift = turn % max(len(served), 1)
                for archive, port, pid in [*served[shift:], *served[:shift]]:
                    try:
                        one = _ask(
                            archive, port, pid, kind="patient", client=client, studies=studies, queries=queries,
                            associations=1, shift=(turn + 1) * queries,
                        )  # fmt: skip
                    except (PeerError, subprocess.TimeoutExpired) as error:
                        failures.append(f"{archive.name}, {client}: {error}")
                        continue
                    if turn >= 0:
                        done.append(one)
            print(f"{TITLES['patient']}, {studies} studies, client: {CLIENTS[client]}:\n")
            print(_small_table(done, names) + "\n", flush=True)
            runs += done
    return runs


@contextmanager
def _filled(archive: Receiver, studies: int, scratch: Path) -> Iterator[tuple[int, int]]:
    """An archive that has two series with an instance in each of so many studies; yields port and process id."""
    (scratch / "objects").mkdir(parents=True)
    place = Place(free_port(), scratch / "objects", scratch, None)
    try:
        with running(archive, place) as pid:
            asyncio.run(store_studies(place.port, studies))
            cpu_at_rest_s(pid)
            yield place.port, pid
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


async def store_studies(port: int, studies: int) -> None:
    """Store the instances of `find_data.data_sets`."""
    syntax = find_data.TRANSFER_SYNTAX_UID
    contexts = propose_contexts([(sop_class, [syntax]) for sop_class in find_data.SOP_CLASSES.values()])
    async with (
        asyncio.timeout(TIMEOUT_S),
        associate("127.0.0.1", port, called_ae_title=CALLED_AE_TITLE, contexts=contexts) as scu,
    ):
        for sop_class_uid, sop_instance_uid, data in find_data.data_sets(studies):
            await scu.store(Instance(sop_class_uid, sop_instance_uid, syntax, data))


def _small_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    its = {name: [run for run in runs if run.archive == name] for name in names}
    its = {name: of_it for name, of_it in its.items() if of_it}
    references = [name for name in ("orthanc", "dcmqrscp") if name in its]
    head = ["archive", "rounds", "ms/query", "queries/s", "CPU ms/query"]
    rows = [[*head, *(f"rate / {name}" for name in references)]]
    for name, of_it in its.items():
        row = [ARCHIVES[name].title, str(len(of_it)), spread([run.ms_per_query for run in of_it])]
        row += [spread([run.queries_per_s for run in of_it]), spread([run.cpu_ms_per_query for run in of_it])]
        for reference in references:
            others = [run.queries_per_s for run in its[reference]]
            row.append("" if reference == name else ratio([run.queries_per_s for run in of_it], others))
        rows.append(row)
    return markdown(rows)


# Asking ----


def _ask(
    archive: Receiver,
    port: int,
    pid: int,
    *,
    kind: str,
    client: str,
    studies: int,
    queries: int,
    associations: int,
    shift: int,
) -> Run:
    before_s = cpu_at_rest_s(pid)
    asked: dict[str, Any]
    if client == "findscu":
        asked = _findscu(port, studies=studies, queries=queries, shift=shift)
    else:
        command = [sys.executable, "-m", "benchmarks.querying", str(port), kind, "--studies", str(studies)]
        command += ["--queries", str(queries), "--associations", str(associations), "--shift", str(shift)]
        command += ["--pynetdicom"] if client == "pynetdicom" else []
        finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if finished.returncode:
            raise PeerError(finished.stderr.strip())
        asked = json.loads(finished.stdout)
    cpu_s = cpu_at_rest_s(pid) - before_s
    if not asked["matches"]:
        raise PeerError("nothing was found")
    return Run(
        archive.name,
        studies,
        kind,
        client,
        associations,
        queries,
        asked["matches"],
        asked["elapsed_s"],
        cpu_s,
        tuple(asked.get("first_s", ())),
        tuple(asked.get("last_s", ())),
    )


def _findscu(port: int, *, studies: int, queries: int, shift: int) -> dict[str, Any]:
    """findscu repeats one query; the time of a single one, with process and association, is taken off."""
    (study,) = studies_asked_for(1, studies, shift=shift)
    command = [program("findscu") or "findscu", "-v", "-S", "-aec", CALLED_AE_TITLE]
    keys = ["QueryRetrieveLevel=STUDY", f"PatientID={study.patient_id}", "PatientName", "StudyDate"]
    keys += ["StudyTime", "AccessionNumber", "ModalitiesInStudy", "StudyDescription", "PatientBirthDate"]
    keys += ["StudyInstanceUID", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"]
    for key in keys:
        command += ["-k", key]
    elapsed_s, matches = [], 0
    for repetitions in (1, queries + 1):
        started = time.perf_counter()
        finished = subprocess.run(
            [*command, "--repeat", str(repetitions), "127.0.0.1", str(port)],
            env={key: value for key, value in os.environ.items() if key != "TCP_NODELAY"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
        elapsed_s.append(time.perf_counter() - started)
        if finished.returncode:
            raise PeerError(f"findscu ended with {finished.returncode}: {finished.stdout.strip()[-500:]}")
        matches = finished.stdout.count("(Pending)")
    return {"matches": matches, "elapsed_s": elapsed_s[1] - elapsed_s[0]}
