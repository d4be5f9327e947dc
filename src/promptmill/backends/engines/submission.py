"""Reads the options and images of a submitted request, for all engines, and defines the errors about them."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

from promptmill.answers.chances import Chances
from promptmill.answers.choices import Choices, choices_of, field_choices_of
from promptmill.answers.reasoning import opened_by
from promptmill.backends.engines import tool_use
from promptmill.backends.engines.chat_template import NO_TEMPLATE
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.request import APPLIED_NAMES, TOP_CHOICES, check_left_out, top_choices_of
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
from promptmill.images.load import on_white
from promptmill.system.frames import Frame

if TYPE_CHECKING:
    from PIL.Image import Image

CHARACTERS_PER_TOKEN = 16
"""The most characters to tokenize for each token of the context. Of a longer text, only the beginning is tokenized."""

USUAL_TOKENS = 1024
"""The limit of an answer's tokens, if neither the request nor the model's generation defaults set a limit."""

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens")
"""Names in `extra_params` for the token limit. The second is OpenAI's newer name, the third transformers' name."""

LOGPROBS = frozenset({"logprobs", "top_logprobs"})
"""The names in `extra_params` that request log probabilities."""
MOST_LOGPROBS = 20
"""The largest permitted `top_logprobs`, which is OpenAI's limit."""

EXTRA = frozenset({"chat_template_kwargs", *TOKEN_LIMITS, *tool_use.NAMES, *LOGPROBS, TOP_CHOICES})
"""The names in `extra_params` that all engines support."""
TAKES = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "stop", "response_format"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    }
)
"""The sampling parameters that all engines support."""

_TEMPLATES = ("enable_thinking", "reasoning_effort")
"""Sampling parameters that are options of chat templates."""
_OURS = frozenset({"tokenize", "return_dict", "return_tensors", "padding", "truncation", "max_length", "chat_template"})


def longest_answer(sampling: Mapping[str, Any], extra: JsonObject) -> int | None:
    """Return the request's limit of answer tokens; None without a limit. Raises `PromptmillError` (`invalid_input`)."""
    if (limit := sampling.get("max_tokens")) is not None:
        return int(limit)
    for name in TOKEN_LIMITS:
        if (value := extra.get(name)) is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            given_form = "less than 1" if isinstance(value, int) and not isinstance(value, bool) else shape(value)
            raise input_error(f"extra_params.{name} is {given_form}; send a whole number, at least 1.")
        return value
    return None


def wanted_logprobs(extra: JsonObject) -> int | None:
    """Return the requested `top_logprobs`; None if no log probabilities are requested.

    Raises `PromptmillError` (`invalid_input`).
    """
    asked, most = extra.get("logprobs"), extra.get("top_logprobs") or 0
    if isinstance(asked, int) and not isinstance(asked, bool):  # vLLM's form of the parameter
        asked, most = True, asked
    if not isinstance(most, int) or isinstance(most, bool) or not 0 <= most <= MOST_LOGPROBS:
        raise input_error(f"top_logprobs is {shape(most)}; send a whole number from 0 to {MOST_LOGPROBS}.")
    if not isinstance(asked, bool | None):
        raise input_error(f"logprobs is {shape(asked)}; send true or false.")
    return most if asked or (most and asked is None) else None


def chances_of(extra: JsonObject, choices: Choices | None, unasked: int | None = None) -> tuple[Chances, int] | None:
    """Return the object that sums the probabilities of the `choices`, and how many probabilities to report in addition
    to that of the chosen one; None if none are to be reported.

    `unasked`: the number to report if the request has no `top_choices`. Raises `PromptmillError` (`invalid_input`).
    """
    most = unasked if (asked := top_choices_of(extra)) is None else asked
    return None if most is None or choices is None else (Chances(), most)


def is_inline(message: Frame) -> bool:
    """Return whether the reasoning stays in the text of the answer to a `submit` message."""
    return bool(message["sampling"].get("reasoning") == "inline")


def unknown_names(extra: JsonObject, known: Container[str]) -> list[str]:
    """Return the names in `extra_params` that are not in `known`, except names that request nothing: null or `n: 1`."""
    asked = (name for name, value in extra.items() if value is not None and not (name == "n" and value == 1))
    return sorted(name for name in asked if name not in known)


def template_options(
    sampling: Mapping[str, Any],
    extra: JsonObject,
    left_out: list[str],
    knows: Callable[[str], bool],
) -> JsonDict:
    """Return the options for the chat template. `knows` returns whether the template has an option of this name.

    `left_out` gets the names of parameters that neither engine nor template supports. Raises `PromptmillError`
    (`invalid_input`).
    """
    left_out += [name for name in sampling if name not in APPLIED_NAMES | TAKES and name not in _TEMPLATES]
    options = extra.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise input_error(f"extra_params.chat_template_kwargs is {shape(options)}; send an object.")
    left_out += [f"chat_template_kwargs.{name}" for name in sorted(_OURS & set(options))]
    options = {name: value for name, value in options.items() if name not in _OURS}
    for name in _TEMPLATES:
        if (value := sampling.get(name)) is None:
            continue
        if knows(name):
            options[name] = value
        elif value is not False:  # the template lacks the option; then the model does not think, so False has no effect
            left_out.append(name)
    return {"add_generation_prompt": True, **options}


def choices_after(prompt: str, message: Frame, tools: tool_use.ToolUse | None) -> Choices | None:
    """Return the request's choices if `Choices.opening` may directly follow `prompt`; else None.

    If an answer may begin with reasoning or call tools, its `response_format` constrains or checks the answer instead.
    """
    choices = message["sampling"].get("choices")
    if not choices or tools is not None or opened_by(prompt) is not None:
        return None
    if (field := message.get("field")) is not None:
        return field_choices_of(field["name"], tuple(map(tuple, field["values"])))
    return choices_of(tuple(choices))


