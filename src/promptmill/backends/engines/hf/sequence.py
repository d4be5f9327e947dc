"""A row of the decode loop, and how it is built from a submitted request: chat template, tokens, limits, sampling."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from promptmill.answers.choices import Choices
from promptmill.answers.reasoning import opened_by
from promptmill.backends.engines import submission
from promptmill.backends.engines.chat_template import prompt_text, text_turn
from promptmill.backends.engines.choice_tokens import ChoiceDraw, ChoiceSearch, ChoiceTokens, choice_tokens
from promptmill.backends.engines.growing_answer import AnswerEnd, AnswerTexts, GrowingAnswer, GrowingForm
from promptmill.backends.engines.hf.language_model import LanguageModel
from promptmill.backends.engines.hf.pooled_cache import KeysValues
from promptmill.backends.engines.hf.sampler import AnswerMasks, Penalties, SamplerState
from promptmill.backends.engines.tool_use import ToolReader
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import input_error
from promptmill.core.request import top_choices_of
from promptmill.core.wording import shape
from promptmill.system.frames import Frame

if TYPE_CHECKING:
    from promptmill.backends.engines.hf.vision import ImageInputs

_KNOWN = submission.EXTRA | {"ignore_eos", "stop_token_ids", "do_sample"}
# Parameters of transformers and vLLM, each with the only value that this engine supports.
_AS_IT_IS = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "use_cache": True,
}


@dataclass(slots=True, eq=False, kw_only=True)
class RunningSequence(GrowingAnswer):
    """A request, its answer so far, and the state of its computation."""

    choice: SamplerState
    image_inputs: ImageInputs | None = None
    offset: int = 0
    """The row's position minus its number of tokens; not 0 if the model gives an image fewer positions than tokens."""
    kept: KeysValues | None = None
    """The keys and values that were computed before the row was paused."""
    turns: int = 0
    """The number of tokens computed since the row joined the batch."""
    answered: bool = False
    computed_too_far: int = 0
    """The number of last tokens to remove from the cache, because the search continues at an earlier token."""
    top_logprobs: int = 0
    """The number of most probable tokens to report at each position, in addition to the chosen token."""

    @property
    def sequence(self) -> list[int]:
        """The tokens to compute before the next one: the prompt and, after a pause, the answer so far."""
        return self.prompt + self.tokens

    def accept(self, token: int) -> bool:
        """Add the next token. Return whether it completes the answer."""
        self.turns += 1
        return GrowingAnswer.accept(self, token)

    def go_to(self, tokens: Sequence[int]) -> None:
        """Let the next step compute the first of the `tokens` that is not yet in the answer."""
        pairs = enumerate(zip(self.tokens, tokens, strict=False))
        same = next((place for place, (own, other) in pairs if own != other), len(self.tokens))
        self.turns += 1
        self.computed_too_far = len(self.tokens) - same
        self.tokens = [*tokens[: same + 1]]


