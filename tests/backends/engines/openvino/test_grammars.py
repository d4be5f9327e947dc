"""Grammars of JSON schemas without white space: the texts that they allow, and the schemas that they cannot express."""

from __future__ import annotations

import itertools
import json
import re
from functools import cache

import pytest

from promptmill.backends.engines.openvino.grammars import NotWritableError, StrictJson
from shapes import SHAPES

_PART = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[a-z]\w*|\{[\d,]+\}|[()|*+?]|\s+', re.DOTALL)
_DEPTH = 7  # of rules that refer to themselves; deeper ones match nothing


def pattern_of(grammar: str) -> re.Pattern[str]:
    """Return a grammar as a regular expression."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines() if line)
    assert len(rules) == len([line for line in grammar.splitlines() if line]), "each rule has its own name"

    @cache
    def expression(name: str, depth: int) -> str:
        if depth > _DEPTH:
            return "(?!)"
        if name == "characters":  # it refers to itself for each character
            return r'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
        found, place = "", 0
        for part in _PART.finditer(rules[name]):
            assert part.start() == place, rules[name][place:]
            place = part.end()
            text = part[0]
            if text[0] == '"':
                found += f"(?:{re.escape(json.loads(text))})"
            elif text[0].isalpha():
                deeper = name.startswith("reference") or name in {"value", "object", "array"}
                found += f"(?:{expression(text, depth + deeper)})"
            else:
                found += text.strip()
        assert place == len(rules[name])
        return found

    return re.compile(expression("root", 0))


def allows(schema: object, value: object) -> bool:
    return pattern_of(StrictJson(schema).text).fullmatch(json.dumps(value, ensure_ascii=False)) is not None


def test_a_grammar_allows_what_satisfies_its_schema_and_nothing_else():
    for shape in SHAPES:
        grammar = pattern_of(StrictJson(shape.schema).text)
        assert grammar.fullmatch(json.dumps(shape.good, ensure_ascii=False)), shape.name
        assert not grammar.fullmatch(json.dumps(shape.bad, ensure_ascii=False)), shape.name
        assert not grammar.fullmatch(json.dumps(shape.good, ensure_ascii=False, indent=1).replace("\n", "\n\n") + "\n")


@pytest.mark.parametrize(("low", "high"), [(0, 9), (1, 5), (7, 12), (0, 120), (95, 1005), (-12, 3), (-30, -7), (5, 5)])
def test_an_integer_keeps_to_its_bounds(low, high):
    grammar = pattern_of(StrictJson({"type": "integer", "minimum": low, "maximum": high}).text)
    open_ended = pattern_of(StrictJson({"type": "integer", "exclusiveMinimum": low - 1}).text)
    for number in range(-150, 1200):
        assert bool(grammar.fullmatch(str(number))) == (low <= number <= high), number
        assert bool(open_ended.fullmatch(str(number))) == (low <= number), number


def test_a_number_keeps_to_its_bounds():
    share = {"type": "number", "minimum": 0, "maximum": 1}
    assert all(allows(share, value) for value in (0, 1, 0.5, 0.0, 1.0, 0.999))
    assert not any(allows(share, value) for value in (-1, 1.1, 2, 10, -0.5))
    degrees = {"type": "number", "minimum": -40, "maximum": 60.0}
    assert all(allows(degrees, value) for value in (-40, -39.9, -0.1, 0, 60, 59.9))
    assert not any(allows(degrees, value) for value in (-40.1, 60.5, 61))
    inside = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 3}
    assert all(allows(inside, value) for value in (0.1, 0.001, 1, 2.999))
    assert not any(allows(inside, value) for value in (0, 0.0, 3, 3.0, -1, 3.1))
    below = {"type": "number", "exclusiveMaximum": 0}
    assert all(allows(below, value) for value in (-0.1, -7))
    assert not any(allows(below, value) for value in (0, 0.0, 0.1, 1))


@pytest.mark.parametrize(("least", "most"), [(0, 5), (0, 16), (0, 17), (3, 40), (20, 80), (0, 301), (33, None)])
def test_a_text_keeps_to_its_length(least, most):
    schema = {"type": "string", "minLength": least} | ({} if most is None else {"maxLength": most})
    grammar = pattern_of(StrictJson(schema).text)
    for length in range(330):
        fits = least <= length and (most is None or length <= most)
        assert bool(grammar.fullmatch(f'"{"é" * length}"')) == fits, length


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (r"^\d{4}-\d{2}-\d{2}$", ["2026-01-31"], ["2026-1-31", "x2026-01-31", ""]),
        (r"^[\w.+-]+@[\w-]+(\.[a-z]+)+$", ["a.b@c.de", "x@y-z.co.uk"], ["a@b", "@c.de"]),
        (r"^(?:red|green|)$", ["red", "green", ""], ["blue", "redgreen"]),
        (r"^#[0-9a-fA-F]{6}$", ["#00ffAA"], ["#00ffAG", "00ffAA"]),
        (r"[^,;]*?", ["", "a b"], ["a,b", 'a"b']),
        (r"^a?(b|c)*.+$", ["ab", "x"], [""]),
        (r"^\(\d{3}\) \d+$", ["(030) 12"], ["030 12"]),
        (r"^\d+\$", ["5$"], ["5", "$"]),
        ("", [""], ["a"]),
    ],
)
def test_a_text_matches_its_pattern_from_end_to_end(pattern, matching, others):
    schema = {"type": "string", "pattern": pattern}
    assert [value for value in matching if not allows(schema, value)] == []
    assert [value for value in others if allows(schema, value)] == []


@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 1), (0, 3), (1, 1), (2, 4), (0, None), (1, None), (3, None)])
def test_a_list_keeps_to_its_length(least, most):
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": least}
    for length in range(7):
        fits = least <= length and (most is None or length <= most)
        assert allows(schema | ({} if most is None else {"maxItems": most}), [True] * length) == fits, length


@pytest.mark.parametrize("required", [[], ["a"], ["b"], ["c"], ["a", "c"], ["a", "b", "c"]])
@pytest.mark.parametrize("others", [None, False, {"type": "null"}])
def test_an_object_has_its_required_fields_and_any_of_the_others_in_their_order(required, others):
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in "abc"}, "required": required}
    schema |= {} if others is None else {"additionalProperties": others}
    for names in itertools.chain.from_iterable(itertools.combinations("abc", count) for count in range(4)):
        fits = set(required) <= set(names)
        assert allows(schema, dict.fromkeys(names, 1)) == fits, names
        assert allows(schema, {**dict.fromkeys(names, 1), "x": None}) == (fits and bool(others)), names
    assert not allows(schema, {"b": 1, "a": 1, "c": 1})


def test_free_parts_are_any_json_on_one_line():
    value = {"a": [1, -2.5e3, None, {"b": 'q"\\\n'}], "c": {}}
    for schema in ({}, True, {"type": "object"}, {"anyOf": [{"type": "null"}, {}]}):
        assert allows(schema, value), schema
        assert not pattern_of(StrictJson(schema).text).fullmatch('{"a":\n1}')


def test_a_schema_may_refer_to_itself():
    schema = {
        "$defs": {"tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}}},
        "$ref": "#/$defs/tree",
    }
    assert allows(schema, {"next": {"next": {}}})
    assert not allows(schema, {"next": 1})


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "string", "pattern": "^a+$", "maxLength": 5},
        {"type": "string", "pattern": r"^\bword$"},
        {"type": "string", "pattern": "^(?=a)a$"},
        {"type": "string", "pattern": "^[ -~]+$"},
        {"type": "string", "pattern": '^"$'},
        {"type": "string", "pattern": "^é$"},
        {"type": "string", "pattern": "^a$|^b$"},
        {"type": "string", "pattern": "a++"},
        {"type": "string", "pattern": "a{b"},
        {"type": "string", "pattern": "a\\"},
        {"type": "string", "pattern": r"^[a-\d]$"},
        {"type": "string", "format": "date"},
        {"type": "number", "minimum": 0.5},
        {"type": "number", "minimum": 0, "exclusiveMaximum": 0},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "integer", "multipleOf": 5},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "object", "minProperties": 1},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"type": "array", "prefixItems": [{"type": "null"}]},
        {"allOf": [{"type": "object"}, {"type": "object"}]},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/schema"},
        {"enum": []},
        {"type": "no such"},
        {"minimum": 1},
    ],
)
def test_a_schema_with_a_part_that_cannot_be_written_is_left_to_the_engine(schema):
    with pytest.raises(NotWritableError):
        StrictJson(schema)


def test_equal_parts_are_compiled_once():
    fields = {f"field{number}": {"type": "string", "maxLength": 80} for number in range(50)}
    text = StrictJson({"type": "object", "properties": fields, "required": list(fields)}).text
    assert text.count("{0,") < 10


def test_a_letter_that_openvino_misreads_before_a_hex_digit_is_a_class_of_its_own():
    assert '"gr" [ö] [ß] "e' in StrictJson({"const": "größe"}).text
