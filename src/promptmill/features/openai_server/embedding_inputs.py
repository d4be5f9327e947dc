"""Inputs of `/v1/embeddings` with pictures: each input has a vector, and is a request of its own.

| clients | an input |
|---|---|
| all | a text |
| Jina's | `{"image": "https://…"}`, as a URL or in base64, or `{"text": "…"}` |
| OpenRouter's, Voyage's and Cohere's | `{"content": […]}`, with parts of a chat: texts and pictures |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptmill.backends.protocol import Completion, Outcome, Totals
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import features
from promptmill.core.request import Request, conversation_from_messages
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.bodies import EMBEDDINGS, request_of
from promptmill.images.load import is_bare_base64

_EMBEDDINGS = "embeddings"
_MOST = 256  # inputs with pictures, as many as texts in a request of ours: each is a request
_FORMS = 'a text, {"image": "https://…"} or {"content": [parts of a chat]}'


def has_pictures(body: JsonObject) -> bool:
    """Return whether an input is an object, which may have a picture. A list of objects without pictures has none."""
    inputs = body.get("input")
    return isinstance(inputs, list) and any(isinstance(one, dict) for one in inputs)


def requests_of(body: JsonObject, config: ModelConfig) -> list[Request]:
    """Return a request for each input of a body with pictures. Raises `ApiError` for an input of another form, and for
    an endpoint that is not known to make vectors of pictures."""
    for name in request_of(EMBEDDINGS, {**body, "input": [""]}).sampling.given():  # checks the other fields
        raise ApiError(400, f"`{name}` is for texts, and `input` holds objects.", name, "unsupported_value")
    if _EMBEDDINGS not in features():
        raise ApiError(400, "`input` holds objects; this server makes vectors of texts.", "input", "unsupported_value")
    if len(body["input"]) > _MOST:
        raise ApiError(400, f"`input` holds objects; send at most {_MOST} of them.", "input", "unsupported_value")
    from promptmill.features.embeddings.pictures import request_for

    sampling, extra = config.settings.sampling_params, config.settings.extra_params
    dimensions = body.get("dimensions")
    requests = []
    for at, one in enumerate(body["input"]):
        content = _content(one, f"input[{at}]")
        try:
            conversation = conversation_from_messages([{"role": "user", "content": content}], f"input[{at}]")
            asked = Request(at, conversation, sampling, {name: extra[name] for name in extra if name != "model"})
            requests.append(request_for(asked, config, dimensions if type(dimensions) is int else None))
        except PromptmillError as error:
            raise ApiError(400, str(error), "input", "unsupported_value") from None
    return requests


def _content(one: Any, where: str) -> list[JsonDict]:
    """Return an input as the content of a message. Raises `ApiError`."""
    match one:
        case str() | {"text": str()} if isinstance(one, str) or len(one) == 1:
            return [{"type": "text", "text": one if isinstance(one, str) else one["text"]}]
        case {"image": str(image) | {"url": str(image)}, **rest} if not rest:
            return [_picture(image)]
        case {"content": [*parts], **rest} if not rest:
            return [_part(part) for part in parts]
    raise ApiError(400, f"`{where}` is {shape(one)}; send {_FORMS}.", "input", "unsupported_value")


def _part(part: Any) -> Any:
    """Return a part of a chat: Voyage's pictures have other names."""
    match part:
        case {"type": "image_base64" | "image_url" as kind} if isinstance(part.get(kind), str):
            return _picture(part[kind])
    return part


def _picture(image: str) -> JsonDict:
    url = f"data:image/png;base64,{image}" if is_bare_base64(image) else image  # the type is read from the bytes
    return {"type": "image_url", "image_url": {"url": url}}


def joined(outcomes: Sequence[Outcome]) -> Completion:
    """Return the vectors of all requests as one answer, with the sum of their usages.

    Raises the first failure, and an error for vectors of different lengths.
    """
    from promptmill.features.embeddings.pictures import with_vector

    found = [with_vector(outcome) for outcome in outcomes]
    for outcome in found:
        if not isinstance(outcome, Completion):
            raise outcome.error
    vectors = tuple(vector for outcome in found if isinstance(outcome, Completion) for vector in outcome.vectors)
    if len({*map(len, vectors)}) > 1:
        raise ApiError(502, "The vectors that the endpoint returned have different lengths.", None, "bad_response")
    answer: Completion = Totals.of(found).on(Completion("", "stop", vectors=vectors))
    return answer
