"""`python -m benchmarks.labels TABLE… [--rows 300] [--engine-rows 100]`: labels without a key on texts with people's.

The tables are those of `benchmarks.sure`, whose docstring says where they are; of these, `_TABLES` has the names of the
labels and the definitions that we wrote, before the first measurement. For each table it prints how many labels are
right: the most frequent one; the encoder's, by the names alone and with definitions, with the calibration error of the
probabilities (the mean difference between the probability and the share that is right, in ten bins); the embedded
model's in the same way; and how many times as fast the encoder is, as the median over pairs of ten rows in turn.

    python -m benchmarks.labels ag_news_csv/test.csv emotion vaderSentiment-3.3.2.tar.gz
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.sure import Labelled, tables
from promptmill.answers.shown import shown_of
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion
from promptmill.config.backends import EMBEDDED
from promptmill.config.configuration import Configuration
from promptmill.core.request import Conversation, Fields, Message, Request, Sampling
from promptmill.service.service import Service

_BINS = 10
_AT_ONCE = 10
_FEELINGS = "the writer likes something or is in a good mood", "the writer dislikes something or is in a bad mood"


class Known(NamedTuple):
    """What the file of a table does not say."""

    names: Mapping[str, str] = {}
    """The names of labels that are numbers in the file."""
    definitions: Mapping[str, str] = {}


def _of_two(positive: str, negative: str, **names: str) -> Known:
    return Known(names, {"positive": positive, "negative": negative})


_TABLES: Mapping[str, Known] = {
    "movieReviewSnippets": _of_two("the reviewer likes the film", "the reviewer does not like the film"),
    "amazonReviewSnippets": _of_two(
        "the buyer is satisfied with the product", "the buyer is not satisfied with the product"
    ),
    "nytEditorialSnippets": _of_two("something good happens or is praised", "something bad happens or is criticized"),
    "tweets": _of_two("the writer is in a good mood", "the writer is in a bad mood"),
    "ag_news_csv": Known(
        {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"},
        {
            "World": "politics, governments, wars and events in the countries of the world",
            "Sports": "games, teams, players and competitions",
            "Business": "companies, markets, economy and money",
            "Sci/Tech": "science, computers, software, the internet and technology",
        },
    ),
    "sentiment": Known(
        {"0": "negative", "1": "neutral", "2": "positive"},
        {"positive": _FEELINGS[0], "negative": _FEELINGS[1], "neutral": "no feelings: facts or questions"},
    ),
    "emotion": Known(
        {"0": "anger", "1": "joy", "2": "optimism", "3": "sadness"},
        {
            "anger": "the writer is angry",
            "joy": "the writer is happy",
            "optimism": "the writer is hopeful",
            "sadness": "the writer is sad",
        },
    ),
    "SMSSpamCollection": Known(
        {}, {"ham": "a personal message from a friend", "spam": "advertising, prizes, or a fraud"}
    ),
    "waimai_10k": Known(
        {"0": "negative", "1": "positive"},
        {
            "positive": "the customer is satisfied with the food and the delivery",
            "negative": "the customer complains about the food or the delivery",
        },
    ),
}


class Answered(NamedTuple):
    """The labels of some rows."""

    right: list[bool]
    sure: list[float]
    """The probability of each answer, or 1."""
    seconds: list[float]
    """The time of each `_AT_ONCE` rows."""

    def share(self) -> str:
        """Return the share of right labels; `""` without rows."""
        return f"{statistics.mean(self.right):.2f}" if self.right else ""

    def error(self) -> float:
        """Return the calibration error."""
        bins: dict[int, list[tuple[float, bool]]] = {}
        for sure, right in zip(self.sure, self.right, strict=True):
            bins.setdefault(min(int(sure * _BINS), _BINS - 1), []).append((sure, right))
        off = (abs(sum(sure for sure, _ in rows) - sum(right for _, right in rows)) for rows in bins.values())
        return sum(off) / len(self.right)


def known_tables(path: Path) -> list[tuple[str, list[Labelled], Known]]:
    """Return the tables at a path, with their labels as words."""
    found = []
    for name, rows in tables(path):
        own = next((each for each in (name, path.parent.name) if each in _TABLES), name)
        known = _TABLES.get(own, Known())
        named = [(text, known.names.get(label.strip(), label.strip())) for text, label in rows if text.strip()]
        found.append((own, named, known))
    return found


def request(text: str, labels: Sequence[str], definitions: Mapping[str, str]) -> Request:
    """Return the request of a row for its label, whose prompt names the labels."""
    which = f"Which label fits this text: {', '.join(labels)}? "
    sampling = Sampling(choices=[*labels], definitions=dict(definitions) or None)
    conversation = Conversation((Message("user", which + text),)).composed("", shown_of(sampling, shows=True))
    return Request(0, conversation, sampling, fields=Fields((which, "text", ""), (text,)))


async def answered(service: Service, rows: Sequence[Labelled], requests: Sequence[Request]) -> Answered:
    """Answer some rows."""
    started = time.perf_counter()
    outcomes = await service.generate(requests, Call())
    seconds = time.perf_counter() - started
    right, sure = [], []
    for outcome, (_, label) in zip(outcomes, rows, strict=True):
        text = outcome.text if isinstance(outcome, Completion) else ""
        shares = (outcome.probabilities or {}).get("", {}) if isinstance(outcome, Completion) else {}
        right.append(text == label)
        sure.append(shares.get(text, 1.0))
    return Answered(right, sure, [seconds])


async def compared(
    services: Sequence[Service], rows: Sequence[Labelled], requests: Sequence[Request], most: Sequence[int]
) -> list[Answered]:
    """Answer rows by each service in turn, at most so many by each."""
    found = [Answered([], [], []) for _ in services]
    for start in range(0, max(most), _AT_ONCE):
        for one, service, own in zip(found, services, most, strict=True):
            part = slice(start, min(start + _AT_ONCE, own, len(rows)))
            if part.start < part.stop:
                new = await answered(service, rows[part], requests[part])
                one.right.extend(new.right)
                one.sure.extend(new.sure)
                one.seconds.extend(new.seconds)
    return found


def service_of(backend: str, **block: str) -> Service:
    """Return a service with one backend, and nothing in its place."""
    configuration = Configuration({"backend": backend, "backend_configs": {backend: block}})
    return Service(configuration, create=registry.create)


async def measure(paths: Sequence[Path], rows: int, engine_rows: int) -> None:
    """Print a line for each table, and the means."""
    services = service_of("encoder", arithmetic="int8"), service_of("openvino", model_name_or_path=EMBEDDED)
    means: dict[str, list[float]] = {}
    print("| table | labels | most frequent | encoder, names | defined | error | SmolLM2, names | defined | times |")
    print("|---|---|---|---|---|---|---|---|---|")
    try:
        for table, all_rows, known in [each for path in paths for each in known_tables(path)]:
            drawn = random.Random(7).sample(all_rows, min(rows, len(all_rows)))
            labels = sorted({label for _, label in all_rows})
            frequent = Counter(label for _, label in drawn).most_common(1)[0][1] / len(drawn)
            cells = [table, str(len(labels)), f"{frequent:.2f}"]
            ratios, errors, shares = [], [], []
            for definitions in ({}, known.definitions):
                if definitions is not known.definitions or definitions:
                    requests = [request(text, labels, definitions) for text, _ in drawn]
                    found = await compared(services, drawn, requests, [len(drawn), min(engine_rows, len(drawn))])
                    pairs = zip(found[1].seconds, found[0].seconds, strict=False)
                    ratios += [engine / encoder for engine, encoder in pairs][1:]  # the first computes the labels
                    errors.append(found[0].error())
                    shares.append([one.share() for one in found])
                else:
                    shares.append(["", ""])
            cells += [shares[0][0], shares[1][0], " / ".join(f"{error:.2f}" for error in errors)]
            cells += [shares[0][1], shares[1][1], f"{statistics.median(ratios):.1f}" if ratios else ""]
            print(f"| {' | '.join(cells)} |", flush=True)
            for place, cell in enumerate(cells[2:]):
                for part, value in enumerate(filter(None, cell.split(" / "))):
                    means.setdefault(f"{place}.{part}", []).append(float(value))
    finally:
        for service in services:
            await service.aclose()
    print({place: round(statistics.mean(values), 3) for place, values in sorted(means.items())})


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--engine-rows", type=int, default=100)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.tables, arguments.rows, arguments.engine_rows))


if __name__ == "__main__":
    main()
