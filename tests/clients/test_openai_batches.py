"""Programs that send batches to OpenAI's API, of pinned versions, each in a process of its own against a server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from openai_clients import client_of, servers
from served import TOKEN

DRIVER = Path(__file__).parent / "drivers" / "openai_batches.py"
pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "TELEMETRY_ENABLED": "0", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def answers(tmp_path, upstream, calm):
    """Return a function that runs a program and returns its answers; one batch has answered them."""
    with servers(tmp_path, upstream.url) as serve:
        server = serve()

        def run(python: Path, program: str) -> list[str]:
            environ = calm | QUIET | {"OPENAI_BASE_URL": server.url.replace("/mcp", "/v1"), "OPENAI_API_KEY": TOKEN}
            command = [str(python), str(DRIVER), program]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            (batch,) = client_of(server).batches.list()
            assert (batch.status, batch.request_counts.completed) == ("completed", 3)
            found: list[str] = json.loads(done.stdout.splitlines()[-1])
            return found

        yield run


@pytest.mark.parametrize("program", ["litellm", "inspect_ai", "inspect_ai-responses"])
def test_programs_get_the_answers_of_their_batches(openai_programs, answers, program):
    assert answers(openai_programs, program) == ["echo: hi 0", "echo: hi 1", "echo: hi 2"]


def test_curator_gets_the_answers_of_its_batch(curator, answers):
    assert answers(curator, "curator") == ["echo: hi 0", "echo: hi 1", "echo: hi 2"]
