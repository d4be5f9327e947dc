"""What a start of the command line imports."""

import subprocess
import sys

import pytest

from promptmill.cli.main import commands

_HEAVY = ("pydantic", "jinja2", "asyncio", "promptmill.core.request", "promptmill.jobs")
_LIGHT = ("bulk", "compare", "features", "generate", "improve", "init", "jobs", "models", "review", "topics")


@pytest.mark.parametrize("command", [command.name for command in commands() if command.name in _LIGHT])
def test_the_help_of_a_command_does_not_import_what_runs_it(command):
    script = f"import sys\nfrom promptmill.cli.main import parser_of\nparser_of([{command!r}])\n"
    script += f"print([name for name in {_HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_list_of_jobs_does_not_import_what_runs_a_job():
    script = "import sys, promptmill.cli.jobs\nprint('promptmill.jobs.door' in sys.modules, 'jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
