"""Answers that must keep to a limit of words, match a pattern, or satisfy a function of the program."""

from __future__ import annotations

import csv
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

import promptmill
from fakes import openai_configuration
from promptmill.backends.protocol import Call, Facts
from promptmill.cli import main as cli
from promptmill.config.configuration import Configuration
from promptmill.core.bounds import LONGEST_ANSWER
from promptmill.core.errors import PromptmillError
from promptmill.core.request import conversation_from_prompt
from promptmill.features.checks import parameters, written
from promptmill.service.service import Service
from replies import answer, choose

LONG = "one two three four"


def _again(seen: Any) -> bool:
    return seen.prompt.startswith("This answer")


def _words(seen: Any) -> Any:
    is_stubborn = "stubborn" in str(seen.json["messages"][0])
    return answer("one two" if _again(seen) and not is_stubborn else LONG)


@pytest.fixture
def ask(upstream, closing):
    async def asked(*prompts: str, top: Any = None, **sampling: Any) -> Any:
        configuration = openai_configuration(upstream.url)
        service = closing(Service(type(configuration)({**configuration._raw, **(top or {})})))
        call = Call(Facts(total=len(prompts)))
        items = [conversation_from_prompt(prompt, "a prompt") for prompt in prompts]
        return await service.generate(items, call, config=service.config.with_sampling(sampling)), call

    return asked


async def test_a_long_answer_is_asked_for_again_and_fails_alone(ask, upstream):
    upstream.reply = choose(_words)
    (good, bad), call = await ask("a", "stubborn", max_words=3)
    assert (good.text, good.attempts) == ("one two", 2)
    assert (bad.error.code, bad.text) == ("invalid_answer", LONG)
    assert "it has 4 words, and at most 3 are allowed" in bad.error.message
    assert (call.counts.requests, call.counts.asked_again) == (4, 2)
    assert not any("max_words" in seen.json for seen in upstream.seen)


async def test_each_of_several_answers_is_checked(ask, upstream):
    upstream.reply = choose(_words)
    (outcome,), call = await ask("a", max_words=3, n=2)
    assert (outcome.answers, call.counts.requests) == (("one two", "one two"), 4)


async def test_several_checks_share_the_bound(ask, upstream):
    upstream.reply = choose(lambda seen: answer("x y" if _again(seen) else LONG))
    (outcome,), call = await ask("a", max_words=3, match="one.*")
    assert (outcome.error.code, call.counts.requests) == ("invalid_answer", 2)
    assert "it does not match the pattern one.*" in outcome.error.message


async def test_a_second_request_is_paid_within_the_budget(ask, upstream):
    upstream.reply = choose(_words)
    (outcome,), call = await ask("a", top={"price": {"input": 1, "output": 2}}, max_words=3, max_tokens=9)
    assert outcome.text == "one two"
    assert outcome.cost == call.counts.cost > 0


async def test_an_answer_is_kept_when_it_passed(ask, upstream, tmp_path):
    upstream.reply = choose(_words)
    top = {"cache": str(tmp_path / "answers"), "sampling_params": {"temperature": 0}}
    for requests, most in ((2, 3), (0, 3), (1, 9)):
        (outcome,), call = await ask("a", top=top, max_words=most)
        assert call.counts.requests == requests
    assert outcome.text == LONG


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)b", r"(\d{1,1000}){1,1000}"])
def test_a_pattern_that_is_not_taken_is_named(pattern):
    with pytest.raises(PromptmillError, match="is no regular expression, or one with look-around"):
        promptmill.bulk(["a"], match=pattern, base_url="127.0.0.1:9", model="m")


async def test_a_pattern_of_a_client_takes_no_longer_than_its_text(ask, upstream):
    upstream.reply = answer("a" * 100_000 + "!")  # with `re`, hours
    (outcome,), _ = await ask("a", match=r"(\w+\s?)+x")
    assert outcome.error.code == "invalid_answer"


