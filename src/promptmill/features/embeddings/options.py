"""The options of embeddings."""

from __future__ import annotations

from typing import Any

from promptmill.core.errors import Named
from promptmill.options.option import Argument, Excluded, Flag, Keyword, Option

COLUMN = "embedding"
_WHY = "; a vector has no answer"
_NO_ANSWERS = [
    *("schema", "choices", "max_words", "match", "language", "split", "votes", "sure", "check"),
    *("audio_column", "n"),
]


def implied(value: object) -> dict[str, Any]:
    """Return the options that `embed` implies: its text becomes the prompt."""
    prompt = {"prompt": value} if isinstance(value, str) else {}
    return {**prompt, "answer_column": COLUMN}


OPTIONS = (
    Option(
        "embed",
        str | bool,
        "a vector of this text for each row, such as '{{title}} {{text}}', in place of an answer",
        flag=Flag(metavar="TEXT", is_common=True, brief="a vector of this text for each row, such as '{{text}}'"),
        argument=Argument(words="a vector of this text for each row, in place of an answer: {{column}} is its cell"),
        keyword=Keyword(type="str | bool | None"),
        keys=["sampling_params.embed"],
        implies="promptmill.features.embeddings.options:implied",
        excludes=[
            Excluded("prompt", "; the text of the vector is its own"),
            Excluded("fields", _WHY, when=lambda present: isinstance(present["fields"], str)),
            *(Excluded(name, _WHY) for name in _NO_ANSWERS),
        ],
    ),
    Option(
        "dimensions",
        int,
        "how many numbers a vector has, for models that shorten their vectors",
        flag=Flag(metavar="N"),
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.dimensions"],
        needs=[Named("embed")],
    ),
    Option(
        "picture_api",
        str,
        "the API of the endpoint for vectors of pictures: doubao, jina, voyage or cohere",
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.picture_api"],
        needs=[Named("embed")],
    ),
)
