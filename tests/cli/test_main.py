"""`promptmill …`: what is printed where, and with which exit code."""

import errno
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fakes import KEY
from promptmill import __version__
from promptmill.answers.schema_mistakes import why_no_schema
from promptmill.cli import main as cli
from replies import answer, by_prompt, html, status
from sure import sure
from waiting import PATIENCE_S

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


def test_without_a_command_the_help_is_printed(promptmill):
    code, out, _ = promptmill(config=None)
    assert code == 0
    assert "generate" in out


def test_help_may_be_a_word(promptmill):
    assert promptmill("help", config=None) == promptmill("--help", config=None)
    assert promptmill("help", "bulk", config=None) == promptmill("bulk", "--help", config=None)


def test_help_shows_a_commands_own_options(promptmill):
    code, out, _ = promptmill("bulk", "--help", "all", config=None)
    assert code == 0
    assert "--again {failed,truncated,all}" in out


def test_help_shows_the_option_that_a_word_names(promptmill):
    code, out, err = promptmill("bulk", "--help", "again", config=None)
    assert (code, err) == (0, "")
    assert out.startswith("--again {failed,truncated,all}\n")
    assert out == promptmill("bulk", "--help", "--again", config=None)[1]
    assert len(out.splitlines()) == 2
    _, out, err = promptmill("bulk", "--help", "nonsense", config=None)
    assert err.startswith("There is no option 'nonsense' of promptmill bulk. Its help:\n")
    assert out == promptmill("bulk", "--help", config=None)[1]


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


@pytest.mark.parametrize(("width", "has_urls"), [(12, False), (51, False), (80, True)])
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


_FILES = {
    "p.jsonl": '{"prompt": "hi"}\n',
    "open.yaml": "backend: [",
    "twice.yaml": "backend: hf\nbackend: openai",
    "typo.yaml": "bakend: hf",
    "zero.yaml": "backend: openai\nbackend_configs: {openai: {concurrency: 0}}",
    "unset.yaml": "backend: openai\nbackend_configs: {openai: {api_key: '${NOT_SET}'}}",
    "no_url.yaml": "backend: openai\nbackend_configs:\n  openai:\n    model_name: m\n    base_url:\n",
    "vllm.yaml": "backend: vllm\nbackend_configs:\n  vllm:\n    model: a/b\n    max_model_length: 4096\n",
    "capital.json": '{"capital": "Paris"}',
    "person.json": '{"name": "Ann", "age": 3}',
    "cat.json": '{"type": "cat", "age": 3}',
    "book.json": '{"title": "Emma", "year": 1815}',
    "keyword.json": '{"type": "object", "propertys": {"n": {"type": "integer"}}}',
    "inner.json": '{"properties": {"n": {"items": {"enums": ["a"]}}}}',
    "required.json": '{"properties": {"number": {}}, "required": ["numbr"]}',
}
_QUESTION = "generate What is the capital of France?"
_OPENAI = "Use the backend openai with"
_SETTINGS = [
    ("backend_configs.openai.base_url=ftp://localhost", "should start with http:// or https://"),
    ("backend_configs.openai.base_url=http://u:hunter2@h", "user name or password"),
    ("backend_configs.openai.api_key='\"hunter2\\nx\"'", "backend_configs.openai.api_key"),
]
_CONFIGURATIONS = [
    ("open.yaml", "is not closed"),
    ("twice.yaml", "the key backend occurs twice"),
    ("typo.yaml", "did you mean backend?"),
    ("zero.yaml", "backend_configs.openai.concurrency"),
    ("unset.yaml", "NOT_SET is not set"),
    ("nowhere.yaml", "{folder}/nowhere.yaml"),
]
_REFUSED = [
    ("nope", "unknown command 'nope'"),
    ("genrate x", "unknown command 'genrate'; did you mean generate?"),
    ("generate --nope x", "--nope"),
    ("generate --temprature 1 x", "did you mean --temperature?"),
    ("bulk a.jsonl b.jsonl --max-failurs", "did you mean --max-failures?"),
    ("serve x", "'x' is an argument too many"),
    # prompts and outputs
    ("generate ''", "the prompt is empty"),
    ("generate one ' '", "the prompt is empty"),
    ("generate caf\udce9", "not UTF-8"),
    ("generate p.jsonl", "is a file: promptmill bulk p.jsonl answers.jsonl, or promptmill generate < p.jsonl"),
    (_QUESTION, "these are 6 prompts"),
    (_QUESTION, "promptmill generate 'What is the capital of France?'"),
    (_QUESTION, "--lines"),
    ("generate Tell me", "these are 2 prompts"),
    ("generate Tell me about 'my dog'", "Tell me about my dog"),
    ('generate "Don\'t" panic', "Don't panic"),
    ("generate -o nodir/a.txt x", "--output: there is no folder nodir; make it first"),
    ("generate -o . x", "--output: . is a folder; name a file"),
    # schemas
    *((f"generate --schema {name}.json x", "is an example, not a JSON Schema") for name in ("capital", "person")),
    *((f"generate --schema {name}.json x", "is an example, not a JSON Schema") for name in ("cat", "book")),
    ("generate --schema keyword.json x", "has a mistake: the schema: 'propertys'; did you mean properties?"),
    ("generate --schema inner.json x", "has a mistake: properties.n.items: 'enums'; did you mean enum?"),
    ("generate --schema required.json x", "has a mistake: required: 'numbr'; did you mean number?"),
    ("generate --schema latin.json x", "latin.json cannot be read: it is not UTF-8 text"),
    (
        'generate --schema \'{"type": "object"\' x',
        "The schema cannot be read: it is not JSON: line 1, column 18: it ends",
    ),
    # configurations
    ("generate --set x y", "--set"),
    ("generate --set bakend=hf x", "error: --set: bakend: unknown key; did you mean backend?"),
    (
        "generate --base-url htp://localhost x",
        "error: --base-url: htp://localhost is mistyped; did you mean http://localhost?",
    ),
    ("generate --backend hf --concurrency 3 x", "--concurrency: works with the backend openai only"),
    ("generate --backend nope x", "backend"),
    ("generate --backend ollama x", "--backend ollama: Ollama is an endpoint; instead: --base-url localhost:11434"),
    ("generate --backend lmstudio x", "--backend lmstudio: lmstudio is a provider; instead: --provider lmstudio"),
    ("generate --backend openai_compatible x", "instead: --base-url URL --model NAME"),
    (
        "generate --config vllm.yaml x",
        "vllm.yaml, line 4: backend_configs.vllm.model: unknown key; did you mean model_n",
    ),
    ("generate --config vllm.yaml x", "max_model_length: unknown key; did you mean max_model_len?"),
    *(
        (f"{command} --config no_url.yaml", "no_url.yaml, line 5: backend_configs.openai.base_url: is missing")
        for command in ("generate x", "models --check")
    ),
    *(
        (f"{command} --config {file}", said)
        for command in ("serve", "generate x", "models --check")
        for file, said in _CONFIGURATIONS
    ),
    *(
        (f"{command} --config mine.yaml --set {setting}", said)
        for command in ("generate x", "models --check")
        for setting, said in _SETTINGS
    ),
    # models that no engine has
    ("generate --backend openvino -m gpt-4o x", "gpt-4o is a model of OpenAI."),
    ("generate --backend openvino -m gpt-4o x", f"{_OPENAI} --provider openai (key in OPENAI_API_KEY)."),
    ("generate --backend openvino -m qwen3:8b x", "qwen3:8b looks like an Ollama model."),
    ("generate --backend openvino -m qwen3:8b x", f"{_OPENAI} --base-url localhost:11434."),
    ("generate --backend openvino -m ollama/a:8b x", f"{_OPENAI} --base-url localhost:11434 and --model a:8b."),
    (
        "generate --backend openvino -m openai/gpt-4o x",
        f"{_OPENAI} --provider openai and --model gpt-4o (key in OPENAI_API_KEY).",
    ),
    ("generate --backend openvino -m model.gguf x", "There is no GGUF file at "),
]


