"""Options and commands of other programs are answered with how it is said here."""

from __future__ import annotations

import re

import pytest

from promptmill.cli import habits
from promptmill.cli import main as cli


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--prompt", "Hi"], "write the prompt itself"),
        (["generate", "-c", "8", "Hi"], "--concurrency N"),
        (["bulk", "--limit", "5", "a.jsonl"], "OUTPUT is missing: promptmill bulk a.jsonl answers.jsonl"),
        (["generate", "--stream", "Hi"], "a single answer on a terminal is shown while it comes"),
        (["generate", "--file", "q.txt"], "promptmill generate < FILE"),
        (["bulk", "--workers", "8", "a.jsonl", "b.jsonl"], "--concurrency N"),
        (["bulk", "--input", "a.jsonl", "--output", "b.jsonl"], "promptmill bulk INPUT OUTPUT"),
        (["bulk", "-i", "a.jsonl", "-o", "b.jsonl"], "promptmill bulk INPUT OUTPUT"),
        (["serve", "--port", "18940"], "--http 127.0.0.1:18940"),
        (["serve", "--port=18940"], "--http 127.0.0.1:18940"),
        (["serve", "--port"], "--http 127.0.0.1:PORT"),
        (["serve", "--verbose"], "--log-level debug"),
        (["jobs", "resume", "in-1"], "promptmill jobs in-1 --resume"),
        (["jobs", "list"], "write `promptmill jobs`"),
        (["chat", "Hi"], "promptmill generate 'PROMPT'"),
        (["run-batch", "a", "b"], "promptmill bulk INPUT OUTPUT"),
    ],
)
def test_what_other_programs_call_it_is_answered_with_our_name(refused, arguments, said):
    assert said in refused(*arguments)


@pytest.mark.parametrize("given", [["--api-key", "sk-abc123"], ["--api-key=sk-abc123"], ["-k", "sk-abc123"]])
def test_a_key_on_the_command_line_is_refused_and_not_shown(refused, given):
    said = refused("generate", *given, "Hi")
    assert "--key-env NAME" in said
    assert "export OPENAI_API_KEY" in said
    assert "abc123" not in said


def test_the_value_of_an_unknown_option_is_not_shown(refused):
    assert "secret" not in refused("generate", "--passwort=secret", "Hi")


def test_no_option_of_ours_is_taken_for_another_programs(capsys):
    for command in ("generate", "bulk", "serve", "jobs", "check", "init"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        ours = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out.partition("options:")[2]))
        assert "--set" in ours
        assert not [name for name in ours if habits.option(command, [name])], command


def test_a_word_behind_two_dashes_is_no_option():
    assert habits.option("generate", ["--", "--prompt"]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--log-level", "verbose"], "--log-level: 'verbose' is none of debug, info, warning, error"),
        (["completion", "pwsh"], "did you mean powershell?"),
        (["generate", "--max-tokens", "1k", "Hi"], "--max-tokens: '1k' is not a whole number; write 1000"),
        (["bulk", "--limit", "some", "a", "b"], "--limit: 'some' is not a whole number"),
        (["generate", "--max-tokens", "0", "Hi"], "--max-tokens: '0' must be at least 1"),
        (["bulk", "a.jsonl"], "OUTPUT is missing"),
        (["bulk"], "INPUT and OUTPUT are missing: promptmill bulk prompts.jsonl answers.jsonl"),
        (["bulk", "--prompt-colum", "text"], "did you mean --prompt-column?"),
        (["bulk", "--", "--prompt-colum"], "OUTPUT is missing"),
        (["join", "a", "b"], "'b' is an argument too many"),
        (["install"], "CLIENT is missing; clients: claude-desktop, claude-code, cursor, "),
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
