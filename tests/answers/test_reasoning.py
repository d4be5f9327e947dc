"""Separate reasoning from the answer."""

import pytest

from promptmill.answers.reasoning import (
    CHANNEL_MARKS,
    TAGS,
    opens_reasoning,
    split_channels,
    split_reasoning,
    without_broken_mark,
)
from promptmill.backends.engines.tool_use import BARE_FORM, form_of


def test_every_mark_contains_a_character_that_few_answers_contain():
    """`LocalSender` looks for these, so that other answers need no search for marks."""
    assert all(set(mark) & set("<[◁") for mark in (*TAGS, *CHANNEL_MARKS))


_CALL_MARKS = (*form_of("<|tool_call_begin|>").marks, *form_of("<｜tool▁call▁begin｜>").marks, *BARE_FORM.marks)


@pytest.mark.parametrize("marks", [(*CHANNEL_MARKS, *TAGS), _CALL_MARKS])
def test_the_beginning_of_each_mark_is_held_back(marks):
    for mark in marks:
        for end in range(1, len(mark) + 1):
            assert without_broken_mark(f"1 < 2. {mark[:end]}", marks) == "1 < 2. "
            assert without_broken_mark(f" \n{mark[:end]}", marks) == ""
        assert without_broken_mark(f"{mark} a", marks) == f"{mark} a"


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("Paris.", (None, "Paris.")),
        ("", (None, "")),
        ("<think>capital?</think>Paris.", ("capital?", "Paris.")),
        ("\n <think>\ncapital?\n</think>\n\nParis.", ("capital?", "Paris.")),
        ("<think></think>Paris.", (None, "Paris.")),
        ("<think>\n\n</think>\n\nParis.", (None, "Paris.")),
        ("<think>it never ends", ("it never ends", "")),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
        ("Use <think>tags</think>!", (None, "Use <think>tags</think>!")),
        ("<thinking>a</thinking>", (None, "<thinking>a</thinking>")),
        ("  indented answer", (None, "  indented answer")),
        ("[THINK]capital?[/THINK]Paris.", ("capital?", "Paris.")),
        ("<seed:think>capital?</seed:think>Paris.", ("capital?", "Paris.")),
        ("◁think▷capital?</think>", ("capital?</think>", "")),
    ],
)
def test_a_block_at_the_start_is_reasoning(text, split):
    assert split_reasoning(text) == split


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("capital?</think>Paris.", ("capital?", "Paris.")),
        ("capital?\n</thought>\n\nParis.", ("capital?", "Paris.")),
        ("it never ends", ("it never ends", "")),
    ],
)
def test_a_block_that_the_prompt_opened_is_reasoning_too(text, split):
    assert split_reasoning(text, opened=True) == split


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("[|assistant|]<thought>\n", True),
        ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_may_end_inside_reasoning(prompt, opens):
    assert opens_reasoning(prompt) is opens


ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "split"),
    [
        (f"{ANALYSIS}capital?<|end|>{FINAL}Paris.", ("capital?", "Paris.")),
        (f"{ANALYSIS}capital?<|end|>{FINAL}Paris.<|return|>", ("capital?", "Paris.")),
        (f"{ANALYSIS}it never ends", ("it never ends", "")),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>{FINAL}c", ("a\nb", "c")),
        ('<|channel|>final <|constrain|>json<|message|>{"a":1}', (None, '{"a":1}')),
        ("<|channel|>analysis", (None, "")),
        ("<|message|>Paris.", (None, "Paris.")),
        ("Paris.", (None, "Paris.")),
        ("", (None, "")),
    ],
)
def test_what_is_said_on_other_channels_than_the_final_one_is_reasoning(text, split):
    assert split_channels(text) == split
