"""From a submitted request to what vLLM's engine takes: chat template, images, limits, adapters, parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.renderers import ChatParams
from vllm.renderers.hf import resolve_chat_template
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from promptmill.answers.reasoning import opens_reasoning
from promptmill.backends.engines import token_logprobs, tool_use
from promptmill.backends.engines.chat_template import NO_TEMPLATE, plain_text, text_turn
from promptmill.backends.engines.image_decoding import pictures
from promptmill.backends.engines.load_errors import first_line
from promptmill.backends.engines.request_options import (
    empty_prompt,
    not_known,
    refuse,
    template_options,
    warn_of_left_out,
)
from promptmill.backends.engines.tool_use import ToolReader, ToolUse
from promptmill.backends.engines.vllm.sampling import SAME_NAME, SamplingMap, known_names
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.system.frames import Frame

TAKES = frozenset({*SAME_NAME, "stop", "response_format", "reasoning"})
"""The sampling parameters that this engine maps."""
_EXTRA = frozenset({"chat_template_kwargs", "mm_processor_kwargs", "lora", *tool_use.NAMES, *token_logprobs.NAMES})
_MISTRALS = "{{ tools }} tool_calls [TOOL_CALLS]"
"""What a template of the format would say that a tokenizer without one has."""
_TAIL = 8  # tokens in which a template may open a thought


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `AsyncLLM.generate` is given, and what it takes to read the answer."""

    prompt: Any
    params: SamplingParams
    lora: LoRARequest | None
    template_options: Mapping[str, Any]
    thinks: bool
    """Whether the prompt ends inside reasoning."""
    inline: bool = False
    """Whether reasoning stays in the answer's text."""
    tools: ToolUse | None = None


class PromptBuilder:
    """Turns submitted requests into prompts, with the model's own template and defaults."""

    def __init__(self, engine: AsyncLLM, options: Mapping[str, Any]) -> None:
        """`options` are the `vllm` block of the configuration."""
        self._renderer = engine.renderer
        self._model = engine.model_config
        self._tokenizer: Any = engine.renderer.tokenizer
        self._refuse = options["unsupported"] == "error"
        config = self._model.hf_config
        names = ("image_token_id", "image_token_index")
        self._image_token = next((token for name in names if (token := getattr(config, name, None)) is not None), None)
        self._sampling = SamplingMap(self._tokenizer, self._model.get_diff_sampling_param())
        self._template = self._find_template(None)
        with_tools = self._find_template([])
        self.tools = ToolReader(_MISTRALS if with_tools == "" else with_tools)
        self._adapters = {
            name: LoRARequest(name, number, path)
            for number, (name, path) in enumerate((options.get("lora_modules") or {}).items(), 1)
        }

    def _find_template(self, tools: list[Any] | None) -> str | None:
        try:
            found: str | None = resolve_chat_template(self._tokenizer, None, tools, model_config=self._model)
        except (ValueError, AttributeError):  # a tokenizer with formats of its own, such as Mistral's
            return ""
        return found

    async def prepare(self, message: Frame, warnings: list[str]) -> Prepared:
        """Return the prompt of a `submit` message; `warnings` gets what is not done exactly as asked.

        Raises `PromptmillError` (`context_length`, `invalid_input`, `invalid_image`, `unsupported`).
        """
        sampling, extra = message["sampling"], message["extra"]
        left_out = not_known(extra, _EXTRA | known_names())
        options = template_options(sampling, extra, left_out, self._has_switch, TAKES)
        tools = self.tools.use(extra, message["messages"])
        if tools is not None:
            options["tools"] = tools.offered
            sampling = {**sampling, "response_format": tools.response_format}
        adapter = self._adapter(extra.get("lora"))
        prompt = await self._rendered(message, options, extra, warnings)
        tokens: list[int] = prompt["prompt_token_ids"]
        room = self._model.max_model_len - len(tokens)
        if room <= 0:
            raise self._too_long(str(len(tokens)))
        if not tokens:
            raise empty_prompt()
        params = self._sampling.params(sampling, extra, room, left_out, warnings)
        warn_of_left_out(left_out, "vllm", warnings)
        if self._refuse:
            refuse(warnings)
        params.logprobs = token_logprobs.wanted(extra)
        thinks = opens_reasoning(self._tokenizer.decode(tokens[-_TAIL:]))
        return Prepared(prompt, params, adapter, options, thinks, sampling.get("reasoning") == "inline", tools)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`."""
        text: str = self._tokenizer.decode(tokens)
        return text

    def _has_switch(self, name: str) -> bool:
        if self._template is None:
            return False
        return not self._template or name in self._template  # a format of the tokenizer's own may know it

    def _adapter(self, name: object) -> LoRARequest | None:
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._adapters:
            known = f"loaded are {', '.join(self._adapters)}" if self._adapters else "name some in `lora_modules`"
            raise input_error(f"extra_params.lora names no adapter of this engine; {known}.")
        return self._adapters[name]

    async def _rendered(
        self, message: Frame, options: Mapping[str, Any], extra: Mapping[str, Any], warnings: list[str]
    ) -> Any:
        images = pictures(message.get("images", ()))
        turns = [_turn(turn, images) for turn in message["messages"]]
        try:
            if self._template is None and not images:
                warnings.append(NO_TEMPLATE)
                (prompt,) = await self._renderer.render_cmpl_async([{"prompt": plain_text(turns)}])
                return prompt
            chat = ChatParams(
                chat_template_kwargs=dict(options), mm_processor_kwargs=extra.get("mm_processor_kwargs") or None
            )
            _, (prompt,) = await self._renderer.render_chat_async([turns], chat)
        except VLLMValidationError as error:
            if error.parameter in {"input_tokens", "input_text"}:
                unit = "tokens" if error.parameter == "input_tokens" else "characters"
                raise self._too_long(f"at least {error.value}", unit) from None
            raise _refused(error) from None
        except (VLLMClientError, ValueError, TypeError) as error:
            raise _refused(error) from None
        self._check_images(prompt, len(images))
        return prompt

    def _check_images(self, prompt: Mapping[str, Any], sent: int) -> None:
        """Raise when images and places for them are not as many: vLLM would answer all the same, to something else."""
        placed = (prompt.get("mm_placeholders") or {}).get("image", ())
        if len(placed) != sent:
            raise input_error(
                f"The prompt comes with {sent} image(s), and the model's chat template placed {len(placed)}; "
                "send images in user turns only."
            )
        if self._image_token is None:
            return
        inside = {at for spot in placed for at in range(spot.offset, spot.offset + spot.length)}
        tokens = enumerate(prompt["prompt_token_ids"])
        if any(token == self._image_token and at not in inside for at, token in tokens):
            raise input_error("The prompt's text holds the model's own sign for an image; take it out.")

    def _too_long(self, found: str, unit: str = "tokens") -> PromptmillError:
        return PromptmillError(
            Code.CONTEXT_LENGTH,
            f"The prompt has {found} {unit}; the model takes {self._model.max_model_len} tokens, prompt and answer "
            "together.",
        )


def _turn(message: Mapping[str, Any], images: list[Any]) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, list) or all(part["type"] == "text" for part in content):
        return text_turn(message)
    parts = [
        part if part["type"] == "text" else {"type": "image_pil", "image_pil": images[part["index"]]}
        for part in content
    ]
    return {**message, "content": parts}


def _refused(error: Exception) -> PromptmillError:
    return input_error(
        f"vLLM cannot make a prompt of this conversation: {first_line(error)}.",
        "Change the order or the roles of the turns, the images, or `chat_template_kwargs`.",
    )
