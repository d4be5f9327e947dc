"""A job taken up by its id alone, by another process in another folder: it is still the job that was begun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foreign_status import WRONG, write_wrong
from replies import answer, attempts, choose, late, status
from waiting import eventually


def resumed(bench: Any, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Go on with the bench's job from `folder`."""
    command = bench.command(bench.folder.job_id, "--resume", "--json", *arguments, command="jobs")
    return bench.here(command, folder)


def begin(bench: Any, *arguments: str, **block: Any) -> None:
    """Begin the bench's job and end it by a kill after a few answers."""
    process = bench.start(*arguments, **block)
    eventually(lambda: len(bench.upstream.seen) > 5)
    process.kill()
    process.communicate()


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
def test_relative_images_are_those_of_the_folder_where_it_was_begun(bench, tmp_path, workers):
    absolute = tmp_path / "absolute.png"
    for file in (bench.path / "own.png", absolute):
        Image.new("RGB", (1, 1)).save(file)
    part = {"type": "image_url", "image_url": {"url": "own.png"}}
    rows: list[dict[str, Any]] = [
        {"prompt": "relative", "images": ["own.png"]},
        {"prompt": "absolute", "images": [str(absolute), absolute.as_uri()]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "in a message"}, part]}]},
        {"prompt": "web", "images": ["https://images.example/a.png", "data:image/png;base64,AAAA"]},
    ]
    bench.settings |= {"num_workers": workers}
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 3 else late(None))
    bench.write([{"prompt": f"first {at}"} for at in range(10)] + rows)
    begin(bench)
    bench.upstream.reply = answer()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = resumed(bench, elsewhere)
    assert json.loads(result.stdout)["failed"] == 1, result.stderr
    codes = [row["error"] and row["error"]["code"] for row in bench.answers()[10:]]
    assert codes == [None, None, None, "invalid_image"]  # that data: URL holds no image


def test_it_goes_on_as_it_was_asked_for_last(bench):
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 8 else late(None))
    bench.write([{"prompt": f"p{at % 12}"} for at in range(200)])
    begin(bench, "--limit", "30", "--dedupe", "--system", "Be brief.", "--set", "sampling_params.temperature=0")
    bench.upstream.reply = answer()
    result = resumed(bench, bench.path, "--set", "sampling_params.temperature=0")
    assert result.returncode == 0, result.stderr
    assert len(bench.answers()) == 30
    assert len(bench.upstream.attempts) == 12
    assert all(seen.json["messages"][0]["content"] == "Be brief." for seen in bench.upstream.seen)


def test_it_stops_after_as_many_failures_as_before(bench):
    bench.upstream.reply = choose(lambda seen: answer() if seen.number < 10 else status(400, "no"))
    bench.prompts(2000)
    bench.fail("--max-failures", "5", code=1)
    result = resumed(bench, bench.path)
    assert result.returncode == 1
    assert json.loads(result.stdout)["state"] == "stopped"
    assert len(bench.upstream.seen) < 300


def test_a_job_by_its_id_never_goes_on_with_another_model(bench):
    """One that a refused key had stopped before its first answer was answered by the configuration's model."""
    bench.prompts(3)
    bench.upstream.reply = attempts(status(401))
    bench.fail(code=1)
    bench.upstream.reply = answer()
    words = [*bench.command(bench.folder.job_id, "--resume", command="jobs"), "--set"]
    words.append("backend_configs.openai.model_name=other")
    done = bench.here(words)
    assert done.returncode == 2
    assert "now 'other'" in done.stderr
    assert "of its first run" in done.stderr
    assert "--keep" not in done.stderr
    assert not bench.output.exists()


@pytest.mark.thorough
def test_it_goes_on_from_another_folder_with_nothing_but_its_id(bench, tmp_path):
    bench.settings.pop("api_key")
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 8 else late(None))
    bench.prompts(40)
    secret = "backend_configs.openai.api_key=very-secret-1"
    begin(bench, "--set", secret, "--set", "sampling_params.temperature=0.25", "--max-tokens", "20")
    bench.upstream.reply = answer()
    kept = bench.folder.order.shown
    assert "very-secret-1" not in bench.folder.database.read_bytes().decode("latin-1")
    assert kept.command[-2:] == ["--config", str(bench.path / "config.yaml")]
    job_id = bench.folder.job_id
    shown = bench.here(["promptmill", "jobs", job_id], tmp_path).stdout
    assert "command" in shown
    assert f"promptmill jobs {job_id} --resume" in shown
    assert f"promptmill jobs {job_id} --export FILE" in shown
    result = bench.here(["promptmill", "jobs", job_id, "--resume", "--json"], tmp_path, LLM_API_KEY="k")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["done"] == 40
    assert {(seen.json["temperature"], seen.json["max_tokens"]) for seen in bench.upstream.seen} == {(0.25, 20)}


@pytest.mark.thorough
def test_failed_rows_are_sent_again_by_the_jobs_id_alone(bench, tmp_path):
    bench.upstream.reply = choose(lambda seen: status(400, "no") if seen.prompt == "prompt 1" else answer())
    bench.prompts(3)
    bench.fail("--temperature", "0.5", code=1)
    bench.upstream.reply = answer()
    result = bench.here(["promptmill", "jobs", bench.folder.job_id, "--retry-failed", "--json"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert (json.loads(result.stdout)["failed"], len(bench.upstream.seen)) == (0, 4)
    assert bench.upstream.seen[-1].json["temperature"] == 0.5


@pytest.mark.thorough
@pytest.mark.parametrize("value", WRONG)
def test_a_status_from_elsewhere_is_shown_without_what_is_not_of_its_kind(bench, value):
    bench.prompts(2)
    bench.succeed()
    write_wrong(bench.folder.database, value)
    done = bench.here([sys.executable, "-m", "promptmill", "jobs", str(bench.output)])
    assert done.returncode == 0, done.stderr
