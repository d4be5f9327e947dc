"""The rows that are drawn from an input."""

from __future__ import annotations

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.core.values import JsonObject
from promptmill.features.topics.drawn import Drawn

PROMPT = "About? {{text}}"
ROWS = [{"id": n, "text": f"text {n}"} for n in range(1, 1001)]


def numbers(drawn: Drawn) -> list[list[int]]:
    return [[row.number for row in rows] for rows in (drawn.sample, drawn.held_out, drawn.fresh)]


def test_no_row_is_drawn_twice_and_only_named_cells_are_kept():
    drawn = Drawn.of(ROWS, PROMPT, 300, 200)
    assert [len(rows) for rows in numbers(drawn)] == [300, 200, 200]
    assert len({number for rows in numbers(drawn) for number in rows}) == 700
    assert all(row.cells == {"text": f"text {row.number}"} for row in drawn.sample)
    assert not drawn.is_all


def test_the_same_rows_are_drawn_again_and_more_rows_begin_with_them():
    first, again = (numbers(Drawn.of(ROWS, PROMPT, 300, 200)) for _ in range(2))
    assert first == again
    more = numbers(Drawn.of(ROWS, PROMPT, 300, 250))
    assert more[0] == first[0]
    assert more[1][:200] == first[1]
    assert numbers(Drawn.of(ROWS, PROMPT, 300, 200, seed="b")) != first


@pytest.mark.thorough
def test_each_row_is_drawn_as_often_as_any_other():
    drawn = [Drawn.of(ROWS[:100], PROMPT, 10, 20, seed=f"{seed}") for seed in range(300)]
    for part in range(3):
        counts = [0] * 101
        for each in drawn:
            for number in numbers(each)[part]:
                counts[number] += 1
        expected = 300 * (10, 20, 20)[part] / 100
        chi_square = sum((count - expected) ** 2 / expected for count in counts[1:])
        assert 60 < chi_square < 150  # 99 degrees of freedom: 99.9 % of the values


def test_rows_without_text_are_left_out_and_counted():
    rows: list[JsonObject] = [*ROWS[:60], {"text": ""}, {"text": "  \n"}, {"text": None}, {"id": 3}]
    drawn = Drawn.of(rows, PROMPT, 30, 10)
    assert (drawn.rows, drawn.empty) == (64, 4)
    assert all(row.number <= 60 for row in (*drawn.sample, *drawn.held_out, *drawn.fresh))


def test_fewer_rows_are_divided_in_the_same_proportion():
    drawn = Drawn.of(ROWS[:400], PROMPT, 300, 200)
    assert [len(rows) for rows in numbers(drawn)] == [240, 160, 0]
    assert drawn.is_all
    for sample, held_out in ((1, 200), (200, 1)):
        drawn = Drawn.of(ROWS[:60], PROMPT, sample, held_out)
        assert [len(drawn.sample), len(drawn.held_out)] == ([1, 59] if sample == 1 else [59, 1])
    assert [len(rows) for rows in numbers(Drawn.of(ROWS[:550], PROMPT, 300, 200))] == [300, 200, 50]


@pytest.mark.parametrize(
    ("rows", "prompt", "said"),
    [
        (ROWS[:49], PROMPT, "The input has 49 rows with text: with fewer than 50"),
        ([*ROWS[:40], *[{"text": ""}] * 40], PROMPT, "40 rows with text, and 40 empty ones: with fewer than 50"),
        ([], "About? {{text}}", "The input has no rows."),
        (ROWS, "About?", "names no column; write it in double braces, such as {{text}}"),
        ([{"id": n, "why": "A long text."} for n in range(60)], "About?", "such as {{why}}"),
        (ROWS, "About? {text}", "names no column"),
        (ROWS, "About? {{txt}}", "the input has no column 'txt'; did you mean text?"),
        (ROWS, "About? {{text", "a }} is missing behind {{text"),
    ],
)
def test_what_cannot_be_drawn_is_named(rows, prompt, said):
    with pytest.raises(PromptmillError) as error:
        Drawn.of(rows, prompt, 300, 200)
    assert said in str(error.value)
