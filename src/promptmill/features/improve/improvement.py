"""`promptmill.improve`: the search for a better prompt, for Python programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

from promptmill.core.values import JsonObject
from promptmill.features.improve import search_text as words
from promptmill.features.improve.verb import IMPROVE
from promptmill.features.verbs.job_series import SeriesOptions

_WIDTH = 100  # characters of a line


class ImproveOptions(SeriesOptions, total=False):
    """The options of a search for a better prompt."""

    again: Literal["failed", "prompts"] | None


@dataclass(frozen=True, repr=False)
class Improvement:
    """The result of a search for a better prompt."""

    figures: JsonObject
    """All figures, as in `promptmill improve --json`."""

    @property
    def outcome(self) -> str:
        """The result of the winner on the held-out rows: "gain", "worse" or "cannot tell"."""
        return str(self.figures["outcome"])

    @property
    def prompt(self) -> str:
        """The prompt with the most right answers on the seen rows."""
        return str(self.figures["prompt"])

    def __repr__(self) -> str:
        return f"<Improvement: {self.outcome}, {self.figures['winner']}>"

    def __str__(self) -> str:
        return "\n".join(words.lines(self.figures, _WIDTH))


def improve(
    rows: Any,
    prompt: str,
    *,
    gold: str,
    choices: str | Path | Sequence[str] | Mapping[str, str],
    strong: str,
    output: str | Path | None = None,
    overwrite: bool = False,
    **options: Unpack[ImproveOptions],
) -> Improvement:
    """Let the model `strong` write better prompts from mistakes on some labelled rows; test the best on the others.

    `rows`: a file, a table or a list of rows as in `bulk`, at least 100 of them with the right label in the column
    `gold`. `prompt` and `choices`: as in `bulk`. `output`: the file for the best prompt, which may
    replace a file if `overwrite=True`. The options of `bulk` for the model, `temperature` and `max_tokens` apply to
    the model that labels the rows. `system`, `encoding`, `max_cost` (of the whole search), `state` and `progress`: as
    in `bulk`; `again="failed"`: send failed rows again; `again="prompts"`: let `strong` write other prompts.

        promptmill.improve("reviews.csv", "Is it positive? {{text}}", gold="label", choices=["yes", "no"],
                           model="small-1", strong="good-1").outcome

    Raises `PromptmillError` when the search stops; the same call resumes it.
    """
    given = {"input": rows, "prompt": prompt, "gold": gold, "choices": choices, "strong": strong, "output": output}
    return Improvement(IMPROVE.figures({**options, **given, "overwrite": overwrite}))
