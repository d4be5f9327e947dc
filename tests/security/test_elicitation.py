"""Where the text of files may go, and what a session may spend, without the word of the client's user."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from fastmcp import Client
from mcp_types import ElicitResult
from PIL import Image

from fakes import FakeBackend
from promptmill.backends import registry
from promptmill.backends.protocol import Completion, Failure
from promptmill.config.configuration import Configuration, Overrides
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.inputs.whole_files import WholeFiles
from promptmill.jobs.run.duplicates import Duplicates
from promptmill.server import create_server
from promptmill.server.elicitation import UserQuestions
from promptmill.service.service import Service
from promptmill.steps import prices
from replies import answer, status
from talk import Talk, codes, serving, text
from waiting import PATIENCE_S

PRICE = {"price": {"input": 0, "output": 1_000_000}, "sampling_params": {"max_tokens": 1}}
"""Each answer costs two dollars, its highest cost is one."""


class User:
    """A user behind a client with elicitation."""

    def __init__(self, *, agrees=True):
        self.agrees, self.asked = agrees, []

    async def __call__(self, message, *_):
        self.asked.append(message)
        return ElicitResult(action="accept", content={"agree": True}) if self.agrees else ElicitResult(action="decline")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("the text of a file")
    (tmp_path / "in.csv").write_text("text\nthe text of a row\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def _raw(upstream, **top):
    block = {"base_url": upstream.url, "model_name": "m", "retries": 1, "base_delay": 0.01}
    return {"backend": "openai", "backend_configs": {"openai": block}, **top}


FILES = (
    {"files": ["note.txt"], "prompt": "{{content}}"},
    {"input_file": "in.csv", "output_file": "out.csv", "prompt": "{{text}}"},
)
MODELS = ["local", "default"]


def _sent(upstream):
    return "".join(json.dumps(seen.json) for seen in upstream.seen)


# The endpoint that a call chose


@pytest.mark.rule("F25")
@pytest.mark.parametrize("block", ["base_url", "api_key", "headers", "one more"])
@pytest.mark.usefixtures("protocol")
async def test_an_endpoint_that_a_call_chose_gets_no_text_of_files(folder, upstream, upstreams, block):
    """The attack: two calls, and the operator's files are at an address of the attacker's choice."""
    theirs = upstreams()
    chosen = {
        "base_url": {"base_url": theirs.url},
        "one more": {"base_url": [upstream.url, theirs.url]},
        "api_key": {"api_key": "the-key-of-the-attacker-1"},
        "headers": {"headers": {"X-Forward-To": theirs.url}},
    }[block]
    async with serving(Configuration(_raw(upstream))) as talk:
        await talk.init(backend_configs={"openai": chosen})
        for asked in FILES:
            said = await talk.error("bulk_generate", **asked)
            assert "came with a call of generation_init, and it gets no text of local files" in said
            assert "`allowed_endpoints`" in said
            assert "`promptmill serve --base-url URL -m MODEL`" in said
        assert not upstream.seen + theirs.seen
        job = await talk("bulk_generate", prompts=["the call's own text"])
        await talk.ended(job.structured_content["job_id"])
        assert await talk.answers("also its own") == ["echo: also its own"]
        pictures = await talk("multimodal_generate", prompt_ls=["x"], multimodal_path=[["a.png"]])
        assert pictures.structured_content["ans_ls"] == ["echo: x"], "pipelines choose their endpoint like this"
    assert "the text of a" not in _sent(upstream) + _sent(theirs)


@pytest.mark.rule("F25")
@pytest.mark.usefixtures("protocol")
async def test_it_gets_them_when_the_user_of_the_client_agrees(folder, upstream, upstreams):
    theirs, user = upstreams(), User()
    options = {"elicitation_handler": user}
    async with serving(Configuration(_raw(upstream, **PRICE, ask_above_cost=0.5)), **options) as talk:
        await talk.init(backend_configs={"openai": {"base_url": theirs.url}})
        for asked in FILES:
            job = await talk("bulk_generate", **asked)
            assert not job.is_error, text(job)
            await talk.ended(job.structured_content["job_id"])
        endpoints, costs = ([one for one in user.asked if word in one] for word in ("endpoint", "costs"))
        assert len(endpoints) == 1, "once for an endpoint"
        assert theirs.url in endpoints[0]
        assert len(costs) == 2, "which is another question"
        await talk.init(backend_configs={"openai": {"base_url": theirs.url, "api_key": "the-key-of-the-attacker-1"}})
        await talk("bulk_generate", **FILES[0], validate=True)
        assert len(user.asked) == 3, "nothing is sent"
        await talk("bulk_generate", **FILES[0])
        assert [one for one in user.asked if "endpoint" in one] == endpoints * 2, (
            "with another key it is another account"
        )
    assert "the text of a file" in _sent(theirs)
    assert not upstream.seen


@pytest.mark.rule("F25")
@pytest.mark.usefixtures("protocol")
async def test_it_gets_none_when_the_user_declines(folder, upstream, upstreams):
    theirs, user = upstreams(), User(agrees=False)
    async with serving(Configuration(_raw(upstream)), elicitation_handler=user) as talk:
        await talk.init(backend_configs={"openai": {"base_url": theirs.url}})
        for asked in FILES:
            assert "The user did not agree to send the text of files" in await talk.error("bulk_generate", **asked)
        assert (await talk("bulk_status")).structured_content["jobs"] == []
    assert len(user.asked) == 2
    assert not theirs.seen


@pytest.mark.rule("F25")
def test_the_operator_names_endpoints_in_four_places(upstream, monkeypatch):
    other = {"other": {"openai": {"base_url": "https://other.example/v1", "model_name": "m"}}}
    allowed = ["https://listed.example:8443", "host.example", "localhost:11434"]
    configuration = Configuration(_raw(upstream, models=other, allowed_endpoints=allowed))
    monkeypatch.setenv("PROMPTMILL_ENDPOINTS", "environment.example")

    def chosen(url):
        return registry.endpoints_of_call(configuration.overlaid(Overrides("openai", {"openai": {"base_url": url}})))

    for url in (
        *(upstream.url, "https://other.example/v2", "https://listed.example:8443/v1", "http://host.example:9/v1"),
        *("HTTPS://HOST.example/v1", "http://localhost:11434/v1", "https://environment.example/v1"),
    ):
        assert chosen(url) == [], url
    for url in (
        *("https://listed.example/v1", "http://listed.example:8443/v1", "http://localhost:11435/v1"),
        *(
            "http://127.0.0.1:1/v1",
            "https://api.openai.com/v1",
            "https://x.host.example/v1",
            "https://host.example.x/v1",
        ),
    ):
        assert chosen(url) == [url.removesuffix("/")], url
    assert registry.endpoints_of_call(configuration.config) == []
    assert registry.endpoints_of_call(configuration.overlaid(Overrides("openai", {"openai": {"retries": 2}}))) == []
    assert chosen("https://user-chosen.example/v1?key=abc") == ["https://user-chosen.example/v1"]


@pytest.mark.rule("F25")
@pytest.mark.usefixtures("protocol")
async def test_rows_for_a_local_engine_do_not_go_to_an_endpoint_that_is_loaded_in_its_place(
    folder, upstream, closing, monkeypatch
):
    """The job looks for equal rows first; meanwhile another call chooses an endpoint."""

    class Echo(FakeBackend):
        async def answer(self, request, call):
            return Completion("local")

    async def create(config):
        return Echo() if config.record.is_engine else await registry.create(config)

    raw = {"backend": "hf", "backend_configs": {"hf": {"model_name_or_path": "some-model"}}}
    service, looked, real = closing(Service(Configuration(raw), create=create)), asyncio.Event(), Duplicates.prepare
    goes_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(*arguments):
        loop.call_soon_threadsafe(looked.set)
        asyncio.run_coroutine_threadsafe(goes_on.wait(), loop).result()
        return real(*arguments)

    monkeypatch.setattr(Duplicates, "prepare", slowly)
    async with Client(create_server(service)) as client:
        talk = Talk(client)
        job = await talk("bulk_generate", **FILES[0], dedupe=True)
        await looked.wait()
        await talk.init(backend_configs={"openai": {"base_url": upstream.url, "model_name": "some-model"}})
        goes_on.set()
        found = await talk.ended(job.structured_content["job_id"])
    assert found["state"] == "interrupted"
    assert "Another model was loaded" in found["reason"]
    assert not upstream.seen


@pytest.mark.rule("F25")
@pytest.mark.parametrize("way", ["a list of models", "a fallback", "a row"])
async def test_rows_for_a_local_engine_do_not_go_to_the_endpoint_of_a_call_by(way, folder, upstreams, closing):
    """The attack: the operator's second model answers, and hands rows on to the default model, which a call chose."""

    class Failing(FakeBackend):
        async def answer(self, request, call):
            return Failure(PromptmillError(Code.CONTEXT_LENGTH, "too long", ""))

    async def create(config):
        return Failing() if config.record.is_engine else await registry.create(config)

    ours, theirs = upstreams(), upstreams()
    local = {"hf": {"model_name_or_path": "some-model"}, "fallback": ["default"] if way == "a fallback" else []}
    service = closing(Service(Configuration(_raw(ours, models={"local": local})), create=create))
    (folder / "in.jsonl").write_text(
        '{"prompt": "the text of a row"%s}\n' % (', "model": "default"' * (way == "a row"))
    )
    asked: dict[str, Any] = {"input_file": "in.jsonl", "output_file": "out.jsonl", "model": "local"}
    async with Client(create_server(service)) as client:
        talk = Talk(client)
        await talk.init(backend_configs={"openai": {"base_url": theirs.url}})
        if way == "a list of models":
            assert "it gets no text of local files" in await talk.error("bulk_generate", **asked | {"model": MODELS})
        else:
            job = await talk("bulk_generate", **asked)
            found = await talk.ended(job.structured_content["job_id"])
            assert "it gets no text of local files" in found["reason"]
        asked = {"prompts": ["the call's own text"], "model": MODELS}
        await talk.ended((await talk("bulk_generate", **asked)).structured_content["job_id"])
    assert {seen.prompt for seen in theirs.seen} == {"the call's own text"}


