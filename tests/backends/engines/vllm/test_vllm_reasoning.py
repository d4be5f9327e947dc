"""`reasoning_parser`: vLLM's own parsers tell reasoning from the answer, on small models that can be made to think."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from promptmill.backends.engines.host import create
from promptmill.backends.protocol import Failure
from promptmill.core.errors import Code

pytestmark = pytest.mark.engine
# opens a thought, or closes it at once, as templates do when thinking is switched off
THINKS = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}<think>"
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
)
# a random model never ends a thought by itself: vLLM ends it for it after so many tokens, then the answer is dictated
DICTATED = {"thinking_token_budget": 5, "guided_choice": ["blue"]}


@pytest.fixture(scope="session")
def thinker(tiny, tmp_path_factory) -> Callable[..., Path]:
    """Make a small model with a token each for `<think>` and `</think>`; `special` as many families have them."""

    def make(*, special: bool) -> Path:
        from transformers import AddedToken, AutoTokenizer

        folder = tmp_path_factory.mktemp("thinker") / "model"
        shutil.copytree(tiny(template=THINKS, head_dim=32), folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([AddedToken(mark, special=special) for mark in ("<think>", "</think>")])
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module", params=[("deepseek_r1", False), ("qwen3", True)], ids=lambda param: param[0])
def host(request, desk, make_vllm_config, thinker):
    """Both kinds of vLLM's parsers: of the text alone, and of the text with its special tokens."""
    parser, special = request.param
    host = create(make_vllm_config(thinker(special=special), dtype="float32", max_num_seqs=4, reasoning_parser=parser))
    desk.wait(host.load(lambda text: None), 170)
    yield host
    desk.wait(host.aclose())


def test_the_parser_takes_the_reasoning_out_of_the_answer(desk, host):
    first, second = desk.ask(host, ["abc", "another"], DICTATED, max_tokens=40)
    assert (first.text, second.text) == ("blue", "blue")
    assert first.reasoning
    assert "think>" not in first.reasoning
    assert first.finish_reason == "stop"
    assert first.usage.completion_tokens >= 5 + 1 + len("blue")
    assert desk.last_call.warnings == {}


def test_nothing_is_shown_before_the_parser_is_sure_what_is_the_answer(desk, host):
    call, shown = desk.call(host, ["abc"], DICTATED, max_tokens=40), []
    call.call.preview = shown.append
    (outcome,) = desk.wait(call.run())
    assert (outcome.text, shown) == ("blue", [])


def test_a_thought_that_is_cut_is_all_reasoning(desk, host):
    (outcome,) = desk.ask(host, ["abc"], {"ignore_eos": True}, max_tokens=6)
    assert outcome.error.code == Code.TRUNCATED
    assert outcome.reasoning


def test_a_thought_that_a_stop_ends_is_no_answer_and_stays_in_the_text_when_inline(desk, host):
    asked = {
        "ignore_eos": True,
        "stop_token_ids": list(range(10, 300)),
    }  # after four of the others one of these ends it
    (outcome,) = desk.ask(host, ["abc"], {**asked, "min_tokens": 4}, max_tokens=40)
    assert isinstance(outcome, Failure)
    assert outcome.error.code == Code.OPEN_REASONING
    (inline,) = desk.ask(host, ["abc"], {**asked, "min_tokens": 4}, max_tokens=40, reasoning="inline")
    assert inline.text
    assert (inline.reasoning, inline.finish_reason) == (None, "stop")


def test_what_a_model_says_that_was_told_not_to_think_is_the_answer(desk, host):
    forced = {"guided_choice": ["blue"]}
    (outcome,) = desk.ask(host, ["abc"], forced, max_tokens=10, enable_thinking=False)
    assert (outcome.text, outcome.reasoning) == ("blue", None)


def test_a_parser_that_is_none_is_said_with_those_there_are_of_vllm_and_of_the_operator(refusal, small, tmp_path):
    plugin = tmp_path / "ours.py"
    plugin.write_text(
        "from vllm.reasoning import ReasoningParserManager\n"
        "from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser\n"
        "ReasoningParserManager.register_module('our_house', module=DeepSeekR1ReasoningParser)\n"
    )
    error = refusal(small, reasoning_parser="deepseek_r2", reasoning_parser_plugin=str(plugin))
    assert error.code == "invalid_config"
    assert error.message.startswith(
        "backend_configs.vllm.reasoning_parser: unknown reasoning parser of vLLM; did you mean deepseek_"
    )
    names = set(error.message.rstrip(".").replace(",", "").split())
    assert {"deepseek_r1", "qwen3", "openai_gptoss", "our_house"} <= names


def test_a_parser_for_other_models_is_said(refusal, small):
    error = refusal(small, reasoning_parser="deepseek_r1")
    assert error.code == "invalid_config"
    assert "does not fit this model" in error.message
    assert "start/end tokens in the tokenizer; name the parser of the model's family" in error.message


def test_without_a_parser_the_channels_of_gpt_oss_are_told_apart(desk, start, speaker):
    marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
    thought = "<|channel|>analysis<|message|>A city.<|end|>"
    said = thought + "<|start|>assistant<|channel|>final<|message|>It is Paris.<|return|>"
    host = start(speaker(said, marks), dtype="float32", max_num_seqs=4)
    whole, stopped = desk.ask(host, ["?", "!"], max_tokens=100, stop=([], ["Par"]))
    assert (whole.reasoning, whole.text, whole.finish_reason) == ("A city.", "It is Paris.", "stop")
    assert (stopped.reasoning, stopped.text, stopped.finish_reason) == ("A city.", "It is ", "stop")


def test_without_a_parser_tags_that_are_special_tokens_are_seen_and_others_stay_hidden(desk, start, speaker):
    model = speaker("<think>A city.</think>It is <tool>Paris.", ["<think>", "</think>", "<tool>"])
    (outcome,) = desk.ask(start(model, dtype="float32", max_num_seqs=4), ["?"], max_tokens=100)
    assert (outcome.reasoning, outcome.text) == ("A city.", "It is Paris.")
