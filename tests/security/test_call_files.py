"""What an agent with injected arguments gets of the files of this machine, in a folder with planted secrets."""

import base64
import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fakes import KEY, openai_configuration
from ingested import Ingested
from planted import HARMLESS, ROWS, SECRET, VENDOR_KEY, plant
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.files.files import InputFile, InputFiles
from promptmill.images.load import ImageRules, load_image
from promptmill.jobs.inputs.row_secrets import check, check_beginning
from promptmill.jobs.store.database import Work
from promptmill.system.call_files import FileRule, RefusedError, is_secret_name
from promptmill.system.safe_open import OutsideError
from replies import answer, by_prompt
from server_process import written
from talk import serving, text

posix = pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = plant(tmp_path / "project")
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def outcome(serve, upstream):
    """Call `bulk_generate` and wait for the end of its job; return its error or its last status."""

    async def called(**arguments):
        async with serve() as talk:
            result = await talk("bulk_generate", **arguments)
            if result.is_error:
                return text(result)
            return result.structured_content | await talk.ended(result.structured_content["job_id"])

    return called


def _sent(upstream):
    return "".join(json.dumps(seen.json) for seen in upstream.seen)


# Names and folders


@pytest.mark.rule("F21")
@pytest.mark.rule("F22")
@pytest.mark.usefixtures("protocol")
async def test_a_pattern_over_everything_sends_no_secret_and_names_what_it_leaves_out(folder, outcome, upstream):
    found = await outcome(files=["*", "**/*", "."], prompt="{{path}}: {{content}}")
    assert found["files"] == len(HARMLESS)
    assert SECRET not in _sent(upstream)
    assert KEY not in _sent(upstream)
    (count, names) = next(
        (one.split(" files left out")[0], one) for one in found["left_out"] if "may hold secrets" in one
    )
    assert int(count) > 20
    assert "docker-compose.yml" in names


@pytest.mark.rule("F21")
@posix
@pytest.mark.usefixtures("protocol")
async def test_the_configuration_is_no_file_of_calls_by_any_name(tmp_path, monkeypatch, upstream):
    config = written(tmp_path, upstream.url, api_key="a-word-of-eighteen")
    work = tmp_path / "work"
    work.mkdir()
    config.rename(work / "settings.yaml")
    config = work / "settings.yaml"
    os.link(config, work / "hard.txt")
    (work / "soft.txt").symlink_to(config)
    monkeypatch.chdir(work)
    async with serving(Configuration.load(config)) as talk:
        for name in ("settings.yaml", "hard.txt", "soft.txt", str(config), "../work/settings.yaml", config.as_uri()):
            said = await talk.error("bulk_generate", files=[name], prompt="{{content}}")
            assert "api_key" not in said
        found = await talk.error("bulk_generate", files=["**"], prompt="{{content}}")
        assert "3 files left out, as each belongs to promptmill itself" in found
    assert not upstream.seen


@pytest.mark.rule("F21")
@pytest.mark.usefixtures("protocol")
async def test_the_folder_of_jobs_is_no_folder_of_calls(tmp_path, monkeypatch, serve, upstream):
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    async with serve(top={"max_call_s": 0.001}) as talk:
        await talk("generate", prompt_ls=["the prompt of another client"])
        (database,) = (tmp_path / "state" / "jobs").glob("call-*/job.db")
        for name in ("state/**", "state/jobs/*/job.db", str(database)):
            said = await talk.error("bulk_generate", files=[name], prompt="{{content}}")
            assert "belongs to promptmill itself" in said
    assert len(upstream.seen) <= 1


