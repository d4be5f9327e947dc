"""SECURITY.md and the tests beside this file say the same: each numbered sentence has a test, each test a sentence."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SENTENCE = re.compile(r"^- \*\*([A-Z]\d+)\.\*\* (.+?)(?=^- |^$|^#|\Z)", re.MULTILINE | re.DOTALL)


def _sentences():
    return {name: " ".join(text.split()) for name, text in SENTENCE.findall((ROOT / "SECURITY.md").read_text("utf-8"))}


def _rules(file):
    """Yield `(rule, test)` for every test of `file` that names one."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.rule":
                    yield ast.literal_eval(decorator.args[0]), node.name
            named = any("pytest.mark.rule" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not named and file != Path(__file__):
                yield f"none, in {file.name}", node.name


def test_every_sentence_has_a_test_and_every_test_a_sentence():
    tested = {}
    for file in HERE.glob("test_*.py"):
        for rule, test in _rules(file):
            tested.setdefault(rule, []).append(test)
    assert set(tested) == set(_sentences())


def test_sentences_are_numbered_without_gaps_and_are_sentences():
    found = _sentences()
    by_letter = {}
    for name, text in found.items():
        by_letter.setdefault(name[0], []).append(int(name[1:]))
        assert text.endswith("."), f"{name} is no sentence"
    for letter, numbers in by_letter.items():
        assert numbers == list(range(1, len(numbers) + 1)), letter
    assert len(found) > 40
