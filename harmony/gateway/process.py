"""The gateway as a process: logging, signals, exit status.

SIGTERM and SIGINT stop it in order, a second one cuts the grace short. SIGHUP loads the configuration again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

from harmony.gateway.app import Gateway, Load
from harmony.gateway.config import ConfigError, LoadedConfig, LogSettings
from harmony.gateway.descriptors import raise_limit, watch_accepting
from harmony.gateway.errors import StartError
from harmony.gateway.event_loop import loop_factory
from harmony.gateway.garbage import set_aside
from harmony.gateway.greeting import greeting
from harmony.gateway.log_output import set_up_logging

__all__ = ["run"]

logger = logging.getLogger("harmony.gateway")

EXIT_CANNOT_START = 1
EXIT_UNUSABLE = 2


def run(config: LoadedConfig, load: Load) -> int:
    """Run until a signal says stop; the process's exit status. load: for when it is to be loaded again."""
    try:
        _set_up_logging(config.log)
        gateway = Gateway(config, load=load, set_up_logging=_set_up_logging)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_UNUSABLE
    except OSError as error:
        print(f"cannot start: the log file: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    raise_limit()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(gateway))


async def _serve(gateway: Gateway) -> int:
    stop = asyncio.Event()
    hurry = asyncio.Event()

    def told() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    watch_accepting(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    hung_up = asyncio.Event()
    loop.add_signal_handler(
        signal.SIGHUP, hung_up.set
    )  # before the start: SIGHUP must not end a process that starts
    try:
        await gateway.start()
    except StartError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    set_aside()
    print("\n".join(greeting(gateway)), flush=True)
    reloading = asyncio.create_task(_reload_when(hung_up, gateway))
    await stop.wait()
    logger.info("stopping")
    stopping = asyncio.create_task(gateway.stop())
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        await gateway.stop(0.0)
    hurried.cancel()
    reloading.cancel()
    return 0


async def _reload_when(hung_up: asyncio.Event, gateway: Gateway) -> None:
    while True:
        await hung_up.wait()
        hung_up.clear()
        with contextlib.suppress(ConfigError, StartError):  # which have been logged
            await gateway.reload()
            set_aside()


def _set_up_logging(settings: LogSettings) -> None:
    """Raises OSError when the file cannot be written to; what was set up before stays then."""
    set_up_logging(settings.number, Path(settings.file) if settings.file is not None else None)
