"""`python -m benchmarks.sure ARCHIVE [RUNS]`: sure labels by a student, on texts that people have labelled.

ARCHIVE is the source distribution of vaderSentiment 3.3.2, which has two such tables, of films and of products:

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2

A person's label takes the place of the strong model's. Each run draws other rows to train the student, and another
sample. No job is run: the draw, the student and the cut are those of a job.
"""

from __future__ import annotations

import io
import statistics
import sys
import tarfile
import time
from collections.abc import Sequence
from heapq import nsmallest
from typing import NamedTuple

from promptmill.jobs.run.student_rounds import taught_of
from promptmill.jobs.sure import cut as cuts
from promptmill.jobs.sure.student import Student

_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLES = ("movieReviewSnippets", "amazonReviewSnippets")
_CERTAINTY = 0.95
_TARGETS = (0.95, 0.9)


class Run(NamedTuple):
    """One draw of a table."""

    agree: float
    """The target."""
    strong: float
    """The share of the rows that the strong model labels, those of the training and the sample among them."""
    reached: float
    """The share of delivered labels that are the strong model's."""


def table(archive: str, name: str) -> list[tuple[str, str]]:
    """Return the texts of a table and their labels: whether people rate them above 0."""
    with tarfile.open(archive) as outer:
        found = outer.extractfile(_INNER)
        assert found is not None
        with tarfile.open(fileobj=io.BytesIO(found.read())) as inner:
            file = inner.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            assert file is not None
            lines = file.read().decode("latin-1").splitlines()
    cells = [line.split("\t") for line in lines if line.count("\t") == 2]
    return [(text, "positive" if float(rating) > 0 else "negative") for _, rating, text in cells]


def drawn(rows: Sequence[tuple[str, str]], seed: str, taught: int) -> list[Run]:
    """Train a student and deliver all rows, for each target."""
    learned = nsmallest(taught, range(len(rows)), key=lambda n: cuts.number("train", seed, n))
    student = Student([rows[n] for n in learned])
    trains, places, is_right = {*learned}, dict[int, cuts.Place](), dict[int, bool]()
    for n, (text, label) in enumerate(rows):
        if n not in trains and (found := student.answer(text)) is not None:
            places[n], is_right[n] = cuts.place(found[1], str(n), seed), found[0] == label
    runs = []
    for agree in _TARGETS:
        most = cuts.errors_allowed(len(rows), agree)
        size = cuts.sample_size(len(places), most, _CERTAINTY)
        sample = {*nsmallest(size, places, key=lambda n: cuts.number("sample", seed, n))}
        c = cuts.allowed(len(places), size, most, _CERTAINTY)
        where = cuts.cut([(places[n], is_right[n]) for n in sample], c)
        free = [n for n in places if places[n] > where and n not in sample]
        wrong = sum(not is_right[n] for n in free)
        runs.append(Run(agree, 1 - len(free) / len(rows), 1 - wrong / len(rows)))
    return runs


def main(archive: str, runs: int = 40) -> None:
    """Print a line for each table and target."""
    print("| rows | learned from | target | labels by the strong model | fewer calls | runs below the target | a run |")
    print("|---|---|---|---|---|---|---|")
    for name in _TABLES:
        rows = table(archive, name)
        taught = taught_of(len(rows)) or 1_000  # a job asks the strong model about all rows of so small a table
        begun = time.perf_counter()
        found = [each for run in range(runs) for each in drawn(rows, f"{name} {run}", taught)]
        seconds = (time.perf_counter() - begun) / runs
        for agree in _TARGETS:
            mine = [run for run in found if run.agree == agree]
            strong, below = statistics.mean(run.strong for run in mine), sum(run.reached < agree for run in mine)
            print(
                f"| {len(rows):,} {name} | {taught:,} | {agree:.0%} | {strong:.0%} | {1 / strong:.2f} times | "
                f"{below} of {runs} | {seconds:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
