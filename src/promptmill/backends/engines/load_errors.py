"""Turn library errors about a failed model load into one actionable sentence."""

from __future__ import annotations

from collections.abc import Sequence

from promptmill.backends.engines.model_location import load_failure
from promptmill.core.errors import PromptmillError, redact

_AGAIN = "Get the model's files again."
NO_WRITER = ("The model is of a kind that does not generate text.", "Choose a text generation model.")
_KNOWN = {
    "Unrecognized configuration class": NO_WRITER,
    "does not recognize this architecture": (
        "The installed transformers does not know the architecture that the model's config.json names.",
        "Upgrade transformers, or choose another model.",
    ),
    "Unrecognized model in": ("The model's config.json does not say what kind of model it is.", _AGAIN),
    "is not a valid JSON file": ("The model's config.json is not valid JSON.", _AGAIN),
    "instantiate the backend tokenizer": (
        "There is no tokenizer beside the model, or a package that it needs is missing.",
        "Put the tokenizer's files into the model's folder; some need the packages sentencepiece and tiktoken.",
    ),
    "ignore_mismatched_sizes": ("The model's weights have other shapes than its config.json says.", _AGAIN),
    "deserializing header": ("A file with the model's weights is damaged.", _AGAIN),
}
"""What transformers says, to what people can use."""


def in_known_words(text: str) -> PromptmillError | None:
    """Return the error that `text`, an exception's, stands for; None when nobody has met it yet."""
    found = next((words for sign, words in _KNOWN.items() if sign in text), None)
    return load_failure(*found) if found else None


def first_sentence(error: Exception | str) -> str:
    """Return the first sentence of what an exception says."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    sentence = redact(line.split(". ")[0])[:300].rstrip(".")
    return f"{sentence}."


def missing_gpus(gpu_ids: Sequence[int], present: int, why: str) -> PromptmillError:
    """Return the error of `gpu_ids` of which only `present` are there; `why` goes into its sentence."""
    named = ", ".join(map(str, gpu_ids))
    return load_failure(
        f"`gpu_ids` names GPU {named}, but of those this machine offers {present}{why}.",
        "Correct `gpu_ids`, or leave it empty.",
    )


def too_large(needed: float, free: float) -> PromptmillError:
    """Return the error of a model whose weights do not fit into main memory (bytes)."""
    return load_failure(
        f"The model needs {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free.",
        "Use a smaller model, `dtype: bfloat16`, or a machine with more memory.",
    )
