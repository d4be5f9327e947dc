"""The core's source names no feature."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import promptmill
from all_features import ALL_FEATURES

SOURCE = Path(promptmill.__file__).parent
WORDS = {
    "ask": r"--ask\b|\bAskedRows\b",
    "app": r"mcp-app|ui://promptmill",
    "batches": r"batch_round|stored_batches|\bBatch(?:Order|Status|Plan)\b",
    "checks": r"\bmax_words\b|--max-words\b",
    "compare": r"[`\"]compare[`\"]|\bComparison\b|promptmill compare|\bjudge\b",
    "datastudio": r"(?i)datastudio",
    "documents": r"--split\b|\bmerge_prompt\b",
    "duckdb": r"(?i)duckdb",
    "hub": r"hf://|DatasetCard|dataset_card",
    "improve": r"[`\"]improve[`\"]|promptmill improve|\bImprove[A-Z]\w+",
    "install": r"promptmill install",
    "items": r"\brows_from\b|--rows-from\b",
    "labels": r"\bsure\b|\bvotes?\b|\bstudents?\b|strong model|\bcheap\b|\brecall\b|[`\"]gold[`\"]",
    "oauth": r"--oauth\b|--audience\b",
    "openai_server": r"openai_server|OpenAIPaths",
    "ray": r"\b[Rr]ay\b|RayCluster",
    "recipes": r"(?i)\brecipes?\b|promptmill run\b",
    "report": r"--report\b|--html\b|promptmill report\b(?!\">)|part_of\(\"report|arguments\.Report|JobReport",
    "review": r"\breview(?:er|_take)?\b(?! positive)",
    "server_card": r"(?i)server[-_ ]card|mcp/catalog",
    "telemetry": r"\bopentelemetry\b|OTEL_EXPORTER",
    "together": r"--together\b|RowsTogether",
    "topics": r"promptmill topics|\bTopicJobs\b|held-out row",
    "ultrarag": r"(?i)(?<!OpenBMB/)ultrarag",  # a link to its repository is the source of a fact
}
"""What would show that the core names a feature, besides the name of its package."""
GENERATED = {Path("options/keywords.py")}
"""Python's keywords for editors, which scripts/docs.py writes from the table: they include the options of features."""


def is_named(name: str, text: str) -> bool:
    """Return whether a text names a feature."""
    return re.search(rf"features\.{name}\b", text) is not None or (
        name in WORDS and re.search(WORDS[name], text) is not None
    )


def _names() -> dict[str, set[str]]:
    """Return the features that each file of the core names."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        path, text = file.relative_to(SOURCE), file.read_text(encoding="utf-8")
        if (
            path.parts[0] != "features"
            and path not in GENERATED
            and (names := {name for name in ALL_FEATURES if is_named(name, text)})
        ):
            found[path.as_posix()] = names
    return found


def test_the_core_names_no_feature():
    assert not _names()


@pytest.mark.features
def test_only_features_have_words():
    assert WORDS.keys() <= ALL_FEATURES
