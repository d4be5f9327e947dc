"""What an attacker may send, and the words that refuse it: one table, by the sentences of SECURITY.md."""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fakes import KEY
from pdf_files import pdf_of_texts
from planted import NAMES, ROWS, SECRET, VENDOR_KEY, plant
from talk import text

POSIX = sys.platform != "win32"
Row = tuple[str, dict[str, Any], str]
OUTSIDE, SUFFIX = "outside the folders that agents may use (`allowed_roots`", "use one of .jsonl"
HIDDEN, SECRETS, OURS = "is hidden", "may hold secrets", "belongs to promptmill"
NAMED = {
    **dict.fromkeys((".env.csv", ".claude/session.jsonl", "a/.git/x.csv", "./a/../.env.csv"), HIDDEN),
    **dict.fromkeys(("prod.env.csv", "Chrome Passwords.csv", "secrets/a.csv", "passwords.jsonl"), SECRETS),
    **dict.fromkeys(("lastpass_export.csv.gz", "api_keys.tsv", "passwords.csv"), SECRETS),
    "parameter.yaml.csv": OURS,
}
"""Names of files of rows."""
LINKED = ("link.jsonl", "above/", "a-", ".named")
"""What names a link, which only POSIX has here."""
LINKS = {"a-hidden": ".env.csv", "a-named": "prod.env.csv", "a-list": "passwords.csv", "a-folder": ".hidden"}
JOBS = ("..", "../..", "../../etc", "/etc", ".", "", "a/../../b", "a\0b", "a\nb", "x" * 5000)
ENCODINGS = ("cp037", "cp500", "utf-7", "utf-16-le", "utf-32-be", "punycode")
URLS = ("hf://datasets/acme/mails", "s3://bucket/a.csv", "postgres://h/d", "http://h/a.csv")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with secrets in it and next to it, and links to them; no test changes it."""
    around = tmp_path_factory.mktemp("around")
    path = plant(around / "project")
    (around / "in.jsonl").write_text(json.dumps({"prompt": SECRET}) + "\n")
    for name in NAMED:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        rows = json.dumps({"text": SECRET}) if ".jsonl" in name else ROWS
        (path / name).write_bytes(gzip.compress(rows.encode()) if name.endswith(".gz") else rows.encode())
    (path / ".hidden" / "in.csv").write_text(ROWS)
    if POSIX:
        (path / "link.jsonl").symlink_to(around / "in.jsonl")
        (path / "above").symlink_to(around)
        for name, target in LINKS.items():
            (path / name).with_suffix("" if target == ".hidden" else ".csv").symlink_to(path / target)
        (path / ".named").symlink_to(path / "readme.md")
    (path / "theirs.jsonl").write_text("precious")
    (path / "plain.png").write_text(f"{SECRET}\n" * 100)
    (path / "keys.csv").write_text(f"text\n{VENDOR_KEY}\n")
    (path / "fine.csv").write_text("text\n" + "fine\n" * 1_000_000 + f"{VENDOR_KEY}\n")
    (path / "export.csv").write_text(f"name,url,username,password\nmail,https://m.example,me,{SECRET}\n")
    (path / "export.jsonl").write_text(json.dumps({"login": {"username": "me", "password": SECRET}}))
    parquet.write_table(pa.table({"login": [{"username": "me", "password": SECRET}]}), path / "export.parquet")
    pdf_of_texts(path / "key.pdf", [f"password: {SECRET}"])
    with contextlib.closing(sqlite3.connect(path / "mails.db")) as database:
        database.execute("CREATE TABLE inbox (id, body)")
        database.commit()
    return path


@pytest.fixture
def folder(planted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a server."""
    monkeypatch.chdir(planted)
    return planted


def rows(source: str = "data.csv", target: str = "out.csv", **more: Any) -> tuple[str, dict[str, Any]]:
    """Return the call that reads and writes these files."""
    return "bulk_generate", {"input_file": source, "output_file": target, "prompt": "{{text}}", **more}


