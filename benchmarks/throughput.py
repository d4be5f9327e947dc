"""Requests per second and CPU per request, through the MCP tool in one call, beside the bare loop and packages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.client import ROOT, Server
from benchmarks.contestant import prompt
from benchmarks.field import HOW_TO_INSTALL, Contestant, Field, installed, timed_call
from benchmarks.measure import Row, interleaved, ratio

_LATENCY_TARGETS = {64: 1.0, 256: 1.0, 1024: 1.0}
_ROUNDS = 40
_NO_LATENCY = {8: 0.85, 64: 0.85, 256: 2.0}
_PROMPTS = 16_000
_WARM_UP = 2_000
# an answer of a package costs about 1 ms of CPU: so many take a second or two
_PACKAGE_PROMPTS = 600


class _Race:
    """Contestants on one upstream with one number in flight; `run` interleaves them."""

    def __init__(self, field: Field, url: str, in_flight: int) -> None:
        self._field, self._url, self._in_flight = field, url, in_flight
        self._stack = AsyncExitStack()
        self._racers: dict[str, tuple[Server | Contestant, int]] = {}

    async def __aenter__(self) -> _Race:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def enter(self, name: str, prompts: int) -> None:
        """Start and warm up a contestant that will answer `prompts` per round."""
        make = self._field.ours if name == "ours" else None
        racer = make(self._url, self._in_flight) if make else self._field.contestant(name, self._url, self._in_flight)
        self._racers[name] = await self._stack.enter_async_context(racer), prompts
        await self._one(name, min(prompts, max(_WARM_UP, 2 * self._in_flight)))

    async def run(self, rounds: int, *, connected: bool = False) -> dict[str, list[dict[str, float]]]:
        """Return what each contestant took, round by round: `rate` and `cpu_us` per request.

        `connected`: the connections are there before. Ours are closed after 4 s without a request, while the others
        have their turn, the bare loop's after 15.
        """
        found: dict[str, list[dict[str, float]]] = {name: [] for name in self._racers}
        for index in range(rounds):
            names = list(self._racers)
            for name in names if index % 2 == 0 else reversed(names):
                if connected:
                    await self._one(name, 2 * self._in_flight)
                found[name].append(await self._one(name, self._racers[name][1]))
        return found

    async def _one(self, name: str, prompts: int) -> dict[str, float]:
        racer = self._racers[name][0]
        if isinstance(racer, Server):
            took = await timed_call(racer, "generate", prompt_ls=[prompt(index) for index in range(prompts)])
        else:
            took = await racer.work(prompts=prompts, in_flight=self._in_flight)
        if took["answers"] != prompts:
            raise RuntimeError(f"{name} answered {took['answers']} of {prompts}")
        return {"rate": prompts / took["seconds"], "cpu_us": took["cpu_s"] / prompts * 1e6}


def _column(found: dict[str, list[dict[str, float]]], name: str, key: str) -> list[float]:
    return [took[key] for took in found[name]]


def _against_bare(case: str, what: str, found: dict[str, list[dict[str, float]]], target: float) -> Row:
    ours, bare = _column(found, "ours", "rate"), _column(found, "bare", "rate")
    value, spread = ratio(ours, bare)
    detail = f"{statistics.median(ours):,.0f} / {statistics.median(bare):,.0f} requests/s"
    return Row(case, what, value, target, ">=", spread=spread, detail=detail, raw=dict(found))


async def latency(field: Field, pairs: int) -> list[Row]:
    """An upstream that takes 50 ms."""
    rows = []
    for in_flight, target in _LATENCY_TARGETS.items():
        async with _Race(field, field.slow, in_flight) as race:
            for name in ("ours", "bare"):
                await race.enter(name, _ROUNDS * in_flight)
            rows.append(_against_bare("latency", f"50 ms, {in_flight} in flight", await race.run(pairs), target))
    return rows


async def cpu(field: Field, pairs: int) -> list[Row]:
    """An upstream that answers at once, so that all is the client's CPU."""
    rows = []
    for in_flight, target in _NO_LATENCY.items():
        async with _Race(field, field.fast, in_flight) as race:
            for name in ("ours", "bare"):
                await race.enter(name, _PROMPTS)
            packages = [name for name in ("openai", "litellm") if in_flight == 256 and installed(name)]
            for name in packages:
                await race.enter(name, _PACKAGE_PROMPTS)
            found = await race.run(pairs)
        rows.append(_against_bare("cpu", f"no latency, {in_flight} in flight", found, target))
        if in_flight == 256:
            rows += _cpu_rows(found)
    return rows


