"""The end of an answer: stop strings in the text of any vocabulary."""

from __future__ import annotations

import random
import re

import pytest

import hf_parts as hf
from promptmill.answers.reasoning import FAMILIES, WRAPS, Family, split_channels, split_reasoning
from promptmill.backends.engines.growing_answer import AnswerEnd, AnswerTexts, GrowingAnswer, GrowingForm
from promptmill.backends.engines.tool_use import ToolUse, form_of

pytestmark = hf.NEEDED

TEXT = "日本語 ✓ und ü é 👩\u200d👩\u200d👧 the end\nသူသည်ကျောင်းသို့သွားသည်။ နောက်"
BROKEN = "\N{REPLACEMENT CHARACTER}"
WORDS = ("▁", "▁the", "▁a", "he", "llo", "▁wor", "ld", "é", "✓", "▁▁", "\n", "a", "th", "e", "▁e", "日", "本")


def _vocabulary(kind: str):
    """Return a tokenizer that gives a token to each byte of what it does not know, as Llama 2's or as GPT-2's does."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if kind == "pieces and bytes":
        names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
        numbers = {name: number for number, name in enumerate(names)}
        inner = Tokenizer(models.BPE(vocab=numbers, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        inner.decoder = decoders.Sequence(steps)
    else:
        numbers = {name: number for number, name in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        inner = Tokenizer(models.BPE(vocab=numbers, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def _cut(tokenizer, tokens: list[int], stops: list[str]) -> str | None:
    """Return the answer up to the first stop string, looked for in the whole text after every token."""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
        if places := [text.index(stop) for stop in stops if stop in text]:
            return text[: min(places)]
    return None


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["pieces and bytes", "bytes"])
def test_an_answer_is_cut_before_the_first_stop_string_whatever_its_tokens(kind):
    tokenizer, chance = _vocabulary(kind), random.Random(7)
    form = GrowingForm(AnswerTexts(tokenizer))
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    for _ in range(150):
        first = chance.randrange(len(whole) - 4)
        stops = [whole[first : first + chance.randint(1, 4)], "never"]
        row = GrowingAnswer(run=1, number=1, prompt=[5], form=form, ending=AnswerEnd(10**6, stops=stops))
        ended = next((n for n, token in enumerate(tokens) if row.accept(token)), None)
        assert ended is not None, stops
        assert row.outcome()["text"] == _cut(tokenizer, tokens, stops)


@pytest.mark.parametrize("kind", ["pieces and bytes", "bytes"])
def test_an_answer_that_ends_in_half_a_character_keeps_those_before_it(kind):
    tokenizer = _vocabulary(kind)
    form = GrowingForm(AnswerTexts(tokenizer))
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    complete = ""
    for limit in range(1, len(tokens) + 1):
        row = GrowingAnswer(run=1, number=1, prompt=[5], form=form, ending=AnswerEnd(limit))
        assert [row.accept(token) for token in tokens[:limit]][-1]
        so_far = tokenizer.decode(tokens[:limit], clean_up_tokenization_spaces=False)
        complete = complete if BROKEN in so_far else so_far
        assert row.outcome()["text"].rstrip(BROKEN) == complete


@pytest.mark.parametrize("kind", ["pieces and bytes", "bytes"])
@pytest.mark.parametrize("stops", [[], ["the end"], ["é 👩", "never"], ["日本語日"]])
def test_a_preview_has_no_part_of_a_character_or_of_a_stop_string(kind, stops):
    """A stream has sent it: an answer that does not begin with it would be an error."""
    tokenizer = _vocabulary(kind)
    form, ending = GrowingForm(AnswerTexts(tokenizer)), AnswerEnd(10**6, stops=stops)
    row = GrowingAnswer(run=1, number=1, prompt=[5], form=form, ending=ending)
    shown = []
    for token in tokenizer(f"{TEXT} 日本語", add_special_tokens=False)["input_ids"]:
        if row.accept(token):
            break
        row.preview_at = 0.0
        shown.append((row.preview() or {"text": ""})["text"])
    text = row.outcome()["text"]
    assert [preview for preview in shown if not text.startswith(preview)] == []
    assert len(set(shown)) > len(text) - max(map(len, stops), default=0) - 2


@pytest.mark.parametrize("kind", ["pieces and bytes", "bytes"])
def test_the_bytes_of_the_tokens_make_the_text(kind):
    """Also of tokens that are parts of a character, or a space that a decoder strips at the beginning."""
    tokenizer = _vocabulary(kind)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    written = AnswerTexts(tokenizer).tokens
    tokens = tokenizer(f"a the wor {TEXT}<end>", add_special_tokens=False)["input_ids"]
    texts, contents = zip(*map(written.of, tokens), strict=True)
    assert b"".join(contents).decode().lstrip() == f"a the wor {TEXT}"
    assert texts[-1] == "<end>"
    assert {" ", BROKEN} <= set(texts)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models)
def test_the_marks_of_each_family_are_seen_although_they_are_special_tokens(family):
    """A decoder leaves special tokens out, and a mark may be several of them with words between."""
    tokenizer, wrap = _vocabulary("bytes"), WRAPS[-1]
    text = f"{family.openings[0]}capital?{family.closings[0]}{wrap.openings[0]}It is <tool>Paris.{wrap.closings[0]}"
    special = re.findall(r"<[^<>]+>|\[/?THINK\]|◁/?think▷", text)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    texts = AnswerTexts(tokenizer)
    split = texts.split(texts.decode(tokenizer(text, add_special_tokens=False)["input_ids"]), opened=None)
    assert split == ("capital?", "It is Paris.")


def test_a_call_between_special_tokens_is_seen():
    tokenizer, form = _vocabulary("bytes"), form_of("<|tool_call>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(form.marks)})
    text = '<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|>'
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert AnswerTexts(tokenizer).decode(tokens) == "call:f{a:b}"
    assert AnswerTexts(tokenizer, form.marks).decode(tokens) == text


class _Tagged:
    def split(self, text: str, *, opened: Family | None) -> tuple[str | None, str]:
        return split_reasoning(text, opened=opened)


class _Channels:
    def split(self, text: str, *, opened: Family | None) -> tuple[str | None, str]:
        return split_channels(text)


_OFFERED = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
_CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
_HARMONY = (
    "<|channel|>analysis<|message|>So be it.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
    "<|constrain|>json<|message|>{}<|call|>"
)


@pytest.mark.parametrize("must", [False, True])
@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    ("texts", "template", "text", "shown"),
    [
        (_Tagged(), None, "<think>\nSo be it.\n</think>\n\nParis <3.", ("So be it.", "Paris <3.")),
        (_Tagged(), "<tool_call>", f"<think>So be it.</think>Look:{_CALL}", ("So be it.", "Look:")),
        (_Tagged(), "<tool_call>", f"{_CALL}\nthen", ("", "")),
        (_Tagged(), "", '{"name": "f", "arguments": {}}', ("", "")),
        (_Channels(), "<|channel|>", _HARMONY, ("So be it.", "")),
        (_Channels(), "<|channel|>", _HARMONY.partition("commentary")[0] + "final<|message|>Ja", ("So be it.", "Ja")),
    ],
)
def test_each_preview_is_the_beginning_of_the_answer(texts, template, text, shown, inline, must):
    tools = None if template is None else ToolUse(_OFFERED, form_of(template), must=must, single=False)
    form = GrowingForm(texts, inline=inline, tools=tools)
    whole = form.parts(text)
    previews = [form.preview(text[:end]) for end in range(1, len(text) + 1)]
    for preview in previews:
        assert whole["text"].lstrip().startswith(preview["text"].strip())
        assert (whole["reasoning"] or "").startswith(preview["reasoning"])
    if not inline and not must:
        assert (previews[-1]["reasoning"], previews[-1]["text"]) == shown
