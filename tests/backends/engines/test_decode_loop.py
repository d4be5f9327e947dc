"""The decode loop by itself: what befalls one row befalls no other."""

from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from promptmill.backends.engines.growing_answer import AnswerForm, Ending, Texts
from promptmill.backends.engines.hf.decode_loop import Decoder
from promptmill.backends.engines.hf.language_model import LanguageModel
from promptmill.backends.engines.hf.sampler import SamplerState
from promptmill.backends.engines.hf.schedule import Capacity, Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence
from promptmill.backends.engines.hf.vision import ImageInputs


class Enough(BaseException):
    """Everything is answered."""


class Channel:
    """Keeps the sent messages until it has a given number of outcomes."""

    def __init__(self, outcomes):
        self.sent = {}
        self._outcomes = outcomes

    def send(self, message):
        assert message["id"] not in self.sent
        self.sent[message["id"]] = message
        if len(self.sent) == self._outcomes:
            raise Enough


@pytest.fixture
def model(tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny()
    return LanguageModel(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def test_a_prompt_that_cannot_even_begin_costs_no_other(model):
    """Its marks are of another length than its tokens, so nothing is computed."""
    rows = [
        RunningSequence(
            run=1,
            number=number,
            prompt=[5 + number] * 9,
            ending=Ending(200),
            choice=SamplerState(),
            form=AnswerForm(Texts(model.tokenizer)),
        )
        for number in range(4)
    ]
    rows.append(
        RunningSequence(
            run=2,
            number=4,
            prompt=[7] * 9,
            ending=Ending(5),
            choice=SamplerState(),
            form=AnswerForm(Texts(model.tokenizer)),
            image_inputs=ImageInputs({}, {"marks": torch.zeros((1, 30))}),
        )
    )
    schedule, channel = Schedule(), cast("Any", Channel(len(rows)))
    for row in rows:
        schedule.add(row)
    with pytest.raises(Enough):
        Decoder(model, schedule, channel, Capacity(8), chunk=64).run()
    assert "error" in channel.sent.pop(4)
    assert all("error" not in message for message in channel.sent.values())
    assert [row.mishaps for row in rows[:4]] == [0] * 4
