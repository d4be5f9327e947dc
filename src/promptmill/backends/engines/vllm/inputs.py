"""Converts a submitted request to vLLM's input: chat template, images, limits, adapters and `SamplingParams`."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.renderers import ChatParams
from vllm.renderers.hf import resolve_chat_template
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from promptmill.answers.choices import Choices
from promptmill.answers.reasoning import opened_by
from promptmill.answers.response_format import schema_of
from promptmill.backends.engines import submission
from promptmill.backends.engines.chat_template import NO_TEMPLATE, plain_text, text_turn, without_system
from promptmill.backends.engines.choice_tokens import ChoiceDraw, ChoiceSearch, ChoiceTokens, choice_tokens
from promptmill.backends.engines.growing_answer import AnswerTexts, GrowingForm, WrittenTokens
from promptmill.backends.engines.tool_use import ToolReader
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import PromptmillError, first_line, input_error
from promptmill.core.request import TOP_CHOICES, top_choices_of
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
from promptmill.system.frames import Frame

_EXTRA = submission.EXTRA | {"mm_processor_kwargs", "lora"}
_MISTRALS = "{{ tools }} tool_calls [TOOL_CALLS]"
"""Stands for the template that a Mistral tokenizer lacks: the tokenizer formats chats in code, and supports tools."""
_TAIL = 16  # the number of a prompt's last tokens that are searched for marks that open the reasoning
_SAME_NAME = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "max_tokens"),
)
# The vLLM parameters that a request may set, without those that change the number or form of its answers.
_PARAMETERS = frozenset(
    {
        *_SAME_NAME,
        *("stop", "stop_token_ids", "ignore_eos", "min_tokens", "bad_words", "include_stop_str_in_output"),
        *("skip_special_tokens", "spaces_between_special_tokens", "structured_outputs", "logit_bias"),
        *("allowed_token_ids", "extra_args", "thinking_token_budget", "repetition_detection", "watermarking"),
    }
)
_GUIDED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
"""vLLM's older names for structured outputs, which many programs still use."""
_ADAPTER: pydantic.TypeAdapter[SamplingParams] = pydantic.TypeAdapter(SamplingParams)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The arguments of `AsyncLLM.generate` for a request, and the facts needed to read its answer."""

    prompt: Any
    params: SamplingParams
    lora: LoRARequest | None
    template_options: JsonObject
    form: GrowingForm
    top_logprobs: int | None
    """The number of most probable tokens to report at each position; None if no log probabilities are requested."""
    search: ChoiceSearch | None
    """The search that finds the answer among the choices' own tokens; None if the answer is not searched."""


