"""The option for a second model, which decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.options.option import Argument, Excluded, Flag, Keyword, Option
from promptmill.options.table import SEVERAL

_ON_PARTS = "; it would check the answers of both models apart"


def _is_own_model(present: Mapping[str, Any]) -> bool:
    """Return whether the model that decides is the job's own."""
    return present["model"] in (present["decide"], [present["decide"]])


OPTIONS = (
    Option(
        "decide",
        str,
        "a model that decides: it gets the fields with a few allowed answers, and {model} gets the others; a row is "
        "two requests and one answer",
        flag=Flag(metavar="MODEL"),
        argument=Argument(
            words="with `schema` or `fields`: a model that decides, for the fields with a few allowed answers; the "
            "job's own model gets the others"
        ),
        keyword=Keyword(type="str | None"),
        excludes=[
            *SEVERAL,
            Excluded("model", "; one model answers all fields without it", words="the same model", when=_is_own_model),
            Excluded("choices", ", which leaves nothing to write"),
            Excluded("batch", "; no provider runs decisions in batches"),
            Excluded("together", "; each model gets one row in a request"),
            Excluded("embed", "; a vector has no fields"),
            Excluded("dedupe", "; a row is two requests"),
            Excluded("quote", "; a model that decides quotes nothing"),
            *(Excluded(name, _ON_PARTS) for name in ("check", "max_words", "match", "language")),
        ],
    ),
)
