"""What Tab completes, asked of the shells themselves where they are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from promptmill.cli.main import parser_of
from promptmill.features.completion.command import SHELLS, script

BASH = (
    'source ./script; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _shtab_promptmill; echo "${COMPREPLY[@]}"'
)
FISH = 'source ./script; complete -C "$argv[1]"'
ASKED = {"bash": ["bash", "-c", BASH, "-"], "fish": ["fish", "--no-config", "-c", FISH]}
ZSHRC = """PS1="ready> "; autoload -U compinit; compinit -u -D; eval "$(<script)"
report() { print -r -- "<<$BUFFER>>" }; zle -N report; bindkey '^X' report
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "parts").mkdir()
    models = "models:\n  fast: {backend: hf}\n  slow: {backend: hf}\n"
    (tmp_path / "parameter.yaml").write_text(models)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    return tmp_path


def completed(shell: str, folder: Path, words: str) -> str:
    """Return the last word after Tab."""
    if shell != "zsh":
        done = subprocess.run([*ASKED[shell], words], cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.split("\t")[0].strip() or done.stderr
    import pty  # zsh completes only on a terminal, which Windows lacks

    (folder / ".zshrc").write_text(ZSHRC)
    ours, theirs = pty.openpty()
    environ = {**os.environ, "ZDOTDIR": str(folder), "TERM": "xterm"}
    command = ["zsh", "-i"]
    with subprocess.Popen(command, cwd=folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        for wanted, then in ((b"ready> ", f"{words}\t\x18".encode()), (b">>", b"")):
            while wanted not in shown:
                shown += os.read(ours, 4096)
            os.write(ours, then)
        process.kill()
    os.close(ours)
    return shown.decode().rpartition("<<")[2].partition(">>")[0].split()[-1]


@pytest.mark.thorough
@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
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
def test_tab_completes(folder, upstream, shell, words, expected):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    (folder / "script").write_text(script(parser_of(), shell))
    assert completed(shell, folder, words.replace("URL", upstream.url)).rstrip("/") == expected.rstrip("/")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell):
    written = script(parser_of(), shell)
    assert "promptmill" in written
    if shell == "zsh" and shutil.which(shell):
        assert subprocess.run(["zsh", "-n"], input=written, text=True, check=False).returncode == 0
