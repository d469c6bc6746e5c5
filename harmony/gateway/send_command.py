"""`python -m harmony send`: files and folders of DICOM files to a peer, with C-STORE.

Arguments, TLS, what is shown meanwhile, signals and exit status; finding and sending is `harmony.send`. Needs no
configuration file, and no gateway that runs.

Called by `harmony.__main__`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import logging
import os
import re
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TextIO

from harmony.dimse.peer import Peer
from harmony.gateway.event_loop import loop_factory
from harmony.send import Flood, Found, PassedOver, Result, Tally, Unreadable, count, find_files
from harmony.send.tally import MEGABYTE, described, failure_of
from harmony.ul.negotiation import DEFAULT_MAXIMUM_LENGTH, MAXIMUM_WINDOW

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130
"""As shells have it for SIGINT."""

GRACE_S: Final = 10.0
"""After Ctrl-C, for what is under way. A second one does not wait."""

LINE_S: Final = 0.2
"""Between two looks of the progress line on a terminal."""

PLAIN_LINE_S: Final = 5.0
"""Between two lines elsewhere."""

Item = Found | PassedOver | Unreadable


def main(argv: Sequence[str]) -> int:
    """argv: what follows `send`. Returns 0 when everything was stored, 1 when not, 2 for arguments that cannot be
    used, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(argv)
    host, port, paths = _destination(parser, options)
    for path in paths:
        if not os.path.exists(path):
            parser.error(f"{path} does not exist")
    with ExitStack() as files:
        try:
            peer = _peer(options, host, port)
            report = files.enter_context(options.report.open("w")) if options.report else None
        except (OSError, ValueError) as error:
            print(f"harmony send: {error}", file=sys.stderr)
            return EXIT_UNUSABLE
        # What goes wrong is in the table, once for each file.
        logging.getLogger("harmony").addHandler(logging.NullHandler())
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_Sending(options, peer, paths, report).run())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harmony send",
        usage="harmony send [options] HOST PORT PATH...\n       harmony send [options] --to HOST:PORT PATH...",
        description="Sends DICOM files with C-STORE. Folders are searched, whatever the files in them are called.",
    )
    parser.add_argument("words", nargs="+", metavar="PATH", help="a file or a folder")
    parser.add_argument(
        "--to", metavar="HOST:PORT", help="the peer, instead of HOST PORT in front of the paths"
    )
    parser.add_argument("--aet", type=_title, default="HARMONY_SCU", metavar="TITLE", help="our AE title")
    parser.add_argument("--aec", type=_title, default="ANY-SCP", metavar="TITLE", help="the peer's")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="a line for each file: what became of it"
    )
    load = parser.add_argument_group("how much at a time")
    load.add_argument("--associations", type=_at_least(1), default=4, metavar="N", help="default 4")
    load.add_argument(
        "--window",
        type=_at_least(1, MAXIMUM_WINDOW),
        metavar="N",
        help="operations under way on each association, if the peer agrees (not asked for by default)",
    )
    load.add_argument(
        "--max-pdu",
        type=_at_least(4096, 2**32 - 1),
        default=DEFAULT_MAXIMUM_LENGTH,
        metavar="BYTES",
        help="longest P-DATA-TF PDU that we announce; what we send is limited by the peer's own",
    )
    load.add_argument("--repeat", type=_at_least(1), default=1, metavar="N", help="send everything N times")
    load.add_argument("--limit", type=_at_least(1), metavar="N", help="send N objects at most")
    failing = parser.add_argument_group("when something fails")
    failing.add_argument(
        "--as-stored",
        action="store_true",
        help="never convert: by default objects in a native transfer syntax are sent in another one "
        "where the peer does not take theirs",
    )
    failing.add_argument(
        "--retries", type=_at_least(0), default=3, metavar="N", help="after transient refusals (default 3)"
    )
    failing.add_argument(
        "--retry-delay",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="before the first, then doubled (default 1)",
    )
    failing.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="for each response (default 60)"
    )
    failing.add_argument("--report", type=Path, metavar="FILE", help="write a line of JSON for each failure")
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls", action="store_true", help="certificate and name of the peer are checked")
    tls.add_argument(
        "--ca", type=Path, metavar="FILE", help="who has signed its certificate, instead of the system's list"
    )
    tls.add_argument("--cert", type=Path, metavar="FILE", help="our own certificate")
    tls.add_argument("--key", type=Path, metavar="FILE", help="the key of that")
    tls.add_argument("--tls-name", metavar="NAME", help="the name in its certificate, when it is not HOST")
    return parser


