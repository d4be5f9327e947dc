"""`promptmill compare`: outputs against each other and against right answers."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import json
import os
import random
import re
import struct
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import promptmill
from fakes import KEY
from forked import started
from promptmill.core.errors import PromptmillError
from promptmill.core.money import dollars
from promptmill.core.values import text_of
from promptmill.features.compare.compared_file import ComparedFile
from promptmill.features.compare.figures import _difference
from promptmill.features.compare.paired_proportions import (
    exact_interval,
    kappa,
    mcnemar,
    paired_interval,
    wilson,
)
from promptmill.features.compare.words import Table
from replies import answer, choose, status
from tables import write_rows
from waiting import PATIENCE_S

LABELS = ("positive", "negative", "neutral")


def compare(bench: Any, *arguments: Any, code: int = 0) -> str:
    """Return what `promptmill compare` prints."""
    done = bench.here([sys.executable, "-m", "promptmill", "compare", *map(str, arguments)])
    assert done.returncode == code, done.stderr
    return str(done.stdout if code == 0 else done.stderr)


def figures(bench: Any, *arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(compare(bench, *arguments, "--json"))
    return found


def labelled(rows: int, right: float, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows whose answer is the label in about this share."""
    chance = random.Random(seed)
    found = []
    for at in range(rows):
        label = LABELS[at % 3]
        given = label if chance.random() < right else chance.choice(LABELS)
        found.append({"text": f"review {at}", "label": label, "answer": given, "error": ""})
    return found


# ---- the figures: of published examples, and of scikit-learn, SciPy and statsmodels


@pytest.mark.parametrize(
    ("table", "interval", "p"),
    [
        # M. W. Fagerland, S. Lydersen, P. Laake, Statistics in Medicine 33 (2014), 2850-2875: airway reactivity
        ((1, 1, 7, 12), (-0.507, -0.026), 0.0703),
        # the same authors, Statistical Analysis of Contingency Tables (2017), chapter 8: response to a therapy
        ((59, 6, 16, 80), (-0.1186, -0.0046), 0.0525),
    ],
)
def test_the_paired_difference_of_published_examples(table, interval, p):
    digits = 3 if interval[0] == -0.507 else 4
    assert tuple(round(bound, digits) for bound in paired_interval(*table)) == interval
    assert round(mcnemar(table[1], table[2]), 4) == p


def test_a_difference_of_nothing_and_of_everything():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 2**10)
    assert mcnemar(1_000_000, 1_000_000) == pytest.approx(1.0)
    assert mcnemar(0, 5000) == 0.0
    low, high = paired_interval(100, 0, 0, 0)
    assert -0.04 < low < 0 < high < 0.04
    low, high = paired_interval(0, 50, 0, 0)
    assert 0.8 < low < 1
    assert high <= 1


def test_the_interval_is_that_of_the_reverse_with_the_other_sign():
    low, high = paired_interval(50, 9, 4, 20)
    assert paired_interval(50, 4, 9, 20) == pytest.approx((-high, -low))


@pytest.mark.thorough
def test_the_interval_of_a_share():
    # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
    for hits, rows, interval in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611))):
        assert tuple(round(bound, 4) for bound in wilson(hits, rows)) == interval
    # the same, method 5
    exact = (81, 263, (0.2527, 0.3676)), (15, 148, (0.0578, 0.1617)), (0, 20, (0, 0.1684)), (20, 20, (0.8316, 1))
    for hits, rows, interval in exact:
        assert tuple(round(bound, 4) for bound in exact_interval(hits, rows)) == interval
    assert exact_interval(400_000, 1_000_000) == pytest.approx((0.39904, 0.40096), abs=1e-5)


