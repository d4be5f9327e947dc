"""Rows that cover the texts."""

from __future__ import annotations

import random
import sys
from collections import Counter
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from hidden_topics import PROMPT, table
from promptmill.core.feature import WITHOUT
from promptmill.features.topics.covering import Covering, chosen_rows, farthest, with_chosen
from promptmill.features.topics.drawn import Drawn
from promptmill.features.topics.finding import Finding, may_miss
from promptmill.jobs.manage.bulk_keywords import configuration_of
from promptmill.jobs.store.index import JobFolders
from topic_asker import Asker, names

DRAWS = 100
NEEDS_ENCODER = pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO")


def vectors(topics: list[int], seed: int) -> Any:
    """Return unit vectors of texts: two texts of a topic are nearer to each other than to others, and no more alike
    than a cosine of about 0.5."""
    numbers = np.random.default_rng(seed)
    centres = numbers.normal(size=(max(topics) + 1, 64))
    found = centres[topics] + numbers.normal(size=(len(topics), 64))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.thorough
def test_a_rare_topic_is_among_the_chosen_rows_more_often_than_among_as_many_random_ones():
    hits = Counter[str]()
    for draw in range(DRAWS):
        topics = [number % 12 for number in range(1490)] + [12] * 10
        random.Random(draw).shuffle(topics)
        chosen = farthest(vectors(topics, draw), 300, 150)
        assert len({*chosen}) == 150
        assert min(chosen) >= 300
        hits["random"] += 12 in topics[:450]
        hits["chosen"] += 12 in topics[:300] or any(topics[at] == 12 for at in chosen)
    assert hits["random"] == pytest.approx(96, abs=6)
    assert hits["chosen"] == DRAWS


def test_equal_vectors_are_chosen_once():
    assert sorted(farthest(np.zeros((9, 4)), 3, 6)) == [*range(3, 9)]


@pytest.mark.thorough
def test_the_pool_is_of_other_rows_and_has_at_most_four_times_as_many_as_the_sample():
    rows = table(9000)
    drawn = Drawn.of(rows, PROMPT, 300, 200)
    numbers = [row.number for part in (drawn.sample, drawn.held_out, drawn.fresh, drawn.pool) for row in part]
    assert len({*numbers}) == len(numbers) == 300 + 200 + 200 + 1200
    assert len(Drawn.of(rows, PROMPT, 1000, 200).pool) == 1000
    assert not Drawn.of(rows, PROMPT, 3000, 200).pool
    small = Drawn.of(rows[:750], PROMPT, 300, 200)
    assert [row.number for row in small.held_out] != [row.number for row in drawn.held_out]
    assert len(small.pool) == 50
    assert not Drawn.of(rows[:400], PROMPT, 300, 200).pool


@NEEDS_ENCODER
@pytest.mark.features("embeddings")
def test_half_as_many_rows_as_the_sample_are_chosen_if_there_is_an_encoder(tmp_path, monkeypatch):
    rows = table(9000)
    assert chosen_rows(Drawn.of(rows, PROMPT, 300, 200)) == 150
    assert chosen_rows(Drawn.of(rows[:750], PROMPT, 300, 200)) == 25, "of a small pool, every other row"
    monkeypatch.setenv(WITHOUT, "embeddings")
    drawn = Drawn.of(rows, PROMPT, 300, 200)
    assert chosen_rows(drawn) == 0
    monkeypatch.setitem(sys.modules, "numpy", None)  # it comes with an encoder
    folders, config = JobFolders(tmp_path), configuration_of({"backend": "openai"}).config
    assert Covering(folders, config, None).of(drawn) is drawn


@NEEDS_ENCODER
@pytest.mark.features("embeddings")
def test_without_vectors_all_rows_are_random_and_a_note_says_why(tmp_path, monkeypatch):
    from promptmill.features.embeddings.local.e5_conversion import CONVERSION, FILE

    broken = tmp_path / f"{FILE.name}-{CONVERSION.version}"
    broken.mkdir()
    (broken / CONVERSION.last).write_text("no model")
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path))
    path = tmp_path / "parameter.yaml"
    path.write_text("backend_configs: {encoder: {model: e5}}")
    config = configuration_of({"config": path, "backend": "encoder"}).config
    covering = Covering(JobFolders(tmp_path / "jobs"), config, path)
    drawn = Drawn.of(table(500), PROMPT, 40, 30)
    assert covering.of(drawn) is drawn
    (note,) = covering.notes
    assert note.startswith("topics are found in random rows only: ")
    assert "e5" in note


def test_topics_of_chosen_rows_are_found_and_say_nothing_about_frequency():
    rows = table(5000)
    drawn = Drawn.of(rows, PROMPT, 40, 200)
    smell = [at for at, row in enumerate(drawn.pool) if "smell" in row.cells["text"]]
    assert "smell" not in {word for row in drawn.sample for word in row.texts[0].split()}
    drawn = with_chosen(drawn, [*smell, *(at for at in range(20) if at not in smell)])
    asker = Asker()
    found = Finding(drawn, PROMPT, 12, asker).figures()
    assert "smell" in names(found)
    assert found["may_miss"] == may_miss(40), "only random rows count"
    assert (found["rows"]["sample"], found["rows"]["chosen"], found["rows"]["covered"]) == (40, len(drawn.chosen), 200)
    assert [request.text.count('{"id"') for request in asker.asked[:2]] == [20, 20]
    merged = next(request.text for request in asker.asked if "into one list" in request.text)
    (line,) = [line for line in merged.splitlines() if "smell" in line]
    assert '"records":1,' in line
    held_out = {row.number for row in (*drawn.held_out, *drawn.fresh)}
    assert not held_out & {row.number for row in (*drawn.sample, *drawn.chosen)}
