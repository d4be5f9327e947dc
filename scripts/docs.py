"""Write the reference pages in docs/, the skill and the keywords of Python in the package, from what they describe.

A test compares them.
"""

from __future__ import annotations

import asyncio
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from promptmill.backends.openai.dialects.anthropic import DEFAULT_TOKENS
from promptmill.backends.openai.providers import PROFILES, READ
from promptmill.config.configuration import Configuration
from promptmill.config.settings import BackendConfigs, ModelSettings, Settings
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Sampling
from promptmill.files.format_table import all_formats
from promptmill.options.option import Option, sentence, spelled
from promptmill.options.table import groups, options
from promptmill.server.listed_tools import rare_names
from promptmill.server.mcp_app import create_server
from promptmill.service.service import Service

_WRAPPER = textwrap.TextWrapper(120, break_long_words=False, break_on_hyphens=False)
DOCS = Path(__file__).parent.parent / "docs"
WORDS = {str: "text", int: "number", float: "number", bool: "true/false", SecretStr: "text", type(None): "null"}


def configuration() -> str:
    """Return docs/configuration.md."""
    parts = [
        "# Configuration: `parameter.yaml`",
        "Read from `--config PATH`, else `PROMPTMILL_CONFIG`, `./parameter.yaml`, the user's configuration folder, or "
        "the file that comes with promptmill: the first that exists. `--backend NAME` and `--set key.path=value` override "
        "it. `${VAR}` reads the environment, `${VAR:-default}` with a default. An unknown key is an error that "
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
        "The key of an endpoint comes from `api_key` or from the program `api_key_command` ([keys that "
        "expire](keys.md)), else from the variable that `api_key_env` names, else from `LLM_API_KEY`, else from `OPENAI_API_KEY`. A key from the environment goes only to an endpoint that you "
        "named: in the configuration file, in `PROMPTMILL_ENDPOINTS=host,…`, on this machine, or a known provider's over https. A "
        "`base_url` that only a call named gets no key, and not the file's `api_key` or `headers` either. "
        "`promptmill serve --trust-client` removes this limit for a client that is your own program. Which endpoints get "
        "[text of local files](bulk.md#which-files-a-call-may-use) is another question.",
        "As OpenAI's own client does, promptmill sends `OPENAI_ORG_ID` and `OPENAI_PROJECT_ID` to OpenAI beside your "
        "key, and the lines of `OPENAI_CUSTOM_HEADERS` (`NAME: VALUE`) to OpenAI and to an endpoint that you named and "
        "that is not another provider's, such as a gateway. The file's `headers` replace them.",
    ]
    return _page(parts)


def _page(parts: Iterable[str]) -> str:
    """Return a page of headings, tables, blocks and paragraphs; these are wrapped."""
    wrapped = (part if part.startswith(("#", "|", "```")) else _WRAPPER.fill(part) for part in parts)
    return "\n\n".join(wrapped) + "\n"


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
    return _page(
        [
            "# Error codes",
            'A failed item has the answer `""` and an entry in `errors`: `index`, `code`, `message`, `retryable`, '
            "`attempts`. If no item was answered, the call itself is an error that begins with the most frequent reason. "
            "promptmill has already retried where that helps; *try again?* states whether the same request may "
            "succeed later. This page is written by `scripts/docs.py`.",
            "\n".join(rows),
        ]
    )


_THINKING = {
    "template": "`chat_template_kwargs`",
    "top_level": "`enable_thinking`",
    "type_object": "`thinking: {type}`",
    "effort": "`reasoning_effort: none`",
    "refused": "",
}
_JSON = {
    "schema": "schema",
    "strict": "strict schema",
    "grammar": "schema for a grammar",
    "object": "object",
    "words": "in words",
}