def is_known_format(wanted: JsonObject | None) -> bool:
    """Return whether `response_format` has one of OpenAI's formats."""
    return (wanted or {}).get("type", "text") in {"text", "json_object", "json_schema"}


def penalties_in(sampling: Mapping[str, Any]) -> list[str]:
    """Return the names of the penalties in a request. A search among choices cannot apply penalties."""
    neutral = {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1}
    return [name for name, value in neutral.items() if sampling.get(name, value) not in {None, value}]


def split_stops(
    wanted: Sequence[str], special: Mapping[str, int], warnings: list[str]
) -> tuple[list[str], frozenset[int]]:
    """Return the stop strings that are not special tokens, and the numbers of those that are special tokens."""
    stops = [stop for stop in wanted if stop]
    if len(stops) < len(wanted):
        warnings.append("An empty stop string was left out.")
    return [stop for stop in stops if stop not in special], frozenset(
        special[stop] for stop in stops if stop in special
    )


LIKELIEST_ALONE = 1e-6
"""The `top_p` that keeps only the likeliest token. OpenVINO and vLLM refuse 0."""


def draws(sampling: Mapping[str, Any], *, by_default: bool) -> bool:
    """Return whether a request without a temperature is sampled: by default, or if it restricts the tokens by top_p,
    top_k or min_p."""
    limits_mass = (sampling.get("top_p") or 1) < 1  # many programs always send `top_p: 1`
    return by_default or limits_mass or any((sampling.get(name) or 0) > 0 for name in ("top_k", "min_p"))


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the special tokens by name. Answers omit these tokens, so they cannot be found as stop strings."""
    named = {token: tokenizer.convert_tokens_to_ids(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    marked = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return named | {str(token): number for number, token in marked.items() if token.special}


def warn_of_left_out(names: Sequence[str], engine: str, warnings: list[str], required: Container[str] = ()) -> None:
    """Warn about the parameters `names`, which `engine` does not support with this model.

    Raises `PromptmillError` (`unsupported`) if one of them is `required`.
    """
    check_left_out(names, required, f"the {engine} backend")
    warnings += [f"The {engine} backend cannot take {name:.60} with this model; it was left out." for name in names]


def refuse(warnings: Iterable[str]) -> None:
    """Raise `PromptmillError` (`unsupported`) for warnings except `NO_TEMPLATE`. It implements `unsupported: error`."""
    if refused := [text for text in warnings if text is not NO_TEMPLATE]:
        raise PromptmillError(Code.UNSUPPORTED, " ".join(refused))


def check_length(text: str, context: int | None, encode: Callable[[str], Sequence[int]]) -> None:
    """Raise `PromptmillError` (`context_length`) if the beginning of a text is already too long.

    Only the beginning is tokenized, because tokenizing megabytes takes seconds and gigabytes of memory.
    """
    if context is not None and len(text) > (enough := context * CHARACTERS_PER_TOKEN):
        count = len(encode(text[:enough]))
        if count > context:
            raise too_long(f"at least {count}", context)


def too_long(size: str, context: int, unit: str = "tokens", *, images: bool = False) -> PromptmillError:
    """Return the error for a prompt of `size` units and a model with a context of `context` tokens."""
    counted = ", images included" if images else ""
    return PromptmillError(
        Code.CONTEXT_LENGTH,
        f"The prompt has {size} {unit}{counted}; the model takes {context} tokens, prompt and answer together.",
        "Send fewer or smaller images, or less text." if images else None,
    )


def check_tokens(count: int, context: int | None, description: str = "", *, images: bool) -> None:
    """Raise `PromptmillError` if a prompt of `count` tokens is empty, or leaves no room for an answer.

    `description`: the words for the number of tokens in the error, if `count` is not exact.
    """
    if context is not None and count >= context:
        raise too_long(description or str(count), context, images=images)
    if not count:
        raise input_error("The prompt is empty, and the model's format adds nothing to it; send some text.")


def answer_limit(wanted: int | None, context: int | None, used: int) -> int:
    """Return the limit of answer tokens after a prompt of `used` tokens."""
    most = int(wanted or USUAL_TOKENS)
    return most if context is None else min(most, context - used)


def pictures(images: Iterable[str]) -> list[Image]:
    """Return the `images` of a `submit` message in order, converted to 8-bit RGB on white.

    Raises `PromptmillError` (`invalid_image`) for an image whose data is broken.
    """
    return [_decode(encoded, place) for place, encoded in enumerate(images, 1)]


def _decode(encoded: str, place: int) -> Image:
    from PIL import Image

    try:
        with catch_warnings():
            simplefilter("ignore")  # the server has checked the size, about which Pillow warns
            with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
                return on_white(image)
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError):
        raise PromptmillError(
            Code.INVALID_IMAGE, f"Image {place} of the prompt is broken: it cannot be opened.", "Make it again."
        ) from None


def mark_in_text(mark: str) -> PromptmillError:
    """Return the error for a prompt whose text contains `mark`, the model's image mark."""
    return input_error(
        f"The prompt's own text contains {mark}, which stands for an image in this model; "
        "write it in another way, or make it the `image_tag`."
    )


def misplaced_images(kept: int, images: int) -> PromptmillError:
    """Return the error for a prompt with `images` images if the chat template has places for `kept` of them."""
    return PromptmillError(
        Code.UNSUPPORTED,
        f"The model's chat template has a place for {kept} of the prompt's {images} images.",
        "Put the images into user turns, or use another model.",
    )
