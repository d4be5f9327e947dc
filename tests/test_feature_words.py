"""The core's source names no feature."""

from __future__ import annotations

import re
from pathlib import Path

import promptmill
from all_features import ALL_FEATURES

SOURCE = Path(promptmill.__file__).parent
WORDS = {
    "app": r"features\.app|mcp-app|ui://promptmill",
    "batches": r"features\.batches|batch_round|stored_batches|\bBatch(?:Order|Status|Plan)\b",
    "compare": r"[`\"]compare[`\"]|\bComparison\b|promptmill compare|\bjudge\b",
    "datastudio": r"(?i)datastudio",
    "documents": r"features\.documents|--split\b|\bmerge_prompt\b",
    "duckdb": r"(?i)duckdb",
    "hub": r"hf://|DatasetCard|dataset_card",
    "improve": r"[`\"]improve[`\"]|promptmill improve|\bImprove[A-Z]\w+",
    "install": r"promptmill install",
    "labels": r"\bsure\b|\bvotes?\b|\bstudents?\b|features\.labels|strong model|\bcheap\b|\brecall\b|[`\"]gold[`\"]",
    "openai_server": r"openai_server|OpenAIPaths",
    "ray": r"\b[Rr]ay\b|RayCluster",
    "report": r"--report\b|--html\b|promptmill report\b(?!\">)|part_of\(\"report|arguments\.Report|JobReport",
    "review": r"\breview(?:er|_take)?\b(?! positive)",
    "telemetry": r"\bopentelemetry\b|OTEL_EXPORTER",
    "ultrarag": r"(?i)(?<!OpenBMB/)ultrarag",  # a link to its repository is the source of a fact
}
GENERATED = {Path("options/keywords.py")}
"""Python's keywords for editors, which scripts/docs.py writes from the table: they include the options of features."""


def _names() -> dict[str, set[str]]:
    """Return the features that each file of the core names."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        path, text = file.relative_to(SOURCE), file.read_text(encoding="utf-8")
        if (
            path.parts[0] != "features"
            and path not in GENERATED
            and (names := {name for name, words in WORDS.items() if re.search(words, text)})
        ):
            found[path.as_posix()] = names
    return found


def test_the_core_names_no_feature():
    assert not _names()


def test_every_feature_has_words():
    assert WORDS.keys() == ALL_FEATURES
