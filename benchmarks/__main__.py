"""Command line of the benchmarks: `python -m benchmarks COMMAND [--quick] ...`, one module of `MODULES` each.

`store` is here, the others are modules of their own. A cell of `store` is one sender, size and number of
associations. Within a cell the receivers take turns, round after round and each round in another order, so that a slow
minute of the machine hits all of them. Objects that were acknowledged and are not on disk end in exit status 1, like
every other failure of a run.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    dicomweb,
    find,
    growth,
    http,
    jmix,
    loops,
    measure,
    profile,
    proxy,
    report,
    retrieve,
    send,
    soak,
    survey,
    workers,
)
from benchmarks.peers import RECEIVERS, PeerError, Receiver, program
from benchmarks.senders import SENDERS, Sender
from benchmarks.store_targets import store_targets
from benchmarks.targets import print_targets
from benchmarks.workloads import SIZES, Size, Workload, create

MODULES = (
    send,
    profile,
    find,
    retrieve,
    proxy,
    dicomweb,
    http,
    jmix,
    growth,
    soak,
    loops,
    survey,
    workers,
)
"""Commands other than `store`; each has `add_parser`."""

SLOW_OBJECTS = 40  # tens of milliseconds each
QUICK_SLOW_OBJECTS = 20

QUICK: dict[str, Any] = {
    "sizes": ["small", "ct"],
    "associations": [1, 4],
    "rounds": 3,
    "senders": ["preencoded"],
    "receivers": ["harmony", "dcmtk-nodelay", "pynetdicom", "floor"],
}
FULL: dict[str, Any] = {
    "sizes": ["small", "ct", "multiframe"],
    "associations": [1, 4, 16],
    "rounds": 5,
    "senders": list(SENDERS),
    "receivers": [name for name in RECEIVERS if name != "harmony-workers"],  # for which `workers` is
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.command != "store":
        return int(options.run(options))
    defaults = QUICK if options.quick else FULL
    chosen = {
        key: getattr(options, key) if getattr(options, key) is not None else value
        for key, value in defaults.items()
    }
    for name in list(chosen["receivers"]):
        if missing := RECEIVERS[name].missing():
            if options.receivers:
                print(f"receiver {name}: {missing} is missing", file=sys.stderr)
                return 2
            print(f"without {name}: {missing} is missing", file=sys.stderr)
            chosen["receivers"].remove(name)
    if any(name.startswith("dcmtk") for name in chosen["senders"]) and not program("storescu"):
        print("DCMTK's storescu is missing; --senders preencoded does without", file=sys.stderr)
        return 2
    return _store(options, chosen)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Harmony's benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    store = commands.add_parser(
        "store",
        help="a flood of C-STORE against several receivers",
        description="Floods storage SCPs with C-STORE: objects/s, MB/s, receiver CPU per object, peak memory.",
    )
    store.add_argument("--quick", action="store_true", help="fewer of everything, about two minutes")
    store.add_argument("--sizes", type=_names(SIZES), help=f"of {','.join(SIZES)}")
    store.add_argument("--associations", type=_numbers, metavar="N,N,...", help="at the same time")
    store.add_argument("--rounds", type=int, help="per receiver")
    store.add_argument("--senders", type=_names(SENDERS), help=f"of {','.join(SENDERS)}")
    store.add_argument("--receivers", type=_names(RECEIVERS), help=f"of {','.join(RECEIVERS)}")
    store.add_argument("--objects", type=int, help="per round, instead of each size's own number")
    store.add_argument("--max-pdu", type=int, help="of every receiver, instead of its own default")
    store.add_argument(
        "--output",
        type=Path,
        help="receivers store below this folder: /dev/shm for memory (default: temporary)",
    )
    store.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and the machine to this file"
    )
    for module in MODULES:
        module.add_parser(commands)
    return parser.parse_args(arguments)


def _names(known: dict[str, Any]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{min(numbers)} is less than 1")
    return numbers


def _objects(size: Size, sender: Sender, receiver: Receiver, associations: int, options: Any) -> int:
    objects: int = options.objects or (size.quick_objects if options.quick else size.objects)
    if receiver.slow_answers or sender.slow:
        objects = min(objects, QUICK_SLOW_OBJECTS if options.quick else SLOW_OBJECTS)
    return max(objects, associations)


def _store(options: argparse.Namespace, chosen: dict[str, Any]) -> int:
    runs: list[measure.Run] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="harmony-bench-") as temporary:
        workloads = {name: create(SIZES[name], Path(temporary)) for name in {*chosen["sizes"], "small"}}
        conditions = measure.Conditions(
            options.output or Path(temporary), options.max_pdu, warm_up=workloads["small"]
        )
        grid = [
            (SENDERS[sender], workloads[size], associations)
            for size in chosen["sizes"]
            for sender in chosen["senders"]
            for associations in chosen["associations"]
        ]
        started = time.monotonic()
        for number, (sender, workload, associations) in enumerate(grid, start=1):
            cell = f"[{number}/{len(grid)}] {workload.size.name}, {sender.name}, {associations} at a time"
            receivers = [RECEIVERS[name] for name in chosen["receivers"]]
            for receiver in list(receivers):
                if receiver.most_associations and associations > receiver.most_associations:
                    print(f"{cell}: {receiver.name} takes {receiver.most_associations} at most, left out")
                    receivers.remove(receiver)
            runs_before = len(runs)
            try:
                for turn in range(chosen["rounds"]):
                    shift = turn % max(len(receivers), 1)
                    for receiver in receivers[shift:] + receivers[:shift]:
                        _progress(f"{cell}, round {turn + 1}, {receiver.name}", started)
                        result = _attempt(receiver, sender, workload, associations, options, conditions)
                        if isinstance(result, measure.Run):
                            runs.append(result)
                        else:
                            failures.append(f"{cell}, round {turn + 1}: {result}")
            finally:  # interrupted, too: what there is of a cell can be compared
                _progress("", started)
                order = {receiver.name: place for place, receiver in enumerate(receivers)}
                runs[runs_before:] = sorted(runs[runs_before:], key=lambda run: order[run.receiver])
                if runs[runs_before:]:
                    print(report.tables(runs[runs_before:]), end="\n\n", flush=True)
    print_targets(store_targets(runs))
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        report.write_json(options.json, runs, options={**vars(options), **chosen}, failures=failures)
    return 1 if failures else 0


def _attempt(
    receiver: Receiver,
    sender: Sender,
    workload: Workload,
    associations: int,
    options: argparse.Namespace,
    conditions: measure.Conditions,
) -> measure.Run | str:
    objects = _objects(workload.size, sender, receiver, associations, options)
    try:
        return measure.run(
            receiver, sender, workload, associations=associations, objects=objects, conditions=conditions
        )
    except (PeerError, measure.ObjectsLost) as error:
        return f"{receiver.name}: {error}"


def _progress(text: str, started: float) -> None:
    """One line that replaces itself, on a terminal only."""
    if sys.stderr.isatty():
        seconds = f"{time.monotonic() - started:4.0f} s  " if text else ""
        print(f"\r\x1b[K{seconds}{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # So that whoever is told to stop removes what it has started and written, also as a job in the background, which
    # a shell has ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    raise SystemExit(main())
