"""What README and docs show as printed is what is printed today, but for the words of the model."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pages import blocks, commands

ROOT = Path(__file__).parent.parent
_RESULT = re.compile(r'^\{"ans_ls":.*$', re.MULTILINE)
_PRINTED = re.compile(r"(?<=^```console\n)(\$ \S*promptmill generate [^\n]*\n).*?(?=^```)", re.MULTILINE | re.DOTALL)


def _without_answers(page: str) -> str:
    """Return a page where every answer of the model is an ellipsis."""

    def result(line: re.Match[str]) -> str:
        found = json.loads(line[0])
        return json.dumps(found | {"ans_ls": ["…" if answer else "" for answer in found["ans_ls"]]}, ensure_ascii=False)

    return _PRINTED.sub(r"\1…\n", _RESULT.sub(result, page))


def test_a_page_without_the_answers_keeps_all_else():
    result = '{"ans_ls":["Paris.",""],"errors":[]}'
    page = f"`generate`\n```json\n{result}\n```\n```console\n$ bin/promptmill generate x\ny\n```\n"
    found = _without_answers(page)
    assert found == _without_answers(page.replace("Paris.", "Rome").replace("\ny\n", "\nz\n"))
    assert found != _without_answers(page.replace('""', '"no"'))
    assert found != _without_answers(page.replace("errors", "warnings"))


@pytest.mark.thorough
@pytest.mark.engine
def test_what_pages_show_as_printed_is_printed():
    pytest.importorskip("openvino_genai")
    pages = runpy.run_path(str(ROOT / "scripts" / "transcripts.py"))["renewed"]()
    assert {"README.md", "README.zh-CN.md", "docs/tools.md"} <= {str(page.relative_to(ROOT)) for page in pages}
    for page, text in pages.items():
        shown = _without_answers(page.read_text(encoding="utf-8"))
        assert shown == _without_answers(text), f"{page.name}: .venv/bin/python scripts/transcripts.py"


@pytest.mark.thorough
@pytest.mark.engine
def test_the_first_command_of_the_readme_gives_a_new_user_the_labels_that_it_shows(tmp_path):
    pytest.importorskip("openvino_genai")
    (tmp_path / "examples").mkdir()
    shutil.copyfile(ROOT / "examples" / "reviews.csv", tmp_path / "examples" / "reviews.csv")
    environment = os.environ | {"PROMPTMILL_STATE": str(tmp_path / "state"), "PROMPTMILL_CONFIG": ""}
    done = subprocess.run(
        [sys.executable, "-m", "promptmill", *commands("README.md")[0]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    made = list(csv.DictReader(io.StringIO((tmp_path / "labels.csv").read_text())))
    shown = list(csv.DictReader(io.StringIO(blocks("README.md", "csv")[0])))
    assert [(row["id"], row["text"], row["answer"]) for row in made] == [
        (row["id"], row["text"], row["answer"]) for row in shown
    ]
    assert "by a small model for trying out\n" in done.stdout
