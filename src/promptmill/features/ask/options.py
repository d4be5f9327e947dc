"""The option for several questions about each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.options.option import Excluded, Flag, Keyword, Option
from promptmill.options.table import SEVERAL

_OWN = "; write a question's answers behind its name: NAME:a|b"
_APART = (
    "; these questions are several requests about a row. Write them without columns, and the row in the prompt, to "
    "ask all in one"
)
_NOT_APART = (
    *("batch", "together", "dedupe", "quote", "decide", "sure", "votes", "split", "row_settings", "tools"),
    *("check", "max_words", "match", "language"),
)


def implied(value: object) -> dict[str, Any]:
    """Return the options that `ask` implies: a schema, and the prompt None, so that errors about it mention `ask`."""
    from promptmill.features.ask.asked_questions import joined_definitions, questions_of, schema_of

    questions = questions_of(value)
    definitions = joined_definitions(questions)
    return {"prompt": None, "schema": schema_of(questions), **({"definitions": definitions} if definitions else {})}


def _are_apart(present: Mapping[str, Any]) -> bool:
    """Return whether the questions need separate requests."""
    from promptmill.features.ask.plan import Ask

    return Ask.of(present, ()) is not None


_SEVERAL_MODELS, _SEVERAL_PROMPTS = SEVERAL

OPTIONS = (
    Option(
        "ask",
        list[str] | dict[str, str],
        "several questions, each its own column: `{'Tone': 'Which tone? {{text}}', 'Why': 'Why {{Tone}}? {{text}}'}`; "
        "without columns, they are asked about {prompt}",
        flag=Flag(
            metavar="NAME=TEXT",
            words="a question with a column of its own, 'Tone:good|bad=Is it praise? {{text}}'; repeat it for more; "
            "without a column, it is asked about {prompt}; {{Tone}} is an earlier answer",
            action="append",
            is_common=True,
            brief="a question with its own column; repeat it for more",
        ),
        argument=None,
        keyword=Keyword(type="Mapping[str, str | tuple[str, Sequence[str] | Mapping[str, str]]] | None"),
        implies="promptmill.features.ask.options:implied",
        excludes=[
            Excluded("choices", _OWN),
            Excluded("schema", _OWN),
            Excluded("fields", _OWN, when=lambda present: isinstance(present["fields"], str)),
            Excluded("embed", "; a vector answers no question"),
            _SEVERAL_PROMPTS,
            Excluded("prompt_column", "; name the column in the prompts instead: {{column}}"),
            _SEVERAL_MODELS._replace(
                why=_APART, when=lambda present: _SEVERAL_MODELS.applies(present) and _are_apart(present)
            ),
            *(Excluded(name, _APART, when=_are_apart) for name in _NOT_APART),
        ],
        names="nothing",
    ),
)
