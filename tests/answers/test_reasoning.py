"""Separate reasoning from the answer."""

import pytest

from promptmill.answers.reasoning import (
    CHANNEL_MARKS,
    FAMILIES,
    TAGS,
    WRAPS,
    may_have_marks,
    opened_by,
    split_channels,
    split_marked,
    split_reasoning,
    unknown_end,
    unknown_mark,
    unread_call,
    without_broken_mark,
)
from promptmill.backends.engines.tool_use import BARE_FORM, form_of


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models)
def test_the_reasoning_of_each_family_goes_and_so_do_the_marks_around_its_answer(family):
    for opening, closing in ((opening, closing) for opening in family.openings for closing in family.closings):
        wrapped = [f"{wrap.openings[0]}\nParis.\n{wrap.closings[0]}\n" for wrap in WRAPS]
        for answer in ("Paris.", *wrapped):
            text = f"{opening}\ncapital?\n{closing}\n{answer}"
            assert may_have_marks(text)
            assert split_marked(text) == split_reasoning(text) == ("capital?", "Paris.")
            if family.in_prompt:
                assert split_marked(text.removeprefix(opening)) == ("capital?", "Paris.")
                assert split_reasoning(text.removeprefix(opening), opened=family) == ("capital?", "Paris.")
            for end in range(len(text)):
                reasoning, begun = split_marked(without_broken_mark(text[:end]))
                assert "capital?".startswith(reasoning or "")
                assert "Paris.".startswith(begun)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("<think>a<think>b</think>c</think>Paris.", ("a<think>b\nc", "Paris.")),
        ("a</think>b</think>Paris.", ("a\nb", "Paris.")),
        ("<think>a</think>The tag `</think>` ends it.", ("a", "The tag `</think>` ends it.")),
        ("<think>a</think>The tag </think> ends it.", ("a", "The tag </think> ends it.")),
        ("<think/>Paris.", (None, "Paris.")),
        ("<think />\n\nParis.", (None, "Paris.")),
        ("thought\ncapital?<unused95>Paris.", ("thought\ncapital?", "Paris.")),
        ("<think>capital?</think>Paris.<|im_end|>", ("capital?", "Paris.")),
        ("Paris.</s>", (None, "Paris.")),
        ("Paris.</s></s>\n", (None, "Paris.")),
        ("Paris.<|eot_id|>", (None, "Paris.")),
        ("Paris.<|endoftext|>", (None, "Paris.")),
        ("Paris.<end_of_turn>\n", (None, "Paris.")),
        ("Paris.<|im_end|>\n<|im_start|>user\nAnd of Italy?", (None, "Paris.")),
        ("Paris.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nRome?", (None, "Paris.")),
        ('"Paris."</s>', (None, '"Paris."')),
        ("<s>Rome</s>", (None, "<s>Rome</s>")),
        ("The end token is </s>", (None, "The end token is </s>")),
        ("It is `</s>`", (None, "It is `</s>`")),
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>",
            (None, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>"),
        ),
        ("<think></think><think>capital?</think>Paris.", ("capital?", "Paris.")),
        ("<|channel>thought\n<channel|>Paris.", (None, "Paris.")),
        ("</mm:think>Paris.", (None, "Paris.")),
        ("to=user<|message|>Paris.<|eot|>", (None, "Paris.")),
        ("<think>capital?</think><answer>Paris</answer>, of course.", ("capital?", "Paris, of course.")),
        ("It is <|begin_of_box|>Paris<|end_of_box|>.", (None, "It is Paris.")),
        ("GLM writes `<|begin_of_box|>`.", (None, "GLM writes `<|begin_of_box|>`.")),
        ("<answer>Paris.</answer>", (None, "<answer>Paris.</answer>")),
        ("Here is my thought process: I ask a map.", (None, "Here is my thought process: I ask a map.")),
        ("analysisResult", (None, "analysisResult")),
        ('So "Paris"</think>Paris', ('So "Paris"', "Paris")),
        ('Hm.</think>"Paris"', ("Hm.", '"Paris"')),
        ('The tag "</think>" ends a thought.', (None, 'The tag "</think>" ends a thought.')),
        ("capital?<|end|><|start|>assistant<|channel|>final<|message|>Paris.<|return|>", ("capital?", "Paris.")),
    ],
)
def test_what_a_prompt_may_ask_for_stays_and_the_marks_of_models_go(text, split):
    assert split_marked(text) == split


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("<pondering>capital?</pondering>Paris.", "<pondering>"),
        ("<Thinking>capital?</Thinking>Paris.", "<Thinking>"),
        ("\n[REASONING]capital?[/REASONING]", "[REASONING]"),
        ("<|im_start|>assistant", "<|im_start|>"),
        ("analysisThey ask for a capital.", "analysis"),
        ('<details type="reasoning" done="true">capital?</details>', '<details type="reasoning"'),
        ("Sure.\n<think>capital?</think>\nParis.", "<think>"),
        ("Sure.\n<think>", ""),
        ("<think>capital?", ""),
        ("<|channel|>final", ""),
        ("<p>Paris.</p>", ""),
        ("[1, 2]", ""),
        ("I am thinking <thinking>", ""),
        ("&lt;think&gt;capital?&lt;/think&gt;Paris.", "&lt;think&gt;"),
        ("<｜begin▁of▁thinking｜>capital?", "<｜begin▁of▁thinking｜>"),
        ("<start_of_turn>model\nParis", "<start_of_turn>"),
        ("<s>Paris.", "<s>"),
        ("<s>Rome</s> Paris", ""),
    ],
)
def test_a_text_that_begins_with_an_unknown_mark_of_this_shape_is_noticed(text, mark):
    assert unknown_mark(text) == mark


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("Paris<|end_of_utterance|>\n", "<|end_of_utterance|>"),
        ("Paris[|endofsomething|]", "[|endofsomething|]"),
        ("Paris.<pad>", "<pad>"),
        ("Paris.[/INST]", "[/INST]"),
        ("Paris.<think>", "<think>"),
        ("The token is <pad>", ""),
        ("`<pad>`", ""),
        ('It is "<pad>"', ""),
        ("<p>Paris.</p>", ""),
        ("<|x|>", ""),
        ("list[int]", ""),
    ],
)
def test_a_text_that_ends_with_an_unknown_mark_of_a_turn_is_noticed(text, mark):
    assert unknown_end(text) == mark


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ('<tool_call>{"name": "look"}</tool_call>', "<tool_call>"),
        ("I look.\n[TOOL_CALLS][]", "[TOOL_CALLS]"),
        ("<function=look>{}</function>", "<function="),
        ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁begin｜>"),
        # vllm-project/vllm#48931, PR#54686: the bars vary, and the first tag may be missing
        ('<｜DSML｜tool_calls>\n<｜DSML｜invoke name="look">', "<｜DSML｜tool_calls"),
        ('I look.\n<｜｜DSML｜｜invoke name="look">', "<｜｜DSML｜｜invoke"),
        ('‖DSML‖ is no tag\n<‖DSML‖invoke name="look">', "<‖DSML‖invoke"),
        ('<invoke name="look"></invoke>', "<invoke name="),
        ("<｜GCML｜tool_calls>", "<｜GCML｜tool_calls"),
        ("<seed:tool_call>{}", "<seed:tool_call>"),
        ("<|tool_call:start|>look", "<|tool_call:start|>"),
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_begin|>"),
        ("<start_function_call>call:look", "<start_function_call>"),
        ("[TOOL_REQUEST]{}", "[TOOL_REQUEST]"),
        ('<tool_use>{"name": "look"}', "<tool_use>"),
        ("<|channel|>commentary to=functions.look", "<|channel|>commentary to=functions"),
        ("<html>\n<p>A tool call.</p>\n<table>", ""),
        ("Write `<tool_call>` for a tool.", ""),
        ("My tool is <b>", ""),
    ],
)
def test_the_mark_of_a_call_that_a_server_did_not_read_is_noticed(text, mark):
    assert unread_call(text) == mark


