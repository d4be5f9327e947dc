"""The tool `review`, over the in-memory client."""

from __future__ import annotations

import json

import pytest
from fastmcp.exceptions import ToolError

from all_features import need
from labellers import LABELS as SURE_LABELS
from replies import answer, choose

KEY = "sk-proj-0123456789abcdefghij"
ROWS = 20


@pytest.fixture
def voted(bench):
    """A bench with a finished job of `ROWS` rows: every fifth row has a tie of three votes; row 5 holds a key."""
    need("labels")
    bench.upstream.reply = choose(
        lambda seen: answer(SURE_LABELS[seen.json["seed"] - 1 if int(seen.prompt.split()[-1]) % 5 == 4 else 0])
    )
    texts = [f"{KEY} review {n}" if n == 4 else f"review {n}" for n in range(ROWS)]
    bench.write([{"id": f"r{n}", "text": text} for n, text in enumerate(texts)])
    asked = ("--prompt", "Is it positive? {{text}}", "--choices", ",".join(SURE_LABELS))
    bench.succeed(*asked, "--votes", "3", "--set", "sampling_params.seed=0")
    bench.upstream.seen.clear()
    return bench


@pytest.mark.thorough
async def test_an_agent_shows_the_rows_and_hands_in_the_labels_of_its_user(voted, tools):
    async with tools() as call:
        found = await call("review", job_id="out.jsonl", rows=3)
        assert (found["count"], found["reasons"], found["labels"][0]) == (3, {"tie": 3}, SURE_LABELS[0])
        left_out, row, _ = found["rows"]
        assert left_out == {"row": 5, "left_out": "The row may hold secrets."}
        assert KEY not in json.dumps(found)
        assert (row["row"], row["text"], row["why"], row["score"]) == (10, "review 9", "tie", 0.3333)
        decided = [{"row": 10, "key": row["key"], "label": SURE_LABELS[2]}]
        taken = await call("review", job_id=found["job_id"], decisions=decided)
        assert taken == {"job_id": found["job_id"], "taken": 1, "changed": 1, "taken_back": 0, "written": True}
        assert (voted.answers()[9]["answer"], voted.answers()[9]["sure"]) == (SURE_LABELS[2], "person")
        again = await call("review", job_id=found["job_id"], decisions=decided)
        assert (again["taken"], again["changed"]) == (0, 0)
        rest = await call("review", job_id="out.jsonl")
        assert [row["row"] for row in rest["rows"]] == [5, 15, 20]
        drawn = await call("review", job_id="out.jsonl", sample=4)
        assert drawn["reasons"] == {"at random": 4}
    assert not voted.upstream.seen


@pytest.mark.parametrize("name", ["review.xlsx", "review.html"])
async def test_a_review_is_written_for_the_user_with_all_rows(voted, tools, name):
    async with tools() as call:
        found = await call("review", job_id="out.jsonl", output_file=name)
        assert found["file"] == str(voted.path / name)
        written = (voted.path / name).read_bytes()
        assert name.endswith(".xlsx") or KEY.encode() in written
        if name.endswith(".html"):
            assert f"review: job_id {found['job_id']}, take ".encode() in written
            return
        with pytest.raises(ToolError, match="exists, perhaps with a person's labels"):
            await call("review", job_id="out.jsonl", output_file=name)
        assert (voted.path / name).read_bytes() == written


@pytest.fixture
def plain(bench):
    """A bench with a finished job of two rows, of which none is in doubt."""
    bench.write([{"text": "a"}, {"text": "b"}])
    bench.succeed("--prompt", "Is it positive? {{text}}")
    return bench


@pytest.mark.thorough
async def test_a_job_without_a_doubtful_row_writes_no_review(plain, tools):
    async with tools() as call:
        found = await call("review", job_id="out.jsonl", output_file="review.html")
        assert (found["count"], "file" in found) == (0, False)
        assert found["note"].startswith(
            "No row is in doubt, and no file is written. Doubt shows with `votes`, `sure`, "
        )
        assert not (plain.path / "review.html").exists()
        found = await call("review", job_id="out.jsonl", output_file="review.html", sample=2)
        assert (found["count"], "note" in found) == (2, False)
    assert (plain.path / "review.html").exists()


@pytest.fixture
def agreed(bench):
    """A bench with a finished job of two models that agree."""
    bench.write([{"text": "a"}])
    bench.succeed("--prompt", "Is it positive? {{text}}", "-m", "one", "-m", "two")
    return bench


@pytest.mark.usefixtures("agreed")
async def test_a_job_of_several_models_that_agree_says_so_and_that_it_stores_no_labels(tools):
    async with tools() as call:
        note = (await call("review", job_id="out.jsonl"))["note"]
    assert "stores no labels" in note
    assert "No row is in doubt" in note


async def test_the_labels_in_a_file_are_taken(voted, tools):
    async with tools() as call:
        keys = {row["row"]: row.get("key") for row in (await call("review", job_id="out.jsonl"))["rows"]}
        decided = f"row,label,key\n10,{SURE_LABELS[1]},{keys[10]}\n15,odd,{keys[15]}\n"
        (voted.path / "decisions.csv").write_text(decided)
        taken = await call("review", job_id="out.jsonl", take="decisions.csv")
        assert taken["taken"] == 1
        assert taken["refused"][0].startswith("Row 2 of decisions.csv: no answer of the job has the label 'odd'; ")
        (voted.path / "odd.csv").write_text(f"row,label,key\n15,odd,{keys[15]}\n")
        with pytest.raises(ToolError, match=r"no answer of the job has the label 'odd'.*`choices"):
            await call("review", job_id="out.jsonl", take="odd.csv")
        taken = await call("review", job_id="out.jsonl", take="decisions.csv", choices=["odd", "even"])
        assert taken["taken"] == 1
        assert "refused" not in taken
    assert [voted.answers()[n]["answer"] for n in (9, 14)] == [SURE_LABELS[1], "odd"]


@pytest.mark.usefixtures("protocol")
async def test_a_review_uses_only_the_files_and_arguments_that_a_call_may_use(voted, tools, tmp_path):
    outside = tmp_path / "decisions.csv"
    outside.write_text("row,label\n10,neutral\n")
    async with tools() as call:
        for tool, arguments, problem in (
            ("review", {"output_file": str(tmp_path / "x.html")}, "output_file is outside"),
            ("review", {"output_file": "review.sh"}, r"output_file is no \.html or "),
            ("review", {"output_file": ".hidden.html"}, "output_file is hidden"),
            ("review", {"rows": 3, "sample": 3}, "`rows` cannot be used with `sample`"),
            ("review", {"take": str(outside)}, "take is outside"),
            ("review", {"take": "x.csv", "decisions": []}, "one of `take` and `decisions`"),
            ("review", {"decisions": [{"row": 99, "label": "neutral", "key": ""}]}, "no answered row '99'"),
            (
                "review",
                {"decisions": [{"row": 10, "label": "neutral"}]},
                "Row 1 of decisions.jsonl has no `key`; take rows",
            ),
        ):
            with pytest.raises(ToolError, match=problem):
                await call(tool, job_id="out.jsonl", **arguments)
        with pytest.raises(ToolError, match="no job"):
            await call("review", job_id="other-1234567890")
    assert sorted(path.name for path in tmp_path.glob("*.html")) == []
