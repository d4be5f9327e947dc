"""The JSON Schema of an answer: compiled once, and checked for every answer.

compile_schema → AnswerSchema.check: valid | repaired | problem

If the check of a schema may take arbitrarily long (see `_ANY_TIME`), it runs in the process of `Checker`.

A repair takes JSON from surrounding text or corrects slips of notation: see `json_in_text`.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from promptmill.answers.json_in_text import DoubtError, candidates, is_denied, read_json, with_latex, written
from promptmill.answers.schema_mistakes import why_not_usable
from promptmill.answers.text_formats import CHECKS, NAMES
from promptmill.core.bounds import LONGEST_ANSWER, LONGEST_SCHEMA, MOST_KEPT
from promptmill.core.errors import input_error
from promptmill.core.request import is_longer
from promptmill.core.values import JsonObject
from promptmill.core.wording import beginning

MOST_SCHEMAS = MOST_KEPT // 4
"""The most compiled schemas in a cache; each takes thirty times the memory of its text."""

_LONG_NUMBER = re.compile(r"[0-9]{32}")  # comparing an integer of thousands of digits takes a millisecond
# With these keywords, a check's time or a schema's memory may be out of proportion to their lengths (see `_SOON`).
_ANY_TIME = re.compile(
    r'"(?:\$ref|\$dynamicRef|\$recursiveRef|pattern|patternProperties|uniqueItems|multipleOf|unevaluated\w+)"'
)
# Length of the schema times length of the answer: up to this product, the event loop checks the answer within 10 ms.
_SOON = 16 << 20
_READING = 256  # parsing an answer takes as long as checking it against a schema of this length
# The bound on backtracking in `fancy-regex`, which supports lookaround (as in the patterns of pydantic's `Decimal`).
_BACKTRACKS = 10_000
_FIELD_BEHIND = r"(?im)(?:^|[{{,])[\W_]{{0,8}}{}[\W_]{{0,4}}[:=]"


class Checked(NamedTuple):
    """The result of a check. If `problem` is empty, `text` satisfies the schema."""

    text: str
    problem: str = ""
    repaired: bool = False


class AnswerSchema:
    """A schema that answers must satisfy. Create it with `compile_schema`."""

    def __init__(self, content: str, quick: Any = None) -> None:
        """`quick`: the validator of a schema whose checks take little time. Other schemas are compiled on first use."""
        self.content = content
        """The schema as JSON text."""
        self._quick = quick

    @functools.cached_property
    def _validator(self) -> Any:
        return self._quick or _validator_of(json.loads(self.content))

    def is_soon_valid(self, text: str) -> bool:
        """Return whether `text` satisfies the schema; False if the check would take more than some milliseconds."""
        work = max(len(self.content), _READING) * len(text)
        if self._quick is None or work > _SOON or _LONG_NUMBER.search(text) or with_latex(text) != text:
            return False
        try:
            return bool(self._quick.is_valid(read_json(text)))
        except ValueError:
            return False

    @staticmethod
    def why_not_read(text: str) -> str:
        """Return the reason why the answer `text` is too large to check; `""` if it is not."""
        return f"it is longer than {LONGEST_ANSWER >> 20} MiB" if len(text) > LONGEST_ANSWER else ""

    def check(self, text: str, *, complete: bool = True) -> Checked:
        """Return the answer `text` unchanged if it satisfies the schema, repaired if possible, else with its problem.

        A repair is made only if it is beyond doubt (see `candidates`), and never if the answer is not `complete`. A
        check may take any time and memory: see `Checker`.
        """
        if (escaped := with_latex(text)) != text:
            checked = self.check(escaped, complete=complete)
            return Checked(text, checked.problem) if checked.problem else checked._replace(repaired=True)
        try:
            value = read_json(text)
        except ValueError:
            problem = f"it is not JSON, it {beginning(text)}"
        else:
            if self._validator.is_valid(value):
                return Checked(text)
            problem = self._problem(value)
        return self._repaired(text, problem) if complete else Checked(text, problem)

    def _repaired(self, text: str, problem: str) -> Checked:
        """Return the only value that an invalid answer may mean. `problem`: the problem of the whole answer."""
        found: dict[str, str] = {}
        try:
            for value, begin, end in candidates(text):
                problem = self._problem(value)
                for kept in (value, *self._without_nulls(value)):
                    if self._validator.is_valid(kept):
                        if is_denied(text, begin, end):
                            return Checked(text, "its words deny the JSON value in it")
                        if not (as_json := written(kept)):
                            return Checked(text, "JSON cannot represent a number or a character in it")
                        found[json.dumps(kept, sort_keys=True)] = as_json
                        self._check_behind(value, text[end:])
                        break
        except DoubtError as doubt:
            return Checked(text, str(doubt) if found else problem)
        if len(found) == 1:
            return Checked(found.popitem()[1], repaired=True)
        if found:
            problem = "it contains several JSON values that satisfy the schema"
        return Checked(text, problem)

    def _check_behind(self, value: Any, behind: str) -> None:
        """Raise `DoubtError` if the text after an object has a field that the object lacks, such as `total: 12`."""
        fields = json.loads(self.content).get("properties", {})
        for name in fields if isinstance(value, dict) else ():
            if name not in value and re.search(_FIELD_BEHIND.format(re.escape(name)), behind):
                raise DoubtError(f"the field {name!r:.40} follows the JSON object")

    def _problem(self, value: Any) -> str:
        problems = []
        for error in itertools.islice(self._validator.iter_errors(value), 3):
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
            problems.append(f"at ${place}: {_complaint(error)}"[:300])
        return "; ".join(problems)

    def _without_nulls(self, value: Any) -> Iterator[Any]:
        """Yield variants of `value` without optional fields that are null.

        Strict endpoints require every field, so they write null for an optional field.
        """
        flagged = {tuple(error.instance_path) for error in self._validator.iter_errors(value)}
        pruned = _pruned(value, flagged, ())
        if pruned == value:
            pruned = _pruned(value, None, ())
        yield pruned


def _complaint(error: Any) -> str:
    """Return the problem of a value; the problem of a date or a time quotes the value."""
    from jsonschema_rs import ValidationErrorKind  # imported on use: it takes 20 ms

    if isinstance(error.kind, ValidationErrorKind.Format):
        return f"{error.instance!r:.60} is not {NAMES[error.kind.format]}"
    return str(error.message)


def _pruned(value: Any, places: set[tuple[str | int, ...]] | None, here: tuple[str | int, ...]) -> Any:
    """Return `value` without the null fields at `places`, or at all places if `places` is None."""
    if isinstance(value, dict):
        return {
            key: _pruned(inner, places, (*here, key))
            for key, inner in value.items()
            if inner is not None or (places is not None and (*here, key) not in places)
        }
    if isinstance(value, list):
        return [_pruned(inner, places, (*here, index)) for index, inner in enumerate(value)]
    return value


def compile_schema(schema: JsonObject, where: str = "schema") -> AnswerSchema:
    """Compile `schema` for checking answers. A `$ref` to another document is never fetched.

    Raises `PromptmillError` (`invalid_input`) if the schema is invalid or too large. `where`: the schema's name.
    """
    try:
        content = "" if is_longer(schema, LONGEST_SCHEMA) else json.dumps(schema)
        if 0 < len(content) <= LONGEST_SCHEMA:
            return _compiled(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise input_error(f"{where} is not a usable JSON Schema: {why_not_usable(error, schema)}") from None
    raise input_error(f"{where} is longer than {LONGEST_SCHEMA >> 10} KiB; send a shorter schema.")


@functools.lru_cache(maxsize=MOST_SCHEMAS)
def _compiled(content: str) -> AnswerSchema:
    patterns: list[str] = []
    validator = _validator_of(_without_patterns(json.loads(content), patterns))
    _check_patterns(patterns)
    return AnswerSchema(content, None if _ANY_TIME.search(content) else validator)


def _validator_of(schema: Any) -> Any:
    import jsonschema_rs  # imported on use: it takes 20 ms

    options = jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
    return jsonschema_rs.validator_for(
        schema, formats=dict(CHECKS), validate_formats=True, offline=True, mask="it", pattern_options=options
    )


def _without_patterns(schema: Any, patterns: list[str]) -> Any:
    """Return `schema` without patterns, whose automata may take any memory. Add the patterns to `patterns`."""
    if isinstance(schema, list):
        return [_without_patterns(one, patterns) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    bare = {name: _without_patterns(value, patterns) for name, value in schema.items()}
    if isinstance(bare.get("pattern"), str):
        patterns.append(bare["pattern"])
        bare["pattern"] = ""
    if isinstance(named := bare.get("patternProperties"), Mapping):
        patterns += named
        bare["patternProperties"] = {f"{number}": value for number, value in enumerate(named.values())}
    return bare


def _check_patterns(patterns: list[str]) -> None:
    """Raise `ValueError` for an invalid regular expression. The patterns are only parsed, in 0.1 µs each."""
    import jsonschema_rs

    is_pattern = jsonschema_rs.validator_for({"format": "regex"}, validate_formats=True).is_valid
    for pattern in patterns:
        if not is_pattern(pattern):
            raise ValueError(f'{pattern!r:.80} is not a "regex"')