async def tls(field: Field, pairs: int) -> list[Row]:
    """Over TLS, with an upstream that answers at once, so that all is the client's CPU."""
    with tempfile.TemporaryDirectory() as folder, _certificate(Path(folder)) as file:
        command = [sys.executable, "-m", "benchmarks.upstream", "--tls", str(file)]
        command += [] if field.outer is None else ["--core", str(field.outer)]
        upstream = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
        try:
            assert upstream.stdout is not None
            port = (await upstream.stdout.readline()).split()[2].decode()
            async with _Race(field, f"https://localhost:{port}/v1", 256) as race:
                for name in ("ours", "bare"):
                    await race.enter(name, _PROMPTS)
                found = await race.run(pairs, connected=True)
        finally:
            upstream.kill()
            await upstream.wait()
    ours, bare = _column(found, "ours", "cpu_us"), _column(found, "bare", "cpu_us")
    value, spread = ratio(ours, bare)
    detail = f"{statistics.median(ours):.0f} / {statistics.median(bare):.0f} µs"
    what = "CPU per request over TLS / bare"  # the rate may be bounded by the upstream, which is Python, too
    return [
        _against_bare("tls", "TLS, no latency, 256 in flight", found, 1.5),
        Row("tls", what, value, 1 / 1.5, spread=spread, detail=detail),
    ]


@contextlib.contextmanager
def _certificate(folder: Path) -> Iterator[Path]:
    """Give a file with a certificate for localhost and its key; what is started meanwhile trusts it."""
    file = folder / "upstream.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    create = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject)
    subprocess.run([*create, "-keyout", file, "-out", file.with_suffix(".crt")], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(file.with_suffix(".crt"))
    try:
        yield file
    finally:
        if before is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = before


async def bursts(field: Field, pairs: int) -> list[Row]:
    """A call of 5,000 prompts to a server that has just started, beside the bare loop: 50 ms, 256 in flight."""
    prompts, in_flight = 5_000, 256

    async def ours() -> float:
        async with field.ours(field.slow, in_flight) as server:
            await timed_call(server, "generate", prompt_ls=[prompt(0)])  # it has loaded, and knows no window yet
            took = await timed_call(server, "generate", prompt_ls=[prompt(index) for index in range(prompts)])
        assert took["answers"] == prompts
        return prompts / took["seconds"]

    async def bare() -> float:
        async with field.contestant("bare", field.slow, in_flight) as contestant:
            await contestant.work(prompts=1, in_flight=1)
            return prompts / (await contestant.work(prompts=prompts, in_flight=in_flight))["seconds"]

    found = await interleaved(pairs, ours=ours, bare=bare)
    value, spread = ratio(found["ours"], found["bare"])
    detail = f"{statistics.median(found['ours']):,.0f} / {statistics.median(found['bare']):,.0f} requests/s"
    what = "5,000 prompts, 50 ms, 256 in flight"
    return [Row("bursts", what, value, 0.9, ">=", spread=spread, detail=detail, raw=found)]


async def rise(field: Field, pairs: int) -> list[Row]:
    """Our rate at several numbers in flight, interleaved with each other, all CPU."""
    found: dict[int, list[dict[str, float]]] = {in_flight: [] for in_flight in _NO_LATENCY}
    async with AsyncExitStack() as stack:
        races = {}
        for in_flight in _NO_LATENCY:
            races[in_flight] = await stack.enter_async_context(_Race(field, field.fast, in_flight))
            await races[in_flight].enter("ours", _PROMPTS)
        for _ in range(pairs):
            for in_flight, race in races.items():
                found[in_flight] += (await race.run(1))["ours"]
    rates = {in_flight: [took["rate"] for took in each] for in_flight, each in found.items()}
    detail = ", ".join(f"{in_flight}: {statistics.median(each):,.0f}/s" for in_flight, each in rates.items())
    rows = []
    for more, fewer in ((64, 8), (256, 64)):
        value, spread = ratio(rates[more], rates[fewer])
        rows.append(Row("rise", f"rate at {more} / at {fewer} in flight", value, 1, ">=", spread=spread, detail=detail))
    return rows


def _cpu_rows(found: dict[str, list[dict[str, float]]]) -> list[Row]:
    ours = _column(found, "ours", "cpu_us")
    rows = [Row("cpu", "CPU per request, 256 in flight", statistics.median(ours), 25, unit="µs")]
    for name, target in (("bare", 1.25), ("openai", 1 / 7), ("litellm", None)):
        what = f"CPU per request, 256 in flight, / {name}"
        if name not in found:
            rows.append(Row("cpu", what, float("nan"), None, detail=HOW_TO_INSTALL))
            continue
        theirs = _column(found, name, "cpu_us")
        value, spread = ratio(ours, theirs)
        detail = f"{statistics.median(ours):.0f} / {statistics.median(theirs):.0f} µs"
        rows.append(Row("cpu", what, value, target, spread=spread, detail=detail))
    return rows


async def curve(field: Field, pairs: int) -> list[Row]:
    """Requests per second over requests in flight for all contestants on the 50 ms upstream: the plot's points."""
    rows = []
    names = ["ours", "bare", *(name for name in ("openai", "litellm") if installed(name))]
    for in_flight in (1, 8, 64, 256, 1024):
        async with _Race(field, field.slow, in_flight) as race:
            for name in names:
                rounds = 20 if name in {"ours", "bare"} else max(2, min(20, 1000 // in_flight))
                await race.enter(name, in_flight * rounds)
            found = await race.run(min(pairs, 3))
        for name in names:
            rate = statistics.median(_column(found, name, "rate"))
            what = f"{name}, {in_flight} in flight"
            rows.append(Row("curve", what, rate, unit="/s", raw={"name": name, "in_flight": in_flight, "rate": rate}))
    return rows
