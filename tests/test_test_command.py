"""The test command itself: a limit fails one test and not the run, and a stuck run ends."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough
ROOT = Path(__file__).parents[1]
CONFTEST = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
import watchdog
from xdist.workermanage import NodeManager
NodeManager.EXIT_TIMEOUT = 0.1
def pytest_configure(config):
    watchdog.watch(config, idle_s=60, running_s=RUNNING_S)
"""
HANGS = """
def test_c_code_that_holds_the_interpreter():
    re.match("(a+)+$", "a" * 30 + "b")  # a minute or two

async def test_an_event_loop():
    await asyncio.Event().wait()

@pytest.fixture
def lasting():
    yield
    threading.Event().wait()

def test_an_end_after_a_failure(lasting):
    assert False
"""
STOPS = """
def test_stops():
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def run(tmp_path):
    """Run this text as a module of tests in two processes, with a limit; return what it printed."""

    def printed(text, limit_s, running_s, code):
        (tmp_path / "conftest.py").write_text(CONFTEST.replace("RUNNING_S", str(running_s)))
        module = f"import asyncio, os, pytest, re, signal, threading\n{text}\n"
        fine = "@pytest.mark.parametrize('n', range(5))\ndef test_fine(n): pass\n"
        (tmp_path / "test_it.py").write_text(module + fine)
        options = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-n", "2", "--dist", "worksteal"]
        command = [sys.executable, "-m", "pytest", *options, "--timeout", str(limit_s), tmp_path]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout
        return done.stdout

    return printed


def test_a_limit_fails_one_test_and_prints_its_name_at_once(run):
    said = run(HANGS, limit_s=2, running_s=60, code=1)
    failed = re.findall(r"^FAILED test_it.py::(\w+)", said.partition("= FAILURES =")[0], re.MULTILINE)
    assert set(failed) == set(re.findall(r"(?<=def )test_\w+", HANGS))
    assert re.search(r"^\d failed, 5 passed", said, re.MULTILINE)


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be stopped there")
def test_a_stuck_run_prints_what_it_waits_for_and_ends_with_an_error(run):
    said = run(STOPS, limit_s=60, running_s=2, code=2)
    assert "The run is stuck. It waits for:\n  test_it.py::test_stops\n" in said