class VllmPrompts:
    """Converts submitted requests to prompts, with the model's template and defaults."""

    def __init__(self, engine: AsyncLLM, options: JsonObject) -> None:
        """`options`: the `vllm` block of the configuration."""
        self._renderer = engine.renderer
        self._model = engine.model_config
        self._tokenizer: Any = engine.renderer.tokenizer
        self._refuse = options["unsupported"] == "error"
        self._parses_reasoning = bool(options.get("reasoning_parser"))  # a model with a parser reasons first
        config = self._model.hf_config
        names = ("image_token_id", "image_token_index")
        self._image_token = next((token for name in names if (token := getattr(config, name, None)) is not None), None)
        self._sampling = _SamplingMap(self._tokenizer, self._model.get_diff_sampling_param())
        self._template = self._find_template(None)
        with_tools = self._find_template([])
        self._tools = ToolReader(_MISTRALS if with_tools == "" else with_tools)
        self.tokens = WrittenTokens(self._tokenizer, self.decode, {})
        self._texts, self._tool_texts = (
            AnswerTexts(self._tokenizer),
            AnswerTexts(self._tokenizer, self._tools.form.marks),
        )
        self._own_tokens = functools.lru_cache(maxsize=MOST_KEPT)(self._find_own_tokens)
        self._adapters = {
            name: LoRARequest(name, number, path)
            for number, (name, path) in enumerate((options.get("lora_modules") or {}).items(), 1)
        }

    def _find_template(self, tools: list[Any] | None) -> str | None:
        try:
            template: str | None = resolve_chat_template(self._tokenizer, None, tools, model_config=self._model)
        except (ValueError, AttributeError):  # the tokenizer formats chats in code, like Mistral's tokenizer
            return ""
        return template

    async def prepare(self, message: Frame, warnings: list[str]) -> Prepared:
        """Return the prompt for a `submit` message. Add a line to `warnings` for each deviation from the request.

        Raises `PromptmillError` (`context_length`, `invalid_input`, `invalid_image`, `unsupported`).
        """
        sampling, extra = message["sampling"], message["extra"]
        left_out = [*submission.unknown_names(extra, _EXTRA | _PARAMETERS | _GUIDED.keys()), *message.get("marks", ())]
        options = submission.template_options(sampling, extra, left_out, self._has_switch)
        tools = self._tools.use(extra, message["messages"])
        if tools is not None:
            options["tools"] = tools.offered
            sampling = {**sampling, "response_format": tools.response_format}
        adapter = self._adapter(extra.get("lora"))
        prompt = await self._render(message, options, extra, warnings)
        tokens: list[int] = prompt["prompt_token_ids"]
        end_of_prompt = self._tokenizer.decode(tokens[-_TAIL:])
        choices = None if self._parses_reasoning else submission.choices_after(end_of_prompt, message, tools)
        own = None if choices is None else self._own_tokens(choices)
        if choices is not None:
            tokens += self._tokenizer.encode(choices.opening, add_special_tokens=False)
            sampling = {**sampling, "response_format": None}  # the prompt already has the beginning of the choice
        if choices is not None and own is None:
            extra = {**extra, "guided_choice": [*choices.endings.values()]}
        chances = submission.chances_of(extra, choices, unasked=0)
        if own is None and top_choices_of(extra) is not None and "field" not in message:
            left_out.append(TOP_CHOICES)
        left_out += [] if own is None else submission.penalties_in(sampling)
        context = self._model.max_model_len
        length = len(tokens) + (0 if own is None else own.longest)
        submission.check_tokens(length, context, images="images" in message)
        params = self._sampling.params(sampling, extra, context - len(tokens), left_out, warnings)
        submission.warn_of_left_out(left_out, "vllm", warnings, message.get("required", ()))
        if self._refuse:
            submission.refuse(warnings)
        params.logprobs = top_logprobs = submission.wanted_logprobs(extra)
        texts = self._tool_texts if tools else self._texts
        kept = None if own is None else chances
        form = GrowingForm(texts, opened_by(end_of_prompt), submission.is_inline(message), tools, choices, kept, own)
        search = None if own is None else _search(own, form, params, is_thorough=top_choices_of(extra) is not None)
        return Prepared(prompt, params, adapter, options, form, top_logprobs, search)

    def _find_own_tokens(self, choices: Choices) -> ChoiceTokens | None:
        return choice_tokens(choices, lambda text: self._tokenizer.encode(text, add_special_tokens=False), self.decode)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`."""
        text: str = self._tokenizer.decode(tokens)
        return text

    def _has_switch(self, name: str) -> bool:
        if self._template is None:
            return False
        return not self._template or name in self._template  # a tokenizer that formats chats in code may read any name

    def _adapter(self, name: object) -> LoRARequest | None:
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._adapters:
            known = f"loaded are {', '.join(self._adapters)}" if self._adapters else "name some in `lora_modules`"
            raise input_error(f"extra_params.lora names no adapter of this engine; {known}.")
        return self._adapters[name]

    async def _render(self, message: Frame, options: JsonObject, extra: JsonObject, warnings: list[str]) -> Any:
        images = submission.pictures(message.get("images", ()))
        turns = [_turn(turn, images) for turn in message["messages"]]
        try:
            if self._template is None and not images:
                warnings.append(NO_TEMPLATE)
                (prompt,) = await self._renderer.render_cmpl_async([{"prompt": plain_text(turns)}])
                return prompt
            chat = ChatParams(
                chat_template_kwargs=dict(options), mm_processor_kwargs=extra.get("mm_processor_kwargs") or None
            )
            try:
                _, (prompt,) = await self._renderer.render_chat_async([turns], chat)
            except (VLLMClientError, ValueError, TypeError):
                if (asked := without_system(turns)) is turns:
                    raise
                _, (prompt,) = await self._renderer.render_chat_async([asked], chat)
        except VLLMValidationError as error:
            if error.parameter in {"input_tokens", "input_text"}:
                unit = "tokens" if error.parameter == "input_tokens" else "characters"
                raise submission.too_long(f"at least {error.value}", self._model.max_model_len, unit) from None
            raise _refusal(error) from None
        except (VLLMClientError, ValueError, TypeError) as error:
            raise _refusal(error) from None
        self._check_images(prompt, len(images))
        return prompt

    def _check_images(self, prompt: JsonObject, sent: int) -> None:
        """Raise if the template did not place each image exactly once: vLLM would answer a wrong prompt."""
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
            raise input_error("The prompt's text contains the model's image token; remove it.")


def _search(own: ChoiceTokens, form: GrowingForm, params: SamplingParams, *, is_thorough: bool) -> ChoiceSearch:
    drawn = ChoiceDraw(params.temperature, max(0, params.top_k), params.top_p, params.min_p)
    chances = None if form.chances is None else form.chances[0]
    skips = params.logprobs is None
    return ChoiceSearch(own, drawn, params.seed, chances, is_thorough=is_thorough, skips=skips)


def _turn(message: JsonObject, images: list[Any]) -> JsonDict:
    content = message["content"]
    if not isinstance(content, list) or all(part["type"] == "text" for part in content):
        return text_turn(message)
    parts = [
        part if part["type"] == "text" else {"type": "image_pil", "image_pil": images[part["index"]]}
        for part in content
    ]
    return {**message, "content": parts}


def _refusal(error: Exception) -> PromptmillError:
    return input_error(
        f"vLLM cannot make a prompt of this conversation: {first_line(error)}.",
        hint="Change the order or the roles of the turns, the images, or `chat_template_kwargs`.",
    )


class _SamplingMap:
    """Converts sampling parameters and `extra_params` to vLLM's `SamplingParams`, for one model."""

    def __init__(self, tokenizer: Any, defaults: JsonObject) -> None:
        """`defaults`: the model's generation defaults, with vLLM's names."""
        self._defaults = dict(defaults)
        self._special = submission.special_tokens(tokenizer)

    def params(
        self, sampling: JsonObject, extra: JsonObject, room: int, left_out: list[str], warnings: list[str]
    ) -> SamplingParams:
        """Return the parameters of a request whose answer may have at most `room` tokens.

        `left_out` gets the names of parameters that vLLM does not support. Raises `PromptmillError` (`invalid_input`).
        """
        given = {name: value for name, value in extra.items() if name in _PARAMETERS and value is not None}
        values = self._defaults | given
        values |= {name: sampling[name] for name in _SAME_NAME if name in sampling}
        if values.get("top_p") == 0:
            values["top_p"] = submission.LIKELIEST_ALONE
        stops = sampling.get("stop") or _stops(given.get("stop"))
        if structure := _structure(sampling.get("response_format"), extra, left_out):
            values["structured_outputs"] = structure
        longest = submission.longest_answer(sampling, extra) or self._defaults.get("max_tokens")
        values["max_tokens"] = submission.answer_limit(longest, room, 0)
        # `stop` gets no special tokens, because vLLM removes them before it searches for stop strings
        values["stop"], ends = submission.split_stops(stops, self._special, warnings)
        try:
            values["stop_token_ids"] = [*(values.get("stop_token_ids") or ()), *ends]
            params = _ADAPTER.validate_python(values)
        except (pydantic.ValidationError, VLLMValidationError, TypeError, ValueError) as error:
            raise _bad_parameter(error) from None
        params.output_kind = RequestOutputKind.FINAL_ONLY
        return params


def _stops(given: object) -> list[str]:
    """Return the stop strings of `extra_params`: one text, or a list of texts, as in OpenAI's `stop`."""
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise input_error(f"extra_params.stop is {shape(given)}; send a text or a list of texts.")
    return stops


def _structure(wanted: JsonObject | None, extra: JsonObject, left_out: list[str]) -> Any:
    """Return vLLM's `structured_outputs` for OpenAI's `response_format`, or for one of vLLM's older names."""
    given = {new: extra[old] for old, new in _GUIDED.items() if extra.get(old) is not None}
    kind = (wanted or {}).get("type")
    if wanted is None or kind == "text":
        return given or None
    if kind == "json_object":
        return given | {"json_object": True}
    if kind == "structural_tag":
        return given | {"structural_tag": json.dumps(wanted)}
    if (schema := schema_of(wanted)) is not None:
        return given | {"json": schema}
    left_out.append("response_format")
    return given or None


def _bad_parameter(error: Exception) -> PromptmillError:
    """Return the error for a value that vLLM rejects, without quoting the value."""
    if isinstance(error, pydantic.ValidationError):
        problems = error.errors(include_url=False, include_context=False)
        # pydantic also lists an error about `SamplingParams` itself
        first = next((problem for problem in problems if problem["type"] != "is_instance_of"), problems[0])
        place = ".".join(str(part) for part in first["loc"] if not re.search(r"[\[(]", str(part)))
        said = str(first["msg"]).removeprefix("Value error, ")
        if first["type"].endswith(("_type", "_parsing")):
            said = f"{said.removeprefix('Input ')}, not {shape(first['input'])}"
        return input_error(f"vLLM refused {place or 'a sampling parameter'}: {said.rstrip('.')}.")
    text = (error.args[0] if error.args else "") if isinstance(error, VLLMValidationError) else str(error)
    return input_error(f"vLLM refused a sampling parameter: {str(text).splitlines()[0][:200].rstrip('.')}.")
