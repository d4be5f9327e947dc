"""Models that are not like the others: without template or pad token, thinking, with windows or recurrent states."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import pytest

from everyday import everyday

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

PROMPTS = ["a", "Hello there", "b" * 100, "The quick brown fox", "xyz" * 30, "0", "Ünïcödé ✓", "end. " * 20] * 3
LENGTHS = tuple(5 + 7 * (i % 9) for i in range(len(PROMPTS)))


def generated(folder, prompt: str, tokens: int) -> str:
    """Return the answer of transformers' own greedy generate to a plain prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


KINDS: dict[str, dict[str, Any]] = {
    "plain columns": {"kind": "Llama"},
    "a sliding window": {"kind": "Mistral", "sliding_window": 16},
    "windows and whole columns": {
        "kind": "Qwen2",
        "use_sliding_window": True,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "recurrent states": {"kind": "Mamba"},
    "positions as a slope": {"kind": "Bloom", "n_layer": 4, "n_head": 4},
}


@pytest.mark.parametrize("kind", everyday(KINDS, "recurrent states"))
def test_every_kind_of_cache_answers_as_transformers_does(desk, make_engine, tiny, kind):
    folder = tiny(**KINDS[kind])
    host = make_engine(folder, batch_size=4)
    batched = desk.texts(host, PROMPTS, max_tokens=LENGTHS)
    alone = [desk.texts(host, [prompt], max_tokens=LENGTHS[i])[0] for i, prompt in enumerate(PROMPTS)]
    assert batched == alone
    assert batched[:4] == [generated(folder, prompt, LENGTHS[i]) for i, prompt in enumerate(PROMPTS[:4])]


@pytest.mark.parametrize("kind", ["plain columns", "a sliding window"])
def test_a_small_call_is_answered_beside_a_huge_one(desk, make_engine, tiny, kind):
    host = make_engine(tiny(**KINDS[kind]), batch_size=2)

    async def small_beside_huge():
        huge = desk.call(host, ["long " * 4] * 40, {"ignore_eos": True}, max_tokens=400)
        task = await huge.begun()
        small = await desk.call(host, ["short"] * 2, {"ignore_eos": True}, max_tokens=4).run()
        done = huge.call.counts.done
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return small, done

    small, done = desk.wait(small_beside_huge())
    assert [outcome.usage.completion_tokens for outcome in small] == [4, 4]
    assert done < 40


def test_a_paused_row_goes_on_where_it_was(desk, make_engine, tiny):
    host = make_engine(tiny(), batch_size=2)
    expected = desk.texts(host, PROMPTS[:2], {"ignore_eos": True}, max_tokens=300)

    async def interrupted():
        long = asyncio.create_task(desk.call(host, PROMPTS[:2], {"ignore_eos": True}, max_tokens=300).run())
        while not long.done():
            await desk.call(host, ["x"], max_tokens=3).run()
        return [outcome.text for outcome in await long]

    assert desk.wait(interrupted()) == expected


def test_more_calls_than_places_take_turns(desk, make_engine, tiny):
    host = make_engine(tiny(), batch_size=2)

    async def many():
        slow = [desk.call(host, ["slow"], {"ignore_eos": True}, max_tokens=450) for _ in range(4)]
        tasks = [await slow[0].begun(), *(asyncio.create_task(call.run()) for call in slow[1:])]
        await desk.call(host, ["quick"], max_tokens=2).run()
        unfinished = sum(not task.done() for task in tasks)
        return unfinished, await asyncio.gather(*tasks)

    unfinished, answers = desk.wait(many())
    assert unfinished >= 2
    assert len({answer[0].text for answer in answers}) == 1


def test_without_a_chat_template_the_prompt_goes_in_plain(desk, tiny_engine, tiny):
    folder, host = tiny(), tiny_engine
    (text,) = desk.texts(host, ["Once upon a time"], max_tokens=20)
    assert text == generated(folder, "Once upon a time", 20)
    assert "no chat template" in " ".join(desk.last_call.warnings)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (text,) = desk.texts(host, [turns], max_tokens=20)
    assert text == generated(folder, "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant:", 20)


def test_without_a_pad_token_batches_are_right(desk, make_engine, tiny, chat_template):
    host = make_engine(tiny(pad=False, template=chat_template))
    batched = desk.texts(host, PROMPTS[:8], max_tokens=12)
    assert batched == [desk.texts(host, [prompt], max_tokens=12)[0] for prompt in PROMPTS[:8]]


def test_a_template_that_opens_a_thought_makes_the_answer_reasoning(desk, make_engine, tiny):
    host = make_engine(tiny(template="{{ messages[0]['content'] }}<think>\n"))
    (outcome,) = desk.ask(host, ["a"], {"ignore_eos": True}, max_tokens=12)
    assert outcome.error.code == "truncated"
    assert outcome.reasoning


def test_template_switches_reach_the_template_and_sampling_goes_first(desk, make_engine, tiny):
    template = "{{ messages[0]['content'] }}{% if enable_thinking %}T{% else %}F{% endif %}{{ mood }}"
    folder = tiny(template=template)
    host = make_engine(folder)
    extra = {"chat_template_kwargs": {"enable_thinking": True, "mood": "!"}}
    asked, overruled = desk.texts(host, ["a", "a"], extra, max_tokens=9, enable_thinking=(None, False))
    assert asked == generated(folder, "aT!", 9)
    assert overruled == generated(folder, "aF!", 9)
    assert not desk.last_call.warnings


def test_a_template_that_refuses_is_that_items_error(desk, make_engine, tiny):
    template = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('never no') }}{% endif %}x"
    host = make_engine(tiny(template=template))
    good, bad = desk.ask(host, ["yes", "no"], max_tokens=2)
    assert good.finish_reason == "length"
    assert bad.error.code == "invalid_input"
    assert "never no" in bad.error.message


