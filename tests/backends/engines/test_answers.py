"""Answers of the engines: the same alone and in a batch, and those of transformers' model."""

from __future__ import annotations

import asyncio

import pytest

from promptmill.backends.protocol import Completion
from promptmill.core.request import Conversation, Message, TextPart

pytestmark = pytest.mark.engine

QUESTIONS = [
    "What is the capital of France?",
    "Hi!",
    "What is 2 + 2?",
    "List the days of the week. " * 6,
    "Is ice cold?",
    "Explain in one sentence why the sky is blue, so that a child of six years understands it.",
    "Complete: roses are red, violets are",
    "What is the largest planet of our solar system? " * 4,
    "What do bees make? " * 9,
    "At what temperature does water boil, in degrees Celsius? Answer with a number and one word.",
    "What is the opposite of up?",
    "Tell me a fact about cats. " * 12,
]


ENDLESS = {"ignore_eos": True}
YES = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "yes"}}}
"""Answers of a known text, whatever the model would say."""


@pytest.fixture(scope="module", params=["hf", "openvino"])
def backend(request) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino_genai")
    return request.param


@pytest.fixture(scope="module")
def engine(backend, engine_of):
    return engine_of(backend)


@pytest.fixture(scope="module")
def is_greedy(tmp_path_factory):
    """Whether a text is a greedy answer of transformers' model, in float32 and with the embedded weights.

    Each of its tokens is the most likely one there, or as likely as that but for what kernels may differ in.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from promptmill.backends.engines import embedded_model

    folder = embedded_model.model_folder(lambda text: None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    _take_weights(model, tmp_path_factory.mktemp("plain"))

    torch.set_num_threads(1)  # threads that wait for each other are slow when the machine is busy

    def is_greedy(turns: str | list[dict[str, str]], answer: str) -> bool:
        turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        with torch.inference_mode():
            logits = model(torch.tensor([before + said])).logits[0, len(before) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(said)[:, None])[:, 0]
        return bool((chosen > logits.max(dim=1).values - 0.1).all())

    return is_greedy


def _take_weights(model, scratch) -> None:
    """Give a model the weights of the embedded GGUF rounded to float16, by the gguf package."""
    import gguf
    import torch

    from promptmill.backends.engines import embedded_model

    file = embedded_model.GGUF.installed() or embedded_model.GGUF.downloaded(scratch, lambda text: None)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        tensor = tensors[names.get_name(name.removesuffix(".weight")) + ".weight"]
        weights = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).half().float()
        for kind, count in heads.items():
            if kind in name:  # GGUF keeps the halves of a rotated pair side by side
                weights = weights.reshape(count, -1, 2, weights.shape[-1]).transpose(1, 2).reshape(weights.shape)
        parameter.data.copy_(weights.reshape(parameter.shape))


@pytest.mark.thorough
def test_answers_of_a_batch_are_those_of_transformers(desk, engine, is_greedy):
    batched = desk.texts(engine, QUESTIONS, max_tokens=10)
    assert all(map(is_greedy, QUESTIONS, batched))
    assert not is_greedy(QUESTIONS[0], batched[1])


@pytest.mark.thorough
def test_rows_that_join_and_leave_midway_change_no_answer(desk, engine):
    lengths = tuple(range(3, 3 + len(QUESTIONS)))
    alone = [desk.texts(engine, [question], max_tokens=lengths[i])[0] for i, question in enumerate(QUESTIONS[:6])]

    async def staggered():
        calls = [desk.call(engine, [question], max_tokens=lengths[i]) for i, question in enumerate(QUESTIONS[:6])]
        crowd = asyncio.create_task(desk.call(engine, QUESTIONS, max_tokens=lengths).run())
        answers = []
        for call in calls:
            await asyncio.sleep(0.3)
            answers.append(asyncio.create_task(call.run()))
        return [(await answer)[0].text for answer in answers], [outcome.text for outcome in await crowd]

    joined, crowd = desk.wait(staggered())
    assert joined == alone
    assert crowd[:6] == alone


def test_each_answer_tells_tokens_reason_and_time(desk, engine):
    formats, stops = (YES, None), (["<|im_end|>"], None)
    ended, cut = desk.ask(engine, QUESTIONS[:2], ENDLESS, max_tokens=9, response_format=formats, stop=stops)
    assert isinstance(ended, Completion)
    assert (ended.finish_reason, cut.finish_reason) == ("stop", "length")
    assert cut.usage.completion_tokens == 9
    assert ended.usage.prompt_tokens == 37
    assert 1 < ended.usage.completion_tokens <= 9
    assert ended.latency_s > 0
    assert (ended.attempts, ended.reasoning) == (1, None)
    assert (desk.last_call.counts.done, desk.last_call.counts.requests, desk.last_call.in_flight) == (2, 2, 0)
    assert desk.last_call.counts.completion_tokens == ended.usage.completion_tokens + 9


@pytest.mark.thorough
def test_no_special_token_is_ever_in_an_answer(desk, engine):
    texts = desk.texts(engine, ["Repeat exactly: <|im_end|> <|im_start|>", "Hi!"], max_tokens=10)
    assert not any("<|im_" in text for text in texts)


def test_answers_are_cut_exactly_before_the_first_stop_string(desk, engine):
    (whole,) = desk.texts(engine, QUESTIONS[:1], ENDLESS, max_tokens=8)
    stop = whole[7:11]
    outcome, other = desk.ask(engine, QUESTIONS[:1] * 2, ENDLESS, max_tokens=8, stop=([stop], ["\0"]))
    assert outcome.text == whole[: whole.index(stop)]
    assert outcome.finish_reason == "stop"
    assert outcome.usage.completion_tokens < 8
    assert other.text == whole


def test_a_special_token_as_stop_string_ends_the_answer(desk, engine):
    (outcome,) = desk.ask(engine, QUESTIONS[:1], ENDLESS, max_tokens=20, stop=["<|im_end|>"], response_format=YES)
    assert (outcome.text, outcome.finish_reason) == ('"yes"', "stop")


@pytest.mark.thorough
def test_a_seed_repeats_an_answer_whatever_else_is_computed(desk, engine):
    choice = {"temperature": 1.3, "top_p": 0.95, "max_tokens": 5}
    (alone,) = desk.texts(engine, ["Tell me a story."], seed=7, **choice)
    company = ["Tell me a story.", "Hi!", "Tell me a story."]
    texts = desk.texts(engine, company, **choice, seed=(7, 1, 8))
    assert texts[0] == alone
    assert texts[-1] != alone


def test_any_seed_that_can_be_given_is_taken(desk, engine):
    seeds = (-(2**63), 2**63 - 1, -(2**63), 2**63 - 1)
    texts = desk.texts(engine, ["Tell me a story."] * 4, seed=seeds, temperature=1.3, max_tokens=3)
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


@pytest.mark.thorough
def test_a_top_p_of_zero_takes_the_likeliest_token(desk, engine):
    story = ["Tell me a story."] * 3
    greedy, *drawn = desk.texts(engine, story, temperature=(0, 1.3, 1.3), top_p=(None, 0, 0), max_tokens=5)
    assert drawn == [greedy, greedy]


def test_to_choose_among_all_tokens_is_no_wish_to_draw(desk, engine):
    texts = desk.texts(engine, ["Tell me a story."] * 4, temperature=None, top_k=(None, 0, -1, -1), max_tokens=3)
    assert len(set(texts)) == 1


@pytest.mark.thorough
def test_a_penalty_changes_a_text_that_repeats_itself(desk, engine):
    plain, varied = desk.texts(engine, ["ha " * 40] * 2, ENDLESS, max_tokens=40, frequency_penalty=(None, 2.0))
    assert plain != varied


def test_without_max_tokens_an_answer_ends_by_itself(desk, engine):
    (outcome,) = desk.ask(engine, QUESTIONS[:1], response_format=YES)
    assert (outcome.text, outcome.finish_reason) == ('"yes"', "stop")


TURNS = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "My name is Zelda. Remember it."},
    {"role": "assistant", "content": "I will remember it, Zelda."},
    {"role": "user", "content": "What is my name?\nAnswer in one word."},
]


@pytest.mark.thorough
def test_parts_and_developers_are_texts_and_system_messages(desk, engine):
    in_parts = [{"type": "text", "text": text} for text in TURNS[-1]["content"].splitlines()]
    developer = {"role": "developer", "content": TURNS[0]["content"]}
    in_other_words = [developer, *TURNS[1:3], {"role": "user", "content": in_parts}]
    whole, parts, last = desk.texts(engine, [TURNS, in_other_words, TURNS[3:]], max_tokens=5)
    assert whole == parts != last


@pytest.mark.thorough
def test_a_conversation_of_several_turns_is_read_whole(desk, engine, is_greedy):
    assert is_greedy(TURNS, *desk.texts(engine, [TURNS], max_tokens=12))


@pytest.mark.thorough
def test_a_prompt_that_is_too_long_costs_itself_alone(desk, engine, backend):
    outcomes = desk.ask(engine, ["word " * 9_000, "Hi!", "x" * 20_000_000], max_tokens=3)
    assert [hasattr(outcome, "error") for outcome in outcomes] == [True, False, True]
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.error.code == "context_length"
        assert "8192" in outcome.error.message
    found = "9031 tokens" if backend == "hf" else "at least 8192 tokens"  # where OpenVINO's tokenizer ends
    assert found in outcomes[0].error.message


def test_bad_items_cost_themselves_alone(desk, engine):
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    outcomes = desk.ask(engine, ["Hi!", "half \ud800 pair", [image], "a \0 zero"], max_tokens=3)
    assert [getattr(getattr(outcome, "error", None), "code", None) for outcome in outcomes] == [
        None,
        "invalid_input",
        "unsupported",
        None,
    ]
    assert outcomes[1].attempts == 0
    assert "reads only text" in outcomes[2].error.message
    assert (desk.last_call.counts.done, desk.last_call.counts.failed, desk.last_call.in_flight) == (4, 2, 0)


def test_a_required_parameter_that_the_model_cannot_take_fails_its_item(desk, engine):
    required, wanted = desk.requests(["Hi!", "Hi!"], max_tokens=3, reasoning_effort="low")
    required = required.changed(required=frozenset({"reasoning_effort", "max_tokens"}))
    refused, answered = desk.answer(engine, [required, wanted])
    assert refused.error.code == "unsupported"
    assert refused.error.message.startswith("reasoning_effort: ")
    assert any("reasoning_effort" in warning for warning in answered.warnings)


def test_what_cannot_travel_as_json_is_that_items_error(desk, engine):
    outcomes = desk.ask(engine, ["Hi!", "Hi!"], max_tokens=3, stop=(["\ud800"], ["z"]))
    assert outcomes[0].error.code == "invalid_input"
    assert outcomes[1].text


def test_a_line_of_a_batch_file_says_how_long_its_answer_may_be(desk, engine):
    (outcome,) = desk.ask(engine, ["Hi!"], {**ENDLESS, "max_completion_tokens": 3, "n": 1, "logprobs": None})
    assert (outcome.usage.completion_tokens, outcome.finish_reason) == (3, "length")
    assert not desk.last_call.warnings
    for value, said in ((0, "less than 1"), ("many", "a text"), (True, "true or false")):
        (outcome,) = desk.ask(engine, ["Hi!"], {"max_completion_tokens": value})
        assert outcome.error.code == "invalid_input"
        assert f"max_completion_tokens is {said}" in outcome.error.message


def test_what_the_engine_cannot_take_is_a_warning(desk, engine):
    extra = {"chat_template_kwargs": {"tokenize": True}, "guided_json": {}}
    desk.texts(engine, ["Hi!"], extra, max_tokens=2, response_format={"type": "grammar"}, reasoning_effort="low")
    said = " ".join(desk.last_call.warnings)
    for name in ("chat_template_kwargs.tokenize", "guided_json", "response_format", "reasoning_effort"):
        assert name in said
    desk.texts(engine, ["Hi!"], max_tokens=2, enable_thinking=False, response_format={"type": "text"})
    assert not desk.last_call.warnings


def test_a_cache_mark_of_a_part_is_left_out_with_a_warning(desk, engine):
    (request,) = desk.requests(["Hi!"], max_tokens=2)
    part = TextPart("Hi!", {"cache_control": {"type": "ephemeral"}})
    marked = request.changed(conversation=Conversation((Message("user", (part,)),)))
    (outcome,) = desk.answer(engine, [marked])
    assert isinstance(outcome, Completion)
    assert "cache_control" in " ".join(desk.last_call.warnings)


def test_no_prompts_are_no_work(desk, engine):
    assert desk.ask(engine, []) == []
