"""Errors of loading a model: explanations of exceptions that transformers and vLLM raise."""

from __future__ import annotations

from collections.abc import Sequence

from promptmill.backends.engines import hardware
from promptmill.backends.engines.model_location import load_failure
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.system.installation import adding

_AGAIN = "Get the model's files again."
NO_WRITER = ("The model is of a kind that does not generate text.", "Choose a text generation model.")
_KNOWN = {
    "Unrecognized configuration class": NO_WRITER,
    "does not recognize this architecture": (
        "The installed transformers does not know the architecture that the model's config.json names.",
        "Upgrade transformers, or choose another model.",
    ),
    "Unrecognized model in": ("The model's config.json does not name the kind of model.", _AGAIN),
    "is not a valid JSON file": ("The model's config.json is not valid JSON.", _AGAIN),
    "instantiate the backend tokenizer": (
        "The model has no tokenizer, or a package that the tokenizer needs is not installed.",
        "Put the tokenizer's files into the model's folder; some need the packages sentencepiece and tiktoken.",
    ),
    "ignore_mismatched_sizes": ("The shapes of the model's weights differ from its config.json.", _AGAIN),
    "deserializing header": ("A file with the model's weights is damaged.", _AGAIN),
}
"""Fragments of transformers' messages → our message and hint."""


def in_known_words(text: str, *, trusted: bool) -> PromptmillError | None:
    """Return our error for `text`, the message of an exception; None if the message is unknown.

    `trusted`: the model's own code may run.
    """
    if "trust_remote_code" in text and not trusted:
        return load_failure(
            "The model comes with Python code, which runs only if the operator allows it.",
            "If you trust its author, set `trust_remote_code: true` in the configuration file.",
        )
    found = next((words for sign, words in _KNOWN.items() if sign in text), None)
    return load_failure(*found) if found else None


def first_sentence(error: Exception | str) -> str:
    """Return the first sentence of an exception's message."""
    return f"{redact(_line(error).split('. ')[0])[:300].rstrip('.')}."


def first_line(error: BaseException | str) -> str:
    """Return the first line of an exception's message without its full stop; its class name if the message is empty."""
    return redact(_line(error))[:200].rstrip(".")


def _line(error: BaseException | str) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def missing_package(error: Exception | str, extra: str) -> PromptmillError:
    """Return the error for a model that needs a missing package; `error` is that of the import."""
    return PromptmillError(
        Code.MISSING_DEPENDENCY,
        f"The model needs a package that is not installed: {first_sentence(error)}",
        f"{adding(extra)}, or install the named package.",
    )


def missing_gpus(gpu_ids: Sequence[int], present: int, why: str) -> PromptmillError:
    """Return the error for `gpu_ids` on a machine with only `present` GPUs; `why` ends its sentence."""
    named = ", ".join(map(str, gpu_ids))
    return load_failure(
        f"`gpu_ids` names GPU {named}, but {present} of them are available on this machine{why}.",
        "Correct `gpu_ids`, or leave it empty.",
    )


def check_memory(weights: float) -> None:
    """Raise if `weights` (bytes) exceed the free main memory; the system would kill the process while it loads."""
    free = hardware.free_memory()
    if free is not None and weights > free:
        raise load_failure(
            f"The model needs {weights / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free.",
            "Use a smaller model, `dtype: bfloat16`, or a machine with more memory.",
        )
