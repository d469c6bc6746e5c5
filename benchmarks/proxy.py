"""`python -m benchmarks proxy`: C-GET from a PACS, directly and through Harmony.

Harmony is a `dicom_scp` endpoint with a `dicom_scu` backend; the PACS behind it is Orthanc, or a second Harmony. What
is retrieved and by whom is as in `retrieve`, with the draining client; direct and proxied retrieves take turns. CPU and
peak memory are those of the process that the client talks to: through Harmony, of the proxy alone.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.archives import ARCHIVES, NO_DELAY, in_front_of, missing
from benchmarks.peers import Place, free_port, running
from benchmarks.retrieve import QUICK_WHATS, WHATS, Cell, Run, Served, filled, names_of, rounds_of
from benchmarks.tables import markdown, number, ratio, spread
from benchmarks.workloads import SIZES, create

PACS = ("orthanc", "harmony")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "proxy",
        help="C-GET through Harmony to a PACS, against going there directly",
        description="Retrieves through Harmony and directly: MB/s, CPU per GB and peak memory of the proxy.",
    )
    parser.add_argument("--quick", action="store_true", help="smaller things, 3 rounds")
    parser.add_argument("--pacs", type=names_of(PACS), default=list(PACS), help=f"of {','.join(PACS)}")
    parser.add_argument("--whats", type=names_of(WHATS), default=list(WHATS), help=f"of {','.join(WHATS)}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--max-pdu", type=int, default=131072, help="that the client takes")
    parser.add_argument("--output", type=Path, help="archives store below this folder (default: temporary)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    whats = QUICK_WHATS if options.quick else WHATS
    rounds = options.rounds or (3 if options.quick else 5)
    runs, failures, titles = list[Run](), list[str](), dict[str, str]()
    with (
        tempfile.TemporaryDirectory(prefix="harmony-bench-", dir=options.output) as temporary,
        ExitStack() as stack,
    ):
        folder = Path(temporary)
        workloads = {name: create(SIZES[whats[name].size], folder) for name in options.whats}
        contents = [(workloads[name], whats[name].objects) for name in options.whats]
        routes: list[Served] = []
        for name in options.pacs:
            if lacking := missing(name):
                print(f"without {name}: {lacking} is missing", file=sys.stderr)
                continue
            direct = stack.enter_context(filled(ARCHIVES[name], contents, folder / name))
            proxy = in_front_of(direct.archive, direct.place.port)
            scratch = folder / proxy.name
            (scratch / "objects").mkdir(parents=True)
            place = Place(free_port(), scratch / "objects", scratch, None)
            pid = stack.enter_context(running(proxy, place, NO_DELAY))
            routes += [direct, Served(proxy, place, pid)]
            titles |= {name: f"{direct.archive.title}, directly", proxy.name: proxy.title}
        for name in options.whats:
            cell = Cell(name, whats[name], workloads[name], "get", "draining", options.max_pdu)
            done = rounds_of(cell, routes, rounds, failures)
            runs += done
            print(f"C-GET of {whats[name].title}:\n\n{_table(done, titles)}\n", flush=True)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "run"}
        report.write_rows(options.json, [asdict(run) for run in runs], options=settings, failures=failures)
    return 1 if failures else 0


def _table(runs: Sequence[Run], titles: dict[str, str]) -> str:
    rows = [["route", "rounds", "MB/s", "/ directly", "CPU s/GB", "peak MB"]]
    for name, title in titles.items():
        its = [run for run in runs if run.archive == name]
        direct = [run for run in runs if run.archive == name.removeprefix("harmony-")]
        if not its or not direct:
            continue
        rates = [run.megabytes_per_s for run in its]
        rows.append([
            title,
            str(len(its)),
            spread(rates),
            "" if its == direct else ratio(rates, [run.megabytes_per_s for run in direct]),
            spread([run.cpu_s_per_gigabyte for run in its]),
            number(max(run.peak_rss_bytes for run in its) / 1e6),
        ])  # fmt: skip
    return markdown(rows)
