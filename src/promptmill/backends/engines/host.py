"""The server's side of an engine process: checks its settings, starts it, submits requests, watches it, and ends it.

An `EngineHost` is the backend of a loaded model. Each load starts an `EngineProcess`, whose lifecycle is:

    start ──▶ load … loaded ──▶ submit … outcome, preview ──▶ its pipe closes ──▶ group ended ──▶ `ended`
                 └── failed ──▶ the host ends the group ───────────┘

However the process ends (it crashes, it is killed, the host closes), its pipe closes. Only then, the rest of its
process group is ended, its scratch folder is removed, and all waiting requests get the reason as their error. So each
request ends exactly once: by its outcome, by a cancellation, or by the end of the process.

A call may choose a model and limits for its computation. Settings that may bring code, files or connections are
reserved for the operator (`check_arguments`, `trusts_remote_code`).
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import orjson

from promptmill.backends import vectors
from promptmill.backends.engines import hardware, several_questions
from promptmill.backends.protocol import Call, Completion, Failure, FixedShare, Growing, Outcome, Usage
from promptmill.config.configuration import TRUST_SWITCH
from promptmill.config.model_config import ModelConfig
from promptmill.config.settings import BY_CALL
from promptmill.core.bounds import LARGEST_FILE
from promptmill.core.errors import READS_IMAGES, Code, PromptmillError, config_error, input_error
from promptmill.core.request import ImagePart, Message, Request, TextPart, check_encodable
from promptmill.core.wording import did_you_mean
from promptmill.images.files import NOUNS
from promptmill.images.load import ImageCache, ImageFile, ImageRules, WebImages
from promptmill.system import frames, subprocesses
from promptmill.system.frames import Frame
from promptmill.system.state import cache_folder

_NEARLY_EQUAL = 0.8  # a key this similar to a known key counts as misspelt; a less similar key may be the engine's own
_CHILD = "promptmill.backends.engines.child"
_READ_AT_ONCE = 8  # max items of a call whose images are in memory: read from the disk, not yet written to the pipe


def create(config: ModelConfig) -> EngineHost:
    """Return the backend of `config` without loading it. Raises `PromptmillError` (`invalid_config`)."""
    block = getattr(config.settings.backend_configs, config.backend)
    if not block.model_name_or_path:
        _check_spelling(config.backend, block.model_extra or {})
        path = f"backend_configs.{config.backend}.model_name_or_path"
        raise config_error(path, "no model is named; name a folder, a model hub name, or smollm2-135m-instruct.")
    check_arguments(config)
    options = {
        **block.model_dump(mode="json"),
        "trust_remote_code": trusts_remote_code(config),
        "unsupported": config.settings.unsupported,
    }
    rules = ImageRules.of(config.file_rule, config.settings.max_image_pixels, config.settings.max_image_memory)
    environment = _environment(getattr(block, "gpu_ids", None), config.replicas)
    return EngineHost(config.backend, options, environment, rules)


def _environment(gpu_ids: tuple[int, ...] | None, replicas: int) -> dict[str, str]:
    environment = subprocesses.environment()
    if gpu_ids:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpu_ids))
    elif replicas > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cores() // replicas)))
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # GPUs get the numbers that nvidia-smi shows
    environment.setdefault("TQDM_DISABLE", "1")
    environment.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # without this, transformers asks a service of Hugging Face to convert a model that has no safetensors
    environment.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    # torch usually stores compiled code in the temporary folder, which is removed when the engine ends
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))
    return environment


class EngineHost:
    """A `Backend` whose engine runs in a separate process group."""

    def __init__(
        self, engine: str, options: Mapping[str, object], environment: Mapping[str, str], rules: ImageRules
    ) -> None:
        """`options` are passed to the engine's `serve` unchanged; `environment` is the process's whole environment."""
        self._engine = engine
        self._options = dict(options)
        self._environment = dict(environment)
        self._rules = rules
        self._web = WebImages()
        self._process: EngineProcess | None = None
        self._closed = False
        self._calls: dict[Call, EngineShare] = {}
        self._open: dict[int, tuple[asyncio.Future[Frame | PromptmillError], Call]] = {}
        """Requests that await their outcome, by the number that names them in messages. It is unique over all calls."""
        self._numbers = itertools.count(1)
        self._window = 1
        self._takes_images = False

    async def load(self, report: Callable[[str], None]) -> None:
        """Start the process and load the model. If this fails, the process is ended.

        Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`, `invalid_config`, `shutdown`).
        """
        if self._process is not None and self._process.end is None:
            return
        try:
            process = await self._start()
            while (message := await process.loading.get())["type"] == "progress":
                report(message["text"])
            if message["type"] == "failed":
                raise _shut_down() if self._closed else frames.unpacked_error(message["error"])
            self._window = message["window"]
            self._takes_images = message["images"]
        except BaseException:
            if self._process is not None:
                await self._process.finish()
            raise

    async def _start(self) -> EngineProcess:
        if self._closed:
            raise _shut_down()
        try:
            self._process = process = await EngineProcess.start(self._engine, self._environment, self._deliver)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise PromptmillError(
                Code.ENGINE_LOAD_FAILED,
                f"The {self._engine} engine's process could not be started: {reason}.",
                "Raise this machine's limits of processes, open files or memory.",
            ) from None
        if self._closed:
            raise _shut_down()
        await process.send(frames.packed({"type": "load", "engine": self._engine, "options": self._options}))
        return process

    def _deliver(self, message: Frame | PromptmillError) -> None:
        """Pass an outcome or a preview to its request, or pass the error of the process's end to all requests."""
        if isinstance(message, PromptmillError):
            for arrived, _ in self._open.values():
                if not arrived.done():
                    arrived.set_result(_shut_down() if self._closed else message)
        elif (entry := self._open.get(message["id"])) is not None:
            arrived, call = entry
            if message["type"] == "outcome" and not arrived.done():
                arrived.set_result(message)
            elif message["type"] == "preview" and call.preview is not None:
                call.preview(Growing(message["text"], message["reasoning"]))

    def _gone(self) -> PromptmillError | None:
        if self._closed:
            return _shut_down()
        if self._process is None:
            return PromptmillError(Code.ENGINE_DIED, f"The {self._engine} engine is not loaded.")
        return self._process.end

    def enter(self, call: Call) -> EngineShare:
        """Record that a call starts. Raises `PromptmillError` (`engine_died`, `shutdown`) if the engine has ended."""
        if (gone := self._gone()) is not None:
            raise gone
        images = ImageCache(self._rules, json_base64, self._web.fetch) if self._takes_images else None
        share = EngineShare(self._window, next(self._numbers), images, live=call.preview is not None)
        self._calls[call] = share
        return share

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Let the engine answer a request. Raises `PromptmillError` (`engine_died`, `shutdown`) if the engine ended."""
        if request.form is None or not several_questions.is_asked(request):
            return await self._exchanged(request, call)
        text = next(self._numbers)

        def ask(question: Request, of_form: Frame) -> Awaitable[Outcome]:
            return self._exchanged(question, call, {**of_form, "text": text})

        outcome = await several_questions.answered(request, request.form, ask)
        return await self._exchanged(request, call) if outcome is None else outcome

    async def _exchanged(self, request: Request, call: Call, of_form: Frame | None = None) -> Outcome:
        """Let the engine answer a request. `of_form`: further fields of the message for a question of a form."""
        share, number = self._calls[call], next(self._numbers)
        arrived: asyncio.Future[Frame | PromptmillError] = asyncio.get_running_loop().create_future()
        self._open[number] = arrived, call
        call.in_flight += 1
        try:
            try:
                await self._submit(number, request, call, share, of_form or {})
            except PromptmillError as error:
                if (gone := self._gone()) is not None:
                    raise gone from None
                return Failure(error, request.attempts)
            message = await arrived
        except asyncio.CancelledError:
            share.abandoned = True
            raise
        finally:
            call.in_flight -= 1
            del self._open[number]
        if isinstance(message, PromptmillError):
            raise message
        for warning in message.get("warnings", ()):
            call.warn(warning)
        return _outcome_of(message, request)

    async def _submit(self, number: int, request: Request, call: Call, share: EngineShare, of_form: Frame) -> None:
        """Write a request to the pipe. Raises the request's own error, or the reason of the engine's end.

        A call writes one request at a time, because a frame may be large and the pipe full. Requests with images are
        prepared several at a time, so that a slow disk or host delays only its own request.
        """
        async with share.reading if request.conversation.sourced else share.writing:
            frame = await share.frame(number, request, of_form)
            if (gone := self._gone()) is not None:
                raise gone
            if not of_form.get("follows"):  # all questions of a form count as one request
                call.sending(request)
            assert self._process is not None
            await self._process.send(frame)

    async def leave(self, call: Call) -> None:
        """Record that a call has ended. The engine drops the call's remaining rows."""
        share = self._calls.pop(call)
        share.close()
        if share.abandoned and self._process is not None:
            self._process.write({"type": "cancel", "run": share.run})

    async def aclose(self) -> None:
        """End the process group immediately and wait for its end. Running calls raise `shutdown`."""
        self._closed = True
        if self._process is not None:
            await self._process.finish()
        await self._web.aclose()


class EngineProcess:
    """One process of an engine, from its start to the end of its process group."""

    def __init__(
        self,
        engine: str,
        child: subprocesses.Child,
        scratch: str,
        deliver: Callable[[Frame | PromptmillError], None],
    ) -> None:
        """`scratch`: the folder of the process's temporary files. `deliver`: see `start`."""
        self._engine = engine
        self._child = child
        self._deliver = deliver
        self._loaded = False
        self._last_words = ""
        self.loading: asyncio.Queue[Frame] = asyncio.Queue()
        """The messages about the load: `progress`, then `loaded` or `failed`."""
        self.ended = asyncio.Event()
        self.end: PromptmillError | None = None
        """The reason of the process's end; None while it runs."""
        self._listener = asyncio.create_task(self._listen(scratch), name=f"listen to {engine}")

    @classmethod
    async def start(
        cls, engine: str, environment: Mapping[str, str], deliver: Callable[[Frame | PromptmillError], None]
    ) -> EngineProcess:
        """Start the process of `engine`, with a new folder for its temporary files. Raises `OSError`.

        `deliver` is called with each outcome and preview, and finally with the error of the process's end.
        """
        scratch = tempfile.mkdtemp(prefix="promptmill-")
        try:
            scratch_variables = {subprocesses.SCRATCH: scratch, "TMPDIR": scratch}
            child = await subprocesses.Child.start(_CHILD, {**environment, **scratch_variables})
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return cls(engine, child, scratch, deliver)

    @property
    def pid(self) -> int:
        """The id of the process, which leads its process group."""
        return self._child.pid

    async def _listen(self, scratch: str) -> None:
        try:
            while (message := await self._child.receive()) is not None:
                match message["type"]:
                    case "outcome" | "preview":
                        self._deliver(message)
                    case "last_words":
                        self._last_words = f" It said: {message['text']}"
                    case kind:
                        self._loaded = self._loaded or kind == "loaded"
                        self.loading.put_nowait(message)
        except (frames.OutOfStepError, KeyError, TypeError):
            self._last_words = " What it sent could not be read."
        finally:
            subprocesses.end_group(self.pid)  # also ends the processes that the engine has started
            how = await self._child.wait()
            await _group_gone(self.pid)
            shutil.rmtree(scratch, ignore_errors=True)  # sockets and other files that a killed process could not remove
            self.end = self._reason(f"{how}.{self._last_words}")
            self.ended.set()
            self.loading.put_nowait({"type": "failed", "error": frames.packed_error(self.end)})
            self._deliver(self.end)

    def _reason(self, how: str) -> PromptmillError:
        if self._loaded:
            return PromptmillError(Code.ENGINE_DIED, f"The {self._engine} engine's process is gone: {how}")
        failed = f"The {self._engine} engine's process ended while it loaded the model: {how}"
        return PromptmillError(Code.ENGINE_LOAD_FAILED, failed)

    async def send(self, frame: bytes) -> None:
        """Write a frame, waiting while the pipe is full. If the process has ended, raise the reason."""
        if self.end is None:
            if await self._child.send(frame):
                return
            await self.ended.wait()
        assert self.end is not None
        raise self.end

    def write(self, message: Frame) -> None:
        """Write a small message without waiting. If the process has ended, write nothing."""
        self._child.write(frames.packed(message))

    async def finish(self) -> None:
        """End the process group immediately and wait for its end."""
        if self.end is None:
            subprocesses.end_group(self.pid)
        await asyncio.shield(self._listener)


async def _group_gone(pid: int) -> None:
    """Wait a short time until the children of a killed process have ended and have freed their memory and ports."""
    for _ in range(100):
        if not subprocesses.group_exists(pid):
            return
        await asyncio.sleep(0.01)


def _shut_down() -> PromptmillError:
    return PromptmillError(Code.SHUTDOWN, "The engine was shut down.")


class EngineShare(FixedShare):
    """A call's share of an engine. It encodes the call's requests; the engine divides its batch among all calls."""

    def __init__(self, most: int, run: int, images: ImageCache | None, *, live: bool = False) -> None:
        """`run`: the number that names the call in messages. `images`: None for a model that reads only text.

        `live`: previews of growing answers are requested.
        """
        super().__init__(most)
        self.run = run
        self.writing = asyncio.Lock()
        self.reading = asyncio.Semaphore(_READ_AT_ONCE)
        self.abandoned = False
        """Whether a request of the call was cancelled, so the engine should drop the call's remaining rows."""
        self._images = images
        self._live = live

    async def frame(self, number: int, request: Request, of_form: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        """Return the `submit` frame for a request (see `channel`). `of_form`: further fields for a form's question.

        Raises `PromptmillError` (`unsupported`, `invalid_input`, `invalid_image`, `request_too_large`).
        """
        message = {"type": "submit", "run": self.run, "id": number, **of_form}
        if request.path:
            return _packed({**message, "path": request.path, "body": dict(request.extra)})
        conversation = request.conversation
        if conversation.images and self._images is None:
            raise PromptmillError(
                Code.UNSUPPORTED,
                "The prompt comes with images, and this model reads only text.",
                READS_IMAGES,
            )
        if kinds := conversation.file_kinds:
            nouns = " and ".join(f"a {NOUNS[kind]}" for kind in sorted(kinds))
            raise PromptmillError(
                Code.UNSUPPORTED,
                f"The prompt comes with {nouns}, which engines on this machine do not read.",
                "Leave it out, or choose the openai backend and a model that takes it.",
            )
        check_encodable(conversation)
        read = [await self._images.read(image) for image in conversation.images] if self._images else []
        _check_size(sum(map(len, read)))  # checked before the images are copied into a frame
        return _packed(
            {
                **message,
                "messages": _messages(conversation.messages),
                "sampling": request.sampling.given(),
                "extra": dict(request.extra),
                **({"live": True} if self._live and not of_form else {}),
                **({"required": sorted(request.required)} if request.required else {}),
                **({"marks": sorted(marks)} if (marks := conversation.marks) else {}),
                **({"images": [orjson.Fragment(image) for image in read]} if read else {}),
            }
        )

    def close(self) -> None:
        """Stop reading and downloading images."""
        if self._images is not None:
            self._images.close()


def _check_size(size: int) -> None:
    if size > LARGEST_FILE:
        raise PromptmillError(Code.REQUEST_TOO_LARGE, f"The item takes {size >> 20} MiB, more than any model reads.")


def _packed(message: frames.Frame) -> bytes:
    try:
        frame = frames.packed(message)
    except (TypeError, ValueError, RecursionError):
        raise input_error(
            "The item's stop strings, message fields or extra parameters cannot be written as JSON: they contain half "
            "a surrogate pair, a number above 64 bits, or nesting that is too deep. Remove it."
        ) from None
    _check_size(len(frame))
    return frame


def _messages(messages: tuple[Message, ...]) -> list[dict[str, object]]:
    """Return the turns as OpenAI messages. Each image is replaced by a number, which counts the images of all turns."""
    index = 0
    turns = []
    for message in messages:
        content: object = message.content
        if isinstance(content, tuple):
            parts: list[dict[str, object]] = []
            for part in content:
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                elif isinstance(part, ImagePart):
                    parts.append({"type": "image", "index": index})
                    index += 1
            content = parts
        turns.append({**(message.extra or {}), "role": message.role, "content": content})
    return turns


def json_base64(image: ImageFile) -> bytes:
    """Return an image in base64, as JSON text."""
    import pybase64

    return b'"%b"' % pybase64.b64encode(image.data)


def _outcome_of(message: Frame, request: Request) -> Outcome:
    attempts = request.attempts + message.get("attempts", 1)
    if (error := message.get("error")) is not None:
        return Failure(frames.unpacked_error(error), attempts, message.get("latency_s", 0.0))
    prompt_tokens, completion_tokens = message["usage"]
    completion = Completion(
        message["text"],
        message["finish_reason"],
        Usage(prompt_tokens, completion_tokens),
        message["reasoning"],
        tuple(message.get("tool_calls", ())),
        attempts,
        message["latency_s"],
        message.get("logprobs"),
        message.get("probabilities"),
        message.get("details"),
        warnings=tuple(message.get("warnings", ())),
    )
    if request.texts and completion.details is not None:
        completion.vectors = vectors.in_payload(completion.details["payload"], request.texts)
    if problem := completion.unanswered:
        reasoning = completion.reasoning or ""
        return Failure(problem, attempts, completion.latency_s, completion.usage, reasoning=reasoning)
    return completion


# vLLM's arguments that a call may set: numbers, switches and names from closed lists, which change the amount, speed
# and number format of the computation. All other arguments, also of later vLLM versions, are reserved for the
# operator: they may import code (`spec_model: "module.Class"`), read and write files, or open connections.
ENGINE_ARGUMENTS = frozenset(
    {
        # amounts, durations and memory
        *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens", "max_logprobs"),
        *("kv_cache_memory_bytes", "kv_cache_dtype", "block_size", "num_gpu_blocks_override", "cpu_offload_gb"),
        *("limit_mm_per_prompt", "mm_processor_cache_gb", "skip_mm_profiling", "language_model_only"),
        # numbers of devices
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size"),
        *("enable_expert_parallel", "disable_custom_all_reduce"),
        # scheduling and compilation
        *("enable_prefix_caching", "enable_chunked_prefill", "long_prefill_token_threshold", "scheduling_policy"),
        *("async_scheduling", "stream_interval", "disable_sliding_window", "disable_cascade_attn"),
        *("enforce_eager", "optimization_level", "performance_mode", "seed", "disable_log_stats"),
        # adapters and names
        *("enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "reasoning_parser", "served_model_name"),
    }
)
# These settings choose the model. A call may choose any model, but then the model's own code does not run.
WHICH_MODEL = frozenset({"model_name_or_path", "tokenizer", "revision", "tokenizer_revision", "quantization"})
_BRINGS_NO_CODE = ENGINE_ARGUMENTS | {
    *("trust_remote_code", "gpu_ids", "replicas", "device", "dtype", "batch_size", "gguf_file"),
    "gpu_memory_utilization",
}


def check_arguments(config: ModelConfig) -> None:
    """Raise `PromptmillError` (`invalid_config`) if a call sets a setting that is reserved for the operator.

    A call may repeat the operator's value.
    """
    if config.trust_client:
        return
    block, operator = (_given(side, config.backend) for side in (config.settings, config.operator))
    ours = type(getattr(config.settings.backend_configs, config.backend)).marked(BY_CALL)
    allowed = ENGINE_ARGUMENTS | WHICH_MODEL | ours
    for name in sorted(config.from_call - allowed):
        if name not in operator or block.get(name) != operator[name]:
            meant = did_you_mean(name, allowed, likeness=_NEARLY_EQUAL)
            switch = f"{meant} Otherwise {TRUST_SWITCH}" if meant else TRUST_SWITCH
            raise config_error(f"backend_configs.{config.backend}.{name:.60}", f"a call may not set this; {switch}")


def _check_spelling(backend: str, extra: Mapping[str, object]) -> None:
    """Raise `PromptmillError` (`invalid_config`) for unknown names in an engine's block that resemble known names.

    It is called if the block names no model, because the reason may be a misspelt name of the model's setting.
    """
    path, problems = "", []
    for name in extra:
        if name in _BRINGS_NO_CODE:
            continue
        meant = did_you_mean(name, _BRINGS_NO_CODE, likeness=_NEARLY_EQUAL)
        if name == "model":
            meant = "did you mean model_name_or_path?"
        if meant:
            problems.append(f"{f'{name:.60}: ' if path else ''}unknown key; {meant}")
            path = path or f"backend_configs.{backend}.{name:.60}"
    if problems:
        raise config_error(path, " ".join(problems))


def trusts_remote_code(config: ModelConfig) -> bool:
    """Return whether the model's own code may run: only if the operator allowed it for exactly this model.

    It may not run if the call sets other values that may bring code, such as another tokenizer or revision.
    """
    block = getattr(config.settings.backend_configs, config.backend)
    operator = getattr(config.operator.backend_configs, config.backend)
    if not getattr(block, "trust_remote_code", False) or config.trust_client:
        return bool(getattr(block, "trust_remote_code", False))
    if "trust_remote_code" in config.from_call and not operator.trust_remote_code:
        path = f"backend_configs.{config.backend}.trust_remote_code"
        raise config_error(path, f"a call may not switch this on; {TRUST_SWITCH}")
    ours, theirs = _given(config.settings, config.backend), _given(config.operator, config.backend)
    return all(name in _BRINGS_NO_CODE or ours.get(name) == theirs.get(name) for name in config.from_call)


def _given(settings: Any, backend: str) -> dict[str, object]:
    block: dict[str, object] = getattr(settings.backend_configs, backend).model_dump()
    return block
