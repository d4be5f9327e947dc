"""A bench for file jobs: a folder, an endpoint, and the command line as a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fastmcp import Client

import half_done
import killed
from fakes import KEY, openai_configuration
from forked import started
from ingested import Ingested
from promptmill.backends.protocol import Outcome
from promptmill.cli import main as cli
from promptmill.jobs.store import status
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.records import Record
from promptmill.server import create_server
from promptmill.service.service import Service
from replies import answer, late
from upstream import Upstream

Call = Callable[..., Awaitable[dict[str, Any]]]
QUICK = {"base_delay": 0.01, "max_delay": 0.1, "retries": 3, "timeout": [30, 60], "patience": 2, "concurrency": 32}


class Bench:
    """One input, one output, one endpoint."""

    def __init__(self, path: Path, upstream: Upstream) -> None:
        self.path = path
        self.upstream = upstream
        self.input = path / "in.jsonl"
        self.output = path / "out.jsonl"
        self._started: list[subprocess.Popen[str]] = []
        self.settings: dict[str, Any] = {"model_name": "test-model", "api_key": KEY, **QUICK}

    def write(self, rows: Sequence[Any], name: str = "in.jsonl") -> Path:
        """Write JSON rows (or lines given as text) as the input."""
        self.input = self.path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.input.write_text("\n".join(lines) + "\n")
        return self.input

    def prompts(self, n: int) -> list[dict[str, Any]]:
        """Write and return `n` plain rows."""
        rows = [{"id": f"r{at}", "prompt": f"prompt {at}"} for at in range(n)]
        self.write(rows)
        return rows

    def command(self, *arguments: str, command: str = "bulk", **block: Any) -> list[str]:
        """Return the command line, `block` over the endpoint's settings."""
        config = self.path / "config.yaml"
        settings = {"base_url": self.upstream.url, **self.settings, **block}
        config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": settings}}))
        files = [str(self.input), str(self.output)] if command == "bulk" else []
        return [sys.executable, "-m", "promptmill", command, *files, "--config", str(config), *arguments]

    def start(
        self, *arguments: str, killed_at: str = "", preexec_fn: Any = None, **block: Any
    ) -> subprocess.Popen[str]:
        """Start `promptmill bulk`; `killed_at` is a point where it ends itself with SIGKILL."""
        python, *command = self.command(*arguments, **block)
        process = started(
            [python, killed.__file__, killed_at, *command[2:]] if killed_at else [python, *command],
            cwd=self.path,
            preexec_fn=preexec_fn,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(
        self, *arguments: str, killed_at: str = "", preexec_fn: Any = None, apart: bool = False, **block: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `promptmill bulk` to its end: in this process, where a start takes no time, unless it needs its own."""
        if not killed_at and preexec_fn is None and not apart:
            return self.here(self.command(*arguments, **block))
        process = self.start(*arguments, killed_at=killed_at, preexec_fn=preexec_fn, **block)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def half_done(self, outcomes: Mapping[int, Outcome], *arguments: str, **block: Any) -> None:
        """Begin the job, and leave it as a run that was killed when it had these outcomes."""
        with mock.patch("promptmill.cli.bulk.run", half_done.leaving(outcomes)):
            done = self.run(*arguments, **block)
        assert done.returncode == 0, done.stderr

    def jobs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `promptmill jobs` in this process."""
        return self.here(self.command(*arguments, command="jobs"))

    def here(self, command: list[str], folder: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command line of promptmill's in this process, in `folder` and with these variables set."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        told = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with contextlib.chdir(folder or self.path), mock.patch.dict(os.environ, environ), told[0], told[1]:
            try:
                code = cli.main(command[command.index("promptmill") + 1 :])
            except SystemExit as stopped:
                code = int(stopped.code or 0)
        said = [written.buffer.getvalue().decode() for written in (out, err)]
        return subprocess.CompletedProcess(command, code, *said)

    def succeed(self, *arguments: str, **options: Any) -> dict[str, Any]:
        """Run to the end and return the summary; every row must be answered."""
        result = self.run(*arguments, "--json", **options)
        assert result.returncode == 0, result.stderr + result.stdout
        found: dict[str, Any] = json.loads(result.stdout)
        assert found["state"] == "finished"
        return found

    def fail(self, *arguments: str, code: int = 2, **options: Any) -> str:
        """Run, expect this exit code, and return what was said."""
        result = self.run(*arguments, **options)
        assert result.returncode == code, (result.returncode, result.stderr, result.stdout)
        return result.stderr + result.stdout

    @property
    def folder(self) -> Folder:
        """The job's folder."""
        return JobFolders.from_environ().of(self.output.resolve())

    def records(self) -> list[Record]:
        """The sound records in the job's database."""
        if self.folder.spec is None:
            return []
        with self.folder.reading() as store:
            return store.sound_records()

    def status(self) -> Any:
        """What anybody can read about the job."""
        return status.read(self.folder)

    def answers(self) -> list[dict[str, Any]]:
        """The output's rows."""
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def close(self) -> None:
        """End what was started."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobDatabase]:
    """An empty database."""
    database = JobDatabase(tmp_path / "job.db", write=True)
    yield database
    database.close()


@pytest.fixture
def bench(tmp_path: Path, upstream: Upstream) -> Iterator[Bench]:
    """A bench whose endpoint answers after 5 ms."""
    upstream.reply = late(0.005, answer())
    work = tmp_path / "work"
    work.mkdir()
    found = Bench(work, upstream)
    yield found
    found.close()


@pytest.fixture
def ingested(tmp_path: Path) -> Iterator[Callable[..., Ingested]]:
    """Make jobs without an endpoint, in `tmp_path`, of the files with these names."""
    with contextlib.ExitStack() as opened:
        yield lambda *given, **options: opened.enter_context(contextlib.closing(Ingested(tmp_path, *given, **options)))


@pytest.fixture
def tools(bench: Any, closing: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start a server and call its tools: `call(tool, **arguments)`; the working directory is the bench's."""
    monkeypatch.chdir(bench.path)

    @asynccontextmanager
    async def opened(service: Service | None = None, **options: Any) -> AsyncIterator[Call]:
        owned = closing(service or Service(openai_configuration(bench.upstream.url)))
        async with Client(create_server(owned), **options) as client:

            async def call(tool: str, **arguments: Any) -> dict[str, Any]:
                result = await client.call_tool(tool, arguments)
                found: dict[str, Any] = result.structured_content or {}
                if result.content and "client_info" not in options:  # `generation_init` returns nothing
                    assert json.loads(result.content[0].text) == found
                return found

            yield call

    return opened
