"""Vectors of pictures at `/v1/embeddings`."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from typing import Any

import pytest
from openai import APIStatusError
from PIL import Image

from embedding import vector
from openai_clients import client_of
from promptmill.backends.protocol import Completion
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.embedding_inputs import joined
from replies import choose, raw, status
from served import TOKEN, ServedHere
from server_process import written

pytestmark = pytest.mark.features("embeddings")


def picture(width: int) -> str:
    """Return a PNG in base64."""
    file = io.BytesIO()
    Image.new("RGB", (width, 8), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


RED = picture(8)
URL = f"data:image/png;base64,{RED}"


@pytest.fixture(scope="module")
def pictured_server(lasting, tmp_path_factory):
    """A server whose models have the picture API of their names."""
    folder = tmp_path_factory.mktemp("pictured")
    block = {"base_url": lasting.url, "model_name": "m", "base_delay": 0.01}
    names = ("jina", "voyage", "cohere", "doubao")
    models: dict[str, Any] = {name: {"openai": block, "sampling_params": {"picture_api": name}} for name in names}
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(folder / "state")}
    top = {"models": models | {"plain": {"openai": block}}}
    with ServedHere(written(folder, lasting.url, top), environ=environ) as served:
        yield served


@pytest.fixture
def pictured(pictured_server, upstream):
    """A client of the server; the vector of an input tells what it is."""

    def reply(seen: Any) -> Any:
        body = json.dumps(seen.json)
        if "refused" in body:
            return status(400, "bad picture")
        numbers = vector("picture" if RED in body else "text")
        usage = {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
        if seen.target.endswith("/embed"):
            return raw(json.dumps({"embeddings": {"float": [numbers]}, "meta": {}}).encode())
        one = {"index": 0, "embedding": numbers}
        return raw(json.dumps({"data": one if "multimodal" in seen.target else [one], **usage}).encode())

    upstream.other_posts = choose(reply)
    with contextlib.closing(client_of(pictured_server)) as client:
        yield client


def asked(client: Any, model: str, inputs: list[Any], **more: Any) -> Any:
    return client.post("/embeddings", cast_to=dict[str, Any], body={"model": model, "input": inputs, **more})


@pytest.mark.parametrize("model", ["jina", "voyage", "cohere", "doubao"])
def test_pictures_of_each_form_get_a_vector_at_each_api(pictured, model):
    parts = [{"type": "image_url", "image_url": {"url": URL}}]
    inputs = [{"image": RED}, {"image": URL}, {"text": "a poppy"}, "a rose", {"content": parts}]
    inputs.append({"content": [{"type": "image_base64", "image_base64": URL}]})
    found = asked(pictured, model, inputs)
    kinds = ["picture", "picture", "text", "text", "picture", "picture"]
    assert [one["index"] for one in found["data"]] == [*range(6)]
    for one, kind in zip(found["data"], kinds, strict=True):
        assert one["embedding"] == pytest.approx(vector(kind), rel=1e-6)
    assert found["model"] == model
    assert found["usage"]["prompt_tokens"] == (0 if model == "cohere" else 42)


def test_a_text_and_a_picture_have_one_vector(pictured, upstream):
    parts = [{"type": "text", "text": "a poppy"}, {"type": "image_url", "image_url": URL}]
    assert len(asked(pictured, "cohere", [{"content": parts}], dimensions=8)["data"]) == 1
    (content,) = (one["content"] for one in upstream.seen[-1].json["inputs"])
    assert [part["type"] for part in content] == ["text", "image_url"]
    assert upstream.seen[-1].json["output_dimension"] == 8


@pytest.mark.parametrize(
    ("model", "one", "problem"),
    [
        ("plain", {"image": URL}, "is not known to make vectors of pictures; nothing was sent"),
        ("jina", {"video": "https://x/y.mp4"}, "is an object with the keys 'video'; send a text, "),
        ("jina", {"type": "image_url", "image_url": {"url": URL}}, "; send a text, "),
        ("jina", {"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": URL}]}, "one picture"),
        ("jina", {"content": []}, "content"),
        ("jina", {"image": "/etc/passwd"}, "/etc/passwd"),
    ],
)
def test_an_input_of_another_form_is_refused_before_anything_is_sent(pictured, upstream, model, one, problem):
    with pytest.raises(APIStatusError, match=problem) as raised:
        asked(pictured, model, [one])
    assert raised.value.status_code == 400
    assert not upstream.seen


def test_vectors_of_different_lengths_are_an_error():
    with pytest.raises(ApiError, match="different lengths") as refused:
        joined([Completion("", "stop", vectors=(bytes(4 * length),)) for length in (2, 3)])
    assert refused.value.status == 502


def test_a_refused_picture_is_the_error_of_the_request(pictured):
    with pytest.raises(APIStatusError, match="bad picture"):
        asked(pictured, "voyage", [{"image": URL}, {"text": "refused"}])
