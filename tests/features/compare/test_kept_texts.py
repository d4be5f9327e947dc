"""The texts of a comparison, which are in a temporary file."""

import errno
import io
import json
import os
import random
import tracemalloc

import pytest

import promptmill
from promptmill.core.errors import PromptmillError
from promptmill.features.compare import kept_texts
from promptmill.features.compare.compared_file import ComparedFile, ComparisonOrder
from promptmill.features.compare.compared_rows import ComparedRows
from promptmill.features.compare.kept_texts import KeptTexts, TextStore


class FullDisk(io.BytesIO):
    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


LONG = "x" * 300
ODD = ["", "yes", "", LONG, "naïve 文", LONG + "\ud800", "\0" * 250, "yes", *(f"{LONG}{at}" for at in range(9))]


def test_texts_come_back_in_their_order():
    kept = KeptTexts(TextStore(), ODD)
    assert list(kept) == ODD
    assert [kept[at] for at in range(len(kept))] == ODD
    assert list(kept[1:4]) == ODD[1:4]
    assert kept[-1] == ODD[-1]
    assert list(kept.given()) == list(map(bool, ODD))


def test_texts_come_back_from_the_file(monkeypatch):
    monkeypatch.setattr(kept_texts, "_WRITTEN", 700)
    monkeypatch.setattr(kept_texts, "_MOST_SHORT", 2)
    store = TextStore()
    one, other = KeptTexts(store), KeptTexts(store)
    for text in ODD:  # the file is read and written by turns
        one.append(text)
        other.append(text[::-1])
        assert one[-1] == text
        assert one[0] == ODD[0]
    assert list(zip(one, other, strict=True)) == [(text, text[::-1]) for text in ODD]
    assert list(one.changed(str.upper)) == [text.upper() for text in ODD]
    assert list(one.at([3, -1, 1])) == [LONG, "", "yes"]


def test_a_text_that_is_too_long_for_a_code_comes_back(monkeypatch):
    monkeypatch.setattr(kept_texts, "_SIZE_BITS", 8)
    assert list(KeptTexts(TextStore(), [LONG, "yes", LONG])) == [LONG, "yes", LONG]


def test_a_comparison_holds_no_texts_in_memory(tmp_path):
    chance, size = random.Random(0), 0
    for name in ("a", "b"):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for at in range(4000):
                size += file.write(json.dumps({"id": at, "answer": f"{at} " + chance.choice("xy") * 3000}) + "\n")
    files = [ComparedFile(name, tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    tracemalloc.start()
    try:
        rows = ComparedRows.of(files, ComparisonOrder())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 2
    assert 1800 < len(rows.differing) < 2200


def test_the_mean_similarity_counts_each_row_beyond_the_tallied_pairs(tmp_path, monkeypatch):
    rows = [{"id": at, "answer": f"a b {at % 7}"} for at in range(100)]
    others = [{"id": at, "answer": f"a c {at % 5}"} for at in range(100)]
    files = []
    for name, own in (("a", rows), ("b", others)):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in own))
    monkeypatch.setattr("promptmill.features.compare.figures._are_labels", lambda *_: False)
    pairs = []
    for most in (3, 4096):
        monkeypatch.setattr("promptmill.features.compare.figures._MOST_TALLIED", most)
        pairs += promptmill.compare(files).figures["pairs"]
    few, many = pairs
    assert round(few.pop("similarity"), 12) == round(many.pop("similarity"), 12)
    assert few == many


def test_a_full_disk_is_named_with_a_remedy(monkeypatch):
    monkeypatch.setattr(kept_texts, "_WRITTEN", 700)
    store = TextStore()
    monkeypatch.setattr(store, "_file", FullDisk())
    with pytest.raises(PromptmillError, match=r"cannot be written to .*: no space left on device\. Free space there"):
        KeptTexts(store, [LONG] * 4)
