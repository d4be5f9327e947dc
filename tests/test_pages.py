"""README and docs: what they tell a reader to run, write and open is there and accepted."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from pages import FENCE, PAGES, READMES, ROOT, blocks, commands
from promptmill.cli import main as cli
from promptmill.config.settings import Settings
from promptmill.core.feature import part


@pytest.mark.features
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_has_options_that_exist(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    labels = "label,definition\nfood,the dishes\nservice,the waiters\n"  # `--choices` reads the file
    for name in ("definitions.csv", "topics.csv"):
        (tmp_path / name).write_text(labels)
    for words in commands(page):
        code = 0
        try:
            cli.parser_of().parse_args(words)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        assert code == 0, (words, capsys.readouterr().err)


@pytest.mark.features
@pytest.mark.parametrize("page", PAGES)
def test_every_configuration_and_recipe_of_a_page_is_valid(page, tmp_path):
    for text in blocks(page, "yaml"):
        content = yaml.safe_load(text)
        if "steps" not in content:
            Settings.model_validate(content)
            continue
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        for step in part("promptmill.features.recipes.recipe:Recipe").read(file, {}).steps:
            step.arguments()


@pytest.mark.features
@pytest.mark.parametrize("page", [page for page in PAGES if "architecture" not in page])  # signatures alone
def test_python_and_json_of_a_page_can_be_read(page):
    for text in blocks(page, "json"):
        for line in [text] if text.startswith("{\n") else text.splitlines():
            json.loads(line)
    for text in blocks(page, "python"):
        tree = compile(text, page, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("promptmill"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", [*PAGES, "llms.txt", "SECURITY.md", "CONTRIBUTING.md"])
def test_every_link_of_a_page_leads_to_a_file(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
        path = (target[0] or target[1]).partition("#")[0]
        if path and "://" not in path:
            assert ((ROOT / page).parent / path).exists(), path


def test_every_page_is_linked_from_where_a_reader_begins():
    beginnings = ("README.md", "llms.txt", "docs/engines.md", "docs/decisions/index.md", "CONTRIBUTING.md")
    linked = {
        Path(link).name for page in beginnings
        for link in re.findall(r"\]\(([^)#\s]+\.md)", (ROOT / page).read_text(encoding="utf-8"))
    }  # fmt: skip
    assert {page.name for page in (ROOT / "docs").rglob("*.md")} <= linked


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/tasks/")])
def test_the_page_of_a_task_ends_with_its_limits(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    assert headings[-1] == "Limits"
    assert commands(page)


def test_the_inspector_that_is_named_is_the_one_that_is_tested():
    package = json.loads((ROOT / "tests" / "clients" / "package.json").read_text())
    version = package["dependencies"]["@modelcontextprotocol/inspector"]
    named = {
        said for page in PAGES for said in re.findall(r"modelcontextprotocol/inspector(\S*)", (ROOT / page).read_text())
    }
    assert named == {f"@{version}"}


def test_the_lines_of_a_page_fit_an_editor():
    """Tables have a line for each row, and docs/tools.md shows calls and results as they are."""
    pages = [*PAGES, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md"]
    lines = [(page, line) for page in pages for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    whole = ("|", '{"prompt_ls"', '{"ans_ls"', '{"messages"')
    assert not [one for one in lines if len(one[1]) > 120 and not one[1].lstrip().startswith(whole)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_moves_by_itself_and_fetches_nothing(theme):
    """An image of a page on GitHub may not run scripts or fetch files."""
    picture = (ROOT / "docs" / f"killed-{theme}.svg").read_text(encoding="utf-8")
    assert len(picture) < 100_000
    assert {element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()} == {
        *("svg", "title", "style", "rect", "circle", "g", "text")
    }
    assert "@keyframes" in picture
    assert not re.search(r"url\(|@import|href", picture)


def outline(page: str) -> list[int]:
    """Return the levels of a page's headings."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def test_the_chinese_readme_has_the_headings_commands_and_figures_of_the_english_one():
    english, chinese = READMES
    assert outline(chinese) == outline(english)
    assert [b.strip() for b in blocks(chinese, "", "yaml", "json", "python")] == [
        b.strip() for b in blocks(english, "", "yaml", "json", "python")
    ]
    assert commands(chinese) == commands(english)
    figures = re.compile(r"\d[\d.,]*\d|\d")
    said = [sorted(figures.findall(FENCE.sub("", (ROOT / page).read_text(encoding="utf-8")))) for page in READMES]
    assert said[0] == said[1]
    links = [re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")) for page in READMES]
    assert sorted(set(links[0]) - {"README.zh-CN.md"}) == sorted(set(links[1]) - {"README.md"})


def test_the_page_on_ultrarag_counts_what_is_compared(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "clients" / "ultrarag"))
    calls, pipelines, intended = (importlib.import_module(name) for name in ("calls", "pipelines", "intended"))
    names = [[part["name"] for part in parts] for parts in (pipelines.pipelines("http://h"), calls.cases("http://h"))]
    assert all(len(set(one)) == len(one) for one in names)
    assert intended.DIFFERENCES.keys() <= {*names[0], *names[1]}
    assert intended.DIFFERENCES.keys() >= intended.ONLY_OURS_ENDS
    page = (ROOT / "docs" / "ultrarag.md").read_text(encoding="utf-8")
    assert f"{len(names[0])} pipelines step by step and {len(names[1])} single calls" in page
    assert f"{len(intended.DIFFERENCES)} of these differ intentionally" in page


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.webp")), ids=lambda path: path.stem)
def test_a_screenshot_is_small(picture):
    assert picture.stat().st_size < 150_000


