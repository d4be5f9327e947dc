"""The JSON Schema of an answer: read from `response_format`, compiled once, and checked for every answer.

response_format → schema_of → compile_schema → AnswerSchema.check: valid | repaired | problem

If the check of a schema may take any time (see `_ANY_TIME`), the process of `Checker` runs it.

A repair extracts JSON from surrounding text or corrects slips of notation, if the meaning is beyond doubt.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from promptmill.core.bounds import LONGEST_ANSWER, LONGEST_SCHEMA, MOST_KEPT, MOST_UNREADABLE
from promptmill.core.errors import Named, input_error
from promptmill.core.request import is_longer
from promptmill.core.values import JsonDict, JsonObject, composed
from promptmill.core.wording import close_matches, shape

if TYPE_CHECKING:
    from pydantic import BaseModel

AnswerType: TypeAlias = "JsonObject | type[BaseModel]"
"""A JSON Schema, or a pydantic class whose instances the answers become."""

_LONG_NUMBER = re.compile(r"[0-9]{32}")  # comparing an integer of thousands of digits takes a millisecond
# Keywords with which a check's time, or a compiled schema's memory, exceeds a product of two lengths.
_ANY_TIME = re.compile(
    r'"(?:\$ref|\$dynamicRef|\$recursiveRef|pattern|patternProperties|uniqueItems|multipleOf|unevaluated\w+)"'
)
# Length of the schema times length of the answer: up to this product, the event loop checks it within 10 ms.
_SOON = 16 << 20
_READING = 256  # parsing an answer takes as long as checking it against a schema of this length
_KEPT = MOST_KEPT // 4  # max schemas in the cache; a compiled schema takes thirty times the memory of its text
_SHOWN = 60
# bound on the matching of `fancy-regex`, which supports lookaround (as in the patterns of pydantic's `Decimal`)
_BACKTRACKS = 10_000
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
# names of types in programming languages
_OTHER_NAMES = {"str": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean"}
_OTHER_NAMES |= {"list": "array", "dict": "object", "none": "null", "text": "string"}

# keywords of json-schema.org, draft 2020-12, without annotations; in `response_format`, `json_schema` has the schema
_SAYING = frozenset(
    {"properties", "required", "items", "enum", "const"}
    | {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "additionalProperties", "patternProperties"}
    | {"propertyNames", "prefixItems", "contains", "minProperties", "maxProperties", "minItems", "maxItems"}
    | {"uniqueItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum"}
    | {"exclusiveMaximum", "multipleOf", "dependentRequired", "dependentSchemas", "definitions"}
    | {"json_schema", "schema"}
)
_ABOUT = frozenset(
    {"type", "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
    | {"minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties", "additionalItems", "dependencies"}
    | {"contentEncoding", "contentMediaType", "contentSchema", "nullable", "discriminator", "propertyOrdering"}
    | {"name", "strict", "id", "enumDescriptions", "enumNames"}
)
"""Further keywords that tools support."""
_ALIKE = 0.8

# platform.openai.com/docs/guides/structured-outputs
_AN_OBJECT: JsonObject = {"type": "object"}
_FORM = '{"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}'

_CHOICE = "answer"  # the field of the JSON object that holds a choice
_AROUND_CHOICE = " \t\r\n\"'`*_.\u3002\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb"  # quotes, emphasis and full stops

_FENCE = "```"
_LANGUAGE = re.compile(r"(?i)[ \t]*(?:json[5c]?)?")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
# LaTeX with one backslash, which JSON reads as a form feed or a backspace: `\frac`, `\beta`. No text means a backspace.
_LATEX = re.compile(r"(?<!\\)((?:\\\\)*)\\(?=f(?:rac|orall|box|lat|rown)|b[A-Za-z])")
# A repair may change only these marks of JSON, never a word, a number or a bracket.
_MARKS = re.compile(r"[\s\"'`:,\\]+")
_OPENING, _BRACKET, _PARTNERS = re.compile(r"[{\[]"), re.compile(r"[{}\[\]]"), {"{": "}", "[": "]"}
_JSON_LIKE = re.compile(r"""\{\s*(?:["']|\w+\s*:)|\[\s*["'{\[]""")
_GOES_ON = re.compile(r"""[\s}\]]*(?:,\s*(?:["'{\[\d]|\w+["']?\s*:)|["'](?:[^"'\n]*["']\s*:|\s*[,:}\]]))""")
_CLOSING = re.compile(r"[}\]]")
_AND_MORE = re.compile(
    r"""(?:[ \t]*[,;])?[ \t]*(?:["']?-?\d|\.\.\.|…|(?:and|plus|und|sowie|et|y|e)\b[^.!?\n]*["'{\[\d])"""
)
_FIELD_BEHIND = r"(?im)(?:^|[{{,])[\W_]{{0,8}}{}[\W_]{{0,4}}[:=]"
# Words that negate a value, in the most frequent languages of answers.
_DENYING = (
    "not|never|cannot|nor|neither|wrong|incorrect|invalid|instead of|rather than",
    r"nicht|kein\w*|falsch\w*|statt|pas|jamais|faux|fausse",
    "no es|no son|nunca|incorrect[ao]|não|errad[ao]|non|sbagliat[ao]",
    "не|нет|неверно|неправильно",
)
_DENIAL = re.compile(rf"\b(?:{'|'.join(_DENYING)})\b|n['\u2019]t\b|[不没沒非错錯違]|ない|ません|아니|않", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"[?\uff1f]|(?:no|nein|non|não|нет|不)[,.!:;\uff0c]|(?:wait|actually|sorry|correction|oops|hmm)\b|"
    rf"(?:that|this|it|which|das|dies|ce|c'est|eso|esto)\b[^.!?\n]*\b(?:{'|'.join(_DENYING)})\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|[。\n]")
_LEAD = " \t\r\n:\uff1a"  # what may stand between a sentence and the value that it introduces
_SAME_SENTENCE = re.compile(r"[^.!?。\n]*")
_AROUND = " \t\n`.,:;!)\"'*_\u2014\u2013-"
_NEAR = 300  # characters around a value in which a negation is searched for: about a sentence


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
        if self._quick is None or work > _SOON or _LONG_NUMBER.search(text) or _LATEX.search(text):
            return False
        try:
            return bool(self._quick.is_valid(_read_json(text)))
        except ValueError:
            return False

    @staticmethod
    def why_not_read(text: str) -> str:
        """Return the reason why the answer `text` is too large to check; `""` if it is not."""
        return f"it is longer than {LONGEST_ANSWER >> 20} MiB" if len(text) > LONGEST_ANSWER else ""

    def check(self, text: str, *, complete: bool = True) -> Checked:
        """Return the answer `text` unchanged if it satisfies the schema, else repaired, or else with its problem.

        A repair is made only if it is beyond doubt (see `_candidates`), and never if the answer is not `complete`. This
        may take any time and memory: see `Checker`.
        """
        if (with_latex := _LATEX.sub(r"\1\\\\", text)) != text:
            checked = self.check(with_latex, complete=complete)
            return Checked(text, checked.problem) if checked.problem else checked._replace(repaired=True)
        try:
            value = _read_json(text)
        except ValueError:
            start = " ".join(text[:_SHOWN].split())
            problem = f"it is not JSON, it begins with {start!r}" if start else "it is not JSON, it is empty"
        else:
            if self._validator.is_valid(value):
                return Checked(text)
            problem = self._problem(value)
        if not complete:
            return Checked(text, problem)
        found: dict[str, str] = {}
        try:
            for value, begin, end in _candidates(text):
                problem = self._problem(value)
                for kept in (value, *self._without_nulls(value)):
                    if self._validator.is_valid(kept) and (written := _written(kept)):
                        if _is_denied(text, begin, end):
                            return Checked(text, "its words deny the JSON value in it")
                        found[json.dumps(kept, sort_keys=True)] = written
                        self._check_behind(value, text[end:])
                        break
        except _DoubtError as doubt:
            return Checked(text, str(doubt) if found else problem)
        if len(found) == 1:
            return Checked(found.popitem()[1], repaired=True)
        if found:
            problem = "it contains several JSON values that satisfy the schema"
        return Checked(text, problem)

    def _check_behind(self, value: Any, behind: str) -> None:
        """Raise `_DoubtError` if the text after an object gives a field that the object lacks: `total: 12`."""
        fields = json.loads(self.content).get("properties", {})
        for name in fields if isinstance(value, dict) else ():
            if name not in value and re.search(_FIELD_BEHIND.format(re.escape(name)), behind):
                raise _DoubtError(f"the field {name!r:.40} follows the JSON object")

    def _problem(self, value: Any) -> str:
        problems = []
        for error in itertools.islice(self._validator.iter_errors(value), 3):
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
            problems.append(f"at ${place}: {error.message}"[:300])
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


def _pruned(value: Any, places: set[tuple[str | int, ...]] | None, here: tuple[str | int, ...]) -> Any:
    """Return `value` without the null fields at `places` (None: at all places)."""
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
        raise input_error(f"{where} is not a usable JSON Schema: {_why_not_usable(error, schema)}") from None
    raise input_error(f"{where} is longer than {LONGEST_SCHEMA >> 10} KiB; send a shorter schema.")


@functools.lru_cache(maxsize=_KEPT)
def _compiled(content: str) -> AnswerSchema:
    patterns: list[str] = []
    validator = _validator_of(_without_patterns(json.loads(content), patterns))
    _check_patterns(patterns)
    return AnswerSchema(content, None if _ANY_TIME.search(content) else validator)


def _validator_of(schema: Any) -> Any:
    import jsonschema_rs  # imported on use: it takes 20 ms

    options = jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
    return jsonschema_rs.validator_for(schema, offline=True, mask="it", pattern_options=options)


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
    """Raise `ValueError` for an invalid regular expression. They are parsed but not compiled: 0.1 µs each."""
    import jsonschema_rs

    is_pattern = jsonschema_rs.validator_for({"format": "regex"}, validate_formats=True).is_valid
    for pattern in patterns:
        if not is_pattern(pattern):
            raise ValueError(f'{pattern!r:.80} is not a "regex"')


def why_no_schema(schema: JsonObject) -> str:
    """Return the problem if `schema` is an example answer or has a misspelt keyword; `""` otherwise."""
    if strange := [name for name in schema if not isinstance(name, str)]:
        return f"has {shape(strange[0])} as a key; keys are texts."
    if not _is_example(schema):
        return _misspelt(schema)
    name = f"{next(iter(schema)):.40}"
    fields = f'{{"{name}": {{"type": "string"}}}}'
    return (
        "is an example, not a JSON Schema. A schema states the type of each field: "
        f'{{"type": "object", "properties": {fields}, "required": ["{name}"]}}.'
    )


def _misspelt(schema: JsonObject) -> str:
    """Return the problem if a keyword or a required field of a schema looks like a misspelling of another.

    JSON Schema ignores unknown keywords, so the misspelt schema would be valid, and every answer or none would match.
    """
    # only 50, because the comparison of names takes time
    for path, name, known in itertools.islice(_unknown(schema), 50):
        if near := close_matches(name, itertools.islice(known, 50), 1, _ALIKE):
            return f"has a mistake: {_dotted(path)[:100]}: {name!r:.40}; did you mean {near[0]:.40}?"
    return ""


def _unknown(schema: JsonObject) -> Iterator[tuple[list[str | int], str, Collection[str]]]:
    """Yield unknown keywords and undefined required fields, each with its path, its name, and the known names."""
    waiting: list[tuple[list[str | int], Any]] = [([], schema)]
    while waiting:
        path, here = waiting.pop()
        if not isinstance(here, Mapping):
            continue
        fields, required = here.get("properties"), here.get("required")
        fields = fields if isinstance(fields, Mapping) else {}
        for name in required if isinstance(required, list) else ():
            if isinstance(name, str) and name not in fields:
                yield [*path, "required"], name, fields
        for name in here:
            if name not in _SAYING and name not in _ABOUT and not name.startswith(("$", "x-")):
                yield path or ["the schema"], name, _SAYING
        waiting += [([*path, "properties", name], inner) for name, inner in fields.items()]
        waiting.append(([*path, "items"], here.get("items")))


def _is_example(schema: JsonObject) -> bool:
    """Return whether `schema` is an example answer: it has fields, but no keyword that constrains answers.

    `name` and `title` do not count as keywords, because many answers have such fields.
    """
    kind = schema.get("type")
    if isinstance(kind, list) or (isinstance(kind, str) and (kind in _TYPES or _meant_type(kind))):
        return False
    return bool(schema) and not any(name in _SAYING or name.startswith("$") for name in schema)


def _why_not_usable(error: Exception, schema: JsonObject) -> str:
    path = list(getattr(error, "instance_path", []))
    if path and (wrong := _wrong_type(path, schema)):
        return wrong
    # only the first line, because the others quote the schema
    reason = (str(getattr(error, "message", "")) or str(error) or type(error).__name__).splitlines()[0]
    return f"{_dotted(path)}: {reason[:200].rstrip('.')}." if path else f"{reason[:200].rstrip('.')}."


def _wrong_type(path: list[str | int], schema: JsonObject) -> str:
    """Return the problem of a `type` that names an unknown type; `""` for other problems."""
    value: Any = schema
    for part in path:
        value = value[part]
    if path[-1] == "type" and isinstance(value, list):
        value = next((one for one in value if one not in _TYPES), None)
    if "type" not in path[-2:] or not isinstance(value, str) or value in _TYPES:
        return ""
    near = _meant_type(value)
    return f"{_dotted(path)}: {value[:40]!r}; {f'did you mean {near}?' if near else 'types: ' + ', '.join(_TYPES)}"


def _meant_type(name: str) -> str:
    near = close_matches(name.lower(), _TYPES, n=1)
    return _OTHER_NAMES.get(name.lower()) or (near[0] if near else "")


def _dotted(path: list[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def why_not_json(error: json.JSONDecodeError) -> str:
    """Explain why a text is not valid JSON, with the line, the column and the remedy."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if rest.startswith(","):  # newer Python versions report the position of the comma
        before, rest = f"{before},", rest[1:].lstrip()
    what = error.msg[:1].lower() + error.msg[1:]
    if not rest:
        what = "it ends too early, perhaps without a closing bracket"
    elif before.endswith(",") and rest[0] in "}]":
        what = f"remove the comma before the {rest[0]}"
    elif rest[0] == "'":
        what = "write names and texts in double quotes"
    elif "delimiter" in error.msg:
        what = "a comma or a closing bracket is missing" if "," in error.msg else "a colon is missing"
    return f"line {error.lineno}, column {error.colno}: {what}"


class Choices:
    """The texts from which an answer is chosen. They are requested as a JSON object with one field, for every backend.

    An engine that renders the prompt itself appends `OPENING` to it and lets the model write one of `endings`, so only
    the choice is written. Small models choose better with `OPENING`: 197 of 220 labels were right, without it 119.
    """

    OPENING = f'{{"{_CHOICE}": "'

    def __init__(self, choices: Sequence[str]) -> None:
        self._choices = dict.fromkeys(choices)
        alike: dict[str, set[str]] = {}
        for choice in choices:
            alike.setdefault(_bare(choice), set()).add(choice)
        self._by_bare = {bare: found.pop() for bare, found in alike.items() if len(found) == 1}
        self._endings = {choice: json.dumps(choice, ensure_ascii=False)[1:] + "}" for choice in choices}
        field = {"type": "string", "enum": [*choices]}
        self.response_format = asking_for(
            {"type": "object", "properties": {_CHOICE: field}, "required": [_CHOICE], "additionalProperties": False}
        )

    @property
    def endings(self) -> list[str]:
        """For each choice, the rest of the answer (a JSON object) after `OPENING`."""
        return [*self._endings.values()]

    def chosen(self, answer: str, *, complete: bool = True) -> str:
        """Return the choice in `answer`, even as a bare word or with other quotes or case; `""` if in doubt.

        A choice inside a sentence is in doubt ("not positive"). In an answer that is not `complete`, a choice that
        begins another choice is in doubt too.
        """
        if len(answer) > LONGEST_ANSWER:
            return ""
        fenced = {piece for piece, *_ in _fenced(answer)}
        text = (fenced.pop() if len(fenced) == 1 else answer).strip()
        value: Any = text
        if text not in self._choices:  # tested first, because `true`, `1.5` and `{}` may be choices
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
        if isinstance(value, dict):
            found = [*value.values()]
            value = found[0] if len(found) == 1 else value.get(_CHOICE)
        elif not complete and any(other != value and other.startswith(str(value)) for other in self._choices):
            return ""
        if value is None or isinstance(value, bool):
            value = json.dumps(value)
        if not isinstance(value, str):
            return ""
        value = value.strip()
        return value if value in self._choices else self._by_bare.get(_bare(value), "")

    def completed(self, text: str) -> str | None:
        """Return the answer whose text after `OPENING` starts with `text`; None while several answers are possible."""
        possible = self.possible(text)
        return self.OPENING + self._endings[possible[0]] if len(possible) == 1 else None

    def possible(self, text: str) -> list[str]:
        """Return the choices that are still possible for an answer whose text after `OPENING` starts with `text`."""
        return [choice for choice, ending in self._endings.items() if ending.startswith(text)]

    def why_none(self, answer: str) -> str:
        """Return the problem if an answer is not one of the choices, as the predicate of a sentence."""
        listed, start = ", ".join(self._choices), " ".join(answer[:_SHOWN].split())
        shown = listed if len(listed) <= 300 else f"{listed[:300]}…"
        return f"is none of the choices {shown}; it {f'begins with {start!r}' if start else 'is empty'}"


@functools.lru_cache(maxsize=MOST_KEPT)  # cached, because rows with their own parameters may have equal choices
def choices_of(texts: tuple[str, ...]) -> Choices:
    """Return the choices `texts`."""
    return Choices(texts)


def _bare(text: str) -> str:
    """Return a choice without quotes, emphasis, final stop and case, in one Unicode form."""
    return " ".join(composed(text).strip(_AROUND_CHOICE).split()).casefold() or text


def asking_for(schema: JsonObject) -> JsonDict:
    """Return a `response_format` that requests answers with this schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def with_schema(options: Mapping[str, Any], answer_schema: AnswerType | None) -> Mapping[str, Any]:
    """Return `options` with the `response_format` for `answer_schema` added. `{}` means no schema.

    Raises `PromptmillError`, for example if `choices` are also set.
    """
    if not answer_schema:
        return options
    if options.get("choices") is not None:
        raise input_error(Named("choices"), " and ", Named("schema"), " exclude each other; give one of them.")
    if isinstance(answer_schema, Mapping) and (wrong := why_no_schema(answer_schema)):
        raise input_error(Named("schema"), f" {wrong}")
    if not isinstance(answer_schema, Mapping) and not hasattr(answer_schema, "model_json_schema"):
        raise input_error(Named("schema"), f" is {shape(answer_schema)}; give a JSON Schema, or a class of pydantic.")
    schema = json_schema_of(answer_schema)
    compile_schema(schema)
    return {**options, "response_format": asking_for(schema)}


def json_schema_of(answer_schema: AnswerType) -> JsonObject:
    """Return the JSON Schema of a pydantic class. Other schemas stay unchanged."""
    return answer_schema.model_json_schema() if isinstance(answer_schema, type) else answer_schema


def schema_of(wanted: JsonObject | None) -> JsonObject | None:
    """Return the schema in the `response_format` `wanted`; None if it does not request JSON.

    JSON mode means any object. The engine or endpoint handles other kinds (`structural_tag`, …). Raises
    `PromptmillError` (`invalid_input`) for a `json_schema` without a schema.
    """
    kind = (wanted or {}).get("type")
    if wanted is None or kind not in {"json_object", "json_schema"}:
        return None
    if kind == "json_object":
        return _AN_OBJECT
    block = wanted.get("json_schema")
    if not isinstance(block, Mapping):
        raise input_error(f"response_format.json_schema is {shape(block)}; send {_FORM}.")
    schema = block.get("schema")
    if not isinstance(schema, Mapping):
        raise input_error(f"response_format.json_schema.schema is {shape(schema)}; send {_FORM}.")
    return schema


class SchemaCache:
    """Compiled schemas of `response_format` values. Each schema is compiled once."""

    def __init__(self) -> None:
        # by identity: a call's items share the object, which is kept alive so that its id is not reused
        self._by_id: dict[int, tuple[JsonObject, asyncio.Task[AnswerSchema] | None]] = {}
        self._turn = asyncio.Lock()  # one compilation at a time: several in threads would slow the event loop

    async def of(self, wanted: JsonObject) -> AnswerSchema | None:
        """Return the compiled schema of `wanted`; None if it does not request JSON. Raises like `compile_schema`."""
        known = self._by_id.get(id(wanted))
        if known is None:
            if len(self._by_id) >= _KEPT:  # cleared, because each row may have its own schema
                self._by_id.clear()
            schema = schema_of(wanted)
            compiling = None if schema is None else asyncio.ensure_future(self._compiled(schema))
            known = self._by_id[id(wanted)] = (wanted, compiling)
        return None if known[1] is None else await asyncio.shield(known[1])

    async def _compiled(self, schema: JsonObject) -> AnswerSchema:
        async with self._turn:
            return await asyncio.to_thread(compile_schema, schema, "response_format")


def _read_json(text: str) -> Any:
    """Parse a JSON text. Raises `ValueError`, also for NaN and too deep nesting."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# Also reads line breaks and tabs in texts, which some models do not escape.
_DECODER = json.JSONDecoder(parse_constant=_refuse, strict=False)


def _written(value: Any) -> str:
    """Return `value` as JSON; `""` for a number that JSON cannot represent (Python reads 1e999 as infinite)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return ""


class _DoubtError(Exception):
    """A text may say more than the values parsed from it. The message states the problem of the answer."""


def _candidates(text: str) -> Iterator[tuple[Any, int, int]]:
    """Yield the values that `text` may mean, each with its start and end.

    They are the whole text, perhaps as the content of a JSON string; scalars in code fences; and objects and lists in
    prose, in which slips (trailing commas, single quotes, missing quotes) are corrected, but never a word or a bracket.
    Raises `_DoubtError` for a value that is cut off, or that continues after its end.
    """
    with contextlib.suppress(ValueError, RecursionError):
        value = _DECODER.decode(text)
        if isinstance(value, str):
            value = _DECODER.decode(value)
        yield value, 0, len(text)
        return
    for piece, begin, end in _fenced(text):
        with contextlib.suppress(ValueError):
            if not isinstance(value := _read_json(piece), dict | list):
                yield value, begin, end
    yield from _values(text)


def _fenced(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the content of each code fence in `text` without the language's name, with its start and end."""
    pieces, begin = text.split(_FENCE), 0
    for at, piece in enumerate(pieces[:-1]):  # the last piece has no closing fence
        end = begin + len(piece)
        if at % 2:
            found = _LANGUAGE.match(piece)
            yield piece[found.end() if found else 0 :].strip(), begin, end
        begin = end + len(_FENCE)


def _values(text: str) -> Iterator[tuple[Any, int, int]]:
    """Yield the objects and lists in `text`, each with its start and end. Raises `_DoubtError`."""
    place, unreadable, ends = 0, 0, None
    while opening := _OPENING.search(text, place):
        start = opening.start()
        is_prose = False
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            is_prose = not _JSON_LIKE.match(text, start)  # prose in brackets, for example [sic]
            ends = _ends_of_groups(text) if ends is None else ends
            end = ends.get(start, start + 1)
            value = _mended(text[start:end]) if start in ends else None
            unreadable += 1
            if value is None and (not is_prose or unreadable > MOST_UNREADABLE):
                raise _DoubtError("a JSON value in it is cut or cannot be read") from None
        place = end
        if not is_prose:
            following = _OPENING.search(text, end)
            behind = text[end : following.start() if following else len(text)].lstrip(" \t\r\n,}]")
            if _GOES_ON.match(text, end) or _AND_MORE.match(text, end) or _CLOSING.search(behind):
                raise _DoubtError("it continues after the end of a JSON value")
        if value is not None:
            yield value, start, end


def _ends_of_groups(text: str) -> dict[int, int]:
    """Return the start of each matched bracket with the position after its partner. Brackets inside texts count."""
    ends, waiting = dict[int, int](), list[int]()
    for found in _BRACKET.finditer(text):
        if found[0] in _PARTNERS:
            waiting.append(found.start())
        elif waiting and _PARTNERS[text[waiting[-1]]] == found[0]:
            ends[waiting.pop()] = found.end()
        else:
            waiting.clear()
    return ends


def _mended(part: str) -> Any:
    """Return the object or list in `part`, with slips corrected; None if in doubt."""
    from json_repair import repair_json

    try:
        value = repair_json(part, return_objects=True)
        same = _words(part) == _words(_written(value))
    except (ValueError, RecursionError, TypeError):
        return None
    return value if same and isinstance(value, dict | list) else None


def _without_lead(text: str) -> str:
    text = text.rstrip(_LEAD)
    before, fence, language = text.rpartition(_FENCE)
    return before.rstrip(_LEAD) if fence and (not language or language.isalnum()) else text


def _is_denied(text: str, start: int, end: int) -> bool:
    """Return whether the sentence around a value negates it, or the next sentence retracts it."""
    before, behind = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    before = _SENTENCE_END.split(_without_lead(before))[-1]
    after = _SAME_SENTENCE.match(behind)
    sentence = before + (after[0] if after else "")
    return bool(_DENIAL.search(sentence) or _TAKEN_BACK.match(behind.lstrip(_AROUND)))


def _words(text: str) -> str:
    """Return the words of `text` without JSON's marks, with Python's `None` as `null`."""
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).encode("utf-16", "surrogatepass").decode("utf-16")
    return re.sub(r"\bNone\b", "null", _MARKS.sub(" ", text)).casefold().replace(" ", "")
