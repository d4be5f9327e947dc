"""Separates reasoning from the answer.

`FAMILIES` has the marks of each model family, and `WRAPS` has the marks that some families put around the answer.
Sources: the reasoning parsers of vLLM 0.32 and SGLang 0.5.23, the models' chat templates. The channels of gpt-oss are
handled separately, because each of its messages has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Family(NamedTuple):
    """The marks around the reasoning of a model family."""

    models: str
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    in_prompt: bool = True
    """Whether a chat template may end with the opening mark, so that an answer has only the closing mark."""
    is_prose: bool = False
    """Whether the marks are sentences that any model may write. Then they count only as a pair."""


FAMILIES = (
    Family("Qwen, DeepSeek, GLM and most others", ("<think>",), ("</think>",)),
    Family("Magistral, Ministral", ("[THINK]",), ("[/THINK]",)),
    Family("Kimi-VL", ("◁think▷",), ("◁/think▷",)),
    Family("Seed-OSS", ("<seed:think>",), ("</seed:think>",)),
    Family("EXAONE Deep, Gemini", ("<thought>",), ("</thought>",)),
    Family("OpenThinker", ("<|begin_of_thought|>",), ("<|end_of_thought|>",)),
    Family("Command A", ("<|START_THINKING|>",), ("<|END_THINKING|>",)),
    Family("Gemma 4", ("<|channel>thought", "<|channel>"), ("<channel|>",)),
    Family("MedGemma", ("<unused94>thought", "<unused94>"), ("<unused95>",)),
    Family("LongCat", ("<longcat_think>",), ("</longcat_think>",)),
    Family("MiniMax M3", ("<mm:think>",), ("</mm:think>",)),
    Family("Solar Open 2", ("<|think:start|>",), ("<|think:end|>",)),
    Family("Hunyuan 3", ("<think:opensource>",), ("</think:opensource>",)),
    Family("K2 Horizon", ("<ifm|think>",), ("</ifm|think>",)),
    Family("K2 Horizon, less effort", ("<ifm|think_fast>",), ("</ifm|think_fast>",)),
    Family("K2 Horizon, least effort", ("<ifm|think_faster>",), ("</ifm|think_faster>",)),
    Family("Kimi K3", ("<|open|>think<|sep|>",), ("<|close|>think<|sep|>",)),
    Family("PLaMo 3", ("<|plamo:begin_think:plamo|>",), ("<|plamo:end_think:plamo|>",)),
    Family("Apertus", ("<|inner_prefix|>",), ("<|inner_suffix|>",)),
    Family(
        "Inkling",
        ("<|message_model|><|content_thinking|>", "<|content_thinking|>"),
        ("<|end_message|>", "<|content_model_end_sampling|>"),
        in_prompt=False,
    ),
    Family(
        "Muse Glimmer",
        ("<|start|>assistant to=self<|message|>", "to=self<|message|>"),
        ("<|eom|>",),
        in_prompt=False,
    ),
    Family(
        "Granite 3.2",
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
        in_prompt=False,
        is_prose=True,
    ),
    Family("Apriel", ("Here are my reasoning steps:",), ("[BEGIN FINAL RESPONSE]",), is_prose=True),
)


class Wrap(NamedTuple):
    """The marks that a family of models puts around its answer."""

    openings: tuple[str, ...]
    closings: tuple[str, ...]
    is_plain: bool = False
    """Whether other models also write the marks, if prompts request them. Then the marks count only after reasoning."""


WRAPS = (
    Wrap(("<answer>",), ("</answer>",), is_plain=True),  # Hunyuan A13B, GLM-4.1V
    Wrap(("<response>",), ("</response>",), is_plain=True),  # ERNIE 4.5, Granite 3.3
    Wrap(("<|begin_of_solution|>",), ("<|end_of_solution|>",)),  # OpenThinker
    Wrap(("<|START_RESPONSE|>", "<|START_TEXT|>"), ("<|END_RESPONSE|>", "<|END_TEXT|>")),  # Command A
    Wrap(  # Kimi K3
        ("<|open|>response<|sep|>",),
        ("<|close|>response<|sep|><|close|>message<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
    ),
    Wrap(  # Inkling
        ("<|message_model|><|content_text|>", "<|content_text|>"), ("<|end_message|>", "<|content_model_end_sampling|>")
    ),
    Wrap(("<|start|>assistant to=user<|message|>", "to=user<|message|>"), ("<|eot|>",)),  # Muse Glimmer
    Wrap(("<|begin_of_box|>",), ("<|end_of_box|>",)),  # GLM-4.5V
    Wrap(("[BEGIN FINAL RESPONSE]",), ("[END FINAL RESPONSE]",)),  # Apriel
)
CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")
TAGS = tuple(mark for family in (*FAMILIES, *WRAPS) for mark in (*family.openings, *family.closings))
"""The marks of all families except gpt-oss."""
_OPENINGS = tuple(mark for family in FAMILIES for mark in family.openings)
_TAG_OPENINGS = tuple(mark for mark in _OPENINGS if mark[0] in "<[◁")
_LAST_CHARACTERS = tuple({">", "]", *(mark[-1] for mark in _TAG_OPENINGS)})
_CLOSING_ALONE = tuple(mark for family in FAMILIES if family.in_prompt for mark in family.closings)
_CLOSING_AGAIN = tuple(
    mark for family in FAMILIES if family.in_prompt and not family.is_prose for mark in family.closings
)
_WRAP_OPENINGS = tuple(mark for wrap in WRAPS for mark in wrap.openings)
_WRAP_CLOSINGS = tuple(mark for wrap in WRAPS for mark in wrap.closings)
_START, _CHANNEL, _MESSAGE = CHANNEL_MARKS[:3]
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_BETWEEN_MESSAGES = re.compile(r"(<\|(?:start|end|return|call)\|>)")
# The beginning of a text with channels, even if a server has removed some marks.
_ON_CHANNELS = re.compile(
    r"(?:<\|start\|>assistant(?! to=user<)[^<]*|(?:assistant|analysis|commentary|final)?\s*)<\|(?:channel|message)\|>"
)
# The beginning of such a text without any marks, if a server has removed all special tokens.
_BARE_CHANNELS = re.compile(r"(?:assistant)?(?:(?:analysis|commentary)(.*?))?assistantfinal", re.DOTALL)
_FIRST_WORDS = (
    *(mark for mark in _OPENINGS + _WRAP_OPENINGS if mark[0] not in "<[◁"),
    *("analysis", "commentary", "assistantanalysis", "assistantcommentary", "assistantfinal"),
)
_UNMARKED = re.compile(
    "|".join(re.escape(mark) for family in FAMILIES if family.is_prose for mark in family.openings)
    + r"|(?:assistant)?(?:analysis|commentary)(?=[^ \t:,.;()-])|assistantfinal"
)
# The marks at the end of a turn, which some servers leave in the text, each with the mark that begins a turn.
_TURN_MARKS = {
    "</s>": "<s>",
    "<|im_end|>": "<|im_start|>",
    "<|eot_id|>": "<|start_header_id|>",
    "<|eom_id|>": "<|start_header_id|>",
    "<|end_of_text|>": "<|begin_of_text|>",
    "<|endoftext|>": "<|startoftext|>",
    "<end_of_turn>": "<start_of_turn>",
    "<turn|>": "<|turn>",
    "<eos>": "<bos>",
    "<|END_OF_TURN_TOKEN|>": "<|START_OF_TURN_TOKEN|>",
    "[|endofturn|]": "[|assistant|]",
    "<｜end▁of▁sentence｜>": "<｜begin▁of▁sentence｜>",
    "<|end▁of▁sentence|>": "<|begin▁of▁sentence|>",
}
_TURN_ENDS = (*_ENDS, *_TURN_MARKS)
_EMPTY_BLOCKS = ("<think/>", "<think />", "<thought/>", "<thought />")
_MARKS = (*CHANNEL_MARKS, *TAGS, *_TURN_MARKS, *_EMPTY_BLOCKS)
_MARK_LENGTH = max(map(len, _MARKS))
_BLANK = "\ufeff \t\r\n"
_OPENING_QUOTES, _CLOSING_QUOTES = frozenset("`\"'“"), frozenset("`\"'”")
_PROSE = re.compile(r"(?<=\w) $")
_BOX = re.compile(r"(?<![`\"'“])<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL)
_THOUGHT = r"(?i:[\w.:|-]*(?:think|thought|reason|reflect|ponder|scratchpad|analysis|monolog)[\w.:|-]*)"
_UNKNOWN = re.compile(
    rf"\s*(<[|｜][\w▁.: -]+[|｜]?>|<{_THOUGHT}>|&lt;{_THOUGHT}&gt;|\[{_THOUGHT}\]|◁{_THOUGHT}▷"
    r"|<details type=.reasoning.|<(?:bos|pad|start_of_turn|role)>|<s>(?!.*</s>)|analysis(?=[A-Z]\w* ))",
    re.DOTALL,
)
# The end of a text that looks like a mark of a turn: `<|…|>`, `[|…|]`, and the special tokens of some tokenizers.
_UNKNOWN_END = re.compile(
    r"(<[|｜][\w▁./: -]+[|｜]>|\[\|[\w./: -]+\|\]"
    r"|<(?:s|pad|eos|eot|unk|_end|end_of_[a-z]+|start_of_turn|reserved_\d+)>|\[EOS\]|\[/INST\])\Z"
)
# A call at the beginning of a line, in the forms of `backends/engines/tool_use.py`: a tag with the words tool call, a
# tag of DeepSeek's or GigaChat's markup (its bars vary, and its first tag may be missing), and the others by name.
_BARS = "[|｜‖\u2223]"
_CALL = re.compile(
    rf"^[ \t]*(<{_BARS}{{0,2}}[\w:|]{{0,30}}?(?:tool|function)[▁_](?:calls?|use|code)"
    rf"(?:[▁_:]\w{{1,20}}){{0,3}}{_BARS}{{0,2}}>"
    rf"|<{_BARS}{{1,2}}[A-Z]{{1,8}}ML{_BARS}{{1,2}} ?\w{{0,20}}|\[TOOL_(?:CALLS|REQUEST)\]|<function(?:=| name=)"
    r"|<(?:\w{1,20}:)?invoke name=|<\|(?:python_tag|START_ACTION|action_start|tools_prefix|content_invoke_tool_json)\|>"
    r"|<\|(?:start|channel)\|>.{0,40}to=functions|<\|open\|>tools|<\|plamo:begin_tool)",
    re.MULTILINE,
)


def may_have_marks(text: str) -> bool:
    """Return whether a text may contain a mark: it has the first character of one, or begins like a mark in prose."""
    return "<" in text or "[" in text or "◁" in text or bool(_UNMARKED.match(text[:_MARK_LENGTH].lstrip(_BLANK)))


def unknown_mark(text: str) -> str:
    """Return the unknown mark at the beginning of a text if it resembles the marks of `FAMILIES`; otherwise `""`.

    A mark of `FAMILIES` also counts as unknown if its block begins only after other lines.

    >>> unknown_mark("<pondering>France?</pondering>Paris")
    '<pondering>'
    """
    found = _UNKNOWN.match(text, 0, 80)
    if found is not None and not found[1].startswith(_MARKS):
        return found[1]
    if "\n<" not in text and "\n[" not in text:
        return ""
    pairs = ((opening, closing) for family in FAMILIES for opening in family.openings for closing in family.closings)
    return next((opening for opening, closing in pairs if closing in text.partition(f"\n{opening}")[2]), "")


def unknown_end(text: str) -> str:
    """Return the mark at the end of a text if it resembles the marks of a model's turns; otherwise `""`.

    >>> unknown_end("Paris<|end_of_utterance|>"), unknown_end("The end token is <pad>")
    ('<|end_of_utterance|>', '')
    """
    end = text.rstrip()[-80:]
    if not end.endswith(_LAST_CHARACTERS):  # the usual case
        return ""
    found = _UNKNOWN_END.search(end) if end.endswith((">", "]")) else None
    mark = found[1] if found is not None else next((opening for opening in _TAG_OPENINGS if end.endswith(opening)), "")
    if not mark:
        return ""
    before = end.removesuffix(mark)
    return "" if not before or _PROSE.search(before) or before[-1] in _OPENING_QUOTES else mark


def unread_call(text: str) -> str:
    """Return the mark of a tool call that a server left at the beginning of a line of the text; `""` without one.

    >>> unread_call('I look.\\n<tool_call>{"name": "look"}</tool_call>')
    '<tool_call>'
    """
    found = _CALL.search(text) if "<" in text or "[TOOL_" in text else None
    return "" if found is None else found[1]


def split_reasoning(text: str, *, opened: Family | None = None) -> tuple[str | None, str]:
    """Return `(reasoning, answer)` of a text that may begin with `<think>…</think>`, or with another family's marks.

    `opened`: the family whose opening mark ends the prompt, as in some chat templates. If a block never closes (the
    answer was cut off), the whole text is reasoning and the answer is empty.

    >>> split_reasoning("<think>France?</think>Paris")
    ('France?', 'Paris')
    """
    found = _split_blocks(text.lstrip(_BLANK), opened)
    return (None, _unwrapped(text)) if found is None else found


def _split_blocks(start: str, opened: Family | None = None) -> tuple[str | None, str] | None:
    """Return `(reasoning, answer)` of a text that begins inside a block or with a block; None for other texts."""
    if empty := next((mark for mark in _EMPTY_BLOCKS if start.startswith(mark)), ""):
        return None, _unwrapped(start.removeprefix(empty).lstrip(), behind_reasoning=True)
    if opened is None and not start.startswith(_OPENINGS):
        return None
    family = opened or next(one for one in FAMILIES if start.startswith(one.openings))
    if family.is_prose and _closing_in(start, family) is None:
        return None
    thoughts: list[str] = []
    is_within = opened is not None
    while is_within or start.startswith(family.openings):
        start = _without_opening(start, family)
        place, end = _closing_in(start, family) or (len(start), len(start))
        thoughts.append(start[:place].strip())
        start = start[end:].lstrip()
        is_within = False
    rest, start = _closed_again(start)
    thoughts += rest
    return "\n".join(filter(None, thoughts)) or None, _unwrapped(start, behind_reasoning=True)


def _closed_again(text: str) -> tuple[list[str], str]:
    """Return `(thoughts, answer)` of the text after a thought, in which a model may close the thought again."""
    thoughts: list[str] = []
    while (found := _closed_in(text, _CLOSING_AGAIN)) is not None:
        thoughts.append(found[0].strip())
        text = found[1].lstrip()
    return thoughts, text


def _closed_in(text: str, marks: Iterable[str] = _CLOSING_ALONE) -> tuple[str, str] | None:
    """Return the texts around the first closing mark; None if an opening mark precedes it, or if it is in prose."""
    place, mark = min((_place_of(mark, text), mark) for mark in marks)
    before, behind = text[:place], text[place + len(mark) :]
    if place == len(text) or any(opening in before for opening in _OPENINGS):
        return None
    return None if _PROSE.search(before) and behind[:1] == " " else (before, behind)


def _without_opening(start: str, family: Family) -> str:
    """Return the text after the opening mark, which a model may repeat after the end of its prompt."""
    bare = start.lstrip()
    return next((bare.removeprefix(mark) for mark in family.openings if bare.startswith(mark)), start)


def _closing_in(text: str, family: Family) -> tuple[int, int] | None:
    """Return the start and the end of the first closing mark."""
    places = [(place, place + len(mark)) for mark in family.closings if (place := text.find(mark)) >= 0]
    return min(places, default=None)


def _unwrapped(text: str, *, behind_reasoning: bool = False) -> str:
    """Return an answer without the marks around it."""
    if text.lstrip(_BLANK).startswith(_WRAP_OPENINGS) or text.rstrip().endswith(_WRAP_CLOSINGS):
        for wrap in WRAPS:
            text = _without(wrap, text, behind_reasoning=behind_reasoning)
    return _BOX.sub(r"\1", text) if "<|begin_of_box|>" in text else text


def _without(wrap: Wrap, text: str, *, behind_reasoning: bool) -> str:
    start = text.lstrip(_BLANK)
    opening = next((mark for mark in wrap.openings if start.startswith(mark)), "")
    if opening and (behind_reasoning or not wrap.is_plain):
        text = start[len(opening) :]
        closing = next((mark for mark in wrap.closings if mark in text), "")
        return "".join(text.split(closing, maxsplit=1)).strip() if closing else text.strip()
    end = text.rstrip()
    closing = next((mark for mark in wrap.closings if end.endswith(mark)), "")
    return text if wrap.is_plain else end.removesuffix(closing).rstrip() if closing else text


def opened_by(prompt: str) -> Family | None:
    """Return the family whose opening mark ends a prompt, so that the answer begins inside the reasoning."""
    end = prompt[-_MARK_LENGTH - 8 :].rstrip()
    return next((one for one in FAMILIES if one.in_prompt and end.endswith(one.openings)), None)


def split_marked(text: str) -> tuple[str | None, str]:
    """Return `(reasoning, answer)` of a text from an endpoint, for the marks of any model.

    The opening mark may be missing, because some chat templates end the prompt with it.
    """
    text = without_turn_end(text)
    start = text.lstrip(_BLANK)
    if (block := _split_blocks(start)) is not None:
        return block
    if _ON_CHANNELS.match(start) or _begins_in_channel(start):
        return split_channels(start)
    if _UNMARKED.match(start) and (bare := _BARE_CHANNELS.match(start)):
        return (bare[1] or "").strip() or None, start[bare.end() :].lstrip()
    if (found := _closed_in(start)) is None:
        return None, _unwrapped(text)
    thoughts, answer = _closed_again(found[1].lstrip())
    return "\n".join(filter(None, [found[0].strip(), *thoughts])) or None, _unwrapped(answer, behind_reasoning=True)


def without_turn_end(text: str) -> str:
    """Return a text without the mark of its end, and without the turns that a model has written after it.

    A mark belongs to the answer if it is in prose, or if the text also has its opening mark.

    >>> without_turn_end("Paris</s>"), without_turn_end("<s>Rome</s>"), without_turn_end("The end token is </s>")
    ('Paris', '<s>Rome</s>', 'The end token is </s>')
    """
    end = text.rstrip()
    for mark, begin in _TURN_MARKS.items():
        before = end.partition(begin)[0].rstrip() if begin in end else ""
        if before.endswith(mark) and end.find(mark) == len(before) - len(mark):
            text, end = before, before
    while mark := next((mark for mark in _TURN_ENDS if end.endswith(mark)), ""):
        before = end.removesuffix(mark)
        if _TURN_MARKS.get(mark, mark) in before or _PROSE.search(before):
            break
        text, end = before, before.rstrip()
    return text


def _begins_in_channel(text: str) -> bool:
    """Return whether a text begins inside gpt-oss's reasoning, because the prompt ended with its opening marks."""
    thought, _, behind = text.partition(_ENDS[0])
    return behind.startswith(f"{_START}assistant{_CHANNEL}") and "<|" not in thought


