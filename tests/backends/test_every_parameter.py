"""No sampling parameter is dropped without a word: each backend maps it or names it as left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import promptmill
from promptmill.backends.engines.submission import template_options
from promptmill.backends.openai.providers import PLAIN, PROFILES, translate
from promptmill.config.backends import BACKENDS
from promptmill.core.request import Sampling

ENGINES = Path(promptmill.__file__).parent / "backends" / "engines"
ENGINE_NAMES = [name for name, record in BACKENDS.items() if record.is_engine]
VALUES = {
    "stop": ["x"],
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
    "enable_thinking": False,
}
# Read by promptmill itself, whoever answers.
OURS = {"reasoning"}


def takes(engine: str) -> frozenset[str]:
    """Return an engine's TAKES, without importing torch."""
    names: dict[str, object] = {}
    sources = [file.read_text(encoding="utf-8") for file in (ENGINES / engine).glob("*.py")]
    (source,) = (source for source in sources if "\nTAKES = " in source)
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in {"TAKES", "SAME_NAME"}:
                names[name] = eval(compile(ast.Expression(node.value), engine, "eval"), {}, names)
    found = names["TAKES"]
    assert isinstance(found, frozenset)
    return found


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_an_engine_reads_what_it_says_it_takes(engine):
    source = "".join(file.read_text(encoding="utf-8") for file in (ENGINES / engine).glob("*.py"))
    files = ["submission.py", *(["growing_answer.py"] if "GrowingAnswer" in source else [])]
    shared = "".join((ENGINES / file).read_text(encoding="utf-8") for file in files)
    declared = re.compile(r"TAKES = frozenset\(\n.*?\n\)\n|TAKES = [^\n]*\n", re.DOTALL)
    for name in takes(engine):
        assert f'"{name}"' in declared.sub("", source) + shared, name


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_what_an_engine_does_not_take_is_named(engine):
    left_out: list[str] = []
    given = {name: VALUES.get(name, 1) for name in [*Sampling.model_fields, "brand_new"]}
    given["enable_thinking"] = True  # not to think is what a model without that switch does
    template_options(given, {}, left_out, lambda _: False, takes(engine))
    assert set(given) - set(left_out) == takes(engine)
    assert "brand_new" in left_out


def test_every_backend_is_looked_at_here():
    assert {*ENGINE_NAMES, "openai"} == BACKENDS.keys()


@pytest.mark.parametrize("profile", [PLAIN, *PROFILES], ids=lambda profile: profile.name)
def test_a_provider_is_sent_each_parameter_or_refuses_it_by_name(profile):
    for model in ("m", "gpt-5-mini", "o3", "deepseek-reasoner", "grok-4", "claude-opus-4-7", "kimi-k2.5"):
        for name in {*Sampling.model_fields, "brand_new"} - OURS:
            body, refused = translate(profile, model, {name: VALUES.get(name, 1)})
            assert body or name in refused, (model, name)
