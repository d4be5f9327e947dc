"""One door opens a job on rows from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from promptmill.config.configuration import Configuration
from promptmill.core import feature
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import Feature
from promptmill.files import format_table
from promptmill.jobs.door import MadeRows, NamedRows, open_job
from promptmill.jobs.store.index import JobFolders
from promptmill.options.option import Option

LINES = b'{"prompt": "a"}\n{"prompt": "b"}\n'
OPTIONS = (Option("whole", bool, "the two first files, each a row", implies=f"{__name__}:implied"),)


def implied(_: object) -> dict[str, Any]:
    """Return the options that `whole` stands for."""
    return {"each": "file", "limit": 2}


@pytest.fixture
def whole(monkeypatch):
    """Have a feature with the option `whole`."""
    known = {"whole": Feature(words="", options=f"{__name__}:OPTIONS")}
    monkeypatch.setattr(feature, "_installed", lambda: iter(known.items()))
    caches = feature._features, format_table._table_without
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def opened(tmp_path):
    """Open a job that the embedded model would answer, for a price."""
    folders = JobFolders.from_environ({"PROMPTMILL_STATE": str(tmp_path / "jobs")})
    price = {"input": 0, "output": 1_000_000}
    raw = {"price": price, "check_retries": 2, "sampling_params": {"max_tokens": 20}}
    return lambda rows, output=None, **options: open_job(rows, output, options, Configuration(raw), folders)


def test_rows_in_memory_are_in_a_file_while_the_door_is_open(opened):
    with opened(MadeRows([LINES])) as job:
        (part,) = job.source.parts
        assert part.path.read_bytes() == LINES
        assert job.order.inputs == (Path("rows"),)
    assert not part.path.exists()


def test_a_job_without_output_is_found_again_by_its_rows_and_options(opened):
    def place(lines, **options):
        with opened(MadeRows([lines]), **options) as job:
            assert job.order.output == job.loose.answers
            return job.loose.path

    assert place(LINES) == place(LINES)
    assert len({place(LINES), place(LINES + LINES), place(LINES, prompt="Say {{prompt}}")}) == 3


def test_files_are_named_by_absolute_paths_and_shown_as_written(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(LINES)
    with opened(NamedRows(["in.jsonl"]), "out.jsonl", limit=1) as job:
        assert (job.source, job.loose) == (None, None)
        assert job.order.inputs == (tmp_path / "in.jsonl",)
        assert job.order.output == tmp_path / "out.jsonl"
        assert (job.order.shown.input, job.order.limits.limit) == ("in.jsonl", 1)
        found = job.validate()
    assert (found["rows"], found["invalid"]) == (1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"], "no job was made"


def test_the_highest_cost_has_the_second_tries_of_a_function_that_checks_answers(opened):
    def most(**options):
        with opened(MadeRows([LINES]), **options) as job:
            return job.validate()["most_cost"]

    assert (most(), most(check=lambda answer, row: None)) == (40, 120)


def test_a_value_that_an_order_cannot_have_is_named(opened):
    with pytest.raises(PromptmillError, match="`sample`"), opened(MadeRows([LINES]), sample=0):
        pass


@pytest.mark.parametrize(
    ("names", "source"), [((), "query"), (("a.csv", "b/"), "paths"), (("s3://bucket/a.csv",), "urls")]
)
def test_the_names_of_rows_tell_their_source(names, source):
    assert NamedRows(names).source == source


@pytest.mark.usefixtures("whole")
def test_an_option_stands_for_options_that_the_door_reads_and_that_the_order_has(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a\nb\n")
    with opened(NamedRows(["in.txt"]), "out.jsonl", prompt="Say it.  {{content}}", whole=True) as job:
        assert (job.files.count, job.order.limits.limit) == (1, 2)


def test_an_order_is_refused_before_its_rows_are_read(opened):
    def blocks():
        raise AssertionError("was read")
        yield b""

    with pytest.raises(PromptmillError, match="`sample`"), opened(MadeRows(blocks()), sample=0):
        pass
