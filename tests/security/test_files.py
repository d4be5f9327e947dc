"""Files of this machine: what a call may have read, written and overwritten, and what other users may do about it."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError
from PIL import Image

from fakes import KEY, FakeBackend
from forked import started
from promptmill.backends.engines import embedded_model
from promptmill.backends.protocol import Completion
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.files import disk
from promptmill.files.files import InputFile, InputFiles
from promptmill.images.load import ImageRules, load_image
from promptmill.jobs.caller import USER, CallModels
from promptmill.jobs.door import NamedRows, open_job
from promptmill.jobs.export import output
from promptmill.jobs.inputs.whole_files import FileQuestion, WholeFiles
from promptmill.jobs.manage import child_step
from promptmill.jobs.manage.prune import prune
from promptmill.jobs.run import admission, validation
from promptmill.jobs.run.wanted_job import WantedJob
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder
from promptmill.server import create_server
from promptmill.service.service import Service
from promptmill.steps.cached import AnswerCache
from promptmill.system.call_files import FileRule
from promptmill.system.package_file import Conversion, PackageFile
from promptmill.system.safe_open import OutsideError, is_remote, open_regular
from replies import answer
from sure import sure
from talk import Talk, text
from waiting import PATIENCE_S, eventually

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "inside" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (4, 4)).save(path)
    return path


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside" / "b.png"
    path.parent.mkdir()
    Image.new("RGB", (4, 4), "red").save(path)
    return path


def _refusal(source, *roots):
    with pytest.raises(PromptmillError) as caught:
        load_image(str(source), ImageRules(FileRule(roots or None)))
    return str(caught.value)


@pytest.mark.rule("F1")
def test_of_what_is_no_image_no_more_than_its_beginning_is_read(tmp_path, monkeypatch):
    path = tmp_path / "big.bin"
    path.write_bytes(b"not an image " * 100_000)
    read = []
    real = os.fdopen

    def watched(*arguments):
        file = real(*arguments)
        inner = file.read
        return _Counting(file, lambda size: read.append(size) or inner(size))

    monkeypatch.setattr(os, "fdopen", watched)
    assert "not an image" in _refusal(path)
    assert read == [16]


class _Counting:
    def __init__(self, file, read):
        self._file, self.read = file, read

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


@pytest.mark.rule("F2")
@posix
def test_links_count_as_what_they_lead_to(picture, outside):
    root = picture.parent
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    (outside.parent / "back.png").symlink_to(picture)
    assert "outside the folders" in _refusal(root / "link.png", root)
    assert "outside the folders" in _refusal(root / "folder" / "b.png", root)
    assert "outside the folders" in _refusal(root / ".." / "outside" / "b.png", root)
    assert load_image(str(outside.parent / "back.png"), ImageRules(FileRule((root,)))).media_type == "image/png"


@pytest.mark.rule("F3")
@posix
def test_a_file_that_becomes_a_link_after_the_check_is_not_read(picture, outside, monkeypatch):
    """The check sees the picture; before it is opened, another process puts a link in its place."""
    root, real = picture.parent, os.open

    def swapped(path, *arguments, **options):
        picture.unlink()
        picture.symlink_to(outside)
        monkeypatch.setattr(os, "open", real)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", swapped)
    assert "outside the folders" in _refusal(picture, root)


@pytest.mark.rule("F3")
@posix
def test_a_folder_that_is_swapped_all_the_time_lets_nothing_out(picture, outside):
    root = picture.parent.parent / "shared"
    (root / "a").mkdir(parents=True)
    picture.rename(root / "a" / "b.png")
    ours, theirs = (root / "a" / "b.png").stat().st_ino, outside.stat().st_ino
    done, opened = threading.Event(), set()

    def swap():
        while not done.is_set():
            (root / "a").rename(root / "c")
            (root / "a").symlink_to(outside.parent)
            (root / "a").unlink()
            (root / "c").rename(root / "a")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(3000):
            try:
                descriptor = open_regular(root / "a" / "b.png", (root,))
            except (OSError, OutsideError):
                continue
            opened.add(os.fstat(descriptor).st_ino)
            os.close(descriptor)
    finally:
        done.set()
        swapper.join()
    assert theirs not in opened
    assert opened <= {ours}
    os.close(open_regular(root / "a" / "b.png", (root,)))


@pytest.mark.rule("F4")
@posix
def test_pipes_sockets_devices_and_folders_are_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s.png")
        for name in ("pipe.png", "s.png", "/dev/zero", "/dev/tty", "/dev/random"):
            assert "is not a regular file" in _refusal(name), name
        assert "is a folder" in _refusal(".")


@pytest.mark.rule("F4")
@posix
def test_a_file_that_becomes_a_pipe_after_the_check_is_not_waited_for(picture, monkeypatch):
    real = os.open

    def swapped(path, *arguments, **options):
        picture.unlink()
        os.mkfifo(picture)
        monkeypatch.setattr(os, "open", real)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", swapped)
    assert "is not a regular file" in _refusal(picture)


@pytest.mark.rule("F5")
def test_outside_what_is_there_and_what_is_not_look_alike(picture, outside):
    there = _refusal(outside, picture.parent)
    missing = _refusal(outside.with_name("c.png"), picture.parent)
    assert there.replace("b.png", "") == missing.replace("c.png", "")


@pytest.mark.rule("F6")
def test_large_images_are_refused_before_they_are_decoded(tmp_path, picture):
    Image.new("1", (10_001, 10_000)).save(tmp_path / "wide.png")
    assert "max_image_pixels" in _refusal(tmp_path / "wide.png")
    huge = tmp_path / "huge.png"
    huge.write_bytes(picture.read_bytes())
    with huge.open("ab") as file:
        file.truncate(300 << 20)
    assert "larger than 256 MiB" in _refusal(huge)


USES = ({}, {"read": "all"}, {"action": "cancel"})
ATTACK = """
import asyncio, sys, threading
import psutil
from promptmill.core.request import ImagePart
from promptmill.images.load import ImageCache, ImageRules
from promptmill.system.memory import Memory