def measured(case: str) -> re.Match[str]:
    """Return the ratio and the quartiles of a case in the table of docs/performance.md."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {re.escape(case)} \|.* \| ([\d.]+) \(([\d.]+).([\d.]+)\) \|", page, re.MULTILINE)
    assert found, f"docs/performance.md has no row {case!r}"
    return found


def figures_of(page: str, link: str) -> set[str]:
    """Return the figures of a page's list items that link to a file."""
    items = re.findall(r"^\* .*?(?=^\* |^$)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    said = (re.sub(r"\]\([^)]*\)", "", item) for item in items if f"]({link}" in item)
    return {figure for item in said for figure in re.findall(r"\d[\d,.]*\d|\d", item)}


@pytest.mark.parametrize("page", READMES)
def test_each_speed_of_a_readme_is_one_of_the_table(page):
    cases = {number: f"{number} in flight, 50 ms upstream, over the bare loop" for number in ("256", "1,024")}
    ratios = {measured(case)[1] for case in cases.values()}
    bounds = {"3", "90"}  # "less than 3 %", "over 90 %": of these, the README gives a bound
    assert float(measured("CPU per request, 256 in flight, over the `openai` package")[3]) < 0.03
    limit = "a hidden limit of 40 in flight, found by promptmill, over the same limit set by hand"
    assert float(measured(limit)[1]) > 0.9
    assert figures_of(page, "docs/performance.md") == {"50", *cases, *ratios, "40", *bounds}


@pytest.mark.parametrize("page", READMES)
def test_the_counts_of_a_readme_are_those_of_the_tests(page):
    proof = runpy.run_path(str(ROOT / "tests" / "jobs" / "test_proof.py"))
    kills = proof["RANDOM_KILLS"] + len(proof["WRITE_KILLS"]) + len(proof["END_KILLS"])
    assert figures_of(page, "tests/jobs/test_proof.py") == {f"{kills}", f"{proof['ROWS']:,}", f"{proof['UNWRITTEN']}"}
    evidence = (ROOT / "tests" / "backends" / "openai" / "evidence.jsonl").read_text(encoding="utf-8")
    assert figures_of(page, "tests/backends/openai/evidence.jsonl") == {str(len(evidence.splitlines()))}