def test_a_mistake_is_exit_code_two_and_said_before_anything_is_asked(promptmill, tmp_path, upstream):
    for name, content in _FILES.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "latin.json").write_bytes(b'{"type": "object", "title": "caf\xe9"}')
    for line, said in _REFUSED:
        words = shlex.split(line)
        is_configured = words[0] == "generate" and not {"--config", "--backend"} & {*words}
        code, out, err = promptmill(*words, **({} if is_configured else {"config": None}))
        assert code == 2, line
        assert said.replace("{folder}", str(tmp_path)) in " ".join((out + err).split()), line
        checks = "models --check" in line and ("--set" in line or "no_url" in line)  # its findings are its output
        assert checks or (err.startswith("error: ") and not out), line
        assert "hunter2" not in out + err
    assert not upstream.seen


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
    done = subprocess.run(
        [command, "--version"], capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, check=True
    )
    assert done.stdout == f"promptmill {__version__}\n"


def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path):
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt")  # the first import of the command line
    done = subprocess.run(
        [sys.executable, "-c", "import sys, promptmill.__main__ as command; sys.exit(command.main())"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")


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


@pytest.mark.thorough
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_an_output_cannot_show_costs_no_answer(promptmill, tmp_path, encoding, upstream):
    command = [sys.executable, "-m", "promptmill", "generate", "--config", str(tmp_path / "mine.yaml"), "日本 ✓ é"]
    found = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=True)
    assert found.stdout.startswith(rb"echo: \u65e5\u672c \u2713 ")
    assert not found.stderr


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


def test_an_answer_that_was_cut_before_its_first_word_is_a_failure(promptmill, upstream):
    upstream.reply = answer("", finish_reason="length")
    code, out, err = promptmill("generate", "x")
    assert (code, out) == (1, "")
    assert "cut before its first word" in " ".join(err.split())
    assert "--max-tokens 4096" in err


def test_the_name_of_no_file_is_a_prompt(promptmill):
    assert promptmill("generate", "p.jsonl") == (0, "echo: p.jsonl\n", "")


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


def test_models_of_an_endpoint_are_listed(promptmill, upstream, monkeypatch):
    upstream.models = ["gpt-5.5", "qwen3"]
    assert promptmill("models", "--base-url", upstream.url)[1].split() == ["gpt-5.5", "qwen3"]
    assert json.loads(promptmill("models", "--base-url", upstream.url, "--json")[1])[1] == {"name": "qwen3"}
    code, _, err = promptmill("models", "--base-url", "localhost:9")
    assert (code, err.splitlines()[-1]) == (2, "  promptmill models --check --base-url localhost:9")


def test_a_working_folder_that_was_removed_is_the_message_and_no_other_missing_file(promptmill, monkeypatch):
    def missing(*_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr("promptmill.cli.main.run_command", missing)
    with pytest.raises(FileNotFoundError):
        promptmill("bulk", "in.csv", "out.csv")
    monkeypatch.setattr(os, "getcwd", missing)
    code, _, err = promptmill("bulk", "in.csv", "out.csv")
    assert (code, err) == (2, "error: The working folder was removed; change to another one.\n")
