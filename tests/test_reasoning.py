"""Thinking aloud, told apart from the answer."""

from __future__ import annotations

import pytest

from promptmill.reasoning import split_reasoning


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
    ],
)
def test_a_block_at_the_start_is_reasoning(text, split):
    assert split_reasoning(text) == split


@pytest.mark.parametrize(
    ("text", "split"),
    [("capital?</think>Paris.", ("capital?", "Paris.")), ("it never ends", ("it never ends", ""))],
)
def test_a_block_that_the_prompt_opened_is_reasoning_too(text, split):
    assert split_reasoning(text, opened=True) == split
