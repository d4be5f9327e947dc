"""The pipe between the two sides: whole messages or none."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import orjson
import pytest

from promptmill.core.errors import Code, Named, PromptmillError
from promptmill.system import frames, subprocesses


def test_messages_come_out_as_they_went_in():
    messages: list[dict[str, Any]] = [{"type": "a"}, {"text": "Ünï\0" * 5}, {"n": [1, 2.5, None, {}]}]
    pipe = io.BytesIO(b"".join(frames.packed(message) for message in messages))
    assert [frames.read(pipe) for _ in range(4)] == [*messages, None]


def test_a_message_cut_short_is_the_end():
    whole = frames.packed({"text": "hello"})
    for cut in range(len(whole)):
        assert frames.read(io.BytesIO(whole[:cut])) is None


def test_what_is_no_frame_is_noticed():
    for noise in (b"Loading weights: 100%", (2).to_bytes(4, "little") + b"{]", (2).to_bytes(4, "little") + b"[]"):
        with pytest.raises(frames.OutOfStepError):
            frames.read(io.BytesIO(noise))


async def test_both_readers_agree():
    stream = asyncio.StreamReader()
    stream.feed_data(frames.packed({"a": 1}) + frames.packed({"b": "x" * 200_000}) + b"\1\0")
    stream.feed_eof()
    assert [await frames.receive(stream) for _ in range(3)] == [{"a": 1}, {"b": "x" * 200_000}, None]


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(orjson.JSONEncodeError):
        frames.packed({"text": "\ud800"})


def test_errors_travel_whole():
    error = PromptmillError(Code.OUT_OF_MEMORY, "Too big.", ("Lower ", Named("max_tokens"), "."))
    again = frames.unpacked_error(orjson.loads(orjson.dumps(frames.packed_error(error))))
    assert (again.code, again.message, again.hint) == (error.code, "Too big.", "Lower `max_tokens`.")
    assert again.worded(lambda named: f"--{named.field}") == "Too big. Lower --max_tokens."


def test_the_end_of_a_process_is_told_in_words():
    assert subprocesses.how_it_ended(3) == "it ended with status 3"
    assert subprocesses.how_it_ended(-9).startswith("it was killed by SIGKILL, as the system does")
    assert subprocesses.how_it_ended(-11) == "it was killed by SIGSEGV"
    assert "unknown" in subprocesses.how_it_ended(None)
