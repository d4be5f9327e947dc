"""Answers whose labels can be compared: the settings of their requests, and the columns with their marks."""

from __future__ import annotations

from collections.abc import Collection

from promptmill.answers.schema import schema_of
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Named, input_error
from promptmill.core.request import Sampling

SURE, SCORE = "sure", "score"
"""Columns: who gave the label, and how sure it is (0 to 1)."""


def check_comparable(config: ResolvedConfig, option: str, recall: Collection[str] = ()) -> None:
    """Raise `PromptmillError` (`invalid_input`) unless the answers of different models can be compared.

    `recall`: labels that the answers must be able to have.
    """
    sampling = config.settings.sampling_params
    has_schema = sampling.response_format is not None and schema_of(sampling.response_format) is not None
    if sampling.choices is None and not has_schema:
        raise input_error(
            Named(option), " compares labels: it goes with ", Named("choices"), " or ", Named("schema"), "."
        )
    if (sampling.n or 1) > 1:
        raise input_error(Named(option), " goes without ", Named("n"), ".")
    for label in recall:
        if label not in (sampling.choices or ()):
            raise input_error(Named("recall"), f": {label[:40]} is none of the ", Named("choices"), ".")


def repeating(sampling: Sampling, slot: int) -> dict[str, bool | int | float]:
    """Return the parameters of a repeat: at the temperature 0, or with one seed, repeats would be equal."""
    extra: dict[str, bool | int | float] = {} if sampling.temperature else {"temperature": 1.0}
    return extra if sampling.seed is None else extra | {"seed": sampling.seed + slot}