@pytest.mark.rule("F21")
@pytest.mark.parametrize(
    "name",
    [
        *(
            ".env",
            ".ENV",
            ".Env.Local",
            "e\u200cnv",
            "\u200d.env",
            "\uff0eenv",
            ".env ",
            ".env.",
            "x.ENV.csv",
            "ID_RSA",
        ),
        *("id_rsa.pub", "Secrets.JSON", "Server.Key", "my_PASSWORDS.csv.gz", "1Password.csv", "aws_credentials.jsonl"),
        *("client_secret_1-" + "a" * 40 + ".apps.googleusercontent.com.json", "terraform.tfstate.backup"),
        *("terraform.tfvars.json", "bob_accessKeys.csv", "credentials.bak", "secrets.yaml.old", "prod.env.bak"),
        *("credentials.json~", "vault_password", "passwords.xlsx", "github_token.txt", "secrets.py"),
        "ADMIN.kubeconfig",
    ],
)
def test_usual_names_of_secrets_are_refused_in_any_spelling(tmp_path, name):
    with pytest.raises(RefusedError):
        FileRule((tmp_path,), is_guarded=True).check(tmp_path / name)


@pytest.mark.rule("F21")
@pytest.mark.parametrize(
    "name", ["environment.csv", "keynote.csv", "tokens_per_second.csv", "patient_history.csv", "a.csv"]
)
def test_ordinary_names_are_no_secrets(tmp_path, name):
    assert not is_secret_name(name)
    FileRule((tmp_path,), is_guarded=True).check(tmp_path / "data" / name)


@pytest.mark.rule("F21")
@pytest.mark.parametrize("name", [".env::$DATA", ".env:x.csv", ".env. .", "ID_RSA::$DATA"])
def test_on_windows_the_streams_of_a_file_are_the_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(RefusedError):
        FileRule((tmp_path,), is_guarded=True).check(tmp_path / name)


@pytest.mark.rule("F21")
def test_a_hidden_folder_that_the_operator_allows_is_a_root(tmp_path):
    rule = FileRule((tmp_path, tmp_path / ".cache" / "data"), is_guarded=True)
    rule.check(tmp_path / ".cache" / "data" / "a.csv")
    for name in (".cache/a.csv", ".cache/data/.x/a.csv"):
        with pytest.raises(RefusedError, match="is hidden"):
            rule.check(tmp_path / name)


@pytest.mark.rule("F2")
@pytest.mark.rule("F21")
@pytest.mark.parametrize("scheme", ["path", "file"])
@pytest.mark.usefixtures("protocol")
async def test_the_roots_and_names_hold_for_images_in_every_place(tmp_path, monkeypatch, serve, upstream, scheme):
    work = tmp_path / "work"
    (work / ".private").mkdir(parents=True)
    refused = [tmp_path / "outside.png", work / ".private" / "a.png", work / ".a.png", work / "passwords.png"]
    for path in (*refused, work / "a.png"):
        Image.new("RGB", (4, 4)).save(path)
    monkeypatch.chdir(work)
    async with serve() as talk:
        for path in refused:
            name = path.as_uri() if scheme == "file" else str(path)
            message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": name}}]}
            for tool, arguments in (
                ("multimodal_generate", {"prompt_ls": ["x"], "multimodal_path": [[name]]}),
                ("generate", {"prompt_ls": [message]}),
                ("multiturn_generate", {"messages": [message]}),
            ):
                result = await talk(tool, **arguments)
                assert result.structured_content["errors"][0]["code"] == "invalid_image", (tool, name)
            job = await talk("bulk_generate", prompts=[{"prompt": "x", "images": [name]}])
            assert (await talk.ended(job.structured_content["job_id"]))["errors"] == {"invalid_image": 1}
        assert not upstream.seen
        fine = await talk("multimodal_generate", prompt_ls=["x"], multimodal_path=[["a.png"]])
        assert fine.structured_content["ans_ls"] == ["echo: x"]


