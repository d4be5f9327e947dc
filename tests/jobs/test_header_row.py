"""Tables with titles above the header: the error names the row with the columns, and `--header-row` reads from it."""

import gzip

import openpyxl
import pytest
from fastmcp.exceptions import ToolError

from bulk_calls import ran

REPORT = 'Report 2026\nmade by "me, on Monday\n\nid,text,price\n1,good shoes,3\n\n2,"bad\nshoes",4\n'
ROWS = [
    ["Report 2026"],
    [],
    [None, "by me"],
    ["id", "text", None, "price"],
    [1, "good shoes", None, 3],
    [2, "bad", 0, 4],
]


def prompts_of(bench):
    return sorted(seen.prompt for seen in bench.upstream.seen)


@pytest.fixture
def report(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text(REPORT)
    return bench


@pytest.fixture
def book(bench):
    bench.input, bench.output = bench.path / "in.xlsx", bench.path / "out.xlsx"
    workbook = openpyxl.Workbook()
    for row in ROWS:
        workbook.active.append(row)
    workbook.save(bench.input)
    return bench


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("{{text}}", "text"),
        ("{{ text | upper }}", "text"),
        ("{% if text %}yes{% endif %}", "text"),
        ('{{ row["text"] }}', "text"),
        ("{{ text | default(1) }}{{price}}", "price"),
    ],
)
def test_the_error_of_a_missing_column_shows_the_row_that_has_it(report, prompt, name):
    row = "Row 4 has it: --header-row 4 (id, text, price)."
    said = " ".join(report.fail("--prompt", prompt).split())
    assert said.endswith(f"--prompt: the input has no column '{name}'; its columns: Report 2026. {row}")
    assert not report.upstream.seen


def test_the_column_of_the_prompts_is_looked_for_below_the_titles_too(report):
    said = " ".join(report.fail("--prompt-column", "text").split())
    assert "has no column 'text'; its columns: Report 2026. Row 4 has it: --header-row 4" in said


@pytest.mark.parametrize("prompt", ["{{mail body}}", "{{mail-body}}", "{{ Text des Kunden | upper }}"])
def test_words_that_are_no_column_are_no_error_of_the_template_engine(report, prompt):
    name = prompt.strip("{} ").partition(" |")[0]
    assert f"the input has no column '{name}'; its columns: Report 2026." in " ".join(
        report.fail("--prompt", prompt).split()
    )


def test_a_row_that_has_the_columns_too_far_below_is_not_named(report):
    report.input.write_text("Report\n" + "\n" * 20 + "id,text\n1,a\n")
    assert "Row" not in report.fail("--prompt", "{{text}}")


def test_the_rows_below_the_named_line_are_read_and_errors_name_lines_of_the_file(report):
    report.input.write_text(REPORT + "3,one,cell,more\n")
    said = report.run("--prompt", "{{text}}", "--header-row", "4")
    assert prompts_of(report) == ["bad\nshoes", "good shoes"]
    assert "has 4 cells, but the header has 3 (line 9)" in report.output.read_text(), said.stderr
    assert report.output.read_text().startswith("id,text,price,answer,")


@pytest.mark.thorough
@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_lines_may_end_in_every_way(report, ends):
    report.input.write_bytes(b"a\n\nid,text\n1,x\n2,y\n".replace(b"\n", ends.encode()))
    report.run("--prompt", "{{text}}", "--header-row", "3")
    assert prompts_of(report) == ["x", "y"]


def test_titles_above_a_compressed_table_in_another_encoding(bench):
    bench.input, bench.output = bench.path / "in.csv.gz", bench.path / "out.csv"
    bench.input.write_bytes(gzip.compress("Größen\nid;text\n1;schön\n".encode("cp1252")))
    bench.run("--prompt", "{{text}}", "--header-row", "2", "--encoding", "cp1252")
    assert prompts_of(bench) == ["schön"]


@pytest.mark.thorough
def test_titles_longer_than_a_piece_are_skipped_once(report):
    report.input.write_text("x" * 300_000 + "\n" + 'y"\n' * 3 + "id,text\n" + "".join(f"{n},t{n}\n" for n in range(9)))
    report.run("--prompt", "{{text}}", "--header-row", "5")
    assert prompts_of(report) == [f"t{n}" for n in range(9)]


@pytest.mark.thorough
def test_appended_rows_are_read_alone(report):
    options = ("--prompt", "{{text}}", "--header-row", "4")
    report.run(*options)
    report.input.write_text(REPORT + "3,new,5\n")
    report.run(*options)
    assert prompts_of(report) == ["bad\nshoes", "good shoes", "new"]


@pytest.mark.thorough
def test_another_header_row_reads_the_input_again(report):
    report.input.write_text("text,x\nid,text\n1,a\n2,b\n")
    report.run("--prompt", "{{text}}", "--header-row", "2")
    report.run("--prompt", "{{text}}", "--again", "all")
    assert prompts_of(report) == ["1", "2", "a", "b", "id"]


def test_the_row_of_a_sheet_has_the_columns(book):
    said = " ".join(book.fail("--prompt", "{{text}} {{price}}").split())
    assert "Row 4 has it: --header-row 4 (id, text, price)." in said
    book.run("--prompt", "{{text}} {{price}}", "--header-row", "4")
    assert prompts_of(book) == ["bad 4", "good shoes 3"]


@pytest.mark.thorough
def test_columns_are_added_to_a_sheet_with_titles(book):
    book.output = book.input
    book.run("--prompt", "{{text}}", "--header-row", "4")
    sheet = openpyxl.load_workbook(book.input).active
    assert [cell.value for cell in sheet[1]][:1] == ["Report 2026"]
    assert [cell.value for cell in sheet[4]][:5] == ["id", "text", None, "price", "answer"]
    assert sheet["E5"].value == "echo: good shoes"


@pytest.mark.parametrize(("row", "said"), [("2", "Row 2 of in.xlsx is empty"), ("99", "Row 99 of in.xlsx is empty")])
def test_an_empty_row_of_a_sheet_has_no_columns(book, row, said):
    assert said in " ".join(book.fail("--prompt", "{{text}}", "--header-row", row).split())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("3", "its line 3, with the columns, is empty"),
        ("99", "its line 99"),
        ("0", "--header-row: '0' must be at least 1"),
    ],
)
def test_a_line_without_columns_is_refused(report, row, said):
    assert said in " ".join(report.fail("--prompt", "{{text}}", "--header-row", row).split())


def test_other_formats_have_no_header_row(bench):
    bench.prompts(1)
    assert "--header-row works only for CSV, TSV and workbooks, not for jsonl." in " ".join(
        bench.fail("--header-row", "2").split()
    )


@pytest.mark.thorough
async def test_a_call_names_the_row_as_the_tool_does(report, tools):
    files = {"input_file": "in.csv", "output_file": "out.csv", "prompt": "{{text}}"}
    async with tools() as call:
        with pytest.raises(ToolError, match="Row 4 has it: `header_row: 4` \\(id, text, price\\)"):
            await call("bulk_generate", **files)
        await ran(call, **files, header_row=4)
    assert prompts_of(report) == ["bad\nshoes", "good shoes"]


@pytest.mark.thorough
@pytest.mark.parametrize("row", [2, 3])
async def test_a_call_cannot_hide_the_columns_of_secrets_above_the_header(report, tools, row):
    report.input.write_text("id,password\nid,text\n1,hunter2\n2,b\n")
    async with tools() as call:
        with pytest.raises(ToolError, match="password"):
            await call(
                "bulk_generate",
                input_file="in.csv",
                output_file="out.csv",
                prompt="{{text}}",
                header_row=row,
            )
