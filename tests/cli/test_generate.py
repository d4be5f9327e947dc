"""A single answer on a terminal is printed while it comes."""

from __future__ import annotations

import io

import orjson
import pytest
import yaml

from decision_replies import decides
from fakes import KEY
from promptmill.cli import main as cli
from promptmill.cli.generate import LiveAnswer
from replies import answer, attempts, choose, html, sse, status
from upstream import head
from waiting import until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def event(text: str | None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


@pytest.fixture
def ask(tmp_path, upstream, monkeypatch):
    """Run `generate` with a terminal as stdout; return exit code and what it showed."""
    block = {"model_name": "m", "base_url": upstream.url, "api_key": KEY, "base_delay": 0.01}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"backend": "openai", "backend_configs": {"openai": block}}))
    screen = Terminal()

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdout", screen)
        return cli.main(["generate", "--config", str(file), *arguments]), screen.getvalue()

    run.screen = screen  # type: ignore[attr-defined]
    return run


def test_the_beginning_of_an_answer_is_shown_before_its_end_was_sent(ask, upstream):
    async def reply(exchange):
        await exchange.write(head(200, {"Content-Type": "text/event-stream", "Connection": "close"}))
        await exchange.write(event("Paris ") + b"\n\n")
        await until(lambda: "Paris " in ask.screen.getvalue())
        await exchange.write(event("it is.", "stop") + b"\n\ndata: [DONE]\n\n")
        exchange.close()

    upstream.reply = reply
    assert ask("x") == (0, "Paris it is.\n")


def test_an_endpoint_that_does_not_stream_is_shown_all_the_same(ask, upstream):
    plain, refused = answer("whole"), status(400, "stream is not supported")
    upstream.reply = choose(lambda seen: refused if seen.json.get("stream") else plain)
    assert ask("x") == (0, "whole\n")


def test_what_the_model_thinks_is_not_shown(ask, upstream):
    upstream.reply = sse(event("<th"), event("ink>hm"), event("</think>\n\nyes", "stop"), b"data: [DONE]")
    assert ask("x") == (0, "yes\n")


def test_an_answer_that_broke_off_is_begun_again_on_a_new_line(ask, upstream):
    async def broken(exchange):
        await exchange.write(head(200, {"Content-Type": "text/event-stream", "Connection": "close"}))
        await exchange.write(event("half an") + b"\n\n")
        await until(lambda: "half" in ask.screen.getvalue())
        exchange.close()

    upstream.reply = attempts(broken, answer("a whole one"))
    assert ask("x") == (0, "half an\na whole one\n")


@pytest.mark.parametrize("arguments", [("--json", "x"), ("Say x.", "Say y.")])
def test_json_and_several_answers_are_not_streamed(ask, upstream, arguments):
    assert ask(*arguments)[0] == 0
    assert not any("stream" in seen.json for seen in upstream.seen)


def test_the_hint_for_a_failed_answer_names_the_command(ask, upstream, capsys):
    upstream.reply = html(404)
    assert ask("x")[0] == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "may answer there; `promptmill models --check` looks for the API at other paths." in said


def test_the_part_of_a_failed_answer_that_is_right_is_printed(ask, upstream, capsys):
    upstream.reply = decides(lambda body: body | {"answers": {"urgent": {"noul": 0.9}}})
    own = ("--set", "backend_configs.openai.dialect=systemone", "--fields", "team:a|b!,urgent:boolean!")
    assert ask("x", *own) == (1, '{"urgent":true}\n')
    assert "`team`" in capsys.readouterr().err


def test_control_sequences_do_not_reach_the_terminal_in_pieces_either():
    screen = Terminal()
    live = LiveAnswer(screen)
    live.show("a\x1b")
    live.show("a\x1b[2Jb")
    live.end("a\x1b[2Jb")
    assert "\x1b" not in screen.getvalue()
    assert screen.getvalue().endswith("b\n")


@pytest.fixture
def by_model(upstream):
    """An endpoint whose models answer with their names; it refuses the key for `refused`."""
    refused = status(401, "no such key")
    upstream.reply = choose(lambda seen: refused if seen.json["model"] == "refused" else answer(seen.json["model"]))


@pytest.mark.usefixtures("by_model")
def test_several_models_answer_side_by_side_and_a_failure_costs_its_own_list(ask, capsys):
    code, shown = ask("Say x.", "Say y.", "--model", "a", "--model", "refused", "--model", "b", "--model", "a")
    assert (code, shown) == (1, "[1]\na: a\nrefused: \nb: b\n\n[2]\na: a\nrefused: \nb: b\n")
    assert "refused: 2 of 2 failed with unauthorized" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("by_model")
def test_the_json_of_several_models_has_the_form_of_the_tool(ask, upstream):
    code, shown = ask("--json", "x", "-m", "refused", "-m", "a")
    models = orjson.loads(shown)["models"]
    assert (code, [*models]) == (1, ["refused", "a"])
    assert (models["a"]["ans_ls"], models["a"]["_meta"]["requests"]) == (["a"], 1)
    assert [entry["code"] for entry in models["refused"]["errors"]] == ["unauthorized"]
    assert {seen.json["model"] for seen in upstream.seen} == {"refused", "a"}


def test_several_models_of_one_prompt_have_no_numbers_and_begin_long_answers_on_a_line(ask, upstream):
    upstream.reply = choose(lambda seen: answer("one\ntwo" if seen.json["model"] == "a" else "short"))
    assert ask("x", "-m", "a", "-m", "b") == (0, "a:\none\ntwo\nb: short\n")


@pytest.mark.thorough
def test_a_model_that_cannot_be_loaded_costs_its_own_list_of_a_command(tmp_path, upstream, capsys):
    endpoint = {"model_name": "m", "base_url": upstream.url, "api_key": KEY}
    models = {
        "gone": {"hf": {"model_name_or_path": str(tmp_path / "nothing")}},
        "here": {"openai": endpoint},
    }
    file = tmp_path / "several.yaml"
    file.write_text(yaml.safe_dump({"models": models}))
    assert cli.main(["generate", "--config", str(file), "-m", "gone", "-m", "here", "Say x."]) == 1
    assert capsys.readouterr().out == "gone: \nhere: echo: Say x.\n"
