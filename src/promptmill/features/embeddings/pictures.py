"""Vectors of pictures: one request for each row, in the form that the endpoint accepts.

| endpoint | path | pictures and texts |
|---|---|---|
| Doubao | `/embeddings/multimodal` | `input`: parts of a chat, which together get one vector |
| Jina | `/embeddings` | `input`: an object for each vector, with a picture or a text |
| Voyage | `/multimodalembeddings` | `inputs`: a list of parts for each vector |
| Cohere | `/v2/embed` | `inputs`: a list of parts of a chat for each vector |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from promptmill.backends.protocol import Completion, Outcome, Usage
from promptmill.backends.vectors import in_payload
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.request import EMBEDDINGS, Conversation, ImagePart, Message, Request, Sampling, TextPart
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.embeddings.parameters import Embedded, PictureApi
from promptmill.images.load import is_web

_HOSTS: Mapping[str, PictureApi] = {
    "ark.cn-beijing.volces.com": "doubao",
    "api.jina.ai": "jina",
    "api.voyageai.com": "voyage",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
}
_PROVIDERS: Mapping[str, PictureApi] = {"doubao": "doubao", "cohere": "cohere"}
_PATHS: Mapping[PictureApi, str] = {
    "doubao": "/embeddings/multimodal",
    "jina": EMBEDDINGS,
    "voyage": "/multimodalembeddings",
    "cohere": "/embed",
}


def api_of(config: ModelConfig, sampling: Sampling) -> PictureApi | None:
    """Return the form of requests for vectors of pictures; None if the endpoint is not known to make such vectors."""
    assert isinstance(sampling, Embedded)
    if not config.record.needs_endpoint:
        return None
    stated: PictureApi | None = sampling.picture_api
    if stated is not None:
        return stated
    block = config.settings.backend_configs.openai
    host = urlsplit(next(iter(block.base_url), "")).hostname or ""
    return _HOSTS.get(host) or _PROVIDERS.get(block.provider or "")


def request_for(request: Request, config: ModelConfig, dimensions: int | None) -> Request:
    """Return the request for the vector of a row with pictures. Its body has `ImagePart`s, which become URLs.

    Raises `PromptmillError` (`unsupported`, `invalid_input`).
    """
    if (api := api_of(config, request.sampling)) is None:
        name = config.settings.backend_configs.openai.provider or config.model or config.backend
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"{name} is not known to make vectors of pictures; nothing was sent.",
            "Doubao, Jina, Voyage and Cohere do. For a gateway to one of them, set `picture_api`.",
        )
    parts = _parts(request.conversation)
    body = {**request.extra, **_body(api, parts, fetches=config.settings.fetch_images)}
    if dimensions is not None:
        body["dimensions" if api in {"doubao", "jina"} else "output_dimension"] = dimensions
    pictures = tuple(part for part in parts if isinstance(part, ImagePart))
    return request.changed(
        conversation=Conversation((Message("user", pictures),)),
        sampling=Sampling(max_tokens=1),  # for `max_cost`, which needs a limit; it is not sent
        shared=None,
        required=frozenset[str](),
        extra=body,
        path=_PATHS[api],
    )


def _parts(conversation: Conversation) -> list[TextPart | ImagePart]:
    """Return the pictures and the texts of a row. Raises `PromptmillError` (`invalid_input`)."""
    content = conversation.messages[-1].content
    parts: list[TextPart | ImagePart] = []
    for part in content if isinstance(content, tuple) else ():
        if not isinstance(part, TextPart | ImagePart):
            raise input_error("A vector is of texts and pictures: this row has a PDF or a recording.")
        if isinstance(part, ImagePart) or part.text.strip():
            parts.append(part)
    return parts


def _body(api: PictureApi, parts: Sequence[TextPart | ImagePart], *, fetches: bool) -> JsonDict:
    """Return the body without the model. `fetches`: web pictures are fetched first, so none is sent as a web URL."""
    chat = [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image_url", "image_url": {"url": part}}
        for part in parts
    ]
    match api:
        case "doubao":
            return {"input": chat, "encoding_format": "float"}
        case "cohere":
            return {"inputs": [{"content": chat}], "input_type": "search_document", "embedding_types": ["float"]}
        case "voyage":
            kinds = ["image_url" if not fetches and is_web(_source(part)) else "image_base64" for part in parts]
            content = [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": kind, kind: part}
                for part, kind in zip(parts, kinds, strict=True)
            ]
            return {"inputs": [{"content": content}]}
    if len(parts) != 1:
        raise input_error("Jina makes a vector of one picture or of one text: this row has several parts.")
    return {"input": [{"image": part} if isinstance(part, ImagePart) else {"text": part.text} for part in parts]}


def _source(part: TextPart | ImagePart) -> str:
    return part.source if isinstance(part, ImagePart) else ""


def with_vector(outcome: Outcome) -> Outcome:
    """Return a reply from a path other than `/embeddings` with its vector in place of the payload."""
    payload: JsonObject = (outcome.details or {}).get("payload") or {}
    if not isinstance(outcome, Completion) or outcome.vectors or not payload:
        return outcome
    data = payload.get("data")
    match payload.get("embeddings"):
        case {"float": [*vectors]}:
            data = [{"embedding": vector} for vector in vectors]
    if isinstance(data, dict):  # Doubao
        data = [data]
    if isinstance(data, list) and len(data) != 1:  # a row gets exactly one vector
        data = []
    usage = outcome.usage
    match payload.get("meta"):
        case {"billed_units": {**units}} if not usage.prompt_tokens:
            counts = [units.get(name) for name in ("input_tokens", "image_tokens", "images")]
            usage = Usage(sum(int(count) for count in counts if isinstance(count, int | float)))
    return replace(outcome, vectors=in_payload({"data": data}, 1) or (b"",), details=None, usage=usage)
