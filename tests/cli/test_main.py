"""`promptmill …`: what is printed where, and with which exit code."""

import argparse
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fakes import KEY
from promptmill import __version__
from promptmill.answers.schema import why_no_schema
from promptmill.cli import main as cli
from promptmill.cli.options import explained, option_of
from promptmill.config import parameter_file
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, Named, PromptmillError
from replies import answer, by_prompt, html, status
from sure import sure

ROOT = Path(__file__).parents[2]


@pytest.fixture
def promptmill(tmp_path, upstream, capsys, monkeypatch):
    """Run a command in an empty folder, in front of `upstream`; return exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    block = {"model_name": "m", "base_url": upstream.url, "api_key": KEY, "base_delay": 0.01, "retries": 2}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"backend": "openai", "backend_configs": {"openai": block}}))

    def runner(*arguments, config=file):
        argv = [str(argument) for argument in arguments]
        if config:
            argv[1:1] = ["--config", str(config)]
        try:
            code = cli.main(argv)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert KEY not in out + err
        return code, out, err

    return runner


# generate


def test_a_model_that_the_endpoint_lacks_is_told_with_those_it_has(promptmill, upstream, tmp_path):
    upstream.models = ["gpt-5.5", "qwen3"]
    upstream.reply = status(404, "The model `gpt-55` does not exist", code="model_not_found")
    code, _, err = promptmill("generate", "--model", "gpt-55", "x")
    assert code == 1
    assert "did you mean gpt-5.5? --model NAME chooses it." in err
    _, _, err = promptmill("generate", "--model", "zzz", "x")
    assert "the endpoint has gpt-5.5, qwen3: name one with --model NAME." in err
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    code, out, err = promptmill("bulk", "in.jsonl", "out.jsonl", "--quiet", "--model", "gpt-55")
    assert code == 1
    assert "Did you mean gpt-5.5?" in out + err


def test_a_server_without_memory_is_not_told_to_be_tried_later(promptmill, upstream):
    upstream.reply = status(500, "model requires more system memory (5.6 GiB) than is available (3.2 GiB)")
    assert "use a smaller model" in promptmill("generate", "x")[2]


def test_answers_are_printed_in_order(promptmill):
    assert promptmill("generate", "the one", "two") == (0, "echo: the one\necho: two\n", "")


def test_stdin_is_one_prompt(promptmill, monkeypatch, upstream):
    for arguments in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
        assert promptmill("generate", *arguments)[0] == 0
    assert [seen.json["messages"][0]["content"] for seen in upstream.seen] == ["one\ntwo", "one\ntwo"]


def test_with_lines_every_line_of_stdin_is_a_prompt(promptmill, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n  \ntwo\r\nthree"))
    assert promptmill("generate", "--lines") == (0, "echo: one\necho: two\necho: three\n", "")


def test_input_that_is_not_utf8_is_said_so(promptmill, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    code, _, err = promptmill("generate")
    assert code == 2
    assert "stdin is not UTF-8 text (byte 3)" in err


def test_model_endpoint_and_sampling_have_options_of_their_own(promptmill, upstream):
    options = ["-m", "1.5", "--base-url", upstream.url, "--temperature", "0", "--max-tokens", "7"]
    assert promptmill("generate", *options, "x")[0] == 0
    body = upstream.seen[0].json
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("1.5", 0, 7)


def test_a_base_url_chooses_the_openai_backend(promptmill, upstream, tmp_path):
    file = tmp_path / "hf.yaml"
    file.write_text("backend: hf")
    options = ["--config", str(file), "--base-url", upstream.url, "--model", "m"]
    assert promptmill("generate", *options, "x", config=None) == (0, "echo: x\n", "")


def test_an_option_of_another_backend_is_refused(promptmill):
    code, _, err = promptmill("generate", "--backend", "hf", "--concurrency", "3", "x")
    assert code == 2
    assert "--concurrency: works with the backend openai only" in err


@pytest.mark.parametrize(
    ("field", "option"),
    [
        (Named("max_body"), "--max-body"),
        (Named("again", "all"), "--again all"),
        (Named("assignments"), "--set"),
        (Named("backend_configs.openai.model_name", "NAME"), "--model NAME"),
        (Named("sampling_params.top_p", 0.5), "--set sampling_params.top_p=0.5"),
        (Named("sampling_params.top_p", None), "--set sampling_params.top_p=null"),
        (Named("price", {"input": 1}), """--set 'price={"input": 1}'"""),
        (Named("unsupported"), "`unsupported`"),
    ],
)
def test_an_error_names_options_instead_of_arguments_and_keys(field, option):
    assert PromptmillError(Code.UNSUPPORTED, "It failed.", ("Use ", field, ".")).worded(option_of) == (
        f"It failed. Use {option}."
    )


def test_the_error_of_an_engine_names_other_ways_to_get_answers():
    configuration = Configuration({"backend": "hf"})
    other = "--backend says hf; instead: --base-url URL"
    for hint, start, end in (
        ("Run: pip install x", f"x is missing. {other}", "here. Run: pip install x"),
        (("Use ", Named("base_url"), "."), f"x is missing. Use --base-url. {other}", "here."),
    ):
        error = PromptmillError(Code.MISSING_DEPENDENCY, "x is missing.", hint)
        shown = explained(error, argparse.Namespace(backend="hf", set=[]), configuration).worded(option_of)
        assert shown.startswith(start)
        assert shown.endswith(end)


def test_a_wrong_assignment_is_refused_with_its_option(promptmill):
    code, _, err = promptmill("generate", "--set", "bakend=hf", "x")
    assert code == 2
    assert err.startswith("error: --set: bakend: unknown key; did you mean backend?")


def test_an_image_follows_the_text_of_its_prompt(promptmill, upstream):
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    source = f"data:image/png;base64,{pixel}"
    assert promptmill("generate", "--image", source, "what is it?")[0] == 0
    text, image = upstream.seen[0].json["messages"][0]["content"]
    assert (text["text"], image["type"]) == ("what is it?", "image_url")


def test_answers_are_written_to_a_file(promptmill, tmp_path):
    assert promptmill("generate", "-o", "answers.txt", "the one", "zwölf") == (0, "", "")
    assert (tmp_path / "answers.txt").read_text(encoding="utf-8") == "echo: the one\necho: zwölf\n"


def test_an_answer_that_was_cut_is_marked(promptmill, upstream):
    upstream.reply = answer("half an", finish_reason="length")
    code, out, err = promptmill("generate", "x")
    assert (code, out) == (0, "half an\n")
    assert "the answer was cut at the length limit; --max-tokens N" in err


@pytest.mark.parametrize(
    ("mistyped", "said"),
    [
        (["generate", "--temprature", "1", "x"], "did you mean --temperature?"),
        (["genrate", "x"], "unknown command 'genrate'; did you mean generate?"),
        (["bulk", "a.jsonl", "b.jsonl", "--max-failurs"], "did you mean --max-failures?"),
    ],
)
def test_an_unknown_option_or_command_gets_the_nearest_name(promptmill, mistyped, said):
    code, _, err = promptmill(*mistyped, config=None)
    assert code == 2
    assert said in err


def test_without_a_command_the_help_is_printed(promptmill):
    code, out, _ = promptmill(config=None)
    assert code == 0
    assert "generate" in out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("show", "jobs JOB --rows"),
        ("join", "jobs OUTPUT --join"),
        ("cache", "jobs --cache"),
        ("check", "models --check"),
        ("providers", "models --providers"),
        ("help", "--help"),
        pytest.param("report", "jobs JOB --html", marks=pytest.mark.features("report")),
    ],
)
def test_a_command_of_the_last_release_is_answered_with_its_new_name(promptmill, old, new):
    code, out, err = promptmill(old, "x", "--any", config=None)
    assert (code, out, err) == (2, "", f"error: `promptmill {old}` is now `promptmill {new}`.\n")


def test_help_shows_a_commands_own_options(promptmill):
    code, out, _ = promptmill("bulk", "--help", "all", config=None)
    assert code == 0
    assert "--again {failed,truncated,all}" in out


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_nothing_on_stdin_is_said_so(promptmill, monkeypatch, upstream, arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    code, out, err = promptmill("generate", *arguments)
    assert (code, out) == (2, "")
    assert "stdin is empty" in err
    assert not upstream.seen


def test_no_lines_on_stdin_are_no_prompts(promptmill, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert promptmill("generate", "--lines") == (0, "", "")


def test_a_question_without_quotes_is_refused_before_each_of_its_words_is_paid_for(promptmill, upstream):
    code, _, err = promptmill("generate", *["What", "is", "the", "capital", "of", "France?"])
    assert code == 2
    assert "these are 6 prompts" in err
    assert "promptmill generate 'What is the capital of France?'" in err
    assert "--lines" in err
    assert not upstream.seen


@pytest.mark.parametrize("words", [["Tell", "me"], ["Tell", "me", "about", "my dog"], ["Don't", "panic"]])
def test_two_words_without_quotes_are_refused_too(promptmill, upstream, words):
    code, _, err = promptmill("generate", *words)
    assert (code, len(upstream.seen)) == (2, 0)
    assert f"these are {len(words)} prompts" in err
    assert " ".join(words) in err


@pytest.mark.parametrize(
    "prompts",
    [
        ("red?", "Is it blue?"),
        ("你好吗", "今天天气怎么样", "谢谢"),
        ("one", "two three", "four"),
        ("--json", "a", "b", "c"),
    ],
)
def test_several_prompts_that_may_be_meant_are_answered(promptmill, upstream, prompts):
    assert promptmill("generate", *prompts)[0] == 0
    assert len(upstream.seen) == len([prompt for prompt in prompts if prompt != "--json"])


@pytest.mark.parametrize(
    ("output", "said"), [("nodir/a.txt", "there is no folder nodir; make it first"), (".", "is a folder; name a file")]
)
def test_an_output_that_cannot_be_written_is_told_before_anything_is_asked(promptmill, upstream, output, said):
    code, out, err = promptmill("generate", "-o", output, "x")
    assert (code, out) == (2, "")
    assert f"--output: {output if said[0] == 'i' else ''}" in err
    assert said in err
    assert not upstream.seen


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is a device that is always full on Linux alone")
def test_answers_that_the_disk_does_not_take_are_printed(promptmill):
    code, out, err = promptmill("generate", "-o", "/dev/full", "x")
    assert (code, out) == (1, "echo: x\n")
    assert "/dev/full cannot be written: No space left" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is a device that is always full on Linux alone")
def test_a_full_disk_behind_stdout_is_told_in_words():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "promptmill", "models", "--providers"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "stdout cannot be written: No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(("width", "has_urls"), [(12, False), (46, False), (80, True)])
def test_a_narrow_terminal_gets_the_providers_without_urls(promptmill, monkeypatch, width, has_urls):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("promptmill.cli.listings.columns", lambda _: width)
    code, out, _ = promptmill("models", "--providers", config=None)
    assert (code, "openai       https://" in out) == (0, has_urls)
    assert "OPENAI_API_KEY (" in out
    if width > 12:
        assert max(map(len, out.splitlines())) <= width


def test_models_fold_on_a_narrow_terminal(promptmill, upstream, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for module in ("listings", "terminal"):
        monkeypatch.setattr(f"promptmill.cli.{module}.columns", lambda _: 40)
    long = "--set=models.a-model-with-a-rather-long-name={openai: {model_name: someone/with-a-long-name-8b}}"
    code, out, err = promptmill("models", long)
    assert code == 0, err
    assert "a-model-with-a-rather-long-name" in out
    assert max(map(len, out.splitlines())) <= 40


def test_a_system_prompt_may_be_given(promptmill, upstream):
    assert promptmill("generate", "--system", "be brief", "x")[0] == 0
    assert upstream.seen[0].json["messages"][0] == {"role": "system", "content": "be brief"}


def test_json_is_what_the_tool_returns_with_its_meta(promptmill, upstream):
    upstream.reply = by_prompt({"bad": status(400, "no")})
    code, out, err = promptmill("generate", "--json", "a", "bad")
    result = json.loads(out)
    assert code == 1
    assert result["ans_ls"] == ["echo: a", ""]
    assert [(entry["index"], entry["code"]) for entry in result["errors"]] == [(1, "bad_request")]
    assert result["_meta"]["requests"] == 2
    assert err == ""


def test_json_without_a_failure_has_no_errors(promptmill):
    code, out, _ = promptmill("generate", "--json", "a")
    assert code == 0
    assert json.loads(out).keys() == {"ans_ls", "_meta"}


def test_some_failed_is_exit_code_one_and_said_on_stderr(promptmill, upstream):
    upstream.reply = by_prompt({"bad": status(400, "no such thing")})
    code, out, err = promptmill("generate", "a", "bad", "to b")
    assert (code, out) == (1, "echo: a\n\necho: to b\n")
    assert "1 of 3 failed with bad_request" in err
    assert "no such thing. The endpoint" in err


def test_a_warning_is_said_on_stderr(promptmill):
    code, out, err = promptmill("generate", "--set", "extra_params.stream=true", "x")
    assert (code, out) == (0, "echo: x\n")
    assert "`stream`" in err


# Which configuration


def test_keys_may_be_set_over_the_file(promptmill, upstream):
    sets = ["--set", "sampling_params.temperature=0.5", "--set", "backend_configs.openai.model_name=other"]
    assert promptmill("generate", *sets, "x")[0] == 0
    assert (upstream.seen[0].json["temperature"], upstream.seen[0].json["model"]) == (0.5, "other")


def test_the_backend_may_be_set_over_the_file(promptmill):
    code, _, err = promptmill("generate", "--backend", "nope", "x")
    assert code == 2
    assert "backend" in err


@pytest.mark.parametrize("where", ["environment", "working directory"])
def test_without_config_the_environment_goes_before_the_working_directory(promptmill, tmp_path, monkeypatch, where):
    right = (tmp_path / "mine.yaml").read_text()
    if where == "environment":
        (tmp_path / "parameter.yaml").write_text("backend: nope")
        monkeypatch.setenv("PROMPTMILL_CONFIG", str(tmp_path / "mine.yaml"))
    else:
        (tmp_path / "parameter.yaml").write_text(right)
    assert promptmill("generate", "x", config=None) == (0, "echo: x\n", "")


def test_the_file_named_goes_before_the_environment(promptmill, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTMILL_CONFIG", str(tmp_path / "nowhere.yaml"))
    assert promptmill("generate", "x")[0] == 0


# Mistakes


@pytest.mark.parametrize("command", [["serve"], ["generate", "x"], ["models", "--check"]])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("backend: [", "is not closed"),
        ("backend: hf\nbackend: openai", "the key backend occurs twice"),
        ("bakend: hf", "did you mean backend?"),
        ("backend: openai\nbackend_configs: {openai: {concurrency: 0}}", "backend_configs.openai.concurrency"),
        ("backend: openai\nbackend_configs: {openai: {api_key: '${NOT_SET}'}}", "NOT_SET is not set"),
    ],
)
def test_a_wrong_configuration_is_exit_code_two_with_a_message(promptmill, tmp_path, command, content, said):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(content)
    code, out, err = promptmill(*command, config=wrong)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err


@pytest.mark.parametrize("command", [["serve"], ["generate", "x"], ["models", "--check"]])
def test_a_missing_file_is_exit_code_two_with_its_whole_path(promptmill, tmp_path, command):
    code, out, err = promptmill(*command, config=tmp_path / "nowhere.yaml")
    assert (code, out) == (2, "")
    assert str(tmp_path / "nowhere.yaml") in err


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["generate", "--nope", "x"], ["generate", "--set", "x", "y"], ["serve", "x"]],
)
def test_a_wrong_use_is_exit_code_two(promptmill, arguments):
    code, out, err = promptmill(*arguments, config=None)
    assert (code, out) == (2, "")
    assert err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("backend_configs.openai.base_url=ftp://localhost", "should start with http:// or https://"),
        ("backend_configs.openai.base_url=http://u:hunter2@h", "user name or password"),
        ('backend_configs.openai.api_key="hunter2\\nx"', "backend_configs.openai.api_key"),
    ],
)
@pytest.mark.parametrize("command", [["generate", "x"], ["models", "--check"]])
def test_settings_that_cannot_work_are_exit_code_two(promptmill, command, setting, said):
    code, out, err = promptmill(*command, "--set", setting)
    assert code == 2
    assert said in out + err
    assert "hunter2" not in out + err


def test_a_wrong_setting_is_told_with_the_file_and_its_line(promptmill, tmp_path):
    text = "backend: openai\nbackend_configs:\n  openai:\n    model_name: m\n    base_url:\n"
    (tmp_path / "own.yaml").write_text(text)
    for command in (["generate", "x"], ["models", "--check"]):
        code, out, err = promptmill(*command, config=tmp_path / "own.yaml")
        assert code == 2
        assert "own.yaml, line 5: backend_configs.openai.base_url: is missing" in out + err


def test_an_engines_block_that_names_no_model_is_told_by_the_names_that_stand_there(promptmill, tmp_path):
    text = "backend: vllm\nbackend_configs:\n  vllm:\n    model: a/b\n    max_model_length: 4096\n"
    (tmp_path / "own.yaml").write_text(text)
    code, out, err = promptmill("generate", "x", config=tmp_path / "own.yaml")
    assert (code, out) == (2, "")
    told = " ".join(err.split())
    assert "own.yaml, line 4: backend_configs.vllm.model: unknown key; did you mean model_name_or_path?" in told
    assert "max_model_length: unknown key; did you mean max_model_len?" in told


def test_a_wrong_value_of_an_option_is_told_by_the_options_name(promptmill):
    code, _, err = promptmill("generate", "--base-url", "htp://localhost", "x")
    assert (code, err) == (
        2,
        "error: --base-url: htp://localhost is mistyped; did you mean http://localhost?\n",
    )


def test_check_warns_about_an_empty_answer(promptmill, upstream):
    upstream.reply = answer("")
    code, out, _ = promptmill("models", "--check")
    assert code == 0
    assert "warn  answer: the answer is empty" in out


# check


def test_check_says_what_it_tried(promptmill, tmp_path, upstream):
    code, out, err = promptmill("models", "--check")
    assert (code, err) == (0, "")
    assert str(tmp_path / "mine.yaml") in out
    assert "openai, m" in out
    assert "FAIL" not in out
    assert upstream.seen[-1].json["max_tokens"] == 1


def test_check_says_what_is_wrong_for_machines_too(promptmill, upstream):
    upstream.reply = status(401, "bad key")
    code, out, _ = promptmill("models", "--check", "--json")
    found = json.loads(out)
    assert code == 2
    assert not found["ok"]
    assert [step["ok"] for step in found["steps"]].count(False) == 1
    assert found["steps"][-1]["code"] == "unauthorized"
    assert "bad key" in found["steps"][-1]["detail"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (status(404, "The model `m` does not exist"), "does not exist"),
        (html(), "answered with a web page ("),
        (status(402), "402"),
    ],
)
def test_check_names_the_trouble(promptmill, upstream, reply, said):
    upstream.reply = reply
    code, out, _ = promptmill("models", "--check")
    assert code == 2
    assert "FAIL" in out
    assert said in out


def test_check_finds_nobody_there(promptmill, upstream):
    upstream.vanish(None)
    code, out, _ = promptmill("models", "--check")
    assert code == 2
    assert str(upstream.port) in out


def test_check_says_in_json_that_a_configuration_is_good(promptmill):
    code, out, _ = promptmill("models", "--check", "--json")
    assert code == 0
    assert json.loads(out)["ok"]


# The command itself


def test_the_command_is_installed_and_says_its_version(tmp_path):
    command = Path(sys.executable).with_name("promptmill")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True)
    assert done.stdout == f"promptmill {__version__}\n"


def test_the_end_of_a_pipe_is_no_traceback(tmp_path, upstream):
    upstream.reply = answer("x" * 100_000)
    sets = [f"backend_configs.openai.base_url={upstream.url}", "backend_configs.openai.model_name=m"]
    command = [sys.executable, "-m", "promptmill", "generate", "--config", str(ROOT / "parameter.yaml")]
    command += ["--backend", "openai", *(part for value in sets for part in ("--set", value)), *"abcdefgh"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        sure(process.stdout).read(10)
        sure(process.stdout).close()
        said = sure(process.stderr).read().decode()
    assert "Traceback" not in said


@pytest.mark.parametrize("option", ["-v", "-V", "--version"])
def test_the_version_is_said(promptmill, option):
    assert promptmill(option, config=None) == (0, f"promptmill {__version__}\n", "")


def test_bash_completes_commands_and_options():
    script = subprocess.run([sys.executable, "-m", "promptmill", "completion", "bash"], capture_output=True, check=True)
    ask = """eval "$(cat)"
