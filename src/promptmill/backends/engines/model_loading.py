"""Resolves a model's name to files (folder, GGUF file, hub name, embedded model), and explains loading errors.

`locate` runs before heavy packages are imported, so that a wrong name is reported immediately. `in_known_words`
explains the exceptions that transformers and vLLM raise for the files.
"""

from __future__ import annotations

import importlib.util
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from promptmill.backends.engines import embedded_model
from promptmill.backends.hosted_models import host_of
from promptmill.config.backends import EMBEDDED
from promptmill.core.errors import Code, Named, PromptmillError, Words, first_sentence
from promptmill.system.installation import adding
from promptmill.system.package_file import Conversion
from promptmill.system.safe_open import home_expanded

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_PATIENCE_S = 5
_BACKENDS = {"cpu": "openvino"}  # the backend of each extra whose name differs from the backend's name
# LiteLLM writes a model's name as PROVIDER/MODEL. Some of these words, such as `openai`, are also owners on the hub.
_PREFIXES = frozenset({"openai", "anthropic", "gemini", "google", "mistral", "deepseek"})
_OLLAMA_PREFIXES = frozenset({"ollama", "ollama_chat"})
_OLLAMA = re.compile(r"[A-Za-z0-9][\w.-]+:[\w.-]+")
_ENDPOINT = "Use the backend openai with "
_AT_OLLAMA = (_ENDPOINT, Named("base_url", "localhost:11434"))
_NAME_IT = "Name a folder with a model, a .gguf file, or a model of the hub such as Qwen/Qwen3-0.6B."
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
"""Parts of transformers' messages, each with the message and hint that promptmill shows instead."""


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """An engine's model format: the files that identify a folder in this format, and advice if a model lacks them."""

    files: tuple[str, ...]
    advice: str
    embedded: Conversion = embedded_model.TRANSFORMERS
    """The conversion of the embedded model to this format."""


TRANSFORMERS = ModelFormat(
    ("config.json",),
    "Choose a model in transformers' format; of a repository of GGUF files, hf takes one by `gguf_file`.",
)


@dataclass(frozen=True, slots=True)
class Location:
    """The arguments of `from_pretrained`: a folder or hub name, and perhaps the GGUF file in it."""

    name: str
    gguf_file: str | None = None

    @property
    def folder(self) -> Path | None:
        """The model's folder; None for a model on the hub."""
        return Path(self.name) if Path(self.name).is_dir() else None


def locate(
    name: str,
    gguf_file: str | None,
    report: Callable[[str], None],
    require: Callable[[], None],
    form: ModelFormat = TRANSFORMERS,
) -> Location:
    """Find the model `name` in the engine's format. Call this function before heavy packages are imported.

    `require` raises an error if the engine's packages are missing. It is called after a path is checked and before the
    network is used. Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`).
    """
    here = None if name == EMBEDDED else _on_disk(name, gguf_file, form)
    require()
    if here is not None:
        return here
    if name == EMBEDDED:
        return Location(str(embedded_model.model_folder(report, form.embedded)))
    _check_hub(name, form.files if gguf_file is None else (gguf_file,), form.advice)
    return Location(name, gguf_file)


