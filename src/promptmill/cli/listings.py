"""`promptmill models` and `features`: list models, providers and features; also shows the size of the answer cache."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from promptmill.backends import registry
from promptmill.cli.terminal import columns, say
from promptmill.config import backends
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import PromptmillError, config_error, redact
from promptmill.core.feature import WITHOUT, Feature, features, hidden, part
from promptmill.core.wording import counted, cut
from promptmill.service import choosing
from promptmill.service.model import TOY
from promptmill.service.service import Service
from promptmill.steps.cached import AnswerCache, path_of
from promptmill.steps.prices import of_a_million, price_of
from promptmill.system import runtime

_NAME_WIDTH, _URL_WIDTH = 12, 58  # widths in the list of providers when stdout is no terminal
_SHORTEST_URL = 10
_MODEL_WIDTH = 24
_WAYS = MappingProxyType(
    {
        "commands": "{}",
        "options": "{}",
        "backends": "--backend {}",
        "files": "files {}",
        "apis": "serve --http: {}",
        "tools": "over MCP {}",
        "python": "in Python {}",
        "variables": "variables {}",
    }
)
"""Words around the names that a user types for a feature, by kind."""


def show_features(arguments: argparse.Namespace) -> int:
    """Print each feature with the names that a user types for it, and how to hide a feature. Return 0."""
    from promptmill.steps.chain import steps_of_features  # imported on use: the import takes 0.1 s

    steps_of_features()
    backends.installed()  # both calls raise an error for a clashing feature of another package
    found, without = features(), hidden()
    if arguments.json:
        shown = [(name, each, name in without) for name, each in {**found, **without}.items()]
        facts = [{"name": name, "words": each.words, "hidden": gone, **uses_of(each)} for name, each, gone in shown]
        say(orjson.dumps(facts).decode())
        return 0
    width = max(map(len, found), default=0)
    for name, feature in found.items():
        say(f"{name:{width}}  {feature.words}", wrap=True)
        uses = [_WAYS[kind].format(", ".join(names)) for kind, names in uses_of(feature).items()]
        if uses:
            say(f"{'':{width}}  {'; '.join(uses)}", wrap=True)
    hides = f"{WITHOUT}=NAME,… hides some of them, {WITHOUT}=all every one."
    say(f"{counted(len(found), 'feature')}. {hides}", wrap=True)
    if without:
        say(f"Hidden here: {', '.join(without)}.", wrap=True)
    return 0


def uses_of(feature: Feature) -> dict[str, list[str]]:
    """Return the names that a user types for a feature, by kind (the keys of `_WAYS`)."""
    options = [option.name_on("flag") for option in (part(feature.options) if feature.options else ())]
    functions = [f"promptmill.{name}" for name in feature.names if name.islower() or name.startswith("api.")]
    uses = {
        "commands": [
            *(f"promptmill {each.name}" for each in feature.commands),
            *(f"promptmill jobs JOB --{each.names[0]}" for each in feature.job_actions),
        ],
        "options": [*filter(None, options), *(["--sql"] if feature.query else [])],
        "backends": [*feature.backends],
        "files": [name for each in feature.formats for name in (*each.names, *each.only_read)],
        "apis": [each.words for each in feature.faces],
        "tools": re.findall(r"`(\w+)`", feature.instructions),
        "python": functions,
        "variables": [] if feature.observation is None else [f"{feature.observation.variables}…"],
    }
    return {kind: each for kind, each in uses.items() if each}


def show_models(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Print the configuration's models, the default first; with an option for an endpoint, print the endpoint's models.

    Return 0. Raises `PromptmillError` (`invalid_config`) if the endpoint lists no models.
    """
    if arguments.base_url or arguments.provider:
        ends = runtime.run(choosing.models_at(configuration.config))
        if not ends:
            option = f"--base-url {arguments.base_url}" if arguments.base_url else f"--provider {arguments.provider}"
            raise config_error(option, f"there is no list of models. Run: promptmill models --check {option}")
        shown = "\n".join(f"{name}  {end}".rstrip() for name, end in ends.items())
        named = [{"name": name} | ({"end": end} if end else {}) for name, end in ends.items()]
        say(orjson.dumps(named).decode() if arguments.json else shown)
        return 0
    service = Service(configuration)
    described = service.described(service.models)
    found = [{**one, **({} if "reason" in one else _facts_of(service.config_of(one["name"])))} for one in described]
    if arguments.json:
        say(orjson.dumps(found).decode())
        return 0
    width = min(_MODEL_WIDTH, columns(sys.stdout) // 3)
    for model in found:
        name = f"{model['name']}{' (default)' if model['is_default'] else ''}"
        if "reason" in model:
            say(f"{name:{width}} {model['reason']}", wrap=True)
            continue
        fallback = f", then {', '.join(model['fallback'])}" if "fallback" in model else ""
        where = model.get("provider") or ", ".join(model.get("addresses", ()))
        facts = [model["model"] or "no model named", _shown_price(model.get("price")), where and f"at {where}"]
        end = f"; it {model['end']}" if "end" in model else ""
        say(f"{name:{width}} {model['backend']:9} {' '.join(filter(None, facts))}{fallback}{end}", wrap=True)
    if configuration.config.is_embedded:
        say(f"promptmill: {TOY} Choose one with: promptmill init", sys.stderr, wrap=True)
    return 0


def _facts_of(config: ModelConfig) -> dict[str, Any]:
    """Return `end` (in words), `price` (`input` and `output`, in US dollars per million tokens), `provider` and
    `addresses`, as far as they are known."""
    end = registry.end_of(config)
    facts: dict[str, Any] = {} if end is None else {"end": end.words()}
    if (price := of_a_million(price_of(config))) is not None:
        facts["price"] = price
    with contextlib.suppress(PromptmillError):  # raised for settings that cannot work
        facts |= {"provider": provider} if (provider := registry.known_provider(config)) else {}
        urls = [redact(f"{url.scheme}://{url.netloc}") for url in registry.addresses(config)]
        facts |= {"addresses": urls} if urls else {}
    return facts


def _shown_price(price: Mapping[str, float] | None) -> str:
    """Return `$0.1/$0.4`, the price of a million tokens in and out; `""` if it is unknown."""
    return "" if price is None else f"${price['input']:g}/${price['output']:g}"


def show_providers(arguments: argparse.Namespace) -> int:
    rows = registry.providers()
    if arguments.json:
        say(orjson.dumps([row._asdict() for row in rows], option=orjson.OPT_INDENT_2).decode())
        return 0
    facts = [f"{_key(row)}{_batches(row)}" for row in rows]
    room = _URL_WIDTH
    if sys.stdout.isatty():
        left = columns(sys.stdout) - _NAME_WIDTH - 2
        if left < max(map(len, facts)) - 1:  # a narrow terminal shows only the keys
            facts = [_key(row) for row in rows]
        room = left - max(map(len, facts))
    for row, fact in zip(rows, facts, strict=True):
        url = f" {cut(row.base_url or 'needs base_url', room):{room}}" if room >= _SHORTEST_URL else ""
        say(f"{row.provider:{_NAME_WIDTH}}{url} {fact}", wrap=True)
    return 0


def _key(row: registry.Listed) -> str:
    return f"{row.key_env} ({'set' if row.key_is_set else 'not set'})" if row.key_env else "no key"


def _batches(row: registry.Listed) -> str:
    saved = "" if row.batch_discount is None else f" {row.batch_discount:.0%} off".replace("%", " %")
    return f", batches{saved}" if row.batches else ""


def show_cache(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Print the size of the configured cache; with `--clear`, clear it first. Return 0.

    Raises `PromptmillError` (`storage`).
    """
    wanted = configuration.config.operator.cache
    found: dict[str, Any] = {"in_use": bool(wanted)}
    path = path_of(wanted or True)
    if path.exists():
        cache = AnswerCache(path)
        try:
            if arguments.clear:
                found["cleared"] = cache.clear()
            found |= cache.summary()
        finally:
            cache.close()
    else:
        found |= {"path": str(path), "answers": 0, "bytes": 0, "oldest_s": None}
    if arguments.json:
        say(orjson.dumps(found).decode())
        return 0
    if arguments.clear:
        say(f"{counted(found.get('cleared', 0), 'answer')} forgotten")
    say(f"{counted(found['answers'], 'answer')}, {found['bytes'] / 2**20:.1f} MiB, in {found['path']}")
    if not wanted:
        say("not in use: set `cache: true`")
    return 0