async def test_no_answer_is_shown_that_may_be_asked_for_again(upstream, closing):
    upstream.reply = choose(_words)
    service, shown = closing(Service(openai_configuration(upstream.url))), []
    call = Call(Facts(total=1), preview=lambda growing: shown.append(growing.text))
    item = conversation_from_prompt("a", "a prompt")
    (outcome,) = await service.generate([item], call, config=service.config.with_sampling({"max_words": 3}))
    assert (outcome.text, shown) == ("one two", [])


@pytest.mark.features("documents")
def test_a_check_is_about_the_answer_to_the_whole_document(bench, upstream):
    def reply(seen: Any) -> Any:
        if "was read in parts" in str(seen.json["messages"]):
            return answer("short" if _again(seen) else LONG)
        return answer("an answer about a piece is as long as it likes")

    upstream.reply = choose(reply)
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    text = "A sentence of the document. " * 300
    bench.input.write_text(f"id,text\n1,{text}\n")
    bench.run("--prompt", "Sum up: {{text}}", "--max-words", "3", "--split", "1000")
    with bench.output.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["answer"] == "short"
    assert sum(_again(seen) for seen in upstream.seen) == 1


def test_the_flags_reach_the_answers(bench, upstream):
    upstream.reply = choose(_words)
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("id,text\n1,a\n2,stubborn\n")
    done = bench.run("--prompt", "Say {{text}}", "--max-words", "3", "--match", "[a-z ]+")
    assert "asked again 2 times, because an answer was not accepted" in done.stdout
    with bench.output.open(encoding="utf-8") as file:
        good, bad = csv.DictReader(file)
    assert (good["answer"], bad["error"].partition(":")[0]) == ("one two", "invalid_answer")


@pytest.fixture
def bulk(upstream, tmp_path):
    def run(*texts: str, **options: Any) -> Any:
        rows = [{"text": text} for text in texts]
        where = {"base_url": upstream.url, "model": "m", "api_key": "k", "state": str(tmp_path)}
        return promptmill.bulk(rows, prompt="Say {{text}}", **where, **options)

    return run


def test_a_function_gets_each_answer_with_its_row(bulk, upstream):
    upstream.reply = choose(_words)

    def check(text: str, row: Any) -> str | None:
        return f"{row['text']} is too long" if len(text.split()) > 3 else None

    result = bulk("a", "stubborn", check=check)
    assert (result.answers, result.failed) == (["one two", ""], 1)
    assert "stubborn is too long" in result.rows[1]["error"]["message"]


class Person(BaseModel):
    age: int

    @field_validator("age")
    @classmethod
    def is_born(cls, age: int) -> int:
        if age < 0:
            raise ValueError("nobody is younger than 0")
        return age


def test_a_validator_of_a_class_complains_about_its_row_alone(bulk, upstream):
    upstream.reply = choose(
        lambda seen: answer(f'{{"age": {7 if _again(seen) and "bad" not in str(seen.json["messages"]) else -1}}}')
    )
    result = bulk("good", "bad", schema=Person)
    assert (result.answers, result.failed) == ([Person(age=7), ""], 1)
    assert "nobody is younger than 0" in result.rows[1]["error"]["message"]
    assert "nobody is younger than 0" in next(seen.prompt for seen in upstream.seen if _again(seen))


def test_a_job_with_a_function_is_not_continued_without_it(tmp_path, upstream):
    upstream.reply = choose(_words)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "a"}\n{"text": "b"}\n')
    where = {"base_url": upstream.url, "model": "m", "api_key": "k", "state": str(tmp_path), "prompt": "Say {{text}}"}
    promptmill.bulk(str(source), str(output), check=lambda text, row: None, limit=1, **where)
    with pytest.raises(PromptmillError, match=r"another check \(check was 'a function', now not set\)"):
        promptmill.bulk(str(source), str(output), **where)
    assert promptmill.bulk(str(source), str(output), check=lambda text, row: None, **where).failed == 0


