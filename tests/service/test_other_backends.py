"""Backends of other packages, which a feature names: a toy package is installed into a folder and answers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Facts
from promptmill.config import backends
from promptmill.config.configuration import Configuration, Overrides
from promptmill.core import feature
from promptmill.core.errors import PromptmillError
from promptmill.core.request import APPLIED_NAMES, Sampling, conversation_from_prompt
from promptmill.service.service import Service
from talk import serving

FEATURE = """
from promptmill.core.feature import Feature

FEATURE = Feature(words="a backend", backends={BACKENDS})
"""
TOY = """
from promptmill.backends.protocol import FixedShare
from promptmill.config.backends import BackendRecord
from promptmill.backends.protocol import Completion

BACKEND = BackendRecord(module=__name__, sampling=frozenset({"max_tokens"}), takes_images=False)


def create(plan):
    return Toy(plan.block.greeting)


class Toy:
    def __init__(self, greeting):
        self.greeting = greeting

    async def load(self, report):
        report("winding up")

    def enter(self, call):
        return FixedShare(8)

    async def answer(self, request, call):
        left = sorted(request.sampling.given())
        return Completion(f"{self.greeting} {request.conversation.messages[-1].content} {left}", "stop")

    async def leave(self, call):
        pass

    async def aclose(self):
        pass
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Install a package with a backend `toy` and one with a backend `broken`, as pip does, into a folder."""
    modules = {"toy": TOY, "broken": "import a_package_that_is_not_there", "other": "BACKEND = 3"}
    for name, code in modules.items():
        (tmp_path / f"{name}_package.py").write_text(textwrap.dedent(code))
        about = tmp_path / f"{name}_package-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[promptmill.features]\n{name} = {name}_feature:FEATURE\n")
        named(tmp_path, name, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    feature._features.cache_clear()
    yield tmp_path
    feature._features.cache_clear()
    for name in modules:
        sys.modules.pop(f"{name}_package", None)
        sys.modules.pop(f"{name}_feature", None)


def named(folder, package, *names):
    """Write the feature of a package, whose backend has these names."""
    parts = dict.fromkeys(names, f"{package}_package:BACKEND")
    (folder / f"{package}_feature.py").write_text(FEATURE.replace("{BACKENDS}", repr(parts)))


def configured(**more):
    return Configuration({"backend": "toy", "backend_configs": {"toy": {"greeting": "Hello,"}}, **more})


@pytest.mark.thorough
async def test_a_backend_of_another_package_answers_over_mcp(site):
    async with serving(configured(sampling_params={"max_tokens": 5, "top_p": 0.5})) as talk:
        result = await talk("generate", prompt_ls=["you", "all"])
    assert result.structured_content["ans_ls"] == ["Hello, you ['max_tokens']", "Hello, all ['max_tokens']"]
    assert "cannot take top_p" in str(result.meta), "what it does not take is named"


async def test_what_a_record_says_holds_for_a_backend_of_ours_too(site, monkeypatch):
    monkeypatch.setattr("promptmill.steps.untaken_parameters.BACKENDS", {"toy": backends.record("toy")})
    async with serving(configured(sampling_params={"top_p": 0.5})) as talk:
        result = await talk("generate", prompt_ls=["you"])
    assert "cannot take top_p" in str(result.meta)


async def test_images_do_not_reach_a_backend_that_reads_text(site):
    async with serving(configured()) as talk:
        found = await talk("multimodal_generate", multimodal_path=[["a.png"], []], prompt_ls=["look", "listen"])
    result = found.structured_content
    assert [bool(answer) for answer in result["ans_ls"]] == [False, True]
    assert result["errors"][0]["code"] == "unsupported"


async def test_a_sampling_parameter_that_it_does_not_take_is_an_error_where_that_is_wanted(site, closing):
    service = closing(Service(configured(unsupported="error", sampling_params={"seed": 1})))
    (outcome,) = await service.generate([conversation_from_prompt("x", "x")], Call(Facts(total=1)))
    assert outcome.error.code == "unsupported"
    assert "seed" in outcome.error.message


@pytest.mark.parametrize("name", sorted(Sampling.model_fields.keys() - APPLIED_NAMES - {"max_tokens"}))
async def test_every_parameter_is_named_that_its_record_does_not_name(site, name, closing):
    values = {
        "stop": ["x"],
        "response_format": {"type": "text"},
        "reasoning_effort": "low",
        "enable_thinking": True,
    }
    call = Call(Facts(total=1))
    service = closing(Service(configured(sampling_params={name: values.get(name, 1)})))
    await service.generate([conversation_from_prompt("x", "x")], call)
    assert any(name in warning for warning in call.warnings)


@pytest.mark.thorough
async def test_it_may_be_one_of_several_models(site):
    block = {"toy": {"greeting": "Hi,"}}
    configuration = Configuration({"backend": "hf", "models": {"a": block, "b": {"backend": "toy", **block}}})
    async with serving(configuration) as talk:
        result = [(await talk.answers("you", model=model))[0] for model in ("a", "b")]

    assert result == ["Hi, you []", "Hi, you []"]


def test_nothing_is_imported_before_the_operator_names_it(site):
    Configuration({"backend": "hf", "backend_configs": {"toy": {"greeting": "x"}}})
    registry.check_name("toy")
    assert "toy_package" not in sys.modules


@pytest.mark.parametrize("operators", [{"backend": "hf"}, {"backend": "auto"}, {"models": {"m": {"hf": {}}}}])
@pytest.mark.parametrize(
    "call", [Overrides("toy"), Overrides("hf", {"toy": {"greeting": "x"}}), Overrides(None, {"toy": {}})]
)
def test_a_call_never_brings_in_a_backend_that_the_configuration_does_not_name(site, operators, call):
    for trusted in (False, True):
        with pytest.raises(PromptmillError, match="only if the configuration file names it"):
            Configuration(operators, trust_client=trusted).overlaid(call)
    assert "toy_package" not in sys.modules


def test_a_call_may_choose_one_that_is_named_but_sets_nothing_of_it(site):
    configuration = Configuration({"backend": "hf", "backend_configs": {"toy": {"greeting": "x"}}})
    assert configuration.overlaid(Overrides("toy")).record.takes_images is False
    with pytest.raises(PromptmillError, match=r"backend_configs\.toy: a call may not set this"):
        configuration.overlaid(Overrides("toy", {"toy": {"greeting": "y"}}))


@pytest.mark.parametrize(("name", "why"), [("broken", "a_package_that_is_not_there"), ("other", "BackendRecord")])
def test_one_that_cannot_be_imported_is_said_by_name_only_when_it_is_asked_for(site, name, why):
    Configuration({"backend": "hf", "backend_configs": {name: {}}})
    with pytest.raises(PromptmillError, match=rf"{name}_package:BACKEND.*{why}"):
        Configuration({"backend": name})


def test_a_name_that_nobody_has_is_still_an_unknown_key_and_an_unknown_backend(site):
    with pytest.raises(PromptmillError, match=r"backend_configs\.toyy: unknown key"):
        Configuration({"backend_configs": {"toyy": {}}})
    with pytest.raises(PromptmillError, match="did you mean toy"):
        registry.check_name("toyy")


def test_our_own_names_stay_ours(site):
    named(site, "toy", "openai", "auto")
    with pytest.raises(PromptmillError, match=r"has a backend with the name of promptmill's own, '(openai|auto)'"):
        backends.installed()


@pytest.mark.parametrize("option", ["generate", "bulk"])
def test_the_shell_takes_it_too(site, option):
    (site / "parameter.yaml").write_text("backend: toy\nbackend_configs:\n  toy: {greeting: 'Hello,'}\n")
    (site / "in.jsonl").write_text('{"prompt": "you"}\n')
    words = {"generate": ["generate", "you"], "bulk": ["bulk", "in.jsonl", "out.jsonl", "--quiet"]}[option]
    done = subprocess.run(
        [sys.executable, "-m", "promptmill", *words],
        cwd=site,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout if option == "generate" else (site / "out.jsonl").read_text()
    assert "Hello, you []" in said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise KeyError('x')", "The toy backend failed: KeyError"),
        ("return", "The toy backend returned no outcome"),
        ("return 'a text'", "The toy backend returned no outcome"),
        ("import promptmill.backends.protocol as p; return p.Completion('', 'length')", "cut before its first word"),
    ],
)
async def test_one_that_breaks_its_word_fails_the_items_in_words(site, code, said, closing):
    """A loop over the rows would find no answer to them for ever; an exception would be a traceback."""
    module = site / "toy_package.py"
    before = module.read_text()
    body = before[before.index("        left = sorted") : before.index("    async def leave")]
    module.write_text(before.replace(body, f"        {code}\n\n"))
    call = Call(Facts(total=2))

    service = closing(Service(configured()))
    outcomes = await service.generate([conversation_from_prompt(text, text) for text in "xy"], call)
    assert [said in outcome.error.message for outcome in outcomes] == [True, True]


def test_of_a_long_name_only_the_beginning_is_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr(registry, "redact", lambda text: seen.append(len(text)) or text)
    with pytest.raises(PromptmillError, match="openaj"):
        registry.check_name("openaj" * 100_000)
    assert max(seen) <= 1000
