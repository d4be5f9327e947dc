"""Arguments as UltraRAG's generation server reads them, put into the words of our tools.

Its source: OpenBMB/UltraRAG, `servers/generation/src/generation.py` (0.3.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.config.parameter_names import without_litellm
from promptmill.core.errors import input_error
from promptmill.core.wording import shape

_ROLES = frozenset({"user", "assistant", "system"})
_AT_LEAST_ONE = ("concurrency", "retries")


def initial(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `generation_init`, and what to tell about them."""
    adapted, told = without_litellm(arguments), []
    blocks = adapted.get("backend_configs")
    block = blocks.get("openai") if isinstance(blocks, Mapping) else None
    if isinstance(blocks, Mapping) and isinstance(block, Mapping):
        block = {key: value for key, value in block.items() if value is not None}
        for key in _AT_LEAST_ONE:
            if _is_nothing(block.get(key)):
                block[key] = 1
                told.append(f"backend_configs.openai.{key}: 0 would send nothing; it counts as 1.")
        adapted["backend_configs"] = {**blocks, "openai": block}
    return adapted, told


def _is_nothing(value: object) -> bool:
    try:
        return value is not None and int(str(value)) < 1
    except ValueError:
        return False


def texts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate`: every prompt is the text of a user's turn, without white space around it."""
    return {**arguments, "prompt_ls": _prompts(arguments), "system_prompt": _stripped(arguments.get("system_prompt"))}


def with_images(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `multimodal_generate` as whole messages, and what to tell about them.

    Images go before the text or to their tags; empty names are passed over; too few lists are filled up, those that
    are too many left out. Raises `PromptmillError` when a prompt has more tags than images, or fewer.
    """
    prompts, lists, told = _prompts(arguments), arguments.get("multimodal_path") or [], []
    tag = _stripped(arguments.get("image_tag"))
    if not isinstance(lists, list):
        return dict(arguments), []  # refused by the tool
    if len(lists) != len(prompts):
        rest = "prompts without one have no image" if len(lists) < len(prompts) else "the rest was left out"
        told.append(f"multimodal_path has {len(lists)} lists for {len(prompts)} prompts; {rest}.")
    messages = []
    for index, prompt in enumerate(prompts):
        names = _names(lists[index] if index < len(lists) else [])
        parts = _at_tags(prompt, names, tag, index) if tag else [*_images(names), _text(prompt)]
        # a turn without a part cannot be sent
        messages.append({"role": "user", "content": parts or [_text("")]})
    adapted = {
        "prompt_ls": messages,
        "multimodal_path": [[] for _ in messages],
        "system_prompt": _stripped(arguments.get("system_prompt")),
    }
    return {**arguments, **adapted, "image_tag": None}, told


def conversation(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of `multiturn_generate`, or None when there is nothing to answer.

    Turns of unknown roles and empty ones are passed over; a system prompt goes before those of the conversation.
    """
    turns = arguments.get("messages")
    if not isinstance(turns, list):
        return dict(arguments)
    system = _stripped(arguments.get("system_prompt"))
    kept: list[Any] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        if not isinstance(turn, Mapping):
            kept.append(turn)  # refused by the tool
            continue
        role, content = turn.get("role", "user"), turn.get("content", "")
        if role in _ROLES and content:
            kept.append({"role": role, "content": content if isinstance(content, str | list) else str(content)})
    if all(isinstance(turn, Mapping) and turn["role"] == "system" for turn in kept):
        return None
    return {**arguments, "messages": kept, "system_prompt": ""}


def _prompts(arguments: Mapping[str, Any]) -> list[str]:
    items = arguments.get("prompt_ls")
    items = [items] if isinstance(items, str) else items
    if not isinstance(items, list):
        raise input_error(f"prompt_ls is {shape(items)}; send a list of prompts.")
    return [str(_prompt(item, index)).strip() for index, item in enumerate(items)]


def _prompt(item: object, index: int) -> object:
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping):
        content = item.get("content")
        if isinstance(content, Mapping) and "text" in content:
            return content["text"]
        if isinstance(content, str):
            return content
        if "text" in item:
            return item["text"]
    raise input_error(f'prompt_ls[{index}] is {shape(item)}. Send a text, {{"content": "…"}} or {{"text": "…"}}.')


def _names(entry: object) -> list[str]:
    entry = [entry] if isinstance(entry, str) else entry
    return [str(name).strip() for name in entry] if isinstance(entry, list) else []


def _at_tags(prompt: str, names: Sequence[str], tag: str, index: int) -> list[dict[str, Any]]:
    texts_between = prompt.split(tag)
    if len(texts_between) - 1 != len(names):
        raise input_error(
            f"prompt_ls[{index}] holds the image tag {len(texts_between) - 1} time(s) but comes with {len(names)} "
            "image(s); send as many images as tags."
        )
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts_between):
        if text.strip():
            parts.append(_text(text))
        parts += _images(names[number : number + 1])
    return parts


def _images(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": name}} for name in names if name]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _stripped(value: object) -> str:
    return str(value or "").strip()