def _on_disk(name: str, gguf_file: str | None, form: ModelFormat) -> Location | None:
    path = home_expanded(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise load_failure(f"{path.absolute()} is a file; a model is a folder or a .gguf file.", _NAME_IT)
        return Location(str(path.parent), path.name)
    if path.is_dir():
        return _in_folder(path, gguf_file, form)
    if _looks_local(name):
        what = "GGUF file" if path.suffix == ".gguf" else "model folder"
        raise load_failure(f"There is no {what} at {path.absolute()}.", "Check the path.")
    if hosted := _hosted(name):
        raise hosted
    if not _HUB_NAME.fullmatch(name):
        raise load_failure(f"{name[:100]!r} is neither a folder nor a name on the model hub.", _NAME_IT)
    return None


def _hosted(name: str) -> PromptmillError | None:
    """Return the error for the name of a hosted or Ollama model; None if it may be a model of the hub."""
    prefix, _, own = name.partition("/")
    if prefix in _OLLAMA_PREFIXES and own:
        return load_failure(f"{name} is a model of Ollama.", (*_AT_OLLAMA, " and ", Named("model_name", own), "."))
    model = own if prefix in _PREFIXES else name
    if (host := host_of(model)) is not None:
        named = () if model == name else (" and ", Named("model_name", model))
        remedy = (_ENDPOINT, Named("provider", host.provider), *named, f" (key in {host.key_env}).")
        return load_failure(f"{model} is a model of {host.owner}.", remedy)
    return load_failure(f"{name} looks like an Ollama model.", (*_AT_OLLAMA, ".")) if _OLLAMA.fullmatch(name) else None


def _looks_local(name: str) -> bool:
    begins_so = name.startswith((".", "/", "~")) or name[1:2] == ":"
    return begins_so or "\\" in name or name.count("/") > 1 or name.endswith(".gguf")


def _in_folder(folder: Path, gguf_file: str | None, form: ModelFormat) -> Location:
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise load_failure(f"There is no file {gguf_file} in {folder.absolute()}.", "Check `gguf_file`.")
        return Location(str(folder), gguf_file)
    if any((folder / file).is_file() for file in form.files):
        return Location(str(folder))
    names = sorted(file.name for file in folder.glob("*.gguf"))
    if len(names) == 1:
        return Location(str(folder), names[0])
    if names:
        raise load_failure(f"{folder.absolute()} holds {len(names)} GGUF files; give the path of one.")
    raise load_failure(f"{folder.absolute()} holds no {form.files[0]}, so it is not a model folder.", _NAME_IT)


def _check_hub(name: str, files: tuple[str, ...], advice: str) -> None:
    """Raise an error if the hub lacks `name`; go offline if the hub is unreachable and the model is cached.

    Without this check, the hub's own client would retry for more than 20 seconds per file.
    """
    _require_hub()
    from huggingface_hub import constants, try_to_load_from_cache

    offline = constants.HF_HUB_OFFLINE
    if offline or not _hub_answers(constants.ENDPOINT):
        if not any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
            why = "may not be used (`HF_HUB_OFFLINE`)" if offline else "cannot be reached from here"
            raise load_failure(
                f"The model hub at {constants.ENDPOINT} {why}, and {name} is not in its cache.",
                "Give the path of a model folder, use smollm2-135m-instruct, or check "
                f"{'`HF_HUB_OFFLINE` and `HF_HOME`' if offline else 'the network and `HF_ENDPOINT`'}.",
            )
        constants.HF_HUB_OFFLINE = True  # the client reads its environment variable only when it is imported
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the engine's child processes
        return
    if not any(_is_on_hub(name, file) for file in files):
        raise load_failure(f"{name} on the model hub holds no {files[0]}.", advice)


def _is_on_hub(name: str, file: str) -> bool:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=2 * _HUB_PATIENCE_S)
    except GatedRepoError:
        raise load_failure(
            f"The model {name} is gated: its owner wants to know who uses it.",
            f"Accept its terms at {constants.ENDPOINT}/{name} and set HF_TOKEN, or choose another model.",
        ) from None
    except RepositoryNotFoundError:
        raise load_failure(
            f"The model hub knows no model {name}, or it is private.",
            "Check the name; for a private model set HF_TOKEN.",
        ) from None
    except EntryNotFoundError:
        return False
    except Exception as error:  # errors of other kinds, for example from a mirror of the hub
        raise _refusal(name, error) from None
    return True


def _require_hub() -> None:
    """Raise `PromptmillError` (`missing_dependency`) if the hub's client is not installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise PromptmillError(
            Code.MISSING_DEPENDENCY,
            "Models of the hub need huggingface_hub, which is not installed.",
            f"Install it, or give the path of a model on this machine's disk, or {EMBEDDED}, which needs no "
            f"hub. {adding('hub')}",
        )


def _refusal(name: str, error: Exception) -> PromptmillError:
    """Return the error for a response that has no error class in the hub's client: mirrors send only a status."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in {401, 403}:
        return load_failure(
            f"The model hub refused {name}: the name is wrong, the model is private, or HF_TOKEN is not a valid token.",
            "Check the name and HF_TOKEN.",
        )
    if status == 429:
        return load_failure(
            f"The model hub refused {name} for now: too many requests.",
            "Set HF_TOKEN, or try again later.",
        )
    reason = type(error).__name__ if status is None else f"status {status}"
    return load_failure(f"The model hub did not answer for {name}: {reason}.", "Try again later.")


def _hub_answers(endpoint: str) -> bool:
    try:
        urllib.request.build_opener().open(endpoint, timeout=_HUB_PATIENCE_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def load_failure(message: str, hint: Words | None = None) -> PromptmillError:
    """Return the error for a model that cannot be loaded."""
    return PromptmillError(Code.ENGINE_LOAD_FAILED, message, hint)


def require_packages(extra: str, *names: str, size: str = "", instead: str = "") -> None:
    """Raise `PromptmillError` (`missing_dependency`) if packages of `extra` are not installed. Import nothing.

    `size`: the size of the packages, as text. `instead`: an alternative without the packages. The last line of the
    error is the command that installs the packages.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        lacks = f"{', '.join(missing)}; not installed{f' ({size})' if size else ''}"
        raise PromptmillError(
            Code.MISSING_DEPENDENCY,
            f"The {_BACKENDS.get(extra, extra)} backend needs {lacks}.",
            f"{f'Use {instead}, or add them. ' if instead else ''}{adding(extra)}",
        )


def in_known_words(text: str, *, trusted: bool) -> PromptmillError | None:
    """Return promptmill's error for `text`, the message of an exception; None for an unknown message.

    `trusted`: whether the model's own code may run.
    """
    if "trust_remote_code" in text and not trusted:
        return load_failure(
            "The model comes with Python code, which runs only if the operator allows it.",
            "If you trust its author, set `trust_remote_code: true` in the configuration file.",
        )
    explanation = next((words for sign, words in _KNOWN.items() if sign in text), None)
    return load_failure(*explanation) if explanation else None


def missing_package(error: Exception | str, extra: str) -> PromptmillError:
    """Return the error for a model that needs a missing package. `error`: the error of the import."""
    return PromptmillError(
        Code.MISSING_DEPENDENCY,
        f"The model needs a package that is not installed: {first_sentence(error)}",
        f"{adding(extra)}, or install the named package.",
    )
