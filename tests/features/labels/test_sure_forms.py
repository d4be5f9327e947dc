"""Sure answers of several fields: the least probable field is the score of a row."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from labellers import named
from replies import answer, choose

ROWS = 400
ASKED = (
    *("--prompt", "Sort: {{text}}", "--fields", "team:billing|tech!,anger:calm<cross!"),
    *("--sure", "strong", "--model", "small"),
)


def fields_of(model: str, number: int) -> tuple[dict[str, str], dict[str, float]]:
    """Return the fields of a model for a row, with the probability of each: the small one errs where `anger` is unsure,
    however sure it is of the team."""
    right = {"team": "tech" if number % 2 else "billing", "anger": "cross" if number % 3 else "calm"}
    sureness = (number * 37 % 100) / 100
    is_wrong = model != "strong" and sureness < 0.2
    given = right | ({"anger": "calm" if right["anger"] == "cross" else "cross"} if is_wrong else {})
    return given, {"team": 0.875 if number % 5 else 0.75, "anger": 0.5 + sureness / 2}


@pytest.fixture
def sorted_out(bench):
    def reply(seen: Any) -> Any:
        given, shares = fields_of(seen.json["model"], int(seen.prompt.rsplit(" ", 1)[1]))
        pieces = [("{", 0.1)]
        for at, (name, value) in enumerate(given.items()):
            pieces += [(f'{"," if at else ""}"{name}":', 0.2), (f'"{value}"', shares[name])]
        tokens = [{"token": text, "logprob": math.log(share)} for text, share in (*pieces, ("}", 0.1))]
        return answer(json.dumps(given, separators=(",", ":")), logprobs={"content": tokens})

    bench.upstream.reply = choose(reply)
    bench.write([{"text": f"mail {at}"} for at in range(ROWS)])
    return bench


def test_the_least_probable_field_is_the_score_of_an_answer(sorted_out):
    found = sorted_out.succeed(*ASKED, *named(sorted_out))
    rows = sorted_out.answers()
    assert found["sure"]["sample"]["score"] == "probability"
    cheap = [row for row in rows if row["sure"] == "cheap"]
    assert len(cheap) > ROWS / 4
    for row in cheap:
        _, shares = fields_of("small", int(row["text"].rsplit(" ", 1)[1]))
        assert row["score"] == pytest.approx(min(shares.values()), abs=1e-3)
    wrong = [row for row in rows if row["answer"] != fields_of("strong", int(row["text"].rsplit(" ", 1)[1]))[0]]
    assert len(wrong) <= ROWS * 0.12
