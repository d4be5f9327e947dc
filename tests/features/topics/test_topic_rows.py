"""The rows of files, folders and patterns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pdf_files import pdf_of_texts, scan
from promptmill.core.errors import PromptmillError, worded
from promptmill.features.topics.drawn import DrawnRow
from promptmill.features.topics.topic_rows import TopicRows

ABOUT_FILES = "What is it about? {{content}}"


def rows_of(read: TopicRows, sample: int = 30, held_out: int = 30) -> list[DrawnRow]:
    drawn = read.drawn(sample, held_out)
    return sorted([*drawn.sample, *drawn.held_out], key=lambda row: row.number)


def mails(folder: Path, texts: Sequence[str]) -> Path:
    folder.mkdir()
    for at, text in enumerate(texts):
        (folder / f"{at:02}.eml").write_text(f"From: a@b.c\nSubject: {at}\n\n{text}\n")
    return folder


def test_a_folder_of_texts_has_a_row_for_each(tmp_path):
    folder = mails(tmp_path / "mails", [f"text {at}" for at in range(60)])
    (folder / "notes.bin").write_bytes(b"\0\0")
    read = TopicRows([folder], ABOUT_FILES)
    rows = rows_of(read)
    assert len(rows) == 60
    assert all(f"text {row.number - 1}" in row.texts[0] for row in rows)
    assert [worded(note, lambda _: "") for note in read.notes] == [
        f"1 file left out, as it is not text: {folder / 'notes.bin'}"
    ]


def test_files_of_a_pattern_are_rows_without_the_output(tmp_path):
    folder = mails(tmp_path / "mails", [f"text {at}" for at in range(60)])
    (folder / "topics.csv").write_text("label\n")
    assert len(rows_of(TopicRows([folder / "*.eml"], ABOUT_FILES))) == 60
    assert len(rows_of(TopicRows([folder], ABOUT_FILES, output=folder / "topics.csv"))) == 60


def test_a_scan_has_no_text(tmp_path):
    folder = mails(tmp_path / "files", [f"text {at}" for at in range(50)])
    pdf_of_texts(folder / "letter.pdf", ["Dear neighbour"])
    scan(folder / "scan.pdf")
    read = TopicRows([folder], ABOUT_FILES)
    assert "Dear neighbour" in rows_of(read)[-1].texts[0]
    drawn = read.drawn(30, 30)
    assert (drawn.rows, drawn.empty) == (52, 1)


def test_an_encoding_holds_for_all_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_bytes("text\nübel\n".encode("latin-1") + b"good\n" * 40)
    rows = rows_of(TopicRows([tmp_path / "a.csv", tmp_path / "b.csv"], "{{text}}", "latin-1"))
    assert {row.texts[0] for row in rows} <= {"übel", "good"}
    with pytest.raises(PromptmillError) as error:
        rows_of(TopicRows([tmp_path / "a.csv"], "{{text}}"))
    assert "encoding" in error.value.worded(str)


def test_the_file_of_a_row_is_a_column(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("text\n" + "good\n" * 40)
    rows = rows_of(TopicRows([tmp_path], "{{source_file}} {{text}}"))
    assert {row.cells["source_file"] for row in rows} == {"a.csv", "b.csv"}