def providers() -> str:
    """Return docs/providers.md."""
    rows = ["| `provider` | `base_url` | the key's variable |", "|---|---|---|"]
    for profile in PROFILES:
        if profile.decisions is not None:
            continue
        url = f"`{profile.site.base_url}`" if profile.site.base_url else "yours, as `base_url`"
        rows.append(
            f"| `{profile.name}` | {url} | {f'`{profile.site.key_env}`' if profile.site.key_env else 'none needed'} |"
        )
    return _page(
        [
            "# A provider, with your key",
            "Set the key in the provider's variable (see the table below), and name the provider and the model:",
            "```\nexport MISTRAL_API_KEY=…\npromptmill models --check --provider mistral --model mistral-small-latest\n"
            'promptmill generate --provider mistral --model mistral-small-latest "What is the capital of France?"\n'
            "promptmill bulk prompts.jsonl answers.jsonl --provider mistral --model mistral-small-latest\n```",
            "In a configuration file, which `promptmill init` writes after three questions:",
            "```yaml\nbackend: openai\nbackend_configs:\n  openai: {provider: mistral, model_name: mistral-small-latest}\n```",
            "Besides the address, promptmill knows the limits, errors, reasoning format and refused parameters of each provider. "
            "For any other OpenAI-compatible endpoint, use `--base-url URL` and `--key-env NAME`; a server with one "
            "model needs no `--model`. A provider's key is sent only to that provider "
            "([which key goes where](configuration.md#which-key-goes-where)).",
            "`anthropic` (also `claude`) and `google` (also `gemini`) are spoken to in their own APIs, Messages and "
            "generateContent; all others in OpenAI's chat completions. `dialect` of the `openai` block chooses another API: "
            "`openai` for chat completions, where the provider has them, `responses` for OpenAI's Responses API (nothing is "
            "stored there unless `extra_params: {store: true}`), `anthropic` or `gemini` for other servers that speak these, "
            "such as a `base_url` of https://api.deepseek.com/anthropic. A `base_url` that ends in `/messages`, "
            "`/responses` or `/anthropic/v1` says the same. `bedrock` has an address for each region, "
            "https://bedrock-runtime.REGION.amazonaws.com/openai/v1 or https://bedrock-mantle.REGION.api.aws/v1, and "
            "Claude at `…/anthropic/v1`; its key is a bearer token. Keys of an hour, of Vertex AI, Entra ID or Bedrock, come "
            "from a program: [keys that expire](keys.md). Prompts, images, tools, schemas, `max_tokens`, `stop`, `enable_thinking` and "
            "`reasoning_effort` keep their names and are translated; the API's own parameters go through as "
            "`extra_params`, such as `thinking: {type: enabled, budget_tokens: 4096}` or `safetySettings: […]`. Messages "
            f"requires a longest answer: without `max_tokens` it is {DEFAULT_TOKENS:,} tokens, and {2 * DEFAULT_TOKENS:,} where the model "
            "thinks. Schemas are enforced by the provider as far as its subset goes, and the rest is described in words; "
            "every answer is checked here all the same.",
            "`promptmill models --check` works in stages (configuration, URL, connection, TLS, key, models, a one-token call). It tries each "
            "stage once, takes at most 15 s, and stops at the first failure with a specific hint: TLS on a plain "
            "port, an untrusted certificate and how to trust it, the correct path, the nearest names of an unknown model.",
            "`backend: auto` uses the first of these that works: the endpoint of the `openai` block, a server on "
            "this machine at its usual address (or `OLLAMA_HOST`), a provider whose key is set and which has "
            "`model_name`, else the small model. The choice and its reason are in the log, in `_meta.chosen` and in the "
            "status, and stay the same until promptmill restarts. A server that was found in this way gets no key.",
            "Requests go through the proxy of `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY`, except those to this machine and to the "
            "hosts and networks in `NO_PROXY` (`.corp.example,10.0.0.0/8`). SOCKS proxies are not supported. "
            "`trust_env: false` ignores these variables.",
            "A waiting run reports the reason: `429 from api.example.com: rate limit, next try in 12 s (7 refusals so far); gives "
            "up in 1:48 (the setting patience)`, or `waiting for api.example.com since 0:14, next try in 8 s; gives up in 1:46 (the setting patience)`: "
            "an endpoint that has answered nothing for `patience` seconds is no longer used. `paced at 118 requests/s: the endpoint "
            "refused more` beside the rates means that requests are held back, because the endpoint counts them per second or "
            "minute. It needs no setting; `rpm` avoids the first refusals.",
            "\n".join(rows),
            *_of_decisions(),
            "`promptmill models --providers` lists all of them, too, and shows which keys are set. The supported parameters of each provider: "
            "[provider-rows.md](maintainers/provider-rows.md). This page is written by `scripts/docs.py`.",
        ]
    )


