"""The parameters of checks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from promptmill.answers.pattern import whole_match
from promptmill.core.parameter import APPLIED, Parameters
from promptmill.system.installation import command_for


def _a_pattern(value: str | None) -> str | None:
    try:
        whole_match(value or "")
    except ValueError:
        raise PydanticCustomError(
            "pattern", "is no regular expression, or one with look-around, back-references or millions of repetitions"
        ) from None
    return value


_CODES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr
fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko
ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru
rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo
yue zh zu zxx
"""
LANGUAGES = frozenset(_CODES.split())
"""The codes of the languages that py3langid knows. They are listed here, because py3langid takes seconds to load, and a
call is checked in the event loop."""


def likelihoods(text: str) -> dict[str, float]:
    """Return the natural logarithm of each language's likelihood, by the language's code."""
    import py3langid  # imported on use: it takes 0.2 s, and is an extra

    return dict(py3langid.rank(text))


def _a_language(value: str | None) -> str | None:
    if value is not None and find_spec("py3langid") is None:
        raise PydanticCustomError(
            "language", "needs py3langid; `{command}` installs it", {"command": command_for("language")}
        )
    if value is not None and value not in LANGUAGES:
        raise PydanticCustomError("language", "is no code of a language, such as en, de or zh")
    return value


class CheckWishes(Parameters):
    """The conditions that an answer must satisfy, in addition to a schema."""

    max_words: Annotated[int | None, APPLIED] = Field(
        None, ge=1, description="Most words of an answer; a longer one is requested again, `check_retries` times."
    )
    match: Annotated[str | None, AfterValidator(_a_pattern), APPLIED] = Field(
        None, max_length=1000, description="A regular expression that the whole answer must match, likewise."
    )
    language: Annotated[str | None, AfterValidator(_a_language), APPLIED] = Field(
        None, description="The ISO 639 code of the answer's language, likewise; an answer of a word or two passes."
    )
