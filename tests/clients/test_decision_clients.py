"""Programs that ask models that decide, of pinned versions, each in a process of its own against a server over HTTP."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from likely_choices import by_choices
from served import TOKEN, Served
from server_process import written

DRIVER = Path(__file__).parent / "drivers" / "decisions.py"
pytestmark = [pytest.mark.clients, pytest.mark.features("decisions"), pytest.mark.timeout(600)]


def _run(command: list[Any], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    given = [str(part) for part in command]
    return subprocess.run(given, env=environ, capture_output=True, text=True, timeout=580, check=False)


def test_the_clients_of_both_apis_get_every_kind_of_answer(decisions, calm, tmp_path, upstream):
    upstream.reply = by_choices(
        {"yes": 0.75, "no": 0.25},
        {"billing": 0.625, "tech": 0.25, "sales": 0.125},
        {"today": 0.75, "can wait": 0.25},
    )
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    with Served(written(tmp_path, upstream.url), environ=environ) as server:
        done = _run([decisions, DRIVER, f"http://127.0.0.1:{server.port}/v1", TOKEN], calm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "sdk": [0.75, "billing", 0.75],
        "models": ["default"],
        "invalid": True,
        "langchain_openai": [0.75, "billing", 0.75],
        "langchain_typesafe": [0.75, "billing"],
    }


@pytest.mark.engine
@pytest.mark.parametrize("backend", ["encoder", "openvino"])
def test_a_server_conforms_to_the_suite_of_compatible_servers(decisions, calm, tmp_path, backend):
    pytest.importorskip({"encoder": "numpy", "openvino": "openvino_genai"}[backend])
    file = tmp_path / "promptmill.yaml"
    model = {} if backend == "encoder" else {"model_name_or_path": "smollm2-135m-instruct"}
    file.write_text(yaml.safe_dump({"backend": backend, "backend_configs": {backend: model}}))
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    if backend != "encoder":
        environ["PROMPTMILL_WITHOUT"] = "embeddings"  # or the encoder would answer for the engine's embedded model
    suite = [decisions.with_name("jevcompat"), "test"]
    with Served(file, environ=environ) as server:
        address = f"http://127.0.0.1:{server.port}"
        done = _run([*suite, address, "--key-env", "MILL_TOKEN", "--timeout", 120], calm | {"MILL_TOKEN": TOKEN})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