@pytest.mark.rule("F3")
@pytest.mark.rule("F21")
@posix
def test_a_picture_that_becomes_a_link_to_a_hidden_one_is_not_read(tmp_path, monkeypatch):
    for name in ("a.png", ".b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    real = os.open

    def swapped(path, *arguments, **options):
        (tmp_path / "a.png").unlink()
        (tmp_path / "a.png").symlink_to(tmp_path / ".b.png")
        monkeypatch.setattr(os, "open", real)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(PromptmillError, match="is hidden"):
        load_image(str(tmp_path / "a.png"), ImageRules(FileRule((tmp_path,), is_guarded=True)))


# Contents


def _table(path, columns):
    parquet.write_table(pa.table(columns), path)


def _of_rows(path, secret):
    """Write a file of rows with `secret` in its middle, in the format that the path names."""
    rows = [{"text": f"an ordinary text {number}"} for number in range(1000)]
    rows[500]["text"] = f"a text with {secret} in it"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    match path.suffixes:
        case [".csv"]:
            path.write_text("text\n" + "".join(f'"{row["text"]}"\n' for row in rows))
        case [".tsv"]:
            path.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
        case [".jsonl", ".gz"]:
            path.write_bytes(gzip.compress(lines))
        case [".parquet"]:
            _table(path, {"text": [row["text"] for row in rows]})
        case _:
            path.write_bytes(lines)
    return path


@pytest.mark.rule("F22")
@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, KEY) for name in ("in.csv", "in.tsv", "in.jsonl", "in.jsonl.gz", "in.parquet")),
        ("in.csv", VENDOR_KEY),
        ("in.parquet", "postgres://me:hunter2@db.example/shop"),
    ],
)
async def test_no_row_of_a_file_with_a_key_is_sent(folder, outcome, upstream, name, secret):
    _of_rows(folder / name, secret)
    for more in ({}, {"validate": True}, {"limit": 1}):
        found = await outcome(input_file=name, output_file="out.jsonl", prompt="{{text}}", **more)
        said = found if isinstance(found, str) else found["reason"]
        assert f"{name} may hold secrets" in said, found
        assert secret not in said
    assert not upstream.seen


@pytest.mark.thorough
@pytest.mark.rule("F22")
@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
async def test_a_key_behind_the_beginning_of_a_large_file_stops_its_job_before_the_first_request(
    folder, outcome, upstream, name
):
    text_ = "an ordinary text of some length " * 30
    rows = [{"text": text_} for _ in range(6000)]
    rows[-1]["text"] = f"{KEY}"
    if name == "in.parquet":
        _table(folder / name, {"text": [row["text"] for row in rows]})
    elif name == "in.csv":
        (folder / name).write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = await outcome(input_file=name, output_file="out.jsonl", prompt="{{text}}", limit=5)
    assert (found["state"], found["done"]) == ("stopped", 0)
    assert "may hold secrets: a key of this server in row 6000" in found["reason"]
    assert not upstream.seen


@pytest.mark.rule("F22")
@pytest.mark.usefixtures("protocol")
async def test_a_template_that_takes_a_key_apart_gets_no_key(folder, outcome, upstream):
    _of_rows(folder / "in.csv", KEY)
    template = "{% for letter in text %}{{ letter }} {% endfor %}"
    found = await outcome(input_file="in.csv", output_file="out.jsonl", prompt=template)
    assert "may hold secrets" in found
    (folder / "note.txt").write_text(f"the key {KEY}")
    assert "may hold secrets" in await outcome(files=["note.txt"], prompt="{{ content[:4] }} {{ content[4:] }}")
    assert not upstream.seen


@pytest.mark.rule("F22")
@pytest.mark.usefixtures("protocol")
async def test_an_error_about_columns_quotes_no_secret(folder, serve):
    """Without a header, the first row of a file is its columns."""
    (folder / "no_header.csv").write_text(f"me,{KEY}\n")
    (folder / "no_prompt.jsonl").write_text(json.dumps({KEY: "x"}) + "\n")
    async with serve() as talk:
        for name in ("no_header.csv", "no_prompt.jsonl"):
            for more in ({}, {"prompt_column": "x"}, {"prompt": "{{x}}"}):
                said = await talk.error("bulk_generate", input_file=name, output_file="out.jsonl", **more)
                assert KEY not in said
                assert "may hold secrets" in said


