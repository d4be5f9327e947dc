"""When a model ends: by the table, by an endpoint's list, and that no page or default names such a model."""

from __future__ import annotations

import ast
import csv
import datetime as dt
import re
from pathlib import Path

import pytest

from fakes import openai_config
from pages import ROOT
from promptmill.backends import registry
from promptmill.backends.model_ends import TABLE, ModelEnd, listed_end, stated_end
from promptmill.backends.openai.providers import PROFILES
from promptmill.steps.prices import price_of
from sure import sure

TODAY = dt.date(2026, 12, 1)
OF_TABLE = ModelEnd(dt.date(2026, 12, 11), "next")
# What users read, copy or start: all text but the tests, the log of changes, and data with the names of all models.
SHOWN = (
    "*.md",
    "*.txt",
    "*.yaml",
    "*.json",
    "*.toml",
    "docs",
    "examples",
    "deploy",
    "desktop",
    "servers",
    "benchmarks",
)
SOURCES = ("src", "scripts", "examples", "servers", "benchmarks")
LISTS = {"CHANGELOG.md", "tier_prices.json"}
TEXTS = {".md", ".txt", ".yaml", ".yml", ".json", ".toml", ".ipynb", ".svg", ".html", ".service", ".conf", ".sh"}


def rows():
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def texts_of(file: Path):
    """The texts of a file: of a program, its strings and docstrings, as a comment may say where a figure is from."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return [text]
    return [
        one.value for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]


def named_models(text):
    """The models with an announced end that a text names, each as a whole word."""
    names = "|".join(sorted((re.escape(row["model"]) for row in rows()), key=len, reverse=True))
    return re.findall(rf"(?<![\w.-])(?:{names})(?:-\d{{4}}-\d\d-\d\d)?(?![\w-]|\.\w)", text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("--model gpt-5-mini --report", ["gpt-5-mini"]),
        ("openai:gpt-5-mini", ["gpt-5-mini"]),
        ("with gpt-4o.", ["gpt-4o"]),
        ('("gpt-5-2025-08-07")', ["gpt-5-2025-08-07"]),
        ("gpt-5.6-luna, gpt-5-search-api, gpt-55, gpt-oss, foo3, o3x", []),
    ],
)
def test_a_name_is_found_as_a_whole_word(text, named):
    assert named_models(text) == named


def test_no_page_default_or_example_names_a_model_whose_end_is_announced():
    found = [
        file for pattern in SHOWN for file in (ROOT.glob(pattern) if "*" in pattern else (ROOT / pattern).rglob("*"))
    ]
    files = {file for file in found if file.suffix in TEXTS} | {
        file for folder in SOURCES for file in (ROOT / folder).rglob("*.py")
    }
    assert len(files) > 300
    named = {
        str(file.relative_to(ROOT)): names
        for file in files
        if file.name not in LISTS and (names := [name for text in texts_of(file) for name in named_models(text)])
    }
    assert not named, "a successor is in src/promptmill/backends/model_ends.csv"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["model"])
def test_each_end_has_a_known_provider_a_date_a_source_and_a_successor_that_goes_on(row):
    assert row["provider"] in {profile.name for profile in PROFILES}
    assert dt.date.fromisoformat(row["end"]) > dt.date(2026, 1, 1)
    assert row["source"]
    assert not row["successor"] or listed_end(row["provider"], row["successor"]) is None


@pytest.mark.parametrize("model", ["gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol"])
def test_the_models_of_the_pages_have_a_listed_price(model):
    assert sure(price_of(openai_config("https://api.openai.com/v1", model_name=model))).input > 0


@pytest.mark.parametrize(
    ("provider", "model", "date"),
    [
        ("openai", "gpt-5-mini", "2026-12-11"),
        ("openai", "gpt-5-mini-2025-08-07", "2026-12-11"),
        ("openai", "gpt-4o-2024-05-13", "2026-10-23"),
        ("openai", "ft:gpt-4.1-mini-2025-04-14:me::a1", "2027-01-14"),
        ("anthropic", "claude-opus-4-5-20251101", "2027-01-22"),
    ],
)
def test_an_end_is_found_by_the_name_with_and_without_its_date(provider, model, date):
    assert str(sure(listed_end(provider, model)).date) == date


@pytest.mark.parametrize(
    ("provider", "model"), [("openai", "gpt-6-luna"), ("ollama", "gpt-5"), ("openai", "ft:"), ("", "")]
)
def test_other_models_have_no_end(provider, model):
    assert listed_end(provider, model) is None


@pytest.mark.parametrize(
    ("entry", "end"),
    [
        ({}, OF_TABLE),
        ({"owned_by": "openai"}, OF_TABLE),
        ({"shutdown_date": "2027-02-03"}, ModelEnd(dt.date(2027, 2, 3), "next")),
        ({"shutdown_date": None}, None),
        ({"shutdown_date": "soon"}, None),
        ({"lifecycle": "active", "retires_at": None}, None),
        (
            {"lifecycle": "deprecated", "retires_at": "2027-01-22T00:00:00Z"},
            ModelEnd(dt.date(2027, 1, 22), "next", "deprecated"),
        ),
        ({"lifecycle": "deprecated", "retires_at": None}, ModelEnd(None, "next", "deprecated")),
        (
            {"lifecycle": "retired", "retires_at": "2026-11-30T08:00:00+00:00"},
            ModelEnd(dt.date(2026, 11, 30), "next", "retired"),
        ),
        ({"lifecycle": 5}, None),
        ({"expiration_date": "2026-12-24"}, ModelEnd(dt.date(2026, 12, 24), "next")),
        (
            {"deprecation": "2027-03-01T12:00:00Z", "deprecation_replacement_model": "m-2"},
            ModelEnd(dt.date(2027, 3, 1), "m-2"),
        ),
        ({"deprecation": {"fine_tune": 1, "inference": 1_800_000_000}}, ModelEnd(dt.date(2027, 1, 15), "next")),
        ({"deprecation": {"inference": 1e30}}, None),
        ({"deprecation": True}, None),
        ({"deprecation": None, "deprecation_replacement_model": ["x"]}, None),
    ],
)
def test_the_endpoints_own_date_comes_before_the_table(entry, end):
    assert stated_end(entry, OF_TABLE) == end


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (OF_TABLE, "is switched off on 2026-12-11, in 10 days; its successor is next"),
        (ModelEnd(dt.date(2026, 12, 2)), "is switched off on 2026-12-02, in 1 day"),
        (ModelEnd(TODAY), "was switched off on 2026-12-01"),
        (ModelEnd(dt.date(2026, 11, 1), "n"), "was switched off on 2026-11-01; its successor is n"),
        (ModelEnd(dt.date(2026, 11, 1), "", "retired"), "was switched off on 2026-11-01"),
        (ModelEnd(None, "", "retired"), "was switched off"),
        (ModelEnd(dt.date(2027, 1, 1), "", "retired"), "was switched off"),
        (ModelEnd(dt.date(2027, 1, 1), "", "deprecated"), "is switched off on 2027-01-01, in 31 days"),
        (ModelEnd(dt.date(2026, 11, 1), "", "deprecated"), "is deprecated, and may be switched off on any day"),
        (ModelEnd(None, "n", "deprecated"), "is deprecated, and may be switched off on any day; its successor is n"),
    ],
)
def test_an_end_is_told_in_words(end, words):
    assert end.words(TODAY) == words


@pytest.mark.parametrize(
    ("end", "is_near"),
    [
        (OF_TABLE, True),
        (ModelEnd(dt.date(2026, 1, 1)), True),
        (ModelEnd(None, "", "retired"), True),
        (ModelEnd(TODAY + dt.timedelta(days=60)), True),
        (ModelEnd(TODAY + dt.timedelta(days=61)), False),
        (ModelEnd(None, "", "deprecated"), True),
    ],
)
def test_a_job_may_outlast_a_model_that_ends_within_sixty_days(end, is_near):
    assert end.is_near(TODAY) == is_near


def test_a_model_has_a_listed_end_only_at_its_provider():
    end = registry.end_of(openai_config([], provider="openai", model_name="gpt-5"))
    assert sure(end).date == dt.date(2026, 12, 11)
    assert registry.end_of(openai_config("https://host.test/v1", model_name="gpt-5")) is None
