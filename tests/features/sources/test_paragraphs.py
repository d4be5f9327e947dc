"""Places in Word documents and web pages: the heading, and the paragraph under it."""

from __future__ import annotations

import csv
import json
from typing import Any

import docx
import pytest

from promptmill.features.sources.paragraphs import Paragraphs, paragraphs_of
from replies import answer, choose

TEXT = """Contract of lease
Between Anna Berg and Carl Lind, about the rooms described below.
3.2 Payment
The rent is due monthly.
- in cash, or
- by transfer
Fee\t80
The deposit is 900 euros.

Notices

All notices are in writing.
By mail or letter."""


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("Anna Berg", ("Contract of lease", 1)),
        ("3.2 Payment", ("3.2 Payment", 0)),
        ("by transfer", ("3.2 Payment", 3)),
        ("Fee\t80", ("3.2 Payment", 4)),
        ("900 euros", ("3.2 Payment", 5)),
        ("letter", ("Notices", 2)),
    ],
)
def test_a_place_has_the_heading_above_and_the_paragraph_under_it(words, place):
    assert Paragraphs(TEXT).at(TEXT.index(words)) == place


def test_a_piece_is_named_by_its_first_and_last_paragraph():
    start, end = TEXT.index("3.2"), TEXT.index("\n\nNotices")
    assert Paragraphs(TEXT).words(start, end) == "\u201c3.2 Payment\u201d, paragraphs 1 to 5"
    assert Paragraphs(TEXT).words(start, start + 20) == "\u201c3.2 Payment\u201d, paragraph 1"
    assert Paragraphs(TEXT).words(0, len(TEXT)) == "\u201cContract of lease\u201d, to \u201cNotices\u201d, paragraph 2"
    assert Paragraphs("One line.").words(0, 3) == "paragraph 1"
    assert Paragraphs("").words(0, 0) == "paragraph 1"


@pytest.mark.parametrize("file", ["", "a.txt", "a.pdf", "a.csv"])
def test_other_files_have_no_paragraphs(file):
    assert paragraphs_of(TEXT, file) is None


@pytest.fixture
def contract(bench, upstream):
    """Runs a job about a Word document, and returns the source of its value."""
    document = docx.Document()
    document.add_heading("Lease", 1)
    for at in range(40):
        document.add_paragraph(f"This is the paragraph number {at + 1}, and it says nothing of any weight.")
    document.add_heading("Payment", 1)
    document.add_paragraph("The rent is due monthly.")
    document.add_paragraph("The deposit is 900 euros.")
    (bench.path / "files").mkdir()
    document.save(str(bench.path / "files" / "lease.docx"))
    bench.input, bench.output = bench.path / "files", bench.path / "out.csv"

    def read(*options: str) -> Any:
        def reply(seen: Any) -> Any:
            has = "900 euros" in seen.prompt
            value: Any = "900" if has else None
            if "--quote" in options:
                value = {"quote": "deposit is 900 euros" if has else "", "value": value}
            return answer(json.dumps({"deposit": value}))

        upstream.reply = choose(reply)
        bench.succeed("--fields", "deposit?", *options)
        with bench.output.open(encoding="utf-8-sig", newline="") as file:
            (row,) = csv.DictReader(file)
        return json.loads(row["sources"])["deposit"]

    return read


def test_a_quote_in_a_word_document_has_its_heading_and_paragraph(contract):
    source = contract("--quote")
    assert (source["quote"], source["heading"], source["paragraph"]) == ("deposit is 900 euros", "Payment", 2)


@pytest.mark.features("documents")
def test_a_value_of_a_long_word_document_has_its_heading_and_paragraph(contract):
    assert contract("--split", "400") == "\u201cPayment\u201d, paragraph 2"


@pytest.mark.thorough
@pytest.mark.features("documents")
def test_a_quote_of_a_piece_has_the_heading_and_paragraph_of_the_document(contract):
    source = contract("--split", "400", "--quote")
    assert (source["heading"], source["paragraph"]) == ("Payment", 2)
