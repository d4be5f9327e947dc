"""Requests and answers of vLLM: one vLLM request per item; all runs share one continuous batch fairly.

`RequestRunner` admits requests. `AnswerParser` reads answers of a generating model; `Embedder` answers `/v1/embeddings`
with a pooling model.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import itertools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from promptmill.backends.engines import growing_answer
from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.choice_tokens import ChoiceSearch
from promptmill.backends.engines.submission import refuse, warn_of_left_out
from promptmill.backends.engines.vllm.inputs import Prepared, VllmPrompts
from promptmill.backends.engines.vllm.startup import unfit_parser
from promptmill.core.errors import Code, PromptmillError, first_line, input_error
from promptmill.system.frames import Frame, packed_error

_LOOK_S = 0.2  # the time between two checks whether vLLM's processes are alive
_EMBEDDING_FIELDS = frozenset({"model", "input", "dimensions", "encoding_format"})
_OF_ANSWER = frozenset({"text", "reasoning", "probabilities", "logprobs", "finish_reason", "usage"})
_IGNORED_FIELDS = frozenset({"user"})


class EngineGoneError(Exception):
    """vLLM's own process ended."""


class _Run:
    """The waiting requests of one call, and its requests in vLLM."""

    def __init__(self) -> None:
        self.waiting: deque[Frame] = deque()
        self.tasks: set[asyncio.Task[None]] = set()