def test_kappa_of_a_known_example():
    # https://en.wikipedia.org/wiki/Cohen's_kappa, the first example
    assert kappa({("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}) == pytest.approx(0.4)
    assert kappa(Counter({("y", "y"): 9})) is None


# ---- files


@pytest.mark.thorough
def test_two_files_against_right_answers(bench):
    ours, theirs = labelled(300, 0.95, 1), labelled(300, 0.7, 2)
    theirs[4] |= {"answer": "", "error": "timeout: too slow"}
    a, b = write_rows(bench.path / "a.csv", ours), write_rows(bench.path / "b.csv", theirs)
    found = figures(bench, a, b, "--gold", "label")
    assert (found["rows"], found["matched"]) == (300, "by text, label")
    assert [file["answered"] for file in found["files"]] == [300, 299]
    (pair,) = found["pairs"]
    agree = sum(one["answer"] == other["answer"] for one, other in zip(ours, theirs, strict=True))
    assert (pair["of"], pair["rows"], pair["agree"]) == (["A", "B"], 299, agree)
    changes = {(one["from"], one["to"]): one["rows"] for one in pair["changes"]}
    pairs = Counter((one["answer"], other["answer"]) for one, other in zip(ours, theirs, strict=True))
    assert changes == {pair: count for pair, count in pairs.items() if pair[1]}
    gold = found["gold"]
    right = [[row["answer"] == row["label"] for row in rows] for rows in (ours, theirs)]
    assert [file["right"] for file in gold["files"]] == [sum(own) for own in right]
    (difference,) = gold["differences"]
    assert difference["difference"] == pytest.approx((sum(right[1]) - sum(right[0])) / 300)
    only = Counter(zip(*right, strict=True))
    assert difference["only_right"] == [only[True, False], only[False, True]]
    assert difference["interval"][0] < difference["difference"] < difference["interval"][1] < 0
    assert difference["p"] < 0.001
    assert found["differ"] == 300 - agree
    assert found["differing"][0].keys() == {"row", "heading", "own", "gold", "answers", "differs", "wrong"}


def test_precision_recall_and_f1_by_class(bench):
    # sklearn.metrics.classification_report of the same lists
    rows = [("a", "a")] * 6 + [("a", "b")] * 2 + [("b", "b")] * 3 + [("b", "a")] + [("c", "a")] * 2 + [("a", "x")]
    path = write_rows(bench.path / "a.jsonl", [{"gold": gold, "answer": own} for gold, own in rows])
    (file,) = figures(bench, path, "--gold", "gold")["gold"]["files"]
    by_class = {
        one["class"]: [round(one[name], 4) for name in ("precision", "recall", "f1")] for one in file["classes"]
    }
    assert by_class == {"a": [0.6667, 0.6667, 0.6667], "b": [0.6, 0.75, 0.6667], "c": [0, 0, 0]}
    assert [one["rows"] for one in file["classes"]] == [9, 4, 2]
    assert file["macro_f1"] == pytest.approx(4 / 9)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal")
@pytest.mark.parametrize("width", [40, 55, 80])
def test_the_text_fits_a_narrow_terminal(bench, width):
    import fcntl
    import pty
    import termios

    every = []
    for name, right in (("a", 0.9), ("b", 0.8)):
        rows = [{**row, "text": f"{row['text']} {'of a place ' * 30}"} for row in labelled(90, right, ord(name))]
        every.append(write_rows(bench.path / f"{name}{'-long' * 20}.csv", rows))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    command = [sys.executable, "-m", "promptmill", "compare", *map(str, every), "--gold", "label"]
    process = started(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=bench.path)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # at its end
        while data := os.read(ours, 65536):
            text += data
    os.close(ours)
    lines = text.decode().splitlines()
    assert process.wait(timeout=PATIENCE_S) == 0, lines
    assert max(map(len, lines)) <= width
    assert sum("precision" in line for line in lines) == (7 if width == 40 else 2), lines
    if width < 80:  # too narrow for the table with its names
        assert lines[0].startswith("A a-long-long")
    else:
        assert lines[0].split() == ["file", "right", "mean", "F1"]


def test_a_comparison_begins_with_a_table_in_which_the_best_are_marked(bench):
    files = [
        write_rows(bench.path / f"{name}.csv", labelled(300, right, at))
        for at, (name, right) in enumerate((("weak", 0.5), ("good", 0.94), ("as-good", 0.95)))
    ]
    found = figures(bench, *files, "--gold", "label")
    marks = {file["name"]: file["among_best"] for file in found["gold"]["files"]}
    assert marks == {"A": False, "B": True, "C": True}
    best = max(found["gold"]["files"], key=lambda file: file["accuracy"])["name"]
    text = compare(bench, *files, "--gold", "label")
    table, after = text.split("\n\n", 1)
    assert after.startswith("300 rows, matched by text, label\n")
    head, *rows = table.splitlines()
    assert head.split() == ["file", "right", "mean", "F1"]
    ends = {row[0]: " ".join(row.partition(")")[2].split()[:-1]) for row in rows}
    assert ends == {name: "" if name == "A" else "best" if name == best else "may be as good" for name in "ABC"}
    assert compare(bench, *files, "--gold", "label", "--quiet") == table + "\n"
    assert re.search(r"\n +points +95 % interval +p +only right\nB minus A +[+\N{MINUS SIGN}]", text)
    assert "precision, recall and F1" not in text  # a title alone, without its table, says nothing


def test_the_pairs_of_several_files_are_lines_without_their_tables(bench):
    files = [write_rows(bench.path / f"{name}.csv", labelled(30, 0.8, at)) for at, name in enumerate("abc")]
    text = compare(bench, *files, "--gold", "label")
    assert "\u2193" not in text
    assert re.search(
        r"\nA and B agree in [\d.]+ % of 30 rows; agreement beyond chance 0.\d\d of 1\nA and C agree", text
    )
    assert re.search(r"\nB minus A .*\nC minus A ", text)
    assert "  agreement beyond chance: Cohen's kappa\n" in text
    assert "\n--report FILE has the tables of all labels and pairs\n" in text
    assert "\u2193" in compare(bench, *files[:2])


def test_names_of_variants_have_thirty_characters(bench):
    names = [f"a-model-with-a-long-name/{kind}" for kind in ("short", "asked", "with-examples")]
    rows = [
        {"id": at, "variant": name, "answer": "x" if at % 3 else name, "label": "x"}
        for at in range(20)
        for name in names
    ]
    grid = write_rows(bench.path / "grid.jsonl", rows)
    table = compare(bench, grid, "--by", "variant", "--gold", "label", "--quiet")
    assert table.startswith("variant ")
    shown = [row.partition("  ")[0] for row in table.splitlines()[1:]]
    assert shown == [names[0], names[1], f"{names[2][:29]}\N{HORIZONTAL ELLIPSIS}"]


def test_variants_are_compared_at_the_end_of_a_job_only_if_compare_can_read_the_output(bench):
    prompts = ("--prompt", "a={{prompt}}", "--prompt", "b={{prompt}}")
    bench.upstream.reply = status(401)
    bench.prompts(2)
    assert "promptmill compare" not in bench.fail(*prompts, code=1)
    bench.upstream.reply = answer()
    assert "promptmill compare" in bench.run(*prompts).stdout
    bench.output = bench.path / "out.db#answers"
    assert "promptmill compare" not in bench.fail(*prompts, code=0)


def test_the_table_is_bounded_to_the_commonest_answers(bench):
    values = [f"answer number {at % 40}" for at in range(4000)]
    a = write_rows(bench.path / "a.jsonl", [{"id": at, "answer": value} for at, value in enumerate(values)])
    b = write_rows(bench.path / "b.jsonl", [{"id": at, "answer": values[at - at % 7]} for at in range(4000)])
    lines = compare(bench, a, b).splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("A ↓ B →"))) :][:9]
    assert "others" in table[0]
    assert max(map(len, table)) <= 100
    assert len(figures(bench, a, b)["pairs"][0]["changes"]) <= 200


@pytest.mark.thorough
def test_the_bounded_table_counts_all_rows(bench):
    chance = random.Random(0)
    labels = [[f"L{min(chance.randrange(60), chance.randrange(60))}" for _ in range(3000)] for _ in range(2)]
    a, b = (
        write_rows(bench.path / name, [{"id": at, "answer": label} for at, label in enumerate(its)])
        for name, its in zip(("a.jsonl", "b.jsonl"), labels, strict=True)
    )
    (pair,) = figures(bench, a, b)["pairs"]
    assert sum(change["rows"] for change in pair["changes"]) == 3000
    counts, named = Counter(zip(*labels, strict=True)), {change["from"] for change in pair["changes"]} - {""}
    assert len(named) == 12
    assert all(
        change["rows"] == counts[change["from"], change["to"]] for change in pair["changes"] if all(change.values())
    )
    lines = compare(bench, a, b).splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("A \N{DOWNWARDS ARROW} B"))
    table = [line.split()[1:] for line in lines[at + 1 : lines.index("", at)]]
    assert sum(int(cell.replace(",", "")) for cells in table for cell in cells if cell != "·") == 3000


