"""What every test stands on: a sealed environment, an event loop, and loopback endpoints.

Fixtures: `upstream` (one `Upstream`), `upstreams` (a maker of more, also with TLS), `drive` (runs
prompts through the openai backend), `talk` and `serve` (a server's client), `protocol` (both protocols, for
tests of access), `closing` (closes with the test what it opened). An `async def` test or fixture runs on an
event loop of its own, whose time is simulated where the test is marked `simulated`. The modules in
`support/`, such as `upstream`, `replies` and `fakes`, can be imported by name from every test.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import inspect
import ipaddress
import itertools
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))  # before the first import from this folder

import heavy
import second_run
import watchdog
from all_features import ALL_FEATURES, need
from parsed_tools import parse_once
from simulated_time import SimulatedLoop
from upstream import Upstream

gc.disable()  # until all tests are collected: what is imported, and the list of tests, is no garbage
atexit.register(gc.unfreeze)  # else DuckDB lists what it still has at the end of the process
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # reports each import of openvino to its makers

try:
    import uvloop
except ImportError:
    _EventLoop: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
else:
    _EventLoop = uvloop.Loop

if TYPE_CHECKING:
    from driving import Result
    from talk import Talk

T = TypeVar("T")
C = TypeVar("C", bound="Closes")
_LOCAL_NAMES = {"localhost", "", None}
_FOREIGN = ("_API_KEY", "_proxy", "_PROXY", "_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_ENDS_S = 60.0
_IN_MEMORY = Path("/dev/shm")  # of Linux
_AUTHORITY = Path(__file__).parent / "support" / "nobody.pem"  # its key is lost
_ROOM = 4 << 30
_TEST = itertools.count()


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in _LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _check_name(host: object) -> None:
    """Let a name that is not this machine's be unknown, at once and without asking anybody."""
    try:
        ipaddress.ip_address(str(host))
    except ValueError:
        if not _is_local(host):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None


def _check_address(address: object) -> None:
    if isinstance(address, tuple) and not _is_local(address[0]):
        raise AssertionError(f"a test tried to reach {address[0]}")


class _Sealed:
    """An event loop that knows no other machine; uvloop connects and looks up names below Python's socket module."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        _check_name(host)
        return await super().getaddrinfo(host, port, **options)  # type: ignore[misc]

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        if host is not None:
            _check_name(host)
            _check_address((host, port))
        return await super().create_connection(factory, host, port, **options)  # type: ignore[misc]


class SealedLoop(_Sealed, _EventLoop):  # type: ignore[misc, valid-type]
    """The event loop of tests."""


class _SealedSimulatedLoop(_Sealed, SimulatedLoop):  # type: ignore[misc]
    """The event loop of tests whose time is simulated."""


def pytest_configure(config: pytest.Config) -> None:
    watchdog.watch(config)
    second_run.repeat_failures(config)
    heavy.order(config)
    parse_once()
    if _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > _ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))  # no commit to a database waits for a disk


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of features that are missing; a mark without names is for all features."""
    for mark in item.iter_markers("features"):
        need(*(mark.args or ALL_FEATURES))


