"""Converts a submitted request to a row: chat template, tokens, limits, and OpenVINO's generation configuration."""

from __future__ import annotations

import functools
import json
import random
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2
import openvino_genai

from promptmill.answers.chances import Chances
from promptmill.answers.choices import Choices
from promptmill.answers.reasoning import opened_by
from promptmill.answers.response_format import schema_of
from promptmill.backends.engines import submission
from promptmill.backends.engines.chat_template import ChatTemplate, prompt_text, text_turn
from promptmill.backends.engines.choice_tokens import ChoiceDraw, ChoiceSearch, ChoiceTokens, choice_tokens
from promptmill.backends.engines.growing_answer import AnswerEnd, AnswerTexts, GrowingForm
from promptmill.backends.engines.model_loading import load_failure
from promptmill.backends.engines.openvino.choice_steps import ChoiceSteps
from promptmill.backends.engines.openvino.grammars import Grammar, fragments, grammar_of_choices, grammar_of_schema
from promptmill.backends.engines.openvino.pipeline import LoadedPipeline, PipelineRow, Sight
from promptmill.backends.engines.tool_use import ToolReader
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.request import TOP_CHOICES, top_choices_of
from promptmill.system.frames import Frame

_EXTRA = submission.EXTRA | {"ignore_eos"}
_GREEDY_BELOW = 1e-5
_NO_LIMIT = 2**64 - 1
_UNLIMITED = 2**63  # larger values in OpenVINO's defaults mean "not set"
_SEEDS = 2**32

_TAG = re.compile("<ov_genai_(?:image|video)_[0-9]+>")
_SEEN = re.compile("image|img|vision|video|audio", re.IGNORECASE)  # words in the names of special tokens for images
_WORD = "promptmillword"  # a word that occurs in no template


