"""Every promptmill command that README and docs show is run, against an endpoint on loopback or the embedded model.

Names that stand for the reader's own are filled in; what cannot run here is named with the reason, and parsed all the
same (tests/test_pages.py).
"""

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import wave
from contextlib import closing
from typing import Any

import duckdb
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_server import BatchServer
from decision_replies import decides
from dialect_replies import speaks
from embedding import embeddings
from fakes import KEY
from hidden_topics import models as topic_models
from hidden_topics import table as topic_table
from pages import PAGES, ROOT, commands
from pdf_files import pdf_of_texts
from replies import answer, choose

pytestmark = pytest.mark.features
NOT_RUN = {
    "--backend vllm": "needs vLLM; its own tests run it",
    "s3://": "needs a bucket; tests/jobs have a store on loopback",
    "hf://": "needs the Hub; tests/jobs have one on loopback",
    "postgres://": "needs an extension that DuckDB downloads",
    "install ultrarag CHECKOUT": "needs a checkout of UltraRAG; tests/features/install makes one",
    "serve --http": "serves until it is ended; tests/http have servers that end",
    "jobs --watch": "a board until Ctrl-C; tests/cli have one that ends",
}
ICON = ROOT / "src" / "promptmill" / "server" / "icon.png"
_MAC = "Library/Application Support/"
SHOWN = sorted({shlex.join(words) for page in PAGES for words in commands(page)})
RUN = [command for command in SHOWN if not any(part in command for part in NOT_RUN)]


@pytest.fixture
def batches(command):
    family = "anthropic" if "--provider anthropic" in command else "openai"
    with BatchServer(family, choices="positive,negative" if "--choices" in command else "") as server:
        yield server


def _first_answers(wanted):
    """Return an answer with the first value that each field may have."""
    fields = wanted["json_schema"]["schema"]["properties"] if wanted else {}
    return json.dumps({name: field.get("enum", [None])[0] for name, field in fields.items()})


def test_every_reason_not_to_run_a_command_is_of_one_that_is_shown():
    assert all(any(part in command for command in SHOWN) for part in NOT_RUN)


