"""`max_cost` of a job: kept to the cent, by what the endpoint itself counted, over workers, kills and resumes."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from promptmill.core.money import dollars
from replies import answer, choose, late, status

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

ANSWERS = 2000  # that the budget is enough for; each has three tokens and costs three cents
CENTS = {"input": 0, "output": 10_000}
OPTIONS = ("--set", f"price={CENTS!r}", "--set", "sampling_params.max_tokens=3", "--set")
CROWD = {"num_workers": 8, "concurrency": 256, "adaptive": False, "retries": 9}
KILLS = 3


@pytest.mark.thorough
def test_a_limit_holds_over_workers_retries_kills_and_resumes(bench: Any) -> None:
    """What was sent and not answered at a kill counts as if it had cost the most that it could."""
    charged: list[int] = []

    def reply(seen: Any) -> Any:
        if seen.number % 7 == 0:
            return status(500)
        charged.append(seen.number)  # also where nobody waits for the answer any more
        return late(0.02, answer())

    bench.upstream.reply = choose(reply)
    bench.prompts(3000)
    for _ in range(KILLS):
        before = len(charged)
        process = bench.start(*OPTIONS, f"max_cost={ANSWERS * 0.03}", **CROWD)
        bench.wait(lambda before=before: len(charged) >= before + 300, 60)
        process.kill()
        process.communicate()
        bench.wait(lambda: not bench.upstream.open)
    last = bench.run(*OPTIONS, f"max_cost={ANSWERS * 0.03}", **CROWD)
    assert last.returncode == 75, "it goes on with a larger budget"
    assert bench.status()["reason"].startswith(f"The budget of {dollars(ANSWERS * 0.03)} has no room")
    answered = sum(record.code is None for record in bench.records())
    assert round(bench.status()["cost"], 2) == round(answered * 0.03, 2)
    # a kill costs what the workers had taken: what is in flight, and as much again at most
    assert ANSWERS - KILLS * 2 * CROWD["concurrency"] <= answered <= len(charged) <= ANSWERS
    more = bench.run(*OPTIONS, "max_cost=1000", **CROWD)
    assert more.returncode == 0, more.stderr + more.stdout
    assert len(bench.answers()) == 3000
    assert all(row["answer"] for row in bench.answers())


def test_a_row_that_names_another_model_is_not_charged_by_the_default_ones_price(bench: Any) -> None:
    bench.write([{"prompt": "a", "max_tokens": 5}, {"prompt": "b", "max_tokens": 5, "model": "another"}])
    price = ["--set", "price={input: 0, output: 1000000}"]
    assert bench.run(*price, "--max-cost", "100").returncode == 1
    assert [seen.json["model"] for seen in bench.upstream.seen] == ["test-model"]
    assert "names the model 'another', whose price is not known" in bench.answers()[1]["error"]["message"]
    found = bench.succeed(*price, "--overwrite")
    (own, other) = bench.answers()
    assert found["cost"] == own["cost"] > 0
    assert "cost" not in other
    assert any("price is not known" in warning for warning in found["warnings"])
