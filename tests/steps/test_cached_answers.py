"""Answers that are not paid for twice, through service and backend, in front of a loopback endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import stat
import sys
import threading
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from fakes import openai_config, openai_configuration
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.cli.main import main
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.service import list_call
from promptmill.service.service import Service
from promptmill.steps import cached
from promptmill.steps.cached import AnswerCache, CachedAnswers
from replies import answer, attempts, by_prompt, choose, late, status
from sure import sure
from waiting import PATIENCE_S, until

BOTH_PLACES = pytest.mark.parametrize("is_shared", [False, True], ids=["outermost", "innermost"])


class Asking:
    """One service with a cache; `ask` returns outcomes and statistics."""

    def __init__(self, service):
        self.service = service

    async def ask(self, *prompts, images=(), call=None, extra=None, keep_raw=False, **sampling):
        call = call or Call(Facts(total=len(prompts), keep_raw=keep_raw))
        items = [conversation_from_prompt(prompt, "a prompt").with_images(images, None) for prompt in prompts]
        config = self.service.config.with_sampling({"temperature": 0} | sampling)
        if extra:
            config = replace(config, settings=config.settings.model_copy(update={"extra_params": extra}))
        return await self.service.generate(items, call, config=config), call


@pytest.fixture
def opened(upstream, tmp_path):
    """Open a service on the test's cache; `top` and `block` change its configuration."""

    @asynccontextmanager
    async def opener(*, cache=None, top=None, is_shared=False, **block):
        configuration = openai_configuration(upstream.url, **block)
        whole = {"cache": cache or str(tmp_path / "answers.sqlite")} | (top or {})
        configuration = Configuration({**configuration._raw, **whole})
        async with aclosing(Service(configuration, is_shared=is_shared)) as service:
            yield Asking(service)

    return opener


@pytest.fixture
def in_turn(opened):
    """Ask twice, each time in a service of its own, as two processes would; returns what the second got."""

    async def asked(first, second=None, **options):
        for arguments in (first, second or first):
            async with opened(**options) as asking:
                found = await asking.ask(*arguments[0], **arguments[1])
        return found

    return asked


async def test_what_was_answered_once_is_never_sent_again(in_turn, upstream):
    outcomes, call = await in_turn((["a", "b"], {}))
    assert [outcome.text for outcome in outcomes] == ["echo: a", "echo: b"]
    assert (
        call.counts.cached,
        call.counts.requests,
        call.counts.prompt_tokens,
        call.counts.done,
        call.counts.failed,
    ) == (2, 0, 0, 2, 0)
    assert [outcome.attempts for outcome in outcomes] == [0, 0]
    assert len(upstream.seen) == 2


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("second", "options"),
    [
        ((["a"], {"max_tokens": 5}), {}),
        ((["a"], {"seed": 2}), {}),
        ((["b"], {}), {}),
    ],
)
async def test_whatever_may_change_the_answer_is_part_of_what_is_looked_for(in_turn, upstream, second, options):
    _, call = await in_turn((["a"], {}), second, **options)
    assert (call.counts.cached, len(upstream.seen)) == (0, 2)


async def test_another_model_has_answers_of_its_own(opened, upstream):
    for name in ("one", "two", "two"):
        async with opened(model_name=name) as asking:
            await asking.ask("a")
    assert [seen.json["model"] for seen in upstream.seen] == ["one", "two"]


@pytest.mark.parametrize(("cache", "sent"), [(None, 2), ("all", 1)])
async def test_above_temperature_0_answers_are_kept_only_where_all_are(
    in_turn, upstream, monkeypatch, tmp_path, cache, sent
):
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "caches"))
    await in_turn((["a"], {"temperature": 0.7}), cache=cache)
    assert len(upstream.seen) == sent


@pytest.mark.parametrize("reply", [answer("half", finish_reason="length"), status(400)])
async def test_only_complete_answers_are_kept(in_turn, upstream, reply):
    upstream.reply = reply
    _, call = await in_turn((["a"], {}))
    assert (call.counts.cached, len(upstream.seen)) == (0, 2)


async def test_an_image_that_changed_is_another_request(opened, upstream, tmp_path):
    from PIL import Image

    path = tmp_path / "picture.png"
    async with opened() as asking:
        for colour in ("red", "red", "blue"):
            Image.new("RGB", (2, 2), colour).save(path)
            await asking.ask("a", images=[str(path)])
    assert len(upstream.seen) == 2