@pytest.mark.thorough
def test_only_all_rows_are_100_percent_and_only_none_are_0(bench):
    rows = [{"id": at, "label": "no" if at % 2 else "yes"} for at in range(4000)]
    a = write_rows(bench.path / "a.jsonl", [{**row, "answer": row["label"]} for row in rows])
    wrong = [{**row, "answer": row["label"] if row["id"] else "no"} for row in rows]
    b = write_rows(bench.path / "b.jsonl", wrong)
    text = compare(bench, a, b, "--gold", "label").replace("\N{EN DASH}", "-")
    assert "100.0 % (99.9-100.0)" in text, "A, of which every row is right"
    assert "99.98 % (99.9-99.996)" in text, "B, of which one row is wrong"
    assert re.search(r"\nB minus A +\N{MINUS SIGN}0.03  ", text)
    assert "A and B agree in 99.98 % of 4,000 rows" in text
    none = write_rows(bench.path / "c.jsonl", [{**row, "answer": "maybe" if row["id"] else "yes"} for row in rows])
    assert "0.03 % (0.004-0.1)" in compare(bench, a, none, "--gold", "label").replace("\N{EN DASH}", "-")


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_files_of_different_formats_in_another_order(bench, suffix):
    rows = [{**row, "stars": at % 5, "good": at % 2 == 0} for at, row in enumerate(labelled(40, 0.8))]
    a = write_rows(bench.path / "a.jsonl", rows)
    b = write_rows(bench.path / f"b.{suffix}", [{**row, "answer": row["label"]} for row in reversed(rows)])
    if suffix in {"csv", "tsv"}:
        b.write_text(b.read_text().replace("True", "true").replace("False", "false"))
    found = figures(bench, a, b, "--gold", "label")
    assert found["matched"] == "by text, label, stars, …"
    assert found["gold"]["files"][1]["accuracy"] == 1


def test_rows_without_columns_of_their_own_are_matched_by_place(bench):
    a = write_rows(bench.path / "a.jsonl", [{"answer": str(at)} for at in range(9)])
    b = write_rows(bench.path / "b.jsonl", [{"answer": str(at % 8)} for at in range(9)])
    found = figures(bench, a, b)
    assert (found["matched"], found["pairs"][0]["agree"]) == ("by place", 8)


def test_the_same_row_twice_is_matched_in_order(bench):
    a = write_rows(bench.path / "a.jsonl", [{"text": "same", "answer": str(at)} for at in range(4)])
    b = write_rows(bench.path / "b.jsonl", [{"text": "same", "answer": str(at)} for at in range(4)])
    assert figures(bench, a, b)["pairs"][0]["agree"] == 4


def test_files_of_other_rows_are_refused(bench):
    rows = labelled(30, 0.9)
    a = write_rows(bench.path / "a.csv", rows)
    other = write_rows(
        bench.path / "other.csv", [{**row, "text": f"other {row['text']}", "label": "x"} for row in rows]
    )
    assert "do not hold the same rows: `text`, `label` differ." in compare(bench, a, other, code=2)
    # one column is the same, but does not tell rows apart
    partly = write_rows(bench.path / "partly.csv", [{**row, "text": f"other {row['text']}"} for row in rows])
    assert "several rows with the same `label`" in compare(bench, a, partly, code=2)
    other_texts = [{"text": f"other {row['text']}", "answer": "x"} for row in rows[:20]]
    said = compare(bench, a, write_rows(bench.path / "few.csv", other_texts), code=2)
    assert "not hold the same rows: a.csv has 30 rows, few.csv has 20 rows." in said
    crossed = [{**row, "label": rows[at - 1]["label"]} for at, row in enumerate(rows)]
    crossed[0]["label"], crossed[1]["label"] = crossed[1]["label"], crossed[0]["label"]
    found = figures(bench, a, write_rows(bench.path / "crossed.csv", crossed))
    assert (found["rows"], found["matched"]) == (30, "by text")
    twice = write_rows(bench.path / "twice.jsonl", [{"id": 1, "answer": "x"}, {"id": 1, "answer": "y"}])
    assert "several rows with the same `id`, the second is row 2" in compare(bench, twice, twice, code=2)
    grid = [{"id": 1, "variant": name, "answer": "x", "label": "x"} for name in "ab"]
    said = compare(bench, write_rows(bench.path / "grid.jsonl", grid), "--gold", "label", code=2)
    assert "the second is row 2. It has several answers to each row; to compare these: --by variant." in said


def test_columns_that_are_not_there(bench):
    a = write_rows(bench.path / "a.csv", labelled(9, 1))
    assert "No row of a.csv has an answer in `nix`" in compare(bench, a, a, "--field", "nix", code=2)
    assert "No file has a column nix, and there is no file of this name; there are `text`" in compare(
        bench, a, a, "--gold", "nix", code=2
    )
    assert "no file of this name; did you mean label?" in compare(bench, a, a, "--gold", "LABEL", code=2)
    assert "a.csv has no column 'nix'; its columns: text" in compare(bench, a, a, "--id", "nix", code=2)
    assert "two files, or one file and --gold or --by" in compare(bench, a, code=2)
    assert "There is no file nix.csv" in compare(bench, a, "nix.csv", code=2)