@pytest.mark.rule("F25")
@pytest.mark.usefixtures("protocol")
async def test_an_endpoint_that_is_chosen_while_files_are_read_gets_none(folder, upstream, upstreams, monkeypatch):
    """Until its first use, a configuration without a model is open, and another call could fill it in."""
    theirs = upstreams()
    for each in (upstream, theirs):
        each.models = ["m"]
    raw = _raw(upstream)
    del raw["backend_configs"]["openai"]["model_name"]
    reading, goes_on = threading.Event(), threading.Event()
    real = WholeFiles.lines

    def slowly(self):
        reading.set()
        goes_on.wait(PATIENCE_S)
        yield from real(self)

    monkeypatch.setattr(WholeFiles, "lines", slowly)
    async with serving(Configuration(raw)) as talk:
        starting = asyncio.ensure_future(talk("bulk_generate", **FILES[0]))
        await asyncio.to_thread(reading.wait, 10)
        await talk.init(backend_configs={"openai": {"base_url": theirs.url}})
        goes_on.set()
        job = await starting
        await talk.ended(job.structured_content["job_id"])
    assert "the text of a file" in _sent(upstream)
    assert "the text" not in _sent(theirs)


@pytest.mark.rule("F25")
@pytest.mark.rule("M1")
@pytest.mark.parametrize("changes", ["endpoint", "cost"])
async def test_a_yes_counts_only_for_its_own_question(folder, upstream, upstreams, protocol, changes):
    """While the user decides, another call chooses another endpoint, or a model that costs more."""
    first, second = upstreams(), upstreams()
    top: Any = {"backend_configs": {"openai": {"base_url": first.url}}}
    later: Any = {"backend_configs": {"openai": {"base_url": second.url}}}
    if changes == "cost":
        top, later = ({"sampling_params": {"max_tokens": tokens}, "backend_configs": {}} for tokens in (1, 600))
    asked: list[str] = []

    async def user(message, *_):
        asked.append(message)
        if len(asked) == 1:
            await talk.init(**later)
        return ElicitResult(action="accept" if len(asked) == 1 else "decline", content={"agree": True})

    price = {**PRICE, "ask_above_cost": 0.5} if changes == "cost" else {}
    async with serving(Configuration(_raw(upstream, **price)), elicitation_handler=user) as talk:
        await talk.init(**top)
        job = await talk("bulk_generate", **FILES[0])
        if not job.is_error:
            await talk.ended(job.structured_content["job_id"])
    assert len(set(asked)) == len(asked) == (2 if protocol == "auto" else 1)
    assert "the text of a file" not in _sent(second)
    assert all(seen.json["max_tokens"] == 1 for seen in upstream.seen if changes == "cost")


