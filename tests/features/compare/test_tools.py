"""The tool `compare`, over the in-memory client."""

from __future__ import annotations

import gzip
import json
import sys
from typing import Any

import pytest
from fastmcp.exceptions import ToolError

import promptmill
from bulk_calls import asked_of, ended
from fakes import openai_configuration
from foreign_status import WRONG, write_wrong
from promptmill.config.configuration import Configuration
from promptmill.service.service import Service
from replies import answer, choose


async def test_an_agent_compares_files_and_right_answers(tools, bench):
    for name, wrong in (("a", 0), ("b", 2)):
        rows = [{"id": at, "answer": "no" if at < wrong else "yes"} for at in range(10)]
        bench.write(rows, f"{name}.jsonl")
    (bench.path / "gold.csv").write_text("id,label\n" + "".join(f"{at},yes\n" for at in range(5)))
    async with tools() as call:
        found = await call("compare", files=["a.jsonl", "b.jsonl"], gold="gold.csv", rows=1)
        assert (found["rows_compared"], found["matched"], found["pairs"][0]["agree"]) == (10, "by id", 8)
        assert (found["gold"]["rows"], [file["right"] for file in found["gold"]["files"]]) == (5, [5, 3])
        assert [row["answers"] for row in found["rows"]] == [{"A": "yes", "B": "no"}]
        assert found["differ"] == 2


async def test_a_comparison_of_a_call_reads_and_returns_no_secrets(tools, bench, tmp_path):
    rows = [{"id": at, "note": "sk-proj-0123456789abcdefghij" if at else "", "answer": "x"} for at in range(9)]
    bench.write(rows, "a.jsonl")
    bench.write([{**row, "answer": "y"} for row in rows], "b.jsonl")
    outside = tmp_path / "gold.csv"
    outside.write_text("id,label\n0,x\n")
    async with tools() as call:
        files = ["a.jsonl", "b.jsonl"]
        found = await call("compare", files=files)
        assert [row.get("left_out") for row in found["rows"]] == [None, *["The row may hold secrets."] * 8]
        assert "sk-proj" not in json.dumps(found)
        for arguments, problem in (
            ({"files": files, "gold": str(outside)}, "gold is outside"),
            ({"files": [str(outside), "b.jsonl"]}, "files is outside"),
            ({"files": files, "field": "note"}, "hold an API key"),
            ({"files": files, "field": "password"}, "may hold secrets, by its name"),
            ({"files": ["a.jsonl"]}, "`gold` or `by`"),
        ):
            with pytest.raises(ToolError, match=problem):
                await call("compare", **arguments)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["g.csv.gz", "g.CSV", "g.Jsonl.GZ", "g.csv"])
async def test_right_answers_of_a_call_are_in_files_that_it_may_read(tools, bench, tmp_path, name):
    bench.write([{"id": at, "answer": "x"} for at in range(3)], "a.jsonl")
    files, outside = ["a.jsonl"], tmp_path / name
    is_json = "json" in name.lower()
    text = "".join(f'{{"id": {at}, "right": "x"}}\n' if is_json else f"{at},x\n" for at in range(3)).encode()
    data = text if is_json else b"id,right\n" + text
    for path in (outside, bench.path / name, bench.path / f".{name}"):
        path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    async with tools() as call:
        for gold in (f"{outside}:right", f"{outside}:b.csv", f"{bench.path / f'.{name}'}:right"):
            with pytest.raises(ToolError, match="gold"):
                await call("compare", files=files, gold=gold)
        for gold in (f"{outside}", f"{outside}x:right"):
            with pytest.raises(ToolError, match=r"gold is outside|there is no file of this name"):
                await call("compare", files=files, gold=gold)
        found = await call("compare", files=files, gold=f"{name}:right")
        assert found["gold"]["files"][0]["right"] == 3