KINDS = {
    "nested": pa.array([[{"a": [KEY]}]]),
    "dictionary": pa.array([KEY]).dictionary_encode(),
    "binary": pa.array([KEY.encode()]),
    "large": pa.array([KEY], pa.large_string()),
    "map": pa.array([[("k", KEY)]], pa.map_(pa.string(), pa.string())),
    "key of a map": pa.array([[(KEY, 1)]], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"a": {"b": KEY}}]),
    "list": pa.array([[KEY]], pa.large_list(pa.string())),
    "fixed": pa.array([KEY.encode()], pa.binary(len(KEY))),
    "word before": pa.array(["word", KEY]).slice(1),
}


def _check(folder, rule):
    """Check the rows of `a.parquet`."""
    job = Ingested(folder, "a.parquet", templates=("{{number}}",))
    try:
        check(job.store, job.spec.input, rule, Work())
    finally:
        job.close()


@pytest.mark.rule("F22")
@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_found_in_every_column_of_parquet(tmp_path, kind):
    path, rule = tmp_path / "a.parquet", FileRule((tmp_path,), is_guarded=True, secrets=(KEY,))
    _table(path, {"number": [1], "column": KINDS[kind]})
    with pytest.raises(PromptmillError, match="a key of this server in row 1"):
        _check(tmp_path, rule)
    _table(path, {"number": [1, None], "column": [None, "fine"]})
    _check(tmp_path, rule)


@pytest.mark.rule("F22")
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_key_is_found_in_other_encodings(tmp_path, encoding):
    path, rule = tmp_path / "a.csv", FileRule((tmp_path,), is_guarded=True, secrets=(KEY,))
    path.write_bytes(f"text\n{KEY}\n".encode(encoding))
    with pytest.raises(PromptmillError, match="a key of this server"):
        check_beginning(InputFiles([InputFile(path)]), rule)


@pytest.mark.rule("F22")
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift_jis", "utf-16", "utf-32", "utf-8-sig"])
async def test_a_call_reads_usual_encodings(folder, outcome, encoding):
    (folder / "other.csv").write_text("text\ntea\n", encoding=encoding)
    given = {"prompt": "{{text}}", "output_file": "out.csv", "input_file": "other.csv"}
    assert (await outcome(**given, encoding=encoding))["done"] == 1


@pytest.mark.rule("F22")
def test_a_key_is_found_at_the_beginning_of_each_file(tmp_path):
    parts = [InputFile(tmp_path / f"{at}.csv") for at in range(3)]
    for part in parts:
        part.path.write_text("text\nfine\n")
    check_beginning(InputFiles(parts), rule := FileRule((tmp_path,), is_guarded=True, secrets=(KEY,)))
    parts[2].path.write_text(f"text\n{KEY}\n")
    with pytest.raises(PromptmillError, match=r"2\.csv may hold secrets: a key of this server in line 2"):
        check_beginning(InputFiles(parts), rule)


HEADERS = {"X-Gateway-Key": "gateway0word", "Cookie": "session=cookie-value-123; x=y", "X-Title": "My ordinary title"}