def test_rows_without_a_right_answer_do_not_count(bench):
    rows = labelled(9, 1)
    rows[3]["label"] = rows[4]["label"] = ""
    path = write_rows(bench.path / "a.csv", rows)
    gold = figures(bench, path, "--gold", "label")["gold"]
    assert (gold["rows"], gold["files"][0]["right"]) == (7, 7)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_right_answers_may_be_in_a_file_of_their_own(bench, place):
    ours, theirs = ([{"id": at, **row} for at, row in enumerate(labelled(30, right, 1))] for right in (0.9, 0.6))
    labels = [{"id": row["id"], "label": row["label"]} for row in reversed(ours)]
    unlabelled = [[{name: row[name] for name in ("id", "text", "answer")} for row in rows] for rows in (ours, theirs)]
    files = [write_rows(bench.path / f"{name}.csv", rows) for name, rows in zip("ab", unlabelled, strict=True)]
    files.insert(place, write_rows(bench.path / "labels.csv", labels))
    found = figures(bench, *files, "--gold", "label")
    assert [(file["name"], file["title"]) for file in found["files"]] == [("A", "a.csv"), ("B", "b.csv")]
    right = [sum(row["answer"] == row["label"] for row in rows) for rows in (ours, theirs)]
    assert [file["right"] for file in found["gold"]["files"]] == right
    assert found["differing"][0]["own"].keys() == {"id", "text"}
    alone = figures(bench, files[2 if place < 2 else 1], bench.path / "labels.csv", "--gold", "label")
    assert (alone["pairs"], alone["gold"]["files"][0]["right"]) == ([], right[1])


def test_right_answers_in_other_capitals(bench):
    ours, theirs = labelled(30, 0.9, 1), labelled(30, 0.6, 2)
    right = [sum(row["answer"] == row["label"] for row in rows) for rows in (ours, theirs)]
    for row in ours:
        row["label"] = row["label"].upper()
    for row in theirs:
        del row["label"]
    a, b = write_rows(bench.path / "a.csv", ours), write_rows(bench.path / "b.csv", theirs)
    found = figures(bench, a, b, "--gold", "label")
    assert [file["right"] for file in found["gold"]["files"]] == right
    assert [one["class"] for one in found["gold"]["files"][0]["classes"]] == list(LABELS)
    assert found["gold"]["capitals"] == {label.upper(): label for label in LABELS}
    assert "\ncapitals do not count: POSITIVE is positive, and 2 more\n" in compare(bench, a, b, "--gold", "label")
    wrong = [row for row in figures(bench, a, "--gold", "label")["differing"] if row["gold"] in row["answers"].values()]
    assert not wrong


def test_a_right_answer_in_another_unicode_form_is_right(bench):
    rows = [
        {"id": 1, "label": "ne\u0301gatif", "answer": "n\u00e9gatif"},
        {"id": 2, "label": "positif", "answer": "positif"},
    ]
    found = figures(bench, write_rows(bench.path / "a.csv", rows), "--gold", "label")
    assert found["gold"]["files"][0]["right"] == 2


@pytest.mark.parametrize(
    ("labels", "answers"),
    [(("US", "us"), ("us", "us")), (("US", "IT"), ("us", "Us")), (("us", "it"), ("us", "it"))],
    ids=["right answers differ in capitals", "answers do", "the same capitals"],
)
def test_capitals_that_tell_answers_apart_count(bench, labels, answers):
    rows = [
        {"id": at, "label": label, "answer": its} for at, (label, its) in enumerate(zip(labels, answers, strict=True))
    ]
    gold = figures(bench, write_rows(bench.path / "a.csv", rows), "--gold", "label")["gold"]
    assert "capitals" not in gold
    assert gold["files"][0]["right"] == sum(row["label"] == row["answer"] for row in rows)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("2026-01-05", pd.to_datetime(["2026-01-05", "2026-01-05", "2026-01-06"])),
        ("2026-01-05", [dt.date(2026, 1, 5), dt.date(2026, 1, 5), dt.date(2026, 1, 6)]),
        ("2026-01-05T14:30:00", pd.to_datetime(["2026-01-05T14:30:00", "2026-01-05T14:30:00", "2026-01-06T00:00:00"])),
        ("12.5", [Decimal("12.50"), Decimal("12.50"), Decimal("7.00")]),
    ],
)
def test_dates_and_decimals_in_parquet_equal_their_texts(bench, answer, right):
    answers = write_rows(bench.path / "a.csv", [{"id": at, "answer": answer} for at in range(3)])
    pd.DataFrame({"id": range(3), "label": right}).to_parquet(bench.path / "gold.parquet")
    assert figures(bench, answers, "--gold", "gold.parquet")["gold"]["files"][0]["right"] == 2


def test_values_are_the_same_text_in_every_format():
    values = [None, "x", True, 3, 3.0, 0.5, float("nan"), {"b": 1, "a": [2]}]
    assert list(map(text_of, values)) == ["", "x", "true", "3", "3", "0.5", "", '{"a":[2],"b":1}']


# ---- right answers in a file of their own


def sampled(bench: Any, rows: int = 300, known: int = 200) -> tuple[Path, list[dict[str, Any]]]:
    """Write `a.csv` without right answers; return it, and the right answers of a sample of its rows."""
    every = [{"id": at, **row} for at, row in enumerate(labelled(rows, 0.8))]
    path = write_rows(bench.path / "a.csv", [{name: row[name] for name in ("id", "text", "answer")} for row in every])
    sample = random.Random(1).sample(every, known)
    return path, [{name: row[name] for name in ("id", "text", "label", "answer")} for row in sample]


@pytest.mark.thorough
@pytest.mark.parametrize("key", ["id", "text"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "tsv"])
def test_right_answers_for_a_sample_of_the_rows(bench, key, suffix):
    a, sample = sampled(bench)
    gold = write_rows(bench.path / f"gold.{suffix}", [{key: row[key], "label": row["label"]} for row in sample])
    found = figures(bench, a, "--gold", gold)["gold"]
    assert (found["rows"], found["of"], found["matched"]) == (200, 300, f"by {key}")
    assert found["files"][0]["right"] == sum(row["label"] == row["answer"] for row in sample)
    assert f"200 of 300 rows have a right answer, matched by {key}" in compare(bench, a, "--gold", gold)


def test_right_answers_in_a_file_with_another_separator(bench):
    a, sample = sampled(bench)
    gold = bench.path / "gold.csv"
    gold.write_text("".join(["text;verdict\n", *(f"{row['text']};{row['label']}\n" for row in sample)]))
    found = figures(bench, a, "--gold", gold)["gold"]
    assert (found["rows"], found["matched"]) == (200, "by text")


def test_the_column_of_right_answers_of_a_file(bench):
    a, sample = sampled(bench)
    gold = write_rows(bench.path / "g.csv", [{"id": row["id"], "one": "x", "two": row["label"]} for row in sample])
    right = sum(row["label"] == row["answer"] for row in sample)
    assert figures(bench, a, "--gold", f"{gold}:two")["gold"]["files"][0]["right"] == right
    assert "Name the one with the right answers: --gold g.csv:COLUMN." in compare(bench, a, "--gold", gold, code=2)
    assert "g.csv has no column 'three'; its columns: id, one, two." in compare(
        bench, a, "--gold", f"{gold}:three", code=2
    )