# The cost


@pytest.mark.rule("M1")
async def test_a_job_on_an_engine_and_an_endpoint_asks_about_the_endpoint(folder, upstream, closing):
    """The price of the first model, an engine, is not known. Rows may name the endpoint, too."""

    async def create(config):
        return FakeBackend() if config.record.is_engine else await registry.create(config)

    models = {"local": {"hf": {"model_name_or_path": "some-model"}}}
    raw, user = _raw(upstream, **PRICE, ask_above_cost=0.5, models=models), User(agrees=False)
    service = closing(Service(Configuration(raw), create=create))
    async with Client(create_server(service), elicitation_handler=user) as client:
        assert "did not agree" in await Talk(client).error("bulk_generate", prompts=["x"], model=MODELS)
        rows = {"model": "local", "prompts": ["x", {"prompt": "y", "model": "default"}]}
        assert (await Talk(client)("bulk_generate", **rows, validate=True)).structured_content["invalid"] == 0
        assert "did not agree" in await Talk(client).error("bulk_generate", **rows)
    assert len(user.asked) == 2
    assert not upstream.seen


@pytest.mark.rule("M1")
@pytest.mark.usefixtures("protocol")
async def test_every_tool_asks_before_a_call_that_may_cost_more(folder, upstream):
    user = User(agrees=False)
    message = {"role": "user", "content": "x"}
    calls: dict[str, dict[str, Any]] = {
        "generate": {"prompt_ls": ["x"] * 7},
        "multimodal_generate": {"prompt_ls": ["x"] * 7, "multimodal_path": [["a.png"]] * 7},
        "multiturn_generate": {"messages": [message], "sampling_params": {"max_tokens": 7}},
        "bulk_generate": {"prompts": [f"x {number}" for number in range(7)]},
    }
    async with serving(Configuration(_raw(upstream, **PRICE, ask_above_cost=6)), elicitation_handler=user) as talk:
        for tool, arguments in calls.items():
            said = await talk.error(tool, **arguments)
            assert "The user did not agree to this call, which costs about $7.00, at most $7.00; nothing" in said, tool
        assert len(user.asked) == len(calls), "the same prompts through another tool are another question"
        assert not upstream.seen
        assert len(await talk.answers("six", *"54321")) == 6
        user.agrees = True
        assert len(await talk.answers(*"7654321")) == 7


