"""The grammars for OpenVINO's constrained answers: for JSON schemas, and for choices.

A JSON schema becomes an EBNF grammar whose only white space is a space after `,` and `:`, and perhaps after `{`.
OpenVINO's own grammar allows any white space, and a small model then writes blank lines until `max_tokens`: of 100
answers with a list of texts, 36 were valid, after 93 tokens each; with this grammar, all were valid, after 49 tokens.

The grammar is as strict as OpenVINO's: fields keep the schema's order; other fields occur if `additionalProperties`
allows them. A text with a limited length has no escapes; a number has at most 18 digits before its point and 17 after.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from promptmill.answers.choices import Choices
from promptmill.backends.engines.choice_tokens import ChoiceTokens
from promptmill.core.bounds import MOST_GRAMMAR_WORK, MOST_KEPT
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.values import JsonObject

# OpenVINO compiles a grammar inside a step, for which all rows wait and which cannot end early. On one core, with a
# vocabulary of 49,152 tokens, a length or repeat that unrolls to 100 places takes 1.1 s, and one of 500 or more places
# takes 3.5 s; 800 optional properties take 6 s, 2,500 take 77 s; 240 KB of required properties take 0.8 s. In grammars
# of `StrictJson`, a limited length takes 0.3 to 0.4 s, and 300 optional properties take 6 s.
_CHARACTERS_PER_WORK = 3000
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_VALUES = frozenset({"enum", "const", "default", "examples"})

_IGNORED = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "uniqueItems"}
    | {"$comment", "$schema", "$id", "$defs", "definitions"}
)
"""Keywords without an effect on the grammar. (The complete answer is checked for unique items.)"""
_EXCLUSIVE = frozenset({"exclusiveMinimum", "exclusiveMaximum"})
_BOUNDS = _EXCLUSIVE | {"minimum", "maximum"}
_KEYWORDS: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern"}),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": frozenset(),
    "null": frozenset(),
}
# If the space were required, the embedded model would write the first field's name letter by letter, and worse values.
_OPENING = '"{" " "?'
_CHARACTER = r'[^"\\\x00-\x1f]'
_SHARED = rf"""
value ::= object | array | string | number | "true" | "false" | "null"
object ::= {_OPENING} (pair (", " pair)*)? "}}"
pair ::= string ": " value
array ::= "[" (value (", " value)*)? "]"
string ::= "\"" characters
characters ::= "\"" | {_CHARACTER} characters | "\\" escape characters
escape ::= ["\\/bfnrt] | "u" [0-9a-fA-F]{{4}}
integer ::= "-"? ("0" | [1-9] [0-9]{{0,17}})
number ::= integer ("." [0-9]{{1,17}})? ([eE] [-+]? [0-9]{{1,2}})?
"""
_LARGEST = 10**18 - 1
# OpenVINO takes 10 ms of processor time for each place of a repeat and, if a repeat has more than about 128 places, 0.2
# s for each later token. A longer repeat of rules with at most 16 places each takes 0.4 s, and 0.01 s for each token.
_LONGEST_REPEAT = 16
# A class is bounded to 200 characters, because otherwise each `[` of a pattern of many `[` would be read to the end.
_PIECE_OF_PATTERN = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\]){1,200}\]|\(\?:|[*+?]\??|\{\d+(?:,\d*)?\}\??|.", re.DOTALL)
_CLASSES = {"d": "0-9", "w": "a-zA-Z0-9_"}
_NEEDING_ESCAPE = '"\\' + "".join(map(chr, range(32)))  # characters that JSON texts must escape
_MISREAD = re.compile(
    "([\x80-\xff])"
)  # OpenVINO would read this letter and a following hex digit as one code: `ße` as U+0DFE


class _Costs(NamedTuple):
    """The work of compiling a schema into one of the two forms of grammars."""

    most_of_a_length: int
    squares_per_work: int
    """The work for optional properties is the square of their number, divided by this."""


_STRICT = _Costs(most_of_a_length=40, squares_per_work=150)
_OWN = _Costs(most_of_a_length=350, squares_per_work=1000)


class Grammar(NamedTuple):
    """A constraint in one of OpenVINO's forms."""

    form: str
    """The keyword argument of `StructuredOutputConfig` to which `text` is passed."""
    text: str


def grammar_of_schema(wanted: Mapping[str, Any], warnings: list[str]) -> Grammar:
    """Return the grammar for a JSON schema, without lengths and patterns that take too long to compile.

    A warning names the omitted parts; complete answers are validated against all of `wanted`. Raises `PromptmillError`
    (`invalid_input`) if the rest of the schema still takes more than about a second.
    """
    grammar, is_whole = _of_schema(json.dumps(wanted))
    if not is_whole:
        warnings.append(
            "The openvino backend generates answers without the longest `minLength`, `maxLength` and `pattern` of "
            "this schema, whose grammar takes too long to compile; the answers are checked against them."
        )
    return grammar


def grammar_of_choices(choices: Choices) -> Grammar:
    """Return the grammar for the rest of an answer that begins with `choices.OPENING`."""
    return Grammar("grammar", f"root ::= {' | '.join(map(_literal, choices.endings.values()))}")


def fragments(choices: Choices, own: ChoiceTokens, numbers: Mapping[bytes, int]) -> frozenset[int] | None:
    """Return the tokens that `grammar_of_choices` permits and that no choice contains. `numbers`: the vocabulary.

    Return None if an answer could not be continued without these tokens: the grammar also permits a token of one choice
    in another choice, and may thus lead to a text that no choice's own token continues.
    """
    endings = [ending.encode() for ending in choices.endings.values()]
    texts = b"\xff".join(endings)  # a byte that no text has
    tokens = {number: piece for piece, number in numbers.items() if piece and piece in texts}
    own_tokens = {token for sequence in own.sequences.values() for token in sequence}
    own_pieces = {piece for token, piece in tokens.items() if token in own_tokens}
    sizes = {*map(len, own_pieces)}
    reached, ahead = set[tuple[int, bytes]](), [(0, endings)]
    while ahead:
        end, possible = ahead.pop()
        if len(possible) == 1:
            continue
        following = {ending[end : end + size] for ending in possible for size in sizes} & own_pieces
        if not following:
            return None
        for piece in following:
            longer = [ending for ending in possible if ending.startswith(piece, end)]
            place = end + len(piece), longer[0]  # a text is identified by its length and its first ending
            if place not in reached:
                reached.add(place)
                ahead.append((place[0], longer))
    return frozenset(tokens.keys() - own_tokens)


@functools.lru_cache(maxsize=MOST_KEPT)
def _of_schema(text: str) -> tuple[Grammar, bool]:
    """Return the grammar for the schema `text`, and whether it covers the whole schema."""
    try:
        schema, is_whole = _within_reach(text, _STRICT)
        return Grammar("grammar", StrictJson(schema).text), is_whole
    except (NotWritableError, PromptmillError):
        schema, is_whole = _within_reach(text, _OWN)
        return Grammar("json_schema", text if is_whole else json.dumps(schema)), is_whole


def _within_reach(text: str, costs: _Costs) -> tuple[Any, bool]:
    """Return the part of the schema `text` that compiles in time, and whether this is the whole schema."""
    schema = json.loads(text)
    work = len(text) / _CHARACTERS_PER_WORK
    limits: dict[tuple[Any, ...], list[dict[str, Any]]] = {}  # schemas by limit, because equal limits are compiled once
    for node in _schemas(schema):
        properties, required = node.get("properties"), node.get("required")
        if isinstance(properties, dict):
            names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else ()
            optional = len(properties.keys() - names)
            work += optional**2 / costs.squares_per_work
            if work > MOST_GRAMMAR_WORK:
                raise _too_much(f"{optional:,} optional properties")
        if isinstance(named := node.get("patternProperties"), dict):
            work += sum(map(_repeats, named))
        for keywords in (("minLength", "maxLength"), ("pattern",)):
            if any(word in node for word in keywords):
                limits.setdefault(tuple(str(node.get(word)) for word in keywords), []).append(node)
    if work > MOST_GRAMMAR_WORK:
        raise _too_much(f"{len(text):,} characters, or long patterns of property names")
    is_whole = True
    for limit, nodes in sorted(limits.items(), key=lambda entry: _work_of(entry[0], costs)):
        work += _work_of(limit, costs)
        if work > MOST_GRAMMAR_WORK:
            is_whole = False
            for node in nodes:
                for word in ("minLength", "maxLength") if len(limit) == 2 else ("pattern",):
                    node.pop(word, None)
    return schema, is_whole


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    left = [schema]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            yield node
            for key, value in node.items():
                if key in _MAPS_OF_SCHEMAS and isinstance(value, dict):
                    left += value.values()
                elif key not in _VALUES:
                    left.append(value)


def _work_of(limit: tuple[str, ...], costs: _Costs) -> int:
    if len(limit) == 1:
        return _repeats(limit[0])
    return min(costs.most_of_a_length, max((int(number) for number in limit if number.isdecimal()), default=0))


def _repeats(pattern: str) -> int:
    """Return the total length of a pattern's counted repeats when unrolled. The counts of nested repeats multiply."""
    groups, last, in_class = [0], 0, False
    for piece in re.findall(r"\\.|\{\d+(?:,\d*)?\}|.", pattern, re.DOTALL):
        if in_class:
            in_class, last = piece != "]", 0
        elif piece == "[":
            in_class = True
        elif piece == "(":
            groups.append(0)
        elif piece == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif len(piece) > 2 and piece[0] == "{":
            count = max(int(number[:10]) for number in piece[1:-1].split(",") if number)
            unrolled = min(count * max(1, last), 10**9)
            groups[-1] += unrolled - last
            last = unrolled
        else:
            last = 0
    return sum(groups)


def _too_much(what: str) -> PromptmillError:
    return input_error(
        f"This JSON schema takes too long to prepare on the openvino backend: it has {what}.",
        hint="Name properties in `required`, or split the schema.",
    )


class NotWritableError(Exception):
    """The schema has a part that this grammar cannot represent."""


class StrictJson:
    """The grammar of one schema."""

    def __init__(self, schema: Any) -> None:
        """Raises `NotWritableError` if the grammar cannot represent the schema."""
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        """The rules' names by body, so that equal parts are compiled once."""
        self._references: dict[str, str] = {}
        try:
            self._root = self._of(schema, frozenset())
        except (RecursionError, TypeError, ValueError, LookupError, AttributeError, OverflowError, re.error):
            raise NotWritableError from None  # if the schema is malformed, OpenVINO reports it

    @property
    def text(self) -> str:
        """The grammar."""
        rules = "\n".join(f"{name} ::= {body}" for name, body in self._rules.items())
        return f"root ::= {self._root}\n{rules}{_SHARED}"

    def _rule(self, body: str) -> str:
        """Return the name of the rule with this `body`."""
        if body not in self._names:
            self._names[body] = name = f"rule{len(self._names)}"
            self._rules[name] = body
        return self._names[body]

    def _of(self, node: Any, open_references: frozenset[str]) -> str:
        """Return the expression for a schema. `open_references`: references that led to it without text in between."""
        if node is True:
            return "value"
        keywords = node.keys() - _IGNORED
        if not keywords:
            return "value"
        if keywords == {"$ref"}:
            return self._referred(node["$ref"], open_references)
        if len(keywords) == 1 and keywords <= {"anyOf", "oneOf", "allOf"}:
            (keyword,) = keywords
            if keyword == "allOf" and len(node[keyword]) != 1:
                raise NotWritableError
            return _either(self._of(part, open_references) for part in node[keyword])
        if keywords & {"enum", "const"}:
            if not keywords <= {"enum", "type"} and not keywords <= {"const", "type"}:
                raise NotWritableError
            values = node["enum"] if "enum" in node else [node["const"]]
            return self._rule(_either(_literal(_json(value)) for value in values))
        types = node.get("type") or ("object" if "properties" in node else "array")
        types = [types] if isinstance(types, str) else types
        if not keywords - {"type"} <= frozenset().union(*(_KEYWORDS[kind] for kind in types)):
            raise NotWritableError
        return _either(getattr(self, f"_{kind}")(node) for kind in types)

    def _referred(self, reference: str, open_references: frozenset[str]) -> str:
        if reference in open_references:  # the rule would start with itself
            raise NotWritableError
        if reference not in self._references:
            root, _, path = reference.partition("/")
            section, _, name = path.partition("/")
            if root != "#" or (path and (section not in {"$defs", "definitions"} or "/" in name)):
                raise NotWritableError
            self._references[reference] = rule = f"reference{len(self._references)}"
            target = self._schema[section][name] if path else self._schema
            self._rules[rule] = self._of(target, open_references | {reference})
        return self._references[reference]

    def _boolean(self, _: JsonObject) -> str:
        return '("true" | "false")'

    def _null(self, _: JsonObject) -> str:
        return '"null"'

    def _object(self, node: JsonObject) -> str:
        fields, required = node.get("properties") or {}, frozenset(node.get("required") or ())
        others = node.get("additionalProperties", not fields)  # as in OpenVINO's grammar
        if not required <= fields.keys():
            raise NotWritableError
        other = "" if others is False else f'string ": " {self._of(others, frozenset())}'
        rest = f'(", " {other})*' if other else ""
        pairs = [
            (f"{_literal(f'{_json(name)}: ')} {self._of(field, frozenset())}", name in required)
            for name, field in fields.items()
        ]
        first = next((place for place, (_, is_required) in enumerate(pairs) if is_required), None)
        if first is not None:
            before = [f'({pair} ", ")?' for pair, _ in pairs[:first]]
            after = [f'", " {pair}' if is_required else f'(", " {pair})?' for pair, is_required in pairs[first + 1 :]]
            return self._rule(" ".join([_OPENING, *before, pairs[first][0], *after, rest, '"}"']))
        following, beginnings = self._rule(rest or '""'), [f"{other} {rest}"] if other else []
        for pair, _ in reversed(pairs):
            beginnings.append(f"{pair} {following}")
            following = self._rule(f'(", " {pair})? {following}')
        return self._rule(f'{_OPENING} ({_either(beginnings)})? "}}"' if beginnings else '"{}"')

    def _array(self, node: JsonObject) -> str:
        least, most = node.get("minItems", 0), node.get("maxItems")
        if most == 0:
            return '"[]"'
        item = self._of(node.get("items", True), frozenset())
        items = f'{item} (", " {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return self._rule(f'"[" {items} "]"' if least else f'"[" ({items})? "]"')

    def _string(self, node: JsonObject) -> str:
        least, most = node.get("minLength", 0), node.get("maxLength")
        if "pattern" in node:
            if least or most is not None:
                raise NotWritableError
            return self._rule(f'"\\"" {_matching(node["pattern"])} "\\""')
        if not least and most is None:
            return "string"
        if most is None:
            return self._rule(f'"\\"" {self._exactly(least)} characters')
        if most < least:
            raise NotWritableError
        return self._rule(f'"\\"" {self._exactly(least)} {self._at_most(most - least)} "\\""')

    def _exactly(self, count: int) -> str:
        """Return an expression for `count` characters."""
        if count <= _LONGEST_REPEAT:
            return f"{_CHARACTER}{{{count}}}" if count else ""
        half = self._rule(self._exactly(count // 2))
        return f"{half} {half}" if count % 2 == 0 else f"{half} {half} {_CHARACTER}"

    def _at_most(self, count: int) -> str:
        """Return an expression for 0 to `count` characters that matches each length in only one way."""
        if count <= _LONGEST_REPEAT:
            return f"{_CHARACTER}{{0,{count}}}" if count else ""
        half = (count + 1) // 2
        return f"({self._rule(self._exactly(half))})? {self._at_most(count - half)}"

    def _integer(self, node: JsonObject) -> str:
        if not node.keys() & _BOUNDS:
            return "integer"
        low = max(
            -_LARGEST,
            math.ceil(node.get("minimum", -_LARGEST)),
            math.floor(node.get("exclusiveMinimum", -_LARGEST - 1)) + 1,
        )
        high = min(
            _LARGEST,
            math.floor(node.get("maximum", _LARGEST)),
            math.ceil(node.get("exclusiveMaximum", _LARGEST + 1)) - 1,
        )
        negative = [f'"-" {_whole(max(-high, 1), -low)}'] if low < 0 else []
        positive = [_whole(max(low, 0), high)] if high >= 0 else []
        return self._rule(_either([*negative, *positive]))

    def _number(self, node: JsonObject) -> str:
        if not node.keys() & _BOUNDS:
            return "number"
        lows = [(node[name], name in _EXCLUSIVE) for name in ("minimum", "exclusiveMinimum") if name in node]
        highs = [(node[name], name in _EXCLUSIVE) for name in ("maximum", "exclusiveMaximum") if name in node]
        low, above = max([(-_LARGEST, False), *lows])
        high, below = min([(_LARGEST, False), *highs], key=lambda bound: (bound[0], not bound[1]))
        if low != int(low) or high != int(high):
            raise NotWritableError
        low, high = int(low), int(high)
        negative = _decimal(max(-high, 0), -low, above=below and high <= 0, below=above) if low < 0 else []
        positive = _decimal(max(low, 0), high, above=above and low >= 0, below=below) if high >= 0 else []
        return self._rule(_either([*(f'"-" {part}' for part in negative), *positive]))


def _either(parts: Iterable[str]) -> str:
    """Return an expression for any one of the `parts`."""
    alternatives = list(dict.fromkeys(parts))
    if not alternatives:
        raise NotWritableError
    return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _literal(text: str) -> str:
    """Return an expression for the literal `text`."""
    pieces = _MISREAD.split(text)
    return " ".join(f"[{piece}]" if place % 2 else _json(piece) for place, piece in enumerate(pieces) if piece)


def _matching(pattern: str) -> str:
    """Return an expression for texts that a regular expression matches completely."""
    if not pattern.isascii():
        raise NotWritableError
    parts, previous = ["("], "("
    pieces = _PIECE_OF_PATTERN.findall(re.sub(r"(?<!\\)\$\Z", "", pattern.removeprefix("^")))
    for piece in ["(" if piece == "(?:" else piece for piece in pieces] + [")"]:
        if piece in {"|", ")"} and previous in {"(", "|"}:
            parts.append('""')
        if piece in {"(", "|", ")"}:
            parts.append(piece)
        elif piece[0] not in "*+?{":
            parts.append(_matching_character(piece))
        elif piece == "{" or previous in {"(", "|"} or previous[0] in "*+?{":
            raise NotWritableError
        else:
            parts.append(piece.removesuffix("?") or piece)
        previous = piece
    return " ".join(parts)


def _matching_character(piece: str) -> str:
    """Return an expression for one character of a pattern. The character needs no escape in JSON."""
    if piece == ".":
        return _CHARACTER
    if piece[0] == "[" and len(piece) > 1:
        inside = re.sub(r"\\([a-zA-Z0-9])", _class_of, piece)
        if piece[1] == "^":
            return inside[:-1] + r'"\\\x00-\x1f]'
        if any(re.match(inside, character) for character in _NEEDING_ESCAPE):
            raise NotWritableError
        return inside
    if piece[0] == "\\" and piece[1].isalnum():
        return f"[{_class_of(re.fullmatch(r'.(.)', piece))}]"
    character = piece[-1]
    if character in _NEEDING_ESCAPE or (len(piece) == 1 and character in "^$[]{}"):
        raise NotWritableError
    return _literal(character)


def _class_of(escape: re.Match[str] | None) -> str:
    if escape is None or escape[1] not in _CLASSES:
        raise NotWritableError
    return _CLASSES[escape[1]]


def _whole(low: int, high: int) -> str:
    """Return an expression for the whole numbers from `low` to `high`; neither is negative."""
    parts = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)
        parts.append(_digits(str(low), str(last)))
        low = last + 1
    return _either(parts)


def _digits(low: str, high: str) -> str:
    """Return an expression for the numbers from `low` to `high`, which have equally many digits."""
    more = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return f"[0-9]{{{len(low)}}}"
    first, last, middle = int(low[0]), int(high[0]), f" [0-9]{{{more}}}" if more else ""
    if first == last:
        return f'"{first}" {_digits(low[1:], high[1:])}' if more else f'"{first}"'
    parts = []
    if low[1:] != "0" * more:
        parts.append(f'"{first}" {_digits(low[1:], "9" * more)}')
        first += 1
    upper = []
    if high[1:] != "9" * more:
        upper.append(f'"{last}" {_digits("0" * more, high[1:])}')
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}]{middle}")
    return _either([*parts, *upper])


def _decimal(low: int, high: int, *, above: bool, below: bool) -> list[str]:
    """Return expressions for the numbers from `low` to `high`; neither is negative.

    `above`: exclude `low`. `below`: exclude `high`.
    """
    parts = []
    if above and low < high:
        parts.append(f'"{low}." "0"{{0,16}} [1-9] [0-9]{{0,16}}')
    if (first := low + above) < high:
        parts.append(f'{_whole(first, high - 1)} ("." [0-9]{{1,17}})?')
    if first <= high and not below:
        parts.append(f'"{high}" ("." "0"{{1,17}})?')
    return parts
