"""From what vLLM generated to an answer, its reasoning apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from vllm.v1.engine.async_llm import AsyncLLM

from promptmill.answers.reasoning import answer_so_far
from promptmill.backends.engines import token_logprobs
from promptmill.backends.engines.growing_answer import BROKEN, finished, parted
from promptmill.backends.engines.texts import ReasoningMarkers
from promptmill.backends.engines.vllm.arguments import unfit_parser
from promptmill.backends.engines.vllm.prompt import Prepared
from promptmill.core.errors import Code, PromptmillError
from promptmill.system.frames import Frame


class MarkReader:
    """Reads an answer by the marks of `reasoning`: `<think>…</think>` and the like, or the channels of gpt-oss."""

    limiter: Mapping[str, Any] = MappingProxyType({})
    """What `AsyncLLM.generate` is told of where reasoning ends, behind which a wanted structure begins."""

    def __init__(self, markers: ReasoningMarkers, prepared: Prepared) -> None:
        self._markers = markers
        self._opened = prepared.thinks
        self._inline = prepared.inline
        if markers.are_special:
            prepared.params.skip_special_tokens = False

    def shown(self, text: str) -> str:
        """Return `text` without special tokens that mean nothing to its reader."""
        if self._markers.are_special:
            for name in self._markers.hidden:
                text = text.replace(name, "")
        return text

    def split(self, text: str, tokens: Sequence[int]) -> tuple[str | None, str]:
        """Return `(reasoning, answer)`."""
        del tokens
        return self._markers.split(text, opened=self._opened)

    def so_far(self, text: str) -> str:
        """Return what can be shown of an answer of which `text` has come."""
        text = self.shown(text.rstrip(BROKEN))
        return text if self._inline else answer_so_far(self.split(text, ())[1])


class ParserReader:
    """Reads one answer with the configured reasoning parser, as vLLM's own server does."""

    def __init__(self, parser: Any, prepared: Prepared) -> None:
        """`parser` is made for this request alone: it keeps a state."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        options = dict(prepared.template_options)
        self._parser = parser
        self._inline = prepared.inline
        self._request = parser.adjust_request(
            ChatCompletionRequest(messages=[{"role": "user", "content": ""}], chat_template_kwargs=options)
        )
        # the marks of many families are special tokens, which vLLM would strip before the parser sees them
        prepared.params.skip_special_tokens &= self._request.skip_special_tokens
        prepared.params.spaces_between_special_tokens &= self._request.spaces_between_special_tokens
        self._prompt: list[int] = prepared.prompt["prompt_token_ids"]
        self._ended = bool(parser.is_reasoning_end(self._prompt))
        self.limiter: Mapping[str, Any] = {
            "reasoning_ended": self._ended,
            "reasoning_parser_kwargs": {"chat_template_kwargs": options},
        }

    def shown(self, text: str) -> str:
        """Return `text`."""
        return text

    def split(self, text: str, tokens: Sequence[int]) -> tuple[str | None, str]:
        """Return `(reasoning, answer)`."""
        marks = (self._parser.reasoning_parser.reasoning_start_str, self._parser.reasoning_parser.reasoning_end_str)
        if self._ended and all(marks) and not any(mark in text for mark in marks):
            return None, text  # of a model that was told not to think; many parsers would take it all for reasoning
        self._parser.set_prompt_token_ids(self._prompt)
        reasoning, answer, _ = self._parser.parse(text, self._request, model_output_token_ids=tokens)
        return (reasoning or "").strip() or None, (answer or "").lstrip()

    def so_far(self, text: str) -> str:
        """Return what can be shown of an answer of which `text` has come: a parser is sure at the end alone."""
        return text.rstrip(BROKEN) if self._inline else ""


Reader: TypeAlias = MarkReader | ParserReader


class AnswerParser:
    """Reads the answers of one model."""

    def __init__(self, engine: AsyncLLM, parser: str | None, tool_marks: Collection[str]) -> None:
        """`parser` is the name of one of vLLM's reasoning parsers; without one the marks of `reasoning` count.

        `tool_marks` are those of the model's calls of tools.
        Raises `PromptmillError` (`invalid_config`) when the model's tokenizer lacks what the parser looks for.
        """
        self._tokenizer: Any = engine.renderer.tokenizer
        self._model = engine.model_config
        self._parser = self._load_parser(parser) if parser else None
        self._markers = ReasoningMarkers(self._tokenizer)
        self._tool_markers = ReasoningMarkers(self._tokenizer, tool_marks)

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
        """Return what reads the answer to a request, which is told here what it must not strip from the text."""
        if self._parser is None:
            return MarkReader(self._tool_markers if prepared.tools else self._markers, prepared)
        if prepared.tools and self._tool_markers.are_special:
            prepared.params.skip_special_tokens = False
        options = dict(prepared.template_options)
        return ParserReader(
            self._parser(self._tokenizer, None, chat_template_kwargs=options, model_config=self._model), prepared
        )


def outcome(output: Any, reader: Reader, prepared: Prepared, decode: Callable[[Sequence[int]], str]) -> Frame:
    """Return the fields of an `outcome` message. Raises `PromptmillError` (`internal`) for no answer."""
    answer = output.outputs[0]
    if answer.finish_reason in {"abort", "error"}:
        raise PromptmillError(
            Code.INTERNAL,
            f"vLLM broke the answer off: {answer.finish_reason}.",
            "Its own messages above say why; a grammar that it cannot compile is the usual reason.",
        )
    found = parted(
        reader.shown(answer.text),
        lambda text: reader.split(text, answer.token_ids),
        prepared.tools,
        inline=prepared.inline,
    )
    return finished(
        found,
        reason=answer.finish_reason,
        ended=answer.finish_reason == "stop" and not isinstance(answer.stop_reason, str),  # that is a stop string
        logprobs=None if answer.logprobs is None else _logprobs(answer, decode, prepared.params.logprobs),
        prompt_tokens=len(output.prompt_token_ids or ()),
        tokens=len(answer.token_ids),
    )


def _logprobs(answer: Any, decode: Callable[[Sequence[int]], str], most: int) -> list[dict[str, Any]]:
    found = []
    for token, by_token in zip(answer.token_ids, answer.logprobs, strict=True):
        ranked = sorted(by_token.items(), key=lambda pair: pair[1].rank)
        likeliest = [(other, value.logprob) for other, value in ranked[:most]]
        found.append(token_logprobs.entry(decode, token, by_token[token].logprob, likeliest))
    return found
