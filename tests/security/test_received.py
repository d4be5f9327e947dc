"""Jobs from others: a folder with a job's database, from an archive or a repository, is data and runs nothing."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from promptmill.core.bounds import LONGEST_PATH
from promptmill.core.feature import features
from promptmill.jobs.store.folder import Folder
from promptmill.options.option import Option
from promptmill.options.table import options
from replies import answer, choose, status

_VALUES = {
    "config": "other.yaml",
    "settings": "backend_configs.openai.api_key_command=touch ran",
    "max_cost": "1000000",
    "price": "0/0",
    "concurrency": "9",
}


@pytest.fixture
def stopped(bench):
    """Return the bench of a job with one failed row."""
    bench.upstream.reply = choose(lambda seen: status(400, "no") if seen.prompt == "prompt 1" else answer())
    bench.prompts(3)
    bench.fail("--temperature", "0.5", code=1)
    bench.upstream.reply = answer()
    return bench


def retried(bench: Any, tmp_path: Path, *more: str) -> Any:
    """Send the failed row again as another user, who has the same configuration."""
    config = ("--config", str(bench.path / "config.yaml"))
    words = ["promptmill", "jobs", str(bench.output), "--retry-failed", *config, *more]
    return bench.here(words, XDG_STATE_HOME=str(tmp_path / "state"))


def change(folder: Folder, change_order: Any = lambda _: None, change_spec: Any = lambda _: None) -> None:
    """Change the stored order and description of a job, as a hostile sender can."""
    with closing(sqlite3.connect(folder.database)) as connection, connection:
        for name, change_value in (("order", change_order), ("spec", change_spec)):
            ((text,),) = connection.execute("SELECT value FROM job WHERE name = ?", [name])
            change_value(value := json.loads(text))
            connection.execute("UPDATE job SET value = ? WHERE name = ?", [json.dumps(value), name])


def planted(*words: str) -> Any:
    """Return the change that adds words to the stored command."""
    return lambda order: order["shown"]["command"].extend(words)


def of_operator() -> list[Option]:
    """Return the options with a flag whose every value only the operator may set."""
    budget, here = {"max_cost", "price", "concurrency"}, Path.cwd()
    flags = [option for option in options().values() if option.flag is not None]
    return [option for option in flags if option.name in budget or option.is_of_operator("x", here)]


@pytest.mark.parametrize("option", of_operator(), ids=lambda option: option.name)
@pytest.mark.rule("C11")
def test_a_stored_command_sets_nothing_of_the_operator(stopped, tmp_path, option):
    flag = option.name_on("flag")
    change(stopped.folder, planted(f"{flag}={_VALUES.get(option.name, 'touch ran')}"))
    done = retried(stopped, tmp_path)
    if option.name != "config":  # given again
        assert f"without {flag}" in " ".join(done.stderr.split()) or f", {flag}" in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert len(stopped.upstream.seen) == 4
    assert not list(Path.cwd().rglob("ran")) + list(stopped.path.rglob("ran"))


@pytest.mark.rule("C11")
def test_each_option_that_names_more_is_marked():
    data = {option.name for option in options().values() if not option.is_of_operator("x", Path.cwd())}
    own = {"then", "config", "settings", "state", "backend", "base_url", "provider", "api_key_env", "ray", "sql"}
    assert not data & own


@pytest.mark.skipif(sys.platform == "win32", reason="the command")
@pytest.mark.features("then")
@pytest.mark.rule("C11")
def test_the_program_after_a_received_job_runs_only_if_it_is_trusted(stopped, tmp_path):
    ran = tmp_path / "ran"
    change(stopped.folder, planted("--then", f"touch {ran}"))
    stopped.upstream.reply = status(400, "no")
    for _ in range(2):  # resuming does not make the command one's own
        assert retried(stopped, tmp_path).returncode == 1
        assert not ran.exists()
    retried(stopped, tmp_path, "--trust")
    assert ran.exists()
    ran.unlink()
    retried(stopped, tmp_path)
    assert ran.exists(), "a trusted command is one's own"


@pytest.mark.features("then")
@pytest.mark.rule("C11")
def test_ones_own_command_is_obeyed_also_after_a_move_but_not_after_a_change(stopped):
    assert stopped.folder.is_own
    moved = stopped.output.with_name("moved.jsonl")
    stopped.folder.path.rename(stopped.folder.path.with_name("moved.jsonl.job"))
    stopped.output.rename(moved)
    stopped.output = moved
    assert stopped.folder.is_own
    change(stopped.folder, planted("--limit=2"))
    assert not stopped.folder.is_own


@pytest.mark.rule("C11")
def test_an_order_that_failed_does_not_seal_what_was_planted(stopped, tmp_path):
    change(stopped.folder, planted("--then", "touch ran"))
    with closing(sqlite3.connect(stopped.folder.database)) as connection, connection:
        found = dict(
            connection.execute("SELECT name, value FROM job WHERE name IN ('spec', 'order', 'output', 'seal')")
        )
        before = json.dumps({name: json.loads(value) for name, value in found.items()})
        connection.execute("INSERT OR REPLACE INTO job VALUES ('before', ?)", [before])
    with closing(stopped.folder) as folder:
        folder.open()
        folder.roll_back()
        assert not folder.is_own


@pytest.mark.parametrize("name", ["/etc/hosts", "../private.csv", "link.csv", "/etc/*"])
@pytest.mark.rule("C11")
def test_a_received_job_reads_no_file_outside_of_its_folder(stopped, tmp_path, name):
    if name == "link.csv":
        (stopped.path / name).symlink_to("/etc/hosts")
    path = str(stopped.path / name)
    change(stopped.folder, change_spec=lambda spec: spec["input"].update(path=path, sha256="", size=0))
    done = retried(stopped, tmp_path)
    assert done.returncode == 2
    assert "stored by another user or on another computer" in done.stderr
    assert "--trust" in done.stderr
    assert len(stopped.upstream.seen) == 3


@pytest.mark.features("ray", "mask")
@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("parts", {"ray": {"address": "evil.example:10001"}}, "--ray"),
        ("sampling", {"mask": "subprocess:getoutput"}, "--mask"),
        ("sampling", {"mask": "email,/etc/passwd"}, "--mask"),
    ],
)
@pytest.mark.rule("C11")
def test_a_received_order_names_no_cluster_and_no_function(stopped, tmp_path, field, value, flag):
    change(stopped.folder, lambda order: order.update({field: value}))
    done = retried(stopped, tmp_path)
    assert done.returncode == 2
    assert f"and names {flag}" in " ".join(done.stderr.split())
    assert len(stopped.upstream.seen) == 3


@pytest.mark.features("mask")
@pytest.mark.parametrize("mask", ["subprocess:getoutput", "/etc/passwd", "email,../names.csv"])
@pytest.mark.rule("C11")
def test_a_received_job_whose_mask_is_left_out_sends_nothing(stopped, tmp_path, mask):
    change(stopped.folder, planted("--mask", mask))
    done = retried(stopped, tmp_path)
    assert done.returncode == 2
    assert "with --mask" in done.stderr
    assert len(stopped.upstream.seen) == 3


@pytest.mark.rule("C11")
def test_a_received_job_takes_no_answers_from_other_databases(stopped, tmp_path):
    change(stopped.folder, lambda order: order.update(earlier={"from_jobs": ["/tmp/x/job.db"], "overwrite": True}))
    assert retried(stopped, tmp_path).returncode == 0
    assert len(stopped.upstream.seen) == 4


@pytest.mark.rule("C11")
@pytest.mark.parametrize("name", ["spec", "status", "order"])
def test_a_description_of_60_mb_is_not_read(stopped, tmp_path, name):
    with closing(sqlite3.connect(stopped.folder.database)) as connection, connection:
        ((text,),) = connection.execute("SELECT value FROM job WHERE name = ?", [name])
        large = json.dumps(json.loads(text) | {"model": "m" * (60 << 20), "reason": "r"})
        connection.execute("UPDATE job SET value = ? WHERE name = ?", [large, name])
    job = Folder(stopped.folder.path)
    read = {"spec": job.spec, "status": job.status or None, "order": job.order}[name]
    assert read is None
    done = stopped.here(["promptmill", "jobs", str(stopped.output)])
    assert len(done.stdout) + len(done.stderr) < 10_000


@pytest.mark.rule("C11")
def test_a_long_text_of_a_status_is_cut(stopped):
    change(stopped.folder, change_spec=lambda spec: spec.update(model="m" * (1 << 20)))
    assert len(stopped.status()["model"]) == LONGEST_PATH


@pytest.mark.rule("C11")
@pytest.mark.features("batches")
def test_a_received_job_names_no_file_at_a_provider(stopped, tmp_path):
    """A batch remembers ids, which are read and deleted with the key of the user."""
    with closing(sqlite3.connect(stopped.folder.database)) as connection, connection:
        for (table,) in [(text,) for way in features()["batches"].ways for text in way.tables.values()]:
            connection.execute(table)
        batch = {"id": 1, "key": "k", "round": 1, "state": "fetched", "there": {"file_id": "../models/own"}}
        connection.execute("INSERT INTO batch VALUES (1, ?)", [json.dumps(batch)])
    done = retried(stopped, tmp_path)
    assert done.returncode == 2
    assert "and names --batch" in " ".join(done.stderr.split())
    assert len(stopped.upstream.seen) == 3


@pytest.mark.rule("C11")
def test_a_received_order_spends_no_more_than_the_configuration_allows(stopped, tmp_path):
    change(stopped.folder, lambda order: order["limits"].update(max_cost=1_000_000))
    stopped.folder.change_control(max_cost=1_000_000)
    budget = ("--set", "max_cost=0.001", "--price", "1000000/1000000", "--max-tokens", "100")
    done = retried(stopped, tmp_path, *budget)
    assert done.returncode != 0
    assert len(stopped.upstream.seen) == 3
    assert "The budget of $0.0010 has no room for another request" in done.stdout