@pytest.mark.rule("M1")
@pytest.mark.usefixtures("protocol")
async def test_the_sum_of_small_calls_is_asked_about(upstream):
    user = User(agrees=False)
    async with serving(Configuration(_raw(upstream, **PRICE, ask_above_cost=6)), elicitation_handler=user) as talk:
        for number in range(3):
            assert await talk.answers(f"{number}") == [f"echo: {number}"]  # two dollars each
        assert user.asked == []
        assert "nothing was sent" in await talk.error("generate", prompt_ls=["one too many"])
        earlier = "Earlier calls without a question cost at most $6.00."
        assert user.asked == [f"This call costs about $1.00, at most $1.00. {earlier} Start it?"]
        assert "nothing was sent" in await talk.error("bulk_generate", prompts=["also too many"])
        user.agrees = True
        assert await talk.answers("agreed") == ["echo: agreed"]
        asked = len(user.asked)
        for number in range(3):
            assert await talk.answers(f"{number}") == [f"echo: {number}"]
        assert len(user.asked) == asked, "the user has seen the sum, which begins anew"
    assert len(upstream.seen) == 7


@pytest.mark.rule("M1")
@pytest.mark.usefixtures("protocol")
async def test_calls_at_the_same_time_are_one_sum(upstream):
    user = User(agrees=False)
    async with serving(Configuration(_raw(upstream, **PRICE, ask_above_cost=6)), elicitation_handler=user) as talk:
        found = await asyncio.gather(*(talk("generate", prompt_ls=[f"{number}"]) for number in range(9)))
    assert sum(result.is_error for result in found) == 3
    assert len(upstream.seen) == 6