def _of_decisions() -> list[str]:
    """Return the section about models that decide."""
    rows = [
        "| `provider` | `dialect` | `base_url` | the key's variable | questions, options, levels | $ per million tokens |",
        "|---|---|---|---|---|---|",
    ]
    for profile in PROFILES:
        if (known := profile.decisions) is None:
            continue
        site, limits = profile.site, known.limits
        url = f"`{site.base_url}`" if site.base_url else f"yours, such as `{site.example}`"
        prices = ", ".join(
            f"{name or ('others' if len(known.prices) > 1 else 'all')} {price:g}"
            for name, price in known.prices.items()
        )
        numbers = f"{limits.questions:,}, {limits.options}, {limits.levels}"
        rows.append(f"| `{profile.name}` | `{profile.dialect}` | {url} | `{site.key_env}` | {numbers} | {prices} |")
    return [
        "## Models that decide",
        "TypeSafe's Jev, OpenAI's Decisions API and models like them read evidence and typed questions, and return the probability "
        "of each allowed answer in one pass. They write no text: they answer `choices`, `choices_many`, and schemas or fields "
        "of texts to choose from, booleans, lists of labels and whole numbers in a range of up to ten.",
        "```\nexport TYPESAFE_API_KEY=…\n"
        "promptmill bulk mails.csv teams.csv --provider typesafe --model jev-1.14.0 --choices billing,tech,other \\\n"
        "    --prompt 'Which team answers this mail? {{body}}'\n```",
        "All questions of a row are one request; more than the provider takes are several, with one answer. The row's columns are "
        "the evidence, by name; the system prompt, the words of the template (around places with filters and statements, too) and the "
        "descriptions of fields are the instructions; definitions of labels become descriptions of the options. A field that may be null has the option "
        "`not stated`. A field that may have any value is refused before the first request: leave it out, or name a chat "
        "model. Each answer is checked: its options, its probabilities, their sum, and whether the given option is the most "
        "probable one; a scale is read by the texts of its legend. A question that is declined, or whose answer is missing or inconsistent, fails its row by name; the "
        "row's other answers are kept, and nothing is asked twice, since the model would decide the same. Columns "
        "`probability` and `NAME_probability` have what the model reported.",
        "Such a model always gives one of the options: an option such as `other`, with a definition, is its only way to say that "
        "none fits, and `--dry-run` looks for one. Names like `jev-latest` mean another model from time to time: the one "
        "that answered is in `answered_by`, a note names it if it is not the one that was asked, and the end of a job says if "
        "it changed. Sounds, tools, quotes, `--together` and "
        "`--batch` are not for them; images go to `decisions` and `gemini-decisions`.",
        "Several APIs share the path `/decisions`, so the path never tells which one it is. For other addresses, such as a server of "
        "your own, set `dialect`: `decisions` (OpenAI's), `systemone` (TypeSafe's, spoken by most others) or "
        "`gemini-decisions`; a `base_url` may have the whole path.",
        "```yaml\nbackend: openai\nbackend_configs:\n"
        "  openai: {base_url: http://localhost:11434/v1, dialect: systemone, model_name: nimble}\n```",
        "vLLM's server decides with some models (0.32 and later) and takes 26 options to a question; evidence goes to it as text if "
        "it refuses JSON. With its other models it answers 501, and the job ends: leave `dialect` out, so that the model writes "
        "the answer.",
        "The price is that of the input, and what they write is free: `--max-cost` needs no `max_tokens`. Refusals other than 408, 429 "
        "and those of the server (5xx) are final.",
        "\n".join(rows),
    ]