@pytest.mark.rule("F22")
@pytest.mark.usefixtures("protocol")
async def test_own_keys_are_those_of_all_models_headers_and_the_environment(folder, upstream, monkeypatch):
    monkeypatch.setenv("OTHER_API_KEY", "environment-key-1")
    monkeypatch.setenv("SOME_TOKEN", "environment-token-1")
    monkeypatch.setenv("A_KEY_FILE", "/a/path/that/is/no/key1")
    block = {"base_url": upstream.url, "model_name": "m", "api_key": ["first-own-key-1", "second-own-key-1"]}
    raw = {
        "backend": "openai",
        "backend_configs": {"openai": {**block, "headers": HEADERS}},
        "models": {"other": {"openai": {**block, "api_key": "others-own-key-1"}}},
    }
    secrets = ["first-own-key-1", "second-own-key-1", "others-own-key-1", "gateway0word", "cookie-value-123"]
    secrets += ["environment-key-1", "environment-token-1"]
    async with serving(Configuration(raw)) as talk:
        for secret in secrets:
            (folder / "note.txt").write_text(f"The word {secret}.")
            said = await talk.error("bulk_generate", files=["note.txt"], prompt="{{content}}")
            assert "may hold secrets: a key of this server" in said
            assert secret not in said
        for word in ("My ordinary title", "/a/path/that/is/no/key1", "OTHER_API_KEY"):
            (folder / "note.txt").write_text(f"The words {word}.")
            found = await talk("bulk_generate", files=["note.txt"], prompt="{{content}}", validate=True)
            assert not found.is_error


@pytest.mark.rule("F22")
@pytest.mark.usefixtures("protocol")
async def test_a_page_of_the_operators_own_job_shows_no_row_with_secrets(folder, serve, upstream):
    """The operator may answer any file in a shell; a client that reads the answers gets no password of its rows."""
    from promptmill.jobs.manage.bulk_call import bulk_async

    rows = [{"prompt": "a", "password": "hunter2"}, {"prompt": f"b {VENDOR_KEY}"}, {"prompt": "c", "id": 3}]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "parameter.yaml").unlink()
    await bulk_async(folder / "in.jsonl", folder / "out.jsonl", base_url=upstream.url, model="m")
    async with serve() as talk:
        (job,) = (await talk("bulk_status")).structured_content["jobs"]
        page = await talk("bulk_status", read="all", job_id=job["job_id"], with_input=True)
        answers = await talk.client.read_resource(f"promptmill://jobs/{job['job_id']}/answers")
    for said in (str(page.structured_content["rows"]), answers[0].text):
        assert "hunter2" not in said
        assert said.count("may hold secrets") == 2
    assert page.structured_content["rows"][2]["id"] == 3


# Roots


@pytest.mark.rule("F23")
@pytest.mark.parametrize("place", ["root", "home", "above home"])
@pytest.mark.usefixtures("protocol")
async def test_a_server_in_a_folder_that_holds_everything_allows_no_file(tmp_path, monkeypatch, serve, upstream, place):
    home = tmp_path / "people" / "me"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    place = {"root": Path(home.anchor), "home": home, "above home": home.parent}[place]
    monkeypatch.chdir(place)
    (home / "in.csv").write_text("text\na\n")
    Image.new("RGB", (4, 4)).save(home / "a.png")
    async with serve() as talk:
        for asked in (
            {"input_file": str(home / "in.csv"), "output_file": str(home / "out.csv")},
            {"files": [str(home / "in.csv")]},
        ):
            said = await talk.error("bulk_generate", **asked, prompt="{{text}}")
            assert f"set `allowed_roots`; {place}, where the server started, holds too much" in said
            assert "inside" not in said
        result = await talk("multimodal_generate", prompt_ls=["x"], multimodal_path=[[str(home / "a.png")]])
        assert "set `allowed_roots`" in result.structured_content["errors"][0]["message"]
        assert (await talk.answers("no file")) == ["echo: no file"]
    upstream.seen.clear()
    async with serve(top={"allowed_roots": [str(home)]}) as talk:
        named = await talk("bulk_generate", files=[str(home / "in.csv")], prompt="{{content}}", validate=True)
        assert named.structured_content["rows"] == 1