@pytest.fixture(autouse=True)
def _sealed(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No proxies, keys, certificates or configuration from outside, and no sockets to other machines."""
    for name in list(os.environ):
        if name.endswith(_FOREIGN) or name.startswith(("PROMPTMILL_", "OTEL_", "TRACEPARENT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(_AUTHORITY))  # OpenSSL reads all of this machine in 25 ms
    if folder := os.environ.get("PYTEST_DEBUG_TEMPROOT"):  # in memory: no database of a dry run waits for a disk
        monkeypatch.setattr(tempfile, "tempdir", folder)
    for folder in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):  # the cache stays: the converted model lies there
        monkeypatch.setenv(folder, str(tmp_path_factory.getbasetemp() / folder.lower() / str(next(_TEST))))
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def sealed_connect(self: socket.socket, address: Any) -> None:
        _check_address(address)
        connect(self, address)

    def sealed_connect_ex(self: socket.socket, address: Any) -> int:
        _check_address(address)
        return connect_ex(self, address)

    def sealed_getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        _check_name(host)
        return getaddrinfo(host, *rest, **options)

    monkeypatch.setattr(socket.socket, "connect", sealed_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", sealed_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", sealed_getaddrinfo)


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run detached jobs and steps of jobs in threads, but for a test that is marked `processes`."""
    if sys.platform == "win32" or request.node.get_closest_marker("processes"):
        yield
        return
    from in_threads import in_threads

    with in_threads(monkeypatch):
        yield


def _is_simulated(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("simulated") is not None


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loop of asynchronous tests and fixtures: a new one for each test."""
    return "asyncio", {"loop_factory": _SealedSimulatedLoop if _is_simulated(request) else SealedLoop}


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    if inspect.iscoroutinefunction(obj) and collector.istestfunction(obj, name):
        pytest.mark.usefixtures("_clock", "_nothing_left_running")(obj)


@pytest.fixture
async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture
def _clock(request: pytest.FixtureRequest, _loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let simulated time be everybody's."""
    if _is_simulated(request):
        monkeypatch.setattr(time, "monotonic", _loop.time)


@pytest.fixture
def _nothing_left_running(_loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """No task of an asynchronous test outlives it and its fixtures, but one that is about to end, as a job's run is."""
    before = asyncio.all_tasks(_loop)
    yield
    _loop.run_until_complete(asyncio.sleep(0))
    if left := asyncio.all_tasks(_loop) - before:
        _, left = _loop.run_until_complete(asyncio.wait(left, timeout=_ENDS_S))
    assert not left, f"left running: {left}"


class Closes(Protocol):
    """Anything with an `aclose`."""

    async def aclose(self) -> None: ...


class Closing(Protocol):
    """Returns what it is given, and closes it when the test ends."""

    def __call__(self, opened: C) -> C: ...


@pytest.fixture
async def closing() -> AsyncIterator[Closing]:
    """Close with the test, however that ends, what it opens: `service = closing(Service(…))`."""
    async with AsyncExitStack() as stack:

        def remember(opened: C) -> C:
            stack.push_async_callback(opened.aclose)
            return opened

        yield remember


@pytest.fixture
def upstreams(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Upstream]]:
    """Make endpoints: `upstreams()`, `upstreams(reply)`, `upstreams(tls=True)`. They end with the test."""
    loop = request.getfixturevalue("_loop") if _is_simulated(request) else None
    with ExitStack() as stack:

        def start(reply: Any = None, *, tls: bool = False) -> Upstream:
            return stack.enter_context(Upstream(reply, tls=tmp_path if tls else None, loop=loop))

        yield start


@pytest.fixture(scope="session")
def lasting() -> Iterator[Upstream]:
    """One endpoint for all tests of this process that share a server in front of it."""
    with Upstream() as up:
        yield up


@pytest.fixture
def upstream(upstreams: Callable[..., Upstream]) -> Upstream:
    """One endpoint."""
    return upstreams()


class Drive(Protocol):
    """Opens the backend with `block` over the usual settings, runs `prompts`, closes it."""

    def __call__(self, prompts: Sequence[Any], **block: Any) -> Awaitable[Result]: ...


@pytest.fixture
def drive(upstream: Upstream) -> Drive:
    """Run prompts through a fresh backend: `await drive(["a"], retries=1)`; nothing may be sent after its end."""
    from driving import ask, opened
    from fakes import ListSource
    from waiting import until

    async def driver(prompts: Sequence[Any], **block: Any) -> Result:
        sampling = block.pop("sampling", None)
        async with opened(block.pop("base_url", upstream.url), **block) as backend:
            source = None if sampling is None else ListSource(prompts, sampling)
            result = await ask(backend, prompts, source=source)
            sent = len(upstream.seen)
            await until(lambda: upstream.in_flight == 0)
        assert len(upstream.seen) == sent, "something was sent after the run had returned"
        return result

    return driver


class Serve(Protocol):
    """Starts a server in front of `upstream`; `block` lies over openai's settings, `top` over the top level."""

    def __call__(self, *, top: Mapping[str, Any] | None = None, **block: Any) -> AbstractAsyncContextManager[Talk]: ...


@pytest.fixture
def serve(upstream: Upstream) -> Serve:
    """Start a server and talk to it: `async with serve(retries=1) as talk: …`."""
    from fakes import openai_configuration
    from promptmill.config.configuration import Configuration
    from talk import serving

    def server(*, top: Mapping[str, Any] | None = None, **block: Any) -> AbstractAsyncContextManager[Talk]:
        configuration = openai_configuration(**{"base_url": upstream.url} | block)
        return serving(Configuration({**configuration._raw, **(top or {})}))

    return server


@pytest.fixture(params=["auto", "legacy"])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test of access with clients of both protocols; return their `mode`.

    `auto` is 2026-07-28, which has no sessions, `legacy` is 2025-11-25. This holds for FastMCP's clients and for
    `server.session()`.
    """
    from fastmcp import Client

    import served

    mode: str = request.param
    monkeypatch.setattr(Client, "__init__", partialmethod(Client.__init__, mode=mode))
    monkeypatch.setattr(served.Asked, "version", served.VERSION if mode == "legacy" else served.SESSIONLESS)
    return mode


@pytest.fixture
async def talk(serve: Serve) -> AsyncIterator[Talk]:
    """A client of one server with the usual settings: `await talk("generate", …)`."""
    async with serve() as talk:
        yield talk
