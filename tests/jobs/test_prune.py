"""Old jobs are forgotten, running ones never, unfinished ones only when asked for."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes import openai_configuration
from promptmill.backends.protocol import Call, Completion
from promptmill.cli import jobs
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.core.request import conversation_from_prompt
from promptmill.jobs.caller import Caller, CallWork
from promptmill.jobs.door import OpenJob
from promptmill.jobs.manage import prune
from promptmill.jobs.manage.deferred_call import write
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import Earlier, JobOrder
from promptmill.jobs.store.spec import OutputRecord
from sure import sure

DAY_S = 86_400
REMOVING = """
import sys
from pathlib import Path
from promptmill.jobs.manage import prune
from promptmill.jobs.store.index import JobFolders
folders = JobFolders(Path(sys.argv[1]), beside_outputs=True)
while True:
    prune.prune(folders, 0, unfinished=True)
"""


def _age(folder, days):
    then = time.time() - days * DAY_S
    if folder.spec is None:
        for file in folder.path.iterdir():
            os.utime(file, (then, then))
        return
    folder.open()
    folder.put(status={**folder.status, "updated": then})
    folder.close()


def _finished(bench, name, days):
    bench.write([{"prompt": name}], f"{name}.jsonl")
    bench.output = bench.path / f"{name}-out.jsonl"
    bench.succeed()
    _age(bench.folder, days)
    return bench.folder


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600), ("0d", 0)]
)
def test_an_age_is_a_number_and_a_unit(text, seconds):
    assert prune.age_s(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 days", "1e3d"])
def test_what_is_no_age_says_how_to_write_one(text):
    with pytest.raises(PromptmillError, match="30m, 12h, 7d or 2w"):
        prune.age_s(text)


def test_finished_jobs_older_than_that_go_and_their_outputs_stay(bench):
    old, young = _finished(bench, "old", 8), _finished(bench, "young", 6)
    found = bench.jobs("--prune", "7d", "--json")
    assert json.loads(found.stdout) == {"removed": [old.job_id]}
    assert not old.path.exists()
    assert young.path.exists()
    assert (bench.path / "old-out.jsonl").exists()
    bench.jobs("--prune", "5d")
    assert not (bench.path / ".promptmill").exists(), "the last job takes the hidden folder with it"


@pytest.mark.thorough
def test_an_unfinished_job_goes_only_when_asked_for(bench):
    bench.prompts(3)
    bench.half_done({})
    _age(bench.folder, 30)
    folders = JobFolders.from_environ()
    assert prune.prune(folders, DAY_S, unfinished=False) == []
    assert prune.prune(folders, DAY_S, unfinished=True) == [bench.folder.job_id]
    assert not bench.folder.path.exists()
    bench.succeed()


def test_one_job_is_forgotten_and_its_output_stays(bench):
    bench.prompts(3)
    bench.half_done({})
    job = bench.folder.job_id
    refused = bench.jobs(job, "--forget")
    assert f"Job {job} could be resumed, and its answers are paid; --unfinished forgets it." in refused.stderr
    lock = sure(Lock.take(bench.folder.lock))
    try:
        for options in ((), ("--unfinished",)):
            said = bench.jobs(job, "--forget", *options).stderr
            assert f"Job {job} runs; --cancel ends it." in said
        bench.folder.change_control(paused=True)
        said = bench.jobs(job, "--forget").stderr
        assert f"Job {job} is paused, and its process waits; --cancel ends it." in said
        bench.folder.change_control(paused=False)
    finally:
        lock.release()
    bench.succeed()
    forgotten = bench.jobs(str(bench.output), "--forget")
    assert forgotten.stdout == f"{job}\n"
    assert "1 job removed; its output stays." in forgotten.stderr
    assert len(bench.answers()) == 3
    assert not bench.folder.path.exists()
    said = bench.jobs(str(bench.output)).stderr
    assert f"{bench.output} has no job: no job has written it, or its job was removed." in " ".join(said.split())


def test_a_job_without_an_output_is_forgotten_without_a_word_about_one(bench):
    bench.prompts(3)
    bench.half_done({})
    said = bench.jobs(bench.folder.job_id, "--forget", "--unfinished").stderr
    assert said == "promptmill: 1 job removed.\n"


@pytest.mark.parametrize("answer", ["y", ""])
def test_a_user_at_a_terminal_is_asked_before_jobs_are_deleted(bench, monkeypatch, answer):
    old = _finished(bench, "old", 8)
    monkeypatch.setattr(jobs, "is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: answer)
    asked = bench.jobs("--prune", "7d").stderr
    assert "1 job of 1 folder will be deleted; their outputs stay. Go on? (y/N): " in asked
    assert old.path.exists() == (not answer)


def test_a_job_that_runs_is_never_removed(bench):
    old = _finished(bench, "old", 8)
    lock = sure(Lock.take(old.lock))
    try:
        assert prune.prune(JobFolders.from_environ(), 0, unfinished=True) == []
    finally:
        lock.release()
    assert prune.prune(JobFolders.from_environ(), 0, unfinished=True) == [old.job_id]


def test_what_a_crash_left_without_a_description_goes_too(bench):
    torn = JobFolders.from_environ().root / "call-0123"
    torn.mkdir(parents=True)
    (torn / "prompts.jsonl").write_text("{")
    _age(Folder(torn), 8)
    assert prune.prune(JobFolders.from_environ(), 7 * DAY_S, unfinished=False) == ["call-0123"]


@pytest.mark.thorough
def test_a_job_whose_output_holds_some_rows_only_can_still_go_on(bench):
    bench.prompts(20)
    bench.succeed("--limit", "5")
    _age(bench.folder, 8)
    folders = JobFolders.from_environ()
    assert prune.prune(folders, DAY_S, unfinished=False) == []
    bench.succeed()
    assert len(bench.upstream.seen) == 20
    _age(bench.folder, 8)
    assert prune.prune(folders, DAY_S, unfinished=False) == [bench.folder.job_id]


def test_what_a_killed_job_left_beside_its_output_goes_with_it(bench):
    bench.prompts(5)
    bench.run(killed_at="merging:2")
    assert len(list(bench.path.glob(".*.partial"))) == 1
    assert prune.prune(JobFolders.from_environ(), 0, unfinished=True) == [bench.folder.job_id]
    assert not list(bench.path.glob(".*.partial"))


@pytest.mark.thorough
def test_a_job_that_begins_while_old_ones_are_removed_is_never_among_them(bench):
    bench.prompts(3)
    folders = JobFolders.from_environ()
    models = Configuration({"backend": "openai", "backend_configs": {"openai": {"model_name": "m"}}})
    order = JobOrder(inputs=(bench.input,), output=bench.output)
    removing = subprocess.Popen([sys.executable, "-c", REMOVING, str(folders.root)])
    try:
        for _ in range(60):
            job = OpenJob(order, models, folders).admit()
            try:
                time.sleep(0.0003)
                assert job.folder.alive
                assert job.folder.spec == job.spec
            finally:
                job.close()
        assert removing.poll() is None
    finally:
        removing.kill()
        removing.wait()


def test_jobs_that_are_removed_or_begun_anew_at_that_moment_are_listed_or_not(bench):
    _finished(bench, "stays", 0)
    folders = JobFolders.from_environ()
    bench.prompts(3)
    models = Configuration({"backend": "openai", "backend_configs": {"openai": {"model_name": "m"}}})
    orders = [
        JobOrder(inputs=(bench.input,), output=bench.path / f"{at}.jsonl", earlier=Earlier(overwrite=True))
        for at in range(2)
    ]
    ended = threading.Event()

    def begin():
        while not ended.is_set():
            for order in orders:
                with contextlib.suppress(PromptmillError):  # the other thread has files open that were removed
                    OpenJob(order, models, folders).admit().close()
            shutil.rmtree(folders.of(orders[1].output.resolve()).path, ignore_errors=True)

    with ThreadPoolExecutor(1) as pool:
        beginning = pool.submit(begin)
        try:
            for _ in range(100):
                found = {told["job_id"].rpartition("-")[0] for told in status.read_all(folders.all())}
                assert "stays-out" in found
        finally:
            ended.set()
        beginning.result()


@pytest.mark.thorough
def test_a_status_that_is_written_at_that_moment_does_not_disturb(bench):
    old = _finished(bench, "old", 8)
    lock = sure(Lock.take(old.lock))
    store = old.open()
    ended = threading.Event()

    def write():
        while not ended.is_set():
            store.put(status={"state": "running", "updated": time.time()})

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(200):
                assert prune.prune(JobFolders.from_environ(), DAY_S, unfinished=True) == []
        finally:
            ended.set()
            lock.release()
        writing.result()
    old.close()


def test_a_tilde_in_the_state_folders_name_is_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert JobFolders.from_environ({"PROMPTMILL_STATE": "~/jobs of mine"}).root == tmp_path / "jobs of mine" / "jobs"


def _kept_call(folders, number, *, is_finished=True):
    """Return the folder of a call's job, the older the lower its number."""
    items = [conversation_from_prompt(f"prompt {number}", "")]
    config = openai_configuration("http://127.0.0.1:9/v1").config
    work = CallWork(items, Call(), "", config, caller=Caller("a client"))
    job = write(work, folders, {0: Completion("yes")}, all_answered=True)
    made = OutputRecord(size=0, mtime_ns=0, limit=None, finished=True)
    job.folder.put(output=made, status={"state": "finished" if is_finished else "interrupted", "updated": number})
    job.close()
    for file in (*job.folder.path.iterdir(), job.folder.path):
        os.utime(file, (number, number))
    return job.folder.path


@pytest.mark.parametrize("bound", ["MOST_CALL_JOBS", "LARGEST_CALL_JOBS"])
def test_the_oldest_finished_jobs_of_calls_make_room(tmp_path, monkeypatch, bound):
    folders = JobFolders(tmp_path)
    kept = [_kept_call(folders, number, is_finished=number != 1) for number in range(1, 6)]
    assert prune.make_room(folders) == [], "there is room"
    size = sum(file.stat().st_size for path in kept for file in path.iterdir()) / 5
    monkeypatch.setattr(prune, bound, 3 if bound == "MOST_CALL_JOBS" else 3.5 * size)
    assert prune.make_room(folders) == [], "it has just looked"
    monkeypatch.setattr(prune, "_LOOK_AGAIN", {})
    assert prune.make_room(folders) == [path.name for path in kept[1:3]]
    assert [path.exists() for path in kept] == [True, False, False, True, True], "an unfinished one stays"
