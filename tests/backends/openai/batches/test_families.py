"""Each family of Batch APIs against a provider that answers, bills and misbehaves."""

import asyncio
import contextlib
import pickle
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from batch_server import BatchServer, answer_to
from promptmill.backends.batches import (
    LIST_LAG_S,
    BatchApi,
    BatchState,
    BatchUnclearError,
    PlannedBatch,
    QueueFullError,
    Reply,
)
from promptmill.backends.openai.batches.connect import batch_profile, open_batches
from promptmill.backends.openai.dialects import DIALECTS
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import PLAIN, PROFILES, profile_of
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError

KEY = "test-key-1234567890"
ROWS = 40
DIALECTS_OF = {"anthropic": "anthropic", "gemini": "gemini"}
NAMES = {"gemini": "google"}
WITH_FILES = ["openai", "azure", "together", "mistral", "gemini", "fireworks", "xai"]
ALL = [*WITH_FILES, "anthropic", "openrouter"]


def endpoint_of(server: BatchServer, profile: str = "") -> Endpoint:
    name = profile or NAMES.get(server.family, server.family)
    spoken = DIALECTS_OF.get(server.family, "openai")
    dialect = DIALECTS[spoken]
    headers = {"Content-Type": "application/json", "Accept": "application/json", **dialect.headers(KEY)}
    known = PLAIN if name == "plain" else profile_of(name)
    where = f"127.0.0.1:{server.port}"
    return Endpoint(server.base_url + dialect.PATH, where, headers, (KEY,), known, dialect=spoken)


@asynccontextmanager
async def opened(server: BatchServer, profile: str = "", **settings: Any) -> AsyncIterator[BatchApi]:
    async def sleep(seconds: float) -> None:
        server.advance(seconds)
        await asyncio.sleep(0)

    quick = OpenAISettings(base_url=[server.base_url], model_name="m", **settings)
    async with open_batches(endpoint_of(server, profile), quick, sleep=sleep, rng=random.Random(1)) as api:
        yield api


