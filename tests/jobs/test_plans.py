"""Plans of features: of another package, and of a feature that is missing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fastmcp.exceptions import ToolError

from fakes import openai_configuration
from job_specs import spec_of
from promptmill.config.configuration import Configuration
from promptmill.core import feature
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import WITHOUT, Feature, PartEntry
from promptmill.files import format_table
from promptmill.jobs.store import status
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.order_part import OrderPart
from promptmill.jobs.store.plan import JobSpec, Plan, plan_of
from promptmill.jobs.store.rounds import ANSWERED, Round
from promptmill.options.table import Again
from promptmill.service.service import Service
from replies import answer, choose

_IS_NEW = "answer.round NOT IN (SELECT id FROM round WHERE value ->> '$.rows' = 'long')"


class LongAgain(Plan):
    """A plan that sends rows with a long answer to the model `large`."""

    rules: ClassVar[Mapping[str, str]] = {"long": f"({ANSWERED} AND length(text) > 500 AND {_IS_NEW})"}

    @property
    def named_models(self) -> frozenset[str]:
        return frozenset({"large"})

    def next(self, first: Round, again: Again | None) -> Iterator[Round]:
        yield from super().next(first, again)
        yield replace(first, rows="long", reason="long", model="large")


@pytest.fixture
def long_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have `LongAgain` as the plan of jobs with `max_failures`."""
    entry = PartEntry("long", f"{__name__}:LongAgain", ("max_failures",))
    monkeypatch.setattr(feature, "_installed", lambda: iter({"long": Feature(words="", order_parts=(entry,))}.items()))
    caches = feature._features, format_table._table_without
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("long_again")
def test_a_round_may_go_to_a_model_of_its_own(bench):
    def reply(seen: Any) -> Any:
        return answer(f"large: {seen.prompt}" if seen.json["model"] == "large" else "x" * 600 * seen.prompt.count("l"))

    bench.upstream.reply = choose(reply)
    bench.write([{"prompt": "long"}, {"prompt": "short"}])
    assert bench.succeed("--max-failures", "9")["done"] == 2
    assert [(row["answer"], row.get("answered_by")) for row in bench.answers()] == [
        ("large: long", "large"),
        ("", None),
    ]
    bench.write([{"prompt": "short"}, {"prompt": "all long"}, {"prompt": "long"}])
    bench.succeed("--max-failures", "9")
    assert [row["answer"] for row in bench.answers()] == ["", "large: all long", "large: long"]
    sent = [(seen.json["model"], seen.prompt) for seen in bench.upstream.seen]
    assert sorted(sent[:2]) == [("test-model", "long"), ("test-model", "short")]
    assert sent[2:] == [("large", "long"), ("test-model", "all long"), ("large", "all long")]


@pytest.mark.usefixtures("long_again")
def test_a_round_may_not_go_to_a_model_that_its_plan_does_not_name(bench, monkeypatch):
    monkeypatch.setattr(LongAgain, "named_models", frozenset())
    bench.upstream.reply = answer("x" * 600)
    bench.prompts(1)
    with pytest.raises(RuntimeError, match="a round of the plan long names large, `named_models` does not"):
        bench.run("--max-failures", "9")
    assert [seen.json["model"] for seen in bench.upstream.seen] == ["test-model"]


@pytest.mark.usefixtures("long_again")
def test_a_plan_that_leaves_rows_open_is_no_damage(bench, monkeypatch):
    monkeypatch.setattr(LongAgain, "next", lambda *_: iter(()))
    bench.prompts(1)
    with pytest.raises(RuntimeError, match="the plan long leaves rows open"):
        bench.run("--max-failures", "9")


@pytest.mark.usefixtures("long_again")
def test_a_mistake_in_the_rule_of_a_plan_is_no_error_of_the_disk(bench, monkeypatch):
    monkeypatch.setattr(LongAgain, "rules", {"long": "answer.absent = 1"})
    bench.upstream.reply = answer("x")
    bench.prompts(1)
    with pytest.raises(sqlite3.OperationalError, match=r"no such column: answer\.absent"):
        bench.run("--max-failures", "9")


@pytest.mark.thorough
@pytest.mark.usefixtures("long_again")
async def test_a_call_may_not_ask_a_model_that_only_a_plan_names_and_the_client_may_not_use(bench, tools):
    bench.prompts(1)
    limited = {**openai_configuration(bench.upstream.url)._raw, "client_limits": {"models": ["default"]}}
    async with tools(Service(Configuration(limited))) as call:
        with pytest.raises(ToolError, match="there is no model 'large'"):
            await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl", max_failures="9")
    assert not bench.upstream.seen


@pytest.mark.parametrize("kind", [JobOrder, JobSpec])
def test_a_job_whose_feature_is_missing_can_be_read_and_is_not_run(kind, monkeypatch):
    monkeypatch.setenv(WITHOUT, "all")
    stored = {"votes": {"models": ["", ""]}}
    begun = JobOrder(inputs=(Path("/in"),), output=Path("/out")) if kind is JobOrder else spec_of("jsonl")

    found = kind.model_validate({**begun.model_dump(mode="json"), "parts": stored})

    assert type(found.plan) is Plan
    assert found.model_dump(mode="json")["parts"] == stored
    with pytest.raises(PromptmillError, match="begun with `votes`, whose feature is not installed"):
        found.parts["votes"].check(Configuration({}).config, found.question)


@pytest.mark.features("labels")
def test_only_the_chosen_answers_of_a_job_are_delivered_without_the_feature_that_chose_them(bench, monkeypatch):
    bench.prompts(3)
    bench.upstream.reply = answer("a")
    bench.succeed("--votes", "3", "--choices", "a,b")
    monkeypatch.setenv(WITHOUT, "all")
    spec = bench.folder.known_spec()
    assert (spec.delivered, len(spec.targets)) == (1, 4)
    assert status.read(bench.folder)["answered"] == 3
    bench.write([{"prompt": "another"}])
    refused = bench.jobs(bench.folder.job_id, "--resume")
    assert "--votes needs the feature labels" in refused.stderr
    assert len(bench.upstream.seen) == 9


def test_a_job_without_options_of_plans_has_the_ordinary_one_which_is_not_stored():
    order = JobOrder.of([Path("/in")], Path("/out"), {"student": False})
    assert type(order.plan) is type(plan_of({}, [""])) is Plan
    assert order.model_dump(mode="json")["parts"] == {}
    assert JobOrder.model_validate(order.model_dump(mode="json")) == order


def test_a_job_may_have_the_options_of_its_parts_sampling_rows_and_earlier_answers():
    target = Target(sampling={"quote": True})
    job = spec_of("csv").model_copy(update={"targets": (target,), "shapes": {"rows_from": OrderPart()}})
    assert [job.may_have(option) for option in ("quote", "rows_from", "", "together")] == [True, True, True, False]
    assert job.with_input(settings_read=("temperature",)).may_have("together")
    kept, unknown = target.model_copy(update={"kept": (3,)}), Target()
    assert all(job.model_copy(update={"targets": (each,)}).may_have("together") for each in (kept, unknown))
    assert spec_of("batch").model_copy(update={"targets": (target,)}).may_have("together")