def test_equal_rows_have_the_same_right_answer_unless_it_is_not_clear(bench):
    a = write_rows(bench.path / "a.csv", [{"text": text, "answer": "x"} for text in ("ok", "ok", "no")])
    gold = write_rows(bench.path / "gold.csv", [{"text": "ok", "label": "x"}, {"text": "no", "label": "y"}])
    found = figures(bench, a, "--gold", gold)["gold"]
    assert (found["rows"], found["files"][0]["right"]) == (3, 2)
    write_rows(gold, [{"text": "ok", "label": "x"}, {"text": "ok", "label": "y"}])
    assert "several right answers for the same `text`, the second is in row 2" in compare(
        bench, a, "--gold", gold, code=2
    )
    write_rows(gold, [{"text": "other", "label": "x"}])
    assert "No row of a.csv has a right answer in gold.csv, by text." in compare(bench, a, "--gold", gold, code=2)


def test_files_are_compared_on_the_rows_that_they_share(bench):
    rows = labelled(30, 0.9)
    a, b = write_rows(bench.path / "a.csv", rows), write_rows(bench.path / "b.csv", list(reversed(rows[5:])))
    found = figures(bench, a, b)
    assert (found["rows"], found["matched"], [file["rows"] for file in found["files"]]) == (25, "by text", [30, 25])
    assert (found["pairs"][0]["agree"], found["differ"]) == (25, 0)
    text = compare(bench, a, b)
    assert "25 rows, matched by text: those that are in both files; A has 30, B has 25" in text
    other = write_rows(bench.path / "c.csv", [{**row, "answer": "other"} for row in rows[28:]])
    assert [row["row"] for row in figures(bench, a, other)["differing"]] == [29, 30]


# ---- fields, numbers, lists and long texts

ITEMS = [("ACME", 12.5, ["a", "b"]), ("Bolt", 100, ["c"]), ("Core", 7, []), ("Dune", 3.25, ["d", "e"])]


def extracted(*changes: tuple[int, str, Any]) -> list[dict[str, Any]]:
    """Return rows with an object as their answer, with these fields changed."""
    rows: list[dict[str, Any]] = [
        {"text": f"mail {at}", "answer": {"customer": customer, "amount": amount, "items": items}}
        for at, (customer, amount, items) in enumerate(ITEMS)
    ]
    for at, name, value in changes:
        rows[at]["answer"][name] = value
    return rows


def test_the_fields_of_answers_are_compared_one_by_one(bench):
    a = write_rows(bench.path / "a.jsonl", extracted())
    changed = extracted((0, "amount", 12.51), (1, "items", ["c", "c"]), (3, "items", ["e", "d"]), (2, "customer", "X"))
    b = write_rows(bench.path / "b.jsonl", changed)

    def shares(*options: str) -> dict[str, float]:
        (pair,) = figures(bench, a, b, *options)["pairs"]
        return {"all": pair["agreement"], **{field["field"]: field["agreement"] for field in pair["fields"]}}

    assert shares() == {"all": 0.5, "customer": 0.75, "amount": 0.75, "items": 1}
    assert shares("--tolerance", "0.01") == {"all": 0.75, "customer": 0.75, "amount": 1, "items": 1}
    assert shares("--tolerance", "1%")["amount"] == 1
    text = compare(bench, a, b)
    assert "A and B agree in all fields in 50.0 % of 4 rows" in text
    assert "customer 75.0 % (similarity 0.75) \N{MIDDLE DOT} amount 75.0 % \N{MIDDLE DOT} items 100.0 %" in text
    assert "  similarity: mean F1" in text
    assert "\nmail 2 (row 3)\n" in text
    assert "\N{NOT EQUAL TO} customer: Core; amount: 7; items: []" in text
    assert figures(bench, a, b, "--field", "customer")["pairs"][0]["agreement"] == 0.75
    two = figures(bench, a, b, "--field", "customer", "--field", "items")["pairs"][0]["fields"]
    assert [field["field"] for field in two] == ["customer", "items"]
    said = compare(bench, a, b, "--field", "custmer", code=2)
    assert "--field: no answer of a.jsonl has the field `custmer`; did you mean customer?" in " ".join(said.split())
    assert "similarity" not in compare(bench, a, a)  # no text differs
    assert "neither an amount such as 0.01 nor a share" in compare(bench, a, b, "--tolerance", "much", code=2)


def test_a_whole_number_in_a_list_is_the_same_in_every_format(bench):
    kinds = [int, float]  # as in CSV, and as in Parquet
    rows = [[{"text": "a", "answer": [kind(2), 1.5, {"of": kind(3)}]}] for kind in kinds]
    a, b = (write_rows(bench.path / f"{name}.jsonl", one) for name, one in zip("ab", rows, strict=True))
    assert figures(bench, a, b)["pairs"][0]["agreement"] == 1


def test_a_column_in_other_capitals_is_named(bench):
    rows = [{"id": at, "answer": "tea"} for at in range(3)]
    outputs = [write_rows(bench.path / f"{name}.csv", rows) for name in "ab"]
    gold = write_rows(bench.path / "gold.csv", [{"ID": 1, "label": "tea"}])
    said = compare(bench, *outputs, "--gold", f"{gold}:label", code=2)
    assert "In gold.csv, rename `ID` to `id`, as in a.csv." in " ".join(said.split())


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_a_file_in_another_encoding_is_named(bench, encoding):
    outputs = [write_rows(bench.path / f"{name}.csv", [{"id": 1, "answer": "tea"}]) for name in "ab"]
    (bench.path / "gold.csv").write_text("id,label\n1,Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\n", encoding)
    said = compare(bench, *outputs, "--gold", bench.path / "gold.csv", code=2)
    assert "gold.csv is not UTF-8 text; save it as UTF-8, which Excel calls `CSV UTF-8`." in " ".join(said.split())


