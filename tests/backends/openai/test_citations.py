"""Sources of answers with a web search: of recorded replies of five APIs, over real connections."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from driving import ask, opened
from fakes import ListSource
from promptmill.backends.batches import Reply
from promptmill.backends.openai.citations import SEARCHING, without_marks
from promptmill.backends.openai.dialects.anthropic import assemble
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import PLAIN, profile_of
from promptmill.backends.openai.reply import ReplyRequest, read_other_response, read_response
from promptmill.backends.protocol import Call, Completion
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.steps.prices import _SEARCHES
from web_searches import (
    APIS,
    CLEAN,
    FIRST,
    SECOND,
    SOURCES,
    anthropic,
    anthropic_events,
    chat,
    gemini,
    perplexity,
    responses,
    sends,
    xai,
)

_DIALECTS = {"perplexity": "responses"}


def read(body, dialect="openai", provider="", **options) -> Completion:
    profile = profile_of(provider) if provider else PLAIN
    endpoint = Endpoint("http://x/v1/chat/completions", "x", {}, (), profile, dialect=dialect)
    body = body if isinstance(body, bytes) else orjson.dumps(body)
    found = read_response(200, CIMultiDict(), body, endpoint, ReplyRequest(**options))
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
    assert read({**body, "citations": [FIRST, FIRST]}, provider="perplexity").text == '{"lines": [2]}'


def says(text: str, **fields: Any) -> dict[str, Any]:
    """Return a chat completion with this text."""
    body = chat("m") | fields
    body["choices"][0]["message"] = {"role": "assistant", "content": text}
    return body


def test_a_server_that_names_documents_unasked_has_not_searched_and_its_text_stays():
    text = f"See {FIRST}?utm_source=openai [2]【4:0†source】."
    answer = read(says(text, citations=[FIRST, FIRST, SECOND]))
    assert (answer.usage.searches, answer.text) == (0, text)
    assert [source["url"] for source in answer.sources or ()] == [FIRST, SECOND]
    assert read(says(text, citations=["doc-7.pdf"])).sources is None
    assert read(says("A[1]", citations=[FIRST]), provider="perplexity").usage.searches == 1
    assert frozenset(_SEARCHES) == SEARCHING, "those whose searches have a price"


WEB = {"tools": [{"type": "web_search"}]}


@pytest.mark.parametrize(
    ("model", "extra", "searches"),
    [("m", {}, 0), ("m", WEB, 1), ("m:online", {}, 1), ("m", {"models": ["sonar"]}, 1)],
)
@pytest.mark.parametrize("by_batch", [False, True])
async def test_a_gateway_has_searched_if_the_request_allowed_it(upstream, model, extra, searches, by_batch):
    whole = says("New[1][2], closed[3].", citations=[FIRST, FIRST, SECOND])
    upstream.reply = sends(whole)

    async def exchange(request: Request, body: Any) -> Reply:
        assert await body(request)
        return Reply("row-1", 200, orjson.dumps(whole))

    async with opened(upstream.url, model_name=model) as backend:
        call = Call(exchange=exchange) if by_batch else None
        (answer,) = (await ask(backend, ["a"], call, ListSource(["a"], extra=extra))).outcomes
    assert isinstance(answer, Completion)
    assert [source["url"] for source in answer.sources] == [FIRST, SECOND]
    assert answer.usage.searches == searches
    assert answer.text == ("New[1][1], closed[2]." if searches else "New[1][2], closed[3].")


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,a",
        "doc-7.pdf",
        "file:///a",
        "http://",
        "http://a b",
        "http://" + "a" * 2000,
    ],
)
def test_only_addresses_of_the_web_are_sources(url):
    assert read(says("A", citations=[url, {"url": url, "title": "A"}, FIRST])).sources == [{"url": FIRST, "title": ""}]


@pytest.mark.thorough
def test_the_number_and_the_length_of_sources_are_bounded():
    pages = [{"url": f"{FIRST}/{number}", "title": "a" * 9999} for number in range(3000)]
    sources = read(says("A", search_results=pages)).sources
    assert sources is not None
    assert (len(sources), len(sources[0]["title"])) == (1000, 2000)


@pytest.mark.parametrize(
    ("text", "has_form", "expected"),
    [
        ("A[1][2], b[3]", False, "A[1][1], b[2]"),
        ("A[3] `x[3]`\n```\nx[3]\n```\nb[3]", False, "A[2] `x[3]`\n```\nx[3]\n```\nb[2]"),
        ("A[3]\n~~~\nx[3]", False, "A[2]\n~~~\nx[3]"),
        ('{"lines": [3]', True, '{"lines": [3]'),
        ("see [3]", True, "see [3]"),
    ],
)
def test_only_numbers_of_prose_are_changed(text, has_form, expected):
    body = says(text, citations=[FIRST, FIRST, SECOND])
    assert read(body, provider="perplexity", has_form=has_form).text == expected


_NO_PAGES = [None, "", "report.pdf", "https://a b", "javascript:a", {"title": "A"}, {"url": None, "id": 1}]


@pytest.mark.parametrize("page", _NO_PAGES)
@pytest.mark.parametrize("field", ["citations", "search_results"])
def test_a_page_without_an_address_takes_no_number_of_another_page(page, field):
    answer = read(says("A [1]. B [2]. C [1, 2]. D [3].", **{field: [page, FIRST, SECOND]}), provider="perplexity")
    assert [source["url"] for source in answer.sources or ()] == [FIRST, SECOND]
    assert answer.text == "A. B [1]. C [1]. D [2]."


@pytest.mark.parametrize(
    ("ids", "text", "expected"),
    [
        ((3, 7), "A [3]. B [7].", "A [1]. B [2]."),
        (("3", "7"), "A [3]. B [7].", "A [1]. B [2]."),
        (("ref_3", "[7]"), "A [ref_3]. B [ref_7].", "A [ref_1]. B [ref_2]."),
        ((0, 1), "A [0]. B [1].", "A [1]. B [2]."),
        ((3, 7), "A [3]. B [1]. C [9].", "A [1]. B. C [9]."),
        # ids to which the text does not refer: numbers are places
        ((101, 102), "A [1]. B [2].", "A [1]. B [2]."),
        ((0, 0), "A [1]. B [2].", "A [1]. B [2]."),
        ((None, 5), "A [1]. B [2].", "A [1]. B [2]."),
        (("x1", "x2"), "A [1]. B [2]. C [0]. D [3].", "A [1]. B [2]. C [0]. D [3]."),
        ((True, False), "A [1]. B [2].", "A [1]. B [2]."),
    ],
)
def test_the_ids_of_pages_are_their_numbers_if_the_text_has_them(ids, text, expected):
    pages = [{"url": url, "id": number} for url, number in zip((FIRST, SECOND), ids, strict=True)]
    answer = read(says(text, search_results=pages), provider="perplexity")
    assert (answer.text, [source["url"] for source in answer.sources or ()]) == (expected, [FIRST, SECOND])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A[1,2] b [1, 3]; c[2;3]", "A[1] b [1, 2]; c[1, 2]"),
        ("A [1-3], b [1\u20132], c [1-50]", "A [1, 2], b [1], c [1-50]"),
        ("A【3】 b [ref_3]", "A【2】 b [ref_2]"),
        ("A [3](https://a.org) [[3]](https://a.org)", "A [3](https://a.org) [[3]](https://a.org)"),
    ],
)
def test_numbers_in_lists_and_ranges_are_changed(text, expected):
    assert read(says(text, citations=[FIRST, FIRST, SECOND]), provider="perplexity").text == expected


@pytest.mark.thorough
def test_many_numbers_are_changed_in_linear_time():
    text = "[1-9, 1-9, 1-9, 1-9, 1-9]" * 20_000
    began = time.process_time()
    assert read(says(text, citations=[FIRST, FIRST, SECOND]), provider="perplexity").text.startswith("[1, 2, 4, 5")
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("sampling", [{"response_format": {"type": "json_object"}}, {"choices": ["[1]", "[3]"]}])
def test_a_request_for_json_or_a_choice_has_a_form(sampling):
    prompt = conversation_from_prompt("a prompt", "a prompt")
    assert Request(0, prompt, Sampling.model_validate(sampling)).has_form
    assert not Request(0, prompt, Sampling()).has_form


@pytest.mark.parametrize("by_batch", [False, True])
async def test_numbers_stay_in_the_answer_to_a_request_with_a_form(upstream, by_batch):
    whole = says("See [3]", citations=[FIRST, FIRST, SECOND])
    upstream.reply = sends(whole)

    async def exchange(request: Request, body: Any) -> Reply:
        assert await body(request)
        return Reply("row-1", 200, orjson.dumps(whole))

    forms = Sampling(), Sampling(response_format={"type": "json_object"})
    async with opened(upstream.url, provider="perplexity", dialect="openai") as backend:
        sources = [ListSource(["a"], form) for form in forms]
        calls = [Call(exchange=exchange) if by_batch else None for _ in forms]
        plain, formed = [(await ask(backend, ["a"], *of)).outcomes[0] for of in zip(calls, sources, strict=True)]
    assert (plain.text, formed.text) == ("See [2]", "See [3]")


def _grounded(**metadata: Any) -> dict[str, Any]:
    body = gemini()
    body["candidates"][0]["groundingMetadata"] |= metadata
    return body


def _annotated(annotations: Any) -> dict[str, Any]:
    body = responses()
    body["output"][-1]["content"][0]["annotations"] = annotations
    return body


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("gemini", _grounded(groundingChunks=[None, 5, {"web": 3}])),
        ("gemini", _grounded(groundingChunks={"a": 1}, groundingSupports=5)),
        ("gemini", _grounded(groundingSupports=[None, {"groundingChunkIndices": ["0", None, -1, 99, 1.5, {}]}])),
        ("gemini", _grounded(groundingSupports=[{"segment": {"startIndex": "3"}}, {"segment": 5}, {"segment": {}}])),
        ("gemini", _grounded(webSearchQueries=5)),
        ("gemini", gemini() | {"candidates": [gemini()["candidates"][0] | {"groundingMetadata": [3]}]}),
        ("responses", _annotated([None, 5, {"type": "url_citation"}, {"type": "url_citation", "url": 5}])),
        ("responses", _annotated(5)),
        ("anthropic", anthropic() | {"usage": anthropic()["usage"] | {"server_tool_use": 3}}),
        ("anthropic", anthropic() | {"usage": anthropic()["usage"] | {"server_tool_use": {"web_search_requests": []}}}),
        ("anthropic", anthropic() | {"content": [{"type": "text", "text": CLEAN, "citations": [None, 3, {}]}]}),
        ("openai", says(CLEAN, citations={"a": 1}, search_results=[None, {"id": [], "url": []}])),
    ],
)
def test_an_odd_citation_never_costs_the_answer(dialect, body):
    assert read(body, dialect).text.startswith("Line 15 opens on Friday.")


@pytest.mark.parametrize("start", [[], None, 5])
def test_many_citations_in_a_stream_are_read_in_linear_time(start):
    count = 20_000
    one = {"type": "web_search_result_location", "url": FIRST, "title": "Line 15"}
    begun, *_, last, end = anthropic_events(anthropic())
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": one}}
    block = {"type": "text", "text": "A", "citations": start}
    events = [begun, {"type": "content_block_start", "index": 0, "content_block": block}, *[delta] * count, last, end]
    began = time.process_time()
    (content,) = assemble(iter(events))["content"]
    assert len(content["citations"]) == count
    assert time.process_time() - began < 2.0


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
    assert without_marks(text, {"https://a.org/", "https://a.org/?day=2"}) == clean


def test_only_replies_of_openai_have_marks_and_only_cited_addresses_a_parameter():
    ours = "our link https://b.org/?utm_source=openai and citeturn0search0【4:0†source】"
    cited = chat("gpt-4o-search-preview")
    cited["choices"][0]["message"]["content"] = f"{FIRST}?utm_source=openai, {ours}"
    assert read(cited).text == f"{FIRST}, our link https://b.org/?utm_source=openai and"
    assert read(says(ours) | {"model": "gpt-4o-search-preview"}, provider="openai").text == ours, "it cites nothing"
    claude = anthropic()
    claude["content"][-1]["text"] = ours
    assert read(claude, "anthropic").text.endswith(ours)
    results = [{"url": FIRST, "title": ""}]
    assert read(says(ours, search_results=results), provider="perplexity").text == ours


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