class SequenceBuilder:
    """Builds rows from submitted requests, with the model's template and defaults."""

    def __init__(self, model: LanguageModel, *, refuse_unsupported: bool) -> None:
        self._model = model
        self._tokenizer = model.tokenizer
        self._special = submission.special_tokens(model.tokenizer)
        self._refuse = refuse_unsupported
        self._masks = AnswerMasks(model.tokenizer, model.ends)
        self._vision = model.vision
        self._template = _template(model.tokenizer if model.vision is None else model.vision.processor)
        self._turn = text_turn
        if model.vision is not None:
            self._template = self._template or _template(model.tokenizer)
            self._turn = model.vision.layout(model.tokenizer, self._template).turn
        self._tool_template = _template(model.tokenizer, "tool_use") or self._template
        self._tools = ToolReader(self._tool_template)
        self._texts, self._tool_texts = (
            AnswerTexts(model.tokenizer),
            AnswerTexts(model.tokenizer, self._tools.form.marks),
        )
        self._own_tokens = functools.lru_cache(maxsize=MOST_KEPT)(self._find_own_tokens)

    def build(self, message: Frame) -> RunningSequence:
        """Return the row for a `submit` message.

        Raises `PromptmillError` (`context_length`, `invalid_image`, `invalid_input`, `unsupported`).
        """
        warnings: list[str] = []
        sampling: dict[str, Any] = message["sampling"]
        options = self._template_options(message, warnings)
        tools = self._tools.use(message["extra"], message["messages"])
        if tools is not None:
            options["tools"] = tools.offered
        text, special = self._prompt_text(message["messages"], options, warnings)
        opened = opened_by(text)
        if (choices := submission.choices_after(text, message, tools)) is not None:
            text += choices.opening
        stops, ends = submission.split_stops(sampling.get("stop", self._model.stops), self._special, warnings)
        if not message["extra"].get("ignore_eos"):
            ends |= self._model.ends
        ends |= _token_ids(message["extra"].get("stop_token_ids"))
        if message["extra"].get("do_sample") is False:
            sampling = {**sampling, "temperature": 0.0}  # transformers' way to request the most probable token
        elif message["extra"].get("do_sample"):
            sampling = {"temperature": 1.0, **sampling}
        choice, longest = self._choice(sampling), submission.longest_answer(sampling, message["extra"])
        own = None if choices is None else self._own_tokens(choices)
        if own is not None and self._model.batching.joins:
            submission.warn_of_left_out(submission.penalties_in(sampling), "hf", warnings, message.get("required", ()))
        if self._refuse:
            submission.refuse(warnings)
        warnings += self._model.constraints.warnings(
            drawing=not choice.greedy
        )  # added after `refuse`, because these warnings do not concern parameters of the request
        tokens, image_inputs = self._encode(text, message, special=special)
        limit = submission.answer_limit(
            longest or self._model.defaults.max_new_tokens, self._model.context, len(tokens)
        )
        choice.constraints = self._model.constraints.processors_for(tokens, limit)
        wanted = tools.response_format if tools else sampling.get("response_format")
        top_logprobs = submission.wanted_logprobs(message["extra"])
        chances = submission.chances_of(message["extra"], choices, unasked=0)
        search = None
        if choices is None:
            choice.mask = self._masks.of(wanted, opened=opened)
        elif own is None or not self._model.batching.joins:
            choice.mask = self._masks.of_choices(choices, own)
        else:
            search = ChoiceSearch(
                own,
                ChoiceDraw(0.0 if choice.greedy else choice.temperature, choice.top_k, choice.top_p, choice.min_p),
                choice.seed,
                None if chances is None else chances[0],
                is_thorough=top_choices_of(message["extra"]) is not None,
                skips=top_logprobs is None,
            )
            choice = SamplerState()
            submission.check_tokens(len(tokens) + own.longest, self._model.context, images=image_inputs is not None)
        texts = self._tool_texts if tools else self._texts
        return RunningSequence.of(
            message,
            GrowingForm(texts, opened, submission.is_inline(message), tools, choices, chances, own),
            AnswerEnd(limit, ends, stops),
            prompt=tokens,
            choice=choice,
            image_inputs=image_inputs,
            logprobs=None if top_logprobs is None else [],
            top_logprobs=top_logprobs or 0,
            search=search,
            tokens=[] if search is None or search.asked is None else [*search.asked.tokens],
            warnings=warnings,
        )

    def _template_options(self, message: Frame, warnings: list[str]) -> dict[str, Any]:
        sampling, extra = message["sampling"], message["extra"]
        as_it_is = {name for name, value in _AS_IT_IS.items() if extra.get(name) == value}
        left_out = [*submission.unknown_names(extra, _KNOWN | as_it_is), *message.get("marks", ())]
        options = submission.template_options(sampling, extra, left_out, lambda name: name in (self._template or ""))
        if not submission.is_known_format(sampling.get("response_format")):
            left_out.append("response_format")
        submission.warn_of_left_out(left_out, "hf", warnings, message.get("required", ()))
        return options

    def _prompt_text(
        self, messages: list[dict[str, Any]], options: Mapping[str, Any], warnings: list[str]
    ) -> tuple[str, bool]:
        """Return the prompt's text, and whether the tokenizer should add its special tokens to it."""
        template = self._tool_template if "tools" in options else self._template

        def render(turns: list[dict[str, Any]]) -> str:
            text: str = self._tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **options)
            return text

        return prompt_text(list(map(self._turn, messages)), template, render, warnings)

    def _find_own_tokens(self, choices: Choices) -> ChoiceTokens | None:
        return choice_tokens(choices, lambda text: self._tokens(text, special=False), self._texts.decode)

    def _choice(self, sampling: Mapping[str, Any]) -> SamplerState:
        """Return the row's sampling parameters: those of the request, and the model's defaults for the others."""
        defaults = self._model.defaults

        def given(name: str, otherwise: Any) -> Any:
            value = sampling.get(name)
            value = getattr(defaults, name, None) if value is None else value
            return otherwise if value is None else value

        temperature = sampling.get("temperature")
        if temperature is None:
            drawing = submission.draws(sampling, by_default=bool(defaults.do_sample))
            temperature = given("temperature", 1.0) if drawing else 0.0
        return SamplerState(
            temperature=float(temperature),
            top_k=max(0, int(given("top_k", 0))),
            top_p=float(given("top_p", 1.0)),
            min_p=float(given("min_p", 0.0)),
            penalties=Penalties(
                float(given("repetition_penalty", 1.0)),
                float(sampling.get("presence_penalty") or 0.0),
                float(sampling.get("frequency_penalty") or 0.0),
            ),
            seed=sampling.get("seed"),
        )

    def _encode(self, text: str, message: Frame, *, special: bool) -> tuple[list[int], ImageInputs | None]:
        submission.check_length(text, self._model.context, lambda beginning: self._tokens(beginning, special=special))
        images = submission.pictures(message.get("images", ()))
        image_inputs = None
        if images and self._vision is not None:
            tokens, image_inputs = self._vision.encode(text, images, special=special)
        else:
            tokens = self._tokens(text, special=special)
        submission.check_tokens(len(tokens), self._model.context, images=bool(images))
        return tokens, image_inputs

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        tokens: list[int] = self._tokenizer([text], add_special_tokens=special, verbose=False)["input_ids"][0]
        return tokens


def _token_ids(value: object) -> frozenset[int]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(isinstance(number, int) for number in value):
        raise input_error(f"extra_params.stop_token_ids is {shape(value)}; send a list of numbers.")
    return frozenset(value)


def _template(source: Any, name: str = "default") -> str | None:
    """Return the chat template of a tokenizer or processor. If it has several, return the template called `name`."""
    template = getattr(source, "chat_template", None)
    if isinstance(template, dict):
        template = template.get(name)
    return template or None