def body_of(server: BatchServer, prompt: str) -> dict[str, Any]:
    if server.family == "gemini":
        return {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    return {"model": "m", "messages": [{"role": "user", "content": prompt}]}


def planned(server: BatchServer, api: BatchApi, folder: Path, rows: int = ROWS, key: str = "k-1") -> PlannedBatch:
    file = folder / f"{key}.jsonl"
    with file.open("wb") as out:
        for number in range(rows):
            body = orjson.dumps(body_of(server, f"prompt {number}"))
            out.write(api.line(f"{number}-a", body))
    return PlannedBatch(key, "m", rows, file, server.now)


async def submitted(api: BatchApi, batch: PlannedBatch) -> tuple[PlannedBatch, BatchState]:
    batch = replace(batch, file_id=await api.upload(batch))
    return batch, await api.create(batch)


async def ended(api: BatchApi, state: BatchState) -> BatchState:
    while not state.is_ended:
        state = await api.state(state.id)
    return state


async def read(api: BatchApi, state: BatchState) -> list[Reply]:
    return [reply async for reply in api.replies(state) if reply is not None]


def text_of(reply: Reply) -> str:
    body = orjson.loads(reply.body)
    if "candidates" in body:
        return str(body["candidates"][0]["content"]["parts"][0]["text"])
    return str(body["content"][0]["text"] if "content" in body else body["choices"][0]["message"]["content"])


def answered(replies: list[Reply]) -> dict[str, str]:
    """Return the texts of the answers; the first of each id counts."""
    found: dict[str, str] = {}
    for reply in replies:
        if reply.status == 200:
            found.setdefault(reply.custom_id, text_of(reply))
    return found


EXPECTED = {f"{number}-a": answer_to(f"prompt {number}") for number in range(ROWS)}


@pytest.mark.parametrize("family", ALL)
async def test_every_row_of_a_batch_is_answered_and_no_file_remains(family, tmp_path):
    with BatchServer(family) as server:
        async with opened(server) as api:
            await api.check()
            batch, state = await submitted(api, planned(server, api, tmp_path))
            assert not state.is_ended
            assert state.problem is None
            state = await ended(api, state)
            assert answered(await read(api, state)) == EXPECTED
            await api.delete(batch, state)
        assert server.left_files() == []
        assert server.never_read() == []
        assert set(server.billed.values()) == {1}
        assert server.keyless == 0
        assert server.leaked == 0
        assert bool(batch.file_id) == (family in WITH_FILES)


SHUFFLED = {
    "shuffled": True,
    "missing": 10,
    "errors": 7,
    "damaged": 11,
    "duplicates": 6,
    "page": 3,
    "text_counts": True,
}


@pytest.mark.parametrize("family", ALL)
async def test_a_row_is_answered_failed_or_missing_whatever_the_order_and_form_of_the_results(family, tmp_path):
    with BatchServer(family, **SHUFFLED) as server:
        async with opened(server) as api:
            _, state = await submitted(api, planned(server, api, tmp_path))
            found = [reply async for reply in api.replies(await ended(api, state))]
        replies = [reply for reply in found if reply is not None]
        numbers = range(1, ROWS + 1)
        failed = {f"{number - 1}-a" for number in numbers if number % 7 == 0 and number % 10}
        missing = {f"{number - 1}-a" for number in numbers if number % 10 == 0}
        damaged = {f"{number - 1}-a" for number in numbers if number % 11 == 0 and number % 10 and number % 7}
        if family in {"openrouter", "xai"}:  # its results are no lines
            damaged = set()
        assert found.count(None) == len(damaged)
        assert {reply.custom_id for reply in replies if reply.status >= 400} == failed
        assert all(orjson.loads(reply.body)["error"] for reply in replies if reply.status >= 400)
        texts = answered(replies)
        assert texts.keys() == EXPECTED.keys() - failed - missing - damaged
        assert {name: text.removeprefix("second ") for name, text in texts.items()}.items() <= EXPECTED.items()


@pytest.mark.thorough
@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("lost_by", ["close", "502"])
async def test_a_batch_whose_confirmation_is_lost_is_found_and_not_created_again(family, lost_by, tmp_path):
    with BatchServer(family, lost_creates=1, lost_by=lost_by, list_lag_s=20, page=2) as server:
        async with opened(server) as api:
            batch = planned(server, api, tmp_path)
            batch = replace(batch, file_id=await api.upload(batch))
            with pytest.raises(BatchUnclearError):
                await api.create(batch)
            assert await api.find(batch) is None or family == "fireworks"  # it is found by its id, not in a list
            server.advance(LIST_LAG_S)
            later = [await submitted(api, planned(server, api, tmp_path, rows=3, key=f"k-{n}")) for n in range(2, 7)]
            server.advance(LIST_LAG_S)
            found = await api.find(batch)
            assert found is not None
            assert found.id not in {state.id for _, state in later}
            assert server.creates == 6
            assert await api.find(batch, known={found.id}) is None
            assert answered(await read(api, await ended(api, found))) == EXPECTED


@pytest.mark.thorough
@pytest.mark.parametrize("family", ALL)
async def test_a_list_is_read_until_its_entries_are_older_than_the_batch(family, tmp_path):
    with BatchServer(family, page=2) as server:
        async with opened(server) as api:
            for number in range(9):
                await submitted(api, planned(server, api, tmp_path, rows=1, key=f"old-{number}"))
            server.advance(3 * 86_400)
            batch = planned(server, api, tmp_path)
            server.requests.clear()
            assert await api.find(batch) is None
            assert server.requests["list"] <= 6  # Gemini's list has no order


@pytest.mark.parametrize("family", ["openai", "azure", "mistral", "anthropic", "openrouter"])
async def test_an_endpoint_that_ignores_the_page_does_not_repeat_its_list_forever(family, tmp_path):
    with BatchServer(family, one_page=True) as server:
        async with opened(server) as api:
            await submitted(api, planned(server, api, tmp_path, rows=1, key="other"))
            assert await api.find(replace(planned(server, api, tmp_path), file_id="none")) is None
            assert await api.find_file(planned(server, api, tmp_path)) == ""


@pytest.mark.thorough
@pytest.mark.parametrize("family", WITH_FILES)
@pytest.mark.parametrize("lost_by", ["close", "502"])
async def test_a_file_whose_upload_was_not_confirmed_is_used_and_not_uploaded_again(family, lost_by, tmp_path):
    with BatchServer(family, lost_uploads=1, lost_by=lost_by) as server:
        async with opened(server) as api:
            batch, state = await submitted(api, planned(server, api, tmp_path))
            assert server.uploads == 1
            assert await api.find_file(batch) == batch.file_id
            await api.delete(batch, await ended(api, state))
        assert server.left_files() == []


@pytest.mark.parametrize("family", WITH_FILES)
async def test_a_file_that_was_uploaded_in_part_is_not_used(family, tmp_path):
    with BatchServer(family) as server:
        async with opened(server) as api:
            batch = planned(server, api, tmp_path)
            file_id = await api.upload(batch)
            assert await api.find_file(batch) == file_id
            if family == "fireworks":  # a dataset is whole if it is ready
                return
            server.files[file_id].path.write_bytes(b"{}")
            assert await api.find_file(batch) == ""
            await api.delete(batch, None)
        assert server.left_files() == []


@pytest.mark.parametrize("family", WITH_FILES)
async def test_files_that_lists_do_not_have_yet_are_deleted_with_the_batch(family, tmp_path):
    with BatchServer(family, lost_uploads=1, list_lag_s=20) as server:
        async with opened(server) as api:
            batch, state = await submitted(api, planned(server, api, tmp_path))
            state = await ended(api, state)
            server.advance(30)
            await api.delete(batch, state)
            await api.delete(batch, state)
        assert server.left_files() == []


@pytest.mark.parametrize("family", WITH_FILES)
async def test_known_files_are_deleted_even_if_files_cannot_be_listed(family, tmp_path):
    with BatchServer(family) as server:
        async with opened(server) as api:
            batch, state = await submitted(api, planned(server, api, tmp_path))
            state = await ended(api, state)
            server.switches.set({"no_batches": True})
            with contextlib.suppress(PromptmillError):
                await api.delete(batch, state)
        assert server.left_files() == []


@pytest.mark.parametrize("family", ALL)
async def test_a_file_is_deleted_if_its_batch_was_never_created(family, tmp_path):
    with BatchServer(family, refused_creates=1) as server:
        async with opened(server) as api:
            batch = planned(server, api, tmp_path)
            batch = replace(batch, file_id=await api.upload(batch))
            with pytest.raises(QueueFullError) as refused:
                await api.create(batch)
            assert refused.value.code is Code.RATE_LIMITED
            assert refused.value.wait_s == (None if family == "gemini" else 7)
            again = pickle.loads(pickle.dumps(refused.value))
            assert (type(again), again.wait_s) == (QueueFullError, refused.value.wait_s)
            await api.delete(batch, None)
        assert (server.creates, server.left_files()) == (0, [])


@pytest.mark.thorough
@pytest.mark.parametrize("family", [family for family in ALL if family not in {"together", "anthropic"}])
async def test_a_batch_that_fails_because_the_queue_is_full_says_so(family, tmp_path):
    with BatchServer(family, full=1, polls=0) as server:
        async with opened(server) as api:
            _, state = await submitted(api, planned(server, api, tmp_path))
            state = await api.state(state.id)
            assert state.said == "failed"
            assert state.is_ended
            assert state.is_full
            assert state.problem is not None
            assert "nqueued token" in state.problem.message
            assert [reply async for reply in api.replies(replace(state, results=()))] == []


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("how", ["expired", "cancelled"])
async def test_the_finished_part_of_an_unfinished_batch_is_read(family, how, tmp_path):
    with BatchServer(family, finished=0.75 if how == "expired" else 1, cancelled=0.25, polls=2) as server:
        async with opened(server) as api:
            _, state = await submitted(api, planned(server, api, tmp_path))
            if how == "cancelled":
                if not batch_profile(endpoint_of(server)).can_cancel:
                    with pytest.raises(PromptmillError, match="cannot cancel"):
                        await api.cancel(state.id)
                    return
                state = await api.cancel(state.id)
            state = await ended(api, state)
            assert state.problem is None
            replies = await read(api, state)
            part = ROWS * 3 // 4 if how == "expired" else ROWS // 4
            assert answered(replies) == dict(list(EXPECTED.items())[:part])
            assert {reply.status for reply in replies} <= {200, 0}
            assert len(server.billed) == part
            if how == "cancelled":
                assert (await api.cancel(state.id)).is_ended


@pytest.mark.parametrize("family", ALL)
async def test_requests_that_read_are_repeated(family, tmp_path):
    with BatchServer(family) as server:
        async with opened(server, base_delay=0.5) as api:
            batch, state = await submitted(api, planned(server, api, tmp_path))
            server.switches.set({"flaky": 4})
            state = await api.state(state.id)
            state = await ended(api, state)
            server.switches.set({"flaky": 4})
            assert answered(await read(api, state)) == EXPECTED
            server.switches.set({"flaky": 50})
            with pytest.raises(PromptmillError):
                await api.find(batch)


@pytest.mark.parametrize("family", [family for family in ALL if family not in {"openrouter", "xai"}])
async def test_a_download_that_is_cut_is_repeated_from_its_beginning(family, tmp_path):
    with BatchServer(family, cut_downloads=2) as server:
        async with opened(server) as api:
            _, state = await submitted(api, planned(server, api, tmp_path))
            assert answered(await read(api, await ended(api, state))) == EXPECTED
            assert server.requests["download"] == 3 + (family == "azure")  # and its empty error file


@pytest.mark.parametrize("family", ALL)
async def test_results_that_are_no_longer_kept_are_an_error(family, tmp_path):
    with BatchServer(family) as server:
        async with opened(server) as api:
            _, state = await submitted(api, planned(server, api, tmp_path))
            state = await ended(api, state)
            server.switches.set({"gone": True})
            with pytest.raises(PromptmillError) as gone:
                await read(api, state)
            assert gone.value.code is Code.NOT_FOUND


async def test_errors_are_read_even_if_the_answers_are_no_longer_kept(tmp_path):
    with BatchServer("openai", errors=2) as server:
        async with opened(server) as api:
            _, state = await submitted(api, planned(server, api, tmp_path))
            state = await ended(api, state)
            del server.files[state.results[0]]
            replies = api.replies(state)
            assert [getattr(await anext(replies), "status", None) for _ in range(ROWS // 2)] == [500] * (ROWS // 2)
            with pytest.raises(PromptmillError, match="no longer has all results"):
                await anext(replies)


@pytest.mark.parametrize("family", ALL)
async def test_an_endpoint_without_batches_is_refused_before_anything_is_planned(family):
    with BatchServer(family, no_batches=True) as server:
        async with opened(server) as api:
            with pytest.raises(PromptmillError, match="has no /") as refused:
                await api.check()
        assert refused.value.code is Code.UNSUPPORTED


async def test_an_endpoint_of_no_known_provider_speaks_openais_family(tmp_path):
    with BatchServer("openai") as server:
        async with opened(server, "plain") as api:
            batch, state = await submitted(api, planned(server, api, tmp_path))
            assert answered(await read(api, await ended(api, state))) == EXPECTED
            assert api.limits.requests == 50_000
            assert server.batches[state.id].values["key"] == {"promptmill": batch.key}


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["anthropic", "gemini"])
async def test_a_gateway_s_address_shows_the_api_of_its_batches(family, tmp_path):
    with BatchServer(family) as server:
        async with opened(server, "plain") as api:
            _, state = await submitted(api, planned(server, api, tmp_path))
            assert answered(await read(api, await ended(api, state))) == EXPECTED


async def test_no_batch_is_sent_to_a_provider_that_runs_none_in_this_api():
    url = "https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1/chat/completions"
    with pytest.raises(PromptmillError, match="runs no batches of requests in this API") as refused:
        async with open_batches(
            Endpoint(url, "bedrock", {}, (), profile_of("bedrock")), OpenAISettings(base_url=[url], model_name="m")
        ):
            pass
    assert refused.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(("family", "spoken"), [("anthropic", "openai"), ("openai", "anthropic")])
async def test_requests_in_another_api_than_the_batches_are_refused(family, spoken):
    url = f"http://127.0.0.1:9/v1{DIALECTS[spoken].PATH}"
    endpoint = Endpoint(url, "there", {}, (), profile_of(family), dialect=spoken)
    with pytest.raises(PromptmillError, match=f"Set `dialect: {family}`"):
        async with open_batches(endpoint, OpenAISettings(base_url=[url], model_name="m")):
            pass


async def test_each_provider_takes_the_paths_in_a_batch_that_it_documents():
    batch_url, taken, responding = "http://127.0.0.1:9/v1/chat/completions", set[str](), set[str]()
    for profile in (PLAIN, *(each for each in PROFILES if each.batch is not None and each.batch.is_open)):
        endpoint = Endpoint(batch_url, profile.name, {}, (), profile)
        with contextlib.suppress(PromptmillError):
            async with open_batches(endpoint, OpenAISettings(base_url=[batch_url], model_name="m"), "/embeddings"):
                taken.add(profile.name)
        with contextlib.suppress(PromptmillError):
            spoken = replace(endpoint, url="http://127.0.0.1:9/v1/responses", dialect="responses")
            async with open_batches(spoken, OpenAISettings(base_url=[batch_url], model_name="m")):
                responding.add(profile.name)
        with pytest.raises(PromptmillError, match="takes no requests to /rerank in a batch"):
            async with open_batches(endpoint, OpenAISettings(base_url=[batch_url], model_name="m"), "/rerank"):
                pass
    assert taken == {PLAIN.name, "openai", "mistral", "dashscope", "openrouter", "doubleword"}
    assert responding == {PLAIN.name, "openai"}


async def test_azure_reports_times_counts_and_states_in_its_own_forms(tmp_path):
    with BatchServer("azure") as server:
        async with opened(server) as api:
            batch, state = await submitted(api, planned(server, api, tmp_path))
            assert (state.said, state.done, state.total) == ("validating", None, None)
            assert state.created is not None
            assert abs(state.created - batch.planned) < 3600
            assert state.expires is not None
            state = await ended(api, state)
            assert len(state.results) == 2
            assert len(await read(api, state)) == ROWS
            assert server.files[state.results[1]].path.stat().st_size == 0


async def test_several_batches_that_could_be_the_planned_one_are_an_error_that_names_them(tmp_path):
    with BatchServer("anthropic") as server:
        async with opened(server) as api:
            batch = planned(server, api, tmp_path)
            first, second = await api.create(batch), await api.create(batch)
            with pytest.raises(BatchUnclearError, match=f"2 batches .*{second.id}, {first.id}"):
                await api.find(batch)
            found = await api.find(batch, known={first.id})
            assert found is not None
            assert found.id == second.id


async def test_a_key_that_is_refused_is_reported_without_the_key():
    with BatchServer("openai") as server:
        endpoint = replace(endpoint_of(server), url=server.base_url + "/nothing/chat/completions")
        async with open_batches(endpoint, OpenAISettings(base_url=[server.base_url], model_name="m")) as api:
            with pytest.raises(PromptmillError) as refused:
                await api.check()
        assert KEY not in str(refused.value)


@pytest.mark.parametrize("name", [profile.name for profile in PROFILES if profile.batch and profile.batch.page])
def test_a_documented_discount_and_its_page_belong_together(name):
    batch = profile_of(name).batch
    assert batch is not None
    assert batch.family != "none"
    assert batch.discount is None or 0 < batch.discount < 1


async def test_a_line_of_geminis_has_its_own_form_of_a_schema():
    with BatchServer("gemini") as server:
        async with opened(server) as api:
            schema = {"type": "object", "properties": {"a": {"type": "string"}}}
            body = {"contents": [], "generationConfig": {"responseJsonSchema": schema}}
            config = orjson.loads(api.line("1", orjson.dumps(body)))["request"]["generationConfig"]
            assert config == {"responseSchema": {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}}
            text = {"contents": [{"parts": [{"text": "responseJsonSchema"}]}]}
            assert orjson.loads(api.line("1", orjson.dumps(text)))["request"] == text
