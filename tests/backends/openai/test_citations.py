"""Sources of answers with a web search: of recorded replies of five APIs, over real connections."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from driving import ask, opened
from promptmill.backends.batches import Reply
from promptmill.backends.openai.citations import without_marks
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import PLAIN
from promptmill.backends.openai.reply import read_other_response, read_response
from promptmill.backends.protocol import Call, Completion
from promptmill.core.request import Request
from web_searches import APIS, FIRST, SECOND, SOURCES, anthropic, chat, gemini, perplexity, responses, sends, xai

_DIALECTS = {"perplexity": "responses"}


def read(body, dialect="openai", **options) -> Completion:
    endpoint = Endpoint("http://x/v1/chat/completions", "x", {}, (), PLAIN, dialect=dialect)
    found = read_response(200, CIMultiDict(), orjson.dumps(body), endpoint, **options)
    assert isinstance(found, Completion), found
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
async def test_the_cited_pages_are_the_sources_and_their_marks_leave_the_text(upstream, api, stream):
    whole, events, text, searches = APIS[api]
    upstream.reply = sends(whole, events)
    async with opened(upstream.url, dialect=_DIALECTS.get(api, api), stream=stream) as backend:
        (answer,) = (await ask(backend, ["What is new?"])).outcomes
    assert isinstance(answer, Completion)
    assert (answer.text, answer.sources) == (text, SOURCES)
    assert answer.usage.searches == searches
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1000, 100)


@pytest.mark.parametrize("api", APIS)
async def test_a_reply_of_a_batch_has_the_same_sources(upstream, api):
    whole, _, text, searches = APIS[api]

    async def exchange(request: Request, body: Any) -> Reply:
        assert await body(request)
        return Reply("row-1", 200, orjson.dumps(whole))

    async with opened(upstream.url, dialect=_DIALECTS.get(api, api)) as backend:
        (answer,) = (await ask(backend, ["What is new?"], Call(exchange=exchange))).outcomes
    assert isinstance(answer, Completion)
    assert (answer.text, answer.sources, answer.usage.searches) == (text, SOURCES, searches)
    assert not upstream.seen


def test_pages_that_were_only_read_are_no_sources_of_an_answer_with_citations():
    answer = read(xai(), "responses")
    assert answer.sources == [{"url": FIRST, "title": ""}, {"url": SECOND, "title": ""}]
    assert answer.text == f"Line 15 opens on Friday.[[1]]({FIRST}) The Colosseum is closed.[[2]]({SECOND})"


def test_the_stated_cost_is_that_of_the_reply():
    assert read(xai(), "responses").usage.stated_cost == 378_000_000
    assert read(perplexity(), "responses").usage.stated_cost == 36_000_000
    own = chat("openai/gpt-5", cost=0.0123, server_tool_use={"web_search_requests": 3})
    assert (read(own).usage.stated_cost, read(own).usage.searches) == (123_000_000, 3)
    assert not read(chat("m", cost=0.0123, is_byok=True)).usage.stated_cost, "the provider's bill is not included"


@pytest.mark.parametrize(("model", "searches"), [("gemini-2.5-flash", 1), ("gemini-3-flash", 3), ("", 3)])
def test_gemini_bills_each_query_from_the_third_series_on(model, searches):
    assert read(gemini(model), "gemini").usage.searches == searches


def test_a_model_that_always_searches_is_billed_without_a_citation():
    body = chat()
    body["choices"][0]["message"] = {"role": "assistant", "content": "Hi", "annotations": []}
    answer = read(body)
    assert (answer.usage.searches, answer.sources) == (1, None)
    assert read({**body, "model": "gpt-5-mini"}).usage.searches == 0


@pytest.mark.parametrize(
    ("lists", "sources"),
    [
        ({"citations": [FIRST, SECOND]}, [{"url": FIRST, "title": ""}, {"url": SECOND, "title": ""}]),
        ({"search_results": SOURCES, "citations": ["https://example.net"]}, SOURCES),
        ({"citations": [], "search_results": None}, None),
        ({"citations": [{"no": "page"}, 5, "", None]}, None),
    ],
)
def test_a_list_of_pages_counts_if_the_text_cites_none(lists, sources):
    body = chat("m")
    body["choices"][0]["message"] = {"role": "assistant", "content": "New[1][2]."}
    answer = read({**body, **lists})
    assert (answer.sources, answer.text) == (sources, "New[1][2].")


def test_numbers_in_json_are_never_changed():
    body = chat("m")
    body["choices"][0]["message"] = {"role": "assistant", "content": '{"lines": [2]}'}
    assert read({**body, "citations": [FIRST, FIRST]}).text == '{"lines": [2]}'


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A \ue200cite\ue202turn0search0\ue202turn0news12\ue201, b", "A, b"),
        ("A citeturn0search0turn1view2.", "A."),
        ("See (https://a.org/?utm_source=openai).", "See (https://a.org/)."),
        ("See https://a.org/?utm_source=openai&day=2 now", "See https://a.org/?day=2 now"),
        ("See https://a.org/?day=2&utm_source=openai&x=1", "See https://a.org/?day=2&x=1"),
        ("A【4:0†source】 and【12†L1-L5】.", "A and."),
        # no artefacts
        ("`citeturn0search0` is a mark", "`citeturn0search0` is a mark"),
        ("【重要】 A [1] † 1950", "【重要】 A [1] † 1950"),
        ("utm_source=openai is a parameter", "utm_source=openai is a parameter"),
        ("?utm_source=openai-blog", "?utm_source=openai-blog"),
        ("\ue200 alone, \ue0a0", "\ue200 alone, \ue0a0"),
    ],
)
def test_only_marks_leave_a_text(text, clean):
    assert without_marks(text) == clean


def test_a_text_without_a_search_keeps_everything():
    body = chat("m")
    text = "The mark citeturn0search0 stands for 【4:0†source】."
    body["choices"][0]["message"] = {"role": "assistant", "content": text}
    assert read(body).text == text


def test_a_raw_answer_keeps_its_text_because_positions_refer_to_it():
    answer = read(chat(), keep_raw=True)
    assert answer.text == chat()["choices"][0]["message"]["content"]
    assert answer.sources == SOURCES
    raw = read(anthropic(), "anthropic", keep_raw=True)
    assert raw.details is not None
    assert raw.details["message"]["annotations"][0]["url_citation"]["url"] == FIRST


def test_searches_of_a_request_to_responses_are_counted():
    endpoint = Endpoint("http://x/v1/responses", "x", {}, (), PLAIN)
    found = read_other_response(200, CIMultiDict(), orjson.dumps(responses()), endpoint)
    assert isinstance(found, Completion)
    assert found.usage.searches == 2