def files(*names: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """Return the call that sends these files."""
    return "bulk_generate", {"files": [*names], "prompt": "{{content}}", **more}


def image(name: str) -> tuple[str, dict[str, Any]]:
    """Return the call that sends this picture."""
    return "multimodal_generate", {"prompt_ls": ["x"], "multimodal_path": [[name]]}


def query(sql: str) -> tuple[str, dict[str, Any]]:
    """Return the call that asks about the rows of a query."""
    return rows("mails.db", sql=sql)


def reason(name: str) -> str:
    """Return why a planted file is refused."""
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return HIDDEN if is_hidden else OURS if "parameter.y" in name.lower() else SECRETS


REFUSED: dict[str, list[Row]] = {
    "F1": [(*image("plain.png"), "is not an image")],
    "F2": [(*image(name), OUTSIDE) for name in ("/etc/passwd", "/proc/self/environ", "/proc/self/maps")],
    "F8": [
        *((*rows(name), f"input_file is {OUTSIDE}") for name in ("../in.jsonl", "/etc/passwd", "{above}/in.jsonl")),
        *((*rows(name), f"input_file is {OUTSIDE}") for name in ("link.jsonl", "above/in.jsonl")),
        *((*rows(target=name), f"output_file is {OUTSIDE}") for name in ("../o.csv", "~/o.csv", "above/o.csv")),
        *((*files(name), OUTSIDE) for name in ("/etc/hosts", "/etc/*", "../*", "{above}/in.jsonl")),
        (*files("*/../../*"), "has `..` behind a pattern"),
        (*rows("notes.txt"), "others may be a program's; `files` sends whole texts"),
        *((*rows(target=name), SUFFIX) for name in ("a.py", "mine.md", "data.db#t")),
        (*rows(target="mine.doc"), "a .doc file; use one of .jsonl, .csv, .tsv, .parquet, .xlsx here."),
        (*rows(target="mine.ods"), "a .ods file; use one of .jsonl, .csv, .tsv, .parquet, .xlsx here."),
        *((*rows(name), "an invalid path") for name in ("data.csv\0", "data.csv\0.txt")),
    ],
    "F9": [(*rows(target="theirs.jsonl"), "is not this job's own output")],
    "F12": [
        ("bulk_status", {"job_id": job, **use}, "There is no job")
        for job in JOBS
        for use in ({}, {"read": "all"}, {"action": "cancel"})
    ],
    "F17": [
        *((*image(f"~{user}/x.png"), f"project/~{user}/x.png. Check the path") for user in ("root", "nobody-of-it")),
        ("bulk_status", {"job_id": "~nobody-of-it"}, "There is no job '~nobody-of-it'"),
    ],
    "F19": [
        *((*query(sql), "`sql` reads mails.db alone") for sql in ("attach 'o.db' as o", "vacuum into 'o.db'")),
        *((*query(sql), "readonly database") for sql in ("drop table inbox", "delete from inbox returning *")),
    ],
    "F21": [
        *((*files(name), reason(name)) for name, content in NAMES.items() if content == SECRET),
        *((*rows(name), word) for name, word in NAMED.items()),
        *((*rows(target=name), word) for name, word in NAMED.items()),
        *((*rows(target=f"new/{name}"), word) for name, word in NAMED.items() if "/" not in name),
        *(
            (*call, HIDDEN if "hidden" in link or "folder" in link else SECRETS)
            for link in ("a-hidden.csv", "a-named.csv", "a-list.csv", "a-folder/in.csv")
            for call in (rows(link), rows(target=link), files(link))
        ),
        (*files("a-*"), "2 files left out, as each may hold secrets: a-list.csv, a-named.csv"),
        (*files("a-folder"), HIDDEN),
        (*files(".named"), HIDDEN),
        ("bulk_generate", {"files": ".env", "prompt": "{{content}}"}, "`files`: .env is hidden"),
    ],
    "F22": [
        *((*files(name), SECRETS) for name, content in NAMES.items() if content != SECRET),
        (*files("key.pdf"), SECRETS),
        *(
            (*rows(f"export.{suffix}", prompt="{{ row }}"), f"{SECRETS}: its column 'password'")
            for suffix in ("csv", "jsonl", "parquet")
        ),
        *(
            (*call, "is not for calls; a call takes utf-16")
            for encoding in ENCODINGS
            for call in (files("notes.txt", encoding=encoding), rows("keys.csv", encoding=encoding))
        ),
        *((*rows("fine.csv", encoding=encoding), "has no byte-order mark") for encoding in ("utf-16", "U32")),
        *((*files("notes.txt", encoding=encoding), SECRETS) for encoding in ("utf-16", "U32")),
    ],
    "F26": [
        *((*rows(url), "input_file is a URL") for url in URLS),
        *((*rows(target=url), "output_file is a URL") for url in URLS),
        (*rows(sql="select content from read_text('/etc/passwd')"), "`sql` needs the name of a database"),
        *((*call(name), SUFFIX) for name in ("a.duckdb", "a.duckdb#t") for call in (rows, lambda to: rows(target=to))),
    ],
}


@pytest.mark.rule("F1")
@pytest.mark.rule("F2")
@pytest.mark.rule("F8")
@pytest.mark.rule("F9")
@pytest.mark.rule("F12")
@pytest.mark.rule("F17")
@pytest.mark.rule("F19")
@pytest.mark.rule("F21")
@pytest.mark.rule("F22")
@pytest.mark.rule("F26")
@pytest.mark.parametrize(
    "rule", [rule if POSIX or rule != "F8" else pytest.param(rule, marks=pytest.mark.skip("POSIX")) for rule in REFUSED]
)
@pytest.mark.usefixtures("protocol")
async def test_what_an_attacker_sends_is_refused(folder, serve, upstream, rule):
    before = sorted(folder.parent.rglob("*"))
    async with serve() as talk:
        for tool, arguments, said in REFUSED[rule]:
            if not POSIX and any(name in json.dumps(arguments) for name in LINKED):
                continue
            sent = json.loads(json.dumps(arguments).replace("{above}", str(folder.parent)))
            others: list[dict[str, Any]] = [{"again": "all"}] if tool == "bulk_generate" else []
            for more in ({}, *others, *([{"validate": True}] if rule == "F19" else [])):
                result = await talk(tool, **sent, **more)
                words = text(result)
                assert said in words, (tool, arguments)
                assert result.is_error or result.structured_content["errors"][0]["code"] == "invalid_image"
                assert not [word for word in (SECRET, KEY, VENDOR_KEY, "root:", "Traceback") if word in words]
        assert (await talk("bulk_status")).structured_content["jobs"] == []
    assert sorted(folder.parent.rglob("*")) == before
    assert (folder / "theirs.jsonl").read_text() == "precious"
    assert not upstream.seen