@pytest.mark.rule("M1")
@pytest.mark.usefixtures("protocol")
async def test_a_call_that_cost_nothing_counts_for_nothing(upstream):
    user = User(agrees=False)
    async with serving(Configuration(_raw(upstream, **PRICE, ask_above_cost=6)), elicitation_handler=user) as talk:
        upstream.reply = status(400, "no")
        for _ in range(3):
            assert set(codes(await talk("generate", prompt_ls=[*"654321"])).values()) == {"bad_request"}
        upstream.reply = answer()
        assert len(await talk.answers(*"654321")) == 6
    assert user.asked == []


@pytest.mark.rule("M1")
@pytest.mark.usefixtures("protocol")
async def test_a_call_without_max_tokens_may_cost_any_amount(upstream):
    user = User(agrees=False)
    raw = _raw(upstream, price=PRICE["price"], ask_above_cost=6)
    async with serving(Configuration(raw), elicitation_handler=user) as talk:
        assert "`max_tokens` is not set" in await talk.error("generate", prompt_ls=["x"])
        assert await talk.answers("x", sampling_params={"max_tokens": 1}) == ["echo: x"]
    async with serving(Configuration({**raw, "ask_above_cost": None}), elicitation_handler=user) as talk:
        assert await talk.answers("x") == ["echo: x"]
    async with serving(Configuration(raw)) as talk:
        assert await talk.answers("x") == ["echo: x"], "a client that cannot ask"
    assert len(user.asked) == 1


@pytest.mark.rule("M1")
@pytest.mark.parametrize("chosen", [{"model_name": "an-unknown-model"}, {"base_url": "here", "model_name": "unknown"}])
@pytest.mark.usefixtures("protocol")
async def test_a_model_of_a_call_without_a_known_price_may_cost_any_amount(folder, upstream, monkeypatch, chosen):
    """The operator knows the price of the configured model; a call chooses another one."""
    user, real = User(agrees=False), prices._listed
    monkeypatch.setattr(
        prices, "_listed", lambda model, config: prices.FlatPrice(0, 1e6, 0) if model == "m" else real(model, config)
    )
    raw = _raw(upstream, sampling_params={"max_tokens": 1}, ask_above_cost=6)
    async with serving(Configuration(raw), elicitation_handler=user) as talk:
        assert await talk.answers("x") == ["echo: x"]
        block = {name: upstream.url if value == "here" else value for name, value in chosen.items()}
        await talk.init(backend_configs={"openai": block})
        unknown = "costs an unknown amount, because its price is not known"
        assert unknown in await talk.error("generate", prompt_ls=["x"])
        assert unknown in await talk.error("bulk_generate", prompts=["x"])
    del raw["ask_above_cost"]
    monkeypatch.setattr(prices, "_listed", real)
    async with serving(Configuration({**raw, "ask_above_cost": 6}), elicitation_handler=user) as talk:
        assert await talk.answers("x") == ["echo: x"], "nobody knows the price of the operator's model either"
    assert len(user.asked) == 2


@pytest.mark.rule("M1")
def test_each_of_many_sessions_has_a_sum_of_its_own():
    questions = UserQuestions()
    for number in range(3000):
        assert questions.add(f"{number}", 1.0) == 1.0
    assert questions.add("2999", 1.0) == 2.0
    assert len(questions._unasked) == 2000
