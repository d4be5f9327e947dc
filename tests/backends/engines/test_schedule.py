"""The rows that are computed next, and how many fit together by the model's size and by memory."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

import hf_parts as hf
from promptmill.backends.engines import hardware
from promptmill.backends.engines.growing_answer import AnswerEnd, AnswerTexts, GrowingForm

pytestmark = hf.NEEDED


MLA = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "first_k_dense_replace": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
}


def row(run: int, length: int = 10) -> hf.RunningSequence:
    return hf.RunningSequence(
        run=run,
        number=0,
        prompt=[0] * length,
        form=GrowingForm(AnswerTexts(None)),
        ending=AnswerEnd(5),
        choice=hf.SamplerState(),
    )


@pytest.fixture
def schedule():
    return hf.Schedule()


def test_runs_share_the_places(schedule):
    for run in (1, 1, 1, 1, 1, 2, 3):
        schedule.add(row(run))
    assert Counter(taken.run for taken in schedule.take(4, 1000, {})) == {1: 2, 2: 1, 3: 1}


def test_the_run_with_the_fewest_running_goes_first(schedule):
    schedule.add(row(1))
    schedule.add(row(2))
    assert [taken.run for taken in schedule.take(1, 1000, {1: 3, 2: 1})] == [2]
    assert schedule.fewest_running({1: 3}) == 3
    schedule.cancel(1)
    assert schedule.fewest_running({1: 3}) is None


def test_runs_take_turns(schedule):
    for _ in range(3):
        for run in (1, 2, 3):
            schedule.add(row(run))
    order = [schedule.take(1, 1000, {})[0].run for _ in range(6)]
    assert order == [1, 2, 3, 1, 2, 3]


def test_prompts_computed_together_are_of_similar_length_and_bounded(schedule):
    for length in (10, 100, 11, 12, 13):
        schedule.add(row(1, length))
    assert [len(taken.prompt) for taken in schedule.take(8, 36, {})] == [10, 11, 12]
    assert [len(taken.prompt) for taken in schedule.take(8, 36, {})] == [100]
    assert [len(taken.prompt) for taken in schedule.take(8, 36, {})] == [13]


def test_rows_that_ran_before_come_alone_and_first(schedule):
    schedule.add(row(1))
    paused = row(1)
    paused.kept = []
    schedule.put_back(paused)
    assert schedule.take(8, 1000, {}) == [paused]
    assert len(schedule.take(8, 1000, {})) == 1


def test_a_cancelled_run_is_forgotten_also_later(schedule):
    schedule.add(row(1))
    schedule.cancel(1)
    schedule.add(row(1))
    schedule.put_back(row(1))
    assert schedule.take(8, 1000, {}) == []
    assert schedule.is_cancelled(1)


def loaded(folder) -> hf.LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return hf.LanguageModel(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(("parameters", "rows"), [(135_000_000, 64), (3_000_000_000, 16), (70_000_000_000, 8)])
def test_a_larger_model_gets_fewer_rows_on_a_cpu(monkeypatch, parameters, rows):
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    assert hardware.batch_rows("cpu", parameters) == rows
    assert hardware.batch_rows("cuda", parameters) == 512


def test_rows_take_as_many_columns_as_the_longest_of_them():
    capacity = hf.Capacity(64, tokens=10_000)
    assert capacity.more(0, 0) == 64
    assert capacity.more(10, 100) == 54
    assert capacity.more(10, 500) == 10
    assert capacity.more(10, 1_000) == 0
    assert capacity.more(10, 2_000) == -5
    assert hf.Capacity(8).more(3, 10**9) == 5
    assert hf.Capacity(64, tokens=10_000, extra=500).more(0, 500) == 10


def test_the_operators_number_counts_whatever_memory_is_free(tiny, monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda: 1)
    assert hf.capacity_for(loaded(tiny()), 3) == hf.Capacity(3)


def test_free_memory_and_the_models_width_say_how_many_tokens_fit(tiny, monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda: 3 * 2**20)
    capacity = hf.capacity_for(loaded(tiny()), None)
    assert capacity.tokens == 2**20 // (2 * 4 * 2 * 16 * 4)  # keys and values, layers, heads, width, bytes
    assert capacity.rows == 64


TOKEN, SCORES = 2 * 4 * 2 * 16 * 4, 32 * 300  # keys and values, layers, heads, width, bytes; bytes per token known


class Card:
    """The memory of a card of which other programs take a part."""

    def __init__(self, total: int, taken: int = 0) -> None:
        self.total, self.taken = total, taken

    def __call__(self, device: object) -> tuple[int, int]:
        return self.total - self.taken, self.total


def test_on_a_card_the_batch_follows_its_free_memory_and_the_longest_row(tiny):
    card = Card(total=10 * 3000 * TOKEN)
    capacity = hf.capacity_for(loaded(tiny()), None, card)
    assert (capacity.tokens, capacity.extra) == (18_000, SCORES // TOKEN)  # 9/10, and 2/3 of it
    assert capacity.more(0, 1_000 - capacity.extra) == 18
    assert capacity.more(0, 10) == capacity.rows
    card.taken = 5 * 3000 * TOKEN
    assert capacity.renew is not None
    assert capacity.renew().tokens == 8_000  # the tenth that stays free is one of the whole card
    card.taken = 28 * 1000 * TOKEN
    assert capacity.renew().tokens == 1_000  # on a card that others fill, it is a quarter of the rest


def test_a_full_card_still_computes_one_row_after_the_other(tiny):
    capacity = hf.capacity_for(loaded(tiny()), None, Card(total=2**30, taken=2**30))
    assert capacity.tokens == 0
    assert capacity.more(0, 10) == 0
    assert capacity.more(0, 0) > 0


def test_of_several_cards_the_one_with_the_least_room_for_its_layers_decides(tiny):
    model, cards = loaded(tiny()), {"a": 1_500, "b": 30_000}
    vars(model)["token_bytes"] = {"a": 1, "b": 10}
    assert hf.capacity_for(model, None, lambda device: (cards[cast("str", device)], 0)).tokens == 1_000


def test_the_operators_number_counts_whatever_a_card_has(tiny):
    assert hf.capacity_for(loaded(tiny()), 300, Card(total=1)) == hf.Capacity(300)


@pytest.mark.parametrize(
    ("joins", "vision", "capacity"),
    [(True, None, (512, 10_000)), (True, "eyes", (64, 10_000)), (False, None, (64, None))],
)
def test_a_model_on_a_card_asks_the_driver_and_torch_for_its_memory(monkeypatch, joins, vision, capacity):
    """What torch keeps and does not use is free, too."""
    for name, answer in {"mem_get_info": (12_000, 60_000), "memory_reserved": 9_000, "memory_allocated": 1_000}.items():
        monkeypatch.setattr(hf.torch.cuda, name, lambda device, answer=answer: answer)
    device = SimpleNamespace(type="cuda")
    model = SimpleNamespace(
        device=device,
        batching=SimpleNamespace(joins=joins),
        config=SimpleNamespace(vocab_size=0),
        vision=vision,
        parameters=1,
        token_bytes={hf.torch.device("cuda:0"): 1},
    )
    found = hf.capacity_for(cast("Any", model), None)
    assert (found.rows, found.tokens) == capacity  # 20,000 are free, a quarter stays so


@pytest.mark.parametrize(
    ("kind", "sizes", "values"),
    [
        ("Llama", {}, 2 * 4 * 2 * 16),
        ("Mistral", {"sliding_window": 8}, 2 * 4 * 2 * 16),
        ("DeepseekV3", MLA, 4 * (16 + 8)),  # it keeps what keys and values are made of
    ],
)
def test_one_token_shows_what_each_token_takes(tiny, kind, sizes, values):
    assert [*loaded(tiny(kind, **sizes)).token_bytes.values()] == [4 * values]


def test_a_model_that_fails_on_a_token_has_no_limit_by_memory(tiny, monkeypatch):
    model = loaded(tiny())
    monkeypatch.setattr(model.network, "forward", lambda **_: 1 / 0)
    assert not model.token_bytes
    assert hf.capacity_for(model, None, Card(total=2**30)).tokens is None
    assert hf.capacity_for(model, None).tokens is None


def test_models_whose_rows_cannot_join_get_few(tiny):
    assert hf.capacity_for(loaded(tiny("Mamba")), None) == hf.Capacity(8)


@pytest.mark.thorough
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

    def numbered(number: int, run: int, limit: int) -> hf.RunningSequence:
        choice, prompt = hf.SamplerState(), [5 + number] * 9
        return hf.RunningSequence(
            run=run,
            number=number,
            prompt=prompt,
            ending=AnswerEnd(limit),
            choice=choice,
            form=GrowingForm(AnswerTexts(model.tokenizer)),
        )

    model, schedule, channel = loaded(tiny()), hf.Schedule(), cast("Any", Channel())
    rows = [
        numbered(0, 1, 4),
        numbered(1, 1, 4),
        numbered(2, 2, 200),
        *(numbered(number, 1, 4) for number in range(3, 7)),
    ]
    for each in rows:
        schedule.add(each)
    with pytest.raises(Enough):
        hf.Decoder(model, schedule, channel, hf.Capacity(8, tokens=210), chunk=64).run()
    assert sorted(channel.sent) == list(range(7))
    assert [len(each.tokens) for each in rows] == [4, 4, 200, 4, 4, 4, 4]