async def test_a_row_with_a_key_on_a_line_of_its_own_is_left_out(summaries, tools, bench):
    key = "AKIA0123456789ABCDEF"
    for name in ("c", "d"):
        rows = [{"id": at, "answer": f"{name} {at}:\n{key if at else 'none'}"} for at in range(3)]
        bench.write(rows, f"{name}.jsonl")
    async with tools() as call:
        found = await call("compare", files=["c.jsonl", "d.jsonl"])
        assert [row.get("left_out") for row in found["rows"]] == [None, *["The row may hold secrets."] * 2]
        assert key not in json.dumps(found)
        begun = await call("compare", files=["c.jsonl", "d.jsonl"], criterion="is longer")
        await ended(call, begun["judge"]["job_id"], "finished")
    assert summaries.upstream.seen
    assert not [seen for seen in summaries.upstream.seen if key in json.dumps(seen.json)]


@pytest.fixture
def summaries(bench: Any) -> Any:
    """A bench with two outputs of six rows, the last four with different answers; its endpoint prefers `longer`."""
    for name in ("short", "longer"):
        rows = [{"text": f"text {at}", "answer": "same" if at < 2 else f"{name} {at}"} for at in range(6)]
        bench.write(rows, f"{name}.jsonl")
    bench.upstream.reply = choose(
        lambda seen: answer("first" if seen.prompt.find("longer") < seen.prompt.find("short") else "second")
    )
    return bench


_JUDGED: dict[str, Any] = {"files": ["short.jsonl", "longer.jsonl"], "criterion": "is longer"}


@pytest.mark.thorough
async def test_a_model_judges_which_answer_is_better(summaries, tools):
    async with tools() as call:
        begun = await call("compare", **_JUDGED, judge="good", limit=3, sampling_params={"max_tokens": 5})
        assert begun["judge"]["pairs"][0]["judged"] == 0
        assert begun["judge"]["state"] in {"starting", "running"}
        await ended(call, begun["judge"]["job_id"], "finished")
        found = await call("compare", **_JUDGED, judge="good", limit=3, sampling_params={"max_tokens": 5})
        assert (found["judge"]["state"], found["judge"]["requests"]) == ("finished", 6)
        assert (found["judge"]["pairs"][0]["wins"], found["judge"]["model"]) == ([0, 3], "good")
        assert sorted(row["verdicts"]["B"] for row in found["rows"]) == ["", "B", "B", "B"]
        more = await call("compare", **_JUDGED, judge="good", sampling_params={"max_tokens": 5})
        assert more["judge"]["job_id"] == begun["judge"]["job_id"]
        await ended(call, more["judge"]["job_id"], "finished")
        found = await call("compare", **_JUDGED, judge="good", sampling_params={"max_tokens": 5})
        assert found["judge"]["pairs"][0]["wins"] == [0, 4]
    assert len(summaries.upstream.seen) == 8, "no verdict is paid twice"
    assert {(seen.json["model"], seen.json["max_tokens"]) for seen in summaries.upstream.seen} == {("good", 5)}


async def test_the_verdicts_of_changed_answers_are_not_those_of_the_earlier_ones(summaries, tools):
    async with tools() as call:
        begun = await call("compare", **_JUDGED)
        await ended(call, begun["judge"]["job_id"], "finished")
        lines = (summaries.path / "short.jsonl").read_text().splitlines()
        (summaries.path / "short.jsonl").write_text("\n".join([lines[0], *lines[3:], lines[2], lines[1]]))
        found = await call("compare", **_JUDGED)
        assert found["judge"]["pairs"][0]["judged"] == 0
        assert found["judge"]["state"] != "finished"


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_a_judge_gets_no_row_that_may_hold_secrets(summaries, tools):
    path = summaries.path / "short.jsonl"
    path.write_text(path.read_text().replace("text 5", "sk-proj-0123456789abcdefghij"))
    other = summaries.path / "longer.jsonl"
    other.write_text(other.read_text().replace("text 5", "sk-proj-0123456789abcdefghij"))
    async with tools() as call:
        begun = await call("compare", **_JUDGED)
        await ended(call, begun["judge"]["job_id"], "finished")
    assert len(summaries.upstream.seen) == 6
    assert not any("sk-proj" in seen.prompt for seen in summaries.upstream.seen)