_CALL_MARKS = (*form_of("<|tool_call_begin|>").marks, *form_of("<｜tool▁call▁begin｜>").marks, *BARE_FORM.marks)


@pytest.mark.thorough
@pytest.mark.parametrize("marks", [(*CHANNEL_MARKS, *TAGS), _CALL_MARKS])
def test_the_beginning_of_each_mark_is_held_back(marks):
    for mark in (mark for mark in marks if mark[0] in "<[◁"):  # the others count at the start of a text only
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
        ("<think>a</think>b</think>c", ("a\nb", "c")),
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
    assert split_reasoning(text, opened=opened_by("<thought>" if "thought" in text else "<think>")) == split


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
    assert (opened_by(prompt) is not None) is opens


ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "split"),
    [
        (f"{ANALYSIS}capital?<|end|>{FINAL}Paris.", ("capital?", "Paris.")),
        (f"{ANALYSIS}capital?<|end|>{FINAL}Paris.<|return|>", ("capital?", "Paris.")),
        (f"{ANALYSIS}it never ends", ("it never ends", "")),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>{FINAL}c", ("a\nb", "c")),
        ('<|channel|>final <|constrain|>json<|message|>{"a":1}', (None, '{"a":1}')),
        ("<|message|>Paris.", (None, "Paris.")),
        (f"{ANALYSIS}capital?<|end|><|channel|>final<|message|>Paris.", ("capital?", "Paris.")),
        ("Paris.<|return|>", (None, "Paris.")),
        ("Paris.", (None, "Paris.")),
        ("", (None, "")),
    ],
)
def test_what_is_said_on_other_channels_than_the_final_one_is_reasoning(text, split):
    assert split_channels(text) == split


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("assistant<|channel|>final<|message|>Paris.", (None, "Paris.")),
        (
            "analysis<|message|>capital?<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
            ("capital?", "Paris."),
        ),
        ("analysiscapital?assistantfinalParis.", ("capital?", "Paris.")),
        ("analysis\ncapital?\nassistantfinal\nParis.", ("capital?", "Paris.")),
        ("assistantfinalParis.", (None, "Paris.")),
        ("Paris.<|end|>", (None, "Paris.")),
        ("An analysis: the assistantfinal mark.", (None, "An analysis: the assistantfinal mark.")),
    ],
)
def test_channels_are_told_apart_where_a_server_has_dropped_some_of_their_marks(text, split):
    assert split_marked(text) == split