def test_right_answers_of_fields_are_the_columns_of_a_file(bench):
    a = write_rows(bench.path / "a.jsonl", extracted())
    b = write_rows(bench.path / "b.jsonl", extracted((0, "amount", 12.51), (2, "customer", "X")))
    rows = [
        {"text": f"mail {at}", "customer": customer, "amount": f"{amount:.2f}"}
        for at, (customer, amount, _) in enumerate(ITEMS[:3])
    ]
    gold = figures(bench, a, b, "--gold", write_rows(bench.path / "gold.csv", rows))["gold"]
    assert (gold["rows"], gold["of"], gold["matched"]) == (3, 4, "by text")
    assert {field["field"]: [file["right"] for file in field["files"]] for field in gold["fields"]} == {
        "customer": [3, 2],
        "amount": [3, 2],
    }
    assert [file["right"] for file in gold["files"]] == [3, 1]
    text = compare(bench, a, b, "--gold", "gold.csv")
    assert re.search(r"\nfield +A +B\ncustomer +100.0 % +66.7 % \(similarity 0.67\)\namount +100.0 % +66.7 %\n", text)
    assert re.search(r"\ncustomer: B minus A +\N{MINUS SIGN}33.3 ", text)


def test_right_answers_that_are_no_numbers_are_named_and_do_not_spoil_the_others(bench):
    rows = [{"id": at, "answer": {"amount": amount, "item": "tea"}} for at, amount in enumerate((12.5, 7, 3))]
    write_rows(bench.path / "a.jsonl", rows)
    (bench.path / "gold.csv").write_text("id;amount\n0;12.50\n1;7,00\n2;3.0\n")
    text = compare(bench, "a.jsonl", "--gold", "gold.csv")
    assert re.search(r"\namount +66.7 %\n", text)
    assert "right answers in amount that are not numbers equal no answer: 7,00\n" in text
    assert re.search(r"\namount +66.7 %\n", compare(bench, "a.jsonl", "--gold", "gold.csv", "--tolerance", "1%"))


def test_the_median_length_of_an_even_number_of_texts_is_between_the_middle_two(bench):
    texts = ["a" * 10, "b" * 20, "c" * 40, "d" * 90]
    a = write_rows(bench.path / "a.jsonl", [{"id": at, "answer": text} for at, text in enumerate(texts)])
    b = write_rows(bench.path / "b.jsonl", [{"id": at, "answer": text.upper()} for at, text in enumerate(texts)])
    assert [file["characters"] for file in figures(bench, a, b)["files"]] == [[10, 30, 90]] * 2


def test_long_texts_have_lengths_and_no_kappa(bench):
    a = write_rows(bench.path / "a.jsonl", [{"id": at, "answer": f"The parcel {at} came late."} for at in range(40)])
    b = write_rows(bench.path / "b.jsonl", [{"id": at, "answer": f"Parcel {at} was late"} for at in range(40)])
    (pair,) = figures(bench, a, b)["pairs"]
    assert "kappa" not in pair
    assert pair["similarity"] == pytest.approx(6 / 9)
    text = compare(bench, a, b)
    assert "40 of 40 differ" in text
    assert "A  median length 24 characters (23 to 24)" in text
    assert "`--judge MODEL --criterion" in text
    assert "kappa" not in text
    assert "↓" not in text, "no table"


@pytest.mark.parametrize(("before", "after", "shown"), [(0.02, 0.03, False), (10, 10.4, False), (10, 11, True)])
def test_a_difference_in_time_is_shown_if_it_is_more_than_noise(before, after, shown):
    files = [
        ComparedFile(label, Path(label), about={"seconds": seconds}) for label, seconds in (("A", before), ("B", after))
    ]
    difference = _difference(files[0], [True, False], files[1], [True, True])
    assert ("seconds" in difference) == shown


# ---- Python


def test_a_comparison_in_python(bench):
    a, sample = sampled(bench)
    gold = write_rows(bench.path / "gold.csv", [{"text": row["text"], "label": row["label"]} for row in sample])
    made = promptmill.compare(a, gold=gold)
    assert made.figures["gold"]["rows"] == 200
    assert made.rows[0].keys() >= {"row", "heading", "own", "gold", "answers"}
    assert "200 of 300 rows have a right answer" in made._repr_html_()
    assert repr(made).startswith("<Comparison: 300 rows")
    reached = {"model": "m", "base_url": bench.upstream.url, "api_key": KEY, "progress": False}
    written = promptmill.bulk(gold, bench.path / "out.csv", prompt="{{text}}", **reached)
    assert promptmill.compare([written, bench.path / "out.csv"]).figures["pairs"][0]["agreement"] == 1
    lists = [[{"id": at, "answer": answer} for at in range(4)] for answer in ("x", "y")]
    assert promptmill.compare(lists).figures["pairs"][0]["agreement"] == 0
    with pytest.raises(PromptmillError, match=r"`gold` is .*; name a column of the files, or the path of a file"):
        promptmill.compare(a, gold=pd.DataFrame(sample))
    assert {"compare", "Comparison"} <= {*dir(promptmill)}
    with pytest.raises(promptmill.core.errors.PromptmillError, match="`gold`"):
        promptmill.compare(a)


# ---- jobs


def test_cost_and_time_of_jobs_and_the_cost_of_a_point(bench):
    bench.write(["text,label", *(f"word {at},{'yes' if at % 2 else 'no'}" for at in range(40))], "in.csv")

    def reply(wrong: int) -> Any:
        def pick(seen: Any) -> Any:
            at = int(seen.prompt[5:-1])
            return answer("no" if at < wrong or not at % 2 else "yes")

        return choose(pick)

    ids = []
    for name, price, wrong in (("cheap", 1_000, 10), ("dear", 100_000, 0)):
        bench.output = bench.path / f"{name}.csv"
        bench.upstream.reply = reply(wrong)
        bench.succeed("--prompt", "{{text}}?", "--set", f"price={{input: {price}, output: {price}}}", model_name=name)
        ids.append(bench.folder.job_id)
    found = figures(bench, *ids, "--gold", "label")
    cheap, dear = found["files"]
    assert (cheap["model"], dear["model"]) == ("cheap", "dear")
    assert dear["made"] == {**dear["made"], "model": "dear", "prompt": "{{text}}?"}
    assert dear["made"]["command"].startswith("promptmill bulk ")
    (difference,) = found["gold"]["differences"]
    assert difference["difference"] == pytest.approx(5 / 40)
    assert difference["cost"] == pytest.approx(dear["cost"] - cheap["cost"])
    assert difference["cost_per_point"] == pytest.approx(difference["cost"] / 12.5)
    text = compare(bench, *ids, "--gold", "label")
    head, one, _, _, facts, *_ = text.splitlines()
    assert head.split() == ["file", "right", "mean", "F1", "model", "cost", "time"]
    assert re.match(r"A cheap.csv +87\.5 % \(\S+\) +0\.8\d +cheap ", one)
    assert facts == "40 rows, matched by text, label", "the model is in the table"
    (gained,) = re.findall(r"\n +cost +for each point.*\nB minus A +\+(\$\S+) +(\$\S+)", text)
    assert gained == (dollars(difference["cost"]), dollars(difference["cost_per_point"]))
    backwards = figures(bench, bench.path / "dear.csv", bench.path / "cheap.csv", "--gold", "label")
    assert backwards["gold"]["differences"][0]["cost_per_point"] == pytest.approx(difference["cost_per_point"])


