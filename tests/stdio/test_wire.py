"""The pipe to the client: what the server reads and writes, and what it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from promptmill.stdio.wire import Wire


class Ends:
    """A wire and the client's ends of it."""

    def __init__(self):
        its_input, self.to_server = os.pipe()
        self.from_server, its_output = os.pipe()
        self.wire = Wire(its_input, its_output)

    def told(self) -> bytes:
        return os.read(self.from_server, 1 << 16)

    def close(self):
        self.wire.end()
        self.wire.close()
        os.close(self.to_server)
        os.close(self.from_server)


@pytest.fixture
def ends():
    ends = Ends()
    yield ends
    ends.close()


def response(number, **result):
    return json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode() + b"\n"


def test_the_server_reads_first_what_was_passed_on_and_then_by_itself(ends):
    ends.wire.pass_on(b"one\n")
    ends.wire.pass_on(b"")
    ends.wire.pass_on(b"two\nth")
    ends.wire.release()
    os.write(ends.to_server, b"ree\nfour\n")
    assert [ends.wire.stdin.readline() for _ in range(4)] == [b"one\n", b"two\n", b"three\n", b"four\n"]


def test_a_line_longer_than_any_buffer_arrives_whole(ends):
    long = b"x" * 300_000 + b"\n"
    ends.wire.pass_on(long)
    assert ends.wire.stdin.readline() == long


@pytest.mark.skipif(sys.platform == "win32", reason="a blocked read cannot be ended there")
@pytest.mark.parametrize("released", [False, True])
def test_the_end_reaches_a_server_that_waits_for_input(ends, released):
    if released:
        ends.wire.release()
    read = []
    waiting = threading.Thread(target=lambda: read.append(ends.wire.stdin.readline()))
    waiting.start()
    ends.wire.end()
    waiting.join(10)
    assert read == [b""]
    assert ends.wire.read() == b"", "and everybody who reads later"


def test_the_end_of_input_is_read_as_often_as_somebody_asks(ends):
    ends.wire.release()
    os.close(ends.to_server)
    ends.to_server = os.open(os.devnull, os.O_WRONLY)
    assert ends.wire.stdin.readline() == b""
    assert ends.wire.stdin.readline() == b""


def test_an_answer_that_the_client_has_already_is_not_sent_again(ends):
    ends.wire.hide_answer_to(1)
    notification = b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}\n'
    ends.wire.send(notification)
    ends.wire.send(response(1, secret=True)[:20])
    ends.wire.send(response(1, secret=True)[20:] + response("1", other=True))
    ends.wire.send(response(1, later=True))
    assert ends.told() == notification + response("1", other=True) + response(1, later=True)


def test_nobody_else_reads_or_writes_where_the_protocol_is():
    code = """
import os, subprocess, sys
from promptmill.stdio.wire import Wire
wire = Wire.claim()
print("printed", flush=True)
os.write(1, b"native\\n")
subprocess.run([sys.executable, "-c", "import sys; print('child read', repr(sys.stdin.read()))"], check=True)
wire.send(b"said\\n")
wire.release()
wire.send(wire.stdin.readline())
"""
    done = subprocess.run([sys.executable, "-c", code], input=b"asked\n", capture_output=True, check=True, timeout=60)
    assert done.stdout == b"said\nasked\n"
    assert done.stderr.replace(b"\r", b"") == b"printed\nnative\nchild read ''\n"