def provider_rows() -> str:
    """Return docs/maintainers/provider-rows.md."""
    rows = [
        "| `provider` | speaks | thinking off | JSON | web images | leaves out | its page |",
        "|---|---|---|---|---|---|---|",
    ]
    for profile in PROFILES:
        if profile.decisions is not None:  # docs/providers.md has them
            continue
        cells = [
            f"`{profile.name}`",
            f"`{profile.dialect}`",
            _THINKING[profile.thinking.switch],
            _JSON[profile.json.form],
            "yes" if profile.images.from_web else "no",
        ]
        cells += [", ".join(f"`{name}`" for name in sorted(profile.parameters.refused)), profile.site.page]
        rows.append(f"| {' | '.join(cells)} |")
    return _page(
        [
            "# Parameters of the providers",
            "*Speaks* is the dialect of requests unless `dialect` names another; the other columns are about chat "
            "completions. *Thinking off* is the parameter that `enable_thinking: false` becomes. Without one, and for models that always think "
            "(`qwq`, `…-thinking`, `deepseek-r1`, MiniMax-M2, …), it is left out with a warning. *JSON* is the form in "
            "which a schema is sent. If *web images* is no, use files or set `fetch_images: true`. The parameters in "
            "*leaves out* are left out with a warning, or cause an error with `unsupported: error`. All rows were last "
            f"compared with their pages on {READ}. This page is written by `scripts/docs.py`.",
            "\n".join(rows),
        ]
    )


def skill() -> str:
    """Return the skill that the server offers to agents: a section of docs/agents.md, with a head and the options."""
    page = (DOCS / "agents.md").read_text(encoding="utf-8")
    section = page.partition("<!-- skill -->\n")[2].partition("<!-- end of skill -->")[0]
    return SKILL_HEAD + section + asyncio.run(_options())


async def _options() -> str:
    """Return the arguments of the tools that are keys of `options`."""
    lines = ['**`options`** has the rare arguments of a tool, such as `"options": {"dedupe": true}`:\n']
    for tool in await create_server(Service(Configuration({}))).list_tools(run_middleware=False):
        if rare := [*rare_names(tool.parameters)]:
            lines.append(f"\n{tool.name}:\n")
        lines += [_item(name, tool.parameters["properties"][name]["description"]) for name in rare]
    lines.append("\n**`sampling_params`** has these keys. The model or endpoint decides about the others:\n")
    lines += [_item(name, field.description or "") for name, field in Sampling.model_fields.items()]
    return "\n".join(lines) + "\n"


