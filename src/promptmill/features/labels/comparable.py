"""What comparable labels need: the settings of the requests, and the columns about a label in the output."""

from __future__ import annotations

from collections.abc import Collection

from promptmill.answers.response_format import schema_of
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, input_error
from promptmill.core.request import Sampling

SURE, SCORE = "sure", "score"
"""The column that names who gave the label, and the column with the label's score (0 to 1)."""


def check_comparable(config: ModelConfig, option: str, recall: Collection[str] = ()) -> None:
    """Raise `PromptmillError` (`invalid_input`) if answers of different models cannot be compared as labels.

    `recall`: labels that the schema or the choices must permit.
    """
    sampling = config.settings.sampling_params
    has_schema = sampling.response_format is not None and schema_of(sampling.response_format) is not None
    if sampling.choices is None and not has_schema:
        forms = Named("choices"), ", ", Named("fields"), " or ", Named("schema")
        raise input_error(Named(option), " compares labels, so it needs ", *forms, ".")
    if (sampling.n or 1) > 1:
        raise input_error(Named(option), " cannot be used with ", Named("n"), "; leave one of them out.")
    for label in recall:
        if label not in (sampling.choices or ()):
            raise input_error(Named("recall"), f": {label[:40]} is none of the ", Named("choices"), ".")


def repeating(sampling: Sampling, slot: int) -> dict[str, bool | int | float]:
    """Return parameters that make repeated answers differ: at temperature 0 or with one seed, they would be equal."""
    extra: dict[str, bool | int | float] = {} if sampling.temperature else {"temperature": 1.0}
    return extra if sampling.seed is None else extra | {"seed": sampling.seed + slot}