async def test_the_same_request_in_flight_in_several_calls_is_sent_once(opened, upstream):
    upstream.reply = late(0.2)
    async with opened() as asking:
        result = await asyncio.gather(*(asking.ask("a", "b", "a") for _ in range(4)))

    for outcomes, _ in (found := result):
        assert [outcome.text for outcome in outcomes] == ["echo: a", "echo: b", "echo: a"]
    assert len(upstream.seen) == 2
    assert sum(call.counts.cached for _, call in found) == 10
    assert sum(call.counts.requests for _, call in found) == 2


@pytest.mark.simulated
async def test_who_waited_for_a_call_that_was_cancelled_asks_itself(opened, upstream):
    upstream.reply = attempts(late(30), answer("second"))
    async with opened() as asking:
        first = asyncio.ensure_future(asking.ask("a"))
        await until(lambda: len(upstream.seen) == 1)
        second = asyncio.ensure_future(asking.ask("a"))
        await asyncio.sleep(0.1)
        first.cancel()
        (outcome,), call = await second
    assert (outcome.text, call.counts.requests) == ("second", 1)


async def test_who_waits_can_be_cancelled_alone(opened, upstream):
    released = asyncio.Event()

    async def held(exchange):
        while not released.is_set():
            await exchange.sleep(0.005)
        await answer()(exchange)

    upstream.reply = held
    calls = [Call(Facts(total=1)) for _ in range(2)]
    async with opened() as asking:
        first, second = (asyncio.ensure_future(asking.ask("a", call=call)) for call in calls)
        await until(lambda: upstream.seen and calls[1].waits.held)
        second.cancel()
        await asyncio.wait({second})
        released.set()
        (outcome,), _ = await first
    assert outcome.text == "echo: a"
    assert [(call.in_flight, call.waits.held) for call in calls] == [(0, 0), (0, 0)]


async def test_who_waited_for_a_request_that_failed_asks_itself(opened, upstream):
    upstream.reply = attempts(late(0.2, status(400)), answer("second"))
    async with opened() as asking:
        result = await asyncio.gather(asking.ask("a"), asking.ask("a"))

    outcomes = [outcome for found, _ in result for outcome in found]
    assert sorted(isinstance(outcome, Completion) for outcome in outcomes) == [False, True]
    assert [call.counts.requests for _, call in result] == [1, 1]


async def test_without_the_key_nothing_is_kept(upstream, closing):
    service = closing(Service(openai_configuration(upstream.url)))
    for _ in range(2):
        await Asking(service).ask("a")
    assert len(upstream.seen) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="files have no modes there")
def test_the_file_is_its_owners_alone_also_when_it_was_there(tmp_path):
    path = tmp_path / "sub" / "answers.sqlite"
    AnswerCache(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    cache = AnswerCache(path)
    cache.put([(b"k", b"v")])
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    cache.close()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="cannot be used"):
        AnswerCache(path)