def _item(name: str, words: str) -> str:
    words = words.removesuffix(".")
    line = f"`{name}`: {words[:1].lower()}{words[1:]}"
    return textwrap.fill(line, 120, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def formats() -> str:
    """Return docs/bulk-details.md, whose first table has the formats of files."""
    page = (DOCS / "bulk-details.md").read_text(encoding="utf-8")
    before, _, rest = page.partition("<!-- formats -->\n")
    rows = ["| input | a row is | output | calls |", "|---|---|---|---|"]
    for each in all_formats():
        is_read, is_written = (one or bool(each.store) for one in (each.is_read, each.is_written))
        if each.names and (is_read or is_written):
            files = ", ".join(f"`{name}`" for name in (*each.names, *each.only_read))
            extra = f" (the extra `{each.extra}`)" if each.extra else ""
            words = each.words or "a row"
            output = f"`{each.names[0]}{'#TABLE' if each.database else ''}`" if is_written else NONE
            calls = {"input": each.is_read_by_calls, "output": each.is_written_by_calls}
            named = " and ".join(use for use, is_for_calls in calls.items() if is_for_calls) or NONE
            row = (f"{files}{extra}" if is_read else NONE, words if is_read else NONE, output, named)
            rows.append(f"| {' | '.join(row)} |")
    listed = "\n".join(rows)
    return f"{before}<!-- formats -->\n\n{listed}\n\n{rest[rest.index('<!-- end of formats -->') :]}"


def names() -> str:
    """Return docs/names.md, whose first table has the options of a job."""
    page = (DOCS / "names.md").read_text(encoding="utf-8")
    row = "| the file for the answers |"
    before, line, after = page.partition(row)
    first, _, rest = after.partition("\n")
    rows = "".join(_row(option) for group in groups() for option in group.options)
    return f"{before}{line}{first}\n{rows}\n{rest.partition(NEXT)[1]}{rest.partition(NEXT)[2]}"


def _row(option: Option) -> str:
    flags = [] if option.flag is None else [str(option.name_on("flag")), *option.flag.name.split()[:-1]]
    within = option.argument.within if option.argument is not None else ""
    cells = [
        spelled(option.words, None, options()),
        *([f"`{name}`" for name in part if name] for part in (flags, [within or option.name_on("argument")])),
        [f"`{name}`" for name in [option.name_on("keyword")] if name],
        [f"`{key}`" for key in option.keys],
    ]
    return f"| {' | '.join(cell if isinstance(cell, str) else ', '.join(cell) for cell in cells)} |\n".replace(
        "  ", " "
    )


def keywords() -> str:
    """Return the module with Python's keywords, with a class for each group name."""
    named, classes = options(), dict[str, list[str]]()
    for group in groups():
        for option in group.options:
            if option.keyword is not None:
                words = sentence(option.words_on("keyword", named))
                lines = classes.setdefault(group.name, [])
                lines += [f"    {option.name_on('keyword')}: {_annotation(option)}", *_documented(words)]
    parts = [KEYWORDS_HEAD]
    for name, lines in classes.items():
        parts += [f'\n\nclass {_class_of(name)}(TypedDict, total=False):\n    """Options: {name}."""\n\n', *lines]
    bases = "".join(f"    {_class_of(name)},\n" for name in classes)
    words = "The options of a call. None has the same effect as omitting the option."
    return "".join([*parts, f'\n\nclass BulkOptions(\n{bases}    total=False,\n):\n    """{words}"""\n'])


def _class_of(name: str) -> str:
    return f"{name.title().replace('_', '')}Options"


def _documented(words: str) -> Iterator[str]:
    lines = textwrap.wrap(words, 120 - len('    """"""'), break_long_words=False, break_on_hyphens=False)
    text = "\n    ".join(lines).replace('"', '\\"')
    yield f'\n    """{text}"""\n'


def _annotation(option: Option) -> str:
    if option.keyword is not None and option.keyword.type:
        return option.keyword.type
    name = _source_of(option.type)
    return name if option.default is not None else f"{name} | None"


def _source_of(kind: object) -> str:
    """Return a type as Python source."""
    if typing.get_origin(kind) is typing.Literal:
        values = ", ".join(map(json.dumps, typing.get_args(kind)))
        return f"Literal[{values}]"
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " | ".join(map(_source_of, typing.get_args(kind)))
    if kind is types.NoneType:
        return "None"
    return MODULES.sub("", kind.__name__ if type(kind) is type else str(kind))


NONE = "\N{EN DASH}"
NEXT = "`system_prompt` has this name"
MODULES = re.compile(r"\b(?:typing|collections\.abc|pathlib)\.")
KEYWORDS_HEAD = '''\
"""The keywords of `promptmill.bulk` and its variants, for editors. Written by `scripts/docs.py` from the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from promptmill.answers.response_format import AnswerType
'''
SKILL_HEAD = """\
---
name: promptmill
description: >-
  Answer a file of prompts, label a table, extract fields by a schema, or compare models with promptmill's tools. Use it
  before work on more than a few prompts.
---

# promptmill

"""
PAGES = {
    "configuration.md": configuration,
    "errors.md": errors,
    "providers.md": providers,
    "maintainers/provider-rows.md": provider_rows,
    "bulk-details.md": formats,
    "names.md": names,
    "../src/promptmill/options/keywords.py": keywords,
    "../src/promptmill/server/SKILL.md": skill,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
