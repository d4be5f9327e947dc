"""The evidence and the instructions of a request to a deciding model, made from the parts of the request.

columns of the row ─▶ evidence         system prompt, words of the template ─▶ instructions
                                       form ─▶ questions (`core.form.Form.asked`)
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

from promptmill.core.bounds import MOST_CHOICES
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.form import Asked, Choice, Form, Scale, YesNo
from promptmill.core.request import SYSTEM_ROLES, Conversation, Fields, Message, Request
from promptmill.core.values import JsonDict, composed, exact_float, json_text
from promptmill.core.wording import cut, listed

Evidence: TypeAlias = str | JsonDict | list[Any]
"""A text; the texts of the row's columns by name; the turns of a conversation; or a client's JSON."""
_SHOWN = 60  # characters of an option in an error
_CHAT = "answer with a chat model", Named("model", text=" ({})"), "."


def evidence_of(request: Request) -> Evidence:
    """Return the evidence: the JSON of a client as it came, the row's columns (a single column: its text), or the turns
    of a prompt without columns.

    >>> from promptmill.core.request import Sampling
    >>> mail = Conversation((Message("user", "Mail: hi"),))
    >>> evidence_of(Request(0, mail, Sampling(), fields=Fields(("Mail: ", "mail", ""), ("hi",))))
    'hi'
    """
    if request.state:
        with contextlib.suppress(ValueError):  # a mask in place of a number: the text has the mask, too
            state: Evidence = json.loads(request.state, parse_float=exact_float)
            return state
    fields = request.fields
    if fields is not None and fields.texts and not request.is_part:
        cells: JsonDict = dict(zip(fields.parts[1::2], fields.texts, strict=True))
        return cells if len(cells) > 1 else fields.texts[0]
    turns = [message for message in request.conversation.messages if message.role not in SYSTEM_ROLES]
    if len(turns) > 1:
        return [{"role": message.role, "content": _text_of(message)} for message in turns]
    return _text_of(turns[0]) if turns else ""


def instructions_of(request: Request) -> str:
    """Return the instructions: the system prompt, and the words of the template."""
    system = "\n\n".join(_text_of(one) for one in request.conversation.messages if one.role in SYSTEM_ROLES)
    has_fields = request.fields is not None and request.fields.texts and not request.is_part
    return "\n\n".join(filter(None, (system, words_around(request.fields) if has_fields and request.fields else "")))


def words_of(asked: Asked, instructions: str) -> str:
    """Return the instructions of one question."""
    if not asked.title:
        return "\n\n".join(filter(None, (instructions, asked.words))) or "Which of the options fits the input?"
    match asked.kind:
        case YesNo():
            usual = f"Is `{asked.title}` true of the input?"
        case Scale():
            usual = f"Which level of `{asked.title}` does the input have?"
        case _:
            usual = f"Which `{asked.title}` fits the input?"
    own = f"`{asked.title}`: {asked.words}" if asked.words else usual
    return "\n\n".join(filter(None, (instructions, own)))


def words_around(fields: Fields) -> str:
    """Return the words of a template; with several columns, the words include the columns' names.

    >>> words_around(Fields(("Which team? ", "mail", ""), ("hi",)))
    'Which team?'
    """
    if not "".join(fields.parts[::2]).strip():
        return ""
    names = fields.parts[1::2]
    is_several = len({*names}) > 1
    marks = [f"`{name}`" if is_several else "the input" for name in names]
    if len(marks) == 1 and not (fields.parts[0].strip() and fields.parts[-1].strip()):
        marks = [""]  # the column is before or after all words
    pairs = zip(fields.parts[::2], [*marks, ""], strict=True)
    return "".join(part for pair in pairs for part in pair).strip(" \t\r\n:")


def _text_of(message: Message) -> str:
    return "\n\n".join(Conversation((message,)).texts)


@functools.lru_cache(MOST_CHOICES)  # each row has the same options
def plain(option: str) -> str:
    """Return an option as models see it: in Unicode's composed form, with single blanks."""
    return " ".join(composed(option).split())


def size_of(request: Request, form: Form, times: int = 1) -> int:
    """Return an upper bound of the bytes of a request's evidence and questions as JSON. `times`: the number of requests
    that the questions need, each with the evidence."""
    evidence = evidence_of(request)
    texts = [evidence if isinstance(evidence, str) else json_text(evidence)] * times
    instructions = instructions_of(request)
    for asked in form.asked:
        texts.append(words_of(asked, instructions))
        texts += (text for option in asked.options for text in (option.text, option.definition))
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def decidable(form: Form | None, *, options: int, levels: int) -> Form:
    """Return the form if a model can decide it. Raises `PromptmillError` (`invalid_input`).

    `options`: the most options of a choice. `levels`: the most levels of a scale.
    """
    if form is None:
        raise _undecidable("A model that decides needs to know the possible answers, and this request names none.", ())
    if form.open_fields:
        what = "field" if len(form.open_fields) == 1 else "fields"
        raise _undecidable(
            f"The {what} {listed(form.open_fields)} may have any value; a model that decides answers yes or no, one of "
            "a list, any of a list, or a step of a short scale.",
            form.open_fields,
        )
    for asked in form.asked:
        texts = [option.text for option in asked.options]
        where = f"`{asked.name}`" if asked.name else "The choices"
        _check_different(texts, where)
        if isinstance(asked.kind, Scale) and len(asked.kind.levels) > levels:
            raise _too_many(f"{where}: {len(asked.kind.levels):,} levels, of which this endpoint takes {levels:,}")
        if isinstance(asked.kind, Choice) and len(texts) > options:
            raise _too_many(f"{where}: {len(texts):,} options, of which this endpoint takes {options:,}")
        if len(texts) < 2:
            raise input_error(f"{where}: one option is no choice; name at least two.")
    return form


def _check_different(texts: Sequence[str], where: str) -> None:
    known: dict[str, str] = {}
    for text in texts:
        if not plain(text):
            raise input_error(f"{where}: an option is empty; name it, or leave it out.")
        if (other := known.setdefault(plain(text), text)) is not text:
            raise input_error(
                f"{where}: {cut(text, _SHOWN)!r} and {cut(other, _SHOWN)!r} are the same option for a model; keep one."
            )


def _undecidable(said: str, fields: Collection[str]) -> PromptmillError:
    out = f"Leave {'it' if len(fields) == 1 else 'them'} out" if fields else "Give it `choices` or a schema"
    return PromptmillError(Code.INVALID_INPUT, said, (f"{out}, or ", *_CHAT))


def _too_many(said: str) -> PromptmillError:
    remedy = "Ask with fewer, ask for a yes or no for each, or ", *_CHAT
    return PromptmillError(Code.INVALID_INPUT, f"{said}.", remedy)
