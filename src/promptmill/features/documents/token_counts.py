"""Counts tokens as the model does: by its own tokenizer if it is an engine's, else by an estimate."""

from __future__ import annotations

from pathlib import Path

from promptmill.features.documents.cutting import Count, tokens
from promptmill.jobs.store.spec import RunningJob

_FILE = "tokenizer.json"


def count_of(job: RunningJob) -> Count:
    """Return the function that counts the tokens of a text. Blocks.

    A model without the tokenizer's file, such as a GGUF file, has the estimate, and so has a job of several models.
    """
    models = {target.model for target in job.spec.targets}
    if not job.config.record.is_engine or len(models) > 1 or (file := _file(job.config.model)) is None:
        return tokens
    try:
        from tokenizers import Tokenizer

        own = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 (the package raises plain exceptions, and may be missing)
        return tokens
    own.no_truncation()
    own.no_padding()
    return lambda text: len(own.encode(text, add_special_tokens=False))


def _file(model: str) -> Path | None:
    """Return the tokenizer of a model's folder, or of a model in the hub's cache; None if there is none."""
    if Path(model).exists():
        file = Path(model) / _FILE
        return file if file.is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, _FILE)
    except (ImportError, ValueError):  # no name of the hub
        return None
    return Path(found) if isinstance(found, str) else None