def test_a_small_difference_in_cost_has_two_digits(bench):
    rows = [{"id": at, "answer": "yes", "label": "yes"} for at in range(40)]
    a = write_rows(bench.path / "a.jsonl", [{**row, "cost": 0.000002} for row in rows])
    for cost, said in ((0.000011, "+$0.00036"), (0.000002, "the same"), (0.000001, "\N{MINUS SIGN}$0.000040")):
        b = write_rows(bench.path / "b.jsonl", [{**row, "cost": cost} for row in rows])
        assert re.search(rf"\n +cost\nB minus A +{re.escape(said)}\n", compare(bench, a, b, "--gold", "label"))


def test_no_name_is_cut_in_a_text_for_programs(bench):
    rows = [{"id": at, "answer": "yes", "label": "yes", "guest_review": f"text {at}", "cost": 1} for at in range(40)]
    a = write_rows(bench.path / "mood_of_guests_small.jsonl", rows)
    b = write_rows(bench.path / "mood_of_guests_large.jsonl", [{**row, "answer": "no"} for row in rows])
    text = compare(bench, a, b, "--gold", "label")
    assert "\nA mood_of_guests_small.jsonl  " in text
    assert "\n          guest_review text 0" in text


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_field_of_a_schema(bench, suffix):
    fields = {"mood": {"type": "string"}, "stars": {"type": "integer"}}
    schema = bench.path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": fields, "required": list(fields)}))
    bench.write(["text,mood", *(f"word {at},{'good' if at % 2 else 'bad'}" for at in range(20))], "in.csv")

    def reply(shift: int) -> Any:
        def pick(seen: Any) -> Any:
            mood = "good" if int(seen.prompt[5:-1]) % 2 else "bad"
            return answer(json.dumps({"mood": mood, "stars": len(seen.prompt) + shift}))

        return choose(pick)

    outputs = []
    for name, shift in (("a", 0), ("b", 1)):
        bench.output = bench.path / f"{name}.{suffix}"
        bench.upstream.reply = reply(shift)
        bench.succeed("--prompt", "{{text}}?", "--schema", str(schema))
        outputs.append(bench.output)
    found = figures(bench, *outputs, "--field", "mood", "--gold", "mood")
    assert found["matched"] == "by text, mood"  # the field in the output has another name than the input's column
    assert found["pairs"][0]["agree"] == 20
    assert found["gold"]["files"][0]["accuracy"] == 1
    assert figures(bench, *outputs, "--field", "stars")["pairs"][0]["agree"] == 0
    (pair,) = figures(bench, *outputs)["pairs"]
    assert [(field["field"], field["agree"]) for field in pair["fields"]] == [("mood", 20), ("stars", 0)]
    (pair,) = figures(bench, *outputs, "--tolerance", "1")["pairs"]
    assert pair["agree"] == 20


def test_a_job_without_an_output(bench):
    bench.prompts(3)
    bench.succeed()
    bench.output.unlink()
    said = compare(bench, bench.folder.job_id, bench.folder.job_id, code=2)
    assert f"promptmill jobs {bench.folder.job_id} --export FILE" in said


# ---- several models and prompts in one job


def words(bench: Any, rows: int = 12) -> None:
    """Write a table, and have `good` answer right, `weak` only half of the rows, and any model `?` briefly."""
    bench.write(["text,label", *(f"word {at},{'yes' if at % 2 else 'no'}" for at in range(rows))], "in.csv")
    bench.output = bench.path / "out.csv"

    def reply(seen: Any) -> Any:
        at = int(seen.prompt.split()[1].rstrip("?!"))
        right = "yes" if at % 2 else "no"
        return answer(right if seen.json["model"] == "good" or seen.prompt.endswith("!") else "no")

    bench.upstream.reply = choose(reply)


def grid(bench: Any, *arguments: str, code: int = 0) -> Any:
    done = bench.run(*arguments)
    assert done.returncode == code, done.stderr + done.stdout
    return done


@pytest.mark.thorough
def test_several_models_are_one_job_that_ends_with_the_comparison(bench):
    words(bench)
    options = ("--prompt", "{{text}}?", "--model", "weak", "--model", "good", "--set", "price={input: 9, output: 9}")
    done = grid(bench, *options)
    assert "in.csv → out.csv: 12 rows × 2 answers: 24 answered in" in done.stdout  # noqa: RUF001 (a product)
    assert "settings of each row" not in done.stdout  # no column of the user is one
    assert re.search(r"\nvariant +answered +cost\nweak +12 +\$[\d.]+\ngood +12\n", done.stdout)
    assert "\n12 rows, matched by text, label; all in out.csv\n" in done.stdout
    assert "weak and good agree in 50.0 % of 12 rows" in done.stdout
    with bench.output.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["text"], row["model"], row["variant"]) for row in found[:3]] == [
        ("word 0", "weak", "weak"),
        ("word 0", "good", "good"),
        ("word 1", "weak", "weak"),
    ]
    assert Counter(seen.json["model"] for seen in bench.upstream.seen) == {"weak": 12, "good": 12}
    assert {seen.prompt for seen in bench.upstream.seen} == {f"word {at}?" for at in range(12)}
    again = figures(bench, bench.output, "--by", "variant", "--gold", "label")
    assert [file["accuracy"] for file in again["gold"]["files"]] == [0.5, 1]
    assert again["matched"] == "by text, label"
    assert grid(bench, *options).stdout.count("agree in 50.0 %") == 1
    assert len(bench.upstream.seen) == 24  # the same command sends nothing


