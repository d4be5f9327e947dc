"""What every test stands on: a sealed environment, an event loop, and loopback endpoints.

Fixtures: `upstream` (one `Upstream`), `upstreams` (a maker of more, also with TLS), `run` (runs a coroutine). The
modules in `support/`, such as `upstream`, `replies` and `fakes`, can be imported by name from every test.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))  # before the first import from this folder

from upstream import Upstream

try:
    import uvloop
except ImportError:
    _EventLoop: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
else:
    _EventLoop = uvloop.Loop

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

T = TypeVar("T")
_LOCAL_NAMES = {"localhost", "", None}
_FOREIGN = ("_API_KEY", "_proxy", "_PROXY", "_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


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


class SealedLoop(_EventLoop):  # type: ignore[misc, valid-type]
    """An event loop that knows no other machine; uvloop connects and looks up names below Python's socket module."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        _check_name(host)
        return await super().getaddrinfo(host, port, **options)

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        if host is not None:
            _check_name(host)
            _check_address((host, port))
        return await super().create_connection(factory, host, port, **options)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> LoadScopeScheduling:
    """Keep the tests of a module in one process, and all those of engines: there torch is imported once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "engines" if nodeid.startswith("tests/backends/engines/") else str(super()._split_scope(nodeid))

    return ByModule(config, log)


@pytest.fixture(autouse=True)
def _sealed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxies, keys, certificates or configuration from outside, and no sockets to other machines."""
    for name in list(os.environ):
        if name.endswith(_FOREIGN) or name.startswith("PROMPTMILL_"):
            monkeypatch.delenv(name)
    for folder in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):  # the cache stays: the converted model lies there
        monkeypatch.setenv(folder, str(tmp_path / folder.lower()))
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


class Run(Protocol):
    """Runs a coroutine on a fresh event loop and returns its result; `timeout_s` is for tests that hang."""

    def __call__(self, work: Coroutine[Any, Any, T], timeout_s: float = 60) -> T: ...


@pytest.fixture
def run() -> Run:
    """Run a coroutine; afterwards no task that it started may be left."""

    def runner(work: Coroutine[Any, Any, T], timeout_s: float = 60) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(timeout_s):
                result = await work
            await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"left running: {left}"
            return result

        with asyncio.Runner(loop_factory=SealedLoop) as loop:
            return loop.run(bounded())

    return runner


@pytest.fixture
def upstreams(tmp_path: Path) -> Iterator[Callable[..., Upstream]]:
    """Make endpoints: `upstreams()`, `upstreams(reply)`, `upstreams(tls=True)`. They end with the test."""
    with ExitStack() as stack:

        def start(reply: Any = None, *, tls: bool = False) -> Upstream:
            return stack.enter_context(Upstream(reply, tls=tmp_path if tls else None))

        yield start


@pytest.fixture
def upstream(upstreams: Callable[..., Upstream]) -> Upstream:
    """One endpoint."""
    return upstreams()
