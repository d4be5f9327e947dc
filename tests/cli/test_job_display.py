"""The list of jobs."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from promptmill.cli.job_display import print_jobs, print_status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def job(**more):
    found = {"job_id": "answers-d753e2bc56", "state": "finished", "total": 20_000, "done": 20_000, "failed": 0}
    found |= {"input_file": "/in/reviews.csv", "model": "good-1", "cost": 0.004, "seconds": 1.8}
    return found | {"created": 1_700_000_000, "output_file": str(Path.cwd() / "answers.jsonl")} | more


def test_a_program_gets_every_column_whole_and_no_colour():
    target = io.StringIO()
    print_jobs([job(), job(state="running", done=7, output_file="/elsewhere/" + "long/" * 40 + "a.jsonl")], target)
    head, first, second = target.getvalue().splitlines()
    assert head.split() == ["job", "state", "rows", "failed", "cost", "time", "files", "model", "begun", "output"]
    assert "1.8 s  reviews.csv → answers.jsonl  good-1" in first
    assert "$0.0040" in first
    assert first.endswith("answers.jsonl")
    assert "7/20,000" in second
    assert second.endswith("a.jsonl")
    assert "\x1b" not in target.getvalue()


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_it_fits_and_keeps_to_no_color(monkeypatch, no_color):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    print_jobs([job(state="stopped", failed=3, output_file="/elsewhere/\x1b[2J" + "long/" * 40)], screen)
    shown = screen.getvalue()
    assert "\x1b[2J" not in shown
    assert ("\x1b[31m" in shown) is not no_color
    assert "stopped" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "\x1b" not in line)


@pytest.mark.parametrize(
    ("width", "columns", "below"),
    [
        (40, ["job", "state"], ["  16,803/20,000 rows, 1,680 failed,", "  $0.0040, 1.8 s, reviews.csv →"]),
        (80, ["job", "state", "rows", "failed", "cost", "time"], ["  reviews.csv → answers.jsonl, good-1, "]),
        (120, ["job", "state", "rows", "failed", "cost", "time", "files", "model"], []),
    ],
)
def test_columns_without_room_are_below_their_row_and_no_name_is_cut(monkeypatch, width, columns, below):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    print_jobs([job(job_id="few-answers-d371c63dc8", state="interrupted", done=16_803, failed=1_680)], screen)
    head, row, *rest = re.sub(r"\x1b\[\d*m", "", screen.getvalue()).splitlines()
    assert head.split() == columns
    shown = ["few-answers-d371c63dc8", "interrupted", "16,803/20,000", "1,680", "$0.0040", "1.8"]
    assert row.split()[: min(len(columns), 6)] == shown[: len(columns)]
    assert all(line.startswith(start) for line, start in zip(rest, below, strict=False))
    assert (rest == []) == (below == [])
    assert max(map(len, [head, row, *rest])) <= width


def test_success_has_a_sign_on_a_terminal_alone(monkeypatch):
    class Screen(Terminal):
        encoding = "utf-8"

    shown = []
    for stream, more in ((Screen(), {}), (Screen(), {"failed": 1}), (io.StringIO(), {})):
        monkeypatch.setattr("sys.stdout", stream)
        print_status(job(**more), as_json=False)
        shown.append(stream.getvalue().startswith("✓ reviews.csv"))
    assert shown == [True, False, False]


def test_a_budget_that_was_too_small_is_to_be_higher_by_no_number(capsys):
    more = {"state": "stopped", "code": "budget", "max_cost": 0.00003, "alive": False}
    warning = "a `max_tokens` of 20 lets 112 times as many run."
    print_status(job(**more, warnings=[warning]), as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "resume with the same command and a higher --max-cost write" in said
    assert "a --max-tokens of 20 lets 112 times as many run." in said
