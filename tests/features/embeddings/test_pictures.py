"""Vectors of pictures, in the form of each endpoint that makes them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from PIL import Image

from embedding import vector
from fakes import openai_config
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Conversation, ImagePart, Message, Request, TextPart
from promptmill.features.embeddings.pictures import api_of, request_for
from replies import choose, raw, status

APIS = {
    "doubao": "/v1/embeddings/multimodal",
    "jina": "/v1/embeddings",
    "voyage": "/v1/multimodalembeddings",
    "cohere": "/v1/embed",
}


def _urls(value: Any) -> list[str]:
    """Return the data URLs in a body."""
    if isinstance(value, str):
        return [value] if value.startswith("data:image/png;base64,") else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [url for each in inner for url in _urls(each)]


def _numbers(seen: Any) -> list[float]:
    (url,) = _urls(seen.json)
    return vector(str(len(base64.b64decode(url.partition(",")[2]))))


def _reply(api: str, numbers: list[float]) -> Any:
    usage = {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
    bodies: dict[str, Any] = {
        "doubao": {"data": {"object": "embedding", "embedding": numbers}, **usage},
        "jina": {"data": [{"index": 0, "embedding": numbers}], **usage},
        "voyage": {"data": [{"index": 0, "embedding": numbers}], **usage},
        "cohere": {"embeddings": {"float": [numbers]}, "meta": {"billed_units": {"images": 7}}},
    }
    return raw(json.dumps(bodies[api]).encode())


@pytest.fixture
def pictures(bench):
    """Three rows with pictures of other sizes, and the length of each file."""
    lengths = []
    for at in range(3):
        path = bench.path / f"{at}.png"
        Image.effect_noise((8 + 4 * at, 8), 50).save(path)
        lengths.append(path.stat().st_size)
    rows = [{"text": "", "picture": f"{at}.png"} for at in range(3)]
    bench.write(rows)
    return lengths


def _embed(api: str, *more: str) -> tuple[str, ...]:
    return "--embed", "{{text}}", "--image-column", "picture", "--set", f"sampling_params.picture_api={api}", *more


@pytest.mark.parametrize("api", APIS)
def test_each_row_gets_the_vector_of_its_picture(bench, upstream, pictures, api):
    def pick(seen: Any) -> Any:
        numbers = _numbers(seen)
        return status(400, "bad picture") if numbers == vector(str(pictures[1])) else _reply(api, numbers)

    upstream.other_posts = choose(pick)
    bench.fail(*_embed(api), code=1)
    rows = bench.answers()
    wanted = [vector(str(pictures[0])), None, vector(str(pictures[2]))]
    assert [row["embedding"] or None for row in rows] == [one and pytest.approx(one, rel=1e-6) for one in wanted]
    assert "bad picture" in rows[1]["error"]["message"]
    assert {seen.target for seen in upstream.seen} == {APIS[api]}
    assert rows[0]["usage"]["prompt_tokens"] == 7


def test_an_endpoint_that_is_not_known_to_make_vectors_of_pictures_gets_none(bench, upstream, pictures):
    assert len(pictures) == 3
    bench.fail("--embed", "{{text}}", "--image-column", "picture", code=1)
    problems = {row["error"]["message"] for row in bench.answers()}
    assert len(problems) == 1
    assert (
        "is not known to make vectors of pictures; nothing was sent. Doubao, Jina, Voyage and Cohere" in problems.pop()
    )
    assert not upstream.seen


@pytest.mark.thorough
def test_a_reply_with_several_vectors_is_no_vector_of_the_row(bench, upstream, pictures):
    del pictures
    data = [{"index": at, "embedding": vector(str(at))} for at in range(2)]
    upstream.other_posts = raw(json.dumps({"data": data}).encode())
    bench.fail(*_embed("voyage"), code=1)
    assert {row["error"]["code"] for row in bench.answers()} == {"bad_response"}


PICTURE = ImagePart("a.png")


@pytest.mark.parametrize(
    ("api", "content"),
    [
        (
            "doubao",
            {"input": [{"type": "text", "text": "words"}, {"type": "image_url", "image_url": {"url": PICTURE}}]},
        ),
        (
            "voyage",
            {
                "inputs": [
                    {"content": [{"type": "text", "text": "words"}, {"type": "image_base64", "image_base64": PICTURE}]}
                ]
            },
        ),
        (
            "cohere",
            {
                "inputs": [
                    {
                        "content": [
                            {"type": "text", "text": "words"},
                            {"type": "image_url", "image_url": {"url": PICTURE}},
                        ]
                    }
                ],
                "input_type": "search_document",
            },
        ),
    ],
)
def test_a_text_and_a_picture_have_one_vector(api, content):
    sent = _request(api, "words")
    assert sent.extra.items() >= content.items()


def test_jina_makes_a_vector_of_a_picture_or_of_a_text():
    with pytest.raises(PromptmillError, match="one picture or of one text"):
        _request("jina", "words")
    assert _request("jina", "").extra["input"] == [{"image": PICTURE}]


def _request(api: str, text: str, **block: Any) -> Request:
    config = openai_config("http://127.0.0.1:9/v1", **block)
    sampling = config.settings.sampling_params.model_copy(update={"embed": True, "picture_api": api})
    conversation = Conversation((Message("user", (TextPart(text), PICTURE)),))
    return request_for(Request(0, conversation, sampling), config, 256)


@pytest.mark.parametrize(
    ("block", "api"),
    [
        ({"base_url": [], "provider": "doubao"}, "doubao"),
        ({"base_url": [], "provider": "cohere"}, "cohere"),
        ({"base_url": "https://api.jina.ai/v1"}, "jina"),
        ({"base_url": "https://api.voyageai.com/v1"}, "voyage"),
        ({"base_url": "http://127.0.0.1:9/v1", "provider": "doubao"}, "doubao"),
        ({"base_url": [], "provider": "mistral"}, None),
        ({"base_url": "http://127.0.0.1:9/v1"}, None),
    ],
)
def test_the_api_for_pictures_follows_from_the_address(block, api):
    config = openai_config(**block)
    assert api_of(config, config.settings.sampling_params) == api
