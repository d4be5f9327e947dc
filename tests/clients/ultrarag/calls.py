"""Single calls of the generation tools, as pipelines and UltraRAG's users make them; data for both servers.

The endpoint answers by the model's name: see `model.answered`. Paths are relative to a checkout.
"""

from __future__ import annotations

from typing import Any

from model import BAD

IMAGES = ["data/page_0.png", "data/page_1.png"]
TINY = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


def cases(url: str) -> list[dict[str, Any]]:
    """Return all calls: `name`, the arguments of `generation_init`, calls `before`, the tool and its arguments."""
    return [*_prompts(url), *_parameters(url), *_images(url), *_turns(url), *_replies(url), *_states(url)]


def _case(
    name: str,
    url: str,
    tool: str = "generate",
    *,
    block: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    init: dict[str, Any] | None = None,
    before: list[tuple[str, dict[str, Any]]] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    openai = {"model_name": "m", "base_url": url, "api_key": "abc", "concurrency": 4, "retries": 2, "base_delay": 0.01}
    openai = {key: value for key, value in (openai | (block or {})).items() if value != "absent"}
    started = {
        "backend_configs": {"openai": openai},
        "sampling_params": {"temperature": 0.7} if sampling is None else sampling,
        "extra_params": {},
        "backend": "openai",
    }
    if tool in {"generate", "multimodal_generate"}:
        arguments.setdefault("prompt_ls", ["Who?", "Where?"])
    init = started | (init or {})
    return {"name": name, "init": init, "before": before or [], "tool": tool, "arguments": arguments}


def _prompts(url: str) -> list[dict[str, Any]]:
    shapes: dict[str, list[Any]] = {
        "texts": ["Who?", "Where?"],
        "a text with white space around it": ["  Who?\n\n", "\tWhere? "],
        "an empty text": [""],
        "white space alone": [" \n "],
        "many languages": ["Größe?", "谁?", "🌍?"],
        "content": [{"content": "Who?"}],
        "content with white space": [{"content": " Who? "}],
        "content with a text": [{"content": {"text": "Who?"}}],
        "a prompt of MCP": [{"role": "user", "content": {"type": "text", "text": "Who?"}}],
        "a prompt of MCP with annotations": [
            {"role": "user", "content": {"type": "text", "text": "Who?", "annotations": None, "_meta": None}}
        ],
        "a message": [{"role": "user", "content": "Who?"}],
        "a message of the assistant": [{"role": "assistant", "content": "Who?"}],
        "a message of the system": [{"role": "system", "content": "Who?"}],
        "text": [{"text": "Who?"}],
        "text beside other keys": [{"text": "Who?", "id": 7}],
        "content beside other keys": [{"content": "Who?", "id": 7}],
        "an object without a text": [{"id": 7}],
        "no prompt": [],
        "the same prompt twice": ["Who?", "Who?"],
        "twelve prompts": [f"Who is number {number}?" for number in range(12)],
    }
    found = [_case(f"prompts: {name}", url, prompt_ls=prompts) for name, prompts in shapes.items()]
    for name, system in {"a text": "Be brief.", "white space around it": "  Be brief. ", "white space": "  "}.items():
        found.append(_case(f"system prompt: {name}", url, system_prompt=system))
    return found


def _parameters(url: str) -> list[dict[str, Any]]:
    sampling: dict[str, dict[str, Any]] = {
        "none": {},
        "temperature 0": {"temperature": 0},
        "the usual": {"temperature": 0.7, "top_p": 0.8, "max_tokens": 2048},
        "a stop string": {"stop": "<answer>"},
        "stop strings": {"stop": ["<answer>", "Step"]},
        "seed": {"seed": 7},
        "penalties": {"presence_penalty": 0.5, "frequency_penalty": -0.5},
        "response_format": {"response_format": {"type": "json_object"}},
        "max_completion_tokens": {"max_completion_tokens": 64},
        "both longest answers": {"max_tokens": 32, "max_completion_tokens": 64},
        "n": {"n": 2},
        "logprobs": {"logprobs": True, "top_logprobs": 2},
        "logit_bias": {"logit_bias": {"50256": -100}},
        "user": {"user": "ada"},
        "reasoning_effort": {"reasoning_effort": "low"},
        "extra_body": {"extra_body": {"top_k": 5, "chat_template_kwargs": {"enable_thinking": True}}},
        "metadata": {"metadata": {"run": "1"}, "store": False},
        "verbosity": {"verbosity": "low"},
        "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        "timeout": {"timeout": 30},
        "extra_headers": {"extra_headers": {"X-Run": "1"}},
        "top_k": {"top_k": 5},
        "a word that nobody knows": {"temperatur": 0.5},
        "max_tokens 0": {"max_tokens": 0},
        "n 1": {"n": 1},
        "stream": {"stream": True},
        "stream false": {"stream": False},
        "a null value": {"temperature": None},
        "a null value of others": {"logit_bias": None, "user": None},
    }
    extra: dict[str, dict[str, Any] | None] = {
        "null": None,
        "template options": {"chat_template_kwargs": {"enable_thinking": False}},
        "vLLM's": {"top_k": 20, "repetition_penalty": 1.05, "include_stop_str_in_output": True, "stop": ["<answer>"]},
        "more of vLLM's": {"skip_special_tokens": False, "stop_token_ids": [7], "min_tokens": 3, "ignore_eos": True},
        "over sampling": {"temperature": 0.1, "max_tokens": 5},
        "enable_thinking": {"enable_thinking": False},
        "another model": {"model": "other"},
        "objects in objects": {"provider": {"order": ["a"], "allow_fallbacks": False}},
        "reasoning": {"reasoning": {"effort": "high"}},
        "response_format": {"response_format": {"type": "json_object"}},
        "n": {"n": 2},
        "stream": {"stream": True},
        "a null value": {"temperature": None},
    }
    block: dict[str, dict[str, Any]] = {
        "no key": {"api_key": "absent"},
        "an empty key": {"api_key": ""},
        "a slash behind the URL": {"base_url": f"{url}/"},
        "no model": {"model_name": "absent"},
        "an empty model": {"model_name": ""},
        "concurrency 1": {"concurrency": 1},
        "concurrency as a text": {"concurrency": "4"},
        "concurrency as a float": {"concurrency": 4.0},
        "concurrency 0": {"concurrency": 0},
        "retries 0": {"retries": 0},
        "retries as a text": {"retries": "2"},
        "base_delay 0": {"base_delay": 0},
        "nothing but what is needed": {"concurrency": "absent", "retries": "absent", "base_delay": "absent"},
        "a key that nobody knows": {"max_retires": 3},
        "keys of other backends": {"gpu_ids": "0", "dtype": "auto"},
    }
    found = [_case(f"sampling: {name}", url, sampling=value) for name, value in sampling.items()]
    found += [_case(f"extra: {name}", url, init={"extra_params": value}) for name, value in extra.items()]
    found += [_case(f"block: {name}", url, block=value) for name, value in block.items()]
    both = {"extra_params": {"top_k": 9}}
    found.append(_case("extra: beside extra_body", url, sampling={"extra_body": {"min_p": 0.1}}, init=both))
    for name in ("OpenAI", "OPENAI", "nobody"):
        found.append(_case(f"backend: {name}", url, init={"backend": name}))
    for name, given in {"no block": {}, "an empty block": {"openai": {}}, "a null block": {"openai": None}}.items():
        found.append(_case(f"block: {name}", url, init={"backend_configs": given}))
    return found


def _images(url: str) -> list[dict[str, Any]]:
    first, second = IMAGES
    shapes: dict[str, dict[str, Any]] = {
        "one each": {"multimodal_path": [[first], [second]]},
        "two for one": {"prompt_ls": ["Which?"], "multimodal_path": [IMAGES]},
        "none": {"multimodal_path": [[], []]},
        "no lists": {"multimodal_path": []},
        "fewer lists": {"multimodal_path": [[first]]},
        "more lists": {"multimodal_path": [[first], [second], [first]]},
        "an empty name": {"multimodal_path": [[""], [second]]},
        "a blank name": {"multimodal_path": [["  "], [second]]},
        "an empty name beside one": {"multimodal_path": [["", first], [second, ""]]},
        "white space around a name": {"multimodal_path": [[f" {first} "], [f"{second}\n"]]},
        "a JPEG": {"prompt_ls": ["Which?"], "multimodal_path": [["data/photo.jpg"]]},
        "a URL": {"prompt_ls": ["Which?"], "multimodal_path": [["http://127.0.0.1:9/a.png"]]},
        "a data URL": {"prompt_ls": ["Which?"], "multimodal_path": [[TINY]]},
        "a file that is not there": {"prompt_ls": ["Which?"], "multimodal_path": [["data/nowhere.png"]]},
        "a broken file": {"prompt_ls": ["Which?"], "multimodal_path": [["data/broken.png"]]},
        "a text file": {"prompt_ls": ["Which?"], "multimodal_path": [["data/text.png"]]},
        "an empty file": {"prompt_ls": ["Which?"], "multimodal_path": [["data/empty.png"]]},
        "an SVG": {"prompt_ls": ["Which?"], "multimodal_path": [["data/drawing.svg"]]},
        "a BMP": {"prompt_ls": ["Which?"], "multimodal_path": [["data/photo.bmp"]]},
        "a TIFF": {"prompt_ls": ["Which?"], "multimodal_path": [["data/photo.tiff"]]},
        "a GIF": {"prompt_ls": ["Which?"], "multimodal_path": [["data/photo.gif"]]},
        "a WebP": {"prompt_ls": ["Which?"], "multimodal_path": [["data/photo.webp"]]},
        "a folder": {"prompt_ls": ["Which?"], "multimodal_path": [["data"]]},
        "a good one and one that is not there": {"multimodal_path": [[first], ["data/nowhere.png"]]},
        "no suffix": {"prompt_ls": ["Which?"], "multimodal_path": [["data/page"]]},
        "no prompt": {"prompt_ls": [], "multimodal_path": []},
        "a blank prompt": {"prompt_ls": [" "], "multimodal_path": [[first]]},
        "white space around a prompt": {"prompt_ls": [" Which? "], "multimodal_path": [[first]]},
        "messages": {"prompt_ls": [{"role": "user", "content": "Which?"}], "multimodal_path": [[first]]},
        "a system prompt": {"multimodal_path": [[first], [second]], "system_prompt": " Look. "},
    }
    tagged: dict[str, tuple[str, list[str], str]] = {
        "in the middle": ("See <image>, please", [first], "<image>"),
        "at the beginning": ("<image> is what?", [first], "<image>"),
        "at the end": ("What is <image>", [first], "<image>"),
        "alone": ("<image>", [first], "<image>"),
        "two": ("First <image> then <image>.", IMAGES, "<image>"),
        "side by side": ("<image> <image> differ?", IMAGES, "<image>"),
        "white space around the tag": ("See <image> now", [first], " <image> "),
        "too few": ("See it", [first], "<image>"),
        "too many": ("See <image> and <image>", [first], "<image>"),
        "none and no image": ("See it", [], "<image>"),
        "an empty name": ("See <image> now", [""], "<image>"),
        "a blank tag": ("See it", [first], "  "),
    }
    found = [_case(f"images: {name}", url, "multimodal_generate", **value) for name, value in shapes.items()]
    for name, (prompt, images, tag) in tagged.items():
        found.append(
            _case(
                f"tags: {name}",
                url,
                "multimodal_generate",
                prompt_ls=[prompt],
                multimodal_path=[images],
                image_tag=tag,
            )
        )
    return found


def _turns(url: str) -> list[dict[str, Any]]:
    user, assistant = {"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello."}
    shapes: dict[str, tuple[list[Any], str]] = {
        "three": ([user, assistant, {"role": "user", "content": "Who am I?"}], ""),
        "a system prompt": ([user], " Be brief. "),
        "a system turn": ([{"role": "system", "content": "Be brief."}, user], ""),
        "a system prompt and a system turn": ([{"role": "system", "content": "Be long."}, user], "Be brief."),
        "white space around a turn": ([{"role": "user", "content": " Who? "}], ""),
        "an unknown role": ([{"role": "robot", "content": "beep"}, user], ""),
        "a role of OpenAI's": ([{"role": "developer", "content": "Be brief."}, user], ""),
        "no role": ([{"content": "Who?"}], ""),
        "no content": ([{"role": "user"}, user], ""),
        "an empty turn": ([{"role": "assistant", "content": ""}, user], ""),
        "other keys": ([{"role": "user", "content": "Who?", "name": "ada", "id": 7}], ""),
        "a number": ([{"role": "user", "content": 7}], ""),
        "none": ([], ""),
        "the system's alone": ([{"role": "system", "content": "Be brief."}], ""),
        "the assistant's alone": ([assistant], ""),
        "unknown roles alone": ([{"role": "robot", "content": "beep"}], ""),
    }
    return [
        _case(f"turns: {name}", url, "multiturn_generate", messages=messages, system_prompt=system)
        for name, (messages, system) in shapes.items()
    ]


REPLIES = (
    *("null", "empty", "thought", "open thought", "open thought, cut", "closed thought", "reasoning", "white space"),
    *("no finish reason", "cut", "tool calls", "400", "401", "404", "429", "500", "no choices", "a filtered answer"),
    "too long",
)
# Where JSON was requested.
TEXTS = (
    "plain text",
    "an object",
    "another object",
    "a fenced object",
    "a cut object",
    "empty",
    "null",
    "thought",
    "500",
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORMATS = {
    "JSON": {"type": "json_object"},
    "a schema": {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
}


def _replies(url: str) -> list[dict[str, Any]]:
    found = [_case(f"reply: {name}", url, block={"model_name": f"reply: {name}"}) for name in REPLIES]
    for wanted, form in FORMATS.items():
        for name in TEXTS:
            options: dict[str, Any] = {"block": {"model_name": f"reply: {name}"}, "sampling": {"response_format": form}}
            found.append(_case(f"reply where {wanted} was requested: {name}", url, **options))
    turns = [{"role": "user", "content": "Where?"}]
    for name in ("empty", "plain text", "500", "too long"):
        block = {"model_name": f"reply: {name}"}
        found.append(_case(f"reply to turns: {name}", url, "multiturn_generate", block=block, messages=turns))
    for name in ("400", "401", "429", "500", "no choices", "empty", "too long"):
        block = {"model_name": f"one: {name}"}
        found.append(_case(f"one among good prompts: {name}", url, block=block, prompt_ls=["Who?", BAD, "Where?"]))
        good = [("generate", {"prompt_ls": ["Who?"]})]
        found.append(_case(f"a prompt after good calls: {name}", url, block=block, before=good, prompt_ls=[BAD]))
    return found


def _states(url: str) -> list[dict[str, Any]]:
    """Return calls after others: what is active then."""
    good = {"model_name": "m", "base_url": url, "api_key": "abc"}
    init = {"sampling_params": {}, "extra_params": {}, "backend": "openai", "backend_configs": {"openai": good}}
    failing: dict[str, dict[str, Any]] = {
        "an unknown backend": init | {"backend": "nobody"},
        "no model": init | {"backend_configs": {"openai": {"base_url": ""}}},
        "a wrong number": init | {"backend_configs": {"openai": good | {"concurrency": "many"}}},
    }
    found = [
        _case(f"after a failed init: {name}", url, before=[("generation_init", bad)]) for name, bad in failing.items()
    ]
    other = init | {"sampling_params": {"temperature": 0.1}, "backend_configs": {"openai": good | {"model_name": "n"}}}
    found.append(_case("after another init", url, before=[("generation_init", other)]))
    found.append(_case("after a shutdown", url, before=[("vllm_shutdown", {})]))
    return found


if __name__ == "__main__":
    print(len(cases("http://x/v1")))
