"""What a schema, a pattern, an answer or a text of legal size may cost, and that others are answered meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from promptmill.system import subprocesses
from replies import answer
from talk import text


def _doubling(levels: int) -> dict[str, Any]:
    """Return a schema with definitions of which each refers twice to the next one."""
    named: dict[str, Any] = {f"l{levels}": {"type": "string"}}
    for at in range(levels):
        next_ = {"$ref": f"#/$defs/l{at + 1}"}
        named[f"l{at}"] = {"type": "object", "properties": {"a": next_, "b": next_}}
    return {"type": "object", "properties": {"root": {"$ref": "#/$defs/l0"}}, "$defs": named}


@pytest.mark.rule("X5")
@pytest.mark.usefixtures("protocol")
async def test_a_schema_whose_values_double_with_each_level_is_refused_before_a_request(serve, upstream):
    async with serve() as talk:
        result = await talk("generate", prompt_ls=["Read"], schema=_doubling(13), sampling_params={"quote": True})
    assert result.is_error
    assert "more than 10,000 values" in text(result)
    assert not upstream.seen


@pytest.mark.rule("X5")
@pytest.mark.usefixtures("protocol")
async def test_a_long_answer_is_matched_in_a_process_with_a_limit(serve, upstream):
    upstream.reply = answer("ab" * 25_000)
    asked = []

    class Counted(subprocesses.Helper):
        def ask(self, *given: Any) -> Any:
            asked.append(given)
            return super().ask(*given)

    pattern = "(?:a|b)*a" + "(?:a|b|c){9}" * 80
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocesses, "Helper", Counted)
        async with serve() as talk:
            result = await talk("generate", prompt_ls=["a"], sampling_params={"match": pattern})
    assert result.is_error or result.structured_content["ans_ls"] == ["ab" * 25_000]
    assert asked