words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_promptmill; echo "${COMPREPLY[@]}"; }
words promptmill gen; words promptmill bulk --row-s
"""
    found = subprocess.run(
        ["bash", "-c", ask],
        input=script.stdout,
        capture_output=True,
        check=True,
    )
    assert found.stdout.split() == [b"generate", b"--row-settings"], found.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_an_output_cannot_show_costs_no_answer(promptmill, tmp_path, encoding, upstream):
    command = [sys.executable, "-m", "promptmill", "generate", "--config", str(tmp_path / "mine.yaml"), "日本 ✓ é"]
    found = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=True)
    assert found.stdout.startswith(rb"echo: \u65e5\u672c \u2713 ")
    assert not found.stderr


def test_a_prompt_of_other_bytes_is_said_so(promptmill, upstream):
    code, _, err = promptmill("generate", b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert code == 2
    assert "not UTF-8" in err
    assert not upstream.seen


@pytest.mark.parametrize(
    "example",
    [
        '{"capital": "Paris"}',
        '{"name": "Ann", "age": 3}',
        '{"type": "cat", "age": 3}',
        '{"title": "Emma", "year": 1815}',
    ],
)
def test_an_example_given_as_a_schema_is_told(promptmill, tmp_path, upstream, example):
    (tmp_path / "example.json").write_text(example)
    code, _, err = promptmill("generate", "--schema", "example.json", "x")
    assert (code, upstream.seen) == (2, [])
    assert "is an example, not a JSON Schema" in err


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (
            '{"type": "object", "propertys": {"n": {"type": "integer"}}}',
            "the schema: 'propertys'; did you mean properties?",
        ),
        ('{"properties": {"n": {"items": {"enums": ["a"]}}}}', "properties.n.items: 'enums'; did you mean enum?"),
        ('{"properties": {"number": {}}, "required": ["numbr"]}', "required: 'numbr'; did you mean number?"),
    ],
)
def test_a_misspelt_keyword_or_field_of_a_schema_is_reported(promptmill, tmp_path, upstream, schema, problem):
    (tmp_path / "s.json").write_text(schema)
    code, _, err = promptmill("generate", "--schema", "s.json", "x")
    assert (code, upstream.seen) == (2, [])
    assert f"s.json has a mistake: {problem}" in " ".join(err.split())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"item": {}, "requires": {"type": "string"}}, "x-items": 1, "order": ["item"]},
        {"type": "object", "required": ["other"], "examples": [{"propertys": 1}], "propertyOrdering": ["a"]},
        {"items": [{"propertys": 1}], "properties": [], "required": "a"},
        {name: {} for name in (f"requires-{at}" * 50 for at in range(100))} | {"type": "object"},
    ],
)
def test_names_that_are_no_keywords_are_left_alone(schema):
    assert why_no_schema(schema) == ""


def test_an_empty_answer_is_told(promptmill, upstream):
    upstream.reply = answer("", finish_reason="length")
    code, out, err = promptmill("generate", "x")
    assert (code, out) == (0, "\n")
    assert "the answer is empty (finish_reason length)" in " ".join(err.split())
    assert "cut at the length limit" not in err


def test_a_schema_that_is_not_utf8_is_said_so(promptmill, tmp_path):
    (tmp_path / "latin.json").write_bytes(b'{"type": "object", "title": "caf\xe9"}')
    code, _, err = promptmill("generate", "--schema", "latin.json", "x")
    assert code == 2
    assert "latin.json cannot be read: it is not UTF-8 text" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([""], "the prompt is empty"),
        (["one", " "], "the prompt is empty"),
        (["p.jsonl"], "p.jsonl is a file: promptmill bulk p.jsonl answers.jsonl, or promptmill generate < p.jsonl"),
        (
            ["--schema", '{"type":"object"}', "hi"],
            "No such file or directory; write the schema into a file, and name that",
        ),
        (["--backend", "ollama", "hi"], "--backend ollama: Ollama is an endpoint; instead: --base-url localhost:11434"),
        (["--backend", "lmstudio", "hi"], "--backend lmstudio: lmstudio is a provider; instead: --provider lmstudio"),
        (["--backend", "openai_compatible", "hi"], "instead: --base-url URL --model NAME"),
    ],
)
def test_a_slip_is_refused_before_anything_is_asked(promptmill, tmp_path, upstream, arguments, said):
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n')
    code, out, err = promptmill("generate", *arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert not upstream.seen


def test_the_name_of_no_file_is_a_prompt(promptmill):
    assert promptmill("generate", "p.jsonl") == (0, "echo: p.jsonl\n", "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "gpt-4o",
            "gpt-4o is a model of OpenAI. Use the backend openai with --provider openai (key in OPENAI_API_KEY).",
        ),
        ("qwen3:8b", "qwen3:8b looks like an Ollama model. Use the backend openai with --base-url localhost:11434."),
        ("ollama/qwen3:8b", "Use the backend openai with --base-url localhost:11434 and --model qwen3:8b."),
        ("openai/gpt-4o", "Use the backend openai with --provider openai and --model gpt-4o (key in OPENAI_API_KEY)."),
        ("model.gguf", "There is no GGUF file at "),
    ],
)
def test_a_model_that_no_engine_can_have_is_told_with_who_has_it(promptmill, name, said):
    code, _, err = promptmill("generate", "--backend", "openvino", "-m", name, "hi", config=None)
    assert code == 2
    assert said in " ".join(err.split())


def test_a_job_named_without_its_last_part_gets_its_id(promptmill, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    assert promptmill("bulk", "in.jsonl", "out10.jsonl", "--quiet")[0] == 0
    job = promptmill("jobs", "--json", config=None)[1]
    job_id = next(row["job_id"] for row in json.loads(job)["jobs"] if row["job_id"].startswith("out10-"))
    code, out, _ = promptmill("jobs", "out10", "--json", config=None)
    assert (code, json.loads(out)["job_id"]) == (0, job_id)
    assert "bulk_status" not in promptmill("jobs", "nothing-like-it", config=None)[2]


def test_a_variable_that_is_nearly_ours_is_told():
    told = cli._misspelled({"PROMPTMIL_CONFIG": "secret", "PROMPTMILL_CONFIGS": "", "PATH": ""})
    assert len(told) == 2
    assert all("did you mean PROMPTMILL_CONFIG?" in note for note in told)
    assert "secret" not in "".join(told)


def test_ours_and_those_of_the_users_files_are_not():
    fine = ("PROMPTMILL_CONFIG", "PROMPTMILL_LOG_LEVEL", "PROMPTMILL_PROVIDER", "PROMPTMILL_TEAM", "PROMPTS")
    assert cli._misspelled(dict.fromkeys(fine, "x")) == []


def test_without_a_configuration_file_no_error_names_the_shipped_one(promptmill, monkeypatch):
    shipped = next(place for place in parameter_file._shipped() if place.is_file())
    configuration = Configuration.load(shipped, backend="openai")
    arguments = argparse.Namespace(backend="openai", set=[])
    error = PromptmillError(Code.INVALID_CONFIG, "backend_configs.openai.base_url: is missing.", "")
    assert explained(error, arguments, configuration).worded(option_of) == "--base-url: is missing."
    lacking = PromptmillError(Code.MISSING_DEPENDENCY, "It lacks x.", "Use y. Run: pip install x")
    arguments = argparse.Namespace(backend=None, set=[])
    shown = explained(lacking, arguments, Configuration.load(shipped)).worded(option_of)
    assert "There is no configuration file: openvino is the default; instead: --base-url URL" in shown
    assert "parameter.yaml" not in shown
    assert shown.endswith("Run: pip install x")


def test_models_of_an_endpoint_are_listed(promptmill, upstream, monkeypatch):
    upstream.models = ["gpt-5.5", "qwen3"]
    assert promptmill("models", "--base-url", upstream.url)[1].split() == ["gpt-5.5", "qwen3"]
    assert json.loads(promptmill("models", "--base-url", upstream.url, "--json")[1])[1] == {"name": "qwen3"}
    code, _, err = promptmill("models", "--base-url", "localhost:9")
    assert (code, err.splitlines()[-1]) == (2, "  promptmill models --check --base-url localhost:9")


def test_a_working_folder_that_was_removed_is_the_message(promptmill, monkeypatch):
    def removed():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "getcwd", removed)
    code, _, err = promptmill("bulk", "in.csv", "out.csv")
    assert (code, err) == (2, "error: The working folder was removed; change to another one.\n")
