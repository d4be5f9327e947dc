"""The shares of labels from a reviewed sample, as a comparison with right answers states them."""

from __future__ import annotations

import csv
import random
import re
from typing import Any

import promptmill


def reviewed(path: Any, rows: int, of: int) -> dict[str, float]:
    """Write a table whose labels are often wrong, with right labels of a random sample; return the true shares."""
    chance = random.Random(3)
    right = ["yes" if chance.random() < 0.2 else "no" for _ in range(rows)]
    given = [("no" if one == "yes" else "yes") if chance.random() < 0.15 else one for one in right]
    sample = set(chance.sample(range(rows), of))
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "answer", "right"])
        out.writerows([n, given[n], right[n] if n in sample else ""] for n in range(rows))
    return {name: right.count(name) / rows for name in ("yes", "no")}


def test_a_reviewed_sample_corrects_the_shares(tmp_path):
    truth = reviewed(tmp_path / "labels.csv", 3000, 400)
    found = promptmill.compare(str(tmp_path / "labels.csv"), gold="right")
    (file,) = found.figures["gold"]["files"]
    for name, share in truth.items():
        one = file["shares"][name]
        assert one["low"] <= share <= one["high"]
        assert not one["low"] <= one["counted"] <= one["high"], "the labels alone are far off"
    assert "shares of all 3,000 rows, if those with a right answer were drawn at random" in str(found)
    table = str(found).split("drawn at random")[1]
    assert re.search(r"\nlabel +A\nno +8\d\.\d % .*\nyes +\d\d\.\d % \([\d.]+\N{EN DASH}[\d.]+\)\n", table)


def test_right_answers_to_all_rows_leave_no_doubt(tmp_path):
    reviewed(tmp_path / "labels.csv", 300, 300)
    found = promptmill.compare(str(tmp_path / "labels.csv"), gold="right")
    assert "shares" not in found.figures["gold"]["files"][0]
