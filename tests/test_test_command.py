"""The test command itself: limits, a stuck run, the second run of a failed test, and the time of heavy tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from heavy import nearness, ordered

ROOT = Path(__file__).parents[1]
CONFTEST = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
import heavy, second_run, watchdog
from xdist.workermanage import NodeManager
NodeManager.EXIT_TIMEOUT = 0.1
def pytest_configure(config):
    watchdog.watch(config, idle_s=60, running_s=RUNNING_S)
    second_run.repeat_failures(config)
    heavy.order(config)
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
BESIDE_OTHERS = """
def test_once(tmp_path_factory):
    file = pathlib.Path(__file__).with_suffix(".ran")
    assert file.exists() or file.touch()
"""
ALWAYS = """
def test_always(): assert False
"""


@pytest.fixture
def run(tmp_path):
    """Run this text as a module of tests in two processes, with a limit; return what it printed."""

    def printed(text, code, *, limit_s=60, running_s=60, dist="worksteal", others=(), **environ):
        (tmp_path / "conftest.py").write_text(CONFTEST.replace("RUNNING_S", str(running_s)))
        module = f"import asyncio, os, pathlib, pytest, re, signal, threading\n{text}\n"
        fine = "@pytest.mark.parametrize('n', range(5))\ndef test_fine(n): pass\n"
        (tmp_path / "test_it.py").write_text(module + fine)
        for name in others:
            (tmp_path / name).write_text(module + fine)
        options = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-n", "2", "--dist", dist]
        command = [sys.executable, "-m", "pytest", *options, tmp_path]
        environ = os.environ | {"PYTEST_TIMEOUT": str(limit_s)} | environ
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    return printed


@pytest.mark.thorough
def test_a_limit_fails_one_test_and_prints_its_name_at_once(run):
    said = run(HANGS, code=1, limit_s=2)
    failed = re.findall(r"^FAILED test_it.py::(\w+)", said.partition("= FAILURES =")[0], re.MULTILINE)
    assert set(failed) == set(re.findall(r"(?<=def )test_\w+", HANGS))
    assert re.search(r"^\d failed, 5 passed", said, re.MULTILINE)


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be stopped there")
def test_a_stuck_run_prints_what_it_waits_for_and_ends_with_an_error(run):
    said = run(STOPS, code=2, running_s=2)
    assert "The run is stuck. It waits for:\n  test_it.py::test_stops\n" in said


@pytest.mark.thorough
def test_a_test_that_fails_beside_others_and_passes_alone_is_named_and_fails_no_run(run):
    last = run(BESIDE_OTHERS, code=0).splitlines()[-1]
    assert last == "1 test failed beside others and passed alone: test_it.py::test_once"


@pytest.mark.thorough
def test_a_test_that_fails_again_fails_the_run(run):
    said = run(BESIDE_OTHERS + ALWAYS, code=1)
    assert "2 tests failed beside others; once more, alone:" in said
    assert said.splitlines()[-1] == "2 tests failed beside others, and not all of them passed alone: see above."


@pytest.mark.thorough
def test_a_module_that_cannot_be_read_fails_the_run(run):
    assert "once more" not in run("1 / 0", code=1)


@pytest.mark.thorough
def test_tests_that_are_left_out_for_time_are_named(run):
    assert "The time is up: 6 tests were left out:\n  test_it.py (6)" in run(ALWAYS, code=0, PROMPTMILL_TEST_UNTIL="1")
    assert "5 passed" in run("", code=0, PROMPTMILL_TEST_UNTIL="9999999999")


@pytest.mark.thorough
def test_what_a_process_that_ends_itself_had_left_runs_once(run):
    ends = "if n == 1 and pathlib.Path(__file__).name == 'test_5.py': os._exit(3)"
    text = f"@pytest.mark.parametrize('n', range(4))\ndef test_ends(n):\n    {ends}\n"
    others = [f"test_{number}.py" for number in range(6)]
    said = run(text, code=1, dist="loadfile", others=others, PROMPTMILL_TEST_UNTIL="9999999999")
    assert re.search(r"^1 failed, 62 passed", said, re.MULTILINE)


def test_tests_of_the_room_that_changed_are_the_nearest():
    changed = ["src/promptmill/backends/openai/reply.py", "tests/jobs/test_cells.py", "README.md"]
    modules = ["tests/backends/openai/test_reply.py", "tests/backends/engines/test_desk.py", "tests/jobs/test_x.py"]
    assert [nearness(module, changed) for module in modules] == [2, 1, 1]
    assert nearness("tests/jobs/test_cells.py", changed) == 2, "a changed test"
    assert nearness("tests/http/test_app.py", changed) == 0
    assert nearness("tests/test_patterns.py", changed) > 2, "it is about every file"


@pytest.mark.parametrize("first", [0, 3129])
def test_within_four_commits_each_module_is_in_the_first_third_of_a_run(first):
    modules = [f"tests/{room}/test_{number}.py" for room in ("jobs", "server") for number in range(80)]
    changed = ["src/promptmill/jobs/door.py"]
    third = len(modules) // 3 + 1

    ran = {module for turn in range(first, first + 4) for module in ordered(modules, changed, turn)[:third]}

    assert ran == {*modules}


def test_the_nearest_modules_run_before_those_whose_turn_it_is_and_the_rest_after_them():
    modules = [f"tests/{room}/test_{number}.py" for room in ("jobs", "server") for number in range(24)]
    modules.append("tests/test_patterns.py")
    nearest = {"tests/test_patterns.py"} | {module for module in modules if "/jobs/" in module}

    changed = ["src/promptmill/jobs/door.py"]
    order = ordered(modules, changed, 1)
    rest = [module in nearest for module in order[4 + 12 :]]

    assert sorted(order) == sorted(modules)
    assert order[0] == "tests/test_patterns.py"
    assert {*order[:4]} <= nearest
    assert rest == sorted(rest, reverse=True)
    assert order == ordered(reversed(modules), changed, 5), "the fifth commit has the turn of the first"


def test_a_module_that_is_added_changes_the_turn_of_few_others():
    modules = [f"tests/jobs/test_{number}.py" for number in range(120)]
    for turn in range(4):
        before, after = ({*ordered(known, [], turn)[:30]} for known in (modules, [*modules, "tests/jobs/test_new.py"]))
        assert len(before - after) <= 2
