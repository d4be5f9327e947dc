"""Python classes on the openai backend: `OpenAIAPI`, and `MPOpenAIAPI`, which divides the work among processes.

The constructors have the arguments and defaults of DataStudio's classes of the same names, so programs for those
classes run on promptmill. Both classes use the server's backend. `BaseAPI` is their base class, for programs that have
their own client.
"""

from __future__ import annotations

import abc
import base64
import inspect
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from promptmill.answers.reasoning import split_marked
from promptmill.answers.response_format import AnswerType, with_schema
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Outcome
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError, config_error, input_error
from promptmill.core.request import (
    Conversation,
    FilePart,
    ImagePart,
    Message,
    Sampling,
    TextPart,
    conversation_from_messages,
    marks_in,
)
from promptmill.core.wording import shape
from promptmill.files.format_table import is_image
from promptmill.images.load import HeldImage, ImageRules, is_bare_base64, is_web, load_image
from promptmill.service.list_call import ListSink
from promptmill.service.service import Service
from promptmill.system import runtime

_FAIL_MESSAGE = "Failed to obtain answer via API."
_OURS = frozenset(Sampling.model_fields)
_USUAL_ATTEMPTS = 10
_MOST_THREADS = 1024  # limited, as each thread has a stack, and each call of `OpenAIAPI.generate_inner` an event loop
# The steps of `pre_process`, in order.
_PREPARING = ("pre_process", "check_content", "preproc_content", "prepare_inputs", "encode_image_directly")
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty", "max_tokens"),
    "enable_thinking",
)
# Constructor arguments that programs also pass to calls: they are left out of the request.
_OF_THE_CLASS = frozenset({"fail_msg", "image_key_name", "openai_format", "return_dict", "use_system_proxy"})
_LAST_PORT = 65535
_OF_WORKERS = ("num_workers", "worker_concurrency")
_KINDS = frozenset({"str", "dict", "liststr", "listdict"})
_SUFFICES_AS_IMAGE = ("data:image/", "file://")
_JITTER = random.SystemRandom()

_Init = TypeVar("_Init", bound=Callable[..., None])


