"""Embeddings of a pooling model: a body of `/v1/embeddings` in, a response of it out."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.v1.engine.async_llm import AsyncLLM

from promptmill.backends.engines.request_options import refuse, warn_of_left_out
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.system.frames import Frame

_KNOWN = frozenset({"model", "input", "dimensions", "encoding_format"})
_OF_NO_EFFECT = frozenset({"user"})


class Embedder:
    """Answers requests for embeddings if the loaded model supports them."""

    def __init__(self, engine: AsyncLLM, options: Mapping[str, Any]) -> None:
        """`options` are the `vllm` block of the configuration."""
        self._engine = engine
        self._refuse = options["unsupported"] == "error"
        self._model = Path(options["model_name_or_path"]).name
        self._longest: int = engine.model_config.max_model_len
        self._names = itertools.count(1)

    async def answer(self, body: Mapping[str, Any], warnings: list[str]) -> Frame:
        """Return the outcome of a request; `warnings` gets a line for each deviation from the request.

        Raises `PromptmillError` (`unsupported`, `invalid_input`, `context_length`), and vLLM's own errors.
        """
        if "embed" not in await self._engine.get_supported_tasks():
            raise PromptmillError(
                Code.UNSUPPORTED,
                f"{self._model} is loaded to generate text, not embeddings.",
                "Load a model for embeddings, or set `backend_configs.vllm.runner: pooling`.",
            )
        warn_of_left_out(sorted(set(body) - _KNOWN - _OF_NO_EFFECT), "vllm", warnings)
        if self._refuse:
            refuse(warnings)
        encoding = body.get("encoding_format") or "float"
        if encoding not in {"float", "base64"}:
            raise input_error("body.encoding_format should be float or base64.")
        dimensions = body.get("dimensions")
        if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
            raise input_error("body.dimensions should be a whole number from 1 on.")
        inputs = await self._rendered(_inputs(body.get("input")))
        found = await asyncio.gather(*(self._embedding(one, dimensions) for one in inputs))
        tokens = sum(len(one["prompt_token_ids"]) for one in inputs)
        data = [
            {"object": "embedding", "index": at, "embedding": _encode(vector, encoding)}
            for at, vector in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        payload = {"object": "list", "data": data, "model": self._model, "usage": usage}
        answer = {"text": "", "finish_reason": "stop", "reasoning": None, "usage": (tokens, 0)}
        return {**answer, "details": {"payload": payload}}

    async def _rendered(self, prompts: list[Any]) -> Any:
        try:
            found = await self._engine.renderer.render_cmpl_async(prompts)
        except VLLMValidationError as error:
            if error.parameter not in {"input_tokens", "input_text"}:
                raise
            said = f"An input is too long: {error.value} tokens or more; the model takes {self._longest}."
            raise PromptmillError(Code.CONTEXT_LENGTH, said) from None
        if any(not one["prompt_token_ids"] for one in found):
            raise input_error("body.input holds an empty text, which has no embedding.")
        return found

    async def _embedding(self, prompt: Any, dimensions: int | None) -> Any:
        params = PoolingParams(task="embed", dimensions=dimensions)
        async for output in self._engine.encode(prompt, params, f"embedding-{next(self._names)}"):
            vector = output.outputs.data
        return vector


def _inputs(given: Any) -> list[Any]:
    """Return the prompts of an `input`: a text, a list of texts, tokens, or a list of lists of them."""
    several = given if isinstance(given, list) and given and not _are_tokens(given) else [given]
    prompts: list[Any] = []
    for one in several:
        if isinstance(one, str):
            prompts.append({"prompt": one})
        elif _are_tokens(one):
            prompts.append({"prompt_token_ids": one})
        else:
            raise input_error("body.input should be a text, a list of texts, or a list of tokens or of lists of them.")
    return prompts


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def _encode(vector: Any, encoding: str) -> list[float] | str:
    """Return a vector as numbers, or as base64 of its 32-bit floats, little-endian."""
    values = vector.float().cpu()
    if encoding == "float":
        numbers: list[float] = values.tolist()
        return numbers
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()
