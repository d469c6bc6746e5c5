"""`python -m harmony`: arguments, `--check`, `outbox`, `index`, and the way into the running gateway.

Exit status 0 after a clean stop or a good check, 2 for arguments and configurations that cannot be used; whatever the
gateway returns otherwise. Without `--config` the embedded default runs: no file is looked for, so that the folder one
happens to stand in never decides what is listened on.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import harmony
from harmony.gateway import checks, password_command
from harmony.gateway.config import LOG_LEVELS, ConfigError, Endpoint, LoadedConfig, Pipeline
from harmony.gateway.default_config import DEFAULT_CONFIG
from harmony.gateway.loading import load
from harmony.gateway.options import DicomScpOptions, ManagementOptions, PrefixOptions

EXIT_UNUSABLE = 2


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.command == "send":
        parser.error("send comes first, its arguments behind it: harmony send --help")
    if arguments.retry is not None and arguments.command != "outbox":
        parser.error("--retry belongs to the outbox command")
    if (arguments.command == "index") != (arguments.action == "rebuild"):
        parser.error("index is followed by rebuild, and only index is")
    if arguments.command == "hash-password":
        return password_command.run()
    if arguments.print_default:
        sys.stdout.write(DEFAULT_CONFIG)
        return 0

    def read() -> LoadedConfig:
        config = load(arguments.config, env=os.environ)
        if missing := checks.unsupported(config):
            raise ConfigError([*missing, *config.warnings])
        if arguments.log_level is not None:
            config = replace(config, log=replace(config.log, level=arguments.log_level))
        return config

    try:
        config = read()
    except ConfigError as error:
        _print_problems(error)
        return EXIT_UNUSABLE
    if arguments.check:
        print("\n".join(summary(config)))
        return 0
    # Imported late: checking a configuration needs neither an event loop nor what the services are made of.
    if arguments.command == "outbox":
        show: Callable[..., int] = importlib.import_module("harmony.gateway.outbox_command").run
        return show(config, retry=arguments.retry)
    if arguments.command == "index":
        rebuild: Callable[[LoadedConfig], int] = importlib.import_module("harmony.gateway.index_command").run
        return rebuild(config)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    run: Callable[[LoadedConfig, Callable[[], LoadedConfig]], int]
    run = importlib.import_module("harmony.gateway.process").run
    return run(config, read)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harmony",
        description="DICOM engine and gateway. Without --config an embedded default runs on the loopback interface.",
        epilog="docs/CONFIGURATION.md describes the configuration file.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=["start", "outbox", "index", "hash-password", "send"],
        help="start, which is what happens anyway; outbox: list the envelopes that are not delivered yet; "
        "index rebuild: make the index of the archive again from its files; "
        "hash-password: print a password, read from standard input, as configurations may hold it; "
        "send: C-STORE files and folders to a peer (send --help)",
    )
    parser.add_argument("action", nargs="?", choices=["rebuild"], help=argparse.SUPPRESS)
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="main configuration file (.toml)")
    parser.add_argument(
        "--check", action="store_true", help="load and check the configuration, print it, exit"
    )
    parser.add_argument("--print-default", action="store_true", help="print the embedded default, exit")
    parser.add_argument(
        "--log-level",
        type=str.lower,
        choices=list(LOG_LEVELS),
        metavar="LEVEL",
        help=f"instead of the file's: {', '.join(LOG_LEVELS)}",
    )
    parser.add_argument(
        "--retry", metavar="ID", help='with outbox: try a parked envelope again, or "all" of them'
    )
    parser.add_argument("--version", action="version", version=f"harmony {harmony.__version__}")
    return parser


def _print_problems(error: ConfigError) -> None:
    print(error, file=sys.stderr)
    for problem in error.problems:
        if problem not in error.errors:
            print(f"  warning: {problem}", file=sys.stderr)


def summary(config: LoadedConfig) -> Iterator[str]:
    """The configuration in a page: what is listened on, which way things go. Never shows secrets."""
    files = ", ".join(str(path) for path in config.sources) or "embedded default"
    log = f"{config.log.level}, to {config.log.file or 'standard error'}"
    yield from _table(
        [
            ("instance", config.proxy_id),
            ("files", files),
            ("storage", str(config.storage_path)),
            ("log", log),
        ]
    )
    yield "\nlisteners"
    yield from _table([("  network", "protocol", "address", "serves"), *_listeners(config)])
    yield "\npipelines"
    yield from _table(
        [
            ("  name", "endpoint -> middleware -> backend"),
            *((f"  {pipeline.name}", _chain(pipeline)) for pipeline in config.pipelines.values()),
        ]
    )
    if config.warnings:
        yield "\nwarnings"
        for warning in config.warnings:
            yield f"  {warning}"
    yield "\nThe configuration is good."


def _listeners(config: LoadedConfig) -> Iterator[tuple[str, ...]]:
    for network in config.http_networks():
        if network.http is not None:
            served = [
                _prefix(endpoint)
                for pipeline in config.pipelines.values()
                for endpoint in pipeline.endpoints
                if network.name in endpoint.networks and _prefix(endpoint)
            ]
            if config.management.enabled and config.management.network == network.name:
                served.append(config.management.base_path)
            protocol = "https" if network.http.tls else "http"
            yield f"  {network.name}", protocol, str(network.http), ", ".join(served)
    for pipeline in config.pipelines.values():
        for endpoint in pipeline.endpoints:
            if isinstance(endpoint.options, DicomScpOptions):
                for network_name, listener in zip(endpoint.networks, endpoint.listeners, strict=True):
                    protocol = "dicom-tls" if listener.tls else "dicom"
                    title = f"AE title {endpoint.options.local_aet}"
                    yield f"  {network_name}", protocol, str(listener), title


def _chain(pipeline: Pipeline) -> str:
    def side(names: Sequence[str], nothing: str) -> str:
        return ", ".join(names) if names else nothing

    endpoints = [f"{endpoint.name} ({_endpoint(endpoint)})" for endpoint in pipeline.endpoints]
    backends = [
        f"{backend.name} ({backend.service}{' ' + backend.target.url if backend.target else ''})"
        for backend in pipeline.backends
    ]
    left = [middleware.name for middleware in pipeline.left]
    middleware = side(left, "-")
    if pipeline.right != pipeline.left[::-1]:
        middleware += f" | back: {side([each.name for each in pipeline.right], '-')}"
    return f"{side(endpoints, '-')} -> {middleware} -> {side(backends, 'local store')}"


def _endpoint(endpoint: Endpoint) -> str:
    if isinstance(endpoint.options, DicomScpOptions):
        return f"{endpoint.service} {endpoint.options.local_aet}"
    return f"{endpoint.service} {_prefix(endpoint)}".rstrip()


def _prefix(endpoint: Endpoint) -> str:
    """Where an HTTP endpoint is; "" for others."""
    match endpoint.options:
        case PrefixOptions(path_prefix=prefix) | ManagementOptions(base_path=prefix):
            return prefix
    return ""


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
