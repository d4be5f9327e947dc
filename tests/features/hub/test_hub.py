"""Datasets of the Hugging Face Hub as inputs and outputs: the real huggingface_hub over a Hub on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow import parquet

import fake_hub
import promptmill
from fake_hub import TOKEN, FakeHub, Repo
from promptmill.core.errors import PromptmillError
from promptmill.features.hub import hub
from promptmill.features.hub.hub import Dataset, output_place

pytest.importorskip("huggingface_hub")
from huggingface_hub import HfFileSystem, constants

_PROMPT = ("--prompt", "Say {{body}}")
_IN, _OUT = "hf://datasets/acme/mails", "hf://datasets/ada/labels"


def _parquet(*bodies: str) -> bytes:
    out = io.BytesIO()
    pd.DataFrame({"id": range(len(bodies)), "body": bodies}).to_parquet(out, index=False)
    return out.getvalue()


@pytest.fixture
def server(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with the dataset `acme/mails`, and a user who is logged in."""
    with fake_hub.running() as found:
        found.repos["acme/mails"] = Repo()
        found.repos["acme/mails"].commit({"data/train-00000-of-00001.parquet": _parquet("a", "b")})
        for name, value in {
            "HF_ENDPOINT": found.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(bench.path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "PROMPTMILL_STATE": str(bench.path / "state"),
        }.items():
            monkeypatch.setenv(name, value)
        # huggingface_hub read its variables when it was imported
        for constant, read in {
            "ENDPOINT": found.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_TOKEN_PATH": str(bench.path / "hf" / "token"),
            "HF_HUB_CACHE": str(bench.path / "hf" / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, constant, read)
        HfFileSystem.clear_instance_cache()
        yield found


def _bulk(bench: Any, source: str, target: str, *arguments: str, code: int = 0) -> str:
    """Run `promptmill bulk`; return what it said."""
    bench.input, bench.output = source, target
    done = bench.run(*_PROMPT, *arguments)
    assert done.returncode == code, done.stderr + done.stdout
    assert TOKEN not in done.stderr + done.stdout
    return str(done.stderr + done.stdout)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_card_counts_the_rows_of_its_file_without_the_skipped_ones(bench, server):
    server.repos["acme/mails"].commit({"data/train-00000-of-00001.parquet": _parquet("a", "", "b")})
    bench.input, bench.output = _IN, _OUT
    assert bench.run("--prompt", "{{body}}", "--skip-empty").returncode == 0
    labels = server.repos["ada/labels"]
    assert parquet.read_table(io.BytesIO(labels.files["data/train-00000-of-00001.parquet"])).num_rows == 2
    assert labels.titles[-1] == "promptmill: 2 rows by test-model"
    assert "| rows | 2: 2 answered, 0 failed |" in labels.files["README.md"].decode()


def test_a_dataset_is_answered_into_another_with_a_card_in_one_commit(bench, server):
    said = _bulk(bench, _IN, _OUT, "--set", "price={input: 1, output: 2}", "--max-tokens", "50")
    labels = server.repos["ada/labels"]
    assert labels.is_private
    assert labels.titles == ["initial commit", "promptmill: 2 rows by test-model"]
    assert sorted(labels.files) == ["README.md", "data/train-00000-of-00001.parquet"]
    table = parquet.read_table(io.BytesIO(labels.files["data/train-00000-of-00001.parquet"]))
    assert table.column("answer").to_pylist() == ["echo: Say a", "echo: Say b"]
    card = labels.files["README.md"].decode()
    assert "| model | test-model |" in card
    assert f"| input | {_IN}@{server.repos['acme/mails'].sha()} |" in card
    assert "| rows | 2: 2 answered, 0 failed |" in card
    assert f"| prompt | sha256 {hashlib.sha256(b'Say {{body}}').hexdigest()} |" in card
    assert "| cost | $" in card
    assert "Say" not in card
    assert f"mails@{server.repos['acme/mails'].sha()[:8]} → train" in said
    assert f"output    {_OUT}/data/train-00000-of-00001.parquet" in said
    assert "is finished already" in _bulk(bench, _IN, _OUT)
    assert len(labels.commits) == 2
    assert len(bench.upstream.seen) == 2


@pytest.mark.thorough
def test_a_job_reads_the_commit_with_which_it_began(bench, server):
    mails, target = server.repos["acme/mails"], bench.path / "out.jsonl"
    first = mails.sha()
    bench.input, bench.output = _IN, target
    done = bench.start(*_PROMPT, killed_at="before-write")
    done.communicate(timeout=120)
    now = mails.commit({"data/train-00000-of-00001.parquet": _parquet("a", "b", "c")})
    said = " ".join(_bulk(bench, _IN, str(target)).split())
    assert (
        f"has changed: the job reads commit {first[:8]}, with which it began; {_IN}@{now[:8]} reads the newest" in said
    )
    assert [row["answer"] for row in _lines(target)] == ["echo: Say a", "echo: Say b"]
    assert "2 of 3 rows keep their answers, 1 is new" in _bulk(bench, f"{_IN}@{now[:8]}", str(target))
    assert [row["body"] for row in _lines(target)] == ["a", "b", "c"]


@pytest.mark.thorough
def test_another_revision_of_the_same_dataset_is_read_at_its_own_commit(bench, server):
    target = bench.path / "out.jsonl"
    _bulk(bench, _IN, str(target))
    server.repos["acme/mails"].commit({"data/train-00000-of-00001.parquet": _parquet("a", "b", "c")})
    assert "has changed" not in _bulk(bench, f"{_IN}@main", str(target))
    assert [row["body"] for row in _lines(target)] == ["a", "b", "c"]


def test_an_upload_that_was_killed_after_its_commit_is_not_committed_again(bench, server):
    _bulk(bench, _IN, _OUT)
    labels = server.repos["ada/labels"]
    (note,) = (bench.path / "state").glob("given/*/delivered")
    note.unlink()  # as if the run was killed before it
    _bulk(bench, _IN, _OUT)
    assert len(labels.commits) == 2


def test_an_upload_that_fails_is_repeated_by_the_same_command(bench, server):
    server.fails["/commit/"] = 500
    assert "The same command writes it again" in _bulk(bench, _IN, _OUT, code=75)
    assert server.repos["ada/labels"].files == {}
    server.fails.clear()
    _bulk(bench, _IN, _OUT)
    assert len(server.repos["ada/labels"].commits) == 2
    assert len(bench.upstream.seen) == 2


@pytest.mark.thorough
def test_the_text_of_a_card_stays_and_each_file_has_its_own_section(bench, server):
    labels = server.repos["ada/labels"] = Repo()
    labels.commit({"README.md": b"---\nlicense: mit\n---\n# My labels\n", "data/other.csv": b"x\n"})
    _bulk(bench, _IN, f"{_OUT}/test")
    _bulk(bench, _IN, f"{_OUT}/extra/more.csv")
    card = labels.files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n# My labels\n")
    assert card.count("## data/test-00000-of-00001.parquet") == card.count("## extra/more.csv") == 1
    assert not labels.is_private
    assert labels.files["data/other.csv"] == b"x\n"
    assert labels.files["extra/more.csv"].startswith(b"id,body,answer")


def test_a_file_of_somebody_else_is_not_replaced(bench, server):
    server.repos["ada/labels"] = Repo()
    server.repos["ada/labels"].commit({"data/train-00000-of-00001.parquet": _parquet("mine")})
    assert "exists and is not this job's own output" in _bulk(bench, _IN, _OUT, code=2)
    assert not bench.upstream.seen
    _bulk(bench, _IN, _OUT, "--overwrite")
    assert len(server.repos["ada/labels"].commits) == 3


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("source", "target", "environ", "said"),
    [
        ("hf://datasets/acme/none", "out.csv", {}, "There is nothing at hf://datasets/acme/none"),
        (f"{_IN}@v9", "out.csv", {}, f"There is nothing at {_IN}@v9"),
        (f"{_IN}/tets", "out.csv", {}, "has no file, folder or split 'tets'; it has train."),
        (_IN, "hf://datasets/eve/labels", {}, "belongs to eve; you are ada on the Hub: name ada, acme as the owner"),
        (_IN, "hf://ada/model/x.csv", {}, "is no dataset; write hf://datasets/OWNER/NAME"),
        (_IN, f"{_OUT}@v1", {}, "an output goes into the main branch"),
        (_IN, _OUT, {"HF_TOKEN": ""}, "There is no token for the Hugging Face Hub. Log in with `hf auth login`"),
        (_IN, _OUT, {"HF_TOKEN": "hf_wrong"}, "the Hub does not know your token. Log in with"),
    ],
)
def test_a_wrong_dataset_or_token_is_named_before_anything_is_sent(
    bench, server, monkeypatch, source, target, environ, said
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert said in " ".join(_bulk(bench, source, target, code=2).split())
    assert not bench.upstream.seen


def test_a_token_that_only_reads_is_refused_before_anything_is_sent(bench, server):
    server.user["auth"]["accessToken"]["role"] = "read"
    assert "only reads. Use one that writes" in " ".join(_bulk(bench, _IN, _OUT, code=2).split())


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PromptmillError, match=r"hf:// URLs need huggingface-hub. Run: .*\[hub\]"):
        hub.pinned(_IN, "", print)


def _asked(bench: Any) -> dict[str, Any]:
    return {"prompt": "Say {{body}}", "model": "m", "base_url": bench.upstream.url, "api_key": "k"}


def test_datasets_are_inputs_and_outputs_of_python(bench, server):
    assert promptmill.bulk(_IN, **_asked(bench)).answers == ["echo: Say a", "echo: Say b"]
    promptmill.bulk(_IN, f"{_OUT}/out.csv", **_asked(bench))
    labels = server.repos["ada/labels"]
    assert labels.files["out.csv"].splitlines()[1].startswith(b"0,a,echo: Say a")
    assert f"| input | {_IN}@{server.repos['acme/mails'].sha()} |" in labels.files["README.md"].decode()


def test_python_reads_the_commit_with_which_a_job_began_and_another_revision_at_its_own(bench, server):
    def ran(url: str) -> tuple[bool, list[str]]:
        with warnings.catch_warnings(record=True, action="always") as told:
            promptmill.bulk(url, bench.path / "out.jsonl", **_asked(bench))
        said = any("has changed: the job reads commit" in str(warning.message) for warning in told)
        return said, [row["body"] for row in _lines(bench.path / "out.jsonl")]

    assert ran(_IN) == (False, ["a", "b"])
    server.repos["acme/mails"].commit({"data/train-00000-of-00001.parquet": _parquet("a", "b", "c")})
    assert ran(_IN) == (True, ["a", "b"])
    assert ran(f"{_IN}@main") == (False, ["a", "b", "c"])


# ---- splits


@pytest.mark.parametrize(
    ("card", "names", "splits"),
    [
        ({}, ["train.csv", "test.csv", "README.md"], {"train": ["train.csv"], "test": ["test.csv"]}),
        ({}, ["a.jsonl", "b.jsonl"], {"train": ["a.jsonl", "b.jsonl"]}),
        (
            {},
            ["x/train-00000-of-00002.parquet", "x/train-00001-of-00002.parquet", "x/extra-00000-of-00001.parquet"],
            {
                "train": ["x/train-00000-of-00002.parquet", "x/train-00001-of-00002.parquet"],
                "extra": ["x/extra-00000-of-00001.parquet"],
            },
        ),
        ({"configs": [{"config_name": "default", "data_files": "b.csv"}]}, ["a.csv", "b.csv"], {"train": ["b.csv"]}),
        (
            {
                "configs": [
                    {"config_name": "en", "data_files": [{"split": "train", "path": "en/*.csv"}]},
                    {"config_name": "de", "data_files": {"train": ["./de/a.csv"]}},
                ]
            },
            ["en/a.csv", "de/a.csv"],
            {"en/train": ["en/a.csv"], "de/train": ["de/a.csv"]},
        ),
        ({"configs": "what"}, ["a.csv"], {"train": ["a.csv"]}),
        ({"configs": 5}, ["a.csv", "dataset_infos.json", "x/metadata.json"], {"train": ["a.csv"]}),
        (
            {
                "configs": [
                    {"config_name": "en", "data_dir": "en"},
                    {"config_name": "de", "data_dir": "./de/", "data_files": "*.csv"},
                ]
            },
            ["en/a.csv", "en/test.csv", "de/a.csv", "other.csv"],
            {"en/train": ["en/a.csv"], "en/test": ["en/test.csv"], "de/train": ["de/a.csv"]},
        ),
    ],
)
def test_the_splits_of_a_dataset_are_those_of_its_card_or_of_the_names(card, names, splits):
    assert hub._splits(card, names) == splits


def test_a_place_is_a_file_a_folder_a_pattern_or_a_split():
    names = ["a/train.csv", "a/test.csv", "b/rows.csv"]
    splits = hub._splits({}, names)
    place = Dataset("acme/mails", "main")

    def chosen(path: str) -> Any:
        return hub._chosen(Dataset("acme/mails", "main", path), names, splits)

    assert chosen("a/test.csv") == ["a/test.csv"]
    assert chosen("b") == ["b/rows.csv"]
    assert chosen("*/t*.csv") == ["a/train.csv", "a/test.csv"]
    assert chosen("test") == ["a/test.csv"]
    with pytest.raises(
        PromptmillError, match="has the splits train, test; name one of them: hf://datasets/acme/mails/"
    ):
        chosen("a")
    with pytest.raises(PromptmillError, match=r"no files of rows; perhaps .*@refs/convert/parquet"):
        hub._chosen(place, ["x.py"], {})


def test_an_output_names_a_file_or_a_split():
    assert output_place(_OUT).path == "data/train-00000-of-00001.parquet"
    assert output_place(f"{_OUT}/test").path == "data/test-00000-of-00001.parquet"
    assert output_place(f"{_OUT}/x/labels.csv.gz").path == "x/labels.csv.gz"
    with pytest.raises(PromptmillError, match="is no data file"):
        output_place(f"{_OUT}/x/labels.doc")