class RequestRunner:
    """Keeps vLLM's batch full. The next request comes from the call with the fewest requests in vLLM."""

    def __init__(self, engine: AsyncLLM, options: Mapping[str, Any], channel: Channel) -> None:
        """`options`: the `vllm` block of the configuration."""
        self._engine = engine
        self._channel = channel
        self._prompts = VllmPrompts(engine, options)
        self._embedder = Embedder(engine, options)
        self._reading = AnswerParser(engine, options.get("reasoning_parser"))
        rows: int = engine.vllm_config.scheduler_config.max_num_seqs
        self._capacity = rows + max(2, rows // 8)  # while all rows are in use, the next requests are prepared
        self._running = 0
        self._runs: dict[int, _Run] = {}
        self._names = itertools.count(1)

    async def run(self) -> None:
        """Report `loaded`, then answer requests. Raises `EngineGoneError` if vLLM's own process ends."""
        loop = asyncio.get_running_loop()
        processor = getattr(self._engine.renderer, "mm_processor", None)
        takes_images = processor is not None and "image" in processor.info.allowed_mm_limits

        def handle(message: Frame) -> None:
            loop.call_soon_threadsafe(self._handle, message)

        self._channel.route(handle)
        self._channel.send({"type": "loaded", "window": self._capacity + 32, "images": takes_images})
        while not self._engine.errored:  # noqa: ASYNC110 (vLLM offers no event)
            await asyncio.sleep(_LOOK_S)
        raise EngineGoneError("the process of vLLM's engine core ended")

    def _handle(self, message: Frame) -> None:
        if message["type"] == "submit":
            self._runs.setdefault(message["run"], _Run()).waiting.append(message)
        elif message["type"] == "cancel" and (run := self._runs.pop(message["run"], None)):
            for task in run.tasks:
                task.cancel()
        self._admit()

    def _admit(self) -> None:
        while self._running < self._capacity:
            ready = [(len(run.tasks), number) for number, run in self._runs.items() if run.waiting]
            if not ready:
                return
            run = self._runs[min(ready)[1]]
            message = run.waiting.popleft()
            task = asyncio.get_running_loop().create_task(self._answer(message))
            run.tasks.add(task)
            self._running += 1
            task.add_done_callback(functools.partial(self._forget, run, message["run"]))

    def _forget(self, run: _Run, number: int, task: asyncio.Task[None]) -> None:
        self._running -= 1
        run.tasks.discard(task)
        if not run.tasks and not run.waiting:
            self._runs.pop(number, None)
        self._admit()

    async def _answer(self, message: Frame) -> None:
        started = time.monotonic()
        warnings: list[str] = []
        reply: Frame
        try:
            reply = await self._answer_of(message, warnings)
        except EngineDeadError:
            return  # the process ends, and the server reports this to all requests
        except Exception as error:
            reply = {"error": packed_error(_item_error(error))}
        address = {"type": "outcome", "run": message["run"], "id": message["id"], "warnings": warnings}
        self._channel.send({**address, "latency_s": round(time.monotonic() - started, 4), **reply})

    async def _answer_of(self, message: Frame, warnings: list[str]) -> Frame:
        if "path" in message:  # `/embeddings`, see `BackendRecord.other_paths`
            return await self._embedder.answer(message["body"], warnings)
        if "generate" not in await self._engine.get_supported_tasks():
            raise PromptmillError(
                Code.UNSUPPORTED,
                "The model is loaded for embeddings: it answers only Batch lines for /v1/embeddings.",
                "Load a model that generates, or leave `backend_configs.vllm.runner` out.",
            )
        prepared = await self._prompts.prepare(message, warnings)
        if prepared.search is not None:
            return await self._searched(message, prepared, prepared.search)
        reader = self._reading.reader(prepared)
        name = str(next(self._names))
        live = message.get("live", False)
        if live:
            prepared.params.output_kind = RequestOutputKind.CUMULATIVE
        output, shown_at = None, 0.0
        async for output in self._engine.generate(
            prepared.prompt, prepared.params, name, lora_request=prepared.lora, **reader.limiter
        ):
            if live and (now := time.monotonic()) - shown_at >= growing_answer.PREVIEW_EVERY_S:
                shown = reader.so_far(output.outputs[0].text)
                if any(shown.values()):
                    self._channel.send({"type": "preview", "run": message["run"], "id": message["id"], **shown})
                shown_at = now
        return outcome(output, reader, prepared, self._prompts)

    async def _searched(self, message: Frame, prepared: Prepared, search: ChoiceSearch) -> Frame:
        """Return the outcome of a request with choices. For each place that the search examines, vLLM gets a request.

        vLLM's cache of prefixes keeps the computed prompt.
        """
        prompt: list[int] = prepared.prompt["prompt_token_ids"]
        row = growing_answer.GrowingAnswer.of(
            message,
            prepared.form,
            growing_answer.AnswerEnd(0),
            prompt=prompt,
            logprobs=None if prepared.top_logprobs is None else [],
        )
        written, most, found = self._prompts.tokens, prepared.top_logprobs or 0, dict[int, float]()

        def entry(token: int) -> growing_answer.TokenLogprob:
            likeliest = sorted(found.items(), key=lambda pair: -pair[1])[:most]
            return growing_answer.logprob_entry(written, token, found[token], likeliest)

        while search.asked is not None:
            tokens, permitted = search.asked
            asked, found = {**prepared.prompt, "prompt_token_ids": [*prompt, *tokens]}, {}
            for at in range(0, len(permitted), MAX_LOGPROB_TOKEN_IDS):
                some = permitted[at : at + MAX_LOGPROB_TOKEN_IDS]
                found |= await self._logprobs(asked, some, prepared.lora)
            row.searched(search, found, entry)
        return {name: value for name, value in row.outcome().items() if name in _OF_ANSWER}

    async def _logprobs(self, prompt: Any, tokens: Sequence[int], lora: Any) -> dict[int, float]:
        """Return the log probability of each of the `tokens` after a prompt."""
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=[*tokens],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = str(next(self._names))
        outputs = [one async for one in self._engine.generate(prompt, params, name, lora_request=lora)]
        answer = outputs[-1].outputs[0]
        if answer.finish_reason in {"abort", "error"}:
            raise PromptmillError(Code.INTERNAL, f"vLLM stopped the answer: {answer.finish_reason}.")
        return {token: answer.logprobs[0][token].logprob for token in tokens}


def _item_error(error: Exception) -> PromptmillError:
    if isinstance(error, PromptmillError):
        return error
    cause = error.__cause__ or error  # vLLM wraps unexpected exceptions
    reason = first_line(cause)
    if isinstance(error, VLLMClientError | ValueError):
        return input_error(f"vLLM refused the request: {reason}.")
    return PromptmillError(Code.INTERNAL, f"vLLM failed on this request: {type(cause).__name__}: {reason}.")


class MarkReader:
    """Splits an answer at its model's marks: `<think>…</think>` and similar marks, or the channels of gpt-oss."""

    limiter: Mapping[str, Any] = MappingProxyType({})
    """Arguments of `AsyncLLM.generate` that tell where reasoning ends and a constrained structure may begin."""

    def __init__(self, prepared: Prepared) -> None:
        self._form = prepared.form
        self.shown = self._form.texts.shown

    def split(self, text: str, tokens: Sequence[int]) -> tuple[str | None, str]:
        """Return `(reasoning, answer)`."""
        del tokens
        return self._form.texts.split(text, opened=self._form.opened)

    def so_far(self, text: str) -> Frame:
        """Return the preview of an unfinished answer with the text so far."""
        return self._form.preview(self.shown(text.rstrip(growing_answer.BROKEN)))


class ParserReader:
    """Reads one answer with the configured reasoning parser, as vLLM's server does."""

    def __init__(self, parser: Any, prepared: Prepared) -> None:
        """`parser`: a new parser for this request, because parsers have state."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        options = dict(prepared.template_options)
        self._parser = parser
        self._form = prepared.form
        self._request = parser.adjust_request(
            ChatCompletionRequest(messages=[{"role": "user", "content": ""}], chat_template_kwargs=options)
        )
        # the text keeps special tokens for the parser, because the marks of many families are special tokens
        prepared.params.skip_special_tokens &= self._request.skip_special_tokens
        prepared.params.spaces_between_special_tokens &= self._request.spaces_between_special_tokens
        self._prompt: list[int] = prepared.prompt["prompt_token_ids"]
        self._ended = bool(parser.is_reasoning_end(self._prompt))
        self.limiter: Mapping[str, Any] = {
            "reasoning_ended": self._ended,
            "reasoning_parser_kwargs": {"chat_template_kwargs": options},
        }
        self.shown = str

    def split(self, text: str, tokens: Sequence[int]) -> tuple[str | None, str]:
        """Return `(reasoning, answer)`."""
        marks = (self._parser.reasoning_parser.reasoning_start_str, self._parser.reasoning_parser.reasoning_end_str)
        if self._ended and all(marks) and not any(mark in text for mark in marks):
            return None, text  # thinking was switched off; many parsers would take the whole text for reasoning
        self._parser.set_prompt_token_ids(self._prompt)
        reasoning, answer, _ = self._parser.parse(text, self._request, model_output_token_ids=tokens)
        return (reasoning or "").strip() or None, (answer or "").lstrip()

    def so_far(self, text: str) -> Frame:
        """Return the preview of an unfinished answer; `{}` unless reasoning is inline: parsers need the whole text."""
        return self._form.preview(text.rstrip(growing_answer.BROKEN)) if self._form.inline else {}


Reader: TypeAlias = MarkReader | ParserReader


class AnswerParser:
    """Reads the answers of one model."""

    def __init__(self, engine: AsyncLLM, parser: str | None) -> None:
        """`parser`: the name of a vLLM reasoning parser; without a name, the marks of `answers.reasoning` are used.

        Raises `PromptmillError` (`invalid_config`) if the model's tokenizer lacks tokens that the parser needs.
        """
        self._tokenizer: Any = engine.renderer.tokenizer
        self._model = engine.model_config
        self._parser = self._load_parser(parser) if parser else None

    def _load_parser(self, name: str) -> Any:
        from vllm.parser.parser_manager import ParserManager

        try:
            return ParserManager.get_parser(
                reasoning_parser_name=name,
                is_harmony=self._model.hf_config.model_type == "gpt_oss",
                tokenizer=self._tokenizer,
            )
        except TypeError as error:
            raise unfit_parser(str(error.__cause__ or error)) from None

    def reader(self, prepared: Prepared) -> Reader:
        """Return the reader for a request's answer. Set `prepared.params` so that the reader gets special tokens."""
        if (self._parser is None or prepared.form.tools) and prepared.form.texts.keeps_marks:
            prepared.params.skip_special_tokens = False
        if self._parser is None:
            return MarkReader(prepared)
        options = dict(prepared.template_options)
        return ParserReader(
            self._parser(self._tokenizer, None, chat_template_kwargs=options, model_config=self._model), prepared
        )


def outcome(output: Any, reader: Reader, prepared: Prepared, prompts: VllmPrompts) -> Frame:
    """Return the fields of an `outcome` message. Raises `PromptmillError` (`internal`) if vLLM gave no answer."""
    answer = output.outputs[0]
    if answer.finish_reason in {"abort", "error"}:
        raise PromptmillError(
            Code.INTERNAL,
            f"vLLM stopped the answer: {answer.finish_reason}.",
            "The reason is in its log above; usually it could not compile a grammar.",
        )
    text, reason = reader.shown(answer.text), answer.finish_reason
    if (choices := prepared.form.choices) is not None:
        chosen = choices.completed(answer.text.rstrip(growing_answer.BROKEN))
        text, reason = (chosen, "stop") if chosen else (choices.opening + text, reason)
    return growing_answer.outcome_fields(
        prepared.form.parts(text, lambda text: reader.split(text, answer.token_ids)),
        reason=reason,
        ended=answer.finish_reason == "stop" and not isinstance(answer.stop_reason, str),  # not ended by a stop string
        logprobs=None if prepared.top_logprobs is None else _logprobs(answer, prompts.tokens, prepared.top_logprobs),
        prompt_tokens=len(output.prompt_token_ids or ()),
        tokens=len(answer.token_ids),
    )


def _logprobs(answer: Any, written: growing_answer.WrittenTokens, most: int) -> list[growing_answer.TokenLogprob]:
    entries = []
    for token, by_token in zip(answer.token_ids, answer.logprobs, strict=True):
        ranked = sorted(by_token.items(), key=lambda pair: pair[1].rank)
        likeliest = [(other, value.logprob) for other, value in ranked[:most]]
        entries.append(growing_answer.logprob_entry(written, token, by_token[token].logprob, likeliest))
    return entries


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
        """Return the outcome of a request. Add a line to `warnings` for each deviation from the request.

        Raises `PromptmillError` (`unsupported`, `invalid_input`, `context_length`), and vLLM's own errors.
        """
        if "embed" not in await self._engine.get_supported_tasks():
            raise PromptmillError(
                Code.UNSUPPORTED,
                f"{self._model} is loaded to generate text, not embeddings.",
                "Load a model for embeddings, or set `backend_configs.vllm.runner: pooling`.",
            )
        warn_of_left_out(sorted(set(body) - _EMBEDDING_FIELDS - _IGNORED_FIELDS), "vllm", warnings)
        if self._refuse:
            refuse(warnings)
        encoding = body.get("encoding_format") or "float"
        if encoding not in {"float", "base64"}:
            raise input_error("body.encoding_format should be float or base64.")
        dimensions = body.get("dimensions")
        if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
            raise input_error("body.dimensions should be a whole number from 1 on.")
        inputs = await self._render(_inputs(body.get("input")))
        vectors = await asyncio.gather(*(self._embedding(one, dimensions) for one in inputs))
        tokens = sum(len(one["prompt_token_ids"]) for one in inputs)
        data = [
            {"object": "embedding", "index": at, "embedding": _encode(vector, encoding)}
            for at, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        payload = {"object": "list", "data": data, "model": self._model, "usage": usage}
        answer = {"text": "", "finish_reason": "stop", "reasoning": None, "usage": (tokens, 0)}
        return {**answer, "details": {"payload": payload}}

    async def _render(self, prompts: list[Any]) -> Any:
        try:
            rendered = await self._engine.renderer.render_cmpl_async(prompts)
        except VLLMValidationError as error:
            if error.parameter not in {"input_tokens", "input_text"}:
                raise
            said = f"An input is too long: {error.value} tokens or more; the model takes {self._longest}."
            raise PromptmillError(Code.CONTEXT_LENGTH, said) from None
        if any(not one["prompt_token_ids"] for one in rendered):
            raise input_error("body.input holds an empty text, which has no embedding.")
        return rendered

    async def _embedding(self, prompt: Any, dimensions: int | None) -> Any:
        params = PoolingParams(task="embed", dimensions=dimensions)
        async for output in self._engine.encode(prompt, params, f"embedding-{next(self._names)}"):
            vector = output.outputs.data
        return vector


def _inputs(given: Any) -> list[Any]:
    """Return the prompts in an `input`: a text, a list of texts, tokens, or a list of lists of tokens."""
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
