"""Files by URL, over an S3 server on loopback."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptmill.cli import bulk
from replies import answer
from waiting import PATIENCE_S

boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

ROWS = [{"id": at, "prompt": f"prompt {at}"} for at in range(5)]


class Bucket:
    """A bucket, and `promptmill bulk` over it."""

    def __init__(self, client: Any, bench: Any, environ: dict[str, str]) -> None:
        self.client, self.bench, self.environ = client, bench, environ

    def put(self, key: str, rows: Any) -> None:
        body = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        self.client.put_object(Bucket="data", Key=key, Body=body)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket="data", Key=key)["Body"].read()

    def keys(self) -> list[str]:
        return [found["Key"] for found in self.client.list_objects_v2(Bucket="data").get("Contents", [])]

    def run(self, source: str, target: str, *arguments: str, code: int = 0) -> str:
        command = self.bench.command(*arguments)
        at = command.index(str(self.bench.input))
        command[at : at + 2] = [source, target]
        s3fs.S3FileSystem.clear_instance_cache()  # they remember another server
        done = self.bench.here(command, **self.environ)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stderr + done.stdout

    @property
    def given(self) -> list[Path]:
        return list((self.bench.path / "state" / "given").iterdir())


@pytest.fixture
def bucket(bench: Any) -> Iterator[Bucket]:
    moto = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        own = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        own |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "PROMPTMILL_STATE": str(bench.path / "state")}
        reset = urllib.request.Request(f"{own['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()
        client = boto3.client(
            "s3",
            endpoint_url=own["AWS_ENDPOINT_URL"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="data")
        bench.upstream.reply = answer()
        yield Bucket(client, bench, own)
    finally:
        moto.stop()


@pytest.mark.thorough
def test_a_job_over_s3_puts_its_output_there_and_asks_nothing_twice(bucket):
    bucket.put("in/rows.jsonl", ROWS)
    files = "s3://data/in/rows.jsonl", "s3://data/out/answers.jsonl"
    said = bucket.run(*files)
    assert "fetching s3://data/in/rows.jsonl" in said
    assert "output    s3://data/out/answers.jsonl" in said
    assert str(bucket.bench.path) not in said
    found = [json.loads(line) for line in bucket.get("out/answers.jsonl").splitlines()]
    assert [(row["id"], row["answer"]) for row in found] == [(at, f"echo: prompt {at}") for at in range(5)]
    said = bucket.run(*files)
    assert "is finished already" in said
    assert "fetching" not in said
    assert "writing s3://" not in said
    assert len(bucket.bench.upstream.seen) == 5
    assert sorted(bucket.keys()) == ["in/rows.jsonl", "out/answers.jsonl"]


@pytest.mark.thorough
def test_of_an_object_that_changed_what_is_new_is_sent(bucket):
    files = "s3://data/rows.jsonl", "s3://data/answers.jsonl"
    bucket.put("rows.jsonl", ROWS[:3])
    bucket.run(*files)
    bucket.put("rows.jsonl", ROWS)
    assert "3 of 5 rows keep their answers, 2 are new" in bucket.run(*files)
    assert len(bucket.bench.upstream.seen) == 5
    assert len(bucket.get("answers.jsonl").splitlines()) == 5


@pytest.mark.thorough
def test_another_prompt_reads_the_objects_again(bucket):
    files = "s3://data/rows.jsonl", "s3://data/answers.jsonl"
    bucket.put("rows.jsonl", ROWS)
    bucket.run(*files, "--sample", "2")
    bucket.run(*files)
    bucket.run(*files, "--prompt", "Tell {{id}}", "--again", "all")
    found = [json.loads(line)["answer"] for line in bucket.get("answers.jsonl").splitlines()]
    assert found == [f"echo: Tell {at}" for at in range(5)]


def test_what_somebody_else_put_at_the_output_stays(bucket):
    bucket.put("rows.jsonl", ROWS)
    bucket.put("answers.jsonl", b"mine")
    files = "s3://data/rows.jsonl", "s3://data/answers.jsonl"
    assert "is not this job's own output" in bucket.run(*files, code=2)
    assert not bucket.bench.upstream.seen
    bucket.run(*files, "--overwrite")
    assert len(bucket.get("answers.jsonl").splitlines()) == 5


@pytest.mark.thorough
def test_an_output_that_could_not_be_put_there_is_put_there_by_the_same_command(bucket):
    bucket.put("rows.jsonl", ROWS)
    files = "s3://data/rows.jsonl", "s3://data/answers.jsonl"
    bucket.run(*files)
    bucket.client.delete_object(Bucket="data", Key="answers.jsonl")
    bucket.run(*files)
    assert len(bucket.get("answers.jsonl").splitlines()) == 5
    assert len(bucket.bench.upstream.seen) == 5


def test_several_objects_and_patterns_are_one_input(bucket):
    bucket.put("day=1/a.jsonl", ROWS[:2])
    bucket.put("day=2/a.jsonl", ROWS[2:])
    target = bucket.bench.path / "out.jsonl"
    bucket.run("s3://data/*/a.jsonl", str(target))
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["id"], row["source_file"], row["day"]) for row in found] == [
        (at, f"day={1 + (at > 1)}/a.jsonl", str(1 + (at > 1))) for at in range(5)
    ]


@pytest.mark.thorough
@pytest.mark.features("duckdb")
def test_a_query_of_duckdb_reads_objects(bucket):
    pytest.importorskip("duckdb")
    for day in (1, 2):
        bucket.put(f"day{day}.jsonl", ROWS[day:])
    target = bucket.bench.path / "out.jsonl"
    sql = "select id, prompt from 's3://data/day*.jsonl' where id = 4"
    bucket.run("s3://data/day1.jsonl", str(target), "--sql", sql)
    assert [json.loads(line)["answer"] for line in target.read_text().splitlines()] == ["echo: prompt 4"] * 2
    assert "No files found" in bucket.run(
        "s3://data/day1.jsonl", str(target), "--sql", "from 's3://data/none.jsonl'", code=2
    )
    bucket.environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    said = bucket.run("s3://data/day1.jsonl", str(target), "--sql", sql, code=2)
    assert "Traceback" not in said


def test_what_is_not_there_or_not_known_is_told_before_anything_is_sent(bucket):
    assert "There is nothing at s3://data/none.jsonl" in bucket.run(
        "s3://data/none.jsonl", "s3://data/out.jsonl", code=2
    )
    assert "nothing://x" in bucket.run("nothing://x/in.jsonl", "out.jsonl", code=2)
    bucket.put("rows.jsonl", ROWS)
    bucket.environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    assert "cannot be used" in bucket.run("s3://data/rows.jsonl", "out.jsonl", code=75)


def test_a_store_that_does_not_answer_is_named_while_it_is_waited_for(monkeypatch):
    monkeypatch.setattr(bulk, "_SAID_EVERY_S", 0.001)
    said: list[str] = []
    twice = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            twice.set()

    with bulk._patient("s3://data/a", say):
        assert twice.wait(PATIENCE_S)
    assert all("still waiting for s3://data/a" in text for text in said)