class InterruptedCall(KeyboardInterrupt):
    """Ctrl-C interrupted a call. `answers` has the answers so far, in order; `fail_msg` replaces missing answers."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__(answers)
        self.answers = answers


class BaseAPI(abc.ABC):
    """DataStudio's base class. A program adds its own client in a subclass that defines `generate_inner`.

    `generate` accepts inputs of any form, calls `generate_inner` for each input in a thread, and retries failures.
    """

    _USUAL_THREADS: ClassVar[int] = 384
    allowed_types: ClassVar[list[str]] = ["text", "image", "image_url", "system"]
    """The permitted types of an input's parts."""

    def __init__(
        self,
        retry: int | str | None = _USUAL_ATTEMPTS,
        wait: float | str = 5,
        timeout: tuple[float, float] = (30, 1800),
        logger: Any = None,
        thread_num: int | str | None = _USUAL_THREADS,
        fail_msg: str = _FAIL_MESSAGE,
        openai_format: bool = True,
        image_key_name: str = "image",
        return_dict: bool = True,
        use_system_proxy: bool = False,
        **kwargs: Any,
    ) -> None:
        """`retry`: the total number of attempts, at least one. `wait`: the longest wait between attempts, in seconds.

        `thread_num`: the number of concurrent calls of `generate_inner`. If it or `retry` is None, the default applies.
        `image_key_name`: a key for the images of a part. Without `openai_format`, `generate_inner` gets a list of parts
        instead of messages. `timeout` and `use_system_proxy` are for the subclass; `kwargs` go to `generate_inner`.
        """
        self.retry = retry
        self.wait = wait
        self.timeout = timeout
        self.logger: Any = logger or logging.getLogger("promptmill")
        self.thread_num = thread_num
        self.fail_msg = fail_msg
        self.openai_format = openai_format
        self.image_key_name = image_key_name
        self.return_dict = return_dict
        self.use_system_proxy = use_system_proxy
        self.default_kwargs = kwargs

    @abc.abstractmethod
    def generate_inner(self, inputs: Any, **kwargs: Any) -> tuple[int, Any, Any]:
        """Answer a preprocessed input. Return `(ret_code, answer, response)`; `ret_code` is 0 for success."""

    def generate(self, messages: Sequence[Any], **kwargs: Any) -> list[Any]:
        """Answer each input, in order; `fail_msg` replaces a failed answer. Raises the errors of `pre_process`."""
        inputs = [self.pre_process(message) for message in _inputs(messages)]
        given = {**self.default_kwargs, **kwargs}
        with ThreadPoolExecutor(max(1, min(self._at_a_time, len(inputs), _MOST_THREADS))) as threads:
            return list(threads.map(lambda message: self.process_single_message(message, given), inputs))

    def process_single_message(self, message: Any, all_kwargs: Mapping[str, Any]) -> Any:
        """Return the answer of `generate_inner` to one input; `fail_msg` if all `retry` attempts failed.

        With `return_dict`, return the JSON object in the answer; an answer without an object is a failed attempt.
        """
        for attempt in range(max(1, self._attempts)):
            if attempt:
                time.sleep(min(self._longest_wait_s, 2.0 ** (attempt - 1)) * _JITTER.uniform(0.5, 1))
            try:
                code, answer, _ = self.generate_inner(message, **all_kwargs)
            except Exception as error:  # noqa: BLE001 (a program's client may raise anything)
                self._log("error", f"attempt {attempt + 1} failed: {type(error).__name__}: {error}")
                continue
            if isinstance(answer, str) and self.return_dict:
                answer = _object_in(split_marked(answer)[1])
            failed = answer is None or (isinstance(answer, str) and (not answer or answer == self.fail_msg))
            if code == 0 and not failed:
                return answer
            self._log("error", f"attempt {attempt + 1} brought no answer (code {code})")
        return self.fail_msg

    def pre_process(self, msg: Any) -> list[Any]:
        """Return one input in the form for `generate_inner`: messages with images as `data:` URLs.

        Raises `AssertionError` for an input of an unknown kind, or for a part whose type is not in `allowed_types`.
        """
        kind = self.check_content(msg)
        assert kind in _KINDS, f"an input is {kind}; send a text, a part, a list of texts or a list of parts"
        items = [msg] if kind in {"str", "dict"} else msg
        self._check_types(item for item in items if isinstance(item, Mapping))
        content = self.preproc_content(msg)
        self._check_types(part for part, item in zip(content, items, strict=True) if isinstance(item, str))
        return self.prepare_inputs(content)[0]

    def check_content(self, msgs: Any) -> str:
        """Return the kind of an input: `str`, `dict`, `liststr`, `listdict` or `unknown`."""
        if isinstance(msgs, str):
            return "str"
        if isinstance(msgs, Mapping):
            return "dict"
        if not isinstance(msgs, list | tuple) or not msgs:
            return "unknown"
        if all(isinstance(item, str) for item in msgs):
            return "liststr"
        return "listdict" if all(isinstance(item, Mapping) for item in msgs) else "unknown"

    def preproc_content(self, inputs: Any) -> list[Any]:
        """Return an input as a list of parts `{"type": …, "value": …}`. Messages with a role stay unchanged.

        A text that is the path or URL of an image becomes a part of type `image`. Raises `PromptmillError`.
        """
        return _parts_of(inputs, "inputs", self.image_key_name)

    def prepare_inputs(self, inputs: Any) -> tuple[list[Any], str]:
        """Convert parts to messages with images as `data:` URLs. Return the messages, and a text that joins all texts.

        Without `openai_format`, the parts stay unchanged. Raises `PromptmillError`.
        """
        conversation = _conversation_of(inputs, "inputs", self.image_key_name)
        text = "\n".join(conversation.texts)
        if not self.openai_format:
            return self.preproc_content(inputs), text
        return conversation.with_sources(
            lambda part: part.source if isinstance(part, FilePart) else self._url(part.source)
        ).as_messages(), text

    def encode_image_directly(self, img_item: Any) -> Any:
        """Return an image in memory (Pillow, array, bytes, open file) as base64. Return any other value unchanged."""
        source = _source_of(img_item)
        return self._encode(source)[1] if isinstance(source, HeldImage) else img_item

    def shutdown(self) -> None:  # noqa: B027 (no abstract method, because most clients have nothing to close)
        """Do nothing: each call closes its own connections."""

    def _check_types(self, parts: Iterable[Mapping[str, Any]]) -> None:
        wrong = {str(part.get("type"))[:40] for part in parts if "role" not in part} - {*self.allowed_types}
        assert not wrong, f"types of parts that are not allowed: {', '.join(sorted(wrong))}"

    @property
    def _at_a_time(self) -> int:
        """The number of concurrent requests."""
        number = _whole(self.thread_num, "thread_num", self._USUAL_THREADS)
        if number < 1:
            raise config_error("thread_num", "is less than one; give the number of requests at a time.")
        return number

    @property
    def _attempts(self) -> int:
        return _whole(self.retry, "retry", _USUAL_ATTEMPTS)

    @property
    def _longest_wait_s(self) -> float:
        try:
            return float(self.wait)
        except (TypeError, ValueError):
            raise config_error("wait", "is not a number of seconds.") from None

    def _url(self, source: str) -> str:
        if self._overrides("encode_image_directly"):
            source = _source_of(self.encode_image_directly(getattr(source, "image", source))) or source
        return source if is_web(source) else "data:{};base64,{}".format(*self._encode(source))

    def _overrides(self, *names: str) -> bool:
        """Return whether a subclass or the object itself overrides a method with one of these names."""
        given = (getattr(self, name) for name in names)
        return any(getattr(one, "__module__", "") != __name__ for one in given)

    def _encode(self, source: str) -> tuple[str, str]:
        image = load_image(source, ImageRules())
        return image.media_type, base64.b64encode(image.data).decode()

    def _log(self, level: str, text: str) -> None:
        """Log `text` with any kind of logger, without formatting; use `info` if the logger has no method `level`."""
        log = getattr(self.logger, level, None) or getattr(self.logger, "info", None)
        if log is not None:
            log(text)