def test_the_oldest_go_when_there_are_too_many_bytes(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite", most_bytes=300_000)
    for number in range(40):
        cache.put([(b"%d" % number, bytes(20_000))])
    found = cache.get([b"%d" % number for number in range(40)])
    assert cache.summary()["bytes"] <= 300_000
    assert b"39" in found
    assert b"0" not in found
    cache.close()


def test_an_answer_is_told_for_thirty_days_and_then_deleted_when_a_thousand_more_are_written(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    for days, is_told in ((29.9, True), (30.1, False)):
        cache.put([(b"k", b"v")])
        cache._db.execute("UPDATE answers SET made = ?", (time.time() - days * 24 * 3600,))
        assert (b"k" in cache.get([b"k"])) is is_told
    cache.put([(b"%d" % number, b"") for number in range(997)])
    assert cache.summary()["answers"] == 998
    cache.put([(b"last", b"")])
    assert cache.summary()["answers"] == 998, "the old one is gone"
    cache.put([(b"more", b"")])
    assert cache.summary()["answers"] == 999
    cache.close()


def test_a_cache_that_is_cleared_takes_little_room(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    cache.put([(b"k", bytes(1_000_000))])
    assert cache.clear() == 1
    cache.close()
    assert cache.path.stat().st_size < 100_000


def test_what_is_too_old_is_not_told(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite", most_age_s=0)
    cache.put([(b"k", b"v")])
    assert cache.get([b"k"]) == {}
    cache.close()


async def test_the_command_line_shows_and_clears_the_cache(in_turn, tmp_path, capsys):
    await in_turn((["a"], {}))
    path = str(tmp_path / "answers.sqlite")
    config = tmp_path / "p.yaml"
    config.write_text(json.dumps({"cache": path}))
    assert main(["jobs", "--cache", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) | {"bytes": 0, "oldest_s": 0} == {
        "in_use": True,
        "path": path,
        "answers": 1,
        "bytes": 0,
        "oldest_s": 0,
    }
    assert main(["jobs", "--cache", "--config", str(config), "--clear"]) == 0
    assert capsys.readouterr().out.startswith("1 answer forgotten\n0 answers")


@pytest.mark.thorough
def test_a_job_takes_answers_from_the_cache(upstream, tmp_path, capsys):
    upstream.reply = by_prompt({}, otherwise=answer())
    block = {"model_name": "m", "base_url": upstream.url}
    config = {
        "backend": "openai",
        "backend_configs": {"openai": block},
        "sampling_params": {"temperature": 0},
        "cache": str(tmp_path / "answers.sqlite"),
    }
    (tmp_path / "p.yaml").write_text(json.dumps(config))
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    for name in ("one", "two"):
        arguments = ["bulk", str(tmp_path / "in.jsonl"), str(tmp_path / f"{name}.jsonl")]
        assert main([*arguments, "--config", str(tmp_path / "p.yaml")]) == 0
    assert len(upstream.seen) == 2
    assert json.loads((tmp_path / "two.jsonl").read_text().splitlines()[1])["answer"] == "echo: b"
    capsys.readouterr()


async def _sent_images(opened, path, **block):
    async with opened(**block) as asking:
        return (await asking.ask("a", images=[str(path)]))[0]


@pytest.mark.skipif(sys.platform == "win32", reason="devices and pipes")
@pytest.mark.parametrize("kind", ["device", "pipe", "outside", "text"])
async def test_a_file_that_is_no_image_to_be_read_is_not_read_for_the_cache_either(
    opened, upstream, tmp_path, monkeypatch, kind
):
    """`Path.read_bytes` of a device never ends, and that of a pipe waits for a writer."""
    read, whole = [], pathlib.Path.read_bytes  # of the package's own files
    monkeypatch.setattr(
        pathlib.Path, "read_bytes", lambda path: whole(path) if path.suffix == ".json" else read.append(path) or b""
    )
    path = tmp_path / "elsewhere" / "picture.png"
    path.parent.mkdir()
    if kind == "device":
        path = pathlib.Path("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\x89PNG\r\n\x1a\n" if kind == "outside" else b"a secret")
    roots = {"allowed_roots": [str(tmp_path / "inside")]} if kind == "outside" else {}
    (outcome,) = await _sent_images(opened, path, top=roots)
    assert outcome.error.code is Code.INVALID_IMAGE
    assert not read
    assert not upstream.seen


async def test_to_several_clients_a_hit_looks_like_an_answer(opened, upstream):
    async with opened(top={"price": {"input": 10.0, "output": 100.0}}, is_shared=True) as asking:
        found = [await asking.ask("a") for _ in range(2)]
    assert len(upstream.seen) == 1
    (first,), (second,) = (outcomes for outcomes, _ in found)
    assert (first.text, first.usage, first.attempts, first.cost) == (
        second.text,
        second.usage,
        second.attempts,
        second.cost,
    )
    assert second.latency_s > 0
    totals = [list_call.totals(call) for _, call in found]
    for reported in totals:
        del reported["seconds"], reported["tokens_per_second"]
    assert totals[0] == totals[1]
    assert "cached" not in totals[1]


@pytest.mark.thorough
@pytest.mark.parametrize("cache", [True, "all"])
async def test_to_several_clients_each_of_several_answers_is_kept_separately(
    opened, upstream, tmp_path, monkeypatch, cache
):
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "caches"))
    upstream.reply = choose(lambda seen: answer(f"number {seen.number}"))
    async with opened(cache=cache, is_shared=True) as asking:
        (first,), (second,) = [(await asking.ask("a", n=3))[0] for _ in range(2)]
    assert len(upstream.seen) == len(set(first.answers)) == 3
    assert first.answers == second.answers


@pytest.mark.parametrize(
    ("reply", "arguments"),
    [
        pytest.param(attempts(status(429), answer("second")), {}, id="an answer of two requests"),
        pytest.param(
            answer("{}"), {"response_format": {"type": "json_object"}}, id="an answer that is not checked yet"
        ),
        pytest.param(answer("all"), {"keep_raw": True}, id="a response with its name and time"),
    ],
)
async def test_for_several_clients_an_answer_that_would_give_itself_away_is_not_kept(
    opened, upstream, reply, arguments
):
    upstream.reply = reply
    async with opened(is_shared=True) as asking:
        await asking.ask("a", **arguments)
        sent = len(upstream.seen)
        await asking.ask("a", **arguments)
    assert len(upstream.seen) == sent + 1


async def test_for_several_clients_equal_requests_of_two_calls_are_both_sent(opened, upstream):
    upstream.reply = late(0.2)
    async with opened(is_shared=True, dedupe=False) as asking:
        found = await asyncio.gather(*(asking.ask("a", "a") for _ in range(2)))
    assert len(upstream.seen) == 2
    assert [(call.counts.requests, call.in_flight) for _, call in found] == [(2, 0), (2, 0)]


async def test_for_several_clients_random_answers_are_not_kept(opened, upstream):
    """Two of them at the same time would differ, and hits would not."""
    async with opened(cache="all", is_shared=True) as asking:
        for _ in range(2):
            await asking.ask("a", temperature=0.7)
    assert len(upstream.seen) == 2


async def test_to_several_clients_another_service_tier_is_another_request(opened, upstream):
    upstream.reply = answer("of priority")
    async with opened(is_shared=True) as asking:
        for tier in ("flex", "priority", "priority"):
            await asking.ask("a", extra={"service_tier": tier})
    assert [seen.json["service_tier"] for seen in upstream.seen] == ["flex", "priority"]


async def test_the_two_places_do_not_share_answers(opened, upstream):
    for is_shared in (False, True, False, True):
        async with opened(is_shared=is_shared) as asking:
            await asking.ask("a")
    assert len(upstream.seen) == 2


@BOTH_PLACES
async def test_a_hit_warns_of_what_the_first_request_left_out(opened, upstream, is_shared):
    async with opened(is_shared=is_shared, provider="openai") as asking:
        found = [await asking.ask("a", top_k=5) for _ in range(2)]
    assert len(upstream.seen) == 1
    warned = [list(call.warnings) for _, call in found]
    assert warned[0] == warned[1]
    assert "`top_k`" in warned[0][0]


@BOTH_PLACES
async def test_a_hit_without_a_parameter_is_none_for_a_request_that_requires_it(opened, upstream, is_shared):
    async with opened(is_shared=is_shared, provider="openai") as asking:
        await asking.ask("a", top_k=5)
        config = asking.service.config.with_sampling({"temperature": 0, "top_k": 5})
        item = conversation_from_prompt("a", "")
        request = Request(0, item, config.settings.sampling_params, required=frozenset({"top_k"}))
        (outcome,) = await asking.service.generate([request], Call(Facts(total=1)), config=config)
    assert outcome.error.code == "unsupported"
    assert len(upstream.seen) == 1


async def test_extra_parameters_may_raise_the_temperature(opened, upstream):
    async with opened() as asking:
        for _ in range(2):
            await asking.ask("a", extra={"temperature": 1})
    assert len(upstream.seen) == 2


async def test_answers_of_many_megabytes_are_not_kept(in_turn, upstream, monkeypatch):
    monkeypatch.setattr(cached, "LONGEST_ANSWER", 1000)
    upstream.reply = by_prompt({"a": answer("x" * 2000)}, otherwise=answer("x" * 10))
    outcomes, call = await in_turn((["a", "b"], {}))
    assert [len(outcome.text) for outcome in outcomes] == [2000, 10]
    assert (call.counts.cached, call.counts.requests) == (1, 1)


async def test_all_hits_of_a_turn_are_found_in_pieces(in_turn, monkeypatch):
    monkeypatch.setattr(cached, "_READ_AT_ONCE", 3)
    outcomes, call = await in_turn(([f"q{n}" for n in range(20)], {}))
    assert [outcome.text for outcome in outcomes] == [f"echo: q{n}" for n in range(20)]
    assert call.counts.cached == 20


async def test_an_answer_is_found_before_it_is_on_disk(tmp_path, closing):
    opened = threading.Event()

    class SlowCache(AnswerCache):
        def put(self, answers):
            assert opened.wait(PATIENCE_S)
            super().put(answers)

    batches = closing(cached._Batches(SlowCache(tmp_path / "answers.sqlite")))
    batches.keep(b"key", Completion("yes"), pytest.fail)
    before = await batches.look_up(b"key", pytest.fail)
    opened.set()
    await batches.flush()
    assert not batches._unwritten
    after = await batches.look_up(b"key", pytest.fail)
    assert [before and before.text, after and after.text] == ["yes", "yes"]


async def test_the_last_answers_are_on_disk_when_the_cache_is_closed(tmp_path, closing):
    batches = cached._Batches(AnswerCache(tmp_path / "answers.sqlite"))
    batches.keep(b"key", Completion("yes"), pytest.fail)
    await batches.aclose()
    again = closing(cached._Batches(AnswerCache(tmp_path / "answers.sqlite")))
    found = await again.look_up(b"key", pytest.fail)
    assert found is not None
    assert found.text == "yes"


async def test_an_image_on_the_web_has_no_key_because_it_may_change(upstream, tmp_path, closing):
    cache = AnswerCache(tmp_path / "answers.sqlite")
    step = closing(CachedAnswers(openai_config(upstream.url), cache, everything=True, is_shared=False))
    for images, has_key in (((), True), (("https://example.com/a.png",), False)):
        item = conversation_from_prompt("x", "a prompt").with_images(images, None)
        question = await step.question(Request(0, item, Sampling(temperature=0)), Call())
        assert (question is not None) is has_key


async def test_a_hit_says_that_it_came_from_the_cache_and_costs_nothing(in_turn, upstream):
    price = {"price": {"input": 1.0, "output": 1.0}}
    (outcome,), call = await in_turn((["a"], {}), top=price)
    assert (outcome.came, outcome.cost, call.counts.cached) == ("cached", 0.0, 1)
    assert len(upstream.seen) == 1


@pytest.fixture
def step_of(tmp_path, closing):
    """Return the step of a cache, in front of no backend."""

    def made(*, is_shared=False, **top):
        config = Configuration({**openai_configuration("http://127.0.0.1:1/v1")._raw, **top}).config
        cache = AnswerCache(tmp_path / "answers.sqlite")
        return closing(CachedAnswers(config, cache, everything=False, is_shared=is_shared))

    return made


QUESTION = Request(0, conversation_from_prompt("x", "a prompt"), Sampling(temperature=0))


@BOTH_PLACES
async def test_an_answer_after_failed_attempts_is_kept_for_a_single_user_alone(step_of, is_shared):
    step, answer = step_of(is_shared=is_shared), Completion("a", "stop", attempts=2)
    assert step.learn((None, b"key"), answer, QUESTION, Call(), is_second=False) is not is_shared


@BOTH_PLACES
async def test_a_hit_counts_a_request_if_others_must_not_see_that_it_is_one(step_of, is_shared):
    answer, request = Completion("a", "stop", attempts=1, cost=2.0, unmetered=1), QUESTION.changed(attempts=3)
    hit = step_of(is_shared=is_shared).copied(answer, request, Call(), 0.0)
    assert (hit.attempts, hit.cost) == ((4, None) if is_shared else (3, None))


async def test_a_lookup_that_is_cancelled_leaves_the_others_their_answers(step_of):
    step = step_of()
    first, other = (asyncio.ensure_future(step.known((None, key), QUESTION, Call())) for key in (b"a", b"b"))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert await other is None


async def test_the_order_of_parameters_is_no_part_of_what_is_looked_for(step_of):
    headers = [{"X-A": "1", "X-B": "2"}, {"X-B": "2", "X-A": "1"}, {"X-B": "1", "X-A": "2"}]
    raw = openai_configuration("http://127.0.0.1:1/v1")._raw["backend_configs"]["openai"]
    steps = [step_of(backend_configs={"openai": {**raw, "headers": one}}) for one in headers]
    first, turned, other = [sure(await step.question(QUESTION, Call())) for step in steps]
    assert first == turned != other
