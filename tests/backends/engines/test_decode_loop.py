"""The decode loop by itself: what befalls one row befalls no other."""

from typing import Any, cast

import pytest

import hf_parts as hf
from promptmill.backends.engines.growing_answer import AnswerEnd, AnswerTexts, GrowingForm

pytestmark = hf.NEEDED


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
    return hf.LanguageModel(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def test_a_prompt_that_cannot_even_begin_costs_no_other(model):
    """Its marks are of another length than its tokens, so nothing is computed."""
    rows = [
        hf.RunningSequence(
            run=1,
            number=number,
            prompt=[5 + number] * 9,
            ending=AnswerEnd(200),
            choice=hf.SamplerState(),
            form=GrowingForm(AnswerTexts(model.tokenizer)),
        )
        for number in range(4)
    ]
    rows.append(
        hf.RunningSequence(
            run=2,
            number=4,
            prompt=[7] * 9,
            ending=AnswerEnd(5),
            choice=hf.SamplerState(),
            form=GrowingForm(AnswerTexts(model.tokenizer)),
            image_inputs=hf.ImageInputs({}, {"marks": hf.torch.zeros((1, 30))}),
        )
    )
    schedule, channel = hf.Schedule(), cast("Any", Channel(len(rows)))
    for row in rows:
        schedule.add(row)
    with pytest.raises(Enough):
        hf.Decoder(model, schedule, channel, hf.Capacity(8), chunk=64).run()
    assert "error" in channel.sent.pop(4)
    assert all("error" not in message for message in channel.sent.values())
    assert [row.mishaps for row in rows[:4]] == [0] * 4


@pytest.mark.parametrize(("asked", "stops"), [({}, ["</answer>"]), ({"stop": ["end"]}, ["end"]), ({"stop": []}, [])])
def test_stop_strings_of_the_model_s_defaults_count_where_a_request_has_none(tiny, asked, stops):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny()
    network = AutoModelForCausalLM.from_pretrained(folder)
    network.generation_config.stop_strings = "</answer>"
    model = hf.LanguageModel(network, AutoTokenizer.from_pretrained(folder))
    message = {"run": 1, "id": 1, "messages": [{"role": "user", "content": "x"}], "sampling": asked, "extra": {}}
    row = hf.SequenceBuilder(model, refuse_unsupported=False).build(message)
    assert [*row.ending.stops] == stops