class _SamplingArguments:
    """Sampling parameters that a program sets, and may change later. None leaves a parameter to the endpoint."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    max_tokens: int | None
    enable_thinking: bool | None

    def set_sampling(self, **parameters: Any) -> None:
        """Set parameters by their names."""
        vars(self).update(parameters)


class OpenAIAPI(_SamplingArguments, BaseAPI):
    """An OpenAI-compatible model for Python programs. `generate` describes the inputs.

    A subclass may override any method of `BaseAPI`.
    """

    _USUAL_THREADS: ClassVar[int] = 8192

    def __init__(
        self,
        model: str,
        key: str | Sequence[str] | None = None,
        temperature: float | None = 0.6,
        top_p: float | None = 0.95,
        top_k: int | None = 20,
        min_p: float | None = 0.0,
        presence_penalty: float | None = 1.0,
        repetition_penalty: float | None = 1.0,
        api_base: str | None = None,
        port: int | str | Sequence[int | str] | None = None,
        retry: int | str | None = _USUAL_ATTEMPTS,
        wait: float | str = 3,
        timeout: tuple[float, float] = (30, 1800),
        max_tokens: int | None = 16384,
        thread_num: int | str | None = _USUAL_THREADS,
        return_dict: bool = False,
        logger: Any = None,
        max_connections: int | None = None,
        enable_thinking: bool | None = False,
        *,
        base_url: str | None = None,
        fail_msg: str = _FAIL_MESSAGE,
        use_system_proxy: bool = False,
        image_key_name: str = "image",
        openai_format: bool = True,
        **kwargs: Any,
    ) -> None:
        """Without `key`, OPENAI_API_KEY or LLM_API_KEY is used; without `api_base`, `port` is a port of this machine.

        `base_url` is another name of `api_base`.

        `retry` is the total number of attempts, from 1 to 100; `thread_num` is the number of requests in flight. `wait`
        is the longest wait between attempts, and `timeout` limits the time to connect and each silence of the server,
        in seconds. Requests are divided among several keys or ports. None leaves a parameter to the endpoint; a number
        outside the usual range is sent, and the endpoint may refuse it. `image_key_name` is a key under which parts
        hold images; `openai_format` is for `prepare_inputs` alone. `kwargs` go into the request body. Attributes that
        are set later apply from the next call on. Raises `PromptmillError` (`invalid_config`).
        """
        super().__init__(
            retry,
            wait,
            timeout,
            logger,
            thread_num,
            fail_msg,
            openai_format,
            image_key_name,
            return_dict,
            use_system_proxy,
            **kwargs,
        )
        self.model = model
        self.key = key
        self.set_sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            presence_penalty=presence_penalty,
            repetition_penalty=repetition_penalty,
            max_tokens=max_tokens,
            enable_thinking=enable_thinking,
        )
        if base_url and api_base:
            raise config_error("api_base", " and base_url are two names of one argument; give one of them.")
        self.api_base = api_base or base_url
        self.port = port
        self.max_connections = max_connections
        self._configuration({}, shared=True)  # called early, to report an invalid configuration

    def generate(self, messages: Sequence[Any], *, schema: AnswerType | None = None, **kwargs: Any) -> list[Any]:
        """Return an answer to each input, in order. `fail_msg` replaces a failed answer, and the reason is logged.

        An input is a text; a part such as `{"type": "text" | "image", "value": …}`; an OpenAI message; or a list of
        texts, parts or messages that belong together. An image is a path, URL, base64, bytes, open file, image of
        Pillow's, array or tensor. `kwargs` override sampling or go into the request body. With `return_dict` an answer
        is the object that its JSON holds; an answer without an object is requested again, `retry` times in all. Every
        answer satisfies the JSON Schema `schema`, or is an instance of the pydantic class. Raises `PromptmillError`
        (`invalid_input`); at Ctrl-C `InterruptedCall`, which has the answers so far.

        A subclass's own `process_single_message` or `generate_inner` answers each input in a thread, as in `BaseAPI`.
        """
        if self._overrides("process_single_message", "generate_inner"):
            return super().generate(messages, **kwargs, **({} if schema is None else {"schema": schema}))
        conversations = [
            _conversation_of(self._prepared(item), f"messages[{index}]", self.image_key_name)
            for index, item in enumerate(_inputs(messages))
        ]
        sink = ListSink(len(conversations))
        try:
            outcomes = self._outcomes(conversations, with_schema(kwargs, schema), sink, shared=True)
        except KeyboardInterrupt:
            raise InterruptedCall(self._so_far(sink, schema)) from None
        return [self._answer_of(outcome, index, schema) for index, outcome in enumerate(outcomes)]

    def _prepared(self, item: Any) -> Any:
        """Return an input as the subclass prepares it. Without an override, the input is encoded when it is sent."""
        is_own = self._overrides(*_PREPARING) or self.allowed_types != BaseAPI.allowed_types
        return self.pre_process(item) if is_own else item

    def process_single_message(self, message: Any, all_kwargs: Mapping[str, Any]) -> Any:
        """Return the answer to one input, or `fail_msg`. `generate_inner` itself retries, unless it is overridden."""
        if self._overrides("generate_inner"):
            return super().process_single_message(message, all_kwargs)
        return self.generate_inner(message, **all_kwargs)[1]

    def generate_inner(
        self, inputs: Any, *, schema: AnswerType | None = None, **kwargs: Any
    ) -> tuple[int, Any, dict[str, Any]]:
        """Answer one input. Return `(ret_code, answer, response)`: 0 and the answer, or -1 and `fail_msg`.

        `response` has `finish_reason`, `usage` and `reasoning`; for a failure, the `error` with its code.
        """
        asked = with_schema(kwargs, schema)
        conversation = _conversation_of(inputs, "inputs", self.image_key_name)
        (outcome,) = self._outcomes([conversation], asked, ListSink(1), shared=False)
        answer = self._answer_of(outcome, 0, schema)
        usage = {
            "prompt_tokens": outcome.usage.prompt_tokens,
            "completion_tokens": outcome.usage.completion_tokens,
        }
        if isinstance(outcome, Failure):
            error = {"code": str(outcome.error.code), "message": str(outcome.error), "attempts": outcome.attempts}
            return -1, answer, {"error": error, "usage": usage}
        response = {"finish_reason": outcome.finish_reason, "usage": usage, "reasoning": outcome.reasoning}
        return (-1 if answer is self.fail_msg else 0), answer, response

    def _configuration(self, overrides: Mapping[str, Any], *, shared: bool) -> Configuration:
        asked = self.default_kwargs | {name: value for name, value in overrides.items() if name not in _OF_THE_CLASS}
        sampling = {name: getattr(self, name) for name in _SAMPLING}
        sampling |= {name: value for name, value in asked.items() if name in _OURS}
        beyond = {name: sampling.pop(name) for name in [*sampling] if _is_beyond(name, sampling[name])}
        block = self._block() | (dict(self._sharing()) if shared else {})
        return Configuration(
            {
                "backend": "openai",
                "backend_configs": {"openai": {name: value for name, value in block.items() if value is not None}},
                "sampling_params": {name: value for name, value in sampling.items() if value is not None},
                "extra_params": {name: value for name, value in asked.items() if name not in _OURS} | beyond,
                "reasoning": "inline",
            }
        )

    def _block(self) -> dict[str, Any]:
        ports = [] if self.port is None else [self.port] if isinstance(self.port, int | str) else self.port
        local = [f"http://localhost:{_port(port)}/v1" for port in ports]
        return {
            "model_name": self.model,
            "base_url": self.api_base or local or "https://api.openai.com/v1",
            "api_key": self._key,
            "concurrency": min(self._at_a_time, 65_536),  # 65,536 is the largest `concurrency`
            "adaptive": False,  # a program that sets `thread_num` expects this many requests from the beginning
            "max_connections": self.max_connections or min(self._at_a_time, 16384),
            "retries": min(max(self._attempts, 1), 100),
            "base_delay": min(1.0, self._longest_wait_s),
            "max_delay": self._longest_wait_s,
            "timeout": self.timeout,
            "trust_env": self.use_system_proxy,
            "bulk_threshold": 2**31,
        }

    @property
    def _key(self) -> str | list[str] | None:
        """The keys of the endpoint. If the program set none, OPENAI_API_KEY is used first, as in DataStudio."""
        if self.key is None:
            return os.environ.get("OPENAI_API_KEY") or None
        return self.key if isinstance(self.key, str) else list(self.key)

    def _sharing(self) -> Mapping[str, Any]:
        return {}

    def _outcomes(
        self, conversations: Sequence[Conversation], overrides: Mapping[str, Any], sink: ListSink, *, shared: bool
    ) -> list[Outcome]:
        return runtime.run_anywhere(self._answer(conversations, self._configuration(overrides, shared=shared), sink))

    def _so_far(self, sink: ListSink, schema: AnswerType | None) -> list[Any]:
        """Return the answers so far, with `fail_msg` for missing answers."""
        outcomes = sink.result(PromptmillError(Code.SHUTDOWN, "The call was interrupted."))
        return [
            self._answer_of(outcome, index, schema) if isinstance(outcome, Completion) else self.fail_msg
            for index, outcome in enumerate(outcomes)
        ]

    async def _answer(
        self, conversations: Sequence[Conversation], configuration: Configuration, sink: ListSink
    ) -> list[Outcome]:
        service = Service(configuration)
        call = Call(Facts(total=len(conversations)))
        places: Sequence[int] = range(len(conversations))
        try:
            outcomes = await service.generate(conversations, call, sink=sink)
            for _ in range(self._attempts - 1 if self.return_dict else 0):
                places = [place for place in places if _lacks_object(outcomes[place])]
                if not places:
                    break
                more = Call(Facts(total=len(places)))
                again = await service.generate([conversations[place] for place in places], more)
                call.warnings |= more.warnings
                for place, outcome in zip(places, again, strict=True):
                    outcomes[place] = outcome
        finally:
            await service.aclose()
            for warning in call.warnings:
                self._log("warning", warning)
        return outcomes

    def _answer_of(self, outcome: Outcome, index: int, schema: AnswerType | None) -> Any:
        if not isinstance(outcome, Completion):
            self._log("error", f"input {index}: {outcome.error.code}: {outcome.error}")
            return self.fail_msg
        if isinstance(schema, type):
            try:
                return schema.model_validate_json(split_marked(outcome.text)[1])
            except ValidationError as error:  # a validator of the class may refuse an answer that matches the schema
                self._log("error", f"input {index}: the answer is not a valid {schema.__name__}: {error}")
                return self.fail_msg
        if outcome.is_empty:
            self._log("error", f"input {index}: the answer is empty")
            return self.fail_msg
        if not self.return_dict:
            return outcome.text
        found = _object_in(split_marked(outcome.text)[1])
        if found is None:
            self._log("error", f"input {index}: the answer contains no JSON object")
            return self.fail_msg
        return found


def _with_worker_arguments(init: _Init) -> _Init:
    """Give `init` the signature of `OpenAIAPI` with the arguments `_OF_WORKERS` inserted at their positions."""
    signature = inspect.signature(OpenAIAPI.__init__)
    ours: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "enable_thinking":
            ours += (parameter.replace(name=name, default=None, annotation="int | None") for name in _OF_WORKERS)
        ours.append(parameter)
    vars(init)["__signature__"] = signature.replace(parameters=ours)
    return init


class MPOpenAIAPI(OpenAIAPI):
    """`OpenAIAPI` with worker processes, for calls whose images and JSON are too much work for one process."""

    @_with_worker_arguments
    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Start `num_workers` processes, each with `worker_concurrency` requests in flight. By default, only calls with
        images use processes.

        The default of `worker_concurrency` is a worker's share of `thread_num`. The other arguments are as in
        `OpenAIAPI`. As positional arguments, `num_workers` and `worker_concurrency` come before `enable_thinking`, as
        in DataStudio's class.
        """
        given = inspect.signature(MPOpenAIAPI.__init__).bind(self, *arguments, **named)
        self.num_workers, self.worker_concurrency = (given.arguments.pop(name, None) for name in _OF_WORKERS)
        super().__init__(*given.args[1:], **given.kwargs)

    def _sharing(self) -> Mapping[str, Any]:
        return {
            "bulk_threshold": 1,
            "num_workers": self.num_workers,
            "worker_concurrency": self.worker_concurrency,
        }


