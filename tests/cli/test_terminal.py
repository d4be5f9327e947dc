"""Lines that are longer than a terminal is wide."""

from __future__ import annotations

import pytest

from promptmill.cli.terminal import wrapped


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