class PromptBuilder:
    """Converts submitted requests to rows, with the model's template and defaults."""

    def __init__(self, model: LoadedPipeline, *, refuse_unsupported: bool) -> None:
        self._model = model
        self._refuse = refuse_unsupported
        source = model.tokenizer.chat_template
        try:
            self._template = ChatTemplate(source, model.tokenizer.named) if source else None
        except jinja2.TemplateError as error:
            raise load_failure(f"The model's chat template cannot be read: {error}.") from None
        self._tags = TaggedImages(self._template, model.tokenizer.special) if model.reads_images else None
        self._tools = ToolReader(source or None)
        self._texts, self._tool_texts = (
            AnswerTexts(model.tokenizer),
            AnswerTexts(model.tokenizer, self._tools.form.marks),
        )
        self._own_tokens = functools.lru_cache(maxsize=MOST_KEPT)(self._find_own_tokens)

    def row(self, message: Frame) -> PipelineRow:
        """Return the row for a `submit` message.

        Raises `PromptmillError` (`context_length`, `invalid_input`, `unsupported`).
        """
        warnings: list[str] = []
        sampling, extra = message["sampling"], message["extra"]
        if self._tags is not None:
            self._tags.check([message["messages"], extra])
        left_out = [*submission.unknown_names(extra, _EXTRA), *message.get("marks", ())]
        options = submission.template_options(sampling, extra, left_out, self._has_switch)
        wanted = sampling.get("response_format")
        if (tools := self._tools.use(extra, message["messages"])) is not None:
            options["tools"] = tools.offered
            wanted = tools.response_format
        if not submission.is_known_format(wanted):
            left_out.append("response_format")
        top_logprobs = submission.wanted_logprobs(extra)
        if top_logprobs:
            left_out.append("top_logprobs")  # OpenVINO reports only the chosen token
        text, special = self._prompt_text(message["messages"], options, warnings)
        choices = submission.choices_after(text, message, tools)
        grammar, own, banned = None, None, None
        if choices is not None:
            text += choices.opening
            grammar = grammar_of_choices(choices)
            own, banned = self._own_tokens(choices)
        chances = self._chances(extra, choices, own, left_out, is_unasked="field" in message)
        left_out += submission.penalties_in(sampling) if own is not None and self._tags is None else []
        submission.warn_of_left_out(left_out, "openvino", warnings, message.get("required", ()))
        if choices is None and (schema := schema_of(wanted)) is not None:
            grammar = grammar_of_schema(schema, warnings)
        asked = sampling.get("stop", self._model.stops)
        stops, ends = submission.split_stops(asked, self._model.tokenizer.special, warnings)
        longest = submission.longest_answer(sampling, extra)
        if self._refuse:
            submission.refuse(warnings)
        if not extra.get("ignore_eos"):
            ends |= self._model.ends
        sight = None
        if self._tags is not None:
            sight = Sight(text, message.get("images", ()))
            text = self._tags.bare(text, len(sight.images))
        tokens = self._encode(text, sight, special=special)
        config = self._config(sampling, grammar, ends)
        config.logprobs = int(top_logprobs is not None)
        usual = None if config.max_new_tokens > _UNLIMITED else config.max_new_tokens
        limit = submission.answer_limit(longest or usual, self._model.context, len(tokens))
        # `max_length` limits prompt and answer together, because only the pipeline can count the tokens of images
        config.max_length = self._model.context or _NO_LIMIT
        config.max_new_tokens = limit if sight is None or self._model.context is None else _NO_LIMIT
        steps = (
            None if own is None else self._steps(own, banned, config, chances, len(tokens), skips=top_logprobs is None)
        )
        config.apply_chat_template = sight is not None and not special  # the template from `pipeline` has no effect
        texts = self._tool_texts if tools else self._texts
        return PipelineRow.of(
            message,
            GrowingForm(texts, opened_by(text), submission.is_inline(message), tools, choices, chances, own),
            AnswerEnd(limit, ends, stops),
            prompt=tokens,
            logprobs=None if top_logprobs is None else [],
            warnings=warnings,
            config=config,
            sight=sight,
            grammar=None if steps else grammar,
            steps=steps,
        )

    def _chances(
        self,
        extra: Mapping[str, Any],
        choices: Choices | None,
        own: ChoiceTokens | None,
        left_out: list[str],
        *,
        is_unasked: bool,
    ) -> tuple[Chances, int] | None:
        chances = submission.chances_of(extra, choices)
        if top_choices_of(extra) is not None and (own is None or self._tags is not None):
            left_out += [] if is_unasked else [TOP_CHOICES]
            return None
        return chances

    def _find_own_tokens(self, choices: Choices) -> tuple[ChoiceTokens | None, frozenset[int] | None]:
        """Return the choices' own tokens and, for a prompt with images, the tokens that the grammar must exclude.

        If the first value is None, the grammar alone constrains the answer.
        """
        tokenizer = self._model.tokenizer
        own = choice_tokens(choices, lambda text: tokenizer.encode(text, special=False), self._texts.decode)
        if own is None or self._tags is None:
            return own, None
        banned = fragments(choices, own, tokenizer.numbers)
        return (None, None) if banned is None else (own, banned)

    def _steps(
        self,
        own: ChoiceTokens,
        banned: frozenset[int] | None,
        config: Any,
        chances: tuple[Chances, int] | None,
        used: int,
        *,
        skips: bool,
    ) -> ChoiceSteps | None:
        """Return the steps of a row; None if `config` can exclude the `banned` tokens in a single request instead.

        `used`: the number of the prompt's tokens. Raises `PromptmillError` (`context_length`).
        """
        if banned is not None:
            config.stop_token_ids |= banned
            config.min_new_tokens = min(own.longest, config.max_new_tokens)  # until then, end tokens are excluded
            return None
        submission.check_tokens(used + own.longest, self._model.context, images=False)
        drawn = ChoiceDraw()
        if config.do_sample:
            top_k = config.top_k if config.top_k < _UNLIMITED else 0
            drawn = ChoiceDraw(config.temperature, top_k, config.top_p, config.min_p)
        draws = config.do_sample or chances is not None
        search = ChoiceSearch(
            own,
            drawn,
            config.rng_seed,
            None if chances is None else chances[0],
            is_thorough=chances is not None,
            skips=skips,
        )
        numbers = random.Random(config.rng_seed)  # noqa: S311 (no secret)
        return ChoiceSteps(search, self._model.vocabulary, draws, numbers)

    def _has_switch(self, name: str) -> bool:
        return self._template is not None and name in self._template.source

    def _prompt_text(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], warnings: list[str]
    ) -> tuple[str, bool]:
        """Return the prompt's text, and whether the tokenizer should add its special tokens to it."""
        turns = list(map(text_turn if self._tags is None else self._tags.turn, messages))
        template = self._template
        if template is None:
            return prompt_text(turns, None, str, warnings)
        return prompt_text(turns, template.source, lambda turns: template.render(turns, options), warnings)

    def _encode(self, text: str, sight: Sight | None, *, special: bool) -> list[int]:
        """Return the tokens of the prompt's text. Raises an error if they, plus one per image, exceed the context."""
        images = 0 if sight is None else len(sight.images)
        context = self._model.context
        submission.check_length(
            text, context, lambda beginning: self._model.tokenizer.encode(beginning, special=special)
        )
        tokens = self._model.tokenizer.encode(text, special=special)
        used = len(tokens) + images
        exact = not images and (context is None or used > context)
        submission.check_tokens(used, context, str(used) if exact else f"at least {used}", images=bool(images))
        return tokens

    def _config(self, sampling: Mapping[str, Any], grammar: Grammar | None, ends: frozenset[int]) -> Any:
        """Return the generation settings: the request's parameters, and the model's defaults for the others."""
        config = self._model.defaults()
        drawing = submission.draws(sampling, by_default=config.do_sample)
        temperature = sampling.get("temperature")
        if temperature is not None:
            drawing = temperature >= _GREEDY_BELOW
            config.temperature = temperature if drawing else 1.0
        config.do_sample = drawing
        if (top_k := sampling.get("top_k")) is not None:
            config.top_k = top_k if top_k > 0 else 2**64 - 1
        for name in ("top_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if (value := sampling.get(name)) is not None:
                setattr(config, name, value)
        if sampling.get("top_p") == 0:
            config.top_p = submission.LIKELIEST_ALONE
        if (min_p := sampling.get("min_p")) is not None:
            config.min_p = min(min_p, 1 - 1e-6)  # OpenVINO refuses 1
        seed = sampling.get("seed")
        config.rng_seed = secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS
        config.stop_strings = set()
        config.ignore_eos = not ends
        config.stop_token_ids = set(ends)
        config.eos_token_id = min(ends, default=min(self._model.ends, default=0))
        config.structured_output_config = (
            None if grammar is None else openvino_genai.StructuredOutputConfig(**{grammar.form: grammar.text})
        )
        return config


class TaggedImages:
    """Inserts images into a conversation as OpenVINO's tags. The pipeline replaces the tags by the model's marks.

    A tag keeps its place in the text, whereas most chat templates cannot place an image between two texts.
    """

    def __init__(self, template: ChatTemplate | None, special: Collection[str]) -> None:
        """`special`: the tokenizer's special tokens."""
        self._takes_texts = template is None or _WORD in _probe(template, _WORD)
        self._marks = [token for token in special if _SEEN.search(token)]

    def turn(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return `message` in the form that the template accepts, with a tag for each image."""
        content = message["content"] or ""
        if isinstance(content, list):
            content = "".join(part["text"] if part["type"] == "text" else _tag(part["index"]) for part in content)
        return {**message, "content": content if self._takes_texts else [{"type": "text", "text": content}]}

    def check(self, asked: Any) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the request, as JSON, contains an image's tag or mark.

        Otherwise, the model would expect an image that does not exist.
        """
        said = json.dumps(asked, ensure_ascii=False)
        tag = _TAG.search(said)
        mark = tag[0] if tag else next((mark for mark in self._marks if mark in said), None)
        if mark is not None:
            raise submission.mark_in_text(mark)

    def bare(self, text: str, images: int) -> str:
        """Return the prompt `text` without tags.

        Raises `PromptmillError` (`unsupported`) unless the text has exactly one tag for each of its `images`, in order.
        """
        tags = _TAG.findall(text)
        if tags != [_tag(image) for image in range(images)]:
            raise submission.misplaced_images(len(tags), images)
        return _TAG.sub("", text)


def _tag(image: int) -> str:
    return f"<ov_genai_image_{image}>"


def _probe(template: ChatTemplate, content: Any) -> str:
    try:
        return template.render([{"role": "user", "content": content}], {})
    except Exception:  # this template does not accept such a turn; it may raise any exception
        return ""
