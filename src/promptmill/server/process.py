"""The server process on all platforms: event loop, signals, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.service.observers import Observer, exporting
from promptmill.service.service import Service
from promptmill.system.logs import announce
from promptmill.system.runtime import descriptors, run, stay_responsive

if TYPE_CHECKING:
    from fastmcp import FastMCP

    from promptmill.http.app import OtherApi
    from promptmill.http.listen_options import BoundServer

_ENDING_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")
# Clients that use the MCP SDKs send SIGTERM 2 s after closing stdin, and SIGKILL 2 s later.
_LAST_WORDS_S = 0.5
_CLOSE_S = 1.5
_SCRAPERS = 16
_TIDY_S = 10.0
_MUCH = 5_000  # if more items are in progress, garbage is not collected, because the pause would be noticed


def serve_stdio(
    configuration: Configuration,
    *,
    locked: bool = False,
    tools: Sequence[str] = (),
    metrics_port: int | None = None,
    extend: Callable[[FastMCP, Service], None] = lambda _server, _service: None,
) -> int:
    """Serve over stdio until stdin ends (exit code 0) or a signal arrives (exit code 128 + its number).

    Never returns. `locked` and `tools`: see `create_server`. `metrics_port`: also serve metrics on this loopback port.
    `extend` may add tools before the server answers.
    """
    for name in _ENDING_SIGNALS:  # until FastMCP is imported, a signal ends the process at once
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, lambda got, _frame: os._exit(128 + got))
    return run(_serve_stdio(configuration, extend, locked=locked, tools=tools, metrics_port=metrics_port))


def serve_http(
    configuration: Configuration,
    bound: BoundServer,
    others: Sequence[Callable[[Service, frozenset[str]], OtherApi]] = (),
    tools: Sequence[str] = (),
) -> int:
    """Serve over HTTP until a signal arrives; the process then exits with 128 + its number.

    `others` make the APIs that are served in addition to MCP.
    """
    return run(_serve_http(configuration, bound, others, tools))


def _build_models_late() -> None:
    """Make pydantic build each model of MCP's messages on first use. Call this before the SDK is imported.

    Building all models of two protocol versions takes an eighth of a server's start.
    """
    from mcp_types._wire_base import WireModel

    WireModel.model_config["defer_build"] = True


async def _serve_stdio(
    configuration: Configuration,
    extend: Callable[[FastMCP, Service], None],
    *,
    locked: bool,
    tools: Sequence[str],
    metrics_port: int | None,
) -> int:
    _build_models_late()
    from promptmill.server import create_server
    from promptmill.server.stdio import StdioServer

    service = Service(configuration)
    observer = exporting(service)
    server = create_server(service, locked=locked, tools=tools, observer=observer)
    extend(server, service)
    pages = None if metrics_port is None else _serve_metrics(service, metrics_port)
    stay_responsive()
    signals = _Signals()  # created after the imports: until then, a signal ends the process immediately
    stdio = StdioServer(server)
    serving = asyncio.ensure_future(stdio.run())
    tidying = asyncio.ensure_future(_tidy(service, lambda: service.calls.totals()["calls"]))
    await signals.wait_for_one_or(serving)
    tidying.cancel()
    if pages is not None:
        pages.cancel()
    closing = asyncio.ensure_future(service.aclose())  # started first, so that engines end even if a tool hangs
    loop = asyncio.get_running_loop()
    until = loop.time() + _CLOSE_S
    # The running calls return their answers so far when the service closes.
    answered = asyncio.ensure_future(stdio.last_answers(_CLOSE_S))
    hurried = asyncio.ensure_future(signals.hurry.wait())
    await asyncio.wait({serving, answered, hurried}, return_when=asyncio.FIRST_COMPLETED)
    stdio.hang_up()
    serving.cancel()  # cancels all calls
    await asyncio.wait({serving, closing}, timeout=max(0.0, until - loop.time()) + _LAST_WORDS_S / 2)
    await _export_rest(observer, until)
    _leave(serving, signals)


def _serve_metrics(service: Service, port: int) -> asyncio.Task[None] | None:
    """Serve metrics on loopback; None if the port is in use, for example by another session's server."""
    from promptmill.http.address import Address, HostAllowlist
    from promptmill.http.app import MonitoringPages, Rules
    from promptmill.http.listener import listener
    from promptmill.http.prometheus import Metrics

    address = Address("127.0.0.1", port)
    try:
        sockets = address.bind()
    except PromptmillError as error:
        _, _, reason = str(error).partition(": ")  # the message without the option's name
        announce(f"metrics are not served: {reason}")
        return None
    pages = MonitoringPages(Rules(HostAllowlist(address, sockets), None, 0), Metrics(service))
    announce(f"serving metrics at http://127.0.0.1:{sockets[0].getsockname()[1]}/metrics")
    return asyncio.ensure_future(listener(pages, connections=_SCRAPERS, tls=None).serve(sockets))


