"""Tables in other encodings: the error names the encoding, with a line in it as a proof."""

import pytest

from promptmill.files.encodings import remedy

TABLES = {
    "gb18030": ("id,评论", "1,鞋子的尺码太小了"),
    "big5": ("id,評論", "1,鞋子的尺碼太小了"),
    "shift_jis": ("id,レビュー", "1,靴のサイズが小さい"),
    "euc_kr": ("id,리뷰", "1,신발 사이즈가 작다"),
    "cp1251": ("id,отзыв", "1,обувь мала, размер не тот"),
    "cp1252": ("id,text", "1,Die Größe fällt schön aus"),
    "cp1250": ("id,text", "1,Žluťoučký kůň úpěl ďábelské ódy"),
}


@pytest.mark.parametrize("encoding", TABLES)
@pytest.mark.parametrize("rows", [1, 500])
def test_the_encoding_is_named_with_a_line_that_proves_it(encoding, rows):
    header, row = TABLES[encoding]
    said = remedy("\n".join([header, *[row] * rows]).encode(encoding))
    assert said.value == encoding
    proof = row if header.isascii() else header
    first, *others = said.text.format("X").split('", ')
    assert f'{first}"'.replace('""', '"') == f'; X reads line {1 + header.isascii()} as "{proof}"'
    assert rows == 1 or not others


@pytest.mark.thorough
def test_a_table_in_another_encoding_is_refused_with_its_name_and_read_with_it(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes("id,text\n1,鞋子的尺码太小了\n2,{很好}\n".encode("gb18030"))
    said = " ".join(bench.fail("--prompt", "{{text}}").split())
    assert '--encoding gb18030 reads line 2 as "1,鞋子的尺码太小了"' in said
    bench.run("--prompt", "{{text}}", "--encoding", "gb18030")
    assert {seen.prompt for seen in bench.upstream.seen} == {"鞋子的尺码太小了", "{很好}"}


def test_an_empty_name_of_an_encoding_is_none(bench):
    bench.prompts(1)
    assert bench.run("--encoding", "").returncode == 0


@pytest.mark.parametrize("name", ["in.txt", "in.csv", "in.tsv"])
def test_what_excel_calls_unicode_text_is_read_as_the_table_that_it_is(bench, name):
    bench.input, bench.output = bench.path / name, bench.path / "out.csv"
    bench.input.write_bytes("id\tGröße\r\n1\tzu klein\r\n2\tgut\r\n".encode("utf-16"))
    bench.run("--prompt", "{{Größe}}")
    assert {seen.prompt for seen in bench.upstream.seen} == {"zu klein", "gut"}


def test_lines_in_utf16_without_tabs_are_prompts(bench):
    bench.input, bench.output = bench.path / "in.txt", bench.path / "out.csv"
    bench.input.write_bytes("eins\r\nzwei\r\n".encode("utf-16"))
    bench.run()
    assert {seen.prompt for seen in bench.upstream.seen} == {"eins", "zwei"}


def test_a_short_header_is_no_proof_of_its_encoding(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes("id,评论\n1,鞋子的尺码太小了\n2,质量很好\n".encode("gb18030"))
    said = " ".join(bench.fail("--prompt", "{{评论}}").split())
    assert '--encoding gb18030 reads line 1 as "id,评论"' in said


def test_a_short_text_that_several_encodings_read_is_shown_in_each():
    said = remedy("编号,文本\n1,你好世界\n2,再见\n".encode("gb18030"))
    assert 'gb18030 as "编号,文本"' in said.text


@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis"])
def test_a_header_without_the_column_of_the_prompt_names_the_encoding(bench, encoding):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes("番号,本文\n1,今日は天気がいい\n".encode(encoding))
    said = " ".join(bench.fail("--prompt", "{{text}}").split())
    assert "the input has no column 'text'" in said
    assert f'--encoding {encoding} reads line 1 as "番号,本文"' in said or f'{encoding} as "番号,本文"' in said


@pytest.mark.parametrize("options", [[], ["--encoding", "cp1251"]])
@pytest.mark.parametrize(
    ("encoding", "header", "name"), [("gb18030", "编号,文本", "文本"), ("shift_jis", "番号,本文", "本文")]
)
def test_the_columns_of_the_prompt_say_which_encoding_the_header_has(bench, encoding, header, name, options):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes(f"{header}\n1,{name}\n".encode(encoding))
    said = " ".join(bench.fail("--prompt", f"{{{{{name}}}}}", *options).split())
    assert f'--encoding {encoding} reads line 1 as "{header}"' in said


@pytest.mark.parametrize("name", ["in.csv", "in.txt", "in.jsonl"])
def test_a_text_with_escape_sequences_is_refused_with_its_encoding(bench, name):
    bench.input = bench.path / name
    text = '{"text": "日本"}\n' if name == "in.jsonl" else "text\n日本\n"
    bench.input.write_bytes(text.encode("iso2022_jp"))
    said = bench.fail("--prompt", "{{text}}")
    assert "is ISO-2022 text" in said
    assert ("iso2022_jp" in said) == (name != "in.jsonl")