def _at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"{value} is not {f'from {least} to {most}' if most is not None else f'{least} or more'}"
            )
        return value

    return number


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _title(text: str) -> str:
    """PS3.5 Table 6.2-1, AE: 1 to 16 characters, no control characters, no backslash, not only spaces."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", text) or not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no AE title: 1 to 16 ASCII characters, no backslash")
    return text


def _destination(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, int, list[str]]:
    words: list[str] = options.words
    if options.to is not None:
        host, _, port = options.to.rpartition(":")
    elif len(words) > 2:
        host, port, words = words[0], words[1], words[2:]
    else:
        parser.error("expected HOST PORT PATH..., or --to HOST:PORT PATH...")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        parser.error(f"{host!r} {port!r}: expected a host and a port from 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port), words


def _peer(options: argparse.Namespace, host: str, port: int) -> Peer:
    """Raises OSError and ValueError for TLS files that cannot be used."""
    context: ssl.SSLContext | None = None
    if options.tls:
        # Only here, as they bring most of the gateway with them.
        from harmony.gateway.config import ClientTLS
        from harmony.gateway.tls import client_context

        try:
            context = client_context(
                ClientTLS(
                    ca_cert_path=options.ca, cert_path=options.cert, key_path=options.key or options.cert
                )
            )
        except (OSError, ValueError) as error:
            text = str(error)
            for key, option in (("ca_cert_path", "--ca"), ("cert_path", "--cert"), ("key_path", "--key")):
                text = text.replace(key, option)
            raise ValueError(text) from error
    elif options.ca or options.cert or options.key or options.tls_name:
        raise ValueError("--ca, --cert, --key and --tls-name belong to --tls")
    return Peer(
        host,
        port,
        called_ae_title=options.aec,
        calling_ae_title=options.aet,
        ssl_context=context,
        server_hostname=options.tls_name if options.tls else None,
        maximum_length=options.max_pdu,
        maximum_operations=options.window,
        response_s=options.timeout,
    )


class _Sending:
    """One run of the command."""

    def __init__(
        self, options: argparse.Namespace, peer: Peer, paths: Sequence[str], report: TextIO | None
    ) -> None:
        self._options = options
        self._peer = peer
        self._paths = paths
        self._report = report
        self._tally = Tally()
        self._interrupted = False
        self._ended = threading.Event()
        self._flood = Flood(
            peer,
            self._items(),
            on_item=self._note,
            on_bytes=self._tally.add_bytes,
            associations=options.associations,
            as_stored=options.as_stored,
            retries=options.retries,
            first_delay_s=options.retry_delay,
        )

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(self._flood.run())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        line = _Line(self._tally, self._flood)
        showing = asyncio.create_task(self._show(line))
        try:
            await sending
        finally:
            self._ended.set()
            self._tally.end()
            await line.end(showing)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        return self._conclude()

    def _items(self) -> Iterator[Item]:
        """In the thread that finds files."""
        left = self._options.limit
        for item in itertools.chain.from_iterable(
            find_files(self._paths) for _ in range(self._options.repeat)
        ):
            if left is not None and isinstance(item, Found):
                if left == 0:
                    return
                left -= 1
            yield item

    def _note(self, item: Result | PassedOver | Unreadable) -> None:
        self._tally.add(item)
        if self._options.verbose:
            clear = "\r\x1b[K" if sys.stderr.isatty() else ""
            print(clear, end="", file=sys.stderr, flush=True)
            print(described(item), flush=True)
        if self._report is not None and (failure := failure_of(item)) is not None:
            row = dataclasses.asdict(failure)
            row["status"] = None if failure.status is None else f"0x{failure.status:04X}"
            self._report.write(json.dumps(row) + "\n")

    def _interrupt(self) -> None:
        if self._interrupted:
            self._flood.abort()
            return
        self._interrupted = True
        self._flood.stop()
        asyncio.get_running_loop().call_later(GRACE_S, self._flood.abort)

    async def _show(self, line: _Line) -> None:
        counting = asyncio.create_task(asyncio.to_thread(self._count)) if line.on_terminal else None
        while True:
            await asyncio.sleep(LINE_S if line.on_terminal else PLAIN_LINE_S)
            line.show(expected=counting.result() if counting is not None and counting.done() else None)

    def _count(self) -> int | None:
        number = count(self._paths, stopped=self._ended.is_set)
        return None if number is None else number * self._options.repeat

    def _conclude(self) -> int:
        tally = self._tally
        print("\n".join(tally.lines()))
        for error in dict.fromkeys(map(str, self._flood.given_up)):
            print(f"fewer associations than {self._options.associations}: {error}", file=sys.stderr)
        if self._interrupted:
            print("interrupted: the rest was not sent", file=sys.stderr)
            return EXIT_INTERRUPTED
        if not tally.stored and not tally.failed:
            print(f"no DICOM file was found among {tally.passed_over} files", file=sys.stderr)
            return EXIT_FAILED
        return EXIT_FAILED if tally.failed else 0


class _Line:
    """How far it is: a line that replaces itself on a terminal, one now and then elsewhere. On standard error."""

    def __init__(self, tally: Tally, flood: Flood) -> None:
        self.on_terminal = sys.stderr.isatty()
        self._tally = tally
        self._flood = flood
        self._last_s, self._last_bytes, self._last_done = 0.0, 0, 0

    def show(self, *, expected: int | None) -> None:
        """expected: files, when known."""
        tally = self._tally
        elapsed_s = tally.elapsed_s
        span_s = max(elapsed_s - self._last_s, 1e-6)
        rate = (tally.sent_bytes - self._last_bytes) / MEGABYTE / span_s
        parts = [
            f"{tally.stored} objects",
            f"{tally.sent_bytes / MEGABYTE:.1f} MB",
            f"{rate:.1f} MB/s",
            f"{(tally.done - self._last_done) / span_s:.0f} objects/s",
            f"{tally.failed} failed",
            f"{self._flood.open} associations",
        ]
        if expected is not None and 0 < tally.done <= expected:
            parts.append(f"{_span((expected - tally.done) * elapsed_s / tally.done)} left")
        self._last_s, self._last_bytes, self._last_done = elapsed_s, tally.sent_bytes, tally.done
        text = ", ".join(parts)
        print(
            f"\r\x1b[K{text}" if self.on_terminal else text,
            end="" if self.on_terminal else "\n",
            file=sys.stderr,
        )
        sys.stderr.flush()

    async def end(self, showing: asyncio.Task[None]) -> None:
        showing.cancel()
        await asyncio.wait([showing])
        if self.on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