@pytest.mark.thorough
@pytest.mark.rule("F2")
@pytest.mark.rule("F8")
@pytest.mark.rule("F21")
@pytest.mark.parametrize("place", ["root", "home"])
@pytest.mark.usefixtures("protocol")
async def test_a_relative_name_is_below_the_only_root_of_a_server_that_a_desktop_program_started(
    tmp_path, monkeypatch, serve, upstream, place
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "in.csv").write_text("text\nof another folder\n")
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "in.csv").write_text("text\nours\n")
    (root / "sub" / "a.txt").write_text("a text")
    (root / ".env.csv").write_text(ROWS)
    Image.new("RGB", (4, 4)).save(root / "a.png")
    monkeypatch.chdir(tmp_path if place == "home" else tmp_path.anchor)
    asked = {"output_file": "sub/out.csv", "prompt": "{{text}}"}
    async with serve(top={"allowed_roots": [str(root)]}) as talk:
        begun = (await talk("bulk_generate", input_file="in.csv", **asked)).structured_content
        assert (await talk.ended(begun["job_id"]))["output_file"] == str(root / "sub" / "out.csv")
        assert "ours" in (root / "sub" / "out.csv").read_text()
        assert (await talk("bulk_status", job_id="sub/out.csv")).structured_content["done"] == 1
        for names in (["sub/a.txt"], ["sub/*.txt"], ["**/*.txt"]):
            found = await talk("bulk_generate", files=names, prompt="{{content}}", validate=True)
            assert found.structured_content["rows"] == 1
        result = await talk("multimodal_generate", prompt_ls=["x"], multimodal_path=[["a.png"]])
        assert "errors" not in result.structured_content
        for name, problem in (
            ("../in.csv", "is outside"),
            (str(tmp_path / "in.csv"), "is outside"),
            (".env.csv", "is hidden"),
            ("a\0.csv", "an invalid path"),
        ):
            assert problem in await talk.error("bulk_generate", input_file=name, **asked)
            assert problem in await talk.error("bulk_generate", files=[name], prompt="{{content}}")
    assert not [seen for seen in upstream.seen if SECRET in str(seen.json) or "another folder" in str(seen.json)]


@pytest.mark.rule("F8")
@pytest.mark.usefixtures("protocol")
async def test_a_relative_name_outside_several_roots_is_refused_with_the_whole_path_to_use(
    tmp_path, monkeypatch, serve
):
    roots = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.chdir(tmp_path.anchor)
    async with serve(top={"allowed_roots": [*map(str, roots)]}) as talk:
        said = await talk.error("bulk_generate", input_file="in.csv", output_file="out.csv", prompt="{{text}}")
    assert f"Name its whole path, such as {roots[0] / 'in.csv'}, or" in said
    assert '`allowed_roots: ["/the/whole/path"]`' in said


@posix
@pytest.mark.rule("F23")
@pytest.mark.usefixtures("protocol")
async def test_a_server_whose_folder_was_removed_answers_and_allows_no_file(tmp_path, monkeypatch, serve):
    (tmp_path / "gone").mkdir()
    (tmp_path / "in.csv").write_text("text\na\n")
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    async with serve() as talk:
        assert await talk.answers("no file") == ["echo: no file"]
        for name in (str(tmp_path / "in.csv"), "in.csv"):
            for source in ({"files": [name]}, {"input_file": name, "output_file": "out.csv"}):
                assert "none: set `allowed_roots`" in await talk.error("bulk_generate", **source, prompt="{{text}}")
        result = await talk("multimodal_generate", prompt_ls=["x"], multimodal_path=[[str(tmp_path / "in.csv")]])
        assert "none: set `allowed_roots`" in text(result)


# The operator's own programs


