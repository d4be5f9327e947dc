"""`python -m benchmarks.sure TABLE… [--runs 40] [--taught N] [--student KIND]`: sure labels by a student, real texts.

TABLE is the source distribution of vaderSentiment 3.3.2, which has four such tables,

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2

or a table of a public repository, as it is there:

    banking_data/ of PolyAI-LDN/task-specific-datasets         train.csv, test.csv: text, category
    data/data_full.json of clinc/oos-eval
    datasets/NAME/ of cardiffnlp/tweeteval                     train_text.txt, train_labels.txt, val…, test…
    data/ag_news_csv/test.csv of mhjabreel/CharCnn_Keras       number of the label, title, text
    SMSSpamCollection, as .tsv                                 label, text
    datasets/waimai_10k/ of SophonPlus/ChineseNlpCorpus        `review` renamed to `text`
    germeval2018.training.txt, .test.txt of uds-lsv            as .csv: text, label (the first one)

A person's label takes the place of the strong model's. Each run draws other rows to train the student, and another
sample. No job is run: the draw, the student and the cut are those of a job. `--student`: words, scikit-learn or
embeddings, whose vectors (e5 in int8; 20 minutes for 100,000 texts on a core) are kept in benchmarks/out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import statistics
import tarfile
import time
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import NamedTuple, TypeAlias

from promptmill.features.embeddings.local import encoders
from promptmill.features.labels import cut as cuts
from promptmill.features.labels.student import STUDENTS, Classifier, Example, RowText, VectorStudent
from promptmill.features.labels.student_answers import taught_of

_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLES = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
_OUT = Path(__file__).parent / "out"
_CERTAINTY = 0.95
_TARGETS = (0.95, 0.9)


Labelled: TypeAlias = tuple[str, str]
"""A text and its label."""


class Run(NamedTuple):
    """One draw of a table."""

    agree: float
    """The target."""
    strong: float
    """The share of the rows that the strong model labels, those of the training and the sample among them."""
    reached: float
    """The share of delivered labels that are the strong model's."""


def tables(path: Path) -> Iterator[tuple[str, list[Labelled]]]:
    """Yield the tables at `path` with their names."""
    if path.suffixes[-2:] == [".tar", ".gz"]:
        yield from _of_vader(path)
    elif path.suffix == ".json":
        parts = json.loads(path.read_text("utf-8"))
        yield path.stem, [(text, label) for part in parts.values() for text, label in part]
    elif path.suffix == ".tsv":
        lines = path.read_text("utf-8").splitlines()
        yield path.stem, [(text, label) for label, _, text in (line.partition("\t") for line in lines)]
    elif path.suffix == ".csv":
        yield path.stem, _of_csv(path)
    elif texts := sorted(path.glob("*_text.txt")):
        both = [(file, file.with_name(file.name.replace("_text", "_labels"))) for file in texts]
        yield path.name, [pair for files in both for pair in zip(*map(_lines, files), strict=True)]
    else:
        yield path.name, [row for file in sorted(path.glob("*.csv")) for row in _of_csv(file)]


def _of_vader(path: Path) -> Iterator[tuple[str, list[Labelled]]]:
    with tarfile.open(path) as outer:
        found = outer.extractfile(_INNER)
        assert found is not None
        with tarfile.open(fileobj=io.BytesIO(found.read())) as inner:
            for name in _TABLES:
                file = inner.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                assert file is not None
                lines = file.read().decode("latin-1").splitlines()
                cells = [line.split("\t") for line in lines if line.count("\t") == 2]
                yield name, [(text, "positive" if float(rating) > 0 else "negative") for _, rating, text in cells]


def _of_csv(path: Path) -> list[Labelled]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if "text" in rows[0]:
        text, label = rows[0].index("text"), 1 - rows[0].index("text")
        return [(row[text], row[label]) for row in rows[1:]]
    return [(" ".join(texts), label) for label, *texts in rows]


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").removesuffix("\n").split("\n")  # a text may have other ends of lines


def with_vectors(name: str, rows: Sequence[Labelled]) -> list[Example]:
    """Return the rows of a table with their vectors."""
    settings = encoders.EncoderSettings(model="e5", arithmetic="int8")
    digest = hashlib.sha256(json.dumps([encoders.version(settings), rows]).encode()).hexdigest()[:12]
    kept = _OUT / f"{name}.{digest}.f16"
    if not kept.exists():
        _OUT.mkdir(exist_ok=True)
        vectors = encoders.load(settings, print).encode([text for text, _ in rows])
        kept.write_bytes(vectors.astype("<f2").tobytes())
    data = kept.read_bytes()
    size = len(data) // len(rows)
    return [(RowText(text, data[n * size : (n + 1) * size]), label) for n, (text, label) in enumerate(rows)]


def drawn(rows: Sequence[Example], seed: str, taught: int, kind: type[Classifier]) -> list[Run]:
    """Train a student and deliver all rows, for each target."""
    learned = nsmallest(taught, range(len(rows)), key=lambda n: cuts.number("train", seed, n))
    student = kind([rows[n] for n in learned], lambda: None)
    trains, places, is_right = {*learned}, dict[int, cuts.Place](), dict[int, bool]()
    others = [n for n in range(len(rows)) if n not in trains]
    for n, found in zip(others, student.answers([rows[n][0] for n in others]), strict=True):
        if found is not None:
            places[n], is_right[n] = cuts.place(found[1], str(n), seed), found[0] == rows[n][1]
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


def main() -> None:
    """Print a line for each table and target."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--taught", type=int)
    parser.add_argument("--student", choices=STUDENTS, default="words")
    arguments = parser.parse_args()
    print("| rows | labels | learned from | target | by the strong model | fewer calls | below the target | a run |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rows in [table for path in arguments.tables for table in tables(path)]:
        # a job asks the strong model about all rows of a table that is too small
        taught = arguments.taught or taught_of(len(rows)) or 1_000
        kind = STUDENTS[arguments.student]
        examples = (
            with_vectors(name, rows) if kind is VectorStudent else [(RowText(text), label) for text, label in rows]
        )
        begun = time.perf_counter()
        found = [each for run in range(arguments.runs) for each in drawn(examples, f"{name} {run}", taught, kind)]
        seconds = (time.perf_counter() - begun) / arguments.runs
        for agree in _TARGETS:
            mine = [run for run in found if run.agree == agree]
            strong, below = statistics.mean(run.strong for run in mine), sum(run.reached < agree for run in mine)
            print(
                f"| {len(rows):,} {name} | {len({label for _, label in rows})} | {taught:,} | {agree:.0%} | "
                f"{strong:.0%} | {1 / strong:.2f} times | {below} of {arguments.runs} | {seconds:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