@pytest.mark.usefixtures("protocol")
async def test_a_judge_that_costs_more_than_the_operator_set_is_asked_about(summaries, tools):
    more = {"price": {"input": 0, "output": 1_000_000}, "sampling_params": {"max_tokens": 3}, "ask_above_cost": 6}
    asked: list[str] = []
    service = Service(Configuration({**openai_configuration(summaries.upstream.url)._raw, **more}))
    async with tools(service, elicitation_handler=asked_of(asked, "decline")) as call:
        with pytest.raises(ToolError, match=r"did not agree .* at most \$48.00"):
            await call("compare", **_JUDGED)
    assert asked
    assert not summaries.upstream.seen


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"judge": "good"}, "`judge` needs `criterion"),
        ({"limit": 1}, "`limit` needs `criterion"),
        ({"max_cost": 1}, "`max_cost` needs `criterion"),
        ({"again": "all"}, "`again` needs `criterion"),
        ({"sampling_params": {}}, "`sampling_params` needs `criterion"),
        ({"criterion": " "}, "`criterion`: write what makes an answer better"),
        ({"criterion": "x", "files": ["short.jsonl"], "gold": "text"}, "`criterion` needs two files"),
        ({"criterion": "x", "limit": 0}, "limit: should be at least 1"),
        ({"criterion": "x", "again": "truncated"}, "again: should be 'failed' or 'all'"),
    ],
)
async def test_wrong_arguments_of_a_judge_are_named(summaries, tools, given, said):
    async with tools() as call:
        with pytest.raises(ToolError) as caught:
            await call("compare", **{"files": _JUDGED["files"], **given})
    assert said in str(caught.value)
    assert not summaries.upstream.seen


@pytest.mark.usefixtures("protocol")
async def test_an_unknown_judge_is_named(summaries, tools):
    limited = {**openai_configuration(summaries.upstream.url)._raw, "client_limits": {"models": ["small"]}}
    async with tools(Service(Configuration(limited))) as call:
        with pytest.raises(ToolError, match="judge: there is no model 'large'"):
            await call("compare", **_JUDGED, judge="large")


async def test_the_variants_of_one_output_are_compared(bench, tools):
    bench.write([{"id": at, "variant": name, "answer": name} for at in range(3) for name in ("a", "b")], "in.jsonl")
    async with tools() as call:
        compared = await call("compare", files=["in.jsonl"], by="variant")
    assert [file["name"] for file in compared["files"]] == ["a", "b"]


async def test_a_page_shows_the_answers_side_by_side(bench, tools):
    for name in ("a", "b"):
        bench.write([{"id": at, "answer": name} for at in range(3)], f"{name}.jsonl")
    async with tools() as call:
        found = await call("compare", files=["a.jsonl", "b.jsonl"], report="both.html")
    assert found["report"]["rows"] == 3
    assert b"promptmill report" in (bench.path / "both.html").read_bytes()


@pytest.mark.thorough
def test_the_models_and_prompts_of_a_python_job_are_compared(upstream, tmp_path):
    upstream.reply = choose(lambda seen: answer(f"{seen.json['model']} {seen.prompt}"))
    made = promptmill.bulk(
        ["a", "b"],
        model=["weak", "good"],
        prompt={"asked": "{{text}}?", "shouted": "{{text}}!"},
        base_url=upstream.url,
        state=tmp_path,
        progress=False,
    )
    compared = promptmill.compare(made, by="variant")
    assert [file["name"] for file in compared.figures["files"]] == made.variants


@pytest.mark.thorough
@pytest.mark.parametrize("value", WRONG)
def test_a_job_whose_status_is_damaged_has_a_comparison(bench, value):
    bench.prompts(2)
    bench.succeed()
    write_wrong(bench.folder.database, value)
    done = bench.here([sys.executable, "-m", "promptmill", "compare", str(bench.output), str(bench.output)])
    assert done.returncode == 0, done.stderr