def _place_of(mark: str, text: str) -> int:
    """Return the position of a closing mark that is neither quoted nor in prose; without such a mark, the length of
    `text`.

    A regular expression would take twenty times as long and block the event loop.
    """
    place = text.find(mark)
    while place >= 0:
        end = place + len(mark)
        if text[max(0, place - 1) : place] not in _OPENING_QUOTES or text[end : end + 1] not in _CLOSING_QUOTES:
            return place
        place = text.find(mark, end)
    return len(text)


def without_broken_mark(text: str, marks: Iterable[str] = _MARKS) -> str:
    """Return an unfinished text without its end, if the end may be the beginning of one of `marks`.

    If only later text decides whether the first sentence is reasoning, return `""` for now.

    >>> without_broken_mark("<think>France?</th")
    '<think>France?'
    """
    end = text[-_MARK_LENGTH:]
    for at, character in enumerate(end):
        if character in "<[◁" and any(mark.startswith(end[at:]) for mark in marks):
            text = text[: at - len(end)]
            break
    start = text.lstrip(_BLANK)
    if not start or any(words.startswith(start) for words in _FIRST_WORDS):
        return ""
    return "" if _UNMARKED.match(start) and split_marked(start) == (None, start) else text


def split_channels(text: str) -> tuple[str | None, str]:
    """Return `(reasoning, answer)` of a text that has the marks of gpt-oss's Harmony format.

    The answer consists of messages in the channel `final` and messages without a channel; all others are reasoning.
    Format: github.com/openai/harmony, docs/format.md.
    """
    if not any(mark in text for mark in (_CHANNEL, _MESSAGE, *_ENDS)):
        return None, text
    texts: dict[bool, list[str]] = {True: [], False: []}
    before = ""
    for piece in _BETWEEN_MESSAGES.split(text):
        header, mark, content = piece.partition(_MESSAGE)
        if mark:
            channel = header.rpartition(_CHANNEL)[2].strip()
            texts[not channel or channel.startswith(("final", "assistant"))].append(content)
        elif _CHANNEL not in piece and before != _START and not _BETWEEN_MESSAGES.match(piece):
            texts[f"{_CHANNEL}final" not in text].append(piece)  # a text outside of messages, but no header
        before = piece
    reasoning = "\n".join(filter(None, map(str.strip, texts[False])))
    return reasoning or None, "".join(texts[True])
