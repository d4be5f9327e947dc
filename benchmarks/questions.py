"""Eight questions about one long text beside one question, on the engines that are installed."""

from __future__ import annotations

import time
from importlib.util import find_spec

from benchmarks.field import Field
from benchmarks.measure import Row, every_core, interleaved, ratio
from promptmill.backends.engines.host import create
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.config.configuration import Configuration, Overrides
from promptmill.core.form import Choice, Form, Question, YesNo
from promptmill.core.request import Request, Sampling, conversation_from_prompt

_ENGINES = {"hf": "torch", "openvino": "openvino_genai", "vllm": "vllm"}
"""The engines, and the package that each needs; vLLM has an environment of its own."""
_MODEL = {"model_name_or_path": "smollm2-135m-instruct"}
_TEXT = "The parcel came late and the box was broken, and nobody answered my mail. " * 120  # about 2,000 tokens
_MOST = 1.5  # asked one by one, eight questions took 5.9 times as long as one on openvino, and 12 times on hf


async def questions(field: Field, pairs: int) -> list[Row]:
    """Compare the seconds of eight questions and of one about a text of 2,000 tokens, which no other request has."""
    with every_core(field.outer):
        return [await _on(name, pairs) for name, package in _ENGINES.items() if find_spec(package)]


async def _on(name: str, pairs: int) -> Row:
    host = create(Configuration({"backend": name, "backend_configs": {name: _MODEL}}).overlaid(Overrides()))
    mails = iter(range(10**6))
    kinds = YesNo(), Choice(("calm", "angry", "furious"))

    async def seconds(count: int) -> float:
        form = Form(tuple(Question(f"field {n}", "", kinds[n % 2]) for n in range(count)))
        mail = conversation_from_prompt(f"Mail {next(mails)}: {_TEXT}", "")
        call = Call(Facts(total=1))
        host.enter(call)
        began = time.perf_counter()
        outcome = await host.answer(Request(0, mail, Sampling(temperature=0), {}, form=form), call)
        await host.leave(call)
        assert isinstance(outcome, Completion), outcome
        return time.perf_counter() - began

    try:
        await host.load(lambda _: None)
        await seconds(1)
        found = await interleaved(pairs, eight=lambda: seconds(8), one=lambda: seconds(1))
    finally:
        await host.aclose()
    value, spread = ratio(found["eight"], found["one"])
    what = f"{name}: eight questions about a text of 2,000 tokens over one, seconds"
    return Row("questions", what, value, _MOST, spread=spread, raw=found)