@pytest.mark.thorough
@pytest.mark.parametrize("command", RUN)
def test_a_command_of_a_page_does_what_it_is_shown_for(command, tmp_path, upstream, request):
    def run(*words):
        environment = os.environ | {
            "OPENAI_API_KEY": KEY,
            "MISTRAL_API_KEY": KEY,
            "ANTHROPIC_API_KEY": KEY,
            "PROMPTMILL_CONFIG": "",
            "BROWSER": "true",
        }
        if words[0] == "install":  # into the files of clients that were started once
            environment |= dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "XDG_CONFIG_HOME"), str(tmp_path))
            for file in (".claude.json", *(f"{folder}Claude/claude_desktop_config.json" for folder in ("", _MAC))):
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).write_text("{}")
        of_output = command == "jobs topics.csv"  # jobs beside an output are found by it
        state = {"XDG_STATE_HOME": str(tmp_path)} if of_output else {"PROMPTMILL_STATE": str(tmp_path / "state")}
        trust = ["--trust"] if words[0] == "run" else []  # without a terminal, no question is asked
        return subprocess.run(
            [sys.executable, "-m", "promptmill", *words, *trust],
            cwd=tmp_path,
            env={**environment, "PROMPTMILL_STATE": "", **state},
            input="1\n" + upstream.url + "\ntest-model\n" if words[0] == "init" else "",
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    block = {"base_url": upstream.url, "model_name": "test-model", "files": ["pdf", "audio"]}
    if not command.startswith("init"):
        (tmp_path / "parameter.yaml").write_text(
            json.dumps({"backend": "openai", "backend_configs": {"openai": block}})
        )
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {row}"}}\n' for row in range(20)))
    (tmp_path / "reviews.csv").write_text("text\ngood\nbad\n")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    if command.startswith("improve"):
        labelled = (f"review {row},{('positive', 'negative')[row % 2]}\n" for row in range(120))
        (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(labelled))
    elif command.startswith("topics"):
        (tmp_path / "reviews.csv").write_text("text\n" + "".join(f"{row['text']}\n" for row in topic_table(60)))
        upstream.reply = topic_models()
    elif "--gold label" in command:
        (tmp_path / "reviews.csv").write_text("text,label\n" + "good,positive\n" * 240)  # upstream's only answer
    elif "--group-by hotel" in command:
        (tmp_path / "reviews.csv").write_text("hotel,text\nAstoria,good\nBellevue,bad\nAstoria,loud\n")
    if "--choices topics.csv" in command:
        (tmp_path / "topics.csv").write_text("label,definition,share\nnoise,it was loud,0.6\nother,,0.4\n")
    if not command.startswith("improve"):
        (tmp_path / "reviews-prompt.txt").write_text("Classify: {{text}}\n")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"question": ["one", "two"]}), tmp_path / "data" / "a.parquet")
    body = {"model": "m", "messages": [{"role": "user", "content": "Say yes"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "batch.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "FILE").write_text('{"type": "string"}')
    (tmp_path / "orders.txt").write_text("2 kg of apples for Anna, please.\n")
    claims = {"type": "array", "items": {"type": "string"}}
    (tmp_path / "claims.json").write_text(json.dumps({"type": "object", "properties": {"claims": claims}}))
    (tmp_path / "mails.csv").write_text("id,body\n1,My parcel is late and broken.\n2,Thank you!\n")
    (tmp_path / "names.csv").write_text("name\nJane Doe\n")
    (tmp_path / "my_masks.py").write_text("def people(text):\n    return []\n")
    (tmp_path / "order.json").write_text('{"type": "object", "properties": {"item": {"type": "string"}}}')
    (tmp_path / "pictures").mkdir()
    shutil.copyfile(ICON, tmp_path / "pictures" / "taxi.png")
    (tmp_path / "pictures.csv").write_text("id,path\n1,pictures/taxi.png\n")
    (tmp_path / "definitions.csv").write_text("label,definition\nfood,the dishes\nservice,the waiters\n")
    for name in ("17", "18"):
        (tmp_path / "invoices").mkdir(exist_ok=True)
        pdf_of_texts(tmp_path / "invoices" / f"2026-{name}.pdf", [f"Invoice 2026-{name}"])
    (tmp_path / "calls").mkdir()
    with wave.open(str(tmp_path / "calls" / "a.wav"), "wb") as recording:
        recording.setparams((1, 2, 8000, 8, "NONE", ""))
        recording.writeframes(bytes(16))
    if "--audio-column" in command:
        (tmp_path / "calls.csv").write_text("customer,recording\nAnn,calls/a.wav\n")
    (tmp_path / "contracts").mkdir()
    pdf_of_texts(tmp_path / "contracts" / "small.pdf", ["Ann pays 128.50"])
    pdf_of_texts(tmp_path / "a.pdf", ["Invoice R-7"])
    book = openpyxl.Workbook()
    book.active.title = "Mails"
    for row in (["id", "mail body"], [1, "My parcel has not arrived."], [2, "You charged me twice."]):
        book.active.append(row)
    book.save(tmp_path / "mails.xlsx")
    (tmp_path / "archive").mkdir()
    table = pa.table({"id": [1, 2], "body": ["Where is my parcel?", "I paid twice."], "lang": ["de", "de"]})
    for name in ("archive/1.parquet", "mails.parquet"):
        pq.write_table(table, tmp_path / name)
    (tmp_path / "questions.csv").write_text("document,question\nLeave is 30 days.,How long is leave?\n")
    (tmp_path / "customers.csv").write_text("id,name\n1,Ann\n2,Bob\n")
    with duckdb.connect(str(tmp_path / "mails.duckdb")) as database:
        database.execute("CREATE TABLE inbox AS SELECT 1 AS id, 'Where is my parcel?' AS body")
    with closing(sqlite3.connect(tmp_path / "mails.db")) as database:
        database.execute("CREATE TABLE inbox (id INTEGER PRIMARY KEY, body TEXT)")
        database.executemany("INSERT INTO inbox (body) VALUES (?)", [("one",), ("two",)])
        database.commit()
    (tmp_path / "cities.csv").write_text("city\nParis\nRome\n")
    (tmp_path / "texts.csv").write_text("id,title,text\n1,Menu,Great food.\n2,Staff,Rude waiter.\n")
    (tmp_path / "guests.csv").write_text("team,text\nnorth,Great food.\nsouth,Cold soup.\nnorth,Rude waiter.\n")
    (tmp_path / "gold.csv").write_text("text,label\ngood,positive\nbad,negative\n")
    job = ""
    for name in ("labels.csv", "labels-a.csv", "labels-b.csv"):
        if command.startswith("compare"):
            (tmp_path / name.replace("labels", "summaries")).write_text(f"text,answer\ngood,{name}\n")
            (tmp_path / name).write_text("text,label,answer\ngood,positive,positive\nbad,negative,positive\n")
            (tmp_path / "labels.csv").write_text("text,variant,answer\ngood,a,positive\ngood,b,positive\n")
    if "--schema" in command:
        upstream.reply = answer('{"item": "apples"}' if "order.json" in command else '"yes"')
    if "rows(" in command:
        upstream.reply = answer('{"number": "R-7", "date": null, "items": []}')
    elif "--rows-from" in command:
        upstream.reply = answer(
            '{"items": [{"item": "nails"}]}' if command.startswith("jobs") else '{"claims": ["late"]}'
        )
    if "--passes" in command:
        upstream.reply = answer('{"claims": ["late"]}')
    if "--ask" in command:
        upstream.reply = choose(lambda seen: answer(_first_answers(seen.json.get("response_format"))))
    if "--embed" in command:
        upstream.other_posts = embeddings()
    if "--criterion" in command:
        upstream.reply = answer("first")
    if "--choices" in command:
        given = shlex.split(command)
        first = given[given.index("--choices") + 1].partition(",")[0].replace("topics.csv", "noise")
        upstream.reply = answer('{"labels": ["food"]}' if "--choices-many" in given else first)
    if "--provider typesafe" in command:
        upstream.reply = decides()
    if "dialect=responses" in command:
        upstream.reply = speaks("News (example.org).")
    if "invoices" in command and "rows(" not in command:
        upstream.reply = answer('{"number": "2026-17", "customer": "Anna Berg", "total": 128.5}')
        if "--pdf images" in command:
            upstream.reply = answer('{"number": "2026-17", "total": 128.5}')
        elif "--pdf file" in command:
            upstream.reply = answer('{"total": 128.5}')
    if "--quote" in command:
        (tmp_path / "invoices.csv").write_text("id,mail\n1,Invoice R-7. Total due: EUR 12.50\n")
        quoted: dict[str, Any] = {"customer": None} if "customer" in command else {}
        quoted |= {"number": {"quote": "Invoice R-7", "value": "R-7"}, "total": {"quote": "EUR 12.50", "value": 12.5}}
        upstream.reply = answer(json.dumps(quoted))
    if "contracts" in command:
        upstream.reply = answer('{"party": ["Ann"], "amount": 128.5, "end": "2030-01-31"}')
    if command.startswith("review"):
        upstream.reply = answer("positive")
        asked = "--prompt", "Is it good? {{text}}", "--choices", "positive,negative"
        done = run("bulk", "reviews.csv", "labels.csv", *asked)
        assert done.returncode == 0, done.stderr
    if "review" in command or command.startswith("compare"):
        key = ""
        if command.startswith("review"):
            run("review", "labels.csv", "--sample", "100", "-o", "keys.xlsx")
            rows = openpyxl.load_workbook(tmp_path / "keys.xlsx").worksheets[0].iter_rows(values_only=True)
            names = next(rows)
            key = next(found["key"] for row in rows if (found := dict(zip(names, row, strict=True)))["row"] == 1)
        reviewed = openpyxl.Workbook()
        for row in (["row", "label", "key", "text"], [1, "positive", key, "good"]):
            reviewed.active.append(row)
        for name in ("review.xlsx", "sample.xlsx"):
            if f"-o {name}" not in command:
                reviewed.save(tmp_path / name)
        (tmp_path / "JOB.decisions.csv").write_text(f"row,label,key,text\n1,positive,{key},good\n")
    if command == "jobs topics.csv":
        (tmp_path / "reviews.csv").write_text("text\n" + "".join(f"{row['text']}\n" for row in topic_table(60)))
        upstream.reply = topic_models()
        done = run("topics", "reviews.csv", "topics.csv", "--prompt", "What do guests complain about? {{text}}")
        assert done.returncode == 0, done.stderr
    elif command.startswith("jobs"):
        part = ["--shard", "1/1"] if "--join" in command else [] if "--forget" in command else ["--limit", "5"]
        output, form = ("labels.csv" if "labels.csv" in command else "answers.jsonl", [])
        if "--rows-from" in command:
            output, form = "out.csv", ["--fields", "items:rows(item)"]
        done = run("bulk", "prompts.jsonl", output, *part, *form, "--json")
        assert done.returncode == 0, done.stderr
        job = json.loads(done.stdout)["job_id"]
    if "book.xlsx" in command:
        book = openpyxl.Workbook()
        for row in (["id", "text"], [1, "Where is my parcel?"], [2, "You are too dear."]):
            book.active.append(row)
        book.save(tmp_path / "book.xlsx")
        if command.startswith("jobs"):
            done = run("bulk", "book.xlsx", "book.xlsx", "--prompt", "Topic? {{text}}", "--answer-column", "Topic")
            assert done.returncode == 0, done.stderr
    if command.startswith("run"):
        step = {"bulk": ["reviews.csv", "labels.csv"], "prompt": "Is it good? {{text}}"}
        (tmp_path / "recipe.yaml").write_text(json.dumps({"steps": [step]}))
    fill = {
        "JOB": job,
        "ID": job,
        "AGE": "7d",
        "INPUT": "prompts.jsonl",
        "IN": "prompts.jsonl",
        "OUTPUT": "answers.jsonl" if "--join" in command else "out.jsonl",
    }
    fill |= {"OUT": "out.jsonl", "PROMPT": "Say yes", "/path/to/parameter.yaml": "parameter.yaml"}
    fill |= dict.fromkeys(("localhost:11434", "localhost:8080"), upstream.url)
    fill |= {"/path/to/model": "smollm2-135m-instruct"}
    words = [fill.get(word, word) for word in shlex.split(command)]
    if "--provider anthropic" in command or "--batch" in words:
        words += ["--base-url", request.getfixturevalue("batches").base_url]
    elif "--provider" in words:
        words += ["--base-url", upstream.url]
    if "--batch" in words:
        words += ["--poll", "1s"]
    done = run(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr or words[0] == "serve"
