"""What is said to whoever lacks an extra can be run where promptmill was installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from promptmill.system import installation
from promptmill.system.installation import command_for, command_into

ROOT = Path(__file__).parents[2]


def test_a_checkout_is_extended_by_its_path():
    command = command_for("files")
    assert command.endswith(f"-m pip install -e '{ROOT}[files]'")
    assert command.startswith(str(Path(sys.prefix)))


@pytest.mark.parametrize(
    ("receipt", "command"),
    [
        ("uv-receipt.toml", "uv tool install --reinstall 'promptmill[hf]'"),
        ("pipx_metadata.json", "pipx install --force 'promptmill[hf]'"),
    ],
)
def test_tools_are_extended_by_what_made_them(tmp_path, receipt, command):
    (tmp_path / receipt).touch()
    assert command_for("hf", prefix=tmp_path, source=("promptmill", False)) == command


def test_an_environment_without_pip_is_extended_with_uv(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert command_for("cpu", prefix=tmp_path, source=("promptmill", False)).startswith("uv pip install --python ")


def test_what_came_from_a_repository_comes_from_there_again(tmp_path):
    command = command_for("hf", prefix=tmp_path, source=("promptmill @ git+https://example.com/x", False))
    assert command.endswith("'promptmill[hf] @ git+https://example.com/x'")


def test_a_file_that_is_gone_is_not_named(monkeypatch):
    class Gone:
        def read_text(self, _: str) -> str:
            return '{"url": "file:///gone/promptmill-0.1.0.whl"}'

    monkeypatch.setattr("importlib.metadata.distribution", lambda _: Gone())
    installation._source.cache_clear()
    try:
        assert "'promptmill[hf]'" in command_for("hf")
    finally:
        installation._source.cache_clear()


@pytest.mark.parametrize(
    ("has_pip", "words"), [(True, "--platform manylinux2014"), (False, "--python-platform x86_64")]
)
def test_the_data_of_a_wheel_for_linux_are_for_every_system(tmp_path, monkeypatch, has_pip, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "pip" and has_pip else None)
    monkeypatch.setattr(installation, "_uv", lambda: "uv")
    assert words in " ".join(command_into(tmp_path, "x", of_linux=True) or ())
    assert "platform" not in " ".join(command_into(tmp_path, "x") or ())


# What FastMCP's whole package brings and the base install leaves out.
LEFT_OUT = ("authlib", "cyclopts", "jsonref", "jsonschema_path", "keyring", "openapi_pydantic", "pyperclip",
            "watchfiles", "websockets")  # fmt: skip


@pytest.mark.thorough
def test_the_server_answers_with_what_the_base_install_brings(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nclass Gone:\n    def find_spec(self, name, *_):\n        if name.split('.')[0] in {LEFT_OUT}:\n"
        "            raise ModuleNotFoundError(name)\nsys.meta_path.insert(0, Gone())\n"
    )
    command = [sys.executable, "-m", "promptmill", "serve", "--backend", "openai"]
    messages = [
        (
            '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
            '"clientInfo":{"name":"x","version":"1"}}}'
        ),
        '{"jsonrpc":"2.0","method":"notifications/initialized"}',
        '{"jsonrpc":"2.0","id":2,"method":"resources/list"}',
        '{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"generate","arguments":{"prompt_ls":[]}}}',
    ]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}", "PATH": ""}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=tmp_path, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for message in messages:
            server.stdin.write(message + "\n")
            server.stdin.flush()
        answers = {}
        while len(answers) < 3:
            line = server.stdout.readline()
            assert line, "it ended"
            number = json.loads(line)
            answers[number["id"]] = number
        server.stdin.close()
    assert not any("error" in answer for answer in answers.values()), answers
    assert answers[3]["result"]["structuredContent"] == {"ans_ls": []}
