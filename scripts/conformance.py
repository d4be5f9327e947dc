"""The official conformance suite of MCP (npm) against promptmill's HTTP layer and against promptmill itself.

    scripts/conformance             # fails where a result is not the expected one
    scripts/conformance --write     # writes what was found as what is expected

The layer is tested with a server under it that has all that the suite looks for (tests/clients/everything.py), and
promptmill's tasks: the suite's long tools are calls of `generate`. promptmill itself has other tools, so that scenarios
which call the suite's own are expected to fail. What is expected lies in tests/clients/conformance.json: per target,
revision of the protocol and scenario the checks that do not succeed.

Checks of tasks that do not apply to us, with any tools: a task that asks its client something (`tasks-mrtr-input`; our
questions come before the task), one with the status `failed` (our tools report every error as a result), and a tool
that only clients with tasks can call (`tasks-required-task-error`). The suite skips `tasks-status-notifications`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIENTS = ROOT / "tests" / "clients"
sys.path.insert(0, str(ROOT / "tests" / "support"))

from replies import answer, choose, late, status  # noqa: E402 (found by the line above)
from served import Served  # noqa: E402
from server_process import written  # noqa: E402
from upstream import Reply, Seen, Upstream  # noqa: E402

EXPECTED = CLIENTS / "conformance.json"
SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
NODE = "node@22.23.3"  # the suite needs Node 22; npm has it as a package
REVISIONS = ("2025-11-25", "2026-07-28")
_FOLDER = re.compile(r"server-(.+?)-\d{4}-\d\d-\d\dT.*")
_GOOD = frozenset({"SUCCESS", "INFO"})
Checks = dict[str, list[str]]


def suite() -> list[str]:
    """Return the command of the suite, installed on the first use."""
    folder = ROOT / ".venv-clients" / "conformance"
    if not (folder / "done").exists():
        npm = shutil.which("npm")
        if npm is None:
            sys.exit("conformance: npm is not installed here")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}\n')
        subprocess.run([npm, "install", "--no-audit", "--no-fund", SUITE, NODE], cwd=folder, check=True)
        (folder / "done").touch()
    modules = folder / "node_modules"
    return [str(modules / "node" / "bin" / "node"), str(modules / "@modelcontextprotocol/conformance/dist/index.js")]


@contextlib.contextmanager
def everything() -> Iterator[str]:
    """Serve what the suite looks for under promptmill's HTTP layer; yields the URL."""
    with Upstream() as up, tempfile.TemporaryDirectory() as folder:
        up.reply = choose(_as_long_as_the_prompt_says)
        command, environ = [sys.executable, str(CLIENTS / "everything.py"), up.url], {"PROMPTMILL_STATE": folder}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environ
        ) as process:
            assert process.stdout is not None
            yield process.stdout.readline().strip()


def _as_long_as_the_prompt_says(seen: Seen) -> Reply:
    """Answer a prompt that ends with a number of seconds after these; the prompt of `failing_job` is refused."""
    label, _, seconds = seen.prompt.rpartition(" ")
    return late(float(seconds), status(400, "It fails.") if label == "fail" else answer())


@contextlib.contextmanager
def product() -> Iterator[str]:
    """Serve promptmill itself before an endpoint of this machine; yields the URL."""
    with Upstream() as up, tempfile.TemporaryDirectory() as folder, Served(written(Path(folder), up.url)) as served:
        yield served.url


def failing(url: str, revision: str) -> tuple[Checks, int, int]:
    """Return the checks of each scenario of `revision` that do not succeed at `url`, and how many do of how many."""
    environ = dict(os.environ) | {"NO_COLOR": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [*suite(), "server", "--url", url, "--requirements", revision, "--output-dir", folder]
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False
        )
        found = {file.parent.name: json.loads(file.read_bytes()) for file in Path(folder).glob("*/checks.json")}
    if not found:
        sys.exit(f"conformance: the suite did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    bad: Checks = {}
    for name, checks in sorted(found.items()):
        scenario = _FOLDER.sub(r"\1", name)
        if wrong := sorted(f"{check['id']}: {check['status']}" for check in checks if check["status"] not in _GOOD):
            bad[scenario] = wrong
    total = sum(map(len, found.values()))
    return bad, total - sum(map(len, bad.values())), total


def difference(found: Checks, expected: Checks) -> Checks:
    """Return the checks of `found`, by scenario, that are not in `expected`; an id can occur more than once."""
    more = {name: Counter(checks) - Counter(expected.get(name, ())) for name, checks in found.items()}
    return {name: sorted(checks.elements()) for name, checks in more.items() if checks}


def main() -> int:
    """Run the suite; return 1 where a result is not the expected one."""
    parser = argparse.ArgumentParser("conformance", description="Run MCP's conformance suite against promptmill.")
    parser.add_argument("--write", action="store_true", help="write what is found as what is expected")
    arguments = parser.parse_args()
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    found: dict[str, dict[str, Checks]] = {}
    for name, target in (("layer", everything), ("promptmill", product)):
        with target() as url:
            for revision in REVISIONS:
                fails, passed, checks = failing(url, revision)
                found.setdefault(name, {})[revision] = fails
                print(f"{name}, {revision}: {passed} of {checks} checks passed", flush=True)
    if arguments.write:
        EXPECTED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    if found == expected:
        return 0
    for name, revisions in found.items():
        for revision, now in revisions.items():
            before = expected.get(name, {}).get(revision, {})
            for what, these in (("new", difference(now, before)), ("gone", difference(before, now))):
                for scenario, ids in these.items():
                    print(f"{name}, {revision}, {scenario}: {what}: {', '.join(ids)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
