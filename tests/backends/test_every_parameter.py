"""No sampling parameter is dropped without a word: each backend maps it or names it as left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import promptmill
from promptmill.backends.engines.submission import TAKES, template_options
from promptmill.backends.openai.providers import PLAIN, PROFILES, translate
from promptmill.config.backends import BACKENDS
from promptmill.core.request import APPLIED_NAMES, Sampling

ENGINES = Path(promptmill.__file__).parent / "backends" / "engines"
ENGINE_NAMES = [name for name, record in BACKENDS.items() if record.is_engine]
VALUES = {
    "stop": ["x"],
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
    "enable_thinking": False,
}


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_an_engine_reads_what_engines_say_they_take(engine):
    source = "".join(file.read_text(encoding="utf-8") for file in (ENGINES / engine).glob("*.py"))
    files = ["submission.py", *(["growing_answer.py"] if "GrowingAnswer" in source else [])]
    shared = "".join((ENGINES / file).read_text(encoding="utf-8") for file in files)
    declared = re.compile(r"^TAKES = frozenset\(\n.*?\n\)\n", re.DOTALL | re.MULTILINE)
    assert declared.search(shared)
    for name in TAKES:
        assert f'"{name}"' in source + declared.sub("", shared), name


def test_what_engines_do_not_take_is_named():
    left_out: list[str] = []
    given = {name: VALUES.get(name, 1) for name in [*Sampling.model_fields, "brand_new"] if name not in APPLIED_NAMES}
    given["enable_thinking"] = True  # not to think is what a model without that switch does
    template_options(given, {}, left_out, lambda _: False)
    assert set(given) - set(left_out) == TAKES
    assert "brand_new" in left_out


def test_every_backend_is_looked_at_here():
    assert {*ENGINE_NAMES, "openai"} == BACKENDS.keys()


@pytest.mark.parametrize("profile", [PLAIN, *PROFILES], ids=lambda profile: profile.name)
def test_a_provider_is_sent_each_parameter_or_refuses_it_by_name(profile):
    for model in ("m", "gpt-5-mini", "o3", "deepseek-reasoner", "grok-4", "claude-opus-4-7", "kimi-k2.5"):
        for name in {*Sampling.model_fields, "brand_new"} - APPLIED_NAMES:
            body, refused = translate(profile, model, {name: VALUES.get(name, 1)})
            assert body or name in refused, (model, name)
