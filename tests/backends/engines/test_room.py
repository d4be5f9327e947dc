"""How many rows are computed together when nobody says: by the model's size and by memory."""

from __future__ import annotations

from typing import Any, cast

import pytest

pytest.importorskip("torch")

from promptmill.backends.engines import hardware
from promptmill.backends.engines.growing_answer import Texts
from promptmill.backends.engines.hf.batches import Decoder
from promptmill.backends.engines.hf.language_model import LanguageModel
from promptmill.backends.engines.hf.sampler import SamplerState
from promptmill.backends.engines.hf.schedule import Room, Schedule, room_for
from promptmill.backends.engines.hf.sequence import RunningSequence


def loaded(folder) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return LanguageModel(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(("parameters", "rows"), [(135_000_000, 64), (3_000_000_000, 16), (70_000_000_000, 8)])
def test_a_larger_model_gets_fewer_rows_on_a_cpu(monkeypatch, parameters, rows):
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    assert hardware.batch_rows("cpu", parameters) == rows
    assert hardware.batch_rows("cuda", parameters) == 64


def test_rows_take_as_many_columns_as_the_longest_of_them():
    room = Room(64, tokens=10_000)
    assert room.more(0, 0) == 64
    assert room.more(10, 100) == 54
    assert room.more(10, 500) == 10
    assert room.more(10, 1_000) == 0
    assert room.more(10, 2_000) == -5
    assert Room(8).more(3, 10**9) == 5


def test_the_operators_number_counts_whatever_memory_is_free(tiny, monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda: 1)
    assert room_for(loaded(tiny()), 3) == Room(3)


def test_free_memory_and_the_models_width_say_how_many_tokens_fit(tiny, monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda: 3 * 2**20)
    room = room_for(loaded(tiny()), None)
    assert room.tokens == 2**20 // (2 * 4 * 2 * 16 * 4)  # keys and values, layers, heads, width, bytes
    assert room.rows == 64


def test_models_whose_rows_cannot_join_get_few(tiny):
    assert room_for(loaded(tiny("Mamba")), None) == Room(8)


def test_a_long_row_waits_until_memory_has_room_for_all(tiny):
    """Six short rows and one as long as all tokens there are: it is computed by itself, and nothing is lost."""

    class Enough(BaseException):
        pass

    class Channel:
        def __init__(self) -> None:
            self.sent: list[int] = []

        def send(self, message) -> None:
            assert "error" not in message
            self.sent.append(message["id"])
            if len(self.sent) == 7:
                raise Enough

    def row(number: int, run: int, limit: int) -> RunningSequence:
        choice, prompt = SamplerState(), [5 + number] * 9
        return RunningSequence(
            run=run,
            number=number,
            prompt=prompt,
            limit=limit,
            ends=frozenset(),
            choice=choice,
            texts=Texts(model.tokenizer),
        )

    model, schedule, channel = loaded(tiny()), Schedule(), cast("Any", Channel())
    rows = [row(0, 1, 4), row(1, 1, 4), row(2, 2, 200), *(row(number, 1, 4) for number in range(3, 7))]
    for each in rows:
        schedule.add(each)
    with pytest.raises(Enough):
        Decoder(model, schedule, channel, Room(8, tokens=210), chunk=64).run()
    assert sorted(channel.sent) == list(range(7))
    assert [len(each.tokens) for each in rows] == [4, 4, 200, 4, 4, 4, 4]
