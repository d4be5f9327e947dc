"""What labels cost: at the strong model alone, and by row."""

from __future__ import annotations

import pytest

from labellers import LABELS as LABELS_OF_MODELS
from labellers import labellers, named, sent
from packs import LABELS, Packs
from promptmill.features.labels.label_status import facts

SURE = {
    "model": "good-1",
    "agree": 0.95,
    "certainty": 0.95,
    "rows": 600,
    "sample": {"drawn": 83, "agreed": 79, "score": "logprob", "classes": {}, "unguarded": []},
    "expected": {"pays": False, "share": 1.0, "agree": 1.0, "cost": 1.5, "cost_alone": 3.93},
}


@pytest.mark.parametrize(
    ("changes", "cost", "said"),
    [
        ({}, 1.46, ["$1.46 instead of about $3.93 at good-1 alone"]),
        ({}, None, []),
        ({"model": ""}, 1.46, []),
        ({"expected": {"pays": False, "share": 1.0, "agree": 1.0}}, 1.46, []),
    ],
)
def test_the_summary_says_what_the_strong_model_alone_would_have_cost(changes, cost, said):
    (_, text), *_ = facts({"sure": {**SURE, **changes}, "cost": cost})
    assert [line for line in text.splitlines() if "instead of" in line] == said


def write(bench, rows):
    bench.write([{"id": at, "text": f"text {at}"} for at in range(rows)])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--together", "20", "--agree", "80%"), marks=pytest.mark.features("together")),
        ("--sure", "good-1", "--agree", "80%"),
        ("--votes", "3", "--temperature", "1"),
    ],
    ids=lambda options: options[0],
)
def test_each_row_has_what_was_paid_for_it(bench, upstream, options):
    upstream.reply = Packs()
    write(bench, 200)
    price = ("--price", "1/4") if "--sure" not in options else ("--price", "test-model=1/4", "--price", "good-1=10/40")
    found = bench.succeed("--prompt", "About? {{text}}", "--choices", ",".join(LABELS), *price, *options)
    rows = bench.answers()
    assert sum(row["cost"] for row in rows) == pytest.approx(found["cost"], abs=1e-6)  # each is rounded
    for name in ("prompt_tokens", "completion_tokens"):
        assert sum(row["usage"][name] for row in rows) == found[name]
    assert all(row["cost"] for row in rows)


def test_the_expected_cost_leaves_out_repeats_that_order_no_answers(bench):
    bench.upstream.reply = labellers(probabilities=False)
    bench.write([{"id": n, "text": f"review {n}"} for n in range(600)])
    asked = ("--prompt", "Is it positive? {{text}}", "--choices", ",".join(LABELS_OF_MODELS), "--model", "small")
    found = bench.succeed(*asked, "--sure", "strong", "--agree", "70%", *named(bench))
    expected, drawn = found["sure"]["expected"], found["sure"]["sample"]["drawn"]
    assert (found["sure"]["sample"]["score"], expected["pays"]) == ("equal", True)
    assert sent(bench) == {"small": 600 + 2 * drawn, "strong": found["sure"]["strong"]}
    few = expected["cost_between"][0] - 0.02 * found["cost"]
    assert few < found["cost"] < expected["cost_between"][1] + 0.02 * found["cost"]
