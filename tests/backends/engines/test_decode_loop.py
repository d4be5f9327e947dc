"""The decode loop by itself: what befalls one row befalls no other."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any, cast

import pytest

import hf_parts as hf
from promptmill.backends.engines.growing_answer import AnswerEnd, AnswerTexts, GrowingForm
from promptmill.system.frames import unpacked_error

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


def rows_of(model, lengths: list[int], limit: int = 12, **more: Any) -> list[hf.RunningSequence]:
    """Rows whose prompts have these numbers of tokens."""
    return [
        hf.RunningSequence(
            run=1,
            number=number,
            prompt=[5 + number] * length,
            ending=AnswerEnd(limit),
            choice=hf.SamplerState(),
            form=GrowingForm(AnswerTexts(model.tokenizer)),
            **more,
        )
        for number, length in enumerate(lengths)
    ]


def answered(model, rows, capacity, chunk: int = 64) -> tuple[Channel, Any]:
    """Answer `rows`; return the channel and the loop. `Channel.send` checks that no row is answered twice."""
    schedule, channel = hf.Schedule(), cast("Any", Channel(len(rows)))
    for row in rows:
        schedule.add(row)
    loop = (
        hf.Decoder(model, schedule, channel, capacity, chunk)
        if model.batching.joins
        else hf.GenerateLoop(model, schedule, channel, capacity.rows, 4 * chunk)
    )
    with pytest.raises(Enough):
        loop.run()
    assert sorted(channel.sent) == [row.number for row in rows]
    return channel, loop


def small_card(model, monkeypatch, most) -> list[int]:
    """Let the model run out of memory in a step of which `most` says so; return the rows of each step."""
    inner, steps = model.network.forward, []

    @functools.wraps(inner)  # transformers reads which arguments it takes
    def forward(**inputs):
        mask = inputs.get("attention_mask")
        rows, tokens = (inputs["input_ids"] if mask is None else mask).shape
        steps.append(rows)
        if most(rows, tokens):
            raise hf.torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return inner(**inputs)

    monkeypatch.setattr(model.network, "forward", forward)
    return steps


LENGTHS = [9, 10, 11, 9, 10, 11, 9, 10]


def test_out_of_memory_halves_the_batch_and_loses_no_row(model, monkeypatch):
    """Memory holds two rows of 24 tokens, or more shorter ones: prompts are computed together, steps run out of it."""
    expected = rows_of(model, LENGTHS)
    answered(model, expected, hf.Capacity(8))
    rows = rows_of(model, LENGTHS)
    steps = small_card(model, monkeypatch, lambda rows, tokens: rows * tokens > 80)
    channel, loop = answered(model, rows, hf.Capacity(8))
    assert all("error" not in message for message in channel.sent.values())
    assert [row.tokens for row in rows] == [row.tokens for row in expected]
    assert max(steps) > 4  # it began with more than fit
    assert max(steps[-20:]) <= loop._places < 8  # and goes on with fewer


@pytest.mark.parametrize("where", ["choice of all", "scores of one"])
def test_memory_that_runs_out_while_tokens_are_chosen_loses_no_row(model, monkeypatch, where):
    """Neither rows whose prompt was computed and that are in no batch yet, nor the one row that needed the memory."""
    expected = rows_of(model, LENGTHS)
    answered(model, expected, hf.Capacity(8))
    rows, times = rows_of(model, LENGTHS), [1, 2]
    module = importlib.import_module("promptmill.backends.engines.hf.decode_loop")
    choose = module.choose
    monkeypatch.setattr(module, "_RECOVERY", 2)

    def run_out(scores):
        if times:
            times.pop()
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)")
        return scores

    if where == "choice of all":
        monkeypatch.setattr(module, "choose", lambda scores, choices: choose(run_out(scores), choices))
    else:
        rows[3].choice.constraints = lambda _, scores: run_out(scores)
    channel, loop = answered(model, rows, hf.Capacity(8))
    assert not times
    assert loop._places == 8  # as before, some steps later
    assert all("error" not in message for message in channel.sent.values())
    assert [row.tokens for row in rows] == [row.tokens for row in expected]


def test_a_row_too_large_for_the_memory_fails_alone_and_the_next_ones_have_all_places_again(model, monkeypatch):
    lengths = [*LENGTHS, 60, *LENGTHS]
    expected = rows_of(model, lengths)
    answered(model, expected, hf.Capacity(8))
    rows = rows_of(model, lengths)
    small_card(model, monkeypatch, lambda rows, tokens: tokens >= 60)
    channel, loop = answered(model, rows, hf.Capacity(8))
    assert unpacked_error(channel.sent.pop(8)["error"]).code == "out_of_memory"
    assert all("error" not in message for message in channel.sent.values())
    assert loop._places == 8
    del rows[8], expected[8]
    assert [row.tokens for row in rows] == [row.tokens for row in expected]


def test_a_batch_that_begins_has_no_more_rows_than_memory_holds_when_they_have_grown(model, monkeypatch):
    """Their prompts alone would fit: they are computed together, and each may have an answer of 40 tokens."""
    steps = small_card(model, monkeypatch, lambda rows, tokens: False)
    rows = rows_of(model, LENGTHS, limit=40)
    answered(model, rows, hf.Capacity(8, tokens=160, extra=2))
    assert max(steps) == 3  # of 51 tokens and 2


def test_a_batch_that_begins_asks_how_much_memory_is_free(model, monkeypatch):
    steps = small_card(model, monkeypatch, lambda rows, tokens: False)
    asked = iter([2, 3])
    capacity: Any = hf.Capacity(8, renew=lambda: hf.Capacity(8, tokens=23 * next(asked), renew=capacity.renew))
    rows = rows_of(model, LENGTHS[:5])
    answered(model, rows, capacity)
    assert steps == [2] * 12 + [3] * 12


def test_models_that_generate_halve_their_batch_too(tiny, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny("Mamba")
    model = hf.LanguageModel(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    expected = rows_of(model, LENGTHS[:6])
    answered(model, expected, hf.Capacity(8))
    rows = rows_of(model, LENGTHS[:6])
    steps = small_card(model, monkeypatch, lambda rows, tokens: rows > 3)
    channel, _ = answered(model, rows, hf.Capacity(8))
    assert [message["error"] for message in channel.sent.values() if "error" in message] == []
    assert [row.tokens for row in rows] == [row.tokens for row in expected]
    assert (steps[0], max(steps[1:])) == (6, 3)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_of_a_model_may_have_its_name_of_any_version_of_transformers(tiny, monkeypatch, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny()
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = rows_of(hf.LanguageModel(network, tokenizer), LENGTHS[:3])
    answered(hf.LanguageModel(network, tokenizer), expected, hf.Capacity(8))
    forward = type(network).forward
    installed = next(each for each in inspect.signature(forward).parameters if each in {"cache", "past_key_values"})

    def renamed(self, input_ids=None, attention_mask=None, position_ids=None, logits_to_keep=0, **given):
        held = {installed: given.pop(name)}
        assert not {"cache", "past_key_values"} & given.keys()
        return forward(self, input_ids, attention_mask, position_ids, logits_to_keep=logits_to_keep, **held, **given)

    own = inspect.signature(renamed)
    cache = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
    *before, rest = own.parameters.values()
    renamed.__signature__ = own.replace(parameters=[*before, cache, rest])  # type: ignore[attr-defined]
    monkeypatch.setattr(type(network), "forward", renamed)
    rows = rows_of(hf.LanguageModel(network, tokenizer), LENGTHS[:3])
    answered(hf.LanguageModel(network, tokenizer), rows, hf.Capacity(8))
    assert [row.tokens for row in rows] == [row.tokens for row in expected]
