"""`python -m tests.faults [NAME ...]`: do each fault to a gateway of its own, and print the table."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import traceback
from pathlib import Path

from tests.faults import associations, broken, broken_disk, crashes, resources, slow, upstreams
from tests.faults.trial import ASSOCIATIONS, FAULTS, NotHere, Row, perform

MODULES = (slow, associations, broken, resources, broken_disk, crashes, upstreams)

HEAD = (
    f"{'fault':<22}{'times':>7}{'load':>9}{'reads':>7}{'acked':>8}{'lost':>6}{'refused':>9}{'gap':>8}"
    f"{'RSS MiB':>14}{'fds':>10}{'time':>8}"
)


def line(row: Row) -> str:
    rss = f"{row.rss_before_bytes / 2**20:.0f} -> {row.rss_after_bytes / 2**20:.0f}"
    descriptors = f"{row.descriptors_before} -> {row.descriptors_after}"
    return (
        f"{row.name:<22}{row.injected:>7}{row.objects_per_s:>7.0f}/s{row.reads:>7}{row.acknowledged:>8}"
        f"{row.lost:>6}{row.refused:>9}{row.longest_gap_s:>6.1f} s{rss:>14}{descriptors:>10}{row.seconds:>6.0f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; all when there is none")
    parser.add_argument("--short", action="store_true", help="fewer of each, as in the tests")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument(
        "--associations",
        type=int,
        default=ASSOCIATIONS,
        metavar="N",
        help="of many-associations (%(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.list:
        for name, each in FAULTS.items():
            print(f"{name:<22}{(each.run.__doc__ or '').strip().splitlines()[0]}")
        return 0
    if unknown := set(arguments.names) - FAULTS.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    failed = 0
    print(HEAD, flush=True)
    for name in arguments.names or FAULTS:
        with tempfile.TemporaryDirectory(prefix="harmony-fault-", ignore_cleanup_errors=True) as folder:
            try:
                row = asyncio.run(
                    perform(
                        FAULTS[name],
                        Path(folder),
                        short=arguments.short,
                        associations=arguments.associations,
                    )
                )
            except NotHere as reason:
                print(f"{name:<22}not here: {reason}", flush=True)
            except Exception as error:
                failed += 1
                print(f"{name:<22}FAILED: {error}", flush=True)
                traceback.print_exception(error, file=sys.stderr)
            else:
                print(line(row), flush=True)
                if row.note:
                    print(f"{'':<22}{row.note}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
