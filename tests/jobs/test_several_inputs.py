"""Jobs over several files, from the command line."""

import json
import re

import pytest

from tables import write_rows


def test_a_job_over_a_folder_goes_on_and_finds_out_what_changed(bench):
    folder = bench.path / "data"
    folder.mkdir()
    for at in range(3):
        (folder / f"{at}.jsonl").write_text(json.dumps({"q": f"prompt {at}", "id": at}) + "\n")
    bench.input = folder
    options = ("--prompt-column", "q")
    bench.succeed(*options)
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(3)]
    assert [row["source_file"] for row in bench.answers()] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert bench.succeed(*options)["done"] == 3
    assert len(bench.upstream.seen) == 3
    (folder / "3.jsonl").write_text('{"q": "prompt 3", "id": 1}\n')
    assert "keeps 0 of the 3 answers" in bench.fail("--prompt-column", "id")
    bench.succeed("--prompt-column", "q")
    assert len(bench.upstream.seen) == 4
    assert [row["source_file"] for row in bench.answers()] == [f"{at}.jsonl" for at in range(4)]


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.csv", "in.parquet"])
def test_validate_notes_rows_that_repeat_an_id(bench, name):
    bench.input = bench.path / name
    write_rows(bench.input, [{"prompt": prompt, "id": own} for prompt, own in zip("abc", "xyx", strict=True)])
    checked = json.loads(bench.run("--dry-run", "--json").stdout)
    assert checked["invalid"] == 0
    (note,) = [note for note in checked["notes"] if "`id`" in note]
    assert re.fullmatch(r"(\w+) 3 has the `id` of \1 1; repeated ids in all: 1\.", note)
    assert not bench.upstream.seen
