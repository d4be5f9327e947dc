"""What a terminal shows was written by others, and commands nothing."""

import json
import os
import select
import subprocess
import sys
import time

import pytest

from forked import started
from promptmill.cli.terminal import say
from replies import answer, status
from waiting import PATIENCE_S

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe\rgone"


@pytest.mark.rule("E7")
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize("what", ["answer", "error"])
def test_on_a_terminal_nothing_of_an_answer_or_error_is_a_command(upstream, tmp_path, what):
    import pty

    upstream.reply = answer(EVIL) if what == "answer" else status(400, EVIL)
    config = tmp_path / "config.json"
    block = {"base_url": upstream.url, "model_name": "m", "retries": 1}
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "promptmill", "generate", "x", "--config", str(config)]
    process = started(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.STDOUT, env={**os.environ, "TERM": "dumb"}
    )
    os.close(theirs)
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux: the other side is closed
                piece = b""
            if not piece:
                break
            shown += piece
    process.wait(PATIENCE_S)
    os.close(ours)
    text = shown.decode()
    assert "owned" in text
    assert "gone" in text
    assert "\x1b]" not in text
    assert not set(text) & set("\x07\x9b\u202e")
    assert "\x1b[2J" not in text


@pytest.mark.rule("E7")
def test_a_program_gets_the_answer_byte_for_byte(capsys):
    say(EVIL)
    assert capsys.readouterr().out == EVIL + "\n"
