"""Labels of requests for several rows, which must agree with those of rows that are asked alone."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer, prompt_of
from packs import LABELS, Packs, label, records, share_of
from promptmill.features.labels import cut as cuts
from replies import status
from upstream import Exchange

pytestmark = pytest.mark.features("together")
ROWS, SIZE = 1_500, 20
PROMPT = ("--prompt", "What is this about? {{text}}", "--choices", ",".join(LABELS))
TOGETHER = (*PROMPT, "--together", str(SIZE))
ALONE = (*TOGETHER, "--agree", "95%")
LEAST = 0.85
"""Far below the promised 90 %, which a draw in twenty may miss, and above the 80 % of all packs."""
SAMPLE = cuts.sample_size(ROWS, ROWS // 20, 0.95)
PRICE = ("--set", 'price={"input": 1.0, "output": 4.0}', "--max-tokens", "20")


@pytest.fixture
def packs(bench, upstream):
    """Return a function that writes rows, and has requests for several rows answered."""

    def begun(rows: int = ROWS, **options: Any) -> Packs:
        upstream.reply = Packs(**options)
        write(bench, rows)
        return upstream.reply

    return begun


def write(bench: Any, rows: int) -> None:
    bench.write([{"id": at, "text": f"text {at}"} for at in range(rows)])


def alternating(text: str) -> str:
    """Return the label of a text whose neighbours in the file have another one."""
    return LABELS[int(text.rpartition(" ")[2]) % 2]


def agreement(bench: Any, answers: Any = label) -> float:
    """Return the share of delivered labels that the model gives to a row alone."""
    rows = bench.answers()
    return sum(row["answer"] == answers(row["text"]) for row in rows) / len(rows)


def named(bench: Any, **together: int) -> tuple[str, str]:
    """Return the options for models of the configuration, each with its number of rows in a request."""
    models = {
        name: {
            "openai": {"base_url": bench.upstream.url, "model_name": name, "retries": 3, "base_delay": 0.01},
            **({"sampling_params": {"together": rows}} if rows > 1 else {}),
        }
        for name, rows in together.items()
    }
    return "--set", f"models={json.dumps(models)}"


def sizes_of(bench: Any) -> dict[str, Counter[int]]:
    """Return the numbers of rows in the requests to each model."""
    found: dict[str, Counter[int]] = {}
    for seen in bench.upstream.seen:
        found.setdefault(seen.json["model"], Counter())[len(records(seen.prompt)) or 1] += 1
    return found


@pytest.mark.thorough
def test_the_model_answers_all_rows_together_and_a_sample_alone(bench, upstream, packs):
    asked = packs()
    found = bench.succeed(*ALONE)
    assert agreement(bench) == 1
    assert Counter(asked.sizes) == {SIZE: ROWS // SIZE, 1: SAMPLE}
    assert set(asked.asked.values()) == {1, 2}
    sure = found["sure"]
    assert (sure["model"], sure["rows"], sure["sample"]["drawn"], sure["sample"]["agreed"]) == (
        "",
        ROWS,
        SAMPLE,
        SAMPLE,
    )
    assert (sure["cheap"], sure["strong"]) == (ROWS - SAMPLE, SAMPLE)
    assert Counter(row["sure"] for row in bench.answers()) == {"cheap": ROWS - SAMPLE, "sample": SAMPLE}
    assert found["requests"] == len(upstream.seen) == ROWS // SIZE + SAMPLE
    assert found["together"]["requests"] == ROWS // SIZE
    assert not any(seen.json.get("logprobs") for seen in upstream.seen)
    summary = bench.jobs(str(bench.output)).stdout
    assert f"sample: {SAMPLE} of 1,500 rows asked together and alone, {SAMPLE} agree (100 %)" in summary
    assert "95 % of the labels or more agree with the model alone; estimated 100.0 %" in summary
    upstream.seen.clear()
    bench.succeed(*ALONE)
    assert not upstream.seen, "a job that is done asks nothing"


def test_labels_of_neighbours_keep_the_promise_and_come_before_the_sample(bench, packs):
    def spoil(items: list[dict[str, Any]], number: int) -> None:
        if random.Random(number).random() < 0.1:
            items.pop()  # this row is then asked alone, and is still the cheap model's

    asked = packs(answers=alternating, neighbours=0.4, change=spoil)
    found = bench.succeed(*PROMPT, "--together", str(SIZE), "--agree", "90%", concurrency=8)
    drawn = found["sure"]["sample"]["drawn"]
    alone = found["sure"]["sample"]["alone"]
    firsts = asked.sizes[: len(asked.sizes) - found["sure"]["strong"] + alone]
    assert asked.sizes.count(SIZE) == firsts.count(SIZE) >= ROWS // SIZE
    assert set(asked.sizes[len(firsts) :]) == {1}, "the sample and the unsure rows are asked alone"
    rounds = {record.row: record.round for record in bench.records() if not record.slot}
    cheap = [record.round for record in bench.records() if record.slot]
    assert len(cheap) == ROWS
    assert max(cheap) < min(rounds.values())
    assert 0.65 < found["sure"]["sample"]["agreed"] / drawn < 0.95
    assert agreement(bench, alternating) >= LEAST
    assert 0 < found["sure"]["cheap"] < ROWS - drawn


def test_packs_that_are_often_wrong_do_not_pay(bench, packs):
    def wrong(items: list[dict[str, Any]], number: int) -> None:
        del number
        for item in items:
            item["answer"] = LABELS[LABELS.index(item["answer"]) - 1]

    asked = packs(change=wrong)
    done = bench.run(*ALONE)
    assert done.returncode == 0
    assert agreement(bench) == 1
    assert Counter(asked.sizes) == {SIZE: ROWS // SIZE, 1: ROWS}
    assert "of the rows would go to the model alone anyway; it answers all rows" in done.stdout
    assert "the replies to several rows have no probabilities" in done.stdout


def test_few_rows_are_asked_alone_and_no_pack_is_paid(bench, packs):
    asked = packs(150)
    found = bench.succeed(*ALONE)
    assert asked.sizes == [1] * 150
    assert (found["sure"]["sample"]["drawn"], found["sure"]["strong"]) == (0, 150)


def test_a_validation_states_the_price_of_rows_alone(bench, packs):
    packs()
    prices = {}
    for way in (ALONE, PROMPT, TOGETHER):
        done = bench.run(*way, *PRICE, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        prices[way] = json.loads(done.stdout)
    sure = prices[ALONE]["sure"]
    assert (sure["model"], sure["sampled"]) == ("", SAMPLE)
    assert sure["cost_alone"] == pytest.approx(prices[PROMPT]["estimated_cost"])
    assert sure["sample_cost"] == pytest.approx(sure["cost_alone"] * SAMPLE / ROWS)
    packs_alone = prices[TOGETHER]["estimated_cost"]
    least, most = (prices[ALONE][name] for name in ("least_estimated_cost", "estimated_cost"))
    assert least == pytest.approx(packs_alone + sure["sample_cost"])
    assert most == pytest.approx(packs_alone + sure["cost_alone"])
    assert "alone" not in prices[ALONE]
    said = bench.run(*ALONE, *PRICE, "--dry-run").stdout
    assert f"sample: {SAMPLE} rows alone, about $" in said


@pytest.mark.features("batches")
def test_a_validation_by_batch_has_the_price_of_the_live_sample(bench, packs):
    half = ("--batch", "--set", 'price={"input": 1.0, "output": 4.0, "batch": 0.5}', "--max-tokens", "20", "--dry-run")
    for rows in (ROWS, 100):
        packs(rows)
        prices = {way: json.loads(bench.run(*way, *half, "--json").stdout) for way in (ALONE, TOGETHER, PROMPT)}
        sample, found = prices[ALONE]["sure"], prices[ALONE]["batch_least_estimated_cost"]
        together, alone = (prices[way]["batch_estimated_cost"] for way in (TOGETHER, PROMPT))
        assert found == pytest.approx(together + sample["sample_cost"] if sample["sampled"] else alone)


def test_only_rows_with_a_label_together_are_compared_and_no_row_is_asked_alone_twice(bench, packs):
    def unread(text: str, number: int) -> tuple[str, str]:
        return ("I cannot do that.", "stop") if number % 4 == 0 else (text, "stop")

    asked = packs(around=unread)
    found = bench.succeed(*ALONE)
    sample, alone = found["sure"]["sample"], found["sure"]["sample"]["alone"]
    assert alone == asked.sizes.count(1) - sample["drawn"] > ROWS / 10
    assert sample["drawn"] == sample["agreed"] < SAMPLE
    givers = Counter((row["sure"], row.get("answered_by")) for row in bench.answers())
    assert givers == {
        ("cheap", None): ROWS - alone - sample["drawn"],
        ("sample", None): sample["drawn"],
        ("strong", None): alone,
    }
    assert agreement(bench) == 1
    assert f"{alone} rows answered only alone, without a label from" in bench.jobs(str(bench.output)).stdout
    bench.upstream.seen.clear()
    bench.succeed(*ALONE)
    assert not bench.upstream.seen


def test_no_agreement_is_told_if_no_reply_to_several_rows_is_read(bench, packs):
    asked = packs(400, around=lambda _text, _number: ("I cannot do that.", "stop"))
    done = bench.run(*ALONE)
    assert done.returncode == 0, done.stderr
    assert "the model alone answers all 400 rows: none has a label from a reply to several rows" in done.stderr
    assert " agree (" not in done.stdout
    assert asked.sizes.count(1) == 400


@pytest.mark.thorough
@pytest.mark.parametrize("is_of_model", [True, False])
def test_the_rows_together_may_be_in_the_configuration(bench, packs, is_of_model):
    asked = packs(400)
    of_model = (*named(bench, own=SIZE, other=1), "--model", "own")
    found = bench.succeed(
        *PROMPT, "--agree", "95%", *(of_model if is_of_model else ("--set", f"sampling_params.together={SIZE}"))
    )
    assert Counter(asked.sizes) == {SIZE: 400 // SIZE, 1: found["sure"]["sample"]["drawn"]}


@pytest.mark.parametrize(
    "options",
    [
        ("--model", "packed", "--sure", "single", "--together", str(SIZE)),
        pytest.param(("--model", "own", "--sure", "single"), marks=pytest.mark.thorough),
    ],
)
def test_a_strong_model_is_asked_about_each_row_alone(bench, packs, options):
    packs(neighbours=0.01)
    words = (*PROMPT, *named(bench, packed=1, own=SIZE, single=1), "--agree", "95%", *options)
    found = bench.succeed(*words)
    sizes = sizes_of(bench)
    assert sizes.pop("single") == {1: found["sure"]["strong"]}
    assert [*sizes.values()] == [{SIZE: ROWS // SIZE}]
    assert found["sure"]["cheap"] > ROWS / 3
    assert agreement(bench) >= 0.95
    assert f"sample: {SAMPLE} of 1,500 rows asked at both models" in bench.jobs(str(bench.output)).stdout
    bench.upstream.seen.clear()
    bench.succeed(*words)
    assert not bench.upstream.seen


@pytest.mark.parametrize("second", [SIZE, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_second_model_answers_all_rows_before_the_sample(bench, packs, second):
    packs(neighbours=0.05)
    models = named(bench, first=SIZE, second=second, strong=1)
    more = ("--model", "first", "--second", "second", "--sure", "strong", "--agree", "95%")
    found = bench.succeed(*PROMPT, *models, *more)
    assert found["sure"]["sample"]["score"] in {"second", "equal"}
    sizes = sizes_of(bench)
    assert sizes["first"] == {SIZE: ROWS // SIZE}
    assert sizes["second"] == {second: ROWS // second}
    first = next(at for at, seen in enumerate(bench.upstream.seen) if seen.json["model"] == "strong")
    assert {seen.json["model"] for seen in bench.upstream.seen[first:]} == {"strong"}
    assert agreement(bench) >= 0.95


@pytest.mark.thorough
def test_votes_of_requests_for_several_rows_are_labels(bench, packs):
    asked = packs(neighbours=0.05)
    found = bench.succeed(*ALONE, "--votes", "3")
    assert found["sure"]["sample"]["score"] == "votes"
    assert asked.sizes.count(SIZE) == 3 * ROWS // SIZE
    assert agreement(bench) >= 0.95


@pytest.mark.thorough
def test_right_labels_may_replace_those_of_rows_alone(bench, packs):
    packs(neighbours=0.05)
    bench.write([{"text": f"text {at}", "label": label(f"text {at}")} for at in range(ROWS)])
    done = bench.run(*ALONE, "--gold", "label")
    assert done.returncode == 0, done.stderr
    assert "the model alone right on" in done.stderr
    assert agreement(bench) >= 0.95


@pytest.mark.thorough
def test_a_guarded_class_is_drawn_again_from_all_rows(bench, packs):
    packs(2 * ROWS, answers=lambda text: LABELS[share_of(text) < 0.15])
    found = bench.succeed(*ALONE, "--recall", f"{LABELS[1]}=95%")
    (part,) = bench.folder.known_spec().plan.parts
    assert part.earlier > 60
    assert part.rows + part.earlier == 2 * ROWS
    assert found["sure"]["sample"]["classes"][LABELS[1]][0] >= 59


def test_rows_that_are_added_later_have_packs_and_a_sample_of_their_own(bench, packs):
    asked = packs(400)
    bench.succeed(*ALONE)
    asked.sizes.clear()
    write(bench, 800)
    found = bench.succeed(*ALONE)
    first, second = bench.folder.known_spec().plan.parts
    assert (first.rows, second.rows, second.is_whole) == (400, 400, True)
    assert Counter(asked.sizes) == {SIZE: 400 // SIZE, 1: second.drawn}
    assert found["sure"]["rows"] == 800
    assert agreement(bench) == 1


def test_other_settings_and_promises_need_another_output(bench, upstream, packs):
    packs(400)
    bench.succeed(*ALONE)
    upstream.seen.clear()
    assert "together was 20, now 10" in bench.fail(*PROMPT, "--together", "10", "--agree", "95%")
    assert "begun with another --agree" in bench.fail(*PROMPT, "--together", "20", "--agree", "90%")
    assert "chose its labels with --agree" in bench.fail(*PROMPT, "--together", "20")
    assert not upstream.seen


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--agree", "90%"), "--agree needs --sure MODEL or --together N"),
        (("--together", "1", "--agree", "90%"), "--agree needs --sure MODEL or --together N"),
        (("--together", "9", "--certainty", "90%"), "--certainty needs --sure MODEL or --agree P%"),
        (("--together", "9", "--agree", "90%", "--keep"), "--agree cannot be used with --keep"),
        (("--together", "9", "--agree", "90%", "--again", "all"), "name another output for a new sample"),
        (("--together", "9", "--sure", "s", "--student"), "--student cannot be used with --together"),
        (("--together", "9", "--agree", "90%", "--student"), "--student needs --sure MODEL"),
    ],
)
def test_options_without_a_model_to_compare_with_are_refused(bench, packs, options, problem):
    packs(10)
    assert problem in bench.fail(*PROMPT, *options)
    assert not bench.upstream.seen


@pytest.mark.thorough
def test_a_program_may_compare_a_model_with_itself(bench, packs):
    packs(300)
    rows = [{"text": f"text {at}"} for at in range(300)]
    options: dict[str, Any] = {"choices": [*LABELS], "together": SIZE, "agree": 0.95, "progress": False}
    found = promptmill.bulk(
        rows,
        prompt=PROMPT[1],
        base_url=bench.upstream.url,
        model="m",
        api_key="k",
        state=bench.path / "jobs",
        **options,
    )
    assert {row["sure"] for row in found.rows} == {"cheap", "sample"}
    assert found.status["sure"]["model"] == ""


# ---- killed and failed runs


@pytest.mark.parametrize(
    "point",
    [
        "after-write:2",
        "after-write:6",
        *(
            pytest.param(point, marks=pytest.mark.thorough)
            for point in (
                "before-write:1",
                "after-draw",
                "after-write:9",
                "before-deliver",
                "after-put:6",
                "after-put:7",
            )
        ),
    ],
)
def test_a_killed_job_sends_only_the_rows_in_flight_again(bench, packs, point):
    asked = packs(answers=alternating, neighbours=0.4)
    words = (*PROMPT, "--together", str(SIZE), "--agree", "90%")
    bench.run(*words, killed_at=point, concurrency=4)
    before = bench.folder.known_spec().plan.parts
    found = bench.succeed(*words, concurrency=4)
    (part,) = bench.folder.known_spec().plan.parts
    if before:
        assert part.seed == before[0].seed
        assert before[0].cut in (None, part.cut)
    rows = bench.answers()
    assert len(rows) == found["done"] == ROWS
    assert agreement(bench, alternating) >= LEAST
    cheap = {record.row: record.text for record in bench.records() if record.slot}
    assert all(row["answer"] == cheap[n] for n, row in enumerate(rows) if row["sure"] == "cheap")
    ideal = ROWS + found["sure"]["strong"]
    assert 0 <= sum(asked.sizes) - ideal <= 4 * 2 * SIZE, "packs in flight, and outcomes that were not yet stored"


def test_packs_of_a_killed_job_count_for_rows_that_are_added_before_the_cut(bench, packs):
    asked = packs(400)
    bench.run(*ALONE, killed_at="before-write:8", concurrency=2)
    (before,) = bench.folder.known_spec().plan.parts
    answered = sum(record.slot == 1 for record in bench.records())
    assert before.cut is None
    assert answered
    write(bench, 800)
    found = bench.succeed(*ALONE, concurrency=2)
    (part,) = bench.folder.known_spec().plan.parts
    assert (part.every, part.round, part.is_whole) == (800, before.round, True)
    assert part.seed != before.seed
    assert found["sure"]["rows"] == 800
    assert found["sure"]["cheap"] == 800 - found["sure"]["strong"] > 500
    assert sum(size for size in asked.sizes if size > 1) <= 800 + 2 * 2 * SIZE
    assert agreement(bench) == 1


@pytest.mark.thorough
def test_packs_that_failed_are_sent_again_before_the_sample(bench, upstream, packs):
    asked, is_broken = packs(400), [True]

    async def reply(exchange: Exchange) -> None:
        refused = is_broken[0] and exchange.seen.number > 5
        await (status(503, "Down.") if refused else asked)(exchange)

    upstream.reply = reply
    assert bench.run(*ALONE, concurrency=2).returncode
    is_broken[0] = False
    found = bench.succeed(*ALONE)
    assert agreement(bench) == 1
    assert found["sure"]["cheap"] == 400 - found["sure"]["sample"]["drawn"]
    assert asked.sizes.count(SIZE) == 400 // SIZE, "the endpoint has answered no pack twice"


@pytest.mark.thorough
@pytest.mark.features("batches")
def test_all_rows_go_by_batch_and_the_sample_live(tmp_path):
    texts = [f"text {n}" for n in range(400)]
    (tmp_path / "in.csv").write_text("\n".join(["text", *texts]) + "\n", encoding="utf-8")
    with BatchServer("openai") as server:
        packs = Packs()
        server.answers = lambda body: packs.said(prompt_of(body))[0]
        found = promptmill.bulk(
            tmp_path / "in.csv", tmp_path / "out.jsonl", prompt=PROMPT[1], choices=[*LABELS], together=SIZE, agree=0.95,
            model="m", base_url=server.base_url, api_key="k", batch=True, poll="0.1s", state=tmp_path / "jobs",
            progress=False,
        )  # fmt: skip
        drawn = found.status["sure"]["sample"]["drawn"]
        assert (server.creates, server.live) == (1, drawn)
        assert packs.sizes == [SIZE] * 20 + [1] * drawn
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row["answer"] == label(row["text"]) for row in rows)
    assert Counter(row["sure"] for row in rows) == {"cheap": 400 - drawn, "sample": drawn}


# ---- the promise


def packed_labels(labels: Sequence[int], chance: random.Random, share: float = 0.2) -> list[int]:
    """Return the answers to rows in packs: with this probability, the label of the row before it in the pack."""
    found = list(labels)
    for first in range(0, len(labels), SIZE):
        pack = list(range(first, min(first + SIZE, len(labels))))
        chance.shuffle(pack)  # the order of the records
        for before, row in itertools.pairwise(pack):
            if chance.random() < share:
                found[row] = labels[before]
    return found


def delivered(labels: Sequence[int], seed: int, agree: float) -> float:
    """Return the share of delivered labels that agree, for one draw and one set of replies."""
    rows, drawing = len(labels), f"draw {seed}"
    cheap = packed_labels(labels, random.Random(seed))
    wrong = cuts.errors_allowed(rows, agree)
    size = cuts.sample_size(rows, wrong, 0.95)
    sampled = {*sorted(range(rows), key=lambda n: cuts.number("sample", drawing, n))[:size]}
    places = [cuts.place(0.0, str(n), drawing) for n in range(rows)]
    verdicts = [(places[n], cheap[n] == labels[n]) for n in sampled]
    cut = cuts.cut(verdicts, cuts.allowed(rows, size, wrong, 0.95))
    bad = sum(places[n] > cut and n not in sampled and cheap[n] != labels[n] for n in range(rows))
    return 1 - bad / rows


ORDERS = {
    "sorted": lambda n: n >= ROWS // 2,
    "random": lambda n: random.Random(n).random() < 0.5,
    "alternating": lambda n: n % 2,
}


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
def test_files_in_any_order_keep_the_promise(order):
    labels = [int(ORDERS[order](n)) for n in range(ROWS)]
    kept = sum(delivered(labels, seed, 0.95) >= 0.95 for seed in range(300))
    assert kept >= 0.93 * 300, "95 of 100 draws; of 2,000 draws each, all for sorted files and 1,900 for the others"
