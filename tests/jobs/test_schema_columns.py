"""The types of the columns of answers, by the schema of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from promptmill.answers.schema_kinds import kind_of, resolved


def _schema(**named: Any) -> dict[str, Any]:
    return {"$ref": "#/$defs/a", "$defs": named}


def _kind(schema: dict[str, Any]) -> str:
    return kind_of(resolved(schema, schema), schema)


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_an_alternative_that_contains_itself_adds_no_type(keyword):
    own = [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]
    assert (
        _kind(_schema(a={keyword: [*own, {"type": "integer"}]}, b={keyword: [*own, {"type": "integer"}]})) == "integer"
    )
    assert _kind(_schema(a={keyword: own}, b={keyword: [*own, {"type": "integer"}, {"type": "string"}]})) == ""
    assert _kind(_schema(a={keyword: own}, b={keyword: own})) == ""


class _Counted(list[Any]):
    """Alternatives that count how often they are read."""

    reads = 0

    def __iter__(self) -> Iterator[Any]:
        type(self).reads += 1
        return super().__iter__()


def test_alternatives_to_which_many_refer_are_read_a_few_times():
    named: dict[str, Any] = {f"l{at}": {"anyOf": _Counted([{"$ref": f"#/$defs/l{at + 1}"}] * 2)} for at in range(12)}
    named["l12"] = {"type": "number"}
    assert kind_of(named["l0"], {"$defs": named}) == "number"
    assert _Counted.reads < 50, "there are 4,096 ways to the last one"


def test_a_reference_of_thousands_of_names_is_broken():
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        deep = {"a": deep}
    for path in ("a/" * 3000, "a/" * 50):
        assert resolved({"$ref": f"#/{path}"}, deep) == {}
    assert resolved({"$ref": "#/a/a"}, deep) == deep["a"]["a"]
