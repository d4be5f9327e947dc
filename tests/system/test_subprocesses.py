"""Processes of our own modules, whatever ends them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from promptmill.system import frames
from promptmill.system.subprocesses import Child, Halt, Helper, group_exists


async def test_nothing_is_sent_to_a_process_whose_pipe_is_closed():
    child = await Child.start("promptmill.answers.checker", dict(os.environ))
    child.kill()
    await child.wait()
    assert await child.send(b"a frame") is False


def test_a_call_that_has_ended_gets_no_reply_and_ends_no_process_of_another_call():
    helper, halt = Helper("promptmill.answers.checker", 30.0), Halt()
    question = frames.packed({"schema": "{}", "text": "1", "complete": True})
    try:
        assert helper.ask(question, halt=halt) == {"problem": "", "repaired": None}
        process = helper.pid
        halt.set()
        assert helper.pid == process, "it answers no question of this call"
        assert helper.ask(question) == {"problem": "", "repaired": None}
        assert helper.ask(question, halt=halt) is None
        assert helper.pid == process
    finally:
        helper.end()


def test_a_child_whose_parent_was_killed_says_nothing():
    child = subprocess.Popen([sys.executable, "-m", "promptmill.answers.checker"], stdin=-1, stdout=-1, stderr=-1)
    child.stdout.close()  # type: ignore[union-attr]
    assert child.communicate()[1] == b""
    assert child.returncode == 0


_PARENT = """
from promptmill.files import format_table
from promptmill.files import documents
documents.text_of(format_table.whole("a.html"), b"x")
print(documents._HELPER.pid, flush=True)
part = b"--B\\nContent-Type: text/html\\n\\nx\\n"
documents.text_of(format_table.whole("a.eml"), b"Content-Type: multipart/mixed; boundary=B\\n\\n" + part * 200_000)
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows keeps the id of its parent")
def test_a_helper_that_computes_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        helper = int(parent.stdout.readline())
        parent.kill()
    while group_exists(helper):  # for a second, not for the minute of the mail
        time.sleep(0.05)
