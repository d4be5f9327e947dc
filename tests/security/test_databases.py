"""Databases that somebody else made: their views and macros are no programs that may read other files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from talk import text

SECRET = "swordfish"


@pytest.mark.rule("F27")
@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize(
    "body", ["load_extension('./x.so')", "fts3_tokenizer('simple')", "readfile('private.txt')", "edit('a', 'vi')"]
)
async def test_a_view_of_sqlite_calls_nothing_outside_of_its_database(tmp_path, monkeypatch, serve, upstream, body):
    monkeypatch.chdir(tmp_path)
    Path("private.txt").write_text(SECRET)
    with closing(sqlite3.connect("mails.db")) as connection:
        connection.execute("CREATE TABLE inbox (prompt)")
        connection.execute("INSERT INTO inbox VALUES ('hello')")
        connection.execute(f"CREATE VIEW hostile AS SELECT {body} AS prompt FROM inbox")
        connection.commit()
    async with serve() as talk:
        result = await talk("bulk_generate", input_file="mails.db#hostile", output_file="out.jsonl")
    assert result.is_error
    assert "mails.db cannot be read" in text(result)
    assert not upstream.seen


@pytest.mark.rule("F27")
@pytest.mark.features("duckdb")
@pytest.mark.parametrize("query", [None, "select * from hostile", "from hostile", "select * from (from hostile)"])
def test_a_view_of_duckdb_sends_no_other_file(bench, upstream, query):
    duckdb = pytest.importorskip("duckdb")
    private = bench.path / "private.txt"
    private.write_text(SECRET)
    mails = bench.path / "mails.duckdb"
    with duckdb.connect(str(mails)) as connection:
        connection.execute(f"CREATE VIEW hostile AS SELECT content AS prompt FROM read_text('{private}')")
    bench.input = Path(f"{mails}#hostile") if query is None else mails
    done = bench.here(bench.command(*(() if query is None else ("--sql", query))))
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert not upstream.seen
