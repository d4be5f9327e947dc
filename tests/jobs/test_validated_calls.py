"""`validate: true` refuses a call with the words of the real call, or of its job before the first request."""

from contextlib import closing

import pytest
from fastmcp.exceptions import ToolError

from bulk_calls import ended, ran
from fakes import openai_configuration
from promptmill.config.configuration import Configuration
from promptmill.jobs.store.database import JobDatabase
from promptmill.service.service import Service

PRICE = {"price": {"input": 1, "output": 1}}
CALL = {"input_file": "in.jsonl", "output_file": "out.csv", "prompt": "Good? {{text}}"}


async def _refusal(call, **arguments):
    """Return the error of a call, or else the reason for which its job stopped; `""` if it has answered its rows."""
    try:
        started = await call("bulk_generate", **arguments)
    except ToolError as error:
        return str(error)
    if not started["job_id"]:
        return "; ".join(started["problems"])
    return (await ended(call, started["job_id"], "finished", "stopped"))["reason"]


@pytest.fixture
def called(bench, tools):
    """Make a call twice, with and without `validate`; return both refusals. `first`: an earlier call, which ends.
    `between`: what happens after it."""
    bench.write([{"text": f"text {number}"} for number in range(20)])

    async def both(arguments, first=None, between=lambda: None, top=None, configuration=None):
        top = top or {}
        whole = configuration or Configuration({**openai_configuration(bench.upstream.url)._raw, **top})
        async with tools(Service(whole)) as call:
            if first is not None:
                await ran(call, **first)
            between()
            asked = len(bench.upstream.seen)
            validated = await _refusal(call, **arguments, validate=True)
            assert len(bench.upstream.seen) == asked, "nothing is sent"
            return validated, await _refusal(call, **arguments)

    return both


@pytest.mark.parametrize(
    ("change", "top", "said"),
    [
        ({}, {}, ""),
        ({"input_file": "gone.jsonl"}, {}, "There is no input file"),
        ({"input_file": "/etc/in.jsonl"}, {}, "input_file is outside the folders"),
        ({"output_file": ""}, {}, "`output_file` is missing"),
        ({"output_file": "in.jsonl"}, {}, "Input and output are the same file"),
        ({"output_file": "out.exe"}, {}, "output_file is a .exe file"),
        ({"prompt": "{{txt}}"}, {}, "did you mean text?"),
        ({"prompt": ""}, {}, "Ask about each row with"),
        ({"prompt_column": "text"}, {}, "`prompt` cannot be used with `prompt_column`"),
        ({"choices": ["only"]}, {}, "The choices should be at least two"),
        ({"choices": ["a", "b"], "schema": {"type": "object"}}, {}, "`choices` cannot be used with `schema`"),
        ({"schema": {"type": "objet"}}, {}, "did you mean object?"),
        ({"columns": ["anser"]}, {}, "did you mean answer?"),
        ({"max_failures": "few"}, {}, "is neither a number nor a share"),
        ({"sampling_params": {"max_tokens": 9}}, {"client_limits": {"max_tokens": 5}}, "at most 5 tokens"),
        ({"model": "gone"}, {"models": {"a": {"openai": {"base_url": "h", "model_name": "m"}}}}, "no model 'gone'"),
        ({"max_cost": 1}, {}, "the price of test-model is not known"),
        ({}, {"max_cost": 1}, "the price of test-model is not known"),
        ({"max_cost": 1}, PRICE, "nothing limits the answers"),
    ],
)
async def test_a_refused_call_is_refused_alike_when_it_is_validated(called, change, top, said):
    validated, real = await called(CALL | change, top=top)
    assert validated == real
    assert said in real if said else not real


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"backend": "openai", "backend_configs": {"openai": {"model_name": "m"}}}, "base_url: is missing"),
        ({"backend": "openai", "backend_configs": {"openai": {"provider": "groq", "model_name": "m"}}}, "needs a key"),
        ({"backend": "nope"}, "there is no backend nope"),
    ],
)
async def test_a_model_that_cannot_be_used_is_refused_alike(called, monkeypatch, raw, said):
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    validated, real = await called(CALL, configuration=Configuration(raw))
    assert validated == real
    assert said in real


@pytest.mark.features("batches")
async def test_a_batch_of_an_engine_is_refused_alike(called):
    raw = {"backend": "hf", "backend_configs": {"hf": {"model_name_or_path": "smollm2-135m-instruct"}}}
    validated, real = await called(CALL | {"batch": True}, configuration=Configuration(raw))
    assert validated == real
    assert "The hf backend has no Batch API." in real


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"sampling_params": {"temperature": 0.5}}, "temperature was not set, now 0.5"),
        ({"prompt": "Other {{text}}"}, "The prompt of job"),
        ({"prompt": "Other {{text}}", "again": "all"}, ""),
        ({"sample": 1}, "has more rows than `sample` 1"),
        ({"limit": 1}, ""),
    ],
)
async def test_another_order_for_a_job_is_refused_alike(called, change, said):
    validated, real = await called(CALL | change, first=CALL)
    assert validated == real
    assert said in real if said else not real


@pytest.mark.thorough
@pytest.mark.parametrize("first", [None, CALL])
async def test_an_output_of_another_program_is_refused_alike(bench, called, first):
    def write():
        (bench.path / "out.csv").write_text("theirs\n")

    validated, real = await called(CALL, first=first, between=write)
    assert validated == real
    assert "`overwrite` replaces it" in real
    validated, real = await called(CALL | {"overwrite": True})
    assert validated == real
    assert "cannot ask its user about `overwrite`" in real


async def test_a_changed_input_is_refused_alike(bench, called):
    validated, real = await called(CALL, CALL, lambda: bench.write([{"text": f"new {n}"} for n in range(20)]))
    assert validated == real
    assert "has changed since" in real


@pytest.mark.thorough
async def test_validating_leaves_the_job_as_it_was(bench, tools):
    def stored():
        with closing(JobDatabase(next(bench.path.rglob("job.db")))) as store:
            return [store.get(name) for name in ("spec", "order", "output", "before")]

    bench.write([{"text": text} for text in "abc"])
    async with tools() as call:
        await ran(call, **CALL)
        before = stored()
        for change in ({"prompt": "Other {{text}}"}, {"limit": 1}, {"prompt": "Other {{text}}", "again": "all"}):
            await _refusal(call, **CALL | change, validate=True)
            assert stored() == before
