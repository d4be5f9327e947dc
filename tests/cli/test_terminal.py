"""Lines that are longer than a terminal is wide."""

import pytest

from promptmill.cli.terminal import complain, wrapped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", "short"),
        ("", ""),
        ("promptmill: " + "word " * 9 + "end", "promptmill: word word word word word\n  word word word word end"),
        ("  errors    " + "word " * 6 + "end", "  errors    word word word word word\n            word end"),
        ("  one\n\n  two", "  one\n\n  two"),
        ("x" * 60, "x" * 60),
    ],
)
def test_a_line_is_broken_between_words_and_goes_on_below_its_beginning(text, shown):
    assert wrapped(text, 40) == shown


def test_an_error_begins_with_that_word_and_its_command_stands_alone(capsys):
    complain("It lacks vllm. Run: pip install 'promptmill[vllm]'")
    complain("There is no file.")
    said = capsys.readouterr().err
    assert said == "error: It lacks vllm. Run:\n  pip install 'promptmill[vllm]'\nerror: There is no file.\n"


def test_an_error_is_red_on_a_terminal_unless_colours_are_not_wanted(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    complain("no\x1b[2Jfile")
    monkeypatch.setenv("NO_COLOR", "1")
    complain("no file")
    assert capsys.readouterr().err == "\x1b[1;31merror:\x1b[0m no\ufffd[2Jfile\nerror: no file\n"