@pytest.mark.parametrize("check", [lambda text, row: row["nothing"], lambda text, row: bool(text)])
def test_a_check_that_breaks_fails_its_row(bulk, check):
    result = bulk("a", check=check)
    error = result.rows[0]["error"]
    assert (result.failed, error["code"]) == (1, "internal")
    assert "Correct the check" in str(error), "it is no bug of ours"


async def test_an_answer_in_another_language_is_asked_for_again(ask, upstream):
    english, german = "The delivery was late, but all is well.", "Die Lieferung kam zu spät, aber alles ist gut."
    upstream.reply = choose(
        lambda seen: answer(german if _again(seen) and "stubborn" not in str(seen.json["messages"][0]) else english)
    )
    (good, bad), _ = await ask("a", "stubborn", language="de")
    assert (good.text, bad.error.code) == (german, "invalid_answer")
    assert "not in the language `de`, but in `en`" in bad.error.message


@pytest.mark.parametrize(
    "text", ["Ja.", "Paris", "12.50", '{"summary": "Die Lieferung kam zu spät", "mood": "angry"}', ""]
)
async def test_a_short_answer_may_be_in_any_language_and_keys_are_none(ask, upstream, text):
    upstream.reply = answer(text)
    (outcome,), call = await ask("a", language="de")
    assert (outcome.text, call.counts.asked_again) == (text, 0)


@pytest.mark.parametrize(
    ("language", "installed", "said"),
    [
        ("german", True, "is no code of a language, such as en"),
        ("de", False, r"needs py3langid; .*language.* installs"),
    ],
)
def test_a_language_that_cannot_be_checked_is_an_error_before_anything_is_sent(monkeypatch, language, installed, said):
    if not installed:
        monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(PromptmillError, match=said):
        Configuration({"sampling_params": {"language": language}}).config  # noqa: B018


