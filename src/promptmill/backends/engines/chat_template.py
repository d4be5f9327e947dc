"""Chat templates, which convert turns to the text of a prompt; and the prompt for models without a template."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from promptmill.core.errors import PromptmillError, first_line, input_error
from promptmill.core.request import SYSTEM_ROLES
from promptmill.core.values import JsonDict, JsonObject

NO_TEMPLATE = (
    "The model has no chat template: a lone user turn goes in as plain text, several turns as `User: …` and "
    "`Assistant: …`. For chats use an instruction-tuned model."
)


_MARK = "CONTINUE_FINAL_MESSAGE"
"""A text that is written after the last turn, to find where that turn ends."""


class ChatTemplate:
    """A template from a model's files. It is untrusted code and runs in a sandbox."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """`tokens`: the special tokens that templates use: `bos_token`, `eos_token`, `pad_token`.

        Raises `jinja2.TemplateError` for an invalid template.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: dt.datetime.now().astimezone().strftime(form)
        self.source = source
        self._tokens = dict(tokens)
        self._template = environment.from_string(source)

    def render(self, turns: Sequence[JsonObject], options: JsonObject) -> str:
        """Return the prompt for `turns`. Raises the template's own errors.

        With the option `continue_final_message`, the prompt ends with the text of the last turn, as in transformers.
        """
        continues = options.get("continue_final_message")
        if continues and options.get("add_generation_prompt"):
            raise jinja2.TemplateError("continue_final_message needs add_generation_prompt: false")
        if continues:
            *earlier, last = turns
            if not isinstance(last.get("content"), str):
                raise jinja2.TemplateError("continue_final_message needs a text as the last turn")
            turns = [*earlier, {**last, "content": f"{last['content']}{_MARK} "}]
        text: str = self._template.render(
            messages=turns, **{**self._tokens, "tools": None, "documents": None, **options}
        )
        if not continues:
            return text
        before, mark, after = text.rpartition(_MARK)
        if not mark:
            raise jinja2.TemplateError("it leaves out the last turn, which continue_final_message continues")
        return before if after.startswith(" ") else before.rstrip()  # if the space is gone, the template strips texts


class _Generation(Extension):  # type: ignore[misc]
    """Ignores `{% generation %}…{% endgeneration %}`, which marks the model's own text for training."""

    tags = frozenset({"generation"})

    def parse(self, parser: Parser) -> list[Node]:
        """Return the nodes inside the block."""
        next(parser.stream)
        inside: list[Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return inside


def _to_json(value: Any, *, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter would escape HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def prompt_text(
    turns: list[JsonDict],
    template: str | None,
    render: Callable[[list[JsonDict]], str],
    warnings: list[str],
) -> tuple[str, bool]:
    """Return the prompt for `turns`, and whether the tokenizer should add its special tokens to it.

    `template`: the model's template; None if the model has none. `render`: applies the template. Raises
    `PromptmillError` (`invalid_input`) if the template refuses the conversation.
    """
    if template is None:
        warnings.append(NO_TEMPLATE)
        return plain_text(turns), True
    if "developer" not in template:  # the role `developer` is OpenAI's newer name of `system`; most templates lack it
        turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
    refused: Exception | None = None
    for asked in (turns, without_system(turns)):
        try:
            return render_turns(render, asked), False
        except Exception as error:
            refused = refused or error
    raise _refusal(refused or Exception())


def without_system(turns: list[JsonDict]) -> list[JsonDict]:
    """Return the turns, with the system prompt moved to the beginning of the first user turn. See also
    `Conversation.without_system`."""
    if len(turns) < 2 or (turns[0]["role"], turns[1]["role"]) != ("system", "user"):
        return turns
    system, asked = (
        one["content"] if isinstance(one["content"], list) else [{"type": "text", "text": one["content"]}]
        for one in turns[:2]
    )
    content: Any = [*system, {"type": "text", "text": "\n\n"}, *asked]
    if all(isinstance(one["content"], str) for one in turns[:2]):
        content = f"{turns[0]['content']}\n\n{turns[1]['content']}"
    return [{**turns[1], "content": content}, *turns[2:]]


def _refusal(error: Exception) -> PromptmillError:
    return input_error(
        f"The model's chat template refused this conversation: {first_line(error)}.",
        hint="Change the order or the roles of the turns, or `chat_template_kwargs`.",
    )


def render_turns(render: Callable[[list[JsonDict]], str], turns: list[JsonDict]) -> str:
    """Render `turns`, whose tool calls have their arguments as JSON texts, as in OpenAI's format.

    Most chat templates need arguments as objects; templates that need texts, such as DeepSeek's, get texts. If the
    arguments that a model wrote are no object, a template that needs objects gets `{"arguments": …}`.
    """
    for read in (_loaded, lambda arguments: arguments, _object):
        try:
            return render([_with_arguments(turn, read) for turn in turns])
        except TypeError as error:
            refused = error
    raise refused


def _with_arguments(turn: JsonDict, read: Callable[[Any], Any]) -> JsonDict:
    if not isinstance(turn.get("tool_calls"), list):
        return turn
    return {**turn, "tool_calls": [_read_call(call, read) for call in turn["tool_calls"]]}


def _read_call(call: Any, read: Callable[[Any], Any]) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    return {**call, "function": {**function, "arguments": read(function.get("arguments"))}}


def _loaded(arguments: Any) -> Any:
    try:
        return json.loads(arguments or "{}") if isinstance(arguments, str | None) else arguments
    except ValueError:  # the model wrote invalid JSON
        return arguments


def _object(arguments: Any) -> Any:
    value = _loaded(arguments)
    if isinstance(value, dict):
        return value
    return {} if value is None else {"arguments": value}


def text_turn(message: JsonObject) -> JsonDict:
    """Return `message` with its content joined to one text, for templates of text models."""
    content = message["content"]
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    return {**message, "content": content or ""}


def plain_text(turns: Sequence[JsonObject]) -> str:
    """Return the prompt for `turns` if the model has no template. The contents of the turns are texts."""
    if [turn["role"] for turn in turns if turn["role"] not in SYSTEM_ROLES] == ["user"]:
        return "\n\n".join(turn["content"] for turn in turns if turn["content"])
    names = {"user": "User: ", "assistant": "Assistant: ", "tool": "Tool: "}
    return "\n\n".join([*(names.get(turn["role"], "") + turn["content"] for turn in turns), "Assistant:"])
