"""Processes of our own modules, whatever ends them."""

from __future__ import annotations

import os

from promptmill.system.subprocesses import Child


async def test_nothing_is_sent_to_a_process_whose_pipe_is_closed():
    child = await Child.start("promptmill.answers.checker", dict(os.environ))
    child.kill()
    await child.wait()
    assert await child.send(b"a frame") is False
