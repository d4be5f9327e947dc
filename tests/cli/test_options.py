"""An argument that is wrong is named in one line, with the nearest name that there is."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from promptmill.cli import main as cli
from promptmill.cli.options import note_once
from promptmill.config import parameter_file
from promptmill.config.configuration import Configuration
from promptmill.core import request
from promptmill.core.errors import PromptmillError
from promptmill.core.parameter import Added
from promptmill.system import logs


@pytest.fixture
def refused(capsys):
    """Run a command line that cannot be parsed; return what stderr says."""

    def runner(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(arguments))
        assert stopped.value.code == 2
        out, err = capsys.readouterr()
        assert not out
        return err

    return runner


@pytest.mark.parametrize("given", [["--api-key", "sk-abc123"], ["--api-key=sk-abc123"], ["-k", "sk-abc123"]])
def test_a_key_on_the_command_line_is_refused_and_not_shown(refused, given):
    said = refused("generate", *given, "Hi")
    assert f"unknown option {given[0].partition('=')[0]}" in said
    assert "abc123" not in said


def test_the_value_of_an_unknown_option_is_not_shown(refused):
    assert "secret" not in refused("generate", "--passwort=secret", "Hi")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--log-level", "verbose"], "--log-level: 'verbose' is none of debug, info, warning, error"),
        (["bulk", "--overwrite=yes", "a", "b"], "--overwrite: it takes no value"),
        (["completion", "pwsh"], "did you mean zsh or powershell?"),
        (["generate", "--max-tokens", "1k", "Hi"], "--max-tokens: '1k' is not a whole number; write 1000"),
        (["bulk", "--limit", "some", "a", "b"], "'some' is not a whole number; write one such as 20, or leave the"),
        (["generate", "--max-tokens", "0", "Hi"], "--max-tokens: '0' must be at least 1"),
        (["bulk", "--limit", "9" * 400, "a", "b"], f"--limit: '{'9' * 20}'… is too large"),
        (["bulk", "--header-row", "", "a", "b"], "--header-row: '' is not a whole number"),
        pytest.param(
            ["bulk", "--split", "long", "a", "b"],
            "--split: 'long' is neither a number of tokens nor auto",
            marks=pytest.mark.features("documents"),
        ),
        (["bulk", "a.jsonl"], "arguments are required: OUTPUT; write `promptmill bulk INPUT OUTPUT …`"),
        (["bulk", "a.csv", "b.csv", "--schema", "name string"], "'name string' is no field; did you mean name:string?"),
        (["bulk", "a.csv", "b.csv", "--fields", "tone=good|bad"], "is no field; did you mean tone:good|bad?"),
        (["bulk", "a.csv", "b.csv", "--fields", "good|bad"], "is no field; did you mean label:good|bad?"),
        (["bulk", "a.csv", "b.csv", "--fields", "tone:enum"], "There is no type 'enum'; the types are text, number"),
        (["serve", "--port", "8000"], "unknown option --port; did you mean --http?"),
        (["bulk"], "the following arguments are required: INPUT, OUTPUT"),
        (["chat", "Hi"], "unknown command 'chat'"),
        (["generate", "--model"], "--model: expected one argument"),
        (["generate", "--top-p", "1", "Hi"], "unknown option --top-p; `--set sampling_params.top_p=…` sets it"),
        (["bulk", "--logprobs", "a"], "unknown option --logprobs; `--set extra_params.logprobs=…` sets it"),
        (["bulk", "--rpm", "9", "a"], "unknown option --rpm; `--set backend_configs.openai.rpm=…` sets it"),
        (["bulk", "--system-prompt", "Hi", "a"], "unknown option --system-prompt; did you mean --system?"),
        (["bulk", "--api-key", "k", "a"], "unknown option --api-key; did you mean --key-env?"),
        (["features", "--rpm", "3"], "unknown option --rpm\n`promptmill features --help`"),
        (["bulk", "--settings", "{}", "a"], "unknown option --settings; did you mean --set?"),
        (["serve", "--token-env", "A", "--token-file", "b"], "--token-file: not allowed with argument --token-env"),
        (["bulk", "--prompt-colum", "text"], "did you mean --prompt-column?"),
        (["bulk", "a.csv", "b.csv", "--labels", "a,b"], "did you mean --choices?"),
        (["bulk", "a.csv", "b.csv", "--instructions", "Hi"], "did you mean --system?"),
        (["bulk", "--file", "a.csv"], "INPUT has no option: `promptmill bulk INPUT OUTPUT …`"),
        (["bulk", "--", "--prompt-colum"], "the following arguments are required: OUTPUT"),
        (["jobs", "a", "b"], "'b' is an argument too many"),
        (
            ["bulk", "a.csv", "b.csv", "--prompt", "Is", "this", "good?"],
            "'this' is an argument too many; a value of several words needs quotes: --prompt '…'",
        ),
        pytest.param(
            ["install"], "the following arguments are required: CLIENT", marks=pytest.mark.features("install")
        ),
        pytest.param(
            ["install", "claude-dekstop"],
            "unknown client 'claude-dekstop'; did you mean claude-desktop",
            marks=pytest.mark.features("install"),
        ),
    ],
)
def test_a_wrong_value_is_told_with_the_option_it_is_of(refused, arguments, said):
    assert said in refused(*arguments)


def test_a_prompt_without_its_command_gets_the_command(refused):
    said = refused("What is the capital of France?")
    assert "promptmill generate 'What is" in said
    assert "commands:" not in said


def test_a_key_in_place_of_its_variables_name_is_not_shown(refused):
    said = refused("generate", "--key-env", "sk-proj-abcdef", "Hi")
    assert "--key-env: that looks like a key" in said
    assert "abcdef" not in said


def test_an_unknown_level_is_refused_with_those_there_are():
    with pytest.raises(PromptmillError, match="PROMPTMILL_LOG_LEVEL: 'verbose' is not a log level; write debug, info"):
        logs.check_level({"PROMPTMILL_LOG_LEVEL": "verbose"})
    logs.check_level({"PROMPTMILL_LOG_LEVEL": "DEBUG"})
    logs.check_level({})


def test_a_terminal_shows_once_who_gets_a_key_and_that_the_embedded_model_is_small(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("platformdirs.user_state_path", lambda _: tmp_path)
    monkeypatch.setenv("LLM_API_KEY", "k-secret")
    endpoint = {"openai": {"base_url": "http://127.0.0.1:9/v1", "model_name": "m"}}
    served = Configuration({"backend": "openai", "backend_configs": endpoint}).config
    embedded = Configuration.load(next(place for place in parameter_file._shipped() if place.is_file())).config
    note_once(served)
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("MISTRAL_API_KEY", "k-secret")
    note_once(embedded)
    assert "--provider mistral uses the key in MISTRAL_API_KEY and gives" in " ".join(capsys.readouterr().err.split())
    monkeypatch.delenv("MISTRAL_API_KEY")
    for said in ("note: 127.0.0.1:9 receives the key in LLM_API_KEY.", "is a small model to try promptmill with", ""):
        note_once(served if "key" in said else embedded)
        shown = " ".join(capsys.readouterr().err.split())
        assert (said in shown, bool(shown)) == (True, bool(said))


def test_a_help_with_many_options_groups_them_and_has_examples_whose_options_exist():
    parser = cli.parser_of()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    many = {name: one for name, one in commands.items() if len(one._option_string_actions) > 12}
    assert {"bulk", "generate", "serve", "jobs"} <= many.keys()
    for name, one in many.items():
        largest = max(len(group._group_actions) for group in one._action_groups)
        assert (name, len(one._optionals._group_actions) <= 3, largest <= 12) == (name, True, True)
        shown = re.findall(r"^  promptmill (.*)$", one.format_help(), re.MULTILINE)
        assert (name, len(shown) >= 2) == (name, True)
        for example in shown:
            assert parser.parse_args(shlex.split(example, comments=True)).parser is one


def test_an_option_of_a_feature_that_sets_nothing_is_named_and_not_unknown(monkeypatch, capsys):
    monkeypatch.setattr(request, "ADDED", Added(mistake="The option loudness of acme does not set its parameter."))
    assert cli.main(["generate", "--loudness", "Hi"]) == 2
    assert "error: The option loudness of acme does not set its parameter." in capsys.readouterr().err
