"""The senders: DCMTK's storescu as installed, the same with TCP_NODELAY=1, and our pre-encoding one.

storescu sends one file as often as there are objects (`--repeat`) and invents a SOP Instance UID each time (`+II`),
so no size needs more than one file on disk; one process per association. Its time includes starting it, some tens of
milliseconds a round. The pre-encoding sender reports its own time, which starts at the first connect.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import CALLED_AE_TITLE, PeerError, program
from benchmarks.preencoded import Flood
from benchmarks.workloads import Workload

TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Sent:
    """How long a sender took for all of its objects."""

    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Sender:
    """Something that floods a receiver: send(workload, port, objects, associations, first_number)."""

    name: str
    title: str
    send: Callable[[Workload, int, int, int, int], Sent]
    slow: bool = False  # against most receivers; rounds have fewer objects


def preencoded(workload: Workload, port: int, objects: int, associations: int, first_number: int) -> Sent:
    """Run `benchmarks.preencoded` in a process of its own. Raises PeerError."""
    return Sent(flood(workload, port, objects, associations, first_number).elapsed_s)


def flood(
    workload: Workload, port: int, objects: int, associations: int, first_number: int, *, repeat: int = 1
) -> Flood:
    """The same, and all that it says about what it did. repeat: floods of so many objects, one after the other."""
    command = [sys.executable, "-m", "benchmarks.preencoded", str(port), str(workload.path)]
    command += ["--size", workload.size.name, "--data-set-offset", str(workload.data_set_offset)]
    command += ["--objects", str(objects), "--associations", str(associations)]
    command += ["--first-number", str(first_number), "--called-ae-title", CALLED_AE_TITLE]
    command += ["--repeat", str(repeat)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if finished.returncode:
        raise PeerError(f"the sender failed: {finished.stderr.strip()}")
    return Flood(**json.loads(finished.stdout))


def _storescu(env: dict[str, str]) -> Callable[[Workload, int, int, int, int], Sent]:
    def send(workload: Workload, port: int, objects: int, associations: int, first_number: int) -> Sent:
        environment = {**os.environ, **env}
        started = time.perf_counter()
        processes = []
        for index in range(associations):
            share = objects // associations + (index < objects % associations)
            # -R: propose what the file needs, not DCMTK's 120 contexts, which some receivers answer slowly.
            command = [program("storescu") or "storescu", "-R", "+II", "--repeat", str(share)]
            command += ["-aec", CALLED_AE_TITLE, "127.0.0.1", str(port), str(workload.path)]
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
        printed = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
        elapsed_s = time.perf_counter() - started
        for process, text in zip(processes, printed, strict=True):
            if process.returncode:
                raise PeerError(f"storescu ended with {process.returncode}: {text.strip()[-2000:]}")
        return Sent(elapsed_s)

    return send


SENDERS = {
    sender.name: sender
    for sender in (
        Sender("dcmtk-nagle", "DCMTK storescu, as installed", _storescu({}), slow=True),
        Sender("dcmtk-nodelay", "DCMTK storescu, TCP_NODELAY=1", _storescu({"TCP_NODELAY": "1"})),
        Sender("preencoded", "pre-encoded, nothing but send and wait", preencoded),
    )
}