process, peak, done = psutil.Process(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)

async def work():
    rules = ImageRules(memory=Memory(64 << 20))
    cache = ImageCache(rules, lambda image: image.data[:10], None)
    await cache.read(ImagePart(sys.argv[1]))
    before = process.memory_info().rss
    threading.Thread(target=watch, daemon=True).start()
    await asyncio.gather(*(cache.read(ImagePart(name)) for name in sys.argv[2:]))
    done.set()
    print(peak[0] - before, process.memory_info().rss - before)

asyncio.run(work())
"""


@pytest.mark.rule("F16")
@pytest.mark.thorough
def test_sixteen_large_images_at_once_take_the_memory_of_one_and_give_it_back(tmp_path):
    names = [tmp_path / f"{number:02}.png" for number in range(17)]
    Image.new("I;16", (4000, 4000), 1000).save(names[0])
    for name in names[1:]:
        name.write_bytes(names[0].read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, *map(str, names)], capture_output=True, text=True, timeout=120, check=True
    )
    peak, kept = map(int, done.stdout.split())
    assert peak < 4000 * 4000 * 12, "one at a time"
    assert kept < 64 << 20


@pytest.mark.rule("F7")
@pytest.mark.parametrize(
    "path", [r"\\evil\share\a.png", "//evil/share/a.png", r"\\?\UNC\evil\share\a.png", r"\/evil\a"]
)
def test_windows_asks_no_other_machine_for_a_file(path):
    assert is_remote(path, "win32")
    assert not is_remote(path, "linux")
    assert not is_remote(r"C:\a.png", "win32")


# Jobs


@pytest.fixture
def work_folder(tmp_path, monkeypatch):
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    (path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    return path


@pytest.fixture
def bulk(serve):
    """Start a job by a call; return what it said."""

    async def started(input_file="in.jsonl", output_file="out.jsonl", *, again=None, **options):
        async with serve(**options) as talk:
            result = await talk("bulk_generate", input_file=input_file, output_file=output_file, again=again)
        return text(result) if result.is_error else result.structured_content

    return started


@pytest.fixture
def shell(upstream, tmp_path):
    """Run `promptmill bulk in.jsonl out.jsonl` in the working directory."""

    def ran(*more, environ=None):
        config = tmp_path / "config.json"
        block = {"base_url": upstream.url, "model_name": "m", "api_key": KEY, "retries": 2, "base_delay": 0.01}
        config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
        command = [
            sys.executable,
            "-m",
            "promptmill",
            "bulk",
            "in.jsonl",
            "out.jsonl",
            "--config",
            str(config),
        ]
        process = started(
            [*command, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return ran


@pytest.mark.rule("F19")
@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits a process's memory")
async def test_a_template_for_a_local_engine_takes_no_memory_of_the_server(closing):
    class Echo(FakeBackend):
        async def answer(self, request, call):
            return Completion(request.conversation.messages[-1].content)

    async def create(config):
        return Echo()

    block = {"model_name_or_path": "some-model"}
    service = closing(Service(Configuration({"backend": "hf", "backend_configs": {"hf": block}}), create=create))
    async with Client(create_server(service)) as client:
        talk = Talk(client)
        template = "{{ 'a' * (3 * 10 ** 9 if text == 'x' else 1) }}{{text}}"
        job = await talk("bulk_generate", prompts=["x", "y"], prompt=template)
        job_id = (await talk.ended(job.structured_content["job_id"]))["job_id"]
        first, second = (await talk("bulk_status", read="all", job_id=job_id)).structured_content["rows"]
    assert "more memory than the job has" in first["error"]["message"]
    assert second["answer"] == "ay"


@pytest.mark.rule("F20")
@pytest.mark.parametrize("backend", ["openai", "hf"])
async def test_the_rows_of_a_call_take_half_of_the_free_disk_at_most(closing, upstream, monkeypatch, backend):
    seen = []

    async def apart(_, step, job, note):
        seen.append(step.keywords["change"].disk_share)
        raise PromptmillError(Code.STORAGE, "The disk is full.")

    monkeypatch.setattr(child_step.OtherProcess, "__call__", apart)
    blocks = {"openai": {"base_url": upstream.url, "model_name": "m"}, "hf": {"model_name_or_path": "m"}}
    service = closing(Service(Configuration({"backend": backend, "backend_configs": blocks})))
    async with Client(create_server(service)) as client:
        with pytest.raises(ToolError, match="The disk is full"):
            await client.call_tool("bulk_generate", {"prompts": ["x"], "prompt": "{{text}}"})
    assert seen == [0.5]


@pytest.mark.rule("F8")
async def test_folders_that_the_operator_allows_replace_the_working_directory(bulk, work_folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    said = await bulk(top={"allowed_roots": [str(other)]})
    assert "outside the folders" in said
    (other / "in.jsonl").write_text("")
    assert (await bulk(str(other / "in.jsonl"), str(other / "out.jsonl"), top={"allowed_roots": [str(other)]}))[
        "job_id"
    ]


@pytest.mark.rule("F9")
@posix
def test_a_file_that_takes_the_name_meanwhile_stays_as_it_is(work_folder):
    partial = work_folder / ".out.partial"
    partial.write_text("answers")
    (work_folder / "out.jsonl").write_text("precious")
    with pytest.raises(PromptmillError, match="Another program made"):
        output.publish(partial, work_folder / "out.jsonl", may_replace=False)
    assert (work_folder / "out.jsonl").read_text() == "precious"


@pytest.mark.rule("F10")
@posix
def test_a_link_under_the_name_of_the_unfinished_output_is_not_followed(shell, work_folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    job = JobFolders.from_environ().of(work_folder / "out.jsonl")
    output.beside(work_folder / "out.jsonl", job.job_id).symlink_to(victim)
    done = shell()
    assert done.returncode == 0, done.stderr
    assert victim.read_text() == "precious"
    assert json.loads((work_folder / "out.jsonl").read_text())["answer"] == "echo: hi"
    assert not (work_folder / "out.jsonl").is_symlink()


@pytest.mark.rule("F11")
@posix
def test_a_folder_of_the_output_that_became_a_link_gets_nothing(tmp_path):
    inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
    inside.mkdir()
    elsewhere.mkdir()
    target = inside / "out.jsonl"
    (elsewhere / ".partial").write_text("answers")
    inside.rmdir()
    inside.symlink_to(elsewhere)
    with pytest.raises(PromptmillError, match="not the folder that it was"):
        output.publish(elsewhere / ".partial", target, may_replace=True)
    assert not (elsewhere / "out.jsonl").exists()


@pytest.mark.rule("F11")
@posix
def test_an_input_that_became_a_link_is_not_opened(work_folder, tmp_path):
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"prompt": "secret"}\n')
    (work_folder / "in.jsonl").unlink()
    (work_folder / "in.jsonl").symlink_to(secret)
    with pytest.raises(OutsideError):
        InputFiles([InputFile(work_folder / "in.jsonl")])


@pytest.fixture
def swapped(work_folder, tmp_path, monkeypatch):
    """Another process puts a link to a secret in the place of the input once a path to it has been resolved."""
    secret, given = tmp_path / "secret.jsonl", work_folder / "in.jsonl"
    secret.write_text('{"prompt": "secret"}\n')
    real = os.path.realpath

    def resolved(path, *arguments, **options):
        found = real(path, *arguments, **options)
        if str(path) == str(given) and not given.is_symlink():
            given.unlink()
            given.symlink_to(secret)
        return found

    monkeypatch.setattr(os.path, "realpath", resolved)
    return JobOrder(inputs=(given,), output=work_folder / "out.jsonl")


@pytest.fixture
def config(upstream):
    return Configuration(
        {"backend": "openai", "backend_configs": {"openai": {"base_url": upstream.url, "model_name": "m"}}}
    ).config


@pytest.mark.rule("F11")
@posix
def test_an_input_that_becomes_a_link_while_its_job_is_admitted_is_not_opened(swapped, config):
    with pytest.raises(PromptmillError, match="is not a regular file"):
        admission.admit(WantedJob(swapped, CallModels(config), JobFolders.from_environ()))
    of_call = WantedJob(swapped, CallModels(config), JobFolders.from_environ(), is_of_call=True)
    with pytest.raises(PromptmillError, match="became a link"):
        admission.admit(of_call)
    with pytest.raises(PromptmillError, match="became a link"):
        validation.check(of_call)


@pytest.mark.rule("F3")
@posix
def test_a_text_that_becomes_a_link_to_a_secret_in_the_same_folder_is_not_sent(work_folder, monkeypatch):
    (work_folder / ".env").write_text("hunter2")
    note = work_folder / "note.txt"
    note.write_text("a note")
    real = os.path.realpath

    def resolved(path, *arguments, **options):
        found = real(path, *arguments, **options)
        if str(path) == "note.txt":
            note.unlink()
            note.symlink_to(work_folder / ".env")
        return found

    monkeypatch.setattr(os.path, "realpath", resolved)
    asked = FileQuestion(JobPrompts(templates=("{{content}}",)))
    with pytest.raises(PromptmillError, match="is hidden"):
        list(WholeFiles(["note.txt"], FileRule((work_folder,)), asked).lines())


@pytest.mark.rule("F11")
@posix
def test_an_input_of_a_call_that_becomes_a_folder_is_not_read(work_folder, config):
    given = work_folder / "in.jsonl"
    given.unlink()
    given.mkdir()
    (given / "a.jsonl").symlink_to("/etc/hostname")
    (given / "b.jsonl").write_text('{"prompt": "hi"}\n')
    order = JobOrder(inputs=(given,), output=work_folder / "out.jsonl")
    with pytest.raises(PromptmillError, match="became a link or a folder"):
        admission.admit(WantedJob(order, CallModels(config), JobFolders.from_environ(), is_of_call=True))


@pytest.mark.rule("F26")
@pytest.mark.parametrize(
    ("name", "options"), [("s3://bucket/in.csv", {}), ("in.csv", {"sql": "select * from 'https://acme.com/in.csv'"})]
)
def test_the_door_fetches_nothing_for_a_call(tmp_path, name, options):
    models = Configuration({})
    with open_job(NamedRows([name]), tmp_path / "out.csv", options, models, JobFolders(tmp_path), caller=USER) as job:
        assert job.source is None
    with pytest.raises(PromptmillError):
        job.admit()


@pytest.mark.rule("F12")
def test_a_custom_id_is_no_path_either(shell, work_folder, tmp_path):
    odd = ["../../escaped", "/tmp/escaped", "a\0b", "..", "\x1b[2J"]
    body = {"messages": [{"role": "user", "content": "hi"}]}
    lines = [{"custom_id": one, "method": "POST", "url": "/v1/chat/completions", "body": body} for one in odd]
    (work_folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert shell().returncode == 0
    answers = [json.loads(line) for line in (work_folder / "out.jsonl").read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == odd
    assert {path.name for path in work_folder.iterdir()} == {"in.jsonl", "out.jsonl", ".promptmill"}
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]


@pytest.mark.rule("F12")
@pytest.mark.usefixtures("protocol")
async def test_what_somebody_writes_into_a_jobs_database_opens_no_other_file(serve, bulk, shell, work_folder, tmp_path):
    assert shell().returncode == 0
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"prompt": "hunter2"}\n')
    job = JobFolders.from_environ().of(work_folder / "out.jsonl")
    spec = sure(job.spec)
    inputs = {"path": secret, "size": secret.stat().st_size}
    for change in (
        spec.with_input(**inputs),
        spec.with_input(**inputs, format="messages"),
        spec.with_output(path=secret),
    ):
        job.open()
        job.put(spec=change)
        job.close()
        async with serve() as talk:
            assert "hunter2" not in str(
                (
                    await talk("bulk_status", read="all", job_id=spec.job_id),
                    await talk("bulk_status", job_id=spec.job_id),
                )
            ), change
    assert secret.read_text() == '{"prompt": "hunter2"}\n'


@pytest.mark.rule("F13")
@posix
def test_what_jobs_keep_is_for_this_user_alone(shell, work_folder):
    root = JobFolders.from_environ().root
    root.parent.mkdir(parents=True)
    root.parent.chmod(0o755)
    assert shell().returncode == 0
    assert stat.S_IMODE(root.parent.stat().st_mode) & 0o055, "what is above is left as it was"
    beside = work_folder / ".promptmill" / "out.jsonl.job"
    found = [root, *root.rglob("*"), beside, *beside.rglob("*")]
    assert len(found) > 4
    for path in found:
        bits = stat.S_IMODE(path.stat().st_mode)
        assert bits == (0o700 if path.is_dir() else 0o600), f"{path.name}: {bits:o}"


@pytest.mark.rule("F13")
@posix
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2775, 0o1777])
def test_users_who_share_a_folder_share_its_hidden_folder_and_no_job_in_it(shell, work_folder, mode):
    work_folder.chmod(mode)
    assert shell().returncode == 0
    hidden = work_folder / ".promptmill"
    assert stat.S_IMODE(hidden.stat().st_mode) == mode
    assert {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in hidden.iterdir() if path.is_dir()} == {
        "out.jsonl.job": 0
    }


@pytest.mark.rule("F13")
def test_prompts_and_answers_of_a_job_are_no_part_of_a_repository(shell, work_folder):
    assert shell().returncode == 0
    assert (work_folder / ".promptmill" / ".gitignore").read_text() == "*\n"


@pytest.mark.rule("F13")
@posix
def test_what_is_made_under_an_open_umask_can_be_changed_by_this_user_alone(tmp_path, monkeypatch):
    def convert(source, target):
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(PackageFile, "installed", lambda _: tmp_path)
    monkeypatch.setattr(PackageFile, "check", lambda *_: None)
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "cache" / "promptmill"))
    before = os.umask(0)
    try:
        disk.make_private_folder(tmp_path / "share" / "promptmill" / "jobs")
        AnswerCache(tmp_path / "cache" / "promptmill" / "answers.db").close()
        embedded_model.model_folder(lambda _: None, Conversion("1", "config.json", "no time", convert))
    finally:
        os.umask(before)
    found = list(tmp_path.rglob("*"))
    assert len(found) >= 7
    assert [path for path in found if path.stat().st_mode & 0o022] == []


@pytest.mark.rule("F13")
@posix
def test_a_state_folder_that_is_a_link_or_another_users_is_not_used(shell, work_folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "jobs").symlink_to(elsewhere)
    done = shell(environ={"PROMPTMILL_STATE": str(tmp_path / "state")})
    assert done.returncode == 2
    assert f"cannot be used: {tmp_path / 'state' / 'jobs'} is a link or another user's" in " ".join(done.stderr.split())
    assert not list(elsewhere.iterdir())
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError):
        disk.make_private_folder(tmp_path / "mine" / "jobs" / "a")


@pytest.mark.thorough
@pytest.mark.rule("F13")
@posix
@pytest.mark.parametrize("planted", ["job.db", "folder", "hidden", "owner"])
@pytest.mark.usefixtures("protocol")
async def test_a_job_folder_that_another_user_planted_is_not_read(
    serve, shell, work_folder, tmp_path, monkeypatch, planted
):
    assert shell("--prompt", "{{prompt}}").returncode == 0
    folder = work_folder / ".promptmill" / "out.jsonl.job"
    job = JobFolders.from_environ().of(work_folder / "out.jsonl")
    job_id, elsewhere = job.job_id, tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secrets.jsonl").write_text('{"prompt": "secret"}\n' * 2)
    async with serve() as talk:
        assert (await talk("bulk_status", read="all", job_id=job_id)).structured_content["rows"]
        if planted == "owner":
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        elif planted in {"folder", "hidden"}:
            link = folder if planted == "folder" else folder.parent
            link.rename(elsewhere / link.name)
            link.symlink_to(elsewhere / link.name)
        else:
            aside = (folder / planted).rename(elsewhere / planted)
            (folder / planted).symlink_to(aside)
        before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
        for use in USES:
            assert "There is no job" in await talk.error("bulk_status", job_id=job_id, **use)
        assert (await talk("bulk_status")).structured_content["jobs"] == []
        said = await talk.error("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        assert "is not this job's own output" in said
        (work_folder / "out.jsonl").unlink()
        said = await talk.error("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        wrong = {"folder": folder, "hidden": folder.parent, "owner": folder}.get(planted, folder / planted)
        assert f"cannot be used: {wrong} is a link or another user's. Its owner could" in said
        assert prune(JobFolders.from_environ(), 0, unfinished=True) == []
    assert {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")} == before


@pytest.mark.rule("F14")
@pytest.mark.usefixtures("protocol")
async def test_jobs_of_other_folders_are_not_shown(serve, shell, work_folder, tmp_path, monkeypatch):
    assert shell().returncode == 0
    job = JobFolders.from_environ().of(work_folder / "out.jsonl")
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    async with serve() as talk:
        for use in USES:
            assert "outside the folders" in await talk.error("bulk_status", job_id=job.job_id, **use)
        assert (await talk("bulk_status")).structured_content["jobs"] == []


@pytest.mark.rule("F15")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc to see open files by")
def test_the_prompts_of_a_large_call_are_in_no_file(upstream, tmp_path):
    code = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from driving import ask, opened
async def main():
    async with opened(sys.argv[2], num_workers=2, bulk_threshold=1) as backend:
        print("started", flush=True)
        await ask(backend, [f"private prompt {n}" for n in range(200)])
asyncio.run(main())
"""
    from replies import hang

    upstream.reply = hang()
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parents[1] / "support"), upstream.url],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    try:
        eventually(lambda: upstream.seen)
        assert not list(scratch.iterdir())
        opened = map(_target, Path(f"/proc/{process.pid}/fd").iterdir())
        assert not [path for path in opened if str(tmp_path) in path]
    finally:
        process.kill()
        process.communicate()
    assert not list(scratch.iterdir())


@pytest.mark.rule("F18")
@pytest.mark.usefixtures("protocol")
async def test_the_cache_is_its_users_alone_and_holds_no_prompt_and_no_key(serve, upstream, tmp_path):
    path = tmp_path / "cache" / "answers.sqlite"

    top = {"cache": str(path), "sampling_params": {"temperature": 0}}
    upstream.reply = answer("the answer")
    async with serve(top=top, api_key=KEY) as talk:
        assert [await talk.answers("private prompt") for _ in range(2)] == [["the answer"]] * 2
    assert len(upstream.seen) == 1
    kept = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"the answer" in kept
    assert b"private prompt" not in kept
    assert KEY.encode() not in kept
    if sys.platform != "win32":
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


@posix
@pytest.mark.rule("F18")
@pytest.mark.usefixtures("protocol")
async def test_a_link_or_a_folder_is_not_used_as_the_cache(serve, upstream, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to(elsewhere)
    folder.mkdir()
    for path in (link, folder):
        async with serve(top={"cache": str(path)}) as talk:
            assert "cannot be used" in await talk.error("generate", prompt_ls=["a"])
    assert elsewhere.read_text() == "precious"
    assert not upstream.seen


def _target(link):
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""
