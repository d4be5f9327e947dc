"""The parameters of checks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from promptmill.core.parameter import APPLIED, Parameters
from promptmill.system.installation import adding

if TYPE_CHECKING:
    from jsonschema_rs import Validator

_PATTERN_BYTES = 1 << 20  # of a compiled pattern: `\d{1,100000}` would take gigabytes


@functools.lru_cache(64)
def whole_match(pattern: str) -> Validator:
    """Return the validator of texts that match a pattern as a whole. Raises `ValueError` for an invalid pattern.

    Its time is linear in the text, unlike that of `re`, in which a pattern of a client may take hours.
    """
    from jsonschema_rs import RegexOptions, validator_for  # imported on use, as in `answers.schema`

    schema = {"type": "string", "pattern": f"^(?:{pattern})$"}
    return validator_for(schema, pattern_options=RegexOptions(size_limit=_PATTERN_BYTES))


def _a_pattern(value: str | None) -> str | None:
    try:
        whole_match(value or "")
    except ValueError:
        raise PydanticCustomError(
            "pattern", "is no regular expression, or one with look-around, back-references or millions of repetitions"
        ) from None
    return value


@functools.lru_cache(1)
def languages() -> frozenset[str]:
    """Return the codes of the languages that can be told apart. Raises `ImportError` without py3langid."""
    return frozenset(likelihoods(""))


def likelihoods(text: str) -> dict[str, float]:
    """Return the natural logarithm of each language's likelihood, by the language's code."""
    import py3langid  # imported on use: it takes 0.2 s, and is an extra

    return dict(py3langid.rank(text))


def _a_language(value: str | None) -> str | None:
    try:
        is_known = value is None or value in languages()
    except ImportError:
        raise PydanticCustomError("language", "needs py3langid. {hint}", {"hint": adding("language")}) from None
    if not is_known:
        raise PydanticCustomError("language", "is no code of a language, such as en, de or zh")
    return value


class Wanted(Parameters):
    """What an answer must satisfy, apart from a schema."""

    max_words: Annotated[int | None, APPLIED] = Field(
        None, ge=1, description="Most words of an answer; a longer one is requested again, `check_retries` times."
    )
    match: Annotated[str | None, AfterValidator(_a_pattern), APPLIED] = Field(
        None, max_length=1000, description="A regular expression that the whole answer must match, likewise."
    )
    language: Annotated[str | None, AfterValidator(_a_language), APPLIED] = Field(
        None, description="The ISO 639 code of the answer's language, likewise; an answer of a word or two passes."
    )