def test_an_invalid_option_is_named_and_not_the_file_without_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    file = tmp_path / "own.yaml"
    file.write_text("sampling_params: {temperature: 0}\n")
    for option, value, said in (
        ("--language", "de", "error: --language: needs py3langid; `"),
        ("--match", "(", "error: --match: is no regular expression"),
    ):
        assert cli.main(["generate", "Hi", "--config", str(file), option, value]) == 2
        assert capsys.readouterr().err.startswith(said)
    file.write_text("sampling_params: {language: de}\n")
    assert cli.main(["generate", "Hi", "--config", str(file)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}: sampling_params.language: needs py3langid; `")


def test_a_language_is_known_without_loading_what_tells_languages_apart(monkeypatch):
    assert frozenset(parameters.likelihoods("")) == parameters.LANGUAGES
    monkeypatch.delitem(sys.modules, "py3langid")
    Configuration({"sampling_params": {"language": "de"}}).config  # noqa: B018
    assert "py3langid" not in sys.modules


@pytest.mark.parametrize("length", [20, 5_000])
async def test_an_answer_of_any_length_is_matched_as_a_whole(ask, upstream, length):
    upstream.reply = choose(lambda seen: answer("a" * length + ("b" if "other" in str(seen.json["messages"]) else "")))
    (good, bad), _ = await ask("a", "other", match="a+")
    assert good.text == "a" * length
    assert "it does not match the pattern a+" in bad.error.message


def test_generate_has_the_flags(upstream, monkeypatch, capsys):
    upstream.reply = choose(_words)
    monkeypatch.setenv("LLM_API_KEY", "k")
    endpoint = ("--base-url", upstream.url, "--model", "m")
    assert cli.main(["generate", "Say a", *endpoint, "--max-words", "3"]) == 0
    assert capsys.readouterr().out == "one two\n"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("这是一段没有空格的文本。", 11),
        ("これは GPT-4 の日本語です", 10),
        ("นี่คือข้อความภาษาไทย", 4),
        ("ນີ້ແມ່ນຂໍ້ຄວາມ", 3),
        ("នេះជាអត្ថបទខ្មែរ", 4),
        ("ဒါကမြန်မာစာပါ", 3),
        ("이것은 긴 한국어 문장입니다", 4),
        ("茶、水和GPT", 4),
        ("two words - and a dash", 6),
        ("ใช่ yes", 2),
    ],
)
async def test_words_of_scripts_without_spaces_are_counted(ask, upstream, text, words):
    upstream.reply = answer(text)
    (good,), _ = await ask("a", max_words=words)
    assert good.text == text
    if words > 1:
        (bad,), _ = await ask("a", max_words=words - 1)
        assert f"it has {words} words" in bad.error.message


@pytest.mark.parametrize("text", ['{"s":"a b c d e","t":null}', '{\n  "s": "a b c",\n  "t": ["d e", 7]\n}'])
async def test_the_words_of_json_are_those_of_its_texts(ask, upstream, text):
    upstream.reply = answer(text)
    (good,), _ = await ask("a", max_words=5, response_format={"type": "json_object"})
    assert good.text == text
    (bad,), _ = await ask("a", max_words=4, response_format={"type": "json_object"})
    assert "it has 5 words" in bad.error.message


@pytest.mark.parametrize("text", ["  A1 \n", "A1\n", "\u00a0A1", "\u3000A1\r\n"])
async def test_an_answer_that_matches_is_delivered_without_blanks_around_it(ask, upstream, text):
    upstream.reply = answer(text)
    (outcome,), call = await ask("a", match="[A-Z][0-9]")
    assert (outcome.text, call.counts.requests) == ("A1", 1)


async def test_inline_reasoning_stays_in_front_of_an_answer_that_matches(ask, upstream):
    upstream.reply = answer("<think>A1 or B2</think>\n\n A1 \n")
    (outcome,), _ = await ask("a", match="[A-Z][0-9]", reasoning="inline")
    assert outcome.text.startswith("<think>A1 or B2</think>")
    assert outcome.text.endswith("\nA1") or outcome.text.endswith(" A1")


@pytest.mark.parametrize("text", ["A 1", "\u200bA1", "A1."])
async def test_an_answer_with_other_characters_does_not_match(ask, upstream, text):
    upstream.reply = answer(text)
    (outcome,), _ = await ask("a", match="[A-Z][0-9]")
    assert outcome.error.code == "invalid_answer"


async def test_without_a_pattern_an_answer_keeps_its_blanks(ask, upstream):
    upstream.reply = answer("  A1 \n")
    (outcome,), _ = await ask("a", max_words=3)
    assert outcome.text == "  A1 \n"


@pytest.mark.features("documents")
@pytest.mark.thorough
def test_the_answer_about_a_whole_document_is_delivered_without_blanks(bench, upstream):
    upstream.reply = answer(" A1 \n")
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text(f"id,text\n1,{'A sentence of the document. ' * 300}\n")
    bench.run("--prompt", "Sum up: {{text}}", "--match", "[A-Z][0-9]", "--split", "1000")
    with bench.output.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["answer"] == "A1"


async def test_a_long_answer_is_checked_in_a_thread(ask, upstream, monkeypatch):
    """A megabyte of Thai takes half a second."""
    threads = []
    monkeypatch.setattr(written, "word_count", lambda _: threads.append(threading.current_thread()) or 1)
    upstream.reply = answer("ก " * 50_000)
    (good,), _ = await ask("a", max_words=5)
    assert good.text
    assert threads != [threading.current_thread()]


@pytest.mark.parametrize("check", [written.MaxWords, written.Language])
def test_an_endless_answer_is_refused_unread(check):
    wanted = SimpleNamespace(sampling=parameters.CheckWishes(max_words=1 << 21, language=None))
    assert check().complaint("a" * (LONGEST_ANSWER + 1), wanted) == "it is longer than 1 MiB"