@pytest.mark.rule("F24")
@pytest.mark.usefixtures("protocol")
async def test_the_operators_own_programs_use_any_file(tmp_path, monkeypatch, upstream):
    from promptmill.jobs.manage.bulk_call import bulk_async

    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    picture = tmp_path / ".a.png"
    Image.new("RGB", (4, 4)).save(picture)
    source = tmp_path / ".env.jsonl"
    source.write_text(json.dumps({"prompt": f"password {VENDOR_KEY}", "images": [str(picture)]}) + "\n")
    result = await bulk_async(source, tmp_path / ".out.jsonl", base_url=upstream.url, model="m")
    assert result.status["failed"] == 0
    assert VENDOR_KEY in _sent(upstream)
    raw = {"backend": "openai", "backend_configs": {"openai": {"base_url": upstream.url, "model_name": "m"}}}
    async with serving(Configuration(raw, trust_client=True)) as talk:
        found = await talk("multimodal_generate", prompt_ls=["x"], multimodal_path=[[str(picture)]])
        assert found.structured_content["ans_ls"] == ["echo: x"]
        (work / ".in.csv").write_text(f"text\n{VENDOR_KEY}\n")
        job = await talk("bulk_generate", input_file=".in.csv", output_file="out.csv", prompt="{{text}}", validate=True)
        assert job.structured_content["rows"] == 1
    png = base64.b64encode(picture.read_bytes()).decode()
    assert png in _sent(upstream)


@pytest.mark.rule("F5")
def test_a_refused_name_tells_nothing_about_files_that_are_there(tmp_path):
    rule = FileRule((tmp_path / "in",), is_guarded=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".env").write_text("x")

    def refusal(name):
        with pytest.raises((OutsideError, RefusedError)) as caught:
            rule.open(tmp_path / "in" / name)
        return str(caught.value)

    assert refusal(".env") == refusal(".env2") == "is hidden"


@pytest.mark.rule("F22")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    "page", ["<pre>db:\n  password: hunter22x9secret\n</pre>", "<password>hunter22x9secret</password>"]
)
async def test_a_web_page_with_a_password_is_not_sent_in_any_encoding(upstream, tmp_path, monkeypatch, encoding, page):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.html").write_bytes(f"<html><body>{page}</body></html>".encode(encoding))
    async with serving(openai_configuration(upstream.url)) as talk:
        await talk.error("bulk_generate", files=["page.html"], prompt="{{content}}")
    assert not upstream.seen


def text_of(resource: Any) -> str:
    return str(resource.text)


@pytest.mark.rule("F22")
@pytest.mark.parametrize(
    "said",
    [
        "it is sk-proj-0123456789abcdefghij",
        '{"password": "hunter22"}',
        '{"a": [{"b": "ghp_0123456789abcdefghijABCDEFGHIJ012345"}]}',
    ],
)
@pytest.mark.usefixtures("protocol")
async def test_a_key_in_an_answer_is_withheld_from_pages_and_the_resource(upstream, tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    upstream.reply = by_prompt({"row 1": answer(said)}, answer())
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(3)))
    async with serving(openai_configuration(upstream.url)) as talk:
        job_id = (await talk("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")).structured_content[
            "job_id"
        ]
        await talk.ended(job_id)
        for read in ("all", "answers"):
            rows = (await talk("bulk_status", read=read, job_id=job_id)).structured_content["rows"]
            assert [row["answer"] for row in rows] == ["echo: row 0", None, "echo: row 2"]
            assert "may hold secrets" in rows[1]["left_out"]
        (resource,) = await talk.client.read_resource(f"promptmill://jobs/{job_id}/answers")
        assert json.dumps(said)[1:-1] not in text_of(resource)
        assert "may hold secrets" in text_of(resource)
    assert said in [json.loads(line)["answer"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]


@pytest.mark.rule("F22")
@pytest.mark.parametrize("said", ["sk-proj-0123456789abcdefghij", '{"password": "hunter22"}'])
@pytest.mark.usefixtures("protocol")
async def test_a_key_that_several_answers_have_is_withheld_from_their_counts(upstream, tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    upstream.reply = by_prompt({"row 1": answer("yes")}, answer(said))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(4)))
    async with serving(openai_configuration(upstream.url)) as talk:
        made = await talk("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        ended = await talk.ended(made.structured_content["job_id"])
        assert ended["results"]["values"] == {"yes": 1, "(withheld)": 3}