def test_unsupported_can_be_made_an_error(desk, make_engine, tiny):
    host = make_engine(tiny(), unsupported="error")
    good, bad = desk.ask(host, ["a", "a"], max_tokens=2, response_format=(None, {"type": "grammar"}))
    assert good.finish_reason
    assert bad.error.code == "unsupported"
    assert "response_format" in bad.error.message


def test_answers_never_pass_the_end_of_the_context(desk, tiny_engine):
    (outcome,) = desk.ask(tiny_engine, ["a" * 500], {"ignore_eos": True}, max_tokens=400)
    assert outcome.finish_reason == "length"
    assert outcome.usage.prompt_tokens + outcome.usage.completion_tokens == 512


def test_generation_defaults_of_the_model_are_kept(desk, make_engine, tiny):
    from transformers import GenerationConfig

    folder = tiny(rms_norm_eps=1.1e-6)
    defaults = GenerationConfig(do_sample=True, temperature=2.0, max_new_tokens=7, eos_token_id=2, pad_token_id=0)
    defaults.save_pretrained(folder)
    host = make_engine(folder)
    outcomes = desk.ask(host, ["a"] * 4, {"ignore_eos": True}, temperature=None)
    assert {outcome.usage.completion_tokens for outcome in outcomes} == {7}
    assert len({outcome.text for outcome in outcomes}) > 1


@pytest.mark.parametrize(
    "defaults",
    [
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(20, 160))},
        {"begin_suppress_tokens": list(range(3, 250))},
        {"bad_words_ids": [[number] for number in range(60, 200)]},
        {"sequence_bias": [[[77], 90.0], [[78, 79], 80.0]], "repetition_penalty": 1.8},
        {"forced_eos_token_id": 2},
        {"encoder_repetition_penalty": 1.9},
    ],
    ids=lambda defaults: next(iter(defaults)),
)
def test_what_the_models_defaults_forbid_or_force_counts(desk, make_engine, tiny, tmp_path, defaults):
    from transformers import GenerationConfig

    folder = tmp_path / "model"
    shutil.copytree(tiny(), folder)
    asked, lengths = PROMPTS[:6], (24,) * 6
    free = [generated(folder, prompt, 24) for prompt in asked]
    GenerationConfig(**{"eos_token_id": 2, "pad_token_id": 0, **defaults}).save_pretrained(folder)
    expected = [generated(folder, prompt, 24) for prompt in asked]
    assert desk.texts(make_engine(folder, batch_size=4), asked, max_tokens=lengths) == expected
    assert expected != free or "forced_eos_token_id" in defaults
    assert not [text for text in desk.last_call.warnings if "defaults" in text]


def test_the_least_length_of_the_models_defaults_counts(desk, make_engine, tiny, tmp_path):
    from transformers import GenerationConfig

    folder = tmp_path / "model"
    shutil.copytree(tiny(), folder)
    defaults = {"eos_token_id": [2, *range(40, 240)], "pad_token_id": 0}
    GenerationConfig(**defaults).save_pretrained(folder)
    soon = desk.ask(make_engine(folder), PROMPTS[:6], max_tokens=24)
    GenerationConfig(min_new_tokens=20, **defaults).save_pretrained(folder)
    late = desk.ask(make_engine(folder), PROMPTS[:6], max_tokens=24)
    assert max(outcome.usage.completion_tokens for outcome in soon) < 20
    assert min(outcome.usage.completion_tokens for outcome in late) > 20


def test_defaults_of_the_model_that_are_not_followed_are_said(desk, make_engine, tiny, tmp_path):
    from transformers import GenerationConfig

    folder = tmp_path / "model"
    shutil.copytree(tiny(), folder)
    GenerationConfig(num_beams=4, do_sample=True, typical_p=0.9, eos_token_id=2, pad_token_id=0).save_pretrained(folder)
    host = make_engine(folder, unsupported="error")
    desk.texts(host, ["a"], max_tokens=3)
    assert "num_beams," in " ".join(desk.last_call.warnings)
    assert "typical_p" not in " ".join(desk.last_call.warnings)
    desk.texts(host, ["a"], max_tokens=3, temperature=1)
    assert "typical_p" in " ".join(desk.last_call.warnings)


def test_a_stop_string_that_is_a_token_without_text_ends_the_answer(desk, make_engine, tiny, tmp_path):
    """Many models mark tokens as special that have no role of their own, such as the one that begins a turn."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    whole = generated(tiny(), "Hello there", 30)
    stop = next(letter for letter in whole[8:] if letter.isascii() and letter.isalpha() and letter not in "Hello there")
    folder = tmp_path / "model"
    shutil.copytree(tiny(), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(stop, special=True, normalized=False)])
    tokenizer.save_pretrained(folder)
    assert stop not in AutoTokenizer.from_pretrained(folder).all_special_tokens
    (outcome,) = desk.ask(make_engine(folder), ["Hello there"], {"ignore_eos": True}, max_tokens=30, stop=[stop])
    assert (outcome.text, outcome.finish_reason) == (whole[: whole.index(stop)], "stop")
