"""Write the reference pages in docs/ from settings, error codes and provider rows themselves; a test compares them."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from promptmill.backends.openai.providers import DIALECTS
from promptmill.config.settings import BackendConfigs, ModelSettings, Settings
from promptmill.core.errors import Code, PromptmillError

DOCS = Path(__file__).parent.parent / "docs"
WORDS = {str: "text", int: "number", float: "number", bool: "true/false", SecretStr: "text", type(None): "null"}


def configuration() -> str:
    """Return docs/configuration.md."""
    parts = [
        "# Configuration: `parameter.yaml`",
        "Read from `--config PATH`, else `PROMPTMILL_CONFIG`, `./parameter.yaml`, the user's configuration folder, or "
        "the file that comes with promptmill: the first that exists. `--backend NAME` and `--set key.path=value` lie "
        "over it. `${VAR}` reads the environment, `${VAR:-default}` with a default. An unknown key is an error that "
        "names the nearest known one. This page is written by `scripts/docs.py` from the settings themselves.",
        "## Top level",
        table(Settings, skip={"backend_configs", "sampling_params"}),
        "## `sampling_params`",
        table(Settings.model_fields["sampling_params"].annotation),
    ]
    for name, field in BackendConfigs.model_fields.items():
        parts += [f"## `backend_configs.{name}`", (field.annotation.__doc__ or "").strip(), table(field.annotation)]
    parts += ["## `models.NAME`", (ModelSettings.__doc__ or "").strip(), table(ModelSettings)]
    parts += [
        "## Which key goes where",
        "The key of an endpoint comes from `api_key`, else from the variable that `api_key_env` names, else from "
        "`LLM_API_KEY`, else from `OPENAI_API_KEY`. A key from the environment goes only to an endpoint that you "
        "named: in the configuration file, in `PROMPTMILL_ENDPOINTS=host,…`, on this machine, or a known provider's over https. A "
        "`base_url` that only a call named gets none, and neither does it get the file's `api_key` or `headers`. "
        "`promptmill serve --trust-client` lifts that for a client that is your own program.",
    ]
    return "\n\n".join(parts) + "\n"


def table(model: Any, skip: frozenset[str] | set[str] = frozenset()) -> str:
    """Return a model's keys as a table."""
    rows = ["| key | default | what | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in skip:
            rows.append(f"| `{name}` | {default(field)} | {kind(field.annotation)} | {field.description or ''} |")
    return "\n".join(rows)


def default(field: Any) -> str:
    """Return a field's default in YAML's words."""
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"`{list(value) if isinstance(value, tuple) else value!r}`".replace("'", '"')


def kind(annotation: Any) -> str:
    """Return a type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind(inner[0])
    if origin in {types.UnionType, typing.Union}:
        return " or ".join(dict.fromkeys(kind(part) for part in inner if part is not type(None)))
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in {list, tuple}:
        return f"list of {kind(inner[0])}s"
    if origin is dict:
        return "object"
    return WORDS.get(annotation, "object")


def errors() -> str:
    """Return docs/errors.md."""
    rows = ["| code | try again? | what to do |", "|---|---|---|"]
    for code in Code:
        error = PromptmillError(code, "")
        rows.append(f"| `{code}` | {'yes' if error.retryable else 'no'} | {error.hint} |")
    return (
        "\n\n".join(
            [
                "# Error codes",
                'A failed item has the answer `""` and an entry in `errors`: `index`, `code`, `message`, `retryable`, '
                "`attempts`. When no item was answered the call itself is an error that says the commonest reason first. "
                "promptmill has already tried again where that helps; *try again?* says whether the same request may "
                "succeed later. This page is written by `scripts/docs.py`.",
                "\n".join(rows),
            ]
        )
        + "\n"
    )


_THINKING = {
    "template": "`chat_template_kwargs`",
    "top_level": "`enable_thinking`",
    "type_object": "`thinking: {type}`",
    "effort": "`reasoning_effort: none`",
    "refused": "",
}
_JSON = {"schema": "schema", "strict": "strict schema", "object": "object", "words": "in words"}


def providers() -> str:
    """Return docs/providers.md."""
    rows = ["| `provider` | address | key | thinking off | JSON | images from the web | its page, read on |"]
    rows.append("|---|---|---|---|---|---|---|")
    rows += [
        f"| `{row.name}` | {f'`{row.base_url}`' if row.base_url else 'give `base_url`'} "
        f"| {f'`{row.key_env}`' if row.key_env else 'none'} | {_THINKING[row.thinking]} | {_JSON[row.json_form]} "
        f"| {'yes' if row.images == 'url' else 'no'} | {row.page}{f', {row.read}' if row.read else ''} |"
        for row in DIALECTS
    ]
    return "\n\n".join([*PROVIDERS, "\n".join(rows)]) + "\n"


PROVIDERS = (
    "# Providers and servers",
    "**A server of yours** needs its address alone, when it has one model; when it has several, the error lists them. "
    "promptmill finds out which server it is (Ollama, LM Studio, vLLM, SGLang, llama.cpp, text-generation-inference).",
    '```bash\npromptmill generate --base-url localhost:11434 "What is the capital of France?"\n```',
    "**A provider** is a row of the table below: `--provider NAME --model MODEL`, or `provider: NAME` in the `openai` block. Its "
    "key comes from the variable of the row and goes to that provider's own host alone; `promptmill providers` says "
    "which are set. Any other endpoint that speaks OpenAI's chat completions works with `base_url` and `model_name`.",
    "**`backend: auto`** takes the first that works: the endpoint that the `openai` block names, a server that runs on this "
    "machine at its usual address (`OLLAMA_HOST` counts), a provider whose key is set and which has `model_name`, else the "
    "embedded model. What was chosen and why stands in the log, in `_meta.chosen` and in the status, and does not change "
    "until promptmill is started again. A server that was found gets no key: name it as `base_url` to send one.",
    "**`promptmill check`** goes by stages, each attempted once, all within 15 s, and stops at the first that fails with "
    "a hint that fits it: a plain port asked with TLS, a certificate that is not trusted and how to trust it, a wrong "
    "path and the right one, a key that was not sent, a quota that is used up, the nearest names of an unknown model.",
    "```\n"
    "ok    configuration: /home/you/parameter.yaml\n"
    "ok    backend: openai, no model named\n"
    "ok    URL: http://localhost:11434/v1/chat/completions (ollama)\n"
    "ok    connection: localhost:11434 in 1 ms\n"
    "ok    key: none is sent.\n"
    "ok    models: Ollama 0.9.0 has llama3.2:latest, context 4,096 tokens\n"
    "ok    answer: 1 token in 0.21 s\n"
    "```",
    "**While a run waits** it says why: `429 from api.example.com: rate limit, next try in 12 s (7 so far)`, or `waiting for "
    "api.example.com since 0:14, next try in 8 s`, in `generate`, `bulk` and in progress messages.",
    "*Thinking off* is what `enable_thinking: false` becomes; an empty cell means that the provider has no such switch, and "
    "models that always think (`qwq`, `…-thinking`, `deepseek-r1`, MiniMax-M2, …) have none anywhere: then a warning says so. "
    "*JSON* is the form in which a schema is asked for. A provider that fetches no images from the web needs files, or "
    "`fetch_images: true`. A row without a day was taken over from other clients and not compared since. This page is "
    "written by `scripts/docs.py`.",
)
PAGES = {"configuration.md": configuration, "errors.md": errors, "providers.md": providers}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
