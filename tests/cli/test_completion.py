"""What Tab completes, asked of the shells themselves where they are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from promptmill.cli.completion import SHELLS, script
from promptmill.cli.main import parser_of

BASH = (
    'source ./script; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _shtab_promptmill; echo "${COMPREPLY[@]}"'
)
FISH = 'source ./script; complete -C "$argv[1]"'
ASKED = [["bash", "-c", BASH, "-"], ["fish", "--no-config", "-c", FISH]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "parts").mkdir()
    models = "models:\n  fast: {backend: hf}\n  slow: {backend: hf}\n"
    (tmp_path / "parameter.yaml").write_text(models)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    return tmp_path


@pytest.mark.thorough
@pytest.mark.parametrize("command", ASKED, ids=["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("promptmill gen", "generate"),
        ("promptmill bulk pro", "prompts.jsonl"),
        ("promptmill bulk prompts.jsonl --state par", "parts/"),
        ("promptmill models --check --config para", "parameter.yaml"),
        ("promptmill models --check --backend openv", "openvino"),
        ("promptmill generate --provider olla", "ollama"),
        ("promptmill generate --model sl", "slow"),
        ("promptmill generate --base-url URL --model te", "test-model"),
        ("promptmill review pro", "prompts.jsonl"),
    ],
)
def test_tab_completes(folder, upstream, command, words, expected):
    shell, words = command[0], words.replace("URL", upstream.url)
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    (folder / "script").write_text(script(parser_of(), shell))
    done = subprocess.run([*command, words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.split("\t")[0].strip().rstrip("/") == expected.rstrip("/"), done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell):
    written = script(parser_of(), shell)
    assert "promptmill" in written
    if shell == "zsh" and shutil.which(shell):
        assert subprocess.run(["zsh", "-n"], input=written, text=True, check=False).returncode == 0
