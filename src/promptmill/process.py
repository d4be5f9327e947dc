"""The server as a process: its event loop, its signals, its end. What differs between platforms here stays here."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from promptmill.config import Configuration
from promptmill.loop import run
from promptmill.service import Service

if TYPE_CHECKING:
    from fastmcp import FastMCP

# Clients send SIGTERM 2 s after closing stdin and SIGKILL 2 s later (facts about the MCP SDKs).
_LAST_WORDS_S = 0.5
_CLOSE_S = 1.5
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")


def serve_stdio(configuration: Configuration, *, extend: Callable[[FastMCP], None] = lambda _: None) -> int:
    """Serve until stdin ends (exit code 0) or a signal comes (128 + its number). Does not return after a signal.

    `extend` may add tools to the server before it answers.
    """
    return run(_serve(configuration, extend))


async def _serve(configuration: Configuration, extend: Callable[[FastMCP], None]) -> int:
    stop = asyncio.Event()
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        stop.set()

    _watch_signals(on_signal)
    service = Service(configuration)
    from promptmill.server import create_server
    from promptmill.unreadable import answer_unreadable

    server = create_server(service)
    extend(server)
    answer_unreadable(server)
    _spare_the_collector()
    serving = asyncio.ensure_future(server.run_stdio_async(show_banner=False))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    closing = asyncio.ensure_future(service.aclose())  # first of all: engines end even if a tool hangs
    if not serving.done():
        serving.cancel()
        await asyncio.wait({serving}, timeout=_LAST_WORDS_S)
    await asyncio.wait({closing}, timeout=_CLOSE_S)
    stopped.cancel()
    failed = serving.done() and not serving.cancelled() and serving.exception()
    if failed:
        logging.getLogger(__name__).error("the server ended: %s", type(failed).__name__)
    if received or not serving.done():
        # the thread that reads stdin blocks and cannot be joined
        code = 128 + received[0] if received else 1
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
    return 1 if failed else 0


def _spare_the_collector() -> None:
    """Look for cyclic garbage seldom, and never among what the imports left.

    By default 100,000 prompts make several full searches of 0.2 s and more, in which the server answers nobody. Prompts
    and answers hold no cycles.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _watch_signals(on_signal: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is None:
            continue
        try:
            loop.add_signal_handler(number, on_signal, int(number))
        except NotImplementedError:  # Windows: Python's own handler, handed to the loop
            signal.signal(number, lambda got, _frame: loop.call_soon_threadsafe(on_signal, got))
