"""File jobs on endpoints whose models decide."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from decision_replies import decides, likeliest, shares
from replies import choose

FIELDS = "team:billing|tech,urgent:boolean"


@pytest.fixture
def deciding(bench: Any) -> Any:
    """A bench whose endpoint decides."""
    bench.upstream.reply = decides()
    bench.settings |= {"dialect": "systemone", "model_name": "jev-latest"}
    return bench


def _table(bench: Any, rows: int = 8) -> None:
    bench.input = bench.path / "in.csv"
    with bench.input.open("w", newline="") as file:
        csv.writer(file).writerows([["subject", "mail"], *([f"s{at}", f"mail {at}"] for at in range(rows))])


ASKED = ("--prompt", "Which team? {{subject}}: {{mail}}")


@pytest.mark.thorough
def test_a_row_is_one_request_with_its_columns_and_gets_the_servers_probabilities(deciding: Any) -> None:
    _table(deciding)
    done = deciding.run(*ASKED, "--fields", FIELDS)
    assert done.returncode == 0, done.stderr
    assert len(deciding.upstream.seen) == 8
    for at, row in enumerate(deciding.answers()):
        state = {"subject": f"s{at}", "mail": f"mail {at}"}
        chances = shares(["billing", "tech", "not stated"], state, "team")
        given = likeliest(chances)
        assert row["answer"]["team"] == (None if given == "not stated" else given)
        names = {"not stated": ""}
        assert row["probabilities"]["team"] == {names.get(name, name): share for name, share in chances.items()}
        assert row["answered_by"] == "jev-1.14.0"


@pytest.mark.thorough
def test_a_killed_job_goes_on_where_it_was(deciding: Any) -> None:
    _table(deciding, 40)
    first = deciding.run(*ASKED, "--choices", "a,b,other", killed_at="after-write:6", concurrency=2)
    assert first.returncode != 0
    done = deciding.run(*ASKED, "--choices", "a,b,other")
    assert done.returncode == 0, done.stderr
    rows = deciding.answers()
    assert len(rows) == 40
    assert all(row["answer"] in {"a", "b", "other"} and row["error"] is None for row in rows)
    assert len(deciding.upstream.seen) <= 40 + 2 * 2


def test_a_refused_field_fails_its_row_and_keeps_the_others(deciding: Any) -> None:
    deciding.upstream.reply = decides(lambda body: body | {"answers": {"urgent": body["answers"]["urgent"]}})
    _table(deciding)
    done = deciding.run(*ASKED, "--fields", FIELDS)
    assert done.returncode == 1
    assert len(deciding.upstream.seen) == 8
    for row in deciding.answers():
        assert row["error"]["code"] == "invalid_answer"
        assert "`team`" in row["error"]["message"]
        assert [*row["answer"]] == ["urgent"]


def test_a_dry_run_counts_evidence_and_questions_and_looks_for_an_option_for_the_rest(deciding: Any) -> None:
    _table(deciding)
    price = ("--set", "price={input: 1, output: 1000}")
    done = deciding.run(*ASKED, "--choices", "billing,tech", "--dry-run", *price)
    assert done.returncode == 0, done.stderr
    assert "always gives one of the options" in done.stdout
    other = deciding.run(*ASKED, "--choices", "billing,tech,other", "--dry-run", *price)
    assert "always gives one of the options" not in other.stdout
    assert "about 160 prompt tokens" in other.stdout
    assert "about $0.00016; at most" in other.stdout
    assert deciding.upstream.seen == []


@pytest.mark.parametrize(
    ("prompt", "state", "instructions"),
    [
        ("Which team? {{mail|trim}}", "mail 0", "Which team?"),
        ("{{ mail | upper }}\nWhich team?", "MAIL 0", "Which team?"),
        ("{{subject|trim}} / {{mail|upper}}: team?", {"subject": "s0", "mail": "MAIL 0"}, "`subject` / `mail`: team?"),
        ("{{mail}}, {{mail|upper}}? ", {"mail": "mail 0", "mail 2": "MAIL 0"}, "`mail`, `mail 2`?"),
        ("{% if subject %}{{subject}}: {% endif %}{{mail}} Team?", {"subject": "s0: ", "mail": "mail 0"}, "Team?"),
        ("{% set x = mail|upper %}Team of {{x}} now?", "MAIL 0", "Team of the input now?"),
        ("{% for word in mail.split() %}- {{word}}\n{% endfor %}Team?", "- mail\n- 0\n", "Team?"),
    ],
)
def test_the_words_of_a_template_are_instructions_and_its_columns_evidence_with_any_filter(
    deciding: Any, prompt: str, state: Any, instructions: str
) -> None:
    _table(deciding, 1)
    done = deciding.run("--prompt", prompt, "--choices", "a,b")
    assert done.returncode == 0, done.stderr
    (seen,) = deciding.upstream.seen
    assert seen.json["state"] == state
    assert seen.json["questions"]["answer"]["instructions"].endswith(instructions)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_row_keeps_its_own_system_message(deciding: Any, role: str) -> None:
    deciding.input = deciding.path / "in.jsonl"
    turns = [{"role": role, "content": "Be kind."}, {"role": "user", "content": "mail"}]
    lines = [{"messages": turns}, {"messages": turns[1:]}, {"messages": turns, "system": "Be mild."}]
    deciding.input.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = deciding.run("--choices", "a,b", "--set", "system_prompt=Be strict.")
    assert done.returncode == 0, done.stderr
    sent = [seen.json["questions"]["answer"]["instructions"] for seen in deciding.upstream.seen]
    assert sorted(sent) == ["Be kind.", "Be mild.", "Be strict."]


def test_a_dry_run_names_a_limit_that_the_server_may_have(deciding: Any) -> None:
    _table(deciding)
    for count, is_noted in ((26, False), (30, True)):
        labels = ",".join(f"l{at}" for at in range(count))
        done = deciding.run(*ASKED, "--choices", labels, "--dry-run")
        assert ("Some servers take no 30 options, but 26" in " ".join(done.stdout.split())) == is_noted


def test_a_dry_run_shows_the_evidence_and_the_questions(deciding: Any) -> None:
    _table(deciding)
    done = deciding.run(*ASKED, "--fields", "team:billing|tech!,urgent:boolean!", "--dry-run")
    assert '{"subject":"s0","mail":"mail 0"}' in done.stdout
    assert "Which team? `subject`: `mail`" in done.stdout
    assert "Which `team` fits the input? [billing | tech]" in done.stdout
    assert "Is `urgent` true of the input? [yes | no]" in done.stdout


@pytest.mark.parametrize("dry", [False, True])
def test_an_open_field_is_refused_before_the_first_request(deciding: Any, *, dry: bool) -> None:
    _table(deciding)
    done = deciding.run(*ASKED, "--fields", "team:billing|tech,why", *(["--dry-run"] if dry else []))
    assert done.returncode != 0
    assert "The field why may have any value" in done.stdout + done.stderr
    assert "a chat model (--model)" in done.stdout + done.stderr
    assert deciding.upstream.seen == []


def test_batches_are_refused(deciding: Any) -> None:
    _table(deciding)
    done = deciding.run(*ASKED, "--choices", "a,b", "--batch")
    assert done.returncode != 0
    assert "no provider runs decisions" in done.stdout + done.stderr
    assert deciding.upstream.seen == []


def test_a_model_that_changes_within_a_job_is_noted(deciding: Any) -> None:
    first, then = decides(model="jev-1.13.0"), decides(model="jev-1.14.0")
    deciding.upstream.reply = choose(lambda seen: first if seen.number <= 3 else then)
    _table(deciding)
    done = deciding.run(*ASKED, "--choices", "a,b")
    assert "has changed during the job: jev-1.13.0 (3 rows), jev-1.14.0 (5 rows)" in done.stdout + done.stderr


@pytest.mark.thorough
def test_max_cost_needs_no_limit_of_tokens_and_is_kept(deciding: Any) -> None:
    _table(deciding, 30)
    done = deciding.run(
        *ASKED, "--choices", "a,b", "--max-cost", "400", "--set", "price={input: 1000000, output: 0}", concurrency=1
    )
    sent = sum(len(seen.raw) // 4 for seen in deciding.upstream.seen)
    assert done.returncode != 0
    assert 0 < sent <= 400
    assert f"${sent:,.2f}" in done.stdout + done.stderr or str(sent) in json.dumps(deciding.status())


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (("--choices", "a,b"), ["answer", "probability", "error", "usage", "finish_reason"]),
        (
            ("--fields", "urgent:boolean!,mood:calm<angry!"),
            ["urgent", "urgent_probability", "mood", "mood_probability", "mood_score", "error"],
        ),
    ],
)
def test_a_dry_run_has_the_columns_of_the_output(deciding: Any, form: tuple[str, ...], names: list[str]) -> None:
    _table(deciding)
    deciding.output = deciding.path / "out.csv"
    said = json.loads(deciding.run(*ASKED, *form, "--dry-run", "--json").stdout)
    assert deciding.run(*ASKED, *form).returncode == 0
    added = said["columns"]["added"]
    assert added[: len(names)] == names
    assert set(said["columns"]["input"] + added) <= set(deciding.output.read_text().splitlines()[0].split(","))
