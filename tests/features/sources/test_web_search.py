"""The provider's own web search: as each API wants it, with its sources and its price, live and by batch."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

import promptmill
from batch_server import BatchServer
from fakes import openai_config, openai_configuration
from promptmill.backends.protocol import Call
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.features.sources.web_search import WebSearch
from promptmill.jobs.caller import CallWork
from promptmill.server import create_server
from promptmill.server import tools as tools_of_calls
from promptmill.service.service import Service
from web_searches import APIS, CLEAN, CLEAN_CHAT, SOURCES, anthropic, chat, gemini, perplexity, responses, sends, xai

WEB = {"sampling_params": {"web": True}}
PROMPT = conversation_from_prompt("a prompt", "a prompt")
OF_RESPONSES = {"tools": [{"type": "web_search"}]}
FORMS: dict[tuple[str, str | None, str], dict[str, Any]] = {
    ("openai", "responses", "gpt-5-mini"): OF_RESPONSES,
    ("openai", None, "gpt-4o-search-preview"): {"web_search_options": {}},
    ("openai", None, "gpt-5-search-api"): {"web_search_options": {}},
    ("anthropic", None, "claude-sonnet-4-6"): {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    ("google", None, "gemini-3-flash"): {"tools": [{"google_search": {}}]},
    ("openrouter", None, "openai/gpt-5"): {"tools": [{"type": "openrouter:web_search"}]},
    ("perplexity", None, "perplexity/sonar"): OF_RESPONSES,
    ("xai", "responses", "grok-4.5"): OF_RESPONSES,
}
REPLIES = {
    "openai responses": responses(),
    "openai None": chat(),
    "anthropic None": anthropic(),
    "google None": gemini(),
    "openrouter None": chat("openai/gpt-5", cost=0.0123, server_tool_use={"web_search_requests": 2}),
    "perplexity None": perplexity(),
    "xai responses": xai(),
}
TOKENS = 1000 * 1e-6 + 100 * 10e-6
COSTS = {
    "openai responses": TOKENS + 2 * 0.01,
    "openai None": TOKENS + 0.025,
    "anthropic None": TOKENS + 2 * 0.01,
    "google None": TOKENS + 3 * 0.014,
    "openrouter None": 0.0123,
    "perplexity None": 0.0036,
    "xai responses": 0.0378,
}


def sent(plan: Any, extra: Any = None, *, web: bool = True) -> dict[str, Any]:
    """Return the parameters that are sent for a request."""
    request = Request(0, PROMPT, Sampling.model_validate({"web": web}), extra or {})
    return dict(WebSearch.sending(plan, by_batch=False)(request).request.extra)


def bulk(folder: Any, url: str, provider: str, dialect: str | None, model: str, **options: Any) -> Any:
    """Answer two rows with a search."""
    (folder / "in.csv").write_text("city\nParis\nRome\n")
    settings: dict[str, Any] = {"price": {"input": 1, "output": 10, **options.pop("price", {})}}
    settings |= {"backend_configs": {"openai": {"dialect": dialect}}} if dialect else {}
    given: dict[str, Any] = {"prompt": "What is new in {{city}}?", "model": model, "web": True, "progress": False}
    given |= {"provider": provider, "base_url": url, "api_key": "k", "state": folder / "jobs"}
    return promptmill.bulk(folder / "in.csv", folder / "out.jsonl", settings=settings, **given | options)


def rows(folder: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@pytest.mark.thorough
@pytest.mark.parametrize(("provider", "dialect", "model"), FORMS)
def test_a_request_has_the_search_as_its_api_wants_it(tmp_path, upstream, provider, dialect, model):
    upstream.reply = sends(REPLIES[f"{provider} {dialect}"])
    bulk(tmp_path, upstream.url, provider, dialect, model)
    assert len(rows(tmp_path)) == 2
    for seen in upstream.seen:
        wanted = FORMS[provider, dialect, model]
        assert {name: seen.json.get(name) for name in ("tools", "web_search_options") if name in seen.json} == wanted
        assert "web" not in seen.json


@pytest.mark.parametrize(("provider", "dialect", "model"), [key for key in FORMS if key[2] != "gpt-5-search-api"])
def test_the_sources_and_the_cost_of_searches_are_those_of_each_row(tmp_path, upstream, provider, dialect, model):
    upstream.reply = sends(REPLIES[f"{provider} {dialect}"])
    result = bulk(tmp_path, upstream.url, provider, dialect, model)
    for row in rows(tmp_path):
        titles = [source["title"] or "none" for source in row["sources"]]
        assert [source["url"] for source in row["sources"]] == [source["url"] for source in SOURCES]
        assert titles == (["none", "none"] if provider == "xai" else ["Line 15", "Rome today"])
        assert row["cost"] == pytest.approx(COSTS[f"{provider} {dialect}"])
    assert result.cost == pytest.approx(2 * COSTS[f"{provider} {dialect}"])


@pytest.mark.parametrize(
    ("family", "provider", "text"),
    [
        ("openai", "openai", CLEAN_CHAT),
        ("anthropic", "anthropic", CLEAN),
        ("gemini", "google", CLEAN),
        ("openrouter", "openrouter", CLEAN_CHAT),
    ],
)
def test_a_batch_has_the_search_and_its_sources(tmp_path, family, provider, text):
    api = {"openrouter": "openai"}.get(family, family)
    model = {"openai": "gpt-4o-search-preview", "gemini": "gemini-3-flash"}.get(family, "m")
    seen = []
    with BatchServer(family) as server:
        server._named["answer"] = {"body": APIS[api][0]}
        server.answers = lambda body: seen.append(body) or "answered"
        bulk(
            tmp_path,
            server.base_url,
            provider,
            None,
            model,
            batch=True,
            poll="0.1s",
            max_tokens=50,
            price={"batch": 0.5, "search": 20},
        )
    assert len(rows(tmp_path)) == 2
    wanted = next(form for (name, dialect, _), form in FORMS.items() if (name, dialect) == (provider, None))
    assert [{name: body[name] for name in wanted} for body in seen] == [wanted, wanted]
    for row in rows(tmp_path):
        assert (row["answer"], row["sources"]) == (text, SOURCES)
        assert row["cost"] == pytest.approx(TOKENS / 2 + row["usage"]["searches"] * 0.02), "searches have no discount"


def test_tools_of_the_caller_stay_and_a_search_in_his_own_form_is_not_doubled():
    config = openai_config("http://127.0.0.1:1/v1", provider="anthropic")
    tool = {"name": "look", "input_schema": {"type": "object"}}
    (search,) = FORMS["anthropic", None, "claude-sonnet-4-6"]["tools"]
    assert sent(config, {"tools": [tool], "top_k": 4}) == {"tools": [tool, search], "top_k": 4}
    own = {"tools": [{**search, "max_uses": 2}]}
    assert sent(config, own) == own
    assert sent(config, {"top_k": 4}, web=False) == {"top_k": 4}


@pytest.mark.parametrize(
    ("provider", "tool"),
    [
        ("anthropic", {"type": "web_fetch_20250910", "name": "web_fetch"}),
        ("google", {"fileSearch": {}}),
        ("google", {"urlContext": {}}),
        ("openai", {"type": "file_search"}),
    ],
)
def test_another_tool_that_reads_or_searches_is_no_search_of_the_web(provider, tool):
    dialect = {"dialect": "responses"} if provider == "openai" else {}
    config = openai_config("http://127.0.0.1:1/v1", provider=provider, **dialect)
    (search,) = next(form["tools"] for (name, _, _), form in FORMS.items() if name == provider)
    assert sent(config, {"tools": [tool]}) == {"tools": [tool, search]}
    assert sent(config, {"tools": [tool, search]}) == {"tools": [tool, search]}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"provider": "openai", "model_name": "gpt-5-mini"}, r"gpt-5-mini searches the web at openai only by another"),
        ({"provider": "xai", "model_name": "grok-4"}, r"grok-4 searches .* at xai only by another API"),
        ({"provider": "anthropic", "dialect": "openai"}, r"at anthropic only by another API"),
        ({"provider": "mistral"}, r"No web search is known of the endpoint \(mistral\)"),
        ({}, r"No web search is known of the endpoint\. Choose"),
    ],
)
def test_an_endpoint_without_a_search_is_refused_with_what_has_one(block, words):
    with pytest.raises(PromptmillError, match=words) as caught:
        sent(openai_config("http://127.0.0.1:1/v1", **block))
    assert caught.value.code is Code.INVALID_CONFIG
    hint = str(caught.value.hint)
    assert "dialect" in hint if "another API" in caught.value.message else "anthropic, google, openai" in hint


def test_endpoints_of_several_providers_need_one_form():
    same = ["https://api.x.ai/v1", "https://api.openai.com/v1"]
    assert sent(openai_config(same, dialect="responses")) == OF_RESPONSES
    with pytest.raises(PromptmillError, match=r"of the endpoint \(anthropic, google\)"):
        sent(openai_config(["https://api.anthropic.com", "https://generativelanguage.googleapis.com"]))


def test_an_engine_has_no_search():
    config = Configuration({"backend": "hf", "backend_configs": {"hf": {"model_name_or_path": "m"}}}).config
    with pytest.raises(PromptmillError, match="No web search is known of the backend hf"):
        sent(config)


@pytest.mark.parametrize("dry", [False, True])
def test_a_job_at_such_an_endpoint_ends_before_its_first_request(bench, upstream, dry):
    bench.prompts(3)
    done = bench.run("--web", *(["--dry-run"] if dry else []))
    assert done.returncode
    assert "No web search is known of the endpoint. Choose one of these providers" in done.stderr
    assert "`extra_params`" in done.stderr
    assert not upstream.seen


@pytest.mark.parametrize("how", ["--web", "extra_params"])
def test_no_limit_of_costs_is_promised_for_searches(bench, upstream, how):
    bench.prompts(3)
    search = ["--set", "extra_params={tools: [{type: web_search}]}"] if how == "extra_params" else ["--web"]
    price = ["--set", "price={input: 1, output: 10}", "--max-tokens", "10", "--max-cost", "1"]
    done = bench.run(*search, *price, provider="openai", dialect="responses")
    assert done.returncode
    assert "error: --max-cost: no amount bounds a search of the web" in done.stderr
    assert "--limit 20" in done.stderr
    assert not upstream.seen


@pytest.mark.parametrize(("price", "words"), [({}, "a price that is not known"), ({"search": 20}, "$20.00 per 1,000")])
@pytest.mark.parametrize("how", ["--web", "extra_params"])
def test_a_dry_run_names_the_price_of_searches(bench, how, price, words):
    bench.prompts(3)
    search = ["--set", "extra_params={tools: [{type: web_search}]}"] if how == "extra_params" else ["--web"]
    given = ["--set", f"price={json.dumps({'input': 1, 'output': 10, **price})}", "--max-tokens", "10"]
    done = bench.run(*search, *given, "--dry-run", provider="xai", dialect="responses")
    assert not done.returncode, done.stderr
    shown = " ".join(done.stdout.split())
    assert f"may search the web, at {words}, as often as the model wants" in shown
    assert "more with searches of the web" in shown


def test_a_job_whose_searches_have_no_price_shows_no_cost(bench, upstream):
    bench.prompts(2)
    upstream.reply = sends(chat("m"))
    own = ["--set", "extra_params={tools: [{type: web_search}]}", "--set", "price={input: 1, output: 10}"]
    done = bench.run(*own)
    assert "$0" not in done.stderr + done.stdout
    assert "The cost leaves out answers with searches of the web" in " ".join((done.stderr + done.stdout).split())
    assert [record.extras["sources"] for record in bench.records()] == [SOURCES, SOURCES]


@pytest.mark.parametrize("other", [["--together", "4"], ["--split", "auto"], ["--embed", "{{id}}"]])
def test_options_whose_answers_share_a_reply_exclude_it(bench, other):
    bench.prompts(2)
    done = bench.run("--web", *other)
    assert done.returncode == 2
    assert f"error: --web cannot be used with {other[0]}; " in done.stderr


def service(upstream, top=(), **options):
    raw = openai_configuration(upstream.url, provider="openai", dialect="responses")._raw
    return Service(Configuration({**raw, **dict(top)}, **options))


def test_the_user_is_not_asked_about_a_cost_without_the_searches(upstream):
    raw = openai_configuration(upstream.url, provider="openai", dialect="responses")._raw
    price = {"price": {"input": 1, "output": 10}, "sampling_params": {"max_tokens": 10}}
    config = Configuration({**raw, **price}).config
    plain = CallWork([PROMPT], Call(), "", config, "plain")
    searching = replace(plain, config=config.with_sampling({"web": True}), name="searching")
    assert None not in tools_of_calls._costs([plain])[:2]
    assert tools_of_calls._costs([searching]) == (None, None, ["searching"])
    cost, most, _ = tools_of_calls._costs([plain, searching])
    assert (cost is None, most) == (False, None), "the known costs of several models are added"


async def test_a_client_may_not_search_at_the_expense_of_the_operator(upstream, tools):
    async with tools(service(upstream)) as call:
        with pytest.raises(ToolError, match=r"sampling_params.web: this server takes it only from its operator"):
            await call("generate", prompt_ls=["What is new?"], **WEB)
    assert not upstream.seen


@pytest.mark.parametrize("how", ["allowed", "trusted"])
async def test_the_result_of_a_call_has_the_sources(upstream, closing, how):
    upstream.reply = sends(responses())
    allowed = {"sampling_params": {"web": False}}
    chosen = service(upstream, allowed) if how == "allowed" else service(upstream, trust_client=True)
    async with Client(create_server(closing(chosen))) as client:
        result = await client.call_tool("generate", {"prompt_ls": ["What is new?"], **WEB})
    assert result.structured_content == {"ans_ls": [CLEAN]}
    assert result.meta is not None
    assert result.meta["sources"] == [SOURCES]