async def _tidy(service: Service, answered: Callable[[], int]) -> None:
    """Collect garbage when `answered` returns a larger number than before and few items are in progress.

    Calls leave reference cycles, which are large but too few to trigger Python's own collection.
    """
    seen = 0
    while True:
        await asyncio.sleep(_TIDY_S)
        now = answered()
        if now != seen and sum(call["total"] or 0 for call in service.calls.in_progress()) < _MUCH:
            seen = now
            gc.collect()


async def _serve_http(
    configuration: Configuration,
    bound: BoundServer,
    others: Sequence[Callable[[Service, frozenset[str]], OtherApi]],
    tools: Sequence[str],
) -> int:
    signals = _Signals()
    from promptmill.http.app import App
    from promptmill.http.listener import listener
    from promptmill.http.prometheus import Metrics
    from promptmill.server import create_server

    service = Service(configuration, is_shared=True)
    observer = exporting(service)
    rules = bound.rules
    secrets = [each.secret.get_secret_value() for each in (rules.token, *rules.others) if each is not None]
    server = create_server(service, locked=True, tools=tools, observer=observer, secrets=secrets)
    apis = [made(service, rules.hosts.origins) for made in others]
    app = App(server, rules, Metrics(service), others=apis)
    connections = descriptors(8192) // 2  # connections get half of the descriptors; files and endpoints get the rest
    listening = listener(app, connections=connections, tls=bound.tls, access_log=bound.access_log)
    stay_responsive()
    serving = asyncio.ensure_future(listening.serve(bound.sockets))
    tidying = [asyncio.ensure_future(_tidy(service, lambda: app.answered))]
    tidying += [asyncio.ensure_future(api.tend()) for api in apis]
    announce(bound.greeting)
    await signals.wait_for_one_or(serving)
    for task in tidying:
        task.cancel()

    async def end() -> None:
        await service.aclose()  # running calls end with their answers so far
        await app.end_sessions()
        if not listening.is_quiet:  # an idle server is not awaited: it checks only ten times a second whether to end
            await asyncio.wait({serving})

    app.close()
    listening.stop()
    until = asyncio.get_running_loop().time() + _CLOSE_S
    await asyncio.wait({asyncio.ensure_future(end())}, timeout=_CLOSE_S + _LAST_WORDS_S / 2)
    await _export_rest(observer, until)
    _leave(serving, signals)


async def _export_rest(observer: Observer | None, until: float) -> None:
    """Export the last spans and metrics before the time `until`."""
    if observer is not None:
        await observer.aclose(max(0.0, until - asyncio.get_running_loop().time()) + _LAST_WORDS_S / 2)


def _leave(serving: asyncio.Future[None], signals: _Signals) -> NoReturn:
    """End the process immediately: a blocked thread cannot be joined, and unloading modules takes 0.1 s."""
    failed = serving.done() and not serving.cancelled() and serving.exception()
    if failed:
        logging.getLogger(__name__).error("the server ended: %s", type(failed).__name__)
    code = 128 + signals.received[0] if signals.received else int(bool(failed) or not serving.done())
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


class _Signals:
    """Handles the signals that end the server, from the creation of this object on."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._stop = asyncio.Event()
        self.hurry = asyncio.Event()
        """Set by a second signal: the server then waits for no client."""
        loop = asyncio.get_running_loop()
        for name in _ENDING_SIGNALS:
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                loop.add_signal_handler(number, self._note, int(number))
            except NotImplementedError:  # Windows: Python's own handler wakes the event loop
                signal.signal(number, lambda got, _frame: loop.call_soon_threadsafe(self._note, got))

    def _note(self, number: int) -> None:
        self.received.append(number)
        (self.hurry if self._stop.is_set() else self._stop).set()

    async def wait_for_one_or(self, serving: asyncio.Future[None]) -> None:
        """Wait until a signal arrives or `serving` is done."""
        stopped = asyncio.ensure_future(self._stop.wait())
        either: set[asyncio.Future[Any]] = {serving, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
