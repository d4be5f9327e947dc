"""When the model itself fails: memory that runs out, a prompt it cannot bear, scores that are no numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

MODEL = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

class C(LlamaConfig):
    model_type = "frail"

class M(LlamaForCausalLM):
    config_class = C

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None,
                logits_to_keep=0, **rest):
        {before}
        answered = super().forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                                   past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep)
        {after}
        return answered
"""
PROMPTS = ["one", "two", "three", "four", "five", "six"]


@pytest.fixture
def frail(tiny, make_engine, tmp_path) -> Callable[..., object]:
    """Load a model whose forward pass does something more before or after."""

    def make(before: str = "pass", after: str = "pass", **block: object):
        folder: Path = tmp_path / "frail"
        shutil.copytree(tiny(), folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "frail", "auto_map": {"AutoConfig": "frail.C", "AutoModelForCausalLM": "frail.M"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "frail.py").write_text(MODEL.format(before=before, after=after))
        return make_engine(folder, trust_remote_code=True, **block)

    return make


@pytest.fixture
def expected(desk, tiny_engine):
    return desk.texts(tiny_engine, PROMPTS, max_tokens=30)


def test_a_batch_too_large_for_the_memory_is_computed_in_smaller_ones(desk, frail, expected):
    host = frail("if input_ids.shape[0] > 2: raise torch.OutOfMemoryError('CUDA out of memory')")
    assert desk.texts(host, PROMPTS, max_tokens=30) == expected


def test_a_prompt_too_large_for_the_memory_fails_alone(desk, frail, expected):
    host = frail('if input_ids.shape[1] > 100: raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")')
    outcomes = desk.ask(host, [*PROMPTS, "x" * 110], max_tokens=30)
    assert [outcome.text for outcome in outcomes[:-1]] == expected
    assert outcomes[-1].error.code == "out_of_memory"
    assert outcomes[-1].error.hint


def test_a_prompt_that_the_model_cannot_bear_fails_alone(desk, frail, expected):
    unborn = next(letter for letter in "QZXJ" if letter not in "".join(expected))
    token = 3 + ord(unborn) - ord("!")  # where the small tokenizer has it
    host = frail(f"if (input_ids == {token}).any(): raise ValueError('no such thing')")
    outcomes = desk.ask(host, [*PROMPTS[:3], f"a {unborn}", *PROMPTS[3:]], max_tokens=30)
    bad = outcomes.pop(3)
    assert bad.error.code == "internal"
    assert "ValueError: no such thing" in bad.error.message
    assert [outcome.text for outcome in outcomes] == expected


def test_a_row_whose_numbers_overflow_fails_alone(desk, frail, tiny_engine):
    """Its remains in the cache do not reach the row that gets its place next to a longer row."""
    long, short = "l" * 90, "s"
    expected = desk.texts(tiny_engine, [long, short], max_tokens=30)
    unborn = next(letter for letter in "QZXJ" if letter not in "".join(expected))
    host = frail(
        after=f"""
        for row in (input_ids == {3 + ord(unborn) - ord("!")}).any(1).nonzero().flatten().tolist():
            answered.logits[row] = float('nan')
            for layer in past_key_values.layers:
                layer.values[row] = float('nan')
        """,
        batch_size=2,
    )
    outcomes = desk.ask(host, [long, 60 * unborn, short], max_tokens=30)
    assert outcomes[1].error.code == "internal"
    assert [outcomes[0].text, outcomes[2].text] == expected


def test_scores_that_are_no_numbers_are_that_rows_error(desk, frail):
    host = frail(after="answered.logits[input_ids.shape[0] - 1] = float('nan')")
    (outcome,) = desk.ask(host, ["a"], max_tokens=5)
    assert outcome.error.code == "internal"
    assert "float32" in outcome.error.hint