def _inputs(messages: Sequence[Any]) -> Sequence[Any]:
    """Return the inputs of a call. Raises `PromptmillError` for a single input instead of a list."""
    if isinstance(messages, str | Mapping):
        raise input_error("messages is one input; send a list of inputs: generate([…]).")
    return messages


def _conversation_of(item: Any, where: str, image_key: str = "image") -> Conversation:
    """Convert one input, as `OpenAIAPI.generate` accepts it, to a conversation. `where`: the input's name in errors.

    `image_key` is the key under which a part may hold its image.
    """
    items = list(_items(item, where))
    if items and all(isinstance(one, Mapping) and "role" in one for one, _ in items):
        return conversation_from_messages([_turn(one, place, image_key) for one, place in items], where)
    pieces = [_piece(one, place, image_key) for one, place in items]
    system = [piece for piece in pieces if isinstance(piece, str)]
    parts = [piece for piece in pieces if not isinstance(piece, str)]
    if not parts:
        raise input_error(f"{where} is {shape(item)} without a text or image.")
    first, *others = parts
    is_plain = not others and not first.marks
    content = first.text if is_plain and isinstance(first, TextPart) else tuple(parts)
    return Conversation((Message("user", content),)).with_system("\n".join(system))


def _parts_of(item: Any, where: str, image_key: str = "image") -> list[dict[str, Any]]:
    """Return one input as parts `{"type": "text" | "image" | "system", "value": …}`. Keep messages with a role.

    Raises `PromptmillError` (`invalid_input`) as `_conversation_of` does.
    """
    found: list[dict[str, Any]] = []
    for one, place in _items(item, where):
        if isinstance(one, Mapping) and "role" in one:
            found.append(dict(one))
            continue
        match _piece(one, place, image_key):
            case str(text):
                found.append({"type": "system", "value": text})
            case TextPart(text):
                found.append({"type": "text", "value": text})
            case ImagePart(source):
                found.append({"type": "image", "value": getattr(source, "image", source)})
    return found


