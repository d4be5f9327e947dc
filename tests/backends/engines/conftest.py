"""Real engines in real processes, on one loop: the embedded model, and small models made on the spot."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import byte_model
from driving import run
from fakes import DictSink, RequestSource
from promptmill.backends.engines.host import EngineHost, create
from promptmill.backends.protocol import Call, Completion, Outcome
from promptmill.config.configuration import Configuration, Overrides
from promptmill.config.model_config import ModelConfig
from promptmill.core.request import Request, Sampling, conversation_from_messages, conversation_from_prompt

EMBEDDED = "smollm2-135m-instruct"


@dataclass
class Asking:
    """One call, ready to be awaited."""

    host: EngineHost
    source: RequestSource
    sink: DictSink = field(default_factory=DictSink)
    call: Call = field(default_factory=Call)

    async def begun(self) -> asyncio.Task[list[Outcome]]:
        """Run it as a task; return that when the first words of an answer have come."""
        generating = asyncio.Event()
        self.call.preview = lambda _: generating.set()
        running = asyncio.create_task(self.run())
        await generating.wait()
        return running

    async def run(self) -> list[Outcome]:
        await run(self.host, self.source, self.sink, self.call)
        return [self.sink.outcomes[key] for key in sorted(self.sink.outcomes)]


class Desk:
    """Asks engines on the tests' loop."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.last_call = Call()

    def wait(self, work: Coroutine[Any, Any, Any], timeout_s: float = 240) -> Any:
        return self._runner.run(asyncio.wait_for(work, timeout_s))

    def call(self, host: EngineHost, prompts: list[Any], extra: Any = None, **sampling: Any) -> Asking:
        return Asking(host, RequestSource(self.requests(prompts, extra, **sampling)))

    def requests(self, prompts: list[Any], extra: Any = None, **sampling: Any) -> list[Request]:
        sampling.setdefault("temperature", 0)
        requests = []
        for key, prompt in enumerate(prompts):
            turns = isinstance(prompt, list)
            conversation = conversation_from_messages(prompt, "") if turns else conversation_from_prompt(prompt, "")
            own = {name: value[key] if isinstance(value, tuple) else value for name, value in sampling.items()}
            requests.append(Request(key, conversation, Sampling(**own), extra or {}))
        return requests

    def ask(self, host: EngineHost, prompts: list[Any], extra: Any = None, **sampling: Any) -> list[Outcome]:
        """Return one outcome per prompt; a tuple as sampling value holds one value per prompt."""
        return self.answer(host, self.requests(prompts, extra, **sampling))

    def answer(self, host: EngineHost, requests: list[Request]) -> list[Outcome]:
        """Return one outcome per request."""
        call = Asking(host, RequestSource(requests))
        self.last_call = call.call
        return self.wait(call.run())

    def texts(self, host: EngineHost, prompts: list[Any], extra: Any = None, **sampling: Any) -> list[str]:
        outcomes = self.ask(host, prompts, extra, **sampling)
        assert all(isinstance(outcome, Completion) for outcome in outcomes), outcomes
        return [outcome.text for outcome in outcomes]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder first: then one of several processes runs them, and loads each model once."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/backends/engines/"))


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def desk(runner: asyncio.Runner) -> Desk:
    return Desk(runner)


def config_of(
    model: str | Path,
    *,
    backend: str = "hf",
    call: dict[str, Any] | None = None,
    trust_client: bool = False,
    **keys: Any,
) -> ModelConfig:
    raw: dict[str, Any] = {"backend": backend, "unsupported": keys.pop("unsupported", "warn")}
    raw["backend_configs"] = {backend: {"model_name_or_path": str(model), **keys}}
    overrides = Overrides(backend_configs={backend: call} if call else {})
    return Configuration(raw, trust_client=trust_client).overlaid(overrides)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    return config_of


@contextmanager
def _engines(desk: Desk) -> Iterator[Callable[..., EngineHost]]:
    hosts: list[EngineHost] = []

    def make(model: str | Path, **keys: Any) -> EngineHost:
        if keys.get("backend", "hf") == "hf":
            pytest.importorskip("torch")
        host = create(config_of(model, **keys))
        hosts.append(host)
        desk.wait(host.load(lambda text: None))
        return host

    try:
        yield make
    finally:
        for host in hosts:
            desk.wait(host.aclose())


