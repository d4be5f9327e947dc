"""From what vLLM generated to an answer, its reasoning apart."""

from __future__ import annotations

from typing import Any

from vllm.reasoning import ReasoningParserManager
from vllm.v1.engine.async_llm import AsyncLLM

from promptmill.backends.engines.vllm.prompt import Prepared
from promptmill.children.frames import Message
from promptmill.errors import Code, PromptmillError
from promptmill.reasoning import split_reasoning


class Reading:
    """Reads answers of one model: `<think>…</think>`, or whatever the configured reasoning parser knows."""

    def __init__(self, engine: AsyncLLM, parser: str | None) -> None:
        """`parser` is the name of one of vLLM's reasoning parsers."""
        self._tokenizer: Any = engine.renderer.tokenizer
        self._parser = ReasoningParserManager.get_reasoning_parser(parser) if parser else None

    def outcome(self, output: Any, prepared: Prepared) -> Message:
        """Return the fields of an `outcome` message. Raises `PromptmillError` (`internal`) for no answer."""
        answer = output.outputs[0]
        if answer.finish_reason in {"abort", "error"}:
            raise PromptmillError(Code.INTERNAL, f"vLLM broke the answer off: {answer.finish_reason}.")
        reasoning, text = self._split(answer.text, prepared)
        return {
            "text": text,
            "reasoning": reasoning,
            "finish_reason": answer.finish_reason,
            "usage": [len(output.prompt_token_ids or ()), len(answer.token_ids)],
        }

    def _split(self, text: str, prepared: Prepared) -> tuple[str | None, str]:
        if self._parser is None:
            return split_reasoning(text, opened=prepared.thinks)
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        options = dict(prepared.template_options)
        parser = self._parser(self._tokenizer, chat_template_kwargs=options)
        request = ChatCompletionRequest(messages=[{"role": "user", "content": ""}], chat_template_kwargs=options)
        reasoning, answer = parser.extract_reasoning(text, request)
        return (reasoning or "").strip() or None, (answer or "").lstrip()