def _items(item: Any, where: str) -> Iterator[tuple[Any, str]]:
    """Yield the items of one input, each with its name for errors."""
    if not isinstance(item, list | tuple):
        yield item, where
        return
    yield from ((one, f"{where}[{index}]") for index, one in enumerate(item))


def _piece(item: Any, where: str, image_key: str) -> TextPart | ImagePart | str:
    """Convert an item to a part; for a system prompt, return the text."""
    if isinstance(item, Mapping) and item.get("type") == "system":
        return _value(item, where)
    return _part(item, where, image_key)


def _turn(message: Mapping[str, Any], where: str, image_key: str) -> Mapping[str, Any]:
    """Return a message with OpenAI's parts. DataStudio's parts, whose text or image is in `value`, are converted."""
    content = message.get("content")
    if not isinstance(content, list) or all(isinstance(part, Mapping) and _is_openais(part) for part in content):
        return message
    parts = [_part(part, f"{where}.content[{index}]", image_key) for index, part in enumerate(content)]
    return {**message, "content": [_openais(part) for part in parts]}


def _openais(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text, **(part.marks or {})}
    return {"type": "image_url", "image_url": {"url": part.source}, **(part.marks or {})}


def _is_openais(part: Mapping[str, Any]) -> bool:
    match part:
        case {"type": "text", "text": str()} | {"type": "image_url", "image_url": str() | {"url": str()}}:
            return True
    return part.get("type") not in {"text", "image", "image_url"}


