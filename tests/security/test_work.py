"""What a schema, a pattern, an answer or a text of legal size may cost, and that others are answered meanwhile."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from bulk_calls import cancelled
from promptmill.answers.response_format import asking_for
from promptmill.answers.schema_kinds import resolved
from promptmill.backends.openai import refusals
from promptmill.config.configuration import Configuration
from promptmill.core.bounds import LONGEST_SEARCHED
from promptmill.core.errors import PromptmillError, redact
from promptmill.core.request import Sampling
from promptmill.core.secret_text import SecretFinder
from promptmill.features.sources import quoted_form, quoting
from promptmill.features.sources.searched_text import Text
from promptmill.files import documents
from promptmill.system import subprocesses
from replies import answer, raw
from served import ServedHere, Session
from server_process import written
from talk import serving, text
from waiting import PATIENCE_S, eventually


def _doubling(levels: int) -> dict[str, Any]:
    """Return a schema with definitions of which each refers twice to the next one."""
    named: dict[str, Any] = {f"l{levels}": {"type": "string"}}
    for at in range(levels):
        next_ = {"$ref": f"#/$defs/l{at + 1}"}
        named[f"l{at}"] = {"type": "object", "properties": {"a": next_, "b": next_}}
    return {"type": "object", "properties": {"root": {"$ref": "#/$defs/l0"}}, "$defs": named}


@pytest.mark.rule("X5")
@pytest.mark.usefixtures("protocol")
async def test_a_schema_whose_values_double_with_each_level_is_refused_before_a_request(serve, upstream):
    async with serve() as talk:
        result = await talk("generate", prompt_ls=["Read"], schema=_doubling(13), sampling_params={"quote": True})
    assert result.is_error
    assert "more than 10,000 values" in text(result)
    assert not upstream.seen


def _chain(levels: int) -> dict[str, Any]:
    """Return a schema with definitions of which each refers to the next one."""
    named: dict[str, Any] = {f"l{levels}": {"type": "string"}}
    for at in range(levels):
        named[f"l{at}"] = {"type": "object", "properties": {"a": {"$ref": f"#/$defs/l{at + 1}"}}}
    return {"type": "object", "properties": {"root": {"$ref": "#/$defs/l0"}}, "$defs": named}


@pytest.mark.rule("X5")
@pytest.mark.features("sources")
@pytest.mark.parametrize("schema", [_doubling(13), _doubling(200), _chain(3000)], ids=["13", "200", "chain"])
def test_a_schema_is_refused_in_time_linear_in_its_length(monkeypatch, schema):
    looks = []

    def counted(*given: Any) -> Any:
        looks.append(given)
        return resolved(*given)

    monkeypatch.setattr(quoted_form, "resolved", counted)
    with pytest.raises(PromptmillError, match="more than 10,000 values"):
        quoted_form.QuotedForm.of(Sampling(response_format=asking_for(schema)))
    assert len(looks) <= 2 * len(schema["$defs"]) + 2


@pytest.mark.rule("X5")
@pytest.mark.usefixtures("protocol")
async def test_a_long_answer_is_matched_in_a_process_with_a_limit(serve, upstream):
    upstream.reply = answer("ab" * 25_000)
    asked = []

    class Counted(subprocesses.Helper):
        def ask(self, *given: Any) -> Any:
            asked.append(given)
            return super().ask(*given)

    pattern = "(?:a|b)*a" + "(?:a|b|c){9}" * 80
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocesses, "Helper", Counted)
        async with serve() as talk:
            result = await talk("generate", prompt_ls=["a"], sampling_params={"match": pattern})
    assert result.is_error or result.structured_content["ans_ls"] == ["ab" * 25_000]
    assert asked


@pytest.mark.rule("X5")
@pytest.mark.parametrize("prompt", ["x" * 5000, "12 " * 2000], ids=["letters", "numbers"])
@pytest.mark.usefixtures("protocol")
async def test_places_of_quotes_of_one_letter_are_compared_up_to_a_bound(serve, upstream, monkeypatch, prompt):
    texts = list[Text]()

    def kept(given: str) -> Text:
        texts.append(Text(given))
        return texts[-1]

    monkeypatch.setattr(quoting, "MOST_SEARCHED", 10_000_000)
    monkeypatch.setattr(quoting, "Text", kept)
    upstream.reply = answer(json.dumps({"list": [{"quote": prompt[1], "value": "v"}] * 200}))
    schema = {"type": "object", "properties": {"list": {"type": "array", "items": {"type": "string"}}}}
    async with serve() as talk:
        result = await talk("generate", prompt_ls=[prompt], schema=schema, sampling_params={"quote": True})
    assert len(json.loads(result.structured_content["ans_ls"][0])["list"]) == 200
    assert 1000 < sum(each.compared for each in texts) < 20_000, "each of 200 quotes has a thousand places or more"


@pytest.mark.rule("X5")
@pytest.mark.parametrize("word", ["sk-", "eyJ-"])
@pytest.mark.usefixtures("protocol")
async def test_an_answer_that_looks_like_keys_is_searched_once_and_in_pieces(bench, tools, monkeypatch, word):
    """It has 100,000 beginnings of keys, and three or four pieces, between which other threads compute."""
    searches = []

    def note(_frame: object, event: str, what: Any) -> None:
        if event == "c_call" and isinstance(getattr(what, "__self__", None), re.Pattern):
            searches.append(what.__name__)

    def find(finder: SecretFinder, data: bytes) -> str:
        sys.setprofile(note)
        try:
            return whole(finder, data)
        finally:
            sys.setprofile(None)

    whole = SecretFinder.find
    monkeypatch.setattr(SecretFinder, "find", find)
    bench.upstream.reply = answer(word * 100_000)
    async with tools() as call:
        job = await call("bulk_generate", prompts=["a"])
        await call("bulk_status", job_id=job["job_id"], wait_s=30)
        searches.clear()
        page = await call("bulk_status", job_id=job["job_id"], read="all")
    assert len(page["rows"]) == 1
    assert 30 < len(searches) < 1000


@pytest.mark.rule("X5")
@pytest.mark.parametrize("word", ["sk-", "eyJ-", "bearer "])
@pytest.mark.usefixtures("protocol")
async def test_the_beginning_of_an_error_is_searched_for_keys(serve, upstream, monkeypatch, word):
    searched = []

    def noted(given: str, *secrets: Any) -> str:
        searched.append(len(given))
        return redact(given, *secrets)

    monkeypatch.setattr(refusals, "redact", noted)
    upstream.reply = raw(json.dumps({"error": {"message": word * 1_000_000}}).encode(), code=400)
    async with serve() as talk:
        assert word.strip() in await talk.error("generate", prompt_ls=["a"])
    assert 0 < max(searched) <= LONGEST_SEARCHED


@pytest.mark.rule("X5")
@pytest.mark.features("embeddings")
@pytest.mark.usefixtures("protocol")
async def test_a_text_without_blanks_lets_the_encoder_answer_others_meanwhile(tmp_path, monkeypatch):
    np, e5 = pytest.importorskip("numpy"), pytest.importorskip("promptmill.features.embeddings.local.e5")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "a", "aa"]
    described = {"pieces": pieces, "normal": {}, "first": 0, "pad": 1, "last": 2, "unknown": 3}
    unigram, began = e5.Unigram(described, [0, 0, 0, 0, -1, -2, -3]), threading.Event()

    def encode(texts: list[str], step: Any) -> Any:
        def slow(count: int) -> None:
            time.sleep(0.01)  # of 5 s in all for the long text, which is cancelled before
            step(count)

        began.set()
        return np.array([[len(unigram.tokens(text, slow)), 1] for text in texts], np.float32)

    encoder = SimpleNamespace(version=lambda: "a", encode=encode)
    monkeypatch.setattr("promptmill.features.embeddings.local.backend.load", lambda *_: encoder)
    monkeypatch.chdir(tmp_path)
    asked = {"options": {"embed": True}}
    async with serving(Configuration({"backend": "encoder"})) as talk:
        long = (await talk("bulk_generate", prompts=["a" * 2_000_000], **asked)).structured_content["job_id"]
        await asyncio.to_thread(began.wait)
        short = (await talk("bulk_generate", prompts=["aaa"], **asked)).structured_content["job_id"]
        assert (await talk.ended(short))["state"] == "finished"
        assert (await talk("bulk_status", job_id=long)).structured_content["state"] == "running"
        await cancelled(talk, long)


@pytest.mark.rule("X5")
@pytest.mark.usefixtures("protocol")
def test_a_client_whose_documents_are_read_for_long_keeps_no_other_out(upstream, tmp_path, monkeypatch):
    read, may_end = list[str](), threading.Event()

    def text_of(_: object, data: bytes, *_rest: object) -> str:
        read.append(data.decode())
        if data == b"busy 0":
            may_end.wait(PATIENCE_S)
        return data.decode()

    def order(session: Session, name: str) -> dict[str, Any]:
        (tmp_path / f"{name}.html").write_text(name)
        return session.call("bulk_generate", files=[str(tmp_path / f"{name}.html")], prompt="{{content}}")

    monkeypatch.setattr(documents, "text_of", text_of)
    config = written(tmp_path, upstream.url, {"allowed_roots": [str(tmp_path)]})
    with ServedHere(config) as served, ThreadPoolExecutor() as pool:
        busy, other = (served.session({"Authorization": f"Bearer {name}"}) for name in ("busy", "other"))
        ordered = [pool.submit(order, busy, "busy 0")]
        eventually(lambda: read)
        ordered += [pool.submit(order, busy, f"busy {at}") for at in range(1, 5)]
        assert "job_id" in order(other, "other")["structuredContent"]
        assert read == ["busy 0", "other"]
        may_end.set()
        assert all("job_id" in each.result()["structuredContent"] for each in ordered)