@pytest.mark.thorough
def test_several_prompts_have_names(bench):
    words(bench)
    options = ("--prompt", "asked={{text}}?", "--prompt", "shouted={{text}}!")
    grid(bench, *options, "--model", "weak", "--json")
    found = figures(bench, bench.output, "--by", "variant", "--gold", "label")
    assert [file["variant"] for file in found["files"]] == ["asked", "shouted"]
    assert [file["accuracy"] for file in found["gold"]["files"]] == [0.5, 1]
    (bench.path / "both.csv").unlink(missing_ok=True)
    bench.output = bench.path / "both.csv"
    grid(bench, *options, "--model", "weak", "--model", "good", "--json")
    found = figures(bench, bench.output, "--by", "variant", "--gold", "label")
    assert [file["variant"] for file in found["files"]] == ["weak/asked", "weak/shouted", "good/asked", "good/shouted"]
    assert [file["accuracy"] for file in found["gold"]["files"]] == [0.5, 1, 1, 1]


@pytest.mark.thorough
def test_a_grid_goes_on_by_its_id_and_limits_rows_of_the_input(bench):
    words(bench)
    options = ("--prompt", "{{text}}?", "--model", "weak", "--model", "good")
    grid(bench, *options, "--limit", "3", "--json")
    assert len(bench.upstream.seen) == 6
    good = bench.upstream.reply
    bench.upstream.reply = choose(lambda seen: status(400, "no"))
    grid(bench, *options, "--json", code=1)
    bench.upstream.reply = good
    (job,) = [found["job_id"] for found in json.loads(bench.jobs("--json").stdout)["jobs"]]
    done = bench.jobs(job, "--retry-failed")
    assert done.returncode == 0, done.stderr
    assert "weak and good agree in 50.0 % of 12 rows" in done.stdout
    assert "in.csv → out.csv: 12 rows × 2 answers: 24 answered" in done.stdout  # noqa: RUF001 (a product)


def test_models_in_another_order_pay_no_answer_again(bench):
    words(bench)
    bench.succeed("--prompt", "{{text}}?", "--model", "weak")
    sent = len(bench.upstream.seen)
    said = bench.fail("--prompt", "{{text}}?", "--model", "good", "--model", "weak")
    assert "already has answers of weak. To keep them" in said
    assert len(bench.upstream.seen) == sent
    grid(bench, "--prompt", "{{text}}?", "--model", "weak", "--model", "good", "--json")
    assert len(bench.upstream.seen) == 2 * sent
    bench.fail("--prompt", "{{text}}?", "--model", "good", "--model", "weak")
    assert len(bench.upstream.seen) == 2 * sent


def test_a_grid_that_cannot_be(bench):
    words(bench)
    two = ("--model", "weak", "--model", "good")
    assert "such as 'short=Classify: {{text}}'" in bench.fail("--prompt", "{{text}}", "--prompt", "b={{text}}")
    assert "has the name a twice" in bench.fail("--prompt", "a={{text}}", "--prompt", "a={{label}}")
    assert "--shard" in bench.fail("--prompt", "{{text}}", *two, "--shard", "1/2")
    assert not list(bench.path.glob("out*"))


def test_a_grid_reads_rows_as_a_job_does(bench):
    """A column of the name of a setting is data, and a row that cannot be read fails alone, at each model."""
    bench.write(["text,model", "a,b", "c,d,e"], "in.csv")
    said = bench.fail("--prompt", "{{text}}", "--model", "weak", "--model", "good", code=1)
    assert "has 3 cells, but the header has 2" in said
    assert "2 answered, 2 failed" in said
    assert {seen.json["model"] for seen in bench.upstream.seen} == {"weak", "good"}


@pytest.mark.thorough
def test_the_models_of_a_grid_are_no_part_of_its_rows_whatever_their_column_is_called(bench):
    bench.upstream.reply = choose(lambda seen: answer(seen.json["model"]))
    bench.write([{"prompt": "a", "model": "own"}, {"prompt": "b"}])
    done = bench.run("--model", "weak", "--model", "good")
    assert {(seen.prompt, seen.json["model"]) for seen in bench.upstream.seen} == {
        (prompt, model) for prompt in "ab" for model in ("weak", "good")
    }
    assert "those of the job are called `model_1`" in done.stdout
    assert "2 rows with different answers" in done.stdout
    assert "model_1  weak" not in done.stdout
    assert "Read as settings" not in done.stdout, "the models of the grid are asked"


def test_a_table_with_short_names_stays_a_table():
    table = Table(["class", "rows", "", "precision", "recall", "F1"], [["p", "3", "A", "1.00", "0.67", "0.80"]])
    assert len(list(table.lines(100))) == 2
    assert next(iter(table.lines(30))).startswith("p: rows 3, A")
    assert list(Table(["class", "rows"], [["… 3 more", ""]]).lines(8)) == ["… 3 more"]


@pytest.mark.parametrize("cheap", [6, 5], ids=["uneven", "even"])
@pytest.mark.parametrize("own", ["id", "text", "mostly unique", "none"])
def test_parts_without_common_rows_are_counted_against_right_answers(tmp_path, own, cheap):
    columns = {
        "id": lambda n: {"id": n},
        "text": lambda n: {"text": f"text {n}"},
        "mostly unique": lambda n: {"text": f"text {n % 9}"},
        "none": lambda _: {},
    }
    rows = [
        {**columns[own](n), "answer": "ab"[n % 2], "sure": "cheap" if n < cheap else "strong", "gold": "ac"[n > 7]}
        for n in range(10)
    ]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = promptmill.compare(file, by="sure", gold="gold").figures["gold"]
    counts = [(one["name"], one["rows"], one["right"]) for one in found["groups"]]
    assert counts == [("cheap", cheap, 3), ("strong", 10 - cheap, 1)]
    if own in {"id", "text"}:
        with pytest.raises(PromptmillError, match=r"same rows: |no row in common"):
            promptmill.compare(file, by="sure")