def _part(item: Any, where: str, image_key: str) -> TextPart | ImagePart:
    if isinstance(item, str):
        return ImagePart(item) if _names_image(item) else TextPart(item)
    if isinstance(item, Mapping):
        match item.get("type"):
            case "text":
                return TextPart(_value(item, where), marks_in(item))
            case "image" | "image_url":
                return ImagePart(_source(item, where, image_key), None, marks_in(item))
    if not isinstance(item, Mapping | list | tuple) and (source := _source_of(item)) is not None:
        return ImagePart(source)
    raise input_error(
        f'{where} is {shape(item)}. Send a text, {{"type": "text", "value": …}}, {{"type": "image", "value": …}} '
        'or {"role": "user", "content": …}.'
    )


def _value(item: Mapping[str, Any], where: str) -> str:
    value = _given(item)
    if not isinstance(value, str):
        raise input_error(f"{where} has no text in `value`.")
    return value


def _source(item: Mapping[str, Any], where: str, image_key: str) -> str:
    """Return the source of an image. An image in memory is encoded when it is sent."""
    source = _source_of(_given(item, image_key))
    if source is None:
        raise input_error(f"{where} has no path, URL or image in `value`.")
    return source


def _source_of(value: Any) -> str | None:
    """Return the image source in a program's value; None if the value is not an image.

    The value may be a text (path, URL or base64), a `Path`, an open file, bytes, an array, a tensor, or a Pillow image.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if callable(getattr(value, "read", None)):
        if value.seekable():  # read from the beginning, because several inputs may share the file
            value.seek(0)
        value = value.read()
    # The attribute is looked up on the type, because on a Pillow image it would copy all pixels.
    is_array = hasattr(type(value), "__array_interface__") or hasattr(type(value), "__array__")
    is_pillows = hasattr(value, "mode") and hasattr(value, "tobytes")
    return HeldImage(value) if isinstance(value, bytes | bytearray | memoryview) or is_array or is_pillows else None


def _given(item: Mapping[str, Any], image_key: str = "") -> Any:
    names = (image_key, "value", "text", "image", "image_url")
    value = next((item[name] for name in names if name in item and item[name] is not None), None)
    return value.get("url") if isinstance(value, Mapping) else value


def _names_image(text: str) -> bool:
    if text[:11].lower().startswith(_SUFFICES_AS_IMAGE) or is_bare_base64(text):
        return True
    if len(text) > 1024 or "\n" in text or not is_image(text.split("?", maxsplit=1)[0]):
        return False
    return text.startswith(("http://", "https://")) or Path(text).is_file()


def _whole(value: int | str | None, name: str, usual: int) -> int:
    """Return an argument of the constructor as a number; it may be a text. Return `usual` for None."""
    try:
        return usual if value is None else int(value)
    except ValueError:
        raise config_error(name, "is not a whole number.") from None


def _port(port: int | str) -> int:
    number = int(port) if str(port).isdecimal() else 0
    if not 0 < number <= _LAST_PORT:
        raise config_error("port", "is not a port number; give a number from 1 to 65535, or a list of them.")
    return number


def _is_beyond(name: str, value: Any) -> bool:
    """Return whether `value` is a number outside a sampling parameter's range. Some endpoints accept such numbers."""
    if not isinstance(value, int | float):
        return False
    try:
        Sampling.model_validate({name: value})
    except ValidationError:
        return True
    return False


def _lacks_object(outcome: Outcome) -> bool:
    return isinstance(outcome, Completion) and _object_in(split_marked(outcome.text)[1]) is None


def _object_in(text: str) -> dict[str, Any] | None:
    """Return the JSON object in an answer, with or without text around it; None without an object."""
    from json_repair import repair_json

    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    found = repair_json(text[start : end + 1], return_objects=True)
    return found if isinstance(found, dict) else None