@pytest.fixture
def make_engine(desk: Desk) -> Iterator[Callable[..., EngineHost]]:
    """Load engines, which are closed with the test."""
    with _engines(desk) as make:
        yield make


@pytest.fixture(scope="module")
def engines(desk: Desk) -> Iterator[Callable[..., EngineHost]]:
    """Load engines for several tests, which are closed with the module."""
    with _engines(desk) as make:
        yield make


@pytest.fixture(scope="session")
def engine_of(desk: Desk) -> Iterator[Callable[[str], EngineHost]]:
    """The embedded model by backend, in float32, in which batches answer exactly as single prompts do."""
    loaded: dict[str, EngineHost] = {}
    with _engines(desk) as make:

        def get(backend: str) -> EngineHost:
            if backend == "openvino":
                pytest.importorskip("openvino_genai")
            if backend not in loaded:
                number_format = {"openvino": "precision"}.get(backend, "dtype")
                loaded[backend] = make(EMBEDDED, backend=backend, **{number_format: "float32"})
            return loaded[backend]

        yield get


@pytest.fixture(scope="session")
def engine(engine_of: Callable[[str], EngineHost]) -> EngineHost:
    return engine_of("hf")


@pytest.fixture(scope="session")
def tiny_engine(desk: Desk, tiny: Callable[..., Path]) -> Iterator[EngineHost]:
    """A small model without a chat template."""
    with _engines(desk) as make:
        yield make(tiny())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make small models with random weights and a tokenizer of one token per byte."""
    made: dict[str, Path] = {}

    def make(kind: str = "Llama", template: str | None = None, pad: bool = True, **config: Any) -> Path:
        pytest.importorskip("torch")
        name = f"{kind}-{template}-{pad}-{sorted(config.items())}"
        if name not in made:
            made[name] = tmp_path_factory.mktemp(kind)
            byte_model.save(made[name], kind, template, pad=pad, **config)
        return made[name]

    return make


CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def chat_template() -> str:
    return CHAT


@pytest.fixture(scope="session")
def speaker() -> Callable[[str, list[str]], Path]:
    """Make small models that learnt one answer to every prompt by heart; `marks` are special tokens in it."""

    def make(answer: str, marks: list[str]) -> Path:
        return byte_model.taught("<s>", [("<s>", answer)], marks)

    return make


TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}<s>{{ tool.function.name }}</s>{% endfor %}{% for message in messages %}"
    "<s>{{ message.role[0] }}:{{ message.content }}{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }} {{ call.function.arguments.city }}</tool_call>{% endfor %}</s>{% endfor %}"
    "<s>a:"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
_ASKED = "<s>weather</s><s>u:{0}?</s><s>a:"
_CALL = '<tool_call>{{"name": "weather", "arguments": {{"city": "{0}"}}}}</tool_call>'
_TOLD = "<s>weather</s><s>u:Rome?</s><s>a:<tool_call>weather Rome</tool_call></s><s>t:{0} degrees</s><s>a:"


@pytest.fixture(scope="session")
def tools() -> list[dict[str, Any]]:
    return TOOLS


@pytest.fixture(scope="session")
def caller() -> Path:
    """A small model that learnt to call a tool, to call it twice, and to report the result."""
    lessons = [(_ASKED.format(city), _CALL.format(city)) for city in ("Rome", "Paris")]
    lessons.append((_ASKED.format("Both"), "Both." + _CALL.format("Rome") + _CALL.format("Paris")))
    lessons += [(_TOLD.format(degrees), f"It is {degrees}.") for degrees in ("18", "25")]
    lessons.append((_ASKED.format("Hi"), "Hello."))
    return byte_model.taught(TOOL_TEMPLATE, lessons, ["<tool_call>", "</tool_call>"])


@pytest.fixture(scope="session")
def python() -> list[str]:
    return [sys.executable, "-P"]
